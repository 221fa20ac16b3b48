/* The journal: whatever happens to its bytes, what comes back is a prefix of what was written. */
#include "cluster/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "cluster/kept.h"
#include "test.h"

enum { MAX_SEEN = 4096 };

static char dir[64];
static struct {
    int n;
    struct {
        mxd_record_kind kind;
        uint64_t stream;
        uint32_t sum;
    } r[MAX_SEEN];
} seen;

static uint32_t sum_of(const unsigned char *p, size_t n) {
    uint32_t s = (uint32_t)n;
    for (size_t i = 0; i < n; i++) s = s * 31 + p[i];
    return s;
}

static mxd_rc note(void *ctx, const mxd_record *r, mxd_err *err) {
    (void)ctx, (void)err;
    CHECK(seen.n < MAX_SEEN);
    seen.r[seen.n].kind = r->kind;
    seen.r[seen.n].stream = r->stream;
    seen.r[seen.n++].sum = sum_of(r->bytes, r->n);
    return MXD_OK;
}

static void begin(void) {
    snprintf(dir, sizeof dir, "/tmp/mxd-journal-XXXXXX");
    CHECK(mkdtemp(dir));
}

static void end(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK_EQ(system(command), 0);
}

static mxd_journal *opened(const mxd_journal_opts *more) {
    mxd_journal_opts o = more ? *more : (mxd_journal_opts){0};
    mxd_journal *j;
    mxd_err err = {0};
    o.dir = dir;
    seen.n = 0;
    CHECK_OK(mxd_journal_open(&j, &mxd_alloc_libc, &o, note, NULL, &err), &err);
    return j;
}

static void put(mxd_journal *j, mxd_record_kind kind, uint64_t stream, const char *text) {
    mxd_err err = {0};
    mxd_journal_put(j, kind, stream, text, strlen(text));
    CHECK_OK(mxd_journal_write(j, &err), &err);
}

/* Segments of folder 0 that there are, and the path of the last. */
static int segments(char last[1024]) {
    char pattern[128];
    glob_t g;
    snprintf(pattern, sizeof pattern, "%s/0/*.log", dir);
    int n = glob(pattern, 0, NULL, &g) == 0 ? (int)g.gl_pathc : 0;
    if (n && last) snprintf(last, 1024, "%s", g.gl_pathv[n - 1]);
    globfree(&g);
    return n;
}

static const char *const words[] = {"first", "", "second and longer", "x", "the last one"};
enum { N_WORDS = sizeof words / sizeof *words };

static char *one_segment(size_t *n) {
    char path[1024], *text = NULL;
    mxd_err err = {0};
    mxd_journal *j = opened(NULL);
    put(j, MXD_REC_OPEN, 7, words[0]);
    for (int i = 1; i < N_WORDS; i++) put(j, MXD_REC_TOKEN, 7, words[i]);
    mxd_journal_close(j);
    CHECK_EQ(segments(path), 1);
    CHECK_OK(mxd_file_read(&mxd_alloc_libc, path, 1 << 20, &text, n, &err), &err);
    return text;
}

/* What was seen is the beginning of words. */
static void check_prefix(void) {
    CHECK(seen.n <= N_WORDS);
    for (int i = 0; i < seen.n; i++) {
        CHECK_EQ(seen.r[i].stream, 7);
        CHECK_EQ(seen.r[i].sum, sum_of((const unsigned char *)words[i], strlen(words[i])));
    }
}

static size_t scan(const char *bytes, size_t n) {
    size_t valid = 0;
    mxd_err err = {0};
    seen.n = 0;
    CHECK_OK(mxd_journal_scan((const unsigned char *)bytes, n, note, NULL, &valid, &err), &err);
    CHECK(valid <= n);
    check_prefix();
    return valid;
}

TEST(journal_what_was_written_comes_back) {
    begin();
    mxd_journal *j = opened(NULL);
    CHECK_EQ(seen.n, 0);
    mxd_journal_put_epoch(j, 41);
    mxd_journal_put(j, MXD_REC_OPEN, 12, "abc", 3);
    mxd_journal_put(j, MXD_REC_TOKEN, 12, "d", 1);
    mxd_journal_put(j, MXD_REC_TOKEN, 99, "nobody's", 8); /* not open */
    mxd_err err = {0};
    CHECK_OK(mxd_journal_write(j, &err), &err);
    CHECK_OK(mxd_journal_sync(j, &err), &err);
    CHECK(mxd_journal_holds(j, 12) && !mxd_journal_holds(j, 99));
    mxd_journal_close(j);
    j = opened(NULL);
    CHECK_EQ(seen.n, 3);
    CHECK_EQ(seen.r[0].kind, MXD_REC_EPOCH);
    CHECK_EQ(seen.r[2].sum, sum_of((const unsigned char *)"d", 1));
    CHECK_EQ(mxd_journal_epoch(j), 41);
    CHECK_EQ(mxd_journal_stream(j), 12);
    mxd_journal_close(j);
    end();
}

