#include "plan/search.h"

#include <math.h>
#include <string.h>

static double hop_between(const mxd_plan_task *t, const mxd_plan_group *from,
                          const mxd_plan_group *to, double rows) {
    for (int r = 0; r < to->n; r++)
        if (t->broken[from->node[0]][to->node[r]]) return INFINITY;
    return mxd_plan_hop_s(t, from, to, rows);
}

void mxd_plan_time(const mxd_plan_task *t, mxd_plan_cut *c) {
    c->sum_s = c->max_s = 0;
    for (int i = 0; i < c->n; i++) {
        const mxd_plan_group *g = &c->group[i];
        if (i) c->sum_s += mxd_plan_hop_s(t, &c->group[i - 1], g, 1);
        c->sum_s += mxd_plan_stage_s(t, g, c->at[i], c->at[i + 1], &t->one);
        c->max_s = fmax(c->max_s, mxd_plan_stage_s(t, g, c->at[i], c->at[i + 1], &t->batch));
    }
}

/* ---------------------------------------------------------------------------------- the tables */

typedef struct cell {
    float cost;         /* of the best way to this state; INFINITY: none */
    int16_t from_cut;   /* index of the cut before */
    int16_t from_group; /* last group before; -1: this is the first stage */
} cell;

typedef struct table {
    const mxd_plan_task *t;
    const mxd_plan_group *group; /* [n_groups]; n = 0: no such group */
    int n_groups;
    int n_cuts, cut[MXD_PLAN_CUTS + 1]; /* layer of each cut point; first 0, last n_layers */
    int most_stages;                    /* 0: not counted */
    bool by_max;
    double most_s;  /* no stage may be longer */
    float *stage_s; /* [n_groups][n_cuts][n_cuts] */
    float *hop_s;   /* [n_groups][n_groups] */
    cell *cells;    /* [most_stages + 1][n_states][n_cuts] */
    size_t n_states;
} table;

static cell *cell_at(const table *x, int stages, size_t state, int c) {
    size_t k = x->most_stages ? (size_t)stages : 0;
    return &x->cells[(k * x->n_states + state) * (size_t)x->n_cuts + (size_t)c];
}

static float *stage_at(const table *x, int g, int a, int b) {
    size_t n = (size_t)x->n_cuts;
    return &x->stage_s[((size_t)g * n + (size_t)a) * n + (size_t)b];
}

static void close_table(table *x) {
    mxd_free(&mxd_alloc_libc, x->cells);
    mxd_free(&mxd_alloc_libc, x->hop_s);
    mxd_free(&mxd_alloc_libc, x->stage_s);
}

static void place_cuts(table *x, int most_cuts) {
    int layers = x->t->model->n_layers, step = (layers + most_cuts - 1) / most_cuts;
    int last = x->t->model->last_cut ? x->t->model->last_cut : layers - 1;
    if (last < 0) last = 0;
    x->n_cuts = 0;
    for (int l = 0; l <= last; l += step) x->cut[x->n_cuts++] = l;
    x->cut[x->n_cuts++] = layers;
}

static void fill_times(const table *x) {
    const mxd_plan_task *t = x->t;
    const mxd_plan_rows *rows = x->by_max ? &t->batch : &t->one;
    for (int g = 0; g < x->n_groups; g++) {
        if (!x->group[g].n) continue;
        for (int a = 0; a < x->n_cuts; a++)
            for (int b = a + 1; b < x->n_cuts; b++)
                *stage_at(x, g, a, b) =
                    (float)mxd_plan_stage_s(t, &x->group[g], x->cut[a], x->cut[b], rows);
        for (int h = 0; h < x->n_groups; h++)
            if (x->group[h].n && !(x->group[g].nodes & x->group[h].nodes))
                x->hop_s[(size_t)g * (size_t)x->n_groups + (size_t)h] =
                    (float)hop_between(t, &x->group[g], &x->group[h], rows->rows);
    }
}

/* x->t, group, n_groups, by_max are set. */
static mxd_rc open_table(table *x, size_t n_states, int most_cuts, mxd_err *err) {
    x->most_stages = x->t->pipeline;
    x->n_states = n_states;
    place_cuts(x, most_cuts);
    size_t g = (size_t)x->n_groups, c = (size_t)x->n_cuts;
    size_t n = ((size_t)x->most_stages + 1) * n_states * c;
    x->cells = MXD_NEW(&mxd_alloc_libc, n, cell);
    x->stage_s = MXD_NEW(&mxd_alloc_libc, g * c * c, float);
    x->hop_s = MXD_NEW(&mxd_alloc_libc, g * g, float);
    if (!x->cells || !x->stage_s || !x->hop_s) {
        close_table(x);
        return mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", x->t->n_nodes);
    }
    for (size_t i = 0; i < n; i++) x->cells[i] = (cell){INFINITY, 0, -1};
    fill_times(x);
    return MXD_OK;
}

