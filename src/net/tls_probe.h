/* tls_probe.h - asks a TLS port for its certificates, before there is anything to check them with.
 *
 * Trust:   the other side is anybody; the result is only the certificate that the fingerprint
 * names. Threads: reentrant. Blocks.
 */
#ifndef MXD_NET_TLS_PROBE_H
#define MXD_NET_TLS_PROBE_H

#include <stdint.h>
#include "base/alloc.h"

/* Shakes hands with `address` and hangs up.
 *   *ca_pem  the certificate of its chain whose SHA-256 is `fingerprint`, owned by the caller
 * Errors: E_AUTH no such certificate, or no TLS there; E_NET unreachable; E_TIMEOUT; E_INVAL;
 * E_NOMEM. Looking up a name may take longer than timeout_ms. */
mxd_rc mxd_tls_probe(const mxd_alloc *al, const char *address, const unsigned char fingerprint[32],
                     int64_t timeout_ms, char **ca_pem, mxd_err *err) MXD_MUST_USE;

#endif