TEST(journal_cut_at_every_byte) {
    begin();
    size_t n, last = 0;
    char *text = one_segment(&n);
    for (size_t k = 0; k <= n; k++) {
        size_t valid = scan(text, k);
        CHECK(valid >= last);
        CHECK(k < n || (valid == n && seen.n == N_WORDS));
        CHECK_EQ(scan(text, valid), valid);
        last = valid;
    }
    mxd_free(&mxd_alloc_libc, text);
    end();
}

TEST(journal_every_byte_flipped) {
    begin();
    size_t n;
    char *text = one_segment(&n);
    for (size_t k = 0; k < n; k++)
        for (int bit = 0; bit < 8; bit++) {
            text[k] ^= (char)(1 << bit);
            CHECK(scan(text, n) <= k); /* nothing at or behind the damage is believed */
            text[k] ^= (char)(1 << bit);
        }
    mxd_free(&mxd_alloc_libc, text);
    end();
}

/* On disk: the file is cut, later segments are not believed, and what is written next counts. */
TEST(journal_goes_on_behind_a_torn_tail) {
    begin();
    char path[1024], later[2100];
    size_t n;
    mxd_free(&mxd_alloc_libc, one_segment(&n));
    CHECK_EQ(segments(path), 1);
    CHECK_EQ(truncate(path, (off_t)n - 3), 0);
    snprintf(later, sizeof later, "cp %s %s/0/00000009.log", path, dir);
    CHECK_EQ(system(later), 0);
    mxd_journal *j = opened(NULL);
    CHECK_EQ(seen.n, N_WORDS - 1);
    check_prefix();
    put(j, MXD_REC_TOKEN, 7, words[N_WORDS - 1]);
    mxd_journal_close(j);
    j = opened(NULL);
    CHECK_EQ(seen.n, N_WORDS);
    check_prefix();
    mxd_journal_close(j);
    end();
}

TEST(journal_segments_go_when_nobody_needs_them) {
    begin();
    char big[600];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    const mxd_journal_opts small = {.segment_bytes = 2000};
    mxd_journal *j = opened(&small);
    mxd_journal_put_epoch(j, 5);
    put(j, MXD_REC_OPEN, 1, big);
    for (int i = 0; i < 20; i++) put(j, MXD_REC_TOKEN, 1, big);
    int grown = segments(NULL);
    CHECK(grown >= 7);
    put(j, MXD_REC_OPEN, 2, big);
    put(j, MXD_REC_GONE, 1, "");
    CHECK(segments(NULL) <= 2);
    for (int i = 0; i < 7; i++) put(j, MXD_REC_TOKEN, 2, big);
    mxd_journal_close(j);
    j = opened(&small);
    int n = 0;
    for (int i = 0; i < seen.n; i++) n += seen.r[i].stream == 2;
    CHECK_EQ(n, 8);
    CHECK_EQ(mxd_journal_epoch(j), 5); /* its record's segment has gone */
    CHECK_EQ(mxd_journal_stream(j), 2);
    put(j, MXD_REC_GONE, 2, "");
    mxd_journal_close(j);
    j = opened(&small);
    CHECK_EQ(segments(NULL), 1);
    mxd_journal_close(j);
    end();
}

TEST(journal_two_processes_have_two_folders) {
    begin();
    mxd_journal *a = opened(NULL);
    put(a, MXD_REC_OPEN, 3, "a");
    mxd_journal *b = opened(NULL);
    CHECK_EQ(seen.n, 0);
    mxd_journal_close(a);
    a = opened(NULL);
    CHECK_EQ(seen.n, 1);
    mxd_journal_close(a);
    mxd_journal_close(b);
    end();
}

/* ------------------------------------------------------------------------------- disks that fail
 */

static int bytes_left = 1 << 30, sync_errno;

static ssize_t full_disk(int fd, const void *bytes, size_t n) {
    size_t k = n < (size_t)bytes_left ? n : (size_t)bytes_left;
    if (!k) {
        errno = ENOSPC;
        return -1;
    }
    bytes_left -= (int)k;
    return write(fd, bytes, k);
}

static int failing_sync(int fd) {
    (void)fd;
    errno = sync_errno;
    return sync_errno ? -1 : 0;
}

