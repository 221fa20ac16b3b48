/* Short measurements, together about 0.35 s: how fast memory is read, how fast the best kernel
 * table does what prefill does (8-bit products of the size of a layer's, attention, norms), and
 * what it costs to wake threads.
 *
 * The best of many short pieces counts: others use the machine too, and we want what it can do. A
 * container's quota slows rates by exactly its share: one thread is timed by what its processor
 * worked, so it does not matter when the quota strikes; several by their best piece. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include "base/clock.h"
#include "base/pool.h"
#include "base/queue.h"
#include "hardware/parse.h"
#include "kernels/kernels.h"

enum {
    PROBE_BYTES = 256 << 20, /* beyond every cache of small machines */
    PIECE = 1 << 20,
    READ_PIECES = 16, /* a time too short to be disturbed in */
    BATCH_MS = 1,
    READ_MS = 110,
    NEAR_MS = 20,
    DOT_MS = 60,
    TILE_MS = 15,
    FLOAT_MS = 15,
    VALUES_MS = 15,
    COLUMNS = 2048, /* of a layer, more or less */
    TILES = 64,     /* of 16 rows: 2 MB of weights */
    TASK_TILES = 4,
    PANELS = 8,
    FEW = 256, /* columns of a small model's */
    HEAD = 64, /* columns of an attention head */
    SPIN_US = 50,
    REGIONS = 100,
    HANDOFFS = 20
};

/* Half-precision scales, as repositories have them. */
static const mxd_qshape shape = {
    .k = COLUMNS, .block_k = COLUMNS, .group = 64, .bits = 8, .scales = MXD_BF16};

static const mxd_qshape few_shape = {
    .k = FEW, .block_k = FEW, .group = 64, .bits = 8, .scales = MXD_BF16};

typedef struct probe {
    unsigned char *memory;
    size_t n_bytes, tile_bytes;
    const mxd_kernels *kernels;
    mxd_pool *pool;
    size_t round; /* of tasks */
    int n_threads;
    double cpus;        /* that this process gets: threads, or a container's quota */
    atomic_ullong sink; /* keeps the compiler from dropping the work */
    float *x;           /* [PANELS][MXD_PANEL][COLUMNS] activations */
    int8_t *codes;      /* of them */
    float *scales;      /* [PANELS][2][COLUMNS / 32][MXD_PANEL] */
} probe;

static double cpu_s(void) {
    struct timespec t;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0) return (double)mxd_now_ns() * 1e-9;
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* One thread: its processor time. Several: the clock, because the time of those that are running is
 * only brought up to date every few milliseconds. */
static double worked_s(const probe *p) {
    return p->n_threads == 1 ? cpu_s() : (double)mxd_now_ns() * 1e-9;
}

/* Runs tasks over and over for so long; the best rate of `each` things a round: a thread that is
 * not let run makes the others wait. */
static double rate_of(probe *p, mxd_pool_fn fn, int n_tasks, double each, int ms) {
    int64_t end = mxd_now_ns() + ms * (int64_t)1000000, now;
    double best = 0;
    do {
        double t0 = worked_s(p), n = 0;
        int64_t until = mxd_now_ns() + BATCH_MS * (int64_t)1000000;
        do {
            mxd_pool_run(p->pool, fn, p, n_tasks);
            p->round++;
            n++;
            now = mxd_now_ns();
        } while (now < until);
        double s = worked_s(p) - t0, rate = s > 0 ? n * each / s * p->cpus / p->n_threads : 0;
        if (rate > best) best = rate;
    } while (now < end);
    return best;
}

/* ---------------------------------------------------------------------------------------- tasks
 */

/* Bytes that are good numbers as scales and values too. */
static void touch_piece(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    unsigned char *m = p->memory + (size_t)task * PIECE;
    for (size_t i = 0; i < PIECE; i++) m[i] = (unsigned char)(60 + ((i * 7 + (size_t)task) & 3));
}

