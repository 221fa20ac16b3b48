/* The gated delta rule of the CPU backend: against double precision, and the same bits for any
 * chunk, batch, thread count and kernel table; the life of recurrent state. */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "base/rand.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "test.h"

enum { X, Z, B, A, Y, N_REGS };
enum { T = 70, SEQS = 3, STATES = 5, MAX_D = 160 };

typedef struct shape {
    int n_k, n_v, d_k, d_v, conv;
    bool by_key_head;
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

static void write_net(net *n, const shape *s) {
    int c = channels(s), v = s->n_v * s->d_v;
    *n = (net){.s = *s, .width = {c, v, s->n_v, s->n_v, v}};
    kit_begin(&n->k);
    kit_float(&n->k, "conv", MXD_DTYPE_BF16, c, s->conv, 0.7f, 0);
    kit_float(&n->k, "a_log", MXD_DTYPE_F32, 0, s->n_v, 2, 0);
    kit_float(&n->k, "dt", MXD_DTYPE_F32, 0, s->n_v, 1, -1);
    kit_float(&n->k, "norm", MXD_DTYPE_F16, 0, s->d_v, 0.3f, 1);
    kit_open(&n->k);
    n->src[0] = kit_src(&n->k, "conv", MXD_W_VECTOR, 1, c * s->conv, 0, 0, 0);
    n->src[0].columns = s->conv;
    n->src[1] = kit_src(&n->k, "a_log", MXD_W_VECTOR, 1, s->n_v, 0, 0, 0);
    n->src[2] = kit_src(&n->k, "dt", MXD_W_VECTOR, 1, s->n_v, 0, 0, 0);
    n->src[3] = kit_src(&n->k, "norm", MXD_W_VECTOR, 1, s->d_v, 0, 0, 0);
}

static void open_net(net *n, mxd_backend_opts o) {
    mxd_err err = {0};
    mxd_weight *w[4];
    const shape *s = &n->s;
    CHECK_OK(mxd_backend_open(&n->b, &mxd_alloc_libc, "cpu", &o, &err), &err);
    for (int i = 0; i < 4; i++) CHECK_OK(n->b->ops->load(n->b, &n->src[i], &w[i], &err), &err);
    n->how = (mxd_delta_net){w[0],   w[1],   w[2],    w[3],           s->n_k, s->n_v,
                             s->d_k, s->d_v, s->conv, s->by_key_head, 1e-6f};
    mxd_kv_spec kv[2] = {{0}, {0}};
    mxd_state_spec state[2] = {{0}, {channels(s), s->conv, s->n_v, s->d_v, s->d_k}};
    mxd_step_shape all = {.max_rows = SEQS * T,
                          .n_regs = N_REGS,
                          .reg_width = n->width,
                          .n_layers = 2,
                          .kv = kv,
                          .n_pages = 1,
                          .max_context = T,
                          .n_states = STATES,
                          .state = state};
    CHECK_OK(n->b->ops->setup(n->b, &all, &err), &err);
}

/* Value i of register reg at a position of a sequence; x holds channels in their order. */
static float value(int reg, int seq, int pos, int i) {
    char name[16];
    snprintf(name, sizeof name, "%d.%d.%d", reg, seq, pos);
    float f = kit_noise(name, (uint64_t)i);
    return reg == X && i % 5 == 0 ? 3 * f : f;
}

/* Where channel c stands in x. */
static int place_of(const shape *s, int c) {
    int keys = s->n_k * s->d_k, r = s->n_v / s->n_k, group = 2 * s->d_k + r * s->d_v;
    if (!s->by_key_head) return c;
    if (c < keys) return c / s->d_k * group + c % s->d_k;
    if (c < 2 * keys) return (c - keys) / s->d_k * group + s->d_k + c % s->d_k;
    c -= 2 * keys;
    return c / (r * s->d_v) * group + 2 * s->d_k + c % (r * s->d_v);
}

/* Positions [pos, pos + len) of a sequence become rows from `row` of in[reg]. */
static void fill_rows(const net *n, float *const *in, int row, int seq, int pos, int len) {
    for (int t = 0; t < len; t++)
        for (int reg = X; reg <= A; reg++)
            for (int i = 0; i < n->width[reg]; i++) {
                int at = reg == X ? place_of(&n->s, i) : i;
                in[reg][(row + t) * n->width[reg] + at] = value(reg, seq, pos + t, i);
            }
}

/* One step over runs; y [rows, width]. */
static void step(net *n, const mxd_run *runs, int n_runs, const int *seq, float *y, bool same) {
    mxd_err err = {0};
    float *in[N_REGS];
    int rows = runs[n_runs - 1].row0 + runs[n_runs - 1].n;
    for (int reg = X; reg <= A; reg++)
        in[reg] = malloc((size_t)(rows * n->width[reg]) * sizeof(float));
    for (int i = 0; i < n_runs; i++)
        fill_rows(n, in, runs[i].row0, seq[i], runs[i].pos0, runs[i].n);
    n->b->ops->begin(n->b, &(mxd_batch){rows, n_runs, runs, NULL});
    for (int reg = X; reg <= A; reg++) n->b->ops->input(n->b, reg, in[reg]);
    n->b->ops->delta_net(n->b, 1, same ? Z : Y, X, Z, B, A, &n->how);
    CHECK_OK(n->b->ops->output(n->b, same ? Z : Y, y, &err), &err);
    CHECK_OK(n->b->ops->end(n->b, &err), &err);
    for (int reg = X; reg <= A; reg++) free(in[reg]);
}

/* One run of a sequence alone. */
static void step_one(net *n, int state, int seq, int pos, int len, float *y) {
    static int32_t pages[T / MXD_KV_PAGE_TOKENS + 1];
    step(n, &(mxd_run){0, len, pos, pages, state}, 1, &seq, y, pos % 2);
}

/* ------------------------------------------------------------------------------ against double */

/* Channel c after convolution and silu at a position. */
static double convolved(const net *n, int seq, int pos, int c) {
    double sum = 0;
    for (int t = 0; t < n->s.conv; t++) {
        int from = pos - n->s.conv + 1 + t;
        if (from >= 0)
            sum += kit_value(&n->k, &n->src[0], 0, c * n->s.conv + t) * value(X, seq, from, c);
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
    double beta = 1 / (1 + exp(-value(B, seq, pos, h)));
    double dt = value(A, seq, pos, h) + kit_value(&n->k, &n->src[2], 0, h);
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
        double z = value(Z, seq, pos, h * s->d_v + r);
        y[r] *= kit_value(&n->k, &n->src[3], 0, r) / sqrt(ss / s->d_v + 1e-6);
        y[r] *= z / (1 + exp(-z));
    }
}

static void check_head(const net *n, const float *got, int seq, int len, int h) {
    const shape *s = &n->s;
    double *S = calloc((size_t)(s->d_v * s->d_k), sizeof *S), want[MAX_D];
    for (int pos = 0; pos < len; pos++) {
        rule_double(n, S, want, seq, pos, h);
        for (int r = 0; r < s->d_v; r++) {
            double y = got[pos * s->n_v * s->d_v + h * s->d_v + r];
            if (!(fabs(y - want[r]) <= 3e-5))
                fail_msg("heads %d %d of %d %d: position %d head %d [%d]: %g, want %g", s->n_k,
                         s->n_v, s->d_k, s->d_v, pos, h, r, y, want[r]);
        }
    }
    free(S);
}

static const shape shapes[] = {
    {1, 1, 16, 16, 4, false},   {2, 4, 32, 48, 4, false}, {2, 6, 16, 32, 3, true},
    {1, 2, 128, 144, 2, false}, {3, 3, 48, 16, 1, true},  {2, 2, 32, 32, MXD_MAX_CONV, true},
};

TEST(backend_delta_net_agrees_with_double) {
    for (size_t i = 0; i < MXD_COUNT(shapes); i++) {
        net n;
        write_net(&n, &shapes[i]);
        open_net(&n, (mxd_backend_opts){.threads = 2});
        size_t width = (size_t)n.width[Y];
        float *y = malloc(T * width * sizeof *y);
        for (int pos = 0, len; pos < T; pos += len) { /* 11, 1, 2, 11, 1, 2 ... */
            len = pos % 14 == 0 ? 11 : pos % 14 == 11 ? 1 : 2;
            len = len < T - pos ? len : T - pos;
            step_one(&n, 3, 1, pos, len, y + (size_t)pos * width);
        }
        for (int h = 0; h < n.s.n_v; h++) check_head(&n, y, 1, T, h);
        free(y);
        n.b->ops->close(n.b);
        kit_end(&n.k);
    }
}

/* ----------------------------------------------------------------------------------- equal bits */

/* Every position of sequence 0 [T, width]; `seqs` run side by side, each in its own state, the
 * others shorter; what is in the state at the start must not matter. */
static void run_bits(net *n, int chunk, int seqs, float *out) {
    static int32_t pages[T / MXD_KV_PAGE_TOKENS + 1];
    size_t width = (size_t)n->width[Y];
    float *y = malloc(SEQS * T * width * sizeof *y);
    for (int s = 0; s < STATES; s++) step_one(n, s, 2, 0, 5, y);
    for (int pos = 0; pos < T; pos += chunk) {
        mxd_run runs[SEQS];
        int n_runs = 0, row = 0, seq[SEQS], end = pos + chunk < T ? pos + chunk : T;
        for (int s = seqs - 1; s >= 0; s--) { /* sequence 0 comes last in the batch */
            int start = pos / (s + 1), len = end / (s + 1) - start;
            if (len < 1) continue;
            runs[n_runs] = (mxd_run){row, len, start, pages, (s + 3) % STATES};
            seq[n_runs++] = s;
            row += len;
        }
        step(n, runs, n_runs, seq, y, false);
        memcpy(out + (size_t)pos * width, y + (size_t)(row - (end - pos)) * width,
               (size_t)(end - pos) * width * sizeof *y);
    }
    free(y);
}

static uint64_t hash_of(const float *x, size_t n) {
    uint64_t h = 0;
    for (size_t i = 0; i < n; i++) h = mxd_mix64(h ^ mxd_float_bits(x[i]));
    return h;
}

static void compare(net *n, const float *want, const char *table, int threads, int chunk,
                    int seqs) {
    size_t size = (size_t)(T * n->width[Y]);
    float *got = malloc(size * sizeof *got);
    open_net(n, (mxd_backend_opts){.threads = threads, .kernels = table});
    run_bits(n, chunk, seqs, got);
    n->b->ops->close(n->b);
    for (size_t i = 0; i < size; i++)
        if (memcmp(got + i, want + i, sizeof *got))
            fail_msg("%s, %d threads, chunk %d, %d sequences: [%zu]: %a, want %a", table, threads,
                     chunk, seqs, i, got[i], want[i]);
    free(got);
}

/* The hashes let machines be compared; they change only when docs/numerics.md does. */
TEST(backend_delta_net_bits) {
    static const int chunks[] = {1, 7, 64, T};
    static const uint64_t golden[] = {0x32e803cf99367c7f, 0xa9b4ed80f51bdbe8, 0x4a51af4964260e61};
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    for (size_t i = 1; i < 4; i++) {
        net n;
        write_net(&n, &shapes[i]);
        size_t size = (size_t)(T * n.width[Y]);
        float *want = malloc(size * sizeof *want);
        open_net(&n, (mxd_backend_opts){.threads = 1, .kernels = "scalar"});
        run_bits(&n, 1, 1, want);
        n.b->ops->close(n.b);
        if (hash_of(want, size) != golden[i - 1])
            fail_msg("the bits have changed: 0x%016llx", (unsigned long long)hash_of(want, size));
        for (size_t t = 0; t < n_tables; t++)
            for (size_t c = 0; c < MXD_COUNT(chunks); c++)
                for (int threads = 1; threads <= 3; threads++)
                    compare(&n, want, tables[t]->name, threads, chunks[c], threads == 2 ? 1 : SEQS);
        free(want);
        kit_end(&n.k);
    }
}

/* ------------------------------------------------------------------------------ life of a state */

TEST(backend_state_copy_forks_a_sequence) {
    enum { AT = 13, MORE = 20 };
    net n;
    write_net(&n, &shapes[1]);
    open_net(&n, (mxd_backend_opts){.threads = 2});
    size_t bytes = MORE * (size_t)n.width[Y] * sizeof(float);
    float *want = malloc(bytes), *got = malloc(bytes);
    step_one(&n, 0, 1, 0, AT, got);
    step_one(&n, 4, 2, 0, MORE, got); /* another's, to be overwritten */
    n.b->ops->state_copy(n.b, 4, 0);
    n.b->ops->state_copy(n.b, 0, 0);
    step_one(&n, 0, 1, AT, MORE, want);
    step_one(&n, 1, 2, 0, MORE, got);
    step_one(&n, 4, 1, AT, MORE, got); /* the copy has not moved on */
    CHECK(memcmp(got, want, bytes) == 0);
    step_one(&n, 0, 1, AT, MORE, got); /* but its origin has */
    CHECK(memcmp(got, want, bytes) != 0);
    n.b->ops->close(n.b);
    kit_end(&n.k);
    free(want), free(got);
}

TEST(backend_setup_refuses_impossible_states) {
    static const struct {
        mxd_state_spec s;
        int n_states;
        mxd_rc rc;
    } rows[] = {
        {{96, 4, 2, 16, 32}, 2, MXD_OK},       {{0}, 2, MXD_OK},
        {{96, 0, 2, 16, 32}, 2, MXD_E_INVAL},  {{96, MXD_MAX_CONV + 1, 2, 16, 32}, 2, MXD_E_INVAL},
        {{96, 4, 0, 16, 32}, 2, MXD_E_INVAL},  {{96, 4, 2, 8, 32}, 2, MXD_E_INVAL},
        {{96, 4, 2, 16, 24}, 2, MXD_E_INVAL},  {{96, 4, 2, 16, 0}, 2, MXD_E_INVAL},
        {{-1, 4, 2, 16, 32}, 2, MXD_E_INVAL},  {{96, 4, 2, 16, 2048}, 2, MXD_E_INVAL},
        {{96, 4, 2, 16, 32}, -1, MXD_E_INVAL}, {{96, 0, 2, 16, 32}, 0, MXD_OK},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_backend *b = NULL;
        mxd_err err = {0};
        CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
        mxd_kv_spec kv = {0};
        mxd_step_shape all = {.max_rows = 2,
                              .n_regs = 1,
                              .reg_width = (int[]){16},
                              .n_layers = 1,
                              .kv = &kv,
                              .max_context = 8,
                              .n_states = rows[i].n_states,
                              .state = &rows[i].s};
        if (b->ops->setup(b, &all, &err) != rows[i].rc) fail_msg("state %zu: %s", i, err.msg);
        b->ops->close(b);
    }
}

TEST(backend_refuses_a_state_that_is_not_there) {
    net n;
    write_net(&n, &shapes[0]);
    open_net(&n, (mxd_backend_opts){.threads = 1});
    int32_t page = 0;
    for (int state = -1; state <= STATES; state += STATES + 1) {
        mxd_run run = {0, 1, 0, &page, state};
        mxd_err err = {0};
        n.b->ops->begin(n.b, &(mxd_batch){1, 1, &run, NULL});
        n.b->ops->delta_net(n.b, 1, Y, X, Z, B, A, &n.how);
        CHECK_EQ(n.b->ops->end(n.b, &err), MXD_E_INTERNAL);
    }
    n.b->ops->close(n.b);
    kit_end(&n.k);
}

TEST_OOM(backend_turned_vectors_and_states_unwind) {
    static net n; /* outlives a run that fails */
    if (!n.k.st) write_net(&n, &shapes[0]);
    mxd_backend *b = NULL;
    mxd_weight *w = NULL;
    mxd_kv_spec kv = {0};
    mxd_state_spec state = {channels(&n.s), n.s.conv, n.s.n_v, n.s.d_v, n.s.d_k};
    mxd_step_shape all = {.max_rows = 2,
                          .n_regs = 1,
                          .reg_width = (int[]){16},
                          .n_layers = 1,
                          .kv = &kv,
                          .max_context = 8,
                          .n_states = 2,
                          .state = &state};
    MXD_TRY(mxd_backend_open(&b, al, "cpu", &(mxd_backend_opts){.threads = 1}, err));
    mxd_rc rc = b->ops->load(b, &n.src[0], &w, err);
    if (!rc) rc = b->ops->setup(b, &all, err);
    b->ops->close(b);
    if (!rc) kit_end(&n.k);
    return rc;
}
