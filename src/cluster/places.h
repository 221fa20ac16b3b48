/* places.h - private to cluster/: whose machine an address means.
 *
 * A node listens where its owner says, often on every interface, so it cannot always tell by which
 * address others reach it. Two rules make it known:
 *   - an unspecified host (0.0.0.0, [::]) in a hello is the host the hello came from;
 *   - a loopback host in an install is the coordinator's machine, which a worker on another
 *     machine knows by the host it joined.
 *
 * Threads: reentrant. Errors: none; what is no address is left as it is.
 */
#ifndef MXD_CLUSTER_PLACES_H
#define MXD_CLUSTER_PLACES_H

#include <stdbool.h>
#include <stddef.h>

bool mxd_place_is_any(const char *address);      /* 0.0.0.0 or [::] */
bool mxd_place_is_loopback(const char *address); /* 127.x, [::1], localhost */

/* `address` with the host of `host_of`, into out [cap]. */
void mxd_place_with_host(char *out, size_t cap, const char *address, const char *host_of);

/* `address` with another port. */
void mxd_place_with_port(char *out, size_t cap, const char *address, int port);

#endif
