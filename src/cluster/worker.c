#include "cluster/worker.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/rand.h"
#include "cluster/fan.h"
#include "cluster/inbox.h"
#include "cluster/places.h"
#include "cluster/wire.h"
#include "cluster/worker_echo.h"
#include "cluster/worker_engine.h"
#include "net/address.h"
#include "net/tls.h"

enum {
    TICK_MS = 25,
    DIAL_MS = 3000,
    BACKOFF_MIN_MS = 100,
    BACKOFF_MAX_MS = 5000,
    MAX_REFUSALS = 16, /* in a row, of a certificate that was good before: about a minute */
    SPARE_JOBS = 8,
    BUSY_MS = 500,         /* after a step others may follow soon: weights for others wait */
    RENEW_AGAIN_MS = 5000, /* no answer: once more */
    RENEW_LOOK_MS = 3600000,
    SPIN_US =
        50, /* idle compute threads poll so long: operations follow each other in microseconds */
};

enum { POSTED_JOB = 1, POSTED_DRAIN }; /* mxd_inbox_item.what */

struct mxd_worker {
    const mxd_alloc *al;
    mxd_worker_opts opts; /* strings point into text */
    char *text[16];
    int n_text;

    pthread_mutex_t lock; /* for ended, end */
    pthread_cond_t ended_cond;
    bool ended;
    mxd_err end;
    pthread_t thread;
    bool started;

    /* control thread */
    mxd_inbox inbox;
    mxd_giver *giver; /* of our weights, to others */
    mxd_transport *net;
    mxd_worker_engine engine;
    mxd_wcore *core; /* NULL until the first welcome */
    void *core_memory;
    mxd_welcome welcome;
    uint64_t incarnation;
    char address[MXD_CORE_ADDRESS]; /* of our data lane, as others are told */
    bool stop, drain_wanted, member;
    atomic_bool is_member; /* `member`, for others */
    int64_t last_tick_ms, renew_at_ms;
    int64_t computed_ms; /* the last step was begun */
    char *cert;          /* the last one that we got by renewal; NULL: that of opts */

    mxd_link control;
    int64_t dial_at_ms; /* when to dial the coordinator again; 0: not waiting */
    int64_t backoff_ms;
    int refusals; /* of our certificate, since the last welcome */

    mxd_worker_echo echo; /* before the first hello */

    mxd_fan next;    /* to the ranks of the next stage, when we lead ours */
    bool ready_held; /* READY waits until they are reached */
    mxd_core_ready ready;

    mxd_task *spare[SPARE_JOBS]; /* for steps, so that they need no new memory */
    int n_spare;
    mxd_task *frame;      /* the frame that the core is deciding about */
    mxd_task *computed;   /* the job that the core is deciding about */
    bool busy, has_later; /* the core's actions are being carried out */
    mxd_wcore_event later;
    mxd_arena scratch;
    mxd_buf head;
};

static void give(mxd_worker *w, mxd_wcore_event *ev);

/* ---------------------------------------------------------------------------------- sending */

static mxd_rc send_to(mxd_worker *w, mxd_link link, mxd_wire_kind kind, mxd_err *err) {
    MXD_TRY(mxd_buf_rc(&w->head, "message", err));
    return w->net->ops->send(w->net, link, kind, mxd_buf_str(&w->head), w->head.len, NULL, err);
}

/* What cannot be sent on the control link is lost with it: DOWN follows. */
static void tell(mxd_worker *w, mxd_wire_kind kind) {
    mxd_err err = {0};
    if (w->control && send_to(w, w->control, kind, &err) != MXD_OK)
        mxd_log(MXD_LOG_DEBUG, "send_failed", "to=coordinator kind=%d error=\"%s\"", kind, err.msg);
}

static mxd_buf *fresh(mxd_worker *w) {
    mxd_buf_clear(&w->head);
    return &w->head;
}

static void say_hello(mxd_worker *w) {
    const mxd_worker_opts *o = &w->opts;
    mxd_node_info info = {.incarnation = w->incarnation,
                          .epoch = w->core ? mxd_wcore_epoch(w->core) : 0,
                          .pid = getpid(),
                          .memory_total = o->memory_total,
                          .memory_free = o->memory_free,
                          .bandwidth = o->bandwidth,
                          .ops = o->ops,
                          .paces = o->paces,
                          .link_us = mxd_worker_echo_us(&w->echo),
                          .link_bandwidth = mxd_worker_echo_rate(&w->echo),
                          .cpus = o->cpus,
                          .host_cpus = o->host_cpus,
                          .local = o->local};
    snprintf(info.id, sizeof info.id, "%s", o->node);
    snprintf(info.name, sizeof info.name, "%s", o->name ? o->name : o->node);
    snprintf(info.backend, sizeof info.backend, "%s",
             o->backend ? o->backend : mxd_backend_default());
    snprintf(info.address, sizeof info.address, "%s", w->address);
    if (gethostname(info.host, sizeof info.host - 1) != 0) info.host[0] = '\0';
    mxd_wire_put_hello(fresh(w), &info);
    tell(w, MXD_WIRE_HELLO);
}

