/* Nodes that have become slower, or faster, than the plan took them for: heat, other programs, a
 * quota. Every stage says what a row takes it (mxd_core_beat.row_ms), the plan what it should. What
 * all stages share is the planner's error; what one has beyond the others is its own. When that
 * lasts, the plan is made anew with speeds divided by it, as soon as nothing runs. */
#include "cluster/core_private.h"

enum {
    BEATS_MS = 2 * MXD_HEARTBEAT_MS,
    SLOWER_MS = 5000,
    FASTER_MS = 60000,
    FORGET_MS = 300000, /* without a part nothing is seen of a node: then it is taken for healed */
};

static const double least = 2, most = 64, /* so many times slower than the others */
    least_ms = 1;                         /* and so much */

static int leader(const mxd_coord *c, int s) { return c->plan.stages[s].ranks[0].node; }

/* What a stage's row takes, over what the plan says. 0: not known. A node that rests between rows
 * may go as fast as without its quota. */
static double ratio(const mxd_coord *c, int s) {
    const mxd_plan_stage *g = &c->plan.stages[s];
    const mxd_node_view *v = &c->nodes[leader(c, s)].v;
    if (g->n_ranks > 1 || v->beat.epoch != c->epoch) return 0; /* ranks wait for each other */
    if (!(g->decode_ms > 0) || !(v->beat.row_ms > 0)) return 0;
    double r = (double)v->beat.row_ms / g->decode_ms, duty = v->info.paces.duty;
    if (!(duty > 0) || duty >= 1 || r >= 1) return r;
    return r > duty ? 1 : r / duty;
}

/* Fills slow [n_stages]: how much slower each stage's node is than its rates, by what the plan took
 * it for and what is seen now. False: it is not known of all. */
static bool measure(const mxd_coord *c, double *slow) {
    double base = 0;
    for (int s = 0; s < c->plan.n_stages; s++) {
        double r = ratio(c, s);
        if (r <= 0) return false;
        slow[s] = r * c->nodes[leader(c, s)].planned_slow;
        if (!s || slow[s] < base) base = slow[s];
    }
    for (int s = 0; s < c->plan.n_stages; s++) {
        slow[s] /= base;
        if (slow[s] > most) slow[s] = most;
    }
    return true;
}

/* 1: slower than it is taken for; -1: faster; 0: neither, or by too little to matter. */
static int drift(const core_node *n, double slow) {
    double more = slow / n->v.slow, ms = n->v.beat.row_ms;
    if (more > least && ms - ms / more > least_ms) return 1;
    return more < 1 / least && ms / more - ms > least_ms ? -1 : 0;
}

/* Has it been so for long enough? Only time in which rows come counts: what is seen of a node that
 * idles is old. Who was slow is trusted again by halves and only after a minute: with little to do
 * it may look faster than it is. */
static bool lasts(mxd_coord *c, core_node *n, double slow) {
    bool works = n->v.beat.last_step != n->drift_step;
    int now = drift(n, slow);
    int64_t limit = now > 0 ? SLOWER_MS : FASTER_MS;
    n->drift_step = n->v.beat.last_step;
    if (!now || now != n->drifts) n->drift_ms = 0;
    n->drifts = now;
    if (now && works) n->drift_ms += c->now_ms - c->drift_looked_ms;
    if (!now || n->drift_ms < limit) return false;
    n->drift_ms = 0;
    n->v.slow = now < 0 && slow < n->v.slow / 2 ? n->v.slow / 2 : slow;
    return true;
}

static void forget(mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        if (n->v.stage >= 0) n->served_ms = c->now_ms;
        if (n->v.slow <= 1 || c->now_ms - n->served_ms < FORGET_MS) continue;
        n->v.slow = 1;
        c->rejoin = true;
    }
}

/* Called when the beats of about BEATS_MS are there. */
static void look(mxd_coord *c) {
    double slow[MXD_MAX_NODES];
    bool any = false;
    forget(c);
    if (c->state != MXD_COORD_SERVING || c->plan.n_stages < 2 || !measure(c, slow)) return;
    for (int s = 0; s < c->plan.n_stages; s++) any |= lasts(c, &c->nodes[leader(c, s)], slow[s]);
    if (any) c->rejoin = c->changed = true;
}

void core_drift_tick(mxd_coord *c) {
    if (c->now_ms - c->drift_looked_ms < BEATS_MS) return;
    look(c);
    c->drift_looked_ms = c->now_ms;
}
