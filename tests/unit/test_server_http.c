#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "fake_engine.h"
#include "formats/json.h"
#include "server/server.h"

/* A server on a scripted engine, and a client that speaks bytes. */
typedef struct kit {
    mxd_engine *e;
    mxd_server *s;
} kit;

static bool open_kit(kit *k, const mxd_server_opts *o, const mxd_alloc *al) {
    char path[1024];
    mxd_err err = {0};
    mxd_engine_opts eo = {.folder = test_path(path, "../models/demo")};
    CHECK_OK(mxd_engine_open(&k->e, &mxd_alloc_libc, &eo, &err), &err);
    CHECK_OK(mxd_server_open(&k->s, al, o, k->e, &err), &err);
    return true;
}

static void close_kit(kit *k) {
    mxd_server_close(k->s);
    CHECK_EQ(fake_engine_live(k->e), 0);
    mxd_engine_close(k->e);
}

static int dial(const kit *k) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)mxd_server_port(k->s))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int one = 1;
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void say(int fd, const char *text) {
    size_t n = strlen(text), at = 0;
    while (at < n) {
        ssize_t k = send(fd, text + at, n - at, MSG_NOSIGNAL);
        if (k <= 0) return;
        at += (size_t)k;
    }
}

/* Reads until `until` was seen, the end, or 5 s. */
static size_t hear(int fd, char *out, size_t cap, const char *until) {
    size_t n = 0;
    int64_t end = mxd_now_ms() + 5000;
    out[0] = '\0';
    while (n + 1 < cap && mxd_now_ms() < end) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 50) <= 0) continue;
        ssize_t k = recv(fd, out + n, cap - 1 - n, 0);
        if (k <= 0) break;
        n += (size_t)k;
        out[n] = '\0';
        if (until && strstr(out, until)) break;
    }
    return n;
}

static void post(int fd, const char *path, const char *headers, const char *body) {
    char head[1024];
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s"
             "Content-Length: %zu\r\n\r\n",
             path, headers, strlen(body));
    say(fd, head);
    say(fd, body);
}

/* Reads one whole reply that has a Content-Length. */
static void hear_reply(int fd, char *out, size_t cap, bool head_only) {
    size_t n = hear(fd, out, cap, "\r\n\r\n");
    char *body = strstr(out, "\r\n\r\n"), *length = strstr(out, "Content-Length: ");
    if (!body || head_only) return;
    size_t want = (size_t)(body + 4 - out) + (length ? strtoul(length + 16, NULL, 10) : 0);
    while (n < want && n + 1 < cap) {
        ssize_t k = recv(fd, out + n, cap - 1 - n, 0);
        if (k <= 0) return;
        n += (size_t)k;
        out[n] = '\0';
    }
}

/* One request on its own connection; the whole reply. */
static int ask(const kit *k, const char *raw, char *out, size_t cap) {
    int fd = dial(k), status = 0;
    say(fd, raw);
    hear_reply(fd, out, cap, strncmp(raw, "HEAD", 4) == 0);
    close(fd);
    (void)!sscanf(out, "HTTP/1.1 %d", &status);
    return status;
}

#define CHAT(script, rest)                                                                        \
    "{\"model\":\"fake/demo\",\"messages\":[{\"role\":\"user\",\"content\":\"" script "\"}]" rest \
    "}"

static int wait_live(mxd_engine *e, int n) {
    int64_t end = mxd_now_ms() + 3000;
    while (fake_engine_live(e) != n && mxd_now_ms() < end) mxd_sleep_ms(2);
    return fake_engine_live(e);
}

TEST(server_refuses_to_be_open_to_the_network) {
    kit k;
    mxd_err err = {0};
    mxd_server_opts o = {0}, lan = {.host = "0.0.0.0"};
    open_kit(&k, &o, &mxd_alloc_libc);
    mxd_server *s = NULL;
    CHECK_EQ(mxd_server_open(&s, &mxd_alloc_libc, &lan, k.e, &err), MXD_E_INVAL);
    CHECK(strstr(err.msg, "--insecure-lan"));
    const char *key = "k";
    lan.api_keys = &key;
    lan.n_api_keys = 1;
    CHECK_OK(mxd_server_open(&s, &mxd_alloc_libc, &lan, k.e, &err), &err);
    mxd_server_close(s);
    mxd_server_opts same = {.port = mxd_server_port(k.s)};
    CHECK_EQ(mxd_server_open(&s, &mxd_alloc_libc, &same, k.e, &err), MXD_E_NET);
    close_kit(&k);
}

