/* Plan, install, serve; and what makes a new epoch. */
#include <string.h>
#include "cluster/core_private.h"

/* ------------------------------------------------------------------------------ what is lost */

static void drop_work(mxd_coord *c) {
    c->n_flights = 0;
    c->canary_step = 0;
    c->planned = false;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        n->v.stage = n->v.rank = -1;
        n->v.planned = 0;
        n->ready = false;
        bool had = n->v.state == MXD_NODE_SERVING || n->v.state == MXD_NODE_JOINING;
        if (had && n->v.link) core_node_state(c, i, MXD_NODE_READY);
    }
    core_requests_stall(c);
}

static void set_state(mxd_coord *c, mxd_coord_state state) {
    c->state = state;
    c->state_ms = c->now_ms;
    c->changed = true;
}

/* Epochs without a token or some quiet time between them come slower and slower: a cluster that
 * cannot hold a plan shall not spend its time on making more of them. */
static int64_t epoch_gap(mxd_coord *c) {
    if (c->fruitless <= CORE_EAGER_EPOCHS) return 0;
    int doublings = c->fruitless - CORE_EAGER_EPOCHS - 1;
    int64_t gap = doublings > 8 ? CORE_EPOCH_GAP_MAX_MS : (int64_t)CORE_EPOCH_GAP_MS << doublings;
    return gap < CORE_EPOCH_GAP_MAX_MS ? gap : CORE_EPOCH_GAP_MAX_MS;
}

void core_epoch_lost(mxd_coord *c) {
    c->replan = WHY_LOSS;
    if (c->state == MXD_COORD_FORMING) return;
    if (c->state == MXD_COORD_SERVING) {
        c->unserved_ms = c->now_ms;
        if (c->now_ms - c->state_ms > CORE_COOL_WINDOW_MS) c->fruitless = 0;
    }
    drop_work(c);
    set_state(c, MXD_COORD_FORMING);
    c->not_before_ms = c->now_ms + epoch_gap(c);
}

/* ------------------------------------------------------------------------------------ planning */

typedef struct crowd { /* who may be planned with */
    bool
        cooled; /* not those that failed often lately; and no more memory than proved to be there */
    bool leaving;
    int without; /* a node to leave out; -1 */
} crowd;

static void slow_down(mxd_plan_node *p, double by) {
    p->bandwidth_bytes_per_s /= by;
    p->ops_per_s /= by;
    p->paces.near_bytes_per_s /= by;
    p->paces.float_ops_per_s /= by;
    p->paces.row_ops_per_s /= by;
    p->paces.values_per_s /= by;
    p->paces.tile_s *= by;
    p->paces.region_s *= by;
    p->paces.handoff_s *= by;
}

static int gather(mxd_coord *c, const crowd *who) {
    int k = 0;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const core_node *n = &c->nodes[i];
        if (i == who->without || !core_node_usable(c, n, who->cooled)) continue;
        if (n->releases && !who->leaving) continue;
        mxd_plan_node *p = &c->plan_nodes[k];
        *p = (mxd_plan_node){.memory_bytes = n->v.info.memory_total,
                             .free_bytes = n->v.info.memory_free,
                             .bandwidth_bytes_per_s = n->v.info.bandwidth,
                             .ops_per_s = n->v.info.ops,
                             .paces = n->v.info.paces,
                             .link_us = n->v.info.link_us,
                             .link_bytes_per_s = n->v.info.link_bandwidth,
                             .cpus = n->v.info.cpus,
                             .host_cpus = n->v.info.host_cpus,
                             .whole_only = memcmp(n->v.info.backend, "mlx", 4) == 0,
                             .home = n->spawned,
                             .must = n->spawned};
        if (who->cooled && n->memory_cap && n->memory_cap < p->free_bytes)
            p->free_bytes = n->memory_cap;
        slow_down(p, n->v.slow);
        core_text(p->host, sizeof p->host, n->v.info.host);
        core_text(p->name, sizeof p->name, n->v.info.name[0] ? n->v.info.name : n->v.info.id);
        c->plan_index[k++] = i;
    }
    return k;
}

