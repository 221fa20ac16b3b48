#include "formats/jscan.h"

#include <string.h>
#include "base/limits.h"
#include "formats/utf8.h"

enum { VALUE, VALUE_OR_END, KEY, KEY_OR_END, COMMA_OR_END, DONE };

_Static_assert(MXD_JSON_MAX_DEPTH <= 64, "in_object has one bit for each level");

void mxd_jscan_init(mxd_jscan *s, const char *text, size_t n, size_t max_nodes) {
    *s = (mxd_jscan){.text = text, .n = n, .max_nodes = max_nodes, .expect = VALUE};
}

mxd_rc mxd_jscan_fail(const mxd_jscan *s, mxd_err *err, const char *what) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < s->pos && i < s->n; i++) {
        column++;
        if (s->text[i] == '\n') {
            line++;
            column = 1;
        }
    }
    return mxd_fail(err, MXD_E_FORMAT, "line %zu column %zu: %s", line, column, what);
}

static void skip_space(mxd_jscan *s) {
    while (s->pos < s->n) {
        char c = s->text[s->pos];
        if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
        s->pos++;
    }
}

/* Four hexadecimal digits at p, or -1. */
static int hex4(const char *p) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        char c = p[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0) return -1;
        v = v * 16 + d;
    }
    return v;
}

/* The \u escape at p (behind the backslash), a surrogate pair included.
 *   *cp   its code point
 * Returns the bytes it takes, 0 when it is malformed. */
static size_t unicode_escape(const char *p, size_t n, uint32_t *cp) {
    if (n < 5) return 0;
    int hi = hex4(p + 1);
    if (hi < 0 || (hi >= 0xDC00 && hi <= 0xDFFF)) return 0;
    *cp = (uint32_t)hi;
    if (hi < 0xD800 || hi > 0xDBFF) return 5;
    if (n < 11 || p[5] != '\\' || p[6] != 'u') return 0;
    int lo = hex4(p + 7);
    if (lo < 0xDC00 || lo > 0xDFFF) return 0;
    *cp = 0x10000 + ((uint32_t)(hi - 0xD800) << 10) + (uint32_t)(lo - 0xDC00);
    return 11;
}

static mxd_rc scan_escape(mxd_jscan *s, mxd_err *err) {
    s->escaped = true;
    s->pos++;
    if (s->pos == s->n) return mxd_jscan_fail(s, err, "the text ends inside a string");
    if (s->text[s->pos] != 'u') {
        if (!s->text[s->pos] || !strchr("\"\\/bfnrt", s->text[s->pos]))
            return mxd_jscan_fail(s, err, "unknown escape in a string");
        s->pos++;
        return MXD_OK;
    }
    uint32_t cp;
    size_t k = unicode_escape(s->text + s->pos, s->n - s->pos, &cp);
    if (!k) return mxd_jscan_fail(s, err, "malformed \\u escape or lone surrogate");
    s->pos += k;
    return MXD_OK;
}

static mxd_rc scan_string(mxd_jscan *s, mxd_jtok tok, mxd_err *err) {
    size_t from = ++s->pos;
    s->escaped = false;
    while (s->pos < s->n && s->text[s->pos] != '"') {
        unsigned char c = (unsigned char)s->text[s->pos];
        uint32_t cp;
        if (c == '\\') {
            MXD_TRY(scan_escape(s, err));
        } else if (c >= 0x80) {
            int k = mxd_utf8_next(s->text + s->pos, s->n - s->pos, &cp);
            if (k <= 0) return mxd_jscan_fail(s, err, "invalid UTF-8");
            s->pos += (size_t)k;
        } else if (c < 0x20) {
            return mxd_jscan_fail(s, err, "control character in a string");
        } else {
            s->pos++;
        }
    }
    if (s->pos == s->n) return mxd_jscan_fail(s, err, "the text ends inside a string");
    s->tok = tok;
    s->at = s->text + from;
    s->len = s->pos - from;
    s->pos++;
    return MXD_OK;
}

static size_t scan_digits(mxd_jscan *s) {
    size_t from = s->pos;
    while (s->pos < s->n && s->text[s->pos] >= '0' && s->text[s->pos] <= '9') s->pos++;
    return s->pos - from;
}

static mxd_rc scan_number(mxd_jscan *s, mxd_err *err) {
    size_t from = s->pos;
    if (s->text[s->pos] == '-') s->pos++;
    bool zero = s->pos < s->n && s->text[s->pos] == '0';
    size_t digits = scan_digits(s);
    if (!digits || (zero && digits > 1)) return mxd_jscan_fail(s, err, "malformed number");
    if (s->pos < s->n && s->text[s->pos] == '.') {
        s->pos++;
        if (!scan_digits(s)) return mxd_jscan_fail(s, err, "malformed number");
    }
    if (s->pos < s->n && (s->text[s->pos] | 0x20) == 'e') {
        s->pos++;
        if (s->pos < s->n && (s->text[s->pos] == '+' || s->text[s->pos] == '-')) s->pos++;
        if (!scan_digits(s)) return mxd_jscan_fail(s, err, "malformed number");
    }
    s->tok = MXD_JTOK_NUMBER;
    s->at = s->text + from;
    s->len = s->pos - from;
    return MXD_OK;
}

static mxd_rc scan_word(mxd_jscan *s, mxd_err *err) {
    static const struct {
        const char *word;
        mxd_jtok tok;
    } words[] = {{"true", MXD_JTOK_TRUE}, {"false", MXD_JTOK_FALSE}, {"null", MXD_JTOK_NULL}};
    for (size_t i = 0; i < MXD_COUNT(words); i++) {
        size_t len = strlen(words[i].word);
        if (s->n - s->pos < len || memcmp(s->text + s->pos, words[i].word, len) != 0) continue;
        s->tok = words[i].tok;
        s->at = s->text + s->pos;
        s->len = len;
        s->pos += len;
        return MXD_OK;
    }
    return mxd_jscan_fail(s, err, "expected a value");
}