/* ------------------------------------------------------------------------------------ the end */

static void end_with(mxd_worker *w, mxd_rc rc, const char *text) {
    w->stop = true;
    pthread_mutex_lock(&w->lock);
    if (!w->ended) {
        w->ended = true;
        w->end = (mxd_err){.rc = rc};
        snprintf(w->end.msg, sizeof w->end.msg, "%s", text);
        pthread_cond_broadcast(&w->ended_cond);
    }
    pthread_mutex_unlock(&w->lock);
}

/* ------------------------------------------------------------------------- the coordinator's link
 */

static void dial_coordinator(mxd_worker *w) {
    mxd_err err = {0};
    w->dial_at_ms = 0;
    if (w->net->ops->dial(w->net, w->opts.join, "coordinator", MXD_LANE_CONTROL, DIAL_MS,
                          &w->control, &err) == MXD_OK)
        return;
    mxd_log(MXD_LOG_WARN, "dial_failed", "address=%s error=\"%s\"", w->opts.join, err.msg);
    w->control = 0;
    w->dial_at_ms = mxd_now_ms() + BACKOFF_MAX_MS;
}

static void dial_later(mxd_worker *w) {
    w->backoff_ms = w->backoff_ms ? w->backoff_ms * 2 : BACKOFF_MIN_MS;
    if (w->backoff_ms > BACKOFF_MAX_MS) w->backoff_ms = BACKOFF_MAX_MS;
    uint64_t jitter = mxd_rand_u64(w->incarnation, (uint64_t)w->backoff_ms, (uint64_t)mxd_now_ns());
    w->dial_at_ms =
        mxd_now_ms() + w->backoff_ms / 2 + (int64_t)(jitter % (uint64_t)w->backoff_ms) / 2;
}

static void control_up(mxd_worker *w) {
    if (!w->echo.begun_ns && mxd_worker_echo_begin(&w->echo, w->net, w->control, w->al)) return;
    say_hello(w);
}

static void echo_came(mxd_worker *w) {
    bool running = w->echo.running;
    if (!mxd_worker_echo_next(&w->echo, w->net, w->control, w->al) && running) say_hello(w);
}

static void control_down(mxd_worker *w, const mxd_net_event *ev) {
    w->control = 0;
    w->echo.running = false;
    bool was_member = w->member;
    w->member = false;
    atomic_store(&w->is_member, false);
    if (w->stop) return;
    /* A handshake that the wire has damaged looks like one that was refused. */
    if (ev->rc == MXD_E_AUTH && (!w->core || ++w->refusals >= MAX_REFUSALS)) {
        end_with(w, MXD_E_AUTH,
                 "the coordinator refuses this node's certificate: join again with a new token "
                 "(mlx-dist-config token on the coordinator)");
        return;
    }
    mxd_log(MXD_LOG_INFO, "coordinator_lost", "address=%s reason=%s", w->opts.join,
            mxd_rc_name(ev->rc));
    if (was_member && w->core)
        give(w, &(mxd_wcore_event){.kind = MXD_WCORE_COORDINATOR_DOWN});
    else
        dial_later(w);
}

/* ------------------------------------------------------------------------------ the next stage */

/* Addresses on the coordinator's loopback are reached where the coordinator is. */
static void reach(const mxd_worker *w, char *address, size_t cap) {
    char said[MXD_CORE_ADDRESS];
    if (w->opts.local || w->opts.hub || !mxd_place_is_loopback(address)) return;
    snprintf(said, sizeof said, "%s", address);
    mxd_place_with_host(address, cap, said, w->opts.join);
}

static void place_peers(const mxd_worker *w, mxd_stage_peer *peers, int n) {
    for (int i = 0; i < n; i++) reach(w, peers[i].address, sizeof peers[i].address);
}

static void link_next(mxd_worker *w, const mxd_stage *stage) {
    int missed = mxd_fan_dial(&w->next, w->net, stage->next, stage->n_next, !w->opts.hub, DIAL_MS);
    if (missed >= 0)
        give(w, &(mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = missed});
}

static void next_down(mxd_worker *w, int node) {
    w->ready_held = false;
    give(w, &(mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = node});
}

static void send_ready(mxd_worker *w) {
    w->ready_held = false;
    mxd_wire_put_ready(fresh(w), &w->ready);
    tell(w, MXD_WIRE_READY);
}

/* ---------------------------------------------------------------------------------------- jobs */

static mxd_task *step_job(mxd_worker *w) {
    if (!w->n_spare) return mxd_task_new(w->al, MXD_TASK_COMPUTE);
    return w->spare[--w->n_spare];
}

