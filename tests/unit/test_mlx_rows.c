/* The operations of the `mlx` backend that see one row at a time, against the `cpu` backend. */
#include <math.h>
#include "mlx_kit.h"
#include "test.h"

static void row_values(mxd_backend *b, const mxd_weight_src *s, const float *x, float *out) {
    enum { W = 96, PICKED = 3 };
    const mxd_weight *w = mlx_kit_load(b, s);
    mxd_step_shape shape = {
        .max_rows = 8, .n_regs = 3, .reg_width = (int[]){W, W, W}, .max_context = 64};
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
    mxd_backend *mlx = mlx_kit_open("mlx", true);
    mlx_kit_noise(x, "x", MXD_COUNT(x));
    kit k;
    kit_begin(&k);
    kit_float(&k, "n", MXD_DTYPE_BF16, 0, 32, 0.5f, 0.1f);
    kit_open(&k);
    mxd_weight_src s = kit_src(&k, "n", MXD_W_VECTOR, 1, 32, 0, 0, 0);
    s.add = 1;
    row_values(mlx, &s, x, got);
    row_values(mlx_kit_open("cpu", true), &s, x, want);
    mlx_kit_close_to("row by row operations", got, want, MXD_COUNT(got));
    kit_end(&k);
}

/* ------------------------------------------------------------------------------- activations */

TEST(mlx_activations) {
    enum { ROWS = 2, W = 64 };
    static const char *const names[] = {"silu", "gelu", "sigmoid", "clamped swiglu"};
    CHECK_EQ(MXD_COUNT(names), MXD_ACT_FN_COUNT);
    float gate[ROWS * W], up[ROWS * W], y[2][ROWS * W];
    for (int i = 0; i < ROWS * W; i++) { /* beyond the clamps, too */
        gate[i] = 12 * kit_noise("gate", (uint64_t)i);
        up[i] = 12 * kit_noise("up", (uint64_t)i);
    }
    for (int act = 0; act < MXD_ACT_FN_COUNT; act++) {
        for (int i = 0; i < 2; i++) {
            mxd_backend *b = mlx_kit_open(i ? "cpu" : "mlx", true);
            mxd_err err = {0};
            mxd_step_shape shape = {
                .max_rows = ROWS, .n_regs = 2, .reg_width = (int[]){W, W}, .max_context = 8};
            CHECK_OK(b->ops->setup(b, &shape, &err), &err);
            mxd_run run = {0, ROWS, 0, NULL};
            b->ops->begin(b, &(mxd_batch){ROWS, 1, &run, NULL});
            b->ops->input(b, 0, gate);
            b->ops->input(b, 1, up);
            b->ops->gated(b, 0, 0, 1, (mxd_act_fn)act);
            CHECK_OK(b->ops->output(b, 0, y[i], &err), &err);
            CHECK_OK(b->ops->end(b, &err), &err);
            b->ops->close(b);
        }
        mlx_kit_close_to(names[act], y[0], y[1], ROWS * W);
    }
}

/* ----------------------------------------------------------------------- scales, splits, joins */

enum { N = 7, WIDE = 96, GROUP = 24, A = 8, C = GROUP - A, GROUPS = WIDE / GROUP };
enum { X, FIRST, SECOND, ONE, GATE, N_REGS };

typedef struct row_op {
    const char *what;
    void (*run)(mxd_backend *b, const mxd_weight *w);
    int out; /* the register that is looked at */
} row_op;

static void unit_norm(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->unit_norm(b, X, X, GROUP, 1e-3f);
}
static void scale(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->scale(b, X, -2.5f);
}
static void scale_by(mxd_backend *b, const mxd_weight *w) { b->ops->scale_by(b, X, w); }
static void softcap(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->scale(b, X, 9);
    b->ops->softcap(b, X, 3);
}
static void gate_rows(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->gate_rows(b, X, GATE);
}
static void scale_positions(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->scale_positions(b, X, 0.7f, 3);
}
static void split(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->split(b, FIRST, SECOND, X, GROUPS, A, C);
}
static void split_second(mxd_backend *b, const mxd_weight *w) {
    (void)w;
    b->ops->split(b, -1, SECOND, X, GROUPS, A, C);
}
static void join(mxd_backend *b, const mxd_weight *w) {
    split(b, w);
    b->ops->scale(b, SECOND, 2);
    b->ops->join(b, X, FIRST, SECOND, GROUPS, A, C);
}
static void join_one(mxd_backend *b, const mxd_weight *w) {
    split(b, w);
    b->ops->join(b, X, FIRST, ONE, GROUPS, A, C);
}

static const row_op row_ops[] = {
    {"unit_norm", unit_norm, X},
    {"scale", scale, X},
    {"scale_by", scale_by, X},
    {"softcap", softcap, X},
    {"gate_rows", gate_rows, X},
    {"scale_positions", scale_positions, X},
    {"split, first", split, FIRST},
    {"split, second", split, SECOND},
    {"split, second only", split_second, SECOND},
    {"join", join, X},
    {"join of one", join_one, X},
};
static const int row_widths[N_REGS] = {WIDE, GROUPS *A, GROUPS *C, C, 1};

/* out [N, width of the register], for rows of two sequences. */
static void run_row_op(mxd_backend *b, const mxd_weight_src *s, const row_op *op, float *out) {
    static float x[N * WIDE];
    const mxd_weight *w = mlx_kit_load(b, s);
    mxd_err err = {0};
    mxd_step_shape shape = {
        .max_rows = N, .n_regs = N_REGS, .reg_width = row_widths, .max_context = 64};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run runs[] = {{0, 5, 7, NULL}, {5, 2, 0, NULL}};
    b->ops->begin(b, &(mxd_batch){N, 2, runs, NULL});
    mlx_kit_noise(x, "x", N * WIDE);
    b->ops->input(b, X, x);
    b->ops->input(b, ONE, x + 11);
    b->ops->input(b, GATE, x + 5);
    op->run(b, w);
    CHECK_OK(b->ops->output(b, op->out, out, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

TEST(mlx_row_operations) {
    mlx_kit_need();
    static float got[N * WIDE], want[N * WIDE];
    kit k;
    kit_begin(&k);
    kit_float(&k, "w", MXD_DTYPE_F16, 4, GROUP / 4, 1, 0.5f); /* its shape does not matter */
    kit_open(&k);
    mxd_weight_src s = kit_src(&k, "w", MXD_W_VECTOR, 1, GROUP, 0, 0, 0);
    for (size_t i = 0; i < MXD_COUNT(row_ops); i++) {
        const row_op *op = &row_ops[i];
        run_row_op(mlx_kit_open("mlx", true), &s, op, got);
        run_row_op(mlx_kit_open("cpu", true), &s, op, want);
        mlx_kit_close_to(op->what, got, want, (size_t)(N * row_widths[op->out]));
    }
    kit_end(&k);
}
