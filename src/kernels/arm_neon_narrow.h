/* arm_neon_narrow.h - part of arm_neon.c: products of tiles of 2, 3, 5 and 6 bits, and of E2M1 and
 * E4M3 elements. `bits` = 4 stands for E2M1 here: affine tiles of 4 bits are not narrow. Codes
 * below 64 are signed bytes as they stand. */

#define EACH_FOUR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

/* Left for by > 0, right for by < 0. */
INLINE uint8x16_t shifted(uint8x16_t v, const int by) {
    return by ? vshlq_u8(v, vdupq_n_s8((int8_t)by)) : v;
}

/* Codes of the i-th four columns of 4 rows, of the 32 columns (E2M1: 16) at `codes`. i: constant.
 */
INLINE uint8x16_t four_of(const uint8_t *codes, const int i, const int bits) {
    const int low = bits < 4 ? 2 : 4, high = bits - low, per = 8 / low;
    uint8x16_t w = shifted(vld1q_u8(codes + i / per * 64), -(i % per * low));
    w = vandq_u8(w, vdupq_n_u8((uint8_t)((1 << low) - 1)));
    if (bits == 4) return vqtbl1q_u8(vld1q_u8(mxd_e2m1_codes), w);
    if (!high) return w;
    const int each = 8 / high;
    uint8x16_t h = vld1q_u8(codes + 64 * low + i / each * 64);
    h = vandq_u8(shifted(h, low - i % each * high),
                 vdupq_n_u8((uint8_t)(((1 << high) - 1) << low)));
    return vorrq_u8(w, h);
}

/* The i-th four columns of 16 rows against n tokens. int16 codes come in the order 0 2 1 3. */
INLINE void narrow_step(i16rows *dot, const uint8_t *codes, const char *q, const int i, const int n,
                        const int bits, const int wide) {
    for (int r = 0; r < 4; r++) {
        uint8x16_t w = four_of(codes + 16 * r, i, bits);
        /* pairs of rows, four columns each, as words */
        int16x8_t two = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
        int16x8_t more = vreinterpretq_s16_u16(vmovl_high_u8(w));
        for (int t = 0; t < n; t++) {
            if (!wide) {
                int32_t four;
                memcpy(&four, q + 4 * t, 4);
                int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
                dot[t].r[r] = dot4(dot[t].r[r], w, x);
                continue;
            }
            int16x4_t x = vld1_s16((const int16_t *)(const void *)(q + 8 * t));
            x = vzip1_s16(x, vext_s16(x, x, 2)); /* 0 2 1 3 to 0 1 2 3 */
            int32x4_t a = vmull_s16(vget_low_s16(two), x), b = vmull_s16(vget_high_s16(two), x);
            int32x4_t c = vmull_s16(vget_low_s16(more), x), d = vmull_s16(vget_high_s16(more), x);
            a = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
            dot[t].r[r] = vaddq_s32(dot[t].r[r], a);
        }
    }
}

/* One activation group of n tokens; `step` bytes of q to the next four columns. */
INLINE const uint8_t *narrow_dots(i16rows *dot, const uint8_t *codes, const char *q, size_t step,
                                  const size_t fours, const int n, const int bits, const int wide) {
    const int unit = bits == 4 && fours == 4 ? 4 : 8;
    for (int t = 0; t < n; t++)
        dot[t].r[0] = dot[t].r[1] = dot[t].r[2] = dot[t].r[3] = vdupq_n_s32(0);
    for (size_t f = 0; f < fours; f += (size_t)unit, q += step * (size_t)unit) {
#define STEP(i) \
    if (i < unit) narrow_step(dot, codes, q + i * step, i, n, bits, wide);
        EACH_FOUR(STEP)
#undef STEP
        codes += 8 * unit * bits;
    }
    return codes;
}

INLINE float32x4_t power_of_two_4(uint16x4_t e) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(e), 23));
}

/* 2^(e + plus - 127) of 16 bytes, which must be normal floats. */
INLINE v16 powers_of_two(uint8x16_t e, const uint16_t plus) {
    uint16x8_t lo = vaddq_u16(vmovl_u8(vget_low_u8(e)), vdupq_n_u16(plus));
    uint16x8_t hi = vaddq_u16(vmovl_high_u8(e), vdupq_n_u16(plus));
    return (v16){power_of_two_4(vget_low_u16(lo)), power_of_two_4(vget_high_u16(lo)),
                 power_of_two_4(vget_low_u16(hi)), power_of_two_4(vget_high_u16(hi))};
}

INLINE float32x4_t e4m3_4(int16x4_t b) {
    int32x4_t f = vandq_s32(vshlq_n_s32(vmovl_s16(b), 20), vdupq_n_s32((int32_t)0x87f00000));
    return vreinterpretq_f32_s32(f);
}

/* E4M3 bits at the place of a float's, as tiny numbers, are 2^-120 of the value; subnormal ones are
 * right too. */
