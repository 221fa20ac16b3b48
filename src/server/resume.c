#include "server/resume.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rand.h"
#include "server/handlers.h"
#include "server/openai/job.h"

/* ------------------------------------------------------------------------------- life of a stream
 */

static mxd_resume *make(mxd_server *s) {
    mxd_resume *e = MXD_NEW(s->al, 1, mxd_resume);
    if (!e) return NULL;
    e->server = s;
    e->alone_ms = mxd_now_ms();
    pthread_mutex_init(&e->lock, NULL);
    pthread_mutex_init(&e->reader_lock, NULL);
    return e;
}

static void destroy(mxd_resume *e) {
    mxd_job_free(e->job);
    pthread_mutex_destroy(&e->reader_lock);
    pthread_mutex_destroy(&e->lock);
    mxd_free(e->server->al, e);
}

static void forget(mxd_resume *e) {
    if (e->request) mxd_engine_forget(e->server->engine, e->request);
    destroy(e);
}

/* New events out of the engine; lock held. */
static void pump(mxd_resume *e) {
    mxd_job *j = e->job;
    (void)mxd_job_pump(j);
    atomic_store(&e->bytes, j->out.cap);
    if ((!j->finished && !j->failed) || e->ended_ms) return;
    e->ended_ms = mxd_now_ms();
    atomic_store(&e->ended, true);
    mxd_job_uncount(j);
    mxd_stream_free(j->choices[0].stream); /* the events are all that is wanted now */
    j->choices[0].stream = NULL;
}

static bool has_readers(mxd_resume *e) {
    pthread_mutex_lock(&e->reader_lock);
    bool any = e->readers != NULL;
    pthread_mutex_unlock(&e->reader_lock);
    return any;
}

/* On the engine's thread. */
static void on_news(void *ctx) {
    mxd_resume *e = ctx;
    pthread_mutex_lock(&e->reader_lock);
    for (mxd_req *r = e->readers; r; r = r->next_reader) mxd_req_wake(r);
    pthread_mutex_unlock(&e->reader_lock);
}

/* ------------------------------------------------------------------------------------ making room
 */

typedef struct crowd {
    int all, of_key;
    size_t bytes;
} crowd;

static crowd count(const mxd_server *s, const unsigned char key[32]) {
    crowd c = {0};
    for (const mxd_resume *e = s->resumes; e; e = e->next) {
        c.all++;
        c.of_key += memcmp(e->key, key, sizeof e->key) == 0;
        c.bytes += atomic_load(&e->bytes);
    }
    return c;
}

/* Unlinks the oldest ended stream without a reader, of this key or (NULL) of any. */
static mxd_resume *oldest(mxd_server *s, const unsigned char *key) {
    mxd_resume **found = NULL;
    for (mxd_resume **at = &s->resumes; *at; at = &(*at)->next) {
        mxd_resume *e = *at;
        if (key && memcmp(e->key, key, sizeof e->key) != 0) continue;
        if (atomic_load(&e->ended) && !has_readers(e)) found = at; /* newest first */
    }
    mxd_resume *e = found ? *found : NULL;
    if (e) *found = e->next;
    return e;
}

static bool has_room(mxd_server *s, const unsigned char key[32]) {
    bool room = false, more = true;
    while (!room && more) {
        pthread_mutex_lock(&s->resume_lock);
        crowd c = count(s, key);
        bool mine = c.of_key >= s->opts.max_resumes;
        room = !mine && c.all < MXD_HTTP_ALL_RESUMES && c.bytes < MXD_HTTP_RESUME_BYTES;
        mxd_resume *old = room ? NULL : oldest(s, mine ? key : NULL);
        pthread_mutex_unlock(&s->resume_lock);
        more = old != NULL;
        if (old) forget(old);
    }
    return room;
}

/* -------------------------------------------------------------------------------------- new ones
 */

