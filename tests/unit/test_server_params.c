#include "test.h"

#include <math.h>
#include "formats/json.h"
#include "server/http.h"

enum { N_VOCAB = 100 };

static const char *const minimal[] = {
    [MXD_AT_CHAT] = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
    [MXD_AT_COMPLETION] = "{\"model\":\"m\",\"prompt\":\"x\"}",
    [MXD_AT_TOKENIZE] = "{\"content\":\"x\"}",
    [MXD_AT_DETOKENIZE] = "{\"tokens\":[1]}",
    [MXD_AT_TEMPLATE] = "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
};

static json_t *parse(const char *text) {
    json_t *v = NULL;
    mxd_err err = {0};
    CHECK_OK(mxd_json_parse(&v, text, strlen(text), &err), &err);
    return v;
}

/* Whether the minimal request of an endpoint passes with one field set to `v` (taken). */
static bool passes(unsigned where, const char *name, json_t *v, mxd_fault *f) {
    mxd_params *p = MXD_NEW(&mxd_alloc_libc, 1, mxd_params);
    json_t *body = parse(minimal[where]);
    p->where = where;
    p->n_vocab = N_VOCAB;
    p->max_choices = 8;
    if (name) json_object_set_new(body, name, v);
    bool stream = name && strcmp(name, "stream_options") == 0;
    if (stream) json_object_set_new(body, "stream", json_true());
    if (name && strcmp(name, "top_logprobs") == 0)
        json_object_set_new(body, "logprobs", json_true());
    *f = (mxd_fault){0};
    bool ok = mxd_params_parse(p, body, f);
    if (!ok) CHECK_EQ(mxd_fault_status(f), 400);
    if (!ok) CHECK(f->msg[0] != '\0');
    json_decref(body);
    mxd_free(&mxd_alloc_libc, p);
    return ok;
}

static json_t *nested(int depth) {
    json_t *v = json_integer(1);
    for (int i = 0; i < depth; i++) v = json_pack("[o]", v);
    return v;
}

static void walk_numbers(unsigned where, const mxd_param *row) {
    mxd_fault f;
    double lo = row->min, hi = row->max;
    bool whole = row->type == MXD_PT_INT, cross = strcmp(row->name, "best_of") == 0;
    if (strcmp(row->name, "n") == 0) hi = 8;
#define AT(x) (whole ? json_integer((json_int_t)(x)) : json_real(x))
    if (!cross) CHECK(passes(where, row->name, AT(lo <= -9e18 ? -9e18 : lo), &f));
    if (!cross) CHECK(passes(where, row->name, AT(hi >= 9e18 ? 9e18 : hi), &f));
    if (lo > -9e18) {
        CHECK(!passes(where, row->name, AT(lo - 1), &f));
        CHECK_STR(f.param, row->name);
    }
    if (hi < 9e18) {
        CHECK(!passes(where, row->name, AT(hi + 1), &f));
        CHECK_STR(f.param, row->name);
    }
    if (whole) CHECK(!passes(where, row->name, json_real(1.5), &f));
    CHECK(!passes(where, row->name, json_real(1e308), &f));
}

