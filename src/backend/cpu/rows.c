/* rows.c - the operations that go row by row. */
#include "backend/cpu/cpu.h"
#include "kernels/math.h"

static cpu_reg *reg_of(cpu_backend *b, int reg) {
    MXD_ASSERT(reg >= 0 && reg < b->n_regs);
    return &b->reg[reg];
}

void cpu_input(mxd_backend *base, int dst, const float *x) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    cpu_reg *d = reg_of(b, dst);
    cpu_set_rows(d, b->batch->n_rows);
    for (int i = 0; i < d->rows; i++)
        memcpy(cpu_row(d, i), x + (size_t)i * (size_t)d->width, (size_t)d->width * sizeof *x);
}

void cpu_pick(mxd_backend *base, int dst, int src, const int *rows, int n) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    cpu_reg *d = reg_of(b, dst), *s = reg_of(b, src);
    MXD_ASSERT(d->width == s->width && n >= 0 && n <= s->rows);
    for (int i = 0; i < n; i++) { /* ascending, so dst may be src */
        MXD_ASSERT(rows[i] >= i && rows[i] < s->rows && (!i || rows[i] > rows[i - 1]));
        memmove(cpu_row(d, i), cpu_row(s, rows[i]), (size_t)d->width * sizeof(float));
    }
    cpu_set_rows(d, n);
}

typedef struct row_job {
    const cpu_backend *be;
    cpu_reg *dst;
    const cpu_reg *a;
    const mxd_weight *w;
    float f;  /* eps, a factor, a cap */
    size_t n; /* of a group; or a length */
} row_job;

static void norm_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    size_t n = (size_t)j->w->in;
    for (size_t i = 0; i < (size_t)j->dst->width; i += n)
        j->be->k->rms_norm(cpu_row(j->dst, row) + i, cpu_row(j->a, row) + i, j->w->vector, n, j->f);
}

void cpu_norm(mxd_backend *base, int dst, int src, const mxd_weight *w, float eps) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, dst), .a = reg_of(b, src), .w = w, .f = eps};
    MXD_ASSERT(w->vector && j.dst->width == j.a->width && j.dst->width % w->in == 0);
    cpu_set_rows(j.dst, j.a->rows);
    cpu_run(b, norm_task, &j, j.dst->rows, 2.0 * j.dst->rows * j.dst->width);
}

typedef struct gated_job {
    mxd_act_kernel fn;
    cpu_reg *dst;
    const cpu_reg *gate, *up;
} gated_job;

static void gated_task(void *ctx, int row, int thread) {
    (void)thread;
    gated_job *j = ctx;
    j->fn(cpu_row(j->dst, row), cpu_row(j->gate, row), cpu_row(j->up, row), (size_t)j->dst->width);
}

mxd_act_kernel cpu_act_fn(const mxd_kernels *k, mxd_act_fn act) {
    switch (act) {
    case MXD_SILU:
        return k->silu_mul;
    case MXD_GELU_TANH:
        return k->gelu_mul;
    case MXD_SIGMOID:
        return k->sigmoid_mul;
    case MXD_SWIGLU_OAI:
        return k->swiglu_oai;
    case MXD_ACT_FN_COUNT:
        break;
    }
    MXD_ASSERT(!"an activation function");
    return k->silu_mul;
}

void cpu_gated(mxd_backend *base, int dst, int gate, int up, mxd_act_fn act) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    gated_job j = {cpu_act_fn(b->k, act), reg_of(b, dst), reg_of(b, gate), reg_of(b, up)};
    MXD_ASSERT(j.gate->rows == j.up->rows);
    MXD_ASSERT(j.dst->width == j.gate->width && j.dst->width == j.up->width);
    cpu_set_rows(j.dst, j.gate->rows);
    cpu_run(b, gated_task, &j, j.dst->rows, 4.0 * j.dst->rows * j.dst->width);
}

static void add_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    j->be->k->add(cpu_row(j->dst, row), cpu_row(j->a, row), (size_t)j->dst->width);
}

void cpu_add(mxd_backend *base, int dst, int src) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, dst), .a = reg_of(b, src)};
    MXD_ASSERT(j.dst->width == j.a->width && j.dst->rows == j.a->rows);
    cpu_run(b, add_task, &j, j.dst->rows, 0.5 * j.dst->rows * j.dst->width);
}

static void unit_norm_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    for (size_t i = 0; i < (size_t)j->dst->width; i += j->n)
        j->be->k->rms_norm(cpu_row(j->dst, row) + i, cpu_row(j->a, row) + i, j->be->ones, j->n,
                           j->f);
}

void cpu_unit_norm(mxd_backend *base, int dst, int src, int n, float eps) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, dst), .a = reg_of(b, src), .n = (size_t)n, .f = eps};
    MXD_ASSERT(n >= 1 && n <= MXD_MAX_HEAD_DIM && j.dst->width % n == 0);
    MXD_ASSERT(j.dst->width == j.a->width);
    cpu_set_rows(j.dst, j.a->rows);
    cpu_run(b, unit_norm_task, &j, j.dst->rows, 2.0 * j.dst->rows * j.dst->width);
}

/* ------------------------------------------------------------------------------------ scaling */

static void scale_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    float *x = cpu_row(j->dst, row);
    for (int i = 0; i < j->dst->width; i++) x[i] *= j->f;
}

void cpu_scale(mxd_backend *base, int reg, float by) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, reg), .f = by};
    cpu_run(b, scale_task, &j, j.dst->rows, 0.5 * j.dst->rows * j.dst->width);
}

