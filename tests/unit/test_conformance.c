/* Whole models against mlx-lm's goldens, and against themselves: the float32 path agrees with
 * mlx-lm; every path gives equal bits over splits, chunks, batches, threads and kernel tables.
 * Formats: tests/conformance/README.md. */
#include "test.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include "kernels/kernels.h"
#include "model/sizes.h"
#include "runtime/shard.h"

enum { MAX_PARTS = 3, CTX = 160, MAX_HIDDEN = 192, ROWS = 128 };

/* clang-format off */
static const char *const models[] = {
    "tied-bf16",
    "untied-f16",
    "deep-f32-scales",
    "kv3-inter320",
    "hidden192",
    "two-shards",
    "plain-bf16",
    "plain-f32",
    "llama-llama3",
    "llama-yarn-bias",
    "mistral-sliding",
    "qwen2-tied",
    "qwen2-kv3-f16",
    "phi3-longrope",
    "phi3-plain",
    "mixed-overrides",
    "moe-8bit",
    "moe-mixed",
    "deepseek-direct",
    "deepseek-joined",
    "deepseek-joined-plain",
    "deepseek-mixed",
    "deepseek-yarn",
    "gemma2-capped",
    "gemma2-plain",
    "gemma3-head",
    "gemma3-window",
    "gemma3-wrapped",
    "gemma4-experts",
    "gemma4-shared",
    "gemma4-wrapped",
    "glm4-lite-direct",
    "glm4-lite-nvfp4",
    "glm4-moe-groups",
    "glm4-moe-plain",
    "gpt-oss-mxfp4",
    "gpt-oss-odd",
    "gpt-oss-plain",
    "kimi-k2",
    "llama-dynamic",
    "minimax-m2-tied",
    "minimax-mxfp8",
    "qwen3-next-moe",
    "qwen3-next-plain",
    "qwen3_5-6bit",
    "qwen3_5-vision",
    "qwen3_5-unconverted",
    "qwen3_5_moe-4bit",
    "qwen3_5_moe-plain",
    "ministral3-yarn",
    "mistral3-wrapped",
    "mistral3-llama",
};
/* clang-format on */

/* ------------------------------------------------------------- a model over one or more shards */

typedef struct setting {
    const char *kernels;
    mxd_activations act;
    int parts, threads, chunk, batch;
    mxd_kv_type kv;
} setting;

typedef struct pipeline {
    mxd_shard *part[MAX_PARTS];
    int n_parts, vocab;
    float hidden[2][ROWS * MAX_HIDDEN];
} pipeline;

/* Where part i of `parts` starts. Layers that share K and V stay together. */
static int cut_of(const mxd_model_sizes *m, int i, int parts) {
    if (i == 0) return 0;
    if (i == parts) return m->n_layers;
    return m->last_cut ? m->last_cut * i / (parts - 1) : m->n_layers * i / parts;
}

static pipeline *open_pipeline(const char *folder, const setting *s) {
    mxd_err err = {0};
    pipeline *p = calloc(1, sizeof *p);
    CHECK(p);
    static mxd_model_sizes sizes;
    CHECK_OK(mxd_model_sizes_read(&sizes, &mxd_alloc_libc, folder, ROWS, MXD_KV_F16, &err), &err);
    p->n_parts = sizes.last_cut < 0 ? 1 : s->parts;
    for (int i = 0; i < p->n_parts; i++) {
        mxd_shard_opts o = {
            .folder = folder,
            .layer0 = cut_of(&sizes, i, p->n_parts),
            .layer1 = cut_of(&sizes, i + 1, p->n_parts),
            .n_slots = 4,
            .ctx = CTX,
            .max_rows = ROWS,
            .backend = "cpu",
            .backend_opts = {
                .threads = s->threads, .activations = s->act, .kernels = s->kernels, .kv = s->kv}};
        CHECK_OK(mxd_shard_open(&p->part[i], &mxd_alloc_libc, &o, &err), &err);
    }
    p->vocab = mxd_shard_vocab(p->part[0]);
    return p;
}

static void close_pipeline(pipeline *p) {
    for (int i = 0; i < p->n_parts; i++) mxd_shard_close(p->part[i]);
    free(p);
}

