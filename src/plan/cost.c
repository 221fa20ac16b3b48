#include "plan/cost.h"

#include <math.h>
#include <string.h>

enum {
    REGIONS = 8, /* pieces of work of a layer that all threads take part in */
    PANEL = 12,  /* rows that share a reading of the weights from the caches: kernels.h */
    /* What is between two operations of a chunk lies in the far caches, of one row in the near
     * ones; and small operations cost something whatever their size. In numbers of the probe, which
     * stay near; measured on x86, with models of 5 MB to 2 GB. */
    FAR_VALUES = 7,
    NEAR_VALUES = 2,
    LAYER_VALUES = 50000,
    HANDOFFS = 2, /* of a step within a worker: to the thread that computes, and back */
    EXCHANGE_FLOATS = 8 << 20, /* of one exchange at most: backend/cpu/group.c */
    NEAR_BYTES = 4 << 20,      /* so much weight stays in the caches */
    FAR_BYTES = 64 << 20       /* of so much nothing does */
};

/* ------------------------------------------------------------------------------------------ sums
 */

static double read_of(const mxd_model_sizes *m, int l, double rows) {
    double all = (double)m->layer_bytes[l], one = (double)m->layer_read_bytes[l];
    int e = m->cuts.count[MXD_BY_EXPERT], k = m->top_k;
    if (one <= 0 || one >= all) return all;
    if (e <= k || k < 1) return one;
    double more = fmin(rows * k, e) - k; /* experts that the other rows ask for */
    return one + (all - one) * fmax(more, 0) / (e - k);
}

/* Keys and values are read once for all rows of a chunk. */
void mxd_plan_rows_fill(const mxd_plan_task *t, mxd_plan_rows *r, double rows, double logits,
                        double past, bool chunk) {
    const mxd_model_sizes *m = t->model;
    r->rows = rows;
    r->logits = logits;
    r->to_kv[0] = r->to_attend[0] = r->to_read[0] = 0;
    for (int l = 0; l < m->n_layers; l++) {
        double seen = m->layer_window[l] > 0 ? fmin(past, m->layer_window[l]) : past;
        double kv = (double)m->layer_kv_bytes[l] * seen + (double)m->layer_state_bytes[l];
        r->to_kv[l + 1] = r->to_kv[l] + (chunk ? kv / rows : kv);
        r->to_attend[l + 1] = r->to_attend[l] + m->layer_attend_ops[l] * seen;
        r->to_read[l + 1] = r->to_read[l] + read_of(m, l, rows);
    }
}

void mxd_plan_task_sums(mxd_plan_task *t) {
    const mxd_model_sizes *m = t->model;
    const mxd_model_cuts *c = &m->cuts;
    for (int l = 0; l < m->n_layers; l++) {
        t->weights_to[l + 1] = t->weights_to[l] + (double)m->layer_bytes[l];
        t->kv_to[l + 1] = t->kv_to[l] + (double)m->layer_kv_bytes[l];
        /* the last state of a sequence, and the one that is kept beside it (runtime/shard.h) */
        t->state_to[l + 1] = t->state_to[l] + 2.0 * (double)m->layer_state_bytes[l];
        t->tables_to[l + 1] = t->tables_to[l] + (double)m->layer_table_bytes[l];
        t->whole_to[l + 1] = t->whole_to[l] + c->whole[l];
        t->experts_to[l + 1] = t->experts_to[l] + c->experts[l];
        for (int x = 0; x < MXD_AXES; x++) {
            t->per_to[x][l + 1] = t->per_to[x][l] + c->per[x][l];
            t->sums_to[x][l + 1] = t->sums_to[x][l] + c->sum[x][l];
        }
    }
    t->prompt = t->ctx / 2 < 512 ? t->ctx / 2 : 512;
    if (t->prompt < 1) t->prompt = 1;
    int chunk = t->chunk > 0 ? t->chunk : 256;
    t->chunk = chunk < t->prompt ? chunk : t->prompt;
    int turns = t->n_nodes + 1 < t->parallel ? t->n_nodes + 1 : t->parallel;
    double batch = (double)t->parallel / turns;
    mxd_plan_rows_fill(t, &t->one, 1, 1, t->prompt, false);
    mxd_plan_rows_fill(t, &t->batch, batch, batch, t->prompt, false);
    mxd_plan_rows_fill(t, &t->prefill, t->chunk, (double)t->chunk / t->prompt, t->prompt / 2.0,
                       true);
}

