#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utf8proc.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

/* ---- helpers shared with the filters ---- */

static bool blank_or_in(uint32_t cp, const char *s, size_t n, const tpl_str *chars) {
    return chars ? memmem(chars->p, chars->n, s, n) != NULL : tpl_is_blank(cp);
}

bool tpl_trim(tpl *x, const tpl_str *s, bool left, bool right, tpl_val chars, tpl_val *v) {
    const tpl_str *set = chars.kind == TPL_STR ? chars.s : NULL;
    size_t from = 0, to = s->n;
    uint32_t cp;
    TPL_TRY(tpl_spend(x, s->n / 256));
    while (left && from < to) {
        int k = mxd_utf8_next(s->p + from, to - from, &cp);
        if (k <= 0 || !blank_or_in(cp, s->p + from, (size_t)k, set)) break;
        from += (size_t)k;
    }
    while (right && to > from) {
        size_t b = to - 1;
        while (b > from && ((unsigned char)s->p[b] & 0xC0) == 0x80) b--;
        if (mxd_utf8_next(s->p + b, to - b, &cp) <= 0 || !blank_or_in(cp, s->p + b, to - b, set))
            break;
        to = b;
    }
    return tpl_sub(x, s, from, to, v);
}

static bool put_sub(tpl *x, tpl_out *o, const tpl_str *s, size_t from, size_t to) {
    if (from >= to) return true;
    if (!s->n_runs) return tpl_out_put(x, o, s->p + from, to - from, s->trusted);
    tpl_val v;
    return tpl_sub(x, s, from, to, &v) && tpl_out_str(x, o, v.s);
}

bool tpl_replace(tpl *x, const tpl_str *s, const tpl_str *from, const tpl_str *to, int64_t max,
                 tpl_val *v) {
    tpl_out o = {0};
    size_t at = 0;
    for (int64_t i = 0; at <= s->n && (max < 0 || i < max); i++) {
        TPL_TRY(tpl_spend(x, 0));
        const char *hit = memmem(s->p + at, s->n - at, from->p, from->n);
        if (!hit) break;
        size_t b = (size_t)(hit - s->p), e = b + from->n;
        if (!from->n && i) { /* between all characters */
            e = at + 1;
            while (e < s->n && ((unsigned char)s->p[e] & 0xC0) == 0x80) e++;
            if (at >= s->n) break;
            b = e;
        }
        TPL_TRY(put_sub(x, &o, s, at, b));
        TPL_TRY(tpl_out_str(x, &o, to));
        at = e;
    }
    TPL_TRY(tpl_spend(x, s->n / 256));
    TPL_TRY(put_sub(x, &o, s, at, s->n));
    return tpl_out_done(x, &o, v);
}

static uint32_t map_case(uint32_t cp, char how, bool word) {
    if (how == 's') how = utf8proc_category((int32_t)cp) == UTF8PROC_CATEGORY_LU ? 'l' : 'u';
    if (how == 'c' || how == 't') how = word ? 'l' : 'u';
    return (uint32_t)(how == 'u' ? utf8proc_toupper((int32_t)cp) : utf8proc_tolower((int32_t)cp));
}

static bool is_letter(uint32_t cp) {
    utf8proc_category_t c = utf8proc_category((int32_t)cp);
    return c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
}

/* u upper, l lower, s swapcase, c capitalize, t str.title, T the filter title */
bool tpl_case(tpl *x, const tpl_str *s, char how, tpl_val *v) {
    tpl_out o = {0};
    bool inside = false;
    size_t run = 0;
    TPL_TRY(tpl_spend(x, s->n / 16));
    for (size_t i = 0; i < s->n;) {
        uint32_t cp = 0;
        char text[4];
        int k = mxd_utf8_next(s->p + i, s->n - i, &cp);
        if (k <= 0) k = 1;
        while (s->n_runs && run < s->n_runs && s->runs[run].end <= i) run++;
        bool trusted = s->n_runs ? s->runs[run].trusted : s->trusted;
        char as = how == 'T' ? 't' : how;
        if (cp == 0x130 && as == 'l') {
            TPL_TRY(tpl_out_put(x, &o, "i\xcc\x87", 3, trusted));
        } else if (cp == 0xDF && as == 'u') {
            TPL_TRY(tpl_out_put(x, &o, "SS", 2, trusted));
        } else {
            int n = mxd_utf8_put(text, map_case(cp, as, inside));
            TPL_TRY(tpl_out_put(x, &o, text, (size_t)n, trusted));
        }
        bool breaks = cp < 0x80 ? strchr("-({[<", (int)cp) != NULL && cp : false;
        inside = how == 'c' ? true : how == 'T' ? !(tpl_is_blank(cp) || breaks) : is_letter(cp);
        i += (size_t)k;
    }
    return tpl_out_done(x, &o, v);
}

