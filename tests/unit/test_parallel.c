/* Tensor parallelism: shares and their sizes, and what fails when a rank does. That ranks give the
 * bits of one node: test_matrix.c. */
#include <math.h>

#include "model/model.h"
#include "parallel_kit.h"

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
    for (int l = 0; l <= n_layers; l++) { /* norms and tables of cuts are on every rank */
        uint64_t whole = mxd_model_share_bytes(m, &all, 0, l);
        uint64_t a = mxd_model_share_bytes(m, &s, 0, l), b = mxd_model_share_bytes(m, &s, 1, l);
        CHECK(a < whole && b < a && a + b >= whole && a + b < whole + 16384);
    }
    mxd_model_close(m);
}

/* The planner knows a model by its sizes only; what it plans is what a rank holds, but for tiles of
 * 16 rows at the edges of parts. */
static double planned_layer(const mxd_model_cuts *c, const mxd_shares *s, int r, int l) {
    double sum = c->whole[l];
    for (int a = 0; a < MXD_AXES; a++) {
        const int *edge = mxd_axis_edges(s, (mxd_axis)a);
        if (a != MXD_BY_TOKEN) sum += c->per[a][l] * (edge[r + 1] - edge[r]);
    }
    return sum;
}

TEST(parallel_sizes_tell_the_bytes_of_shares) {
    static const double weights[][4] = {{1, 0, 0, 0}, {1, 1, 0, 0}, {3, 5, 2, 0}, {9, 1, 4, 2}};
    static const char *const all[] = {
        "kv3-inter320",  "tied-bf16",        "moe-8bit",        "moe-mixed",
        "gpt-oss-odd",   "gemma2-capped",    "phi3-plain",      "untied-f16",
        "gpt-oss-mxfp4", "llama-yarn-bias",  "glm4-moe-groups", "mixed-overrides",
        "hidden192",     "gemma4-shared",    "deepseek-mixed",  "kimi-k2",
        "minimax-mxfp8", "qwen3-next-plain", "qwen3_5-6bit"};
    static mxd_model_sizes z, held; /* too big for a stack */
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
                mxd_model_share_sizes(m, &s, r, 64, MXD_KV_F16, &held);
                for (int l = 0; l < z.n_layers; l++) {
                    double want = (double)held.layer_bytes[l];
                    double got = planned_layer(&z.cuts, &s, r, l);
                    if (fabs(got - want) > 0.03 * want + 16 * 1024)
                        fail_msg("%s, rank %d of %d, layer %d: %.0f, it holds %.0f", all[i], r,
                                 size, l, got, want);
                }
                double head =
                    z.cuts.norm_bytes + z.cuts.head_per_id * (s.vocab[r + 1] - s.vocab[r]);
                CHECK(fabs(head - (double)held.head_bytes) <= 0.03 * head + 16 * 1024);
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
}

/* ------------------------------------------------------------------------- what ranks hold */

static mxd_rc lost(void *ctx, float *all, const size_t *n_each, mxd_err *err);

typedef struct held { /* of a rank's backend */
    mxd_backend *b;
    uint64_t fresh, weights, all; /* bytes before, with the weights, and with all that steps need */
    uint64_t done, total;         /* as loading says */
} held;

static bool note(void *ctx, uint64_t done, uint64_t total) {
    held *h = ctx;
    h->weights = h->b->ops->bytes(h->b) - h->fresh;
    h->done = done;
    h->total = total;
    return true;
}

/* Loads layers [layer0, layer1) for rank g->rank (g NULL: alone). */
static held load_rank(const char *name, const mxd_group *g, const mxd_shares *shares, int layer0,
                      int layer1, int n_pages, int n_states) {
    mxd_err err = {0};
    held h = {0};
    mxd_model *m = open_model(name);
    const mxd_backend_opts one = {.threads = 1, .spin_us = -1};
    CHECK_OK(mxd_backend_open(&h.b, &mxd_alloc_libc, "cpu", &one, &err), &err);
    h.fresh = h.b->ops->bytes(h.b);
    const mxd_load_opts o = {.layer0 = layer0,
                             .layer1 = layer1,
                             .max_rows = 64,
                             .max_logits = 8,
                             .n_pages = n_pages,
                             .max_context = 64,
                             .n_states = n_states,
                             .progress = note,
                             .progress_ctx = &h,
                             .group = g,
                             .shares = shares};
    CHECK_OK(mxd_model_load(m, h.b, &o, &err), &err);
    h.all = h.b->ops->bytes(h.b) - h.fresh;
    h.b->ops->close(h.b);
    mxd_model_close(m);
    return h;
}

