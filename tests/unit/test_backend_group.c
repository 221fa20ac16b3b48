/* Weights cut over a group: the ranks run one after the other, each twice: first to give what it
 * has, then with what all have given. The product and the rows must have the bits of the whole. */
#include <stdlib.h>
#include "backend_kit.h"
#include "kernels/kernels.h"
#include "test.h"

enum { ROWS = 29 };

/* ---------------------------------------------------------------------------------- the group */

typedef struct board { /* what ranks have given, exchange by exchange */
    int size;
    size_t n[MXD_MAX_RANKS];
    float *given[MXD_MAX_RANKS];
    bool complete;
} board;

typedef struct member {
    board *all;
    mxd_group group;
} member;

static mxd_rc exchange(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    member *m = ctx;
    board *b = m->all;
    int rank = m->group.rank;
    for (int r = 0; r < b->size; all += n_each[r++]) {
        if (!b->complete && r == rank) {
            b->n[r] = n_each[r];
            b->given[r] = malloc((n_each[r] + 1) * sizeof *all);
            CHECK(b->given[r]);
            if (n_each[r]) memcpy(b->given[r], all, n_each[r] * sizeof *all);
        }
        if (!b->complete || r == rank) continue;
        CHECK_EQ(n_each[r], b->n[r]);
        if (n_each[r]) memcpy(all, b->given[r], n_each[r] * sizeof *all);
    }
    return b->complete ? MXD_OK : mxd_fail(err, MXD_E_CANCELED, "the others are not there yet");
}

/* ------------------------------------------------------------------------------------ one rank */

typedef struct job {
    mxd_weight_src src;
    mxd_backend_opts opts;
    bool embed; /* rows by token id, else the product with x */
    int rows;
    const float *x; /* [rows, in] */
} job;

static void ids_of(const job *j, int32_t ids[ROWS]) {
    for (int i = 0; i < j->rows; i++) ids[i] = (i * 13 + 5) % j->src.out;
}

/* y = what rank `m` gets; NULL m: one node that has all of it. */
static mxd_rc run_one(const job *j, member *m, const mxd_cut *cut, float *y) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    mxd_weight *w = NULL;
    mxd_weight_src src = j->src;
    src.cut = cut;
    int col0 = 0, in = src.in, out = src.out;
    if (cut && cut->along == MXD_ALONG_IN) {
        col0 = cut->edge[cut->rank];
        in = cut->edge[cut->rank + 1] - col0;
    }
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", &j->opts, &err), &err);
    CHECK_OK(b->ops->load(b, &src, &w, &err), &err);
    const int width[] = {in ? in : 1, j->embed ? src.in : out};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = 2,
                            .reg_width = width,
                            .max_context = 512,
                            .group = m ? &m->group : NULL};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    float *x = calloc((size_t)ROWS * (size_t)width[0], sizeof *x);
    for (int t = 0; t < j->rows && in; t++)
        memcpy(x + t * in, j->x + t * src.in + col0, (size_t)in * sizeof *x);
    int32_t ids[ROWS];
    ids_of(j, ids);
    mxd_run run = {0, j->rows, 0, NULL};
    b->ops->begin(b, &(mxd_batch){j->rows, 1, &run, ids});
    if (in) b->ops->input(b, 0, x);
    if (j->embed)
        b->ops->embed(b, 1, w);
    else if (m)
        b->ops->linear_cut(b, 1, 0, w);
    else
        b->ops->linear(b, 1, (const int[]){1}, 0, (const mxd_weight *const[]){w});
    mxd_rc rc = b->ops->output(b, 1, y, &err);
    if (b->ops->end(b, &err)) CHECK(rc);
    b->ops->close(b);
    free(x);
    return rc;
}

/* The whole and every rank's result are the same. */
static void check_cut(const job *j, const mxd_cut *cut) {
    size_t n = (size_t)j->rows * (size_t)(j->embed ? j->src.in : j->src.out);
    float *want = calloc(n, sizeof *want), *got = calloc(n, sizeof *got);
    CHECK_EQ(run_one(j, NULL, NULL, want), MXD_OK);
    board all = {.size = cut->size};
    for (int pass = 0; pass < 2; pass++) {
        for (int r = 0; r < cut->size; r++) {
            mxd_cut mine = *cut;
            mine.rank = r;
            member m = {&all, {r, cut->size, NULL, exchange}};
            m.group.ctx = &m;
            CHECK_EQ(run_one(j, &m, &mine, got), pass ? MXD_OK : MXD_E_CANCELED);
            if (pass && memcmp(got, want, n * sizeof *want) != 0)
                fail_msg("%s [%d, %d], blocks of %d, kernels %s, activations %d, %d rows: rank %d "
                         "of %d differs",
                         j->src.name, j->src.out, j->src.in, j->src.block_k, j->opts.kernels,
                         (int)j->opts.activations, j->rows, r, cut->size);
        }
        all.complete = true;
    }
    for (int r = 0; r < cut->size; r++) free(all.given[r]);
    free(want), free(got);
}