bool tpl_join(tpl *x, const tpl_val *items, size_t n, const tpl_str *sep, tpl_val *v) {
    tpl_out o = {0};
    for (size_t i = 0; i < n; i++) {
        TPL_TRY(tpl_spend(x, 0));
        if (i) TPL_TRY(tpl_out_str(x, &o, sep));
        TPL_TRY(tpl_print(x, &o, items[i]));
    }
    return tpl_out_done(x, &o, v);
}

/* ---- methods of strings ---- */

typedef struct args {
    const tpl_call *c;
    const tpl_str *s;
} args;

static bool wrong(tpl *x, const char *name) {
    return tpl_fail(x, MXD_E_FORMAT, "wrong arguments for '%.60s'", name);
}

/* Grows a list of parts; `*v` has room for cap. */
static bool add_part(tpl *x, tpl_val *list, size_t *cap, tpl_val part) {
    tpl_list *l = list->l;
    if (l->n == *cap) {
        *cap *= 2;
        tpl_val *more = tpl_take(x, *cap * sizeof *more);
        TPL_TRY(more);
        memcpy(more, l->v, l->n * sizeof *more);
        l->v = more;
    }
    l->v[l->n++] = part;
    return tpl_spend(x, 0);
}

static bool split_blank(tpl *x, const tpl_str *s, int64_t max, tpl_val *v) {
    size_t cap = 8, at = 0;
    TPL_TRY(tpl_new_list(x, cap, 0, v));
    v->l->n = 0;
    TPL_TRY(tpl_spend(x, s->n / 64));
    for (int64_t parts = 0;; parts++) {
        uint32_t cp;
        int k;
        tpl_val part;
        while (at < s->n && (k = mxd_utf8_next(s->p + at, s->n - at, &cp)) > 0 && tpl_is_blank(cp))
            at += (size_t)k;
        if (at >= s->n) return true;
        size_t e = at;
        if (max >= 0 && parts >= max) {
            TPL_TRY(tpl_sub(x, s, at, s->n, &part));
            return tpl_trim(x, part.s, false, true, tpl_none(), &part) &&
                   add_part(x, v, &cap, part);
        }
        while (e < s->n && (k = mxd_utf8_next(s->p + e, s->n - e, &cp)) != 0 && !tpl_is_blank(cp))
            e += k > 0 ? (size_t)k : 1;
        TPL_TRY(tpl_sub(x, s, at, e, &part));
        TPL_TRY(add_part(x, v, &cap, part));
        at = e;
    }
}

static const char *last_hit(const char *s, size_t n, const tpl_str *what) {
    for (size_t i = n; i + 1 > what->n; i--)
        if (memcmp(s + i - what->n, what->p, what->n) == 0) return s + i - what->n;
    return NULL;
}

static void reverse(tpl_list *l) {
    for (size_t i = 0; i < l->n / 2; i++) {
        tpl_val t = l->v[i];
        l->v[i] = l->v[l->n - 1 - i];
        l->v[l->n - 1 - i] = t;
    }
}

static bool split(tpl *x, const tpl_str *s, const tpl_call *c, bool right, tpl_val *v) {
    tpl_val sep = tpl_arg_of(c, 0, "sep"), limit = tpl_arg_of(c, 1, "maxsplit"), part;
    int64_t max = -1;
    if (limit.kind != TPL_UNDEF && !tpl_integer(limit, &max)) return wrong(x, "split");
    if (sep.kind != TPL_STR && sep.kind != TPL_UNDEF && sep.kind != TPL_NONE)
        return wrong(x, "split");
    if (sep.kind != TPL_STR && !(right && max >= 0)) return split_blank(x, s, max, v);
    if (sep.kind != TPL_STR) return tpl_fail(x, MXD_E_UNSUPPORTED, "rsplit without a separator");
    if (!sep.s->n) return tpl_fail(x, MXD_E_FORMAT, "empty separator");
    size_t cap = 8, at = 0, end = s->n;
    TPL_TRY(tpl_new_list(x, cap, 0, v));
    v->l->n = 0;
    TPL_TRY(tpl_spend(x, s->n / 64));
    for (int64_t i = 0; max < 0 || i < max; i++) {
        const char *hit =
            right ? last_hit(s->p, end, sep.s) : memmem(s->p + at, s->n - at, sep.s->p, sep.s->n);
        if (!hit) break;
        size_t b = (size_t)(hit - s->p);
        TPL_TRY(right ? tpl_sub(x, s, b + sep.s->n, end, &part) : tpl_sub(x, s, at, b, &part));
        TPL_TRY(add_part(x, v, &cap, part));
        end = b;
        at = b + sep.s->n;
    }
    TPL_TRY(right ? tpl_sub(x, s, 0, end, &part) : tpl_sub(x, s, at, s->n, &part));
    TPL_TRY(add_part(x, v, &cap, part));
    if (right) reverse(v->l);
    return true;
}

