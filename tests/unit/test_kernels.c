/* Every kernel table gives the bits of scalar, for random shapes, every tail, every count. */
#include <math.h>
#include <stdlib.h>
#include "base/rand.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "test.h"

enum { ROUNDS = 1500, MAX_K = 1024, MAX_N = 1200, GUARD = 64 };

static uint64_t counter; /* of the test that runs */

static uint32_t pick(uint32_t below) { return (uint32_t)(mxd_rand_u64(1, 2, counter++) % below); }

static uint32_t pick_from(const uint32_t *choices, uint32_t n) { return choices[pick(n)]; }
#define PICK(...) \
    pick_from((const uint32_t[]){__VA_ARGS__}, (uint32_t)MXD_COUNT(((uint32_t[]){__VA_ARGS__})))

/* Differs in every lane; sizes over several powers of ten, both signs, now and then zero. */
static float noise(void) {
    float f = mxd_rand_unit(1, 3, counter++) * 2 - 1;
    return pick(40) ? f * (float)(1 << pick(6)) : 0;
}

static float *floats(size_t n) {
    float *x = malloc((n + GUARD) * sizeof *x);
    for (size_t i = 0; i < n + GUARD; i++) x[i] = noise();
    return x;
}

static void *copy(const void *p, size_t bytes) {
    void *q = malloc(bytes);
    memcpy(q, p, bytes);
    return q;
}

static void fill_floats(uint8_t *p, mxd_ftype t, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float f = noise() * 0.05f;
        uint16_t h = t == MXD_F16 ? mxd_f32_to_f16(f) : (uint16_t)(mxd_float_bits(f) >> 16);
        if (t == MXD_F32)
            memcpy(p + 4 * i, &f, 4);
        else
            memcpy(p + 2 * i, &h, 2);
    }
}

static void same(const char *table, const char *what, const void *got, const void *want,
                 size_t n_floats, const char *shape) {
    if (memcmp(got, want, n_floats * sizeof(float)) == 0) return;
    const float *g = got, *w = want;
    for (size_t i = 0; i < n_floats; i++)
        if (memcmp(g + i, w + i, sizeof *g))
            fail_msg("%s %s %s: [%zu] is %a, want %a", table, what, shape, i, (double)g[i],
                     (double)w[i]);
}

static const mxd_kernels *scalar(void) { return mxd_kernels_find("scalar"); }

/* Calls check(table, round) for every fast table; the same inputs for each. */
static void each_table(void (*check)(const mxd_kernels *k, int round), int rounds) {
    const mxd_kernels *tables[8];
    size_t n = mxd_kernels_usable(tables, 8);
    CHECK_STR(tables[n - 1]->name, "scalar");
    CHECK(mxd_kernels_best() == tables[0]);
    for (size_t t = 0; t < n; t++) /* scalar against itself: are the functions pure? */
        for (int round = 0; round < rounds; round++) {
            counter = (uint64_t)round << 32;
            check(tables[t], round);
        }
}

/* ---------------------------------------------------------------------------------- conversions */

TEST(kernels_half_floats_all_values) {
    const mxd_kernels *tables[8];
    size_t n = mxd_kernels_usable(tables, 8);
    static uint16_t in[65536 + 3], back[65536];
    static float half[65536], brain[65536];
    for (int i = 0; i < 65536; i++) in[i] = (uint16_t)i;
    for (size_t t = 0; t < n; t++) {
        tables[t]->f32_from_f16(half, in, 65536);
        tables[t]->f32_from_bf16(brain, in, 65536);
        tables[t]->f16_from_f32(back, half, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            uint32_t exp = i >> 10 & 31, frac = i & 1023;
            double want = exp ? ldexp(1024 + frac, (int)exp - 25) : ldexp(frac, -24);
            want = i & 0x8000 ? -want : want;
            if (exp < 31) CHECK((double)half[i] == want && !signbit(half[i]) == !(i & 0x8000));
            if (exp == 31) CHECK(frac ? isnan(half[i]) : isinf(half[i]));
            CHECK_EQ(mxd_float_bits(half[i]), mxd_float_bits(mxd_f16_to_f32((uint16_t)i)));
            CHECK_EQ(mxd_float_bits(brain[i]), i << 16);
            CHECK_EQ(back[i], exp == 31 && frac ? i | 0x200 : i); /* NaNs become quiet */
        }
    }
}

static void check_f16_from_f32(const mxd_kernels *k, int round) {
    enum { N = 4099 };
    static float x[N];
    static uint16_t got[N], want[N];
    for (int i = 0; i < N; i++) { /* any bits at all, and values between two halves */
        uint32_t bits = (uint32_t)mxd_rand_u64(9, (uint64_t)round, (uint64_t)i);
        if (i % 2) bits = (bits & 0x80ffffff) % 0x10000000 + 0x38000000 + (bits & 0x80000000);
        if (i % 4 == 3) bits = (bits & 0xffffe000) | 0x1000; /* a tie */
        x[i] = mxd_bits_float(bits);
    }
    k->f16_from_f32(got, x, N);
    scalar()->f16_from_f32(want, x, N);
    for (int i = 0; i < N; i++)
        if (got[i] != want[i])
            fail_msg("%s: %a to %04x, want %04x", k->name, x[i], got[i], want[i]);
}

TEST(kernels_f16_from_any_float) { each_table(check_f16_from_f32, 50); }

TEST(kernels_f16_rounds_to_nearest_even) {
    static const struct {
        float f;
        uint16_t h;
    } rows[] = {{1, 0x3c00},
                {1 + 0x1p-11f, 0x3c00},
                {1 + 0x3p-11f, 0x3c02},
                {65504, 0x7bff},
                {65519.996f, 0x7bff},
                {65520, 0x7c00},
                {0x1p-24f, 1},
                {0x1p-25f, 0},
                {0x1.000002p-25f, 1},
                {0x1p-14f, 0x0400},
                {0x1p-14f - 0x1p-25f, 0x0400},
                {0x3p-25f, 2},
                {-0x1p-26f, 0x8000},
                {1e30f, 0x7c00}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) CHECK_EQ(mxd_f32_to_f16(rows[i].f), rows[i].h);
}

