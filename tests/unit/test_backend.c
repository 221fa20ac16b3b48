/* The CPU backend: every operation against double precision, loading, and its failures. */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "kernels/kernels.h"
#include "test.h"

static mxd_backend *open_cpu(mxd_backend_opts opts) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", &opts, &err), &err);
    return b;
}

static mxd_weight *load(mxd_backend *b, const mxd_weight_src *s) {
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(b->ops->load(b, s, &w, &err), &err);
    return w;
}

static void setup(mxd_backend *b, int rows, int n_regs, const int *width) {
    mxd_err err = {0};
    mxd_step_shape s = {.max_rows = rows, .n_regs = n_regs, .reg_width = width, .max_context = 512};
    CHECK_OK(b->ops->setup(b, &s, &err), &err);
}

static float *noise(const char *stream, size_t n) {
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = kit_noise(stream, i);
    return x;
}

/* Runs `rows` rows through one linear; returns [rows, out]. */
static float *one_linear(mxd_backend *b, const mxd_weight *w, int rows, int in, int out,
                         const float *x) {
    mxd_err err = {0};
    mxd_run run = {0, rows, 0, NULL};
    mxd_batch batch = {rows, 1, &run, NULL};
    int dst = 1;
    float *y = calloc((size_t)rows * (size_t)out, sizeof *y);
    setup(b, rows, 2, (int[]){in, out});
    b->ops->begin(b, &batch);
    b->ops->input(b, 0, x);
    b->ops->linear(b, 1, &dst, 0, &w);
    CHECK_OK(b->ops->output(b, 1, y, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    return y;
}

typedef struct linear_case {
    mxd_dtype dtype;
    int out, in, bits, group, block_k;
} linear_case;

static const linear_case linears[] = {
    {MXD_DTYPE_BF16, 48, 256, 8, 64, 64}, {MXD_DTYPE_F16, 50, 256, 8, 32, 96},
    {MXD_DTYPE_F32, 7, 384, 8, 128, 128}, {MXD_DTYPE_BF16, 33, 192, 4, 64, 64},
    {MXD_DTYPE_F16, 20, 96, 4, 32, 32},   {MXD_DTYPE_BF16, 19, 100, 0, 0, 64},
    {MXD_DTYPE_F16, 16, 72, 0, 0, 16},    {MXD_DTYPE_F32, 5, 31, 0, 0, 32},
};

static void check_linear(const linear_case *c, mxd_activations act, double tolerance) {
    enum { ROWS = 15 };
    kit k;
    kit_begin(&k);
    if (c->bits)
        kit_affine(&k, "w", c->dtype, c->out, c->in, c->bits, c->group);
    else
        kit_float(&k, "w", c->dtype, c->out, c->in, 0.1f, 0);
    kit_float(&k, "b", MXD_DTYPE_F32, 0, c->out, 1, 0);
    kit_open(&k);
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, c->out, c->in, c->bits, c->group, c->block_k);
    s.bias = mxd_st_find(k.st, "b.weight");
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 2, .activations = act});
    float *x = noise("x", ROWS * (size_t)c->in);
    float *y = one_linear(b, load(b, &s), ROWS, c->in, c->out, x);
    for (int t = 0; t < ROWS; t++)
        for (int r = 0; r < c->out; r++) {
            double want = kit_noise("b.weight", (uint64_t)r), size = 0;
            for (int i = 0; i < c->in; i++) {
                double term = kit_value(&k, &s, r, i) * x[t * c->in + i];
                want += term;
                size += term * term;
            }
            double got = y[t * c->out + r];
            if (!(fabs(got - want) <= tolerance * sqrt(size) + 1e-6))
                fail_msg("%d bits, %s, row %d of token %d: %g, want %g (size %g)", c->bits,
                         mxd_dtype_name(c->dtype), r, t, got, want, sqrt(size));
        }
    b->ops->close(b);
    free(x);
    free(y);
    kit_end(&k);
}

TEST(backend_linear_f32_agrees_with_double) {
    for (size_t i = 0; i < MXD_COUNT(linears); i++) check_linear(&linears[i], MXD_ACT_F32, 2e-6);
}

TEST(backend_linear_i16_agrees_with_double) {
    for (size_t i = 0; i < MXD_COUNT(linears); i++) check_linear(&linears[i], MXD_ACT_I16, 2e-4);
}

TEST(backend_linear_i8_agrees_with_double) {
    for (size_t i = 0; i < MXD_COUNT(linears); i++) check_linear(&linears[i], MXD_ACT_I8, 0.03);
}

/* ---------------------------------------------------------------------- every format, against MLX
 *
 * tests/unit/quant: weights quantised by mlx.core, what MLX says they are, and its products
 * (tools/oracle/make_quant.py). */

