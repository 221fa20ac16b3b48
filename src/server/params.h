/* params.h - the one table of request fields: name, type, bounds, what we do with it.
 *
 * Parsing, error texts, /openapi.json and the property tests walk this table; a new field is one
 * row here and one place that reads mxd_params.v[MXD_P_...].
 *
 * Trust: hostile. Lifetime: values borrow from the request's JSON. Threads: the table is constant;
 * an mxd_params belongs to its request.
 */
#ifndef MXD_SERVER_PARAMS_H
#define MXD_SERVER_PARAMS_H

#include <jansson.h>
#include "api/engine.h"
#include "server/fault.h"

enum { /* where a field is known */
       MXD_AT_CHAT = 1,
       MXD_AT_COMPLETION = 2,
       MXD_AT_TOKENIZE = 4,
       MXD_AT_DETOKENIZE = 8,
       MXD_AT_TEMPLATE = 16,
       MXD_AT_GENERATE = MXD_AT_CHAT | MXD_AT_COMPLETION,
       MXD_AT_PROMPT = MXD_AT_CHAT | MXD_AT_TEMPLATE,
       MXD_AT_ALL = 31
};

typedef enum mxd_param_type {
    MXD_PT_BOOL,
    MXD_PT_INT,
    MXD_PT_NUM,
    MXD_PT_STR,
    MXD_PT_ENUM, /* one of `values`, separated by | */
    MXD_PT_OBJ,
    MXD_PT_ARR,
    MXD_PT_ANY /* its check decides */
} mxd_param_type;

typedef enum mxd_param_level {
    MXD_PL_USE,
    MXD_PL_NO_EFFECT, /* accepted; nothing depends on it */
    MXD_PL_REFUSE     /* would change the answer and is not built: 400 unless it equals `values` */
} mxd_param_level;

/* clang-format off */
#define MXD_PARAM_MAP(X) /* id */ \
    X(MODEL) X(MESSAGES) X(PROMPT) X(MAX_COMPLETION_TOKENS) X(MAX_TOKENS) X(MAX_TOKENS_TEXT) \
    X(TEMPERATURE) X(TOP_P) X(TOP_K) X(MIN_P) X(SEED) X(STOP) X(N) X(PRESENCE_PENALTY) \
    X(FREQUENCY_PENALTY) X(REPETITION_PENALTY) X(REPEAT_PENALTY) X(LOGIT_BIAS) X(LOGPROBS) \
    X(LOGPROBS_TEXT) X(TOP_LOGPROBS) X(STREAM) X(STREAM_OPTIONS) X(RESPONSE_FORMAT) X(GRAMMAR) \
    X(STRUCTURED_OUTPUTS) X(GUIDED_JSON) X(GUIDED_REGEX) X(GUIDED_CHOICE) X(GUIDED_GRAMMAR) \
    X(TOOLS) X(TOOL_CHOICE) X(PARALLEL_TOOL_CALLS) X(FUNCTIONS) X(FUNCTION_CALL) \
    X(REASONING_EFFORT) X(CHAT_TEMPLATE_KWARGS) X(ENABLE_THINKING) X(REASONING_BUDGET) \
    X(CHAT_TEMPLATE) X(ADD_GENERATION_PROMPT) X(CONTINUE_FINAL_MESSAGE) X(MIN_TOKENS) \
    X(IGNORE_EOS) X(STOP_TOKEN_IDS) X(SKIP_SPECIAL_TOKENS) X(BAD_WORDS) X(VERBOSITY) X(TIMINGS) \
    X(USER) X(METADATA) X(STORE) X(SERVICE_TIER) X(SAFETY_IDENTIFIER) X(PROMPT_CACHE_KEY) \
    X(PREDICTION) X(AUDIO) X(MODALITIES) X(WEB_SEARCH_OPTIONS) X(ECHO) X(SUFFIX) X(BEST_OF) \
    X(CONTENT) X(ADD_SPECIAL) X(PARSE_SPECIAL) X(WITH_PIECES) X(TOKENS)
/* clang-format on */

typedef enum mxd_param_id {
#define X(id) MXD_P_##id,
    MXD_PARAM_MAP(X)
#undef X
        MXD_P_COUNT
} mxd_param_id;

typedef struct mxd_params mxd_params;

typedef struct mxd_param {
    const char *name;
    unsigned where;
    mxd_param_type type;
    double min, max; /* INT, NUM */
    const char *values;
    mxd_param_level level;
    bool required;
    bool (*check)(const mxd_params *p, json_t *v, mxd_fault *f);
    const char *help;
} mxd_param;

typedef struct mxd_value {
    bool set;
    bool b;
    int64_t i;
    double d;
    const char *s;
    json_t *j;
} mxd_value;

struct mxd_params {
    unsigned where; /* one MXD_AT_ bit */
    int n_vocab, max_choices;
    mxd_value v[MXD_P_COUNT];
    char ignored[512]; /* unknown fields, comma-separated, safe in a header */
};

const mxd_param *mxd_param_at(mxd_param_id id);

/* Checks `body` against the table, for one endpoint. p->where, n_vocab and max_choices are set by
 * the caller. False: *f tells what is wrong and where. */
bool mxd_params_parse(mxd_params *p, json_t *body, mxd_fault *f);

static inline double mxd_param_num(const mxd_params *p, mxd_param_id id, double otherwise) {
    return p->v[id].set ? p->v[id].d : otherwise;
}
static inline int64_t mxd_param_int(const mxd_params *p, mxd_param_id id, int64_t otherwise) {
    return p->v[id].set ? p->v[id].i : otherwise;
}
static inline bool mxd_param_bool(const mxd_params *p, mxd_param_id id, bool otherwise) {
    return p->v[id].set ? p->v[id].b : otherwise;
}

#endif
