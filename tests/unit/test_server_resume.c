/* Resumable streams on a scripted engine. */
#include "test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "base/clock.h"
#include "fake_engine.h"
#include "server/server.h"

typedef struct kit {
    mxd_engine *e;
    mxd_server *s;
} kit;

static void open_kit(kit *k, const mxd_server_opts *o) {
    char path[1024];
    mxd_err err = {0};
    mxd_engine_opts eo = {.folder = test_path(path, "../models/demo")};
    CHECK_OK(mxd_engine_open(&k->e, &mxd_alloc_libc, &eo, &err), &err);
    CHECK_OK(mxd_server_open(&k->s, &mxd_alloc_libc, o, k->e, &err), &err);
}

static void close_kit(kit *k) {
    mxd_server_close(k->s);
    CHECK_EQ(fake_engine_live(k->e), 0);
    mxd_engine_close(k->e);
}

static int send_raw(const kit *k, const char *text) {
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)mxd_server_port(k->s))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
    return fd;
}

/* Until `until` was seen, the end, or 5 s. */
static void hear(int fd, char *out, size_t cap, const char *until) {
    size_t n = 0;
    int64_t end = mxd_now_ms() + 5000;
    out[0] = '\0';
    while (n + 1 < cap && mxd_now_ms() < end) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, 50) <= 0) continue;
        ssize_t got = recv(fd, out + n, cap - 1 - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
        out[n] = '\0';
        if (until && strstr(out, until)) break;
    }
}

static int post(const kit *k, const char *headers, const char *script, const char *rest) {
    char body[512], text[1024];
    snprintf(body, sizeof body, "{\"model\":\"fake/demo\",\"prompt\":\"%s\"%s}", script, rest);
    snprintf(
        text, sizeof text,
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Connection: close\r\n%sContent-Length: %zu\r\n\r\n%s",
        headers, strlen(body), body);
    return send_raw(k, text);
}

static int status_of(const char *reply) {
    int status = 0;
    (void)!sscanf(reply, "HTTP/1.1 %d", &status);
    return status;
}

static int get(const kit *k, const char *path, const char *headers, char *out, size_t cap) {
    char text[512];
    snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n",
             path, headers);
    int fd = send_raw(k, text);
    hear(fd, out, cap, NULL);
    close(fd);
    return status_of(out);
}

static void path_of(const char *reply, char path[64]) {
    const char *at = strstr(reply, "X-Stream-Id: ");
    CHECK(at);
    snprintf(path, 64, "/v1/streams/%.32s", at + 13);
    CHECK_EQ(strlen(path), 12 + 32);
}

/* The events without the chunks' lengths: what stands from the first "id: N" on. */
static char *events(char *reply, int first) {
    char want[32];
    snprintf(want, sizeof want, "\nid: %d\n", first);
    char *at = strstr(reply, want), *to = reply;
    CHECK(at);
    for (char *line = strtok(at + 1, "\r\n"); line; line = strtok(NULL, "\r\n"))
        if (strncmp(line, "id: ", 4) == 0 || strncmp(line, "data: ", 6) == 0)
            to += sprintf(to, "%s\n", line);
    return reply;
}

#define RESUMABLE "X-Resumable: true\r\n"
#define STREAM    ",\"stream\":true,\"max_tokens\":400"

