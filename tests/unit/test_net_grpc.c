/* What only the gRPC transport has: TLS, enrolment, other processes, and strangers on its port. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif
#include "base/clock.h"
#include "net/grpc_private.h"
#include "net/tls.h"
#include "net_kit.h"
#include "test.h"

extern char **environ;

static const mxd_alloc *const libc = &mxd_alloc_libc;

/* ------------------------------------------------------------------------------ other processes */

static void echo_back(net_node *n, const mxd_net_event *ev) {
    mxd_err err;
    mxd_rc rc = n->t->ops->send(n->t, ev->link, ev->message, ev->head->bytes, ev->head->len,
                                ev->payload, &err);
    if (rc) n->n_bad++;
}

/* The child's life: a node that listens, says on which port, dials the address it was given, and
 * answers whatever comes, until it is killed. */
static void live_as_child(const char *dial) {
    static net_node n;
    net_world w;
    mxd_link l;
    mxd_err err;
    kit_open(&w, NET_GRPC);
    kit_node(&w, &n, "child", NULL);
    kit_on(&n, echo_back, NULL);
    if (*dial && n.t->ops->dial(n.t, dial, NULL, MXD_LANE_DATA, 5000, &l, &err)) _exit(1);
    if (write(STDOUT_FILENO, &n.port, sizeof n.port) != sizeof n.port) _exit(1);
    for (;;) pause();
}

/* This program, started again with MXD_NET_CHILD set, is a child instead of a test run: gRPC does
 * not survive a fork. */
__attribute__((constructor)) static void maybe_child(void) {
    const char *dial = getenv("MXD_NET_CHILD");
    if (dial) live_as_child(dial);
}

typedef struct child {
    pid_t pid;
    int out;
    char address[64];
} child;

static void own_path(char *out, size_t cap) {
#if defined(__APPLE__)
    uint32_t n = (uint32_t)cap;
    CHECK_EQ(_NSGetExecutablePath(out, &n), 0);
#else
    ssize_t n = readlink("/proc/self/exe", out, cap - 1);
    CHECK(n > 0);
    out[n] = '\0';
#endif
}

static void child_start(child *c, const char *dial) {
    char path[1024];
    char *argv[] = {path, NULL};
    int fds[2], port = 0;
    posix_spawn_file_actions_t fa;
    own_path(path, sizeof path);
    CHECK_EQ(pipe(fds), 0);
    fcntl(fds[0], F_SETFD, FD_CLOEXEC);
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, fds[1], STDOUT_FILENO);
    setenv("MXD_NET_CHILD", dial, 1);
    CHECK_EQ(posix_spawn(&c->pid, path, &fa, NULL, argv, environ), 0);
    unsetenv("MXD_NET_CHILD");
    posix_spawn_file_actions_destroy(&fa);
    close(fds[1]);
    CHECK_EQ(read(fds[0], &port, sizeof port), sizeof port);
    c->out = fds[0];
    snprintf(c->address, sizeof c->address, "127.0.0.1:%d", port);
}

static void child_end(child *c) {
    kill(c->pid, SIGKILL);
    waitpid(c->pid, NULL, 0);
    close(c->out);
}

TEST(grpc_a_killed_peer_is_down_within_milliseconds) {
    net_world w;
    net_node a;
    mxd_link l;
    child c;
    mxd_err err = {0};
    kit_open(&w, NET_GRPC);
    kit_node(&w, &a, "a", NULL);
    child_start(&c, "");
    CHECK_OK(a.t->ops->dial(a.t, c.address, NULL, MXD_LANE_DATA, 5000, &l, &err), &err);
    kit_up(&a, l);
    CHECK_OK(a.t->ops->send(a.t, l, 1, "x", 1, NULL, &err), &err);
    kit_messages(&a, 1);
    int64_t t0 = mxd_now_ns();
    kill(c.pid, SIGKILL);
    CHECK_EQ(kit_down(&a, l), MXD_E_PEER);
    CHECK(mxd_now_ns() - t0 < 1000000000);
    child_end(&c);
    kit_node_close(&a);
    kit_close(&w);
}

