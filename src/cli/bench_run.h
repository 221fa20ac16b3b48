/* bench_run.h - one timed run of a benchmark: streams of random tokens against an engine. */
#ifndef MXD_CLI_BENCH_RUN_H
#define MXD_CLI_BENCH_RUN_H

#include "api/engine.h"

typedef struct mxd_bench_test {
    bool prefill; /* else decode */
    int n;        /* prompt tokens, or generated tokens of each stream */
    int depth;    /* tokens that stand before them */
    int streams;
    int chunk; /* prompt tokens of one micro-batch */
} mxd_bench_test;

/* Tokens that a sequence of this test may need. */
int mxd_bench_context(const mxd_bench_test *t);

/* Runs the test once; *speed: tokens per second of all streams together. Prompts are drawn from
 * *seed, which moves on, so that no prompt comes twice.
 *   prefill: time to the last stream's first token, minus that of prompts of `depth` tokens; 0 when
 *            the difference is too short to tell;
 *   decode: tokens that came while every stream was writing.
 * Errors: E_CANCELED by a signal; those of a stream; E_IO no thread; E_NOMEM. */
mxd_rc mxd_bench_once(mxd_engine *e, const mxd_bench_test *t, uint64_t *seed, double *speed,
                      mxd_err *err) MXD_MUST_USE;

#endif
