#include <string.h>
#include "cluster/core_private.h"

/* ------------------------------------------------------------------------------------- memory */

static int or_int(int value, int otherwise) { return value ? value : otherwise; }
static int64_t or_ms(int64_t value, int64_t otherwise) { return value ? value : otherwise; }

static mxd_coord_cfg with_defaults(const mxd_coord_cfg *cfg) {
    mxd_coord_cfg d = *cfg;
    d.n_slots = or_int(d.n_slots, 4);
    d.max_rows = or_int(d.max_rows, 256);
    d.chunk = or_int(d.chunk, d.max_rows);
    d.page = or_int(d.page, MXD_KV_PAGE_TOKENS);
    d.min_nodes = or_int(d.min_nodes, 1);
    d.dead_ms = or_ms(d.dead_ms, MXD_DEAD_AFTER_MS);
    d.drop_ms = or_ms(d.drop_ms, 10000);
    d.step_ms = or_ms(d.step_ms, MXD_STEP_DEADLINE_MS);
    d.first_ms = or_ms(d.first_ms, 30000);
    d.row_ms = or_ms(d.row_ms, 250);
    d.load_ms = or_ms(d.load_ms, 600000);
    d.recovery_ms = or_ms(d.recovery_ms, 60000);
    d.form_ms = or_ms(d.form_ms, 15000);
    d.leave_ms = or_ms(d.leave_ms, 30000);
    d.listed_ms = or_ms(d.listed_ms, 300000);
    return d;
}

static bool valid(const mxd_coord_cfg *d) {
    if (!d->plan || d->n_layers < 1 || d->n_layers > MXD_MAX_LAYERS) return false;
    if (d->n_vocab < 1 || d->n_vocab > MXD_MAX_VOCAB) return false;
    if (d->ctx < 2 || d->ctx > MXD_MAX_CONTEXT) return false;
    if (d->n_slots < 1 || d->n_slots > MXD_MAX_SEQS) return false;
    if (d->max_rows < 1 || d->max_rows > MXD_MAX_STEP_TOKENS) return false;
    if (d->chunk < 1 || d->chunk > d->max_rows) return false;
    if (d->page < 1 || d->page > MXD_MAX_CONTEXT) return false;
    if (d->n_local < 0 || d->n_local > MXD_MAX_NODES) return false;
    if (d->min_nodes < 1 || d->min_nodes > MXD_MAX_NODES) return false;
    return d->epoch0 < MXD_CORE_MAX_EPOCH / 2;
}

/* The bound of one step's actions: per node at most a drop, a spawn, an (un)install, a canary
 * and a welcome or a second drop; per request accepted or refused, and the end with its journal;
 * per sampled run a token with its journal; per flight a step; a few of the whole. */
static int cap_actions(const mxd_coord_cfg *d) {
    return 7 * MXD_MAX_NODES + 4 * (d->n_slots + MXD_MAX_WAITING) + 2 * MXD_MAX_STEP_RUNS +
           2 * CORE_MAX_FLIGHTS + 16;
}

/* Where the parts lie behind each other in the one block; base NULL: only their total. */
typedef struct layout {
    unsigned char *base;
    size_t used;
} layout;

static void *part(layout *l, size_t n, size_t size) {
    void *p = l->base ? l->base + l->used : NULL;
    l->used += (n * size + 63) & ~(size_t)63;
    return p;
}

static size_t lay_out(mxd_coord *c, unsigned char *base, const mxd_coord_cfg *d) {
    layout l = {.base = base};
    size_t n_slots = (size_t)d->n_slots, n_requests = n_slots + MXD_MAX_WAITING;
    mxd_coord parts_only_sizes_matter, *p = c ? c : &parts_only_sizes_matter;
    part(&l, 1, sizeof *c);
    p->flights = part(&l, CORE_MAX_FLIGHTS, sizeof *p->flights);
    p->requests = part(&l, n_requests, sizeof *p->requests);
    p->waiting = part(&l, MXD_MAX_WAITING, sizeof *p->waiting);
    p->slots = part(&l, n_slots, sizeof *p->slots);
    p->actions = part(&l, (size_t)cap_actions(d), sizeof *p->actions);
    p->tokens = part(&l, n_slots * (size_t)d->ctx, sizeof *p->tokens);
    return l.used;
}

size_t mxd_coord_bytes(const mxd_coord_cfg *cfg) {
    mxd_coord_cfg d = with_defaults(cfg);
    return valid(&d) ? lay_out(NULL, NULL, &d) : 0;
}

mxd_coord *mxd_coord_init(void *memory, const mxd_coord_cfg *cfg) {
    mxd_coord_cfg d = with_defaults(cfg);
    if (!valid(&d)) return NULL;
    mxd_coord *c = memory;
    memset(c, 0, sizeof *c);
    c->cfg = d;
    lay_out(c, memory, &d);
    c->n_requests = d.n_slots + MXD_MAX_WAITING;
    c->cap_actions = cap_actions(&d);
    memset(c->requests, 0, (size_t)c->n_requests * sizeof *c->requests);
    memset(c->slots, 0, (size_t)d.n_slots * sizeof *c->slots);
    for (int i = 0; i < d.n_slots; i++) c->slots[i].request = -1;
    mxd_sched_init(&c->sched, d.n_slots, d.max_rows, d.chunk);
    c->epoch = c->epoch_seen = MUTANT(EPOCH_FROM_ONE) ? 0 : d.epoch0;
    c->tick_ms = c->start_ms = -1;
    c->patience = 1;
    c->probe = -1;
    for (int i = 0; i < MXD_MAX_NODES; i++) core_node_clear(c, i);
    for (int i = 0; i < d.n_local; i++) {
        core_node *n = &c->nodes[i];
        core_text(n->v.info.id, sizeof n->v.info.id, d.local_ids[i]);
        n->v.info.local = n->spawned = n->wanted = true;
        n->v.state = MXD_NODE_JOINING;
        n->spawn_at_ms = 0;
    }
    c->cfg.local_ids = NULL;
    return c;
}

