#include "base/crc32c.h"

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_acle.h>
#include <sys/auxv.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#endif

/* Slicing by 8 (Kounavis and Berry, 2005): eight tables, one per byte of a word. */
static uint32_t table[8][256];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t (*best)(uint32_t crc, const unsigned char *p, size_t n);

static inline uint32_t step_byte(uint32_t crc, unsigned char b) {
    return table[0][(crc ^ b) & 255] ^ crc >> 8;
}

static uint32_t by_table(uint32_t crc, const unsigned char *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint32_t next = 0;
        for (int i = 0; i < 8; i++) {
            uint32_t in = i < 4 ? crc >> 8 * i : 0; /* the old value meets the first four bytes */
            next ^= table[7 - i][(p[i] ^ in) & 255];
        }
        crc = next;
    }
    while (n--) crc = step_byte(crc, *p++);
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t by_instruction(uint32_t crc,
                                                                 const unsigned char *p, size_t n) {
    uint64_t c = crc;
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        c = _mm_crc32_u64(c, word);
    }
    crc = (uint32_t)c;
    while (n--) crc = _mm_crc32_u8(crc, *p++);
    return crc;
}

static bool has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }

#elif defined(__aarch64__)
#if defined(__clang__)
#define WITH_CRC __attribute__((target("crc")))
#else
#define WITH_CRC __attribute__((target("+crc")))
#endif
WITH_CRC static uint32_t by_instruction(uint32_t crc, const unsigned char *p, size_t n) {
    for (; n >= 8; p += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc = __crc32cd(crc, word);
    }
    while (n--) crc = __crc32cb(crc, *p++);
    return crc;
}

static bool has_instruction(void) {
#if defined(__linux__)
    enum { HWCAP_CRC32_BIT = 1 << 7 };
    return getauxval(AT_HWCAP) & HWCAP_CRC32_BIT;
#else
    return true; /* every Apple processor of this kind */
#endif
}
#else
static bool has_instruction(void) { return false; }
#define by_instruction by_table
#endif

static void set_up(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[0][i] = c;
    }
    for (int t = 1; t < 8; t++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t before = table[t - 1][i];
            table[t][i] = table[0][before & 255] ^ before >> 8;
        }
    best = has_instruction() ? by_instruction : by_table;
}

uint32_t mxd_crc32c(uint32_t crc, const void *bytes, size_t n) {
    pthread_once(&once, set_up);
    return ~best(~crc, bytes, n);
}

uint32_t mxd_crc32c_table(uint32_t crc, const void *bytes, size_t n) {
    pthread_once(&once, set_up);
    return ~by_table(~crc, bytes, n);
}
