/* mlx-dist-bench: how fast a model reads prompts and writes answers. Prompts are random tokens;
 * the speed of a test is the mean over its runs, its spread the standard deviation. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "cli/engine_kit.h"
#include "cli/main_kit.h"
#include "cli/term.h"
#include "formats/json.h"

enum { MAX_RUNS = 1000, OUT_MAX = 4 << 20, DECODE_PROMPT = 1 };

typedef struct test {
    const char *kind; /* "pp" or "tg" */
    int n, streams;
    double speed[MAX_RUNS];
    int n_runs;
} test;

static mxd_rc submit(mxd_engine *e, uint64_t seed, int n_prompt, int n_gen, mxd_stream **out,
                     mxd_err *err) {
    int32_t *ids = MXD_NEW(&mxd_alloc_libc, (size_t)n_prompt, int32_t);
    if (!ids) return mxd_fail(err, MXD_E_NOMEM, "prompt");
    uint64_t vocab = (uint64_t)mxd_engine_info_get(e)->n_vocab;
    for (int i = 0; i < n_prompt; i++)
        ids[i] = (int32_t)(mxd_rand_u64(seed, 0, (uint64_t)i) % vocab);
    mxd_gen gen = {.prompt = ids,
                   .n_prompt = (size_t)n_prompt,
                   .max_tokens = n_gen,
                   .ignore_eos = true,
                   .timeout_ms = 3600000};
    mxd_rc rc = mxd_engine_submit(e, &gen, out, err);
    mxd_free(&mxd_alloc_libc, ids);
    return rc;
}

/* One stream and the thread that reads it: times are those of the tokens, not of a reader that is
 * busy with another stream. */
typedef struct reader {
    mxd_stream *stream;
    pthread_t thread;
    bool started;
    int64_t first_ns, last_ns; /* when its first and its last token came */
    int n_tokens;
    mxd_rc rc;
    mxd_err err;
} reader;

static void *read_stream(void *arg) {
    reader *r = arg;
    for (;;) {
        mxd_stream_event ev;
        r->rc = mxd_stream_next(r->stream, 200, &ev, &r->err);
        if (r->rc == MXD_E_TIMEOUT && !mxd_stream_ended(r->stream)) continue;
        if (r->rc || ev.kind == MXD_STREAM_DONE) return NULL;
        if (!ev.n_tokens) continue;
        r->last_ns = mxd_now_ns();
        if (!r->n_tokens) r->first_ns = r->last_ns;
        r->n_tokens += ev.n_tokens;
    }
}

