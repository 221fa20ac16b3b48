/* grpc.c - the transport: open and close, the loop, deadlines. The parts: grpc_private.h. */
#include <openssl/crypto.h>
#include <sched.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "base/cond.h"
#include "net/grpc_private.h"
#include "net/tls.h"

/* ------------------------------------------------------------------------------------- the loop */

bool mxd_grpc_enter(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    t->calling = !t->muted;
    bool wanted = t->calling;
    pthread_mutex_unlock(&t->lock);
    return wanted;
}

void mxd_grpc_leave(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    t->calling = false;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
}

void mxd_grpc_emit(mxd_grpc *t, const mxd_net_event *ev) {
    if (!mxd_grpc_enter(t)) return;
    t->sink(t->sink_ctx, ev);
    mxd_grpc_leave(t);
}

bool mxd_grpc_hold(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    bool open = !t->closing;
    if (open) t->n_objects++;
    pthread_mutex_unlock(&t->lock);
    return open;
}

void mxd_grpc_drop(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    t->n_objects--;
    bool last = t->abandoned && t->n_objects == 0;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    if (last) grpc_completion_queue_shutdown(t->cq); /* the loop then frees the transport */
}

void mxd_grpc_deadline(mxd_grpc *t, int64_t at_ns) {
    int64_t now = atomic_load(&t->next_deadline_ns);
    while (at_ns < now && !atomic_compare_exchange_weak(&t->next_deadline_ns, &now, at_ns)) {}
}

static void expire(mxd_grpc *t, int64_t now_ns) {
    if (now_ns < atomic_load(&t->next_deadline_ns)) return;
    atomic_store(&t->next_deadline_ns, INT64_MAX); /* before the look: a new one comes on top */
    mxd_grpc_deadline(t, mxd_grpc_links_expire(t, now_ns));
    mxd_grpc_deadline(t, mxd_grpc_server_expire(t, now_ns));
}

static gpr_timespec wait_until(int64_t deadline_ns, int64_t now_ns) {
    if (deadline_ns == INT64_MAX) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    int64_t ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(ns, GPR_TIMESPAN));
}

static bool guests_want(const mxd_grpc *t, int64_t now_ns) {
    return now_ns < atomic_load(&t->guest_until_ns);
}

/* The next completion: polls for spin_us, then sleeps until there is one or a deadline passes. */
static grpc_event next_event(mxd_grpc *t) {
    int64_t now = mxd_now_ns();
    expire(t, now);
    int64_t spin_until = now + (int64_t)t->spin_us * 1000;
    while (t->spin_us > 0 && now < spin_until && !guests_want(t, now)) {
        /* a deadline in the past makes the queue look once and return */
        grpc_event e = grpc_completion_queue_next(t->cq, gpr_inf_past(GPR_CLOCK_MONOTONIC), NULL);
        if (e.type != GRPC_QUEUE_TIMEOUT) return e;
        sched_yield(); /* whom the last message woke may want this very core */
        now = mxd_now_ns();
    }
    gpr_timespec until = wait_until(atomic_load(&t->next_deadline_ns), now);
    return grpc_completion_queue_next(t->cq, until, NULL);
}

static void handle(grpc_event e) {
    if (e.type != GRPC_OP_COMPLETE) return;
    mxd_grpc_tag *tag = e.tag;
    MXD_GRPC_TAKEN(tag);
    tag->done(tag->owner, e.success != 0);
}

/* The host's turn begins when no guest has wanted it for a while. */
static void take_turn(mxd_grpc *t) {
    for (;;) {
        int64_t left = atomic_load(&t->guest_until_ns) - mxd_now_ns();
        int nobody = MXD_GRPC_NOBODY;
        if (left <= 0 && atomic_compare_exchange_strong(&t->turn, &nobody, MXD_GRPC_HOST)) return;
        pthread_mutex_lock(&t->lock);
        if (!t->closing) mxd_cond_wait(&t->resting, &t->lock, left > 0 ? left : MXD_GRPC_GUEST_NS);
        pthread_mutex_unlock(&t->lock);
    }
}

static void on_bell(void *owner, bool ok) {
    (void)ok;
    atomic_store(&((mxd_grpc *)owner)->rung, false);
}

/* The host, which may be asleep, shall leave the turn. */
static void ring_bell(mxd_grpc *t) {
    if (atomic_exchange(&t->rung, true)) return;
    MXD_GRPC_GIVEN(&t->bell_tag);
    grpc_call_error e = grpc_call_start_batch(t->bell, NULL, 0, &t->bell_tag, NULL);
    MXD_ASSERT(e == GRPC_CALL_OK);
}

