/* split.c - one token of a vocabulary that is cut over a group: every rank tells what it has of
 * each row, in one exchange, and all draw the same conclusion. A row whose filters reach below what
 * the ranks have sent is finished by itself, with further exchanges. */
#include "runtime/choose.h"

#include <math.h>
#include <string.h>

enum {
    SENT_FIRST = 128, /* candidates of a rank, without top_k; with it no more than */
    SENT_TOP_K = 256,
    CAND_WORDS = sizeof(mxd_cand) / sizeof(float)
};

/* Floats only carry the bytes of it, and are never calculated with. */
typedef struct part {
    mxd_drawn drawn; /* without filters */
    mxd_tally raw;   /* with log probabilities */
    mxd_tally all;   /* where the filters need the total */
    mxd_cand best;
    float first; /* the logit of the part's first id, when there is one */
    int32_t of;  /* candidates, with filters */
} part;

enum { PART_WORDS = sizeof(part) / sizeof(float) };
_Static_assert(sizeof(part) % sizeof(float) == 0 && sizeof(mxd_cand) % sizeof(float) == 0, "words");

static int n_of(const mxd_split *s, int rank) { return s->edge[rank + 1] - s->edge[rank]; }
static int whole(const mxd_split *s) { return s->edge[s->group->size]; }
static int smaller(int a, int b) { return a < b ? a : b; }
static bool reports(const mxd_sampling *how) { return how->logprobs || how->n_top; }

/* ------------------------------------------------------------------------------------- messages */

/* Candidates that a rank sends of a row at first. */
static int n_cands(const mxd_split *s, const mxd_sampling *how, int rank) {
    mxd_filters f = mxd_filters_of(how, whole(s));
    if (!(how->temperature > 0) || !mxd_filters_any(&f)) return 0;
    return smaller(f.top_k ? smaller(f.top_k, SENT_TOP_K) : SENT_FIRST, n_of(s, rank));
}

static int n_top(const mxd_split *s, const mxd_sampling *how, int rank) {
    return smaller(smaller(how->n_top, MXD_MAX_TOP_LOGPROBS), n_of(s, rank));
}

static size_t row_words(const mxd_split *s, const mxd_sampling *how, int rank) {
    int n = n_cands(s, how, rank) + n_top(s, how, rank);
    return PART_WORDS + (size_t)n * CAND_WORDS;
}

static void put(float **at, const void *from, size_t bytes) {
    memcpy(*at, from, bytes);
    *at += bytes / sizeof **at;
}

/* The best of l, `n` in number; a hole where there is none. */
static void put_ranked(mxd_split *s, float **at, mxd_ranking *r, const float *raw, int n) {
    for (int i = 0; i < n; i++) {
        mxd_cand c = {.id = -1};
        if (i < r->of) {
            int32_t k = mxd_ranked(r, i);
            c = (mxd_cand){s->mine.first + k, r->l[k], raw[k]};
        }
        put(at, &c, sizeof c);
    }
}

/* The row's logits with penalties and bias. */
static const float *adjusted(mxd_split *s, const mxd_sample_row *row) {
    if (!mxd_adjusts(row->how)) return row->logits;
    if (s->mine.n_vocab) memcpy(s->mine.p, row->logits, (size_t)s->mine.n_vocab * sizeof(float));
    mxd_adjust(&s->mine, s->mine.p, row->how, row->tokens, row->n_tokens);
    return s->mine.p;
}

