#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

/* ---- what each token gives, once ---- */

static int hex(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The byte of "<0x4F>", or -1. */
static int byte_token(const char *s, size_t n) {
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>' || hex(s[3]) < 0 || hex(s[4]) < 0)
        return -1;
    return hex(s[3]) * 16 + hex(s[4]);
}

static void put_byte_level(const char *s, size_t n, mxd_buf *out) {
    char *to = mxd_buf_grow(out, n);
    if (!to) return;
    size_t k;
    if (tok_to_bytes(s, n, to, &k))
        out->len -= n - k;
    else
        memcpy(to, s, n);
}

static void put_marks(const mxd_tokenizer *t, const char *s, size_t n, bool drop, mxd_buf *out) {
    size_t n_mark = strlen(t->dec_mark);
    for (size_t i = 0; i < n;) {
        bool mark = n - i >= n_mark && memcmp(s + i, t->dec_mark, n_mark) == 0;
        if (!mark)
            mxd_buf_putc(out, s[i]);
        else if (!drop)
            mxd_buf_putc(out, ' ');
        i += mark ? n_mark : 1;
    }
}

/* first: what it gives at the start of a text. */
static mxd_rc put_token(mxd_tokenizer *t, tok_matcher *m, int32_t id, const char *s, size_t n,
                        bool first, mxd_buf *out, mxd_buf *norm, mxd_buf *tmp, mxd_err *err) {
    if (t->n_dec_replace) {
        MXD_TRY(
            tok_normalize(t->dec_replace, t->n_dec_replace, m, s, n, true, true, norm, tmp, err));
        s = mxd_buf_str(norm);
        n = norm->len;
    }
    int byte = t->dec_byte_fallback ? byte_token(s, n) : -1;
    if (byte >= 0) {
        t->flags[id] |= TOK_BYTE;
        mxd_buf_putc(out, (char)byte);
    } else if (t->dec_byte_level) {
        put_byte_level(s, n, out);
    } else if (t->dec_metaspace) {
        put_marks(t, s, n, first && t->dec_drop_first, out);
    } else {
        mxd_buf_put(out, s, n);
    }
    return MXD_OK;
}

/* over: for each id the added token that decodes to its normalised text, or NULL. */
static mxd_rc put_all(mxd_tokenizer *t, const tok_bytes *spelled, const tok_added **over,
                      bool first, uint32_t *at, mxd_buf *out, mxd_err *err) {
    mxd_buf norm, tmp;
    tok_matcher m;
    mxd_buf_init(&norm, t->al, 1 << 20);
    mxd_buf_init(&tmp, t->al, 1 << 20);
    mxd_rc rc = tok_matcher_init(&m, t->al, err);
    for (int32_t id = 0; id < t->n_vocab && !rc; id++) {
        const tok_added *a = over[id];
        const char *s = a ? a->text : spelled->blob + spelled->at[id];
        size_t n = a ? a->n : spelled->at[id + 1] - spelled->at[id];
        at[id] = (uint32_t)out->len;
        rc = put_token(t, &m, id, s, n, first, out, &norm, &tmp, err);
    }
    mxd_buf_deinit(&norm);
    mxd_buf_deinit(&tmp);
    tok_matcher_deinit(&m);
    return rc;
}

static mxd_rc build(mxd_tokenizer *t, const tok_bytes *spelled, const tok_added **over, bool first,
                    tok_bytes *to, mxd_err *err) {
    mxd_buf out;
    mxd_buf_init(&out, t->al, UINT32_MAX);
    to->at = MXD_NEW(t->al, (size_t)t->n_vocab + 1, uint32_t);
    mxd_rc rc = to->at ? put_all(t, spelled, over, first, to->at, &out, err) : tok_no_memory(err);
    if (to->at) to->at[t->n_vocab] = (uint32_t)out.len;
    mxd_buf_putc(&out, 0); /* never an empty block */
    if (!rc) rc = mxd_buf_rc(&out, "the vocabulary", err);
    to->blob = out.ptr;
    return rc;
}

mxd_rc tok_build_out(mxd_tokenizer *t, const tok_bytes *spelled, mxd_err *err) {
    const tok_added **over = mxd_new(t->al, (size_t)t->n_vocab, sizeof *over);
    if (!over) return tok_no_memory(err);
    for (size_t i = 0; i < t->normalized.n; i++)
        over[t->normalized.list[i].id] = &t->normalized.list[i];
    mxd_rc rc = build(t, spelled, over, false, &t->out, err);
    if (!rc && t->dec_drop_first) rc = build(t, spelled, over, true, &t->out_first, err);
    mxd_free(t->al, over);
    return rc;
}

/* ---- a stream ---- */

void mxd_detok_init(mxd_detok *d, const mxd_tokenizer *t, bool skip_special) {
    *d = (mxd_detok){.t = t, .skip_special = skip_special};
    d->strip_left = (uint32_t)t->dec_strip_left;
}

static void put_bad(mxd_buf *out) { mxd_buf_puts(out, "\xef\xbf\xbd"); }

/* Valid text, minus what the decoder strips at the start. */
static void put_text(mxd_detok *d, const char *s, size_t n, mxd_buf *out) {
    size_t k = strlen(d->t->dec_strip);
    while (d->strip_left && n) {
        if (n < k || memcmp(s, d->t->dec_strip, k) != 0) {
            d->strip_left = 0;
            break;
        }
        d->strip_left--;
        s += k;
        n -= k;
    }
    mxd_buf_put(out, s, n);
}

/* The next byte of a byte-level stream. Each longest beginning of a character that is not
 * continued gives one U+FFFD, as String::from_utf8_lossy does. */
static void put_stream_byte(mxd_detok *d, char c, mxd_buf *out) {
    uint32_t cp;
    d->hold[d->n_hold++] = c;
    int k = mxd_utf8_next(d->hold, d->n_hold, &cp);
    if (k < 0) return;
    if (k > 0) {
        put_text(d, d->hold, (size_t)k, out);
        d->n_hold = 0;
        return;
    }
    bool again = d->n_hold > 1;
    d->n_hold = 0;
    put_bad(out);
    if (again) put_stream_byte(d, c, out);
}

/* The end of a run of byte tokens: its text, or one U+FFFD for each byte when it is not UTF-8 as a
 * whole, as the ByteFallback decoder does. */
static void end_run(mxd_detok *d, mxd_buf *out) {
    if (!d->run_state) return;
    bool bad = d->run_state == 2 || !mxd_utf8_valid(d->hold, d->n_hold);
    if (!bad) put_text(d, d->hold, d->n_hold, out);
    if (bad) d->strip_left = 0;
    for (uint32_t i = bad ? d->n_bad + d->n_hold : 0; i > 0; i--) put_bad(out);
    d->run_state = 0;
    d->n_hold = 0;
    d->n_bad = 0;
}

static void put_run_byte(mxd_detok *d, char c, mxd_buf *out) {
    if (!d->run_state) d->run_state = 1;
    if (d->run_state == 1 && d->n_hold == sizeof d->hold) { /* give out what is whole */
        bool bad;
        size_t whole = mxd_utf8_whole(d->hold, d->n_hold, &bad);
        put_text(d, d->hold, whole, out);
        memmove(d->hold, d->hold + whole, d->n_hold - whole);
        d->n_hold = (uint16_t)(d->n_hold - whole);
    }
    if (d->run_state == 2) {
        d->n_bad++;
        return;
    }
    d->hold[d->n_hold++] = c;
    bool bad;
    mxd_utf8_whole(d->hold, d->n_hold, &bad);
    if (!bad) return;
    d->run_state = 2;
    d->n_bad = d->n_hold;
    d->n_hold = 0;
}

void mxd_detok_push(mxd_detok *d, int32_t id, mxd_buf *out) {
    const mxd_tokenizer *t = d->t;
    if (id < 0 || id >= t->n_vocab || !(t->flags[id] & TOK_EXISTS)) return;
    if (d->skip_special && t->flags[id] & TOK_SPECIAL) return;
    bool first = !d->any;
    d->any = true;
    const tok_bytes *texts = first && t->dec_drop_first ? &t->out_first : &t->out;
    const char *s = texts->blob + texts->at[id];
    size_t n = texts->at[id + 1] - texts->at[id];
    if (t->flags[id] & TOK_BYTE) {
        put_run_byte(d, s[0], out);
        return;
    }
    end_run(d, out);
    if (t->dec_byte_level) {
        for (size_t i = 0; i < n; i++) put_stream_byte(d, s[i], out);
        return;
    }
    if (t->dec_join && !first) mxd_buf_putc(out, ' ');
    put_text(d, s, n, out);
}

void mxd_detok_flush(mxd_detok *d, mxd_buf *out) {
    end_run(d, out);
    if (d->n_hold) put_bad(out);
    mxd_detok_init(d, d->t, d->skip_special);
}

const char *mxd_tokenizer_bytes(const mxd_tokenizer *t, int32_t id, size_t *n) {
    *n = 0;
    if (id < 0 || id >= t->n_vocab || !(t->flags[id] & TOK_EXISTS)) return NULL;
    *n = t->out.at[id + 1] - t->out.at[id];
    return t->out.blob + t->out.at[id];
}
