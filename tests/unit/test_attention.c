/* RoPE and attention of the CPU backend, of every form: they agree with double precision, and give
 * the same bits for any chunk, thread count and kernel table. */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "kernels/kernels.h"
#include "test.h"

enum { AQ, AK, AV, AY, OTHER, OTHER_Y, A_REGS, T = 290, A_HEADS = 4, WIDE = 112 };

typedef struct attn_case {
    int dim, v_dim; /* of a V head; 0: dim */
    int n_kv, window;
    mxd_kv_type kv;
    bool latent, sinks;
    float softcap;
    bool interleaved;
    int rope_dims; /* 0: none */
    double tolerance;
} attn_case;

static int v_dim_of(const attn_case *c) { return c->v_dim ? c->v_dim : c->dim; }

/* ------------------------------------------------------------------------ in double precision */

/* Rotates x [dim] of a head as the reference does. */
static void rotate(double *x, int pos, int dims, const float *inv_freq, bool interleaved) {
    for (int i = 0; i < dims / 2; i++) {
        double *a = interleaved ? x + 2 * i : x + i, *b = interleaved ? a + 1 : a + dims / 2;
        double angle = (double)((float)pos * inv_freq[i]), u = *a, v = *b;
        *a = u * cos(angle) - v * sin(angle);
        *b = v * cos(angle) + u * sin(angle);
    }
}

static void head_of(double *to, const float *x, const attn_case *c, int pos, int width, int head,
                    const float *inv_freq) {
    for (int i = 0; i < c->dim; i++) to[i] = x[pos * width + head * c->dim + i];
    rotate(to, pos, c->rope_dims, inv_freq, c->interleaved);
}

static double score(const attn_case *c, const double *q, const double *k) {
    double s = 0;
    for (int d = 0; d < c->dim; d++) s += q[d] * k[d] * 0.3;
    return c->softcap ? c->softcap * tanh(s / c->softcap) : s;
}

static float sink_of(int head) { return 4 * kit_noise("sinks.weight", (uint64_t)head); }

/* Output [v_dim] of head h at position i. */
static void attend_double(double *y, const attn_case *c, const float *q, const float *k,
                          const float *v, int i, int h, const float *inv_freq) {
    double qh[WIDE], kh[WIDE], p, sum = 0, all[WIDE] = {0};
    int lo = c->window && i >= c->window ? i - c->window + 1 : 0, g = h / (A_HEADS / c->n_kv);
    head_of(qh, q, c, i, A_HEADS * c->dim, h, inv_freq);
    for (int j = lo; j <= i; j++) {
        head_of(kh, k, c, j, c->n_kv * c->dim, g, inv_freq);
        sum += p = exp(score(c, qh, kh)); /* small enough without a maximum */
        for (int d = 0; d < v_dim_of(c); d++)
            all[d] += p * (c->latent ? kh[d] : v[(j * c->n_kv + g) * v_dim_of(c) + d]);
    }
    if (c->sinks) sum += exp(sink_of(h));
    for (int d = 0; d < v_dim_of(c); d++) y[d] = all[d] / sum;
}

/* ---------------------------------------------------------------------------------- the backend */

typedef struct inputs {
    float *q, *k, *v, *other, inv[WIDE / 2];
} inputs;

static float *noise(const char *stream, int width) {
    float *x = malloc((size_t)(T * width) * sizeof *x);
    for (int i = 0; i < T * width; i++) x[i] = kit_noise(stream, (uint64_t)i);
    return x;
}

static inputs inputs_of(const attn_case *c) {
    inputs in = {noise("q", A_HEADS * c->dim),
                 noise("k", c->n_kv * c->dim),
                 noise("v", c->n_kv * v_dim_of(c)),
                 noise("other", WIDE),
                 {0}};
    for (int i = 0; i < T * WIDE; i++) in.other[i] = INFINITY; /* may not leak from its layer */
    for (int i = 0; i < WIDE / 2; i++) in.inv[i] = 1.0f / (float)(1 + i * i);
    return in;
}

static void inputs_free(inputs *in) { free(in->q), free(in->k), free(in->v), free(in->other); }

