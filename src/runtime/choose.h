/* choose.h - private to sampling: what a node that has all of the vocabulary and the ranks that
 * have parts of it do alike.
 *
 * A part is the ids [first, first + n) of a sampler. Inside, ids count from 0; a mxd_cand names the
 * id of the whole. Threads: as sampling.h. */
#ifndef MXD_RUNTIME_CHOOSE_H
#define MXD_RUNTIME_CHOOSE_H

#include "runtime/sampling.h"
#include "runtime/tally.h"

typedef struct mxd_cand {
    int32_t id;       /* -1: none */
    float logit, raw; /* with and without penalties and bias */
} mxd_cand;

/* A larger logit first; equal ones by id. */
static inline bool mxd_cand_before(const mxd_cand *a, const mxd_cand *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* ---- a part ---- */

bool mxd_adjusts(const mxd_sampling *how); /* are there penalties or a bias? */

/* Penalties and bias, of the part's logits [n]. */
void mxd_adjust(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                uint32_t n_tokens);

/* The lowest id of the largest logit, which may be -infinity; none when all are NaN. */
mxd_cand mxd_greedy(const mxd_sampler *s, const float *logits, const float *raw);

/* The ids of a part in falling order, by and by. NaN and -infinity are left out. It lives in the
 * sampler's `order`, so there is one at a time. */
typedef struct mxd_ranking {
    const float *l;
    int32_t *order; /* [n] */
    int n, of;      /* ids; how many have a rank */
    int sorted;     /* the best of them, in order[0, sorted) */
    int left;       /* sorted = 0: a heap, order[0, left); before it the others, the best last */
} mxd_ranking;

/* The first `most` are cheap. */
void mxd_rank(mxd_ranking *r, mxd_sampler *s, const float *logits, int most);
int32_t mxd_ranked(mxd_ranking *r, int i); /* the i-th best, from 0; i < r->of */

/* ---- drawing ---- */

typedef struct mxd_dice {
    uint64_t seed, stream;
    double temperature;
} mxd_dice;

typedef struct mxd_drawn { /* the winner so far */
    double key;
    mxd_cand c;
} mxd_drawn;

mxd_dice mxd_dice_of(const mxd_sampling *how, uint32_t position);
void mxd_roll(mxd_drawn *best, const mxd_dice *d, const mxd_cand *c); /* enters a candidate */
bool mxd_beats(const mxd_drawn *a, const mxd_drawn *b);               /* false if a is none */

/* All of the part, without filters. */
mxd_drawn mxd_draw(const mxd_sampler *s, const float *logits, const float *raw, const mxd_dice *d);

/* ---- filters ---- */

typedef struct mxd_filters { /* 0: off */
    int top_k;
    float top_p, min_p;
} mxd_filters;

/* n_vocab: of the whole. */
mxd_filters mxd_filters_of(const mxd_sampling *how, int n_vocab);
static inline bool mxd_filters_any(const mxd_filters *f) {
    return f->top_k || f->top_p > 0 || f->min_p > 0;
}
static inline bool mxd_filters_need_total(const mxd_filters *f) {
    return f->top_p > 0 && !f->top_k;
}

/* The candidates of the whole, best first. */
typedef struct mxd_cands {
    mxd_rc (*next)(void *ctx, mxd_cand *c, mxd_err *err); /* none: there are no more */
    void (*restart)(void *ctx);
    void *ctx;
} mxd_cands;

/* Draws among those that the filters leave.
 *   max    the largest logit
 *   total  sum of exp((l - max) / T) over all, where the filters need it
 * Errors: those of `from`. */
mxd_rc mxd_choose(const mxd_cands *from, const mxd_filters *f, const mxd_dice *d, float max,
                  double total, mxd_drawn *out, mxd_err *err) MXD_MUST_USE;

/* ---- log probabilities ---- */

double mxd_log_sum(const mxd_tally *raw); /* ln of the sum of exp(l) */

/* l - norm; of what is not a number, one and the same NaN. */
static inline float mxd_logprob(float l, double norm) {
    double d = (double)l - norm;
    return d == d ? (float)d : __builtin_nanf("");
}

#endif
