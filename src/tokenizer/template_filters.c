#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "formats/json.h"
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

typedef bool (*filter_fn)(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v);

static bool wrong(tpl *x, const char *what) { return tpl_fail(x, MXD_E_FORMAT, "filter %s", what); }

static bool absent(tpl_val v) { return v.kind == TPL_UNDEF; }

/* ---- text ---- */

static bool f_string(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    (void)c;
    TPL_TRY(tpl_str_of(x, in, &s));
    *v = (tpl_val){.kind = TPL_STR, .s = s};
    return true;
}

static bool f_trim(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    return tpl_str_of(x, in, &s) && tpl_trim(x, s, true, true, tpl_arg_of(c, 0, "chars"), v);
}

static bool change_case(tpl *x, tpl_val in, char how, tpl_val *v) {
    const tpl_str *s;
    return tpl_str_of(x, in, &s) && tpl_case(x, s, how, v);
}

static bool f_upper(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    (void)c;
    return change_case(x, in, 'u', v);
}

static bool f_lower(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    (void)c;
    return change_case(x, in, 'l', v);
}

static bool f_capitalize(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    (void)c;
    return change_case(x, in, 'c', v);
}

static bool f_title(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    (void)c;
    return change_case(x, in, 'T', v);
}

static bool f_replace(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s, *from, *to;
    tpl_val limit = tpl_arg_of(c, 2, "count");
    int64_t max = -1;
    if (limit.kind != TPL_UNDEF && limit.kind != TPL_NONE && !tpl_integer(limit, &max))
        return wrong(x, "replace: count must be an integer");
    TPL_TRY(tpl_str_of(x, in, &s));
    TPL_TRY(tpl_str_of(x, tpl_arg_of(c, 0, "old"), &from));
    TPL_TRY(tpl_str_of(x, tpl_arg_of(c, 1, "new"), &to));
    return tpl_replace(x, s, from, to, max, v);
}

static bool f_escape(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    static const char plain[] = "&<>'\"";
    static const char *const named[] = {"&amp;", "&lt;", "&gt;", "&#39;", "&#34;"};
    const tpl_str *s;
    tpl_out o = {0};
    (void)c;
    TPL_TRY(tpl_str_of(x, in, &s));
    bool trusted = tpl_all_trusted(s);
    TPL_TRY(tpl_spend(x, s->n / 16));
    for (size_t i = 0; i < s->n; i++) {
        const char *at = s->p[i] ? strchr(plain, s->p[i]) : NULL;
        const char *text = at ? named[at - plain] : s->p + i;
        TPL_TRY(tpl_out_put(x, &o, text, at ? strlen(text) : 1, trusted));
    }
    return tpl_out_done(x, &o, v);
}

static bool f_indent(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    tpl_val width = tpl_arg_of(c, 0, "width");
    bool first = tpl_truth(tpl_arg_of(c, 1, "first")), blank = tpl_truth(tpl_arg_of(c, 2, "blank"));
    char spaces[256];
    const char *pad = spaces;
    int64_t n = 4;
    tpl_out o = {0};
    if (in.kind != TPL_STR) return wrong(x, "indent: not a string");
    TPL_TRY(tpl_str_of(x, in, &s));
    if (width.kind == TPL_STR) {
        pad = width.s->p;
        n = width.s->n;
    } else if (!absent(width) && (!tpl_integer(width, &n) || n > (int64_t)sizeof spaces)) {
        return wrong(x, "indent: width must be an integer of at most 256");
    }
    if (n < 0) n = 0;
    if (pad == spaces) memset(spaces, ' ', sizeof spaces);
    for (size_t at = 0, line = 0;; line++) { /* of all kinds of line ends, \n remains */
        size_t e = at, end = 0;
        tpl_val part;
        while (e < s->n && !(end = tpl_line_end(s->p + e, s->n - e))) e++;
        if (line ? blank || e > at : first) TPL_TRY(tpl_out_put(x, &o, pad, (size_t)n, true));
        TPL_TRY(tpl_sub(x, s, at, e, &part));
        TPL_TRY(tpl_out_str(x, &o, part.s));
        if (!end) break;
        TPL_TRY(tpl_sub(x, s, e, e + end, &part));
        TPL_TRY(tpl_out_put(x, &o, "\n", 1, part.s->trusted && !part.s->n_runs));
        at = e + end;
    }
    return tpl_out_done(x, &o, v);
}

static bool f_center(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val width = tpl_arg_of(c, 0, "width");
    const tpl_str *s;
    TPL_TRY(tpl_str_of(x, in, &s));
    if (absent(width)) width = tpl_int(80);
    tpl_call inner = {.pos = &width, .n_pos = 1};
    return tpl_call_method(x, (tpl_val){.kind = TPL_STR, .s = s}, "center", &inner, v);
}

