/* worker_weights.h - private to cluster/: where a worker finds the weights of its layers.
 *
 * In this order, and never by name alone: the coordinator's own folder, if this machine has it;
 * folders that the program knows (mxd_worker_opts.find_model); the store (store.h), filled over the
 * network with what is missing. A folder is taken when its content has the coordinator's id
 * (weights.h). What is found is given to others on their request (giver.h).
 *
 * Threads: init, start fields and deinit from the owner; sources from the control thread; get from
 * the engine thread.
 */
#ifndef MXD_CLUSTER_WORKER_WEIGHTS_H
#define MXD_CLUSTER_WORKER_WEIGHTS_H

#include <pthread.h>
#include "cluster/fetch.h"
#include "cluster/giver.h"
#include "cluster/worker.h"

typedef struct mxd_worker_weights {
    /* set before the first get; borrowed for life */
    const mxd_alloc *al;
    const mxd_worker_opts *opts;
    const mxd_welcome *welcome;
    mxd_giver *giver;

    pthread_mutex_t lock;
    mxd_wire_sources sources; /* under lock; without the coordinator */
    char *cert;               /* under lock: the last one by renewal; NULL: that of opts */

    /* engine thread */
    char folder[MXD_WIRE_PATH]; /* on this disk; "": not found */
    mxd_store *store;           /* NULL: nothing was fetched */
} mxd_worker_weights;

void mxd_worker_weights_init(mxd_worker_weights *w);
void mxd_worker_weights_deinit(mxd_worker_weights *w);

/* Our certificate is this one now (PEM). Copied; without memory for it the old one stays in use. */
void mxd_worker_weights_renewed(mxd_worker_weights *w, const char *cert);

void mxd_worker_weights_sources(mxd_worker_weights *w, const mxd_wire_sources *sources);

/* The folder with the weights of this part; borrowed until the next call. Progress as in
 * mxd_fetch_opts. Errors: E_NOTFOUND nowhere; those of mxd_fetch. */
mxd_rc mxd_worker_weights_get(mxd_worker_weights *w, const mxd_stage *part,
                              bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                              const char **folder, mxd_err *err) MXD_MUST_USE;

#endif
