/* Streams fed by hand: the cluster and the engine behind stream.c are fakes below, so no archive
 * member of theirs is linked. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "api/stream.h"
#include "base/clock.h"

/* ------------------------------------------------------------------------------------ the fakes */

static mxd_tokenizer *tokenizer;
static atomic_int n_cancels;
static uint64_t cancelled_id;

const mxd_tokenizer *mxd_engine_tokenizer(const mxd_engine *e) {
    (void)e;
    return tokenizer;
}

void mxd_cluster_cancel(mxd_cluster *c, uint64_t id) {
    (void)c;
    cancelled_id = id;
    atomic_fetch_add(&n_cancels, 1);
}

static void open_tokenizer(void) {
    char path[1024];
    mxd_err err = {0};
    if (!tokenizer)
        CHECK_OK(mxd_tokenizer_open(&tokenizer, &mxd_alloc_libc,
                                    test_path(path, "conformance/tokenizers/qwen"), &err),
                 &err);
    atomic_store(&n_cancels, 0);
}

__attribute__((destructor)) static void close_tokenizer(void) { mxd_tokenizer_close(tokenizer); }

/* -------------------------------------------------------------------------------------- helpers */

static mxd_stream *open_stream(const char *const *stop, int n_stop) {
    mxd_stream *s;
    mxd_err err = {0};
    open_tokenizer();
    mxd_gen g = {.n_prompt = 5, .stop = stop, .n_stop = n_stop};
    CHECK_OK(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), &err);
    mxd_stream_submitted(s, 42);
    return s;
}

static void feed_id(mxd_stream *s, int32_t id, bool stop) {
    mxd_sampled t = {.token = id, .logprob = -0.5f};
    mxd_stream_on_token(s, &t, stop);
}

/* The ids of a text. */
static size_t ids_of(const char *text, int32_t out[256]) {
    mxd_ids ids;
    mxd_err err = {0};
    mxd_ids_init(&ids, &mxd_alloc_libc, 256);
    const mxd_span span = {text, strlen(text), false};
    CHECK_OK(mxd_tokenizer_encode(tokenizer, &span, 1, false, &ids, &err), &err);
    size_t n = ids.n;
    memcpy(out, ids.ptr, n * sizeof *out);
    mxd_ids_deinit(&ids);
    return n;
}

static size_t feed(mxd_stream *s, const char *text) {
    int32_t ids[256];
    size_t n = ids_of(text, ids);
    for (size_t i = 0; i < n; i++) feed_id(s, ids[i], false);
    return n;
}

static void end(mxd_stream *s, mxd_end how, mxd_rc rc) {
    const mxd_request_end e = {
        .how = how, .rc = rc, .text = "why", .queue_ms = 1, .prefill_ms = 2, .decode_ms = 3};
    mxd_stream_on_end(s, &e);
}

/* Reads until DONE, a failure, or nothing more is there; the text in `text` [1024]. */
static mxd_rc drain(mxd_stream *s, char *text, int *n_tokens, mxd_stream_event *last) {
    mxd_err err = {0};
    size_t used = strlen(text);
    for (;;) {
        mxd_stream_event ev;
        mxd_rc rc = mxd_stream_next(s, 0, &ev, &err);
        if (rc) return rc;
        *last = ev;
        if (ev.kind == MXD_STREAM_DONE) return MXD_OK;
        CHECK(used + ev.n_text < 1024 && ev.text[ev.n_text] == '\0');
        memcpy(text + used, ev.text, ev.n_text + 1);
        used += ev.n_text;
        *n_tokens += ev.n_tokens;
    }
}

/* ---------------------------------------------------------------------------------------- tests */

