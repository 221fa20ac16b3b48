/* comm_shm.c - the stream of frames through shared memory: how two ranks of one host agree on it,
 * and how frames pass.
 *
 *   hellos with the same host -> PENDING: the lower rank makes the object and sends its name; the
 *   higher one maps it and repeats the name -> BOTH; an empty name from either -> NONE.
 *
 * Frames that are still on the link when the ring begins have lower numbers; the reader leaves the
 * ring alone until they have come. The link remains the sign of life: when it goes down, what lies
 * in the ring is taken, the ring is dropped, and the next hello says what must be sent again.
 * Acknowledgements are a word in the shared memory: no message is needed for them. */
#include "net/comm_private.h"

#include <string.h>

#include "base/log.h"
#include "comm.pb-c.h"

enum { HEAD_MAX = 64, SLEEP_NS = 20000000, SLEEP_MANY_NS = 500000 };

static mxd_rc tell_name(mxd_comm *c, const comm_peer *p, char *name) {
    MlxDistributed__V1__CommRing m;
    mlx_distributed__v1__comm_ring__init(&m);
    m.name = name;
    uint8_t head[HEAD_MAX];
    MXD_ASSERT(mlx_distributed__v1__comm_ring__get_packed_size(&m) <= sizeof head);
    size_t n = mlx_distributed__v1__comm_ring__pack(&m, head);
    return c->t->ops->send(c->t, p->link, COMM_RING, head, n, NULL, NULL);
}

void comm_shm_offer(mxd_comm *c, comm_peer *p, const char *host) {
    char name[RING_NAME] = "";
    mxd_err err = {0};
    if (!c->host[0] || strcmp(host, c->host) != 0) return;
    p->ring_pending = true;
    if (c->rank > p->rank) return;
    if (comm_ring_make(&p->ring, name, c->al, &err)) {
        mxd_log(MXD_LOG_INFO, "comm_no_shared_memory", "peer=%d why=\"%s\"", p->rank, err.msg);
        name[0] = '\0';
        p->ring_pending = false;
    }
    (void)!tell_name(c, p, name); /* a dead link says so by itself */
}

bool comm_shm_answer(mxd_comm *c, comm_peer *p, const char *name) {
    mxd_err err = {0};
    char said[RING_NAME] = "";
    if (!p->ring_pending) return !name[0];
    p->ring_pending = false;
    if (c->rank < p->rank) { /* the other side has mapped ours, or could not */
        comm_ring_unlink(p->ring);
        if (name[0])
            p->ring_out = true;
        else
            comm_shm_drop(c, p);
        return true;
    }
    if (name[0] && comm_ring_map(&p->ring, name, c->al, &err))
        mxd_log(MXD_LOG_INFO, "comm_no_shared_memory", "peer=%d why=\"%s\"", p->rank, err.msg);
    if (p->ring) memcpy(said, name, strlen(name) + 1); /* map has checked its length */
    if (name[0] && tell_name(c, p, said)) return false;
    p->ring_out = p->ring != NULL;
    return true;
}

bool comm_shm_put(comm_peer *p, const comm_out *o) {
    const ring_frame f = {.seq = o->seq,
                          .total = o->total,
                          .offset = o->offset,
                          .tag = o->tag,
                          .bytes = (uint32_t)o->bytes};
    return comm_ring_put(p->ring, &f, o->piece ? o->piece->bytes : NULL);
}

bool comm_shm_lend(comm_peer *p, comm_out *o, const void *bytes) {
    const ring_frame f = {.seq = p->next_seq,
                          .total = o->total,
                          .offset = o->offset,
                          .tag = o->tag,
                          .bytes = (uint32_t)o->bytes};
    uint64_t at = comm_ring_at(p->ring);
    if (!comm_ring_put(p->ring, &f, bytes)) return false;
    o->lent = true;
    o->ring_at = at;
    return true;
}

/* What lies in the ring only, and was not taken out of it, becomes pieces. */
static void redeem(mxd_comm *c, comm_peer *p) {
    for (comm_out *o = p->out; o; o = o->next) {
        if (!o->lent) continue;
        mxd_blob *b = mxd_blob_raw(c->al, o->bytes);
        if (!b) {
            comm_lose(c, p, MXD_E_NOMEM, "memory is short for what it has not received");
            return;
        }
        o->lent = !comm_ring_again(p->ring, o->ring_at, b->bytes, o->bytes);
        if (!o->lent) o->piece = mxd_blob_retain(b);
        mxd_blob_release(b);
    }
}

/* One frame out of the ring; false: none that follows. */
static bool take(mxd_comm *c, comm_peer *p) {
    ring_frame f;
    ring_next next = comm_ring_peek(p->ring, &f);
    if (next == RING_EMPTY) return false;
    if (next == RING_BROKEN) {
        comm_lose(c, p, MXD_E_FORMAT, "what it wrote into shared memory makes no sense");
        return false;
    }
    if (f.seq > p->received + 1) return false; /* those before it are still on the link */
    unsigned char *to = comm_into_room(p, &f);
    if (to) {
        comm_ring_take(p->ring, &f, to);
        comm_into_took(c, p, &f);
        return true;
    }
    mxd_blob *b = f.bytes ? mxd_blob_raw(c->al, f.bytes) : NULL;
    if (f.bytes && !b) {
        comm_lose(c, p, MXD_E_NOMEM, "memory is short for what it sent");
        return false;
    }
    comm_ring_take(p->ring, &f, b ? b->bytes : NULL);
    comm_add(c, p, &f, b);
    mxd_blob_release(b);
    return !p->lost;
}

static bool poll_peer(mxd_comm *c, comm_peer *p) {
    uint64_t told = comm_ring_told(p->ring);
    bool moved = false;
    if (p->ring_out && told > p->acked) {
        if (!comm_forget(c, p, told)) {
            comm_lose(c, p, MXD_E_FORMAT, "it claims frames that were never sent");
            return true;
        }
        moved = true;
    }
    while (!p->lost && p->unread_bytes <= MXD_COMM_WINDOW && take(c, p)) moved = true;
    const comm_out *before = p->unsent;
    comm_pump(c, p);
    return moved || p->lost || p->unsent != before;
}

bool comm_shm_poll(mxd_comm *c) {
    bool moved = false;
    for (int r = 0; r < c->size; r++)
        if (c->peers[r].ring && c->peers[r].up && !c->peers[r].lost)
            moved = poll_peer(c, &c->peers[r]) || moved;
    if (moved) comm_signal(c);
    return moved;
}

bool comm_shm_any(const mxd_comm *c) {
    for (int r = 0; r < c->size; r++)
        if (c->peers[r].ring) return true;
    return false;
}

void comm_shm_drop(mxd_comm *c, comm_peer *p) {
    if (p->ring && p->up && !p->lost)
        while (take(c, p)) continue;
    if (p->ring) redeem(c, p);
    comm_ring *ring = p->ring;
    p->ring = NULL;
    p->ring_pending = p->ring_out = false;
    if (!ring) return;
    comm_ring_wake(ring);
    comm_ring_release(ring);
}

void comm_shm_wait(mxd_comm *c, comm_peer *p, ring_mark m, int64_t ns) {
    int64_t most = c->size > 2 ? SLEEP_MANY_NS : SLEEP_NS; /* other rings are looked into again */
    comm_ring *ring = comm_ring_retain(p->ring);
    pthread_mutex_unlock(&c->lock);
    comm_ring_wait(ring, m, c->spin_us, ns < most ? ns : most);
    comm_ring_release(ring);
    pthread_mutex_lock(&c->lock);
}
