/* Every operation of the `mlx` backend against the `cpu` backend's float32 path, for what the
 * conformance models do not have: windows, partial and interleaved rotation, row slices, biases,
 * 1 + w norms, float16 KV. And what it must refuse. */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "test.h"

enum { ROWS = 40, MAX_WIDTH = 512 };

/* mlx, or NULL after a SKIP was due. */
static mxd_backend *open_one(const char *name, bool kv_f32) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    mxd_backend_opts o = {.threads = 1, .activations = MXD_ACT_F32, .kv_f32 = kv_f32};
    if (strcmp(name, "mlx") == 0) o.kernels = "cpu";
    mxd_rc rc = mxd_backend_open(&b, &mxd_alloc_libc, name, &o, &err);
    if (rc && strcmp(name, "mlx") == 0 && !MXD_MLX_BUILT) SKIP(err.msg);
    CHECK_OK(rc, &err);
    return b;
}

static mxd_weight *load(mxd_backend *b, const mxd_weight_src *s) {
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(b->ops->load(b, s, &w, &err), &err);
    return w;
}

static void fill(float *x, const char *stream, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = kit_noise(stream, i);
}

static void check_close(const char *what, const float *got, const float *want, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(want[i]));
    CHECK(largest > 0.01f);
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 2e-5f * largest))
            fail_msg("%s: value %zu is %g, want %g", what, i, (double)got[i], (double)want[i]);
}

/* --------------------------------------------------------------------------------------- weights
 */

typedef struct weight_case {
    const char *what;
    mxd_dtype dtype;
    int out, in, bits, group, row0, rows;
    bool bias;
} weight_case;

static const weight_case weights[] = {
    {"8 bits, bf16", MXD_DTYPE_BF16, 48, 256, 8, 64, 0, 0, false},
    {"8 bits by 32, rows and bias", MXD_DTYPE_F16, 50, 256, 8, 32, 21, 18, true},
    {"4 bits by 128", MXD_DTYPE_F32, 24, 384, 4, 128, 0, 0, true},
    {"plain bf16, rows and bias", MXD_DTYPE_BF16, 19, 100, 0, 0, 3, 7, true},
    {"plain f16", MXD_DTYPE_F16, 16, 72, 0, 0, 0, 0, false},
    {"plain f32", MXD_DTYPE_F32, 5, 32, 0, 0, 0, 0, false},
};

