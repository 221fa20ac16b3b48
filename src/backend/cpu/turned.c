/* turned.c - matrices of which the transpose is wanted: keys of latent attention that a repository
 * keeps as one matrix with the values (kv_b_proj). Groups of a quantised row would become groups of
 * a column, so such weights are kept as the floats they stand for. */
#include <math.h>
#include <stdatomic.h>
#include "backend/cpu/cpu.h"

typedef struct turn_job {
    cpu_backend *b;
    const mxd_weight_src *s;
    mxd_weight *w;
    size_t rows, cols;          /* of a head in the file */
    size_t row_bytes, n_groups; /* of one of its rows */
    size_t size;                /* of an element, in the file when plain, and in memory */
    unsigned char *stage;       /* [threads][stage_bytes] */
    size_t stage_bytes, whole_bytes /* of a head */, raw_bytes /* of a row, read */;
    atomic_int failed;
    mxd_err err; /* of the task that set `failed` first */
} turn_job;

static void widen(const turn_job *j, float *y, mxd_ftype type, const unsigned char *x, size_t n) {
    const mxd_kernels *k = j->b->k;
    if (type == MXD_F32)
        memcpy(y, x, n * sizeof *y);
    else
        (type == MXD_F16 ? k->f32_from_f16 : k->f32_from_bf16)(y, (const uint16_t *)(const void *)x,
                                                               n);
}

/* codes [n] of a row: a little-endian stream of `bits` each; n is a multiple of 8. */
static void unpack(uint8_t *codes, const unsigned char *from, int bits, size_t n) {
    for (size_t c = 0; c < n; c += 8, from += bits) {
        uint64_t eight = 0;
        for (int i = 0; i < bits; i++) eight |= (uint64_t)from[i] << 8 * i;
        for (int i = 0; i < 8; i++)
            codes[c + (size_t)i] = (uint8_t)(eight >> bits * i & ((1u << bits) - 1));
    }
}

/* y [cols] = row `row` of the file, dequantised. raw: scratch. */
static mxd_rc read_quantised(const turn_job *j, float *y, size_t row, unsigned char *raw,
                             mxd_err *err) {
    const mxd_weight_src *s = j->s;
    mxd_ftype type = j->w->q.scales;
    size_t n = j->n_groups, bytes = n * mxd_ftype_bytes(type), group = (size_t)s->quant.group;
    float *scale = (float *)(void *)raw, *bias = scale + n;
    unsigned char *codes = (unsigned char *)(bias + n), *packed = codes + j->cols;
    MXD_TRY(mxd_st_read(s->st, s->scales, row * bytes, packed, bytes, err));
    widen(j, scale, type, packed, n);
    MXD_TRY(mxd_st_read(s->st, s->biases, row * bytes, packed, bytes, err));
    widen(j, bias, type, packed, n);
    MXD_TRY(mxd_st_read(s->st, s->weight, row * j->row_bytes, packed, j->row_bytes, err));
    unpack(codes, packed, s->quant.bits, j->cols);
    for (size_t i = 0; i < j->cols; i++)
        y[i] = fmaf(scale[i / group], (float)codes[i], bias[i / group]);
    return MXD_OK;
}

/* Packs one head from its rows in the file. */
static mxd_rc turn_head(const turn_job *j, int head, unsigned char *stage, mxd_err *err) {
    const mxd_weight_src *s = j->s;
    mxd_weight *w = j->w;
    unsigned char *raw = stage + j->whole_bytes, *tile = raw + j->raw_bytes;
    size_t row0 = (size_t)(head + s->matrix0) * (size_t)s->out + (size_t)s->row0, size = j->size;
    for (size_t r = 0; r < j->rows; r++) {
        unsigned char *to = stage + r * j->cols * size;
        if (s->quant.mode != MXD_Q_NONE)
            MXD_TRY(read_quantised(j, (float *)(void *)to, row0 + r, raw, err));
        else
            MXD_TRY(
                mxd_st_read(s->st, s->weight, (row0 + r) * j->row_bytes, to, j->row_bytes, err));
    }
    for (int t = 0; t < w->expert_tiles; t++) {
        size_t first = (size_t)t * MXD_TILE_ROWS, n = j->cols - first;
        if (n > MXD_TILE_ROWS) n = MXD_TILE_ROWS;
        for (size_t c = 0; c < n; c++)
            for (size_t r = 0; r < j->rows; r++)
                memcpy(tile + (c * j->rows + r) * size, stage + (r * j->cols + first + c) * size,
                       size);
        mxd_ftile_pack(w->tiles + (size_t)(head * w->expert_tiles + t) * w->tile_bytes, w->type,
                       j->rows, (int)n, tile);
    }
    return MXD_OK;
}

static void turn_task(void *ctx, int head, int thread) {
    turn_job *j = ctx;
    if (atomic_load(&j->failed)) return;
    mxd_err err = {0};
    mxd_rc rc = turn_head(j, head, j->stage + (size_t)thread * j->stage_bytes, &err);
    int none = 0;
    if (rc && atomic_compare_exchange_strong(&j->failed, &none, 1)) j->err = err;
}

mxd_rc cpu_turn_shape(const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    if (!s->experts || s->bias || (s->use & MXD_W_LOOKUP))
        return mxd_fail(err, MXD_E_INVAL, "%s: only matrices of heads can be turned", s->name);
    if (s->quant.mode != MXD_Q_NONE && s->quant.mode != MXD_Q_AFFINE)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "%s: keys and values in one matrix must be affine or plain: convert the "
                        "model again with a newer mlx-lm",
                        s->name);
    w->in = w->rows;
    w->rows = s->in;
    w->expert_tiles = (w->rows - 1) / MXD_TILE_ROWS + 1;
    w->n_tiles = w->expert_tiles * w->experts;
    w->type = w->quantised ? MXD_F32 : w->type;
    w->quantised = false;
    w->tile_bytes = mxd_ftile_bytes((size_t)w->in, w->type);
    return MXD_OK;
}

mxd_rc cpu_turn(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    bool plain = s->quant.mode == MXD_Q_NONE;
    turn_job j = {.b = b, .s = s, .w = w, .rows = (size_t)w->in, .cols = (size_t)s->in};
    j.size = mxd_ftype_bytes(w->type);
    j.row_bytes = plain ? j.cols * j.size : j.cols * (size_t)s->quant.bits / 8;
    j.n_groups = plain ? 0 : j.cols / (size_t)s->quant.group;
    j.whole_bytes = j.rows * j.cols * j.size;
    size_t packed = j.n_groups * 4 > j.row_bytes ? j.n_groups * 4 : j.row_bytes;
    j.raw_bytes = plain ? 0 : 2 * j.n_groups * sizeof(float) + j.cols + packed;
    j.raw_bytes = (j.raw_bytes + 63) & ~(size_t)63;
    j.stage_bytes = j.whole_bytes + j.raw_bytes + MXD_TILE_ROWS * j.rows * j.size;
    j.stage_bytes = (j.stage_bytes + 63) & ~(size_t)63;
    j.stage = mxd_new(b->al, (size_t)b->n_threads, j.stage_bytes);
    if (!j.stage) return mxd_fail(err, MXD_E_NOMEM, "%s: no memory to read it", s->name);
    mxd_pool_run(b->pool, turn_task, &j, w->experts);
    mxd_free(b->al, j.stage);
    if (!atomic_load(&j.failed)) return MXD_OK;
    if (err) *err = j.err;
    return mxd_wrap(err, j.err.rc, "%s", s->name);
}
