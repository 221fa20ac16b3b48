/* fault.h - an error as a client of the API sees it, and the one table from our codes to theirs. */
#ifndef MXD_SERVER_FAULT_H
#define MXD_SERVER_FAULT_H

#include <jansson.h>
#include "base/buf.h"

typedef enum mxd_fault_kind {
#define MXD_FAULT_MAP(X)                                                                       \
    /* name             status type                     code                  retry after s */ \
    X(INVALID_VALUE, 400, "invalid_request_error", "invalid_value", 0)                         \
    X(UNSUPPORTED, 400, "invalid_request_error", "unsupported_parameter", 0)                   \
    X(CONTEXT, 400, "invalid_request_error", "context_length_exceeded", 0)                     \
    X(TEMPLATE, 400, "invalid_request_error", "chat_template_error", 0)                        \
    X(TEMPLATE_LIMIT, 400, "invalid_request_error", "chat_template_limit", 0)                  \
    X(KEY, 401, "authentication_error", "invalid_api_key", 0)                                  \
    X(ORIGIN, 403, "permission_error", "origin_not_allowed", 0)                                \
    X(ROUTE, 404, "not_found_error", "not_found", 0)                                           \
    X(MODEL, 404, "not_found_error", "model_not_found", 0)                                     \
    X(METHOD, 405, "invalid_request_error", "method_not_allowed", 0)                           \
    X(BODY_SIZE, 413, "invalid_request_error", "too_large", 0)                                 \
    X(CONTENT_TYPE, 415, "invalid_request_error", "unsupported_media_type", 0)                 \
    X(HEADER_SIZE, 431, "invalid_request_error", "too_large", 0)                               \
    X(QUEUE_FULL, 429, "rate_limit_error", "queue_full", 1)                                    \
    X(STREAMS, 429, "rate_limit_error", "too_many_streams", 5)                                 \
    X(INTERNAL, 500, "server_error", "internal_error", 0)                                      \
    X(LOADING, 503, "unavailable_error", "model_loading", 2)                                   \
    X(SHUTDOWN, 503, "unavailable_error", "shutting_down", 5)                                  \
    X(WORKER_LOST, 503, "unavailable_error", "worker_lost", 1)                                 \
    X(MEMORY, 503, "unavailable_error", "out_of_memory", 1)                                    \
    X(JOURNAL, 503, "unavailable_error", "journal_unavailable", 5)                             \
    X(DEADLINE, 503, "unavailable_error", "deadline_exceeded", 0)
#define X(name, status, type, code, retry) MXD_FAULT_##name,
    MXD_FAULT_MAP(X)
#undef X
        MXD_FAULT_COUNT
} mxd_fault_kind;

typedef struct mxd_fault {
    mxd_fault_kind kind;
    char param[192]; /* path of the field, "" for none */
    char msg[512];
    long long n_prompt; /* CONTEXT: tokens asked for */
    int n_ctx;
} mxd_fault;

/* Fills *f and returns false: `return mxd_fault_set(...)` in checks that return whether all is
 * well. param may be NULL. */
bool mxd_fault_set(mxd_fault *f, mxd_fault_kind kind, const char *param, const char *fmt, ...)
    MXD_PRINTF(4, 5);

/* The fault that tells a client of `rc`. Text of internal failures is not passed on: it may name
 * paths; the request id stands in for it. */
void mxd_fault_from(mxd_fault *f, mxd_rc rc, const mxd_err *err, const char *request_id);

int mxd_fault_status(const mxd_fault *f);
int mxd_fault_retry_s(const mxd_fault *f); /* 0: no Retry-After */
const char *mxd_fault_should_retry(
    const mxd_fault *f); /* "true", "false", or NULL: client decides */
void mxd_fault_write(mxd_buf *out, const mxd_fault *f); /* {"error":{...}} */

#endif