static mxd_rc open_level(mxd_jscan *s, bool object, mxd_err *err) {
    if (s->depth == MXD_JSON_MAX_DEPTH)
        return mxd_fail(err, MXD_E_TOOBIG, "JSON nested deeper than %d levels", MXD_JSON_MAX_DEPTH);
    uint64_t bit = 1ull << s->depth;
    s->in_object = object ? s->in_object | bit : s->in_object & ~bit;
    s->depth++;
    s->at = s->text + s->pos++;
    s->len = 1;
    s->tok = object ? MXD_JTOK_OBJECT : MXD_JTOK_ARRAY;
    s->expect = object ? KEY_OR_END : VALUE_OR_END;
    return MXD_OK;
}

static bool inside_object(const mxd_jscan *s) { return s->in_object >> (s->depth - 1) & 1; }

static void value_done(mxd_jscan *s) { s->expect = s->depth ? COMMA_OR_END : DONE; }

static mxd_rc close_level(mxd_jscan *s, mxd_err *err) {
    bool object = inside_object(s);
    if (s->text[s->pos] != (object ? '}' : ']'))
        return mxd_jscan_fail(s, err, object ? "expected ',' or '}'" : "expected ',' or ']'");
    s->at = s->text + s->pos++;
    s->len = 1;
    s->depth--;
    s->tok = object ? MXD_JTOK_OBJECT_END : MXD_JTOK_ARRAY_END;
    value_done(s);
    return MXD_OK;
}

static mxd_rc scan_value(mxd_jscan *s, mxd_err *err) {
    char c = s->text[s->pos];
    if (++s->n_nodes > s->max_nodes)
        return mxd_fail(err, MXD_E_TOOBIG, "JSON with more than %zu values", s->max_nodes);
    if (c == '{' || c == '[') return open_level(s, c == '{', err);
    if (c == '"')
        MXD_TRY(scan_string(s, MXD_JTOK_STRING, err));
    else if (c == '-' || (c >= '0' && c <= '9'))
        MXD_TRY(scan_number(s, err));
    else
        MXD_TRY(scan_word(s, err));
    value_done(s);
    return MXD_OK;
}

static mxd_rc scan_key(mxd_jscan *s, mxd_err *err) {
    if (s->text[s->pos] != '"') return mxd_jscan_fail(s, err, "expected a key in quotes");
    MXD_TRY(scan_string(s, MXD_JTOK_KEY, err));
    skip_space(s);
    if (s->pos == s->n || s->text[s->pos] != ':') return mxd_jscan_fail(s, err, "expected ':'");
    s->pos++;
    s->expect = VALUE;
    return MXD_OK;
}

mxd_rc mxd_jscan_next(mxd_jscan *s, mxd_err *err) {
    skip_space(s);
    if (s->expect == DONE) {
        if (s->pos < s->n) return mxd_jscan_fail(s, err, "text behind the value");
        s->tok = MXD_JTOK_END;
        s->len = 0;
        return MXD_OK;
    }
    if (s->pos == s->n) return mxd_jscan_fail(s, err, "the text ends too early");
    if (s->expect == COMMA_OR_END) {
        if (s->text[s->pos] != ',') return close_level(s, err);
        s->pos++;
        s->expect = inside_object(s) ? KEY : VALUE;
        skip_space(s);
        if (s->pos == s->n) return mxd_jscan_fail(s, err, "the text ends too early");
    }
    char c = s->text[s->pos];
    if ((s->expect == KEY_OR_END && c == '}') || (s->expect == VALUE_OR_END && c == ']'))
        return close_level(s, err);
    if (s->expect == KEY || s->expect == KEY_OR_END) return scan_key(s, err);
    return scan_value(s, err);
}

mxd_rc mxd_jscan_skip(mxd_jscan *s, const char **from, size_t *n, mxd_err *err) {
    bool quoted = s->tok == MXD_JTOK_STRING;
    const char *begin = s->at - (quoted ? 1 : 0);
    if (s->tok == MXD_JTOK_OBJECT || s->tok == MXD_JTOK_ARRAY) {
        int outside = s->depth - 1;
        while (s->depth > outside) MXD_TRY(mxd_jscan_next(s, err));
    }
    if (from) *from = begin;
    if (n) *n = (size_t)(s->text + s->pos - begin);
    return MXD_OK;
}

size_t mxd_jscan_decode(const mxd_jscan *s, char *dst) {
    if (!s->escaped) {
        memcpy(dst, s->at, s->len);
        return s->len;
    }
    static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
    char *to = dst;
    for (size_t i = 0; i < s->len;) {
        if (s->at[i] != '\\') {
            *to++ = s->at[i++];
            continue;
        }
        i++;
        uint32_t cp;
        if (s->at[i] == 'u') {
            i += unicode_escape(s->at + i, s->len - i, &cp);
            to += mxd_utf8_put(to, cp);
        } else {
            *to++ = bytes[strchr(names, s->at[i++]) - names];
        }
    }
    return (size_t)(to - dst);
}

bool mxd_jscan_is(const mxd_jscan *s, const char *word) {
    size_t n = strlen(word);
    if (!s->escaped) return s->len == n && memcmp(s->at, word, n) == 0;
    char text[256];
    if (s->len > sizeof text || s->len < n) return false;
    return mxd_jscan_decode(s, text) == n && memcmp(text, word, n) == 0;
}
