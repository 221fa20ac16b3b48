#include "formats/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>
#include "base/limits.h"
#include "formats/jscan.h"
#include "formats/utf8.h"

/* Depth and number of values, before jansson recurses or takes memory for them. */
static mxd_rc check_limits(const char *text, size_t n, mxd_err *err) {
    mxd_jscan s;
    mxd_jscan_init(&s, text, n, MXD_JSON_MAX_NODES);
    do MXD_TRY(mxd_jscan_next(&s, err));
    while (s.tok != MXD_JTOK_END);
    return MXD_OK;
}

mxd_rc mxd_json_parse(json_t **out, const char *text, size_t n, mxd_err *err) {
    MXD_TRY(check_limits(text, n, err));
    json_error_t why;
    json_t *v = json_loadb(text, n, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &why);
    if (v) {
        *out = v;
        return MXD_OK;
    }
    if (json_error_code(&why) == json_error_out_of_memory)
        return mxd_fail(err, MXD_E_NOMEM, "no memory for JSON of %zu bytes", n);
    return mxd_fail(err, MXD_E_FORMAT, "line %d column %d: %s", why.line, why.column, why.text);
}

/* Reads a whole file; the size is checked while reading too, for the file may grow. */
static mxd_rc read_all(int fd, mxd_buf *into, const char *path, mxd_err *err) {
    for (;;) {
        size_t room = into->max - into->len;
        size_t want = room < 65536 ? room + 1 : 65536;
        char chunk[65536 + 1];
        ssize_t got = read(fd, chunk, want);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
        if (got == 0) return MXD_OK;
        mxd_buf_put(into, chunk, (size_t)got);
        MXD_TRY(mxd_buf_rc(into, path, err));
    }
}

mxd_rc mxd_json_load(json_t **out, const char *path, size_t max_bytes, mxd_err *err) {
    /* O_NONBLOCK: a FIFO of that name must not hang us */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return mxd_fail_sys(err, errno == ENOENT || errno == ENOTDIR ? MXD_E_NOTFOUND : MXD_E_IO,
                            "cannot open '%s'", path);
    struct stat st;
    mxd_buf text;
    mxd_buf_init(&text, &mxd_alloc_libc, max_bytes);
    mxd_rc rc = MXD_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        rc = mxd_fail(err, MXD_E_IO, "'%s' is not a regular file", path);
    else if ((uint64_t)st.st_size > max_bytes)
        rc = mxd_fail(err, MXD_E_TOOBIG, "'%s' is longer than %zu bytes", path, max_bytes);
    if (!rc) rc = read_all(fd, &text, path, err);
    if (!rc) {
        rc = mxd_json_parse(out, mxd_buf_str(&text), text.len, err);
        if (rc) rc = mxd_wrap(err, rc, "'%s'", path);
    }
    mxd_buf_deinit(&text);
    close(fd);
    return rc;
}

static void write_u16(mxd_buf *out, uint32_t unit) { mxd_buf_printf(out, "\\u%04x", unit); }

void mxd_json_write_string(mxd_buf *out, const char *s, size_t n, bool ascii_only) {
    static const char named[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
    mxd_buf_putc(out, '"');
    size_t plain = 0; /* where the run that needs no escape began */
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        bool keep = c >= 0x20 && c != '"' && c != '\\' && (!ascii_only || c < 0x7F);
        if (keep) {
            i++;
            continue;
        }
        mxd_buf_put(out, s + plain, i - plain);
        const char *at = c ? strchr(named, c) : NULL;
        uint32_t cp = c;
        int k = c < 0x80 ? 1 : mxd_utf8_next(s + i, n - i, &cp);
        if (at) {
            mxd_buf_putc(out, '\\');
            mxd_buf_putc(out, letters[at - named]);
        } else if (cp >= 0x10000) {
            write_u16(out, 0xD800 + ((cp - 0x10000) >> 10));
            write_u16(out, 0xDC00 + ((cp - 0x10000) & 0x3FF));
        } else {
            write_u16(out, k > 0 ? cp : 0xFFFD);
        }
        i += k > 0 ? (size_t)k : 1;
        plain = i;
    }
    mxd_buf_put(out, s + plain, n - plain);
    mxd_buf_putc(out, '"');
}

/* The fewest significant digits that read back to x (x finite, > 0).
 *   digits[18]   without a point; *exp10 is the exponent of the first digit
 * printf and strtod run in the same locale, so the decimal point (whatever it is) cancels out. */
static int shortest_digits(char digits[18], int *exp10, double x) {
    char text[40];
    int prec = 0;
    do snprintf(text, sizeof text, "%.*e", prec, x);
    while (strtod(text, NULL) != x && ++prec < 17);
    const char *e = strchr(text, 'e');
    int n = 0;
    for (const char *p = text; p < e; p++)
        if (*p >= '0' && *p <= '9') digits[n++] = *p;
    *exp10 = (int)strtol(e + 1, NULL, 10);
    while (n > 1 && digits[n - 1] == '0') n--;
    return n;
}

