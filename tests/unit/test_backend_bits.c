/* The promise of the CPU backend: a small model gives the same bits for any chunk, batch, thread
 * count and kernel table. (Attention by itself: test_attention.c.) */
#include <math.h>
#include <stdlib.h>
#include "backend_kit.h"
#include "base/rand.h"
#include "kernels/kernels.h"
#include "kernels/math.h"
#include "test.h"

enum {
    HIDDEN = 128,
    HEADS = 6,
    KV = 2,
    DIM = 24, /* not a multiple of 16 */
    INTER = 192,
    VOCAB = 50,
    LAYERS = 3,
    PAGES = 64,
    CONTEXT = 320, /* more than one block of attention */
    MAX_SEQS = 4,
    SEQ_PAGES = CONTEXT / MXD_KV_PAGE_TOKENS,
};

/* Registers of the toy. */
enum { X, N, Q, K, V, A, O, G, U, L, N_REGS };
static const int widths[N_REGS] = {HIDDEN,     HIDDEN, HEADS *DIM, KV *DIM, KV *DIM,
                                   HEADS *DIM, HIDDEN, INTER,      INTER,   VOCAB};

typedef struct toy {
    mxd_backend *b;
    mxd_weight *embed, *final_norm;
    struct {
        mxd_weight *norm, *q, *k, *v, *o, *norm2, *gate, *up, *down, *qnorm;
    } layer[LAYERS];
    float inv_freq[DIM / 2];
} toy;

static void write_toy(kit *k) {
    char name[32];
    kit_begin(k);
    kit_affine(k, "embed", MXD_DTYPE_BF16, VOCAB, HIDDEN, 8, 64);
    kit_float(k, "norm", MXD_DTYPE_F32, 0, HIDDEN, 0.2f, 1);
    for (int l = 0; l < LAYERS; l++) {
        static const mxd_dtype types[LAYERS] = {MXD_DTYPE_BF16, MXD_DTYPE_F16, MXD_DTYPE_F32};
#define NAME(n) (snprintf(name, sizeof name, "%d.%s", l, n), name)
        kit_float(k, NAME("norm"), types[l], 0, HIDDEN, 0.2f, 1);
        kit_float(k, NAME("qnorm"), types[l], 0, DIM, 0.2f, 1);
        kit_affine(k, NAME("q"), types[l], HEADS * DIM, HIDDEN, 8, 64);
        kit_affine(k, NAME("k"), types[l], KV * DIM, HIDDEN, 8, 32);
        kit_float(k, NAME("v"), types[l], KV * DIM, HIDDEN, 0.1f, 0);
        kit_float(k, NAME("o"), types[l], HIDDEN, HEADS * DIM, 0.1f, 0);
        kit_affine(k, NAME("gate"), types[l], INTER, HIDDEN, 8, 128);
        kit_affine(k, NAME("up"), types[l], INTER, HIDDEN, 4, 64);
        kit_affine(k, NAME("down"), types[l], HIDDEN, INTER, 8, 64);
    }
    kit_open(k);
}

static mxd_weight *get(toy *m, const kit *k, const char *name, unsigned use, int out, int in,
                       int bits, int group) {
    mxd_weight_src s = kit_src(k, name, use, out, in, bits, group, 64);
    if (group == 128) s.block_k = 128;
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(m->b->ops->load(m->b, &s, &w, &err), &err);
    return w;
}

