#include "server/http.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "server/openai/job.h"
#include "server/resume.h"

static const char json_mime[] = "application/json";
static const char sse_type[] = "text/event-stream; charset=utf-8";

/* ---- replies as handlers set them ---- */

void mxd_req_done(mxd_req *r, int status, const char *content_type) {
    r->status = status;
    r->content_type = content_type;
    if (!r->out.rc) return;
    mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
}

void mxd_req_json(mxd_req *r, json_t *v) {
    mxd_json_style style = {.compact = true};
    if (!v) {
        mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
        return;
    }
    mxd_json_write(&r->out, v, &style);
    json_decref(v);
    mxd_req_done(r, 200, json_mime);
}

static void set_failed(mxd_req *r) {
    mxd_buf_clear(&r->out);
    mxd_fault_write(&r->out, &r->fault);
    r->failed = true;
    r->status = mxd_fault_status(&r->fault);
    r->content_type = json_mime;
}

void mxd_req_fail(mxd_req *r, mxd_fault_kind kind, const char *param, const char *fmt, ...) {
    char msg[sizeof r->fault.msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    mxd_fault_set(&r->fault, kind, param, "%s", msg);
    set_failed(r);
}

void mxd_req_fail_fault(mxd_req *r, const mxd_fault *f) {
    r->fault = *f;
    set_failed(r);
}

void mxd_req_fail_rc(mxd_req *r, mxd_rc rc, const mxd_err *err) {
    mxd_fault_from(&r->fault, rc, err, r->id);
    if (r->fault.kind == MXD_FAULT_INTERNAL)
        mxd_log(MXD_LOG_ERROR, "request_failed", "request=%s rc=%s cause=\"%s\"", r->id,
                mxd_rc_name(rc), err->msg);
    set_failed(r);
}

bool mxd_server_knows_model(const mxd_server *s, const char *name) {
    const mxd_engine_info *info = mxd_engine_info_get(s->engine);
    if (strcmp(name, info->model_id) == 0 || strcmp(name, info->folder) == 0) return true;
    for (int i = 0; i < s->n_aliases; i++)
        if (strcmp(name, s->aliases[i]) == 0) return true;
    return false;
}

bool mxd_req_params(mxd_req *r) {
    mxd_err err = {0};
    mxd_rc rc = mxd_json_parse(&r->json, mxd_buf_str(&r->body), r->body.len, &err);
    if (rc == MXD_E_FORMAT || rc == MXD_E_TOOBIG)
        mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, NULL, "the body is not valid JSON: %s", err.msg);
    else if (rc)
        mxd_req_fail_rc(r, rc, &err);
    if (rc) return false;
    r->params = MXD_NEW(r->al, 1, mxd_params);
    if (!r->params) {
        mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
        return false;
    }
    r->params->where = r->route->params;
    r->params->max_choices = r->server->opts.max_choices;
    r->params->n_vocab = mxd_engine_info_get(r->server->engine)->n_vocab;
    mxd_fault f;
    bool ok = mxd_params_parse(r->params, r->json, &f);
    if (r->params->ignored[0])
        mxd_log(MXD_LOG_DEBUG, "ignored_params", "request=%s names=%s", r->id, r->params->ignored);
    if (!ok) mxd_req_fail_fault(r, &f);
    return ok;
}

/* ---- sleep and wake ---- */

void mxd_req_wake(mxd_req *r) {
    pthread_mutex_lock(&r->lock);
    if (r->parked) {
        r->parked = false;
        MHD_resume_connection(r->mhd);
    } else {
        r->woken = true;
    }
    pthread_mutex_unlock(&r->lock);
}

bool mxd_req_park(mxd_req *r) {
    pthread_mutex_lock(&r->lock);
    bool sleep = !r->woken && !atomic_load(&r->server->ending);
    r->woken = false;
    if (sleep) {
        r->parked = true;
        MHD_suspend_connection(r->mhd);
    }
    pthread_mutex_unlock(&r->lock);
    return sleep;
}

