/* linear.c - y = x W^T + bias, for several weights with one input, and for a weight of its own for
 * every head.
 *
 * Rows of tokens are cut into panels of MXD_PANEL, rows of weights into tiles of 16. A task takes
 * a few neighbouring tiles, small enough for the second-level cache, through all panels: weights
 * come from memory once, and a panel is used for all tiles of the task while it is near. */
#include "backend/cpu/cpu.h"

/* Of one task: with several panels small enough for the second-level cache; with one a tile is read
 * once, and long streams of memory are what counts (measured, two threads: 192 KB is 12 % slower,
 * 48 KB 30 %, 1.5 MB no faster). */
enum { TASK_BYTES = 192 << 10, ONE_PANEL_BYTES = 768 << 10 };

typedef struct input { /* what a product reads: [rows, k] */
    const float *x;
    size_t ldx, k;
    int g; /* columns per activation scale; 0: float activations */
    int rows;
    size_t from; /* columns before the first that the matrix has */
    size_t at;   /* codes in the panels before the first of ours */
} input;

typedef struct output { /* a matrix, and where its product goes */
    const mxd_weight *w;
    cpu_reg *dst;
    int head; /* which of the matrices; its columns start at head * rows */
} output;

static const float *rows_of(const input *in, int panel) {
    return in->x + in->from + (size_t)panel * MXD_PANEL * in->ldx;
}

static int tokens_of(const input *in, int panel) {
    int left = in->rows - panel * MXD_PANEL;
    return left < MXD_PANEL ? left : MXD_PANEL;
}

static int panels_of(int rows) { return (rows - 1) / MXD_PANEL + 1; }

static mxd_panel panel_at(const cpu_backend *b, const input *in, int panel) {
    int n = tokens_of(in, panel);
    size_t codes = in->at + (size_t)panel * MXD_PANEL * in->k + (size_t)n * in->from;
    size_t code = b->activations == MXD_ACT_I16 ? 2 : 1, scales = codes / (size_t)in->g;
    return (mxd_panel){.n = n,
                       .g = in->g,
                       .k = in->k - in->from,
                       .q = b->panel_q + codes * code,
                       .s = b->panel_s + scales,
                       .b = b->panel_b + scales};
}

static void quantise(const cpu_backend *b, const input *in, int panel) {
    mxd_panel p = panel_at(b, in, panel);
    (b->activations == MXD_ACT_I16 ? b->k->quantise_i16 : b->k->quantise_i8)(&p, rows_of(in, panel),
                                                                             in->ldx);
}

/* One tile times one panel, to y [n, 16]. */
static void multiply(const cpu_backend *b, const input *in, const mxd_weight *w, int tile,
                     int panel, float *y, size_t ldy) {
    const mxd_kernels *k = b->k;
    const unsigned char *t = w->tiles + (size_t)tile * w->tile_bytes;
    const float *x = rows_of(in, panel);
    int n = tokens_of(in, panel);
    if (in->g) {
        mxd_panel p = panel_at(b, in, panel);
        (b->activations == MXD_ACT_I16 ? k->qmul_i16 : k->qmul_i8)(y, ldy, t, &w->q, &p);
    } else if (w->quantised) {
        k->qmul_f32(y, ldy, t, &w->q, x, in->ldx, n);
    } else {
        k->plain_mul(y, ldy, t, w->type, (size_t)w->in, w->block_k, x, in->ldx, n);
    }
}

static void tile_task(const cpu_backend *b, const input *in, const output *o, int tile, int panel) {
    const mxd_weight *w = o->w;
    float edge[MXD_PANEL * MXD_TILE_ROWS];
    int n = tokens_of(in, panel), row0 = tile * MXD_TILE_ROWS, rows = w->rows - row0;
    int col0 = o->head * w->rows + row0, from = o->head * w->expert_tiles + tile;
    size_t ld = o->dst->ld;
    float *y = cpu_row(o->dst, panel * MXD_PANEL) + col0;
    if (rows >= MXD_TILE_ROWS) {
        rows = MXD_TILE_ROWS;
        multiply(b, in, w, from, panel, y, ld);
    } else { /* what lies behind the rows of a matrix is not ours */
        multiply(b, in, w, from, panel, edge, MXD_TILE_ROWS);
        for (int t = 0; t < n; t++)
            memcpy(y + (size_t)t * ld, edge + t * MXD_TILE_ROWS, (size_t)rows * sizeof(float));
    }
    if (!w->bias) return;
    for (int t = 0; t < n; t++)
        for (int r = 0; r < rows; r++) y[(size_t)t * ld + (size_t)r] += w->bias[col0 + r];
}

