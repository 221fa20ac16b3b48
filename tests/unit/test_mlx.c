/* The `mlx` backend on whole models: the goldens of mlx-lm, in chunks and in ragged batches.
 * Without the plugin these are skipped; with one that was built and does not open, they fail. */
#include "test.h"

#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include <jansson.h>
#include "backend/mlx/loader.h"
#include "runtime/shard.h"

enum { CTX = 160, SLOTS = 4, ROWS = SLOTS * CTX < MXD_MAX_STEP_TOKENS ? SLOTS * CTX : 512 };

static mxd_shard_opts options(const char *folder) {
    return (mxd_shard_opts){.folder = folder,
                            .n_slots = SLOTS,
                            .ctx = CTX,
                            .max_rows = ROWS,
                            .backend = "mlx",
                            .backend_opts = {.kv = MXD_KV_F32, .kernels = "cpu"}};
}

static void need_plugin(void) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    mxd_rc rc = mxd_backend_open(&b, &mxd_alloc_libc, "mlx", NULL, &err);
    if (rc && !MXD_MLX_BUILT) SKIP(err.msg);
    CHECK_OK(rc, &err);
    CHECK_STR(b->ops->name, "mlx");
    b->ops->close(b);
}

/* -------------------------------------------------------------------------------------- goldens */

typedef struct golden {
    const char *name;
    char folder[1024];
    json_t *json;
    float *logits;
    int vocab;
    bool later; /* may be refused */
} golden;

static golden open_golden(const char *name) {
    golden g = {.name = name};
    char rel[256], path[1200];
    snprintf(rel, sizeof rel, "conformance/models/%s", name);
    test_path(g.folder, rel);
    snprintf(path, sizeof path, "%s/golden.json", g.folder);
    g.json = json_load_file(path, 0, NULL);
    if (!g.json) fail_msg("%s cannot be read", path);
    g.vocab = (int)json_integer_value(json_object_get(g.json, "vocab_size"));
    g.later = json_object_get(g.json, "issue") != NULL;
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

typedef struct sequence { /* of one case: prompt and answer */
    const char *model;
    int n, n_prompt, vocab;
    int32_t ids[CTX];  /* [n] */
    const float *want; /* [n, vocab] */
    float largest;     /* of |want| */
    const json_t *c;
} sequence;

static sequence case_of(const golden *g, const json_t *c) {
    sequence s = {.c = c, .model = g->name, .vocab = g->vocab};
    size_t i;
    json_t *v;
    const json_t *prompt = json_object_get(c, "prompt"), *greedy = json_object_get(c, "greedy");
    s.n_prompt = (int)json_array_size(prompt);
    json_array_foreach(prompt, i, v) s.ids[s.n++] = (int32_t)json_integer_value(v);
    json_array_foreach(greedy, i, v) s.ids[s.n++] = (int32_t)json_integer_value(v);
    s.n--; /* nothing was asked about the last token */
    s.want = g->logits + json_integer_value(json_object_get(c, "logits_offset_floats"));
    for (size_t k = 0; k < (size_t)s.n * (size_t)s.vocab; k++)
        s.largest = fmaxf(s.largest, fabsf(s.want[k]));
    return s;
}

/* The logits and the token after position `at` of the sequence. */
static void check_position(const sequence *s, int at, const float *got, int32_t token) {
    const float *want = s->want + (size_t)at * (size_t)s->vocab;
    for (int i = 0; i < s->vocab; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-3f * s->largest))
            fail_msg("%s: position %d, logit %d: %g, want %g (largest %g)", s->model, at, i,
                     (double)got[i], (double)want[i], (double)s->largest);
    int k = at + 1 - s->n_prompt;
    if (k < 0) return;
    double margin = json_number_value(json_array_get(json_object_get(s->c, "margin"), (size_t)k));
    json_int_t greedy =
        json_integer_value(json_array_get(json_object_get(s->c, "greedy"), (size_t)k));
    if (margin > 2e-3 * (double)s->largest) CHECK_EQ(token, greedy);
}

