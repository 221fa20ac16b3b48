#include "cluster/worker_echo.h"

#include <string.h>

#include "base/clock.h"
#include "cluster/wire.h"

enum { FIRST_MS = 300, ALL_MS = 1500 };

static bool send_one(mxd_worker_echo *e, mxd_transport *net, mxd_link link, const mxd_alloc *al) {
    mxd_blob *payload = NULL;
    const char head[8] = {(char)e->n};
    if (e->n >= MXD_ECHO_SMALL) {
        payload = mxd_blob_new(al, MXD_ECHO_BYTES);
        if (!payload) return false;
        memset(payload->bytes, 0x5a, payload->len);
    }
    e->sent_ns = mxd_now_ns();
    e->running =
        net->ops->send(net, link, MXD_WIRE_ECHO, head, sizeof head, payload, NULL) == MXD_OK;
    mxd_blob_release(payload);
    return e->running;
}

bool mxd_worker_echo_begin(mxd_worker_echo *e, mxd_transport *net, mxd_link link,
                           const mxd_alloc *al) {
    *e = (mxd_worker_echo){.begun_ns = mxd_now_ns()};
    return send_one(e, net, link, al);
}

bool mxd_worker_echo_next(mxd_worker_echo *e, mxd_transport *net, mxd_link link,
                          const mxd_alloc *al) {
    int64_t ns = mxd_now_ns() - e->sent_ns;
    if (!e->running) return false;
    if (e->n < MXD_ECHO_SMALL)
        e->small_ns[e->n] = ns;
    else if (!e->large_ns || ns < e->large_ns)
        e->large_ns = ns;
    e->n++;
    e->running = false;
    return e->n < MXD_ECHO_SMALL + MXD_ECHO_LARGE && send_one(e, net, link, al);
}

bool mxd_worker_echo_late(const mxd_worker_echo *e) {
    int64_t ms = (mxd_now_ns() - e->begun_ns) / 1000000;
    return e->running && ms > (e->n ? ALL_MS : FIRST_MS);
}

/* The lower sixth: others disturb, nobody helps. */
static double round_trip_ns(const mxd_worker_echo *e) {
    int n = e->n < MXD_ECHO_SMALL ? e->n : MXD_ECHO_SMALL;
    int64_t ns[MXD_ECHO_SMALL];
    for (int i = 0; i < n; i++) {
        int k = i;
        for (; k > 0 && ns[k - 1] > e->small_ns[i]; k--) ns[k] = ns[k - 1];
        ns[k] = e->small_ns[i];
    }
    return n ? (double)ns[n / 6] : 0;
}

double mxd_worker_echo_us(const mxd_worker_echo *e) { return round_trip_ns(e) / 2e3; }

double mxd_worker_echo_rate(const mxd_worker_echo *e) {
    double ns = (double)e->large_ns - round_trip_ns(e);
    if (!e->large_ns) return 0;
    return 2e9 * MXD_ECHO_BYTES / (ns > 1e3 ? ns : 1e3);
}