static void put_row(mxd_split *s, const mxd_sample_row *row, float **at) {
    const mxd_sampling *how = row->how;
    const float *raw = row->logits, *l = adjusted(s, row);
    int rank = s->group->rank, n = s->mine.n_vocab;
    mxd_filters f = mxd_filters_of(how, whole(s));
    mxd_ranking r;
    part p;
    memset(&p, 0, sizeof p); /* gaps too */
    p.drawn.c.id = -1;
    if (n) p.first = raw[0];
    p.best = mxd_greedy(&s->mine, l, raw);
    if (reports(how)) mxd_tally_take(&p.raw, raw, n, 1);
    if (how->temperature > 0 && !mxd_filters_any(&f)) {
        mxd_dice dice = mxd_dice_of(how, row->n_tokens);
        p.drawn = mxd_draw(&s->mine, l, raw, &dice);
    } else if (how->temperature > 0) {
        int sent = n_cands(s, how, rank);
        mxd_rank(&r, &s->mine, l, sent);
        p.of = r.of;
        if (mxd_filters_need_total(&f)) mxd_tally_take(&p.all, l, n, how->temperature);
        float *cands = *at + PART_WORDS;
        put_ranked(s, &cands, &r, raw, sent);
    }
    put(at, &p, sizeof p);
    *at += n_cands(s, how, rank) * CAND_WORDS;
    if (!how->n_top) return;
    mxd_rank(&r, &s->mine, raw, n_top(s, how, rank));
    put_ranked(s, at, &r, raw, n_top(s, how, rank));
}

static mxd_rc wrong(int rank, mxd_err *err) {
    return mxd_fail(err, MXD_E_PEER, "rank %d sent what cannot be of its part of the vocabulary",
                    rank);
}

static bool in_part(const mxd_split *s, int rank, const mxd_cand *c) {
    return c->id >= s->edge[rank] && c->id < s->edge[rank + 1];
}

static mxd_rc get_part(const mxd_split *s, int rank, const float *at, part *p, mxd_err *err) {
    memcpy(p, at, sizeof *p);
    bool good = p->of >= 0 && p->of <= n_of(s, rank) && p->raw.of >= 0 &&
                p->raw.of <= n_of(s, rank) && (p->best.id == -1 || in_part(s, rank, &p->best)) &&
                (p->drawn.c.id == -1 || in_part(s, rank, &p->drawn.c));
    return good ? MXD_OK : wrong(rank, err);
}

/* ---------------------------------------------------------------- candidates of all ranks in one
 */

typedef struct lists { /* of every rank: those from its base-th best, `have` of them */
    const float *from[MXD_MAX_RANKS];
    int of[MXD_MAX_RANKS], base[MXD_MAX_RANKS], have[MXD_MAX_RANKS], at[MXD_MAX_RANKS];
} lists;

static void head(const lists *l, int rank, mxd_cand *c) {
    memcpy(c, l->from[rank] + (size_t)l->at[rank] * CAND_WORDS, sizeof *c);
}

/* Takes the best of what is here; none when all is taken. */
static mxd_rc take_best(const mxd_split *s, lists *l, mxd_cand *best, mxd_err *err) {
    int who = 0;
    best->id = -1;
    for (int r = 0; r < s->group->size; r++) {
        mxd_cand c;
        if (l->at[r] == l->have[r]) continue;
        head(l, r, &c);
        if (!in_part(s, r, &c)) return wrong(r, err);
        if (best->id >= 0 && !mxd_cand_before(&c, best)) continue;
        *best = c;
        who = r;
    }
    if (best->id >= 0) l->at[who]++;
    return MXD_OK;
}

typedef struct walk {
    mxd_split *s;
    const mxd_sample_row *row;
    lists lists;
    bool fetched; /* what came at first is not in `lists` any more */
    mxd_ranking ranking;
} walk;

