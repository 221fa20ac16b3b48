#include "plan/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "plan/search.h"

/* Unknown speeds, when nothing at all is known: only their ratio matters for the cut. */
static const double guess_bandwidth = 40e9, guess_ops = 200e9;
/* A link nobody described: one machine's loopback or a good local network. */
static const double guess_latency_us = 100, guess_link = 1e9;
/* How much slower than the fastest cut one stream may get for the sake of even stages. */
static const double even_slack = 1.05;

static double gb(double bytes) { return bytes / 1e9; }

static void reason(mxd_plan *p, const char *fmt, ...) MXD_PRINTF(2, 3);
static void reason(mxd_plan *p, const char *fmt, ...) {
    if (p->n_reasons >= (int)MXD_COUNT(p->reasons)) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p->reasons[p->n_reasons++], sizeof p->reasons[0], fmt, ap);
    va_end(ap);
}

/* ------------------------------------------------------------------------------------- the task */

static mxd_rc check(const mxd_model_sizes *m, const mxd_plan_node *nodes, int n_nodes,
                    const mxd_plan_link *links, int n_links, const mxd_plan_opts *o, mxd_err *err) {
    if (n_nodes < 1 || n_nodes > MXD_MAX_NODES)
        return mxd_fail(err, MXD_E_INVAL, "a plan needs 1 to %d nodes, not %d", MXD_MAX_NODES,
                        n_nodes);
    if (m->n_layers < 1 || m->n_layers > MXD_MAX_LAYERS)
        return mxd_fail(err, MXD_E_INVAL, "a model of %d layers cannot be planned", m->n_layers);
    if (o->ctx < 1 || o->ctx > MXD_MAX_CONTEXT || o->parallel < 1 || o->parallel > MXD_MAX_SEQS)
        return mxd_fail(err, MXD_E_INVAL, "context %d for %d sequences cannot be planned", o->ctx,
                        o->parallel);
    if (!(o->reserve >= 0 && o->reserve < 1))
        return mxd_fail(err, MXD_E_INVAL, "the reserve must be from 0 to below 1");
    for (int i = 0; i < n_nodes; i++) {
        double b = nodes[i].bandwidth_bytes_per_s, c = nodes[i].ops_per_s;
        if (!(b >= 0) || !(c >= 0) || !isfinite(b) || !isfinite(c))
            return mxd_fail(err, MXD_E_INVAL, "node '%s': a speed below 0, or no number",
                            nodes[i].name);
    }
    for (int i = 0; i < n_links; i++) {
        const mxd_plan_link *l = &links[i];
        bool nodes_ok = l->a >= 0 && l->a < n_nodes && l->b >= 0 && l->b < n_nodes;
        bool speed_ok = l->latency_us >= 0 && l->bandwidth_bytes_per_s >= 0 &&
                        isfinite(l->latency_us) && isfinite(l->bandwidth_bytes_per_s);
        if (!nodes_ok || !speed_ok)
            return mxd_fail(err, MXD_E_INVAL, "link %d: %s", i,
                            nodes_ok ? "a speed below 0, or no number" : "no such node");
    }
    return MXD_OK;
}

static double mean_of_known(const mxd_plan_node *nodes, int n, bool ops, double guess) {
    double sum = 0;
    int known = 0;
    for (int i = 0; i < n; i++) {
        double x = ops ? nodes[i].ops_per_s : nodes[i].bandwidth_bytes_per_s;
        sum += x;
        known += x > 0;
    }
    return known ? sum / known : guess;
}

static void set_link(mxd_plan_task *t, int a, int b, double latency_us, double bytes_per_s) {
    double per_byte = 1 / (bytes_per_s > 0 ? bytes_per_s : guess_link);
    t->byte_s[a][b] = t->byte_s[b][a] = per_byte;
    t->hop_s[a][b] = t->hop_s[b][a] = latency_us * 1e-6 + (double)t->model->hidden_bytes * per_byte;
}

