/* loopback.c - transports of one process, joined by a hub.
 *
 * Everything that happens is one event in the hub's queue; one thread takes them in order and calls
 * the sinks. That order is the order of every link, so the transport is as deterministic as its
 * callers.
 *
 *   dial       makes two ends, queues UP for the accepting one, then UP for the dialling one
 *   send       queues MESSAGE for the other end
 *   hangup     marks both ends closed, queues DOWN for both; messages still queued are dropped
 *
 * (1) An end's events are UP, MESSAGE*, DOWN in this order; it is freed by its DOWN.
 * (2) When an end is closed no MESSAGE of the pair can be queued any more, so all of them stand
 *     before both DOWNs: no queued event ever points to a freed end.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include "net/address.h"
#include "net/links.h"
#include "net/transport.h"

enum { DEFAULT_QUEUED_BYTES = 64 << 20, FIRST_PORT = 50000, MESSAGE_COST = 64 };

typedef struct end end;

typedef struct item {
    struct item *next;
    end *to;
    mxd_net_event_kind kind;
    mxd_rc rc;
    uint32_t message;
    mxd_blob *head, *payload;
    size_t bytes;
} item;

typedef struct loopback {
    mxd_transport base;
    mxd_loopback_hub *hub;
    struct loopback *next;
    mxd_net_sink sink;
    void *sink_ctx;
    size_t max_queued_bytes;
    char node[MXD_MAX_NODE_NAME];
    char address[64]; /* "" while it does not listen */
    int n_ends;       /* not yet DOWN */
} loopback;

typedef enum end_state { DIALING, UP, CLOSED } end_state;

struct end {
    mxd_link id;
    loopback *owner;
    end *other; /* NULL once it is gone, or when nobody answered */
    end_state state;
    mxd_lane lane;
    bool accepted;
    char peer[MXD_MAX_NODE_NAME], address[64];
    size_t queued_bytes; /* sent by this end, not yet delivered */
    item up, down;       /* preallocated: a hang-up cannot fail */
};

/* All fields but `al` are guarded by `lock`. */
struct mxd_loopback_hub {
    const mxd_alloc *al;
    pthread_mutex_t lock;
    pthread_cond_t filled, changed;
    pthread_t thread;
    bool stopping;
    item *first, **last;
    loopback *transports;
    mxd_links links;
    int next_port;
};

static void queue_put(mxd_loopback_hub *h, item *it) {
    it->next = NULL;
    *h->last = it;
    h->last = &it->next;
    pthread_cond_signal(&h->filled);
}

static item *queue_take(mxd_loopback_hub *h) {
    while (!h->first && !h->stopping) pthread_cond_wait(&h->filled, &h->lock);
    item *it = h->first;
    if (!it) return NULL;
    h->first = it->next;
    if (!h->first) h->last = &h->first;
    return it;
}

static void close_end(end *e, mxd_rc rc) {
    if (!e || e->state == CLOSED) return;
    e->state = CLOSED;
    e->down.rc = rc;
    queue_put(e->owner->hub, &e->down);
}

/* ---------------------------------------------------------------------------------- delivering */

static void call_sink(mxd_loopback_hub *h, const item *it) {
    const end *e = it->to;
    mxd_net_event ev = {.kind = it->kind,
                        .link = e->id,
                        .lane = e->lane,
                        .accepted = e->accepted,
                        .rc = it->rc,
                        .message = it->message,
                        .head = it->head,
                        .payload = it->payload};
    memcpy(ev.peer, e->peer, sizeof ev.peer);
    memcpy(ev.address, e->address, sizeof ev.address);
    const loopback *t = e->owner;
    pthread_mutex_unlock(&h->lock);
    t->sink(t->sink_ctx, &ev);
    pthread_mutex_lock(&h->lock);
}