size_t tpl_line_end(const char *s, size_t n) {
    uint32_t cp = 0;
    int k = mxd_utf8_next(s, n, &cp);
    if (k <= 0) return 0;
    if (cp == '\r' && n > 1 && s[1] == '\n') return 2;
    bool end = (cp >= 0x0A && cp <= 0x0D) || (cp >= 0x1C && cp <= 0x1E) || cp == 0x85 ||
               cp == 0x2028 || cp == 0x2029;
    return end ? (size_t)k : 0;
}

static bool split_lines(tpl *x, const tpl_str *s, const tpl_call *c, tpl_val *v) {
    bool keep = tpl_truth(tpl_arg_of(c, 0, "keepends"));
    size_t cap = 8, at = 0;
    TPL_TRY(tpl_new_list(x, cap, 0, v));
    v->l->n = 0;
    while (at < s->n) {
        size_t e = at;
        tpl_val part;
        size_t k = 0;
        while (e < s->n && !(k = tpl_line_end(s->p + e, s->n - e))) e++;
        size_t next = e + k;
        TPL_TRY(tpl_sub(x, s, at, keep ? next : e, &part));
        TPL_TRY(add_part(x, v, &cap, part));
        at = next;
    }
    return true;
}

static bool one_affix(const tpl_str *s, const tpl_str *what, bool end) {
    return s->n >= what->n && memcmp(s->p + (end ? s->n - what->n : 0), what->p, what->n) == 0;
}

static bool affix(tpl *x, const tpl_str *s, const tpl_call *c, bool end, tpl_val *v) {
    tpl_val what = tpl_arg_of(c, 0, NULL);
    bool yes = false;
    if (c->n_pos > 1) { /* start and end, as slice bounds */
        const tpl_val lim[3] = {c->pos[1], tpl_arg_of(c, 2, NULL), tpl_undef(NULL)};
        tpl_val part;
        TPL_TRY(tpl_slice(x, (tpl_val){.kind = TPL_STR, .s = s}, lim, &part));
        s = part.s;
    }
    if (what.kind == TPL_STR) {
        yes = one_affix(s, what.s, end);
    } else if (what.kind == TPL_LIST && what.flags & TPL_TUPLE) {
        TPL_TRY(tpl_force_list(x, what.l));
        for (size_t i = 0; i < what.l->n && !yes; i++) {
            if (what.l->v[i].kind != TPL_STR) return wrong(x, "startswith");
            yes = one_affix(s, what.l->v[i].s, end);
        }
    } else {
        return wrong(x, end ? "endswith" : "startswith");
    }
    *v = tpl_bool(yes);
    return true;
}

static bool remove_affix(tpl *x, const tpl_str *s, const tpl_call *c, bool end, tpl_val *v) {
    tpl_val what = tpl_arg_of(c, 0, NULL);
    if (what.kind != TPL_STR) return wrong(x, end ? "removesuffix" : "removeprefix");
    bool there = one_affix(s, what.s, end);
    return tpl_sub(x, s, there && !end ? what.s->n : 0, there && end ? s->n - what.s->n : s->n, v);
}

/* The characters [start, end) that the second and third argument name, as in Python.
 *   *from   the first of them; -1: there is no such place */
static bool window(tpl *x, const tpl_str *s, const tpl_call *c, tpl_str *part, int64_t *from) {
    int64_t n = (int64_t)tpl_length(s), at[2] = {0, n};
    for (size_t i = 0; i < 2; i++) {
        tpl_val v = tpl_arg_of(c, i + 1, NULL);
        if (v.kind == TPL_UNDEF || v.kind == TPL_NONE) continue;
        if (!tpl_integer(v, &at[i])) return wrong(x, "find");
        if (at[i] < 0) at[i] = at[i] < -n ? 0 : at[i] + n;
    }
    if (at[1] > n) at[1] = n;
    *from = at[0] > n || at[0] > at[1] ? -1 : at[0];
    *part = (tpl_str){.p = s->p};
    if (*from < 0) return true;
    size_t b = tpl_offset(s, (size_t)at[0]), e = tpl_offset(s, (size_t)at[1]);
    *part = (tpl_str){.p = s->p + b, .n = (uint32_t)(e - b)};
    return true;
}

