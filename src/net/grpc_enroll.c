/* grpc_enroll.c - the newcomer's side of an enrolment. Blocks its caller; no transport is needed.
 *
 *   1. a bare TLS handshake shows the other side's certificates; the token's fingerprint picks out
 *      the CA, or there is none and nothing more is said
 *   2. a gRPC call that trusts this CA alone carries the secret and the signing request
 *   3. the certificate that comes back must fit our key, our name and this CA
 */
#include <string.h>
#include "base/clock.h"
#include "net/grpc_private.h"
#include "net/tls.h"
#include "net/tls_probe.h"

enum { TARGET_MAX = MXD_HOST_MAX * 3 + 32 };

typedef struct enroll_call {
    grpc_completion_queue *cq;
    grpc_channel *channel;
    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *out, *in;
    grpc_status_code status;
    grpc_slice details;
} enroll_call;

static mxd_rc rc_of_grpc(int status) {
    for (int rc = MXD_OK; rc < MXD_RC_COUNT; rc++)
        if (mxd_rc_grpc((mxd_rc)rc) == status) return (mxd_rc)rc;
    return MXD_E_NET;
}

static void call_deinit(enroll_call *c) {
    if (c->call) grpc_call_unref(c->call);
    if (c->channel) grpc_channel_destroy(c->channel);
    if (c->in) grpc_byte_buffer_destroy(c->in);
    if (c->out) grpc_byte_buffer_destroy(c->out);
    grpc_slice_unref(c->details);
    grpc_metadata_array_destroy(&c->initial);
    grpc_metadata_array_destroy(&c->trailing);
    grpc_completion_queue_shutdown(c->cq);
    while (grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {}
    grpc_completion_queue_destroy(c->cq);
    grpc_shutdown();
}

static mxd_rc call_init(enroll_call *c, const char *target, const char *ca, mxd_blob *request,
                        int64_t timeout_ms, mxd_err *err) {
    mxd_grpc_args args;
    mxd_grpc_environment();
    grpc_init();
    *c = (enroll_call){.cq = grpc_completion_queue_create_for_next(NULL),
                       .details = grpc_empty_slice()};
    grpc_metadata_array_init(&c->initial);
    grpc_metadata_array_init(&c->trailing);
    grpc_slice body = mxd_grpc_blob_slice(request);
    c->out = grpc_raw_byte_buffer_create(&body, 1);
    grpc_slice_unref(body);
    grpc_channel_credentials *creds = mxd_grpc_channel_creds(ca, NULL, NULL);
    if (!creds) return mxd_fail(err, MXD_E_AUTH, "gRPC refuses the CA's certificate");
    mxd_grpc_client_args(&args, MXD_CLUSTER_DNS_NAME, timeout_ms);
    c->channel = grpc_channel_create(target, creds, &args.list);
    grpc_channel_credentials_release(creds);
    gpr_timespec until =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    c->call = grpc_channel_create_call(
        c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq,
        grpc_slice_from_static_string("/mlx_distributed.v1.Node/Enroll"), NULL, until, NULL);
    return c->call ? MXD_OK : mxd_fail(err, MXD_E_INTERNAL, "gRPC gives no call");
}

static mxd_rc call_run(enroll_call *c, mxd_err *err) {
    grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},  {.op = GRPC_OP_SEND_MESSAGE},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_MESSAGE},           {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
    ops[1].data.send_message.send_message = c->out;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &c->initial;
    ops[4].data.recv_message.recv_message = &c->in;
    ops[5].data.recv_status_on_client.trailing_metadata = &c->trailing;
    ops[5].data.recv_status_on_client.status = &c->status;
    ops[5].data.recv_status_on_client.status_details = &c->details;
    if (grpc_call_start_batch(c->call, ops, MXD_COUNT(ops), c, NULL) != GRPC_CALL_OK)
        return mxd_fail(err, MXD_E_INTERNAL, "gRPC refuses the call");
    /* the call's deadline ends this wait */
    grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    if (c->status != GRPC_STATUS_OK)
        return mxd_fail(err, rc_of_grpc((int)c->status), "enrolment refused: %.*s",
                        (int)GRPC_SLICE_LENGTH(c->details),
                        (const char *)GRPC_SLICE_START_PTR(c->details));
    return c->in ? MXD_OK : mxd_fail(err, MXD_E_FORMAT, "enrolment: an empty answer");
}