static const char *header(const mxd_req *r, const char *name) {
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

bool mxd_resume_asked(mxd_req *r) {
    const char *v = header(r, "X-Resumable");
    if (!v || (strcasecmp(v, "true") != 0 && strcmp(v, "1") != 0)) return false;
    const mxd_params *p = r->params;
    const json_t *prompt = (p->where & MXD_AT_CHAT) ? NULL : p->v[MXD_P_PROMPT].j;
    bool many = json_is_array(prompt) && !json_is_integer(json_array_get(prompt, 0)) &&
                json_array_size(prompt) > 1;
    if (!mxd_param_bool(p, MXD_P_STREAM, false))
        mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, "stream", "X-Resumable needs 'stream': true");
    else if (many || mxd_param_int(p, MXD_P_N, 1) > 1)
        mxd_req_fail(r, MXD_FAULT_UNSUPPORTED, many ? "prompt" : "n",
                     "a resumable stream has one answer: send one request for each");
    return !r->status;
}

bool mxd_resume_new(mxd_req *r, mxd_job *j) {
    unsigned char raw[MXD_STREAM_ID_BYTES];
    (void)j;
    if (!has_room(r->server, r->key)) {
        mxd_req_fail(r, MXD_FAULT_STREAMS, NULL,
                     "too many resumable streams run: at most %d of one key; wait for one to end, "
                     "or leave out X-Resumable",
                     r->server->opts.max_resumes);
        return false;
    }
    mxd_resume *e = make(r->server);
    if (!e || mxd_rand_secret(raw, sizeof raw, NULL) != MXD_OK) {
        if (e) destroy(e);
        mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
        return false;
    }
    for (size_t i = 0; i < sizeof raw; i++) snprintf(e->id + 2 * i, 3, "%02x", raw[i]);
    memcpy(e->key, r->key, sizeof e->key);
    r->resume = e;
    return true;
}

void mxd_resume_drop(mxd_req *r) {
    if (r->resume) destroy(r->resume);
    r->resume = NULL;
}

static void add(mxd_resume *e) {
    mxd_server *s = e->server;
    pthread_mutex_lock(&s->resume_lock);
    e->next = s->resumes;
    s->resumes = e;
    pthread_mutex_unlock(&s->resume_lock);
    mxd_stream *stream = e->job->choices[0].stream;
    if (stream) mxd_stream_notify(stream, on_news, e);
}

static void attach(mxd_resume *e, mxd_req *r) {
    pthread_mutex_lock(&e->reader_lock);
    r->resume = e;
    r->next_reader = e->readers;
    e->readers = r;
    pthread_mutex_unlock(&e->reader_lock);
}

void mxd_resume_begin(mxd_req *r, mxd_job *j) {
    mxd_resume *e = r->resume;
    j->own_json = r->json;
    j->own_params = r->params;
    r->json = NULL;
    r->lent = true;
    e->job = j;
    e->request = j->choices[0].stream ? mxd_stream_request(j->choices[0].stream) : 0;
    r->placed = true;
    attach(e, r);
    add(e);
}

/* --------------------------------------------------------------------------------------- readers
 */

const char *mxd_resume_id(const mxd_req *r) { return r->resume->id; }

void mxd_resume_leave(mxd_req *r) {
    mxd_resume *e = r->resume;
    if (!e) return;
    pthread_mutex_lock(&e->reader_lock);
    for (mxd_req **at = &e->readers; *at; at = &(*at)->next_reader)
        if (*at == r) {
            *at = r->next_reader;
            break;
        }
    if (!e->readers) e->alone_ms = mxd_now_ms();
    pthread_mutex_unlock(&e->reader_lock);
    r->resume = NULL;
}

typedef struct look { /* at a stream, by one reader */
    size_t n;
    bool over, failed, broken;
} look;

/* Behind the event that the client has, once that is there. lock held. */
static void place(mxd_req *r, const mxd_job *j) {
    size_t next = (size_t)(r->after + 1);
    if (r->placed || next > mxd_job_events(j)) return;
    r->cursor = mxd_job_event_at(j, next);
    r->placed = true;
}

/* At most max bytes for this reader; buf may be NULL: only looks. */
static look take(mxd_req *r, char *buf, size_t max) {
    mxd_resume *e = r->resume;
    look k = {0};
    pthread_mutex_lock(&e->lock);
    pump(e);
    const mxd_job *j = e->job;
    place(r, j);
    size_t have = r->placed ? j->out.len - r->cursor : 0;
    k.n = have < max ? have : max;
    if (buf && k.n) {
        memcpy(buf, j->out.ptr + r->cursor, k.n);
        r->cursor += k.n;
    }
    k.over = j->finished || j->failed;
    k.failed = j->failed;
    k.broken = j->out.rc != MXD_OK;
    pthread_mutex_unlock(&e->lock);
    return k;
}

