#include <math.h>
#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

tpl_val tpl_undef(const char *name) { return (tpl_val){.kind = TPL_UNDEF, .name = name}; }

const char *tpl_type_name(tpl_val v) {
    static const char *const names[TPL_KINDS] = {
        "Undefined", "NoneType", "bool",   "int",   "float",     "str",        "list",
        "dict",      "function", "method", "macro", "Namespace", "LoopContext"};
    if (v.kind == TPL_LIST && v.flags & TPL_TUPLE) return "tuple";
    if (v.kind == TPL_LIST && v.flags & TPL_GEN) return "generator";
    return names[v.kind];
}

bool tpl_number(tpl_val v, double *f) {
    *f = v.kind == TPL_FLOAT ? v.f : v.kind == TPL_INT ? (double)v.i : v.kind == TPL_BOOL && v.b;
    return v.kind == TPL_FLOAT || v.kind == TPL_INT || v.kind == TPL_BOOL;
}

bool tpl_integer(tpl_val v, int64_t *i) {
    *i = v.kind == TPL_INT ? v.i : v.kind == TPL_BOOL && v.b;
    return v.kind == TPL_INT || v.kind == TPL_BOOL;
}

static bool undefined_error(tpl *x, tpl_val v) {
    return tpl_fail(x, MXD_E_FORMAT, "'%.80s' is undefined", v.name ? v.name : "value");
}

/* ---- JSON and containers ---- */

bool tpl_from_json(tpl *x, const json_t *j, bool trusted, tpl_val *v) {
    switch (json_typeof(j)) {
    case JSON_NULL:
        *v = tpl_none();
        return true;
    case JSON_TRUE:
    case JSON_FALSE:
        *v = tpl_bool(json_is_true(j));
        return true;
    case JSON_INTEGER:
        *v = tpl_int(json_integer_value(j));
        return true;
    case JSON_REAL:
        *v = tpl_float(json_real_value(j));
        return true;
    case JSON_STRING:
        if (json_string_length(j) > (64u << 20))
            return tpl_fail(x, MXD_E_TOOBIG, "a string of more than 64 MiB");
        return tpl_new_str(x, json_string_value(j), json_string_length(j), trusted, v);
    case JSON_ARRAY: {
        tpl_list *l = tpl_take(x, sizeof *l);
        TPL_TRY(l);
        *l = (tpl_list){.n = json_array_size(j), .json = j, .trusted = trusted};
        *v = (tpl_val){.kind = TPL_LIST, .l = l};
        return true;
    }
    default: {
        tpl_dict *d = tpl_take(x, sizeof *d);
        TPL_TRY(d);
        *d = (tpl_dict){.n = json_object_size(j), .json = j, .trusted = trusted};
        *v = (tpl_val){.kind = TPL_DICT, .d = d};
        return true;
    }
    }
}

bool tpl_new_list(tpl *x, size_t n, uint8_t flags, tpl_val *v) {
    tpl_list *l = tpl_take(x, sizeof *l);
    TPL_TRY(l && tpl_spend(x, n / 8));
    *l = (tpl_list){.n = n, .v = tpl_take(x, (n + 1) * sizeof *l->v)};
    *v = (tpl_val){.kind = TPL_LIST, .flags = flags, .l = l};
    return l->v != NULL;
}

bool tpl_force_list(tpl *x, tpl_list *l) {
    if (l->v) return true;
    tpl_val *v = tpl_take(x, (l->n + 1) * sizeof *v);
    TPL_TRY(v && tpl_spend(x, l->n / 8));
    for (size_t i = 0; i < l->n; i++)
        TPL_TRY(tpl_from_json(x, json_array_get(l->json, i), l->trusted, &v[i]));
    l->v = v;
    return true;
}

bool tpl_force_dict(tpl *x, tpl_dict *d) {
    if (d->keys) return true;
    tpl_val *keys = tpl_take(x, (d->n + 1) * sizeof *keys);
    d->vals = tpl_take(x, (d->n + 1) * sizeof *d->vals);
    TPL_TRY(keys && d->vals && tpl_spend(x, d->n / 4));
    void *it = json_object_iter((json_t *)d->json);
    for (size_t i = 0; it && i < d->n; i++, it = json_object_iter_next((json_t *)d->json, it)) {
        TPL_TRY(tpl_new_str(x, json_object_iter_key(it), json_object_iter_key_len(it), d->trusted,
                            &keys[i]));
        TPL_TRY(tpl_from_json(x, json_object_iter_value(it), d->trusted, &d->vals[i]));
    }
    d->keys = keys;
    return true;
}

