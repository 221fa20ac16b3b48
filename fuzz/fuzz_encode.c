/* Text through a fixed small byte-level tokenizer that knows all bytes: without special tokens and
 * without normalising, what comes back is the text. The first byte cuts it into two spans. */
#include <stdlib.h>
#include <string.h>
#include "formats/utf8.h"
#include "fuzz.h"
#include "tokenizer/tokenizer.h"

static mxd_tokenizer *make(void) {
    mxd_tokenizer *t = NULL;
    mxd_err err;
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
    if (mxd_tokenizer_parse(&t, &mxd_alloc_libc, mxd_buf_str(&b), b.len, NULL, NULL, &err)) abort();
    mxd_buf_deinit(&b);
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size || size > 100000) return 0;
    const char *s = (const char *)data + 1;
    size_t n = size - 1, cut = data[0] < n ? data[0] : n;
    mxd_tokenizer *t = make();
    mxd_span spans[] = {{s, cut, true}, {s + cut, n - cut, false}};
    mxd_err err;
    mxd_ids ids;
    mxd_buf out;
    mxd_detok d;
    mxd_ids_init(&ids, &mxd_alloc_libc, 1 << 20);
    mxd_buf_init(&out, &mxd_alloc_libc, 1 << 22);
    mxd_detok_init(&d, t, false);
    mxd_rc rc = mxd_tokenizer_encode(t, spans, 2, false, &ids, &err);
    if ((rc == MXD_OK) != mxd_utf8_valid(s, n)) abort();
    for (size_t i = 0; i < ids.n; i++) {
        mxd_detok_push(&d, ids.ptr[i], &out);
        if (!mxd_utf8_valid(mxd_buf_str(&out), out.len)) abort();
    }
    mxd_detok_flush(&d, &out);
    if (!rc && (out.len != n || memcmp(mxd_buf_str(&out), s, n) != 0)) abort();
    for (size_t i = 0; i < n; i++) mxd_detok_push(&d, (int32_t)data[1 + i], &out);
    mxd_detok_flush(&d, &out);
    if (!mxd_utf8_valid(mxd_buf_str(&out), out.len)) abort();
    mxd_ids_deinit(&ids);
    mxd_buf_deinit(&out);
    mxd_tokenizer_close(t);
    return 0;
}
