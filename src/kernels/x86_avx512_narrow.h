/* x86_avx512_narrow.h - part of x86_avx512.c: products of tiles of 2, 3, 5 and 6 bits, and of E2M1
 * and E4M3 elements. `bits` = 4 stands for E2M1 here: affine tiles of 4 bits are not narrow. */

#define EACH_FOUR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

enum { NARROW_WIDE_N = 4 }; /* most tokens at once with int16 activations */

/* Codes of the i-th four columns of 16 rows, of the 32 columns (E2M1: 16) at `codes`. i: constant.
 */
INLINE __m512i four_of(const uint8_t *codes, const int i, const int bits) {
    const int low = bits < 4 ? 2 : 4, high = bits - low, per = 8 / low;
    __m512i w = _mm512_loadu_si512(codes + i / per * 64);
    if (i % per) w = _mm512_srli_epi16(w, (unsigned)(i % per * low));
    w = _mm512_and_si512(w, _mm512_set1_epi8((char)((1 << low) - 1)));
    if (bits == 4) {
        __m128i table = _mm_loadu_si128((const __m128i *)(const void *)mxd_e2m1_codes);
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), w);
    }
    if (!high) return w;
    const int each = 8 / high, left = low - i % each * high;
    __m512i h = _mm512_loadu_si512(codes + 64 * low + i / each * 64);
    if (left > 0) h = _mm512_slli_epi16(h, (unsigned)left);
    if (left < 0) h = _mm512_srli_epi16(h, (unsigned)-left);
    const __m512i mask = _mm512_set1_epi8((char)(((1 << high) - 1) << low));
    return _mm512_ternarylogic_epi64(w, h, mask, 0xf8); /* w | (h & mask) */
}

INLINE void narrow_step(__m512i *part, __m512i w, const char *q, const int n, const int ways,
                        const int wide) {
    for (int t = 0; t < n; t++) {
        int32_t two[2];
        memcpy(two, q + t * (wide ? 8 : 4), wide ? 8 : 4);
        if (!wide) {
            part[t * ways] = _mm512_dpbusd_epi32(part[t * ways], w, _mm512_set1_epi32(two[0]));
            continue;
        }
        __m512i even = _mm512_and_si512(w, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(w, 8);
        part[t * ways] = _mm512_dpwssd_epi32(part[t * ways], even, _mm512_set1_epi32(two[0]));
        part[t * ways] = _mm512_dpwssd_epi32(part[t * ways], odd, _mm512_set1_epi32(two[1]));
    }
}

/* One activation group of n tokens; `step` bytes of q to the next four columns. */
INLINE const uint8_t *narrow_dots(__m512i *dot, const uint8_t *codes, const char *q, size_t step,
                                  const size_t fours, const int n, const int bits, const int wide) {
    const int ways = n == 1 ? 4 : n <= 3 ? 2 : 1, unit = bits == 4 && fours == 4 ? 4 : 8;
    __m512i part[MXD_PANEL * 4];
    for (int i = 0; i < n * ways; i++) part[i] = _mm512_setzero_si512();
    for (size_t f = 0; f < fours; f += (size_t)unit, q += step * (size_t)unit) {
        for (int l = 0; l < unit * bits / 8 && n <= 6; l++)
            _mm_prefetch((const char *)codes + 64 * l + AHEAD, _MM_HINT_T0);
#define STEP(i)   \
    if (i < unit) \
        narrow_step(part + i % ways, four_of(codes, i, bits), q + i * step, n, ways, wide);
        EACH_FOUR(STEP)
#undef STEP
        codes += 8 * unit * bits;
    }
    for (int t = 0; t < n; t++) {
        dot[t] = part[t * ways];
        for (int u = 1; u < ways; u++) dot[t] = _mm512_add_epi32(dot[t], part[t * ways + u]);
    }
    return codes;
}

/* 16 E4M3 numbers / 256: as float16 they differ by the bias of the exponent only. */
INLINE __m512 e4m3_256ths(__m128i b) {
    __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(b), 7);
    return _mm512_cvtph_ps(_mm256_and_si256(h, _mm256_set1_epi16((short)0xbf80)));
}

