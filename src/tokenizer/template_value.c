#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <utf8proc.h>
#include "base/clock.h"
#include "formats/json.h"
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

/* ---- memory ---- */

struct tpl_chunk {
    tpl_chunk *next;
    size_t bytes;
};

enum { CHUNK = 64 << 10, MAX_REPR_DEPTH = 100 };

void *tpl_mem_take(tpl_mem *m, size_t n, size_t align) {
    size_t pad = m->top ? (size_t)(-(uintptr_t)m->top & (align - 1)) : 0;
    if (!m->top || n > (size_t)(m->end - m->top) || pad > (size_t)(m->end - m->top) - n) {
        size_t bytes = sizeof(tpl_chunk) + 16 + (n > CHUNK ? n + n / 2 : CHUNK);
        if (n > m->max || bytes > m->max - m->total) return NULL;
        tpl_chunk *c = mxd_new(m->al, bytes, 1);
        if (!c) return NULL;
        *c = (tpl_chunk){m->chunks, bytes};
        m->chunks = c;
        m->total += bytes;
        m->top = (char *)c + ((sizeof *c + 15) & ~(size_t)15);
        m->end = (char *)c + bytes;
        pad = 0;
    }
    char *p = m->top + pad;
    m->top = p + n;
    return p;
}

bool tpl_mem_extend(tpl_mem *m, const char *p, size_t n, size_t more) {
    if (!m->top || p + n != m->top || more > (size_t)(m->end - m->top)) return false;
    m->top += more;
    return true;
}

void tpl_mem_deinit(tpl_mem *m) {
    while (m->chunks) {
        tpl_chunk *c = m->chunks;
        m->chunks = c->next;
        mxd_free(m->al, c);
    }
    m->top = m->end = NULL;
    m->total = 0;
}

bool tpl_fail(tpl *x, mxd_rc rc, const char *fmt, ...) {
    if (x->rc) return false;
    char what[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (rc == MXD_E_INVAL)
        x->rc = mxd_fail(x->err, rc, "%s", what); /* raise_exception: the template's own words */
    else
        x->rc = mxd_fail(x->err, rc, "chat template, line %d: %s", x->line, what);
    return false;
}

bool tpl_spend(tpl *x, size_t n) {
    if (n > MXD_TEMPLATE_MAX_STEPS) n = MXD_TEMPLATE_MAX_STEPS;
    x->steps += (int64_t)n + 1;
    if (x->steps > MXD_TEMPLATE_MAX_STEPS)
        return tpl_fail(x, MXD_E_TOOBIG, "more than %d steps", MXD_TEMPLATE_MAX_STEPS);
    if (x->steps < x->next_look) return true;
    x->next_look = x->steps + 500;
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    if ((int64_t)t.tv_sec * 1000000000 + t.tv_nsec > x->deadline_ns)
        return tpl_fail(x, MXD_E_TOOBIG, "takes longer than 100 ms");
    return true;
}

static void *taken(tpl *x, tpl_mem *m, void *p, size_t n) {
    if (p) return p;
    if (n > m->max || m->max - m->total < 2 * n + CHUNK)
        tpl_fail(x, MXD_E_TOOBIG, "needs too much memory");
    else if (!x->rc)
        x->rc = mxd_fail(x->err, MXD_E_NOMEM, "no memory for the chat template");
    return NULL;
}

void *tpl_take(tpl *x, size_t n) {
    return taken(x, &x->objects, tpl_mem_take(&x->objects, n, 16), n);
}

static char *take_text(tpl *x, size_t n) {
    if (!tpl_spend(x, n / 256)) return NULL;
    return taken(x, &x->text, tpl_mem_take(&x->text, n, 1), n);
}

/* ---- strings ---- */

static bool add_run(tpl *x, tpl_out *o, size_t end, bool trusted) {
    if (o->n_runs && o->runs[o->n_runs - 1].trusted == trusted) {
        o->runs[o->n_runs - 1].end = (uint32_t)end;
        return true;
    }
    if (o->n_runs == o->cap_runs) {
        size_t cap = o->cap_runs ? o->cap_runs * 2 : 4;
        tpl_run *more = tpl_take(x, cap * sizeof *more);
        TPL_TRY(more);
        if (o->n_runs) memcpy(more, o->runs, o->n_runs * sizeof *more);
        o->runs = more;
        o->cap_runs = cap;
    }
    o->runs[o->n_runs++] = (tpl_run){(uint32_t)end, trusted};
    return true;
}

bool tpl_out_put(tpl *x, tpl_out *o, const char *s, size_t n, bool trusted) {
    if (!n) return true;
    TPL_TRY(tpl_spend(x, n / 256));
    if (n > MXD_TEMPLATE_MAX_OUTPUT - o->n)
        return tpl_fail(x, MXD_E_TOOBIG, "text of more than %d bytes", MXD_TEMPLATE_MAX_OUTPUT);
    if (o->n + n > o->cap) {
        size_t cap = o->cap ? o->cap * 2 : 64;
        while (cap < o->n + n) cap *= 2;
        if (o->p && tpl_mem_extend(&x->text, o->p, o->cap, cap - o->cap)) {
            o->cap = cap;
        } else {
            char *more = take_text(x, cap);
            TPL_TRY(more);
            if (o->n) memcpy(more, o->p, o->n);
            o->p = more;
            o->cap = cap;
        }
    }
    memcpy(o->p + o->n, s, n);
    o->n += n;
    return add_run(x, o, o->n, trusted);
}

bool tpl_out_str(tpl *x, tpl_out *o, const tpl_str *s) {
    if (!s->n_runs) return tpl_out_put(x, o, s->p, s->n, s->trusted);
    uint32_t from = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        TPL_TRY(tpl_out_put(x, o, s->p + from, s->runs[i].end - from, s->runs[i].trusted));
        from = s->runs[i].end;
    }
    return true;
}