static void read_piece(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    size_t at = (p->round * READ_PIECES + (size_t)task) * PIECE % p->n_bytes;
    const uint64_t *x = (const uint64_t *)(const void *)(p->memory + at);
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i < PIECE / 8; i += 4) {
        a += x[i];
        b += x[i + 1];
        c += x[i + 2];
        d += x[i + 3];
    }
    atomic_fetch_add_explicit(&p->sink, a + b + c + d, memory_order_relaxed);
}

static mxd_panel panel_at(const probe *p, int panel, int n) {
    size_t scales = COLUMNS / 32 * MXD_PANEL;
    return (mxd_panel){.n = n,
                       .g = 32,
                       .k = COLUMNS,
                       .q = p->codes + (size_t)panel * MXD_PANEL * COLUMNS,
                       .s = p->scales + (size_t)panel * 2 * scales,
                       .b = p->scales + (size_t)panel * 2 * scales + scales};
}

static void quantise_panel(void *ctx, int panel, int thread) {
    probe *p = ctx;
    (void)thread;
    mxd_panel q = panel_at(p, panel, MXD_PANEL);
    p->kernels->quantise_i8(&q, p->x + (size_t)panel * MXD_PANEL * COLUMNS, COLUMNS);
}

/* A few tiles against all panels, as prefill goes through a layer. */
static void multiply(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    float y[MXD_PANEL * MXD_TILE_ROWS];
    for (int panel = 0; panel < PANELS; panel++) {
        mxd_panel q = panel_at(p, panel, MXD_PANEL);
        for (int i = 0; i < TASK_TILES; i++)
            p->kernels->qmul_i8(y, MXD_TILE_ROWS,
                                p->memory + (size_t)(task * TASK_TILES + i) * p->tile_bytes, &shape,
                                &q);
    }
}

/* As many rows of few columns. */
static void multiply_few(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    float y[MXD_PANEL * MXD_TILE_ROWS];
    size_t bytes = mxd_qtile_bytes(&few_shape);
    for (int panel = 0; panel < PANELS; panel++) {
        mxd_panel q = panel_at(p, panel, MXD_PANEL);
        q.k = FEW;
        for (int i = 0; i < TASK_TILES; i++)
            p->kernels->qmul_i8(y, MXD_TILE_ROWS,
                                p->memory + (size_t)(task * TASK_TILES + i) * bytes, &few_shape,
                                &q);
    }
}

/* The same weights against one row, as decoding goes through a small model. */
static void multiply_row(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    float y[MXD_TILE_ROWS];
    mxd_panel q = panel_at(p, PANELS, 1);
    for (int i = 0; i < TASK_TILES; i++)
        p->kernels->qmul_i8(y, MXD_TILE_ROWS,
                            p->memory + (size_t)(task * TASK_TILES + i) * p->tile_bytes, &shape,
                            &q);
}

/* n queries of one head against one block of keys and values. */
static void attend_n(probe *p, int n) {
    float scores[MXD_PANEL][MXD_ATTN_BLOCK], acc[MXD_PANEL][HEAD] = {{0}};
    const unsigned char *kv = p->memory;
    for (int i = 0; i < MXD_ATTN_BLOCK; i += MXD_TILE_ROWS)
        p->kernels->plain_mul(&scores[0][i], MXD_ATTN_BLOCK, kv + i * HEAD * 2, MXD_F16, HEAD, HEAD,
                              p->x, COLUMNS, n);
    for (int t = 0; t < n; t++) p->kernels->softmax(scores[t], MXD_ATTN_BLOCK, 1e-6F, 0);
    for (int i = 0; i < MXD_ATTN_BLOCK; i += MXD_TILE_ROWS)
        p->kernels->attn_mix(acc[0], HEAD, &scores[0][i], MXD_ATTN_BLOCK, kv + i * HEAD * 2,
                             MXD_F16, MXD_TILE_ROWS, HEAD, n);
}

static void attend(void *ctx, int task, int thread) {
    (void)thread, (void)task;
    attend_n(ctx, MXD_PANEL);
}

