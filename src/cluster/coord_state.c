/* coord_state.c - what people see of a cluster: readiness, JSON, counters. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/log.h"
#include "cluster/coord_private.h"
#include "hardware/hardware.h"

/* ------------------------------------------------------------------------------------- readiness
 */

/* Starts are tried for ever, but whoever waits for the first plan should hear that none works. */
enum { FAILED_STARTS_EACH = 4 };

static bool starts_fail(const mxd_cluster *c) {
    return c->opts.local_workers > 0 &&
           c->n_failed_starts >= FAILED_STARTS_EACH * c->opts.local_workers;
}

void mxd_coord_start_failed(mxd_cluster *c, const char *how) {
    if (c->n_failed_starts < INT_MAX) c->n_failed_starts++;
    snprintf(c->start_problem, sizeof c->start_problem, "%s", how);
    mxd_coord_publish(c);
}

void mxd_coord_publish(mxd_cluster *c) {
    mxd_coord_view v;
    mxd_coord_view_get(c->core, &v);
    pthread_mutex_lock(&c->lock);
    mxd_cluster_state was = c->state;
    c->state = v.state == MXD_COORD_SERVING ? MXD_CLUSTER_READY
               : v.stuck || starts_fail(c)  ? MXD_CLUSTER_FAILED
               : c->served                  ? MXD_CLUSTER_RECOVERING
                                            : MXD_CLUSTER_LOADING;
    c->served = c->served || c->state == MXD_CLUSTER_READY;
    c->why = (mxd_err){.rc = v.rc ? v.rc : MXD_E_PEER};
    snprintf(c->why.msg, sizeof c->why.msg, "%s", v.why[0] ? v.why : "no worker is connected");
    if (v.determinism[0]) snprintf(c->determinism, sizeof c->determinism, "%s", v.determinism);
    if (c->state == MXD_CLUSTER_FAILED && !v.stuck)
        mxd_fail(&c->why, MXD_E_PEER,
                 "the local workers end before they have joined (%s); see the log, and check %s",
                 c->start_problem, c->opts.worker_program ? c->opts.worker_program : "the program");
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    if (c->state == was) return;
    if (c->state == MXD_CLUSTER_READY)
        mxd_log(MXD_LOG_INFO, "plan_serving", "epoch=%llu stages=%d", (unsigned long long)v.epoch,
                v.plan->n_stages);
    else if (c->state == MXD_CLUSTER_FAILED)
        mxd_log(MXD_LOG_WARN, "no_plan", "reason=\"%s\"", c->why.msg);
}

mxd_cluster_state mxd_cluster_state_now(mxd_cluster *c, mxd_err *err) {
    pthread_mutex_lock(&c->lock);
    mxd_cluster_state s = c->state;
    if (err) *err = c->why;
    pthread_mutex_unlock(&c->lock);
    return s;
}

static bool is_pending(mxd_cluster_state s) {
    return s == MXD_CLUSTER_LOADING || s == MXD_CLUSTER_RECOVERING;
}

mxd_rc mxd_cluster_wait(mxd_cluster *c, int64_t timeout_ms, mxd_err *err) {
    int64_t until = mxd_now_ms() + timeout_ms;
    pthread_mutex_lock(&c->lock);
    for (int64_t left; is_pending(c->state) && (left = until - mxd_now_ms()) > 0;)
        mxd_cond_wait(&c->changed, &c->lock, left * 1000000);
    mxd_cluster_state s = c->state;
    mxd_err why = c->why;
    pthread_mutex_unlock(&c->lock);
    if (s == MXD_CLUSTER_READY) return MXD_OK;
    if (is_pending(s))
        return mxd_fail(err, MXD_E_TIMEOUT, "the model was not loaded in %lld s",
                        (long long)timeout_ms / 1000);
    if (err) *err = why;
    return why.rc;
}

const char *mxd_cluster_determinism(mxd_cluster *c) {
    pthread_mutex_lock(&c->lock);
    const char *d = strcmp(c->determinism, "bit-exact") == 0 ? "bit-exact" : "per-node";
    pthread_mutex_unlock(&c->lock);
    return d;
}

/* ------------------------------------------------------------------------------------------ JSON
 */

static json_t *node_json(const mxd_node_view *v, const mxd_plan *plan) {
    json_t *layers = json_null();
    double share = 0;
    if (v->stage >= 0 && plan && v->stage < plan->n_stages) {
        const mxd_plan_stage *s = &plan->stages[v->stage];
        layers = json_pack("[i, i]", s->layer0, s->layer1);
        share = s->ranks[v->rank].share;
    }
    return json_pack(
        "{s:s, s:s, s:s, s:I, s:s, s:s, s:b, s:I, s:I, s:I, s:o, s:f, s:f, s:f, s:i, s:{s:I, s:I}}",
        "id", v->info.id, "name", v->info.name[0] ? v->info.name : v->info.id, "host", v->info.host,
        "pid", (json_int_t)v->info.pid, "state", mxd_node_state_name(v->state), "backend",
        v->info.backend, "local", v->info.local, "memory_total", (json_int_t)v->info.memory_total,
        "memory_planned", (json_int_t)v->planned, "memory_used", (json_int_t)v->beat.rss, "layers",
        layers, "share", share, "step_ms", (double)v->beat.step_ms, "slow", v->slow, "failures",
        v->n_failures, "load", "done", (json_int_t)v->beat.load_done, "total",
        (json_int_t)v->beat.load_total);
}

