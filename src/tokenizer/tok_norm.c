#include <string.h>
#include <utf8proc.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

static void put_cp(mxd_buf *out, uint32_t cp) {
    char s[4];
    int n = mxd_utf8_put(s, cp);
    mxd_buf_put(out, s, (size_t)n);
}

static bool is_ascii(const char *s, size_t n) {
    unsigned char all = 0;
    for (size_t i = 0; i < n; i++) all |= (unsigned char)s[i];
    return all < 0x80;
}

/* Everything below U+0300 is its own NFC form and never composes with a neighbour below U+0300. */
static bool below_marks(const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] >= 0xCC) return false;
    return true;
}

static unsigned mark_class(utf8proc_int32_t cp) {
    return (unsigned)utf8proc_get_property(cp)->combining_class & 255;
}

/* Puts a run of marks in order of their classes, equal ones as they were: by insertion, and a long
 * run by counting, because one character may carry a million marks.
 *   scratch   [n] */
static void order_run(utf8proc_int32_t *cps, size_t n, utf8proc_int32_t *scratch) {
    if (n > 32) {
        size_t at[256] = {0}, sum = 0;
        for (size_t i = 0; i < n; i++) at[mark_class(cps[i])]++;
        for (int c = 0; c < 256; c++) {
            size_t count = at[c];
            at[c] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++) scratch[at[mark_class(cps[i])]++] = cps[i];
        memcpy(cps, scratch, n * sizeof *cps);
        return;
    }
    for (size_t i = 1; i < n; i++) {
        utf8proc_int32_t cp = cps[i];
        size_t k = i;
        for (; k && mark_class(cps[k - 1]) > mark_class(cp); k--) cps[k] = cps[k - 1];
        cps[k] = cp;
    }
}

static void order_marks(utf8proc_int32_t *cps, size_t n, utf8proc_int32_t *scratch) {
    for (size_t i = 0; i < n;) {
        size_t from = i;
        while (i < n && mark_class(cps[i])) i++;
        if (i - from > 1) order_run(cps + from, i - from, scratch);
        if (i == from) i++;
    }
}

/* Decomposes s[n] into cps [cap], without order; returns how many there are, also beyond cap.
 * Negative: not Unicode. */
static utf8proc_ssize_t decompose(const char *s, size_t n, utf8proc_int32_t *cps, size_t cap,
                                  utf8proc_option_t opt) {
    size_t got = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int k = mxd_utf8_next(s + i, n - i, &cp), bound = 0;
        if (k <= 0) return UTF8PROC_ERROR_INVALIDUTF8;
        size_t room = got < cap ? cap - got : 0;
        utf8proc_ssize_t more = utf8proc_decompose_char(
            (utf8proc_int32_t)cp, room ? cps + got : NULL, (utf8proc_ssize_t)room, opt, &bound);
        if (more < 0) return more;
        got += (size_t)more;
        i += (size_t)k;
    }
    return (utf8proc_ssize_t)got;
}

