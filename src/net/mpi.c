/* mpi.c - a transport over MPI, for jobs that mpirun or srun has started.
 *
 * A link is a pair of numbers, one on each side; what passes is packets on one communicator:
 *
 *   DIAL     from the dialler, with its number       ANSWER   the other side's number: both are UP
 *   MESSAGE  head, and the payload if both are small; a longer payload is the next MPI message of
 *            that rank (tag BODY), received straight into its blob
 *   HANGUP   the other side is gone, or does not know this number (any more)
 *
 * Everything that came from one rank is delivered in its order; DOWN of a link hung up here does
 * not wait for a body that its peer has not sent to the end.
 *
 * MPI belongs to the process: it is started once and ended at exit, the communicator and the
 * receive for the next packet live as long, and one transport at a time stands on them. All of it,
 * and every call to MPI, is under one lock (MPI_THREAD_SERIALIZED). MPI cannot sleep until
 * something comes: the own thread looks every millisecond, more often while much comes; threads
 * that wait drive.
 *
 * MPI does not tell of a peer that died: the launcher ends the whole job instead. */
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/cond.h"
#include "net/links.h"
#include "net/transport.h"

enum { TAG_PACKET = 1, TAG_BODY = 2, PACKED = 64 << 10, DRAIN_MS = 300 };
enum {
    GUEST_NS = 1000000,
    IDLE_NS = 1000000,
    NAP_NS = 20000,
    YIELD_NS = 500000,
    QUEUED_BYTES = 64 << 20
};

typedef enum packet_kind { DIAL, ANSWER, MESSAGE, HANGUP } packet_kind;

typedef struct packet {
    uint32_t kind, message, lane, head_bytes;
    uint64_t to, from; /* the receiver's number of the link, the sender's */
    uint64_t payload_bytes;
} packet;

typedef struct outgoing { /* until MPI has taken it */
    struct outgoing *next;
    MPI_Request requests[2];
    int n;
    mxd_link link; /* whose queue it counts for */
    size_t cost;
    mxd_blob *payload;
    packet head; /* the packet's bytes go on behind it */
} outgoing;

typedef struct item { /* an event to be delivered */
    struct item *next;
    mxd_net_event_kind kind;
    mxd_link link;
    int source; /* the rank whose order it keeps; -1: none */
    mxd_rc rc;
    uint32_t message;
    mxd_blob *head, *payload;
    MPI_Request body; /* MPI_REQUEST_NULL: it is here */
} item;

typedef struct mpi_link {
    mxd_link id, remote; /* remote 0: not known yet */
    int peer;
    mxd_lane lane;
    bool accepted, up, closed;
    int64_t deadline_ns; /* of dialling */
    size_t queued_bytes;
    item up_item, down_item; /* a hang-up cannot fail */
} mpi_link;

typedef struct mpi {
    mxd_transport base;
    const mxd_alloc *al;
    mxd_net_sink sink;
    void *sink_ctx;
    size_t max_queued_bytes;
    pthread_t thread;
    pthread_cond_t changed;
    mxd_links links;
    item *first, **last;
    outgoing *sending;
    int64_t guest_until_ns;
    bool turn_taken, closing, stop;
} mpi;

/* What belongs to the process. The lock guards every transport too. */
static struct {
    pthread_mutex_t lock;
    bool ready;
    MPI_Comm comm;
    int rank, size;
    MPI_Request receive;
    unsigned char *packet; /* [PACKED] what it writes to */
    uint64_t generation;   /* of link numbers: none is used twice in a process */
    mpi *open;
} job = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ----------------------------------------------------------------------------------- the process
 */

static void finish_mpi(void) {
    int over = 0;
    MPI_Finalized(&over);
    if (over || job.open) return; /* still in use: the launcher will say so */
    MPI_Cancel(&job.receive);
    MPI_Request_free(&job.receive);
    MPI_Finalize();
}

static void post_receive(void) {
    MPI_Irecv(job.packet, PACKED, MPI_BYTE, MPI_ANY_SOURCE, TAG_PACKET, job.comm, &job.receive);
}