static void scale_by_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    float *x = cpu_row(j->dst, row);
    int n = j->w->in;
    for (int g = 0; g < j->dst->width; g += n)
        for (int i = 0; i < n; i++) x[g + i] *= j->w->vector[i];
}

void cpu_scale_by(mxd_backend *base, int reg, const mxd_weight *w) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, reg), .w = w};
    MXD_ASSERT(w->vector && j.dst->width % w->in == 0);
    cpu_run(b, scale_by_task, &j, j.dst->rows, 0.5 * j.dst->rows * j.dst->width);
}

static void softcap_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    j->be->k->softcap(cpu_row(j->dst, row), (size_t)j->dst->width, j->f);
}

void cpu_softcap(mxd_backend *base, int reg, float c) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, reg), .f = c};
    MXD_ASSERT(c > 0);
    cpu_run(b, softcap_task, &j, j.dst->rows, 8.0 * j.dst->rows * j.dst->width);
}

static void gate_rows_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    float *x = cpu_row(j->dst, row), by = 1 / (1 + mxd_expf(-cpu_row(j->a, row)[0]));
    for (int i = 0; i < j->dst->width; i++) x[i] *= by;
}

void cpu_gate_rows(mxd_backend *base, int reg, int gate) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, reg), .a = reg_of(b, gate)};
    MXD_ASSERT(reg != gate && j.a->width == 1 && j.a->rows == j.dst->rows);
    cpu_run(b, gate_rows_task, &j, j.dst->rows, 0.5 * j.dst->rows * j.dst->width);
}

static void positions_task(void *ctx, int row, int thread) {
    (void)thread;
    row_job *j = ctx;
    int turns = j->be->row_pos[row] / (int)j->n;
    float *x = cpu_row(j->dst, row), by = 1 + j->f * mxd_logf((float)(1 + turns));
    for (int i = 0; turns && i < j->dst->width; i++) x[i] *= by;
}

void cpu_scale_positions(mxd_backend *base, int reg, float beta, int length) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    row_job j = {.be = b, .dst = reg_of(b, reg), .n = (size_t)length, .f = beta};
    MXD_ASSERT(length >= 1 && j.dst->rows == b->batch->n_rows);
    cpu_run(b, positions_task, &j, j.dst->rows, 0.5 * j.dst->rows * j.dst->width);
}

/* ----------------------------------------------------------------------------- split and join */

typedef struct parts_job {
    cpu_reg *whole, *first, *second; /* a part may be NULL */
    size_t n, a, c;
    bool one_second; /* the second part is one group, for all */
} parts_job;

static void split_task(void *ctx, int row, int thread) {
    (void)thread;
    parts_job *j = ctx;
    const float *x = cpu_row(j->whole, row);
    for (size_t g = 0; g < j->n; g++, x += j->a + j->c) {
        if (j->first) memcpy(cpu_row(j->first, row) + g * j->a, x, j->a * sizeof *x);
        if (j->second) memcpy(cpu_row(j->second, row) + g * j->c, x + j->a, j->c * sizeof *x);
    }
}

static void join_task(void *ctx, int row, int thread) {
    (void)thread;
    parts_job *j = ctx;
    float *x = cpu_row(j->whole, row);
    for (size_t g = 0; g < j->n; g++, x += j->a + j->c) {
        memcpy(x, cpu_row(j->first, row) + g * j->a, j->a * sizeof *x);
        memcpy(x + j->a, cpu_row(j->second, row) + (j->one_second ? 0 : g * j->c),
               j->c * sizeof *x);
    }
}

void cpu_split(mxd_backend *base, int first, int second, int src, int n, int a, int c) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    parts_job j = {.whole = reg_of(b, src),
                   .first = first < 0 ? NULL : reg_of(b, first),
                   .second = second < 0 ? NULL : reg_of(b, second),
                   .n = (size_t)n,
                   .a = (size_t)a,
                   .c = (size_t)c};
    MXD_ASSERT(first != src && second != src && j.whole->width == n * (a + c));
    MXD_ASSERT((!j.first || j.first->width == n * a) && (!j.second || j.second->width == n * c));
    if (j.first) cpu_set_rows(j.first, j.whole->rows);
    if (j.second) cpu_set_rows(j.second, j.whole->rows);
    cpu_run(b, split_task, &j, j.whole->rows, (double)j.whole->rows * j.whole->width);
}

void cpu_join(mxd_backend *base, int dst, int first, int second, int n, int a, int c) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    parts_job j = {.whole = reg_of(b, dst),
                   .first = reg_of(b, first),
                   .second = reg_of(b, second),
                   .n = (size_t)n,
                   .a = (size_t)a,
                   .c = (size_t)c};
    j.one_second = n > 1 && j.second->width == c;
    MXD_ASSERT(dst != first && dst != second && j.whole->width == n * (a + c));
    MXD_ASSERT(j.first->width == n * a && (j.one_second || j.second->width == n * c));
    MXD_ASSERT(j.first->rows == j.second->rows);
    cpu_set_rows(j.whole, j.first->rows);
    cpu_run(b, join_task, &j, j.whole->rows, (double)j.whole->rows * j.whole->width);
}

void cpu_columns(mxd_backend *base, int dst, int src, int from) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    cpu_reg *d = reg_of(b, dst);
    const cpu_reg *s = reg_of(b, src);
    MXD_ASSERT(dst != src && from >= 0 && from <= s->width - d->width);
    cpu_set_rows(d, s->rows);
    for (int r = 0; r < s->rows; r++)
        memcpy(cpu_row(d, r), cpu_row(s, r) + from, (size_t)d->width * sizeof(float));
}
