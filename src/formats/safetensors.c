#include "formats/safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <openssl/evp.h>
#include "base/map.h"
#include "formats/jscan.h"
#include "formats/utf8.h"

/* Names are gathered while the header is scanned, and `names` moves while it grows; so tensors
 * keep positions (name_at) until the header is done. */
typedef struct header {
    const mxd_alloc *al;
    mxd_buf names; /* each with a NUL behind */
    struct entry {
        mxd_st_tensor t;
        size_t name_at;
    } * entries; /* [cap] */
    size_t n, cap;
} header;

typedef struct shard {
    char *path;
    int fd;
    uint64_t size, data_at;
    char *names; /* what mxd_st_tensor.name points into */
} shard;

struct mxd_st {
    const mxd_alloc *al;
    shard *shards; /* [n_shards] */
    size_t n_shards;
    mxd_st_tensor *tensors; /* [n] in order of file, then offset */
    size_t n, cap;
    mxd_map by_name; /* index into tensors */
    EVP_MD_CTX *sha;
    uint8_t hash[32];
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[] = {
#define X(name, bytes) {#name, bytes},
    MXD_DTYPE_MAP(X)
#undef X
};

const char *mxd_dtype_name(mxd_dtype d) {
    return (unsigned)d < MXD_DTYPE_COUNT ? dtypes[d].name : "?";
}

size_t mxd_dtype_bytes(mxd_dtype d) { return (unsigned)d < MXD_DTYPE_COUNT ? dtypes[d].bytes : 0; }

/* ---- one header ---- */

static mxd_rc no_memory(mxd_err *err) {
    return mxd_fail(err, MXD_E_NOMEM, "no memory for a table of tensors");
}

static mxd_rc expect(mxd_jscan *s, mxd_jtok tok, const char *what, mxd_err *err) {
    MXD_TRY(mxd_jscan_next(s, err));
    return s->tok == tok ? MXD_OK : mxd_jscan_fail(s, err, what);
}

/* The current token as a number of digits only: no sign, fraction or exponent. */
static mxd_rc plain_number(const mxd_jscan *s, uint64_t *out, mxd_err *err) {
    static const char what[] = "expected a plain non-negative integer";
    if (s->tok != MXD_JTOK_NUMBER) return mxd_jscan_fail(s, err, what);
    uint64_t v = 0;
    for (size_t i = 0; i < s->len; i++) {
        if (s->at[i] < '0' || s->at[i] > '9') return mxd_jscan_fail(s, err, what);
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(s->at[i] - '0'), &v))
            return mxd_jscan_fail(s, err, "an integer beyond 64 bits");
    }
    *out = v;
    return MXD_OK;
}

static mxd_rc scan_dtype(mxd_jscan *s, mxd_st_tensor *t, mxd_err *err) {
    MXD_TRY(expect(s, MXD_JTOK_STRING, "dtype must be a string", err));
    for (size_t i = 0; i < MXD_COUNT(dtypes); i++) {
        if (!mxd_jscan_is(s, dtypes[i].name)) continue;
        t->dtype = (mxd_dtype)i;
        return MXD_OK;
    }
    return mxd_fail(err, MXD_E_FORMAT, "dtype '%.*s' is not supported",
                    s->len < 40 ? (int)s->len : 40, s->at);
}

static mxd_rc scan_shape(mxd_jscan *s, mxd_st_tensor *t, mxd_err *err) {
    MXD_TRY(expect(s, MXD_JTOK_ARRAY, "shape must be a list", err));
    for (;;) {
        MXD_TRY(mxd_jscan_next(s, err));
        if (s->tok == MXD_JTOK_ARRAY_END) return MXD_OK;
        if (t->n_dims == MXD_ST_MAX_RANK)
            return mxd_fail(err, MXD_E_TOOBIG, "more than %d dimensions", MXD_ST_MAX_RANK);
        uint64_t dim;
        MXD_TRY(plain_number(s, &dim, err));
        if (dim > MXD_ST_MAX_DIM)
            return mxd_fail(err, MXD_E_TOOBIG, "dimension %" PRIu64 " is over %d", dim,
                            MXD_ST_MAX_DIM);
        t->shape[t->n_dims++] = dim;
    }
}

