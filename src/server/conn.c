#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include "base/clock.h"
#include "base/cond.h"
#include "base/limits.h"
#include "server/http.h"
#include "server/openai/job.h"
#include "server/resume.h"

enum { TICK_BUSY_MS = 25, TICK_IDLE_MS = 250, MAX_POLL = MXD_HTTP_MAX_CONNECTIONS };

static void open_conn(mxd_server *s, struct MHD_Connection *c, void **socket_context) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    mxd_conn *conn = MXD_NEW(s->al, 1, mxd_conn);
    *socket_context = conn;
    if (!conn) return; /* on_request refuses it */
    conn->fd = info ? info->connect_fd : -1;
    conn->since_ms = mxd_now_ms();
    conn->fresh = true;
    /* otherwise the kernel buffers megabytes for a client that does not read */
    int bytes = MXD_HTTP_SEND_BYTES;
    (void)setsockopt(conn->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    pthread_mutex_lock(&s->lock);
    conn->next = s->conns;
    if (s->conns) s->conns->prev = conn;
    s->conns = conn;
    pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->metrics.connections, 1);
}

static void close_conn(mxd_server *s, mxd_conn *conn) {
    pthread_mutex_lock(&s->lock);
    if (conn->prev) conn->prev->next = conn->next;
    if (conn->next) conn->next->prev = conn->prev;
    if (s->conns == conn) s->conns = conn->next;
    pthread_mutex_unlock(&s->lock);
    mxd_free(s->al, conn);
    atomic_fetch_sub(&s->metrics.connections, 1);
}

void mxd_conn_event(void *cls, struct MHD_Connection *c, void **socket_context,
                    enum MHD_ConnectionNotificationCode code) {
    mxd_server *s = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED)
        open_conn(s, c, socket_context);
    else if (*socket_context)
        close_conn(s, *socket_context);
}

void mxd_conn_begin(mxd_req *r) {
    pthread_mutex_lock(&r->server->lock);
    r->conn->req = r;
    r->conn->fresh = false;
    r->conn->receiving = true;
    r->conn->since_ms = mxd_now_ms();
    pthread_mutex_unlock(&r->server->lock);
}

void mxd_conn_received(mxd_req *r) {
    pthread_mutex_lock(&r->server->lock);
    r->conn->receiving = false;
    pthread_mutex_unlock(&r->server->lock);
}

void mxd_conn_end(mxd_req *r) {
    pthread_mutex_lock(&r->server->lock);
    r->conn->req = NULL;
    r->conn->receiving = false;
    r->conn->since_ms = mxd_now_ms();
    if (r->close_after) (void)shutdown(r->conn->fd, SHUT_RDWR);
    pthread_mutex_unlock(&r->server->lock);
}

void mxd_conn_wake_all(mxd_server *s) {
    pthread_mutex_lock(&s->lock);
    for (mxd_conn *c = s->conns; c; c = c->next)
        if (c->req) mxd_req_wake(c->req);
    pthread_mutex_unlock(&s->lock);
}

bool mxd_conn_cancel(mxd_server *s, const char *job_id) {
    bool found = false;
    pthread_mutex_lock(&s->lock);
    for (mxd_conn *c = s->conns; c && !found; c = c->next) {
        if (!c->req || !atomic_load(&c->req->waits)) continue;
        if (!c->req->job || strcmp(mxd_job_id(c->req->job), job_id) != 0) continue;
        mxd_job_cancel(c->req->job);
        found = true;
    }
    pthread_mutex_unlock(&s->lock);
    return found || mxd_resume_cancel(s, job_id);
}

static bool is_parked(mxd_req *r) {
    pthread_mutex_lock(&r->lock);
    bool parked = r->parked;
    pthread_mutex_unlock(&r->lock);
    return parked;
}

