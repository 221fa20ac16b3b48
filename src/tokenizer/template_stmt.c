#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

/* ---- statements ---- */

typedef struct body { /* statements of one block */
    const tpl_node **list;
    size_t n, cap;
} body;

static bool statements(tpl_parser *p, const char *const *until, const tpl_node **out);

static bool add(tpl_parser *p, body *b, const tpl_node *n) {
    if (b->n == b->cap) {
        size_t cap = b->cap ? b->cap * 2 : 8;
        const tpl_node **more = tpl_parse_take(p, cap * sizeof *more);
        TPL_TRY(more);
        if (b->n) memcpy(more, b->list, b->n * sizeof *more);
        b->list = more;
        b->cap = cap;
    }
    b->list[b->n++] = n;
    return true;
}

static bool finish(tpl_parser *p, tpl_node_kind kind, const body *b, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, kind, 0);
    TPL_TRY(n);
    n->kids = b->list;
    n->n_kids = b->n;
    *out = n;
    return true;
}

static bool wrong(tpl_parser *p, const char *what) {
    return tpl_parse_error(p, tpl_peek(p)->line, MXD_E_FORMAT, "%s", what);
}

static bool end_tag(tpl_parser *p) {
    if (tpl_peek(p)->kind != TPL_BLOCK_END) return wrong(p, "expected '%}'");
    p->at++;
    return true;
}

/* What opens a body may end with a colon, as in Python. */
static bool body_tag(tpl_parser *p) {
    (void)tpl_skip_op(p, ":");
    return end_tag(p);
}

/* `{% endfor %}`: the parser stands at the name. */
static bool end_of(tpl_parser *p, const char *name) {
    if (!tpl_skip_name(p, name))
        return tpl_parse_error(p, tpl_peek(p)->line, MXD_E_FORMAT, "expected '%s'", name);
    return end_tag(p);
}

static bool name_target(tpl_parser *p, bool dotted, const tpl_node **out) {
    const tpl_tok *t = tpl_peek(p);
    static const char *const reserved[] = {"true", "false", "none", "True", "False", "None"};
    if (t->kind != TPL_NAME) return wrong(p, "expected a name to set");
    for (size_t i = 0; i < MXD_COUNT(reserved); i++)
        if (tpl_is(t->s, reserved[i])) return wrong(p, "cannot assign to a constant");
    tpl_node *n = tpl_node_new(p, N_NAME, 0);
    TPL_TRY(n);
    n->name = t->s;
    p->at++;
    *out = n;
    if (!dotted || !tpl_skip_op(p, ".")) return true;
    tpl_node *a = tpl_node_new(p, N_ATTR, 1);
    TPL_TRY(a);
    if (tpl_peek(p)->kind != TPL_NAME) return wrong(p, "expected a name behind '.'");
    a->kids[0] = n;
    a->name = tpl_peek(p)->s;
    p->at++;
    *out = a;
    return true;
}

/* `a`, `a, b`, `(a, b)`, `ns.a` */
static bool target(tpl_parser *p, bool dotted, const tpl_node **out) {
    body list = {0};
    bool brackets = tpl_skip_op(p, "("), comma = false;
    TPL_TRY(tpl_enter(p));
    do {
        if (list.n && tpl_peek(p)->kind != TPL_NAME && !tpl_at_op(p, "(")) break;
        const tpl_node *n;
        if (tpl_at_op(p, "("))
            TPL_TRY(target(p, dotted, &n));
        else
            TPL_TRY(name_target(p, dotted, &n));
        TPL_TRY(add(p, &list, n));
        if (tpl_at_op(p, ",")) comma = true;
    } while (tpl_skip_op(p, ","));
    tpl_leave(p);
    if (brackets) TPL_TRY(tpl_want_op(p, ")"));
    if (list.n == 1 && !comma) {
        *out = list.list[0];
        return true;
    }
    TPL_TRY(finish(p, N_LIST, &list, out));
    return true;
}

static bool parse_if(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"elif", "else", "endif", NULL};
    body parts = {0};
    for (;;) {
        const tpl_node *test, *then;
        TPL_TRY(tpl_tuple(p, true, &test));
        TPL_TRY(body_tag(p));
        TPL_TRY(statements(p, until, &then));
        TPL_TRY(add(p, &parts, test));
        TPL_TRY(add(p, &parts, then));
        if (!tpl_skip_name(p, "elif")) break;
    }
    if (tpl_skip_name(p, "else")) {
        const tpl_node *otherwise;
        TPL_TRY(body_tag(p));
        TPL_TRY(statements(p, until + 2, &otherwise));
        TPL_TRY(add(p, &parts, otherwise));
    }
    TPL_TRY(end_of(p, "endif"));
    return finish(p, N_IF, &parts, out);
}