static void retire(mxd_worker *w, mxd_task *job) {
    if (!job) return;
    if (job->kind != MXD_TASK_COMPUTE || w->n_spare == SPARE_JOBS) {
        mxd_task_free(w->al, job);
        return;
    }
    mxd_blob_release(job->head);
    mxd_blob_release(job->hidden_in);
    mxd_blob_release(job->hidden_out);
    job->head = job->hidden_in = job->hidden_out = NULL;
    job->n_tokens = 0;
    mxd_arena_reset(&job->scratch, 0);
    w->spare[w->n_spare++] = job;
}

/* ----------------------------------------------------------------------------- the core's will */

static void push_job(mxd_worker *w, mxd_task *job) {
    if (job && mxd_worker_engine_push(&w->engine, job)) return;
    mxd_task_free(w->al, job);
    end_with(w, MXD_E_NOMEM, "no memory for a job: the worker restarts rather than guess");
}

static void start_load(mxd_worker *w, const mxd_wcore_action *a) {
    atomic_store(&w->engine.epoch, a->epoch);
    atomic_store(&w->engine.load_done, 0);
    atomic_store(&w->engine.wanted, mxd_worker_engine_part(a->stage));
    atomic_store(&w->engine.load_total, 0);
    mxd_task *job = mxd_task_new(w->al, MXD_TASK_LOAD);
    if (job) {
        job->epoch = a->epoch;
        job->stage = *a->stage;
    }
    push_job(w, job);
}

static void start_compute(mxd_worker *w, const mxd_wcore_action *a) {
    mxd_task *job = w->frame;
    MXD_ASSERT(job && job->step_id == a->step);
    w->frame = NULL;
    w->computed_ms = mxd_now_ms();
    push_job(w, job);
}

static void forward(mxd_worker *w, const mxd_wcore_action *a) {
    mxd_task *job = w->computed;
    MXD_ASSERT(job && job->step_id == a->step);
    int missed =
        mxd_fan_send(&w->next, MXD_WIRE_STEP, job->head->bytes, job->head->len, job->hidden_out);
    if (missed >= 0)
        give(w, &(mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = missed});
}

static void send_result(mxd_worker *w, const mxd_wcore_action *a) {
    const mxd_task *job = w->computed;
    MXD_ASSERT(job && job->step_id == a->step);
    struct mxd_core_result_run runs[MXD_MAX_STEP_RUNS];
    mxd_core_result r = {a->epoch, a->step, 0, runs};
    for (int i = 0; i < job->step.n_runs; i++) {
        const mxd_core_run *run = &job->step.runs[i];
        if (!run->sample) continue;
        runs[r.n].request = run->request;
        runs[r.n].pos = run->pos + run->n;
        runs[r.n].sampled = job->tokens[r.n];
        r.n++;
    }
    MXD_ASSERT(r.n == job->n_tokens);
    mxd_wire_put_result(fresh(w), &r);
    tell(w, MXD_WIRE_RESULT);
}

static void beat(mxd_worker *w, const mxd_wcore_action *a) {
    mxd_core_beat b = a->beat;
    b.rss = mxd_proc_rss_bytes();
    b.load_done = atomic_load(&w->engine.load_done);
    b.load_total = atomic_load(&w->engine.load_total);
    b.waits = mxd_worker_group_waits(&w->engine.group);
    b.row_ms = (float)atomic_load(&w->engine.row_us) / 1000;
    mxd_wire_put_heartbeat(fresh(w), &b);
    tell(w, MXD_WIRE_HEARTBEAT);
}

static void ready(mxd_worker *w, const mxd_wcore_action *a) {
    w->ready.epoch = a->epoch;
    w->ready.bytes = a->bytes;
    if (w->next.n && !mxd_fan_is_up(&w->next))
        w->ready_held = true;
    else
        send_ready(w);
}

static void act(mxd_worker *w, const mxd_wcore_action *a) {
    switch (a->kind) {
    case MXD_WACT_LOAD:
        start_load(w, a);
        break;
    case MXD_WACT_UNLOAD:
        push_job(w, mxd_task_new(w->al, MXD_TASK_UNLOAD));
        break;
    case MXD_WACT_FORGET:
        push_job(w, mxd_task_new(w->al, MXD_TASK_FORGET));
        break;
    case MXD_WACT_COMPUTE:
        start_compute(w, a);
        break;
    case MXD_WACT_FORWARD:
        forward(w, a);
        break;
    case MXD_WACT_RESULT:
        send_result(w, a);
        break;
    case MXD_WACT_DISCARD: /* the job is freed by whoever called the core */
        break;
    case MXD_WACT_NACK:
        mxd_wire_put_nack(fresh(w), a->epoch, a->step, a->rc,
                          a->text ? a->text : mxd_rc_text(a->rc));
        tell(w, MXD_WIRE_NACK);
        break;
    case MXD_WACT_READY:
        ready(w, a);
        break;
    case MXD_WACT_FAILED:
        mxd_wire_put_failed(fresh(w), a->epoch, a->rc, a->text ? a->text : mxd_rc_text(a->rc));
        tell(w, MXD_WIRE_FAILED);
        break;
    case MXD_WACT_BEAT:
        beat(w, a);
        break;
    case MXD_WACT_NEIGHBOUR_DOWN:
        mxd_wire_put_neighbour_down(fresh(w), &(mxd_core_neighbour){a->epoch, a->node});
        tell(w, MXD_WIRE_NEIGHBOUR_DOWN);
        break;
    case MXD_WACT_LEAVE:
        mxd_wire_put_leave(fresh(w));
        tell(w, MXD_WIRE_LEAVE);
        break;
    case MXD_WACT_CONNECT:
        dial_later(w);
        break;
    case MXD_WACT_LINK_NEXT:
        link_next(w, a->stage);
        break;
    case MXD_WACT_ABORT:
        mxd_worker_group_abort(&w->engine.group, a->epoch);
        break;
    case MXD_WACT_EXIT:
        end_with(w, MXD_OK, "let go");
        break;
    }
}

