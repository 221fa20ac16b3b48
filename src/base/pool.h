/* pool.h - a fork-join thread pool for compute.
 *
 * One owner thread calls mxd_pool_run; it takes part in the work itself, so a pool of n threads
 * starts n - 1. Tasks are handed out by an atomic counter; results must not depend on which
 * thread took which task (they write disjoint outputs). Between runs the helpers spin for a short
 * time, then sleep. No locks inside tasks, no nesting.
 *
 * Threads: everything here from the owner thread only.
 */
#ifndef MXD_BASE_POOL_H
#define MXD_BASE_POOL_H

#include "base/alloc.h"

typedef struct mxd_pool mxd_pool;

/* task: 0 .. n_tasks - 1; thread: 0 .. n_threads - 1, for per-thread scratch. */
typedef void (*mxd_pool_fn)(void *ctx, int task, int thread);

/* n_threads: 1 .. MXD_MAX_THREADS. spin_us: how long idle helpers poll before they sleep; 0 when
 * there are more compute threads on the machine than cores. Errors: E_NOMEM, E_INVAL, E_IO. */
mxd_rc mxd_pool_open(mxd_pool **out, const mxd_alloc *al, int n_threads, int spin_us,
                     mxd_err *err) MXD_MUST_USE;
void mxd_pool_close(mxd_pool *p); /* NULL is fine */

int mxd_pool_threads(const mxd_pool *p);

/* Runs fn for every task and returns when all are done. */
void mxd_pool_run(mxd_pool *p, mxd_pool_fn fn, void *ctx, int n_tasks);

#endif