static mxd_rc start_reader(reader *r, mxd_engine *e, const test *t, uint64_t seed, mxd_err *err) {
    bool prefill = t->kind[0] == 'p';
    MXD_TRY(
        submit(e, seed, prefill ? t->n : DECODE_PROMPT, prefill ? 1 : t->n + 1, &r->stream, err));
    if (pthread_create(&r->thread, NULL, read_stream, r) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start a thread for a stream");
    r->started = true;
    return MXD_OK;
}

/* Waits for every reader; a Ctrl-C cancels the streams. */
static mxd_rc join_readers(reader *r, int n, mxd_rc rc, mxd_err *err) {
    for (int i = 0; i < n; i++) {
        if (rc && r[i].stream) mxd_stream_cancel(r[i].stream);
        if (r[i].started) pthread_join(r[i].thread, NULL);
        if (!rc && r[i].rc) {
            rc = r[i].rc;
            *err = r[i].err;
        }
        mxd_stream_free(r[i].stream);
    }
    if (!rc && mxd_signals_wait(0)) rc = mxd_fail(err, MXD_E_CANCELED, "interrupted");
    return rc;
}

/* One run: all streams together. Prefill counts prompt tokens until the last first token; decode
 * counts the tokens behind the first one of each stream, from the earliest first token on. */
static mxd_rc run_once(mxd_engine *e, const test *t, uint64_t seed, double *speed, mxd_err *err) {
    static reader readers[MXD_MAX_SEQS];
    memset(readers, 0, sizeof readers);
    bool prefill = t->kind[0] == 'p';
    int64_t start = mxd_now_ns(), first = 0, last = 0;
    int tokens = 0;
    mxd_rc rc = MXD_OK;
    for (int i = 0; i < t->streams && !rc; i++)
        rc = start_reader(&readers[i], e, t, seed + (uint64_t)i, err);
    rc = join_readers(readers, t->streams, rc, err);
    for (int i = 0; i < t->streams; i++) {
        const reader *r = &readers[i];
        bool counts = prefill ? r->first_ns > first : !first || r->first_ns < first;
        if (counts) first = r->first_ns;
        if (r->last_ns > last) last = r->last_ns;
        tokens += prefill ? t->n : r->n_tokens - 1;
    }
    /* A few tokens may come to a busy reader all at once; then the whole run is what was timed. */
    double ns = (double)(prefill ? first - start : last > first ? last - first : last - start);
    *speed = ns > 0 ? tokens * 1e9 / ns : 0;
    return rc;
}

static double mean(const test *t) {
    double sum = 0;
    for (int i = 0; i < t->n_runs; i++) sum += t->speed[i];
    return t->n_runs ? sum / t->n_runs : 0;
}

static double spread(const test *t) {
    double m = mean(t), sum = 0;
    for (int i = 0; i < t->n_runs; i++) sum += (t->speed[i] - m) * (t->speed[i] - m);
    return t->n_runs > 1 ? sqrt(sum / (t->n_runs - 1)) : 0;
}

static mxd_rc run_test(mxd_engine *e, test *t, int runs, mxd_err *err) {
    double warm;
    MXD_TRY(run_once(e, t, 1, &warm, err));
    for (int i = 0; i < runs; i++) {
        MXD_TRY(run_once(e, t, 100 + (uint64_t)i * MXD_MAX_SEQS, &t->speed[t->n_runs], err));
        t->n_runs++;
    }
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------------- output
 */

static void name_of(const test *t, char out[64]) {
    snprintf(out, 64, t->streams > 1 ? "%s%d x %d" : "%s%d", t->kind, t->n, t->streams);
}

static void print_row(const test *t) {
    char name[64];
    name_of(t, name);
    fprintf(stdout, "%-14s %10.2f tokens/s  +- %.2f\n", name, mean(t), spread(t));
    fflush(stdout);
}

static json_t *test_json(const test *t) {
    char name[64];
    name_of(t, name);
    json_t *runs = json_array();
    for (int i = 0; i < t->n_runs; i++) json_array_append_new(runs, json_real(t->speed[i]));
    return json_pack("{s:s, s:i, s:i, s:f, s:o, s:f}", "name", name, "tokens", t->n, "streams",
                     t->streams, "tokens_per_second", mean(t), "runs", runs, "spread", spread(t));
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

static mxd_rc one(mxd_engine *e, const mxd_options *o, const char *kind, int n, int streams,
                  json_t *all, mxd_err *err) {
    static test t; /* too large for a stack frame */
    if (!n) return MXD_OK;
    t = (test){.kind = kind, .n = n, .streams = streams};
    if (n + 2 > mxd_engine_info_get(e)->ctx)
        return mxd_fail(err, MXD_E_INVAL, "%d tokens do not fit the context of %d: see --ctx-size",
                        n, mxd_engine_info_get(e)->ctx);
    MXD_TRY(run_test(e, &t, (int)mxd_opt_int(o, MXD_OPT_RUNS), err));
    if (mxd_opt_bool(o, MXD_OPT_JSON))
        json_array_append_new(all, test_json(&t));
    else
        print_row(&t);
    return MXD_OK;
}

static mxd_rc all_tests(mxd_engine *e, const mxd_options *o, mxd_err *err) {
    int n_prompts, n_gens, n_streams;
    const int *prompts = mxd_opt_ints(o, MXD_OPT_N_PROMPT, &n_prompts);
    const int *gens = mxd_opt_ints(o, MXD_OPT_N_GEN, &n_gens);
    const int *streams = mxd_opt_ints(o, MXD_OPT_STREAMS, &n_streams);
    json_t *all = json_array();
    mxd_rc rc = MXD_OK;
    for (int b = 0; b < n_streams && !rc; b++) {
        for (int i = 0; i < n_prompts && !rc; i++)
            rc = one(e, o, "pp", prompts[i], streams[b], all, err);
        for (int i = 0; i < n_gens && !rc; i++) rc = one(e, o, "tg", gens[i], streams[b], all, err);
    }
    if (!rc && mxd_opt_bool(o, MXD_OPT_JSON)) print_json(all);
    json_decref(all);
    return rc;
}

static int most(const mxd_options *o, mxd_opt_id id) {
    int n, best = 0;
    const int *v = mxd_opt_ints(o, id, &n);
    for (int i = 0; i < n; i++)
        if (v[i] > best) best = v[i];
    return best;
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    mxd_engine_kit kit;
    mxd_engine *e = NULL;
    if (!mxd_opt_given(o, MXD_OPT_LOG_LEVEL) && !mxd_opt_bool(o, MXD_OPT_VERBOSE))
        mxd_log_set_level(MXD_LOG_ERROR);
    mxd_signals_catch();
    mxd_rc rc = mxd_engine_kit_fill(&kit, o, err);
    int longest = most(o, MXD_OPT_N_PROMPT), gen = most(o, MXD_OPT_N_GEN);
    if (gen > longest) longest = gen;
    kit.opts.parallel = most(o, MXD_OPT_STREAMS);
    if (!kit.opts.ctx) kit.opts.ctx = longest + 8;
    if (!rc) rc = mxd_engine_kit_open(&kit, o, &e, err);
    if (!rc) rc = all_tests(e, o, err);
    mxd_engine_close(e);
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