bool tpl_dict_get(tpl *x, const tpl_dict *d, tpl_val key, tpl_val *v, bool *found) {
    *found = false;
    if (d->json) {
        if (key.kind != TPL_STR) return true;
        const json_t *j = json_object_getn(d->json, key.s->p, key.s->n);
        *found = j != NULL;
        return !j || tpl_from_json(x, j, d->trusted, v);
    }
    TPL_TRY(tpl_spend(x, d->n / 8));
    for (size_t i = d->n; i-- > 0;) {
        bool same;
        TPL_TRY(tpl_equal(x, d->keys[i], key, &same, 0));
        if (!same) continue;
        *v = d->vals[i];
        *found = true;
        return true;
    }
    return true;
}

static bool characters(tpl *x, const tpl_str *s, tpl_val **items, size_t *n) {
    tpl_val list;
    *n = tpl_length(s);
    TPL_TRY(tpl_spend(x, *n / 4));
    TPL_TRY(tpl_new_list(x, *n, 0, &list));
    size_t at = 0;
    for (size_t i = 0; i < *n; i++) {
        size_t from = at++;
        while (at < s->n && ((unsigned char)s->p[at] & 0xC0) == 0x80) at++;
        TPL_TRY(tpl_sub(x, s, from, at, &list.l->v[i]));
    }
    *items = list.l->v;
    return true;
}

bool tpl_items(tpl *x, tpl_val v, tpl_val **items, size_t *n) {
    *items = NULL;
    *n = 0;
    switch (v.kind) {
    case TPL_UNDEF:
        return true;
    case TPL_STR:
        return characters(x, v.s, items, n);
    case TPL_LIST:
        TPL_TRY(tpl_force_list(x, v.l));
        *items = v.l->v;
        *n = v.l->n;
        return true;
    case TPL_DICT:
        TPL_TRY(tpl_force_dict(x, v.d));
        *items = v.d->keys;
        *n = v.d->n;
        return true;
    default:
        return tpl_fail(x, MXD_E_FORMAT, "'%s' object is not iterable", tpl_type_name(v));
    }
}

/* ---- comparing ---- */

bool tpl_truth(tpl_val v) {
    switch (v.kind) {
    case TPL_UNDEF:
    case TPL_NONE:
        return false;
    case TPL_BOOL:
        return v.b;
    case TPL_INT:
        return v.i != 0;
    case TPL_FLOAT:
        return v.f != 0;
    case TPL_STR:
        return v.s->n > 0;
    case TPL_LIST:
        return v.flags & TPL_GEN || v.l->n > 0;
    case TPL_DICT:
        return v.d->n > 0;
    default:
        return true;
    }
}

static bool equal_lists(tpl *x, tpl_val a, tpl_val b, bool *same, int depth) {
    *same = a.l->n == b.l->n && (a.flags & TPL_TUPLE) == (b.flags & TPL_TUPLE);
    if (!*same || a.l == b.l) return true;
    TPL_TRY(tpl_force_list(x, a.l) && tpl_force_list(x, b.l));
    for (size_t i = 0; i < a.l->n && *same; i++)
        TPL_TRY(tpl_equal(x, a.l->v[i], b.l->v[i], same, depth + 1));
    return true;
}

static bool equal_dicts(tpl *x, tpl_val a, tpl_val b, bool *same, int depth) {
    *same = a.d->n == b.d->n;
    if (!*same || a.d == b.d) return true;
    TPL_TRY(tpl_force_dict(x, a.d));
    for (size_t i = 0; i < a.d->n && *same; i++) {
        tpl_val other;
        TPL_TRY(tpl_dict_get(x, b.d, a.d->keys[i], &other, same));
        if (*same) TPL_TRY(tpl_equal(x, a.d->vals[i], other, same, depth + 1));
    }
    return true;
}

