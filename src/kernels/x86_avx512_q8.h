/* x86_avx512_q8.h - part of x86_avx512.c: K and V of 8 bits. Values are made from codes once for
 * all tokens. */

/* Sixteen codes as floats. */
INLINE __m512 q8_codes(const int8_t *p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)));
}

/* A tile [k][16 rows] for n tokens, `wide` lanes at a time. */
INLINE void q8_mul_n(float *y, size_t ldy, const int8_t *tile, size_t k, const float *x, size_t ldx,
                     const int n, const int wide) {
    const uint16_t *scales = (const uint16_t *)(const void *)(tile + k * MXD_TILE_ROWS);
    __m512 lane[6][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        __m512 part[6][MXD_LANES];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = _mm512_setzero_ps();
        for (size_t c = (size_t)l0; c < k; c += MXD_LANES) {
            __m512 scale = load16(scales, MXD_BF16, c / MXD_Q8_GROUP * MXD_TILE_ROWS);
            for (int l = 0; l < wide; l++) {
                size_t at = c + (size_t)l;
                __m512 w = _mm512_mul_ps(q8_codes(tile + at * MXD_TILE_ROWS), scale);
                for (int t = 0; t < n; t++)
                    part[t][l] =
                        _mm512_fmadd_ps(w, broadcast(x + (size_t)t * ldx + at), part[t][l]);
            }
        }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) {
        fold_lanes(lane[t]);
        _mm512_storeu_ps(y + (size_t)t * ldy, lane[t][0]);
    }
}

#define Q8_MUL(n, wide)                                                                        \
    static __attribute__((noinline)) void q8_mul_##n(float *y, size_t ldy, const int8_t *tile, \
                                                     size_t k, const float *x, size_t ldx) {   \
        q8_mul_n(y, ldy, tile, k, x, ldx, n, wide);                                            \
    }
Q8_MUL(1, 16)
Q8_MUL(2, 8)
Q8_MUL(3, 8)
Q8_MUL(4, 4)
Q8_MUL(5, 4)
Q8_MUL(6, 4)

static void v_q8_mul(float *y, size_t ldy, const void *tile, size_t k, const float *x, size_t ldx,
                     int n) {
    static void (*const fn[])(float *, size_t, const int8_t *, size_t, const float *, size_t) = {
        q8_mul_1, q8_mul_2, q8_mul_3, q8_mul_4, q8_mul_5, q8_mul_6};
    for (int m; n > 0; n -= m, y += (size_t)m * ldy, x += (size_t)m * ldx) {
        m = n < 6 ? n : 6;
        fn[m - 1](y, ldy, tile, k, x, ldx);
    }
}

/* `wide` registers of d from column i0 for n tokens, over all positions. i0 is a multiple of
 * MXD_Q8_GROUP, or wide is 1. */
INLINE void q8_mix_n(float *acc, size_t ldacc, const float *p, size_t ldp, const int8_t *v,
                     size_t n_pos, size_t d, size_t i0, const int n, const int wide) {
    __m512 sum[6][8];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            sum[t][i] = _mm512_loadu_ps(acc + (size_t)t * ldacc + i0 + 16 * (size_t)i);
    for (size_t pos = 0; pos < n_pos; pos++, v += mxd_q8_bytes(d)) {
        const uint16_t *scales = (const uint16_t *)(const void *)(v + d) + i0 / MXD_Q8_GROUP;
        for (int i = 0; i < wide; i++) {
            __m512 scale = _mm512_set1_ps(mxd_bf16_to_f32(scales[16 * i / MXD_Q8_GROUP]));
            __m512 w = _mm512_mul_ps(q8_codes(v + i0 + 16 * (size_t)i), scale);
            for (int t = 0; t < n; t++)
                sum[t][i] = _mm512_fmadd_ps(broadcast(p + (size_t)t * ldp + pos), w, sum[t][i]);
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            _mm512_storeu_ps(acc + (size_t)t * ldacc + i0 + 16 * (size_t)i, sum[t][i]);
}

#define Q8_MIX(n, wide)                                                                         \
    static __attribute__((noinline)) void q8_mix_##n(float *acc, size_t ldacc, const float *p,  \
                                                     size_t ldp, const int8_t *v, size_t n_pos, \
                                                     size_t d) {                                \
        size_t i = 0;                                                                           \
        for (; i + 16 * wide <= d; i += 16 * wide)                                              \
            q8_mix_n(acc, ldacc, p, ldp, v, n_pos, d, i, n, wide);                              \
        for (; i < d; i += 16) q8_mix_n(acc, ldacc, p, ldp, v, n_pos, d, i, n, 1);              \
    }
Q8_MIX(1, 8)
Q8_MIX(2, 8)
Q8_MIX(3, 4)
Q8_MIX(4, 4)
Q8_MIX(5, 4)
Q8_MIX(6, 4)

static void v_q8_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                     size_t n_pos, size_t d, int n) {
    static void (*const fn[])(float *, size_t, const float *, size_t, const int8_t *, size_t,
                              size_t) = {q8_mix_1, q8_mix_2, q8_mix_3,
                                         q8_mix_4, q8_mix_5, q8_mix_6};
    for (int m; n > 0; n -= m, acc += (size_t)m * ldacc, p += (size_t)m * ldp) {
        m = n < 6 ? n : 6;
        fn[m - 1](acc, ldacc, p, ldp, v, n_pos, d);
    }
}
