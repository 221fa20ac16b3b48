#include "server/openai/job.h"

#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "server/resume.h"

enum { OUT_SLACK_BYTES = 16 << 20 };

/* ---- from text to pieces ---- */

static void on_said(void *ctx, const char *s, size_t n) { mxd_reply_text(ctx, false, s, n); }

static void on_call(void *ctx, const char *name, const char *args, size_t n_args) {
    mxd_choice *c = ctx;
    mxd_reply_call(c, name, args, n_args);
    if (!c->tools.max_calls || c->n_calls < c->tools.max_calls) return;
    c->cut = true; /* parallel_tool_calls false: one is enough */
    mxd_stream_cancel(c->stream);
}

static const mxd_tool_sink tool_sink = {on_said, on_call};

static void on_thought(void *ctx, bool reasoning, const char *s, size_t n) {
    mxd_choice *c = ctx;
    if (reasoning)
        mxd_reply_text(c, true, s, n);
    else
        mxd_tool_parser_feed(&c->tools, s, n);
}

/* ---- events of the engine ---- */

static void note_times(mxd_job *j, int n_tokens) {
    int64_t now = mxd_now_ms();
    mxd_metrics *m = &j->server->metrics;
    if (!j->first_ms) {
        j->first_ms = now;
        mxd_histogram_add(&m->first_token, (double)(now - j->begin_ms) / 1e3);
    } else if (n_tokens) {
        mxd_histogram_add(&m->inter_token, (double)(now - j->last_ms) / 1e3 / n_tokens);
    }
    j->last_ms = now;
}

static void drop(void *ctx, bool reasoning, const char *s, size_t n) {
    (void)ctx;
    (void)reasoning;
    (void)s;
    (void)n;
}

/* Tags count as reasoning. Token by token, because an event may hold several. */
static void count_reasoning(mxd_choice *c, const mxd_stream_event *ev) {
    const mxd_tokenizer *t = mxd_engine_tokenizer(c->job->server->engine);
    for (int i = 0; i < ev->n_tokens && c->counter.state != MXD_THINK_SAID; i++) {
        size_t n;
        const char *s = mxd_tokenizer_bytes(t, ev->tokens[i].token, &n);
        bool inside = c->counter.state == MXD_THINK_INSIDE;
        mxd_think_feed(&c->counter, s ? s : "", n);
        if (inside || c->counter.state == MXD_THINK_INSIDE) c->n_reasoning++;
        if (c->counter.state == MXD_THINK_AFTER) c->counter.state = MXD_THINK_SAID;
    }
}

static void on_text(mxd_choice *c, const mxd_stream_event *ev) {
    mxd_job *j = c->job;
    note_times(j, ev->n_tokens);
    c->n_seen += ev->n_tokens;
    if (c->cut) return;
    mxd_reply_open(c);
    mxd_logprobs_add(c, ev->tokens, ev->n_tokens);
    if (!j->chat) {
        if (ev->n_text) mxd_reply_text(c, false, ev->text, ev->n_text);
        return;
    }
    count_reasoning(c, ev);
    mxd_think_feed(&c->think, ev->text, ev->n_text);
}

static void finish_choice(mxd_choice *c, const char *why) {
    mxd_job *j = c->job;
    if (j->chat && !c->cut) {
        mxd_think_end(&c->think);
        mxd_tool_parser_end(&c->tools);
    }
    c->finish = c->n_calls ? "tool_calls" : why;
    c->done = true;
    mxd_reply_close(c);
    if (++j->n_done < j->n_choices) return;
    j->finished = true;
    mxd_reply_end(j);
}

static void on_done(mxd_choice *c, const mxd_stream_event *ev) {
    c->n_generated = ev->n_generated;
    c->n_cached = ev->n_cached;
    c->prefill_ms = ev->prefill_ms;
    c->decode_ms = ev->decode_ms;
    c->queue_ms = ev->queue_ms;
    finish_choice(c, ev->finish == MXD_FINISH_LENGTH ? "length" : "stop");
}

void mxd_job_fail(mxd_job *j, const mxd_fault *f) {
    if (j->failed) return;
    j->failed = true;
    j->fault = *f;
    mxd_job_cancel(j);
    if (j->streamed) mxd_reply_error(j);
}

static bool has_room(const mxd_job *j) {
    return !j->streamed || j->log || j->out.len - j->sent < MXD_HTTP_STREAM_BYTES;
}