bool tpl_equal(tpl *x, tpl_val a, tpl_val b, bool *same, int depth) {
    double p, q;
    *same = false;
    TPL_TRY(tpl_spend(x, 0));
    if (depth > 100) return tpl_fail(x, MXD_E_TOOBIG, "a value is nested too deeply");
    if (a.kind == TPL_INT && b.kind == TPL_INT) {
        *same = a.i == b.i;
        return true;
    }
    if (tpl_number(a, &p) && tpl_number(b, &q)) {
        *same = p == q;
        return true;
    }
    if (a.kind != b.kind) return true;
    switch (a.kind) {
    case TPL_UNDEF:
    case TPL_NONE:
        *same = true;
        return true;
    case TPL_STR:
        *same = a.s->n == b.s->n && memcmp(a.s->p, b.s->p, a.s->n) == 0;
        return tpl_spend(x, a.s->n / 1024);
    case TPL_LIST:
        return equal_lists(x, a, b, same, depth);
    case TPL_DICT:
        return equal_dicts(x, a, b, same, depth);
    case TPL_MACRO:
        *same = a.macro == b.macro;
        return true;
    case TPL_FUNC:
        *same = strcmp(a.name, b.name) == 0;
        return true;
    default:
        *same = a.ns == b.ns;
        return true;
    }
}

bool tpl_order(tpl *x, tpl_val a, tpl_val b, int *c) {
    double p, q;
    TPL_TRY(tpl_spend(x, 0));
    if (a.kind == TPL_STR && b.kind == TPL_STR) {
        size_t n = a.s->n < b.s->n ? a.s->n : b.s->n;
        *c = memcmp(a.s->p, b.s->p, n);
        if (!*c) *c = (a.s->n > b.s->n) - (a.s->n < b.s->n);
        return true;
    }
    if (tpl_number(a, &p) && tpl_number(b, &q)) {
        *c = (p > q) - (p < q);
        return true;
    }
    if (a.kind == TPL_LIST && b.kind == TPL_LIST) {
        TPL_TRY(tpl_force_list(x, a.l) && tpl_force_list(x, b.l));
        *c = (a.l->n > b.l->n) - (a.l->n < b.l->n);
        for (size_t i = 0; i < a.l->n && i < b.l->n; i++) {
            int d;
            bool same;
            TPL_TRY(tpl_equal(x, a.l->v[i], b.l->v[i], &same, 0));
            if (same) continue;
            TPL_TRY(tpl_order(x, a.l->v[i], b.l->v[i], &d));
            *c = d;
            break;
        }
        return true;
    }
    if (a.kind == TPL_UNDEF) return undefined_error(x, a);
    if (b.kind == TPL_UNDEF) return undefined_error(x, b);
    return tpl_fail(x, MXD_E_FORMAT, "'%s' and '%s' have no order", tpl_type_name(a),
                    tpl_type_name(b));
}

bool tpl_in(tpl *x, tpl_val a, tpl_val b, bool *in) {
    *in = false;
    if (b.kind == TPL_STR) {
        if (a.kind != TPL_STR)
            return tpl_fail(x, MXD_E_FORMAT, "'in <string>' requires a string, not %s",
                            tpl_type_name(a));
        *in = memmem(b.s->p, b.s->n, a.s->p, a.s->n) != NULL;
        return tpl_spend(x, b.s->n / 256);
    }
    if (b.kind == TPL_DICT) {
        tpl_val v;
        return tpl_dict_get(x, b.d, a, &v, in);
    }
    if (b.kind != TPL_LIST && b.kind != TPL_UNDEF)
        return tpl_fail(x, MXD_E_FORMAT, "argument of type '%s' is not iterable", tpl_type_name(b));
    tpl_val *items;
    size_t n;
    TPL_TRY(tpl_items(x, b, &items, &n));
    for (size_t i = 0; i < n && !*in; i++) TPL_TRY(tpl_equal(x, items[i], a, in, 0));
    return true;
}

/* ---- operators ---- */

static bool repeat(tpl *x, tpl_val a, int64_t times, tpl_val *v) {
    if (times < 0) times = 0;
    if (a.kind == TPL_STR) {
        tpl_out o = {0};
        for (int64_t i = 0; i < times && a.s->n; i++) {
            TPL_TRY(tpl_spend(x, 0));
            TPL_TRY(tpl_out_str(x, &o, a.s));
        }
        return tpl_out_done(x, &o, v);
    }
    TPL_TRY(tpl_force_list(x, a.l));
    if (a.l->n && times > MXD_TEMPLATE_MAX_RANGE / (int64_t)a.l->n)
        return tpl_fail(x, MXD_E_TOOBIG, "a list of more than %d items", MXD_TEMPLATE_MAX_RANGE);
    TPL_TRY(tpl_new_list(x, a.l->n * (size_t)times, a.flags, v));
    for (size_t i = 0; i < v->l->n; i++) v->l->v[i] = a.l->v[i % a.l->n];
    return true;
}