/* ------------------------------------------------------------------------------------- products */

typedef struct qcase {
    mxd_qshape s;
    int n;
    size_t ldx, ldy;
    uint8_t *tile;
    float *x;
    char name[128];
} qcase;

/* The tile, the input and the name of a case whose shape stands. */
static void qcase_fill(qcase *c) {
    c->tile = malloc(mxd_qtile_bytes(&c->s));
    uint8_t *at = c->tile;
    size_t codes = mxd_qcode_bytes(&c->s), groups = c->s.k / (size_t)c->s.group;
    if (c->s.kind != MXD_AFFINE) { /* random scales too, now and then a very small or large one */
        for (size_t i = 0; i < mxd_qtile_bytes(&c->s); i++) at[i] = (uint8_t)pick(256);
        for (size_t i = 0; i < (groups + 3) / 4 * 4 * 16; i++) {
            uint32_t most = c->s.kind == MXD_MXFP4 ? 252 : c->s.kind == MXD_MXFP8 ? 246 : 255;
            uint32_t scale = c->s.kind == MXD_NVFP4 || !pick(99) ? pick(most + 1) : 110 + pick(20);
            at[i / 64 * (64 + 4 * codes) + i % 64] = (uint8_t)scale;
        }
    }
    for (size_t g = 0; g < groups && c->s.kind == MXD_AFFINE; g++, at += mxd_qgroup_bytes(&c->s)) {
        for (size_t i = 0; i < codes; i++) at[i] = pick(8) ? (uint8_t)pick(256) : 255;
        fill_floats(at + codes, c->s.scales, 32);
    }
    c->x = floats((size_t)c->n * c->ldx);
    if (!pick(4)) /* the largest codes everywhere: where 16-bit sums would saturate */
        for (size_t i = 0; i < (size_t)c->n * c->ldx; i++) c->x[i] = 2;
    if (!pick(6)) memset(c->x, 0, (c->s.k / 2) * sizeof(float));
    snprintf(c->name, sizeof c->name, "k %zu block %zu group %d bits %d kind %d scales %d n %d",
             c->s.k, c->s.block_k, c->s.group, c->s.bits, (int)c->s.kind, (int)c->s.scales, c->n);
}

static void qcase_shape(qcase *c, mxd_qkind kind, int group, int bits) {
    c->s = (mxd_qshape){.group = group, .bits = bits, .kind = kind, .scales = (mxd_ftype)pick(3)};
    c->s.k = (1 + pick(MAX_K / (uint32_t)group)) * (size_t)group;
    c->s.block_k = (1 + pick(4)) * (size_t)group;
    c->n = 1 + (int)pick(MXD_PANEL);
    c->ldx = c->s.k + pick(20);
    c->ldy = 16 + pick(20);
}

/* 4 or 8 bits. group: 0, any of an affine file. */
static void qcase_make(qcase *c, int group) {
    int any = (int)PICK(32, 64, 128), bits = (int)PICK(8, 8, 4);
    qcase_shape(c, MXD_AFFINE, group ? group : any, bits);
    qcase_fill(c);
}

/* The other formats, in turn; the last is MXD_MXFP8. */
enum { N_NARROW = 15 };
static void qcase_narrow(qcase *c, int i) {
    static const int bits[] = {2, 3, 5, 6};
    static const mxd_qkind kinds[] = {MXD_MXFP4, MXD_NVFP4, MXD_MXFP8};
    if (i < 12)
        qcase_shape(c, MXD_AFFINE, 32 << i % 3, bits[i / 3]);
    else
        qcase_shape(c, kinds[i - 12], i == 13 ? 16 : 32, i == 14 ? 8 : 4);
    qcase_fill(c);
    if (i < 14 && !pick(4)) { /* the largest codes, of both signs of x */
        size_t codes = mxd_qcode_bytes(&c->s);
        for (size_t g = 0; g < c->s.k / (size_t)c->s.group; g++)
            memset(c->tile + (i < 12 ? g * mxd_qgroup_bytes(&c->s) : (g / 4 + 1) * 64 + g * codes),
                   i < 12 ? 255 : 0x77, codes);
        for (size_t j = 0; j < (size_t)c->n * c->ldx; j++) c->x[j] = j / c->ldx % 2 ? -2 : 2;
    }
}

static void qcase_free(qcase *c) {
    free(c->tile);
    free(c->x);
}

static mxd_panel panel_new(const qcase *c) {
    mxd_panel p = {.n = c->n, .g = mxd_act_group(c->s.group), .k = c->s.k};
    p.q = calloc(p.k * (size_t)p.n, 2);
    p.s = calloc(p.k / (size_t)p.g * (size_t)p.n, sizeof *p.s);
    p.b = calloc(p.k / (size_t)p.g * (size_t)p.n, sizeof *p.b);
    return p;
}

static void panel_free(mxd_panel *p) {
    free(p->q);
    free(p->s);
    free(p->b);
}

static void check_integers(const mxd_kernels *k, qcase c, bool wide) {
    mxd_panel a = panel_new(&c), b = panel_new(&c);
    (wide ? k->quantise_i16 : k->quantise_i8)(&a, c.x, c.ldx);
    (wide ? scalar()->quantise_i16 : scalar()->quantise_i8)(&b, c.x, c.ldx);
    size_t scales = c.s.k / (size_t)a.g * (size_t)c.n, n_y = (size_t)c.n * c.ldy;
    if (memcmp(a.q, b.q, c.s.k * (size_t)c.n * (wide ? 2 : 1)))
        fail_msg("%s: codes of %s", k->name, c.name);
    same(k->name, "scales of", a.s, b.s, scales, c.name);
    same(k->name, "sums of", a.b, b.b, scales, c.name);
    float *got = calloc(n_y, sizeof *got), *want = calloc(n_y, sizeof *want);
    (wide ? k->qmul_i16 : k->qmul_i8)(got, c.ldy, c.tile, &c.s, &a);
    (wide ? scalar()->qmul_i16 : scalar()->qmul_i8)(want, c.ldy, c.tile, &c.s, &a);
    same(k->name, wide ? "qmul_i16" : "qmul_i8", got, want, n_y, c.name);
    panel_free(&a);
    panel_free(&b);
    free(got);
    free(want);
    qcase_free(&c);
}