static ssize_t on_read(void *cls, uint64_t pos, char *buf, size_t max) {
    mxd_req *r = cls;
    (void)pos;
    for (;;) {
        if (atomic_load(&r->gone)) return MHD_CONTENT_READER_END_WITH_ERROR;
        look k = take(r, buf, max);
        if (k.n) {
            atomic_store(&r->last_out_ms, mxd_now_ms());
            return (ssize_t)k.n;
        }
        if (k.failed || k.broken) r->close_after = true;
        if (k.over) return MHD_CONTENT_READER_END_OF_STREAM;
        /* no error event: the stream goes on after the restart */
        if (k.broken || atomic_load(&r->server->ending)) return MHD_CONTENT_READER_END_WITH_ERROR;
        if (mxd_req_is_silent(r) && max >= 3) {
            memcpy(buf, ":\n\n", 3);
            atomic_store(&r->last_out_ms, mxd_now_ms());
            return 3;
        }
        if (mxd_req_park(r)) return 0;
    }
}

/* As with other streams, what fails before the first event is an ordinary error. */
static bool failed_early(mxd_req *r, const look *k) {
    mxd_resume *e = r->resume;
    if (!k->failed || r->cursor || !r->route->params) return false;
    pthread_mutex_lock(&e->lock);
    bool early = mxd_job_events(e->job) <= 1; /* the error itself */
    mxd_fault f = e->job->fault;
    pthread_mutex_unlock(&e->lock);
    if (early) mxd_req_fail_fault(r, &f);
    return early;
}

enum MHD_Result mxd_resume_wait(mxd_req *r) {
    for (;;) {
        if (atomic_load(&r->gone)) return MHD_NO;
        look k = take(r, NULL, SIZE_MAX);
        if (failed_early(r, &k)) return mxd_req_send(r);
        bool resumed = !r->route->params;
        if (k.n || k.over || resumed || mxd_req_is_silent(r)) return mxd_req_stream(r, on_read);
        if (atomic_load(&r->server->ending)) return MHD_NO;
        if (mxd_req_park(r)) return MHD_YES;
    }
}

/* -------------------------------------------------------------------------------- the GET request
 */

/* Last-Event-ID, which a browser sends when it comes back, or ?after=N; neither: from the
 * beginning. */
static bool read_after(mxd_req *r) {
    const char *v = header(r, "Last-Event-ID"), *name = "Last-Event-ID";
    if (!v) {
        v = MHD_lookup_connection_value(r->mhd, MHD_GET_ARGUMENT_KIND, "after");
        name = "after";
    }
    r->after = -1;
    if (!v || !*v || strcmp(v, "-1") == 0) return true;
    size_t n = strlen(v);
    if (n <= 9 && strspn(v, "0123456789") == n) {
        r->after = strtol(v, NULL, 10);
        return true;
    }
    mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, name, "'%s' must be the number of an event", name);
    return false;
}

/* Every id is compared, so that the time tells nothing about them. */
static mxd_resume *find(const mxd_req *r) {
    mxd_resume *found = NULL;
    char id[MXD_STREAM_ID] = "";
    if (strlen(r->tail) == MXD_STREAM_ID - 1) memcpy(id, r->tail, MXD_STREAM_ID);
    for (mxd_resume *e = r->server->resumes; e; e = e->next) {
        int other = CRYPTO_memcmp(e->id, id, sizeof id) | CRYPTO_memcmp(e->key, r->key, 32);
        if (!other) found = e;
    }
    return found;
}

/* The client has everything: 204 tells a browser not to come again. */
static bool has_all(mxd_req *r) {
    mxd_resume *e = r->resume;
    pthread_mutex_lock(&e->lock);
    pump(e);
    bool over = e->ended_ms != 0, all = r->after + 1 >= (int64_t)mxd_job_events(e->job);
    pthread_mutex_unlock(&e->lock);
    return over && all;
}

void mxd_stream_handle(mxd_req *r) {
    if (!read_after(r)) return;
    pthread_mutex_lock(&r->server->resume_lock);
    mxd_resume *e = find(r);
    if (e) attach(e, r);
    pthread_mutex_unlock(&r->server->resume_lock);
    if (!e) {
        mxd_req_fail(r, MXD_FAULT_ROUTE, NULL,
                     "no resumable stream has this id: it is wrong, of another key, or ended more "
                     "than %d s ago",
                     r->server->opts.resume_ms / 1000);
        return;
    }
    if (!has_all(r)) return;
    mxd_resume_leave(r);
    mxd_req_done(r, 204, "text/event-stream");
}

