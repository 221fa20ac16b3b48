#include "test.h"

#include <stdlib.h>

static mxd_test *tests;

void mxd_test_add(mxd_test *t) {
    t->next = tests;
    tests = t;
}

const char *test_path(char out[1024], const char *name) {
    const char *root = getenv("MXD_TEST_DATA");
    snprintf(out, 1024, "%s/%s", root ? root : "tests", name);
    return out;
}

typedef struct failing {
    _Atomic size_t live_bytes; /* transports allocate on several threads */
    _Atomic int calls_left;
} failing;

static void *failing_resize(void *ctx, void *p, size_t old_bytes, size_t new_bytes) {
    failing *f = ctx;
    if (new_bytes && f->calls_left-- <= 0) return NULL;
    void *q = mxd_alloc_libc.resize(NULL, p, old_bytes, new_bytes);
    if (new_bytes && !q) return NULL;
    f->live_bytes += new_bytes - old_bytes;
    return q;
}

static void run_oom(const mxd_test *t) {
    for (int n = 0; n < 100000; n++) {
        failing f = {.calls_left = n};
        mxd_alloc al = {failing_resize, &f};
        mxd_err err = {0};
        mxd_rc rc = t->run_oom(&al, &err);
        if (f.live_bytes) fail_msg("%zu bytes leaked when allocation %d fails", f.live_bytes, n);
        if (rc == MXD_OK) {
            CHECK(n > 0); /* a test that never allocates tests nothing */
            return;
        }
        if (rc != MXD_E_NOMEM) fail_msg("allocation %d fails: %s: %s", n, mxd_rc_name(rc), err.msg);
    }
    fail_msg("%s never succeeds", t->name);
}

static void run_one(void **state) {
    const mxd_test *t = *state;
    if (t->run) t->run();
    if (t->run_oom) run_oom(t);
}

int main(int argc, char **argv) {
    size_t n = 0, i = 0;
    for (mxd_test *t = tests; t; t = t->next) n++;
    struct CMUnitTest *list = calloc(n + 1, sizeof *list);
    if (!list) return 1;
    for (mxd_test *t = tests; t; t = t->next) {
        if (argc > 1 && !strstr(t->name, argv[1])) continue;
        list[i++] = (struct CMUnitTest){t->name, run_one, NULL, NULL, t};
    }
    int failed = i ? _cmocka_run_group_tests("unit", list, i, NULL, NULL) : 1;
    free(list);
    return failed != 0;
}