/* ---------------------------------------------------------------------------------------- cuts */

static unsigned draw(unsigned *state, unsigned n) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % n;
}

/* Some ascending edges: of `step` in `all`; parts may be empty. */
static mxd_cut random_cut(unsigned *state, mxd_cut_along along, int all, int step) {
    int size = 1 + (int)draw(state, 6), n_steps = (all - 1) / step + 1;
    mxd_cut c = {.size = size, .along = along};
    for (int r = 1; r < size; r++) {
        int at = (int)draw(state, (unsigned)n_steps + 1), k = r;
        for (; k > 1 && c.edge[k - 1] > at; k--) c.edge[k] = c.edge[k - 1];
        c.edge[k] = at;
    }
    for (int r = 1; r < size; r++) c.edge[r] = c.edge[r] * step < all ? c.edge[r] * step : all;
    c.edge[size] = all;
    return c;
}

/* Every table and activation, n cuts by columns, by rows and of a table. */
static void check_weight(const mxd_weight_src *s, const mxd_st_tensor *bias, int n_cuts) {
    static unsigned state = 1;
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    float *x = malloc(ROWS * (size_t)s->in * sizeof *x);
    for (int i = 0; i < ROWS * s->in; i++) x[i] = kit_noise("x", (uint64_t)i);
    for (size_t t = 0; t < n_tables; t++)
        for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++)
            for (int i = 0; i < n_cuts; i++) {
                job j = {.src = *s, .x = x, .rows = i % 2 ? ROWS : 1 + (int)draw(&state, 12)};
                j.opts = (mxd_backend_opts){.threads = 1 + i % 2,
                                            .spin_us = -1,
                                            .activations = (mxd_activations)act,
                                            .kernels = tables[t]->name};
                j.src.use = MXD_W_LINEAR;
                j.src.bias = i % 2 ? bias : NULL;
                mxd_cut c = random_cut(&state, MXD_ALONG_IN, s->in, s->block_k);
                check_cut(&j, &c);
                c = random_cut(&state, MXD_ALONG_OUT, s->out, 1);
                check_cut(&j, &c);
                j.src.use = MXD_W_LINEAR | MXD_W_LOOKUP;
                j.src.bias = NULL;
                j.embed = true;
                check_cut(&j, &c);
            }
    free(x);
}

static const struct {
    mxd_dtype dtype;
    int out, in, bits, group, block_k;
} weights[] = {
    {MXD_DTYPE_BF16, 48, 832, 4, 64, 64},  /* 13 blocks */
    {MXD_DTYPE_F16, 33, 992, 4, 32, 64},   /* 16, the last a half */
    {MXD_DTYPE_F32, 17, 640, 8, 64, 128},  /* 5 */
    {MXD_DTYPE_BF16, 16, 1152, 8, 64, 64}, /* 18 */
    {MXD_DTYPE_BF16, 19, 1001, 0, 0, 64},  /* 16, and no multiple of anything */
    {MXD_DTYPE_F32, 40, 112, 0, 0, 16},    /* 7 */
    {MXD_DTYPE_F16, 5, 330, 0, 0, 32},     /* 11 */
};

TEST(backend_cut_weights_give_the_bits_of_whole_ones) {
    for (size_t i = 0; i < MXD_COUNT(weights); i++) {
        kit k;
        kit_begin(&k);
        if (weights[i].bits)
            kit_affine(&k, "w", weights[i].dtype, weights[i].out, weights[i].in, weights[i].bits,
                       weights[i].group);
        else
            kit_float(&k, "w", weights[i].dtype, weights[i].out, weights[i].in, 0.1f, 0);
        kit_float(&k, "b", MXD_DTYPE_F32, 0, weights[i].out, 1, 0);
        kit_open(&k);
        mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, weights[i].out, weights[i].in,
                                   weights[i].bits, weights[i].group, weights[i].block_k);
        check_weight(&s, mxd_st_find(k.st, "b.weight"), 6);
        kit_end(&k);
    }
}

