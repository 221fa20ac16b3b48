#include "runtime/choose.h"

#include <math.h>

#include "base/dmath.h"
#include "base/rand.h"

/* ------------------------------------------------------------------------------------ penalties */

/* Where a token is in the part, or -1. */
static int32_t place_of(const mxd_sampler *s, int32_t token) {
    bool here = token >= s->first && token - s->first < s->n_vocab;
    return here ? token - s->first : -1;
}

/* Counts of tokens[from, n) in s->count; who uses a count sets it back to 0. */
static void add_counts(mxd_sampler *s, const int32_t *tokens, uint32_t from, uint32_t n) {
    for (uint32_t i = from; i < n; i++) {
        int32_t at = place_of(s, tokens[i]);
        if (at >= 0 && s->count[at] < UINT16_MAX) s->count[at]++;
    }
}

static void penalise_repetition(mxd_sampler *s, float *logits, float by, const int32_t *tokens,
                                uint32_t n) {
    add_counts(s, tokens, 0, n);
    for (uint32_t i = 0; i < n; i++) {
        int32_t at = place_of(s, tokens[i]);
        if (at < 0 || !s->count[at]) continue;
        logits[at] = logits[at] < 0 ? logits[at] * by : logits[at] / by;
        s->count[at] = 0; /* once per token */
    }
}

static void penalise_generated(mxd_sampler *s, float *logits, const mxd_sampling *how,
                               const int32_t *tokens, uint32_t n) {
    uint32_t from = how->n_prompt < n ? how->n_prompt : n;
    add_counts(s, tokens, from, n);
    for (uint32_t i = from; i < n; i++) {
        int32_t at = place_of(s, tokens[i]);
        if (at < 0 || !s->count[at]) continue;
        logits[at] -= how->presence + how->frequency * (float)s->count[at];
        s->count[at] = 0;
    }
}

static bool repeats(const mxd_sampling *how) { return how->repetition > 0 && how->repetition != 1; }

bool mxd_adjusts(const mxd_sampling *how) {
    return repeats(how) || how->presence != 0 || how->frequency != 0 || how->n_bias;
}

void mxd_adjust(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                uint32_t n) {
    if (repeats(how)) penalise_repetition(s, logits, how->repetition, tokens, n);
    if (how->presence != 0 || how->frequency != 0) penalise_generated(s, logits, how, tokens, n);
    for (int i = 0; i < how->n_bias; i++) {
        int32_t at = place_of(s, how->bias[i].token);
        if (at >= 0) logits[at] += how->bias[i].bias;
    }
}

/* -------------------------------------------------------------------------------------- ranking */

enum { STRIP = 1024 };

static int strip_at(int at, int n) { return n - at < STRIP ? n - at : STRIP; }

mxd_cand mxd_greedy(const mxd_sampler *s, const float *logits, const float *raw) {
    float most = -INFINITY;
    int from = 0, n = s->n_vocab;
    for (int at = 0; at < n; at += STRIP) { /* the first strip that has it */
        float m = mxd_largest(logits + at, strip_at(at, n));
        if (m > most) most = m, from = at;
    }
    for (int i = from; i < n; i++)
        if (logits[i] == most) return (mxd_cand){s->first + i, most, raw[i]};
    return (mxd_cand){.id = -1};
}

static bool before(const float *l, int32_t a, int32_t b) {
    return l[a] > l[b] || (l[a] == l[b] && a < b);
}

/* A heap with the best, or the worst, on top. */
static void sift(const float *l, int32_t *heap, int n, int at, bool worst) {
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && before(l, heap[child + 1], heap[child]) != worst) child++;
        if (before(l, heap[child], heap[at]) == worst) return;
        int32_t t = heap[at];
        heap[at] = heap[child];
        heap[child] = t;
        at = child;
    }
}

static void make_heap(const float *l, int32_t *heap, int n, bool worst) {
    for (int i = n / 2; i-- > 0;) sift(l, heap, n, i, worst);
}

/* Takes the top away: it comes to heap[n - 1]. */
static void pop(const float *l, int32_t *heap, int n, bool worst) {
    int32_t top = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = top;
    sift(l, heap, n - 1, 0, worst);
}

/* order[0, r->sorted): the best, as many as `most`. */
static void rank_some(mxd_ranking *r, int most) {
    const float *l = r->l;
    int have = 0;
    for (int at = 0; at < r->n; at += STRIP) {
        int end = at + strip_at(at, r->n);
        if (have == most && !(mxd_largest(l + at, end - at) > l[r->order[0]])) continue;
        for (int i = at; i < end; i++) {
            if (!(l[i] > -INFINITY)) continue;
            if (have < most) {
                r->order[have++] = i;
                if (have == most) make_heap(l, r->order, have, true);
            } else if (l[i] > l[r->order[0]]) { /* equal ones: the lower id is there */
                r->order[0] = i;
                sift(l, r->order, have, 0, true);
            }
        }
    }
    if (have < most) make_heap(l, r->order, have, true);
    for (int n = have; n > 1; n--) pop(l, r->order, n, true);
    r->sorted = have;
}

void mxd_rank(mxd_ranking *r, mxd_sampler *s, const float *logits, int most) {
    *r = (mxd_ranking){.l = logits, .order = s->order, .n = s->n_vocab};
    for (int i = 0; i < r->n; i++) r->of += logits[i] > -INFINITY;
    if (most > r->of) most = r->of;
    if (most > 0) rank_some(r, most);
}

static void rank_all(mxd_ranking *r) {
    r->sorted = r->left = 0;
    for (int32_t i = 0; i < r->n; i++)
        if (r->l[i] > -INFINITY) r->order[r->left++] = i;
    make_heap(r->l, r->order, r->left, false);
}

