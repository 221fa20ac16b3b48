#include "fake_engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "formats/json.h"

enum { MAX_TEXT = 4 << 20, SLOTS = 64, QUEUE = 512 };

struct mxd_stream {
    mxd_engine *e;
    mxd_stream *next;
    const mxd_alloc *al;
    mxd_ids say;
    size_t n_prompt;
    int max_tokens, n_stop, n_made, fail_after, delay_ms;
    bool ignore_eos, logprobs, cancelled, ended, told, single;
    uint8_t n_top;
    char *stop[MXD_MAX_STOP_STRINGS];
    int32_t stop_ids[MXD_MAX_STOP_STRINGS];
    int n_stop_ids;
    mxd_rc fail_rc;
    int64_t due_ms;
    mxd_detok detok;
    mxd_buf held, ready, given; /* text: may be a stop string; to be taken; lent out */
    mxd_buf toks, given_toks;   /* mxd_sampled */
    mxd_finish finish;
    const char *stop_matched;
    void (*fn)(void *);
    void *ctx;
};

struct mxd_engine {
    const mxd_alloc *al;
    mxd_tokenizer *tok;
    mxd_template *tmpl;
    mxd_engine_info info;
    char *folder, *id;
    int32_t eos[4];
    pthread_mutex_t lock;
    pthread_cond_t work, news;
    pthread_t thread;
    bool stop;
    mxd_engine_state state;
    mxd_stream *streams;
    int live;
    int64_t cancel_ms;
    mxd_gen last;
    mxd_engine_metrics m;
    const char *journal_problem;
    uint64_t n_forgotten;
};

/* ---- one token ---- */

static void give_out(mxd_stream *s) {
    const char *text = mxd_buf_str(&s->held);
    size_t hold = 0;
    for (int i = 0; i < s->n_stop; i++) {
        const char *at = strstr(text, s->stop[i]);
        if (at) {
            mxd_buf_put(&s->ready, text, (size_t)(at - text));
            mxd_buf_clear(&s->held);
            s->ended = true;
            s->finish = MXD_FINISH_STOP;
            s->stop_matched = s->stop[i];
            return;
        }
        size_t n = strlen(s->stop[i]), k = n - 1 < s->held.len ? n - 1 : s->held.len;
        while (k > hold && memcmp(text + s->held.len - k, s->stop[i], k) != 0) k--;
        if (k > hold) hold = k;
    }
    size_t sure = s->held.len - hold;
    mxd_buf_put(&s->ready, text, sure);
    mxd_buf_drop(&s->held, sure);
}

static void finish(mxd_stream *s, mxd_finish why) {
    mxd_detok_flush(&s->detok, &s->held);
    mxd_buf_put(&s->ready, mxd_buf_str(&s->held), s->held.len);
    mxd_buf_clear(&s->held);
    s->ended = true;
    s->finish = why;
}

static void step(mxd_stream *s, int64_t now) {
    if (s->cancelled) {
        finish(s, MXD_FINISH_CANCELLED);
        return;
    }
    if (s->fail_rc && s->n_made >= s->fail_after) {
        s->ended = true;
        return;
    }
    bool over = (size_t)s->n_made >= s->say.n && !s->ignore_eos;
    int32_t id = over ? s->e->info.eos[0] : s->say.ptr[(size_t)s->n_made % s->say.n];
    mxd_sampled t = {.token = id};
    if (s->logprobs) {
        t.logprob = -0.25f;
        t.n_top = s->n_top;
        for (int i = 0; i < s->n_top; i++) {
            t.top_id[i] = i ? (id + i) % s->e->info.n_vocab : id;
            t.top_logprob[i] = -0.25f - (float)i;
        }
    }
    s->n_made++;
    mxd_buf_put(&s->toks, &t, sizeof t);
    s->due_ms = now + s->delay_ms;
    s->e->m.generated_tokens++;
    if (over) {
        finish(s, MXD_FINISH_STOP);
        return;
    }
    for (int i = 0; i < s->n_stop_ids; i++)
        if (s->stop_ids[i] == id) {
            finish(s, MXD_FINISH_STOP);
            return;
        }
    mxd_detok_push(&s->detok, id, &s->held);
    give_out(s);
    if (!s->ended && s->n_made >= s->max_tokens) finish(s, MXD_FINISH_LENGTH);
}

