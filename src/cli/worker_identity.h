/* worker_identity.h - who a worker is: its node id, key and certificate, kept over restarts.
 *
 * Files in STATE/worker: node.key, node.pem, ca.pem, and node.id. A token that is still good makes
 * the worker enrol anew, maybe with another cluster; one that is refused leaves it the certificate
 * it has.
 */
#ifndef MXD_CLI_WORKER_IDENTITY_H
#define MXD_CLI_WORKER_IDENTITY_H

#include "cli/options.h"
#include "net/tls.h"

typedef struct mxd_worker_identity {
    char node[MXD_MAX_NODE_NAME];
    mxd_pem pem; /* own certificate and key */
    char *ca;
} mxd_worker_identity;

/* From the state folder, else by enrolling with --token, --token-file or MLXD_TOKEN.
 * Errors: E_AUTH no certificate and no token, or the token is refused; E_NET; E_TIMEOUT; E_IO. */
mxd_rc mxd_worker_identity_get(mxd_worker_identity *id, const mxd_options *o,
                               mxd_err *err) MXD_MUST_USE;

/* For mxd_worker_opts.renewed: keeps a renewed certificate in the state folder. `options` as above,
 * alive as long as the worker. A failure is logged; the old file then stays. */
void mxd_worker_identity_renewed(void *options, const char *cert_pem);
void mxd_worker_identity_deinit(mxd_worker_identity *id);

#endif
