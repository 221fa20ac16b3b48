#include <inttypes.h>
#include <math.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include "server/openai/job.h"

static void put_text(mxd_buf *out, const char *s, size_t n) {
    mxd_json_write_string(out, s, n, false);
}

static void put_field(mxd_buf *out, const char *name, const char *s) {
    mxd_buf_printf(out, "\"%s\":", name);
    put_text(out, s, strlen(s));
}

/* {"id":...,"object":...,"created":...,"model":..., without the end */
static void put_head(mxd_buf *out, const mxd_job *j, const char *object) {
    mxd_buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%" PRId64 ",", j->id, object,
                   j->created);
    put_field(out, "model", j->model);
}

void mxd_reply_head(mxd_job *j) {
    mxd_buf_puts(&j->head, "data: ");
    put_head(&j->head, j, j->chat ? "chat.completion.chunk" : "text_completion");
    mxd_buf_puts(&j->head, ",\"choices\":[");
}

/* ---- chunks ---- */

/* Every `data:` line of a stream comes behind this. */
static void begin_event(mxd_job *j) {
    size_t at = j->out.len;
    if (!j->log) return;
    mxd_buf_printf(&j->out, "id: %zu\n", mxd_job_events(j));
    mxd_buf_put(&j->starts, &at, sizeof at);
}

static void begin_chunk(mxd_choice *c) {
    mxd_job *j = c->job;
    begin_event(j);
    mxd_buf_put(&j->out, mxd_buf_str(&j->head), j->head.len);
    mxd_buf_printf(&j->out, "{\"index\":%d,", c->index);
}

static void end_chunk(mxd_choice *c) {
    mxd_job *j = c->job;
    mxd_buf_puts(&j->out, ",\"logprobs\":");
    mxd_logprobs_write(c, &j->out);
    mxd_buf_printf(&j->out, ",\"finish_reason\":%s%s%s}]", c->finish ? "\"" : "",
                   c->finish ? c->finish : "null", c->finish ? "\"" : "");
    /* the schema of text completions does not know a null usage */
    if (j->include_usage && j->chat) mxd_buf_puts(&j->out, ",\"usage\":null");
    mxd_buf_puts(&j->out, "}\n\n");
}

void mxd_reply_open(mxd_choice *c) {
    if (c->opened || !c->job->streamed || !c->job->chat) return;
    c->opened = true;
    begin_chunk(c);
    mxd_buf_puts(&c->job->out, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}");
    /* log probabilities belong to the chunk with the text */
    mxd_buf waits = c->logprobs;
    mxd_buf_init(&c->logprobs, c->job->al, waits.max);
    end_chunk(c);
    c->logprobs = waits;
}

static void put_reasoning(mxd_buf *out, mxd_reasoning_field field, const char *s, size_t n) {
    bool both = field == MXD_REASONING_BOTH;
    if (both || field == MXD_REASONING_CONTENT) {
        mxd_buf_puts(out, "\"reasoning_content\":");
        put_text(out, s, n);
    }
    if (both) mxd_buf_putc(out, ',');
    if (both || field == MXD_REASONING_PLAIN) {
        mxd_buf_puts(out, "\"reasoning\":");
        put_text(out, s, n);
    }
}

void mxd_reply_text(mxd_choice *c, bool reasoning, const char *s, size_t n) {
    mxd_job *j = c->job;
    if (!j->streamed) {
        mxd_buf_put(reasoning ? &c->reasoning : &c->content, s, n);
        return;
    }
    mxd_reply_open(c);
    begin_chunk(c);
    if (j->chat) mxd_buf_puts(&j->out, "\"delta\":{");
    if (reasoning) {
        put_reasoning(&j->out, j->server->opts.reasoning, s, n);
    } else {
        mxd_buf_puts(&j->out, j->chat ? "\"content\":" : "\"text\":");
        put_text(&j->out, s, n);
    }
    if (j->chat) mxd_buf_putc(&j->out, '}');
    end_chunk(c);
}

/* A function of the answer's id, so that a stream that is made again has the same. */
static void make_call_id(const mxd_choice *c, char out[32]) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    unsigned char raw[32];
    char of[MXD_HTTP_ID_BYTES + 32];
    int n = snprintf(of, sizeof of, "%s/%d/%d", c->job->id, c->index, c->n_calls);
    SHA256((const unsigned char *)of, (size_t)n, raw);
    memcpy(out, "call_", 5);
    for (int i = 0; i < 24; i++) out[5 + i] = letters[raw[i] % (sizeof letters - 1)];
    out[29] = '\0';
}

static void put_call(mxd_buf *out, const char *id, const char *name, const char *args, size_t n) {
    mxd_buf_printf(out, "\"id\":\"%s\",\"type\":\"function\",\"function\":{", id);
    put_field(out, "name", name);
    mxd_buf_puts(out, ",\"arguments\":");
    put_text(out, args, n);
    mxd_buf_puts(out, "}}");
}

