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
    char name[96];
} qcase;

/* group: 0, any of an affine file. */
static void qcase_make(qcase *c, int group) {
    c->s.group = (int)PICK(32, 64, 128);
    if (group) c->s.group = group;
    c->s.bits = (int)PICK(8, 8, 4);
    c->s.scales = (mxd_ftype)pick(3);
    size_t groups = 1 + pick(MAX_K / (uint32_t)c->s.group);
    c->s.k = groups * (size_t)c->s.group;
    c->s.block_k = (1 + pick(4)) * (size_t)c->s.group;
    c->n = 1 + (int)pick(MXD_PANEL);
    c->ldx = c->s.k + pick(20);
    c->ldy = 16 + pick(20);
    c->tile = malloc(mxd_qtile_bytes(&c->s) + 4096);
    uint8_t *at = c->tile;
    size_t codes = (size_t)(c->s.group * c->s.bits) * 2, f = mxd_ftype_bytes(c->s.scales);
    for (size_t g = 0; g < groups; g++, at += mxd_qgroup_bytes(&c->s)) {
        for (size_t i = 0; i < codes; i++) at[i] = pick(8) ? (uint8_t)pick(256) : 255;
        fill_floats(at + codes, c->s.scales, 32);
        (void)f;
    }
    c->x = floats((size_t)c->n * c->ldx);
    if (!pick(4)) /* the largest codes everywhere: where 16-bit sums would saturate */
        for (size_t i = 0; i < (size_t)c->n * c->ldx; i++) c->x[i] = 2;
    if (!pick(6)) memset(c->x, 0, (c->s.k / 2) * sizeof(float));
    snprintf(c->name, sizeof c->name, "k %zu block %zu group %d bits %d scales %d n %d", c->s.k,
             c->s.block_k, c->s.group, c->s.bits, (int)c->s.scales, c->n);
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

static void check_qmul(const mxd_kernels *k, int round) {
    qcase c;
    qcase_make(&c, round % 16 < 4 ? 16 : 0);
    bool wide = round % 4 == 0;
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

TEST(kernels_quantised_products) { each_table(check_qmul, ROUNDS); }

static void check_qmul_f32(const mxd_kernels *k, int round) {
    qcase c;
    qcase_make(&c, round % 5 ? 0 : 16);
    size_t n_y = (size_t)c.n * c.ldy;
    float *got = calloc(n_y, sizeof *got), *want = calloc(n_y, sizeof *want);
    k->qmul_f32(got, c.ldy, c.tile, &c.s, c.x, c.ldx, c.n);
    scalar()->qmul_f32(want, c.ldy, c.tile, &c.s, c.x, c.ldx, c.n);
    same(k->name, "qmul_f32", got, want, n_y, c.name);
    free(got);
    free(want);
    qcase_free(&c);
}

TEST(kernels_quantised_products_f32) { each_table(check_qmul_f32, 300); }

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

/* ------------------------------------------------------------------------------------- functions
 */

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
    if (hash != 0xdfe815c219a534ac)
        fail_msg("the bits have changed: 0x%016llx", (unsigned long long)hash);
}

TEST(kernels_tree_adds_in_the_order_of_the_page) {
    /* Seven blocks of one group: ((0+1)+(2+3)) + ((4+5)+6). Chosen so that sums
     * from left to right, or with another tree, round differently. */
    enum { K = 7 * 32 };
    static const float part[7] = {1, 1, 0x1p-23f, 0x1p-24f, 0x1p-24f, 0x1p-24f, 1};
    float want = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + part[6]);
    uint8_t tile[7 * (32 * 16 + 128)] = {0};
    mxd_qshape s = {K, 32, 32, 8, MXD_F32};
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

TEST(kernels_pack_is_read_back) {
    enum { K = 64 };
    uint8_t codes[16 * K], tile[K * 16 + 128];
    uint16_t scales[16], biases[16];
    for (int i = 0; i < 16 * K; i++) codes[i] = (uint8_t)(i * 37 + i / 64);
    for (int r = 0; r < 16; r++) {
        scales[r] = (uint16_t)(0x3f80 + r);
        biases[r] = (uint16_t)(0xc000 + r);
    }
    for (int bits = 4; bits <= 8; bits += 4)
        for (int rows = 1; rows <= 16; rows++) {
            mxd_qshape s = {K, K, K, bits, MXD_BF16};
            float y[K];
            mxd_qtile_pack(tile, &s, rows, codes, scales, biases);
            for (int r = 0; r < 16; r++) {
                mxd_qtile_row(y, tile, &s, r);
                for (int c = 0; c < K; c++) {
                    int at = r * K + c, q = codes[at * bits / 8] >> at * bits % 8;
                    float want = fmaf(mxd_bf16_to_f32(scales[r]), (float)(q & ((1 << bits) - 1)),
                                      mxd_bf16_to_f32(biases[r]));
                    CHECK(y[c] == (r < rows ? want : 0));
                }
            }
        }
}

/* Rows of the formats without a tile of their own; the bytes are worked examples of the formats. */
TEST(kernels_widen_codes_of_every_width) {
    static const struct {
        int bits;
        size_t n;
        uint8_t file[8], code[8];
    } rows[] = {{2, 4, {0xe4}, {0, 1, 2, 3}},
                {3, 8, {0x88, 0xc6, 0xfa}, {0, 1, 2, 3, 4, 5, 6, 7}},
                {5, 8, {0x41, 0x0c, 0x52, 0xcc, 0x41}, {1, 2, 3, 4, 5, 6, 7, 8}},
                {6, 4, {0x81, 0x30, 0x10}, {1, 2, 3, 4}}};
    uint8_t wide[8];
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_widen_codes(wide, 8, rows[i].file, rows[i].bits, 8);
        for (size_t c = 0; c < rows[i].n; c++) CHECK_EQ(wide[c], rows[i].code[c]);
    }
    for (int bits = 1; bits <= 8; bits++) /* random rows, to both tiles */
        for (int to = bits <= 4 ? 4 : 8; to <= 8; to += 4) {
            uint8_t file[128], got[128] = {0};
            counter = (uint64_t)bits;
            for (size_t i = 0; i < sizeof file; i++) file[i] = (uint8_t)pick(256);
            mxd_widen_codes(got, to, file, bits, 128);
            for (int c = 0; c < 128; c++) {
                int want = 0;
                for (int b = 0; b < bits; b++)
                    want |= (file[(c * bits + b) / 8] >> (c * bits + b) % 8 & 1) << b;
                CHECK_EQ(got[c * to / 8] >> c * to % 8 & ((1 << to) - 1), want);
            }
        }
}

