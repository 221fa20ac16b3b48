/* worker_find.h - --join auto: where on the local network a worker's cluster is. */
#ifndef MXD_CLI_WORKER_FIND_H
#define MXD_CLI_WORKER_FIND_H

#include "cli/options.h"

enum { MXD_FIND_ADDRESS = 64, MXD_FIND_MAX_PASSED = 16 };

typedef struct mxd_passed { /* addresses that turned out not to be it, the last ones */
    char list[MXD_FIND_MAX_PASSED][MXD_FIND_ADDRESS];
    int n;
} mxd_passed;

/* The cluster port whose certificates end in the CA with this fingerprint; not one of `passed`,
 * unless it is all there is. Until a signal comes (E_CANCELED), or for give_up_ms (0: for ever).
 * Errors: E_NOTFOUND nothing was heard; E_AUTH what was heard was not it; E_NET no multicast here.
 */
mxd_rc mxd_worker_find(char out[MXD_FIND_ADDRESS], const unsigned char fingerprint[32],
                       mxd_passed *passed, int64_t give_up_ms, mxd_err *err) MXD_MUST_USE;

void mxd_worker_pass(mxd_passed *passed, const char *address);

#endif
