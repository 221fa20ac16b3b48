#include "api/stopper.h"

#include <string.h>

enum { HELD_MAX = 1 << 20 }; /* one piece of text plus the longest stop string */

void mxd_stopper_init(mxd_stopper *s, const mxd_alloc *al, const char *const *stop, int n_stop) {
    *s = (mxd_stopper){.stop = stop, .n_stop = n_stop, .matched = -1};
    mxd_buf_init(&s->held, al, HELD_MAX);
}

void mxd_stopper_deinit(mxd_stopper *s) { mxd_buf_deinit(&s->held); }

/* The leftmost match in the held text; -1 when there is none. */
static int find(const mxd_stopper *s, size_t *at) {
    int best = -1;
    for (int i = 0; i < s->n_stop; i++) {
        const char *hit = memmem(s->held.ptr, s->held.len, s->stop[i], strlen(s->stop[i]));
        if (!hit) continue;
        size_t where = (size_t)(hit - s->held.ptr);
        if (best >= 0 && where >= *at) continue;
        best = i;
        *at = where;
    }
    return best;
}

/* How many bytes at the end are a proper prefix of a stop string: the longest such. */
static size_t undecided(const mxd_stopper *s) {
    size_t most = 0;
    for (int i = 0; i < s->n_stop; i++) {
        size_t n = strlen(s->stop[i]) - 1;
        if (n > s->held.len) n = s->held.len;
        for (; n > most; n--)
            if (memcmp(s->held.ptr + s->held.len - n, s->stop[i], n) == 0) most = n;
    }
    return most;
}

void mxd_stopper_push(mxd_stopper *s, const char *text, size_t n, mxd_buf *out) {
    if (s->matched >= 0 || !n) return;
    if (!s->n_stop) {
        mxd_buf_put(out, text, n);
        return;
    }
    mxd_buf_put(&s->held, text, n);
    if (s->held.rc) {
        out->rc = s->held.rc;
        return;
    }
    size_t at = 0;
    s->matched = find(s, &at);
    if (s->matched < 0) at = s->held.len - undecided(s);
    mxd_buf_put(out, s->held.ptr, at);
    mxd_buf_drop(&s->held, s->matched >= 0 ? s->held.len : at);
}

void mxd_stopper_flush(mxd_stopper *s, mxd_buf *out) {
    if (s->matched < 0 && s->held.len) mxd_buf_put(out, s->held.ptr, s->held.len);
    mxd_buf_clear(&s->held);
}
