#include "base/buf.h"

#include <stdio.h>
#include <string.h>

void mxd_buf_init(mxd_buf *b, const mxd_alloc *al, size_t max_bytes) {
    *b = (mxd_buf){.al = al, .max = max_bytes};
}

void mxd_buf_deinit(mxd_buf *b) {
    mxd_free(b->al, b->ptr);
    *b = (mxd_buf){.al = b->al, .max = b->max};
}

void mxd_buf_clear(mxd_buf *b) {
    b->len = 0;
    b->rc = MXD_OK;
    if (b->ptr) b->ptr[0] = '\0';
}

static bool fail(mxd_buf *b, mxd_rc rc) {
    if (!b->rc) b->rc = rc;
    return false;
}

/* Room for n more bytes and the NUL. */
static bool reserve(mxd_buf *b, size_t n) {
    if (b->rc) return false;
    if (n > b->max - b->len) return fail(b, MXD_E_TOOBIG);
    if (b->ptr && b->len + n < b->cap) return true;
    size_t want = b->len + n + 1, cap = b->cap ? b->cap : 64;
    while (cap < want) cap = cap > SIZE_MAX / 4 ? want : cap * 2;
    if (cap > b->max + 1) cap = b->max + 1;
    char *p = mxd_renew(b->al, b->ptr, cap, 1);
    if (!p) return fail(b, MXD_E_NOMEM);
    b->ptr = p;
    b->cap = cap;
    return true;
}

void *mxd_buf_grow(mxd_buf *b, size_t n) {
    if (!reserve(b, n)) return NULL;
    char *at = b->ptr + b->len;
    b->len += n;
    b->ptr[b->len] = '\0';
    return at;
}

void mxd_buf_put(mxd_buf *b, const void *bytes, size_t n) {
    void *at = mxd_buf_grow(b, n);
    if (at && n) memcpy(at, bytes, n);
}

void mxd_buf_puts(mxd_buf *b, const char *s) { mxd_buf_put(b, s, strlen(s)); }
void mxd_buf_putc(mxd_buf *b, char c) { mxd_buf_put(b, &c, 1); }

void mxd_buf_vprintf(mxd_buf *b, const char *fmt, va_list ap) {
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n < 0)
        fail(b, MXD_E_INVAL);
    else if (reserve(b, (size_t)n)) {
        vsnprintf(b->ptr + b->len, (size_t)n + 1, fmt, again);
        b->len += (size_t)n;
    }
    va_end(again);
}

void mxd_buf_printf(mxd_buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    mxd_buf_vprintf(b, fmt, ap);
    va_end(ap);
}

void mxd_buf_drop(mxd_buf *b, size_t n) {
    MXD_ASSERT(n <= b->len);
    if (!n) return;
    memmove(b->ptr, b->ptr + n, b->len - n);
    b->len -= n;
    b->ptr[b->len] = '\0';
}

const char *mxd_buf_str(const mxd_buf *b) { return b->ptr ? b->ptr : ""; }

mxd_rc mxd_buf_rc(const mxd_buf *b, const char *what, mxd_err *err) {
    if (b->rc == MXD_E_TOOBIG)
        return mxd_fail(err, b->rc, "%s is longer than %zu bytes", what, b->max);
    if (b->rc) return mxd_fail(err, b->rc, "%s: %s", what, mxd_rc_text(b->rc));
    return MXD_OK;
}
