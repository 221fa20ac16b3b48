/* One suite for every transport: what transport.h promises, whatever carries the messages. */
#include "net_kit.h"

#include <pthread.h>
#include <stdatomic.h>
#include "base/clock.h"
#include "net/address.h"
#include "net/links.h"
#include "test.h"

#define SUITE(name)                               \
    static void name(net_kind kind);              \
    TEST(loopback_##name) { name(NET_LOOPBACK); } \
    TEST(grpc_##name) { name(NET_GRPC); }         \
    TEST(tls_##name) { name(NET_TLS); }           \
    static void name(net_kind kind)

static mxd_rc send_on(net_node *n, mxd_link l, uint32_t kind, const void *head, size_t bytes,
                      mxd_blob *payload) {
    mxd_err err = {0};
    return n->t->ops->send(n->t, l, kind, head, bytes, payload, &err);
}

/* Each message's head is its number; checks that they count up from 0. */
static void check_order(net_node *n, const mxd_net_event *ev) {
    uint64_t seq = UINT64_MAX;
    if (ev->head->len == sizeof seq) memcpy(&seq, ev->head->bytes, sizeof seq);
    if (seq != n->n_messages || ev->message != (uint32_t)(seq % 7)) n->n_bad++;
    if (ev->payload && !kit_blob_is(ev->payload, ev->payload->len, (unsigned)seq)) n->n_bad++;
}

static void send_numbered(net_node *n, mxd_link l, uint64_t i, size_t payload_bytes) {
    mxd_blob *p = payload_bytes ? kit_blob(payload_bytes, (unsigned)i) : NULL;
    mxd_rc rc;
    while ((rc = send_on(n, l, (uint32_t)(i % 7), &i, sizeof i, p)) == MXD_E_BUSY) mxd_sleep_ms(1);
    mxd_blob_release(p);
    CHECK_EQ(rc, MXD_OK);
}

SUITE(both_ends_come_up_and_know_each_other) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    mxd_net_event ev;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba);
    CHECK(kit_has(&a, MXD_NET_UP, ab, &ev));
    CHECK(!ev.accepted && ev.lane == MXD_LANE_DATA);
    CHECK_STR(ev.address, b.address);
    CHECK_STR(ev.peer, kind == NET_GRPC ? "" : "node-b");
    CHECK(kit_has(&b, MXD_NET_UP, ba, &ev));
    CHECK(ev.accepted && ev.lane == MXD_LANE_DATA);
    CHECK_STR(ev.peer, kind == NET_GRPC ? "" : "node-a");
    CHECK(strchr(ev.address, ':'));
    kit_node_close(&a);
    CHECK_EQ(kit_down(&b, ba), MXD_E_PEER);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(ten_thousand_small_messages_both_ways_in_order) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_on(&a, check_order, NULL);
    kit_on(&b, check_order, NULL);
    kit_join(&a, &b, MXD_LANE_CONTROL, &ab, &ba);
    for (uint64_t i = 0; i < 10000; i++) {
        send_numbered(&a, ab, i, i % 3 * 50);
        send_numbered(&b, ba, i, 0);
    }
    kit_messages(&a, 10000);
    kit_messages(&b, 10000);
    CHECK_EQ(a.n_bad, 0);
    CHECK_EQ(b.n_bad, 0);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(frames_up_to_the_limit_and_not_over_it) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_join(&a, &b, MXD_LANE_BULK, &ab, &ba);
    unsigned char head[8] = "head..!";
    static const struct {
        long head, delta;
        mxd_rc want;
    } rows[] = {{0, -1, MXD_OK}, {0, 0, MXD_OK}, {0, 1, MXD_E_TOOBIG},
                {8, -1, MXD_OK}, {8, 0, MXD_OK}, {8, 1, MXD_E_TOOBIG}};
    uint64_t n = 0;
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        size_t bytes = (size_t)(MXD_MAX_FRAME_BYTES - rows[i].head + rows[i].delta);
        mxd_blob *p = kit_blob(bytes, 3);
        CHECK_EQ(send_on(&a, ab, 9, head, (size_t)rows[i].head, p), rows[i].want);
        mxd_blob_release(p);
        if (rows[i].want) continue;
        kit_messages(&b, ++n);
        uint32_t message;
        size_t head_bytes;
        mxd_blob *got = kit_last(&b, &message, &head_bytes, NULL);
        CHECK(kit_blob_is(got, bytes, 3));
        CHECK_EQ(head_bytes, rows[i].head);
        CHECK_EQ(message, 9);
        mxd_blob_release(got);
    }
    CHECK_EQ(send_on(&a, ab, 9, NULL, 0, NULL), MXD_OK); /* nothing at all is a message too */
    kit_messages(&b, n + 1);
    CHECK(!kit_last(&b, NULL, NULL, NULL));
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

typedef struct gate {
    pthread_mutex_t lock;
    bool entered;
} gate;

static void wait_at_gate(net_node *n, const mxd_net_event *ev) {
    (void)ev;
    gate *g = n->ctx;
    pthread_mutex_lock(&g->lock);
    pthread_mutex_unlock(&g->lock);
}

SUITE(a_full_queue_says_busy_and_empties_again) {
    enum { MAX = 1 << 20, PART = 256 << 10 };
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    gate g = {.lock = PTHREAD_MUTEX_INITIALIZER};
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", &(mxd_transport_opts){.max_queued_bytes = MAX});
    kit_node(&w, &b, "node-b", NULL);
    kit_on(&b, wait_at_gate, &g);
    kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba);
    mxd_blob *p = kit_blob(PART, 1), *big = kit_blob(MAX + 1, 1);
    CHECK_EQ(send_on(&a, ab, 1, NULL, 0, big), MXD_E_BUSY);
    pthread_mutex_lock(&g.lock); /* the receiver stands still, so the queue must fill */
    uint64_t sent = 0;
    mxd_rc rc = MXD_OK;
    while (sent < 1000 && (rc = send_on(&a, ab, 1, NULL, 0, p)) == MXD_OK) sent++;
    CHECK_EQ(rc, MXD_E_BUSY);
    CHECK(sent >= MAX / PART);
    pthread_mutex_unlock(&g.lock);
    kit_messages(&b, sent);
    while ((rc = send_on(&a, ab, 1, NULL, 0, p)) == MXD_E_BUSY) mxd_sleep_ms(1);
    CHECK_EQ(rc, MXD_OK);
    kit_messages(&b, sent + 1);
    mxd_blob_release(p);
    mxd_blob_release(big);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(hangup_from_either_side_takes_both_ends_down) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    for (int dialler = 0; dialler < 2; dialler++) {
        kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba);
        net_node *who = dialler ? &a : &b, *other = dialler ? &b : &a;
        mxd_link mine = dialler ? ab : ba, theirs = dialler ? ba : ab;
        who->t->ops->hangup(who->t, mine);
        who->t->ops->hangup(who->t, mine); /* once more is harmless */
        CHECK_EQ(kit_down(who, mine), MXD_E_CANCELED);
        CHECK_EQ(kit_down(other, theirs), MXD_E_PEER);
        CHECK_EQ(send_on(who, mine, 1, NULL, 0, NULL), MXD_E_PEER);
        CHECK_EQ(send_on(other, theirs, 1, NULL, 0, NULL), MXD_E_PEER);
    }
    a.t->ops->hangup(a.t, 12345);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(a_dial_to_nobody_goes_down_once) {
    net_world w;
    net_node a;
    mxd_link l;
    mxd_err err = {0};
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    int64_t t0 = mxd_now_ms();
    CHECK_OK(a.t->ops->dial(a.t, "127.0.0.1:1", NULL, MXD_LANE_DATA, 3000, &l, &err), &err);
    CHECK_EQ(kit_down(&a, l), MXD_E_PEER);
    CHECK(mxd_now_ms() - t0 < 2900);
    CHECK_EQ(kit_count(&a, MXD_NET_UP, l), 0);
    CHECK_EQ(a.t->ops->dial(a.t, "nonsense", NULL, MXD_LANE_DATA, 3000, &l, &err), MXD_E_INVAL);
    CHECK_EQ(a.t->ops->dial(a.t, "127.0.0.1:x", NULL, MXD_LANE_DATA, 3000, &l, &err), MXD_E_INVAL);
    kit_node_close(&a);
    kit_close(&w);
}