TEST(resume_goes_on_behind_any_event) {
    static char whole[1 << 20], out[1 << 20];
    char path[64], headers[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    int fd = post(&k, RESUMABLE, "[[count:12]]", STREAM);
    hear(fd, whole, sizeof whole, NULL);
    close(fd);
    path_of(whole, path);
    events(whole, 0);
    int n = 0;
    for (const char *at = whole; (at = strstr(at, "id: ")) != NULL; at += 4) {
        CHECK_EQ(strtol(at + 4, NULL, 10), n);
        n++;
    }
    CHECK(n > 13 && strstr(whole, "[DONE]"));
    for (int last = 0; last < n - 1; last++) {
        char mark[32];
        snprintf(headers, sizeof headers, "Last-Event-ID: %d\r\n", last);
        CHECK_EQ(get(&k, path, headers, out, sizeof out), 200);
        snprintf(mark, sizeof mark, "id: %d\n", last + 1);
        CHECK_STR(events(out, last + 1), strstr(whole, mark));
    }
    CHECK_EQ(get(&k, path, "", out, sizeof out), 200);
    CHECK_STR(events(out, 0), whole);
    snprintf(headers, sizeof headers, "Last-Event-ID: %d\r\n", n - 1);
    CHECK_EQ(get(&k, path, headers, out, sizeof out), 204);
    char query[96];
    snprintf(query, sizeof query, "%s?after=3", path);
    CHECK_EQ(get(&k, query, "", out, sizeof out), 200);
    CHECK_STR(events(out, 4), strstr(whole, "id: 4\n"));
    CHECK_EQ(get(&k, query, "Last-Event-ID: 5\r\n", out, sizeof out), 200); /* the header wins */
    CHECK_STR(events(out, 6), strstr(whole, "id: 6\n"));
    CHECK_EQ(get(&k, path, "Last-Event-ID: soon\r\n", out, sizeof out), 400);
    path[20] ^= 1;
    CHECK_EQ(get(&k, path, "", out, sizeof out), 404);
    close_kit(&k);
}

static bool live_becomes(mxd_engine *e, int n, int64_t ms) {
    int64_t end = mxd_now_ms() + ms;
    while (fake_engine_live(e) != n && mxd_now_ms() < end) mxd_sleep_ms(2);
    return fake_engine_live(e) == n;
}

TEST(resume_client_that_goes_does_not_cancel) {
    static char out[1 << 20];
    char path[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    int fd = post(&k, RESUMABLE, "[[count:20]][[delay:10]]", STREAM);
    hear(fd, out, sizeof out, "id: 3\n");
    close(fd);
    path_of(out, path);
    CHECK_EQ(get(&k, path, "Last-Event-ID: 3\r\n", out, sizeof out), 200);
    CHECK(strstr(out, "[DONE]") && strstr(out, "\"finish_reason\":\"stop\""));
    CHECK_EQ(fake_engine_cancel_ms(k.e), 0);
    fd = post(&k, "", "[[count:200]][[delay:20]]", STREAM); /* another one is cancelled as ever */
    hear(fd, out, sizeof out, "data: ");
    CHECK(!strstr(out, "X-Stream-Id") && !strstr(out, "id: 0"));
    close(fd);
    CHECK(live_becomes(k.e, 0, 3000));
    CHECK(fake_engine_cancel_ms(k.e) != 0);
    close_kit(&k);
}

TEST(resume_ends_when_nobody_comes_back) {
    static char out[1 << 20];
    char path[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){.resume_ms = 200});
    int fd = post(&k, RESUMABLE, "[[count:300]][[delay:20]]", STREAM);
    hear(fd, out, sizeof out, "id: 3\n");
    CHECK_EQ(fake_engine_cancel_ms(k.e), 0);
    close(fd);
    path_of(out, path);
    CHECK(live_becomes(k.e, 0, 4000));
    CHECK(fake_engine_cancel_ms(k.e) != 0);
    for (int64_t until = mxd_now_ms() + 4000; !fake_engine_forgotten(k.e) && mxd_now_ms() < until;)
        mxd_sleep_ms(2);
    CHECK_EQ(fake_engine_forgotten(k.e), 1);
    CHECK_EQ(get(&k, path, "", out, sizeof out), 404);
    CHECK_EQ(mxd_server_running(k.s), 0);
    close_kit(&k);
}

TEST(resume_at_most_so_many_of_a_key) {
    static char out[1 << 20];
    char first[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){.max_resumes = 2});
    int fd = post(&k, RESUMABLE, "[[count:3]]", STREAM);
    hear(fd, out, sizeof out, NULL);
    path_of(out, first);
    close(fd);
    int slow = post(&k, RESUMABLE, "[[count:300]][[delay:50]]", STREAM);
    hear(slow, out, sizeof out, "id: 0\n");
    CHECK_EQ(get(&k, first, "", out, sizeof out), 200);
    int other = post(&k, RESUMABLE, "[[count:300]][[delay:50]]", STREAM); /* the ended one goes */
    hear(other, out, sizeof out, "id: 0\n");
    CHECK_EQ(status_of(out), 200);
    CHECK_EQ(get(&k, first, "", out, sizeof out), 404);
    fd = post(&k, RESUMABLE, "hello", STREAM);
    hear(fd, out, sizeof out, NULL);
    CHECK_EQ(status_of(out), 429);
    CHECK(strstr(out, "too_many_streams") && strstr(out, "Retry-After"));
    close(fd);
    fd = post(&k, "", "hello", STREAM); /* others are not concerned */
    hear(fd, out, sizeof out, NULL);
    CHECK_EQ(status_of(out), 200);
    close(fd);
    close(slow);
    close(other);
    close_kit(&k);
}

