/* json.h - JSON through jansson, with our limits, plus what jansson lacks.
 *
 * Parsing refuses duplicate keys, invalid UTF-8, NaN, integers beyond int64, depth over
 * MXD_JSON_MAX_DEPTH and more than MXD_JSON_MAX_NODES values; also "\u0000" in a string, because
 * most of the program uses strings as C strings. Reals are printed with the fewest digits that read
 * back to the same double (0.1 stays 0.1), as Python's repr does.
 *
 * Trust: hostile. Threads: a value belongs to one thread at a time (jansson's reference counts).
 * Memory: jansson's own; its failures come back as E_NOMEM.
 */
#ifndef MXD_FORMATS_JSON_H
#define MXD_FORMATS_JSON_H

#include <jansson.h>
#include "base/buf.h"

/* Parses exactly one value (any kind), allowing white space around it.
 *   *out   a new reference, owned by the caller: json_decref
 * Errors: E_FORMAT with line and column; E_TOOBIG over a limit; E_NOMEM. */
mxd_rc mxd_json_parse(json_t **out, const char *text, size_t n, mxd_err *err) MXD_MUST_USE;

/* As above for a file of at most max_bytes. Errors also E_NOTFOUND, E_IO; the path is named. */
mxd_rc mxd_json_load(json_t **out, const char *path, size_t max_bytes, mxd_err *err) MXD_MUST_USE;

/* Appends `v` as JSON text. Compact: no spaces ("{"a":1}"); otherwise Python's default spacing
 * ("{"a": 1}"). Keys in insertion order or sorted. Non-ASCII stays UTF-8 unless ascii_only.
 * indent < 0: one line. */
typedef struct mxd_json_style {
    bool compact, sort_keys, ascii_only;
    int indent;                     /* 0 means one line too */
    const char *item_sep, *key_sep; /* NULL: by `compact` */
} mxd_json_style;
void mxd_json_write(mxd_buf *out, const json_t *v, const mxd_json_style *style);

/* A JSON string literal with quotes around it, escaped; n bytes of valid UTF-8. */
void mxd_json_write_string(mxd_buf *out, const char *s, size_t n, bool ascii_only);

/* The shortest text that reads back to x: "0.1", "1e+22", "nan", "inf"; Python's repr. */
void mxd_json_write_real(mxd_buf *out, double x);

#endif