/* One event of one choice. False: none waits. */
static bool pump_one(mxd_choice *c) {
    mxd_stream_event ev;
    mxd_err err = {0};
    mxd_fault f;
    if (c->done || !c->stream) return false;
    mxd_rc rc = mxd_stream_next(c->stream, 0, &ev, &err);
    if (rc == MXD_E_TIMEOUT && !mxd_stream_ended(c->stream)) return false; /* nothing yet */
    if (rc) {
        mxd_fault_from(&f, rc, &err, c->job->request);
        mxd_log(MXD_LOG_WARN, "request_failed", "request=%s rc=%s cause=\"%s\"", c->job->request,
                mxd_rc_name(rc), err.msg);
        mxd_job_fail(c->job, &f);
    } else if (ev.kind == MXD_STREAM_TEXT) {
        on_text(c, &ev);
    } else {
        on_done(c, &ev);
    }
    return true;
}

/* The first failure to collect what was said. */
static mxd_rc memory_rc(const mxd_job *j) {
    if (j->out.rc || j->head.rc) return j->out.rc ? j->out.rc : j->head.rc;
    for (int i = 0; i < j->n_choices; i++) {
        const mxd_choice *c = &j->choices[i];
        const mxd_buf *all[] = {&c->content,    &c->reasoning, &c->calls,  &c->logprobs,
                                &c->lp_tokens,  &c->lp_values, &c->lp_top, &c->lp_offset,
                                &c->think.wait, &c->tools.wait};
        for (size_t k = 0; k < MXD_COUNT(all); k++)
            if (all[k]->rc) return all[k]->rc;
    }
    return MXD_OK;
}

bool mxd_job_pump(mxd_job *j) {
    bool news = false, more = true;
    while (more && !j->finished && !j->failed && has_room(j)) {
        more = false; /* one event of each in turn, so that no choice waits for another */
        for (int i = 0; i < j->n_choices && !j->failed && !j->finished; i++)
            more |= pump_one(&j->choices[i]);
        news |= more;
    }
    mxd_rc rc = memory_rc(j);
    if (rc && !j->failed) {
        mxd_fault f;
        mxd_err err = {0};
        mxd_fault_from(&f, MXD_E_NOMEM, &err, j->request);
        mxd_job_fail(j, &f);
        news = true;
    }
    return news || j->finished || j->failed;
}

/* ---- start ---- */

static void take_sampling(mxd_sampling *s, const mxd_params *p, bool has_seed) {
    s->temperature = (float)mxd_param_num(p, MXD_P_TEMPERATURE, s->temperature);
    if (p->v[MXD_P_TOP_P].set) s->top_p = (float)p->v[MXD_P_TOP_P].d;
    /* the engine's 0 is "off"; the API's 0 keeps only the best token */
    if (p->v[MXD_P_TOP_P].set && s->top_p <= 0) s->top_p = 1e-9f;
    s->min_p = (float)mxd_param_num(p, MXD_P_MIN_P, s->min_p);
    int64_t top_k = mxd_param_int(p, MXD_P_TOP_K, s->top_k);
    s->top_k = top_k < 0 ? 0 : (int32_t)top_k;
    s->presence = (float)mxd_param_num(p, MXD_P_PRESENCE_PENALTY, s->presence);
    s->frequency = (float)mxd_param_num(p, MXD_P_FREQUENCY_PENALTY, s->frequency);
    double other = mxd_param_num(p, MXD_P_REPEAT_PENALTY, s->repetition);
    s->repetition = (float)mxd_param_num(p, MXD_P_REPETITION_PENALTY, other);
    if (p->v[MXD_P_SEED].set)
        s->seed = (uint64_t)mxd_param_int(p, MXD_P_SEED, 0);
    else if (!has_seed) /* a new one for every request */
        (void)!mxd_rand_secret(&s->seed, sizeof s->seed, NULL);
    s->logprobs = mxd_param_bool(p, MXD_P_LOGPROBS, false) || p->v[MXD_P_LOGPROBS_TEXT].set;
    s->n_top = (uint8_t)(mxd_param_int(p, MXD_P_TOP_LOGPROBS, 0) +
                         mxd_param_int(p, MXD_P_LOGPROBS_TEXT, 0));
}

