/* worker.h - the driver of one node: joins a coordinator, loads its layers, computes.
 *
 * Two threads around the pure worker core: the control thread takes events (network, clock,
 * results) and does what the core says; the engine thread loads and computes, one job after the
 * other. The control thread never computes, so its heartbeat tells how long a step has been
 * running.
 *
 *   STARTING --dial--> GREETING --welcome--> MEMBER --link lost--> GREETING ...
 *   any --let go, refused for good, mxd_worker_close--> ENDED
 *
 * Threads: open, wait, drain, close from any one thread; drain also from a signal-driven one.
 * Memory: the model's life is the engine thread's; nothing is shared with the embedder.
 */
#ifndef MXD_CLUSTER_WORKER_H
#define MXD_CLUSTER_WORKER_H

#include <stdatomic.h>
#include "backend/backend.h"
#include "hardware/paces.h"
#include "net/transport.h"

typedef struct mxd_worker_opts { /* zero: default. Strings and texts are copied */
    const char *node;            /* id; must be the certificate's name. Needed */
    const char *name;            /* for people; NULL: the id */
    const char *join;            /* the coordinator, "host:port". Needed */
    mxd_identity identity;       /* mutual TLS; ignored with a hub */
    mxd_loopback_hub *hub;       /* a worker inside the coordinator's process; NULL: gRPC */
    const char *listen;          /* where other workers reach us, "ip:port"; NULL: a free port, on
                                    127.0.0.1 if the coordinator is there, else everywhere */
    const char *advertise;       /* what others are told instead, "host:port" (NAT, a proxy, several
                                    interfaces); port 0: the port we listen on. NULL: as listened */
    bool local;                  /* on the coordinator's machine */
    uint64_t memory_total, memory_free; /* bytes for weights and KV */
    double bandwidth, ops;              /* measured; 0: unknown */
    mxd_paces paces;
    double cpus, host_cpus;        /* that our threads get, of so many on the machine; 0: unknown */
    const char *backend, *kernels; /* NULL: as the coordinator says */
    int threads;                   /* 0: as the coordinator says, else all cores */
    /* For tests: before each step the engine waits so many ms, below 0 until it is changed. NULL: 0
     */
    const atomic_int *stall_ms;
    /* Folders where a model may be that is not where the coordinator has it: writes candidate k,
     * counted from 0, or false when there are no more. What is in them is checked. Called on a
     * thread of the worker. */
    bool (*find_model)(void *ctx, const char *model, int k, char *folder, size_t cap);
    void *find_ctx;
    const char
        *weights_dir; /* where weights are kept that came over the network; NULL: none come */
    const char *scratch_dir; /* for tables that need not be in memory; NULL: they are */
    /* Our certificate was renewed: keep it (the key stays). On the control thread. May be NULL */
    void (*renewed)(void *ctx, const char *cert_pem);
    void *renewed_ctx;
} mxd_worker_opts;

typedef struct mxd_worker mxd_worker;

/* Starts and returns; joining goes on in the background, with back-off, for ever.
 * Errors: E_NET the listen address, or that advertise is none; E_AUTH the identity; E_INVAL;
 * E_NOMEM; E_IO threads. */
mxd_rc mxd_worker_open(mxd_worker **out, const mxd_alloc *al, const mxd_worker_opts *opts,
                       mxd_err *err) MXD_MUST_USE;

/* Waits until the worker has ended. OK: it was let go. Errors: E_TIMEOUT still running; else why
 * the coordinator does not want it (E_AUTH, E_UNSUPPORTED, ...). */
mxd_rc mxd_worker_wait(mxd_worker *w, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

bool mxd_worker_is_member(mxd_worker *w); /* the coordinator has welcomed it, and is there now */

void mxd_worker_drain(mxd_worker *w); /* asks to be let go */
void mxd_worker_close(mxd_worker *w); /* at once; a running step is finished first. NULL is fine */

#endif