static void make_task(mxd_plan_task *t, const mxd_plan_link *links, int n_links,
                      const mxd_plan_opts *o) {
    double bandwidth = mean_of_known(t->nodes, t->n_nodes, false, guess_bandwidth);
    double ops = mean_of_known(t->nodes, t->n_nodes, true, guess_ops);
    double reserve = o->reserve > 0 ? o->reserve : 0.1;
    for (int i = 0; i < t->n_nodes; i++) {
        const mxd_plan_node *n = &t->nodes[i];
        t->bandwidth[i] = n->bandwidth_bytes_per_s > 0 ? n->bandwidth_bytes_per_s : bandwidth;
        t->ops[i] = n->ops_per_s > 0 ? n->ops_per_s : ops;
        t->usable[i] = (double)n->free_bytes * (1 - reserve);
        for (int j = 0; j < i; j++) set_link(t, i, j, guess_latency_us, guess_link);
    }
    for (int i = 0; i < n_links; i++)
        if (links[i].a != links[i].b)
            set_link(t, links[i].a, links[i].b, links[i].latency_us,
                     links[i].bandwidth_bytes_per_s);
    t->weights_to[0] = t->kv_to[0] = t->state_to[0] = 0;
    for (int l = 0; l < t->model->n_layers; l++) {
        t->weights_to[l + 1] = t->weights_to[l] + (double)t->model->layer_bytes[l];
        t->kv_to[l + 1] = t->kv_to[l] + (double)t->model->layer_kv_bytes[l];
        /* the last state of a sequence, and the one that is kept beside it (runtime/shard.h) */
        t->state_to[l + 1] = t->state_to[l] + 2.0 * (double)t->model->layer_state_bytes[l];
    }
}

static uint64_t must_of(const mxd_plan_task *t) {
    uint64_t must = 0;
    for (int i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].must) must |= (uint64_t)1 << i;
    return must;
}

/* ------------------------------------------------------------------------------ does not fit */

static mxd_rc fits_with(mxd_plan_task *t, const mxd_plan_cut *split, int ctx, bool *fits,
                        mxd_err *err) {
    int was = t->ctx;
    mxd_plan_cut cut;
    mxd_rc rc = MXD_OK;
    t->ctx = ctx;
    if (split) {
        *fits = true;
        for (int i = 0; i < split->n; i++)
            *fits = *fits && mxd_plan_fits(t, split->node[i], split->at[i], split->at[i + 1]);
    } else {
        rc = mxd_plan_search(t, must_of(t), true, &cut, fits, err);
    }
    t->ctx = was;
    return rc;
}

/* The largest context below t->ctx that fits; 0: none. */
static mxd_rc largest_context(mxd_plan_task *t, const mxd_plan_cut *split, int *out, mxd_err *err) {
    int lo = 0, hi = t->ctx;        /* lo fits or is 0, hi does not fit */
    while (hi - lo > 1 + lo / 64) { /* 1.5 % is near enough for a message */
        int mid = lo + (hi - lo) / 2;
        bool fits;
        MXD_TRY(fits_with(t, split, mid, &fits, err));
        if (fits)
            lo = mid;
        else
            hi = mid;
    }
    *out = lo;
    return MXD_OK;
}

/* Layers in proportion to usable memory: the way to say who misses how much. */
static void spread_by_memory(const mxd_plan_task *t, mxd_plan_cut *c) {
    double total = 0, before = 0;
    for (int i = 0; i < t->n_nodes; i++) total += t->usable[i];
    c->n = 0;
    int at = 0, layers = t->model->n_layers;
    for (int i = 0; i < t->n_nodes; i++) {
        before += t->usable[i];
        int to = i == t->n_nodes - 1 || total <= 0 ? layers : (int)(before / total * layers + 0.5);
        if (to <= at) continue;
        c->node[c->n] = i;
        c->at[c->n++] = at;
        c->at[c->n] = to;
        at = to;
    }
}

