/* comm_collect.c - collectives over the streams, and the measurement that chooses between their
 * algorithms.
 *
 * Cost of a sum of S bytes over N ranks, latency a and bandwidth b (reference: Thakur,
 * Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", 2005):
 *   direct   a + (N - 1) S / b                 everyone sends all to everyone
 *   scatter  2 a + 2 (N - 1) / N * S / b       each rank sums its N-th part, then hands it out
 * so direct wins while S < a b N / ((N - 1) (N - 2)), and always for two ranks. */
#include "net/comm_private.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"

enum {
    TAG_BASE = MXD_COMM_MAX_TAG + 1, /* rounds of collectives count on from here */
    ROUNDS = 1 << 24,
    PING_TAG = TAG_BASE + ROUNDS,
    PINGS = 12,
    BULK_PINGS = 3,
    STRIP = 256, /* floats of one strip of a sum: stays in the first-level cache */
    TREE_DEPTH = 8,
    SCRATCH_KEPT = 4 << 20,
};

/* ------------------------------------------------------------------------------ sums over ranks */

static float combine(float a, float b, mxd_reduce how) {
    if (how == MXD_REDUCE_SUM) return a + b;
    return a > b || a != a ? a : b; /* a NaN wins */
}

/* a [m] = a + b, or their larger. Whole strips have a loop of known length, which becomes vectors.
 */
static void merge(float *restrict a, const float *restrict b, size_t m, mxd_reduce how) {
    if (m == STRIP && how == MXD_REDUCE_SUM)
        for (size_t i = 0; i < STRIP; i++) a[i] = combine(a[i], b[i], MXD_REDUCE_SUM);
    else if (m == STRIP)
        for (size_t i = 0; i < STRIP; i++) a[i] = combine(a[i], b[i], MXD_REDUCE_MAX);
    else
        for (size_t i = 0; i < m; i++) a[i] = combine(a[i], b[i], how);
}

/* y [n] = v[0] .. v[size - 1] along the binary tree over ranks: neighbours of equal size merge at
 * once, what is left is folded from the right. y may be one of v. */
static void tree(float *y, const float *const *v, int size, size_t n, mxd_reduce how) {
    float wait[TREE_DEPTH][STRIP];
    for (size_t at = 0; at < n; at += STRIP) {
        size_t m = n - at < STRIP ? n - at : STRIP;
        int depth = 0;
        for (int r = 0; r < size; r++) {
            int carry = __builtin_ctz(~(unsigned)r); /* merges that rank r completes */
            if (carry == 0)
                memcpy(wait[depth++], v[r] + at, m * sizeof(float));
            else
                merge(wait[depth - 1], v[r] + at, m, how);
            for (; carry > 1; carry--, depth--) merge(wait[depth - 2], wait[depth - 1], m, how);
        }
        for (; depth > 1; depth--) merge(wait[depth - 2], wait[depth - 1], m, how);
        memcpy(y + at, wait[0], m * sizeof(float));
    }
}

/* -------------------------------------------------------------------------------------- rounds */

mxd_rc comm_begin(mxd_comm *c, uint32_t *tag, mxd_err *err) {
    pthread_mutex_lock(&c->lock);
    bool aborted = c->aborted;
    pthread_mutex_unlock(&c->lock);
    if (aborted) return comm_canceled(c, err);
    if (c->out_of_step)
        return mxd_fail(
            err, MXD_E_STALE,
            "group '%s': an earlier collective failed and the ranks are out of step; open "
            "the group again",
            c->group);
    *tag = TAG_BASE + c->round++ % ROUNDS;
    return MXD_OK;
}

mxd_rc comm_end(mxd_comm *c, mxd_rc rc) {
    if (rc) c->out_of_step = true;
    return rc;
}

static mxd_blob *copy_of(mxd_comm *c, const void *data, size_t n, mxd_err *err) {
    mxd_blob *b = mxd_blob_raw(c->al, n);
    if (!b) (void)!mxd_fail(err, MXD_E_NOMEM, "%zu bytes of a collective", n);
    if (b && n) memcpy(b->bytes, data, n);
    return b;
}

