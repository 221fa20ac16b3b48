/* coordinator.h - the driver of a cluster: threads, transport, processes around the control core.
 *
 * A cluster owns the coordinator's control core and runs it on one thread of its own: events come
 * in through one bounded queue (network, requests, clock), actions go out (frames, plans, tokens,
 * new worker processes). With local_workers = 0 a worker lives in this process, on the loopback
 * transport, and is treated like any other.
 *
 *   OPENING --plan installed--> READY <--> no plan (nodes lost) --close--> gone
 *
 * Threads: everything from any thread. Callbacks of a request run on the cluster's thread and must
 * not block.
 * Lifetime: requests end before close returns (the rest fail with E_SHUTDOWN).
 */
#ifndef MXD_CLUSTER_COORDINATOR_H
#define MXD_CLUSTER_COORDINATOR_H

#include <jansson.h>
#include "hardware/paces.h"
#include "model/model.h"
#include "plan/shape.h"
#include "runtime/sampling.h"

typedef struct mxd_cluster mxd_cluster;

typedef struct mxd_cluster_opts { /* zero: default. Strings are copied */
    const char *folder, *model_id;
    int local_workers;          /* processes on this machine; 0: one inside this process */
    bool no_local;              /* and not even that: remote workers only */
    const char *listen;         /* "ip:port"; NULL: 127.0.0.1, a free port */
    bool advertise;             /* where `listen` is, as a hint to the local network (beacon.h) */
    const char *state_dir;      /* CA and keys; NULL: a CA that lives as long as we do */
    const char *journal_dir;    /* of mxd_journal_opts; NULL: nothing outlives the process */
    const char *worker_program; /* mlx-dist-worker; needed when local_workers > 0 */
    const char *backend, *kernels;
    mxd_activations activations;
    mxd_kv_type kv;
    int threads; /* of each worker on this machine; 0: one per core (stages mostly take turns) */
    int ctx, parallel;
    int min_nodes;    /* the first plan waits for so many nodes; 0: the local ones */
    int prefill_rows; /* 0: 256 */
    bool no_prefix_cache;
    int64_t cert_life_s; /* of node certificates; they are renewed at two thirds. 0: 90 days */
    /* Takes one use of a join secret; false: not valid. On the transport's thread. NULL: nobody
     * can enrol. */
    bool (*spend_secret)(void *ctx, const char *secret);
    void *spend_ctx;
    uint64_t memory_total, memory_free; /* of this machine, for a worker in this process */
    double bandwidth, ops;
    mxd_paces paces;
    double cpus, host_cpus; /* worker.h */
    mxd_shape shape;        /* of plans */
} mxd_cluster_opts;

/* Errors: E_NET the address; E_INVAL; E_NOMEM; those of mxd_model_open for the folder. Returns
 * before any worker is there. */
mxd_rc mxd_cluster_open(mxd_cluster **out, const mxd_alloc *al, const mxd_cluster_opts *opts,
                        mxd_err *err) MXD_MUST_USE;
void mxd_cluster_close(mxd_cluster *c); /* local workers end with it, within 2 s */

typedef enum mxd_cluster_state {
    MXD_CLUSTER_LOADING, /* nodes join, or the first plan is being installed */
    MXD_CLUSTER_READY,
    MXD_CLUSTER_RECOVERING, /* it has been READY and will be again: a new plan is being installed */
    MXD_CLUSTER_FAILED      /* no plan is possible; see the error */
} mxd_cluster_state;

/* err (may be NULL): why it failed. */
mxd_cluster_state mxd_cluster_state_now(mxd_cluster *c, mxd_err *err);

