/* comm_private.h - the state of a group, between comm.c (life, calls), comm_peer.c (one stream),
 * comm_shm.c (the stream through shared memory), comm_collect.c and comm_exchange.c (collectives).
 *
 * Locks: c->lock guards everything of the peers; it is never held while a transport is called,
 *        except for `send`, which only queues. The sink runs on the transport's thread. */
#ifndef MXD_NET_COMM_PRIVATE_H
#define MXD_NET_COMM_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include "net/comm.h"
#include "net/comm_ring.h"

enum { COMM_HELLO = 1, COMM_DATA = 2, COMM_ACK = 3, COMM_RING = 4, COMM_VERSION = 1 };
enum { COMM_ACK_EVERY = 32, COMM_ACK_BYTES = 4 << 20, COMM_TICK_MS = 20 };
enum { COMM_REDIAL_MS = 20, COMM_REDIAL_MOST_MS = 100, COMM_SPARE = 64 };

typedef struct comm_out { /* a frame that the peer has not acknowledged */
    struct comm_out *next;
    uint64_t seq, total, offset;
    uint32_t tag;
    mxd_blob *piece; /* NULL when empty, or lent */
    size_t bytes;
    bool lent;        /* its bytes lie in the ring only, in the frame at ring_at */
    uint64_t ring_at; /* until the reader has taken it, or comm_shm_drop makes a piece of them */
} comm_out;

typedef struct comm_in { /* a message, maybe not whole yet */
    struct comm_in *next;
    uint32_t tag;
    uint64_t total, got;
    int n_parts, cap_parts;
    mxd_blob **parts; /* in order */
} comm_in;

typedef struct comm_into { /* where the pieces of one message go as they come */
    unsigned char *at;     /* NULL: nowhere; they become a comm_in */
    uint32_t tag;
    uint64_t total, got;
} comm_into;

typedef struct comm_peer {
    int rank;
    mxd_link link;        /* 0: none */
    bool up;              /* hellos are exchanged on `link` */
    int64_t redial_ms;    /* not before; when there is no link and we are who dials */
    int delay_ms;         /* before the next dial; grows while nobody answers */
    int64_t away_since;   /* when it was lost, or the group opened; 0: it is up */
    uint64_t incarnation; /* 0: never seen */

    uint64_t next_seq, acked; /* of ours: the next to be made; the last acknowledged */
    comm_out *out, **out_end; /* acked + 1 .. next_seq - 1 */
    comm_out *unsent;         /* first that is not with the transport on this link */
    size_t out_bytes;         /* of all in the list */

    uint64_t received, ack_told; /* of theirs: the last that came; the last we acknowledged */
    size_t since_ack;            /* bytes */
    comm_in *in, **in_end;
    size_t unread_bytes; /* of the whole messages in there */
    comm_into into;

    comm_ring *ring;   /* shared memory on this link; NULL: none */
    bool ring_pending; /* hosts are alike, the other's word about the ring is awaited */
    bool ring_out;     /* both have it: frames go into the ring */

    mxd_rc lost; /* not OK: LOST */
    char why[160];
} comm_peer;

struct mxd_comm {
    const mxd_alloc *al;
    char group[64];
    int rank, size;
    char (*addresses)[128];           /* [size] */
    char (*nodes)[MXD_MAX_NODE_NAME]; /* [size], "" any */
    int64_t connect_ms, reconnect_ms;
    int spin_us;
    char host[RING_HOST]; /* "": no memory is shared */
    uint64_t incarnation;
    mxd_transport *t;
    bool owns_transport, measures;
    bool drives; /* whoever waits delivers the transport's events */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* for calls that wait */
    atomic_uint news;       /* counts comm_signal, for calls that poll */
    pthread_cond_t tick;    /* for the service, which wakes by the clock and to end */
    pthread_t service;      /* dials again, gives up, looks after rings that no call looks into */
    bool service_runs, closing;
    bool aborted;
    comm_peer *peers; /* [size]; the own one is unused */
    comm_out *spare;  /* for exchange, which does not like to allocate */
    int n_spare;
    uint64_t reconnects, resent, exchanges;
    int64_t waited_ns;
    atomic_int waits_for; /* a rank, or -1 */

    uint32_t round; /* of collectives: their tags */
    bool out_of_step;
    double latency_us, bandwidth;
    size_t direct_max;
    float *scratch; /* of sums: what the others bring */
    size_t scratch_bytes;
};

