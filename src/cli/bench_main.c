/* mlx-dist-bench: how fast a model reads prompts and writes answers. Prompts are random tokens;
 * the speed of a test is the mean over its runs, its spread the standard deviation. */
#include <math.h>
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

/* Until the stream has ended; *first_ms, *last_ms: when its first and last tokens came. */
static mxd_rc finish(mxd_stream *s, int64_t *first_ns, int64_t *last_ns, int *n, mxd_err *err) {
    *first_ns = *last_ns = 0;
    *n = 0;
    for (;;) {
        mxd_stream_event ev;
        mxd_rc rc = mxd_stream_next(s, 200, &ev, err);
        if (rc == MXD_E_TIMEOUT && !mxd_stream_ended(s)) {
            if (!mxd_signals_wait(0)) continue;
            return mxd_fail(err, MXD_E_CANCELED, "interrupted");
        }
        if (rc) return rc;
        if (ev.kind == MXD_STREAM_DONE) return MXD_OK;
        if (!ev.n_tokens) continue;
        *last_ns = mxd_now_ns();
        if (!*n) *first_ns = *last_ns;
        *n += ev.n_tokens;
    }
}

/* One run: all streams together. Prefill counts prompt tokens until the last first token; decode
 * counts the tokens behind the first one of each stream, from the last first token on. */
static mxd_rc run_once(mxd_engine *e, const test *t, uint64_t seed, double *speed, mxd_err *err) {
    bool prefill = t->kind[0] == 'p';
    mxd_stream *s[MXD_MAX_SEQS] = {NULL};
    int64_t start = mxd_now_ns(), first = 0, last = 0;
    int tokens = 0;
    mxd_rc rc = MXD_OK;
    for (int i = 0; i < t->streams && !rc; i++)
        rc = submit(e, seed + (uint64_t)i, prefill ? t->n : DECODE_PROMPT, prefill ? 1 : t->n + 1,
                    &s[i], err);
    for (int i = 0; i < t->streams && !rc; i++) {
        int64_t f, l;
        int n;
        rc = finish(s[i], &f, &l, &n, err);
        if (f > first) first = f;
        if (l > last) last = l;
        tokens += prefill ? t->n : n - 1;
    }
    for (int i = 0; i < t->streams; i++) mxd_stream_free(s[i]);
    double ns = (double)(prefill ? first - start : last - first);
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
