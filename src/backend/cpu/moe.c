/* moe.c - a mixture of experts: each row goes through the few experts its router chose.
 *
 * A pair is one row at one of its experts. Pairs are sorted by expert, and rows of one expert cut
 * into panels of MXD_PANEL, so that a tile is read once for all rows that need it. What a pair
 * gives depends on its row alone, and a row adds its pairs in the order of experts, so grouping
 * changes no bit. docs/numerics.md is the definition. */
#include <math.h>
#include "backend/cpu/cpu.h"
#include "kernels/math.h"

enum { TASK_BYTES = 192 << 10 };

typedef struct moe_job {
    cpu_backend *b;
    cpu_moe *m;
    const mxd_moe *how;
    const cpu_reg *src, *logits;
    cpu_reg *dst;
    int n_pairs, n_panels, n_groups; /* panels and groups: of this rank's experts */
    int place0, n_places;            /* of pairs with these */
} moe_job;

/* ------------------------------------------------------------------------------------- routing */

/* Marks the top_k largest of p [n], the lowest index of equal ones. chosen [n]: all false. */
static void choose(const float *p, int n, int top_k, bool *chosen) {
    for (int k = 0; k < top_k; k++) {
        int best = -1;
        for (int e = 0; e < n; e++)
            if (!chosen[e] && (best < 0 || p[e] > p[best])) best = e;
        chosen[best] = true;
    }
}

/* The sum of the two largest of x [n]. */
static float two_best(const float *x, int n) {
    float first = -INFINITY, second = -INFINITY;
    for (int i = 0; i < n; i++) {
        if (x[i] > first) {
            second = first;
            first = x[i];
        } else if (x[i] > second) {
            second = x[i];
        }
    }
    return first + second;
}

/* Scores of experts outside the best groups become 0. */
static void keep_best_groups(const mxd_moe *how, float *score) {
    int size = how->n_experts / how->n_group;
    float worth[MXD_MAX_EXPERTS];
    bool kept[MXD_MAX_EXPERTS] = {0};
    for (int g = 0; g < how->n_group; g++) worth[g] = two_best(score + g * size, size);
    choose(worth, how->n_group, how->topk_group, kept);
    for (int e = 0; e < how->n_experts; e++)
        if (!kept[e / size]) score[e] = 0;
}

/* p [n_experts]: logits become sigmoids. */
static void choose_by_sigmoid(const mxd_moe *how, float *p, bool *chosen) {
    float score[MXD_MAX_EXPERTS];
    const float *correction = how->correction ? how->correction->vector : NULL;
    for (int e = 0; e < how->n_experts; e++) {
        p[e] = 1 / (1 + mxd_expf(-p[e]));
        score[e] = correction ? p[e] + correction[e] : p[e];
    }
    if (how->n_group > 1) keep_best_groups(how, score);
    choose(score, how->n_experts, how->top_k, chosen);
}

/* p [n_experts]: logits become what the router makes of them. */
static void choose_experts(const mxd_kernels *k, const mxd_moe *how, float *p, bool *chosen) {
    if (how->router == MXD_ROUTE_SIGMOID) {
        choose_by_sigmoid(how, p, chosen);
        return;
    }
    if (how->router == MXD_ROUTE_SOFTMAX) {
        float sum = k->softmax(p, (size_t)how->n_experts, 1.0f, 0);
        for (int e = 0; e < how->n_experts; e++) p[e] /= sum;
    }
    choose(p, how->n_experts, how->top_k, chosen);
}

/* Of the chosen, in ascending order of experts: p [top_k] become what they weigh. */
static void weigh(const mxd_kernels *k, const mxd_moe *how, const cpu_moe_pair *pair, float *p) {
    int n = how->top_k;
    float sum = 0;
    if (how->router == MXD_ROUTE_TOPK_SOFTMAX) {
        sum = k->softmax(p, (size_t)n, 1.0f, 0);
        for (int i = 0; i < n; i++) p[i] /= sum;
        sum = 0;
    }
    for (int i = 0; i < n; i++) sum += p[i];
    sum += how->norm_eps;
    for (int i = 0; i < n; i++) {
        if (how->norm_weights) p[i] /= sum;
        if (how->weight_scale) p[i] *= how->weight_scale;
        if (how->expert_scale) p[i] *= how->expert_scale->vector[pair[i].expert];
    }
}