static bool parse_for(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"else", "endfor", NULL};
    tpl_node *n = tpl_node_new(p, N_FOR, 5);
    TPL_TRY(n);
    *out = n;
    if (tpl_at_name(p, "loop")) return wrong(p, "cannot assign to 'loop' in a for loop");
    TPL_TRY(target(p, false, &n->kids[0]));
    if (!tpl_skip_name(p, "in")) return wrong(p, "expected 'in'");
    TPL_TRY(tpl_tuple(p, false, &n->kids[1]));
    if (tpl_skip_name(p, "if")) TPL_TRY(tpl_expression(p, true, &n->kids[2]));
    if (tpl_skip_name(p, "recursive")) n->op = 'r';
    TPL_TRY(body_tag(p));
    p->loops++;
    TPL_TRY(statements(p, until, &n->kids[3]));
    p->loops--;
    if (tpl_skip_name(p, "else")) {
        TPL_TRY(body_tag(p));
        TPL_TRY(statements(p, until + 1, &n->kids[4]));
    }
    return end_of(p, "endfor");
}

static bool parse_set(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endset", NULL};
    tpl_node *n = tpl_node_new(p, N_SET, 3);
    TPL_TRY(n);
    *out = n;
    TPL_TRY(target(p, true, &n->kids[0]));
    if (tpl_skip_op(p, "=")) {
        TPL_TRY(tpl_tuple(p, true, &n->kids[1]));
        return end_tag(p);
    }
    n->kind = N_SET_BLOCK;
    if (tpl_skip_op(p, "|")) TPL_TRY(tpl_filters(p, NULL, &n->kids[2], true));
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[1]));
    return end_of(p, "endset");
}

/* `(a, b=1)` of a macro or call. */
static bool params(tpl_parser *p, tpl_node *n) {
    tpl_arg list[32];
    size_t k = 0;
    while (!tpl_at_op(p, ")")) {
        if (k) TPL_TRY(tpl_want_op(p, ","));
        if (k == MXD_COUNT(list)) return wrong(p, "more than 32 parameters");
        const tpl_node *name;
        TPL_TRY(name_target(p, false, &name));
        list[k] = (tpl_arg){.name = name->name};
        if (tpl_skip_op(p, "="))
            TPL_TRY(tpl_expression(p, true, &list[k].value));
        else if (k && list[k - 1].value)
            return wrong(p, "a parameter without a default behind one that has one");
        k++;
    }
    tpl_arg *copy = tpl_parse_take(p, (k + 1) * sizeof *copy);
    TPL_TRY(copy);
    if (k) memcpy(copy, list, k * sizeof *copy);
    n->args = copy;
    n->n_args = k;
    return tpl_want_op(p, ")");
}

static bool parse_macro(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endmacro", NULL};
    tpl_node *n = tpl_node_new(p, N_MACRO, 1);
    const tpl_node *name;
    TPL_TRY(n);
    *out = n;
    TPL_TRY(name_target(p, false, &name));
    n->name = name->name;
    TPL_TRY(tpl_want_op(p, "("));
    TPL_TRY(params(p, n));
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[0]));
    tpl_skip_name(p, "endmacro");
    if (tpl_peek(p)->kind == TPL_NAME) p->at++;
    return end_tag(p);
}

static bool parse_call(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endcall", NULL};
    tpl_node *n = tpl_node_new(p, N_CALL_BLOCK, 2);
    TPL_TRY(n);
    *out = n;
    if (tpl_skip_op(p, "(")) TPL_TRY(params(p, n));
    TPL_TRY(tpl_expression(p, true, &n->kids[0]));
    if (n->kids[0]->kind != N_CALL) return wrong(p, "expected a call");
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[1]));
    return end_of(p, "endcall");
}

static bool parse_filter(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endfilter", NULL};
    tpl_node *n = tpl_node_new(p, N_FILTER_BLOCK, 2);
    TPL_TRY(n);
    *out = n;
    TPL_TRY(tpl_filters(p, NULL, &n->kids[0], true));
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[1]));
    return end_of(p, "endfilter");
}

static bool parse_with(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endwith", NULL};
    body parts = {0};
    while (tpl_peek(p)->kind != TPL_BLOCK_END) {
        const tpl_node *to, *value;
        if (parts.n) TPL_TRY(tpl_want_op(p, ","));
        TPL_TRY(name_target(p, false, &to));
        TPL_TRY(tpl_want_op(p, "="));
        TPL_TRY(tpl_expression(p, true, &value));
        TPL_TRY(add(p, &parts, to));
        TPL_TRY(add(p, &parts, value));
    }
    const tpl_node *inner;
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &inner));
    TPL_TRY(add(p, &parts, inner));
    TPL_TRY(end_of(p, "endwith"));
    return finish(p, N_WITH, &parts, out);
}

