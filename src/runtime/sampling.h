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

#endif
