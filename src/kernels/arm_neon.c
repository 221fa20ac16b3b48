/* arm_neon.c - NEON of 64-bit Arm; reached only through the tables.
 *
 * Three files, one text, a table each, by the way bytes are multiplied (arm_neon_dot.c and
 * arm_neon_i8mm.c include this one):
 *   MXD_ARM_DOT 0  ARMv8.0: widening multiplies           "neon"
 *               1  FEAT_DotProd: SDOT, signed by signed   "neon-dot"
 *               2  FEAT_I8MM: USDOT, unsigned by signed   "neon-i8mm"
 * Sixteen rows, or sixteen neighbouring values, are four registers. `n` and the like are constants
 * after inlining, so that all sums stay in registers.
 */
#include <arm_neon.h>
#define MXD_SCALAR_INCLUDED
#include "kernels/scalar.c"

#ifndef MXD_ARM_DOT
#define MXD_ARM_DOT 0
#endif
#define INLINE static inline __attribute__((always_inline))

enum { GROUP_N = 4 }; /* most tokens whose sums fit the 32 registers */

/* ---------------------------------------------------------------------------------- small steps */

typedef struct v16 {
    float32x4_t a, b, c, d;
} v16;

INLINE v16 set16(float f) {
    float32x4_t v = vdupq_n_f32(f);
    return (v16){v, v, v, v};
}

INLINE v16 add16(v16 x, v16 y) {
    return (v16){vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b), vaddq_f32(x.c, y.c),
                 vaddq_f32(x.d, y.d)};
}

INLINE v16 sub16(v16 x, v16 y) {
    return (v16){vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b), vsubq_f32(x.c, y.c),
                 vsubq_f32(x.d, y.d)};
}

INLINE v16 mul16(v16 x, v16 y) {
    return (v16){vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b), vmulq_f32(x.c, y.c),
                 vmulq_f32(x.d, y.d)};
}

/* x * y + z */
INLINE v16 fma16(v16 x, v16 y, v16 z) {
    return (v16){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c),
                 vfmaq_f32(z.d, x.d, y.d)};
}

INLINE v16 read16(const float *p) {
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}

INLINE void write16(float *p, v16 v) {
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
    vst1q_f32(p + 8, v.c);
    vst1q_f32(p + 12, v.d);
}

INLINE float32x4_t from_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
INLINE float32x4_t from_bf16(uint16x4_t h) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(h), 16));
}

/* 16 floats of type t from element `at`. */
INLINE v16 load16(const void *p, mxd_ftype t, size_t at) {
    if (t == MXD_F32) return read16((const float *)p + at);
    const uint16_t *h = (const uint16_t *)p + at;
    uint16x4_t a = vld1_u16(h), b = vld1_u16(h + 4), c = vld1_u16(h + 8), d = vld1_u16(h + 12);
    if (t == MXD_F16) return (v16){from_f16(a), from_f16(b), from_f16(c), from_f16(d)};
    return (v16){from_bf16(a), from_bf16(b), from_bf16(c), from_bf16(d)};
}

INLINE v16 from_u8(uint8x16_t v) {
    uint16x8_t lo = vmovl_u8(vget_low_u8(v)), hi = vmovl_high_u8(v);
    return (v16){vcvtq_f32_u32(vmovl_u16(vget_low_u16(lo))), vcvtq_f32_u32(vmovl_high_u16(lo)),
                 vcvtq_f32_u32(vmovl_u16(vget_low_u16(hi))), vcvtq_f32_u32(vmovl_high_u16(hi))};
}

INLINE float fold16(v16 v) {
    float lane[MXD_LANES];
    write16(lane, v);
    return mxd_fold(lane);
}

