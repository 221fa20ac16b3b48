#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "net/grpc_private.h"
#include "net/tls.h"

/* ---------------------------------------------------------------------------- channel arguments */

static void add(mxd_grpc_args *a, grpc_arg arg) {
    MXD_ASSERT(a->list.num_args < MXD_GRPC_MAX_ARGS);
    a->arg[a->list.num_args++] = arg;
}

static void add_int(mxd_grpc_args *a, const char *key, int64_t value) {
    add(a, (grpc_arg){.type = GRPC_ARG_INTEGER,
                      .key = (char *)(uintptr_t)key, /* gRPC's struct is not const-correct */
                      .value = {.integer = value > INT32_MAX ? INT32_MAX : (int)value}});
}

static void add_string(mxd_grpc_args *a, const char *key, const char *value) {
    add(a, (grpc_arg){.type = GRPC_ARG_STRING,
                      .key = (char *)(uintptr_t)key,
                      .value = {.string = (char *)(uintptr_t)value}});
}

static void common_args(mxd_grpc_args *a) {
    int limit = MXD_MAX_FRAME_BYTES + MXD_FRAME_SLACK_BYTES;
    a->list = (grpc_channel_args){0, a->arg};
    add_int(a, GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, limit);
    add_int(a, GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, limit);
    /* No compression: a small message that unpacks to a large one is refused. */
    add_int(a, GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE);
    add_int(a, GRPC_ARG_KEEPALIVE_TIME_MS, MXD_GRPC_PING_EVERY_MS);
    add_int(a, GRPC_ARG_KEEPALIVE_TIMEOUT_MS, MXD_GRPC_PING_TIMEOUT_MS);
    add_int(a, GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    add_int(a, GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

void mxd_grpc_client_args(mxd_grpc_args *a, const char *name, int64_t timeout_ms) {
    common_args(a);
    /* One attempt lasts this long at most, so it must not end before our own deadline; there is
     * never a second one. */
    add_int(a, GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, timeout_ms + 1000);
    add_int(a, GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, timeout_ms + 1000);
    add_int(a, GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, timeout_ms + 1000);
    add_int(a, GRPC_ARG_ENABLE_HTTP_PROXY, 0); /* else http_proxy is obeyed even for 127.0.0.1 */
    add_int(a, GRPC_ARG_ENABLE_RETRIES, 0);    /* else sent payloads are kept for a replay */
    /* Else two links with equal arguments share one TCP connection, and bulk delays the rest. */
    add_int(a, GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    if (name) add_string(a, GRPC_SSL_TARGET_NAME_OVERRIDE_ARG, name);
}

void mxd_grpc_server_args(mxd_grpc_args *a, grpc_resource_quota *quota) {
    common_args(a);
    /* Without these two a client that pings is sent away with GOAWAY. */
    add_int(a, GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, MXD_GRPC_PING_EVERY_MS / 2);
    add_int(a, GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    add_int(a, GRPC_ARG_ALLOW_REUSEPORT, 0); /* else a second server binds the same port silently */
    add_int(a, GRPC_ARG_MAX_CONCURRENT_STREAMS, MXD_GRPC_STREAMS_PER_PEER);
    add_int(a, GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, MXD_GRPC_HANDSHAKE_MS);
    add_int(a, GRPC_ARG_MAX_CONNECTION_IDLE_MS, MXD_GRPC_IDLE_MS);
    add(a, (grpc_arg){.type = GRPC_ARG_POINTER,
                      .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
                      .value = {.pointer = {quota, grpc_resource_quota_arg_vtable()}}});
}

/* ---------------------------------------------------------------------------------- credentials */

grpc_channel_credentials *mxd_grpc_channel_creds(const char *ca, const char *cert,
                                                 const char *key) {
    if (!ca) return grpc_insecure_credentials_create();
    grpc_ssl_pem_key_cert_pair pair = {key, cert};
    return grpc_ssl_credentials_create_ex(ca, cert ? &pair : NULL, NULL, NULL);
}

grpc_channel_credentials *mxd_grpc_own_creds(mxd_grpc *t) {
    pthread_mutex_lock(&t->identity_lock);
    grpc_channel_credentials *c = mxd_grpc_channel_creds(t->ca, t->cert, t->key);
    pthread_mutex_unlock(&t->identity_lock);
    return c;
}

/* Asked at every handshake: is there a newer identity? On gRPC's threads. */
static grpc_ssl_certificate_config_reload_status show(void *transport,
                                                      grpc_ssl_server_certificate_config **out) {
    mxd_grpc *t = transport;
    grpc_ssl_certificate_config_reload_status status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    pthread_mutex_lock(&t->identity_lock);
    if (t->served != t->n_identities) {
        grpc_ssl_pem_key_cert_pair pair = {t->key, t->cert};
        *out = grpc_ssl_server_certificate_config_create(t->ca, &pair, 1);
        status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
        t->served = t->n_identities;
    }
    pthread_mutex_unlock(&t->identity_lock);
    return status;
}

grpc_server_credentials *mxd_grpc_server_creds(mxd_grpc *t) {
    if (!t->secure) return grpc_insecure_server_credentials_create();
    pthread_mutex_lock(&t->identity_lock);
    t->served = t->n_identities - 1; /* these credentials have seen none yet */
    pthread_mutex_unlock(&t->identity_lock);
    /* A newcomer has no certificate yet: asked for, checked when shown, required call by call. */
    return grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(
            GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY, show, t));
}

static bool has_property(const grpc_auth_context *ctx, const char *name, const char *value) {
    grpc_auth_property_iterator it = grpc_auth_context_find_properties_by_name(ctx, name);
    for (const grpc_auth_property *p; (p = grpc_auth_property_iterator_next(&it));)
        if (p->value_length == strlen(value) && memcmp(p->value, value, p->value_length) == 0)
            return true;
    return false;
}

/* Our certificates carry the node id as common name and again among the alternative names; one
 * that does not agree with itself proves nothing. */
void mxd_grpc_call_peer(grpc_call *call, char node[MXD_MAX_NODE_NAME]) {
    node[0] = '\0';
    grpc_auth_context *ctx = grpc_call_auth_context(call);
    if (!ctx) return;
    grpc_auth_property_iterator it =
        grpc_auth_context_find_properties_by_name(ctx, GRPC_X509_CN_PROPERTY_NAME);
    const grpc_auth_property *cn = grpc_auth_property_iterator_next(&it);
    char name[MXD_MAX_NODE_NAME];
    bool ssl = has_property(ctx, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME,
                            GRPC_SSL_TRANSPORT_SECURITY_TYPE);
    if (ssl && cn && cn->value_length > 0 && cn->value_length < sizeof name) {
        memcpy(name, cn->value, cn->value_length);
        name[cn->value_length] = '\0';
        if (mxd_node_name_ok(name) && has_property(ctx, GRPC_X509_SAN_PROPERTY_NAME, name))
            memcpy(node, name, sizeof name);
    }
    grpc_auth_context_release(ctx);
}

/* ------------------------------------------------------------------------------------ addresses */

/* "%" and brackets have a meaning of their own in a target. */
static void put_escaped(char *out, size_t cap, const char *host) {
    size_t n = strlen(out);
    for (; *host && n + 4 < cap; host++)
        n += (size_t)snprintf(out + n, cap - n, *host == '%' ? "%%25" : "%c", *host);
}

mxd_rc mxd_grpc_target(const char *address, char *out, size_t cap, mxd_err *err) {
    char host[MXD_HOST_MAX];
    struct in_addr v4;
    int port;
    MXD_TRY(mxd_address_split(address, host, &port, err));
    if (port == 0) return mxd_fail(err, MXD_E_INVAL, "address '%s': port 0 is nobody's", address);
    bool v6 = strchr(host, ':') != NULL;
    snprintf(out, cap, "%s",
             v6                                   ? "ipv6:%5B"
             : inet_pton(AF_INET, host, &v4) == 1 ? "ipv4:"
                                                  : "dns:///");
    put_escaped(out, cap, host);
    size_t n = strlen(out);
    snprintf(out + n, cap - n, v6 ? "%%5D:%d" : ":%d", port);
    return MXD_OK;
}

static int hex(char c) {
    const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c | 32) : NULL;
    return at ? (int)(at - digits) : -1;
}

/* "ipv4:1.2.3.4:5" and "ipv6:%5B::1%5D:5" without their schemes and escapes. */
void mxd_grpc_call_address(grpc_call *call, char *out, size_t cap) {
    char *peer = grpc_call_get_peer(call);
    const char *p = peer ? peer : "";
    if (strncmp(p, "ipv4:", 5) == 0 || strncmp(p, "ipv6:", 5) == 0) p += 5;
    size_t n = 0;
    while (*p && n + 1 < cap) {
        bool escaped = *p == '%' && hex(p[1]) >= 0 && hex(p[2]) >= 0;
        out[n++] = escaped ? (char)(hex(p[1]) * 16 + hex(p[2])) : *p;
        p += escaped ? 3 : 1;
    }
    out[n] = '\0';
    gpr_free(peer);
}

/* -------------------------------------------------------------------------------------- process */

static pthread_once_t environment_once = PTHREAD_ONCE_INIT;

static void set_environment(void) {
    /* gRPC's own resolver asks DNS servers directly and so knows no ".local" names. */
    setenv("GRPC_DNS_RESOLVER", "native", 1);
    /* A library does not write to stderr; who wants gRPC's log sets the variable himself. */
    setenv("GRPC_VERBOSITY", "NONE", 0);
}

void mxd_grpc_environment(void) { pthread_once(&environment_once, set_environment); }

/* --------------------------------------------------------------------------------- byte buffers */

static void release_blob(void *b) { mxd_blob_release(b); }

grpc_slice mxd_grpc_blob_slice(mxd_blob *b) {
    return grpc_slice_new_with_user_data(b->bytes, b->len, release_blob, mxd_blob_retain(b));
}

static bool next_slice(void *ctx, const uint8_t **p, size_t *n) {
    mxd_grpc_source *s = ctx;
    if (s->have) grpc_slice_unref(s->slice);
    s->have = grpc_byte_buffer_reader_next(&s->reader, &s->slice);
    if (!s->have) return false;
    *p = GRPC_SLICE_START_PTR(s->slice);
    *n = GRPC_SLICE_LENGTH(s->slice);
    return true;
}

bool mxd_grpc_source_init(mxd_grpc_source *s, grpc_byte_buffer *bb) {
    *s = (mxd_grpc_source){.base = {next_slice, s, grpc_byte_buffer_length(bb)}};
    return grpc_byte_buffer_reader_init(&s->reader, bb);
}

void mxd_grpc_source_deinit(mxd_grpc_source *s) {
    if (s->have) grpc_slice_unref(s->slice);
    grpc_byte_buffer_reader_destroy(&s->reader);
}