static bool f_wordcount(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    int64_t words = 0;
    bool inside = false;
    (void)c;
    TPL_TRY(tpl_str_of(x, in, &s));
    for (size_t i = 0; i < s->n;) {
        uint32_t cp = 0;
        int k = mxd_utf8_next(s->p + i, s->n - i, &cp);
        bool word = k > 0 && tpl_is_word(cp);
        words += word && !inside;
        inside = word;
        i += k > 0 ? (size_t)k : 1;
    }
    *v = tpl_int(words);
    return true;
}

static bool f_truncate(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s, *end;
    int64_t length = 255, leeway = 5;
    tpl_val n = tpl_arg_of(c, 0, "length"), e = tpl_arg_of(c, 2, "end"),
            l = tpl_arg_of(c, 3, "leeway");
    tpl_val part;
    static const tpl_str dots = {.p = "...", .n = 3, .trusted = true};
    TPL_TRY(tpl_str_of(x, in, &s));
    end = &dots;
    if (!absent(e)) TPL_TRY(tpl_str_of(x, e, &end));
    if (!absent(n) && !tpl_integer(n, &length)) return wrong(x, "truncate: length");
    if (!absent(l) && l.kind != TPL_NONE && !tpl_integer(l, &leeway))
        return wrong(x, "truncate: leeway");
    int64_t have = (int64_t)tpl_length(s), keep = length - (int64_t)tpl_length(end);
    if (keep < 0) return wrong(x, "truncate: length is shorter than its end");
    *v = (tpl_val){.kind = TPL_STR, .s = s};
    if (have <= length + leeway) return true;
    size_t cut = tpl_offset(s, (size_t)keep);
    if (!tpl_truth(tpl_arg_of(c, 1, "killwords"))) {
        size_t space = cut;
        while (space && s->p[space - 1] != ' ') space--;
        if (space) cut = space - 1;
    }
    return tpl_sub(x, s, 0, cut, &part) && tpl_concat(x, part.s, end, v);
}

/* ---- printf-like ---- */

static bool put_number(tpl *x, tpl_out *o, const char *spec, char conv, tpl_val a) {
    char fmt[48], text[512];
    double f;
    int64_t i;
    if (!tpl_number(a, &f)) return wrong(x, "format: a number is needed");
    bool real = strchr("eEfFgG", conv) != NULL;
    i = a.kind == TPL_FLOAT ? (fabs(a.f) < 9e18 ? (int64_t)a.f : 0) : 0;
    if (a.kind != TPL_FLOAT) (void)tpl_integer(a, &i);
    snprintf(fmt, sizeof fmt, "%%%s%s%c", spec, real ? "" : "ll", conv == 'u' ? 'd' : conv);
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    int n =
        real ? snprintf(text, sizeof text, fmt, f) : snprintf(text, sizeof text, fmt, (long long)i);
#pragma GCC diagnostic pop
    if (n < 0 || n >= (int)sizeof text) return wrong(x, "format: too wide");
    return tpl_out_put(x, o, text, (size_t)n, true);
}

static bool put_padded(tpl *x, tpl_out *o, const char *spec, tpl_val a, bool repr) {
    tpl_out one = {0};
    TPL_TRY(repr ? tpl_repr(x, &one, a, 0) : tpl_print(x, &one, a));
    TPL_TRY(tpl_out_done(x, &one, &a));
    bool left = spec[0] == '-';
    const char *dot = strchr(spec, '.');
    long width = strtol(spec + left, NULL, 10);
    if (dot) TPL_TRY(tpl_sub(x, a.s, 0, tpl_offset(a.s, strtoul(dot + 1, NULL, 10)), &a));
    tpl_val w = tpl_int(width);
    tpl_call c = {.pos = &w, .n_pos = 1};
    TPL_TRY(tpl_call_method(x, a, left ? "ljust" : "rjust", &c, &a));
    return tpl_out_str(x, o, a.s);
}