/* mxd_fold of 16 rows at once. */
INLINE v16 fold_lanes(v16 *lane) {
    for (int half = MXD_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = add16(lane[l], lane[l + half]);
    return lane[0];
}

INLINE float32x4_t fma4(float32x4_t x, float32x4_t y, float z) {
    return vfmaq_f32(vdupq_n_f32(z), x, y);
}

/* mxd_expf, lane by lane. FMIN and FMAX let a NaN in x pass. */
INLINE float32x4_t exp4(float32x4_t x) {
    float32x4_t hi = vdupq_n_f32(MXD_EXP_HI), lo = vdupq_n_f32(MXD_EXP_LO);
    float32x4_t y = vmaxq_f32(lo, vminq_f32(hi, x));
    float32x4_t t = fma4(y, vdupq_n_f32(MXD_LOG2E), MXD_EXP_ROLL);
    float32x4_t n = vsubq_f32(t, vdupq_n_f32(MXD_EXP_ROLL));
    float32x4_t r = vfmaq_f32(y, n, vdupq_n_f32(-MXD_LN2_HI));
    r = vfmaq_f32(r, n, vdupq_n_f32(-MXD_LN2_LO));
    float32x4_t p = fma4(vdupq_n_f32(1.9875691500e-4f), r, 1.3981999507e-3f);
    p = fma4(p, r, 8.3334519073e-3f);
    p = fma4(p, r, 4.1665795894e-2f);
    p = fma4(p, r, 1.6666665459e-1f);
    p = fma4(p, r, 5.0000001201e-1f);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    int32x4_t e = vaddq_s32(vreinterpretq_s32_f32(t), vdupq_n_s32(127 - 0x4b400000));
    p = vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(e, 23)));
    p = vbslq_f32(vcgtq_f32(x, hi), vdupq_n_f32(INFINITY), p);
    return vbslq_f32(vcltq_f32(x, lo), vdupq_n_f32(0), p);
}

/* The tree of blocks, for 16 rows of n tokens. */
typedef struct vtree {
    v16 sum[MXD_TREE_DEPTH][GROUP_N];
    int depth;
    size_t n_blocks;
} vtree;

INLINE void vtree_push(vtree *v, const v16 *acc, const int n) {
    int merges = mxd_tree_merges(v->n_blocks++), depth = v->depth - merges;
    for (int t = 0; t < n; t++) {
        v16 sum = acc[t];
        for (int m = v->depth - 1; m >= depth; m--) sum = add16(v->sum[m][t], sum);
        v->sum[depth][t] = sum;
    }
    v->depth = depth + 1;
}

INLINE void vtree_store(const vtree *v, float *y, size_t ldy, const int n) {
    for (int t = 0; t < n; t++) {
        v16 sum = v->depth ? v->sum[v->depth - 1][t] : set16(0);
        for (int m = v->depth - 2; m >= 0; m--) sum = add16(v->sum[m][t], sum);
        write16(y + (size_t)t * ldy, sum);
    }
}

/* ---------------------------------------------------------------------------------- conversions */

static void v_f32_from_f16(float *y, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, from_f16(vld1_u16(x + i)));
    f32_from_f16(y + i, x + i, n - i);
}

static void v_f16_from_f32(uint16_t *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    f16_from_f32(y + i, x + i, n - i);
}

/* --------------------------------------------------------------------- quantising of activations
 */

