/* test.h - tests register themselves with cmocka; the runner takes a name filter.
 *
 *   TEST(name) { CHECK(...); CHECK_EQ(a, b); }
 *   TEST_OOM(name) { ... return rc; }   rerun with the 1st, 2nd, ... allocation failing
 *
 * A test that cannot run calls SKIP("why"): it is printed and counted as skipped, never as passed.
 * Data files: test_path(out, "conformance/models/x/config.json") is relative to tests/. */
#ifndef MXD_TEST_H
#define MXD_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include "base/alloc.h"

typedef struct mxd_test {
    const char *name;
    void (*run)(void);
    mxd_rc (*run_oom)(const mxd_alloc *al, mxd_err *err);
    struct mxd_test *next;
} mxd_test;

void mxd_test_add(mxd_test *t);

/* "<tests folder>/<name>" in `out`; returns out. */
const char *test_path(char out[1024], const char *name);

#define MXD_TEST_REG_(n, ...)                            \
    static mxd_test reg_##n = {.name = #n, __VA_ARGS__}; \
    __attribute__((constructor)) static void add_##n(void) { mxd_test_add(&reg_##n); }

#define TEST(n)          \
    static void n(void); \
    MXD_TEST_REG_(n, .run = n) static void n(void)

/* Every failing run must return E_NOMEM and leave no byte behind. */
#define TEST_OOM(n)                                     \
    static mxd_rc n(const mxd_alloc *al, mxd_err *err); \
    MXD_TEST_REG_(n, .run_oom = n) static mxd_rc n(const mxd_alloc *al, mxd_err *err)

#define CHECK(e) assert_true(e)
#define CHECK_EQ(a, b)                                                        \
    do {                                                                      \
        long long a_ = (long long)(a), b_ = (long long)(b);                   \
        if (a_ != b_) fail_msg("%s is %lld, want %s = %lld", #a, a_, #b, b_); \
    } while (0)
#define CHECK_STR(a, b) assert_string_equal(a, b)
#define CHECK_OK(expr, err)                                                   \
    do {                                                                      \
        mxd_rc rc_ = (expr);                                                  \
        if (rc_) fail_msg("%s: %s: %s", #expr, mxd_rc_name(rc_), (err)->msg); \
    } while (0)
#define SKIP(why)                          \
    do {                                   \
        fprintf(stderr, "SKIP %s\n", why); \
        skip();                            \
    } while (0)

#endif
