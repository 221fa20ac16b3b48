#include "formats/yaml.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>
#include "base/buf.h"
#include "base/limits.h"

enum { PATH_MAX_BYTES = 512 };

typedef struct reader {
    yaml_parser_t parser;
    json_t *marks;
    mxd_buf path; /* of the value being read */
    int depth, n_values;
} reader;

static mxd_rc at(mxd_err *err, mxd_rc rc, yaml_mark_t mark, const char *what) {
    return mxd_fail(err, rc, "line %zu column %zu: %s", mark.line + 1, mark.column + 1, what);
}

static mxd_rc no_memory(mxd_err *err) { return mxd_fail(err, MXD_E_NOMEM, "no memory for YAML"); }

static mxd_rc next_event(reader *r, yaml_event_t *ev, mxd_err *err) {
    if (yaml_parser_parse(&r->parser, ev)) return MXD_OK;
    const yaml_parser_t *p = &r->parser;
    if (p->error == YAML_MEMORY_ERROR) return no_memory(err);
    yaml_mark_t mark = p->problem_mark;
    if (p->error == YAML_READER_ERROR) { /* libyaml gives only the offset: count lines to it */
        const unsigned char *s = p->input.string.start;
        size_t n = (size_t)(p->input.string.end - s);
        mark.line = mark.column = 0;
        for (size_t i = 0; i < n && i < p->problem_offset; i++) {
            mark.column = s[i] == '\n' ? 0 : mark.column + 1;
            mark.line += s[i] == '\n';
        }
    }
    return at(err, MXD_E_FORMAT, mark, p->problem ? p->problem : "not YAML");
}

/* Anchors and tags sit at the same place in all events that can carry them. */
static mxd_rc refuse_extras(const yaml_event_t *ev, mxd_err *err) {
    const yaml_char_t *anchor = NULL, *tag = NULL;
    if (ev->type == YAML_SCALAR_EVENT) {
        anchor = ev->data.scalar.anchor;
        tag = ev->data.scalar.tag;
    } else if (ev->type == YAML_SEQUENCE_START_EVENT) {
        anchor = ev->data.sequence_start.anchor;
        tag = ev->data.sequence_start.tag;
    } else if (ev->type == YAML_MAPPING_START_EVENT) {
        anchor = ev->data.mapping_start.anchor;
        tag = ev->data.mapping_start.tag;
    }
    if (anchor || ev->type == YAML_ALIAS_EVENT)
        return at(err, MXD_E_FORMAT, ev->start_mark,
                  "anchors and aliases are not allowed; write the value out");
    if (tag) return at(err, MXD_E_FORMAT, ev->start_mark, "tags are not allowed");
    return MXD_OK;
}

static mxd_rc note_place(reader *r, yaml_mark_t mark, mxd_err *err) {
    size_t column = mark.column < 65535 ? mark.column + 1 : 65535;
    json_int_t where = (json_int_t)((mark.line + 1) * 65536 + column);
    MXD_TRY(mxd_buf_rc(&r->path, "the path of a YAML key", err));
    if (json_object_set_new(r->marks, mxd_buf_str(&r->path), json_integer(where)))
        return no_memory(err);
    return MXD_OK;
}

static mxd_rc read_value(reader *r, const yaml_event_t *ev, json_t **out, mxd_err *err);

