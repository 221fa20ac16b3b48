/* comm.c - the life of a group: opening, dialling, waiting, giving up; send and receive. */
#include "net/comm_private.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/rand.h"

enum { CONNECT_MS = 30000, RECONNECT_MS = 10000, DIAL_MS = 3000, CLOSE_MS = 1000 };
enum { DIRECT_MAX = 256 << 10 };
enum { TURN_NS = 50000, RETRY_NS = 100000 };
enum { POLL_NS = 1000000 }; /* rings that no sleeper sleeps on are looked into this often */

/* ------------------------------------------------------------------------------------- waiting */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t comm_deadline(int64_t timeout_ms) {
    return timeout_ms < 0 ? INT64_MAX : mxd_now_ns() + timeout_ms * 1000000;
}

/* In the place of the transport's own thread, if that is possible just now: polls for spin_us,
 * then sleeps a little. False: others have the turn. The lock is given up. */
static bool drive(mxd_comm *c, int64_t most_ns) {
    unsigned seen = atomic_load(&c->news);
    int64_t until = mxd_now_ns() + least((int64_t)c->spin_us * 1000, most_ns);
    pthread_mutex_unlock(&c->lock);
    while (atomic_load(&c->news) == seen && mxd_now_ns() < until) {
        (void)c->t->ops->drive(c->t, 0);
        if (atomic_load(&c->news) == seen) sched_yield(); /* who sends may want this very core */
    }
    bool done = false; /* the own thread needs a moment to leave its turn to us */
    for (int64_t give_up = until + TURN_NS; atomic_load(&c->news) == seen && !done;) {
        done = c->t->ops->drive(c->t, least(POLL_NS, most_ns));
        if (!done && mxd_now_ns() >= give_up) break;
        if (!done) sched_yield();
    }
    pthread_mutex_lock(&c->lock);
    return done || atomic_load(&c->news) != seen;
}

/* Polls for news from the transport's thread; gives up the lock meanwhile. True: there are some. */
static bool spin(mxd_comm *c, int64_t most_ns) {
    unsigned seen = atomic_load(&c->news);
    int64_t until = mxd_now_ns() + least((int64_t)c->spin_us * 1000, most_ns);
    pthread_mutex_unlock(&c->lock);
    while (atomic_load(&c->news) == seen && mxd_now_ns() < until)
        sched_yield(); /* that thread may want this very core */
    pthread_mutex_lock(&c->lock);
    return atomic_load(&c->news) != seen;
}

bool comm_wait(mxd_comm *c, comm_peer *p, int64_t deadline_ns) {
    comm_ring *ring = p && p->ring_out ? p->ring : NULL;
    ring_mark m = ring ? comm_ring_mark(ring) : (ring_mark){0};
    bool moved = comm_shm_poll(c);
    int64_t now = mxd_now_ns();
    if (now >= deadline_ns) return false;
    if (moved) return true;
    int64_t left = deadline_ns - now;
    if (ring && p->ring == ring)
        comm_shm_wait(c, p, m, left);
    else if (c->drives) { /* if not now, soon: the own thread leaves the turn to us, and rests */
        if (!drive(c, left)) mxd_cond_wait(&c->changed, &c->lock, least(left, RETRY_NS));
    } else if (c->spin_us <= 0 || !spin(c, left))
        mxd_cond_wait(&c->changed, &c->lock, least(left, comm_shm_any(c) ? POLL_NS : 1000000000));
    return true;
}

bool comm_wait_for(mxd_comm *c, comm_peer *p, int64_t deadline_ns) {
    int64_t start = mxd_now_ns();
    atomic_store_explicit(&c->waits_for, p->rank, memory_order_relaxed);
    bool more = comm_wait(c, p, deadline_ns);
    atomic_store_explicit(&c->waits_for, -1, memory_order_relaxed);
    c->waited_ns += mxd_now_ns() - start;
    return more;
}

mxd_rc comm_canceled(const mxd_comm *c, mxd_err *err) {
    return mxd_fail(err, MXD_E_CANCELED, "group '%s' was given up; open another", c->group);
}