static bool f_format(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    const tpl_str *s;
    tpl_out o = {0};
    size_t next = 0;
    TPL_TRY(tpl_str_of(x, in, &s));
    for (size_t i = 0; i < s->n;) {
        tpl_val part, a;
        size_t b = i;
        while (i < s->n && s->p[i] != '%') i++;
        if (i > b) TPL_TRY(tpl_sub(x, s, b, i, &part) && tpl_out_str(x, &o, part.s));
        if (i == s->n) break;
        char spec[24], name[40] = "";
        size_t k = 0, m = 0;
        if (++i < s->n && s->p[i] == '(') {
            for (i++; i < s->n && s->p[i] != ')' && m + 1 < sizeof name; i++) name[m++] = s->p[i];
            name[m] = 0;
            i++;
        }
        while (i < s->n && strchr("0123456789.+- #", s->p[i]) && s->p[i] && k + 1 < sizeof spec)
            spec[k++] = s->p[i++];
        spec[k] = 0;
        if (i >= s->n) return wrong(x, "format: incomplete format");
        char conv = s->p[i++];
        if (conv == '%') {
            TPL_TRY(tpl_out_put(x, &o, "%", 1, true));
            continue;
        }
        if (m && c->n_pos == 1 && c->pos[0].kind == TPL_DICT) {
            tpl_val key;
            TPL_TRY(tpl_new_str(x, name, m, true, &key) && tpl_item(x, c->pos[0], key, &a));
        } else {
            a = m ? tpl_arg_of(c, SIZE_MAX, name) : tpl_arg_of(c, next++, NULL);
            if (m ? absent(a) : next > c->n_pos) return wrong(x, "format: not enough arguments");
        }
        if (conv == 's' || conv == 'r')
            TPL_TRY(put_padded(x, &o, spec, a, conv == 'r'));
        else if (conv && strchr("diuxXoeEfFgG", conv))
            TPL_TRY(put_number(x, &o, spec, conv, a));
        else
            return wrong(x, "format: unknown conversion");
    }
    if (!c->n_named && next < c->n_pos && !(c->n_pos == 1 && c->pos[0].kind == TPL_DICT))
        return wrong(x, "format: not all arguments converted");
    return tpl_out_done(x, &o, v);
}

/* ---- numbers ---- */

static bool f_int(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val other = tpl_arg_of(c, 0, "default"), base = tpl_arg_of(c, 1, "base");
    int64_t radix, i;
    if (!tpl_integer(base, &radix)) radix = 10;
    *v = absent(other) ? tpl_int(0) : other;
    if (tpl_integer(in, &i)) *v = tpl_int(i);
    if (in.kind == TPL_FLOAT && fabs(in.f) < 9.2e18) *v = tpl_int((int64_t)in.f);
    if (in.kind != TPL_STR || in.s->n > 60) return true;
    char text[64], *end;
    tpl_val t;
    TPL_TRY(tpl_trim(x, in.s, true, true, tpl_none(), &t));
    memcpy(text, t.s->p, t.s->n);
    text[t.s->n] = 0;
    errno = 0;
    i = radix >= 2 && radix <= 36 ? strtoll(text, &end, (int)radix) : 0;
    if (radix >= 2 && radix <= 36 && t.s->n && !*end && !errno) {
        *v = tpl_int(i);
        return true;
    }
    double f = strtod(text, &end);
    if (t.s->n && !*end && fabs(f) < 9.2e18) *v = tpl_int((int64_t)f);
    return true;
}

static bool f_float(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val other = tpl_arg_of(c, 0, "default");
    double f;
    *v = absent(other) ? tpl_float(0) : other;
    if (tpl_number(in, &f)) *v = tpl_float(f);
    if (in.kind != TPL_STR || in.s->n > 400) return true;
    char text[404], *end;
    tpl_val t;
    TPL_TRY(tpl_trim(x, in.s, true, true, tpl_none(), &t));
    memcpy(text, t.s->p, t.s->n);
    text[t.s->n] = 0;
    f = strtod(text, &end);
    if (t.s->n && !*end && !strpbrk(text, "xX(")) *v = tpl_float(f);
    return true;
}

static bool f_abs(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    int64_t i;
    (void)c;
    if (in.kind == TPL_FLOAT) return (*v = tpl_float(fabs(in.f)), true);
    if (!tpl_integer(in, &i)) return wrong(x, "abs: a number is needed");
    return i < 0 ? tpl_binary(x, '-', tpl_int(0), in, v) : (*v = tpl_int(i), true);
}

static bool f_round(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val p = tpl_arg_of(c, 0, "precision"), how = tpl_arg_of(c, 1, "method");
    int64_t digits = 0;
    double f;
    char text[400];
    if (!tpl_number(in, &f)) return wrong(x, "round: a number is needed");
    if (!absent(p) && !tpl_integer(p, &digits)) return wrong(x, "round: precision");
    if (digits > 300 || digits < -300) return wrong(x, "round: precision");
    double scale = pow(10, (double)digits);
    if (how.kind == TPL_STR && how.s->n == 4 && memcmp(how.s->p, "ceil", 4) == 0)
        f = ceil(f * scale) / scale;
    else if (how.kind == TPL_STR && how.s->n == 5 && memcmp(how.s->p, "floor", 5) == 0)
        f = floor(f * scale) / scale;
    else if (how.kind != TPL_UNDEF && !(how.kind == TPL_STR && how.s->n == 6))
        return wrong(x, "round: method must be common, ceil or floor");
    else if (digits < 0)
        f = nearbyint(f * scale) / scale;
    else if (isfinite(f)) { /* printf rounds the exact binary value, as Python does */
        snprintf(text, sizeof text, "%.*f", (int)digits, f);
        f = strtod(text, NULL);
    }
    *v = in.kind == TPL_FLOAT || how.kind == TPL_STR ? tpl_float(f) : in;
    return true;
}

