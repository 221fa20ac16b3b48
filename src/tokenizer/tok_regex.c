/* tok_regex.c - a pattern of the reference's engine (Oniguruma, Ruby syntax, UTF-8) in PCRE2's
 * words. Most of both is the same; what is written otherwise:
 *
 *   \w \W          Oniguruma: letters, marks, digits, letter numbers, connectors, circled letters,
 *                  and six fractions and superscripts of Latin-1 outside classes. PCRE2 before
 *                  10.43 leaves out marks.
 *   \b \B          between \w and \W, so marks are part of a word here too
 *   \s \S          White_Space; PCRE2 before 10.43 adds U+180E
 *   \h \H          hexadecimal digits; in PCRE2 white space
 *   \uHHHH {,n}    \x{HHHH} {0,n}
 *   [:alpha:] ...  by Unicode's properties; [:punct:] has symbols too
 *   \p{Han} ...    the script; in PCRE2 since 10.40 also what is shared with other scripts
 *   [a&&[^b]]      both classes match: a look at one, then the other
 *   [a[bc]]        one class
 */
#include <ctype.h>
#include <string.h>
#include "tokenizer/tok_internal.h"

enum { MAX_NESTING = 8, MAX_PATTERN = 1 << 16 };

#define CIRCLED                                \
    "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}" \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}"
#define IN_CLASS "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}" CIRCLED
#define WORD     IN_CLASS "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}"
/* What is not in IN_CLASS, by category; the circled letters stay, as part of a category. */
#define NOT_IN_CLASS "\\p{No}\\p{C}\\p{Z}\\p{S}\\p{Pd}\\p{Ps}\\p{Pe}\\p{Pi}\\p{Pf}\\p{Po}"

#define SPACE "\\t-\\r\\x{85}\\p{Z}"
#define NOT_SPACE                                                                                 \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{7F}-\\x{84}\\x{86}-\\x{9F}\\p{L}\\p{M}\\p{N}\\p{P}\\p{S}\\p{" \
    "Cf}\\p{Cn}\\p{Co}"

/* A word on this side; then as the two signs say, a word on the other or none. */
#define EDGE(a, b) "(?:(?<=[" WORD "])(?" a "[" WORD "])|(?<![" WORD "])(?" b "[" WORD "]))"

typedef struct source {
    const char *s;
    size_t n, at;
    const mxd_alloc *al;
} source;

static bool at_text(const source *p, const char *what) {
    size_t n = strlen(what);
    return p->n - p->at >= n && memcmp(p->s + p->at, what, n) == 0;
}

static mxd_rc cannot(mxd_err *err, const char *what) {
    return mxd_fail(err, MXD_E_UNSUPPORTED, "pattern: %s is not supported", what);
}

/* ---- escapes ---- */

/* Scripts that patterns name. */
static bool is_script(const char *s, size_t n) {
    static const char *const names[] = {
        "Arabic", "Armenian", "Bengali",  "Common", "Cyrillic",  "Devanagari", "Ethiopic",
        "Greek",  "Georgian", "Gujarati", "Han",    "Hangul",    "Hebrew",     "Hiragana",
        "Khmer",  "Katakana", "Lao",      "Latin",  "Mongolian", "Myanmar",    "Inherited",
        "Tamil",  "Telugu",   "Thai",     "Tibetan"};
    for (size_t i = 0; i < MXD_COUNT(names); i++)
        if (strlen(names[i]) == n && memcmp(names[i], s, n) == 0) return true;
    return false;
}

/* \p{NAME} or \P{NAME} at p->at; false when it is another thing. */
static bool write_script(mxd_buf *out, source *p) {
    const char *name = p->s + p->at + 3;
    size_t left = p->n - p->at;
    if (left < 5 || name[-1] != '{') return false;
    bool negated = name[0] == '^';
    name += negated;
    const char *end = memchr(name, '}', left - 3 - negated);
    if (!end || !is_script(name, (size_t)(end - name))) return false;
#if PCRE2_MAJOR > 10 || PCRE2_MINOR >= 40
    static const char kind[] = "sc:";
#else
    static const char kind[] = "";
#endif
    bool upper = p->s[p->at + 1] == 'P';
    mxd_buf_printf(out, "\\%c{%s%.*s}", upper != negated ? 'P' : 'p', kind, (int)(end - name),
                   name);
    p->at = (size_t)(end + 1 - p->s);
    return true;
}

