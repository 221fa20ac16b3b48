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
    int at = size_of(n_rows);
    float most = 0, row_ms = 0; /* of a row: by the largest of the smaller ones */
    for (int k = 0; k <= at; k++) {
        if (c->paces[k].ms <= 0) continue;
        if (c->paces[k].ms > most) most = c->paces[k].ms;
        row_ms = c->paces[k].row_ms;
    }
    if (row_ms * (float)n_rows > most) most = row_ms * (float)n_rows;
    for (int k = at + 1; k < CORE_PACES && most <= 0; k++) most = c->paces[k].ms;
    return most > 0 ? (int64_t)most : -1;
}
