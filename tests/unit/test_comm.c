/* Groups of ranks, each a thread: streams that survive cut links, sums with the same bits whatever
 * the algorithm and the carrier. */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include "base/clock.h"
#include "base/rand.h"
#include "net/comm.h"
#include "net_kit.h"

enum { MAX_RANKS = 6, WAIT_MS = 20000 };
enum { NET_RING = NET_TLS + 1 }; /* gRPC, and shared memory on top */

typedef struct group group;
typedef struct member {
    group *g;
    int rank;
    mxd_comm *c;
    pthread_t thread;
    mxd_rc rc;
    char why[480];
} member;

struct group {
    net_world world;
    int kind; /* net_kind or NET_RING */
    int size;
    int64_t reconnect_ms;
    char addresses[MAX_RANKS][64];
    const char *list[MAX_RANKS];
    char names[MAX_RANKS][MXD_MAX_NODE_NAME];
    const char *nodes[MAX_RANKS];
    mxd_identity identity[MAX_RANKS];
    member m[MAX_RANKS];
    mxd_rc (*run)(member *m, mxd_err *err); /* what every rank does */
    size_t n;
    unsigned seed;
    mxd_reduce how;
    float *results[MAX_RANKS];
};

static void *member_main(void *arg) {
    member *m = arg;
    group *g = m->g;
    mxd_err err = {0};
    mxd_comm_opts o = {.group = "test",
                       .rank = m->rank,
                       .size = g->size,
                       .addresses = g->list,
                       .hub = g->kind == NET_LOOPBACK ? g->world.hub : NULL,
                       .insecure = g->kind == NET_GRPC || g->kind == NET_RING,
                       .no_shared_memory = g->kind != NET_RING,
                       .spin_us = g->kind == NET_RING ? 20 : 0,
                       .connect_ms = WAIT_MS,
                       .reconnect_ms = g->reconnect_ms};
    if (g->kind == NET_TLS) {
        o.identity = g->identity[m->rank];
        o.nodes = g->nodes;
    }
    m->rc = mxd_comm_open(&m->c, &mxd_alloc_libc, &o, &err);
    if (!m->rc) m->rc = g->run(m, &err);
    snprintf(m->why, sizeof m->why, "%s", err.msg);
    return NULL;
}

static int free_port(void) {
    static atomic_int next;
    return 21000 + (int)(mxd_now_ns() / 1000 % 9000) + atomic_fetch_add(&next, 1) % 900;
}

static void run_group(group *g, int kind, int size, mxd_rc (*run)(member *, mxd_err *)) {
    g->kind = kind;
    g->size = size;
    g->run = run;
    kit_open(&g->world, kind == NET_RING ? NET_GRPC : (net_kind)kind);
    for (int r = 0; r < size; r++) {
        snprintf(g->addresses[r], sizeof g->addresses[r], "127.0.0.1:%d", free_port());
        snprintf(g->names[r], sizeof g->names[r], "node-%d", r);
        g->list[r] = g->addresses[r];
        g->nodes[r] = g->names[r];
        if (kind == NET_TLS) g->identity[r] = kit_identity(&g->world, g->names[r]);
        g->m[r] = (member){.g = g, .rank = r};
    }
    for (int r = 0; r < size; r++)
        CHECK(pthread_create(&g->m[r].thread, NULL, member_main, &g->m[r]) == 0);
    for (int r = 0; r < size; r++) pthread_join(g->m[r].thread, NULL);
}

static void end_group(group *g) {
    for (int r = 0; r < g->size; r++) mxd_comm_close(g->m[r].c);
    kit_close(&g->world);
}

static void all_good(const group *g) {
    for (int r = 0; r < g->size; r++)
        if (g->m[r].rc) fail_msg("rank %d: %s", r, g->m[r].why);
}

#define ON_EACH(name, size, run)                                                \
    TEST(name) {                                                                \
        static const int kinds[] = {NET_LOOPBACK, NET_GRPC, NET_TLS, NET_RING}; \
        for (size_t k = 0; k < 4; k++) {                                        \
            group g = {.seed = 7};                                              \
            run_group(&g, kinds[k], size, run);                                 \
            all_good(&g);                                                       \
            end_group(&g);                                                      \
        }                                                                       \
    }

