#include "cluster/coordinator.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/proc.h"
#include "cluster/coord_private.h"
#include "cluster/places.h"
#include "cluster/worker_echo.h"

enum {
    DEFAULT_CTX = 4096,
    DEFAULT_PARALLEL = 4,
    DEFAULT_ROWS = 256,
    STOP_WAIT_MS = 1200,        /* local workers get so long to end by themselves */
    FRAME_HEAD_ROOM = 64 << 10, /* of a frame, for everything but hidden states and biases */
};

/* -------------------------------------------------------------------------- the control thread */

/* Actions are borrowed from the core until its next step, so an event that comes up while they are
 * carried out waits its turn. Only events without pointers do: EXITED and NEIGHBOUR_DOWN. */
static void put_off(mxd_cluster *c, const mxd_coord_event *ev) {
    for (int i = 0; i < c->n_later; i++) /* the same news once is enough */
        if (ev->kind == MXD_COORD_NEIGHBOUR_DOWN && c->later[i].kind == ev->kind &&
            c->later[i].neighbour.epoch == ev->neighbour.epoch)
            return;
    MXD_ASSERT(c->n_later < MXD_COORD_LATER);
    c->later[c->n_later++] = *ev;
}

void mxd_coord_give(mxd_cluster *c, mxd_coord_event *ev) {
    if (c->busy) {
        put_off(c, ev);
        return;
    }
    c->busy = true;
    mxd_coord_event next = *ev;
    for (int done = 0;; done++) {
        mxd_coord_actions out;
        next.now_ms = mxd_now_ms();
        mxd_coord_step(c->core, &next, &out);
        mxd_coord_journal_step(c, &out);
        for (int i = 0; i < out.n; i++) mxd_coord_act(c, &out.list[i]);
        if (done == c->n_later) break;
        next = c->later[done];
    }
    c->n_later = 0;
    c->busy = false;
}

/* A node whose messages make no sense is hung up on. */
static void bad_message(mxd_cluster *c, const mxd_net_event *ev, const mxd_err *err) {
    mxd_log(MXD_LOG_ERROR, "message_bad", "peer=%s error=\"%s\"", ev->peer, err->msg);
    c->net->ops->hangup(c->net, ev->link);
}

static mxd_rc on_hello(mxd_cluster *c, const mxd_net_event *ev, mxd_err *err) {
    mxd_node_info info;
    mxd_rc rc = mxd_wire_get_hello(&info, &c->scratch, ev->head->bytes, ev->head->len, err);
    if (!rc && !c->hub && strcmp(info.id, ev->peer) != 0)
        rc = mxd_fail(err, MXD_E_AUTH, "the node says it is '%s', its certificate says '%s'",
                      info.id, ev->peer);
    if (rc) { /* tell it why, then hang up */
        mxd_log(MXD_LOG_WARN, "hello_refused", "peer=%s error=\"%s\"", ev->peer, err->msg);
        mxd_coord_act(
            c, &(mxd_coord_action){
                   .kind = MXD_ACT_DROP, .node = -1, .link = ev->link, .rc = rc, .text = err->msg});
        return MXD_OK;
    }
    if (mxd_place_is_any(info.address)) {
        char said[MXD_CORE_ADDRESS];
        memcpy(said, info.address, sizeof said);
        mxd_place_with_host(info.address, sizeof info.address, said, ev->address);
    }
    mxd_coord_give(c,
                   &(mxd_coord_event){.kind = MXD_COORD_HELLO, .link = ev->link, .hello = &info});
    return MXD_OK;
}

static mxd_rc on_failure(mxd_cluster *c, const mxd_net_event *ev, mxd_err *err) {
    const mxd_blob *h = ev->head;
    mxd_wire_failure f;
    mxd_coord_event e = {.link = ev->link};
    if (ev->message == MXD_WIRE_FAILED) {
        MXD_TRY(mxd_wire_get_failed(&f, &c->scratch, h->bytes, h->len, err));
        e.kind = MXD_COORD_FAILED;
        e.failed = (mxd_core_failed){f.epoch, f.rc, f.text};
        mxd_log(MXD_LOG_WARN, "load_failed", "peer=%s error=\"%s\"", ev->peer, f.text);
    } else {
        MXD_TRY(mxd_wire_get_nack(&f, &c->scratch, h->bytes, h->len, err));
        e.kind = MXD_COORD_NACK;
        e.nack = (mxd_core_nack){f.epoch, f.step, f.rc};
        mxd_log(MXD_LOG_DEBUG, "nack", "peer=%s error=\"%s\"", ev->peer, f.text);
    }
    mxd_coord_give(c, &e);
    return MXD_OK;
}

