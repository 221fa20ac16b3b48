/* comm.h - collectives: N ranks that send to each other and compute sums together.
 *
 * Every rank of a group opens a comm with the same group name and list of addresses. Between each
 * two ranks runs one ordered stream of messages in each direction, over whatever links a transport
 * gives: a link that breaks is dialled again, and the stream goes on behind the last message that
 * has arrived (sequence numbers, acknowledgements; what is not acknowledged is kept). Messages of
 * any length go in pieces of MXD_COMM_PIECE bytes.
 *
 *   peer: CONNECTING --hello both ways--> UP --link lost--> CONNECTING ... --reconnect_ms--> LOST
 *   LOST stays: the peer was away too long, came back as another process, or speaks nonsense.
 *
 * Ranks of one host and user that both allow it move their frames to a ring in shared memory; the
 * link stays as the sign of life, and what breaks with it is sent again like everything else.
 *
 * Collectives must be called by all ranks in the same order with the same sizes. Sums are taken
 * along one binary tree over rank numbers (docs/numerics.md), so every rank gets the same bits, on
 * every transport and whatever the algorithm. A collective that fails leaves the ranks out of step:
 * later ones are refused with E_STALE (plain send and recv still work).
 *
 * Algorithms: small messages go directly from everyone to everyone (one latency); large sums are
 * scattered, summed in parts and gathered (least bytes). Where one ends and the other begins
 * follows from latency and bandwidth, measured by rank 0 when the group opens and told to all.
 *
 * Trust:    peers prove who they are by TLS; their lengths are checked all the same.
 * Memory:   at most MXD_COMM_WINDOW bytes on their way to each peer, and as much arrived and
 * unread. Threads:  one collective at a time; send and recv from any threads, one at a time for
 * each peer and direction. Deadlines: every call has one, in ms; -1: wait for ever.
 */
#ifndef MXD_NET_COMM_H
#define MXD_NET_COMM_H

#include "net/transport.h"

enum {
    MXD_COMM_MAX_RANKS = MXD_MAX_NODES,
    MXD_COMM_PIECE = 1 << 20,
    MXD_COMM_WINDOW = 16 << 20,
    MXD_COMM_MAX_MESSAGE = INT32_MAX,
    MXD_COMM_MAX_TAG = (1 << 24) - 1, /* larger tags are the collectives' own */
};

typedef struct mxd_comm mxd_comm;

typedef struct mxd_comm_opts {
    const char *group;            /* at most 63 bytes */
    int rank, size;               /* 0 <= rank < size <= MXD_COMM_MAX_RANKS */
    const char *const *addresses; /* [size] "host:port" where each rank listens */
    const char *const *nodes; /* [size] node ids of certificates; NULL: any node of our cluster */
    mxd_identity identity;    /* all NULL with `insecure` only */
    bool insecure;            /* no TLS: ranks on one machine, or a closed network */
    mxd_loopback_hub *hub;    /* ranks in one process instead of gRPC */
    int64_t connect_ms;       /* all ranks must be there within; 0: 30 s */
    int64_t reconnect_ms;     /* a peer that is away longer is LOST; 0: 10 s */
    int spin_us;              /* poll this long before sleeping; 0: none */
    bool no_shared_memory;    /* links only, also between ranks of one host */
} mxd_comm_opts;

/* Listens, finds all ranks, measures. Errors: E_INVAL options; E_NET the address is taken;
 * E_TIMEOUT names the ranks that are missing; E_AUTH, E_PEER a rank of another group; E_NOMEM. */
mxd_rc mxd_comm_open(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts,
                     mxd_err *err) MXD_MUST_USE;

/* Waits a moment for what was sent, hangs up. No call may run. NULL is fine. */
void mxd_comm_close(mxd_comm *c);

int mxd_comm_rank(const mxd_comm *c);
int mxd_comm_size(const mxd_comm *c);

/* ---- point to point ---- */

/* Queues n bytes for `peer` (not oneself), copied; waits while the window is full. Messages of one
 * peer and tag arrive in order. Errors: E_PEER it is LOST; E_TIMEOUT; E_INVAL; E_NOMEM. */
mxd_rc mxd_comm_send(mxd_comm *c, int peer, uint32_t tag, const void *data, size_t n,
                     int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* The same without a copy: `data` is retained until the peer has it. */
mxd_rc mxd_comm_send_blob(mxd_comm *c, int peer, uint32_t tag, mxd_blob *data, int64_t timeout_ms,
                          mxd_err *err) MXD_MUST_USE;

/* The next message of `peer` with this tag, into data [cap]; *n: its bytes. Errors: E_TOOBIG it is
 * longer than cap (it stays; *n says how long); E_PEER, E_TIMEOUT, E_INVAL. */
mxd_rc mxd_comm_recv(mxd_comm *c, int peer, uint32_t tag, void *data, size_t cap, size_t *n,
                     int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* ---- collectives ---- */

typedef enum mxd_reduce { MXD_REDUCE_SUM, MXD_REDUCE_MAX } mxd_reduce;

/* x [n] becomes the sum, or the largest, of every rank's x. A NaN anywhere makes a NaN. */
mxd_rc mxd_comm_all_reduce(mxd_comm *c, float *x, size_t n, mxd_reduce how, int64_t timeout_ms,
                           mxd_err *err) MXD_MUST_USE;

/* data [n] of `root` to all. */
mxd_rc mxd_comm_broadcast(mxd_comm *c, int root, void *data, size_t n, int64_t timeout_ms,
                          mxd_err *err) MXD_MUST_USE;

/* n bytes of every rank to out [size * n] in order of ranks; on `root` only, or with root = -1 on
 * all. out may be NULL elsewhere. */
mxd_rc mxd_comm_gather(mxd_comm *c, int root, const void *data, size_t n, void *out,
                       int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Returns when all ranks have called it. */
mxd_rc mxd_comm_barrier(mxd_comm *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* ---- what was measured, and what happens ---- */

typedef struct mxd_comm_stats {
    double latency_us;            /* half a round trip of 8 bytes, the slowest pair with rank 0 */
    double bandwidth_bytes_per_s; /* of 1 MiB pieces, the slowest pair with rank 0 */
    size_t direct_max_bytes;      /* sums up to this go directly */
    int shared_memory_peers;      /* ranks of this host that are reached through shared memory */
    uint64_t reconnects, resent_frames;
} mxd_comm_stats;
void mxd_comm_stats_get(mxd_comm *c, mxd_comm_stats *out);

/* For tests and for operators that move a cable: hangs up the link to `peer`; it is dialled anew.
 */
void mxd_comm_cut(mxd_comm *c, int peer);

#endif
