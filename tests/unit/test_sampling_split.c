/* Tokens of a vocabulary that is cut over ranks, against mxd_sample on all of it. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include "group_kit.h"
#include "runtime/tally.h"

enum { MAX_SIZE = 6, MAX_STEP = 4, N_TOKENS = 40, N_BIAS = 12 };

/* --------------------------------------------------------------------------------- one step */

typedef struct step {
    int n_vocab, size, n_rows;
    int edge[MXD_MAX_RANKS + 1];
    float *logits; /* [n_rows, n_vocab] */
    mxd_sampling how[MAX_STEP];
    mxd_logit_bias bias[N_BIAS];
    int32_t tokens[N_TOKENS];
    uint32_t n_tokens[MAX_STEP];
    mxd_sampled want[MAX_STEP];
} step;

typedef struct rank {
    kit_member member;
    const step *step;
    mxd_sampled got[MAX_STEP];
    bool kept; /* its logits are as they were */
    mxd_rc rc;
} rank;

static void *run_rank(void *arg) {
    rank *r = arg;
    const step *t = r->step;
    int from = t->edge[r->member.group.rank], n = t->edge[r->member.group.rank + 1] - from;
    mxd_arena a;
    mxd_split s;
    mxd_sample_row rows[MAX_STEP];
    float *mine = malloc(((size_t)n * MAX_STEP + 1) * sizeof *mine);
    CHECK(mine);
    size_t bytes = mxd_split_bytes(t->size, t->edge, MAX_STEP) + (size_t)n * 10 + 256;
    CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, bytes, NULL), MXD_OK);
    CHECK_EQ(mxd_split_init(&s, &a, &r->member.group, t->edge, MAX_STEP, NULL), MXD_OK);
    for (int i = 0; i < t->n_rows; i++) {
        const float *all = t->logits + (size_t)i * (size_t)t->n_vocab;
        memcpy(mine + i * n, all + from, (size_t)n * sizeof *mine);
        rows[i] = (mxd_sample_row){mine + i * n, &t->how[i], t->tokens, t->n_tokens[i]};
    }
    r->rc = mxd_sample_split(&s, rows, t->n_rows, r->got, NULL);
    r->kept = true;
    for (int i = 0; i < t->n_rows; i++) {
        const float *all = t->logits + (size_t)i * (size_t)t->n_vocab;
        if (memcmp(mine + i * n, all + from, (size_t)n * sizeof *mine) != 0) r->kept = false;
    }
    for (int i = 0; i < n; i++)
        if (s.mine.count[i]) r->kept = false;
    if (r->rc) kit_room_break(r->member.room);
    mxd_arena_deinit(&a);
    free(mine);
    return NULL;
}

/* Returns how many exchanges it took. */
static int check_step(step *t, const char *what) {
    mxd_arena a;
    mxd_sampler one;
    size_t n = (size_t)t->n_vocab;
    float *copy = malloc(n * sizeof *copy);
    CHECK(copy);
    CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, n * 10 + 256, NULL), MXD_OK);
    CHECK_EQ(mxd_sampler_init(&one, &a, t->n_vocab, NULL), MXD_OK);
    for (int i = 0; i < t->n_rows; i++) {
        memcpy(copy, t->logits + (size_t)i * n, n * sizeof *copy);
        mxd_sample(&one, copy, &t->how[i], t->tokens, t->n_tokens[i], &t->want[i]);
    }
    mxd_arena_deinit(&a);
    free(copy);
    kit_room m;
    rank ranks[MAX_SIZE] = {0};
    kit_room_begin(&m, t->size);
    for (int r = 0; r < t->size; r++) {
        kit_join_room(&ranks[r].member, &m, r);
        ranks[r].step = t;
        CHECK(!pthread_create(&ranks[r].member.thread, NULL, run_rank, &ranks[r]));
    }
    for (int r = 0; r < t->size; r++) pthread_join(ranks[r].member.thread, NULL);
    for (int r = 0; r < t->size; r++) {
        CHECK_EQ(ranks[r].rc, MXD_OK);
        CHECK(ranks[r].kept);
        CHECK_EQ(ranks[r].member.exchanges, ranks[0].member.exchanges);
        for (int i = 0; i < t->n_rows; i++)
            if (!kit_same_sampled(&ranks[r].got[i], &t->want[i]))
                fail_msg("%s: rank %d of %d, row %d of %d ids (T %g, top_k %d, top_p %g, min_p %g, "
                         "n_top %d): token %d and logprob %.9g, not %d and %.9g",
                         what, r, t->size, i, t->n_vocab, (double)t->how[i].temperature,
                         t->how[i].top_k, (double)t->how[i].top_p, (double)t->how[i].min_p,
                         t->how[i].n_top, ranks[r].got[i].token, (double)ranks[r].got[i].logprob,
                         t->want[i].token, (double)t->want[i].logprob);
    }
    kit_room_end(&m);
    return ranks[0].member.exchanges;
}