TEST(stream_text_and_done) {
    mxd_stream *s = open_stream(NULL, 0);
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    CHECK_EQ(drain(s, text, &n, &ev), MXD_E_TIMEOUT);
    CHECK(!mxd_stream_ended(s));
    int fed = (int)feed(s, "Hello, world!");
    CHECK_EQ(drain(s, text, &n, &ev), MXD_E_TIMEOUT);
    CHECK_STR(text, "Hello, world!");
    CHECK_EQ(n, fed);
    CHECK(ev.tokens[0].logprob == -0.5f);
    end(s, MXD_END_LENGTH, MXD_OK);
    CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
    CHECK_EQ(ev.finish, MXD_FINISH_LENGTH);
    CHECK_EQ(ev.n_prompt, 5);
    CHECK_EQ(ev.n_generated, fed);
    CHECK(ev.queue_ms == 1 && ev.prefill_ms == 2 && ev.decode_ms == 3 && !ev.stop_matched);
    CHECK(mxd_stream_ended(s));
    CHECK_EQ(mxd_stream_next(s, 0, &ev, NULL), MXD_E_INVAL); /* after DONE there is nothing */
    mxd_stream_free(s);
    CHECK_EQ(n_cancels, 0); /* it had ended */
}

/* A character over several tokens comes whole; what never becomes one is U+FFFD at the end. */
TEST(stream_waits_for_whole_characters) {
    mxd_stream *s = open_stream(NULL, 0);
    int32_t ids[256];
    const char *rare = "\xf0\x9f\xa6\x94"; /* hedgehog */
    size_t k = ids_of(rare, ids);
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    if (k < 2) SKIP("the hedgehog is one token of this tokenizer");
    for (size_t i = 0; i + 1 < k; i++) {
        feed_id(s, ids[i], false);
        CHECK_EQ(drain(s, text, &n, &ev), MXD_E_TIMEOUT);
        CHECK_STR(text, "");
        CHECK_EQ(n, i + 1); /* the tokens are told though their text waits */
    }
    feed_id(s, ids[k - 1], false);
    drain(s, text, &n, &ev);
    CHECK_STR(text, rare);
    feed_id(s, ids[0], false);
    end(s, MXD_END_LENGTH, MXD_OK);
    CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
    CHECK_STR(text + 4, "\xef\xbf\xbd");
    mxd_stream_free(s);
}

TEST(stream_stop_id_is_silent) {
    for (int together = 0; together < 2; together++) {
        mxd_stream *s = open_stream(NULL, 0);
        char text[1024] = "";
        int n = 0;
        mxd_stream_event ev;
        int fed = (int)feed(s, "The end");
        if (!together) drain(s, text, &n, &ev);
        int32_t x[256];
        ids_of("x", x);
        feed_id(s, x[0], true); /* an ordinary token that the caller made a stop id */
        end(s, MXD_END_STOP, MXD_OK);
        CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
        CHECK_STR(text, "The end");
        CHECK_EQ(n, fed + 1); /* it counts as generated */
        CHECK_EQ(ev.n_generated, fed + 1);
        CHECK_EQ(ev.finish, MXD_FINISH_STOP);
        mxd_stream_free(s);
    }
}

TEST(stream_stop_string_across_tokens) {
    const char *stop[] = {"never", "lazy dog"};
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
        mxd_stream *s = open_stream(stop, 2);
        char text[1024] = "";
        int n = 0;
        mxd_stream_event ev = {0};
        int32_t ids[256];
        size_t k = ids_of("over the lazy dog and on and on", ids);
        mxd_rc rc = MXD_E_TIMEOUT;
        for (size_t i = 0; i < k && rc == MXD_E_TIMEOUT; i++) {
            feed_id(s, ids[i], false);
            if (one_by_one) rc = drain(s, text, &n, &ev);
        }
        if (!one_by_one) rc = drain(s, text, &n, &ev);
        CHECK_EQ(rc, MXD_OK); /* DONE without waiting for the cluster's end */
        CHECK_STR(text, "over the ");
        CHECK_STR(ev.stop_matched, "lazy dog");
        CHECK_EQ(ev.finish, MXD_FINISH_STOP);
        CHECK_EQ(ev.n_generated, n);
        CHECK(n < (int)k);
        CHECK(n_cancels >= 1 && cancelled_id == 42);
        end(s, MXD_END_CANCELLED, MXD_OK);
        mxd_stream_free(s);
    }
}