typedef struct place { /* where a way goes on */
    int stages, group; /* stages so far; the last one's group, -1: none */
    int cut;
    double cost;
} place;

/* Goes on with group g up to every later cut. */
static void extend(const table *x, const place *f, int g, size_t to_state) {
    if (x->most_stages && f->stages >= x->most_stages) return;
    size_t n = (size_t)x->n_groups;
    double hop = f->group < 0 ? x->t->enter_s[x->group[g].node[0]]
                              : (double)x->hop_s[(size_t)f->group * n + (size_t)g];
    for (int b = f->cut + 1; b < x->n_cuts; b++) {
        double s = (double)*stage_at(x, g, f->cut, b);
        if (!(s <= x->most_s)) continue;
        if (b == x->n_cuts - 1 && !x->by_max) s += x->t->enter_s[x->group[g].node[0]];
        double cost = x->by_max ? fmax(f->cost, s + hop) : f->cost + s + hop;
        cell *to = cell_at(x, f->stages + 1, to_state, b);
        if ((float)cost < to->cost) *to = (cell){(float)cost, (int16_t)f->cut, (int16_t)f->group};
    }
}

/* From every cut where a way ends with group `before`. */
static void extend_all(const table *x, size_t state, int before, int g, size_t to_state) {
    for (int k = 0; k <= x->most_stages; k++)
        for (int a = 1; a < x->n_cuts - 1; a++) {
            double cost = (double)cell_at(x, k, state, a)->cost;
            const place f = {k, before, a, cost};
            if (cost < INFINITY) extend(x, &f, g, to_state);
        }
}

static void begin(const table *x, int g, size_t to_state) {
    const place f = {0, -1, 0, 0};
    extend(x, &f, g, to_state);
}

static double end_cost(const table *x, size_t state) {
    return (double)cell_at(x, x->most_stages, state, x->n_cuts - 1)->cost;
}

/* Steps back over the way that ends in group g; state_of(set before, group before) finds cells. */
typedef struct back {
    int n, group[MXD_MAX_NODES], at[MXD_MAX_NODES];
} back;

static void add_back(const table *x, back *w, int g, int from_cut) {
    w->group[w->n] = g;
    w->at[w->n++] = x->cut[from_cut];
}

static void turn_around(const table *x, const back *w, mxd_plan_cut *out) {
    out->n = w->n;
    for (int i = 0; i < w->n; i++) {
        out->group[i] = x->group[w->group[w->n - 1 - i]];
        out->at[i] = w->at[w->n - 1 - i];
    }
    out->at[w->n] = x->t->model->n_layers;
}

/* ------------------------------------------------------------------------------ all sets, N <= 8
 */

enum { MOST_SETS = 1 << MXD_PLAN_EXACT };

/* Sum of 3^i over a set: a state is the used nodes but the last group's once, those twice. */
static size_t ternary(size_t set) {
    size_t sum = 0, power = 1;
    for (; set; set >>= 1, power *= 3)
        if (set & 1) sum += power;
    return sum;
}

static size_t state_of(size_t set, size_t last) { return ternary(set ^ last) + 2 * ternary(last); }

static size_t set_of(const table *x, int g) { return (size_t)x->group[g].nodes; }

static void fill_sets(const table *x) {
    size_t all = ((size_t)1 << x->t->n_nodes) - 1;
    for (int g = 0; g < x->n_groups; g++)
        if (x->group[g].n) begin(x, g, state_of(set_of(x, g), set_of(x, g)));
    for (size_t set = 1; set < all; set++)
        for (int last = x->n_groups - 1; last >= 0; last--) { /* of equals the first comes first */
            if (!x->group[last].n || (set_of(x, last) & set) != set_of(x, last)) continue;
            size_t state = state_of(set, set_of(x, last));
            for (int g = 0; g < x->n_groups; g++) {
                if (!x->group[g].n || (set_of(x, g) & set)) continue;
                extend_all(x, state, last, g, state_of(set | set_of(x, g), set_of(x, g)));
            }
        }
}

