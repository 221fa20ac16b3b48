#include "server/params.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "base/limits.h"
#include "formats/json.h"
#include "server/checks.h"

#define INT_MOST   2147483647.0
#define INT64_MOST 9223372036854775807.0

/* clang-format off */
#define BOOL(n, at, help) \
    {n, at, MXD_PT_BOOL, 0, 0, NULL, MXD_PL_USE, false, NULL, help}
#define INT(n, at, lo, hi, fn, help) \
    {n, at, MXD_PT_INT, lo, hi, NULL, MXD_PL_USE, false, fn, help}
#define NUM(n, at, lo, hi, help) \
    {n, at, MXD_PT_NUM, lo, hi, NULL, MXD_PL_USE, false, NULL, help}
#define ENUM(n, at, values, help) \
    {n, at, MXD_PT_ENUM, 0, 0, values, MXD_PL_USE, false, NULL, help}
#define MORE(n, at, type, fn, help)       {n, at, type, 0, 0, NULL, MXD_PL_USE, false, fn, help}
#define MUST(n, at, type, fn, help)       {n, at, type, 0, 0, NULL, MXD_PL_USE, true, fn, help}
#define NONE(n, at, type) \
    {n, at, type, 0, 0, NULL, MXD_PL_NO_EFFECT, false, NULL, "accepted, no effect"}
#define DENY(n, at, neutral, help) \
    {n, at, MXD_PT_ANY, 0, 0, neutral, MXD_PL_REFUSE, false, NULL, help}

