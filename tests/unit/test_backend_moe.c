/* Mixtures of experts and a matrix for each head: against double precision, and the same bits for
 * any chunk, thread count and kernel table. */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "base/rand.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "test.h"

/* A matrix of the file read as [n, rows / n, cols], a vector as [n, len / n]. */
static const mxd_st_tensor *stacked(mxd_st_tensor *to, const mxd_st_tensor *from, int n) {
    if (!from) return NULL;
    *to = *from;
    for (int d = from->n_dims; d > 1; d--) to->shape[d] = from->shape[d - 1];
    to->n_dims = from->n_dims + 1;
    to->shape[1] = from->shape[0] / (uint64_t)n;
    to->shape[0] = (uint64_t)n;
    return to;
}

typedef struct stack { /* n matrices [out, in] and, perhaps, biases [n, out] */
    mxd_weight_src whole;
    mxd_st_tensor parts[4];
    mxd_weight *w;
} stack;

static void load_stack(stack *s, mxd_backend *b, const kit *k, const char *name, int n, int out,
                       int in, int bits, const char *bias) {
    mxd_err err = {0};
    char full[64];
    s->whole = kit_src(k, name, MXD_W_LINEAR, out, in, bits, bits ? 64 : 0, 64);
    mxd_weight_src src = s->whole;
    src.experts = n;
    src.weight = stacked(&s->parts[0], src.weight, n);
    src.scales = stacked(&s->parts[1], src.scales, n);
    src.biases = stacked(&s->parts[2], src.biases, n);
    snprintf(full, sizeof full, "%s.weight", bias ? bias : "");
    src.bias = bias ? stacked(&s->parts[3], mxd_st_find(k->st, full), n) : NULL;
    CHECK_OK(b->ops->load(b, &src, &s->w, &err), &err);
    mxd_weight *no;
    src.experts = n + 1;
    CHECK_EQ(b->ops->load(b, &src, &no, &err), MXD_E_FORMAT);
    if (!bias) return;
    src.experts = n;
    src.bias = mxd_st_find(k->st, full); /* not cut by experts */
    CHECK_EQ(b->ops->load(b, &src, &no, &err), MXD_E_FORMAT);
}

/* -------------------------------------------------------------------------- mixture of experts */

enum { E = 8, TOP = 3, D = 64, F = 40, ROWS = 40 };
enum { MX, ML, MY, M_REGS };

typedef struct moe_case {
    const char *what;
    mxd_moe how; /* without its weights */
    bool bias, correction, expert_scale;
} moe_case;

#define EXPERTS .n_experts = E, .top_k = TOP
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
    {"sigmoid", {EXPERTS, .router = MXD_ROUTE_SIGMOID, .weight_scale = 2.5f}, false, false, false},
    {"sigmoid, corrected, sum 1 with eps",
     {EXPERTS, .router = MXD_ROUTE_SIGMOID, .norm_weights = true, .norm_eps = 0.25f},
     false,
     true,
     false},
    {"sigmoid, 2 of 4 groups",
     {EXPERTS, .router = MXD_ROUTE_SIGMOID, .n_group = 4, .topk_group = 2, .norm_weights = true,
      .weight_scale = 1.8f},
     false,
     true,
     false},
    {"sigmoid, 1 of 4 groups: experts that count as 0 are chosen too",
     {EXPERTS, .router = MXD_ROUTE_SIGMOID, .n_group = 4, .topk_group = 1},
     true,
     false,
     true},
};

typedef struct moe_kit {
    kit k;
    const moe_case *c;
    stack gate, up, down;
    mxd_weight *correction, *expert_scale;
    mxd_backend *b;
    float x[ROWS * D], logits[ROWS * E], y[ROWS * D];
} moe_kit;

static mxd_weight *vector(moe_kit *m, const char *name) {
    mxd_weight_src s = kit_src(&m->k, name, MXD_W_VECTOR, 1, E, 0, 0, 0);
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(m->b->ops->load(m->b, &s, &w, &err), &err);
    return w;
}

