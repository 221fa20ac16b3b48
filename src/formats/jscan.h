/* jscan.h - a pull scanner over JSON text: one token at a time, no tree, no memory, no recursion.
 *
 * For text that is too big for a tree (a tokenizer's vocabulary), for formats that are stricter
 * than JSON (a safetensors header), and to check depth and size before jansson recurses.
 * Strict: RFC 8259, valid UTF-8, no lone surrogates; depth at most MXD_JSON_MAX_DEPTH.
 *
 *   value ----> OBJECT, then KEY value KEY value ..., then OBJECT_END
 *           |-> ARRAY, then value value ..., then ARRAY_END
 *           '-> STRING | NUMBER | TRUE | FALSE | NULL
 *   after the outermost value: END (or E_FORMAT when anything but white space follows)
 *
 * Trust: hostile. Lifetime: tokens are borrowed from the text. Threads: reentrant.
 */
#ifndef MXD_FORMATS_JSCAN_H
#define MXD_FORMATS_JSCAN_H

#include <stddef.h>
#include <stdint.h>
#include "base/buf.h"

typedef enum mxd_jtok {
    MXD_JTOK_END,
    MXD_JTOK_OBJECT,
    MXD_JTOK_OBJECT_END,
    MXD_JTOK_ARRAY,
    MXD_JTOK_ARRAY_END,
    MXD_JTOK_KEY,
    MXD_JTOK_STRING,
    MXD_JTOK_NUMBER,
    MXD_JTOK_TRUE,
    MXD_JTOK_FALSE,
    MXD_JTOK_NULL,
} mxd_jtok;

typedef struct mxd_jscan {
    const char *text;
    size_t n, pos; /* pos: the first byte not yet looked at */
    size_t n_nodes, max_nodes;
    uint64_t in_object; /* bit d: level d is an object */
    int depth;
    int expect;     /* what may come next; private */
    mxd_jtok tok;   /* the current token */
    const char *at; /* its text: the inside of the quotes for KEY and STRING */
    size_t len;
    bool escaped; /* KEY and STRING: the text has escapes, see mxd_jscan_decode */
} mxd_jscan;

/* max_nodes: how many values the text may have; more is E_TOOBIG. */
void mxd_jscan_init(mxd_jscan *s, const char *text, size_t n, size_t max_nodes);

/* Moves to the next token. Errors: E_FORMAT with line and column; E_TOOBIG. */
mxd_rc mxd_jscan_next(mxd_jscan *s, mxd_err *err) MXD_MUST_USE;

/* Moves to the last token of the value that begins at the current token (a KEY is not a value).
 *   *from, *n   (may be NULL) its text, borrowed */
mxd_rc mxd_jscan_skip(mxd_jscan *s, const char **from, size_t *n, mxd_err *err) MXD_MUST_USE;

/* Writes the current KEY or STRING without escapes to dst, which has room for s->len bytes;
 * returns how many. The text was checked when it was scanned, so this cannot fail. */
size_t mxd_jscan_decode(const mxd_jscan *s, char *dst);

/* Whether the current KEY or STRING is `word`, escapes considered. */
bool mxd_jscan_is(const mxd_jscan *s, const char *word);

/* Records `what` with line and column of the current position; returns E_FORMAT. */
mxd_rc mxd_jscan_fail(const mxd_jscan *s, mxd_err *err, const char *what);

#endif