SUITE(every_dial_ends_in_one_down_also_at_close) {
    enum { N = 20 };
    net_world w;
    net_node a, b;
    mxd_link l[N];
    mxd_err err = {0};
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    for (int i = 0; i < N; i++)
        CHECK_OK(
            a.t->ops->dial(a.t, b.address, NULL, (mxd_lane)(i % MXD_LANE_COUNT), 3000, &l[i], &err),
            &err);
    a.t->ops->close(a.t);
    a.t = NULL;
    for (int i = 0; i < N; i++) {
        CHECK_EQ(kit_count(&a, MXD_NET_DOWN, l[i]), 1);
        CHECK(kit_count(&a, MXD_NET_UP, l[i]) <= 1);
    }
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(payloads_are_released_exactly_once) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    mxd_blob *p[64];
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba);
    for (size_t i = 0; i < MXD_COUNT(p); i++) {
        p[i] = kit_blob(1 + i * 4000, 5);
        CHECK_EQ(send_on(&a, ab, 1, "h", 1, p[i]), MXD_OK);
    }
    a.t->ops->hangup(a.t, ab); /* some have left, some have not */
    kit_down(&a, ab);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
    for (size_t i = 0; i < MXD_COUNT(p); i++) {
        int64_t until = mxd_now_ms() + KIT_WAIT_MS;
        while (atomic_load(&p[i]->refs) != 1 && mxd_now_ms() < until) mxd_sleep_ms(1);
        CHECK_EQ(atomic_load(&p[i]->refs), 1);
        mxd_blob_release(p[i]);
    }
}