/* ----------------------------------------------------------------------------------------- bytes
 */

mxd_plan_held mxd_plan_whole(const mxd_plan_task *t, int a, int b) {
    const mxd_model_sizes *m = t->model;
    bool embed = a == 0 || m->reembed, head = b == m->n_layers;
    mxd_plan_held x = {
        .share = 1,
        .weights = t->weights_to[b] - t->weights_to[a],
        .kv =
            ((t->kv_to[b] - t->kv_to[a]) * t->ctx + t->state_to[b] - t->state_to[a]) * t->parallel,
        .scratch = (double)m->scratch_bytes};
    if (embed) x.weights += (double)m->embed_bytes;
    if (head) x.weights += (double)m->head_bytes;
    if (embed && head && m->tied) x.weights -= (double)m->embed_bytes;
    return x;
}

/* Tables that are only looked up `mlx` holds in memory. */
static double tables_of(const mxd_plan_task *t, int a, int b) {
    const mxd_model_sizes *m = t->model;
    bool embed = a == 0 || m->reembed, with_head = b == m->n_layers && m->tied;
    double sum = t->tables_to[b] - t->tables_to[a];
    return embed && !with_head ? sum + (double)m->embed_table_bytes : sum;
}

/* Sums of whole subtrees over blocks [lo, lo + n), by ranks whose runs end at `end` (in blocks). */
static int count_sums(const int *end, int size, int lo, int n) {
    int r = 0;
    while (r + 1 < size && end[r] <= lo) r++;
    if (lo + n <= end[r] || n == 1) return 1;
    int left = 1;
    while (left * 2 < n) left *= 2;
    return count_sums(end, size, lo, left) + count_sums(end, size, lo + left, n - left);
}

/* Sums that all ranks give for a product of `in` columns, cut at edges of `each` columns. */
static int sums_of(const int *edge, int size, int each, int block, int in) {
    int end[MXD_MAX_RANKS];
    if (block < 1 || in < 1) return 1;
    for (int r = 0; r < size; r++) end[r] = (edge[r + 1] * each + block - 1) / block;
    return count_sums(end, size, 0, (in - 1) / block + 1);
}

/* Sums of one product along an axis. */
static double sums_along(const mxd_model_cuts *c, const mxd_shares *s, int axis) {
    if (c->in[axis] < 1 || c->count[axis] < 1) return 0;
    int each = c->in[axis] / c->count[axis];
    return sums_of(mxd_axis_edges(s, (mxd_axis)axis), s->size, each, c->block[axis], c->in[axis]);
}

/* Bytes of one row of all exchanges of layers [a, b); *n: how many those are. */
static double exchanged(const mxd_plan_task *t, const mxd_shares *s, int a, int b, double logits,
                        double *n) {
    const mxd_model_sizes *m = t->model;
    double hidden = (double)m->hidden_bytes, bytes = 0;
    *n = t->experts_to[b] - t->experts_to[a];
    bytes = hidden * *n * m->top_k;
    for (int x = 0; x < MXD_AXES; x++) {
        int sums = t->sums_to[x][b] - t->sums_to[x][a];
        *n += sums;
        if (sums) bytes += hidden * sums * sums_along(&m->cuts, s, x);
    }
    if (b == m->n_layers) {
        bytes += logits * 4.0 * m->cuts.count[MXD_BY_TOKEN];
        *n += 1;
    }
    return bytes;
}

static int width(const int *edge, int r) { return edge[r + 1] - edge[r]; }

static double layers_of(const mxd_plan_task *t, const mxd_shares *s, int r, int a, int b,
                        double experts) {
    double sum = t->whole_to[b] - t->whole_to[a];
    for (int x = 0; x < MXD_AXES; x++) {
        if (t->model->cuts.count[x] < 1 || x == MXD_BY_TOKEN) continue;
        double things = x == MXD_BY_EXPERT ? experts : width(mxd_axis_edges(s, (mxd_axis)x), r);
        sum += (t->per_to[x][b] - t->per_to[x][a]) * things;
    }
    return sum;
}

/* Of the heads, by which attention goes. */
static double kv_part(const mxd_plan_task *t, const mxd_shares *s, int r) {
    int all = t->model->cuts.count[MXD_BY_KV];
    return all > 0 ? (double)width(s->kv, r) / all : 0;
}

