/* A coordinator that is closed in the middle of requests and opened again over its journal. */
#include "test.h"

#include <pthread.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/coordinator.h"

enum { CAP = 512, WAIT_MS = 60000, TOKENS = 300 };

typedef struct answer {
    pthread_mutex_t lock;
    mxd_sampled t[CAP];
    int n, n_ends;
    mxd_end how;
    uint64_t id;
} answer;

static char dir[64];
static const int32_t prompt[] = {5, 400, 31, 7, 1200};
static const mxd_logit_bias bias[] = {{9, -100}};

static void on_token(void *ctx, const mxd_sampled *s, bool stop) {
    answer *a = ctx;
    (void)stop;
    pthread_mutex_lock(&a->lock);
    CHECK(a->n < CAP && !a->n_ends);
    a->t[a->n++] = *s;
    pthread_mutex_unlock(&a->lock);
}

static void on_end(void *ctx, const mxd_request_end *end) {
    answer *a = ctx;
    pthread_mutex_lock(&a->lock);
    a->n_ends++;
    a->how = end->how;
    pthread_mutex_unlock(&a->lock);
}

static answer *answer_new(void) {
    answer *a = calloc(1, sizeof *a);
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

static void answer_free(answer *a) {
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* For n tokens, or for the end when n is 0. */
static void wait_for(answer *a, int n) {
    int64_t until = mxd_now_ms() + WAIT_MS;
    for (bool there = false; !there;) {
        pthread_mutex_lock(&a->lock);
        there = a->n_ends || (n && a->n >= n);
        pthread_mutex_unlock(&a->lock);
        if (mxd_now_ms() > until) fail_msg("no answer");
        if (!there) mxd_sleep_ms(1);
    }
}

static mxd_cluster *open_with(mxd_activations activations) {
    char folder[1024], journal[128];
    mxd_cluster *c;
    mxd_err err = {0};
    snprintf(journal, sizeof journal, "%s/journal", dir);
    mxd_cluster_opts o = {.folder = test_path(folder, "../models/demo"),
                          .journal_dir = journal,
                          .threads = 1,
                          .ctx = 2048,
                          .activations = activations,
                          .memory_total = 8ull << 30,
                          .memory_free = 4ull << 30};
    CHECK_OK(mxd_cluster_open(&c, &mxd_alloc_libc, &o, &err), &err);
    CHECK_OK(mxd_cluster_wait(c, WAIT_MS, &err), &err);
    return c;
}

static void begin(void) {
    snprintf(dir, sizeof dir, "/tmp/mxd-kept-XXXXXX");
    CHECK(mkdtemp(dir));
    mxd_log_set_level(MXD_LOG_ERROR);
}

static void end(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK_EQ(system(command), 0);
    mxd_log_set_level(MXD_LOG_INFO);
}

static void submit(mxd_cluster *c, answer *a, uint64_t seed, const char *keep) {
    mxd_err err = {0};
    mxd_request r = {.prompt = prompt,
                     .n_prompt = 5,
                     .max_tokens = TOKENS,
                     .timeout_ms = WAIT_MS,
                     .how = {.temperature = seed ? 1 : 0,
                             .seed = seed,
                             .presence = .5f,
                             .logprobs = true,
                             .n_top = 2,
                             .n_bias = 1,
                             .bias = bias},
                     .keep = keep,
                     .n_keep = keep ? strlen(keep) : 0,
                     .token = on_token,
                     .end = on_end,
                     .ctx = a};
    CHECK_OK(mxd_cluster_submit(c, &r, &a->id, &err), &err);
}

static void check_same(const mxd_sampled *a, const mxd_sampled *b) {
    CHECK_EQ(a->token, b->token);
    CHECK(a->logprob == b->logprob && a->n_top == b->n_top);
    for (int i = 0; i < a->n_top; i++)
        CHECK(a->top_id[i] == b->top_id[i] && a->top_logprob[i] == b->top_logprob[i]);
}

static const mxd_kept *kept_of(mxd_cluster *c, uint64_t id) {
    const mxd_kept *k;
    for (int i = 0; (k = mxd_cluster_kept(c, i)) != NULL; i++)
        if (k->id == id) return k;
    return NULL;
}

/* The next life of a request: what was accepted, and then what comes. */
static answer *again(mxd_cluster *c, const answer *before) {
    const mxd_kept *k = kept_of(c, before->id);
    mxd_err err = {0};
    CHECK(k && !k->ended && k->n_tokens >= before->n);
    answer *a = answer_new();
    a->id = before->id;
    for (int i = 0; i < k->n_tokens; i++) {
        if (i < before->n) check_same(&k->tokens[i], &before->t[i]);
        a->t[a->n++] = k->tokens[i];
    }
    CHECK_OK(mxd_cluster_restore(c, a->id, on_token, on_end, a, &err), &err);
    CHECK_EQ(mxd_cluster_restore(c, a->id, on_token, on_end, a, &err), MXD_E_NOTFOUND);
    return a;
}

TEST(cluster_kept_requests_go_on_over_many_lives) {
    begin();
    answer *want[2], *now[2];
    mxd_cluster *c = open_with(0);
    for (int i = 0; i < 2; i++) {
        submit(c, want[i] = answer_new(), (uint64_t)i * 77, NULL);
        wait_for(want[i], 0);
        CHECK_EQ(want[i]->n, TOKENS);
    }
    CHECK(!mxd_cluster_kept(c, 0));
    for (int i = 0; i < 2; i++) submit(c, now[i] = answer_new(), (uint64_t)i * 77, "body");
    for (int life = 0; life < 4; life++) {
        for (int i = 0; i < 2; i++) wait_for(now[i], 5 + 40 * life);
        mxd_cluster_close(c);
        c = open_with(0);
        for (int i = 0; i < 2; i++) {
            if (now[i]->n == TOKENS) continue; /* it was quicker than we */
            const mxd_kept *k = kept_of(c, now[i]->id);
            CHECK(k && k->n_keep == 4 && memcmp(k->keep, "body", 4) == 0 && k->n_prompt == 5);
            answer *next = again(c, now[i]);
            answer_free(now[i]);
            now[i] = next;
        }
    }
    for (int i = 0; i < 2; i++) {
        wait_for(now[i], 0);
        CHECK_EQ(now[i]->n, TOKENS);
        for (int t = 0; t < TOKENS; t++) check_same(&now[i]->t[t], &want[i]->t[t]);
    }
    mxd_cluster_close(c);
    for (int i = 0; i < 2; i++) answer_free(want[i]), answer_free(now[i]);
    end();
}

TEST(cluster_kept_end_and_forget) {
    begin();
    mxd_err err = {0};
    mxd_cluster *c = open_with(0);
    answer *a = answer_new(), *b = answer_new();
    submit(c, a, 0, "a");
    wait_for(a, 0);
    submit(c, b, 0, "b");
    wait_for(b, 3);
    mxd_cluster_cancel(c, b->id);
    wait_for(b, 0);
    mxd_cluster_close(c);
    for (int life = 0; life < 2; life++) { /* reading it does not use it up */
        c = open_with(0);
        const mxd_kept *k = kept_of(c, a->id);
        CHECK(k && k->ended && k->end.how == MXD_END_LENGTH && k->n_tokens == TOKENS);
        CHECK(mxd_wall_ms() - k->end_wall_ms < 60000);
        CHECK(kept_of(c, b->id)->end.how == MXD_END_CANCELLED);
        CHECK_OK(mxd_cluster_restore(c, a->id, NULL, NULL, NULL, &err), &err);
        CHECK(!kept_of(c, a->id));
        mxd_cluster_close(c);
    }
    c = open_with(0);
    mxd_cluster_forget(c, b->id);
    CHECK(!kept_of(c, b->id));
    mxd_cluster_close(c);
    c = open_with(0);
    CHECK(kept_of(c, a->id) && !kept_of(c, b->id));
    answer *other = answer_new(); /* its number is a new one */
    submit(c, other, 0, NULL);
    CHECK(other->id > b->id);
    wait_for(other, 0);
    mxd_cluster_close(c);
    c = open_with(MXD_ACT_I16); /* other numbers would come out of it */
    CHECK(!mxd_cluster_kept(c, 0));
    mxd_cluster_close(c);
    answer_free(a), answer_free(b), answer_free(other);
    end();
}

TEST(cluster_kept_cancelled_before_it_runs) {
    begin();
    mxd_cluster *c = open_with(0);
    answer *a = answer_new();
    submit(c, a, 0, "a");
    wait_for(a, 3);
    mxd_cluster_close(c);
    c = open_with(0);
    answer *b = again(c, a);
    mxd_cluster_cancel(c, b->id);
    wait_for(b, 0);
    CHECK(b->how == MXD_END_CANCELLED || b->n == TOKENS);
    mxd_cluster_close(c);
    answer_free(a), answer_free(b);
    end();
}
