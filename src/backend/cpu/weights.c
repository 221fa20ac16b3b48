/* weights.c - reads tensors, checks them against what the model expects, packs them into tiles. */
#include <inttypes.h>
#include <stdatomic.h>
#include "backend/cpu/cpu.h"

enum { STAGE_BYTES = 256 << 10, MAX_STAGE_TILES = 16 };

/* ------------------------------------------------------------------------------------ checking */

static bool float_type(mxd_dtype d, mxd_ftype *out) {
    *out = d == MXD_DTYPE_F32 ? MXD_F32 : d == MXD_DTYPE_F16 ? MXD_F16 : MXD_BF16;
    return d == MXD_DTYPE_F32 || d == MXD_DTYPE_F16 || d == MXD_DTYPE_BF16;
}

static mxd_rc check_float(const mxd_weight_src *s, const mxd_st_tensor *t, mxd_ftype *type,
                          mxd_err *err) {
    if (float_type(t->dtype, type)) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED, "%s: tensor '%s' is %s; wanted F32, F16 or BF16",
                    s->name, t->name, mxd_dtype_name(t->dtype));
}

/* The last two dimensions; weights of experts have one more in front, unless they are stacked. */
static mxd_rc check_2d(const mxd_weight_src *s, const mxd_st_tensor *t, uint64_t rows,
                       uint64_t cols, mxd_err *err) {
    int more = s->experts > 0 && !s->stacked;
    uint64_t n = s->experts ? (uint64_t)s->experts : 1;
    if (s->stacked) {
        rows *= n;
        n = 1;
    }
    if (t->n_dims == 2 + more && t->shape[more] == rows && t->shape[more + 1] == cols &&
        (!more || t->shape[0] == n) && t->bytes == n * rows * cols * mxd_dtype_bytes(t->dtype))
        return MXD_OK;
    return mxd_fail(
        err, MXD_E_FORMAT,
        "%s: tensor '%s' is [%" PRIu64 ", %" PRIu64 "], %d dimensions; the "
        "configuration wants [%" PRIu64 ", %" PRIu64 "], experts: %d: files of two models mixed?",
        s->name, t->name, t->n_dims > more ? t->shape[more] : 0,
        t->n_dims > 1 + more ? t->shape[1 + more] : 0, t->n_dims, rows, cols, s->experts);
}

/* [out], or [experts, out]. */
static mxd_rc check_bias(const mxd_weight_src *s, const mxd_st_tensor *t, uint64_t out,
                         mxd_err *err) {
    int more = s->experts > 0;
    uint64_t n = more ? (uint64_t)s->experts : 1;
    if (t->n_dims == 1 + more && t->shape[more] == out && (!more || t->shape[0] == n) &&
        t->bytes == n * out * mxd_dtype_bytes(t->dtype))
        return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT,
                    "%s: tensor '%s' has %d dimensions, the last %" PRIu64
                    "; the configuration wants [%" PRIu64 "], experts: %d",
                    s->name, t->name, t->n_dims, t->n_dims > 0 ? t->shape[t->n_dims - 1] : 0, out,
                    s->experts);
}

/* The kind of tile of a format; false: there is no such format. */
static bool tile_kind(mxd_quant q, mxd_qkind *kind) {
    bool group = q.group == 32 || q.group == 64 || q.group == 128;
    switch (q.mode) {
    case MXD_Q_NONE:
        return false;
    case MXD_Q_AFFINE:
        *kind = MXD_AFFINE;
        return group && q.bits >= 2 && q.bits != 7 && q.bits <= 8;
    case MXD_Q_MXFP4:
        *kind = MXD_MXFP4;
        return q.bits == 4 && q.group == 32;
    case MXD_Q_MXFP8:
        *kind = MXD_MXFP8;
        return q.bits == 8 && q.group == 32;
    case MXD_Q_NVFP4:
        *kind = MXD_NVFP4;
        return q.bits == 4 && q.group == 16;
    }
    return false;
}