/* The largest magnitude of x [g], as bits: magnitudes order as integers do. */
INLINE uint32_t largest(const float *x, size_t g) {
    uint32x4_t max = vdupq_n_u32(0);
    for (size_t i = 0; i < g; i += 4)
        max = vmaxq_u32(max, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
    return vmaxvq_u32(max);
}

/* Four codes side by side. */
INLINE void put_codes(void *at, int32x4_t codes, const int limit) {
    int16x4_t c = vmovn_s32(codes);
    if (limit == 127) {
        int8x8_t b = vmovn_s16(vcombine_s16(c, c));
        memcpy(at, &b, 4);
    } else {
        c = vzip1_s16(c, vext_s16(c, c, 2)); /* 0 2 1 3 */
        memcpy(at, &c, 8);
    }
}

/* x * 0 gives the code 0, a NaN too: the conversion makes it 0. */
INLINE void v_quantise(const mxd_panel *p, const float *x, size_t ldx, const int limit) {
    size_t n = (size_t)p->n, g = (size_t)p->g, size = limit == 127 ? 1 : 2;
    int32x4_t most = vdupq_n_s32(limit), least = vdupq_n_s32(-limit);
    for (size_t t = 0; t < n; t++)
        for (size_t j = 0; j < p->k / g; j++) {
            const float *v = x + t * ldx + j * g;
            uint32_t bits = largest(v, g);
            float a = mxd_bits_float(bits);
            int finite = bits < 0x7f800000, zero = !finite || a < TINY;
            float s = finite ? zero ? 0 : a / (float)limit : NAN;
            float32x4_t inv = vdupq_n_f32(zero ? 0 : (float)limit / a);
            int32x4_t sum = vdupq_n_s32(0);
            for (size_t i = 0; i < g; i += 4) {
                int32x4_t q = vcvtnq_s32_f32(vmulq_f32(vld1q_f32(v + i), inv));
                q = vmaxq_s32(least, vminq_s32(most, q));
                sum = vaddq_s32(sum, q);
                put_codes((char *)p->q + ((j * g + i) * n + 4 * t) * size, q, limit);
            }
            p->s[j * n + t] = s;
            p->b[j * n + t] = s * (float)vaddvq_s32(sum);
        }
}

static void v_quantise_i8(const mxd_panel *p, const float *x, size_t ldx) {
    v_quantise(p, x, ldx, 127);
}

static void v_quantise_i16(const mxd_panel *p, const float *x, size_t ldx) {
    v_quantise(p, x, ldx, 32767);
}

/* ----------------------------------------------------------------------------- quantised products
 */

typedef struct i16rows {
    int32x4_t r[4];
} i16rows; /* an integer of each of 16 rows */

/* 8-bit codes for an instruction that takes signed bytes only: 128 less, and -128 times the sum of
 * the token's codes, which is `lift`, is taken away at the end. */
INLINE int is_lifted(const int bits) { return MXD_ARM_DOT < 2 && bits == 8; }

/* acc[r] += the four bytes of row r times the four of q. w is signed but for USDOT. */
INLINE int32x4_t dot4(int32x4_t acc, uint8x16_t w, int8x16_t q) {
#if MXD_ARM_DOT == 2
    return vusdotq_s32(acc, w, q);
#elif MXD_ARM_DOT == 1
    return vdotq_s32(acc, vreinterpretq_s8_u8(w), q);
#else /* two products: at most 2 * 128 * 127 < 2^15 */
    int8x16_t v = vreinterpretq_s8_u8(w);
    int16x8_t lo = vmull_s8(vget_low_s8(v), vget_low_s8(q)), hi = vmull_high_s8(v, q);
    return vpadalq_s16(acc, vpaddq_s16(lo, hi));
#endif
}

/* 16 bytes of the i-th four columns. */
INLINE uint8x16_t codes_of(uint8x16_t w, size_t i, const int bits) {
    if (bits == 8) return w;
    return i % 2 ? vshrq_n_u8(w, 4) : vandq_u8(w, vdupq_n_u8(15));
}

/* One activation group: `fours` times four columns of 16 rows against n tokens. q: the first of
 * them; `step` bytes to the next four columns. */
INLINE const uint8_t *dots_i8(i16rows *dot, const uint8_t *codes, const char *q, size_t step,
                              size_t fours, const int n, const int bits) {
    const uint8x16_t top = vdupq_n_u8(128);
    int32x4_t lift[GROUP_N];
    for (int t = 0; t < n; t++)
        lift[t] = dot[t].r[0] = dot[t].r[1] = dot[t].r[2] = dot[t].r[3] = vdupq_n_s32(0);
    for (size_t i = 0; i < fours; i++, q += step) {
        uint8x16_t w[4];
        for (int r = 0; r < 4; r++) {
            w[r] = codes_of(vld1q_u8(codes + 16 * r), i, bits);
            if (is_lifted(bits)) w[r] = veorq_u8(w[r], top);
        }
        if (bits == 8 || i % 2) codes += 64;
        for (int t = 0; t < n; t++) {
            int32_t four;
            memcpy(&four, q + 4 * t, 4);
            int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int r = 0; r < 4; r++) dot[t].r[r] = dot4(dot[t].r[r], w[r], x);
            if (is_lifted(bits)) lift[t] = dot4(lift[t], top, x);
        }
    }
    for (int t = 0; t < n && is_lifted(bits); t++)
        for (int r = 0; r < 4; r++) dot[t].r[r] = vsubq_s32(dot[t].r[r], lift[t]);
    return codes;
}