static bool find(tpl *x, const tpl_str *s, const tpl_call *c, bool right, bool must, tpl_val *v) {
    tpl_val what = tpl_arg_of(c, 0, NULL);
    tpl_str in;
    int64_t from;
    if (what.kind != TPL_STR) return wrong(x, "find");
    TPL_TRY(window(x, s, c, &in, &from) && tpl_spend(x, s->n / 64));
    const char *hit = from < 0 ? NULL
                      : right  ? last_hit(in.p, in.n, what.s)
                               : memmem(in.p, in.n, what.s->p, what.s->n);
    tpl_str before = {.p = in.p, .n = hit ? (uint32_t)(hit - in.p) : 0};
    *v = tpl_int(hit ? from + (int64_t)tpl_length(&before) : -1);
    return hit || !must || tpl_fail(x, MXD_E_FORMAT, "substring not found");
}

static bool count(tpl *x, const tpl_str *s, const tpl_call *c, tpl_val *v) {
    tpl_val what = tpl_arg_of(c, 0, NULL);
    tpl_str in;
    int64_t from;
    if (what.kind != TPL_STR) return wrong(x, "count");
    TPL_TRY(window(x, s, c, &in, &from) && tpl_spend(x, s->n / 64));
    int64_t n = what.s->n || from < 0 ? 0 : (int64_t)tpl_length(&in) + 1;
    for (size_t at = 0; what.s->n && at < in.n; n++) {
        const char *hit = memmem(in.p + at, in.n - at, what.s->p, what.s->n);
        if (!hit) break;
        at = (size_t)(hit - in.p) + what.s->n;
    }
    *v = tpl_int(n);
    return true;
}

static bool partition(tpl *x, const tpl_str *s, const tpl_call *c, bool right, tpl_val *v) {
    tpl_val sep = tpl_arg_of(c, 0, NULL);
    if (sep.kind != TPL_STR || !sep.s->n) return wrong(x, "partition");
    const char *hit = right ? last_hit(s->p, s->n, sep.s) : memmem(s->p, s->n, sep.s->p, sep.s->n);
    size_t b = hit ? (size_t)(hit - s->p) : right ? 0 : s->n;
    size_t e = hit ? b + sep.s->n : b;
    TPL_TRY(tpl_new_list(x, 3, TPL_TUPLE, v));
    return tpl_sub(x, s, 0, b, &v->l->v[0]) && tpl_sub(x, s, b, e, &v->l->v[1]) &&
           tpl_sub(x, s, e, s->n, &v->l->v[2]);
}

/* l ljust, r rjust, c center, z zfill */
static bool justify(tpl *x, const tpl_str *s, const tpl_call *c, char how, tpl_val *v) {
    int64_t width;
    tpl_val fill = tpl_arg_of(c, 1, NULL);
    const char *pad = how == 'z' ? "0" : " ";
    size_t n_pad = 1;
    if (!tpl_integer(tpl_arg_of(c, 0, "width"), &width)) return wrong(x, "center");
    if (fill.kind == TPL_STR && how != 'z') {
        if (tpl_length(fill.s) != 1) return wrong(x, "center");
        pad = fill.s->p;
        n_pad = fill.s->n;
    }
    int64_t room = width - (int64_t)tpl_length(s);
    if (room < 0) room = 0;
    int64_t left = how == 'l' ? 0 : how == 'c' ? room / 2 + (room & width & 1) : room;
    tpl_out o = {0};
    size_t sign = how == 'z' && s->n && (s->p[0] == '-' || s->p[0] == '+');
    TPL_TRY(put_sub(x, &o, s, 0, sign));
    for (int64_t i = 0; i < left; i++)
        TPL_TRY(tpl_spend(x, 0) && tpl_out_put(x, &o, pad, n_pad, true));
    TPL_TRY(put_sub(x, &o, s, sign, s->n));
    for (int64_t i = left; i < room; i++)
        TPL_TRY(tpl_spend(x, 0) && tpl_out_put(x, &o, pad, n_pad, true));
    return tpl_out_done(x, &o, v);
}

bool tpl_is_word(uint32_t cp) {
    utf8proc_category_t c = utf8proc_category((int32_t)cp);
    return cp == '_' || is_letter(cp) || c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL ||
           c == UTF8PROC_CATEGORY_NO;
}

