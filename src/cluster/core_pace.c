/* How long steps take: the base of their deadline.
 *
 * The cost of a step of m rows lies between that of n < m rows (memory decides: the weights are
 * read once) and m / n times as much (arithmetic decides). So a step is expected to take what steps
 * of about its size took lately, else what smaller ones let fear, else what larger ones took. All
 * of them are maxima that fade. */
#include "cluster/core_private.h"

static int size_of(int n_rows) { /* 1, 2, 3 to 4, 5 to 8, ... rows */
    int k = 0;
    while (k < CORE_PACES - 1 && n_rows > 1 << k) k++;
    return k;
}

static float fading(float before, float now) {
    return now > before ? now : before * .98f + now * .02f;
}

void core_pace_learn(mxd_coord *c, int n_rows, int64_t took_ms) {
    core_pace *p = &c->paces[size_of(n_rows)];
    float ms = (float)took_ms + 1; /* the clock may have stood still */
    p->ms = fading(p->ms, ms);
    p->row_ms = fading(p->row_ms, ms / (float)n_rows);
}

int64_t core_pace_expect(const mxd_coord *c, int n_rows) {
    int at = size_of(n_rows), near = at;
    float least = 0;
    for (int k = 0; k <= at; k++)
        if (c->paces[k].ms > least) least = c->paces[k].ms;
    while (near >= 0 && c->paces[near].ms <= 0) near--;
    if (near < 0)
        for (near = at; near < CORE_PACES && c->paces[near].ms <= 0;) near++;
    if (near == CORE_PACES) return -1;
    float ms = c->paces[near].ms;
    if (near <= at && c->paces[near].row_ms * (float)n_rows > ms)
        ms = c->paces[near].row_ms * (float)n_rows;
    return (int64_t)(ms > least ? ms : least);
}