static void list_missing(const mxd_plan_task *t, int node, mxd_plan_bytes x, char *list,
                         size_t cap) {
    double need = x.weights + x.kv + x.scratch, missing = need - t->usable[node];
    size_t n = strlen(list);
    if (missing > 0 && n + 60 < cap)
        snprintf(list + n, cap - n, "%s%.24s misses %.2f GB (%.0f bytes) of %.2f GB", n ? ", " : "",
                 t->nodes[node].name, gb(missing), missing, gb(need));
}

static mxd_plan_bytes smallest_share(const mxd_plan_task *t) {
    mxd_plan_bytes least = {.weights = INFINITY};
    for (int l = 0; l < t->model->n_layers; l++) {
        mxd_plan_bytes x = mxd_plan_bytes_of(t, l, l + 1);
        if (x.weights + x.kv < least.weights + least.kv) least = x;
    }
    return least;
}

static mxd_rc no_fit(mxd_plan_task *t, const mxd_plan_cut *split, mxd_err *err) {
    char list[240] = "";
    mxd_plan_cut spread, *c = &spread;
    int ctx;
    MXD_TRY(largest_context(t, split, &ctx, err));
    if (split)
        *c = *split;
    else
        spread_by_memory(t, c);
    for (int i = 0; i < c->n; i++)
        list_missing(t, c->node[i], mxd_plan_bytes_of(t, c->at[i], c->at[i + 1]), list,
                     sizeof list);
    for (int i = 0; i < t->n_nodes && !list[0]; i++) /* too small for the one layer it must have */
        if (t->nodes[i].must) list_missing(t, i, smallest_share(t), list, sizeof list);
    if (!list[0]) snprintf(list, sizeof list, "no cut between layers fits the nodes");
    if (ctx > 0)
        return mxd_fail(err, MXD_E_NOFIT,
                        "the model does not fit: %s; a context of %d tokens would fit: use "
                        "--ctx-size %d, fewer --parallel (now %d), or add memory",
                        list, ctx, ctx, t->parallel);
    return mxd_fail(err, MXD_E_NOFIT,
                    "the model does not fit: %s; not even with the smallest context: add a node or "
                    "take a smaller quantization",
                    list);
}

/* ------------------------------------------------------------------------------------- choosing */

static mxd_rc follow_split(mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *c,
                           mxd_err *err) {
    int at = 0;
    if (o->n_split > t->n_nodes)
        return mxd_fail(err, MXD_E_INVAL, "the layer split names %d nodes, there are %d",
                        o->n_split, t->n_nodes);
    c->n = 0;
    for (int i = 0; i < o->n_split; i++) {
        if (o->split[i] < 0 || o->split[i] > t->model->n_layers - at)
            return mxd_fail(err, MXD_E_INVAL,
                            "the layer split gives out more than the model's %d layers",
                            t->model->n_layers);
        if (!o->split[i]) continue;
        c->node[c->n] = i;
        c->at[c->n++] = at;
        at += o->split[i];
        c->at[c->n] = at;
    }
    if (at != t->model->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "the layer split gives out %d layers, the model has %d",
                        at, t->model->n_layers);
    int last = t->model->last_cut;
    if (last && c->at[c->n - 1] > 0 && c->at[c->n - 1] > last)
        return mxd_fail(err, MXD_E_INVAL,
                        "the layer split cuts at layer %d, but layers from %d on share keys and "
                        "values and stay together",
                        c->at[c->n - 1], last < 0 ? 0 : last);
    for (int i = 0; i < c->n; i++)
        if (!mxd_plan_fits(t, c->node[i], c->at[i], c->at[i + 1])) return no_fit(t, c, err);
    mxd_plan_time(t, c);
    return MXD_OK;
}

