/* scan.h - looking for a marker in text that arrives in pieces. Pure. */
#ifndef MXD_SERVER_TOOLS_SCAN_H
#define MXD_SERVER_TOOLS_SCAN_H

#include <stdbool.h>
#include <stddef.h>

enum { MXD_SCAN_MAX_BLANKS = 256 }; /* white space that is held back; more is given out */

static inline bool mxd_is_blank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
size_t mxd_blank_prefix(const char *s, size_t n);
size_t mxd_blank_suffix(const char *s, size_t n);

/* Offset of the first `marker` in s[0..n); n when there is none. */
size_t mxd_scan_find(const char *s, size_t n, const char *marker);
size_t mxd_scan_find_last(const char *s, size_t n, const char *marker); /* n: none */

/* How many bytes at the end of s may be the beginning of the marker, white space before it
 * included: they must wait. */
size_t mxd_scan_hold(const char *s, size_t n, const char *marker);

#endif
