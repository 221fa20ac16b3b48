/* Memory of sequences in the `mlx` backend: the gated delta rule against double precision, the life
 * of recurrent state, KV that grows. */
#include <math.h>
#include <stdlib.h>
#include "mlx_kit.h"
#include "test.h"

enum { X, Z, B, A, Y, N_REGS };
enum { T = 150, SEQS = 3, STATES = 5, MAX_D = 64 };

typedef struct shape {
    int n_k, n_v, d_k, d_v, conv;
    bool by_key_head;
    float a_log; /* how fast the state is forgotten */
} shape;

static int channels(const shape *s) { return 2 * s->n_k * s->d_k + s->n_v * s->d_v; }

typedef struct net {
    kit k;
    shape s;
    mxd_weight_src src[4]; /* convolution, a_log, dt_bias, norm */
    mxd_backend *b;
    mxd_delta_net how;
    int width[N_REGS];
} net;

static void open_net(net *n, const shape *s) {
    mxd_err err = {0};
    int c = channels(s), v = s->n_v * s->d_v;
    *n = (net){.s = *s, .b = mlx_kit_open("mlx", true), .width = {c, v, s->n_v, s->n_v, v}};
    kit_begin(&n->k);
    kit_float(&n->k, "conv", MXD_DTYPE_BF16, c, s->conv, 0.7f, 0);
    kit_float(&n->k, "a_log", MXD_DTYPE_F32, 0, s->n_v, 2, s->a_log);
    kit_float(&n->k, "dt", MXD_DTYPE_F32, 0, s->n_v, 1, -1);
    kit_float(&n->k, "norm", MXD_DTYPE_F16, 0, s->d_v, 0.3f, 1);
    kit_open(&n->k);
    n->src[0] = kit_src(&n->k, "conv", MXD_W_VECTOR, 1, c * s->conv, 0, 0, 0);
    n->src[0].columns = s->conv;
    n->src[1] = kit_src(&n->k, "a_log", MXD_W_VECTOR, 1, s->n_v, 0, 0, 0);
    n->src[2] = kit_src(&n->k, "dt", MXD_W_VECTOR, 1, s->n_v, 0, 0, 0);
    n->src[3] = kit_src(&n->k, "norm", MXD_W_VECTOR, 1, s->d_v, 0, 0, 0);
    n->how = (mxd_delta_net){.n_k = s->n_k,
                             .n_v = s->n_v,
                             .d_k = s->d_k,
                             .d_v = s->d_v,
                             .conv = s->conv,
                             .by_key_head = s->by_key_head,
                             .eps = 1e-6f};
    const mxd_weight **to[] = {&n->how.conv_w, &n->how.a_log, &n->how.dt_bias, &n->how.norm};
    for (int i = 0; i < 4; i++) *to[i] = mlx_kit_load(n->b, &n->src[i]);
    mxd_kv_spec kv[2] = {{0}, {0}};
    mxd_state_spec state[2] = {{0}, {c, s->conv, s->n_v, s->d_v, s->d_k}};
    mxd_step_shape all = {.max_rows = 2 * T,
                          .n_regs = N_REGS,
                          .reg_width = n->width,
                          .n_layers = 2,
                          .kv = kv,
                          .max_context = T,
                          .n_states = STATES,
                          .state = state};
    CHECK_OK(n->b->ops->setup(n->b, &all, &err), &err);
}

static void close_net(net *n) {
    n->b->ops->close(n->b);
    kit_end(&n->k);
}

/* Value i of register reg at a position of a sequence; x by channels in their order. Sequence 2
 * says the same thing again and again, so that its keys are equal. */
static float value(int reg, int seq, int pos, int i) {
    char name[16];
    snprintf(name, sizeof name, "%d.%d.%d", reg, seq, seq == 2 ? 0 : pos);
    return kit_noise(name, (uint64_t)i) * (reg == X && i % 5 == 0 ? 3 : 1);
}

/* Where channel c stands in x. */
static int place_of(const shape *s, int c) {
    int keys = s->n_k * s->d_k, v = s->n_v / s->n_k * s->d_v, group = 2 * s->d_k + v;
    if (!s->by_key_head) return c;
    if (c < keys) return c / s->d_k * group + c % s->d_k;
    if (c < 2 * keys) return (c - keys) / s->d_k * group + s->d_k + c % s->d_k;
    c -= 2 * keys;
    return c / v * group + 2 * s->d_k + c % v;
}