/* Of K and V in memory: a latent is whole wherever there are heads. */
static double cache_part(const mxd_plan_task *t, const mxd_shares *s, int r) {
    double part = kv_part(t, s, r);
    return t->model->cuts.latent && part > 0 ? 1 : part;
}

static double state_part(const mxd_plan_task *t, const mxd_shares *s, int r) {
    int all = t->model->cuts.count[MXD_BY_KEY];
    return all > 0 ? (double)width(s->keys, r) / all : 0;
}

static double exchange_bytes(const mxd_plan_task *t, const mxd_shares *s, bool head) {
    const mxd_model_sizes *m = t->model;
    double most = 0;
    for (int x = 0; x < MXD_AXES; x++) most = fmax(most, sums_along(&m->cuts, s, x));
    double floats = (double)m->hidden_bytes / 4 * most * 256;
    if (head) floats = fmax(floats, (double)m->cuts.count[MXD_BY_TOKEN] * 256);
    return 4 * fmin(floats, EXCHANGE_FLOATS);
}

static mxd_plan_held held_by(const mxd_plan_task *t, const mxd_shares *s, int r, int a, int b) {
    const mxd_model_sizes *m = t->model;
    bool embed = a == 0 || m->reembed, head = b == m->n_layers;
    mxd_plan_held x = {.weights = layers_of(t, s, r, a, b, width(s->experts, r)),
                       .kv = ((t->kv_to[b] - t->kv_to[a]) * t->ctx * cache_part(t, s, r) +
                              (t->state_to[b] - t->state_to[a]) * state_part(t, s, r)) *
                             t->parallel,
                       .scratch = (double)m->scratch_bytes + exchange_bytes(t, s, head)};
    if (embed && !(head && m->tied)) /* ranks keep their part of it in memory */
        x.weights += (double)m->embed_bytes + (double)m->embed_table_bytes;
    if (head) x.weights += width(s->vocab, r) * m->cuts.head_per_id + m->cuts.norm_bytes;
    return x;
}

/* ---------------------------------------------------------------------------------------- groups
 */

double mxd_plan_crowd(const mxd_plan_task *t, const int *nodes, int n, int i) {
    double sum = 0;
    for (int k = 0; k < n; k++)
        if (t->same_host[i][nodes[k]]) sum += t->part[nodes[k]];
    return sum;
}

static bool can_be_ranks(const mxd_plan_task *t, const int *nodes, int n) {
    if (n > MXD_MAX_RANKS || !t->model->cuts.possible) return false;
    for (int i = 0; i < n; i++) {
        if (t->nodes[nodes[i]].whole_only) return false;
        for (int j = 0; j < i; j++)
            if (t->broken[nodes[i]][nodes[j]]) return false;
    }
    return true;
}

/* Ranks of one machine meet in shared memory: a wake, and a copy there and back. */
static void pair_way(const mxd_plan_task *t, int a, int b, double *latency, double *byte_s) {
    bool shared = t->same_host[a][b];
    double way = shared ? 2 * fmax(t->paces[a].region_s, 5e-7) : t->latency_s[a][b];
    *latency = fmax(*latency, way);
    *byte_s = fmax(*byte_s, shared ? 4 / t->bandwidth[a] : t->byte_s[a][b]);
}

static bool set_shares(const mxd_plan_task *t, mxd_plan_group *g) {
    return mxd_cuts_share(&t->model->cuts, g->n, g->weight, &g->shares, NULL) == MXD_OK;
}

/* Seconds that the slowest rank reads in all layers, without limits of memory. */
static double slowest(const mxd_plan_task *t, const mxd_plan_group *g) {
    double most = 0;
    for (int r = 0; r < g->n; r++)
        most = fmax(
            most, layers_of(t, &g->shares, r, 0, t->model->n_layers, width(g->shares.experts, r)) *
                      g->crowd[r] / t->bandwidth[g->node[r]]);
    return most;
}

/* Whole KV heads by largest remainder: where heads are few, what is nearest to the proportions may
 * round badly for all else that is cut at the same places. */
