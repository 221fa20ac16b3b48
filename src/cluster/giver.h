/* giver.h - private to cluster/: gives the weights that this node has to the others of its cluster.
 *
 * It stands between a transport and a driver's inbox: what comes on accepted bulk links is its own,
 * everything else goes on to the inbox. One thread of low priority answers, a request at a time,
 * the links in turn. Nothing but the files of the model in service is given, by their number in the
 * list; a request carries no path.
 *
 * Bounds: MXD_GIVER_LINKS links, further ones are hung up on; of each, MXD_GIVER_WANTS requests
 * wait (one more: hung up on) and MXD_GIVER_WINDOW answers of 256 KiB are in memory until the
 * network has taken them. While steps are computed (mxd_giver_busy) it sends during a quarter of
 * the time.
 *
 * Trust:   peers are nodes of our cluster, proven by the transport; what they say is checked.
 * Threads: offer and busy from any; the others from the owner. Order of the end: stop, close the
 *          transport, free.
 */
#ifndef MXD_CLUSTER_GIVER_H
#define MXD_CLUSTER_GIVER_H

#include "cluster/inbox.h"
#include "cluster/store.h"

enum { MXD_GIVER_LINKS = 16, MXD_GIVER_WANTS = 16, MXD_GIVER_WINDOW = 8 };

typedef struct mxd_giver mxd_giver;

/* Before the transport: mxd_giver_sink and the giver are its sink. Errors: E_NOMEM. */
mxd_rc mxd_giver_open(mxd_giver **out, const mxd_alloc *al, mxd_inbox *inbox,
                      mxd_err *err) MXD_MUST_USE;
void mxd_giver_sink(void *giver, const mxd_net_event *event); /* an mxd_net_sink */

/* Errors: E_IO no thread. */
mxd_rc mxd_giver_start(mxd_giver *g, mxd_transport *net, mxd_err *err) MXD_MUST_USE;
void mxd_giver_stop(mxd_giver *g);
void mxd_giver_free(mxd_giver *g); /* NULL is fine */

/* From now on the model `id` is given: out of the folder, or what `store` has of it (then folder is
 * NULL). The store lives until stop. Errors: those of mxd_weights_list_get; nothing is given then.
 */
mxd_rc mxd_giver_offer(mxd_giver *g, const uint8_t id[32], const char *folder, mxd_store *store,
                       mxd_err *err) MXD_MUST_USE;

void mxd_giver_busy(mxd_giver *g, bool busy);

#endif