/* One step over runs [n_runs] of sequences; y [rows, width]. Returns what `end` says. */
static mxd_rc step(net *n, const mxd_run *runs, int n_runs, const int *seq, float *y, bool bad) {
    mxd_err err = {0};
    const mxd_backend_ops *op = n->b->ops;
    int rows = runs[n_runs - 1].row0 + runs[n_runs - 1].n;
    op->begin(n->b, &(mxd_batch){rows, n_runs, runs, NULL});
    for (int reg = X; reg <= A; reg++) {
        float *in = malloc((size_t)(rows * n->width[reg]) * sizeof *in);
        for (int r = 0; r < n_runs; r++)
            for (int t = 0; t < runs[r].n; t++)
                for (int i = 0; i < n->width[reg]; i++)
                    in[(runs[r].row0 + t) * n->width[reg] + (reg == X ? place_of(&n->s, i) : i)] =
                        value(reg, seq[r], runs[r].pos0 + t, i);
        op->input(n->b, reg, in);
        free(in);
    }
    op->delta_net(n->b, 1, bad ? Z : Y, X, Z, B, A, &n->how);
    if (bad) op->pick(n->b, Y, Z, (int[]){rows}, 1); /* there is no such row */
    mxd_rc rc = op->output(n->b, Y, y, &err);
    CHECK_EQ(rc, op->end(n->b, &err));
    return rc;
}

static void step_one(net *n, int state, int seq, int pos, int len, float *y) {
    mxd_run run = {0, len, pos, NULL, state};
    CHECK_EQ(step(n, &run, 1, &seq, y, false), MXD_OK);
}

/* ------------------------------------------------------------------------------ against double */

/* Channel c after convolution and silu at a position. */
static double convolved(const net *n, int seq, int pos, int c) {
    double sum = 0;
    for (int t = 0; t < n->s.conv; t++) {
        int from = pos - n->s.conv + 1 + t;
        if (from >= 0)
            sum +=
                kit_value(&n->k, &n->src[0], 0, c * n->s.conv + t) * (double)value(X, seq, from, c);
    }
    return sum / (1 + exp(-sum));
}

static void unit(double *x, int n) {
    double ss = 1e-6;
    for (int i = 0; i < n; i++) ss += x[i] * x[i];
    for (int i = 0; i < n; i++) x[i] /= sqrt(ss);
}

/* A position of one head: S [d_v][d_k] moves on, y [d_v]. */
static void rule_double(const net *n, double *S, double *y, int seq, int pos, int h) {
    const shape *s = &n->s;
    int key = h / (s->n_v / s->n_k) * s->d_k, keys = s->n_k * s->d_k;
    double q[MAX_D], k[MAX_D], ss = 0;
    for (int i = 0; i < s->d_k; i++) {
        q[i] = convolved(n, seq, pos, key + i);
        k[i] = convolved(n, seq, pos, keys + key + i);
    }
    unit(q, s->d_k);
    unit(k, s->d_k);
    double beta = 1 / (1 + exp(-(double)value(B, seq, pos, h)));
    double dt = (double)value(A, seq, pos, h) + kit_value(&n->k, &n->src[2], 0, h);
    double g = exp(-exp(kit_value(&n->k, &n->src[1], 0, h)) * log1p(exp(dt)));
    for (int r = 0; r < s->d_v; r++) {
        double sk = 0, v = convolved(n, seq, pos, 2 * keys + h * s->d_v + r);
        double *row = S + r * s->d_k;
        for (int i = 0; i < s->d_k; i++) sk += (row[i] *= g) * k[i];
        y[r] = 0;
        for (int i = 0; i < s->d_k; i++)
            y[r] += (row[i] += beta * (v - sk) * k[i]) * q[i] / sqrt(s->d_k);
        ss += y[r] * y[r];
    }
    for (int r = 0; r < s->d_v; r++) {
        double z = (double)value(Z, seq, pos, h * s->d_v + r);
        y[r] *= kit_value(&n->k, &n->src[3], 0, r) / sqrt(ss / s->d_v + 1e-6);
        y[r] *= z / (1 + exp(-z));
    }
}

