/* {"name": "f", "arguments": {...}}, as Hermes, Qwen2.5 and Qwen3 write it. Some fine-tunes say
 * "parameters", and some put the arguments into a string. */
#include "base/limits.h"
#include "formats/json.h"
#include "formats/jscan.h"
#include "server/tools/tools.h"

typedef struct found {
    const char *args;
    size_t n_args;
    bool args_in_string;
} found;

/* The text of a string token without escapes. */
static bool put_decoded(const mxd_jscan *j, mxd_buf *out) {
    size_t before = out->len;
    char *to = mxd_buf_grow(out, j->len);
    if (!to) return false;
    size_t n = mxd_jscan_decode(j, to);
    out->len = before + n;
    out->ptr[out->len] = '\0';
    return true;
}

/* The value behind the current key. */
static bool take_value(mxd_jscan *j, bool is_name, bool is_args, found *f, mxd_buf *name,
                       mxd_buf *args) {
    if (mxd_jscan_next(j, NULL)) return false;
    if (is_name) return j->tok == MXD_JTOK_STRING && name->len == 0 && put_decoded(j, name);
    if (is_args && j->tok == MXD_JTOK_STRING) {
        f->args_in_string = true;
        return args->len == 0 && put_decoded(j, args);
    }
    const char *from;
    size_t n;
    if (is_args && j->tok != MXD_JTOK_OBJECT && j->tok != MXD_JTOK_NULL) return false;
    bool null = j->tok == MXD_JTOK_NULL;
    if (mxd_jscan_skip(j, &from, &n, NULL)) return false;
    if (!is_args || null) return true;
    f->args = from;
    f->n_args = n;
    return true;
}

static bool is_object(const char *s, size_t n) {
    json_t *v = NULL;
    bool ok = mxd_json_parse(&v, s, n, NULL) == MXD_OK && json_is_object(v);
    json_decref(v);
    return ok;
}

bool mxd_hermes_read(const char *s, size_t n, mxd_buf *name, mxd_buf *args) {
    mxd_jscan j;
    found f = {0};
    mxd_jscan_init(&j, s, n, MXD_JSON_MAX_NODES);
    if (mxd_jscan_next(&j, NULL) || j.tok != MXD_JTOK_OBJECT) return false;
    for (;;) {
        if (mxd_jscan_next(&j, NULL)) return false;
        if (j.tok == MXD_JTOK_OBJECT_END) break;
        bool is_name = mxd_jscan_is(&j, "name");
        bool is_args = mxd_jscan_is(&j, "arguments") || mxd_jscan_is(&j, "parameters");
        if (!take_value(&j, is_name, is_args, &f, name, args)) return false;
    }
    if (mxd_jscan_next(&j, NULL) || j.tok != MXD_JTOK_END || name->len == 0) return false;
    if (!f.args_in_string) mxd_buf_put(args, f.args ? f.args : "{}", f.args ? f.n_args : 2);
    return !args->rc && is_object(mxd_buf_str(args), args->len);
}