/* Each field x {min-1, min, max, max+1, wrong type, null, huge, nested}. */
static void walk_field(unsigned where, const mxd_param *row) {
    mxd_fault f;
    bool ok = passes(where, row->name, json_null(), &f);
    CHECK_EQ(ok, !row->required);
    if (!ok) CHECK_STR(f.param, row->name);
    json_t *wrong[] = {json_true(),
                       json_integer(-7),
                       json_string(""),
                       json_string("zz"),
                       json_real(0.5),
                       json_array(),
                       json_object(),
                       nested(60),
                       parse("{\"a\":{\"b\":[{}]}}"),
                       parse("[[[]]]"),
                       parse("[null]"),
                       parse("[{\"type\":1}]"),
                       json_integer(INT64_MAX),
                       json_integer(INT64_MIN)};
    for (size_t i = 0; i < MXD_COUNT(wrong); i++) {
        json_type t = json_typeof(wrong[i]);
        bool fits = (row->type == MXD_PT_BOOL && (t == JSON_TRUE || t == JSON_FALSE)) ||
                    (row->type == MXD_PT_INT && t == JSON_INTEGER) ||
                    (row->type == MXD_PT_NUM && (t == JSON_INTEGER || t == JSON_REAL)) ||
                    ((row->type == MXD_PT_STR || row->type == MXD_PT_ENUM) && t == JSON_STRING) ||
                    (row->type == MXD_PT_OBJ && t == JSON_OBJECT) ||
                    (row->type == MXD_PT_ARR && t == JSON_ARRAY) || row->type == MXD_PT_ANY;
        bool passed = passes(where, row->name, wrong[i], &f);
        if (!fits && passed) fail_msg("%s took a value of type %d", row->name, (int)t);
        if (!passed && !strstr(f.param, row->name)) fail_msg("%s blamed %s", row->name, f.param);
    }
    if (row->level != MXD_PL_REFUSE && (row->type == MXD_PT_INT || row->type == MXD_PT_NUM))
        walk_numbers(where, row);
}

TEST(params_every_field_of_every_endpoint) {
    for (unsigned where = 1; where <= MXD_AT_TEMPLATE; where *= 2) {
        mxd_fault f;
        CHECK(passes(where, NULL, NULL, &f));
        for (int i = 0; i < MXD_P_COUNT; i++) {
            const mxd_param *row = mxd_param_at((mxd_param_id)i);
            CHECK(row->name && row->help);
            if (row->where & where) walk_field(where, row);
        }
    }
}

TEST(params_refused_fields_pass_only_when_neutral) {
    static const struct {
        const char *name, *value;
        bool ok;
    } rows[] = {{"modalities", "[\"text\"]", true},
                {"modalities", "[\"text\",\"audio\"]", false},
                {"suffix", "\"\"", true},
                {"suffix", "\"x\"", false},
                {"functions", "[]", true},
                {"functions", "[{}]", false},
                {"grammar", "\"root ::= x\"", false},
                {"chat_template", "\"x\"", false}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_fault f;
        unsigned where = strcmp(rows[i].name, "suffix") == 0 ? MXD_AT_COMPLETION : MXD_AT_CHAT;
        CHECK_EQ(passes(where, rows[i].name, parse(rows[i].value), &f), rows[i].ok);
        if (!rows[i].ok) CHECK_EQ(f.kind, MXD_FAULT_UNSUPPORTED);
        if (!rows[i].ok) CHECK_STR(f.param, rows[i].name);
    }
}

static const struct {
    unsigned where;
    const char *body, *param;
    mxd_fault_kind kind; /* COUNT: passes */
} bodies[] = {
#define CHAT(rest) \
    MXD_AT_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]," rest "}"
#define MSG(rest) \
    MXD_AT_CHAT, "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}," rest "]}"