/* One micro-batch through all parts. logits [sampling runs, vocab]. */
static void step(pipeline *p, const mxd_step_run *runs, int n_runs, const int32_t *ids, int n_rows,
                 float *logits) {
    mxd_err err = {0};
    mxd_sampled tokens[4];
    for (int i = 0; i < p->n_parts; i++) {
        mxd_step st = {n_runs, n_rows, runs, ids, i ? p->hidden[(i - 1) & 1] : NULL};
        mxd_step_result r = {.hidden = p->hidden[i & 1], .tokens = tokens, .logits = logits};
        CHECK_OK(mxd_shard_step(p->part[i], &st, &r, &err), &err);
    }
}

/* Logits of the last token of every chunk of ids [n], for `batch` equal sequences in one step (one
 * of them at slot 2 is what is returned; all must be equal). out: [n, vocab], rows of chunk ends.
 */
static void run_chunks(pipeline *p, const setting *s, const int32_t *ids, int n, float *out) {
    float *logits = calloc((size_t)4 * (size_t)p->vocab, sizeof *logits);
    int32_t all[ROWS];
    CHECK(logits);
    for (int at = 0; at < n; at += s->chunk) {
        int len = n - at < s->chunk ? n - at : s->chunk, rows = 0;
        if (len * s->batch > ROWS) len = ROWS / s->batch;
        mxd_step_run runs[4];
        for (int b = 0; b < s->batch; b++) {
            runs[b] = (mxd_step_run){
                .slot = (uint16_t)b, .n = (uint16_t)len, .pos = (uint32_t)at, .sample = true};
            memcpy(all + rows, ids + at, (size_t)len * sizeof *ids);
            rows += len;
        }
        step(p, runs, s->batch, all, rows, logits);
        size_t bytes = (size_t)p->vocab * sizeof *logits;
        for (int b = 1; b < s->batch; b++)
            CHECK(memcmp(logits, logits + (size_t)b * (size_t)p->vocab, bytes) == 0);
        memcpy(out + (size_t)(at + len - 1) * (size_t)p->vocab, logits, bytes);
        if (len < s->chunk && at + len < n) at -= s->chunk - len; /* the batch made it shorter */
    }
    free(logits);
}

/* ------------------------------------------------------------------------------------- goldens */

typedef struct golden {
    char folder[1024];
    json_t *json;
    float *logits;
    int vocab;
} golden;

static golden open_golden(const char *name) {
    golden g;
    char rel[256], path[1200];
    snprintf(rel, sizeof rel, "conformance/models/%s", name);
    test_path(g.folder, rel);
    snprintf(path, sizeof path, "%s/golden.json", g.folder);
    g.json = json_load_file(path, 0, NULL);
    if (!g.json) fail_msg("%s cannot be read", path);
    g.vocab = (int)json_integer_value(json_object_get(g.json, "vocab_size"));
    snprintf(path, sizeof path, "%s/logits.f32", g.folder);
    FILE *f = fopen(path, "rb");
    CHECK(f);
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    g.logits = malloc((size_t)size);
    CHECK(g.logits && fread(g.logits, 1, (size_t)size, f) == (size_t)size);
    fclose(f);
    return g;
}

static void close_golden(golden *g) {
    json_decref(g->json);
    free(g->logits);
}

/* prompt + greedy[0 .. 22] of a case; returns how many. */
static int case_ids(const json_t *c, int32_t *ids) {
    int n = 0;
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(c, "prompt"), i, v) ids[n++] =
        (int32_t)json_integer_value(v);
    json_array_foreach(json_object_get(c, "greedy"), i, v) {
        if (i < 23) ids[n++] = (int32_t)json_integer_value(v);
    }
    return n;
}

static int argmax(const float *l, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (l[i] > l[best]) best = i;
    return best;
}

static void compare_case(const golden *g, const json_t *c, const float *got, int n) {
    const float *want = g->logits + json_integer_value(json_object_get(c, "logits_offset_floats"));
    size_t count = (size_t)n * (size_t)g->vocab;
    float largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        largest = fmaxf(largest, fabsf(want[i]));
        worst = fmaxf(worst, fabsf(got[i] - want[i]));
    }
    if (!(worst <= 1e-3f * largest))
        fail_msg("%s: logits differ by %g, the largest is %g", g->folder, worst, largest);
    const json_t *greedy = json_object_get(c, "greedy"), *margin = json_object_get(c, "margin");
    int prompt = (int)json_array_size(json_object_get(c, "prompt"));
    for (int k = 0; k < 24; k++) {
        double m = json_number_value(json_array_get(margin, (size_t)k));
        if (m <= 2e-3 * largest) continue;
        CHECK_EQ(argmax(got + (size_t)(prompt - 1 + k) * (size_t)g->vocab, g->vocab),
                 json_integer_value(json_array_get(greedy, (size_t)k)));
    }
}