/* Sizes of the layers of one rank against what its backend holds. */
static void check_sizes(const char *name, const mxd_group *g, const mxd_shares *shares,
                        const mxd_model_sizes *s, int layer0, int layer1) {
    uint64_t weights = 0, kv = 0, state = 0, slack = s->reembed ? 1024 : 0;
    bool first = layer0 == 0, last = layer1 == s->n_layers;
    for (int l = layer0; l < layer1; l++) {
        weights += s->layer_bytes[l];
        kv += s->layer_kv_bytes[l];
        state += s->layer_state_bytes[l];
    }
    if (last) weights += s->head_bytes;
    if ((first || s->reembed) && !(last && s->tied)) weights += s->embed_bytes;
    held none = load_rank(name, g, shares, layer0, layer1, 0, 1);
    held pages = load_rank(name, g, shares, layer0, layer1, 4, 1);
    held states = load_rank(name, g, shares, layer0, layer1, 0, 5);
    CHECK_EQ(none.done, none.total);
    if (none.weights < weights || none.weights > weights + slack)
        fail_msg("%s: weights: %llu planned, %llu held", name, (unsigned long long)weights,
                 (unsigned long long)none.weights);
    CHECK_EQ(pages.all - none.all, 4 * MXD_KV_PAGE_TOKENS * kv);
    CHECK_EQ(states.all - none.all, 4 * state);
    uint64_t scratch = none.all - none.weights - state;
    if (last && (scratch > s->scratch_bytes + (64 << 10) || scratch < s->scratch_bytes / 2))
        fail_msg("%s: scratch: %llu planned, %llu held", name, (unsigned long long)s->scratch_bytes,
                 (unsigned long long)scratch);
}

static void check_group(const char *name, const mxd_model *m, int size, const double *weight) {
    static mxd_model_sizes s;
    mxd_err err = {0};
    mxd_shares shares;
    CHECK_OK(mxd_model_share(m, size, weight, &shares, &err), &err);
    for (int r = 0; r < size; r++) {
        const mxd_group g = {r, size, NULL, lost};
        mxd_model_share_sizes(m, &shares, r, 64, MXD_KV_F16, &s);
        check_sizes(name, &g, &shares, &s, 0, s.n_layers);
        for (int l = 0; l < s.n_layers; l++)
            CHECK_EQ(mxd_model_share_bytes(m, &shares, r, l), s.layer_bytes[l]);
        uint64_t ends = s.head_bytes + (s.tied ? 0 : s.embed_bytes);
        CHECK_EQ(mxd_model_share_bytes(m, &shares, r, s.n_layers), ends);
    }
}

TEST(parallel_sizes_are_what_is_held) {
    static char names[PK_MAX_MODELS][64];
    static mxd_model_sizes s;
    int n = pk_list(names);
    for (int i = 0; i < n; i++) {
        mxd_model *m = open_model(names[i]);
        mxd_model_sizes_get(m, 64, MXD_KV_F16, &s);
        int cut = s.last_cut < 0 ? 0 : s.last_cut ? s.last_cut : s.n_layers / 2;
        check_sizes(names[i], NULL, NULL, &s, 0, s.n_layers);
        if (cut) check_sizes(names[i], NULL, NULL, &s, 0, cut);
        if (cut) check_sizes(names[i], NULL, NULL, &s, cut, s.n_layers);
        check_group(names[i], m, 2, NULL);
        check_group(names[i], m, 3, (const double[]){3, 0, 2});
        mxd_model_close(m);
    }
}

static mxd_rc lost(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    (void)all, (void)n_each;
    int *calls = ctx;
    return --*calls < 0 ? mxd_fail(err, MXD_E_PEER, "rank 1 is lost") : MXD_OK;
}

/* The step fails, and the slot is empty, wherever it was. */
TEST(parallel_step_fails_when_an_exchange_does) {
    pk_model m;
    pk_open(&m, "tied-bf16");
    bool lost_one = true;
    for (int calls = 0; lost_one; calls++) {
        int left = calls;
        const mxd_group g = {0, 2, &left, lost};
        mxd_shard_opts o = pk_options(&m, MXD_ACT_I8);
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
    pk_model m;
    pk_open(&m, "kv3-inter320");
    mxd_shard *s;
    mxd_shard_opts o = pk_options(&m, MXD_ACT_I8);
    const mxd_group g = {1, 3, NULL, lost};
    o.group = &g;
    MXD_TRY(mxd_shard_open(&s, al, &o, err));
    mxd_shard_close(s);
    return MXD_OK;
}

TEST_OOM(parallel_rank_of_a_delta_net_opens_or_unwinds) {
    pk_model m;
    pk_open(&m, "qwen3_5-6bit");
    mxd_shard *s;
    mxd_shard_opts o = pk_options(&m, MXD_ACT_I8);
    const mxd_group g = {0, 2, NULL, lost};
    o.group = &g;
    MXD_TRY(mxd_shard_open(&s, al, &o, err));
    mxd_shard_close(s);
    return MXD_OK;
}
