/* Mixtures of experts, a matrix for each head, and weights in the fp modes on the `mlx` backend. */
#include <math.h>
#include "mlx_kit.h"
#include "test.h"

enum { E = 8, TOP = 3, D = 64, F = 96, ROWS = 40 };
enum { MX, ML, MY, MH, M_REGS };

typedef struct stack { /* [E][out, in] of the file's [E * out, in], with biases [E, out] */
    mxd_weight_src src;
    mxd_st_tensor parts[4];
} stack;

static const mxd_weight_src *stack_of(stack *s, const kit *k, const char *name, int n, int out,
                                      int in, mxd_quant quant, const char *bias) {
    char full[64];
    s->src = kit_src(k, name, MXD_W_LINEAR, out, in, quant.bits, quant.group,
                     quant.group ? quant.group : 16);
    s->src.quant = quant;
    s->src.experts = n;
    s->src.weight = mlx_kit_stacked(&s->parts[0], s->src.weight, n);
    s->src.scales = mlx_kit_stacked(&s->parts[1], s->src.scales, n);
    s->src.biases = mlx_kit_stacked(&s->parts[2], s->src.biases, n);
    snprintf(full, sizeof full, "%s.weight", bias ? bias : "");
    s->src.bias = bias ? mlx_kit_stacked(&s->parts[3], mxd_st_find(k->st, full), n) : NULL;
    return &s->src;
}

/* ---------------------------------------------------------------------------------- experts */

typedef struct moe_case {
    const char *what;
    mxd_moe how; /* without its weights */
    bool bias, correction, expert_scale;
} moe_case;

#define EXPERTS .n_experts = E, .top_k = TOP
#define SIGMOID EXPERTS, .router = MXD_ROUTE_SIGMOID
static const moe_case cases[] = {
    {"softmax", {EXPERTS}, false, false, false},
    {"softmax, sum 1", {EXPERTS, .norm_weights = true}, false, false, false},
    {"top-k softmax, biases, clamped",
     {EXPERTS, .router = MXD_ROUTE_TOPK_SOFTMAX, .act = MXD_SWIGLU_OAI},
     true,
     false,
     false},
    {"top-k softmax, a scale of each expert",
     {EXPERTS, .router = MXD_ROUTE_TOPK_SOFTMAX, .act = MXD_GELU_TANH},
     false,
     false,
     true},
    {"sigmoid", {SIGMOID, .weight_scale = 2.5f}, false, false, false},
    {"sigmoid, corrected, sum 1 with eps",
     {SIGMOID, .norm_weights = true, .norm_eps = 0.25f},
     false,
     true,
     false},
    {"sigmoid, 2 of 4 groups",
     {SIGMOID, .n_group = 4, .topk_group = 2, .norm_weights = true, .weight_scale = 1.8f},
     false,
     true,
     false},
    {"sigmoid, 1 of 4 groups: experts that count as 0 are chosen too",
     {SIGMOID, .n_group = 4, .topk_group = 1},
     true,
     false,
     true},
};

static const mxd_quant q8 = {MXD_Q_AFFINE, 8, 64}, q4 = {MXD_Q_AFFINE, 4, 32}, plain;

static void write_experts(kit *k) {
    kit_begin(k);
    kit_affine(k, "gate", MXD_DTYPE_F32, E * F, D, 8, 64);
    kit_affine(k, "up", MXD_DTYPE_BF16, E * F, D, 4, 32);
    kit_float(k, "down", MXD_DTYPE_F32, E * D, F, 0.3f, 0);
    kit_float(k, "gate_b", MXD_DTYPE_BF16, 0, E * F, 1, 0);
    kit_float(k, "up_b", MXD_DTYPE_F16, 0, E * F, 1, 0);
    kit_float(k, "down_b", MXD_DTYPE_F32, 0, E * D, 1, 0);
    kit_float(k, "correction", MXD_DTYPE_F32, 0, E, 0.5f, 0);
    kit_float(k, "scale", MXD_DTYPE_BF16, 0, E, 0.5f, 1);
    kit_float(k, "plain", MXD_DTYPE_BF16, E * F, D, 0.3f, 0);
    kit_open(k);
}