/* Sent back as it is: a node measures its way to us, before its hello. */
static mxd_rc send_back(mxd_cluster *c, const mxd_net_event *ev, mxd_err *err) {
    if (ev->payload && ev->payload->len > MXD_ECHO_BYTES)
        return mxd_fail(err, MXD_E_TOOBIG, "an echo of %zu bytes", ev->payload->len);
    return c->net->ops->send(c->net, ev->link, ev->message, ev->head->bytes, ev->head->len,
                             ev->payload, err);
}

/* Who may have a certificate may have a new one: for the name that its link has proven. */
static mxd_rc on_renew(mxd_cluster *c, const mxd_net_event *ev, mxd_err *err) {
    const char *csr;
    char *cert;
    MXD_TRY(mxd_wire_get_renew(&csr, &c->scratch, ev->head->bytes, ev->head->len, err));
    MXD_TRY(mxd_coord_renew_node(c, ev->peer, csr, &cert, err));
    mxd_buf_clear(&c->head);
    mxd_wire_put_certificate(&c->head, cert);
    mxd_free(c->al, cert);
    mxd_rc rc = mxd_buf_rc(&c->head, "certificate", err);
    if (!rc)
        rc = c->net->ops->send(c->net, ev->link, MXD_WIRE_CERTIFICATE, mxd_buf_str(&c->head),
                               c->head.len, NULL, err);
    return rc == MXD_E_PEER ? MXD_OK : rc; /* gone meanwhile: it asks again */
}

static mxd_rc on_message(mxd_cluster *c, const mxd_net_event *ev, mxd_err *err) {
    const mxd_blob *h = ev->head;
    mxd_coord_event e = {.link = ev->link};
    switch (ev->message) {
    case MXD_WIRE_HELLO:
        return on_hello(c, ev, err);
    case MXD_WIRE_HEARTBEAT:
        e.kind = MXD_COORD_BEAT;
        MXD_TRY(mxd_wire_get_heartbeat(&e.beat, &c->scratch, h->bytes, h->len, err));
        break;
    case MXD_WIRE_READY:
        e.kind = MXD_COORD_READY;
        MXD_TRY(mxd_wire_get_ready(&e.ready, &c->scratch, h->bytes, h->len, err));
        break;
    case MXD_WIRE_FAILED:
    case MXD_WIRE_NACK:
        return on_failure(c, ev, err);
    case MXD_WIRE_RESULT: {
        mxd_wire_result r;
        MXD_TRY(mxd_wire_get_result(&r, &c->scratch, h->bytes, h->len, err));
        e.kind = MXD_COORD_RESULT;
        e.result = r.result;
        mxd_coord_give(c, &e);
        return MXD_OK;
    }
    case MXD_WIRE_NEIGHBOUR_DOWN:
        e.kind = MXD_COORD_NEIGHBOUR_DOWN;
        MXD_TRY(mxd_wire_get_neighbour_down(&e.neighbour, &c->scratch, h->bytes, h->len, err));
        break;
    case MXD_WIRE_LEAVE:
        e.kind = MXD_COORD_LEAVE;
        break;
    case MXD_WIRE_ECHO:
        return send_back(c, ev, err);
    case MXD_WIRE_RENEW:
        return on_renew(c, ev, err);
    default: /* of a newer version */
        mxd_log(MXD_LOG_DEBUG, "message_unknown", "kind=%u", ev->message);
        return MXD_OK;
    }
    mxd_coord_give(c, &e);
    return MXD_OK;
}

static void on_net(mxd_cluster *c, const mxd_net_event *ev) {
    int lost;
    if (mxd_fan_event(&c->data, ev, &lost)) {
        if (lost >= 0) mxd_coord_data_down(c, lost);
        if (ev->kind == MXD_NET_UP && mxd_fan_is_up(&c->data)) mxd_coord_data_up(c);
        return;
    }
    if (ev->lane != MXD_LANE_CONTROL || !ev->accepted) return;
    if (ev->kind == MXD_NET_DOWN) {
        mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_GONE, .link = ev->link});
    } else if (ev->kind == MXD_NET_MESSAGE) {
        mxd_err err = {0};
        mxd_arena_reset(&c->scratch, 0);
        if (on_message(c, ev, &err) != MXD_OK) bad_message(c, ev, &err);
    }
}

static void on_posted(mxd_cluster *c, const mxd_inbox_item *item) {
    if (item->what == MXD_POSTED_CALL) {
        mxd_coord_call *call = item->ptr;
        call->fn(c, call->arg);
        pthread_mutex_lock(&call->lock);
        call->done = true;
        pthread_cond_signal(&call->finished);
        pthread_mutex_unlock(&call->lock);
    } else {
        uint64_t id = *(uint64_t *)item->ptr;
        mxd_free(c->al, item->ptr);
        if (item->what == MXD_POSTED_FORGET)
            mxd_coord_journal_forget(c, id);
        else if (!mxd_coord_journal_cancel(c, id))
            mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = id});
    }
}