enum { F_ROWS = 17, F_IN = 128, F_TOKENS = 31 };

typedef struct format {
    const char *name;
    mxd_quant q;
} format;

#define AFFINE(bits)                                        \
    {"affine" #bits "g32", {MXD_Q_AFFINE, bits, 32}},       \
        {"affine" #bits "g64", {MXD_Q_AFFINE, bits, 64}}, { \
        "affine" #bits "g128", { MXD_Q_AFFINE, bits, 128 }  \
    }
static const format formats[] = {AFFINE(2),
                                 AFFINE(3),
                                 AFFINE(4),
                                 AFFINE(5),
                                 AFFINE(6),
                                 AFFINE(8),
                                 {"mxfp4", {MXD_Q_MXFP4, 4, 32}},
                                 {"mxfp8", {MXD_Q_MXFP8, 8, 32}},
                                 {"nvfp4", {MXD_Q_NVFP4, 4, 16}}};

static mxd_st *open_formats(void) {
    char folder[1024];
    mxd_st *st = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_st_open(&st, &mxd_alloc_libc, test_path(folder, "unit/quant"), &err), &err);
    return st;
}

static const mxd_st_tensor *format_tensor(const mxd_st *st, const char *name, const char *suffix) {
    char full[64];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return mxd_st_find(st, full);
}

static float *format_floats(const mxd_st *st, const char *name, const char *suffix) {
    const mxd_st_tensor *t = format_tensor(st, name, suffix);
    mxd_err err = {0};
    if (!t || t->dtype != MXD_DTYPE_F32) fail_msg("%s%s is missing", name, suffix);
    float *x = malloc(t->bytes);
    CHECK_OK(mxd_st_read(st, t, 0, x, t->bytes, &err), &err);
    return x;
}

static mxd_weight_src format_src(const mxd_st *st, const format *f) {
    return (mxd_weight_src){.name = f->name,
                            .use = MXD_W_LINEAR | MXD_W_LOOKUP,
                            .st = st,
                            .weight = format_tensor(st, f->name, ".weight"),
                            .scales = format_tensor(st, f->name, ".scales"),
                            .biases = format_tensor(st, f->name, ".biases"),
                            .quant = f->q,
                            .out = F_ROWS,
                            .in = F_IN,
                            .block_k = f->q.group == 16 ? 48 : f->q.group};
}

static float *format_product(const mxd_st *st, const format *f, mxd_backend_opts o,
                             const float *x) {
    mxd_weight_src s = format_src(st, f);
    mxd_backend *b = open_cpu(o);
    float *y = one_linear(b, load(b, &s), F_TOKENS, F_IN, F_ROWS, x);
    b->ops->close(b);
    return y;
}

/* y [F_ROWS, cols] = columns [col0, col0 + cols) of every row, looked up; the second part of a span
 * that is all columns but the first group, when `span`. */