static int index_of(const mxd_coord *c, int n, int node) {
    for (int k = 0; k < n; k++)
        if (c->plan_index[k] == node) return k;
    return -1;
}

static int gather_avoid(const mxd_coord *c, int n, mxd_plan_link links[CORE_MAX_AVOID]) {
    int m = 0;
    for (int i = 0; i < CORE_MAX_AVOID; i++) {
        if (!c->avoid[i].active) continue;
        int a = index_of(c, n, c->avoid[i].a), b = index_of(c, n, c->avoid[i].b);
        if (a >= 0 && b >= 0) links[m++] = (mxd_plan_link){.a = a, .b = b};
    }
    return m;
}

/* The planner's answer is checked like anything else: stages of known nodes, each once, that cover
 * the layers in order. */
static bool ranks_whole(const mxd_plan_stage *g, int n, bool used[MXD_MAX_NODES]) {
    double sum = 0;
    if (g->n_ranks < 1 || g->n_ranks > MXD_MAX_RANKS) return false;
    for (int r = 0; r < g->n_ranks; r++) {
        int node = g->ranks[r].node;
        if (node < 0 || node >= n || used[node]) return false;
        if (!(g->ranks[r].share >= 0 && g->ranks[r].share <= 1)) return false;
        used[node] = true;
        sum += g->ranks[r].share;
    }
    return sum > 0;
}

static bool whole(const mxd_coord *c, const mxd_plan *p, int n) {
    bool used[MXD_MAX_NODES] = {false};
    int at = 0;
    if (p->n_stages < 1 || p->n_stages > n) return false;
    for (int s = 0; s < p->n_stages; s++) {
        const mxd_plan_stage *g = &p->stages[s];
        if (!ranks_whole(g, n, used)) return false;
        if (g->layer0 != at || g->layer1 <= at) return false;
        if (g->embed != (s == 0) || g->head != (s == p->n_stages - 1)) return false;
        at = g->layer1;
    }
    return at == c->cfg.n_layers;
}

/* Plans over a crowd into next_plan, whose stages then name our nodes. */
static mxd_rc plan_over(mxd_coord *c, const crowd *who, mxd_err *err) {
    mxd_plan_link avoid[CORE_MAX_AVOID];
    int n = gather(c, who);
    if (!n) {
        core_text(err->msg, sizeof err->msg, "no worker is there");
        return MXD_E_PEER;
    }
    int n_avoid = gather_avoid(c, n, avoid);
    mxd_rc rc = c->cfg.plan(c->cfg.plan_ctx, c->plan_nodes, n, avoid, n_avoid, &c->next_plan, err);
    if (rc) return rc;
    if (!whole(c, &c->next_plan, n)) {
        core_text(err->msg, sizeof err->msg, "the planner's answer is not a plan");
        return MXD_E_INTERNAL;
    }
    for (int s = 0; s < c->next_plan.n_stages; s++)
        for (int r = 0; r < c->next_plan.stages[s].n_ranks; r++) {
            int *node = &c->next_plan.stages[s].ranks[r].node;
            *node = c->plan_index[*node];
        }
    return MXD_OK;
}

/* Do the two send to each other in this plan? Leaders to all ranks of the next stage, ranks of a
 * stage to each other. */
static bool talk(const mxd_plan *p, int a, int b) {
    int stage[2] = {-1, -1}, rank[2] = {0, 0}, node[2] = {a, b};
    for (int s = 0; s < p->n_stages; s++)
        for (int r = 0; r < p->stages[s].n_ranks; r++)
            for (int k = 0; k < 2; k++)
                if (p->stages[s].ranks[r].node == node[k]) stage[k] = s, rank[k] = r;
    if (stage[0] < 0 || stage[1] < 0) return false;
    if (stage[0] == stage[1]) return true;
    return (stage[1] == stage[0] + 1 && rank[0] == 0) || (stage[0] == stage[1] + 1 && rank[1] == 0);
}