static void open_moe(moe_kit *m, const moe_case *c, mxd_backend_opts opts) {
    mxd_err err = {0};
    m->c = c;
    kit_begin(&m->k);
    kit_affine(&m->k, "gate", MXD_DTYPE_F32, E * F, D, 8, 64);
    kit_affine(&m->k, "up", MXD_DTYPE_F32, E * F, D, 4, 64);
    kit_float(&m->k, "down", MXD_DTYPE_F32, E * D, F, 0.3f, 0);
    kit_float(&m->k, "gate_b", MXD_DTYPE_BF16, 0, E * F, 1, 0);
    kit_float(&m->k, "up_b", MXD_DTYPE_F16, 0, E * F, 1, 0);
    kit_float(&m->k, "down_b", MXD_DTYPE_F32, 0, E * D, 1, 0);
    kit_float(&m->k, "correction", MXD_DTYPE_F32, 0, E, 0.5f, 0);
    kit_float(&m->k, "scale", MXD_DTYPE_BF16, 0, E, 0.5f, 1);
    kit_open(&m->k);
    CHECK_OK(mxd_backend_open(&m->b, &mxd_alloc_libc, "cpu", &opts, &err), &err);
    load_stack(&m->gate, m->b, &m->k, "gate", E, F, D, 8, c->bias ? "gate_b" : NULL);
    load_stack(&m->up, m->b, &m->k, "up", E, F, D, 4, c->bias ? "up_b" : NULL);
    load_stack(&m->down, m->b, &m->k, "down", E, D, F, 0, c->bias ? "down_b" : NULL);
    m->correction = vector(m, "correction");
    m->expert_scale = vector(m, "scale");
    for (int i = 0; i < ROWS * D; i++) m->x[i] = 4 * kit_noise("x", (uint64_t)i);
    for (int i = 0; i < ROWS * E; i++) /* few values, so many equal ones */
        m->logits[i] = floorf(3 * kit_noise("logits", (uint64_t)i));
    mxd_step_shape shape = {.max_rows = ROWS,
                            .n_regs = M_REGS,
                            .reg_width = (const int[]){D, E, D},
                            .max_context = ROWS,
                            .moe = {TOP, D, F}};
    CHECK_OK(m->b->ops->setup(m->b, &shape, &err), &err);
}

static void close_moe(moe_kit *m) {
    m->b->ops->close(m->b);
    kit_end(&m->k);
    free(m);
}

/* Rows [row0, row0 + n) in one step, in place when `same`. */
static void run_moe(moe_kit *m, int row0, int n, bool same) {
    mxd_err err = {0};
    int32_t pages[ROWS] = {0};
    mxd_run run = {0, n, 0, pages};
    mxd_moe how = m->c->how;
    how.gate = m->gate.w, how.up = m->up.w, how.down = m->down.w;
    how.correction = m->c->correction ? m->correction : NULL;
    how.expert_scale = m->c->expert_scale ? m->expert_scale : NULL;
    m->b->ops->begin(m->b, &(mxd_batch){n, 1, &run, NULL});
    m->b->ops->input(m->b, MX, m->x + row0 * D);
    m->b->ops->input(m->b, ML, m->logits + row0 * E);
    m->b->ops->moe(m->b, same ? MX : MY, MX, ML, &how);
    CHECK_OK(m->b->ops->output(m->b, same ? MX : MY, m->y + row0 * D, &err), &err);
    CHECK_OK(m->b->ops->end(m->b, &err), &err);
}

static double act_double(mxd_act_fn act, double g, double u) {
    switch (act) {
    case MXD_GELU_TANH:
        return g / 2 * (1 + tanh(sqrt(2 / 3.14159265358979) * (g + 0.044715 * g * g * g))) * u;
    case MXD_SWIGLU_OAI:
        g = fmin(g, 7), u = fmax(fmin(u, 7), -7);
        return g / (1 + exp(-1.702 * g)) * (u + 1);
    default:
        return g / (1 + exp(-g)) * u;
    }
}

/* Element r of expert e's product with x, with its bias. */
static double product_double(const moe_kit *m, const stack *s, const char *bias, int e, int r,
                             const double *x) {
    const mxd_weight_src *w = &s->whole;
    double y = 0;
    for (int i = 0; i < w->in; i++) y += x[i] * kit_value(&m->k, w, e * w->out + r, i);
    if (!m->c->bias) return y;
    mxd_weight_src b = kit_src(&m->k, bias, MXD_W_VECTOR, 1, E * w->out, 0, 0, 0);
    return y + kit_value(&m->k, &b, 0, e * w->out + r);
}

