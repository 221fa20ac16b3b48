#include <string.h>
#include <time.h>
#include "formats/utf8.h"
#include "tokenizer/tpl_internal.h"

static bool eval(tpl *x, const tpl_node *n, tpl_val *v);
static bool exec(tpl *x, const tpl_node *n);

enum { MAX_FRAMES = 1000 }; /* of eval and exec: well under 512 KiB of stack */

/* Calls and loops inside each other. */
static bool enter(tpl *x) {
    if (++x->depth <= MXD_TEMPLATE_MAX_DEPTH) return true;
    return tpl_fail(x, MXD_E_TOOBIG, "calls nested deeper than %d", MXD_TEMPLATE_MAX_DEPTH);
}

/* ---- variables ---- */

bool tpl_find_var(const tpl_scope *s, const char *name, tpl_val *v) {
    for (size_t i = 0; i < s->n; i++) {
        if (s->vars[i].name != name && strcmp(s->vars[i].name, name) != 0) continue;
        *v = s->vars[i].v;
        return true;
    }
    return false;
}

bool tpl_set_var(tpl *x, tpl_scope *s, const char *name, tpl_val v) {
    TPL_TRY(tpl_spend(x, s->n / 8));
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->vars[i].name, name) == 0) {
            s->vars[i].v = v;
            return true;
        }
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 4;
        struct tpl_var *more = tpl_take(x, cap * sizeof *more);
        TPL_TRY(more);
        if (s->n) memcpy(more, s->vars, s->n * sizeof *more);
        s->vars = more;
        s->cap = cap;
    }
    s->vars[s->n++] = (struct tpl_var){name, v};
    return true;
}

static bool push_scope(tpl *x, tpl_scope *up) {
    tpl_scope *s = tpl_take(x, sizeof *s);
    TPL_TRY(s);
    *s = (tpl_scope){.up = up};
    x->scope = s;
    return true;
}

static bool lookup(tpl *x, const char *name, tpl_val *v) {
    for (const tpl_scope *s = x->scope; s; s = s->up) {
        TPL_TRY(tpl_spend(x, 0));
        if (tpl_find_var(s, name, v)) return true;
    }
    const json_t *j = json_object_get(x->vars, name);
    bool trusted = !j;
    if (!j) j = json_object_get(x->trusted_vars, name);
    if (j) return tpl_from_json(x, j, trusted, v);
    *v = tpl_has_global(name) ? (tpl_val){.kind = TPL_FUNC, .name = name} : tpl_undef(name);
    return true;
}

static bool assign(tpl *x, const tpl_node *to, tpl_val v) {
    if (to->kind == N_NAME) return tpl_set_var(x, x->scope, to->name, v);
    if (to->kind == N_ATTR) {
        tpl_val ns;
        TPL_TRY(lookup(x, to->kids[0]->name, &ns));
        if (ns.kind != TPL_NS)
            return tpl_fail(x, MXD_E_FORMAT, "cannot assign attribute on non-namespace object");
        if (to->name[0] == '_') return tpl_fail(x, MXD_E_FORMAT, "namespace attribute is unsafe");
        return tpl_set_var(x, ns.ns, to->name, v);
    }
    tpl_val *items;
    size_t n;
    if (v.kind == TPL_UNDEF) return tpl_fail(x, MXD_E_FORMAT, "cannot unpack an undefined value");
    TPL_TRY(tpl_items(x, v, &items, &n));
    if (n != to->n_kids)
        return tpl_fail(x, MXD_E_FORMAT, "expected %zu values to unpack, got %zu", to->n_kids, n);
    for (size_t i = 0; i < n; i++) TPL_TRY(assign(x, to->kids[i], items[i]));
    return true;
}

/* ---- calls ---- */

enum { MAX_ARGS = 256 };

tpl_val tpl_arg_of(const tpl_call *c, size_t i, const char *name) {
    if (i < c->n_pos) return c->pos[i];
    for (size_t k = 0; name && k < c->n_named; k++)
        if (strcmp(c->names[k], name) == 0) return c->named[k];
    return tpl_undef(NULL);
}

typedef struct arg_lists {
    tpl_val *pos, *named;
    const char **names;
    size_t n_pos, n_named;
} arg_lists;

