#include "cluster/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/crc32c.h"
#include "base/file.h"

enum { MARGIN = 64 << 20 }; /* bytes that stay free for others */

static const char magic[8] = "MXDHAVE1"; /* of a record; no NUL */

typedef struct part { /* of one file */
    int fd;
    uint64_t pieces;
    uint8_t *have; /* a bit for each; under the lock */
    bool dirty;    /* put, not yet recorded */
} part;

struct mxd_store {
    const mxd_alloc *al;
    char folder[MXD_PATH_MAX];
    mxd_weights_list list;
    part *parts; /* [list.n] */
    pthread_mutex_t lock;
};

const char *mxd_store_folder(const mxd_store *s) { return s->folder; }
const mxd_weights_list *mxd_store_list(const mxd_store *s) { return &s->list; }

static bool bit(const uint8_t *bits, uint64_t i) { return bits[i / 8] >> i % 8 & 1; }

bool mxd_store_has(mxd_store *s, uint32_t file, uint64_t piece) {
    if (file >= (uint32_t)s->list.n || piece >= s->parts[file].pieces) return false;
    pthread_mutex_lock(&s->lock);
    bool has = bit(s->parts[file].have, piece);
    pthread_mutex_unlock(&s->lock);
    return has;
}

uint32_t mxd_store_piece_bytes(const mxd_store *s, uint32_t file, uint64_t piece) {
    if (file >= (uint32_t)s->list.n || piece >= s->parts[file].pieces) return 0;
    uint64_t left = s->list.files[file].bytes - piece * MXD_WEIGHTS_PIECE;
    return left < MXD_WEIGHTS_PIECE ? (uint32_t)left : MXD_WEIGHTS_PIECE;
}

/* -------------------------------------------------------------------------------------- records */

/* A record: magic, size of the file, a bit for each piece, CRC32C of all before. Little-endian. */
static size_t bit_bytes(const part *p) { return (size_t)((p->pieces + 7) / 8); }
static size_t record_bytes(const part *p) { return sizeof magic + 8 + bit_bytes(p) + 4; }