static void load_toy(toy *m, const kit *k, mxd_backend_opts opts) {
    char name[32];
    mxd_err err = {0};
    CHECK_OK(mxd_backend_open(&m->b, &mxd_alloc_libc, "cpu", &opts, &err), &err);
    m->embed = get(m, k, "embed", MXD_W_LOOKUP | MXD_W_LINEAR, VOCAB, HIDDEN, 8, 64);
    m->final_norm = get(m, k, "norm", MXD_W_VECTOR, 1, HIDDEN, 0, 0);
    for (int l = 0; l < LAYERS; l++) {
        m->layer[l].norm = get(m, k, NAME("norm"), MXD_W_VECTOR, 1, HIDDEN, 0, 0);
        m->layer[l].qnorm = get(m, k, NAME("qnorm"), MXD_W_VECTOR, 1, DIM, 0, 0);
        m->layer[l].q = get(m, k, NAME("q"), MXD_W_LINEAR, HEADS * DIM, HIDDEN, 8, 64);
        m->layer[l].k = get(m, k, NAME("k"), MXD_W_LINEAR, KV * DIM, HIDDEN, 8, 32);
        m->layer[l].v = get(m, k, NAME("v"), MXD_W_LINEAR, KV * DIM, HIDDEN, 0, 0);
        m->layer[l].o = get(m, k, NAME("o"), MXD_W_LINEAR, HIDDEN, HEADS * DIM, 0, 0);
        m->layer[l].gate = get(m, k, NAME("gate"), MXD_W_LINEAR, INTER, HIDDEN, 8, 128);
        m->layer[l].up = get(m, k, NAME("up"), MXD_W_LINEAR, INTER, HIDDEN, 4, 64);
        m->layer[l].down = get(m, k, NAME("down"), MXD_W_LINEAR, HIDDEN, INTER, 8, 64);
    }
    for (int i = 0; i < DIM / 2; i++) m->inv_freq[i] = mxd_expf(-9.2103404f * (float)(2 * i) / DIM);
    mxd_kv_spec kv[LAYERS] = {{KV, DIM}, {KV, DIM}, {KV, DIM}};
    mxd_step_shape s = {256, N_REGS, widths, NULL, LAYERS, kv, PAGES, CONTEXT};
    CHECK_OK(m->b->ops->setup(m->b, &s, &err), &err);
}

/* One micro-batch; logits [n_rows, VOCAB]. */
static void step(toy *m, const mxd_batch *batch, float *logits) {
    mxd_backend *b = m->b;
    const mxd_backend_ops *op = b->ops;
    mxd_err err = {0};
    op->begin(b, batch);
    op->embed(b, X, m->embed);
    for (int l = 0; l < LAYERS; l++) {
        mxd_rope r = {l == 1 ? 16 : DIM, m->inv_freq, l == 2 ? 1.25f : 1, l == 1};
        mxd_attention a = {HEADS, KV, DIM, 0.2f, l == 1 ? 40 : 0};
        op->norm(b, N, X, m->layer[l].norm, 1e-5f);
        op->linear(b, 3, (int[]){Q, K, V}, N,
                   (const mxd_weight *const[]){m->layer[l].q, m->layer[l].k, m->layer[l].v});
        op->norm(b, Q, Q, m->layer[l].qnorm, 1e-6f);
        op->rope(b, Q, HEADS, DIM, &r);
        op->rope(b, K, KV, DIM, &r);
        op->kv_append(b, l, K, V);
        op->attend(b, l, A, Q, &a);
        op->linear(b, 1, (int[]){O}, A, (const mxd_weight *const[]){m->layer[l].o});
        op->add(b, X, O);
        op->norm(b, N, X, m->layer[l].norm, 1e-5f);
        op->linear(b, 2, (int[]){G, U}, N,
                   (const mxd_weight *const[]){m->layer[l].gate, m->layer[l].up});
        op->gated(b, G, G, U, MXD_SILU);
        op->linear(b, 1, (int[]){O}, G, (const mxd_weight *const[]){m->layer[l].down});
        op->add(b, X, O);
    }
    op->norm(b, X, X, m->final_norm, 1e-5f);
    op->linear(b, 1, (int[]){L}, X, (const mxd_weight *const[]){m->embed});
    CHECK_OK(op->output(b, L, logits, &err), &err);
    CHECK_OK(op->end(b, &err), &err);
}

typedef struct pattern {
    const char *kernels;
    int threads, chunk, seqs;
    mxd_activations act;
    mxd_kv_type kv;
} pattern;

static int32_t token(int seq, int pos) {
    return (int32_t)(mxd_rand_u64(5, (uint64_t)seq, (uint64_t)pos) % VOCAB);
}

