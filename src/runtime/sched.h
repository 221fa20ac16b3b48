/* sched.h - continuous batching: which positions of which sequences make the next micro-batch.
 * Pure.
 *
 * A sequence is a list of n_tokens known tokens, of which the first n_sent have been put into
 * micro-batches. What is left is sent in chunks; the run that reaches the end of the list samples,
 * and then the sequence waits until its token has come back and the list is longer by one.
 *
 *   IDLE --add--> PREFILL --last chunk--> AWAIT --token--> DECODE --next--> AWAIT ...
 *   any --remove, restart--> IDLE
 *   It may be added with positions that need no sending: then it begins behind them.
 *   May be trusted: n_sent <= n_tokens; AWAIT is n_sent == n_tokens; DECODE is one token left of a
 *   sequence that has begun.
 *
 * Rules:
 *   - decode runs come first, at most one per sequence in flight (AWAIT cannot be chosen);
 *   - S stages and D decoding sequences: the sequences are spread over up to S micro-batches, so
 *     that every stage has one to work on; with one stage they are one batch. A sequence that
 *     comes new from prefill joins a batch that returns, instead of making one of its own;
 *   - prefill chunks fill the micro-batch up to max_rows, sequences taking turns, several chunks of
 *     one sequence in flight one behind the other (the pipeline is first-in first-out);
 *   - with several stages a prompt comes in four chunks a stage, of 64 rows at least: C chunks take
 *     the time of C + S - 1 of them, and fewer rows would make the weights be read too often;
 *   - at most stages + 1 micro-batches are in flight.
 *
 * Lifetime: the caller's storage. Threads: one. Errors: none; asserts for the caller's mistakes.
 */
#ifndef MXD_RUNTIME_SCHED_H
#define MXD_RUNTIME_SCHED_H

#include <stdbool.h>
#include <stdint.h>
#include "base/limits.h"

typedef struct mxd_sched_run {
    uint16_t slot, n;
    uint32_t pos;
    bool sample;
} mxd_sched_run;

typedef struct mxd_sched_step {
    int n_runs, n_rows;
    bool decode; /* has decode runs: tell mxd_sched_done */
    mxd_sched_run runs[MXD_MAX_STEP_RUNS];
} mxd_sched_step;

typedef struct mxd_sched {
    int n_slots, max_rows, chunk;
    int n_stages, in_flight, decode_in_flight; /* micro-batches */
    int next_decode, next_prefill;             /* the slot whose turn it is */
    struct mxd_sched_seq {
        bool used;
        uint32_t n_tokens, n_sent;
        uint32_t edge;  /* no run goes over this position; 0: none */
        uint32_t chunk; /* rows of a run */
    } seqs[MXD_MAX_SEQS];
} mxd_sched;

/* n_slots <= MXD_MAX_SEQS; max_rows <= MXD_MAX_STEP_TOKENS; chunk <= max_rows. */
void mxd_sched_init(mxd_sched *s, int n_slots, int max_rows, int chunk);

/* A new pipeline: nothing is in flight, and there are no sequences. */
void mxd_sched_restart(mxd_sched *s, int n_stages);

/* n_sent < n_tokens: so many are in the pipeline already. A run ends at `edge` when it comes there;
 * 0: none. */
void mxd_sched_add(mxd_sched *s, int slot, uint32_t n_tokens, uint32_t n_sent, uint32_t edge);
void mxd_sched_remove(mxd_sched *s, int slot); /* its steps may be in flight */

/* The token that the sequence awaited has been appended to its list. */
void mxd_sched_token(mxd_sched *s, int slot);

/* The next micro-batch, counted as in flight; false: nothing to do now. O(slots). */
bool mxd_sched_next(mxd_sched *s, mxd_sched_step *step);

/* A micro-batch has come back. */
void mxd_sched_done(mxd_sched *s, bool decode);

#endif
