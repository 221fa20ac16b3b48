#include "runtime/sampling.h"

#include <string.h>

#include "runtime/choose.h"

/* Ids that are put in order at first; mostly the filters want no more. */
enum { RANKED_AT_ONCE = 256 };

mxd_rc mxd_sampler_init(mxd_sampler *s, mxd_arena *a, int n_vocab, mxd_err *err) {
    *s = (mxd_sampler){.n_vocab = n_vocab};
    s->p = MXD_TAKE(a, (size_t)n_vocab, float);
    s->order = MXD_TAKE(a, (size_t)n_vocab, int32_t);
    s->count = MXD_TAKE(a, (size_t)n_vocab, uint16_t);
    if (!s->p || !s->order || !s->count)
        return mxd_fail(err, MXD_E_NOMEM, "no memory to sample from %d tokens", n_vocab);
    return MXD_OK;
}

/* ------------------------------------------------------------------- candidates of one node */

typedef struct whole {
    mxd_ranking ranking;
    const float *raw;
    int at;
} whole;

static mxd_rc next(void *ctx, mxd_cand *c, mxd_err *err) {
    (void)err;
    whole *w = ctx;
    c->id = -1;
    if (w->at == w->ranking.of) return MXD_OK;
    int32_t id = mxd_ranked(&w->ranking, w->at++);
    *c = (mxd_cand){id, w->ranking.l[id], w->raw[id]};
    return MXD_OK;
}

static void restart(void *ctx) { ((whole *)ctx)->at = 0; }

static mxd_cand draw(mxd_sampler *s, const float *l, const float *raw, const mxd_sampling *how,
                     uint32_t position) {
    mxd_filters f = mxd_filters_of(how, s->n_vocab);
    mxd_dice dice = mxd_dice_of(how, position);
    if (!mxd_filters_any(&f)) return mxd_draw(s, l, raw, &dice).c;
    mxd_tally all;
    double total = 0;
    if (mxd_filters_need_total(&f)) {
        mxd_tally_take(&all, l, s->n_vocab, how->temperature);
        total = mxd_tally_value(&all, how->temperature);
    }
    mxd_drawn drawn;
    whole w = {.raw = raw};
    const mxd_cands cands = {next, restart, &w};
    mxd_rank(&w.ranking, s, l, f.top_k && f.top_k < RANKED_AT_ONCE ? f.top_k : RANKED_AT_ONCE);
    mxd_rc rc = mxd_choose(&cands, &f, &dice, mxd_largest(l, s->n_vocab), total, &drawn, NULL);
    MXD_ASSERT(!rc); /* there is nothing that could fail */
    return drawn.c;
}

/* ----------------------------------------------------------------------------- one node's token */

static void report_top(mxd_sampler *s, const float *raw, double norm, int n, mxd_sampled *out) {
    mxd_ranking r;
    mxd_rank(&r, s, raw, n);
    for (int i = 0; i < n && i < r.of && i < MXD_MAX_TOP_LOGPROBS; i++) {
        out->top_id[i] = mxd_ranked(&r, i);
        out->top_logprob[i] = mxd_logprob(raw[out->top_id[i]], norm);
        out->n_top++;
    }
}

void mxd_sample(mxd_sampler *s, float *logits, const mxd_sampling *how, const int32_t *tokens,
                uint32_t n_tokens, mxd_sampled *out) {
    *out = (mxd_sampled){0};
    bool report = how->logprobs || how->n_top;
    const float *raw = logits;
    double norm = 0;
    if (report) { /* of the model's own distribution, before anything changes it */
        mxd_tally all;
        mxd_tally_take(&all, logits, s->n_vocab, 1);
        norm = mxd_log_sum(&all);
        if (how->n_top) report_top(s, raw, norm, how->n_top, out);
    }
    if (mxd_adjusts(how)) {
        memcpy(s->p, logits, (size_t)s->n_vocab * sizeof *logits);
        raw = s->p;
        mxd_adjust(s, logits, how, tokens, n_tokens);
    }
    mxd_cand c =
        how->temperature > 0 ? draw(s, logits, raw, how, n_tokens) : mxd_greedy(s, logits, raw);
    out->token = c.id < 0 ? 0 : c.id;
    if (report) out->logprob = mxd_logprob(raw[out->token], norm);
}
