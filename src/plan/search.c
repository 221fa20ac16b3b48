#include "plan/search.h"

#include <math.h>
#include <string.h>

/* What a step costs however small it is: waking threads and going through the layers' small
 * operations. Measured on two x86 machines between 2 and 6 us a layer. */
static const double layer_fixed_s = 3e-6;

mxd_plan_bytes mxd_plan_bytes_of(const mxd_plan_task *t, int a, int b) {
    const mxd_model_sizes *m = t->model;
    bool embed = a == 0 || m->reembed, head = b == m->n_layers;
    mxd_plan_bytes x = {
        .weights = t->weights_to[b] - t->weights_to[a],
        .kv =
            ((t->kv_to[b] - t->kv_to[a]) * t->ctx + t->state_to[b] - t->state_to[a]) * t->parallel,
        .scratch = (double)m->scratch_bytes};
    if (embed) x.weights += (double)m->embed_bytes;
    if (head) x.weights += (double)m->head_bytes;
    if (embed && head && m->tied) x.weights -= (double)m->embed_bytes;
    return x;
}

bool mxd_plan_fits(const mxd_plan_task *t, int node, int a, int b) {
    mxd_plan_bytes x = mxd_plan_bytes_of(t, a, b);
    return x.weights + x.kv + x.scratch <= t->usable[node];
}

/* Every weight and the KV of the positions so far are read once per position; arithmetic hides
 * behind that unless it takes longer. A conversation is half full on average; beyond 1,024
 * positions the prediction would say more about the prompt than about the machine. */
double mxd_plan_decode_s(const mxd_plan_task *t, int node, int a, int b) {
    const mxd_model_sizes *m = t->model;
    double past = t->ctx / 2.0 < 1024 ? t->ctx / 2.0 : 1024;
    double bytes = t->weights_to[b] - t->weights_to[a] + (t->kv_to[b] - t->kv_to[a]) * past;
    double ops = m->layer_ops * (b - a);
    if (b == m->n_layers) {
        bytes += (double)m->head_bytes;
        ops += m->head_ops;
    }
    return fmax(bytes / t->bandwidth[node], 2 * ops / t->ops[node]) + layer_fixed_s * (b - a);
}

/* In a full batch the weights are read once for many positions: arithmetic decides. The head runs
 * for the last position of a prompt only. */
double mxd_plan_prefill_s(const mxd_plan_task *t, int node, int a, int b) {
    return 2 * t->model->layer_ops * (b - a) / t->ops[node];
}

void mxd_plan_time(const mxd_plan_task *t, mxd_plan_cut *c) {
    c->sum_s = c->max_s = 0;
    for (int i = 0; i < c->n; i++) {
        double s = mxd_plan_decode_s(t, c->node[i], c->at[i], c->at[i + 1]);
        if (i) c->sum_s += t->hop_s[c->node[i - 1]][c->node[i]];
        c->sum_s += s;
        c->max_s = fmax(c->max_s, s);
    }
}

/* ---------------------------------------------------------------------------------- the program */

typedef struct cell {
    float cost;        /* of the best way to this state; INFINITY: none */
    int16_t from_cut;  /* index of the cut before */
    int16_t from_node; /* last node before; -1: this is the first stage */
} cell;

typedef struct table {
    const mxd_plan_task *t;
    int n_cuts, cut[MXD_PLAN_CUTS + 1]; /* layer of each cut point; first 0, last n_layers */
    bool by_max;
    double most_s; /* no stage may be longer */
    cell *cells;   /* [sets][n_nodes][n_cuts], or [1][n_nodes][n_cuts] for a fixed order */
} table;

static cell *cell_at(const table *x, size_t set, int node, int c) {
    size_t n = (size_t)x->t->n_nodes;
    return &x->cells[(set * n + (size_t)node) * (size_t)x->n_cuts + (size_t)c];
}

static mxd_rc open_table(table *x, const mxd_plan_task *t, size_t n_sets, mxd_err *err) {
    int layers = t->model->n_layers;
    int step = (layers + MXD_PLAN_CUTS - 1) / MXD_PLAN_CUTS;
    x->t = t;
    x->most_s = INFINITY;
    x->n_cuts = 0;
    int last = t->model->last_cut ? t->model->last_cut : layers - 1;
    if (last < 0) last = 0;
    for (int l = 0; l <= last; l += step) x->cut[x->n_cuts++] = l;
    x->cut[x->n_cuts++] = layers;
    size_t n = n_sets * (size_t)t->n_nodes * (size_t)x->n_cuts;
    x->cells = MXD_NEW(&mxd_alloc_libc, n, cell);
    if (!x->cells) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", t->n_nodes);
    for (size_t i = 0; i < n; i++) x->cells[i] = (cell){INFINITY, 0, -1};
    return MXD_OK;
}

/* Tries to go on from `from` (cost so far, at cut a, last node `before` or -1) with `node` up to
 * every later cut. */