/* Even stages where that costs one stream next to nothing: many streams then run faster. */
static mxd_rc make_even(const mxd_plan_task *t, mxd_plan_cut *c, double most_sum_s, mxd_err *err) {
    double lo = 0, hi = c->max_s;
    for (int i = 0; i < 30 && c->n > 1; i++) {
        double mid = (lo + hi) / 2;
        mxd_plan_cut even;
        bool found;
        MXD_TRY(mxd_plan_recut(t, c, mid, &even, &found, err));
        if (found && even.sum_s <= most_sum_s) {
            *c = even;
            hi = even.max_s;
        } else {
            lo = mid;
        }
    }
    return MXD_OK;
}

static mxd_rc choose(mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *c, mxd_err *err) {
    uint64_t must = must_of(t);
    int n_must = __builtin_popcountll(must);
    bool found, by_max = o->objective == MXD_OBJECTIVE_THROUGHPUT;
    if (n_must > t->model->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "%d nodes must get layers, the model has only %d", n_must,
                        t->model->n_layers);
    MXD_TRY(mxd_plan_search(t, must, by_max, c, &found, err));
    if (!found) return no_fit(t, NULL, err);
    return make_even(t, c, by_max ? INFINITY : c->sum_s * even_slack, err);
}

/* -------------------------------------------------------------------------------------- reasons */

static void fill_stages(const mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p) {
    double prefill = 0;
    p->n_stages = c->n;
    for (int i = 0; i < c->n; i++) {
        mxd_plan_bytes x = mxd_plan_bytes_of(t, c->at[i], c->at[i + 1]);
        p->stages[i] = (mxd_plan_stage){
            .layer0 = c->at[i],
            .layer1 = c->at[i + 1],
            .embed = c->at[i] == 0,
            .head = c->at[i + 1] == t->model->n_layers,
            .n_ranks = 1,
            .ranks[0] = {.node = c->node[i],
                         .share = 1,
                         .weight_bytes = (uint64_t)x.weights,
                         .kv_bytes = (uint64_t)x.kv,
                         .scratch_bytes = (uint64_t)x.scratch},
            .decode_ms = 1e3 * mxd_plan_decode_s(t, c->node[i], c->at[i], c->at[i + 1])};
        if (p->stages[i].decode_ms > p->stages[p->bottleneck].decode_ms) p->bottleneck = i;
        prefill = fmax(prefill, mxd_plan_prefill_s(t, c->node[i], c->at[i], c->at[i + 1]));
        if (i) /* chunks overlap, so a slow link counts only where it is the slowest part */
            prefill = fmax(prefill,
                           (double)t->model->hidden_bytes * t->byte_s[c->node[i - 1]][c->node[i]]);
    }
    /* the token goes back from the last stage to where the next one begins */
    double back = c->n > 1 ? t->hop_s[c->node[c->n - 1]][c->node[0]] : 0;
    p->decode_tokens_per_s = 1 / (c->sum_s + back);
    p->prefill_tokens_per_s = prefill > 0 ? 1 / prefill : 0;
}

static bool is_used(const mxd_plan_cut *c, int node) {
    for (int i = 0; i < c->n; i++)
        if (c->node[i] == node) return true;
    return false;
}

static mxd_rc explain_dropped(const mxd_plan_task *t, const mxd_plan_cut *c, bool by_max,
                              mxd_plan *p, mxd_err *err) {
    int told = 0;
    for (int i = 0; i < t->n_nodes && told < 3; i++) {
        if (is_used(c, i)) continue;
        mxd_plan_cut with;
        bool found;
        told++;
        MXD_TRY(mxd_plan_search(t, must_of(t) | (uint64_t)1 << i, by_max, &with, &found, err));
        if (!found)
            reason(p, "%s is left out: none of the model's layers fit its memory",
                   t->nodes[i].name);
        else if (by_max)
            reason(p, "%s is left out: it would not make all streams together faster",
                   t->nodes[i].name);
        else
            reason(p,
                   "%s is left out: with it one stream would take %.2f ms a token instead of %.2f",
                   t->nodes[i].name, 1e3 * with.sum_s, 1e3 * c->sum_s);
    }
    return MXD_OK;
}

