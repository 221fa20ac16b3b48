/* ranks.c - one rank of a job: mpirun -n 3 ranks. Does what a group can do, over MPI, and compares
 * with what must come out, bit by bit. Prints what is wrong; exit code 0: nothing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/rand.h"
#include "net/comm.h"

enum { WAIT_MS = 60000, MOST = 16 };

static int rank, size;

static void must(bool good, const char *what, const mxd_err *err) {
    if (good) return;
    fprintf(stderr, "rank %d of %d: %s: %s\n", rank, size, what, err ? err->msg : "wrong");
    exit(1);
}

#define OK(call)                    \
    do {                            \
        mxd_err err = {0};          \
        must(!(call), #call, &err); \
    } while (0)

static float value(unsigned seed, int r, size_t i) {
    uint64_t x = mxd_rand_u64(seed, (uint64_t)r, i);
    return ((float)(x >> 40) / 16777216.0f - 0.5f) * (x & 1 ? 1e6f : 1e-3f);
}

/* docs/numerics.md: the largest power of two below n on the left. */
static float tree_sum(const float *v, int n) {
    if (n == 1) return v[0];
    int left = 1;
    while (2 * left < n) left *= 2;
    float a = tree_sum(v, left);
    return a + tree_sum(v + left, n - left);
}

static void sums(mxd_comm *c) {
    static const size_t sizes[] = {0, 1, 17, 2048, 70001, 1500001};
    for (unsigned k = 0; k < MXD_COUNT(sizes); k++) {
        size_t n = sizes[k];
        float *x = malloc((n + 1) * sizeof *x), v[MOST];
        must(x != NULL, "memory", NULL);
        for (size_t i = 0; i < n; i++) x[i] = value(k, rank, i);
        OK(mxd_comm_all_reduce(c, x, n, MXD_REDUCE_SUM, WAIT_MS, &err));
        for (size_t i = 0; i < n; i++) {
            for (int r = 0; r < size; r++) v[r] = value(k, r, i);
            float want = tree_sum(v, size);
            must(memcmp(&want, &x[i], sizeof want) == 0, "a sum", NULL);
        }
        free(x);
    }
}

static void parts(mxd_comm *c, unsigned seed) {
    for (unsigned k = 0; k < 40; k++) {
        size_t n[MOST], all = 0, at = 0;
        for (int r = 0; r < size; r++) {
            n[r] = (size_t)(mxd_rand_u64(seed, k, (uint64_t)r) % (k % 8 == 7 ? 900000 : 5000));
            if (n[r] % 3 == 0) n[r] = 0;
            all += n[r];
        }
        float *x = calloc(all + 1, sizeof *x);
        must(x != NULL, "memory", NULL);
        for (int r = 0; r < size; at += n[r++])
            for (size_t i = 0; i < n[r] && r == rank; i++) x[at + i] = value(k, r, i);
        if (k % 5 == 2) mxd_comm_cut(c, (rank + 1) % size);
        OK(mxd_comm_exchange(c, x, n, WAIT_MS, &err));
        at = 0;
        for (int r = 0; r < size; at += n[r++])
            for (size_t i = 0; i < n[r]; i++) must(x[at + i] == value(k, r, i), "a part", NULL);
        free(x);
    }
}

static void others(mxd_comm *c) {
    uint64_t mine = (uint64_t)rank * 7, all[MOST] = {0}, word = rank == 0 ? 12345 : 0;
    size_t got;
    OK(mxd_comm_broadcast(c, 0, &word, sizeof word, WAIT_MS, &err));
    must(word == 12345, "broadcast", NULL);
    OK(mxd_comm_gather(c, -1, &mine, sizeof mine, all, WAIT_MS, &err));
    for (int r = 0; r < size; r++) must(all[r] == (uint64_t)r * 7, "gather", NULL);
    OK(mxd_comm_barrier(c, WAIT_MS, &err));
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    for (size_t n = 1; n < 30000000 && size > 1; n = n * 7 + 3) {
        unsigned char *x = malloc(n), *y = malloc(n);
        must(x && y, "memory", NULL);
        for (size_t i = 0; i < n; i++) x[i] = (unsigned char)(i * 31 + (size_t)rank);
        OK(mxd_comm_send(c, next, 3, x, n, WAIT_MS, &err));
        OK(mxd_comm_recv(c, before, 3, y, n, &got, WAIT_MS, &err));
        must(got == n, "length", NULL);
        for (size_t i = 0; i < n; i++)
            must(y[i] == (unsigned char)(i * 31 + (size_t)before), "bytes", NULL);
        free(x), free(y);
    }
}

static void give_up(mxd_comm *c) {
    mxd_err err = {0};
    float x[MOST] = {0};
    size_t n[MOST];
    for (int r = 0; r < size; r++) n[r] = 1;
    if (rank == 0 && size > 1) {
        mxd_rc rc = mxd_comm_exchange(c, x, n, 50, &err);
        must(rc == MXD_E_TIMEOUT, "a timeout", &err);
    }
    mxd_comm_abort(c);
    must(mxd_comm_exchange(c, x, n, -1, &err) == MXD_E_CANCELED, "abort", &err);
}

int main(void) {
    mxd_err first = {0};
    mxd_rc rc = mxd_mpi_place(&rank, &size, &first);
    if (rc == MXD_E_UNSUPPORTED) {
        fprintf(stderr, "SKIP %s\n", first.msg);
        return 77;
    }
    must(!rc, "mpi", &first);
    must(size <= MOST, "too many ranks", NULL);
    for (unsigned round = 0; round < 4; round++) {
        mxd_comm *c, *second;
        mxd_comm_opts o = {.group = round % 2 ? "odd" : "even",
                           .mpi = true,
                           .no_shared_memory = round < 2,
                           .no_measure = round == 3,
                           .spin_us = round ? 20 : 0};
        OK(mxd_comm_open(&c, &mxd_alloc_libc, &o, &err));
        must(mxd_comm_rank(c) == rank && mxd_comm_size(c) == size, "place", NULL);
        must(mxd_comm_new(&second, &mxd_alloc_libc, &o, &first) == MXD_E_BUSY, "second", &first);
        parts(c, round);
        sums(c);
        others(c);
        OK(mxd_comm_barrier(c, WAIT_MS, &err));
        if (round == 2) give_up(c);
        mxd_comm_close(c);
    }
    return 0;
}