static void check_qmul(const mxd_kernels *k, int round) {
    qcase c;
    qcase_make(&c, round % 16 < 4 ? 16 : 0);
    check_integers(k, c, round % 4 == 0);
}

TEST(kernels_quantised_products) { each_table(check_qmul, ROUNDS); }

/* Every format and count of tokens comes with both kinds of activations. */
static void check_narrow(const mxd_kernels *k, int round) {
    qcase c;
    qcase_narrow(&c, round % (N_NARROW - 1));
    check_integers(k, c, round / (N_NARROW - 1) % 4 == 0);
}

TEST(kernels_narrow_products) { each_table(check_narrow, 3 * ROUNDS); }

static void check_floats(const mxd_kernels *k, qcase c) {
    size_t n_y = (size_t)c.n * c.ldy;
    float *got = calloc(n_y, sizeof *got), *want = calloc(n_y, sizeof *want);
    k->qmul_f32(got, c.ldy, c.tile, &c.s, c.x, c.ldx, c.n);
    scalar()->qmul_f32(want, c.ldy, c.tile, &c.s, c.x, c.ldx, c.n);
    same(k->name, "qmul_f32", got, want, n_y, c.name);
    free(got);
    free(want);
    qcase_free(&c);
}

static void check_qmul_f32(const mxd_kernels *k, int round) {
    qcase c;
    qcase_make(&c, round % 5 ? 0 : 16);
    check_floats(k, c);
}

static void check_narrow_f32(const mxd_kernels *k, int round) {
    qcase c;
    qcase_narrow(&c, round % 2 ? N_NARROW - 1 : round / 2 % N_NARROW);
    check_floats(k, c);
}

TEST(kernels_quantised_products_f32) { each_table(check_qmul_f32, 300); }
TEST(kernels_narrow_products_f32) { each_table(check_narrow_f32, 1000); }

TEST(kernels_quantise_odd_values) {
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    float x[64] = {1, -2, 3}, s, b;
    int8_t q[64];
    mxd_panel p = {.n = 1, .g = 64, .k = 64, .q = q, .s = &s, .b = &b};
    for (size_t t = 0; t < n_tables; t++) {
        const float bad[] = {NAN, INFINITY, -INFINITY};
        for (size_t i = 0; i < 3; i++) {
            x[63] = bad[i];
            tables[t]->quantise_i8(&p, x, 64);
            CHECK(isnan(s) && isnan(b) && q[0] == 0);
        }
        x[63] = 0;
        tables[t]->quantise_i8(&p, x, 64);
        CHECK(s == 3.0f / 127 && q[2] == 127 && q[1] == -85 && q[0] == 42);
        float small[64] = {0x1p-126f, -0x1p-149f, 0x1.8p-101f};
        tables[t]->quantise_i8(&p, small, 64);
        CHECK(s == 0 && b == 0 && q[2] == 0);
        small[2] = 0x1p-100f;
        tables[t]->quantise_i8(&p, small, 64);
        CHECK(s > 0 && q[2] == 127);
    }
}

static void check_plain(const mxd_kernels *k, int round) {
    (void)round;
    mxd_ftype type = (mxd_ftype)pick(3);
    size_t cols = 1 + pick(400), padded = (cols + 15) / 16 * 16, block = 16 * (1 + pick(9));
    int n = 1 + (int)pick(MXD_PANEL);
    size_t ldx = padded + pick(9), ldy = 16 + pick(9), n_y = (size_t)n * ldy;
    uint8_t *tile = malloc(mxd_ftile_bytes(cols, type));
    fill_floats(tile, type, padded * MXD_TILE_ROWS);
    float *x = floats((size_t)n * ldx);
    float *got = calloc(n_y, sizeof *got), *want = calloc(n_y, sizeof *want);
    k->plain_mul(got, ldy, tile, type, cols, block, x, ldx, n);
    scalar()->plain_mul(want, ldy, tile, type, cols, block, x, ldx, n);
    char shape[80];
    snprintf(shape, sizeof shape, "k %zu block %zu type %d n %d", cols, block, (int)type, n);
    same(k->name, "plain_mul", got, want, n_y, shape);
    free(tile);
    free(x);
    free(got);
    free(want);
}

TEST(kernels_plain_products) { each_table(check_plain, ROUNDS / 2); }

/* ----------------------------------------------------------------------------------- row by row */

TEST(kernels_activations_mean_what_they_say) {
    float x[241], up[241], y[241];
    for (int i = 0; i <= 240; i++) x[i] = (float)(i - 120) / 12, up[i] = (float)(i % 19) - 9.5f;
    double worst = 0;
    scalar()->gelu_mul(y, x, up, 241);
    for (int i = 0; i <= 240; i++) {
        double v = x[i], t = tanh(0.7978845608028654 * (v + 0.044715 * v * v * v));
        double e = fabs(y[i] - v / 2 * (1 + t) * up[i]);
        worst = e > worst ? e : worst;
    }
    CHECK(worst < 2e-5);
    scalar()->swiglu_oai(y, x, up, 241);
    for (int i = 0; i <= 240; i++) {
        double g = fmin(x[i], 7), u = fmax(fmin(up[i], 7), -7);
        CHECK(fabs(y[i] - g / (1 + exp(-1.702 * g)) * (u + 1)) < 2e-5);
    }
    memcpy(y, x, sizeof y);
    scalar()->softcap(y, 241, 3.0f);
    for (int i = 0; i <= 240; i++) CHECK(fabs(y[i] - 3 * tanh(x[i] / 3.0)) < 1e-6);
}