/* Under the lock. Once; what fails may be tried again. */
static mxd_rc start_mpi(mxd_err *err) {
    int running = 0, level = 0;
    if (job.ready) return MXD_OK;
    MPI_Initialized(&running);
    if (running)
        MPI_Query_thread(&level);
    else if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return mxd_fail(err, MXD_E_NET, "MPI does not start; run the program with mpirun");
    if (level < (running ? MPI_THREAD_MULTIPLE : MPI_THREAD_SERIALIZED))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "this MPI allows no calls from several threads; start it with "
                        "MPI_THREAD_MULTIPLE, or leave that to us");
    if (!job.packet) job.packet = mxd_new_bytes(&mxd_alloc_libc, PACKED);
    if (!job.packet) return mxd_fail(err, MXD_E_NOMEM, "MPI: a buffer");
    if (MPI_Comm_dup(MPI_COMM_WORLD, &job.comm) != MPI_SUCCESS)
        return mxd_fail(err, MXD_E_NET, "MPI: no communicator");
    MPI_Comm_set_errhandler(job.comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(job.comm, &job.rank);
    MPI_Comm_size(job.comm, &job.size);
    post_receive();
    if (!running) atexit(finish_mpi);
    job.ready = true;
    return MXD_OK;
}

mxd_rc mxd_mpi_place(int *rank, int *size, mxd_err *err) {
    pthread_mutex_lock(&job.lock);
    mxd_rc rc = start_mpi(err);
    *rank = job.rank;
    *size = job.size;
    pthread_mutex_unlock(&job.lock);
    return rc;
}

/* --------------------------------------------------------------------------------------- sending
 */

static void outgoing_free(mpi *t, outgoing *o) {
    mpi_link *l = mxd_links_get(&t->links, o->link);
    if (l) l->queued_bytes -= o->cost;
    mxd_blob_release(o->payload);
    mxd_free(t->al, o);
}

static void reap(mpi *t) {
    for (outgoing **at = &t->sending, *o; (o = *at);) {
        int done = 0;
        if (MPI_Testall(o->n, o->requests, &done, MPI_STATUSES_IGNORE) == MPI_SUCCESS && !done) {
            at = &o->next;
            continue;
        }
        *at = o->next;
        outgoing_free(t, o);
    }
}

/* The packet p with its head and payload to a rank. False: memory is short. */
static bool post(mpi *t, int peer, const packet *p, const void *head, mxd_blob *payload,
                 mxd_link link, size_t cost) {
    size_t inside = p->head_bytes, all = sizeof *p + inside + (size_t)p->payload_bytes;
    if (all <= PACKED) inside += (size_t)p->payload_bytes;
    outgoing *o = mxd_new_bytes(t->al, sizeof *o + inside);
    if (!o) return false;
    *o = (outgoing){.n = 1, .link = link, .cost = cost, .head = *p};
    unsigned char *behind = (unsigned char *)(o + 1);
    if (p->head_bytes) memcpy(behind, head, p->head_bytes);
    if (inside > p->head_bytes) memcpy(behind + p->head_bytes, payload->bytes, payload->len);
    MPI_Isend(&o->head, (int)(sizeof *p + inside), MPI_BYTE, peer, TAG_PACKET, job.comm,
              &o->requests[0]);
    if (payload && inside == p->head_bytes) {
        o->payload = mxd_blob_retain(payload);
        MPI_Isend(payload->bytes, (int)payload->len, MPI_BYTE, peer, TAG_BODY, job.comm,
                  &o->requests[o->n++]);
    }
    outgoing **end = &t->sending;
    while (*end) end = &(*end)->next;
    *end = o;
    return true;
}

static bool tell(mpi *t, int peer, packet_kind kind, mxd_link to, mxd_link from, mxd_lane lane) {
    const packet p = {.kind = kind, .lane = (uint32_t)lane, .to = to, .from = from};
    return post(t, peer, &p, NULL, NULL, 0, 0);
}

/* ----------------------------------------------------------------------------------------- links
 */

static void queue(mpi *t, item *i) {
    i->next = NULL;
    *t->last = i;
    t->last = &i->next;
    pthread_cond_signal(&t->changed);
}

