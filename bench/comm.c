/* comm.c - how long messages and sums take between two ranks: loopback (two threads), shared
 * memory, gRPC, gRPC with TLS (two processes), and a bare TCP exchange. crowd: four ranks that
 * share memory and two cores.
 *
 *     build/bench/mlxd-comm [loopback|shm|crowd|grpc|tls|tcp] ...
 *     mpirun -n 2 build/bench/mlxd-comm mpi
 *
 * exchange: half a round trip of a message. parts: mxd_comm_exchange, every rank brings so many
 * bytes. sum: an all-reduce of so many bytes of float32; for
 * tcp, both sides send all they have, then read all of the other's. Microseconds; p50 and p99. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "net/comm.h"
#include "net/tls.h"

enum { WAIT_MS = 60000, SPIN_US = 50, MOST = 16 << 20, RANKS = 4 };

typedef enum way { LOOPBACK, SHM, CROWD, GRPC, TLS, TCP, MPI } way;
static const char *const ways[] = {"loopback", "shm", "crowd", "grpc", "tls", "tcp", "mpi"};
static const struct {
    const char *name;
    size_t bytes;
    int rounds;
} sizes[] = {
    {"8 B", 8, 3000},       {"8 KB", 8192, 3000},    {"64 KB", 65536, 1000},
    {"1 MB", 1 << 20, 100}, {"16 MB", 16 << 20, 12},
};

typedef struct side {
    way how;
    int rank, size;
    const char *const *addresses;
    mxd_loopback_hub *hub;
    mxd_identity identity;
    mxd_comm *c;
    int fd;
} side;

static void die(const char *what, const mxd_err *err) {
    fprintf(stderr, "%s: %s\n", what, err ? err->msg : "failed");
    exit(1);
}

/* ----------------------------------------------------------------------------------------- TCP */

static void move(int fd, char *p, size_t n, bool out) {
    while (n) {
        ssize_t k = out ? send(fd, p, n, 0) : recv(fd, p, n, 0);
        if (k <= 0) die("tcp", NULL);
        p += k;
        n -= (size_t)k;
    }
}

