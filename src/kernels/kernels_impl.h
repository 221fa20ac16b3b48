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

/* The unsigned code of row r, column c (counted from the group's start) in a group's codes. */
static inline int mxd_code(const uint8_t *codes, int bits, size_t c, size_t r) {
    if (bits == 8) return codes[(c / 4 * MXD_TILE_ROWS + r) * 4 + c % 4];
    uint8_t two = codes[(c / 8 * MXD_TILE_ROWS + r) * 4 + c % 4];
    return c % 8 < 4 ? two & 15 : two >> 4;
}

/* How often block number i (from 0) merges with an equal neighbour: the carries of a counter. */
static inline int mxd_tree_merges(size_t i) { return __builtin_ctzll(~(unsigned long long)i); }

#endif
