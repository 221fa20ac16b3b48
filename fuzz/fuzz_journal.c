/* A journal's segment of any bytes: what is believed is a prefix, and believed again; the requests
 * in it are within the limits of requests. */
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/log.h"
#include "cluster/core.h"
#include "cluster/kept.h"
#include "fuzz.h"

typedef struct seen {
    mxd_kept_list kept;
    int n;
    const unsigned char *end; /* of the last record */
} seen;

static mxd_rc take(void *ctx, const mxd_record *r, mxd_err *err) {
    seen *s = ctx;
    if (r->bytes < s->end || r->n > MXD_JOURNAL_RECORD_BYTES) abort();
    s->end = r->bytes + r->n;
    s->n++;
    return mxd_kept_take(&s->kept, r, err);
}

static void check(const mxd_kept_request *q) {
    if (q->r.n_prompt < 1 || q->r.n_prompt > MXD_MAX_CONTEXT || q->r.max_tokens < 1) abort();
    if (q->r.n_stop_ids > MXD_CORE_STOP_IDS || q->r.how.n_bias > MXD_MAX_LOGIT_BIAS) abort();
    if (q->k.n_tokens > q->r.max_tokens || q->r.how.n_top > MXD_MAX_TOP_LOGPROBS) abort();
    for (int i = 0; i < q->k.n_tokens; i++)
        if (q->k.tokens[i].token < 0 || q->k.tokens[i].n_top > MXD_MAX_TOP_LOGPROBS) abort();
}

static size_t scan(const uint8_t *data, size_t size, int *n) {
    seen s = {.kept.al = &mxd_alloc_libc};
    mxd_err err = {0};
    size_t valid = 0;
    if (mxd_journal_scan(data, size, take, &s, &valid, &err) || valid > size) abort();
    while (s.kept.first) {
        check(s.kept.first);
        mxd_kept_drop(&s.kept, s.kept.first);
    }
    *n = s.n;
    return valid;
}

/* Mutators do not find check values: with the first byte odd, every record gets its own. */
static void mend(uint8_t *p, size_t size) {
    for (size_t at = 0; at + 17 <= size;) {
        uint32_t n = p[at] | (uint32_t)p[at + 1] << 8 | (uint32_t)p[at + 2] << 16;
        p[at + 3] = 0;
        if (n < 9 || n > size - at - 8) return;
        uint32_t crc = mxd_crc32c(mxd_crc32c(0, p + at, 4), p + at + 8, n);
        for (int i = 0; i < 4; i++) p[at + 4 + i] = (uint8_t)(crc >> 8 * i);
        at += 8 + n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    int n = 0, again = 0;
    mxd_log_set_level(MXD_LOG_ERROR);
    if (!size) return 0;
    uint8_t *copy = malloc(size);
    if (!copy) abort();
    memcpy(copy, data + 1, size - 1);
    if (data[0] & 1) mend(copy, size - 1);
    size_t valid = scan(copy, size - 1, &n);
    if (scan(copy, valid, &again) != valid || n != again) abort();
    free(copy);
    return 0;
}
