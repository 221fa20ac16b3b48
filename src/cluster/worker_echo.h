/* worker_echo.h - private to cluster/: how long a message takes to the coordinator.
 *
 * Before its first hello a worker sends some small messages and two large ones, each when the one
 * before has come back. The planner needs both figures of every node (plan/plan.h). A coordinator
 * that does not answer (an older one), or a very slow way, ends it early.
 */
#ifndef MXD_CLUSTER_WORKER_ECHO_H
#define MXD_CLUSTER_WORKER_ECHO_H

#include "net/transport.h"

enum { MXD_ECHO_SMALL = 24, MXD_ECHO_LARGE = 2, MXD_ECHO_BYTES = 256 << 10 };

typedef struct mxd_worker_echo { /* zero: never begun */
    int n;                       /* that came back */
    bool running;
    int64_t begun_ns, sent_ns;
    int64_t small_ns[MXD_ECHO_SMALL], large_ns;
} mxd_worker_echo;

/* Sends the first. False: it cannot be measured; so it is after an error of the link. */
bool mxd_worker_echo_begin(mxd_worker_echo *e, mxd_transport *net, mxd_link link,
                           const mxd_alloc *al);

/* One came back: sends the next. False: that was the last one, or no more can be sent. */
bool mxd_worker_echo_next(mxd_worker_echo *e, mxd_transport *net, mxd_link link,
                          const mxd_alloc *al);

/* Whether it takes too long. */
bool mxd_worker_echo_late(const mxd_worker_echo *e);

/* What is known: microseconds of a small message one way, bytes/s; 0: not. */
double mxd_worker_echo_us(const mxd_worker_echo *e);
double mxd_worker_echo_rate(const mxd_worker_echo *e);

#endif
