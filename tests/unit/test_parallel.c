/* Tensor parallelism: ranks on threads of this process, which exchange through memory, against one
 * shard that has it all. Logits must be equal bit by bit, on every rank. */
#include "test.h"

#include <stdlib.h>
#include "group_kit.h"
#include "model/model.h"
#include "runtime/shard.h"

enum {
    CTX = 64,
    N_IDS = 33,
    MAX_SIZE = 6,
    CHUNK = 7,
    MAX_HIDDEN = 192,
    MAX_STAGES = 2,
    N_SEQS = 2
};

/* ----------------------------------------------------------------------------- ranks on threads */

typedef struct rank {
    kit_member member;
    mxd_shard *stage[MAX_STAGES];
    int n_stages;
    const int32_t *ids;
    float *logits; /* [N_IDS, N_SEQS, vocab] */
    mxd_sampled tokens[N_IDS * N_SEQS];
    mxd_rc rc;
    mxd_err err;
} rank;

static const mxd_sampling ways[] = {
    {0},
    {.logprobs = true, .n_top = 5},
    {.temperature = 0.8f, .seed = 3, .logprobs = true},
    {.temperature = 0.9f, .seed = 4, .top_p = 0.95f, .top_k = 20, .repetition = 1.2f},
    {.temperature = 2, .seed = 5, .top_p = 0.99f, .n_top = 20, .presence = 1},
};
enum { N_WAYS = MXD_COUNT(ways) };

/* Two sequences, one of ids and one of their reverse, in sevens, then ones: the logits and tokens
 * behind every chunk, through the stages of a pipeline. */
static mxd_rc run_ids(mxd_shard *const *stage, int n_stages, const int32_t *ids, float *logits,
                      mxd_sampled *tokens, mxd_err *err) {
    size_t vocab = (size_t)mxd_shard_vocab(stage[0]);
    float hidden[N_SEQS * CHUNK * MAX_HIDDEN];
    for (int at = 0, n; at < N_IDS; at += n) {
        n = at < 3 * CHUNK ? CHUNK : 1;
        int32_t both[N_SEQS * CHUNK];
        mxd_step_run runs[N_SEQS];
        for (int i = 0; i < n; i++) {
            both[i] = ids[at + i];
            both[n + i] = ids[N_IDS - 1 - at - i];
        }
        for (int i = 0; i < N_SEQS; i++)
            runs[i] = (mxd_step_run){.slot = (uint16_t)(1 - i),
                                     .n = (uint16_t)n,
                                     .pos = (uint32_t)at,
                                     .sample = true,
                                     .how = ways[(at + i) % N_WAYS]};
        int row = (at + n - 1) * N_SEQS;
        for (int i = 0; i < n_stages; i++) {
            const mxd_step step = {N_SEQS, N_SEQS * n, runs, both, i ? hidden : NULL};
            mxd_step_result out = {
                .hidden = hidden, .tokens = &tokens[row], .logits = logits + (size_t)row * vocab};
            MXD_TRY(mxd_shard_step(stage[i], &step, &out, err));
        }
    }
    return MXD_OK;
}

static void *run_rank(void *arg) {
    rank *r = arg;
    r->rc = run_ids(r->stage, r->n_stages, r->ids, r->logits, r->tokens, &r->err);
    if (r->rc) kit_room_break(r->member.room);
    return NULL;
}

static mxd_shard_opts options(const char *folder, mxd_activations act) {
    return (mxd_shard_opts){.folder = folder,
                            .n_slots = 2,
                            .ctx = CTX,
                            .max_rows = 16,
                            .backend = "cpu",
                            .backend_opts = {.threads = 1, .spin_us = -1, .activations = act}};
}

