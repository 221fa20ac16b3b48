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
 * A comm owns its transport, or stands on one of its owner's (opts.transport). The owner's sink
 * then hands every event of the lane MXD_LANE_GROUP to mxd_comm_event, and hangs up on such links
 * while it has no comm. Groups that follow each other on one transport need different names: a rank
 * that is asked for by another group hangs up, and is asked again soon.
 *
 * Trust:    peers prove who they are by TLS; their lengths are checked all the same.
 * Memory:   at most MXD_COMM_WINDOW bytes on their way to each peer, and as much arrived and
 * unread. Threads:  one collective at a time; send and recv from any threads, one at a time for
 * each peer and direction; abort, waits_for and stats_get at any time. Deadlines: every call has
 * one, in ms; -1: wait for ever.
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
    bool mpi;                 /* the ranks of an MPI job instead of gRPC: rank, size and addresses
                               * are the job's, and nobody proves who he is */
    mxd_transport *transport; /* the owner's, which listens already: the comm dials and hangs up
                               * its own links, no more, and must be closed before it. identity, hub
                               * and insecure are not looked at. NULL: one of the comm's own */
    bool drives_transport;    /* with `transport`: a call that waits may deliver its events itself,
                               * of all lanes, which saves a change of threads; the owner's sink
                               * must bear that. A comm's own is always driven */
    int64_t connect_ms;       /* all ranks must be there within; 0: 30 s */
    int64_t reconnect_ms;     /* a peer that is away longer is LOST; 0: 10 s */
    int spin_us;              /* poll this long before sleeping; 0: none */
    bool no_shared_memory;    /* links only, also between ranks of one host */
    bool no_measure;          /* joining measures nothing: as quick as the hellos */
    size_t direct_max;        /* with no_measure, alike on all ranks: sums up to so many bytes go
                               * directly; 0: 256 KiB (two ranks: all) */
} mxd_comm_opts;

/* Listens (on a transport of its own), starts to dial; waits for nobody. Errors: E_INVAL options;
 * E_NET the address is taken; E_AUTH an unusable identity; E_NOMEM. */
mxd_rc mxd_comm_new(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts,
                    mxd_err *err) MXD_MUST_USE;

/* Waits until all ranks are there, then measures unless no_measure is set. Errors: E_TIMEOUT names
 * the ranks that are missing; E_AUTH; E_PEER a rank of another group; E_CANCELED aborted; E_NOMEM.
 * After a failure the comm is good for nothing but close. */
mxd_rc mxd_comm_join(mxd_comm *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Both: new, then join within connect_ms. */
mxd_rc mxd_comm_open(mxd_comm **out, const mxd_alloc *al, const mxd_comm_opts *opts,
                     mxd_err *err) MXD_MUST_USE;

/* An event of the lane MXD_LANE_GROUP, from the sink of the owner's transport. Never waits. Events
 * of links that are not ours (an earlier comm's) do no harm. */
void mxd_comm_event(mxd_comm *c, const mxd_net_event *ev);

/* No call will wait soon (a step has ended): the transport's own thread takes over again at once,
 * and not a millisecond later. Worth it with drives_transport only. */
void mxd_comm_rest(mxd_comm *c);

/* Ends every call, those that wait now and those that come later, with E_CANCELED. The comm can
 * then only be closed. Any thread. */
void mxd_comm_abort(mxd_comm *c);

/* Waits until every rank has what was sent to it, or is not there (any more): the last thing before
 * close. Errors: E_TIMEOUT, E_CANCELED. */
mxd_rc mxd_comm_flush(mxd_comm *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Hangs up and frees. No call may run. With a transport of its own it flushes for a moment; on its
 * owner's it waits for nothing (what matters is flushed before, even a barrier's own messages), no
 * mxd_comm_event may run or come any more, and late events of its links may go to nobody or to
 * another comm. NULL is fine. */
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

/* all: n_each [size] floats of every rank, one rank behind the other. This rank's are there and
 * stay; the others' are filled in. n_each is alike on all ranks; a rank with 0 brings nothing, and
 * nobody waits for it. Through shared memory the bytes are copied twice, `all` to ring to `all`;
 * small messages allocate nothing there. Errors: E_PEER, E_TIMEOUT, E_CANCELED, E_STALE the ranks
 * do not do the same, E_TOOBIG, E_NOMEM; what `all` then holds of others is not to be used. */
mxd_rc mxd_comm_exchange(mxd_comm *c, float *all, const size_t *n_each, int64_t timeout_ms,
                         mxd_err *err) MXD_MUST_USE;

/* Returns when all ranks have called it. */
mxd_rc mxd_comm_barrier(mxd_comm *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* ---- what was measured, and what happens ---- */

typedef struct mxd_comm_stats {
    double latency_us;            /* half a round trip of 8 bytes, the slowest pair with rank 0 */
    double bandwidth_bytes_per_s; /* of 1 MiB pieces, the slowest pair with rank 0 */
    size_t direct_max_bytes;      /* sums up to this go directly */
    int shared_memory_peers;      /* ranks of this host that are reached through shared memory */
    uint64_t reconnects, resent_frames;
    uint64_t exchanges; /* that have succeeded */
    int64_t waited_ns;  /* for other ranks, in all calls */
} mxd_comm_stats;
void mxd_comm_stats_get(mxd_comm *c, mxd_comm_stats *out);

/* The rank that a call waits for right now; -1: none. Any thread, takes no lock. */
int mxd_comm_waits_for(const mxd_comm *c);

/* A rank that is LOST; -1: none is. Any thread. */
int mxd_comm_lost(mxd_comm *c);

/* For tests and for operators that move a cable: hangs up the link to `peer`; it is dialled anew.
 */
void mxd_comm_cut(mxd_comm *c, int peer);

#endif