/* Actions are borrowed from the core until its next step, so an event that comes up while they are
 * carried out waits its turn: only NEIGHBOUR_DOWN does, and the last one is news enough. */
static void give(mxd_worker *w, mxd_wcore_event *ev) {
    if (w->busy) {
        w->later = *ev;
        w->has_later = true;
        return;
    }
    w->busy = true;
    mxd_wcore_event next = *ev;
    do {
        mxd_wcore_actions out;
        w->has_later = false;
        next.now_ms = mxd_now_ms();
        mxd_wcore_step(w->core, &next, &out);
        atomic_store(&w->engine.epoch, mxd_wcore_epoch(w->core));
        for (int i = 0; i < out.n && !w->stop; i++) act(w, &out.list[i]);
        next = w->later;
    } while (w->has_later && !w->stop);
    w->busy = false;
}

/* -------------------------------------------------------------------------------------- messages
 */

static mxd_rc become_member(mxd_worker *w, mxd_err *err) {
    const mxd_welcome *m = &w->welcome;
    mxd_wcore_cfg cfg = {.n_slots = m->slots, .ctx = m->ctx};
    w->core_memory = mxd_new(w->al, 1, mxd_wcore_bytes(&cfg));
    w->core = w->core_memory ? mxd_wcore_init(w->core_memory, &cfg) : NULL;
    if (!w->core) return mxd_fail(err, MXD_E_NOMEM, "no memory for the worker's core");
    const mxd_worker_opts *o = &w->opts;
    int threads = o->threads ? o->threads : m->threads ? m->threads : mxd_proc_cores();
    w->engine.group.by_quota = o->cpus > 0 && o->cpus < threads;
    w->engine.shard_opts =
        (mxd_shard_opts){.n_slots = m->slots,
                         .ctx = m->ctx,
                         .max_rows = m->max_rows,
                         .backend = o->backend      ? o->backend
                                    : m->backend[0] ? m->backend
                                                    : "auto",
                         .backend_opts = {.threads = threads,
                                          .spin_us = threads > 1 ? SPIN_US : 0,
                                          .activations = (mxd_activations)m->activations,
                                          .kv = (mxd_kv_type)m->kv,
                                          .kernels = o->kernels      ? o->kernels
                                                     : m->kernels[0] ? m->kernels
                                                                     : NULL,
                                          .scratch_dir = o->scratch_dir}};
    return mxd_worker_engine_start(&w->engine, w->al, w->engine.done, w->engine.done_ctx, err);
}