/* Steps 2: the secret and the request for a chain. */
static mxd_rc ask(const mxd_alloc *al, const char *address, const char *ca, mxd_blob *request,
                  int64_t timeout_ms, char **chain, mxd_err *err) {
    enroll_call c;
    mxd_grpc_source src;
    char target[TARGET_MAX];
    MXD_TRY(mxd_grpc_target(address, target, sizeof target, err));
    mxd_rc rc = call_init(&c, target, ca, request, timeout_ms, err);
    if (!rc) rc = call_run(&c, err);
    if (!rc && !mxd_grpc_source_init(&src, c.in)) {
        rc = mxd_fail(err, MXD_E_FORMAT, "enrolment: compressed");
    } else if (!rc) {
        rc = mxd_enroll_reply_read(al, &src.base, chain, err);
        mxd_grpc_source_deinit(&src);
    }
    call_deinit(&c);
    return rc;
}

/* Step 3. Takes csr->key on success. */
static mxd_rc accept_chain(const mxd_alloc *al, const char *node, const char *ca, const char *chain,
                           mxd_pem *csr, mxd_pem *out, mxd_err *err) {
    char name[MXD_MAX_NODE_NAME];
    MXD_TRY(mxd_identity_check(ca, chain, csr->key, name, err));
    if (strcmp(name, node) != 0)
        return mxd_fail(err, MXD_E_AUTH, "enrolment: the certificate names '%s', not '%s'", name,
                        node);
    MXD_TRY(mxd_cert_leaf(al, chain, &out->cert, err));
    out->key = csr->key;
    csr->key = NULL;
    return MXD_OK;
}

static mxd_rc ask_and_accept(const mxd_alloc *al, const char *address, const char *secret,
                             const char *node, int64_t until_ms, const char *ca, mxd_pem *csr,
                             mxd_pem *out, mxd_err *err) {
    char *chain = NULL;
    int64_t left = until_ms - mxd_now_ms();
    mxd_blob *request = mxd_enroll_request_write(al, node, secret, csr->cert);
    mxd_rc rc = request ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "no memory to enrol");
    if (!rc) rc = ask(al, address, ca, request, left > 0 ? left : 0, &chain, err);
    if (!rc) rc = accept_chain(al, node, ca, chain, csr, out, err);
    mxd_free(al, chain);
    mxd_blob_release(request);
    return rc;
}

mxd_rc mxd_enroll(const mxd_alloc *al, const char *address, const char *token, const char *node,
                  int64_t timeout_ms, mxd_pem *node_pem, char **ca_pem, mxd_err *err) {
    unsigned char fingerprint[32];
    char secret[MXD_SECRET_MAX];
    mxd_pem csr = {0};
    int64_t until = mxd_now_ms() + timeout_ms;
    *node_pem = (mxd_pem){0};
    *ca_pem = NULL;
    MXD_TRY(mxd_token_parse(token, fingerprint, secret, err));
    MXD_TRY(mxd_csr_new(al, node, &csr, err));
    mxd_rc rc = mxd_tls_probe(al, address, fingerprint, timeout_ms, ca_pem, err);
    if (!rc) rc = ask_and_accept(al, address, secret, node, until, *ca_pem, &csr, node_pem, err);
    mxd_pem_free(al, &csr);
    if (!rc) return MXD_OK;
    mxd_free(al, *ca_pem);
    *ca_pem = NULL;
    mxd_pem_free(al, node_pem);
    return mxd_wrap(err, rc, "joining %s as '%s'", address, node);
}