static void route_task(void *ctx, int row, int thread) {
    (void)thread;
    moe_job *j = ctx;
    const mxd_moe *how = j->how;
    float *p = cpu_row(j->logits, row), of_chosen[MXD_MAX_TOP_K];
    bool chosen[MXD_MAX_EXPERTS] = {0};
    choose_experts(j->b->k, how, p, chosen);
    cpu_moe_pair *pair = j->m->pairs + (size_t)row * (size_t)how->top_k;
    for (int e = 0, k = 0; e < how->n_experts; e++) {
        if (!chosen[e]) continue;
        pair[k].expert = e;
        of_chosen[k++] = p[e];
    }
    weigh(j->b->k, how, pair, of_chosen);
    for (int k = 0; k < how->top_k; k++) pair[k].weight = of_chosen[k];
}

/* The n places from `at` are of one expert: a group, cut into panels. */
static void add_group(moe_job *j, int expert, int at, int n) {
    cpu_moe_group *g = &j->m->groups[j->n_groups++];
    *g = (cpu_moe_group){.expert = expert, .panel0 = j->n_panels};
    for (int r = 0; r < n; r += MXD_PANEL)
        j->m->panels[j->n_panels++] =
            (cpu_moe_panel){at + r, n - r < MXD_PANEL ? n - r : MXD_PANEL};
    g->n_panels = j->n_panels - g->panel0;
}

/* Gives every pair its place behind the pairs of lower experts, and cuts groups and panels of those
 * that are here. */
static void group(moe_job *j, const mxd_cut *cut) {
    int place[MXD_MAX_EXPERTS] = {0}, at = 0, top_k = j->how->top_k;
    int lo = cut ? cut->edge[cut->rank] : 0;
    int hi = cut ? cut->edge[cut->rank + 1] : j->how->n_experts;
    for (int i = 0; i < j->n_pairs; i++) place[j->m->pairs[i].expert]++;
    for (int e = 0; e < j->how->n_experts; e++) {
        int n = place[e];
        place[e] = at;
        if (e == lo) j->place0 = at;
        if (n && e >= lo && e < hi) {
            add_group(j, e - lo, at, n);
            j->n_places += n;
        }
        at += n;
    }
    for (int i = 0; i < j->n_pairs; i++) {
        cpu_moe_pair *p = &j->m->pairs[i];
        p->place = place[p->expert]++;
        if (p->expert < lo || p->expert >= hi) continue;
        memcpy(j->m->wide + (size_t)p->place * j->m->wide_ld, cpu_row(j->src, i / top_k),
               j->src->ld * sizeof(float));
    }
}

/* ------------------------------------------------------------------------------------ products */

typedef struct product { /* of every pair's row with one or two weights of its expert */
    const moe_job *j;
    const float *x;
    size_t ldx, ldy;
    int g; /* columns per activation scale; 0: float activations */
    int n_weights, tiles_per_task, tasks_per_weight;
    const mxd_weight *w[2];
    float *y[2];
} product;

static mxd_panel panel_of(const product *p, const cpu_moe_panel *at) {
    const cpu_backend *b = p->j->b;
    size_t row = (size_t)at->first, k = (size_t)p->w[0]->in, n_scales = k / (size_t)p->g;
    size_t code = b->activations == MXD_ACT_I16 ? 2 : 1;
    return (mxd_panel){.n = at->n,
                       .g = p->g,
                       .k = k,
                       .q = b->panel_q + row * k * code,
                       .s = b->panel_s + row * n_scales,
                       .b = b->panel_b + row * n_scales};
}

static void quantise_task(void *ctx, int i, int thread) {
    (void)thread;
    product *p = ctx;
    const cpu_moe_panel *at = &p->j->m->panels[i];
    const cpu_backend *b = p->j->b;
    mxd_panel panel = panel_of(p, at);
    (b->activations == MXD_ACT_I16 ? b->k->quantise_i16 : b->k->quantise_i8)(
        &panel, p->x + (size_t)at->first * p->ldx, p->ldx);
}