/* A held-back beginning of a stop string comes out when the text ends. */
TEST(stream_held_text_comes_out_at_the_end) {
    const char *stop[] = {"dogma"};
    mxd_stream *s = open_stream(stop, 1);
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    feed(s, "the dog");
    drain(s, text, &n, &ev);
    CHECK_STR(text, "the ");
    end(s, MXD_END_LENGTH, MXD_OK);
    CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
    CHECK_STR(text, "the dog");
    CHECK_EQ(ev.finish, MXD_FINISH_LENGTH);
    mxd_stream_free(s);
}

/* A stop string that waited for a better one is still found at the end. */
TEST(stream_waiting_match_counts_at_the_end) {
    const char *stop[] = {"dogmatic", "dog"};
    mxd_stream *s = open_stream(stop, 2);
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    feed(s, "the dog");
    end(s, MXD_END_STOP, MXD_OK);
    CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
    CHECK_STR(text, "the ");
    CHECK_STR(ev.stop_matched, "dog");
    mxd_stream_free(s);
}

TEST(stream_error_after_text) {
    static const mxd_rc codes[] = {MXD_E_PEER, MXD_E_TIMEOUT, MXD_E_SHUTDOWN};
    for (size_t i = 0; i < MXD_COUNT(codes); i++) {
        mxd_stream *s = open_stream(NULL, 0);
        char text[1024] = "";
        int n = 0;
        mxd_stream_event ev;
        mxd_err err = {0};
        feed(s, "half an ans");
        end(s, MXD_END_ERROR, codes[i]);
        CHECK_OK(mxd_stream_next(s, 0, &ev, &err), &err); /* the text first */
        CHECK_EQ(ev.kind, MXD_STREAM_TEXT);
        CHECK_STR(ev.text, "half an ans");
        CHECK(!mxd_stream_ended(s));
        CHECK_EQ(drain(s, text, &n, &ev), codes[i]);
        CHECK(mxd_stream_ended(s)); /* tells its E_TIMEOUT from a wait's */
        mxd_stream_free(s);
        CHECK_EQ(n_cancels, 0);
    }
}

TEST(stream_cancel_gives_done) {
    mxd_stream *s = open_stream(NULL, 0);
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    feed(s, "some");
    mxd_stream_cancel(s);
    CHECK_EQ(n_cancels, 1);
    CHECK_EQ(cancelled_id, 42);
    end(s, MXD_END_CANCELLED, MXD_OK);
    CHECK_EQ(drain(s, text, &n, &ev), MXD_OK);
    CHECK_EQ(ev.finish, MXD_FINISH_CANCELLED);
    CHECK_STR(text, "some");
    mxd_stream_free(s);
}

/* The reader goes first: its memory stays until the cluster has let go. */
TEST(stream_free_while_running) {
    mxd_stream *s = open_stream(NULL, 0);
    feed(s, "going on");
    mxd_stream_free(s);
    CHECK_EQ(n_cancels, 1);
    feed(s, " and on"); /* tokens that were on their way */
    end(s, MXD_END_CANCELLED, MXD_OK);
}

TEST(stream_abandoned_before_it_ran) {
    mxd_stream *s;
    mxd_err err = {0};
    open_tokenizer();
    mxd_gen g = {.n_prompt = 1};
    CHECK_OK(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), &err);
    mxd_stream_abandon(s);
}

static void count(void *ctx) { atomic_fetch_add((atomic_int *)ctx, 1); }