static mxd_rc scan_offsets(mxd_jscan *s, mxd_st_tensor *t, mxd_err *err) {
    uint64_t end;
    MXD_TRY(expect(s, MXD_JTOK_ARRAY, "data_offsets must be a list", err));
    MXD_TRY(mxd_jscan_next(s, err));
    MXD_TRY(plain_number(s, &t->offset, err));
    MXD_TRY(mxd_jscan_next(s, err));
    MXD_TRY(plain_number(s, &end, err));
    MXD_TRY(expect(s, MXD_JTOK_ARRAY_END, "data_offsets must have two numbers", err));
    if (end < t->offset)
        return mxd_fail(err, MXD_E_FORMAT, "data_offsets [%" PRIu64 ", %" PRIu64 "] run backwards",
                        t->offset, end);
    t->bytes = end - t->offset;
    return MXD_OK;
}

/* Whether shape x dtype is exactly the bytes of the entry, multiplied step by step. */
static mxd_rc check_size(const mxd_st_tensor *t, mxd_err *err) {
    uint64_t want = dtypes[t->dtype].bytes;
    for (int i = 0; i < t->n_dims; i++)
        if (__builtin_mul_overflow(want, t->shape[i], &want))
            return mxd_fail(err, MXD_E_FORMAT, "the shape overflows");
    if (want != t->bytes)
        return mxd_fail(err, MXD_E_FORMAT,
                        "the shape needs %" PRIu64 " bytes, the entry has %" PRIu64, want,
                        t->bytes);
    return MXD_OK;
}

/* The object of one tensor: exactly dtype, shape and data_offsets, each once. */
static mxd_rc scan_entry(mxd_jscan *s, mxd_st_tensor *t, mxd_err *err) {
    static const struct {
        const char *key;
        mxd_rc (*scan)(mxd_jscan *, mxd_st_tensor *, mxd_err *);
    } fields[] = {{"dtype", scan_dtype}, {"shape", scan_shape}, {"data_offsets", scan_offsets}};
    unsigned seen = 0;
    MXD_TRY(expect(s, MXD_JTOK_OBJECT, "a tensor must be an object", err));
    for (;;) {
        size_t i = 0;
        MXD_TRY(mxd_jscan_next(s, err));
        if (s->tok == MXD_JTOK_OBJECT_END) break;
        while (i < MXD_COUNT(fields) && !mxd_jscan_is(s, fields[i].key)) i++;
        if (i == MXD_COUNT(fields)) return mxd_jscan_fail(s, err, "unknown key in a tensor");
        if (seen & 1u << i) return mxd_jscan_fail(s, err, "duplicate key in a tensor");
        seen |= 1u << i;
        MXD_TRY(fields[i].scan(s, t, err));
    }
    if (seen != 7) return mxd_jscan_fail(s, err, "needs dtype, shape and data_offsets");
    return check_size(t, err);
}

/* Appends the current key and a NUL to `names`; *at is where. */
static mxd_rc keep_name(mxd_jscan *s, mxd_buf *names, size_t *at, mxd_err *err) {
    *at = names->len;
    char *to = mxd_buf_grow(names, s->len + 1);
    if (!to) return no_memory(err);
    size_t n = mxd_jscan_decode(s, to);
    to[n] = '\0';
    names->len = *at + n + 1;
    if (memchr(to, '\0', n)) return mxd_jscan_fail(s, err, "NUL in a name");
    return MXD_OK;
}

/* Keys that must be unique: names of tensors, keys of the metadata. `names` holds n of them, each
 * with a NUL behind, and does not move any more. */
