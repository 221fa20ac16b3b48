#include "cluster/worker_group.h"

#include <stdio.h>

enum {
    LOST_MS = 2000, /* a rank that cannot be reached for so long is lost */
    SPIN_US = 100,  /* exchanges follow each other in tens of microseconds */
};

void mxd_worker_group_init(mxd_worker_group *g, const mxd_alloc *al, bool by_id) {
    *g = (mxd_worker_group){.al = al, .by_id = by_id};
    pthread_mutex_init(&g->lock, NULL);
}

void mxd_worker_group_deinit(mxd_worker_group *g) {
    mxd_worker_group_leave(g);
    pthread_mutex_destroy(&g->lock);
}

/* The engine thread alone opens and closes the comm, so it may read it without the lock. */
static mxd_rc exchange(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    mxd_worker_group *g = ctx;
    if (!g->comm) return mxd_fail(err, MXD_E_STALE, "the ranks of this stage are not together");
    return mxd_comm_exchange(g->comm, all, n_each, -1, err);
}

const mxd_group *mxd_worker_group_prepare(mxd_worker_group *g, const mxd_stage *stage) {
    g->group = (mxd_group){stage->rank, stage->n_ranks, g, exchange};
    return &g->group;
}

/* Events of its links come as soon as it dials, so there is no moment without it. */
static mxd_rc new_comm(mxd_worker_group *g, const mxd_stage *stage, const mxd_comm_opts *o,
                       mxd_err *err) {
    pthread_mutex_lock(&g->lock);
    mxd_rc rc = stage->epoch >= g->oldest ? mxd_comm_new(&g->comm, g->al, o, err)
                                          : mxd_fail(err, MXD_E_CANCELED, "a newer plan has come");
    if (rc) g->comm = NULL;
    for (int r = 0; r < stage->n_ranks; r++) g->node[r] = stage->ranks[r].node;
    pthread_mutex_unlock(&g->lock);
    return rc;
}

mxd_rc mxd_worker_group_join(mxd_worker_group *g, const mxd_stage *stage, int *rank, mxd_err *err) {
    const char *addresses[MXD_MAX_RANKS], *nodes[MXD_MAX_RANKS];
    char name[64];
    *rank = -1;
    mxd_worker_group_leave(g);
    for (int r = 0; r < stage->n_ranks; r++) {
        addresses[r] = stage->ranks[r].address;
        nodes[r] = stage->ranks[r].id;
    }
    snprintf(name, sizeof name, "epoch %llu stage %d", (unsigned long long)stage->epoch,
             stage->index);
    const mxd_comm_opts o = {.group = name,
                             .rank = stage->rank,
                             .size = stage->n_ranks,
                             .addresses = addresses,
                             .nodes = g->by_id ? nodes : NULL,
                             .transport = g->net,
                             .no_measure = true,
                             .drives_transport = true,
                             .reconnect_ms = LOST_MS,
                             .spin_us = g->by_quota ? 0 : SPIN_US};
    MXD_TRY(new_comm(g, stage, &o, err));
    mxd_rc rc = mxd_comm_join(g->comm, -1, err);
    if (rc) *rank = mxd_comm_lost(g->comm);
    if (rc) mxd_worker_group_leave(g);
    return rc;
}

void mxd_worker_group_leave(mxd_worker_group *g) {
    pthread_mutex_lock(&g->lock);
    mxd_comm *comm = g->comm;
    g->comm = NULL;
    pthread_mutex_unlock(&g->lock);
    mxd_comm_close(comm);
}

void mxd_worker_group_rest(mxd_worker_group *g) {
    if (g->comm) mxd_comm_rest(g->comm);
}

int mxd_worker_group_lost(mxd_worker_group *g) { return g->comm ? mxd_comm_lost(g->comm) : -1; }

void mxd_worker_group_abort(mxd_worker_group *g, uint64_t epoch) {
    pthread_mutex_lock(&g->lock);
    if (epoch > g->oldest) {
        g->oldest = epoch;
        if (g->comm) mxd_comm_abort(g->comm);
    }
    pthread_mutex_unlock(&g->lock);
}

int mxd_worker_group_waits(mxd_worker_group *g) {
    pthread_mutex_lock(&g->lock);
    int rank = g->comm ? mxd_comm_waits_for(g->comm) : -1;
    int waits = rank >= 0 && rank < MXD_MAX_RANKS ? 1 + g->node[rank] : 0;
    pthread_mutex_unlock(&g->lock);
    return waits;
}

void mxd_worker_group_event(mxd_worker_group *g, const mxd_net_event *ev) {
    pthread_mutex_lock(&g->lock);
    if (g->comm)
        mxd_comm_event(g->comm, ev);
    else if (ev->kind == MXD_NET_MESSAGE) /* whoever dialled will try again */
        g->net->ops->hangup(g->net, ev->link);
    pthread_mutex_unlock(&g->lock);
}
