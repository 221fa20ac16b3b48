#include "kernels/kernels.h"

#include <stdbool.h>
#include <string.h>
#include "kernels/kernels_impl.h"
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

static bool always(void) { return true; }
#if defined(__x86_64__)
/* Not every compiler's __builtin_cpu_supports knows this one (clang 14 does not). */
static bool has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}
static bool has_avx512_vnni(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
/* Linux tells in the bits of its uapi (asm/hwcap.h: ASIMDDP, I8MM), which old headers lack.
 * Elsewhere what the compiler may assume of every machine of the target. */
static bool has_dot(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;
#elif defined(__ARM_FEATURE_DOTPROD)
    return true;
#else
    return false;
#endif
}
static bool has_i8mm(void) {
#if defined(__linux__)
    return has_dot() && getauxval(AT_HWCAP2) >> 13 & 1;
#elif defined(__ARM_FEATURE_DOTPROD) && defined(__ARM_FEATURE_MATMUL_INT8)
    return true;
#else
    return false;
#endif
}
#endif

/* Best first. Adding an instruction set is one file, one line here, and nothing else. */
static const struct {
    const mxd_kernels *kernels;
    bool (*usable)(void);
} table[] = {
#if defined(__x86_64__)
    {&mxd_kernels_avx512, has_avx512_vnni},
    {&mxd_kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&mxd_kernels_neon_i8mm, has_i8mm},
    {&mxd_kernels_neon_dot, has_dot},
    {&mxd_kernels_neon, always},
#endif
    {&mxd_kernels_scalar, always},
};

enum { N_TABLES = sizeof table / sizeof *table };

size_t mxd_kernels_usable(const mxd_kernels **out, size_t cap) {
    size_t n = 0;
    for (size_t i = 0; i < N_TABLES && n < cap; i++)
        if (table[i].usable()) out[n++] = table[i].kernels;
    return n;
}

const mxd_kernels *mxd_kernels_best(void) {
    size_t i = 0;
    while (!table[i].usable()) i++; /* ends: the last row is always usable */
    return table[i].kernels;
}

const mxd_kernels *mxd_kernels_find(const char *name) {
    for (size_t i = 0; i < N_TABLES; i++)
        if (strcmp(table[i].kernels->name, name) == 0 && table[i].usable()) return table[i].kernels;
    return NULL;
}