int32_t mxd_ranked(mxd_ranking *r, int i) {
    MXD_ASSERT(i >= 0 && i < r->of);
    if (i < r->sorted) return r->order[i];
    if (r->sorted || !r->left) rank_all(r);
    while (r->of - r->left <= i) pop(r->l, r->order, r->left--, false);
    return r->order[r->of - 1 - i];
}

/* -------------------------------------------------------------------------------------- drawing
 *
 * Drawing is an argmax: with g_i = -ln(-ln u_i), u_i uniform and independent, the index of the
 * largest ln p_i + g_i is distributed as p (Gumbel, 1954; Maddison et al., arXiv 1411.0030). u_i is
 * a function of (seed, choice, position, i), so any node that holds a part of the vocabulary can
 * draw its part. The key is l_i / T + g_i: what ln p_i subtracts from it is the same for all. */

/* 24 bits of u: no g is larger than 25 ln 2. */
#define GUMBEL_MOST 17.34

mxd_dice mxd_dice_of(const mxd_sampling *how, uint32_t position) {
    uint64_t stream = mxd_mix64(((uint64_t)how->choice << 32) | position);
    return (mxd_dice){how->seed, stream, how->temperature};
}

bool mxd_beats(const mxd_drawn *a, const mxd_drawn *b) {
    if (a->c.id < 0 || b->c.id < 0) return a->c.id >= 0;
    return a->key > b->key || (a->key == b->key && a->c.id < b->c.id);
}

/* Not below g: -ln u is 1 - u or more, and 1 - u more than a power of two. */
static double at_most(uint32_t bits) {
    uint32_t m = 0xffffff - bits;
    int digits = 0;
    for (int by = 16; by; by /= 2)
        if (m >> by) digits += by, m >>= by;
    return (25 - (digits + (int)m)) * 0.6932;
}

void mxd_roll(mxd_drawn *best, const mxd_dice *d, const mxd_cand *c) {
    double y = (double)c->logit / d->temperature;
    uint32_t bits = (uint32_t)(mxd_rand_u64(d->seed, d->stream, (uint64_t)(uint32_t)c->id) >> 40);
    if (best->c.id >= 0 && y + at_most(bits) < best->key) return; /* without its logarithms */
    double u = ((double)bits + 0.5) * 0x1p-24;
    mxd_drawn this = {y - mxd_log64(-mxd_log64(u)), *c};
    if (mxd_beats(&this, best)) *best = this;
}

mxd_drawn mxd_draw(const mxd_sampler *s, const float *logits, const float *raw, const mxd_dice *d) {
    mxd_drawn best = {.c.id = -1};
    mxd_cand top = mxd_greedy(s, logits, raw);
    if (top.id < 0 || !(top.logit > -INFINITY)) return best;
    mxd_roll(&best, d, &top); /* first, so that few others need a number */
    for (int at = 0; at < s->n_vocab; at += STRIP) {
        int end = at + strip_at(at, s->n_vocab);
        if ((double)mxd_largest(logits + at, end - at) / d->temperature + GUMBEL_MOST < best.key)
            continue;
        for (int i = at; i < end; i++) {
            bool far = (double)logits[i] / d->temperature + GUMBEL_MOST < best.key;
            if (far || !(logits[i] > -INFINITY)) continue;
            mxd_roll(&best, d, &(mxd_cand){s->first + i, logits[i], raw[i]});
        }
    }
    return best;
}

/* -------------------------------------------------------------------------------------- filters */

mxd_filters mxd_filters_of(const mxd_sampling *how, int n_vocab) {
    mxd_filters f = {0};
    if (how->top_k > 0 && how->top_k < n_vocab) f.top_k = how->top_k;
    if (how->top_p > 0 && how->top_p < 1) f.top_p = how->top_p;
    if (how->min_p > 0) f.min_p = how->min_p;
    return f;
}

static double weight(const mxd_cand *c, float max, double temperature) {
    return c->logit == max ? 1 : mxd_exp64(((double)c->logit - max) / temperature);
}

/* The sum of weights of the best k, best first. */
static mxd_rc sum_of_best(const mxd_cands *from, int k, const mxd_dice *d, float max, double *sum,
                          mxd_err *err) {
    mxd_cand c;
    *sum = 0;
    for (int i = 0; i < k; i++) {
        MXD_TRY(from->next(from->ctx, &c, err));
        if (c.id < 0) break;
        *sum += weight(&c, max, d->temperature);
    }
    from->restart(from->ctx);
    return MXD_OK;
}

mxd_rc mxd_choose(const mxd_cands *from, const mxd_filters *f, const mxd_dice *d, float max,
                  double total, mxd_drawn *out, mxd_err *err) {
    double sum = 0;
    mxd_cand c;
    out->c.id = -1;
    if (f->top_p > 0 && f->top_k) MXD_TRY(sum_of_best(from, f->top_k, d, max, &total, err));
    for (int taken = 0; !f->top_k || taken < f->top_k; taken++) {
        if (taken && f->top_p > 0 && sum >= (double)f->top_p * total) break;
        MXD_TRY(from->next(from->ctx, &c, err));
        if (c.id < 0) break;
        double p = weight(&c, max, d->temperature);
        if (taken && f->min_p > 0 && p < (double)f->min_p) break;
        sum += p;
        mxd_roll(out, d, &c);
    }
    return MXD_OK;
}

double mxd_log_sum(const mxd_tally *raw) {
    return (double)raw->max + mxd_log64(mxd_tally_value(raw, 1));
}