/* y [len, width] of a sequence from its start. */
static void check_sequence(const net *n, const float *got, int seq, int len) {
    const shape *s = &n->s;
    double *S = calloc((size_t)(s->n_v * s->d_v * s->d_k), sizeof *S), want[MAX_D];
    for (int pos = 0; pos < len; pos++)
        for (int h = 0; h < s->n_v; h++) {
            rule_double(n, S + h * s->d_v * s->d_k, want, seq, pos, h);
            for (int r = 0; r < s->d_v; r++) {
                double y = (double)got[pos * n->width[Y] + h * s->d_v + r];
                if (!(fabs(y - want[r]) <= 1e-4))
                    fail_msg("heads %d %d of %d %d: sequence %d position %d head %d [%d]: %g, want "
                             "%g",
                             s->n_k, s->n_v, s->d_k, s->d_v, seq, pos, h, r, y, want[r]);
            }
        }
    free(S);
}

static const shape shapes[] = {
    {1, 1, 16, 16, 4, false, 0},   {2, 4, 32, 48, 4, false, 0},  {2, 6, 16, 32, 3, true, -4},
    {3, 3, 48, 16, 1, true, 1.5f}, {1, 2, 64, 64, 2, false, -8},
};

TEST(mlx_delta_net_agrees_with_double) {
    static const int lengths[] = {1, 3, 64, 1, 65, 2, 14}; /* of chunks, until T */
    for (size_t i = 0; i < MXD_COUNT(shapes); i++)
        for (int seq = 1; seq <= 2; seq++) {
            net n;
            open_net(&n, &shapes[i]);
            float *y = malloc((size_t)(T * n.width[Y]) * sizeof *y);
            step_one(&n, 3, 0, 0, 5, y); /* another's, which must not matter */
            for (int pos = 0, at = 0; pos < T; pos += lengths[at++])
                step_one(&n, 3, seq, pos, lengths[at], y + pos * n.width[Y]);
            check_sequence(&n, y, seq, T);
            free(y);
            close_net(&n);
        }
}

/* Sequences side by side, of equal and of different lengths, each in its own state. */
TEST(mlx_delta_net_in_batches) {
    enum { LONG = 40 };
    net n;
    open_net(&n, &shapes[1]);
    size_t width = (size_t)n.width[Y];
    float *y = malloc(SEQS * LONG * width * sizeof *y), *all[SEQS];
    for (int s = 0; s < SEQS; s++) all[s] = calloc(LONG * width, sizeof *y);
    for (int at[SEQS] = {0}, round = 0; at[0] < LONG; round++) {
        mxd_run runs[SEQS];
        int seq[SEQS], n_runs = 0, row = 0;
        for (int s = 0; s < SEQS; s++) {
            int len = round % 3 == 1 && s == 1 ? 6 : round % 2 ? 1 : 4;
            if (len > LONG - at[s]) len = LONG - at[s];
            if (len < 1) continue;
            runs[n_runs] = (mxd_run){row, len, at[s], NULL, (s + 3) % STATES};
            seq[n_runs++] = s;
            row += len;
        }
        CHECK_EQ(step(&n, runs, n_runs, seq, y, false), MXD_OK);
        for (int r = 0; r < n_runs; r++) {
            memcpy(all[seq[r]] + (size_t)at[seq[r]] * width, y + (size_t)runs[r].row0 * width,
                   (size_t)runs[r].n * width * sizeof *y);
            at[seq[r]] += runs[r].n;
        }
    }
    for (int s = 0; s < SEQS; s++) {
        check_sequence(&n, all[s], s, LONG);
        free(all[s]);
    }
    free(y);
    close_net(&n);
}

/* ------------------------------------------------------------------------------ life of a state */

TEST(mlx_state_copy_forks_a_sequence) {
    enum { AT = 13, MORE = 20 };
    net n;
    open_net(&n, &shapes[1]);
    size_t bytes = MORE * (size_t)n.width[Y] * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    step_one(&n, 0, 1, 0, AT, got);
    step_one(&n, 4, 0, 0, MORE, got); /* another's, to be overwritten */
    uint64_t held = n.b->ops->bytes(n.b);
    CHECK(held > 0);
    n.b->ops->state_copy(n.b, 4, 0);
    n.b->ops->state_copy(n.b, 0, 0);
    step_one(&n, 0, 1, AT, MORE, want);
    step_one(&n, 1, 0, 0, MORE, got);
    step_one(&n, 4, 1, AT, MORE, got); /* the copy has not moved on */
    CHECK(memcmp(got, want, bytes) == 0);
    step_one(&n, 0, 1, AT, MORE, got); /* but its origin has */
    CHECK(memcmp(got, want, bytes) != 0);
    close_net(&n);
    free(want), free(got);
}

