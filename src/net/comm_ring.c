/* comm_ring.c - two rings of frames in POSIX shared memory. See comm_ring.h. */
#include "net/comm_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "base/clock.h"
#include "base/rand.h"

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

enum { LINE = 128, SLEEP_NS = 50000 }; /* Apple's cache lines have 128 bytes */
#define MAGIC 0x31676e6972647879u

typedef struct direction {
    _Alignas(LINE) _Atomic uint64_t written; /* the writer's line */
    _Atomic uint32_t full;                   /* the writer found no room */
    _Alignas(LINE) _Atomic uint64_t read;    /* the reader's line */
    _Atomic uint64_t received;
    _Alignas(LINE) _Atomic uint32_t bell; /* the reader sleeps here */
    _Atomic uint32_t asleep;
    _Alignas(LINE) unsigned char data[RING_BYTES];
} direction;

typedef struct shared {
    uint64_t magic;
    direction way[2]; /* the maker writes the first */
} shared;

struct comm_ring {
    const mxd_alloc *al;
    atomic_int refs;
    char name[RING_NAME]; /* "": unlinked, or not ours */
    shared *s;
    direction *out, *in;
    uint64_t written, seen_read; /* of out: ours; the last seen of theirs */
    uint64_t read;               /* of in: ours */
};

_Static_assert(sizeof(ring_frame) == 32 && RING_BYTES % 32 == 0, "a head never wraps");

static uint64_t room_of(uint32_t bytes) {
    return sizeof(ring_frame) + (((uint64_t)bytes + 31) & ~(uint64_t)31);
}

/* --------------------------------------------------------------------------------- the object */

void comm_ring_host(char out[RING_HOST]) {
    char id[64] = "";
#if defined(__linux__)
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, id, sizeof id - 1);
    if (fd >= 0) close(fd);
    id[n > 0 ? n : 0] = '\0';
    id[strcspn(id, "\n")] = '\0';
#else
    char name[48] = "";
    if (gethostname(name, sizeof name - 1) == 0)
        snprintf(id, sizeof id, "%s-%lx", name, (unsigned long)gethostid());
#endif
    out[0] = '\0';
    if (id[0]) snprintf(out, RING_HOST, "%s/%lu", id, (unsigned long)getuid());
}

static mxd_rc failed(mxd_err *err, const char *what) {
    return mxd_fail(err, MXD_E_IO, "shared memory: %s: %s; messages go over the link instead", what,
                    strerror(errno));
}

/* Pages that exist: a full /dev/shm would otherwise kill whoever touches them. */
static mxd_rc reserve(int fd, mxd_err *err) {
    if (ftruncate(fd, (off_t)sizeof(shared)) != 0) return failed(err, "ftruncate");
#if defined(__linux__)
    errno = posix_fallocate(fd, 0, (off_t)sizeof(shared));
    if (errno) return failed(err, "no room in /dev/shm");
#endif
    return MXD_OK;
}

static mxd_rc map_fd(comm_ring **out, int fd, bool maker, const mxd_alloc *al, mxd_err *err) {
    comm_ring *r = MXD_NEW(al, 1, comm_ring);
    if (!r) return mxd_fail(err, MXD_E_NOMEM, "shared memory");
    void *at = mmap(NULL, sizeof(shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        mxd_free(al, r);
        return failed(err, "mmap");
    }
    *r = (comm_ring){.al = al, .s = at};
    atomic_init(&r->refs, 1);
    r->out = &r->s->way[maker ? 0 : 1];
    r->in = &r->s->way[maker ? 1 : 0];
    *out = r;
    return MXD_OK;
}

mxd_rc comm_ring_make(comm_ring **out, char name[RING_NAME], const mxd_alloc *al, mxd_err *err) {
    uint64_t key;
    MXD_TRY(mxd_rand_secret(&key, sizeof key, err));
    snprintf(name, RING_NAME, "/mxd-%016llx", (unsigned long long)key);
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0) return failed(err, "shm_open");
    mxd_rc rc = reserve(fd, err);
    if (!rc) rc = map_fd(out, fd, true, al, err);
    close(fd);
    if (rc) {
        shm_unlink(name);
        return rc;
    }
    snprintf((*out)->name, RING_NAME, "%s", name);
    (*out)->s->magic = MAGIC;
    return MXD_OK;
}

mxd_rc comm_ring_map(comm_ring **out, const char *name, const mxd_alloc *al, mxd_err *err) {
    if (strncmp(name, "/mxd-", 5) != 0 || strlen(name) != 21 ||
        strspn(name + 5, "0123456789abcdef") != 16)
        return mxd_fail(err, MXD_E_INVAL, "shared memory: a name that is none of ours");
    int fd = shm_open(name, O_RDWR, 0);
    if (fd < 0) return failed(err, "shm_open");
    struct stat st;
    mxd_rc rc = MXD_OK;
    /* some systems round the size up to pages */
    if (fstat(fd, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 077) ||
        (uint64_t)st.st_size < sizeof(shared))
        rc = mxd_fail(err, MXD_E_FORMAT, "shared memory: another user's, or of another size");
    if (!rc) rc = map_fd(out, fd, false, al, err);
    close(fd);
    if (!rc && (*out)->s->magic != MAGIC) {
        comm_ring_release(*out);
        *out = NULL;
        rc = mxd_fail(err, MXD_E_FORMAT, "shared memory: another layout");
    }
    return rc;
}

void comm_ring_unlink(comm_ring *r) {
    if (r->name[0]) shm_unlink(r->name);
    r->name[0] = '\0';
}