static bool spread(tpl *x, char star, tpl_val v, arg_lists *a) {
    tpl_val *items;
    size_t n;
    TPL_TRY(tpl_items(x, v, &items, &n));
    if (n > MAX_ARGS - a->n_pos || n > MAX_ARGS - a->n_named)
        return tpl_fail(x, MXD_E_TOOBIG, "more than %d arguments", MAX_ARGS);
    for (size_t i = 0; i < n && star == '*'; i++) a->pos[a->n_pos++] = items[i];
    for (size_t i = 0; i < n && star == 'k'; i++) {
        if (v.kind != TPL_DICT || items[i].kind != TPL_STR)
            return tpl_fail(x, MXD_E_FORMAT, "argument behind ** must be a mapping of strings");
        char *name = tpl_take(x, items[i].s->n + 1u);
        TPL_TRY(name);
        memcpy(name, items[i].s->p, items[i].s->n);
        a->names[a->n_named] = name;
        a->named[a->n_named++] = v.d->vals[i];
    }
    return true;
}

static bool arguments(tpl *x, const tpl_node *n, tpl_call *c) {
    size_t cap = 0;
    for (size_t i = 0; i < n->n_args; i++) cap += n->args[i].star ? MAX_ARGS : 1;
    if (n->n_args > MAX_ARGS) return tpl_fail(x, MXD_E_TOOBIG, "more than %d arguments", MAX_ARGS);
    if (cap > 2 * MAX_ARGS) cap = 2 * MAX_ARGS;
    *c = (tpl_call){0};
    if (!cap) return true;
    arg_lists a = {.pos = tpl_take(x, cap * sizeof *a.pos),
                   .named = tpl_take(x, cap * sizeof *a.named),
                   .names = tpl_take(x, cap * sizeof *a.names)};
    TPL_TRY(a.pos && a.named && a.names);
    for (size_t i = 0; i < n->n_args; i++) {
        tpl_val v;
        TPL_TRY(eval(x, n->args[i].value, &v));
        if (n->args[i].star) {
            TPL_TRY(spread(x, n->args[i].star, v, &a));
            continue;
        }
        if (a.n_pos + 1 > cap || a.n_named + 1 > cap)
            return tpl_fail(x, MXD_E_TOOBIG, "more than %d arguments", MAX_ARGS);
        if (n->args[i].name) {
            a.names[a.n_named] = n->args[i].name;
            a.named[a.n_named++] = v;
        } else {
            a.pos[a.n_pos++] = v;
        }
    }
    *c = (tpl_call){a.pos, a.n_pos, a.names, a.named, a.n_named};
    return true;
}

/* Runs a body with its output caught as a string. */
static bool capture(tpl *x, const tpl_node *body, tpl_val *v) {
    tpl_out here = {0}, *outside = x->out;
    x->out = &here;
    bool ok = exec(x, body);
    x->out = outside;
    return ok && tpl_out_done(x, &here, v);
}

static bool bind_params(tpl *x, const tpl_node *n, const tpl_call *c) {
    size_t used = 0;
    for (size_t i = 0; i < n->n_args; i++) {
        const tpl_arg *p = &n->args[i];
        tpl_val v = tpl_undef(p->name);
        bool given = i < c->n_pos;
        if (given) v = c->pos[i];
        for (size_t k = 0; k < c->n_named; k++) {
            if (strcmp(c->names[k], p->name) != 0) continue;
            if (given) return tpl_fail(x, MXD_E_FORMAT, "argument '%.60s' given twice", p->name);
            v = c->named[k];
            given = true;
            used++;
        }
        if (!given && p->value) TPL_TRY(eval(x, p->value, &v));
        TPL_TRY(tpl_set_var(x, x->scope, p->name, v));
    }
    for (size_t k = 0; k < c->n_named; k++) {
        if (strcmp(c->names[k], "caller") != 0) continue;
        TPL_TRY(tpl_set_var(x, x->scope, c->names[k], c->named[k]));
        used++;
    }
    if (c->n_pos > n->n_args || used < c->n_named)
        return tpl_fail(x, MXD_E_FORMAT, "macro '%.60s' takes other arguments",
                        n->name ? n->name : "caller");
    return true;
}

