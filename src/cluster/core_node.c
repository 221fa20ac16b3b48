/* Membership: who lives, who is trusted with a stage, who is started again. */
#include <string.h>
#include "cluster/core_private.h"

int core_node_of(const mxd_coord *c, uint64_t link) {
    for (int i = 0; link && i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.link == link) return i;
    return -1;
}

bool core_node_lives(const core_node *n) { return n->v.link && n->v.state != MXD_NODE_SUSPECT; }

/* cooled: nodes that failed often lately do not count. */
bool core_node_usable(const mxd_coord *c, const core_node *n, bool cooled) {
    if (!core_node_lives(n) || n->stuck || !core_canary_allows(c, n)) return false;
    return !cooled || c->now_ms >= n->cool_until_ms;
}

/* A node that had a part and was lost is expected: cables, switches and machines come back. */
static bool awaited(const mxd_coord *c, const core_node *n) {
    if (n->v.link || n->spawn_at_ms >= 0 || n->v.state == MXD_NODE_JOINING) return true;
    return n->wanted && n->v.state == MXD_NODE_DEAD &&
           c->now_ms - n->v.since_ms <= c->cfg.recovery_ms;
}

bool core_anybody(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (awaited(c, &c->nodes[i])) return true;
    return false;
}

int core_lives(const mxd_coord *c) {
    int n = 0;
    for (int i = 0; i < MXD_MAX_NODES; i++) n += core_node_lives(&c->nodes[i]);
    return n;
}

void core_node_state(mxd_coord *c, int i, mxd_node_state state) {
    mxd_node_view *v = &c->nodes[i].v;
    if (v->state == state) return;
    v->state = state;
    v->since_ms = c->now_ms;
    c->changed = true;
}

/* ------------------------------------------------------------------------------- broken pairs */

void core_avoid_pair(mxd_coord *c, int a, int b) {
    if (a < 0 || b < 0 || a == b) return;
    core_avoid *free = &c->avoid[0];
    int lo = a < b ? a : b, hi = a < b ? b : a;
    for (int i = 0; i < CORE_MAX_AVOID; i++) {
        core_avoid *v = &c->avoid[i];
        if (v->ms && v->a == lo && v->b == hi) {
            free = v;
            break;
        }
        if (v->until_ms < free->until_ms) free = v;
    }
    bool again =
        free->ms && free->a == lo && free->b == hi && c->now_ms - free->until_ms < CORE_COOL_MAX_MS;
    int64_t ms = again ? free->ms * 2 : CORE_AVOID_MS;
    if (ms > CORE_COOL_MAX_MS) ms = CORE_COOL_MAX_MS;
    *free = (core_avoid){.a = lo, .b = hi, .ms = ms, .until_ms = c->now_ms + ms, .active = true};
}

void core_avoid_forget(mxd_coord *c, int node) {
    for (int i = 0; i < CORE_MAX_AVOID; i++)
        if (c->avoid[i].a == node || c->avoid[i].b == node) c->avoid[i] = (core_avoid){0};
}

void core_node_clear(mxd_coord *c, int i) {
    c->nodes[i] = (core_node){.v = {.stage = -1, .rank = -1, .slow = 1}, .spawn_at_ms = -1};
    core_avoid_forget(c, i);
}

/* ------------------------------------------------------------------------- failures and death */

void core_node_rest(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    n->cool_ms = n->cool_ms ? n->cool_ms * 2 : CORE_COOL_MIN_MS;
    if (n->cool_ms > CORE_COOL_MAX_MS) n->cool_ms = CORE_COOL_MAX_MS;
    n->cool_until_ms = c->now_ms + n->cool_ms;
    n->cooling = true;
}