static int tcp_open(int rank, int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (rank == 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1)) die("bind", NULL);
        int got = accept(fd, NULL, NULL);
        close(fd);
        fd = got;
    } else {
        while (connect(fd, (struct sockaddr *)&a, sizeof a)) {
            close(fd);
            mxd_sleep_ms(10);
            fd = socket(AF_INET, SOCK_STREAM, 0);
        }
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* Both send all, then both add if they shall: in pieces that the sockets' buffers hold, as one
 * thread must. */
static void tcp_swap(int fd, float *x, float *y, size_t n, bool add) {
    for (size_t at = 0, m; at < n; at += m) {
        m = n - at < 16384 ? n - at : 16384;
        move(fd, (char *)(x + at), m * sizeof *x, true);
        move(fd, (char *)y, m * sizeof *x, false);
        for (size_t i = 0; i < m && add; i++) x[at + i] += y[i];
    }
}

/* -------------------------------------------------------------------------------------- rounds */

static void say(const side *s, void *x, size_t n) {
    mxd_err err = {0};
    if (s->how == TCP)
        move(s->fd, x, n, true);
    else if (mxd_comm_send(s->c, 1 - s->rank, 1, x, n, WAIT_MS, &err))
        die("send", &err);
}

static void hear(const side *s, void *x, size_t n) {
    mxd_err err = {0};
    size_t got;
    if (s->how == TCP)
        move(s->fd, x, n, false);
    else if (mxd_comm_recv(s->c, 1 - s->rank, 1, x, n, &got, WAIT_MS, &err))
        die("recv", &err);
}

static double exchange(const side *s, float *x, float *y, size_t n) {
    (void)y;
    int64_t start = mxd_now_ns();
    if (s->rank == 0) say(s, x, n);
    hear(s, x, n);
    if (s->rank == 1) say(s, x, n);
    return (double)(mxd_now_ns() - start) / 2000;
}

static double sum(const side *s, float *x, float *y, size_t n) {
    mxd_err err = {0};
    int64_t start = mxd_now_ns();
    if (s->how == TCP)
        tcp_swap(s->fd, x, y, n / sizeof *x, true);
    else if (mxd_comm_all_reduce(s->c, x, n / sizeof *x, MXD_REDUCE_SUM, WAIT_MS, &err))
        die("all-reduce", &err);
    return (double)(mxd_now_ns() - start) / 1000;
}

static double parts(const side *s, float *x, float *y, size_t n) {
    mxd_err err = {0};
    size_t each[RANKS];
    for (int r = 0; r < RANKS; r++) each[r] = n / sizeof *x;
    int64_t start = mxd_now_ns();
    if (s->how == TCP)
        tcp_swap(s->fd, x, y, n / sizeof *x, false);
    else if (mxd_comm_exchange(s->c, x, each, WAIT_MS, &err))
        die("exchange", &err);
    return (double)(mxd_now_ns() - start) / 1000;
}

static int order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(const side *s, const char *what,
                    double (*round)(const side *, float *, float *, size_t)) {
    float *x = calloc(RANKS, MOST), *y = calloc(1, MOST);
    for (size_t k = 0; k < MXD_COUNT(sizes); k++) {
        int n = sizes[k].rounds, warm = n / 10 + 1;
        double *us = calloc((size_t)n, sizeof *us);
        if (!x || !y || !us) die("memory", NULL);
        for (int i = -warm; i < n; i++) {
            double t = round(s, x, y, sizes[k].bytes);
            if (i >= 0) us[i] = t;
        }
        qsort(us, (size_t)n, sizeof *us, order);
        if (s->rank == 0)
            printf("%-9s %-9s %6s  p50 %9.1f us  p99 %9.1f us\n", ways[s->how], what, sizes[k].name,
                   us[n / 2], us[n - 1 - n / 100]);
        fflush(stdout);
        free(us);
    }
    free(x), free(y);
}

static void *run_side(void *arg) {
    side *s = arg;
    mxd_err err = {0};
    const mxd_comm_opts o = {.group = "bench",
                             .rank = s->rank,
                             .size = s->size,
                             .addresses = s->addresses,
                             .identity = s->identity,
                             .insecure = s->how != TLS,
                             .hub = s->hub,
                             .mpi = s->how == MPI,
                             .spin_us = SPIN_US,
                             .no_shared_memory = s->how != SHM && s->how != CROWD};
    if (s->how == TCP)
        s->fd = tcp_open(s->rank, atoi(strchr(s->addresses[0], ':') + 1));
    else if (mxd_comm_open(&s->c, &mxd_alloc_libc, &o, &err))
        die("open", &err);
    if (s->how == MPI) s->rank = mxd_comm_rank(s->c);
    if (s->size == 2) measure(s, "exchange", exchange);
    measure(s, "parts", parts);
    measure(s, "sum", sum);
    mxd_comm_close(s->c);
    return NULL;
}

/* -------------------------------------------------------------------------------- two processes */

/* Certificates for both ranks, made before either starts. */
static void certify(side s[2]) {
    static mxd_pem ca, issued[2];
    mxd_err err = {0};
    if (mxd_ca_new(&mxd_alloc_libc, "bench", &ca, &err)) die("ca", &err);
    for (int r = 0; r < 2; r++) {
        if (mxd_ca_issue(&mxd_alloc_libc, &ca, r ? "node-1" : "node-0", &issued[r], &err))
            die("certificate", &err);
        s[r].identity = (mxd_identity){ca.cert, issued[r].cert, issued[r].key};
    }
}

static void two_threads(side s[2]) {
    pthread_t t;
    mxd_err err = {0};
    if (mxd_loopback_hub_open(&s[0].hub, &mxd_alloc_libc, &err)) die("hub", &err);
    s[1].hub = s[0].hub;
    if (pthread_create(&t, NULL, run_side, &s[1])) die("thread", NULL);
    run_side(&s[0]);
    pthread_join(t, NULL);
    mxd_loopback_hub_close(s[0].hub);
}

/* Each rank keeps to a core of its own, as mpirun does it, where the system lets us choose. */
static void pin(int rank) {
#if defined(__linux__)
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)rank % 2, &one);
    (void)!sched_setaffinity(0, sizeof one, &one);
#else
    (void)rank;
#endif
}

/* gRPC does not survive a fork: this one is before anything opens it. */
static void processes(side *s) {
    for (int r = 0; r < s->size; r++) {
        if (fork() != 0) continue;
        if (s[r].how != TCP) pin(r); /* which is faster left alone, on one core or two */
        run_side(&s[r]);
        exit(0);
    }
    for (int status, r = 0; r < s->size; r++)
        if (wait(&status) < 0 || status != 0) die("a rank", NULL);
}

static void run_way(way how) {
    char text[RANKS][32];
    const char *addresses[RANKS];
    side s[RANKS];
    int base = 12000 + (int)(getpid() % 20000) + RANKS * (int)how;
    for (int r = 0; r < RANKS; r++) {
        snprintf(text[r], sizeof text[r], "127.0.0.1:%d", base + r);
        addresses[r] = text[r];
        s[r] =
            (side){.how = how, .rank = r, .size = how == CROWD ? RANKS : 2, .addresses = addresses};
    }
    if (how == TLS) certify(s);
    if (how == LOOPBACK && fork() == 0) {
        two_threads(s);
        exit(0);
    }
    int status;
    if (how == LOOPBACK && (wait(&status) < 0 || status != 0)) die("loopback", NULL);
    if (how == MPI)
        run_side(&s[0]); /* mpirun has started the other */
    else if (how != LOOPBACK)
        processes(s);
}

int main(int argc, char **argv) {
    for (size_t w = 0; w < MXD_COUNT(ways); w++) {
        bool wanted = argc < 2 && w != MPI;
        for (int i = 1; i < argc; i++) wanted = wanted || strcmp(argv[i], ways[w]) == 0;
        if (wanted) run_way((way)w);
    }
    return 0;
}