static mxd_rc on_welcome(mxd_worker *w, const mxd_blob *head, mxd_err *err) {
    mxd_welcome m;
    mxd_rc read = mxd_wire_get_welcome(&m, &w->scratch, head->bytes, head->len, err);
    if (read == MXD_E_UNSUPPORTED) end_with(w, read, err->msg);
    if (read) return read;
    if (!w->core) {
        w->welcome = m;
        mxd_rc rc = become_member(w, err);
        if (rc) end_with(w, rc, err->msg);
        if (rc) return MXD_OK;
    } else if (m.ctx != w->welcome.ctx || m.slots != w->welcome.slots ||
               memcmp(m.tensors_hash, w->welcome.tensors_hash, sizeof m.tensors_hash) != 0) {
        end_with(w, MXD_E_STALE, "the coordinator came back with another model or context");
        return MXD_OK;
    }
    w->member = true;
    atomic_store(&w->is_member, true);
    w->backoff_ms = 0;
    w->refusals = 0;
    mxd_log(MXD_LOG_INFO, "joined", "coordinator=%s model=%s", w->opts.join, w->welcome.model);
    give(w, &(mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    if (w->drain_wanted) give(w, &(mxd_wcore_event){.kind = MXD_WCORE_DRAIN});
    return MXD_OK;
}

static mxd_rc on_drop(mxd_worker *w, const mxd_blob *head, mxd_err *err) {
    mxd_wire_failure f;
    MXD_TRY(mxd_wire_get_drop(&f, &w->scratch, head->bytes, head->len, err));
    if (f.rc == MXD_OK && w->core) {
        give(w, &(mxd_wcore_event){.kind = MXD_WCORE_RELEASED});
    } else if (f.rc == MXD_OK) {
        end_with(w, MXD_OK, f.text);
    } else if (!mxd_rc_retry(f.rc) && f.rc != MXD_E_INVAL) {
        end_with(w, f.rc, f.text);
    } else {
        mxd_log(MXD_LOG_WARN, "dropped", "reason=%s text=\"%s\"", mxd_rc_name(f.rc), f.text);
    }
    return MXD_OK;
}

/* ------------------------------------------------------------------------------ certificates */

static const char *own_cert(const mxd_worker *w) {
    return w->cert ? w->cert : w->opts.identity.cert;
}

static mxd_rc ask_renewal(mxd_worker *w, mxd_err *err) {
    char *csr;
    MXD_TRY(mxd_csr_again(w->al, w->opts.node, w->opts.identity.key, &csr, err));
    mxd_wire_put_renew(fresh(w), csr);
    mxd_free(w->al, csr);
    tell(w, MXD_WIRE_RENEW);
    return MXD_OK;
}

/* At two thirds of its life, and when we come back and that was long ago. The clock of the wall may
 * jump and our own may sleep, so it is looked at now and then. */
static void watch_certificate(mxd_worker *w, int64_t now_ms) {
    mxd_err err = {0};
    int64_t in = 0;
    if (w->opts.hub || !w->member || now_ms < w->renew_at_ms) return;
    mxd_rc rc = mxd_cert_renew_in(own_cert(w), &in, &err);
    if (!rc && !in) rc = ask_renewal(w, &err);
    if (rc) mxd_log(MXD_LOG_WARN, "certificate_not_renewed", "error=\"%s\"", err.msg);
    w->renew_at_ms = now_ms + (in == 0 ? RENEW_AGAIN_MS : in < RENEW_LOOK_MS ? in : RENEW_LOOK_MS);
}

static mxd_rc on_certificate(mxd_worker *w, const mxd_blob *head, mxd_err *err) {
    const char *cert;
    char name[MXD_MAX_NODE_NAME];
    const mxd_identity *own = &w->opts.identity;
    MXD_TRY(mxd_wire_get_certificate(&cert, &w->scratch, head->bytes, head->len, err));
    if (w->opts.hub) return MXD_OK;
    MXD_TRY(mxd_identity_check(own->ca, cert, own->key, name, err));
    if (strcmp(name, w->opts.node) != 0)
        return mxd_fail(err, MXD_E_AUTH, "a new certificate for '%s', not for us", name);
    char *copy = mxd_strdup(w->al, cert);
    if (!copy) return mxd_fail(err, MXD_E_NOMEM, "certificate");
    mxd_rc rc = mxd_grpc_renew(w->net, &(mxd_identity){own->ca, copy, own->key}, err);
    if (rc) {
        mxd_free(w->al, copy);
        return rc;
    }
    mxd_free(w->al, w->cert);
    w->cert = copy;
    mxd_worker_weights_renewed(&w->engine.weights, copy);
    w->renew_at_ms = 0;
    mxd_log(MXD_LOG_INFO, "certificate_renewed", "node=%s", w->opts.node);
    if (w->opts.renewed) w->opts.renewed(w->opts.renewed_ctx, copy);
    return MXD_OK;
}

/* --------------------------------------------------------------------------------- dispatching */

static mxd_rc on_control(mxd_worker *w, const mxd_net_event *ev, mxd_err *err) {
    const mxd_blob *h = ev->head;
    switch (ev->message) {
    case MXD_WIRE_ECHO:
        echo_came(w);
        return MXD_OK;
    case MXD_WIRE_WELCOME:
        return on_welcome(w, h, err);
    case MXD_WIRE_DROP:
        return on_drop(w, h, err);
    case MXD_WIRE_CERTIFICATE:
        return on_certificate(w, h, err);
    case MXD_WIRE_SOURCES: {
        mxd_wire_sources s;
        MXD_TRY(mxd_wire_get_sources(&s, &w->scratch, h->bytes, h->len, err));
        for (int i = 0; i < s.n; i++) reach(w, s.list[i].address, sizeof s.list[i].address);
        mxd_worker_weights_sources(&w->engine.weights, &s);
        return MXD_OK;
    }
    case MXD_WIRE_INSTALL: {
        mxd_stage s;
        MXD_TRY(mxd_wire_get_install(&s, &w->scratch, h->bytes, h->len, err));
        if (!w->core) return MXD_OK;
        if (s.epoch >= mxd_wcore_epoch(w->core))
            atomic_store(&w->engine.wanted, mxd_worker_engine_part(&s));
        place_peers(w, s.next, s.n_next);
        place_peers(w, s.ranks, s.n_ranks);
        if (!(s.rank == 0 && s.n_next) && s.epoch > mxd_wcore_epoch(w->core))
            mxd_fan_drop(&w->next);
        give(w, &(mxd_wcore_event){.kind = MXD_WCORE_PLAN, .stage = &s});
        return MXD_OK;
    }
    case MXD_WIRE_UNINSTALL: {
        uint64_t epoch;
        MXD_TRY(mxd_wire_get_uninstall(&epoch, &w->scratch, h->bytes, h->len, err));
        if (w->core) give(w, &(mxd_wcore_event){.kind = MXD_WCORE_UNINSTALL, .epoch = epoch});
        return MXD_OK;
    }
    default: /* of a newer version */
        mxd_log(MXD_LOG_DEBUG, "message_unknown", "kind=%u", ev->message);
        return MXD_OK;
    }
}

static mxd_rc on_frame(mxd_worker *w, const mxd_net_event *ev, mxd_err *err) {
    if (ev->message != MXD_WIRE_STEP || !w->core) return MXD_OK;
    mxd_task *job = step_job(w);
    if (!job) return mxd_fail(err, MXD_E_NOMEM, "no memory for a step");
    mxd_rc rc = mxd_wire_get_step(&job->step, &job->scratch, ev->head->bytes, ev->head->len, err);
    if (rc) {
        retire(w, job);
        return rc;
    }
    job->epoch = job->step.epoch;
    job->step_id = job->step.step;
    job->head = mxd_blob_retain(ev->head);
    job->hidden_in = mxd_blob_retain(ev->payload);
    w->frame = job;
    mxd_wcore_event e = {.kind = MXD_WCORE_FRAME};
    e.frame.epoch = job->step.epoch;
    e.frame.step = job->step.step;
    e.frame.n_runs = job->step.n_runs;
    e.frame.runs = job->step.runs;
    e.frame.has_hidden = ev->payload != NULL;
    give(w, &e);
    retire(w, w->frame); /* still ours: it was refused */
    w->frame = NULL;
    return MXD_OK;
}

/* A peer whose messages make no sense is hung up on. */
static void on_message(mxd_worker *w, const mxd_net_event *ev) {
    mxd_err err = {0};
    mxd_arena_reset(&w->scratch, 0);
    mxd_rc rc = MXD_OK;
    if (ev->link == w->control)
        rc = on_control(w, ev, &err);
    else if (ev->lane == MXD_LANE_DATA)
        rc = on_frame(w, ev, &err);
    if (!rc) return;
    mxd_log(MXD_LOG_ERROR, "message_bad", "peer=%s error=\"%s\"", ev->peer, err.msg);
    w->net->ops->hangup(w->net, ev->link);
}

static void on_net(mxd_worker *w, const mxd_net_event *ev) {
    int lost;
    if (ev->kind == MXD_NET_MESSAGE) {
        on_message(w, ev);
    } else if (ev->link == w->control) {
        if (ev->kind == MXD_NET_UP)
            control_up(w);
        else
            control_down(w, ev);
    } else if (mxd_fan_event(&w->next, ev, &lost)) {
        if (lost >= 0)
            next_down(w, lost);
        else if (w->ready_held && mxd_fan_is_up(&w->next))
            send_ready(w);
    }
}

/* ------------------------------------------------------------------------------- finished jobs */

static void job_done(void *ctx, mxd_task *job) { /* engine thread */
    mxd_worker *w = ctx;
    while (!mxd_inbox_post(&w->inbox, POSTED_JOB, job)) {
        if (mxd_queue_closed(w->inbox.queue)) {
            mxd_task_free(w->al, job);
            return;
        }
        mxd_sleep_ms(1); /* full: the engine is what must wait */
    }
}

static void on_job(mxd_worker *w, mxd_task *job) {
    mxd_wcore_event e = {.kind = MXD_WCORE_LOADED};
    if (job->kind == MXD_TASK_LOAD) {
        e.loaded.epoch = job->epoch;
        e.loaded.bytes = job->bytes;
        e.loaded.rc = job->err.rc;
        e.loaded.peer = job->missed;
        e.loaded.text = job->err.msg;
        e.loaded.determinism = job->determinism;
        snprintf(w->ready.determinism, sizeof w->ready.determinism, "%s", job->determinism);
        give(w, &e);
    } else if (job->kind == MXD_TASK_COMPUTE) {
        e.kind = MXD_WCORE_COMPUTED;
        e.computed.epoch = job->epoch;
        e.computed.step = job->step_id;
        e.computed.rc = job->err.rc;
        e.computed.peer = job->missed;
        e.computed.ms = job->ms;
        if (job->err.rc && job->err.rc != MXD_E_STALE && job->err.rc != MXD_E_CANCELED)
            mxd_log(MXD_LOG_ERROR, "step_failed", "error=\"%s\"", job->err.msg);
        w->computed = job;
        give(w, &e);
        w->computed = NULL;
    }
    retire(w, job);
}

/* ------------------------------------------------------------------------------- control thread */

static void on_posted(mxd_worker *w, const mxd_inbox_item *item) {
    if (item->what == POSTED_JOB) {
        on_job(w, item->ptr);
    } else {
        w->drain_wanted = true;
        if (w->core && w->member)
            give(w, &(mxd_wcore_event){.kind = MXD_WCORE_DRAIN});
        else
            end_with(w, MXD_OK, "let go before it had joined");
    }
}

static void tick(mxd_worker *w) {
    int64_t now = mxd_now_ms();
    if (w->dial_at_ms && now >= w->dial_at_ms) dial_coordinator(w);
    if (now - w->last_tick_ms < TICK_MS) return;
    w->last_tick_ms = now;
    mxd_giver_busy(w->giver, now - w->computed_ms < BUSY_MS);
    if (mxd_worker_echo_late(&w->echo)) {
        w->echo.running = false;
        say_hello(w);
    }
    watch_certificate(w, now);
    if (w->core) give(w, &(mxd_wcore_event){.kind = MXD_WCORE_TICK});
}

static void *control_main(void *arg) {
    mxd_worker *w = arg;
    dial_coordinator(w);
    while (!w->stop && !mxd_inbox_closed(&w->inbox)) {
        mxd_inbox_item *item = mxd_inbox_take(&w->inbox, TICK_MS);
        if (item && item->kind == MXD_INBOX_NET) on_net(w, &item->net);
        if (item && item->kind == MXD_INBOX_OWN) on_posted(w, item);
        if (item) mxd_inbox_free(&w->inbox, item);
        if (!w->stop) tick(w);
    }
    end_with(w, MXD_OK, "closed");
    return NULL;
}

/* -------------------------------------------------------------------------------------- opening */

/* A copy that lives as long as the worker; NULL stays NULL. */
static mxd_rc keep(mxd_worker *w, const char **s, mxd_err *err) {
    if (!*s) return MXD_OK;
    MXD_ASSERT(w->n_text < (int)MXD_COUNT(w->text));
    char *copy = mxd_strdup(w->al, *s);
    if (!copy) return mxd_fail(err, MXD_E_NOMEM, "worker");
    w->text[w->n_text++] = copy;
    *s = copy;
    return MXD_OK;
}

static mxd_rc keep_all(mxd_worker *w, mxd_err *err) {
    mxd_worker_opts *o = &w->opts;
    const char **all[] = {&o->node,          &o->name,         &o->join,        &o->listen,
                          &o->advertise,     &o->backend,      &o->kernels,     &o->identity.ca,
                          &o->identity.cert, &o->identity.key, &o->weights_dir, &o->scratch_dir};
    for (size_t i = 0; i < MXD_COUNT(all); i++) MXD_TRY(keep(w, all[i], err));
    return MXD_OK;
}

static mxd_rc advertise(mxd_worker *w, int own_port, mxd_err *err) {
    const char *told = w->opts.advertise;
    char host[MXD_HOST_MAX];
    int port;
    mxd_rc rc = mxd_address_split(told, host, &port, err);
    if (rc) return mxd_wrap(err, rc, "the address to advertise");
    if (strlen(told) >= sizeof w->address - 5 || mxd_place_is_any(told))
        return mxd_fail(err, MXD_E_NET,
                        "'%.64s' cannot be advertised: give one address by which the others reach "
                        "this machine",
                        told);
    mxd_place_with_port(w->address, sizeof w->address, told, port ? port : own_port);
    return MXD_OK;
}

/* The address others are told: as bound, with the port that was taken. */
static mxd_rc listen_for_data(mxd_worker *w, mxd_err *err) {
    bool here = w->opts.local || w->opts.hub || mxd_place_is_loopback(w->opts.join);
    const char *address = w->opts.listen ? w->opts.listen : here ? "127.0.0.1:0" : "0.0.0.0:0";
    int port;
    MXD_TRY(w->net->ops->listen(w->net, address, &port, err));
    if (w->opts.advertise) return advertise(w, port, err);
    mxd_place_with_port(w->address, sizeof w->address, address, port);
    return MXD_OK;
}

/* What ranks exchange goes straight to the thread that waits for it. */
static void sink(void *ctx, const mxd_net_event *ev) { /* transport thread */
    mxd_worker *w = ctx;
    if (ev->lane == MXD_LANE_GROUP)
        mxd_worker_group_event(&w->engine.group, ev);
    else
        mxd_giver_sink(w->giver, ev);
}

static mxd_rc open_net(mxd_worker *w, mxd_err *err) {
    mxd_transport_opts o = {.al = w->al, .identity = w->opts.identity, .sink = sink, .sink_ctx = w};
    if (w->opts.hub)
        MXD_TRY(mxd_loopback_open(&w->net, w->opts.hub, &o, w->opts.node, err));
    else
        MXD_TRY(mxd_grpc_open(&w->net, &o, err));
    w->inbox.transport = w->net;
    MXD_TRY(mxd_giver_start(w->giver, w->net, err));
    w->engine.group.net = w->net;
    return listen_for_data(w, err);
}

static mxd_rc open_all(mxd_worker *w, mxd_err *err) {
    MXD_TRY(keep_all(w, err));
    MXD_TRY(mxd_rand_secret(&w->incarnation, sizeof w->incarnation, err));
    MXD_TRY(mxd_inbox_init(&w->inbox, w->al, err));
    MXD_TRY(mxd_arena_init(&w->scratch, w->al, MXD_WIRE_SCRATCH, err));
    mxd_buf_init(&w->head, w->al, MXD_MAX_HELLO_BYTES);
    w->engine.done = job_done;
    w->engine.done_ctx = w;
    MXD_TRY(mxd_giver_open(&w->giver, w->al, &w->inbox, err));
    w->engine.weights.al = w->al;
    w->engine.weights.opts = &w->opts;
    w->engine.weights.welcome = &w->welcome;
    w->engine.weights.giver = w->giver;
    w->engine.stall_ms = w->opts.stall_ms;
    MXD_TRY(open_net(w, err));
    if (pthread_create(&w->thread, NULL, control_main, w) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start the worker's control thread");
    w->started = true;
    return MXD_OK;
}

mxd_rc mxd_worker_open(mxd_worker **out, const mxd_alloc *al, const mxd_worker_opts *opts,
                       mxd_err *err) {
    if (!opts->node || !opts->join)
        return mxd_fail(err, MXD_E_INVAL, "a worker needs a node id and an address to join");
    mxd_worker *w = MXD_NEW(al, 1, mxd_worker);
    if (!w) return mxd_fail(err, MXD_E_NOMEM, "worker");
    w->al = al;
    w->opts = *opts;
    mxd_worker_group_init(&w->engine.group, al, !opts->hub);
    pthread_mutex_init(&w->lock, NULL);
    mxd_cond_init(&w->ended_cond);
    mxd_worker_weights_init(&w->engine.weights);
    mxd_rc rc = open_all(w, err);
    if (rc) {
        mxd_worker_close(w);
        return rc;
    }
    *out = w;
    return MXD_OK;
}

mxd_rc mxd_worker_wait(mxd_worker *w, int64_t timeout_ms, mxd_err *err) {
    int64_t until = mxd_now_ms() + timeout_ms;
    pthread_mutex_lock(&w->lock);
    for (int64_t left; !w->ended && (left = until - mxd_now_ms()) > 0;)
        mxd_cond_wait(&w->ended_cond, &w->lock, left * 1000000);
    mxd_rc rc = w->ended ? w->end.rc : MXD_E_TIMEOUT;
    if (rc) mxd_fail(err, rc, "%s", w->ended ? w->end.msg : "the worker still runs");
    pthread_mutex_unlock(&w->lock);
    return rc;
}

bool mxd_worker_is_member(mxd_worker *w) { return atomic_load(&w->is_member); }

void mxd_worker_drain(mxd_worker *w) { mxd_inbox_post(&w->inbox, POSTED_DRAIN, NULL); }

void mxd_worker_close(mxd_worker *w) {
    if (!w) return;
    if (w->started) {
        mxd_inbox_close(&w->inbox);
        pthread_join(w->thread, NULL);
    }
    mxd_giver_stop(w->giver);
    if (w->inbox.queue) mxd_inbox_close(&w->inbox);
    mxd_worker_group_abort(&w->engine.group, UINT64_MAX); /* a step may wait for other ranks */
    mxd_worker_engine_stop(&w->engine);
    if (w->net) w->net->ops->close(w->net);
    mxd_worker_group_deinit(&w->engine.group);
    mxd_worker_weights_deinit(&w->engine.weights);
    mxd_giver_free(w->giver);
    if (w->inbox.queue) /* jobs that came back too late */
        for (mxd_inbox_item *i; (i = mxd_inbox_take(&w->inbox, 0)) != NULL;
             mxd_inbox_free(&w->inbox, i))
            if (i->kind == MXD_INBOX_OWN && i->what == POSTED_JOB) mxd_task_free(w->al, i->ptr);
    mxd_inbox_deinit(&w->inbox);
    mxd_buf_deinit(&w->head);
    mxd_arena_deinit(&w->scratch);
    mxd_free(w->al, w->core_memory);
    mxd_free(w->al, w->cert);
    while (w->n_spare) mxd_task_free(w->al, w->spare[--w->n_spare]);
    for (int i = 0; i < w->n_text; i++) mxd_free(w->al, w->text[i]);
    pthread_cond_destroy(&w->ended_cond);
    pthread_mutex_destroy(&w->lock);
    mxd_free(w->al, w);
}