/* Neighbouring tiles of one task. */
static int tiles_per_task(const cpu_backend *b, const mxd_weight *w, int n_tiles, int rows) {
    size_t bytes = rows > MXD_PANEL ? TASK_BYTES : ONE_PANEL_BYTES;
    size_t per_task = bytes / w->tile_bytes, fair = (size_t)n_tiles / 4;
    fair /= (size_t)b->n_threads;
    if (per_task > fair) per_task = fair;
    return per_task < 1 ? 1 : (int)per_task;
}

/* ------------------------------------------------------------------ several weights, one input */

typedef struct part { /* one weight of the job */
    output to;
    int first_task, tiles_per_task;
} part;

typedef struct linear_job {
    cpu_backend *b;
    input in;
    int n_parts;
    part parts[MXD_MAX_REGS];
} linear_job;

static void quantise_task(void *ctx, int panel, int thread) {
    (void)thread;
    const linear_job *j = ctx;
    quantise(j->b, &j->in, panel);
}

static void linear_task(void *ctx, int task, int thread) {
    (void)thread;
    linear_job *j = ctx;
    int i = j->n_parts - 1;
    while (j->parts[i].first_task > task) i--;
    const part *p = &j->parts[i];
    int lo = (task - p->first_task) * p->tiles_per_task, hi = lo + p->tiles_per_task;
    if (hi > p->to.w->n_tiles) hi = p->to.w->n_tiles;
    for (int panel = 0; panel < panels_of(j->in.rows); panel++)
        for (int tile = lo; tile < hi; tile++) tile_task(j->b, &j->in, &p->to, tile, panel);
}

/* Cuts the parts into tasks; returns how many. */
static int cut(linear_job *j) {
    int n_tasks = 0;
    for (int i = 0; i < j->n_parts; i++) {
        part *p = &j->parts[i];
        const mxd_weight *w = p->to.w;
        p->tiles_per_task = tiles_per_task(j->b, w, w->n_tiles, j->in.rows);
        p->first_task = n_tasks;
        n_tasks += (w->n_tiles - 1) / p->tiles_per_task + 1;
    }
    return n_tasks;
}

void cpu_linear(mxd_backend *base, int n, const int *dst, int src, const mxd_weight *const *w) {
    static const int groups[] = {0, 16, 32};
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(n <= MXD_MAX_REGS && src >= 0 && src < b->n_regs);
    const cpu_reg *s = &b->reg[src];
    for (size_t g = 0; g < MXD_COUNT(groups); g++) {
        linear_job j = {.b = b, .in = {s->data, s->ld, (size_t)s->width, groups[g], s->rows, 0, 0}};
        double work = 0;
        for (int i = 0; i < n; i++) {
            if (cpu_act_group(b, w[i]) != groups[g]) continue;
            cpu_reg *d = &b->reg[dst[i]];
            MXD_ASSERT(w[i]->tiles && dst[i] != src && dst[i] >= 0 && dst[i] < b->n_regs);
            MXD_ASSERT(d->width == w[i]->rows && s->width == w[i]->in && !w[i]->experts);
            cpu_set_rows(d, s->rows);
            j.parts[j.n_parts++] = (part){.to = {w[i], d, 0}};
            work += (double)w[i]->rows * w[i]->in * s->rows;
        }
        if (!j.n_parts || !s->rows) continue;
        if (groups[g])
            cpu_run(b, quantise_task, &j, panels_of(s->rows), (double)s->rows * s->width);
        cpu_run(b, linear_task, &j, cut(&j), work);
    }
}

/* --------------------------------------------------------------- a rank's part of a cut matrix */

typedef struct pieces_job {
    cpu_backend *b;
    input in;
    const mxd_weight *w, *pieces; /* [n] matrices of the same rows, from columns of their own */
    int n, tiles_per_task;
    float *to; /* [n][rows of the input, rows of w] */
} pieces_job;

static void quantise_part_task(void *ctx, int panel, int thread) {
    (void)thread;
    const pieces_job *j = ctx;
    quantise(j->b, &j->in, panel);
}

static void pieces_task(void *ctx, int task, int thread) {
    (void)thread;
    const pieces_job *j = ctx;
    int lo = task * j->tiles_per_task, hi = lo + j->tiles_per_task, rows = j->w->rows;
    if (hi > j->w->n_tiles) hi = j->w->n_tiles;
    for (int panel = 0; panel < panels_of(j->in.rows); panel++)
        for (int tile = lo; tile < hi; tile++)
            for (int i = 0; i < j->n; i++) {
                input in = j->in;
                in.from = (size_t)j->pieces[i].lead;
                cpu_reg dst = {.data = j->to + (size_t)i * (size_t)in.rows * (size_t)rows,
                               .width = rows,
                               .rows = in.rows,
                               .ld = (size_t)rows};
                tile_task(j->b, &in, &(output){&j->pieces[i], &dst, 0}, tile, panel);
            }
}