/* Steps what is due; returns how long nothing is. */
static int64_t step_all(mxd_engine *e) {
    int64_t now = mxd_now_ms(), wait = 1000;
    for (mxd_stream *s = e->streams; s; s = s->next) {
        if (s->ended || (s->single && (s->toks.len || s->ready.len))) continue;
        if (s->due_ms <= now || s->cancelled) {
            step(s, now);
            if (s->fn) s->fn(s->ctx);
            pthread_cond_broadcast(&e->news);
        }
        int64_t left = s->ended ? 1000 : s->due_ms - now;
        if (left < wait) wait = left < 0 ? 0 : left;
    }
    return wait;
}

static void *engine_main(void *arg) {
    mxd_engine *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->stop) {
        int64_t wait = step_all(e);
        if (wait == 0) { /* let others in */
            pthread_mutex_unlock(&e->lock);
            sched_yield();
            pthread_mutex_lock(&e->lock);
            continue;
        }
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_nsec += wait % 1000 * 1000000;
        at.tv_sec += wait / 1000 + at.tv_nsec / 1000000000;
        at.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&e->work, &e->lock, &at);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* ---- the engine ---- */

mxd_rc mxd_engine_open(mxd_engine **out, const mxd_alloc *al, const mxd_engine_opts *o,
                       mxd_err *err) {
    mxd_engine *e = MXD_NEW(al, 1, mxd_engine);
    if (!e) return mxd_fail(err, MXD_E_NOMEM, "no memory");
    e->al = al;
    e->folder = mxd_strdup(al, o->folder);
    e->id = mxd_strdup(al, o->model_id ? o->model_id : "fake/demo");
    mxd_rc rc = e->folder && e->id ? MXD_OK : MXD_E_NOMEM;
    if (!rc) rc = mxd_tokenizer_open(&e->tok, al, o->folder, err);
    if (!rc) rc = mxd_template_load(&e->tmpl, al, o->folder, true, err);
    if (rc) {
        mxd_tokenizer_close(e->tok);
        mxd_free(al, e->folder);
        mxd_free(al, e->id);
        mxd_free(al, e);
        return rc;
    }
    e->eos[0] = mxd_tokenizer_eos(e->tok);
    e->info = (mxd_engine_info){.model_id = e->id,
                                .folder = e->folder,
                                .model_type = "fake",
                                .ctx = o->ctx ? o->ctx : 2048,
                                .ctx_model = 2048,
                                .n_vocab = mxd_tokenizer_vocab(e->tok),
                                .n_layers = 2,
                                .hidden = 8,
                                .n_params = 1000,
                                .weight_bytes = 1000,
                                .created = 1700000000,
                                .has_template = true,
                                .eos = e->eos,
                                .n_eos = 1,
                                .defaults = {.temperature = 1, .top_p = 1}};
    e->state = MXD_ENGINE_READY;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    pthread_cond_init(&e->news, NULL);
    pthread_create(&e->thread, NULL, engine_main, e);
    *out = e;
    return MXD_OK;
}

mxd_rc mxd_engine_wait(mxd_engine *e, int64_t timeout_ms, mxd_err *err) {
    (void)e;
    (void)timeout_ms;
    (void)err;
    return MXD_OK;
}

mxd_rc mxd_engine_drain(mxd_engine *e, int64_t timeout_ms, mxd_err *err) {
    int64_t end = mxd_now_ms() + timeout_ms;
    fake_engine_set_state(e, MXD_ENGINE_DRAINING);
    while (fake_engine_live(e)) {
        if (mxd_now_ms() > end) return mxd_fail(err, MXD_E_TIMEOUT, "streams still run");
        mxd_sleep_ms(5);
    }
    return MXD_OK;
}

void mxd_engine_close(mxd_engine *e) {
    if (!e) return;
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    mxd_tokenizer_close(e->tok);
    mxd_template_close(e->tmpl);
    mxd_free(e->al, e->folder);
    mxd_free(e->al, e->id);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->work);
    pthread_cond_destroy(&e->news);
    mxd_free(e->al, e);
}

mxd_engine_state mxd_engine_state_now(const mxd_engine *e) {
    mxd_engine *m = (mxd_engine *)e;
    pthread_mutex_lock(&m->lock);
    mxd_engine_state now = m->state;
    pthread_mutex_unlock(&m->lock);
    return now;
}

const mxd_engine_info *mxd_engine_info_get(const mxd_engine *e) { return &e->info; }
const char *mxd_engine_determinism(const mxd_engine *e) {
    (void)e;
    return "bit-exact";
}