void mxd_reply_call(mxd_choice *c, const char *name, const char *args, size_t n_args) {
    mxd_job *j = c->job;
    char id[32];
    make_call_id(c, id);
    int index = c->n_calls++;
    if (!j->streamed) {
        mxd_buf_puts(&c->calls, index ? ",{" : "{");
        put_call(&c->calls, id, name, args, n_args);
        return;
    }
    mxd_reply_open(c);
    begin_chunk(c);
    mxd_buf_printf(&j->out, "\"delta\":{\"tool_calls\":[{\"index\":%d,", index);
    put_call(&j->out, id, name, "", 0);
    mxd_buf_puts(&j->out, "]}");
    end_chunk(c);
    begin_chunk(c);
    mxd_buf_printf(&j->out,
                   "\"delta\":{\"tool_calls\":[{\"index\":%d,\"function\":{\"arguments\":", index);
    put_text(&j->out, args, n_args);
    mxd_buf_puts(&j->out, "}}]}");
    end_chunk(c);
}

void mxd_reply_close(mxd_choice *c) {
    mxd_job *j = c->job;
    if (!j->streamed) return;
    mxd_reply_open(c);
    begin_chunk(c);
    mxd_buf_puts(&j->out, j->chat ? "\"delta\":{}" : "\"text\":\"\"");
    end_chunk(c);
}

/* ---- totals ---- */

static void put_usage(const mxd_job *j, mxd_buf *out) {
    long long prompt = 0, made = 0, cached = 0, reasoning = 0;
    for (int i = 0; i < j->n_prompts; i++) prompt += (long long)j->prompts[i].ids.n;
    for (int i = 0; i < j->n_choices; i++) {
        const mxd_choice *c = &j->choices[i];
        made += c->n_generated;
        reasoning += c->n_reasoning;
        /* the choices of one prompt count its tokens once */
        if (i == 0 || c->prompt != j->choices[i - 1].prompt) cached += c->n_cached;
    }
    mxd_buf_printf(out,
                   "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,"
                   "\"total_tokens\":%lld,\"prompt_tokens_details\":{\"cached_tokens\":%lld},"
                   "\"completion_tokens_details\":{\"reasoning_tokens\":%lld}}",
                   prompt, made, prompt + made, cached, reasoning);
}

static double rate(int n, double ms) { return ms > 0 ? n * 1000.0 / ms : 0; }

static void put_timings(const mxd_job *j, mxd_buf *out) {
    if (!j->timings || !j->n_choices) return;
    const mxd_choice *c = &j->choices[0];
    int n_prefill = (int)c->prompt->ids.n - c->n_cached;
    mxd_buf_printf(out,
                   ",\"timings\":{\"queue_ms\":%.3f,\"prompt_n\":%d,\"prompt_ms\":%.3f,"
                   "\"prompt_per_second\":%.3f,\"predicted_n\":%d,\"predicted_ms\":%.3f,"
                   "\"predicted_per_second\":%.3f,\"first_token_ms\":%lld}",
                   c->queue_ms, n_prefill, c->prefill_ms, rate(n_prefill, c->prefill_ms),
                   c->n_generated, c->decode_ms, rate(c->n_generated, c->decode_ms),
                   (long long)(j->first_ms ? j->first_ms - j->begin_ms : 0));
}

static void put_message(mxd_choice *c, mxd_buf *out) {
    mxd_buf_puts(out, "\"message\":{\"role\":\"assistant\",\"content\":");
    if (c->n_calls && !c->content.len)
        mxd_buf_puts(out, "null");
    else
        put_text(out, mxd_buf_str(&c->content), c->content.len);
    mxd_buf_puts(out, ",\"refusal\":null");
    if (c->reasoning.len) {
        mxd_buf_putc(out, ',');
        put_reasoning(out, c->job->server->opts.reasoning, mxd_buf_str(&c->reasoning),
                      c->reasoning.len);
    }
    if (c->n_calls) mxd_buf_printf(out, ",\"tool_calls\":[%s]", mxd_buf_str(&c->calls));
    mxd_buf_putc(out, '}');
}

static void put_choice(mxd_choice *c, mxd_buf *out) {
    mxd_buf_printf(out, "%s{\"index\":%d,", c->index ? "," : "", c->index);
    if (c->job->chat) {
        put_message(c, out);
    } else {
        mxd_buf_puts(out, "\"text\":");
        put_text(out, mxd_buf_str(&c->content), c->content.len);
    }
    mxd_buf_puts(out, ",\"logprobs\":");
    mxd_logprobs_write(c, out);
    mxd_buf_printf(out, ",\"finish_reason\":\"%s\"}", c->finish);
}

void mxd_reply_end(mxd_job *j) {
    if (j->streamed) {
        if (j->include_usage) {
            begin_event(j);
            mxd_buf_put(&j->out, mxd_buf_str(&j->head), j->head.len);
            mxd_buf_puts(&j->out, "],");
            put_usage(j, &j->out);
            put_timings(j, &j->out);
            mxd_buf_puts(&j->out, "}\n\n");
        }
        begin_event(j);
        mxd_buf_puts(&j->out, "data: [DONE]\n\n");
        return;
    }
    put_head(&j->out, j, j->chat ? "chat.completion" : "text_completion");
    mxd_buf_puts(&j->out, ",\"choices\":[");
    for (int i = 0; i < j->n_choices; i++) put_choice(&j->choices[i], &j->out);
    mxd_buf_puts(&j->out, "],");
    put_usage(j, &j->out);
    put_timings(j, &j->out);
    mxd_buf_putc(&j->out, '}');
}

void mxd_reply_error(mxd_job *j) {
    begin_event(j);
    mxd_buf_puts(&j->out, "data: ");
    mxd_fault_write(&j->out, &j->fault);
    mxd_buf_puts(&j->out, "\n\n");
}
