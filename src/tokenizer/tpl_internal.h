/* tpl_internal.h - the parts of the template interpreter, shared by template_*.c and nobody else.
 *
 *   template_lex.c     source -> tokens           template_value.c    strings with trust, str, repr
 *   template_parse.c   tokens -> expressions      template_ops.c      operators, items, attributes
 *   template_stmt.c    tokens -> statements       template_filters.c  filters, template_tests.c
 * tests template_eval.c    runs the tree              template_methods.c  methods and global
 * functions
 *
 * All memory of a template or a render is one tpl_mem, given back at once; so values are plain
 * structs that nobody frees, and strings share their bytes.
 *
 * Errors: functions that return bool give false after recording what failed in tpl.rc and tpl.err.
 */
#ifndef MXD_TOKENIZER_TPL_INTERNAL_H
#define MXD_TOKENIZER_TPL_INTERNAL_H

#include "base/limits.h"
#include "tokenizer/template.h"

#define TPL_TRY(e)              \
    do {                        \
        if (!(e)) return false; \
    } while (0)

/* ---- memory ---- */

typedef struct tpl_chunk tpl_chunk;
typedef struct tpl_mem { /* a growing region */
    const mxd_alloc *al;
    tpl_chunk *chunks;
    char *top, *end;
    size_t total, max;
} tpl_mem;

void *tpl_mem_take(tpl_mem *m, size_t n, size_t align); /* zeroed; NULL: no memory or over max */
/* Makes the block p[n] longer by `more` bytes when it is the last one and there is room. */
bool tpl_mem_extend(tpl_mem *m, const char *p, size_t n, size_t more);
void tpl_mem_deinit(tpl_mem *m);

/* ---- tokens ---- */

typedef enum tpl_tok_kind {
    TPL_DATA,
    TPL_VAR_BEGIN,
    TPL_VAR_END,
    TPL_BLOCK_BEGIN,
    TPL_BLOCK_END,
    TPL_NAME,
    TPL_STRING,
    TPL_INTEGER,
    TPL_REAL,
    TPL_OP,
    TPL_EOF,
} tpl_tok_kind;

typedef struct tpl_tok {
    tpl_tok_kind kind;
    const char *s; /* DATA, NAME, STRING (escapes resolved), OP */
    uint32_t n;
    int line;
    int64_t i;
    double f;
} tpl_tok;

/* ---- values ---- */

typedef struct tpl_run {
    uint32_t end;
    bool trusted;
} tpl_run;

typedef struct tpl_str {
    const char *p; /* [n], not always with a NUL */
    uint32_t n, n_runs;
    const tpl_run *runs; /* [n_runs]; none: all of it is `trusted` or not */
    bool trusted;
} tpl_str;

typedef enum tpl_kind {
    TPL_UNDEF,
    TPL_NONE,
    TPL_BOOL,
    TPL_INT,
    TPL_FLOAT,
    TPL_STR,
    TPL_LIST,
    TPL_DICT,
    TPL_FUNC,   /* a global function */
    TPL_METHOD, /* a method of a value */
    TPL_MACRO,
    TPL_NS,
    TPL_LOOP,
    TPL_KINDS
} tpl_kind;

enum { TPL_TUPLE = 1, TPL_GEN = 2, TPL_VIEW = 4, TPL_KEYS = 8 }; /* flags of a LIST */

typedef struct tpl_val tpl_val;
typedef struct tpl_list tpl_list;
typedef struct tpl_dict tpl_dict;
typedef struct tpl_macro tpl_macro;
typedef struct tpl_scope tpl_scope;
typedef struct tpl_loop tpl_loop;
typedef struct tpl_method tpl_method;
typedef struct tpl_node tpl_node;

struct tpl_val {
    uint8_t kind, flags;
    union {
        bool b;
        int64_t i;
        double f;
        const tpl_str *s;
        tpl_list *l;
        tpl_dict *d;
        const char *name; /* UNDEF: what was looked for; FUNC */
        const tpl_method *method;
        const tpl_macro *macro;
        tpl_scope *ns;
        tpl_loop *loop;
    };
};

