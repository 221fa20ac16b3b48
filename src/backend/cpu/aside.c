/* aside.c - tables that are only looked up lie aside, in an unlinked file of our own: a token takes
 * one row of an embedding of hundreds of megabytes, so memory is better spent on what every token
 * multiplies. What is read often the system keeps by itself, and gives up when it must. Nobody else
 * can change the file; the model's own is not needed any more. */
#include <errno.h>
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

/* All of it, and for sure: what is lost on the way to the disk would be wrong rows later. */
static bool write_all(int fd, const unsigned char *p, size_t n) {
    while (n) {
        ssize_t w = write(fd, p, n < (size_t)1 << 24 ? n : (size_t)1 << 24);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return false;
        p += w;
        n -= (size_t)w;
    }
    return fsync(fd) == 0;
}

unsigned char *cpu_aside_take(const cpu_backend *b, const mxd_weight_src *s, size_t bytes) {
    if (!b->scratch_dir || s->use != MXD_W_LOOKUP || s->cut || s->cols || bytes < b->aside_least)
        return NULL;
    return cpu_map_lazy(bytes);
}

void cpu_aside_rest(unsigned char *p, size_t bytes) {
#if defined(__linux__)
    madvise(p, bytes, MADV_DONTNEED); /* of a file: nothing is lost */
#else
    (void)p, (void)bytes;
#endif
}

bool cpu_aside_put(const cpu_backend *b, unsigned char **p, size_t bytes) {
    int fd = open_unlinked(b->scratch_dir);
    if (fd < 0) return false;
    void *file = MAP_FAILED;
    if (!is_memory(fd) && has_room(fd, bytes) && write_all(fd, *p, bytes))
        file = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    close(fd); /* the mapping holds it */
    if (file == MAP_FAILED) return false;
    cpu_unmap(*p, bytes);
    *p = file;
    return true;
}