/* transformers' mark of what the assistant wrote: only its content counts here */
static bool parse_generation(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endgeneration", NULL};
    tpl_node *n = tpl_node_new(p, N_SCOPE, 1);
    TPL_TRY(n);
    *out = n;
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[0]));
    return end_of(p, "endgeneration");
}

/* A template that nobody extends prints its blocks where they stand. */
static bool parse_block(tpl_parser *p, const tpl_node **out) {
    static const char *const until[] = {"endblock", NULL};
    tpl_node *n = tpl_node_new(p, N_SCOPE, 1);
    const tpl_node *name;
    TPL_TRY(n);
    *out = n;
    TPL_TRY(name_target(p, false, &name));
    TPL_TRY(body_tag(p));
    TPL_TRY(statements(p, until, &n->kids[0]));
    tpl_skip_name(p, "endblock");
    if (tpl_peek(p)->kind == TPL_NAME) p->at++;
    return end_tag(p);
}

static bool leave_loop(tpl_parser *p, tpl_node_kind kind, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, kind, 0);
    TPL_TRY(n);
    if (!p->loops) return wrong(p, "break or continue outside a loop");
    *out = n;
    return end_tag(p);
}

static bool statement(tpl_parser *p, const tpl_node **out) {
    static const struct {
        const char *name;
        bool (*parse)(tpl_parser *, const tpl_node **);
    } tags[] = {{"if", parse_if},      {"for", parse_for},
                {"set", parse_set},    {"macro", parse_macro},
                {"call", parse_call},  {"filter", parse_filter},
                {"with", parse_with},  {"generation", parse_generation},
                {"block", parse_block}};
    const tpl_tok *t = tpl_peek(p);
    if (t->kind != TPL_NAME) return wrong(p, "expected the name of a statement");
    if (tpl_skip_name(p, "break")) return leave_loop(p, N_BREAK, out);
    if (tpl_skip_name(p, "continue")) return leave_loop(p, N_CONTINUE, out);
    for (size_t i = 0; i < MXD_COUNT(tags); i++)
        if (tpl_skip_name(p, tags[i].name)) return tags[i].parse(p, out);
    static const char *const known[] = {"include", "import",     "from", "extends",
                                        "block",   "autoescape", "do",   "trans"};
    for (size_t i = 0; i < MXD_COUNT(known); i++)
        if (tpl_is(t->s, known[i]))
            return tpl_parse_error(p, t->line, MXD_E_UNSUPPORTED, "'%s' is not supported", t->s);
    return tpl_parse_error(p, t->line, MXD_E_FORMAT, "unknown statement '%.40s'", t->s);
}

static bool data(tpl_parser *p, const tpl_tok *t, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, N_DATA, 0);
    tpl_str *s = tpl_parse_take(p, sizeof *s);
    TPL_TRY(n && s);
    *s = (tpl_str){.p = t->s, .n = t->n, .trusted = true};
    n->value = (tpl_val){.kind = TPL_STR, .s = s};
    p->at++;
    *out = n;
    return true;
}

static bool print(tpl_parser *p, const tpl_node **out) {
    tpl_node *n = tpl_node_new(p, N_PRINT, 1);
    TPL_TRY(n);
    *out = n;
    p->at++;
    TPL_TRY(tpl_tuple(p, true, &n->kids[0]));
    if (tpl_peek(p)->kind != TPL_VAR_END) return wrong(p, "expected '}}'");
    p->at++;
    return true;
}

/* Up to a tag named in `until` (then the parser stands at that name), or to the end of the
 * template when until is NULL. */
static bool statements(tpl_parser *p, const char *const *until, const tpl_node **out) {
    body b = {0};
    TPL_TRY(tpl_enter(p));
    for (;;) {
        const tpl_tok *t = tpl_peek(p);
        const tpl_node *n;
        if (t->kind == TPL_EOF) {
            if (until)
                return tpl_parse_error(p, t->line, MXD_E_FORMAT, "the template ends before '%s'",
                                       until[0]);
            break;
        }
        if (t->kind == TPL_DATA) {
            TPL_TRY(data(p, t, &n));
        } else if (t->kind == TPL_VAR_BEGIN) {
            TPL_TRY(print(p, &n));
        } else {
            p->at++;
            bool end = false;
            for (size_t i = 0; until && until[i] && !end; i++) end = tpl_at_name(p, until[i]);
            if (end) break;
            TPL_TRY(statement(p, &n));
        }
        TPL_TRY(add(p, &b, n));
    }
    tpl_leave(p);
    return finish(p, N_BLOCK, &b, out);
}

bool tpl_statements(tpl_parser *p, const tpl_node **out) { return statements(p, NULL, out); }
