/* Who a worker is, over time: certificates that end and are renewed, programs of other versions. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/log.h"
#include "cluster/coordinator.h"
#include "cluster/wire.h"
#include "cluster/worker.h"
#include "net/tls.h"
#include "test.h"

static const mxd_alloc *const libc = &mxd_alloc_libc;
static char secret[MXD_SECRET_MAX];

static bool spend(void *ctx, const char *given) {
    (void)ctx;
    return mxd_secret_equal(given, secret);
}

typedef struct remote {
    mxd_cluster *c;
    char base[64], folder[1024], address[64], token[MXD_TOKEN_MAX];
} remote;

static void open_remote(remote *r, int64_t cert_life_s) {
    mxd_err err = {0};
    char path[128], ca[MXD_PEM_MAX] = "";
    mxd_log_set_level((mxd_log_level)(MXD_LOG_ERROR + 1));
    snprintf(r->base, sizeof r->base, "/tmp/mxd-identity-XXXXXX");
    CHECK(mkdtemp(r->base));
    mxd_cluster_opts o = {.folder = test_path(r->folder, "../models/demo"),
                          .no_local = true,
                          .listen = "127.0.0.1:0",
                          .state_dir = r->base,
                          .ctx = 256,
                          .parallel = 1,
                          .cert_life_s = cert_life_s,
                          .spend_secret = spend};
    CHECK_OK(mxd_cluster_open(&r->c, libc, &o, &err), &err);
    snprintf(r->address, sizeof r->address, "127.0.0.1:%d", mxd_cluster_port(r->c));
    snprintf(path, sizeof path, "%s/ca.pem", r->base);
    FILE *f = fopen(path, "r");
    CHECK(f && fread(ca, 1, sizeof ca - 1, f) > 0);
    fclose(f);
    CHECK_OK(mxd_token_new(ca, r->token, secret, &err), &err);
}

static void close_remote(remote *r) {
    char path[128];
    static const char *const files[] = {"ca.pem", "ca.key"};
    mxd_cluster_close(r->c);
    for (size_t i = 0; i < MXD_COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s", r->base, files[i]);
        unlink(path);
    }
    rmdir(r->base);
}

/* ------------------------------------------------------------------------------- certificates */

typedef struct kept {
    atomic_int n;
    char cert[MXD_PEM_MAX];
} kept;

static void renewed(void *ctx, const char *cert) {
    kept *k = ctx;
    snprintf(k->cert, sizeof k->cert, "%s", cert);
    atomic_fetch_add(&k->n, 1);
}

static mxd_worker_opts worker_opts(const remote *r, const char *ca, const mxd_pem *pem, kept *k) {
    return (mxd_worker_opts){.node = "box",
                             .join = r->address,
                             .identity = {ca, pem->cert, pem->key},
                             .memory_total = 8ull << 30,
                             .memory_free = 4ull << 30,
                             .threads = 1,
                             .renewed = renewed,
                             .renewed_ctx = k};
}

/* Certificates of a few seconds, in place of ninety days: a worker's and the coordinator's own are
 * renewed before they end, the cluster goes on, and what the worker has kept lets it join again. */
TEST(cluster_certificates_are_renewed) {
    enum { LIFE_S = 6 };
    remote r;
    mxd_pem pem;
    char *ca;
    mxd_worker *w;
    mxd_err err = {0};
    static kept k;
    open_remote(&r, LIFE_S);
    CHECK_OK(mxd_enroll(libc, r.address, r.token, "box", 10000, &pem, &ca, &err), &err);
    mxd_worker_opts o = worker_opts(&r, ca, &pem, &k);
    CHECK_OK(mxd_worker_open(&w, libc, &o, &err), &err);
    CHECK_OK(mxd_cluster_wait(r.c, 60000, &err), &err);
    for (int i = 0; i < 6000 && atomic_load(&k.n) < 2; i++) mxd_sleep_ms(10);
    CHECK(atomic_load(&k.n) >= 2);
    CHECK(mxd_identity_check(ca, pem.cert, pem.key, NULL, &err) ==
          MXD_E_AUTH); /* the first ended */
    CHECK_EQ(mxd_worker_wait(w, 0, &err), MXD_E_TIMEOUT);
    mxd_cluster_counters n;
    mxd_cluster_counters_get(r.c, &n);
    CHECK_EQ(n.epochs, 1);
    CHECK_EQ(n.nodes_live, 1);
    mxd_worker_close(w);
    /* with the certificate of its first start it could not come back, with the one it kept it does
     */
    CHECK_EQ(mxd_worker_open(&w, libc, &o, &err), MXD_E_AUTH);
    CHECK(strstr(err.msg, "expired"));
    const mxd_pem last = {k.cert, pem.key};
    o = worker_opts(&r, ca, &last, &k);
    CHECK_OK(mxd_worker_open(&w, libc, &o, &err), &err);
    for (int i = 0; i < 1000 && n.epochs < 2; i++) {
        mxd_sleep_ms(10);
        mxd_cluster_counters_get(r.c, &n);
    }
    CHECK(n.epochs >= 2);
    mxd_worker_close(w);
    close_remote(&r);
    mxd_pem_free(libc, &pem);
    mxd_free(libc, ca);
}