/* The tensors of a quantised weight: there, and of the right types. */
static mxd_rc check_parts(const mxd_weight_src *s, mxd_ftype *scales, mxd_err *err) {
    bool affine = s->quant.mode == MXD_Q_AFFINE;
    if (!s->scales || (affine && !s->biases))
        return mxd_fail(err, MXD_E_FORMAT, "%s: quantised, but %s is missing", s->name,
                        s->scales ? "biases" : "scales");
    mxd_dtype biases = affine ? s->biases->dtype : MXD_DTYPE_U8;
    if (s->weight->dtype != MXD_DTYPE_U32 || biases != s->scales->dtype)
        return mxd_fail(err, MXD_E_FORMAT,
                        "%s: quantised weight is %s (wanted U32), scales %s, wanted %s", s->name,
                        mxd_dtype_name(s->weight->dtype), mxd_dtype_name(s->scales->dtype),
                        mxd_dtype_name(biases));
    return affine ? check_float(s, s->scales, scales, err) : MXD_OK;
}

static mxd_rc check_quantised(const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    int bits = s->quant.bits, group = s->quant.group;
    if (!tile_kind(s->quant, &w->q.kind))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "%s: there is no quantisation with %d bits in groups of %d, mode %d: "
                        "damaged configuration, or made by a newer program",
                        s->name, bits, group, (int)s->quant.mode);
    if (s->in % group)
        return mxd_fail(err, MXD_E_FORMAT, "%s: %d columns in groups of %d", s->name, s->in, group);
    uint64_t out = (uint64_t)s->out, n_groups = (uint64_t)(s->in / group);
    MXD_TRY(check_parts(s, &w->q.scales, err));
    MXD_TRY(check_2d(s, s->weight, out, n_groups * (uint64_t)(group * bits) / 32, err));
    MXD_TRY(check_2d(s, s->scales, out, n_groups, err));
    if (s->quant.mode == MXD_Q_AFFINE) MXD_TRY(check_2d(s, s->biases, out, n_groups, err));
    if (s->block_k % group && !s->transposed)
        return mxd_fail(err, MXD_E_INVAL, "%s: block of %d columns cuts a group of %d", s->name,
                        s->block_k, group);
    w->quantised = true;
    w->q.k = (size_t)w->in;
    w->q.block_k = w->block_k;
    w->q.group = group;
    w->q.bits = bits;
    w->tile_bytes = mxd_qtile_bytes(&w->q);
    return MXD_OK;
}

/* A part along `in`, which only rows by token id can have. */
static mxd_rc check_columns(const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    if (!s->cols && !s->col0) return MXD_OK;
    if (s->use != MXD_W_LOOKUP || s->experts || s->col0 < 0 || s->cols < 1 ||
        s->cols > s->in - s->col0)
        return mxd_fail(err, MXD_E_INVAL, "%s: columns [%d, +%d) of %d", s->name, s->col0, s->cols,
                        s->in);
    w->in = s->cols;
    w->table = s->weight;
    w->col0 = s->col0;
    return MXD_OK;
}

/* Rows that are loaded from more than one place; *rows: of all. */
static mxd_rc check_strips(const mxd_weight_src *s, int most, int *rows, mxd_err *err) {
    int n = s->n_strips;
    bool good = n > 0 && n <= MXD_MAX_STRIPS && !s->row0 && !s->rows && !s->cols && !s->col0 &&
                !s->experts && !(s->use & MXD_W_LOOKUP);
    *rows = 0;
    for (int i = 0; good && i < n; i++) {
        const mxd_strip *t = &s->strip[i];
        good = t->row0 >= 0 && t->rows >= 1 && t->rows <= most - t->row0 &&
               (i + 1 == n || t->rows % MXD_TILE_ROWS == 0) && t->rows <= most - *rows;
        *rows += good ? t->rows : 0;
    }
    return good ? MXD_OK : mxd_fail(err, MXD_E_INVAL, "%s: %d strips of %d rows", s->name, n, most);
}

