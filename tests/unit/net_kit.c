#include "net_kit.h"

#include <stdio.h>
#include "base/clock.h"
#include "test.h"

#if defined(__SANITIZE_THREAD__)
/* Libraries that were not built for ThreadSanitizer look like races to it, and so do the few places
 * of ours that read what gRPC has written. */
const char *__tsan_default_suppressions(void);
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(void) {
    return "called_from_lib:libgrpc.so\ncalled_from_lib:libgpr.so\n"
           "called_from_lib:libcrypto.so\ncalled_from_lib:libssl.so\n"
           "race:libgrpc.so\nrace:libcrypto.so\nrace:libssl.so\nrace:libabsl\nrace:libupb\n"
           "race:mxd_grpc_call_peer\nrace:has_property\nrace:get_bytes\nrace:get_varint\n"
           "race:on_request\nrace:give_out\nmutex:libgrpc.so\ndeadlock:libgrpc.so\n";
}
#endif

void kit_open(net_world *w, net_kind kind) {
    mxd_err err = {0};
    *w = (net_world){.kind = kind};
    if (kind == NET_LOOPBACK) CHECK_OK(mxd_loopback_hub_open(&w->hub, &mxd_alloc_libc, &err), &err);
    if (kind == NET_TLS) CHECK_OK(mxd_ca_new(&mxd_alloc_libc, "test", &w->ca, &err), &err);
}

void kit_close(net_world *w) {
    mxd_loopback_hub_close(w->hub);
    mxd_pem_free(&mxd_alloc_libc, &w->ca);
    for (int i = 0; i < w->n_issued; i++) mxd_pem_free(&mxd_alloc_libc, &w->issued[i]);
}

mxd_identity kit_identity(net_world *w, const char *name) {
    mxd_err err = {0};
    if (w->kind != NET_TLS) return (mxd_identity){0};
    CHECK(w->n_issued < KIT_IDENTITIES);
    mxd_pem *p = &w->issued[w->n_issued++];
    CHECK_OK(mxd_ca_issue(&mxd_alloc_libc, &w->ca, name, p, &err), &err);
    return (mxd_identity){w->ca.cert, p->cert, p->key};
}

void kit_node_init(net_node *n) {
    memset(n, 0, sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_cond_init(&n->changed, &attr);
    pthread_condattr_destroy(&attr);
}

void kit_sink(void *ctx, const mxd_net_event *ev) {
    net_node *n = ctx;
    pthread_mutex_lock(&n->lock);
    void (*on_message)(net_node *, const mxd_net_event *) = n->on_message;
    pthread_mutex_unlock(&n->lock);
    if (ev->kind == MXD_NET_MESSAGE && on_message) on_message(n, ev);
    pthread_mutex_lock(&n->lock);
    if (ev->kind == MXD_NET_MESSAGE) {
        n->n_messages++;
        n->n_bytes += ev->head->len + (ev->payload ? ev->payload->len : 0);
        n->last_head_bytes = ev->head->len;
        n->last_message = ev->message;
        n->last_at_ns = mxd_now_ns();
        mxd_blob_release(n->keep);
        n->keep = mxd_blob_retain(ev->payload);
    } else if (n->n_events < KIT_EVENTS) {
        n->events[n->n_events++] = *ev;
    }
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->lock);
}

static mxd_rc open_transport(net_world *w, net_node *n, const char *name,
                             const mxd_transport_opts *opts, mxd_err *err) {
    if (w->kind == NET_LOOPBACK) return mxd_loopback_open(&n->t, w->hub, opts, name, err);
    return mxd_grpc_open(&n->t, opts, err);
}

void kit_raw(net_world *w, net_node *n, const char *name, const mxd_transport_opts *o) {
    mxd_err err = {0};
    CHECK_OK(open_transport(w, n, name, o, &err), &err);
}

void kit_node(net_world *w, net_node *n, const char *name, const mxd_transport_opts *opts) {
    mxd_err err = {0};
    kit_node_init(n);
    mxd_transport_opts o = opts ? *opts : (mxd_transport_opts){0};
    if (!o.al) o.al = &mxd_alloc_libc;
    o.sink = kit_sink;
    o.sink_ctx = n;
    o.identity = kit_identity(w, name);
    CHECK_OK(open_transport(w, n, name, &o, &err), &err);
    CHECK_OK(n->t->ops->listen(n->t, "127.0.0.1:0", &n->port, &err), &err);
    snprintf(n->address, sizeof n->address, "127.0.0.1:%d", n->port);
}

