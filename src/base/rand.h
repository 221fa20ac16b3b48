/* rand.h - counter-based random numbers: a value is a pure function of what it is for, so a
 * replayed token draws the same number on any machine, alone or in a batch.
 *
 * Source: the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
 * Generators", OOPSLA 2014), chained over the words of the key. Not for secrets: mxd_rand_secret.
 */
#ifndef MXD_BASE_RAND_H
#define MXD_BASE_RAND_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"

/* One step of the mix; a bijection on 64 bits. */
static inline uint64_t mxd_mix64(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Uniform 64 bits for (seed, stream, counter). */
static inline uint64_t mxd_rand_u64(uint64_t seed, uint64_t stream, uint64_t counter) {
    return mxd_mix64(mxd_mix64(mxd_mix64(seed) ^ stream) ^ counter);
}

/* Uniform in [0, 1), 24 bits: exact in float32. */
static inline float mxd_rand_unit(uint64_t seed, uint64_t stream, uint64_t counter) {
    return (float)(mxd_rand_u64(seed, stream, counter) >> 40) * (1.0f / 16777216.0f);
}

/* n bytes from the system's cryptographic generator. Errors: E_IO. */
mxd_rc mxd_rand_secret(void *out, size_t n, mxd_err *err) MXD_MUST_USE;

#endif
