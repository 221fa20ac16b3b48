#include "net/frame.h"

#include <string.h>
#include "base/crc32c.h"

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };
enum {
    KEY_SEQ = 1 << 3 | WIRE_VARINT,
    KEY_KIND = 2 << 3 | WIRE_VARINT,
    KEY_CRC = 3 << 3 | WIRE_32,
    KEY_HEAD = 4 << 3 | WIRE_BYTES,
    KEY_PAYLOAD = 15 << 3 | WIRE_BYTES,
    KEY_NODE = 1 << 3 | WIRE_BYTES,
    KEY_SECRET = 2 << 3 | WIRE_BYTES,
    KEY_CSR = 3 << 3 | WIRE_BYTES,
    KEY_CHAIN = 1 << 3 | WIRE_BYTES,
};

/* -------------------------------------------------------------------------------------- writing */

static size_t varint_size(uint64_t v) {
    size_t n = 1;
    for (; v >= 0x80; v >>= 7) n++;
    return n;
}

static uint8_t *put_varint(uint8_t *p, uint64_t v) {
    for (; v >= 0x80; v >>= 7) *p++ = (uint8_t)(v | 0x80);
    *p++ = (uint8_t)v;
    return p;
}

static uint8_t *put_bytes(uint8_t *p, uint8_t key, const void *bytes, size_t n) {
    *p++ = key;
    p = put_varint(p, n);
    if (n) memcpy(p, bytes, n);
    return p + n;
}

static size_t bytes_size(size_t n) { return 1 + varint_size(n) + n; }

size_t mxd_frame_head_size(const mxd_frame_head *f) {
    size_t n = 1 + varint_size(f->seq) + 1 + varint_size(f->kind) + 1 + 4;
    n += bytes_size(f->head_bytes);
    return f->payload_bytes ? n + 1 + varint_size(f->payload_bytes) : n;
}

void mxd_frame_put_head(uint8_t *p, const mxd_frame_head *f) {
    *p++ = KEY_SEQ;
    p = put_varint(p, f->seq);
    *p++ = KEY_KIND;
    p = put_varint(p, f->kind);
    *p++ = KEY_CRC;
    for (int i = 0; i < 4; i++) *p++ = (uint8_t)(f->crc >> 8 * i);
    p = put_bytes(p, KEY_HEAD, f->head, f->head_bytes);
    if (!f->payload_bytes) return;
    *p++ = KEY_PAYLOAD;
    put_varint(p, f->payload_bytes);
}

uint32_t mxd_frame_crc(const void *head, size_t head_bytes, const mxd_blob *payload) {
    uint32_t crc = mxd_crc32c(0, head, head_bytes);
    return payload ? mxd_crc32c(crc, payload->bytes, payload->len) : crc;
}

/* -------------------------------------------------------------------------------------- reading */

/* A position in the pieces. left: bytes of the message not yet taken, over all pieces. */
typedef struct cursor {
    const mxd_frame_source *src;
    const uint8_t *p, *end;
    size_t left;
} cursor;

static bool fill(cursor *c) {
    while (c->p == c->end) {
        size_t n = 0;
        if (!c->left || !c->src->next(c->src->ctx, &c->p, &n)) return false;
        if (n > c->left) n = c->left;
        c->end = c->p + n;
    }
    return true;
}

static bool get_varint(cursor *c, uint64_t *v) {
    *v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        if (!fill(c)) return false;
        uint8_t b = *c->p++;
        c->left--;
        *v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) return true;
    }
    return false;
}

/* Moves n bytes to dst, or drops them if dst is NULL. */
static bool get_bytes(cursor *c, uint8_t *dst, uint64_t n) {
    if (n > c->left) return false;
    while (n) {
        if (!fill(c)) return false;
        size_t part = (size_t)(c->end - c->p);
        if (part > n) part = (size_t)n;
        if (dst) {
            memcpy(dst, c->p, part);
            dst += part;
        }
        c->p += part;
        c->left -= part;
        n -= part;
    }
    return true;
}

static bool skip_field(cursor *c, uint64_t key) {
    uint64_t v;
    if (key >> 3 == 0) return false;
    switch (key & 7) {
    case WIRE_VARINT:
        return get_varint(c, &v);
    case WIRE_64:
        return get_bytes(c, NULL, 8);
    case WIRE_BYTES:
        return get_varint(c, &v) && get_bytes(c, NULL, v);
    case WIRE_32:
        return get_bytes(c, NULL, 4);
    default:
        return false;
    }
}

