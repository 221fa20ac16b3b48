#include "runtime/tally.h"

#include <math.h>
#include <string.h>

enum { LANES = 16 };

/* Lanes, so that a compiler can use vectors: the largest does not depend on the order. */
float mxd_largest(const float *x, int n) {
    float lane[LANES], most = -INFINITY;
    int i = 0;
    for (int l = 0; l < LANES; l++) lane[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 0; l < LANES; l++) most = lane[l] > most ? lane[l] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* ---------------------------------------------------------------------------------------- terms */

#define FARTHEST 0x1p40   /* of l / T */
#define TO_WHOLE 0x1.8p52 /* x + this - this is x rounded to a whole number */

typedef struct terms { /* f 2^k, f from 0.707 to 1.415 */
    double f[LANES];
    int64_t k[LANES];
} terms;

/* exp(l / T) for l [LANES]. No branches, so that a compiler can use vectors; a NaN gives something.
 */
static void take_terms(terms *to, const float *l, double temperature) {
    static const double LN2_HI = 6.93147180369123816490e-01, LN2_LO = 1.90821492927058770002e-10;
    static const double LOG2_E = 1.44269504088896338700;
    const double zero = TO_WHOLE;
    int64_t zero_bits;
    memcpy(&zero_bits, &zero, sizeof zero);
    for (int i = 0; i < LANES; i++) {
        double y = (double)l[i] / temperature;
        y = y < FARTHEST ? y : FARTHEST;
        y = y > -FARTHEST ? y : -FARTHEST;
        double whole = y * LOG2_E + TO_WHOLE, times = whole - TO_WHOLE;
        double r = (y - times * LN2_HI) - times * LN2_LO; /* |r| <= ln 2 / 2 */
        double e = 1.0 / 6227020800;                      /* Taylor; the rest is below 1e-17 */
        e = e * r + 1.0 / 479001600;
        e = e * r + 1.0 / 39916800;
        e = e * r + 1.0 / 3628800;
        e = e * r + 1.0 / 362880;
        e = e * r + 1.0 / 40320;
        e = e * r + 1.0 / 5040;
        e = e * r + 1.0 / 720;
        e = e * r + 1.0 / 120;
        e = e * r + 1.0 / 24;
        e = e * r + 1.0 / 6;
        e = e * r + 0.5;
        e = e * r + 1;
        to->f[i] = e * r + 1;
        int64_t bits;
        memcpy(&bits, &whole, sizeof bits);
        to->k[i] = bits - zero_bits;
    }
}

/* floor(k / 32) */
static int64_t bucket_of(int64_t k) { return (k - (k & 31)) / 32; }

/* Adds f 2^(k mod 32), in units of 2^-53: f has no digits below. */
static void add_term(mxd_tally *t, int64_t down, double f, int64_t k) {
    uint64_t m = (uint64_t)(f * 0x1p53);
    int by = (int)(k & 31);
    uint64_t low = m << by;
    t->low[down] += low;
    t->high[down] += ((m >> 1) >> (63 - by)) + (t->low[down] < low);
}

static void add_terms(mxd_tally *t, const float *l, int n, float temperature) {
    terms some;
    take_terms(&some, l, temperature);
    for (int i = 0; i < n; i++) {
        if (!(l[i] > -INFINITY)) continue;
        t->of++;
        int64_t down = t->top - bucket_of(some.k[i]);
        if (down < MXD_TALLY_BUCKETS) add_term(t, down, some.f[i], some.k[i]);
    }
}

/* The term of the largest. */
static double largest_term(const mxd_tally *t, float temperature, int64_t *k) {
    float l[LANES] = {t->max};
    terms some;
    take_terms(&some, l, temperature);
    *k = some.k[0];
    return some.f[0];
}

void mxd_tally_take(mxd_tally *t, const float *l, int n, float temperature) {
    int64_t k;
    int at = 0;
    *t = (mxd_tally){.max = mxd_largest(l, n)};
    if (!(t->max > -INFINITY)) return;
    largest_term(t, temperature, &k);
    t->top = bucket_of(k);
    for (; at + LANES <= n; at += LANES) add_terms(t, l + at, LANES, temperature);
    float rest[LANES] = {0};
    memcpy(rest, l + at, (size_t)(n - at) * sizeof *l);
    add_terms(t, rest, n - at, temperature);
}

void mxd_tally_join(mxd_tally *t, const mxd_tally *other) {
    const mxd_tally *big = t, *small = other;
    if (other->of && (!t->of || other->max > t->max)) big = other, small = t;
    mxd_tally sum = *big;
    sum.of += small->of;
    int64_t down = sum.top - small->top;
    for (int i = 0; small->of && down >= 0 && i + down < MXD_TALLY_BUCKETS; i++) {
        sum.low[i + down] += small->low[i];
        sum.high[i + down] += small->high[i] + (sum.low[i + down] < small->low[i]);
    }
    *t = sum;
}

double mxd_tally_value(const mxd_tally *t, float temperature) {
    double sum = 0;
    int64_t k;
    if (!t->of) return 0;
    for (int i = MXD_TALLY_BUCKETS; i-- > 0;)
        sum = sum * 0x1p-32 + ((double)t->high[i] * 0x1p64 + (double)t->low[i]);
    double f = largest_term(t, temperature, &k);
    return sum / (f * 0x1p53 * (double)((uint64_t)1 << (k & 31)));
}
