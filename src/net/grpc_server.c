/* grpc_server.c - the port.
 *
 *   RUNNING --stop--> STOPPING --shutdown tag, request tag and every answer are back--> freed
 *
 * One request for a call is out at any time. An arriving call is a link (Control, Data, Bulk,
 * Group), an enrolment, a health check or a refusal; who calls is settled before a byte of a
 * message is read. Everything but links is an `answer`: a short call that frees itself.
 */
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "net/grpc_private.h"

typedef struct answer {
    struct answer *next;
    mxd_grpc_server *server;
    grpc_call *call;
    mxd_grpc_tag body_tag, sent_tag, close_tag;
    grpc_byte_buffer *in, *out;
    int cancelled, pending;
    bool enrolling;
    int64_t deadline_ns;
} answer;

/* Loop thread, but for `grpc`, which is thread-safe. */
struct mxd_grpc_server {
    mxd_grpc *t;
    grpc_server *grpc;
    grpc_resource_quota *quota;
    mxd_grpc_tag request_tag, down_tag;
    grpc_call *call;
    grpc_call_details details;
    grpc_metadata_array metadata;
    bool requesting, down;
    pthread_mutex_t stopping; /* held by a stop, so that the loop cannot free under it */
    answer *answers;
    int n_enrolling;
    double enroll_tokens; /* bucket: MXD_GRPC_ENROLL_PER_S flow in, at most _BURST stay */
    int64_t enroll_filled_ns;
};

static void free_when_done(mxd_grpc_server *s) {
    if (!s->down || s->requesting || s->answers) return;
    mxd_grpc *t = s->t;
    grpc_server_destroy(s->grpc);
    grpc_resource_quota_unref(s->quota);
    pthread_mutex_destroy(&s->stopping);
    mxd_free(t->al, s);
    mxd_grpc_drop(t);
}

/* -------------------------------------------------------------------------------------- answers */

static void answer_free(answer *a) {
    mxd_grpc_server *s = a->server;
    answer **at = &s->answers;
    while (*at != a) at = &(*at)->next;
    *at = a->next;
    s->n_enrolling -= a->enrolling;
    if (a->in) grpc_byte_buffer_destroy(a->in);
    if (a->out) grpc_byte_buffer_destroy(a->out);
    grpc_call_unref(a->call);
    mxd_free(s->t->al, a);
    free_when_done(s);
}

static void settle(answer *a) {
    if (--a->pending == 0) answer_free(a);
}

static void on_answer_done(void *owner, bool ok) {
    (void)ok;
    settle(owner);
}

static void start(answer *a, const grpc_op *ops, size_t n, mxd_grpc_tag *tag) {
    a->pending++;
    MXD_GRPC_GIVEN(tag);
    if (grpc_call_start_batch(a->call, ops, n, tag, NULL) == GRPC_CALL_OK) return;
    grpc_call_cancel(a->call, NULL);
    grpc_call_start_batch(a->call, NULL, 0, tag, NULL); /* gives the tag back */
}

/* Ends the call with a status and maybe a message (takes `out`). */
static void finish(answer *a, grpc_status_code status, const char *why, grpc_byte_buffer *out) {
    grpc_op ops[3] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}};
    size_t n = 1;
    grpc_slice details = grpc_slice_from_copied_string(why);
    a->out = out;
    if (out) {
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = out;
    }
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = status;
    ops[n++].data.send_status_from_server.status_details = &details;
    start(a, ops, n, &a->sent_tag);
    grpc_slice_unref(details);
}

/* Takes the call over. NULL when memory is short; the call is then ended without words. */
static answer *answer_new(mxd_grpc_server *s, grpc_call *call) {
    answer *a = MXD_NEW(s->t->al, 1, answer);
    if (!a) {
        grpc_call_cancel(call, NULL);
        grpc_call_unref(call);
        return NULL;
    }
    a->server = s;
    a->call = call;
    a->deadline_ns = INT64_MAX;
    a->sent_tag = a->close_tag = (mxd_grpc_tag){on_answer_done, a};
    a->next = s->answers;
    s->answers = a;
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    op.data.recv_close_on_server.cancelled = &a->cancelled;
    start(a, &op, 1, &a->close_tag);
    return a;
}