static void free_end(mxd_loopback_hub *h, end *e) {
    if (e->other) e->other->other = NULL;
    mxd_links_remove(&h->links, e->id);
    e->owner->n_ends--;
    pthread_cond_broadcast(&h->changed);
    mxd_free(h->al, e);
}

static void deliver(mxd_loopback_hub *h, item *it) {
    end *e = it->to;
    if (it->kind == MXD_NET_UP && e->state == DIALING) e->state = UP;
    if (it->kind != MXD_NET_MESSAGE) {
        call_sink(h, it);
        if (it->kind == MXD_NET_DOWN) free_end(h, e);
        return;
    }
    if (e->other) e->other->queued_bytes -= it->bytes;
    if (e->state == UP) call_sink(h, it);
    mxd_blob_release(it->head);
    mxd_blob_release(it->payload);
    mxd_free(h->al, it);
}

static void *deliver_all(void *arg) {
    mxd_loopback_hub *h = arg;
    pthread_mutex_lock(&h->lock);
    for (item *it; (it = queue_take(h));) deliver(h, it);
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* ------------------------------------------------------------------------------- the operations */

static mxd_rc fail_listen(const char *address, mxd_err *err) {
    return mxd_fail(err, MXD_E_NET,
                    "cannot listen on %s: another transport of this hub does; take another port",
                    address);
}

static mxd_rc loopback_listen(mxd_transport *base, const char *address, int *port, mxd_err *err) {
    loopback *t = (loopback *)base;
    mxd_loopback_hub *h = t->hub;
    char host[MXD_HOST_MAX], text[MXD_HOST_MAX + 16];
    MXD_TRY(mxd_address_split(address, host, port, err));
    if (t->address[0])
        return mxd_fail(err, MXD_E_INVAL, "cannot listen on %s: already listening on %s", address,
                        t->address);
    pthread_mutex_lock(&h->lock);
    if (*port == 0) *port = h->next_port++;
    int n = snprintf(text, sizeof text, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, *port);
    mxd_rc rc =
        (size_t)n < sizeof t->address ? MXD_OK : mxd_fail(err, MXD_E_INVAL, "address too long");
    for (loopback *o = h->transports; o && !rc; o = o->next)
        if (strcmp(o->address, text) == 0) rc = fail_listen(text, err);
    if (!rc) memcpy(t->address, text, (size_t)n + 1);
    pthread_mutex_unlock(&h->lock);
    return rc;
}

static end *new_end(loopback *t, mxd_lane lane, bool accepted, const char *peer,
                    const char *address, mxd_err *err) {
    mxd_loopback_hub *h = t->hub;
    end *e = MXD_NEW(h->al, 1, end);
    if (!e) {
        mxd_fail(err, MXD_E_NOMEM, "no memory for a link to %s", address);
        return NULL;
    }
    e->owner = t;
    e->lane = lane;
    e->accepted = accepted;
    e->up = (item){.to = e, .kind = MXD_NET_UP};
    e->down = (item){.to = e, .kind = MXD_NET_DOWN};
    snprintf(e->peer, sizeof e->peer, "%s", peer);
    snprintf(e->address, sizeof e->address, "%s", address);
    if (mxd_links_add(&h->links, e, &e->id, err)) {
        mxd_free(h->al, e);
        return NULL;
    }
    t->n_ends++;
    return e;
}

static loopback *find_listener(mxd_loopback_hub *h, const char *address) {
    loopback *t = h->transports;
    while (t && strcmp(t->address, address) != 0) t = t->next;
    return t;
}

/* Joins `e` with a new end at `to`, or takes it down with the reason. */
static mxd_rc connect_end(end *e, loopback *to, const char *want, mxd_err *err) {
    mxd_loopback_hub *h = e->owner->hub;
    if (!to || (want && strcmp(want, to->node) != 0)) {
        close_end(e, to ? MXD_E_AUTH : MXD_E_PEER);
        return MXD_OK;
    }
    const loopback *from = e->owner;
    end *o = new_end(to, e->lane, true, from->node, from->address[0] ? from->address : "loopback:0",
                     err);
    if (!o) return err ? err->rc : MXD_E_NOMEM;
    snprintf(e->peer, sizeof e->peer, "%s", to->node);
    e->other = o;
    o->other = e;
    queue_put(h, &o->up);
    queue_put(h, &e->up);
    return MXD_OK;
}

static mxd_rc loopback_dial(mxd_transport *base, const char *address, const char *peer,
                            mxd_lane lane, int64_t timeout_ms, mxd_link *out, mxd_err *err) {
    (void)timeout_ms; /* an answer is immediate here */
    loopback *t = (loopback *)base;
    mxd_loopback_hub *h = t->hub;
    char host[MXD_HOST_MAX];
    int port;
    mxd_err mine;
    MXD_TRY(mxd_address_split(address, host, &port, err));
    pthread_mutex_lock(&h->lock);
    end *e = new_end(t, lane, false, "", address, &mine);
    mxd_rc rc = e ? connect_end(e, find_listener(h, address), peer, &mine) : mine.rc;
    if (e && rc) free_end(h, e);
    if (!rc) *out = e->id;
    pthread_mutex_unlock(&h->lock);
    return rc ? mxd_fail(err, rc, "%s", mine.msg) : MXD_OK;
}

static mxd_rc check_send(const loopback *t, const end *e, size_t bytes, mxd_err *err) {
    if (!e || e->owner != t || e->state != UP)
        return mxd_fail(err, MXD_E_PEER, "the link is not up; dial again");
    if (bytes > t->max_queued_bytes - e->queued_bytes)
        return mxd_fail(err, MXD_E_BUSY, "%zu bytes wait for %s already; send later",
                        e->queued_bytes, e->address);
    return MXD_OK;
}

static mxd_rc loopback_send(mxd_transport *base, mxd_link link, uint32_t message, const void *head,
                            size_t head_bytes, mxd_blob *payload, mxd_err *err) {
    loopback *t = (loopback *)base;
    mxd_loopback_hub *h = t->hub;
    if (payload && payload->len == 0) payload = NULL;
    size_t payload_bytes = payload ? payload->len : 0;
    if (head_bytes > MXD_MAX_FRAME_BYTES || payload_bytes > MXD_MAX_FRAME_BYTES - head_bytes)
        return mxd_fail(err, MXD_E_TOOBIG, "a message of %zu + %zu bytes is over the limit of %d",
                        head_bytes, payload_bytes, MXD_MAX_FRAME_BYTES);
    item *it = MXD_NEW(h->al, 1, item);
    mxd_blob *copy = it ? mxd_blob_new(h->al, head_bytes) : NULL;
    if (!copy) {
        mxd_free(h->al, it);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for a message of %zu bytes", head_bytes);
    }
    if (head_bytes) memcpy(copy->bytes, head, head_bytes);
    pthread_mutex_lock(&h->lock);
    end *e = mxd_links_get(&h->links, link);
    size_t bytes = head_bytes + payload_bytes;
    if (bytes < MESSAGE_COST) bytes = MESSAGE_COST; /* empty messages fill a queue too */
    mxd_rc rc = check_send(t, e, bytes, err);
    if (!rc) {
        *it = (item){.to = e->other,
                     .kind = MXD_NET_MESSAGE,
                     .message = message,
                     .head = copy,
                     .payload = mxd_blob_retain(payload),
                     .bytes = bytes};
        e->queued_bytes += bytes;
        queue_put(h, it);
    }
    pthread_mutex_unlock(&h->lock);
    if (!rc) return MXD_OK;
    mxd_blob_release(copy);
    mxd_free(h->al, it);
    return rc;
}

static void loopback_hangup(mxd_transport *base, mxd_link link) {
    loopback *t = (loopback *)base;
    pthread_mutex_lock(&t->hub->lock);
    end *e = mxd_links_get(&t->hub->links, link);
    if (e && e->owner == t) {
        close_end(e, MXD_E_CANCELED);
        close_end(e->other, MXD_E_PEER);
    }
    pthread_mutex_unlock(&t->hub->lock);
}

static void loopback_close(mxd_transport *base) {
    loopback *t = (loopback *)base;
    mxd_loopback_hub *h = t->hub;
    MXD_ASSERT(!pthread_equal(pthread_self(), h->thread)); /* never from a sink */
    pthread_mutex_lock(&h->lock);
    t->address[0] = '\0'; /* no new links */
    for (size_t i = 0; i < h->links.cap; i++) {
        end *e = h->links.slots[i].id ? h->links.slots[i].item : NULL;
        if (!e || e->owner != t) continue;
        close_end(e, MXD_E_CANCELED);
        close_end(e->other, MXD_E_PEER);
    }
    while (t->n_ends) pthread_cond_wait(&h->changed, &h->lock);
    loopback **at = &h->transports;
    while (*at != t) at = &(*at)->next;
    *at = t->next;
    pthread_mutex_unlock(&h->lock);
    mxd_free(h->al, t);
}

static const mxd_transport_ops loopback_ops = {
    .name = "loopback",
    .close = loopback_close,
    .listen = loopback_listen,
    .dial = loopback_dial,
    .send = loopback_send,
    .hangup = loopback_hangup,
};

/* ------------------------------------------------------------------------------ opening, closing
 */

mxd_rc mxd_loopback_hub_open(mxd_loopback_hub **out, const mxd_alloc *al, mxd_err *err) {
    mxd_loopback_hub *h = MXD_NEW(al, 1, mxd_loopback_hub);
    if (!h) return mxd_fail(err, MXD_E_NOMEM, "no memory for a loopback hub");
    h->al = al;
    h->last = &h->first;
    h->next_port = FIRST_PORT;
    mxd_links_init(&h->links, al);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->filled, NULL);
    pthread_cond_init(&h->changed, NULL);
    if (pthread_create(&h->thread, NULL, deliver_all, h)) {
        pthread_cond_destroy(&h->changed);
        pthread_cond_destroy(&h->filled);
        pthread_mutex_destroy(&h->lock);
        mxd_free(al, h);
        return mxd_fail(err, MXD_E_NOMEM, "no thread for a loopback hub");
    }
    *out = h;
    return MXD_OK;
}

