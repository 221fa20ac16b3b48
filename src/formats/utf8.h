/* utf8.h - strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
 * Trust: hostile bytes. Threads: reentrant. */
#ifndef MXD_FORMATS_UTF8_H
#define MXD_FORMATS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the code point at s (1..4) and its value; 0 when the bytes there are invalid, -1 when
 * they are a valid beginning that n cuts off. n >= 1. */
int mxd_utf8_next(const char *s, size_t n, uint32_t *cp);

/* Writes 1..4 bytes; 0 when cp is not a scalar value. */
int mxd_utf8_put(char out[4], uint32_t cp);

bool mxd_utf8_valid(const char *s, size_t n);

/* How many leading bytes of s form whole, valid code points; *bad tells whether the byte behind
 * them can never become valid (true) or is a beginning that is only cut off (false). */
size_t mxd_utf8_whole(const char *s, size_t n, bool *bad);

#endif
