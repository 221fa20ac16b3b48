/* metrics.h - counters and histograms of the server, as Prometheus text. Fixed label sets.
 * Threads: counters are atomics; any thread. */
#ifndef MXD_SERVER_METRICS_H
#define MXD_SERVER_METRICS_H

#include <stdatomic.h>
#include "api/engine.h"
#include "base/buf.h"

enum { MXD_METRIC_ROUTES = 32, MXD_METRIC_STATUSES = 18, MXD_METRIC_BUCKETS = 14 };

typedef struct mxd_histogram {
    atomic_ullong bucket[MXD_METRIC_BUCKETS + 1]; /* last: +Inf; not cumulative */
    atomic_ullong sum_us;
} mxd_histogram;

typedef struct mxd_metrics {
    atomic_ullong requests[MXD_METRIC_ROUTES][MXD_METRIC_STATUSES]; /* row 0: no route */
    mxd_histogram first_token, inter_token, duration;
    atomic_ullong disconnects, stalls;
    atomic_int connections;
} mxd_metrics;

void mxd_metrics_request(mxd_metrics *m, int route, int status); /* route: index + 1, or 0 */
void mxd_histogram_add(mxd_histogram *h, double seconds);

/* Everything, the engine's counters included. route_names: [n_routes]. */
void mxd_metrics_write(mxd_buf *out, const mxd_metrics *m, mxd_engine *e,
                       const char *const *route_names, int n_routes);

#endif
