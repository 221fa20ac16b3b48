/* tls.h - the cluster's own certificate authority, node certificates, join tokens, enrolment.
 *
 * A cluster has one CA, made by `mlx-dist-config init` or by the first server start. A node's
 * certificate carries its node id as DNS name; nothing else identifies a node. A join token is
 *   mxd1.<base64url of SHA-256 of the CA certificate (DER)>.<base64url of 24 random bytes>
 * so a newcomer knows the CA before it has spoken to anyone, and proves the secret only to it.
 *
 * Trust:   PEM texts from peers are hostile.
 * Threads: reentrant.
 */
#ifndef MXD_NET_TLS_H
#define MXD_NET_TLS_H

#include <stddef.h>
#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"

/* Every node's certificate carries this name beside its own: a dialler that does not know whom it
 * will meet asks for it. */
#define MXD_CLUSTER_DNS_NAME "mxd-cluster"

enum { MXD_TOKEN_MAX = 128, MXD_SECRET_MAX = 48, MXD_PEM_MAX = 16 << 10 };

/* PEM texts on the heap; freed by mxd_pem_free. */
typedef struct mxd_pem {
    char *cert, *key;
} mxd_pem;
void mxd_pem_free(const mxd_alloc *al, mxd_pem *p);

/* A new CA (EC P-256, ten years). Errors: E_INTERNAL OpenSSL refused; E_NOMEM. */
mxd_rc mxd_ca_new(const mxd_alloc *al, const char *cluster_name, mxd_pem *out,
                  mxd_err *err) MXD_MUST_USE;

/* A key and a signing request for `node`; the key never leaves the node. out->cert is the request.
 */
mxd_rc mxd_csr_new(const mxd_alloc *al, const char *node, mxd_pem *out, mxd_err *err) MXD_MUST_USE;

/* A request for a new certificate of a key that is there already; owned by the caller (mxd_free).
 * Errors: E_AUTH the key is unreadable; E_INVAL the name. */
mxd_rc mxd_csr_again(const mxd_alloc *al, const char *node, const char *key_pem, char **csr_pem,
                     mxd_err *err) MXD_MUST_USE;

/* Signs a request that asks for exactly `node`; certificate PEM, good for life_s seconds (0: 90
 * days), in *cert_pem, owned by the caller (mxd_free). It begins a little in the past, for slow
 * clocks. Errors: E_FORMAT not a request, bad signature, other name, weak key. */
mxd_rc mxd_ca_sign_for(const mxd_alloc *al, const mxd_pem *ca, const char *csr_pem,
                       const char *node, int64_t life_s, char **cert_pem,
                       mxd_err *err) MXD_MUST_USE;
mxd_rc mxd_ca_sign(const mxd_alloc *al, const mxd_pem *ca, const char *csr_pem, const char *node,
                   char **cert_pem, mxd_err *err) MXD_MUST_USE;

/* A node's key and certificate in one step, for the CA's own machine. */
mxd_rc mxd_ca_issue_for(const mxd_alloc *al, const mxd_pem *ca, const char *node, int64_t life_s,
                        mxd_pem *out, mxd_err *err) MXD_MUST_USE;
mxd_rc mxd_ca_issue(const mxd_alloc *al, const mxd_pem *ca, const char *node, mxd_pem *out,
                    mxd_err *err) MXD_MUST_USE;

/* When a certificate should be renewed: in *ms from now, at two thirds of its life; 0: now. By the
 * clock of the wall, as certificates are. Errors: E_AUTH unreadable. */
mxd_rc mxd_cert_renew_in(const char *cert_pem, int64_t *ms, mxd_err *err) MXD_MUST_USE;

/* "mxd1.<fingerprint>.<secret>"; secret gets its text form too, for the server's table. */
mxd_rc mxd_token_new(const char *ca_cert_pem, char token[MXD_TOKEN_MAX],
                     char secret[MXD_SECRET_MAX], mxd_err *err) MXD_MUST_USE;

/* Takes the parts out of a token. Errors: E_INVAL, and says what a token looks like. */
mxd_rc mxd_token_parse(const char *token, unsigned char fingerprint[32],
                       char secret[MXD_SECRET_MAX], mxd_err *err) MXD_MUST_USE;

/* Newcomer's side: connects to `address`, checks the CA against the token, sends a request, and
 * gets its certificate. On success all three texts are the caller's (mxd_free).
 * Errors: E_AUTH wrong fingerprint or refused secret; E_NET; E_TIMEOUT. Blocks. */
mxd_rc mxd_enroll(const mxd_alloc *al, const char *address, const char *token, const char *node,
                  int64_t timeout_ms, mxd_pem *node_pem, char **ca_pem, mxd_err *err) MXD_MUST_USE;

/* A node id: 1 .. MXD_MAX_NODE_NAME - 1 of a-z 0-9 . - _, beginning and ending with a letter or a
 * digit, and not a name that every certificate carries ("mxd-cluster", "localhost"). */
bool mxd_node_name_ok(const char *node);

/* Can these three PEM texts speak for a node: the key fits the certificate, the CA has signed it,
 * both are valid now, the name is a node id (copied to `node`, which may be NULL).
 * Errors: E_AUTH, and says what does not fit. */
mxd_rc mxd_identity_check(const char *ca, const char *cert, const char *key,
                          char node[MXD_MAX_NODE_NAME], mxd_err *err) MXD_MUST_USE;

/* The first certificate of a chain, written anew; owned by the caller. Errors: E_AUTH, E_NOMEM. */
mxd_rc mxd_cert_leaf(const mxd_alloc *al, const char *chain_pem, char **cert_pem,
                     mxd_err *err) MXD_MUST_USE;

bool mxd_secret_equal(const char *a, const char *b); /* constant time in the content */

#endif