void cpu_linear_pieces(cpu_backend *b, const mxd_weight *w, const cpu_reg *src, int row0, int n,
                       float *to) {
    if (!w->n_tiles || !n) return;
    bool columns = w->cut->at.along == MXD_ALONG_IN;
    pieces_job j = {
        .b = b,
        .in = {cpu_row(src, row0), src->ld, (size_t)src->width, cpu_act_group(b, w), n, 0, 0},
        .w = w,
        .pieces = columns ? w->cut->pieces : w,
        .n = columns ? w->cut->n_pieces : 1,
        .tiles_per_task = tiles_per_task(b, w, w->n_tiles, n),
        .to = to};
    MXD_ASSERT(src->width == w->in);
    double values = (double)n * src->width;
    if (j.in.g) cpu_run(b, quantise_part_task, &j, panels_of(n), values);
    cpu_run(b, pieces_task, &j, (w->n_tiles - 1) / j.tiles_per_task + 1, values * w->rows);
}

/* ------------------------------------------------------------------------- a matrix a head */

typedef struct heads_job {
    cpu_backend *b;
    const mxd_weight *w;
    const cpu_reg *src;
    cpu_reg *dst;
    int g, head0; /* the panels hold the heads from head0 */
    int tiles_per_task, tasks_per_head;
} heads_job;

static input head_input(const heads_job *j, int head) {
    size_t k = (size_t)j->w->in;
    return (input){.x = j->src->data + (size_t)head * k,
                   .ldx = j->src->ld,
                   .k = k,
                   .g = j->g,
                   .rows = j->src->rows,
                   .at = (size_t)(head - j->head0) * (size_t)j->src->rows * k};
}

static void quantise_head_task(void *ctx, int task, int thread) {
    (void)thread;
    const heads_job *j = ctx;
    int n_panels = panels_of(j->src->rows);
    const input in = head_input(j, j->head0 + task / n_panels);
    quantise(j->b, &in, task % n_panels);
}

static void head_task(void *ctx, int task, int thread) {
    (void)thread;
    const heads_job *j = ctx;
    int head = j->head0 + task / j->tasks_per_head;
    int lo = task % j->tasks_per_head * j->tiles_per_task, hi = lo + j->tiles_per_task;
    if (hi > j->w->expert_tiles) hi = j->w->expert_tiles;
    const input in = head_input(j, head);
    const output to = {j->w, j->dst, head};
    for (int panel = 0; panel < panels_of(in.rows); panel++)
        for (int tile = lo; tile < hi; tile++) tile_task(j->b, &in, &to, tile, panel);
}

/* Heads whose activations fit into the panels at one time. */
static int heads_at_once(const heads_job *j) {
    if (!j->g) return j->w->experts;
    size_t most =
        j->b->panel_rows * (size_t)j->b->max_in / ((size_t)j->src->rows * (size_t)j->w->in);
    return most < (size_t)j->w->experts ? (int)most : j->w->experts;
}

void cpu_linear_heads(mxd_backend *base, int dst, int src, const mxd_weight *w) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(dst >= 0 && dst < b->n_regs && src >= 0 && src < b->n_regs && dst != src);
    heads_job j = {.b = b, .w = w, .src = &b->reg[src], .dst = &b->reg[dst]};
    MXD_ASSERT(w->tiles && w->experts && w->in % 16 == 0);
    MXD_ASSERT(j.src->width == w->experts * w->in && j.dst->width == w->experts * w->rows);
    int rows = j.src->rows;
    cpu_set_rows(j.dst, rows);
    if (!rows) return;
    j.g = cpu_act_group(b, w);
    j.tiles_per_task = tiles_per_task(b, w, w->n_tiles, rows);
    if (j.tiles_per_task > w->expert_tiles) j.tiles_per_task = w->expert_tiles;
    j.tasks_per_head = (w->expert_tiles - 1) / j.tiles_per_task + 1;
    int step = heads_at_once(&j);
    for (; j.head0 < w->experts; j.head0 += step) {
        int n = w->experts - j.head0 < step ? w->experts - j.head0 : step;
        double values = (double)n * rows * w->in;
        if (j.g) cpu_run(b, quantise_head_task, &j, n * panels_of(rows), values);
        cpu_run(b, head_task, &j, n * j.tasks_per_head, values * w->rows);
    }
}