TEST(kernels_widen_microscaling_formats) {
    static const uint8_t mx4[] = {0x72, 0x1f, 0xb0, 0x9a}, nv4[] = {0xb7}, mx4_scale = 0x7e,
                         nv4_scale = 0x34, mx8[] = {0x3c, 0xc4, 0x01, 0x7e};
    static const float want4[] = {.5f, 3, -3, .25f, 0, -.75f, -.5f, -.25f};
    static const float want8[] = {3, -6, 0.00390625f, 896};
    uint8_t code[8], mx8_scale = 0x80;
    uint16_t scale, bias, y[4];
    mxd_widen_fp4(code, mx4, 8);
    CHECK(mxd_widen_fp4_ends(&scale, &bias, &mx4_scale, 1, 1));
    for (int i = 0; i < 8; i++)
        CHECK(fmaf(mxd_bf16_to_f32(scale), code[i], mxd_bf16_to_f32(bias)) == want4[i]);
    mxd_widen_fp4(code, nv4, 2);
    CHECK(mxd_widen_fp4_ends(&scale, &bias, &nv4_scale, 1, 0));
    CHECK(fmaf(mxd_bf16_to_f32(scale), code[0], mxd_bf16_to_f32(bias)) == 4.5f);
    CHECK(fmaf(mxd_bf16_to_f32(scale), code[1], mxd_bf16_to_f32(bias)) == -1.125f);
    mxd_widen_mxfp8(y, mx8, &mx8_scale, 4);
    for (int i = 0; i < 4; i++) CHECK(mxd_bf16_to_f32(y[i]) == want8[i]);
}

/* Every scale times every element, in double. */
TEST(kernels_widen_keeps_every_value) {
    static const double e2m1[8] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    for (int s = 0; s < 256; s++)
        for (int e8m0 = 0; e8m0 < 2; e8m0++) {
            double size = (s & 15 << 3) ? ldexp(8 + (s & 7), (s >> 3 & 15) - 10) : ldexp(s & 7, -9);
            size = e8m0 ? ldexp(1, s - 127) : s & 128 ? -size : size;
            uint8_t byte = (uint8_t)s;
            uint16_t scale, bias;
            CHECK_EQ(mxd_widen_fp4_ends(&scale, &bias, &byte, 1, e8m0), !e8m0 || s < 253);
            for (int v = 0; v < 16 && (!e8m0 || s < 253); v++) {
                uint8_t from = (uint8_t)v, code[2];
                mxd_widen_fp4(code, &from, 2);
                double got = fmaf(mxd_bf16_to_f32(scale), code[0], mxd_bf16_to_f32(bias));
                CHECK(got == (v & 8 ? -1 : 1) * e2m1[v & 7] * size);
            }
            for (int v = 0; v < 256 && e8m0 && s > 20 && s < 246; v++) {
                uint8_t from = (uint8_t)v;
                uint16_t y;
                mxd_widen_mxfp8(&y, &from, &byte, 1);
                CHECK(mxd_bf16_to_f32(y) == (double)mxd_e4m3_to_f32(from) * size);
            }
        }
    CHECK(mxd_e4m3_to_f32(0x7f) == 480 && mxd_e4m3_to_f32(0x81) == -0x1p-9f);
    CHECK(mxd_f32_to_bf16(1 + 0x1p-8f) == 0x3f80 && mxd_f32_to_bf16(1 + 0x3p-8f) == 0x3f82);
    CHECK(isnan(mxd_bf16_to_f32(mxd_f32_to_bf16(mxd_bits_float(0x7f800001)))));
}

TEST(kernels_find_by_name) {
    CHECK(mxd_kernels_find("mmx") == NULL);
    CHECK_STR(mxd_kernels_find("scalar")->name, "scalar");
    CHECK(mxd_kernels_find(mxd_kernels_best()->name) == mxd_kernels_best());
}
