/* transport.h - messages between nodes, whatever carries them.
 *
 * A transport listens on at most one address and dials any number of peers. A link is one
 * bidirectional, ordered stream of messages of one lane:
 *   CONTROL  membership, plans, heartbeats: small
 *   DATA     micro-batches and hidden states: latency matters
 *   BULK     weights and other large things, on a connection of its own so that it cannot hold up
 *            the others
 *   GROUP    collectives between ranks (comm.h): the owner's sink hands its events to its comm
 * A message is a kind, a small head (usually protobuf) and an optional payload that is never
 * copied by the sender and copied once by the receiver.
 *
 *   DIALING --peer answers--> UP --either side hangs up, or the peer dies--> DOWN
 *   every dial gives exactly one DOWN in the end, at most one UP before it; an accepted link starts
 *   with UP. After DOWN the link number is never used again. A transport does not redial: a new
 *   link is a new dial, because what was in flight must be resumed by position, not by hope.
 *
 * Delivery: in order and complete, or the link goes DOWN. A damaged message (length, CRC32C) takes
 * the link down with E_FORMAT; nothing of it is delivered.
 *
 * A hang-up drops what was not delivered yet, in both directions: ask for an answer before it when
 * the last message matters. Events of a link may come before dial returns its number. An empty
 * payload arrives as NULL; in the queue a message counts as 64 bytes at least.
 *
 * Trust:   peers are hostile until their certificate says who they are; `peer` is then proven.
 * Threads: every function from any thread. The sink runs on the transport's own thread, or on one
 *          that is in drive, never on two at a time; it must not block, and may call send and
 *          hangup.
 * Errors:  typed; see each function.
 */
#ifndef MXD_NET_TRANSPORT_H
#define MXD_NET_TRANSPORT_H

#include <stdint.h>
#include "base/blob.h"
#include "base/limits.h"

typedef enum mxd_lane {
    MXD_LANE_CONTROL,
    MXD_LANE_DATA,
    MXD_LANE_BULK,
    MXD_LANE_GROUP,
    MXD_LANE_COUNT
} mxd_lane;

typedef uint64_t mxd_link; /* 0: none */

typedef enum mxd_net_event_kind { MXD_NET_UP, MXD_NET_DOWN, MXD_NET_MESSAGE } mxd_net_event_kind;

typedef struct mxd_net_event {
    mxd_net_event_kind kind;
    mxd_link link;
    mxd_lane lane;
    bool accepted;                /* the peer dialled us */
    char peer[MXD_MAX_NODE_NAME]; /* its node id from its certificate; "" without TLS */
    char address[64];             /* where it is, "ip:port", for people */
    mxd_rc rc; /* DOWN: E_PEER it went away, E_AUTH, E_FORMAT, E_TIMEOUT, E_CANCELED we did */
    uint32_t message; /* MESSAGE: the sender's kind */
    mxd_blob *head,
        *payload; /* MESSAGE: borrowed for the call; retain to keep. Payload may be NULL */
} mxd_net_event;

typedef void (*mxd_net_sink)(void *ctx, const mxd_net_event *event);

/* Who we are, as PEM texts. All NULL: no TLS (loopback transport, tests). Copied. */
typedef struct mxd_identity {
    const char *ca, *cert, *key;
} mxd_identity;

/* Answers an enrolment: checks the secret, signs the request. Runs on the transport's thread; the
 * reply goes to `cert` (PEM, certificate then CA). E_AUTH refuses. */
typedef mxd_rc (*mxd_enroll_fn)(void *ctx, const char *node, const char *secret,
                                const char *csr_pem, mxd_blob **cert, mxd_err *err);

typedef struct mxd_transport_opts {
    const mxd_alloc *al;
    mxd_identity identity;
    mxd_net_sink sink;
    void *sink_ctx;
    mxd_enroll_fn enroll; /* NULL: nobody can enrol here */
    void *enroll_ctx;
    int spin_us;             /* poll this long before sleeping */
    size_t max_queued_bytes; /* per link, waiting to be sent; 0: 64 MiB */
} mxd_transport_opts;

typedef struct mxd_transport mxd_transport;