static mxd_rc unicode_form(const tok_norm *f, const mxd_alloc *al, const char *s, size_t n,
                           mxd_buf *out, mxd_err *err) {
    static const int options[] = {
        [TOK_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
        [TOK_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
        [TOK_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
        [TOK_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
    };
    utf8proc_option_t opt = (utf8proc_option_t)options[f->kind];
    if (f->kind == TOK_NFC ? below_marks(s, n) : is_ascii(s, n)) {
        mxd_buf_put(out, s, n);
        return MXD_OK;
    }
    utf8proc_ssize_t want = decompose(s, n, NULL, 0, opt);
    if (want < 0) return mxd_fail(err, MXD_E_INVAL, "text that is not Unicode");
    size_t n_cps = (size_t)want;
    utf8proc_int32_t *cps = MXD_NEW(al, 2 * n_cps + 1, utf8proc_int32_t); /* half is scratch */
    if (!cps) return tok_no_memory(err);
    want = decompose(s, n, cps, n_cps, opt);
    order_marks(cps, n_cps, cps + n_cps);
    if (want > 0) want = utf8proc_normalize_utf32(cps, want, opt);
    for (utf8proc_ssize_t i = 0; i < want; i++) put_cp(out, (uint32_t)cps[i]);
    mxd_free(al, cps);
    return want < 0 ? mxd_fail(err, MXD_E_INVAL, "text that is not Unicode") : MXD_OK;
}

static mxd_rc replace(const tok_norm *f, tok_matcher *m, const char *s, size_t n, mxd_buf *out,
                      mxd_err *err) {
    size_t done = 0;
    tok_walk walk = {0};
    for (;;) {
        bool found;
        size_t b, e;
        MXD_TRY(tok_match(m, &f->pattern, s, n, &walk, &found, &b, &e, err));
        if (!found) break;
        mxd_buf_put(out, s + done, b - done);
        mxd_buf_put(out, f->text, f->n_text);
        done = e;
    }
    mxd_buf_put(out, s + done, n - done);
    return MXD_OK;
}

static void per_character(tok_norm_kind kind, const char *s, size_t n, mxd_buf *out) {
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int k = mxd_utf8_next(s + i, n - i, &cp);
        if (k <= 0) k = 1;
        if (kind == TOK_LOWERCASE) {
            /* the one character whose lower case is two */
            if (cp == 0x130)
                mxd_buf_puts(out, "i\xcc\x87");
            else
                put_cp(out, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
        } else if (!tok_is_mark(cp)) {
            mxd_buf_put(out, s + i, (size_t)k);
        }
        i += (size_t)k;
    }
}

/* The start of the last character of s[n], n > 0. */
static size_t last_char(const char *s, size_t n) {
    do n--;
    while (n && ((unsigned char)s[n] & 0xC0) == 0x80);
    return n;
}

static void strip(bool left, bool right, const char *s, size_t n, mxd_buf *out) {
    size_t from = 0;
    uint32_t cp;
    while (left && from < n) {
        int k = mxd_utf8_next(s + from, n - from, &cp);
        if (k <= 0 || !tok_is_space(cp)) break;
        from += (size_t)k;
    }
    while (right && n > from) {
        size_t at = last_char(s, n);
        if (mxd_utf8_next(s + at, n - at, &cp) <= 0 || !tok_is_space(cp)) break;
        n = at;
    }
    mxd_buf_put(out, s + from, n - from);
}

static mxd_rc run_stage(const tok_norm *f, tok_matcher *m, const char *s, size_t n, bool first,
                        bool last, mxd_buf *out, mxd_err *err) {
    switch (f->kind) {
    case TOK_NFC:
    case TOK_NFD:
    case TOK_NFKC:
    case TOK_NFKD:
        return unicode_form(f, m->al, s, n, out, err);
    case TOK_REPLACE:
        return replace(f, m, s, n, out, err);
    case TOK_PREPEND:
        if (n && first) mxd_buf_put(out, f->text, f->n_text);
        mxd_buf_put(out, s, n);
        return MXD_OK;
    case TOK_STRIP:
        strip(f->left && first, f->right && last, s, n, out);
        return MXD_OK;
    case TOK_LOWERCASE:
    case TOK_STRIP_ACCENTS:
        per_character(f->kind, s, n, out);
        return MXD_OK;
    }
    return MXD_OK;
}

mxd_rc tok_normalize(const tok_norm *stages, int n_stages, tok_matcher *m, const char *s, size_t n,
                     bool first, bool last, mxd_buf *out, mxd_buf *tmp, mxd_err *err) {
    mxd_buf_clear(out);
    if (!n_stages) mxd_buf_put(out, s, n);
    for (int i = 0; i < n_stages; i++) {
        if (i) {
            mxd_buf swap = *out;
            *out = *tmp;
            *tmp = swap;
            mxd_buf_clear(out);
            s = mxd_buf_str(tmp);
            n = tmp->len;
        }
        MXD_TRY(run_stage(&stages[i], m, s, n, first, last, out, err));
        MXD_TRY(mxd_buf_rc(out, "normalised text", err));
    }
    return mxd_buf_rc(out, "normalised text", err);
}
