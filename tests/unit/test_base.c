#include "test.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/buf.h"
#include "base/dmath.h"
#include "base/file.h"
#include "base/map.h"
#include "base/pool.h"
#include "base/queue.h"
#include "base/rand.h"
#include "base/clock.h"

TEST(err_adds_context_in_front) {
    mxd_err err;
    mxd_rc rc = mxd_fail(&err, MXD_E_FORMAT, "tensor '%s' is short", "a");
    CHECK_EQ(mxd_wrap(&err, rc, "shard %d", 3), MXD_E_FORMAT);
    CHECK_STR(err.msg, "shard 3: tensor 'a' is short");
    CHECK_EQ(mxd_rc_http(MXD_E_BUSY), 429);
    CHECK_STR(mxd_rc_name(MXD_E_BUSY), "E_BUSY");
}

TEST(alloc_arena_refuses_what_cannot_fit) {
    mxd_arena a;
    CHECK_EQ(mxd_arena_init(&a, &mxd_alloc_libc, 1024, NULL), MXD_OK);
    CHECK(mxd_arena_take(&a, SIZE_MAX / 4 + 2, 4) == NULL); /* n * size wraps round to 4 */
    CHECK(mxd_arena_take(&a, 1, 2000) == NULL);
    float *x = MXD_TAKE(&a, 16, float);
    CHECK(x && (uintptr_t)x % 64 == 0 && x[15] == 0.0f);
    mxd_arena_reset(&a, 0);
    CHECK(MXD_TAKE(&a, 16, float) == x);
    mxd_arena_deinit(&a);
}

TEST(alloc_new_refuses_products_that_wrap) {
    CHECK(mxd_new(&mxd_alloc_libc, SIZE_MAX / 8 + 2, 8) == NULL);
    int *x = MXD_NEW(&mxd_alloc_libc, 4, int);
    x[3] = 7;
    x = mxd_renew(&mxd_alloc_libc, x, 8, sizeof *x);
    CHECK_EQ(x[3], 7);
    CHECK_EQ(x[7], 0);
    mxd_free(&mxd_alloc_libc, x);
}

TEST_OOM(alloc_two_arenas_unwind) {
    mxd_arena a, b;
    MXD_TRY(mxd_arena_init(&a, al, 100, err));
    mxd_rc rc = mxd_arena_init(&b, al, 100, err);
    if (!rc) mxd_arena_deinit(&b);
    mxd_arena_deinit(&a);
    return rc;
}

TEST(buf_stops_at_its_maximum) {
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 8);
    mxd_buf_puts(&b, "1234567");
    CHECK_EQ(b.rc, MXD_OK);
    mxd_buf_putc(&b, '8');
    CHECK_EQ(b.rc, MXD_OK);
    mxd_buf_putc(&b, '9');
    CHECK_EQ(b.rc, MXD_E_TOOBIG);
    mxd_buf_puts(&b, ""); /* a failure sticks */
    CHECK_EQ(mxd_buf_rc(&b, "text", NULL), MXD_E_TOOBIG);
    CHECK_STR(mxd_buf_str(&b), "12345678");
    mxd_buf_drop(&b, 6);
    CHECK_STR(mxd_buf_str(&b), "78");
    mxd_buf_deinit(&b);
}

TEST_OOM(buf_printf_reports_short_memory) {
    mxd_buf b;
    mxd_buf_init(&b, al, 100000);
    for (int i = 0; i < 500; i++) mxd_buf_printf(&b, "%d,", i);
    mxd_rc rc = mxd_buf_rc(&b, "numbers", err);
    if (!rc) CHECK_EQ(b.len, 10 * 2 + 90 * 3 + 400 * 4);
    mxd_buf_deinit(&b);
    return rc;
}

TEST(map_finds_what_was_put) {
    static char keys[3000][8];
    mxd_map m;
    CHECK_EQ(mxd_map_init(&m, &mxd_alloc_libc, 0, NULL), MXD_OK);
    for (int i = 0; i < 3000; i++) {
        bool was = true;
        int n = snprintf(keys[i], sizeof keys[i], "k%d", i);
        CHECK_EQ(mxd_map_put(&m, keys[i], (size_t)n, (uint64_t)i, &was, NULL), MXD_OK);
        CHECK(!was);
    }
    uint64_t v = 0;
    for (int i = 0; i < 3000; i++)
        CHECK(mxd_map_get(&m, keys[i], strlen(keys[i]), &v) && v == (uint64_t)i);
    CHECK(!mxd_map_get(&m, "k3000", 5, &v));
    CHECK(!mxd_map_get(&m, "k1", 1, &v)); /* a prefix is another key */
    mxd_map_deinit(&m);
}

TEST_OOM(map_grows_or_says_so) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz";
    mxd_map m;
    mxd_rc rc = mxd_map_init(&m, al, 0, err);
    for (size_t i = 0; !rc && i < 26; i++) rc = mxd_map_put(&m, letters + i, 1, i, NULL, err);
    mxd_map_deinit(&m);
    return rc;
}