/* frozen: we have dialled it, and it has dialled us; megabytes are on their way to it. */
TEST(grpc_close_does_not_wait_for_a_frozen_peer) {
    net_world w;
    net_node a;
    mxd_link l, back, hung;
    int64_t t0;
    child c;
    mxd_err err = {0};
    kit_open(&w, NET_GRPC);
    kit_node(&w, &a, "a", NULL);
    child_start(&c, a.address);
    back = kit_accepted(&a, 0);
    CHECK_OK(a.t->ops->dial(a.t, c.address, NULL, MXD_LANE_BULK, 5000, &l, &err), &err);
    kit_up(&a, l);
    CHECK_OK(a.t->ops->dial(a.t, c.address, NULL, MXD_LANE_DATA, 5000, &hung, &err), &err);
    kit_up(&a, hung);
    kill(c.pid, SIGSTOP);
    mxd_blob *p = kit_blob(MXD_MAX_FRAME_BYTES, 1);
    for (int i = 0; i < 8; i++) {
        CHECK_OK(a.t->ops->send(a.t, l, 1, NULL, 0, p, &err), &err);
        CHECK_OK(a.t->ops->send(a.t, back, 1, NULL, 0, p, &err), &err);
        CHECK_OK(a.t->ops->send(a.t, hung, 1, NULL, 0, p, &err), &err);
    }
    t0 = mxd_now_ms();
    a.t->ops->hangup(a.t, hung); /* nor does a hang-up */
    CHECK_EQ(kit_down(&a, hung), MXD_E_CANCELED);
    CHECK(mxd_now_ms() - t0 < 500);
    mxd_link late; /* and one that connects, but is never answered */
    CHECK_OK(a.t->ops->dial(a.t, c.address, NULL, MXD_LANE_DATA, 60000, &late, &err), &err);
    mxd_sleep_ms(50);
    t0 = mxd_now_ms();
    a.t->ops->close(a.t);
    a.t = NULL;
    CHECK(mxd_now_ms() - t0 < 1000);
    CHECK_EQ(kit_down(&a, l), MXD_E_CANCELED);
    CHECK_EQ(kit_down(&a, back), MXD_E_CANCELED);
    CHECK_EQ(kit_down(&a, late), MXD_E_CANCELED);
    child_end(&c);
    kit_node_close(&a);
    kit_close(&w);
    for (int i = 0; atomic_load(&p->refs) != 1 && i < 2000; i++) mxd_sleep_ms(1);
    CHECK_EQ(atomic_load(&p->refs), 1);
    mxd_blob_release(p);
}

/* ------------------------------------------------------------------------------------ strangers */