static mxd_rc check_unique(const mxd_alloc *al, const mxd_buf *names, size_t n, mxd_err *err) {
    mxd_map seen;
    MXD_TRY(mxd_map_init(&seen, al, n, err));
    mxd_rc rc = MXD_OK;
    const char *p = mxd_buf_str(names);
    for (size_t i = 0; i < n && !rc; i++, p += strlen(p) + 1) {
        bool was = false;
        rc = mxd_map_put(&seen, p, strlen(p), 0, &was, err);
        if (!rc && was) rc = mxd_fail(err, MXD_E_FORMAT, "duplicate key '%.200s'", p);
    }
    mxd_map_deinit(&seen);
    return rc;
}

/* `__metadata__`: null, or a map of strings to strings. */
static mxd_rc scan_metadata(mxd_jscan *s, const mxd_alloc *al, mxd_err *err) {
    MXD_TRY(mxd_jscan_next(s, err));
    if (s->tok == MXD_JTOK_NULL) return MXD_OK;
    if (s->tok != MXD_JTOK_OBJECT)
        return mxd_jscan_fail(s, err, "__metadata__ must be an object or null");
    mxd_buf keys;
    mxd_buf_init(&keys, al, 2 * MXD_ST_MAX_HEADER_BYTES);
    size_t n = 0, at;
    mxd_rc rc;
    while (!(rc = mxd_jscan_next(s, err)) && s->tok == MXD_JTOK_KEY) {
        rc = keep_name(s, &keys, &at, err);
        if (!rc) rc = expect(s, MXD_JTOK_STRING, "__metadata__ must hold strings", err);
        if (rc) break;
        n++;
    }
    if (!rc) rc = check_unique(al, &keys, n, err);
    mxd_buf_deinit(&keys);
    return rc;
}

static mxd_rc add_entry(header *h, struct entry **out, mxd_err *err) {
    if (h->n == MXD_ST_MAX_TENSORS)
        return mxd_fail(err, MXD_E_TOOBIG, "more than %d tensors", MXD_ST_MAX_TENSORS);
    if (h->n == h->cap) {
        size_t cap = h->cap ? h->cap * 2 : 64;
        struct entry *more = mxd_renew(h->al, h->entries, cap, sizeof *more);
        if (!more) return no_memory(err);
        h->entries = more;
        h->cap = cap;
    }
    *out = &h->entries[h->n];
    **out = (struct entry){0};
    return MXD_OK;
}

static mxd_rc scan_tensor(header *h, mxd_jscan *s, mxd_err *err) {
    struct entry *e = NULL;
    MXD_TRY(add_entry(h, &e, err));
    MXD_TRY(keep_name(s, &h->names, &e->name_at, err));
    mxd_rc rc = scan_entry(s, &e->t, err);
    if (rc) return mxd_wrap(err, rc, "tensor '%.100s'", h->names.ptr + e->name_at);
    h->n++;
    return MXD_OK;
}

static int by_offset(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->t.offset != y->t.offset) return x->t.offset < y->t.offset ? -1 : 1;
    if (x->t.bytes != y->t.bytes) return x->t.bytes < y->t.bytes ? -1 : 1;
    return (x->name_at > y->name_at) - (x->name_at < y->name_at);
}

/* Sorts by offset; no hole, no overlap, nothing left over. */
static mxd_rc check_cover(header *h, uint64_t data_bytes, mxd_err *err) {
    uint64_t at = 0;
    if (h->n) qsort(h->entries, h->n, sizeof *h->entries, by_offset);
    for (size_t i = 0; i < h->n; i++) {
        const mxd_st_tensor *t = &h->entries[i].t;
        if (t->offset != at)
            return mxd_fail(err, MXD_E_FORMAT,
                            "tensor '%.100s' begins at %" PRIu64
                            ", the one before ends at %" PRIu64,
                            h->names.ptr + h->entries[i].name_at, t->offset, at);
        at += t->bytes; /* cannot wrap: it is the entry's end, which was a 64-bit number */
    }
    if (at != data_bytes)
        return mxd_fail(err, MXD_E_FORMAT,
                        "the tensors cover %" PRIu64 " bytes, the file has %" PRIu64, at,
                        data_bytes);
    return MXD_OK;
}