void kit_node_close(net_node *n) {
    if (n->t) n->t->ops->close(n->t);
    mxd_blob_release(n->keep);
    pthread_cond_destroy(&n->changed);
    pthread_mutex_destroy(&n->lock);
    memset(n, 0, sizeof *n);
}

static void wait_some(net_node *n) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_nsec += 100000000;
    ts.tv_sec += ts.tv_nsec / 1000000000;
    ts.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&n->changed, &n->lock, &ts);
}

static int find(const net_node *n, mxd_net_event_kind kind, mxd_link link, int nth) {
    for (int i = 0; i < n->n_events; i++) {
        const mxd_net_event *e = &n->events[i];
        bool match = link ? e->link == link : e->accepted;
        if (e->kind == kind && match && nth-- == 0) return i;
    }
    return -1;
}

static mxd_net_event await_event(net_node *n, mxd_net_event_kind kind, mxd_link link, int nth) {
    int64_t until = mxd_now_ms() + KIT_WAIT_MS;
    pthread_mutex_lock(&n->lock);
    int i;
    while ((i = find(n, kind, link, nth)) < 0 && mxd_now_ms() < until) wait_some(n);
    mxd_net_event ev = i < 0 ? (mxd_net_event){0} : n->events[i];
    pthread_mutex_unlock(&n->lock);
    if (i < 0)
        fail_msg("no %s of link %llu in time", kind == MXD_NET_UP ? "UP" : "DOWN",
                 (unsigned long long)link);
    return ev;
}

mxd_link kit_accepted(net_node *n, int nth) { return await_event(n, MXD_NET_UP, 0, nth).link; }
void kit_up(net_node *n, mxd_link link) { await_event(n, MXD_NET_UP, link, 0); }
mxd_rc kit_down(net_node *n, mxd_link link) { return await_event(n, MXD_NET_DOWN, link, 0).rc; }

bool kit_has(net_node *n, mxd_net_event_kind kind, mxd_link link, mxd_net_event *out) {
    pthread_mutex_lock(&n->lock);
    int i = find(n, kind, link, 0);
    if (i >= 0 && out) *out = n->events[i];
    pthread_mutex_unlock(&n->lock);
    return i >= 0;
}

int kit_count(net_node *n, mxd_net_event_kind kind, mxd_link link) {
    int count = 0;
    pthread_mutex_lock(&n->lock);
    while (find(n, kind, link, count) >= 0) count++;
    pthread_mutex_unlock(&n->lock);
    return count;
}

void kit_messages(net_node *n, uint64_t count) {
    int64_t until = mxd_now_ms() + 3 * KIT_WAIT_MS;
    pthread_mutex_lock(&n->lock);
    while (n->n_messages < count && mxd_now_ms() < until) wait_some(n);
    uint64_t got = n->n_messages;
    pthread_mutex_unlock(&n->lock);
    CHECK_EQ(got, count);
}

void kit_on(net_node *n, void (*on_message)(net_node *, const mxd_net_event *), void *ctx) {
    pthread_mutex_lock(&n->lock);
    n->on_message = on_message;
    n->ctx = ctx;
    pthread_mutex_unlock(&n->lock);
}

mxd_blob *kit_last(net_node *n, uint32_t *message, size_t *head_bytes, uint64_t *n_bad) {
    pthread_mutex_lock(&n->lock);
    mxd_blob *b = mxd_blob_retain(n->keep);
    if (message) *message = n->last_message;
    if (head_bytes) *head_bytes = n->last_head_bytes;
    if (n_bad) *n_bad = n->n_bad;
    pthread_mutex_unlock(&n->lock);
    return b;
}

void kit_join(net_node *a, net_node *b, mxd_lane lane, mxd_link *ab, mxd_link *ba) {
    mxd_err err = {0};
    int before = kit_count(b, MXD_NET_UP, 0);
    CHECK_OK(a->t->ops->dial(a->t, b->address, NULL, lane, KIT_WAIT_MS, ab, &err), &err);
    kit_up(a, *ab);
    *ba = kit_accepted(b, before);
}

static unsigned char pattern(size_t i, unsigned seed) {
    return (unsigned char)((i * 131 + seed * 31) ^ (i >> 8));
}

mxd_blob *kit_blob(size_t bytes, unsigned seed) {
    mxd_blob *b = mxd_blob_new(&mxd_alloc_libc, bytes);
    CHECK(b);
    for (size_t i = 0; i < bytes; i++) b->bytes[i] = pattern(i, seed);
    return b;
}

bool kit_blob_is(const mxd_blob *b, size_t bytes, unsigned seed) {
    if (!b || b->len != bytes) return false;
    for (size_t i = 0; i < bytes; i++)
        if (b->bytes[i] != pattern(i, seed)) return false;
    return true;
}
