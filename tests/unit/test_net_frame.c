/* The wire format, without a transport: round trips, lies, cuts anywhere. */
#include "net/frame.h"
#include "test.h"

/* Bytes handed out in pieces of `part`, with an empty piece after each. */
typedef struct pieces {
    const uint8_t *p;
    size_t n, at, part;
    bool empty_next;
} pieces;

static bool next_piece(void *ctx, const uint8_t **p, size_t *n) {
    pieces *s = ctx;
    if (s->at == s->n) return false;
    *p = s->p + s->at;
    *n = 0;
    s->empty_next = !s->empty_next;
    if (!s->empty_next) return true;
    *n = s->part < s->n - s->at ? s->part : s->n - s->at;
    s->at += *n;
    return true;
}

static mxd_rc read_pieces(const mxd_alloc *al, const uint8_t *p, size_t n, size_t part,
                          mxd_frame *out, mxd_err *err) {
    pieces s = {p, n, 0, part, false};
    mxd_frame_source src = {next_piece, &s, n};
    return mxd_frame_read(al, &src, out, err);
}

static size_t write_frame(uint8_t *out, uint64_t seq, uint32_t kind, const char *head,
                          const char *payload) {
    mxd_blob b = {.bytes = (unsigned char *)(uintptr_t)payload, .len = strlen(payload)};
    mxd_frame_head h = {.seq = seq,
                        .kind = kind,
                        .crc = mxd_frame_crc(head, strlen(head), &b),
                        .head = head,
                        .head_bytes = strlen(head),
                        .payload_bytes = strlen(payload)};
    size_t n = mxd_frame_head_size(&h);
    mxd_frame_put_head(out, &h);
    memcpy(out + n, payload, strlen(payload));
    return n + strlen(payload);
}

TEST(frame_round_trip_cut_anywhere) {
    static const struct {
        uint64_t seq;
        uint32_t kind;
        const char *head, *payload;
    } rows[] = {{0, 0, "", ""},
                {1, 1, "h", ""},
                {127, 128, "", "p"},
                {UINT64_MAX, UINT32_MAX, "a head", "and some payload of more than a few bytes"}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        uint8_t bytes[256];
        size_t n = write_frame(bytes, rows[i].seq, rows[i].kind, rows[i].head, rows[i].payload);
        for (size_t part = 1; part <= n; part++) {
            mxd_frame f;
            mxd_err err = {0};
            CHECK_OK(read_pieces(&mxd_alloc_libc, bytes, n, part, &f, &err), &err);
            CHECK(f.seq == rows[i].seq && f.kind == rows[i].kind);
            CHECK_EQ(f.head->len, strlen(rows[i].head));
            CHECK(memcmp(f.head->bytes, rows[i].head, f.head->len) == 0);
            CHECK_EQ(f.payload ? f.payload->len : 0, strlen(rows[i].payload));
            CHECK(!f.payload || memcmp(f.payload->bytes, rows[i].payload, f.payload->len) == 0);
            mxd_frame_deinit(&f);
        }
    }
}

TEST(frame_damage_of_any_bit_of_the_contents_is_seen) {
    uint8_t bytes[64];
    size_t n = write_frame(bytes, 1, 2, "head", "payload");
    size_t contents = n - strlen("payload") - 2 - strlen("head");
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            mxd_frame f;
            mxd_err err = {0};
            bytes[i] ^= (uint8_t)(1 << bit);
            mxd_rc rc = read_pieces(&mxd_alloc_libc, bytes, n, n, &f, &err);
            if (i >= contents) CHECK(rc == MXD_E_FORMAT || rc == MXD_E_TOOBIG);
            if (!rc) mxd_frame_deinit(&f);
            bytes[i] ^= (uint8_t)(1 << bit);
        }
    for (size_t cut = 5; cut < n; cut++) { /* seq and kind alone are an empty message */
        mxd_frame f;
        mxd_err err = {0};
        CHECK(read_pieces(&mxd_alloc_libc, bytes, cut, cut, &f, &err) != MXD_OK);
    }
}