/* The next candidates of every rank, where there are some. */
static mxd_rc fetch(walk *w, mxd_err *err) {
    mxd_split *s = w->s;
    lists *l = &w->lists;
    size_t n_each[MXD_MAX_RANKS];
    float *at = s->more, *mine = NULL;
    if (!w->fetched) mxd_rank(&w->ranking, &s->mine, adjusted(s, w->row), 0);
    w->fetched = true;
    for (int r = 0; r < s->group->size; r++) {
        l->base[r] += l->at[r];
        l->at[r] = 0;
        l->have[r] = smaller(l->of[r] - l->base[r], MXD_SPLIT_CHUNK);
        l->from[r] = at;
        if (r == s->group->rank) mine = at;
        n_each[r] = (size_t)l->have[r] * CAND_WORDS;
        at += n_each[r];
    }
    int rank = s->group->rank;
    for (int i = 0; i < l->have[rank]; i++) {
        int32_t k = mxd_ranked(&w->ranking, l->base[rank] + i);
        const mxd_cand c = {s->mine.first + k, w->ranking.l[k], w->row->logits[k]};
        put(&mine, &c, sizeof c);
    }
    return s->group->exchange(s->group->ctx, s->more, n_each, err);
}

static mxd_rc next(void *ctx, mxd_cand *c, mxd_err *err) {
    walk *w = ctx;
    const lists *l = &w->lists;
    for (int r = 0; r < w->s->group->size; r++) { /* what a rank has not sent may be the best */
        if (l->at[r] < l->have[r] || l->base[r] + l->have[r] == l->of[r]) continue;
        MXD_TRY(fetch(w, err));
        break;
    }
    return take_best(w->s, &w->lists, c, err);
}

static void restart(void *ctx) {
    walk *w = ctx;
    lists *l = &w->lists;
    for (int r = 0; r < w->s->group->size; r++) {
        l->at[r] = 0;
        if (w->fetched) l->base[r] = l->have[r] = 0;
    }
}

/* ---------------------------------------------------------------------------------- conclusions */

/* What all ranks have said of a row, and where their candidates are. */
typedef struct merged {
    mxd_cand best;
    mxd_drawn drawn;
    mxd_tally raw, all;
    float first; /* the logit of id 0 */
    lists cands, top;
} merged;

static mxd_rc merge(const mxd_split *s, const mxd_sampling *how, const float **at, merged *m,
                    mxd_err *err) {
    *m = (merged){.best.id = -1, .drawn.c.id = -1};
    m->raw.max = m->all.max = -INFINITY;
    for (int r = s->group->size; r-- > 0;) {
        part p;
        MXD_TRY(get_part(s, r, at[r], &p, err));
        bool best = p.best.id >= 0 && (m->best.id < 0 || mxd_cand_before(&p.best, &m->best));
        if (best) m->best = p.best;
        if (mxd_beats(&p.drawn, &m->drawn)) m->drawn = p.drawn;
        if (p.raw.of) mxd_tally_join(&m->raw, &p.raw);
        if (p.all.of) mxd_tally_join(&m->all, &p.all);
        if (n_of(s, r)) m->first = p.first; /* of the first rank that has some, in the end */
        m->cands.from[r] = at[r] + PART_WORDS;
        m->cands.of[r] = p.of;
        m->cands.have[r] = smaller(p.of, n_cands(s, how, r));
        m->top.from[r] = m->cands.from[r] + (size_t)n_cands(s, how, r) * CAND_WORDS;
        m->top.have[r] = smaller(p.raw.of, n_top(s, how, r));
        at[r] += row_words(s, how, r);
    }
    return MXD_OK;
}

static mxd_rc filtered(mxd_split *s, const mxd_sample_row *row, const merged *m, mxd_cand *out,
                       mxd_err *err) {
    mxd_filters f = mxd_filters_of(row->how, whole(s));
    mxd_dice dice = mxd_dice_of(row->how, row->n_tokens);
    walk w = {.s = s, .row = row, .lists = m->cands};
    const mxd_cands cands = {next, restart, &w};
    double total = mxd_tally_value(&m->all, row->how->temperature);
    mxd_drawn drawn;
    MXD_TRY(mxd_choose(&cands, &f, &dice, m->best.logit, total, &drawn, err));
    *out = drawn.c;
    return MXD_OK;
}

