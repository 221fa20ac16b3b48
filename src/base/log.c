#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <time.h>

static char log_name[64];
static const char *const level_names[] = {"debug", "info", "warn", "error"};

static void stderr_sink(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    time_t now = time(NULL);
    struct tm tm;
    char stamp[16] = "";
    if (localtime_r(&now, &tm)) strftime(stamp, sizeof stamp, "%H:%M:%S", &tm);
    /* one call, so that lines of several threads do not mix */
    fprintf(stderr, "%s %-5s %s%s%s%s%s\n", stamp, level_names[level], log_name,
            log_name[0] ? " " : "", event, fields[0] ? " " : "", fields);
}

static struct {
    mxd_log_sink sink;
    void *ctx;
    _Atomic mxd_log_level least; /* may change while threads log */
} log_state = {stderr_sink, NULL, MXD_LOG_INFO};

void mxd_log_set_sink(mxd_log_sink sink, void *ctx) {
    log_state.sink = sink ? sink : stderr_sink;
    log_state.ctx = ctx;
}

void mxd_log_set_level(mxd_log_level least) { log_state.least = least; }
void mxd_log_set_name(const char *name) { snprintf(log_name, sizeof log_name, "%s", name); }
mxd_log_level mxd_log_level_now(void) { return log_state.least; }

void mxd_log(mxd_log_level level, const char *event, const char *fmt, ...) {
    if (level < log_state.least) return;
    char fields[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(fields, sizeof fields, fmt, ap);
    va_end(ap);
    log_state.sink(log_state.ctx, level, event, fields);
}
