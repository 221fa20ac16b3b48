#include "base/dmath.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* ln 2 in two parts: the high one has trailing zero bits, so n * LN2_HI is exact. */
static const double LN2_HI = 6.93147180369123816490e-01, LN2_LO = 1.90821492927058770002e-10;
static const double LOG2_E = 1.44269504088896338700;

/* x * 2^n for n in the range that exp needs; exact unless the result is subnormal. */
static double scale(double x, int n) {
    while (n < -1000) {
        x *= 0x1p-1000;
        n += 1000;
    }
    while (n > 1000) {
        x *= 0x1p1000;
        n -= 1000;
    }
    uint64_t bits = (uint64_t)(1023 + n) << 52;
    double p;
    memcpy(&p, &bits, sizeof p);
    return x * p;
}

double mxd_exp64(double x) {
    if (x != x) return x;
    if (x > 709.7) return (double)INFINITY;
    if (x < -745.0) return 0;
    double t = x * LOG2_E;
    int n = (int)(t < 0 ? t - 0.5 : t + 0.5);
    double r = (x - n * LN2_HI) - n * LN2_LO; /* |r| <= ln 2 / 2 */
    double sum = 1;
    for (int k = 13; k >= 1; k--) sum = 1 + sum * r / k; /* Taylor; the rest is below 1e-17 */
    return scale(sum, n);
}

double mxd_log64(double x) {
    if (!(x >= 0)) return (double)NAN;
    if (x == 0) return -(double)INFINITY;
    if (x > 1.7976931348623157e308) return x;
    int e = 0;
    if (x < 0x1p-1000) { /* subnormals get their leading bit first */
        x *= 0x1p100;
        e = -100;
    }
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    e += (int)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m); /* 1 <= m < 2 */
    if (m > 1.4142135623730951) {
        m /= 2;
        e++;
    }
    double s = (m - 1) / (m + 1), s2 = s * s; /* ln m = 2 atanh s, |s| < 0.172 */
    double sum = 0;
    for (int k = 21; k >= 3; k -= 2) sum = (sum + 1.0 / k) * s2;
    double ln_m = 2 * s + 2 * s * sum;
    return e * LN2_HI + (ln_m + e * LN2_LO);
}