static const mxd_param table[MXD_P_COUNT] = {
    [MXD_P_MODEL] = MUST("model", MXD_AT_GENERATE, MXD_PT_STR, NULL,
        "alias, repository id or path"),
    [MXD_P_MESSAGES] = MUST("messages", MXD_AT_PROMPT, MXD_PT_ARR, mxd_check_messages,
        "the conversation"),
    [MXD_P_PROMPT] = MUST("prompt", MXD_AT_COMPLETION, MXD_PT_ANY, mxd_check_prompt,
        "text, token ids, or a list of either"),
    [MXD_P_MAX_COMPLETION_TOKENS] = INT("max_completion_tokens", MXD_AT_CHAT, 1, INT_MOST, NULL,
        "most tokens of an answer; wins over max_tokens"),
    [MXD_P_MAX_TOKENS] = INT("max_tokens", MXD_AT_CHAT, 1, INT_MOST, NULL,
        "most tokens of an answer; absent: the rest of the context"),
    [MXD_P_MAX_TOKENS_TEXT] = INT("max_tokens", MXD_AT_COMPLETION, 0, INT_MOST, NULL,
        "most tokens of an answer; 16"),
    [MXD_P_TEMPERATURE] = NUM("temperature", MXD_AT_GENERATE, 0, 2, "0 is greedy"),
    [MXD_P_TOP_P] = NUM("top_p", MXD_AT_GENERATE, 0, 1, "1 is off"),
    [MXD_P_TOP_K] = INT("top_k", MXD_AT_GENERATE, -1, INT_MOST, NULL, "0 or -1 is off"),
    [MXD_P_MIN_P] = NUM("min_p", MXD_AT_GENERATE, 0, 1, "0 is off"),
    [MXD_P_SEED] = INT("seed", MXD_AT_GENERATE, -INT64_MOST, INT64_MOST, NULL,
        "same seed, same text"),
    [MXD_P_STOP] = MORE("stop", MXD_AT_GENERATE, MXD_PT_ANY, mxd_check_stop,
        "one or more strings that end the answer"),
    [MXD_P_N] = INT("n", MXD_AT_GENERATE, 1, 128, mxd_check_n, "how many answers"),
    [MXD_P_PRESENCE_PENALTY] = NUM("presence_penalty", MXD_AT_GENERATE, -2, 2,
        "over generated tokens"),
    [MXD_P_FREQUENCY_PENALTY] = NUM("frequency_penalty", MXD_AT_GENERATE, -2, 2,
        "over generated tokens"),
    [MXD_P_REPETITION_PENALTY] = NUM("repetition_penalty", MXD_AT_GENERATE, 1e-6, 1e6, "1 is off"),
    [MXD_P_REPEAT_PENALTY] = NUM("repeat_penalty", MXD_AT_GENERATE, 1e-6, 1e6,
        "another spelling of repetition_penalty"),
    [MXD_P_LOGIT_BIAS] = MORE("logit_bias", MXD_AT_GENERATE, MXD_PT_OBJ, mxd_check_logit_bias,
        "token id to -100 .. 100"),
    [MXD_P_LOGPROBS] = BOOL("logprobs", MXD_AT_CHAT, "report log probabilities"),
    [MXD_P_LOGPROBS_TEXT] = INT("logprobs", MXD_AT_COMPLETION, 0, 5, NULL,
        "report log probabilities and this many alternatives"),
    [MXD_P_TOP_LOGPROBS] = INT("top_logprobs", MXD_AT_CHAT, 0, MXD_MAX_TOP_LOGPROBS, NULL,
        "alternatives per token; needs logprobs"),
    [MXD_P_STREAM] = BOOL("stream", MXD_AT_GENERATE, "answer as server-sent events"),
    [MXD_P_STREAM_OPTIONS] =
        MORE("stream_options", MXD_AT_GENERATE, MXD_PT_OBJ, mxd_check_stream_options,
        "include_usage; needs stream"),
    [MXD_P_RESPONSE_FORMAT] =
        MORE("response_format", MXD_AT_GENERATE, MXD_PT_OBJ, mxd_check_response_format,
        "type text"),
    [MXD_P_GRAMMAR] = DENY("grammar", MXD_AT_GENERATE, "\"\"",
        "constrained output is not built in"),
    [MXD_P_STRUCTURED_OUTPUTS] = DENY("structured_outputs", MXD_AT_GENERATE, "{}",
        "constrained output is not built in"),
    [MXD_P_GUIDED_JSON] = DENY("guided_json", MXD_AT_GENERATE, NULL,
        "constrained output is not built in"),
    [MXD_P_GUIDED_REGEX] = DENY("guided_regex", MXD_AT_GENERATE, NULL,
        "constrained output is not built in"),
    [MXD_P_GUIDED_CHOICE] = DENY("guided_choice", MXD_AT_GENERATE, NULL,
        "constrained output is not built in"),
    [MXD_P_GUIDED_GRAMMAR] = DENY("guided_grammar", MXD_AT_GENERATE, NULL,
        "constrained output is not built in"),
    [MXD_P_TOOLS] = MORE("tools", MXD_AT_PROMPT, MXD_PT_ARR, mxd_check_tools,
        "functions that the model may call"),
    [MXD_P_TOOL_CHOICE] = MORE("tool_choice", MXD_AT_PROMPT, MXD_PT_ANY, mxd_check_tool_choice,
        "auto or none"),
    [MXD_P_PARALLEL_TOOL_CALLS] = BOOL("parallel_tool_calls", MXD_AT_CHAT,
        "false: at most one call"),
    [MXD_P_FUNCTIONS] = DENY("functions", MXD_AT_CHAT, "[]", "deprecated: use tools"),
    [MXD_P_FUNCTION_CALL] = DENY("function_call", MXD_AT_CHAT, "\"none\"",
        "deprecated: use tool_choice"),
    [MXD_P_REASONING_EFFORT] =
        ENUM("reasoning_effort", MXD_AT_PROMPT, "none|minimal|low|medium|high|xhigh|max",
        "for the template; none also sets enable_thinking=false"),
    [MXD_P_CHAT_TEMPLATE_KWARGS] = MORE("chat_template_kwargs", MXD_AT_PROMPT, MXD_PT_OBJ, NULL,
        "variables for the template"),
    [MXD_P_ENABLE_THINKING] = BOOL("enable_thinking", MXD_AT_PROMPT, "for the template"),
    [MXD_P_REASONING_BUDGET] = DENY("reasoning_budget", MXD_AT_CHAT, "-1",
        "forced ends of reasoning are not built in"),
    [MXD_P_CHAT_TEMPLATE] = DENY("chat_template", MXD_AT_PROMPT, NULL,
        "a request may not replace the template"),
    [MXD_P_ADD_GENERATION_PROMPT] = BOOL("add_generation_prompt", MXD_AT_PROMPT,
        "begin the assistant's turn; true"),
    [MXD_P_CONTINUE_FINAL_MESSAGE] = BOOL("continue_final_message", MXD_AT_PROMPT,
        "go on in the last assistant turn"),
    [MXD_P_MIN_TOKENS] = INT("min_tokens", MXD_AT_GENERATE, 0, INT_MOST, NULL, "no end before"),
    [MXD_P_IGNORE_EOS] = BOOL("ignore_eos", MXD_AT_GENERATE, "go on after the model's end token"),
    [MXD_P_STOP_TOKEN_IDS] = MORE("stop_token_ids", MXD_AT_GENERATE, MXD_PT_ARR, mxd_check_stop_ids,
        "token ids that end the answer"),
    [MXD_P_SKIP_SPECIAL_TOKENS] = BOOL("skip_special_tokens", MXD_AT_GENERATE,
        "false: special tokens show in the text"),
    [MXD_P_BAD_WORDS] = DENY("bad_words", MXD_AT_GENERATE, "[]", "use logit_bias"),
    [MXD_P_VERBOSITY] = ENUM("verbosity", MXD_AT_PROMPT, "low|medium|high", "for the template"),
    [MXD_P_TIMINGS] = BOOL("timings", MXD_AT_GENERATE, "add a timings object to the reply"),
    [MXD_P_USER] = NONE("user", MXD_AT_GENERATE, MXD_PT_STR),
    [MXD_P_METADATA] = NONE("metadata", MXD_AT_GENERATE, MXD_PT_OBJ),
    [MXD_P_STORE] = NONE("store", MXD_AT_GENERATE, MXD_PT_BOOL),
    [MXD_P_SERVICE_TIER] = NONE("service_tier", MXD_AT_GENERATE, MXD_PT_STR),
    [MXD_P_SAFETY_IDENTIFIER] = NONE("safety_identifier", MXD_AT_GENERATE, MXD_PT_STR),
    [MXD_P_PROMPT_CACHE_KEY] = NONE("prompt_cache_key", MXD_AT_GENERATE, MXD_PT_STR),
    [MXD_P_PREDICTION] = NONE("prediction", MXD_AT_GENERATE, MXD_PT_OBJ),
    [MXD_P_AUDIO] = DENY("audio", MXD_AT_CHAT, NULL, "text only"),
    [MXD_P_MODALITIES] = DENY("modalities", MXD_AT_CHAT, "[\"text\"]", "text only"),
    [MXD_P_WEB_SEARCH_OPTIONS] = DENY("web_search_options", MXD_AT_CHAT, NULL,
        "the server fetches nothing"),
    [MXD_P_ECHO] = BOOL("echo", MXD_AT_COMPLETION,
        "the prompt's text in front of the answer; not with logprobs"),
    [MXD_P_SUFFIX] = DENY("suffix", MXD_AT_COMPLETION, "\"\"",
        "fill-in-the-middle is not built in"),
    [MXD_P_BEST_OF] = INT("best_of", MXD_AT_COMPLETION, 0, 20, NULL, "only with the value of n"),
    [MXD_P_CONTENT] = MUST("content", MXD_AT_TOKENIZE, MXD_PT_STR, NULL, "the text"),
    [MXD_P_ADD_SPECIAL] = BOOL("add_special", MXD_AT_TOKENIZE,
        "put BOS and EOS where the model wants them; false"),
    [MXD_P_PARSE_SPECIAL] = BOOL("parse_special", MXD_AT_TOKENIZE,
        "special tokens in the text count as such; true"),
    [MXD_P_WITH_PIECES] = BOOL("with_pieces", MXD_AT_TOKENIZE, "objects of id and piece"),
    [MXD_P_TOKENS] = MUST("tokens", MXD_AT_DETOKENIZE, MXD_PT_ARR, mxd_check_tokens, "token ids"),
};
/* clang-format on */

