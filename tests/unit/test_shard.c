/* Sequences that begin alike: page tables by themselves, and the bits of a shard that reuses KV. */
#include "test.h"

#include <stdlib.h>
#include <unistd.h>
#include "runtime/pages.h"
#include "runtime/shard.h"

/* ------------------------------------------------------------------------------------------ pages
 */

enum { N_SEQS = 5, LONGEST = 60, PAGE = 4, N_PAGES = N_SEQS * LONGEST / PAGE };

static struct {
    mxd_pages p;
    uint16_t refs[N_PAGES];
    int32_t free[N_PAGES], tables[N_SEQS][LONGEST / PAGE];
    mxd_page_table seqs[N_SEQS];
} g;

static void begin_pages(void) {
    memset(&g, 0, sizeof g);
    g.p.refs = g.refs;
    g.p.free = g.free;
    mxd_pages_init(&g.p, PAGE, N_PAGES);
    for (int i = 0; i < N_SEQS; i++) g.seqs[i].table = g.tables[i];
}

/* Every page is free or in as many tables as it counts, and in no table twice. */
static void check_pages(void) {
    int named[N_PAGES] = {0}, used = 0;
    for (int i = 0; i < N_SEQS; i++) {
        CHECK_EQ(g.seqs[i].n, (g.seqs[i].len + PAGE - 1) / PAGE);
        for (int k = 0; k < g.seqs[i].n; k++) {
            named[g.seqs[i].table[k]]++;
            for (int j = 0; j < k; j++) CHECK(g.seqs[i].table[j] != g.seqs[i].table[k]);
        }
    }
    for (int i = 0; i < N_PAGES; i++) {
        CHECK_EQ(g.refs[i], named[i]);
        used += named[i] > 0;
    }
    for (int i = 0; i < g.p.n_free; i++) CHECK_EQ(named[g.free[i]], 0);
    CHECK_EQ(g.p.n_free, N_PAGES - used);
}

TEST(pages_are_shared_and_come_back) {
    begin_pages();
    mxd_pages_cover(&g.p, &g.seqs[0], 10);
    CHECK_EQ(g.p.n_free, N_PAGES - 3);
    mxd_pages_share(&g.p, &g.seqs[1], &g.seqs[0], 8);
    CHECK_EQ(g.p.n_free, N_PAGES - 3);
    CHECK_EQ(g.seqs[1].len, 8);
    mxd_pages_cover(&g.p, &g.seqs[1], 9);
    CHECK(g.seqs[1].table[2] != g.seqs[0].table[2]);
    check_pages();
    CHECK(!mxd_pages_can_cut(&g.p, &g.seqs[0], 11)); /* there are only 10 */
    CHECK(mxd_pages_can_cut(&g.p, &g.seqs[0], 9));   /* its own page */
    CHECK(!mxd_pages_can_cut(&g.p, &g.seqs[0], 7));  /* the other one sees position 7 */
    CHECK(mxd_pages_can_cut(&g.p, &g.seqs[0], 4));
    mxd_pages_cut(&g.p, &g.seqs[0], 4);
    check_pages();
    CHECK(mxd_pages_can_cut(&g.p, &g.seqs[1], 7)); /* nobody else does any more */
    mxd_pages_cut(&g.p, &g.seqs[0], 0);
    mxd_pages_cut(&g.p, &g.seqs[1], 0);
    CHECK_EQ(g.p.n_free, N_PAGES);
}

TEST(pages_after_any_order_of_use) {
    uint32_t rng = 1;
    begin_pages();
    for (int i = 0; i < 20000; i++) {
        rng = rng * 1664525 + 1013904223;
        int a = (int)(rng >> 8) % N_SEQS, b = (int)(rng >> 16) % N_SEQS;
        mxd_page_table *t = &g.seqs[a];
        uint32_t len = (rng >> 20) % (LONGEST + 1);
        if (len > t->len)
            mxd_pages_cover(&g.p, t, len);
        else if (mxd_pages_can_cut(&g.p, t, len))
            mxd_pages_cut(&g.p, t, len);
        if (a != b && rng >> 30 == 0) mxd_pages_share(&g.p, &g.seqs[b], t, t->len - t->len % PAGE);
        if (i % 10 == 0) check_pages();
    }
    for (int i = 0; i < N_SEQS; i++) mxd_pages_cut(&g.p, &g.seqs[i], 0);
    CHECK_EQ(g.p.n_free, N_PAGES);
}

/* ----------------------------------------------------------------------------------------- shards
 */

