/* Tensor parallelism: ranks on threads of this process, which exchange through memory, against one
 * shard that has it all. Logits must be equal bit by bit, on every rank. */
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include "model/model.h"
#include "runtime/shard.h"

enum { CTX = 64, N_IDS = 33, MAX_SIZE = 6, CHUNK = 7, MAX_HIDDEN = 192, MAX_STAGES = 2 };

/* ----------------------------------------------------------------------------- ranks on threads */

typedef struct room { /* where ranks meet */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int size, here;
    unsigned round;
    bool broken; /* some rank has failed: nobody waits any more */
    const float *given[MXD_MAX_RANKS];
} room;

typedef struct rank {
    room *room;
    mxd_group group;
    mxd_shard *stage[MAX_STAGES];
    int n_stages;
    const int32_t *ids;
    float *logits; /* [N_IDS, vocab] */
    mxd_rc rc;
    mxd_err err;
    pthread_t thread;
} rank;

static bool meet(room *m) {
    pthread_mutex_lock(&m->lock);
    unsigned round = m->round;
    if (++m->here == m->size) {
        m->here = 0;
        m->round++;
        pthread_cond_broadcast(&m->moved);
    }
    while (round == m->round && !m->broken) pthread_cond_wait(&m->moved, &m->lock);
    bool ok = !m->broken;
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static mxd_rc exchange(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    rank *r = ctx;
    float *mine = all;
    for (int i = 0; i < r->group.rank; i++) mine += n_each[i];
    r->room->given[r->group.rank] = mine;
    bool ok = meet(r->room);
    for (int i = 0; ok && i < r->group.size; all += n_each[i++])
        if (n_each[i] && i != r->group.rank)
            memcpy(all, r->room->given[i], n_each[i] * sizeof *all);
    if (ok) ok = meet(r->room); /* before `mine` changes */
    return ok ? MXD_OK : mxd_fail(err, MXD_E_CANCELED, "another rank failed");
}

/* Sevens, then ones: the logits behind every chunk, through the stages of a pipeline. */
static mxd_rc run_ids(mxd_shard *const *stage, int n_stages, const int32_t *ids, float *logits,
                      mxd_err *err) {
    size_t vocab = (size_t)mxd_shard_vocab(stage[0]);
    float hidden[CHUNK * MAX_HIDDEN];
    for (int at = 0, n; at < N_IDS; at += n) {
        n = at < 3 * CHUNK ? CHUNK : 1;
        mxd_sampled token;
        const mxd_step_run run = {.slot = 1, .n = (uint16_t)n, .pos = (uint32_t)at, .sample = true};
        for (int i = 0; i < n_stages; i++) {
            const mxd_step step = {1, n, &run, ids + at, i ? hidden : NULL};
            mxd_step_result out = {.hidden = hidden,
                                   .tokens = &token,
                                   .logits = logits + (size_t)(at + n - 1) * vocab};
            MXD_TRY(mxd_shard_step(stage[i], &step, &out, err));
        }
    }
    return MXD_OK;
}

static void *run_rank(void *arg) {
    rank *r = arg;
    r->rc = run_ids(r->stage, r->n_stages, r->ids, r->logits, &r->err);
    if (!r->rc) return NULL;
    pthread_mutex_lock(&r->room->lock);
    r->room->broken = true;
    pthread_cond_broadcast(&r->room->moved);
    pthread_mutex_unlock(&r->room->lock);
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
                        int n_stages, const int32_t *ids, const float *want, size_t n_floats) {
    room m = {.size = size};
    rank ranks[MAX_SIZE] = {0};
    pthread_mutex_init(&m.lock, NULL);
    pthread_cond_init(&m.moved, NULL);
    for (int i = 0; i < size; i++) {
        rank *r = &ranks[i];
        *r = (rank){.room = &m, .group = {i, size, r, exchange}, .ids = ids, .n_stages = n_stages};
        for (int k = 0; k < n_stages; k++) {
            mxd_shard_opts o = options(folder, act);
            o.group = &r->group;
            o.shares = shares;
            o.layer0 = k;
            o.layer1 = k + 1 < n_stages ? k + 1 : 0;
            CHECK_OK(mxd_shard_open(&r->stage[k], &mxd_alloc_libc, &o, &r->err), &r->err);
        }
        r->logits = calloc(n_floats, sizeof(float));
        CHECK(r->logits);
    }
    for (int i = 0; i < size; i++)
        CHECK(!pthread_create(&ranks[i].thread, NULL, run_rank, &ranks[i]));
    for (int i = 0; i < size; i++) pthread_join(ranks[i].thread, NULL);
    for (int i = 0; i < size; i++) {
        CHECK_OK(ranks[i].rc, &ranks[i].err);
        if (memcmp(ranks[i].logits, want, n_floats * sizeof *want) != 0)
            fail_msg("%s: act %d, rank %d of %d (%s shares) differs", folder, act, i, size,
                     shares ? "uneven" : "even");
        for (int k = 0; k < n_stages; k++) mxd_shard_close(ranks[i].stage[k]);
        free(ranks[i].logits);
    }
    pthread_mutex_destroy(&m.lock);
    pthread_cond_destroy(&m.moved);
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
    size_t n = (size_t)N_IDS * (size_t)vocab;
    float *want = calloc(n, sizeof *want);
    CHECK(want);
    CHECK_OK(run_ids(&one, 1, ids, want, &err), &err);
    mxd_shard_close(one);
    for (int size = 1; size <= MAX_SIZE; size++) {
        check_ranks(folder, act, size, NULL, 1, ids, want, n);
        check_ranks(folder, act, size, uneven[size], 1 + (size == 3), ids, want, n);
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

/* The planner knows a model by its sizes only; what it plans is what a rank will hold. */
TEST(parallel_sizes_tell_the_bytes_of_shares) {
    static const double weights[][4] = {{1, 0, 0, 0}, {1, 1, 0, 0}, {3, 5, 2, 0}, {9, 1, 4, 2}};
    static const char *const all[] = {
        "kv3-inter320",    "tied-bf16",       "moe-8bit",   "moe-mixed",     "gpt-oss-odd",
        "gemma2-capped",   "phi3-plain",      "untied-f16", "gpt-oss-mxfp4", "llama-yarn-bias",
        "glm4-moe-groups", "mixed-overrides", "hidden192"};
    static mxd_model_sizes z; /* too big for a stack */
    for (size_t i = 0; i < MXD_COUNT(all); i++) {
        mxd_model *m = open_model(all[i]);
        mxd_err err = {0};
        mxd_model_sizes_get(m, 64, MXD_KV_F16, &z);
        if (!z.cuts.possible) fail_msg("%s cannot be cut", all[i]);
        for (int size = 1; size <= 4; size++) {
            mxd_shares s, same;
            CHECK_OK(mxd_model_share(m, size, weights[size - 1], &s, &err), &err);
            CHECK_OK(mxd_cuts_share(&z.cuts, size, weights[size - 1], &same, &err), &err);
            CHECK_EQ(memcmp(&s, &same, sizeof s), 0);
            for (int r = 0; r < size; r++) {
                uint64_t ids = (uint64_t)(s.vocab[r + 1] - s.vocab[r]);
                for (int l = 0; l < z.n_layers; l++) {
                    uint64_t want =
                        z.cuts.whole[l] + z.cuts.per_kv[l] * (uint64_t)(s.kv[r + 1] - s.kv[r]) +
                        z.cuts.per_inner[l] * (uint64_t)(s.inner[r + 1] - s.inner[r]) +
                        z.cuts.per_expert[l] * (uint64_t)(s.experts[r + 1] - s.experts[r]);
                    CHECK_EQ(mxd_model_share_bytes(m, &s, r, l), want);
                }
                CHECK_EQ(mxd_model_share_bytes(m, &s, r, z.n_layers),
                         ids * (z.cuts.embed_per_id + z.cuts.head_per_id) + z.cuts.norm_bytes);
            }
        }
        mxd_model_close(m);
    }
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
    for (int calls = 0; calls < 4; calls++) {
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
        CHECK(strstr(err.msg, "rank 1 is lost") != NULL);
        CHECK_EQ(left, -1); /* no call after the one that failed */
        run.pos = 2;
        CHECK_EQ(mxd_shard_step(s, &step, &out, &err), MXD_E_STALE);
        mxd_shard_close(s);
    }
}

TEST_OOM(parallel_rank_opens_or_unwinds) {
    char folder[1024];
    mxd_shard *s;
    mxd_shard_opts o = options(test_path(folder, "conformance/models/kv3-inter320"), MXD_ACT_I8);
    const mxd_group g = {1, 3, NULL, exchange};
    o.group = &g;
    MXD_TRY(mxd_shard_open(&s, al, &o, err));
    mxd_shard_close(s);
    return MXD_OK;
}