/* The same with int16 codes in the order 0 2 1 3. */
INLINE const uint8_t *dots_i16(i16rows *dot, const uint8_t *codes, const char *q, size_t step,
                               size_t fours, const int n, const int bits) {
    for (int t = 0; t < n; t++)
        dot[t].r[0] = dot[t].r[1] = dot[t].r[2] = dot[t].r[3] = vdupq_n_s32(0);
    for (size_t i = 0; i < fours; i++, q += step) {
        uint8x16x4_t columns = vld4q_u8(codes);
        if (bits == 8 || i % 2) codes += 64;
        for (int c = 0; c < 4; c++) {
            uint8x16_t w = codes_of(columns.val[c], i, bits);
            int16x8_t lo = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(w)));
            int16x8_t hi = vreinterpretq_s16_u16(vmovl_high_u8(w));
            for (int t = 0; t < n; t++) {
                int16_t x;
                memcpy(&x, q + 8 * t + 2 * (c % 2 * 2 + c / 2), 2);
                int32x4_t *r = dot[t].r;
                r[0] = vmlal_n_s16(r[0], vget_low_s16(lo), x);
                r[1] = vmlal_high_n_s16(r[1], lo, x);
                r[2] = vmlal_n_s16(r[2], vget_low_s16(hi), x);
                r[3] = vmlal_high_n_s16(r[3], hi, x);
            }
        }
    }
    return codes;
}

/* Tokens [t0, t0 + n) of the panel. */
INLINE void qmul_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                   const mxd_panel *p, size_t t0, const int n, const int bits, const int wide) {
    const size_t step = (size_t)p->n * (wide ? 8 : 4), fours = (size_t)p->g / 4;
    const char *q = (const char *)p->q + t0 * (wide ? 8 : 4);
    const float *xs = p->s + t0, *xb = p->b + t0;
    const size_t in_block = s->block_k / (size_t)s->group, f = mxd_ftype_bytes(s->scales);
    vtree sums;
    v16 acc[GROUP_N];
    i16rows dot[GROUP_N];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / (size_t)s->group; left;) {
        size_t groups = left < in_block ? left : in_block;
        left -= groups;
        for (int t = 0; t < n; t++) acc[t] = set16(0);
        for (; groups; groups--) {
            const uint8_t *ends = tile + (size_t)s->group * (size_t)bits * 2;
            v16 scale = load16(ends, s->scales, 0), bias = load16(ends, s->scales, MXD_TILE_ROWS);
            for (int j = 0; j < s->group / p->g; j++) {
                tile = wide ? dots_i16(dot, tile, q, step, fours, n, bits)
                            : dots_i8(dot, tile, q, step, fours, n, bits);
                for (int t = 0; t < n; t++) {
                    v16 by = mul16(set16(xs[t]), scale);
                    v16 d = {vcvtq_f32_s32(dot[t].r[0]), vcvtq_f32_s32(dot[t].r[1]),
                             vcvtq_f32_s32(dot[t].r[2]), vcvtq_f32_s32(dot[t].r[3])};
                    acc[t] = fma16(bias, set16(xb[t]), fma16(by, d, acc[t]));
                }
                q += step * fours;
                xs += p->n;
                xb += p->n;
            }
            tile = ends + 2 * MXD_TILE_ROWS * f;
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define QMUL(name, bits, wide)                                                             \
    static void name(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,       \
                     const mxd_panel *p) {                                                 \
        size_t t = 0, n = (size_t)p->n;                                                    \
        for (; t + 4 <= n; t += 4) qmul_n(y + t * ldy, ldy, tile, s, p, t, 4, bits, wide); \
        if (n - t == 3) qmul_n(y + t * ldy, ldy, tile, s, p, t, 3, bits, wide);            \
        if (n - t == 2) qmul_n(y + t * ldy, ldy, tile, s, p, t, 2, bits, wide);            \
        if (n - t == 1) qmul_n(y + t * ldy, ldy, tile, s, p, t, 1, bits, wide);            \
    }
QMUL(qmul8_i8, 8, 0)
QMUL(qmul4_i8, 4, 0)
QMUL(qmul8_i16, 8, 1)
QMUL(qmul4_i16, 4, 1)

static void v_qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                      const mxd_panel *p) {
    (s->bits == 8 ? qmul8_i8 : qmul4_i8)(y, ldy, tile, s, p);
}

static void v_qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const mxd_panel *p) {
    (s->bits == 8 ? qmul8_i16 : qmul4_i16)(y, ldy, tile, s, p);
}

