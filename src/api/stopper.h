/* stopper.h - finds stop strings in a text that arrives in pieces, and holds back what might still
 * become one. Pure; tested with every cut of every text.
 *
 * Threads: one owner. Memory: borrows the stop strings.
 */
#ifndef MXD_API_STOPPER_H
#define MXD_API_STOPPER_H

#include "base/buf.h"

typedef struct mxd_stopper {
    const char *const *stop; /* [n_stop], none empty */
    int n_stop;
    mxd_buf held; /* not given out yet: a proper prefix of some stop string at its end */
    int matched;  /* index of the stop string that was found, or -1 */
} mxd_stopper;

void mxd_stopper_init(mxd_stopper *s, const mxd_alloc *al, const char *const *stop, int n_stop);
void mxd_stopper_deinit(mxd_stopper *s);

/* Takes n more bytes and appends to `out` what can no longer be part of a stop string. When one is
 * found (the leftmost; of several there, the first in the list), the text before it is given out,
 * `matched` is set and everything later is dropped. A match waits while a better one may still
 * begin before it, so the result does not depend on how the text was cut. Failures stick in
 * out->rc. */
void mxd_stopper_push(mxd_stopper *s, const char *text, size_t n, mxd_buf *out);

/* The text has ended: gives out what was held, up to a match that waited (`matched` is set). */
void mxd_stopper_flush(mxd_stopper *s, mxd_buf *out);

#endif