/* Waits while LOADING or RECOVERING. Errors: why it FAILED; E_TIMEOUT. */
mxd_rc mxd_cluster_wait(mxd_cluster *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

int mxd_cluster_port(const mxd_cluster *c);          /* where workers join */
int mxd_cluster_ctx(const mxd_cluster *c);           /* tokens per sequence */
const char *mxd_cluster_determinism(mxd_cluster *c); /* of the plan in force */

/* The object of GET /v1/cluster/state, and just its plan; new references; NULL: no memory. */
json_t *mxd_cluster_state_json(mxd_cluster *c);

typedef struct mxd_cluster_counters {
    uint64_t epochs, replays, steps, requests_done, requests_failed, requests_cancelled;
    uint64_t prompt_tokens, generated_tokens;
    uint64_t cached_tokens; /* of the prompt tokens: not computed */
    uint32_t running, waiting, slots, nodes_live;
    uint64_t kv_tokens_used, kv_tokens_total;
} mxd_cluster_counters;
void mxd_cluster_counters_get(mxd_cluster *c, mxd_cluster_counters *out);

/* ------------------------------------------------------------------------------------ requests */

typedef enum mxd_end { MXD_END_STOP, MXD_END_LENGTH, MXD_END_CANCELLED, MXD_END_ERROR } mxd_end;

typedef struct mxd_request_end {
    mxd_end how;
    mxd_rc rc; /* ERROR: why */
    const char *text;
    int n_cached; /* prompt tokens that were not computed */
    int64_t queue_ms, prefill_ms, decode_ms;
} mxd_request_end;

typedef struct mxd_request { /* copied, with everything it points to */
    const int32_t *prompt;
    int n_prompt;
    int max_tokens; /* >= 1; prompt + answer stay within ctx */
    int min_tokens;
    const int32_t *stop_ids; /* [n_stop_ids] end the answer and are not part of it */
    int n_stop_ids;
    mxd_sampling how;
    int64_t timeout_ms;
    /* Not NULL: the request is in the journal until mxd_cluster_forget, and comes back after a
     * restart together with these bytes. */
    const void *keep;
    size_t n_keep;
    /* token: each accepted token, in order, exactly once; `stop`: it was a stop id.
     * end: exactly once, last. */
    void (*token)(void *ctx, const mxd_sampled *s, bool stop);
    void (*end)(void *ctx, const mxd_request_end *end);
    void *ctx;
} mxd_request;

/* *id: for cancel. Errors: E_IO `keep` and the journal cannot be written, or there is none;
 * E_CONTEXT; E_BUSY; E_PEER nobody can compute; E_SHUTDOWN; E_INVAL; E_NOMEM. No callback runs when
 * this fails. */
mxd_rc mxd_cluster_submit(mxd_cluster *c, const mxd_request *r, uint64_t *id,
                          mxd_err *err) MXD_MUST_USE;
void mxd_cluster_cancel(mxd_cluster *c, uint64_t id); /* unknown ids are ignored */

/* ------------------------------------------------------------------- requests that are kept */

/* A request of an earlier life of this coordinator. Borrowed until it is restored or forgotten. */
typedef struct mxd_kept {
    uint64_t id;
    const void *keep; /* as it was submitted */
    size_t n_keep;
    const int32_t *prompt;
    int n_prompt;
    const mxd_sampled *tokens; /* [n_tokens] accepted */
    int n_tokens;
    bool ended, stopped; /* stopped: by a stop id, the last token */
    mxd_request_end end;
    int64_t end_wall_ms; /* unix time */
} mxd_kept;

/* The i-th; NULL: there are no more. Restoring and forgetting change the order: start again. Before
 * other requests, one thread. */
const mxd_kept *mxd_cluster_kept(mxd_cluster *c, int i);

/* Goes on with a request that has not ended, under its old id, as soon as somebody can compute it:
 * callbacks come for tokens behind the accepted ones, and for the end. Taken off the list.
 * Errors: E_NOTFOUND, E_SHUTDOWN. */
mxd_rc mxd_cluster_restore(mxd_cluster *c, uint64_t id,
                           void (*token)(void *ctx, const mxd_sampled *s, bool stop),
                           void (*end)(void *ctx, const mxd_request_end *end), void *ctx,
                           mxd_err *err) MXD_MUST_USE;

/* The journal need not hold this request any longer; unknown ids are ignored. Any thread. */
void mxd_cluster_forget(mxd_cluster *c, uint64_t id);

/* Why nothing can be kept at present. False: all is well, or there is no journal. */
bool mxd_cluster_journal_problem(mxd_cluster *c, char *text, size_t cap);

/* Refuses new requests from now on and waits until the running ones have ended. E_TIMEOUT. */
mxd_rc mxd_cluster_drain(mxd_cluster *c, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

#endif
