#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "tokenizer/tpl_internal.h"

/* Source: jinja2's parser.py; the functions keep its names and its order of precedence. */

enum { MAX_NESTING = 150 }; /* of brackets and operators; each level is a few C frames */

bool tpl_parse_error(tpl_parser *p, int line, mxd_rc rc, const char *fmt, ...) {
    char what[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    if (!p->rc) p->rc = mxd_fail(p->err, rc, "chat template, line %d: %s", line, what);
    return false;
}

void *tpl_parse_take(tpl_parser *p, size_t n) {
    void *q = tpl_mem_take(p->mem, n, 16);
    if (!q && !p->rc) p->rc = mxd_fail(p->err, MXD_E_NOMEM, "no memory for the chat template");
    return q;
}

bool tpl_is(const char *interned, const char *word) { return strcmp(interned, word) == 0; }

static size_t name_hash(const char *s, size_t n) {
    size_t h = 1469598103u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)s[i]) * 1099511628211u;
    return h;
}

const char *tpl_intern(tpl_parser *p, const char *s, size_t n) {
    if (2 * (p->n_names + 1) > p->cap_names) {
        size_t cap = p->cap_names ? 2 * p->cap_names : 256;
        const char **more = tpl_parse_take(p, cap * sizeof *more);
        if (!more) return NULL;
        for (size_t i = 0; i < p->cap_names; i++) {
            if (!p->names[i]) continue;
            size_t k = name_hash(p->names[i], strlen(p->names[i])) & (cap - 1);
            while (more[k]) k = (k + 1) & (cap - 1);
            more[k] = p->names[i];
        }
        p->names = more;
        p->cap_names = cap;
    }
    size_t k = name_hash(s, n) & (p->cap_names - 1);
    for (; p->names[k]; k = (k + 1) & (p->cap_names - 1))
        if (strncmp(p->names[k], s, n) == 0 && !p->names[k][n]) return p->names[k];
    char *copy = tpl_parse_take(p, n + 1);
    if (!copy) return NULL;
    memcpy(copy, s, n);
    p->names[k] = copy;
    p->n_names++;
    return copy;
}

tpl_node *tpl_node_new(tpl_parser *p, tpl_node_kind kind, size_t n_kids) {
    tpl_node *n = tpl_parse_take(p, sizeof *n);
    if (!n) return NULL;
    n->kind = (uint8_t)kind;
    n->line = tpl_peek(p)->line;
    n->n_kids = n_kids;
    if (n_kids && !(n->kids = tpl_parse_take(p, n_kids * sizeof *n->kids))) return NULL;
    return n;
}

/* ---- tokens ---- */

const tpl_tok *tpl_peek(const tpl_parser *p) { return &p->toks[p->at]; }

static bool is_op(const tpl_tok *t, const char *op) {
    return t->kind == TPL_OP && strlen(op) == t->n && memcmp(t->s, op, t->n) == 0;
}

bool tpl_at_op(const tpl_parser *p, const char *op) { return is_op(tpl_peek(p), op); }

bool tpl_at_name(const tpl_parser *p, const char *name) {
    return tpl_peek(p)->kind == TPL_NAME && strcmp(tpl_peek(p)->s, name) == 0;
}

bool tpl_skip_op(tpl_parser *p, const char *op) {
    bool there = tpl_at_op(p, op);
    p->at += there;
    return there;
}

bool tpl_skip_name(tpl_parser *p, const char *name) {
    bool there = tpl_at_name(p, name);
    p->at += there;
    return there;
}

static bool unexpected(tpl_parser *p, const char *wanted) {
    const tpl_tok *t = tpl_peek(p);
    bool text = t->kind == TPL_NAME || t->kind == TPL_OP;
    return tpl_parse_error(p, t->line, MXD_E_FORMAT, "expected %s, found %.*s", wanted,
                           text ? (int)t->n : 13, text ? t->s : "something else");
}

bool tpl_want_op(tpl_parser *p, const char *op) { return tpl_skip_op(p, op) || unexpected(p, op); }

bool tpl_enter(tpl_parser *p) {
    if (++p->depth <= MAX_NESTING) return true;
    return tpl_parse_error(p, tpl_peek(p)->line, MXD_E_TOOBIG, "nested too deeply");
}

void tpl_leave(tpl_parser *p) { p->depth--; }

/* ---- lists of nodes ---- */

typedef struct nodes {
    const tpl_node **list;
    size_t n, cap;
} nodes;