static void check_children(mxd_cluster *c) {
    for (int i = 0; i < c->opts.local_workers; i++) {
        int how = 0;
        if (!c->spawned[i].running || !mxd_child_ended(&c->children[i], &how)) continue;
        c->spawned[i].running = false;
        mxd_log(MXD_LOG_WARN, "worker_ended", "node=%s status=%d", c->local_ids[i], how);
        char text[64];
        snprintf(text, sizeof text, "the last one with status %d", how);
        mxd_coord_start_failed(c, text);
        mxd_coord_event e = {.kind = MXD_COORD_EXITED};
        e.exited = (mxd_core_exited){c->spawned[i].node, c->spawned[i].spawn};
        mxd_coord_give(c, &e);
    }
}

static void tick(mxd_cluster *c) {
    int64_t now = mxd_now_ms();
    if (now - c->last_tick_ms < MXD_COORD_TICK_MS) return;
    c->last_tick_ms = now;
    check_children(c);
    mxd_coord_journal_tick(c, now);
    mxd_coord_renew_own(c, now);
    for (int i = 0; i < c->n_hangups;) {
        if (now < c->hangups[i].at_ms) {
            i++;
            continue;
        }
        c->net->ops->hangup(c->net, c->hangups[i].link);
        c->hangups[i] = c->hangups[--c->n_hangups];
    }
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_TICK});
    mxd_coord_view v;
    mxd_coord_view_get(c->core, &v);
    mxd_giver_busy(c->giver, v.running > 0);
}

/* Requests that still live when we end learn it. */
static void fail_requests(mxd_cluster *c) {
    while (c->requests) {
        mxd_live_request *q = c->requests;
        const mxd_request_end end = {
            .how = MXD_END_ERROR, .rc = MXD_E_SHUTDOWN, .text = "the server is shutting down"};
        q->r.end(q->r.ctx, &end);
        mxd_coord_request_free(c, q);
    }
}

/* Waits for one item; and when the clock is due, takes what has come before: silence is judged by
 * what was said, not by what we have read. Bounded, so that a flood does not stop the clock. */
static void take_items(mxd_cluster *c) {
    int64_t wait_ms = MXD_COORD_TICK_MS;
    for (int n = 0; n < MXD_COORD_READ_AHEAD && !mxd_inbox_closed(&c->inbox); n++) {
        mxd_inbox_item *item = mxd_inbox_take(&c->inbox, wait_ms);
        if (!item) return;
        if (item->kind == MXD_INBOX_NET) on_net(c, &item->net);
        if (item->kind == MXD_INBOX_OWN) on_posted(c, item);
        mxd_inbox_free(&c->inbox, item);
        if (mxd_now_ms() - c->last_tick_ms < MXD_COORD_TICK_MS) return;
        wait_ms = 0;
    }
}

static void *control_main(void *arg) {
    mxd_cluster *c = arg;
    sigset_t broken_pipes; /* of a worker that ends while its bootstrap is written */
    sigemptyset(&broken_pipes);
    sigaddset(&broken_pipes, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &broken_pipes, NULL);
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_TICK});
    while (!mxd_inbox_closed(&c->inbox)) {
        take_items(c);
        tick(c);
    }
    fail_requests(c);
    mxd_children_end(c->children, c->opts.local_workers, STOP_WAIT_MS);
    return NULL;
}

/* ---------------------------------------------------------------------- calls from other threads
 */

bool mxd_coord_sync(mxd_cluster *c, void (*fn)(mxd_cluster *c, void *arg), void *arg) {
    mxd_coord_call call = {.fn = fn, .arg = arg};
    pthread_mutex_init(&call.lock, NULL);
    pthread_cond_init(&call.finished, NULL);
    bool posted = mxd_inbox_post(&c->inbox, MXD_POSTED_CALL, &call);
    pthread_mutex_lock(&call.lock);
    while (posted && !call.done) pthread_cond_wait(&call.finished, &call.lock);
    pthread_mutex_unlock(&call.lock);
    pthread_cond_destroy(&call.finished);
    pthread_mutex_destroy(&call.lock);
    return posted;
}

static void *copy_of(const mxd_alloc *al, const void *p, size_t n, size_t size) {
    void *q = mxd_new(al, n ? n : 1, size);
    if (q && n) memcpy(q, p, n * size);
    return q;
}

mxd_live_request *mxd_coord_request(mxd_cluster *c, uint64_t id) {
    mxd_live_request *q = c->requests;
    while (q && q->id != id) q = q->next;
    return q;
}

