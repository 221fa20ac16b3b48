#include "base/blob.h"

#include <string.h>

mxd_blob *mxd_blob_new(const mxd_alloc *al, size_t cap) {
    mxd_blob *b = mxd_blob_raw(al, cap);
    if (b) memset(b->bytes, 0, cap);
    return b;
}

mxd_blob *mxd_blob_raw(const mxd_alloc *al, size_t cap) {
    mxd_blob *b = MXD_NEW(al, 1, mxd_blob);
    unsigned char *bytes = b ? mxd_new_bytes(al, cap) : NULL;
    if (!bytes) {
        mxd_free(al, b);
        return NULL;
    }
    b->al = al;
    b->len = b->cap = cap;
    b->bytes = bytes;
    atomic_init(&b->refs, 1);
    return b;
}

mxd_blob *mxd_blob_view(const mxd_alloc *al, mxd_blob *of, size_t from, size_t n) {
    MXD_ASSERT(from <= of->len && n <= of->len - from);
    mxd_blob *b = MXD_NEW(al, 1, mxd_blob);
    if (!b) return NULL;
    b->al = al;
    b->len = b->cap = n;
    b->bytes = of->bytes + from;
    b->of = mxd_blob_retain(of);
    atomic_init(&b->refs, 1);
    return b;
}

mxd_blob *mxd_blob_retain(mxd_blob *b) {
    if (b) atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void mxd_blob_release(mxd_blob *b) {
    if (!b || atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) != 1) return;
    const mxd_alloc *al = b->al;
    if (b->of)
        mxd_blob_release(b->of);
    else
        mxd_free(al, b->bytes);
    mxd_free(al, b);
}