static bool add(tpl_parser *p, nodes *a, const tpl_node *n) {
    if (a->n == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 4;
        const tpl_node **more = tpl_parse_take(p, cap * sizeof *more);
        TPL_TRY(more);
        if (a->n) memcpy(more, a->list, a->n * sizeof *more);
        a->list = more;
        a->cap = cap;
    }
    a->list[a->n++] = n;
    return true;
}

static bool make(tpl_parser *p, tpl_node_kind kind, char op, const nodes *a, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, kind, 0);
    TPL_TRY(n);
    n->op = op;
    n->kids = a->list;
    n->n_kids = a->n;
    *out = n;
    return true;
}

static bool make2(tpl_parser *p, tpl_node_kind kind, char op, const tpl_node *a, const tpl_node *b,
                  const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, kind, b ? 2 : 1);
    TPL_TRY(n);
    n->op = op;
    n->kids[0] = a;
    if (b) n->kids[1] = b;
    *out = n;
    return true;
}

static bool constant(tpl_parser *p, tpl_val v, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, N_CONST, 0);
    TPL_TRY(n);
    n->value = v;
    *out = n;
    return true;
}

/* ---- primary expressions ---- */

static bool string_constant(tpl_parser *p, const tpl_node **out) {
    size_t n = 0, from = p->at;
    while (tpl_peek(p)->kind == TPL_STRING) n += p->toks[p->at++].n; /* "a" "b" is one string */
    tpl_str *s = tpl_parse_take(p, sizeof *s);
    char *text = tpl_parse_take(p, n + 1);
    TPL_TRY(s && text);
    *s = (tpl_str){.p = text, .trusted = true};
    for (size_t i = from; i < p->at; i++) {
        memcpy(text + s->n, p->toks[i].s, p->toks[i].n);
        s->n += p->toks[i].n;
    }
    return constant(p, (tpl_val){.kind = TPL_STR, .s = s}, out);
}

/* Items up to the closing bracket; `pairs`: key: value. */
static bool items(tpl_parser *p, const char *close, bool pairs, nodes *a) {
    while (!tpl_at_op(p, close)) {
        const tpl_node *n;
        if (a->n) TPL_TRY(tpl_want_op(p, ","));
        if (tpl_at_op(p, close)) break;
        TPL_TRY(tpl_expression(p, true, &n));
        TPL_TRY(add(p, a, n));
        if (!pairs) continue;
        TPL_TRY(tpl_want_op(p, ":"));
        TPL_TRY(tpl_expression(p, true, &n));
        TPL_TRY(add(p, a, n));
    }
    return tpl_want_op(p, close);
}

static bool parenthesis(tpl_parser *p, const tpl_node **out) {
    if (tpl_skip_op(p, ")")) return make(p, N_LIST, 't', &(nodes){0}, out);
    TPL_TRY(tpl_tuple(p, true, out));
    return tpl_want_op(p, ")");
}

static bool name_or_word(tpl_parser *p, const tpl_node **out) {
    const char *s = p->toks[p->at].s;
    tpl_node *n = tpl_node_new(p, N_NAME, 0);
    TPL_TRY(n);
    p->at++;
    bool yes = tpl_is(s, "true") || tpl_is(s, "True"),
         no = tpl_is(s, "false") || tpl_is(s, "False");
    if (yes || no) return constant(p, tpl_bool(yes), out);
    if (tpl_is(s, "none") || tpl_is(s, "None")) return constant(p, tpl_none(), out);
    n->name = s;
    *out = n;
    return true;
}

bool tpl_primary(tpl_parser *p, const tpl_node **out) {
    const tpl_tok *t = tpl_peek(p);
    nodes a = {0};
    switch (t->kind) {
    case TPL_NAME:
        return name_or_word(p, out);
    case TPL_STRING:
        return string_constant(p, out);
    case TPL_INTEGER:
        p->at++;
        return constant(p, tpl_int(t->i), out);
    case TPL_REAL:
        p->at++;
        return constant(p, tpl_float(t->f), out);
    default:
        break;
    }
    if (tpl_skip_op(p, "(")) return parenthesis(p, out);
    if (tpl_skip_op(p, "[")) return items(p, "]", false, &a) && make(p, N_LIST, 0, &a, out);
    if (tpl_skip_op(p, "{")) return items(p, "}", true, &a) && make(p, N_DICT, 0, &a, out);
    return unexpected(p, "an expression");
}

