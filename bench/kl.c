/* mlxd-kl: what rounding activations, or K and V, costs. For each model folder, the
 * Kullback-Leibler divergence (nats) of the next token's distribution from that of the float32
 * path, position by position: mean, largest, and how often the best token is the same. One markdown
 * row a model. mlxd-kl [-w act|kv] [-n POSITIONS] [-f TEXT] MODEL... act (or nothing): int8 and
 * int16 activations; kv: K and V in float16 and in 8 bits, all else float32. Without a text, or for
 * models without a tokenizer, the tokens are random. docs/numerics.md has the table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/rand.h"
#include "runtime/shard.h"
#include "tokenizer/tokenizer.h"

enum { MAX_POSITIONS = 4096, MAX_TEXT = 1 << 20 };

typedef struct path {
    const char *name;
    mxd_activations act;
    mxd_kv_type kv;
} path;

enum { N_PATHS = 2 };
static const path activations[N_PATHS] = {{"int8", MXD_ACT_I8, MXD_KV_F16},
                                          {"int16", MXD_ACT_I16, MXD_KV_F16}};
static const path kv_types[N_PATHS] = {{"f16", MXD_ACT_F32, MXD_KV_F16},
                                       {"q8", MXD_ACT_F32, MXD_KV_Q8}};

typedef struct question {
    const char *folder;
    int n;
    int32_t ids[MAX_POSITIONS];
} question;

static void die(const char *what, const mxd_err *err) {
    fprintf(stderr, "mlxd-kl: %s: %s\n", what, err->msg);
    exit(1);
}

/* Logits [n, vocab] after every token. */
static float *logits_of(const question *q, path p, int *vocab) {
    mxd_err err = {0};
    mxd_shard *s;
    mxd_shard_opts o = {.folder = q->folder,
                        .n_slots = 1,
                        .ctx = q->n + 1,
                        .backend = "cpu",
                        .backend_opts = {.activations = p.act, .kv = p.kv}};
    if (mxd_shard_open(&s, &mxd_alloc_libc, &o, &err)) die(q->folder, &err);
    *vocab = mxd_shard_vocab(s);
    float *out = malloc((size_t)q->n * (size_t)*vocab * sizeof *out);
    if (!out) die(q->folder, &(mxd_err){.msg = "no memory for the logits"});
    for (int i = 0; i < q->n; i++) {
        mxd_sampled token;
        mxd_step_run run = {.n = 1, .pos = (uint32_t)i, .sample = true};
        mxd_step step = {1, 1, &run, q->ids + i, NULL};
        mxd_step_result r = {.logits = out + (size_t)i * (size_t)*vocab, .tokens = &token};
        if (mxd_shard_step(s, &step, &r, &err)) die(q->folder, &err);
    }
    mxd_shard_close(s);
    return out;
}

static int best(const float *x, int n) {
    int b = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[b]) b = i;
    return b;
}

static double log_sum(const float *x, int n) {
    double max = x[best(x, n)], sum = 0;
    for (int i = 0; i < n; i++) sum += exp(x[i] - max);
    return max + log(sum);
}

/* KL(p || q) of the softmaxes of two rows of logits. */
static double divergence(const float *p, const float *q, int n) {
    double lp = log_sum(p, n), lq = log_sum(q, n), sum = 0;
    for (int i = 0; i < n; i++) sum += exp(p[i] - lp) * ((p[i] - lp) - (q[i] - lq));
    return sum;
}

static void compare(const question *q, const float *exact, path p) {
    int vocab, same = 0;
    float *x = logits_of(q, p, &vocab);
    double sum = 0, most = 0;
    for (int i = 0; i < q->n; i++) {
        const float *a = exact + (size_t)i * (size_t)vocab, *b = x + (size_t)i * (size_t)vocab;
        double d = divergence(a, b, vocab);
        sum += d;
        most = d > most ? d : most;
        same += best(a, vocab) == best(b, vocab);
    }
    printf(" %.1e | %.1e | %.1f %% |", sum / q->n, most, 100.0 * same / q->n);
    free(x);
}

/* The text's tokens, at most q->n; false when the model has no tokenizer. */
static bool encode(question *q, const char *text) {
    mxd_err err = {0};
    mxd_tokenizer *t;
    if (mxd_tokenizer_open(&t, &mxd_alloc_libc, q->folder, &err)) return false;
    mxd_ids ids;
    mxd_ids_init(&ids, &mxd_alloc_libc, MAX_TEXT);
    mxd_span span = {text, strlen(text), false};
    if (mxd_tokenizer_encode(t, &span, 1, true, &ids, &err)) die(q->folder, &err);
    if ((size_t)q->n > ids.n) q->n = (int)ids.n;
    memcpy(q->ids, ids.ptr, (size_t)q->n * sizeof *q->ids);
    mxd_ids_deinit(&ids);
    mxd_tokenizer_close(t);
    return true;
}

static void one_model(question *q, const char *text, const path *paths) {
    int vocab;
    if (!text || !encode(q, text)) { /* every vocabulary has 96 tokens */
        for (int i = 0; i < q->n; i++) q->ids[i] = (int32_t)(mxd_rand_u64(1, 0, (uint64_t)i) % 96);
    }
    const char *name = strrchr(q->folder, '/');
    printf("| %s |", name ? name + 1 : q->folder);
    float *exact = logits_of(q, (path){"", MXD_ACT_F32, MXD_KV_F32}, &vocab);
    for (int i = 0; i < N_PATHS; i++) compare(q, exact, paths[i]);
    printf("\n");
    fflush(stdout);
    free(exact);
}

int main(int argc, char **argv) {
    static question q;
    static char text[MAX_TEXT];
    int at = 1, n = 149;
    bool has_text = false;
    const path *paths = activations;
    mxd_log_set_level(MXD_LOG_ERROR);
    for (; at + 1 < argc && argv[at][0] == '-'; at += 2) {
        if (argv[at][1] == 'w' && strcmp(argv[at + 1], "kv") == 0) paths = kv_types;
        if (argv[at][1] == 'n') n = atoi(argv[at + 1]);
        if (argv[at][1] == 'f') {
            FILE *f = fopen(argv[at + 1], "rb");
            has_text = f && fread(text, 1, sizeof text - 1, f) > 0;
            if (f) fclose(f);
        }
    }
    if (at >= argc || n < 1 || n > MAX_POSITIONS) {
        fprintf(stderr, "usage: mlxd-kl [-w act|kv] [-n POSITIONS] [-f TEXT] MODEL...\n");
        return 2;
    }
    printf("| model |");
    for (int i = 0; i < N_PATHS; i++) printf(" %s mean | largest | same token |", paths[i].name);
    printf("\n|---|---|---|---|---|---|---|\n");
    for (; at < argc; at++) {
        q.folder = argv[at];
        q.n = n;
        one_model(&q, has_text ? text : NULL, paths);
    }
    return 0;
}