/* From the third failure within 10 s a node rests, twice as long each time. */
void core_node_failed(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    n->v.n_failures++;
    bool often = n->v.n_failures >= CORE_COOL_FAILURES;
    for (int k = 0; k < CORE_COOL_FAILURES - 1; k++)
        if (c->now_ms - n->failed_ms[k] > CORE_COOL_WINDOW_MS) often = false;
    if (n->v.n_failures > 1 && c->now_ms - n->failed_ms[0] > CORE_COOL_MAX_MS) n->cool_ms = 0;
    for (int k = CORE_COOL_FAILURES - 2; k > 0; k--) n->failed_ms[k] = n->failed_ms[k - 1];
    n->failed_ms[0] = c->now_ms;
    if (often) core_node_rest(c, i);
}

/* At once if it was of use, or lived long; else later each time: it may be unable to work. */
static void schedule_spawn(mxd_coord *c, core_node *n) {
    if (!n->spawned || MUTANT(NO_RESPAWN)) return;
    if (n->worked || c->now_ms - n->spawned_ms >= CORE_SPAWN_SHORT_MS)
        n->spawn_gap_ms = 0;
    else
        n->spawn_gap_ms = n->spawn_gap_ms ? n->spawn_gap_ms * 2 : CORE_SPAWN_MIN_MS;
    if (n->spawn_gap_ms > CORE_SPAWN_MAX_MS) n->spawn_gap_ms = CORE_SPAWN_MAX_MS;
    n->spawn_at_ms = c->now_ms + n->spawn_gap_ms;
}

/* The node has no link any more; its part of the plan is gone with it. */
static void unlink_node(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    if (n->v.stage >= 0) core_epoch_lost(c);
    n->v.link = 0;
    n->ready = n->holds = n->stuck = n->releases = false;
    n->v.used = 0;
    c->changed = true;
}

void core_node_dead(mxd_coord *c, int i, mxd_rc rc, const char *text) {
    core_node *n = &c->nodes[i];
    if (n->v.link || n->spawned) {
        mxd_coord_action *a = core_act_node(c, MXD_ACT_DROP, i);
        a->rc = rc;
        a->text = text;
    }
    unlink_node(c, i);
    core_node_failed(c, i);
    core_node_state(c, i, MXD_NODE_DEAD);
    schedule_spawn(c, n);
}

/* Lets a node go that asked for it. */
void core_node_release(mxd_coord *c, int i) {
    if (c->nodes[i].v.link) {
        mxd_coord_action *a = core_act_node(c, MXD_ACT_DROP, i);
        a->rc = MXD_OK;
        a->text = "it left";
    }
    unlink_node(c, i);
    c->nodes[i].wanted = false;
    c->nodes[i].spawn_at_ms = -1;
    core_node_state(c, i, MXD_NODE_LEFT);
}

void core_on_gone(mxd_coord *c, uint64_t link) {
    int i = core_node_of(c, link);
    if (i < 0) return;
    bool leaving = c->nodes[i].releases;
    c->nodes[i].v.link = 0;
    if (leaving)
        core_node_release(c, i);
    else
        core_node_dead(c, i, MXD_E_TIMEOUT, "its link is down");
}

void core_on_exited(mxd_coord *c, const mxd_core_exited *e) {
    if (e->node < 0 || e->node >= MXD_MAX_NODES) return;
    core_node *n = &c->nodes[e->node];
    if (!n->spawned || n->spawn != e->spawn || n->spawn_at_ms >= 0) return;
    if (n->v.state == MXD_NODE_LEFT) return;
    if (!n->v.link && c->state == MXD_COORD_FORMING) {
        c->why_rc = MXD_E_PEER;
        core_text(c->why, sizeof c->why,
                  "a local worker ends before it says hello; see its messages in the log");
    }
    if (n->releases)
        core_node_release(c, e->node);
    else
        core_node_dead(c, e->node, MXD_E_TIMEOUT, "its process ended");
}

/* -------------------------------------------------------------------------------------- hello */

