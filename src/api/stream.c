#include "api/stream.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "api/stopper.h"
#include "base/clock.h"
#include "base/cond.h"

enum { TEXT_MAX = 8 << 20, MAX_STOP_STRINGS = MXD_MAX_STOP_STRINGS };
#define LONGEST_WAIT_MS (INT64_C(1) << 40)

struct mxd_stream {
    const mxd_alloc *al;
    mxd_cluster *cluster;
    atomic_int refs; /* cluster and reader */
    uint64_t id;     /* of the request; set before the reader has the stream */
    bool single;     /* one token for each event */
    int n_prompt;

    /* under lock: the cluster's thread writes, the reader reads */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    mxd_sampled *tokens; /* [cap_tokens] accepted so far */
    int n_tokens, cap_tokens;
    bool ended, stopped_by_id, short_of_memory;
    mxd_request_end end;
    char end_text[256];
    void (*notify)(void *ctx);
    void *notify_ctx;

    /* the reader's */
    int n_read;   /* tokens turned into text */
    bool flushed; /* all text is out: the next event is DONE */
    bool done;    /* DONE was given out */
    mxd_detok detok;
    mxd_stopper stopper;
    char *stop[MAX_STOP_STRINGS];
    mxd_buf raw, text;  /* of the event in hand */
    mxd_sampled *taken; /* [cap_taken] copy for the event in hand */
    int cap_taken;
};

/* ---------------------------------------------------------------------------------- life */

static void destroy(mxd_stream *s) {
    const mxd_alloc *al = s->al;
    for (int i = 0; i < s->stopper.n_stop; i++) mxd_free(al, s->stop[i]);
    mxd_stopper_deinit(&s->stopper);
    mxd_buf_deinit(&s->raw);
    mxd_buf_deinit(&s->text);
    mxd_free(al, s->tokens);
    mxd_free(al, s->taken);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    mxd_free(al, s);
}

static void release(mxd_stream *s) {
    if (atomic_fetch_sub(&s->refs, 1) == 1) destroy(s);
}

static void init_lock(mxd_stream *s) {
    pthread_mutex_init(&s->lock, NULL);
    mxd_cond_init(&s->changed);
}

mxd_rc mxd_stream_new(mxd_stream **out, const mxd_alloc *al, const mxd_engine *e,
                      mxd_cluster *cluster, const mxd_gen *gen, mxd_err *err) {
    if (gen->n_stop > MAX_STOP_STRINGS)
        return mxd_fail(err, MXD_E_TOOBIG, "%d stop strings: at most %d", gen->n_stop,
                        MAX_STOP_STRINGS);
    for (int i = 0; i < gen->n_stop; i++)
        if (!gen->stop[i][0]) return mxd_fail(err, MXD_E_INVAL, "a stop string is empty");
    mxd_stream *s = MXD_NEW(al, 1, mxd_stream);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "stream");
    s->al = al;
    s->cluster = cluster;
    atomic_init(&s->refs, 2);
    s->n_prompt = (int)gen->n_prompt;
    s->single = gen->keep != NULL;
    init_lock(s);
    mxd_detok_init(&s->detok, mxd_engine_tokenizer(e), !gen->keep_special);
    mxd_stopper_init(&s->stopper, al, (const char *const *)s->stop, 0);
    mxd_buf_init(&s->raw, al, TEXT_MAX);
    mxd_buf_init(&s->text, al, TEXT_MAX);
    for (int i = 0; i < gen->n_stop; i++) {
        s->stop[i] = mxd_strdup(al, gen->stop[i]);
        if (!s->stop[i]) {
            destroy(s);
            return mxd_fail(err, MXD_E_NOMEM, "stream");
        }
        s->stopper.n_stop++;
    }
    *out = s;
    return MXD_OK;
}

void mxd_stream_submitted(mxd_stream *s, uint64_t id) { s->id = id; }

void mxd_stream_abandon(mxd_stream *s) {
    release(s); /* for the cluster, which never had it */
    release(s);
}

void mxd_stream_settled(mxd_stream *s) { release(s); }
uint64_t mxd_stream_request(const mxd_stream *s) { return s->id; }

void mxd_stream_cancel(mxd_stream *s) { mxd_cluster_cancel(s->cluster, s->id); }