mxd_rc comm_late(const char *what, int peer, mxd_err *err) {
    return mxd_fail(err, MXD_E_TIMEOUT, "%s rank %d: the deadline passed", what, peer);
}

mxd_rc comm_peer_rc(const comm_peer *p, mxd_err *err) {
    return mxd_fail(err, p->lost == MXD_E_AUTH ? MXD_E_AUTH : MXD_E_PEER,
                    "rank %d is lost: %s; open the group again", p->rank, p->why);
}

/* ------------------------------------------------------------------------------------- dialling */

/* The higher rank dials the lower one. */
static bool must_dial(const mxd_comm *c, const comm_peer *p, int64_t now) {
    return p->rank < c->rank && !p->link && !p->lost && now >= p->redial_ms;
}

/* Under the lock, so that the link has its number before its events are looked at. */
static void dial(mxd_comm *c, comm_peer *p) {
    mxd_link link = 0;
    const char *node = c->nodes[p->rank][0] ? c->nodes[p->rank] : NULL;
    p->redial_ms = mxd_now_ms() + COMM_REDIAL_MOST_MS;
    mxd_rc rc =
        c->t->ops->dial(c->t, c->addresses[p->rank], node, MXD_LANE_GROUP, DIAL_MS, &link, NULL);
    if (!rc) p->link = link;
}

/* When the service must look again for p's sake, from now, ns. */
static int64_t until_dial(const mxd_comm *c, const comm_peer *p) {
    if (p->rank >= c->rank || p->link || p->lost) return INT64_MAX;
    int64_t ms = p->redial_ms - mxd_now_ms();
    return ms > 0 ? ms * 1000000 : 1;
}

