#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

enum { MAX_TEXT = 64 << 20 };

void mxd_ids_init(mxd_ids *a, const mxd_alloc *al, size_t max) {
    *a = (mxd_ids){.al = al, .max = max};
}

void mxd_ids_deinit(mxd_ids *a) {
    mxd_free(a->al, a->ptr);
    *a = (mxd_ids){.al = a->al, .max = a->max};
}

mxd_rc mxd_ids_push(mxd_ids *a, int32_t id, mxd_err *err) {
    if (a->n >= a->max) return mxd_fail(err, MXD_E_TOOBIG, "more than %zu tokens", a->max);
    if (a->n == a->cap) {
        size_t cap = a->cap ? a->cap * 2 : 64;
        if (cap > a->max) cap = a->max;
        int32_t *more = mxd_renew(a->al, a->ptr, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        a->ptr = more;
        a->cap = cap;
    }
    a->ptr[a->n++] = id;
    return MXD_OK;
}

/* ---- which bytes are trusted ---- */

typedef struct run {
    size_t end; /* begins where the one before ends */
    bool trusted;
} run;

typedef struct runs {
    const mxd_alloc *al;
    run *list;
    size_t n, cap;
} runs;

static mxd_rc runs_add(runs *r, size_t n, bool trusted, mxd_err *err) {
    size_t end = n + (r->n ? r->list[r->n - 1].end : 0);
    if (r->n && r->list[r->n - 1].trusted == trusted) {
        r->list[r->n - 1].end = end;
        return MXD_OK;
    }
    if (r->n == r->cap) {
        size_t cap = r->cap ? r->cap * 2 : 16;
        run *more = mxd_renew(r->al, r->list, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        r->list = more;
        r->cap = cap;
    }
    r->list[r->n++] = (run){end, trusted};
    return MXD_OK;
}

/* The run that holds byte `at`, searching on from *i. */
static const run *run_at(const runs *r, size_t at, size_t *i) {
    while (r->list[*i].end <= at) ++*i;
    return &r->list[*i];
}

/* ---- added tokens ---- */

/* The longest token of the set that begins at s, by narrowing the sorted list byte by byte. */
static const tok_added *longest(const tok_added_set *set, const char *s, size_t n) {
    const tok_added *best = NULL;
    size_t lo = 0, hi = set->n;
    for (size_t d = 0; lo < hi; d++) {
        if (set->list[lo].n == d && d) best = &set->list[lo++];
        if (d == n || lo == hi) break;
        unsigned char c = (unsigned char)s[d];
        size_t a = lo, b = hi;
        while (a < b) { /* the first with a byte >= c */
            size_t mid = (a + b) / 2;
            if ((unsigned char)set->list[mid].text[d] < c)
                a = mid + 1;
            else
                b = mid;
        }
        lo = a;
        b = hi;
        while (a < b) { /* the first with a byte > c */
            size_t mid = (a + b) / 2;
            if ((unsigned char)set->list[mid].text[d] <= c)
                a = mid + 1;
            else
                b = mid;
        }
        hi = a;
    }
    return best;
}

static size_t char_before(const char *s, size_t at, uint32_t *cp) {
    size_t b = at;
    do b--;
    while (b && ((unsigned char)s[b] & 0xC0) == 0x80);
    return mxd_utf8_next(s + b, at - b, cp) > 0 ? b : at;
}

static bool stands_alone(const char *s, size_t n, size_t b, size_t e) {
    uint32_t cp;
    if (b && char_before(s, b, &cp) < b && tok_is_word(cp)) return false;
    return e == n || mxd_utf8_next(s + e, n - e, &cp) <= 0 || !tok_is_word(cp);
}

static size_t space_before(const char *s, size_t at) {
    uint32_t cp;
    while (at) {
        size_t b = char_before(s, at, &cp);
        if (b == at || !tok_is_space(cp)) break;
        at = b;
    }
    return at;
}

static size_t space_behind(const char *s, size_t n, size_t at) {
    uint32_t cp;
    while (at < n) {
        int k = mxd_utf8_next(s + at, n - at, &cp);
        if (k <= 0 || !tok_is_space(cp)) break;
        at += (size_t)k;
    }
    return at;
}

/* Cuts text[from, from + n) at the tokens of the set; positions in `out` are in text. `trust` is
 * about the same bytes, beginning with byte 0. Follows AddedVocabulary::find_matches. */
static mxd_rc cut_added(const tok_added_set *set, const char *text, size_t from, size_t n,
                        const runs *trust, bool first, tok_pieces *out, mxd_err *err) {
    const char *s = text + from;
    size_t done = 0, r = 0;
    for (size_t at = 0; at < n && set->n;) {
        const run *here = run_at(trust, at, &r);
        if (!here->trusted) {
            at = here->end;
            continue;
        }
        const tok_added *a = longest(set, s + at, here->end - at);
        if (!a) {
            at++;
            continue;
        }
        size_t b = at, e = at + a->n;
        at = e;
        if (a->single_word && !stands_alone(s, n, b, e)) continue;
        if (a->lstrip) {
            size_t left = space_before(s, b);
            b = left > done ? left : done;
        }
        if (a->rstrip) e = space_behind(s, n, e);
        if (done < b) {
            tok_piece x = {(uint32_t)(from + done), (uint32_t)(b - done), -1, first && !done};
            MXD_TRY(tok_pieces_push(out, x, err));
        }
        /* a token of spaces may lie in what the one before has stripped */
        if (b < e) MXD_TRY(tok_pieces_push(out, (tok_piece){.id = a->id}, err));
        done = e;
    }
    tok_piece x = {(uint32_t)(from + done), (uint32_t)(n - done), -1, first && !done};
    return tok_pieces_push(out, x, err);
}

/* ---- one encode ---- */

typedef struct encoder {
    const mxd_tokenizer *t;
    mxd_buf text, norm, tmp, joined; /* joined: normalised text of all pieces */
    runs trust;
    tok_pieces raw, pieces;
    tok_matcher matcher;
    tok_bpe bpe;
} encoder;

static mxd_rc join(encoder *x, const mxd_span *spans, size_t n_spans, mxd_err *err) {
    for (size_t i = 0; i < n_spans; i++) {
        if (!spans[i].n) continue;
        mxd_buf_put(&x->text, spans[i].ptr, spans[i].n);
        MXD_TRY(mxd_buf_rc(&x->text, "the text", err));
        MXD_TRY(runs_add(&x->trust, spans[i].n, spans[i].trusted, err));
    }
    if (!mxd_utf8_valid(mxd_buf_str(&x->text), x->text.len))
        return mxd_fail(err, MXD_E_INVAL, "the text is not valid UTF-8");
    return MXD_OK;
}

/* Normalises each run of a piece by itself, to know which normalised bytes are trusted. Where that
 * gives another text than the whole piece (a mark composes over a border, a border cuts a
 * character), nothing is trusted. trust   the runs of x->norm, which holds the whole piece
 * normalised */
static mxd_rc trust_of_norm(encoder *x, tok_piece p, runs *trust, mxd_err *err) {
    const mxd_tokenizer *t = x->t;
    mxd_buf part;
    mxd_buf_init(&part, t->al, MAX_TEXT);
    size_t r = 0, same = 0, at = p.at, end = (size_t)p.at + p.n;
    mxd_rc rc = MXD_OK;
    while (at < end && !rc) {
        const run *here = run_at(&x->trust, at, &r);
        size_t to = here->end < end ? here->end : end;
        if (to < end && ((unsigned char)x->text.ptr[to] & 0xC0) == 0x80) break;
        rc = tok_normalize(t->norm, t->n_norm, &x->matcher, x->text.ptr + at, to - at, at == p.at,
                           to == end, &part, &x->tmp, err);
        if (rc) break;
        if (same + part.len > x->norm.len ||
            memcmp(mxd_buf_str(&x->norm) + same, mxd_buf_str(&part), part.len) != 0)
            break;
        same += part.len;
        if (part.len) rc = runs_add(trust, part.len, here->trusted, err);
        at = to;
    }
    mxd_buf_deinit(&part);
    if (!rc && (at < end || same != x->norm.len)) {
        trust->n = 0;
        rc = runs_add(trust, x->norm.len, false, err);
    }
    return rc;
}

static mxd_rc normalize_piece(encoder *x, tok_piece p, mxd_err *err) {
    const mxd_tokenizer *t = x->t;
    if (p.id >= 0) return tok_pieces_push(&x->pieces, p, err);
    MXD_TRY(tok_normalize(t->norm, t->n_norm, &x->matcher, x->text.ptr + p.at, p.n, true, true,
                          &x->norm, &x->tmp, err));
    size_t at = x->joined.len;
    mxd_buf_put(&x->joined, mxd_buf_str(&x->norm), x->norm.len);
    MXD_TRY(mxd_buf_rc(&x->joined, "normalised text", err));
    runs trust = {.al = t->al};
    mxd_rc rc = MXD_OK;
    if (t->normalized.n && x->norm.len) rc = trust_of_norm(x, p, &trust, err);
    if (!rc)
        rc = cut_added(&t->normalized, mxd_buf_str(&x->joined), at, x->norm.len, &trust, p.first,
                       &x->pieces, err);
    mxd_free(trust.al, trust.list);
    return rc;
}

static mxd_rc extras(const int32_t *ids, int n, mxd_ids *out, mxd_err *err) {
    for (int i = 0; i < n; i++) MXD_TRY(mxd_ids_push(out, ids[i], err));
    return MXD_OK;
}

static mxd_rc run_pieces(encoder *x, bool add_special, mxd_ids *out, mxd_err *err) {
    const mxd_tokenizer *t = x->t;
    bool begun = x->pieces.n && t->n_before && x->pieces.list[0].id == t->before[0];
    if (add_special && !begun) MXD_TRY(extras(t->before, t->n_before, out, err));
    for (size_t i = 0; i < x->pieces.n; i++) {
        const tok_piece *p = &x->pieces.list[i];
        if (p->id >= 0)
            MXD_TRY(mxd_ids_push(out, p->id, err));
        else
            MXD_TRY(tok_bpe_run(&x->bpe, x->joined.ptr + p->at, p->n, out, err));
    }
    return add_special ? extras(t->after, t->n_after, out, err) : MXD_OK;
}

static mxd_rc encode(encoder *x, const mxd_span *spans, size_t n_spans, bool add_special,
                     mxd_ids *out, mxd_err *err) {
    const mxd_tokenizer *t = x->t;
    MXD_TRY(tok_matcher_init(&x->matcher, t->al, err));
    MXD_TRY(join(x, spans, n_spans, err));
    if (x->text.len)
        MXD_TRY(cut_added(&t->raw, x->text.ptr, 0, x->text.len, &x->trust, true, &x->raw, err));
    for (size_t i = 0; i < x->raw.n; i++) MXD_TRY(normalize_piece(x, x->raw.list[i], err));
    MXD_TRY(tok_pretokenize(t, &x->matcher, &x->joined, &x->pieces, err));
    return run_pieces(x, add_special, out, err);
}

mxd_rc mxd_tokenizer_encode(const mxd_tokenizer *t, const mxd_span *spans, size_t n_spans,
                            bool add_special, mxd_ids *out, mxd_err *err) {
    encoder x = {.t = t, .trust.al = t->al, .raw.al = t->al, .pieces.al = t->al, .bpe.t = t};
    mxd_buf_init(&x.text, t->al, MAX_TEXT);
    mxd_buf_init(&x.norm, t->al, 4u * MAX_TEXT);
    mxd_buf_init(&x.tmp, t->al, 4u * MAX_TEXT);
    mxd_buf_init(&x.joined, t->al, 4u * MAX_TEXT);
    mxd_rc rc = encode(&x, spans, n_spans, add_special, out, err);
    tok_bpe_deinit(&x.bpe);
    tok_matcher_deinit(&x.matcher);
    mxd_free(t->al, x.trust.list);
    mxd_free(t->al, x.raw.list);
    mxd_free(t->al, x.pieces.list);
    mxd_buf_deinit(&x.text);
    mxd_buf_deinit(&x.norm);
    mxd_buf_deinit(&x.tmp);
    mxd_buf_deinit(&x.joined);
    return rc;
}