static void take_lists(gen_kit *k, const mxd_params *p) {
    size_t i;
    json_t *v, *stop = p->v[MXD_P_STOP].j;
    if (json_is_string(stop)) k->stop[k->gen.n_stop++] = json_string_value(stop);
    json_array_foreach(stop, i, v) k->stop[k->gen.n_stop++] = json_string_value(v);
    json_array_foreach(p->v[MXD_P_STOP_TOKEN_IDS].j, i, v) k->stop_ids[k->gen.n_stop_ids++] =
        (int32_t)json_integer_value(v);
    const char *key;
    uint16_t n = 0;
    json_object_foreach(p->v[MXD_P_LOGIT_BIAS].j, key, v) {
        int32_t id = 0;
        for (const char *d = key; *d; d++) id = id * 10 + (*d - '0'); /* checked: digits only */
        k->bias[n++] = (mxd_logit_bias){id, (float)json_number_value(v)};
    }
    k->gen.sampling.n_bias = n;
    k->gen.sampling.bias = k->bias;
    k->gen.stop = k->stop;
    k->gen.stop_ids = k->stop_ids;
}

/* -1: the rest of the context. */
static int64_t max_tokens(const mxd_job *j) {
    const mxd_params *p = j->params;
    int own = mxd_engine_info_get(j->server->engine)->max_tokens;
    if (!j->chat) return mxd_param_int(p, MXD_P_MAX_TOKENS_TEXT, own > 0 ? own : 16);
    int64_t older = mxd_param_int(p, MXD_P_MAX_TOKENS, own > 0 ? own : -1);
    return mxd_param_int(p, MXD_P_MAX_COMPLETION_TOKENS, older);
}

void mxd_job_fill_gen(gen_kit *k, const mxd_job *j) {
    const mxd_params *p = j->params;
    const mxd_engine_info *info = mxd_engine_info_get(j->server->engine);
    k->gen = (mxd_gen){.sampling = info->defaults};
    k->gen.sampling.n_bias = 0;
    take_sampling(&k->gen.sampling, p, info->has_seed);
    take_lists(k, p);
    k->gen.ignore_eos = mxd_param_bool(p, MXD_P_IGNORE_EOS, false);
    k->gen.min_tokens = (int)mxd_param_int(p, MXD_P_MIN_TOKENS, 0);
    k->gen.keep_special = !mxd_param_bool(p, MXD_P_SKIP_SPECIAL_TOKENS, true);
}

/* Lengths against the context; the reply is set when they do not fit. */
static bool check_lengths(mxd_req *r, const mxd_job *j) {
    int ctx = mxd_engine_info_get(j->server->engine)->ctx;
    const char *field = j->chat ? "messages" : "prompt";
    int64_t most = max_tokens(j), least = mxd_param_int(j->params, MXD_P_MIN_TOKENS, 0);
    if (most >= 0 && least > most) {
        mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, "min_tokens",
                     "'min_tokens' must not be more than the most tokens of the answer");
        return false;
    }
    for (int i = 0; i < j->n_prompts; i++) {
        size_t n = j->prompts[i].ids.n;
        if (n == 0 && most != 0) {
            mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, field, "the prompt has no tokens");
            return false;
        }
        if (n < (size_t)ctx || (most == 0 && n == (size_t)ctx)) continue;
        mxd_fault f;
        mxd_fault_set(&f, MXD_FAULT_CONTEXT, field,
                      "the prompt has %zu tokens, but the context is %d and an answer needs at "
                      "least one: shorten it or start the server with a larger --ctx-size",
                      n, ctx);
        f.n_prompt = (long long)n;
        f.n_ctx = ctx;
        mxd_req_fail_fault(r, &f);
        return false;
    }
    return true;
}

static mxd_rc submit(mxd_choice *c, gen_kit *k, int64_t most, mxd_err *err) {
    mxd_job *j = c->job;
    mxd_engine *e = j->server->engine;
    int64_t rest = mxd_engine_info_get(e)->ctx - (int64_t)c->prompt->ids.n;
    k->gen.prompt = c->prompt->ids.ptr;
    k->gen.n_prompt = c->prompt->ids.n;
    if (most < 0 && mxd_engine_info_get(e)->max_tokens) most = mxd_engine_info_get(e)->max_tokens;
    k->gen.max_tokens = most < 0 || most > rest ? (int)rest : (int)most;
    k->gen.sampling.choice = (uint32_t)(c->index % (j->n_choices / j->n_prompts));
    MXD_TRY(mxd_engine_submit(e, &k->gen, &c->stream, err));
    return MXD_OK;
}

