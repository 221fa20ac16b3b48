/* x86_avx2_q8.h - part of x86_avx2.c: K and V of 8 bits. Values are made from codes once for all
 * tokens. */

/* Sixteen codes as floats. */
INLINE v16 q8_codes(const int8_t *p) {
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (v16){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)),
                 _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)))};
}

/* A tile [k][16 rows] for n tokens, `wide` lanes at a time. */
INLINE void q8_mul_n(float *y, size_t ldy, const int8_t *tile, size_t k, const float *x, size_t ldx,
                     const int n, const int wide) {
    const uint16_t *scales = (const uint16_t *)(const void *)(tile + k * MXD_TILE_ROWS);
    v16 lane[GROUP_N][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        v16 part[GROUP_N][4];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = set16(0);
        for (size_t c = (size_t)l0; c < k; c += MXD_LANES) {
            v16 scale = load16(scales, MXD_BF16, c / MXD_Q8_GROUP * MXD_TILE_ROWS);
            for (int l = 0; l < wide; l++) {
                size_t at = c + (size_t)l;
                v16 w = mul16(q8_codes(tile + at * MXD_TILE_ROWS), scale);
                for (int t = 0; t < n; t++)
                    part[t][l] = fma16(w, set16(x[(size_t)t * ldx + at]), part[t][l]);
            }
        }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) write16(y + (size_t)t * ldy, fold_lanes(lane[t]));
}

static void v_q8_mul(float *y, size_t ldy, const void *tile, size_t k, const float *x, size_t ldx,
                     int n) {
    for (; n >= 3; n -= 3, y += 3 * ldy, x += 3 * ldx) q8_mul_n(y, ldy, tile, k, x, ldx, 3, 2);
    if (n == 2) q8_mul_n(y, ldy, tile, k, x, ldx, 2, 2);
    if (n == 1) q8_mul_n(y, ldy, tile, k, x, ldx, 1, 4);
}

/* `wide` times 16 elements of d from column i0 for n tokens, over all positions. i0 is a multiple
 * of MXD_Q8_GROUP, or wide is 1. */
INLINE void q8_mix_n(float *acc, size_t ldacc, const float *p, size_t ldp, const int8_t *v,
                     size_t n_pos, size_t d, size_t i0, const int n, const int wide) {
    v16 sum[GROUP_N][4];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            sum[t][i] = read16(acc + (size_t)t * ldacc + i0 + 16 * (size_t)i);
    for (size_t pos = 0; pos < n_pos; pos++, v += mxd_q8_bytes(d)) {
        const uint16_t *scales = (const uint16_t *)(const void *)(v + d) + i0 / MXD_Q8_GROUP;
        for (int i = 0; i < wide; i++) {
            v16 scale = set16(mxd_bf16_to_f32(scales[16 * i / MXD_Q8_GROUP]));
            v16 w = mul16(q8_codes(v + i0 + 16 * (size_t)i), scale);
            for (int t = 0; t < n; t++)
                sum[t][i] = fma16(set16(p[(size_t)t * ldp + pos]), w, sum[t][i]);
        }
    }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            write16(acc + (size_t)t * ldacc + i0 + 16 * (size_t)i, sum[t][i]);
}

/* All of d, `wide` times 16 at a time as long as they fit. */
INLINE void q8_mix_row(float *acc, size_t ldacc, const float *p, size_t ldp, const int8_t *v,
                       size_t n_pos, size_t d, const int n, const int wide) {
    size_t i = 0;
    for (; i + 16 * (size_t)wide <= d; i += 16 * (size_t)wide)
        q8_mix_n(acc, ldacc, p, ldp, v, n_pos, d, i, n, wide);
    for (; i < d; i += 16) q8_mix_n(acc, ldacc, p, ldp, v, n_pos, d, i, n, 1);
}

static void v_q8_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                     size_t n_pos, size_t d, int n) {
    for (; n >= 3; n -= 3, acc += 3 * ldacc, p += 3 * ldp)
        q8_mix_row(acc, ldacc, p, ldp, v, n_pos, d, 3, 2);
    if (n == 2) q8_mix_row(acc, ldacc, p, ldp, v, n_pos, d, 2, 2);
    if (n == 1) q8_mix_row(acc, ldacc, p, ldp, v, n_pos, d, 1, 4);
}
