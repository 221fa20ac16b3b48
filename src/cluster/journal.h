/* journal.h - what a coordinator must still know when it is started again, on disk.
 *
 * Records are only ever appended, to segments of at most MXD_JOURNAL_SEGMENT_BYTES:
 *
 *   DIR/0/lock                 held while a process uses DIR/0; another process takes DIR/1, ...
 *   DIR/0/00000001.log         a HEAD, then records; the highest number is written to
 *   record = u32 n, u32 CRC-32C of n and what follows it, [n] u8 kind, u64 stream, bytes;
 *            little endian
 *
 * Recovery reads the segments in order up to the first record that is cut off or damaged, cuts the
 * file there, and removes later segments: a record is never believed after one that is not. A
 * stream lives from its OPEN to its GONE; a segment goes when no living stream has records in it.
 *
 * What is written when. mxd_journal_write ends in write(2): records survive the death of the
 * process, and that is all the token path pays for. A thread of the journal's own calls fdatasync
 * MXD_JOURNAL_SYNC_MS after the first write that is not on disk yet: a power failure costs the
 * records of about so long. mxd_journal_sync waits for the disk.
 *
 * A full or broken disk. The first failure is told to the caller, and the journal stops: the
 * streams that live then will not be found by a restart (they go on), and every later write fails
 * at once, until mxd_journal_tick (every 5 s) could cut the file behind the last epoch and write
 * that these streams are gone.
 *
 * Trust:    what is on disk may be anything. Threads: one owner; the problem text from any thread.
 * Errors:   open: E_IO, E_BUSY every folder is in use, E_NOMEM. Lifetime: open to close.
 */
#ifndef MXD_CLUSTER_JOURNAL_H
#define MXD_CLUSTER_JOURNAL_H

#include <stdint.h>
#include <sys/types.h>
#include "base/buf.h"

enum {
    MXD_JOURNAL_SEGMENT_BYTES = 64 << 20,
    MXD_JOURNAL_RECORD_BYTES = 24 << 20, /* of one record; a segment's first may fill it alone */
    MXD_JOURNAL_SYNC_MS = 20,
    MXD_JOURNAL_RETRY_MS = 5000,
    MXD_JOURNAL_FOLDERS = 32,
    MXD_JOURNAL_VERSION = 1,
};

typedef enum mxd_record_kind {
    MXD_REC_HEAD = 1, /* first of a segment: the journal's own */
    MXD_REC_EPOCH,    /* u64: is about to be used */
    MXD_REC_OPEN,     /* a stream begins: kept.h */
    MXD_REC_TOKEN,
    MXD_REC_END,
    MXD_REC_GONE, /* nobody wants it any more */
} mxd_record_kind;

typedef struct mxd_record { /* borrowed */
    mxd_record_kind kind;
    uint64_t stream; /* 0 for HEAD and EPOCH */
    const unsigned char *bytes;
    size_t n;
} mxd_record;

/* Takes one record of the past. A failure ends the reading: E_NOMEM. */
typedef mxd_rc (*mxd_record_fn)(void *ctx, const mxd_record *r, mxd_err *err);

/* The valid records at the beginning of a segment's bytes, in order; HEAD is not given out.
 *   *valid  bytes that they take, with the HEAD; 0: it has none, or of another version */
mxd_rc mxd_journal_scan(const unsigned char *bytes, size_t n, mxd_record_fn each, void *ctx,
                        size_t *valid, mxd_err *err) MXD_MUST_USE;

typedef struct mxd_journal_opts { /* zero: default */
    const char *dir;              /* needed; made when missing */
    size_t segment_bytes;
    ssize_t (*write)(int fd, const void *bytes, size_t n); /* write(2), or a test's */
    int (*sync)(int fd);
} mxd_journal_opts;

typedef struct mxd_journal mxd_journal;

/* Takes a folder, gives its past to `each`, and begins a new segment. */
mxd_rc mxd_journal_open(mxd_journal **out, const mxd_alloc *al, const mxd_journal_opts *o,
                        mxd_record_fn each, void *ctx, mxd_err *err) MXD_MUST_USE;
void mxd_journal_close(mxd_journal *j); /* writes nothing more; NULL is fine */

uint64_t mxd_journal_epoch(const mxd_journal *j);  /* the highest ever recorded */
uint64_t mxd_journal_stream(const mxd_journal *j); /* likewise of OPEN */

/* The i-th stream that is open; 0: there are no more. */
uint64_t mxd_journal_live(const mxd_journal *j, int i);

/* Collects records; mxd_journal_write hands all of them to the system in one call, or none.
 * Records of streams that are not open are left out, as nobody could use them. */
void mxd_journal_put(mxd_journal *j, mxd_record_kind kind, uint64_t stream, const void *bytes,
                     size_t n);
void mxd_journal_put_epoch(mxd_journal *j, uint64_t epoch);
mxd_rc mxd_journal_write(mxd_journal *j, mxd_err *err) MXD_MUST_USE;

/* What was written is on disk when this returns. */
mxd_rc mxd_journal_sync(mxd_journal *j, mxd_err *err) MXD_MUST_USE;

/* Tries to go on after a failure. Call it now and then. */
void mxd_journal_tick(mxd_journal *j, int64_t now_ms);

/* Is this stream's past in the journal as far as it goes? */
bool mxd_journal_holds(const mxd_journal *j, uint64_t stream);

/* Why nothing is written at present. False: all is well. Any thread. */
bool mxd_journal_problem(mxd_journal *j, char *text, size_t cap);

#endif