static void snap_to_heads(const mxd_plan_task *t, mxd_plan_group *g) {
    int step = t->model->cuts.step[MXD_BY_KV], left;
    int units = step > 0 ? t->model->cuts.count[MXD_BY_KV] / step : 0;
    int got[MXD_MAX_RANKS];
    double total = 0;
    mxd_plan_group snapped = *g;
    if (units < g->n) return;
    for (int r = 0; r < g->n; r++) total += g->weight[r];
    left = units;
    for (int r = 0; r < g->n; r++) left -= got[r] = (int)(g->weight[r] / total * units);
    for (; left > 0; left--) {
        int best = 0;
        for (int r = 1; r < g->n; r++)
            if (g->weight[r] / total * units - got[r] > g->weight[best] / total * units - got[best])
                best = r;
        got[best]++;
    }
    for (int r = 0; r < g->n; r++) snapped.weight[r] = got[r];
    if (set_shares(t, &snapped) && slowest(t, &snapped) < slowest(t, g)) *g = snapped;
}

bool mxd_plan_group_of(const mxd_plan_task *t, const int *nodes, int n, const double *weight,
                       mxd_plan_group *g) {
    *g = (mxd_plan_group){.n = n, .fixed = weight != NULL};
    if (n < 1 || (n > 1 && !can_be_ranks(t, nodes, n))) return false;
    double latency = 0, byte_s = 0;
    for (int i = 0; i < n; i++) {
        g->nodes |= (uint64_t)1 << nodes[i];
        g->node[i] = nodes[i];
        g->crowd[i] = fmax(1, mxd_plan_crowd(t, nodes, n, nodes[i]));
        for (int j = 0; j < n; j++)
            if (i != j) pair_way(t, nodes[i], nodes[j], &latency, &byte_s);
    }
    for (int i = 0; i < n; i++)
        g->weight[i] = weight ? weight[i] : t->bandwidth[nodes[i]] / g->crowd[i];
    if (n == 1) return true;
    g->exchange_s = latency;
    g->byte_s = byte_s;
    if (!set_shares(t, g)) return false;
    if (!weight) snap_to_heads(t, g);
    return true;
}

/* -------------------------------------------------------------------------------- what fits */

static bool all_fit(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                    mxd_plan_held *held) {
    for (int r = 0; r < g->n; r++) {
        held[r] = held_by(t, &g->shares, r, a, b);
        if (held[r].weights + held[r].kv + held[r].scratch > t->usable[g->node[r]]) return false;
    }
    return true;
}

/* Shares no larger than memory allows; what a full node cannot take goes to the others. */
static bool shrink_to_memory(const mxd_plan_task *t, mxd_plan_group *g, int a, int b) {
    const mxd_model_sizes *m = t->model;
    mxd_plan_held all = mxd_plan_whole(t, a, b);
    double whole = t->whole_to[b] - t->whole_to[a], cap[MXD_MAX_RANKS], sum = 0;
    double cut = all.weights + all.kv - whole;
    double extra = exchange_bytes(t, &g->shares, b == m->n_layers) + (double)m->scratch_bytes;
    bool full[MXD_MAX_RANKS] = {false};
    for (int r = 0; r < g->n; r++) {
        cap[r] = fmax(0, (t->usable[g->node[r]] - whole - extra) / cut);
        sum += cap[r];
    }
    if (sum < 1) return false;
    for (int round = 0; round < g->n; round++) {
        double left = 1, open = 0;
        bool again = false;
        for (int r = 0; r < g->n; r++) {
            if (full[r])
                left -= cap[r];
            else
                open += g->weight[r];
        }
        for (int r = 0; r < g->n && open > 0; r++) {
            if (full[r] || g->weight[r] * left / open <= cap[r]) continue;
            full[r] = again = true;
        }
        if (again) continue;
        for (int r = 0; r < g->n; r++)
            g->weight[r] = full[r] ? cap[r] : open > 0 ? g->weight[r] * left / open : 0;
        return set_shares(t, g);
    }
    for (int r = 0; r < g->n; r++) g->weight[r] = cap[r];
    return set_shares(t, g);
}

/* After rounding on units a node may be over by one: it gives part of a unit to who has most room.
 */