static void check_rows(const mxd_kernels *k, int round) {
    size_t n = round < 70 ? (size_t)round : 1 + pick(MAX_N);
    float *x = floats(n), *w = floats(n), *u = floats(n);
    float *got = copy(u, (n + GUARD) * sizeof *u), *want = copy(u, (n + GUARD) * sizeof *u);
    char shape[32];
    snprintf(shape, sizeof shape, "n %zu", n);
    if (n) k->rms_norm(got, x, w, n, 1e-5f);
    if (n) scalar()->rms_norm(want, x, w, n, 1e-5f);
    same(k->name, "rms_norm", got, want, n + GUARD, shape);
    for (size_t i = 0; i < n; i++) x[i] *= i % 7 ? 1 : 40; /* both ends of exp */
    const mxd_kernels *sc = scalar();
    struct {
        const char *name;
        void (*k)(float *, const float *, const float *, size_t);
        void (*s)(float *, const float *, const float *, size_t);
    } acts[] = {{"silu_mul", k->silu_mul, sc->silu_mul},
                {"gelu_mul", k->gelu_mul, sc->gelu_mul},
                {"sigmoid_mul", k->sigmoid_mul, sc->sigmoid_mul},
                {"swiglu_oai", k->swiglu_oai, sc->swiglu_oai}};
    for (size_t a = 0; a < sizeof acts / sizeof *acts; a++) {
        acts[a].k(got, x, w, n);
        acts[a].s(want, x, w, n);
        same(k->name, acts[a].name, got, want, n + GUARD, shape);
    }
    k->softcap(got, n, 3.0f);
    sc->softcap(want, n, 3.0f);
    same(k->name, "softcap", got, want, n + GUARD, shape);
    k->add(got, x, n);
    scalar()->add(want, x, n);
    same(k->name, "add", got, want, n + GUARD, shape);
    for (int inter = 0; inter < 2; inter++) {
        k->rope(got, w, u, n / 2, inter);
        scalar()->rope(want, w, u, n / 2, inter);
        same(k->name, "rope", got, want, n + GUARD, shape);
    }
    free(x), free(w), free(u), free(got), free(want);
}

TEST(kernels_row_functions) { each_table(check_rows, 400); }

/* ------------------------------------------------------------------------------------- attention
 */

static void check_softmax(const mxd_kernels *k, int round) {
    size_t n = round < 70 ? (size_t)round + 1 : 1 + pick(MAX_N), first = pick(600);
    float *got = floats(n), *want = copy(got, (n + GUARD) * sizeof *got);
    float a = k->softmax(got, n, 0.37f, first), b = scalar()->softmax(want, n, 0.37f, first);
    char shape[48];
    snprintf(shape, sizeof shape, "n %zu first %zu", n, first);
    same(k->name, "softmax", got, want, n + GUARD, shape);
    same(k->name, "softmax sum", &a, &b, 1, shape);
    free(got), free(want);
}

TEST(kernels_softmax) { each_table(check_softmax, 600); }

static void check_mix(const mxd_kernels *k, int round) {
    (void)round;
    mxd_ftype type = (mxd_ftype)pick(3);
    size_t d = 16 * (1 + pick(17)), n_pos = 1 + pick(32), ldp = n_pos + pick(9),
           ldacc = d + pick(9);
    int n = 1 + (int)pick(MXD_PANEL);
    uint8_t *v = malloc(n_pos * d * mxd_ftype_bytes(type));
    fill_floats(v, type, n_pos * d);
    float *p = floats((size_t)n * ldp), *got = floats((size_t)n * ldacc);
    float *want = copy(got, ((size_t)n * ldacc + GUARD) * sizeof *got);
    k->attn_mix(got, ldacc, p, ldp, v, type, n_pos, d, n);
    scalar()->attn_mix(want, ldacc, p, ldp, v, type, n_pos, d, n);
    char shape[64];
    snprintf(shape, sizeof shape, "d %zu positions %zu type %d n %d", d, n_pos, (int)type, n);
    same(k->name, "attn_mix", got, want, (size_t)n * ldacc + GUARD, shape);
    free(v), free(p), free(got), free(want);
}

TEST(kernels_attn_mix) { each_table(check_mix, 500); }

/* ------------------------------------------------------------------------- K and V of 8 bits */

enum { Q8_D = 304 };

/* A row of 8 bits, and its values. */
static void q8_row(uint8_t *row, float *values, size_t d) {
    float *x = floats(d);
    for (size_t i = 0; i < d; i++) x[i] *= 0.05f;
    uint16_t scales[Q8_D / MXD_Q8_GROUP + 1];
    scalar()->q8_from_f32((int8_t *)row, scales, x, d);
    memcpy(row + d, scales, mxd_q8_bytes(d) - d);
    for (size_t i = 0; i < d; i++)
        values[i] = (float)(int8_t)row[i] * mxd_bf16_to_f32(scales[i / MXD_Q8_GROUP]);
    free(x);
}

static void check_q8(const mxd_kernels *k, int round) {
    size_t d = 16 * (1 + (size_t)round % 19), n_pos = 16 + pick(17), ld = n_pos + pick(9);
    size_t ldx = d + pick(9), groups = (d + MXD_Q8_GROUP - 1) / MXD_Q8_GROUP;
    size_t bytes = mxd_q8_bytes(d);
    int n = 1 + (int)pick(MXD_PANEL);
    uint8_t *rows = malloc(n_pos * bytes), *tile = malloc(16 * bytes);
    float *values = floats(n_pos * d), *plain = floats(16 * d);
    for (size_t r = 0; r < n_pos; r++) {
        q8_row(rows + r * bytes, values + r * d, d);
        for (size_t c = 0; r < 16 && c < d; c++) {
            tile[c * 16 + r] = rows[r * bytes + c];
            plain[c * 16 + r] = values[r * d + c];
        }
        for (size_t g = 0; r < 16 && g < groups; g++)
            memcpy(tile + 16 * d + 2 * (16 * g + r), rows + r * bytes + d + 2 * g, 2);
    }
    float *x = floats((size_t)n * ldx), *p = floats((size_t)n * ld);
    float *got = floats((size_t)n * ldx),
          *want = copy(got, ((size_t)n * ldx + GUARD) * sizeof *got);
    char shape[64];
    snprintf(shape, sizeof shape, "d %zu positions %zu n %d", d, n_pos, n);
    k->q8_mix(got, ldx, p, ld, rows, n_pos, d, n);
    scalar()->attn_mix(want, ldx, p, ld, values, MXD_F32, n_pos, d, n);
    same(k->name, "q8_mix", got, want, (size_t)n * ldx + GUARD, shape);
    k->q8_mul(got, ldx, tile, d, x, ldx, n);
    scalar()->plain_mul(want, ldx, plain, MXD_F32, d, d, x, ldx, n);
    same(k->name, "q8_mul", got, want, (size_t)n * ldx + GUARD, shape);
    free(rows), free(tile), free(values), free(plain), free(x), free(p), free(got), free(want);
}

