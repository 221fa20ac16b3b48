#include "server/openai/prompt.h"

#include <string.h>
#include "base/clock.h"
#include "base/limits.h"
#include "server/tools/reasoning.h"
#include "server/tools/scan.h"

/* ---- messages: what the API allows beyond what templates know ---- */

/* A refusal part is text that the assistant said. */
static json_t *plain_parts(json_t *content) {
    size_t i;
    json_t *part, *list = json_array();
    int failed = list == NULL;
    json_array_foreach(content, i, part) {
        json_t *s = json_object_get(part, "text");
        if (!s) s = json_object_get(part, "refusal");
        failed |= json_array_append_new(list, json_pack("{s:s, s:O}", "type", "text", "text", s));
    }
    if (!failed) return list;
    json_decref(list);
    return NULL;
}

static json_t *one_message(json_t *m) {
    json_t *v = json_copy(m), *content = json_object_get(m, "content");
    json_t *other = json_object_get(m, "reasoning");
    int failed = v == NULL;
    /* few templates know the newer name of the role, and those treat both alike */
    if (strcmp(json_string_value(json_object_get(m, "role")), "developer") == 0)
        failed |= json_object_set_new(v, "role", json_string("system"));
    if (json_is_string(other) && !json_is_string(json_object_get(m, "reasoning_content")))
        failed |= json_object_set(v, "reasoning_content", other);
    if (!content) failed |= json_object_set_new(v, "content", json_null());
    if (json_is_array(content)) failed |= json_object_set_new(v, "content", plain_parts(content));
    static const char *const maybe_null[] = {"tool_calls", "reasoning_content", "name"};
    for (size_t i = 0; i < MXD_COUNT(maybe_null); i++)
        if (json_is_null(json_object_get(v, maybe_null[i]))) json_object_del(v, maybe_null[i]);
    if (!failed) return v;
    json_decref(v);
    return NULL;
}

/* The messages for the template. A new reference. */
static mxd_rc make_messages(json_t **out, const json_t *messages, mxd_err *err) {
    size_t i;
    json_t *m, *list = json_array();
    int failed = list == NULL;
    json_array_foreach(messages, i, m) failed |= json_array_append_new(list, one_message(m));
    mxd_rc rc = failed ? mxd_fail(err, MXD_E_NOMEM, "no memory for the messages")
                       : mxd_template_messages(out, list, err);
    json_decref(list);
    return rc;
}

/* ---- variables of the template ---- */

static bool wants_tools(const mxd_params *p) {
    const char *choice = json_string_value(p->v[MXD_P_TOOL_CHOICE].j);
    return json_array_size(p->v[MXD_P_TOOLS].j) > 0 && !(choice && strcmp(choice, "none") == 0);
}

/* What a request may say about the template's own variables; later lines win. */
static int add_options(json_t *vars, const mxd_params *p) {
    int failed = 0;
    const mxd_value *v = p->v;
    if (v[MXD_P_VERBOSITY].set) failed |= json_object_set(vars, "verbosity", v[MXD_P_VERBOSITY].j);
    if (v[MXD_P_REASONING_EFFORT].set) {
        failed |= json_object_set(vars, "reasoning_effort", v[MXD_P_REASONING_EFFORT].j);
        if (strcmp(v[MXD_P_REASONING_EFFORT].s, "none") == 0)
            failed |= json_object_set_new(vars, "enable_thinking", json_false());
    }
    const char *key;
    json_t *kwarg;
    json_object_foreach(v[MXD_P_CHAT_TEMPLATE_KWARGS].j, key, kwarg) failed |=
        json_object_set(vars, key, kwarg);
    if (v[MXD_P_ENABLE_THINKING].set)
        failed |= json_object_set(vars, "enable_thinking", v[MXD_P_ENABLE_THINKING].j);
    return failed;
}

static json_t *template_vars(const mxd_params *p, json_t *messages) {
    bool goes_on = mxd_param_bool(p, MXD_P_CONTINUE_FINAL_MESSAGE, false);
    bool begin = mxd_param_bool(p, MXD_P_ADD_GENERATION_PROMPT, !goes_on);
    json_t *vars = json_object();
    int failed = vars == NULL;
    failed |= add_options(vars, p);
    failed |= json_object_set(vars, "messages", messages);
    failed |= json_object_set_new(vars, "add_generation_prompt", json_boolean(begin));
    if (wants_tools(p))
        failed |= json_object_set(vars, "tools", p->v[MXD_P_TOOLS].j);
    else
        json_object_del(vars, "tools");
    if (!failed) return vars;
    json_decref(vars);
    return NULL;
}

/* ---- rendering ---- */

/* Ends the text behind the last message's content, so that the model goes on in it. */
static bool cut_after_last(mxd_rendered *r, const json_t *messages) {
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const json_t *content = json_object_get(last, "content");
    const char *s = json_string_value(content);
    size_t n = s ? json_string_length(content) : 0;
    n -= mxd_blank_suffix(s, n); /* templates strip */
    size_t at = r->n;
    bool found = false;
    while (n && !found && at-- > 0) found = at + n <= r->n && memcmp(r->text + at, s, n) == 0;
    if (!found) return false;
    size_t end = at + n, begin = 0;
    for (size_t i = 0; i < r->n_spans; i++) {
        size_t len = r->spans[i].n;
        if (begin + len > end) r->spans[i].n = end > begin ? end - begin : 0;
        begin += len;
    }
    r->n = end;
    r->text[end] = '\0';
    return true;
}