static bool is_null(const yaml_event_t *ev) {
    const char *s = (const char *)ev->data.scalar.value;
    if (ev->data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return false;
    return !s[0] || strcmp(s, "~") == 0 || strcmp(s, "null") == 0;
}

static mxd_rc read_scalar(const yaml_event_t *ev, json_t **out, mxd_err *err) {
    const char *s = (const char *)ev->data.scalar.value;
    size_t n = ev->data.scalar.length;
    if (memchr(s, 0, n)) return at(err, MXD_E_FORMAT, ev->start_mark, "a NUL in a text");
    *out = is_null(ev) ? json_null() : json_stringn(s, n);
    /* libyaml has checked the UTF-8 already; escapes like \ud800 come out as what jansson refuses
     */
    if (!*out) return at(err, MXD_E_FORMAT, ev->start_mark, "not a text that can be stored");
    return MXD_OK;
}

/* Reads the value that begins with the next event, at path + "." + name. */
static mxd_rc read_member(reader *r, const char *name, yaml_mark_t mark, json_t **out,
                          mxd_err *err) {
    size_t mark_len = r->path.len;
    if (mark_len) mxd_buf_putc(&r->path, '.');
    mxd_buf_puts(&r->path, name);
    yaml_event_t ev;
    mxd_rc rc = next_event(r, &ev, err);
    if (!rc) {
        rc = note_place(r, ev.type == YAML_SCALAR_EVENT ? ev.start_mark : mark, err);
        if (!rc) rc = read_value(r, &ev, out, err);
        yaml_event_delete(&ev);
    }
    if (r->path.rc == MXD_OK) {
        r->path.len = mark_len;
        if (r->path.ptr) r->path.ptr[mark_len] = '\0';
    }
    return rc;
}

static mxd_rc read_pair(reader *r, const yaml_event_t *key, json_t *object, mxd_err *err) {
    MXD_TRY(refuse_extras(key, err));
    const char *name = (const char *)key->data.scalar.value;
    if (key->type != YAML_SCALAR_EVENT || memchr(name, 0, key->data.scalar.length))
        return at(err, MXD_E_FORMAT, key->start_mark, "a key must be a text");
    if (json_object_get(object, name)) {
        char what[120];
        snprintf(what, sizeof what, "key '%.60s' is there twice", name);
        return at(err, MXD_E_FORMAT, key->start_mark, what);
    }
    json_t *value = NULL;
    MXD_TRY(read_member(r, name, key->start_mark, &value, err));
    return json_object_set_new(object, name, value) ? no_memory(err) : MXD_OK;
}

static mxd_rc read_mapping(reader *r, json_t *object, mxd_err *err) {
    for (;;) {
        yaml_event_t ev;
        MXD_TRY(next_event(r, &ev, err));
        bool end = ev.type == YAML_MAPPING_END_EVENT;
        mxd_rc rc = end ? MXD_OK : read_pair(r, &ev, object, err);
        yaml_event_delete(&ev);
        if (end || rc) return rc;
    }
}

static mxd_rc read_sequence(reader *r, json_t *array, mxd_err *err) {
    for (size_t i = 0;; i++) {
        yaml_event_t ev;
        MXD_TRY(next_event(r, &ev, err));
        if (ev.type == YAML_SEQUENCE_END_EVENT) {
            yaml_event_delete(&ev);
            return MXD_OK;
        }
        char name[24];
        snprintf(name, sizeof name, "%zu", i);
        size_t mark_len = r->path.len;
        mxd_buf_putc(&r->path, '.');
        mxd_buf_puts(&r->path, name);
        json_t *value = NULL;
        mxd_rc rc = note_place(r, ev.start_mark, err);
        if (!rc) rc = read_value(r, &ev, &value, err);
        yaml_event_delete(&ev);
        if (rc) return rc;
        r->path.len = mark_len;
        r->path.ptr[mark_len] = '\0';
        if (json_array_append_new(array, value)) return no_memory(err);
    }
}

static mxd_rc read_value(reader *r, const yaml_event_t *ev, json_t **out, mxd_err *err) {
    MXD_TRY(refuse_extras(ev, err));
    if (++r->n_values > MXD_JSON_MAX_NODES)
        return at(err, MXD_E_TOOBIG, ev->start_mark, "too many values");
    if (ev->type == YAML_SCALAR_EVENT) return read_scalar(ev, out, err);
    bool mapping = ev->type == YAML_MAPPING_START_EVENT;
    if (r->depth >= MXD_JSON_MAX_DEPTH)
        return at(err, MXD_E_TOOBIG, ev->start_mark, "nested too deeply");
    json_t *v = mapping ? json_object() : json_array();
    if (!v) return no_memory(err);
    r->depth++;
    mxd_rc rc = mapping ? read_mapping(r, v, err) : read_sequence(r, v, err);
    r->depth--;
    if (rc) {
        json_decref(v);
        return rc;
    }
    *out = v;
    return MXD_OK;
}

static mxd_rc expect(reader *r, yaml_event_type_t type, const char *what, mxd_err *err) {
    yaml_event_t ev;
    MXD_TRY(next_event(r, &ev, err));
    mxd_rc rc = ev.type == type ? MXD_OK : at(err, MXD_E_FORMAT, ev.start_mark, what);
    yaml_event_delete(&ev);
    return rc;
}

static mxd_rc read_document(reader *r, json_t **out, mxd_err *err) {
    MXD_TRY(expect(r, YAML_STREAM_START_EVENT, "not YAML", err));
    yaml_event_t ev;
    MXD_TRY(next_event(r, &ev, err));
    yaml_event_type_t first = ev.type;
    yaml_event_delete(&ev);
    if (first == YAML_STREAM_END_EVENT) {
        *out = json_object();
        return *out ? MXD_OK : no_memory(err);
    }
    MXD_TRY(next_event(r, &ev, err));
    mxd_rc rc = read_value(r, &ev, out, err);
    yaml_event_delete(&ev);
    if (rc) return rc;
    rc = expect(r, YAML_DOCUMENT_END_EVENT, "only one value is allowed", err);
    if (!rc) rc = expect(r, YAML_STREAM_END_EVENT, "only one document is allowed", err);
    if (!rc) return MXD_OK;
    json_decref(*out);
    *out = NULL;
    return rc;
}

mxd_rc mxd_yaml_parse(json_t **out, json_t **marks, const char *text, size_t n, mxd_err *err) {
    reader r = {0};
    *out = NULL;
    if (!yaml_parser_initialize(&r.parser)) return no_memory(err);
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    mxd_buf_init(&r.path, &mxd_alloc_libc, PATH_MAX_BYTES);
    r.marks = json_object();
    mxd_rc rc = r.marks ? read_document(&r, out, err) : no_memory(err);
    if (!rc && json_is_null(*out)) { /* a file of comments only */
        json_decref(*out);
        *out = json_object();
    }
    if (!rc && marks)
        *marks = r.marks;
    else
        json_decref(r.marks);
    mxd_buf_deinit(&r.path);
    yaml_parser_delete(&r.parser);
    return rc;
}

static mxd_rc read_file(const char *path, mxd_buf *into, mxd_err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (fd < 0)
        return mxd_fail_sys(err, errno == ENOENT || errno == ENOTDIR ? MXD_E_NOTFOUND : MXD_E_IO,
                            "cannot open '%s'", path);
    struct stat st;
    mxd_rc rc = MXD_OK;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        rc = mxd_fail(err, MXD_E_IO, "'%s' is not a regular file", path);
    char chunk[16384];
    ssize_t got = 1;
    while (!rc && got) {
        got = read(fd, chunk, sizeof chunk);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            rc = mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
        else
            mxd_buf_put(into, chunk, (size_t)got);
        if (!rc) rc = mxd_buf_rc(into, path, err);
    }
    close(fd);
    return rc;
}

mxd_rc mxd_yaml_load(json_t **out, json_t **marks, const char *path, size_t max_bytes,
                     mxd_err *err) {
    mxd_buf text;
    mxd_buf_init(&text, &mxd_alloc_libc, max_bytes);
    mxd_rc rc = read_file(path, &text, err);
    if (!rc) {
        rc = mxd_yaml_parse(out, marks, mxd_buf_str(&text), text.len, err);
        if (rc) rc = mxd_wrap(err, rc, "'%s'", path);
    }
    mxd_buf_deinit(&text);
    return rc;
}

bool mxd_yaml_where(const json_t *marks, const char *path, int *line, int *column) {
    json_int_t where = json_integer_value(json_object_get(marks, path));
    *line = (int)(where / 65536);
    *column = (int)(where % 65536);
    return where != 0;
}