typedef struct mxd_transport_ops {
    const char *name; /* "grpc", "loopback" */

    /* Hangs up every link, waits until every DOWN is delivered and no callback runs any more,
     * frees. Never from the sink. Payloads on their way to a frozen peer may be released later. */
    void (*close)(mxd_transport *t);

    /* address: "ip:port" or "name:port"; port 0 takes a free one. *port: the one bound.
     * Errors: E_NET in use or not ours (the message names the address); E_INVAL. */
    mxd_rc (*listen)(mxd_transport *t, const char *address, int *port, mxd_err *err);

    /* Starts to connect; UP or DOWN follows. `peer`: the node id its certificate must carry, or
     * NULL: any node of our cluster. Within timeout_ms, else DOWN with E_TIMEOUT. */
    mxd_rc (*dial)(mxd_transport *t, const char *address, const char *peer, mxd_lane lane,
                   int64_t timeout_ms, mxd_link *out, mxd_err *err);

    /* Queues a message; `head` is copied, `payload` retained until sent. Errors: E_PEER the link
     * is not up; E_BUSY the queue is full; E_TOOBIG head + payload over MXD_MAX_FRAME_BYTES;
     * E_NOMEM. */
    mxd_rc (*send)(mxd_transport *t, mxd_link link, uint32_t message, const void *head,
                   size_t head_bytes, mxd_blob *payload, mxd_err *err);

    void (*hangup)(mxd_transport *t, mxd_link link); /* DOWN follows; unknown links are ignored */

    /* NULL, or: the caller, which has nothing to do until something comes, delivers events in the
     * place of the transport's own thread, so that what comes needs no change of threads. Looks
     * once (ns = 0), or until something was delivered, at most ns. False: another thread is at it
     * just now; nothing was done. The own thread stays away for a millisecond after the last call,
     * or until rest. Never from the sink. */
    bool (*drive)(mxd_transport *t, int64_t ns);
    void (*rest)(mxd_transport *t); /* no drive will follow soon. NULL where drive is */
} mxd_transport_ops;

struct mxd_transport {
    const mxd_transport_ops *ops; /* first member of every transport's own struct */
};

/* gRPC core over TCP, mutual TLS when the identity is given. Errors: E_AUTH unusable identity;
 * E_NOMEM. */
mxd_rc mxd_grpc_open(mxd_transport **out, const mxd_transport_opts *opts,
                     mxd_err *err) MXD_MUST_USE;

/* Connections made from now on show this certificate and key, of the same CA; those that are up go
 * on. Any thread. Errors: E_AUTH unusable, or the transport has no identity; E_NOMEM. */
mxd_rc mxd_grpc_renew(mxd_transport *t, const mxd_identity *id, mxd_err *err) MXD_MUST_USE;

/* Over MPI, between the ranks of a job that mpirun or srun has started; addresses are "mpi:0",
 * "mpi:1", ... Nobody proves who he is: the launcher answers for its job. Starts MPI if nobody has
 * (then it ends at exit; else it must allow MPI_THREAD_MULTIPLE). One at a time in a process. No
 * link goes down because its peer died: the launcher ends the job. Errors: E_UNSUPPORTED built
 * without MPI, or an MPI without threads; E_BUSY; E_NET; E_NOMEM. */
mxd_rc mxd_mpi_open(mxd_transport **out, const mxd_transport_opts *opts, mxd_err *err) MXD_MUST_USE;
/* Who we are in the job. Starts MPI too. */
mxd_rc mxd_mpi_place(int *rank, int *size, mxd_err *err) MXD_MUST_USE;

/* A switchboard in one process: transports opened on the same hub reach each other by the address
 * they listen on. One thread delivers everything. */
typedef struct mxd_loopback_hub mxd_loopback_hub;
mxd_rc mxd_loopback_hub_open(mxd_loopback_hub **out, const mxd_alloc *al,
                             mxd_err *err) MXD_MUST_USE;
void mxd_loopback_hub_close(mxd_loopback_hub *hub); /* after its transports */
mxd_rc mxd_loopback_open(mxd_transport **out, mxd_loopback_hub *hub, const mxd_transport_opts *opts,
                         const char *node, mxd_err *err) MXD_MUST_USE;

#endif
