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

/* Where the first place is that may still become a match: the held text from there on is a proper
 * prefix of a stop string. The length of the text when there is none. For a place that has a match
 * already (of stop string `found`) only stop strings before it in the list count. */
static size_t undecided(const mxd_stopper *s, int found, size_t at) {
    size_t first = s->held.len;
    for (int i = 0; i < s->n_stop; i++) {
        size_t len = strlen(s->stop[i]), from = s->held.len >= len ? s->held.len - len + 1 : 0;
        for (; from < first; from++)
            if (memcmp(s->held.ptr + from, s->stop[i], s->held.len - from) == 0 &&
                !(from == at && found >= 0 && i > found)) {
                first = from;
                break;
            }
    }
    return first;
}

static void give_out(mxd_stopper *s, int found, size_t at, mxd_buf *out) {
    mxd_buf_put(out, s->held.ptr, at);
    s->matched = found;
    mxd_buf_drop(&s->held, found >= 0 ? s->held.len : at);
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
    int found = find(s, &at);
    size_t open = undecided(s, found, at);
    if (found >= 0 && open > at)
        give_out(s, found, at, out);
    else
        give_out(s, -1, open, out);
}

void mxd_stopper_flush(mxd_stopper *s, mxd_buf *out) {
    size_t at = s->held.len;
    if (s->matched < 0 && s->held.len) {
        int found = find(s, &at);
        give_out(s, found, at, out);
    }
    mxd_buf_clear(&s->held);
}