static mpi_link *new_link(mpi *t, int peer, mxd_lane lane, bool accepted, mxd_err *err) {
    mpi_link *l = MXD_NEW(t->al, 1, mpi_link);
    if (!l) {
        (void)!mxd_fail(err, MXD_E_NOMEM, "no memory for a link to rank %d", peer);
        return NULL;
    }
    *l = (mpi_link){.peer = peer, .lane = lane, .accepted = accepted};
    t->links.generation = job.generation;
    if (mxd_links_add(&t->links, l, &l->id, err)) {
        mxd_free(t->al, l);
        return NULL;
    }
    job.generation = t->links.generation;
    l->up_item =
        (item){.kind = MXD_NET_UP, .link = l->id, .source = peer, .body = MPI_REQUEST_NULL};
    l->down_item =
        (item){.kind = MXD_NET_DOWN, .link = l->id, .source = peer, .body = MPI_REQUEST_NULL};
    return l;
}

static void close_link(mpi *t, mpi_link *l, mxd_rc rc) {
    if (l->closed) return;
    l->closed = true;
    l->down_item.rc = rc;
    if (rc != MXD_E_PEER) {
        l->down_item.source = -1;
        if (l->remote) (void)!tell(t, l->peer, HANGUP, l->remote, l->id, l->lane);
    }
    queue(t, &l->down_item);
}

/* ------------------------------------------------------------------------------------- receiving
 */

/* A body that nobody wants is received into nothing. */
static void skip_body(const packet *p, int source) {
    if (sizeof *p + p->head_bytes + p->payload_bytes <= PACKED) return;
    MPI_Request r;
    MPI_Irecv(NULL, 0, MPI_BYTE, source, TAG_BODY, job.comm, &r);
    MPI_Request_free(&r);
}

static mxd_rc take_message(mpi *t, const packet *p, const unsigned char *bytes, int source) {
    item *i = MXD_NEW(t->al, 1, item);
    mxd_blob *head = i ? mxd_blob_raw(t->al, p->head_bytes) : NULL;
    mxd_blob *payload =
        head && p->payload_bytes ? mxd_blob_raw(t->al, (size_t)p->payload_bytes) : NULL;
    if (!head || (p->payload_bytes && !payload)) {
        mxd_blob_release(head);
        mxd_free(t->al, i);
        skip_body(p, source);
        return MXD_E_NOMEM;
    }
    *i = (item){.kind = MXD_NET_MESSAGE,
                .link = p->to,
                .source = source,
                .message = p->message,
                .head = head,
                .payload = payload,
                .body = MPI_REQUEST_NULL};
    if (p->head_bytes) memcpy(head->bytes, bytes, p->head_bytes);
    if (sizeof *p + p->head_bytes + p->payload_bytes > PACKED)
        MPI_Irecv(payload->bytes, (int)p->payload_bytes, MPI_BYTE, source, TAG_BODY, job.comm,
                  &i->body);
    else if (payload)
        memcpy(payload->bytes, bytes + p->head_bytes, payload->len);
    queue(t, i);
    return MXD_OK;
}

/* The lengths agree with each other and with our limits. */
static bool sound(const packet *p, size_t bytes) {
    if (bytes < sizeof *p || p->kind > HANGUP || p->lane >= MXD_LANE_COUNT ||
        p->head_bytes > MXD_MAX_FRAME_BYTES ||
        p->payload_bytes > MXD_MAX_FRAME_BYTES - p->head_bytes)
        return false;
    size_t inside = p->head_bytes;
    if (sizeof *p + inside + p->payload_bytes <= PACKED) inside += (size_t)p->payload_bytes;
    return bytes == sizeof *p + inside;
}

static void on_packet(mpi *t, const packet *p, const unsigned char *bytes, int source) {
    mpi_link *l = p->kind == DIAL ? NULL : mxd_links_get(&t->links, p->to);
    if (l && (l->peer != source || l->closed || (l->remote && l->remote != p->from))) l = NULL;
    if (p->kind == DIAL) {
        l = new_link(t, source, (mxd_lane)p->lane, true, NULL);
        if (!l) return; /* the dialler's deadline tells it */
        l->remote = p->from;
        l->up = tell(t, source, ANSWER, l->remote, l->id, l->lane);
        queue(t, &l->up_item);
        if (!l->up) close_link(t, l, MXD_E_NOMEM);
    } else if (p->kind == MESSAGE) {
        if (!l)
            skip_body(p, source);
        else if (take_message(t, p, bytes, source))
            close_link(t, l, MXD_E_NOMEM);
    } else if (p->kind == HANGUP) {
        if (l) close_link(t, l, MXD_E_PEER);
    } else if (l && !l->up) {
        l->remote = p->from;
        l->up = true;
        queue(t, &l->up_item);
    } else if (!l) {
        (void)!tell(t, source, HANGUP, p->from, p->to, (mxd_lane)p->lane);
    }
}