static bool call_macro(tpl *x, const tpl_macro *m, const tpl_call *c, tpl_val *v) {
    tpl_scope *outside = x->scope;
    int line = x->line;
    TPL_TRY(enter(x));
    TPL_TRY(push_scope(x, m->scope));
    TPL_TRY(bind_params(x, m->node, c));
    TPL_TRY(capture(x, m->node->kids[m->node->n_kids - 1], v));
    x->flow = 0;
    x->scope = outside;
    x->line = line;
    x->depth--;
    return true;
}

static bool run_loop(tpl *x, const tpl_node *n, tpl_val over, int depth0);

static bool call_loop(tpl *x, const tpl_loop *l, const tpl_call *c, tpl_val *v) {
    tpl_scope *outside = x->scope;
    tpl_out here = {0}, *out = x->out;
    if (l->node->op != 'r' || c->n_pos != 1)
        return tpl_fail(x, MXD_E_FORMAT, "the loop is not recursive");
    x->out = &here;
    x->scope = l->scope;
    bool ok = run_loop(x, l->node, c->pos[0], l->depth0 + 1);
    x->out = out;
    x->scope = outside;
    return ok && tpl_out_done(x, &here, v);
}

bool tpl_invoke(tpl *x, tpl_val f, const tpl_call *c, tpl_val *v) {
    TPL_TRY(tpl_spend(x, 0));
    switch (f.kind) {
    case TPL_MACRO:
        return call_macro(x, f.macro, c, v);
    case TPL_FUNC:
        return tpl_call_global(x, f.name, c, v);
    case TPL_METHOD:
        return tpl_call_method(x, f.method->of, f.method->name, c, v);
    case TPL_LOOP:
        return call_loop(x, f.loop, c, v);
    case TPL_UNDEF:
        return tpl_fail(x, MXD_E_FORMAT, "'%.80s' is undefined", f.name ? f.name : "value");
    default:
        return tpl_fail(x, MXD_E_FORMAT, "'%s' object is not callable", tpl_type_name(f));
    }
}

/* ---- expressions ---- */

static bool eval_list(tpl *x, const tpl_node *n, tpl_val *v) {
    TPL_TRY(tpl_new_list(x, n->n_kids, n->op == 't' ? TPL_TUPLE : 0, v));
    for (size_t i = 0; i < n->n_kids; i++) TPL_TRY(eval(x, n->kids[i], &v->l->v[i]));
    return true;
}

static bool eval_dict(tpl *x, const tpl_node *n, tpl_val *v) {
    size_t cap = n->n_kids / 2 + 1;
    tpl_dict *d = tpl_take(x, sizeof *d);
    TPL_TRY(d);
    *d = (tpl_dict){.keys = tpl_take(x, cap * sizeof *d->keys)};
    d->vals = tpl_take(x, cap * sizeof *d->vals);
    TPL_TRY(d->keys && d->vals);
    for (size_t i = 0; i < n->n_kids; i += 2) {
        tpl_val key, old;
        bool found = false;
        size_t at = d->n;
        TPL_TRY(eval(x, n->kids[i], &key));
        if (key.kind == TPL_DICT || (key.kind == TPL_LIST && !(key.flags & TPL_TUPLE)))
            return tpl_fail(x, MXD_E_FORMAT, "unhashable type: '%s'", tpl_type_name(key));
        TPL_TRY(tpl_dict_get(x, d, key, &old, &found));
        for (at = 0; found && at < d->n; at++) {
            bool same;
            TPL_TRY(tpl_equal(x, d->keys[at], key, &same, 0));
            if (same) break;
        }
        if (!found) {
            at = d->n++;
            d->keys[at] = key; /* an equal key keeps its first spelling */
        }
        TPL_TRY(eval(x, n->kids[i + 1], &d->vals[at]));
    }
    *v = (tpl_val){.kind = TPL_DICT, .d = d};
    return true;
}

static bool eval_unary(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_val a;
    TPL_TRY(eval(x, n->kids[0], &a));
    int64_t i;
    if (n->op == '!') {
        *v = tpl_bool(!tpl_truth(a));
        return true;
    }
    if (tpl_integer(a, &i)) return tpl_binary(x, n->op, tpl_int(0), tpl_int(i), v);
    if (a.kind == TPL_FLOAT) {
        *v = tpl_float(n->op == '-' ? -a.f : a.f);
        return true;
    }
    return tpl_fail(x, MXD_E_FORMAT, "bad operand type for unary %c: '%s'", n->op,
                    tpl_type_name(a));
}