/* ----------------------------------------------------------------------------------- at random */

static unsigned state;

static unsigned draw(unsigned n) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

static float unit(void) { return (float)draw(1 << 20) / (1 << 20); }

static void random_edges(step *t) {
    for (int r = 1; r < t->size; r++) {
        int at = (int)draw((unsigned)t->n_vocab + 1), k = r;
        for (; k > 1 && t->edge[k - 1] > at; k--) t->edge[k] = t->edge[k - 1];
        t->edge[k] = at;
    }
    t->edge[t->size] = t->n_vocab;
}

enum { SMOOTH, PEAKED, TIES, FLAT, HOLES, NOTHING, HUGE_ONES, INFINITE, N_KINDS };

static float random_logit(unsigned kind) {
    float x = 4 * (unit() + unit() + unit() - 1.5f);
    switch (kind) {
    case PEAKED:
        return draw(40) ? x : 3 * x + 8;
    case TIES:
        return floorf(x);
    case FLAT:
        return 1.25f;
    case HOLES:
        return draw(3) ? x : draw(2) ? -INFINITY : (float)NAN;
    case NOTHING:
        return draw(2) ? -INFINITY : (float)NAN;
    case HUGE_ONES:
        return x * powf(10, (float)draw(38));
    case INFINITE:
        return draw(30) ? floorf(x) : draw(2) ? INFINITY : -INFINITY;
    default:
        return x;
    }
}

static mxd_sampling random_how(const step *t) {
    static const float heats[] = {0, 0, 1, 0.7f, 0.01f, 1e-9f, 2, 40};
    static const float tops[] = {0, 0, 1, 0.95f, 0.5f, 0.0001f, 0.999f, 0.9999999f};
    mxd_sampling how = {.temperature = heats[draw(8)], .seed = draw(1000), .choice = draw(3)};
    how.top_p = tops[draw(8)];
    if (!draw(3)) how.min_p = draw(2) ? 0.05f : unit();
    if (!draw(2)) how.top_k = (int32_t)(draw(2) ? 1 + draw(50) : draw((unsigned)t->n_vocab + 9));
    how.logprobs = draw(2);
    if (!draw(2)) how.n_top = (uint8_t)draw(MXD_MAX_TOP_LOGPROBS + 1);
    if (!draw(3)) how.repetition = 0.5f + unit();
    if (!draw(3)) how.presence = unit();
    if (!draw(3)) how.frequency = unit() - 0.5f;
    how.n_prompt = draw(N_TOKENS);
    how.n_bias = (uint16_t)(draw(2) ? draw(N_BIAS + 1) : 0);
    how.bias = t->bias;
    return how;
}