static bool join_lists(tpl *x, tpl_val a, tpl_val b, tpl_val *v) {
    TPL_TRY(tpl_force_list(x, a.l) && tpl_force_list(x, b.l));
    TPL_TRY(tpl_new_list(x, a.l->n + b.l->n, a.flags & TPL_TUPLE, v));
    memcpy(v->l->v, a.l->v, a.l->n * sizeof *a.l->v);
    memcpy(v->l->v + a.l->n, b.l->v, b.l->n * sizeof *b.l->v);
    return true;
}

static bool integers(tpl *x, char op, int64_t a, int64_t b, tpl_val *v) {
    int64_t r = 0;
    bool over = false;
    if ((op == '/' || op == '\\' || op == '%') && !b)
        return tpl_fail(x, MXD_E_FORMAT, "division by zero");
    switch (op) {
    case '+':
        over = __builtin_add_overflow(a, b, &r);
        break;
    case '-':
        over = __builtin_sub_overflow(a, b, &r);
        break;
    case '*':
        over = __builtin_mul_overflow(a, b, &r);
        break;
    case '/':
        *v = tpl_float((double)a / (double)b);
        return true;
    case '\\':
        over = b == -1 && a == INT64_MIN;
        r = over ? 0 : a / b - (a % b != 0 && (a < 0) != (b < 0));
        break;
    case '%':
        r = b == -1 ? 0 : a % b;
        if (r && (r < 0) != (b < 0)) r += b;
        break;
    default:
        if (b < 0) {
            *v = tpl_float(pow((double)a, (double)b));
            return true;
        }
        r = 1;
        if (a != 0 && a != 1 && a != -1 && b > 64) over = true;
        if (a == -1) b &= 1;
        if (a == 0 || a == 1) b = b > 0;
        for (int64_t i = 0; i < b && !over; i++) over = __builtin_mul_overflow(r, a, &r);
    }
    *v = tpl_int(r);
    return !over || tpl_fail(x, MXD_E_TOOBIG, "an integer beyond 64 bits");
}

static bool reals(tpl *x, char op, double a, double b, tpl_val *v) {
    if ((op == '/' || op == '\\' || op == '%') && b == 0)
        return tpl_fail(x, MXD_E_FORMAT, "division by zero");
    double m;
    switch (op) {
    case '+':
        *v = tpl_float(a + b);
        return true;
    case '-':
        *v = tpl_float(a - b);
        return true;
    case '*':
        *v = tpl_float(a * b);
        return true;
    case '/':
        *v = tpl_float(a / b);
        return true;
    case '\\':
        *v = tpl_float(floor(a / b));
        return true;
    case '%':
        m = fmod(a, b);
        if (m != 0 && (m < 0) != (b < 0)) m += b;
        *v = tpl_float(m);
        return true;
    default:
        *v = tpl_float(pow(a, b));
        return true;
    }
}

bool tpl_binary(tpl *x, char op, tpl_val a, tpl_val b, tpl_val *v) {
    double p, q;
    int64_t i, j;
    TPL_TRY(tpl_spend(x, 0));
    if (op == '+' && a.kind == TPL_STR && b.kind == TPL_STR) return tpl_concat(x, a.s, b.s, v);
    if (op == '+' && a.kind == TPL_LIST && b.kind == TPL_LIST &&
        !((a.flags | b.flags) & (TPL_GEN | TPL_VIEW)) && !((a.flags ^ b.flags) & TPL_TUPLE))
        return join_lists(x, a, b, v);
    if (op == '%' && a.kind == TPL_STR) {
        tpl_call c = {.pos = &b, .n_pos = 1};
        if (b.kind == TPL_LIST && b.flags & TPL_TUPLE) {
            TPL_TRY(tpl_force_list(x, b.l));
            c = (tpl_call){.pos = b.l->v, .n_pos = b.l->n};
        }
        return tpl_apply_filter(x, "format", a, &c, v);
    }
    if (op == '*' && (a.kind == TPL_STR || a.kind == TPL_LIST) && tpl_integer(b, &i))
        return repeat(x, a, i, v);
    if (op == '*' && (b.kind == TPL_STR || b.kind == TPL_LIST) && tpl_integer(a, &i))
        return repeat(x, b, i, v);
    if (tpl_integer(a, &i) && tpl_integer(b, &j)) return integers(x, op, i, j, v);
    if (tpl_number(a, &p) && tpl_number(b, &q)) return reals(x, op, p, q, v);
    if (a.kind == TPL_UNDEF) return undefined_error(x, a);
    if (b.kind == TPL_UNDEF) return undefined_error(x, b);
    return tpl_fail(x, MXD_E_FORMAT, "unsupported operand types for %c: '%s' and '%s'",
                    op == '\\' ? '/' : op, tpl_type_name(a), tpl_type_name(b));
}

