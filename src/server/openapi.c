/* /openapi.json from the two tables, so that it cannot say what the code does not do. */
#include <string.h>
#include "server/handlers.h"

static const char *const type_names[] = {
    [MXD_PT_BOOL] = "boolean", [MXD_PT_INT] = "integer", [MXD_PT_NUM] = "number",
    [MXD_PT_STR] = "string",   [MXD_PT_ENUM] = "string", [MXD_PT_OBJ] = "object",
    [MXD_PT_ARR] = "array"};
static const char *const level_names[] = {"used", "no-effect", "refused"};

static json_t *enum_list(const char *values) {
    json_t *list = json_array();
    for (const char *at = values; list && *at;) {
        size_t n = strcspn(at, "|");
        json_array_append_new(list, json_stringn(at, n));
        at += n + (at[n] == '|');
    }
    json_array_append_new(list, json_null());
    return list;
}

static json_t *field(const mxd_param *row) {
    json_t *v =
        json_pack("{s:s, s:s}", "description", row->help, "x-level", level_names[row->level]);
    if (!v) return NULL;
    if (row->type != MXD_PT_ANY && row->required)
        json_object_set_new(v, "type", json_string(type_names[row->type]));
    else if (row->type != MXD_PT_ANY)
        json_object_set_new(v, "type", json_pack("[s, s]", type_names[row->type], "null"));
    if (row->type == MXD_PT_INT) {
        json_object_set_new(v, "minimum",
                            json_integer(row->min <= -9e18 ? INT64_MIN : (json_int_t)row->min));
        json_object_set_new(v, "maximum",
                            json_integer(row->max >= 9e18 ? INT64_MAX : (json_int_t)row->max));
    }
    if (row->type == MXD_PT_NUM) {
        json_object_set_new(v, "minimum", json_real(row->min));
        json_object_set_new(v, "maximum", json_real(row->max));
    }
    if (row->type == MXD_PT_ENUM) json_object_set_new(v, "enum", enum_list(row->values));
    return v;
}

static json_t *body_schema(unsigned where) {
    json_t *fields = json_object(), *must = json_array();
    for (int i = 0; i < MXD_P_COUNT; i++) {
        const mxd_param *row = mxd_param_at((mxd_param_id)i);
        if (!(row->where & where)) continue;
        json_object_set_new(fields, row->name, field(row));
        if (row->required) json_array_append_new(must, json_string(row->name));
    }
    return json_pack("{s:s, s:o, s:o}", "type", "object", "properties", fields, "required", must);
}

static void add_parameter(json_t *op, const char *name, const char *in, const char *type) {
    json_t *list = json_object_get(op, "parameters");
    if (!list) json_object_set_new(op, "parameters", list = json_array());
    json_array_append_new(list,
                          json_pack("{s:s, s:s, s:b, s:{s:s}}", "name", name, "in", in, "required",
                                    strcmp(in, "path") == 0, "schema", "type", type));
}

static json_t *operation(const mxd_route *t) {
    json_t *op = json_pack("{s:s, s:{s:{s:s}, s:{s:s, s:{s:{s:{s:s}}}}}}", "summary", t->help, //
                           "responses", "200", "description", "the answer", "default",         //
                           "description", "an error", "content", "application/json", "schema", //
                           "$ref", "#/components/schemas/Error");
    if (!op) return NULL;
    if (!t->needs_key) json_object_set_new(op, "security", json_array());
    if (strchr(t->path, '{')) add_parameter(op, "id", "path", "string");
    if (t->handle == mxd_stream_handle) {
        add_parameter(op, "Last-Event-ID", "header", "integer");
        add_parameter(op, "after", "query", "integer");
    }
    if (t->works) add_parameter(op, "X-Resumable", "header", "boolean");
    if (t->params)
        json_object_set_new(op, "requestBody",
                            json_pack("{s:b, s:{s:{s:o}}}", "required", 1, "content",
                                      "application/json", "schema", body_schema(t->params)));
    return op;
}

static json_t *error_schema(void) {
    return json_pack("{s:s, s:[s], s:{s:{s:s, s:[s,s,s,s], s:{s:{s:s}, s:{s:s}, s:{s:[s,s]}, "
                     "s:{s:[s,s]}}}}}",
                     "type", "object", "required", "error", "properties", "error", "type", "object",
                     "required", "message", "type", "param", "code", "properties", "message",
                     "type", "string", "type", "type", "string", "param", "type", "string", "null",
                     "code", "type", "string", "null");
}

void mxd_openapi_handle(mxd_req *r) {
    int n;
    const mxd_route *routes = mxd_routes(&n);
    json_t *paths = json_object();
    for (int i = 0; i < n; i++) {
        bool get = strcmp(routes[i].method, "GET") == 0;
        json_t *item = json_pack("{s:o}", get ? "get" : "post", operation(&routes[i]));
        json_object_set_new(paths, routes[i].path, item);
    }
    json_t *doc = json_pack(
        "{s:s, s:{s:s, s:s}, s:o, s:{s:{s:o}, s:{s:{s:s, s:s}}}, s:[{s:[]}]}",               //
        "openapi", "3.1.0", "info", "title", "MLX Distributed", "version", "0.1.0",          //
        "paths", paths, "components", "schemas", "Error", error_schema(), "securitySchemes", //
        "key", "type", "http", "scheme", "bearer", "security", "key");
    mxd_req_json(r, doc);
}