/* Fills in everything of `w` that needs no data. */
static mxd_rc check_matrix(const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    MXD_TRY(check_columns(s, w, err));
    if (!w->cut) w->rows = s->rows ? s->rows : s->out - s->row0;
    if (s->n_strips) MXD_TRY(check_strips(s, s->out, &w->rows, err));
    if (s->row0 < 0 || (w->rows < 1 && !w->cut) || w->rows > s->out - s->row0)
        return mxd_fail(err, MXD_E_INVAL, "%s: rows [%d, +%d) of %d", s->name, s->row0, s->rows,
                        s->out);
    if (s->matrix0 < 0 || s->matrices < 0 || s->matrices > s->experts - s->matrix0)
        return mxd_fail(err, MXD_E_INVAL, "%s: matrices [%d, +%d) of %d", s->name, s->matrix0,
                        s->matrices, s->experts);
    if (s->block_k < 0 || s->block_k % 16 || (!s->block_k && (s->use & MXD_W_LINEAR)))
        return mxd_fail(err, MXD_E_INVAL, "%s: block of %d columns", s->name, s->block_k);
    w->block_k = s->block_k ? (size_t)s->block_k : ((size_t)w->in + 15) / 16 * 16;
    if (!w->cut) w->experts = s->matrices ? s->matrices : s->experts;
    w->expert_tiles = w->in ? (w->rows + MXD_TILE_ROWS - 1) / MXD_TILE_ROWS : 0;
    w->n_tiles = w->expert_tiles * (s->experts ? w->experts : 1);
    if (s->quant.mode != MXD_Q_NONE) {
        MXD_TRY(check_quantised(s, w, err));
    } else {
        MXD_TRY(check_float(s, s->weight, &w->type, err));
        MXD_TRY(check_2d(s, s->weight, (uint64_t)s->out, (uint64_t)s->in, err));
        w->tile_bytes = mxd_ftile_bytes((size_t)w->in, w->type);
    }
    if (s->bias) MXD_TRY(check_bias(s, s->bias, (uint64_t)s->out, err));
    if (w->cut) return cpu_cut_pieces(s, w, err);
    return s->transposed ? cpu_turn_shape(s, w, err) : MXD_OK;
}

/* ------------------------------------------------------------------------------------- reading */

/* n floats of a tensor from element `from`, converted, plus `plus`. */
static mxd_rc read_floats(cpu_backend *b, const mxd_weight_src *s, const mxd_st_tensor *t,
                          size_t from, size_t n, float plus, float *dst, mxd_err *err) {
    mxd_ftype type;
    MXD_TRY(check_float(s, t, &type, err));
    size_t size = mxd_ftype_bytes(type);
    if (type == MXD_F32) {
        MXD_TRY(mxd_st_read(s->st, t, from * size, dst, n * size, err));
    } else {
        uint16_t half[512];
        for (size_t i = 0; i < n; i += MXD_COUNT(half)) {
            size_t m = n - i < MXD_COUNT(half) ? n - i : MXD_COUNT(half);
            MXD_TRY(mxd_st_read(s->st, t, (from + i) * size, half, m * size, err));
            (type == MXD_F16 ? b->k->f32_from_f16 : b->k->f32_from_bf16)(dst + i, half, m);
        }
    }
    for (size_t i = 0; plus != 0 && i < n; i++) dst[i] += plus;
    return MXD_OK;
}

typedef struct load_job {
    const mxd_weight_src *src;
    mxd_weight *w;
    int tiles_per_task, tasks_per_expert;
    size_t row0;                                /* of the tensor */
    size_t col0, cols;                          /* of a row in the file; cols = 0: all */
    size_t code_bytes, scale_bytes, bias_bytes; /* of one row in the file */
    unsigned char *stage;                       /* [threads][stage_bytes] */
    size_t stage_bytes;
    atomic_int failed;
    mxd_err err; /* of the task that set `failed` first */
} load_job;

typedef struct file_rows { /* neighbouring rows as in the file */
    const unsigned char *codes, *scales, *biases;
} file_rows;

/* Packs n rows, at most 16, into one tile. */
static mxd_rc pack_tile(const mxd_weight *w, size_t scale_bytes, unsigned char *to, file_rows f,
                        int n, mxd_err *err) {
    if (!w->quantised) {
        mxd_ftile_pack(to, w->type, (size_t)w->in, n, f.codes);
        return MXD_OK;
    }
    if (w->q.kind != MXD_AFFINE &&
        !mxd_scales_are_finite(w->q.kind, f.scales, scale_bytes * (size_t)n))
        return mxd_fail(err, MXD_E_FORMAT,
                        "a scale of 2^%d or more: damaged file? download it again",
                        w->q.kind == MXD_MXFP4 ? 126 : 120);
    mxd_qtile_pack(to, &w->q, n, f.codes, f.scales, f.biases);
    return MXD_OK;
}