static void echo(net_node *n, const mxd_net_event *ev) {
    mxd_err err;
    if (n->t->ops->send(n->t, ev->link, ev->message, ev->head->bytes, ev->head->len, ev->payload,
                        &err))
        n->n_bad++;
    if (ev->message == 99) n->t->ops->hangup(n->t, ev->link);
}

SUITE(a_sink_may_send_and_hang_up) {
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    kit_on(&b, echo, NULL);
    kit_join(&a, &b, MXD_LANE_DATA, &ab, &ba);
    mxd_blob *p = kit_blob(100000, 8);
    CHECK_EQ(send_on(&a, ab, 1, "x", 1, p), MXD_OK);
    mxd_blob_release(p);
    kit_messages(&a, 1);
    mxd_blob *got = kit_last(&a, NULL, NULL, NULL);
    CHECK(kit_blob_is(got, 100000, 8));
    mxd_blob_release(got);
    CHECK_EQ(send_on(&a, ab, 99, "x", 1, NULL), MXD_OK);
    CHECK_EQ(kit_down(&a, ab), MXD_E_PEER);
    CHECK_EQ(kit_down(&b, ba), MXD_E_CANCELED);
    CHECK_EQ(b.n_bad, 0);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

SUITE(an_address_in_use_is_refused_by_name) {
    net_world w;
    net_node a, b;
    int port;
    mxd_err err = {0};
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node_init(&b);
    mxd_transport_opts o = {.al = &mxd_alloc_libc, .sink = kit_sink, .sink_ctx = &b};
    kit_raw(&w, &b, "node-b", &o);
    CHECK_EQ(b.t->ops->listen(b.t, a.address, &port, &err), MXD_E_NET);
    CHECK(strstr(err.msg, a.address));
    CHECK_OK(b.t->ops->listen(b.t, "127.0.0.1:0", &port, &err), &err);
    CHECK(port > 0 && port != a.port);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

TEST(address_split_takes_hosts_and_refuses_the_rest) {
    static const struct {
        const char *text, *host;
        int port; /* -1: refused */
    } rows[] = {
        {"10.0.0.7:5000", "10.0.0.7", 5000},
        {"box.local:0", "box.local", 0},
        {"[::1]:65535", "::1", 65535},
        {"[fe80::1%en0]:1", "fe80::1%en0", 1},
        {"h:65536", "", -1},
        {"h:", "", -1},
        {"h", "", -1},
        {"", "", -1},
        {":1", "", -1},
        {"::1:5", "", -1},
        {"[]:1", "", -1},
        {"[::1:1", "", -1},
        {"a b:1", "", -1},
        {"h:1x", "", -1},
        {"unix:/tmp/x:1", "", -1},
        {"h:-1", "", -1},
        {"h:000001", "", -1},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char host[MXD_HOST_MAX];
        int port = 0;
        mxd_err err = {0};
        mxd_rc rc = mxd_address_split(rows[i].text, host, &port, &err);
        if ((int)rc != (rows[i].port < 0 ? MXD_E_INVAL : MXD_OK)) fail_msg("'%s'", rows[i].text);
        if (rc) continue;
        CHECK_STR(host, rows[i].host);
        CHECK_EQ(port, rows[i].port);
    }
}

TEST(links_are_never_numbered_twice_and_end_at_the_limit) {
    static int things[MXD_MAX_LINKS + 1];
    static mxd_link ids[MXD_MAX_LINKS];
    mxd_links t;
    mxd_link id;
    mxd_err err = {0};
    mxd_links_init(&t, &mxd_alloc_libc);
    CHECK(!mxd_links_get(&t, 0) && !mxd_links_get(&t, 1) && !mxd_links_get(&t, UINT64_MAX));
    for (int i = 0; i < MXD_MAX_LINKS; i++)
        CHECK_OK(mxd_links_add(&t, &things[i], &ids[i], &err), &err);
    CHECK_EQ(mxd_links_add(&t, &things[MXD_MAX_LINKS], &id, &err), MXD_E_BUSY);
    mxd_links_remove(&t, ids[7]);
    mxd_links_remove(&t, ids[7]);
    CHECK(!mxd_links_get(&t, ids[7]));
    CHECK_OK(mxd_links_add(&t, &things[0], &id, &err), &err);
    CHECK(id != ids[7] && !mxd_links_get(&t, ids[7]) && mxd_links_get(&t, id) == &things[0]);
    mxd_links_deinit(&t);
}

/* ------------------------------------------------------------------------------ driving threads */

typedef struct driven {
    net_node *n;
    atomic_int inside;   /* sinks that run */
    atomic_bool crossed; /* two did at a time */
    atomic_bool stop;
    pthread_t main; /* whose deliveries are counted */
    atomic_int here;
    uint64_t next[MXD_LANE_COUNT]; /* the number that must come, on each link */
    atomic_int bad;
} driven;

static void check_driven(net_node *n, const mxd_net_event *ev) {
    driven *d = n->ctx;
    if (atomic_fetch_add(&d->inside, 1)) atomic_store(&d->crossed, true);
    if (pthread_equal(pthread_self(), d->main)) atomic_fetch_add(&d->here, 1);
    uint64_t seq = UINT64_MAX;
    if (ev->head->len == sizeof seq) memcpy(&seq, ev->head->bytes, sizeof seq);
    if (seq != d->next[ev->lane]++) atomic_fetch_add(&d->bad, 1);
    if (ev->payload) mxd_sleep_ms(1); /* long enough for another to come in between */
    atomic_fetch_sub(&d->inside, 1);
}

static void *drive_too(void *arg) {
    driven *d = arg;
    while (!atomic_load(&d->stop)) (void)d->n->t->ops->drive(d->n->t, 100000);
    return NULL;
}

static uint64_t count_of(net_node *n) {
    pthread_mutex_lock(&n->lock);
    uint64_t got = n->n_messages;
    pthread_mutex_unlock(&n->lock);
    return got;
}

/* Threads that wait deliver, one at a time with the transport's own; when they stay away it goes on
 * alone, at once after rest. */
SUITE(threads_that_wait_may_drive) {
    enum { MANY = 3000 };
    net_world w;
    net_node a, b;
    mxd_link ab, ba;
    pthread_t other;
    kit_open(&w, kind);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    const mxd_transport_ops *ops = b.t->ops;
    CHECK((ops->drive != NULL) == (kind != NET_LOOPBACK));
    driven d = {.n = &b, .main = pthread_self()};
    kit_on(&b, check_driven, &d);
    mxd_link ab2, ba2; /* one link alone has one message at a time */
    kit_join(&a, &b, MXD_LANE_GROUP, &ab, &ba);
    kit_join(&a, &b, MXD_LANE_CONTROL, &ab2, &ba2);
    for (uint64_t i = 0; ops->drive && i < MANY; i++) {
        send_numbered(&a, ab, i, i % 50 ? 0 : 100);
        send_numbered(&a, ab2, i, i % 50 ? 0 : 100);
        while (i < MANY / 2 && count_of(&b) <= 2 * i) (void)ops->drive(b.t, i % 3 * 50000);
        if (i == MANY / 2) CHECK(pthread_create(&other, NULL, drive_too, &d) == 0);
        if (i > MANY / 2) (void)ops->drive(b.t, 0);
    }
    if (ops->drive) {
        atomic_store(&d.stop, true);
        pthread_join(other, NULL);
        CHECK(atomic_load(&d.here) > 0);
        ops->rest(b.t);
        kit_messages(&b, 2 * MANY); /* nobody drives */
        for (uint64_t i = 0; i < 100; i++) send_numbered(&a, ab, MANY + i, 0);
        kit_messages(&b, 2 * MANY + 100);
    }
    CHECK(!atomic_load(&d.crossed));
    CHECK_EQ(atomic_load(&d.bad), 0);
    ops->hangup(b.t, ba);
    kit_down(&a, ab);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}

TEST_OOM(loopback_survives_short_memory) {
    mxd_loopback_hub *hub = NULL;
    mxd_transport *a = NULL, *b = NULL;
    mxd_link l;
    int port;
    net_node na, nb;
    kit_node_init(&na);
    kit_node_init(&nb);
    mxd_transport_opts oa = {.al = al, .sink = kit_sink, .sink_ctx = &na};
    mxd_transport_opts ob = {.al = al, .sink = kit_sink, .sink_ctx = &nb};
    MXD_TRY(mxd_loopback_hub_open(&hub, al, err));
    mxd_rc rc = mxd_loopback_open(&a, hub, &oa, "a", err);
    if (!rc) rc = mxd_loopback_open(&b, hub, &ob, "b", err);
    if (!rc) rc = b->ops->listen(b, "b:1", &port, err);
    if (!rc) rc = a->ops->dial(a, "b:1", "b", MXD_LANE_DATA, 1000, &l, err);
    if (!rc) kit_up(&na, l);
    if (!rc) rc = a->ops->send(a, l, 1, "abc", 3, NULL, err);
    if (a) a->ops->close(a);
    if (b) b->ops->close(b);
    kit_node_close(&na);
    kit_node_close(&nb);
    mxd_loopback_hub_close(hub);
    return rc;
}

TEST(loopback_refuses_the_wrong_node) {
    net_world w;
    net_node a, b;
    mxd_link l;
    mxd_err err = {0};
    kit_open(&w, NET_LOOPBACK);
    kit_node(&w, &a, "node-a", NULL);
    kit_node(&w, &b, "node-b", NULL);
    CHECK_OK(a.t->ops->dial(a.t, b.address, "node-c", MXD_LANE_DATA, 1000, &l, &err), &err);
    CHECK_EQ(kit_down(&a, l), MXD_E_AUTH);
    CHECK_EQ(kit_count(&b, MXD_NET_UP, 0), 0);
    kit_node_close(&a);
    kit_node_close(&b);
    kit_close(&w);
}