void mxd_coord_request_free(mxd_cluster *c, mxd_live_request *q) {
    for (mxd_live_request **at = &c->requests; *at; at = &(*at)->next)
        if (*at == q) {
            *at = q->next;
            break;
        }
    mxd_free(c->al, q->prompt);
    mxd_free(c->al, q->stop_ids);
    mxd_free(c->al, q->bias);
    mxd_free(c->al, q->accepted);
    mxd_free(c->al, q);
}

mxd_live_request *mxd_coord_request_new(const mxd_alloc *al, const mxd_request *r) {
    mxd_live_request *q = MXD_NEW(al, 1, mxd_live_request);
    if (!q) return NULL;
    q->r = *r;
    q->prompt = copy_of(al, r->prompt, (size_t)r->n_prompt, sizeof *q->prompt);
    q->stop_ids = copy_of(al, r->stop_ids, (size_t)r->n_stop_ids, sizeof *q->stop_ids);
    q->bias = copy_of(al, r->how.bias, r->how.n_bias, sizeof *q->bias);
    q->r.how.bias = q->bias;
    q->submit = (mxd_core_submit){.prompt = q->prompt,
                                  .n_prompt = r->n_prompt,
                                  .max_tokens = r->max_tokens,
                                  .min_tokens = r->min_tokens,
                                  .stop_ids = q->stop_ids,
                                  .n_stop_ids = r->n_stop_ids,
                                  .how = q->r.how};
    if (r->timeout_ms > 0) q->submit.deadline_ms = mxd_now_ms() + r->timeout_ms;
    if (q->prompt && q->stop_ids && q->bias) return q;
    mxd_free(al, q->prompt);
    mxd_free(al, q->stop_ids);
    mxd_free(al, q->bias);
    mxd_free(al, q);
    return NULL;
}

static void submit_call(mxd_cluster *c, void *arg) {
    mxd_submit_answer *answer = arg;
    mxd_live_request *q = answer->request;
    uint64_t id = q->id;
    q->submit.resumable = mxd_coord_journal_wants(c, &q->r);
    q->next = c->requests;
    c->requests = q;
    c->answering = answer;
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &q->submit});
    c->answering = NULL;
    mxd_coord_journal_submitted(c, answer, id);
}

/* What the wire refuses would look like a broken coordinator to every worker. */
static mxd_rc check_sampling(const mxd_sampling *s, mxd_err *err) {
    if (s->n_bias > MXD_MAX_LOGIT_BIAS)
        return mxd_fail(err, MXD_E_TOOBIG, "%d logit biases: at most %d", s->n_bias,
                        MXD_MAX_LOGIT_BIAS);
    if (s->n_top > MXD_MAX_TOP_LOGPROBS)
        return mxd_fail(err, MXD_E_TOOBIG, "%d top log probabilities: at most %d", s->n_top,
                        MXD_MAX_TOP_LOGPROBS);
    if (s->top_k < 0) return mxd_fail(err, MXD_E_INVAL, "top_k %d is negative", s->top_k);
    return MXD_OK;
}

mxd_rc mxd_cluster_submit(mxd_cluster *c, const mxd_request *r, uint64_t *id, mxd_err *err) {
    MXD_TRY(check_sampling(&r->how, err));
    MXD_TRY(mxd_coord_journal_check(c, r, err));
    if (r->n_prompt < 1 || r->max_tokens < 1 || r->n_stop_ids > MXD_CORE_STOP_IDS)
        return mxd_fail(err, MXD_E_INVAL, "%d prompt tokens, %d to generate, %d stop ids",
                        r->n_prompt, r->max_tokens, r->n_stop_ids);
    if (r->n_prompt >= c->welcome.ctx)
        return mxd_fail(err, MXD_E_CONTEXT,
                        "the prompt has %d tokens, the context %d: shorten it, or start the server "
                        "with a larger --ctx-size",
                        r->n_prompt, c->welcome.ctx);
    mxd_live_request *q = mxd_coord_request_new(c->al, r);
    if (!q) return mxd_fail(err, MXD_E_NOMEM, "no memory for the request");
    pthread_mutex_lock(&c->lock);
    q->id = q->submit.request = *id = ++c->next_request;
    pthread_mutex_unlock(&c->lock);
    mxd_submit_answer answer = {.request = q};
    if (!mxd_coord_sync(c, submit_call, &answer)) {
        mxd_coord_request_free(c, q);
        return mxd_fail(err, MXD_E_SHUTDOWN, "the server is shutting down");
    }
    if (answer.err.rc && err) *err = answer.err;
    return answer.err.rc;
}