/* ---- from a reply to libmicrohttpd ---- */

static void add_headers(mxd_req *r, struct MHD_Response *resp) {
    char text[32];
    MHD_add_response_header(resp, "Content-Type", r->streaming ? sse_type : r->content_type);
    MHD_add_response_header(resp, "X-Request-Id", r->id);
    MHD_add_response_header(resp, "X-Content-Type-Options", "nosniff");
    if (r->content_type && strncmp(r->content_type, "text/html", 9) == 0)
        MHD_add_response_header(resp, "Content-Security-Policy", "default-src 'self'");
    if (r->streaming) {
        MHD_add_response_header(resp, "Cache-Control", "no-cache");
        MHD_add_response_header(resp, "X-Accel-Buffering", "no");
        if (r->resume) MHD_add_response_header(resp, "X-Stream-Id", mxd_resume_id(r));
    }
    if (r->params && r->params->ignored[0])
        MHD_add_response_header(resp, "x-mlxd-ignored-params", r->params->ignored);
    if (r->origin) {
        MHD_add_response_header(resp, "Access-Control-Allow-Origin", r->origin);
        MHD_add_response_header(resp, "Access-Control-Expose-Headers",
                                "X-Request-Id, X-Stream-Id, x-mlxd-ignored-params, Retry-After");
        MHD_add_response_header(resp, "Vary", "Origin");
    }
    if (r->allow[0]) MHD_add_response_header(resp, "Allow", r->allow);
    if (r->close_after) MHD_add_response_header(resp, "Connection", "close");
    if (!r->failed) return;
    if (r->status == 401) MHD_add_response_header(resp, "WWW-Authenticate", "Bearer");
    snprintf(text, sizeof text, "%d", mxd_fault_retry_s(&r->fault));
    if (text[0] != '0') MHD_add_response_header(resp, "Retry-After", text);
    const char *again = mxd_fault_should_retry(&r->fault);
    if (again) MHD_add_response_header(resp, "x-should-retry", again);
}