#define TEXT(rest) MXD_AT_COMPLETION, "{\"model\":\"m\"," rest "}"
    {MSG("{\"role\":\"robot\",\"content\":\"x\"}"), "messages[1].role", MXD_FAULT_INVALID_VALUE},
    {MSG("7"), "messages[1]", MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"user\"}"), "messages[1].content", MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"user\",\"content\":7}"), "messages[1].content", MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}"), "messages[1].content[0].text",
     MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{}}]}"),
     "messages[1].content[0].type", MXD_FAULT_UNSUPPORTED},
    {MSG("{\"role\":\"tool\",\"content\":\"x\"}"), "messages[1].tool_call_id",
     MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"assistant\",\"content\":null}"), "messages[1].content",
     MXD_FAULT_INVALID_VALUE},
    {MSG("{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"a\",\"type\":"
         "\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}"),
     "", MXD_FAULT_COUNT},
    {MSG("{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}"),
     "messages[1].tool_calls[0].function.name", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"stop\":\"\""), "stop", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"stop\":[\"a\",\"\"]"), "stop[1]", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]"), "", MXD_FAULT_COUNT},
    {CHAT("\"logit_bias\":{\"99\":100}"), "", MXD_FAULT_COUNT},
    {CHAT("\"logit_bias\":{\"100\":1}"), "logit_bias.100", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"logit_bias\":{\"-1\":1}"), "logit_bias.-1", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"logit_bias\":{\"99999999999999999999\":1}"), "logit_bias.99999999999999999999",
     MXD_FAULT_INVALID_VALUE},
    {CHAT("\"logit_bias\":{\"5\":100.5}"), "logit_bias.5", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"n\":9"), "n", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"top_logprobs\":2"), "top_logprobs", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"stream_options\":{}"), "stream_options", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"stream\":true,\"stream_options\":{\"include_usage\":1}"),
     "stream_options.include_usage", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"response_format\":{\"type\":\"json_object\"}"), "response_format.type",
     MXD_FAULT_UNSUPPORTED},
    {CHAT("\"response_format\":{\"type\":\"text\"}"), "", MXD_FAULT_COUNT},
    {CHAT("\"tools\":[]"), "", MXD_FAULT_COUNT},
    {CHAT("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]"),
     "tools[0].function.name", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"tools\":[{\"type\":\"custom\"}]"), "tools[0].type", MXD_FAULT_UNSUPPORTED},
    {CHAT("\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"strict\":true}}]"),
     "tools[0].function.strict", MXD_FAULT_UNSUPPORTED},
    {CHAT("\"tool_choice\":\"required\""), "tool_choice", MXD_FAULT_UNSUPPORTED},
    {CHAT("\"tool_choice\":\"sometimes\""), "tool_choice", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"add_generation_prompt\":true,\"continue_final_message\":true"),
     "continue_final_message", MXD_FAULT_INVALID_VALUE},
    {CHAT("\"continue_final_message\":true"), "continue_final_message", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":[]"), "prompt", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":[1,99]"), "", MXD_FAULT_COUNT},
    {TEXT("\"prompt\":[1,100]"), "prompt[1]", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":[[1],[100]]"), "prompt[1][0]", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":[[1],[]]"), "prompt[1]", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":[\"a\",1]"), "prompt[1]", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":\"a\",\"best_of\":0"), "best_of", MXD_FAULT_INVALID_VALUE},
    {TEXT("\"prompt\":\"a\",\"best_of\":2"), "best_of", MXD_FAULT_UNSUPPORTED},
    {TEXT("\"prompt\":\"a\",\"best_of\":2,\"n\":2"), "", MXD_FAULT_COUNT},
    {TEXT("\"prompt\":\"a\",\"echo\":true,\"logprobs\":1"), "echo", MXD_FAULT_UNSUPPORTED},
    {TEXT("\"prompt\":\"a\",\"stop_token_ids\":[100]"), "stop_token_ids[0]",
     MXD_FAULT_INVALID_VALUE},
};

TEST(params_name_the_path_of_what_is_wrong) {
    for (size_t i = 0; i < MXD_COUNT(bodies); i++) {
        mxd_params *p = MXD_NEW(&mxd_alloc_libc, 1, mxd_params);
        json_t *body = parse(bodies[i].body);
        mxd_fault f = {.kind = MXD_FAULT_COUNT};
        p->where = bodies[i].where;
        p->n_vocab = N_VOCAB;
        p->max_choices = 8;
        bool ok = mxd_params_parse(p, body, &f);
        if (ok != (bodies[i].kind == MXD_FAULT_COUNT)) fail_msg("%s", bodies[i].body);
        CHECK_EQ(f.kind, bodies[i].kind);
        CHECK_STR(f.param, bodies[i].param);
        json_decref(body);
        mxd_free(&mxd_alloc_libc, p);
    }
}

static bool lists_pass(const char *field, const char *item, int n) {
    mxd_fault f;
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, parse(item));
    return passes(MXD_AT_CHAT, field, list, &f);
}

