/* log.h - one event name and key=value pairs on one line, to a sink the embedder can set.
 *
 * Never prompt text, keys or tokens; nothing per token above debug. The default sink writes to
 * stderr; programs may set another (JSON lines, a file), an embedding library its own.
 *
 * Threads: mxd_log from any thread; mxd_log_set_sink before the threads start.
 */
#ifndef MXD_BASE_LOG_H
#define MXD_BASE_LOG_H

#include "base/err.h"

typedef enum mxd_log_level {
    MXD_LOG_DEBUG,
    MXD_LOG_INFO,
    MXD_LOG_WARN,
    MXD_LOG_ERROR
} mxd_log_level;

/* `event` is a constant like "worker_lost"; `fields` is the rest of the line, already formatted. */
typedef void (*mxd_log_sink)(void *ctx, mxd_log_level level, const char *event, const char *fields);

void mxd_log_set_sink(mxd_log_sink sink, void *ctx); /* NULL: the default */
void mxd_log_set_level(mxd_log_level least);         /* default: info */
void mxd_log_set_name(const char *name);             /* prefix of each line, e.g. the node */
mxd_log_level mxd_log_level_now(void);

void mxd_log(mxd_log_level level, const char *event, const char *fmt, ...) MXD_PRINTF(3, 4);

#endif