static bool give_units(const mxd_plan_task *t, mxd_plan_group *g, int a, int b,
                       mxd_plan_held *held) {
    int step = t->model->cuts.step[MXD_BY_KV];
    int units = t->model->cuts.count[MXD_BY_KV] / (step > 0 ? step : 1);
    double total = 0;
    for (int r = 0; r < g->n; r++) total += g->weight[r];
    for (int round = 0; round < 16 * g->n; round++) {
        int over = -1, room = 0;
        double most = 0, best = -INFINITY;
        if (all_fit(t, g, a, b, held)) return true;
        for (int r = 0; r < g->n; r++) {
            held[r] = held_by(t, &g->shares, r, a, b);
            double free = t->usable[g->node[r]] - held[r].weights - held[r].kv - held[r].scratch;
            if (-free > most) over = r, most = -free;
            if (free > best) room = r, best = free;
        }
        double unit = total / (8.0 * (units > g->n ? units : g->n));
        if (over < 0 || over == room) return false;
        if (unit > g->weight[over]) unit = g->weight[over];
        g->weight[over] -= unit;
        g->weight[room] += unit;
        if (!set_shares(t, g)) return false;
    }
    return false;
}

/* The group with the shares that layers [a, b) get. */
static bool fit_group(const mxd_plan_task *t, const mxd_plan_group *from, int a, int b,
                      mxd_plan_group *g, mxd_plan_held *held) {
    *g = *from;
    if (all_fit(t, g, a, b, held)) return true;
    if (g->fixed || !shrink_to_memory(t, g, a, b)) return false;
    return give_units(t, g, a, b, held);
}

/* ----------------------------------------------------------------------------------------- times
 */

/* Weights that fit into the caches are read faster. */
static double pace_of(const mxd_plan_task *t, int node, double held) {
    double far = t->bandwidth[node], near = t->paces[node].near_bytes_per_s;
    if (held >= FAR_BYTES || near <= far) return far;
    if (held <= NEAR_BYTES) return near;
    double part = log(held / NEAR_BYTES) / log((double)FAR_BYTES / NEAR_BYTES);
    return near * pow(far / near, part);
}

typedef struct work {      /* of one rank */
    double read, kv, held; /* bytes */
    double ops, attend;    /* multiply-adds */
    double values, tiles;
    int layers;
} work;

typedef struct rank_time {
    double reading, computing, all;
} rank_time;

static rank_time time_of(const mxd_plan_task *t, int node, double crowd, const work *w,
                         double rows) {
    const mxd_paces *p = &t->paces[node];
    double read = w->read / pace_of(t, node, w->held);
    double ops = 2 * w->ops / t->ops[node] + w->tiles * p->tile_s;
    double kv = w->kv / pace_of(t, node, w->held + w->kv), attend;
    bool chunk = rows >= 4 * PANEL;
    double values = w->values * (chunk ? FAR_VALUES : NEAR_VALUES) + w->layers * LAYER_VALUES;
    values /= p->values_per_s;
    /* rows of a batch are of many sequences, each with keys of its own */
    attend = 2 * w->attend / (chunk ? p->float_ops_per_s : p->row_ops_per_s);
    rank_time x = {.reading = (read + kv) * crowd, .computing = (ops + attend + values) * crowd};
    /* keys and values of a single row come only partly while others are worked on */
    double past = fmax(kv, attend) + (chunk ? 0 : fmin(kv, attend) / 2);
    x.all = crowd * (fmax(read, ops) + past + values) + p->region_s * REGIONS * w->layers +
            p->handoff_s * HANDOFFS;
    return x;
}

static work whole_work(const mxd_plan_task *t, int a, int b, const mxd_plan_rows *x) {
    const mxd_model_sizes *m = t->model;
    int n = b - a;
    work w = {.read = x->to_read[b] - x->to_read[a],
              .kv = x->rows * (x->to_kv[b] - x->to_kv[a]),
              .held = t->weights_to[b] - t->weights_to[a],
              .ops = x->rows * m->layer_ops * n,
              .attend = x->rows * (x->to_attend[b] - x->to_attend[a]),
              .values = x->rows * (m->layer_values + m->layer_values_cut) * n,
              .tiles = ceil(x->rows / PANEL) * m->layer_tiles * n,
              .layers = n};
    if (b == m->n_layers) {
        w.read += (double)m->head_bytes * fmin(x->logits, 1);
        w.held += (double)m->head_bytes;
        w.ops += x->logits * m->head_ops;
        w.values += x->logits * m->head_values;
    }
    return w;
}

/* Experts of a rank that rows ask for, in the rank that is unlucky. */
static double experts_hit(const mxd_plan_task *t, const mxd_shares *s, int r, double rows) {
    int all = t->model->cuts.count[MXD_BY_EXPERT], mine = width(s->experts, r);
    if (all < 1 || mine < 1) return 0;
    double part = (double)mine / all, asked = fmin(rows * t->model->top_k, all);
    return fmin(mine, asked * part + 0.8 * sqrt(asked * part * (1 - part)));
}