/* d digits, a letters, n letters or digits, s space, u upper, l lower */
static bool is_all(tpl *x, const tpl_str *s, char how, tpl_val *v) {
    bool all = s->n > 0, cased = false;
    TPL_TRY(tpl_spend(x, s->n / 64));
    for (size_t i = 0; i < s->n && all;) {
        uint32_t cp = 0;
        int k = mxd_utf8_next(s->p + i, s->n - i, &cp);
        utf8proc_category_t c = utf8proc_category((int32_t)cp);
        bool upper = c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LT;
        bool lower = c == UTF8PROC_CATEGORY_LL, digit = c == UTF8PROC_CATEGORY_ND;
        cased = cased || upper || lower;
        all = how == 'd'   ? digit
              : how == 'a' ? is_letter(cp)
              : how == 'n' ? is_letter(cp) || digit
              : how == 's' ? tpl_is_blank(cp)
              : how == 'u' ? !lower
                           : !upper;
        i += k > 0 ? (size_t)k : 1;
    }
    *v = tpl_bool(all && (cased || (how != 'u' && how != 'l')));
    return true;
}

static bool replace_method(tpl *x, const tpl_str *s, const tpl_call *c, tpl_val *v) {
    tpl_val from = tpl_arg_of(c, 0, NULL), to = tpl_arg_of(c, 1, NULL);
    int64_t max = -1;
    tpl_val limit = tpl_arg_of(c, 2, "count");
    if (from.kind != TPL_STR || to.kind != TPL_STR) return wrong(x, "replace");
    if (limit.kind != TPL_UNDEF && !tpl_integer(limit, &max)) return wrong(x, "replace");
    return tpl_replace(x, s, from.s, to.s, max, v);
}

/* "{} {0} {name}".format: fields without conversions. */
static bool format_method(tpl *x, const tpl_str *s, const tpl_call *c, tpl_val *v) {
    tpl_out o = {0};
    size_t next = 0;
    for (size_t i = 0; i < s->n;) {
        char ch = s->p[i];
        if ((ch == '{' || ch == '}') && i + 1 < s->n && s->p[i + 1] == ch) {
            TPL_TRY(put_sub(x, &o, s, i, i + 1));
            i += 2;
            continue;
        }
        if (ch != '{') {
            if (ch == '}') return tpl_fail(x, MXD_E_FORMAT, "single '}' in a format string");
            TPL_TRY(put_sub(x, &o, s, i, i + 1));
            i++;
            continue;
        }
        const char *end = memchr(s->p + i, '}', s->n - i);
        char field[64];
        size_t n = end ? (size_t)(end - (s->p + i + 1)) : sizeof field;
        if (n >= sizeof field) return tpl_fail(x, MXD_E_FORMAT, "malformed format string");
        memcpy(field, s->p + i + 1, n);
        field[n] = 0;
        if (strpbrk(field, ".[!:"))
            return tpl_fail(x, MXD_E_UNSUPPORTED, "format field '{%.40s}' is not supported", field);
        bool number = n && strspn(field, "0123456789") == n;
        size_t at = !n ? next++ : number ? (size_t)strtoul(field, NULL, 10) : c->n_pos;
        tpl_val a = number || !n ? tpl_arg_of(c, at, NULL) : tpl_arg_of(c, SIZE_MAX, field);
        if (at >= c->n_pos && (number || !n))
            return tpl_fail(x, MXD_E_FORMAT, "no argument for a format field");
        if (a.kind == TPL_UNDEF && !number && n)
            return tpl_fail(x, MXD_E_FORMAT, "no argument '%.40s' for a format field", field);
        TPL_TRY(tpl_print(x, &o, a));
        i += n + 2;
    }
    return tpl_out_done(x, &o, v);
}

static bool join_method(tpl *x, const tpl_str *s, const tpl_call *c, tpl_val *v) {
    tpl_val *items;
    size_t n;
    TPL_TRY(tpl_items(x, tpl_arg_of(c, 0, NULL), &items, &n));
    for (size_t i = 0; i < n; i++)
        if (items[i].kind != TPL_STR)
            return tpl_fail(x, MXD_E_FORMAT, "join: expected str, found %s",
                            tpl_type_name(items[i]));
    return tpl_join(x, items, n, s, v);
}

static const char *const str_methods[] = {
    "split",     "rsplit",       "splitlines",   "strip",     "lstrip",  "rstrip", "startswith",
    "endswith",  "removeprefix", "removesuffix", "find",      "rfind",   "index",  "count",
    "partition", "rpartition",   "ljust",        "rjust",     "center",  "zfill",  "isdigit",
    "isalpha",   "isalnum",      "isspace",      "isupper",   "islower", "upper",  "lower",
    "title",     "capitalize",   "swapcase",     "replace",   "format",  "join",   "casefold",
    "isdecimal", "isnumeric",    "expandtabs",   "translate", "encode",  NULL};