enum {
    CTX = 160,
    ROWS = 64,
    SLOTS = 3,
    ALL_PAGES = SLOTS * CTX / MXD_KV_PAGE_TOKENS,
    MAX_HIDDEN = 512
};

static const char *const models[] = {"tied-bf16", "kv3-inter320", "mistral-sliding", "moe-8bit"};

typedef struct pipeline {
    mxd_shard *part[2];
    int n_parts, vocab;
    float hidden[ROWS * MAX_HIDDEN], *logits;
    int32_t ids[SLOTS][CTX];
} pipeline;

static pipeline *open_pipeline(const char *model, int n_parts) {
    char folder[1024], rel[256];
    mxd_err err = {0};
    pipeline *p = calloc(1, sizeof *p);
    CHECK(p);
    snprintf(rel, sizeof rel, "conformance/models/%s", model);
    for (int i = 0; i < n_parts; i++) {
        mxd_shard_opts o = {.folder = test_path(folder, rel),
                            .layer0 = i,
                            .layer1 = i == n_parts - 1 ? 0 : 1,
                            .n_slots = SLOTS,
                            .ctx = CTX,
                            .max_rows = ROWS,
                            .backend = "cpu",
                            .backend_opts = {.threads = 1}};
        CHECK_OK(mxd_shard_open(&p->part[i], &mxd_alloc_libc, &o, &err), &err);
        CHECK(mxd_shard_hidden(p->part[i]) <= MAX_HIDDEN);
    }
    p->n_parts = n_parts;
    p->vocab = mxd_shard_vocab(p->part[0]);
    p->logits = calloc((size_t)p->vocab, sizeof *p->logits);
    CHECK(p->logits);
    for (int s = 0; s < SLOTS; s++)
        for (int i = 0; i < CTX; i++) p->ids[s][i] = (int32_t)((i * 37 + s * 11 + 5) % p->vocab);
    return p;
}

static void close_pipeline(pipeline *p) {
    for (int i = 0; i < p->n_parts; i++) {
        mxd_shard_forget(p->part[i]);
        CHECK_EQ(mxd_shard_free_pages(p->part[i]), ALL_PAGES);
        mxd_shard_close(p->part[i]);
    }
    free(p->logits);
    free(p);
}

static mxd_rc try_run(pipeline *p, mxd_step_run run, const int32_t *ids) {
    mxd_sampled token;
    run.sample = true;
    for (int i = 0; i < p->n_parts; i++) {
        mxd_step st = {1, run.n, &run, ids, i ? p->hidden : NULL};
        mxd_step_result r = {.hidden = p->hidden, .tokens = &token, .logits = p->logits};
        mxd_rc rc = mxd_shard_step(p->part[i], &st, &r, NULL);
        if (rc) return rc;
    }
    return MXD_OK;
}

/* Positions [at, to) of list `ids` into the slot, in chunks; the logits of position k, where a
 * chunk ends with it, must be want[k]. A first run may begin with what `from` holds. */
static void go_on(pipeline *p, int slot, const int32_t *ids, int at, int to, int chunk, int from,
                  const float *want) {
    for (bool begin = from >= 0; at < to; at += chunk, begin = false) {
        int n = to - at < chunk ? to - at : chunk;
        mxd_step_run run = {.slot = (uint16_t)slot, .n = (uint16_t)n, .pos = (uint32_t)at};
        if (begin) run.begin = true, run.from = (uint16_t)from;
        CHECK_EQ(try_run(p, run, ids + at), MXD_OK);
        const float *w = want + (size_t)(at + n - 1) * (size_t)p->vocab;
        if (memcmp(p->logits, w, (size_t)p->vocab * sizeof *w) != 0)
            fail_msg("slot %d: the logits of position %d have other bits", slot, at + n - 1);
    }
}

/* Logits of every position, computed from the first one, token by token. */
static float *plain(pipeline *p, const int32_t *ids, int n) {
    float *all = calloc((size_t)n * (size_t)p->vocab, sizeof *all);
    CHECK(all);
    for (int i = 0; i < n; i++) {
        mxd_step_run run = {.slot = 0, .n = 1, .pos = (uint32_t)i};
        CHECK_EQ(try_run(p, run, ids + i), MXD_OK);
        memcpy(all + (size_t)i * (size_t)p->vocab, p->logits, (size_t)p->vocab * sizeof *all);
    }
    return all;
}