static void put_le(uint8_t *to, uint64_t v, int n) {
    for (int i = 0; i < n; i++) to[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t get_le(const uint8_t *p, int n) {
    uint64_t v = 0;
    while (n-- > 0) v = v << 8 | p[n];
    return v;
}

static void have_name(char out[MXD_WEIGHTS_NAME + 8], const mxd_weights_file *f) {
    snprintf(out, MXD_WEIGHTS_NAME + 8, "%s.have", f->name);
}

static mxd_rc write_record(mxd_store *s, int i, mxd_err *err) {
    const part *p = &s->parts[i];
    char name[MXD_WEIGHTS_NAME + 8];
    size_t n = record_bytes(p);
    uint8_t *r = mxd_new(s->al, n, 1);
    if (!r) return mxd_fail(err, MXD_E_NOMEM, "record of weights");
    memcpy(r, magic, sizeof magic);
    put_le(r + 8, s->list.files[i].bytes, 8);
    memcpy(r + 16, p->have, bit_bytes(p)); /* the only writer is this thread */
    put_le(r + n - 4, mxd_crc32c(0, r, n - 4), 4);
    have_name(name, &s->list.files[i]);
    mxd_rc rc = mxd_file_replace(s->folder, name, (const char *)r, n, err);
    mxd_free(s->al, r);
    return rc;
}

/* What the record says, if it is whole and of this file; else nothing is there. */
static mxd_rc read_record(mxd_store *s, int i, mxd_err *err) {
    part *p = &s->parts[i];
    char name[MXD_WEIGHTS_NAME + 8], path[MXD_PATH_MAX], *text;
    size_t n;
    have_name(name, &s->list.files[i]);
    MXD_TRY(mxd_path_join(path, s->folder, name, err));
    mxd_rc rc = mxd_file_read(s->al, path, record_bytes(p), &text, &n, NULL);
    if (rc) return rc == MXD_E_NOMEM ? mxd_fail(err, rc, "record of weights") : MXD_OK;
    const uint8_t *r = (const uint8_t *)text;
    bool whole = n == record_bytes(p) && memcmp(r, magic, sizeof magic) == 0 &&
                 get_le(r + 8, 8) == s->list.files[i].bytes &&
                 get_le(r + n - 4, 4) == mxd_crc32c(0, r, n - 4);
    if (whole) memcpy(p->have, r + 16, bit_bytes(p));
    mxd_free(s->al, text);
    return MXD_OK;
}

/* -------------------------------------------------------------------------------------- opening */

/* A file that has not its size was not left by us like that: nothing of it is believed. */
static mxd_rc open_part(mxd_store *s, int i, mxd_err *err) {
    const mxd_weights_file *f = &s->list.files[i];
    part *p = &s->parts[i];
    char path[MXD_PATH_MAX];
    struct stat st;
    p->pieces = mxd_weights_pieces(f->bytes);
    p->have = mxd_new(s->al, bit_bytes(p) + 1, 1);
    if (!p->have) return mxd_fail(err, MXD_E_NOMEM, "record of weights");
    MXD_TRY(mxd_path_join(path, s->folder, f->name, err));
    p->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (p->fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot write '%s'", path);
    if (fstat(p->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return mxd_fail(err, MXD_E_IO, "'%s' is not a regular file", path);
    if ((uint64_t)st.st_size == f->bytes) return read_record(s, i, err);
    if (ftruncate(p->fd, 0) == 0 && ftruncate(p->fd, (off_t)f->bytes) == 0)
        return write_record(s, i, err);
    return mxd_fail_sys(err, MXD_E_IO, "cannot give '%s' its size, %" PRIu64 " bytes", path,
                        f->bytes);
}

static mxd_rc open_all(mxd_store *s, const char *root, const uint8_t id[32],
                       const mxd_weights_list *list, mxd_err *err) {
    char hex[65];
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", id[i]);
    MXD_TRY(mxd_path_join(s->folder, root, hex, err));
    MXD_TRY(mxd_folder_make(s->folder, err));
    MXD_TRY(mxd_weights_list_copy(s->al, list->files, list->n, &s->list, err));
    s->parts = MXD_NEW(s->al, (size_t)list->n, part);
    if (!s->parts) return mxd_fail(err, MXD_E_NOMEM, "store of weights");
    for (int i = 0; i < list->n; i++) s->parts[i].fd = -1;
    for (int i = 0; i < list->n; i++) MXD_TRY(open_part(s, i, err));
    return MXD_OK;
}

mxd_rc mxd_store_open(mxd_store **out, const mxd_alloc *al, const char *root, const uint8_t id[32],
                      const mxd_weights_list *list, mxd_err *err) {
    mxd_store *s = MXD_NEW(al, 1, mxd_store);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "store of weights");
    s->al = al;
    pthread_mutex_init(&s->lock, NULL);
    mxd_rc rc = open_all(s, root, id, list, err);
    if (rc)
        mxd_store_close(s);
    else
        *out = s;
    return rc;
}

void mxd_store_close(mxd_store *s) {
    if (!s) return;
    for (int i = 0; s->parts && i < s->list.n; i++) {
        if (s->parts[i].fd >= 0) close(s->parts[i].fd);
        mxd_free(s->al, s->parts[i].have);
    }
    mxd_free(s->al, s->parts);
    mxd_weights_list_free(s->al, &s->list);
    pthread_mutex_destroy(&s->lock);
    mxd_free(s->al, s);
}

/* ----------------------------------------------------------------------------------------- room */

/* Bytes that our files take on the disk and that no piece counts yet: reserved before. */
static uint64_t reserved(const mxd_store *s) {
    uint64_t taken = 0, there = 0;
    for (int i = 0; i < s->list.n; i++) {
        const part *p = &s->parts[i];
        struct stat st;
        if (fstat(p->fd, &st) == 0) taken += (uint64_t)st.st_blocks * 512;
        for (uint64_t k = 0; k < p->pieces; k++)
            if (bit(p->have, k)) there += mxd_store_piece_bytes(s, (uint32_t)i, k);
    }
    return taken > there ? taken - there : 0;
}

mxd_rc mxd_store_make_room(mxd_store *s, uint64_t bytes, mxd_err *err) {
    struct statvfs v;
    if (statvfs(s->folder, &v) != 0)
        return mxd_fail_sys(err, MXD_E_IO, "cannot see how full the disk of '%s' is", s->folder);
    uint64_t space = (uint64_t)v.f_bavail * (uint64_t)v.f_frsize, old = reserved(s);
    uint64_t need = bytes > old ? bytes - old : 0;
    if (!need || need <= space - (space < MARGIN ? space : MARGIN)) return MXD_OK;
    return mxd_fail(err, MXD_E_NOFIT,
                    "this node's weights need %" PRIu64 " bytes on the disk of '%s', %" PRIu64
                    " are free: make room, or name another place with --weights-dir",
                    need, s->folder, space);
}

void mxd_store_reserve(mxd_store *s, uint32_t file, uint64_t piece) {
#ifdef __linux__
    /* Where the file system cannot, put says when the disk is full. */
    int unused =
        fallocate(s->parts[file].fd, FALLOC_FL_KEEP_SIZE, (off_t)(piece * MXD_WEIGHTS_PIECE),
                  (off_t)mxd_store_piece_bytes(s, file, piece));
    (void)unused;
#else
    (void)s, (void)file, (void)piece;
#endif
}

/* -------------------------------------------------------------------------------------- writing */

mxd_rc mxd_store_put(mxd_store *s, uint32_t file, uint64_t piece, const void *bytes, size_t n,
                     mxd_err *err) {
    MXD_ASSERT(n && n == mxd_store_piece_bytes(s, file, piece));
    part *p = &s->parts[file];
    const char *from = bytes;
    off_t at = (off_t)(piece * MXD_WEIGHTS_PIECE);
    while (n) {
        ssize_t put = pwrite(p->fd, from, n, at);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return mxd_fail_sys(err, errno == ENOSPC || errno == EDQUOT ? MXD_E_NOFIT : MXD_E_IO,
                                "cannot write %zu bytes of '%s' in '%s'", n,
                                s->list.files[file].name, s->folder);
        from += put;
        at += put;
        n -= (size_t)put;
    }
    pthread_mutex_lock(&s->lock);
    p->have[piece / 8] |= (uint8_t)(1u << piece % 8);
    pthread_mutex_unlock(&s->lock);
    p->dirty = true;
    return MXD_OK;
}

mxd_rc mxd_store_sync(mxd_store *s, mxd_err *err) {
    for (int i = 0; i < s->list.n; i++) {
        part *p = &s->parts[i];
        if (!p->dirty) continue;
        if (fsync(p->fd) != 0)
            return mxd_fail_sys(err, MXD_E_IO, "cannot write '%s' in '%s'", s->list.files[i].name,
                                s->folder);
        MXD_TRY(write_record(s, i, err));
        p->dirty = false;
    }
    return MXD_OK;
}
