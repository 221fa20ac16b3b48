/* grpc_private.h - what the grpc*.c files share; nobody else includes it, or any header of gRPC.
 *
 * One completion queue, one thread (the loop). Whatever was started has a tag; when the queue gives
 * the tag back, the loop calls tag->done. Senders start their batches on their own thread. "Loop
 * thread" means whoever has the turn: a thread that waits for a message may take it (drive).
 *
 *   grpc.c         the transport: open, close, the loop, deadlines
 *   grpc_link.c    one stream: dialling, sending, receiving, going down
 *   grpc_server.c  the port: accepting, refusing, health, enrolment
 *   grpc_creds.c   credentials, channel arguments, addresses, who the peer is
 *   grpc_enroll.c  the newcomer's side of an enrolment
 *
 * Locks: transport, then link, then identity; gRPC is never called with the transport's lock held.
 * gRPC calls back to release payloads, which takes no lock, and to ask for the identity.
 */
#ifndef MXD_NET_GRPC_PRIVATE_H
#define MXD_NET_GRPC_PRIVATE_H

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>
#include "net/address.h"
#include "net/frame.h"
#include "net/links.h"
#include "net/transport.h"

enum {
    MXD_GRPC_QUEUED_BYTES = 64 << 20, /* per link, when the options say 0 */
    MXD_GRPC_MESSAGE_COST = 64,       /* what even an empty message counts for in a queue */
    MXD_GRPC_MAX_ARGS = 24,
    MXD_GRPC_PING_EVERY_MS = 10000,
    MXD_GRPC_PING_TIMEOUT_MS = 5000,
    MXD_GRPC_HANDSHAKE_MS = 10000,      /* a connection must have spoken TLS by then */
    MXD_GRPC_IDLE_MS = 30000,           /* a connection without a call is closed */
    MXD_GRPC_STREAMS_PER_PEER = 16,     /* calls at one time on one connection */
    MXD_GRPC_SERVER_MEMORY = 512 << 20, /* receive buffers of all connections */
    MXD_GRPC_MAX_ENROLLING = 8,         /* enrolments at one time */
    MXD_GRPC_ENROLL_MS = 10000,
    MXD_GRPC_ENROLL_PER_S = 5,
    MXD_GRPC_ENROLL_BURST = 10,
    MXD_GRPC_DRAIN_MS = 300,     /* then close leaves the rest to the loop */
    MXD_GRPC_LOOKS = 2,          /* a guest looks so often before it starts receives */
    MXD_GRPC_GUEST_NS = 1000000, /* the loop thread keeps out of a guest's way so long */
};

/* What was written before a tag is given to the queue is seen where the tag comes back. gRPC sees
 * to it; ThreadSanitizer cannot look into it and is told. */
#if defined(__SANITIZE_THREAD__)
void __tsan_acquire(void *p);
void __tsan_release(void *p);
#define MXD_GRPC_GIVEN(tag) __tsan_release(tag)
#define MXD_GRPC_TAKEN(tag) __tsan_acquire(tag)
#else
#define MXD_GRPC_GIVEN(tag) ((void)0)
#define MXD_GRPC_TAKEN(tag) ((void)0)
#endif

/* Metadata by which a server says yes to a stream; a refusal has none. */
#define MXD_GRPC_HELLO_KEY   "mxd-protocol"
#define MXD_GRPC_HELLO_VALUE "1"

typedef struct mxd_grpc_tag {
    void (*done)(void *owner, bool ok);
    void *owner;
} mxd_grpc_tag;

typedef struct mxd_grpc_server mxd_grpc_server;
typedef struct mxd_grpc_link mxd_grpc_link;

/* Whose turn it is to take what the queue gives: one thread at a time plays the loop. */
typedef enum mxd_grpc_turn { MXD_GRPC_NOBODY, MXD_GRPC_HOST, MXD_GRPC_GUEST } mxd_grpc_turn;

typedef struct mxd_grpc {
    mxd_transport base;
    const mxd_alloc *al;
    mxd_net_sink sink;
    void *sink_ctx;
    mxd_enroll_fn enroll;
    void *enroll_ctx;
    int spin_us;
    size_t max_queued_bytes;
    bool secure;
    char *ca; /* NULL when not secure */

    pthread_mutex_t identity_lock; /* the last one taken; of what mxd_grpc_renew changes: */
    char *cert, *key;              /* cert: our certificate and the CA's */
    unsigned n_identities, served; /* how many there were; which of them the port shows */

    grpc_completion_queue *cq;
    pthread_t thread;
    _Atomic int64_t next_deadline_ns; /* INT64_MAX: none */
    atomic_int turn;                  /* an mxd_grpc_turn; the loop thread is the host */
    _Atomic int64_t guest_until_ns;   /* the host leaves the turn to guests until then */
    grpc_channel *lame;               /* goes nowhere; empty batches on its call wake the host */
    grpc_call *bell;
    mxd_grpc_tag bell_tag;
    atomic_bool rung; /* the bell's tag is out */

    mxd_grpc_link *unarmed; /* whose next receive was put off. Loop thread */
    int looks;              /* of guests, since */

    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    pthread_cond_t resting; /* the host, while guests have the turn */
    mxd_links links;
    mxd_grpc_server *server; /* the one that is bound; NULL while not listening */
    int n_objects;           /* links and servers whose tags are not all back */
    bool closing;
    bool muted;     /* no callback is called any more */
    bool calling;   /* a callback runs */
    bool abandoned; /* close has returned: the loop frees the transport when n_objects is 0 */
} mxd_grpc;