/* ---- sequences ---- */

static bool f_length(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    (void)c;
    if (in.kind == TPL_STR)
        *v = tpl_int((int64_t)tpl_length(in.s));
    else if (in.kind == TPL_LIST && !(in.flags & TPL_GEN))
        *v = tpl_int((int64_t)in.l->n);
    else if (in.kind == TPL_DICT)
        *v = tpl_int((int64_t)in.d->n);
    else if (in.kind == TPL_UNDEF)
        *v = tpl_int(0);
    else
        return tpl_fail(x, MXD_E_FORMAT, "object of type '%s' has no len()", tpl_type_name(in));
    return tpl_spend(x, in.kind == TPL_STR ? in.s->n / 64 : 0);
}

static bool f_default(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val other = tpl_arg_of(c, 0, "default_value");
    bool falsy = tpl_truth(tpl_arg_of(c, 1, "boolean"));
    *v = in;
    if (in.kind != TPL_UNDEF && !(falsy && !tpl_truth(in))) return true;
    *v = other;
    return !absent(other) || c->n_pos || tpl_new_str(x, "", 0, true, v);
}

static bool f_list(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items;
    size_t n;
    (void)c;
    TPL_TRY(tpl_items(x, in, &items, &n));
    TPL_TRY(tpl_new_list(x, n, 0, v));
    if (n) memcpy(v->l->v, items, n * sizeof *items);
    return true;
}

static bool f_first(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items;
    size_t n;
    (void)c;
    TPL_TRY(tpl_items(x, in, &items, &n));
    *v = n ? items[0] : tpl_undef("no first item, sequence was empty");
    return true;
}

static bool f_last(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items;
    size_t n;
    (void)c;
    if (in.kind == TPL_LIST && in.flags & TPL_GEN) return wrong(x, "last: not a sequence");
    TPL_TRY(tpl_items(x, in, &items, &n));
    *v = n ? items[n - 1] : tpl_undef("no last item, sequence was empty");
    return true;
}

static bool f_reverse(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    TPL_TRY(f_list(x, in, c, v));
    for (size_t i = 0; i < v->l->n / 2; i++) {
        tpl_val t = v->l->v[i];
        v->l->v[i] = v->l->v[v->l->n - 1 - i];
        v->l->v[v->l->n - 1 - i] = t;
    }
    static const tpl_str none = {.p = "", .trusted = true};
    if (in.kind == TPL_STR) return tpl_join(x, v->l->v, v->l->n, &none, v);
    v->flags = TPL_GEN;
    return true;
}

/* item.a.0.b for "a.0.b", as make_attrgetter does */
static bool attr_path(tpl *x, tpl_val of, tpl_val path, tpl_val *v) {
    if (path.kind != TPL_STR) return tpl_item(x, of, path, v);
    const tpl_str *s = path.s;
    *v = of;
    for (size_t at = 0; at <= s->n;) {
        const char *dot = at < s->n ? memchr(s->p + at, '.', s->n - at) : NULL;
        size_t e = dot ? (size_t)(dot - s->p) : s->n;
        tpl_val key, in = *v;
        bool digits = e > at && e - at < 10;
        int64_t i = 0;
        for (size_t k = at; k < e && digits; k++) {
            digits = s->p[k] >= '0' && s->p[k] <= '9';
            i = i * 10 + (s->p[k] - '0');
        }
        if (digits)
            key = tpl_int(i);
        else
            TPL_TRY(tpl_sub(x, s, at, e, &key));
        TPL_TRY(tpl_item(x, in, key, v));
        at = e + 1;
        if (!dot) break;
    }
    return true;
}

static bool f_attr(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val name = tpl_arg_of(c, 0, "name");
    if (name.kind != TPL_STR) return wrong(x, "attr: a name is needed");
    if (in.kind == TPL_DICT) return (*v = tpl_undef("attribute"), true); /* attributes only */
    return tpl_item(x, in, name, v);
}

static bool f_join(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    static const tpl_str none = {.p = "", .trusted = true};
    const tpl_str *sep = &none;
    tpl_val d = tpl_arg_of(c, 0, "d"), attribute = tpl_arg_of(c, 1, "attribute"), *items, list;
    size_t n;
    if (!absent(d)) TPL_TRY(tpl_str_of(x, d, &sep));
    TPL_TRY(tpl_items(x, in, &items, &n));
    if (absent(attribute) || attribute.kind == TPL_NONE) return tpl_join(x, items, n, sep, v);
    TPL_TRY(tpl_new_list(x, n, 0, &list));
    for (size_t i = 0; i < n; i++) TPL_TRY(attr_path(x, items[i], attribute, &list.l->v[i]));
    return tpl_join(x, list.l->v, n, sep, v);
}