static void reuse(const char *model, int n_parts, int chunk) {
    enum { P = MXD_KV_PAGE_TOKENS };
    pipeline *p = open_pipeline(model, n_parts);
    for (int i = 0; i < 2 * P; i++) p->ids[1][i] = p->ids[0][i]; /* alike at the beginning */
    for (int i = 0; i < P + 3; i++) p->ids[2][i] = p->ids[0][i];
    float *want[SLOTS];
    for (int s = 0; s < SLOTS; s++) want[s] = plain(p, p->ids[s], 130);
    mxd_shard_forget(p->part[0]);
    if (n_parts > 1) mxd_shard_forget(p->part[1]);

    go_on(p, 0, p->ids[0], 0, 100, chunk, -1, want[0]);
    go_on(p, 1, p->ids[1], 2 * P, 110, chunk, 0, want[1]); /* whole pages of slot 0 */
    CHECK_EQ(mxd_shard_free_pages(p->part[0]), ALL_PAGES - 4 - 2);
    go_on(p, 0, p->ids[0], 77, 120, chunk, 0, want[0]); /* cut back in a page of its own */
    go_on(p, 2, p->ids[2], P, 99, chunk, 1, want[2]);   /* a page that three share then */
    go_on(p, 0, p->ids[1], P, 120, chunk, 0, want[1]);  /* cut back among shared pages */
    go_on(p, 1, p->ids[1], 110, 130, 1, -1, want[1]);   /* goes on as if alone */
    go_on(p, 2, p->ids[2], 99, 130, chunk, -1, want[2]);
    go_on(p, 1, p->ids[0], 0, 120, chunk, -1, want[0]); /* anew: the others keep theirs */
    go_on(p, 0, p->ids[1], 120, 130, 1, -1, want[1]);
    go_on(p, 2, p->ids[2], 129, 130, 1, 2, want[2]); /* only the last one again */
    for (int s = 0; s < SLOTS; s++) free(want[s]);
    close_pipeline(p);
}

TEST(shard_reused_positions_give_equal_bits) {
    static const int chunks[] = {1, 7, 32, 50};
    for (size_t m = 0; m < MXD_COUNT(models); m++)
        for (size_t k = 0; k < MXD_COUNT(chunks); k++) reuse(models[m], 1 + (int)k % 2, chunks[k]);
}

/* Recurrent layers: all of a sequence, or what was kept beside it. */
static void reuse_state(const char *model, int n_parts, int chunk) {
    pipeline *p = open_pipeline(model, n_parts);
    for (int i = 0; i < 90; i++) p->ids[1][i] = p->ids[0][i];
    float *want[2];
    for (int s = 0; s < 2; s++) want[s] = plain(p, p->ids[s], 130);
    for (int i = 0; i < n_parts; i++) mxd_shard_forget(p->part[i]);
    for (int s = 0; s < 2; s++) { /* two slots at once: states do not mix */
        go_on(p, s, p->ids[0], 0, 70, chunk, -1, want[0]);
        mxd_step_run run = {.slot = (uint16_t)s, .n = 10, .pos = 70, .keep = true};
        CHECK_EQ(try_run(p, run, p->ids[0] + 70), MXD_OK);
    }
    go_on(p, 0, p->ids[0], 80, 100, chunk, -1, want[0]);
    go_on(p, 0, p->ids[0], 100, 110, chunk, 0, want[0]); /* at its end */
    const mxd_step_run bad[] = {
        {.slot = 0, .n = 1, .pos = 90, .begin = true, .from = 0},  /* not where it was kept */
        {.slot = 2, .n = 1, .pos = 64, .begin = true, .from = 0},  /* not another's */
        {.slot = 2, .n = 1, .pos = 80, .begin = true, .from = 0}}; /* not even what it kept */
    for (size_t i = 0; i < MXD_COUNT(bad); i++)
        CHECK_EQ(try_run(p, bad[i], p->ids[0]), MXD_E_STALE);
    go_on(p, 0, p->ids[1], 80, 130, chunk, 0, want[1]);  /* what was kept, with another ending */
    go_on(p, 0, p->ids[0], 80, 120, chunk, 0, want[0]);  /* and again */
    go_on(p, 1, p->ids[1], 80, 130, chunk, -1, want[1]); /* the other slot goes on */
    go_on(p, 1, p->ids[1], 0, 20, chunk, -1, want[1]);   /* anew: nothing is kept */
    CHECK_EQ(try_run(p, (mxd_step_run){.slot = 1, .n = 1, .pos = 80, .begin = true, .from = 1},
                     p->ids[1]),
             MXD_E_STALE);
    for (int s = 0; s < 2; s++) free(want[s]);
    close_pipeline(p);
}