/* Walks down the left edge first: a + b + c ... leans left and may be long. */
static bool eval_binary(tpl *x, const tpl_node *n, tpl_val *v) {
    size_t depth = 1;
    const tpl_node *leaf = n->kids[0];
    for (; leaf->kind == N_BINARY; leaf = leaf->kids[0]) depth++;
    const tpl_node **path = tpl_take(x, depth * sizeof *path);
    TPL_TRY(path);
    for (size_t i = depth; i-- > 0; n = n->kids[0]) path[i] = n;
    TPL_TRY(eval(x, leaf, v));
    for (size_t i = 0; i < depth; i++) {
        tpl_val right, left = *v;
        TPL_TRY(eval(x, path[i]->kids[1], &right));
        x->line = path[i]->line;
        TPL_TRY(tpl_binary(x, path[i]->op, left, right, v));
    }
    return true;
}

static bool eval_concat(tpl *x, const tpl_node *n, tpl_val *v) {
    const tpl_str *a, *b;
    TPL_TRY(eval(x, n->kids[0], v));
    TPL_TRY(tpl_str_of(x, *v, &a));
    for (size_t i = 1; i < n->n_kids; i++) {
        tpl_val r;
        TPL_TRY(eval(x, n->kids[i], &r));
        TPL_TRY(tpl_str_of(x, r, &b));
        TPL_TRY(tpl_concat(x, a, b, v));
        a = v->s;
    }
    return true;
}

static bool compare(tpl *x, char op, tpl_val a, tpl_val b, bool *yes) {
    int c;
    switch (op) {
    case '=':
        return tpl_equal(x, a, b, yes, 0);
    case '!':
        TPL_TRY(tpl_equal(x, a, b, yes, 0));
        *yes = !*yes;
        return true;
    case 'i':
        return tpl_in(x, a, b, yes);
    case 'n':
        TPL_TRY(tpl_in(x, a, b, yes));
        *yes = !*yes;
        return true;
    default:
        break;
    }
    TPL_TRY(tpl_order(x, a, b, &c));
    *yes = op == '<' ? c < 0 : op == '>' ? c > 0 : op == 'l' ? c <= 0 : c >= 0;
    return true;
}

static bool eval_compare(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_val a, b;
    bool yes = true;
    TPL_TRY(eval(x, n->kids[0], &a));
    for (size_t i = 1; i < n->n_kids && yes; i++, a = b) {
        TPL_TRY(eval(x, n->kids[i], &b));
        TPL_TRY(compare(x, n->name[i - 1], a, b, &yes));
    }
    *v = tpl_bool(yes);
    return true;
}

static bool eval_call(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_val f;
    tpl_call c;
    TPL_TRY(eval(x, n->kids[0], &f));
    TPL_TRY(arguments(x, n, &c));
    x->line = n->line;
    return tpl_invoke(x, f, &c, v);
}

static bool eval_filter(tpl *x, const tpl_node *n, const tpl_val *body, tpl_val *v) {
    tpl_val in;
    tpl_call c;
    if (n->kids[0] && body && n->kids[0]->kind == N_FILTER)
        TPL_TRY(eval_filter(x, n->kids[0], body, &in));
    else if (n->kids[0])
        TPL_TRY(eval(x, n->kids[0], &in));
    else
        in = *body;
    TPL_TRY(arguments(x, n, &c));
    x->line = n->line;
    return tpl_apply_filter(x, n->name, in, &c, v);
}

static bool eval_test(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_val in;
    tpl_call c;
    bool yes = false;
    TPL_TRY(eval(x, n->kids[0], &in));
    TPL_TRY(arguments(x, n, &c));
    x->line = n->line;
    TPL_TRY(tpl_apply_test(x, n->name, in, &c, &yes));
    *v = tpl_bool(yes != (n->op == '!'));
    return true;
}

static bool eval_item(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_val of, lim[3] = {{0}};
    TPL_TRY(eval(x, n->kids[0], &of));
    for (size_t i = 1; i < n->n_kids; i++) {
        if (!n->kids[i]) continue; /* a limit that is not written */
        TPL_TRY(eval(x, n->kids[i], &lim[i - 1]));
        if (n->kind != N_ITEM && lim[i - 1].kind == TPL_UNDEF)
            return tpl_fail(x, MXD_E_FORMAT, "a limit of a slice is undefined");
    }
    x->line = n->line;
    return n->kind == N_ITEM ? tpl_item(x, of, lim[0], v) : tpl_slice(x, of, lim, v);
}