/* ---- what may follow: .a [b] (c) |f `is t` ---- */

static bool one_arg(tpl_parser *p, tpl_arg *a) {
    const tpl_tok *t = tpl_peek(p);
    if (tpl_skip_op(p, "**"))
        a->star = 'k';
    else if (tpl_skip_op(p, "*"))
        a->star = '*';
    else if (t->kind == TPL_NAME && is_op(t + 1, "=")) {
        a->name = t->s;
        p->at += 2;
    }
    return tpl_expression(p, true, &a->value);
}

bool tpl_args(tpl_parser *p, const tpl_arg **args, size_t *n) {
    tpl_arg *list = NULL;
    size_t cap = 0;
    *n = 0;
    while (!tpl_at_op(p, ")")) {
        if (*n) TPL_TRY(tpl_want_op(p, ","));
        if (tpl_at_op(p, ")")) break;
        if (*n == cap) {
            cap = cap ? cap * 2 : 4;
            tpl_arg *more = tpl_parse_take(p, cap * sizeof *more);
            TPL_TRY(more);
            if (*n) memcpy(more, list, *n * sizeof *more);
            list = more;
        }
        list[*n] = (tpl_arg){0};
        TPL_TRY(one_arg(p, &list[(*n)++]));
    }
    *args = list;
    return tpl_want_op(p, ")");
}

static bool call(tpl_parser *p, const tpl_node **io) {
    tpl_node *n = tpl_node_new(p, N_CALL, 1);
    TPL_TRY(n);
    n->kids[0] = *io;
    TPL_TRY(tpl_args(p, &n->args, &n->n_args));
    *io = n;
    return true;
}

static bool subscript(tpl_parser *p, const tpl_node **io) {
    tpl_node *n = tpl_node_new(p, N_SLICE, 4);
    TPL_TRY(n);
    n->kids[0] = *io;
    size_t k = 1;
    bool slice = false;
    for (;;) {
        if (!tpl_at_op(p, ":") && !tpl_at_op(p, "]")) TPL_TRY(tpl_tuple(p, true, &n->kids[k]));
        if (k == 3 || !tpl_skip_op(p, ":")) break;
        slice = true;
        k++;
    }
    TPL_TRY(tpl_want_op(p, "]"));
    if (!slice && !n->kids[1]) return unexpected(p, "an index");
    if (!slice) {
        n->kind = N_ITEM;
        n->n_kids = 2;
    }
    *io = n;
    return true;
}

static bool attribute(tpl_parser *p, const tpl_node **io) {
    const tpl_tok *t = tpl_peek(p);
    if (t->kind == TPL_INTEGER) {
        const tpl_node *index;
        p->at++;
        return constant(p, tpl_int(t->i), &index) && make2(p, N_ITEM, 0, *io, index, io);
    }
    if (t->kind != TPL_NAME) return unexpected(p, "a name behind '.'");
    tpl_node *n = tpl_node_new(p, N_ATTR, 1);
    TPL_TRY(n);
    n->kids[0] = *io;
    n->name = t->s;
    p->at++;
    *io = n;
    return true;
}

bool tpl_postfix(tpl_parser *p, const tpl_node **io) {
    for (int i = 0; i < 10 * MAX_NESTING; i++) {
        if (tpl_skip_op(p, "."))
            TPL_TRY(attribute(p, io));
        else if (tpl_skip_op(p, "["))
            TPL_TRY(subscript(p, io));
        else if (tpl_skip_op(p, "("))
            TPL_TRY(call(p, io));
        else
            return true;
        if (i == MAX_NESTING) break; /* the tree is as deep as the chain is long */
    }
    return tpl_parse_error(p, tpl_peek(p)->line, MXD_E_TOOBIG, "a chain is too long");
}

static bool filter(tpl_parser *p, const tpl_node **io) {
    const tpl_tok *t = tpl_peek(p);
    if (t->kind != TPL_NAME) return unexpected(p, "the name of a filter");
    tpl_node *n = tpl_node_new(p, N_FILTER, 1);
    TPL_TRY(n);
    p->at++;
    n->kids[0] = *io;
    n->name = t->s;
    if (tpl_skip_op(p, "(")) TPL_TRY(tpl_args(p, &n->args, &n->n_args));
    *io = n;
    return true;
}