/* The columns of a piece of n rows, side by side as in the file; returns the end. */
static unsigned char *cut_out(unsigned char *to, const unsigned char *from, size_t bytes,
                              const mxd_weight *w, const mxd_weight *piece, int n) {
    size_t in = (size_t)w->in, at = bytes * (size_t)piece->lead / in;
    size_t mine = bytes * (size_t)piece->in / in;
    for (int r = 0; r < n; r++, to += mine) memcpy(to, from + (size_t)r * bytes + at, mine);
    return to;
}

/* The same for each piece of a weight cut by columns, through `room` of so many rows. */
static mxd_rc pack_pieces(const load_job *j, int tile, file_rows f, int n, unsigned char *room,
                          mxd_err *err) {
    const mxd_weight *w = j->w;
    for (int i = 0; i < w->cut->n_pieces; i++) {
        const mxd_weight *p = &w->cut->pieces[i];
        unsigned char *scales = cut_out(room, f.codes, j->code_bytes, w, p, n);
        unsigned char *biases = cut_out(scales, f.scales, j->scale_bytes, w, p, n);
        cut_out(biases, f.biases, j->bias_bytes, w, p, n);
        size_t scale_bytes = j->scale_bytes * (size_t)p->in / (size_t)w->in;
        MXD_TRY(pack_tile(p, scale_bytes, p->tiles + (size_t)tile * p->tile_bytes,
                          (file_rows){room, scales, biases}, n, err));
    }
    return MXD_OK;
}

/* n rows from `row`, of which `bytes` each are ours. */
static mxd_rc read_rows(const load_job *j, const mxd_st_tensor *t, size_t row, size_t n,
                        size_t bytes, unsigned char *to, mxd_err *err) {
    const mxd_weight_src *s = j->src;
    if (!j->cols) return mxd_st_read(s->st, t, row * bytes, to, n * bytes, err);
    size_t whole = t->bytes / (size_t)s->out, from = bytes * j->col0 / j->cols;
    for (size_t r = 0; r < n; r++)
        MXD_TRY(mxd_st_read(s->st, t, (row + r) * whole + from, to + r * bytes, bytes, err));
    return MXD_OK;
}

/* The row of the file that is row `row` of a matrix of the part; *n: at most so many follow it. */
static size_t file_row(const load_job *j, size_t row, size_t *n) {
    const mxd_weight_src *s = j->src;
    for (int i = 0; i < s->n_strips; i++) {
        size_t rows = (size_t)s->strip[i].rows;
        if (row >= rows) {
            row -= rows;
            continue;
        }
        if (*n > rows - row) *n = rows - row;
        return (size_t)s->strip[i].row0 + row;
    }
    return j->row0 + row;
}

/* Reads n rows from `row`, and packs them into tiles from `tile`. */
static mxd_rc load_rows(load_job *j, unsigned char *stage, int tile, size_t row, size_t n,
                        mxd_err *err) {
    const mxd_weight_src *s = j->src;
    mxd_weight *w = j->w;
    unsigned char *codes = stage, *scales = codes + n * j->code_bytes;
    unsigned char *biases = scales + n * j->scale_bytes;
    MXD_TRY(read_rows(j, s->weight, row, n, j->code_bytes, codes, err));
    if (j->scale_bytes) MXD_TRY(read_rows(j, s->scales, row, n, j->scale_bytes, scales, err));
    if (j->bias_bytes) MXD_TRY(read_rows(j, s->biases, row, n, j->bias_bytes, biases, err));
    for (size_t r = 0; r < n; r += MXD_TILE_ROWS, tile++) {
        int m = n - r < MXD_TILE_ROWS ? (int)(n - r) : MXD_TILE_ROWS;
        file_rows f = {codes + r * j->code_bytes, scales + r * j->scale_bytes,
                       biases + r * j->bias_bytes};
        if (w->cut && w->cut->at.along == MXD_ALONG_IN)
            MXD_TRY(pack_pieces(j, tile, f, m, biases + n * j->bias_bytes, err));
        else
            MXD_TRY(
                pack_tile(w, j->scale_bytes, w->tiles + (size_t)tile * w->tile_bytes, f, m, err));
    }
    return MXD_OK;
}

