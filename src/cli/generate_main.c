/* mlx-dist-generate: one prompt, or a chat, over this machine and local workers. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/engine_kit.h"
#include "cli/main_kit.h"
#include "cli/term.h"
#include "formats/json.h"

enum { PROMPT_MAX = 4 << 20, LINE_MAX_BYTES = 64 << 10, WAIT_MS = 100 };

typedef struct chat {
    const mxd_options *o;
    mxd_engine *engine;
    mxd_sampling sampling;
    mxd_buf answer;        /* of the turn in hand */
    mxd_stream_event last; /* DONE */
    bool interrupted;
} chat;

/* --------------------------------------------------------------------------------------- prompts
 */

static mxd_rc read_all(FILE *f, mxd_buf *out, mxd_err *err) {
    char part[8192];
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) mxd_buf_put(out, part, n);
    return mxd_buf_rc(out, "the prompt", err);
}

static mxd_rc plain_prompt(chat *c, const char *text, mxd_ids *ids, mxd_err *err) {
    const mxd_span span = {text, strlen(text), false};
    return mxd_tokenizer_encode(mxd_engine_tokenizer(c->engine), &span, 1, true, ids, err);
}

static mxd_rc chat_prompt(chat *c, json_t *messages, mxd_ids *ids, mxd_err *err) {
    json_t *vars = json_pack("{s:O, s:b}", "messages", messages, "add_generation_prompt", 1);
    if (!vars) return mxd_fail(err, MXD_E_NOMEM, "messages");
    mxd_rc rc = mxd_engine_chat_ids(c->engine, vars, ids, err);
    json_decref(vars);
    return rc;
}

/* --------------------------------------------------------------------------------------- answers
 */

/* Prints the answer as it comes, unless --json wants it whole. */
static mxd_rc answer(chat *c, const mxd_ids *ids, mxd_err *err) {
    bool json = mxd_opt_bool(c->o, MXD_OPT_JSON);
    mxd_gen gen = {.prompt = ids->ptr,
                   .n_prompt = ids->n,
                   .max_tokens = (int)mxd_opt_int(c->o, MXD_OPT_MAX_TOKENS),
                   .ignore_eos = mxd_opt_bool(c->o, MXD_OPT_IGNORE_EOS),
                   .sampling = c->sampling};
    mxd_stream *s;
    MXD_TRY(mxd_engine_submit(c->engine, &gen, &s, err));
    mxd_buf_clear(&c->answer);
    c->last = (mxd_stream_event){0};
    mxd_rc rc;
    do {
        mxd_stream_event ev;
        rc = mxd_stream_next(s, WAIT_MS, &ev, err);
        if (rc == MXD_OK && ev.kind == MXD_STREAM_TEXT) {
            mxd_buf_put(&c->answer, ev.text, ev.n_text);
            if (!json && ev.n_text) fwrite(ev.text, 1, ev.n_text, stdout), fflush(stdout);
        } else if (rc == MXD_OK) {
            c->last = ev;
            break;
        }
        if (mxd_signals_wait(0)) {
            c->interrupted = true;
            mxd_stream_cancel(s);
        }
    } while (rc == MXD_OK || (rc == MXD_E_TIMEOUT && !mxd_stream_ended(s)));
    mxd_stream_free(s);
    if (!json) fputc('\n', stdout);
    return rc ? rc : mxd_buf_rc(&c->answer, "the answer", err);
}

static double per_second(int n, double ms) { return ms > 0 ? n * 1000.0 / ms : 0; }

static void report(chat *c) {
    const mxd_stream_event *d = &c->last;
    double prompt_speed = per_second(d->n_prompt - d->n_cached, d->prefill_ms);
    static const char *const how[] = {"stop", "length", "cancelled"};
    if (!mxd_opt_bool(c->o, MXD_OPT_JSON)) {
        if (!mxd_opt_bool(c->o, MXD_OPT_QUIET))
            fprintf(stderr, "prompt %d tokens, %.1f tokens/s; answer %d tokens, %.1f tokens/s\n",
                    d->n_prompt, prompt_speed, d->n_generated,
                    per_second(d->n_generated - 1, d->decode_ms));
        return;
    }
    json_t *o =
        json_pack("{s:s%, s:s, s:i, s:i, s:f, s:f}", "text", mxd_buf_str(&c->answer), c->answer.len,
                  "finish_reason", how[d->finish], "prompt_tokens", d->n_prompt,
                  "completion_tokens", d->n_generated, "prompt_tokens_per_second", prompt_speed,
                  "tokens_per_second", per_second(d->n_generated - 1, d->decode_ms));
    mxd_buf out;
    mxd_buf_init(&out, &mxd_alloc_libc, PROMPT_MAX);
    if (o) mxd_json_write(&out, o, &(mxd_json_style){0});
    fprintf(stdout, "%s\n", mxd_buf_str(&out));
    mxd_buf_deinit(&out);
    json_decref(o);
}