TEST(server_heads) {
    static const struct {
        const char *raw;
        int status;
        const char *has;
    } rows[] = {
        {"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, "{\"status\":\"ok\"}"},
        {"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "origin_not_allowed"},
        {"GET /health HTTP/1.1\r\nHost: localhost.evil.example:80\r\n\r\n", 403,
         "origin_not_allowed"},
        {"GET /health HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", 403, "origin_not_allowed"},
        {"GET /health HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200, "ok"},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n", 403,
         "origin_not_allowed"},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\r\n", 200, "ok"},
        {"GET /nope HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"},
        {"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405,
         "Allow: POST, OPTIONS"},
        {"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "Allow: GET, HEAD, OPTIONS"},
        {"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, "Content-Length: 15"},
        {"OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 204, "Allow: GET"},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", 415,
         "unsupported_media_type"},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
         "text/plain\r\nContent-Length: 2\r\n\r\n{}",
         415, ""},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json; "
         "charset=utf-8\r\nContent-Length: 2\r\n\r\n{}",
         400, "\"param\":\"model\""},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
         "application/json\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
         400, "\"param\":\"model\""},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
         "application/json\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
         400, ""},
        {"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
         "application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
         400, ""},
        {"GET /v1/models/fake%2Fdemo HTTP/1.1\r\nHost: localhost\r\n\r\n", 200,
         "\"id\":\"fake/demo\""},
        {"GET /v1/models/fake/demo HTTP/1.1\r\nHost: localhost\r\n\r\n", 200,
         "\"id\":\"fake/demo\""},
        {"GET /v1/models/other HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "model_not_found"},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: mine-1\r\n\r\n", 200,
         "X-Request-Id: mine-1\r\n"},
        {"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a b\r\n\r\n", 200,
         "X-Request-Id: req_"},
        {"POST /v1/cancel/none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 404,
         "not_found"},
        {"GET /v1/cluster/plan HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, "stages"},
        {"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200, "Content-Security-Policy"},
    };
    kit k;
    mxd_server_opts o = {0};
    char out[65536];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        int status = ask(&k, rows[i].raw, out, sizeof out);
        if (status != rows[i].status || !strstr(out, rows[i].has))
            fail_msg("%s\n--> %s", rows[i].raw, out);
    }
    close_kit(&k);
}

TEST(server_keys_and_origins) {
    kit k;
    const char *keys[] = {"first", "second"}, *origin = "http://app.example";
    mxd_server_opts o = {.api_keys = keys,
                         .n_api_keys = 2,
                         .cors_origins = &origin,
                         .n_cors_origins = 1,
                         .api_prefix = "/llm/"};
    static const struct {
        const char *path, *headers;
        int status;
    } rows[] = {
        {"/llm/health", "", 200},
        {"/health", "", 404},
        {"/llmhealth", "", 404},
        {"/llm/v1/models", "", 401},
        {"/llm/metrics", "", 401},
        {"/llm/v1/cluster/state", "", 401},
        {"/llm/v1/models", "Authorization: Bearer first\r\n", 200},
        {"/llm/v1/models", "Authorization: bearer second\r\n", 200},
        {"/llm/v1/models", "x-api-key: second\r\n", 200},
        {"/llm/v1/models", "Authorization: Bearer firs\r\n", 401},
        {"/llm/v1/models", "Authorization: Bearer firstx\r\n", 401},
        {"/llm/v1/models", "Authorization: Bearer \r\n", 401},
        {"/llm/v1/models", "Authorization: Bearer first\r\nOrigin: http://app.example\r\n", 200},
        {"/llm/v1/models", "Authorization: Bearer first\r\nOrigin: http://app.example.evil\r\n",
         403},
    };
    char raw[512], out[8192];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        snprintf(raw, sizeof raw, "GET %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n", rows[i].path,
                 rows[i].headers);
        int status = ask(&k, raw, out, sizeof out);
        if (status != rows[i].status) fail_msg("%s: %s", raw, out);
        if (status == 401) CHECK(strstr(out, "WWW-Authenticate: Bearer"));
    }
    int status = ask(&k,
                     "OPTIONS /llm/v1/models HTTP/1.1\r\nHost: localhost\r\n"
                     "Origin: http://app.example\r\n\r\n",
                     out, sizeof out);
    CHECK_EQ(status, 204);
    CHECK(strstr(out, "Access-Control-Allow-Origin: http://app.example\r\n"));
    CHECK(!strstr(out, "Allow-Credentials"));
    close_kit(&k);
}