/* What the template itself wrote tells in which state the answer begins, and how calls look. */
static void look_at_template(mxd_prompt *out, const mxd_rendered *r, mxd_engine *e, bool tools) {
    mxd_buf own;
    const mxd_tokenizer *t = mxd_engine_tokenizer(e);
    mxd_buf_init(&own, out->text.al, MXD_TEMPLATE_MAX_OUTPUT);
    for (size_t i = 0; i < r->n_spans; i++)
        if (r->spans[i].trusted) mxd_buf_put(&own, r->spans[i].ptr, r->spans[i].n);
    const char *s = mxd_buf_str(&own);
    out->has_reasoning = mxd_tokenizer_find(t, "<think>", 7) >= 0 || strstr(s, "<think>");
    out->ends_in_reasoning = mxd_think_prompt_inside(s, own.len);
    if (tools) out->family = mxd_tool_family_find(s);
    if (own.rc && !out->text.rc) out->text.rc = own.rc;
    mxd_buf_deinit(&own);
}

static bool memory_fault(mxd_fault *f) {
    return mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
}

/* Failures of the template are the request's: others may render. */
static bool template_fault(mxd_fault *f, mxd_rc rc, const mxd_err *err) {
    if (rc == MXD_E_NOMEM) return memory_fault(f);
    bool limit = rc == MXD_E_TOOBIG || rc == MXD_E_TIMEOUT;
    return mxd_fault_set(f, limit ? MXD_FAULT_TEMPLATE_LIMIT : MXD_FAULT_TEMPLATE, "messages",
                         "the chat template failed: %s", err->msg);
}

static bool encode_fault(mxd_fault *f, mxd_rc rc, const mxd_err *err, const char *field) {
    if (rc == MXD_E_NOMEM) return memory_fault(f);
    return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, field, "%s", err->msg);
}

static bool finish(mxd_prompt *out, mxd_rendered *r, mxd_engine *e, const mxd_params *p,
                   const json_t *messages, bool encode, mxd_fault *f) {
    mxd_err err = {0};
    bool goes_on = mxd_param_bool(p, MXD_P_CONTINUE_FINAL_MESSAGE, false);
    if (goes_on && !cut_after_last(r, messages))
        return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, "continue_final_message",
                             "the template does not show the last message as it is");
    look_at_template(out, r, e, wants_tools(p));
    if (!encode) mxd_buf_put(&out->text, r->text, r->n);
    if (out->text.rc) return memory_fault(f);
    if (!encode) return true;
    mxd_rc rc =
        mxd_tokenizer_encode(mxd_engine_tokenizer(e), r->spans, r->n_spans, false, &out->ids, &err);
    return rc == MXD_OK || encode_fault(f, rc, &err, "messages");
}

static void init(mxd_prompt *out, const mxd_alloc *al) {
    *out = (mxd_prompt){0};
    mxd_ids_init(&out->ids, al, MXD_MAX_CONTEXT);
    mxd_buf_init(&out->text, al, MXD_HTTP_MAX_BODY);
}

bool mxd_prompt_chat(mxd_prompt *out, const mxd_alloc *al, mxd_engine *e, const mxd_params *p,
                     bool encode, mxd_fault *f) {
    init(out, al);
    const mxd_template *t = mxd_engine_template(e, wants_tools(p));
    const mxd_engine_info *info = mxd_engine_info_get(e);
    if (!t || !info->has_template)
        return mxd_fault_set(f, MXD_FAULT_TEMPLATE, "messages", "%s; use /v1/completions",
                             info->template_problem ? info->template_problem
                                                    : "the model has no chat template");
    json_t *messages = NULL;
    mxd_rendered r;
    mxd_err err = {0};
    mxd_rc rc = make_messages(&messages, p->v[MXD_P_MESSAGES].j, &err);
    if (rc) return template_fault(f, rc, &err);
    json_t *vars = template_vars(p, messages);
    rc = vars ? mxd_template_render(t, vars, mxd_tokenizer_special_vars(mxd_engine_tokenizer(e)),
                                    mxd_wall_ms() / 1000, &r, &err)
              : mxd_fail(&err, MXD_E_NOMEM, "no memory for the template's variables");
    json_decref(vars);
    bool ok = rc ? template_fault(f, rc, &err) : finish(out, &r, e, p, messages, encode, f);
    if (!rc) mxd_rendered_deinit(&r);
    json_decref(messages);
    return ok;
}

static bool take_ids(mxd_prompt *out, const json_t *list, mxd_fault *f) {
    size_t i;
    json_t *id;
    json_array_foreach(list, i, id) if (mxd_ids_push(&out->ids, (int32_t)json_integer_value(id),
                                                     NULL)) return memory_fault(f);
    return true;
}

bool mxd_prompt_text(mxd_prompt *out, const mxd_alloc *al, mxd_engine *e, const json_t *v,
                     bool want_text, mxd_fault *f) {
    const mxd_tokenizer *t = mxd_engine_tokenizer(e);
    mxd_err err = {0};
    init(out, al);
    if (json_is_array(v)) {
        if (!take_ids(out, v, f)) return false;
        mxd_detok d;
        mxd_detok_init(&d, t, true);
        for (size_t i = 0; want_text && i < out->ids.n; i++)
            mxd_detok_push(&d, out->ids.ptr[i], &out->text);
        if (want_text) mxd_detok_flush(&d, &out->text);
        return !out->text.rc || memory_fault(f);
    }
    mxd_span span = {json_string_value(v), json_string_length(v), false};
    if (want_text) mxd_buf_put(&out->text, span.ptr, span.n);
    mxd_rc rc = mxd_tokenizer_encode(t, &span, 1, true, &out->ids, &err);
    if (rc) return encode_fault(f, rc, &err, "prompt");
    return !out->text.rc || memory_fault(f);
}

void mxd_prompt_deinit(mxd_prompt *p) {
    if (p->ids.al) mxd_ids_deinit(&p->ids);
    if (p->text.al) mxd_buf_deinit(&p->text);
}