/* To all others, the next rank first, so that not everyone sends to rank 0 at once. */
static mxd_rc post_all(mxd_comm *c, uint32_t tag, mxd_blob *b, int64_t deadline, mxd_err *err) {
    for (int i = 1; i < c->size; i++)
        MXD_TRY(comm_post(c, (c->rank + i) % c->size, tag, b, deadline, err));
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------- all-reduce */

/* Room for what the others bring to a sum; kept while it is small. NULL when memory is short. */
static float *scratch(mxd_comm *c, size_t bytes, mxd_err *err) {
    if (bytes <= c->scratch_bytes) return c->scratch;
    mxd_free(c->al, c->scratch);
    c->scratch = mxd_new_bytes(c->al, bytes);
    c->scratch_bytes = c->scratch ? bytes : 0;
    if (!c->scratch) (void)!mxd_fail(err, MXD_E_NOMEM, "%zu bytes of a sum", bytes);
    return c->scratch;
}

static void put_scratch(mxd_comm *c) {
    if (c->scratch_bytes <= SCRATCH_KEPT) return;
    mxd_free(c->al, c->scratch);
    c->scratch = NULL;
    c->scratch_bytes = 0;
}

/* s->give and n_give are set. Takes n floats of each other rank, the same part of their vectors as
 * y is of ours, and sums all into y. */
static mxd_rc swap_and_sum(mxd_comm *c, comm_swap *s, float *y, size_t n, mxd_reduce how,
                           uint32_t tag, int64_t deadline, mxd_err *err) {
    const float *v[MXD_COMM_MAX_RANKS];
    float *theirs = scratch(c, (size_t)c->size * n * sizeof *y + 1, err); /* n may be 0 */
    if (!theirs) return MXD_E_NOMEM;
    for (int r = 0; r < c->size; r++) {
        float *at = theirs + (size_t)r * n;
        v[r] = r == c->rank ? y : at;
        s->take[r] = (unsigned char *)at;
        s->n_take[r] = n * sizeof *y;
    }
    mxd_rc rc = comm_swap_run(c, s, tag, deadline, err);
    if (!rc) tree(y, v, c->size, n, how);
    put_scratch(c);
    return rc;
}

static mxd_rc reduce_direct(mxd_comm *c, float *x, size_t n, mxd_reduce how, uint32_t tag,
                            int64_t deadline, mxd_err *err) {
    comm_swap s = {.base = (const unsigned char *)x, .base_bytes = n * sizeof *x};
    for (int r = 0; r < c->size; r++) {
        s.give[r] = s.base;
        s.n_give[r] = s.base_bytes;
    }
    return swap_and_sum(c, &s, x, n, how, tag, deadline, err);
}

/* Where part r of n floats begins; parts are whole cache lines but the last. */
static size_t part_start(const mxd_comm *c, size_t n, int r) {
    size_t lines = (n + 15) / 16, at = lines * (size_t)r / (size_t)c->size * 16;
    return at < n ? at : n;
}

/* Part r of everyone's x goes to rank r, which sums it and hands it to all. */
static mxd_rc reduce_scattered(mxd_comm *c, float *x, size_t n, mxd_reduce how, uint32_t tag,
                               uint32_t tag2, int64_t deadline, mxd_err *err) {
    comm_swap s = {.base = (const unsigned char *)x, .base_bytes = n * sizeof *x}, back = {0};
    for (int r = 0; r < c->size; r++) {
        size_t at = part_start(c, n, r);
        s.give[r] = (const unsigned char *)(x + at);
        back.take[r] = (unsigned char *)(x + at);
        s.n_give[r] = back.n_take[r] = (part_start(c, n, r + 1) - at) * sizeof *x;
    }
    size_t mine = s.n_give[c->rank];
    float *y = x + part_start(c, n, c->rank);
    MXD_TRY(swap_and_sum(c, &s, y, mine / sizeof *x, how, tag, deadline, err));
    back.base = (const unsigned char *)y;
    back.base_bytes = mine;
    for (int r = 0; r < c->size; r++) {
        back.give[r] = back.base;
        back.n_give[r] = mine;
    }
    return comm_swap_run(c, &back, tag2, deadline, err);
}

mxd_rc mxd_comm_all_reduce(mxd_comm *c, float *x, size_t n, mxd_reduce how, int64_t timeout_ms,
                           mxd_err *err) {
    if (n > MXD_COMM_MAX_MESSAGE / sizeof *x)
        return mxd_fail(err, MXD_E_TOOBIG, "a sum of %zu floats", n);
    uint32_t tag = 0, tag2 = 0;
    MXD_TRY(comm_begin(c, &tag, err));
    MXD_TRY(comm_begin(c, &tag2, err)); /* every rank counts alike, whatever the algorithm */
    if (c->size == 1) return MXD_OK;
    int64_t deadline = comm_deadline(timeout_ms);
    if (n * sizeof *x <= c->direct_max)
        return comm_end(c, reduce_direct(c, x, n, how, tag, deadline, err));
    return comm_end(c, reduce_scattered(c, x, n, how, tag, tag2, deadline, err));
}

/* ------------------------------------------------------------------- broadcast, gather, barrier */

static mxd_rc receive(mxd_comm *c, int peer, uint32_t tag, void *data, size_t n, int64_t deadline,
                      mxd_err *err) {
    comm_in *m;
    size_t got = 0;
    pthread_mutex_lock(&c->lock);
    mxd_rc rc = comm_await(c, peer, tag, deadline, &m, err);
    if (!rc && m->total != n)
        rc = mxd_fail(err, MXD_E_STALE, "rank %d brought %llu bytes to a collective, we %zu", peer,
                      (unsigned long long)m->total, n);
    for (int k = 0; !rc && k < m->n_parts; k++) {
        if (!m->parts[k]) continue;
        memcpy((char *)data + got, m->parts[k]->bytes, m->parts[k]->len);
        got += m->parts[k]->len;
    }
    if (!rc) comm_take(c, &c->peers[peer], m);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

/* A binomial tree counted from the root: rank v hears from v without its lowest bit, and tells
 * v + 1, v + 2, v + 4, ... below that bit. */
static mxd_rc spread(mxd_comm *c, int root, void *data, size_t n, uint32_t tag, int64_t deadline,
                     mxd_err *err) {
    int v = (c->rank - root + c->size) % c->size, low = 1;
    while (low < c->size && !(v & low)) low *= 2;
    if (v) MXD_TRY(receive(c, (v - low + root) % c->size, tag, data, n, deadline, err));
    mxd_blob *b = copy_of(c, data, n, err);
    mxd_rc rc = b ? MXD_OK : MXD_E_NOMEM;
    for (int bit = low / 2; bit >= 1 && !rc; bit /= 2)
        if (v + bit < c->size) rc = comm_post(c, (v + bit + root) % c->size, tag, b, deadline, err);
    mxd_blob_release(b);
    return rc;
}

mxd_rc mxd_comm_broadcast(mxd_comm *c, int root, void *data, size_t n, int64_t timeout_ms,
                          mxd_err *err) {
    if (root < 0 || root >= c->size || n > MXD_COMM_MAX_MESSAGE)
        return mxd_fail(err, MXD_E_INVAL, "broadcast of %zu bytes from rank %d of %d", n, root,
                        c->size);
    uint32_t tag = 0;
    MXD_TRY(comm_begin(c, &tag, err));
    if (c->size == 1) return MXD_OK;
    return comm_end(c, spread(c, root, data, n, tag, comm_deadline(timeout_ms), err));
}

mxd_rc mxd_comm_gather(mxd_comm *c, int root, const void *data, size_t n, void *out,
                       int64_t timeout_ms, mxd_err *err) {
    bool wants = root < 0 || root == c->rank;
    if (root < -1 || root >= c->size || n > MXD_COMM_MAX_MESSAGE || (wants && !out && n))
        return mxd_fail(err, MXD_E_INVAL, "gather of %zu bytes at rank %d of %d", n, root, c->size);
    uint32_t tag = 0;
    MXD_TRY(comm_begin(c, &tag, err));
    int64_t deadline = comm_deadline(timeout_ms);
    mxd_blob *b = copy_of(c, data, n, err);
    mxd_rc rc = b ? MXD_OK : MXD_E_NOMEM;
    if (!rc && root < 0) rc = post_all(c, tag, b, deadline, err);
    if (!rc && root >= 0 && !wants) rc = comm_post(c, root, tag, b, deadline, err);
    mxd_blob_release(b);
    for (int r = 0; r < c->size && wants && !rc; r++) {
        char *to = (char *)out + (size_t)r * n;
        if (r != c->rank)
            rc = receive(c, r, tag, to, n, deadline, err);
        else if (n)
            memmove(to, data, n);
    }
    return comm_end(c, rc);
}

/* Dissemination (Hensgen, Finkel, Manber 1988): after k rounds a rank has heard of 2^k others. */
mxd_rc mxd_comm_barrier(mxd_comm *c, int64_t timeout_ms, mxd_err *err) {
    int64_t deadline = comm_deadline(timeout_ms);
    for (int step = 1; step < c->size; step *= 2) {
        uint32_t tag = 0;
        MXD_TRY(comm_begin(c, &tag, err));
        mxd_rc rc = comm_post(c, (c->rank + step) % c->size, tag, NULL, deadline, err);
        if (!rc) rc = receive(c, (c->rank - step + c->size) % c->size, tag, NULL, 0, deadline, err);
        if (rc) return comm_end(c, rc);
    }
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------ measuring */

/* The best of `rounds` round trips of n bytes with `peer`, ns. */
static mxd_rc ping(mxd_comm *c, int peer, void *data, size_t n, int rounds, int64_t deadline,
                   double *best, mxd_err *err) {
    *best = INFINITY;
    for (int i = 0; i < rounds; i++) {
        int64_t start = mxd_now_ns();
        mxd_blob *b = copy_of(c, data, n, err);
        if (!b) return MXD_E_NOMEM;
        mxd_rc rc = comm_post(c, peer, PING_TAG, b, deadline, err);
        mxd_blob_release(b);
        MXD_TRY(rc);
        MXD_TRY(receive(c, peer, PING_TAG, data, n, deadline, err));
        double ns = (double)(mxd_now_ns() - start);
        if (i && ns < *best) *best = ns; /* the first one warms up */
    }
    return MXD_OK;
}

static mxd_rc pong(mxd_comm *c, void *data, size_t n, int rounds, int64_t deadline, mxd_err *err) {
    for (int i = 0; i < rounds; i++) {
        MXD_TRY(receive(c, 0, PING_TAG, data, n, deadline, err));
        mxd_blob *b = copy_of(c, data, n, err);
        if (!b) return MXD_E_NOMEM;
        mxd_rc rc = comm_post(c, 0, PING_TAG, b, deadline, err);
        mxd_blob_release(b);
        MXD_TRY(rc);
    }
    return MXD_OK;
}

static mxd_rc measure(mxd_comm *c, void *data, double *slowest, double *slowest_bulk,
                      int64_t deadline, mxd_err *err) {
    if (c->rank) {
        MXD_TRY(pong(c, data, 8, PINGS, deadline, err));
        return pong(c, data, MXD_COMM_PIECE, BULK_PINGS, deadline, err);
    }
    for (int r = 1; r < c->size; r++) {
        double ns, bulk;
        MXD_TRY(ping(c, r, data, 8, PINGS, deadline, &ns, err));
        MXD_TRY(ping(c, r, data, MXD_COMM_PIECE, BULK_PINGS, deadline, &bulk, err));
        *slowest = fmax(*slowest, ns / 2);
        *slowest_bulk = fmax(*slowest_bulk, bulk / 2);
    }
    return MXD_OK;
}

mxd_rc comm_measure(mxd_comm *c, int64_t deadline, mxd_err *err) {
    if (c->size == 1) return MXD_OK;
    mxd_blob *data = mxd_blob_new(c->al, MXD_COMM_PIECE);
    if (!data) return mxd_fail(err, MXD_E_NOMEM, "group '%s'", c->group);
    memset(data->bytes, 0, data->len);
    double found[2] = {0, 0}; /* latency ns; ns of a piece */
    mxd_rc rc = measure(c, data->bytes, &found[0], &found[1], deadline, err);
    mxd_blob_release(data);
    MXD_TRY(rc);
    uint32_t tag = 0;
    MXD_TRY(comm_begin(c, &tag, err));
    MXD_TRY(comm_end(c, spread(c, 0, found, sizeof found, tag, deadline, err)));
    double bulk = fmax(found[1] - found[0], 1), n = c->size;
    c->latency_us = found[0] / 1000;
    c->bandwidth = MXD_COMM_PIECE / bulk * 1e9;
    if (c->size > 2)
        c->direct_max = (size_t)(found[0] * (MXD_COMM_PIECE / bulk) * n / ((n - 1) * (n - 2)));
    return MXD_OK;
}
