#include "cli/main_kit.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <fcntl.h>
#include <unistd.h>
#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif
#include "base/clock.h"
#include "base/log.h"
#include "cli/config_file.h"
#include "cli/option_help.h"
#include "cli/term.h"
#include "formats/json.h"
#include "hub/resolve.h"

enum { HELP_MAX_BYTES = 1 << 20 };

static void print_text(FILE *to, void (*write)(mxd_buf *out, mxd_prog prog), mxd_prog prog) {
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, HELP_MAX_BYTES);
    write(&b, prog);
    fputs(mxd_buf_str(&b), to);
    mxd_buf_deinit(&b);
}

void mxd_main_print_error(mxd_prog prog, const mxd_err *err) {
    mxd_term t;
    mxd_term_init(&t, stderr, false);
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, HELP_MAX_BYTES);
    const char *who = mxd_prog_row_get(prog)->program;
    int at = (int)strlen(who) + 9;
    mxd_wrap_text(&b, err->msg[0] ? err->msg : mxd_rc_text(err->rc), at, 2,
                  t.tty ? t.columns : 100000);
    fprintf(stderr, "%s: %serror:%s %s\n", who, mxd_term_red(&t), mxd_term_plain(&t),
            mxd_buf_str(&b));
    mxd_buf_deinit(&b);
}

void mxd_main_print_note(const mxd_options *o, const char *fmt, ...) {
    if (mxd_opt_bool(o, MXD_OPT_QUIET)) return;
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fprintf(stderr, "%s: note: %s\n", mxd_prog_row_get(o->prog)->program, text);
}

/* ----------------------------------------------------------------------------------------- log */

static FILE *log_to;

static const char *level_name(mxd_log_level l) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    return names[l];
}

static void stamp(char out[32]) {
    time_t now = (time_t)(mxd_wall_ms() / 1000);
    struct tm tm;
    out[0] = '\0';
    if (gmtime_r(&now, &tm)) strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void file_sink(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    char when[32];
    stamp(when);
    fprintf(log_to, "%s %-5s %s%s%s\n", when, level_name(level), event, fields[0] ? " " : "",
            fields);
    fflush(log_to);
}

static void json_sink(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    char when[32];
    stamp(when);
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 16384);
    mxd_buf_printf(&b, "{\"time\":\"%s\",\"level\":\"%s\",\"event\":", when, level_name(level));
    mxd_json_write_string(&b, event, strlen(event), true);
    mxd_buf_puts(&b, ",\"fields\":");
    mxd_json_write_string(&b, fields, strlen(fields), true);
    mxd_buf_puts(&b, "}\n");
    if (!b.rc) fputs(mxd_buf_str(&b), log_to ? log_to : stderr);
    if (log_to) fflush(log_to);
    mxd_buf_deinit(&b);
}

mxd_rc mxd_main_open_log(const mxd_options *o, mxd_err *err) {
    const char *path = mxd_opt_text(o, MXD_OPT_LOG_FILE);
    bool json = mxd_opt_bool(o, MXD_OPT_JSON);
    if (!path) {
        if (json) mxd_log_set_sink(json_sink, NULL);
        return MXD_OK;
    }
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot open the log file '%s'", path);
    if (log_to) { /* other threads may be writing: swap the file under the stream */
        int rc = dup2(fd, fileno(log_to));
        close(fd);
        return rc < 0 ? mxd_fail_sys(err, MXD_E_IO, "cannot reopen '%s'", path) : MXD_OK;
    }
    log_to = fdopen(fd, "a");
    if (!log_to) {
        close(fd);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for the log file");
    }
    mxd_log_set_sink(json ? json_sink : file_sink, NULL);
    return MXD_OK;
}

static void set_log_level(const mxd_options *o) {
    if (!mxd_opt_is_for(MXD_OPT_LOG_LEVEL, o->prog)) return;
    bool verbose = mxd_opt_bool(o, MXD_OPT_VERBOSE), quiet = mxd_opt_bool(o, MXD_OPT_QUIET);
    mxd_log_level l = (mxd_log_level)mxd_opt_int(o, MXD_OPT_LOG_LEVEL);
    mxd_log_set_level(verbose ? MXD_LOG_DEBUG : quiet && l < MXD_LOG_WARN ? MXD_LOG_WARN : l);
}

/* --------------------------------------------------------------------------------- begin, end */

bool mxd_main_begin(mxd_options *o, mxd_prog prog, int argc, char **argv, int *code) {
    signal(SIGPIPE, SIG_IGN);
    mxd_err err = {0};
    mxd_rc rc = mxd_options_parse(o, &mxd_alloc_libc, prog, argc, argv, NULL, &err);
    *code = 0;
    if (!rc && o->action == MXD_ACT_HELP)
        print_text(stdout, mxd_help_write, prog);
    else if (!rc && o->action == MXD_ACT_VERSION)
        fprintf(stdout, "%s %s\n", mxd_prog_row_get(prog)->program, MXD_VERSION);
    else if (!rc && mxd_opt_is_for(MXD_OPT_LOG_LEVEL, prog))
        rc = mxd_main_open_log(o, &err);
    if (!rc && o->action == MXD_ACT_RUN) {
        set_log_level(o);
        if (o->note[0]) mxd_main_print_note(o, "%s", o->note);
        return true;
    }
    *code = mxd_main_end(o, rc, &err);
    return false;
}