static void refuse(mxd_coord *c, uint64_t link, mxd_rc rc, const char *text) {
    mxd_coord_action *a = core_act(c, MXD_ACT_DROP);
    a->link = link;
    a->rc = rc;
    a->text = text;
}

static int find_id(const mxd_coord *c, const char *id) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.state != MXD_NODE_NONE && core_same(c->nodes[i].v.info.id, id)) return i;
    return -1;
}

/* An entry for a new id: a free one, else the one that has been gone longest. */
static int free_entry(const mxd_coord *c) {
    int best = -1;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const core_node *n = &c->nodes[i];
        if (n->v.state == MXD_NODE_NONE) return i;
        if (n->spawned || (n->v.state != MXD_NODE_DEAD && n->v.state != MXD_NODE_LEFT)) continue;
        if (best < 0 || n->v.since_ms < c->nodes[best].v.since_ms) best = i;
    }
    return best;
}

static bool terminated(const char *s, size_t cap) {
    for (size_t i = 0; i < cap; i++)
        if (!s[i]) return true;
    return false;
}

static bool sane(const mxd_node_info *h) {
    return h->id[0] && terminated(h->id, sizeof h->id) && terminated(h->name, sizeof h->name) &&
           terminated(h->host, sizeof h->host) && terminated(h->backend, sizeof h->backend) &&
           terminated(h->address, sizeof h->address) && h->epoch < MXD_CORE_MAX_EPOCH / 2;
}

static void welcome(mxd_coord *c, int i, uint64_t link, const mxd_node_info *info) {
    core_node *n = &c->nodes[i];
    if (n->v.info.incarnation != info->incarnation) {
        n->memory_cap = 0;
        core_canary_new_life(n);
        n->v.slow = 1;
        core_avoid_forget(c, i);
    }
    n->v.info = *info;
    n->v.info.local |= n->spawned;
    n->v.link = link;
    n->v.beat = (mxd_core_beat){0};
    n->last_beat_ms = c->now_ms;
    n->spawn_at_ms = -1;
    n->releases = n->stuck = false;
    n->v.stage = n->v.rank = -1;
    if (info->epoch > c->epoch_seen) c->epoch_seen = info->epoch;
    core_node_state(c, i, MXD_NODE_READY);
    core_act_node(c, MXD_ACT_WELCOME, i);
    c->rejoin = c->changed = true;
}

void core_on_hello(mxd_coord *c, uint64_t link, const mxd_node_info *info) {
    if (!sane(info)) {
        refuse(c, link, MXD_E_FORMAT, "its hello makes no sense");
        return;
    }
    if (core_node_of(c, link) >= 0) return; /* said twice */
    int i = MUTANT(TWO_LIVES) ? -1 : find_id(c, info->id);
    bool same_life = i >= 0 && c->nodes[i].v.info.incarnation == info->incarnation;
    if (i >= 0 && core_node_lives(&c->nodes[i]) && !same_life) {
        refuse(c, link, MXD_E_BUSY, "a node with this id lives; give this one another id");
        return;
    }
    if (i < 0 && (i = free_entry(c)) >= 0) { core_node_clear(c, i); }
    if (i < 0) {
        refuse(c, link, MXD_E_TOOBIG, "the cluster has as many nodes as it can have");
        return;
    }
    if (c->nodes[i].v.link) refuse(c, c->nodes[i].v.link, MXD_E_STALE, "it connected again");
    if (c->nodes[i].v.link) unlink_node(c, i);
    welcome(c, i, link, info);
}

/* --------------------------------------------------------------------------- signs of life */

void core_on_beat(mxd_coord *c, int i, const mxd_core_beat *beat) {
    core_node *n = &c->nodes[i];
    /* A smaller age than before: the step that hung is over. */
    if (n->stuck && beat->step_age_ms < n->v.beat.step_age_ms) {
        n->stuck = false;
        c->rejoin = true;
    }
    if (beat->load_done > n->v.beat.load_done) n->loaded_ms = c->now_ms;
    n->v.beat = *beat;
    if (n->v.state != MXD_NODE_SUSPECT) return;
    core_node_state(c, i, n->releases ? MXD_NODE_DRAINING : MXD_NODE_READY);
    c->rejoin = true;
}

