/* worker_group.h - private to cluster/: the group in which the ranks of a stage exchange their
 * sums.
 *
 *   NONE --join--> JOINING --all ranks are there--> JOINED --leave--> NONE
 *   any --abort(newer epoch)--> what waits fails with E_CANCELED, and a join of an older epoch does
 *
 * A group belongs to one epoch: its name carries it, so a rank of another epoch cannot come in.
 * The links are those of the worker's transport, on the group lane.
 *
 * Threads: join, leave, rest and the exchanges on the engine thread, which may then carry the
 *          transport and deliver its events; abort and waits on any; event on whatever thread the
 *          transport delivers on.
 */
#ifndef MXD_CLUSTER_WORKER_GROUP_H
#define MXD_CLUSTER_WORKER_GROUP_H

#include <pthread.h>
#include "backend/backend.h"
#include "cluster/core.h"
#include "net/comm.h"

typedef struct mxd_worker_group {
    const mxd_alloc *al;
    mxd_transport *net;
    bool by_id;      /* certificates carry ids */
    bool by_quota;   /* we get less than our threads would take: polling burns what computes */
    mxd_group group; /* what the shard sees; rank and size are of the last prepare */

    pthread_mutex_t lock; /* for what follows */
    mxd_comm *comm;       /* NULL: NONE */
    int node[MXD_MAX_RANKS];
    uint64_t oldest; /* groups of older epochs are over */
} mxd_worker_group;

void mxd_worker_group_init(mxd_worker_group *g, const mxd_alloc *al, bool by_id); /* net: later */
void mxd_worker_group_deinit(mxd_worker_group *g); /* no thread may be in it */

/* The group of a stage as the shard will see it; before the shard is opened. */
const mxd_group *mxd_worker_group_prepare(mxd_worker_group *g, const mxd_stage *stage);

/* Waits for all ranks of the stage. Errors: E_CANCELED the epoch is over; E_PEER *rank is lost;
 * E_NOMEM. */
mxd_rc mxd_worker_group_join(mxd_worker_group *g, const mxd_stage *stage, int *rank,
                             mxd_err *err) MXD_MUST_USE;
void mxd_worker_group_leave(mxd_worker_group *g);

/* Nothing is exchanged for a while: a step is over. */
void mxd_worker_group_rest(mxd_worker_group *g);

int mxd_worker_group_lost(mxd_worker_group *g); /* the rank that is lost; -1: none */

void mxd_worker_group_abort(mxd_worker_group *g, uint64_t epoch);
int mxd_worker_group_waits(mxd_worker_group *g); /* as mxd_core_beat.waits */

void mxd_worker_group_event(mxd_worker_group *g, const mxd_net_event *ev);

#endif
