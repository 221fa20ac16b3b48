#include "base/crc32c.h"
#include "base/rand.h"
#include "test.h"

/* RFC 3720, B.4, and the check value of the catalogue of CRC parameters. */
TEST(crc32c_known_values) {
    unsigned char zero[32] = {0}, ones[32], up[32], down[32];
    memset(ones, 255, sizeof ones);
    for (int i = 0; i < 32; i++) {
        up[i] = (unsigned char)i;
        down[i] = (unsigned char)(31 - i);
    }
    const struct {
        const void *p;
        size_t n;
        uint32_t want;
    } rows[] = {{"", 0, 0},
                {"123456789", 9, 0xe3069283},
                {zero, 32, 0x8a9136aa},
                {ones, 32, 0x62a8ab43},
                {up, 32, 0x46dd794e},
                {down, 32, 0x113fdb5c}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        CHECK_EQ(mxd_crc32c(0, rows[i].p, rows[i].n), rows[i].want);
        CHECK_EQ(mxd_crc32c_table(0, rows[i].p, rows[i].n), rows[i].want);
    }
}

TEST(crc32c_paths_agree_at_every_length_offset_and_cut) {
    unsigned char b[600];
    for (size_t i = 0; i < sizeof b; i++) b[i] = (unsigned char)mxd_rand_u64(7, 1, i);
    for (size_t off = 0; off < 9; off++)
        for (size_t n = 0; n + off <= 300; n++) {
            uint32_t whole = mxd_crc32c(0, b + off, n);
            CHECK_EQ(mxd_crc32c_table(0, b + off, n), whole);
            size_t cut = n * 3 / 7;
            CHECK_EQ(mxd_crc32c(mxd_crc32c(0, b + off, cut), b + off + cut, n - cut), whole);
        }
}