/* What others are told must be an address that one can dial. */
TEST(cluster_worker_address_must_be_one) {
    remote r;
    mxd_pem pem;
    char *ca;
    mxd_worker *w;
    mxd_err err = {0};
    open_remote(&r, 0);
    CHECK_OK(mxd_enroll(libc, r.address, r.token, "box", 10000, &pem, &ca, &err), &err);
    mxd_worker_opts o = worker_opts(&r, ca, &pem, NULL);
    static const char *const wrong[] = {"0.0.0.0:7000", "[::]:7000", "box", "box:x", ""};
    for (size_t i = 0; i < MXD_COUNT(wrong); i++) {
        o.advertise = wrong[i];
        if (mxd_worker_open(&w, libc, &o, &err) == MXD_OK) fail_msg("'%s'", wrong[i]);
        CHECK(strstr(err.msg, "advertise"));
    }
    close_remote(&r);
    mxd_pem_free(libc, &pem);
    mxd_free(libc, ca);
}

/* Where nobody else can come, a split for other nodes is a mistake of the start. */
TEST(cluster_layer_split_for_other_nodes) {
    char folder[1024];
    mxd_cluster *c;
    mxd_err err = {0};
    mxd_cluster_opts o = {.folder = test_path(folder, "../models/demo"), .shape.n_split = 2};
    o.shape.split[0] = o.shape.split[1] = 3;
    CHECK_EQ(mxd_cluster_open(&c, libc, &o, &err), MXD_E_INVAL);
    CHECK(strstr(err.msg, "layer split is for 2 nodes"));
}

/* --------------------------------------------------------------------- programs of other versions
 */

typedef struct answer {
    atomic_int up, kind, down;
    uint8_t head[4096];
    size_t n;
} answer;

static void listen_to(void *ctx, const mxd_net_event *ev) {
    answer *a = ctx;
    if (ev->kind == MXD_NET_UP) atomic_store(&a->up, 1);
    if (ev->kind == MXD_NET_DOWN) atomic_store(&a->down, 1);
    if (ev->kind != MXD_NET_MESSAGE || atomic_load(&a->kind)) return;
    a->n = ev->head->len < sizeof a->head ? ev->head->len : sizeof a->head;
    memcpy(a->head, ev->head->bytes, a->n);
    atomic_store(&a->kind, (int)ev->message);
}

static void until(const atomic_int *what) {
    for (int i = 0; i < 1000 && !atomic_load(what); i++) mxd_sleep_ms(10);
    CHECK(atomic_load(what));
}

/* What the coordinator says to a hello of versions [oldest, newest]. */
static int greet(const remote *r, const mxd_identity *id, int oldest, int newest, answer *a) {
    mxd_transport *t;
    mxd_link l;
    mxd_err err = {0};
    *a = (answer){0};
    const mxd_transport_opts o = {.al = libc, .identity = *id, .sink = listen_to, .sink_ctx = a};
    char hello[] = "\x08\x00\x12\x03"
                   "box"
                   "\x78\x00"
                   "\x62\x0b"
                   "127.0.0.1:1";
    hello[1] = (char)newest;
    hello[8] = (char)oldest;
    CHECK_OK(mxd_grpc_open(&t, &o, &err), &err);
    CHECK_OK(t->ops->dial(t, r->address, "coordinator", MXD_LANE_CONTROL, 5000, &l, &err), &err);
    until(&a->up);
    CHECK_OK(t->ops->send(t, l, MXD_WIRE_HELLO, hello, sizeof hello - 1, NULL, &err), &err);
    until(&a->kind);
    t->ops->close(t);
    return atomic_load(&a->kind);
}

TEST(cluster_programs_of_other_versions) {
    enum { V = MXD_PROTOCOL_VERSION };
    remote r;
    mxd_pem pem;
    char *ca;
    mxd_err err = {0};
    mxd_arena arena;
    static answer a;
    open_remote(&r, 0);
    CHECK_OK(mxd_arena_init(&arena, libc, MXD_WIRE_SCRATCH, &err), &err);
    CHECK_OK(mxd_enroll(libc, r.address, r.token, "box", 10000, &pem, &ca, &err), &err);
    const mxd_identity id = {ca, pem.cert, pem.key};
    mxd_welcome m;
    CHECK_EQ(greet(&r, &id, V, V + 1, &a), MXD_WIRE_WELCOME); /* the next one, which knows ours */
    CHECK_OK(mxd_wire_get_welcome(&m, &arena, a.head, a.n, &err), &err);
    CHECK_EQ(m.version, V);
    mxd_wire_failure f;
    CHECK_EQ(greet(&r, &id, V + 1, V + 2, &a), MXD_WIRE_DROP);
    CHECK_OK(mxd_wire_get_drop(&f, &arena, a.head, a.n, &err), &err);
    CHECK_EQ(f.rc, MXD_E_UNSUPPORTED);
    CHECK(strstr(f.text, "protocol versions") && strstr(f.text, "update"));
    CHECK_EQ(greet(&r, &id, 1, MXD_PROTOCOL_OLDEST - 1, &a), MXD_WIRE_DROP);
    mxd_arena_deinit(&arena);
    close_remote(&r);
    mxd_pem_free(libc, &pem);
    mxd_free(libc, ca);
}