static void init_choice(mxd_choice *c, mxd_job *j, int index) {
    const mxd_alloc *al = j->al;
    const mxd_params *p = j->params;
    *c = (mxd_choice){.job = j, .index = index};
    c->prompt = &j->prompts[index / (j->n_choices / j->n_prompts)];
    bool split = c->prompt->has_reasoning && j->server->opts.reasoning != MXD_REASONING_NONE;
    mxd_think_init(&c->think, al, split, split && c->prompt->ends_in_reasoning, on_thought, c);
    mxd_think_init(&c->counter, al, split, split && c->prompt->ends_in_reasoning, drop, NULL);
    mxd_tool_parser_init(&c->tools, al, c->prompt->family,
                         mxd_param_bool(p, MXD_P_PARALLEL_TOOL_CALLS, true) ? 0 : 1, &tool_sink, c);
    mxd_buf *lists[] = {&c->content,   &c->reasoning, &c->calls,  &c->logprobs,
                        &c->lp_tokens, &c->lp_values, &c->lp_top, &c->lp_offset};
    for (size_t i = 0; i < MXD_COUNT(lists); i++) mxd_buf_init(lists[i], al, MXD_HTTP_REPLY_BYTES);
}

static void deinit_choice(mxd_choice *c) {
    mxd_stream_free(c->stream);
    mxd_think_deinit(&c->think);
    mxd_think_deinit(&c->counter);
    mxd_tool_parser_deinit(&c->tools);
    mxd_buf *lists[] = {&c->content,   &c->reasoning, &c->calls,  &c->logprobs,
                        &c->lp_tokens, &c->lp_values, &c->lp_top, &c->lp_offset};
    for (size_t i = 0; i < MXD_COUNT(lists); i++) mxd_buf_deinit(lists[i]);
}

static void free_prompts(const mxd_alloc *al, mxd_prompt *prompts, int n) {
    for (int i = 0; i < n; i++) mxd_prompt_deinit(&prompts[i]);
    mxd_free(al, prompts);
}

void mxd_job_free(mxd_job *j) {
    if (!j) return;
    for (int i = 0; j->choices && i < j->n_choices; i++) deinit_choice(&j->choices[i]);
    mxd_free(j->al, j->choices);
    free_prompts(j->al, j->prompts, j->n_prompts);
    mxd_buf_deinit(&j->head);
    mxd_buf_deinit(&j->out);
    mxd_buf_deinit(&j->starts);
    json_decref(j->own_json);
    mxd_free(j->al, j->own_params);
    mxd_job_uncount(j);
    mxd_free(j->al, j);
}

void mxd_job_uncount(mxd_job *j) {
    if (!j->counted) return;
    j->counted = false;
    mxd_histogram_add(&j->server->metrics.duration, (double)(mxd_now_ms() - j->begin_ms) / 1e3);
    atomic_fetch_sub(&j->server->running, 1);
}

size_t mxd_job_events(const mxd_job *j) { return j->starts.len / sizeof(size_t); }

size_t mxd_job_event_at(const mxd_job *j, size_t i) {
    size_t at = j->out.len;
    if (i < mxd_job_events(j)) memcpy(&at, j->starts.ptr + i * sizeof at, sizeof at);
    return at;
}

static void make_id(mxd_job *j) {
    unsigned char raw[12] = {0};
    (void)!mxd_rand_secret(raw, sizeof raw, NULL);
    int at = snprintf(j->id, sizeof j->id, "%s", j->chat ? "chatcmpl-" : "cmpl-");
    for (size_t i = 0; i < sizeof raw; i++, at += 2)
        snprintf(j->id + at, sizeof j->id - (size_t)at, "%02x", raw[i]);
}

mxd_job *mxd_job_new(const mxd_job_begin *b) {
    const mxd_alloc *al = b->server->al;
    const mxd_params *p = b->params;
    mxd_job *j = MXD_NEW(al, 1, mxd_job);
    if (!j) return NULL;
    *j = (mxd_job){.server = b->server, .al = al, .params = p, .log = b->log, .counted = true};
    j->prompts = b->prompts;
    j->n_prompts = b->n_prompts;
    snprintf(j->request, sizeof j->request, "%s", b->request);
    atomic_fetch_add(&b->server->running, 1);
    j->begin_ms = b->start_ms;
    j->chat = (p->where & MXD_AT_CHAT) != 0;
    j->streamed = mxd_param_bool(p, MXD_P_STREAM, false);
    j->include_usage = json_is_true(json_object_get(p->v[MXD_P_STREAM_OPTIONS].j, "include_usage"));
    j->logprobs = mxd_param_bool(p, MXD_P_LOGPROBS, false) || p->v[MXD_P_LOGPROBS_TEXT].set;
    j->timings = mxd_param_bool(p, MXD_P_TIMINGS, false);
    j->created = mxd_wall_ms() / 1000;
    j->model = p->v[MXD_P_MODEL].s;
    make_id(j);
    mxd_buf_init(&j->head, al, 64 << 10);
    bool bounded = j->streamed && !j->log;
    mxd_buf_init(&j->out, al,
                 bounded ? MXD_HTTP_STREAM_BYTES + OUT_SLACK_BYTES : MXD_HTTP_REPLY_BYTES);
    mxd_buf_init(&j->starts, al, MXD_HTTP_REPLY_BYTES);
    j->n_choices = b->n_prompts * (int)mxd_param_int(p, MXD_P_N, 1);
    j->choices = MXD_NEW(al, (size_t)j->n_choices, mxd_choice);
    if (!j->choices) {
        j->prompts = NULL; /* still the caller's */
        j->n_prompts = 0;
        mxd_job_free(j);
        return NULL;
    }
    for (int i = 0; i < j->n_choices; i++) init_choice(&j->choices[i], j, i);
    return j;
}