/* Adds share * expert e of x [D] to y, and to size [D] what that is made of. */
static void expert_double(const moe_kit *m, double *y, double *size, const double *x, int e,
                          double share) {
    double inner[F];
    for (int f = 0; f < F; f++)
        inner[f] = act_double(m->c->how.act, product_double(m, &m->gate, "gate_b", e, f, x),
                              product_double(m, &m->up, "up_b", e, f, x));
    for (int d = 0; d < D; d++) {
        double part = share * product_double(m, &m->down, "down_b", e, d, inner);
        y[d] += part;
        size[d] += fabs(part);
        for (int f = 0; f < F; f++)
            size[d] += fabs(share * inner[f] * kit_value(&m->k, &m->down.whole, e * D + d, f));
    }
}

/* Marks the n_best largest of score [n], the lowest index of equal ones. */
static void best_of(const double *score, int n, int n_best, bool *chosen) {
    for (int k = 0; k < n_best; k++) {
        int best = -1;
        for (int e = 0; e < n; e++)
            if (!chosen[e] && (best < 0 || score[e] > score[best])) best = e;
        chosen[best] = true;
    }
}

static void mask_groups(const mxd_moe *how, double *score) {
    int size = E / how->n_group;
    double worth[E];
    bool kept[E] = {0};
    for (int g = 0; g < how->n_group; g++) {
        bool two[E] = {0};
        best_of(score + g * size, size, 2, two);
        worth[g] = 0;
        for (int i = 0; i < size; i++) worth[g] += two[i] ? score[g * size + i] : 0;
    }
    best_of(worth, how->n_group, how->topk_group, kept);
    for (int e = 0; e < E; e++) score[e] = kept[e / size] ? score[e] : 0;
}

/* What each expert weighs for a row, 0: not chosen. */
static void route_double(const moe_kit *m, const float *logits, double share[E]) {
    const mxd_moe *how = &m->c->how;
    double score[E], all = 0, sum = 0;
    bool chosen[E] = {0}, sigmoid = how->router == MXD_ROUTE_SIGMOID;
    mxd_weight_src c = kit_src(&m->k, "correction", MXD_W_VECTOR, 1, E, 0, 0, 0);
    mxd_weight_src s = kit_src(&m->k, "scale", MXD_W_VECTOR, 1, E, 0, 0, 0);
    for (int e = 0; e < E; e++) {
        share[e] = sigmoid ? 1 / (1 + exp(-logits[e])) : exp(logits[e]);
        score[e] = share[e] + (m->c->correction ? kit_value(&m->k, &c, 0, e) : 0);
        all += share[e];
    }
    if (how->n_group > 1) mask_groups(how, score);
    best_of(score, E, TOP, chosen);
    for (int e = 0; e < E; e++) sum += chosen[e] ? share[e] : 0;
    for (int e = 0; e < E; e++) {
        if (how->router == MXD_ROUTE_TOPK_SOFTMAX) share[e] /= sum;
        if (how->router == MXD_ROUTE_SOFTMAX) share[e] /= how->norm_weights ? sum : all;
        if (sigmoid && how->norm_weights) share[e] /= sum + (double)how->norm_eps;
        if (how->weight_scale) share[e] *= (double)how->weight_scale;
        if (m->c->expert_scale) share[e] *= kit_value(&m->k, &s, 0, e);
        if (!chosen[e]) share[e] = 0;
    }
}

TEST(backend_moe_agrees_with_double) {
    for (size_t i = 0; i < MXD_COUNT(cases); i++) {
        moe_kit *m = calloc(1, sizeof *m);
        open_moe(m, &cases[i], (mxd_backend_opts){.threads = 2, .activations = MXD_ACT_F32});
        run_moe(m, 0, ROWS, false);
        for (int row = 0; row < ROWS; row++) {
            double want[D] = {0}, size[D] = {0}, share[E], x[D];
            for (int d = 0; d < D; d++) x[d] = m->x[row * D + d];
            route_double(m, m->logits + row * E, share);
            for (int e = 0; e < E; e++)
                if (share[e] != 0) expert_double(m, want, size, x, e, share[e]);
            for (int d = 0; d < D; d++)
                if (!(fabs(m->y[row * D + d] - want[d]) <= 3e-6 * size[d]))
                    fail_msg("%s: row %d [%d]: %g, want %g (of %g)", cases[i].what, row, d,
                             m->y[row * D + d], want[d], size[d]);
        }
        close_moe(m);
    }
}