/* The tile's rows for one panel; a tile's rows that do not exist fall behind the width of y. */
static void multiply(const product *p, int i, int tile, const cpu_moe_panel *at, float *y) {
    const mxd_kernels *k = p->j->b->k;
    const mxd_weight *w = p->w[i];
    const unsigned char *t = w->tiles + (size_t)tile * w->tile_bytes;
    const float *x = p->x + (size_t)at->first * p->ldx;
    if (p->g) {
        mxd_panel panel = panel_of(p, at);
        (p->j->b->activations == MXD_ACT_I16 ? k->qmul_i16 : k->qmul_i8)(y, p->ldy, t, &w->q,
                                                                         &panel);
    } else if (w->quantised) {
        k->qmul_f32(y, p->ldy, t, &w->q, x, p->ldx, at->n);
    } else {
        k->plain_mul(y, p->ldy, t, w->type, (size_t)w->in, w->block_k, x, p->ldx, at->n);
    }
}

/* The expert's bias of one tile's rows, for n neighbouring pairs. */
static void add_bias(const product *p, int i, int expert, int tile, int n, float *y) {
    const mxd_weight *w = p->w[i];
    int row0 = tile * MXD_TILE_ROWS, rows = w->rows - row0;
    if (!w->bias) return;
    if (rows > MXD_TILE_ROWS) rows = MXD_TILE_ROWS;
    const float *bias = w->bias + (size_t)expert * (size_t)w->rows + row0;
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++) y[(size_t)t * p->ldy + (size_t)r] += bias[r];
}

static void product_task(void *ctx, int task, int thread) {
    (void)thread;
    const product *p = ctx;
    int part = task % p->tasks_per_weight, i = task / p->tasks_per_weight % p->n_weights;
    const cpu_moe_group *g = &p->j->m->groups[task / p->tasks_per_weight / p->n_weights];
    int n_tiles = p->w[i]->expert_tiles, lo = part * p->tiles_per_task;
    int hi = lo + p->tiles_per_task < n_tiles ? lo + p->tiles_per_task : n_tiles;
    for (int n = 0; n < g->n_panels; n++) {
        const cpu_moe_panel *at = &p->j->m->panels[g->panel0 + n];
        float *y = p->y[i] + (size_t)at->first * p->ldy;
        for (int tile = lo; tile < hi; tile++) {
            float *to = y + (size_t)tile * MXD_TILE_ROWS;
            multiply(p, i, g->expert * n_tiles + tile, at, to);
            add_bias(p, i, g->expert, tile, at->n, to);
        }
    }
}

static void run_product(product *p) {
    const moe_job *j = p->j;
    const mxd_weight *w = p->w[0];
    cpu_backend *b = j->b;
    p->g = cpu_act_group(b, w);
    if (p->g) cpu_run(b, quantise_task, p, j->n_panels, (double)j->n_places * w->in);
    size_t per_task = TASK_BYTES / w->tile_bytes;
    size_t fair = (size_t)(w->expert_tiles * j->n_groups * p->n_weights / (4 * b->n_threads));
    if (per_task > fair) per_task = fair;
    p->tiles_per_task = per_task < 1 ? 1 : (int)per_task;
    p->tasks_per_weight = (w->expert_tiles - 1) / p->tiles_per_task + 1;
    cpu_run(b, product_task, p, j->n_groups * p->n_weights * p->tasks_per_weight,
            (double)j->n_places * w->rows * w->in * p->n_weights);
}

/* Both weights at once where their activations are cut alike. */
static void gate_and_up(const moe_job *j) {
    const mxd_weight *gate = j->how->gate, *up = j->how->up;
    product p = {.j = j, .x = j->m->wide, .ldx = j->m->wide_ld, .ldy = j->m->inner_ld};
    p.n_weights = 2;
    p.w[0] = gate, p.w[1] = up;
    p.y[0] = j->m->gate, p.y[1] = j->m->up;
    if (cpu_act_group(j->b, gate) == cpu_act_group(j->b, up)) {
        run_product(&p);
        return;
    }
    p.n_weights = 1;
    run_product(&p);
    p.w[0] = up;
    p.y[0] = j->m->up;
    run_product(&p);
}

static void gated_task(void *ctx, int task, int thread) {
    (void)thread;
    const moe_job *j = ctx;
    size_t at = (size_t)(j->place0 + task) * j->m->inner_ld, n = (size_t)j->how->gate->rows;
    cpu_act_fn(j->b->k, j->how->act)(j->m->gate + at, j->m->gate + at, j->m->up + at, n);
    memset(j->m->gate + at + n, 0, (j->m->inner_ld - n) * sizeof(float));
}