/* ------------------------------------------------------------------------------------------ turns
 */

static mxd_rc add_message(json_t *messages, const char *role, const char *text, size_t n,
                          mxd_err *err) {
    json_t *m = json_pack("{s:s, s:s%}", "role", role, "content", text, n);
    if (m && json_array_append_new(messages, m) == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_INVAL, "the message is not valid UTF-8");
}

static mxd_rc turn(chat *c, json_t *messages, const char *text, mxd_err *err) {
    mxd_ids ids;
    mxd_ids_init(&ids, &mxd_alloc_libc, MXD_MAX_CONTEXT);
    mxd_rc rc = MXD_OK;
    if (messages) rc = add_message(messages, "user", text, strlen(text), err);
    if (!rc) rc = messages ? chat_prompt(c, messages, &ids, err) : plain_prompt(c, text, &ids, err);
    if (!rc) rc = answer(c, &ids, err);
    mxd_ids_deinit(&ids);
    if (rc) return rc;
    report(c);
    return messages
               ? add_message(messages, "assistant", mxd_buf_str(&c->answer), c->answer.len, err)
               : MXD_OK;
}

static mxd_rc interactive(chat *c, json_t *messages, mxd_err *err) {
    static char line[LINE_MAX_BYTES];
    fprintf(stderr, "Chat with %s. An empty line or Ctrl-D ends it.\n",
            mxd_engine_info_get(c->engine)->model_id);
    for (;;) {
        fputs("> ", stderr);
        if (!fgets(line, sizeof line, stdin)) return MXD_OK;
        line[strcspn(line, "\r\n")] = '\0';
        if (!line[0]) return MXD_OK;
        MXD_TRY(turn(c, messages, line, err));
        if (c->interrupted) return MXD_OK;
    }
}

static mxd_rc talk(chat *c, mxd_err *err) {
    const char *prompt = mxd_opt_text(c->o, MXD_OPT_PROMPT);
    const char *system = mxd_opt_text(c->o, MXD_OPT_SYSTEM);
    json_t *messages = mxd_opt_bool(c->o, MXD_OPT_CHAT) || system ? json_array() : NULL;
    mxd_buf text;
    mxd_buf_init(&text, &mxd_alloc_libc, PROMPT_MAX);
    mxd_rc rc = MXD_OK;
    if (messages && system) rc = add_message(messages, "system", system, strlen(system), err);
    if (!rc && prompt && strcmp(prompt, "-") == 0) {
        rc = read_all(stdin, &text, err);
        prompt = mxd_buf_str(&text);
    }
    if (!rc && !prompt && !messages)
        rc = mxd_fail(err, MXD_E_INVAL,
                      "nothing to do: give --prompt TEXT, or --chat for a "
                      "conversation");
    if (!rc) rc = prompt ? turn(c, messages, prompt, err) : interactive(c, messages, err);
    mxd_buf_deinit(&text);
    json_decref(messages);
    return rc;
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    mxd_engine_kit kit;
    chat c = {.o = o};
    if (!mxd_opt_given(o, MXD_OPT_LOG_LEVEL) && !mxd_opt_bool(o, MXD_OPT_VERBOSE))
        mxd_log_set_level(MXD_LOG_ERROR);
    mxd_buf_init(&c.answer, &mxd_alloc_libc, PROMPT_MAX);
    mxd_signals_catch();
    mxd_rc rc = mxd_engine_kit_fill(&kit, o, err);
    if (!rc) rc = mxd_engine_kit_open(&kit, o, &c.engine, err);
    if (!rc) {
        c.sampling = mxd_engine_kit_sampling(o, c.engine);
        rc = talk(&c, err);
    }
    mxd_engine_close(c.engine);
    mxd_engine_kit_deinit(&kit);
    mxd_buf_deinit(&c.answer);
    return rc;
}

int main(int argc, char **argv) {
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, MXD_PROG_GENERATE, argc, argv, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