static bool grpc_drive(mxd_transport *base, int64_t ns) {
    mxd_grpc *t = (mxd_grpc *)base;
    int nobody = MXD_GRPC_NOBODY;
    int64_t now = mxd_now_ns();
    atomic_store(&t->guest_until_ns, now + ns + MXD_GRPC_GUEST_NS);
    if (!atomic_compare_exchange_strong(&t->turn, &nobody, MXD_GRPC_GUEST)) {
        if (nobody == MXD_GRPC_HOST) ring_bell(t);
        return false;
    }
    expire(t, now);
    int64_t deadline = atomic_load(&t->next_deadline_ns);
    gpr_timespec until = gpr_inf_past(GPR_CLOCK_MONOTONIC);
    if (ns > 0) until = wait_until(deadline < now + ns ? deadline : now + ns, now);
    if (ns > 0 || ++t->looks > MXD_GRPC_LOOKS) mxd_grpc_links_receive(t);
    handle(grpc_completion_queue_next(t->cq, until, NULL));
    if (ns > 0) atomic_store(&t->guest_until_ns, mxd_now_ns() + MXD_GRPC_GUEST_NS);
    atomic_store(&t->turn, MXD_GRPC_NOBODY);
    return true;
}

static void grpc_rest(mxd_transport *base) {
    mxd_grpc *t = (mxd_grpc *)base;
    atomic_store(&t->guest_until_ns, 0);
    pthread_mutex_lock(&t->lock);
    pthread_cond_signal(&t->resting);
    pthread_mutex_unlock(&t->lock);
}

static void free_transport(mxd_grpc *t) {
    const mxd_alloc *al = t->al;
    if (t->bell) grpc_call_unref(t->bell);
    if (t->lame) grpc_channel_destroy(t->lame);
    if (t->cq) grpc_completion_queue_destroy(t->cq);
    if (t->cq) grpc_shutdown();
    mxd_links_deinit(&t->links);
    pthread_cond_destroy(&t->changed);
    pthread_cond_destroy(&t->resting);
    pthread_mutex_destroy(&t->lock);
    pthread_mutex_destroy(&t->identity_lock);
    mxd_free(al, t->ca);
    mxd_free(al, t->cert);
    if (t->key) OPENSSL_cleanse(t->key, strlen(t->key));
    mxd_free(al, t->key);
    mxd_free(al, t);
}

static void *run_loop(void *arg) {
    mxd_grpc *t = arg;
    for (;;) {
        take_turn(t);
        mxd_grpc_links_receive(t);
        grpc_event e = next_event(t);
        if (e.type == GRPC_QUEUE_SHUTDOWN) break;
        handle(e);
        atomic_store(&t->turn, MXD_GRPC_NOBODY);
    }
    if (t->abandoned) free_transport(t);
    return NULL;
}

/* --------------------------------------------------------------------------------- the operations
 */

static mxd_rc grpc_listen(mxd_transport *base, const char *address, int *port, mxd_err *err) {
    return mxd_grpc_server_open((mxd_grpc *)base, address, port, err);
}

static mxd_rc grpc_dial(mxd_transport *base, const char *address, const char *peer, mxd_lane lane,
                        int64_t timeout_ms, mxd_link *out, mxd_err *err) {
    return mxd_grpc_link_dial((mxd_grpc *)base, address, peer, lane, timeout_ms, out, err);
}

static mxd_rc grpc_send(mxd_transport *base, mxd_link link, uint32_t message, const void *head,
                        size_t head_bytes, mxd_blob *payload, mxd_err *err) {
    return mxd_grpc_link_send((mxd_grpc *)base, link, message, head, head_bytes, payload, err);
}

static void grpc_hangup(mxd_transport *base, mxd_link link) {
    mxd_grpc_link_hangup((mxd_grpc *)base, link, MXD_E_CANCELED);
}

/* Waits for every DOWN and for callbacks that run: neither depends on a peer. Then a little for
 * what gRPC still holds; a frozen peer can make it hold a send for long, and then the loop goes on
 * without us. True: all is back, the caller frees. */
static bool drain(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    while (t->links.n || t->calling) mxd_cond_wait(&t->changed, &t->lock, 1000000000);
    int64_t until = mxd_now_ms() + MXD_GRPC_DRAIN_MS;
    for (int64_t left = MXD_GRPC_DRAIN_MS; t->n_objects && left > 0; left = until - mxd_now_ms())
        mxd_cond_wait(&t->changed, &t->lock, left * 1000000);
    t->muted = true;
    /* an enrolment may have begun meanwhile */
    while (t->calling) mxd_cond_wait(&t->changed, &t->lock, 1000000000);
    bool all_back = t->n_objects == 0;
    if (!all_back) {
        pthread_detach(t->thread);
        t->abandoned = true;
    }
    pthread_mutex_unlock(&t->lock);
    return all_back;
}