static bool str_method(tpl *x, const tpl_str *s, const char *m, const tpl_call *c, tpl_val *v) {
    static const struct {
        const char *name;
        char how;
    } cases[] = {{"upper", 'u'},    {"lower", 'l'},      {"title", 't'},
                 {"casefold", 'l'}, {"capitalize", 'c'}, {"swapcase", 's'}},
      alls[] = {{"isdigit", 'd'}, {"isdecimal", 'd'}, {"isnumeric", 'd'}, {"isalpha", 'a'},
                {"isalnum", 'n'}, {"isspace", 's'},   {"isupper", 'u'},   {"islower", 'l'}},
      pads[] = {{"ljust", 'l'}, {"rjust", 'r'}, {"center", 'c'}, {"zfill", 'z'}};
    if (tpl_is(m, "split") || tpl_is(m, "rsplit")) return split(x, s, c, m[0] == 'r', v);
    if (tpl_is(m, "splitlines")) return split_lines(x, s, c, v);
    if (tpl_is(m, "strip")) return tpl_trim(x, s, true, true, tpl_arg_of(c, 0, NULL), v);
    if (tpl_is(m, "lstrip")) return tpl_trim(x, s, true, false, tpl_arg_of(c, 0, NULL), v);
    if (tpl_is(m, "rstrip")) return tpl_trim(x, s, false, true, tpl_arg_of(c, 0, NULL), v);
    if (tpl_is(m, "startswith") || tpl_is(m, "endswith")) return affix(x, s, c, m[0] == 'e', v);
    if (tpl_is(m, "removeprefix") || tpl_is(m, "removesuffix"))
        return remove_affix(x, s, c, m[6] == 's', v);
    if (tpl_is(m, "find") || tpl_is(m, "rfind")) return find(x, s, c, m[0] == 'r', false, v);
    if (tpl_is(m, "index")) return find(x, s, c, false, true, v);
    if (tpl_is(m, "count")) return count(x, s, c, v);
    if (tpl_is(m, "partition") || tpl_is(m, "rpartition"))
        return partition(x, s, c, m[0] == 'r', v);
    if (tpl_is(m, "replace")) return replace_method(x, s, c, v);
    if (tpl_is(m, "format")) return format_method(x, s, c, v);
    if (tpl_is(m, "join")) return join_method(x, s, c, v);
    for (size_t i = 0; i < MXD_COUNT(cases); i++)
        if (tpl_is(m, cases[i].name)) return tpl_case(x, s, cases[i].how, v);
    for (size_t i = 0; i < MXD_COUNT(alls); i++)
        if (tpl_is(m, alls[i].name)) return is_all(x, s, alls[i].how, v);
    for (size_t i = 0; i < MXD_COUNT(pads); i++)
        if (tpl_is(m, pads[i].name)) return justify(x, s, c, pads[i].how, v);
    return tpl_fail(x, MXD_E_UNSUPPORTED, "str.%.40s is not supported", m);
}

/* ---- methods of lists, dictionaries, loops ---- */

static const char *const changing[] = {"append",     "extend", "insert",  "remove",
                                       "pop",        "clear",  "sort",    "reverse",
                                       "setdefault", "update", "popitem", NULL};
static const char *const list_methods[] = {"index", "count", "copy", NULL};
static const char *const dict_methods[] = {"items", "keys", "values", "get", "copy", NULL};
static const char *const loop_methods[] = {"cycle", "changed", NULL};

static bool among(const char *const *list, const char *name) {
    for (; *list; list++)
        if (tpl_is(name, *list)) return true;
    return false;
}

bool tpl_has_method(tpl_val of, const char *name) {
    switch (of.kind) {
    case TPL_STR:
        return among(str_methods, name);
    case TPL_LIST:
        return among(list_methods, name) || (among(changing, name) && !(of.flags & TPL_TUPLE));
    case TPL_DICT:
        return among(dict_methods, name) ||
               (among(changing, name) && name[0] != 'a' && !tpl_is(name, "extend") &&
                !tpl_is(name, "insert") && !tpl_is(name, "remove") && !tpl_is(name, "sort") &&
                !tpl_is(name, "reverse"));
    case TPL_LOOP:
        return among(loop_methods, name);
    default:
        return false;
    }
}

