/* err.h - how every fallible function reports failure.
 *
 * Two kinds of wrong are kept apart:
 *   - operating errors (bad file, dead peer, full queue) are returned as mxd_rc, must be looked at,
 *     and carry one line for a human in the caller's mxd_err: what failed, the likely cause, the
 *     next step, in that order;
 *   - programmer errors are MXD_ASSERTs. They stay on in release builds, and no input, peer or
 *     file may reach one.
 * Nothing below src/cli/ prints or exits.
 *
 * One table gives each code its HTTP status, its gRPC status, the exit code of a program that ends
 * with it, and whether a cluster may retry it, so no other file maps errors.
 *
 * Threads: an mxd_err belongs to the caller's stack; the functions here are reentrant.
 */
#ifndef MXD_BASE_ERR_H
#define MXD_BASE_ERR_H

#include <stdbool.h>

/* clang-format off */
#define MXD_ERROR_MAP(X)                                                     \
    /* name         http grpc exit retry  text */                            \
    X(OK,            200,  0,  0, false, "ok")                               \
    X(E_INVAL,       400,  3,  2, false, "invalid argument")                 \
    X(E_TOOBIG,      400, 11,  2, false, "over a declared limit")            \
    X(E_CONTEXT,     400, 11,  2, false, "prompt longer than the context")   \
    X(E_CONFIG,      500,  9,  3, false, "configuration error")              \
    X(E_NOTFOUND,    404,  5,  4, false, "not found")                        \
    X(E_FORMAT,      500, 15,  4, false, "malformed data")                   \
    X(E_UNSUPPORTED, 501, 12,  4, false, "not supported")                    \
    X(E_IO,          500, 13,  1, false, "input/output error")               \
    X(E_AUTH,        401, 16,  7, false, "not authenticated")                \
    X(E_BUSY,        429,  8,  1, true,  "queue is full")                    \
    X(E_CANCELED,    499,  1,  1, false, "canceled")                         \
    X(E_NOMEM,       503,  8,  6, true,  "out of memory")                    \
    X(E_NOFIT,       503,  8,  6, false, "does not fit")                     \
    X(E_NET,         503, 14,  5, true,  "network error")                    \
    X(E_PEER,        503, 14,  7, true,  "a node is unreachable")            \
    X(E_STALE,       503, 10,  7, true,  "belongs to an older epoch")        \
    X(E_TIMEOUT,     504,  4,  7, true,  "deadline passed")                  \
    X(E_SHUTDOWN,    503, 14,  1, true,  "shutting down")                    \
    X(E_INTERNAL,    500, 13,  1, false, "internal error")

typedef enum mxd_rc {
#define X(name, http, grpc, exit, retry, text) MXD_##name,
    MXD_ERROR_MAP(X)
#undef X
    MXD_RC_COUNT
} mxd_rc;
/* clang-format on */

/* What went wrong, for a human. Owned by the caller, usually on its stack; never freed. */
typedef struct mxd_err {
    mxd_rc rc;
    int sys;       /* errno where it failed, or 0 */
    char msg[480]; /* one line, UTF-8, outermost context first */
} mxd_err;

#define MXD_MUST_USE     __attribute__((warn_unused_result))
#define MXD_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Records the failure in `err` (may be NULL) and returns `rc`: `return mxd_fail(...)`. */
mxd_rc mxd_fail(mxd_err *err, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(3, 4);

/* As mxd_fail, and appends the text of errno. */
mxd_rc mxd_fail_sys(mxd_err *err, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(3, 4);

/* Puts context in front of a failure already in `err`: "shard 3: tensor 'a': ...". */
mxd_rc mxd_wrap(mxd_err *err, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(3, 4);

const char *mxd_rc_name(mxd_rc rc); /* "E_INVAL"; for logs and the wire */
const char *mxd_rc_text(mxd_rc rc);
int mxd_rc_http(mxd_rc rc);
int mxd_rc_grpc(mxd_rc rc);
int mxd_rc_exit(mxd_rc rc);
bool mxd_rc_retry(mxd_rc rc);

/* Leaves the function with the callee's code. Use only while nothing needs undoing;
 * where something does, write `if (rc) goto fail;`. */
#define MXD_TRY(expr)                \
    do {                             \
        mxd_rc rc_try_ = (expr);     \
        if (rc_try_) return rc_try_; \
    } while (0)

__attribute__((noreturn)) void mxd_assert_failed(const char *expr, const char *file, int line);
#define MXD_ASSERT(e) ((e) ? (void)0 : mxd_assert_failed(#e, __FILE__, __LINE__))

#define MXD_COUNT(array) (sizeof(array) / sizeof *(array))

#endif