const mxd_param *mxd_param_at(mxd_param_id id) { return &table[id]; }

static bool wrong_type(const mxd_param *row, const char *want, mxd_fault *f) {
    return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, row->name, "'%s' must be %s", row->name, want);
}

static bool in_bounds(const mxd_param *row, double x, mxd_fault *f) {
    if (x >= row->min && x <= row->max) return true;
    return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, row->name,
                         "'%s' must be between %.12g and %.12g, not %.12g", row->name, row->min,
                         row->max, x);
}

/* s is one of the words in "a|b|c". */
static bool in_list(const char *list, const char *s) {
    size_t n = strlen(s);
    for (const char *at = list; n && *at;) {
        size_t len = strcspn(at, "|");
        if (len == n && memcmp(at, s, n) == 0) return true;
        at += len + (at[len] == '|');
    }
    return false;
}

/* Type and bounds; fills *out. */
static bool take(const mxd_param *row, json_t *v, mxd_value *out, mxd_fault *f) {
    out->j = v;
    switch (row->type) {
    case MXD_PT_BOOL:
        if (!json_is_boolean(v)) return wrong_type(row, "true or false", f);
        out->b = json_is_true(v);
        return true;
    case MXD_PT_INT:
        if (!json_is_integer(v)) return wrong_type(row, "an integer", f);
        out->i = json_integer_value(v);
        return in_bounds(row, (double)out->i, f);
    case MXD_PT_NUM:
        if (!json_is_number(v)) return wrong_type(row, "a number", f);
        out->d = json_number_value(v);
        return in_bounds(row, out->d, f);
    case MXD_PT_STR:
        if (!json_is_string(v)) return wrong_type(row, "a string", f);
        out->s = json_string_value(v);
        return true;
    case MXD_PT_ENUM:
        out->s = json_string_value(v);
        if (!out->s || !in_list(row->values, out->s))
            return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, row->name, "'%s' must be one of %s",
                                 row->name, row->values);
        return true;
    case MXD_PT_OBJ:
        return json_is_object(v) || wrong_type(row, "an object", f);
    case MXD_PT_ARR:
        return json_is_array(v) || wrong_type(row, "an array", f);
    default:
        return true;
    }
}

