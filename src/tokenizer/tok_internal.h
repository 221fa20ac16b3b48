/* tok_internal.h - the parts of a tokenizer, shared by the tok_*.c files and nobody else.
 *
 *   tok_load.c     tokenizer.json -> tables          tok_encode.c   spans -> pieces -> ids
 *   tok_stages.c   normalizer, pre-tokenizer, ...    tok_bpe.c      one piece -> ids
 *   tok_vocab.c    token texts by id and back        tok_decode.c   ids -> text
 *   tok_match.c    where a pattern matches           tok_split.c    pieces -> pieces
 *   tok_norm.c     normalizers                        tok_regex.c    patterns in PCRE2's words
 */
#ifndef MXD_TOKENIZER_TOK_INTERNAL_H
#define MXD_TOKENIZER_TOK_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include "base/limits.h"
#include "tokenizer/tokenizer.h"

/* ---- patterns ---- */

typedef bool (*tok_class)(uint32_t cp);

bool tok_is_space(uint32_t cp); /* White_Space */
bool tok_is_word(uint32_t cp);  /* \w of the regex crate */
bool tok_is_number(uint32_t cp);
bool tok_is_punct(uint32_t cp);
bool tok_is_mark(uint32_t cp);

typedef struct tok_pattern { /* one of the three is set */
    char *literal;           /* [n_literal], owned */
    size_t n_literal;
    pcre2_code *regex; /* owned */
    tok_class in;      /* one character of the class */
} tok_pattern;

/* Appends the pattern s[n], which is Oniguruma's, as PCRE2 wants it (tok_regex.c). */
mxd_rc tok_regex_write(mxd_buf *out, const char *s, size_t n, mxd_err *err) MXD_MUST_USE;

/* What matching needs at run time; one per encode. */
typedef struct tok_matcher {
    const mxd_alloc *al;
    pcre2_general_context *general;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    pcre2_match_data *data;
    int64_t deadline_ns; /* for all matches of this encode together */
    unsigned n_matches;
} tok_matcher;

mxd_rc tok_pattern_literal(tok_pattern *p, const mxd_alloc *al, const char *s, size_t n,
                           mxd_err *err) MXD_MUST_USE;
mxd_rc tok_pattern_regex(tok_pattern *p, const mxd_alloc *al, const char *s, size_t n,
                         mxd_err *err) MXD_MUST_USE;
void tok_pattern_deinit(tok_pattern *p, const mxd_alloc *al);

mxd_rc tok_matcher_init(tok_matcher *m, const mxd_alloc *al, mxd_err *err) MXD_MUST_USE;
void tok_matcher_deinit(tok_matcher *m); /* also after a failed init */

/* A walk over all matches in a text, from {0}. */
typedef struct tok_walk {
    size_t from;     /* where the search goes on */
    size_t last_end; /* of the last match; an empty match there does not count */
    bool any;
} tok_walk;

/* The next match: *b, *e; *found = false when there is none. */
mxd_rc tok_match(tok_matcher *m, const tok_pattern *p, const char *s, size_t n, tok_walk *walk,
                 bool *found, size_t *b, size_t *e, mxd_err *err) MXD_MUST_USE;

/* ---- stages ---- */

typedef enum tok_norm_kind {
    TOK_NFC,
    TOK_NFD,
    TOK_NFKC,
    TOK_NFKD,
    TOK_REPLACE,
    TOK_PREPEND,
    TOK_LOWERCASE,
    TOK_STRIP,
    TOK_STRIP_ACCENTS,
} tok_norm_kind;

typedef struct tok_norm {
    tok_norm_kind kind;
    tok_pattern pattern; /* REPLACE */
    char *text;          /* REPLACE: the new text; PREPEND; owned */
    size_t n_text;
    bool left, right; /* STRIP */
} tok_norm;

typedef enum tok_behavior {
    TOK_ISOLATED,
    TOK_REMOVED,
    TOK_MERGED_WITH_PREVIOUS,
    TOK_MERGED_WITH_NEXT,
    TOK_CONTIGUOUS,
} tok_behavior;

typedef enum tok_pre_kind { TOK_SPLIT, TOK_PREFIX_SPACE, TOK_METASPACE } tok_pre_kind;
typedef enum tok_prepend { TOK_ALWAYS, TOK_FIRST, TOK_NEVER } tok_prepend;

typedef struct tok_pre {
    tok_pre_kind kind;
    tok_pattern pattern; /* SPLIT; METASPACE: its replacement as a literal */
    tok_behavior behavior;
    bool invert;
    bool split; /* METASPACE: cut in front of each replacement */
    tok_prepend prepend;
} tok_pre;

enum { TOK_MAX_STAGES = 32, TOK_MAX_EXTRA = 16 };

typedef struct tok_added {
    char *text; /* owned; normalised for tokens that match in normalised text */
    size_t n;
    int32_t id;
    bool single_word, lstrip, rstrip;
} tok_added;

typedef struct tok_added_set { /* sorted by bytes */
    tok_added *list;           /* [n] */
    size_t n;
} tok_added_set;

/* ---- tables ---- */

typedef struct tok_bytes { /* texts by id: blob[at[id] .. at[id + 1]) */
    char *blob;
    uint32_t *at; /* [n_vocab + 1] */
} tok_bytes;

typedef struct tok_merge { /* key (left, right); rank < 0: a free slot */
    int32_t left, right, rank, id;
} tok_merge;