static void random_step(step *t, int n_vocab) {
    t->n_vocab = n_vocab;
    t->size = 1 + (int)draw(MAX_SIZE);
    t->n_rows = 1 + (int)draw(MAX_STEP);
    random_edges(t);
    for (int i = 0; i < N_TOKENS; i++) t->tokens[i] = (int32_t)draw((unsigned)n_vocab + 2) - 1;
    for (int i = 0; i < N_BIAS; i++)
        t->bias[i] = (mxd_logit_bias){(int32_t)draw((unsigned)n_vocab + 2) - 1,
                                      draw(3) ? 20 * unit() - 10 : -INFINITY};
    t->logits = malloc((size_t)(t->n_rows * n_vocab) * sizeof *t->logits);
    CHECK(t->logits);
    for (int i = 0; i < t->n_rows; i++) {
        unsigned kind = draw(N_KINDS);
        for (int k = 0; k < n_vocab; k++) t->logits[i * n_vocab + k] = random_logit(kind);
        t->how[i] = random_how(t);
        t->n_tokens[i] = draw(N_TOKENS + 1);
    }
}

TEST(sampling_split_gives_the_bits_of_the_whole) {
    static const int sizes[] = {1, 5, 16, 50, 320, 1500, 4000};
    state = 1;
    for (int i = 0; i < 1400; i++) {
        step t = {0};
        random_step(&t, sizes[i % (int)MXD_COUNT(sizes)]);
        check_step(&t, "at random");
        free(t.logits);
    }
}

/* ------------------------------------------------------------------------------------ exchanges */

/* One row of n ids over 3 ranks of 0.5, 0.2 and 0.3. */
static int exchanges(int n, unsigned kind, mxd_sampling how) {
    step t = {.n_vocab = n, .size = 3, .n_rows = 2, .edge = {0, n / 2, n * 7 / 10, n}};
    t.logits = malloc((size_t)n * 2 * sizeof *t.logits);
    CHECK(t.logits);
    for (int i = 0; i < 2 * n; i++) t.logits[i] = random_logit(kind);
    t.how[0] = t.how[1] = how;
    int used = check_step(&t, "exchanges");
    free(t.logits);
    return used;
}

TEST(sampling_split_takes_one_exchange_for_what_is_usual) {
    static const mxd_sampling usual[] = {
        {0},
        {.logprobs = true, .n_top = 20, .presence = 1},
        {.temperature = 0.8f, .logprobs = true, .seed = 2},
        {.temperature = 0.7f, .top_k = 20, .top_p = 0.95f, .seed = 3, .logprobs = true},
        {.temperature = 3, .top_k = 256, .top_p = 0.9999f, .seed = 4},
        {.temperature = 0.5f, .top_p = 0.9f, .seed = 5},
        {.temperature = 1, .min_p = 0.3f, .seed = 6},
    };
    state = 2;
    for (size_t i = 0; i < MXD_COUNT(usual); i++) CHECK_EQ(exchanges(20000, PEAKED, usual[i]), 1);
}

TEST(sampling_split_goes_on_where_filters_reach_far) {
    static const mxd_sampling far[] = {
        {.temperature = 1, .top_p = 0.999f, .seed = 1},
        {.temperature = 9, .top_p = 0.7f, .seed = 2, .logprobs = true, .n_top = 3},
        {.temperature = 1, .min_p = 1e-9f, .seed = 3, .repetition = 1.1f},
        {.temperature = 2, .top_k = 19999, .top_p = 0.99f, .seed = 4},
        {.temperature = 2, .top_k = 19999, .seed = 5},
        {.temperature = 2, .top_k = 300, .top_p = 0.98f, .seed = 6},
    };
    state = 3;
    for (size_t i = 0; i < MXD_COUNT(far); i++)
        for (unsigned kind = SMOOTH; kind <= HOLES; kind++) {
            int used = exchanges(20000, kind, far[i]);
            if (kind == FLAT && used < 2) fail_msg("way %zu: one exchange, of flat logits", i);
        }
}