/* tests/unit/quant: a weight [17, 128] in every format (tools/oracle/make_quant.py). */
static const struct {
    const char *name;
    mxd_quant q;
    int block_k;
} formats[] = {
    {"affine2g32", {MXD_Q_AFFINE, 2, 32}, 32}, {"affine3g64", {MXD_Q_AFFINE, 3, 64}, 64},
    {"affine5g32", {MXD_Q_AFFINE, 5, 32}, 32}, {"affine6g32", {MXD_Q_AFFINE, 6, 32}, 32},
    {"mxfp4", {MXD_Q_MXFP4, 4, 32}, 32},       {"mxfp8", {MXD_Q_MXFP8, 8, 32}, 32},
    {"nvfp4", {MXD_Q_NVFP4, 4, 16}, 16},       {"nvfp4", {MXD_Q_NVFP4, 4, 16}, 48},
};

static const mxd_st_tensor *tensor(const mxd_st *st, const char *name, const char *suffix) {
    char full[64];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return mxd_st_find(st, full);
}

TEST(backend_cut_weights_in_every_format) {
    char folder[1024];
    mxd_st *st = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_st_open(&st, &mxd_alloc_libc, test_path(folder, "unit/quant"), &err), &err);
    for (size_t i = 0; i < MXD_COUNT(formats); i++) {
        mxd_weight_src s = {.name = formats[i].name,
                            .st = st,
                            .weight = tensor(st, formats[i].name, ".weight"),
                            .scales = tensor(st, formats[i].name, ".scales"),
                            .biases = tensor(st, formats[i].name, ".biases"),
                            .quant = formats[i].q,
                            .out = 17,
                            .in = 128,
                            .block_k = formats[i].block_k};
        check_weight(&s, NULL, 5);
    }
    mxd_st_close(st);
}

TEST(backend_cuts_that_cannot_be_are_refused) {
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, 16, 256, 4, 64);
    kit_open(&k);
    static const struct {
        mxd_cut cut;
        unsigned use;
    } rows[] = {
        {{0, 2, MXD_ALONG_IN, {0, 32, 256}}, MXD_W_LINEAR},                 /* inside a block */
        {{0, 2, MXD_ALONG_IN, {0, 64, 192}}, MXD_W_LINEAR},                 /* not all */
        {{0, 2, MXD_ALONG_IN, {64, 128, 256}}, MXD_W_LINEAR},               /* not from 0 */
        {{0, 3, MXD_ALONG_IN, {0, 128, 64, 256}}, MXD_W_LINEAR},            /* not ascending */
        {{2, 2, MXD_ALONG_IN, {0, 64, 256}}, MXD_W_LINEAR},                 /* no such rank */
        {{0, MXD_MAX_RANKS + 1, MXD_ALONG_IN, {0, 64, 256}}, MXD_W_LINEAR}, /* too many */
        {{0, 2, MXD_ALONG_IN, {0, 64, 256}}, MXD_W_LINEAR | MXD_W_LOOKUP},  /* columns of a table */
        {{0, 2, MXD_ALONG_OUT, {0, 17, 16}}, MXD_W_LINEAR},                 /* more than all */
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_backend *b = NULL;
        mxd_weight *w = NULL;
        mxd_err err = {0};
        const mxd_backend_opts one = {.threads = 1};
        CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", &one, &err), &err);
        mxd_weight_src s = kit_src(&k, "w", rows[i].use, 16, 256, 4, 64, 64);
        s.cut = &rows[i].cut;
        CHECK_EQ(b->ops->load(b, &s, &w, &err), MXD_E_INVAL);
        b->ops->close(b);
    }
    kit_end(&k);
}

/* A rank that wants only its own outputs keeps no room for those of others. */
TEST(backend_part_of_a_product_needs_no_exchange) {
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, 32, 256, 4, 64);
    kit_open(&k);
    const mxd_cut cut = {0, 2, MXD_ALONG_OUT, {0, 16, 32}};
    uint64_t exchange_bytes = 0;
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, 32, 256, 4, 64, 64);
    s.cut = &cut;
    CHECK(mxd_weight_bytes(&mxd_alloc_libc, &s, ROWS, &exchange_bytes) > 0 && exchange_bytes > 0);
    s.use |= MXD_W_PART;
    CHECK(mxd_weight_bytes(&mxd_alloc_libc, &s, ROWS, &exchange_bytes) > 0 && exchange_bytes == 0);
    kit_end(&k);
}