void mxd_engine_set_defaults(mxd_engine *e, const mxd_engine_defaults *d) {
    e->info.defaults = d->sampling;
    e->info.has_seed = d->has_seed;
    e->info.max_tokens = d->max_tokens;
}

const mxd_tokenizer *mxd_engine_tokenizer(const mxd_engine *e) { return e->tok; }
const mxd_template *mxd_engine_template(const mxd_engine *e, bool with_tools) {
    (void)with_tools;
    return e->tmpl;
}

json_t *mxd_engine_cluster_state(mxd_engine *e) {
    return json_pack("{s:i, s:s, s:{s:[]}, s:[], s:[], s:{s:i, s:i}}", "epoch", 1, "model",
                     e->info.model_id, "plan", "stages", "nodes", "links", "requests", "running",
                     fake_engine_live(e), "queued", 0);
}

void mxd_engine_metrics_get(mxd_engine *e, mxd_engine_metrics *out) {
    pthread_mutex_lock(&e->lock);
    *out = e->m;
    out->running = (uint32_t)e->live;
    out->slots = SLOTS;
    out->nodes_live = 1;
    pthread_mutex_unlock(&e->lock);
}

/* ---- scripts ---- */

/* The text behind the last "[[name:" up to "]]"; false when there is none. */
static bool directive(const char *text, const char *name, char *out, size_t cap) {
    char mark[32];
    const char *at = NULL;
    snprintf(mark, sizeof mark, "[[%s", name);
    for (const char *p = text; (p = strstr(p, mark)); p++) at = p;
    if (!at) return false;
    at += strlen(mark);
    if (*at == ':') at++;
    const char *end = strstr(at, "]]");
    size_t n = end ? (size_t)(end - at) : 0;
    if (n >= cap) n = cap - 1;
    memcpy(out, at, n);
    out[n] = '\0';
    return true;
}

static mxd_rc rc_named(const char *name) {
    for (int i = 1; i < MXD_RC_COUNT; i++)
        if (strcmp(mxd_rc_name((mxd_rc)i) + 2, name) == 0) return (mxd_rc)i;
    return MXD_E_INTERNAL;
}

static void unescape(char *s) {
    char *to = s;
    for (; *s; s++) {
        bool line = s[0] == '\\' && s[1] == 'n';
        *to++ = line ? '\n' : *s;
        s += line;
    }
    *to = '\0';
}

static mxd_rc write_script(mxd_stream *s, const char *prompt, mxd_err *err) {
    static const char plain[] = "Hello from the fake engine.";
    char arg[64], say[8192];
    mxd_buf text;
    mxd_buf_init(&text, s->al, MAX_TEXT);
    if (directive(prompt, "refuse", arg, sizeof arg))
        return mxd_fail(err, rc_named(arg), "refused as asked");
    if (directive(prompt, "count", arg, sizeof arg))
        for (int i = 0, n = atoi(arg); i < n; i++) mxd_buf_printf(&text, "word%d ", i);
    else if (directive(prompt, "say", say, sizeof say)) {
        unescape(say);
        mxd_buf_puts(&text, say);
    } else
        mxd_buf_puts(&text, plain);
    if (directive(prompt, "delay", arg, sizeof arg)) s->delay_ms = atoi(arg);
    s->due_ms = mxd_now_ms() + (directive(prompt, "first", arg, sizeof arg) ? atoi(arg) : 0);
    if (directive(prompt, "fail", arg, sizeof arg)) {
        s->fail_after = atoi(arg);
        char *colon = strchr(arg, ':');
        s->fail_rc = rc_named(colon ? colon + 1 : "");
    }
    mxd_span span = {mxd_buf_str(&text), text.len, true};
    mxd_rc rc = mxd_tokenizer_encode(s->e->tok, &span, 1, false, &s->say, err);
    mxd_buf_deinit(&text);
    return rc;
}

static mxd_rc read_prompt(mxd_stream *s, const mxd_gen *g, mxd_err *err) {
    mxd_buf text;
    mxd_detok d;
    mxd_buf_init(&text, s->al, MAX_TEXT);
    mxd_detok_init(&d, s->e->tok, false);
    for (size_t i = 0; i < g->n_prompt; i++) mxd_detok_push(&d, g->prompt[i], &text);
    mxd_detok_flush(&d, &text);
    mxd_rc rc = write_script(s, mxd_buf_str(&text), err);
    mxd_buf_deinit(&text);
    return rc;
}

