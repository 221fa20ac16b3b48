/* tables.c - tables that are only looked up, row by row: they stay in their file. A token takes one
 * row of the embedding, a few kilobytes of a table of hundreds of megabytes, so memory is better
 * spent on what every token multiplies; what is read often the system keeps by itself. */
#include <stdatomic.h>
#include "backend/cpu/cpu.h"

typedef struct strip {      /* of a row of one tensor in the file */
    const mxd_st_tensor *t; /* NULL: the format has none */
    size_t row, from, n;    /* bytes of a row; of those the ones that are ours */
} strip;

struct cpu_table {
    const mxd_st *st;
    strip codes, scales, biases;
    int row0;
    size_t raw_bytes; /* of all strips */
};

/* Columns [col0, col0 + cols) of rows of `in`: whole groups. */
static strip strip_of(const mxd_weight_src *s, const mxd_st_tensor *t) {
    if (!t) return (strip){0};
    size_t row = (size_t)(t->bytes / (uint64_t)s->out), in = (size_t)s->in;
    return (strip){t, row, row * (size_t)s->col0 / in, row * (size_t)s->cols / in};
}

/* The source with the columns that are read: whole groups. */
static mxd_rc whole_groups(const mxd_weight_src *s, mxd_weight_src *out, mxd_err *err) {
    int group = s->quant.mode == MXD_Q_NONE ? 1 : s->quant.group;
    int cols = s->cols ? s->cols : s->in, span0 = s->span ? s->span0 : s->col0;
    int span = s->span ? s->span : cols;
    if (s->experts || s->cut || s->bias || group < 1 || s->in % group || s->col0 < 0 || cols < 1 ||
        cols > s->in - s->col0 || (s->col0 && !s->cols) || span0 < 0 || span > s->in - span0 ||
        s->col0 < span0 || cols > span - (s->col0 - span0))
        return mxd_fail(err, MXD_E_INVAL, "%s: columns [%d, +%d) of %d, in a span [%d, +%d)",
                        s->name, s->col0, s->cols, s->in, s->span0, s->span);
    *out = *s;
    out->col0 = s->col0 / group * group;
    out->cols = (s->col0 + cols + group - 1) / group * group - out->col0;
    return MXD_OK;
}

mxd_rc cpu_table_make(const mxd_alloc *al, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    mxd_weight_src read;
    MXD_TRY(whole_groups(s, &read, err));
    w->in = read.cols;
    MXD_TRY(cpu_check_matrix(&read, w, err));
    w->table = MXD_NEW(al, 1, cpu_table);
    if (!w->table) return mxd_fail(err, MXD_E_NOMEM, "%s", s->name);
    *w->table = (cpu_table){.st = s->st, .row0 = s->row0};
    w->table->codes = strip_of(&read, s->weight);
    w->table->scales = strip_of(&read, s->scales);
    w->table->biases = strip_of(&read, s->biases);
    w->table->raw_bytes = w->table->codes.n + w->table->scales.n + w->table->biases.n;
    w->lead = s->col0 - read.col0;
    w->in = s->cols ? s->cols : s->in;
    return MXD_OK;
}

size_t cpu_table_scratch(const mxd_weight *w) {
    return w->table ? ((w->table->raw_bytes + 63) & ~(size_t)63) + w->tile_bytes : 0;
}

/* ------------------------------------------------------------------------------------- reading */

typedef struct table_job {
    cpu_backend *b;
    const mxd_weight *w;
    cpu_reg *dst;
    atomic_int failed;
    mxd_err err; /* of the task that set `failed` first */
} table_job;

static mxd_rc read_strip(const cpu_table *t, const strip *s, size_t row, unsigned char *to,
                         mxd_err *err) {
    return s->t ? mxd_st_read(t->st, s->t, row * s->row + s->from, to, s->n, err) : MXD_OK;
}

/* y [in] = row `id`; scratch [cpu_table_scratch]. */
static mxd_rc read_row(const mxd_weight *w, int id, unsigned char *scratch, float *y,
                       mxd_err *err) {
    const cpu_table *t = w->table;
    size_t row = (size_t)t->row0 + (size_t)id;
    unsigned char *scales = scratch + t->codes.n, *biases = scales + t->scales.n;
    unsigned char *tile = scratch + ((t->raw_bytes + 63) & ~(size_t)63);
    MXD_TRY(read_strip(t, &t->codes, row, scratch, err));
    MXD_TRY(read_strip(t, &t->scales, row, scales, err));
    MXD_TRY(read_strip(t, &t->biases, row, biases, err));
    MXD_TRY(cpu_pack_tile(w, t->scales.n, tile, scratch, scales, biases, 1, err));
    mxd_weight one = *w;
    one.tiles = tile;
    cpu_embed_row(&one, 0, y);
    return MXD_OK;
}

static void row_task(void *ctx, int row, int thread) {
    table_job *j = ctx;
    if (atomic_load(&j->failed)) return;
    mxd_err err = {0};
    mxd_rc rc = read_row(j->w, j->b->batch->ids[row], j->b->scratch[thread].row,
                         cpu_row(j->dst, row), &err);
    int none = 0;
    if (rc && atomic_compare_exchange_strong(&j->failed, &none, 1)) j->err = err;
}

void cpu_table_embed(cpu_backend *b, int dst, const mxd_weight *w) {
    table_job j = {.b = b, .w = w, .dst = &b->reg[dst]};
    cpu_run(b, row_task, &j, b->batch->n_rows, 16.0 * w->in * b->batch->n_rows);
    if (!atomic_load(&j.failed)) return;
    b->err = j.err;
    cpu_stick(b, mxd_wrap(&b->err, j.err.rc, "row of a table that is read as it is needed"));
}