static void format_rows(const mxd_st *st, const format *f, int col0, int cols, bool span,
                        float *y) {
    mxd_weight_src s = format_src(st, f);
    int32_t ids[F_ROWS];
    mxd_err err = {0};
    mxd_run run = {0, F_ROWS, 0, NULL};
    for (int i = 0; i < F_ROWS; i++) ids[i] = i;
    if (cols < F_IN) s.use = MXD_W_LOOKUP, s.col0 = col0, s.cols = cols;
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 2});
    if (span) {
        mxd_weight_src other = s;
        other.span0 = s.span0 = other.cols = other.col0 = cols;
        other.span = s.span = F_IN - cols;
        load(b, &other);
    }
    uint64_t before = b->ops->bytes(b);
    mxd_weight *w = load(b, &s);
    CHECK(!span || b->ops->bytes(b) - before < 500); /* in memory already */
    setup(b, F_ROWS, 1, &cols);
    b->ops->begin(b, &(mxd_batch){F_ROWS, 1, &run, ids});
    b->ops->embed(b, 0, w);
    CHECK_OK(b->ops->output(b, 0, y, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
}

static void check_format_lookup(const mxd_st *st, const format *f, const float *want) {
    float y[F_ROWS * F_IN];
    format_rows(st, f, 0, F_IN, false, y);
    float near = f->q.mode == MXD_Q_AFFINE ? 3e-7f : 0; /* MLX rounds the product as well */
    for (int i = 0; i < F_ROWS * F_IN; i++) {
        float most = 0; /* of the row: a value may be the difference of two larger ones */
        for (int c = i / F_IN * F_IN; c < i / F_IN * F_IN + F_IN; c++)
            most = fmaxf(most, fabsf(want[c]));
        if (!(fabsf(y[i] - want[i]) <= near * most))
            fail_msg("%s: [%d, %d] is %a, want %a", f->name, i / F_IN, i % F_IN, y[i], want[i]);
    }
}

TEST(backend_formats_read_as_mlx_reads_them) {
    mxd_st *st = open_formats();
    for (size_t i = 0; i < MXD_COUNT(formats); i++) {
        float *want = format_floats(st, formats[i].name, ".want");
        check_format_lookup(st, &formats[i], want);
        free(want);
    }
    mxd_st_close(st);
}

/* Against double, and at float32 against MLX itself. */
static void check_format_product(const mxd_st *st, const format *f, const float *x,
                                 mxd_activations act, double tolerance) {
    float *w = format_floats(st, f->name, ".want"), *mlx = format_floats(st, f->name, ".y");
    float *y = format_product(st, f, (mxd_backend_opts){.threads = 2, .activations = act}, x);
    for (int i = 0; i < F_TOKENS * F_ROWS; i++) {
        const float *xt = x + i / F_ROWS * F_IN, *wr = w + i % F_ROWS * F_IN;
        double want = 0, size = 0;
        for (int c = 0; c < F_IN; c++) {
            want += (double)xt[c] * (double)wr[c];
            size += pow((double)xt[c] * (double)wr[c], 2);
        }
        double off = fabs(y[i] - want), mlx_off = fabs((double)y[i] - mlx[i]);
        if (!(off <= tolerance * sqrt(size)) ||
            (act == MXD_ACT_F32 && !(mlx_off <= 1e-5 * sqrt(size))))
            fail_msg("%s, activations %d: token %d row %d is %g, want %g, MLX %g (size %g)",
                     f->name, (int)act, i / F_ROWS, i % F_ROWS, y[i], want, mlx[i], sqrt(size));
    }
    free(w), free(mlx), free(y);
}

TEST(backend_formats_multiply_as_mlx_does) {
    static const double tolerance[] = {
        [MXD_ACT_I8] = 0.03, [MXD_ACT_I16] = 2e-4, [MXD_ACT_F32] = 2e-6};
    mxd_st *st = open_formats();
    float *x = format_floats(st, "x", "");
    for (size_t i = 0; i < MXD_COUNT(formats); i++)
        for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++)
            check_format_product(st, &formats[i], x, (mxd_activations)act, tolerance[act]);
    free(x);
    mxd_st_close(st);
}

TEST(backend_formats_have_equal_bits_in_every_table) {
    mxd_st *st = open_formats();
    float *x = format_floats(st, "x", "");
    const mxd_kernels *tables[8];
    size_t n = mxd_kernels_usable(tables, 8), bytes = F_TOKENS * F_ROWS * sizeof(float);
    for (size_t i = 0; i < MXD_COUNT(formats); i++)
        for (int act = MXD_ACT_I8; act <= MXD_ACT_F32; act++) {
            mxd_backend_opts o = {
                .threads = 1, .activations = (mxd_activations)act, .kernels = "scalar"};
            float *want = format_product(st, &formats[i], o, x);
            for (size_t t = 0; t < n; t++)
                for (o.threads = 1; o.threads <= 3; o.threads += 2) {
                    o.kernels = tables[t]->name;
                    float *got = format_product(st, &formats[i], o, x);
                    if (memcmp(got, want, bytes))
                        fail_msg("%s, activations %d: %s with %d threads differs from scalar",
                                 formats[i].name, act, o.kernels, o.threads);
                    free(got);
                }
            free(want);
        }
    free(x);
    mxd_st_close(st);
}

TEST(backend_format_slices_have_the_bits_of_the_whole) {
    enum { FROM = 3, N = 11 };
    mxd_st *st = open_formats();
    float *x = format_floats(st, "x", "");
    for (size_t i = 0; i < MXD_COUNT(formats); i++) {
        float *whole = format_product(st, &formats[i], (mxd_backend_opts){.threads = 1}, x);
        mxd_weight_src s = format_src(st, &formats[i]);
        s.row0 = FROM;
        s.rows = N;
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        float *part = one_linear(b, load(b, &s), F_TOKENS, F_IN, N, x);
        b->ops->close(b);
        for (int t = 0; t < F_TOKENS; t++)
            if (memcmp(part + t * N, whole + t * F_ROWS + FROM, N * sizeof *part))
                fail_msg("%s: token %d differs", formats[i].name, t);
        free(whole), free(part);
    }
    free(x);
    mxd_st_close(st);
}