/* scalar too: its values are those that plain floats would be */
TEST(kernels_q8_is_the_floats_it_means) {
    each_table(check_q8, 400);
    for (int i = 0; i < 40; i++) check_q8(scalar(), i);
}

static void check_q8_codes(const mxd_kernels *k, int round) {
    size_t n = round < 70 ? (size_t)round + 1 : 1 + pick(Q8_D);
    float *x = floats(n);
    for (size_t i = 0; i < n; i++) x[i] *= ldexpf(1, (int)pick(200) - 100);
    if (pick(9) == 0) x[pick((uint32_t)n)] = pick(2) ? NAN : -INFINITY;
    if (pick(9) == 0)
        for (size_t i = 0; i < n && i < MXD_Q8_GROUP; i++) x[i] *= 0x1p-60f;
    int8_t got[Q8_D + 8] = {0}, want[Q8_D + 8] = {0};
    uint16_t s[Q8_D / MXD_Q8_GROUP + 2] = {0}, ws[Q8_D / MXD_Q8_GROUP + 2] = {0};
    k->q8_from_f32(got, s, x, n);
    scalar()->q8_from_f32(want, ws, x, n);
    if (memcmp(got, want, sizeof got) || memcmp(s, ws, sizeof s))
        fail_msg("%s q8_from_f32: n %zu, round %d", k->name, n, round);
    free(x);
}

TEST(kernels_q8_codes) { each_table(check_q8_codes, 600); }

/* Half a step of the rounded scale at most, and what is not finite stays visible. */
TEST(kernels_q8_is_near) {
    counter = 11;
    for (int round = 0; round < 20000; round++) {
        float x[MXD_Q8_GROUP], a = 0;
        int8_t q[MXD_Q8_GROUP];
        uint16_t s;
        for (int i = 0; i < MXD_Q8_GROUP; i++) {
            x[i] = noise();
            a = fabsf(x[i]) > a ? fabsf(x[i]) : a;
        }
        scalar()->q8_from_f32(q, &s, x, MXD_Q8_GROUP);
        float step = mxd_bf16_to_f32(s);
        CHECK(fabsf(step * 127 - a) <= a * 0x1p-8f);
        for (int i = 0; i < MXD_Q8_GROUP; i++)
            CHECK(fabsf((float)q[i] * step - x[i]) <= step * 0.5001f);
    }
    float x[33] = {[3] = 1, [32] = 0x1p-101f};
    int8_t q[33];
    uint16_t s[2];
    x[1] = INFINITY;
    scalar()->q8_from_f32(q, s, x, 33);
    CHECK(isnan(mxd_bf16_to_f32(s[0])) && q[3] == 0 && s[1] == 0 && q[32] == 0);
    x[1] = NAN;
    scalar()->q8_from_f32(q, s, x, 33);
    CHECK(isnan(mxd_bf16_to_f32(s[0])));
    x[1] = 3e38f;
    scalar()->q8_from_f32(q, s, x, 33);
    CHECK(q[1] == 127 && q[3] == 0 && isfinite(mxd_bf16_to_f32(s[0])));
}

/* ----------------------------------------------------------------------------------- delta rule */

static void check_conv(const mxd_kernels *k, int round) {
    size_t n = round < 70 ? (size_t)round + 1 : 1 + pick(MAX_N), taps = 1 + pick(6);
    size_t ldw = n + pick(9);
    float *w = floats(taps * ldw), *x[6], *got = floats(n);
    for (size_t j = 0; j < 6; j++) x[j] = floats(n);
    float *want = copy(got, (n + GUARD) * sizeof *got);
    char shape[48];
    snprintf(shape, sizeof shape, "n %zu taps %zu", n, taps);
    k->conv(got, (const float *const *)x, w, ldw, taps, n);
    scalar()->conv(want, (const float *const *)x, w, ldw, taps, n);
    same(k->name, "conv", got, want, n + GUARD, shape);
    k->conv(x[taps - 1], (const float *const *)x, w, ldw, taps, n); /* in place */
    same(k->name, "conv in place", x[taps - 1], want, n, shape);
    for (size_t j = 0; j < 6; j++) free(x[j]);
    free(w), free(got), free(want);
}

TEST(kernels_conv) { each_table(check_conv, 300); }

static void check_delta(const mxd_kernels *k, int round) {
    (void)round;
    size_t d_k = 4 * (1 + pick(40)), n = 1 + pick(5), rows = n * MXD_TILE_ROWS;
    float *s = floats(rows * d_k), *v = floats(rows), *key = floats(d_k), *q = floats(d_k);
    float *s2 = copy(s, (rows * d_k + GUARD) * sizeof *s), decay = 0.9f + 0.1f * noise() / 64;
    float *v2 = copy(v, (rows + GUARD) * sizeof *v), *y = floats(rows);
    float *y2 = copy(y, (rows + GUARD) * sizeof *y);
    char shape[48];
    snprintf(shape, sizeof shape, "d_k %zu tiles %zu", d_k, n);
    for (int step = 0; step < 3; step++) {
        k->delta_step(y, s, v, key, q, d_k, n, decay, 0.3f);
        scalar()->delta_step(y2, s2, v, key, q, d_k, n, decay, 0.3f);
        same(k->name, "delta_step y", y, y2, rows + GUARD, shape);
        same(k->name, "delta_step S", s, s2, rows * d_k + GUARD, shape);
    }
    k->delta_step(v, s, v, key, q, d_k, n, decay, 0.3f); /* in place */
    scalar()->delta_step(v2, s2, v2, key, q, d_k, n, decay, 0.3f);
    same(k->name, "delta_step in place", v, v2, rows + GUARD, shape);
    float *a = floats(rows), *b = floats(rows), *a2 = copy(a, (rows + GUARD) * sizeof *a);
    float *b2 = copy(b, (rows + GUARD) * sizeof *b);
    k->delta_gates(a, b, y, v, rows);
    scalar()->delta_gates(a2, b2, y, v, rows);
    same(k->name, "delta_gates a", a, a2, rows + GUARD, shape);
    same(k->name, "delta_gates b", b, b2, rows + GUARD, shape);
    free(s), free(s2), free(v), free(v2), free(y), free(y2), free(key), free(q);
    free(a), free(b), free(a2), free(b2);
}

