#include "cluster/places.h"

#include <stdio.h>
#include <string.h>

#include "net/address.h"

bool mxd_place_is_any(const char *address) {
    char host[MXD_HOST_MAX];
    int port;
    return mxd_address_split(address, host, &port, NULL) == MXD_OK &&
           (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0);
}

bool mxd_place_is_loopback(const char *address) {
    char host[MXD_HOST_MAX];
    int port;
    return mxd_address_split(address, host, &port, NULL) == MXD_OK &&
           (strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0 ||
            strcmp(host, "localhost") == 0);
}

static void join(char *out, size_t cap, const char *host, int port) {
    snprintf(out, cap, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, port);
}

void mxd_place_with_host(char *out, size_t cap, const char *address, const char *host_of) {
    char host[MXD_HOST_MAX];
    int port, other;
    if (mxd_address_split(host_of, host, &other, NULL) == MXD_OK) {
        char own[MXD_HOST_MAX];
        if (mxd_address_split(address, own, &port, NULL) == MXD_OK) {
            join(out, cap, host, port);
            return;
        }
    }
    snprintf(out, cap, "%s", address);
}

void mxd_place_with_port(char *out, size_t cap, const char *address, int port) {
    char host[MXD_HOST_MAX];
    int other;
    if (mxd_address_split(address, host, &other, NULL) == MXD_OK)
        join(out, cap, host, port);
    else
        snprintf(out, cap, "%s", address);
}