/* True: a packet has come. */
static bool receive(mpi *t) {
    int done = 0, n = 0;
    MPI_Status st;
    packet p;
    MPI_Test(&job.receive, &done, &st);
    if (!done) return false;
    MPI_Get_count(&st, MPI_BYTE, &n);
    memcpy(&p, job.packet, n < (int)sizeof p ? 0 : sizeof p);
    if (n >= (int)sizeof p && sound(&p, (size_t)n))
        on_packet(t, &p, job.packet + sizeof p, st.MPI_SOURCE);
    post_receive();
    return true;
}

static void expire(mpi *t, int64_t now_ns) {
    for (size_t i = 0; i < t->links.cap; i++) {
        mpi_link *l = t->links.slots[i].id ? t->links.slots[i].item : NULL;
        if (l && !l->up && !l->closed && now_ns >= l->deadline_ns) close_link(t, l, MXD_E_TIMEOUT);
    }
}

/* ------------------------------------------------------------------------------------ delivering
 */

/* The first event that may go: none of its source's before it waits for a body. */
static item *take_ready(mpi *t) {
    int waiting = -1; /* one such source is enough to know: the rest is looked at the next time */
    for (item **at = &t->first, *i; (i = *at); at = &i->next) {
        int done = 1;
        if (i->body != MPI_REQUEST_NULL) MPI_Test(&i->body, &done, MPI_STATUS_IGNORE);
        if (!done && waiting >= 0 && i->source != waiting) return NULL;
        if (!done) waiting = i->source;
        if (i->source >= 0 && i->source == waiting) continue;
        *at = i->next;
        if (!i->next) t->last = at;
        return i;
    }
    return NULL;
}

/* The lock is given up while the sink runs. */
static void deliver(mpi *t, item *i) {
    mpi_link *l = mxd_links_get(&t->links, i->link);
    bool wanted = l && (i->kind == MXD_NET_DOWN || !l->closed);
    if (wanted) {
        mxd_net_event ev = {.kind = i->kind,
                            .link = i->link,
                            .lane = l->lane,
                            .accepted = l->accepted,
                            .rc = i->rc,
                            .message = i->message,
                            .head = i->head,
                            .payload = i->payload};
        snprintf(ev.address, sizeof ev.address, "mpi:%d", l->peer);
        pthread_mutex_unlock(&job.lock);
        t->sink(t->sink_ctx, &ev);
        pthread_mutex_lock(&job.lock);
    }
    if (i->kind == MXD_NET_MESSAGE) {
        mxd_blob_release(i->head);
        mxd_blob_release(i->payload);
        mxd_free(t->al, i);
    } else if (i->kind == MXD_NET_DOWN) {
        item **up = &t->first; /* an UP that nobody was told of goes with it */
        while (*up && *up != &l->up_item) up = &(*up)->next;
        if (*up && !(*up = l->up_item.next)) t->last = up;
        mxd_links_remove(&t->links, l->id);
        mxd_free(t->al, l);
        pthread_cond_broadcast(&t->changed);
    }
}

/* Whose turn it is: one look. True: something was delivered. The lock is held, and given up. */
static bool look(mpi *t) {
    reap(t);
    while (receive(t)) continue;
    item *i = take_ready(t);
    if (i) deliver(t, i);
    return i != NULL;
}

static void *run_host(void *arg) {
    mpi *t = arg;
    int64_t nap = NAP_NS;
    pthread_mutex_lock(&job.lock);
    while (!t->stop) {
        int64_t now = mxd_now_ns();
        bool moved = false;
        expire(t, now);
        if (!t->turn_taken && now >= t->guest_until_ns) {
            t->turn_taken = true;
            moved = look(t);
            t->turn_taken = false;
        }
        nap = moved ? NAP_NS : nap < IDLE_NS ? 2 * nap : IDLE_NS;
        if (!moved) mxd_cond_wait(&t->changed, &job.lock, nap);
    }
    pthread_mutex_unlock(&job.lock);
    return NULL;
}

/* --------------------------------------------------------------------------------- the operations
 */