void mxd_loopback_hub_close(mxd_loopback_hub *h) {
    if (!h) return;
    MXD_ASSERT(!h->transports);
    pthread_mutex_lock(&h->lock);
    h->stopping = true;
    pthread_cond_signal(&h->filled);
    pthread_mutex_unlock(&h->lock);
    pthread_join(h->thread, NULL);
    mxd_links_deinit(&h->links);
    pthread_cond_destroy(&h->changed);
    pthread_cond_destroy(&h->filled);
    pthread_mutex_destroy(&h->lock);
    mxd_free(h->al, h);
}

mxd_rc mxd_loopback_open(mxd_transport **out, mxd_loopback_hub *hub, const mxd_transport_opts *opts,
                         const char *node, mxd_err *err) {
    MXD_ASSERT(opts->sink);
    loopback *t = MXD_NEW(hub->al, 1, loopback);
    if (!t) return mxd_fail(err, MXD_E_NOMEM, "no memory for a loopback transport");
    t->base.ops = &loopback_ops;
    t->hub = hub;
    t->sink = opts->sink;
    t->sink_ctx = opts->sink_ctx;
    t->max_queued_bytes = opts->max_queued_bytes ? opts->max_queued_bytes : DEFAULT_QUEUED_BYTES;
    snprintf(t->node, sizeof t->node, "%s", node ? node : "");
    pthread_mutex_lock(&hub->lock);
    t->next = hub->transports;
    hub->transports = t;
    pthread_mutex_unlock(&hub->lock);
    *out = &t->base;
    return MXD_OK;
}
