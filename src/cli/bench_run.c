#include "cli/bench_run.h"

#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "base/rand.h"
#include "cli/main_kit.h"

enum { TIMEOUT_MS = 24 * 3600 * 1000 };

/* One stream and the thread that reads it: times are those of the tokens, not of a reader that is
 * busy with another stream. */
typedef struct reader {
    mxd_stream *stream;
    pthread_t thread;
    bool started;
    int64_t *came; /* [n_max] when each token came */
    int n, n_max;
    mxd_rc rc;
    mxd_err err;
} reader;

static mxd_rc submit(reader *r, mxd_engine *e, uint64_t seed, int n_prompt, mxd_err *err) {
    int32_t *ids = MXD_NEW(&mxd_alloc_libc, (size_t)n_prompt, int32_t);
    if (!ids) return mxd_fail(err, MXD_E_NOMEM, "prompt of %d tokens", n_prompt);
    uint64_t vocab = (uint64_t)mxd_engine_info_get(e)->n_vocab;
    for (int i = 0; i < n_prompt; i++)
        ids[i] = (int32_t)(mxd_rand_u64(seed, 0, (uint64_t)i) % vocab);
    mxd_gen gen = {.prompt = ids,
                   .n_prompt = (size_t)n_prompt,
                   .max_tokens = r->n_max,
                   .ignore_eos = true,
                   .timeout_ms = TIMEOUT_MS};
    mxd_rc rc = mxd_engine_submit(e, &gen, &r->stream, err);
    mxd_free(&mxd_alloc_libc, ids);
    return rc;
}

static void *read_stream(void *arg) {
    reader *r = arg;
    for (;;) {
        mxd_stream_event ev;
        r->rc = mxd_stream_next(r->stream, 200, &ev, &r->err);
        if (r->rc == MXD_E_TIMEOUT && !mxd_stream_ended(r->stream)) continue;
        if (r->rc || ev.kind == MXD_STREAM_DONE) return NULL;
        int64_t now = mxd_now_ns();
        for (int i = 0; i < ev.n_tokens && r->n < r->n_max; i++) r->came[r->n++] = now;
    }
}