/* The escape at p->at, a backslash with something behind. */
static void write_escape(mxd_buf *out, source *p, bool in_class) {
    char c = p->s[p->at + 1];
    if ((c == 'p' || c == 'P') && write_script(out, p)) return;
    bool unicode = c == 'u' && p->n - p->at >= 6;
    for (size_t i = 2; unicode && i < 6; i++) unicode = isxdigit((unsigned char)p->s[p->at + i]);
    if (unicode) {
        mxd_buf_printf(out, "\\x{%.4s}", p->s + p->at + 2);
        p->at += 6;
        return;
    }
    p->at += 2;
    switch (c) {
    case 'w':
        mxd_buf_puts(out, in_class ? IN_CLASS : "[" WORD "]");
        break;
    case 'W':
        mxd_buf_puts(out, in_class ? NOT_IN_CLASS : "[^" WORD "]");
        break;
    case 's':
        mxd_buf_puts(out, in_class ? SPACE : "[" SPACE "]");
        break;
    case 'S':
        mxd_buf_puts(out, in_class ? NOT_SPACE : "[^" SPACE "]");
        break;
    case 'b':
        mxd_buf_puts(out, in_class ? "\\b" : EDGE("!", "="));
        break;
    case 'B':
        mxd_buf_puts(out, in_class ? "\\B" : EDGE("=", "!"));
        break;
    case 'h':
        mxd_buf_puts(out, in_class ? "0-9a-fA-F" : "[0-9a-fA-F]");
        break;
    case 'H':
        mxd_buf_puts(out, in_class ? "\\x{0}-/:-@G-`g-\\x{10FFFF}" : "[^0-9a-fA-F]");
        break;
    default:
        mxd_buf_put(out, p->s + p->at - 2, 2);
    }
}

/* ---- classes ---- */

/* [:alpha:] and its kin at p->at; false when it is another thing. */
static bool write_posix(mxd_buf *out, source *p) {
    static const struct {
        const char *name, *is;
    } kinds[] = {{"[:alpha:]", "\\p{Alphabetic}"}, {"[:alnum:]", "\\p{Alphabetic}\\p{Nd}"},
                 {"[:upper:]", "\\p{Uppercase}"},  {"[:lower:]", "\\p{Lowercase}"},
                 {"[:punct:]", "\\p{P}\\p{S}"},    {"[:word:]", IN_CLASS},
                 {"[:digit:]", "\\p{Nd}"},         {"[:space:]", "\\s"}};
    for (size_t i = 0; i < MXD_COUNT(kinds); i++) {
        if (!at_text(p, kinds[i].name)) continue;
        mxd_buf_puts(out, kinds[i].is);
        p->at += strlen(kinds[i].name);
        return true;
    }
    return false;
}

static mxd_rc write_class(mxd_buf *out, source *p, int depth, mxd_err *err);

/* A class inside a class, behind `out`'s members: its own members when it is plain. */
static mxd_rc write_inner(mxd_buf *out, source *p, int depth, mxd_err *err) {
    mxd_buf inner;
    mxd_buf_init(&inner, p->al, MAX_PATTERN);
    mxd_rc rc = write_class(&inner, p, depth + 1, err);
    if (!rc) rc = mxd_buf_rc(&inner, "pattern", err);
    const char *s = mxd_buf_str(&inner);
    if (!rc && (s[0] != '[' || s[1] == '^')) rc = cannot(err, "a union with a negated class");
    if (!rc) mxd_buf_put(out, s + 1, inner.len - 2);
    mxd_buf_deinit(&inner);
    return rc;
}

/* A hyphen behind something that is no single character stands for itself. */
static void write_hyphen(mxd_buf *out, source *p) {
    if (!at_text(p, "-")) return;
    mxd_buf_puts(out, "\\-");
    p->at++;
}