TEST(stream_notify) {
    mxd_stream *s = open_stream(NULL, 0);
    atomic_int calls = 0;
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    mxd_stream_notify(s, count, &calls);
    CHECK_EQ(calls, 0);
    int32_t ids[256];
    ids_of("a", ids);
    feed_id(s, ids[0], false);
    CHECK_EQ(calls, 1);
    mxd_stream_notify(s, count, &calls); /* something waits: told at once */
    CHECK_EQ(calls, 2);
    drain(s, text, &n, &ev);
    mxd_stream_notify(s, count, &calls); /* nothing waits */
    CHECK_EQ(calls, 2);
    end(s, MXD_END_STOP, MXD_OK);
    CHECK_EQ(calls, 3);
    mxd_stream_notify(s, NULL, NULL);
    mxd_stream_notify(s, count, &calls); /* the end waits */
    CHECK_EQ(calls, 4);
    mxd_stream_free(s);
}

/* No call comes after free has returned. */
TEST(stream_no_notify_after_free) {
    mxd_stream *s = open_stream(NULL, 0);
    atomic_int calls = 0;
    mxd_stream_notify(s, count, &calls);
    mxd_stream_free(s);
    feed(s, "late");
    end(s, MXD_END_CANCELLED, MXD_OK);
    CHECK_EQ(calls, 0);
}

static void *writer(void *arg) {
    mxd_stream *s = arg;
    int32_t ids[256];
    size_t k = ids_of("tick tock ", ids);
    for (int i = 0; i < 2000; i++)
        for (size_t j = 0; j < k; j++) feed_id(s, ids[j], false);
    end(s, MXD_END_LENGTH, MXD_OK);
    return NULL;
}

/* One thread writes, one reads: nothing is lost or doubled. */
TEST(stream_two_threads) {
    mxd_stream *s = open_stream(NULL, 0);
    pthread_t t;
    CHECK_EQ(pthread_create(&t, NULL, writer, s), 0);
    size_t n_text = 0;
    int n_tokens = 0;
    mxd_stream_event ev;
    mxd_err err = {0};
    for (;;) {
        CHECK_OK(mxd_stream_next(s, -1, &ev, &err), &err);
        if (ev.kind == MXD_STREAM_DONE) break;
        for (size_t i = 0; i < ev.n_text; i++)
            CHECK_EQ(ev.text[i], "tick tock "[(n_text + i) % 10]);
        n_text += ev.n_text;
        n_tokens += ev.n_tokens;
    }
    pthread_join(t, NULL);
    CHECK_EQ(n_text, 20000);
    CHECK_EQ(ev.n_generated, n_tokens);
    mxd_stream_free(s);
}

TEST(stream_waits_as_long_as_it_was_told) {
    mxd_stream *s = open_stream(NULL, 0);
    mxd_stream_event ev;
    int64_t start = mxd_now_ms();
    CHECK_EQ(mxd_stream_next(s, 30, &ev, NULL), MXD_E_TIMEOUT);
    CHECK(mxd_now_ms() - start >= 29);
    end(s, MXD_END_STOP, MXD_OK);
    CHECK_EQ(mxd_stream_next(s, INT64_MAX, &ev, NULL), MXD_OK); /* no overflow: for ever */
    mxd_stream_free(s);
}

TEST(stream_refuses_bad_stop_strings) {
    mxd_stream *s;
    mxd_err err = {0};
    const char *stop[MXD_MAX_STOP_STRINGS + 1];
    open_tokenizer();
    for (size_t i = 0; i < MXD_COUNT(stop); i++) stop[i] = "x";
    mxd_gen g = {.n_prompt = 1, .stop = stop, .n_stop = MXD_MAX_STOP_STRINGS + 1};
    CHECK_EQ(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), MXD_E_TOOBIG);
    g.n_stop = 2;
    stop[1] = "";
    CHECK_EQ(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), MXD_E_INVAL);
    g.n_stop = MXD_MAX_STOP_STRINGS;
    stop[1] = "x";
    CHECK_OK(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), &err);
    mxd_stream_abandon(s);
}

