#include <stdio.h>
#include <string.h>
#include "base/log.h"
#include "formats/json.h"
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

/* ---- which template a folder has ---- */

/* Reads `folder/name` into out; E_NOTFOUND when it is missing. */
static mxd_rc read_file(const char *folder, const char *name, mxd_buf *out, mxd_err *err) {
    char path[4096], chunk[8192];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return mxd_fail(err, MXD_E_TOOBIG, "the path '%.200s' is too long", folder);
    FILE *f = fopen(path, "re");
    if (!f) return mxd_fail(err, MXD_E_NOTFOUND, "no '%s'", path);
    mxd_buf_clear(out);
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0 && !out->rc;)
        mxd_buf_put(out, chunk, n);
    bool broken = ferror(f) != 0;
    fclose(f);
    if (broken) return mxd_fail(err, MXD_E_IO, "cannot read '%s'", path);
    return mxd_buf_rc(out, path, err);
}

static mxd_rc read_json(const char *folder, const char *name, json_t **out, mxd_err *err) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return mxd_fail(err, MXD_E_TOOBIG, "the path '%.200s' is too long", folder);
    return mxd_json_load(out, path, MXD_CONFIG_MAX_BYTES, err);
}

/* From a `chat_template` member: a string, or a list of {name, template}. NULL when there is none.
 */
static const json_t *pick(const json_t *v, bool has_tools) {
    const json_t *item, *usual = NULL;
    size_t i;
    if (json_is_string(v)) return v;
    json_array_foreach(v, i, item) {
        const char *name = json_string_value(json_object_get(item, "name"));
        const json_t *text = json_object_get(item, "template");
        if (!name || !json_is_string(text)) continue;
        if (has_tools && strcmp(name, "tool_use") == 0) return text;
        if (strcmp(name, "default") == 0) usual = text;
    }
    return usual;
}

/* Tries one source; *found tells whether it had a template. */
static mxd_rc from_json_file(const char *folder, const char *file, bool has_tools, mxd_buf *out,
                             mxd_err *err) {
    json_t *v = NULL;
    MXD_TRY(read_json(folder, file, &v, err));
    const json_t *text = pick(json_object_get(v, "chat_template"), has_tools);
    if (!text && json_is_string(v)) text = v;
    mxd_rc rc = MXD_OK;
    if (text) {
        mxd_buf_clear(out);
        mxd_buf_put(out, json_string_value(text), json_string_length(text));
        rc = mxd_buf_rc(out, "chat template", err);
    }
    bool found = text != NULL;
    json_decref(v);
    return rc || found ? rc : mxd_fail(err, MXD_E_NOTFOUND, "no chat_template in '%s'", file);
}

static mxd_rc find_source(const char *folder, bool has_tools, mxd_buf *out, mxd_err *err) {
    mxd_rc rc = MXD_E_NOTFOUND;
    if (has_tools) rc = read_file(folder, "additional_chat_templates/tool_use.jinja", out, err);
    if (rc == MXD_E_NOTFOUND) rc = read_file(folder, "chat_template.jinja", out, err);
    if (rc == MXD_E_NOTFOUND)
        rc = from_json_file(folder, "chat_template.json", has_tools, out, err);
    if (rc == MXD_E_NOTFOUND)
        return from_json_file(folder, "tokenizer_config.json", has_tools, out, err);
    if (rc) return rc;
    mxd_buf other;
    mxd_buf_init(&other, out->al, MXD_TEMPLATE_MAX_BYTES);
    if (from_json_file(folder, "tokenizer_config.json", has_tools, &other, NULL) == MXD_OK &&
        (other.len != out->len || memcmp(mxd_buf_str(&other), mxd_buf_str(out), out->len) != 0))
        mxd_log(MXD_LOG_WARN, "template_differs", "folder=%s ignored=tokenizer_config.json",
                folder);
    mxd_buf_deinit(&other);
    return MXD_OK;
}

mxd_rc mxd_template_load(mxd_template **out, const mxd_alloc *al, const char *folder,
                         bool has_tools, mxd_err *err) {
    mxd_buf source;
    mxd_buf_init(&source, al, MXD_TEMPLATE_MAX_BYTES);
    mxd_rc rc = find_source(folder, has_tools, &source, err);
    if (rc == MXD_E_NOTFOUND)
        rc = mxd_fail(err, rc, "'%.300s' has no chat template; use text completions", folder);
    if (!rc) rc = mxd_template_open(out, al, mxd_buf_str(&source), source.len, err);
    mxd_buf_deinit(&source);
    return rc;
}

