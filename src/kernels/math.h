/* math.h - our own conversions and elementary functions: the same bits on every machine.
 *
 * Scalar, branch-free where a vector form mirrors them (vec_*.h), every rounding written out.
 * Any thread; no errors: NaN in, NaN out.
 * Source: exp, log and tanh follow S. Moshier's Cephes (expf.c, logf.c, tanhf.c); sine and cosine
 * use the Taylor polynomials on [-pi/4, pi/4] in double precision after a two-part reduction by
 * pi/2.
 */
#ifndef MXD_KERNELS_MATH_H
#define MXD_KERNELS_MATH_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t mxd_float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float mxd_bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float mxd_bf16_to_f32(uint16_t h) { return mxd_bits_float((uint32_t)h << 16); }

/* Signalling NaNs become quiet, as the hardware's conversion does. */
static inline float mxd_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = (h >> 10) & 31, frac = h & 0x3ff;
    if (exp == 31) return mxd_bits_float(sign | 0x7f800000 | (frac ? 0x400000 | frac << 13 : 0));
    if (exp) return mxd_bits_float(sign | (exp + 112) << 23 | frac << 13);
    float f = (float)frac * 0x1p-24f; /* subnormal: exact */
    return sign ? -f : f;
}

/* Rounds to nearest even; too large becomes infinity; NaNs become quiet and keep their top bits. */
static inline uint16_t mxd_f32_to_f16(float f) {
    uint32_t u = mxd_float_bits(f), sign = (u >> 16) & 0x8000, abs = u & 0x7fffffff;
    if (abs > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((abs >> 13) & 0x3ff));
    if (abs >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above */
    if (abs < 0x38800000) { /* below 2^-14: adding 0.5 leaves the subnormal in the low bits */
        uint32_t r = mxd_float_bits(mxd_bits_float(abs) + 0.5f) - 0x3f000000;
        return (uint16_t)(sign | r);
    }
    uint32_t odd = (abs >> 13) & 1;
    return (uint16_t)(sign | ((abs - (112u << 23) + 0xfff + odd) >> 13));
}

/* To nearest even; a NaN stays one. */
static inline uint16_t mxd_f32_to_bf16(float f) {
    uint32_t u = mxd_float_bits(f);
    if (f != f) return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* The small floats of the microscaling formats. E4M3 as MLX reads it: 0x7f is 480, not a NaN. */
static inline float mxd_e4m3_to_f32(uint8_t x) {
    return mxd_f16_to_f32((uint16_t)((x & 0x80) << 8 | (x & 0x7f) << 7)) * 256;
}
/* 2^(x - 127); 255 is infinite. */
static inline float mxd_e8m0_to_f32(uint8_t x) {
    return mxd_bits_float(x ? (uint32_t)x << 23 : 0x00400000);
}

/* exp(x) within 1 ulp: 0 below -87.33, infinity above 88.37 (so that 2^n is always normal). */
#define MXD_EXP_LO   -87.3365447505531f
#define MXD_EXP_HI   88.3762626647949f
#define MXD_EXP_ROLL 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define MXD_LOG2E    1.44269504088896341f
#define MXD_LN2_HI   0.693359375f
#define MXD_LN2_LO   -2.12194440e-4f

static inline float mxd_expf(float x) {
    float y = MXD_EXP_HI < x ? MXD_EXP_HI : x; /* a NaN passes both comparisons */
    y = MXD_EXP_LO > y ? MXD_EXP_LO : y;
    float t = fmaf(y, MXD_LOG2E, MXD_EXP_ROLL), n = t - MXD_EXP_ROLL;
    float r = fmaf(n, -MXD_LN2_HI, y);
    r = fmaf(n, -MXD_LN2_LO, r);
    float p = fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    p *= mxd_bits_float((mxd_float_bits(t) - 0x4b400000u + 127u) << 23);
    p = x > MXD_EXP_HI ? INFINITY : p;
    return x < MXD_EXP_LO ? 0.0f : p;
}

/* tanh(x) within 2 ulp: a polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel. */
static inline float mxd_tanhf(float x) {
    float a = fabsf(x), z = x * x;
    float p = fmaf(-5.70498872745e-3f, z, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    float near = fmaf(p * z, x, x);
    float far = copysignf(1.0f - 2.0f / (mxd_expf(2.0f * a) + 1.0f), x);
    return a < 0.625f ? near : far;
}

/* Natural logarithm within 1 ulp for normal x > 0; -infinity for 0 and subnormals; NaN below 0. */
static inline float mxd_logf(float x) {
    if (!(x < INFINITY)) return x; /* infinity, NaN */
    if (x < 0x1p-126f) return x < 0 ? NAN : -INFINITY;
    uint32_t u = mxd_float_bits(x);
    float e = (float)((int)(u >> 23) - 126), m = mxd_bits_float((u & 0x7fffff) | 0x3f000000);
    if (m < 0.70710678118654752440f) {
        e -= 1.0f;
        m += m;
    }
    float f = m - 1.0f, z = f * f;
    float p = fmaf(7.0376836292e-2f, f, -1.1514610310e-1f);
    p = fmaf(p, f, 1.1676998740e-1f);
    p = fmaf(p, f, -1.2420140846e-1f);
    p = fmaf(p, f, 1.4249322787e-1f);
    p = fmaf(p, f, -1.6668057665e-1f);
    p = fmaf(p, f, 2.0000714765e-1f);
    p = fmaf(p, f, -2.4999993993e-1f);
    p = fmaf(p, f, 3.3333331174e-1f);
    float y = f * z * p;
    y = fmaf(e, MXD_LN2_LO, y);
    y = fmaf(-0.5f, z, y);
    return fmaf(e, MXD_LN2_HI, f + y);
}

/* Sine and cosine of an angle in radians, rounded from double; |x| up to 2^30. */
static inline void mxd_sincosf(float x, float *sine, float *cosine) {
    double v = (double)x;
    double n = rint(v * 0.63661977236758134308);
    double r = fma(n, -1.57079632679489655800, v);
    r = fma(n, -6.12323399573676603587e-17, r);
    double z = r * r;
    double s = fma(z, 1.0 / 6227020800.0, -1.0 / 39916800); /* to r^13: error below 1e-13 */
    s = fma(s, z, 1.0 / 362880);
    s = fma(s, z, -1.0 / 5040);
    s = fma(s, z, 1.0 / 120);
    s = fma(s, z, -1.0 / 6);
    s = fma(s * z, r, r);
    double c = fma(z, 1.0 / 479001600, -1.0 / 3628800);
    c = fma(c, z, 1.0 / 40320);
    c = fma(c, z, -1.0 / 720);
    c = fma(c, z, 1.0 / 24);
    c = fma(c, z, -0.5);
    c = fma(c, z, 1.0);
    int64_t q = fabs(n) < 0x1p62 ? (int64_t)n : 0;
    double s2 = q & 1 ? c : s, c2 = q & 1 ? s : c;
    *sine = (float)(q & 2 ? -s2 : s2);
    *cosine = (float)((q + 1) & 2 ? -c2 : c2);
}

#endif