/* ---- items and attributes ---- */

static bool method_of(tpl *x, tpl_val of, const char *name, tpl_val *v) {
    tpl_method *m = tpl_take(x, sizeof *m);
    TPL_TRY(m);
    *m = (tpl_method){of, name};
    *v = (tpl_val){.kind = TPL_METHOD, .method = m};
    return true;
}

static bool loop_attr(const tpl_loop *l, const char *name, tpl_val *v) {
    const struct {
        const char *name;
        tpl_val v;
    } fields[] = {
        {"index", tpl_int((int64_t)l->at + 1)},
        {"index0", tpl_int((int64_t)l->at)},
        {"revindex", tpl_int((int64_t)(l->n - l->at))},
        {"revindex0", tpl_int((int64_t)(l->n - l->at) - 1)},
        {"first", tpl_bool(l->at == 0)},
        {"last", tpl_bool(l->at + 1 == l->n)},
        {"length", tpl_int((int64_t)l->n)},
        {"depth", tpl_int(l->depth0 + 1)},
        {"depth0", tpl_int(l->depth0)},
        {"previtem", l->at ? l->items[l->at - 1] : tpl_undef("there is no previous item")},
        {"nextitem", l->at + 1 < l->n ? l->items[l->at + 1] : tpl_undef("there is no next item")},
    };
    for (size_t i = 0; i < MXD_COUNT(fields); i++)
        if (tpl_is(name, fields[i].name)) {
            *v = fields[i].v;
            return true;
        }
    return false;
}

bool tpl_attr(tpl *x, tpl_val of, const char *name, tpl_val *v) {
    TPL_TRY(tpl_spend(x, 0));
    *v = tpl_undef(name);
    bool hidden = of.kind == TPL_UNDEF && of.name && strncmp(of.name, "__", 2) == 0;
    if (strncmp(name, "__", 2) == 0 && !hidden) return true; /* Python's own: out of the sandbox */
    if (of.kind == TPL_UNDEF) return undefined_error(x, of);
    if (of.kind == TPL_NS) {
        if (!tpl_find_var(of.ns, name, v)) *v = tpl_undef(name);
        return true;
    }
    if (of.kind == TPL_LOOP && loop_attr(of.loop, name, v)) return true;
    if (of.kind == TPL_MACRO && tpl_is(name, "name"))
        return tpl_new_str(x, of.macro->node->name ? of.macro->node->name : "caller",
                           strlen(of.macro->node->name ? of.macro->node->name : "caller"), true, v);
    if (tpl_has_method(of, name)) return method_of(x, of, name, v);
    *v = tpl_undef(name);
    if (of.kind != TPL_DICT) return true;
    tpl_str s = {.p = name, .n = (uint32_t)strlen(name)};
    tpl_val key = {.kind = TPL_STR, .s = &s}, got;
    bool found;
    TPL_TRY(tpl_dict_get(x, of.d, key, &got, &found));
    if (found) *v = got;
    return true;
}