static void against_golden(const char *name) {
    golden g = open_golden(name);
    const setting s = {NULL, MXD_ACT_F32, 1, 2, 1, 1};
    pipeline *p = open_pipeline(g.folder, &s);
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(g.json, "cases"), i, c) {
        int32_t ids[CTX];
        int n = case_ids(c, ids);
        float *got = calloc((size_t)n * (size_t)g.vocab, sizeof *got);
        CHECK(got);
        run_chunks(p, &s, ids, n, got);
        compare_case(&g, c, got, n);
        free(got);
    }
    close_pipeline(p);
    close_golden(&g);
}

TEST(conformance_float32_path_agrees_with_mlx_lm) {
    for (size_t i = 0; i < MXD_COUNT(models); i++) against_golden(models[i]);
}

/* ----------------------------------------------------------------------------------- equal bits */

static void same_bits(const char *folder, const int32_t *ids, int n, const float *want,
                      const setting *s) {
    pipeline *p = open_pipeline(folder, s);
    size_t row = (size_t)p->vocab;
    float *got = calloc((size_t)n * row, sizeof *got);
    CHECK(got);
    run_chunks(p, s, ids, n, got);
    for (int at = 0; at < n; at++) {
        const float *g = got + (size_t)at * row;
        bool filled = false; /* only chunk ends were sampled */
        for (size_t i = 0; i < row && !filled; i++) filled = g[i] != 0;
        if (filled && memcmp(g, want + (size_t)at * row, row * sizeof *g) != 0)
            fail_msg(
                "%s: position %d differs: kernels %s act %d parts %d threads %d chunk %d batch %d",
                folder, at, s->kernels, s->act, s->parts, s->threads, s->chunk, s->batch);
    }
    free(got);
    close_pipeline(p);
}

/* Every kernel table x 1..3 parts x chunks x batches when `full`, else one far corner. */
static void invariance_of(const char *name, mxd_activations act, mxd_kv_type kv, bool full) {
    golden g = open_golden(name);
    int32_t ids[CTX];
    int n = case_ids(json_array_get(json_object_get(g.json, "cases"), 2), ids);
    const setting base = {"scalar", act, 1, 1, 1, 1, kv};
    pipeline *p = open_pipeline(g.folder, &base);
    float *want = calloc((size_t)n * (size_t)g.vocab, sizeof *want);
    CHECK(want);
    run_chunks(p, &base, ids, n, want);
    close_pipeline(p);
    const mxd_kernels *tables[8];
    size_t n_tables = mxd_kernels_usable(tables, 8);
    static const int chunks[] = {1, 7, 64};
    for (size_t t = 0; t < n_tables; t++)
        for (int parts = full ? 1 : 3; parts <= 3; parts++)
            for (size_t c = full ? 0 : 1; c < (full ? MXD_COUNT(chunks) : 2); c++)
                for (int batch = full ? 1 : 4; batch <= 4; batch += 3) {
                    const setting s = {tables[t]->name, act,   parts, 1 + parts % 3,
                                       chunks[c],       batch, kv};
                    same_bits(g.folder, ids, n, want, &s);
                }
    free(want);
    close_golden(&g);
}

static void invariance(const char *name, mxd_activations act, bool full) {
    invariance_of(name, act, MXD_KV_AUTO, full);
}

static bool in_full(const char *name) {
    static const char *const full[] = {"kv3-inter320", "moe-8bit", "deepseek-yarn", "gpt-oss-odd"};
    for (size_t i = 0; i < MXD_COUNT(full); i++)
        if (strcmp(name, full[i]) == 0) return true;
    return false;
}

TEST(conformance_bits_do_not_depend_on_split_chunk_batch_kernels_int8) {
    for (size_t i = 0; i < MXD_COUNT(models); i++)
        invariance(models[i], MXD_ACT_I8, in_full(models[i]));
}