/* What the experts here make of their rows, in place. */
static void mlps(moe_job *j) {
    const cpu_moe *m = j->m;
    const mxd_moe *how = j->how;
    gate_and_up(j);
    cpu_run(j->b, gated_task, j, j->n_places, 4.0 * j->n_places * how->gate->rows);
    product p = {.j = j, .x = m->gate, .ldx = m->inner_ld, .ldy = m->wide_ld};
    p.n_weights = 1;
    p.w[0] = how->down;
    p.y[0] = m->wide;
    run_product(&p);
}

static void sum_task(void *ctx, int row, int thread) {
    (void)thread;
    const moe_job *j = ctx;
    size_t width = (size_t)j->dst->width, whole = width / 16 * 16;
    float *y = cpu_row(j->dst, row);
    memset(y, 0, width * sizeof *y);
    for (int k = 0; k < j->how->top_k; k++) {
        const cpu_moe_pair *p = &j->m->pairs[(size_t)row * (size_t)j->how->top_k + (size_t)k];
        const float *x = j->m->wide + (size_t)p->place * j->m->wide_ld;
        if (whole) j->b->k->attn_mix(y, whole, &p->weight, 1, x, MXD_F32, 1, whole, 1);
        for (size_t i = whole; i < width; i++) y[i] = fmaf(p->weight, x[i], y[i]);
    }
}

static int all_experts(const mxd_weight *w) { return w->cut ? w->cut->experts : w->experts; }

/* The products of all experts, each from the rank that has it: their places are in the order of
 * experts, so of ranks. */
static void gather(const moe_job *j, const mxd_cut *cut) {
    size_t n_each[MXD_MAX_RANKS] = {0};
    for (int i = 0; i < j->n_pairs; i++) {
        int r = 0;
        while (cut->edge[r + 1] <= j->m->pairs[i].expert) r++;
        n_each[r] += j->m->wide_ld;
    }
    cpu_exchange(j->b, j->m->wide, n_each);
}

static void check(const moe_job *j) {
    const mxd_moe *h = j->how;
    const cpu_moe *m = j->m;
    MXD_ASSERT(h->n_experts >= 1 && h->n_experts <= MXD_MAX_EXPERTS);
    MXD_ASSERT(h->top_k >= 1 && h->top_k <= h->n_experts && h->top_k <= m->top_k);
    MXD_ASSERT(j->logits->width == h->n_experts && j->logits->rows == j->src->rows);
    MXD_ASSERT(all_experts(h->gate) == h->n_experts && h->up->experts == h->gate->experts &&
               h->down->experts == h->gate->experts);
    MXD_ASSERT(h->gate->rows == h->up->rows && h->down->in == h->gate->rows);
    MXD_ASSERT(h->gate->rows <= m->inner && h->down->rows == j->dst->width);
    MXD_ASSERT(h->gate->in == j->src->width && h->up->in == h->gate->in);
    MXD_ASSERT(j->src->width <= m->hidden && j->dst->width <= m->hidden);
    MXD_ASSERT(!h->correction || h->correction->in == h->n_experts);
    MXD_ASSERT(!h->expert_scale || h->expert_scale->in == h->n_experts);
    MXD_ASSERT(h->n_group <= 1 ||
               (h->n_experts % h->n_group == 0 && h->n_experts >= 2 * h->n_group &&
                h->topk_group >= 1 && h->topk_group <= h->n_group));
}

void cpu_moe_run(mxd_backend *base, int dst, int src, int logits, const mxd_moe *how) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(dst >= 0 && dst < b->n_regs && src >= 0 && src < b->n_regs && logits >= 0);
    MXD_ASSERT(logits < b->n_regs && logits != src && logits != dst);
    moe_job j = {b, &b->moe, how, &b->reg[src], &b->reg[logits], &b->reg[dst], 0, 0, 0, 0, 0};
    const mxd_cut *cut = how->down->cut ? &how->down->cut->at : NULL;
    check(&j);
    int rows = j.src->rows;
    j.n_pairs = rows * how->top_k;
    cpu_set_rows(j.dst, rows);
    if (!rows) return;
    cpu_run(b, route_task, &j, rows, (double)j.n_pairs * how->n_experts);
    group(&j, cut);
    if (j.n_groups) mlps(&j);
    if (cut) gather(&j, cut);
    if (!cpu_live(b)) return;
    cpu_run(b, sum_task, &j, rows, 2.0 * j.n_pairs * j.dst->width);
}