static int tcp_connect(int port) {
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK_EQ(connect(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    return fd;
}

/* A port that takes connections and says nothing. */
static int tcp_listen(int *port) {
    struct sockaddr_in sa = {.sin_family = AF_INET};
    socklen_t n = sizeof sa;
    sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    CHECK_EQ(listen(fd, 16), 0);
    CHECK_EQ(getsockname(fd, (struct sockaddr *)&sa, &n), 0);
    *port = ntohs(sa.sin_port);
    return fd;
}

TEST(grpc_silence_ends_at_the_deadline) {
    net_world w;
    net_node a;
    mxd_link l;
    mxd_err err = {0};
    char address[64];
    int port, fd = tcp_listen(&port);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    for (net_kind kind = NET_GRPC; kind <= NET_TLS; kind++) {
        kit_open(&w, kind);
        kit_node(&w, &a, "a", NULL);
        mxd_sleep_ms(50); /* its thread sleeps without a deadline by now */
        int64_t t0 = mxd_now_ms();
        CHECK_OK(a.t->ops->dial(a.t, address, NULL, MXD_LANE_DATA, 300, &l, &err), &err);
        CHECK_EQ(kit_down(&a, l), MXD_E_TIMEOUT);
        int64_t ms = mxd_now_ms() - t0;
        CHECK(ms >= 290 && ms < 1500);
        CHECK_EQ(kit_count(&a, MXD_NET_UP, l), 0);
        kit_node_close(&a);
        kit_close(&w);
    }
    close(fd);
}

static void garbage_on_port(net_kind kind) {
    static const char h2[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    kit_open(&w, kind);
    kit_node(&w, &a, "a", NULL);
    kit_node(&w, &b, "b", NULL);
    for (unsigned seed = 0; seed < 40; seed++) {
        int fd = tcp_connect(b.port);
        mxd_blob *p = kit_blob(1 + seed * 997, seed);
        if (seed % 2 && send(fd, h2, sizeof h2 - 1, MSG_NOSIGNAL) < 0) fail();
        ssize_t n = send(fd, p->bytes, p->len, MSG_NOSIGNAL);
        (void)n; /* it may have hung up already */
        mxd_blob_release(p);
        close(fd);
    }
    kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba); /* still there */
    CHECK_EQ(kit_count(&b, MXD_NET_UP, 0), 1);
    int idle[8];
    for (int i = 0; i < 8; i++) idle[i] = tcp_connect(b.port);
    kit_node_close(&a);
    int64_t t0 = mxd_now_ms();
    kit_node_close(&b); /* does not wait for the silent ones */
    CHECK(mxd_now_ms() - t0 < 1000);
    for (int i = 0; i < 8; i++) close(idle[i]);
    kit_close(&w);
}

TEST(grpc_garbage_on_the_port) { garbage_on_port(NET_GRPC); }
TEST(tls_garbage_on_the_port) { garbage_on_port(NET_TLS); }

/* One unary call from a stranger; cert NULL: without a certificate. */
static grpc_status_code raw_call(const char *address, const char *method, const char *ca,
                                 const mxd_pem *id, const char *body, size_t bytes, char *reply,
                                 size_t cap) {
    char target[128];
    mxd_err err = {0};
    mxd_grpc_args args;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *in = NULL;
    grpc_status_code status = GRPC_STATUS_OK;
    grpc_slice details = grpc_empty_slice();
    mxd_grpc_environment();
    grpc_init();
    grpc_metadata_array_init(&initial);
    grpc_metadata_array_init(&trailing);
    grpc_completion_queue *cq = grpc_completion_queue_create_for_next(NULL);
    CHECK_OK(mxd_grpc_target(address, target, sizeof target, &err), &err);
    mxd_grpc_client_args(&args, ca ? MXD_CLUSTER_DNS_NAME : NULL, 3000);
    grpc_channel_credentials *creds =
        mxd_grpc_channel_creds(ca, id ? id->cert : NULL, id ? id->key : NULL);
    grpc_channel *ch = grpc_channel_create(target, creds, &args.list);
    grpc_channel_credentials_release(creds);
    gpr_timespec until =
        gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(3000, GPR_TIMESPAN));
    grpc_call *call =
        grpc_channel_create_call(ch, NULL, GRPC_PROPAGATE_DEFAULTS, cq,
                                 grpc_slice_from_static_string(method), NULL, until, NULL);
    grpc_slice s = grpc_slice_from_copied_buffer(body, bytes);
    grpc_byte_buffer *out = grpc_raw_byte_buffer_create(&s, 1);
    grpc_slice_unref(s);
    grpc_op ops[6] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},  {.op = GRPC_OP_SEND_MESSAGE},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA},
        {.op = GRPC_OP_RECV_MESSAGE},           {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
    ops[1].data.send_message.send_message = out;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &initial;
    ops[4].data.recv_message.recv_message = &in;
    ops[5].data.recv_status_on_client.trailing_metadata = &trailing;
    ops[5].data.recv_status_on_client.status = &status;
    ops[5].data.recv_status_on_client.status_details = &details;
    CHECK_EQ(grpc_call_start_batch(call, ops, 6, NULL, NULL), GRPC_CALL_OK);
    grpc_completion_queue_next(cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    if (in && reply) {
        mxd_grpc_source src;
        const uint8_t *p;
        size_t n, at = 0;
        memset(reply, 0, cap);
        CHECK(mxd_grpc_source_init(&src, in));
        while (src.base.next(src.base.ctx, &p, &n) && at + n < cap) {
            memcpy(reply + at, p, n);
            at += n;
        }
        mxd_grpc_source_deinit(&src);
    }
    if (in) grpc_byte_buffer_destroy(in);
    grpc_byte_buffer_destroy(out);
    grpc_call_unref(call);
    grpc_channel_destroy(ch);
    grpc_slice_unref(details);
    grpc_metadata_array_destroy(&initial);
    grpc_metadata_array_destroy(&trailing);
    grpc_completion_queue_shutdown(cq);
    grpc_completion_queue_next(cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_completion_queue_destroy(cq);
    grpc_shutdown();
    return status;
}

#define NODE_METHOD(m) "/mlx_distributed.v1.Node/" m
#define HEALTH_METHOD  "/grpc.health.v1.Health/Check"

TEST(grpc_health_answers_serving) {
    net_world w;
    net_node b;
    char reply[16];
    kit_open(&w, NET_GRPC);
    kit_node(&w, &b, "b", NULL);
    CHECK_EQ(raw_call(b.address, HEALTH_METHOD, NULL, NULL, "", 0, reply, sizeof reply), 0);
    CHECK(memcmp(reply, "\x08\x01", 2) == 0);
    CHECK_EQ(raw_call(b.address, "/x/y", NULL, NULL, "", 0, NULL, 0), GRPC_STATUS_UNIMPLEMENTED);
    CHECK_EQ(raw_call(b.address, NODE_METHOD("Enroll"), NULL, NULL, "", 0, NULL, 0),
             GRPC_STATUS_UNIMPLEMENTED);
    kit_node_close(&b);
    kit_close(&w);
}

/* A stranger's well-formed stream whose frames lie: the link goes down with E_FORMAT. */
TEST(grpc_a_lying_frame_takes_the_link_down) {
    static const char *const lies[] = {"\x7a\x05x", "\x08\x02", "\x08\x01\x22\x01x", "\xff"};
    net_world w;
    net_node b;
    kit_open(&w, NET_GRPC);
    kit_node(&w, &b, "b", NULL);
    for (int i = 0; i < (int)MXD_COUNT(lies); i++) {
        raw_call(b.address, NODE_METHOD("Data"), NULL, NULL, lies[i], strlen(lies[i]), NULL, 0);
        mxd_link l = kit_accepted(&b, i);
        CHECK_EQ(kit_down(&b, l), MXD_E_FORMAT);
    }
    raw_call(b.address, NODE_METHOD("Data"), NULL, NULL, "\x08\x01", 2, NULL, 0);
    CHECK_EQ(kit_down(&b, kit_accepted(&b, (int)MXD_COUNT(lies))), MXD_E_PEER);
    CHECK_EQ(b.n_messages, 1);
    kit_node_close(&b);
    kit_close(&w);
}

/* ------------------------------------------------------------------------------------------ TLS */

TEST(tls_no_certificate_opens_nothing_but_enrolment) {
    static const char *const closed[] = {NODE_METHOD("Control"), NODE_METHOD("Data"),
                                         NODE_METHOD("Bulk"), HEALTH_METHOD, "/x/y"};
    net_world w;
    net_node b;
    kit_open(&w, NET_TLS);
    kit_node(&w, &b, "b", NULL);
    for (size_t i = 0; i < MXD_COUNT(closed); i++)
        CHECK_EQ(raw_call(b.address, closed[i], w.ca.cert, NULL, "\x08\x01", 2, NULL, 0),
                 GRPC_STATUS_UNAUTHENTICATED);
    CHECK_EQ(raw_call(b.address, NODE_METHOD("Enroll"), w.ca.cert, NULL, "", 0, NULL, 0),
             GRPC_STATUS_UNIMPLEMENTED); /* this node has no enrolment */
    CHECK_EQ(raw_call(b.address, HEALTH_METHOD, NULL, NULL, "", 0, NULL, 0),
             GRPC_STATUS_UNAVAILABLE); /* plaintext */
    CHECK_EQ(raw_call(b.address, HEALTH_METHOD, w.ca.cert, &w.issued[0], "", 0, NULL, 0), 0);
    CHECK_EQ(kit_count(&b, MXD_NET_UP, 0), 0);
    CHECK_EQ(b.n_messages, 0);
    kit_node_close(&b);
    kit_close(&w);
}

/* The CA itself signs no connections, and another CA's node is nobody. */
TEST(tls_a_certificate_of_another_ca_opens_nothing) {
    net_world w;
    net_node b;
    mxd_pem other, stranger;
    mxd_err err = {0};
    kit_open(&w, NET_TLS);
    kit_node(&w, &b, "b", NULL);
    CHECK_OK(mxd_ca_new(libc, "other", &other, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &other, "node-x", &stranger, &err), &err);
    CHECK(raw_call(b.address, HEALTH_METHOD, w.ca.cert, &stranger, "", 0, NULL, 0) != 0);
    CHECK(raw_call(b.address, NODE_METHOD("Data"), w.ca.cert, &w.ca, "", 0, NULL, 0) != 0);
    CHECK_EQ(kit_count(&b, MXD_NET_UP, 0), 0);
    mxd_pem_free(libc, &stranger);
    mxd_pem_free(libc, &other);
    kit_node_close(&b);
    kit_close(&w);
}

/* What a node shows is looked at by the one that dials, and what a dialler shows by the port. */
TEST(tls_an_expired_certificate_is_refused) {
    net_world w;
    net_node b;
    mxd_pem old;
    mxd_err err = {0};
    kit_open(&w, NET_TLS);
    kit_node(&w, &b, "b", NULL);
    CHECK_OK(mxd_ca_issue_for(libc, &w.ca, "node-x", 1, &old, &err), &err);
    mxd_sleep_ms(2100);
    CHECK(raw_call(b.address, HEALTH_METHOD, w.ca.cert, &old, "", 0, NULL, 0) != 0);
    CHECK_EQ(raw_call(b.address, HEALTH_METHOD, w.ca.cert, &w.issued[0], "", 0, NULL, 0), 0);
    CHECK_EQ(kit_count(&b, MXD_NET_UP, 0), 0);
    mxd_pem_free(libc, &old);
    kit_node_close(&b);
    kit_close(&w);
}

static mxd_rc dial_and_fall(net_node *a, const char *address, const char *peer) {
    mxd_link l;
    mxd_err err = {0};
    CHECK_OK(a->t->ops->dial(a->t, address, peer, MXD_LANE_DATA, 3000, &l, &err), &err);
    mxd_rc rc = kit_down(a, l);
    CHECK_EQ(kit_count(a, MXD_NET_UP, l), 0);
    return rc;
}

TEST(tls_the_wrong_node_the_wrong_ca_and_plaintext_are_refused) {
    net_world w, w2, plain;
    net_node a, b, c, d;
    mxd_link l;
    mxd_err err = {0};
    kit_open(&w, NET_TLS);
    kit_open(&w2, NET_TLS);
    kit_open(&plain, NET_GRPC);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_node(&w2, &c, "node-c", NULL);
    kit_node(&plain, &d, "", NULL);
    CHECK_EQ(dial_and_fall(&a, b.address, "node-c"), MXD_E_AUTH);
    CHECK_EQ(dial_and_fall(&a, c.address, "node-c"), MXD_E_AUTH);
    CHECK_EQ(dial_and_fall(&a, c.address, NULL), MXD_E_AUTH);
    CHECK_EQ(dial_and_fall(&a, d.address, NULL), MXD_E_AUTH); /* TLS to a plaintext port */
    CHECK_EQ(dial_and_fall(&d, a.address, NULL), MXD_E_PEER); /* plaintext to a TLS port */
    CHECK_EQ(a.t->ops->dial(a.t, b.address, "*", MXD_LANE_DATA, 100, &l, &err), MXD_E_INVAL);
    CHECK_OK(a.t->ops->dial(a.t, b.address, "node-b", MXD_LANE_DATA, 3000, &l, &err), &err);
    kit_up(&a, l);
    net_node *all[] = {&a, &b, &c, &d};
    for (size_t i = 0; i < MXD_COUNT(all); i++) kit_node_close(all[i]);
    kit_close(&w);
    kit_close(&w2);
    kit_close(&plain);
}

/* b's certificate ends while a is connected: the link stays, new ones are refused until b shows a
 * newer one. */
TEST(tls_a_renewed_identity_counts_for_new_connections) {
    net_world w;
    net_node a, b;
    mxd_pem brief, fresh;
    mxd_link l, l2;
    mxd_err err = {0};
    kit_open(&w, NET_TLS);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    CHECK_OK(a.t->ops->dial(a.t, b.address, "node-b", MXD_LANE_DATA, 3000, &l, &err), &err);
    kit_up(&a, l);
    CHECK_OK(mxd_ca_issue_for(libc, &w.ca, "node-b", 5, &brief, &err), &err);
    CHECK_OK(mxd_ca_issue(libc, &w.ca, "node-b", &fresh, &err), &err);
    CHECK_OK(mxd_grpc_renew(b.t, &(mxd_identity){w.ca.cert, brief.cert, brief.key}, &err), &err);
    mxd_sleep_ms(6100);
    CHECK_EQ(dial_and_fall(&a, b.address, "node-b"), MXD_E_AUTH);
    CHECK(dial_and_fall(&b, a.address, "node-a") != MXD_OK); /* refused behind our handshake */
    CHECK_EQ(mxd_grpc_renew(b.t, &(mxd_identity){w.ca.cert, fresh.cert, brief.key}, &err),
             MXD_E_AUTH);
    CHECK_OK(mxd_grpc_renew(b.t, &(mxd_identity){w.ca.cert, fresh.cert, fresh.key}, &err), &err);
    CHECK_OK(a.t->ops->dial(a.t, b.address, "node-b", MXD_LANE_DATA, 3000, &l2, &err), &err);
    kit_up(&a, l2);
    CHECK_OK(b.t->ops->dial(b.t, a.address, "node-a", MXD_LANE_DATA, 3000, &l2, &err), &err);
    kit_up(&b, l2);
    CHECK_OK(a.t->ops->send(a.t, l, 1, "x", 1, NULL, &err), &err); /* the first one still works */
    CHECK_EQ(kit_count(&a, MXD_NET_DOWN, l), 0);
    mxd_pem_free(libc, &brief);
    mxd_pem_free(libc, &fresh);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

TEST(tls_an_unusable_identity_does_not_open) {
    net_world w;
    mxd_transport *t;
    mxd_err err = {0};
    kit_open(&w, NET_TLS);
    mxd_identity a = kit_identity(&w, "a"), b = kit_identity(&w, "b");
    mxd_transport_opts o = {.al = libc, .sink = kit_sink, .identity = {a.ca, a.cert, b.key}};
    CHECK_EQ(mxd_grpc_open(&t, &o, &err), MXD_E_AUTH);
    o.identity = (mxd_identity){a.ca, a.cert, NULL};
    CHECK_EQ(mxd_grpc_open(&t, &o, &err), MXD_E_AUTH);
    o.identity = (mxd_identity){a.ca, "x", a.key};
    CHECK_EQ(mxd_grpc_open(&t, &o, &err), MXD_E_AUTH);
    kit_close(&w);
}

/* ------------------------------------------------------------------------------------ enrolment */

typedef struct office {
    net_world *w;
    char secret[MXD_SECRET_MAX];
    char give[MXD_MAX_NODE_NAME]; /* "": what was asked for */
    int n_asked;
} office;

static mxd_rc give_out(void *ctx, const char *node, const char *secret, const char *csr,
                       mxd_blob **cert, mxd_err *err) {
    office *o = ctx;
    char *pem;
    o->n_asked++;
    if (!mxd_secret_equal(secret, o->secret))
        return mxd_fail(err, MXD_E_AUTH, "the token is used up or unknown");
    if (o->give[0]) { /* a coordinator gone mad: another node's certificate */
        mxd_pem other;
        MXD_TRY(mxd_ca_issue(libc, &o->w->ca, o->give, &other, err));
        pem = mxd_strdup(libc, other.cert);
        mxd_pem_free(libc, &other);
    } else {
        MXD_TRY(mxd_ca_sign(libc, &o->w->ca, csr, node, &pem, err));
    }
    size_t n = strlen(pem), m = strlen(o->w->ca.cert);
    *cert = mxd_blob_new(libc, n + m);
    memcpy((*cert)->bytes, pem, n);
    memcpy((*cert)->bytes + n, o->w->ca.cert, m);
    mxd_free(libc, pem);
    return MXD_OK;
}

static void office_open(net_world *w, net_node *b, office *o, char token[MXD_TOKEN_MAX]) {
    mxd_err err = {0};
    kit_open(w, NET_TLS);
    *o = (office){.w = w};
    CHECK_OK(mxd_token_new(w->ca.cert, token, o->secret, &err), &err);
    kit_node(w, b, "boss", &(mxd_transport_opts){.enroll = give_out, .enroll_ctx = o});
}

TEST(tls_enrolment_gives_an_identity_that_works) {
    net_world w;
    net_node a, b;
    office o;
    char token[MXD_TOKEN_MAX], *ca = NULL;
    mxd_pem id;
    mxd_link l;
    mxd_err err = {0};
    mxd_net_event ev;
    office_open(&w, &b, &o, token);
    CHECK_OK(mxd_enroll(libc, b.address, token, "newcomer", 5000, &id, &ca, &err), &err);
    CHECK_STR(ca, w.ca.cert);
    kit_node_init(&a);
    mxd_transport_opts opts = {
        .al = libc, .sink = kit_sink, .sink_ctx = &a, .identity = {ca, id.cert, id.key}};
    kit_raw(&w, &a, "", &opts);
    CHECK_OK(a.t->ops->dial(a.t, b.address, "boss", MXD_LANE_CONTROL, 3000, &l, &err), &err);
    kit_up(&a, l);
    CHECK(kit_has(&b, MXD_NET_UP, kit_accepted(&b, 0), &ev));
    CHECK_STR(ev.peer, "newcomer");
    mxd_pem_free(libc, &id);
    mxd_free(libc, ca);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

TEST(tls_enrolment_is_refused_on_any_lie) {
    net_world w, w2;
    net_node b;
    office o;
    char token[MXD_TOKEN_MAX], wrong[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX], *ca;
    mxd_pem id;
    mxd_err err = {0};
    office_open(&w, &b, &o, token);
    CHECK_OK(mxd_token_new(w.ca.cert, wrong, secret, &err), &err); /* another secret */
    CHECK_EQ(mxd_enroll(libc, b.address, wrong, "n", 5000, &id, &ca, &err), MXD_E_AUTH);
    CHECK(strstr(err.msg, "used up"));
    CHECK_EQ(o.n_asked, 1);
    kit_open(&w2, NET_TLS);
    CHECK_OK(mxd_token_new(w2.ca.cert, wrong, secret, &err), &err); /* another CA */
    CHECK_EQ(mxd_enroll(libc, b.address, wrong, "n", 5000, &id, &ca, &err), MXD_E_AUTH);
    CHECK_EQ(o.n_asked, 1); /* the secret was never shown */
    CHECK_EQ(mxd_enroll(libc, b.address, "mxd1.x", "n", 5000, &id, &ca, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_enroll(libc, b.address, token, "No!", 5000, &id, &ca, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_enroll(libc, "127.0.0.1:1", token, "n", 5000, &id, &ca, &err), MXD_E_NET);
    snprintf(o.give, sizeof o.give, "other"); /* a certificate that is not for our key */
    CHECK_EQ(mxd_enroll(libc, b.address, token, "n", 5000, &id, &ca, &err), MXD_E_AUTH);
    CHECK(!id.cert && !id.key && !ca);
    kit_node_close(&b);
    kit_close(&w);
    kit_close(&w2);
}

TEST(tls_enrolment_at_a_port_that_is_no_node) {
    net_world w;
    net_node plain;
    char token[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX], address[64], *ca;
    mxd_pem id, authority;
    mxd_err err = {0};
    int port, fd = tcp_listen(&port);
    CHECK_OK(mxd_ca_new(libc, "x", &authority, &err), &err);
    CHECK_OK(mxd_token_new(authority.cert, token, secret, &err), &err);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);
    CHECK_EQ(mxd_enroll(libc, address, token, "n", 300, &id, &ca, &err), MXD_E_TIMEOUT);
    close(fd);
    kit_open(&w, NET_GRPC);
    kit_node(&w, &plain, "", NULL);
    CHECK_EQ(mxd_enroll(libc, plain.address, token, "n", 3000, &id, &ca, &err), MXD_E_AUTH);
    kit_node_close(&plain);
    kit_close(&w);
    mxd_pem_free(libc, &authority);
}

TEST(tls_enrolment_has_a_size_limit_and_a_rate) {
    static char big[MXD_ENROLL_MAX_BYTES + 1];
    net_world w;
    net_node b;
    office o;
    char token[MXD_TOKEN_MAX];
    int refused = 0;
    office_open(&w, &b, &o, token);
    memset(big, '\x28', sizeof big); /* unknown varints: well-formed but too long */
    CHECK_EQ(raw_call(b.address, NODE_METHOD("Enroll"), w.ca.cert, NULL, big, sizeof big, NULL, 0),
             GRPC_STATUS_OUT_OF_RANGE);
    CHECK_EQ(raw_call(b.address, NODE_METHOD("Enroll"), w.ca.cert, NULL, "\x0a\x05", 2, NULL, 0),
             GRPC_STATUS_DATA_LOSS);
    CHECK_EQ(o.n_asked, 0);
    for (int i = 0; i < 2 * MXD_GRPC_ENROLL_BURST; i++) {
        grpc_status_code s =
            raw_call(b.address, NODE_METHOD("Enroll"), w.ca.cert, NULL, "", 0, NULL, 0);
        CHECK(s == GRPC_STATUS_UNAUTHENTICATED || s == GRPC_STATUS_RESOURCE_EXHAUSTED);
        refused += s == GRPC_STATUS_RESOURCE_EXHAUSTED;
    }
    CHECK(refused > 0);
    CHECK_EQ(o.n_asked, 2 * MXD_GRPC_ENROLL_BURST - refused);
    kit_node_close(&b);
    kit_close(&w);
}

/* ------------------------------------------------------------------------------------ the rest */

TEST(grpc_targets) {
    static const struct {
        const char *address, *want;
    } rows[] = {{"1.2.3.4:5", "ipv4:1.2.3.4:5"},
                {"[::1]:5", "ipv6:%5B::1%5D:5"},
                {"[fe80::1%en0]:5", "ipv6:%5Bfe80::1%25en0%5D:5"},
                {"box.local:5", "dns:///box.local:5"}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char out[128];
        mxd_err err = {0};
        CHECK_OK(mxd_grpc_target(rows[i].address, out, sizeof out, &err), &err);
        CHECK_STR(out, rows[i].want);
    }
}

static void reaches(const char *listen, const char *host) {
    net_world w;
    net_node a, b;
    mxd_link l;
    mxd_err err = {0};
    char address[64];
    kit_open(&w, NET_TLS);
    kit_node_init(&b);
    mxd_transport_opts o = {
        .al = libc, .sink = kit_sink, .sink_ctx = &b, .identity = kit_identity(&w, "b")};
    kit_raw(&w, &b, "b", &o);
    mxd_rc rc = b.t->ops->listen(b.t, listen, &b.port, &err);
    if (!rc) {
        kit_node(&w, &a, "a", NULL);
        snprintf(address, sizeof address, "%s:%d", host, b.port);
        CHECK_OK(a.t->ops->dial(a.t, address, "b", MXD_LANE_DATA, 3000, &l, &err), &err);
        kit_up(&a, l);
        kit_node_close(&a);
    }
    kit_node_close(&b);
    kit_close(&w);
    if (rc) SKIP("this machine has no such address");
}

TEST(grpc_reaches_an_ipv6_address) { reaches("[::1]:0", "[::1]"); }
TEST(grpc_reaches_a_name) { reaches("127.0.0.1:0", "localhost"); }

TEST(grpc_a_name_that_does_not_exist_is_down) {
    net_world w;
    net_node a;
    mxd_link l;
    mxd_err err = {0};
    kit_open(&w, NET_GRPC);
    kit_node(&w, &a, "a", NULL);
    CHECK_OK(a.t->ops->dial(a.t, "no-such-host.invalid:5", NULL, MXD_LANE_DATA, 2000, &l, &err),
             &err);
    mxd_rc rc = kit_down(&a, l);
    CHECK(rc == MXD_E_PEER || rc == MXD_E_TIMEOUT);
    kit_node_close(&a);
    kit_close(&w);
}

TEST(grpc_listens_once_and_may_try_again_after_a_refusal) {
    net_world w;
    net_node a, b;
    int port;
    mxd_err err = {0};
    kit_open(&w, NET_GRPC);
    kit_node(&w, &a, "a", NULL);
    kit_node_init(&b);
    kit_raw(&w, &b, "b", &(mxd_transport_opts){.al = libc, .sink = kit_sink, .sink_ctx = &b});
    CHECK_EQ(b.t->ops->listen(b.t, a.address, &port, &err), MXD_E_NET);
    CHECK_EQ(b.t->ops->listen(b.t, "203.0.113.1:0", &port, &err), MXD_E_NET);
    CHECK_OK(b.t->ops->listen(b.t, "127.0.0.1:0", &port, &err), &err);
    CHECK_EQ(b.t->ops->listen(b.t, "127.0.0.1:0", &port, &err), MXD_E_INVAL);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

TEST_OOM(grpc_open_survives_short_memory) {
    net_node n;
    int port;
    kit_node_init(&n);
    mxd_transport_opts o = {.al = al, .sink = kit_sink, .sink_ctx = &n};
    MXD_TRY(mxd_grpc_open(&n.t, &o, err));
    mxd_rc rc = n.t->ops->listen(n.t, "127.0.0.1:0", &port, err);
    kit_node_close(&n);
    return rc;
}

/* Every allocation of a dial and a send fails once; nothing leaks and the other side lives. */
static net_node *oom_peer;

static mxd_rc dial_and_send(const mxd_alloc *al, mxd_err *err) {
    net_node n;
    mxd_link l;
    kit_node_init(&n);
    mxd_transport_opts o = {.al = al, .sink = kit_sink, .sink_ctx = &n};
    MXD_TRY(mxd_grpc_open(&n.t, &o, err));
    mxd_rc rc = n.t->ops->dial(n.t, oom_peer->address, NULL, MXD_LANE_DATA, KIT_WAIT_MS, &l, err);
    if (!rc) kit_up(&n, l);
    if (!rc) rc = n.t->ops->send(n.t, l, 1, "abc", 3, NULL, err);
    kit_node_close(&n);
    return rc;
}

TEST_OOM(grpc_dial_and_send_survive_short_memory) {
    net_world w;
    net_node b;
    kit_open(&w, NET_GRPC);
    kit_node(&w, &b, "b", NULL);
    oom_peer = &b;
    mxd_rc rc = dial_and_send(al, err);
    kit_node_close(&b);
    kit_close(&w);
    return rc;
}
