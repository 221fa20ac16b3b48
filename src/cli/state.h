/* state.h - what a cluster keeps on the coordinator's disk: its CA and its join tokens.
 *
 *   STATE/ca.pem, STATE/ca.key     as the coordinator reads them (0600)
 *   STATE/tokens.json              {"version": 1, "tokens": [{"secret", "uses", "expires_ms"}]},
 * 0600
 *
 * Secrets stand in the file as they are: whoever can read it can read the CA's key beside it too.
 * Two programs change tokens.json (mlx-dist-config token adds, the server spends): each under an
 * exclusive lock on tokens.lock, writing beside and renaming. Tokens that are spent or expired go
 * with the next change.
 *
 * Threads: any; every call is one transaction. Errors: E_IO; E_FORMAT a damaged file.
 */
#ifndef MXD_CLI_STATE_H
#define MXD_CLI_STATE_H

#include <stdint.h>
#include "net/tls.h"

enum { MXD_STATE_MAX_TOKENS = 256 };

/* Makes STATE (0700) and a CA in it. *made false: there was one already, untouched. */
mxd_rc mxd_state_make_ca(const mxd_alloc *al, const char *dir, const char *cluster_name, bool *made,
                         mxd_err *err) MXD_MUST_USE;

/* A new token for the CA in `dir`, noted there. Errors also: E_CONFIG there is no CA yet; E_BUSY
 * MXD_STATE_MAX_TOKENS are waiting already. */
mxd_rc mxd_state_add_token(const mxd_alloc *al, const char *dir, int uses, int64_t ttl_ms,
                           int64_t now_wall_ms, char token[MXD_TOKEN_MAX],
                           mxd_err *err) MXD_MUST_USE;

/* Takes one use of a secret. *spent false: unknown, used up or expired. */
mxd_rc mxd_state_spend(const mxd_alloc *al, const char *dir, const char *secret,
                       int64_t now_wall_ms, bool *spent, mxd_err *err) MXD_MUST_USE;

#endif