TEST(backend_column_slices_have_the_bits_of_the_whole) {
    mxd_st *st = open_formats();
    for (size_t i = 0; i < MXD_COUNT(formats); i++) {
        float whole[F_ROWS * F_IN], part[F_ROWS * F_IN];
        int group = 16; /* cuts most groups */
        format_rows(st, &formats[i], 0, F_IN, false, whole);
        for (int col0 = 0; group < F_IN && col0 < F_IN; col0 += group)
            for (int span = 0; span <= (col0 > 0); span++) {
                format_rows(st, &formats[i], col0, group, span, part);
                for (int r = 0; r < F_ROWS; r++)
                    if (memcmp(part + r * group, whole + r * F_IN + col0,
                               (size_t)group * sizeof *part))
                        fail_msg("%s: row %d from column %d differs", formats[i].name, r, col0);
            }
    }
    mxd_st_close(st);
}

TEST(backend_refuses_columns_that_do_not_fit) {
    static const struct {
        const char *name;
        mxd_quant q;
        unsigned use;
        int col0, cols;
        mxd_rc rc;
        int span0, span;
    } rows[] = {
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 64, 32, MXD_OK, 32, 64},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 64, 64, MXD_E_INVAL, 32, 64},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 0, 32, MXD_E_INVAL, 32, 64},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 96, 32, MXD_E_INVAL, 64, 96},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 96, 32, MXD_E_INVAL, 64, -1},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 64, 32, MXD_OK, 48, 64},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 96, 32, MXD_OK},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 96, 64, MXD_E_INVAL},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, -32, 64, MXD_E_INVAL},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 32, 0, MXD_E_INVAL},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 16, 32, MXD_OK}, /* cuts groups */
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LOOKUP, 32, 16, MXD_OK},
        {"affine4g32", {MXD_Q_AFFINE, 4, 32}, MXD_W_LINEAR, 32, 32, MXD_E_INVAL},
    };
    mxd_st *st = open_formats();
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        const format f = {rows[i].name, rows[i].q};
        mxd_weight_src s = format_src(st, &f);
        s.use = rows[i].use;
        s.col0 = rows[i].col0;
        s.cols = rows[i].cols;
        s.span0 = rows[i].span0;
        s.span = rows[i].span;
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        mxd_weight *w = NULL;
        mxd_err err = {0};
        mxd_rc rc = b->ops->load(b, &s, &w, &err);
        if (rc != rows[i].rc) fail_msg("row %zu: %s: %s", i, mxd_rc_name(rc), err.msg);
        b->ops->close(b);
    }
    mxd_st_close(st);
}

/* As many bits per weight as in the file: rows are filled up to whole tiles, and that is all. */
TEST(backend_formats_take_the_memory_of_the_file) {
    enum { TILED = (F_ROWS + 15) / 16 * 16, OWN = 512 };
    mxd_st *st = open_formats();
    for (size_t i = 0; i < MXD_COUNT(formats); i++) {
        mxd_weight_src s = format_src(st, &formats[i]);
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        uint64_t before = b->ops->bytes(b);
        uint64_t file = s.weight->bytes + s.scales->bytes + (s.biases ? s.biases->bytes : 0);
        load(b, &s);
        uint64_t held = b->ops->bytes(b) - before, want = file / F_ROWS * TILED;
        if (held < want || held > want + OWN)
            fail_msg("%s: %d bytes held, want %d", formats[i].name, (int)held, (int)want);
        b->ops->close(b);
    }
    mxd_st_close(st);
}

TEST(backend_formats_refuse_parts_that_do_not_fit) {
    static const struct {
        const char *what, *weight, *scales;
        mxd_quant q;
        int in, block_k;
        mxd_rc rc;
    } lies[] = {
        {"honest", "mxfp4", "mxfp4", {MXD_Q_MXFP4, 4, 32}, F_IN, 32, MXD_OK},
        {"no scales", "nvfp4", "nothing", {MXD_Q_NVFP4, 4, 16}, F_IN, 16, MXD_E_FORMAT},
        {"scales of bf16", "mxfp4", "affine4g32", {MXD_Q_MXFP4, 4, 32}, F_IN, 32, MXD_E_FORMAT},
        {"scales of bytes", "affine4g32", "mxfp4", {MXD_Q_AFFINE, 4, 32}, F_IN, 32, MXD_E_FORMAT},
        {"scales of nvfp4", "mxfp4", "nvfp4", {MXD_Q_MXFP4, 4, 32}, F_IN, 32, MXD_E_FORMAT},
        {"words of mxfp8", "mxfp8", "mxfp4", {MXD_Q_MXFP4, 4, 32}, F_IN, 32, MXD_E_FORMAT},
        {"affine groups of 16",
         "affine4g32",
         "affine4g32",
         {MXD_Q_AFFINE, 4, 16},
         F_IN,
         16,
         MXD_E_UNSUPPORTED},
        {"mxfp4 of 16", "nvfp4", "nvfp4", {MXD_Q_MXFP4, 4, 16}, F_IN, 16, MXD_E_UNSUPPORTED},
        {"mxfp8 of 4 bits", "mxfp8", "mxfp8", {MXD_Q_MXFP8, 4, 32}, F_IN, 32, MXD_E_UNSUPPORTED},
        {"one bit", "affine2g32", "affine2g32", {MXD_Q_AFFINE, 1, 32}, F_IN, 32, MXD_E_UNSUPPORTED},
        {"half a group", "mxfp8", "mxfp8", {MXD_Q_MXFP8, 8, 32}, F_IN - 16, 32, MXD_E_FORMAT},
        {"block cuts a group", "mxfp8", "mxfp8", {MXD_Q_MXFP8, 8, 32}, F_IN, 48, MXD_E_INVAL},
        {"a mode of tomorrow",
         "mxfp4",
         "mxfp4",
         {(mxd_qmode)9, 4, 32},
         F_IN,
         32,
         MXD_E_UNSUPPORTED},
    };
    mxd_st *st = open_formats();
    for (size_t i = 0; i < MXD_COUNT(lies); i++) {
        format f = {lies[i].weight, lies[i].q};
        mxd_weight_src s = format_src(st, &f);
        s.scales = format_tensor(st, lies[i].scales, ".scales");
        s.in = lies[i].in;
        s.block_k = lies[i].block_k;
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        mxd_weight *w = NULL;
        mxd_err err = {0};
        mxd_rc rc = b->ops->load(b, &s, &w, &err);
        if (rc != lies[i].rc) fail_msg("%s: %s: %s", lies[i].what, mxd_rc_name(rc), err.msg);
        b->ops->close(b);
    }
    mxd_st_close(st);
}