static void extend(const table *x, double so_far, int before, int a, int node, size_t to_set) {
    const mxd_plan_task *t = x->t;
    double hop = before < 0 ? 0 : t->hop_s[before][node];
    for (int b = a + 1; b < x->n_cuts; b++) {
        if (!mxd_plan_fits(t, node, x->cut[a], x->cut[b])) {
            /* the last stage has the head too, and with tied weights it may be the lighter one */
            if (b + 1 < x->n_cuts) b = x->n_cuts - 2;
            continue;
        }
        double s = mxd_plan_decode_s(t, node, x->cut[a], x->cut[b]);
        if (s > x->most_s) continue;
        double cost = x->by_max ? fmax(so_far, s + hop) : so_far + s + hop;
        cell *to = cell_at(x, to_set, node, b);
        if ((float)cost < to->cost) *to = (cell){(float)cost, (int16_t)a, (int16_t)before};
    }
}

static void fill_sets(const table *x) {
    int n = x->t->n_nodes;
    for (size_t set = 0; set < (size_t)1 << n; set++)
        for (int node = 0; node < n; node++) {
            if (set >> node & 1) continue;
            size_t to = set | (size_t)1 << node;
            if (!set) extend(x, 0, -1, 0, node, to);
            for (int before = 0; before < n; before++) {
                if (!(set >> before & 1)) continue;
                for (int a = 1; a < x->n_cuts - 1; a++) {
                    double so_far = cell_at(x, set, before, a)->cost;
                    if (so_far < INFINITY) extend(x, so_far, before, a, node, to);
                }
            }
        }
}

/* Walks back from a final state. */
static void read_back(const table *x, size_t set, int node, mxd_plan_cut *out, bool sets) {
    int c = x->n_cuts - 1, n = 0;
    int nodes[MXD_MAX_NODES], at[MXD_MAX_NODES];
    while (node >= 0) {
        cell s = *cell_at(x, sets ? set : 0, node, c);
        nodes[n] = node;
        at[n++] = x->cut[s.from_cut];
        set &= ~((size_t)1 << node);
        node = s.from_node;
        c = s.from_cut;
    }
    out->n = n;
    for (int i = 0; i < n; i++) {
        out->node[i] = nodes[n - 1 - i];
        out->at[i] = at[n - 1 - i];
    }
    out->at[n] = x->t->model->n_layers;
}

static mxd_rc search_sets(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                          bool *found, mxd_err *err) {
    table x;
    MXD_TRY(open_table(&x, t, (size_t)1 << t->n_nodes, err));
    x.by_max = by_max;
    fill_sets(&x);
    float best = INFINITY;
    for (size_t set = 1; set < (size_t)1 << t->n_nodes; set++)
        for (int node = 0; (set & must) == must && node < t->n_nodes; node++) {
            float cost = cell_at(&x, set, node, x.n_cuts - 1)->cost;
            if (!(set >> node & 1) || cost >= best) continue;
            best = cost;
            read_back(&x, set, node, out, true);
        }
    *found = best < INFINITY;
    mxd_free(&mxd_alloc_libc, x.cells);
    return MXD_OK;
}

/* Nodes order[0..n) in this order; those outside `must` may be left out. */
static mxd_rc search_order(const mxd_plan_task *t, const int *order, int n, uint64_t must,
                           double most_s, bool by_max, mxd_plan_cut *out, bool *found,
                           mxd_err *err) {
    table x;
    MXD_TRY(open_table(&x, t, 1, err));
    x.by_max = by_max;
    x.most_s = most_s;
    for (int k = 0; k < n; k++) {
        bool may_begin = true;
        for (int j = k - 1; j >= 0; j--) {
            for (int a = 1; a < x.n_cuts - 1; a++) {
                double so_far = cell_at(&x, 0, order[j], a)->cost;
                if (so_far < INFINITY) extend(&x, so_far, order[j], a, order[k], 0);
            }
            if (must >> order[j] & 1) {
                may_begin = false;
                break;
            }
        }
        if (may_begin) extend(&x, 0, -1, 0, order[k], 0);
    }
    float best = INFINITY;
    for (int k = n - 1; k >= 0; k--) {
        float cost = cell_at(&x, 0, order[k], x.n_cuts - 1)->cost;
        if (cost < best) {
            best = cost;
            read_back(&x, 0, order[k], out, false);
        }
        if (must >> order[k] & 1) break; /* nobody behind it may be the last without it */
    }
    *found = best < INFINITY;
    mxd_free(&mxd_alloc_libc, x.cells);
    return MXD_OK;
}

mxd_rc mxd_plan_search(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                       bool *found, mxd_err *err) {
    mxd_rc rc;
    if (t->n_nodes <= MXD_PLAN_EXACT) {
        rc = search_sets(t, must, by_max, out, found, err);
    } else {
        int order[MXD_MAX_NODES];
        for (int i = 0; i < t->n_nodes; i++) { /* by falling speed; stable */
            int k = i;
            for (; k > 0 && t->bandwidth[order[k - 1]] < t->bandwidth[i]; k--)
                order[k] = order[k - 1];
            order[k] = i;
        }
        rc = search_order(t, order, t->n_nodes, must, INFINITY, by_max, out, found, err);
    }
    if (!rc && *found) mxd_plan_time(t, out);
    return rc;
}

mxd_rc mxd_plan_recut(const mxd_plan_task *t, const mxd_plan_cut *from, double most_s,
                      mxd_plan_cut *out, bool *found, mxd_err *err) {
    uint64_t all = 0;
    for (int i = 0; i < from->n; i++) all |= (uint64_t)1 << from->node[i];
    MXD_TRY(search_order(t, from->node, from->n, all, most_s, false, out, found, err));
    if (*found) mxd_plan_time(t, out);
    return MXD_OK;
}