/* Dials what is away and gives up what is away too long. */
static void *serve(void *arg) {
    mxd_comm *c = arg;
    pthread_mutex_lock(&c->lock);
    while (!c->closing) {
        int64_t now = mxd_now_ms();
        for (int r = 0; r < c->size; r++) {
            comm_peer *p = &c->peers[r];
            if (r == c->rank) continue;
            if (must_dial(c, p, now)) dial(c, p);
            bool known = p->incarnation != 0; /* before that, open counts the time */
            if (known && p->away_since && now - p->away_since > c->reconnect_ms)
                comm_lose(c, p, MXD_E_PEER, "it has been away too long");
            comm_ack(c, p, true);
        }
        int64_t tick = comm_shm_poll(c) ? POLL_NS : (int64_t)COMM_TICK_MS * 1000000;
        for (int r = 0; r < c->rank; r++) tick = least(tick, until_dial(c, &c->peers[r]));
        mxd_cond_wait(&c->tick, &c->lock, tick);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* -------------------------------------------------------------------------------------- opening */

static mxd_rc check(const mxd_comm_opts *o, mxd_err *err) {
    if (!o->group || strlen(o->group) > 63)
        return mxd_fail(err, MXD_E_INVAL, "a group needs a name of at most 63 bytes");
    if (o->size < 1 || o->size > MXD_COMM_MAX_RANKS || o->rank < 0 || o->rank >= o->size)
        return mxd_fail(err, MXD_E_INVAL, "rank %d of %d: at most %d ranks, counted from 0",
                        o->rank, o->size, MXD_COMM_MAX_RANKS);
    for (int i = 0; i < o->size; i++)
        if (!o->addresses || !o->addresses[i] || strlen(o->addresses[i]) > 127 ||
            (o->nodes && strlen(o->nodes[i]) >= MXD_MAX_NODE_NAME))
            return mxd_fail(err, MXD_E_INVAL, "rank %d has no address, or one that is too long", i);
    if (!o->transport && !o->hub && !o->mpi && !o->identity.ca && !o->insecure)
        return mxd_fail(
            err, MXD_E_INVAL,
            "group '%s': no certificate; take one from the cluster's CA, or say that it "
            "may be insecure",
            o->group);
    return MXD_OK;
}

static void own_sink(void *ctx, const mxd_net_event *ev) { mxd_comm_event(ctx, ev); }

static mxd_rc open_transport(mxd_comm *c, const mxd_comm_opts *o, mxd_err *err) {
    c->t = o->transport;
    c->drives = c->t && o->drives_transport && c->t->ops->drive;
    if (c->t) return MXD_OK;
    const mxd_transport_opts to = {.al = c->al,
                                   .identity = o->identity,
                                   .sink = own_sink,
                                   .sink_ctx = c,
                                   .spin_us = o->spin_us};
    if (o->hub)
        MXD_TRY(mxd_loopback_open(&c->t, o->hub, &to, o->addresses[o->rank], err));
    else if (o->mpi)
        MXD_TRY(mxd_mpi_open(&c->t, &to, err));
    else
        MXD_TRY(mxd_grpc_open(&c->t, &to, err));
    c->owns_transport = true;
    c->drives = c->t->ops->drive != NULL;
    int port;
    return c->t->ops->listen(c->t, c->addresses[c->rank], &port, err);
}

static mxd_rc missing(const mxd_comm *c, int64_t waited_ms, mxd_err *err) {
    char list[200] = "";
    size_t used = 0;
    for (int r = 0; r < c->size && used < sizeof list - 40; r++)
        if (r != c->rank && !c->peers[r].up)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%d", used ? ", " : "", r);
    return mxd_fail(err, MXD_E_TIMEOUT,
                    "group '%s': ranks %s did not come within %lld ms: are they started, with the "
                    "same addresses?",
                    c->group, list, (long long)waited_ms);
}

/* Until every peer is up. */
static mxd_rc gather_ranks(mxd_comm *c, int64_t deadline, int64_t timeout_ms, mxd_err *err) {
    mxd_rc rc = MXD_OK;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size && !rc; r++) {
        if (r == c->rank) continue;
        while (!rc && !c->aborted && (!c->peers[r].up || c->peers[r].ring_pending)) {
            if (c->peers[r].lost)
                rc = comm_peer_rc(&c->peers[r], err);
            else if (!comm_wait_for(c, &c->peers[r], deadline))
                rc = missing(c, timeout_ms, err);
        }
    }
    if (c->aborted) rc = comm_canceled(c, err);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static mxd_rc take_opts(mxd_comm *c, const mxd_comm_opts *o, mxd_err *err) {
    snprintf(c->group, sizeof c->group, "%s", o->group);
    c->rank = o->rank;
    c->size = o->size;
    c->connect_ms = o->connect_ms > 0 ? o->connect_ms : CONNECT_MS;
    c->reconnect_ms = o->reconnect_ms > 0 ? o->reconnect_ms : RECONNECT_MS;
    c->spin_us = o->spin_us;
    c->measures = !o->no_measure;
    if (!o->hub && !o->no_shared_memory) comm_ring_host(c->host);
    c->incarnation = mxd_rand_u64((uint64_t)mxd_now_ns(), (uint64_t)o->rank, 1) | 1;
    c->direct_max = SIZE_MAX;
    if (o->no_measure && o->size > 2) c->direct_max = o->direct_max ? o->direct_max : DIRECT_MAX;
    atomic_init(&c->waits_for, -1);
    size_t n = (size_t)c->size;
    c->peers = MXD_NEW(c->al, n, comm_peer);
    c->addresses = mxd_new(c->al, n, sizeof *c->addresses);
    c->nodes = mxd_new(c->al, n, sizeof *c->nodes);
    if (!c->peers || !c->addresses || !c->nodes)
        return mxd_fail(err, MXD_E_NOMEM, "group '%s'", o->group);
    for (int r = 0; r < c->size; r++) {
        comm_peer_init(&c->peers[r], r, mxd_now_ms());
        snprintf(c->addresses[r], sizeof c->addresses[r], "%s", o->addresses[r]);
        snprintf(c->nodes[r], sizeof c->nodes[r], "%s", o->nodes ? o->nodes[r] : "");
    }
    return MXD_OK;
}

static mxd_rc start(mxd_comm *c, const mxd_comm_opts *o, mxd_err *err) {
    MXD_TRY(take_opts(c, o, err));
    MXD_TRY(open_transport(c, o, err));
    if (pthread_create(&c->service, NULL, serve, c) != 0)
        return mxd_fail(err, MXD_E_NOMEM, "group '%s': no thread", c->group);
    c->service_runs = true;
    return MXD_OK;
}

static mxd_rc new_comm(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts,
                       mxd_err *err) {
    MXD_TRY(check(opts, err));
    mxd_comm *c = MXD_NEW(al, 1, mxd_comm);
    if (!c) return mxd_fail(err, MXD_E_NOMEM, "group '%s'", opts->group);
    c->al = al;
    pthread_mutex_init(&c->lock, NULL);
    mxd_cond_init(&c->changed);
    mxd_cond_init(&c->tick);
    mxd_rc rc = start(c, opts, err);
    if (rc) {
        mxd_comm_close(c);
        return rc;
    }
    *out = c;
    return MXD_OK;
}

mxd_rc mxd_comm_new(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts, mxd_err *err) {
    if (!opts->mpi) return new_comm(out, al, opts, err);
    char text[MXD_COMM_MAX_RANKS][16];
    const char *addresses[MXD_COMM_MAX_RANKS];
    mxd_comm_opts o = *opts;
    MXD_TRY(mxd_mpi_place(&o.rank, &o.size, err));
    for (int r = 0; r < MXD_COMM_MAX_RANKS; r++) {
        snprintf(text[r], sizeof text[r], "mpi:%d", r);
        addresses[r] = text[r];
    }
    o.addresses = addresses;
    o.nodes = NULL;
    return new_comm(out, al, &o, err);
}

mxd_rc mxd_comm_join(mxd_comm *c, int64_t timeout_ms, mxd_err *err) {
    int64_t deadline = comm_deadline(timeout_ms);
    MXD_TRY(gather_ranks(c, deadline, timeout_ms, err));
    return c->measures ? comm_measure(c, deadline, err) : MXD_OK;
}

mxd_rc mxd_comm_open(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts, mxd_err *err) {
    mxd_comm *c;
    MXD_TRY(mxd_comm_new(&c, al, opts, err));
    mxd_rc rc = mxd_comm_join(c, c->connect_ms, err);
    if (rc)
        mxd_comm_close(c);
    else
        *out = c;
    return rc;
}

void mxd_comm_rest(mxd_comm *c) {
    if (c->drives) c->t->ops->rest(c->t);
}

void mxd_comm_abort(mxd_comm *c) {
    pthread_mutex_lock(&c->lock);
    c->aborted = true;
    comm_signal(c);
    pthread_mutex_unlock(&c->lock);
}

/* The lock is held. Until nothing is on its way to p any more, or it is no use to wait. */
static mxd_rc flush(mxd_comm *c, comm_peer *p, int64_t deadline, mxd_err *err) {
    comm_ack(c, p, true); /* it may be waiting for that */
    for (;;) {
        if (c->aborted) return comm_canceled(c, err);
        if (!p->out || !p->up) return MXD_OK;
        if (!comm_wait_for(c, p, deadline)) return comm_late("sending to", p->rank, err);
    }
}

mxd_rc mxd_comm_flush(mxd_comm *c, int64_t timeout_ms, mxd_err *err) {
    int64_t deadline = comm_deadline(timeout_ms);
    mxd_rc rc = MXD_OK;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size && !rc; r++)
        if (r != c->rank) rc = flush(c, &c->peers[r], deadline, err);
    pthread_mutex_unlock(&c->lock);
    return rc;
}

void mxd_comm_close(mxd_comm *c) {
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    int64_t deadline = comm_deadline(CLOSE_MS);
    for (int r = 0; r < c->size && c->service_runs && c->owns_transport; r++)
        if (r != c->rank) (void)!flush(c, &c->peers[r], deadline, NULL);
    c->closing = true;
    pthread_cond_signal(&c->tick);
    pthread_mutex_unlock(&c->lock);
    if (c->service_runs) pthread_join(c->service, NULL);
    if (c->owns_transport) c->t->ops->close(c->t);
    for (int r = 0; c->peers && r < c->size; r++) {
        if (!c->owns_transport && c->peers[r].link) c->t->ops->hangup(c->t, c->peers[r].link);
        comm_peer_deinit(c, &c->peers[r]);
    }
    for (comm_out *o = c->spare; o; o = c->spare) {
        c->spare = o->next;
        mxd_free(c->al, o);
    }
    pthread_cond_destroy(&c->changed);
    pthread_cond_destroy(&c->tick);
    pthread_mutex_destroy(&c->lock);
    mxd_free(c->al, c->scratch);
    mxd_free(c->al, c->peers);
    mxd_free(c->al, c->addresses);
    mxd_free(c->al, c->nodes);
    mxd_free(c->al, c);
}

int mxd_comm_rank(const mxd_comm *c) { return c->rank; }
int mxd_comm_size(const mxd_comm *c) { return c->size; }
int mxd_comm_waits_for(const mxd_comm *c) {
    return atomic_load_explicit(&c->waits_for, memory_order_relaxed);
}

int mxd_comm_lost(mxd_comm *c) {
    int lost = -1;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size && lost < 0; r++)
        if (c->peers[r].lost) lost = r;
    pthread_mutex_unlock(&c->lock);
    return lost;
}

