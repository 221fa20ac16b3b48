/* mlx-dist-bench: how fast a model reads prompts and writes answers. Prompts are random tokens;
 * the speed of a test is the mean over its runs, its spread the standard deviation. Beside each
 * test stands what memory gave in the same minute: decode cannot be faster than weights are read.
 */
#include <math.h>
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/proc.h"
#include "cli/bench_run.h"
#include "cli/engine_kit.h"
#include "cli/main_kit.h"
#include "cli/term.h"
#include "formats/json.h"
#include "hardware/hardware.h"

enum { MAX_RUNS = 1000, OUT_MAX = 4 << 20 };

typedef struct row { /* one test and what it gave */
    mxd_bench_test test;
    double speed[MAX_RUNS];
    int n_runs;
    double read_bytes_per_s; /* of this machine with as many threads, right after the runs */
    uint64_t rss_bytes;      /* of this process, at its peak while loading or after the runs */
} row;

typedef struct bench {
    const mxd_options *o;
    mxd_engine *engine;
    int threads; /* as asked: 0 is one per core */
    double load_s;
    uint64_t load_bytes; /* most memory of this process until the model was ready */
    uint64_t seed;
    json_t *all; /* NULL: for people */
} bench;

static double mean(const row *r) {
    double sum = 0;
    for (int i = 0; i < r->n_runs; i++) sum += r->speed[i];
    return r->n_runs ? sum / r->n_runs : 0;
}

static double spread(const row *r) {
    double m = mean(r), sum = 0;
    for (int i = 0; i < r->n_runs; i++) sum += (r->speed[i] - m) * (r->speed[i] - m);
    return r->n_runs > 1 ? sqrt(sum / (r->n_runs - 1)) : 0;
}

/* ---------------------------------------------------------------------------------------- output
 */

static void name_of(const mxd_bench_test *t, char out[80]) {
    int at = snprintf(out, 80, "%s%d", t->prefill ? "pp" : "tg", t->n);
    if (t->streams > 1) at += snprintf(out + at, 80 - (size_t)at, " x %d", t->streams);
    if (t->depth) snprintf(out + at, 80 - (size_t)at, " @ %d", t->depth);
}

static int cores(const bench *b) { return b->threads ? b->threads : mxd_proc_cores(); }

static void print_row(const bench *b, const row *r) {
    char name[80];
    name_of(&r->test, name);
    fprintf(stdout, "%-20s %3d thread%s %10.2f tokens/s  +- %.2f\n", name, cores(b),
            cores(b) == 1 ? " " : "s", mean(r), spread(r));
    fflush(stdout);
}

static void print_summary(const bench *b, const row *last) {
    char memory[32], weights[32], reads[32];
    mxd_main_print_note(
        b->o, "weights %s, ready after %.2f s, memory of this process %s, memory reads %s",
        mxd_size_text(weights, mxd_engine_info_get(b->engine)->weight_bytes), b->load_s,
        mxd_size_text(memory, last->rss_bytes),
        mxd_rate_text(reads, last->read_bytes_per_s, "B/s"));
}

static json_t *row_json(const bench *b, const row *r) {
    char name[80];
    name_of(&r->test, name);
    json_t *runs = json_array();
    for (int i = 0; i < r->n_runs; i++) json_array_append_new(runs, json_real(r->speed[i]));
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:o, s:f, s:I, s:I, s:f, s:f}", "name", name,
                     "tokens", r->test.n, "depth", r->test.depth, "streams", r->test.streams,
                     "threads", cores(b), "tokens_per_second", mean(r), "runs", runs, "spread",
                     spread(r), "weight_bytes",
                     (json_int_t)mxd_engine_info_get(b->engine)->weight_bytes, "rss_bytes",
                     (json_int_t)r->rss_bytes, "read_bytes_per_second", r->read_bytes_per_s,
                     "load_seconds", b->load_s);
}

static void print_json(const json_t *all) {
    mxd_buf out;
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX);
    mxd_json_write(&out, all, &(mxd_json_style){.indent = 2});
    fprintf(stdout, "%s\n", mxd_buf_str(&out));
    mxd_buf_deinit(&out);
}

/* ------------------------------------------------------------------------------------------ tests
 */

/* What memory gives to so many threads now. */
static mxd_rc probe(const bench *b, row *r, mxd_err *err) {
    mxd_hardware h;
    MXD_TRY(mxd_hardware_detect(&h, &mxd_alloc_libc,
                                &(mxd_hardware_opts){.probe = true, .threads = b->threads}, err));
    r->read_bytes_per_s = h.read_bytes_per_s;
    return MXD_OK;
}

static mxd_rc run_row(bench *b, row *r, mxd_err *err) {
    mxd_bench_test warm = r->test;
    double speed;
    warm.depth = 0;
    if (warm.n > warm.chunk) warm.n = warm.chunk;
    MXD_TRY(mxd_bench_once(b->engine, &warm, &b->seed, &speed, err));
    for (int runs = (int)mxd_opt_int(b->o, MXD_OPT_RUNS); runs; runs--) {
        MXD_TRY(mxd_bench_once(b->engine, &r->test, &b->seed, &r->speed[r->n_runs], err));
        r->n_runs++;
    }
    r->rss_bytes = mxd_proc_rss_bytes();
    if (r->rss_bytes < b->load_bytes) r->rss_bytes = b->load_bytes;
    return probe(b, r, err);
}

