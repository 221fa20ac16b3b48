/* The cluster's CA, certificates and tokens; no network. */
#include "base/clock.h"
#include "net/tls.h"
#include "test.h"

static const mxd_alloc *const libc = &mxd_alloc_libc;

TEST(node_names) {
    static const struct {
        const char *name;
        bool ok;
    } rows[] = {
        {"a", true},
        {"node-1.local_2", true},
        {"0", true},
        {"", false},
        {"-a", false},
        {"a-", false},
        {"A", false},
        {"a b", false},
        {"a,DNS:b", false},
        {"*", false},
        {"*.x", false},
        {"a\n", false},
        {"localhost", false},
        {"mxd-cluster", false},
        {"\xc3\xa9", false},
        {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", true},   /* 63 */
        {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false}, /* 64 */
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++)
        if (mxd_node_name_ok(rows[i].name) != rows[i].ok) fail_msg("'%s'", rows[i].name);
}

TEST(an_issued_identity_passes_its_check_and_others_do_not) {
    mxd_pem ca, other, a, b, c;
    mxd_err err = {0};
    char node[MXD_MAX_NODE_NAME];
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    CHECK_OK(mxd_ca_new(libc, "home", &other, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &ca, "node-a", &a, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &ca, "node-b", &b, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &other, "node-a", &c, &err), &err);
    CHECK_OK(mxd_identity_check(ca.cert, a.cert, a.key, node, &err), &err);
    CHECK_STR(node, "node-a");
    CHECK_EQ(mxd_identity_check(ca.cert, a.cert, b.key, node, &err), MXD_E_AUTH);
    CHECK_EQ(mxd_identity_check(ca.cert, c.cert, c.key, node, &err), MXD_E_AUTH);
    CHECK_EQ(mxd_identity_check(ca.cert, ca.cert, ca.key, node, &err), MXD_E_AUTH);
    CHECK_EQ(mxd_identity_check(ca.cert, "x", a.key, node, &err), MXD_E_AUTH);
    CHECK_EQ(mxd_identity_check(ca.cert, a.cert, NULL, node, &err), MXD_E_AUTH);
    CHECK(strstr(err.msg, "key"));
    mxd_pem *all[] = {&ca, &other, &a, &b, &c};
    for (size_t i = 0; i < MXD_COUNT(all); i++) mxd_pem_free(libc, all[i]);
}

/* Ninety days if nothing else is said, renewed at two thirds; and what is over is refused in words.
 */
TEST(certificates_end_and_are_due_before) {
    mxd_pem ca, usual, brief;
    mxd_err err = {0};
    int64_t ms;
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &ca, "node-a", &usual, &err), &err);
    CHECK_OK(mxd_ca_issue_for(libc, &ca, "node-a", 1, &brief, &err), &err);
    CHECK_OK(mxd_cert_renew_in(usual.cert, &ms, &err), &err);
    CHECK(ms > 59 * 86400000ll && ms < 60 * 86400000ll);
    CHECK_OK(mxd_cert_renew_in(ca.cert, &ms, &err), &err);
    CHECK(ms > 2400 * 86400000ll);
    mxd_sleep_ms(2100);
    CHECK_OK(mxd_cert_renew_in(brief.cert, &ms, &err), &err);
    CHECK_EQ(ms, 0);
    CHECK_EQ(mxd_identity_check(ca.cert, brief.cert, brief.key, NULL, &err), MXD_E_AUTH);
    CHECK(strstr(err.msg, "expired"));
    CHECK_EQ(mxd_cert_renew_in("x", &ms, &err), MXD_E_AUTH);
    /* once more, for the key that is there */
    char *csr, *cert;
    CHECK_OK(mxd_csr_again(libc, "node-a", brief.key, &csr, &err), &err);
    CHECK_OK(mxd_ca_sign_for(libc, &ca, csr, "node-a", 60, &cert, &err), &err);
    CHECK_OK(mxd_identity_check(ca.cert, cert, brief.key, NULL, &err), &err);
    mxd_free(libc, csr);
    CHECK_EQ(mxd_csr_again(libc, "node-a", "x", &csr, &err), MXD_E_AUTH);
    mxd_free(libc, cert);
    mxd_pem *all[] = {&ca, &usual, &brief};
    for (size_t i = 0; i < MXD_COUNT(all); i++) mxd_pem_free(libc, all[i]);
}

static const char rsa_request[] =
#include "net_rsa_request.inc"
    ;

