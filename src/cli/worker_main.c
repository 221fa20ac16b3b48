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
#include "base/file.h"
#include "base/log.h"
#include "cli/main_kit.h"
#include "cli/worker_fault.h"
#include "cli/worker_find.h"
#include "cli/worker_identity.h"
#include "cluster/worker.h"
#include "formats/json.h"
#include "hardware/hardware.h"
#include "hub/resolve.h"

enum {
    BOOTSTRAP_MAX = 256 << 10,
    WAIT_MS = 100,
    FIND_MS = 30000,   /* a newcomer looks so long for its server */
    ANOTHER_MS = 3000, /* and so long for another, when one has refused it */
    LOST_MS = 20000,   /* not a member for so long: with --join auto it looks anew */
};

/* A folder of ours in the user's cache; false: there is none. */
static bool in_cache(char out[MXD_PATH_MAX], const char *name) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char dir[MXD_PATH_MAX];
    if (cache && cache[0] == '/')
        return mxd_path_join(dir, cache, "mlx-distributed", NULL) == MXD_OK &&
               mxd_path_join(out, dir, name, NULL) == MXD_OK;
    return home && home[0] && mxd_path_join(dir, home, ".cache/mlx-distributed", NULL) == MXD_OK &&
           mxd_path_join(out, dir, name, NULL) == MXD_OK;
}

/* For what may lie on the disk while we run; NULL: there is no such place. */
static const char *scratch_dir(char out[MXD_PATH_MAX]) {
    mxd_err err = {0};
    return in_cache(out, "scratch") && mxd_folder_make(out, &err) == MXD_OK ? out : NULL;
}

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
    double v[9] = {0};
    for (size_t i = 0; i < MXD_COUNT(v); i++) v[i] = json_number_value(json_array_get(list, i));
    return (mxd_paces){v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8]};
}

