#include "plan/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "plan/explain.h"

/* Unknown speeds, when nothing at all is known: only their ratio matters for the cut. */
static const double guess_bandwidth = 40e9, guess_ops = 200e9;
/* A link nobody described: one machine's loopback or a good local network. */
static const double guess_latency_us = 100, guess_link = 1e9;
/* What nobody measured, from the speed of 8-bit products: measured on two x86 machines. */
static const double float_part = 0.12, values_part = 1.0 / 300;
static const double guess_region_s = 4e-7, guess_handoff_s = 5e-6;
/* Between the result of a step and the next step, and the client's event: threads of the
 * coordinator that wake each other (measured, two machines: 40 to 60 us with 3.5 us each). */
enum { SERVE_HANDOFFS = 8 };
/* Of what a small message takes, the most that is work of processors and not of the wire. */
enum { MESSAGE_US = 60 };
/* How much slower than the fastest cut one stream may get for the sake of even stages. */
static const double even_slack = 1.10;
/* How much faster than whole layers groups must be before they are taken unasked. */
static const double group_margin = 0.9;

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
        double l = nodes[i].link_us, w = nodes[i].link_bytes_per_s;
        if (!(b >= 0) || !(c >= 0) || !isfinite(b) || !isfinite(c) || !(l >= 0) || !(w >= 0) ||
            !isfinite(l) || !isfinite(w))
            return mxd_fail(err, MXD_E_INVAL, "node '%s': a speed below 0, or no number",
                            nodes[i].name);
    }
    for (int i = 0; i < o->n_avoid; i++)
        if (o->avoid[i].a < 0 || o->avoid[i].a >= n_nodes || o->avoid[i].b < 0 ||
            o->avoid[i].b >= n_nodes)
            return mxd_fail(err, MXD_E_INVAL, "broken link %d: no such node", i);
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

/* With less than one processor the work on a message takes longer by that; the wire does not. */
static double more_by_quota(const mxd_plan_node *a, const mxd_plan_node *b, double us) {
    double cpus = fmin(a->cpus > 0 ? a->cpus : 1, b->cpus > 0 ? b->cpus : 1);
    return cpus < 1 ? fmin(us, MESSAGE_US) * (1 / cpus - 1) : 0;
}

static void set_link(mxd_plan_task *t, int a, int b, double latency_us, double bytes_per_s) {
    double more = more_by_quota(&t->nodes[a], &t->nodes[b], latency_us);
    t->quota_s[a][b] = t->quota_s[b][a] = more * 1e-6;
    t->latency_s[a][b] = t->latency_s[b][a] = (latency_us + more) * 1e-6;
    t->byte_s[a][b] = t->byte_s[b][a] = 1 / (bytes_per_s > 0 ? bytes_per_s : guess_link);
}

/* Ways are measured to the coordinator. So the slower of two decides, and beside the coordinator it
 * is the other's alone; on one machine, ranks find each other in shared memory. */
static void guess_pair(mxd_plan_task *t, int a, int b) {
    const mxd_plan_node *x = &t->nodes[a], *y = &t->nodes[b];
    if (x->home && !y->home && y->link_us > 0) x = y;
    if (y->home && !x->home && x->link_us > 0) y = x;
    double us = fmax(x->link_us, y->link_us), rate = fmin(x->link_bytes_per_s, y->link_bytes_per_s);
    if (x->link_bytes_per_s <= 0 || y->link_bytes_per_s <= 0)
        rate = fmax(x->link_bytes_per_s, y->link_bytes_per_s);
    set_link(t, a, b, us > 0 ? us : guess_latency_us, rate);
}

static bool on_one_host(const mxd_plan_node *a, const mxd_plan_node *b) {
    return a->host[0] && strcmp(a->host, b->host) == 0;
}