/* 2^(e + plus - 127), which must be a normal float. */
INLINE __m512 power_of_two(__m512i e, const int plus) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(e, _mm512_set1_epi32(plus)), 23));
}

/* mxd_qends of 16 rows. */
INLINE void narrow_ends(__m512 *scale, __m512 *bias, const uint8_t *at, const mxd_qshape *s,
                        const int bits) {
    if (bits != 4) {
        *scale = load16(at, s->scales, 0);
        *bias = load16(at, s->scales, MXD_TILE_ROWS);
        return;
    }
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)at);
    if (s->kind == MXD_MXFP4) {
        __m512 four = power_of_two(_mm512_cvtepu8_epi32(b), 2);
        *scale = _mm512_mul_ps(four, _mm512_set1_ps(0.125f));
        *bias = _mm512_mul_ps(four, _mm512_set1_ps(-1.5f));
    } else {
        __m512 v = e4m3_256ths(b);
        *scale = _mm512_mul_ps(v, _mm512_set1_ps(128));
        *bias = _mm512_mul_ps(v, _mm512_set1_ps(-1536));
    }
}

/* Tokens [t0, t0 + n) of the panel, of `all`. fours: of an activation group, a constant for E2M1,
 * whose groups are small. */
INLINE void narrow_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                     const mxd_panel *p, size_t t0, const int n, size_t all, const int bits,
                     const size_t fours, const int wide) {
    const size_t step = all * (wide ? 8 : 4), per_group = bits == 4 ? 1 : (size_t)(s->group / p->g);
    const size_t code_bytes = 32 * fours * per_group * (size_t)bits / 4;
    const size_t ends_bytes = 2 * MXD_TILE_ROWS * mxd_ftype_bytes(s->scales);
    const char *q = (const char *)p->q + t0 * (wide ? 8 : 4);
    const float *xs = p->s + t0, *xb = p->b + t0;
    const uint8_t *ends = tile;
    size_t left = s->k / (size_t)s->group, in_run = 0;
    vtree sums;
    __m512 acc[MXD_PANEL], scale, bias;
    __m512i dot[MXD_PANEL];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (const size_t in_block = s->block_k / (size_t)s->group; left;) {
        size_t groups = left < in_block ? left : in_block;
        left -= groups;
        for (int t = 0; t < n; t++) acc[t] = _mm512_setzero_ps();
        for (; groups; groups--) {
            if (bits == 4) { /* a line of scales before every run of groups */
                ends = in_run ? ends + MXD_TILE_ROWS : tile;
                if (!in_run) tile += MXD_SCALE_RUN * MXD_TILE_ROWS;
                in_run = (in_run + 1) % MXD_SCALE_RUN;
            } else {
                ends = tile + code_bytes;
            }
            narrow_ends(&scale, &bias, ends, s, bits);
            for (size_t j = 0; j < per_group; j++, q += step * fours, xs += all, xb += all) {
                tile = narrow_dots(dot, tile, q, step, fours, n, bits, wide);
                for (int t = 0; t < n; t++) {
                    __m512 by = _mm512_mul_ps(broadcast(xs + t), scale);
                    acc[t] = _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(dot[t]), acc[t]);
                    acc[t] = _mm512_fmadd_ps(bias, broadcast(xb + t), acc[t]);
                }
            }
            if (bits != 4) tile += ends_bytes;
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

/* Every format with a constant width. */
INLINE void narrow_any(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const mxd_panel *p, size_t t0, const int n, size_t all, const int wide) {
    const size_t fours = (size_t)p->g / 4;
    switch (s->bits) {
    case 2:
        narrow_n(y, ldy, tile, s, p, t0, n, all, 2, fours, wide);
        break;
    case 3:
        narrow_n(y, ldy, tile, s, p, t0, n, all, 3, fours, wide);
        break;
    case 4:
        if (s->kind == MXD_MXFP4)
            narrow_n(y, ldy, tile, s, p, t0, n, all, 4, 8, wide);
        else
            narrow_n(y, ldy, tile, s, p, t0, n, all, 4, 4, wide);
        break;
    case 5:
        narrow_n(y, ldy, tile, s, p, t0, n, all, 5, fours, wide);
        break;
    default:
        narrow_n(y, ldy, tile, s, p, t0, n, all, 6, fours, wide);
    }
}

#define NARROW(n)                                                                               \
    static __attribute__((noinline)) void narrow_##n(float *y, size_t ldy, const uint8_t *tile, \
                                                     const mxd_qshape *s, const mxd_panel *p) { \
        narrow_any(y, ldy, tile, s, p, 0, n, n, 0);                                             \
    }
EACH_N(NARROW)

INLINE int is_narrow(const mxd_qshape *s) {
    return s->kind != MXD_AFFINE || (s->bits != 4 && s->bits != 8);
}

static void any_qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                        const mxd_panel *p) {
#define ROW(n) narrow_##n,
    static const qmul_fn fn[MXD_PANEL] = {EACH_N(ROW)};
    (is_narrow(s) ? fn[p->n - 1] : v_qmul_i8)(y, ldy, tile, s, p);
}