static bool f_items(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_call none = {0};
    (void)c;
    if (in.kind == TPL_UNDEF) return tpl_new_list(x, 0, TPL_GEN, v);
    if (in.kind != TPL_DICT)
        return tpl_fail(x, MXD_E_FORMAT, "Can only get item pairs from a mapping.");
    TPL_TRY(tpl_call_method(x, in, "items", &none, v));
    v->flags = TPL_GEN;
    return true;
}

/* select, reject, selectattr, rejectattr */
static bool choose(tpl *x, tpl_val in, const tpl_call *c, bool by_attr, bool want, tpl_val *v) {
    tpl_val *items;
    size_t n, k = 0, used = by_attr ? 1 : 0;
    if (by_attr && !c->n_pos) return wrong(x, "selectattr: an attribute is needed");
    TPL_TRY(tpl_items(x, in, &items, &n));
    TPL_TRY(tpl_new_list(x, n, TPL_GEN, v));
    char test[64] = "";
    if (c->n_pos > used) {
        if (c->pos[used].kind != TPL_STR || c->pos[used].s->n >= sizeof test)
            return wrong(x, "select: the name of a test is needed");
        memcpy(test, c->pos[used].s->p, c->pos[used].s->n);
        used++;
    }
    tpl_call inner = {.pos = c->pos ? c->pos + used : NULL,
                      .n_pos = c->n_pos > used ? c->n_pos - used : 0};
    for (size_t i = 0; i < n; i++) {
        tpl_val a = items[i];
        TPL_TRY(tpl_spend(x, 1));
        if (by_attr) TPL_TRY(attr_path(x, items[i], c->pos[0], &a));
        bool yes = tpl_truth(a);
        if (test[0]) TPL_TRY(tpl_apply_test(x, test, a, &inner, &yes));
        if (yes == want) v->l->v[k++] = items[i];
    }
    v->l->n = k;
    return true;
}

static bool f_select(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return choose(x, in, c, false, true, v);
}
static bool f_reject(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return choose(x, in, c, false, false, v);
}
static bool f_selectattr(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return choose(x, in, c, true, true, v);
}
static bool f_rejectattr(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return choose(x, in, c, true, false, v);
}

static bool f_map(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items, attribute = tpl_arg_of(c, SIZE_MAX, "attribute");
    tpl_val other = tpl_arg_of(c, SIZE_MAX, "default");
    size_t n;
    char name[64] = "";
    TPL_TRY(tpl_items(x, in, &items, &n));
    TPL_TRY(tpl_new_list(x, n, TPL_GEN, v));
    if (absent(attribute)) {
        if (!c->n_pos || c->pos[0].kind != TPL_STR || c->pos[0].s->n >= sizeof name)
            return wrong(x, "map: the name of a filter is needed");
        memcpy(name, c->pos[0].s->p, c->pos[0].s->n);
    }
    tpl_call inner = *c;
    if (inner.n_pos) {
        inner.pos++;
        inner.n_pos--;
    }
    for (size_t i = 0; i < n; i++) {
        tpl_val *to = &v->l->v[i];
        TPL_TRY(tpl_spend(x, 1));
        if (name[0])
            TPL_TRY(tpl_apply_filter(x, name, items[i], &inner, to));
        else
            TPL_TRY(attr_path(x, items[i], attribute, to));
        if (to->kind == TPL_UNDEF && !absent(other)) *to = other;
    }
    return true;
}

/* ---- ordering ---- */

typedef struct keyed {
    tpl_val key, item;
} keyed;

/* Lower case unless case matters. */
static bool sort_key(tpl *x, tpl_val a, bool case_sensitive, tpl_val *key) {
    *key = a;
    return a.kind != TPL_STR || case_sensitive || tpl_case(x, a.s, 'l', key);
}

/* Merge sort, stable; `down` keeps equal items in their order, as Python's reverse does. */
static bool merge_sort(tpl *x, keyed *a, keyed *tmp, size_t n, bool down) {
    if (n < 2) return true;
    size_t h = n / 2, i = 0, j = h, k = 0;
    TPL_TRY(merge_sort(x, a, tmp, h, down));
    TPL_TRY(merge_sort(x, a + h, tmp, n - h, down));
    while (i < h && j < n) {
        int c;
        TPL_TRY(tpl_order(x, a[i].key, a[j].key, &c));
        tmp[k++] = (down ? c >= 0 : c <= 0) ? a[i++] : a[j++];
    }
    while (i < h) tmp[k++] = a[i++];
    while (j < n) tmp[k++] = a[j++];
    memcpy(a, tmp, n * sizeof *a);
    return true;
}