static void set_speed(mxd_plan_task *t, int i, double bandwidth, double ops, double reserve) {
    const mxd_plan_node *n = &t->nodes[i];
    mxd_paces *p = &t->paces[i];
    t->bandwidth[i] = n->bandwidth_bytes_per_s > 0 ? n->bandwidth_bytes_per_s : bandwidth;
    t->ops[i] = n->ops_per_s > 0 ? n->ops_per_s : ops;
    t->usable[i] = (double)n->free_bytes * (1 - reserve);
    t->enter_s[i] = n->link_us * 1e-6;
    t->part[i] = n->cpus > 0 && n->host_cpus > n->cpus ? n->cpus / n->host_cpus : 1;
    *p = n->paces;
    if (!(p->near_bytes_per_s > 0)) p->near_bytes_per_s = t->bandwidth[i];
    if (!(p->float_ops_per_s > 0)) p->float_ops_per_s = t->ops[i] * float_part;
    if (!(p->row_ops_per_s > 0)) p->row_ops_per_s = p->float_ops_per_s / 2;
    if (!(p->values_per_s > 0)) p->values_per_s = t->ops[i] * values_part;
    if (!(p->region_s > 0)) p->region_s = n->paces.values_per_s > 0 ? 0 : guess_region_s;
    if (!(p->handoff_s > 0)) p->handoff_s = n->paces.values_per_s > 0 ? 0 : guess_handoff_s;
}

/* Nodes of one machine cannot have more memory than it has. */
static void share_host(mxd_plan_task *t, int i, double reserve) {
    double sum = 0, most = 0;
    int n = 0;
    for (int j = 0; j < t->n_nodes; j++) {
        if (!t->same_host[i][j]) continue;
        n++;
        sum += (double)t->nodes[j].free_bytes;
        most = fmax(most, (double)t->nodes[j].memory_bytes);
    }
    if (n > 1 && sum > most) t->usable[i] *= most * (1 - reserve) / sum;
}

static void make_task(mxd_plan_task *t, const mxd_plan_link *links, int n_links,
                      const mxd_plan_opts *o) {
    double bandwidth = mean_of_known(t->nodes, t->n_nodes, false, guess_bandwidth);
    double ops = mean_of_known(t->nodes, t->n_nodes, true, guess_ops);
    double reserve = o->reserve > 0 ? o->reserve : 0.1;
    for (int i = 0; i < t->n_nodes; i++) {
        set_speed(t, i, bandwidth, ops, reserve);
        t->same_host[i][i] = true;
        for (int j = 0; j < i; j++) {
            guess_pair(t, i, j);
            t->same_host[i][j] = t->same_host[j][i] = on_one_host(&t->nodes[i], &t->nodes[j]);
        }
    }
    for (int i = 0; i < t->n_nodes; i++) share_host(t, i, reserve);
    for (int i = 0; i < n_links; i++)
        if (links[i].a != links[i].b)
            set_link(t, links[i].a, links[i].b, links[i].latency_us,
                     links[i].bandwidth_bytes_per_s);
    t->serve_s = SERVE_HANDOFFS * t->paces[0].handoff_s; /* the first node is the coordinator's */
    for (int i = 0; i < o->n_avoid; i++)
        t->broken[o->avoid[i].a][o->avoid[i].b] = t->broken[o->avoid[i].b][o->avoid[i].a] = true;
    mxd_plan_task_sums(t);
}

/* ------------------------------------------------------------------------------ what was asked for
 */

