#include "base/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include "base/clock.h"
#include "base/cond.h"

/* A ring under one lock. `n` is also read without the lock, for spinning and for a quick look. */
struct mxd_queue {
    const mxd_alloc *al;
    pthread_mutex_t lock;
    pthread_cond_t filled;
    void **ring; /* [cap] */
    size_t cap, first;
    atomic_size_t n;
    atomic_bool closed;
};

mxd_rc mxd_queue_open(mxd_queue **out, const mxd_alloc *al, size_t cap, mxd_err *err) {
    MXD_ASSERT(cap > 0 && cap <= 1u << 20);
    mxd_queue *q = MXD_NEW(al, 1, mxd_queue);
    void **ring = q ? MXD_NEW(al, cap, void *) : NULL;
    if (!ring) {
        mxd_free(al, q);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for a queue of %zu", cap);
    }
    q->al = al;
    q->ring = ring;
    q->cap = cap;
    pthread_mutex_init(&q->lock, NULL);
    mxd_cond_init(&q->filled);
    *out = q;
    return MXD_OK;
}

void mxd_queue_free(mxd_queue *q) {
    if (!q) return;
    pthread_cond_destroy(&q->filled);
    pthread_mutex_destroy(&q->lock);
    mxd_free(q->al, q->ring);
    mxd_free(q->al, q);
}

bool mxd_queue_push(mxd_queue *q, void *item) {
    MXD_ASSERT(item);
    pthread_mutex_lock(&q->lock);
    bool room = q->n < q->cap && !q->closed;
    if (room) {
        q->ring[(q->first + q->n) % q->cap] = item;
        q->n++;
        pthread_cond_signal(&q->filled);
    }
    pthread_mutex_unlock(&q->lock);
    return room;
}

static void spin(mxd_queue *q, int spin_us) {
    int64_t until = mxd_now_ns() + (int64_t)spin_us * 1000;
    while (!q->n && !q->closed && mxd_now_ns() < until) {}
}

void *mxd_queue_pop(mxd_queue *q, int64_t timeout_ms, int spin_us) {
    int64_t until = timeout_ms < 0 ? INT64_MAX : mxd_now_ns() + timeout_ms * 1000000;
    if (spin_us > 0 && timeout_ms != 0) spin(q, spin_us);
    pthread_mutex_lock(&q->lock);
    while (!q->n && !q->closed) {
        if (until == INT64_MAX) {
            pthread_cond_wait(&q->filled, &q->lock);
            continue;
        }
        int64_t left = until - mxd_now_ns();
        if (left <= 0) break;
        mxd_cond_wait(&q->filled, &q->lock, left);
    }
    void *item = NULL;
    if (q->n) {
        item = q->ring[q->first];
        q->first = (q->first + 1) % q->cap;
        q->n--;
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

void mxd_queue_close(mxd_queue *q) {
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->filled);
    pthread_mutex_unlock(&q->lock);
}

bool mxd_queue_closed(const mxd_queue *q) { return q->closed; }