static void add_preflight(struct MHD_Response *resp) {
    MHD_add_response_header(resp, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    MHD_add_response_header(resp, "Access-Control-Allow-Headers",
                            "Authorization, Content-Type, X-Api-Key, X-Request-Id, X-Resumable, "
                            "Last-Event-ID, X-Stainless-OS, "
                            "X-Stainless-Lang, X-Stainless-Arch, X-Stainless-Runtime, "
                            "X-Stainless-Runtime-Version, X-Stainless-Package-Version, "
                            "X-Stainless-Retry-Count, X-Stainless-Timeout");
    MHD_add_response_header(resp, "Access-Control-Max-Age", "600");
}

static void note(mxd_req *r, int status) {
    int n;
    int at = r->route ? (int)(r->route - mxd_routes(&n)) + 1 : 0;
    mxd_metrics_request(&r->server->metrics, at, status);
    if (r->server->opts.log_requests)
        mxd_log(MXD_LOG_INFO, "http", "request=%s method=%s route=%s status=%d ms=%lld", r->id,
                r->method, r->route ? r->route->path : "-", status,
                (long long)(mxd_now_ms() - r->start_ms));
}

static enum MHD_Result queue(mxd_req *r, struct MHD_Response *resp, int status) {
    if (!resp) return MHD_NO;
    add_headers(r, resp);
    if (status == 204 && r->origin) add_preflight(resp);
    enum MHD_Result ok = MHD_queue_response(r->mhd, (unsigned)status, resp);
    MHD_destroy_response(resp);
    note(r, status);
    return ok;
}

/* The bytes stay in the request, which lives until on_completed. */
enum MHD_Result mxd_req_send(mxd_req *r) {
    const mxd_buf *b = r->job && !r->failed ? &r->job->out : &r->out;
    return queue(
        r, MHD_create_response_from_buffer(b->len, (void *)mxd_buf_str(b), MHD_RESPMEM_PERSISTENT),
        r->status);
}

/* ---- streams ---- */

bool mxd_req_is_silent(mxd_req *r) {
    return mxd_now_ms() - atomic_load(&r->last_out_ms) >= r->server->opts.keepalive_ms;
}

static void end_for_shutdown(mxd_job *j) {
    mxd_fault f;
    if (j->finished) return;
    mxd_fault_set(&f, MXD_FAULT_SHUTDOWN, NULL, "the server is shutting down");
    mxd_job_fail(j, &f);
}

/* Bytes for the client; 0: sleeping; or the end. */
static ssize_t on_read(void *cls, uint64_t pos, char *buf, size_t max) {
    (void)pos;
    mxd_req *r = cls;
    mxd_job *j = r->job;
    for (;;) {
        if (atomic_load(&r->gone)) return MHD_CONTENT_READER_END_WITH_ERROR;
        size_t have = j->out.len - j->sent, n = have < max ? have : max;
        if (n) {
            memcpy(buf, j->out.ptr + j->sent, n);
            j->sent += n;
            if (j->sent == j->out.len) {
                mxd_buf_clear(&j->out);
                j->sent = 0;
            }
            atomic_store(&r->last_out_ms, mxd_now_ms());
            return (ssize_t)n;
        }
        if (j->out.rc) return MHD_CONTENT_READER_END_WITH_ERROR;
        if (j->failed) r->close_after = true;
        if (j->failed || j->finished) return MHD_CONTENT_READER_END_OF_STREAM;
        if (atomic_load(&r->server->ending)) end_for_shutdown(j);
        if (mxd_job_pump(j)) continue;
        if (mxd_req_is_silent(r))
            mxd_buf_puts(&j->out, ":\n\n");
        else if (mxd_req_park(r))
            return 0;
    }
}

enum MHD_Result mxd_req_stream(mxd_req *r,
                               ssize_t (*read)(void *r, uint64_t pos, char *buf, size_t max)) {
    r->streaming = true;
    r->status = 200;
    return queue(r, MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16384, read, r, NULL), 200);
}

/* A job that has not answered yet: fails as an ordinary error, or becomes a stream or a reply. */
static enum MHD_Result wait_job(mxd_req *r) {
    mxd_job *j = r->job;
    for (;;) {
        if (atomic_load(&r->gone)) return MHD_NO;
        if (atomic_load(&r->server->ending)) end_for_shutdown(j);
        bool news = mxd_job_pump(j);
        if (j->failed) {
            mxd_req_fail_fault(r, &j->fault);
            return mxd_req_send(r);
        }
        if (j->streamed && j->out.len) return mxd_req_stream(r, on_read);
        if (j->finished) {
            mxd_req_done(r, 200, json_mime);
            return mxd_req_send(r);
        }
        if (news) continue;
        if (mxd_req_is_silent(r)) {
            if (j->streamed) mxd_buf_puts(&j->out, ":\n\n");
            atomic_store(&r->last_out_ms, mxd_now_ms());
        } else if (mxd_req_park(r)) {
            return MHD_YES;
        }
    }
}

/* ---- the request itself ---- */

static void make_request_id(mxd_req *r) {
    const char *given = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, "X-Request-Id");
    static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t n = given ? strlen(given) : 0;
    if (n >= 1 && n < sizeof r->id && strspn(given, ok) == n) {
        memcpy(r->id, given, n + 1);
        return;
    }
    uint64_t raw[2] = {0};
    (void)!mxd_rand_secret(raw, sizeof raw, NULL);
    snprintf(r->id, sizeof r->id, "req_%016llx%08x", (unsigned long long)raw[0], (unsigned)raw[1]);
}

typedef struct header_sums {
    size_t bytes;
    int lines, n_length, n_encoding;
    unsigned long long length;
} header_sums;