bool tpl_out_done(tpl *x, const tpl_out *o, tpl_val *v) {
    tpl_str *s = tpl_take(x, sizeof *s);
    TPL_TRY(s);
    *s = (tpl_str){.p = o->n ? o->p : "", .n = (uint32_t)o->n, .trusted = true};
    if (o->n_runs == 1) s->trusted = o->runs[0].trusted;
    if (o->n_runs > 1) {
        s->runs = o->runs;
        s->n_runs = (uint32_t)o->n_runs;
    }
    *v = (tpl_val){.kind = TPL_STR, .s = s};
    return true;
}

bool tpl_new_str(tpl *x, const char *s, size_t n, bool trusted, tpl_val *v) {
    tpl_str *t = tpl_take(x, sizeof *t);
    TPL_TRY(t);
    *t = (tpl_str){.p = s, .n = (uint32_t)n, .trusted = trusted};
    *v = (tpl_val){.kind = TPL_STR, .s = t};
    return true;
}

bool tpl_sub(tpl *x, const tpl_str *s, size_t from, size_t to, tpl_val *v) {
    tpl_str *t = tpl_take(x, sizeof *t);
    TPL_TRY(t);
    if (to < from) to = from;
    *t = (tpl_str){.p = s->p + from, .n = (uint32_t)(to - from), .trusted = s->trusted};
    *v = (tpl_val){.kind = TPL_STR, .s = t};
    if (!s->n_runs) return true;
    TPL_TRY(tpl_spend(x, s->n_runs / 16));
    tpl_out o = {0};
    uint32_t begin = 0;
    for (uint32_t i = 0; i < s->n_runs && begin < to; begin = s->runs[i++].end) {
        uint32_t end = s->runs[i].end < to ? s->runs[i].end : (uint32_t)to;
        if (end > from) TPL_TRY(add_run(x, &o, end - from, s->runs[i].trusted));
    }
    t->trusted = o.n_runs ? o.runs[0].trusted : true;
    t->runs = o.n_runs > 1 ? o.runs : NULL;
    t->n_runs = o.n_runs > 1 ? (uint32_t)o.n_runs : 0;
    return true;
}

bool tpl_concat(tpl *x, const tpl_str *a, const tpl_str *b, tpl_val *v) {
    tpl_out o = {0};
    size_t n = (size_t)a->n + b->n;
    if (n > MXD_TEMPLATE_MAX_OUTPUT)
        return tpl_fail(x, MXD_E_TOOBIG, "text of more than %d bytes", MXD_TEMPLATE_MAX_OUTPUT);
    char *p;
    if (a->n && tpl_mem_extend(&x->text, a->p, a->n, b->n)) {
        p = (char *)a->p; /* strings share bytes, and nothing was behind this one */
        TPL_TRY(tpl_spend(x, b->n / 256));
    } else {
        p = take_text(x, n);
        TPL_TRY(p);
        memcpy(p, a->p, a->n);
    }
    memcpy(p + a->n, b->p, b->n);
    o.p = p;
    o.n = n;
    const tpl_str *parts[] = {a, b};
    size_t base = 0;
    for (int k = 0; k < 2; base += parts[k++]->n) {
        const tpl_str *s = parts[k];
        TPL_TRY(tpl_spend(x, s->n_runs / 16));
        if (!s->n_runs && s->n) TPL_TRY(add_run(x, &o, base + s->n, s->trusted));
        for (uint32_t i = 0; i < s->n_runs; i++)
            TPL_TRY(add_run(x, &o, base + s->runs[i].end, s->runs[i].trusted));
    }
    return tpl_out_done(x, &o, v);
}

