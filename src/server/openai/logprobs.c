#include <inttypes.h>
#include <math.h>
#include <string.h>
#include "formats/utf8.h"
#include "server/openai/job.h"

/* The bytes of a token as a JSON string; what is not UTF-8 becomes U+FFFD. Returns its length in
 * code points. */
static uint64_t put_token(mxd_buf *out, const mxd_alloc *al, const char *s, size_t n) {
    mxd_buf text;
    uint64_t points = 0;
    mxd_buf_init(&text, al, 3 * MXD_TOKEN_MAX_BYTES + 16);
    for (size_t i = 0; i < n; points++) {
        uint32_t cp;
        int k = mxd_utf8_next(s + i, n - i, &cp);
        if (k > 0)
            mxd_buf_put(&text, s + i, (size_t)k);
        else
            mxd_buf_puts(&text, "\xEF\xBF\xBD");
        i += k > 0 ? (size_t)k : 1;
    }
    mxd_json_write_string(out, mxd_buf_str(&text), text.len, false);
    if (text.rc && !out->rc) out->rc = text.rc;
    mxd_buf_deinit(&text);
    return points;
}

/* JSON has no -inf; OpenAI uses -9999 for "not among the likely". */
static double or_floor(float x) { return isfinite(x) ? (double)x : -9999.0; }

static void put_entry(mxd_choice *c, int32_t id, float logprob) {
    size_t n;
    const char *s = mxd_tokenizer_bytes(mxd_engine_tokenizer(c->job->server->engine), id, &n);
    mxd_buf *out = &c->logprobs;
    mxd_buf_puts(out, "{\"token\":");
    put_token(out, c->job->al, s, n);
    mxd_buf_printf(out, ",\"logprob\":%.6g,\"bytes\":[", or_floor(logprob));
    for (size_t i = 0; i < n; i++)
        mxd_buf_printf(out, i ? ",%u" : "%u", (unsigned)(unsigned char)s[i]);
    mxd_buf_putc(out, ']');
}

static void add_chat(mxd_choice *c, const mxd_sampled *t) {
    mxd_buf *out = &c->logprobs;
    if (out->len) mxd_buf_putc(out, ',');
    put_entry(c, t->token, t->logprob);
    mxd_buf_puts(out, ",\"top_logprobs\":[");
    for (int i = 0; i < t->n_top; i++) {
        if (i) mxd_buf_putc(out, ',');
        put_entry(c, t->top_id[i], t->top_logprob[i]);
        mxd_buf_putc(out, '}');
    }
    mxd_buf_puts(out, "]}");
}

/* Text completions have four parallel lists, and the alternatives as an object; tokens whose texts
 * are equal would make duplicate keys, so only the best of them is named. */
static bool named_before(const mxd_tokenizer *tok, const mxd_sampled *t, int at, const char *s,
                         size_t n) {
    for (int i = 0; i < at; i++) {
        size_t m;
        const char *other = mxd_tokenizer_bytes(tok, t->top_id[i], &m);
        bool both_bad = !mxd_utf8_valid(s, n) && !mxd_utf8_valid(other, m);
        if (both_bad || (m == n && (n == 0 || memcmp(s, other, n) == 0))) return true;
    }
    return false;
}

static void add_text(mxd_choice *c, const mxd_sampled *t) {
    const mxd_tokenizer *tok = mxd_engine_tokenizer(c->job->server->engine);
    const char *comma = c->lp_tokens.len ? "," : "";
    size_t n;
    const char *s = mxd_tokenizer_bytes(tok, t->token, &n);
    mxd_buf_puts(&c->lp_tokens, comma);
    uint64_t points = put_token(&c->lp_tokens, c->job->al, s, n);
    mxd_buf_printf(&c->lp_values, "%s%.6g", comma, or_floor(t->logprob));
    mxd_buf_printf(&c->lp_offset, "%s%" PRIu64, comma, c->text_offset);
    c->text_offset += points;
    mxd_buf_printf(&c->lp_top, "%s{", comma);
    for (int i = 0, any = 0; i < t->n_top; i++) {
        s = mxd_tokenizer_bytes(tok, t->top_id[i], &n);
        if (named_before(tok, t, i, s, n)) continue;
        if (any++) mxd_buf_putc(&c->lp_top, ',');
        put_token(&c->lp_top, c->job->al, s, n);
        mxd_buf_printf(&c->lp_top, ":%.6g", or_floor(t->top_logprob[i]));
    }
    mxd_buf_putc(&c->lp_top, '}');
}

/* The token that ended the answer is not part of it. */
static bool is_end(const mxd_job *j, int32_t id) {
    const mxd_engine_info *info = mxd_engine_info_get(j->server->engine);
    if (mxd_param_bool(j->params, MXD_P_IGNORE_EOS, false)) return false;
    for (int i = 0; i < info->n_eos; i++)
        if (info->eos[i] == id) return true;
    return false;
}

void mxd_logprobs_add(mxd_choice *c, const mxd_sampled *tokens, int n) {
    if (!c->job->logprobs) return;
    for (int i = 0; i < n; i++) {
        if (is_end(c->job, tokens[i].token)) continue;
        if (c->job->chat)
            add_chat(c, &tokens[i]);
        else
            add_text(c, &tokens[i]);
    }
}

/* Appends a list and empties it; a failure to collect it must not get lost. */
static void take_list(mxd_buf *out, const char *name, mxd_buf *list) {
    mxd_buf_printf(out, "\"%s\":[", name);
    mxd_buf_put(out, mxd_buf_str(list), list->len);
    mxd_buf_putc(out, ']');
    if (list->rc && !out->rc) out->rc = list->rc;
    mxd_buf_clear(list);
}

void mxd_logprobs_write(mxd_choice *c, mxd_buf *out) {
    const mxd_job *j = c->job;
    bool any = j->chat ? c->logprobs.len > 0 : c->lp_tokens.len > 0;
    if (!j->logprobs || (j->streamed && !any)) {
        mxd_buf_puts(out, "null");
        return;
    }
    mxd_buf_putc(out, '{');
    if (j->chat) {
        take_list(out, "content", &c->logprobs);
        mxd_buf_puts(out, ",\"refusal\":null}");
        return;
    }
    take_list(out, "tokens", &c->lp_tokens);
    mxd_buf_putc(out, ',');
    take_list(out, "token_logprobs", &c->lp_values);
    mxd_buf_putc(out, ',');
    take_list(out, "top_logprobs", &c->lp_top);
    mxd_buf_putc(out, ',');
    take_list(out, "text_offset", &c->lp_offset);
    mxd_buf_putc(out, '}');
}