/* Rows of the embedding [ROWS, in], then their products [ROWS, rows]. */
static void weight_values(mxd_backend *b, const mxd_weight_src *s, float *embedded, float *y) {
    const mxd_weight *w = load(b, s);
    int rows = s->rows ? s->rows : s->out, dst = 1, ids[ROWS];
    for (int i = 0; i < ROWS; i++) ids[i] = i * 7 % rows;
    mxd_err err = {0};
    mxd_step_shape shape = {
        .max_rows = ROWS, .n_regs = 2, .reg_width = (int[]){s->in, rows}, .max_context = 64};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, ROWS, 0, NULL};
    mxd_batch batch = {ROWS, 1, &run, ids};
    b->ops->begin(b, &batch);
    b->ops->embed(b, 0, w);
    b->ops->linear(b, 1, &dst, 0, &w);
    CHECK_OK(b->ops->output(b, 0, embedded, &err), &err);
    CHECK_OK(b->ops->output(b, 1, y, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

TEST(mlx_weights_have_the_values_of_the_file) {
    static float got[2][ROWS * MAX_WIDTH], want[2][ROWS * MAX_WIDTH];
    for (size_t i = 0; i < MXD_COUNT(weights); i++) {
        const weight_case *c = &weights[i];
        mxd_backend *mlx = open_one("mlx", true);
        kit k;
        kit_begin(&k);
        if (c->bits)
            kit_affine(&k, "w", c->dtype, c->out, c->in, c->bits, c->group);
        else
            kit_float(&k, "w", c->dtype, c->out, c->in, 0.1f, 0);
        kit_float(&k, "b", c->dtype, 0, c->out, 1, 0);
        kit_open(&k);
        mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR | MXD_W_LOOKUP, c->out, c->in, c->bits,
                                   c->group, c->bits ? c->group : 64);
        s.row0 = c->row0;
        s.rows = c->rows;
        if (c->bias) s.bias = mxd_st_find(k.st, "b.weight");
        weight_values(mlx, &s, got[0], got[1]);
        weight_values(open_one("cpu", true), &s, want[0], want[1]);
        int rows = c->rows ? c->rows : c->out;
        check_close(c->what, got[0], want[0], (size_t)ROWS * (size_t)c->in);
        check_close(c->what, got[1], want[1], (size_t)ROWS * (size_t)rows);
        kit_end(&k);
    }
}

/* ------------------------------------------------------------------------------------- attention
 */

typedef struct attend_case {
    const char *what;
    int heads, n_kv, dim, window, rope_dims;
    bool interleaved, kv_f32;
    float rope_scale;
} attend_case;

static const attend_case attends[] = {
    {"plain", 4, 2, 16, 0, 16, false, true, 1},
    {"window shorter than a chunk", 4, 4, 16, 5, 16, false, true, 1},
    {"window across chunks", 6, 2, 32, 33, 32, false, true, 1},
    {"interleaved", 2, 1, 32, 0, 32, true, true, 1},
    {"half of the head, scaled", 4, 1, 32, 0, 16, false, true, 1.25f},
    {"interleaved half, window 1", 2, 2, 32, 1, 16, true, true, 0.5f},
    {"float16 KV", 4, 2, 16, 0, 16, false, false, 1},
};
enum { Q, K, V, O, N_REGS, LONG = 75 };

/* Two sequences in pages that lie apart: chunks of 17 of one while the other decodes.
 * out [n, heads * dim]: the rows of the first sequence. */
static void attention_values(mxd_backend *b, const attend_case *c, const float *q, const float *k,
                             const float *v, float *out) {
    float inv_freq[16];
    for (int i = 0; i < c->rope_dims / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / (float)c->rope_dims);
    const mxd_rope rope = {c->rope_dims, inv_freq, c->rope_scale, c->interleaved};
    const mxd_attention how = {c->heads, c->n_kv, c->dim, 0.25f, c->window};
    int qw = c->heads * c->dim, kw = c->n_kv * c->dim;
    mxd_kv_spec kv = {c->n_kv, c->dim};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = N_REGS,
                            .reg_width = (int[]){qw, kw, kw, qw},
                            .n_layers = 1,
                            .kv = &kv,
                            .n_pages = 8,
                            .max_context = 128};
    mxd_err err = {0};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    static const int32_t first[] = {6, 1, 4}, second[] = {3};
    float *rows = calloc((size_t)ROWS * (size_t)qw, sizeof *rows);
    CHECK(rows);
    for (int at = 0, round = 0; at < LONG; at += 17, round++) {
        int n = LONG - at < 17 ? LONG - at : 17;
        mxd_run runs[] = {{0, n, at, first}, {n, 1, round, second}};
        mxd_batch batch = {n + 1, 2, runs, NULL};
        b->ops->begin(b, &batch);
        b->ops->input(b, Q, q + at * qw);
        b->ops->input(b, K, k + at * kw);
        b->ops->input(b, V, v + at * kw);
        b->ops->rope(b, Q, c->heads, c->dim, &rope);
        b->ops->rope(b, K, c->n_kv, c->dim, &rope);
        b->ops->kv_append(b, 0, K, V);
        b->ops->attend(b, 0, O, Q, &how);
        CHECK_OK(b->ops->output(b, O, rows, &err), &err);
        memcpy(out + at * qw, rows, (size_t)n * (size_t)qw * sizeof *out);
        CHECK_OK(b->ops->end(b, &err), &err);
    }
    free(rows);
    b->ops->close(b);
}

TEST(mlx_rotates_and_attends_as_the_cpu_does) {
    static float q[(LONG + 1) * MAX_WIDTH], k[(LONG + 1) * MAX_WIDTH], v[(LONG + 1) * MAX_WIDTH];
    static float got[LONG * MAX_WIDTH], want[LONG * MAX_WIDTH];
    fill(q, "q", MXD_COUNT(q));
    fill(k, "k", MXD_COUNT(k));
    fill(v, "v", MXD_COUNT(v));
    for (size_t i = 0; i < MXD_COUNT(attends); i++) {
        const attend_case *c = &attends[i];
        attention_values(open_one("mlx", c->kv_f32), c, q, k, v, got);
        attention_values(open_one("cpu", c->kv_f32), c, q, k, v, want);
        check_close(c->what, got, want, (size_t)LONG * (size_t)(c->heads * c->dim));
    }
}

/* ----------------------------------------------------------------------------- the other
 * operations */