/* A shortage anywhere ends the answer with E_NOMEM: never a gap in the text. */
/* ---- of requests that are kept: what an event holds may not depend on when it is read ---- */

static mxd_stream *open_kept(const char *const *stop, int n_stop) {
    mxd_stream *s;
    mxd_err err = {0};
    open_tokenizer();
    mxd_gen g = {.n_prompt = 5, .stop = stop, .n_stop = n_stop, .keep = ""};
    CHECK_OK(mxd_stream_new(&s, &mxd_alloc_libc, NULL, NULL, &g, &err), &err);
    mxd_stream_submitted(s, 42);
    return s;
}

/* Appends "text/tokens|" for every event that is there now. */
static void note_events(mxd_stream *s, char out[2048]) {
    mxd_stream_event ev;
    mxd_err err = {0};
    while (mxd_stream_next(s, 0, &ev, &err) == MXD_OK) {
        size_t n = strlen(out);
        bool done = ev.kind == MXD_STREAM_DONE;
        snprintf(out + n, 2048 - n, "%s/%d|", done ? "DONE" : ev.text,
                 done ? ev.n_generated : ev.n_tokens);
        if (done) return;
    }
}

TEST(stream_kept_gives_the_same_events_however_it_is_read) {
    static const struct {
        const char *text, *stop;
        bool by_id;
    } rows[] = {{"A short tale of two \xe2\x9a\xa1 robots", NULL, false},
                {"ends by an id", NULL, true},
                {"ends by a string, xx and more", "xx", false},
                {"held back: half a stop x", "xy", false}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        const char *stops[] = {rows[i].stop};
        int32_t ids[256];
        char got[3][2048] = {"", "", ""};
        open_tokenizer();
        size_t n = ids_of(rows[i].text, ids);
        mxd_stream *now = open_kept(stops, rows[i].stop != NULL);   /* read after each token */
        mxd_stream *later = open_kept(stops, rows[i].stop != NULL); /* read at the end */
        mxd_stream *past = open_kept(stops, rows[i].stop != NULL);  /* half of it is of before */
        mxd_sampled before[256];
        for (size_t k = 0; k < n; k++) {
            bool stop = rows[i].by_id && k == n - 1;
            before[k] = (mxd_sampled){.token = ids[k], .logprob = -0.5f};
            feed_id(now, ids[k], stop);
            note_events(now, got[0]);
            feed_id(later, ids[k], stop);
        }
        mxd_err err = {0};
        const mxd_kept half = {.id = 42, .tokens = before, .n_tokens = (int)n / 2};
        CHECK_OK(mxd_stream_past(past, &half, &err), &err);
        for (size_t k = n / 2; k < n; k++) feed_id(past, ids[k], rows[i].by_id && k == n - 1);
        mxd_stream *all[] = {now, later, past};
        for (int k = 0; k < 3; k++) {
            end(all[k], rows[i].by_id ? MXD_END_STOP : MXD_END_LENGTH, MXD_OK);
            note_events(all[k], got[k]);
            CHECK(strstr(got[k], "DONE"));
            CHECK_STR(got[k], got[0]);
            mxd_stream_free(all[k]);
        }
    }
}

TEST(stream_of_an_ended_request) {
    char got[2048] = "";
    mxd_err err = {0};
    const mxd_sampled token = {.token = 100};
    const mxd_kept k = {.id = 42,
                        .tokens = &token,
                        .n_tokens = 1,
                        .ended = true,
                        .end = {.how = MXD_END_LENGTH, .text = ""}};
    mxd_stream *s = open_kept(NULL, 0);
    CHECK_EQ(mxd_stream_request(s), 42);
    CHECK_OK(mxd_stream_past(s, &k, &err), &err);
    mxd_stream_settled(s);
    note_events(s, got);
    CHECK(strstr(got, "DONE/1|"));
    mxd_stream_free(s);
    CHECK_EQ(atomic_load(&n_cancels), 0);
    s = open_kept(NULL, 0); /* left, not cancelled */
    mxd_stream_leave(s);
    CHECK_EQ(atomic_load(&n_cancels), 0);
    feed_id(s, 100, false);
    end(s, MXD_END_LENGTH, MXD_OK);
}