/* Token 0 when everything is banned, with the logit that the model gave it. */
TEST(sampling_split_of_nothing) {
    for (int empty = 0; empty < 2; empty++) {
        float logits[6] = {0.5f, 1, 2, 3, 4, 5};
        step t = {.n_vocab = 6, .size = 3, .n_rows = 1, .edge = {0, empty ? 0 : 2, 4, 6}};
        t.logits = logits;
        for (int i = 0; i < 6; i++) t.bias[i] = (mxd_logit_bias){i, -INFINITY};
        static const mxd_sampling ways[] = {{0},
                                            {.temperature = 1},
                                            {.temperature = 1, .top_p = 0.5f},
                                            {.temperature = 1, .top_k = 2}};
        for (size_t i = 0; i < MXD_COUNT(ways); i++) {
            t.how[0] = ways[i];
            t.how[0].logprobs = true;
            t.how[0].bias = t.bias;
            t.how[0].n_bias = 6;
            check_step(&t, "all banned");
            CHECK(t.want[0].token == 0 && t.want[0].logprob < 0);
        }
    }
}

/* ------------------------------------------------------------------------------------- messages */

static mxd_rc silent(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    (void)err;
    memset(all + n_each[0], *(int *)ctx, n_each[1] * sizeof *all);
    return MXD_OK;
}

TEST(sampling_split_refuses_what_cannot_be) {
    static const mxd_sampling ways[] = {
        {0}, {.temperature = 1}, {.temperature = 1, .top_p = 0.9f}, {.logprobs = true}};
    const float logits[8] = {0};
    const int edge[] = {0, 8, 16};
    for (int byte = 0; byte < 256; byte++) {
        const mxd_group g = {0, 2, &byte, silent};
        mxd_arena a;
        mxd_split s;
        mxd_err err = {0};
        CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, mxd_split_bytes(2, edge, 1) + 512, NULL),
                 MXD_OK);
        CHECK_EQ(mxd_split_init(&s, &a, &g, edge, 1, NULL), MXD_OK);
        for (size_t i = 0; i < MXD_COUNT(ways); i++) {
            mxd_sampled out;
            const mxd_sample_row row = {logits, &ways[i], NULL, 0};
            CHECK_EQ(mxd_sample_split(&s, &row, 1, &out, &err), MXD_E_PEER);
            CHECK(strstr(err.msg, "rank 1") != NULL);
        }
        mxd_arena_deinit(&a);
    }
}

/* Rank 1 repeats what rank 0 has said. */
static mxd_rc mirror(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    (void)ctx, (void)err;
    CHECK_EQ(n_each[0], n_each[1]);
    memcpy(all + n_each[0], all, n_each[0] * sizeof *all);
    return MXD_OK;
}

TEST(sampling_split_refuses_ids_of_another_part) {
    static const mxd_sampling ways[] = {{0}, {.temperature = 1}, {.temperature = 1, .top_p = 0.9f}};
    const float logits[8] = {3, 2, 1};
    const int edge[] = {0, 8, 16};
    const mxd_group g = {0, 2, NULL, mirror};
    mxd_arena a;
    mxd_split s;
    mxd_err err = {0};
    size_t bytes = mxd_split_bytes(2, edge, 1) + 512;
    CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, bytes, NULL), MXD_OK);
    CHECK_EQ(mxd_split_init(&s, &a, &g, edge, 1, NULL), MXD_OK);
    for (size_t i = 0; i < MXD_COUNT(ways); i++) {
        mxd_sampled out;
        const mxd_sample_row row = {logits, &ways[i], NULL, 0};
        CHECK_EQ(mxd_sample_split(&s, &row, 1, &out, &err), MXD_E_PEER);
    }
    mxd_arena_deinit(&a);
}

typedef struct forgery { /* what rank 1 of 2 says, with one word changed */
    float words[512];
    size_t n, at;
    uint32_t value;
    bool ready;
} forgery;

static mxd_rc forge(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    forgery *f = ctx;
    float *theirs = all + n_each[0];
    CHECK(n_each[1] < MXD_COUNT(f->words));
    if (!f->ready) { /* as rank 1 */
        f->n = n_each[1];
        memcpy(f->words, theirs, f->n * sizeof *theirs);
        return mxd_fail(err, MXD_E_CANCELED, "alone");
    }
    if (n_each[1] != f->n) return mxd_fail(err, MXD_E_CANCELED, "further candidates");
    memcpy(theirs, f->words, f->n * sizeof *theirs);
    memcpy(theirs + f->at, &f->value, sizeof *theirs);
    return MXD_OK;
}

