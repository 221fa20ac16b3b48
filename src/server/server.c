#include "server/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/cond.h"
#include "base/limits.h"
#include "base/log.h"
#include "server/http.h"
#include "server/resume.h"

enum { DEFAULT_THREADS = 4, BACKLOG = 511, CLOSE_WAIT_MS = 1000 };

static _Noreturn void on_panic(void *cls, const char *file, unsigned line, const char *reason) {
    (void)cls;
    mxd_log(MXD_LOG_ERROR, "http_library_panic", "reason=\"%s\"", reason ? reason : "");
    mxd_assert_failed("libmicrohttpd", file, (int)line);
}

static void on_library_log(void *cls, const char *fmt, va_list ap) {
    char text[256];
    (void)cls;
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\r\n")] = '\0';
    mxd_log(MXD_LOG_DEBUG, "http_library", "text=\"%s\"", text);
}

static void take_numbers(mxd_server *s, const mxd_server_opts *o) {
    s->opts = *o;
    mxd_server_opts *m = &s->opts;
    m->api_keys = m->cors_origins = m->allowed_hosts = m->aliases = NULL; /* copied by the guard */
    if (m->threads <= 0) m->threads = DEFAULT_THREADS;
    if (m->threads > 64) m->threads = 64;
    if (m->max_choices <= 0) m->max_choices = MXD_MAX_CHOICES;
    if (m->max_choices > 128) m->max_choices = 128;
    if (m->max_connections <= 0 || m->max_connections > MXD_HTTP_MAX_CONNECTIONS)
        m->max_connections = MXD_HTTP_MAX_CONNECTIONS;
    if (m->max_per_address <= 0) m->max_per_address = MXD_HTTP_MAX_PER_ADDRESS;
    if (!m->max_body) m->max_body = MXD_HTTP_MAX_BODY;
    if (m->keepalive_ms <= 0) m->keepalive_ms = 5000;
    if (m->stall_ms <= 0) m->stall_ms = 30000;
    if (m->header_ms <= 0) m->header_ms = 10000;
    if (m->resume_ms <= 0) m->resume_ms = 300000;
    if (m->max_resumes <= 0) m->max_resumes = MXD_HTTP_MAX_RESUMES;
}

static bool is_loopback(const struct sockaddr *sa) {
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 24 == 127;
    return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)sa)->sin6_addr);
}

static mxd_rc check_exposure(mxd_server *s, const struct addrinfo *ai, mxd_err *err) {
    s->loopback = is_loopback(ai->ai_addr);
    if (s->loopback) return MXD_OK;
    if (!s->n_keys && !s->opts.insecure_lan)
        return mxd_fail(
            err, MXD_E_INVAL,
            "refusing to listen on %s: anyone on the network could use the model; set an "
            "API key, or pass --insecure-lan if that is meant",
            s->opts.host);
    mxd_log(MXD_LOG_WARN, "http_without_tls", "host=%s keys=%d", s->opts.host, s->n_keys);
    return MXD_OK;
}

static mxd_rc bind_one(mxd_server *s, const struct addrinfo *ai, mxd_err *err) {
    int one = 1;
    s->listen_fd = socket(ai->ai_family, ai->ai_socktype, ai->ai_protocol);
    if (s->listen_fd < 0) return mxd_fail_sys(err, MXD_E_NET, "cannot make a socket");
    (void)fcntl(s->listen_fd, F_SETFD, FD_CLOEXEC);
    (void)fcntl(s->listen_fd, F_SETFL, O_NONBLOCK);
    (void)setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* accepted sockets inherit it: every event leaves at once */
    (void)setsockopt(s->listen_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(s->listen_fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(s->listen_fd, BACKLOG) != 0)
        return mxd_fail_sys(err, MXD_E_NET,
                            "cannot listen on %s port %d; is another server running there? Try "
                            "--port 0",
                            s->opts.host, s->opts.port);
    struct sockaddr_storage at;
    socklen_t n = sizeof at;
    if (getsockname(s->listen_fd, (struct sockaddr *)&at, &n) != 0)
        return mxd_fail_sys(err, MXD_E_NET, "cannot read the port of a socket");
    s->port = ntohs(at.ss_family == AF_INET ? ((struct sockaddr_in *)&at)->sin_port
                                            : ((struct sockaddr_in6 *)&at)->sin6_port);
    bool v6 = strchr(s->opts.host, ':') != NULL;
    snprintf(s->url, sizeof s->url, "http://%s%s%s:%d%s", v6 ? "[" : "", s->opts.host,
             v6 ? "]" : "", s->port, s->prefix);
    return MXD_OK;
}

static mxd_rc listen_at(mxd_server *s, mxd_err *err) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    char port[16];
    if (s->opts.port < 0 || s->opts.port > 65535)
        return mxd_fail(err, MXD_E_INVAL, "port %d is not between 0 and 65535", s->opts.port);
    snprintf(port, sizeof port, "%d", s->opts.port);
    int why = getaddrinfo(s->opts.host, port, &hints, &list);
    if (why)
        return mxd_fail(err, MXD_E_NET, "cannot resolve '%s': %s", s->opts.host, gai_strerror(why));
    mxd_rc rc = check_exposure(s, list, err);
    if (!rc) rc = bind_one(s, list, err);
    freeaddrinfo(list);
    return rc;
}

