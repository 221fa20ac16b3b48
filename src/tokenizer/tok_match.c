#include <string.h>
#include <utf8proc.h>
#include "base/clock.h"
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

/* A hostile pattern may need exponential time. One match may take `match_limit` steps (well under
 * a second), all matches of one text together `total_ns`. */
static const uint32_t match_limit = 20000000, depth_limit = 100000, heap_limit_kib = 64 * 1024;
static const int64_t total_ns = 10000000000;

mxd_rc tok_no_memory(mxd_err *err) {
    return mxd_fail(err, MXD_E_NOMEM, "no memory for the tokenizer");
}

bool tok_is_space(uint32_t cp) {
    if (cp < 0x80) return cp == ' ' || (cp >= 9 && cp <= 13);
    return cp == 0x85 || cp == 0xA0 || cp == 0x1680 || (cp >= 0x2000 && cp <= 0x200A) ||
           cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static utf8proc_category_t category(uint32_t cp) { return utf8proc_category((utf8proc_int32_t)cp); }

bool tok_is_mark(uint32_t cp) {
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}

bool tok_is_number(uint32_t cp) {
    utf8proc_category_t c = category(cp);
    return c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL || c == UTF8PROC_CATEGORY_NO;
}

bool tok_is_word(uint32_t cp) {
    utf8proc_category_t c = category(cp);
    bool letter = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO;
    /* Other_Alphabetic beyond marks: circled letters; Join_Control: the two joiners */
    bool other = (cp >= 0x24B6 && cp <= 0x24E9) || cp == 0x200C || cp == 0x200D ||
                 (cp >= 0x1F130 && cp <= 0x1F149) || (cp >= 0x1F150 && cp <= 0x1F169) ||
                 (cp >= 0x1F170 && cp <= 0x1F189);
    return letter || tok_is_mark(cp) || c == UTF8PROC_CATEGORY_ND || c == UTF8PROC_CATEGORY_NL ||
           c == UTF8PROC_CATEGORY_PC || other;
}

bool tok_is_punct(uint32_t cp) {
    if (cp < 0x80)
        return (cp >= 33 && cp <= 47) || (cp >= 58 && cp <= 64) || (cp >= 91 && cp <= 96) ||
               (cp >= 123 && cp <= 126);
    utf8proc_category_t c = category(cp);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

/* ---- PCRE2 with our memory ---- */

static void *take(PCRE2_SIZE n, void *al) { return mxd_new(al, n, 1); }
static void give(void *p, void *al) { mxd_free(al, p); }

static pcre2_general_context *general_context(const mxd_alloc *al) {
    return pcre2_general_context_create(take, give, (void *)al);
}

mxd_rc tok_pattern_literal(tok_pattern *p, const mxd_alloc *al, const char *s, size_t n,
                           mxd_err *err) {
    if (!n) return mxd_fail(err, MXD_E_FORMAT, "an empty pattern");
    p->literal = mxd_strndup(al, s, n);
    p->n_literal = n;
    return p->literal ? MXD_OK : tok_no_memory(err);
}

static pcre2_code *compile(const char *s, size_t n, pcre2_compile_context *context, int *code,
                           size_t *at) {
    PCRE2_SIZE where = 0;
    pcre2_set_max_pattern_length(context, 1 << 16);
    /* MULTILINE: ^ and $ mean lines in the reference's engine */
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)s, n,
                                  PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_MULTILINE,
                                  code, &where, context);
    *at = where;
    return c;
}

mxd_rc tok_pattern_regex(tok_pattern *p, const mxd_alloc *al, const char *s, size_t n,
                         mxd_err *err) {
    int code = 0;
    size_t at = 0;
    mxd_buf text;
    mxd_buf_init(&text, al, 1 << 16);
    mxd_rc rc = tok_regex_write(&text, s, n, err);
    pcre2_general_context *general = rc ? NULL : general_context(al);
    pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
    if (context) p->regex = compile(mxd_buf_str(&text), text.len, context, &code, &at);
    bool no_memory = !context || (!p->regex && (code == 121 || code == PCRE2_ERROR_NOMEMORY));
    pcre2_compile_context_free(context);
    pcre2_general_context_free(general);
    mxd_buf_deinit(&text);
    if (rc) return rc;
    if (no_memory) return tok_no_memory(err);
    if (!p->regex) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return mxd_fail(err, MXD_E_FORMAT, "pattern '%.*s': %s at %zu", (int)(n < 80 ? n : 80), s,
                        (const char *)why, at);
    }
    /* Where the system forbids executable memory this fails, and the interpreter is used. */
    (void)pcre2_jit_compile(p->regex, PCRE2_JIT_COMPLETE);
    return MXD_OK;
}

