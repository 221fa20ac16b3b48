/* predict.c - how fast a plan will be. */
#include <math.h>
#include "plan/explain.h"

/* Of times [n] of the stages: the most that one machine has to do, which its stages share. */
static double busiest_host(const mxd_plan_task *t, const mxd_plan_cut *c, const double *s) {
    double most = 0;
    for (int i = 0; i < t->n_nodes; i++) {
        double sum = 0;
        for (int k = 0; k < c->n; k++)
            sum += s[k] * fmin(1, mxd_plan_crowd(t, c->group[k].node, c->group[k].n, i));
        most = fmax(most, sum);
    }
    return most;
}

/* Part of the time that a group works at most: of its ranks the one counts that is stopped most. */
static double duty_of(const mxd_plan_task *t, const mxd_plan_group *g) {
    double least = 1;
    for (int r = 0; r < g->n; r++)
        if (t->paces[g->node[r]].duty > 0) least = fmin(least, t->paces[g->node[r]].duty);
    return least;
}

static double pause_of(const mxd_plan_task *t, const mxd_plan_group *g) {
    double most = 0;
    for (int r = 0; r < g->n; r++) most = fmax(most, t->paces[g->node[r]].pause_s);
    return most;
}

/* Of `s` seconds of a group's work at the rates that its quota lets through, what they take when it
 * rested before: the quota strikes only when a period's part is used up, and one pause is saved. */
static double rested(const mxd_plan_task *t, const mxd_plan_group *g, double s) {
    return fmax(s * duty_of(t, g), s - pause_of(t, g));
}

typedef struct trip { /* of one micro-batch through all stages */
    double sum;       /* stages and links */
    double longest;   /* stage, host or link: what the next micro-batch waits for */
    int slowest;      /* stage */
} trip;

/* quick: as long as no quota strikes. */
static trip times(const mxd_plan_task *t, const mxd_plan_cut *c, const mxd_plan_rows *rows,
                  bool quick) {
    double s[MXD_MAX_NODES];
    trip r = {0};
    for (int i = 0; i < c->n; i++) {
        s[i] = mxd_plan_stage_s(t, &c->group[i], c->at[i], c->at[i + 1], rows);
        if (quick) s[i] *= duty_of(t, &c->group[i]);
        r.sum += s[i];
        r.longest = fmax(r.longest, s[i]);
        if (s[i] > s[r.slowest]) r.slowest = i;
        if (!i) continue;
        double hop = mxd_plan_hop_s(t, &c->group[i - 1], &c->group[i], rows->rows);
        double latency = mxd_plan_hop_s(t, &c->group[i - 1], &c->group[i], 0);
        r.sum += hop;
        r.longest = fmax(r.longest, hop - latency);
    }
    r.longest = fmax(r.longest, busiest_host(t, c, s));
    return r;
}

/* To the first stage, and from the last one back. */
static double ends(const mxd_plan_task *t, const mxd_plan_cut *c) {
    const mxd_plan_group *first = &c->group[0], *last = &c->group[c->n - 1];
    double known = t->enter_s[first->node[0]] + t->enter_s[last->node[0]];
    if (known > 0 || c->n == 1) return known + t->serve_s;
    return t->serve_s +
           mxd_plan_hop_s(t, last, first, 1); /* the coordinator is somewhere among them */
}

double mxd_plan_all_streams(mxd_plan_task *t, const mxd_plan_cut *c) {
    mxd_plan_rows *rows = &t->batch;
    int turns = c->n + 1 < t->parallel ? c->n + 1 : t->parallel;
    if (c->n == 1) turns = 1; /* nothing overlaps: the more rows at a time the better */
    double each = (double)t->parallel / turns;
    mxd_plan_rows was = *rows;
    mxd_plan_rows_fill(t, rows, each, each, t->prompt, false);
    trip r = times(t, c, rows, false);
    *rows = was;
    return t->parallel / fmax(turns * r.longest, r.sum + ends(t, c));
}

