/* x86_avx2_narrow.h - part of x86_avx2.c: products of tiles of 2, 3, 5 and 6 bits, and of E2M1 and
 * E4M3 elements. `bits` = 4 stands for E2M1 here: affine tiles of 4 bits are not narrow.
 *
 * Codes below 64 may use the byte form: a pair is at most 2 * 63 * 127 < 2^15. */

#define EACH_FOUR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* Products of pairs that 16 bits can add up: codes to 3, 7, 24, 31 and 63. */
INLINE int pairs_held(const int bits) { return bits < 4 ? 8 : bits < 6 ? 4 : 2; }

INLINE __m256i load32(const uint8_t *p) {
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}

/* Codes of the i-th four columns of 8 rows, of the 32 columns (E2M1: 16) at `codes`. i: constant.
 */
INLINE __m256i four_of(const uint8_t *codes, const int i, const int bits) {
    const int low = bits < 4 ? 2 : 4, high = bits - low, per = 8 / low;
    __m256i w = load32(codes + i / per * 64);
    if (i % per) w = _mm256_srli_epi16(w, i % per * low);
    w = _mm256_and_si256(w, _mm256_set1_epi8((char)((1 << low) - 1)));
    if (bits == 4) {
        __m128i table = _mm_loadu_si128((const __m128i *)(const void *)mxd_e2m1_codes);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), w);
    }
    if (!high) return w;
    const int each = 8 / high, left = low - i % each * high;
    __m256i h = load32(codes + 64 * low + i / each * 64);
    if (left > 0) h = _mm256_slli_epi16(h, left);
    if (left < 0) h = _mm256_srli_epi16(h, -left);
    h = _mm256_and_si256(h, _mm256_set1_epi8((char)(((1 << high) - 1) << low)));
    return _mm256_or_si256(w, h);
}

/* The i-th four columns of 16 rows against n tokens; `held` keeps sums of 16 bits between calls. */
INLINE void narrow_step(__m256i (*dot)[2], __m256i (*held)[2], const uint8_t *codes, const char *q,
                        const int i, const int n, const int bits, const int wide) {
    const int most = pairs_held(bits);
    for (int r = 0; r < 2; r++) {
        __m256i w = four_of(codes + 32 * r, i, bits);
        for (int t = 0; t < n; t++) {
            int32_t two[2];
            memcpy(two, q + t * (wide ? 8 : 4), wide ? 8 : 4);
            if (wide) {
                dot[t][r] =
                    madd2(dot[t][r], w, _mm256_set1_epi32(two[0]), _mm256_set1_epi32(two[1]));
                continue;
            }
            __m256i pairs = _mm256_maddubs_epi16(w, _mm256_set1_epi32(two[0]));
            held[t][r] = i % most ? _mm256_add_epi16(held[t][r], pairs) : pairs;
            if (i % most == most - 1)
                dot[t][r] = _mm256_add_epi32(dot[t][r],
                                             _mm256_madd_epi16(held[t][r], _mm256_set1_epi16(1)));
        }
    }
}

/* One activation group of n tokens; `step` bytes of q to the next four columns. */
INLINE const uint8_t *narrow_dots(__m256i (*dot)[2], const uint8_t *codes, const char *q,
                                  size_t step, const size_t fours, const int n, const int bits,
                                  const int wide) {
    const int unit = bits == 4 && fours == 4 ? 4 : 8;
    __m256i held[GROUP_N][2];
    for (int t = 0; t < n; t++)
        for (int r = 0; r < 2; r++) dot[t][r] = held[t][r] = _mm256_setzero_si256();
    for (size_t f = 0; f < fours; f += (size_t)unit, q += step * (size_t)unit) {
#define STEP(i) \
    if (i < unit) narrow_step(dot, held, codes, q + i * step, i, n, bits, wide);
        EACH_FOUR(STEP)
#undef STEP
        codes += 8 * unit * bits;
    }
    return codes;
}

INLINE __m256i dwords_of_u8(const uint8_t *p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
}

/* 2^(e + plus - 127), which must be a normal float. */
INLINE __m256 power_of_two(__m256i e, const int plus) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(plus)), 23));
}