static work rank_work(const mxd_plan_task *t, const mxd_shares *s, int r, int a, int b,
                      const mxd_plan_rows *x) {
    const mxd_model_sizes *m = t->model;
    double read = layers_of(t, s, r, a, b, experts_hit(t, s, r, x->rows));
    double all = fmax(x->to_read[b] - x->to_read[a], 1), part = fmin(read / all, 1);
    double kv = kv_part(t, s, r), ids = (double)width(s->vocab, r) / m->cuts.count[MXD_BY_TOKEN],
           unused;
    work w = whole_work(t, a, b, x);
    w.read = read;
    w.kv *= kv;
    w.attend *= kv;
    w.held = layers_of(t, s, r, a, b, width(s->experts, r));
    w.ops = x->rows * m->layer_ops * (b - a) * part;
    w.tiles *= part;
    w.values = x->rows * (m->layer_values + m->layer_values_cut * part) * (b - a);
    w.values += x->rows * exchanged(t, s, a, b, 0, &unused) / 4;
    if (b == m->n_layers) {
        w.read += (double)m->head_bytes * ids * fmin(x->logits, 1);
        w.held += (double)m->head_bytes * ids;
        w.ops += x->logits * m->head_ops * ids;
        w.values += x->logits * m->head_values;
    }
    return w;
}

static double exchange_time(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                            const mxd_plan_rows *x) {
    if (g->n < 2) return 0;
    double n, row = exchanged(t, &g->shares, a, b, x->logits / x->rows, &n);
    return n * g->exchange_s + x->rows * row * (g->n - 1) / g->n * g->byte_s;
}

static rank_time slowest_rank(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                              const mxd_plan_rows *rows) {
    rank_time most = {0};
    for (int r = 0; r < g->n; r++) {
        work w = g->n > 1 ? rank_work(t, &g->shares, r, a, b, rows) : whole_work(t, a, b, rows);
        rank_time x = time_of(t, g->node[r], g->crowd[r], &w, rows->rows);
        if (x.all > most.all) most = x;
    }
    return most;
}

/* One node needs no copy of the group. */
static bool fit_any(const mxd_plan_task *t, const mxd_plan_group **g, int a, int b,
                    mxd_plan_group *room, mxd_plan_held *held) {
    if ((*g)->n == 1) {
        held[0] = mxd_plan_whole(t, a, b);
        if (t->nodes[(*g)->node[0]].whole_only) held[0].weights += tables_of(t, a, b);
        return held[0].weights + held[0].kv + held[0].scratch <= t->usable[(*g)->node[0]];
    }
    if (!fit_group(t, *g, a, b, room, held)) return false;
    *g = room;
    return true;
}

double mxd_plan_stage_s(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                        const mxd_plan_rows *rows) {
    mxd_plan_group room;
    mxd_plan_held held[MXD_MAX_RANKS];
    if (!fit_any(t, &g, a, b, &room, held)) return INFINITY;
    return slowest_rank(t, g, a, b, rows).all + exchange_time(t, g, a, b, rows);
}

bool mxd_plan_stage_of(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                       mxd_plan_stage_cost *out) {
    mxd_plan_group room;
    mxd_plan_held held[MXD_MAX_RANKS];
    if (!fit_any(t, &g, a, b, &room, held)) return false;
    if (!out) return true;
    rank_time x = slowest_rank(t, g, a, b, &t->one);
    double total = 0;
    *out = (mxd_plan_stage_cost){.exchange_s = exchange_time(t, g, a, b, &t->one),
                                 .reading_s = x.reading,
                                 .computing_s = x.computing};
    out->decode_s = x.all + out->exchange_s;
    for (int r = 0; r < g->n; r++) total += g->weight[r];
    for (int r = 0; r < g->n; r++) {
        out->held[r] = held[r];
        out->held[r].share = g->n == 1 ? 1 : g->weight[r] / total;
    }
    return true;
}

double mxd_plan_hop_s(const mxd_plan_task *t, const mxd_plan_group *from, const mxd_plan_group *to,
                      double rows) {
    double most = 0;
    int a = from->node[0];
    for (int r = 0; r < to->n; r++) {
        int b = to->node[r];
        most = fmax(most, t->latency_s[a][b] +
                              rows * (double)t->model->hidden_bytes * to->n * t->byte_s[a][b]);
    }
    return most;
}