static mxd_rc report(const mxd_split *s, const mxd_sampling *how, merged *m, float raw,
                     mxd_sampled *out, mxd_err *err) {
    double norm = mxd_log_sum(&m->raw);
    out->logprob = mxd_logprob(raw, norm);
    for (int i = 0; i < how->n_top && i < MXD_MAX_TOP_LOGPROBS; i++) {
        mxd_cand c;
        MXD_TRY(take_best(s, &m->top, &c, err));
        if (c.id < 0) break;
        out->top_id[i] = c.id;
        out->top_logprob[i] = mxd_logprob(c.logit, norm);
        out->n_top++;
    }
    return MXD_OK;
}

static mxd_rc conclude(mxd_split *s, const mxd_sample_row *row, const float **at, mxd_sampled *out,
                       mxd_err *err) {
    const mxd_sampling *how = row->how;
    merged m;
    *out = (mxd_sampled){0};
    MXD_TRY(merge(s, how, at, &m, err));
    mxd_filters f = mxd_filters_of(how, whole(s));
    mxd_cand c = m.best;
    if (how->temperature > 0 && mxd_filters_any(&f))
        MXD_TRY(filtered(s, row, &m, &c, err));
    else if (how->temperature > 0)
        c = m.drawn.c;
    out->token = c.id < 0 ? 0 : c.id;
    return reports(how) ? report(s, how, &m, c.id < 0 ? m.first : c.raw, out, err) : MXD_OK;
}

mxd_rc mxd_sample_split(mxd_split *s, const mxd_sample_row *rows, int n_rows, mxd_sampled *out,
                        mxd_err *err) {
    size_t n_each[MXD_MAX_RANKS] = {0};
    const float *at[MXD_MAX_RANKS];
    float *end = s->words;
    MXD_ASSERT(n_rows <= s->max_rows);
    if (!n_rows) return MXD_OK;
    for (int r = 0; r < s->group->size; r++) {
        at[r] = end;
        for (int i = 0; i < n_rows; i++) n_each[r] += row_words(s, rows[i].how, r);
        end += n_each[r];
    }
    float *mine = s->words + (at[s->group->rank] - s->words);
    for (int i = 0; i < n_rows; i++) put_row(s, &rows[i], &mine);
    MXD_TRY(s->group->exchange(s->group->ctx, s->words, n_each, err));
    for (int i = 0; i < n_rows; i++) MXD_TRY(conclude(s, &rows[i], at, &out[i], err));
    return MXD_OK;
}

/* --------------------------------------------------------------------------------------- memory */

/* Floats of the first exchange, and of a further one. */
static void buffers(int size, const int *edge, int max_rows, size_t *words, size_t *more) {
    *words = *more = 0;
    for (int r = 0; r < size; r++) {
        int n = edge[r + 1] - edge[r];
        int sent = smaller(n, SENT_TOP_K) + smaller(n, MXD_MAX_TOP_LOGPROBS);
        *words += (size_t)max_rows * (PART_WORDS + (size_t)sent * CAND_WORDS);
        *more += (size_t)smaller(n, MXD_SPLIT_CHUNK) * CAND_WORDS;
    }
}

size_t mxd_split_bytes(int size, const int *edge, int max_rows) {
    size_t words, more;
    buffers(size, edge, max_rows, &words, &more);
    return (words + more) * sizeof(float) + 128;
}

mxd_rc mxd_split_init(mxd_split *s, mxd_arena *a, const mxd_group *group, const int *edge,
                      int max_rows, mxd_err *err) {
    size_t words, more;
    buffers(group->size, edge, max_rows, &words, &more);
    int first = edge[group->rank];
    *s = (mxd_split){.group = group, .edge = edge, .max_rows = max_rows};
    MXD_TRY(mxd_sampler_init(&s->mine, a, edge[group->rank + 1] - first, err));
    s->mine.first = first;
    s->words = MXD_TAKE(a, words, float);
    s->more = MXD_TAKE(a, more, float);
    if (!s->words || !s->more)
        return mxd_fail(err, MXD_E_NOMEM, "no memory to sample with %d ranks", group->size);
    return MXD_OK;
}