/* Four groups a row, the last scale of all is `scale`. */
static mxd_rc load_last_scale(mxd_qmode mode, int bits, int scale, mxd_err *err) {
    enum { IN = 4 * 32, OUT = 5 };
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, OUT, IN, bits, 32);
    kit_affine(&k, "s", MXD_DTYPE_BF16, OUT, 4, 8, 4); /* [OUT, 1] words: four bytes of scales */
    memset(k.t[3].data, 0x7f, k.t[3].bytes);
    k.t[3].dtype = MXD_DTYPE_U8;
    k.t[3].shape[1] = 4;
    k.t[3].data[k.t[3].bytes - 1] = (unsigned char)scale;
    kit_open(&k);
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, OUT, IN, bits, 32, 32);
    s.quant.mode = mode;
    s.scales = mxd_st_find(k.st, "s.weight");
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
    mxd_weight *w = NULL;
    mxd_rc rc = b->ops->load(b, &s, &w, err);
    b->ops->close(b);
    kit_end(&k);
    return rc;
}

/* Some element times such a scale is not finite. */
TEST(backend_formats_refuse_scales_without_end) {
    mxd_err err = {0};
    CHECK_OK(load_last_scale(MXD_Q_MXFP4, 4, 252, &err), &err);
    CHECK_EQ(load_last_scale(MXD_Q_MXFP4, 4, 253, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "2^126"));
    CHECK_OK(load_last_scale(MXD_Q_MXFP8, 8, 246, &err), &err);
    CHECK_EQ(load_last_scale(MXD_Q_MXFP8, 8, 247, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "2^120"));
}

TEST(backend_row_slices_have_the_bits_of_the_whole) {
    enum { OUT = 50, IN = 128, ROWS = 3 };
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, OUT, IN, 8, 64);
    kit_float(&k, "p", MXD_DTYPE_F16, OUT, IN, 1, 0);
    kit_open(&k);
    float *x = noise("x", ROWS * IN);
    for (int plain = 0; plain < 2; plain++) {
        mxd_weight_src s =
            kit_src(&k, plain ? "p" : "w", MXD_W_LINEAR, OUT, IN, plain ? 0 : 8, 64, 64);
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        float *whole = one_linear(b, load(b, &s), ROWS, IN, OUT, x);
        b->ops->close(b);
        s.row0 = 21;
        s.rows = 18;
        b = open_cpu((mxd_backend_opts){.threads = 1});
        float *part = one_linear(b, load(b, &s), ROWS, IN, 18, x);
        b->ops->close(b);
        for (int t = 0; t < ROWS; t++)
            CHECK(memcmp(part + t * 18, whole + t * OUT + 21, 18 * sizeof *part) == 0);
        free(whole);
        free(part);
    }
    free(x);
    kit_end(&k);
}