void mxd_stream_free(mxd_stream *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->notify = NULL;
    bool ended = s->ended;
    pthread_mutex_unlock(&s->lock);
    if (!ended) mxd_stream_cancel(s);
    release(s);
}

void mxd_stream_leave(mxd_stream *s) {
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->notify = NULL;
    pthread_mutex_unlock(&s->lock);
    release(s);
}

/* ------------------------------------------------------------------------- the cluster's side */

static bool room(mxd_stream *s) {
    if (s->n_tokens < s->cap_tokens) return true;
    int cap = s->cap_tokens ? s->cap_tokens * 2 : 64;
    mxd_sampled *p = mxd_renew(s->al, s->tokens, (size_t)cap, sizeof *p);
    if (!p) return false;
    s->tokens = p;
    s->cap_tokens = cap;
    return true;
}

void mxd_stream_on_token(void *stream, const mxd_sampled *token, bool stop) {
    mxd_stream *s = stream;
    pthread_mutex_lock(&s->lock);
    if (room(s))
        s->tokens[s->n_tokens++] = *token;
    else
        s->short_of_memory = true; /* the reader gets E_NOMEM instead of a gap */
    s->stopped_by_id |= stop;
    pthread_cond_signal(&s->changed);
    if (s->notify) s->notify(s->notify_ctx);
    pthread_mutex_unlock(&s->lock);
}

static void keep_end(mxd_stream *s, const mxd_request_end *end) {
    s->ended = true;
    s->end = *end;
    snprintf(s->end_text, sizeof s->end_text, "%s", end->text ? end->text : mxd_rc_text(end->rc));
    s->end.text = s->end_text;
}

mxd_rc mxd_stream_past(mxd_stream *s, const mxd_kept *k, mxd_err *err) {
    for (int i = 0; i < k->n_tokens; i++) {
        if (!room(s)) return mxd_fail(err, MXD_E_NOMEM, "no memory for the answer");
        s->tokens[s->n_tokens++] = k->tokens[i];
    }
    s->stopped_by_id = k->stopped;
    if (k->ended) keep_end(s, &k->end);
    return MXD_OK;
}

void mxd_stream_on_end(void *stream, const mxd_request_end *end) {
    mxd_stream *s = stream;
    pthread_mutex_lock(&s->lock);
    keep_end(s, end);
    pthread_cond_signal(&s->changed);
    if (s->notify) s->notify(s->notify_ctx);
    pthread_mutex_unlock(&s->lock);
    release(s);
}

/* -------------------------------------------------------------------------- the reader's side */

void mxd_stream_notify(mxd_stream *s, void (*fn)(void *ctx), void *ctx) {
    pthread_mutex_lock(&s->lock);
    s->notify = fn;
    s->notify_ctx = ctx;
    if (fn && (s->n_tokens > s->n_read || s->ended)) fn(ctx);
    pthread_mutex_unlock(&s->lock);
}

/* Waits until a token or the end is there; holds the lock. False: the time has passed. */
static bool await(mxd_stream *s, int64_t timeout_ms) {
    bool for_ever = timeout_ms < 0 || timeout_ms > LONGEST_WAIT_MS;
    int64_t until = for_ever ? INT64_MAX : mxd_now_ns() + timeout_ms * 1000000;
    while (s->n_tokens == s->n_read && !s->ended) {
        int64_t left = until == INT64_MAX ? 1000000000 : until - mxd_now_ns();
        if (left <= 0) return false;
        mxd_cond_wait(&s->changed, &s->lock, left);
    }
    return true;
}

/* Copies new tokens out under the lock. */
static mxd_rc take_tokens(mxd_stream *s, int *n, mxd_err *err) {
    *n = s->n_tokens - s->n_read;
    if (s->single && *n > 1) *n = 1;
    if (s->short_of_memory) return mxd_fail(err, MXD_E_NOMEM, "no memory for the answer");
    if (*n > s->cap_taken) {
        mxd_sampled *p = mxd_renew(s->al, s->taken, (size_t)*n, sizeof *p);
        if (!p) return mxd_fail(err, MXD_E_NOMEM, "no memory for the answer");
        s->taken = p;
        s->cap_taken = *n;
    }
    if (*n) memcpy(s->taken, s->tokens + s->n_read, (size_t)*n * sizeof *s->taken);
    return MXD_OK;
}