static bool sorted(tpl *x, tpl_val *items, size_t n, tpl_val attribute, bool case_sensitive,
                   bool down, tpl_val *v) {
    keyed *a = tpl_take(x, (n + 1) * sizeof *a), *tmp = tpl_take(x, (n + 1) * sizeof *tmp);
    TPL_TRY(a && tmp);
    for (size_t i = 0; i < n; i++) {
        tpl_val key = items[i];
        if (!absent(attribute) && attribute.kind != TPL_NONE)
            TPL_TRY(attr_path(x, items[i], attribute, &key));
        a[i].item = items[i];
        TPL_TRY(sort_key(x, key, case_sensitive, &a[i].key));
    }
    TPL_TRY(merge_sort(x, a, tmp, n, down));
    TPL_TRY(tpl_new_list(x, n, 0, v));
    for (size_t i = 0; i < n; i++) v->l->v[i] = a[i].item;
    return true;
}

static bool f_sort(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items;
    size_t n;
    TPL_TRY(tpl_items(x, in, &items, &n));
    return sorted(x, items, n, tpl_arg_of(c, 2, "attribute"),
                  tpl_truth(tpl_arg_of(c, 1, "case_sensitive")),
                  tpl_truth(tpl_arg_of(c, 0, "reverse")), v);
}

static bool f_dictsort(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val by = tpl_arg_of(c, 1, "by"), pairs;
    tpl_call none = {0};
    if (in.kind != TPL_DICT) return wrong(x, "dictsort: a mapping is needed");
    bool value = by.kind == TPL_STR && by.s->n == 5;
    TPL_TRY(tpl_call_method(x, in, "items", &none, &pairs));
    return sorted(x, pairs.l->v, pairs.l->n, tpl_int(value),
                  tpl_truth(tpl_arg_of(c, 0, "case_sensitive")),
                  tpl_truth(tpl_arg_of(c, 2, "reverse")), v);
}

static bool extreme(tpl *x, tpl_val in, const tpl_call *c, int sign, tpl_val *v) {
    tpl_val *items, best, attribute = tpl_arg_of(c, 1, "attribute");
    size_t n;
    bool exact = tpl_truth(tpl_arg_of(c, 0, "case_sensitive"));
    TPL_TRY(tpl_items(x, in, &items, &n));
    *v = tpl_undef("no aggregated item, sequence was empty");
    for (size_t i = 0; i < n; i++) {
        tpl_val key = items[i];
        int order = 0;
        if (!absent(attribute)) TPL_TRY(attr_path(x, items[i], attribute, &key));
        TPL_TRY(sort_key(x, key, exact, &key));
        if (i) TPL_TRY(tpl_order(x, key, best, &order));
        if (i && order * sign <= 0) continue;
        best = key;
        *v = items[i];
    }
    return true;
}

static bool f_max(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return extreme(x, in, c, 1, v);
}
static bool f_min(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    return extreme(x, in, c, -1, v);
}

static bool f_unique(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items, keys, attribute = tpl_arg_of(c, 1, "attribute");
    size_t n, k = 0;
    bool exact = tpl_truth(tpl_arg_of(c, 0, "case_sensitive"));
    TPL_TRY(tpl_items(x, in, &items, &n));
    TPL_TRY(tpl_new_list(x, n, TPL_GEN, v) && tpl_new_list(x, n, 0, &keys));
    for (size_t i = 0; i < n; i++) {
        tpl_val key = items[i];
        bool seen = false;
        if (!absent(attribute)) TPL_TRY(attr_path(x, items[i], attribute, &key));
        TPL_TRY(sort_key(x, key, exact, &key));
        for (size_t j = 0; j < k && !seen; j++) TPL_TRY(tpl_equal(x, keys.l->v[j], key, &seen, 0));
        if (seen) continue;
        keys.l->v[k] = key;
        v->l->v[k++] = items[i];
    }
    v->l->n = k;
    return true;
}

static bool f_sum(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val *items, attribute = tpl_arg_of(c, 0, "attribute"), start = tpl_arg_of(c, 1, "start");
    size_t n;
    TPL_TRY(tpl_items(x, in, &items, &n));
    *v = absent(start) ? tpl_int(0) : start;
    for (size_t i = 0; i < n; i++) {
        tpl_val a = items[i], s = *v;
        if (!absent(attribute) && attribute.kind != TPL_NONE)
            TPL_TRY(attr_path(x, items[i], attribute, &a));
        TPL_TRY(tpl_binary(x, '+', s, a, v));
    }
    return true;
}