TEST(conformance_bits_do_not_depend_on_split_chunk_batch_kernels_float32) {
    invariance("kv3-inter320", MXD_ACT_F32, false);
    invariance("plain-bf16", MXD_ACT_F32, true);
    invariance("mistral-sliding", MXD_ACT_F32, false); /* windows, and where chunks cut them */
    invariance("phi3-plain", MXD_ACT_F32, false);      /* parts of a matrix */
    invariance("moe-mixed", MXD_ACT_F32, false);
    invariance("qwen3-next-plain", MXD_ACT_F32, true); /* recurrent state */
    invariance("qwen3_5_moe-plain", MXD_ACT_F32, false);
    invariance("gemma2-capped", MXD_ACT_F32, false);
    invariance("gemma4-shared", MXD_ACT_F32, false); /* layers that read others' K and V */
    invariance("gpt-oss-plain", MXD_ACT_F32, false); /* sinks */
    invariance("glm4-moe-groups", MXD_ACT_F32, false);
    invariance("minimax-mxfp8", MXD_ACT_F32, false);
    invariance("deepseek-mixed", MXD_ACT_F32, true); /* latent KV */
    invariance("deepseek-joined-plain", MXD_ACT_F32, false);
}

TEST(conformance_bits_do_not_depend_on_split_chunk_batch_kernels_q8) {
    invariance_of("kv3-inter320", MXD_ACT_I8, MXD_KV_Q8, true);
    invariance_of("mistral-sliding", MXD_ACT_F32, MXD_KV_Q8, false);
    invariance_of("gemma4-shared", MXD_ACT_I8, MXD_KV_Q8, false);
    invariance_of("gpt-oss-plain", MXD_ACT_F32, MXD_KV_Q8, false);
    invariance_of("deepseek-mixed", MXD_ACT_I8, MXD_KV_Q8, false);
}

/* ------------------------------------------------- what quantised activations, K and V cost
 *
 * Divergence of the next token's distribution from the float32 path's, in nats; docs/numerics.md.
 */

static float *all_logits(const golden *g, const int32_t *ids, int n, mxd_activations act,
                         mxd_kv_type kv) {
    const setting s = {NULL, act, 1, 2, 1, 1, kv};
    pipeline *p = open_pipeline(g->folder, &s);
    float *got = calloc((size_t)n * (size_t)g->vocab, sizeof *got);
    CHECK(got);
    run_chunks(p, &s, ids, n, got);
    close_pipeline(p);
    return got;
}

static double divergence(const float *p, const float *q, int n) {
    double max_p = p[argmax(p, n)], max_q = q[argmax(q, n)], sum_p = 0, sum_q = 0, kl = 0;
    for (int i = 0; i < n; i++) {
        sum_p += exp(p[i] - max_p);
        sum_q += exp(q[i] - max_q);
    }
    for (int i = 0; i < n; i++) {
        double lp = p[i] - max_p - log(sum_p), lq = q[i] - max_q - log(sum_q);
        kl += exp(lp) * (lp - lq);
    }
    return kl;
}

typedef struct cost {
    double mean, worst;
    int same, near, n; /* near: by less than 0.1 */
} cost;

static void add_cost(cost *c, const golden *g, const float *want, const float *got, int n) {
    for (int t = 0; t < n; t++, want += g->vocab, got += g->vocab) {
        double d = divergence(want, got, g->vocab);
        c->mean += d;
        c->worst = fmax(c->worst, d);
        c->near += d < 0.1;
        c->same += argmax(want, g->vocab) == argmax(got, g->vocab);
    }
    c->n += n;
}

static void report_cost(const char *name, const char *path, const cost *c, double limit) {
    printf("# %-16s %-6s divergence %.1e, at most %.1e; same token %.1f %%\n", name, path,
           c->mean / c->n, c->worst, 100.0 * c->same / c->n);
    if (!(c->mean / c->n <= limit))
        fail_msg("%s, %s: mean divergence %g", name, path, c->mean / c->n);
}