/* Logits of every position of sequence 0, [n, VOCAB]; the others run beside it, shorter. */
static void run_pattern(const kit *k, const pattern *p, int n, float *out) {
    toy m;
    load_toy(&m, k,
             (mxd_backend_opts){
                 .threads = p->threads, .activations = p->act, .kv = p->kv, .kernels = p->kernels});
    int32_t pages[MAX_SEQS][SEQ_PAGES], ids[256];
    for (int s = 0; s < MAX_SEQS; s++)
        for (int i = 0; i < SEQ_PAGES; i++) pages[s][i] = (s * SEQ_PAGES + i) * 23 % PAGES;
    float *logits = malloc(256 * VOCAB * sizeof *logits);
    for (int pos = 0; pos < n; pos += p->chunk) {
        mxd_run runs[MAX_SEQS];
        mxd_batch batch = {0, 0, runs, ids};
        for (int s = p->seqs - 1; s >= 0; s--) { /* sequence 0 comes last in the batch */
            int start = pos / (s + 1), end = pos + p->chunk < n ? pos + p->chunk : n;
            int len = end / (s + 1) - start;
            if (len < 1) continue;
            runs[batch.n_runs++] = (mxd_run){batch.n_rows, len, start, pages[s]};
            for (int i = 0; i < len; i++) ids[batch.n_rows++] = token(s, start + i);
        }
        step(&m, &batch, logits);
        int len = n - pos < p->chunk ? n - pos : p->chunk;
        memcpy(out + pos * VOCAB, logits + (batch.n_rows - len) * VOCAB,
               (size_t)len * VOCAB * sizeof *out);
    }
    free(logits);
    m.b->ops->close(m.b);
}

static void compare(const kit *k, const float *want, const pattern *p, int n) {
    float *got = calloc((size_t)n * VOCAB, sizeof *got);
    run_pattern(k, p, n, got);
    for (int i = 0; i < n * VOCAB; i++)
        if (memcmp(got + i, want + i, sizeof *got))
            fail_msg("%s, %d threads, chunk %d, %d sequences: logit %d of position %d: %a, want %a",
                     p->kernels, p->threads, p->chunk, p->seqs, i % VOCAB, i / VOCAB, got[i],
                     want[i]);
    free(got);
}

static uint64_t hash_of(const float *x, int n) {
    uint64_t h = 0;
    for (int i = 0; i < n; i++) h = mxd_mix64(h ^ mxd_float_bits(x[i]));
    return h;
}

static void all_patterns(mxd_activations act, mxd_kv_type kv, int n, uint64_t golden) {
    static const int chunks[] = {1, 7, 64}, seqs[] = {1, 4}, threads[] = {1, 2, 3};
    kit k;
    write_toy(&k);
    float *want = calloc((size_t)n * VOCAB, sizeof *want);
    run_pattern(&k, &(pattern){"scalar", 1, 1, 1, act, kv}, n, want);
    if (hash_of(want, n * VOCAB) != golden)
        fail_msg("the bits have changed: 0x%016llx", (unsigned long long)hash_of(want, n * VOCAB));
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    for (size_t t = 0; t < n_tables; t++)
        for (size_t c = 0; c < MXD_COUNT(chunks); c++)
            for (size_t s = 0; s < MXD_COUNT(seqs); s++)
                for (size_t h = 0; h < MXD_COUNT(threads); h++) {
                    bool slow = strcmp(tables[t]->name, "scalar") == 0;
                    if (slow && (h != c || n > 100)) continue; /* scalar: a few of them */
                    compare(&k, want,
                            &(pattern){tables[t]->name, threads[h], chunks[c], seqs[s], act, kv},
                            n);
                }
    free(want);
    kit_end(&k);
}

/* The hashes let machines be compared; they change only when docs/numerics.md does. */
TEST(backend_bits_i8) { all_patterns(MXD_ACT_I8, MXD_KV_F16, 300, 0x14e69db86cc723c3); }
TEST(backend_bits_i8_short) { all_patterns(MXD_ACT_I8, MXD_KV_F16, 60, 0xa381594b6130376b); }
TEST(backend_bits_i16) { all_patterns(MXD_ACT_I16, MXD_KV_F16, 50, 0xf2cd88cdd00be184); }
TEST(backend_bits_f32) { all_patterns(MXD_ACT_F32, MXD_KV_F32, 50, 0x398bba66af7d4aac); }
TEST(backend_bits_q8) { all_patterns(MXD_ACT_I8, MXD_KV_Q8, 300, 0x231a2cf1a907cdfb); }