static mxd_rc bootstrapped(mxd_err *err) {
    json_t *b = NULL;
    MXD_TRY(read_bootstrap(&b, err));
    mxd_log_set_level((mxd_log_level)json_integer_value(json_object_get(b, "log_level")));
    mxd_log_set_name(text_of(b, "node"));
    char scratch[MXD_PATH_MAX];
    mxd_worker_opts o = {
        .node = text_of(b, "node"),
        .join = text_of(b, "join"),
        .listen = text_of(b, "listen"),
        .identity = {text_of(b, "ca"), text_of(b, "cert"), text_of(b, "key")},
        .local = true,
        .scratch_dir = scratch_dir(scratch),
        .stall_ms = mxd_worker_fault(),
        .memory_total = (uint64_t)json_integer_value(json_object_get(b, "memory_total")),
        .memory_free = (uint64_t)json_integer_value(json_object_get(b, "memory_free")),
        .bandwidth = json_number_value(json_object_get(b, "bandwidth")),
        .ops = json_number_value(json_object_get(b, "ops")),
        .paces = paces_of(json_object_get(b, "paces")),
        .cpus = json_number_value(json_object_get(b, "cpus")),
        .host_cpus = json_number_value(json_object_get(b, "host_cpus"))};
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

/* Where the coordinator's model may be on this machine: by its public name, then whatever is there;
 * the worker looks into it. */
static bool find_model(void *ctx, const char *model, int k, char *folder, size_t cap) {
    char found[MXD_HUB_PATH_MAX];
    if (!mxd_main_candidate(ctx, model, k, found)) return false;
    snprintf(folder, cap, "%s", found);
    return true;
}

/* Where weights go that come over the network. */
static mxd_rc weights_dir(const mxd_options *o, char out[MXD_PATH_MAX], mxd_err *err) {
    const char *given = mxd_opt_text(o, MXD_OPT_WEIGHTS_DIR);
    if (given) return mxd_path_join(out, given, "", err);
    if (in_cache(out, "weights")) return MXD_OK;
    return mxd_fail(err, MXD_E_CONFIG,
                    "no place for weights: neither XDG_CACHE_HOME nor HOME is set; name one with "
                    "--weights-dir");
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
    w->cpus = mxd_hardware_cpus(&h, w->threads);
    w->host_cpus = h.online_cpus;
    if (mxd_opt_given(o, MXD_OPT_MEMORY)) w->memory_free = (uint64_t)mxd_opt_int(o, MXD_OPT_MEMORY);
    return MXD_OK;
}

/* *lost, when it is not NULL: set when the worker is no member for so long that its server may be
 * elsewhere; then nothing is wrong. */
static mxd_rc wait_for_end(mxd_worker *w, const mxd_options *o, bool *lost, mxd_err *err) {
    int64_t give_up_ms = 0, member_ms = mxd_now_ms();
    for (;;) {
        mxd_rc rc = mxd_worker_wait(w, WAIT_MS, err);
        if (rc != MXD_E_TIMEOUT) return rc;
        if (mxd_worker_is_member(w)) member_ms = mxd_now_ms();
        if (lost && !give_up_ms) *lost = mxd_now_ms() - member_ms > LOST_MS;
        if (lost && *lost) return MXD_OK;
        if (give_up_ms && mxd_now_ms() > give_up_ms) return MXD_OK;
        if (mxd_signals_take_hup()) MXD_TRY(mxd_main_open_log(o, err));
        if (give_up_ms || !mxd_signals_wait(0)) continue;
        give_up_ms = mxd_now_ms() + mxd_opt_int(o, MXD_OPT_DRAIN_TIMEOUT);
        mxd_worker_drain(w);
    }
}

/* A worker that joins there, to its end. */
static mxd_rc run_at(const mxd_options *o, mxd_worker_opts *w, const char *join, bool *lost,
                     mxd_err *err) {
    mxd_worker_identity id = {0};
    mxd_worker *worker = NULL;
    mxd_rc rc = mxd_worker_identity_get(&id, o, join, err);
    if (!rc) {
        w->join = join;
        w->node = id.node;
        w->identity = (mxd_identity){id.ca, id.pem.cert, id.pem.key};
        rc = mxd_worker_open(&worker, &mxd_alloc_libc, w, err);
    }
    if (!rc) rc = wait_for_end(worker, o, lost, err);
    mxd_worker_close(worker);
    mxd_worker_identity_deinit(&id);
    return rc;
}

/* Where the server is heard, and again where it is heard later. A newcomer does not wait for ever:
 * its token does not last. */
static mxd_rc run_where_heard(const mxd_options *o, mxd_worker_opts *w, mxd_err *err) {
    mxd_passed passed = {.n = 0};
    mxd_err refused = {0}; /* what the last one said that did not take us */
    for (;;) {
        char join[MXD_FIND_ADDRESS];
        unsigned char fingerprint[32];
        bool token, lost = false;
        MXD_TRY(mxd_worker_identity_cluster(o, fingerprint, &token, err));
        int64_t give_up_ms = !token ? 0 : refused.rc ? ANOTHER_MS : FIND_MS;
        mxd_rc rc = mxd_worker_find(join, fingerprint, &passed, give_up_ms, err);
        if (rc == MXD_E_CANCELED) return MXD_OK;
        if (rc && refused.rc) *err = refused;
        if (rc) return err->rc;
        rc = run_at(o, w, join, &lost, err);
        if (!lost && rc != MXD_E_AUTH) return rc;
        if (!lost) refused = *err; /* by the server, or by somebody who copies its hints */
        mxd_log(MXD_LOG_WARN, "server_lost", "address=%s", join);
        mxd_worker_pass(&passed, join);
    }
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    char weights[MXD_PATH_MAX], scratch[MXD_PATH_MAX];
    MXD_TRY(weights_dir(o, weights, err));
    const char *join = mxd_opt_text(o, MXD_OPT_JOIN);
    mxd_worker_opts w = {.listen = mxd_opt_text(o, MXD_OPT_DATA_LISTEN),
                         .advertise = mxd_opt_text(o, MXD_OPT_ADVERTISE),
                         .backend = mxd_opt_unless_auto(o, MXD_OPT_BACKEND),
                         .kernels = mxd_opt_unless_auto(o, MXD_OPT_KERNELS),
                         .threads = (int)mxd_opt_int(o, MXD_OPT_THREADS),
                         .stall_ms = mxd_worker_fault(),
                         .weights_dir = weights,
                         .scratch_dir = scratch_dir(scratch),
                         .find_model = find_model,
                         .find_ctx = (void *)(uintptr_t)o,
                         .renewed = mxd_worker_identity_renewed,
                         .renewed_ctx = (void *)(uintptr_t)o};
    MXD_TRY(mxd_opt_need(o, MXD_OPT_JOIN, err));
    mxd_signals_catch();
    MXD_TRY(fill_hardware(o, &w, err));
    return strcmp(join, "auto") == 0 ? run_where_heard(o, &w, err) : run_at(o, &w, join, NULL, err);
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
