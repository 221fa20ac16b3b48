#include "runtime/sampling.h"

#include <math.h>
#include <string.h>

#include "base/dmath.h"
#include "base/rand.h"

/* Drawing is an argmax: with g_i = -ln(-ln u_i), u_i uniform and independent, the index of the
 * largest ln p_i + g_i is distributed as p (Gumbel, 1954; Maddison et al., arXiv 1411.0030). u_i is
 * a function of (seed, choice, position, i), so any node that holds a part of the vocabulary can
 * draw its part. With 24 bits of u, g lies in (-2.9, 17.4): candidates further than 21 below the
 * best cannot win and need no number. */
#define GUMBEL_SPAN 21.0

/* exp of anything lower than this below the maximum counts as zero in sums of probabilities. */
#define TAIL_CUT 40.0

mxd_rc mxd_sampler_init(mxd_sampler *s, mxd_arena *a, int n_vocab, mxd_err *err) {
    *s = (mxd_sampler){.n_vocab = n_vocab};
    s->p = MXD_TAKE(a, (size_t)n_vocab, float);
    s->order = MXD_TAKE(a, (size_t)n_vocab, int32_t);
    s->count = MXD_TAKE(a, (size_t)n_vocab, uint16_t);
    if (!s->p || !s->order || !s->count)
        return mxd_fail(err, MXD_E_NOMEM, "no memory to sample from %d tokens", n_vocab);
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------ penalties */

/* Counts of tokens[from, n) in s->count; undone by clear_counts. */
static void add_counts(mxd_sampler *s, const int32_t *tokens, uint32_t from, uint32_t n) {
    for (uint32_t i = from; i < n; i++)
        if (tokens[i] >= 0 && tokens[i] < s->n_vocab && s->count[tokens[i]] < UINT16_MAX)
            s->count[tokens[i]]++;
}

static void clear_counts(mxd_sampler *s, const int32_t *tokens, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (tokens[i] >= 0 && tokens[i] < s->n_vocab) s->count[tokens[i]] = 0;
}

static void penalise_repetition(mxd_sampler *s, float *logits, float by, const int32_t *tokens,
                                uint32_t n) {
    add_counts(s, tokens, 0, n);
    for (uint32_t i = 0; i < n; i++) {
        int32_t t = tokens[i];
        if (t < 0 || t >= s->n_vocab || !s->count[t]) continue;
        logits[t] = logits[t] < 0 ? logits[t] * by : logits[t] / by;
        s->count[t] = 0; /* once per token */
    }
}

static void penalise_generated(mxd_sampler *s, float *logits, const mxd_sampling *how,
                               const int32_t *tokens, uint32_t n) {
    uint32_t from = how->n_prompt < n ? how->n_prompt : n;
    add_counts(s, tokens, from, n);
    for (uint32_t i = from; i < n; i++) {
        int32_t t = tokens[i];
        if (t < 0 || t >= s->n_vocab || !s->count[t]) continue;
        logits[t] -= how->presence + how->frequency * (float)s->count[t];
        s->count[t] = 0;
    }
}

static void adjust(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                   uint32_t n) {
    if (how->repetition > 0 && how->repetition != 1)
        penalise_repetition(s, logits, how->repetition, tokens, n);
    if (how->presence != 0 || how->frequency != 0) penalise_generated(s, logits, how, tokens, n);
    for (int i = 0; i < how->n_bias; i++)
        if (how->bias[i].token >= 0 && how->bias[i].token < s->n_vocab)
            logits[how->bias[i].token] += how->bias[i].bias;
    clear_counts(s, tokens, n);
}

/* ------------------------------------------------------------------------------ log probabilities
 */

enum { LANES = 16, STRIP = 64 * LANES };

/* The largest of x [n]; a NaN never is. -infinity when there is nothing else. Lanes, so that a
 * compiler can use vectors: the largest does not depend on the order. */
static float largest(const float *x, int n) {
    float lane[LANES], most = -INFINITY;
    int i = 0;
    for (int l = 0; l < LANES; l++) lane[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    for (int l = 0; l < LANES; l++) most = lane[l] > most ? lane[l] : most;
    for (; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* The lowest id of the largest logit; 0 when all are NaN. */
static int32_t argmax(const float *logits, int n) {
    float most = -INFINITY;
    int from = 0;
    for (int at = 0; at < n; at += STRIP) { /* the first strip that has it */
        float m = largest(logits + at, n - at < STRIP ? n - at : STRIP);
        if (m > most) most = m, from = at;
    }
    for (int i = from; i < n; i++)
        if (logits[i] == most) return i;
    return 0;
}

/* ln of the sum of exp(logits), in order of ids. */
static double log_sum(const float *logits, int n, float max) {
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double d = (double)logits[i] - max;
        if (d >= -TAIL_CUT) sum += mxd_exp64(d);
    }
    return max + mxd_log64(sum);
}

/* The best n of the distribution by insertion; n is at most 20. */
static void top_logprobs(const float *logits, int n_vocab, double norm, int n, mxd_sampled *out) {
    int have = 0;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (have == n && !(logits[i] > out->top_logprob[n - 1])) continue;
        int at = have < n ? have++ : n - 1;
        for (; at > 0 && logits[i] > out->top_logprob[at - 1]; at--) {
            out->top_id[at] = out->top_id[at - 1];
            out->top_logprob[at] = out->top_logprob[at - 1];
        }
        out->top_id[at] = i;
        out->top_logprob[at] = logits[i];
    }
    for (int k = 0; k < have; k++)
        out->top_logprob[k] = (float)((double)out->top_logprob[k] - norm);
    out->n_top = (uint8_t)have;
}

/* ----------------------------------------------------------------------------------- candidates */

/* A larger logit first; equal ones by id. */
static bool before(const float *l, int32_t a, int32_t b) {
    return l[a] > l[b] || (l[a] == l[b] && a < b);
}

static void sift(const float *l, int32_t *heap, int n, int at) {
    for (;;) {
        int child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && before(l, heap[child + 1], heap[child])) child++;
        if (!before(l, heap[child], heap[at])) return;
        int32_t t = heap[at];
        heap[at] = heap[child];
        heap[child] = t;
        at = child;
    }
}

/* Sorts the best candidates to the end of the heap's array, best last, until `enough` says stop or
 * none is left; returns how many. They are then at order[n - k .. n). */
typedef struct nucleus {
    double max, temperature, total; /* total: sum of exp over what top_k leaves */
    int top_k;
    float top_p, min_p;
} nucleus;

/* Takes candidates in falling order while the filters want more. */
static int take_nucleus(mxd_sampler *s, const float *l, int n, const nucleus *f) {
    for (int i = n / 2; i-- > 0;) sift(l, s->order, n, i);
    int taken = 0, most = f->top_k > 0 && f->top_k < n ? f->top_k : n;
    double sum = 0;
    for (int left = n; taken < most && left > 0;) {
        int32_t best = s->order[0];
        double p = mxd_exp64(((double)l[best] - f->max) / f->temperature);
        if (taken && (f->min_p > 0 && p < (double)f->min_p)) break;
        if (taken && f->top_p > 0 && sum >= (double)f->top_p * f->total) break;
        sum += p;
        left--;
        s->order[0] = s->order[left];
        s->order[left] = best;
        sift(l, s->order, left, 0);
        taken++;
    }
    return taken;
}

/* Sum of exp((l - max) / T) over the candidates that top_k leaves. */
static double filtered_total(mxd_sampler *s, const float *l, int n, const nucleus *f) {
    double sum = 0;
    if (f->top_k > 0 && f->top_k < n) {
        nucleus only_k = {f->max, f->temperature, 0, f->top_k, 0, 0};
        int k = take_nucleus(s, l, n, &only_k);
        for (int i = n; i-- > n - k;) /* best first */
            sum += mxd_exp64(((double)l[s->order[i]] - f->max) / f->temperature);
        return sum;
    }
    for (int i = 0; i < n; i++) {
        double d = ((double)l[s->order[i]] - f->max) / f->temperature;
        if (d >= -TAIL_CUT) sum += mxd_exp64(d);
    }
    return sum;
}

static double gumbel(const mxd_sampling *how, uint32_t position, int32_t token) {
    uint64_t stream = mxd_mix64(((uint64_t)how->choice << 32) | position);
    uint64_t bits = mxd_rand_u64(how->seed, stream, (uint64_t)(uint32_t)token) >> 40;
    double u = ((double)bits + 0.5) * 0x1p-24;
    return -mxd_log64(-mxd_log64(u));
}

static int32_t draw(mxd_sampler *s, const float *l, const mxd_sampling *how, uint32_t position,
                    float max) {
    double t = how->temperature;
    int n = 0;
    for (int32_t i = 0; i < s->n_vocab; i++)
        if (l[i] > -INFINITY && l[i] == l[i]) s->order[n++] = i;
    if (!n) return 0;
    int first = 0;
    bool filters =
        (how->top_k > 0 && how->top_k < n) || (how->top_p > 0 && how->top_p < 1) || how->min_p > 0;
    if (filters) {
        nucleus f = {max, t, 0, how->top_k, how->top_p < 1 ? how->top_p : 0, how->min_p};
        if (f.top_p > 0) f.total = filtered_total(s, l, n, &f);
        first = n - take_nucleus(s, l, n, &f);
    }
    int32_t best = -1;
    double best_key = 0;
    for (int i = first; i < n; i++) {
        int32_t id = s->order[i];
        double z = ((double)l[id] - max) / t;
        if (z < -GUMBEL_SPAN) continue;
        double key = z + gumbel(how, position, id);
        if (best < 0 || key > best_key || (key == best_key && id < best)) {
            best = id;
            best_key = key;
        }
    }
    return best;
}

void mxd_sample(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                uint32_t n_tokens, mxd_sampled *out) {
    *out = (mxd_sampled){0};
    bool report = how->logprobs || how->n_top;
    double norm = 0;
    if (report) { /* of the model's own distribution, before anything changes it */
        norm = log_sum(logits, s->n_vocab, logits[argmax(logits, s->n_vocab)]);
        int n = how->n_top < s->n_vocab ? how->n_top : s->n_vocab;
        if (n) top_logprobs(logits, s->n_vocab, norm, n, out);
        memcpy(s->p, logits, (size_t)s->n_vocab * sizeof *logits);
    }
    adjust(s, logits, how, tokens, n_tokens);
    int32_t best = argmax(logits, s->n_vocab);
    out->token = how->temperature > 0 ? draw(s, logits, how, n_tokens, logits[best]) : best;
    if (report) out->logprob = (float)((double)s->p[out->token] - norm);
}
