#include "server/fault.h"

#include <stdio.h>
#include <string.h>
#include "formats/json.h"
#include "formats/utf8.h"

static const struct {
    int status;
    const char *type, *code;
    int retry_s;
} table[] = {
#define X(name, status, type, code, retry) {status, type, code, retry},
    MXD_FAULT_MAP(X)
#undef X
};

bool mxd_fault_set(mxd_fault *f, mxd_fault_kind kind, const char *param, const char *fmt, ...) {
    *f = (mxd_fault){.kind = kind};
    snprintf(f->param, sizeof f->param, "%s", param ? param : "");
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->msg, sizeof f->msg, fmt, ap);
    va_end(ap);
    return false;
}

static mxd_fault_kind kind_of(mxd_rc rc) {
    switch (rc) {
    case MXD_E_INVAL:
    case MXD_E_TOOBIG:
        return MXD_FAULT_INVALID_VALUE;
    case MXD_E_UNSUPPORTED:
        return MXD_FAULT_UNSUPPORTED;
    case MXD_E_CONTEXT:
        return MXD_FAULT_CONTEXT;
    case MXD_E_BUSY:
        return MXD_FAULT_QUEUE_FULL;
    case MXD_E_SHUTDOWN:
        return MXD_FAULT_SHUTDOWN;
    case MXD_E_NET:
    case MXD_E_PEER:
    case MXD_E_STALE:
    case MXD_E_NOFIT:
        return MXD_FAULT_WORKER_LOST;
    case MXD_E_NOMEM:
        return MXD_FAULT_MEMORY;
    case MXD_E_TIMEOUT:
    case MXD_E_CANCELED:
        return MXD_FAULT_DEADLINE;
    default:
        return MXD_FAULT_INTERNAL;
    }
}

void mxd_fault_from(mxd_fault *f, mxd_rc rc, const mxd_err *err, const char *request_id) {
    mxd_fault_kind kind = kind_of(rc);
    if (kind == MXD_FAULT_INTERNAL)
        mxd_fault_set(f, kind, NULL, "the server failed; its log has the cause under request %s",
                      request_id);
    else
        mxd_fault_set(f, kind, NULL, "%s", err->msg[0] ? err->msg : mxd_rc_text(rc));
}

int mxd_fault_status(const mxd_fault *f) { return table[f->kind].status; }
int mxd_fault_retry_s(const mxd_fault *f) { return table[f->kind].retry_s; }

const char *mxd_fault_should_retry(const mxd_fault *f) {
    if (table[f->kind].retry_s) return "true";
    if (f->kind == MXD_FAULT_DEADLINE || table[f->kind].status < 500) return "false";
    return NULL;
}

/* Messages are cut at a size and may quote names of files: what is not UTF-8 becomes '?'. */
static void write_text(mxd_buf *out, const char *s) {
    char clean[sizeof((mxd_fault *)0)->msg];
    size_t n = strlen(s), i = 0;
    snprintf(clean, sizeof clean, "%s", s);
    n = n < sizeof clean ? n : sizeof clean - 1;
    while (i < n) {
        uint32_t cp;
        int k = mxd_utf8_next(clean + i, n - i, &cp);
        if (k <= 0) clean[i] = '?';
        i += k > 0 ? (size_t)k : 1;
    }
    mxd_json_write_string(out, clean, n, false);
}

void mxd_fault_write(mxd_buf *out, const mxd_fault *f) {
    mxd_buf_puts(out, "{\"error\":{\"message\":");
    write_text(out, f->msg);
    mxd_buf_printf(out, ",\"type\":\"%s\",\"param\":", table[f->kind].type);
    if (f->param[0])
        write_text(out, f->param);
    else
        mxd_buf_puts(out, "null");
    mxd_buf_printf(out, ",\"code\":\"%s\"", table[f->kind].code);
    if (f->kind == MXD_FAULT_CONTEXT && f->n_ctx)
        mxd_buf_printf(out, ",\"n_prompt_tokens\":%lld,\"n_ctx\":%d", f->n_prompt, f->n_ctx);
    mxd_buf_puts(out, "}}");
}