/* 8 E4M3 numbers / 256: as float16 they differ by the bias of the exponent only. */
INLINE __m256 e4m3_256ths(const uint8_t *p) {
    __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)p);
    b = _mm_and_si128(_mm_slli_epi16(_mm_cvtepi8_epi16(b), 7), _mm_set1_epi16((short)0xbf80));
    return _mm256_cvtph_ps(b);
}

/* mxd_qends of 16 rows. */
INLINE void narrow_ends(v16 *scale, v16 *bias, const uint8_t *at, const mxd_qshape *s,
                        const int bits) {
    if (bits != 4) {
        *scale = load16(at, s->scales, 0);
        *bias = load16(at, s->scales, MXD_TILE_ROWS);
    } else if (s->kind == MXD_MXFP4) {
        v16 four = {power_of_two(dwords_of_u8(at), 2), power_of_two(dwords_of_u8(at + 8), 2)};
        *scale = mul16(four, set16(0.125f));
        *bias = mul16(four, set16(-1.5f));
    } else {
        v16 v = {e4m3_256ths(at), e4m3_256ths(at + 8)};
        *scale = mul16(v, set16(128));
        *bias = mul16(v, set16(-1536));
    }
}

/* Tokens [t0, t0 + n) of the panel. fours: of an activation group, a constant for E2M1, whose
 * groups are small. */