struct tpl_list {
    tpl_val *v; /* [n]; NULL while the JSON behind was not looked at */
    size_t n;
    const json_t *json;
    bool trusted;
};

struct tpl_dict {         /* in order of insertion */
    tpl_val *keys, *vals; /* [n]; NULL while the JSON behind was not walked */
    size_t n;
    const json_t *json;
    bool trusted;
};

struct tpl_method {
    tpl_val of;
    const char *name; /* interned */
};

struct tpl_scope { /* variables of a block, a macro call, a namespace */
    tpl_scope *up;
    struct tpl_var {
        const char *name; /* interned: equal names are equal pointers */
        tpl_val v;
    } * vars; /* [cap] */
    size_t n, cap;
};

struct tpl_loop {
    const tpl_val *items;
    size_t n, at;
    int depth0;
    const tpl_node *node; /* for a recursive call */
    tpl_scope *scope;
    tpl_val changed;
    bool has_changed;
};

struct tpl_macro {
    const tpl_node *node; /* MACRO or CALL_BLOCK */
    tpl_scope *scope;     /* where it was defined */
};

/* ---- tree ---- */

typedef enum tpl_node_kind {
    /* expressions */
    N_CONST,
    N_NAME,
    N_LIST,   /* kids; op 't': a tuple */
    N_DICT,   /* kids: key, value, key, value */
    N_UNARY,  /* op: '-', '+', '!' */
    N_BINARY, /* op: + - * / % '\\' (floor division) '^' (power) */
    N_CONCAT,
    N_AND,
    N_OR,
    N_COMPARE, /* kids: first, then operands; name holds one operator character each */
    N_COND,    /* kids: value, test, else or NULL */
    N_ATTR,    /* kids[0], name */
    N_ITEM,    /* kids: object, index */
    N_SLICE,   /* kids: object, start, stop, step (NULL where absent) */
    N_CALL,    /* kids[0], args */
    N_FILTER,  /* kids[0] (NULL: the body of a block), name, args */
    N_TEST,    /* kids[0], name, args; op '!': is not */
    /* statements */
    N_BLOCK, /* kids in order */
    N_DATA,
    N_PRINT,
    N_IF,        /* kids: test, body, test, body, ..., [else body] */
    N_FOR,       /* kids: target, iterable, filter or NULL, body, else or NULL; op 'r': recursive */
    N_SET,       /* kids: target, value */
    N_SET_BLOCK, /* kids: target, body, filter or NULL */
    N_MACRO,     /* name, params, kids[0] body */
    N_CALL_BLOCK,   /* params, kids: call, body */
    N_FILTER_BLOCK, /* kids: filter, body */
    N_WITH,         /* kids: target, value, ..., body */
    N_SCOPE,        /* kids[0] */
    N_BREAK,
    N_CONTINUE,
} tpl_node_kind;

typedef struct tpl_arg {
    const char *name;      /* interned; NULL: by position */
    const tpl_node *value; /* params: the default or NULL */
    char star;             /* '*': *list, 'k': **dict */
} tpl_arg;

struct tpl_node {
    uint8_t kind;
    char op;
    int line;
    const char *name; /* interned */
    const tpl_node **kids;
    size_t n_kids;
    const tpl_arg *args;
    size_t n_args;
    tpl_val value; /* CONST, DATA */
};

typedef struct mxd_template {
    tpl_mem mem;
    const tpl_node *root;
} mxd_template;

/* ---- parsing ---- */

typedef struct tpl_parser {
    tpl_mem *mem;
    mxd_err *err;
    mxd_rc rc;
    const tpl_tok *toks; /* ends with TPL_EOF */
    size_t at;
    int depth, loops;
    const char **names; /* interned; [cap_names] by open addressing */
    size_t n_names, cap_names;
} tpl_parser;

