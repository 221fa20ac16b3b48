#include "server/checks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/limits.h"

enum { MAX_PROMPTS = MXD_MAX_WAITING };

#define BAD(param, ...) mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, param, __VA_ARGS__)

/* ---- messages ---- */

static bool check_part(json_t *part, const char *where, const char *role, mxd_fault *f) {
    char path[160];
    snprintf(path, sizeof path, "%s.type", where);
    const char *type = json_string_value(json_object_get(part, "type"));
    if (!type) return BAD(path, "a content part needs a type");
    bool refusal = strcmp(type, "refusal") == 0 && strcmp(role, "assistant") == 0;
    if (strcmp(type, "text") != 0 && !refusal)
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, path,
                             "content parts of this type are not supported: text only");
    snprintf(path, sizeof path, "%s.%s", where, type);
    return json_is_string(json_object_get(part, type)) || BAD(path, "must be a string");
}

static bool check_content(json_t *v, const char *where, const char *role, mxd_fault *f) {
    if (json_is_string(v)) return true;
    if (!json_is_array(v) || json_array_size(v) == 0)
        return BAD(where, "content must be a string or a list of parts");
    size_t i;
    json_t *part;
    json_array_foreach(v, i, part) {
        char path[128];
        snprintf(path, sizeof path, "%s[%zu]", where, i);
        if (!check_part(part, path, role, f)) return false;
    }
    return true;
}

static bool check_calls(json_t *v, const char *where, mxd_fault *f) {
    if (!json_is_array(v)) return BAD(where, "tool_calls must be an array");
    size_t i;
    json_t *call;
    json_array_foreach(v, i, call) {
        char path[160];
        snprintf(path, sizeof path, "%s[%zu].type", where, i);
        json_t *type = json_object_get(call, "type");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "function") != 0))
            return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, path, "only calls of type function");
        json_t *function = json_object_get(call, "function");
        snprintf(path, sizeof path, "%s[%zu].function.name", where, i);
        if (!json_is_string(json_object_get(function, "name"))) return BAD(path, "is required");
        json_t *args = json_object_get(function, "arguments");
        snprintf(path, sizeof path, "%s[%zu].function.arguments", where, i);
        if (args && !json_is_string(args) && !json_is_object(args))
            return BAD(path, "must be a string of JSON");
    }
    return true;
}

static bool known_role(const char *role) {
    static const char *const roles[] = {"system", "developer", "user", "assistant", "tool"};
    for (size_t i = 0; role && i < MXD_COUNT(roles); i++)
        if (strcmp(role, roles[i]) == 0) return true;
    return false;
}

/* Fields of a message that must be strings when they are there. */
static bool check_texts(json_t *m, size_t at, mxd_fault *f) {
    static const char *const names[] = {"name", "reasoning_content", "reasoning", "refusal"};
    for (size_t i = 0; i < MXD_COUNT(names); i++) {
        json_t *v = json_object_get(m, names[i]);
        if (!v || json_is_null(v) || json_is_string(v)) continue;
        char path[64];
        snprintf(path, sizeof path, "messages[%zu].%s", at, names[i]);
        return BAD(path, "must be a string");
    }
    return true;
}

static bool check_message(json_t *m, size_t at, mxd_fault *f) {
    char path[96];
    snprintf(path, sizeof path, "messages[%zu]", at);
    if (!json_is_object(m)) return BAD(path, "a message must be an object");
    const char *role = json_string_value(json_object_get(m, "role"));
    snprintf(path, sizeof path, "messages[%zu].role", at);
    if (!known_role(role))
        return BAD(path, "role must be system, developer, user, assistant or tool");
    if (!check_texts(m, at, f)) return false;
    bool assistant = strcmp(role, "assistant") == 0;
    json_t *calls = json_object_get(m, "tool_calls"), *content = json_object_get(m, "content");
    bool has_calls = assistant && calls && !json_is_null(calls);
    snprintf(path, sizeof path, "messages[%zu].tool_calls", at);
    if (has_calls && !check_calls(calls, path, f)) return false;
    snprintf(path, sizeof path, "messages[%zu].function_call", at);
    json_t *old = json_object_get(m, "function_call");
    if (old && !json_is_null(old))
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, path, "deprecated: use tool_calls");
    snprintf(path, sizeof path, "messages[%zu].tool_call_id", at);
    if (strcmp(role, "tool") == 0 && !json_is_string(json_object_get(m, "tool_call_id")))
        return BAD(path, "a tool message needs a tool_call_id");
    snprintf(path, sizeof path, "messages[%zu].content", at);
    if (!content || json_is_null(content))
        return (has_calls && json_array_size(calls)) || BAD(path, "content is required");
    return check_content(content, path, role, f);
}

bool mxd_check_messages(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    size_t n = json_array_size(v), i;
    if (n < 1 || n > MXD_MAX_MESSAGES)
        return BAD("messages", "'messages' must have 1 to %d items", MXD_MAX_MESSAGES);
    json_t *m;
    json_array_foreach(v, i, m) if (!check_message(m, i, f)) return false;
    return true;
}

