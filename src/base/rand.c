#include "base/rand.h"

#include <errno.h>
#include <unistd.h>
#if defined(__linux__) || defined(__APPLE__)
#include <sys/random.h>
#endif

mxd_rc mxd_rand_secret(void *out, size_t n, mxd_err *err) {
    unsigned char *p = out;
    while (n) {
        size_t part = n < 256 ? n : 256; /* getentropy's own limit */
        if (getentropy(p, part) != 0)
            return mxd_fail_sys(err, MXD_E_IO, "the system's random generator does not answer");
        p += part;
        n -= part;
    }
    return MXD_OK;
}