/* ------------------------------------------------------------------------------ point to point */

static const size_t sizes[] = {0,       1,       5000,          (1 << 20) - 1,
                               1 << 20, 3 << 20, (5 << 20) + 3, 100 * 1000 * 1000};

static void fill(unsigned char *p, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++) p[i] = (unsigned char)(i * 31 + seed + (i >> 8));
}

static mxd_rc exchange(member *m, mxd_err *err) {
    size_t most = sizes[7];
    unsigned char *out = malloc(most), *in = malloc(most);
    CHECK(out && in);
    int other = 1 - m->rank;
    mxd_rc rc = MXD_OK;
    for (unsigned i = 0; i < 8 && !rc; i++) {
        fill(out, sizes[i], i + (unsigned)m->rank);
        size_t got;
        if (m->rank == 0) rc = mxd_comm_send(m->c, other, i, out, sizes[i], WAIT_MS, err);
        if (!rc) rc = mxd_comm_recv(m->c, other, i, in, most, &got, WAIT_MS, err);
        if (!rc && m->rank == 1) rc = mxd_comm_send(m->c, other, i, out, sizes[i], WAIT_MS, err);
        if (rc) break;
        CHECK_EQ(got, sizes[i]);
        fill(out, sizes[i], i + (unsigned)other);
        CHECK(memcmp(in, out, got) == 0);
    }
    free(out), free(in);
    return rc;
}
ON_EACH(comm_messages_of_every_size, 2, exchange)

/* Tags are queues of their own; what does not fit stays. */
static mxd_rc tags(member *m, mxd_err *err) {
    char text[8] = {0};
    size_t n;
    if (m->rank == 1) {
        MXD_TRY(mxd_comm_send(m->c, 0, 1, "one", 3, WAIT_MS, err));
        MXD_TRY(mxd_comm_send(m->c, 0, 2, "two", 3, WAIT_MS, err));
        return mxd_comm_send(m->c, 0, 1, "three", 5, WAIT_MS, err);
    }
    MXD_TRY(mxd_comm_recv(m->c, 1, 2, text, 8, &n, WAIT_MS, err));
    CHECK(n == 3 && memcmp(text, "two", 3) == 0);
    MXD_TRY(mxd_comm_recv(m->c, 1, 1, text, 8, &n, WAIT_MS, err));
    CHECK(n == 3 && memcmp(text, "one", 3) == 0);
    CHECK_EQ(mxd_comm_recv(m->c, 1, 1, text, 2, &n, WAIT_MS, err), MXD_E_TOOBIG);
    CHECK_EQ(n, 5);
    MXD_TRY(mxd_comm_recv(m->c, 1, 1, text, 8, &n, WAIT_MS, err));
    CHECK(n == 5 && memcmp(text, "three", 5) == 0);
    CHECK_EQ(mxd_comm_recv(m->c, 1, 1, text, 8, &n, 30, err), MXD_E_TIMEOUT);
    CHECK_EQ(mxd_comm_recv(m->c, 0, 1, text, 8, &n, 30, err), MXD_E_INVAL);
    CHECK_EQ(mxd_comm_send(m->c, 2, 1, text, 8, 30, err), MXD_E_INVAL);
    CHECK_EQ(mxd_comm_send(m->c, 1, MXD_COMM_MAX_TAG + 1, text, 8, 30, err), MXD_E_INVAL);
    *err = (mxd_err){0};
    return MXD_OK;
}
ON_EACH(comm_tags, 2, tags)