static void explain_stage(const mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p) {
    const mxd_plan_stage *s = &p->stages[p->bottleneck];
    int node = s->ranks[0].node, first = s->layer0, last = s->layer1;
    double bytes = t->weights_to[last] - t->weights_to[first];
    double ops = 2 * t->model->layer_ops * (last - first) / t->ops[node];
    bool by_ops = ops > bytes / t->bandwidth[node];
    if (c->n > 1)
        reason(p, "%s is the longest stage: %.2f of %.2f ms a token, because of its %s",
               t->nodes[node].name, s->decode_ms, 1e3 * c->sum_s,
               by_ops ? "arithmetic" : "memory bandwidth");
    for (int i = 0; i < c->n && c->n > 1; i++) {
        int b = c->at[i + 1];
        if (b < t->model->n_layers && !mxd_plan_fits(t, c->node[i], c->at[i], b + 1))
            reason(p, "%s is full: one more layer would not fit the %.2f GB it can give",
                   t->nodes[c->node[i]].name, gb(t->usable[c->node[i]]));
    }
}

static mxd_rc explain(const mxd_plan_task *t, const mxd_plan_cut *c, const mxd_plan_opts *o,
                      mxd_plan *p, mxd_err *err) {
    double kv = 0;
    bool by_max = o->objective == MXD_OBJECTIVE_THROUGHPUT;
    for (int i = 0; i < c->n; i++) kv += (double)p->stages[i].ranks[0].kv_bytes;
    if (o->n_split)
        reason(p, "the layers follow the split that was asked for");
    else if (c->n == 1 && t->n_nodes > 1)
        reason(p, "%s alone is fastest for %s: every further node adds a trip over the network",
               t->nodes[c->node[0]].name, by_max ? "all streams" : "one stream");
    else if (c->n == 1)
        reason(p, "%s runs everything", t->nodes[c->node[0]].name);
    else
        reason(p, "cut for %s over %d nodes: shares follow speed as far as memory allows",
               by_max ? "all streams together" : "one stream", c->n);
    if (!o->n_split) MXD_TRY(explain_dropped(t, c, by_max, p, err));
    explain_stage(t, c, p);
    reason(p, "memory for %d sequence%s of %d tokens: %.2f GB", t->parallel,
           t->parallel == 1 ? "" : "s", t->ctx, gb(kv));
    for (int i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].bandwidth_bytes_per_s <= 0) {
            reason(p, "the speed of %s is not known: the mean of the others is assumed",
                   t->nodes[i].name);
            break;
        }
    return MXD_OK;
}

mxd_rc mxd_plan_make(mxd_plan *out, const mxd_model_sizes *model, const mxd_plan_node *nodes,
                     int n_nodes, const mxd_plan_link *links, int n_links,
                     const mxd_plan_opts *opts, mxd_err *err) {
    MXD_TRY(check(model, nodes, n_nodes, links, n_links, opts, err));
    mxd_plan_task *t = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_task);
    if (!t) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan");
    *t = (mxd_plan_task){.model = model,
                         .nodes = nodes,
                         .n_nodes = n_nodes,
                         .ctx = opts->ctx,
                         .parallel = opts->parallel};
    make_task(t, links, n_links, opts);
    mxd_plan_cut cut;
    mxd_plan plan = {0};
    mxd_rc rc = opts->n_split > 0 ? follow_split(t, opts, &cut, err) : choose(t, opts, &cut, err);
    if (!rc) {
        fill_stages(t, &cut, &plan);
        rc = explain(t, &cut, opts, &plan, err);
    }
    if (!rc) *out = plan;
    mxd_free(&mxd_alloc_libc, t);
    return rc;
}