/* An argument without brackets: `is divisibleby 3`. */
static bool bare_test_arg(tpl_parser *p, tpl_node *n) {
    const tpl_tok *t = tpl_peek(p);
    bool starts = t->kind == TPL_NAME || t->kind == TPL_STRING || t->kind == TPL_INTEGER ||
                  t->kind == TPL_REAL || is_op(t, "[") || is_op(t, "{");
    if (tpl_at_name(p, "is")) return unexpected(p, "one test at a time");
    if (!starts || tpl_at_name(p, "else") || tpl_at_name(p, "or") || tpl_at_name(p, "and") ||
        tpl_at_name(p, "if") || tpl_at_name(p, "not") || tpl_at_name(p, "in"))
        return true;
    tpl_arg *a = tpl_parse_take(p, sizeof *a);
    TPL_TRY(a);
    TPL_TRY(tpl_primary(p, &a->value));
    TPL_TRY(tpl_postfix(p, &a->value));
    n->args = a;
    n->n_args = 1;
    return true;
}

static bool test(tpl_parser *p, const tpl_node **io) {
    tpl_node *n = tpl_node_new(p, N_TEST, 1);
    TPL_TRY(n);
    n->kids[0] = *io;
    n->op = tpl_skip_name(p, "not") ? '!' : 0;
    const tpl_tok *t = tpl_peek(p);
    if (t->kind != TPL_NAME) return unexpected(p, "the name of a test");
    n->name = t->s;
    p->at++;
    if (tpl_skip_op(p, "("))
        TPL_TRY(tpl_args(p, &n->args, &n->n_args));
    else
        TPL_TRY(bare_test_arg(p, n));
    *io = n;
    return true;
}

bool tpl_filters(tpl_parser *p, const tpl_node *in, const tpl_node **out, bool first_named) {
    *out = in;
    if (first_named) TPL_TRY(filter(p, out));
    for (int i = 0; i < MAX_NESTING; i++) {
        if (tpl_skip_op(p, "|"))
            TPL_TRY(filter(p, out));
        else if (in && tpl_skip_name(p, "is"))
            TPL_TRY(test(p, out));
        else if (in && tpl_skip_op(p, "("))
            TPL_TRY(call(p, out));
        else
            return true;
    }
    return tpl_parse_error(p, tpl_peek(p)->line, MXD_E_TOOBIG, "a chain is too long");
}

/* ---- operators, tightest first ---- */

static bool unary(tpl_parser *p, bool with_filter, const tpl_node **out) {
    const char sign = tpl_at_op(p, "-") ? '-' : tpl_at_op(p, "+") ? '+' : 0;
    TPL_TRY(tpl_enter(p));
    if (sign) {
        p->at++;
        TPL_TRY(unary(p, false, out));
        TPL_TRY(make2(p, N_UNARY, sign, *out, NULL, out));
    } else {
        TPL_TRY(tpl_primary(p, out));
        TPL_TRY(tpl_postfix(p, out));
    }
    if (with_filter) TPL_TRY(tpl_filters(p, *out, out, false));
    tpl_leave(p);
    return true;
}

static bool power(tpl_parser *p, const tpl_node **out) {
    const tpl_node *right;
    TPL_TRY(unary(p, true, out));
    int n = 0;
    while (tpl_skip_op(p, "**")) {
        if (++n > MAX_NESTING) return tpl_enter(p) && unexpected(p, "fewer operators");
        TPL_TRY(unary(p, true, &right));
        TPL_TRY(make2(p, N_BINARY, '^', *out, right, out));
    }
    return true;
}

/* Left-associative operators; the tree leans left, so the evaluator walks down its left edge. */
static bool product(tpl_parser *p, const tpl_node **out) {
    const tpl_node *right;
    TPL_TRY(power(p, out));
    for (;;) {
        char op = tpl_at_op(p, "*")    ? '*'
                  : tpl_at_op(p, "/")  ? '/'
                  : tpl_at_op(p, "//") ? '\\'
                  : tpl_at_op(p, "%")  ? '%'
                                       : 0;
        if (!op) return true;
        p->at++;
        TPL_TRY(power(p, &right));
        TPL_TRY(make2(p, N_BINARY, op, *out, right, out));
    }
}

static bool concat(tpl_parser *p, const tpl_node **out) {
    nodes a = {0};
    TPL_TRY(product(p, out));
    if (!tpl_at_op(p, "~")) return true;
    TPL_TRY(add(p, &a, *out));
    while (tpl_skip_op(p, "~")) {
        TPL_TRY(product(p, out));
        TPL_TRY(add(p, &a, *out));
    }
    return make(p, N_CONCAT, 0, &a, out);
}