void mxd_coord_post_id(mxd_cluster *c, int what, uint64_t id) {
    uint64_t *copy = MXD_NEW(c->al, 1, uint64_t);
    if (!copy) return; /* the request then runs to its end, and is kept until the next start */
    *copy = id;
    if (!mxd_inbox_post(&c->inbox, what, copy)) mxd_free(c->al, copy);
}

void mxd_cluster_cancel(mxd_cluster *c, uint64_t id) {
    mxd_coord_post_id(c, MXD_POSTED_CANCEL, id);
}

static void drain_call(mxd_cluster *c, void *arg) {
    (void)arg;
    c->draining = true;
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_DRAIN});
}

mxd_rc mxd_cluster_drain(mxd_cluster *c, int64_t timeout_ms, mxd_err *err) {
    int64_t until = mxd_now_ms() + timeout_ms;
    if (!mxd_coord_sync(c, drain_call, NULL)) return MXD_OK;
    pthread_mutex_lock(&c->lock);
    for (int64_t left; !c->drained && (left = until - mxd_now_ms()) > 0;)
        mxd_cond_wait(&c->changed, &c->lock, left * 1000000);
    bool drained = c->drained;
    pthread_mutex_unlock(&c->lock);
    return drained ? MXD_OK : mxd_fail(err, MXD_E_TIMEOUT, "some requests still run");
}

/* -------------------------------------------------------------------------------------- opening */

static mxd_rc keep(mxd_cluster *c, const char **s, mxd_err *err) {
    if (!*s) return MXD_OK;
    MXD_ASSERT(c->n_text < (int)MXD_COUNT(c->text));
    char *copy = mxd_strdup(c->al, *s);
    if (!copy) return mxd_fail(err, MXD_E_NOMEM, "cluster");
    c->text[c->n_text++] = copy;
    *s = copy;
    return MXD_OK;
}

static mxd_rc keep_all(mxd_cluster *c, mxd_err *err) {
    mxd_cluster_opts *o = &c->opts;
    const char **all[] = {&o->folder,      &o->model_id,       &o->listen,  &o->state_dir,
                          &o->journal_dir, &o->worker_program, &o->backend, &o->kernels};
    for (size_t i = 0; i < MXD_COUNT(all); i++) MXD_TRY(keep(c, all[i], err));
    return MXD_OK;
}

/* The largest micro-batch: what was asked for, as far as its hidden states fit into a frame. */
static int rows_that_fit(const mxd_hparams *hp, int slots, int wanted) {
    int runs = slots < MXD_MAX_STEP_RUNS ? slots : MXD_MAX_STEP_RUNS;
    int bias_bytes = runs * MXD_MAX_LOGIT_BIAS * (int)sizeof(mxd_logit_bias);
    int most =
        (MXD_MAX_FRAME_BYTES - FRAME_HEAD_ROOM - bias_bytes) / (hp->hidden * (int)sizeof(float));
    int rows = wanted > 0 ? wanted : DEFAULT_ROWS;
    if (rows > most) rows = most;
    if (rows > MXD_MAX_STEP_TOKENS) rows = MXD_MAX_STEP_TOKENS;
    return rows > 0 ? rows : 1;
}

/* Nodes that the layer split is for: with groups it names stages. */
static int split_nodes(const mxd_shape *s) { return s->n_split * (s->tensor > 1 ? s->tensor : 1); }

/* Without an address to join, the nodes are known from the start. */
static mxd_rc check_split(const mxd_cluster_opts *o, mxd_err *err) {
    int n = o->local_workers > 0 ? o->local_workers : 1, of = split_nodes(&o->shape);
    if (!of || o->listen || o->no_local || of == n) return MXD_OK;
    return mxd_fail(err, MXD_E_INVAL,
                    "the layer split is for %d nodes, and there will be %d: give one number for "
                    "each, or let others join with --cluster-listen",
                    of, n);
}