static mxd_rc one(bench *b, row *r, bool prefill, int n, int depth, int streams, mxd_err *err) {
    int ctx = mxd_engine_info_get(b->engine)->ctx;
    *r = (row){.test = {.prefill = prefill, .n = n, .depth = depth, .streams = streams}};
    r->test.chunk = (int)mxd_opt_int(b->o, MXD_OPT_PREFILL_STEP_SIZE);
    int need = mxd_bench_context(&r->test);
    if (need > ctx)
        return mxd_fail(err, MXD_E_INVAL, "%d tokens do not fit the context of %d: see --ctx-size",
                        need, ctx);
    MXD_TRY(run_row(b, r, err));
    if (b->all)
        json_array_append_new(b->all, row_json(b, r));
    else
        print_row(b, r);
    return MXD_OK;
}

static mxd_rc all_tests(bench *b, row *r, mxd_err *err) {
    int n_depths, n_streams, n_prompts, n_gens;
    const int *depths = mxd_opt_ints(b->o, MXD_OPT_DEPTH, &n_depths);
    const int *streams = mxd_opt_ints(b->o, MXD_OPT_STREAMS, &n_streams);
    const int *prompts = mxd_opt_ints(b->o, MXD_OPT_N_PROMPT, &n_prompts);
    const int *gens = mxd_opt_ints(b->o, MXD_OPT_N_GEN, &n_gens);
    for (int at = 0; at < n_depths * n_streams; at++) {
        int depth = depths[at / n_streams], s = streams[at % n_streams];
        for (int i = 0; i < n_prompts; i++)
            if (prompts[i]) MXD_TRY(one(b, r, true, prompts[i], depth, s, err));
        for (int i = 0; i < n_gens; i++)
            if (gens[i]) MXD_TRY(one(b, r, false, gens[i], depth, s, err));
    }
    return MXD_OK;
}

static int most(const mxd_options *o, mxd_opt_id id) {
    int n, best = 0;
    const int *v = mxd_opt_ints(o, id, &n);
    for (int i = 0; i < n; i++)
        if (v[i] > best) best = v[i];
    return best;
}

/* The context that the largest test needs. */
static int context(const mxd_options *o) {
    mxd_bench_test t = {.depth = most(o, MXD_OPT_DEPTH),
                        .streams = most(o, MXD_OPT_STREAMS),
                        .n = most(o, MXD_OPT_N_GEN),
                        .chunk = (int)mxd_opt_int(o, MXD_OPT_PREFILL_STEP_SIZE)};
    int decode = t.n ? mxd_bench_context(&t) : 0;
    t.n = most(o, MXD_OPT_N_PROMPT);
    t.prefill = true;
    int prefill = mxd_bench_context(&t);
    return decode > prefill ? decode : prefill;
}

/* Every test with one number of threads: the model is loaded for it. */
static mxd_rc with_threads(bench *b, mxd_engine_kit *kit, int threads, mxd_err *err) {
    static row r; /* too large for a stack frame */
    int64_t begin = mxd_now_ns();
    b->threads = kit->opts.threads = threads;
    MXD_TRY(mxd_engine_kit_open(kit, b->o, &b->engine, err));
    b->load_s = (double)(mxd_now_ns() - begin) * 1e-9;
    b->load_bytes = mxd_proc_rss_bytes();
    mxd_rc rc = all_tests(b, &r, err);
    if (!rc && !b->all && r.n_runs) print_summary(b, &r);
    mxd_engine_close(b->engine);
    b->engine = NULL;
    return rc;
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    mxd_engine_kit kit;
    int n_threads;
    const int *threads = mxd_opt_ints(o, MXD_OPT_THREAD_COUNTS, &n_threads);
    if (!mxd_opt_given(o, MXD_OPT_LOG_LEVEL) && !mxd_opt_bool(o, MXD_OPT_VERBOSE))
        mxd_log_set_level(MXD_LOG_ERROR);
    mxd_signals_catch();
    bench b = {.o = o, .all = mxd_opt_bool(o, MXD_OPT_JSON) ? json_array() : NULL};
    mxd_rc rc = mxd_engine_kit_fill(&kit, o, err);
    kit.opts.parallel = most(o, MXD_OPT_STREAMS);
    if (!kit.opts.ctx) kit.opts.ctx = context(o);
    for (int i = 0; i < n_threads && !rc; i++) rc = with_threads(&b, &kit, threads[i], err);
    if (!rc && b.all) print_json(b.all);
    json_decref(b.all);
    mxd_engine_kit_deinit(&kit);
    return rc;
}

int main(int argc, char **argv) {
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, MXD_PROG_BENCH, argc, argv, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
