#include "cluster/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/file.h"
#include "base/log.h"
#include "cluster/journal_private.h"

/* ------------------------------------------------------------------------------------- segments */

static void segment_path(const mxd_journal *j, uint32_t number, char out[MXD_PATH_MAX]) {
    snprintf(out, MXD_PATH_MAX, "%.1100s/%08u.log", j->dir, number);
}

/* A rename or a new file is on disk when its folder is. */
static void sync_folder(const mxd_journal *j) {
    int fd = open(j->dir, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    (void)fsync(fd);
    close(fd);
}

static bool needed(const mxd_journal *j, uint32_t number) {
    if (number == j->number) return true;
    for (int i = 0; i < j->n_live; i++)
        if (j->live[i].first <= number && number <= j->live[i].last) return true;
    return false;
}

static void prune(mxd_journal *j) {
    int k = 0;
    for (int i = 0; i < j->n_segments; i++) {
        char path[MXD_PATH_MAX];
        if (needed(j, j->segments[i])) {
            j->segments[k++] = j->segments[i];
            continue;
        }
        segment_path(j, j->segments[i], path);
        unlink(path);
    }
    j->n_segments = k;
}

/* --------------------------------------------------------------------------------------- streams
 */

static mxd_live_stream *live(const mxd_journal *j, uint64_t stream) {
    for (int i = 0; i < j->n_live; i++)
        if (j->live[i].stream == stream) return &j->live[i];
    return NULL;
}

bool mxd_journal_holds(const mxd_journal *j, uint64_t stream) {
    return live(j, stream) && !j->failing;
}

uint64_t mxd_journal_live(const mxd_journal *j, int i) {
    return i < j->n_live ? j->live[i].stream : 0;
}

static bool open_stream(mxd_journal *j, uint64_t stream, uint32_t at) {
    if (stream > j->max_stream) j->max_stream = stream;
    if (j->n_live == j->cap_live) {
        int cap = j->cap_live ? 2 * j->cap_live : 16;
        mxd_live_stream *p = mxd_renew(j->al, j->live, (size_t)cap, sizeof *p);
        if (!p) return false;
        j->live = p;
        j->cap_live = cap;
    }
    j->live[j->n_live++] = (mxd_live_stream){stream, at, at};
    return true;
}

/* What a record means for who needs which segment. False: no memory. */
static bool account(mxd_journal *j, const mxd_record *r, uint32_t at) {
    mxd_live_stream *s = live(j, r->stream);
    if (r->kind == MXD_REC_EPOCH && r->n >= 8) {
        uint64_t epoch = mxd_get64(r->bytes);
        if (epoch > j->max_epoch) j->max_epoch = epoch;
    }
    if (s) s->last = at;
    if (r->kind == MXD_REC_OPEN && !s) return open_stream(j, r->stream, at);
    if (r->kind == MXD_REC_GONE && s) *s = j->live[--j->n_live];
    return true;
}

/* -------------------------------------------------------------------------------------- the disk
 */

static mxd_rc write_all(mxd_journal *j, int fd, const void *bytes, size_t n, mxd_err *err) {
    const char *p = bytes;
    while (n) {
        ssize_t k = j->write(fd, p, n);
        if (k < 0 && errno == EINTR) continue;
        if (k == 0) errno = EIO;
        if (k <= 0) return mxd_fail_sys(err, MXD_E_IO, "cannot write the journal in %s", j->dir);
        p += k;
        n -= (size_t)k;
    }
    return MXD_OK;
}

static mxd_rc sync_fd(mxd_journal *j, int fd, mxd_err *err) {
    if (j->sync(fd) == 0) return MXD_OK;
    return mxd_fail_sys(err, MXD_E_IO, "cannot make the journal in %s durable", j->dir);
}

/* A new file with its HEAD becomes the one that is written to. */
static mxd_rc begin_segment(mxd_journal *j, mxd_err *err) {
    char path[MXD_PATH_MAX];
    uint32_t number = j->number + 1;
    unsigned char head[64];
    MXD_TRY(mxd_journal_note(j, number, err));
    segment_path(j, number, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_APPEND, 0600);
    mxd_rc rc = MXD_OK;
    if (fd < 0) rc = mxd_fail_sys(err, MXD_E_IO, "cannot make '%s'", path);
    size_t n = mxd_journal_head(head, j->max_epoch, j->max_stream);
    if (!rc) rc = write_all(j, fd, head, n, err);
    if (!rc) rc = sync_fd(j, fd, err);
    if (rc) {
        j->n_segments--;
        if (fd >= 0) close(fd);
        if (fd >= 0) unlink(path);
        return rc;
    }
    sync_folder(j);
    pthread_mutex_lock(&j->fd_lock);
    int old = j->fd;
    j->fd = fd;
    pthread_mutex_unlock(&j->fd_lock);
    if (old >= 0) rc = j->sync(old) == 0 ? MXD_OK : mxd_fail_sys(err, MXD_E_IO, "journal");
    if (old >= 0) close(old);
    j->number = number;
    j->good = j->epoch_end = n;
    return rc;
}

static void make_dirty(mxd_journal *j) {
    pthread_mutex_lock(&j->wake_lock);
    if (!j->dirty) pthread_cond_signal(&j->wake);
    j->dirty = true;
    pthread_mutex_unlock(&j->wake_lock);
}

/* Groups what is written into few calls of fdatasync, away from whoever writes. */
static void *sync_main(void *arg) {
    mxd_journal *j = arg;
    pthread_mutex_lock(&j->wake_lock);
    while (!j->closing) {
        if (!j->dirty) {
            mxd_cond_wait(&j->wake, &j->wake_lock, INT64_C(10000000000));
            continue;
        }
        mxd_cond_wait(&j->wake, &j->wake_lock, MXD_JOURNAL_SYNC_MS * INT64_C(1000000));
        j->dirty = false;
        pthread_mutex_unlock(&j->wake_lock);
        pthread_mutex_lock(&j->fd_lock); /* a new segment waits for it, a write does not */
        if (j->fd >= 0 && j->sync(j->fd) != 0) atomic_store(&j->sync_failed, errno);
        pthread_mutex_unlock(&j->fd_lock);
        pthread_mutex_lock(&j->wake_lock);
    }
    pthread_mutex_unlock(&j->wake_lock);
    return NULL;
}

/* -------------------------------------------------------------------------------------- failure */

static void stop(mxd_journal *j, const mxd_err *err) {
    bool news = !j->failing;
    mxd_buf_clear(&j->buf);
    j->failing = true;
    j->retry_ms = mxd_now_ms() + MXD_JOURNAL_RETRY_MS;
    pthread_mutex_lock(&j->text_lock);
    snprintf(j->problem, sizeof j->problem, "%s", err->msg);
    pthread_mutex_unlock(&j->text_lock);
    if (!news) return;
    mxd_log(MXD_LOG_ERROR, "journal_failed", "streams=%d error=\"%s\"", j->n_live, err->msg);
}

/* Behind the last epoch nothing is of use any more, and its room is what the next lines need. */
static mxd_rc go_on(mxd_journal *j, mxd_err *err) {
    mxd_buf gone;
    if (ftruncate(j->fd, (off_t)j->epoch_end) != 0)
        return mxd_fail_sys(err, MXD_E_IO, "cannot cut the journal in %s", j->dir);
    mxd_buf_init(&gone, j->al, 1 << 20);
    unsigned char epoch[8];
    mxd_put64(epoch, j->max_epoch);
    mxd_journal_frame(&gone, MXD_REC_EPOCH, 0, epoch, sizeof epoch);
    for (int i = 0; i < j->n_live; i++)
        mxd_journal_frame(&gone, MXD_REC_GONE, j->live[i].stream, NULL, 0);
    mxd_rc rc = mxd_buf_rc(&gone, "the journal", err);
    if (!rc) rc = write_all(j, j->fd, mxd_buf_str(&gone), gone.len, err);
    if (!rc) rc = sync_fd(j, j->fd, err);
    size_t n = gone.len;
    mxd_buf_deinit(&gone);
    if (rc) return rc;
    j->good = j->epoch_end + n;
    j->n_live = 0;
    prune(j);
    return MXD_OK;
}

void mxd_journal_tick(mxd_journal *j, int64_t now_ms) {
    mxd_err err = {0};
    int sys = atomic_exchange(&j->sync_failed, 0);
    if (sys) {
        errno = sys;
        (void)!mxd_fail_sys(&err, MXD_E_IO, "cannot make the journal in %s durable", j->dir);
        stop(j, &err);
    }
    if (!j->failing || now_ms < j->retry_ms) return;
    if (go_on(j, &err)) {
        stop(j, &err);
        return;
    }
    j->failing = false;
    pthread_mutex_lock(&j->text_lock);
    j->problem[0] = '\0';
    pthread_mutex_unlock(&j->text_lock);
    mxd_log(MXD_LOG_INFO, "journal_goes_on", "folder=%s", j->dir);
}

bool mxd_journal_problem(mxd_journal *j, char *text, size_t cap) {
    pthread_mutex_lock(&j->text_lock);
    bool any = j->problem[0] != '\0';
    if (any && cap) snprintf(text, cap, "%s", j->problem);
    pthread_mutex_unlock(&j->text_lock);
    return any;
}

/* --------------------------------------------------------------------------------------- writing
 */

uint64_t mxd_journal_epoch(const mxd_journal *j) { return j->max_epoch; }
uint64_t mxd_journal_stream(const mxd_journal *j) { return j->max_stream; }

void mxd_journal_put(mxd_journal *j, mxd_record_kind kind, uint64_t stream, const void *bytes,
                     size_t n) {
    if (j->failing) return;
    bool mine = kind == MXD_REC_EPOCH || kind == MXD_REC_OPEN || live(j, stream);
    if (!mine) return;
    mxd_record r = {kind, stream, bytes, n};
    mxd_journal_frame(&j->buf, kind, stream, bytes, n);
    if (!account(j, &r, j->number) && !j->buf.rc) j->buf.rc = MXD_E_NOMEM;
    j->has_epoch |= kind == MXD_REC_EPOCH;
    j->has_gone |= kind == MXD_REC_GONE;
}

void mxd_journal_put_epoch(mxd_journal *j, uint64_t epoch) {
    unsigned char bytes[8];
    mxd_put64(bytes, epoch);
    if (epoch > j->max_epoch) j->max_epoch = epoch; /* also when it cannot be written now */
    mxd_journal_put(j, MXD_REC_EPOCH, 0, bytes, sizeof bytes);
}

/* Streams whose records wait are moved to where these will be. */
static mxd_rc rotate(mxd_journal *j, mxd_err *err) {
    MXD_TRY(begin_segment(j, err));
    size_t at = 0;
    mxd_record r;
    while (mxd_journal_next((const unsigned char *)j->buf.ptr, j->buf.len, &at, &r)) {
        mxd_live_stream *s = live(j, r.stream);
        if (s) s->last = j->number;
        if (s && r.kind == MXD_REC_OPEN) s->first = j->number;
    }
    return MXD_OK;
}

static mxd_rc write_buf(mxd_journal *j, mxd_err *err) {
    MXD_TRY(mxd_buf_rc(&j->buf, "the journal", err));
    if (j->good + j->buf.len > j->segment_bytes) MXD_TRY(rotate(j, err));
    MXD_TRY(write_all(j, j->fd, j->buf.ptr, j->buf.len, err));
    j->good += j->buf.len;
    if (j->has_epoch) j->epoch_end = j->good;
    make_dirty(j);
    return MXD_OK;
}

static mxd_rc refuse(mxd_journal *j, mxd_err *err) {
    char text[480] = "";
    mxd_journal_problem(j, text, sizeof text);
    return mxd_fail(err, MXD_E_IO, "%s", text);
}

mxd_rc mxd_journal_write(mxd_journal *j, mxd_err *err) {
    mxd_err own = {0};
    if (j->failing) return refuse(j, err);
    if (!j->buf.len && !j->buf.rc) return MXD_OK;
    mxd_rc rc = write_buf(j, &own);
    bool gone = j->has_gone;
    mxd_buf_clear(&j->buf);
    j->has_epoch = j->has_gone = false;
    if (gone && !rc) prune(j);
    if (!rc) return MXD_OK;
    stop(j, &own);
    if (err) *err = own;
    return rc;
}

mxd_rc mxd_journal_sync(mxd_journal *j, mxd_err *err) {
    mxd_err own = {0};
    if (j->failing) return refuse(j, err);
    mxd_rc rc = sync_fd(j, j->fd, &own);
    if (!rc) return MXD_OK;
    stop(j, &own);
    if (err) *err = own;
    return rc;
}

/* --------------------------------------------------------------------------------------- opening
 */

typedef struct past { /* of one segment, while it is read */
    mxd_journal *j;
    mxd_record_fn each;
    void *ctx;
    uint32_t number;
} past;

static mxd_rc on_record(void *ctx, const mxd_record *r, mxd_err *err) {
    past *p = ctx;
    if (!account(p->j, r, p->number)) return mxd_fail(err, MXD_E_NOMEM, "no memory");
    return p->each(p->ctx, r, err);
}

static mxd_rc read_segment(mxd_journal *j, int fd, const char *path, unsigned char **bytes,
                           size_t *n, off_t *size, mxd_err *err) {
    struct stat st;
    if (fstat(fd, &st) != 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
    size_t most = j->segment_bytes + MXD_JOURNAL_RECORD_BYTES + 64;
    size_t cap = (size_t)st.st_size < most ? (size_t)st.st_size : most;
    *size = st.st_size;
    *bytes = MXD_NEW(j->al, cap + 1, unsigned char);
    if (!*bytes) return mxd_fail(err, MXD_E_NOMEM, "no memory to read '%s'", path);
    for (*n = 0; *n < cap;) {
        ssize_t k = pread(fd, *bytes + *n, cap - *n, (off_t)*n);
        if (k < 0 && errno == EINTR) continue;
        if (k < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
        if (k == 0) break;
        *n += (size_t)k;
    }
    return MXD_OK;
}

/* *whole: nothing had to be cut off. */
static mxd_rc recover(past *p, bool *whole, mxd_err *err) {
    char path[MXD_PATH_MAX];
    unsigned char *bytes = NULL;
    size_t n = 0, valid = 0;
    off_t size = 0;
    segment_path(p->j, p->number, path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot open '%s'", path);
    mxd_rc rc = read_segment(p->j, fd, path, &bytes, &n, &size, err);
    if (!rc) rc = mxd_journal_scan(bytes, n, on_record, p, &valid, err);
    if (!rc) mxd_journal_marks(bytes, valid, &p->j->max_epoch, &p->j->max_stream);
    mxd_free(p->j->al, bytes);
    *whole = (off_t)valid == size;
    if (!rc && !*whole) {
        mxd_log(MXD_LOG_WARN, "journal_cut", "file=%s kept=%zu of=%lld", path, valid,
                (long long)size);
        if (ftruncate(fd, (off_t)valid) != 0)
            rc = mxd_fail_sys(err, MXD_E_IO, "cannot cut '%s'", path);
    }
    close(fd);
    return rc;
}

/* In order; what stands behind a damaged record is removed unread. */
static mxd_rc recover_all(mxd_journal *j, mxd_record_fn each, void *ctx, mxd_err *err) {
    bool whole = true;
    int k = 0;
    for (int i = 0; i < j->n_segments; i++) {
        char path[MXD_PATH_MAX];
        past p = {j, each, ctx, j->segments[i]};
        j->number = j->segments[i];
        if (whole) {
            MXD_TRY(recover(&p, &whole, err));
            j->segments[k++] = j->segments[i];
            continue;
        }
        segment_path(j, j->segments[i], path);
        if (unlink(path) != 0) return mxd_fail_sys(err, MXD_E_IO, "cannot remove '%s'", path);
    }
    j->n_segments = k;
    return MXD_OK;
}

static mxd_rc lock_folder(mxd_journal *j, const char *dir, mxd_err *err) {
    for (int i = 0; i < MXD_JOURNAL_FOLDERS; i++) {
        char path[MXD_PATH_MAX + 8];
        if ((size_t)snprintf(j->dir, sizeof j->dir, "%s/%d", dir, i) >= sizeof j->dir - 32)
            return mxd_fail(err, MXD_E_TOOBIG, "the path '%.100s...' is too long", dir);
        MXD_TRY(mxd_folder_make(j->dir, err));
        snprintf(path, sizeof path, "%s/lock", j->dir);
        j->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (j->lock_fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot open '%s'", path);
        if (flock(j->lock_fd, LOCK_EX | LOCK_NB) == 0) return MXD_OK;
        close(j->lock_fd);
        j->lock_fd = -1;
    }
    return mxd_fail(err, MXD_E_BUSY, "%d servers use the journals in %s", MXD_JOURNAL_FOLDERS, dir);
}

static mxd_rc open_all(mxd_journal *j, const mxd_journal_opts *o, mxd_record_fn each, void *ctx,
                       mxd_err *err) {
    MXD_TRY(lock_folder(j, o->dir, err));
    MXD_TRY(mxd_journal_list(j, err));
    MXD_TRY(recover_all(j, each, ctx, err));
    MXD_TRY(begin_segment(j, err));
    prune(j);
    if (pthread_create(&j->thread, NULL, sync_main, j) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start the journal's thread");
    j->running = true;
    return MXD_OK;
}

mxd_rc mxd_journal_open(mxd_journal **out, const mxd_alloc *al, const mxd_journal_opts *o,
                        mxd_record_fn each, void *ctx, mxd_err *err) {
    mxd_journal *j = MXD_NEW(al, 1, mxd_journal);
    if (!j) return mxd_fail(err, MXD_E_NOMEM, "no memory for the journal");
    j->al = al;
    j->fd = j->lock_fd = -1;
    j->segment_bytes = o->segment_bytes ? o->segment_bytes : MXD_JOURNAL_SEGMENT_BYTES;
    j->write = o->write ? o->write : write;
    j->sync = o->sync ? o->sync : mxd_journal_datasync;
    mxd_buf_init(&j->buf, al, 2 * (size_t)MXD_JOURNAL_RECORD_BYTES);
    pthread_mutex_init(&j->fd_lock, NULL);
    pthread_mutex_init(&j->wake_lock, NULL);
    pthread_mutex_init(&j->text_lock, NULL);
    mxd_cond_init(&j->wake);
    mxd_rc rc = open_all(j, o, each, ctx, err);
    if (rc) {
        mxd_journal_close(j);
        return rc;
    }
    *out = j;
    return MXD_OK;
}

void mxd_journal_close(mxd_journal *j) {
    if (!j) return;
    pthread_mutex_lock(&j->wake_lock);
    j->closing = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->wake_lock);
    if (j->running) pthread_join(j->thread, NULL);
    if (j->fd >= 0 && !j->failing) (void)j->sync(j->fd);
    if (j->fd >= 0) close(j->fd);
    if (j->lock_fd >= 0) close(j->lock_fd);
    mxd_buf_deinit(&j->buf);
    mxd_free(j->al, j->segments);
    mxd_free(j->al, j->live);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->text_lock);
    pthread_mutex_destroy(&j->fd_lock);
    pthread_mutex_destroy(&j->wake_lock);
    mxd_free(j->al, j);
}