static json_t *rank_json(mxd_cluster *c, const mxd_plan_rank *r) {
    return json_pack("{s:s, s:f, s:I, s:I, s:I}", "node", mxd_coord_node(c->core, r->node)->info.id,
                     "share", r->share, "weight_bytes", (json_int_t)r->weight_bytes, "kv_bytes",
                     (json_int_t)r->kv_bytes, "scratch_bytes", (json_int_t)r->scratch_bytes);
}

static json_t *stage_json(mxd_cluster *c, const mxd_plan_stage *s) {
    json_t *ranks = json_array();
    for (int r = 0; r < s->n_ranks; r++) json_array_append_new(ranks, rank_json(c, &s->ranks[r]));
    return json_pack("{s:[i, i], s:b, s:b, s:f, s:f, s:o}", "layers", s->layer0, s->layer1, "embed",
                     s->embed, "head", s->head, "decode_ms", s->decode_ms, "exchange_ms",
                     s->exchange_ms, "ranks", ranks);
}

static json_t *plan_json(mxd_cluster *c, const mxd_plan *p) {
    json_t *stages = json_array(), *reasons = json_array();
    for (int i = 0; i < p->n_stages; i++)
        json_array_append_new(stages, stage_json(c, &p->stages[i]));
    for (int i = 0; i < p->n_reasons; i++)
        json_array_append_new(reasons, json_string(p->reasons[i]));
    return json_pack("{s:o, s:f, s:f, s:f, s:i, s:i, s:o}", "stages", stages, "decode_tokens_per_s",
                     p->decode_tokens_per_s, "prefill_tokens_per_s", p->prefill_tokens_per_s,
                     "all_tokens_per_s", p->all_tokens_per_s, "prompt", p->prompt, "bottleneck",
                     p->bottleneck, "reasons", reasons);
}

static const char *const state_names[] = {[MXD_COORD_FORMING] = "forming",
                                          [MXD_COORD_INSTALLING] = "installing",
                                          [MXD_COORD_SERVING] = "serving"};

/* What a node measured before its hello, and what it can do: the planner's figures. */
static json_t *link_json(const mxd_node_info *n) {
    return json_pack("{s:s, s:s, s:f, s:f}", "a", "coordinator", "b", n->id, "latency_us",
                     n->link_us, "bandwidth_bytes_per_s", n->link_bandwidth);
}

static json_t *speed_json(const mxd_node_info *n) {
    return json_pack("{s:f, s:f, s:o}", "bandwidth_bytes_per_s", n->bandwidth, "ops_per_s", n->ops,
                     "paces", mxd_paces_json(&n->paces));
}

static void state_call(mxd_cluster *c, void *arg) {
    json_t *nodes = json_array(), *links = json_array();
    mxd_coord_view v;
    mxd_coord_view_get(c->core, &v);
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const mxd_node_view *n = mxd_coord_node(c->core, i);
        if (n->state == MXD_NODE_NONE) continue;
        json_t *node = node_json(n, v.planned ? v.plan : NULL);
        json_object_set_new(node, "speed", speed_json(&n->info));
        json_array_append_new(nodes, node);
        if (n->info.link_us > 0) json_array_append_new(links, link_json(&n->info));
    }
    json_t *model = json_pack("{s:s, s:i, s:i}", "id", c->welcome.model, "ctx", c->welcome.ctx,
                              "layers", c->sizes->n_layers);
    *(json_t **)arg =
        json_pack("{s:I, s:o, s:s, s:b, s:b, s:s?, s:o, s:o, s:o, s:{s:I, s:I, s:I}}", "epoch",
                  (json_int_t)v.epoch, "model", model, "state", state_names[v.state], "degraded",
                  v.degraded, "draining", v.draining, "problem",
                  v.why[0]        ? v.why
                  : v.left_out[0] ? v.left_out
                                  : NULL,
                  "plan", v.planned ? plan_json(c, v.plan) : json_null(), "nodes", nodes, "links",
                  links, "requests", "running", (json_int_t)v.running, "queued",
                  (json_int_t)v.waiting, "slots", (json_int_t)v.slots);
}

json_t *mxd_cluster_state_json(mxd_cluster *c) {
    json_t *out = NULL;
    return mxd_coord_sync(c, state_call, &out) ? out : NULL;
}

/* -------------------------------------------------------------------------------------- counters
 */

static void counters_call(mxd_cluster *c, void *arg) {
    mxd_coord_view v;
    mxd_coord_view_get(c->core, &v);
    *(mxd_cluster_counters *)arg = (mxd_cluster_counters){.epochs = v.n_epochs,
                                                          .replays = v.n_replays,
                                                          .steps = v.n_steps,
                                                          .requests_done = v.n_done,
                                                          .requests_failed = v.n_failed,
                                                          .requests_cancelled = v.n_cancelled,
                                                          .prompt_tokens = v.n_prompt_tokens,
                                                          .cached_tokens = v.n_cached_tokens,
                                                          .generated_tokens = v.n_generated_tokens,
                                                          .running = v.running,
                                                          .waiting = v.waiting,
                                                          .slots = v.slots,
                                                          .nodes_live = v.nodes_live,
                                                          .kv_tokens_used = v.kv_used,
                                                          .kv_tokens_total = v.kv_total};
}

void mxd_cluster_counters_get(mxd_cluster *c, mxd_cluster_counters *out) {
    *out = (mxd_cluster_counters){0};
    mxd_coord_sync(c, counters_call, out);
}