/* Lane sums of one weight group against one token, folded; four lanes at a time. */
INLINE v16 group_f32(float *sum, const uint8_t *codes, size_t group, const float *x,
                     const int bits) {
    v16 lane[MXD_LANES], all = set16(0);
    for (size_t l0 = 0; l0 < MXD_LANES; l0 += 4) {
        v16 part[4] = {set16(0), set16(0), set16(0), set16(0)};
        for (size_t c = l0; c < group; c += MXD_LANES) {
            uint8x16x4_t w = vld4q_u8(codes + (bits == 8 ? c / 4 * 64 : c / 8 * 64));
            for (size_t l = 0; l < 4; l++)
                part[l] = fma16(from_u8(codes_of(w.val[l], c / 4, bits)), set16(x[c + l]), part[l]);
        }
        for (size_t l = 0; l < 4; l++) lane[l0 + l] = part[l];
    }
    for (size_t c = 0; c < group; c += MXD_LANES) all = add16(read16(x + c), all);
    *sum = fold16(all);
    return fold_lanes(lane);
}

INLINE void qmul_f32_one_v(float *y, const uint8_t *tile, const mxd_qshape *s, const float *x,
                           const int bits) {
    const size_t group = (size_t)s->group, in_block = s->block_k / group;
    vtree sums;
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / group; left;) {
        size_t groups = left < in_block ? left : in_block;
        v16 acc = set16(0);
        left -= groups;
        for (; groups; groups--, x += group, tile += mxd_qgroup_bytes(s)) {
            const uint8_t *ends = tile + group * (size_t)bits * 2;
            float sum;
            v16 dot = group_f32(&sum, tile, group, x, bits);
            acc = fma16(load16(ends, s->scales, 0), dot, acc);
            acc = fma16(load16(ends, s->scales, MXD_TILE_ROWS), set16(sum), acc);
        }
        vtree_push(&sums, &acc, 1);
    }
    vtree_store(&sums, y, 0, 1);
}

static void v_qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const float *x, size_t ldx, int n) {
    for (; n; n--, y += ldy, x += ldx)
        if (s->bits == 8)
            qmul_f32_one_v(y, tile, s, x, 8);
        else
            qmul_f32_one_v(y, tile, s, x, 4);
}

#include "kernels/arm_neon_narrow.h"

/* --------------------------------------------------------------------------------- plain products
 */

/* Lane sums of columns [0, cols) for n tokens, `wide` lanes at a time, folded into acc [n]. */
INLINE void plain_block(v16 *acc, const char *tile, mxd_ftype type, size_t cols, const float *x,
                        size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2;
    v16 lane[GROUP_N][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        v16 part[GROUP_N][4];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = set16(0);
        for (size_t c = (size_t)l0; c < cols; c += MXD_LANES)
            for (int l = 0; l < wide; l++) {
                v16 w = load16(tile + (c + (size_t)l) * MXD_TILE_ROWS * f, type, 0);
                for (int t = 0; t < n; t++)
                    part[t][l] = fma16(w, set16(x[(size_t)t * ldx + c + (size_t)l]), part[t][l]);
            }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) { acc[t] = fold_lanes(lane[t]); }
}

INLINE void plain_n(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                    size_t block_k, const float *x, size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2, padded = (k + 15) / 16 * 16;
    vtree sums;
    v16 acc[GROUP_N];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t i = 0; i < padded; i += block_k) {
        size_t cols = padded - i < block_k ? padded - i : block_k;
        plain_block(acc, (const char *)tile + i * MXD_TILE_ROWS * f, type, cols, x + i, ldx, n,
                    wide);
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define PLAIN(name, type)                                                              \
    static void name(float *y, size_t ldy, const void *tile, size_t k, size_t block_k, \
                     const float *x, size_t ldx, int n) {                              \
        for (; n >= 4; n -= 4, y += 4 * ldy, x += 4 * ldx)                             \
            plain_n(y, ldy, tile, type, k, block_k, x, ldx, 4, 1);                     \
        if (n == 3) plain_n(y, ldy, tile, type, k, block_k, x, ldx, 3, 2);             \
        if (n == 2) plain_n(y, ldy, tile, type, k, block_k, x, ldx, 2, 2);             \
        if (n == 1) plain_n(y, ldy, tile, type, k, block_k, x, ldx, 1, 4);             \
    }
PLAIN(plain_f32, MXD_F32)
PLAIN(plain_f16, MXD_F16)
PLAIN(plain_bf16, MXD_BF16)

static void v_plain_mul(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                        size_t block_k, const float *x, size_t ldx, int n) {
    (type == MXD_F32   ? plain_f32
     : type == MXD_F16 ? plain_f16
                       : plain_bf16)(y, ldy, tile, k, block_k, x, ldx, n);
}

/* ----------------------------------------------------------------------------------- row by row */

static void v_rms_norm(float *y, const float *x, const float *w, size_t n, float eps) {
    float lane[MXD_LANES];
    v16 acc = set16(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) acc = fma16(read16(x + i), read16(x + i), acc);
    write16(lane, acc);
    for (size_t j = 0; i < n; i++, j++) lane[j] = fmaf(x[i], x[i], lane[j]);
    float r = 1.0f / sqrtf(mxd_fold(lane) / (float)n + eps);
    for (i = 0; i + 16 <= n; i += 16)
        write16(y + i, mul16(mul16(read16(x + i), set16(r)), read16(w + i)));
    for (; i < n; i++) y[i] = x[i] * r * w[i];
}

static void v_silu_mul(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t g = vld1q_f32(gate + i), e = exp4(vnegq_f32(g));
        g = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0f), e));
        vst1q_f32(y + i, vmulq_f32(g, vld1q_f32(up + i)));
    }
    silu_mul(y + i, gate + i, up + i, n - i);
}