bool tpl_all_trusted(const tpl_str *s) {
    if (!s->n_runs) return s->trusted || !s->n;
    for (uint32_t i = 0; i < s->n_runs; i++)
        if (!s->runs[i].trusted) return false;
    return true;
}

size_t tpl_length(const tpl_str *s) {
    size_t n = 0;
    for (uint32_t i = 0; i < s->n; i++) n += ((unsigned char)s->p[i] & 0xC0) != 0x80;
    return n;
}

size_t tpl_offset(const tpl_str *s, size_t code_points) {
    size_t i = 0;
    while (i < s->n && code_points--) {
        i++;
        while (i < s->n && ((unsigned char)s->p[i] & 0xC0) == 0x80) i++;
    }
    return i;
}

bool tpl_is_blank(uint32_t cp) {
    if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x1F);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

/* ---- str() and repr() ---- */

static bool puts_(tpl *x, tpl_out *o, const char *s) {
    return tpl_out_put(x, o, s, strlen(s), true);
}

static bool put_scalar(tpl *x, tpl_out *o, tpl_val v) {
    char text[64];
    mxd_buf b;
    switch (v.kind) {
    case TPL_NONE:
        return puts_(x, o, "None");
    case TPL_BOOL:
        return puts_(x, o, v.b ? "True" : "False");
    case TPL_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.i);
        return puts_(x, o, text);
    case TPL_FLOAT:
        break;
    case TPL_UNDEF:
        return true;
    default:
        snprintf(text, sizeof text, "<%s>", tpl_type_name(v));
        return puts_(x, o, text);
    }
    mxd_buf_init(&b, x->objects.al, 64);
    mxd_json_write_real(&b, v.f);
    bool ok = b.rc ? tpl_fail(x, b.rc, "a number cannot be printed") : puts_(x, o, mxd_buf_str(&b));
    mxd_buf_deinit(&b);
    return ok;
}

static bool printable(uint32_t cp) {
    if (cp < 0x7F) return cp >= 0x20;
    if (cp < 0xA1 || cp == 0xAD) return false;
    utf8proc_category_t c = utf8proc_category((utf8proc_int32_t)cp);
    return c != UTF8PROC_CATEGORY_CC && c != UTF8PROC_CATEGORY_CF && c != UTF8PROC_CATEGORY_CS &&
           c != UTF8PROC_CATEGORY_CO && c != UTF8PROC_CATEGORY_CN && c != UTF8PROC_CATEGORY_ZL &&
           c != UTF8PROC_CATEGORY_ZP && c != UTF8PROC_CATEGORY_ZS;
}

static bool repr_str(tpl *x, tpl_out *o, const tpl_str *s) {
    bool trusted = tpl_all_trusted(s);
    char quote = memchr(s->p, '\'', s->n) && !memchr(s->p, '"', s->n) ? '"' : '\'';
    TPL_TRY(tpl_spend(x, s->n / 16));
    TPL_TRY(tpl_out_put(x, o, &quote, 1, trusted));
    for (size_t i = 0; i < s->n;) {
        uint32_t cp = 0;
        char text[16];
        int k = mxd_utf8_next(s->p + i, s->n - i, &cp);
        if (k <= 0) k = 1;
        if (cp == (unsigned char)quote || cp == '\\')
            snprintf(text, sizeof text, "\\%c", (char)cp);
        else if (cp == '\n' || cp == '\r' || cp == '\t')
            snprintf(text, sizeof text, "\\%c", cp == '\n' ? 'n' : cp == '\r' ? 'r' : 't');
        else if (printable(cp))
            snprintf(text, sizeof text, "%.*s", k, s->p + i);
        else
            snprintf(text, sizeof text,
                     cp < 0x100     ? "\\x%02x"
                     : cp < 0x10000 ? "\\u%04x"
                                    : "\\U%08x",
                     cp);
        TPL_TRY(tpl_out_put(x, o, text, strlen(text), trusted));
        i += (size_t)k;
    }
    return tpl_out_put(x, o, &quote, 1, trusted);
}

