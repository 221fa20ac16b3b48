/* slabs.c - the memory of weights. Neighbouring weights share slabs that begin on a large page:
 * most matrices are not much larger than one (2 MB), so memory of their own would leave them in
 * small pages, and a product with one token waits for address translation. */
#include "backend/cpu/cpu.h"

enum { LARGE_PAGE = 2 << 20, SLAB_MOST = 128 << 20 };

struct cpu_slab {
    cpu_slab *next;
    unsigned char *mem, *at; /* `at`: the first free byte, on a cache line */
    size_t mem_bytes, left;
};

/* A slab for at least `bytes`; as large as all before it together, so that small models stay small.
 */
static cpu_slab *add_slab(cpu_backend *b, size_t bytes) {
    size_t room = b->slab_bytes < SLAB_MOST ? b->slab_bytes : SLAB_MOST;
    size_t align = room >= LARGE_PAGE || bytes >= LARGE_PAGE ? LARGE_PAGE : 64;
    if (room < bytes) room = bytes;
    if (room > SIZE_MAX - 2 * align) return NULL;
    room = (room + align - 1) & ~(align - 1);
    cpu_slab *s = MXD_NEW(b->al, 1, cpu_slab);
    if (!s) return NULL;
    s->mem_bytes = room + align; /* not zeroed: packing writes all that is used */
    s->mem = b->al->resize(b->al->ctx, NULL, 0, s->mem_bytes);
    if (!s->mem) {
        mxd_free(b->al, s);
        return NULL;
    }
    s->at = (unsigned char *)(((uintptr_t)s->mem + align - 1) & ~((uintptr_t)align - 1));
    s->left = room;
    if (align == LARGE_PAGE) cpu_want_large_pages(s->at, room);
    s->next = b->slabs;
    b->slabs = s;
    b->slab_bytes += room;
    return s;
}

void *cpu_slab_take(cpu_backend *b, size_t bytes) {
    if (bytes > SIZE_MAX - 64) return NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    cpu_slab *s = b->slabs;
    if (!s || s->left < bytes) s = add_slab(b, bytes);
    if (!s) return NULL;
    void *p = s->at;
    s->at += bytes;
    s->left -= bytes;
    return p;
}

void cpu_slabs_free(cpu_backend *b) {
    while (b->slabs) {
        cpu_slab *s = b->slabs;
        b->slabs = s->next;
        b->al->resize(b->al->ctx, s->mem, s->mem_bytes, 0);
        mxd_free(b->al, s);
    }
}
