/* pages.h - which KV pages hold the positions of which sequence. Pure.
 *
 * A sequence of len positions has a table: position p lies in page table[p / page]. Sequences that
 * begin alike may share their first pages; a page counts how many tables name it, and is free when
 * none does.
 *
 *   page: FREE --cover--> OWN (1 table) --share--> SHARED (n tables) --cut--> OWN --cut--> FREE
 *   Rule: only an OWN page is written. cover gives new pages behind the end, share takes whole
 * pages only, and cut into the middle of a SHARED page is a mistake that mxd_pages_can_cut tells.
 *   May be trusted: the table covers len; a page is in no table twice; refs is the number of
 * tables; there are pages for every position of every sequence, so cover cannot fail.
 *
 * Lifetime: the caller's storage. Threads: one. Errors: none; asserts for the caller's mistakes.
 */
#ifndef MXD_RUNTIME_PAGES_H
#define MXD_RUNTIME_PAGES_H

#include <stdbool.h>
#include <stdint.h>
#include "base/limits.h"

typedef struct mxd_pages {
    uint32_t page; /* positions of a page */
    int n_pages, n_free;
    uint16_t *refs; /* [n_pages] tables that name it; at most MXD_MAX_SEQS */
    int32_t *free;  /* [n_pages] the first n_free are free */
} mxd_pages;

typedef struct mxd_page_table {
    uint32_t len; /* positions */
    int n;
    int32_t *table; /* [n of at most ceil(longest / page)] */
} mxd_page_table;

/* All pages free; refs and free are set by the caller. */
void mxd_pages_init(mxd_pages *p, uint32_t page, int n_pages);

/* May the sequence be cut back to len positions and go on from there? */
bool mxd_pages_can_cut(const mxd_pages *p, const mxd_page_table *t, uint32_t len);
void mxd_pages_cut(mxd_pages *p, mxd_page_table *t, uint32_t len);

/* dst, emptied, begins with the first len positions of src: a multiple of the page. */
void mxd_pages_share(mxd_pages *p, mxd_page_table *dst, const mxd_page_table *src, uint32_t len);

/* Positions [t->len, len) get pages. */
void mxd_pages_cover(mxd_pages *p, mxd_page_table *t, uint32_t len);

#endif
