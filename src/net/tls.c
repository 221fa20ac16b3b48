#include "net/tls.h"

#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include "base/rand.h"

enum { DAY_S = 86400, CA_DAYS = 3650, NODE_DAYS = 90, SERIAL_BYTES = 16 };
enum { FINGERPRINT_BYTES = 32, SECRET_BYTES = 24 };
enum { FINGERPRINT_CHARS = 43, SECRET_CHARS = 32 }; /* in base64url without padding */

static const char token_prefix[] = "mxd1.";

/* The oldest of OpenSSL's errors goes behind our words; the thread's queue is left empty. */
static mxd_rc fail_ssl(mxd_err *err, mxd_rc rc, const char *what) {
    char text[160] = "no reason given";
    unsigned long e = ERR_get_error();
    if (e) ERR_error_string_n(e, text, sizeof text);
    ERR_clear_error();
    return mxd_fail(err, rc, "%s: %s", what, text);
}

void mxd_pem_free(const mxd_alloc *al, mxd_pem *p) {
    mxd_free(al, p->cert);
    if (p->key) OPENSSL_cleanse(p->key, strlen(p->key));
    mxd_free(al, p->key);
    *p = (mxd_pem){0};
}

bool mxd_node_name_ok(const char *node) {
    size_t n = strlen(node);
    if (n == 0 || n >= MXD_MAX_NODE_NAME) return false;
    if (strcmp(node, MXD_CLUSTER_DNS_NAME) == 0 || strcmp(node, "localhost") == 0) return false;
    for (size_t i = 0; i < n; i++) {
        bool alnum = (node[i] >= 'a' && node[i] <= 'z') || (node[i] >= '0' && node[i] <= '9');
        bool inner = i > 0 && i + 1 < n && strchr(".-_", node[i]);
        if (!alnum && !inner) return false;
    }
    return true;
}

static mxd_rc check_node_name(const char *node, mxd_err *err) {
    if (mxd_node_name_ok(node)) return MXD_OK;
    return mxd_fail(err, MXD_E_INVAL,
                    "'%.64s' is not a node id: use at most %d of a-z 0-9 . - _, with a letter or "
                    "digit at both ends",
                    node, MXD_MAX_NODE_NAME - 1);
}

bool mxd_secret_equal(const char *a, const char *b) {
    size_t n = strlen(a);
    return n == strlen(b) && CRYPTO_memcmp(a, b, n) == 0;
}

/* ------------------------------------------------------------------------------------ PEM texts */

static int no_password(char *buf, int size, int writing, void *ctx) {
    (void)buf, (void)size, (void)writing, (void)ctx;
    return 0; /* the default asks on the terminal */
}

static BIO *open_pem(const char *pem) {
    size_t n = pem ? strnlen(pem, MXD_PEM_MAX + 1) : 0;
    return n > 0 && n <= MXD_PEM_MAX ? BIO_new_mem_buf(pem, (int)n) : NULL;
}

static X509 *read_cert(const char *pem) {
    BIO *in = open_pem(pem);
    X509 *cert = in ? PEM_read_bio_X509(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    return cert;
}

static EVP_PKEY *read_key(const char *pem) {
    BIO *in = open_pem(pem);
    EVP_PKEY *key = in ? PEM_read_bio_PrivateKey(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    return key;
}

static X509_REQ *read_request(const char *pem) {
    BIO *in = open_pem(pem);
    X509_REQ *req = in ? PEM_read_bio_X509_REQ(in, NULL, no_password, NULL) : NULL;
    BIO_free(in);
    return req;
}

/* Moves what was written to `out` into a string of the caller's; frees `out`. */
static mxd_rc take_text(const mxd_alloc *al, BIO *out, bool written, char **text, mxd_err *err) {
    char *p = NULL;
    long n = out && written ? BIO_get_mem_data(out, &p) : 0;
    *text = n > 0 ? mxd_strndup(al, p, (size_t)n) : NULL;
    BIO_free(out);
    if (*text) return MXD_OK;
    return n > 0 ? mxd_fail(err, MXD_E_NOMEM, "no memory for a certificate")
                 : fail_ssl(err, MXD_E_INTERNAL, "cannot write a PEM text");
}

static mxd_rc write_cert(const mxd_alloc *al, X509 *cert, char **text, mxd_err *err) {
    BIO *out = BIO_new(BIO_s_mem());
    return take_text(al, out, out && PEM_write_bio_X509(out, cert), text, err);
}

static mxd_rc write_request(const mxd_alloc *al, X509_REQ *req, char **text, mxd_err *err) {
    BIO *out = BIO_new(BIO_s_mem());
    return take_text(al, out, out && PEM_write_bio_X509_REQ(out, req), text, err);
}

static mxd_rc write_key(const mxd_alloc *al, EVP_PKEY *key, char **text, mxd_err *err) {
    BIO *out = BIO_new(BIO_s_secmem());
    bool ok = out && PEM_write_bio_PrivateKey(out, key, NULL, NULL, 0, NULL, NULL);
    return take_text(al, out, ok, text, err);
}

/* --------------------------------------------------------------------------------- certificates */

static bool set_name(X509_NAME *name, const char *cn) {
    return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1, -1,
                                      0) == 1;
}

static bool set_serial(X509 *cert) {
    unsigned char b[SERIAL_BYTES];
    if (mxd_rand_secret(b, sizeof b, NULL)) return false;
    b[0] &= 0x7f; /* positive */
    BIGNUM *n = BN_bin2bn(b, sizeof b, NULL);
    bool ok = n && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert));
    BN_free(n);
    return ok;
}

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value) {
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    bool ok = e && X509_add_ext(cert, e, -1) == 1;
    X509_EXTENSION_free(e);
    return ok;
}