void tok_pattern_deinit(tok_pattern *p, const mxd_alloc *al) {
    mxd_free(al, p->literal);
    pcre2_code_free(p->regex);
    *p = (tok_pattern){0};
}

mxd_rc tok_matcher_init(tok_matcher *m, const mxd_alloc *al, mxd_err *err) {
    *m = (tok_matcher){.al = al, .deadline_ns = mxd_now_ns() + total_ns};
    m->general = general_context(al);
    if (m->general) m->context = pcre2_match_context_create(m->general);
    if (m->context) m->data = pcre2_match_data_create(64, m->general);
    if (!m->data) return tok_no_memory(err);
    pcre2_set_match_limit(m->context, match_limit);
    pcre2_set_depth_limit(m->context, depth_limit);
    pcre2_set_heap_limit(m->context, heap_limit_kib);
    m->stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, m->general);
    if (m->stack) pcre2_jit_stack_assign(m->context, NULL, m->stack);
    return MXD_OK;
}

void tok_matcher_deinit(tok_matcher *m) {
    pcre2_match_data_free(m->data);
    pcre2_jit_stack_free(m->stack);
    pcre2_match_context_free(m->context);
    pcre2_general_context_free(m->general);
    *m = (tok_matcher){0};
}

static mxd_rc match_regex(tok_matcher *m, const tok_pattern *p, const char *s, size_t n,
                          size_t from, bool *found, size_t *b, size_t *e, mxd_err *err) {
    if ((++m->n_matches & 1023) == 0 && mxd_now_ns() > m->deadline_ns)
        return mxd_fail(err, MXD_E_TOOBIG, "the split pattern takes too long on this text");
    int rc = pcre2_match(p->regex, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK, m->data, m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(p->regex, (PCRE2_SPTR)s, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         m->data, m->context);
    *found = rc > 0;
    if (rc == PCRE2_ERROR_NOMATCH) return MXD_OK;
    if (rc == PCRE2_ERROR_NOMEMORY) return tok_no_memory(err);
    if (rc <= 0) return mxd_fail(err, MXD_E_TOOBIG, "the split pattern hit its limit (%d)", rc);
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(m->data);
    *b = at[0] < from ? from : at[0]; /* \K in a lookbehind can move it back */
    *e = at[1] < *b ? *b : at[1];
    return MXD_OK;
}

/* The first match at or behind `from`. */
static mxd_rc match_from(tok_matcher *m, const tok_pattern *p, const char *s, size_t n, size_t from,
                         bool *found, size_t *b, size_t *e, mxd_err *err) {
    *found = false;
    if (p->regex) return match_regex(m, p, s, n, from, found, b, e, err);
    if (p->literal) {
        const char *at = memmem(s + from, n - from, p->literal, p->n_literal);
        if (!at) return MXD_OK;
        *found = true;
        *b = (size_t)(at - s);
        *e = *b + p->n_literal;
        return MXD_OK;
    }
    while (from < n) {
        uint32_t cp = 0;
        int k = mxd_utf8_next(s + from, n - from, &cp);
        if (k <= 0) k = 1;
        if (p->in(cp)) {
            *found = true;
            *b = from;
            *e = from + (size_t)k;
            return MXD_OK;
        }
        from += (size_t)k;
    }
    return MXD_OK;
}

mxd_rc tok_match(tok_matcher *m, const tok_pattern *p, const char *s, size_t n, tok_walk *walk,
                 bool *found, size_t *b, size_t *e, mxd_err *err) {
    *found = false;
    while (walk->from <= n) {
        MXD_TRY(match_from(m, p, s, n, walk->from, found, b, e, err));
        if (!*found) return MXD_OK;
        walk->from = *e;
        if (*b < *e) break;
        uint32_t cp;
        int k = *e < n ? mxd_utf8_next(s + *e, n - *e, &cp) : 1;
        walk->from += k > 0 ? (size_t)k : 1;
        if (!walk->any || walk->last_end != *e) break;
        *found = false;
    }
    walk->any = true;
    walk->last_end = *found ? *e : n;
    return MXD_OK;
}
