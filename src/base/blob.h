/* blob.h - a counted block of bytes that crosses threads without a copy.
 *
 * Made with one reference; each holder that outlives the call retains it, and the last release
 * frees it, on whatever thread that happens. Bytes are written by the maker before the blob is
 * shared, and read-only from then on.
 */
#ifndef MXD_BASE_BLOB_H
#define MXD_BASE_BLOB_H

#include <stdatomic.h>
#include "base/alloc.h"

typedef struct mxd_blob {
    const mxd_alloc *al;
    atomic_int refs;
    size_t len, cap;      /* len <= cap; the maker sets len */
    unsigned char *bytes; /* [cap], 16-byte aligned */
    struct mxd_blob *of;  /* whose bytes these are, retained; NULL: our own */
} mxd_blob;

/* Room for cap bytes, zeroed, len = cap, one reference. NULL when memory is short. */
mxd_blob *mxd_blob_new(const mxd_alloc *al, size_t cap);
/* The same, not zeroed: the maker writes every byte at once. */
mxd_blob *mxd_blob_raw(const mxd_alloc *al, size_t cap);
/* The bytes [from, from + n) of `of`, which is retained as long as the view is. NULL when memory is
 * short. */
mxd_blob *mxd_blob_view(const mxd_alloc *al, mxd_blob *of, size_t from, size_t n);
mxd_blob *mxd_blob_retain(mxd_blob *b); /* returns b; NULL stays NULL */
void mxd_blob_release(mxd_blob *b);     /* NULL is fine */

#endif