TEST(backend_moe_rows_do_not_see_each_other) {
    static const mxd_activations acts[] = {MXD_ACT_I8, MXD_ACT_I16, MXD_ACT_F32};
    for (int i = 0; i < 3; i++) {
        moe_kit *m = calloc(1, sizeof *m), *alone = calloc(1, sizeof *alone);
        open_moe(m, &cases[1], (mxd_backend_opts){.threads = 3, .activations = acts[i]});
        open_moe(alone, &cases[1], (mxd_backend_opts){.threads = 1, .activations = acts[i]});
        m->x[5 * D] = NAN; /* stays in its row */
        run_moe(m, 0, ROWS, true);
        for (int row = 0; row < ROWS; row++) run_moe(alone, row, 1, row % 2);
        CHECK(isnan(m->y[5 * D]));
        CHECK(memcmp(m->y, alone->y, 5 * D * sizeof(float)) == 0);
        CHECK(memcmp(m->y + 6 * D, alone->y + 6 * D, (ROWS - 6) * D * sizeof(float)) == 0);
        close_moe(m), close_moe(alone);
    }
}

static uint64_t hash_of(uint64_t h, const float *x, int n) {
    for (int i = 0; i < n; i++) h = mxd_mix64(h ^ mxd_float_bits(x[i]));
    return h;
}

/* One case with one table, in chunks of 1, 7 and all rows. */
static void same_moe_bits(const moe_case *c, mxd_backend_opts o, const float *want) {
    static const int chunks[] = {1, 7, ROWS};
    for (size_t i = 0; i < MXD_COUNT(chunks); i++) {
        moe_kit *m = calloc(1, sizeof *m);
        o.threads = (int)i + 1;
        open_moe(m, c, o);
        for (int row = 0; row < ROWS; row += chunks[i])
            run_moe(m, row, ROWS - row < chunks[i] ? ROWS - row : chunks[i], false);
        if (memcmp(m->y, want, sizeof m->y))
            fail_msg("%s: %s in chunks of %d differs", c->what, o.kernels, chunks[i]);
        close_moe(m);
    }
}

/* The hashes let machines be compared; they change only when docs/numerics.md does. */
TEST(backend_moe_bits) {
    static const uint64_t golden[] = {[MXD_ACT_I8] = 0x4f8a0f377520d2f2,
                                      [MXD_ACT_I16] = 0x9598469bd445ef5e,
                                      [MXD_ACT_F32] = 0x4af77f20fde3acac};
    const mxd_kernels *tables[8];
    size_t n = mxd_kernels_usable(tables, 8);
    for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++) {
        uint64_t hash = 0;
        for (size_t i = 0; i < MXD_COUNT(cases); i++) {
            mxd_backend_opts o = {
                .threads = 1, .activations = (mxd_activations)act, .kernels = "scalar"};
            moe_kit *m = calloc(1, sizeof *m);
            open_moe(m, &cases[i], o);
            run_moe(m, 0, ROWS, true);
            hash = hash_of(hash, m->y, ROWS * D);
            for (size_t t = 0; t < n; t++) {
                o.kernels = tables[t]->name;
                same_moe_bits(&cases[i], o, m->y);
            }
            close_moe(m);
        }
        if (hash != golden[act])
            fail_msg("activations %d: the bits have changed: 0x%016llx", act,
                     (unsigned long long)hash);
    }
}

/* ------------------------------------------------------------------------ a matrix for each head
 */

enum { H = 5, IN = 64, OUT = 20, N_TOKENS = 30 };

typedef struct heads_kit {
    kit k;
    stack s;
    mxd_backend *b;
    float x[N_TOKENS * H * IN], y[N_TOKENS * H * OUT];
} heads_kit;

static void open_heads(heads_kit *m, int bits, mxd_backend_opts opts) {
    mxd_err err = {0};
    kit_begin(&m->k);
    if (bits)
        kit_affine(&m->k, "w", MXD_DTYPE_BF16, H * OUT, IN, bits, 64);
    else
        kit_float(&m->k, "w", MXD_DTYPE_BF16, H * OUT, IN, 0.1f, 0);
    kit_float(&m->k, "b", MXD_DTYPE_F32, 0, H * OUT, 1, 0);
    kit_open(&m->k);
    CHECK_OK(mxd_backend_open(&m->b, &mxd_alloc_libc, "cpu", &opts, &err), &err);
    load_stack(&m->s, m->b, &m->k, "w", H, OUT, IN, bits, "b");
    for (int i = 0; i < N_TOKENS * H * IN; i++) m->x[i] = kit_noise("x", (uint64_t)i);
    mxd_step_shape shape = {.max_rows = N_TOKENS,
                            .n_regs = 2,
                            .reg_width = (const int[]){H * IN, H * OUT},
                            .max_context = N_TOKENS};
    CHECK_OK(m->b->ops->setup(m->b, &shape, &err), &err);
}