static enum MHD_Result sum_header(void *cls, enum MHD_ValueKind kind, const char *key,
                                  const char *value) {
    (void)kind;
    header_sums *h = cls;
    h->lines++;
    h->bytes += strlen(key) + (value ? strlen(value) : 0) + 4;
    if (strcasecmp(key, "Transfer-Encoding") == 0) h->n_encoding++;
    if (strcasecmp(key, "Content-Length") == 0 && value) {
        h->n_length++;
        (void)!sscanf(value, "%llu", &h->length);
    }
    return MHD_YES;
}

/* Sizes, and bodies with two lengths: those are how requests are smuggled past a proxy. */
static bool check_headers(mxd_req *r, header_sums *h) {
    MHD_get_connection_values(r->mhd, MHD_HEADER_KIND, sum_header, h);
    if (h->bytes > MXD_HTTP_MAX_HEADERS || h->lines > MXD_HTTP_MAX_HEADER_LINES) {
        mxd_req_fail(r, MXD_FAULT_HEADER_SIZE, NULL, "more than %d bytes or %d lines of headers",
                     MXD_HTTP_MAX_HEADERS, MXD_HTTP_MAX_HEADER_LINES);
        r->close_after = true;
    } else if (h->n_length > 1 || h->n_encoding > 1 || (h->n_length && h->n_encoding)) {
        mxd_req_fail(r, MXD_FAULT_INVALID_VALUE, NULL, "the body has more than one length");
        r->close_after = true;
    }
    return !r->failed;
}

static bool is_json_type(const char *type) {
    size_t n = type ? strcspn(type, "; ") : 0;
    return n == strlen(json_mime) && strncasecmp(type, json_mime, n) == 0;
}

static bool find_route(mxd_req *r) {
    const char *path = r->path;
    size_t n = strlen(r->server->prefix);
    bool inside =
        n == 0 || (strncmp(path, r->server->prefix, n) == 0 && (path[n] == '/' || path[n] == '\0'));
    path += inside ? n : 0;
    if (inside) r->route = mxd_route_find(r->method, *path ? path : "/", &r->tail, r->allow);
    if (r->route) return true;
    if (inside && r->allow[0])
        mxd_req_fail(r, MXD_FAULT_METHOD, NULL, "this path answers %s", r->allow);
    else
        mxd_req_fail(r, MXD_FAULT_ROUTE, NULL,
                     "there is nothing at this path; GET / lists the routes");
    return false;
}

/* Everything that can be said before the body. False: the reply is set. */
static bool check_head(mxd_req *r, header_sums *h) {
    if (!check_headers(r, h) || !mxd_guard_origin(r)) return false;
    bool found = find_route(r);
    if (strcmp(r->method, "OPTIONS") == 0 && (found || r->allow[0])) {
        mxd_buf_clear(&r->out);
        r->failed = false;
        r->status = 204;
        r->content_type = json_mime;
        return false;
    }
    if (!found || !mxd_guard_key(r)) return false;
    if (r->route->works && atomic_load(&r->server->draining)) {
        mxd_req_fail(r, MXD_FAULT_SHUTDOWN, NULL, "the server is shutting down");
        return false;
    }
    const char *type = MHD_lookup_connection_value(r->mhd, MHD_HEADER_KIND, "Content-Type");
    if (r->route->params && !is_json_type(type)) {
        mxd_req_fail(r, MXD_FAULT_CONTENT_TYPE, NULL, "Content-Type must be application/json");
        return false;
    }
    if (h->length <= r->server->opts.max_body) return true;
    mxd_req_fail(r, MXD_FAULT_BODY_SIZE, NULL, "the body has more than %zu bytes",
                 r->server->opts.max_body);
    return false;
}

static void free_req(mxd_req *r) {
    mxd_resume_leave(r);
    mxd_job_free(r->job);
    json_decref(r->json);
    if (!r->lent) mxd_free(r->al, r->params);
    mxd_free(r->al, r->path);
    mxd_free(r->al, r->method);
    mxd_buf_deinit(&r->body);
    mxd_buf_deinit(&r->out);
    pthread_mutex_destroy(&r->lock);
    mxd_free(r->al, r);
}

