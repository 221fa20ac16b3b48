/* Two short measurements on all cores: how fast memory is read, and how fast the best kernel table
 * multiplies 8-bit weights by 8-bit activations, which is what prefill does all the time. */
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include "base/clock.h"
#include "base/pool.h"
#include "kernels/kernels.h"
#include "hardware/parse.h"

enum {
    PROBE_BYTES = 256 << 20, /* beyond every cache of small machines */
    PIECE = 1 << 20,
    READ_MS = 150,
    DOT_MS = 80,
    DOT_COLUMNS = 512
};

static const mxd_qshape dot_shape = {
    .k = DOT_COLUMNS, .block_k = DOT_COLUMNS, .group = 64, .bits = 8, .scales = MXD_F32};

typedef struct probe {
    unsigned char *memory;
    size_t n_bytes;
    const mxd_kernels *kernels;
    atomic_ullong sink; /* keeps the compiler from dropping the work */
    int64_t until_ns;
    atomic_ullong n_rounds;
} probe;

static void read_piece(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    const uint64_t *x = (const uint64_t *)(const void *)(p->memory + (size_t)task * PIECE);
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i < PIECE / 8; i += 4) {
        a += x[i];
        b += x[i + 1];
        c += x[i + 2];
        d += x[i + 3];
    }
    atomic_fetch_add_explicit(&p->sink, a + b + c + d, memory_order_relaxed);
}

static void touch_piece(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    unsigned char *m = p->memory + (size_t)task * PIECE;
    for (size_t i = 0; i < PIECE; i++) m[i] = (unsigned char)(i * 7 + (size_t)task);
}

/* One tile of 16 rows against a full panel of tokens, over and over: everything in the first cache.
 */
static void multiply(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)task;
    (void)thread;
    float scales[DOT_COLUMNS / 64 * MXD_PANEL], sums[DOT_COLUMNS / 64 * MXD_PANEL];
    float y[MXD_PANEL * MXD_TILE_ROWS];
    for (size_t i = 0; i < MXD_COUNT(scales); i++) scales[i] = sums[i] = 1;
    mxd_panel panel = {.n = MXD_PANEL,
                       .g = 64,
                       .k = DOT_COLUMNS,
                       .q = p->memory + DOT_COLUMNS * 64,
                       .s = scales,
                       .b = sums};
    uint64_t n = 0;
    do {
        for (int i = 0; i < 32; i++, n++)
            p->kernels->qmul_i8(y, MXD_TILE_ROWS, p->memory, &dot_shape, &panel);
    } while (mxd_now_ns() < p->until_ns);
    atomic_fetch_add_explicit(&p->n_rounds, n, memory_order_relaxed);
}

/* The best pass of several: others use the machine too, and we want what it can do. */
static double best_read(probe *p, mxd_pool *pool) {
    double best = 0;
    int64_t end = mxd_now_ns() + READ_MS * (int64_t)1000000;
    do {
        int64_t t0 = mxd_now_ns();
        mxd_pool_run(pool, read_piece, p, (int)(p->n_bytes / PIECE));
        double s = (double)(mxd_now_ns() - t0) * 1e-9;
        if (s > 0 && (double)p->n_bytes / s > best) best = (double)p->n_bytes / s;
    } while (mxd_now_ns() < end);
    return best;
}

/* Weights lie in large pages, so that is what must be measured; p is fresh. */
static void want_large_pages(void *p, size_t n_bytes) {
#if defined(MADV_HUGEPAGE)
    uintptr_t large = (uintptr_t)2 << 20, first = ((uintptr_t)p + large - 1) & ~(large - 1);
    uintptr_t end = ((uintptr_t)p + n_bytes) & ~(large - 1);
    if (first < end) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)p, (void)n_bytes;
#endif
}

mxd_rc mxd_hw_probe(mxd_hardware *h, const mxd_alloc *al, int n_threads, mxd_err *err) {
    probe p = {.n_bytes = PROBE_BYTES, .kernels = mxd_kernels_best()};
    while (p.n_bytes > PIECE && p.n_bytes > h->memory_available_bytes / 8) p.n_bytes /= 2;
    p.memory = MXD_NEW(al, p.n_bytes, unsigned char);
    if (!p.memory) return mxd_fail(err, MXD_E_NOMEM, "no memory to measure its speed");
    want_large_pages(p.memory, p.n_bytes);
    mxd_pool *pool = NULL;
    mxd_rc rc = mxd_pool_open(&pool, al, n_threads, 50, err);
    if (!rc) {
        mxd_pool_run(pool, touch_piece, &p, (int)(p.n_bytes / PIECE));
        h->read_bytes_per_s = best_read(&p, pool);
        int64_t t0 = mxd_now_ns();
        p.until_ns = t0 + DOT_MS * (int64_t)1000000;
        mxd_pool_run(pool, multiply, &p, n_threads);
        double s = (double)(mxd_now_ns() - t0) * 1e-9;
        h->dot_ops_per_s =
            2.0 * MXD_TILE_ROWS * MXD_PANEL * DOT_COLUMNS * (double)atomic_load(&p.n_rounds) / s;
        mxd_pool_close(pool);
    }
    mxd_free(al, p.memory);
    return rc;
}
