/* A header, with the number of data bytes in front (8 bytes little-endian). */
#include <string.h>
#include "formats/safetensors.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mxd_err err;
    uint64_t n = 0;
    if (size < 8) return 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | data[i];
    (void)!mxd_st_check_header(&mxd_alloc_libc, (const char *)data + 8, size - 8, n, &err);
    return 0;
}
