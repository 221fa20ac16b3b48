/* A part of a model loads, and computes the same bits, from files in which all else is garbage. */
#include "test.h"

#include <dirent.h>
#include <stdlib.h>
#include "parallel_kit.h"
#include "ranges_kit.h"
#include "runtime/shard.h"

enum { N = 5, MAX_HIDDEN = 1024 };

/* Hidden states behind the first stage, or logits behind the last, of N tokens. */
static void run(const char *folder, int layer0, int layer1, const float *in, float *out,
                float *logits) {
    mxd_err err = {0};
    mxd_shard *s;
    mxd_shard_opts o = {.folder = folder,
                        .layer0 = layer0,
                        .layer1 = layer1,
                        .n_slots = 1,
                        .ctx = 64,
                        .max_rows = 8,
                        .backend = "cpu",
                        .backend_opts = {.threads = 1, .spin_us = -1}};
    CHECK_OK(mxd_shard_open(&s, &mxd_alloc_libc, &o, &err), &err);
    CHECK(mxd_shard_hidden(s) <= MAX_HIDDEN);
    const int32_t ids[N] = {5, 6, 7, 8, 9};
    mxd_sampled token;
    const mxd_step_run r = {.n = N, .sample = true};
    const mxd_step step = {1, N, &r, ids, in};
    mxd_step_result result = {.hidden = out, .tokens = &token, .logits = logits};
    CHECK_OK(mxd_shard_step(s, &step, &result, &err), &err);
    mxd_shard_close(s);
}

static void check_model(const char *folder, const char *name) {
    mxd_err err = {0};
    mxd_model *m;
    CHECK_OK(mxd_model_open(&m, &mxd_alloc_libc, folder, &err), &err);
    const mxd_hparams *hp = mxd_model_hparams(m);
    int cut = 1, n_vocab = hp->n_vocab;
    bool whole = hp->last_cut < 0 || hp->n_layers < 2;
    uint64_t all = mxd_model_weight_bytes(m);
    mxd_model_close(m);
    float *mid = calloc(2 * N * MAX_HIDDEN, sizeof(float));
    float *logits = calloc(2 * (size_t)n_vocab, sizeof(float));
    CHECK(mid && logits);
    char dir[64];
    if (!whole) {
        uint64_t kept = ranges_kit_make(dir, folder, 0, cut, 0, NULL, 0);
        CHECK(kept < all);
        run(folder, 0, cut, NULL, mid, NULL);
        run(dir, 0, cut, NULL, mid + N * MAX_HIDDEN, NULL);
        ranges_kit_remove(dir);
        if (memcmp(mid, mid + N * MAX_HIDDEN, N * MAX_HIDDEN * sizeof *mid) != 0)
            fail_msg("%s: the first stage reads something else", name);
    }
    int first = whole ? 0 : cut;
    ranges_kit_make(dir, folder, first, 0, 0, NULL, 0);
    run(folder, first, 0, whole ? NULL : mid, NULL, logits);
    run(dir, first, 0, whole ? NULL : mid, NULL, logits + n_vocab);
    ranges_kit_remove(dir);
    if (memcmp(logits, logits + n_vocab, (size_t)n_vocab * sizeof *logits) != 0)
        fail_msg("%s: the last stage reads something else", name);
    free(mid);
    free(logits);
}

TEST(ranges_are_all_that_a_stage_reads) {
    char models[1024], folder[1400];
    test_path(models, "conformance/models");
    DIR *d = opendir(models);
    CHECK(d);
    int n = 0;
    for (const struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        snprintf(folder, sizeof folder, "%s/%s", models, e->d_name);
        check_model(folder, e->d_name);
        n++;
    }
    closedir(d);
    CHECK(n > 40);
}

/* Ranks that hold all layers together, in unequal parts, some with none. */
TEST(ranges_are_all_that_a_rank_reads) {
    static char names[PK_MAX_MODELS][64];
    static const double shares[][PK_MAX_RANKS] = {{1, 4}, {2, 0, 3}, {1, 1, 5, 1}};
    int n = pk_list(names);
    for (int i = 0; i < n; i++) {
        pk_model m;
        pk_open(&m, names[i]);
        float *want = calloc(2 * pk_floats(&m), sizeof *want), *got = want + pk_floats(&m);
        CHECK(want);
        pk_plan plan = pk_whole(&m);
        pk_run(&m, MXD_ACT_I8, &plan, want);
        plan.stage[0].size = 2 + i % 3;
        plan.stage[0].group = plan.stage[0].alone = true;
        memcpy(plan.stage[0].shares, shares[i % 3], sizeof shares[0]);
        pk_run(&m, MXD_ACT_I8, &plan, got);
        if (memcmp(want, got, pk_floats(&m) * sizeof *want) != 0)
            fail_msg("%s: a rank reads something else", names[i]);
        free(want);
    }
}
