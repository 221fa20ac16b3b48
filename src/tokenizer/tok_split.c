#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

mxd_rc tok_pieces_push(tok_pieces *p, tok_piece x, mxd_err *err) {
    if (!x.n && x.id < 0) return MXD_OK;
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 64;
        tok_piece *more = mxd_renew(p->al, p->list, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        p->list = more;
        p->cap = cap;
    }
    p->list[p->n++] = x;
    return MXD_OK;
}

/* Cuts one piece. `held` waits because the next part may join it. */
typedef struct cutter {
    const tok_pre *stage;
    tok_pieces *out;
    tok_piece parent;
    bool has, prev_match, held_match;
    size_t b, e; /* of what is held, relative to the parent */
} cutter;

static mxd_rc flush(cutter *c, mxd_err *err) {
    if (!c->has) return MXD_OK;
    c->has = false;
    tok_piece x = {c->parent.at + (uint32_t)c->b, (uint32_t)(c->e - c->b), -1,
                   c->parent.first && c->b == 0};
    return tok_pieces_push(c->out, x, err);
}

static mxd_rc hold(cutter *c, size_t b, size_t e, bool match, mxd_err *err) {
    MXD_TRY(flush(c, err));
    c->has = true;
    c->held_match = match;
    c->b = b;
    c->e = e;
    return MXD_OK;
}

/* Takes the next part of the parent; the behaviours are those of SplitDelimiterBehavior. */
static mxd_rc take(cutter *c, size_t b, size_t e, bool match, mxd_err *err) {
    bool join = false;
    match = match != c->stage->invert;
    switch (c->stage->behavior) {
    case TOK_ISOLATED:
        break;
    case TOK_REMOVED:
        if (match) return flush(c, err);
        break;
    case TOK_CONTIGUOUS:
        join = c->has && match == c->prev_match;
        break;
    case TOK_MERGED_WITH_PREVIOUS:
        join = c->has && match && !c->prev_match;
        break;
    case TOK_MERGED_WITH_NEXT:
        join = c->has && c->held_match && !match;
        break;
    }
    c->prev_match = match;
    if (!join) return hold(c, b, e, match, err);
    c->e = e;
    c->held_match = match;
    return MXD_OK;
}

static mxd_rc split_piece(const tok_pre *stage, tok_matcher *m, const char *text, tok_piece piece,
                          tok_pieces *out, mxd_err *err) {
    cutter c = {.stage = stage, .out = out, .parent = piece};
    const char *s = text + piece.at;
    size_t done = 0;
    tok_walk walk = {0};
    for (;;) {
        bool found;
        size_t b, e;
        MXD_TRY(tok_match(m, &stage->pattern, s, piece.n, &walk, &found, &b, &e, err));
        if (!found) break;
        if (b > done) MXD_TRY(take(&c, done, b, false, err));
        MXD_TRY(take(&c, b, e, true, err));
        done = e;
    }
    if (done < piece.n) MXD_TRY(take(&c, done, piece.n, false, err));
    return flush(&c, err);
}

static mxd_rc split_stage(const tok_pre *stage, tok_matcher *m, const char *text,
                          const tok_pieces *in, tok_pieces *out, mxd_err *err) {
    for (size_t i = 0; i < in->n; i++) {
        if (in->list[i].id >= 0)
            MXD_TRY(tok_pieces_push(out, in->list[i], err));
        else
            MXD_TRY(split_piece(stage, m, text, in->list[i], out, err));
    }
    return MXD_OK;
}

static bool begins_with(const char *s, size_t n, const char *what, size_t n_what) {
    return n >= n_what && memcmp(s, what, n_what) == 0;
}

/* One piece with its spaces replaced and the mark in front; appended to `to`. */
static void rewrite(const tok_pre *stage, const char *s, tok_piece piece, mxd_buf *to) {
    if (stage->kind == TOK_PREFIX_SPACE) {
        if (s[0] != ' ') mxd_buf_putc(to, ' ');
        mxd_buf_put(to, s, piece.n);
        return;
    }
    const char *mark = stage->pattern.literal;
    size_t n_mark = stage->pattern.n_literal;
    bool want = stage->prepend == TOK_ALWAYS || (stage->prepend == TOK_FIRST && piece.first);
    if (want && s[0] != ' ' && !begins_with(s, piece.n, mark, n_mark))
        mxd_buf_put(to, mark, n_mark);
    for (size_t i = 0; i < piece.n; i++) {
        if (s[i] == ' ')
            mxd_buf_put(to, mark, n_mark);
        else
            mxd_buf_putc(to, s[i]);
    }
}

/* Rewrites all pieces into a new text. */
static mxd_rc rewrite_stage(const tok_pre *stage, mxd_buf *text, tok_pieces *pieces, mxd_err *err) {
    mxd_buf to;
    mxd_buf_init(&to, text->al, text->max);
    for (size_t i = 0; i < pieces->n; i++) {
        tok_piece *p = &pieces->list[i];
        if (p->id >= 0) continue;
        size_t at = to.len;
        rewrite(stage, text->ptr + p->at, *p, &to);
        p->at = (uint32_t)at;
        p->n = (uint32_t)(to.len - at);
    }
    mxd_rc rc = mxd_buf_rc(&to, "pre-tokenised text", err);
    if (rc) {
        mxd_buf_deinit(&to);
        return rc;
    }
    mxd_buf_deinit(text);
    *text = to;
    return MXD_OK;
}

mxd_rc tok_pretokenize(const mxd_tokenizer *t, tok_matcher *m, mxd_buf *text, tok_pieces *pieces,
                       mxd_err *err) {
    for (int i = 0; i < t->n_pre; i++) {
        const tok_pre *stage = &t->pre[i];
        if (stage->kind != TOK_SPLIT) MXD_TRY(rewrite_stage(stage, text, pieces, err));
        if (stage->kind != TOK_SPLIT && !stage->split) continue;
        tok_pieces next = {.al = pieces->al};
        mxd_rc rc = split_stage(stage, m, mxd_buf_str(text), pieces, &next, err);
        if (rc) {
            mxd_free(next.al, next.list);
            return rc;
        }
        mxd_free(pieces->al, pieces->list);
        *pieces = next;
    }
    return MXD_OK;
}
