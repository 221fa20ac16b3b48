/* inbox.h - private to cluster/: the one bounded queue into a driver's control thread.
 *
 * Network events are copied in by the transport's thread (mxd_inbox_sink); other threads post items
 * of their own kinds. A full inbox hangs up the link whose message it could not take: the peer
 * learns by DOWN, never by silence.
 *
 * Threads: post and sink from any; take and free from the control thread.
 */
#ifndef MXD_CLUSTER_INBOX_H
#define MXD_CLUSTER_INBOX_H

#include "base/queue.h"
#include "net/transport.h"

typedef enum mxd_inbox_kind {
    MXD_INBOX_NET, /* net; head and payload are ours */
    MXD_INBOX_OWN, /* what, ptr: the driver's */
} mxd_inbox_kind;

typedef struct mxd_inbox_item {
    mxd_inbox_kind kind;
    mxd_net_event net;
    int what;
    void *ptr;
} mxd_inbox_item;

typedef struct mxd_inbox {
    const mxd_alloc *al;
    mxd_queue *queue;
    mxd_transport *transport; /* to hang up with; NULL until it is open */
} mxd_inbox;

mxd_rc mxd_inbox_init(mxd_inbox *in, const mxd_alloc *al, mxd_err *err) MXD_MUST_USE;
void mxd_inbox_deinit(mxd_inbox *in); /* after the transport is closed */

void mxd_inbox_sink(void *inbox, const mxd_net_event *event); /* an mxd_net_sink */

/* False: full, closed or no memory; ptr stays the caller's. */
bool mxd_inbox_post(mxd_inbox *in, int what, void *ptr);

/* From now on nothing is taken in: the control thread ends, what is left stays to be taken. Needs
 * no memory, so ending always works. */
void mxd_inbox_close(mxd_inbox *in);
bool mxd_inbox_closed(const mxd_inbox *in);

/* NULL when nothing came in time. */
mxd_inbox_item *mxd_inbox_take(mxd_inbox *in, int64_t timeout_ms);
void mxd_inbox_free(mxd_inbox *in, mxd_inbox_item *item);

#endif