INLINE void narrow_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                     const mxd_panel *p, size_t t0, const int n, const int bits, const size_t fours,
                     const int wide) {
    const size_t all = (size_t)p->n, step = all * (wide ? 8 : 4), group = (size_t)s->group;
    const size_t n_groups = s->k / group, in_block = s->block_k / group;
    const char *q = (const char *)p->q + t0 * (wide ? 8 : 4);
    const float *xs = p->s + t0, *xb = p->b + t0;
    vtree sums;
    v16 acc[GROUP_N], scale, bias;
    __m256i dot[GROUP_N][2];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t i = 0; i < n_groups;) {
        size_t end = n_groups - i < in_block ? n_groups : i + in_block;
        for (int t = 0; t < n; t++) acc[t] = set16(0);
        for (; i < end; i++) {
            const uint8_t *codes = tile + mxd_codes_at(s, i);
            narrow_ends(&scale, &bias, tile + mxd_scales_at(s, i), s, bits);
            for (size_t j = 0; j < group; j += 4 * fours, q += step * fours, xs += all, xb += all) {
                codes = narrow_dots(dot, codes, q, step, fours, n, bits, wide);
                for (int t = 0; t < n; t++) {
                    v16 d = {_mm256_cvtepi32_ps(dot[t][0]), _mm256_cvtepi32_ps(dot[t][1])};
                    acc[t] = fma16(mul16(set16(xs[t]), scale), d, acc[t]);
                    acc[t] = fma16(bias, set16(xb[t]), acc[t]);
                }
            }
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define NARROW(name, bits, fours, wide)                                                  \
    static void name(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,     \
                     const mxd_panel *p) {                                               \
        size_t t = 0, n = (size_t)p->n;                                                  \
        for (; t + 3 <= n; t += 3)                                                       \
            narrow_n(y + t * ldy, ldy, tile, s, p, t, 3, bits, fours, wide);             \
        if (n - t == 2) narrow_n(y + t * ldy, ldy, tile, s, p, t, 2, bits, fours, wide); \
        if (n - t == 1) narrow_n(y + t * ldy, ldy, tile, s, p, t, 1, bits, fours, wide); \
    }
#define BOTH(bits)                                       \
    NARROW(narrow##bits##_i8, bits, (size_t)p->g / 4, 0) \
    NARROW(narrow##bits##_i16, bits, (size_t)p->g / 4, 1)
BOTH(2)
BOTH(3)
BOTH(5)
BOTH(6)
NARROW(mxfp4_i8, 4, 8, 0)
NARROW(mxfp4_i16, 4, 8, 1)
NARROW(nvfp4_i8, 4, 4, 0)
NARROW(nvfp4_i16, 4, 4, 1)

typedef void (*narrow_fn)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                          const mxd_panel *p);

INLINE int is_narrow(const mxd_qshape *s) {
    return s->kind != MXD_AFFINE || (s->bits != 4 && s->bits != 8);
}

static void any_qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                        const mxd_panel *p) {
    static const narrow_fn affine[] = {[2] = narrow2_i8, [3] = narrow3_i8, [4] = v_qmul_i8,
                                       [5] = narrow5_i8, [6] = narrow6_i8, [8] = v_qmul_i8};
    (s->kind == MXD_AFFINE  ? affine[s->bits]
     : s->kind == MXD_MXFP4 ? mxfp4_i8
                            : nvfp4_i8)(y, ldy, tile, s, p);
}

static void any_qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                         const mxd_panel *p) {
    static const narrow_fn affine[] = {[2] = narrow2_i16, [3] = narrow3_i16, [4] = v_qmul_i16,
                                       [5] = narrow5_i16, [6] = narrow6_i16, [8] = v_qmul_i16};
    (s->kind == MXD_AFFINE  ? affine[s->bits]
     : s->kind == MXD_MXFP4 ? mxfp4_i16
                            : nvfp4_i16)(y, ldy, tile, s, p);
}

/* --------------------------------------------------------------------------- float32 activations
 */

/* A group's codes as those of 8 bits. */
INLINE void widen_group(uint8_t *to, const uint8_t *codes, size_t group, const int bits) {
    const int unit = bits == 4 ? 4 : 8;
    for (size_t c = 0; c < group; c += 4 * (size_t)unit, codes += 8 * unit * bits)
        for (int r = 0; r < 2; r++) {
            uint8_t *at = to + c * 16 + 32 * r;
#define STEP(i)   \
    if (i < unit) \
        _mm256_storeu_si256((__m256i *)(void *)(at + 64 * i), four_of(codes + 32 * r, i, bits));
            EACH_FOUR(STEP)
#undef STEP
        }
}

static void widen_any(uint8_t *to, const uint8_t *codes, size_t group, int bits) {
    switch (bits) {
    case 2:
        widen_group(to, codes, group, 2);
        break;
    case 3:
        widen_group(to, codes, group, 3);
        break;
    case 4:
        widen_group(to, codes, group, 4);
        break;
    case 5:
        widen_group(to, codes, group, 5);
        break;
    default:
        widen_group(to, codes, group, 6);
    }
}

static void narrow_f32(float *y, const uint8_t *tile, const mxd_qshape *s, const float *x) {
    const size_t group = (size_t)s->group, n_groups = s->k / group, in_block = s->block_k / group;
    vtree sums;
    v16 scale, bias;
    uint8_t codes[128 * MXD_TILE_ROWS];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t i = 0; i < n_groups;) {
        size_t end = n_groups - i < in_block ? n_groups : i + in_block;
        v16 acc = set16(0);
        for (; i < end; i++, x += group) {
            float sum;
            widen_any(codes, tile + mxd_codes_at(s, i), group, s->bits);
            narrow_ends(&scale, &bias, tile + mxd_scales_at(s, i), s, s->bits);
            acc = fma16(scale, group_f32(&sum, codes, group, x, 8), acc);
            acc = fma16(bias, set16(sum), acc);
        }
        vtree_push(&sums, &acc, 1);
    }
    vtree_store(&sums, y, 0, 1);
}

/* E4M3 bits at the place of a float's, as tiny numbers, are 2^-120 of the value; subnormal ones are
 * right too. `by` brings that to element * scale, together with `more` where the scale is large. */
INLINE v16 fp8_column(const uint8_t *codes, v16 by, v16 more, const int large) {
    const __m256i mask = _mm256_set1_epi32((int)0x87f00000);
    const __m256i top =
        _mm256_setr_epi8(-1, -1, -1, 0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1, 4,
                         -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7);
    __m256i b = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)codes));
    __m256i lo = _mm256_shuffle_epi8(b, top); /* to the highest byte, then four bits down */
    __m256i hi = _mm256_shuffle_epi8(b, _mm256_add_epi8(top, _mm256_set1_epi32(8 << 24)));
    lo = _mm256_and_si256(_mm256_srai_epi32(lo, 4), mask);
    hi = _mm256_and_si256(_mm256_srai_epi32(hi, 4), mask);
    v16 w = mul16((v16){_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)}, by);
    return large ? mul16(w, more) : w;
}

