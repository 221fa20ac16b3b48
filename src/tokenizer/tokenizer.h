/* tokenizer.h - text to token ids and back, as the `tokenizers` library does it from
 * tokenizer.json: added tokens -> normalizer -> pre-tokenizer -> BPE -> post-processor, and the
 * decoder for the way back.
 *
 * Text is given in spans. Only trusted spans (written by the chat template or by the operator) may
 * contain special or added tokens; in untrusted spans `<|im_start|>` is ordinary text. A border
 * between spans is otherwise invisible: words are cut as in the joined text.
 *
 * Trust:    tokenizer.json is hostile (sizes, ids, patterns are checked or bounded); so is text.
 * Lifetime: model.
 * Threads:  a tokenizer is only read after opening: any thread. A detokeniser belongs to one.
 * Source:   docs/formats.md; the behaviour of tokenizers 0.20 and later.
 */
#ifndef MXD_TOKENIZER_TOKENIZER_H
#define MXD_TOKENIZER_TOKENIZER_H

#include <jansson.h>
#include <stdint.h>
#include "base/buf.h"

typedef struct mxd_tokenizer mxd_tokenizer;

/* Reads tokenizer.json and, where present, tokenizer_config.json and special_tokens_map.json.
 *   *out   owned by the caller: mxd_tokenizer_close; untouched on error
 * Errors: E_NOTFOUND no tokenizer.json; E_FORMAT; E_UNSUPPORTED a stage that is not built in (the
 * message names it); E_TOOBIG; E_IO; E_NOMEM. Cost: 150,000 tokens take about 0.1 s. */
mxd_rc mxd_tokenizer_open(mxd_tokenizer **out, const mxd_alloc *al, const char *folder,
                          mxd_err *err) MXD_MUST_USE;
void mxd_tokenizer_close(mxd_tokenizer *t); /* NULL is fine */

/* As above from text. config, special_map: the other two files or NULL; borrowed for the call. */
mxd_rc mxd_tokenizer_parse(mxd_tokenizer **out, const mxd_alloc *al, const char *text, size_t n,
                           const json_t *config, const json_t *special_map,
                           mxd_err *err) MXD_MUST_USE;

int mxd_tokenizer_vocab(const mxd_tokenizer *t); /* highest id + 1 */

/* -1 when there is none. */
int32_t mxd_tokenizer_bos(const mxd_tokenizer *t);
int32_t mxd_tokenizer_eos(const mxd_tokenizer *t);
int32_t mxd_tokenizer_pad(const mxd_tokenizer *t);
int32_t mxd_tokenizer_unk(const mxd_tokenizer *t);

/* The id of a token by its text as tokenizer.json spells it ("<|im_end|>", "\u0120the"); -1 when
 * there is none. O(length). */
int32_t mxd_tokenizer_find(const mxd_tokenizer *t, const char *text, size_t n);

/* The bytes that the token stands for in a text; may be a part of a code point. Special tokens:
 * their own text. Borrowed from t; NULL and *n = 0 for an id that does not exist. */
const char *mxd_tokenizer_bytes(const mxd_tokenizer *t, int32_t id, size_t *n);

bool mxd_tokenizer_is_special(const mxd_tokenizer *t, int32_t id);

/* bos_token, eos_token, ... as texts, for mxd_template_render's trusted variables. Borrowed; do not
 * change it, nor take references from two threads at once. */
const json_t *mxd_tokenizer_special_vars(const mxd_tokenizer *t);

/* ---- encode ---- */

typedef struct mxd_span {
    const char *ptr; /* borrowed; valid UTF-8 once all spans are joined */
    size_t n;
    bool trusted;
} mxd_span;

typedef struct mxd_ids { /* an array that is born with a maximum */
    const mxd_alloc *al;
    int32_t *ptr; /* [cap]; the first n count */
    size_t n, cap, max;
} mxd_ids;

void mxd_ids_init(mxd_ids *a, const mxd_alloc *al, size_t max);
void mxd_ids_deinit(mxd_ids *a);
mxd_rc mxd_ids_push(mxd_ids *a, int32_t id, mxd_err *err) MXD_MUST_USE;

/* Appends the ids of the joined spans to out.
 *   add_special   put BOS and EOS where the post-processor wants them; a BOS that the text already
 *                 begins with is not doubled. Raw completions: true; chat: false, because the
 *                 template writes them itself.
 * Errors: E_INVAL not UTF-8; E_TOOBIG more than out->max ids or 64 MiB of text, or a split pattern
 * ran into its limits; E_NOMEM. On error out may hold a part. Cost: O(n log n). */
mxd_rc mxd_tokenizer_encode(const mxd_tokenizer *t, const mxd_span *spans, size_t n_spans,
                            bool add_special, mxd_ids *out, mxd_err *err) MXD_MUST_USE;

/* ---- decode ---- */

/* The state of one stream of tokens; no memory of its own. Fields are private. */
typedef struct mxd_detok {
    const mxd_tokenizer *t;
    bool skip_special;
    bool any;            /* a token was taken */
    uint8_t run_state;   /* 0 no byte tokens wait, 1 they may become text, 2 they cannot */
    uint16_t n_hold;     /* bytes that wait for the rest of their code point or run */
    uint32_t strip_left; /* characters the decoder may still strip at the start */
    uint32_t n_bad;      /* byte tokens of a run that cannot become text */
    char hold[256];
} mxd_detok;

/* skip_special: special tokens give nothing. */
void mxd_detok_init(mxd_detok *d, const mxd_tokenizer *t, bool skip_special);

/* Appends what can be said for sure: always whole, valid UTF-8; the rest waits. An id that does
 * not exist gives nothing. Pushes and one flush together give what `tokenizers` decodes, except
 * that a run of more than 256 byte tokens is given out in parts. Failures stick in out->rc. */
void mxd_detok_push(mxd_detok *d, int32_t id, mxd_buf *out);

/* Appends U+FFFD for bytes that never became text. The state is as new afterwards. */
void mxd_detok_flush(mxd_detok *d, mxd_buf *out);

#endif
