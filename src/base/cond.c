#include "base/cond.h"

#include <time.h>

#include "base/clock.h"

void mxd_cond_init(pthread_cond_t *c) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
#if !defined(__APPLE__) /* macOS has only the relative wait, see mxd_cond_wait */
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
#endif
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

void mxd_cond_wait(pthread_cond_t *c, pthread_mutex_t *lock, int64_t left_ns) {
#if defined(__APPLE__)
    struct timespec rel = {.tv_sec = (time_t)(left_ns / 1000000000),
                           .tv_nsec = left_ns % 1000000000};
    pthread_cond_timedwait_relative_np(c, lock, &rel);
#else
    int64_t until = mxd_now_ns() + left_ns;
    struct timespec abs = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = until % 1000000000};
    pthread_cond_timedwait(c, lock, &abs);
#endif
}