static mxd_rc scan_object(header *h, mxd_jscan *s, mxd_err *err) {
    bool metadata = false;
    MXD_TRY(mxd_jscan_next(s, err));
    for (;;) {
        MXD_TRY(mxd_jscan_next(s, err));
        if (s->tok == MXD_JTOK_OBJECT_END) return MXD_OK;
        if (!mxd_jscan_is(s, "__metadata__")) {
            MXD_TRY(scan_tensor(h, s, err));
            continue;
        }
        if (metadata) return mxd_jscan_fail(s, err, "duplicate key '__metadata__'");
        metadata = true;
        MXD_TRY(scan_metadata(s, h->al, err));
    }
}

/* Fills h (from zero; header_deinit also on error). Rules 1 to 6 of docs/formats.md. */
static mxd_rc header_scan(header *h, const mxd_alloc *al, const char *json, size_t n,
                          uint64_t data_bytes, mxd_err *err) {
    h->al = al;
    mxd_buf_init(&h->names, al, 2 * MXD_ST_MAX_HEADER_BYTES);
    if (n < 2) return mxd_fail(err, MXD_E_FORMAT, "a header of %zu bytes", n);
    if (n > MXD_ST_MAX_HEADER_BYTES)
        return mxd_fail(err, MXD_E_TOOBIG, "a header longer than %d bytes",
                        MXD_ST_MAX_HEADER_BYTES);
    if (json[0] != '{') return mxd_fail(err, MXD_E_FORMAT, "the header does not begin with '{'");
    mxd_jscan s;
    mxd_jscan_init(&s, json, n, SIZE_MAX);
    MXD_TRY(scan_object(h, &s, err));
    for (size_t i = s.pos; i < n; i++)
        if (json[i] != ' ') return mxd_jscan_fail(&s, err, "only spaces may follow the object");
    MXD_TRY(check_unique(al, &h->names, h->n, err));
    return check_cover(h, data_bytes, err);
}

static void header_deinit(header *h) {
    mxd_buf_deinit(&h->names);
    mxd_free(h->al, h->entries);
}

mxd_rc mxd_st_check_header(const mxd_alloc *al, const char *json, size_t n, uint64_t data_bytes,
                           mxd_err *err) {
    header h = {0};
    mxd_rc rc = header_scan(&h, al, json, n, data_bytes, err);
    header_deinit(&h);
    return rc;
}

/* ---- a folder of files ---- */

