#include "formats/utf8.h"

/* The second byte of a sequence is narrower than 80..BF after some first bytes: that is what keeps
 * out overlong forms (E0, F0), surrogates (ED) and values above U+10FFFF (F4).
 * Source: The Unicode Standard, table 3-7. */
static bool second_ok(unsigned char first, unsigned char second) {
    unsigned lo = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    unsigned hi = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    return second >= lo && second <= hi;
}

int mxd_utf8_next(const char *s, size_t n, uint32_t *cp) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    if (u[0] < 0xC2 || u[0] > 0xF4) return 0;
    int want = u[0] < 0xE0 ? 2 : u[0] < 0xF0 ? 3 : 4;
    uint32_t c = u[0] & (0xFFu >> (want + 1));
    for (int i = 1; i < want; i++) {
        if ((size_t)i == n) return -1;
        if (i == 1 ? !second_ok(u[0], u[1]) : (u[i] & 0xC0) != 0x80) return 0;
        c = c << 6 | (u[i] & 0x3F);
    }
    *cp = c;
    return want;
}

int mxd_utf8_put(char out[4], uint32_t cp) {
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF)) return 0;
    int n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (cp & 0x3F));
        cp >>= 6;
    }
    out[0] = (char)((0xF00u >> n & 0xFF) | cp);
    return n;
}

size_t mxd_utf8_whole(const char *s, size_t n, bool *bad) {
    size_t i = 0;
    *bad = false;
    while (i < n) {
        uint32_t cp;
        int k = (unsigned char)s[i] < 0x80 ? 1 : mxd_utf8_next(s + i, n - i, &cp);
        if (k <= 0) {
            *bad = k == 0;
            return i;
        }
        i += (size_t)k;
    }
    return i;
}

bool mxd_utf8_valid(const char *s, size_t n) {
    bool bad;
    return mxd_utf8_whole(s, n, &bad) == n;
}