static void refuse(mxd_grpc_server *s, grpc_call *call, grpc_status_code status, const char *why) {
    answer *a = answer_new(s, call);
    if (a) finish(a, status, why, NULL);
}

static void answer_health(mxd_grpc_server *s, grpc_call *call) {
    answer *a = answer_new(s, call);
    if (!a) return;
    grpc_slice serving = grpc_slice_from_static_buffer("\x08\x01", 2);
    grpc_byte_buffer *out = grpc_raw_byte_buffer_create(&serving, 1);
    grpc_slice_unref(serving);
    finish(a, GRPC_STATUS_OK, "", out);
}

/* ------------------------------------------------------------------------------------ enrolment */

static mxd_rc read_request(const mxd_grpc *t, grpc_byte_buffer *bb, mxd_enroll_request *r,
                           mxd_err *err) {
    mxd_grpc_source src;
    if (!mxd_grpc_source_init(&src, bb))
        return mxd_fail(err, MXD_E_FORMAT, "enrolment: compressed");
    mxd_rc rc = mxd_enroll_request_read(t->al, &src.base, r, err);
    mxd_grpc_source_deinit(&src);
    return rc;
}

static mxd_rc enroll(mxd_grpc *t, grpc_byte_buffer *bb, grpc_byte_buffer **out, mxd_err *err) {
    mxd_enroll_request r;
    mxd_blob *chain = NULL;
    MXD_TRY(read_request(t, bb, &r, err));
    mxd_rc rc = MXD_OK;
    if (mxd_grpc_enter(t)) {
        rc = t->enroll(t->enroll_ctx, r.node, r.secret, r.csr, &chain, err);
        mxd_grpc_leave(t);
    } else {
        rc = mxd_fail(err, MXD_E_SHUTDOWN, "the node is shutting down");
    }
    mxd_log(rc ? MXD_LOG_WARN : MXD_LOG_INFO, "enroll", "node=\"%.64s\" rc=%s", r.node,
            mxd_rc_name(rc));
    mxd_enroll_request_deinit(t->al, &r);
    mxd_blob *reply = rc ? NULL : mxd_enroll_reply_write(t->al, chain);
    mxd_blob_release(chain);
    if (rc) return rc;
    if (!reply) return mxd_fail(err, MXD_E_NOMEM, "no memory for an enrolment");
    grpc_slice slice = mxd_grpc_blob_slice(reply);
    *out = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    mxd_blob_release(reply);
    return MXD_OK;
}

static void on_enroll_body(void *owner, bool ok) {
    answer *a = owner;
    if (ok && a->in) {
        mxd_err err = {0};
        grpc_byte_buffer *out = NULL;
        mxd_rc rc = enroll(a->server->t, a->in, &out, &err);
        finish(a, (grpc_status_code)mxd_rc_grpc(rc), rc ? err.msg : "", out);
    } else if (ok) {
        finish(a, GRPC_STATUS_INVALID_ARGUMENT, "enrolment without a request", NULL);
    }
    settle(a); /* not ok: the call is cancelled, only its close is awaited */
}

static bool may_enroll(mxd_grpc_server *s) {
    int64_t now = mxd_now_ns();
    s->enroll_tokens += (double)(now - s->enroll_filled_ns) * 1e-9 * MXD_GRPC_ENROLL_PER_S;
    if (s->enroll_tokens > MXD_GRPC_ENROLL_BURST) s->enroll_tokens = MXD_GRPC_ENROLL_BURST;
    s->enroll_filled_ns = now;
    if (s->enroll_tokens < 1 || s->n_enrolling >= MXD_GRPC_MAX_ENROLLING) return false;
    s->enroll_tokens -= 1;
    return true;
}

