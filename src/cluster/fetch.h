/* fetch.h - private to cluster/: brings the weights that a node misses into its store.
 *
 * Whoever may have them is asked at once, each for a few pieces of 256 KiB at a time: the
 * coordinator (the first source), and the other nodes. The list of files and the sum of every piece
 * come from the coordinator alone; what another node gives counts only if it has that sum. A source
 * that goes away is dialled again later, one that gives something wrong is not asked again; what
 * they owed is asked of the others, from the same place on.
 *
 *   a source:  AWAY --dial--> DIALING --up--> THERE --down, silence--> AWAY ...
 *              any --gave something wrong--> BAD
 *   a piece:   WANTED --asked--> ASKED --sum is right, written--> DONE
 *              ASKED --source gone, wrong, has it not--> WANTED
 *
 * Trust:   sources are nodes of our cluster, but any of them may be broken or lie.
 * Threads: one call at a time, from one thread, which it keeps until it ends.
 */
#ifndef MXD_CLUSTER_FETCH_H
#define MXD_CLUSTER_FETCH_H

#include "cluster/store.h"
#include "cluster/wire_weights.h"
#include "net/transport.h"

typedef struct mxd_fetch_opts { /* borrowed for the call */
    const mxd_identity *identity;
    mxd_loopback_hub *hub;            /* NULL: gRPC */
    const char *node;                 /* our own id */
    const char *root;                 /* where stores are */
    const uint8_t *id, *tensors_hash; /* [32] each; of the coordinator's welcome */
    const mxd_source *sources;        /* [n_sources], the coordinator first */
    int n_sources;
    int layer0, layer1;
    int rank, n_ranks;   /* of those that hold the layers together; n_ranks 0 or 1: whole layers */
    const double *share; /* [n_ranks] in proportion */
    int64_t patience_ms; /* gives up when nothing came for so long; 0: 60 s */
    int64_t silence_ms;  /* a source that does not answer for so long is gone; 0: 15 s */
    /* Called with the bytes that were missing and are there now, at least every 100 ms; false:
     * stop (E_CANCELED). */
    bool (*progress)(void *ctx, uint64_t done, uint64_t total);
    void *progress_ctx;
} mxd_fetch_opts;

/* Until the store has all that these layers, or the rank's share of them, need. *store: of an
 * earlier call, or NULL; also set on errors, when it could be opened: what came is kept. *bytes:
 * that came now. Errors: E_NOFIT the disk; E_IO; E_PEER nobody gives what is missing; E_TIMEOUT;
 * E_CANCELED; E_FORMAT the coordinator's files are not what it said; E_NOMEM. */
mxd_rc mxd_fetch(mxd_store **store, const mxd_alloc *al, const mxd_fetch_opts *opts,
                 uint64_t *bytes, mxd_err *err) MXD_MUST_USE;

#endif
