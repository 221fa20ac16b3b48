/* pages.c - what the CPU backend asks of the system: lazy memory and the number of cores. */
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include "backend/cpu/cpu.h"

#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif

void *cpu_map_lazy(size_t bytes) {
    void *p = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void cpu_unmap(void *p, size_t bytes) {
    if (p) munmap(p, bytes ? bytes : 1);
}

void cpu_want_large_pages(void *p, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    uintptr_t large = (uintptr_t)2 << 20, first = ((uintptr_t)p + large - 1) & ~(large - 1);
    uintptr_t end = ((uintptr_t)p + bytes) & ~(large - 1);
    if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

int cpu_default_threads(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    cpu_set_t set; /* taskset and container limits on cores show here */
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
#endif
    return n < 1 ? 1 : n > MXD_MAX_THREADS ? MXD_MAX_THREADS : (int)n;
}
