#include "net/address.h"

#include <string.h>

static mxd_rc bad(const char *address, mxd_err *err) {
    return mxd_fail(err, MXD_E_INVAL,
                    "address '%.100s' is not HOST:PORT; write 10.0.0.7:5000, name.local:5000 or "
                    "[fe80::1]:5000",
                    address);
}

static bool parse_port(const char *s, int *port) {
    long v = 0;
    size_t n = strlen(s);
    if (n == 0 || n > 5 || strspn(s, "0123456789") != n) return false;
    for (; *s; s++) v = v * 10 + (*s - '0');
    *port = (int)v;
    return v <= 65535;
}

static bool host_ok(const char *host, size_t n, bool v6) {
    for (size_t i = 0; i < n; i++) {
        char c = host[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!alnum && !strchr(v6 ? ":.%-_" : ".-_", c)) return false;
    }
    return n > 0 && n < MXD_HOST_MAX;
}

mxd_rc mxd_address_split(const char *address, char host[MXD_HOST_MAX], int *port, mxd_err *err) {
    const char *colon = strrchr(address, ':');
    if (!colon || !parse_port(colon + 1, port)) return bad(address, err);
    const char *begin = address, *end = colon;
    bool v6 = *address == '[';
    if (v6) {
        if (colon - address < 3 || colon[-1] != ']') return bad(address, err);
        begin++;
        end--;
    }
    size_t n = (size_t)(end - begin);
    if (!host_ok(begin, n, v6)) return bad(address, err);
    memcpy(host, begin, n);
    host[n] = '\0';
    return MXD_OK;
}