static void give_stopper(mxd_stream *s) {
    if (s->raw.rc && !s->text.rc) s->text.rc = s->raw.rc;
    mxd_stopper_push(&s->stopper, mxd_buf_str(&s->raw), s->raw.len, &s->text);
}

/* Tokens to text, one by one, up to a stop string; returns how many were used. The token that
 * ended the answer by its id is not text. */
static int convert(mxd_stream *s, int n, bool last_is_stop) {
    int used = 0;
    while (used < n && s->stopper.matched < 0) {
        bool silent = last_is_stop && used == n - 1;
        mxd_buf_clear(&s->raw);
        if (!silent) mxd_detok_push(&s->detok, s->taken[used].token, &s->raw);
        give_stopper(s);
        used++;
    }
    return used;
}

static void flush(mxd_stream *s) {
    mxd_buf_clear(&s->raw);
    mxd_detok_flush(&s->detok, &s->raw);
    give_stopper(s);
    mxd_stopper_flush(&s->stopper, &s->text);
}

static mxd_rc give_text(mxd_stream *s, int n_tokens, mxd_stream_event *ev, mxd_err *err) {
    mxd_rc rc = mxd_buf_rc(&s->text, "a piece of the answer", err);
    if (rc) {
        s->done = true; /* better no answer than one with a gap */
        return rc;
    }
    *ev = (mxd_stream_event){.kind = MXD_STREAM_TEXT,
                             .text = mxd_buf_str(&s->text),
                             .n_text = s->text.len,
                             .tokens = s->taken,
                             .n_tokens = n_tokens};
    return MXD_OK;
}

static mxd_rc give_done(mxd_stream *s, mxd_stream_event *ev, mxd_err *err) {
    s->done = true;
    bool by_string = s->stopper.matched >= 0;
    if (!by_string && s->end.how == MXD_END_ERROR)
        return mxd_fail(err, s->end.rc, "%s", s->end_text);
    *ev = (mxd_stream_event){.kind = MXD_STREAM_DONE,
                             .n_prompt = s->n_prompt,
                             .n_generated = s->n_read,
                             .n_cached = s->end.n_cached,
                             .queue_ms = (double)s->end.queue_ms,
                             .prefill_ms = (double)s->end.prefill_ms,
                             .decode_ms = (double)s->end.decode_ms};
    if (by_string) ev->stop_matched = s->stop[s->stopper.matched];
    ev->finish = by_string || s->end.how == MXD_END_STOP ? MXD_FINISH_STOP
                 : s->end.how == MXD_END_LENGTH          ? MXD_FINISH_LENGTH
                                                         : MXD_FINISH_CANCELLED;
    return MXD_OK;
}

mxd_rc mxd_stream_next(mxd_stream *s, int64_t timeout_ms, mxd_stream_event *ev, mxd_err *err) {
    if (s->done) return mxd_fail(err, MXD_E_INVAL, "the stream has ended");
    mxd_buf_clear(&s->text);
    int n = 0;
    pthread_mutex_lock(&s->lock);
    bool there = s->flushed || await(s, timeout_ms);
    mxd_rc rc = there ? take_tokens(s, &n, err) : MXD_OK;
    bool all = s->n_read + n == s->n_tokens, by_id = s->stopped_by_id && all;
    /* what an event holds may not depend on when the end came */
    bool ended = s->ended && (!s->single || !n);
    pthread_mutex_unlock(&s->lock);
    if (!there) return mxd_fail(err, MXD_E_TIMEOUT, "nothing yet");
    if (rc) {
        s->done = true;
        return rc;
    }
    if (s->flushed) return give_done(s, ev, err);
    int used = convert(s, n, by_id);
    s->n_read += used;
    if (s->stopper.matched >= 0) mxd_stream_cancel(s);
    s->flushed = ended || s->stopper.matched >= 0;
    if (s->flushed) flush(s);
    if (!s->flushed || used || s->text.len) return give_text(s, used, ev, err);
    return give_done(s, ev, err);
}

bool mxd_stream_ended(const mxd_stream *s) { return s->done; }