static void load_task(void *ctx, int task, int thread) {
    load_job *j = ctx;
    if (atomic_load(&j->failed)) return;
    int expert = task / j->tasks_per_expert;
    int tile = task % j->tasks_per_expert * j->tiles_per_task;
    size_t row = (size_t)tile * MXD_TILE_ROWS, n = (size_t)j->tiles_per_task * MXD_TILE_ROWS;
    if (n > (size_t)j->w->rows - row) n = (size_t)j->w->rows - row;
    mxd_err err = {0};
    mxd_rc rc = MXD_OK;
    tile += expert * j->w->expert_tiles;
    for (size_t some; n && !rc; n -= some, row += some, tile += (int)(some / MXD_TILE_ROWS)) {
        some = n;
        size_t from = file_row(j, row, &some) + (size_t)expert * (size_t)j->src->out;
        rc = load_rows(j, j->stage + (size_t)thread * j->stage_bytes, tile, from, some, &err);
    }
    int none = 0;
    if (rc && atomic_compare_exchange_strong(&j->failed, &none, 1)) j->err = err;
}

/* The bytes of rows in the file. */
static void size_rows(load_job *j) {
    const mxd_weight_src *s = j->src;
    const mxd_weight *w = j->w;
    size_t in = (size_t)w->in;
    if (s->quant.mode == MXD_Q_NONE) {
        j->code_bytes = in * mxd_ftype_bytes(w->type);
        return;
    }
    bool affine = s->quant.mode == MXD_Q_AFFINE;
    j->code_bytes = in * (size_t)s->quant.bits / 8;
    j->scale_bytes = in / (size_t)s->quant.group * (affine ? mxd_ftype_bytes(w->q.scales) : 1);
    j->bias_bytes = affine ? j->scale_bytes : 0;
}

static size_t first_row(const mxd_weight_src *s) {
    return (size_t)s->matrix0 * (size_t)s->out + (size_t)s->row0;
}

/* The rank's rows, columns or experts. */
static void find_cut(load_job *j) {
    const mxd_cut *at = &j->w->cut->at;
    size_t from = (size_t)at->edge[at->rank];
    if (at->along == MXD_ALONG_OUT) j->row0 = from;
    if (at->along == MXD_ALONG_EXPERTS) j->row0 = from * (size_t)j->src->out;
    if (at->along != MXD_ALONG_IN) return;
    j->col0 = from;
    j->cols = (size_t)j->w->in;
}

static mxd_rc load_tiles(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    load_job j = {
        .src = s, .w = w, .row0 = first_row(s), .col0 = (size_t)s->col0, .cols = (size_t)s->cols};
    if (w->cut) find_cut(&j);
    size_rows(&j);
    size_t per_tile = (j.code_bytes + j.scale_bytes + j.bias_bytes) * MXD_TILE_ROWS;
    j.tiles_per_task = (int)(STAGE_BYTES / per_tile) + 1;
    if (j.tiles_per_task > MAX_STAGE_TILES) j.tiles_per_task = MAX_STAGE_TILES;
    if (j.tiles_per_task > w->expert_tiles) j.tiles_per_task = w->expert_tiles;
    j.tasks_per_expert = (w->expert_tiles - 1) / j.tiles_per_task + 1;
    bool pieces =
        w->cut && w->cut->at.along == MXD_ALONG_IN; /* packed through the rows of one more tile */
    j.stage_bytes = (per_tile * (size_t)(j.tiles_per_task + pieces) + 63) & ~(size_t)63;
    j.stage = mxd_new(b->al, (size_t)b->n_threads, j.stage_bytes);
    if (!j.stage) return mxd_fail(err, MXD_E_NOMEM, "%s: no memory to read it", s->name);
    mxd_pool_run(b->pool, load_task, &j, w->n_tiles / w->expert_tiles * j.tasks_per_expert);
    mxd_free(b->al, j.stage);
    if (!atomic_load(&j.failed)) return MXD_OK;
    if (err) *err = j.err;
    return mxd_wrap(err, j.err.rc, "%s", s->name);
}

/* [rows, columns] becomes [columns, rows]. */
static void turn(float *to, const float *from, size_t rows, size_t columns) {
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < columns; c++) to[c * rows + r] = from[r * columns + c];
}