static bool eval_node(tpl *x, const tpl_node *n, tpl_val *v) {
    x->line = n->line;
    switch ((tpl_node_kind)n->kind) {
    case N_CONST:
        *v = n->value;
        return true;
    case N_NAME:
        return lookup(x, n->name, v);
    case N_LIST:
        return eval_list(x, n, v);
    case N_DICT:
        return eval_dict(x, n, v);
    case N_UNARY:
        return eval_unary(x, n, v);
    case N_BINARY:
        return eval_binary(x, n, v);
    case N_CONCAT:
        return eval_concat(x, n, v);
    case N_AND:
    case N_OR:
        for (size_t i = 0; i < n->n_kids; i++) {
            TPL_TRY(eval(x, n->kids[i], v));
            if (tpl_truth(*v) == (n->kind == N_OR)) break;
        }
        return true;
    case N_COMPARE:
        return eval_compare(x, n, v);
    case N_COND: {
        tpl_val test;
        TPL_TRY(eval(x, n->kids[1], &test));
        const tpl_node *way = tpl_truth(test) ? n->kids[0] : n->kids[2];
        *v = tpl_undef("the inline if-expression evaluated to false and has no else");
        return !way || eval(x, way, v);
    }
    case N_ATTR: {
        tpl_val of;
        TPL_TRY(eval(x, n->kids[0], &of));
        x->line = n->line;
        return tpl_attr(x, of, n->name, v);
    }
    case N_ITEM:
    case N_SLICE:
        return eval_item(x, n, v);
    case N_CALL:
        return eval_call(x, n, v);
    case N_FILTER:
        return eval_filter(x, n, NULL, v);
    case N_TEST:
        return eval_test(x, n, v);
    default:
        return tpl_fail(x, MXD_E_INTERNAL, "not an expression");
    }
}

/* C frames are bounded here, whatever the template nests. */
static bool eval(tpl *x, const tpl_node *n, tpl_val *v) {
    TPL_TRY(tpl_spend(x, 0));
    if (++x->frames > MAX_FRAMES) return tpl_fail(x, MXD_E_TOOBIG, "nested too deeply");
    TPL_TRY(eval_node(x, n, v));
    x->frames--;
    return true;
}

/* ---- statements ---- */

static bool exec_if(tpl *x, const tpl_node *n) {
    size_t i = 0;
    for (; i + 1 < n->n_kids; i += 2) {
        tpl_val test;
        TPL_TRY(eval(x, n->kids[i], &test));
        if (tpl_truth(test)) return exec(x, n->kids[i + 1]);
    }
    return i == n->n_kids || exec(x, n->kids[i]);
}

/* `for ... if`: keeps the items that pass; the test sees the target, not the loop. */
static bool keep_items(tpl *x, const tpl_node *n, tpl_scope *up, tpl_val **items, size_t *count) {
    tpl_val kept;
    size_t k = 0;
    TPL_TRY(tpl_new_list(x, *count, 0, &kept));
    for (size_t i = 0; i < *count; i++) {
        tpl_val test;
        TPL_TRY(push_scope(x, up));
        TPL_TRY(assign(x, n->kids[0], (*items)[i]));
        TPL_TRY(eval(x, n->kids[2], &test));
        if (tpl_truth(test)) kept.l->v[k++] = (*items)[i];
    }
    x->scope = up;
    *items = kept.l->v;
    *count = k;
    return true;
}

static bool run_loop(tpl *x, const tpl_node *n, tpl_val over, int depth0) {
    tpl_scope *up = x->scope;
    tpl_val *items;
    tpl_loop *loop = tpl_take(x, sizeof *loop);
    TPL_TRY(loop && enter(x));
    *loop = (tpl_loop){.depth0 = depth0, .node = n, .scope = up};
    TPL_TRY(tpl_items(x, over, &items, &loop->n));
    if (n->kids[2]) TPL_TRY(keep_items(x, n, up, &items, &loop->n));
    loop->items = items;
    static const char loop_name[] = "loop";
    bool whole = false; /* one round came to its end; else the `else` part runs */
    for (; loop->at < loop->n; loop->at++) {
        TPL_TRY(push_scope(x, up));
        TPL_TRY(tpl_set_var(x, x->scope, loop_name, (tpl_val){.kind = TPL_LOOP, .loop = loop}));
        TPL_TRY(assign(x, n->kids[0], items[loop->at]));
        TPL_TRY(exec(x, n->kids[3]));
        char flow = x->flow;
        x->flow = 0;
        if (flow == 'b') break;
        whole |= !flow;
    }
    x->scope = up;
    if (!whole && n->kids[4]) {
        TPL_TRY(push_scope(x, up));
        TPL_TRY(exec(x, n->kids[4]));
        x->scope = up;
    }
    x->depth--;
    return true;
}

