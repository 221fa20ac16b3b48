#include "test.h"

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

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

static int run_all(int argc, char **argv) {
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

/* cmocka 1.1 says "not ok 3 # SKIP name" for a skipped test, which TAP readers take for a failure.
 */
static void print_line(char *line) {
    char *skip = strstr(line, " # SKIP");
    if (strncmp(line, "not ok", 6) == 0 && skip) line += 4;
    fputs(line, stdout);
    fflush(stdout);
}

/* The exit code of the tests, which run in a child so that its lines can be mended on their way. */
static int run_filtered(int argc, char **argv) {
    int ends[2];
    if (pipe(ends) != 0) return 1;
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        int rc = run_all(argc, argv);
        fflush(stdout);
        exit(rc);
    }
    close(ends[1]);
    FILE *in = fdopen(ends[0], "r");
    char line[4096];
    while (in && fgets(line, sizeof line, in)) print_line(line);
    if (in) fclose(in);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int main(int argc, char **argv) {
    const char *style = getenv("CMOCKA_MESSAGE_OUTPUT");
    bool tap = style && strcmp(style, "TAP") == 0;
    return tap ? run_filtered(argc, argv) : run_all(argc, argv);
}
