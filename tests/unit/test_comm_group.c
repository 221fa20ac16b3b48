/* Groups on transports that somebody else owns: joining, giving up, one after the other; and the
 * exchange of parts. */
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/rand.h"
#include "net/comm.h"
#include "net_kit.h"

enum { MOST = 6, LONG_MS = 30000 };
enum { RING = NET_TLS + 1 }; /* gRPC, and shared memory on top */

static const int kinds[] = {NET_LOOPBACK, NET_GRPC, NET_TLS, RING};

/* The owner of a transport, as a node of a cluster is one. */
typedef struct site {
    pthread_mutex_t lock; /* of c: the sink takes it too */
    mxd_transport *t;
    mxd_comm *c; /* NULL: links of groups are hung up on */
    char address[64];
    int rank;
    struct rig *rig;
    pthread_t thread;
    mxd_rc rc;
    mxd_err err;
} site;

typedef struct rig {
    net_world world;
    int kind, size;
    site s[MOST];
    const char *addresses[MOST];
    const mxd_alloc *al; /* of the comms */
    mxd_rc (*run)(site *s);
    unsigned seed;
} rig;

static void sink(void *ctx, const mxd_net_event *ev) {
    site *s = ctx;
    CHECK_EQ(ev->lane, MXD_LANE_GROUP);
    pthread_mutex_lock(&s->lock);
    if (s->c)
        mxd_comm_event(s->c, ev);
    else if (ev->kind != MXD_NET_DOWN)
        s->t->ops->hangup(s->t, ev->link);
    pthread_mutex_unlock(&s->lock);
}

static void rig_open(rig *g, int kind, int size) {
    mxd_err err = {0};
    memset(g, 0, sizeof *g);
    g->kind = kind;
    g->size = size;
    g->al = &mxd_alloc_libc;
    kit_open(&g->world, kind == RING ? NET_GRPC : (net_kind)kind);
    for (int r = 0; r < size; r++) {
        site *s = &g->s[r];
        char name[16];
        int port;
        snprintf(name, sizeof name, "node-%d", r);
        s->rank = r;
        s->rig = g;
        pthread_mutex_init(&s->lock, NULL);
        const mxd_transport_opts o = {.al = &mxd_alloc_libc,
                                      .sink = sink,
                                      .sink_ctx = s,
                                      .identity = kit_identity(&g->world, name)};
        if (kind == NET_LOOPBACK)
            CHECK_OK(mxd_loopback_open(&s->t, g->world.hub, &o, name, &err), &err);
        else
            CHECK_OK(mxd_grpc_open(&s->t, &o, &err), &err);
        CHECK_OK(s->t->ops->listen(s->t, "127.0.0.1:0", &port, &err), &err);
        snprintf(s->address, sizeof s->address, "127.0.0.1:%d", port);
        g->addresses[r] = s->address;
    }
}