static mxd_rc read_at(const shard *f, uint64_t at, void *dst, size_t n, mxd_err *err) {
    char *to = dst;
    while (n) {
        ssize_t got = pread(f->fd, to, n < 1u << 30 ? n : 1u << 30, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", f->path);
        if (got == 0)
            return mxd_fail(err, MXD_E_IO,
                            "'%s' became shorter while it was open; load the model again", f->path);
        to += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return MXD_OK;
}

/* Moves the tensors of a checked header into the set; the names go to the shard. */
static mxd_rc adopt(mxd_st *st, header *h, uint32_t file, uint64_t data_at, mxd_err *err) {
    if (st->n + h->n > MXD_ST_MAX_TENSORS)
        return mxd_fail(err, MXD_E_TOOBIG, "more than %d tensors", MXD_ST_MAX_TENSORS);
    if (st->n + h->n > st->cap) {
        size_t cap = st->n + h->n;
        mxd_st_tensor *more = mxd_renew(st->al, st->tensors, cap, sizeof *more);
        if (!more) return no_memory(err);
        st->tensors = more;
        st->cap = cap;
    }
    char *names = h->names.ptr;
    st->shards[file].names = names;
    mxd_buf_init(&h->names, h->al, 0);
    for (size_t i = 0; i < h->n; i++) {
        mxd_st_tensor *t = &st->tensors[st->n];
        *t = h->entries[i].t;
        t->name = names + h->entries[i].name_at;
        t->file = file;
        t->offset += data_at;
        bool was;
        MXD_TRY(mxd_map_put(&st->by_name, t->name, strlen(t->name), st->n, &was, err));
        if (was) return mxd_fail(err, MXD_E_FORMAT, "tensor '%.100s' stands in two files", t->name);
        st->n++;
    }
    return MXD_OK;
}

static mxd_rc read_header(mxd_st *st, uint32_t file, mxd_err *err) {
    shard *f = &st->shards[file];
    uint8_t head[8];
    if (f->size < sizeof head)
        return mxd_fail(err, MXD_E_FORMAT, "a file of %" PRIu64 " bytes", f->size);
    MXD_TRY(read_at(f, 0, head, sizeof head, err));
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | head[i];
    if (n > f->size - sizeof head)
        return mxd_fail(err, MXD_E_FORMAT,
                        "the header is said to have %" PRIu64 " bytes, the file has %" PRIu64, n,
                        f->size);
    if (n > MXD_ST_MAX_HEADER_BYTES)
        return mxd_fail(err, MXD_E_TOOBIG, "a header longer than %d bytes",
                        MXD_ST_MAX_HEADER_BYTES);
    char *json = mxd_new(st->al, n + 1, 1);
    if (!json) return no_memory(err);
    header h = {0};
    mxd_rc rc = read_at(f, sizeof head, json, n, err);
    if (!rc) rc = header_scan(&h, st->al, json, n, f->size - sizeof head - n, err);
    if (!rc &&
        (!EVP_DigestUpdate(st->sha, head, sizeof head) || !EVP_DigestUpdate(st->sha, json, n)))
        rc = mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
    f->data_at = sizeof head + n;
    if (!rc) rc = adopt(st, &h, file, f->data_at, err);
    if (h.al) header_deinit(&h);
    mxd_free(st->al, json);
    return rc;
}

static mxd_rc open_shard(mxd_st *st, uint32_t file, mxd_err *err) {
    shard *f = &st->shards[file];
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang us */
    if (f->fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot open '%s'", f->path);
    struct stat info;
    if (fstat(f->fd, &info) != 0 || !S_ISREG(info.st_mode))
        return mxd_fail(err, MXD_E_IO, "'%s' is not a regular file", f->path);
    f->size = (uint64_t)info.st_size;
    mxd_rc rc = read_header(st, file, err);
    return rc ? mxd_wrap(err, rc, "'%s'", f->path) : MXD_OK;
}

static bool is_model_file(const char *name) {
    static const char head[] = "model", tail[] = ".safetensors";
    size_t n = strlen(name);
    return n >= sizeof head - 1 + sizeof tail - 1 && memcmp(name, head, sizeof head - 1) == 0 &&
           strcmp(name + n - (sizeof tail - 1), tail) == 0;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const shard *)a)->path, ((const shard *)b)->path);
}

static mxd_rc add_path(mxd_st *st, const char *folder, const char *name, mxd_err *err) {
    if (st->n_shards == MXD_ST_MAX_SHARDS)
        return mxd_fail(err, MXD_E_TOOBIG, "'%s' has more than %d model*.safetensors", folder,
                        MXD_ST_MAX_SHARDS);
    mxd_buf path;
    mxd_buf_init(&path, st->al, 1 << 16);
    mxd_buf_printf(&path, "%s/%s", folder, name);
    if (path.rc) {
        mxd_rc rc = mxd_buf_rc(&path, "path", err);
        mxd_buf_deinit(&path);
        return rc;
    }
    st->shards[st->n_shards++] = (shard){.path = path.ptr, .fd = -1};
    return MXD_OK;
}