static void any_qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                         const mxd_panel *p) {
    size_t t = 0, n = (size_t)p->n;
    if (!is_narrow(s)) {
        v_qmul_i16(y, ldy, tile, s, p);
        return;
    }
    for (; t + NARROW_WIDE_N <= n; t += NARROW_WIDE_N)
        narrow_any(y + t * ldy, ldy, tile, s, p, t, NARROW_WIDE_N, n, 1);
    for (; t < n; t++) narrow_any(y + t * ldy, ldy, tile, s, p, t, 1, n, 1);
}

/* --------------------------------------------------------------------------- float32 activations
 */

/* A group's codes as those of 8 bits. */
INLINE void widen_group(uint8_t *to, const uint8_t *codes, size_t group, const int bits) {
    const int unit = bits == 4 ? 4 : 8;
    for (size_t c = 0; c < group; c += 4 * (size_t)unit, codes += 8 * unit * bits) {
#define STEP(i) \
    if (i < unit) _mm512_storeu_si512(to + c * 16 + 64 * i, four_of(codes, i, bits));
        EACH_FOUR(STEP)
#undef STEP
    }
}

INLINE void narrow_f32_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                         const float *x, size_t ldx, const int n) {
    const size_t group = (size_t)s->group, n_groups = s->k / group, in_block = s->block_k / group;
    vtree sums;
    __m512 acc[4], dot[4], scale, bias;
    float sum[4];
    uint8_t codes[128 * MXD_TILE_ROWS];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t i = 0; i < n_groups;) {
        size_t end = n_groups - i < in_block ? n_groups : i + in_block;
        for (int t = 0; t < n; t++) acc[t] = _mm512_setzero_ps();
        for (; i < end; i++, x += group) {
            const uint8_t *from = tile + mxd_codes_at(s, i);
            switch (s->bits) {
            case 2:
                widen_group(codes, from, group, 2);
                break;
            case 3:
                widen_group(codes, from, group, 3);
                break;
            case 4:
                widen_group(codes, from, group, 4);
                break;
            case 5:
                widen_group(codes, from, group, 5);
                break;
            default:
                widen_group(codes, from, group, 6);
            }
            narrow_ends(&scale, &bias, tile + mxd_scales_at(s, i), s, s->bits);
            group_f32(dot, sum, codes, group, x, ldx, n, 8);
            for (int t = 0; t < n; t++) {
                acc[t] = _mm512_fmadd_ps(scale, dot[t], acc[t]);
                acc[t] = _mm512_fmadd_ps(bias, _mm512_set1_ps(sum[t]), acc[t]);
            }
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

/* `wide` neighbouring columns at `codes` against n tokens. E4M3 bits at
 * the place of a float's, as tiny numbers, are 2^-120 of the value; subnormal ones are right too.
 * `by` brings that to element * scale, together with `more` where the scale is large. */
INLINE void fp8_columns(__m512 (*part)[MXD_LANES], const uint8_t *codes, __m512 by, __m512 more,
                        const int large, const float *x, size_t ldx, const int n, const int wide) {
    const __m512i mask = _mm512_set1_epi32((int)0x87f00000);
    for (int l = 0; l < wide; l++) {
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(codes + 16 * l));
        __m512i f = _mm512_and_si512(_mm512_slli_epi32(_mm512_cvtepi8_epi32(b), 20), mask);
        __m512 w = _mm512_mul_ps(_mm512_castsi512_ps(f), by);
        if (large) w = _mm512_mul_ps(w, more);
        for (int t = 0; t < n; t++)
            part[t][l] = _mm512_fmadd_ps(w, broadcast(x + (size_t)t * ldx + l), part[t][l]);
    }
}

/* Lane sums of `cols` columns from group i on for n tokens, `wide` lanes at a time, folded into
 * acc [n]. */
INLINE void fp8_block(__m512 *acc, const uint8_t *tile, const mxd_qshape *s, size_t i, size_t cols,
                      const float *x, size_t ldx, const int n, const int wide) {
    const __m512i most = _mm512_set1_epi32(134); /* 2^(134 - 7) is the last power of two */
    __m512 lane[6][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        __m512 part[6][MXD_LANES];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = _mm512_setzero_ps();
        for (size_t c = 0; c < cols; c += 32) {
            const uint8_t *codes = tile + mxd_codes_at(s, i + c / 32) + l0 * MXD_TILE_ROWS;
            const uint8_t *scales = tile + mxd_scales_at(s, i + c / 32);
            __m512i e =
                _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)scales));
            __m512i low = _mm512_min_epi32(e, most);
            __m512 by = power_of_two(low, 120);
            __m512 more = power_of_two(_mm512_sub_epi32(e, low), 127);
            /* a test pays with one token; with more it costs registers */
            const int large = n > 1 || _mm512_cmpgt_epi32_mask(e, most);
            for (size_t h = 0; h < 32; h += 16, codes += 256) {
                const float *v = x + c + h + (size_t)l0;
                for (int l = 0; l < wide && n <= 3; l += 4)
                    _mm_prefetch((const char *)codes + 16 * l + AHEAD, _MM_HINT_T0);
                if (large)
                    fp8_columns(part, codes, by, more, 1, v, ldx, n, wide);
                else
                    fp8_columns(part, codes, by, more, 0, v, ldx, n, wide);
            }
        }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) {
        fold_lanes(lane[t]);
        acc[t] = lane[t][0];
    }
}