/* ---- token ids ---- */

static bool is_id(const mxd_params *p, const json_t *v) {
    return json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < p->n_vocab;
}

static bool check_ids(const mxd_params *p, json_t *list, const char *where, mxd_fault *f) {
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v) {
        if (is_id(p, v)) continue;
        char path[96];
        snprintf(path, sizeof path, "%s[%zu]", where, i);
        return BAD(path, "must be a token id between 0 and %d", p->n_vocab - 1);
    }
    return true;
}

bool mxd_check_stop_ids(const mxd_params *p, json_t *v, mxd_fault *f) {
    if (json_array_size(v) > MXD_MAX_STOP_STRINGS)
        return BAD("stop_token_ids", "at most %d token ids", MXD_MAX_STOP_STRINGS);
    return check_ids(p, v, "stop_token_ids", f);
}

bool mxd_check_tokens(const mxd_params *p, json_t *v, mxd_fault *f) {
    return check_ids(p, v, "tokens", f);
}

bool mxd_check_prompt(const mxd_params *p, json_t *v, mxd_fault *f) {
    if (json_is_string(v)) return true;
    size_t n = json_array_size(v), i;
    json_t *item = json_array_get(v, 0);
    if (!item) return BAD("prompt", "'prompt' must be a string, token ids, or a list of either");
    if (json_is_integer(item)) return check_ids(p, v, "prompt", f);
    if (n > MAX_PROMPTS) return BAD("prompt", "at most %d prompts", MAX_PROMPTS);
    bool texts = json_is_string(item);
    json_array_foreach(v, i, item) {
        char path[64];
        snprintf(path, sizeof path, "prompt[%zu]", i);
        if (texts ? !json_is_string(item) : !json_array_size(item))
            return BAD(path, texts ? "must be a string" : "must be a list of token ids");
        if (!texts && !check_ids(p, item, path, f)) return false;
    }
    return true;
}

bool mxd_check_logit_bias(const mxd_params *p, json_t *v, mxd_fault *f) {
    if (json_object_size(v) > MXD_MAX_LOGIT_BIAS)
        return BAD("logit_bias", "at most %d entries", MXD_MAX_LOGIT_BIAS);
    const char *key;
    json_t *bias;
    json_object_foreach(v, key, bias) {
        char path[64], *end;
        snprintf(path, sizeof path, "logit_bias.%.32s", key);
        errno = 0;
        long id = strtol(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end || errno || id >= p->n_vocab)
            return BAD(path, "must be a token id between 0 and %d", p->n_vocab - 1);
        double x = json_is_number(bias) ? json_number_value(bias) : 1e9;
        if (!(x >= -100 && x <= 100)) return BAD(path, "must be a number from -100 to 100");
    }
    return true;
}

/* ---- the rest ---- */

static bool check_stop_text(const json_t *v, const char *path, mxd_fault *f) {
    size_t n = json_is_string(v) ? json_string_length(v) : 0;
    if (n >= 1 && n <= MXD_MAX_STOP_BYTES) return true;
    return BAD(path, "a stop string must have 1 to %d bytes", MXD_MAX_STOP_BYTES);
}

bool mxd_check_stop(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    if (!json_is_array(v)) return check_stop_text(v, "stop", f);
    if (json_array_size(v) > MXD_MAX_STOP_STRINGS)
        return BAD("stop", "at most %d stop strings", MXD_MAX_STOP_STRINGS);
    size_t i;
    json_t *s;
    json_array_foreach(v, i, s) {
        char path[32];
        snprintf(path, sizeof path, "stop[%zu]", i);
        if (!check_stop_text(s, path, f)) return false;
    }
    return true;
}

bool mxd_check_n(const mxd_params *p, json_t *v, mxd_fault *f) {
    if (json_integer_value(v) <= p->max_choices) return true;
    return BAD("n", "this server answers at most %d choices per request", p->max_choices);
}

bool mxd_check_stream_options(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    static const char *const names[] = {"include_usage", "include_obfuscation"};
    for (size_t i = 0; i < MXD_COUNT(names); i++) {
        json_t *b = json_object_get(v, names[i]);
        char path[64];
        snprintf(path, sizeof path, "stream_options.%s", names[i]);
        if (b && !json_is_null(b) && !json_is_boolean(b)) return BAD(path, "must be true or false");
    }
    return true;
}

bool mxd_check_response_format(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    const char *type = json_string_value(json_object_get(v, "type"));
    if (!type) return BAD("response_format.type", "must be text, json_object or json_schema");
    if (strcmp(type, "text") == 0) return true;
    if (strcmp(type, "json_object") == 0 || strcmp(type, "json_schema") == 0)
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, "response_format.type",
                             "constrained output is not built in: only text");
    return BAD("response_format.type", "must be text, json_object or json_schema");
}