static bool dict_method(tpl *x, tpl_dict *d, const char *m, const tpl_call *c, tpl_val *v) {
    if (tpl_is(m, "get")) {
        bool found;
        tpl_val got;
        if (!c->n_pos) return wrong(x, "get");
        TPL_TRY(tpl_dict_get(x, d, c->pos[0], &got, &found));
        *v = found ? got : c->n_pos > 1 ? c->pos[1] : tpl_none();
        return true;
    }
    if (tpl_is(m, "copy")) {
        *v = (tpl_val){.kind = TPL_DICT, .d = d};
        return true;
    }
    TPL_TRY(tpl_force_dict(x, d));
    bool pairs = tpl_is(m, "items");
    TPL_TRY(tpl_new_list(x, d->n,
                         (uint8_t)(TPL_VIEW | (pairs               ? TPL_TUPLE
                                               : tpl_is(m, "keys") ? TPL_KEYS
                                                                   : 0)),
                         v));
    for (size_t i = 0; i < d->n; i++) {
        tpl_val *to = &v->l->v[i];
        *to = tpl_is(m, "keys") ? d->keys[i] : d->vals[i];
        if (!pairs) continue;
        TPL_TRY(tpl_new_list(x, 2, TPL_TUPLE, to));
        to->l->v[0] = d->keys[i];
        to->l->v[1] = d->vals[i];
    }
    return true;
}

static bool list_method(tpl *x, tpl_val of, const char *m, const tpl_call *c, tpl_val *v) {
    int64_t n = 0;
    *v = of;
    if (tpl_is(m, "copy")) return true;
    if (c->n_pos != 1) return wrong(x, m);
    TPL_TRY(tpl_force_list(x, of.l));
    for (size_t i = 0; i < of.l->n; i++) {
        bool same;
        TPL_TRY(tpl_equal(x, of.l->v[i], c->pos[0], &same, 0));
        n += same;
        *v = tpl_int((int64_t)i);
        if (same && tpl_is(m, "index")) return true;
    }
    if (tpl_is(m, "index")) return tpl_fail(x, MXD_E_FORMAT, "value is not in list");
    *v = tpl_int(n);
    return true;
}

static bool loop_method(tpl *x, tpl_loop *l, const char *m, const tpl_call *c, tpl_val *v) {
    if (tpl_is(m, "cycle")) {
        if (!c->n_pos) return tpl_fail(x, MXD_E_FORMAT, "no items for cycling given");
        *v = c->pos[l->at % c->n_pos];
        return true;
    }
    tpl_val now;
    bool same = false;
    TPL_TRY(tpl_new_list(x, c->n_pos, TPL_TUPLE, &now));
    for (size_t i = 0; i < c->n_pos; i++) now.l->v[i] = c->pos[i];
    if (l->has_changed) TPL_TRY(tpl_equal(x, now, l->changed, &same, 0));
    l->changed = now;
    l->has_changed = true;
    *v = tpl_bool(!same);
    return true;
}

bool tpl_call_method(tpl *x, tpl_val of, const char *m, const tpl_call *c, tpl_val *v) {
    if (of.kind == TPL_STR) return str_method(x, of.s, m, c, v);
    if (among(changing, m))
        return tpl_fail(x, MXD_E_FORMAT, "access to attribute '%.40s' of '%s' object is unsafe", m,
                        tpl_type_name(of));
    if (of.kind == TPL_DICT) return dict_method(x, of.d, m, c, v);
    if (of.kind == TPL_LIST) return list_method(x, of, m, c, v);
    if (of.kind == TPL_LOOP) return loop_method(x, of.loop, m, c, v);
    return wrong(x, m);
}

/* ---- global functions ---- */

static bool range(tpl *x, const tpl_call *c, tpl_val *v) {
    int64_t a[3] = {0, 0, 1}, count = 0;
    if (!c->n_pos || c->n_pos > 3) return wrong(x, "range");
    for (size_t i = 0; i < c->n_pos; i++)
        if (!tpl_integer(c->pos[i], &a[c->n_pos == 1 ? 1 : i])) return wrong(x, "range");
    if (!a[2]) return tpl_fail(x, MXD_E_FORMAT, "range() step must not be zero");
    if (a[2] > 0 && a[1] > a[0])
        count = (int64_t)(((uint64_t)a[1] - (uint64_t)a[0] - 1) / (uint64_t)a[2]);
    else if (a[2] < 0 && a[0] > a[1])
        count = (int64_t)(((uint64_t)a[0] - (uint64_t)a[1] - 1) / (0 - (uint64_t)a[2]));
    else
        count = -1;
    if (count < -1 || count >= MXD_TEMPLATE_MAX_RANGE)
        return tpl_fail(x, MXD_E_TOOBIG, "a range of more than %d items", MXD_TEMPLATE_MAX_RANGE);
    TPL_TRY(tpl_new_list(x, (size_t)(count + 1), 0, v));
    for (int64_t i = 0; i <= count; i++) v->l->v[i] = tpl_int(a[0] + i * a[2]);
    return true;
}