/* Stages: the first layer, the others. */
static void check_ranks(const char *folder, mxd_activations act, int size, const double *shares,
                        int n_stages, const int32_t *ids, const float *want,
                        const mxd_sampled *tokens, size_t n_floats) {
    kit_room m;
    rank ranks[MAX_SIZE] = {0};
    kit_room_begin(&m, size);
    for (int i = 0; i < size; i++) {
        rank *r = &ranks[i];
        *r = (rank){.ids = ids, .n_stages = n_stages};
        kit_join_room(&r->member, &m, i);
        for (int k = 0; k < n_stages; k++) {
            mxd_shard_opts o = options(folder, act);
            o.group = &r->member.group;
            o.shares = shares;
            o.layer0 = k;
            o.layer1 = k + 1 < n_stages ? k + 1 : 0;
            CHECK_OK(mxd_shard_open(&r->stage[k], &mxd_alloc_libc, &o, &r->err), &r->err);
        }
        r->logits = calloc(n_floats, sizeof(float));
        CHECK(r->logits);
    }
    for (int i = 0; i < size; i++)
        CHECK(!pthread_create(&ranks[i].member.thread, NULL, run_rank, &ranks[i]));
    for (int i = 0; i < size; i++) pthread_join(ranks[i].member.thread, NULL);
    for (int i = 0; i < size; i++) {
        CHECK_OK(ranks[i].rc, &ranks[i].err);
        if (memcmp(ranks[i].logits, want, n_floats * sizeof *want) != 0)
            fail_msg("%s: act %d, rank %d of %d (%s shares) differs", folder, act, i, size,
                     shares ? "uneven" : "even");
        for (int k = 0; k < N_IDS * N_SEQS; k++)
            if (!kit_same_sampled(&ranks[i].tokens[k], &tokens[k]))
                fail_msg("%s: act %d, rank %d of %d, row %d: another token", folder, act, i, size,
                         k);
        for (int k = 0; k < n_stages; k++) mxd_shard_close(ranks[i].stage[k]);
        free(ranks[i].logits);
    }
    kit_room_end(&m);
}

/* -------------------------------------------------------------------------------- equal bits */

/* clang-format off */
static const char *const models[] = {
    "tied-bf16", "untied-f16", "deep-f32-scales", "kv3-inter320", "hidden192", "mixed-overrides",
    "moe-8bit", "gpt-oss-odd", "plain-bf16", "plain-f32", "llama-llama3", "llama-yarn-bias",
    "llama-dynamic", "mistral-sliding", "mistral3-llama", "ministral3-yarn", "qwen2-tied",
    "qwen2-kv3-f16", "phi3-longrope", "phi3-plain", "moe-mixed", "gemma2-capped", "gemma3-head",
    "gemma3-window", "gpt-oss-mxfp4", "gpt-oss-plain", "glm4-moe-groups", "glm4-moe-plain",
};
/* clang-format on */

static const double uneven[MAX_SIZE + 1][MAX_SIZE] = {
    {0}, {1}, {1, 4}, {2, 0, 3}, {1, 1, 5, 1}, {0, 3, 1, 1, 1}, {1, 2, 1, 0, 4, 1},
};

static void check_model(const char *name, mxd_activations act) {
    char rel[256], folder[1024];
    snprintf(rel, sizeof rel, "conformance/models/%s", name);
    test_path(folder, rel);
    mxd_err err = {0};
    mxd_shard *one;
    mxd_shard_opts o = options(folder, act);
    CHECK_OK(mxd_shard_open(&one, &mxd_alloc_libc, &o, &err), &err);
    int vocab = mxd_shard_vocab(one);
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++) ids[i] = (i * 37 + 11) % vocab;
    size_t n = (size_t)(N_IDS * N_SEQS) * (size_t)vocab;
    float *want = calloc(n, sizeof *want);
    CHECK(want);
    mxd_sampled tokens[N_IDS * N_SEQS] = {0};
    CHECK_OK(run_ids(&one, 1, ids, want, tokens, &err), &err);
    mxd_shard_close(one);
    for (int size = 1; size <= MAX_SIZE; size++) {
        check_ranks(folder, act, size, NULL, 1, ids, want, tokens, n);
        check_ranks(folder, act, size, uneven[size], 1 + (size == 3), ids, want, tokens, n);
    }
    free(want);
}

TEST(parallel_ranks_give_the_bits_of_one_shard_int8) {
    for (size_t i = 0; i < MXD_COUNT(models); i++) check_model(models[i], MXD_ACT_I8);
}

TEST(parallel_ranks_give_the_bits_of_one_shard_int16) {
    for (size_t i = 0; i < 8; i++) check_model(models[i], MXD_ACT_I16);
}

TEST(parallel_ranks_give_the_bits_of_one_shard_float32) {
    for (size_t i = 0; i < MXD_COUNT(models); i++) check_model(models[i], MXD_ACT_F32);
}

/* -------------------------------------------------------------------------------------- shares */

static mxd_model *open_model(const char *name) {
    char rel[256], folder[1024];
    snprintf(rel, sizeof rel, "conformance/models/%s", name);
    mxd_model *m = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_model_open(&m, &mxd_alloc_libc, test_path(folder, rel), &err), &err);
    return m;
}