static mxd_rc list_folder(mxd_st *st, const char *folder, mxd_err *err) {
    DIR *dir = opendir(folder);
    if (!dir)
        return mxd_fail_sys(err, errno == ENOENT || errno == ENOTDIR ? MXD_E_NOTFOUND : MXD_E_IO,
                            "cannot open the folder '%s'", folder);
    mxd_rc rc = MXD_OK;
    const struct dirent *e;
    while (!rc && (e = readdir(dir)))
        if (is_model_file(e->d_name)) rc = add_path(st, folder, e->d_name, err);
    closedir(dir);
    if (!rc && !st->n_shards)
        rc = mxd_fail(err, MXD_E_NOTFOUND,
                      "no model*.safetensors in '%s': not an MLX model, or not fully downloaded",
                      folder);
    if (!rc) qsort(st->shards, st->n_shards, sizeof *st->shards, by_path);
    return rc;
}

static mxd_rc fill(mxd_st *st, const char *folder, mxd_err *err) {
    MXD_TRY(mxd_map_init(&st->by_name, st->al, 0, err));
    st->shards = MXD_NEW(st->al, MXD_ST_MAX_SHARDS, shard);
    if (!st->shards) return no_memory(err);
    MXD_TRY(list_folder(st, folder, err));
    st->sha = EVP_MD_CTX_new();
    if (!st->sha || !EVP_DigestInit_ex(st->sha, EVP_sha256(), NULL))
        return mxd_fail(err, MXD_E_NOMEM, "SHA-256 cannot start");
    for (size_t i = 0; i < st->n_shards; i++) MXD_TRY(open_shard(st, (uint32_t)i, err));
    if (!EVP_DigestFinal_ex(st->sha, st->hash, NULL))
        return mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
    return MXD_OK;
}

mxd_rc mxd_st_open(mxd_st **out, const mxd_alloc *al, const char *folder, mxd_err *err) {
    mxd_st *st = MXD_NEW(al, 1, mxd_st);
    if (!st) return no_memory(err);
    st->al = al;
    mxd_rc rc = fill(st, folder, err);
    if (rc)
        mxd_st_close(st);
    else
        *out = st;
    return rc;
}

void mxd_st_close(mxd_st *st) {
    if (!st) return;
    for (size_t i = 0; i < st->n_shards; i++) {
        if (st->shards[i].fd >= 0) close(st->shards[i].fd);
        mxd_free(st->al, st->shards[i].path);
        mxd_free(st->al, st->shards[i].names);
    }
    EVP_MD_CTX_free(st->sha);
    if (st->by_name.al) mxd_map_deinit(&st->by_name);
    mxd_free(st->al, st->tensors);
    mxd_free(st->al, st->shards);
    mxd_free(st->al, st);
}

const mxd_st_tensor *mxd_st_find(const mxd_st *st, const char *name) {
    uint64_t i;
    return mxd_map_get(&st->by_name, name, strlen(name), &i) ? &st->tensors[i] : NULL;
}

size_t mxd_st_count(const mxd_st *st) { return st->n; }

const mxd_st_tensor *mxd_st_at(const mxd_st *st, size_t i) {
    return i < st->n ? &st->tensors[i] : NULL;
}

size_t mxd_st_files(const mxd_st *st) { return st->n_shards; }

const char *mxd_st_file(const mxd_st *st, size_t i, uint64_t *bytes, uint64_t *header_bytes) {
    if (i >= st->n_shards) return NULL;
    if (bytes) *bytes = st->shards[i].size;
    if (header_bytes) *header_bytes = st->shards[i].data_at;
    return st->shards[i].path;
}

mxd_rc mxd_st_read(const mxd_st *st, const mxd_st_tensor *t, uint64_t from, void *dst, size_t n,
                   mxd_err *err) {
    if (from > t->bytes || n > t->bytes - from)
        return mxd_fail(err, MXD_E_INVAL, "tensor '%.100s': bytes %" PRIu64 " + %zu of %" PRIu64,
                        t->name, from, n, t->bytes);
    mxd_rc rc = read_at(&st->shards[t->file], t->offset + from, dst, n, err);
    return rc ? mxd_wrap(err, rc, "tensor '%.100s'", t->name) : MXD_OK;
}

const uint8_t *mxd_st_hash(const mxd_st *st) { return st->hash; }