void mxd_json_write_real(mxd_buf *out, double x) {
    if (isnan(x)) {
        mxd_buf_puts(out, "nan");
        return;
    }
    if (signbit(x)) mxd_buf_putc(out, '-');
    x = fabs(x);
    if (isinf(x) || x == 0) {
        mxd_buf_puts(out, isinf(x) ? "inf" : "0.0");
        return;
    }
    char d[18];
    int e10, n = shortest_digits(d, &e10, x);
    if (e10 < -4 || e10 >= 16) { /* the bounds of Python's float_repr */
        mxd_buf_putc(out, d[0]);
        if (n > 1) mxd_buf_putc(out, '.');
        mxd_buf_put(out, d + 1, (size_t)n - 1);
        mxd_buf_printf(out, "e%c%02d", e10 < 0 ? '-' : '+', abs(e10));
        return;
    }
    if (e10 < 0) mxd_buf_puts(out, "0.");
    for (int i = -1; i > e10; i--) mxd_buf_putc(out, '0');
    int last = e10 < 0 ? n : n > e10 + 2 ? n : e10 + 2; /* at least one digit behind the point */
    for (int i = 0; i < last; i++) {
        if (e10 >= 0 && i == e10 + 1) mxd_buf_putc(out, '.');
        mxd_buf_putc(out, i < n ? d[i] : '0');
    }
}

typedef struct writer {
    mxd_buf *out;
    const mxd_json_style *style;
    const char *item_sep, *key_sep;
    int indent;
} writer;

typedef struct member {
    const char *key;
    size_t len;
    const json_t *value;
} member;

static void write_value(writer *w, const json_t *v, int depth);

static void new_line(writer *w, int depth) {
    if (w->indent <= 0) return;
    mxd_buf_putc(w->out, '\n');
    for (int i = 0; i < depth * w->indent; i++) mxd_buf_putc(w->out, ' ');
}

static void begin_item(writer *w, size_t i, int depth) {
    if (i) mxd_buf_puts(w->out, w->item_sep);
    new_line(w, depth + 1);
}

static int by_key(const void *a, const void *b) {
    const member *x = a, *y = b;
    int c = memcmp(x->key, y->key, x->len < y->len ? x->len : y->len);
    return c ? c : (x->len > y->len) - (x->len < y->len);
}

static void write_member(writer *w, const member *m, size_t i, int depth) {
    begin_item(w, i, depth);
    mxd_json_write_string(w->out, m->key, m->len, w->style->ascii_only);
    mxd_buf_puts(w->out, w->key_sep);
    write_value(w, m->value, depth + 1);
}

static void write_object(writer *w, const json_t *v, int depth) {
    size_t n = json_object_size(v), i = 0;
    member *sorted = NULL;
    if (w->style->sort_keys && n) {
        sorted = MXD_NEW(w->out->al, n, member);
        if (!sorted) {
            w->out->rc = w->out->rc ? w->out->rc : MXD_E_NOMEM;
            return;
        }
    }
    mxd_buf_putc(w->out, '{');
    void *it = json_object_iter((json_t *)v);
    for (; it; it = json_object_iter_next((json_t *)v, it), i++) {
        member m = {json_object_iter_key(it), 0, json_object_iter_value(it)};
        m.len = json_object_iter_key_len(it);
        if (sorted)
            sorted[i] = m;
        else
            write_member(w, &m, i, depth);
    }
    if (sorted) qsort(sorted, n, sizeof *sorted, by_key);
    for (i = 0; sorted && i < n; i++) write_member(w, &sorted[i], i, depth);
    mxd_free(w->out->al, sorted);
    if (n) new_line(w, depth);
    mxd_buf_putc(w->out, '}');
}

static void write_array(writer *w, const json_t *v, int depth) {
    size_t n = json_array_size(v);
    mxd_buf_putc(w->out, '[');
    for (size_t i = 0; i < n; i++) {
        begin_item(w, i, depth);
        write_value(w, json_array_get(v, i), depth + 1);
    }
    if (n) new_line(w, depth);
    mxd_buf_putc(w->out, ']');
}

static void write_value(writer *w, const json_t *v, int depth) {
    if (depth > 4 * MXD_JSON_MAX_DEPTH) { /* only a tree built by code can be that deep */
        w->out->rc = w->out->rc ? w->out->rc : MXD_E_TOOBIG;
        return;
    }
    switch (v ? json_typeof(v) : JSON_NULL) {
    case JSON_OBJECT:
        write_object(w, v, depth);
        break;
    case JSON_ARRAY:
        write_array(w, v, depth);
        break;
    case JSON_STRING:
        mxd_json_write_string(w->out, json_string_value(v), json_string_length(v),
                              w->style->ascii_only);
        break;
    case JSON_INTEGER:
        mxd_buf_printf(w->out, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case JSON_REAL:
        mxd_json_write_real(w->out, json_real_value(v));
        break;
    case JSON_TRUE:
        mxd_buf_puts(w->out, "true");
        break;
    case JSON_FALSE:
        mxd_buf_puts(w->out, "false");
        break;
    default:
        mxd_buf_puts(w->out, "null");
        break;
    }
}

void mxd_json_write(mxd_buf *out, const json_t *v, const mxd_json_style *style) {
    static const mxd_json_style plain = {0};
    if (!style) style = &plain;
    writer w = {.out = out, .style = style, .indent = style->indent};
    w.item_sep = style->item_sep ? style->item_sep : style->compact || w.indent > 0 ? "," : ", ";
    w.key_sep = style->key_sep ? style->key_sep : style->compact ? ":" : ": ";
    write_value(&w, v, 0);
}
