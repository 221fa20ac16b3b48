/* fan.h - private to cluster/: the data links from one node to every rank of a stage.
 *
 * Every frame goes to all of them, each link in order, so all ranks see the same frames in the same
 * order.
 *
 *   none --mxd_fan_dial--> DIALLING --every link is up--> UP    any --mxd_fan_drop--> none
 *   a link that goes down is lost: the plan that needs it is over, and a new one dials again.
 *
 * Lifetime: the owner's. Threads: the owner's control thread.
 */
#ifndef MXD_CLUSTER_FAN_H
#define MXD_CLUSTER_FAN_H

#include "cluster/core.h"
#include "net/transport.h"

typedef struct mxd_fan {
    mxd_transport *net;
    int n;
    struct {
        mxd_link link; /* 0: none */
        bool up;
        int node;
        char id[MXD_MAX_NODE_NAME];
    } to[MXD_MAX_RANKS]; /* [n] */
} mxd_fan;

/* Dials peers [n] within timeout_ms, in place of those before. by_id: their certificates must carry
 * their ids. Returns the node that cannot be dialled, and then holds no links; -1: none. */
int mxd_fan_dial(mxd_fan *f, mxd_transport *net, const mxd_stage_peer *peers, int n, bool by_id,
                 int64_t timeout_ms);
void mxd_fan_drop(mxd_fan *f);

bool mxd_fan_is_up(const mxd_fan *f); /* there are links, and all of them are up */

/* Takes UP and DOWN of its links; false: the event is not ours. *lost: the node whose link went
 * down; -1: none did. */
bool mxd_fan_event(mxd_fan *f, const mxd_net_event *ev, int *lost);

/* Sends to all; -1, or the first node that it could not be sent to. */
int mxd_fan_send(mxd_fan *f, uint32_t message, const void *head, size_t head_bytes,
                 mxd_blob *payload);

#endif