/* ------------------------------------------------------------------------------------- attention
 */

/* Times scale, in place; returns the maximum. A NaN never becomes it. */
static float scale_and_max(float *x, size_t n, float scale) {
    float32x4_t top = vdupq_n_f32(-INFINITY);
    float max = -INFINITY, lane[4];
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vmulq_f32(vld1q_f32(x + i), vdupq_n_f32(scale));
        vst1q_f32(x + i, v);
        top = vbslq_f32(vcgtq_f32(v, top), v, top); /* FMAX would keep the NaN */
    }
    vst1q_f32(lane, top);
    for (int j = 0; j < 4; j++) max = lane[j] > max ? lane[j] : max;
    for (; i < n; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float v_softmax(float *x, size_t n, float scale, size_t first) {
    float max = scale_and_max(x, n, scale), total = 0, lane[MXD_LANES] = {0};
    for (size_t i = 0; i < n;) {
        size_t at = (first + i) % 16;
        if (at || n - i < 16) { /* up to a multiple of 16, and the last few */
            x[i] = mxd_expf(x[i] - max);
            lane[at] += x[i++];
        } else {
            v16 v = add16(read16(x + i), set16(-max));
            v = (v16){exp4(v.a), exp4(v.b), exp4(v.c), exp4(v.d)};
            write16(x + i, v);
            write16(lane, add16(read16(lane), v));
            i += 16;
        }
        if ((first + i) % MXD_ATTN_BLOCK && i < n) continue;
        total += mxd_fold(lane);
        memset(lane, 0, sizeof lane);
    }
    return total;
}

/* `wide` times 16 elements of d for n tokens, over all positions. */
INLINE void mix_n(float *acc, size_t ldacc, const float *p, size_t ldp, const char *v,
                  mxd_ftype type, size_t n_pos, size_t d, const int n, const int wide) {
    v16 sum[GROUP_N][4];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++) sum[t][i] = read16(acc + (size_t)t * ldacc + 16 * i);
    for (size_t pos = 0; pos < n_pos; pos++, v += d * (type == MXD_F32 ? 4 : 2))
        for (int i = 0; i < wide; i++) {
            v16 w = load16(v, type, 16 * (size_t)i);
            for (int t = 0; t < n; t++)
                sum[t][i] = fma16(set16(p[(size_t)t * ldp + pos]), w, sum[t][i]);
        }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++) write16(acc + (size_t)t * ldacc + 16 * i, sum[t][i]);
}

/* All of d, `wide` times 16 at a time as long as they fit. */
INLINE void mix_row(float *acc, size_t ldacc, const float *p, size_t ldp, const char *v,
                    mxd_ftype type, size_t n_pos, size_t d, const int n, const int wide) {
    size_t i = 0, f = type == MXD_F32 ? 4 : 2;
    for (; i + 16 * (size_t)wide <= d; i += 16 * (size_t)wide)
        mix_n(acc + i, ldacc, p, ldp, v + i * f, type, n_pos, d, n, wide);
    for (; i < d; i += 16) mix_n(acc + i, ldacc, p, ldp, v + i * f, type, n_pos, d, n, 1);
}

