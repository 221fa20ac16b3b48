#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

/* Source: jinja2's lexer.py; the rules of white space are its block_suffix and lstrip. */

typedef struct lexer {
    tpl_parser *p;
    const char *s;
    size_t n, at;
    int line;
    bool line_starting; /* what came last ended a line */
    tpl_tok *toks;
    size_t n_toks, cap;
} lexer;

static bool fail(lexer *x, const char *what) {
    return tpl_parse_error(x->p, x->line, MXD_E_FORMAT, "%s", what);
}

static bool push(lexer *x, tpl_tok t) {
    if (x->n_toks == x->cap) {
        size_t cap = x->cap ? x->cap * 2 : 256;
        tpl_tok *more = tpl_parse_take(x->p, cap * sizeof *more);
        TPL_TRY(more);
        if (x->n_toks) memcpy(more, x->toks, x->n_toks * sizeof *more);
        x->toks = more;
        x->cap = cap;
    }
    if (!t.line) t.line = x->line;
    x->toks[x->n_toks++] = t;
    return true;
}

static bool push_kind(lexer *x, tpl_tok_kind kind) { return push(x, (tpl_tok){.kind = kind}); }

static void advance(lexer *x, size_t to) {
    for (; x->at < to; x->at++)
        if (x->s[x->at] == '\n') x->line++;
}

static bool looking_at(const lexer *x, size_t at, const char *what) {
    size_t k = strlen(what);
    return x->n - at >= k && memcmp(x->s + at, what, k) == 0;
}

/* The end of the white space that begins at `at`. */
static size_t past_space(const lexer *x, size_t at) {
    while (at < x->n) {
        uint32_t cp;
        int k = mxd_utf8_next(x->s + at, x->n - at, &cp);
        if (k <= 0 || !tpl_is_blank(cp)) break;
        at += (size_t)k;
    }
    return at;
}

/* The start of the white space that ends at `to`, not before `from`. */
static size_t before_space(const lexer *x, size_t from, size_t to) {
    while (to > from) {
        size_t b = to - 1;
        uint32_t cp;
        while (b > from && ((unsigned char)x->s[b] & 0xC0) == 0x80) b--;
        if (mxd_utf8_next(x->s + b, to - b, &cp) <= 0 || !tpl_is_blank(cp)) break;
        to = b;
    }
    return to;
}

/* Text up to a tag at `end`; `sign` is the character behind the tag's two. */
static bool push_data(lexer *x, size_t end, char sign, bool block) {
    size_t from = x->at, to = end;
    if (sign == '-') {
        to = before_space(x, from, end);
    } else if (sign != '+' && block) { /* lstrip_blocks */
        size_t line = end;
        while (line > from && x->s[line - 1] != '\n') line--;
        if ((line > from || x->line_starting) && before_space(x, line, end) == line) to = line;
    }
    if (to > from)
        TPL_TRY(push(x, (tpl_tok){.kind = TPL_DATA, .s = x->s + from, .n = (uint32_t)(to - from)}));
    advance(x, end);
    return true;
}

/* Behind a closing tag whose text ends at `at`; `sign` stood in front of it. */
static void close_tag(lexer *x, size_t at, char sign, bool trim) {
    size_t to = at;
    if (sign == '-')
        to = past_space(x, at);
    else if (sign != '+' && trim && at < x->n && x->s[at] == '\n')
        to = at + 1;
    advance(x, to);
    x->line_starting = to > 0 && x->s[to - 1] == '\n';
}

static bool comment(lexer *x) {
    size_t at = x->at + 2;
    while (at < x->n && !looking_at(x, at, "#}")) at++;
    if (at >= x->n) return fail(x, "a comment is not closed");
    char sign = at > x->at + 2 ? x->s[at - 1] : 0;
    close_tag(x, at + 2, sign, true);
    return true;
}

/* `{% raw %}`: *end behind it. */
static bool is_word_tag(const lexer *x, size_t at, const char *word, char *sign, size_t *end,
                        char *end_sign) {
    if (!looking_at(x, at, "{%")) return false;
    at += 2;
    *sign = at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at++] : 0;
    at = past_space(x, at);
    if (!looking_at(x, at, word)) return false;
    at = past_space(x, at + strlen(word));
    *end_sign = at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at++] : 0;
    if (!looking_at(x, at, "%}")) return false;
    *end = at + 2;
    return true;
}