TEST(resume_belongs_to_a_key) {
    static char out[1 << 20];
    const char *keys[] = {"one", "two"};
    char path[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){.api_keys = keys, .n_api_keys = 2, .max_resumes = 1});
    int fd =
        post(&k, RESUMABLE "Authorization: Bearer one\r\n", "[[count:300]][[delay:50]]", STREAM);
    hear(fd, out, sizeof out, "id: 0\n");
    path_of(out, path);
    CHECK_EQ(get(&k, path, "", out, sizeof out), 401);
    CHECK_EQ(get(&k, path, "Authorization: Bearer two\r\n", out, sizeof out), 404);
    int of_two = post(&k, RESUMABLE "x-api-key: two\r\n", "[[count:2]]", STREAM);
    hear(of_two, out, sizeof out, NULL);
    CHECK_EQ(status_of(out), 200);
    close(of_two);
    close(fd);
    close_kit(&k);
}

TEST(resume_refusals) {
    static const struct {
        const char *headers, *rest;
        int status;
        const char *has;
    } rows[] = {
        {RESUMABLE, ",\"stream\":false", 400, "\"param\":\"stream\""},
        {RESUMABLE, ",\"stream\":true,\"n\":2", 400, "unsupported_parameter"},
        {"X-Resumable: false\r\n", ",\"stream\":true,\"n\":2", 200, "[DONE]"},
        {RESUMABLE, ",\"stream\":true,\"max_tokens\":0", 200, "id: 1\ndata: [DONE]"},
    };
    static char out[1 << 16];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        int fd = post(&k, rows[i].headers, "hello", rows[i].rest);
        hear(fd, out, sizeof out, NULL);
        close(fd);
        if (status_of(out) != rows[i].status || !strstr(out, rows[i].has))
            fail_msg("row %zu: %s", i, out);
    }
    close_kit(&k);
}

TEST(resume_without_a_journal_to_write) {
    static char out[1 << 16];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    fake_engine_set_journal_problem(k.e, "/secret/place: no room");
    int fd = post(&k, RESUMABLE, "hello", STREAM);
    hear(fd, out, sizeof out, NULL);
    close(fd);
    CHECK_EQ(status_of(out), 503);
    CHECK(strstr(out, "journal_unavailable") && !strstr(out, "secret"));
    fd = post(&k, "", "hello", STREAM);
    hear(fd, out, sizeof out, NULL);
    close(fd);
    CHECK_EQ(status_of(out), 200);
    CHECK_EQ(get(&k, "/health", "", out, sizeof out), 200);
    CHECK(strstr(out, "{\"status\":\"ok\",\"journal\":\"failed\"}"));
    fake_engine_set_journal_problem(k.e, NULL);
    get(&k, "/health", "", out, sizeof out);
    CHECK(strstr(out, "{\"status\":\"ok\"}"));
    close_kit(&k);
}

/* What fails before the first event is an ordinary error; later it is the last event. */
TEST(resume_failures) {
    static char out[1 << 16];
    char path[64];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    int fd = post(&k, RESUMABLE, "[[fail:0:PEER]]", STREAM);
    hear(fd, out, sizeof out, NULL);
    close(fd);
    CHECK_EQ(status_of(out), 503);
    fd = post(&k, RESUMABLE, "[[count:9]][[fail:3:PEER]]", STREAM);
    hear(fd, out, sizeof out, NULL);
    close(fd);
    path_of(out, path);
    CHECK(strstr(out, "worker_lost") && !strstr(out, "[DONE]"));
    CHECK_EQ(get(&k, path, "Last-Event-ID: 0\r\n", out, sizeof out), 200);
    CHECK(strstr(out, "worker_lost") && strstr(out, "id: 1\n") && !strstr(out, "id: 0\n"));
    close_kit(&k);
}

/* Closing ends connections without an error event: the stream may go on after a restart. */
TEST(resume_close_breaks_off) {
    static char out[1 << 20];
    kit k;
    open_kit(&k, &(mxd_server_opts){0});
    int fd = post(&k, RESUMABLE, "[[count:300]][[delay:20]]", STREAM);
    hear(fd, out, sizeof out, "id: 2\n");
    close_kit(&k);
    hear(fd, out, sizeof out, NULL);
    CHECK(!strstr(out, "[DONE]") && !strstr(out, "error"));
    close(fd);
}