int mxd_main_end(mxd_options *o, mxd_rc rc, const mxd_err *err) {
    if (rc) mxd_main_print_error(o->prog, err);
    mxd_options_deinit(o);
    bool lost = fflush(stdout) != 0 || ferror(stdout);
    return rc ? mxd_rc_exit(rc) : lost ? 1 : 0;
}

/* ------------------------------------------------------------------------------------- signals */

static volatile sig_atomic_t n_ends, hup;
static int end_pipe[2] = {-1, -1};

static void on_end(int sig) {
    if (n_ends++) _exit(128 + sig);
    int saved = errno;
    char byte = (char)sig;
    ssize_t n = write(end_pipe[1], &byte, 1);
    (void)n;
    errno = saved;
}

static void on_hup(int sig) {
    (void)sig;
    hup = 1;
    int saved = errno;
    char byte = 0; /* wakes the waiter without ending it */
    ssize_t n = write(end_pipe[1], &byte, 1);
    (void)n;
    errno = saved;
}

void mxd_signals_catch(void) {
    if (pipe(end_pipe) != 0) return; /* the defaults stay: a signal ends the process */
    for (int i = 0; i < 2; i++) {
        fcntl(end_pipe[i], F_SETFD, FD_CLOEXEC);
        fcntl(end_pipe[i], F_SETFL, O_NONBLOCK);
    }
    struct sigaction sa = {.sa_handler = on_end, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sa.sa_handler = on_hup;
    sigaction(SIGHUP, &sa, NULL);
}

int mxd_signals_wait(int64_t timeout_ms) {
    int64_t until = timeout_ms < 0 ? INT64_MAX : mxd_now_ms() + timeout_ms;
    for (;;) {
        char byte = 0;
        if (read(end_pipe[0], &byte, 1) == 1) return byte;
        int64_t left = until == INT64_MAX ? 1000 : until - mxd_now_ms();
        if (left <= 0) return 0;
        struct pollfd p = {.fd = end_pipe[0], .events = POLLIN};
        poll(&p, 1, left > 1000 ? 1000 : (int)left);
        if (hup) return 0;
    }
}

bool mxd_signals_take_hup(void) {
    bool was = hup;
    hup = 0;
    return was;
}

/* -------------------------------------------------------------------------------------- places */

mxd_rc mxd_main_state_dir(const mxd_options *o, char out[1024], mxd_err *err) {
    const char *named = mxd_opt_text(o, MXD_OPT_STATE_DIR);
    if (!named) return mxd_xdg_path(out, NULL, "XDG_STATE_HOME", ".local/state", "", err);
    if ((size_t)snprintf(out, 1024, "%s", named) >= 1024)
        return mxd_fail(err, MXD_E_TOOBIG, "--state-dir is longer than 1023 bytes");
    return MXD_OK;
}

void mxd_main_program_dir(char out[1024]) {
    char path[PATH_MAX] = "";
#ifdef __APPLE__
    char raw[PATH_MAX];
    uint32_t n = sizeof raw;
    if (_NSGetExecutablePath(raw, &n) != 0 || !realpath(raw, path)) path[0] = '\0';
#else
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0] = '\0';
#endif
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
    if (!slash || (size_t)snprintf(out, 1024, "%s", path) >= 1024) out[0] = '\0';
}

typedef struct places { /* and the texts it points to */
    mxd_hub_places at;
    char program_dir[1024], cache[MXD_HUB_PATH_MAX];
} places;

static void find_places(places *p, const mxd_options *o) {
    mxd_hub_env env = {mxd_env_get(NULL, "HF_HUB_CACHE"),
                       mxd_env_get(NULL, "HUGGINGFACE_HUB_CACHE"), mxd_env_get(NULL, "HF_HOME"),
                       mxd_env_get(NULL, "XDG_CACHE_HOME"), mxd_env_get(NULL, "HOME")};
    if (mxd_hub_cache_dir(p->cache, &env, NULL)) p->cache[0] = '\0';
    mxd_main_program_dir(p->program_dir);
    p->at = (mxd_hub_places){mxd_opt_text(o, MXD_OPT_MODELS_DIR),
                             mxd_env_get(NULL, "MLXD_DATA_DIR"), p->program_dir, p->cache};
}

mxd_rc mxd_main_find_model(const mxd_options *o, const char *model, char out[1024], mxd_err *err) {
    places p;
    find_places(&p, o);
    return mxd_hub_resolve(out, o->al, model, &p.at, err);
}

bool mxd_main_candidate(const mxd_options *o, const char *model, int k, char out[1024]) {
    places p;
    find_places(&p, o);
    return mxd_hub_candidate(out, o->al, model, &p.at, k);
}

mxd_kv_type mxd_main_kv_type(const mxd_options *o) {
    int64_t t = mxd_opt_int(o, MXD_OPT_CACHE_TYPE);
    return t > MXD_KV_Q8 ? MXD_KV_Q8 : (mxd_kv_type)t;
}

mxd_rc mxd_main_model_folder(const mxd_options *o, char out[1024], mxd_err *err) {
    return mxd_main_find_model(o, mxd_opt_text(o, MXD_OPT_MODEL), out, err);
}