static mxd_rc malformed(mxd_err *err, const char *what) {
    return mxd_fail(err, MXD_E_FORMAT, "message from a peer: %s", what);
}

/* A length and that many bytes, in a new blob of at most max_bytes. */
static mxd_rc get_blob(cursor *c, const mxd_alloc *al, size_t max_bytes, mxd_blob **out,
                       mxd_err *err) {
    uint64_t n;
    if (*out) return malformed(err, "a field stands twice");
    if (!get_varint(c, &n) || n > c->left)
        return malformed(err, "a length is longer than the message");
    if (n > max_bytes)
        return mxd_fail(err, MXD_E_TOOBIG, "message from a peer: %llu bytes, the limit is %zu",
                        (unsigned long long)n, max_bytes);
    *out = mxd_blob_raw(al, (size_t)n);
    if (!*out) return mxd_fail(err, MXD_E_NOMEM, "no memory for a message of %zu bytes", (size_t)n);
    if (!get_bytes(c, (*out)->bytes, n)) return malformed(err, "it ends too early");
    return MXD_OK;
}

void mxd_frame_deinit(mxd_frame *f) {
    mxd_blob_release(f->head);
    mxd_blob_release(f->payload);
    *f = (mxd_frame){0};
}

static size_t room_left(const mxd_frame *f) {
    size_t used = (f->head ? f->head->len : 0) + (f->payload ? f->payload->len : 0);
    return MXD_MAX_FRAME_BYTES - used;
}

static mxd_rc get_kind(cursor *c, uint32_t *kind, mxd_err *err) {
    uint64_t v;
    if (!get_varint(c, &v) || v > UINT32_MAX) return malformed(err, "bad kind");
    *kind = (uint32_t)v;
    return MXD_OK;
}

static mxd_rc get_crc(cursor *c, uint32_t *crc, mxd_err *err) {
    uint8_t b[4];
    if (!get_bytes(c, b, 4)) return malformed(err, "it ends too early");
    *crc = b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
    return MXD_OK;
}

static mxd_rc get_frame_field(cursor *c, const mxd_alloc *al, mxd_frame *f, uint32_t *crc,
                              mxd_err *err) {
    uint64_t key;
    if (!get_varint(c, &key)) return malformed(err, "bad key");
    switch (key) {
    case KEY_SEQ:
        return get_varint(c, &f->seq) ? MXD_OK : malformed(err, "bad seq");
    case KEY_KIND:
        return get_kind(c, &f->kind, err);
    case KEY_CRC:
        return get_crc(c, crc, err);
    case KEY_HEAD:
        return get_blob(c, al, room_left(f), &f->head, err);
    case KEY_PAYLOAD:
        return get_blob(c, al, room_left(f), &f->payload, err);
    default:
        return skip_field(c, key) ? MXD_OK : malformed(err, "bad field");
    }
}

static mxd_rc finish_frame(const mxd_alloc *al, mxd_frame *f, uint32_t crc, mxd_err *err) {
    if (!f->head && !(f->head = mxd_blob_new(al, 0)))
        return mxd_fail(err, MXD_E_NOMEM, "no memory for a message");
    if (f->payload && f->payload->len == 0) {
        mxd_blob_release(f->payload);
        f->payload = NULL;
    }
    if (mxd_frame_crc(f->head->bytes, f->head->len, f->payload) != crc)
        return malformed(err, "its checksum is wrong; it was damaged on the way");
    return MXD_OK;
}

mxd_rc mxd_frame_read(const mxd_alloc *al, const mxd_frame_source *src, mxd_frame *out,
                      mxd_err *err) {
    cursor c = {.src = src, .left = src->total_bytes};
    uint32_t crc = 0;
    mxd_rc rc = MXD_OK;
    *out = (mxd_frame){0};
    while (c.left && !rc) rc = get_frame_field(&c, al, out, &crc, err);
    if (!rc) rc = finish_frame(al, out, crc, err);
    if (rc) mxd_frame_deinit(out);
    return rc;
}

/* ------------------------------------------------------------------------------------ enrolment */

