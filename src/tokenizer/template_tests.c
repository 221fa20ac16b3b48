#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

typedef bool (*test_fn)(tpl *x, tpl_val in, tpl_val arg, bool *yes);

#define SIMPLE(name, condition)                                    \
    static bool name(tpl *x, tpl_val in, tpl_val arg, bool *yes) { \
        (void)x;                                                   \
        (void)arg;                                                 \
        *yes = (condition);                                        \
        return true;                                               \
    }

static bool is_sequence(tpl_val v) {
    return v.kind == TPL_STR || v.kind == TPL_DICT || v.kind == TPL_UNDEF ||
           (v.kind == TPL_LIST && !(v.flags & (TPL_GEN | TPL_VIEW)));
}

SIMPLE(t_defined, in.kind != TPL_UNDEF)
SIMPLE(t_undefined, in.kind == TPL_UNDEF)
SIMPLE(t_none, in.kind == TPL_NONE)
SIMPLE(t_true, in.kind == TPL_BOOL && in.b)
SIMPLE(t_false, in.kind == TPL_BOOL && !in.b)
SIMPLE(t_boolean, in.kind == TPL_BOOL)
SIMPLE(t_integer, in.kind == TPL_INT)
SIMPLE(t_float, in.kind == TPL_FLOAT)
SIMPLE(t_number, in.kind == TPL_INT || in.kind == TPL_FLOAT || in.kind == TPL_BOOL)
SIMPLE(t_string, in.kind == TPL_STR)
SIMPLE(t_mapping, in.kind == TPL_DICT)
SIMPLE(t_iterable, in.kind == TPL_STR || in.kind == TPL_LIST || in.kind == TPL_DICT ||
                       in.kind == TPL_UNDEF || in.kind == TPL_LOOP)
SIMPLE(t_sequence, is_sequence(in))
SIMPLE(t_callable, in.kind == TPL_FUNC || in.kind == TPL_METHOD || in.kind == TPL_MACRO ||
                       in.kind == TPL_LOOP || in.kind == TPL_UNDEF)
SIMPLE(t_escaped, in.kind == TPL_KINDS) /* nothing is: there is no autoescape */

static bool t_parity(tpl *x, tpl_val in, int64_t by, int64_t rest, bool *yes) {
    tpl_val r;
    TPL_TRY(tpl_binary(x, '%', in, tpl_int(by), &r));
    return tpl_equal(x, r, tpl_int(rest), yes, 0);
}

static bool t_odd(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    (void)arg;
    return t_parity(x, in, 2, 1, yes);
}

static bool t_even(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    (void)arg;
    return t_parity(x, in, 2, 0, yes);
}

static bool t_divisible(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    tpl_val r;
    TPL_TRY(tpl_binary(x, '%', in, arg, &r));
    return tpl_equal(x, r, tpl_int(0), yes, 0);
}

static bool t_eq(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    return tpl_equal(x, in, arg, yes, 0);
}

static bool t_ne(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    TPL_TRY(tpl_equal(x, in, arg, yes, 0));
    *yes = !*yes;
    return true;
}

#define ORDER(name, condition)                                     \
    static bool name(tpl *x, tpl_val in, tpl_val arg, bool *yes) { \
        int c;                                                     \
        TPL_TRY(tpl_order(x, in, arg, &c));                        \
        *yes = (condition);                                        \
        return true;                                               \
    }

ORDER(t_lt, c < 0)
ORDER(t_le, c <= 0)
ORDER(t_gt, c > 0)
ORDER(t_ge, c >= 0)

static bool t_in(tpl *x, tpl_val in, tpl_val arg, bool *yes) { return tpl_in(x, in, arg, yes); }

static bool t_sameas(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    *yes = false;
    if (in.kind != arg.kind) return true;
    if (in.kind == TPL_LIST || in.kind == TPL_DICT)
        *yes = in.l == arg.l;
    else
        return tpl_equal(x, in, arg, yes, 0);
    return true;
}

static bool all_case(tpl *x, tpl_val in, const char *method, bool *yes) {
    const tpl_str *s;
    tpl_val v;
    tpl_call none = {0};
    TPL_TRY(tpl_str_of(x, in, &s));
    TPL_TRY(tpl_call_method(x, (tpl_val){.kind = TPL_STR, .s = s}, method, &none, &v));
    *yes = v.b;
    return true;
}

static bool t_upper(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    (void)arg;
    return all_case(x, in, "isupper", yes);
}

static bool t_lower(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    (void)arg;
    return all_case(x, in, "islower", yes);
}

static bool t_filter(tpl *x, tpl_val in, tpl_val arg, bool *yes);
static bool t_test(tpl *x, tpl_val in, tpl_val arg, bool *yes);

static const struct {
    const char *name;
    test_fn run;
    bool needs_arg;
} table[] = {
    {"defined", t_defined, 0},
    {"undefined", t_undefined, 0},
    {"none", t_none, 0},
    {"true", t_true, 0},
    {"false", t_false, 0},
    {"boolean", t_boolean, 0},
    {"integer", t_integer, 0},
    {"float", t_float, 0},
    {"number", t_number, 0},
    {"string", t_string, 0},
    {"mapping", t_mapping, 0},
    {"iterable", t_iterable, 0},
    {"sequence", t_sequence, 0},
    {"callable", t_callable, 0},
    {"escaped", t_escaped, 0},
    {"odd", t_odd, 0},
    {"even", t_even, 0},
    {"divisibleby", t_divisible, 1},
    {"eq", t_eq, 1},
    {"equalto", t_eq, 1},
    {"==", t_eq, 1},
    {"ne", t_ne, 1},
    {"!=", t_ne, 1},
    {"lt", t_lt, 1},
    {"lessthan", t_lt, 1},
    {"<", t_lt, 1},
    {"le", t_le, 1},
    {"<=", t_le, 1},
    {"gt", t_gt, 1},
    {"greaterthan", t_gt, 1},
    {">", t_gt, 1},
    {"ge", t_ge, 1},
    {">=", t_ge, 1},
    {"in", t_in, 1},
    {"sameas", t_sameas, 1},
    {"upper", t_upper, 0},
    {"lower", t_lower, 0},
    {"filter", t_filter, 0},
    {"test", t_test, 0},
};

static bool t_test(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    (void)x;
    (void)arg;
    *yes = false;
    for (size_t i = 0; i < MXD_COUNT(table) && in.kind == TPL_STR; i++)
        if (strlen(table[i].name) == in.s->n && memcmp(table[i].name, in.s->p, in.s->n) == 0)
            *yes = true;
    return true;
}

static bool t_filter(tpl *x, tpl_val in, tpl_val arg, bool *yes) {
    char name[64] = "";
    (void)x;
    (void)arg;
    if (in.kind == TPL_STR && in.s->n < sizeof name) memcpy(name, in.s->p, in.s->n);
    *yes = tpl_has_filter(name);
    return true;
}

bool tpl_apply_test(tpl *x, const char *name, tpl_val in, const tpl_call *c, bool *yes) {
    TPL_TRY(tpl_spend(x, 0));
    for (size_t i = 0; i < MXD_COUNT(table); i++) {
        if (!tpl_is(name, table[i].name)) continue;
        if (c->n_pos != table[i].needs_arg)
            return tpl_fail(x, MXD_E_FORMAT, "test '%.40s' takes %d arguments", name,
                            table[i].needs_arg);
        return table[i].run(x, in, c->n_pos ? c->pos[0] : tpl_undef(NULL), yes);
    }
    return tpl_fail(x, MXD_E_UNSUPPORTED, "no test named '%.60s'", name);
}
