/* links.h - the table from link numbers to a transport's own link structs.
 *
 * A number is (generation << 16 | slot + 1): lookup is one array access, a number is never used
 * again, and an old one finds nothing. Private to this room.
 *
 * Threads: none of its own; the owner's lock guards it.
 */
#ifndef MXD_NET_LINKS_H
#define MXD_NET_LINKS_H

#include "net/transport.h"

enum { MXD_MAX_LINKS = 4096 }; /* of one transport: nodes * lanes * both directions, and slack */

typedef struct mxd_links {
    const mxd_alloc *al;
    struct mxd_links_slot {
        mxd_link id; /* 0: free */
        void *item;
    } * slots; /* [cap] */
    size_t cap, n;
    uint64_t generation;
} mxd_links;

void mxd_links_init(mxd_links *t, const mxd_alloc *al);
void mxd_links_deinit(mxd_links *t);

/* Gives `item` a new number. Errors: E_BUSY MXD_MAX_LINKS are in use; E_NOMEM. */
mxd_rc mxd_links_add(mxd_links *t, void *item, mxd_link *id, mxd_err *err) MXD_MUST_USE;

void *mxd_links_get(const mxd_links *t, mxd_link id); /* NULL: unknown or gone */
void mxd_links_remove(mxd_links *t, mxd_link id);     /* unknown numbers are ignored */

#endif