void mxd_comm_stats_get(mxd_comm *c, mxd_comm_stats *out) {
    int rings = 0;
    pthread_mutex_lock(&c->lock);
    for (int r = 0; r < c->size; r++) rings += c->peers[r].ring_out ? 1 : 0;
    *out = (mxd_comm_stats){.latency_us = c->latency_us,
                            .bandwidth_bytes_per_s = c->bandwidth,
                            .direct_max_bytes = c->direct_max,
                            .shared_memory_peers = rings,
                            .reconnects = c->reconnects,
                            .resent_frames = c->resent,
                            .exchanges = c->exchanges,
                            .waited_ns = c->waited_ns};
    pthread_mutex_unlock(&c->lock);
}

void mxd_comm_cut(mxd_comm *c, int peer) {
    if (peer < 0 || peer >= c->size || peer == c->rank) return;
    pthread_mutex_lock(&c->lock);
    mxd_link link = c->peers[peer].link;
    pthread_mutex_unlock(&c->lock);
    if (link) c->t->ops->hangup(c->t, link);
}

/* ------------------------------------------------------------------------------ point to point */

static mxd_rc check_call(const mxd_comm *c, int peer, uint32_t tag, size_t n, mxd_err *err) {
    if (peer < 0 || peer >= c->size || peer == c->rank)
        return mxd_fail(err, MXD_E_INVAL, "rank %d of %d cannot send to or hear from rank %d",
                        c->rank, c->size, peer);
    if (n > MXD_COMM_MAX_MESSAGE)
        return mxd_fail(err, MXD_E_TOOBIG, "a message of %zu bytes: at most %d", n,
                        MXD_COMM_MAX_MESSAGE);
    if (tag > MXD_COMM_MAX_TAG)
        return mxd_fail(err, MXD_E_INVAL, "tag %u: at most %d", tag, MXD_COMM_MAX_TAG);
    return MXD_OK;
}