/* ------------------------------------------------------------------------------------ the server's
 */

/* One that nobody read for too long; resume_lock held. True: it goes. */
static bool look_after(mxd_resume *e, int64_t now) {
    pthread_mutex_lock(&e->reader_lock);
    bool alone = !e->readers;
    int64_t since = e->alone_ms;
    pthread_mutex_unlock(&e->reader_lock);
    if (!alone) return false;
    pthread_mutex_lock(&e->lock);
    pump(e);
    int64_t from = e->ended_ms > since ? e->ended_ms : since;
    bool late = now - from >= e->server->opts.resume_ms, over = e->ended_ms != 0;
    if (late && !over) mxd_job_cancel(e->job);
    pthread_mutex_unlock(&e->lock);
    return late && over;
}

void mxd_resume_tick(mxd_server *s) {
    int64_t now = mxd_now_ms();
    mxd_resume *gone = NULL;
    pthread_mutex_lock(&s->resume_lock);
    for (mxd_resume **at = &s->resumes; *at;) {
        mxd_resume *e = *at;
        if (!look_after(e, now)) {
            at = &e->next;
            continue;
        }
        *at = e->next;
        e->next = gone;
        gone = e;
    }
    pthread_mutex_unlock(&s->resume_lock);
    while (gone) {
        mxd_resume *e = gone;
        gone = e->next;
        forget(e);
    }
}

bool mxd_resume_cancel(mxd_server *s, const char *job_id) {
    bool found = false;
    pthread_mutex_lock(&s->resume_lock);
    for (mxd_resume *e = s->resumes; e && !found; e = e->next) {
        pthread_mutex_lock(&e->lock);
        found = !e->ended_ms && strcmp(mxd_job_id(e->job), job_id) == 0;
        if (found) mxd_job_cancel(e->job);
        pthread_mutex_unlock(&e->lock);
    }
    pthread_mutex_unlock(&s->resume_lock);
    return found;
}

void mxd_resume_stop(mxd_server *s) {
    pthread_mutex_lock(&s->resume_lock);
    for (mxd_resume *e = s->resumes; e; e = e->next) {
        pthread_mutex_lock(&e->lock);
        mxd_job_uncount(e->job);
        pthread_mutex_unlock(&e->lock);
    }
    pthread_mutex_unlock(&s->resume_lock);
}

void mxd_resume_close(mxd_server *s) {
    while (s->resumes) {
        mxd_resume *e = s->resumes;
        s->resumes = e->next;
        mxd_choice *c = &e->job->choices[0];
        if (!e->ended_ms) { /* not cancelled: it is still in the journal */
            mxd_stream_leave(c->stream);
            c->stream = NULL;
        }
        destroy(e);
    }
}

/* ------------------------------------------------------------------------------------ at the start
 */

static void restore(mxd_server *s, const mxd_engine_kept *k) {
    uint64_t id = k->id;
    mxd_fault f;
    bool late = k->ended && k->ended_ms_ago >= s->opts.resume_ms;
    mxd_resume *e = late ? NULL : make(s);
    if (e) e->job = mxd_job_restore(s, k, e, &f);
    if (!e || !e->job) {
        if (e)
            mxd_log(MXD_LOG_WARN, "stream_dropped", "request=%llu reason=\"%s\"",
                    (unsigned long long)id, f.msg);
        if (e) destroy(e);
        mxd_engine_forget(s->engine, id);
        return;
    }
    e->request = id;
    pthread_mutex_lock(&e->lock);
    pump(e);
    /* its time goes on where it was */
    if (k->ended && e->ended_ms) e->alone_ms = e->ended_ms -= k->ended_ms_ago;
    pthread_mutex_unlock(&e->lock);
    add(e);
}

void mxd_resume_restore(mxd_server *s) {
    mxd_engine_kept k;
    int n = 0;
    for (; mxd_engine_kept_at(s->engine, 0, &k); n++) restore(s, &k);
    if (n) mxd_log(MXD_LOG_INFO, "streams_restored", "streams=%d", n);
}