/* A reader that never reads stops the sender at the window, with a deadline. */
static mxd_rc flood(member *m, mxd_err *err) {
    enum { N = 1 << 20 };
    static atomic_int full;
    if (m->rank == 0) atomic_store(&full, 0);
    MXD_TRY(mxd_comm_barrier(m->c, WAIT_MS, err));
    unsigned char *x = calloc(1, N);
    CHECK(x);
    mxd_rc rc = MXD_OK;
    size_t n, sent = 0;
    if (m->rank == 0) {
        while (sent < 200 && !(rc = mxd_comm_send(m->c, 1, 1, x, N, 400, err))) sent++;
        CHECK_EQ(rc, MXD_E_TIMEOUT);
        CHECK(sent >= 16 && sent < 64);
        atomic_store(&full, 1);
        MXD_TRY(
            mxd_comm_send(m->c, 1, 2, &sent, 0, WAIT_MS, err)); /* goes out once there is room */
        rc = MXD_OK;
    } else {
        while (!atomic_load(&full)) mxd_sleep_ms(5);
        while (!(rc = mxd_comm_recv(m->c, 0, 1, x, N, &n, 500, err))) sent++;
        CHECK(rc == MXD_E_TIMEOUT && sent >= 16);
        rc = mxd_comm_recv(m->c, 0, 2, x, N, &n, WAIT_MS, err);
    }
    free(x);
    return rc;
}
ON_EACH(comm_window_holds_a_sender_back, 2, flood)

/* ------------------------------------------------------------------------------------ cut links */

enum { STREAM = 400 };

static mxd_rc cut_stream(member *m, mxd_err *err) {
    int other = 1 - m->rank;
    mxd_rc rc = MXD_OK;
    size_t most = 300000;
    unsigned char *x = malloc(most), *want = malloc(most);
    CHECK(x && want);
    for (unsigned i = 0; i < STREAM && !rc; i++) {
        size_t n = (size_t)(mxd_rand_u64(5, 0, i) % most), got;
        fill(want, n, i);
        if (m->rank == 0) {
            rc = mxd_comm_send(m->c, other, 3, want, n, WAIT_MS, err);
            if (i % 17 == 5) mxd_comm_cut(m->c, other);
        } else {
            rc = mxd_comm_recv(m->c, other, 3, x, most, &got, WAIT_MS, err);
            if (!rc) CHECK(got == n && memcmp(x, want, n) == 0);
            if (i % 29 == 11) mxd_comm_cut(m->c, other);
        }
    }
    free(x), free(want);
    if (!rc && m->rank == 1) rc = mxd_comm_send(m->c, 0, 4, "", 0, WAIT_MS, err);
    size_t n;
    return rc || m->rank == 1 ? rc : mxd_comm_recv(m->c, 1, 4, NULL, 0, &n, WAIT_MS, err);
}

TEST(comm_stream_survives_cut_links) {
    static const int kinds[] = {NET_LOOPBACK, NET_GRPC, NET_TLS, NET_RING};
    for (size_t k = 0; k < 4; k++) {
        group g = {0};
        run_group(&g, kinds[k], 2, cut_stream);
        all_good(&g);
        mxd_comm_stats s;
        mxd_comm_stats_get(g.m[0].c, &s);
        CHECK(s.reconnects > 3);
        end_group(&g);
    }
}

/* A rank that goes for good is LOST: everyone hears of it, nobody hangs. */
static mxd_rc leave(member *m, mxd_err *err) {
    if (m->rank == 1) {
        mxd_comm_close(m->c);
        m->c = NULL;
        return MXD_OK;
    }
    float x = 1;
    int64_t start = mxd_now_ms();
    mxd_rc rc = mxd_comm_all_reduce(m->c, &x, 1, MXD_REDUCE_SUM, -1, err);
    CHECK_EQ(rc, MXD_E_PEER);
    CHECK(mxd_now_ms() - start < 5000);
    CHECK(strstr(err->msg, "rank 1 is lost"));
    CHECK_EQ(mxd_comm_all_reduce(m->c, &x, 1, MXD_REDUCE_SUM, -1, err), MXD_E_STALE);
    CHECK_EQ(mxd_comm_barrier(m->c, -1, err), MXD_E_STALE);
    return MXD_OK;
}

TEST(comm_lost_rank_is_named) {
    static const int kinds[] = {NET_LOOPBACK, NET_GRPC, NET_TLS, NET_RING};
    for (size_t k = 0; k < 4; k++) {
        group g = {.reconnect_ms = 300};
        run_group(&g, kinds[k], 3, leave);
        all_good(&g);
        end_group(&g);
    }
}

