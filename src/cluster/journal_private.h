/* journal_private.h - private to journal*.c: the state, and the form of records.
 *   journal.c       segments, writing, recovery
 *   journal_file.c  bytes of a record; names of a folder
 */
#ifndef MXD_CLUSTER_JOURNAL_PRIVATE_H
#define MXD_CLUSTER_JOURNAL_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>
#include "base/file.h"
#include "cluster/journal.h"

typedef struct mxd_live_stream {
    uint64_t stream;
    uint32_t first, last; /* segments with records of it */
} mxd_live_stream;

struct mxd_journal {
    const mxd_alloc *al;
    char dir[MXD_PATH_MAX];
    size_t segment_bytes;
    ssize_t (*write)(int fd, const void *bytes, size_t n);
    int (*sync)(int fd);
    int lock_fd;

    /* the owner's */
    uint32_t number;    /* of the segment that is written to */
    size_t good;        /* its bytes that hold whole records */
    size_t epoch_end;   /* those up to its last epoch */
    uint32_t *segments; /* [n_segments] numbers of the files, ascending */
    int n_segments, cap_segments;
    mxd_live_stream *live; /* [n_live] */
    int n_live, cap_live;
    uint64_t max_epoch, max_stream;
    mxd_buf buf; /* records that wait for mxd_journal_write */
    bool has_epoch, has_gone, failing;
    int64_t retry_ms;

    /* with the thread that syncs */
    pthread_mutex_t fd_lock;
    int fd; /* changed under fd_lock, synced by the thread under it */
    pthread_mutex_t wake_lock;
    pthread_cond_t wake;
    bool closing, dirty; /* wake_lock */
    bool running;
    pthread_t thread;
    atomic_int sync_failed; /* errno */

    pthread_mutex_t text_lock;
    char problem[480]; /* text_lock; "": none */
};

uint64_t mxd_get64(const unsigned char *p);
void mxd_put64(unsigned char *p, uint64_t v);

void mxd_journal_frame(mxd_buf *b, mxd_record_kind kind, uint64_t stream, const void *bytes,
                       size_t n);
/* The record at *at, which then stands behind it. False: none, or not a whole and valid one. */
bool mxd_journal_next(const unsigned char *bytes, size_t n, size_t *at, mxd_record *r);

/* A HEAD with the highest numbers so far; its length. */
size_t mxd_journal_head(unsigned char out[64], uint64_t epoch, uint64_t stream);
/* Raises *epoch and *stream to those of a segment's HEAD. */
void mxd_journal_marks(const unsigned char *bytes, size_t n, uint64_t *epoch, uint64_t *stream);

mxd_rc mxd_journal_note(mxd_journal *j, uint32_t number, mxd_err *err) MXD_MUST_USE;
mxd_rc mxd_journal_list(mxd_journal *j, mxd_err *err) MXD_MUST_USE; /* fills segments */
int mxd_journal_datasync(int fd);

#endif