#define MIX(name, type)                                                                   \
    static void name(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v, \
                     size_t n_pos, size_t d, int n) {                                     \
        for (; n >= 4; n -= 4, acc += 4 * ldacc, p += 4 * ldp)                            \
            mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 4, 1);                         \
        if (n == 3) mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 3, 2);                 \
        if (n == 2) mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 2, 2);                 \
        if (n == 1) mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 1, 4);                 \
    }
MIX(mix_f32, MXD_F32)
MIX(mix_f16, MXD_F16)
MIX(mix_bf16, MXD_BF16)

static void v_attn_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                       mxd_ftype type, size_t n_pos, size_t d, int n) {
    (type == MXD_F32   ? mix_f32
     : type == MXD_F16 ? mix_f16
                       : mix_bf16)(acc, ldacc, p, ldp, v, n_pos, d, n);
}

#include "kernels/arm_neon_q8.h"

/* ---------------------------------------------------------------------------------- delta rule */

static void v_conv(float *y, const float *const *x, const float *w, size_t ldw, size_t taps,
                   size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 sum = set16(0);
        for (size_t j = 0; j < taps; j++)
            sum = fma16(read16(w + j * ldw + i), read16(x[j] + i), sum);
        write16(y + i, sum);
    }
    for (; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < taps; j++) sum = fmaf(w[j * ldw + i], x[j][i], sum);
        y[i] = sum;
    }
}

INLINE v16 fold4(const v16 *c) { return add16(add16(c[0], c[2]), add16(c[1], c[3])); }

static void delta_tile(float *y, float *s, const float *v, const float *k, const float *q,
                       size_t d_k, float decay, float beta) {
    v16 chain[4] = {set16(0), set16(0), set16(0), set16(0)}, g = set16(decay);
    for (size_t i = 0; i < d_k; i += 4)
        for (size_t c = 0; c < 4; c++)
            chain[c] = fma16(read16(s + (i + c) * 16), set16(k[i + c]), chain[c]);
    v16 e = mul16(g, fold4(chain));
    e = mul16(set16(beta), sub16(read16(v), e));
    for (int c = 0; c < 4; c++) chain[c] = set16(0);
    for (size_t i = 0; i < d_k; i += 4)
        for (size_t c = 0; c < 4; c++) {
            float *p = s + (i + c) * 16;
            v16 at = fma16(e, set16(k[i + c]), mul16(g, read16(p)));
            write16(p, at);
            chain[c] = fma16(at, set16(q[i + c]), chain[c]);
        }
    write16(y, fold4(chain));
}

static void v_delta_step(float *y, float *s, const float *v, const float *k, const float *q,
                         size_t d_k, size_t n, float decay, float beta) {
    for (size_t t = 0; t < n; t++)
        delta_tile(y + 16 * t, s + t * d_k * 16, v + 16 * t, k, q, d_k, decay, beta);
}

#if MXD_ARM_DOT == 2
const mxd_kernels mxd_kernels_neon_i8mm = {
    .name = "neon-i8mm",
#elif MXD_ARM_DOT == 1
const mxd_kernels mxd_kernels_neon_dot = {
    .name = "neon-dot",
#else
const mxd_kernels mxd_kernels_neon = {
    .name = "neon",
#endif
    .f32_from_f16 = v_f32_from_f16,
    .f32_from_bf16 = f32_from_bf16,
    .f16_from_f32 = v_f16_from_f32,
    .quantise_i8 = v_quantise_i8,
    .quantise_i16 = v_quantise_i16,
    .qmul_i8 = any_qmul_i8,
    .qmul_i16 = any_qmul_i16,
    .qmul_f32 = any_qmul_f32,
    .plain_mul = v_plain_mul,
    .rms_norm = v_rms_norm,
    .silu_mul = v_silu_mul,
    .gelu_mul = gelu_mul,
    .sigmoid_mul = sigmoid_mul,
    .swiglu_oai = swiglu_oai,
    .softcap = softcap,
    .add = add,
    .rope = rope,
    .softmax = v_softmax,
    .attn_mix = v_attn_mix,
    .q8_from_f32 = q8_from_f32,
    .q8_mul = v_q8_mul,
    .q8_mix = v_q8_mix,
    .conv = v_conv,
    .delta_gates = delta_gates,
    .delta_step = v_delta_step,
};