/* Each row is one way to lie, or one thing that a newer peer may do. */
TEST(frame_lies) {
    static const struct {
        const char *why;
        size_t n;
        uint8_t bytes[24];
        mxd_rc want;
    } rows[] = {
        {"an empty message is a frame of zeroes", 0, {0}, MXD_OK},
        {"payload without its checksum", 3, {0x7a, 1, 'x'}, MXD_E_FORMAT},
        {"payload shorter than its length", 3, {0x7a, 5, 'x'}, MXD_E_FORMAT},
        {"payload of 2^63",
         11,
         {0x7a, 0x80, 128, 128, 128, 128, 128, 128, 128, 128, 1},
         MXD_E_FORMAT},
        {"payload of 2^64 - 1",
         12,
         {0x7a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 'x'},
         MXD_E_FORMAT},
        {"payload of 4 GiB in a small message",
         7,
         {0x7a, 0x80, 0x80, 0x80, 0x80, 0x10, 'x'},
         MXD_E_FORMAT},
        {"head of 4 MiB in a small message", 6, {0x22, 0x80, 0x80, 0x80, 0x02, 'x'}, MXD_E_FORMAT},
        {"varint that never ends",
         12,
         {8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
         MXD_E_FORMAT},
        {"key without a value", 1, {8}, MXD_E_FORMAT},
        {"length without an end", 2, {0x7a, 0x80}, MXD_E_FORMAT},
        {"kind over 32 bits", 6, {0x10, 0x80, 0x80, 0x80, 0x80, 0x10}, MXD_E_FORMAT},
        {"half a checksum", 3, {0x1d, 1, 2}, MXD_E_FORMAT},
        {"head twice", 4, {0x22, 0, 0x22, 0}, MXD_E_FORMAT},
        {"payload twice", 4, {0x7a, 0, 0x7a, 0}, MXD_E_FORMAT},
        {"wire type 7", 2, {0x37, 1}, MXD_E_FORMAT},
        {"a group", 2, {0x33, 0x34}, MXD_E_FORMAT},
        {"field number 0", 2, {0x00, 1}, MXD_E_FORMAT},
        {"seq with the wire type of bytes is unknown", 3, {0x0a, 1, 'x'}, MXD_OK},
        {"unknown varint, then seq", 4, {0x28, 9, 8, 1}, MXD_OK},
        {"unknown bytes", 4, {0x2a, 2, 'a', 'b'}, MXD_OK},
        {"unknown fixed32", 5, {0x35, 1, 2, 3, 4}, MXD_OK},
        {"unknown fixed64", 9, {0x31, 1, 2, 3, 4, 5, 6, 7, 8}, MXD_OK},
        {"unknown bytes longer than the message", 3, {0x2a, 9, 'a'}, MXD_E_FORMAT},
        {"unknown fixed64 cut", 5, {0x31, 1, 2, 3, 4}, MXD_E_FORMAT},
        {"an empty payload is none", 2, {0x7a, 0}, MXD_OK},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++)
        for (size_t part = 1; part <= 3; part++) {
            mxd_frame f;
            mxd_err err = {0};
            mxd_rc rc = read_pieces(&mxd_alloc_libc, rows[i].bytes, rows[i].n, part, &f, &err);
            if (rc != rows[i].want) fail_msg("%s: %s", rows[i].why, mxd_rc_name(rc));
            CHECK(rc || (f.head && !f.payload));
            mxd_frame_deinit(&f);
        }
}

/* A source that says it is longer than it is. */
TEST(frame_from_a_source_that_ends_early) {
    uint8_t bytes[64];
    size_t n = write_frame(bytes, 1, 2, "head", "payload");
    pieces s = {bytes, n - 3, 0, 5, false};
    mxd_frame_source src = {next_piece, &s, n};
    mxd_frame f;
    mxd_err err = {0};
    CHECK_EQ(mxd_frame_read(&mxd_alloc_libc, &src, &f, &err), MXD_E_FORMAT);
    CHECK(!f.head && !f.payload);
}

TEST(frame_limit_counts_head_and_payload_together) {
    for (int over = -1; over <= 1; over++) {
        size_t payload = (size_t)(MXD_MAX_FRAME_BYTES - 10 + over), cap = payload + 128;
        uint8_t *bytes = MXD_NEW(&mxd_alloc_libc, cap, uint8_t);
        CHECK(bytes);
        mxd_blob b = {.bytes = bytes + 64, .len = payload};
        mxd_frame_head h = {.seq = 1,
                            .crc = mxd_frame_crc("0123456789", 10, &b),
                            .head = "0123456789",
                            .head_bytes = 10,
                            .payload_bytes = payload};
        size_t n = mxd_frame_head_size(&h);
        CHECK(n < 64);
        mxd_frame_put_head(bytes, &h);
        mxd_frame f;
        mxd_err err = {0};
        mxd_rc rc = read_pieces(&mxd_alloc_libc, bytes, n + payload, 8192, &f, &err);
        CHECK_EQ(rc, over > 0 ? MXD_E_TOOBIG : MXD_OK);
        mxd_frame_deinit(&f);
        mxd_free(&mxd_alloc_libc, bytes);
    }
}

TEST_OOM(frame_read_survives_short_memory) {
    uint8_t bytes[64];
    size_t n = write_frame(bytes, 1, 2, "head", "payload");
    mxd_frame f;
    MXD_TRY(read_pieces(al, bytes, n, 5, &f, err));
    mxd_frame_deinit(&f);
    return MXD_OK;
}

static mxd_rc read_enroll(const mxd_alloc *al, const uint8_t *p, size_t n, size_t part,
                          mxd_enroll_request *r, mxd_err *err) {
    pieces s = {p, n, 0, part, false};
    mxd_frame_source src = {next_piece, &s, n};
    return mxd_enroll_request_read(al, &src, r, err);
}

TEST_OOM(enroll_request_round_trip) {
    mxd_blob *b = mxd_enroll_request_write(al, "node-a", "secret", "csr text");
    if (!b) return mxd_fail(err, MXD_E_NOMEM, "no memory");
    mxd_enroll_request r = {0};
    mxd_rc rc = MXD_OK;
    for (size_t part = 1; part <= b->len && !rc; part++) {
        rc = read_enroll(al, b->bytes, b->len, part, &r, err);
        if (rc) break;
        CHECK_STR(r.node, "node-a");
        CHECK_STR(r.secret, "secret");
        CHECK_STR(r.csr, "csr text");
        mxd_enroll_request_deinit(al, &r);
    }
    mxd_blob_release(b);
    return rc;
}

TEST(enroll_request_lies) {
    static const struct {
        const char *why;
        size_t n;
        uint8_t bytes[16];
        mxd_rc want;
    } rows[] = {
        {"nothing", 0, {0}, MXD_OK},
        {"text longer than the message", 3, {0x0a, 9, 'x'}, MXD_E_FORMAT},
        {"a NUL inside", 5, {0x0a, 3, 'x', 0, 'y'}, MXD_E_FORMAT},
        {"node twice", 6, {0x0a, 1, 'x', 0x0a, 1, 'y'}, MXD_E_FORMAT},
        {"length of 2^64 - 1",
         11,
         {0x0a, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1},
         MXD_E_FORMAT},
        {"unknown field", 2, {0x48, 1}, MXD_OK},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_enroll_request r;
        mxd_err err = {0};
        mxd_rc rc = read_enroll(&mxd_alloc_libc, rows[i].bytes, rows[i].n, 2, &r, &err);
        if (rc != rows[i].want) fail_msg("%s: %s", rows[i].why, mxd_rc_name(rc));
        mxd_enroll_request_deinit(&mxd_alloc_libc, &r);
    }
}

TEST(enroll_request_limit) {
    static char csr[MXD_ENROLL_MAX_BYTES + 2];
    size_t frame = 2 + 2 + 1 + 2; /* two empty texts, key and length of the third */
    for (int over = -1; over <= 1; over++) {
        size_t n = (size_t)(MXD_ENROLL_MAX_BYTES + over) - frame;
        memset(csr, 'c', n);
        csr[n] = '\0';
        mxd_blob *b = mxd_enroll_request_write(&mxd_alloc_libc, "", "", csr);
        CHECK(b);
        CHECK_EQ(b->len, MXD_ENROLL_MAX_BYTES + over);
        mxd_enroll_request r;
        mxd_err err = {0};
        mxd_rc rc = read_enroll(&mxd_alloc_libc, b->bytes, b->len, 1000, &r, &err);
        CHECK_EQ(rc, over > 0 ? MXD_E_TOOBIG : MXD_OK);
        mxd_enroll_request_deinit(&mxd_alloc_libc, &r);
        mxd_blob_release(b);
    }
}
