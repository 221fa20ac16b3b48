/* What others may see of the coordinator's state, and the invariants of all of it. */
#include <string.h>
#include "cluster/core_private.h"

const char *mxd_node_state_name(mxd_node_state s) {
    static const char *const names[] = {"",         "joining", "ready", "serving",
                                        "draining", "suspect", "dead",  "left"};
    return (unsigned)s < MXD_COUNT(names) ? names[s] : "";
}

const mxd_node_view *mxd_coord_node(const mxd_coord *c, int i) {
    MXD_ASSERT(i >= 0 && i < MXD_MAX_NODES);
    return &c->nodes[i].v;
}

static bool degraded(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].wanted && c->nodes[i].v.stage < 0) return true;
    return false;
}

/* The weakest promise of the stages. */
static const char *determinism(const mxd_coord *c) {
    if (c->state != MXD_COORD_SERVING) return "";
    const char *all = "bit-exact";
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.stage >= 0 && !core_same(c->nodes[i].determinism, "bit-exact"))
            all = c->nodes[i].determinism;
    return all;
}

/* Failures that time or another node may cure. */
static bool curable(mxd_rc rc) {
    return rc == MXD_OK || rc == MXD_E_PEER || rc == MXD_E_TIMEOUT || rc == MXD_E_NET ||
           rc == MXD_E_STALE || rc == MXD_E_NOMEM || rc == MXD_E_BUSY || rc == MXD_E_CANCELED;
}

static bool awaits_somebody(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const core_node *n = &c->nodes[i];
        if (n->spawn_at_ms >= 0 || (n->v.state == MXD_NODE_JOINING && !n->v.link)) return true;
    }
    return false;
}

void mxd_coord_view_get(const mxd_coord *c, mxd_coord_view *out) {
    bool serves = c->state == MXD_COORD_SERVING;
    bool deserted = c->formed && !core_anybody(c);
    bool hopeless = !curable(c->why_rc) && !awaits_somebody(c);
    *out = (mxd_coord_view){.state = c->state,
                            .stuck = !serves && (hopeless || deserted),
                            .degraded = c->planned && degraded(c),
                            .draining = c->draining,
                            .planned = c->planned,
                            .epoch = c->epoch,
                            .plan = &c->plan,
                            .rc = c->why_rc,
                            .why = c->why,
                            .left_out = core_canary_why(c),
                            .determinism = determinism(c),
                            .n_epochs = c->n_epochs,
                            .n_replays = c->n_replays,
                            .n_steps = c->n_steps,
                            .n_done = c->n_done,
                            .n_failed = c->n_failed,
                            .n_cancelled = c->n_cancelled,
                            .n_prompt_tokens = c->n_prompt_tokens,
                            .n_cached_tokens = c->n_cached,
                            .n_generated_tokens = c->n_generated,
                            .running = (uint32_t)c->n_running,
                            .waiting = (uint32_t)c->n_waiting,
                            .slots = (uint32_t)c->cfg.n_slots,
                            .in_flight = (uint32_t)c->n_flights,
                            .nodes_live = (uint32_t)core_lives(c),
                            .kv_total = (uint64_t)c->cfg.n_slots * (uint64_t)c->cfg.ctx};
    for (int s = 0; s < c->cfg.n_slots; s++) {
        if (c->slots[s].request < 0) continue;
        const core_request *r = &c->requests[c->slots[s].request];
        out->kv_used += (uint64_t)(r->in.n_prompt + r->n_out);
    }
}

/* --------------------------------------------------------------------------------- invariants */

static void check_slots(const mxd_coord *c) {
    int used = 0;
    for (int s = 0; s < c->cfg.n_slots; s++) {
        MXD_ASSERT(!c->sched.seqs[s].used || c->slots[s].request >= 0);
        if (c->slots[s].request < 0) continue;
        const core_request *r = &c->requests[c->slots[s].request];
        int n = r->in.n_prompt + r->n_out;
        used++;
        MXD_ASSERT(r->state == REQUEST_RUNNING && r->slot == s);                        /* C2 */
        MXD_ASSERT(n <= c->cfg.ctx && r->n_out < r->in.max_tokens);                     /* C3 */
        MXD_ASSERT(!c->sched.seqs[s].used || c->sched.seqs[s].n_tokens == (uint32_t)n); /* C3 */
    }
    MXD_ASSERT(used == c->n_running); /* C2 */
}

static void check_flights(const mxd_coord *c) {
    MXD_ASSERT(!c->n_flights || c->state == MXD_COORD_SERVING); /* C1 */
    if (c->state != MXD_COORD_SERVING) return;
    MXD_ASSERT(c->n_flights <= c->plan.n_stages + 1); /* C6 */
    MXD_ASSERT(c->n_flights == c->sched.in_flight);
    for (int s = 0; s < c->cfg.n_slots; s++) {
        int samples = 0;
        int64_t end = -1;
        if (c->slots[s].request < 0) continue;
        uint64_t me = c->requests[c->slots[s].request].in.request;
        for (int i = 0; i < c->n_flights; i++) {
            const core_flight *f = &c->flights[(c->first_flight + i) % CORE_MAX_FLIGHTS];
            for (int k = 0; k < f->n_runs; k++) {
                if (f->runs[k].slot != s || f->runs[k].request != me) continue;
                samples += f->runs[k].sample;
                MXD_ASSERT(end < 0 || end == (int64_t)f->runs[k].pos); /* C4 */
                end = (int64_t)f->runs[k].pos + f->runs[k].n;
            }
        }
        MXD_ASSERT(samples <= 1); /* C4 */
    }
}

static void check_plan(const mxd_coord *c) {
    MXD_ASSERT(c->planned == (c->state != MXD_COORD_FORMING));
    int at = 0;
    for (int s = 0; c->planned && s < c->plan.n_stages; s++) {
        for (int r = 0; r < c->plan.stages[s].n_ranks; r++) {
            const core_node *n = &c->nodes[c->plan.stages[s].ranks[r].node];
            MXD_ASSERT(core_node_lives(n) && n->holds);    /* C5 */
            MXD_ASSERT(n->v.stage == s && n->v.rank == r); /* C5 */
        }
        MXD_ASSERT(c->plan.stages[s].layer0 == at); /* C5 */
        at = c->plan.stages[s].layer1;
    }
    MXD_ASSERT(!c->planned || at == c->cfg.n_layers); /* C5 */
}

static void check_nodes(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        if (!core_node_lives(&c->nodes[i])) continue;
        for (int k = i + 1; k < MXD_MAX_NODES; k++) {
            if (!core_node_lives(&c->nodes[k])) continue;
            MXD_ASSERT(!core_same(c->nodes[i].v.info.id, c->nodes[k].v.info.id)); /* C7 */
            MXD_ASSERT(c->nodes[i].v.link != c->nodes[k].v.link);
        }
    }
}

void mxd_coord_check(const mxd_coord *c) {
    check_slots(c);
    core_prefix_check(c);
    check_flights(c);
    check_plan(c);
    check_nodes(c);
    MXD_ASSERT(c->n_waiting <= MXD_MAX_WAITING);                     /* C6 */
    MXD_ASSERT(core_anybody(c) || (!c->n_running && !c->n_waiting)); /* C8 */
}