TEST(a_request_is_signed_for_its_own_name_only) {
    mxd_pem ca, csr;
    mxd_err err = {0};
    char *cert = NULL;
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    CHECK_OK(mxd_csr_new(libc, "node-a", &csr, &err), &err);
    CHECK_OK(mxd_ca_sign(libc, &ca, csr.cert, "node-a", &cert, &err), &err);
    CHECK_OK(mxd_identity_check(ca.cert, cert, csr.key, NULL, &err), &err);
    mxd_free(libc, cert);
    CHECK_EQ(mxd_ca_sign(libc, &ca, csr.cert, "node-b", &cert, &err), MXD_E_FORMAT);
    CHECK_EQ(mxd_ca_sign(libc, &ca, csr.cert, "localhost", &cert, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_ca_sign(libc, &ca, "nonsense", "node-a", &cert, &err), MXD_E_FORMAT);
    CHECK_EQ(mxd_ca_sign(libc, &ca, ca.cert, "node-a", &cert, &err), MXD_E_FORMAT);
    CHECK_EQ(mxd_ca_sign(libc, &ca, rsa_request, "node-a", &cert, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "P-256"));
    mxd_pem_free(libc, &csr);
    mxd_pem_free(libc, &ca);
}

/* Any damage to a request's text is refused; none crashes. */
TEST(a_damaged_request_is_refused) {
    mxd_pem ca, csr;
    mxd_err err = {0};
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    CHECK_OK(mxd_csr_new(libc, "node-a", &csr, &err), &err);
    char *text = mxd_strdup(libc, csr.cert), *cert = NULL;
    size_t first = (size_t)(strchr(text, '\n') - text) + 1;
    size_t last = (size_t)(strstr(text, "-----END") - text);
    for (size_t i = first; i < last; i++) {
        char was = text[i];
        if (was == '\n' || was == '=') continue;
        text[i] = was == 'A' ? 'B' : 'A';
        if (text[i + 1] != '=' || was == text[i]) /* spare bits of the last character may differ */
            CHECK(mxd_ca_sign(libc, &ca, text, "node-a", &cert, &err) != MXD_OK);
        mxd_free(libc, cert);
        cert = NULL;
        text[i] = was;
    }
    mxd_free(libc, text);
    mxd_pem_free(libc, &csr);
    mxd_pem_free(libc, &ca);
}

TEST(a_pem_text_over_the_limit_is_refused) {
    static char big[MXD_PEM_MAX + 2];
    mxd_pem ca;
    mxd_err err = {0};
    char *cert = NULL;
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    memset(big, ' ', sizeof big - 1);
    CHECK_EQ(mxd_ca_sign(libc, &ca, big, "node-a", &cert, &err), MXD_E_FORMAT);
    mxd_pem_free(libc, &ca);
}

TEST(tokens_take_apart_and_lies_are_refused) {
    mxd_pem ca;
    mxd_err err = {0};
    char token[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX], again[MXD_SECRET_MAX], t[MXD_TOKEN_MAX + 2];
    unsigned char fp[32], fp2[32];
    CHECK_OK(mxd_ca_new(libc, "home", &ca, &err), &err);
    CHECK_OK(mxd_token_new(ca.cert, token, secret, &err), &err);
    CHECK_OK(mxd_token_parse(token, fp, again, &err), &err);
    CHECK(mxd_secret_equal(secret, again) && strlen(secret) == 32);
    CHECK_OK(mxd_token_new(ca.cert, t, secret, &err), &err);
    CHECK_OK(mxd_token_parse(t, fp2, again, &err), &err);
    CHECK(memcmp(fp, fp2, 32) == 0 && strcmp(t, token) != 0);
    snprintf(t, sizeof t, "%s\n", token);
    CHECK_OK(mxd_token_parse(t, fp, again, &err), &err);
    for (size_t cut = 0; cut < strlen(token); cut++) {
        snprintf(t, sizeof t, "%.*s", (int)cut, token);
        CHECK_EQ(mxd_token_parse(t, fp, again, &err), MXD_E_INVAL);
    }
    for (size_t i = 0; i < strlen(token); i++) {
        snprintf(t, sizeof t, "%s", token);
        t[i] = '+';
        CHECK_EQ(mxd_token_parse(t, fp, again, &err), MXD_E_INVAL);
    }
    snprintf(t, sizeof t, "%sA", token);
    CHECK_EQ(mxd_token_parse(t, fp, again, &err), MXD_E_INVAL);
    CHECK(strstr(err.msg, "mxd1."));
    CHECK_EQ(mxd_token_new("no certificate", token, secret, &err), MXD_E_AUTH);
    mxd_pem_free(libc, &ca);
}

TEST(secrets_compare_by_content_and_length) {
    CHECK(mxd_secret_equal("abc", "abc") && mxd_secret_equal("", ""));
    CHECK(!mxd_secret_equal("abc", "abd") && !mxd_secret_equal("abc", "ab"));
    CHECK(!mxd_secret_equal("", "a"));
}

TEST_OOM(tls_survives_short_memory) {
    mxd_pem ca = {0}, a = {0};
    mxd_rc rc = mxd_ca_new(al, "home", &ca, err);
    if (!rc) rc = mxd_ca_issue(al, &ca, "node-a", &a, err);
    mxd_pem_free(al, &ca);
    mxd_pem_free(al, &a);
    return rc;
}