static void read_sets(const table *x, size_t set, int g, mxd_plan_cut *out) {
    back w = {0};
    int c = x->n_cuts - 1, k = x->most_stages;
    while (g >= 0) {
        cell s = *cell_at(x, k--, state_of(set, set_of(x, g)), c);
        add_back(x, &w, g, s.from_cut);
        set &= ~set_of(x, g);
        g = s.from_group;
        c = s.from_cut;
    }
    turn_around(x, &w, out);
}

/* Ranks on one machine only share what it has. */
static bool share_a_host(const mxd_plan_task *t, const int *nodes, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            if (t->same_host[nodes[i]][nodes[j]]) return true;
    return false;
}

static bool make_group(const mxd_plan_task *t, const int *nodes, int n, mxd_plan_group *out) {
    if (t->tensor ? n != t->tensor : share_a_host(t, nodes, n)) return false;
    return mxd_plan_group_of(t, nodes, n, NULL, out);
}

/* Every set of nodes that may be a group, at its number - 1; returns how many there are. */
static int make_groups(const mxd_plan_task *t, mxd_plan_group *group) {
    int made = 0;
    for (size_t set = 1; set < (size_t)1 << t->n_nodes; set++) {
        int nodes[MXD_PLAN_EXACT], n = 0;
        for (int i = 0; i < t->n_nodes; i++)
            if (set >> i & 1) nodes[n++] = i;
        if (make_group(t, nodes, n, &group[set - 1]))
            made++;
        else
            group[set - 1].n = 0;
    }
    return made;
}

static int cuts_for(int n_nodes, bool singles) {
    double steps = singles ? n_nodes * ldexp(1, n_nodes) : ldexp(1, 2 * n_nodes);
    double c = sqrt(2.0 * MXD_PLAN_STEPS / steps);
    return c < 8 ? 8 : c > MXD_PLAN_CUTS ? MXD_PLAN_CUTS : (int)c;
}

static mxd_rc best_of_sets(const mxd_plan_task *t, const mxd_plan_group *group, int made,
                           uint64_t must, bool by_max, mxd_plan_cut *out, bool *found,
                           mxd_err *err) {
    table x = {.t = t,
               .group = group,
               .n_groups = (1 << t->n_nodes) - 1,
               .by_max = by_max,
               .most_s = INFINITY};
    size_t n_states = 1;
    for (int i = 0; i < t->n_nodes; i++) n_states *= 3;
    MXD_TRY(open_table(&x, n_states, cuts_for(t->n_nodes, made <= t->n_nodes), err));
    fill_sets(&x);
    double best = INFINITY;
    size_t best_set = 0;
    int best_group = -1;
    for (size_t set = 1; set < (size_t)1 << t->n_nodes; set++)
        for (int g = x.n_groups - 1; (set & must) == must && g >= 0; g--) {
            if (!group[g].n || (set_of(&x, g) & set) != set_of(&x, g)) continue;
            double cost = end_cost(&x, state_of(set, set_of(&x, g)));
            if (cost >= best) continue;
            best = cost;
            best_set = set;
            best_group = g;
        }
    *found = best_group >= 0;
    if (*found) read_sets(&x, best_set, best_group, out);
    close_table(&x);
    return MXD_OK;
}

static mxd_rc search_sets(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                          bool *found, mxd_err *err) {
    mxd_plan_group *group = MXD_NEW(&mxd_alloc_libc, MOST_SETS, mxd_plan_group);
    if (!group) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", t->n_nodes);
    *found = false;
    int made = make_groups(t, group);
    mxd_rc rc = made ? best_of_sets(t, group, made, must, by_max, out, found, err) : MXD_OK;
    mxd_free(&mxd_alloc_libc, group);
    return rc;
}

/* -------------------------------------------------------------------------------- a fixed order */

