#include "net/tls_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "net/address.h"

enum { HANDSHAKE_MAX_BYTES = 256 << 10, PIECE_BYTES = 4096 };

#ifdef MSG_NOSIGNAL
enum { SEND_FLAGS = MSG_NOSIGNAL };
#else
enum { SEND_FLAGS = 0 }; /* macOS: SO_NOSIGPIPE on the socket instead */
#endif

typedef struct probe {
    const char *address;
    int64_t until_ms;
    int fd;
    SSL_CTX *ctx;
    SSL *ssl;
    BIO *in, *out; /* memory, owned by ssl: we do the socket, so that no write raises SIGPIPE */
    size_t received;
} probe;

static mxd_rc wait_fd(const probe *p, short events, mxd_err *err) {
    struct pollfd pfd = {.fd = p->fd, .events = events};
    for (;;) {
        int64_t left = p->until_ms - mxd_now_ms();
        if (left <= 0)
            return mxd_fail(err, MXD_E_TIMEOUT, "no answer from %s in time; is it running?",
                            p->address);
        int n = poll(&pfd, 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (n > 0) return MXD_OK;
        if (n < 0 && errno != EINTR) return mxd_fail_sys(err, MXD_E_NET, "%s", p->address);
    }
}

/* --------------------------------------------------------------------------------------- connect
 */

static bool prepare_socket(int fd) {
    int flags = fcntl(fd, F_GETFL);
#ifdef SO_NOSIGPIPE
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &one, sizeof one);
#endif
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

static mxd_rc connect_one(probe *p, const struct addrinfo *ai, mxd_err *err) {
    int fault = 0;
    socklen_t n = sizeof fault;
    p->fd = socket(ai->ai_family, ai->ai_socktype, ai->ai_protocol);
    if (p->fd < 0 || !prepare_socket(p->fd))
        return mxd_fail_sys(err, MXD_E_NET, "no socket for %s", p->address);
    if (connect(p->fd, ai->ai_addr, ai->ai_addrlen) == 0) return MXD_OK;
    if (errno != EINPROGRESS)
        return mxd_fail_sys(err, MXD_E_NET, "cannot connect to %s", p->address);
    MXD_TRY(wait_fd(p, POLLOUT, err));
    if (getsockopt(p->fd, SOL_SOCKET, SO_ERROR, &fault, &n) == 0 && fault == 0) return MXD_OK;
    errno = fault;
    return mxd_fail_sys(err, MXD_E_NET, "cannot connect to %s", p->address);
}

static void close_socket(probe *p) {
    if (p->fd >= 0) close(p->fd);
    p->fd = -1;
}

static mxd_rc connect_any(probe *p, mxd_err *err) {
    char host[MXD_HOST_MAX], service[16];
    int port;
    struct addrinfo *list, hints = {.ai_socktype = SOCK_STREAM};
    MXD_TRY(mxd_address_split(p->address, host, &port, err));
    snprintf(service, sizeof service, "%d", port);
    int e = getaddrinfo(host, service, &hints, &list);
    if (e) return mxd_fail(err, MXD_E_NET, "cannot look up %s: %s", host, gai_strerror(e));
    mxd_rc rc = mxd_fail(err, MXD_E_NET, "%s has no address", host);
    for (const struct addrinfo *ai = list; ai && rc && rc != MXD_E_TIMEOUT; ai = ai->ai_next) {
        close_socket(p);
        rc = connect_one(p, ai, err);
    }
    freeaddrinfo(list);
    return rc;
}

/* ------------------------------------------------------------------------------------- handshake
 */

static mxd_rc no_tls(const probe *p, mxd_err *err) {
    char text[160] = "it hung up";
    unsigned long e = ERR_get_error();
    if (e) ERR_error_string_n(e, text, sizeof text);
    ERR_clear_error();
    return mxd_fail(err, MXD_E_AUTH,
                    "%s does not speak TLS as a cluster node does (%s); is it the cluster port?",
                    p->address, text);
}

static mxd_rc flush(const probe *p, mxd_err *err) {
    char *bytes;
    long n = BIO_get_mem_data(p->out, &bytes);
    for (long at = 0; at < n;) {
        MXD_TRY(wait_fd(p, POLLOUT, err));
        ssize_t k = send(p->fd, bytes + at, (size_t)(n - at), SEND_FLAGS);
        if (k < 0 && errno != EAGAIN && errno != EINTR) return no_tls(p, err);
        if (k > 0) at += k;
    }
    (void)BIO_reset(p->out);
    return MXD_OK;
}

static mxd_rc receive(probe *p, mxd_err *err) {
    char piece[PIECE_BYTES];
    MXD_TRY(wait_fd(p, POLLIN, err));
    ssize_t k = recv(p->fd, piece, sizeof piece, 0);
    if (k < 0 && (errno == EAGAIN || errno == EINTR)) return MXD_OK;
    if (k <= 0) return no_tls(p, err);
    p->received += (size_t)k;
    if (p->received > HANDSHAKE_MAX_BYTES) return no_tls(p, err);
    if (BIO_write(p->in, piece, (int)k) == (int)k) return MXD_OK;
    return mxd_fail(err, MXD_E_NOMEM, "no memory for a handshake");
}

static mxd_rc make_ssl(probe *p, mxd_err *err) {
    static const unsigned char h2[] = {2, 'h', '2'}; /* gRPC hangs up on anything else */
    p->ctx = SSL_CTX_new(TLS_client_method());
    p->ssl = p->ctx ? SSL_new(p->ctx) : NULL;
    p->in = p->ssl ? BIO_new(BIO_s_mem()) : NULL;
    p->out = p->in ? BIO_new(BIO_s_mem()) : NULL;
    if (!p->out) {
        BIO_free(p->in);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for a handshake");
    }
    SSL_set_bio(p->ssl, p->in, p->out);
    SSL_set_connect_state(p->ssl);
    SSL_set_verify(p->ssl, SSL_VERIFY_NONE, NULL); /* the fingerprint decides, afterwards */
    if (!SSL_set_min_proto_version(p->ssl, TLS1_2_VERSION) ||
        SSL_set_alpn_protos(p->ssl, h2, sizeof h2))
        return mxd_fail(err, MXD_E_INTERNAL, "OpenSSL refuses the handshake's settings");
    return MXD_OK;
}

static mxd_rc shake_hands(probe *p, mxd_err *err) {
    MXD_TRY(make_ssl(p, err));
    for (;;) {
        ERR_clear_error();
        int r = SSL_do_handshake(p->ssl), why = SSL_get_error(p->ssl, r);
        if (r == 1) return MXD_OK;
        if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) return no_tls(p, err);
        MXD_TRY(flush(p, err));
        if (why == SSL_ERROR_WANT_READ) MXD_TRY(receive(p, err));
    }
}

