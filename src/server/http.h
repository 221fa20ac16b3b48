/* http.h - one request between libmicrohttpd and a handler. Inside this room only.
 *
 *   BODY --all received--> handler --reply set--> REPLIED
 *                             '--job set--> WAITING --first result--> STREAMING --> ended
 *                                              '--whole result--> REPLIED
 *   BODY -> handler        on_request          WAITING -> STREAMING  start_stream
 *   handler -> REPLIED     send_reply          STREAMING -> ended    on_read, END_OF_STREAM
 *   any -> freed           on_completed, the only place that frees a request
 *
 * A request without work sleeps: libmicrohttpd suspends its connection (mxd_req_park) and
 * mxd_req_wake resumes it, from the engine's thread when a stream has an event, or from the ticker.
 * `parked` and `woken` close the gap between looking for work and going to sleep.
 *
 * Threads: fields belong to the HTTP thread of the connection, but for those under `lock` and the
 * atomics. Lock order: server->lock, then req->lock, then libmicrohttpd's own.
 */
#ifndef MXD_SERVER_HTTP_H
#define MXD_SERVER_HTTP_H

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include "formats/json.h"
#include "server/fault.h"
#include "server/metrics.h"
#include "server/params.h"
#include "server/server.h"

enum {
    MXD_HTTP_MAX_HEADER_LINES = 100,
    MXD_HTTP_STREAM_BYTES = 256 << 10, /* not yet sent of one stream; tokens wait in the engine */
    MXD_HTTP_REPLY_BYTES = 64 << 20,
    MXD_HTTP_ID_BYTES = 40,
    MXD_HTTP_REQUEST_ID = 129,
    MXD_HTTP_BODY_MS = 600000,      /* for a whole body, however lively */
    MXD_HTTP_IDLE_MS = 60000,       /* between requests of one connection */
    MXD_HTTP_SEND_BYTES = 128 << 10 /* of the kernel per connection */
};

typedef struct mxd_req mxd_req;
typedef struct mxd_job mxd_job;
typedef struct mxd_conn mxd_conn;

typedef struct mxd_route {
    const char *method, *path; /* "{id}" at the end takes the rest, slashes too */
    void (*handle)(mxd_req *r);
    bool needs_key;
    bool works;      /* starts work: refused while draining */
    unsigned params; /* MXD_AT_ bit of its body; 0: no body */
    const char *help;
} mxd_route;

struct mxd_req {
    mxd_server *server;
    const mxd_alloc *al;
    struct MHD_Connection *mhd;
    mxd_conn *conn;
    const mxd_route *route;
    const char *tail; /* what {id} matched, borrowed from path */
    char *path, *method;
    char id[MXD_HTTP_REQUEST_ID]; /* X-Request-Id */
    const char *origin; /* to be allowed in the reply; borrowed from the headers, or NULL */
    int64_t start_ms;

    mxd_buf body; /* as received */
    size_t n_dropped;
    json_t *json; /* owned */
    mxd_params *params;

    int status; /* 0: no reply yet */
    const char *content_type;
    mxd_buf out;
    mxd_fault fault; /* the reply, when failed */
    bool failed, early, drop_body, close_after;
    char allow[64];

    mxd_job *job;
    struct mxd_resume *resume; /* instead of a job: a stream that it reads (resume.h) */
    struct mxd_req *next_reader;
    size_t cursor; /* bytes of that stream's log already given to the client */
    int64_t after; /* the client has the events up to this one; its place is not known yet */
    bool placed;   /* now it is: cursor counts */
    bool lent;     /* params are the stream's */
    unsigned char key[32]; /* SHA-256 of the key it came with; zero: none */
    atomic_bool streaming;

    pthread_mutex_t lock;
    bool parked, woken;       /* lock */
    atomic_bool gone;         /* the client has closed */
    atomic_llong last_out_ms; /* when bytes were last handed out, or the job began */
    atomic_bool waits;        /* has a job that has not ended */
};

struct mxd_conn { /* one TCP connection; server->lock */
    mxd_conn *next, *prev;
    mxd_req *req; /* NULL between requests */
    int fd;
    int64_t since_ms;
    bool fresh; /* no request yet: since_ms counts for header_ms */
    bool receiving;
};

