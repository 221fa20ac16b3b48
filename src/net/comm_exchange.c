/* comm_exchange.c - every rank gives something to every other and takes something: parts of vectors
 * that a step of a cut model passes twice in every layer, and what sums are made of.
 *
 * Everyone sends to everyone at once and takes what comes, whichever is possible. Towards a ring
 * the bytes go straight from the caller's memory: until the reader has taken them they lie in the
 * ring, from where they are fetched should the ring be dropped. A link may keep what it sends for
 * long, so it is given a copy, one for all peers. What arrives goes straight to its place. */
#include <string.h>
#include "net/comm_private.h"

typedef struct round {
    mxd_comm *c;
    const comm_swap *s;
    uint32_t tag;
    size_t sent[MXD_COMM_MAX_RANKS];
    mxd_blob *copy; /* of s->base, for links; NULL until one needs it */
} round;

static mxd_rc no_memory(const round *x, mxd_err *err) {
    return mxd_fail(err, MXD_E_NOMEM, "%zu bytes of an exchange", x->s->base_bytes);
}

/* n bytes that outlive the call. NULL when memory is short. */
static mxd_blob *piece_of(round *x, const unsigned char *from, size_t n) {
    const comm_swap *s = x->s;
    if (!x->copy) {
        x->copy = mxd_blob_raw(x->c->al, s->base_bytes);
        if (x->copy) memcpy(x->copy->bytes, s->base, s->base_bytes);
    }
    if (!x->copy || n == s->base_bytes) return mxd_blob_retain(x->copy);
    return mxd_blob_view(x->c->al, x->copy, (size_t)(from - s->base), n);
}

/* As much as the way to p takes now. */
static mxd_rc push(round *x, comm_peer *p, mxd_err *err) {
    size_t *sent = &x->sent[p->rank], all = x->s->n_give[p->rank];
    while (*sent < all && p->up && !p->unsent) {
        const unsigned char *from = x->s->give[p->rank] + *sent;
        size_t n = all - *sent < MXD_COMM_PIECE ? all - *sent : MXD_COMM_PIECE;
        if (p->out && p->out_bytes + n > MXD_COMM_WINDOW) break;
        comm_out *o = comm_out_new(x->c);
        if (!o) return no_memory(x, err);
        *o = (comm_out){.tag = x->tag, .total = all, .offset = *sent, .bytes = n};
        bool ring = p->ring_out;
        if (!ring) o->piece = piece_of(x, from, n);
        if (ring ? !comm_shm_lend(p, o, from) : !o->piece) {
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

/* The next rank that we need something of; NULL: all is done. */
static comm_peer *needed(const round *x) {
    comm_peer *p = x->c->peers;
    int size = x->c->size;
    for (int i = 1; i < size; i++) {
        int r = (x->c->rank + i) % size;
        if (p[r].into.got < x->s->n_take[r]) return &p[r];
    }
    for (int r = 0; r < size; r++)
        if (r != x->c->rank && x->sent[r] < x->s->n_give[r]) return &p[r];
    return NULL;
}

/* Why it cannot go on. */
static mxd_rc trouble(const round *x, comm_peer *p, mxd_err *err) {
    size_t n = x->s->n_take[p->rank];
    const comm_in *m = n ? comm_any(p, x->tag) : NULL;
    if (m)
        return mxd_fail(err, MXD_E_STALE,
                        "rank %d brought %llu bytes to a collective, we expected %zu: not all "
                        "ranks do the same",
                        p->rank, (unsigned long long)m->total, n);
    return p->lost ? comm_peer_rc(p, err) : MXD_OK;
}

/* The lock is held. */
static mxd_rc run(round *x, int64_t deadline, mxd_err *err) {
    mxd_comm *c = x->c;
    for (;;) {
        for (int i = 1; i < c->size; i++) MXD_TRY(push(x, &c->peers[(c->rank + i) % c->size], err));
        comm_shm_poll(c);
        if (c->aborted) return comm_canceled(c, err);
        comm_peer *p = needed(x);
        if (!p) return MXD_OK;
        MXD_TRY(trouble(x, p, err));
        if (!comm_wait_for(c, p, deadline)) return comm_late("exchanging with", p->rank, err);
    }
}

mxd_rc comm_swap_run(mxd_comm *c, const comm_swap *s, uint32_t tag, int64_t deadline,
                     mxd_err *err) {
    round x = {.c = c, .s = s, .tag = tag};
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank && s->n_take[r])
            comm_into_begin(c, &c->peers[r], tag, s->take[r], s->n_take[r]);
    mxd_rc rc = run(&x, deadline, err);
    for (int r = 0; r < c->size; r++)
        if (r != c->rank) comm_into_end(c, &c->peers[r]);
    pthread_mutex_unlock(&c->lock);
    mxd_blob_release(x.copy);
    return rc;
}

mxd_rc mxd_comm_exchange(mxd_comm *c, float *all, const size_t *n_each, int64_t timeout_ms,
                         mxd_err *err) {
    comm_swap s = {0};
    uint32_t tag = 0;
    unsigned char *at = (unsigned char *)all;
    for (int r = 0; r < c->size; at += s.n_take[r++]) {
        if (n_each[r] > MXD_COMM_MAX_MESSAGE / sizeof *all)
            return mxd_fail(err, MXD_E_TOOBIG, "an exchange of %zu floats of rank %d", n_each[r],
                            r);
        s.take[r] = at;
        s.n_take[r] = n_each[r] * sizeof *all;
    }
    s.base = s.take[c->rank];
    s.base_bytes = s.n_take[c->rank];
    for (int r = 0; r < c->size; r++) {
        s.give[r] = s.base;
        s.n_give[r] = s.base_bytes;
    }
    MXD_TRY(comm_begin(c, &tag, err));
    if (c->size == 1) return MXD_OK;
    mxd_rc rc = comm_swap_run(c, &s, tag, comm_deadline(timeout_ms), err);
    if (!rc) c->exchanges++; /* read by this thread, or when it rests */
    return comm_end(c, rc);
}