static mxd_rc read_model(mxd_cluster *c, mxd_err *err) {
    mxd_cluster_opts *o = &c->opts;
    mxd_welcome *w = &c->welcome;
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, c->al, o->folder, err));
    const mxd_hparams *hp = mxd_model_hparams(m);
    int most = hp->context < DEFAULT_CTX ? hp->context : DEFAULT_CTX;
    if (o->ctx > hp->context)
        mxd_log(MXD_LOG_WARN, "context_beyond_training", "ctx=%d model=%d", o->ctx, hp->context);
    w->ctx = o->ctx > 0 ? o->ctx : most;
    w->slots = o->parallel > 0 ? o->parallel : DEFAULT_PARALLEL;
    w->max_rows = rows_that_fit(hp, w->slots, o->prefill_rows);
    w->activations = o->activations;
    w->kv = (int)mxd_kv_of(o->kv, o->activations);
    w->threads = o->threads;
    if (!w->threads && o->local_workers > 1 && o->shape.tensor > 1) {
        w->threads = mxd_proc_cores() / o->shape.tensor; /* ranks compute at the same time */
        if (w->threads < 1) w->threads = 1;
    }
    snprintf(w->model, sizeof w->model, "%s", o->model_id ? o->model_id : o->folder);
    snprintf(w->folder, sizeof w->folder, "%s", o->folder);
    snprintf(w->backend, sizeof w->backend, "%s", o->backend ? o->backend : "");
    snprintf(w->kernels, sizeof w->kernels, "%s", o->kernels ? o->kernels : "");
    memcpy(w->tensors_hash, mxd_st_hash(mxd_model_tensors(m)), sizeof w->tensors_hash);
    c->n_vocab = hp->n_vocab;
    c->recurrent = mxd_model_recurrent(m);
    mxd_model_sizes_get(m, w->max_rows, (mxd_kv_type)w->kv, c->sizes);
    if (o->local_workers == 0 && !o->no_local) { /* a worker in this process lays nothing aside */
        c->sizes->embed_bytes += c->sizes->embed_table_bytes;
        c->sizes->embed_table_bytes = 0;
    }
    mxd_rc rc = MXD_OK;
    if (o->local_workers > hp->n_layers || o->local_workers < 0)
        rc = mxd_fail(err, MXD_E_INVAL,
                      "%d local workers for a model of %d layers: at most one each",
                      o->local_workers, hp->n_layers);
    if (!rc) rc = check_split(o, err);
    mxd_model_close(m);
    return rc;
}

/* What was asked for by sizes holds while the nodes are there; after a loss the plan shrinks. */
static bool nodes_are_short(const mxd_shape *s, int n) {
    int each = s->tensor > 0 ? s->tensor : 1, stages = s->pipeline > 0 ? s->pipeline : 1;
    return each * stages > n || (s->n_tensor_split && s->n_tensor_split > n) || split_nodes(s) > n;
}

static void shrink(mxd_shape *s, int n) {
    s->n_split = s->n_tensor_split = 0;
    if (s->tensor > n) s->tensor = n;
    while (s->tensor > 1 && n % s->tensor) s->tensor--; /* everybody takes part */
    if (s->tensor > 0 && s->pipeline * s->tensor > n) s->pipeline = n / s->tensor;
    if (s->pipeline > n) s->pipeline = n;
}

/* A split for more nodes than there are cannot hold: said in the log, once for each number, and
 * among the plan's reasons. */
static void tell_split(mxd_cluster *c, const mxd_shape *used, int n, mxd_plan *out) {
    const mxd_shape *asked = &c->opts.shape;
    bool layers = asked->n_split && !used->n_split;
    if (!layers && !(asked->n_tensor_split && !used->n_tensor_split)) {
        c->split_told = 0;
        return;
    }
    int of = layers ? split_nodes(asked) : asked->n_tensor_split;
    if (out->n_reasons < (int)MXD_COUNT(out->reasons))
        snprintf(out->reasons[out->n_reasons++], sizeof out->reasons[0],
                 "the %s split is for %d nodes and there %s %d: the layers were cut without it",
                 layers ? "layer" : "tensor", of, n == 1 ? "is" : "are", n);
    if (c->split_told == n) return;
    c->split_told = n;
    mxd_log(MXD_LOG_WARN, "split_not_used", "nodes=%d split_nodes=%d", n, of);
}

static mxd_rc plan_call(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                        int n_avoid, mxd_plan *out, mxd_err *err) {
    mxd_cluster *c = ctx;
    mxd_plan_opts o = {.ctx = c->welcome.ctx,
                       .parallel = c->welcome.slots,
                       .chunk = c->welcome.max_rows,
                       .shape = c->opts.shape,
                       .avoid = avoid,
                       .n_avoid = n_avoid};
    bool few = nodes_are_short(&o.shape, n);
    if (few && !c->sized && c->opts.listen)
        return mxd_fail(err, MXD_E_PEER,
                        "the sizes that were asked for need more nodes than the %d that are here: "
                        "start more workers",
                        n);
    if (few && c->sized) shrink(&o.shape, n);
    mxd_rc rc = mxd_plan_make(out, c->sizes, nodes, n, NULL, 0, &o, err);
    if (rc && c->sized) { /* three nodes make no groups of two */
        shrink(&o.shape, n);
        rc = mxd_plan_make(out, c->sizes, nodes, n, NULL, 0, &o, err);
    }
    if (rc) return rc;
    c->sized = true;
    tell_split(c, &o.shape, n, out);
    return MXD_OK;
}