TEST(parallel_shares_are_all_of_the_model_and_follow_weights) {
    mxd_model *m = open_model("kv3-inter320"); /* 3 KV heads, 5 blocks of 64 inner values */
    mxd_err err = {0};
    mxd_shares s;
    CHECK_OK(mxd_model_share(m, 2, (const double[]){2, 1}, &s, &err), &err);
    const int kv[] = {0, 2, 3}, inner[] = {0, 192, 320}, vocab[] = {0, 208, 320};
    for (int i = 0; i <= 2; i++) {
        CHECK_EQ(s.kv[i], kv[i]);
        CHECK_EQ(s.inner[i], inner[i]);
        CHECK_EQ(s.vocab[i], vocab[i]);
    }
    mxd_shares all;
    CHECK_OK(mxd_model_share(m, 1, NULL, &all, &err), &err);
    int n_layers = mxd_model_hparams(m)->n_layers;
    for (int l = 0; l <= n_layers; l++) { /* norms are on every rank, all else on one */
        uint64_t whole = mxd_model_share_bytes(m, &all, 0, l);
        uint64_t a = mxd_model_share_bytes(m, &s, 0, l), b = mxd_model_share_bytes(m, &s, 1, l);
        CHECK(a < whole && b < a && a + b >= whole && a + b < whole + 2048);
    }
    mxd_model_close(m);
}

TEST(parallel_shares_that_cannot_be_are_refused) {
    mxd_err err = {0};
    mxd_shares s;
    mxd_model *m = open_model("tied-bf16");
    CHECK_EQ(mxd_model_share(m, 0, NULL, &s, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_model_share(m, MXD_MAX_RANKS + 1, NULL, &s, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_model_share(m, 2, (const double[]){0, 0}, &s, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_model_share(m, 2, (const double[]){2, -1}, &s, &err), MXD_E_INVAL);
    mxd_model_close(m);
    m = open_model("deepseek-mixed");
    CHECK_EQ(mxd_model_share(m, 2, NULL, &s, &err), MXD_E_UNSUPPORTED);
    CHECK(strstr(err.msg, "deepseek_v3") != NULL);
    mxd_model_close(m);
}

static mxd_rc lost(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    (void)all, (void)n_each;
    int *calls = ctx;
    return --*calls < 0 ? mxd_fail(err, MXD_E_PEER, "rank 1 is lost") : MXD_OK;
}

/* The step fails, and the slot is empty, wherever it was. */
TEST(parallel_step_fails_when_an_exchange_does) {
    char folder[1024];
    test_path(folder, "conformance/models/tied-bf16");
    bool lost_one = true;
    for (int calls = 0; lost_one; calls++) {
        int left = calls;
        const mxd_group g = {0, 2, &left, lost};
        mxd_shard_opts o = options(folder, MXD_ACT_I8);
        o.group = &g;
        mxd_err err = {0};
        mxd_shard *s;
        CHECK_OK(mxd_shard_open(&s, &mxd_alloc_libc, &o, &err), &err);
        const int32_t ids[2] = {1, 2};
        mxd_sampled token;
        mxd_step_run run = {.slot = 0, .n = 2, .sample = true};
        const mxd_step step = {1, 2, &run, ids, NULL};
        mxd_step_result out = {.tokens = &token};
        CHECK_EQ(mxd_shard_step(s, &step, &out, &err), MXD_E_PEER);
        lost_one = strstr(err.msg, "rank 1 is lost") != NULL;
        if (lost_one)
            CHECK_EQ(left, -1); /* no call after the one that failed */
        else
            CHECK(calls > 4 && strstr(err.msg, "rank 1 sent") != NULL); /* zeros, for the token */
        run.pos = 2;
        CHECK_EQ(mxd_shard_step(s, &step, &out, &err), MXD_E_STALE);
        mxd_shard_close(s);
    }
}

TEST_OOM(parallel_rank_opens_or_unwinds) {
    char folder[1024];
    mxd_shard *s;
    mxd_shard_opts o = options(test_path(folder, "conformance/models/kv3-inter320"), MXD_ACT_I8);
    const mxd_group g = {1, 3, NULL, lost};
    o.group = &g;
    MXD_TRY(mxd_shard_open(&s, al, &o, err));
    mxd_shard_close(s);
    return MXD_OK;
}