/* The first broken pair that next_plan makes talk; NULL: none. */
static const core_avoid *broken(const mxd_coord *c) {
    for (int i = 0; i < CORE_MAX_AVOID; i++)
        if (c->avoid[i].active && talk(&c->next_plan, c->avoid[i].a, c->avoid[i].b))
            return &c->avoid[i];
    return NULL;
}

/* As plan_over; if two would have to use a broken link, tries without one of them. A plan
 * over a broken link is better than none: the link may have healed. */
static mxd_rc plan_around(mxd_coord *c, crowd who, mxd_err *err) {
    MXD_TRY(plan_over(c, &who, err));
    const core_avoid *v = broken(c);
    if (!v) return MXD_OK;
    int ends[2] = {v->b, v->a};
    for (int k = 0; k < 2; k++) {
        mxd_err other = {0};
        who.without = ends[k];
        if (!plan_over(c, &who, &other) && !broken(c)) return MXD_OK;
    }
    who.without = -1;
    return plan_over(c, &who, err);
}

/* With the healthy, else also with those that failed, else even with those that leave. */
static mxd_rc make_plan(mxd_coord *c, bool leaving, mxd_err *err) {
    mxd_rc rc = MXD_E_PEER;
    const crowd crowds[] = {{true, false, -1}, {false, false, -1}, {false, true, -1}};
    for (int k = 0; k < 2 + leaving; k++) {
        mxd_err one = {0};
        rc = plan_around(c, crowds[k], &one);
        if (!rc) return MXD_OK;
        *err = one;
    }
    return rc;
}

/* ---------------------------------------------------------------------------------- installing */

static void fill_peers(const mxd_coord *c, const mxd_plan_stage *p, mxd_stage_peer *out) {
    for (int r = 0; r < p->n_ranks; r++) {
        const mxd_node_info *info = &c->nodes[p->ranks[r].node].v.info;
        out[r] = (mxd_stage_peer){.node = p->ranks[r].node};
        core_text(out[r].id, sizeof out[r].id, info->id);
        core_text(out[r].address, sizeof out[r].address, info->address);
    }
}

static void fill_part(mxd_coord *c, int s, int r, mxd_stage *out) {
    const mxd_plan *p = &c->plan;
    const mxd_plan_stage *g = &p->stages[s];
    *out = (mxd_stage){.epoch = c->epoch,
                       .index = s,
                       .n_stages = p->n_stages,
                       .layer0 = g->layer0,
                       .layer1 = g->layer1,
                       .embed = g->embed,
                       .head = g->head,
                       .rank = r,
                       .n_ranks = g->n_ranks,
                       .prev = s ? p->stages[s - 1].ranks[0].node : MXD_CORE_COORDINATOR};
    fill_peers(c, g, out->ranks);
    for (int k = 0; k < g->n_ranks; k++) out->share[k] = g->ranks[k].share;
    if (s + 1 == p->n_stages) return;
    out->n_next = p->stages[s + 1].n_ranks;
    fill_peers(c, &p->stages[s + 1], out->next);
}

static void install(mxd_coord *c, int s, int r) {
    const mxd_plan_rank *p = &c->plan.stages[s].ranks[r];
    core_node *n = &c->nodes[p->node];
    n->v.stage = s;
    n->v.rank = r;
    n->v.planned = p->weight_bytes + p->kv_bytes + p->scratch_bytes;
    n->wanted = n->holds = true;
    n->planned_slow = n->v.slow;
    fill_part(c, s, r, &c->parts[p->node]);
    if (!n->releases) core_node_state(c, p->node, MXD_NODE_JOINING);
    core_act_node(c, MXD_ACT_INSTALL, p->node)->stage = &c->parts[p->node];
}

static int ranks_of(const mxd_plan *p) {
    int n = 0;
    for (int s = 0; s < p->n_stages; s++) n += p->stages[s].n_ranks;
    return n;
}