static mxd_rc open_core(mxd_cluster *c, mxd_err *err) {
    int n_local = c->opts.local_workers;
    for (int i = 0; i < n_local; i++) {
        snprintf(c->local_ids[i], sizeof c->local_ids[i], "local-%d", i);
        c->local_id_list[i] = c->local_ids[i];
    }
    mxd_coord_cfg cfg = {.plan = plan_call,
                         .plan_ctx = c,
                         .n_layers = c->sizes->n_layers,
                         .n_vocab = c->n_vocab,
                         .ctx = c->welcome.ctx,
                         .n_slots = c->welcome.slots,
                         .max_rows = c->welcome.max_rows,
                         .recurrent = c->recurrent,
                         .no_prefix_cache = c->opts.no_prefix_cache,
                         .canary = true,
                         .known = c->canary,
                         .epoch0 = mxd_coord_journal_epoch(c),
                         .local_ids = c->local_id_list,
                         .n_local = n_local,
                         .min_nodes = n_local > 0 ? n_local : 1};
    if (c->opts.min_nodes > cfg.min_nodes) cfg.min_nodes = c->opts.min_nodes;
    if (split_nodes(&c->opts.shape) > cfg.min_nodes) /* who may still come */
        cfg.min_nodes = split_nodes(&c->opts.shape);
    size_t bytes = mxd_coord_bytes(&cfg);
    c->core_memory = bytes ? mxd_new(c->al, 1, bytes) : NULL;
    c->core = c->core_memory ? mxd_coord_init(c->core_memory, &cfg) : NULL;
    if (c->core) return MXD_OK;
    return bytes ? mxd_fail(err, MXD_E_NOMEM, "no memory for %d sequences of %d tokens",
                            cfg.n_slots, cfg.ctx)
                 : mxd_fail(err, MXD_E_INVAL, "%d sequences of %d tokens over %d workers cannot be",
                            cfg.n_slots, cfg.ctx, n_local);
}

static mxd_rc open_net(mxd_cluster *c, mxd_err *err) {
    const char *listen = c->opts.listen ? c->opts.listen : "127.0.0.1:0";
    mxd_transport_opts o = {.al = c->al, .sink = mxd_giver_sink, .sink_ctx = c->giver};
    if (c->opts.local_workers == 0 && !c->opts.no_local && !c->opts.listen) {
        MXD_TRY(mxd_loopback_hub_open(&c->hub, c->al, err));
        MXD_TRY(mxd_loopback_open(&c->net, c->hub, &o, "coordinator", err));
    } else {
        MXD_TRY(mxd_coord_identity(c, err));
        o.identity = (mxd_identity){c->ca.cert, c->own.cert, c->own.key};
        o.enroll = mxd_coord_enroll;
        o.enroll_ctx = c;
        MXD_TRY(mxd_grpc_open(&c->net, &o, err));
    }
    c->inbox.transport = c->net;
    MXD_TRY(mxd_giver_start(c->giver, c->net, err));
    MXD_TRY(c->net->ops->listen(c->net, listen, &c->port, err));
    if (mxd_place_is_any(listen))
        snprintf(c->join, sizeof c->join, "127.0.0.1:%d", c->port);
    else
        mxd_place_with_port(c->join, sizeof c->join, listen, c->port);
    /* workers of other machines hand their hidden states to the workers here */
    mxd_place_with_port(c->worker_listen, sizeof c->worker_listen, listen, 0);
    return MXD_OK;
}

/* A hint is not worth failing for. */
static void advertise(mxd_cluster *c) {
    mxd_err err = {0};
    mxd_beacon said = {.port = c->port};
    unsigned char fingerprint[32];
    if (!c->opts.listen || !c->opts.advertise) return;
    if (gethostname(said.name, sizeof said.name - 1) != 0) said.name[0] = '\0';
    mxd_rc rc = mxd_cert_fingerprint(c->ca.cert, fingerprint, &err);
    memcpy(said.tag, fingerprint, sizeof said.tag);
    if (!rc) rc = mxd_speaker_open(&c->speaker, c->al, c->opts.listen, &said, &err);
    if (rc) mxd_log(MXD_LOG_WARN, "not_advertised", "reason=\"%s\"", err.msg);
}