static mxd_backend *open_attention(const attn_case *c, const mxd_backend_opts *opts, kit *k,
                                   mxd_weight **sinks) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", opts, &err), &err);
    kit_begin(k);
    kit_float(k, "sinks", MXD_DTYPE_F32, 0, A_HEADS, 4, 0);
    kit_open(k);
    mxd_weight_src s = kit_src(k, "sinks", MXD_W_VECTOR, 1, A_HEADS, 0, 0, 0);
    CHECK_OK(b->ops->load(b, &s, sinks, &err), &err);
    /* a layer of other heads, one that keeps nothing, and the one that is looked at */
    mxd_kv_spec kv[3] = {{1, WIDE}, {0}, {c->n_kv, c->dim, c->v_dim, c->latent}};
    int w[A_REGS] = {A_HEADS * c->dim,
                     c->n_kv * c->dim,
                     c->n_kv * v_dim_of(c),
                     A_HEADS * v_dim_of(c),
                     WIDE,
                     WIDE};
    mxd_step_shape shape = {T, A_REGS, w, NULL, 3, kv, 10, T};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    return b;
}

/* y [T, heads * v_dim], in steps of `chunk` rows. */
static float *run_attention(const attn_case *c, const inputs *in, mxd_backend_opts opts,
                            int chunk) {
    kit k;
    mxd_weight *sinks;
    mxd_err err = {0};
    mxd_backend *b = open_attention(c, &opts, &k, &sinks);
    const mxd_backend_ops *op = b->ops;
    int32_t pages[10] = {7, 2, 9, 0, 1, 8, 3, 6, 5, 4};
    mxd_rope r = {c->rope_dims, in->inv, 1, c->interleaved};
    mxd_attention a = {.n_heads = A_HEADS,
                       .n_kv = c->n_kv,
                       .head_dim = c->dim,
                       .scale = 0.3f,
                       .window = c->window,
                       .v_dim = c->v_dim,
                       .softcap = c->softcap,
                       .sinks = c->sinks ? sinks : NULL};
    mxd_attention other = {.n_heads = 1, .n_kv = 1, .head_dim = WIDE, .scale = 1};
    int wk = c->n_kv * c->dim, wv = c->n_kv * v_dim_of(c), wy = A_HEADS * v_dim_of(c);
    float *y = malloc((size_t)(T * wy) * sizeof *y);
    for (int pos = 0; pos < T; pos += chunk) {
        mxd_run run = {0, T - pos < chunk ? T - pos : chunk, pos, pages};
        op->begin(b, &(mxd_batch){run.n, 1, &run, NULL});
        op->input(b, AQ, in->q + pos * A_HEADS * c->dim);
        op->input(b, AK, in->k + pos * wk);
        op->input(b, AV, in->v + pos * wv);
        op->input(b, OTHER, in->other + pos * WIDE);
        op->kv_append(b, 0, OTHER, OTHER);
        op->attend(b, 0, OTHER_Y, OTHER, &other);
        if (c->rope_dims) op->rope(b, AQ, A_HEADS, c->dim, &r);
        if (c->rope_dims) op->rope(b, AK, c->n_kv, c->dim, &r);
        op->kv_append(b, 2, AK, c->latent ? -1 : AV);
        op->attend(b, 2, AY, AQ, &a);
        CHECK_OK(op->output(b, AY, y + pos * wy, &err), &err);
        CHECK_OK(op->end(b, &err), &err);
    }
    op->close(b);
    kit_end(&k);
    return y;
}

/* ------------------------------------------------------------------------------------- the tests
 */