static mxd_rc check_sizes(const mxd_plan_task *t, const mxd_plan_opts *o, mxd_err *err) {
    int n_must = __builtin_popcountll(mxd_plan_must(t)),
        each = o->shape.tensor > 0 ? o->shape.tensor : 1;
    int stages = o->shape.pipeline > 0 ? o->shape.pipeline : 1;
    if (o->shape.tensor < 0 || o->shape.tensor > MXD_MAX_RANKS || o->shape.pipeline < 0 ||
        o->shape.pipeline > MXD_MAX_NODES)
        return mxd_fail(err, MXD_E_INVAL,
                        "layers cut over %d nodes in %d stages: at most %d nodes, and %d stages",
                        o->shape.tensor, o->shape.pipeline, MXD_MAX_RANKS, MXD_MAX_NODES);
    if (o->shape.tensor > 1 && !t->model->cuts.possible)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the layers of this model cannot be cut over several nodes: leave out "
                        "--tensor-parallel-size, each node gets whole layers");
    if (each * stages > t->n_nodes)
        return mxd_fail(err, MXD_E_INVAL, "%d stage%s of %d node%s each need %d nodes, there %s %d",
                        stages, stages == 1 ? "" : "s", each, each == 1 ? "" : "s", each * stages,
                        t->n_nodes == 1 ? "is" : "are", t->n_nodes);
    if (o->shape.pipeline > t->model->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "%d stages for %d layers", o->shape.pipeline,
                        t->model->n_layers);
    bool uneven = o->shape.tensor > 1 && n_must == t->n_nodes && n_must % o->shape.tensor;
    if (uneven || (o->shape.tensor > 0 && o->shape.pipeline > 0 && n_must > each * stages))
        return mxd_fail(err, MXD_E_INVAL,
                        "%d workers must get layers, but stages of %d hold %d: change the number "
                        "of workers, --tensor-parallel-size or --pipeline-parallel-size",
                        n_must, each, o->shape.pipeline > 0 ? each * stages : n_must / each * each);
    return MXD_OK;
}

/* Consecutive nodes in groups of `each`; those whose part is 0 are left out. */
static mxd_rc make_groups(const mxd_plan_task *t, const mxd_plan_opts *o, int each, bool parts,
                          mxd_plan_cut *c, mxd_err *err) {
    int nodes[MXD_MAX_RANKS], n = 0;
    double weight[MXD_MAX_RANKS];
    c->n = 0;
    for (int i = 0; i < t->n_nodes; i++) {
        if (parts && !(o->shape.tensor_split[i] > 0)) continue;
        nodes[n] = i;
        weight[n++] = parts ? o->shape.tensor_split[i] : 1;
        if (n < each) continue;
        if (!mxd_plan_group_of(t, nodes, n, parts && n > 1 ? weight : NULL, &c->group[c->n++]))
            return mxd_fail(err, MXD_E_UNSUPPORTED,
                            "%s and the nodes behind it cannot hold layers together",
                            t->nodes[nodes[0]].name);
        n = 0;
    }
    if (!n && c->n) return MXD_OK;
    return mxd_fail(err, MXD_E_INVAL, "the nodes cannot be cut into groups of %d", each);
}

static mxd_rc check_layers(const mxd_plan_task *t, const mxd_plan_cut *c, int at, mxd_err *err) {
    if (at != t->model->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "the layer split gives out %d layers, the model has %d",
                        at, t->model->n_layers);
    int last = t->model->last_cut;
    if (last && c->at[c->n - 1] > 0 && c->at[c->n - 1] > last)
        return mxd_fail(err, MXD_E_INVAL,
                        "the layer split cuts at layer %d, but layers from %d on share keys and "
                        "values and stay together",
                        c->at[c->n - 1], last < 0 ? 0 : last);
    return MXD_OK;
}

/* The given numbers of layers for c's groups; groups of 0 go. */
static mxd_rc give_layers(const mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *c,
                          mxd_err *err) {
    int at = 0, n = 0;
    for (int i = 0; i < o->shape.n_split; i++) {
        if (o->shape.split[i] < 0 || o->shape.split[i] > t->model->n_layers - at)
            return mxd_fail(err, MXD_E_INVAL,
                            "the layer split gives out more than the model's %d layers",
                            t->model->n_layers);
        if (!o->shape.split[i]) continue;
        if (n != i) c->group[n] = c->group[i];
        c->at[n++] = at;
        at += o->shape.split[i];
    }
    c->n = n;
    c->at[n] = at;
    if (!n) return mxd_fail(err, MXD_E_INVAL, "the layer split gives out 0 layers");
    return check_layers(t, c, at, err);
}

static int parts_given(const mxd_plan_opts *o) {
    int n = 0;
    for (int i = 0; i < o->shape.n_tensor_split; i++) n += o->shape.tensor_split[i] > 0;
    return n;
}

