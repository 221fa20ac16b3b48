/* shard.h - one node's part of a model, and the sequences it keeps KV for.
 *
 * A shard holds layers [layer0, layer1), with the embedding when layer0 is 0 and the head when
 * layer1 is the last. It is stepped with micro-batches: runs of neighbouring positions of some
 * sequences. A slot keeps the KV pages and the token ids of one sequence.
 *
 *   slot: EMPTY --run at position 0--> FILLING --run at position len--> FILLING ...
 *   a run at position 0 always starts the slot anew; one that begins (mxd_step_run) starts it with
 *   positions that are here already: its own, cut back, or whole pages of another slot, which the
 *   two share from then on (pages.h). A run at any other position than the slot's length is refused
 *   with E_STALE and changes nothing. mxd_shard_forget empties all slots.
 *   May be trusted: 0 <= len <= ctx; the page table covers len; no shared page is ever written.
 *
 * Lifetime: session. Threads: the engine thread.
 */
#ifndef MXD_RUNTIME_SHARD_H
#define MXD_RUNTIME_SHARD_H

#include "backend/backend.h"
#include "runtime/sampling.h"

typedef struct mxd_shard_opts {
    const char *folder;  /* the model repository */
    int layer0, layer1;  /* layer1 = 0: all */
    int n_slots, ctx;    /* sequences with KV, and the longest of them, tokens */
    int max_rows;        /* rows of the largest micro-batch; 0: MXD_MAX_STEP_TOKENS */
    const char *backend; /* "cpu", "mlx", "auto" */
    mxd_backend_opts backend_opts;
    /* Called now and then while loading; false: stop (E_CANCELED). May be NULL. */
    bool (*progress)(void *ctx, uint64_t bytes_done, uint64_t bytes_total);
    void *progress_ctx;
    /* Tensor parallelism: this shard is one rank of a group that holds the layers together. All
     * ranks take the same options but the group's rank, and the same steps in the same order, and
     * want the same of their results; each gets the same. Logits come together only when the
     * caller wants them: a token takes a few numbers of every rank (mxd_sample_split). */
    const mxd_group *group; /* NULL: alone */
    const double *shares;   /* [group->size] how much each rank takes, in proportion; NULL: equal */
} mxd_shard_opts;

typedef struct mxd_shard mxd_shard;

/* Errors: as mxd_model_open, mxd_backend_open, backend load and setup. */
mxd_rc mxd_shard_open(mxd_shard **out, const mxd_alloc *al, const mxd_shard_opts *opts,
                      mxd_err *err) MXD_MUST_USE;
void mxd_shard_close(mxd_shard *s); /* NULL is fine */

typedef struct mxd_step_run {
    uint16_t slot;
    uint16_t n;    /* rows, >= 1 */
    uint32_t pos;  /* position of the first row */
    bool keep;     /* recurrent models: keep the state behind the run beside, one for each slot */
    bool begin;    /* first the slot takes over the first pos positions of slot `from` */
    uint16_t from; /* itself, or another with pos a multiple of MXD_KV_PAGE_TOKENS; with a
                    * recurrent model itself, and all of it or what was kept */
    bool sample;   /* choose the token that follows the last row (head holder only) */
    mxd_sampling how; /* when sample */
} mxd_step_run;

typedef struct mxd_step {
    int n_runs, n_rows;
    const mxd_step_run *runs; /* [n_runs] */
    const int32_t *ids;       /* [n_rows] */
    const float *hidden;      /* [n_rows, hidden], or NULL when the shard embeds */
} mxd_step;

typedef struct mxd_step_result {
    float *hidden; /* [n_rows, hidden] unless the shard has the head; caller's memory or NULL */
    float *logits; /* [n_runs that sample, vocab] when the caller wants them; else NULL */
    mxd_sampled *tokens; /* [n_runs that sample], caller's memory */
    int n_tokens;        /* out */
} mxd_step_result;

/* Errors: E_STALE a slot's length is not the run's position, or a run begins with positions that
 * its source has not, shares with others or starts anew in this very step; E_INVAL the step is
 * malformed (ids out of the vocabulary, rows do not add up, context exceeded); backend errors: then
 * the slots of the step are emptied. */
mxd_rc mxd_shard_step(mxd_shard *s, const mxd_step *step, mxd_step_result *result,
                      mxd_err *err) MXD_MUST_USE;

void mxd_shard_forget(mxd_shard *s); /* empties every slot */

int mxd_shard_free_pages(const mxd_shard *s); /* of n_slots * ceil(ctx / MXD_KV_PAGE_TOKENS) */

int mxd_shard_hidden(const mxd_shard *s);
int mxd_shard_vocab(const mxd_shard *s);
bool mxd_shard_has_head(const mxd_shard *s);
bool mxd_shard_has_embed(const mxd_shard *s);
uint64_t mxd_shard_bytes(const mxd_shard *s);
const char *mxd_shard_backend(const mxd_shard *s);     /* "cpu" */
const char *mxd_shard_determinism(const mxd_shard *s); /* "bit-exact" */

#endif