static void grpc_close(mxd_transport *base) {
    mxd_grpc *t = (mxd_grpc *)base;
    MXD_ASSERT(!pthread_equal(pthread_self(), t->thread)); /* never from a sink */
    pthread_mutex_lock(&t->lock);
    t->closing = true;
    mxd_grpc_server *server = t->server;
    t->server = NULL;
    atomic_store(&t->guest_until_ns, 0);
    pthread_cond_signal(&t->resting);
    pthread_mutex_unlock(&t->lock);
    mxd_grpc_links_hangup_all(t);
    if (server) mxd_grpc_server_stop(server);
    if (!drain(t)) return;
    grpc_completion_queue_shutdown(t->cq);
    pthread_join(t->thread, NULL);
    free_transport(t);
}

static const mxd_transport_ops grpc_ops = {
    .name = "grpc",
    .close = grpc_close,
    .listen = grpc_listen,
    .dial = grpc_dial,
    .send = grpc_send,
    .hangup = grpc_hangup,
    .drive = grpc_drive,
    .rest = grpc_rest,
};

/* ---------------------------------------------------------------------------------------- opening
 */

/* The certificate is sent with the CA's behind it, so that a newcomer can compare the CA's
 * fingerprint with its token. */
static mxd_rc set_identity(mxd_grpc *t, const mxd_identity *id, mxd_err *err) {
    MXD_TRY(mxd_identity_check(id->ca, id->cert, id->key, NULL, err));
    mxd_buf chain;
    mxd_buf_init(&chain, t->al, 4 * MXD_PEM_MAX);
    mxd_buf_puts(&chain, id->cert);
    if (!strstr(id->cert, id->ca)) mxd_buf_printf(&chain, "\n%s", id->ca);
    char *key = mxd_strdup(t->al, id->key);
    char *cert = chain.rc ? NULL : mxd_strdup(t->al, mxd_buf_str(&chain));
    mxd_buf_deinit(&chain);
    bool ok = key && cert;
    if (ok) {
        pthread_mutex_lock(&t->identity_lock);
        char *old_key = t->key, *old_cert = t->cert;
        t->key = key;
        t->cert = cert;
        t->n_identities++;
        pthread_mutex_unlock(&t->identity_lock);
        key = old_key;
        cert = old_cert;
    }
    if (key) OPENSSL_cleanse(key, strlen(key));
    mxd_free(t->al, key);
    mxd_free(t->al, cert);
    return ok ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory for an identity");
}

static mxd_rc first_identity(mxd_grpc *t, const mxd_identity *id, mxd_err *err) {
    if (!id->ca && !id->cert && !id->key) return MXD_OK;
    MXD_TRY(set_identity(t, id, err));
    t->secure = true;
    t->ca = mxd_strdup(t->al, id->ca);
    return t->ca ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory for an identity");
}

mxd_rc mxd_grpc_renew(mxd_transport *base, const mxd_identity *id, mxd_err *err) {
    mxd_grpc *t = (mxd_grpc *)base;
    if (base->ops != &grpc_ops || !t->secure || strcmp(t->ca, id->ca) != 0)
        return mxd_fail(err, MXD_E_AUTH, "this transport has no identity of that CA to renew");
    return set_identity(t, id, err);
}

mxd_rc mxd_grpc_open(mxd_transport **out, const mxd_transport_opts *o, mxd_err *err) {
    MXD_ASSERT(o->al && o->sink);
    mxd_grpc *t = MXD_NEW(o->al, 1, mxd_grpc);
    if (!t) return mxd_fail(err, MXD_E_NOMEM, "no memory for a transport");
    t->base.ops = &grpc_ops;
    t->al = o->al;
    t->sink = o->sink;
    t->sink_ctx = o->sink_ctx;
    t->enroll = o->enroll;
    t->enroll_ctx = o->enroll_ctx;
    t->spin_us = o->spin_us;
    t->max_queued_bytes = o->max_queued_bytes ? o->max_queued_bytes : MXD_GRPC_QUEUED_BYTES;
    atomic_init(&t->next_deadline_ns, INT64_MAX);
    mxd_links_init(&t->links, t->al);
    pthread_mutex_init(&t->lock, NULL);
    mxd_cond_init(&t->changed);
    mxd_cond_init(&t->resting);
    pthread_mutex_init(&t->identity_lock, NULL);
    mxd_rc rc = first_identity(t, &o->identity, err);
    if (rc) {
        free_transport(t);
        return rc;
    }
    mxd_grpc_environment();
    grpc_init();
    t->cq = grpc_completion_queue_create_for_next(NULL);
    t->lame = grpc_lame_client_channel_create("bell", GRPC_STATUS_UNAVAILABLE, "");
    t->bell = grpc_channel_create_call(t->lame, NULL, GRPC_PROPAGATE_DEFAULTS, t->cq,
                                       grpc_slice_from_static_string("/bell"), NULL,
                                       gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    t->bell_tag = (mxd_grpc_tag){on_bell, t};
    if (pthread_create(&t->thread, NULL, run_loop, t)) {
        grpc_completion_queue_shutdown(t->cq);
        free_transport(t);
        return mxd_fail(err, MXD_E_NOMEM, "no thread for a transport");
    }
    *out = &t->base;
    return MXD_OK;
}
