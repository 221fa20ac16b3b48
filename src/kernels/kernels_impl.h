/* kernels_impl.h - private to kernels/: the tables, and the steps that all of them share. */
#ifndef MXD_KERNELS_IMPL_H
#define MXD_KERNELS_IMPL_H

#include "kernels/kernels.h"
#include "kernels/math.h"

extern const mxd_kernels mxd_kernels_scalar;
#if defined(__x86_64__)
extern const mxd_kernels mxd_kernels_avx2;   /* x86_avx2.c */
extern const mxd_kernels mxd_kernels_avx512; /* x86_avx512.c */
#elif defined(__aarch64__)
extern const mxd_kernels mxd_kernels_neon;      /* arm_neon.c */
extern const mxd_kernels mxd_kernels_neon_dot;  /* arm_neon_dot.c */
extern const mxd_kernels mxd_kernels_neon_i8mm; /* arm_neon_i8mm.c */
#endif

/* The end of every lane sum: lane [MXD_LANES] becomes one number, halves added to halves. */
static inline float mxd_fold(float *lane) {
    for (size_t half = MXD_LANES / 2; half; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

/* One float of type t at index i; files promise no alignment, so tiles are read bytewise. */
static inline float mxd_load_float(const void *p, mxd_ftype t, size_t i) {
    if (t == MXD_F32) {
        float f;
        memcpy(&f, (const char *)p + 4 * i, sizeof f);
        return f;
    }
    uint16_t h;
    memcpy(&h, (const char *)p + 2 * i, sizeof h);
    return t == MXD_F16 ? mxd_f16_to_f32(h) : mxd_bf16_to_f32(h);
}

/* ---- inside quantised tiles ---- */

/* Where in a tile the codes of group i start. */
static inline size_t mxd_codes_at(const mxd_qshape *s, size_t i) {
    if (s->kind == MXD_AFFINE) return i * mxd_qgroup_bytes(s);
    size_t line = MXD_SCALE_RUN * MXD_TILE_ROWS;
    return (i / MXD_SCALE_RUN + 1) * line + i * mxd_qcode_bytes(s);
}

/* Where its 16 scales start; affine biases lie behind them. */
static inline size_t mxd_scales_at(const mxd_qshape *s, size_t i) {
    if (s->kind == MXD_AFFINE) return mxd_codes_at(s, i) + mxd_qcode_bytes(s);
    size_t run = MXD_SCALE_RUN * (MXD_TILE_ROWS + mxd_qcode_bytes(s));
    return i / MXD_SCALE_RUN * run + i % MXD_SCALE_RUN * MXD_TILE_ROWS;
}

/* Bits of a code in its low plane; what is left is in the high one. */
static inline int mxd_low_bits(int bits) { return bits < 4 ? 2 : bits < 8 ? 4 : 8; }

/* 2 * value + 12 of sign and E2M1 magnitude: 0 .5 1 1.5 2 3 4 6 */
static const uint8_t mxd_e2m1_codes[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                           12, 11, 10, 9,  8,  6,  4,  0};

/* Column c of row r in a plane of `bits` bits. */
static inline int mxd_plane(const uint8_t *plane, int bits, size_t c, size_t r) {
    size_t per = 8 / (size_t)bits; /* columns of a byte, four apart */
    uint8_t byte = plane[(c / (4 * per) * MXD_TILE_ROWS + r) * 4 + c % 4];
    return byte >> c / 4 % per * (size_t)bits & ((1 << bits) - 1);
}

/* The unsigned code of row r, column c of a group; not of MXD_MXFP8. */
static inline int mxd_code(const uint8_t *codes, const mxd_qshape *s, size_t c, size_t r) {
    int low = mxd_low_bits(s->bits), high = s->bits - low;
    if (high) codes += c / 32 * 64 * (size_t)s->bits, c %= 32;
    int code = mxd_plane(codes, low, c, r);
    if (high) code |= mxd_plane(codes + 64 * low, high, c, r) << low;
    return s->kind == MXD_AFFINE ? code : mxd_e2m1_codes[code];
}

/* Scale and bias of row r; `scales` is of its group. Not of MXD_MXFP8. */
static inline void mxd_qends(const uint8_t *scales, const mxd_qshape *s, size_t r, float *scale,
                             float *bias) {
    if (s->kind == MXD_AFFINE) {
        *scale = mxd_load_float(scales, s->scales, r);
        *bias = mxd_load_float(scales, s->scales, MXD_TILE_ROWS + r);
        return;
    }
    float v = s->kind == MXD_MXFP4 ? mxd_e8m0_to_f32(scales[r]) : mxd_e4m3_to_f32(scales[r]);
    *scale = v / 2; /* of element = (code - 12) / 2 * v */
    *bias = -6 * v;
}

/* Row r, column c of a group of MXD_MXFP8: exact. */
static inline float mxd_fp8_value(const uint8_t *codes, const uint8_t *scales, size_t c, size_t r) {
    return mxd_e4m3_to_f32(codes[c * MXD_TILE_ROWS + r]) * mxd_e8m0_to_f32(scales[r]);
}

/* How often block number i (from 0) merges with an equal neighbour: the carries of a counter. */
static inline int mxd_tree_merges(size_t i) { return __builtin_ctzll(~(unsigned long long)i); }

#endif
