/* A tokenizer.json; one that loads must encode and decode a small text. */
#include <string.h>
#include "fuzz.h"
#include "tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        "Hello <|im_start|> w\xc3\xb6rld 123\n\n\xe2\x96\x81 \xf0\x9f\x98\x80";
    mxd_tokenizer *t = NULL;
    mxd_err err;
    if (mxd_tokenizer_parse(&t, &mxd_alloc_libc, (const char *)data, size, NULL, NULL, &err))
        return 0;
    mxd_span spans[] = {{text, 18, true}, {text + 18, sizeof text - 19, false}};
    mxd_ids ids;
    mxd_buf out;
    mxd_detok d;
    mxd_ids_init(&ids, &mxd_alloc_libc, 1000);
    mxd_buf_init(&out, &mxd_alloc_libc, 1 << 20);
    mxd_detok_init(&d, t, false);
    (void)!mxd_tokenizer_encode(t, spans, 2, true, &ids, &err);
    for (size_t i = 0; i < ids.n; i++) mxd_detok_push(&d, ids.ptr[i], &out);
    mxd_detok_flush(&d, &out);
    mxd_ids_deinit(&ids);
    mxd_buf_deinit(&out);
    mxd_tokenizer_close(t);
    return 0;
}
