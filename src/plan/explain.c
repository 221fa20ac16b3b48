#include "plan/explain.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static double gb(double bytes) { return bytes / 1e9; }

static void reason(mxd_plan *p, const char *fmt, ...) MXD_PRINTF(2, 3);
static void reason(mxd_plan *p, const char *fmt, ...) {
    if (p->n_reasons >= (int)MXD_COUNT(p->reasons)) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p->reasons[p->n_reasons++], sizeof p->reasons[0], fmt, ap);
    va_end(ap);
}

uint64_t mxd_plan_must(const mxd_plan_task *t) {
    uint64_t must = 0;
    for (int i = 0; i < t->n_nodes; i++)
        if (t->nodes[i].must) must |= (uint64_t)1 << i;
    return must;
}

/* ------------------------------------------------------------------------------ does not fit */

static mxd_rc fits_with(mxd_plan_task *t, const mxd_plan_cut *split, int ctx, bool *fits,
                        mxd_err *err) {
    int was = t->ctx;
    mxd_plan_cut *cut = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_cut);
    mxd_rc rc = MXD_OK;
    if (!cut) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan");
    t->ctx = ctx;
    if (split) {
        *fits = true;
        for (int i = 0; i < split->n; i++)
            *fits = *fits &&
                    mxd_plan_stage_of(t, &split->group[i], split->at[i], split->at[i + 1], NULL);
    } else {
        rc = mxd_plan_search(t, mxd_plan_must(t), true, cut, fits, err);
    }
    mxd_free(&mxd_alloc_libc, cut);
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

static void list_missing(const mxd_plan_task *t, int node, mxd_plan_held x, char *list,
                         size_t cap) {
    double need = x.weights + x.kv + x.scratch, missing = need - t->usable[node];
    size_t n = strlen(list);
    if (missing > 0 && n + 60 < cap)
        snprintf(list + n, cap - n, "%s%.24s misses %.2f GB (%.0f bytes) of %.2f GB", n ? ", " : "",
                 t->nodes[node].name, gb(missing), missing, gb(need));
}

static mxd_plan_held smallest_share(const mxd_plan_task *t) {
    mxd_plan_held least = {.weights = INFINITY};
    for (int l = 0; l < t->model->n_layers; l++) {
        mxd_plan_held x = mxd_plan_whole(t, l, l + 1);
        if (x.weights + x.kv < least.weights + least.kv) least = x;
    }
    return least;
}

/* Layers in proportion to usable memory: the way to say who misses how much. */
static void list_spread(const mxd_plan_task *t, char *list, size_t cap) {
    double total = 0, before = 0;
    for (int i = 0; i < t->n_nodes; i++) total += t->usable[i];
    for (int i = 0, at = 0, layers = t->model->n_layers; i < t->n_nodes; i++) {
        before += t->usable[i];
        int to = i == t->n_nodes - 1 || total <= 0 ? layers : (int)(before / total * layers + 0.5);
        if (to <= at) continue;
        list_missing(t, i, mxd_plan_whole(t, at, to), list, cap);
        at = to;
    }
}

/* By what the split asks of each rank. */
static void list_split(const mxd_plan_task *t, const mxd_plan_cut *c, char *list, size_t cap) {
    for (int i = 0; i < c->n; i++) {
        const mxd_plan_group *g = &c->group[i];
        double total = 0;
        for (int r = 0; r < g->n; r++) total += g->weight[r];
        for (int r = 0; r < g->n; r++) {
            mxd_plan_held x = mxd_plan_whole(t, c->at[i], c->at[i + 1]);
            x.weights *= g->weight[r] / total; /* near enough for a message */
            x.kv *= g->weight[r] / total;
            list_missing(t, g->node[r], x, list, cap);
        }
    }
}

mxd_rc mxd_plan_no_fit(mxd_plan_task *t, const mxd_plan_cut *split, mxd_err *err) {
    char list[240] = "";
    int ctx;
    MXD_TRY(largest_context(t, split, &ctx, err));
    if (split)
        list_split(t, split, list, sizeof list);
    else
        list_spread(t, list, sizeof list);
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

/* -------------------------------------------------------------------------------------- reasons */

static bool is_used(const mxd_plan_cut *c, int node) {
    for (int i = 0; i < c->n; i++)
        if (c->group[i].nodes >> node & 1) return true;
    return false;
}

/* With what was asked for, were it possible with this node too. */
static mxd_rc with_node(const mxd_plan_task *t, int node, bool by_max, mxd_plan_cut *with,
                        bool *found, mxd_err *err) {
    return mxd_plan_search(t, mxd_plan_must(t) | (uint64_t)1 << node, by_max, with, found, err);
}

static mxd_rc explain_dropped(mxd_plan_task *t, const mxd_plan_cut *c, bool by_max, mxd_plan *p,
                              mxd_err *err) {
    mxd_plan_cut *with = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_cut);
    mxd_rc rc = with ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory to plan");
    for (int i = 0, told = 0; !rc && i < t->n_nodes && told < 3; i++) {
        bool found = false;
        if (is_used(c, i)) continue;
        told++;
        rc = with_node(t, i, by_max, with, &found, err);
        if (rc) break;
        const char *name = t->nodes[i].name;
        if (!found && t->tensor > 1)
            reason(p, "%s is left out: groups of %d do not take it in", name, t->tensor);
        else if (!found)
            reason(p, "%s is left out: none of the model's layers fit its memory", name);
        else if (by_max)
            reason(p,
                   "%s is left out: with it all streams would get %.4g tokens/s together instead "
                   "of %.4g",
                   name, mxd_plan_all_streams(t, with), p->all_tokens_per_s);
        else
            reason(p,
                   "%s is left out: with it one stream would take %.2f ms a token instead of %.2f",
                   name, 1e3 * with->sum_s, 1e3 * c->sum_s);
    }
    mxd_free(&mxd_alloc_libc, with);
    return rc;
}