TEST(backend_embed_norm_gated_add_pick) {
    enum { VOCAB = 21, W = 64, ROWS = 4 };
    kit k;
    kit_begin(&k);
    kit_affine(&k, "e", MXD_DTYPE_BF16, VOCAB, W, 8, 64);
    kit_float(&k, "n", MXD_DTYPE_BF16, 0, 16, 1, 0);
    kit_open(&k);
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
    mxd_weight_src es = kit_src(&k, "e", MXD_W_LOOKUP, VOCAB, W, 8, 64, 0);
    mxd_weight_src ns = kit_src(&k, "n", MXD_W_VECTOR, 1, 16, 0, 0, 0);
    ns.add = 1;
    mxd_weight *e = load(b, &es), *n = load(b, &ns);
    setup(b, ROWS, 3, (int[]){W, W, W});
    int32_t ids[ROWS] = {20, 0, 15, 16};
    mxd_run run = {0, ROWS, 0, NULL};
    mxd_batch batch = {ROWS, 1, &run, ids};
    float x[ROWS * W], y[ROWS * W], g[ROWS * W], sum[2 * W];
    mxd_err err = {0};
    b->ops->begin(b, &batch);
    b->ops->embed(b, 0, e);
    b->ops->norm(b, 1, 0, n, 1e-6f);
    b->ops->gated(b, 2, 0, 1, MXD_SILU);
    CHECK_OK(b->ops->output(b, 0, x, &err), &err);
    CHECK_OK(b->ops->output(b, 1, y, &err), &err);
    CHECK_OK(b->ops->output(b, 2, g, &err), &err);
    b->ops->add(b, 2, 0);
    b->ops->pick(b, 2, 2, (int[]){1, 3}, 2);
    CHECK_OK(b->ops->output(b, 2, sum, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < W; i++) {
            double v = kit_value(&k, &es, ids[t], i), ss = 0, at = x[t * W + i];
            CHECK(fabs(at - v) <= 1e-6);
            for (int j = i / 16 * 16; j < i / 16 * 16 + 16; j++) ss += pow(x[t * W + j], 2);
            double want = at / sqrt(ss / 16 + 1e-6) * (kit_value(&k, &ns, 0, i % 16) + 1);
            CHECK(fabs(y[t * W + i] - want) <= 1e-5 * fabs(want) + 1e-7);
            want = at / (1 + exp(-at)) * y[t * W + i];
            CHECK(fabs(g[t * W + i] - want) <= 1e-5 * fabs(want) + 1e-7);
            if (t % 2) CHECK(sum[t / 2 * W + i] == g[t * W + i] + x[t * W + i]);
        }
    b->ops->close(b);
    kit_end(&k);
}

/* Small and large weights in turn, so that slabs are begun, filled and left. */
TEST(backend_weights_do_not_share_bytes) {
    enum { N = 6, W = 512 };
    static const int rows[N] = {3, 700, 40, 2100, 900, 17};
    kit k;
    kit_begin(&k);
    for (int i = 0; i < N; i++)
        kit_float(&k, (const char[]){(char)('a' + i), 0}, MXD_DTYPE_F32, rows[i], W, 1, 0);
    kit_open(&k);
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 2});
    mxd_weight_src src[N];
    mxd_weight *w[N];
    for (int i = 0; i < N; i++) {
        src[i] = kit_src(&k, (const char[]){(char)('a' + i), 0}, MXD_W_LOOKUP, rows[i], W, 0, 0, 0);
        w[i] = load(b, &src[i]);
    }
    setup(b, 3, 1, (int[]){W});
    for (int i = 0; i < N; i++) {
        int32_t ids[3] = {0, rows[i] / 2, rows[i] - 1};
        mxd_run run = {0, 3, 0, NULL};
        mxd_batch batch = {3, 1, &run, ids};
        float x[3 * W];
        mxd_err err = {0};
        b->ops->begin(b, &batch);
        b->ops->embed(b, 0, w[i]);
        CHECK_OK(b->ops->output(b, 0, x, &err), &err);
        CHECK_OK(b->ops->end(b, &err), &err);
        for (int c = 0; c < 3 * W; c++)
            CHECK(x[c] == (float)kit_value(&k, &src[i], ids[c / W], c % W));
    }
    b->ops->close(b);
    kit_end(&k);
}