/* A close choice of experts, or of their groups, can fall the other way: few positions, but far. */
static bool has_experts(const golden *g) {
    char path[1200];
    snprintf(path, sizeof path, "%s/config.json", g->folder);
    json_t *c = json_load_file(path, 0, NULL);
    bool yes = json_object_get(c, "num_experts_per_tok") != NULL;
    json_decref(c);
    return yes;
}

static void check_near(const char *name, const golden *g, const char *path, const cost *c) {
    report_cost(name, path, c, has_experts(g) ? INFINITY : 0.1);
    if (c->near < 0.7 * c->n)
        fail_msg("%s, %s: %d of %d positions diverge", name, path, c->n - c->near, c->n);
}

TEST(conformance_divergence_of_quantised_paths) {
    for (size_t m = 0; m < MXD_COUNT(models); m++) {
        golden g = open_golden(models[m]);
        cost i8 = {0}, i16 = {0}, q8 = {0};
        size_t i;
        json_t *c;
        json_array_foreach(json_object_get(g.json, "cases"), i, c) {
            int32_t ids[CTX];
            int n = case_ids(c, ids);
            float *want = all_logits(&g, ids, n, MXD_ACT_F32, MXD_KV_F32);
            float *b8 = all_logits(&g, ids, n, MXD_ACT_I8, MXD_KV_F16),
                  *b16 = all_logits(&g, ids, n, MXD_ACT_I16, MXD_KV_F16),
                  *kv8 = all_logits(&g, ids, n, MXD_ACT_F32, MXD_KV_Q8);
            add_cost(&i8, &g, want, b8, n);
            add_cost(&i16, &g, want, b16, n);
            add_cost(&q8, &g, want, kv8, n);
            free(want), free(b8), free(b16), free(kv8);
        }
        check_near(models[m], &g, "int8", &i8);
        check_near(models[m], &g, "q8 KV", &q8);
        report_cost(models[m], "int16", &i16, 1e-4);
        close_golden(&g);
    }
}

TEST(conformance_int16_is_closer_than_int8) {
    golden g = open_golden("hidden192");
    const json_t *c = json_array_get(json_object_get(g.json, "cases"), 2);
    int32_t ids[CTX];
    int n = case_ids(c, ids);
    double error[2] = {0};
    const float *want = g.logits + json_integer_value(json_object_get(c, "logits_offset_floats"));
    for (int k = 0; k < 2; k++) {
        const setting s = {NULL, k ? MXD_ACT_I16 : MXD_ACT_I8, 1, 1, 1, 1};
        pipeline *p = open_pipeline(g.folder, &s);
        float *got = calloc((size_t)n * (size_t)g.vocab, sizeof *got);
        CHECK(got);
        run_chunks(p, &s, ids, n, got);
        for (size_t i = 0; i < (size_t)n * (size_t)g.vocab; i++)
            error[k] += fabs((double)got[i] - (double)want[i]);
        free(got);
        close_pipeline(p);
    }
    CHECK(error[1] < error[0] / 4);
    close_golden(&g);
}

/* ----------------------------------------------------------------------------------------- slots
 */

TEST(shard_refuses_positions_that_do_not_follow) {
    char folder[1024];
    test_path(folder, "conformance/models/tied-bf16");
    const setting s = {NULL, MXD_ACT_I8, 1, 1, 1, 1};
    pipeline *p = open_pipeline(folder, &s);
    mxd_err err = {0};
    mxd_sampled tokens[4];
    const int32_t ids[4] = {1, 2, 3, 4}, wild[1] = {1 << 20};
    mxd_step_result r = {.tokens = tokens};
    struct {
        mxd_step_run run;
        const int32_t *ids;
        int rows;
        mxd_rc want;
    } rows[] = {
        {{.slot = 0, .n = 3, .pos = 0, .sample = true}, ids, 3, MXD_OK},
        {{.slot = 0, .n = 1, .pos = 4, .sample = true}, ids, 1, MXD_E_STALE},
        {{.slot = 0, .n = 1, .pos = 2, .sample = true}, ids, 1, MXD_E_STALE},
        {{.slot = 1, .n = 1, .pos = 3, .sample = true}, ids, 1, MXD_E_STALE},
        {{.slot = 0, .n = 1, .pos = 3, .sample = true}, ids, 1, MXD_OK},
        {{.slot = 4, .n = 1, .pos = 0, .sample = true}, ids, 1, MXD_E_INVAL},
        {{.slot = 0, .n = 2, .pos = 4, .sample = true}, ids, 1, MXD_E_INVAL},
        {{.slot = 0, .n = 1, .pos = 4, .sample = true}, wild, 1, MXD_E_INVAL},
        {{.slot = 0, .n = 1, .pos = CTX, .sample = true}, ids, 1, MXD_E_INVAL},
        {{.slot = 0, .n = 2, .pos = 0, .sample = true}, ids, 2, MXD_OK},
        {{.slot = 0, .n = 1, .pos = 2, .sample = false}, ids, 1, MXD_OK},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_step st = {1, rows[i].rows, &rows[i].run, rows[i].ids, NULL};
        CHECK_EQ(mxd_shard_step(p->part[0], &st, &r, &err), rows[i].want);
    }
    CHECK_EQ(r.n_tokens, 0);
    mxd_shard_forget(p->part[0]);
    mxd_step st = {1, 1, &rows[1].run, ids, NULL};
    CHECK_EQ(mxd_shard_step(p->part[0], &st, &r, &err), MXD_E_STALE);
    close_pipeline(p);
}

