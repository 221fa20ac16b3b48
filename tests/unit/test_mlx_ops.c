/* Every operation of the `mlx` backend against the `cpu` backend's float32 path, for what the
 * conformance models do not have: weights in part, every form of rotation and attention. And what
 * it must refuse. */
#include <math.h>
#include <stdlib.h>
#include "mlx_kit.h"
#include "test.h"

enum { ROWS = 40, MAX_WIDTH = 512 };

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
    const mxd_weight *w = mlx_kit_load(b, s);
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
        mxd_backend *mlx = mlx_kit_open("mlx", true);
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
        weight_values(mlx_kit_open("cpu", true), &s, want[0], want[1]);
        int rows = c->rows ? c->rows : c->out;
        mlx_kit_close_to(c->what, got[0], want[0], (size_t)ROWS * (size_t)c->in);
        mlx_kit_close_to(c->what, got[1], want[1], (size_t)ROWS * (size_t)rows);
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
    int v_dim;
    bool latent, sinks, dynamic;
    float softcap;
} attend_case;

static const attend_case attends[] = {
    {"plain", 4, 2, 16, 0, 16, false, true, 1},
    {"window shorter than a chunk", 4, 4, 16, 5, 16, false, true, 1},
    {"window across chunks", 6, 2, 32, 33, 32, false, true, 1},
    {"interleaved", 2, 1, 32, 0, 32, true, true, 1},
    {"half of the head, scaled", 4, 1, 32, 0, 16, false, true, 1.25f},
    {"interleaved half, window 1", 2, 2, 32, 1, 16, true, true, 0.5f},
    {"float16 KV", 4, 2, 16, 0, 16, false, false, 1},
    {"sinks", 4, 2, 16, 0, 16, false, true, 1, .sinks = true},
    {"sinks and a window", 4, 1, 16, 9, 16, false, true, 1, .sinks = true},
    {"a cap", 4, 2, 16, 0, 16, false, true, 1, .softcap = 0.7f},
    {"a cap, sinks and a window", 6, 3, 16, 9, 16, false, true, 1, .softcap = 0.7f, .sinks = true},
    {"V narrower than K", 4, 2, 24, 0, 8, false, true, 1, .v_dim = 16},
    {"V wider than K, float16", 4, 2, 16, 7, 16, false, false, 1, .v_dim = 32},
    {"latent", 4, 1, 24, 0, 8, true, true, 1, .v_dim = 16, .latent = true},
    {"latent, float16, a cap", 4, 1, 24, 0, 8, false, false, 1, .v_dim = 16, .latent = true,
     .softcap = 2},
    {"dynamic frequencies", 4, 2, 32, 0, 32, false, true, 1, .dynamic = true},
    {"dynamic, interleaved, half", 4, 2, 32, 0, 16, true, true, 1.5f, .dynamic = true},
};
enum { Q, K, V, O, N_REGS, LONG = 75 };

static int v_dim_of(const attend_case *c) { return c->v_dim ? c->v_dim : c->dim; }

static mxd_rope rope_of(const attend_case *c, float *inv_freq) {
    static const mxd_rope_dynamic dynamic = {10000, 4, 40};
    for (int i = 0; i < c->rope_dims / 2; i++)
        inv_freq[i] = powf(10000, -2.0f * (float)i / (float)c->rope_dims);
    return (mxd_rope){c->rope_dims, inv_freq, c->rope_scale, c->interleaved,
                      c->dynamic ? &dynamic : NULL};
}

static mxd_attention attention_of(mxd_backend *b, const attend_case *c, kit *k) {
    mxd_attention how = {.n_heads = c->heads,
                         .n_kv = c->n_kv,
                         .head_dim = c->dim,
                         .scale = 0.25f,
                         .window = c->window,
                         .v_dim = c->v_dim,
                         .softcap = c->softcap};
    kit_begin(k);
    kit_float(k, "sinks", MXD_DTYPE_BF16, 0, c->heads, 3, 0);
    kit_open(k);
    mxd_weight_src s = kit_src(k, "sinks", MXD_W_VECTOR, 1, c->heads, 0, 0, 0);
    if (c->sinks) how.sinks = mlx_kit_load(b, &s);
    return how;
}