/* The worker inside this process, when there are no others on this machine. */
static mxd_rc open_inner_worker(mxd_cluster *c, mxd_err *err) {
    if (c->opts.local_workers > 0 || c->opts.no_local) return MXD_OK;
    mxd_pem own = {0};
    if (!c->hub)
        MXD_TRY(mxd_ca_issue_for(c->al, &c->ca, "local-0", c->opts.cert_life_s, &own, err));
    mxd_worker_opts o = {.node = "local-0",
                         .join = c->join,
                         .listen = c->worker_listen,
                         .hub = c->hub,
                         .identity = {c->ca.cert, own.cert, own.key},
                         .local = true,
                         .memory_total = c->opts.memory_total,
                         .memory_free = c->opts.memory_free,
                         .bandwidth = c->opts.bandwidth,
                         .ops = c->opts.ops,
                         .paces = c->opts.paces,
                         .cpus = c->opts.cpus,
                         .host_cpus = c->opts.host_cpus};
    mxd_rc rc = mxd_worker_open(&c->worker, c->al, &o, err);
    mxd_pem_free(c->al, &own);
    return rc;
}

static mxd_rc open_all(mxd_cluster *c, mxd_err *err) {
    MXD_TRY(keep_all(c, err));
    c->sizes = MXD_NEW(c->al, 1, mxd_model_sizes);
    if (!c->sizes) return mxd_fail(err, MXD_E_NOMEM, "cluster");
    MXD_TRY(read_model(c, err));
    MXD_TRY(mxd_inbox_init(&c->inbox, c->al, err));
    MXD_TRY(mxd_arena_init(&c->scratch, c->al, MXD_WIRE_SCRATCH, err));
    mxd_buf_init(&c->head, c->al, MXD_MAX_FRAME_BYTES);
    for (int i = 0; i < MXD_COORD_HELD_STEPS; i++)
        mxd_buf_init(&c->held[i], c->al, MXD_MAX_FRAME_BYTES);
    MXD_TRY(mxd_giver_open(&c->giver, c->al, &c->inbox, err));
    if (c->opts.listen) mxd_coord_weights_open(c);
    mxd_coord_canary_open(c);
    MXD_TRY(open_net(c, err));
    MXD_TRY(mxd_coord_journal_open(c, err));
    MXD_TRY(open_core(c, err));
    if (pthread_create(&c->thread, NULL, control_main, c) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start the coordinator's thread");
    c->started = true;
    advertise(c);
    return open_inner_worker(c, err);
}

mxd_rc mxd_cluster_open(mxd_cluster **out, const mxd_alloc *al, const mxd_cluster_opts *opts,
                        mxd_err *err) {
    mxd_cluster *c = MXD_NEW(al, 1, mxd_cluster);
    if (!c) return mxd_fail(err, MXD_E_NOMEM, "cluster");
    c->al = al;
    c->opts = *opts;
    for (int i = 0; i < MXD_MAX_NODES; i++) c->children[i].lifeline = -1;
    pthread_mutex_init(&c->lock, NULL);
    mxd_cond_init(&c->changed);
    mxd_rc rc = open_all(c, err);
    if (rc) {
        mxd_cluster_close(c);
        return rc;
    }
    *out = c;
    return MXD_OK;
}

static void free_all(mxd_cluster *c) {
    mxd_giver_free(c->giver);
    mxd_coord_journal_close(c);
    mxd_inbox_deinit(&c->inbox);
    mxd_buf_deinit(&c->head);
    for (int i = 0; i < MXD_COORD_HELD_STEPS && c->held[i].al; i++) mxd_buf_deinit(&c->held[i]);
    mxd_arena_deinit(&c->scratch);
    mxd_free(c->al, c->core_memory);
    mxd_free(c->al, c->sizes);
    mxd_pem_free(c->al, &c->ca);
    mxd_pem_free(c->al, &c->own);
    for (int i = 0; i < c->n_text; i++) mxd_free(c->al, c->text[i]);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    mxd_free(c->al, c);
}

/* Calls that were posted and not carried out: their threads must not wait for ever. */
static void release_calls(mxd_cluster *c) {
    if (!c->inbox.queue) return;
    mxd_inbox_close(&c->inbox);
    for (mxd_inbox_item *i; (i = mxd_inbox_take(&c->inbox, 0)) != NULL;
         mxd_inbox_free(&c->inbox, i))
        if (i->kind == MXD_INBOX_OWN) on_posted(c, i);
    fail_requests(c);
}

void mxd_cluster_close(mxd_cluster *c) {
    if (!c) return;
    mxd_speaker_close(c->speaker);
    if (c->started) {
        mxd_inbox_close(&c->inbox);
        pthread_join(c->thread, NULL);
    }
    mxd_worker_close(c->worker);
    if (c->core) release_calls(c);
    mxd_giver_stop(c->giver);
    if (c->net) c->net->ops->close(c->net);
    if (c->hub) mxd_loopback_hub_close(c->hub);
    free_all(c);
}

int mxd_cluster_port(const mxd_cluster *c) { return c->port; }
int mxd_cluster_ctx(const mxd_cluster *c) { return c->welcome.ctx; }