static const attn_case cases[] = {
    {.dim = 16, .n_kv = 2, .kv = MXD_KV_F32, .tolerance = 1e-6},
    {.dim = 24, .n_kv = 2, .kv = MXD_KV_F32, .rope_dims = 24, .tolerance = 3e-6},
    {.dim = 64,
     .n_kv = 2,
     .window = 50,
     .kv = MXD_KV_F32,
     .interleaved = true,
     .rope_dims = 32,
     .tolerance = 3e-6},
    {.dim = 80, .n_kv = 2, .rope_dims = 80, .tolerance = 2e-3},
    {.dim = 96, .n_kv = 2, .window = 33, .tolerance = 2e-3},
    {.dim = 32, .n_kv = 2, .kv = MXD_KV_F32, .sinks = true, .rope_dims = 32, .tolerance = 3e-6},
    {.dim = 32, .n_kv = 4, .window = 40, .sinks = true, .tolerance = 2e-3},
    {.dim = 24, .n_kv = 2, .kv = MXD_KV_F32, .softcap = 0.7f, .tolerance = 3e-6},
    {.dim = 24,
     .n_kv = 1,
     .window = 17,
     .kv = MXD_KV_F32,
     .softcap = 1.5f,
     .sinks = true,
     .tolerance = 3e-6},
    {.dim = 40, .v_dim = 24, .n_kv = 2, .kv = MXD_KV_F32, .rope_dims = 8, .tolerance = 3e-6},
    {.dim = 24, .v_dim = 56, .n_kv = 2, .window = 64, .tolerance = 2e-3},
    {.dim = 40, .v_dim = 24, .n_kv = 1, .kv = MXD_KV_F32, .latent = true, .tolerance = 3e-6},
    {.dim = 72, .v_dim = 64, .n_kv = 1, .window = 45, .latent = true, .tolerance = 2e-3},
    {.dim = 16, .n_kv = 2, .kv = MXD_KV_Q8, .tolerance = 2e-2},
    {.dim = 80, .n_kv = 2, .kv = MXD_KV_Q8, .rope_dims = 80, .tolerance = 2e-2},
    {.dim = 96, .n_kv = 4, .window = 33, .kv = MXD_KV_Q8, .tolerance = 2e-2},
    {.dim = 24, .v_dim = 56, .n_kv = 2, .kv = MXD_KV_Q8, .sinks = true, .tolerance = 2e-2},
    {.dim = 72,
     .v_dim = 56,
     .n_kv = 1,
     .window = 45,
     .kv = MXD_KV_Q8,
     .latent = true,
     .tolerance = 2e-2},
};

TEST(backend_attention_agrees_with_double) {
    for (size_t n = 0; n < MXD_COUNT(cases); n++) {
        const attn_case *c = &cases[n];
        inputs in = inputs_of(c);
        float *y = run_attention(c, &in, (mxd_backend_opts){.threads = 2, .kv = c->kv}, 96);
        for (int i = 0; i < T; i++)
            for (int h = 0; h < A_HEADS; h++) {
                double want[WIDE];
                attend_double(want, c, in.q, in.k, in.v, i, h, in.inv);
                for (int d = 0; d < v_dim_of(c); d++) {
                    double got = y[(i * A_HEADS + h) * v_dim_of(c) + d];
                    if (!(fabs(got - want[d]) <= c->tolerance))
                        fail_msg("case %zu: position %d head %d [%d]: %g, want %g", n, i, h, d, got,
                                 want[d]);
                }
            }
        free(y);
        inputs_free(&in);
    }
}

TEST(backend_attention_has_the_same_bits_however_it_is_cut) {
    static const int chunks[] = {1, 7, T}, threads[] = {3, 1, 2};
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    for (size_t n = 0; n < MXD_COUNT(cases); n++) {
        const attn_case *c = &cases[n];
        inputs in = inputs_of(c);
        mxd_backend_opts o = {.threads = 1, .kv = c->kv, .kernels = "scalar"};
        float *want = run_attention(c, &in, o, 100);
        size_t bytes = (size_t)(T * A_HEADS * v_dim_of(c)) * sizeof *want;
        for (size_t t = 0; t < n_tables; t++)
            for (size_t i = 0; i < MXD_COUNT(chunks); i++) {
                o.kernels = tables[t]->name;
                o.threads = threads[i];
                float *got = run_attention(c, &in, o, chunks[i]);
                if (memcmp(got, want, bytes))
                    fail_msg("case %zu: %s, %d threads, chunks of %d: other bits", n, o.kernels,
                             o.threads, chunks[i]);
                free(got);
            }
        free(want);
        inputs_free(&in);
    }
}

