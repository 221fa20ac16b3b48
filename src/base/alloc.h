/* alloc.h - where memory comes from, and how long it lives.
 *
 * Lifespans, longest first. Everything belongs to exactly one of them:
 *   process  configuration, log sink, kernel choice        never freed
 *   model    weights, tokenizer tables, chat template      freed when the model closes
 *   session  KV pages, step scratch                        freed when the shard closes
 *   request  parsed JSON, prompt tokens, replies           freed when the response ends
 *
 * The token path allocates nothing: a shard sizes its scratch when it opens, in an arena that it
 * then freezes. A take from a frozen arena is a programmer error.
 *
 * Trust: sizes may come from files; products are checked here, so callers pass counts.
 * Threads: an allocator may be used from any thread; an arena belongs to one.
 */
#ifndef MXD_BASE_ALLOC_H
#define MXD_BASE_ALLOC_H

#include <stddef.h>
#include "base/err.h"

/* The one door to the heap. resize(ctx, NULL, 0, n) allocates, resize(ctx, p, old, 0) frees.
 * Tests pass one that counts bytes, or one that fails on the nth call. */
typedef struct mxd_alloc {
    void *(*resize)(void *ctx, void *p, size_t old_bytes, size_t new_bytes);
    void *ctx;
} mxd_alloc;

extern const mxd_alloc mxd_alloc_libc;

/* n objects of `size` bytes, zeroed, aligned to 16; NULL when memory is short or n * size
 * overflows. Owned by the caller: mxd_free. n = 0 gives a valid pointer to nothing. */
void *mxd_new(const mxd_alloc *al, size_t n, size_t size);
/* The same for bytes that are written before they are read: not zeroed. */
void *mxd_new_bytes(const mxd_alloc *al, size_t bytes);
#define MXD_NEW(al, n, type) ((type *)mxd_new((al), (n), sizeof(type)))

/* Grows or shrinks an array from mxd_new to n objects; new bytes are zero. NULL on failure, and
 * then the old array stays as it was. */
void *mxd_renew(const mxd_alloc *al, void *p, size_t n, size_t size);

void mxd_free(const mxd_alloc *al, void *p); /* NULL is fine */

/* A copy of a string, or of its first n bytes with a NUL behind. NULL when memory is short. */
char *mxd_strdup(const mxd_alloc *al, const char *s);
char *mxd_strndup(const mxd_alloc *al, const char *s, size_t n);

typedef struct mxd_arena {
    const mxd_alloc *up;
    unsigned char *base;
    size_t cap_bytes, used_bytes, peak_bytes;
    const char *frozen_by; /* NULL, or what froze it, for the assertion message */
} mxd_arena;

/* Reserves `cap_bytes` once; the arena never grows, so the limit is the budget.
 * Errors: E_NOMEM; E_TOOBIG if the size cannot be a size. */
mxd_rc mxd_arena_init(mxd_arena *a, const mxd_alloc *up, size_t cap_bytes,
                      mxd_err *err) MXD_MUST_USE;
void mxd_arena_deinit(mxd_arena *a);

/* n objects of `size` bytes, zeroed, 64-byte aligned; NULL if that does not fit (or overflows).
 * Borrowed: valid until mxd_arena_reset to an earlier mark. */
void *mxd_arena_take(mxd_arena *a, size_t n, size_t size);
#define MXD_TAKE(a, n, type) ((type *)mxd_arena_take((a), (n), sizeof(type)))

size_t mxd_arena_mark(const mxd_arena *a);
void mxd_arena_reset(mxd_arena *a, size_t mark);
void mxd_arena_freeze(mxd_arena *a, const char *why);

#endif