bool tpl_item(tpl *x, tpl_val of, tpl_val key, tpl_val *v) {
    int64_t i;
    TPL_TRY(tpl_spend(x, 0));
    if (of.kind == TPL_UNDEF) return undefined_error(x, of);
    *v = tpl_undef(key.kind == TPL_STR ? "item" : "index");
    if (of.kind == TPL_DICT) {
        bool found;
        tpl_val got;
        TPL_TRY(tpl_dict_get(x, of.d, key, &got, &found));
        if (found) {
            *v = got;
            return true;
        }
    }
    if (of.kind == TPL_LIST && !(of.flags & (TPL_GEN | TPL_VIEW)) && tpl_integer(key, &i)) {
        TPL_TRY(tpl_force_list(x, of.l));
        if (i < 0) i += (int64_t)of.l->n;
        if (i >= 0 && i < (int64_t)of.l->n) *v = of.l->v[i];
        return true;
    }
    if (of.kind == TPL_STR && tpl_integer(key, &i)) {
        TPL_TRY(tpl_spend(x, of.s->n / 64));
        int64_t n = (int64_t)tpl_length(of.s);
        if (i < 0) i += n;
        if (i < 0 || i >= n) return true;
        size_t at = tpl_offset(of.s, (size_t)i);
        tpl_str rest = {.p = of.s->p + at, .n = of.s->n - (uint32_t)at};
        return tpl_sub(x, of.s, at, at + tpl_offset(&rest, 1), v);
    }
    if (key.kind != TPL_STR || key.s->n > 64) return true;
    char name[65]; /* x["name"] falls back to the attribute */
    memcpy(name, key.s->p, key.s->n);
    name[key.s->n] = 0;
    if (of.kind == TPL_NS || of.kind == TPL_LOOP || tpl_has_method(of, name)) {
        char *copy = tpl_take(x, key.s->n + 1u);
        TPL_TRY(copy);
        memcpy(copy, name, key.s->n + 1u);
        return of.kind == TPL_DICT ? method_of(x, of, copy, v) : tpl_attr(x, of, copy, v);
    }
    return true;
}

static bool slice_limit(tpl *x, tpl_val v, int64_t absent, int64_t *out) {
    *out = absent;
    if (v.kind == TPL_UNDEF || v.kind == TPL_NONE) return true;
    if (tpl_integer(v, out)) return true;
    return tpl_fail(x, MXD_E_FORMAT, "slice indices must be integers or None");
}

/* Python's slice.indices for a sequence of n items. */
static bool slice_indices(tpl *x, const tpl_val lim[3], int64_t n, int64_t *from, int64_t *to,
                          int64_t *step) {
    TPL_TRY(slice_limit(x, lim[2], 1, step));
    if (!*step) return tpl_fail(x, MXD_E_FORMAT, "slice step cannot be zero");
    if (*step < -n - 1) *step = -n - 1;
    if (*step > n + 1) *step = n + 1;
    int64_t low = *step < 0 ? -1 : 0, high = *step < 0 ? n - 1 : n;
    int64_t *at[] = {from, to};
    for (int k = 0; k < 2; k++) {
        bool absent = lim[k].kind == TPL_UNDEF || lim[k].kind == TPL_NONE;
        TPL_TRY(slice_limit(x, lim[k], (*step < 0) == (k == 0) ? high : low, at[k]));
        if (absent) continue;
        if (*at[k] < 0) *at[k] = *at[k] < -n ? low : *at[k] + n;
        if (*at[k] < low) *at[k] = low;
        if (*at[k] > high) *at[k] = high;
    }
    return true;
}

bool tpl_slice(tpl *x, tpl_val of, const tpl_val lim[3], tpl_val *v) {
    int64_t from, to, step;
    if (of.kind == TPL_UNDEF) return undefined_error(x, of);
    bool list = of.kind == TPL_LIST && !(of.flags & (TPL_GEN | TPL_VIEW));
    if (of.kind != TPL_STR && !list)
        return tpl_fail(x, MXD_E_FORMAT, "'%s' object cannot be cut", tpl_type_name(of));
    TPL_TRY(tpl_spend(x, of.kind == TPL_STR ? of.s->n / 64 : 0));
    int64_t n = of.kind == TPL_STR ? (int64_t)tpl_length(of.s) : (int64_t)of.l->n;
    TPL_TRY(slice_indices(x, lim, n, &from, &to, &step));
    if (of.kind == TPL_STR && step == 1)
        return tpl_sub(x, of.s, tpl_offset(of.s, (size_t)from),
                       to > from ? tpl_offset(of.s, (size_t)to) : 0, v);
    size_t count = 0, n_items;
    tpl_val *items, picked;
    if (step > 0 && to > from) count = (size_t)((to - from - 1) / step + 1);
    if (step < 0 && from > to) count = (size_t)((from - to - 1) / -step + 1);
    TPL_TRY(tpl_items(x, of, &items, &n_items));
    TPL_TRY(tpl_new_list(x, count, of.flags, &picked));
    for (size_t k = 0; k < count; k++) picked.l->v[k] = items[from + (int64_t)k * step];
    *v = picked;
    if (of.kind == TPL_LIST) return true;
    static const tpl_str none = {.p = "", .trusted = true};
    return tpl_join(x, picked.l->v, count, &none, v);
}