/* The member at p->at. */
static mxd_rc write_member(mxd_buf *out, source *p, int depth, mxd_err *err) {
    char c = p->s[p->at];
    if (c == '\\' && p->at + 1 < p->n) {
        bool many = strchr("wWhHsSdDpP", p->s[p->at + 1]) != NULL;
        write_escape(out, p, true);
        if (many) write_hyphen(out, p);
        return MXD_OK;
    }
    if (c == '[' && write_posix(out, p)) {
        write_hyphen(out, p);
        return MXD_OK;
    }
    if (c == '[' && !at_text(p, "[:")) return write_inner(out, p, depth, err);
    if (c == ']') mxd_buf_putc(out, '\\'); /* the first of a class stands for itself */
    mxd_buf_putc(out, c);
    p->at++;
    return MXD_OK;
}

/* Members up to "]" or "&&", as a class of its own. */
static mxd_rc write_operand(mxd_buf *out, source *p, bool negated, int depth, mxd_err *err) {
    size_t from = p->at;
    if (at_text(p, "[") && !at_text(p, "[:")) { /* alone it may be of any kind */
        size_t at = out->len;
        MXD_TRY(write_class(out, p, depth + 1, err));
        if (!negated && (at_text(p, "]") || at_text(p, "&&"))) return MXD_OK;
        p->at = from;
        out->len = at;
    }
    mxd_buf_puts(out, negated ? "[^" : "[");
    for (; p->at < p->n && !at_text(p, "&&"); from = SIZE_MAX) {
        if (p->s[p->at] == ']' && p->at != from) break;
        MXD_TRY(write_member(out, p, depth, err));
    }
    mxd_buf_putc(out, ']');
    return MXD_OK;
}

/* [a&&b&&c], of which `first` is written: each but the last only looks. */
static mxd_rc write_both(mxd_buf *out, source *p, const mxd_buf *first, int depth, mxd_err *err) {
    mxd_buf_printf(out, "(?:(?=%s)", first->ptr);
    while (at_text(p, "&&")) {
        mxd_buf operand;
        mxd_buf_init(&operand, p->al, MAX_PATTERN);
        p->at += 2;
        mxd_rc rc = write_operand(&operand, p, false, depth, err);
        bool last = !at_text(p, "&&");
        if (!rc) rc = mxd_buf_rc(&operand, "pattern", err);
        if (!rc) mxd_buf_printf(out, last ? "%s)" : "(?=%s)", mxd_buf_str(&operand));
        mxd_buf_deinit(&operand);
        if (rc) return rc;
    }
    return MXD_OK;
}

/* The class at p->at. */
static mxd_rc write_class(mxd_buf *out, source *p, int depth, mxd_err *err) {
    if (depth > MAX_NESTING) return mxd_fail(err, MXD_E_TOOBIG, "pattern: classes nest too deep");
    p->at++;
    bool negated = at_text(p, "^");
    p->at += negated;
    mxd_buf first;
    mxd_buf_init(&first, p->al, MAX_PATTERN);
    mxd_rc rc = write_operand(&first, p, negated, depth, err);
    if (!rc) rc = mxd_buf_rc(&first, "pattern", err);
    if (!rc && at_text(p, "&&"))
        rc = negated ? cannot(err, "[^a&&b]") : write_both(out, p, &first, depth, err);
    else if (!rc)
        mxd_buf_put(out, first.ptr, first.len);
    mxd_buf_deinit(&first);
    if (!rc && !at_text(p, "]")) rc = mxd_fail(err, MXD_E_FORMAT, "pattern: a class has no end");
    p->at++;
    return rc;
}

mxd_rc tok_regex_write(mxd_buf *out, const char *s, size_t n, mxd_err *err) {
    source p = {s, n, 0, out->al};
    while (p.at < n) {
        if (s[p.at] == '\\' && p.at + 1 < n) {
            write_escape(out, &p, false);
        } else if (s[p.at] == '[') {
            MXD_TRY(write_class(out, &p, 0, err));
        } else if (at_text(&p, "{,") && n - p.at > 2 && isdigit((unsigned char)s[p.at + 2])) {
            mxd_buf_puts(out, "{0,");
            p.at += 2;
        } else {
            mxd_buf_putc(out, s[p.at++]);
        }
    }
    return mxd_buf_rc(out, "pattern", err);
}
