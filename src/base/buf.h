/* buf.h - a growing byte buffer that is born with a maximum.
 *
 * Appends never need checking one by one: the first failure sticks in `rc`, later appends do
 * nothing, and the caller looks once at the end (mxd_buf_rc). The bytes always have a NUL behind
 * them, not counted in len, so text can be used as a C string.
 *
 * Threads: one owner at a time.
 */
#ifndef MXD_BASE_BUF_H
#define MXD_BASE_BUF_H

#include <stdarg.h>
#include <stdint.h>
#include "base/alloc.h"

typedef struct mxd_buf {
    const mxd_alloc *al;
    char *ptr; /* NULL while nothing was appended */
    size_t len, cap, max;
    mxd_rc rc; /* E_NOMEM or E_TOOBIG after the first append that failed */
} mxd_buf;

/* max_bytes: what the content may reach. */
void mxd_buf_init(mxd_buf *b, const mxd_alloc *al, size_t max_bytes);
void mxd_buf_deinit(mxd_buf *b);
void mxd_buf_clear(mxd_buf *b); /* len = 0 and rc = OK; keeps the memory */

void mxd_buf_put(mxd_buf *b, const void *bytes, size_t n);
void mxd_buf_puts(mxd_buf *b, const char *s);
void mxd_buf_putc(mxd_buf *b, char c);
void mxd_buf_printf(mxd_buf *b, const char *fmt, ...) MXD_PRINTF(2, 3);
void mxd_buf_vprintf(mxd_buf *b, const char *fmt, va_list ap);

/* n more bytes of room, counted as content at once; NULL on failure. Borrowed until the next
 * append. */
void *mxd_buf_grow(mxd_buf *b, size_t n);

/* Drops the first n bytes (n <= len). O(len). */
void mxd_buf_drop(mxd_buf *b, size_t n);

/* The content as a string, "" when empty. Borrowed until the next append. */
const char *mxd_buf_str(const mxd_buf *b);

/* OK, or the first failure with `what` named in err. */
mxd_rc mxd_buf_rc(const mxd_buf *b, const char *what, mxd_err *err) MXD_MUST_USE;

#endif