/* A new epoch with next_plan. */
static void epoch_begin(mxd_coord *c) {
    if (c->state == MXD_COORD_SERVING) c->unserved_ms = c->now_ms;
    drop_work(c);
    if (!MUTANT(EPOCH_STANDS) || !c->formed)
        c->epoch = (c->epoch > c->epoch_seen ? c->epoch : c->epoch_seen) + 1;
    c->epoch_seen = c->epoch;
    mxd_coord_action *a = core_act(c, MXD_ACT_JOURNAL);
    a->journal = (mxd_core_journal){.kind = MXD_JOURNAL_EPOCH, .epoch = c->epoch};
    bool fewer = c->formed && ranks_of(&c->next_plan) < ranks_of(&c->plan);
    if (fewer && c->patience < CORE_FEWER_PATIENCE) c->patience = CORE_FEWER_PATIENCE;
    c->plan = c->next_plan;
    c->planned = c->formed = true;
    c->replan = WHY_NONE;
    c->rejoin = false;
    c->n_epochs++;
    c->fruitless++;
    set_state(c, MXD_COORD_INSTALLING);
    for (int s = 0; s < c->plan.n_stages; s++)
        for (int r = 0; r < c->plan.stages[s].n_ranks; r++) install(c, s, r);
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        if (n->v.stage >= 0 || !n->v.link) continue;
        if (n->holds) core_act_node(c, MXD_ACT_UNINSTALL, i);
        n->holds = false;
        if (n->releases) core_node_release(c, i);
    }
}

static void no_plan(mxd_coord *c, mxd_rc rc, const char *text) {
    c->why_rc = rc;
    core_text(c->why, sizeof c->why, text);
    c->retry_ms = c->now_ms + CORE_RETRY_MS;
}

/* Before the first plan: are those here that we know of? */
static bool gathered(const mxd_coord *c) {
    if (c->formed) return true;
    if (core_lives(c) < c->cfg.min_nodes) return false;
    if (c->start_ms >= 0 && c->now_ms - c->start_ms > c->cfg.form_ms) return true;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const core_node *n = &c->nodes[i];
        if (n->spawned && n->v.state != MXD_NODE_LEFT && !core_node_lives(n)) return false;
    }
    return true;
}

static void form(mxd_coord *c) {
    if (!c->replan && !c->rejoin && c->now_ms < c->retry_ms) return;
    if (c->now_ms < c->not_before_ms || !gathered(c)) return;
    mxd_err err = {0};
    c->replan = WHY_NONE;
    c->rejoin = false;
    mxd_rc rc = make_plan(c, true, &err);
    if (!rc) {
        epoch_begin(c);
    } else if (c->probe >= 0) {
        c->replan = WHY_LOSS;
        if (core_canary_next(c)) return;
        no_plan(c, MXD_E_FORMAT,
                "the nodes together compute other numbers than this model's first plan did, and "
                "none of them can be done without: compare their model files and programs");
        c->not_before_ms = c->now_ms + CORE_CANARY_PAUSE_MS;
    } else if (core_canary_why(c)[0]) {
        no_plan(c, MXD_E_FORMAT, c->canary_why);
    } else {
        no_plan(c, rc, err.msg);
    }
}

static bool same_ranks(const mxd_plan_stage *a, const mxd_plan_stage *b) {
    if (a->n_ranks != b->n_ranks) return false;
    for (int r = 0; r < a->n_ranks; r++)
        if (a->ranks[r].node != b->ranks[r].node || a->ranks[r].share != b->ranks[r].share)
            return false;
    return true;
}

static bool same_plan(const mxd_plan *a, const mxd_plan *b) {
    if (a->n_stages != b->n_stages) return false;
    for (int s = 0; s < a->n_stages; s++)
        if (!same_ranks(&a->stages[s], &b->stages[s]) || a->stages[s].layer1 != b->stages[s].layer1)
            return false;
    return true;
}