/* A step that fails moves no state, so it can be asked for again. */
TEST(mlx_failed_step_leaves_states_alone) {
    enum { AT = 9, MORE = 5 };
    net n;
    open_net(&n, &shapes[0]);
    float *y = malloc((size_t)((AT + MORE) * n.width[Y]) * sizeof *y);
    step_one(&n, 2, 1, 0, AT, y);
    mxd_run run = {0, MORE, AT, NULL, 2};
    CHECK_EQ(step(&n, &run, 1, (int[]){1}, y + AT * n.width[Y], true), MXD_E_INVAL);
    step_one(&n, 2, 1, AT, MORE, y + AT * n.width[Y]);
    check_sequence(&n, y, 1, AT + MORE);
    free(y);
    close_net(&n);
}

TEST(mlx_refuses_states_out_of_range) {
    net n;
    open_net(&n, &shapes[0]);
    float y[MAX_D];
    for (int state = -1; state <= STATES; state += STATES + 1) {
        mxd_run run = {0, 1, 0, NULL, state};
        CHECK_EQ(step(&n, &run, 1, (int[]){0}, y, false), MXD_E_INVAL);
    }
    step_one(&n, STATES - 1, 0, 0, 1, y);
    n.b->ops->state_copy(n.b, STATES, 0); /* nobody can be told now, so everybody is later */
    mxd_run run = {0, 1, 0, NULL, 0};
    CHECK_EQ(step(&n, &run, 1, (int[]){0}, y, false), MXD_E_INTERNAL);
    close_net(&n);
}

/* ----------------------------------------------------------------------------------- KV memory */

/* Pages far apart in number lie side by side, and what was written stays when more come. */
TEST(mlx_kv_grows_as_it_is_used) {
    enum { PAGES = 1 << 16, W = 16, USED = 40, PAGE = MXD_KV_PAGE_TOKENS, LEN = USED * PAGE };
    mxd_backend *b = mlx_kit_open("mlx", true);
    mxd_err err = {0};
    mxd_kv_spec kv = {1, W};
    mxd_step_shape small = {.max_rows = PAGE,
                            .n_regs = 2,
                            .reg_width = (int[]){W, W},
                            .n_layers = 1,
                            .kv = &kv,
                            .n_pages = PAGES,
                            .max_context = PAGES * PAGE};
    CHECK_OK(b->ops->setup(b, &small, &err), &err);
    uint64_t whole = 2ull * PAGES * PAGE * W * sizeof(float);
    CHECK(b->ops->bytes(b) < whole / 4); /* with what libmlx kept of other tests */
    int32_t pages[USED];
    for (int i = 0; i < USED; i++) pages[i] = PAGES - 1 - 97 * i;
    static float x[PAGE * W], y[PAGE * W];
    /* keys of zero: every position is worth the same, so the output is the mean of V so far */
    double sum[W] = {0};
    for (int pos = 0; pos < LEN; pos += PAGE) {
        mxd_run run = {0, PAGE, pos, pages};
        for (int i = 0; i < PAGE * W; i++) x[i] = (float)(pos + i % 7);
        b->ops->begin(b, &(mxd_batch){PAGE, 1, &run, NULL});
        b->ops->input(b, 0, x);
        b->ops->input(b, 1, x);
        b->ops->scale(b, 1, 0);
        b->ops->kv_append(b, 0, 1, 0);
        b->ops->attend(b, 0, 0, 1, &(mxd_attention){1, 1, W, 1});
        CHECK_OK(b->ops->output(b, 0, y, &err), &err);
        CHECK_OK(b->ops->end(b, &err), &err);
        for (int t = 0; t < PAGE; t++)
            for (int i = 0; i < W; i++) {
                double want = (sum[i] += (double)x[t * W + i]) / (pos + t + 1);
                if (!(fabs((double)y[t * W + i] - want) <= 1e-5 * (1 + want)))
                    fail_msg("position %d [%d]: %g, want %g", pos + t, i, (double)y[t * W + i],
                             want);
            }
    }
    uint64_t held = b->ops->bytes(b);
    CHECK(held > whole * USED / PAGES && held < whole / 4);
    b->ops->close(b);
}