comm_ring *comm_ring_retain(comm_ring *r) {
    atomic_fetch_add(&r->refs, 1);
    return r;
}

void comm_ring_release(comm_ring *r) {
    if (!r || atomic_fetch_sub(&r->refs, 1) != 1) return;
    comm_ring_unlink(r);
    munmap(r->s, sizeof *r->s);
    mxd_free(r->al, r);
}

/* ------------------------------------------------------------------------------------- waking */

static void ring_bell(direction *d) {
    if (atomic_load(&d->asleep) == 0) return;
    atomic_fetch_add(&d->bell, 1);
#if defined(__linux__)
    syscall(SYS_futex, &d->bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
#endif
}

static void sleep_on(direction *d, uint32_t bell, int64_t ns) {
#if defined(__linux__)
    const struct timespec t = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
    syscall(SYS_futex, &d->bell, FUTEX_WAIT, bell, &t, NULL, 0);
#else
    (void)d, (void)bell;
    const struct timespec t = {.tv_nsec = ns < SLEEP_NS ? ns : SLEEP_NS};
    nanosleep(&t, NULL);
#endif
}

void comm_ring_wake(comm_ring *r) {
    atomic_fetch_add(&r->in->bell, 1);
    ring_bell(r->in);
}

ring_mark comm_ring_mark(comm_ring *r) {
    return (ring_mark){.written = atomic_load(&r->in->written), .bell = atomic_load(&r->in->bell)};
}

static bool is_still(direction *d, ring_mark m) {
    return atomic_load(&d->written) == m.written && atomic_load(&d->bell) == m.bell;
}

void comm_ring_wait(comm_ring *r, ring_mark m, int spin_us, int64_t ns) {
    direction *d = r->in;
    int64_t until = spin_us > 0 ? mxd_now_ns() + (int64_t)spin_us * 1000 : 0;
    for (unsigned i = 1; spin_us > 0; i++) {
        if (!is_still(d, m)) return;
        relax();
        if (i % 32 != 0) continue;
        if (mxd_now_ns() >= until) break;
        sched_yield(); /* the other side may want this very core */
    }
    atomic_fetch_add(&d->asleep, 1);
    if (is_still(d, m)) sleep_on(d, m.bell, ns);
    atomic_fetch_sub(&d->asleep, 1);
}

/* ------------------------------------------------------------------------------------- frames */

static void copy_in(direction *d, uint64_t at, const void *from, size_t n) {
    size_t i = (size_t)(at % RING_BYTES), first = n < RING_BYTES - i ? n : RING_BYTES - i;
    memcpy(d->data + i, from, first);
    if (n > first) memcpy(d->data, (const char *)from + first, n - first);
}

static void copy_out(const direction *d, uint64_t at, void *to, size_t n) {
    size_t i = (size_t)(at % RING_BYTES), first = n < RING_BYTES - i ? n : RING_BYTES - i;
    memcpy(to, d->data + i, first);
    if (n > first) memcpy((char *)to + first, d->data, n - first);
}

static bool has_room(comm_ring *r, uint64_t need) {
    if (r->written + need - r->seen_read <= RING_BYTES) return true;
    uint64_t read = atomic_load(&r->out->read);
    if (read < r->seen_read || read > r->written) return false; /* a lie: never room again */
    r->seen_read = read;
    return r->written + need - read <= RING_BYTES;
}

bool comm_ring_put(comm_ring *r, const ring_frame *f, const void *bytes) {
    MXD_ASSERT(f->bytes <= RING_MAX_FRAME);
    uint64_t need = room_of(f->bytes);
    if (!has_room(r, need)) {
        atomic_store(&r->out->full, 1);
        if (!has_room(r, need)) return false;
    }
    copy_in(r->out, r->written, f, sizeof *f);
    if (f->bytes) copy_in(r->out, r->written + sizeof *f, bytes, f->bytes);
    r->written += need;
    atomic_store(&r->out->written, r->written);
    ring_bell(r->out);
    return true;
}

uint64_t comm_ring_at(const comm_ring *r) { return r->written; }

bool comm_ring_again(comm_ring *r, uint64_t at, void *to, size_t n) {
    if (atomic_load(&r->out->read) > at) return false;
    copy_out(r->out, at + sizeof(ring_frame), to, n);
    return true;
}

ring_next comm_ring_peek(comm_ring *r, ring_frame *f) {
    uint64_t there = atomic_load_explicit(&r->in->written, memory_order_acquire) - r->read;
    if (!there) return RING_EMPTY;
    if (there > RING_BYTES || there < sizeof *f) return RING_BROKEN;
    copy_out(r->in, r->read, f, sizeof *f);
    return f->bytes <= RING_MAX_FRAME && room_of(f->bytes) <= there ? RING_FRAME : RING_BROKEN;
}

/* A writer that waits for room sleeps where it reads: on the other direction's bell. */
void comm_ring_take(comm_ring *r, const ring_frame *f, void *to) {
    if (f->bytes) copy_out(r->in, r->read + sizeof *f, to, f->bytes);
    r->read += room_of(f->bytes);
    atomic_store(&r->in->read, r->read);
    if (atomic_load(&r->in->full) && atomic_exchange(&r->in->full, 0)) {
        atomic_fetch_add(&r->out->bell, 1);
        ring_bell(r->out);
    }
}

void comm_ring_tell(comm_ring *r, uint64_t received) {
    atomic_store_explicit(&r->in->received, received, memory_order_release);
}

uint64_t comm_ring_told(comm_ring *r) {
    return atomic_load_explicit(&r->out->received, memory_order_acquire);
}
