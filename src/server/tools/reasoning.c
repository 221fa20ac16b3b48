#include "server/tools/reasoning.h"

#include <string.h>
#include "server/tools/scan.h"

static const char open_tag[] = "<think>", close_tag[] = "</think>";
enum { MAX_WAIT = 4 << 20 };

void mxd_think_init(mxd_think *t, const mxd_alloc *al, bool enabled, bool inside,
                    mxd_think_put *put, void *ctx) {
    *t = (mxd_think){.put = put, .ctx = ctx};
    t->state = !enabled ? MXD_THINK_SAID : inside ? MXD_THINK_INSIDE : MXD_THINK_START;
    mxd_buf_init(&t->wait, al, MAX_WAIT);
}

void mxd_think_deinit(mxd_think *t) { mxd_buf_deinit(&t->wait); }

/* Gives out the first n waiting bytes and drops `drop` of them. */
static void give(mxd_think *t, bool reasoning, size_t n, size_t drop) {
    const char *s = mxd_buf_str(&t->wait);
    if (reasoning && !t->any) { /* white space at the beginning of the block */
        size_t blanks = mxd_blank_prefix(s, n);
        s += blanks;
        n -= blanks;
    }
    if (reasoning && n) t->any = true;
    if (n) t->put(t->ctx, reasoning, s, n);
    mxd_buf_drop(&t->wait, drop);
}

/* Each returns whether the state changed, so that the rest is looked at again. */
static bool at_start(mxd_think *t) {
    const char *s = mxd_buf_str(&t->wait);
    size_t n = t->wait.len, blanks = mxd_blank_prefix(s, n), m = sizeof open_tag - 1;
    size_t rest = n - blanks, same = rest < m ? rest : m;
    bool may = blanks <= MXD_SCAN_MAX_BLANKS && memcmp(s + blanks, open_tag, same) == 0;
    if (may && rest < m) return false;
    if (may) mxd_buf_drop(&t->wait, blanks + m);
    t->state = may ? MXD_THINK_INSIDE : MXD_THINK_SAID;
    return true;
}

static bool inside(mxd_think *t) {
    const char *s = mxd_buf_str(&t->wait);
    size_t n = t->wait.len, at = mxd_scan_find(s, n, close_tag);
    if (at == n) {
        size_t sure = n - mxd_scan_hold(s, n, close_tag);
        give(t, true, sure, sure);
        return false;
    }
    give(t, true, at - mxd_blank_suffix(s, at), at + sizeof close_tag - 1);
    t->state = MXD_THINK_AFTER;
    return true;
}

static bool after(mxd_think *t) {
    mxd_buf_drop(&t->wait, mxd_blank_prefix(mxd_buf_str(&t->wait), t->wait.len));
    if (t->wait.len) t->state = MXD_THINK_SAID;
    return t->wait.len > 0;
}

void mxd_think_feed(mxd_think *t, const char *s, size_t n) {
    if (t->state == MXD_THINK_SAID) {
        if (n) t->put(t->ctx, false, s, n);
        return;
    }
    mxd_buf_put(&t->wait, s, n);
    if (t->wait.rc) return;
    if (t->state == MXD_THINK_START && !at_start(t)) return;
    if (t->state == MXD_THINK_INSIDE && !inside(t)) return;
    if (t->state == MXD_THINK_AFTER && !after(t)) return;
    give(t, false, t->wait.len, t->wait.len);
}

void mxd_think_end(mxd_think *t) {
    const char *s = mxd_buf_str(&t->wait);
    size_t n = t->wait.len;
    if (t->state == MXD_THINK_START) give(t, false, n, n);
    if (t->state == MXD_THINK_INSIDE) give(t, true, n - mxd_blank_suffix(s, n), n);
    t->state = MXD_THINK_SAID;
}

bool mxd_think_prompt_inside(const char *prompt, size_t n) {
    size_t open = mxd_scan_find_last(prompt, n, open_tag);
    size_t close = mxd_scan_find_last(prompt, n, close_tag);
    return open < n && (close == n || open > close);
}