/* A client that has closed: libmicrohttpd does not look at suspended connections. */
static bool has_closed(int fd) {
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

/* Time limits of one connection; server->lock held. Closing is libmicrohttpd's: a shut socket reads
 * as ended. */
static void check_times(mxd_server *s, mxd_conn *c, int64_t now) {
    int64_t limit = c->fresh ? s->opts.header_ms : c->receiving ? MXD_HTTP_BODY_MS : 0;
    if (!c->fresh && !c->req) limit = MXD_HTTP_IDLE_MS;
    if (limit && now - c->since_ms > limit) {
        if (c->fresh || c->receiving) atomic_fetch_add(&s->metrics.stalls, 1);
        (void)shutdown(c->fd, SHUT_RDWR);
        c->since_ms = now;
    }
}

/* A stream whose client takes nothing: libmicrohttpd asks for the next bytes only when the last
 * ones are in the kernel. server->lock held. */
static void check_stall(mxd_server *s, mxd_conn *c, int64_t now) {
    mxd_req *r = c->req;
    if (!r->streaming || now - atomic_load(&r->last_out_ms) <= s->opts.stall_ms) return;
    if (atomic_exchange(&r->gone, true)) return;
    atomic_fetch_add(&s->metrics.stalls, 1);
    if (r->job) mxd_job_cancel(r->job); /* a resumable one runs on */
    (void)shutdown(c->fd, SHUT_RDWR);
}

static void lost(mxd_server *s, mxd_req *r) {
    if (atomic_exchange(&r->gone, true)) return;
    atomic_fetch_add(&s->metrics.disconnects, 1);
    if (r->job) mxd_job_cancel(r->job);
    mxd_req_wake(r);
}

/* A request that sleeps, with its keep-alive comment when that is due. */
static bool sleeps(mxd_server *s, mxd_conn *c, int64_t now) {
    mxd_req *r = c->req;
    if (!r || !atomic_load(&r->waits)) return false;
    if (!is_parked(r)) {
        check_stall(s, c, now);
        return false;
    }
    if (now - atomic_load(&r->last_out_ms) >= s->opts.keepalive_ms) mxd_req_wake(r);
    return true;
}

/* One look at every connection; server->lock held. Beside sleeping requests this looks at
 * connections that are between requests or still sending one: libmicrohttpd 0.9.75 with
 * edge-triggered epoll misses an end that arrives together with the last bytes, and would keep such
 * a connection, and its place in the limit per address, until it times out. */
static void tick(mxd_server *s) {
    int64_t now = mxd_now_ms();
    nfds_t n = 0;
    for (mxd_conn *c = s->conns; c; c = c->next) {
        check_times(s, c, now);
        bool asleep = sleeps(s, c, now);
        if ((c->req && !c->receiving && !asleep) || n == MAX_POLL) continue;
        s->poll_fds[n] = (struct pollfd){.fd = c->fd, .events = POLLIN};
        s->poll_conns[n++] = asleep ? c : NULL;
    }
    if (poll(s->poll_fds, n, 0) <= 0) return;
    for (nfds_t i = 0; i < n; i++) {
        if (!s->poll_fds[i].revents || !has_closed(s->poll_fds[i].fd)) continue;
        if (s->poll_conns[i])
            lost(s, s->poll_conns[i]->req);
        else
            (void)shutdown(s->poll_fds[i].fd, SHUT_RDWR);
    }
}

static void *ticker_main(void *arg) {
    mxd_server *s = arg;
    pthread_mutex_lock(&s->lock);
    while (s->ticking) {
        tick(s);
        pthread_mutex_unlock(&s->lock);
        mxd_resume_tick(s);
        pthread_mutex_lock(&s->lock);
        bool busy = atomic_load(&s->running) > 0;
        mxd_cond_wait(&s->tick, &s->lock, (busy ? TICK_BUSY_MS : TICK_IDLE_MS) * 1000000L);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

mxd_rc mxd_ticker_start(mxd_server *s, mxd_err *err) {
    s->poll_fds = MXD_NEW(s->al, MAX_POLL, struct pollfd);
    s->poll_conns = MXD_NEW(s->al, MAX_POLL, mxd_conn *);
    if (!s->poll_fds || !s->poll_conns)
        return mxd_fail(err, MXD_E_NOMEM, "no memory for the server's connections");
    s->ticking = true;
    if (pthread_create(&s->ticker, NULL, ticker_main, s) == 0) return MXD_OK;
    s->ticking = false;
    return mxd_fail(err, MXD_E_NOMEM, "cannot start the server's timer thread");
}

void mxd_ticker_stop(mxd_server *s) {
    pthread_mutex_lock(&s->lock);
    bool ran = s->ticking;
    s->ticking = false;
    pthread_cond_signal(&s->tick);
    pthread_mutex_unlock(&s->lock);
    if (ran) pthread_join(s->ticker, NULL);
    mxd_free(s->al, s->poll_fds);
    mxd_free(s->al, s->poll_conns);
    s->poll_fds = NULL;
    s->poll_conns = NULL;
}
