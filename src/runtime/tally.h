/* tally.h - the sum of exp(l / T) over token ids, the same bits in whatever parts it is taken.
 *
 * Each term is a double that depends on l and T alone, f 2^k. Terms are added as integers, so there
 * is no order: bucket q holds those with k in [32 q, 32 q + 32). Only the highest bucket and the
 * two below it count, which leaves out what is less than 2^-64 of the largest term.
 * A term that is not a number, or of -infinity, counts as zero. |l / T| above 2^40 counts as 2^40.
 *
 * A tally travels as its bytes between machines of one byte order. Threads: reentrant.
 */
#ifndef MXD_RUNTIME_TALLY_H
#define MXD_RUNTIME_TALLY_H

#include <stdint.h>

enum { MXD_TALLY_BUCKETS = 3 };

typedef struct mxd_tally {
    uint64_t low[MXD_TALLY_BUCKETS], high[MXD_TALLY_BUCKETS]; /* of bucket top, top - 1, top - 2 */
    int64_t top;
    float max;  /* the largest l; -infinity: the tally is empty */
    int32_t of; /* how many l are numbers above -infinity */
} mxd_tally;

/* The sum over l [n]; n <= MXD_MAX_VOCAB. T > 0. */
void mxd_tally_take(mxd_tally *t, const float *l, int n, float temperature);

/* t becomes the sum over both. */
void mxd_tally_join(mxd_tally *t, const mxd_tally *other);

/* The sum divided by exp(max / T), so 1 or more; 0 of an empty one. */
double mxd_tally_value(const mxd_tally *t, float temperature);

/* The largest of x [n]; a NaN never is. -infinity when there is nothing else. */
float mxd_largest(const float *x, int n);

#endif