/* Recurrent state belongs to the slot: kept where a run goes on, zeros where one starts, whoever
 * was there before and whoever runs beside it. */
TEST(shard_recurrent_state_follows_its_slot) {
    static const struct { /* each slot's positions in this step; n = 0: it rests */
        int pos, n;
        int seq;
    } steps[][3] = {
        {{0, 5, 1}, {0, 0, 0}, {0, 9, 2}}, {{0, 1, 0}, {0, 3, 1}, {9, 1, 2}},
        {{1, 6, 0}, {3, 1, 1}, {0, 2, 0}}, {{0, 0, 0}, {4, 9, 1}, {2, 6, 0}},
        {{7, 2, 0}, {0, 9, 0}, {8, 1, 0}},
    };
    char folder[1024];
    test_path(folder, "conformance/models/qwen3_5-6bit");
    const setting s = {NULL, MXD_ACT_F32, 2, 2, 1, 1};
    pipeline *p = open_pipeline(folder, &s), *alone = open_pipeline(folder, &s);
    size_t vocab = (size_t)p->vocab;
    float *got = malloc(4 * vocab * sizeof *got), *want = malloc(vocab * sizeof *want);
    for (size_t i = 0; i < MXD_COUNT(steps); i++) {
        mxd_step_run runs[3];
        int32_t ids[ROWS];
        int n_runs = 0, rows = 0, of[3];
        for (int slot = 2; slot >= 0; slot--) {
            if (!steps[i][slot].n) continue;
            of[n_runs] = slot;
            runs[n_runs++] = (mxd_step_run){.slot = (uint16_t)slot,
                                            .n = (uint16_t)steps[i][slot].n,
                                            .pos = (uint32_t)steps[i][slot].pos,
                                            .sample = true};
            for (int t = 0; t < steps[i][slot].n; t++)
                ids[rows++] = steps[i][slot].seq * 40 + steps[i][slot].pos + t;
        }
        step(p, runs, n_runs, ids, rows, got);
        for (int r = 0; r < n_runs; r++) { /* the same sequence from its start, in one piece */
            int n = steps[i][of[r]].pos + steps[i][of[r]].n;
            for (int t = 0; t < n; t++) ids[t] = steps[i][of[r]].seq * 40 + t;
            mxd_step_run whole = {.slot = 0, .n = (uint16_t)n, .sample = true};
            step(alone, &whole, 1, ids, n, want);
            if (memcmp(want, got + (size_t)r * vocab, vocab * sizeof *want) != 0)
                fail_msg("step %zu: slot %d differs", i, of[r]);
        }
    }
    free(got), free(want);
    close_pipeline(p), close_pipeline(alone);
}

TEST_OOM(shard_opens_or_unwinds) {
    char folder[1024];
    mxd_shard *s;
    mxd_shard_opts o = {.folder = test_path(folder, "conformance/models/tied-bf16"),
                        .n_slots = 2,
                        .ctx = 64,
                        .max_rows = 16,
                        .backend = "cpu",
                        .backend_opts = {.threads = 1}};
    MXD_TRY(mxd_shard_open(&s, al, &o, err));
    mxd_shard_close(s);
    return MXD_OK;
}