/* Nothing wakes a sleeper when a packet comes, so the first part of a wait only yields. */
static void pause_a_little(mpi *t, bool early) {
    if (!early) {
        mxd_cond_wait(&t->changed, &job.lock, NAP_NS);
        return;
    }
    pthread_mutex_unlock(&job.lock);
    sched_yield();
    pthread_mutex_lock(&job.lock);
}

static bool mpi_drive(mxd_transport *base, int64_t ns) {
    mpi *t = (mpi *)base;
    int64_t until = mxd_now_ns() + ns;
    pthread_mutex_lock(&job.lock);
    bool ours = !t->turn_taken, more = ours;
    if (ours) t->turn_taken = true;
    while (more) {
        int64_t now = mxd_now_ns();
        t->guest_until_ns = now + GUEST_NS;
        more = !look(t) && now < until;
        if (more) pause_a_little(t, now < until - ns + YIELD_NS);
    }
    if (ours) t->turn_taken = false;
    pthread_mutex_unlock(&job.lock);
    return ours;
}

static void mpi_rest(mxd_transport *base) {
    mpi *t = (mpi *)base;
    pthread_mutex_lock(&job.lock);
    t->guest_until_ns = 0;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&job.lock);
}

static mxd_rc rank_of(const char *address, int *rank, mxd_err *err) {
    char *end = NULL;
    long r = strncmp(address, "mpi:", 4) == 0 ? strtol(address + 4, &end, 10) : -1;
    if (!end || *end || end == address + 4 || r < 0 || r >= job.size)
        return mxd_fail(err, MXD_E_INVAL,
                        "'%.60s' is not a rank of this job, \"mpi:0\" to \"mpi:%d\"", address,
                        job.size - 1);
    *rank = (int)r;
    return MXD_OK;
}

static mxd_rc mpi_listen(mxd_transport *base, const char *address, int *port, mxd_err *err) {
    (void)base; /* a rank always listens */
    int rank;
    MXD_TRY(rank_of(address, &rank, err));
    *port = 0;
    if (rank == job.rank) return MXD_OK;
    return mxd_fail(err, MXD_E_NET, "cannot listen as rank %d: this is rank %d", rank, job.rank);
}

static mxd_rc mpi_dial(mxd_transport *base, const char *address, const char *peer, mxd_lane lane,
                       int64_t timeout_ms, mxd_link *out, mxd_err *err) {
    (void)peer; /* the launcher answers for the ranks of its job */
    mpi *t = (mpi *)base;
    int rank;
    MXD_TRY(rank_of(address, &rank, err));
    pthread_mutex_lock(&job.lock);
    mxd_rc rc = t->closing ? mxd_fail(err, MXD_E_SHUTDOWN, "the transport is closing") : MXD_OK;
    mpi_link *l = rc ? NULL : new_link(t, rank, lane, false, err);
    if (!rc && !l) rc = err ? err->rc : MXD_E_NOMEM;
    if (l) {
        l->deadline_ns = mxd_now_ns() + timeout_ms * 1000000;
        *out = l->id;
        if (!tell(t, rank, DIAL, 0, l->id, lane)) close_link(t, l, MXD_E_NOMEM);
    }
    pthread_mutex_unlock(&job.lock);
    return rc;
}

static mxd_rc mpi_send(mxd_transport *base, mxd_link link, uint32_t message, const void *head,
                       size_t head_bytes, mxd_blob *payload, mxd_err *err) {
    mpi *t = (mpi *)base;
    if (payload && payload->len == 0) payload = NULL;
    size_t more = payload ? payload->len : 0;
    if (head_bytes > MXD_MAX_FRAME_BYTES || more > MXD_MAX_FRAME_BYTES - head_bytes ||
        sizeof(packet) + head_bytes > PACKED)
        return mxd_fail(err, MXD_E_TOOBIG, "a message of %zu + %zu bytes is over the limit of %d",
                        head_bytes, more, MXD_MAX_FRAME_BYTES);
    size_t cost = head_bytes + more < 64 ? 64 : head_bytes + more;
    pthread_mutex_lock(&job.lock);
    mpi_link *l = mxd_links_get(&t->links, link);
    mxd_rc rc = MXD_OK;
    if (!l || !l->up || l->closed)
        rc = mxd_fail(err, MXD_E_PEER, "the link is not up; dial again");
    else if (cost > t->max_queued_bytes - l->queued_bytes)
        rc = mxd_fail(err, MXD_E_BUSY, "%zu bytes wait for rank %d already; send later",
                      l->queued_bytes, l->peer);
    if (!rc) {
        const packet p = {.kind = MESSAGE,
                          .message = message,
                          .lane = (uint32_t)l->lane,
                          .head_bytes = (uint32_t)head_bytes,
                          .to = l->remote,
                          .from = l->id,
                          .payload_bytes = more};
        l->queued_bytes += cost;
        if (!post(t, l->peer, &p, head, payload, link, cost)) {
            l->queued_bytes -= cost;
            rc = mxd_fail(err, MXD_E_NOMEM, "no memory to send to rank %d", l->peer);
        }
        reap(t);
    }
    pthread_mutex_unlock(&job.lock);
    return rc;
}