/* One micro-batch of n runs; checks the logits after the last row of each against its sequence. */
static void step(mxd_shard *shard, int n, const mxd_step_run *runs, const sequence *const *seq) {
    int32_t ids[ROWS];
    int rows = 0;
    mxd_err err = {0};
    mxd_sampled tokens[SLOTS];
    for (int i = 0; i < n; i++) {
        memcpy(ids + rows, seq[i]->ids + runs[i].pos, runs[i].n * sizeof *ids);
        rows += runs[i].n;
    }
    size_t vocab = (size_t)seq[0]->vocab;
    float *logits = calloc((size_t)n * vocab, sizeof *logits);
    CHECK(logits);
    mxd_step st = {n, rows, runs, ids, NULL};
    mxd_step_result r = {.tokens = tokens, .logits = logits};
    CHECK_OK(mxd_shard_step(shard, &st, &r, &err), &err);
    const float *at = logits;
    for (int i = 0; i < n; i++) {
        if (!runs[i].sample) continue;
        check_position(seq[i], (int)runs[i].pos + runs[i].n - 1, at,
                       tokens[(size_t)(at - logits) / vocab].token);
        at += vocab;
    }
    free(logits);
}

static mxd_step_run run_of(int slot, int pos, int n, bool sample) {
    return (mxd_step_run){
        .slot = (uint16_t)slot, .n = (uint16_t)n, .pos = (uint32_t)pos, .sample = sample};
}

/* Every position as the end of a prefill from 0, SLOTS lengths at a time. */
static void prefill_every_length(mxd_shard *shard, const sequence *s) {
    for (int len = 1; len <= s->n; len += SLOTS) {
        mxd_step_run runs[SLOTS];
        const sequence *seq[SLOTS];
        int n = 0;
        for (; n < SLOTS && len + n <= s->n; n++) {
            runs[n] = run_of(n, 0, len + n, true);
            seq[n] = s;
        }
        step(shard, n, runs, seq);
    }
}

/* In chunks; those within the prompt ask for no logits. */
static void prefill_in_chunks(mxd_shard *shard, const sequence *s, int chunk) {
    for (int at = 0; at < s->n; at += chunk) {
        int n = s->n - at < chunk ? s->n - at : chunk;
        mxd_step_run run = run_of(1, at, n, at + n >= s->n_prompt);
        step(shard, 1, &run, &s);
    }
}

/* Sequences of different lengths, token by token in one batch; each joins a step later. */
static void decode_ragged(mxd_shard *shard, const sequence *all, int n_all) {
    int at[SLOTS] = {0};
    for (int round = 0;; round++) {
        mxd_step_run runs[SLOTS];
        const sequence *seq[SLOTS];
        int n = 0;
        for (int i = 0; i < n_all && i <= round; i++) {
            if (at[i] == all[i].n) continue;
            runs[n] = run_of(i, at[i]++, 1, true);
            seq[n++] = &all[i];
        }
        if (n == 0) return;
        step(shard, n, runs, seq);
    }
}

static void against_golden(const char *name) {
    golden g = open_golden(name);
    mxd_shard *shard = NULL;
    mxd_err err = {0};
    mxd_shard_opts o = options(g.folder);
    mxd_rc rc = mxd_shard_open(&shard, &mxd_alloc_libc, &o, &err);
    if (rc == MXD_E_UNSUPPORTED && g.later) {
        fprintf(stderr, "SKIP %s: %s\n", name, err.msg);
        close_golden(&g);
        return;
    }
    CHECK_OK(rc, &err);
    CHECK_STR(mxd_shard_backend(shard), "mlx");
    CHECK_STR(mxd_shard_determinism(shard), "per-node");
    CHECK(mxd_shard_bytes(shard) > 10000);
    sequence all[SLOTS];
    int n = 0;
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(g.json, "cases"), i, c) if (n < SLOTS) all[n++] =
        case_of(&g, c);
    CHECK(n >= 2);
    for (int k = 0; k < n; k++) {
        if (k == 0) prefill_every_length(shard, &all[k]);
        prefill_in_chunks(shard, &all[k], 7);
        prefill_in_chunks(shard, &all[k], 33);
    }
    decode_ragged(shard, all, n);
    mxd_shard_close(shard);
    close_golden(&g);
}

static int is_model(const struct dirent *d) { return d->d_name[0] != '.'; }

TEST(mlx_agrees_with_mlx_lm) {
    need_plugin();
    char folder[1024];
    struct dirent **models;
    int n = scandir(test_path(folder, "conformance/models"), &models, is_model, alphasort);
    CHECK(n > 10);
    for (int i = 0; i < n; i++) {
        against_golden(models[i]->d_name);
        free(models[i]);
    }
    free(models);
}