/* Dynamic RoPE: the frequencies of the table up to the context, those of a grown base behind. */
TEST(backend_rope_with_a_growing_base) {
    enum { DIMS = 8, C = 20, N = 64, PIECE = 13 };
    const mxd_rope_dynamic grow = {10000, 3, C};
    float inv[DIMS / 2], x[N * DIMS], y[N * DIMS];
    for (int i = 0; i < DIMS / 2; i++) inv[i] = (float)pow(10000, -2.0 * i / DIMS);
    for (int i = 0; i < N * DIMS; i++) x[i] = kit_noise("x", (uint64_t)i);
    mxd_backend *b = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
    mxd_kv_spec kv = {1, DIMS};
    mxd_step_shape shape = {N, 1, (int[]){DIMS}, NULL, 1, &kv, 2, N};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    int32_t pages[2] = {1, 0};
    const mxd_rope r = {DIMS, inv, 1, false, &grow};
    for (int pos = 0; pos < N; pos += PIECE) {
        mxd_run run = {0, N - pos < PIECE ? N - pos : PIECE, pos, pages};
        b->ops->begin(b, &(mxd_batch){run.n, 1, &run, NULL});
        b->ops->input(b, 0, x + pos * DIMS);
        b->ops->rope(b, 0, 1, DIMS, &r);
        CHECK_OK(b->ops->output(b, 0, y + pos * DIMS, &err), &err);
        CHECK_OK(b->ops->end(b, &err), &err);
    }
    for (int pos = 0; pos < N; pos++)
        for (int i = 0; i < DIMS / 2; i++) {
            double n = pos + 1 > C ? pos + 1 : C;
            double base = 10000 * pow(3 * n / C - 2, DIMS / (DIMS - 2.0));
            double angle = pos * pow(base, -2.0 * i / DIMS);
            double u = x[pos * DIMS + i], v = x[pos * DIMS + i + DIMS / 2];
            CHECK(fabs(y[pos * DIMS + i] - (u * cos(angle) - v * sin(angle))) <= 2e-5);
            CHECK(fabs(y[pos * DIMS + i + DIMS / 2] - (v * cos(angle) + u * sin(angle))) <= 2e-5);
        }
    b->ops->close(b);
}

/* A sink far above every score takes all of the weight; far below, none. */
TEST(backend_attention_with_extreme_sinks_stays_finite) {
    mxd_err err = {0};
    for (int high = 0; high < 2; high++) {
        kit k;
        kit_begin(&k);
        kit_float(&k, "sinks", MXD_DTYPE_F32, 0, 1, 0, high ? 500 : -500);
        kit_open(&k);
        mxd_backend *b = NULL;
        mxd_weight *sinks;
        CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
        mxd_weight_src s = kit_src(&k, "sinks", MXD_W_VECTOR, 1, 1, 0, 0, 0);
        CHECK_OK(b->ops->load(b, &s, &sinks, &err), &err);
        mxd_kv_spec kv = {1, 2};
        mxd_step_shape shape = {1, 2, (int[]){2, 2}, NULL, 1, &kv, 1, 32};
        CHECK_OK(b->ops->setup(b, &shape, &err), &err);
        int32_t page = 0;
        float x[2] = {3, -5}, y[2];
        mxd_run run = {0, 1, 0, &page};
        b->ops->begin(b, &(mxd_batch){1, 1, &run, NULL});
        b->ops->input(b, 0, x);
        b->ops->kv_append(b, 0, 0, 0);
        b->ops->attend(b, 0, 1, 0, &(mxd_attention){1, 1, 2, 1, .sinks = sinks});
        CHECK_OK(b->ops->output(b, 1, y, &err), &err);
        CHECK_OK(b->ops->end(b, &err), &err);
        CHECK(y[0] == (high ? 0 : 3) && y[1] == (high ? 0 : -5));
        b->ops->close(b);
        kit_end(&k);
    }
}

TEST(backend_setup_refuses_impossible_heads) {
    static const struct {
        mxd_kv_spec kv;
        mxd_rc rc;
    } rows[] = {
        {{0, 0, 0, false}, MXD_OK},
        {{1, 16, 0, false}, MXD_OK},
        {{1, 16, 32, false}, MXD_OK},
        {{1, 16, 16, true}, MXD_OK},
        {{1, 16, 17, true}, MXD_E_INVAL},
        {{-1, 16, 0, false}, MXD_E_INVAL},
        {{1, 0, 0, false}, MXD_E_INVAL},
        {{1, 16, -1, false}, MXD_E_INVAL},
        {{1, 16, MXD_MAX_HEAD_DIM + 1, false}, MXD_E_INVAL},
        {{1, MXD_MAX_HEAD_DIM + 1, 0, false}, MXD_E_INVAL},
        {{MXD_MAX_HEADS + 1, 16, 0, false}, MXD_E_INVAL},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_backend *b = NULL;
        mxd_err err = {0};
        CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
        mxd_step_shape s = {8, 1, (int[]){16}, NULL, 1, &rows[i].kv, 2, 64};
        if (b->ops->setup(b, &s, &err) != rows[i].rc) fail_msg("shape %zu: %s", i, err.msg);
        b->ops->close(b);
    }
}