/* A text field as a C string; a NUL inside is refused. */
static mxd_rc get_text(cursor *c, const mxd_alloc *al, char **out, mxd_err *err) {
    uint64_t n;
    if (*out) return malformed(err, "a field stands twice");
    if (!get_varint(c, &n) || n > c->left)
        return malformed(err, "a length is longer than the message");
    char *s = MXD_NEW(al, (size_t)n + 1, char);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "no memory for an enrolment");
    *out = s;
    if (!get_bytes(c, (uint8_t *)s, n) || memchr(s, 0, (size_t)n))
        return malformed(err, "a text is broken");
    return MXD_OK;
}

static mxd_rc check_enroll_size(const mxd_frame_source *src, mxd_err *err) {
    if (src->total_bytes <= MXD_ENROLL_MAX_BYTES) return MXD_OK;
    return mxd_fail(err, MXD_E_TOOBIG, "enrolment of %zu bytes, the limit is %d", src->total_bytes,
                    MXD_ENROLL_MAX_BYTES);
}

void mxd_enroll_request_deinit(const mxd_alloc *al, mxd_enroll_request *r) {
    mxd_free(al, r->node);
    mxd_free(al, r->secret);
    mxd_free(al, r->csr);
    *r = (mxd_enroll_request){0};
}

static mxd_rc get_request_field(cursor *c, const mxd_alloc *al, mxd_enroll_request *r,
                                mxd_err *err) {
    uint64_t key;
    if (!get_varint(c, &key)) return malformed(err, "bad key");
    switch (key) {
    case KEY_NODE:
        return get_text(c, al, &r->node, err);
    case KEY_SECRET:
        return get_text(c, al, &r->secret, err);
    case KEY_CSR:
        return get_text(c, al, &r->csr, err);
    default:
        return skip_field(c, key) ? MXD_OK : malformed(err, "bad field");
    }
}

mxd_rc mxd_enroll_request_read(const mxd_alloc *al, const mxd_frame_source *src,
                               mxd_enroll_request *out, mxd_err *err) {
    cursor c = {.src = src, .left = src->total_bytes};
    *out = (mxd_enroll_request){0};
    mxd_rc rc = check_enroll_size(src, err);
    while (c.left && !rc) rc = get_request_field(&c, al, out, err);
    char **texts[] = {&out->node, &out->secret, &out->csr};
    for (size_t i = 0; i < MXD_COUNT(texts) && !rc; i++) {
        if (!*texts[i]) *texts[i] = mxd_strdup(al, "");
        if (!*texts[i]) rc = mxd_fail(err, MXD_E_NOMEM, "no memory for an enrolment");
    }
    if (rc) mxd_enroll_request_deinit(al, out);
    return rc;
}

mxd_blob *mxd_enroll_request_write(const mxd_alloc *al, const char *node, const char *secret,
                                   const char *csr) {
    size_t n = strlen(node), s = strlen(secret), r = strlen(csr);
    mxd_blob *b = mxd_blob_new(al, bytes_size(n) + bytes_size(s) + bytes_size(r));
    if (!b) return NULL;
    uint8_t *p = put_bytes(b->bytes, KEY_NODE, node, n);
    p = put_bytes(p, KEY_SECRET, secret, s);
    put_bytes(p, KEY_CSR, csr, r);
    return b;
}

mxd_blob *mxd_enroll_reply_write(const mxd_alloc *al, const mxd_blob *chain) {
    mxd_blob *b = mxd_blob_new(al, bytes_size(chain->len));
    if (b) put_bytes(b->bytes, KEY_CHAIN, chain->bytes, chain->len);
    return b;
}

static mxd_rc get_reply_field(cursor *c, const mxd_alloc *al, char **chain, mxd_err *err) {
    uint64_t key;
    if (!get_varint(c, &key)) return malformed(err, "bad key");
    if (key == KEY_CHAIN) return get_text(c, al, chain, err);
    return skip_field(c, key) ? MXD_OK : malformed(err, "bad field");
}

mxd_rc mxd_enroll_reply_read(const mxd_alloc *al, const mxd_frame_source *src, char **chain,
                             mxd_err *err) {
    cursor c = {.src = src, .left = src->total_bytes};
    *chain = NULL;
    mxd_rc rc = check_enroll_size(src, err);
    while (c.left && !rc) rc = get_reply_field(&c, al, chain, err);
    if (!rc && !*chain) rc = malformed(err, "the reply holds no certificate");
    if (!rc) return MXD_OK;
    mxd_free(al, *chain);
    *chain = NULL;
    return rc;
}