/* The first half on one shard, the second on another, with the hidden states between them. */
TEST(mlx_passes_hidden_states_between_shards) {
    need_plugin();
    golden g = open_golden("untied-f16");
    sequence s = case_of(&g, json_array_get(json_object_get(g.json, "cases"), 2));
    mxd_shard *part[2] = {NULL};
    mxd_err err = {0};
    for (int i = 0; i < 2; i++) {
        mxd_shard_opts o = options(g.folder);
        o.layer0 = i ? 2 : 0;
        o.layer1 = i ? 4 : 2;
        CHECK_OK(mxd_shard_open(&part[i], &mxd_alloc_libc, &o, &err), &err);
    }
    float *hidden = calloc((size_t)s.n * (size_t)mxd_shard_hidden(part[0]), sizeof *hidden);
    float *logits = calloc((size_t)s.vocab, sizeof *logits);
    CHECK(hidden && logits);
    mxd_sampled token;
    mxd_step_run run = run_of(3, 0, s.n, true);
    mxd_step st = {1, s.n, &run, s.ids, NULL};
    mxd_step_result r = {.hidden = hidden};
    CHECK_OK(mxd_shard_step(part[0], &st, &r, &err), &err);
    st.hidden = hidden;
    r = (mxd_step_result){.logits = logits, .tokens = &token};
    CHECK_OK(mxd_shard_step(part[1], &st, &r, &err), &err);
    check_position(&s, s.n - 1, logits, token.token);
    free(hidden);
    free(logits);
    mxd_shard_close(part[0]);
    mxd_shard_close(part[1]);
    close_golden(&g);
}

/* --------------------------------------------------------------------------------------- opening
 */

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    CHECK(f);
    fputs(text, f);
    CHECK(fclose(f) == 0);
}

TEST(mlx_says_what_is_missing_in_one_line) {
    char dir[] = "/tmp/mxd-mlx-XXXXXX", file[64];
    CHECK(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/plugin.so", dir);
    write_file(file, "not a library");
    const struct {
        mxd_backend_opts opts;
        const char *has;
    } rows[] = {
        {{.plugin = "/nowhere/libmlxd_mlx.so"}, "/nowhere/libmlxd_mlx.so"},
        {{.plugin = dir}, dir}, /* a folder without one */
        {{.plugin = file}, file},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_backend *b = NULL;
        mxd_err err = {0};
        CHECK_EQ(mxd_backend_open(&b, &mxd_alloc_libc, "mlx", &rows[i].opts, &err), MXD_E_NOTFOUND);
        CHECK(b == NULL);
        CHECK(strstr(err.msg, rows[i].has) && strstr(err.msg, "pip install"));
        CHECK(!strchr(err.msg, '\n') && strlen(err.msg) < sizeof err.msg - 1);
    }
    unlink(file);
    rmdir(dir);
}

TEST(mlx_refuses_a_plugin_of_another_build) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    const mxd_backend_opts o = {.plugin = MXD_OTHER_PLUGIN};
    CHECK_EQ(mxd_backend_open(&b, &mxd_alloc_libc, "mlx", &o, &err), MXD_E_UNSUPPORTED);
    CHECK(b == NULL && strstr(err.msg, "another build") && !strchr(err.msg, '\n'));
}

TEST(mlx_refuses_options_it_does_not_have) {
    need_plugin();
    mxd_backend *b = NULL;
    mxd_err err = {0};
    mxd_backend_opts o = {.kernels = "avx2"};
    CHECK_EQ(mxd_mlx_open(&b, &mxd_alloc_libc, &o, &err), MXD_E_INVAL);
    o = (mxd_backend_opts){.mlx_lib = "/nowhere/libmlx.so"};
    CHECK_EQ(mxd_mlx_open(&b, &mxd_alloc_libc, &o, &err), MXD_E_NOTFOUND);
    CHECK(strstr(err.msg, "/nowhere/libmlx.so"));
}

TEST(mlx_auto_always_opens) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "auto", NULL, &err), &err);
#if !defined(__APPLE__)
    CHECK_STR(b->ops->name, "cpu");
#endif
    b->ops->close(b);
}