TEST(rand_is_a_function_of_its_key) {
    CHECK(mxd_rand_u64(1, 2, 3) == mxd_rand_u64(1, 2, 3));
    CHECK(mxd_rand_u64(1, 2, 3) != mxd_rand_u64(1, 3, 2));
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        float u = mxd_rand_unit(7, 0, i);
        CHECK(u >= 0.0f && u < 1.0f);
        sum += u;
    }
    CHECK(sum > 4800 && sum < 5200);
}

typedef struct tally {
    atomic_int done[64];
} tally;

static void count(void *ctx, int task, int thread) {
    (void)thread;
    atomic_fetch_add(&((tally *)ctx)->done[task], 1);
}

TEST(pool_runs_each_task_once) {
    mxd_pool *p;
    CHECK_EQ(mxd_pool_open(&p, &mxd_alloc_libc, 4, 20, NULL), MXD_OK);
    for (int round = 0; round < 300; round++) {
        tally t = {0};
        mxd_pool_run(p, count, &t, 64);
        for (int i = 0; i < 64; i++) CHECK_EQ(t.done[i], 1);
        if (round % 100 == 0) mxd_sleep_ms(1); /* let the helpers fall asleep */
    }
    mxd_pool_close(p);
}

TEST_OOM(pool_opens_or_unwinds) {
    mxd_pool *p;
    MXD_TRY(mxd_pool_open(&p, al, 3, 0, err));
    mxd_pool_close(p);
    return MXD_OK;
}

static void *push_hundred(void *arg) {
    static int item;
    for (int i = 0; i < 100; i++)
        while (!mxd_queue_push(arg, &item)) mxd_sleep_ms(1);
    return NULL;
}

TEST(queue_is_bounded_and_loses_nothing) {
    mxd_queue *q;
    int x = 0;
    CHECK_EQ(mxd_queue_open(&q, &mxd_alloc_libc, 2, NULL), MXD_OK);
    CHECK(mxd_queue_push(q, &x) && mxd_queue_push(q, &x) && !mxd_queue_push(q, &x));
    CHECK(mxd_queue_pop(q, 0, 0) == &x && mxd_queue_pop(q, 0, 0) == &x);
    int64_t start = mxd_now_ms();
    CHECK(mxd_queue_pop(q, 20, 0) == NULL && mxd_now_ms() - start >= 19);
    pthread_t t[3];
    for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, push_hundred, q);
    for (int i = 0; i < 300; i++) CHECK(mxd_queue_pop(q, 10000, 10) != NULL);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    mxd_queue_close(q);
    CHECK(!mxd_queue_push(q, &x) && mxd_queue_pop(q, -1, 0) == NULL);
    mxd_queue_free(q);
}

TEST(dmath_agrees_with_the_c_library) {
    for (int i = 0; i < 20000; i++) {
        double x = ((double)mxd_rand_unit(3, 0, (uint64_t)i) - 0.5) * 1400;
        double got = mxd_exp64(x), want = exp(x);
        CHECK(fabs(got - want) <= 4e-16 * want + 1e-300);
        double y = exp(x / 2);
        CHECK(fabs(mxd_log64(y) - log(y)) <= 4e-16 * fabs(log(y)) + 1e-16);
    }
    CHECK(mxd_exp64(0) == 1 && mxd_log64(1) == 0);
    CHECK(mxd_exp64(-800) == 0 && isinf(mxd_exp64(800)) && isinf(mxd_log64(0)));
    CHECK(isnan(mxd_log64(-1)) && isnan(mxd_exp64((double)NAN)));
}

TEST(file_is_replaced_whole_and_read_whole) {
    char dir[64], path[MXD_PATH_MAX], *text = NULL;
    mxd_err err = {0};
    size_t n = 0;
    snprintf(dir, sizeof dir, "/tmp/mxd-file-%ld/a/b", (long)getpid());
    CHECK_OK(mxd_folder_make(dir, &err), &err);
    CHECK_OK(mxd_folder_make(dir, &err), &err); /* there already */
    CHECK_OK(mxd_file_replace(dir, "x", "one", 3, &err), &err);
    CHECK_OK(mxd_file_replace(dir, "x", "longer", 6, &err), &err);
    CHECK_OK(mxd_path_join(path, dir, "x", &err), &err);
    CHECK_OK(mxd_file_read(&mxd_alloc_libc, path, 6, &text, &n, &err), &err);
    CHECK_STR(text, "longer");
    CHECK_EQ(n, 6);
    mxd_free(&mxd_alloc_libc, text);
    CHECK_EQ(mxd_file_read(&mxd_alloc_libc, path, 5, &text, &n, &err), MXD_E_TOOBIG);
    struct stat st;
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    unlink(path);
    CHECK_EQ(mxd_file_read(&mxd_alloc_libc, path, 6, &text, &n, &err), MXD_E_NOTFOUND);
    rmdir(dir);
    *strrchr(dir, '/') = '\0';
    rmdir(dir);
    *strrchr(dir, '/') = '\0';
    rmdir(dir);
}