static void attend_row(void *ctx, int task, int thread) {
    (void)thread, (void)task;
    for (int i = 0; i < MXD_PANEL / 2; i++) attend_n(ctx, 2);
}

static void small_things(void *ctx, int panel, int thread) {
    probe *p = ctx;
    (void)thread;
    float y[COLUMNS], z[COLUMNS];
    const float *x = p->x + (size_t)panel * MXD_PANEL * COLUMNS;
    for (int t = 0; t < MXD_PANEL; t++) {
        p->kernels->rms_norm(y, x + t * COLUMNS, p->x, COLUMNS, 1e-6F);
        p->kernels->silu_mul(z, y, p->x, COLUMNS);
        p->kernels->add(y, z, COLUMNS);
    }
}

/* A few microseconds of work. */
static void little(void *ctx, int task, int thread) {
    probe *p = ctx;
    (void)thread;
    float y[COLUMNS];
    for (int i = 0; i < 8; i++)
        p->kernels->rms_norm(y, p->x + (size_t)task * COLUMNS, p->x, COLUMNS, 1e-6F);
}

/* ------------------------------------------------------------------------------------- latencies
 */

/* What all threads take for a little each, beyond what one takes for it. */
static double region_of(probe *p) {
    double all = 1, one = 1;
    int n = p->n_threads < PANELS * MXD_PANEL ? p->n_threads : PANELS * MXD_PANEL;
    if (p->n_threads < 2) return 0;
    for (int round = 0; round < 8; round++) {
        int64_t t0 = mxd_now_ns();
        for (int i = 0; i < REGIONS; i++) mxd_pool_run(p->pool, little, p, n);
        int64_t t1 = mxd_now_ns();
        for (int i = 0; i < REGIONS; i++) little(p, 0, 0);
        int64_t t2 = mxd_now_ns();
        if ((double)(t1 - t0) < all * REGIONS * 1e9) all = (double)(t1 - t0) * 1e-9 / REGIONS;
        if ((double)(t2 - t1) < one * REGIONS * 1e9) one = (double)(t2 - t1) * 1e-9 / REGIONS;
    }
    return all > one ? all - one : 1e-9;
}

typedef struct echo {
    mxd_queue *there, *back;
} echo;

static void *echo_main(void *arg) {
    echo *e = arg;
    for (void *x; (x = mxd_queue_pop(e->there, -1, 0)) != NULL;)
        if (!mxd_queue_push(e->back, x)) break;
    return NULL;
}

/* What processors do for it, which does not depend on where the system puts the two threads, nor on
 * what else runs; 0: not measured. */
static double handoff_of(const mxd_alloc *al) {
    echo e = {0};
    pthread_t other;
    double s = 0;
    if (mxd_queue_open(&e.there, al, 4, NULL) != MXD_OK) return 0;
    if (mxd_queue_open(&e.back, al, 4, NULL) == MXD_OK) {
        if (pthread_create(&other, NULL, echo_main, &e) == 0) {
            for (int round = 0; round < 5; round++) { /* others disturb, nobody helps */
                double cpu0 = cpu_s();
                for (int i = 0; i < HANDOFFS; i++)
                    if (mxd_queue_push(e.there, &e)) mxd_queue_pop(e.back, 1000, 0);
                double each = (cpu_s() - cpu0) / (2 * HANDOFFS);
                if (!round || each < s) s = each;
            }
            mxd_queue_close(e.there);
            pthread_join(other, NULL);
        }
        mxd_queue_free(e.back);
    }
    mxd_queue_free(e.there);
    return s;
}

/* ------------------------------------------------------------------------------------- the probe
 */

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