TEST(server_body_limit) {
    kit k;
    mxd_server_opts o = {.max_body = 1000};
    char body[2048], out[4096];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (int n = 999; n <= 1001; n++) {
        memset(body, ' ', sizeof body);
        body[n] = '\0';
        memcpy(body, "{\"content\":\"x\"}", 15);
        int fd = dial(&k);
        post(fd, "/tokenize", "", body);
        hear(fd, out, sizeof out, "}");
        CHECK(strstr(out, n <= 1000 ? "HTTP/1.1 200" : "HTTP/1.1 413"));
        if (n > 1000) CHECK(strstr(out, "too_large"));
        close(fd);
    }
    close_kit(&k);
}

TEST(server_header_limits) {
    kit k;
    mxd_server_opts o = {0};
    static char raw[65536], out[8192];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (int lines = 99; lines <= 101; lines++) {
        int at = snprintf(raw, sizeof raw, "GET /livez HTTP/1.1\r\nHost: localhost\r\n");
        for (int i = 1; i < lines; i++) at += snprintf(raw + at, 64, "X-%d: y\r\n", i);
        snprintf(raw + at, 64, "\r\n");
        CHECK_EQ(ask(&k, raw, out, sizeof out), lines <= 100 ? 200 : 431);
    }
    char big[20001];
    memset(big, 'a', sizeof big - 1);
    big[sizeof big - 1] = '\0';
    snprintf(raw, sizeof raw, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Big: %s\r\n\r\n", big);
    CHECK_EQ(ask(&k, raw, out, sizeof out), 431);
    big[16000] = '\0';
    snprintf(raw, sizeof raw, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Big: %s\r\n\r\n", big);
    CHECK_EQ(ask(&k, raw, out, sizeof out), 200);
    close_kit(&k);
}

TEST(server_header_time_is_a_total) {
    kit k;
    mxd_server_opts o = {.header_ms = 300};
    char byte[8];
    open_kit(&k, &o, &mxd_alloc_libc);
    int fd = dial(&k);
    int64_t begin = mxd_now_ms();
    bool closed = false;
    for (const char *p = "GET /health HTTP/1.1\r\nHost: localhost\r\nX: yyyyyyyyyyyyyyyyyyyy"; *p;
         p++) {
        if (send(fd, p, 1, MSG_NOSIGNAL) < 0) closed = true;
        struct pollfd in = {.fd = fd, .events = POLLIN};
        if (poll(&in, 1, 50) > 0 && recv(fd, byte, sizeof byte, 0) <= 0) closed = true;
        if (closed) break;
    }
    CHECK(closed);
    CHECK(mxd_now_ms() - begin < 2000);
    close(fd);
    close_kit(&k);
}

TEST(stream_status_waits_and_comments_come_while_silent) {
    kit k;
    mxd_server_opts o = {.keepalive_ms = 150};
    char out[8192];
    open_kit(&k, &o, &mxd_alloc_libc);
    int fd = dial(&k);
    post(fd, "/v1/chat/completions", "", CHAT("[[refuse:PEER]]", ",\"stream\":true"));
    hear(fd, out, sizeof out, "}}");
    CHECK(strstr(out, "HTTP/1.1 503") && strstr(out, "worker_lost") && strstr(out, "Retry-After"));
    post(fd, "/v1/chat/completions", "", CHAT("[[first:500]][[fail:0:PEER]]", ",\"stream\":true"));
    hear(fd, out, sizeof out, "}}");
    CHECK(strstr(out, "HTTP/1.1 200") && strstr(out, ":\n\n") && strstr(out, "data: {\"error\""));
    CHECK(!strstr(out, "[DONE]"));
    char rest[64];
    int64_t begin = mxd_now_ms();
    hear(fd, rest, sizeof rest, NULL); /* the connection closes behind an error */
    CHECK(mxd_now_ms() - begin < 2000);
    close(fd);
    fd = dial(&k);
    post(fd, "/v1/chat/completions", "", CHAT("[[first:60]][[fail:0:PEER]]", ",\"stream\":true"));
    hear(fd, out, sizeof out, "}}");
    CHECK(strstr(out, "HTTP/1.1 503"));
    close(fd);
    close_kit(&k);
}

TEST(client_gone_cancels_at_once) {
    static const char *const rests[] = {",\"stream\":true", ""};
    static const char *const scripts[] = {"[[first:60000]]", "[[count:1000]][[delay:50]]"};
    kit k;
    mxd_server_opts o = {0};
    char out[4096], body[512];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (int i = 0; i < 4; i++) {
        int fd = dial(&k);
        snprintf(
            body, sizeof body,
            "{\"model\":\"fake/demo\",\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}]%s}",
            scripts[i / 2], rests[i % 2]);
        post(fd, "/v1/chat/completions", "", body);
        CHECK_EQ(wait_live(k.e, 1), 1);
        if (i == 2) hear(fd, out, sizeof out, "data:");
        int64_t begin = mxd_now_ms();
        close(fd);
        CHECK_EQ(wait_live(k.e, 0), 0);
        CHECK(mxd_now_ms() - begin < 500);
        CHECK(fake_engine_cancel_ms(k.e) >= begin);
    }
    close_kit(&k);
}

static bool has_connections(const kit *k, int n) {
    char out[65536], want[64];
    snprintf(want, sizeof want, "\nmlxd_http_connections %d\n", n);
    ask(k, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", out, sizeof out);
    return strstr(out, want) != NULL;
}

/* The end arrives together with a whole or a half request. */
TEST(clients_that_close_early_leave_no_connection) {
    static const char *const heads[] = {"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
                                        "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n"
                                        "Content-Type: application/json\r\nContent-Length: 9\r\n"
                                        "\r\n{",
                                        "GET /liv"};
    kit k;
    mxd_server_opts o = {0};
    open_kit(&k, &o, &mxd_alloc_libc);
    for (int i = 0; i < 60; i++) {
        int fd = dial(&k);
        say(fd, heads[i % 3]);
        close(fd);
    }
    bool only_ours = false; /* the one that asks */
    for (int i = 0; i < 20 && !only_ours; i++) {
        mxd_sleep_ms(300); /* the connection that asked before is gone by then */
        only_ours = has_connections(&k, 1);
    }
    CHECK(only_ours);
    close_kit(&k);
}

TEST(cancel_by_id_ends_one_request_only) {
    kit k;
    mxd_server_opts o = {0};
    char a[8192], b[8192], c[2048], id[64] = "", raw[256];
    open_kit(&k, &o, &mxd_alloc_libc);
    int one = dial(&k), two = dial(&k);
    post(one, "/v1/chat/completions", "", CHAT("[[count:4000]][[delay:20]]", ",\"stream\":true"));
    post(two, "/v1/chat/completions", "", CHAT("[[count:20]][[delay:20]]", ",\"stream\":true"));
    hear(one, a, sizeof a, "data:");
    sscanf(strstr(a, "\"id\":\"") + 6, "%40[^\"]", id);
    snprintf(raw, sizeof raw,
             "POST /v1/cancel/%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", id);
    CHECK_EQ(ask(&k, raw, c, sizeof c), 200);
    CHECK(strstr(c, "\"cancelled\":true"));
    hear(one, a, sizeof a, "[DONE]");
    CHECK(strstr(a, "[DONE]") && strstr(a, "\"finish_reason\":\"stop\""));
    hear(two, b, sizeof b, "[DONE]");
    CHECK_EQ(ask(&k, raw, c, sizeof c), 404);
    close(one);
    close(two);
    CHECK_EQ(wait_live(k.e, 0), 0);
    close_kit(&k);
}

TEST(slow_client_is_bounded_and_harms_nobody) {
    kit k;
    mxd_server_opts o = {.stall_ms = 1000};
    char out[65536];
    open_kit(&k, &o, &mxd_alloc_libc);
    int slow = dial(&k), small = 4096;
    setsockopt(slow, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    post(slow, "/v1/chat/completions", "",
         "{\"model\":\"fake/demo\",\"stream\":true,\"ignore_eos\":true,\"max_tokens\":1900,\"n\":8,"
         "\"logprobs\":true,\"top_logprobs\":20,"
         "\"messages\":[{\"role\":\"user\",\"content\":\"[[count:1900]]\"}]}");
    CHECK_EQ(wait_live(k.e, 8), 8);
    for (int i = 0; i < 20; i++) {
        int fd = dial(&k);
        int64_t begin = mxd_now_ms();
        post(fd, "/v1/chat/completions", "Connection: close\r\n", CHAT("hi", ""));
        hear(fd, out, sizeof out, NULL);
        CHECK(strstr(out, "Hello from the fake engine."));
        CHECK(mxd_now_ms() - begin < 1000);
        close(fd);
    }
    CHECK_EQ(wait_live(k.e, 0), 0); /* closed for stalling */
    close(slow);
    close_kit(&k);
}

TEST(drain_refuses_new_work_and_lets_the_rest_end) {
    kit k;
    mxd_err err = {0};
    mxd_server_opts o = {0};
    char out[16384], other[4096];
    open_kit(&k, &o, &mxd_alloc_libc);
    int fd = dial(&k);
    post(fd, "/v1/chat/completions", "", CHAT("[[count:10]][[delay:20]]", ",\"stream\":true"));
    hear(fd, out, 600, "data");
    CHECK_EQ(mxd_server_drain(k.s, 1, &err), MXD_E_TIMEOUT);
    int late = dial(&k);
    post(late, "/v1/chat/completions", "", CHAT("hi", ""));
    hear(late, other, sizeof other, "}}");
    CHECK(strstr(other, "HTTP/1.1 503") && strstr(other, "shutting_down"));
    close(late);
    CHECK_EQ(ask(&k, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", other, sizeof other), 503);
    CHECK_EQ(ask(&k, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", other, sizeof other), 200);
    hear(fd, out, sizeof out, "[DONE]");
    CHECK(strstr(out, "[DONE]"));
    CHECK_OK(mxd_server_drain(k.s, 2000, &err), &err);
    close(fd);
    close_kit(&k);
}

TEST(close_ends_streams_with_an_error_event) {
    kit k;
    mxd_server_opts o = {0};
    char out[16384];
    open_kit(&k, &o, &mxd_alloc_libc);
    int fd = dial(&k), quiet = dial(&k), idle = dial(&k);
    post(fd, "/v1/chat/completions", "", CHAT("[[count:1000]][[delay:20]]", ",\"stream\":true"));
    post(quiet, "/v1/chat/completions", "", CHAT("[[first:60000]]", ""));
    hear(fd, out, sizeof out, "data:");
    CHECK_EQ(wait_live(k.e, 2), 2);
    int64_t begin = mxd_now_ms();
    close_kit(&k);
    CHECK(mxd_now_ms() - begin < 2000);
    hear(fd, out, sizeof out, NULL);
    CHECK(strstr(out, "shutting_down"));
    hear(quiet, out, sizeof out, NULL);
    CHECK(strstr(out, "HTTP/1.1 503") && strstr(out, "shutting_down"));
    close(fd);
    close(quiet);
    close(idle);
}

TEST(loading_and_refusals_have_their_codes) {
    static const struct {
        const char *code, *status, *says;
    } rows[] = {{"BUSY", "429", "queue_full"},         {"PEER", "503", "worker_lost"},
                {"SHUTDOWN", "503", "shutting_down"},  {"NOMEM", "503", "out_of_memory"},
                {"INTERNAL", "500", "internal_error"}, {"TIMEOUT", "503", "deadline_exceeded"}};
    kit k;
    mxd_server_opts o = {0};
    char out[4096], body[256];
    open_kit(&k, &o, &mxd_alloc_libc);
    for (size_t i = 0; i < MXD_COUNT(rows) * 2; i++) {
        int fd = dial(&k);
        snprintf(body, sizeof body, "{\"model\":\"fake/demo\",\"prompt\":\"%s%s]]\"}",
                 i & 1 ? "[[refuse:" : "[[fail:1:", rows[i / 2].code);
        post(fd, "/v1/completions", "", body);
        hear(fd, out, sizeof out, "}}");
        if (!strstr(out, rows[i / 2].status) || !strstr(out, rows[i / 2].says)) fail_msg("%s", out);
        close(fd);
    }
    fake_engine_set_state(k.e, MXD_ENGINE_LOADING);
    int fd = dial(&k);
    post(fd, "/v1/completions", "", "{\"model\":\"fake/demo\",\"prompt\":\"x\"}");
    hear(fd, out, sizeof out, "}}");
    CHECK(strstr(out, "503") && strstr(out, "model_loading") && strstr(out, "Retry-After"));
    close(fd);
    CHECK_EQ(ask(&k, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", out, sizeof out), 503);
    CHECK(strstr(out, "\"status\":\"loading\""));
    close_kit(&k);
}

TEST(defaults_are_the_operators_unless_the_request_says) {
    kit k;
    mxd_server_opts o = {0};
    char out[8192];
    open_kit(&k, &o, &mxd_alloc_libc);
    mxd_engine_defaults d = {.sampling = {.temperature = 0.5f, .top_k = 7, .seed = 42},
                             .has_seed = true,
                             .max_tokens = 3};
    mxd_engine_set_defaults(k.e, &d);
    static const char *const rests[] = {
        "", ",\"max_tokens\":5,\"seed\":-1,\"temperature\":0,\"top_p\":0,\"top_k\":-1"};
    for (int i = 0; i < 2; i++) {
        char body[256];
        snprintf(body, sizeof body, "{\"model\":\"fake/demo\",\"prompt\":\"x\"%s}", rests[i]);
        int fd = dial(&k);
        post(fd, "/v1/completions", "", body);
        hear_reply(fd, out, sizeof out, false);
        const mxd_gen *g = fake_engine_last(k.e);
        CHECK_EQ(g->max_tokens, i ? 5 : 3);
        CHECK_EQ(g->sampling.seed, i ? UINT64_MAX : 42);
        CHECK_EQ(g->sampling.top_k, i ? 0 : 7);
        CHECK(i ? g->sampling.temperature == 0 : g->sampling.temperature == 0.5f);
        CHECK(i ? g->sampling.top_p > 0 && g->sampling.top_p < 1e-6f : g->sampling.top_p == 0);
        close(fd);
    }
    close_kit(&k);
}

/* ---- memory ---- */

typedef struct failing {
    atomic_long left; /* allocations until one fails; below 0: none */
    atomic_long live;
} failing;

static void *failing_resize(void *ctx, void *p, size_t old_bytes, size_t new_bytes) {
    failing *f = ctx;
    if (new_bytes && atomic_load(&f->left) >= 0 && atomic_fetch_sub(&f->left, 1) == 0) return NULL;
    void *q = mxd_alloc_libc.resize(NULL, p, old_bytes, new_bytes);
    if (new_bytes && !q) return NULL;
    atomic_fetch_add(&f->live, (long)new_bytes - (long)old_bytes);
    return q;
}

/* The k-th allocation after a request has arrived fails, for every k: an error or a closed
 * connection, and the server lives. */
TEST(server_survives_every_failing_allocation) {
    static const char *const headers[] = {"", "", "X-Resumable: true\r\n"};
    static const char *const bodies[] = {
        CHAT("[[say:<think>a</think>b<tool_call>{\\\"name\\\":\\\"f\\\"}</tool_call>]]",
             ",\"stream\":true,\"stop\":[\"zz\"],\"tools\":[{\"type\":\"function\",\"function\":"
             "{\"name\":\"f\"}}]"),
        CHAT("hello", ",\"n\":2,\"logprobs\":true,\"top_logprobs\":2"),
        CHAT("[[say:<think>a</think>b]]", ",\"stream\":true,\"logprobs\":true")};
    failing f = {.left = -1};
    mxd_alloc al = {failing_resize, &f};
    kit k;
    mxd_server_opts o = {.threads = 1, .resume_ms = 1};
    static char out[65536], head[64];
    open_kit(&k, &o, &al);
    for (size_t i = 0; i < MXD_COUNT(bodies); i++) {
        int n = 0;
        for (bool whole = false; !whole && n < 2000; n++) {
            int fd = dial(&k);
            snprintf(head, sizeof head, "Connection: close\r\n%s", headers[i]);
            atomic_store(&f.left, n);
            post(fd, "/v1/chat/completions", head, bodies[i]);
            hear(fd, out, sizeof out, NULL);
            whole = atomic_load(&f.left) >= 0;
            atomic_store(&f.left, -1);
            bool answered = strstr(out, "HTTP/1.1 200") || strstr(out, "HTTP/1.1 503");
            if (out[0] && !answered) fail_msg("allocation %d: %s", n, out);
            close(fd);
        }
        CHECK(n > 10 && n < 2000);
        CHECK_EQ(wait_live(k.e, 0), 0);
    }
    close_kit(&k);
    CHECK_EQ(atomic_load(&f.live), 0);
}

TEST_OOM(server_open_unwinds) {
    char path[1024];
    const char *list[] = {"a", "b"};
    mxd_engine *e;
    mxd_engine_opts eo = {.folder = test_path(path, "../models/demo")};
    MXD_TRY(mxd_engine_open(&e, &mxd_alloc_libc, &eo, err));
    mxd_server_opts o = {.api_keys = list,
                         .n_api_keys = 2,
                         .aliases = list,
                         .n_aliases = 2,
                         .allowed_hosts = list,
                         .n_allowed_hosts = 2};
    mxd_server *s = NULL;
    mxd_rc rc = mxd_server_open(&s, al, &o, e, err);
    if (!rc) mxd_server_close(s);
    mxd_engine_close(e);
    return rc;
}

/* ---- many ---- */

typedef struct client {
    pthread_t thread;
    const kit *k;
    bool ok;
} client;

static void *client_main(void *arg) {
    client *c = arg;
    char *out = malloc(1 << 20);
    int fd = dial(c->k);
    post(fd, "/v1/chat/completions", "", CHAT("[[count:50]][[delay:5]]", ",\"stream\":true"));
    hear(fd, out, 1 << 20, "[DONE]");
    c->ok = strstr(out, "[DONE]") != NULL;
    close(fd);
    free(out);
    return NULL;
}

/* A wake that comes between looking for work and going to sleep must not get lost: the request
 * would sleep until its keep-alive. */
TEST(no_wake_is_lost) {
    kit k;
    mxd_server_opts o = {0};
    char out[4096];
    open_kit(&k, &o, &mxd_alloc_libc);
    int fd = dial(&k);
    for (int i = 0; i < 1000; i++) {
        int64_t begin = mxd_now_ms();
        post(fd, "/v1/completions", "", "{\"model\":\"fake/demo\",\"prompt\":\"x\"}");
        hear_reply(fd, out, sizeof out, false);
        CHECK(strstr(out, "HTTP/1.1 200"));
        CHECK(mxd_now_ms() - begin < 2000);
    }
    close(fd);
    close_kit(&k);
}

TEST(hundred_streams_at_once) {
    enum { N = 100 };
    static client all[N];
    kit k;
    mxd_server_opts o = {0};
    open_kit(&k, &o, &mxd_alloc_libc);
    for (int i = 0; i < N; i++) {
        all[i] = (client){.k = &k};
        CHECK(pthread_create(&all[i].thread, NULL, client_main, &all[i]) == 0);
    }
    for (int i = 0; i < N; i++) pthread_join(all[i].thread, NULL);
    for (int i = 0; i < N; i++) CHECK(all[i].ok);
    CHECK_EQ(wait_live(k.e, 0), 0);
    close_kit(&k);
}