static mxd_rc submit_all(mxd_job *j, const mxd_buf *keep, mxd_err *err) {
    int64_t most = max_tokens(j);
    gen_kit *k = MXD_NEW(j->al, 1, gen_kit);
    if (!k) return mxd_fail(err, MXD_E_NOMEM, "no memory for a request");
    mxd_job_fill_gen(k, j);
    if (j->log) {
        k->gen.keep = mxd_buf_str(keep);
        k->gen.n_keep = keep->len;
    }
    mxd_rc rc = MXD_OK;
    for (int i = 0; i < j->n_choices && !rc && most != 0; i++)
        rc = submit(&j->choices[i], k, most, err);
    mxd_free(j->al, k);
    return rc;
}

static void on_news(void *ctx) { mxd_req_wake(ctx); }

void mxd_job_open(mxd_job *j) {
    bool echo = mxd_param_bool(j->params, MXD_P_ECHO, false);
    mxd_reply_head(j);
    for (int i = 0; i < j->n_choices; i++) {
        mxd_choice *c = &j->choices[i];
        if (echo) mxd_reply_text(c, false, mxd_buf_str(&c->prompt->text), c->prompt->text.len);
        if (!c->stream) finish_choice(c, "length");
    }
}

/* Submits; the reply is set when that fails. */
static void begin(mxd_req *r, mxd_job *j) {
    mxd_err err = {0};
    mxd_buf keep;
    if (!check_lengths(r, j)) return;
    mxd_buf_init(&keep, j->al, 2 * MXD_HTTP_MAX_BODY);
    if (j->log) mxd_job_keep(j, r, r->resume, &keep);
    mxd_rc rc = mxd_buf_rc(&keep, "the request", &err);
    if (!rc) rc = submit_all(j, &keep, &err);
    mxd_buf_deinit(&keep);
    if (rc == MXD_E_IO && j->log)
        mxd_req_fail(r, MXD_FAULT_JOURNAL, NULL,
                     "the server cannot write its journal at present, so the stream could not be "
                     "resumed: leave out X-Resumable, or try again later");
    else if (rc)
        mxd_req_fail_rc(r, rc, &err);
}

bool mxd_job_start(mxd_req *r, mxd_prompt *prompts, int n_prompts) {
    bool resumable = mxd_resume_asked(r);
    mxd_job *j = r->status ? NULL
                           : mxd_job_new(&(mxd_job_begin){.server = r->server,
                                                          .params = r->params,
                                                          .prompts = prompts,
                                                          .n_prompts = n_prompts,
                                                          .request = r->id,
                                                          .start_ms = r->start_ms,
                                                          .log = resumable});
    if (!j) {
        free_prompts(r->al, prompts, n_prompts);
        if (!r->status) mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
        return false;
    }
    if (!resumable || mxd_resume_new(r, j)) begin(r, j);
    if (r->status) {
        mxd_resume_drop(r);
        mxd_job_free(j);
        return false;
    }
    mxd_job_open(j);
    if (resumable) {
        mxd_resume_begin(r, j);
        return true;
    }
    r->job = j;
    for (int i = 0; i < j->n_choices; i++)
        if (j->choices[i].stream) mxd_stream_notify(j->choices[i].stream, on_news, r);
    return true;
}

void mxd_job_cancel(mxd_job *j) {
    for (int i = 0; i < j->n_choices; i++)
        if (j->choices[i].stream) mxd_stream_cancel(j->choices[i].stream);
}

const char *mxd_job_id(const mxd_job *j) { return j->id; }