static const char *limit_text(mxd_limit l) {
    static const char *const texts[] = {"memory bandwidth", "arithmetic", "links"};
    return texts[l];
}

static void explain_stage(const mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p) {
    const mxd_plan_stage *s = &p->stages[p->bottleneck];
    mxd_plan_stage_cost x;
    if (!mxd_plan_stage_of(t, &c->group[p->bottleneck], s->layer0, s->layer1, &x)) return;
    mxd_limit limit = x.exchange_s > fmax(x.reading_s, x.computing_s) ? MXD_LIMIT_LINK
                      : x.computing_s > x.reading_s                   ? MXD_LIMIT_ARITHMETIC
                                                                      : MXD_LIMIT_BANDWIDTH;
    if (c->n > 1)
        reason(p, "%s is the longest stage: %.2f of %.2f ms a token, because of its %s",
               t->nodes[s->ranks[0].node].name, s->decode_ms, 1e3 * c->sum_s, limit_text(limit));
    for (int i = 0; i < c->n && c->n > 1; i++) {
        int b = c->at[i + 1];
        if (c->group[i].n == 1 && b < t->model->n_layers &&
            !mxd_plan_stage_of(t, &c->group[i], c->at[i], b + 1, NULL))
            reason(p, "%s is full: one more layer would not fit the %.2f GB it can give",
                   t->nodes[c->group[i].node[0]].name, gb(t->usable[c->group[i].node[0]]));
    }
}

static void explain_group(const mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p) {
    for (int i = 0; i < c->n; i++) {
        const mxd_plan_stage *s = &p->stages[i];
        if (c->group[i].n < 2) continue;
        reason(p,
               "%s and %d more hold layers %d-%d together: exchanging sums takes %.2f of %.2f ms a "
               "token",
               t->nodes[s->ranks[0].node].name, s->n_ranks - 1, s->layer0, s->layer1 - 1,
               s->exchange_ms, s->decode_ms);
        for (int r = 0; r < s->n_ranks; r++)
            if (s->ranks[r].kv_bytes == 0)
                reason(p, "%s has no attention: the model has only %d KV heads to give",
                       t->nodes[s->ranks[r].node].name, t->model->cuts.count[MXD_BY_KV]);
        return;
    }
}

static void explain_choice(const mxd_plan_task *t, const mxd_plan_cut *c, const mxd_plan_opts *o,
                           mxd_plan *p) {
    bool by_max = o->shape.objective == MXD_OBJECTIVE_THROUGHPUT;
    const char *first = t->nodes[c->group[0].node[0]].name;
    bool alone = c->n == 1 && c->group[0].n == 1;
    if (o->shape.n_split || o->shape.n_tensor_split)
        reason(p, "the layers follow the split that was asked for");
    else if (alone && t->n_nodes > 1)
        reason(p, "%s alone is fastest for %s: every further node adds a trip over the network",
               first, by_max ? "all streams" : "one stream");
    else if (alone)
        reason(p, "%s runs everything", first);
    else if (c->n == 1)
        reason(p, "every layer is cut over %d nodes: shares follow speed as far as memory allows",
               c->group[0].n);
    else
        reason(p, "cut for %s over %d %s: shares follow speed as far as memory allows",
               by_max ? "all streams together" : "one stream", c->n,
               c->group[0].n > 1 ? "stages" : "nodes");
}

mxd_rc mxd_plan_explain(mxd_plan_task *t, const mxd_plan_cut *c, const mxd_plan_opts *o,
                        mxd_plan *p, mxd_err *err) {
    double kv = 0;
    explain_choice(t, c, o, p);
    if (!o->shape.n_split && !o->shape.n_tensor_split)
        MXD_TRY(explain_dropped(t, c, o->shape.objective == MXD_OBJECTIVE_THROUGHPUT, p, err));
    explain_group(t, c, p);
    explain_stage(t, c, p);
    for (int i = 0; i < c->n; i++)
        for (int r = 0; r < p->stages[i].n_ranks; r++) kv += (double)p->stages[i].ranks[r].kv_bytes;
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