/* Two sequences in pages that lie apart: chunks of 17 of one while the other decodes. The layer
 * before keeps nothing. out [n, heads * v_dim]: the rows of the first sequence. */
static void attention_values(mxd_backend *b, const attend_case *c, const float *q, const float *k,
                             const float *v, float *out) {
    float inv_freq[16];
    kit sinks;
    const mxd_rope rope = rope_of(c, inv_freq);
    const mxd_attention how = attention_of(b, c, &sinks);
    int qw = c->heads * c->dim, kw = c->n_kv * c->dim, vw = c->n_kv * v_dim_of(c);
    int ow = c->heads * v_dim_of(c);
    mxd_kv_spec kv[] = {{0}, {c->n_kv, c->dim, c->v_dim, c->latent}};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = N_REGS,
                            .reg_width = (int[]){qw, kw, vw, ow},
                            .n_layers = 2,
                            .kv = kv,
                            .n_pages = 8,
                            .max_context = 128};
    mxd_err err = {0};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    static const int32_t first[] = {6, 1, 4}, second[] = {3};
    float *rows = calloc((size_t)ROWS * (size_t)ow, sizeof *rows);
    CHECK(rows);
    for (int at = 0, round = 0; at < LONG; at += 17, round++) {
        int n = LONG - at < 17 ? LONG - at : 17;
        mxd_run runs[] = {{0, n, at, first}, {n, 1, round, second}};
        mxd_batch batch = {n + 1, 2, runs, NULL};
        b->ops->begin(b, &batch);
        b->ops->input(b, Q, q + at * qw);
        b->ops->input(b, K, k + at * kw);
        b->ops->input(b, V, v + at * vw);
        b->ops->rope(b, Q, c->heads, c->dim, &rope);
        b->ops->rope(b, K, c->n_kv, c->dim, &rope);
        b->ops->kv_append(b, 1, K, c->latent ? -1 : V);
        b->ops->attend(b, 1, O, Q, &how);
        CHECK_OK(b->ops->output(b, O, rows, &err), &err);
        memcpy(out + at * ow, rows, (size_t)n * (size_t)ow * sizeof *out);
        CHECK_OK(b->ops->end(b, &err), &err);
    }
    free(rows);
    b->ops->close(b);
    kit_end(&sinks);
}

TEST(mlx_rotates_and_attends_as_the_cpu_does) {
    static float q[(LONG + 1) * MAX_WIDTH], k[(LONG + 1) * MAX_WIDTH], v[(LONG + 1) * MAX_WIDTH];
    static float got[LONG * MAX_WIDTH], want[LONG * MAX_WIDTH];
    mlx_kit_noise(q, "q", MXD_COUNT(q));
    mlx_kit_noise(k, "k", MXD_COUNT(k));
    mlx_kit_noise(v, "v", MXD_COUNT(v));
    for (size_t i = 0; i < MXD_COUNT(attends); i++) {
        const attend_case *c = &attends[i];
        attention_values(mlx_kit_open("mlx", c->kv_f32), c, q, k, v, got);
        attention_values(mlx_kit_open("cpu", c->kv_f32), c, q, k, v, want);
        mlx_kit_close_to(c->what, got, want, (size_t)LONG * (size_t)(c->heads * v_dim_of(c)));
    }
}

/* -------------------------------------------------------------------------------------- refusals
 */

TEST(mlx_refuses_tensors_that_do_not_fit) {
    mxd_backend *b = mlx_kit_open("mlx", true);
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
    mxd_backend *b = mlx_kit_open("mlx", true);
    mxd_err err = {0};
    mxd_step_shape shape = {
        .max_rows = 4, .n_regs = 2, .reg_width = (int[]){8, 8}, .max_context = 16};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, 2, 0, NULL};
    mxd_batch batch = {2, 1, &run, NULL};
    float x[16], y[16] = {0};
    mlx_kit_noise(x, "x", 16);
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
    mxd_backend *b = mlx_kit_open("mlx", true);
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