static void measure(probe *p, mxd_hardware *h) {
    const double panel = (double)MXD_PANEL * COLUMNS;
    int n_tasks = TILES / TASK_TILES, n = p->n_threads;
    mxd_pool_run(p->pool, touch_piece, p, (int)(p->n_bytes / PIECE));
    h->read_bytes_per_s = rate_of(p, read_piece, READ_PIECES, (double)READ_PIECES * PIECE, READ_MS);
    for (size_t i = 0; i < (size_t)PANELS * MXD_PANEL * COLUMNS; i++)
        p->x[i] = (float)(i % 61) * 0.01F - 0.3F;
    mxd_pool_run(p->pool, quantise_panel, p, PANELS);
    mxd_panel row = panel_at(p, PANELS, 1);
    p->kernels->quantise_i8(&row, p->x, COLUMNS);
    h->dot_ops_per_s =
        rate_of(p, multiply, n_tasks, 2.0 * TILES * MXD_TILE_ROWS * panel * PANELS, DOT_MS);
    double tiles = rate_of(p, multiply_few, n_tasks, (double)TILES * PANELS, TILE_MS);
    double arithmetic = 2.0 * MXD_TILE_ROWS * MXD_PANEL * FEW / h->dot_ops_per_s;
    h->paces.tile_s = tiles > 0 && 1 / tiles > arithmetic ? 1 / tiles - arithmetic : 1e-10;
    h->paces.near_bytes_per_s =
        rate_of(p, multiply_row, n_tasks, (double)TILES * (double)p->tile_bytes, NEAR_MS);
    h->paces.float_ops_per_s =
        rate_of(p, attend, n, 4.0 * n * MXD_PANEL * MXD_ATTN_BLOCK * HEAD, FLOAT_MS);
    h->paces.row_ops_per_s =
        rate_of(p, attend_row, n, 4.0 * n * MXD_PANEL * MXD_ATTN_BLOCK * HEAD, FLOAT_MS);
    h->paces.values_per_s = rate_of(p, small_things, PANELS, 3.0 * panel * PANELS, VALUES_MS);
    h->paces.region_s = region_of(p);
}

static mxd_rc take_memory(probe *p, const mxd_alloc *al, mxd_err *err) {
    size_t rows = (size_t)(PANELS + 1) * MXD_PANEL;
    p->memory = MXD_NEW(al, p->n_bytes, unsigned char);
    p->x = MXD_NEW(al, rows * COLUMNS, float);
    p->codes = MXD_NEW(al, rows * COLUMNS, int8_t);
    p->scales = MXD_NEW(al, rows * 2 * (COLUMNS / 32), float);
    return p->memory && p->x && p->codes && p->scales
               ? MXD_OK
               : mxd_fail(err, MXD_E_NOMEM, "no memory to measure its speed");
}

mxd_rc mxd_hw_probe(mxd_hardware *h, const mxd_alloc *al, int n_threads, mxd_err *err) {
    probe p = {.n_bytes = PROBE_BYTES,
               .tile_bytes = mxd_qtile_bytes(&shape),
               .kernels = mxd_kernels_best(),
               .n_threads = n_threads,
               .cpus = mxd_hardware_cpus(h, n_threads)};
    while (p.n_bytes > 4 * PIECE && p.n_bytes > h->memory_available_bytes / 8) p.n_bytes /= 2;
    mxd_rc rc = take_memory(&p, al, err);
    if (!rc) rc = mxd_pool_open(&p.pool, al, n_threads, SPIN_US, err);
    if (!rc) {
        want_large_pages(p.memory, p.n_bytes);
        measure(&p, h);
        mxd_pool_close(p.pool);
        /* a thread that must wait for its quota wakes later by as much as it computes slower */
        h->paces.duty = p.cpus / n_threads;
        h->paces.pause_s = (1 - h->paces.duty) * h->cpu_period_s;
        h->paces.region_s *= n_threads / p.cpus;
        h->paces.handoff_s = handoff_of(al) / (p.cpus < 1 ? p.cpus : 1);
    }
    mxd_free(al, p.scales);
    mxd_free(al, p.codes);
    mxd_free(al, p.x);
    mxd_free(al, p.memory);
    return rc;
}