static bool raw(lexer *x, size_t body, char sign) {
    char open_sign, end_sign;
    size_t end;
    close_tag(x, body, sign, false);
    for (size_t at = x->at; at < x->n; at++) {
        if (x->s[at] != '{' || !is_word_tag(x, at, "endraw", &open_sign, &end, &end_sign)) continue;
        TPL_TRY(push_data(x, at, open_sign, true));
        close_tag(x, end, end_sign, true);
        return true;
    }
    return x->at >= x->n || fail(x, "raw is not closed"); /* nothing behind it: as jinja2 */
}

/* ---- inside a tag ---- */

static bool is_name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (unsigned char)c >= 0x80;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static int hex_digit(char c) {
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The escape behind a backslash at s[i]; writes to *to and returns what it takes. */
static size_t escape(const char *s, size_t n, char **to) {
    static const char names[] = "nrtbfav\\'\"", bytes[] = "\n\r\t\b\f\a\v\\'\"";
    size_t digits = s[0] == 'x' ? 2 : s[0] == 'u' ? 4 : s[0] == 'U' ? 8 : 0;
    uint32_t cp = 0;
    size_t k = 1;
    for (; digits && k <= digits && k < n && hex_digit(s[k]) >= 0; k++)
        cp = cp << 4 | (uint32_t)hex_digit(s[k]);
    if (digits && k == digits + 1) {
        int len = mxd_utf8_put(*to, cp);
        *to += len;
        if (len) return k;
    }
    if (s[0] == '\n') return 1;
    if (s[0] >= '0' && s[0] <= '7') { /* octal */
        for (k = 0; k < 3 && k < n && s[k] >= '0' && s[k] <= '7'; k++)
            cp = cp * 8 + (uint32_t)(s[k] - '0');
        *to += mxd_utf8_put(*to, cp);
        return k;
    }
    const char *at = s[0] ? strchr(names, s[0]) : NULL;
    if (at) {
        *(*to)++ = bytes[at - names];
        return 1;
    }
    *(*to)++ = '\\'; /* Python keeps an unknown escape */
    *(*to)++ = s[0];
    return 1;
}

static bool string(lexer *x) {
    char quote = x->s[x->at];
    size_t from = x->at + 1, at = from;
    while (at < x->n && x->s[at] != quote) at += x->s[at] == '\\' && at + 1 < x->n ? 2 : 1;
    if (at >= x->n) return fail(x, "a string is not closed");
    char *text = tpl_parse_take(x->p, at - from + 1), *to = text;
    TPL_TRY(text);
    for (size_t i = from; i < at;) {
        if (x->s[i] != '\\') {
            *to++ = x->s[i++];
            continue;
        }
        i++;
        i += escape(x->s + i, at - i, &to);
    }
    TPL_TRY(push(x, (tpl_tok){.kind = TPL_STRING, .s = text, .n = (uint32_t)(to - text)}));
    advance(x, at + 1);
    return true;
}

/* 0x1F, 0o17, 0b101 */
static bool radix_number(lexer *x, int radix) {
    size_t at = x->at + 2;
    tpl_tok t = {.kind = TPL_INTEGER};
    for (; at < x->n; at++) {
        int d = hex_digit(x->s[at]);
        if (x->s[at] == '_') continue;
        if (d < 0 || d >= radix) break;
        if (__builtin_mul_overflow(t.i, radix, &t.i) || __builtin_add_overflow(t.i, d, &t.i))
            return fail(x, "an integer is too large");
    }
    advance(x, at);
    return push(x, t);
}

static bool number(lexer *x) {
    char second = x->s[x->at] == '0' && x->at + 2 < x->n ? (char)(x->s[x->at + 1] | 0x20) : 0;
    int radix = second == 'x' ? 16 : second == 'o' ? 8 : second == 'b' ? 2 : 0;
    if (radix && hex_digit(x->s[x->at + 2]) >= 0) return radix_number(x, radix);
    char text[64];
    size_t k = 0, at = x->at;
    bool real = false;
    while (at < x->n && k < sizeof text - 1) {
        char c = x->s[at];
        bool point = c == '.' && !real && at + 1 < x->n && is_digit(x->s[at + 1]);
        bool exponent = (c | 0x20) == 'e' && k && at + 1 < x->n &&
                        (is_digit(x->s[at + 1]) || ((x->s[at + 1] == '+' || x->s[at + 1] == '-') &&
                                                    at + 2 < x->n && is_digit(x->s[at + 2])));
        if (c == '_' && at + 1 < x->n && is_digit(x->s[at + 1])) {
            at++;
            continue;
        }
        if (!is_digit(c) && !point && !exponent) break;
        text[k++] = c;
        at++;
        if (exponent) text[k++] = x->s[at++];
        real = real || point || exponent;
    }
    text[k] = 0;
    tpl_tok t = {.kind = real ? TPL_REAL : TPL_INTEGER};
    if (real) {
        t.f = strtod(text, NULL);
    } else {
        for (size_t i = 0; i < k; i++)
            if (__builtin_mul_overflow(t.i, 10, &t.i) ||
                __builtin_add_overflow(t.i, text[i] - '0', &t.i))
                return fail(x, "an integer is too large");
    }
    advance(x, at);
    return push(x, t);
}

static bool name(lexer *x) {
    size_t at = x->at;
    while (at < x->n && (is_name_start(x->s[at]) || is_digit(x->s[at]))) at++;
    const char *s = tpl_intern(x->p, x->s + x->at, at - x->at);
    TPL_TRY(s);
    TPL_TRY(push(x, (tpl_tok){.kind = TPL_NAME, .s = s, .n = (uint32_t)(at - x->at)}));
    advance(x, at);
    return true;
}

static bool op(lexer *x) {
    static const char *const ops[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "*",
                                      "/",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (size_t i = 0; i < MXD_COUNT(ops); i++) {
        if (!looking_at(x, x->at, ops[i])) continue;
        advance(x, x->at + strlen(ops[i]));
        return push(x, (tpl_tok){.kind = TPL_OP, .s = ops[i], .n = (uint32_t)strlen(ops[i])});
    }
    return fail(x, "an unexpected character");
}

/* The end of the tag at `at`: *sign and how long; 0 when it is not there. */
static size_t tag_end(const lexer *x, const char *end, char *sign) {
    *sign = 0;
    if (looking_at(x, x->at, end)) return 2;
    if ((x->s[x->at] != '-' && x->s[x->at] != '+') || !looking_at(x, x->at + 1, end)) return 0;
    *sign = x->s[x->at];
    return 3;
}

static bool inside(lexer *x, bool block) {
    int brackets = 0;
    TPL_TRY(push_kind(x, block ? TPL_BLOCK_BEGIN : TPL_VAR_BEGIN));
    for (;;) {
        advance(x, past_space(x, x->at));
        if (x->at >= x->n) return fail(x, "a tag is not closed");
        char sign, c = x->s[x->at];
        size_t k = brackets ? 0 : tag_end(x, block ? "%}" : "}}", &sign);
        if (k) {
            TPL_TRY(push_kind(x, block ? TPL_BLOCK_END : TPL_VAR_END));
            close_tag(x, x->at + k, sign, block);
            return true;
        }
        if (c == '(' || c == '[' || c == '{') brackets++;
        if ((c == ')' || c == ']' || c == '}') && brackets) brackets--;
        if (c == '"' || c == '\'')
            TPL_TRY(string(x));
        else if (is_digit(c))
            TPL_TRY(number(x));
        else if (is_name_start(c))
            TPL_TRY(name(x));
        else
            TPL_TRY(op(x));
    }
}

static bool tag(lexer *x) {
    char kind = x->s[x->at + 1], sign = x->at + 2 < x->n ? x->s[x->at + 2] : 0;
    char raw_sign, end_sign;
    size_t end;
    if (kind == '#') return comment(x);
    if (kind == '%' && is_word_tag(x, x->at, "raw", &raw_sign, &end, &end_sign))
        return raw(x, end, end_sign);
    advance(x, x->at + 2 + (sign == '-' || sign == '+'));
    return inside(x, kind == '%');
}

bool tpl_lex(tpl_parser *p, const char *s, size_t n) {
    lexer x = {.p = p, .s = s, .n = n, .line = 1, .line_starting = true};
    if (n && s[n - 1] == '\n') x.n--; /* keep_trailing_newline is off */
    while (x.at < x.n) {
        size_t at = x.at;
        while (at < x.n &&
               !(x.s[at] == '{' && at + 1 < x.n && strchr("{%#", x.s[at + 1]) && x.s[at + 1]))
            at++;
        char sign = at + 2 < x.n ? x.s[at + 2] : 0;
        bool is_tag = at < x.n;
        TPL_TRY(push_data(&x, at, is_tag ? sign : '+', is_tag && x.s[at + 1] != '{'));
        if (is_tag) TPL_TRY(tag(&x));
    }
    TPL_TRY(push_kind(&x, TPL_EOF));
    p->toks = x.toks;
    return true;
}
