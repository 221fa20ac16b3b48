/* mlx-dist-worker: joins a server and runs its share of the model.
 *
 * Started by a person it has --join and, the first time, a token: its certificate is kept in the
 * state folder, so a restart needs none. Started by a server on the same machine (--bootstrap, not
 * for people) it reads who it is from standard input, and ends when that is closed: its server is
 * gone. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/main_kit.h"
#include "cli/worker_fault.h"
#include "cli/worker_identity.h"
#include "cluster/worker.h"
#include "formats/json.h"
#include "hardware/hardware.h"
#include "hub/resolve.h"

enum { BOOTSTRAP_MAX = 256 << 10, WAIT_MS = 100 };

/* ------------------------------------------------------------------------- started by a server */

/* One line of JSON from standard input. */
static mxd_rc read_bootstrap(json_t **out, mxd_err *err) {
    mxd_buf text;
    mxd_buf_init(&text, &mxd_alloc_libc, BOOTSTRAP_MAX);
    for (char c; read(STDIN_FILENO, &c, 1) == 1 && c != '\n';) mxd_buf_putc(&text, c);
    mxd_rc rc = mxd_buf_rc(&text, "bootstrap", err);
    if (!rc) rc = mxd_json_parse(out, mxd_buf_str(&text), text.len, err);
    mxd_buf_deinit(&text);
    return rc ? mxd_wrap(err, rc, "--bootstrap is for servers that start their own workers")
              : MXD_OK;
}

static const char *text_of(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

/* True when the server is gone: standard input has ended. */
static bool orphaned(void) {
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    if (poll(&p, 1, WAIT_MS) <= 0) return false;
    char c;
    ssize_t n = read(STDIN_FILENO, &c, 1);
    return n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN);
}

static mxd_rc serve_parent(mxd_worker *w, mxd_err *err) {
    bool draining = false;
    for (;;) {
        mxd_rc rc = mxd_worker_wait(w, 0, err);
        if (rc != MXD_E_TIMEOUT) return rc;
        if (orphaned()) return MXD_OK;
        if (!draining && mxd_signals_wait(0)) {
            draining = true;
            mxd_worker_drain(w);
        }
    }
}

static mxd_paces paces_of(const json_t *list) {
    double v[7] = {0};
    for (size_t i = 0; i < MXD_COUNT(v); i++) v[i] = json_number_value(json_array_get(list, i));
    return (mxd_paces){v[0], v[1], v[2], v[3], v[4], v[5], v[6]};
}

static mxd_rc bootstrapped(mxd_err *err) {
    json_t *b = NULL;
    MXD_TRY(read_bootstrap(&b, err));
    mxd_log_set_level((mxd_log_level)json_integer_value(json_object_get(b, "log_level")));
    mxd_log_set_name(text_of(b, "node"));
    mxd_worker_opts o = {
        .node = text_of(b, "node"),
        .join = text_of(b, "join"),
        .listen = text_of(b, "listen"),
        .identity = {text_of(b, "ca"), text_of(b, "cert"), text_of(b, "key")},
        .local = true,
        .stall_ms = mxd_worker_fault(),
        .memory_total = (uint64_t)json_integer_value(json_object_get(b, "memory_total")),
        .memory_free = (uint64_t)json_integer_value(json_object_get(b, "memory_free")),
        .bandwidth = json_number_value(json_object_get(b, "bandwidth")),
        .ops = json_number_value(json_object_get(b, "ops")),
        .paces = paces_of(json_object_get(b, "paces"))};
    mxd_worker *w = NULL;
    mxd_rc rc = mxd_worker_open(&w, &mxd_alloc_libc, &o, err);
    json_decref(b);
    if (!rc) rc = serve_parent(w, err);
    mxd_worker_close(w);
    return rc;
}