TEST(kernels_delta_rule) { each_table(check_delta, 200); }

/* ------------------------------------------------------------------------------------- functions
 */

TEST(kernels_softplus_agrees_with_double) {
    for (int i = -870000; i <= 1200000; i += 7) {
        float x = (float)i * 1e-4f;
        double want = (double)x > 0 ? (double)x + log1p(exp(-(double)x)) : log1p(exp((double)x));
        CHECK(fabs(mxd_softplusf(x) - want) <= want * 3e-7);
    }
    CHECK(isnan(mxd_softplusf(NAN)) && isinf(mxd_softplusf(INFINITY)));
    CHECK(mxd_softplusf(-INFINITY) == 0);
}

TEST(kernels_exp_agrees_with_double) {
    for (int i = -1050000; i <= 1050000; i += 7) {
        float x = (float)i * 1e-4f;
        double want = exp((double)x), got = mxd_expf(x);
        if (x > 88.4f)
            CHECK(isinf(got));
        else if (x < -87.4f)
            CHECK(got == 0);
        else if (x > -87.3f && x < 88.3f)
            CHECK(fabs(got - want) <= want * 1.2e-7);
    }
    CHECK(mxd_expf(0) == 1 && isnan(mxd_expf(NAN)) && isinf(mxd_expf(INFINITY)));
    CHECK(mxd_expf(-INFINITY) == 0);
}

TEST(kernels_log_agrees_with_double) {
    for (uint32_t bits = 0x00800000; bits < 0x7f800000; bits += 40961) {
        float x = mxd_bits_float(bits);
        double want = log((double)x);
        CHECK(fabs(mxd_logf(x) - want) <= fabs(want) * 1.3e-7 + 1e-8);
    }
    CHECK(mxd_logf(1) == 0 && isinf(mxd_logf(0)) && isnan(mxd_logf(-1)) && isnan(mxd_logf(NAN)));
    CHECK(isinf(mxd_logf(INFINITY)));
}

TEST(kernels_sincos_agrees_with_double) {
    for (int i = 0; i < 2000000; i += 3) {
        float x = (float)i * (i % 2 ? 8.3f : -0.37e-3f), s, c;
        mxd_sincosf(x, &s, &c);
        CHECK(fabs(s - sin((double)x)) <= 6e-8 && fabs(c - cos((double)x)) <= 6e-8);
    }
    float s, c;
    mxd_sincosf(NAN, &s, &c);
    CHECK(isnan(s) && isnan(c));
}

/* ------------------------------------------------------------------------------------- the rest */

/* Numbers that two machines can compare by eye; they change only when docs/numerics.md does. */
TEST(kernels_golden_bits) {
    uint64_t hash = 0;
    for (int round = 1; round <= 20; round++) {
        counter = (uint64_t)round << 40;
        qcase c;
        qcase_make(&c, 0);
        mxd_panel p = panel_new(&c);
        float *y = calloc((size_t)c.n * c.ldy, sizeof *y);
        const mxd_kernels *k = mxd_kernels_best();
        k->quantise_i8(&p, c.x, c.ldx);
        k->qmul_i8(y, c.ldy, c.tile, &c.s, &p);
        for (size_t i = 0; i < (size_t)c.n * c.ldy; i++)
            hash = mxd_mix64(hash ^ mxd_float_bits(y[i]));
        panel_free(&p);
        free(y);
        qcase_free(&c);
    }
    for (int i = -900; i < 900; i++) {
        float s, c, x = (float)i * 0.0957f;
        mxd_sincosf(x * 31, &s, &c);
        hash = mxd_mix64(hash ^ mxd_float_bits(mxd_expf(x)) ^ mxd_float_bits(s));
        hash = mxd_mix64(hash ^ mxd_float_bits(mxd_logf(fabsf(x) + 1e-3f)) ^ mxd_float_bits(c));
    }
    if (hash != 0xb571c4bb10bce6f2)
        fail_msg("the bits have changed: 0x%016llx", (unsigned long long)hash);
}

TEST(kernels_tree_adds_in_the_order_of_the_page) {
    /* Seven blocks of one group: ((0+1)+(2+3)) + ((4+5)+6). Chosen so that sums
     * from left to right, or with another tree, round differently. */
    enum { K = 7 * 32 };
    static const float part[7] = {1, 1, 0x1p-23f, 0x1p-24f, 0x1p-24f, 0x1p-24f, 1};
    float want = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + part[6]);
    uint8_t tile[7 * (32 * 16 + 128)] = {0};
    mxd_qshape s = {K, 32, 32, 8, MXD_F32, MXD_AFFINE};
    for (int b = 0; b < 7; b++) /* no scale; the bias times the sum of x makes the part */
        for (int r = 0; r < 16; r++)
            memcpy(tile + b * 640 + 512 + 64 + 4 * r, &part[b], sizeof *part);
    float x[K] = {0}, y[16];
    for (int b = 0; b < 7; b++) { /* scale 1, sum of codes 128 */
        x[32 * b + b] = 127;
        x[32 * b + 31] = 1;
    }
    const mxd_kernels *tables[8];
    size_t n = mxd_kernels_usable(tables, 8);
    mxd_panel p = {
        .n = 1, .g = 32, .k = K, .q = (int8_t[K]){0}, .s = (float[7]){0}, .b = (float[7]){0}};
    for (size_t t = 0; t < n; t++) {
        tables[t]->quantise_i8(&p, x, K);
        tables[t]->qmul_i8(y, 16, tile, &s, &p);
        for (int r = 0; r < 16; r++) CHECK(y[r] == want * 128);
        tables[t]->qmul_f32(y, 16, tile, &s, x, K, 1);
        for (int r = 0; r < 16; r++) CHECK(y[r] == want * 128);
    }
}