static bool check_function_name(const char *s) {
    static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    size_t n = s ? strlen(s) : 0;
    return n >= 1 && n <= 64 && strspn(s, ok) == n;
}

static bool check_tool(json_t *tool, size_t at, mxd_fault *f) {
    char path[64];
    const char *type = json_string_value(json_object_get(tool, "type"));
    snprintf(path, sizeof path, "tools[%zu].type", at);
    if (!type) return BAD(path, "must be function");
    if (strcmp(type, "function") != 0)
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, path, "only tools of type function");
    json_t *function = json_object_get(tool, "function");
    snprintf(path, sizeof path, "tools[%zu].function", at);
    if (!json_is_object(function)) return BAD(path, "is required");
    snprintf(path, sizeof path, "tools[%zu].function.name", at);
    if (!check_function_name(json_string_value(json_object_get(function, "name"))))
        return BAD(path, "must have 1 to 64 of the characters a-z A-Z 0-9 _ -");
    json_t *text = json_object_get(function, "description");
    snprintf(path, sizeof path, "tools[%zu].function.description", at);
    if (text && !json_is_null(text) && !json_is_string(text)) return BAD(path, "must be a string");
    json_t *schema = json_object_get(function, "parameters");
    snprintf(path, sizeof path, "tools[%zu].function.parameters", at);
    if (schema && !json_is_null(schema) && !json_is_object(schema))
        return BAD(path, "must be an object");
    json_t *strict = json_object_get(function, "strict");
    snprintf(path, sizeof path, "tools[%zu].function.strict", at);
    if (strict && !json_is_null(strict) && !json_is_boolean(strict))
        return BAD(path, "must be true or false");
    if (json_is_true(strict))
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, path,
                             "arguments cannot be constrained by their schema: leave strict out");
    return true;
}

bool mxd_check_tools(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    if (json_array_size(v) > MXD_MAX_TOOLS) return BAD("tools", "at most %d tools", MXD_MAX_TOOLS);
    size_t i;
    json_t *tool;
    json_array_foreach(v, i, tool) if (!check_tool(tool, i, f)) return false;
    return true;
}

bool mxd_check_tool_choice(const mxd_params *p, json_t *v, mxd_fault *f) {
    (void)p;
    const char *s = json_string_value(v);
    if (s && (strcmp(s, "auto") == 0 || strcmp(s, "none") == 0)) return true;
    if (json_is_object(v) || (s && strcmp(s, "required") == 0))
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, "tool_choice",
                             "a call cannot be forced: tool_choice must be auto or none");
    return BAD("tool_choice", "must be none, auto, required or an object");
}

static bool check_completion(const mxd_params *p, mxd_fault *f) {
    int64_t n = mxd_param_int(p, MXD_P_N, 1), best = mxd_param_int(p, MXD_P_BEST_OF, n);
    if (best < n) return BAD("best_of", "'best_of' must not be less than n");
    if (best > n)
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, "best_of",
                             "choosing the best is not built in");
    if (mxd_param_bool(p, MXD_P_ECHO, false) && p->v[MXD_P_LOGPROBS_TEXT].set)
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, "echo",
                             "prompts are not scored: no echo with logprobs");
    json_t *prompt = p->v[MXD_P_PROMPT].j;
    bool many = json_is_array(prompt) && !json_is_integer(json_array_get(prompt, 0));
    if (many && (int64_t)json_array_size(prompt) * n > MAX_PROMPTS)
        return BAD("n", "prompts times n must be at most %d", MAX_PROMPTS);
    return true;
}

static bool check_chat(const mxd_params *p, mxd_fault *f) {
    bool goes_on = mxd_param_bool(p, MXD_P_CONTINUE_FINAL_MESSAGE, false);
    if (goes_on && mxd_param_bool(p, MXD_P_ADD_GENERATION_PROMPT, false))
        return BAD("continue_final_message", "not together with add_generation_prompt");
    json_t *all = p->v[MXD_P_MESSAGES].j, *last = json_array_get(all, json_array_size(all) - 1);
    const char *role = json_string_value(json_object_get(last, "role"));
    if (goes_on && (!role || strcmp(role, "assistant") != 0))
        return BAD("continue_final_message", "the last message must be the assistant's");
    if (p->v[MXD_P_TOP_LOGPROBS].set && !mxd_param_bool(p, MXD_P_LOGPROBS, false))
        return BAD("top_logprobs", "'top_logprobs' needs logprobs: true");
    return true;
}

bool mxd_check_together(const mxd_params *p, mxd_fault *f) {
    if (p->v[MXD_P_STREAM_OPTIONS].set && !mxd_param_bool(p, MXD_P_STREAM, false))
        return BAD("stream_options", "'stream_options' needs stream: true");
    if (p->where & MXD_AT_COMPLETION) return check_completion(p, f);
    if (p->where & MXD_AT_PROMPT) return check_chat(p, f);
    return true;
}