/* ------------------------------------------------------------------------------------ actions */

mxd_coord_action *core_act(mxd_coord *c, mxd_coord_action_kind kind) {
    MXD_ASSERT(c->n_actions < c->cap_actions);
    mxd_coord_action *a = &c->actions[c->n_actions++];
    memset(a, 0, sizeof *a);
    a->kind = kind;
    a->node = -1;
    a->text = "";
    return a;
}

mxd_coord_action *core_act_node(mxd_coord *c, mxd_coord_action_kind kind, int node) {
    mxd_coord_action *a = core_act(c, kind);
    a->node = node;
    a->link = c->nodes[node].v.link;
    a->epoch = c->epoch;
    return a;
}

void core_text(char *to, size_t cap, const char *from) {
    size_t n = 0;
    for (; n + 1 < cap && from && from[n]; n++) to[n] = from[n];
    to[n] = 0;
}

bool core_same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

/* --------------------------------------------------------------------------------------- step */

/* When we were stopped (SIGSTOP, a suspended laptop, a machine with too much to do), what others
 * said lies unread behind this tick: the time that we did not live through is nobody's silence.
 * One usual tick of it counts all the same, so that a machine that is always late still notices
 * death, only later. */
static void forgive_our_sleep(mxd_coord *c) {
    int64_t gap = c->tick_ms < 0 ? 0 : c->now_ms - c->tick_ms;
    c->tick_ms = c->now_ms;
    if (gap <= 2 * CORE_TICK_MS) return;
    for (int i = 0; i < MXD_MAX_NODES; i++) c->nodes[i].last_beat_ms += gap - CORE_TICK_MS;
    c->progress_ms += gap - CORE_TICK_MS;
}

static void on_tick(mxd_coord *c) {
    if (c->start_ms < 0) c->start_ms = c->state_ms = c->unserved_ms = c->now_ms;
    forgive_our_sleep(c);
    core_nodes_tick(c);
    core_epoch_tick(c);
    core_requests_tick(c);
}

/* Events that only a node with a living link can send. */
static void on_node_event(mxd_coord *c, const mxd_coord_event *e) {
    int i = core_node_of(c, e->link);
    if (i < 0) return;
    c->nodes[i].last_beat_ms = c->now_ms;
    switch (e->kind) {
    case MXD_COORD_BEAT:
        core_on_beat(c, i, &e->beat);
        break;
    case MXD_COORD_READY:
        core_on_ready(c, i, &e->ready);
        break;
    case MXD_COORD_FAILED:
        core_on_failed(c, i, &e->failed);
        break;
    case MXD_COORD_NACK:
        core_on_nack(c, i, &e->nack);
        break;
    case MXD_COORD_NEIGHBOUR_DOWN:
        core_on_neighbour(c, i, &e->neighbour);
        break;
    case MXD_COORD_LEAVE:
        core_on_leave(c, i);
        break;
    default:
        break;
    }
}

/* A result is a sign of life too. */
static void heard(mxd_coord *c, uint64_t link) {
    int i = core_node_of(c, link);
    if (i >= 0) c->nodes[i].last_beat_ms = c->now_ms;
}

static void on_drain(mxd_coord *c) {
    c->draining = true;
    c->changed = true;
}

static void dispatch(mxd_coord *c, const mxd_coord_event *e) {
    switch (e->kind) {
    case MXD_COORD_TICK:
        on_tick(c);
        break;
    case MXD_COORD_HELLO:
        core_on_hello(c, e->link, e->hello);
        break;
    case MXD_COORD_GONE:
        core_on_gone(c, e->link);
        break;
    case MXD_COORD_RESULT:
        heard(c, e->link);
        core_on_result(c, &e->result);
        break;
    case MXD_COORD_SUBMIT:
        core_on_submit(c, e->submit);
        break;
    case MXD_COORD_CANCEL:
        core_on_cancel(c, e->request);
        break;
    case MXD_COORD_DRAIN:
        on_drain(c);
        break;
    case MXD_COORD_EXITED:
        core_on_exited(c, &e->exited);
        break;
    default:
        on_node_event(c, e);
        break;
    }
}

/* What follows from every event: a plan if one is needed, work if there is some. */
static void settle(mxd_coord *c) {
    core_epoch_settle(c);
    if (!core_anybody(c)) core_requests_fail_all(c, MXD_E_PEER, "no worker is left");
    core_requests_settle(c);
    if (c->draining && !c->drained && !c->n_running && !c->n_waiting) {
        c->drained = true;
        core_act(c, MXD_ACT_DRAINED);
    }
    if (c->changed) core_act(c, MXD_ACT_CHANGED);
    c->changed = false;
}

void mxd_coord_step(mxd_coord *c, const mxd_coord_event *event, mxd_coord_actions *out) {
    c->n_actions = 0;
    if (event->now_ms > c->now_ms) c->now_ms = event->now_ms;
    dispatch(c, event);
    settle(c);
    *out = (mxd_coord_actions){.list = c->actions, .n = c->n_actions};
}