/* Bits [at, at + n) of a stream, one by one. */
static int bits_of(const uint8_t *stream, size_t at, int n) {
    int v = 0;
    for (int b = 0; b < n; b++, at++) v |= (stream[at / 8] >> at % 8 & 1) << b;
    return v;
}

TEST(kernels_pack_is_read_back) {
    enum { K = 128 };
    static const int all[] = {2, 3, 4, 5, 6, 8};
    uint8_t codes[16 * K], tile[16 * K + 4 * 64];
    uint16_t scales[4 * 16], biases[4 * 16];
    for (int i = 0; i < 16 * K; i++) codes[i] = (uint8_t)(i * 37 + i / 64);
    for (int i = 0; i < 4 * 16; i++) {
        scales[i] = (uint16_t)(0x3f80 + i);
        biases[i] = (uint16_t)(0xc000 + i);
    }
    for (size_t b = 0; b < MXD_COUNT(all); b++)
        for (int i = 0; i < 3 * 16; i++) {
            int bits = all[b], rows = 1 + i % 16, group = 32 << i / 16;
            mxd_qshape s = {K, K, group, bits, MXD_BF16, MXD_AFFINE};
            float y[K];
            mxd_qtile_pack(tile, &s, rows, codes, scales, biases);
            for (int r = 0; r < 16; r++) {
                mxd_qtile_row(y, tile, &s, r);
                for (int c = 0; c < K; c++) {
                    int q = bits_of(codes, (size_t)((r * K + c) * bits), bits), e = c / group;
                    e += r * (K / group);
                    float want = r < rows ? fmaf(mxd_bf16_to_f32(scales[e]), (float)q,
                                                 mxd_bf16_to_f32(biases[e]))
                                          : 0;
                    if (y[c] != want)
                        fail_msg("%d bits in groups of %d: [%d, %d] is %g, want %g", bits, group, r,
                                 c, (double)y[c], (double)want);
                }
            }
        }
}

/* The tile of 8 bits with the codes, scales and biases of a narrow one: docs/numerics.md says that
 * they give the same sums. */
static void widen(uint8_t *to, const mxd_qshape *wide, const mxd_qshape *s, const uint8_t *codes,
                  const uint8_t *scales, const uint16_t *biases) {
    static const uint8_t e2m1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    static uint8_t bytes[16 * MAX_K];
    static uint16_t ends[2][16 * MAX_K / 16];
    size_t n_groups = 16 * s->k / (size_t)s->group;
    for (size_t i = 0; i < 16 * s->k; i++) {
        int q = bits_of(codes, i * (size_t)s->bits, s->bits);
        bytes[i] = (uint8_t)(s->kind == MXD_AFFINE ? q : e2m1[q]);
    }
    if (s->kind == MXD_AFFINE) {
        mxd_qtile_pack(to, wide, 16, bytes, scales, biases);
        return;
    }
    for (size_t g = 0; g < n_groups; g++) {
        float v = mxd_e8m0_to_f32(scales[g]);
        if (s->kind == MXD_NVFP4) v = mxd_e4m3_to_f32(scales[g]);
        ends[0][g] = (uint16_t)(mxd_float_bits(v / 2) >> 16);
        ends[1][g] = (uint16_t)(mxd_float_bits(-6 * v) >> 16);
    }
    mxd_qtile_pack(to, wide, 16, bytes, ends[0], ends[1]);
}

TEST(kernels_narrow_tiles_have_the_bits_of_wide_ones) {
    static uint8_t codes[16 * MAX_K], narrow[20 * MAX_K], wide[24 * MAX_K];
    static uint16_t ends[2][16 * MAX_K / 16];
    counter = 7;
    for (int i = 0; i < 14 * 4; i++) {
        qcase c;
        qcase_narrow(&c, i % 14);
        c.s.scales = MXD_BF16;
        mxd_qshape w = c.s;
        w.kind = MXD_AFFINE;
        w.bits = 8;
        for (size_t j = 0; j < sizeof codes; j++) codes[j] = (uint8_t)pick(256);
        fill_floats((uint8_t *)ends, MXD_BF16, MXD_COUNT(ends[0]) * 2);
        if (c.s.kind != MXD_AFFINE) /* 2^-15 to 2^0; any E4M3 */
            for (size_t j = 0; j < sizeof ends[0]; j++)
                ((uint8_t *)ends)[j] =
                    (uint8_t)(c.s.kind == MXD_NVFP4 ? pick(256) : 112 + pick(16));
        mxd_qtile_pack(narrow, &c.s, 16, codes, ends[0], ends[1]);
        widen(wide, &w, &c.s, codes, (const uint8_t *)ends[0], ends[1]);
        mxd_panel p = panel_new(&c);
        const mxd_kernels *k = mxd_kernels_best();
        float *got = calloc((size_t)c.n * c.ldy, sizeof *got);
        float *want = calloc((size_t)c.n * c.ldy, sizeof *want);
        k->quantise_i8(&p, c.x, c.ldx);
        k->qmul_i8(got, c.ldy, narrow, &c.s, &p);
        k->qmul_i8(want, c.ldy, wide, &w, &p);
        same(k->name, "qmul_i8", got, want, (size_t)c.n * c.ldy, c.name);
        k->qmul_f32(got, c.ldy, narrow, &c.s, c.x, c.ldx, c.n);
        k->qmul_f32(want, c.ldy, wide, &w, c.x, c.ldx, c.n);
        same(k->name, "qmul_f32", got, want, (size_t)c.n * c.ldy, c.name);
        panel_free(&p);
        qcase_free(&c);
        free(got);
        free(want);
    }
}