/* The lanes from l0 of the 32 columns at `codes` against n tokens. */
INLINE void fp8_lanes(v16 (*lane)[MXD_LANES], const uint8_t *codes, v16 by, v16 more,
                      const int large, const float *x, size_t ldx, size_t l0, const int n,
                      const int wide) {
    v16 part[GROUP_N][4];
    for (int t = 0; t < n; t++)
        for (int l = 0; l < wide; l++) part[t][l] = lane[t][l0 + (size_t)l];
    for (size_t c = l0; c < 32; c += MXD_LANES)
        for (size_t l = 0; l < (size_t)wide; l++) {
            v16 w = fp8_column(codes + MXD_TILE_ROWS * (c + l), by, more, large);
            for (int t = 0; t < n; t++)
                part[t][l] = fma16(w, set16(x[(size_t)t * ldx + c + l]), part[t][l]);
        }
    for (int t = 0; t < n; t++)
        for (int l = 0; l < wide; l++) lane[t][l0 + (size_t)l] = part[t][l];
}

/* Lane sums of `cols` columns from group i on for n tokens, folded into acc [n]. */
INLINE void fp8_block(v16 *acc, const uint8_t *tile, const mxd_qshape *s, size_t i, size_t cols,
                      const float *x, size_t ldx, const int n, const int wide) {
    const __m256i most = _mm256_set1_epi32(134); /* 2^(134 - 7) is the last power of two */
    v16 lane[GROUP_N][MXD_LANES];
    for (int t = 0; t < n; t++)
        for (int l = 0; l < MXD_LANES; l++) lane[t][l] = set16(0);
    for (const float *end = x + cols; x < end; x += 32, i++) {
        const uint8_t *codes = tile + mxd_codes_at(s, i), *scales = tile + mxd_scales_at(s, i);
        __m256i lo = dwords_of_u8(scales), hi = dwords_of_u8(scales + 8);
        __m256i lo_by = _mm256_min_epi32(lo, most), hi_by = _mm256_min_epi32(hi, most);
        __m256i lo_more = _mm256_sub_epi32(lo, lo_by), hi_more = _mm256_sub_epi32(hi, hi_by);
        __m256i any = _mm256_or_si256(lo_more, hi_more);
        v16 by = {power_of_two(lo_by, 120), power_of_two(hi_by, 120)};
        v16 more = {power_of_two(lo_more, 127), power_of_two(hi_more, 127)};
        for (size_t l0 = 0; l0 < MXD_LANES; l0 += (size_t)wide)
            if (_mm256_testz_si256(any, any))
                fp8_lanes(lane, codes, by, more, 0, x, ldx, l0, n, wide);
            else
                fp8_lanes(lane, codes, by, more, 1, x, ldx, l0, n, wide);
    }
    for (int t = 0; t < n; t++) acc[t] = fold_lanes(lane[t]);
}

INLINE void fp8_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s, const float *x,
                  size_t ldx, const int n, const int wide) {
    vtree sums;
    v16 acc[GROUP_N];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t c = 0; c < s->k; c += s->block_k) {
        size_t cols = s->k - c < s->block_k ? s->k - c : s->block_k;
        fp8_block(acc, tile, s, c / 32, cols, x + c, ldx, n, wide);
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

static void any_qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                         const float *x, size_t ldx, int n) {
    if (!is_narrow(s)) {
        v_qmul_f32(y, ldy, tile, s, x, ldx, n);
    } else if (s->kind == MXD_MXFP8) {
        for (; n >= 3; n -= 3, y += 3 * ldy, x += 3 * ldx) fp8_n(y, ldy, tile, s, x, ldx, 3, 2);
        if (n == 2) fp8_n(y, ldy, tile, s, x, ldx, 2, 2);
        if (n == 1) fp8_n(y, ldy, tile, s, x, ldx, 1, 4);
    } else {
        for (; n; n--, y += ldy, x += ldx) narrow_f32(y, tile, s, x);
    }
}
