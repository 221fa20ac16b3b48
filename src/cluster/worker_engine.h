/* worker_engine.h - private to cluster/: the thread that loads a shard and computes its steps.
 *
 * Jobs are taken in order from one queue and come back through `done`, each exactly once, on the
 * engine thread. A job belongs to the queue's side that holds it; nothing in it is shared.
 */
#ifndef MXD_CLUSTER_WORKER_ENGINE_H
#define MXD_CLUSTER_WORKER_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include "base/blob.h"
#include "base/queue.h"
#include "cluster/wire.h"
#include "cluster/worker_group.h"
#include "cluster/worker_weights.h"
#include "runtime/shard.h"

typedef enum mxd_task_kind {
    MXD_TASK_LOAD,
    MXD_TASK_UNLOAD,
    MXD_TASK_FORGET,
    MXD_TASK_COMPUTE
} mxd_task_kind;

typedef struct mxd_task {
    mxd_task_kind kind;
    uint64_t epoch, step_id;
    mxd_stage stage; /* LOAD */

    mxd_arena scratch;                     /* the decoded step's */
    mxd_wire_step step;                    /* COMPUTE */
    mxd_blob *head;                        /* the step as it came, to be forwarded as it is */
    mxd_blob *hidden_in;                   /* float32 [rows, hidden]; NULL when the shard embeds */
    mxd_blob *hidden_out;                  /* out; NULL when the shard has the head */
    mxd_sampled tokens[MXD_MAX_STEP_RUNS]; /* out */
    int n_tokens;

    mxd_err err; /* out: err.rc */
    int missed;  /* out, with E_PEER: the rank that was not there; -1: it is not known */
    float ms;
    uint64_t bytes;       /* LOAD: held */
    char determinism[16]; /* LOAD */
} mxd_task;

typedef struct mxd_worker_engine {
    const mxd_alloc *al;
    mxd_queue *jobs;
    pthread_t thread;
    bool started;
    void (*done)(void *ctx, mxd_task *job);
    void *done_ctx;
    mxd_worker_group group; /* the worker's, which makes and ends it */
    atomic_ullong epoch;    /* installed: queued steps of others are skipped */
    atomic_ullong load_done, load_total;
    atomic_uint row_us; /* what a step of a single row takes lately; 0: not known */
    atomic_uint wanted; /* the newest plan's part, of mxd_worker_engine_part; 0: there is none */
    mxd_worker_weights weights; /* its first fields are set before the first LOAD */
    const atomic_int *stall_ms; /* mxd_worker_opts; set before start */

    /* engine thread, after start */
    mxd_shard *shard;
    mxd_stage part;            /* whose shard it is */
    mxd_shard_opts shard_opts; /* all but the layers */
    unsigned loading;          /* the part of the LOAD in hand */
    bool paused;               /* the last row took so long that it counts as a pause */
} mxd_worker_engine;

/* What a stage makes a node hold, in one number that is not 0. */
unsigned mxd_worker_engine_part(const mxd_stage *s);

/* shard_opts, all but the folder, is set before the first LOAD. Errors: E_NOMEM, E_IO. */
mxd_rc mxd_worker_engine_start(mxd_worker_engine *e, const mxd_alloc *al,
                               void (*done)(void *ctx, mxd_task *job), void *ctx,
                               mxd_err *err) MXD_MUST_USE;
/* Ends after the job in hand; the others come back as E_CANCELED. */
void mxd_worker_engine_stop(mxd_worker_engine *e);

/* A job with one reference to nothing. NULL: no memory. */
mxd_task *mxd_task_new(const mxd_alloc *al, mxd_task_kind kind);
void mxd_task_free(const mxd_alloc *al, mxd_task *job);

/* Takes the job; false when the queue is full (it stays the caller's). */
bool mxd_worker_engine_push(mxd_worker_engine *e, mxd_task *job);

#endif