/* Rows of a prompt that go together: with several stages fewer, so that all of them work
 * (runtime/sched.h). */
static int chunk_of(const mxd_plan_task *t, int stages) {
    int fill = (t->prompt - 1) / (4 * stages) + 1;
    if (stages == 1 || fill > t->chunk) return t->chunk;
    return fill > 64 ? fill : t->chunk < 64 ? t->chunk : 64;
}

/* Every chunk goes through all stages, and waits for the longest of the one before; or, over slow
 * links, until one of the stages + 1 that may be under way is back. */
static double chunks_s(const mxd_plan_task *t, const mxd_plan_cut *c, const trip *r,
                       double chunks) {
    double trip_s = r->sum + ends(t, c), next = fmax(r->longest, trip_s / (c->n + 1));
    return trip_s + (chunks - 1) * next;
}

static double prefill_rate(mxd_plan_task *t, const mxd_plan_cut *c) {
    int chunk = chunk_of(t, c->n);
    double chunks = (double)t->prompt / chunk;
    mxd_plan_rows_fill(t, &t->prefill, chunk, 1 / chunks, t->prompt / 2.0, true);
    trip steady = times(t, c, &t->prefill, false), quick = times(t, c, &t->prefill, true);
    double pause = pause_of(t, &c->group[steady.slowest]);
    return t->prompt /
           fmax(chunks_s(t, c, &quick, chunks), chunks_s(t, c, &steady, chunks) - pause);
}

static void fill_stage(const mxd_plan_task *t, const mxd_plan_cut *c, int i, mxd_plan *p,
                       mxd_plan_stage_cost *x) {
    const mxd_plan_group *g = &c->group[i];
    mxd_plan_stage *s = &p->stages[i];
    MXD_ASSERT(mxd_plan_stage_of(t, g, c->at[i], c->at[i + 1], x));
    *s = (mxd_plan_stage){.layer0 = c->at[i],
                          .layer1 = c->at[i + 1],
                          .embed = c->at[i] == 0,
                          .head = c->at[i + 1] == t->model->n_layers,
                          .n_ranks = g->n,
                          .decode_ms = 1e3 * x->decode_s,
                          .exchange_ms = 1e3 * x->exchange_s};
    for (int r = 0; r < g->n; r++)
        s->ranks[r] = (mxd_plan_rank){.node = g->node[r],
                                      .share = x->held[r].share,
                                      .weight_bytes = (uint64_t)x->held[r].weights,
                                      .kv_bytes = (uint64_t)x->held[r].kv,
                                      .scratch_bytes = (uint64_t)x->held[r].scratch};
}

void mxd_plan_fill(mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p) {
    double reading = 0, computing = 0, links = ends(t, c), decode = links, busiest = 0;
    p->n_stages = c->n;
    p->prompt = t->prompt;
    for (int i = 0; i < c->n; i++) {
        mxd_plan_stage_cost x;
        fill_stage(t, c, i, p, &x);
        if (p->stages[i].decode_ms > p->stages[p->bottleneck].decode_ms) p->bottleneck = i;
        double hop = i ? mxd_plan_hop_s(t, &c->group[i - 1], &c->group[i], 1) : 0;
        double waits = i ? t->quota_s[c->group[i - 1].node[0]][c->group[i].node[0]] : 0;
        reading += x.reading_s;
        computing += x.computing_s;
        links += x.exchange_s + hop;
        decode += hop - waits + rested(t, &c->group[i], x.decode_s + waits);
        busiest = fmax(busiest, x.decode_s + waits); /* its quota is used up by every token */
    }
    decode = fmax(decode, busiest);
    p->limit = links > fmax(reading, computing) ? MXD_LIMIT_LINK
               : computing > reading            ? MXD_LIMIT_ARITHMETIC
                                                : MXD_LIMIT_BANDWIDTH;
    p->decode_tokens_per_s = 1 / decode;
    p->prefill_tokens_per_s = prefill_rate(t, c);
    p->all_tokens_per_s = mxd_plan_all_streams(t, c);
}
