/* cond.h - waiting on a condition for a limited time, by the monotonic clock on every system. */
#ifndef MXD_BASE_COND_H
#define MXD_BASE_COND_H

#include <pthread.h>
#include <stdint.h>

/* Ends with pthread_cond_destroy. */
void mxd_cond_init(pthread_cond_t *c);

/* One wait of at most left_ns (> 0); may return early, so callers look again and count anew. The
 * caller holds the lock. */
void mxd_cond_wait(pthread_cond_t *c, pthread_mutex_t *lock, int64_t left_ns);

#endif
