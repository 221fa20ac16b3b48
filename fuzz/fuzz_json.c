/* What parses must print, and print the same after another parse. */
#include <stdlib.h>
#include "formats/json.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mxd_err err;
    json_t *v = NULL, *again = NULL;
    mxd_buf b;
    if (mxd_json_parse(&v, (const char *)data, size, &err)) return 0;
    mxd_buf_init(&b, &mxd_alloc_libc, 64 << 20);
    mxd_json_write(&b, v, &(mxd_json_style){.ascii_only = size & 1, .compact = size & 2});
    if (b.rc || mxd_json_parse(&again, mxd_buf_str(&b), b.len, &err) || !json_equal(v, again))
        abort();
    json_decref(v);
    json_decref(again);
    mxd_buf_deinit(&b);
    return 0;
}