static void row_values(mxd_backend *b, const mxd_weight_src *s, const float *x, float *out) {
    enum { W = 96, PICKED = 3 };
    const mxd_weight *w = load(b, s);
    mxd_step_shape shape = {
        .max_rows = ROWS, .n_regs = 3, .reg_width = (int[]){W, W, W}, .max_context = 64};
    mxd_err err = {0};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, 8, 0, NULL};
    mxd_batch batch = {8, 1, &run, NULL};
    b->ops->begin(b, &batch);
    b->ops->input(b, 0, x);
    b->ops->norm(b, 1, 0, w, 1e-5f); /* three groups of 32 in a row */
    b->ops->gated(b, 0, 0, 1, MXD_SILU);
    b->ops->add(b, 0, 1);
    b->ops->pick(b, 2, 0, (int[]){0, 5, 7}, PICKED);
    b->ops->norm(b, 2, 2, w, 1e-5f);
    CHECK_OK(b->ops->output(b, 2, out, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

TEST(mlx_norm_gated_add_pick) {
    static float x[8 * 96], got[3 * 96], want[3 * 96];
    mxd_backend *mlx = open_one("mlx", true);
    fill(x, "x", MXD_COUNT(x));
    kit k;
    kit_begin(&k);
    kit_float(&k, "n", MXD_DTYPE_BF16, 0, 32, 0.5f, 0.1f);
    kit_open(&k);
    mxd_weight_src s = kit_src(&k, "n", MXD_W_VECTOR, 1, 32, 0, 0, 0);
    s.add = 1;
    row_values(mlx, &s, x, got);
    row_values(open_one("cpu", true), &s, x, want);
    check_close("row by row operations", got, want, MXD_COUNT(got));
    kit_end(&k);
}

/* -------------------------------------------------------------------------------------- refusals
 */

TEST(mlx_refuses_tensors_that_do_not_fit) {
    mxd_backend *b = open_one("mlx", true);
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_F16, 16, 128, 8, 64);
    kit_float(&k, "p", MXD_DTYPE_F16, 16, 64, 1, 0);
    kit_open(&k);
    mxd_weight_src good = kit_src(&k, "w", MXD_W_LINEAR, 16, 128, 8, 64, 64), s;
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(b->ops->load(b, &good, &w, &err), &err);
    const struct {
        int out, in, bits, group, row0, rows;
        mxd_rc want;
    } rows[] = {
        {16, 128, 4, 64, 0, 0, MXD_E_FORMAT},      {16, 128, 8, 32, 0, 0, MXD_E_FORMAT},
        {17, 128, 8, 64, 0, 0, MXD_E_FORMAT},      {16, 192, 8, 64, 0, 0, MXD_E_FORMAT},
        {16, 100, 8, 64, 0, 0, MXD_E_FORMAT},      {16, 128, 7, 64, 0, 0, MXD_E_UNSUPPORTED},
        {16, 128, 8, 48, 0, 0, MXD_E_UNSUPPORTED}, {16, 128, 8, 64, 8, 9, MXD_E_INVAL},
        {16, 128, 8, 64, -1, 0, MXD_E_INVAL},      {16, 128, 8, 64, 16, 0, MXD_E_INVAL},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        s = good;
        s.out = rows[i].out;
        s.in = rows[i].in;
        s.quant = (mxd_quant){MXD_Q_AFFINE, rows[i].bits, rows[i].group};
        s.row0 = rows[i].row0;
        s.rows = rows[i].rows;
        CHECK_EQ(b->ops->load(b, &s, &w, &err), rows[i].want);
    }
    s = good;
    s.biases = NULL;
    CHECK_EQ(b->ops->load(b, &s, &w, &err), MXD_E_FORMAT);
    s = good; /* packed codes where floats should be */
    s.quant = (mxd_quant){MXD_Q_NONE, 0, 0};
    CHECK_EQ(b->ops->load(b, &s, &w, &err), MXD_E_UNSUPPORTED);
    b->ops->close(b);
    kit_end(&k);
}

/* A failure in a step sticks until its end, and the next step is as good as new. */
TEST(mlx_failure_of_a_step_does_not_outlive_it) {
    mxd_backend *b = open_one("mlx", true);
    mxd_err err = {0};
    mxd_step_shape shape = {
        .max_rows = 4, .n_regs = 2, .reg_width = (int[]){8, 8}, .max_context = 16};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, 2, 0, NULL};
    mxd_batch batch = {2, 1, &run, NULL};
    float x[16], y[16] = {0};
    fill(x, "x", 16);
    b->ops->begin(b, &batch);
    b->ops->input(b, 0, x);
    b->ops->add(b, 0, 1); /* register 1 was never written */
    CHECK_EQ(b->ops->output(b, 0, y, &err), MXD_E_INTERNAL);
    CHECK(strstr(err.msg, "register 1"));
    CHECK_EQ(b->ops->end(b, &err), MXD_E_INTERNAL);
    b->ops->begin(b, &batch);
    b->ops->input(b, 0, x);
    CHECK_OK(b->ops->output(b, 0, y, &err), &err);
    CHECK(memcmp(x, y, sizeof x) == 0);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

TEST(mlx_refuses_pages_and_contexts_out_of_range) {
    mxd_backend *b = open_one("mlx", true);
    mxd_err err = {0};
    mxd_kv_spec kv = {1, 8};
    mxd_step_shape shape = {.max_rows = 4,
                            .n_regs = 1,
                            .reg_width = (int[]){8},
                            .n_layers = 1,
                            .kv = &kv,
                            .n_pages = 1 << 29,
                            .max_context = 32};
    CHECK_EQ(b->ops->setup(b, &shape, &err), MXD_E_NOFIT);
    CHECK(strstr(err.msg, "--ctx-size"));
    shape.n_pages = 2;
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    static const int32_t beyond[] = {2}, negative[] = {-1}, fine[] = {1};
    const mxd_run runs[] = {
        {0, 2, 0, beyond}, {0, 2, 0, negative}, {0, 2, 31, fine}, {0, 5, 0, fine}};
    for (size_t i = 0; i < MXD_COUNT(runs); i++) {
        mxd_batch batch = {runs[i].n, 1, &runs[i], NULL};
        b->ops->begin(b, &batch);
        CHECK_EQ(b->ops->end(b, &err), MXD_E_INVAL);
    }
    b->ops->close(b);
}