static bool in_scope(tpl *x, const tpl_node *body, tpl_val *caught) {
    tpl_scope *up = x->scope;
    TPL_TRY(push_scope(x, up));
    TPL_TRY(caught ? capture(x, body, caught) : exec(x, body));
    x->scope = up;
    return true;
}

static bool exec_set_block(tpl *x, const tpl_node *n) {
    tpl_val v;
    TPL_TRY(in_scope(x, n->kids[1], &v));
    if (n->kids[2]) {
        tpl_val body = v;
        TPL_TRY(eval_filter(x, n->kids[2], &body, &v));
    }
    return assign(x, n->kids[0], v);
}

static bool make_macro(tpl *x, const tpl_node *n, tpl_val *v) {
    tpl_macro *m = tpl_take(x, sizeof *m);
    TPL_TRY(m);
    *m = (tpl_macro){n, x->scope};
    *v = (tpl_val){.kind = TPL_MACRO, .macro = m};
    return true;
}

static bool exec_call_block(tpl *x, const tpl_node *n) {
    const tpl_node *to = n->kids[0];
    tpl_val f, v;
    tpl_call c;
    TPL_TRY(eval(x, to->kids[0], &f));
    TPL_TRY(arguments(x, to, &c));
    const char **names = tpl_take(x, (c.n_named + 1) * sizeof *names);
    tpl_val *named = tpl_take(x, (c.n_named + 1) * sizeof *named);
    TPL_TRY(names && named);
    for (size_t i = 0; i < c.n_named; i++) {
        names[i] = c.names[i];
        named[i] = c.named[i];
    }
    names[c.n_named] = "caller";
    TPL_TRY(make_macro(x, n, &named[c.n_named]));
    c.names = names;
    c.named = named;
    c.n_named++;
    TPL_TRY(tpl_invoke(x, f, &c, &v));
    return tpl_print(x, x->out, v);
}

static bool exec_with(tpl *x, const tpl_node *n) {
    tpl_scope *up = x->scope, *inner;
    TPL_TRY(push_scope(x, up));
    inner = x->scope;
    for (size_t i = 0; i + 1 < n->n_kids; i += 2) {
        tpl_val v;
        x->scope = up; /* values do not see each other's names */
        TPL_TRY(eval(x, n->kids[i + 1], &v));
        x->scope = inner;
        TPL_TRY(assign(x, n->kids[i], v));
    }
    x->scope = inner;
    TPL_TRY(exec(x, n->kids[n->n_kids - 1]));
    x->scope = up;
    return true;
}

static bool exec_block(tpl *x, const tpl_node *n) {
    for (size_t i = 0; i < n->n_kids && !x->flow; i++) TPL_TRY(exec(x, n->kids[i]));
    return true;
}

static bool exec_node(tpl *x, const tpl_node *n) {
    tpl_val v;
    x->line = n->line;
    switch ((tpl_node_kind)n->kind) {
    case N_BLOCK:
        return exec_block(x, n);
    case N_DATA:
        return tpl_out_str(x, x->out, n->value.s);
    case N_PRINT:
        return eval(x, n->kids[0], &v) && tpl_print(x, x->out, v);
    case N_IF:
        return exec_if(x, n);
    case N_FOR:
        return eval(x, n->kids[1], &v) && run_loop(x, n, v, 0);
    case N_SET:
        return eval(x, n->kids[1], &v) && assign(x, n->kids[0], v);
    case N_SET_BLOCK:
        return exec_set_block(x, n);
    case N_MACRO:
        return make_macro(x, n, &v) && tpl_set_var(x, x->scope, n->name, v);
    case N_CALL_BLOCK:
        return exec_call_block(x, n);
    case N_FILTER_BLOCK: {
        tpl_val body;
        TPL_TRY(in_scope(x, n->kids[1], &body));
        return eval_filter(x, n->kids[0], &body, &v) && tpl_print(x, x->out, v);
    }
    case N_WITH:
        return exec_with(x, n);
    case N_SCOPE:
        return in_scope(x, n->kids[0], NULL);
    case N_BREAK:
        x->flow = 'b';
        return true;
    case N_CONTINUE:
        x->flow = 'c';
        return true;
    default:
        return tpl_fail(x, MXD_E_INTERNAL, "not a statement");
    }
}