bool tpl_lex(tpl_parser *p, const char *s, size_t n);
bool tpl_parse_error(tpl_parser *p, int line, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(4, 5);
void *tpl_parse_take(tpl_parser *p, size_t n);
const char *tpl_intern(tpl_parser *p, const char *s, size_t n); /* NULL: no memory */
/* Names that C code compares with are interned first, in every template alike. */
bool tpl_is(const char *interned, const char *word);

tpl_node *tpl_node_new(tpl_parser *p, tpl_node_kind kind, size_t n_kids);
bool tpl_expression(tpl_parser *p, bool with_cond, const tpl_node **out);
bool tpl_tuple(tpl_parser *p, bool with_cond, const tpl_node **out); /* `a, b` without brackets */
bool tpl_args(tpl_parser *p, const tpl_arg **args, size_t *n);       /* behind '(' */
bool tpl_filters(tpl_parser *p, const tpl_node *in, const tpl_node **out, bool first_named);
bool tpl_primary(tpl_parser *p, const tpl_node **out);
bool tpl_postfix(tpl_parser *p, const tpl_node **io);
bool tpl_statements(tpl_parser *p, const tpl_node **out); /* up to the end of the template */
const tpl_tok *tpl_peek(const tpl_parser *p);
bool tpl_at_op(const tpl_parser *p, const char *op);
bool tpl_at_name(const tpl_parser *p, const char *name);
bool tpl_skip_op(tpl_parser *p, const char *op); /* whether it was there */
bool tpl_skip_name(tpl_parser *p, const char *name);
bool tpl_want_op(tpl_parser *p, const char *op);
bool tpl_enter(tpl_parser *p); /* one level deeper; tpl_leave undoes it */
void tpl_leave(tpl_parser *p);

/* ---- running ---- */

typedef struct tpl_out { /* text with trust, growing */
    char *p;
    size_t n, cap;
    tpl_run *runs;
    size_t n_runs, cap_runs;
} tpl_out;

typedef struct tpl { /* one render */
    tpl_mem objects, text;
    mxd_err *err;
    mxd_rc rc;
    int line;   /* of the node that runs */
    int depth;  /* calls and loops that run */
    int frames; /* nodes that run */
    int64_t steps, next_look;
    int64_t deadline_ns;
    const json_t *vars, *trusted_vars;
    int64_t now;
    tpl_scope *scope;
    tpl_out *out;
    char flow; /* 0, 'b' break, 'c' continue */
} tpl;

bool tpl_fail(tpl *x, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(3, 4);
bool tpl_spend(tpl *x, size_t n); /* n steps of fuel */
void *tpl_take(tpl *x, size_t n); /* NULL after recording the failure */

/* strings */
bool tpl_out_put(tpl *x, tpl_out *o, const char *s, size_t n, bool trusted);
bool tpl_out_str(tpl *x, tpl_out *o, const tpl_str *s);
bool tpl_out_done(tpl *x, const tpl_out *o, tpl_val *v);
bool tpl_new_str(tpl *x, const char *s, size_t n, bool trusted, tpl_val *v); /* borrows s */
bool tpl_sub(tpl *x, const tpl_str *s, size_t from, size_t to, tpl_val *v);  /* bytes */
bool tpl_concat(tpl *x, const tpl_str *a, const tpl_str *b, tpl_val *v);
bool tpl_all_trusted(const tpl_str *s);
bool tpl_str_of(tpl *x, tpl_val v, const tpl_str **s); /* Python's str() */
bool tpl_print(tpl *x, tpl_out *o, tpl_val v);         /* appends str(v) */
bool tpl_repr(tpl *x, tpl_out *o, tpl_val v, int depth);
typedef struct tpl_json_style {
    bool ascii, sort;
    int indent; /* -1: one line */
    const tpl_str *item_sep, *key_sep;
} tpl_json_style;
bool tpl_to_json(tpl *x, tpl_val v, const tpl_json_style *style, tpl_val *out);
size_t tpl_length(const tpl_str *s);                     /* in code points */
size_t tpl_offset(const tpl_str *s, size_t code_points); /* byte offset, at most n */
bool tpl_is_word(uint32_t cp);                           /* \w of Python's re */
/* The bytes of the line boundary at s, as str.splitlines has them; 0 when there is none. */
size_t tpl_line_end(const char *s, size_t n);
bool tpl_is_blank(uint32_t cp); /* Python's str.isspace */

/* values */
tpl_val tpl_undef(const char *name);
static inline tpl_val tpl_none(void) { return (tpl_val){.kind = TPL_NONE}; }
static inline tpl_val tpl_bool(bool b) { return (tpl_val){.kind = TPL_BOOL, .b = b}; }
static inline tpl_val tpl_int(int64_t i) { return (tpl_val){.kind = TPL_INT, .i = i}; }
static inline tpl_val tpl_float(double f) { return (tpl_val){.kind = TPL_FLOAT, .f = f}; }
bool tpl_from_json(tpl *x, const json_t *j, bool trusted, tpl_val *v);
bool tpl_new_list(tpl *x, size_t n, uint8_t flags, tpl_val *v);
bool tpl_force_list(tpl *x, tpl_list *l); /* fills l->v */
bool tpl_force_dict(tpl *x, tpl_dict *d); /* fills d->keys, d->vals */
bool tpl_dict_get(tpl *x, const tpl_dict *d, tpl_val key, tpl_val *v, bool *found);
bool tpl_items(tpl *x, tpl_val v, tpl_val **items, size_t *n); /* what `for` walks over */
bool tpl_truth(tpl_val v);
bool tpl_equal(tpl *x, tpl_val a, tpl_val b, bool *same, int depth);
bool tpl_order(tpl *x, tpl_val a, tpl_val b, int *c); /* <0, 0, >0; fails for what has no order */
bool tpl_in(tpl *x, tpl_val a, tpl_val b, bool *in);
bool tpl_binary(tpl *x, char op, tpl_val a, tpl_val b, tpl_val *v);
bool tpl_attr(tpl *x, tpl_val of, const char *name, tpl_val *v);
bool tpl_item(tpl *x, tpl_val of, tpl_val key, tpl_val *v);
bool tpl_slice(tpl *x, tpl_val of, const tpl_val lim[3], tpl_val *v); /* UNDEF: absent */
const char *tpl_type_name(tpl_val v);
bool tpl_number(tpl_val v, double *f); /* int, float or bool */
bool tpl_integer(tpl_val v, int64_t *i);

/* calls */
typedef struct tpl_call {
    const tpl_val *pos;
    size_t n_pos;
    const char *const *names; /* [n_named] */
    const tpl_val *named;
    size_t n_named;
} tpl_call;

/* The argument at position i or named so; UNDEF when absent. */
tpl_val tpl_arg_of(const tpl_call *c, size_t i, const char *name);
bool tpl_invoke(tpl *x, tpl_val f, const tpl_call *c, tpl_val *v);
bool tpl_call_method(tpl *x, tpl_val of, const char *name, const tpl_call *c, tpl_val *v);
bool tpl_has_method(tpl_val of, const char *name);
bool tpl_call_global(tpl *x, const char *name, const tpl_call *c, tpl_val *v);
bool tpl_has_global(const char *name);
bool tpl_apply_filter(tpl *x, const char *name, tpl_val in, const tpl_call *c, tpl_val *v);
bool tpl_has_filter(const char *name);
bool tpl_apply_test(tpl *x, const char *name, tpl_val in, const tpl_call *c, bool *yes);
bool tpl_trim(tpl *x, const tpl_str *s, bool left, bool right, tpl_val chars, tpl_val *v);
bool tpl_replace(tpl *x, const tpl_str *s, const tpl_str *from, const tpl_str *to, int64_t max,
                 tpl_val *v);
bool tpl_case(tpl *x, const tpl_str *s, char how, tpl_val *v); /* u l c t */
bool tpl_join(tpl *x, const tpl_val *items, size_t n, const tpl_str *sep, tpl_val *v);
bool tpl_set_var(tpl *x, tpl_scope *s, const char *name, tpl_val v);
bool tpl_find_var(const tpl_scope *s, const char *name, tpl_val *v);

#endif