/* As every owner must: the sink's lock is held until the comm has its place. */
static mxd_rc site_new(site *s, const char *group, mxd_err *err) {
    const rig *g = s->rig;
    const mxd_comm_opts o = {.group = group,
                             .rank = s->rank,
                             .size = g->size,
                             .addresses = g->addresses,
                             .transport = s->t,
                             .no_measure = true,
                             .drives_transport = g->kind == NET_TLS,
                             .no_shared_memory = g->kind != RING,
                             .spin_us = g->kind == RING ? 20 : 0};
    pthread_mutex_lock(&s->lock);
    mxd_rc rc = mxd_comm_new(&s->c, g->al, &o, err);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static void site_close(site *s) {
    pthread_mutex_lock(&s->lock);
    mxd_comm *c = s->c;
    s->c = NULL;
    pthread_mutex_unlock(&s->lock);
    mxd_comm_close(c);
}

static void rig_close(rig *g) {
    for (int r = 0; r < g->size; r++) site_close(&g->s[r]);
    for (int r = 0; r < g->size; r++) g->s[r].t->ops->close(g->s[r].t);
    for (int r = 0; r < g->size; r++) pthread_mutex_destroy(&g->s[r].lock);
    kit_close(&g->world);
}

static void *site_main(void *arg) {
    site *s = arg;
    s->rc = s->rig->run(s);
    return NULL;
}

/* Every rank does `run` in a thread of its own. */
static void rig_run(rig *g, mxd_rc (*run)(site *)) {
    g->run = run;
    for (int r = 0; r < g->size; r++)
        CHECK(pthread_create(&g->s[r].thread, NULL, site_main, &g->s[r]) == 0);
    for (int r = 0; r < g->size; r++) pthread_join(g->s[r].thread, NULL);
    for (int r = 0; r < g->size; r++)
        if (g->s[r].rc) fail_msg("rank %d: %s", r, g->s[r].err.msg);
}

static mxd_rc join(site *s) {
    MXD_TRY(site_new(s, "one", &s->err));
    return mxd_comm_join(s->c, LONG_MS, &s->err);
}

/* ------------------------------------------------------------------------------------ exchange */

static float value(unsigned seed, int rank, size_t i) {
    return (float)(mxd_rand_u64(seed, (uint64_t)rank, i) >> 40);
}

/* Sizes of round k: uneven, some of them 0, small ones and some of several pieces. */
static void sizes_of(size_t *n, int size, unsigned seed, unsigned k) {
    static const size_t some[] = {0, 1, 7, 2048, 16384, 0, 300000, 5};
    for (int r = 0; r < size; r++) {
        uint64_t x = mxd_rand_u64(seed, k, (uint64_t)r);
        n[r] = some[x % 8];
        if (k % 16 == 15) n[r] = (size_t)(x >> 8) % 400000;
        if (k % 16 == 3) n[r] = 0;
    }
}

static mxd_rc one_exchange(site *s, unsigned seed, unsigned k) {
    size_t n[MOST], all = 0, at = 0;
    int size = s->rig->size;
    sizes_of(n, size, seed, k);
    for (int r = 0; r < size; r++) all += n[r];
    float *x = malloc((all + 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < all; i++) x[i] = -1;
    x[all] = 77;
    for (int r = 0; r < size; at += n[r++])
        for (size_t i = 0; i < n[r] && r == s->rank; i++) x[at + i] = value(seed + k, r, i);
    mxd_rc rc = mxd_comm_exchange(s->c, x, n, LONG_MS, &s->err);
    at = 0;
    for (int r = 0; r < size && !rc; at += n[r++])
        for (size_t i = 0; i < n[r]; i++)
            if (x[at + i] != value(seed + k, r, i)) {
                free(x);
                return mxd_fail(&s->err, MXD_E_INTERNAL, "round %u, part of rank %d, float %zu", k,
                                r, i);
            }
    if (!rc && x[all] != 77) rc = mxd_fail(&s->err, MXD_E_INTERNAL, "wrote behind the end");
    free(x);
    return rc;
}

static mxd_rc many_exchanges(site *s) {
    MXD_TRY(join(s));
    for (unsigned k = 0; k < 32; k++) MXD_TRY(one_exchange(s, s->rig->seed, k));
    mxd_comm_stats st;
    mxd_comm_stats_get(s->c, &st);
    CHECK_EQ(st.exchanges, s->rig->size > 1 ? 32 : 0);
    CHECK_EQ(mxd_comm_waits_for(s->c), -1);
    mxd_comm_rest(s->c);
    return mxd_comm_barrier(s->c, LONG_MS, &s->err);
}

TEST(comm_exchange_brings_every_part_to_every_rank) {
    for (int size = 1; size <= MOST; size++)
        for (size_t k = 0; k < 4; k++) {
            if (kinds[k] == NET_TLS && size > 2) continue;
            rig g;
            rig_open(&g, kinds[k], size);
            g.seed = (unsigned)(100 * size);
            rig_run(&g, many_exchanges);
            rig_close(&g);
        }
}

static mxd_rc cut_exchanges(site *s) {
    MXD_TRY(join(s));
    for (unsigned k = 0; k < 100; k++) {
        if (k % 7 == (unsigned)s->rank) mxd_comm_cut(s->c, (s->rank + 1) % s->rig->size);
        MXD_TRY(one_exchange(s, s->rig->seed, k));
    }
    return mxd_comm_barrier(s->c, LONG_MS, &s->err);
}

TEST(comm_exchange_survives_cut_links) {
    for (size_t k = 0; k < 4; k++)
        for (int size = 2; size <= 3; size++) {
            rig g;
            mxd_comm_stats st;
            rig_open(&g, kinds[k], size);
            g.seed = 5;
            rig_run(&g, cut_exchanges);
            mxd_comm_stats_get(g.s[0].c, &st);
            CHECK(st.reconnects > 3);
            rig_close(&g);
        }
}

/* Between other collectives and plain messages. */
static mxd_rc mixed(site *s) {
    size_t n[MOST], got;
    float x[MOST] = {0}, sum = 1;
    int size = s->rig->size, next = (s->rank + 1) % size, before = (s->rank + size - 1) % size;
    MXD_TRY(join(s));
    for (int r = 0; r < size; r++) n[r] = 1;
    for (int k = 0; k < 40; k++) {
        sum = 1;
        x[s->rank] = (float)(s->rank + k);
        MXD_TRY(mxd_comm_send(s->c, next, 9, x, 4, LONG_MS, &s->err));
        MXD_TRY(mxd_comm_exchange(s->c, x, n, LONG_MS, &s->err));
        MXD_TRY(mxd_comm_all_reduce(s->c, &sum, 1, MXD_REDUCE_SUM, LONG_MS, &s->err));
        for (int r = 0; r < size; r++) CHECK(x[r] == (float)(r + k));
        CHECK(sum == (float)size);
        MXD_TRY(mxd_comm_recv(s->c, before, 9, x, 4, &got, LONG_MS, &s->err));
        CHECK_EQ(got, 4);
    }
    return MXD_OK;
}

TEST(comm_exchange_among_other_calls) {
    for (size_t k = 0; k < 4; k++) {
        rig g;
        rig_open(&g, kinds[k], 3);
        rig_run(&g, mixed);
        rig_close(&g);
    }
}

/* Rank 1 gets what it expects and brings more than rank 0 does: rank 0 is told. */
static mxd_rc unlike(site *s) {
    size_t n[] = {2, 2};
    float x[8] = {0};
    MXD_TRY(join(s));
    n[1] += (size_t)s->rank;
    mxd_rc rc = mxd_comm_exchange(s->c, x, n, LONG_MS, &s->err);
    if (s->rank) return rc;
    CHECK_EQ(rc, MXD_E_STALE);
    CHECK(strstr(s->err.msg, "not all ranks do the same"));
    CHECK_EQ(mxd_comm_exchange(s->c, x, n, LONG_MS, &s->err), MXD_E_STALE);
    n[0] = SIZE_MAX;
    CHECK_EQ(mxd_comm_exchange(s->c, x, n, LONG_MS, &s->err), MXD_E_TOOBIG);
    return MXD_OK;
}

TEST(comm_exchange_of_unlike_sizes_is_refused) {
    for (size_t k = 0; k < 4; k++) {
        rig g;
        rig_open(&g, kinds[k], 2);
        rig_run(&g, unlike);
        rig_close(&g);
    }
}

/* --------------------------------------------------------------------------- aborts, deadlines */

static void *wait_and_abort(void *arg) {
    site *s = arg;
    while (mxd_comm_waits_for(s->c) < 0) mxd_sleep_ms(1);
    CHECK_EQ(mxd_comm_waits_for(s->c), 1);
    mxd_comm_abort(s->c);
    return NULL;
}

/* Rank 1 is there and does not take part; then it does, of a part that nobody wants any more. */
static mxd_rc aborted(site *s) {
    static atomic_int over;
    static float x[600000];
    static const size_t n[] = {300000, 300000};
    if (s->rank == 0) atomic_store(&over, 0);
    MXD_TRY(join(s));
    MXD_TRY(mxd_comm_barrier(s->c, LONG_MS, &s->err));
    if (s->rank == 1) {
        while (!atomic_load(&over)) mxd_sleep_ms(1);
        return MXD_OK;
    }
    pthread_t t;
    CHECK(pthread_create(&t, NULL, wait_and_abort, s) == 0);
    CHECK_EQ(mxd_comm_exchange(s->c, x, n, -1, &s->err), MXD_E_CANCELED);
    pthread_join(t, NULL);
    CHECK_EQ(mxd_comm_exchange(s->c, x, n, -1, &s->err), MXD_E_CANCELED);
    CHECK_EQ(mxd_comm_barrier(s->c, -1, &s->err), MXD_E_CANCELED);
    CHECK_EQ(mxd_comm_flush(s->c, -1, &s->err), MXD_E_CANCELED);
    CHECK_EQ(mxd_comm_send(s->c, 1, 1, x, 4, -1, &s->err), MXD_E_CANCELED);
    CHECK_EQ(mxd_comm_recv(s->c, 1, 1, x, 4, &(size_t){0}, -1, &s->err), MXD_E_CANCELED);
    CHECK_EQ(mxd_comm_join(s->c, -1, &s->err), MXD_E_CANCELED);
    mxd_comm_stats st;
    mxd_comm_stats_get(s->c, &st);
    CHECK(st.waited_ns > 0);
    atomic_store(&over, 1);
    return MXD_OK;
}

TEST(comm_abort_ends_an_exchange) {
    for (size_t k = 0; k < 4; k++) {
        rig g;
        rig_open(&g, kinds[k], 2);
        rig_run(&g, aborted);
        rig_close(&g);
    }
}

TEST(comm_abort_ends_a_join) {
    for (size_t k = 0; k < 4; k++) {
        rig g;
        mxd_err err = {0};
        pthread_t t;
        rig_open(&g, kinds[k], 2);
        CHECK_OK(site_new(&g.s[0], "one", &err), &err);
        CHECK_EQ(mxd_comm_join(g.s[0].c, 20, &err), MXD_E_TIMEOUT);
        CHECK(strstr(err.msg, "ranks 1 did not come"));
        CHECK(pthread_create(&t, NULL, wait_and_abort, &g.s[0]) == 0);
        CHECK_EQ(mxd_comm_join(g.s[0].c, -1, &err), MXD_E_CANCELED);
        pthread_join(t, NULL);
        rig_close(&g);
    }
}

/* The rest of a part whose exchange ended early disturbs nothing that comes later. */
static mxd_rc left_over(site *s) {
    static float x[2 * 600000];
    static const size_t n[] = {0, 600000};
    float y = 0;
    size_t got;
    MXD_TRY(join(s));
    if (s->rank == 0) {
        mxd_rc rc = mxd_comm_exchange(s->c, x, n, 0, &s->err);
        CHECK(rc == MXD_E_TIMEOUT || rc == MXD_OK);
        s->err = (mxd_err){0};
        return mxd_comm_recv(s->c, 1, 5, &y, sizeof y, &got, LONG_MS, &s->err);
    }
    static float own[600000];
    MXD_TRY(mxd_comm_exchange(s->c, own, n, LONG_MS, &s->err));
    return mxd_comm_send(s->c, 0, 5, own, sizeof *own, LONG_MS, &s->err);
}

TEST(comm_exchange_that_ended_early) {
    for (size_t k = 0; k < 4; k++)
        for (int again = 0; again < 4; again++) {
            rig g;
            rig_open(&g, kinds[k], 2);
            rig_run(&g, left_over);
            rig_close(&g);
        }
}

/* -------------------------------------------------------------------- one group after the other */

/* A rank of the group before is asked, hangs up, and is there soon after. */
TEST(comm_of_another_name_is_hung_up_on) {
    for (size_t k = 0; k < 4; k++) {
        rig g;
        mxd_err err = {0};
        rig_open(&g, kinds[k], 2);
        CHECK_OK(site_new(&g.s[0], "old", &err), &err);
        CHECK_OK(site_new(&g.s[1], "new", &err), &err);
        CHECK_EQ(mxd_comm_join(g.s[1].c, 150, &err), MXD_E_TIMEOUT);
        CHECK_EQ(mxd_comm_join(g.s[0].c, 1, &err), MXD_E_TIMEOUT);
        site_close(&g.s[0]);
        CHECK_EQ(mxd_comm_join(g.s[1].c, 50, &err), MXD_E_TIMEOUT); /* nobody at all */
        CHECK_OK(site_new(&g.s[0], "new", &err), &err);
        CHECK_OK(mxd_comm_join(g.s[1].c, LONG_MS, &err), &err);
        CHECK_OK(mxd_comm_join(g.s[0].c, LONG_MS, &err), &err);
        rig_close(&g);
    }
}

/* Ranks leave at different moments, with messages under way that nobody reads. */
static mxd_rc generations(site *s) {
    char name[16];
    static const float junk[50000];
    for (unsigned k = 0; k < 12; k++) {
        snprintf(name, sizeof name, "epoch %u", k);
        MXD_TRY(site_new(s, name, &s->err));
        MXD_TRY(mxd_comm_join(s->c, LONG_MS, &s->err));
        MXD_TRY(one_exchange(s, k, 1));
        MXD_TRY(mxd_comm_barrier(s->c, LONG_MS, &s->err));
        MXD_TRY(mxd_comm_flush(s->c, LONG_MS, &s->err));
        mxd_sleep_ms((int64_t)(mxd_rand_u64(9, k, (uint64_t)s->rank) % 4));
        for (int r = 0; r < s->rig->size && k % 3 == (unsigned)s->rank; r++)
            for (int i = 0; i < 10 && r != s->rank; i++) { /* the other may be gone already */
                mxd_rc rc = mxd_comm_send(s->c, r, 3, junk, sizeof junk, 1000, &s->err);
                if (rc) break;
            }
        if (k % 4 == 2) mxd_comm_abort(s->c);
        site_close(s);
    }
    return MXD_OK;
}

TEST(comm_groups_follow_each_other_on_one_transport) {
    for (size_t k = 0; k < 4; k++)
        for (int size = 2; size <= 3; size++) {
            rig g;
            rig_open(&g, kinds[k], size);
            rig_run(&g, generations);
            rig_close(&g);
        }
}

TEST(comm_options_of_an_owned_transport) {
    rig g;
    mxd_err err = {0};
    mxd_comm_stats st;
    rig_open(&g, NET_LOOPBACK, 3);
    CHECK_OK(site_new(&g.s[0], "one", &err), &err);
    mxd_comm_stats_get(g.s[0].c, &st);
    CHECK_EQ(st.direct_max_bytes, 256 << 10);
    CHECK_EQ(mxd_comm_waits_for(g.s[0].c), -1);
    site_close(&g.s[0]);
    mxd_comm_opts o = {.group = "one",
                       .rank = 2,
                       .size = 3,
                       .addresses = g.addresses,
                       .transport = g.s[2].t,
                       .no_measure = true,
                       .direct_max = 1000};
    mxd_comm *c;
    CHECK_OK(mxd_comm_new(&c, &mxd_alloc_libc, &o, &err), &err);
    mxd_comm_stats_get(c, &st);
    CHECK_EQ(st.direct_max_bytes, 1000);
    mxd_comm_close(c);
    o.rank = 3;
    CHECK_EQ(mxd_comm_new(&c, &mxd_alloc_libc, &o, &err), MXD_E_INVAL);
    rig_close(&g);
}

TEST_OOM(comm_new_survives_short_memory) {
    rig g;
    rig_open(&g, NET_LOOPBACK, 2);
    g.al = al;
    mxd_rc rc = site_new(&g.s[0], "one", err);
    rig_close(&g);
    return rc;
}
