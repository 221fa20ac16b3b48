/* The ring between two ranks of one host: what goes in comes out, and no scribbling of the other
 * side makes the reader read outside of it. */
#include "test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/rand.h"
#include "net/comm_ring.h"

typedef struct pair {
    comm_ring *a, *b;
    char name[RING_NAME];
} pair;

static pair open_pair(void) {
    pair p = {0};
    mxd_err err = {0};
    if (comm_ring_make(&p.a, p.name, &mxd_alloc_libc, &err)) fail_msg("%s", err.msg);
    if (comm_ring_map(&p.b, p.name, &mxd_alloc_libc, &err)) fail_msg("%s", err.msg);
    return p;
}

static void close_pair(pair *p) {
    comm_ring_release(p->a);
    comm_ring_release(p->b);
}

static void fill(unsigned char *x, size_t n, uint64_t key) {
    for (size_t i = 0; i < n; i++) x[i] = (unsigned char)(mxd_mix64(key) + i * 7 + (i >> 9));
}

/* Many times around, both ways, sizes of every remainder. */
TEST(ring_passes_frames_in_order) {
    pair p = open_pair();
    unsigned char *x = malloc(RING_MAX_FRAME), *y = malloc(RING_MAX_FRAME);
    CHECK(x && y);
    uint64_t put = 0, got = 0;
    while (got < 600) {
        comm_ring *w = p.a, *r = p.b;
        ring_frame f = {.seq = put + 1, .total = 5, .offset = 6, .tag = 7};
        f.bytes = (uint32_t)(mxd_rand_u64(1, 0, put) % (put % 9 ? 3000 : RING_MAX_FRAME + 1));
        fill(x, f.bytes, put);
        if (put < 600 && comm_ring_put(w, &f, x)) {
            put++;
            continue;
        }
        ring_frame g;
        while (comm_ring_peek(r, &g) == RING_FRAME) {
            CHECK(g.seq == got + 1 && g.total == 5 && g.offset == 6 && g.tag == 7);
            fill(y, g.bytes, got);
            comm_ring_take(r, &g, x);
            CHECK(memcmp(x, y, g.bytes) == 0);
            got++;
        }
        CHECK_EQ(got, put);
    }
    ring_frame back = {.seq = 1, .bytes = 3}, g;
    CHECK_EQ(comm_ring_peek(p.a, &g), RING_EMPTY);
    CHECK(comm_ring_put(p.b, &back, "abc"));
    CHECK_EQ(comm_ring_peek(p.a, &g), RING_FRAME);
    comm_ring_tell(p.b, 77);
    CHECK_EQ(comm_ring_told(p.a), 77);
    free(x), free(y);
    close_pair(&p);
}

TEST(ring_opens_only_what_is_ours) {
    pair p = open_pair();
    comm_ring *r = NULL;
    mxd_err err = {0};
    comm_ring_unlink(p.a);
    CHECK_EQ(comm_ring_map(&r, p.name, &mxd_alloc_libc, &err), MXD_E_IO); /* nobody else can come */
    CHECK_EQ(comm_ring_map(&r, "/etc/passwd", &mxd_alloc_libc, &err), MXD_E_INVAL);
    CHECK_EQ(comm_ring_map(&r, "/mxd-../../../../x/y", &mxd_alloc_libc, &err), MXD_E_INVAL);
    const char *small = "/mxd-00000000deadbeef";
    int fd = shm_open(small, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    CHECK_EQ(comm_ring_map(&r, small, &mxd_alloc_libc, &err), MXD_E_FORMAT);
    CHECK(fchmod(fd, 0644) == 0 && ftruncate(fd, 64 << 20) == 0);
    CHECK_EQ(comm_ring_map(&r, small, &mxd_alloc_libc, &err), MXD_E_FORMAT);
    CHECK(fchmod(fd, 0600) == 0);
    CHECK_EQ(comm_ring_map(&r, small, &mxd_alloc_libc, &err), MXD_E_FORMAT); /* all zero */
    shm_unlink(small);
    close(fd);
    CHECK(r == NULL);
    close_pair(&p);
}

/* The other side writes what it likes, heads and counters included: a frame that is said to be
 * there lies within the ring, or the ring is broken. */
TEST(ring_survives_scribbling) {
    pair p = open_pair();
    int fd = shm_open(p.name, O_RDWR, 0);
    struct stat st;
    CHECK(fd >= 0 && fstat(fd, &st) == 0);
    size_t n = (size_t)st.st_size, words = n / 8;
    uint64_t *w = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *x = malloc(RING_MAX_FRAME);
    CHECK(w != MAP_FAILED && x);
    int frames = 0, broken = 0;
    for (uint64_t i = 0; i < 3000; i++) {
        ring_frame f = {.seq = 0x5eed5eed5eed5eedu, .bytes = 100}, g;
        fill(x, 100, i);
        (void)comm_ring_put(p.b, &f, x);
        for (size_t k = 0; k < 3; k++) { /* the control words lie around both ends of the data */
            uint64_t r = mxd_rand_u64(3, k, i);
            size_t half = words / 2, at = (k == 1 ? half : 0) + (size_t)(r % 128);
            w[at < words ? at : 0] = r & 1 ? r >> (r % 64) : (r >> 8) % 8192;
        }
        ring_next next = comm_ring_peek(p.a, &g);
        broken += next == RING_BROKEN;
        if (next != RING_FRAME) continue;
        frames++;
        CHECK(g.bytes <= RING_MAX_FRAME);
        comm_ring_take(p.a, &g, x);
    }
    CHECK(frames + broken > 0 && broken > 0);
    munmap(w, n);
    close(fd);
    free(x);
    close_pair(&p);
}

/* A head that promises more than was written. */
TEST(ring_refuses_lengths_that_lie) {
    static const uint32_t lies[] = {129, 4096, RING_MAX_FRAME, RING_MAX_FRAME + 1, UINT32_MAX};
    for (size_t i = 0; i < MXD_COUNT(lies); i++) {
        pair p = open_pair();
        int fd = shm_open(p.name, O_RDWR, 0);
        struct stat st;
        CHECK(fd >= 0 && fstat(fd, &st) == 0);
        size_t n = (size_t)st.st_size, at = 0;
        unsigned char *m = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), x[100] = {0};
        CHECK(m != MAP_FAILED);
        ring_frame f = {.seq = 0x5eed5eed5eed5eedu, .bytes = (uint32_t)sizeof x}, g;
        CHECK(comm_ring_put(p.b, &f, x));
        while (at + sizeof f <= n && memcmp(m + at, &f, sizeof f) != 0) at += 32;
        CHECK(at + sizeof f <= n);
        CHECK_EQ(comm_ring_peek(p.a, &g), RING_FRAME);
        f.bytes = lies[i];
        memcpy(m + at, &f, sizeof f);
        CHECK_EQ(comm_ring_peek(p.a, &g), RING_BROKEN);
        munmap(m, n);
        close(fd);
        close_pair(&p);
    }
}