static void run_heads(heads_kit *m, int row0, int n) {
    mxd_err err = {0};
    mxd_run run = {0, n, 0, NULL};
    m->b->ops->begin(m->b, &(mxd_batch){n, 1, &run, NULL});
    m->b->ops->input(m->b, 0, m->x + row0 * H * IN);
    m->b->ops->linear_heads(m->b, 1, 0, m->s.w);
    CHECK_OK(m->b->ops->output(m->b, 1, m->y + row0 * H * OUT, &err), &err);
    CHECK_OK(m->b->ops->end(m->b, &err), &err);
}

static void close_heads(heads_kit *m) {
    m->b->ops->close(m->b);
    kit_end(&m->k);
    free(m);
}

TEST(backend_linear_heads_agree_with_double) {
    static const int bits[] = {0, 4, 8};
    static const double tolerance[] = {
        [MXD_ACT_I8] = 0.03, [MXD_ACT_I16] = 2e-4, [MXD_ACT_F32] = 2e-6};
    for (size_t i = 0; i < MXD_COUNT(bits); i++)
        for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++) {
            heads_kit *m = calloc(1, sizeof *m);
            open_heads(m, bits[i],
                       (mxd_backend_opts){.threads = 2, .activations = (mxd_activations)act});
            run_heads(m, 0, N_TOKENS);
            for (int at = 0; at < N_TOKENS * H * OUT; at++) {
                int t = at / (H * OUT), row = at % (H * OUT), h = row / OUT;
                double want = kit_noise("b.weight", (uint64_t)row), size = 0;
                for (int c = 0; c < IN; c++) {
                    double term =
                        m->x[(t * H + h) * IN + c] * kit_value(&m->k, &m->s.whole, row, c);
                    want += term;
                    size += term * term;
                }
                if (!(fabs(m->y[at] - want) <= tolerance[act] * sqrt(size) + 1e-6))
                    fail_msg("%d bits, activations %d: token %d head %d [%d]: %g, want %g", bits[i],
                             act, t, h, row % OUT, m->y[at], want);
            }
            close_heads(m);
        }
}

TEST(backend_linear_heads_bits) {
    static const int bits[] = {0, 4, 8}, chunks[] = {1, 13, N_TOKENS};
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    for (size_t i = 0; i < MXD_COUNT(bits); i++)
        for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++) {
            mxd_backend_opts o = {
                .threads = 1, .activations = (mxd_activations)act, .kernels = "scalar"};
            heads_kit *want = calloc(1, sizeof *want);
            open_heads(want, bits[i], o);
            run_heads(want, 0, N_TOKENS);
            for (size_t t = 0; t < n_tables * MXD_COUNT(chunks); t++) {
                int n = chunks[t % MXD_COUNT(chunks)];
                heads_kit *m = calloc(1, sizeof *m);
                o.kernels = tables[t / MXD_COUNT(chunks)]->name;
                o.threads = 1 + (int)(t % MXD_COUNT(chunks));
                open_heads(m, bits[i], o);
                for (int row = 0; row < N_TOKENS; row += n)
                    run_heads(m, row, N_TOKENS - row < n ? N_TOKENS - row : n);
                if (memcmp(m->y, want->y, sizeof m->y))
                    fail_msg("%d bits, activations %d: %s in chunks of %d differs", bits[i], act,
                             o.kernels, n);
                close_heads(m);
            }
            close_heads(want);
        }
}

/* ------------------------------------------------------------------- the transpose of such a
 * matrix */

enum { T_ROWS = 41, T_FROM = 5, T_IN = 32 }; /* of the file's rows of a head, those used */

