#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include "base/limits.h"
#include "base/clock.h"

/* A run is published by a new `ticket`: its number above, the next free task below. Whoever takes a
 * task does it by one compare-and-swap on the ticket, so a helper that wakes late, when the run is
 * over or another has begun, takes nothing and holds up nobody. `fn`, `ctx` and `n_tasks` belong to
 * the run of the ticket: they are read before the swap, and only believed when it succeeds; they
 * cannot change while a task of theirs is unfinished. The owner waits for `left`, not for helpers.
 *
 *   helper: WAIT (spin, then sleep) -> a new run number -> take tasks -> WAIT */
struct mxd_pool {
    const mxd_alloc *al;
    int n_threads, spin_us, n_started;
    pthread_t *helpers; /* [n_threads - 1] */

    _Atomic(mxd_pool_fn) fn;
    _Atomic(void *) ctx;
    atomic_uint n_tasks;
    atomic_uint_least64_t ticket; /* run << 32 | next task */
    atomic_uint left;             /* tasks of the run that are not finished */
    atomic_bool quit;

    pthread_mutex_t lock; /* only for sleeping */
    pthread_cond_t wake;
    atomic_int sleepers;
};

enum { PATIENT_SPINS = 20000 }; /* about a millisecond */

typedef struct helper_arg {
    mxd_pool *pool;
    int thread;
} helper_arg;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static uint32_t run_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }

static void take_tasks(mxd_pool *p, int thread) {
    uint64_t t = atomic_load(&p->ticket);
    for (;;) {
        mxd_pool_fn fn = atomic_load_explicit(&p->fn, memory_order_relaxed);
        void *ctx = atomic_load_explicit(&p->ctx, memory_order_relaxed);
        unsigned n = atomic_load_explicit(&p->n_tasks, memory_order_relaxed);
        uint32_t task = (uint32_t)t;
        if (task >= n) {
            uint64_t now = atomic_load(&p->ticket);
            if (now == t) return;
            t = now; /* n was of another run */
            continue;
        }
        if (!atomic_compare_exchange_weak(&p->ticket, &t, t + 1)) continue;
        fn(ctx, (int)task, thread);
        atomic_fetch_sub_explicit(&p->left, 1, memory_order_release);
        t = atomic_load(&p->ticket);
    }
}

/* Returns when the run is no longer `seen` or the pool ends. */
static void await_run(mxd_pool *p, uint32_t seen) {
    int64_t until = p->spin_us ? mxd_now_ns() + (int64_t)p->spin_us * 1000 : 0;
    while (p->spin_us) {
        for (int i = 0; i < 64; i++) {
            if (run_of(atomic_load(&p->ticket)) != seen || atomic_load(&p->quit)) return;
            relax();
        }
        if (mxd_now_ns() >= until) break;
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (run_of(atomic_load(&p->ticket)) == seen && !atomic_load(&p->quit))
        pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void *helper_main(void *arg) {
    helper_arg h = *(helper_arg *)arg;
    mxd_pool *p = h.pool;
    mxd_free(p->al, arg);
    for (uint32_t seen = 0;;) {
        await_run(p, seen);
        if (atomic_load(&p->quit)) return NULL;
        seen = run_of(atomic_load(&p->ticket));
        take_tasks(p, h.thread);
    }
}

static mxd_rc start_helper(mxd_pool *p, int thread, mxd_err *err) {
    helper_arg *h = MXD_NEW(p->al, 1, helper_arg);
    if (!h) return mxd_fail(err, MXD_E_NOMEM, "thread pool");
    *h = (helper_arg){p, thread};
    if (pthread_create(&p->helpers[thread - 1], NULL, helper_main, h) != 0) {
        mxd_free(p->al, h);
        return mxd_fail(err, MXD_E_IO,
                        "cannot start compute thread %d of %d: the limit of "
                        "processes may be reached (ulimit -u)",
                        thread + 1, p->n_threads);
    }
    p->n_started++;
    return MXD_OK;
}

mxd_rc mxd_pool_open(mxd_pool **out, const mxd_alloc *al, int n_threads, int spin_us,
                     mxd_err *err) {
    if (n_threads < 1 || n_threads > MXD_MAX_THREADS)
        return mxd_fail(err, MXD_E_INVAL, "%d threads: must be 1 to %d", n_threads,
                        MXD_MAX_THREADS);
    mxd_pool *p = MXD_NEW(al, 1, mxd_pool);
    if (!p) return mxd_fail(err, MXD_E_NOMEM, "thread pool");
    p->al = al;
    p->n_threads = n_threads;
    p->spin_us = spin_us;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    p->helpers = MXD_NEW(al, (size_t)n_threads, pthread_t);
    mxd_rc rc = p->helpers ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "thread pool");
    for (int t = 1; !rc && t < n_threads; t++) rc = start_helper(p, t, err);
    if (rc) {
        mxd_pool_close(p);
        return rc;
    }
    *out = p;
    return MXD_OK;
}

static void wake_all(mxd_pool *p) {
    if (!atomic_load(&p->sleepers)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void mxd_pool_close(mxd_pool *p) {
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    atomic_store(&p->quit, true);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->n_started; i++) pthread_join(p->helpers[i], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mxd_free(p->al, p->helpers);
    mxd_free(p->al, p);
}

int mxd_pool_threads(const mxd_pool *p) { return p->n_threads; }

void mxd_pool_run(mxd_pool *p, mxd_pool_fn fn, void *ctx, int n_tasks) {
    if (n_tasks <= 1 || p->n_threads == 1) {
        for (int i = 0; i < n_tasks; i++) fn(ctx, i, 0);
        return;
    }
    uint32_t run = run_of(atomic_load_explicit(&p->ticket, memory_order_relaxed)) + 1;
    /* Nobody may take a task of the old run by the new one's n_tasks. */
    atomic_store(&p->ticket, (uint64_t)(run - 1) << 32 | UINT32_MAX);
    atomic_store_explicit(&p->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&p->ctx, ctx, memory_order_relaxed);
    atomic_store_explicit(&p->n_tasks, (unsigned)n_tasks, memory_order_relaxed);
    atomic_store(&p->left, (unsigned)n_tasks);
    atomic_store(&p->ticket,
                 (uint64_t)run << 32); /* sequentially consistent: publishes the above */
    wake_all(p);
    take_tasks(p, 0);
    for (int spins = 0; atomic_load_explicit(&p->left, memory_order_acquire) > 0; spins++) {
        relax();
        if (spins > PATIENT_SPINS) sched_yield(); /* a helper lost its core: let it have ours */
    }
}
