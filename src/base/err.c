#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *text;
    int http, grpc, exit;
    bool retry;
} rc_table[] = {
#define X(name, http, grpc, exit, retry, text) {#name, text, http, grpc, exit, retry},
    MXD_ERROR_MAP(X)
#undef X
};

static void record(mxd_err *err, mxd_rc rc, int sys, const char *fmt, va_list ap) {
    err->rc = rc;
    err->sys = sys;
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
}

mxd_rc mxd_fail(mxd_err *err, mxd_rc rc, const char *fmt, ...) {
    MXD_ASSERT(rc != MXD_OK);
    if (!err) return rc;
    va_list ap;
    va_start(ap, fmt);
    record(err, rc, 0, fmt, ap);
    va_end(ap);
    return rc;
}

mxd_rc mxd_fail_sys(mxd_err *err, mxd_rc rc, const char *fmt, ...) {
    int sys = errno;
    MXD_ASSERT(rc != MXD_OK);
    if (!err) return rc;
    va_list ap;
    va_start(ap, fmt);
    record(err, rc, sys, fmt, ap);
    va_end(ap);
    size_t used = strlen(err->msg);
    snprintf(err->msg + used, sizeof err->msg - used, ": %s", strerror(sys));
    return rc;
}

mxd_rc mxd_wrap(mxd_err *err, mxd_rc rc, const char *fmt, ...) {
    if (!err) return rc;
    char inner[sizeof err->msg];
    memcpy(inner, err->msg, sizeof inner);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    size_t used = strlen(err->msg);
    snprintf(err->msg + used, sizeof err->msg - used, ": %.*s", (int)sizeof inner, inner);
    return rc;
}

const char *mxd_rc_name(mxd_rc rc) { return rc_table[rc].name; }
const char *mxd_rc_text(mxd_rc rc) { return rc_table[rc].text; }
int mxd_rc_http(mxd_rc rc) { return rc_table[rc].http; }
int mxd_rc_grpc(mxd_rc rc) { return rc_table[rc].grpc; }
int mxd_rc_exit(mxd_rc rc) { return rc_table[rc].exit; }
bool mxd_rc_retry(mxd_rc rc) { return rc_table[rc].retry; }

__attribute__((noreturn)) void mxd_assert_failed(const char *expr, const char *file, int line) {
    fprintf(stderr, "mxd: %s:%d: assertion failed: %s\n", file, line, expr);
    abort();
}