static bool make_namespace(tpl *x, const tpl_call *c, tpl_val *v) {
    tpl_scope *s = tpl_take(x, sizeof *s);
    TPL_TRY(s);
    *v = (tpl_val){.kind = TPL_NS, .ns = s};
    if (c->n_pos && c->pos[0].kind == TPL_DICT) {
        tpl_dict *d = c->pos[0].d;
        TPL_TRY(tpl_force_dict(x, d));
        for (size_t i = 0; i < d->n; i++) {
            if (d->keys[i].kind != TPL_STR) return wrong(x, "namespace");
            char *name = tpl_take(x, d->keys[i].s->n + 1u);
            TPL_TRY(name);
            memcpy(name, d->keys[i].s->p, d->keys[i].s->n);
            TPL_TRY(tpl_set_var(x, s, name, d->vals[i]));
        }
    } else if (c->n_pos) {
        return wrong(x, "namespace");
    }
    for (size_t i = 0; i < c->n_named; i++) {
        if (c->names[i][0] == '_') return wrong(x, "namespace");
        TPL_TRY(tpl_set_var(x, s, c->names[i], c->named[i]));
    }
    return true;
}

static bool make_dict(tpl *x, const tpl_call *c, tpl_val *v) {
    tpl_dict *d = tpl_take(x, sizeof *d), *from = NULL;
    TPL_TRY(d);
    if (c->n_pos) {
        if (c->n_pos > 1 || c->pos[0].kind != TPL_DICT) return wrong(x, "dict");
        from = c->pos[0].d;
        TPL_TRY(tpl_force_dict(x, from));
    }
    size_t base = from ? from->n : 0, cap = base + c->n_named + 1;
    *d = (tpl_dict){.n = base, .keys = tpl_take(x, cap * sizeof *d->keys)};
    d->vals = tpl_take(x, cap * sizeof *d->vals);
    TPL_TRY(d->keys && d->vals);
    for (size_t i = 0; i < base; i++) {
        d->keys[i] = from->keys[i];
        d->vals[i] = from->vals[i];
    }
    for (size_t i = 0; i < c->n_named; i++) {
        size_t at = 0;
        tpl_val key;
        bool same = false;
        TPL_TRY(tpl_new_str(x, c->names[i], strlen(c->names[i]), true, &key));
        for (; at < d->n; at++) {
            TPL_TRY(tpl_equal(x, d->keys[at], key, &same, 0));
            if (same) break;
        }
        if (at == d->n) d->keys[d->n++] = key;
        d->vals[at] = c->named[i];
    }
    *v = (tpl_val){.kind = TPL_DICT, .d = d};
    return true;
}

static bool raise_exception(tpl *x, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    (void)v;
    TPL_TRY(tpl_str_of(x, tpl_arg_of(c, 0, "message"), &s));
    return tpl_fail(x, MXD_E_INVAL, "%.*s", (int)(s->n < 380 ? s->n : 380), s->p);
}

static bool strftime_now(tpl *x, const tpl_call *c, tpl_val *v) {
    tpl_val f = tpl_arg_of(c, 0, "format");
    char format[128], text[512];
    struct tm tm;
    time_t t = (time_t)x->now;
    if (f.kind != TPL_STR || f.s->n >= sizeof format) return wrong(x, "strftime_now");
    memcpy(format, f.s->p, f.s->n);
    format[f.s->n] = 0;
    if (!localtime_r(&t, &tm)) return tpl_fail(x, MXD_E_FORMAT, "strftime_now: no such time");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    size_t n = strftime(text, sizeof text, format, &tm);
#pragma GCC diagnostic pop
    tpl_out o = {0};
    return tpl_out_put(x, &o, text, n, tpl_all_trusted(f.s)) && tpl_out_done(x, &o, v);
}

static const struct {
    const char *name;
    bool (*run)(tpl *, const tpl_call *, tpl_val *);
} globals[] = {{"range", range},
               {"namespace", make_namespace},
               {"dict", make_dict},
               {"raise_exception", raise_exception},
               {"strftime_now", strftime_now}};

bool tpl_has_global(const char *name) {
    for (size_t i = 0; i < MXD_COUNT(globals); i++)
        if (tpl_is(name, globals[i].name)) return true;
    return false;
}

bool tpl_call_global(tpl *x, const char *name, const tpl_call *c, tpl_val *v) {
    for (size_t i = 0; i < MXD_COUNT(globals); i++)
        if (tpl_is(name, globals[i].name)) return globals[i].run(x, c, v);
    return wrong(x, name);
}