TEST(comm_missing_ranks_are_named) {
    group g = {0};
    kit_open(&g.world, NET_LOOPBACK);
    const char *list[] = {"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"};
    mxd_comm_opts o = {.group = "g",
                       .rank = 1,
                       .size = 3,
                       .addresses = list,
                       .hub = g.world.hub,
                       .connect_ms = 150};
    mxd_comm *c = NULL;
    mxd_err err = {0};
    CHECK_EQ(mxd_comm_open(&c, &mxd_alloc_libc, &o, &err), MXD_E_TIMEOUT);
    CHECK(strstr(err.msg, "ranks 0, 2 did not come"));
    o.hub = NULL;
    CHECK_EQ(mxd_comm_open(&c, &mxd_alloc_libc, &o, &err), MXD_E_INVAL);
    CHECK(strstr(err.msg, "no certificate"));
    o.rank = 3;
    CHECK_EQ(mxd_comm_open(&c, &mxd_alloc_libc, &o, &err), MXD_E_INVAL);
    kit_close(&g.world);
}

/* --------------------------------------------------------------------------------- collectives */

static float value(unsigned seed, int rank, size_t i) {
    uint64_t r = mxd_rand_u64(seed, (uint64_t)rank, i);
    return ((float)(r >> 40) / 16777216.0f - 0.5f) * (r & 1 ? 1e6f : 1e-3f);
}

/* The definition: the largest power of two below n on the left. */
static float tree_sum(const float *v, int n) {
    if (n == 1) return v[0];
    int left = 1;
    while (2 * left < n) left *= 2;
    float a = tree_sum(v, left);
    return a + tree_sum(v + left, n - left);
}

static mxd_rc reduce(member *m, mxd_err *err) {
    group *g = m->g;
    float *x = malloc((g->n ? g->n : 1) * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < g->n; i++) x[i] = value(g->seed, m->rank, i);
    g->results[m->rank] = x;
    return mxd_comm_all_reduce(m->c, x, g->n, g->how, WAIT_MS, err);
}

static void check_reduce(int kind, int size, size_t n, mxd_reduce how) {
    group g = {.n = n, .seed = (unsigned)(n + (size_t)size), .how = how};
    run_group(&g, kind, size, reduce);
    all_good(&g);
    for (size_t i = 0; i < n; i++) {
        float v[MAX_RANKS], want, most;
        for (int r = 0; r < size; r++) v[r] = value(g.seed, r, i);
        most = v[0];
        for (int r = 1; r < size; r++) most = v[r] > most ? v[r] : most;
        want = how == MXD_REDUCE_SUM ? tree_sum(v, size) : most;
        for (int r = 0; r < size; r++)
            if (memcmp(&g.results[r][i], &want, sizeof want) != 0)
                fail_msg("%d ranks, %zu floats, rank %d, element %zu", size, n, r, i);
    }
    for (int r = 0; r < size; r++) free(g.results[r]);
    end_group(&g);
}

TEST(comm_sums_have_the_bits_of_the_tree) {
    static const size_t n[] = {0, 1, 15, 16, 17, 300, 2048, 70001, 1 << 20};
    for (int size = 1; size <= MAX_RANKS; size++)
        for (size_t i = 0; i < 9; i++)
            check_reduce(NET_LOOPBACK, size, n[i], i % 2 ? MXD_REDUCE_MAX : MXD_REDUCE_SUM);
    check_reduce(NET_GRPC, 3, 2048, MXD_REDUCE_SUM);
    check_reduce(NET_GRPC, 3, 3000001, MXD_REDUCE_SUM);
    check_reduce(NET_TLS, 2, 3000001, MXD_REDUCE_MAX);
    check_reduce(NET_RING, 2, 3000001, MXD_REDUCE_SUM);
    check_reduce(NET_RING, 5, 70001, MXD_REDUCE_SUM);
    check_reduce(NET_RING, 4, 3000001, MXD_REDUCE_SUM);
}