INLINE v16 e4m3_tiny(uint8x16_t b) {
    int8x16_t s = vreinterpretq_s8_u8(b);
    int16x8_t lo = vmovl_s8(vget_low_s8(s)), hi = vmovl_high_s8(s);
    return (v16){e4m3_4(vget_low_s16(lo)), e4m3_4(vget_high_s16(lo)), e4m3_4(vget_low_s16(hi)),
                 e4m3_4(vget_high_s16(hi))};
}

/* mxd_qends of 16 rows. */
INLINE void narrow_ends(v16 *scale, v16 *bias, const uint8_t *at, const mxd_qshape *s,
                        const int bits) {
    if (bits != 4) {
        *scale = load16(at, s->scales, 0);
        *bias = load16(at, s->scales, MXD_TILE_ROWS);
    } else if (s->kind == MXD_MXFP4) {
        v16 four = powers_of_two(vld1q_u8(at), 2);
        *scale = mul16(four, set16(0.125f));
        *bias = mul16(four, set16(-1.5f));
    } else {
        v16 v = mul16(e4m3_tiny(vld1q_u8(at)), set16(0x1p120f));
        *scale = mul16(v, set16(0.5f));
        *bias = mul16(v, set16(-6));
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
    i16rows dot[GROUP_N];
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
                    v16 d = {vcvtq_f32_s32(dot[t].r[0]), vcvtq_f32_s32(dot[t].r[1]),
                             vcvtq_f32_s32(dot[t].r[2]), vcvtq_f32_s32(dot[t].r[3])};
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
        for (; t + 4 <= n; t += 4)                                                       \
            narrow_n(y + t * ldy, ldy, tile, s, p, t, 4, bits, fours, wide);             \
        if (n - t == 3) narrow_n(y + t * ldy, ldy, tile, s, p, t, 3, bits, fours, wide); \
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
        for (int r = 0; r < 4; r++) {
            uint8_t *at = to + c * 16 + 16 * r;
#define STEP(i) \
    if (i < unit) vst1q_u8(at + 64 * i, four_of(codes + 16 * r, i, bits));
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

/* The lanes from l0 of the 32 columns at `codes` against n tokens. `by` brings a tiny E4M3 to
 * element * scale, together with `more` where the scale is large. */
INLINE void fp8_lanes(v16 (*lane)[MXD_LANES], const uint8_t *codes, v16 by, v16 more,
                      const float *x, size_t ldx, size_t l0, const int n, const int wide) {
    v16 part[GROUP_N][4];
    for (int t = 0; t < n; t++)
        for (int l = 0; l < wide; l++) part[t][l] = lane[t][l0 + (size_t)l];
    for (size_t c = l0; c < 32; c += MXD_LANES)
        for (size_t l = 0; l < (size_t)wide; l++) {
            v16 w = mul16(e4m3_tiny(vld1q_u8(codes + MXD_TILE_ROWS * (c + l))), by);
            w = mul16(w, more);
            for (int t = 0; t < n; t++)
                part[t][l] = fma16(w, set16(x[(size_t)t * ldx + c + l]), part[t][l]);
        }
    for (int t = 0; t < n; t++)
        for (int l = 0; l < wide; l++) lane[t][l0 + (size_t)l] = part[t][l];
}

/* Lane sums of `cols` columns from group i on for n tokens, folded into acc [n]. */
INLINE void fp8_block(v16 *acc, const uint8_t *tile, const mxd_qshape *s, size_t i, size_t cols,
                      const float *x, size_t ldx, const int n, const int wide) {
    const uint8x16_t most = vdupq_n_u8(134); /* 2^(134 - 7) is the last power of two */
    v16 lane[GROUP_N][MXD_LANES];
    for (int t = 0; t < n; t++)
        for (int l = 0; l < MXD_LANES; l++) lane[t][l] = set16(0);
    for (const float *end = x + cols; x < end; x += 32, i++) {
        uint8x16_t e = vld1q_u8(tile + mxd_scales_at(s, i)), low = vminq_u8(e, most);
        v16 by = powers_of_two(low, 120), more = powers_of_two(vsubq_u8(e, low), 127);
        for (size_t l0 = 0; l0 < MXD_LANES; l0 += (size_t)wide)
            fp8_lanes(lane, tile + mxd_codes_at(s, i), by, more, x, ldx, l0, n, wide);
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
        for (; n >= 4; n -= 4, y += 4 * ldy, x += 4 * ldx) fp8_n(y, ldy, tile, s, x, ldx, 4, 1);
        if (n == 3) fp8_n(y, ldy, tile, s, x, ldx, 3, 1);
        if (n == 2) fp8_n(y, ldy, tile, s, x, ldx, 2, 2);
        if (n == 1) fp8_n(y, ldy, tile, s, x, ldx, 1, 4);
    } else {
        for (; n; n--, y += ldy, x += ldx) narrow_f32(y, tile, s, x);
    }
}