static mxd_rc start_daemon(mxd_server *s, mxd_err *err) {
    const mxd_server_opts *o = &s->opts;
    unsigned flags = MHD_USE_AUTO_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    MHD_set_panic_func(on_panic, NULL);
    s->mhd =
        MHD_start_daemon(flags, 0, NULL, NULL, mxd_on_request, s,                                //
                         MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL,                       //
                         MHD_OPTION_LISTEN_SOCKET, (MHD_socket)s->listen_fd,                     //
                         MHD_OPTION_NOTIFY_COMPLETED, mxd_on_completed, s,                       //
                         MHD_OPTION_NOTIFY_CONNECTION, mxd_conn_event, s,                        //
                         MHD_OPTION_THREAD_POOL_SIZE, (unsigned)o->threads,                      //
                         MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections,              //
                         MHD_OPTION_PER_IP_CONNECTION_LIMIT, (unsigned)o->max_per_address,       //
                         MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)((o->stall_ms + 999) / 1000),  //
                         MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(3 * MXD_HTTP_MAX_HEADERS), //
                         MHD_OPTION_END);
    if (s->mhd) return MXD_OK;
    return mxd_fail_sys(err, MXD_E_NET, "cannot start the HTTP threads on port %d", s->port);
}

static mxd_rc take_texts(mxd_server *s, const mxd_server_opts *o, mxd_err *err) {
    const char *prefix = o->api_prefix ? o->api_prefix : "";
    size_t n = strlen(prefix);
    while (n && prefix[n - 1] == '/') n--;
    if (n && (prefix[0] != '/' || n >= sizeof s->prefix))
        return mxd_fail(err, MXD_E_INVAL, "the API prefix must begin with / and be short");
    memcpy(s->prefix, prefix, n);
    s->opts.host = mxd_strdup(s->al, o->host ? o->host : "127.0.0.1");
    if (!s->opts.host) return mxd_fail(err, MXD_E_NOMEM, "no memory for the server");
    return mxd_guard_open(s, o, err);
}

mxd_rc mxd_server_open(mxd_server **out, const mxd_alloc *al, const mxd_server_opts *opts,
                       mxd_engine *engine, mxd_err *err) {
    mxd_server *s = MXD_NEW(al, 1, mxd_server);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "no memory for the server");
    s->al = al;
    s->engine = engine;
    s->listen_fd = -1;
    s->start_ms = mxd_now_ms();
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->resume_lock, NULL);
    mxd_cond_init(&s->tick);
    take_numbers(s, opts);
    s->opts.host = NULL;
    mxd_rc rc = take_texts(s, opts, err);
    if (!rc) rc = listen_at(s, err);
    if (!rc) mxd_resume_restore(s);
    if (!rc) rc = mxd_ticker_start(s, err);
    if (!rc) rc = start_daemon(s, err);
    if (rc) {
        mxd_server_close(s);
        return rc;
    }
    *out = s;
    return MXD_OK;
}

int mxd_server_port(const mxd_server *s) { return s->port; }
const char *mxd_server_url(const mxd_server *s) { return s->url; }
int mxd_server_running(mxd_server *s) { return atomic_load(&s->running); }

mxd_rc mxd_server_drain(mxd_server *s, int64_t timeout_ms, mxd_err *err) {
    int64_t end = mxd_now_ms() + timeout_ms;
    atomic_store(&s->draining, true);
    while (atomic_load(&s->running) > 0) {
        if (mxd_now_ms() >= end)
            return mxd_fail(err, MXD_E_TIMEOUT, "%d requests still run", atomic_load(&s->running));
        mxd_sleep_ms(10);
    }
    return MXD_OK;
}

/* libmicrohttpd must not be stopped while a connection is suspended: `ending` keeps requests from
 * going to sleep, and whoever sleeps is woken. */
static void stop_daemon(mxd_server *s) {
    if (!s->mhd) return;
    if (MHD_quiesce_daemon(s->mhd) == MHD_INVALID_SOCKET) s->listen_fd = -1;
    mxd_conn_wake_all(s);
    mxd_resume_stop(s);
    int64_t end = mxd_now_ms() + CLOSE_WAIT_MS;
    while (atomic_load(&s->running) > 0 && mxd_now_ms() < end) mxd_sleep_ms(5);
    mxd_conn_wake_all(s);
    MHD_stop_daemon(s->mhd);
}

void mxd_server_close(mxd_server *s) {
    if (!s) return;
    atomic_store(&s->draining, true);
    atomic_store(&s->ending, true);
    stop_daemon(s);
    mxd_ticker_stop(s);
    mxd_resume_close(s);
    if (s->listen_fd >= 0) close(s->listen_fd);
    mxd_guard_close(s);
    mxd_free(s->al, (void *)s->opts.host);
    pthread_cond_destroy(&s->tick);
    pthread_mutex_destroy(&s->resume_lock);
    pthread_mutex_destroy(&s->lock);
    mxd_free(s->al, s);
}