static bool sum(tpl_parser *p, const tpl_node **out) {
    const tpl_node *right;
    TPL_TRY(concat(p, out));
    for (;;) {
        char op = tpl_at_op(p, "+") ? '+' : tpl_at_op(p, "-") ? '-' : 0;
        if (!op) return true;
        p->at++;
        TPL_TRY(concat(p, &right));
        TPL_TRY(make2(p, N_BINARY, op, *out, right, out));
    }
}

/* The operator here as one character, 0 when there is none: = ! < > l(<=) g(>=) i(in) n(not in) */
static char comparison(tpl_parser *p) {
    static const struct {
        const char *op;
        char as;
    } ops[] = {{"==", '='}, {"!=", '!'}, {"<=", 'l'}, {">=", 'g'}, {"<", '<'}, {">", '>'}};
    for (size_t i = 0; i < MXD_COUNT(ops); i++)
        if (tpl_skip_op(p, ops[i].op)) return ops[i].as;
    if (tpl_skip_name(p, "in")) return 'i';
    const tpl_tok *next = tpl_peek(p) + 1;
    if (!tpl_at_name(p, "not") || next->kind != TPL_NAME || !tpl_is(next->s, "in")) return 0;
    p->at += 2;
    return 'n';
}

static bool compare(tpl_parser *p, const tpl_node **out) {
    nodes a = {0};
    char ops[32];
    size_t n = 0;
    TPL_TRY(sum(p, out));
    TPL_TRY(add(p, &a, *out));
    while (n < sizeof ops && (ops[n] = comparison(p)) != 0) {
        TPL_TRY(sum(p, out));
        TPL_TRY(add(p, &a, *out));
        n++;
    }
    if (!n) return true;
    TPL_TRY(make(p, N_COMPARE, 0, &a, out));
    return (((tpl_node *)*out)->name = tpl_intern(p, ops, n)) != NULL;
}

static bool negation(tpl_parser *p, const tpl_node **out) {
    if (!tpl_skip_name(p, "not")) return compare(p, out);
    TPL_TRY(tpl_enter(p));
    TPL_TRY(negation(p, out));
    tpl_leave(p);
    return make2(p, N_UNARY, '!', *out, NULL, out);
}

static bool logic(tpl_parser *p, bool is_or, const tpl_node **out) {
    nodes a = {0};
    do {
        TPL_TRY(is_or ? logic(p, false, out) : negation(p, out));
        TPL_TRY(add(p, &a, *out));
    } while (tpl_skip_name(p, is_or ? "or" : "and"));
    return a.n == 1 || make(p, is_or ? N_OR : N_AND, 0, &a, out);
}

bool tpl_expression(tpl_parser *p, bool with_cond, const tpl_node **out) {
    TPL_TRY(tpl_enter(p));
    TPL_TRY(logic(p, true, out));
    int n = 0;
    while (with_cond && tpl_skip_name(p, "if")) {
        tpl_node *c = tpl_node_new(p, N_COND, 3);
        TPL_TRY(c);
        if (++n > MAX_NESTING) return unexpected(p, "fewer conditions");
        c->kids[0] = *out;
        TPL_TRY(logic(p, true, &c->kids[1]));
        if (tpl_skip_name(p, "else")) TPL_TRY(tpl_expression(p, true, &c->kids[2]));
        *out = c;
    }
    tpl_leave(p);
    return true;
}

static bool tuple_ends(const tpl_parser *p) {
    const tpl_tok *t = tpl_peek(p);
    return t->kind == TPL_VAR_END || t->kind == TPL_BLOCK_END || is_op(t, ")") || is_op(t, "]") ||
           is_op(t, "=") || tpl_at_name(p, "in");
}

bool tpl_tuple(tpl_parser *p, bool with_cond, const tpl_node **out) {
    nodes a = {0};
    bool comma = false;
    do {
        if (comma && tuple_ends(p)) break;
        TPL_TRY(tpl_expression(p, with_cond, out));
        TPL_TRY(add(p, &a, *out));
    } while ((comma = tpl_at_op(p, ",")) && tpl_skip_op(p, ","));
    if (a.n == 1 && !comma && !is_op(&p->toks[p->at - 1], ",")) return true;
    return make(p, N_LIST, 't', &a, out);
}