/* Aside or in memory, a table has the same rows; and a folder that is of no use is no error. */
TEST(backend_tables_may_lie_aside) {
    enum { ROWS = 700, W = 128 };
    kit k;
    kit_begin(&k);
    kit_affine(&k, "t", MXD_DTYPE_BF16, ROWS, W, 8, 64);
    kit_open(&k);
    const char *dirs[] = {NULL, k.dir, "/nowhere/at/all"};
    float x[3][3 * W];
    for (int i = 0; i < 3; i++) {
        mxd_backend *b =
            open_cpu((mxd_backend_opts){.threads = 2, .scratch_dir = dirs[i], .aside_least = 1});
        mxd_weight_src src = kit_src(&k, "t", MXD_W_LOOKUP, ROWS, W, 8, 64, 0);
        mxd_weight *w = load(b, &src);
        bool aside = b->ops->bytes(b) < ROWS * W;
        CHECK(i == 1 || !aside);
        if (i == 1 && !aside) print_message("# no disk in %s: nothing lay aside\n", k.dir);
        setup(b, 3, 1, (int[]){W});
        for (int again = 0; again < 2; again++) { /* also after it has rested */
            int32_t ids[3] = {0, ROWS / 2, ROWS - 1};
            mxd_run run = {0, 3, 0, NULL};
            mxd_err err = {0};
            b->ops->begin(b, &(mxd_batch){3, 1, &run, ids});
            b->ops->embed(b, 0, w);
            CHECK_OK(b->ops->output(b, 0, x[i], &err), &err);
            CHECK_OK(b->ops->end(b, &err), &err);
        }
        b->ops->close(b);
        CHECK(memcmp(x[i], x[0], sizeof x[0]) == 0);
    }
    kit_end(&k);
}

/* ------------------------------------------------------------------------------------- failures */

typedef struct lie {
    const char *what;
    int out, in, bits, group, block_k, row0, rows;
    mxd_rc rc;
} lie;

TEST(backend_load_refuses_what_does_not_fit) {
    static const lie lies[] = {
        {"honest", 32, 128, 8, 64, 64, 0, 0, MXD_OK},
        {"more rows", 33, 128, 8, 64, 64, 0, 0, MXD_E_FORMAT},
        {"more columns", 32, 192, 8, 64, 64, 0, 0, MXD_E_FORMAT},
        {"another group", 32, 128, 8, 32, 64, 0, 0, MXD_E_FORMAT},
        {"another width", 32, 128, 4, 64, 64, 0, 0, MXD_E_FORMAT},
        {"bits that do not exist", 32, 128, 7, 64, 64, 0, 0, MXD_E_UNSUPPORTED},
        {"not quantised", 32, 128, 0, 0, 64, 0, 0, MXD_E_UNSUPPORTED},
        {"block cuts a group", 32, 128, 8, 64, 96, 0, 0, MXD_E_INVAL},
        {"no block", 32, 128, 8, 64, 0, 0, 0, MXD_E_INVAL},
        {"part behind the end", 32, 128, 8, 64, 64, 16, 17, MXD_E_INVAL},
        {"part at the end", 32, 128, 8, 64, 64, 16, 16, MXD_OK},
        {"part before the start", 32, 128, 8, 64, 64, -1, 8, MXD_E_INVAL},
    };
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, 32, 128, 8, 64);
    kit_open(&k);
    for (size_t i = 0; i < MXD_COUNT(lies); i++) {
        const lie *l = &lies[i];
        mxd_weight_src s =
            kit_src(&k, "w", MXD_W_LINEAR, l->out, l->in, l->bits, l->group, l->block_k);
        s.row0 = l->row0;
        s.rows = l->rows;
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        mxd_weight *w = NULL;
        mxd_err err = {0};
        mxd_rc rc = b->ops->load(b, &s, &w, &err);
        if (rc != l->rc) fail_msg("%s: %s: %s", l->what, mxd_rc_name(rc), err.msg);
        CHECK((w != NULL) == (rc == MXD_OK));
        b->ops->close(b);
    }
    kit_end(&k);
}

TEST(backend_load_reports_a_file_that_became_shorter) {
    kit k;
    kit_begin(&k);
    kit_affine(&k, "w", MXD_DTYPE_BF16, 64, 128, 8, 64);
    kit_open(&k);
    FILE *f = fopen(k.file, "wb"); /* empties it */
    CHECK(f && fclose(f) == 0);
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, 64, 128, 8, 64, 64);
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 2});
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_EQ(b->ops->load(b, &s, &w, &err), MXD_E_IO);
    CHECK(strstr(err.msg, "w") != NULL);
    b->ops->close(b);
    kit_end(&k);
}

TEST(backend_the_first_failure_of_a_step_sticks) {
    kit k;
    kit_begin(&k);
    kit_float(&k, "e", MXD_DTYPE_F16, 10, 16, 1, 0);
    kit_open(&k);
    mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
    mxd_weight_src s = kit_src(&k, "e", MXD_W_LOOKUP, 10, 16, 0, 0, 0);
    mxd_weight *e = load(b, &s);
    setup(b, 2, 2, (int[]){16, 16});
    int32_t bad[2] = {3, 10}, good[2] = {3, 9};
    mxd_run run = {0, 2, 0, NULL}, far = {0, 2, 511, NULL}, gap = {1, 1, 0, NULL};
    float y[32];
    mxd_err err = {0};
    b->ops->begin(b, &(mxd_batch){2, 1, &run, bad});
    b->ops->embed(b, 0, e);
    b->ops->add(b, 1, 0);
    CHECK_EQ(b->ops->output(b, 1, y, &err), MXD_E_INVAL);
    CHECK_EQ(b->ops->end(b, &err), MXD_OK); /* has been told */
    b->ops->begin(b, &(mxd_batch){2, 1, &far, good});
    CHECK_EQ(b->ops->end(b, &err), MXD_E_CONTEXT);
    b->ops->begin(b, &(mxd_batch){2, 1, &gap, good});
    CHECK_EQ(b->ops->end(b, &err), MXD_E_INTERNAL);
    b->ops->begin(b, &(mxd_batch){2, 1, &run, good});
    b->ops->embed(b, 0, e);
    CHECK_OK(b->ops->output(b, 0, y, &err), &err);
    CHECK_OK(b->ops->end(b, &err), &err);
    b->ops->close(b);
    kit_end(&k);
}