/* One frame behind the others; the window has room, or the deadline passes. */
static mxd_rc post_piece(mxd_comm *c, comm_peer *p, comm_out *o, int64_t deadline, mxd_err *err) {
    mxd_rc rc = MXD_OK;
    pthread_mutex_lock(&c->lock);
    while (!rc && !p->lost && !c->aborted && p->out && p->out_bytes + o->bytes > MXD_COMM_WINDOW)
        if (!comm_wait_for(c, p, deadline)) rc = comm_late("sending to", p->rank, err);
    if (c->aborted) rc = comm_canceled(c, err);
    if (!rc && p->lost) rc = comm_peer_rc(p, err);
    if (!rc) {
        comm_queue(p, o);
        if (!p->unsent) p->unsent = o;
        comm_pump(c, p);
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

mxd_rc comm_post(mxd_comm *c, int peer, uint32_t tag, mxd_blob *data, int64_t deadline,
                 mxd_err *err) {
    size_t total = data ? data->len : 0, at = 0;
    do {
        size_t n = total - at < MXD_COMM_PIECE ? total - at : MXD_COMM_PIECE;
        comm_out *o = MXD_NEW(c->al, 1, comm_out);
        if (!o) return mxd_fail(err, MXD_E_NOMEM, "a frame to rank %d", peer);
        *o = (comm_out){.tag = tag, .total = total, .offset = at, .bytes = n};
        if (n) o->piece = n == total ? mxd_blob_retain(data) : mxd_blob_view(c->al, data, at, n);
        mxd_rc rc = n && !o->piece ? mxd_fail(err, MXD_E_NOMEM, "a frame to rank %d", peer)
                                   : post_piece(c, &c->peers[peer], o, deadline, err);
        if (rc) {
            mxd_blob_release(o->piece);
            mxd_free(c->al, o);
            return rc;
        }
        at += n;
    } while (at < total);
    return MXD_OK;
}

mxd_rc mxd_comm_send_blob(mxd_comm *c, int peer, uint32_t tag, mxd_blob *data, int64_t timeout_ms,
                          mxd_err *err) {
    MXD_TRY(check_call(c, peer, tag, data->len, err));
    return comm_post(c, peer, tag, data, comm_deadline(timeout_ms), err);
}

mxd_rc mxd_comm_send(mxd_comm *c, int peer, uint32_t tag, const void *data, size_t n,
                     int64_t timeout_ms, mxd_err *err) {
    MXD_TRY(check_call(c, peer, tag, n, err));
    mxd_blob *b = mxd_blob_raw(c->al, n);
    if (!b) return mxd_fail(err, MXD_E_NOMEM, "%zu bytes to rank %d", n, peer);
    if (n) memcpy(b->bytes, data, n);
    mxd_rc rc = comm_post(c, peer, tag, b, comm_deadline(timeout_ms), err);
    mxd_blob_release(b);
    return rc;
}

mxd_rc comm_await(mxd_comm *c, int peer, uint32_t tag, int64_t deadline, comm_in **out,
                  mxd_err *err) {
    comm_peer *p = &c->peers[peer];
    comm_shm_poll(c);
    for (;;) {
        if (c->aborted) return comm_canceled(c, err);
        if ((*out = comm_find(p, tag))) return MXD_OK; /* what has come is good, lost or not */
        if (p->lost) return comm_peer_rc(p, err);
        if (!comm_wait_for(c, p, deadline)) return comm_late("waiting for", peer, err);
    }
}

mxd_rc mxd_comm_recv(mxd_comm *c, int peer, uint32_t tag, void *data, size_t cap, size_t *n,
                     int64_t timeout_ms, mxd_err *err) {
    MXD_TRY(check_call(c, peer, tag, 0, err));
    comm_in *m;
    *n = 0;
    pthread_mutex_lock(&c->lock);
    mxd_rc rc = comm_await(c, peer, tag, comm_deadline(timeout_ms), &m, err);
    if (!rc) *n = (size_t)m->total;
    if (!rc && m->total > cap)
        rc = mxd_fail(err, MXD_E_TOOBIG, "a message of %zu bytes from rank %d, room for %zu", *n,
                      peer, cap);
    if (!rc) {
        unsigned char *to = data;
        for (int i = 0; i < m->n_parts; i++) {
            mxd_blob *b = m->parts[i];
            if (b) memcpy(to, b->bytes, b->len);
            to += b ? b->len : 0;
        }
        comm_take(c, &c->peers[peer], m);
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}
