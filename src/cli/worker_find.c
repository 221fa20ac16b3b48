#include "cli/worker_find.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/main_kit.h"
#include "net/beacon.h"
#include "net/tls_probe.h"

enum { HEAR_MS = 250, PROBE_MS = 3000, ANEW_MS = 10000, TELL_MS = 60000 };

void mxd_worker_pass(mxd_passed *p, const char *address) {
    snprintf(p->list[p->n++ % MXD_FIND_MAX_PASSED], MXD_FIND_ADDRESS, "%s", address);
}

static bool is_passed(const mxd_passed *p, const char *address) {
    for (int i = 0; i < p->n && i < MXD_FIND_MAX_PASSED; i++)
        if (strcmp(p->list[i], address) == 0) return true;
    return false;
}

/* The tag is anybody's to copy; a handshake is not. */
static bool is_it(const mxd_beacon_peer *peer, const unsigned char fingerprint[32], mxd_err *err) {
    char *ca = NULL;
    mxd_rc rc = mxd_tls_probe(&mxd_alloc_libc, peer->address, fingerprint, PROBE_MS, &ca, err);
    mxd_free(&mxd_alloc_libc, ca);
    if (rc)
        mxd_log(MXD_LOG_WARN, "server_not_it", "address=%s name=%s reason=\"%s\"", peer->address,
                peer->said.name, err->msg);
    else
        mxd_log(MXD_LOG_INFO, "server_found", "address=%s name=%s", peer->address, peer->said.name);
    return rc == MXD_OK;
}

/* One look at all that is remembered. Who is passed over is asked again the next time. */
static bool look(char out[MXD_FIND_ADDRESS], mxd_beacons *heard,
                 const unsigned char fingerprint[32], mxd_passed *passed, mxd_err *err) {
    for (int i = 0; i < heard->n; i++) {
        const mxd_beacon_peer *p = &heard->peers[i];
        if (is_passed(passed, p->address)) continue;
        if (is_it(p, fingerprint, err)) {
            snprintf(out, MXD_FIND_ADDRESS, "%s", p->address);
            return true;
        }
        mxd_worker_pass(passed, p->address);
    }
    return false;
}

static mxd_rc not_found(const mxd_beacons *heard, mxd_err *err) {
    if (heard->n && err->rc == MXD_E_AUTH) return err->rc;
    return mxd_fail(
        err, MXD_E_NOTFOUND,
        "no server of this cluster was heard on the local network (%d packets of others were): is "
        "it running with --cluster-listen, and does the network carry multicast? Else "
        "give its address, --join HOST:PORT",
        heard->n_others);
}

mxd_rc mxd_worker_find(char out[MXD_FIND_ADDRESS], const unsigned char fingerprint[32],
                       mxd_passed *passed, int64_t give_up_ms, mxd_err *err) {
    static mxd_beacons heard; /* stays: who was heard lately is asked at once */
    memcpy(heard.tag, fingerprint, sizeof heard.tag);
    int64_t start = mxd_now_ms(), opened = start, told = start;
    int fd;
    MXD_TRY(mxd_beacon_open(&fd, err));
    mxd_rc rc = MXD_E_NOTFOUND;
    for (int64_t now = start; rc == MXD_E_NOTFOUND; now = mxd_now_ms()) {
        mxd_beacon_hear(fd, &heard, HEAR_MS);
        if (look(out, &heard, fingerprint, passed, err)) rc = MXD_OK;
        if (rc && mxd_signals_wait(0)) rc = mxd_fail(err, MXD_E_CANCELED, "stopped");
        if (rc && give_up_ms && now - start > give_up_ms) break;
        if (rc && now - told > TELL_MS) {
            mxd_log(MXD_LOG_WARN, "server_not_heard", "others=%d", heard.n_others);
            told = now;
        }
        if (now - opened < ANEW_MS) continue;
        passed->n = 0; /* it may have been out of order; and interfaces come and go */
        mxd_beacon_close(fd);
        mxd_rc again = mxd_beacon_open(&fd, err);
        if (again) return again;
        opened = now;
    }
    mxd_beacon_close(fd);
    return rc == MXD_E_NOTFOUND ? not_found(&heard, err) : rc;
}