void core_on_leave(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    if (n->releases) return;
    n->releases = true;
    n->leave_by_ms = c->now_ms + c->cfg.leave_ms;
    core_node_state(c, i, MXD_NODE_DRAINING);
    if (n->v.stage < 0)
        core_node_release(c, i);
    else if (c->replan < WHY_LEAVE)
        c->replan = WHY_LEAVE;
}

/* --------------------------------------------------------------------------------------- time */

static void spawn(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    n->spawn++;
    n->worked = false;
    n->spawned_ms = c->now_ms;
    n->spawn_at_ms = -1;
    core_node_state(c, i, MXD_NODE_JOINING);
    mxd_coord_action *a = core_act_node(c, MXD_ACT_SPAWN, i);
    a->spawn = n->spawn;
    a->text = n->v.info.id;
}

/* Silence: first out of the plan, then out of the cluster. A silent process of our own is ended
 * early when nobody can do its work: a new one is there sooner. */
static void listen_to(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    int64_t silence = c->now_ms - n->last_beat_ms;
    if (n->v.state != MXD_NODE_SUSPECT && silence > c->cfg.dead_ms && !MUTANT(NO_SILENCE)) {
        core_node_failed(c, i);
        core_node_state(c, i, MXD_NODE_SUSPECT);
        if (n->v.stage >= 0) core_epoch_lost(c);
    }
    if (n->v.state != MXD_NODE_SUSPECT) return;
    bool needed = n->spawned && c->state == MXD_COORD_FORMING && silence > 2 * c->cfg.dead_ms;
    if (silence > c->cfg.drop_ms || needed) core_node_dead(c, i, MXD_E_TIMEOUT, "it is silent");
}

static void end_cooling(mxd_coord *c, core_node *n) {
    if (!n->cooling || c->now_ms < n->cool_until_ms) return;
    n->cooling = false;
    c->rejoin = true;
}

static void forget_old(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    bool gone = n->v.state == MXD_NODE_DEAD || n->v.state == MXD_NODE_LEFT;
    if (!gone || n->spawned || n->v.stage >= 0) return;
    if (c->now_ms - n->v.since_ms <= c->cfg.listed_ms) return;
    core_node_clear(c, i);
    c->changed = true;
}

/* When requests wait because those that are left cannot hold the model, back-off ends early. */
static bool spawn_due(const mxd_coord *c, const core_node *n) {
    if (n->spawn_at_ms < 0 || n->v.link) return false;
    bool needed = c->formed && c->state == MXD_COORD_FORMING && (c->n_running || c->n_waiting);
    int64_t at = n->spawn_at_ms;
    if (needed && at > n->v.since_ms + CORE_SPAWN_NEEDED_MS)
        at = n->v.since_ms + CORE_SPAWN_NEEDED_MS;
    return c->now_ms >= at;
}

void core_nodes_tick(mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        if (n->v.state == MXD_NODE_NONE) continue;
        if (n->v.link) listen_to(c, i);
        if (!n->v.link && n->v.state == MXD_NODE_JOINING && n->spawn_at_ms < 0 &&
            c->now_ms - n->spawned_ms > 2 * c->cfg.form_ms)
            core_node_dead(c, i, MXD_E_TIMEOUT, "it never said hello");
        end_cooling(c, n);
        if (spawn_due(c, n)) spawn(c, i);
        forget_old(c, i);
    }
    for (int i = 0; i < CORE_MAX_AVOID; i++) {
        core_avoid *v = &c->avoid[i];
        if (!v->active || c->now_ms < v->until_ms) continue;
        v->active = false;
        c->rejoin = true;
    }
}