/* A certificate for `key` with name, dates and serial, not signed yet; NULL on failure. */
static X509 *cert_new(const char *cn, EVP_PKEY *key, int64_t life_s) {
    X509 *c = X509_new();
    int64_t past_s = life_s / 8 < DAY_S ? life_s / 8 : DAY_S; /* slow clocks */
    bool ok = c && X509_set_version(c, X509_VERSION_3) && set_serial(c) &&
              X509_gmtime_adj(X509_getm_notBefore(c), -(long)past_s) &&
              X509_time_adj_ex(X509_getm_notAfter(c), (int)(life_s / DAY_S), (long)(life_s % DAY_S),
                               NULL) &&
              X509_set_pubkey(c, key) && set_name(X509_get_subject_name(c), cn);
    if (ok) return c;
    X509_free(c);
    return NULL;
}

static bool finish_ca(X509 *c, EVP_PKEY *key) {
    return X509_set_issuer_name(c, X509_get_subject_name(c)) &&
           add_extension(c, c, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
           add_extension(c, c, NID_key_usage, "critical,keyCertSign,cRLSign") &&
           add_extension(c, c, NID_subject_key_identifier, "hash") &&
           X509_sign(c, key, EVP_sha256()) > 0;
}

static bool finish_node(X509 *c, X509 *ca, EVP_PKEY *ca_key, const char *node) {
    char names[MXD_MAX_NODE_NAME + 64]; /* a node id holds nothing that OpenSSL would interpret */
    snprintf(names, sizeof names, "DNS:%s,DNS:" MXD_CLUSTER_DNS_NAME ",DNS:localhost", node);
    return X509_set_issuer_name(c, X509_get_subject_name(ca)) &&
           add_extension(c, ca, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(c, ca, NID_key_usage, "critical,digitalSignature") &&
           add_extension(c, ca, NID_ext_key_usage, "serverAuth,clientAuth") &&
           add_extension(c, ca, NID_subject_key_identifier, "hash") &&
           add_extension(c, ca, NID_authority_key_identifier, "keyid") &&
           add_extension(c, ca, NID_subject_alt_name, names) &&
           X509_sign(c, ca_key, EVP_sha256()) > 0;
}

mxd_rc mxd_ca_new(const mxd_alloc *al, const char *cluster_name, mxd_pem *out, mxd_err *err) {
    *out = (mxd_pem){0};
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = key ? cert_new(cluster_name, key, (int64_t)CA_DAYS * DAY_S) : NULL;
    mxd_rc rc = cert && finish_ca(cert, key)
                    ? MXD_OK
                    : fail_ssl(err, MXD_E_INTERNAL, "cannot make a certificate authority");
    if (!rc) rc = write_cert(al, cert, &out->cert, err);
    if (!rc) rc = write_key(al, key, &out->key, err);
    if (rc) mxd_pem_free(al, out);
    X509_free(cert);
    EVP_PKEY_free(key);
    return rc;
}

/* The request of `key`; NULL: OpenSSL refused. */
static X509_REQ *request_new(const char *node, EVP_PKEY *key) {
    X509_REQ *req = X509_REQ_new();
    bool ok = req && X509_REQ_set_version(req, X509_REQ_VERSION_1) &&
              set_name(X509_REQ_get_subject_name(req), node) && X509_REQ_set_pubkey(req, key) &&
              X509_REQ_sign(req, key, EVP_sha256()) > 0;
    if (ok) return req;
    X509_REQ_free(req);
    return NULL;
}

mxd_rc mxd_csr_new(const mxd_alloc *al, const char *node, mxd_pem *out, mxd_err *err) {
    *out = (mxd_pem){0};
    MXD_TRY(check_node_name(node, err));
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509_REQ *req = key ? request_new(node, key) : NULL;
    mxd_rc rc = req ? MXD_OK : fail_ssl(err, MXD_E_INTERNAL, "cannot make a signing request");
    if (!rc) rc = write_request(al, req, &out->cert, err);
    if (!rc) rc = write_key(al, key, &out->key, err);
    if (rc) mxd_pem_free(al, out);
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return rc;
}

mxd_rc mxd_csr_again(const mxd_alloc *al, const char *node, const char *key_pem, char **csr_pem,
                     mxd_err *err) {
    *csr_pem = NULL;
    MXD_TRY(check_node_name(node, err));
    EVP_PKEY *key = read_key(key_pem);
    if (!key) return fail_ssl(err, MXD_E_AUTH, "the node's key is unreadable");
    X509_REQ *req = request_new(node, key);
    mxd_rc rc = req ? write_request(al, req, csr_pem, err)
                    : fail_ssl(err, MXD_E_INTERNAL, "cannot make a signing request");
    X509_REQ_free(req);
    EVP_PKEY_free(key);
    return rc;
}

/* True when the name consists of one common name and nothing else, copied to cn. */
static bool only_name(const X509_NAME *name, char cn[MXD_MAX_NODE_NAME]) {
    int n = X509_NAME_get_text_by_NID((X509_NAME *)(uintptr_t)name, NID_commonName, cn,
                                      MXD_MAX_NODE_NAME);
    return n > 0 && (size_t)n == strlen(cn) && X509_NAME_entry_count(name) == 1;
}

static bool is_p256(const EVP_PKEY *key) {
    char group[32] = "";
    return key && EVP_PKEY_is_a(key, "EC") &&
           EVP_PKEY_get_group_name(key, group, sizeof group, NULL) == 1 &&
           strcmp(group, "prime256v1") == 0;
}

static mxd_rc check_request(X509_REQ *req, const char *node, mxd_err *err) {
    char cn[MXD_MAX_NODE_NAME];
    if (!is_p256(X509_REQ_get0_pubkey(req)))
        return mxd_fail(err, MXD_E_FORMAT, "signing request: its key is not EC P-256");
    if (X509_REQ_verify(req, X509_REQ_get0_pubkey(req)) != 1)
        return fail_ssl(err, MXD_E_FORMAT, "signing request: bad signature");
    if (!only_name(X509_REQ_get_subject_name(req), cn) || strcmp(cn, node) != 0)
        return mxd_fail(err, MXD_E_FORMAT, "signing request: it asks for another name than '%s'",
                        node);
    return MXD_OK;
}

static mxd_rc sign(const mxd_alloc *al, const mxd_pem *ca, X509_REQ *req, const char *node,
                   int64_t life_s, char **cert_pem, mxd_err *err) {
    X509 *ca_cert = read_cert(ca->cert);
    EVP_PKEY *ca_key = read_key(ca->key);
    bool usable = ca_cert && ca_key && X509_check_private_key(ca_cert, ca_key) == 1;
    X509 *cert = usable ? cert_new(node, X509_REQ_get0_pubkey(req), life_s) : NULL;
    mxd_rc rc = MXD_OK;
    if (!usable) {
        rc = fail_ssl(err, MXD_E_AUTH, "the cluster's CA certificate and key do not fit");
    } else if (!cert || !finish_node(cert, ca_cert, ca_key, node)) {
        rc = fail_ssl(err, MXD_E_INTERNAL, "cannot sign a certificate");
    }
    if (!rc) rc = write_cert(al, cert, cert_pem, err);
    X509_free(cert);
    X509_free(ca_cert);
    EVP_PKEY_free(ca_key);
    return rc;
}

mxd_rc mxd_ca_sign_for(const mxd_alloc *al, const mxd_pem *ca, const char *csr_pem,
                       const char *node, int64_t life_s, char **cert_pem, mxd_err *err) {
    *cert_pem = NULL;
    MXD_TRY(check_node_name(node, err));
    if (life_s <= 0) life_s = (int64_t)NODE_DAYS * DAY_S;
    X509_REQ *req = read_request(csr_pem);
    mxd_rc rc = req ? check_request(req, node, err)
                    : fail_ssl(err, MXD_E_FORMAT, "not a signing request in PEM");
    if (!rc) rc = sign(al, ca, req, node, life_s, cert_pem, err);
    X509_REQ_free(req);
    return rc;
}

mxd_rc mxd_ca_sign(const mxd_alloc *al, const mxd_pem *ca, const char *csr_pem, const char *node,
                   char **cert_pem, mxd_err *err) {
    return mxd_ca_sign_for(al, ca, csr_pem, node, 0, cert_pem, err);
}

mxd_rc mxd_ca_issue_for(const mxd_alloc *al, const mxd_pem *ca, const char *node, int64_t life_s,
                        mxd_pem *out, mxd_err *err) {
    mxd_pem csr;
    char *cert;
    *out = (mxd_pem){0};
    MXD_TRY(mxd_csr_new(al, node, &csr, err));
    mxd_rc rc = mxd_ca_sign_for(al, ca, csr.cert, node, life_s, &cert, err);
    if (!rc) {
        *out = (mxd_pem){.cert = cert, .key = csr.key};
        csr.key = NULL;
    }
    mxd_pem_free(al, &csr);
    return rc;
}

mxd_rc mxd_ca_issue(const mxd_alloc *al, const mxd_pem *ca, const char *node, mxd_pem *out,
                    mxd_err *err) {
    return mxd_ca_issue_for(al, ca, node, 0, out, err);
}

/* Seconds from one time to another; NULL: now. */
static bool seconds(const ASN1_TIME *from, const ASN1_TIME *to, int64_t *out) {
    int days, rest;
    if (!ASN1_TIME_diff(&days, &rest, from, to)) return false;
    *out = (int64_t)days * DAY_S + rest;
    return true;
}

mxd_rc mxd_cert_renew_in(const char *cert_pem, int64_t *ms, mxd_err *err) {
    int64_t life = 0, left = 0;
    *ms = 0;
    X509 *cert = read_cert(cert_pem);
    bool ok = cert && seconds(X509_get0_notBefore(cert), X509_get0_notAfter(cert), &life) &&
              seconds(NULL, X509_get0_notAfter(cert), &left);
    X509_free(cert);
    if (!ok) return fail_ssl(err, MXD_E_AUTH, "the node's certificate is unreadable");
    if (left > life / 3) *ms = (left - life / 3) * 1000;
    return MXD_OK;
}

/* ----------------------------------------------------------------------------------- identities */

static mxd_rc verify(X509 *cert, X509 *ca, mxd_err *err) {
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    bool ready = store && ctx && X509_STORE_add_cert(store, ca) &&
                 X509_STORE_CTX_init(ctx, store, cert, NULL);
    mxd_rc rc = MXD_OK;
    if (!ready) {
        rc = fail_ssl(err, MXD_E_NOMEM, "cannot check a certificate");
    } else if (X509_verify_cert(ctx) != 1) {
        int why = X509_STORE_CTX_get_error(ctx);
        rc = mxd_fail(err, MXD_E_AUTH,
                      "the node's certificate is refused: %s; join again with a "
                      "new token",
                      X509_verify_cert_error_string(why));
        ERR_clear_error();
    }
    X509_STORE_CTX_free(ctx);
    X509_STORE_free(store);
    return rc;
}

static mxd_rc check_parts(X509 *ca, X509 *cert, const EVP_PKEY *key, mxd_err *err) {
    if (!ca) return fail_ssl(err, MXD_E_AUTH, "the cluster's CA certificate is unreadable");
    if (!cert) return fail_ssl(err, MXD_E_AUTH, "the node's certificate is unreadable");
    if (!key) return fail_ssl(err, MXD_E_AUTH, "the node's key is unreadable");
    if (X509_check_private_key(cert, key) != 1)
        return fail_ssl(err, MXD_E_AUTH, "the node's key does not fit its certificate");
    return verify(cert, ca, err);
}

/* The node id is the whole subject, and again an alternative name: what peers will look for. */
static bool names_node(X509 *cert, char cn[MXD_MAX_NODE_NAME]) {
    return only_name(X509_get_subject_name(cert), cn) && mxd_node_name_ok(cn) &&
           X509_check_host(cert, cn, 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) == 1;
}

mxd_rc mxd_identity_check(const char *ca_pem, const char *cert_pem, const char *key_pem,
                          char node[MXD_MAX_NODE_NAME], mxd_err *err) {
    char cn[MXD_MAX_NODE_NAME];
    X509 *ca = read_cert(ca_pem), *cert = read_cert(cert_pem);
    EVP_PKEY *key = read_key(key_pem);
    mxd_rc rc = check_parts(ca, cert, key, err);
    if (!rc && !names_node(cert, cn))
        rc = mxd_fail(err, MXD_E_AUTH, "the certificate names no node");
    if (!rc && node) memcpy(node, cn, sizeof cn);
    X509_free(ca);
    X509_free(cert);
    EVP_PKEY_free(key);
    return rc;
}

mxd_rc mxd_cert_leaf(const mxd_alloc *al, const char *chain_pem, char **cert_pem, mxd_err *err) {
    *cert_pem = NULL;
    X509 *cert = read_cert(chain_pem);
    mxd_rc rc = cert ? write_cert(al, cert, cert_pem, err)
                     : fail_ssl(err, MXD_E_AUTH, "the certificate is unreadable");
    X509_free(cert);
    return rc;
}

/* --------------------------------------------------------------------------------------- tokens */

static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* base64url without padding (RFC 4648, section 5); writes a NUL. */
static void encode64(const unsigned char *in, size_t n, char *out) {
    unsigned acc = 0, bits = 0;
    for (size_t i = 0; i < n; i++) {
        acc = acc << 8 | in[i];
        for (bits += 8; bits >= 6; bits -= 6) *out++ = alphabet[acc >> (bits - 6) & 63];
    }
    if (bits) *out++ = alphabet[acc << (6 - bits) & 63];
    *out = '\0';
}

/* False when a character is foreign, or unused bits of the last one are set. */
static bool decode64(const char *in, size_t chars, unsigned char *out) {
    unsigned acc = 0, bits = 0;
    for (size_t i = 0; i < chars; i++) {
        const char *at = in[i] ? strchr(alphabet, in[i]) : NULL;
        if (!at) return false;
        acc = acc << 6 | (unsigned)(at - alphabet);
        bits += 6;
        if (bits < 8) continue;
        bits -= 8;
        *out++ = (unsigned char)(acc >> bits);
        acc &= (1u << bits) - 1;
    }
    return acc == 0;
}

mxd_rc mxd_token_new(const char *ca_cert_pem, char token[MXD_TOKEN_MAX],
                     char secret[MXD_SECRET_MAX], mxd_err *err) {
    unsigned char fp[EVP_MAX_MD_SIZE], random[SECRET_BYTES];
    char fp_text[FINGERPRINT_CHARS + 1], text[SECRET_CHARS + 1];
    unsigned n = 0;
    MXD_TRY(mxd_rand_secret(random, sizeof random, err));
    X509 *ca = read_cert(ca_cert_pem);
    bool ok = ca && X509_digest(ca, EVP_sha256(), fp, &n) && n == FINGERPRINT_BYTES;
    X509_free(ca);
    if (!ok) return fail_ssl(err, MXD_E_AUTH, "the cluster's CA certificate is unreadable");
    encode64(fp, n, fp_text);
    encode64(random, sizeof random, text);
    snprintf(token, MXD_TOKEN_MAX, "%s%s.%s", token_prefix, fp_text, text);
    snprintf(secret, MXD_SECRET_MAX, "%s", text);
    OPENSSL_cleanse(random, sizeof random);
    OPENSSL_cleanse(text, sizeof text);
    return MXD_OK;
}

mxd_rc mxd_token_parse(const char *token, unsigned char fingerprint[32],
                       char secret[MXD_SECRET_MAX], mxd_err *err) {
    unsigned char scratch[SECRET_BYTES];
    size_t prefix = sizeof token_prefix - 1, n = strnlen(token, MXD_TOKEN_MAX);
    while (n && strchr(" \t\r\n", token[n - 1])) n--; /* as it comes out of a file */
    const char *fp = token + prefix, *sec = fp + FINGERPRINT_CHARS + 1;
    bool ok = n == prefix + FINGERPRINT_CHARS + 1 + SECRET_CHARS &&
              memcmp(token, token_prefix, prefix) == 0 && fp[FINGERPRINT_CHARS] == '.' &&
              decode64(fp, FINGERPRINT_CHARS, fingerprint) && decode64(sec, SECRET_CHARS, scratch);
    OPENSSL_cleanse(scratch, sizeof scratch);
    if (!ok)
        return mxd_fail(err, MXD_E_INVAL,
                        "not a join token; one begins with mxd1. and has %d characters: copy it "
                        "whole from `mlx-dist-config token`",
                        (int)prefix + FINGERPRINT_CHARS + 1 + SECRET_CHARS);
    memcpy(secret, sec, SECRET_CHARS);
    secret[SECRET_CHARS] = '\0';
    return MXD_OK;
}