/* [n] numbers of a vector with `columns`, which are all of it or its strips. */
static mxd_rc read_turned(cpu_backend *b, const mxd_weight_src *s, float *to, size_t n,
                          mxd_err *err) {
    size_t columns = (size_t)s->columns;
    float *rows = MXD_NEW(b->al, n, float);
    if (!rows) return mxd_fail(err, MXD_E_NOMEM, "%s: %zu floats", s->name, n);
    const load_job j = {.src = s};
    mxd_rc rc = MXD_OK;
    for (size_t r = 0, some; r < n / columns && !rc; r += some) {
        some = n / columns - r;
        size_t from = file_row(&j, r, &some);
        rc = read_floats(b, s, s->weight, from * columns, some * columns, s->add,
                         rows + r * columns, err);
    }
    if (!rc) turn(to, rows, n / columns, columns);
    mxd_free(b->al, rows);
    return rc;
}

/* How many numbers of a vector are loaded. */
static mxd_rc vector_part(const mxd_weight_src *s, int *n, mxd_err *err) {
    if (s->col0 < 0 || s->cols < 0 || s->cols > s->in - s->col0 || (s->cols && s->columns) ||
        (s->n_strips && !s->columns))
        return mxd_fail(err, MXD_E_INVAL, "%s: numbers [%d, +%d) of %d", s->name, s->col0, s->cols,
                        s->in);
    if (s->columns < 0 || (s->columns && s->in % s->columns))
        return mxd_fail(err, MXD_E_INVAL, "%s: %d numbers in %d columns", s->name, s->in,
                        s->columns);
    *n = s->cols ? s->cols : s->in;
    if (!s->n_strips) return MXD_OK;
    MXD_TRY(check_strips(s, s->in / s->columns, n, err));
    *n *= s->columns;
    return MXD_OK;
}

static mxd_rc load_vector(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    if (s->quant.mode != MXD_Q_NONE)
        return mxd_fail(err, MXD_E_UNSUPPORTED, "%s: a quantised vector", s->name);
    const mxd_st_tensor *t = s->weight;
    if (t->n_dims < 1 || t->bytes != (uint64_t)s->in * mxd_dtype_bytes(t->dtype))
        return mxd_fail(err, MXD_E_FORMAT, "%s: tensor '%s' does not hold %d numbers", s->name,
                        t->name, s->in);
    MXD_TRY(vector_part(s, &w->in, err));
    size_t n = (size_t)w->in;
    w->rows = 1;
    w->vector = MXD_NEW(b->al, n, float);
    if (!w->vector) return mxd_fail(err, MXD_E_NOMEM, "%s: %zu floats", s->name, n);
    w->bytes += n * sizeof(float);
    if (s->columns) return read_turned(b, s, w->vector, n, err);
    return read_floats(b, s, s->weight, (size_t)s->col0, n, s->add, w->vector, err);
}

/* [rows], one after the other for experts. */
static mxd_rc load_bias(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    size_t n = w->experts ? (size_t)w->experts : 1, rows = (size_t)w->rows;
    w->bias = MXD_NEW(b->al, n * rows, float);
    if (!w->bias) return mxd_fail(err, MXD_E_NOMEM, "%s: bias", s->name);
    w->bytes += (uint64_t)(n * rows) * sizeof(float);
    load_job j = {.src = s, .w = w, .row0 = first_row(s)};
    if (w->cut) find_cut(&j);
    for (size_t e = 0; e < n; e++)
        for (size_t r = 0, some; r < rows; r += some) {
            some = rows - r;
            size_t from = file_row(&j, r, &some) + e * (size_t)s->out;
            MXD_TRY(read_floats(b, s, s->bias, from, some, 0, w->bias + e * rows + r, err));
        }
    return MXD_OK;
}

static mxd_rc load_matrix(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    MXD_TRY(check_matrix(s, w, err));
    if (!w->n_tiles) /* of a cut, nothing: but its bias is added by every rank */
        return s->bias && w->rows && !s->experts ? load_bias(b, s, w, err) : MXD_OK;
    if (w->tile_bytes > (SIZE_MAX - 64) / (size_t)w->n_tiles)
        return mxd_fail(err, MXD_E_TOOBIG, "%s: too large for this machine", s->name);
    size_t bytes = w->tile_bytes * (size_t)w->n_tiles;
    w->tiles = cpu_aside_take(b, s, bytes);
    if (w->tiles) {
        w->own = bytes;
        MXD_TRY(load_tiles(b, s, w, err));
        w->aside = cpu_aside_put(b, &w->tiles, bytes);
        if (!w->aside) w->bytes += bytes;
        return MXD_OK;
    }
    w->tiles = cpu_slab_take(b, bytes);
    if (!w->tiles)
        return mxd_fail(err, MXD_E_NOMEM,
                        "%s: no memory for %zu bytes of weights: a smaller model, or more nodes",
                        s->name, bytes);
    w->bytes += bytes;
    if (w->cut) cpu_cut_place(w);
    if (s->bias) MXD_TRY(load_bias(b, s, w, err));
    return s->transposed ? cpu_turn(b, s, w, err) : load_tiles(b, s, w, err);
}