static mxd_req *make_req(mxd_server *s, struct MHD_Connection *c, const char *url,
                         const char *method) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    mxd_req *r = info && info->socket_context ? MXD_NEW(s->al, 1, mxd_req) : NULL;
    if (!r) return NULL;
    r->server = s;
    r->al = s->al;
    r->mhd = c;
    r->conn = info->socket_context;
    r->start_ms = mxd_now_ms();
    pthread_mutex_init(&r->lock, NULL);
    mxd_buf_init(&r->body, s->al, s->opts.max_body);
    mxd_buf_init(&r->out, s->al, MXD_HTTP_REPLY_BYTES);
    r->path = mxd_strdup(s->al, url);
    r->method = mxd_strdup(s->al, method);
    if (r->path && r->method) return r;
    free_req(r);
    return NULL;
}

/* First call: the head is here. A body that will be refused is read and dropped when it is small,
 * because a client that is still sending would lose our answer to a connection reset. */
static enum MHD_Result begin(mxd_server *s, struct MHD_Connection *c, const char *url,
                             const char *method, void **state) {
    header_sums h = {0};
    mxd_req *r = make_req(s, c, url, method);
    if (!r) return MHD_NO;
    *state = r;
    make_request_id(r);
    mxd_conn_begin(r);
    if (check_head(r, &h)) return MHD_YES;
    const char *expect = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Expect");
    bool small = h.length <= 4 * (unsigned long long)s->opts.max_body && !expect;
    r->drop_body = true;
    if (small && !r->close_after) return MHD_YES;
    r->close_after = true;
    return mxd_req_send(r);
}

static void take_body(mxd_req *r, const char *data, size_t n) {
    if (r->drop_body) {
        r->n_dropped += n;
        if (r->n_dropped > 4 * r->server->opts.max_body) r->close_after = true;
        return;
    }
    mxd_buf_put(&r->body, data, n);
    if (!r->body.rc) return;
    if (r->body.rc == MXD_E_TOOBIG)
        mxd_req_fail(r, MXD_FAULT_BODY_SIZE, NULL, "the body has more than %zu bytes",
                     r->server->opts.max_body);
    else
        mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
    mxd_buf_deinit(&r->body);
    r->drop_body = true;
}

static enum MHD_Result answer(mxd_req *r) {
    mxd_conn_received(r);
    if (!r->status) r->route->handle(r);
    if (!r->job && !r->resume) return mxd_req_send(r);
    atomic_store(&r->last_out_ms, mxd_now_ms());
    atomic_store(&r->waits, true);
    return r->resume ? mxd_resume_wait(r) : wait_job(r);
}

enum MHD_Result mxd_on_request(void *cls, struct MHD_Connection *c, const char *url,
                               const char *method, const char *version, const char *data,
                               size_t *n_data, void **state) {
    (void)version;
    mxd_req *r = *state;
    if (!r) return begin(cls, c, url, method, state);
    if (*n_data) {
        take_body(r, data, *n_data);
        *n_data = 0;
        return r->close_after ? MHD_NO : MHD_YES;
    }
    if (r->resume) return mxd_resume_wait(r);
    return r->job ? wait_job(r) : answer(r);
}

void mxd_on_completed(void *cls, struct MHD_Connection *c, void **state,
                      enum MHD_RequestTerminationCode why) {
    (void)cls;
    (void)c;
    mxd_req *r = *state;
    if (!r) return;
    *state = NULL;
    bool counted = atomic_load(&r->gone); /* by the ticker */
    if (why == MHD_REQUEST_TERMINATED_TIMEOUT_REACHED && !counted)
        atomic_fetch_add(&r->server->metrics.stalls, 1);
    else if (why != MHD_REQUEST_TERMINATED_COMPLETED_OK && (r->job || r->resume) && !counted)
        atomic_fetch_add(&r->server->metrics.disconnects, 1);
    atomic_store(&r->waits, false);
    mxd_conn_end(r);
    free_req(r);
}