static bool f_groupby(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    tpl_val attribute = tpl_arg_of(c, 0, "attribute"), *items, list;
    size_t n, k = 0, from = 0;
    bool exact = tpl_truth(tpl_arg_of(c, 2, "case_sensitive"));
    TPL_TRY(tpl_items(x, in, &items, &n));
    TPL_TRY(sorted(x, items, n, attribute, exact, false, &list));
    TPL_TRY(tpl_new_list(x, n, 0, v));
    for (size_t i = 0; i < n; i = from) {
        tpl_val first, key, pair, group;
        bool same = true;
        TPL_TRY(attr_path(x, list.l->v[i], attribute, &first));
        TPL_TRY(sort_key(x, first, exact, &key));
        for (from = i; from < n && same;) {
            tpl_val other;
            TPL_TRY(attr_path(x, list.l->v[from], attribute, &other));
            TPL_TRY(sort_key(x, other, exact, &other));
            TPL_TRY(tpl_equal(x, key, other, &same, 0));
            from += same;
        }
        TPL_TRY(tpl_new_list(x, from - i, 0, &group) && tpl_new_list(x, 2, TPL_TUPLE, &pair));
        memcpy(group.l->v, list.l->v + i, (from - i) * sizeof *group.l->v);
        pair.l->v[0] = first;
        pair.l->v[1] = group;
        v->l->v[k++] = pair;
    }
    v->l->n = k;
    return true;
}

static bool f_batch(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    int64_t size;
    tpl_val fill = tpl_arg_of(c, 1, "fill_with"), *items;
    size_t n;
    if (!tpl_integer(tpl_arg_of(c, 0, "linecount"), &size) || size < 1 ||
        size > MXD_TEMPLATE_MAX_RANGE)
        return wrong(x, "batch: a size is needed");
    TPL_TRY(tpl_items(x, in, &items, &n));
    size_t k = (size_t)size, rows = (n + k - 1) / k;
    TPL_TRY(tpl_new_list(x, rows, TPL_GEN, v));
    for (size_t r = 0; r < rows; r++) {
        bool pad = !absent(fill) && fill.kind != TPL_NONE;
        size_t have = n - r * k < k ? n - r * k : k, want = pad ? k : have;
        TPL_TRY(tpl_new_list(x, want, 0, &v->l->v[r]));
        for (size_t i = 0; i < want; i++) v->l->v[r].l->v[i] = i < have ? items[r * k + i] : fill;
    }
    return true;
}

static bool f_slice(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    int64_t slices;
    tpl_val fill = tpl_arg_of(c, 1, "fill_with"), *items;
    size_t n, at = 0;
    if (!tpl_integer(tpl_arg_of(c, 0, "slices"), &slices) || slices < 1 ||
        slices > MXD_TEMPLATE_MAX_RANGE)
        return wrong(x, "slice: a number of slices is needed");
    TPL_TRY(tpl_items(x, in, &items, &n));
    size_t k = (size_t)slices, each = n / k, longer = n % k;
    TPL_TRY(tpl_new_list(x, k, TPL_GEN, v));
    for (size_t r = 0; r < k; r++) {
        size_t have = each + (r < longer);
        bool pad = !absent(fill) && fill.kind != TPL_NONE && r >= longer;
        TPL_TRY(tpl_new_list(x, have + pad, 0, &v->l->v[r]));
        for (size_t i = 0; i < have; i++) v->l->v[r].l->v[i] = items[at++];
        if (pad) v->l->v[r].l->v[have] = fill;
    }
    return true;
}

/* ---- JSON ---- */

static bool f_tojson(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    /* transformers' tojson(x, ensure_ascii, indent, separators, sort_keys) */
    tpl_val ascii = tpl_arg_of(c, 0, "ensure_ascii"), indent = tpl_arg_of(c, 1, "indent");
    tpl_val separators = tpl_arg_of(c, 2, "separators"), sort = tpl_arg_of(c, 3, "sort_keys");
    tpl_json_style style = {.ascii = tpl_truth(ascii), .indent = -1, .sort = tpl_truth(sort)};
    int64_t n;
    if (tpl_integer(indent, &n)) {
        if (n > 64) return wrong(x, "tojson: indent is over 64");
        style.indent = n < 0 ? 0 : (int)n;
    }
    if (separators.kind == TPL_LIST) {
        TPL_TRY(tpl_force_list(x, separators.l));
        tpl_val *p = separators.l->v;
        if (separators.l->n != 2 || p[0].kind != TPL_STR || p[1].kind != TPL_STR)
            return wrong(x, "tojson: separators must be two strings");
        style.item_sep = p[0].s;
        style.key_sep = p[1].s;
    }
    if (in.kind == TPL_UNDEF) return wrong(x, "tojson: Undefined cannot be written as JSON");
    return tpl_to_json(x, in, &style, v);
}

