/* comm_exchange.c - the parts of all ranks to all of them: what a step of a cut model does twice in
 * every layer.
 *
 * Everyone sends to everyone at once and takes what comes, whichever is possible. Towards a ring
 * the bytes go straight from the caller's memory: until the reader has taken them they lie in the
 * ring, from where they are fetched should the ring be dropped. A link may keep what it sends for
 * long, so it is given a copy, one for all peers. What arrives goes straight to its place. */
#include <string.h>
#include "base/clock.h"
#include "net/comm_private.h"

typedef struct round {
    mxd_comm *c;
    uint32_t tag;
    const unsigned char *mine;
    size_t bytes;                    /* of mine */
    size_t sent[MXD_COMM_MAX_RANKS]; /* of them, to each rank */
    size_t want[MXD_COMM_MAX_RANKS]; /* bytes of each rank */
    mxd_blob *copy;                  /* of mine, for links; NULL until one needs it */
} round;

static mxd_rc no_memory(const round *x, mxd_err *err) {
    return mxd_fail(err, MXD_E_NOMEM, "%zu bytes of an exchange", x->bytes);
}

/* A piece of mine that outlives the call. NULL when memory is short. */
static mxd_blob *piece_of(round *x, size_t at, size_t n) {
    if (!x->copy) {
        x->copy = mxd_blob_raw(x->c->al, x->bytes);
        if (x->copy) memcpy(x->copy->bytes, x->mine, x->bytes);
    }
    if (!x->copy || n == x->bytes) return mxd_blob_retain(x->copy);
    return mxd_blob_view(x->c->al, x->copy, at, n);
}

/* As much as the way to p takes now. */
static mxd_rc push(round *x, comm_peer *p, mxd_err *err) {
    size_t *sent = &x->sent[p->rank];
    while (*sent < x->bytes && p->up && !p->unsent) {
        size_t n = x->bytes - *sent < MXD_COMM_PIECE ? x->bytes - *sent : MXD_COMM_PIECE;
        if (p->out && p->out_bytes + n > MXD_COMM_WINDOW) break;
        comm_out *o = comm_out_new(x->c);
        if (!o) return no_memory(x, err);
        *o = (comm_out){.tag = x->tag, .total = x->bytes, .offset = *sent, .bytes = n};
        bool ring = p->ring_out;
        if (!ring) o->piece = piece_of(x, *sent, n);
        if (ring ? !comm_shm_lend(p, o, x->mine + *sent) : !o->piece) {
            comm_out_free(x->c, o);
            return ring ? MXD_OK : no_memory(x, err); /* the ring is full */
        }
        comm_queue(p, o);
        *sent += n;
        if (ring) continue;
        p->unsent = o;
        comm_pump(x->c, p);
    }
    return MXD_OK;
}

/* The next rank that we need something of; NULL: the exchange is done. */
static comm_peer *needed(const round *x) {
    comm_peer *p = x->c->peers;
    int size = x->c->size;
    for (int i = 1; i < size; i++) {
        int r = (x->c->rank + i) % size;
        if (p[r].into.got < x->want[r]) return &p[r];
    }
    for (int r = 0; r < size; r++)
        if (r != x->c->rank && x->sent[r] < x->bytes) return &p[r];
    return NULL;
}

/* Why the exchange cannot go on. */
static mxd_rc trouble(const round *x, comm_peer *p, mxd_err *err) {
    if (x->c->aborted) return comm_canceled(x->c, err);
    const comm_in *m = x->want[p->rank] ? comm_any(p, x->tag) : NULL;
    if (m)
        return mxd_fail(err, MXD_E_STALE,
                        "rank %d brought %llu bytes to an exchange, we expected %zu: not all ranks "
                        "do the same",
                        p->rank, (unsigned long long)m->total, x->want[p->rank]);
    return p->lost ? comm_peer_rc(p, err) : MXD_OK;
}

/* The lock is held. */
static mxd_rc run(round *x, int64_t deadline, mxd_err *err) {
    mxd_comm *c = x->c;
    for (;;) {
        for (int i = 1; i < c->size; i++) MXD_TRY(push(x, &c->peers[(c->rank + i) % c->size], err));
        comm_shm_poll(c);
        comm_peer *p = needed(x);
        if (c->aborted) return comm_canceled(c, err);
        if (!p) return MXD_OK;
        MXD_TRY(trouble(x, p, err));
        if (!comm_wait_for(c, p, deadline)) return comm_late("exchanging with", p->rank, err);
    }
}

static mxd_rc exchange(round *x, unsigned char *all, int64_t deadline, mxd_err *err) {
    mxd_comm *c = x->c;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size; all += x->want[r++]) {
        if (r == c->rank)
            x->mine = all;
        else if (x->want[r])
            comm_into_begin(c, &c->peers[r], x->tag, all, x->want[r]);
    }
    x->want[c->rank] = 0;
    mxd_rc rc = run(x, deadline, err);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) comm_into_end(c, &c->peers[r]);
    if (!rc) c->exchanges++;
    pthread_mutex_unlock(&c->lock);
    mxd_blob_release(x->copy);
    return rc;
}

mxd_rc mxd_comm_exchange(mxd_comm *c, float *all, const size_t *n_each, int64_t timeout_ms,
                         mxd_err *err) {
    round x = {.c = c};
    for (int r = 0; r < c->size; r++) {
        if (n_each[r] > MXD_COMM_MAX_MESSAGE / sizeof *all)
            return mxd_fail(err, MXD_E_TOOBIG, "an exchange of %zu floats of rank %d", n_each[r],
                            r);
        x.want[r] = n_each[r] * sizeof *all;
    }
    x.bytes = x.want[c->rank];
    MXD_TRY(comm_begin(c, &x.tag, err));
    if (c->size == 1) return MXD_OK;
    return comm_end(c, exchange(&x, (unsigned char *)all, comm_deadline(timeout_ms), err));
}