static int bootstrap_main(void) {
    mxd_err err = {0};
    signal(SIGPIPE, SIG_IGN);
    mxd_signals_catch();
    mxd_rc rc = bootstrapped(&err);
    if (rc) mxd_main_print_error(MXD_PROG_WORKER, &err);
    return mxd_rc_exit(rc);
}

/* -------------------------------------------------------------------------- started by a person */

/* The coordinator's model by its public name, on this machine. */
static bool find_model(void *ctx, const char *model, char *folder, size_t cap) {
    char found[MXD_HUB_PATH_MAX];
    if (mxd_main_find_model(ctx, model, found, NULL) != MXD_OK) return false;
    snprintf(folder, cap, "%s", found);
    return true;
}

static mxd_rc fill_hardware(const mxd_options *o, mxd_worker_opts *w, mxd_err *err) {
    mxd_hardware h;
    MXD_TRY(mxd_hardware_detect(&h, &mxd_alloc_libc,
                                &(mxd_hardware_opts){.probe = true, .threads = w->threads}, err));
    if (!w->threads) w->threads = h.logical_cpus; /* as many as a container's quota lets run */
    w->memory_total = h.memory_total_bytes;
    w->memory_free = h.memory_available_bytes;
    w->bandwidth = h.read_bytes_per_s;
    w->ops = h.dot_ops_per_s;
    w->paces = h.paces;
    if (mxd_opt_given(o, MXD_OPT_MEMORY)) w->memory_free = (uint64_t)mxd_opt_int(o, MXD_OPT_MEMORY);
    return MXD_OK;
}

static mxd_rc wait_for_end(mxd_worker *w, const mxd_options *o, mxd_err *err) {
    int64_t give_up_ms = 0;
    for (;;) {
        mxd_rc rc = mxd_worker_wait(w, WAIT_MS, err);
        if (rc != MXD_E_TIMEOUT) return rc;
        if (give_up_ms && mxd_now_ms() > give_up_ms) return MXD_OK;
        if (mxd_signals_take_hup()) MXD_TRY(mxd_main_open_log(o, err));
        if (give_up_ms || !mxd_signals_wait(0)) continue;
        give_up_ms = mxd_now_ms() + mxd_opt_int(o, MXD_OPT_DRAIN_TIMEOUT);
        mxd_worker_drain(w);
    }
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    mxd_worker_identity id = {0};
    mxd_worker_opts w = {.join = mxd_opt_text(o, MXD_OPT_JOIN),
                         .listen = mxd_opt_text(o, MXD_OPT_DATA_LISTEN),
                         .advertise = mxd_opt_text(o, MXD_OPT_ADVERTISE),
                         .backend = mxd_opt_unless_auto(o, MXD_OPT_BACKEND),
                         .kernels = mxd_opt_unless_auto(o, MXD_OPT_KERNELS),
                         .threads = (int)mxd_opt_int(o, MXD_OPT_THREADS),
                         .stall_ms = mxd_worker_fault(),
                         .find_model = find_model,
                         .find_ctx = (void *)(uintptr_t)o,
                         .renewed = mxd_worker_identity_renewed,
                         .renewed_ctx = (void *)(uintptr_t)o};
    MXD_TRY(mxd_opt_need(o, MXD_OPT_JOIN, err));
    mxd_signals_catch();
    MXD_TRY(fill_hardware(o, &w, err));
    mxd_worker *worker = NULL;
    mxd_rc rc = mxd_worker_identity_get(&id, o, err);
    if (!rc) {
        w.node = id.node;
        w.identity = (mxd_identity){id.ca, id.pem.cert, id.pem.key};
        rc = mxd_worker_open(&worker, &mxd_alloc_libc, &w, err);
    }
    if (!rc) rc = wait_for_end(worker, o, err);
    mxd_worker_close(worker);
    mxd_worker_identity_deinit(&id);
    return rc;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--bootstrap") == 0) return bootstrap_main();
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, MXD_PROG_WORKER, argc, argv, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