/* Around every callback of the owner's; false: none may be called any more. Loop thread. */
bool mxd_grpc_enter(mxd_grpc *t);
void mxd_grpc_leave(mxd_grpc *t);

void mxd_grpc_emit(mxd_grpc *t, const mxd_net_event *ev); /* calls the sink. Loop thread */

/* One more or one less thing that close must wait for. False: the transport is closing. */
bool mxd_grpc_hold(mxd_grpc *t);
void mxd_grpc_drop(mxd_grpc *t);

/* Makes the loop look at its deadlines at this time at the latest. The loop may still sleep: start
 * a batch to wake it. */
void mxd_grpc_deadline(mxd_grpc *t, int64_t at_ns);

/* ------------------------------------------------------------------------------ grpc_link.c */

mxd_rc mxd_grpc_link_dial(mxd_grpc *t, const char *address, const char *peer, mxd_lane lane,
                          int64_t timeout_ms, mxd_link *out, mxd_err *err);

/* Takes over an accepted call. False: it stays the caller's, to be refused. Loop thread. */
bool mxd_grpc_link_accept(mxd_grpc *t, grpc_call *call, mxd_lane lane, const char *peer);

mxd_rc mxd_grpc_link_send(mxd_grpc *t, mxd_link id, uint32_t message, const void *head,
                          size_t head_bytes, mxd_blob *payload, mxd_err *err);
void mxd_grpc_link_hangup(mxd_grpc *t, mxd_link id, mxd_rc why);
void mxd_grpc_links_hangup_all(mxd_grpc *t);

/* Starts the receives that were put off. Loop thread. */
void mxd_grpc_links_receive(mxd_grpc *t);

/* Takes down what has been dialling for too long; returns the next deadline. Loop thread. */
int64_t mxd_grpc_links_expire(mxd_grpc *t, int64_t now_ns);

/* ---------------------------------------------------------------------------- grpc_server.c */

/* Binds and starts. Errors: E_NET, E_NOMEM, E_SHUTDOWN. */
mxd_rc mxd_grpc_server_open(mxd_grpc *t, const char *address, int *port, mxd_err *err);
void mxd_grpc_server_stop(mxd_grpc_server *s); /* frees itself when its tags are back */
int64_t mxd_grpc_server_expire(mxd_grpc *t, int64_t now_ns);

/* ----------------------------------------------------------------------------- grpc_creds.c */

typedef struct mxd_grpc_args {
    grpc_arg arg[MXD_GRPC_MAX_ARGS];
    grpc_channel_args list;
} mxd_grpc_args;

/* The strings must live as long as *a. name: what the peer's certificate must carry, or NULL. */
void mxd_grpc_client_args(mxd_grpc_args *a, const char *name, int64_t timeout_ms);
void mxd_grpc_server_args(mxd_grpc_args *a, grpc_resource_quota *quota);

/* cert and key may be NULL; ca NULL: plaintext. NULL when gRPC refuses them. */
grpc_channel_credentials *mxd_grpc_channel_creds(const char *ca, const char *cert, const char *key);
grpc_channel_credentials *mxd_grpc_own_creds(mxd_grpc *t);   /* with our identity, if we have one */
grpc_server_credentials *mxd_grpc_server_creds(mxd_grpc *t); /* `t` outlives them */

/* gRPC's way to write an address. Errors: E_INVAL. */
mxd_rc mxd_grpc_target(const char *address, char *out, size_t cap, mxd_err *err);

void mxd_grpc_call_address(grpc_call *call, char *out, size_t cap);

/* The node id that the peer's certificate proves; "" when it has shown none. */
void mxd_grpc_call_peer(grpc_call *call, char node[MXD_MAX_NODE_NAME]);

/* Makes the process ready for gRPC: its resolver, its log. Before any grpc_init. */
void mxd_grpc_environment(void);

/* A slice of the blob's bytes; keeps a reference until gRPC is done with it. */
grpc_slice mxd_grpc_blob_slice(mxd_blob *b);

/* Reads a byte buffer as a frame source; end with mxd_grpc_source_deinit. */
typedef struct mxd_grpc_source {
    mxd_frame_source base;
    grpc_byte_buffer_reader reader;
    grpc_slice slice;
    bool have;
} mxd_grpc_source;
bool mxd_grpc_source_init(mxd_grpc_source *s, grpc_byte_buffer *bb);
void mxd_grpc_source_deinit(mxd_grpc_source *s);

#endif