/* ---- streams ---- */

static void free_stream(mxd_stream *s) {
    mxd_buf *all[] = {&s->held, &s->ready, &s->given, &s->toks, &s->given_toks};
    for (size_t i = 0; i < MXD_COUNT(all); i++) mxd_buf_deinit(all[i]);
    for (int i = 0; i < s->n_stop; i++) mxd_free(s->al, s->stop[i]);
    mxd_ids_deinit(&s->say);
    mxd_free(s->al, s);
}

static void copy_gen(mxd_stream *s, const mxd_gen *g) {
    s->n_prompt = g->n_prompt;
    s->max_tokens = g->max_tokens;
    s->ignore_eos = g->ignore_eos;
    s->single = g->keep != NULL;
    s->logprobs = g->sampling.logprobs;
    s->n_top = g->sampling.n_top;
    for (int i = 0; i < g->n_stop; i++) s->stop[s->n_stop++] = mxd_strdup(s->al, g->stop[i]);
    for (int i = 0; i < g->n_stop_ids; i++) s->stop_ids[s->n_stop_ids++] = g->stop_ids[i];
    mxd_detok_init(&s->detok, s->e->tok, !g->keep_special);
}

mxd_rc mxd_engine_submit(mxd_engine *e, const mxd_gen *g, mxd_stream **out, mxd_err *err) {
    if (g->n_prompt >= (size_t)e->info.ctx) return mxd_fail(err, MXD_E_CONTEXT, "too long");
    mxd_stream *s = MXD_NEW(e->al, 1, mxd_stream);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "no memory");
    s->e = e;
    s->al = e->al;
    mxd_ids_init(&s->say, e->al, 1 << 20);
    mxd_buf *all[] = {&s->held, &s->ready, &s->given, &s->toks, &s->given_toks};
    for (size_t i = 0; i < MXD_COUNT(all); i++) mxd_buf_init(all[i], e->al, 64 << 20);
    copy_gen(s, g);
    mxd_rc rc = read_prompt(s, g, err);
    pthread_mutex_lock(&e->lock);
    if (!rc && e->state == MXD_ENGINE_DRAINING) rc = mxd_fail(err, MXD_E_SHUTDOWN, "draining");
    if (!rc && g->keep && e->journal_problem)
        rc = mxd_fail(err, MXD_E_IO, "%s", e->journal_problem);
    if (!rc && e->live >= QUEUE) rc = mxd_fail(err, MXD_E_BUSY, "the queue is full");
    if (!rc) {
        s->next = e->streams;
        e->streams = s;
        e->live++;
        e->last = *g;
        e->m.steps++;
        e->m.prompt_tokens += g->n_prompt;
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->lock);
    if (rc)
        free_stream(s);
    else
        *out = s;
    return rc;
}

static void swap(mxd_buf *a, mxd_buf *b) {
    mxd_buf t = *a;
    *a = *b;
    *b = t;
    mxd_buf_clear(a);
}

static bool has_event(const mxd_stream *s) {
    return s->toks.len || s->ready.len || (s->ended && !s->told);
}

mxd_rc mxd_stream_next(mxd_stream *s, int64_t timeout_ms, mxd_stream_event *ev, mxd_err *err) {
    int64_t end = mxd_now_ms() + timeout_ms;
    mxd_rc rc = MXD_OK;
    *ev = (mxd_stream_event){.n_prompt = (int)s->n_prompt};
    pthread_mutex_lock(&s->e->lock);
    while (!has_event(s) && mxd_now_ms() < end) {
        pthread_mutex_unlock(&s->e->lock);
        mxd_sleep_ms(1);
        pthread_mutex_lock(&s->e->lock);
    }
    if (s->toks.len || s->ready.len) {
        swap(&s->ready, &s->given);
        swap(&s->toks, &s->given_toks);
        ev->kind = MXD_STREAM_TEXT;
        ev->text = mxd_buf_str(&s->given);
        ev->n_text = s->given.len;
        ev->tokens = (const mxd_sampled *)(void *)s->given_toks.ptr;
        ev->n_tokens = (int)(s->given_toks.len / sizeof(mxd_sampled));
    } else if (s->ended && !s->told) {
        s->told = true;
        ev->kind = MXD_STREAM_DONE;
        ev->finish = s->finish;
        ev->stop_matched = s->stop_matched;
        ev->n_generated = s->n_made;
        ev->prefill_ms = 1;
        ev->decode_ms = 1;
        bool failed = s->fail_rc && !s->cancelled && s->n_made >= s->fail_after;
        if (failed) rc = mxd_fail(err, s->fail_rc, "failed as asked");
        s->e->m.requests_failed += failed;
        s->e->m.requests_cancelled += !failed && s->cancelled;
        s->e->m.requests_done += !failed && !s->cancelled;
    } else {
        rc = mxd_fail(err, MXD_E_TIMEOUT, "nothing yet");
    }
    if (s->single) pthread_cond_signal(&s->e->work);
    pthread_mutex_unlock(&s->e->lock);
    return rc;
}