static mxd_moe load_experts(mxd_backend *b, const kit *k, const moe_case *c) {
    stack gate, up, down;
    mxd_moe how = c->how;
    mxd_weight_src correction = kit_src(k, "correction", MXD_W_VECTOR, 1, E, 0, 0, 0);
    mxd_weight_src scale = kit_src(k, "scale", MXD_W_VECTOR, 1, E, 0, 0, 0);
    how.gate = mlx_kit_load(b, stack_of(&gate, k, "gate", E, F, D, q8, c->bias ? "gate_b" : NULL));
    how.up = mlx_kit_load(b, stack_of(&up, k, "up", E, F, D, q4, c->bias ? "up_b" : NULL));
    how.down =
        mlx_kit_load(b, stack_of(&down, k, "down", E, D, F, plain, c->bias ? "down_b" : NULL));
    if (c->correction) how.correction = mlx_kit_load(b, &correction);
    if (c->expert_scale) how.expert_scale = mlx_kit_load(b, &scale);
    return how;
}

/* y [ROWS, D], in steps of `chunk` rows: few pairs, or enough to be sorted. */
static void run_experts(mxd_backend *b, const mxd_moe *how, int chunk, float *y) {
    static float x[ROWS * D], logits[ROWS * E];
    mlx_kit_noise(x, "x", ROWS * D);
    for (int i = 0; i < ROWS * E; i++) /* few values, so many equal ones */
        logits[i] = floorf(3 * kit_noise("logits", (uint64_t)i));
    mxd_err err = {0};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = M_REGS,
                            .reg_width = (const int[]){D, E, D, D},
                            .max_context = ROWS,
                            .moe = {TOP, D, F}};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    for (int row = 0; row < ROWS; row += chunk) {
        mxd_run run = {0, ROWS - row < chunk ? ROWS - row : chunk, 0, NULL};
        b->ops->begin(b, &(mxd_batch){run.n, 1, &run, NULL});
        b->ops->input(b, MX, x + row * D);
        b->ops->input(b, ML, logits + row * E);
        b->ops->moe(b, MX, MX, ML, how);
        CHECK_OK(b->ops->output(b, MX, y + row * D, &err), &err);
        CHECK_OK(b->ops->end(b, &err), &err);
    }
    b->ops->close(b);
}

TEST(mlx_experts_agree_with_the_cpu) {
    static float got[ROWS * D], want[ROWS * D];
    mlx_kit_need();
    kit k;
    write_experts(&k);
    for (size_t i = 0; i < MXD_COUNT(cases); i++) {
        mxd_backend *cpu = mlx_kit_open("cpu", true);
        mxd_moe how = load_experts(cpu, &k, &cases[i]);
        run_experts(cpu, &how, ROWS, want);
        for (int chunk = 7; chunk <= ROWS; chunk += ROWS - 7) {
            mxd_backend *mlx = mlx_kit_open("mlx", true);
            how = load_experts(mlx, &k, &cases[i]);
            run_experts(mlx, &how, chunk, got);
            mlx_kit_close_to(cases[i].what, got, want, ROWS * D);
        }
    }
    kit_end(&k);
}

/* ------------------------------------------------------------------------ a matrix for each head
 */