enum { TOK_SPECIAL = 1, TOK_EXISTS = 2, TOK_BYTE = 4, TOK_KEY = 8 }; /* flags of an id */

typedef struct mxd_tokenizer {
    const mxd_alloc *al;
    int32_t n_vocab;
    tok_bytes key;       /* what BPE works on: raw bytes when byte_level, else the spelled text */
    tok_bytes out;       /* what decoding gives */
    tok_bytes out_first; /* with dec_drop_first: what it gives at the start of a text */
    uint8_t *flags;      /* [n_vocab] */
    int32_t *slots;      /* hash of keys -> id, -1 free; [n_slots], a power of two */
    size_t n_slots;
    uint64_t seed;
    tok_merge *merges; /* hash; [n_merge_slots], a power of two */
    size_t n_merge_slots;

    /* model */
    bool byte_level, byte_fallback, ignore_merges, fuse_unk;
    int32_t model_unk;
    int32_t byte_ids[256]; /* byte_level: of each byte; byte_fallback: of <0xNN>; -1 */

    /* stages */
    tok_norm norm[TOK_MAX_STAGES];
    int n_norm;
    tok_pre pre[TOK_MAX_STAGES];
    int n_pre;
    tok_added_set raw, normalized;
    int32_t before[TOK_MAX_EXTRA], after[TOK_MAX_EXTRA]; /* post-processor */
    int n_before, n_after;

    /* decoder */
    bool dec_byte_level, dec_byte_fallback, dec_fuse, dec_join, dec_metaspace, dec_drop_first;
    tok_norm dec_replace[TOK_MAX_STAGES];
    int n_dec_replace;
    char dec_mark[5]; /* Metaspace's replacement */
    char dec_strip[5];
    int dec_strip_left;

    int32_t bos, eos, pad, unk;
    json_t *special_vars;
} mxd_tokenizer;

/* ---- tok_vocab.c ---- */

/* The byte of a character of the byte-level alphabet, or -1. */
int tok_byte_of(uint32_t cp);

/* Spelled text -> raw bytes (never more than n); *n_out = 0 and false when a character is not in
 * the byte-level alphabet. */
bool tok_to_bytes(const char *s, size_t n, char *out, size_t *n_out);

int32_t tok_find_key(const mxd_tokenizer *t, const char *s, size_t n);
void tok_add_key(mxd_tokenizer *t, int32_t id); /* slots must have room */
const tok_merge *tok_find_merge(const mxd_tokenizer *t, int32_t left, int32_t right);
void tok_put_merge(mxd_tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t id);

/* ---- tok_stages.c ---- */

mxd_rc tok_load_normalizer(mxd_tokenizer *t, const json_t *v, mxd_err *err) MXD_MUST_USE;
mxd_rc tok_load_pre(mxd_tokenizer *t, const json_t *v, mxd_err *err) MXD_MUST_USE;
mxd_rc tok_load_post(mxd_tokenizer *t, const json_t *v, mxd_err *err) MXD_MUST_USE;
mxd_rc tok_load_decoder(mxd_tokenizer *t, const json_t *v, mxd_err *err) MXD_MUST_USE;

/* ---- tok_norm.c ---- */

/* Runs all stages over s[n]; the result replaces the content of `out`, `tmp` is scratch.
 * first, last: whether s begins and ends the piece (Prepend and Strip look at its ends only). */
mxd_rc tok_normalize(const tok_norm *stages, int n_stages, tok_matcher *m, const char *s, size_t n,
                     bool first, bool last, mxd_buf *out, mxd_buf *tmp, mxd_err *err) MXD_MUST_USE;

/* ---- tok_split.c ---- */

typedef struct tok_piece {
    uint32_t at, n;
    int32_t id; /* >= 0: this token, and no text */
    bool first; /* begins the whole text */
} tok_piece;

typedef struct tok_pieces {
    const mxd_alloc *al;
    tok_piece *list;
    size_t n, cap;
} tok_pieces;

mxd_rc tok_pieces_push(tok_pieces *p, tok_piece x, mxd_err *err) MXD_MUST_USE; /* empty: ignored */

/* Runs the pre-tokenizers over all pieces that are text; text and list are replaced. */
mxd_rc tok_pretokenize(const mxd_tokenizer *t, tok_matcher *m, mxd_buf *text, tok_pieces *pieces,
                       mxd_err *err) MXD_MUST_USE;

/* ---- tok_bpe.c ---- */

typedef struct tok_bpe { /* scratch of one encode */
    const mxd_tokenizer *t;
    struct tok_symbol {
        int32_t id, prev, next;
    } * symbols; /* [cap] */
    size_t n, cap;
    uint64_t *heap; /* [cap_heap]: rank << 32 | position, smallest first */
    size_t n_heap, cap_heap;
} tok_bpe;

mxd_rc tok_bpe_run(tok_bpe *b, const char *s, size_t n, mxd_ids *out, mxd_err *err) MXD_MUST_USE;
void tok_bpe_deinit(tok_bpe *b);

/* ---- tok_decode.c ---- */

/* Fills t->out and t->out_first from the spelled texts. */
mxd_rc tok_build_out(mxd_tokenizer *t, const tok_bytes *spelled, mxd_err *err) MXD_MUST_USE;

mxd_rc tok_no_memory(mxd_err *err);

#endif
