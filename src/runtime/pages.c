#include "runtime/pages.h"

#include <string.h>
#include "base/err.h"
#include "runtime/mutants.h"

void mxd_pages_init(mxd_pages *p, uint32_t page, int n_pages) {
    MXD_ASSERT(page >= 1 && n_pages >= 1);
    p->page = page;
    p->n_pages = p->n_free = n_pages;
    memset(p->refs, 0, (size_t)n_pages * sizeof *p->refs);
    for (int i = 0; i < n_pages; i++) p->free[i] = n_pages - 1 - i;
}

static int count(const mxd_pages *p, uint32_t len) { return (int)((len + p->page - 1) / p->page); }

bool mxd_pages_can_cut(const mxd_pages *p, const mxd_page_table *t, uint32_t len) {
    if (len > t->len) return false;
    return len % p->page == 0 || p->refs[t->table[len / p->page]] == 1;
}

void mxd_pages_cut(mxd_pages *p, mxd_page_table *t, uint32_t len) {
    MXD_ASSERT(len <= t->len);
    for (int keep = count(p, len); t->n > keep;) {
        int32_t page = t->table[--t->n];
        MXD_ASSERT(p->refs[page] > 0 || MUTANT(FREE_SHARED));
        if (--p->refs[page] == 0 || MUTANT(FREE_SHARED)) p->free[p->n_free++] = page;
    }
    t->len = len;
}

void mxd_pages_share(mxd_pages *p, mxd_page_table *dst, const mxd_page_table *src, uint32_t len) {
    MXD_ASSERT(dst != src && len <= src->len);
    MXD_ASSERT(len % p->page == 0 || MUTANT(SHARE_PARTIAL));
    mxd_pages_cut(p, dst, 0);
    for (int n = count(p, len); dst->n < n; dst->n++) {
        dst->table[dst->n] = src->table[dst->n];
        p->refs[dst->table[dst->n]]++;
    }
    dst->len = len;
}

void mxd_pages_cover(mxd_pages *p, mxd_page_table *t, uint32_t len) {
    for (int want = count(p, len); t->n < want;) {
        MXD_ASSERT(p->n_free > 0);
        int32_t page = p->free[--p->n_free];
        p->refs[page] = 1;
        t->table[t->n++] = page;
    }
    t->len = len;
}