/* ---- messages ---- */

static mxd_rc no_memory(mxd_err *err) {
    return mxd_fail(err, MXD_E_NOMEM, "no memory for the messages");
}

/* Parts {"type":"text","text":...} joined; NULL and *other when one is something else. */
static json_t *join_parts(const json_t *parts, bool *other) {
    mxd_buf b;
    size_t i;
    const json_t *p;
    mxd_buf_init(&b, &mxd_alloc_libc, SIZE_MAX / 4);
    json_array_foreach(parts, i, p) {
        const char *type = json_string_value(json_object_get(p, "type"));
        const json_t *text = json_is_string(p) ? p : json_object_get(p, "text");
        if (!json_is_string(text) || (type && strcmp(type, "text") != 0)) *other = true;
        if (json_is_string(text))
            mxd_buf_put(&b, json_string_value(text), json_string_length(text));
    }
    json_t *s = *other || b.rc ? NULL : json_stringn(mxd_buf_str(&b), b.len);
    mxd_buf_deinit(&b);
    return s;
}

static mxd_rc fix_content(json_t *message, mxd_err *err) {
    const json_t *content = json_object_get(message, "content");
    json_t *new = NULL;
    bool other = false;
    if (json_is_null(content))
        new = json_string("");
    else if (json_is_array(content))
        new = join_parts(content, &other);
    else
        return MXD_OK;
    if (other) return MXD_OK;
    return new &&json_object_set_new(message, "content", new) == 0 ? MXD_OK : no_memory(err);
}

/* One tool call with its arguments as an object; a new reference or NULL. */
static json_t *fix_call(json_t *call) {
    json_t *function = json_object_get(call, "function");
    json_t *holder = json_is_object(function) ? function : call;
    const json_t *text = json_object_get(holder, "arguments");
    json_t *parsed = NULL, *new = NULL;
    mxd_err ignored;
    if (!json_is_string(text) ||
        mxd_json_parse(&parsed, json_string_value(text), json_string_length(text), &ignored))
        return json_incref(call);
    json_t *copy = json_copy(holder); /* shallow: the caller's tree stays as it is */
    if (copy && json_object_set_new(copy, "arguments", parsed) == 0) {
        if (holder == call) return copy;
        new = json_copy(call);
        if (new &&json_object_set(new, "function", copy) != 0) {
            json_decref(new);
            new = NULL;
        }
    } else if (!copy) {
        json_decref(parsed);
    }
    json_decref(copy);
    return new;
}

static mxd_rc fix_calls(json_t *message, mxd_err *err) {
    const json_t *calls = json_object_get(message, "tool_calls");
    json_t *call, *list = NULL;
    size_t i;
    if (!json_is_array(calls)) return MXD_OK;
    list = json_array();
    json_array_foreach(calls, i, call) {
        json_t *new = fix_call(call);
        if (!list || !new || json_array_append_new(list, new) != 0) {
            json_decref(list);
            return no_memory(err);
        }
    }
    return list && json_object_set_new(message, "tool_calls", list) == 0 ? MXD_OK : no_memory(err);
}

mxd_rc mxd_template_messages(json_t **out, const json_t *messages, mxd_err *err) {
    if (!json_is_array(messages)) return mxd_fail(err, MXD_E_INVAL, "'messages' must be a list");
    json_t *list = json_array(), *m;
    size_t i;
    mxd_rc rc = list ? MXD_OK : no_memory(err);
    json_array_foreach(messages, i, m) {
        if (rc) break;
        if (!json_is_object(m)) {
            rc = mxd_fail(err, MXD_E_INVAL, "'messages[%zu]' must be an object", i);
            break;
        }
        json_t *copy = json_copy(m);
        if (!copy || json_array_append_new(list, copy) != 0) {
            rc = no_memory(err);
            break;
        }
        rc = fix_content(copy, err);
        if (!rc) rc = fix_calls(copy, err);
    }
    if (rc)
        json_decref(list);
    else
        *out = list;
    return rc;
}