TEST(shard_kept_states_give_equal_bits) {
    static const char *const recurrent[] = {"qwen3-next-plain", "qwen3_5-6bit"};
    static const int chunks[] = {1, 7, 50};
    char config[1024], rel[256];
    for (size_t m = 0; m < MXD_COUNT(recurrent); m++) {
        snprintf(rel, sizeof rel, "conformance/models/%s/config.json", recurrent[m]);
        if (access(test_path(config, rel), R_OK) != 0) SKIP("there is no recurrent model here");
    }
    for (size_t m = 0; m < MXD_COUNT(recurrent); m++)
        for (size_t k = 0; k < MXD_COUNT(chunks); k++)
            reuse_state(recurrent[m], 1 + (int)k % 2, chunks[k]);
}

TEST(shard_refuses_beginnings_that_are_not_there) {
    enum { P = MXD_KV_PAGE_TOKENS };
    pipeline *p = open_pipeline("tied-bf16", 1);
    const struct {
        mxd_step_run run;
        mxd_rc want;
    } rows[] = {
        {{.slot = 0, .n = 40, .pos = 0}, MXD_OK},
        {{.slot = 0, .n = 30, .pos = 40}, MXD_OK},
        {{.slot = 1, .n = 1, .pos = 3 * P, .begin = true, .from = 0}, MXD_E_STALE}, /* 70 there */
        {{.slot = 1, .n = 1, .pos = P + 1, .begin = true, .from = 0},
         MXD_E_STALE}, /* half a page */
        {{.slot = 1, .n = 1, .pos = P, .begin = true, .from = SLOTS}, MXD_E_INVAL},
        {{.slot = 1, .n = 1, .pos = P, .begin = true, .from = 2}, MXD_E_STALE}, /* empty */
        {{.slot = 1, .n = 1, .pos = 1, .begin = true, .from = 1}, MXD_E_STALE},
        {{.slot = 1, .n = CTX, .pos = P, .begin = true, .from = 0}, MXD_E_INVAL},
        {{.slot = 1, .n = 1, .pos = P, .begin = true, .from = 0}, MXD_OK},
        {{.slot = 0, .n = 1, .pos = P - 1, .begin = true, .from = 0}, MXD_E_STALE}, /* 1 sees it */
        {{.slot = 0, .n = 1, .pos = P + 1, .begin = true, .from = 0}, MXD_OK},
        {{.slot = 2, .n = 1, .pos = 0, .begin = true, .from = 1},
         MXD_OK}, /* nothing to begin with */
        {{.slot = 1, .n = 1, .pos = 0}, MXD_OK},
        {{.slot = 0, .n = 1, .pos = P - 1, .begin = true, .from = 0}, MXD_OK}, /* its own again */
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_rc rc = try_run(p, rows[i].run, p->ids[0]);
        if (rc != rows[i].want)
            fail_msg("row %zu: %s, want %s", i, mxd_rc_name(rc), mxd_rc_name(rows[i].want));
    }
    close_pipeline(p);
}

/* Runs of a step are prepared one after the other. */
TEST(shard_refuses_a_source_that_begins_anew_in_the_same_step) {
    enum { P = MXD_KV_PAGE_TOKENS };
    pipeline *p = open_pipeline("tied-bf16", 1);
    mxd_sampled tokens[2];
    mxd_step_result r = {.tokens = tokens};
    mxd_step_run first = {.slot = 0, .n = P + 1, .pos = 0};
    CHECK_EQ(try_run(p, first, p->ids[0]), MXD_OK);
    mxd_step_run runs[2] = {{.slot = 0, .n = 1, .pos = 0},
                            {.slot = 1, .n = 1, .pos = P, .begin = true, .from = 0}};
    mxd_step st = {2, 2, runs, p->ids[0], NULL};
    CHECK_EQ(mxd_shard_step(p->part[0], &st, &r, NULL), MXD_E_STALE);
    runs[0].pos = P + 1; /* it goes on: what is shared stays as it is */
    CHECK_EQ(mxd_shard_step(p->part[0], &st, &r, NULL), MXD_OK);
    runs[0] = (mxd_step_run){.slot = 0, .n = 1, .pos = P, .begin = true, .from = 0};
    CHECK_EQ(mxd_shard_step(p->part[0], &st, &r, NULL), MXD_E_STALE);
    close_pipeline(p);
}
