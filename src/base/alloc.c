#include "base/alloc.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN = 64 }; /* a cache line, and an AVX-512 register */

static void *libc_resize(void *ctx, void *p, size_t old_bytes, size_t new_bytes) {
    (void)ctx, (void)old_bytes;
    if (new_bytes) return realloc(p, new_bytes);
    free(p);
    return NULL;
}

const mxd_alloc mxd_alloc_libc = {libc_resize, NULL};

/* ------------------------------------------------------------------- objects with their size */

/* In front of every object: how many bytes the object has, so that freeing needs no count. */
typedef union header {
    size_t bytes;
    max_align_t align;
} header;

static bool size_of(size_t n, size_t size, size_t *bytes) {
    return !__builtin_mul_overflow(n, size, bytes) && *bytes <= SIZE_MAX / 2;
}

void *mxd_new_bytes(const mxd_alloc *al, size_t bytes) {
    if (bytes > SIZE_MAX / 2) return NULL;
    header *h = al->resize(al->ctx, NULL, 0, bytes + sizeof *h);
    if (!h) return NULL;
    h->bytes = bytes;
    return h + 1;
}

void *mxd_new(const mxd_alloc *al, size_t n, size_t size) {
    size_t bytes;
    void *p = size_of(n, size, &bytes) ? mxd_new_bytes(al, bytes) : NULL;
    return p ? memset(p, 0, bytes) : NULL;
}

void *mxd_renew(const mxd_alloc *al, void *p, size_t n, size_t size) {
    if (!p) return mxd_new(al, n, size);
    size_t bytes;
    if (!size_of(n, size, &bytes)) return NULL;
    header *h = (header *)p - 1;
    size_t old = h->bytes;
    h = al->resize(al->ctx, h, old + sizeof *h, bytes + sizeof *h);
    if (!h) return NULL;
    h->bytes = bytes;
    if (bytes > old) memset((unsigned char *)(h + 1) + old, 0, bytes - old);
    return h + 1;
}

void mxd_free(const mxd_alloc *al, void *p) {
    if (!p) return;
    header *h = (header *)p - 1;
    al->resize(al->ctx, h, h->bytes + sizeof *h, 0);
}

char *mxd_strndup(const mxd_alloc *al, const char *s, size_t n) {
    char *copy = n < SIZE_MAX ? mxd_new(al, n + 1, 1) : NULL;
    if (copy) memcpy(copy, s, n);
    return copy;
}

char *mxd_strdup(const mxd_alloc *al, const char *s) { return mxd_strndup(al, s, strlen(s)); }

/* -------------------------------------------------------------------------------------- arena */

mxd_rc mxd_arena_init(mxd_arena *a, const mxd_alloc *up, size_t cap_bytes, mxd_err *err) {
    *a = (mxd_arena){.up = up};
    if (cap_bytes > SIZE_MAX / 2)
        return mxd_fail(err, MXD_E_TOOBIG, "an arena of %zu bytes cannot exist", cap_bytes);
    a->base = up->resize(up->ctx, NULL, 0, cap_bytes + ARENA_ALIGN);
    if (!a->base)
        return mxd_fail(err, MXD_E_NOMEM, "no memory for an arena of %zu bytes", cap_bytes);
    a->cap_bytes = cap_bytes + ARENA_ALIGN;
    return MXD_OK;
}

void mxd_arena_deinit(mxd_arena *a) {
    if (a->base) a->up->resize(a->up->ctx, a->base, a->cap_bytes, 0);
    *a = (mxd_arena){0};
}

void *mxd_arena_take(mxd_arena *a, size_t n, size_t size) {
    MXD_ASSERT(!a->frozen_by);
    size_t bytes;
    if (!size_of(n, size, &bytes)) return NULL;
    size_t pad = (size_t)(-(uintptr_t)(a->base + a->used_bytes)) % ARENA_ALIGN;
    size_t left = a->cap_bytes - a->used_bytes;
    if (pad > left || bytes > left - pad) return NULL;
    unsigned char *p = a->base + a->used_bytes + pad;
    a->used_bytes += pad + bytes;
    if (a->used_bytes > a->peak_bytes) a->peak_bytes = a->used_bytes;
    return memset(p, 0, bytes);
}

size_t mxd_arena_mark(const mxd_arena *a) { return a->used_bytes; }

void mxd_arena_reset(mxd_arena *a, size_t mark) {
    MXD_ASSERT(mark <= a->used_bytes);
    a->used_bytes = mark;
}

void mxd_arena_freeze(mxd_arena *a, const char *why) { a->frozen_by = why; }
