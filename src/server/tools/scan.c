#include "server/tools/scan.h"

#include <string.h>

size_t mxd_blank_prefix(const char *s, size_t n) {
    size_t i = 0;
    while (i < n && mxd_is_blank(s[i])) i++;
    return i;
}

size_t mxd_blank_suffix(const char *s, size_t n) {
    size_t i = 0;
    while (i < n && mxd_is_blank(s[n - 1 - i])) i++;
    return i;
}

size_t mxd_scan_find(const char *s, size_t n, const char *marker) {
    size_t m = strlen(marker);
    for (size_t i = 0; i + m <= n; i++) {
        const char *at = memchr(s + i, marker[0], n - m - i + 1);
        if (!at) return n;
        i = (size_t)(at - s);
        if (memcmp(at, marker, m) == 0) return i;
    }
    return n;
}

size_t mxd_scan_find_last(const char *s, size_t n, const char *marker) {
    size_t m = strlen(marker);
    for (size_t i = n + 1; i-- > 0;)
        if (i + m <= n && memcmp(s + i, marker, m) == 0) return i;
    return n;
}

size_t mxd_scan_hold(const char *s, size_t n, const char *marker) {
    size_t m = strlen(marker), k = m - 1 < n ? m - 1 : n;
    while (k > 0 && memcmp(s + n - k, marker, k) != 0) k--;
    size_t blanks = mxd_blank_suffix(s, n - k);
    return blanks > MXD_SCAN_MAX_BLANKS ? k : k + blanks;
}