/* Somebody leaves: at once, if the others can carry the model. Somebody came: when nothing runs. */
static void improve(mxd_coord *c) {
    mxd_err err = {0};
    bool leave = c->replan == WHY_LEAVE;
    bool join = c->rejoin && !c->n_running && c->state == MXD_COORD_SERVING && !MUTANT(NO_REJOIN);
    if (!leave && !join) return;
    c->replan = WHY_NONE;
    if (join) c->rejoin = false;
    if (make_plan(c, false, &err)) return;
    if (!same_plan(&c->plan, &c->next_plan)) epoch_begin(c);
}

void core_epoch_settle(mxd_coord *c) {
    if (c->state == MXD_COORD_FORMING)
        form(c);
    else
        improve(c);
}

/* ------------------------------------------------------------------------------------ answers */

void core_epoch_serve(mxd_coord *c) {
    c->why_rc = MXD_OK;
    c->why[0] = 0;
    c->progress_ms = c->now_ms;
    c->n_flights = 0;
    set_state(c, MXD_COORD_SERVING);
    core_requests_restart(c);
}

void core_epoch_fruit(mxd_coord *c) {
    c->fruitless = 0;
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.stage >= 0) c->nodes[i].worked = true;
}

void core_on_ready(mxd_coord *c, int i, const mxd_core_ready *r) {
    core_node *n = &c->nodes[i];
    if (c->state != MXD_COORD_INSTALLING || n->v.stage < 0) return;
    if (r->epoch != c->epoch && !MUTANT(OLD_READY)) return;
    n->ready = true;
    n->v.used = r->bytes;
    core_text(n->determinism, sizeof n->determinism, r->determinism);
    if (!n->releases) core_node_state(c, i, MXD_NODE_SERVING);
    for (int k = 0; k < MXD_MAX_NODES && !MUTANT(NO_BARRIER); k++)
        if (c->nodes[k].v.stage >= 0 && !c->nodes[k].ready) return;
    if (!core_canary_begin(c)) core_epoch_serve(c);
}

void core_on_failed(mxd_coord *c, int i, const mxd_core_failed *f) {
    core_node *n = &c->nodes[i];
    if (c->state != MXD_COORD_INSTALLING || f->epoch != c->epoch || n->v.stage < 0) return;
    if (f->rc == MXD_E_NOMEM || f->rc == MXD_E_NOFIT)
        n->memory_cap = n->v.planned / 4 * 3 + 1; /* it had promised that much */
    core_node_failed(c, i);
    core_node_rest(c, i);
    core_epoch_lost(c);
    no_plan(c, f->rc ? f->rc : MXD_E_INTERNAL, f->text);
}

void core_on_nack(mxd_coord *c, int i, const mxd_core_nack *n) {
    bool computes = c->state == MXD_COORD_SERVING || c->canary_step;
    if (!computes || n->epoch != c->epoch || MUTANT(FORGET_NACK)) return;
    if (c->nodes[i].v.stage < 0) return;
    if (n->rc != MXD_E_STALE) core_node_failed(c, i);
    core_epoch_lost(c);
}

void core_on_neighbour(mxd_coord *c, int i, const mxd_core_neighbour *n) {
    if (c->state == MXD_COORD_FORMING || n->epoch != c->epoch || c->nodes[i].v.stage < 0) return;
    if (n->node < 0 || n->node >= MXD_MAX_NODES || c->nodes[n->node].v.stage < 0) return;
    core_avoid_pair(c, i, n->node);
    core_epoch_lost(c);
}

/* --------------------------------------------------------------------------------------- time */

/* How long the oldest step may take from when it became the oldest. */
static int64_t deadline(const mxd_coord *c, const core_flight *f) {
    int64_t expect = core_pace_expect(c, f->n_rows), limit = 3 * expect;
    if (limit < c->cfg.step_ms) limit = c->cfg.step_ms;
    if (expect < 0) limit += c->cfg.first_ms + c->cfg.row_ms * f->n_rows;
    return limit * c->patience;
}