TEST(backend_setup_refuses_impossible_shapes) {
    static const struct {
        int rows, width, reg_rows, context, pages;
        mxd_rc rc;
    } rows[] = {
        {8, 16, 8, 64, 2, MXD_OK},       {8, 16, 1, 64, 2, MXD_OK},
        {8, 16, 0, 64, 2, MXD_E_INVAL},  {8, 16, 9, 64, 2, MXD_E_INVAL},
        {0, 16, 1, 64, 2, MXD_E_INVAL},  {MXD_MAX_STEP_TOKENS, 16, 1, 64, 2, MXD_OK},
        {8, 0, 1, 64, 2, MXD_E_INVAL},   {MXD_MAX_STEP_TOKENS + 1, 16, 1, 64, 2, MXD_E_INVAL},
        {8, 16, 1, 0, 2, MXD_E_INVAL},   {8, 16, 1, MXD_MAX_CONTEXT + 1, 2, MXD_E_INVAL},
        {8, 16, 1, 64, -1, MXD_E_INVAL},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_backend *b = open_cpu((mxd_backend_opts){.threads = 1});
        mxd_err err = {0};
        mxd_kv_spec kv = {1, 16};
        mxd_step_shape s = {
            rows[i].rows,   1, &rows[i].width, &rows[i].reg_rows, 1, &kv, rows[i].pages,
            rows[i].context};
        uint64_t before = b->ops->bytes(b);
        if (b->ops->setup(b, &s, &err) != rows[i].rc) fail_msg("shape %zu: %s", i, err.msg);
        CHECK((b->ops->bytes(b) > before) == (rows[i].rc == MXD_OK));
        b->ops->close(b);
    }
}

TEST(backend_open_by_name) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    CHECK_EQ(mxd_backend_open(&b, &mxd_alloc_libc, "tpu", NULL, &err), MXD_E_NOTFOUND);
    mxd_backend_opts o = {.kernels = "mmx"};
    CHECK_EQ(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", &o, &err), MXD_E_INVAL);
    o = (mxd_backend_opts){.threads = MXD_MAX_THREADS + 1};
    CHECK_EQ(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", &o, &err), MXD_E_INVAL);
    CHECK(b == NULL);
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
    CHECK_STR(b->ops->name, "cpu");
    CHECK_STR(b->ops->determinism, "bit-exact");
    b->ops->close(b);
}

TEST_OOM(backend_load_and_setup_unwind) {
    static kit k; /* outlives a run that fails */
    if (!k.st) {
        kit_begin(&k);
        kit_affine(&k, "w", MXD_DTYPE_BF16, 20, 64, 8, 64);
        kit_float(&k, "b", MXD_DTYPE_F16, 0, 20, 1, 0);
        kit_float(&k, "n", MXD_DTYPE_F32, 0, 64, 1, 0);
        kit_open(&k);
    }
    mxd_weight_src s = kit_src(&k, "w", MXD_W_LINEAR, 20, 64, 8, 64, 64);
    mxd_weight_src v = kit_src(&k, "n", MXD_W_VECTOR, 1, 64, 0, 0, 0);
    s.bias = mxd_st_find(k.st, "b.weight");
    mxd_backend *b = NULL;
    mxd_weight *w = NULL;
    mxd_kv_spec kv = {1, 16};
    mxd_step_shape shape = {.max_rows = 2,
                            .n_regs = 1,
                            .reg_width = (int[]){64},
                            .n_layers = 1,
                            .kv = &kv,
                            .n_pages = 2,
                            .max_context = 64};
    MXD_TRY(mxd_backend_open(&b, al, "cpu", &(mxd_backend_opts){.threads = 2}, err));
    mxd_rc rc = b->ops->load(b, &s, &w, err);
    if (!rc) rc = b->ops->load(b, &v, &w, err);
    if (!rc) rc = b->ops->setup(b, &shape, err);
    b->ops->close(b);
    if (!rc) kit_end(&k);
    return rc;
}