/* Elements in bf16 are exact where these scales are. */
TEST(kernels_mxfp8_adds_up_as_plain_floats) {
    static uint8_t codes[16 * MAX_K], tile[17 * MAX_K];
    static uint16_t rows[16 * MAX_K], plain[16 * MAX_K];
    counter = 9;
    for (int i = 0; i < 8; i++) {
        qcase c;
        qcase_narrow(&c, N_NARROW - 1);
        uint8_t scales[16 * MAX_K / 32];
        for (size_t j = 0; j < sizeof scales; j++) scales[j] = (uint8_t)(20 + pick(226));
        for (size_t j = 0; j < 16 * c.s.k; j++) {
            codes[j] = (uint8_t)pick(256);
            float v = mxd_e4m3_to_f32(codes[j]) * mxd_e8m0_to_f32(scales[j / 32]);
            rows[j] = (uint16_t)(mxd_float_bits(v) >> 16);
        }
        mxd_qtile_pack(tile, &c.s, 16, codes, scales, NULL);
        mxd_ftile_pack(plain, MXD_BF16, c.s.k, 16, rows);
        float *got = calloc((size_t)c.n * c.ldy, sizeof *got);
        float *want = calloc((size_t)c.n * c.ldy, sizeof *want);
        const mxd_kernels *k = mxd_kernels_best();
        k->qmul_f32(got, c.ldy, tile, &c.s, c.x, c.ldx, c.n);
        k->plain_mul(want, c.ldy, plain, MXD_BF16, c.s.k, c.s.block_k, c.x, c.ldx, c.n);
        same(k->name, "mxfp8", got, want, (size_t)c.n * c.ldy, c.name);
        qcase_free(&c);
        free(got);
        free(want);
    }
}

/* One row of n groups of a microscaling format, in and out. */
static void row_of(float *y, mxd_qkind kind, int n, const uint8_t *elements,
                   const uint8_t *scales) {
    static uint8_t tile[16 * 1024];
    mxd_qshape s = {
        .group = kind == MXD_NVFP4 ? 16 : 32, .bits = kind == MXD_MXFP8 ? 8 : 4, .kind = kind};
    s.k = s.block_k = (size_t)(n * s.group);
    CHECK(mxd_qtile_bytes(&s) <= sizeof tile);
    mxd_qtile_pack(tile, &s, 1, elements, scales, NULL);
    mxd_qtile_row(y, tile, &s, 0);
}

/* The bytes are worked examples of the formats. */
TEST(kernels_pack_microscaling_formats) {
    static const uint8_t mx4[16] = {0x72, 0x1f, 0xb0, 0x9a}, nv4[8] = {0xb7}, mx4_scale = 0x7e;
    static const uint8_t nv4_scale = 0x34, mx8[32] = {0x3c, 0xc4, 0x01, 0x7e}, mx8_scale = 0x80;
    static const float want4[] = {.5f, 3, -3, .25f, 0, -.75f, -.5f, -.25f};
    static const float want8[] = {3, -6, 0.00390625f, 896};
    float y[32];
    row_of(y, MXD_MXFP4, 1, mx4, &mx4_scale);
    for (int i = 0; i < 8; i++) CHECK(y[i] == want4[i]);
    row_of(y, MXD_NVFP4, 1, nv4, &nv4_scale);
    CHECK(y[0] == 4.5f && y[1] == -1.125f);
    row_of(y, MXD_MXFP8, 1, mx8, &mx8_scale);
    for (int i = 0; i < 4; i++) CHECK(y[i] == want8[i]);
}

/* Every scale times every element, in double; five groups, so that scales lie in two lines. */
TEST(kernels_pack_keeps_every_value) {
    static const double e2m1[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    for (int i = 0; i < 3 * 256; i++) {
        mxd_qkind kind = (mxd_qkind)(MXD_MXFP4 + i / 256);
        int s = i % 256, group = kind == MXD_NVFP4 ? 16 : 32, most = 255;
        double size = (s & 15 << 3) ? ldexp(8 + (s & 7), (s >> 3 & 15) - 10) : ldexp(s & 7, -9);
        size = kind != MXD_NVFP4 ? ldexp(1, s - 127) : s & 128 ? -size : size;
        uint8_t scales[8], elements[256];
        float y[256];
        memset(scales, s, sizeof scales);
        for (int v = 0; v < 256; v++)
            elements[v] = (uint8_t)(kind == MXD_MXFP8 ? v : v % 16 | (v / 16 ^ v % 16) << 4);
        if (kind != MXD_NVFP4) most = kind == MXD_MXFP4 ? 252 : 246;
        CHECK_EQ(mxd_scales_are_finite(kind, scales, 5), s <= most);
        if (s > most) continue;
        row_of(y, kind, kind == MXD_MXFP8 ? 8 : 5, elements, scales);
        for (int c = 0; c < (kind == MXD_MXFP8 ? 256 : 5 * group); c++) {
            int v = kind == MXD_MXFP8 ? c : bits_of(elements, (size_t)c * 4, 4);
            double want = (v & 8 ? -1 : 1) * e2m1[v & 7];
            if (kind == MXD_MXFP8) want = (double)mxd_e4m3_to_f32((uint8_t)v);
            if ((double)y[c] != want * size)
                fail_msg("kind %d, scale %d, element %d: %a", (int)kind, s, v, (double)y[c]);
        }
    }
    CHECK(mxd_e4m3_to_f32(0x7f) == 480 && mxd_e4m3_to_f32(0x81) == -0x1p-9f);
}

TEST(kernels_find_by_name) {
    CHECK(mxd_kernels_find("mmx") == NULL);
    CHECK_STR(mxd_kernels_find("scalar")->name, "scalar");
    CHECK(mxd_kernels_find(mxd_kernels_best()->name) == mxd_kernels_best());
}