static mxd_rc collectives(member *m, mxd_err *err) {
    int n = mxd_comm_size(m->c), me = mxd_comm_rank(m->c);
    for (int root = 0; root < n; root++) {
        unsigned char x[3000] = {0}, want[3000], all[MAX_RANKS * 8];
        fill(want, sizeof want, (unsigned)root);
        if (me == root) memcpy(x, want, sizeof x);
        MXD_TRY(mxd_comm_broadcast(m->c, root, x, sizeof x, WAIT_MS, err));
        CHECK(memcmp(x, want, sizeof x) == 0);
        uint64_t mine = (uint64_t)(me * 100 + root), got;
        MXD_TRY(mxd_comm_gather(m->c, root, &mine, 8, all, WAIT_MS, err));
        for (int r = 0; r < n && me == root; r++) {
            memcpy(&got, all + 8 * r, 8);
            CHECK_EQ(got, r * 100 + root);
        }
        MXD_TRY(mxd_comm_gather(m->c, -1, &mine, 8, all, WAIT_MS, err));
        for (int r = 0; r < n; r++) {
            memcpy(&got, all + 8 * r, 8);
            CHECK_EQ(got, r * 100 + root);
        }
    }
    static atomic_int in;
    if (me == 0) atomic_store(&in, 0);
    MXD_TRY(mxd_comm_barrier(m->c, WAIT_MS, err));
    atomic_fetch_add(&in, 1);
    MXD_TRY(mxd_comm_barrier(m->c, WAIT_MS, err));
    CHECK_EQ(atomic_load(&in), n); /* everyone was there before anyone went on */
    return mxd_comm_barrier(m->c, WAIT_MS, err);
}
ON_EACH(comm_broadcast_gather_barrier, 5, collectives)

/* Ranks that do not do the same are told, not hung. */
static mxd_rc out_of_step(member *m, mxd_err *err) {
    float x[4] = {0};
    mxd_rc rc = mxd_comm_all_reduce(m->c, x, m->rank ? 4 : 2, MXD_REDUCE_SUM, 2000, err);
    CHECK_EQ(rc, MXD_E_STALE);
    CHECK(strstr(err->msg, "not all ranks do the same"));
    return MXD_OK;
}
ON_EACH(comm_ranks_out_of_step, 2, out_of_step)

/* ------------------------------------------------------------------------------- shared memory */

static mxd_rc counts_rings(member *m, mxd_err *err) {
    mxd_comm_stats s;
    mxd_comm_stats_get(m->c, &s);
    CHECK_EQ(s.shared_memory_peers, m->g->kind == NET_RING ? mxd_comm_size(m->c) - 1 : 0);
    return mxd_comm_barrier(m->c, WAIT_MS, err);
}
ON_EACH(comm_shares_memory_where_it_may, 3, counts_rings)

/* A lone reader that sleeps is woken, and a lone deadline is kept. */
static mxd_rc sleepy(member *m, mxd_err *err) {
    char x[8];
    size_t n;
    for (int i = 0; i < 5; i++) {
        if (m->rank == 0) {
            CHECK_EQ(mxd_comm_recv(m->c, 1, 9, x, sizeof x, &n, 25, err), MXD_E_TIMEOUT);
            MXD_TRY(mxd_comm_recv(m->c, 1, 8, x, sizeof x, &n, WAIT_MS, err));
            MXD_TRY(mxd_comm_send(m->c, 1, 7, x, n, WAIT_MS, err));
        } else {
            mxd_sleep_ms(40);
            MXD_TRY(mxd_comm_send(m->c, 0, 8, "wake", 4, WAIT_MS, err));
            MXD_TRY(mxd_comm_recv(m->c, 0, 7, x, sizeof x, &n, WAIT_MS, err));
            CHECK(n == 4 && memcmp(x, "wake", 4) == 0);
        }
    }
    *err = (mxd_err){0};
    return mxd_comm_barrier(m->c, WAIT_MS, err);
}
ON_EACH(comm_sleepers_wake, 2, sleepy)

static mxd_rc has_no_rings(member *m, mxd_err *err) {
    mxd_comm_stats s;
    mxd_comm_stats_get(m->c, &s);
    CHECK_EQ(s.shared_memory_peers, 0);
    return exchange(m, err);
}

/* A /dev/shm that is full, or a system that forbids it: the link carries everything. */
TEST(comm_goes_on_without_shared_memory) {
    struct rlimit old;
    CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0);
    const struct rlimit none = {.rlim_cur = 4096, .rlim_max = old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
    group g = {0};
    run_group(&g, NET_RING, 2, has_no_rings);
    CHECK(setrlimit(RLIMIT_FSIZE, &old) == 0);
    signal(SIGXFSZ, SIG_DFL);
    all_good(&g);
    end_group(&g);
}
