/* address.h - "host:port" texts. Threads: reentrant. */
#ifndef MXD_NET_ADDRESS_H
#define MXD_NET_ADDRESS_H

#include "base/err.h"

enum { MXD_HOST_MAX = 256 };

/* Splits "10.0.0.7:5000", "box.local:5000" or "[fe80::1]:5000" (host then without brackets).
 * Errors: E_INVAL, and says what an address looks like. */
mxd_rc mxd_address_split(const char *address, char host[MXD_HOST_MAX], int *port,
                         mxd_err *err) MXD_MUST_USE;

#endif
