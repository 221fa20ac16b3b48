/* Who may ask: keys, Host (against DNS rebinding), Origin (against other sites in a browser). */
#include <arpa/inet.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include "server/http.h"

static mxd_rc copy_list(const mxd_alloc *al, char ***out, int *n_out, const char *const *list,
                        int n, mxd_err *err) {
    *out = MXD_NEW(al, (size_t)n, char *);
    if (!*out) return mxd_fail(err, MXD_E_NOMEM, "no memory for the server's options");
    for (*n_out = 0; *n_out < n; (*n_out)++) {
        (*out)[*n_out] = mxd_strdup(al, list[*n_out]);
        if (!(*out)[*n_out])
            return mxd_fail(err, MXD_E_NOMEM, "no memory for the server's options");
    }
    return MXD_OK;
}

static void free_list(const mxd_alloc *al, char **list, int n) {
    for (int i = 0; list && i < n; i++) mxd_free(al, list[i]);
    mxd_free(al, list);
}

mxd_rc mxd_guard_open(mxd_server *s, const mxd_server_opts *o, mxd_err *err) {
    MXD_TRY(copy_list(s->al, &s->hosts, &s->n_hosts, o->allowed_hosts, o->n_allowed_hosts, err));
    MXD_TRY(copy_list(s->al, &s->origins, &s->n_origins, o->cors_origins, o->n_cors_origins, err));
    MXD_TRY(copy_list(s->al, &s->aliases, &s->n_aliases, o->aliases, o->n_aliases, err));
    s->keys = mxd_new(s->al, (size_t)o->n_api_keys, sizeof *s->keys);
    if (!s->keys) return mxd_fail(err, MXD_E_NOMEM, "no memory for the API keys");
    for (int i = 0; i < o->n_api_keys; i++) {
        if (!o->api_keys[i][0]) return mxd_fail(err, MXD_E_INVAL, "an API key is empty");
        SHA256((const unsigned char *)o->api_keys[i], strlen(o->api_keys[i]), s->keys[i]);
        s->n_keys++;
    }
    return MXD_OK;
}

void mxd_guard_close(mxd_server *s) {
    free_list(s->al, s->hosts, s->n_hosts);
    free_list(s->al, s->origins, s->n_origins);
    free_list(s->al, s->aliases, s->n_aliases);
    mxd_free(s->al, s->keys);
}

static const char *header(const mxd_req *r, const char *name) {
    return MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, name);
}

/* Hashed first, so that the comparison tells nothing about the key, whatever its length; every key
 * is compared. */
static bool key_is_known(mxd_req *r, const char *key) {
    const mxd_server *s = r->server;
    SHA256((const unsigned char *)key, strlen(key), r->key);
    int known = 0;
    for (int i = 0; i < s->n_keys; i++)
        known |= CRYPTO_memcmp(r->key, s->keys[i], sizeof r->key) == 0;
    return known;
}

bool mxd_guard_key(mxd_req *r) {
    if (!r->server->n_keys || !r->route->needs_key) return true;
    const char *bearer = header(r, "Authorization"), *plain = header(r, "x-api-key");
    if (bearer && strncasecmp(bearer, "Bearer ", 7) == 0 && key_is_known(r, bearer + 7))
        return true;
    if (plain && key_is_known(r, plain)) return true;
    mxd_req_fail(r, MXD_FAULT_KEY, NULL,
                 "%s: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'",
                 bearer || plain ? "the API key is wrong" : "an API key is needed");
    return false;
}

/* Splits "name:port", "[::1]:port", "1.2.3.4" into the name without brackets. */
static bool host_name(const char *authority, char out[256]) {
    size_t n = authority[0] == '[' ? strcspn(++authority, "]") : strcspn(authority, ":");
    if (n == 0 || n > 255) return false;
    memcpy(out, authority, n);
    out[n] = '\0';
    return true;
}

static bool is_loopback(const char *name) {
    struct in_addr v4;
    if (strcasecmp(name, "localhost") == 0 || strcmp(name, "::1") == 0) return true;
    return inet_pton(AF_INET, name, &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

static bool is_literal(const char *name) {
    unsigned char raw[16];
    return inet_pton(AF_INET, name, raw) == 1 || inet_pton(AF_INET6, name, raw) == 1;
}

/* Rebinding needs a DNS name, so literals are safe once we listen beyond loopback. */
static bool host_is_allowed(const mxd_server *s, const char *authority) {
    char name[256], own[256];
    if (!host_name(authority, name)) return false;
    if (is_loopback(name) || strcasecmp(name, s->opts.host) == 0) return true;
    for (int i = 0; i < s->n_hosts; i++)
        if (strcmp(s->hosts[i], "*") == 0 || strcasecmp(name, s->hosts[i]) == 0) return true;
    if (s->loopback) return false;
    if (is_literal(name)) return true;
    if (gethostname(own, sizeof own) != 0) return false;
    own[sizeof own - 1] = '\0';
    size_t n = strlen(own);
    return strncasecmp(name, own, n) == 0 && (!name[n] || strcasecmp(name + n, ".local") == 0);
}

static bool origin_is_listed(const mxd_server *s, const char *origin) {
    const char *at = strstr(origin, "://");
    char name[256];
    bool local = at && host_name(at + 3, name) && is_loopback(name);
    for (int i = 0; i < s->n_origins; i++) {
        if (strcmp(s->origins[i], "*") == 0 || strcmp(s->origins[i], origin) == 0) return true;
        if (local && strcmp(s->origins[i], "localhost") == 0) return true;
    }
    return false;
}

/* A page that this server itself sent. */
static bool is_same_origin(const char *origin, const char *host) {
    const char *at = strstr(origin, "://");
    return at && host && strcasecmp(at + 3, host) == 0;
}

bool mxd_guard_origin(mxd_req *r) {
    const char *host = header(r, "Host"), *origin = header(r, "Origin");
    if (host && !host_is_allowed(r->server, host)) {
        mxd_req_fail(r, MXD_FAULT_ORIGIN, NULL,
                     "this Host header is not allowed: name it with --allowed-hosts");
        return false;
    }
    if (!origin) return true;
    if (origin_is_listed(r->server, origin)) {
        r->origin = origin;
        return true;
    }
    if (is_same_origin(origin, host)) return true;
    mxd_req_fail(r, MXD_FAULT_ORIGIN, NULL,
                 "this Origin is not allowed: name it with --cors-origins");
    return false;
}