static void run_heads(mxd_backend *b, const mxd_weight_src *s, float *y) {
    static float x[ROWS * E * D];
    mlx_kit_noise(x, "x", ROWS * E * D);
    const mxd_weight *w = mlx_kit_load(b, s);
    mxd_err err = {0};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = 2,
                            .reg_width = (const int[]){E * D, E * s->out},
                            .max_context = ROWS};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, ROWS, 0, NULL};
    b->ops->begin(b, &(mxd_batch){ROWS, 1, &run, NULL});
    b->ops->input(b, 0, x);
    b->ops->linear_heads(b, 1, 0, w);
    CHECK_OK(b->ops->output(b, 1, y, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

TEST(mlx_heads_agree_with_the_cpu) {
    static float got[ROWS * E * F], want[ROWS * E * F];
    mlx_kit_need();
    kit k;
    write_experts(&k);
    const struct {
        const char *name, *bias;
        mxd_quant quant;
        int out;
    } rows[] = {{"gate", "gate_b", q8, F}, {"up", NULL, q4, F}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        stack s;
        const mxd_weight_src *src =
            stack_of(&s, &k, rows[i].name, E, F, D, rows[i].quant, rows[i].bias);
        run_heads(mlx_kit_open("mlx", true), src, got);
        run_heads(mlx_kit_open("cpu", true), src, want);
        mlx_kit_close_to(rows[i].name, got, want, ROWS * E * F);
    }
    kit_end(&k);
}

/* Matrices one under the other in the file, of which some rows are loaded, as they are or turned.
 */
static void check_turned(const kit *k, const char *name, mxd_qmode mode, int bits, int group) {
    enum { FROM = 32, PART = 48 };
    static float x[ROWS * E * PART], got[ROWS * E * D];
    mlx_kit_noise(x, "x", MXD_COUNT(x));
    mxd_weight_src s = kit_src(k, name, MXD_W_LINEAR, F, D, bits, group, 64), whole = s;
    s.quant.mode = mode;
    s.experts = E;
    s.row0 = FROM, s.rows = PART;
    s.stacked = s.transposed = true;
    mxd_backend *b = mlx_kit_open("mlx", true);
    const mxd_weight *w = mlx_kit_load(b, &s);
    mxd_err err = {0};
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = 2,
                            .reg_width = (const int[]){E * PART, E * D},
                            .max_context = ROWS};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, ROWS, 0, NULL};
    b->ops->begin(b, &(mxd_batch){ROWS, 1, &run, NULL});
    b->ops->input(b, 0, x);
    b->ops->linear_heads(b, 1, 0, w);
    CHECK_OK(b->ops->output(b, 1, got, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
    for (int i = 0; i < ROWS * E * D; i++) {
        int row = i / (E * D), h = i / D % E;
        double want = 0;
        for (int r = 0; r < PART; r++)
            want +=
                (double)x[(row * E + h) * PART + r] * kit_value(k, &whole, h * F + FROM + r, i % D);
        if (!(fabs((double)got[i] - want) <= 1e-4))
            fail_msg("%s: row %d head %d [%d]: %g, want %g", name, row, h, i % D, (double)got[i],
                     want);
    }
}

TEST(mlx_heads_in_part_and_turned) {
    mlx_kit_need();
    kit k;
    write_experts(&k);
    check_turned(&k, "gate", MXD_Q_AFFINE, 8, 64);
    check_turned(&k, "up", MXD_Q_AFFINE, 4, 32);
    check_turned(&k, "plain", MXD_Q_NONE, 0, 0);
    kit_end(&k);
}

/* ---------------------------------------------------------------------------------- fp modes
 *
 * A weight against the same weight as plain floats, decoded by the definition of the format. */

typedef struct fp_values {
    float embedded[ROWS * D], part[ROWS * 32], span[ROWS * 32], product[ROWS * E * F],
        experts[ROWS * D];
} fp_values;

/* The whole [E * F, D] as an embedding and its product, then columns [32, 64) alone and as the
 * second part of a span. */
static void fp_matrix(const mxd_weight_src *s, fp_values *v) {
    int ids[ROWS], dst = 1;
    for (int i = 0; i < ROWS; i++) ids[i] = i * 19 % s->out;
    mxd_weight_src cut = *s;
    cut.use = MXD_W_LOOKUP;
    cut.col0 = 32, cut.cols = 32;
    mxd_backend *b = mlx_kit_open("mlx", true);
    const mxd_weight *w = mlx_kit_load(b, s), *columns = mlx_kit_load(b, &cut);
    cut.span = D;
    const mxd_weight *second = mlx_kit_load(b, &cut);
    uint64_t held = b->ops->bytes(b);
    cut.col0 = 0;
    mlx_kit_load(b, &cut); /* costs nothing more */
    CHECK_EQ(b->ops->bytes(b), held);
    cut.span0 = 32;
    mxd_weight *no;
    mxd_err err = {0};
    CHECK_EQ(b->ops->load(b, &cut, &no, &err), MXD_E_INVAL);
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = 4,
                            .reg_width = (const int[]){D, E * F, 32, 32},
                            .max_context = ROWS};
    CHECK_OK(b->ops->setup(b, &shape, &err), &err);
    mxd_run run = {0, ROWS, 0, NULL};
    b->ops->begin(b, &(mxd_batch){ROWS, 1, &run, ids});
    b->ops->embed(b, 0, w);
    b->ops->linear(b, 1, &dst, 0, &w);
    b->ops->embed(b, 2, columns);
    b->ops->embed(b, 3, second);
    CHECK_OK(b->ops->output(b, 0, v->embedded, &err), &err);
    CHECK_OK(b->ops->output(b, 1, v->product, &err), &err);
    CHECK_OK(b->ops->output(b, 2, v->part, &err), &err);
    CHECK_OK(b->ops->output(b, 3, v->span, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

static void fp_experts(const kit *k, const char *in, const char *out, mxd_quant quant, int chunk,
                       float *y) {
    stack gate, down;
    mxd_backend *b = mlx_kit_open("mlx", true);
    mxd_moe how = {EXPERTS, .router = MXD_ROUTE_TOPK_SOFTMAX};
    how.gate = how.up = mlx_kit_load(b, stack_of(&gate, k, in, E, F, D, quant, NULL));
    how.down = mlx_kit_load(b, stack_of(&down, k, out, E, D, F, quant, NULL));
    run_experts(b, &how, chunk, y);
}

static void check_fp(mxd_quant quant, const char *what) {
    static fp_values got, want;
    static float heads[2][ROWS * E * F];
    kit k;
    stack s;
    kit_begin(&k);
    mlx_kit_fp(&k, "in", quant.mode, E * F, D);
    mlx_kit_fp(&k, "out", quant.mode, E * D, F);
    mlx_kit_fp_value(&k, "in", "in_f", quant.mode, E * F, D);
    mlx_kit_fp_value(&k, "out", "out_f", quant.mode, E * D, F);
    kit_open(&k);
    mxd_weight_src src = kit_src(&k, "in", MXD_W_LINEAR | MXD_W_LOOKUP, E * F, D, quant.bits,
                                 quant.group, quant.group);
    src.quant = quant;
    fp_matrix(&src, &got);
    src = kit_src(&k, "in_f", MXD_W_LINEAR | MXD_W_LOOKUP, E * F, D, 0, 0, 16);
    fp_matrix(&src, &want);
    mlx_kit_close_to(what, got.embedded, want.embedded, ROWS * D);
    mlx_kit_close_to(what, got.product, want.product, ROWS * E * F);
    mlx_kit_close_to(what, got.part, want.part, ROWS * 32);
    CHECK(memcmp(got.span, got.part, sizeof got.span) == 0);
    CHECK(memcmp(want.span, want.part, sizeof want.span) == 0);
    for (int row = 0; row < ROWS; row++)
        CHECK(memcmp(want.part + row * 32, want.embedded + row * D + 32, 32 * sizeof(float)) == 0);
    fp_experts(&k, "in_f", "out_f", plain, ROWS, want.experts);
    for (int chunk = 7; chunk <= ROWS; chunk += ROWS - 7) {
        fp_experts(&k, "in", "out", quant, chunk, got.experts);
        mlx_kit_close_to(what, got.experts, want.experts, ROWS * D);
    }
    run_heads(mlx_kit_open("mlx", true), stack_of(&s, &k, "in", E, F, D, quant, NULL), heads[0]);
    run_heads(mlx_kit_open("mlx", true), stack_of(&s, &k, "in_f", E, F, D, plain, NULL), heads[1]);
    mlx_kit_close_to(what, heads[0], heads[1], ROWS * E * F);
    kit_end(&k);
}

TEST(mlx_fp_modes) {
    mlx_kit_need();
    check_fp((mxd_quant){MXD_Q_MXFP4, 4, 32}, "mxfp4");
    check_fp((mxd_quant){MXD_Q_MXFP8, 8, 32}, "mxfp8");
    check_fp((mxd_quant){MXD_Q_NVFP4, 4, 16}, "nvfp4");
}

TEST(mlx_refuses_fp_tensors_that_do_not_fit) {
    mxd_backend *b = mlx_kit_open("mlx", true);
    kit k;
    kit_begin(&k);
    mlx_kit_fp(&k, "w", MXD_Q_MXFP4, 16, 64);
    kit_affine(&k, "a", MXD_DTYPE_F16, 16, 64, 4, 32);
    kit_open(&k);
    mxd_weight_src good = kit_src(&k, "w", MXD_W_LOOKUP, 16, 64, 4, 32, 32);
    mxd_weight_src affine = kit_src(&k, "a", MXD_W_LOOKUP, 16, 64, 4, 32, 32);
    mxd_weight *w = NULL;
    mxd_err err = {0};
    const struct {
        mxd_quant quant;
        int col0, cols;
        unsigned use;
        mxd_rc want;
    } rows[] = {
        {{MXD_Q_MXFP4, 4, 32}, 32, 0, MXD_W_LOOKUP, MXD_OK},
        {{MXD_Q_MXFP4, 4, 16}, 0, 0, MXD_W_LOOKUP, MXD_E_UNSUPPORTED},
        {{MXD_Q_MXFP4, 8, 32}, 0, 0, MXD_W_LOOKUP, MXD_E_UNSUPPORTED},
        {{MXD_Q_MXFP8, 8, 32}, 0, 0, MXD_W_LOOKUP, MXD_E_FORMAT},
        {{MXD_Q_NVFP4, 4, 16}, 0, 0, MXD_W_LOOKUP, MXD_E_FORMAT},
        {{MXD_Q_MXFP4, 4, 32}, 16, 32, MXD_W_LOOKUP, MXD_E_FORMAT},
        {{MXD_Q_MXFP4, 4, 32}, 32, 64, MXD_W_LOOKUP, MXD_E_INVAL},
        {{MXD_Q_MXFP4, 4, 32}, 64, 0, MXD_W_LOOKUP, MXD_E_INVAL},
        {{MXD_Q_MXFP4, 4, 32}, 32, 32, MXD_W_LOOKUP | MXD_W_LINEAR, MXD_E_INVAL},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_weight_src s = good;
        s.quant = rows[i].quant;
        s.col0 = rows[i].col0;
        s.cols = rows[i].cols;
        s.use = rows[i].use;
        mxd_rc rc = b->ops->load(b, &s, &w, &err);
        if (rc != rows[i].want) fail_msg("row %zu: %s: %s", i, mxd_rc_name(rc), err.msg);
    }
    affine.quant.mode = MXD_Q_MXFP4; /* scales are floats, and there are biases */
    CHECK_EQ(b->ops->load(b, &affine, &w, &err), MXD_E_FORMAT);
    affine.biases = NULL;
    CHECK_EQ(b->ops->load(b, &affine, &w, &err), MXD_E_FORMAT);
    good.quant = (mxd_quant){MXD_Q_AFFINE, 4, 32};
    CHECK_EQ(b->ops->load(b, &good, &w, &err), MXD_E_FORMAT);
    b->ops->close(b);
    kit_end(&k);
}