INLINE void fp8_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s, const float *x,
                  size_t ldx, const int n, const int wide) {
    vtree sums;
    __m512 acc[6];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t c = 0; c < s->k; c += s->block_k) {
        size_t cols = s->k - c < s->block_k ? s->k - c : s->block_k;
        fp8_block(acc, tile, s, c / 32, cols, x + c, ldx, n, wide);
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define FP8(n, wide)                                                                              \
    static                                                                                        \
        __attribute__((noinline)) void fp8_##n(float *y, size_t ldy, const uint8_t *tile,         \
                                               const mxd_qshape *s, const float *x, size_t ldx) { \
        fp8_n(y, ldy, tile, s, x, ldx, n, wide);                                                  \
    }
FP8(1, 16)
FP8(2, 8)
FP8(3, 8)
FP8(4, 4)
FP8(5, 4)
FP8(6, 4)

static void any_qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                         const float *x, size_t ldx, int n) {
    static void (*const fp8[])(float *, size_t, const uint8_t *, const mxd_qshape *, const float *,
                               size_t) = {fp8_1, fp8_2, fp8_3, fp8_4, fp8_5, fp8_6};
    if (!is_narrow(s)) {
        v_qmul_f32(y, ldy, tile, s, x, ldx, n);
        return;
    }
    for (int m; n > 0; n -= m, y += (size_t)m * ldy, x += (size_t)m * ldx) {
        m = s->kind == MXD_MXFP8 ? n < 6 ? n : 6 : n < 4 ? 1 : 4;
        if (s->kind == MXD_MXFP8)
            fp8[m - 1](y, ldy, tile, s, x, ldx);
        else if (m == 4)
            narrow_f32_n(y, ldy, tile, s, x, ldx, 4);
        else
            narrow_f32_n(y, ldy, tile, s, x, ldx, 1);
    }
}