/* A parsed value must live as long as the render, and jansson's does not: it is copied. */
static bool copy_json(tpl *x, const json_t *j, bool trusted, tpl_val *v) {
    TPL_TRY(tpl_spend(x, 1));
    if (json_is_string(j)) {
        tpl_out o = {0};
        return tpl_out_put(x, &o, json_string_value(j), json_string_length(j), trusted) &&
               tpl_out_done(x, &o, v);
    }
    if (json_is_array(j)) {
        TPL_TRY(tpl_new_list(x, json_array_size(j), 0, v));
        for (size_t i = 0; i < v->l->n; i++)
            TPL_TRY(copy_json(x, json_array_get(j, i), trusted, &v->l->v[i]));
        return true;
    }
    if (!json_is_object(j)) return tpl_from_json(x, j, trusted, v);
    size_t n = json_object_size(j), i = 0;
    tpl_dict *d = tpl_take(x, sizeof *d);
    TPL_TRY(d);
    *d = (tpl_dict){.n = n, .keys = tpl_take(x, (n + 1) * sizeof *d->keys)};
    d->vals = tpl_take(x, (n + 1) * sizeof *d->vals);
    TPL_TRY(d->keys && d->vals);
    void *it = json_object_iter((json_t *)j);
    for (; it; it = json_object_iter_next((json_t *)j, it), i++) {
        tpl_out o = {0};
        TPL_TRY(
            tpl_out_put(x, &o, json_object_iter_key(it), json_object_iter_key_len(it), trusted));
        TPL_TRY(tpl_out_done(x, &o, &d->keys[i]));
        TPL_TRY(copy_json(x, json_object_iter_value(it), trusted, &d->vals[i]));
    }
    *v = (tpl_val){.kind = TPL_DICT, .d = d};
    return true;
}

static bool f_from_json(tpl *x, tpl_val in, const tpl_call *c, tpl_val *v) {
    json_t *j = NULL;
    mxd_err err;
    (void)c;
    if (in.kind != TPL_STR) return wrong(x, "from_json: a string is needed");
    TPL_TRY(tpl_spend(x, in.s->n / 32));
    mxd_rc rc = mxd_json_parse(&j, in.s->p, in.s->n, &err);
    if (rc) return tpl_fail(x, MXD_E_FORMAT, "from_json: %.200s", err.msg);
    bool ok = copy_json(x, j, tpl_all_trusted(in.s), v);
    json_decref(j);
    return ok;
}

/* ---- the table ---- */

static const struct {
    const char *name;
    filter_fn run;
} table[] = {
    {"abs", f_abs},
    {"attr", f_attr},
    {"batch", f_batch},
    {"capitalize", f_capitalize},
    {"center", f_center},
    {"count", f_length},
    {"d", f_default},
    {"default", f_default},
    {"dictsort", f_dictsort},
    {"e", f_escape},
    {"escape", f_escape},
    {"first", f_first},
    {"float", f_float},
    {"format", f_format},
    {"from_json", f_from_json},
    {"fromjson", f_from_json},
    {"groupby", f_groupby},
    {"indent", f_indent},
    {"int", f_int},
    {"items", f_items},
    {"join", f_join},
    {"last", f_last},
    {"length", f_length},
    {"list", f_list},
    {"lower", f_lower},
    {"map", f_map},
    {"max", f_max},
    {"min", f_min},
    {"reject", f_reject},
    {"rejectattr", f_rejectattr},
    {"replace", f_replace},
    {"reverse", f_reverse},
    {"round", f_round},
    {"safe", f_string},
    {"select", f_select},
    {"selectattr", f_selectattr},
    {"slice", f_slice},
    {"sort", f_sort},
    {"string", f_string},
    {"sum", f_sum},
    {"title", f_title},
    {"tojson", f_tojson},
    {"trim", f_trim},
    {"truncate", f_truncate},
    {"unique", f_unique},
    {"upper", f_upper},
    {"wordcount", f_wordcount},
};

bool tpl_apply_filter(tpl *x, const char *name, tpl_val in, const tpl_call *c, tpl_val *v) {
    TPL_TRY(tpl_spend(x, 0));
    for (size_t i = 0; i < MXD_COUNT(table); i++)
        if (tpl_is(name, table[i].name)) return table[i].run(x, in, c, v);
    return tpl_fail(x, MXD_E_UNSUPPORTED, "no filter named '%.60s'", name);
}

bool tpl_has_filter(const char *name) {
    for (size_t i = 0; i < MXD_COUNT(table); i++)
        if (tpl_is(name, table[i].name)) return true;
    return false;
}