struct mxd_server {
    const mxd_alloc *al;
    mxd_engine *engine;
    mxd_server_opts opts; /* numbers; lists are below */
    char **hosts, **origins, **aliases;
    int n_hosts, n_origins, n_aliases;
    unsigned char (*keys)[32]; /* SHA-256 of each */
    int n_keys;
    char prefix[128], url[320];
    int port, listen_fd;
    bool loopback;
    struct MHD_Daemon *mhd;
    pthread_mutex_t lock;
    pthread_cond_t tick;
    mxd_conn *conns; /* lock */
    pthread_t ticker;
    struct pollfd *poll_fds; /* [MXD_HTTP_MAX_CONNECTIONS], with poll_conns: the ticker's */
    mxd_conn **poll_conns;
    bool ticking;               /* lock */
    struct mxd_resume *resumes; /* resume_lock */
    pthread_mutex_t resume_lock;
    atomic_bool draining, ending;
    atomic_int running;
    mxd_metrics metrics;
    int64_t start_ms;
};

/* ---- for handlers ---- */

/* Replies with `r->out`, which the handler has filled. */
void mxd_req_done(mxd_req *r, int status, const char *content_type);
void mxd_req_json(mxd_req *r, json_t *v); /* 200; takes v; NULL: no memory */
void mxd_req_fail(mxd_req *r, mxd_fault_kind kind, const char *param, const char *fmt, ...)
    MXD_PRINTF(4, 5);
void mxd_req_fail_fault(mxd_req *r, const mxd_fault *f);
void mxd_req_fail_rc(mxd_req *r, mxd_rc rc, const mxd_err *err);

/* Parses body and fields against the table; false: the reply is set. */
bool mxd_req_params(mxd_req *r);
bool mxd_server_knows_model(const mxd_server *s, const char *name);

bool mxd_req_is_silent(mxd_req *r);       /* a keep-alive comment is due */
enum MHD_Result mxd_req_send(mxd_req *r); /* the reply that is set */
enum MHD_Result mxd_req_stream(mxd_req *r,
                               ssize_t (*read)(void *r, uint64_t pos, char *buf, size_t max));

void mxd_req_wake(mxd_req *r); /* any thread */
bool mxd_req_park(mxd_req *r); /* HTTP thread; false: there is news, look again */

/* ---- routes.c ---- */
const mxd_route *mxd_routes(int *n);

/* The route for a method and a path; NULL: `allow` has the methods of the path, "" when there is no
 * such path. *tail: see mxd_req. */
const mxd_route *mxd_route_find(const char *method, const char *path, const char **tail,
                                char allow[64]);

/* ---- guard.c: who may ask ---- */
mxd_rc mxd_guard_open(mxd_server *s, const mxd_server_opts *opts, mxd_err *err) MXD_MUST_USE;
void mxd_guard_close(mxd_server *s);
bool mxd_guard_key(mxd_req *r);    /* false: the reply is set */
bool mxd_guard_origin(mxd_req *r); /* Host and Origin; false: the reply is set */

/* ---- http.c: what libmicrohttpd calls ---- */
enum MHD_Result mxd_on_request(void *cls, struct MHD_Connection *c, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *n_data, void **state);
void mxd_on_completed(void *cls, struct MHD_Connection *c, void **state,
                      enum MHD_RequestTerminationCode why);

/* ---- conn.c: connections, the ticker ---- */
void mxd_conn_event(void *cls, struct MHD_Connection *c, void **socket_context,
                    enum MHD_ConnectionNotificationCode code);
void mxd_conn_begin(mxd_req *r);
void mxd_conn_received(mxd_req *r);
void mxd_conn_end(mxd_req *r);
mxd_rc mxd_ticker_start(mxd_server *s, mxd_err *err) MXD_MUST_USE;
void mxd_ticker_stop(mxd_server *s);
void mxd_conn_wake_all(mxd_server *s);
bool mxd_conn_cancel(mxd_server *s, const char *job_id);

#endif