static mxd_rc check_lengths(const mxd_plan_task *t, const mxd_plan_opts *o, int each, int stages,
                            mxd_err *err) {
    if (o->shape.n_tensor_split && o->shape.n_tensor_split != t->n_nodes)
        return mxd_fail(err, MXD_E_INVAL, "the tensor split is for %d nodes, there %s %d",
                        o->shape.n_tensor_split, t->n_nodes == 1 ? "is" : "are", t->n_nodes);
    if (each < 1 || each > MXD_MAX_RANKS)
        return mxd_fail(err, MXD_E_INVAL, "the tensor split is over %d nodes: 1 to %d", each,
                        MXD_MAX_RANKS);
    if (o->shape.n_split && o->shape.n_split != stages)
        return mxd_fail(err, MXD_E_INVAL, "the layer split is for %d %s, there %s %d",
                        o->shape.n_split, each > 1 ? "stages" : "nodes", stages == 1 ? "is" : "are",
                        stages);
    for (int i = 0; i < o->shape.n_tensor_split; i++)
        if (!(o->shape.tensor_split[i] >= 0) || !isfinite(o->shape.tensor_split[i]))
            return mxd_fail(err, MXD_E_INVAL, "the tensor split: parts of 0 or more");
    return MXD_OK;
}

/* The user's own split: layers for stages, parts for ranks, or both. */
static mxd_rc follow_split(mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *c,
                           mxd_err *err) {
    int used = o->shape.n_tensor_split ? parts_given(o) : t->n_nodes;
    int each = o->shape.tensor > 0 ? o->shape.tensor : o->shape.n_tensor_split ? used : 1;
    int stages = each > 0 ? used / each : 0;
    MXD_TRY(check_lengths(t, o, each, stages, err));
    MXD_TRY(make_groups(t, o, each, o->shape.n_tensor_split > 0, c, err));
    bool found = true;
    if (o->shape.n_split)
        MXD_TRY(give_layers(t, o, c, err));
    else
        MXD_TRY(mxd_plan_recut(t, c, INFINITY, false, c, &found, err));
    if (o->shape.pipeline && c->n != o->shape.pipeline)
        return mxd_fail(err, MXD_E_INVAL, "the split makes %d stages, %d were asked for", c->n,
                        o->shape.pipeline);
    for (int i = 0; found && i < c->n; i++)
        found = mxd_plan_stage_of(t, &c->group[i], c->at[i], c->at[i + 1], NULL);
    if (!found && !o->shape.n_split) return mxd_plan_no_fit(t, NULL, err);
    if (!found) return mxd_plan_no_fit(t, c, err);
    mxd_plan_time(t, c);
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- choosing */

/* Even stages where that costs one stream next to nothing: many streams then run faster. */
static mxd_rc make_even(const mxd_plan_task *t, mxd_plan_cut *c, double most_sum_s,
                        mxd_plan_cut *room, mxd_err *err) {
    double lo = 0, hi = 0;
    for (int i = 0; i < c->n; i++)
        hi = fmax(hi, mxd_plan_stage_s(t, &c->group[i], c->at[i], c->at[i + 1], &t->one));
    for (int i = 0; i < 20 && c->n > 1; i++) {
        double mid = (lo + hi) / 2;
        bool found;
        MXD_TRY(mxd_plan_recut(t, c, mid, false, room, &found, err));
        if (found && room->sum_s <= most_sum_s) {
            *c = *room;
            hi = mid;
        } else {
            lo = mid;
        }
    }
    return MXD_OK;
}

/* Whole layers, unless groups are faster by a margin. */
static mxd_rc prefer_whole(mxd_plan_task *t, bool by_max, mxd_plan_cut *c, bool *found,
                           mxd_plan_cut *room, mxd_err *err) {
    bool grouped = false, whole;
    for (int i = 0; i < c->n; i++) grouped = grouped || c->group[i].n > 1;
    if (t->tensor || (*found && !grouped)) return MXD_OK;
    t->tensor = 1;
    mxd_rc rc = mxd_plan_search(t, mxd_plan_must(t), by_max, room, &whole, err);
    t->tensor = 0;
    if (rc || !whole) return rc;
    double with = by_max ? mxd_plan_all_streams(t, room) : 1 / room->sum_s;
    double without = !*found ? 0 : by_max ? mxd_plan_all_streams(t, c) : 1 / c->sum_s;
    if (!*found || with >= without * group_margin) *c = *room;
    *found = true;
    return MXD_OK;
}

static mxd_rc best_of(mxd_plan_task *t, bool by_max, mxd_plan_cut *c, bool *found,
                      mxd_plan_cut *room, mxd_err *err) {
    MXD_TRY(mxd_plan_search(t, mxd_plan_must(t), by_max, c, found, err));
    MXD_TRY(prefer_whole(t, by_max, c, found, room, err));
    return MXD_OK;
}

/* For all streams the longest stage is a good guide, but what one stream likes best may be better:
 * fewer stages are fewer trips. */
static mxd_rc for_all_streams(mxd_plan_task *t, mxd_plan_cut *c, mxd_plan_cut *room,
                              mxd_plan_cut *other, mxd_err *err) {
    bool found;
    MXD_TRY(best_of(t, false, other, &found, room, err));
    if (found && mxd_plan_all_streams(t, other) > mxd_plan_all_streams(t, c)) *c = *other;
    return MXD_OK;
}

static mxd_rc choose(mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *c, mxd_plan_cut *room,
                     mxd_err *err) {
    int n_must = __builtin_popcountll(mxd_plan_must(t));
    bool found, by_max = o->shape.objective == MXD_OBJECTIVE_THROUGHPUT;
    if (o->shape.tensor <= 1 && n_must > t->model->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "%d nodes must get layers, the model has only %d", n_must,
                        t->model->n_layers);
    MXD_TRY(best_of(t, by_max, c, &found, room, err));
    if (!found && o->n_avoid) { /* a plan over a broken link is better than none: it may heal */
        memset(t->broken, 0, sizeof t->broken);
        MXD_TRY(best_of(t, by_max, c, &found, room, err));
    }
    if (!found) return mxd_plan_no_fit(t, NULL, err);
    MXD_TRY(make_even(t, c, by_max ? INFINITY : c->sum_s * even_slack, room, err));
    return by_max ? for_all_streams(t, c, room, room + 1, err) : MXD_OK;
}

static mxd_rc plan_with(mxd_plan_task *t, const mxd_plan_opts *o, mxd_plan_cut *cut, mxd_plan *out,
                        mxd_err *err) {
    MXD_TRY(check_sizes(t, o, err));
    if (o->shape.n_split > 0 || o->shape.n_tensor_split > 0)
        MXD_TRY(follow_split(t, o, cut, err));
    else
        MXD_TRY(choose(t, o, cut, cut + 1, err));
    *out = (mxd_plan){0};
    mxd_plan_fill(t, cut, out);
    return mxd_plan_explain(t, cut, o, out, err);
}

mxd_rc mxd_plan_make(mxd_plan *out, const mxd_model_sizes *model, const mxd_plan_node *nodes,
                     int n_nodes, const mxd_plan_link *links, int n_links,
                     const mxd_plan_opts *opts, mxd_err *err) {
    MXD_TRY(check(model, nodes, n_nodes, links, n_links, opts, err));
    mxd_plan_task *t = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_task);
    mxd_plan_cut *cut = MXD_NEW(&mxd_alloc_libc, 3, mxd_plan_cut);
    mxd_rc rc = t && cut ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory to plan");
    if (!rc) {
        *t = (mxd_plan_task){.model = model,
                             .nodes = nodes,
                             .n_nodes = n_nodes,
                             .ctx = opts->ctx,
                             .parallel = opts->parallel,
                             .chunk = opts->chunk,
                             .tensor = opts->shape.tensor,
                             .pipeline = opts->shape.pipeline};
        make_task(t, links, n_links, opts);
        rc = plan_with(t, opts, cut, out, err);
    }
    mxd_free(&mxd_alloc_libc, cut);
    mxd_free(&mxd_alloc_libc, t);
    return rc;
}