/* y [N_TOKENS, H, IN] of the file's [H T_ROWS, IN]: x's head h by its rows, turned. */
static mxd_rc run_turned(heads_kit *m, const mxd_weight_src *s, mxd_backend_opts o, float *y,
                         mxd_err *err) {
    MXD_TRY(mxd_backend_open(&m->b, &mxd_alloc_libc, "cpu", &o, err));
    mxd_rc rc = m->b->ops->load(m->b, s, &m->s.w, err);
    mxd_run run = {0, N_TOKENS, 0, NULL};
    mxd_step_shape shape = {.max_rows = N_TOKENS,
                            .n_regs = 2,
                            .reg_width = (const int[]){H * T_IN, H * IN},
                            .max_context = N_TOKENS};
    if (!rc) rc = m->b->ops->setup(m->b, &shape, err);
    if (!rc) {
        m->b->ops->begin(m->b, &(mxd_batch){N_TOKENS, 1, &run, NULL});
        m->b->ops->input(m->b, 0, m->x);
        m->b->ops->linear_heads(m->b, 1, 0, m->s.w);
        CHECK_OK(m->b->ops->output(m->b, 1, y, err), err);
        CHECK_OK(m->b->ops->end(m->b, err), err);
    }
    m->b->ops->close(m->b);
    return rc;
}

static void check_turned(const heads_kit *m, const mxd_weight_src *s, const float *y) {
    for (int at = 0; at < N_TOKENS * H * IN; at++) {
        int t = at / (H * IN), h = at / IN % H, c = at % IN;
        double want = 0, size = 0;
        for (int r = 0; r < T_IN; r++) {
            double term = m->x[(t * H + h) * T_IN + r] *
                          kit_value(&m->k, &m->s.whole, h * T_ROWS + T_FROM + r, c);
            want += term;
            size += term * term;
        }
        if (!(fabs(y[at] - want) <= 3e-6 * sqrt(size)))
            fail_msg("%d bits: token %d head %d [%d]: %g, want %g", s->quant.bits, t, h, c, y[at],
                     want);
    }
}

TEST(backend_matrices_of_heads_can_be_turned) {
    static const struct {
        int bits;
        mxd_dtype dtype;
    } files[] = {{4, MXD_DTYPE_BF16}, {8, MXD_DTYPE_F16}, {0, MXD_DTYPE_F16}, {0, MXD_DTYPE_F32}};
    static float y[N_TOKENS * H * IN];
    for (size_t i = 0; i < MXD_COUNT(files); i++) {
        heads_kit *m = calloc(1, sizeof *m);
        mxd_err err = {0};
        int bits = files[i].bits;
        kit_begin(&m->k);
        if (bits)
            kit_affine(&m->k, "w", files[i].dtype, H * T_ROWS, IN, bits, 64);
        else
            kit_float(&m->k, "w", files[i].dtype, H * T_ROWS, IN, 0.1f, 0);
        kit_open(&m->k);
        for (int t = 0; t < N_TOKENS * H * T_IN; t++) m->x[t] = kit_noise("x", (uint64_t)t);
        m->s.whole = kit_src(&m->k, "w", MXD_W_LINEAR, T_ROWS, IN, bits, bits ? 64 : 0, 64);
        mxd_weight_src s = m->s.whole;
        s.experts = H;
        s.stacked = s.transposed = true;
        s.row0 = T_FROM;
        s.rows = T_IN;
        for (int threads = 1; threads <= 3; threads += 2) {
            mxd_backend_opts o = {.threads = threads}; /* floats, whatever the activations are */
            CHECK_OK(run_turned(m, &s, o, y, &err), &err);
            check_turned(m, &s, y);
        }
        s.experts = H + 1;
        CHECK_EQ(run_turned(m, &s, (mxd_backend_opts){.threads = 1}, y, &err), MXD_E_FORMAT);
        s.experts = 0;
        s.stacked = false;
        s.out = H * T_ROWS;
        CHECK_EQ(run_turned(m, &s, (mxd_backend_opts){.threads = 1}, y, &err), MXD_E_INVAL);
        kit_end(&m->k);
        free(m);
    }
}

TEST_OOM(backend_turned_load_unwinds) {
    static kit k; /* outlives a run that fails */
    if (!k.st) {
        kit_begin(&k);
        kit_affine(&k, "w", MXD_DTYPE_BF16, H * T_ROWS, IN, 8, 64);
        kit_open(&k);
    }
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, T_ROWS, IN, 8, 64, 64);
    s.experts = H;
    s.stacked = s.transposed = true;
    s.row0 = T_FROM;
    s.rows = T_IN;
    mxd_backend *b = NULL;
    mxd_weight *w = NULL;
    MXD_TRY(mxd_backend_open(&b, al, "cpu", &(mxd_backend_opts){.threads = 2}, err));
    mxd_rc rc = b->ops->load(b, &s, &w, err);
    b->ops->close(b);
    if (!rc) kit_end(&k);
    return rc;
}