TEST_OOM(stream_out_of_memory) {
    static const char *const stop[] = {"~~", "never"};
    mxd_stream *s;
    char text[1024] = "";
    int n = 0;
    mxd_stream_event ev;
    open_tokenizer();
    mxd_gen g = {.n_prompt = 5, .stop = stop, .n_stop = 2};
    MXD_TRY(mxd_stream_new(&s, al, NULL, NULL, &g, err));
    mxd_stream_submitted(s, 1);
    const char *parts[] = {"The quick brown fox", " jumps over the lazy dog",
                           " and a longer piece of text that makes the buffers grow once more, ",
                           "and \xf0\x9f\xa6\x94 the end"};
    mxd_rc rc = MXD_OK;
    for (size_t i = 0; i < MXD_COUNT(parts) && !rc; i++) {
        feed(s, parts[i]);
        rc = drain(s, text, &n, &ev);
        CHECK(rc != MXD_OK);
        if (rc == MXD_E_TIMEOUT) rc = MXD_OK;
    }
    if (rc) CHECK(mxd_stream_ended(s));
    for (size_t i = 0, at = 0; i < MXD_COUNT(parts); at += strlen(parts[i++])) { /* no gap */
        size_t have = strlen(text) > at ? strlen(text) - at : 0;
        CHECK(strncmp(text + at, parts[i], have < strlen(parts[i]) ? have : strlen(parts[i])) == 0);
    }
    end(s, MXD_END_LENGTH, MXD_OK);
    if (!rc) rc = drain(s, text, &n, &ev);
    mxd_stream_free(s);
    return rc ? mxd_fail(err, rc, "stream") : MXD_OK;
}

/* One allocation fails, the next ones do not. */
typedef struct one_failure {
    int left; /* calls until it; below 0: it is over */
} one_failure;

static void *fail_once(void *ctx, void *p, size_t old_bytes, size_t new_bytes) {
    one_failure *f = ctx;
    if (new_bytes && f->left-- == 0) return NULL;
    return mxd_alloc_libc.resize(NULL, p, old_bytes, new_bytes);
}

/* The memory is back at once, so nothing but the code itself can notice the missing piece. */
TEST(stream_one_shortage_leaves_no_gap) {
    static const char *const stop[] = {"~~"};
    static const char whole[] =
        "The quick brown fox jumps over the lazy dog, and it jumps again, "
        "over a dog that is as lazy as the first one was, and then once more";
    open_tokenizer();
    for (int n = 0, passed = 0; !passed; n++) {
        one_failure f = {n};
        const mxd_alloc al = {fail_once, &f};
        mxd_stream *s;
        mxd_stream_event ev;
        char text[1024] = "";
        int tokens = 0;
        mxd_gen g = {.n_prompt = 5, .stop = stop, .n_stop = 1};
        CHECK(n < 200);
        if (mxd_stream_new(&s, &al, NULL, NULL, &g, NULL) == MXD_E_NOMEM) continue;
        mxd_stream_submitted(s, 1);
        feed(s, whole);
        end(s, MXD_END_LENGTH, MXD_OK);
        mxd_rc rc = drain(s, text, &tokens, &ev);
        CHECK(rc == MXD_E_NOMEM || rc == MXD_OK);
        CHECK(mxd_stream_ended(s));
        if (rc == MXD_OK) CHECK_STR(text, whole);
        passed = f.left >= 0;
        mxd_stream_free(s);
    }
}