TEST(journal_full_disk) {
    begin();
    const mxd_journal_opts o = {.write = full_disk, .sync = failing_sync};
    mxd_err err = {0};
    char text[200];
    sync_errno = 0;
    bytes_left = 1 << 20;
    mxd_journal *j = opened(&o);
    mxd_journal_put_epoch(j, 3);
    CHECK_OK(mxd_journal_write(j, &err), &err);
    put(j, MXD_REC_OPEN, 7, words[0]);
    put(j, MXD_REC_TOKEN, 7, words[1]);
    bytes_left = 5; /* a torn record */
    mxd_journal_put(j, MXD_REC_TOKEN, 7, words[2], strlen(words[2]));
    CHECK_EQ(mxd_journal_write(j, &err), MXD_E_IO);
    CHECK_EQ(err.sys, ENOSPC);
    CHECK(mxd_journal_problem(j, text, sizeof text));
    CHECK(!mxd_journal_holds(j, 7));
    mxd_journal_put(j, MXD_REC_OPEN, 8, "refused", 7);
    CHECK_EQ(mxd_journal_write(j, &err), MXD_E_IO);
    mxd_journal_put_epoch(j, 9);
    mxd_journal_tick(j, INT64_MAX); /* still full */
    CHECK(mxd_journal_problem(j, text, sizeof text));
    bytes_left = 1 << 20;
    mxd_journal_tick(j, 0); /* not yet its time */
    CHECK(mxd_journal_problem(j, text, sizeof text));
    mxd_journal_tick(j, INT64_MAX);
    CHECK(!mxd_journal_problem(j, text, sizeof text));
    put(j, MXD_REC_OPEN, 9, "again");
    put(j, MXD_REC_TOKEN, 7, "nobody reads it");
    mxd_journal_close(j);
    j = opened(NULL);
    int n7 = 0, n9 = 0;
    for (int i = 0; i < seen.n; i++) {
        n7 += seen.r[i].stream == 7 && seen.r[i].kind != MXD_REC_GONE;
        n9 += seen.r[i].stream == 9;
    }
    CHECK_EQ(n7, 0);
    CHECK_EQ(n9, 1);
    CHECK_EQ(mxd_journal_epoch(j), 9);
    CHECK(!mxd_journal_holds(j, 7) && mxd_journal_holds(j, 9));
    mxd_journal_close(j);
    end();
}

TEST(journal_disk_that_does_not_sync) {
    begin();
    const mxd_journal_opts o = {.write = full_disk, .sync = failing_sync};
    mxd_err err = {0};
    bytes_left = 1 << 20;
    sync_errno = 0;
    mxd_journal *j = opened(&o);
    put(j, MXD_REC_OPEN, 7, words[0]);
    sync_errno = EIO;
    CHECK_EQ(mxd_journal_sync(j, &err), MXD_E_IO);
    CHECK(!mxd_journal_holds(j, 7));
    sync_errno = 0;
    mxd_journal_tick(j, INT64_MAX);
    put(j, MXD_REC_OPEN, 8, words[0]);
    CHECK(mxd_journal_holds(j, 8) && !mxd_journal_holds(j, 7));
    mxd_journal_close(j);
    end();
}

TEST(journal_folder_that_cannot_be_made) {
    mxd_journal *j = NULL;
    mxd_err err = {0};
    const mxd_journal_opts o = {.dir = "/dev/null/journal"};
    CHECK_EQ(mxd_journal_open(&j, &mxd_alloc_libc, &o, note, NULL, &err), MXD_E_IO);
    CHECK(err.msg[0] && !j);
}

TEST_OOM(journal_oom) {
    mxd_journal *j = NULL;
    const mxd_journal_opts o = {.dir = dir};
    begin();
    mxd_rc rc = mxd_journal_open(&j, al, &o, note, NULL, err);
    if (!rc) {
        mxd_journal_put(j, MXD_REC_OPEN, 7, "abc", 3);
        rc = mxd_journal_write(j, err);
        mxd_journal_close(j);
    }
    end();
    return rc;
}

/* ---------------------------------------------------------------------------- requests in records
 */

static const int32_t prompt[] = {5, 6, 7}, stops[] = {2};
static const mxd_logit_bias bias[] = {{4, -100}, {9, 1.5f}};

static mxd_request request(void) {
    return (mxd_request){.prompt = prompt,
                         .n_prompt = 3,
                         .max_tokens = 20,
                         .min_tokens = 1,
                         .stop_ids = stops,
                         .n_stop_ids = 1,
                         .timeout_ms = 600000,
                         .keep = "body",
                         .n_keep = 4,
                         .how = {.temperature = .7f,
                                 .top_p = .9f,
                                 .top_k = 40,
                                 .seed = 1234567890123456789ull,
                                 .choice = 1,
                                 .logprobs = true,
                                 .n_top = 1,
                                 .n_bias = 2,
                                 .bias = bias}};
}