static mxd_rc find_cert(const probe *p, const mxd_alloc *al, const unsigned char fingerprint[32],
                        char **ca_pem, mxd_err *err) {
    STACK_OF(X509) *chain = SSL_get_peer_cert_chain(p->ssl);
    for (int i = 0; i < sk_X509_num(chain); i++) {
        unsigned char digest[EVP_MAX_MD_SIZE];
        unsigned n = 0;
        X509 *cert = sk_X509_value(chain, i);
        if (!X509_digest(cert, EVP_sha256(), digest, &n) || n != 32) continue;
        if (CRYPTO_memcmp(digest, fingerprint, 32) != 0) continue;
        BIO *out = BIO_new(BIO_s_mem());
        char *text = NULL;
        long len = out && PEM_write_bio_X509(out, cert) ? BIO_get_mem_data(out, &text) : 0;
        *ca_pem = len > 0 ? mxd_strndup(al, text, (size_t)len) : NULL;
        BIO_free(out);
        return *ca_pem ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory for a certificate");
    }
    return mxd_fail(err, MXD_E_AUTH,
                    "%s belongs to another cluster than the token: wrong address, an old token, "
                    "or somebody in between; make a new token with `mlx-dist-config token`",
                    p->address);
}

mxd_rc mxd_tls_probe(const mxd_alloc *al, const char *address, const unsigned char fingerprint[32],
                     int64_t timeout_ms, char **ca_pem, mxd_err *err) {
    probe p = {.address = address, .until_ms = mxd_now_ms() + timeout_ms, .fd = -1};
    *ca_pem = NULL;
    mxd_rc rc = connect_any(&p, err);
    if (!rc) rc = shake_hands(&p, err);
    if (!rc) rc = find_cert(&p, al, fingerprint, ca_pem, err);
    SSL_free(p.ssl);
    SSL_CTX_free(p.ctx);
    close_socket(&p);
    return rc;
}
