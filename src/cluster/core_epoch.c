/* Plan, install, serve; and what makes a new epoch. */
#include <string.h>
#include "cluster/core_private.h"

/* ------------------------------------------------------------------------------ what is lost */

static void drop_work(mxd_coord *c) {
    c->n_flights = 0;
    c->planned = false;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        n->v.stage = -1;
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
                             .whole_only = memcmp(n->v.info.backend, "mlx", 4) == 0,
                             .must = n->spawned};
        if (who->cooled && n->memory_cap && n->memory_cap < p->free_bytes)
            p->free_bytes = n->memory_cap;
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
static bool whole(const mxd_coord *c, const mxd_plan *p, int n) {
    bool used[MXD_MAX_NODES] = {false};
    int at = 0;
    if (p->n_stages < 1 || p->n_stages > n) return false;
    for (int s = 0; s < p->n_stages; s++) {
        const mxd_plan_stage *g = &p->stages[s];
        if (g->ranks[0].node < 0 || g->ranks[0].node >= n || used[g->ranks[0].node]) return false;
        if (g->layer0 != at || g->layer1 <= at) return false;
        if (g->embed != (s == 0) || g->head != (s == p->n_stages - 1)) return false;
        used[g->ranks[0].node] = true;
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
        c->next_plan.stages[s].ranks[0].node = c->plan_index[c->next_plan.stages[s].ranks[0].node];
    return MXD_OK;
}

/* The first broken pair among neighbours of next_plan; NULL: none. */
static const core_avoid *broken(const mxd_coord *c) {
    for (int s = 1; s < c->next_plan.n_stages; s++)
        for (int i = 0; i < CORE_MAX_AVOID; i++) {
            int a = c->next_plan.stages[s - 1].ranks[0].node,
                b = c->next_plan.stages[s].ranks[0].node;
            const core_avoid *v = &c->avoid[i];
            if (v->active && v->a == (a < b ? a : b) && v->b == (a < b ? b : a)) return v;
        }
    return NULL;
}

/* As plan_over; if neighbours would have to use a broken link, tries without one of them. A plan
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

static void fill_stage(mxd_coord *c, int s) {
    const mxd_plan *p = &c->plan;
    mxd_stage *g = &c->stages[s];
    bool last = s == p->n_stages - 1;
    *g = (mxd_stage){.epoch = c->epoch,
                     .index = s,
                     .n_stages = p->n_stages,
                     .layer0 = p->stages[s].layer0,
                     .layer1 = p->stages[s].layer1,
                     .embed = p->stages[s].embed,
                     .head = p->stages[s].head,
                     .next = last ? MXD_CORE_COORDINATOR : p->stages[s + 1].ranks[0].node,
                     .prev = s ? p->stages[s - 1].ranks[0].node : MXD_CORE_COORDINATOR};
    if (last) return;
    const mxd_node_info *next = &c->nodes[g->next].v.info;
    core_text(g->next_id, sizeof g->next_id, next->id);
    core_text(g->next_address, sizeof g->next_address, next->address);
}

static void install(mxd_coord *c, int s) {
    const mxd_plan_stage *p = &c->plan.stages[s];
    core_node *n = &c->nodes[p->ranks[0].node];
    n->v.stage = s;
    n->v.planned = p->ranks[0].weight_bytes + p->ranks[0].kv_bytes + p->ranks[0].scratch_bytes;
    n->wanted = n->holds = true;
    fill_stage(c, s);
    if (!n->releases) core_node_state(c, p->ranks[0].node, MXD_NODE_JOINING);
    core_act_node(c, MXD_ACT_INSTALL, p->ranks[0].node)->stage = &c->stages[s];
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
    c->plan = c->next_plan;
    c->planned = c->formed = true;
    c->replan = WHY_NONE;
    c->rejoin = false;
    c->n_epochs++;
    c->fruitless++;
    set_state(c, MXD_COORD_INSTALLING);
    for (int s = 0; s < c->plan.n_stages; s++) install(c, s);
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
    if (rc)
        no_plan(c, rc, err.msg);
    else
        epoch_begin(c);
}

static bool same_plan(const mxd_plan *a, const mxd_plan *b) {
    if (a->n_stages != b->n_stages) return false;
    for (int s = 0; s < a->n_stages; s++)
        if (a->stages[s].ranks[0].node != b->stages[s].ranks[0].node ||
            a->stages[s].layer1 != b->stages[s].layer1)
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

static void serve(mxd_coord *c) {
    c->why_rc = MXD_OK;
    c->why[0] = 0;
    c->progress_ms = c->now_ms;
    c->n_flights = 0;
    set_state(c, MXD_COORD_SERVING);
    core_requests_restart(c);
}

void core_on_ready(mxd_coord *c, int i, const mxd_core_ready *r) {
    core_node *n = &c->nodes[i];
    if (c->state != MXD_COORD_INSTALLING || r->epoch != c->epoch || n->v.stage < 0) return;
    n->ready = true;
    n->v.used = r->bytes;
    core_text(n->determinism, sizeof n->determinism, r->determinism);
    if (!n->releases) core_node_state(c, i, MXD_NODE_SERVING);
    for (int s = 0; s < c->plan.n_stages && !MUTANT(NO_BARRIER); s++)
        if (!c->nodes[c->plan.stages[s].ranks[0].node].ready) return;
    serve(c);
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
    if (c->state != MXD_COORD_SERVING || n->epoch != c->epoch || MUTANT(FORGET_NACK)) return;
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
    float known = f->small ? c->slow_ms : c->row_ms * (float)f->n_rows;
    float expect = known > c->slow_ms ? known : c->slow_ms;
    int64_t limit = (int64_t)(3 * expect);
    if (limit < c->cfg.step_ms) limit = c->cfg.step_ms;
    if (known <= 0) limit += c->cfg.first_ms + c->cfg.row_ms * f->n_rows;
    return limit * c->patience;
}

/* Whose fault is it that the oldest step does not come back? The first stage that has not computed
 * it: it hangs in it, or the link to it does not deliver. */
static void blame(mxd_coord *c, uint64_t step) {
    int s = 0, n = c->plan.n_stages;
    for (; s < n; s++) {
        const mxd_core_beat *b = &c->nodes[c->plan.stages[s].ranks[0].node].v.beat;
        if (b->epoch != c->epoch || b->last_step < step) break;
    }
    int i = c->plan.stages[s < n ? s : n - 1].ranks[0].node;
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
    if (!c->n_flights || MUTANT(NO_STEP_DEADLINE)) return;
    const core_flight *f = core_flight_at(c, 0);
    if (c->now_ms - c->progress_ms <= deadline(c, f)) return;
    if (c->patience < CORE_MAX_PATIENCE) c->patience *= 2;
    blame(c, f->step);
    core_epoch_lost(c);
}

static void watch_install(mxd_coord *c) {
    if (c->now_ms - c->state_ms <= c->cfg.load_ms) return;
    for (int s = 0; s < c->plan.n_stages && c->state == MXD_COORD_INSTALLING; s++) {
        int i = c->plan.stages[s].ranks[0].node;
        if (!c->nodes[i].ready) core_node_dead(c, i, MXD_E_TIMEOUT, "loading takes too long");
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
    if (c->state == MXD_COORD_SERVING) watch_steps(c);
    if (c->state == MXD_COORD_INSTALLING) watch_install(c);
    watch_leaving(c);
}
