/* sampling.h - from logits to a token, as a pure function.
 *
 * The choice depends on nothing but the logits, the parameters, the tokens so far and the position:
 * the random number is mxd_rand_unit(seed, choice, position). A replayed position draws the same
 * token on whatever node holds the head.
 *
 * Order: penalties and bias -> temperature -> top_k -> top_p -> min_p -> draw.
 * Greedy (temperature 0) takes the largest logit; equal logits give the lowest id. A NaN is never
 * chosen or listed, -infinity neither drawn nor listed; id 0 when there is nothing else.
 *
 * Nothing depends on the order of ids in memory, so the vocabulary may be cut (docs/numerics.md):
 * sums of exp over all ids have none (tally.h), top_p adds in falling order of logits, the key of a
 * draw is a function of the id and its own logit.
 * Threads: reentrant; scratch belongs to the caller.
 */
#ifndef MXD_RUNTIME_SAMPLING_H
#define MXD_RUNTIME_SAMPLING_H

#include <stdint.h>
#include "backend/backend.h"
#include "base/alloc.h"
#include "base/limits.h"

typedef struct mxd_logit_bias {
    int32_t token;
    float bias; /* -100 .. 100; added to the logit. -INFINITY bans */
} mxd_logit_bias;

typedef struct mxd_sampling {  /* all zero: greedy */
    float temperature;         /* 0: greedy */
    float top_p;               /* 0 or 1: off */
    float min_p;               /* 0: off */
    int32_t top_k;             /* 0: off */
    float presence, frequency; /* over generated tokens; 0: off */
    float repetition; /* over all tokens; 0 or 1: off. Logit < 0 multiplied, else divided */
    uint64_t seed;
    uint32_t choice;            /* which of n answers */
    uint32_t n_prompt;          /* tokens of the prompt: what comes behind is "generated" */
    bool logprobs;              /* report the log probability of the chosen token */
    uint8_t n_top;              /* and of the best n, 0 .. MXD_MAX_TOP_LOGPROBS */
    uint16_t n_bias;            /* entries in bias */
    const mxd_logit_bias *bias; /* [n_bias], borrowed */
} mxd_sampling;

typedef struct mxd_sampled {
    int32_t token;
    float logprob; /* of the untempered distribution; 0 unless asked for */
    uint8_t n_top;
    int32_t top_id[MXD_MAX_TOP_LOGPROBS]; /* best first */
    float top_logprob[MXD_MAX_TOP_LOGPROBS];
} mxd_sampled;

/* Scratch that one sampler thread reuses: candidates and counts for a vocabulary. */
typedef struct mxd_sampler {
    int first, n_vocab; /* the ids [first, first + n_vocab) */
    float *p;           /* [n_vocab] logits */
    int32_t *order;     /* [n_vocab] */
    uint16_t *count;    /* [n_vocab] zero between calls */
} mxd_sampler;

mxd_rc mxd_sampler_init(mxd_sampler *s, mxd_arena *a, int n_vocab, mxd_err *err) MXD_MUST_USE;

/* Chooses the token for `position` (= n_tokens: the index it will have).
 *   logits  [n_vocab], changed by penalties
 *   tokens  [n_tokens] prompt and answer so far */
void mxd_sample(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                uint32_t n_tokens, mxd_sampled *out);

/* ---- a vocabulary that is cut over a group ----
 *
 * Rank r has the logits of the ids [edge[r], edge[r + 1]), maybe of none. Every rank gets what
 * mxd_sample gives for the whole: the same token and log probabilities, bit by bit.
 *
 * All rows of a step take one exchange, of some 50 words a rank and row, and with filters the
 * rank's best candidates. It is enough for greedy and plain draws, for log probabilities, for every
 * top_k up to 256, and where top_p and min_p end among the best 128 of each rank. A row that wants
 * more has further exchanges, of MXD_SPLIT_CHUNK candidates a rank each.
 *
 * Trust: messages of other ranks are checked before they index anything. They hold the bytes of
 * numbers: all ranks are of one byte order. */

enum { MXD_SPLIT_CHUNK = 4096 };

typedef struct mxd_sample_row {
    const float *logits; /* [ids of this rank], left as they are */
    const mxd_sampling *how;
    const int32_t *tokens; /* [n_tokens], as for mxd_sample */
    uint32_t n_tokens;
} mxd_sample_row;

typedef struct mxd_split {
    mxd_sampler mine; /* of this rank's ids */
    const mxd_group *group;
    const int *edge; /* [size + 1] */
    int max_rows;
    float *words, *more; /* of the first exchange; of a further one */
} mxd_split;

/* What mxd_split_init takes beside mxd_sampler_init for this rank's ids. */
size_t mxd_split_bytes(int size, const int *edge, int max_rows);

/* group and edge are borrowed. Errors: E_NOMEM. */
mxd_rc mxd_split_init(mxd_split *s, mxd_arena *a, const mxd_group *group, const int *edge,
                      int max_rows, mxd_err *err) MXD_MUST_USE;

/* The tokens out [n_rows] of up to max_rows rows; every rank calls it with the same rows, apart
 * from logits. Errors: the exchange's; E_PEER a message that cannot be. */
mxd_rc mxd_sample_split(mxd_split *s, const mxd_sample_row *rows, int n_rows, mxd_sampled *out,
                        mxd_err *err) MXD_MUST_USE;

#endif
