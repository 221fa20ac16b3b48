/* The bytes of a record, and the names in a journal's folder. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "cluster/journal_private.h"

enum { FRAME = 8, INNER = 9 }; /* length and check; kind and stream */
static const char magic[8] = {'m', 'x', 'd', '-', 'j', 'r', 'n', 'l'};
enum { HEAD_BYTES = sizeof magic + 4 + 8 + 8 };

static uint32_t get32(const unsigned char *p) {
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(unsigned char *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
}

uint64_t mxd_get64(const unsigned char *p) { return get32(p) | (uint64_t)get32(p + 4) << 32; }

void mxd_put64(unsigned char *p, uint64_t v) {
    put32(p, (uint32_t)v);
    put32(p + 4, (uint32_t)(v >> 32));
}

static void frame(unsigned char *p, mxd_record_kind kind, uint64_t stream, const void *bytes,
                  size_t n) {
    put32(p, (uint32_t)(INNER + n));
    p[FRAME] = (unsigned char)kind;
    mxd_put64(p + FRAME + 1, stream);
    if (n) memcpy(p + FRAME + INNER, bytes, n);
    put32(p + 4, mxd_crc32c(mxd_crc32c(0, p, 4), p + FRAME, INNER + n));
}

void mxd_journal_frame(mxd_buf *b, mxd_record_kind kind, uint64_t stream, const void *bytes,
                       size_t n) {
    if (n > MXD_JOURNAL_RECORD_BYTES - INNER) {
        if (!b->rc) b->rc = MXD_E_TOOBIG;
        return;
    }
    unsigned char *p = mxd_buf_grow(b, FRAME + INNER + n);
    if (p) frame(p, kind, stream, bytes, n);
}

bool mxd_journal_next(const unsigned char *bytes, size_t n, size_t *at, mxd_record *r) {
    const unsigned char *p = bytes + *at;
    size_t left = n - *at;
    if (left < FRAME + INNER) return false;
    uint32_t len = get32(p);
    if (len < INNER || len > MXD_JOURNAL_RECORD_BYTES || len > left - FRAME) return false;
    if (get32(p + 4) != mxd_crc32c(mxd_crc32c(0, p, 4), p + FRAME, len)) return false;
    *r = (mxd_record){.kind = (mxd_record_kind)p[FRAME],
                      .stream = mxd_get64(p + FRAME + 1),
                      .bytes = p + FRAME + INNER,
                      .n = len - INNER};
    *at += FRAME + len;
    return true;
}

size_t mxd_journal_head(unsigned char out[64], uint64_t epoch, uint64_t stream) {
    unsigned char body[HEAD_BYTES];
    memcpy(body, magic, sizeof magic);
    put32(body + 8, MXD_JOURNAL_VERSION);
    mxd_put64(body + 12, epoch);
    mxd_put64(body + 20, stream);
    frame(out, MXD_REC_HEAD, 0, body, sizeof body);
    return FRAME + INNER + sizeof body;
}

static bool head(const unsigned char *bytes, size_t n, size_t *at, mxd_record *r) {
    if (!mxd_journal_next(bytes, n, at, r)) return false;
    return r->kind == MXD_REC_HEAD && r->n >= HEAD_BYTES &&
           memcmp(r->bytes, magic, sizeof magic) == 0 && get32(r->bytes + 8) == MXD_JOURNAL_VERSION;
}

void mxd_journal_marks(const unsigned char *bytes, size_t n, uint64_t *epoch, uint64_t *stream) {
    mxd_record r;
    size_t at = 0;
    if (!head(bytes, n, &at, &r)) return;
    if (mxd_get64(r.bytes + 12) > *epoch) *epoch = mxd_get64(r.bytes + 12);
    if (mxd_get64(r.bytes + 20) > *stream) *stream = mxd_get64(r.bytes + 20);
}

mxd_rc mxd_journal_scan(const unsigned char *bytes, size_t n, mxd_record_fn each, void *ctx,
                        size_t *valid, mxd_err *err) {
    mxd_record r;
    size_t at = 0;
    *valid = 0;
    if (!head(bytes, n, &at, &r)) return MXD_OK;
    *valid = at;
    while (mxd_journal_next(bytes, n, &at, &r)) {
        MXD_TRY(each(ctx, &r, err));
        *valid = at;
    }
    return MXD_OK;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* "00000001.log"; 0: another name. */
static uint32_t number_of(const char *name) {
    char *end;
    if (strspn(name, "0123456789") != 8 || strcmp(name + 8, ".log") != 0) return 0;
    return (uint32_t)strtoul(name, &end, 10);
}

mxd_rc mxd_journal_note(mxd_journal *j, uint32_t number, mxd_err *err) {
    if (j->n_segments == j->cap_segments) {
        int cap = j->cap_segments ? 2 * j->cap_segments : 8;
        uint32_t *p = mxd_renew(j->al, j->segments, (size_t)cap, sizeof *p);
        if (!p) return mxd_fail(err, MXD_E_NOMEM, "no memory for the journal");
        j->segments = p;
        j->cap_segments = cap;
    }
    j->segments[j->n_segments++] = number;
    return MXD_OK;
}

mxd_rc mxd_journal_list(mxd_journal *j, mxd_err *err) {
    DIR *d = opendir(j->dir);
    if (!d) return mxd_fail_sys(err, MXD_E_IO, "cannot read the folder '%s'", j->dir);
    mxd_rc rc = MXD_OK;
    const struct dirent *e;
    while (!rc && (e = readdir(d)) != NULL) {
        uint32_t number = number_of(e->d_name);
        if (number) rc = mxd_journal_note(j, number, err);
    }
    closedir(d);
    if (!rc && j->n_segments)
        qsort(j->segments, (size_t)j->n_segments, sizeof *j->segments, ascending);
    return rc;
}

int mxd_journal_datasync(int fd) {
#ifdef __APPLE__
    return fsync(fd); /* fdatasync is not declared there */
#else
    return fdatasync(fd);
#endif
}
