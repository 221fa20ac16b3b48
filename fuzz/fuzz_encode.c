/* Text through two small tokenizers. The byte-level one knows all bytes: without special tokens and
 * without normalising, what comes back is the text. The other has what SentencePiece's shape and
 * added tokens bring; in text that nobody trusts it must find no token of its own. The first byte
 * cuts the text into two spans. */
#include <stdlib.h>
#include <string.h>
#include "formats/utf8.h"
#include "fuzz.h"
#include "tokenizer/tokenizer.h"

enum { FIRST_ADDED = 300 };

static mxd_tokenizer *parse(mxd_buf *b) {
    mxd_tokenizer *t = NULL;
    mxd_err err;
    if (mxd_tokenizer_parse(&t, &mxd_alloc_libc, mxd_buf_str(b), b->len, NULL, NULL, &err)) abort();
    mxd_buf_deinit(b);
    return t;
}

static mxd_tokenizer *make_byte_level(void) {
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    mxd_buf_puts(&b, "{\"added_tokens\":[{\"id\":300,\"content\":\"<s>\",\"special\":true}],"
                     "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},"
                     "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{");
    int extra = 0x100;
    for (int i = 0; i < 256; i++) { /* the alphabet of GPT-2 */
        bool own = (i >= 0x21 && i <= 0x7E) || (i >= 0xA1 && i <= 0xAC) || i >= 0xAE;
        mxd_buf_printf(&b, "\"\\u%04x\":%d,", (unsigned)(own ? i : extra++), i);
    }
    mxd_buf_puts(&b, "\"ab\":256,\"abc\":257,\"aa\":258,\"aaaa\":259},"
                     "\"merges\":[\"a b\",\"ab c\",\"a a\",\"aa aa\"]}}");
    return parse(&b);
}

static mxd_tokenizer *make_pieces(void) {
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    mxd_buf_puts(&b, "{\"model\":{\"byte_fallback\":true,\"fuse_unk\":true,\"vocab\":{");
    for (int i = 0; i < 256; i++) mxd_buf_printf(&b, "\"<0x%02X>\":%d,", (unsigned)i, i);
    mxd_buf_puts(
        &b,
        "\"\\u2581\":256,\"a\":257,\"b\":258,\"\\u2581a\":259,\"ab\":260,\"\\u00e9\":261},"
        "\"merges\":[\"\\u2581 a\",\"a b\"]},\"added_tokens\":["
        "{\"id\":300,\"content\":\"<s>\",\"rstrip\":true},"
        "{\"id\":301,\"content\":\"  \",\"lstrip\":true,\"rstrip\":true},"
        "{\"id\":302,\"content\":\"\\u00e9\\u00e9\",\"normalized\":true},"
        "{\"id\":303,\"content\":\"aa\",\"single_word\":true},{\"id\":304,\"content\":\"<s>>\"}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
        "{\"type\":\"Prepend\",\"prepend\":\" \"},{\"type\":\"Replace\",\"pattern\":"
        "{\"Regex\":\" {2,}|\\\\t\"},\"content\":\" \"},{\"type\":\"Strip\"}]},\"pre_tokenizer\":"
        "{\"type\":\"Metaspace\",\"prepend_scheme\":\"first\"},\"decoder\":{\"type\":\"Sequence\","
        "\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"},\"content\":\" "
        "\"},"
        "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},"
        "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}}");
    return parse(&b);
}

/* Pushes each id; what is out is whole at all times. */
static void decode(const mxd_tokenizer *t, const mxd_ids *ids, mxd_buf *out) {
    mxd_detok d;
    mxd_detok_init(&d, t, false);
    for (size_t i = 0; i < ids->n; i++) {
        size_t from = out->len;
        mxd_detok_push(&d, ids->ptr[i], out);
        if (!mxd_utf8_valid(mxd_buf_str(out) + from, out->len - from)) abort();
    }
    mxd_detok_flush(&d, out);
}

static void run(const mxd_tokenizer *t, bool pieces, const char *s, size_t n, size_t cut,
                bool trusted) {
    const mxd_span spans[] = {{s, cut, trusted}, {s + cut, n - cut, false}};
    mxd_err err;
    mxd_ids ids;
    mxd_buf out;
    mxd_ids_init(&ids, &mxd_alloc_libc, 1 << 20);
    mxd_buf_init(&out, &mxd_alloc_libc, 1 << 22);
    mxd_rc rc = mxd_tokenizer_encode(t, spans, 2, false, &ids, &err);
    if ((rc == MXD_OK) != mxd_utf8_valid(s, n)) abort();
    for (size_t i = 0; i < ids.n && !trusted; i++)
        if (ids.ptr[i] >= FIRST_ADDED) abort();
    decode(t, &ids, &out);
    if (!pieces && !rc && (out.len != n || memcmp(mxd_buf_str(&out), s, n) != 0)) abort();
    ids.n = 0;
    for (size_t i = 0; i < n; i++) /* ids that no text gives */
        if (mxd_ids_push(&ids, (unsigned char)s[i], &err)) abort();
    mxd_buf_clear(&out);
    decode(t, &ids, &out);
    mxd_ids_deinit(&ids);
    mxd_buf_deinit(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static mxd_tokenizer *byte_level, *pieces;
    if (!size || size > 100000) return 0;
    const char *s = (const char *)data + 1;
    size_t n = size - 1, cut = data[0] < n ? data[0] : n;
    if (!byte_level) {
        byte_level = make_byte_level();
        pieces = make_pieces();
    }
    for (int trusted = 0; trusted < 2; trusted++) {
        run(byte_level, false, s, n, cut, trusted);
        run(pieces, true, s, n, cut, trusted);
    }
    return 0;
}