static mxd_rc start(reader *r, mxd_engine *e, uint64_t seed, int n_prompt, int n_gen,
                    mxd_err *err) {
    r->n_max = n_gen;
    r->came = MXD_NEW(&mxd_alloc_libc, (size_t)n_gen, int64_t);
    if (!r->came) return mxd_fail(err, MXD_E_NOMEM, "times of %d tokens", n_gen);
    MXD_TRY(submit(r, e, seed, n_prompt, err));
    if (pthread_create(&r->thread, NULL, read_stream, r) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start a thread for a stream");
    r->started = true;
    return MXD_OK;
}

/* Waits for every reader; a Ctrl-C cancels the streams. */
static mxd_rc join(reader *r, int n, mxd_rc rc, mxd_err *err) {
    for (int i = 0; i < n; i++) {
        if (rc && r[i].stream) mxd_stream_cancel(r[i].stream);
        if (r[i].started) pthread_join(r[i].thread, NULL);
        if (!rc && r[i].rc) {
            rc = r[i].rc;
            *err = r[i].err;
        } else if (!rc && !r[i].n) {
            rc = mxd_fail(err, MXD_E_INTERNAL, "a stream ended without a token");
        }
        mxd_stream_free(r[i].stream);
    }
    if (!rc && mxd_signals_wait(0)) rc = mxd_fail(err, MXD_E_CANCELED, "interrupted");
    return rc;
}

static void free_readers(reader *r, int n) {
    for (int i = 0; i < n; i++) mxd_free(&mxd_alloc_libc, r[i].came);
    mxd_free(&mxd_alloc_libc, r);
}

/* ------------------------------------------------------------------------------------- prefill */

/* Seconds from the first submission to the last stream's first token. */
static mxd_rc time_prompts(mxd_engine *e, int streams, int n_prompt, uint64_t *seed, double *s,
                           mxd_err *err) {
    reader *r = MXD_NEW(&mxd_alloc_libc, (size_t)streams, reader);
    if (!r) return mxd_fail(err, MXD_E_NOMEM, "%d streams", streams);
    int64_t begin = mxd_now_ns(), last = begin;
    mxd_rc rc = MXD_OK;
    for (int i = 0; i < streams && !rc; i++) rc = start(&r[i], e, ++*seed, n_prompt, 1, err);
    rc = join(r, streams, rc, err);
    for (int i = 0; i < streams && !rc; i++)
        if (r[i].came[0] > last) last = r[i].came[0];
    *s = (double)(last - begin) * 1e-9;
    free_readers(r, streams);
    return rc;
}

static mxd_rc prefill(mxd_engine *e, const mxd_bench_test *t, uint64_t *seed, double *speed,
                      mxd_err *err) {
    double before = 0, all;
    if (t->depth) MXD_TRY(time_prompts(e, t->streams, t->depth, seed, &before, err));
    MXD_TRY(time_prompts(e, t->streams, t->depth + t->n, seed, &all, err));
    *speed = all > before ? t->n * (double)t->streams / (all - before) : 0;
    return MXD_OK;
}

/* -------------------------------------------------------------------------------------- decode */

/* What stream i writes before the last stream has read its prompt, at most: prompts are read one
 * after another, a chunk to a step, and each step adds a token to the streams that write. */
static int head_start(const mxd_bench_test *t, int i) {
    return (t->streams - 1 - i) * (t->depth / t->chunk + 2);
}

int mxd_bench_context(const mxd_bench_test *t) {
    return t->depth + t->n + 2 + (t->prefill ? 0 : head_start(t, 0));
}

/* Tokens a second between the last stream's first token and the first stream's last. */
static double together(const reader *r, int streams) {
    int64_t from = 0, to = INT64_MAX;
    for (int i = 0; i < streams; i++) {
        if (r[i].came[0] > from) from = r[i].came[0];
        if (r[i].came[r[i].n - 1] < to) to = r[i].came[r[i].n - 1];
    }
    int tokens = 0;
    for (int i = 0; i < streams; i++)
        for (int k = 0; k < r[i].n; k++) tokens += r[i].came[k] > from && r[i].came[k] <= to;
    return to > from ? tokens * 1e9 / (double)(to - from) : 0;
}

/* Tokens a second of the whole run: a few tokens may come to a busy reader all at once. */
static double overall(const reader *r, int streams, int64_t begin) {
    int64_t last = begin;
    int tokens = 0;
    for (int i = 0; i < streams; i++) {
        tokens += r[i].n;
        if (r[i].came[r[i].n - 1] > last) last = r[i].came[r[i].n - 1];
    }
    return last > begin ? tokens * 1e9 / (double)(last - begin) : 0;
}

static mxd_rc decode(mxd_engine *e, const mxd_bench_test *t, uint64_t *seed, double *speed,
                     mxd_err *err) {
    reader *r = MXD_NEW(&mxd_alloc_libc, (size_t)t->streams, reader);
    if (!r) return mxd_fail(err, MXD_E_NOMEM, "%d streams", t->streams);
    int64_t begin = mxd_now_ns();
    mxd_rc rc = MXD_OK;
    for (int i = 0; i < t->streams && !rc; i++)
        rc = start(&r[i], e, ++*seed, t->depth + 1, t->n + 1 + head_start(t, i), err);
    rc = join(r, t->streams, rc, err);
    *speed = rc ? 0 : together(r, t->streams);
    if (!rc && !(*speed > 0)) *speed = overall(r, t->streams, begin);
    free_readers(r, t->streams);
    return rc;
}

mxd_rc mxd_bench_once(mxd_engine *e, const mxd_bench_test *t, uint64_t *seed, double *speed,
                      mxd_err *err) {
    return t->prefill ? prefill(e, t, seed, speed, err) : decode(e, t, seed, speed, err);
}