TEST(sampling_split_survives_any_wrong_word) {
    static const mxd_sampling ways[] = {{0},
                                        {.temperature = 1, .logprobs = true, .n_top = 9},
                                        {.temperature = 1, .top_p = 0.99f},
                                        {.temperature = 1, .min_p = 1e-6f},
                                        {.temperature = 1, .top_k = 3, .top_p = 0.9f, .n_top = 2}};
    static const uint32_t values[] = {0, 7, 16, 0x7fffffff, 0x80000000, 0xffffffff, 0x7f800000};
    const float logits[8] = {3, 2, 1};
    const int edge[] = {0, 8, 16};
    for (size_t i = 0; i < MXD_COUNT(ways); i++) {
        forgery f = {.n = 1};
        for (f.at = 0; f.at < f.n; f.at += f.ready)
            for (size_t k = 0; k < MXD_COUNT(values); k++) {
                const mxd_group g = {f.ready ? 0 : 1, 2, &f, forge};
                mxd_arena a;
                mxd_split s;
                mxd_err err = {0};
                mxd_sampled out;
                const mxd_sample_row row = {logits, &ways[i], NULL, 0};
                f.value = values[k];
                size_t bytes = mxd_split_bytes(2, edge, 1) + 512;
                CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, bytes, NULL), MXD_OK);
                CHECK_EQ(mxd_split_init(&s, &a, &g, edge, 1, NULL), MXD_OK);
                mxd_rc rc = mxd_sample_split(&s, &row, 1, &out, &err);
                CHECK(rc == MXD_E_PEER || rc == MXD_E_CANCELED || (!rc && f.ready));
                if (!rc) CHECK(out.token >= 0 && out.token < 16);
                mxd_arena_deinit(&a);
                f.ready = true;
            }
    }
}

/* ---------------------------------------------------------------------------------------- tally */

TEST(sampling_tally_is_the_sum_whatever_its_parts) {
    enum { N = 3000 };
    static float l[N];
    static const float heats[] = {0.05f, 0.7f, 1, 3};
    state = 4;
    for (int i = 0; i < N; i++) l[i] = 12 * random_logit(SMOOTH);
    for (size_t h = 0; h < MXD_COUNT(heats); h++) {
        mxd_tally all, sum, part;
        mxd_tally_take(&all, l, N, heats[h]);
        double want = 0;
        for (int i = 0; i < N; i++) want += exp(((double)l[i] - all.max) / heats[h]);
        CHECK(fabs(mxd_tally_value(&all, heats[h]) / want - 1) < 1e-12);
        for (int k = 0; k < 200; k++) {
            int at = (int)draw(N), to = at + (int)draw((unsigned)(N - at));
            mxd_tally_take(&sum, l + at, to - at, heats[h]);
            mxd_tally_take(&part, l, at, heats[h]);
            mxd_tally_join(&sum, &part);
            mxd_tally_take(&part, l + to, N - to, heats[h]);
            mxd_tally_join(&sum, &part);
            CHECK(!memcmp(&sum, &all, sizeof all));
        }
    }
}

TEST(sampling_tally_of_few) {
    mxd_tally t;
    float none[2] = {-INFINITY, NAN}, one[3] = {-INFINITY, 7, NAN}, two[2] = {INFINITY, INFINITY};
    mxd_tally_take(&t, none, 2, 1);
    CHECK(t.of == 0 && mxd_tally_value(&t, 1) == 0);
    mxd_tally_take(&t, one, 3, 0.3f);
    CHECK(t.of == 1 && mxd_tally_value(&t, 0.3f) == 1); /* a certain token has logprob 0 */
    mxd_tally_take(&t, two, 2, 1);
    CHECK(t.of == 2 && mxd_tally_value(&t, 1) == 2);
}