static void answer_enroll(mxd_grpc_server *s, grpc_call *call) {
    if (!s->t->enroll || !s->t->secure) {
        refuse(s, call, GRPC_STATUS_UNIMPLEMENTED, "this node does not enrol others");
        return;
    }
    if (!may_enroll(s)) {
        refuse(s, call, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many enrolments; try again later");
        return;
    }
    answer *a = answer_new(s, call);
    if (!a) return;
    a->enrolling = true;
    s->n_enrolling++;
    a->body_tag = (mxd_grpc_tag){on_enroll_body, a};
    a->deadline_ns = mxd_now_ns() + MXD_GRPC_ENROLL_MS * INT64_C(1000000);
    mxd_grpc_deadline(s->t, a->deadline_ns);
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &a->in;
    start(a, &op, 1, &a->body_tag);
}

int64_t mxd_grpc_server_expire(mxd_grpc *t, int64_t now_ns) {
    int64_t next = INT64_MAX;
    pthread_mutex_lock(&t->lock);
    mxd_grpc_server *s = t->server;
    pthread_mutex_unlock(&t->lock);
    /* freed by this thread only */
    for (answer *a = s ? s->answers : NULL; a; a = a->next) {
        if (a->deadline_ns <= now_ns) {
            a->deadline_ns = INT64_MAX;
            grpc_call_cancel(a->call, NULL);
        } else if (a->deadline_ns < next) {
            next = a->deadline_ns;
        }
    }
    return next;
}

/* ------------------------------------------------------------------------------------ accepting */

static void answer_link(mxd_grpc_server *s, grpc_call *call, mxd_lane lane, const char *peer) {
    if (!mxd_grpc_link_accept(s->t, call, lane, peer))
        refuse(s, call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no room for another link");
}

static void dispatch(mxd_grpc_server *s, grpc_call *call) {
    char peer[MXD_MAX_NODE_NAME] = "";
    grpc_slice method = s->details.method;
    if (s->t->secure) mxd_grpc_call_peer(call, peer);
    if (grpc_slice_str_cmp(method, "/mlx_distributed.v1.Node/Enroll") == 0)
        answer_enroll(s, call);
    else if (s->t->secure && !peer[0])
        refuse(s, call, GRPC_STATUS_UNAUTHENTICATED, "needs a certificate of this cluster");
    else if (grpc_slice_str_cmp(method, "/mlx_distributed.v1.Node/Control") == 0)
        answer_link(s, call, MXD_LANE_CONTROL, peer);
    else if (grpc_slice_str_cmp(method, "/mlx_distributed.v1.Node/Data") == 0)
        answer_link(s, call, MXD_LANE_DATA, peer);
    else if (grpc_slice_str_cmp(method, "/mlx_distributed.v1.Node/Bulk") == 0)
        answer_link(s, call, MXD_LANE_BULK, peer);
    else if (grpc_slice_str_cmp(method, "/mlx_distributed.v1.Node/Group") == 0)
        answer_link(s, call, MXD_LANE_GROUP, peer);
    else if (grpc_slice_str_cmp(method, "/grpc.health.v1.Health/Check") == 0)
        answer_health(s, call);
    else
        refuse(s, call, GRPC_STATUS_UNIMPLEMENTED, "no such method");
}

static bool is_closing(mxd_grpc *t) {
    pthread_mutex_lock(&t->lock);
    bool closing = t->closing;
    pthread_mutex_unlock(&t->lock);
    return closing;
}

static void request_call(mxd_grpc_server *s) {
    grpc_call_details_init(&s->details);
    grpc_metadata_array_init(&s->metadata);
    s->call = NULL;
    s->requesting = true; /* before the request: the loop may answer at once */
    MXD_GRPC_GIVEN(&s->request_tag);
    if (grpc_server_request_call(s->grpc, &s->call, &s->details, &s->metadata, s->t->cq, s->t->cq,
                                 &s->request_tag) != GRPC_CALL_OK)
        s->requesting = false;
}

static void on_request(void *owner, bool ok) {
    mxd_grpc_server *s = owner;
    if (ok && is_closing(s->t)) {
        grpc_call_cancel(s->call, NULL);
        grpc_call_unref(s->call);
    } else if (ok) {
        dispatch(s, s->call);
    }
    grpc_call_details_destroy(&s->details);
    grpc_metadata_array_destroy(&s->metadata);
    s->requesting = false;
    if (ok && !s->down && !is_closing(s->t)) request_call(s);
    free_when_done(s);
}

static void on_down(void *owner, bool ok) {
    (void)ok;
    mxd_grpc_server *s = owner;
    pthread_mutex_lock(&s->stopping);
    pthread_mutex_unlock(&s->stopping);
    s->down = true;
    free_when_done(s);
}

/* --------------------------------------------------------------------------- opening, stopping */

static mxd_rc server_new(mxd_grpc *t, mxd_grpc_server **out, mxd_err *err) {
    mxd_grpc_server *s = MXD_NEW(t->al, 1, mxd_grpc_server);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "no memory to listen");
    mxd_grpc_args args;
    s->t = t;
    pthread_mutex_init(&s->stopping, NULL);
    s->quota = grpc_resource_quota_create("mxd");
    grpc_resource_quota_resize(s->quota, MXD_GRPC_SERVER_MEMORY);
    mxd_grpc_server_args(&args, s->quota);
    s->grpc = grpc_server_create(&args.list, NULL);
    s->request_tag = (mxd_grpc_tag){on_request, s};
    s->down_tag = (mxd_grpc_tag){on_down, s};
    s->enroll_tokens = MXD_GRPC_ENROLL_BURST;
    s->enroll_filled_ns = mxd_now_ns();
    grpc_server_register_completion_queue(s->grpc, t->cq, NULL);
    *out = s;
    return MXD_OK;
}

static mxd_rc bind_port(mxd_grpc_server *s, const char *address, int *port, mxd_err *err) {
    grpc_server_credentials *c = mxd_grpc_server_creds(s->t);
    if (!c) return mxd_fail(err, MXD_E_AUTH, "gRPC refuses our certificate or key");
    *port = grpc_server_add_http2_port(s->grpc, address, c);
    grpc_server_credentials_release(c);
    if (*port > 0) return MXD_OK;
    return mxd_fail(err, MXD_E_NET,
                    "cannot listen on %s: the port is in use, or the address is not one of this "
                    "machine; take another, or port 0 for a free one",
                    address);
}

void mxd_grpc_server_stop(mxd_grpc_server *s) {
    pthread_mutex_lock(&s->stopping);
    MXD_GRPC_GIVEN(&s->down_tag);
    grpc_server_shutdown_and_notify(s->grpc, s->t->cq, &s->down_tag);
    /* Connections are cut: a graceful end would wait for peers that may be frozen. */
    grpc_server_cancel_all_calls(s->grpc);
    pthread_mutex_unlock(&s->stopping);
}

/* Makes it the transport's server. E_INVAL: it has one. */
static mxd_rc adopt(mxd_grpc *t, mxd_grpc_server *s, const char *address, mxd_err *err) {
    pthread_mutex_lock(&t->lock);
    mxd_rc rc = MXD_OK;
    if (t->closing) rc = mxd_fail(err, MXD_E_SHUTDOWN, "the transport is closing");
    if (t->server) rc = mxd_fail(err, MXD_E_INVAL, "cannot listen on %s too", address);
    if (!rc) t->server = s;
    pthread_mutex_unlock(&t->lock);
    return rc;
}

mxd_rc mxd_grpc_server_open(mxd_grpc *t, const char *address, int *port, mxd_err *err) {
    mxd_grpc_server *s = NULL;
    char host[MXD_HOST_MAX];
    MXD_TRY(mxd_address_split(address, host, port, err));
    if (!mxd_grpc_hold(t)) return mxd_fail(err, MXD_E_SHUTDOWN, "the transport is closing");
    mxd_rc rc = server_new(t, &s, err);
    if (rc) {
        mxd_grpc_drop(t);
        return rc;
    }
    rc = bind_port(s, address, port, err);
    grpc_server_start(s->grpc); /* even if not bound, so that it can be shut down */
    request_call(s);
    if (!rc) rc = adopt(t, s, address, err);
    if (rc) mxd_grpc_server_stop(s); /* frees itself on the loop */
    return rc;
}