static void keep(cpu_backend *b, mxd_weight *w) {
    w->next = b->weights;
    b->weights = w;
    b->weight_bytes += w->bytes;
}

static mxd_rc load_whole(cpu_backend *b, const mxd_weight_src *src, mxd_weight **out,
                         mxd_err *err) {
    mxd_weight *w = MXD_NEW(b->al, 1, mxd_weight);
    if (!w) return mxd_fail(err, MXD_E_NOMEM, "%s", src->name);
    w->use = src->use;
    w->in = src->in;
    bool vector = src->use == MXD_W_VECTOR;
    mxd_rc rc = src->cut ? cpu_cut_make(b->al, src, w, err) : MXD_OK;
    if (!rc) rc = vector ? load_vector(b, src, w, err) : load_matrix(b, src, w, err);
    if (rc) {
        cpu_weight_free(b, w);
        return rc;
    }
    if (w->quantised && (w->use & MXD_W_LINEAR) && w->in > b->max_in) b->max_in = w->in;
    keep(b, w);
    *out = w;
    return MXD_OK;
}

/* The table of columns [col0, col0 + cols) as it is in memory; NULL: not yet. */
static mxd_weight *find_table(const cpu_backend *b, const mxd_weight_src *s) {
    for (mxd_weight *w = b->weights; w; w = w->next)
        if (!w->part && w->table == s->weight && w->col0 == s->col0 && w->in == s->cols) return w;
    return NULL;
}

/* The source of the table that holds the part `s` and its neighbours: whole groups. */
static mxd_rc table_source(const mxd_weight_src *s, mxd_weight_src *table, mxd_err *err) {
    int group = s->quant.mode == MXD_Q_NONE ? 1 : s->quant.group;
    int from = s->span ? s->span0 : s->col0, to = from + (s->span ? s->span : s->cols);
    if (group < 1 || s->in % group || from < 0 || to > s->in || s->col0 < from ||
        s->cols > to - s->col0)
        return mxd_fail(err, MXD_E_INVAL, "%s: columns [%d, +%d) of a span [%d, +%d)", s->name,
                        s->col0, s->cols, s->span0, s->span);
    *table = *s;
    table->span0 = table->span = 0;
    table->col0 = from / group * group;
    table->cols = (to + group - 1) / group * group - table->col0;
    return MXD_OK;
}

/* A part along `in`: some columns of a table of its neighbours, which is read once. */
static mxd_rc load_part(cpu_backend *b, const mxd_weight_src *s, mxd_weight **out, mxd_err *err) {
    mxd_weight part = {.use = s->use, .in = s->in};
    mxd_weight_src table;
    MXD_TRY(check_columns(s, &part, err));
    MXD_TRY(table_source(s, &table, err));
    mxd_weight *all = find_table(b, &table);
    if (!all) MXD_TRY(load_whole(b, &table, &all, err));
    mxd_weight *w = MXD_NEW(b->al, 1, mxd_weight);
    if (!w) return mxd_fail(err, MXD_E_NOMEM, "%s", s->name);
    *w = *all;
    w->in = s->cols;
    w->col0 = s->col0;
    w->lead = s->col0 - table.col0;
    w->part = true;
    w->bytes = 0;
    w->bias = NULL;
    keep(b, w);
    *out = w;
    return MXD_OK;
}

