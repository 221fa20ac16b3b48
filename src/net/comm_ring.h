/* comm_ring.h - memory that two ranks of one host share: a ring of frames in each direction.
 *
 * One side makes the object and tells its name, the other maps it, the maker unlinks the name. Each
 * direction has one writer and one reader, and each of them one thread at a time (the lock of its
 * group). A frame is copied in once and out once.
 *
 * The two counters of a direction only grow: written (the writer's), read (the reader's). Each side
 * keeps its own counter to itself and believes of the other's only what fits: at most RING_BYTES
 * between the two, and a frame that lies within what was written.
 *
 * Waking: the reader counts itself in `asleep`, looks once more, then sleeps on `bell`; the writer
 * publishes, then looks at `asleep`. Both sides order the two steps (seq_cst), so one of them sees
 * the other. On Linux the bell is a futex; elsewhere a sleeper looks again every 50 us.
 *
 * Trust: the other side is an authenticated process of our own user, checked all the same. What it
 * could still do is cut the object short, which kills by SIGBUS: it may kill us anyway. */
#ifndef MXD_NET_COMM_RING_H
#define MXD_NET_COMM_RING_H

#include <stdbool.h>
#include <stdint.h>
#include "base/alloc.h"
#include "base/err.h"

enum {
    RING_BYTES = 4 << 20, /* of one direction: three pieces of 1 MiB and room for heads */
    RING_NAME = 32,
    RING_HOST = 96,
    RING_MAX_FRAME = 1 << 20,
};

typedef struct comm_ring comm_ring;

typedef struct ring_frame { /* the head of a frame in the ring, as it lies there */
    uint64_t seq, total, offset;
    uint32_t tag, bytes;
} ring_frame;

typedef enum ring_next { RING_EMPTY, RING_FRAME, RING_BROKEN } ring_next;

/* What is alike for two processes that can share memory: the boot of the machine and the user. ""
 * where the system does not tell. */
void comm_ring_host(char out[RING_HOST]);

/* A new object under a random name that only our user may open. Errors: E_IO the system has no
 * room or does not allow it; E_NOMEM. */
mxd_rc comm_ring_make(comm_ring **out, char name[RING_NAME], const mxd_alloc *al,
                      mxd_err *err) MXD_MUST_USE;

/* The object that the other side made. Errors: E_INVAL not such a name; E_IO it cannot be opened;
 * E_FORMAT it is not of our making. */
mxd_rc comm_ring_map(comm_ring **out, const char *name, const mxd_alloc *al,
                     mxd_err *err) MXD_MUST_USE;

void comm_ring_unlink(comm_ring *r); /* the maker: the other side has it, or will not */
comm_ring *comm_ring_retain(comm_ring *r);
void comm_ring_release(comm_ring *r); /* NULL is fine; the last one unmaps */

/* Copies a frame in and wakes the reader; false: no room. f->bytes <= RING_MAX_FRAME. */
bool comm_ring_put(comm_ring *r, const ring_frame *f, const void *bytes);
/* Where the next frame will stand. */
uint64_t comm_ring_at(const comm_ring *r);
/* Copies out again the n bytes of our own frame that was put there; false: the reader has taken it.
 */
bool comm_ring_again(comm_ring *r, uint64_t at, void *to, size_t n);
/* The head of the next frame; take copies its f->bytes out and makes room. */
ring_next comm_ring_peek(comm_ring *r, ring_frame *f);
void comm_ring_take(comm_ring *r, const ring_frame *f, void *to);

/* How far the reader has come, for the writer, beside the ring. */
void comm_ring_tell(comm_ring *r, uint64_t received);
uint64_t comm_ring_told(comm_ring *r);

/* Waiting without the lock: the mark is taken under it, before the ring and whatever else counts is
 * looked at; wait returns when something came or rang since, or the time is over. It polls for
 * spin_us, then sleeps for at most ns. */
typedef struct ring_mark {
    uint64_t written;
    uint32_t bell;
} ring_mark;
ring_mark comm_ring_mark(comm_ring *r);
void comm_ring_wait(comm_ring *r, ring_mark m, int spin_us, int64_t ns);
void comm_ring_wake(comm_ring *r); /* our own sleepers */

#endif