static void mpi_hangup(mxd_transport *base, mxd_link link) {
    mpi *t = (mpi *)base;
    pthread_mutex_lock(&job.lock);
    mpi_link *l = mxd_links_get(&t->links, link);
    if (l) close_link(t, l, MXD_E_CANCELED);
    pthread_mutex_unlock(&job.lock);
}

/* What MPI still holds after a while is left to it: a peer that does not take it may never. */
static void mpi_close(mxd_transport *base) {
    mpi *t = (mpi *)base;
    pthread_mutex_lock(&job.lock);
    t->closing = true;
    t->guest_until_ns = 0;
    for (size_t i = 0; i < t->links.cap; i++)
        if (t->links.slots[i].id) close_link(t, t->links.slots[i].item, MXD_E_CANCELED);
    pthread_cond_broadcast(&t->changed);
    while (t->links.n) mxd_cond_wait(&t->changed, &job.lock, IDLE_NS);
    int64_t until = mxd_now_ms() + DRAIN_MS;
    while (t->sending && mxd_now_ms() < until) mxd_cond_wait(&t->changed, &job.lock, IDLE_NS);
    t->stop = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&job.lock);
    pthread_join(t->thread, NULL);
    for (item *i; (i = t->first);) {
        t->first = i->next;
        if (i->body != MPI_REQUEST_NULL) continue; /* MPI may still write to it: kept */
        mxd_blob_release(i->head);
        mxd_blob_release(i->payload);
        mxd_free(t->al, i);
    }
    pthread_mutex_lock(&job.lock);
    job.open = NULL;
    pthread_mutex_unlock(&job.lock);
    mxd_links_deinit(&t->links);
    pthread_cond_destroy(&t->changed);
    mxd_free(t->al, t);
}

static const mxd_transport_ops mpi_ops = {
    .name = "mpi",
    .close = mpi_close,
    .listen = mpi_listen,
    .dial = mpi_dial,
    .send = mpi_send,
    .hangup = mpi_hangup,
    .drive = mpi_drive,
    .rest = mpi_rest,
};

static mxd_rc open_locked(mpi *t, mxd_err *err) {
    MXD_TRY(start_mpi(err));
    if (job.open)
        return mxd_fail(err, MXD_E_BUSY,
                        "this process has a transport over MPI already; close it first");
    if (pthread_create(&t->thread, NULL, run_host, t) != 0)
        return mxd_fail(err, MXD_E_NOMEM, "no thread for a transport");
    job.open = t;
    return MXD_OK;
}

mxd_rc mxd_mpi_open(mxd_transport **out, const mxd_transport_opts *o, mxd_err *err) {
    MXD_ASSERT(o->al && o->sink);
    mpi *t = MXD_NEW(o->al, 1, mpi);
    if (!t) return mxd_fail(err, MXD_E_NOMEM, "no memory for a transport");
    t->base.ops = &mpi_ops;
    t->al = o->al;
    t->sink = o->sink;
    t->sink_ctx = o->sink_ctx;
    t->max_queued_bytes = o->max_queued_bytes ? o->max_queued_bytes : QUEUED_BYTES;
    t->last = &t->first;
    mxd_cond_init(&t->changed);
    mxd_links_init(&t->links, t->al);
    pthread_mutex_lock(&job.lock);
    mxd_rc rc = open_locked(t, err);
    pthread_mutex_unlock(&job.lock);
    if (rc) {
        pthread_cond_destroy(&t->changed);
        mxd_free(t->al, t);
        return rc;
    }
    *out = &t->base;
    return MXD_OK;
}