TEST(params_lists_have_limits) {
    static const struct {
        const char *field, *item;
        int most;
    } rows[] = {
        {"stop", "\"a\"", MXD_MAX_STOP_STRINGS},
        {"stop_token_ids", "1", MXD_MAX_STOP_STRINGS},
        {"tools", "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}", MXD_MAX_TOOLS},
        {"messages", "{\"role\":\"user\",\"content\":\"x\"}", MXD_MAX_MESSAGES},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        CHECK(lists_pass(rows[i].field, rows[i].item, rows[i].most - 1));
        CHECK(lists_pass(rows[i].field, rows[i].item, rows[i].most));
        CHECK(!lists_pass(rows[i].field, rows[i].item, rows[i].most + 1));
    }
}

TEST(params_unknown_fields_are_named_and_harmless) {
    mxd_params *p = MXD_NEW(&mxd_alloc_libc, 1, mxd_params);
    json_t *body =
        parse("{\"model\":\"m\",\"prompt\":\"x\",\"foo\":1,\"b\\r\\nad\":[],\"messages\":1}");
    mxd_fault f;
    p->where = MXD_AT_COMPLETION;
    p->n_vocab = N_VOCAB;
    p->max_choices = 8;
    CHECK(mxd_params_parse(p, body, &f));
    CHECK_STR(p->ignored, "foo,b??ad,messages");
    json_decref(body);
    mxd_free(&mxd_alloc_libc, p);
}

TEST(routes_table) {
    int n;
    const mxd_route *all = mxd_routes(&n);
    char allow[64];
    const char *tail = NULL;
    CHECK(n < MXD_METRIC_ROUTES);
    for (int i = 0; i < n; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s", all[i].path);
        char *id = strstr(path, "{id}");
        if (id) memcpy(id, "a/bc", 4);
        CHECK(mxd_route_find(all[i].method, path, &tail, allow) == &all[i]);
        if (id) CHECK_STR(tail, "a/bc");
        CHECK(!mxd_route_find("PATCH", path, &tail, allow));
        CHECK(strstr(allow, all[i].method) != NULL);
        bool open = strstr(all[i].path, "health") || strstr(all[i].path, "livez") ||
                    strstr(all[i].path, "readyz") || strcmp(all[i].path, "/") == 0;
        CHECK_EQ(all[i].needs_key, !open);
    }
    CHECK(!mxd_route_find("GET", "/v1/models/", &tail, allow));
    CHECK_STR(allow, "");
}

TEST(fault_bodies_have_all_four_fields) {
    for (int k = 0; k < MXD_FAULT_COUNT; k++) {
        mxd_fault f;
        mxd_buf b;
        json_t *v = NULL;
        mxd_fault_set(&f, (mxd_fault_kind)k, k & 1 ? "a[0]" : NULL, "bad \xFF \xC3 text \"q\"");
        mxd_buf_init(&b, &mxd_alloc_libc, 4096);
        mxd_fault_write(&b, &f);
        mxd_err err = {0};
        CHECK_OK(mxd_json_parse(&v, mxd_buf_str(&b), b.len, &err), &err);
        json_t *e = json_object_get(v, "error");
        CHECK_EQ(json_object_size(e), 4);
        CHECK_STR(json_string_value(json_object_get(e, "message")), "bad ? ? text \"q\"");
        CHECK(json_is_string(json_object_get(e, "code")));
        CHECK(json_is_null(json_object_get(e, "param")) == !(k & 1));
        json_decref(v);
        mxd_buf_deinit(&b);
    }
}

TEST(fault_hides_what_failed_inside) {
    mxd_fault f;
    mxd_err err = {0};
    (void)mxd_fail(&err, MXD_E_IO, "cannot read '/secret/path'");
    mxd_fault_from(&f, MXD_E_IO, &err, "req_1");
    CHECK_EQ(mxd_fault_status(&f), 500);
    CHECK(!strstr(f.msg, "secret") && strstr(f.msg, "req_1"));
    mxd_fault_from(&f, MXD_E_BUSY, &err, "req_1");
    CHECK_EQ(mxd_fault_status(&f), 429);
    CHECK(mxd_fault_retry_s(&f) > 0);
    CHECK_STR(mxd_fault_should_retry(&f), "true");
}