/* Has the node computed the step? */
static bool computed(const mxd_coord *c, int node, uint64_t step) {
    const mxd_core_beat *b = &c->nodes[node].v.beat;
    return b->epoch == c->epoch && b->last_step >= step;
}

static bool holds(const mxd_plan_stage *g, int node) {
    for (int r = 0; r < g->n_ranks; r++)
        if (g->ranks[r].node == node) return true;
    return false;
}

/* The rank of a stage that keeps it from computing the step: one that waits for no other. When all
 * wait, a link between two of them does not deliver: *other is its far end. -1: all have computed
 * it. */
static int late_rank(const mxd_coord *c, const mxd_plan_stage *g, uint64_t step, int *other) {
    int late = -1;
    *other = -1;
    for (int r = 0; r < g->n_ranks; r++) {
        int i = g->ranks[r].node;
        if (computed(c, i, step)) continue;
        int waits = MUTANT(BLAME_WAITING) ? 0 : c->nodes[i].v.beat.waits;
        if (!waits || waits - 1 == i || !holds(g, waits - 1)) { /* a peer may say anything */
            *other = -1;
            return i;
        }
        late = i;
        *other = waits - 1;
    }
    return late;
}

/* Whose fault is it that the oldest step does not come back? The first stage that has not computed
 * it: it hangs in it, or the link to it does not deliver. */
static void blame(mxd_coord *c, uint64_t step) {
    int s = 0, n = c->plan.n_stages, i = -1, other = -1;
    for (; s < n && (i = late_rank(c, &c->plan.stages[s], step, &other)) < 0;) s++;
    if (other >= 0 && other < MXD_MAX_NODES && c->nodes[other].v.stage >= 0) {
        core_avoid_pair(c, i, other);
        return;
    }
    if (i < 0) i = c->plan.stages[n - 1].ranks[0].node;
    core_node *node = &c->nodes[i];
    bool hangs = s < n && node->v.beat.step_age_ms >= c->cfg.step_ms / 2;
    if (hangs && node->spawned) {
        core_node_dead(c, i, MXD_E_TIMEOUT, "its step hangs");
        return;
    }
    node->stuck = hangs;
    if (!hangs && s > 0 && s < n)
        core_avoid_pair(c, c->plan.stages[s - 1].ranks[0].node, i);
    else
        core_node_failed(c, i);
}

static void watch_steps(mxd_coord *c) {
    if ((!c->n_flights && !c->canary_step) || MUTANT(NO_STEP_DEADLINE)) return;
    const core_flight *f = core_flight_at(c, 0);
    if (c->now_ms - c->progress_ms <= deadline(c, f)) return;
    if (c->patience < CORE_MAX_PATIENCE) c->patience *= 2;
    blame(c, f->step);
    core_epoch_lost(c);
}

/* Weights may come over a slow network: what counts is that they come. */
static void watch_install(mxd_coord *c) {
    if (c->now_ms - c->state_ms <= c->cfg.load_ms) return;
    for (int i = 0; i < MXD_MAX_NODES && c->state == MXD_COORD_INSTALLING; i++) {
        if (c->nodes[i].v.stage < 0 || c->nodes[i].ready) continue;
        if (c->now_ms - c->nodes[i].loaded_ms <= c->cfg.load_ms) continue;
        core_node_dead(c, i, MXD_E_TIMEOUT, "loading takes too long");
    }
}

/* Those that could not be replaced when they asked may go once nothing runs, or at their time. */
static void watch_leaving(mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        if (!n->releases) continue;
        bool idle = !c->n_running && !c->n_waiting;
        if (n->v.stage < 0 || idle || c->now_ms > n->leave_by_ms) core_node_release(c, i);
    }
}

void core_epoch_tick(mxd_coord *c) {
    watch_steps(c);
    if (c->state == MXD_COORD_INSTALLING) watch_install(c);
    watch_leaving(c);
    core_drift_tick(c);
}
