/* queue.h - a bounded queue of pointers between threads: the only way threads meet.
 *
 * Any thread may push, one thread pops. A full queue refuses at once: the pusher decides whether
 * that is backpressure, an error for a client, or a reason to drop a peer.
 *
 * Threads: push, close from any; pop from the one owner.
 */
#ifndef MXD_BASE_QUEUE_H
#define MXD_BASE_QUEUE_H

#include "base/alloc.h"
#include <stdint.h>

typedef struct mxd_queue mxd_queue;

/* cap: how many pointers may wait, 1 .. 2^20. Errors: E_NOMEM. */
mxd_rc mxd_queue_open(mxd_queue **out, const mxd_alloc *al, size_t cap, mxd_err *err) MXD_MUST_USE;
void mxd_queue_free(mxd_queue *q); /* pop what is left first: items are not freed here */

/* Takes `item` (not NULL). False: full or closed, and the item stays the caller's. */
bool mxd_queue_push(mxd_queue *q, void *item);

/* The oldest item; NULL when none came within timeout_ms (0: just look, -1: for ever) or the
 * queue was closed and is empty. spin_us: poll this long before sleeping. */
void *mxd_queue_pop(mxd_queue *q, int64_t timeout_ms, int spin_us);

void mxd_queue_close(mxd_queue *q); /* pushes fail from now on, waiting pops return */
bool mxd_queue_closed(const mxd_queue *q);

#endif
