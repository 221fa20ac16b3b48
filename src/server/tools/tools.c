#include "server/tools/tools.h"

#include <string.h>
#include "server/tools/scan.h"

enum { MAX_CALL_BYTES = 1 << 20 };

/* Most special first: a template may have the marks of several. */
static const mxd_tool_family families[] = {
    {"hermes", "<tool_call>", "<tool_call>", "</tool_call>", mxd_hermes_read},
};

const mxd_tool_family *mxd_tool_family_find(const char *template_text) {
    for (size_t i = 0; template_text && i < MXD_COUNT(families); i++)
        if (strstr(template_text, families[i].in_template)) return &families[i];
    return NULL;
}

void mxd_tool_parser_init(mxd_tool_parser *p, const mxd_alloc *al, const mxd_tool_family *family,
                          int max_calls, const mxd_tool_sink *sink, void *ctx) {
    *p = (mxd_tool_parser){.family = family, .max_calls = max_calls, .sink = sink, .ctx = ctx};
    mxd_buf_init(&p->wait, al, 2 * (size_t)MAX_CALL_BYTES);
    mxd_buf_init(&p->name, al, 256);
    mxd_buf_init(&p->args, al, MAX_CALL_BYTES);
}

void mxd_tool_parser_deinit(mxd_tool_parser *p) {
    mxd_buf_deinit(&p->wait);
    mxd_buf_deinit(&p->name);
    mxd_buf_deinit(&p->args);
}

static bool is_full(const mxd_tool_parser *p) { return p->max_calls && p->n_calls >= p->max_calls; }

static void give(mxd_tool_parser *p, const char *s, size_t n) {
    if (n) p->sink->text(p->ctx, s, n);
}

/* Reads [s, s+n) as a call and gives it out; false when it is none. */
static bool give_call(mxd_tool_parser *p, const char *s, size_t n) {
    mxd_buf_clear(&p->name);
    mxd_buf_clear(&p->args);
    if (!p->family->read(s, n, &p->name, &p->args) || p->name.rc || p->args.rc) return false;
    p->n_calls++;
    p->sink->call(p->ctx, mxd_buf_str(&p->name), mxd_buf_str(&p->args), p->args.len);
    return true;
}

/* Each returns whether there is more to look at. */
static bool in_text(mxd_tool_parser *p) {
    const char *s = mxd_buf_str(&p->wait), *open = p->family->open;
    size_t n = p->wait.len;
    if (p->n_calls) { /* between and behind calls */
        mxd_buf_drop(&p->wait, mxd_blank_prefix(s, n));
        n = p->wait.len;
    }
    size_t at = mxd_scan_find(s, n, open), sure = n - mxd_scan_hold(s, n, open);
    if (at == n) {
        give(p, s, sure);
        mxd_buf_drop(&p->wait, sure);
        return false;
    }
    give(p, s, at - mxd_blank_suffix(s, at));
    mxd_buf_drop(&p->wait, at + strlen(open));
    p->in_call = true;
    return true;
}

static bool in_call(mxd_tool_parser *p) {
    const char *s = mxd_buf_str(&p->wait), *open = p->family->open, *close = p->family->close;
    size_t n = p->wait.len, at = mxd_scan_find(s, n, close);
    if (at == n && n < MAX_CALL_BYTES) return false;
    size_t end = at == n ? n : at + strlen(close);
    if (at == n || !give_call(p, s, at)) {
        give(p, open, strlen(open));
        give(p, s, end);
    }
    mxd_buf_drop(&p->wait, end);
    p->in_call = false;
    return p->wait.len > 0;
}

void mxd_tool_parser_feed(mxd_tool_parser *p, const char *s, size_t n) {
    if (is_full(p)) return;
    if (!p->family) {
        give(p, s, n);
        return;
    }
    mxd_buf_put(&p->wait, s, n);
    bool more = !p->wait.rc && p->wait.len > 0;
    while (more && !is_full(p)) more = p->in_call ? in_call(p) : in_text(p);
}

void mxd_tool_parser_end(mxd_tool_parser *p) {
    const char *s = mxd_buf_str(&p->wait);
    size_t n = p->wait.len;
    if (is_full(p) || p->wait.rc) return;
    /* the end token may stand in for the close marker */
    if (p->in_call && !give_call(p, s, n)) {
        give(p, p->family->open, strlen(p->family->open));
        give(p, s, n);
    }
    if (!p->in_call && !(p->n_calls && mxd_blank_prefix(s, n) == n)) give(p, s, n);
    mxd_buf_clear(&p->wait);
    p->in_call = false;
}