/* A refused field passes when it says what we do anyway. */
static bool is_neutral(const mxd_param *row, const json_t *v) {
    if (!row->values) return false;
    char text[64];
    size_t n = json_dumpb(v, text, sizeof text, JSON_COMPACT | JSON_ENCODE_ANY);
    return n == strlen(row->values) && n <= sizeof text && memcmp(text, row->values, n) == 0;
}

static bool take_field(mxd_params *p, mxd_param_id id, json_t *v, mxd_fault *f) {
    const mxd_param *row = &table[id];
    if (row->level == MXD_PL_REFUSE) {
        if (is_neutral(row, v)) return true;
        return mxd_fault_set(f, MXD_FAULT_UNSUPPORTED, row->name, "'%s' is not supported: %s",
                             row->name, row->help);
    }
    mxd_value value = {.set = true};
    if (!take(row, v, &value, f)) return false;
    if (row->check && !row->check(p, v, f)) return false;
    p->v[id] = value;
    return true;
}

static mxd_param_id find(unsigned where, const char *name) {
    for (int i = 0; i < MXD_P_COUNT; i++)
        if ((table[i].where & where) && strcmp(table[i].name, name) == 0) return (mxd_param_id)i;
    return MXD_P_COUNT;
}

/* Names go into a header: anything but plain characters is shown as '?'. */
static void note_ignored(mxd_params *p, const char *name) {
    size_t at = strlen(p->ignored), n = strlen(name);
    if (at + n + 3 > sizeof p->ignored || n > 64) return;
    if (at) p->ignored[at++] = ',';
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '_' || c == '-' || c == '.';
        p->ignored[at++] = plain ? c : '?';
    }
    p->ignored[at] = '\0';
}

bool mxd_params_parse(mxd_params *p, json_t *body, mxd_fault *f) {
    if (!json_is_object(body))
        return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, NULL, "the body must be a JSON object");
    const char *name;
    json_t *v;
    json_object_foreach(body, name, v) {
        mxd_param_id id = find(p->where, name);
        if (id == MXD_P_COUNT)
            note_ignored(p, name);
        else if (!json_is_null(v) && !take_field(p, id, v, f))
            return false;
    }
    for (int i = 0; i < MXD_P_COUNT; i++)
        if (table[i].required && (table[i].where & p->where) && !p->v[i].set)
            return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, table[i].name, "'%s' is required",
                                 table[i].name);
    return mxd_check_together(p, f);
}