static void take(mxd_kept_list *l, mxd_record_kind kind, mxd_buf *b) {
    mxd_err err = {0};
    const mxd_record r = {kind, 7, (const unsigned char *)mxd_buf_str(b), b->len};
    CHECK_OK(mxd_kept_take(l, &r, &err), &err);
    mxd_buf_clear(b);
}

static mxd_kept_request *kept_with_tokens(mxd_kept_list *l, mxd_buf *b, int n) {
    static const unsigned char model[MXD_KEPT_MODEL] = {1, 2, 3};
    mxd_request r = request();
    mxd_kept_put_open(b, &r, model);
    take(l, MXD_REC_OPEN, b);
    for (int i = 0; i < n; i++) {
        mxd_sampled s = {.token = 10 + i, .logprob = -.5f, .n_top = 1, .top_id = {3}};
        mxd_kept_put_token(b, (uint32_t)i, &s, true);
        take(l, MXD_REC_TOKEN, b);
    }
    return mxd_kept_find(l, 7);
}

TEST(kept_a_request_comes_back_whole) {
    mxd_kept_list l = {.al = &mxd_alloc_libc};
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    const mxd_kept_request *q = kept_with_tokens(&l, &b, 3);
    mxd_request want = request();
    CHECK(q && q->model[2] == 3);
    CHECK_EQ(q->r.n_prompt, 3);
    CHECK_EQ(q->r.prompt[2], 7);
    CHECK_EQ(q->r.max_tokens, 20);
    CHECK_EQ(q->r.stop_ids[0], 2);
    CHECK(q->r.how.seed == want.how.seed && q->r.how.temperature == want.how.temperature);
    CHECK(q->r.how.n_bias == 2 && q->r.how.bias[1].bias == 1.5f && q->r.how.choice == 1);
    CHECK_EQ(q->k.n_keep, 4);
    assert_memory_equal(q->k.keep, "body", 4);
    CHECK_EQ(q->k.n_tokens, 3);
    CHECK(q->k.tokens[2].token == 12 && q->k.tokens[2].logprob == -.5f);
    CHECK(q->k.tokens[2].n_top == 1 && q->k.tokens[2].top_id[0] == 3);
    CHECK(!q->k.ended && !q->k.stopped);
    mxd_request_end over = {.how = MXD_END_LENGTH, .n_cached = 2, .decode_ms = 5, .text = "why"};
    mxd_kept_put_end(&b, &over, 2, 99); /* not of these tokens */
    take(&l, MXD_REC_END, &b);
    CHECK(!q->k.ended);
    mxd_kept_put_end(&b, &over, 3, 99);
    take(&l, MXD_REC_END, &b);
    CHECK(q->k.ended && q->k.end_wall_ms == 99 && q->k.end.n_cached == 2);
    CHECK_STR(q->k.end.text, "why");
    take(&l, MXD_REC_GONE, &b);
    CHECK(!l.first);
    mxd_buf_deinit(&b);
}

TEST(kept_tokens_follow_each_other) {
    mxd_kept_list l = {.al = &mxd_alloc_libc};
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    mxd_kept_request *q = kept_with_tokens(&l, &b, 2);
    mxd_sampled s = {.token = 50};
    for (uint32_t index = 0; index < 6; index++) {
        if (index == 2) continue;
        mxd_kept_put_token(&b, index, &s, true);
        take(&l, MXD_REC_TOKEN, &b);
        CHECK_EQ(q->k.n_tokens, 2);
    }
    s.token = 2; /* a stop id: the last one */
    mxd_kept_put_token(&b, 2, &s, true);
    take(&l, MXD_REC_TOKEN, &b);
    CHECK(q->k.n_tokens == 3 && q->k.stopped);
    mxd_kept_put_token(&b, 3, &s, true);
    take(&l, MXD_REC_TOKEN, &b);
    CHECK_EQ(q->k.n_tokens, 3);
    mxd_kept_drop(&l, q);
    mxd_buf_deinit(&b);
}

/* An OPEN cut anywhere is no request, and nothing else happens. */
TEST(kept_half_a_request_is_none) {
    static const unsigned char model[MXD_KEPT_MODEL];
    mxd_kept_list l = {.al = &mxd_alloc_libc};
    mxd_request r = request();
    mxd_err err = {0};
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    mxd_kept_put_open(&b, &r, model);
    mxd_log_set_level(MXD_LOG_ERROR); /* each is told */
    for (size_t n = 0; n < b.len; n++) {
        const mxd_record rec = {MXD_REC_OPEN, 7, (const unsigned char *)b.ptr, n};
        CHECK_OK(mxd_kept_take(&l, &rec, &err), &err);
        CHECK(!l.first);
    }
    mxd_log_set_level(MXD_LOG_INFO);
    mxd_buf_deinit(&b);
}
