/* aside.c - tables that are only looked up lie aside, in an unlinked file of our own: a token takes
 * one row of an embedding of hundreds of megabytes, so memory is better spent on what every token
 * multiplies. What is read often the system keeps by itself, and gives up when it must. Nobody else
 * can change the file; the model's own is not needed any more. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/vfs.h>
#endif
#include "backend/cpu/cpu.h"

/* A file in memory would save nothing. */
static bool is_memory(int fd) {
#if defined(__linux__)
    struct statfs s;
    enum { TMPFS = 0x01021994 };
    static const unsigned long ramfs = 0x858458f6ul;
    return fstatfs(fd, &s) != 0 || s.f_type == TMPFS || (unsigned long)s.f_type == ramfs;
#else
    (void)fd;
    return false;
#endif
}

static bool has_room(int fd, size_t bytes) {
    struct statvfs v;
    return fstatvfs(fd, &v) == 0 &&
           (unsigned long long)v.f_bavail * v.f_frsize > 2 * (unsigned long long)bytes;
}

/* Blocks are reserved, so that no write fails later. */
static bool reserve(int fd, size_t bytes) {
#if defined(__linux__)
    return posix_fallocate(fd, 0, (off_t)bytes) == 0;
#else
    return ftruncate(fd, (off_t)bytes) == 0;
#endif
}

static int open_unlinked(const char *dir) {
    char path[1024];
    int n = snprintf(path, sizeof path, "%s/table-XXXXXX", dir);
    if (n < 0 || (size_t)n >= sizeof path) return -1;
    int fd = mkstemp(path);
    if (fd < 0) return -1;
    unlink(path);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

unsigned char *cpu_aside_take(const cpu_backend *b, const mxd_weight_src *s, size_t bytes) {
    if (!b->scratch_dir || s->use != MXD_W_LOOKUP || s->cut || s->cols || bytes < b->aside_least)
        return NULL;
    int fd = open_unlinked(b->scratch_dir);
    if (fd < 0) return NULL;
    void *p = MAP_FAILED;
    if (!is_memory(fd) && has_room(fd, bytes) && reserve(fd, bytes))
        p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd); /* the mapping holds it */
    return p == MAP_FAILED ? NULL : p;
}

void cpu_aside_rest(unsigned char *p, size_t bytes) {
#if defined(__linux__)
    madvise(p, bytes, MADV_DONTNEED); /* of a file: nothing is lost */
#else
    (void)p, (void)bytes;
#endif
}

void cpu_aside_filled(unsigned char *p, size_t bytes) {
    msync(p, bytes, MS_ASYNC);
    mprotect(p, bytes, PROT_READ);
    cpu_aside_rest(p, bytes);
}

void cpu_aside_free(unsigned char *p, size_t bytes) {
    if (p) munmap(p, bytes);
}