static bool repr_list(tpl *x, tpl_out *o, tpl_val v, int depth) {
    bool tuple = v.flags & TPL_TUPLE;
    TPL_TRY(tpl_force_list(x, v.l));
    TPL_TRY(puts_(x, o, tuple ? "(" : "["));
    for (size_t i = 0; i < v.l->n; i++) {
        if (i) TPL_TRY(puts_(x, o, ", "));
        TPL_TRY(tpl_repr(x, o, v.l->v[i], depth + 1));
    }
    return puts_(x, o, tuple ? v.l->n == 1 ? ",)" : ")" : "]");
}

bool tpl_repr(tpl *x, tpl_out *o, tpl_val v, int depth) {
    TPL_TRY(tpl_spend(x, 1));
    if (depth > MAX_REPR_DEPTH) return tpl_fail(x, MXD_E_TOOBIG, "a value is nested too deeply");
    if (v.kind == TPL_STR) return repr_str(x, o, v.s);
    if (v.kind == TPL_LIST) return repr_list(x, o, v, depth);
    if (v.kind == TPL_UNDEF) return puts_(x, o, "Undefined");
    if (v.kind != TPL_DICT) return put_scalar(x, o, v);
    TPL_TRY(tpl_force_dict(x, v.d));
    TPL_TRY(puts_(x, o, "{"));
    for (size_t i = 0; i < v.d->n; i++) {
        if (i) TPL_TRY(puts_(x, o, ", "));
        TPL_TRY(tpl_repr(x, o, v.d->keys[i], depth + 1));
        TPL_TRY(puts_(x, o, ": "));
        TPL_TRY(tpl_repr(x, o, v.d->vals[i], depth + 1));
    }
    return puts_(x, o, "}");
}

static bool print_view(tpl *x, tpl_out *o, tpl_val v) {
    TPL_TRY(puts_(x, o,
                  v.flags & TPL_TUPLE  ? "dict_items("
                  : v.flags & TPL_KEYS ? "dict_keys("
                                       : "dict_values("));
    v.flags = 0;
    return repr_list(x, o, v, 0) && puts_(x, o, ")");
}

bool tpl_print(tpl *x, tpl_out *o, tpl_val v) {
    if (v.kind == TPL_STR) return tpl_out_str(x, o, v.s);
    if (v.kind == TPL_LIST && v.flags & TPL_GEN) return puts_(x, o, "<generator object>");
    if (v.kind == TPL_LIST && v.flags & TPL_VIEW) return print_view(x, o, v);
    if (v.kind == TPL_UNDEF) return true;
    return tpl_repr(x, o, v, 0);
}

bool tpl_str_of(tpl *x, tpl_val v, const tpl_str **s) {
    if (v.kind != TPL_STR) {
        tpl_out o = {0};
        TPL_TRY(tpl_print(x, &o, v));
        TPL_TRY(tpl_out_done(x, &o, &v));
    }
    *s = v.s;
    return true;
}

/* ---- JSON ---- */

typedef struct json_out {
    mxd_buf b;
    const tpl_json_style *style;
    bool trusted;
} json_out;

static bool json_value(tpl *x, json_out *w, tpl_val v, int depth);

static bool new_line(json_out *w, int depth) {
    if (w->style->indent < 0) return true;
    mxd_buf_putc(&w->b, '\n');
    for (int i = 0; i < depth * w->style->indent; i++) mxd_buf_putc(&w->b, ' ');
    return true;
}

static void separator(json_out *w, const tpl_str *s, const char *usual) {
    if (s)
        mxd_buf_put(&w->b, s->p, s->n);
    else
        mxd_buf_puts(&w->b, usual);
}

static bool put_json_string(json_out *w, const tpl_str *s) {
    w->trusted = w->trusted && tpl_all_trusted(s);
    mxd_json_write_string(&w->b, s->p, s->n, w->style->ascii);
    return true;
}

static bool json_list(tpl *x, json_out *w, tpl_val v, int depth) {
    TPL_TRY(tpl_force_list(x, v.l));
    mxd_buf_putc(&w->b, '[');
    for (size_t i = 0; i < v.l->n; i++) {
        if (i) separator(w, w->style->item_sep, w->style->indent < 0 ? ", " : ",");
        new_line(w, depth + 1);
        TPL_TRY(json_value(x, w, v.l->v[i], depth + 1));
    }
    if (v.l->n) new_line(w, depth);
    mxd_buf_putc(&w->b, ']');
    return true;
}