/* comm_peer.c. All under c->lock. */
void comm_peer_init(comm_peer *p, int rank, int64_t now_ms);
void comm_peer_deinit(mxd_comm *c, comm_peer *p);
void comm_pump(mxd_comm *c, comm_peer *p); /* gives the transport what the window allows */
void comm_lose(mxd_comm *c, comm_peer *p, mxd_rc rc, const char *why);
comm_in *comm_find(comm_peer *p, uint32_t tag);        /* the oldest whole message; NULL: none */
void comm_take(mxd_comm *c, comm_peer *p, comm_in *m); /* out of the list, freed */
void comm_ack(mxd_comm *c, comm_peer *p, bool now);
void comm_signal(mxd_comm *c); /* something has changed: wakes every waiting call */
/* Frames up to `received` have arrived. False: the peer claims frames that were never made. */
bool comm_forget(mxd_comm *c, comm_peer *p, uint64_t received);
void comm_add(mxd_comm *c, comm_peer *p, const ring_frame *f, mxd_blob *piece);
comm_out *comm_out_new(mxd_comm *c); /* a spare one, or NULL when memory is short */
void comm_out_free(mxd_comm *c, comm_out *o);
void comm_queue(comm_peer *p, comm_out *o); /* takes o, gives it its number */
/* The pieces of message `tag`, those that have come and those that will, go to `at`. Else than
 * [total] long it stays a comm_in. into_end ends that; what is still to come is thrown away. */
void comm_into_begin(mxd_comm *c, comm_peer *p, uint32_t tag, void *at, size_t total);
void comm_into_end(mxd_comm *c, comm_peer *p);
/* Where the bytes of frame f go; NULL: it is none of that message, or does not follow. */
unsigned char *comm_into_room(const comm_peer *p, const ring_frame *f);
void comm_into_took(mxd_comm *c, comm_peer *p, const ring_frame *f);
comm_in *comm_any(comm_peer *p, uint32_t tag); /* a message, whole or not */

/* comm_shm.c. All under c->lock; wait gives it up. */
void comm_shm_offer(mxd_comm *c, comm_peer *p, const char *host);  /* after the hellos */
bool comm_shm_answer(mxd_comm *c, comm_peer *p, const char *name); /* false: it makes no sense */
void comm_shm_drop(mxd_comm *c, comm_peer *p);
bool comm_shm_put(comm_peer *p, const comm_out *o);               /* false: no room yet */
bool comm_shm_lend(comm_peer *p, comm_out *o, const void *bytes); /* o has them nowhere else */
bool comm_shm_poll(mxd_comm *c); /* takes what the rings hold, refills them; true: it did */
bool comm_shm_any(const mxd_comm *c);
void comm_shm_wait(mxd_comm *c, comm_peer *p, ring_mark m, int64_t ns);

/* comm.c. Waits for a change, of p above all (NULL: of anyone), until the deadline (INT64_MAX:
 * none); false: it has passed. */
bool comm_wait(mxd_comm *c, comm_peer *p, int64_t deadline_ns);

/* The same for p's sake: counts the time and says so to waits_for. */
bool comm_wait_for(mxd_comm *c, comm_peer *p, int64_t deadline_ns);
mxd_rc comm_canceled(const mxd_comm *c, mxd_err *err);
mxd_rc comm_late(const char *what, int peer, mxd_err *err);

int64_t comm_deadline(int64_t timeout_ms);
mxd_rc comm_peer_rc(const comm_peer *p, mxd_err *err); /* its loss as an error */

/* The next whole message, in pieces; the caller releases with comm_take. Lock held on return. */
mxd_rc comm_await(mxd_comm *c, int peer, uint32_t tag, int64_t deadline_ns, comm_in **out,
                  mxd_err *err);
mxd_rc comm_post(mxd_comm *c, int peer, uint32_t tag, mxd_blob *data, int64_t deadline_ns,
                 mxd_err *err);

/* comm_exchange.c. What one rank gives to every other and takes from it, at once: from and to the
 * caller's memory. `base` spans all that is given. */
typedef struct comm_swap {
    const unsigned char *base;
    size_t base_bytes;
    const unsigned char *give[MXD_COMM_MAX_RANKS];
    unsigned char *take[MXD_COMM_MAX_RANKS];
    size_t n_give[MXD_COMM_MAX_RANKS], n_take[MXD_COMM_MAX_RANKS]; /* bytes; 0: nothing */
} comm_swap;
mxd_rc comm_swap_run(mxd_comm *c, const comm_swap *s, uint32_t tag, int64_t deadline_ns,
                     mxd_err *err);

/* comm_collect.c */
mxd_rc comm_measure(mxd_comm *c, int64_t deadline_ns, mxd_err *err);
mxd_rc comm_begin(mxd_comm *c, uint32_t *tag, mxd_err *err); /* the tag of the next collective */
mxd_rc comm_end(mxd_comm *c, mxd_rc rc);                     /* a failed one is the last */

#endif
