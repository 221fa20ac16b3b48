/* linear.c - y = x W^T + bias for several weights with one input.
 *
 * Rows of tokens are cut into panels of MXD_PANEL, rows of weights into tiles of 16. A task takes
 * a few neighbouring tiles, small enough for the second-level cache, through all panels: weights
 * come from memory once, and a panel is used for all tiles of the task while it is near. */
#include "backend/cpu/cpu.h"

enum { TASK_BYTES = 192 << 10 };

typedef struct part { /* one weight of the job */
    const mxd_weight *w;
    cpu_reg *dst;
    int first_task, tiles_per_task;
} part;

typedef struct linear_job {
    cpu_backend *b;
    const cpu_reg *src;
    int g; /* columns per activation scale; 0: float activations */
    int rows;
    int n_parts;
    part parts[MXD_MAX_REGS];
} linear_job;

static mxd_panel panel_at(const linear_job *j, int panel) {
    const cpu_backend *b = j->b;
    size_t row = (size_t)panel * MXD_PANEL, k = (size_t)j->src->width, n_scales = k / (size_t)j->g;
    int left = j->rows - panel * MXD_PANEL;
    size_t code = b->activations == MXD_ACT_I16 ? 2 : 1;
    return (mxd_panel){.n = left < MXD_PANEL ? left : MXD_PANEL,
                       .g = j->g,
                       .k = k,
                       .q = b->panel_q + row * k * code,
                       .s = b->panel_s + row * n_scales,
                       .b = b->panel_b + row * n_scales};
}

static void quantise_task(void *ctx, int panel, int thread) {
    (void)thread;
    linear_job *j = ctx;
    mxd_panel p = panel_at(j, panel);
    const float *x = cpu_row(j->src, panel * MXD_PANEL);
    if (j->b->activations == MXD_ACT_I16)
        j->b->k->quantise_i16(&p, x, j->src->ld);
    else
        j->b->k->quantise_i8(&p, x, j->src->ld);
}

/* One tile times one panel, to y [n, 16]. */
static void multiply(const linear_job *j, const mxd_weight *w, int tile, int panel, float *y,
                     size_t ldy) {
    const mxd_kernels *k = j->b->k;
    const unsigned char *t = w->tiles + (size_t)tile * w->tile_bytes;
    const float *x = cpu_row(j->src, panel * MXD_PANEL);
    int n = j->rows - panel * MXD_PANEL;
    if (n > MXD_PANEL) n = MXD_PANEL;
    if (j->g) {
        mxd_panel p = panel_at(j, panel);
        (j->b->activations == MXD_ACT_I16 ? k->qmul_i16 : k->qmul_i8)(y, ldy, t, &w->q, &p);
    } else if (w->quantised) {
        k->qmul_f32(y, ldy, t, &w->q, x, j->src->ld, n);
    } else {
        k->plain_mul(y, ldy, t, w->type, (size_t)w->in, w->block_k, x, j->src->ld, n);
    }
}

static void tile_task(const linear_job *j, const part *p, int tile, int panel) {
    const mxd_weight *w = p->w;
    float edge[MXD_PANEL * MXD_TILE_ROWS];
    int row0 = panel * MXD_PANEL, n = j->rows - row0 < MXD_PANEL ? j->rows - row0 : MXD_PANEL;
    int col0 = tile * MXD_TILE_ROWS, cols = w->rows - col0;
    float *y = cpu_row(p->dst, row0) + col0;
    if (cols >= MXD_TILE_ROWS) {
        cols = MXD_TILE_ROWS;
        multiply(j, w, tile, panel, y, p->dst->ld);
    } else { /* what lies behind the width of a register stays zero */
        multiply(j, w, tile, panel, edge, MXD_TILE_ROWS);
        for (int t = 0; t < n; t++)
            memcpy(y + (size_t)t * p->dst->ld, edge + t * MXD_TILE_ROWS,
                   (size_t)cols * sizeof(float));
    }
    if (!w->bias) return;
    for (int t = 0; t < n; t++)
        for (int c = 0; c < cols; c++) y[(size_t)t * p->dst->ld + c] += w->bias[col0 + c];
}

static void linear_task(void *ctx, int task, int thread) {
    (void)thread;
    linear_job *j = ctx;
    int i = j->n_parts - 1;
    while (j->parts[i].first_task > task) i--;
    const part *p = &j->parts[i];
    int lo = (task - p->first_task) * p->tiles_per_task, hi = lo + p->tiles_per_task;
    if (hi > p->w->n_tiles) hi = p->w->n_tiles;
    for (int panel = 0; panel * MXD_PANEL < j->rows; panel++)
        for (int tile = lo; tile < hi; tile++) tile_task(j, p, tile, panel);
}

/* Cuts the parts into tasks; returns how many. */
static int cut(linear_job *j) {
    int n_tasks = 0;
    for (int i = 0; i < j->n_parts; i++) {
        part *p = &j->parts[i];
        size_t per_task = TASK_BYTES / p->w->tile_bytes;
        size_t fair = (size_t)p->w->n_tiles / (size_t)(4 * j->b->n_threads);
        if (per_task > fair) per_task = fair;
        p->tiles_per_task = per_task < 1 ? 1 : (int)per_task;
        p->first_task = n_tasks;
        n_tasks += (p->w->n_tiles - 1) / p->tiles_per_task + 1;
    }
    return n_tasks;
}

void cpu_linear(mxd_backend *base, int n, const int *dst, int src, const mxd_weight *const *w) {
    static const int groups[] = {0, 16, 32, 64};
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(n <= MXD_MAX_REGS && src >= 0 && src < b->n_regs);
    for (size_t g = 0; g < MXD_COUNT(groups); g++) {
        linear_job j = {.b = b, .src = &b->reg[src], .g = groups[g], .rows = b->reg[src].rows};
        double work = 0;
        for (int i = 0; i < n; i++) {
            if (cpu_act_group(b, w[i]) != j.g) continue;
            cpu_reg *d = &b->reg[dst[i]];
            MXD_ASSERT(w[i]->tiles && dst[i] != src && dst[i] >= 0 && dst[i] < b->n_regs);
            MXD_ASSERT(d->width == w[i]->rows && j.src->width == w[i]->in && !w[i]->experts);
            cpu_set_rows(d, j.rows);
            j.parts[j.n_parts++] = (part){.w = w[i], .dst = d};
            work += (double)w[i]->rows * w[i]->in * j.rows;
        }
        if (!j.n_parts || !j.rows) continue;
        int n_panels = (j.rows - 1) / MXD_PANEL + 1;
        if (j.g) cpu_run(b, quantise_task, &j, n_panels, (double)j.rows * j.src->width);
        cpu_run(b, linear_task, &j, cut(&j), work);
    }
}