/* Indices of a dictionary's keys, sorted or not. By insertion: keys are few, and each step spends
 * fuel. */
static bool key_order(tpl *x, const tpl_dict *d, bool sorted, size_t **out) {
    size_t *at = tpl_take(x, (d->n + 1) * sizeof *at);
    TPL_TRY(at);
    for (size_t i = 0; i < d->n; i++) at[i] = i;
    *out = at;
    for (size_t i = 1; sorted && i < d->n; i++) {
        size_t k = at[i], j = i;
        for (int c; j > 0; j--) {
            TPL_TRY(tpl_order(x, d->keys[at[j - 1]], d->keys[k], &c));
            if (c <= 0) break;
            at[j] = at[j - 1];
            TPL_TRY(tpl_spend(x, 1));
        }
        at[j] = k;
    }
    return true;
}

static bool json_dict(tpl *x, json_out *w, tpl_val v, int depth) {
    size_t *at;
    TPL_TRY(tpl_force_dict(x, v.d));
    TPL_TRY(key_order(x, v.d, w->style->sort, &at));
    mxd_buf_putc(&w->b, '{');
    for (size_t i = 0; i < v.d->n; i++) {
        tpl_val key = v.d->keys[at[i]];
        if (i) separator(w, w->style->item_sep, w->style->indent < 0 ? ", " : ",");
        new_line(w, depth + 1);
        if (key.kind == TPL_STR) {
            put_json_string(w, key.s);
        } else if (key.kind >= TPL_NONE && key.kind <= TPL_FLOAT) {
            mxd_buf_putc(&w->b, '"');
            TPL_TRY(json_value(x, w, key, depth));
            mxd_buf_putc(&w->b, '"');
        } else {
            return tpl_fail(x, MXD_E_FORMAT, "JSON keys must be strings");
        }
        separator(w, w->style->key_sep, ": ");
        TPL_TRY(json_value(x, w, v.d->vals[at[i]], depth + 1));
    }
    if (v.d->n) new_line(w, depth);
    mxd_buf_putc(&w->b, '}');
    return true;
}

static bool json_value(tpl *x, json_out *w, tpl_val v, int depth) {
    TPL_TRY(tpl_spend(x, 1));
    if (depth > MAX_REPR_DEPTH) return tpl_fail(x, MXD_E_TOOBIG, "a value is nested too deeply");
    if (w->b.rc) return true; /* looked at once at the end */
    switch (v.kind) {
    case TPL_NONE:
        mxd_buf_puts(&w->b, "null");
        return true;
    case TPL_BOOL:
        mxd_buf_puts(&w->b, v.b ? "true" : "false");
        return true;
    case TPL_INT:
        mxd_buf_printf(&w->b, "%lld", (long long)v.i);
        return true;
    case TPL_FLOAT:
        if (isfinite(v.f))
            mxd_json_write_real(&w->b, v.f);
        else
            mxd_buf_puts(&w->b, isnan(v.f) ? "NaN" : v.f < 0 ? "-Infinity" : "Infinity");
        return true;
    case TPL_STR:
        return put_json_string(w, v.s);
    case TPL_LIST:
        if (!(v.flags & (TPL_GEN | TPL_VIEW))) return json_list(x, w, v, depth);
        break;
    case TPL_DICT:
        return json_dict(x, w, v, depth);
    default:
        break;
    }
    return tpl_fail(x, MXD_E_FORMAT, "%s cannot be written as JSON", tpl_type_name(v));
}

bool tpl_to_json(tpl *x, tpl_val v, const tpl_json_style *style, tpl_val *out) {
    json_out w = {.style = style, .trusted = true};
    tpl_out o = {0};
    mxd_buf_init(&w.b, x->objects.al, MXD_TEMPLATE_MAX_OUTPUT);
    bool ok = json_value(x, &w, v, 0);
    if (ok && w.b.rc) ok = tpl_fail(x, w.b.rc, "tojson: %s", mxd_rc_text(w.b.rc));
    if (ok) ok = tpl_out_put(x, &o, mxd_buf_str(&w.b), w.b.len, w.trusted);
    mxd_buf_deinit(&w.b);
    return ok && tpl_out_done(x, &o, out);
}