mxd_rc cpu_load(mxd_backend *base, const mxd_weight_src *src, mxd_weight **out, mxd_err *err) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(!b->map && src->weight && src->st);
    if (src->in < 1 || src->out < 1 || src->in > (1 << 24) || src->out > (1 << 28))
        return mxd_fail(err, MXD_E_INVAL, "%s: shape [%d, %d]", src->name, src->out, src->in);
    if (src->experts < 0 || src->experts > MXD_MAX_EXPERTS ||
        (src->experts && src->out > (1 << 28) / src->experts))
        return mxd_fail(err, MXD_E_INVAL, "%s: %d experts [%d, %d]", src->name, src->experts,
                        src->out, src->in);
    bool table = src->use != MXD_W_VECTOR && (src->cols || src->col0);
    return table ? load_part(b, src, out, err) : load_whole(b, src, out, err);
}

void cpu_weight_free(cpu_backend *b, mxd_weight *w) {
    if (!w->part) cpu_cut_free(b->al, w->cut);
    if (w->own && !w->part) cpu_unmap(w->tiles, w->own);
    mxd_free(b->al, w->bias);
    mxd_free(b->al, w->vector);
    mxd_free(b->al, w);
}

/* The shape of a weight, and the bytes that load takes for it. */
static mxd_rc find_bytes(const mxd_alloc *al, const mxd_weight_src *s, mxd_weight *w) {
    if (s->use == MXD_W_VECTOR) {
        MXD_TRY(vector_part(s, &w->in, NULL));
        w->bytes = (uint64_t)w->in * sizeof(float);
        return MXD_OK;
    }
    if (s->cut) MXD_TRY(cpu_cut_make(al, s, w, NULL));
    MXD_TRY(check_matrix(s, w, NULL));
    w->bytes = (uint64_t)w->tile_bytes * (uint64_t)w->n_tiles;
    bool bias = s->bias && (w->n_tiles || (w->rows && !s->experts));
    if (bias) w->bytes += (uint64_t)w->rows * (w->experts ? w->experts : 1) * sizeof(float);
    return MXD_OK;
}

uint64_t cpu_weight_bytes(const mxd_alloc *al, const mxd_weight_src *src, int max_rows,
                          uint64_t *exchange) {
    mxd_weight w = {.use = src->use, .in = src->in};
    mxd_rc rc = find_bytes(al, src, &w);
    w.part = w.table != NULL;
    if (exchange) *exchange = w.cut && !rc ? cpu_cut_floats(&w, max_rows) * sizeof(float) : 0;
    cpu_cut_free(al, w.cut);
    return rc ? 0 : w.bytes;
}

/* ----------------------------------------------------------------------------------- embedding */

typedef struct embed_job {
    cpu_backend *b;
    const mxd_weight *w;
    cpu_reg *dst;
} embed_job;

void cpu_embed_row(const mxd_weight *w, int id, float *y) {
    const unsigned char *tile = w->tiles + (size_t)(id / MXD_TILE_ROWS) * w->tile_bytes;
    size_t lead = (size_t)w->lead, in = (size_t)w->in;
    if (w->quantised)
        mxd_qtile_part(y, tile, &w->q, id % MXD_TILE_ROWS, lead, in);
    else
        mxd_ftile_row(y, tile + lead * MXD_TILE_ROWS * mxd_ftype_bytes(w->type), w->type, in,
                      id % MXD_TILE_ROWS);
}

static void embed_task(void *ctx, int row, int thread) {
    (void)thread;
    embed_job *j = ctx;
    cpu_embed_row(j->w, j->b->batch->ids[row], cpu_row(j->dst, row));
}

void cpu_embed(mxd_backend *base, int dst, const mxd_weight *w) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    embed_job j = {b, w, &b->reg[dst]};
    MXD_ASSERT(dst >= 0 && dst < b->n_regs && j.dst->width == w->in && (w->tiles || w->cut));
    int n_ids = w->cut ? w->cut->out : w->rows;
    for (int i = 0; i < b->batch->n_rows; i++)
        if (b->batch->ids[i] < 0 || b->batch->ids[i] >= n_ids) {
            cpu_stick(b, mxd_fail(&b->err, MXD_E_INVAL, "token id %d: the vocabulary has %d",
                                  b->batch->ids[i], n_ids));
            return;
        }
    cpu_set_rows(j.dst, b->batch->n_rows);
    if (w->cut) {
        cpu_embed_cut(b, dst, w);
        return;
    }
    cpu_run(b, embed_task, &j, b->batch->n_rows, 4.0 * w->in * b->batch->n_rows);
    if (w->aside) cpu_aside_rest(w->tiles, w->own);
}