void mxd_stream_notify(mxd_stream *s, void (*fn)(void *ctx), void *ctx) {
    pthread_mutex_lock(&s->e->lock);
    s->fn = fn;
    s->ctx = ctx;
    if (has_event(s)) fn(ctx);
    pthread_mutex_unlock(&s->e->lock);
}

bool mxd_stream_ended(const mxd_stream *s) {
    pthread_mutex_lock(&s->e->lock);
    bool told = s->told;
    pthread_mutex_unlock(&s->e->lock);
    return told;
}

void mxd_stream_cancel(mxd_stream *s) {
    pthread_mutex_lock(&s->e->lock);
    if (!s->ended && !s->cancelled) {
        s->cancelled = true;
        s->e->cancel_ms = mxd_now_ms();
        pthread_cond_signal(&s->e->work);
    }
    pthread_mutex_unlock(&s->e->lock);
}

void mxd_stream_free(mxd_stream *s) {
    if (!s) return;
    mxd_stream_cancel(s);
    pthread_mutex_lock(&s->e->lock);
    mxd_stream **at = &s->e->streams;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    s->e->live--;
    pthread_mutex_unlock(&s->e->lock);
    free_stream(s);
}

/* ---- requests that are kept: as long as the engine lives ---- */

void mxd_stream_leave(mxd_stream *s) { mxd_stream_free(s); }
uint64_t mxd_stream_request(const mxd_stream *s) { return s ? 1 : 0; }

bool mxd_engine_kept_at(mxd_engine *e, int i, mxd_engine_kept *out) {
    (void)e, (void)i, (void)out;
    return false;
}

mxd_rc mxd_engine_restore(mxd_engine *e, uint64_t id, const mxd_gen *gen, mxd_stream **out,
                          mxd_err *err) {
    (void)e, (void)id, (void)gen, (void)out;
    return mxd_fail(err, MXD_E_NOTFOUND, "nothing is kept");
}

void mxd_engine_forget(mxd_engine *e, uint64_t id) {
    (void)id;
    pthread_mutex_lock(&e->lock);
    e->n_forgotten++;
    pthread_mutex_unlock(&e->lock);
}

bool mxd_engine_journal_problem(mxd_engine *e, char *text, size_t cap) {
    pthread_mutex_lock(&e->lock);
    const char *why = e->journal_problem;
    pthread_mutex_unlock(&e->lock);
    if (why && cap) snprintf(text, cap, "%s", why);
    return why != NULL;
}

/* ---- for tests ---- */

void fake_engine_set_journal_problem(mxd_engine *e, const char *text) {
    pthread_mutex_lock(&e->lock);
    e->journal_problem = text;
    pthread_mutex_unlock(&e->lock);
}

uint64_t fake_engine_forgotten(mxd_engine *e) {
    pthread_mutex_lock(&e->lock);
    uint64_t n = e->n_forgotten;
    pthread_mutex_unlock(&e->lock);
    return n;
}

void fake_engine_set_state(mxd_engine *e, mxd_engine_state state) {
    pthread_mutex_lock(&e->lock);
    e->state = state;
    pthread_mutex_unlock(&e->lock);
}

int fake_engine_live(mxd_engine *e) {
    pthread_mutex_lock(&e->lock);
    int n = e->live;
    pthread_mutex_unlock(&e->lock);
    return n;
}

int64_t fake_engine_cancel_ms(mxd_engine *e) {
    pthread_mutex_lock(&e->lock);
    int64_t ms = e->cancel_ms;
    pthread_mutex_unlock(&e->lock);
    return ms;
}

uint64_t fake_engine_submitted(mxd_engine *e) {
    pthread_mutex_lock(&e->lock);
    uint64_t n = e->m.steps;
    pthread_mutex_unlock(&e->lock);
    return n;
}

const mxd_gen *fake_engine_last(mxd_engine *e) { return &e->last; }