/* Groups group[0..n) in this order; those without a node of `must` may be left out. */
static mxd_rc search_order(const mxd_plan_task *t, const mxd_plan_group *group, int n,
                           uint64_t must, double most_s, bool by_max, mxd_plan_cut *out,
                           bool *found, mxd_err *err) {
    table x = {.t = t, .group = group, .n_groups = n, .by_max = by_max, .most_s = most_s};
    MXD_TRY(open_table(&x, (size_t)n, MXD_PLAN_CUTS, err));
    for (int k = 0; k < n; k++) {
        bool may_begin = true;
        for (int j = k - 1; j >= 0 && may_begin; j--) {
            extend_all(&x, (size_t)j, j, k, (size_t)k);
            may_begin = !(must & group[j].nodes);
        }
        if (may_begin) begin(&x, k, (size_t)k);
    }
    double best = INFINITY;
    int g = -1;
    for (int k = n - 1; k >= 0; k--) {
        if (end_cost(&x, (size_t)k) < best) best = end_cost(&x, (size_t)(g = k));
        if (must & group[k].nodes) break; /* nobody behind it may be the last without it */
    }
    *found = g >= 0;
    back w = {0};
    for (int c = x.n_cuts - 1, k = x.most_stages; g >= 0;) {
        cell s = *cell_at(&x, k--, (size_t)g, c);
        add_back(&x, &w, g, s.from_cut);
        g = s.from_group;
        c = s.from_cut;
    }
    if (*found) turn_around(&x, &w, out);
    close_table(&x);
    return MXD_OK;
}

/* Neighbours in `order` as groups of `each`; returns how many. */
static int make_neighbours(const mxd_plan_task *t, const int *order, int each,
                           mxd_plan_group *group) {
    int n = 0;
    for (int i = 0; i < t->n_nodes; i += each) {
        int left = t->n_nodes - i < each ? t->n_nodes - i : each;
        n += make_group(t, order + i, left, &group[n]);
    }
    return n;
}

static uint64_t all_of(const mxd_plan_group *group, int n) {
    uint64_t all = 0;
    for (int i = 0; i < n; i++) all |= group[i].nodes;
    return all;
}

/* Nodes by falling speed; stable. */
static void by_speed(const mxd_plan_task *t, int order[MXD_MAX_NODES]) {
    for (int i = 0; i < t->n_nodes; i++) {
        int k = i;
        for (; k > 0 && t->bandwidth[order[k - 1]] < t->bandwidth[i]; k--) order[k] = order[k - 1];
        order[k] = i;
    }
}

static mxd_rc search_many(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                          bool *found, mxd_err *err) {
    int order[MXD_MAX_NODES], most = t->tensor ? t->tensor : MXD_MAX_RANKS;
    double best = INFINITY;
    mxd_plan_cut *c = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_cut);
    if (!c) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", t->n_nodes);
    mxd_rc rc = MXD_OK;
    by_speed(t, order);
    *found = false;
    mxd_plan_group *group = MXD_NEW(&mxd_alloc_libc, MXD_MAX_NODES, mxd_plan_group);
    if (!group) rc = mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", t->n_nodes);
    for (int each = t->tensor ? t->tensor : 1; !rc && each <= most; each *= 2) {
        bool ok = false;
        int n = make_neighbours(t, order, each, group);
        if (!n || (all_of(group, n) & must) != must) continue;
        rc = search_order(t, group, n, must, INFINITY, by_max, c, &ok, err);
        if (rc || !ok) continue;
        mxd_plan_time(t, c);
        double s = by_max ? c->max_s : c->sum_s;
        if (s < best) *out = *c, best = s, *found = true;
    }
    mxd_free(&mxd_alloc_libc, group);
    mxd_free(&mxd_alloc_libc, c);
    return rc;
}

mxd_rc mxd_plan_recut(const mxd_plan_task *t, const mxd_plan_cut *from, double most_s, bool by_max,
                      mxd_plan_cut *out, bool *found, mxd_err *err) {
    mxd_plan_cut *c = MXD_NEW(&mxd_alloc_libc, 1, mxd_plan_cut);
    if (!c) return mxd_fail(err, MXD_E_NOMEM, "no memory to plan for %d nodes", t->n_nodes);
    mxd_rc rc = search_order(t, from->group, from->n, all_of(from->group, from->n), most_s, by_max,
                             c, found, err);
    if (!rc && *found) {
        mxd_plan_time(t, c);
        *out = *c;
    }
    mxd_free(&mxd_alloc_libc, c);
    return rc;
}

mxd_rc mxd_plan_search(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                       bool *found, mxd_err *err) {
    bool finer;
    mxd_rc rc = t->n_nodes <= MXD_PLAN_EXACT ? search_sets(t, must, by_max, out, found, err)
                                             : search_many(t, must, by_max, out, found, err);
    if (rc || !*found) return rc;
    mxd_plan_time(t, out);
    if (cuts_for(t->n_nodes, false) >= t->model->n_layers) return MXD_OK; /* exact already */
    return mxd_plan_recut(t, out, INFINITY, by_max, out, &finer, err);
}