static bool exec(tpl *x, const tpl_node *n) {
    TPL_TRY(tpl_spend(x, 0));
    if (++x->frames > MAX_FRAMES) return tpl_fail(x, MXD_E_TOOBIG, "nested too deeply");
    TPL_TRY(exec_node(x, n));
    x->frames--;
    return true;
}

/* ---- the whole ---- */

mxd_rc mxd_template_open(mxd_template **out, const mxd_alloc *al, const char *source, size_t n,
                         mxd_err *err) {
    if (n > MXD_TEMPLATE_MAX_BYTES)
        return mxd_fail(err, MXD_E_TOOBIG, "chat template longer than %d bytes",
                        MXD_TEMPLATE_MAX_BYTES);
    if (!mxd_utf8_valid(source, n))
        return mxd_fail(err, MXD_E_FORMAT, "the chat template is not valid UTF-8");
    mxd_template *t = MXD_NEW(al, 1, mxd_template);
    if (!t) return mxd_fail(err, MXD_E_NOMEM, "no memory for the chat template");
    t->mem = (tpl_mem){.al = al, .max = 256u << 20};
    tpl_parser p = {.mem = &t->mem, .err = err};
    char *copy = tpl_parse_take(&p, n + 1);
    size_t k = 0;
    for (size_t i = 0; copy && i < n; i++) /* line ends as jinja2 normalises them */
        if (source[i] != '\r')
            copy[k++] = source[i];
        else if (i + 1 == n || source[i + 1] != '\n')
            copy[k++] = '\n';
    bool ok = copy && tpl_lex(&p, copy, k) && tpl_statements(&p, &t->root);
    if (ok)
        *out = t;
    else
        mxd_template_close(t);
    return ok ? MXD_OK : p.rc;
}

void mxd_template_close(mxd_template *t) {
    if (!t) return;
    const mxd_alloc *al = t->mem.al;
    tpl_mem_deinit(&t->mem);
    mxd_free(al, t);
}

static mxd_rc hand_out(const tpl_out *o, const mxd_alloc *al, mxd_rendered *out, mxd_err *err) {
    char *text = mxd_new(al, o->n + 1, 1);
    mxd_span *spans = MXD_NEW(al, o->n_runs, mxd_span);
    if (!text || !spans) {
        mxd_free(al, text);
        mxd_free(al, spans);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for the prompt");
    }
    if (o->n) memcpy(text, o->p, o->n);
    size_t from = 0;
    for (size_t i = 0; i < o->n_runs; from = o->runs[i++].end)
        spans[i] = (mxd_span){text + from, o->runs[i].end - from, o->runs[i].trusted};
    *out = (mxd_rendered){al, text, o->n, spans, o->n_runs};
    return MXD_OK;
}

mxd_rc mxd_template_render(const mxd_template *t, const json_t *vars, const json_t *trusted_vars,
                           int64_t now, mxd_rendered *out, mxd_err *err) {
    const mxd_alloc *al = t->mem.al;
    tpl_out o = {0};
    tpl x = {.err = err, .line = 1, .out = &o, .now = now};
    x.vars = vars;
    x.trusted_vars = trusted_vars;
    x.objects = (tpl_mem){.al = al, .max = 256u << 20};
    x.text = (tpl_mem){.al = al, .max = 128u << 20};
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    x.deadline_ns = (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec + 100000000;
    bool ok = push_scope(&x, NULL) && exec(&x, t->root);
    mxd_rc rc = ok ? hand_out(&o, al, out, err) : x.rc;
    tpl_mem_deinit(&x.objects);
    tpl_mem_deinit(&x.text);
    return rc;
}

void mxd_rendered_deinit(mxd_rendered *r) {
    if (!r->al) return;
    mxd_free(r->al, r->text);
    mxd_free(r->al, r->spans);
    *r = (mxd_rendered){0};
}
