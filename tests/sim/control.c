/* The coordinator: the driver around mxd_coord, and the planner. */
#include <string.h>
#include "sim.h"

static const char *const local_ids[] = {"A", "B", "C", "D", "E", "F"};

/* ------------------------------------------------------------------------------------- planner */

/* Stage `out` of the nodes from k on, as many as hold layers together, from layer `at` on. */
static int add_stage(mxd_plan *out, const int *share, int n, int k, int at) {
    mxd_plan_stage *g = &out->stages[out->n_stages++];
    *g = (mxd_plan_stage){.layer0 = at, .layer1 = at, .embed = k == 0};
    for (; k < n && g->n_ranks < W.ranks; k++) {
        int i = (k + W.plan_turn) % n;
        g->ranks[g->n_ranks++] = (mxd_plan_rank){.node = i, .weight_bytes = (uint64_t)share[i]};
        g->layer1 += share[i];
    }
    for (int r = 0; r < g->n_ranks; r++)
        g->ranks[r].share = (double)g->ranks[r].weight_bytes / (g->layer1 - g->layer0);
    g->head = g->layer1 == SIM_LAYERS;
    return k;
}

/* Memory is counted in layers. Every node gets at least one; the order turns with the seed. */
static mxd_rc plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                   int n_avoid, mxd_plan *out, mxd_err *err) {
    (void)ctx, (void)avoid, (void)n_avoid, (void)err;
    int share[MXD_MAX_NODES], total = 0, left = SIM_LAYERS;
    for (int i = 0; i < n; i++) total += (int)nodes[i].free_bytes;
    if (total < SIM_LAYERS) return MXD_E_NOFIT;
    for (int i = 0; i < n; i++) left -= share[i] = 1;
    for (int i = 0; left > 0; i = (i + 1) % n)
        if (share[i] < (int)nodes[i].free_bytes) share[i]++, left--;
    memset(out, 0, offsetof(mxd_plan, reasons));
    for (int k = 0, at = 0; k < n; at = out->stages[out->n_stages - 1].layer1)
        k = add_stage(out, share, n, k, at);
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- actions */

static sim_event *to_link(const mxd_coord_action *a, sim_kind kind) {
    sim_event *e = sim_event_new(kind, 0);
    e->link = a->link;
    e->epoch = a->epoch;
    e->rc = (int)a->rc;
    return e;
}

static int local_proc(int node) {
    for (int p = 0; p < W.n_procs; p++)
        if (W.procs[p].local == node) return p;
    return -1;
}

static void drop(const mxd_coord_action *a) {
    if (a->link) {
        sim_send(to_link(a, M_DROP), LANE_DOWN, true);
        sim_link_of(a->link)->up_here = false;
        sim_link_close(a->link, false);
    }
    int p = a->node >= 0 ? local_proc(a->node) : -1;
    if (p < 0 || a->rc != MXD_E_TIMEOUT) return;
    if (strcmp(a->text, "its step hangs") == 0 && mxd_coord_node(W.coord, a->node)->beat.waits)
        sim_fail("SAFETY: a rank that waits for another is blamed");
    W.procs[p].spawn = 0; /* also one that is about to start */
    sim_proc_kill(p, false);
}

static void spawn(const mxd_coord_action *a) {
    bool fails = W.faults && sim_chance(W.swarm.spawn_fails);
    int p = local_proc(a->node);
    if (W.procs[p].up) sim_fail("SAFETY: a local worker is started while the old one runs");
    W.procs[p].spawn = a->spawn;
    sim_event *e = sim_event_new(fails ? EV_EXITED : EV_BOOT, W.now + sim_pick(5, 200));
    e->node = a->node;
    e->link = a->spawn;
    e->proc = p;
    e->incarnation = W.coord_life;
    sim_event_push(e);
}

static void step(const mxd_coord_action *a) {
    sim_event *e = to_link(a, M_FRAME);
    e->step = a->step;
    e->n_runs = a->n_runs;
    e->n_rows = 0;
    e->has_hidden = false;
    if (a->n_rows > SIM_ROWS || a->n_runs > SIM_RUNS) {
        sim_fail("SAFETY: a micro-batch over its limits");
        return;
    }
    for (int i = 0; i < a->n_runs; i++) {
        const mxd_core_run *r = &a->runs[i];
        e->runs[i] = (sim_run){.request = r->request,
                               .seed = r->how->seed,
                               .pos = r->pos,
                               .slot = r->slot,
                               .begin = r->begin,
                               .keep = r->keep,
                               .from = r->from,
                               .from_request = r->from_request,
                               .n = r->n,
                               .sample = r->sample};
        memcpy(e->ids + e->n_rows, r->ids, r->n * sizeof *r->ids);
        e->n_rows += r->n;
    }
    if (e->n_rows != a->n_rows) sim_fail("SAFETY: rows do not add up");
    mxd_coord_view v;
    mxd_coord_view_get(W.coord, &v);
    for (int r = 1; r < v.plan->stages[0].n_ranks; r++) {
        sim_event *copy = sim_event_new(M_FRAME, 0);
        if (W.failure) return;
        *copy = *e;
        copy->link = mxd_coord_node(W.coord, v.plan->stages[0].ranks[r].node)->link;
        sim_send(copy, LANE_STEP, true);
    }
    sim_send(e, LANE_STEP, true);
}

static void install(const mxd_coord_action *a) {
    sim_event *e = to_link(a, M_PLAN);
    e->stage = *a->stage;
    sim_send(e, LANE_DOWN, true);
}

/* Who has the right numbers may be left out only while somebody there has not. */
static void left_out(const mxd_coord_action *a) {
    bool any = false;
    for (int i = 0; i < W.n_procs; i++) any = any || W.procs[i].wrong;
    if (a->node < 0 || !any) sim_fail("SAFETY: the canary is wrong about a node");
}

static void act(const mxd_coord_action *a, const mxd_coord_action *next) {
    switch (a->kind) {
    case MXD_ACT_WELCOME:
        sim_send(to_link(a, M_WELCOME), LANE_DOWN, true);
        break;
    case MXD_ACT_DROP:
        drop(a);
        break;
    case MXD_ACT_SPAWN:
        spawn(a);
        break;
    case MXD_ACT_INSTALL:
        install(a);
        break;
    case MXD_ACT_UNINSTALL:
        sim_send(to_link(a, M_UNINSTALL), LANE_DOWN, true);
        break;
    case MXD_ACT_STEP:
        step(a);
        break;
    case MXD_ACT_CANARY:
        left_out(a);
        break;
    case MXD_ACT_CHANGED:
    case MXD_ACT_DRAINED:
        break;
    default:
        sim_client_action(a, next);
        break;
    }
}

void sim_coord_give(const mxd_coord_event *given) {
    mxd_coord_event e = *given;
    mxd_coord_actions out;
    if (W.coord_down) return;
    e.now_ms = W.now;
    mxd_coord_step(W.coord, &e, &out);
    mxd_coord_check(W.coord);
    for (int i = 0; i < out.n && !W.failure; i++) {
        if (W.crash_after >= 0 && W.crash_after-- == 0) {
            sim_coord_crash();
            return;
        }
        sim_trace((uint64_t)out.list[i].kind * 977 + out.list[i].epoch + out.list[i].request);
        act(&out.list[i], i + 1 < out.n ? &out.list[i + 1] : NULL);
    }
}

/* -------------------------------------------------------------------------------------- events */

static void hello(const sim_event *e) {
    const sim_proc *q = &W.procs[e->proc];
    mxd_node_info info = {.id = {(char)('A' + q->id)},
                          .address = {(char)('A' + e->proc)},
                          .incarnation = e->incarnation,
                          .epoch = e->epoch,
                          .memory_free = (uint64_t)q->capacity,
                          .local = q->local >= 0};
    sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_HELLO, .link = e->link, .hello = &info});
}

/* What tells other numbers from the right ones, where the token is the same by chance. */
static float sim_logprob(uint64_t act) { return (float)(act >> 40); }

static void result(const sim_event *e) {
    struct mxd_core_result_run runs[SIM_RUNS];
    mxd_coord_event ev = {.kind = MXD_COORD_RESULT, .link = e->link};
    int n = 0;
    for (int i = 0; i < e->n_runs; i++) {
        const sim_run *r = &e->runs[i];
        if (!r->sample) continue;
        memset(&runs[n], 0, sizeof runs[n]);
        runs[n].request = r->request;
        runs[n].pos = r->pos + r->n;
        runs[n].sampled.token = r->token;
        runs[n++].sampled.logprob = sim_logprob(r->proof);
    }
    ev.result = (mxd_core_result){.epoch = e->epoch, .step = e->step, .n = n, .runs = runs};
    sim_coord_give(&ev);
}

static bool has_stage(uint64_t link) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (mxd_coord_node(W.coord, i)->link == link && mxd_coord_node(W.coord, i)->stage >= 0)
            return true;
    return false;
}

/* A refusal of the epoch in force, by one of its stages, ends it. */
static void nack(const sim_event *e) {
    mxd_coord_view before, after;
    mxd_coord_event ev = {.kind = MXD_COORD_NACK, .link = e->link};
    ev.nack = (mxd_core_nack){e->epoch, e->step, (mxd_rc)e->rc};
    bool stage = has_stage(e->link);
    mxd_coord_view_get(W.coord, &before);
    sim_coord_give(&ev);
    mxd_coord_view_get(W.coord, &after);
    bool counts = stage && before.state == MXD_COORD_SERVING && before.epoch == e->epoch;
    if (counts && after.state == MXD_COORD_SERVING && after.epoch == e->epoch)
        sim_fail("LIVENESS: a NACK is not heard");
}

static void message(const sim_event *e) {
    mxd_coord_event ev = {.link = e->link};
    if (!sim_link_of(e->link)->up_here) return;
    switch (e->kind) {
    case M_HELLO:
        hello(e);
        return;
    case M_RESULT:
        result(e);
        return;
    case M_NACK:
        nack(e);
        return;
    case M_BEAT:
        ev.kind = MXD_COORD_BEAT;
        ev.beat = e->beat;
        break;
    case M_READY:
        ev.kind = MXD_COORD_READY;
        ev.ready = (mxd_core_ready){.epoch = e->epoch, .determinism = "bit-exact"};
        break;
    case M_FAILED:
        ev.kind = MXD_COORD_FAILED;
        ev.failed = (mxd_core_failed){e->epoch, (mxd_rc)e->rc, "no"};
        break;
    case M_NEIGHBOUR:
        ev.kind = MXD_COORD_NEIGHBOUR_DOWN;
        ev.neighbour = (mxd_core_neighbour){e->epoch, e->node};
        break;
    default:
        ev.kind = MXD_COORD_LEAVE;
        break;
    }
    sim_coord_give(&ev);
}

static void boot(const sim_event *e) {
    if (W.procs[e->proc].spawn == e->link && !W.procs[e->proc].up) sim_proc_boot(e->proc);
}

/* Nobody is taken for alive long after its death, whether or not its link told. */
static void check_dead(void) {
    for (int i = 0; i < MXD_MAX_NODES && !W.faults && !W.coord_down; i++) {
        const mxd_node_view *n = mxd_coord_node(W.coord, i);
        if (!n->link || n->state == MXD_NODE_SUSPECT) continue;
        int64_t died_ms = sim_link_of(n->link)->died_ms;
        if (died_ms && W.now - died_ms > 4000) sim_fail("LIVENESS: the dead are taken for alive");
    }
}

void sim_coord_event(sim_event *e) {
    bool own = e->kind == EV_COORD_TICK || e->kind == EV_BOOT || e->kind == EV_EXITED;
    if (e->kind == EV_COORD_START) {
        sim_coord_restart();
        sim_event_free(e);
        return;
    }
    if (W.coord_down || (own && e->incarnation != W.coord_life)) {
        sim_event_free(e); /* lost with the life that it was for */
        return;
    }
    if (W.coord_paused_until > W.now) {
        sim_event_again(e, W.coord_paused_until);
        return;
    }
    if (e->kind == EV_COORD_TICK) {
        sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_TICK});
        sim_restore_tick();
        check_dead();
        sim_event_again(e, W.now + W.swarm.tick_ms);
        return;
    }
    if (e->kind == EV_BOOT) boot(e);
    if (e->kind == EV_EXITED)
        sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_EXITED, .exited = {e->node, e->link}});
    if (e->kind == EV_GONE && sim_link_of(e->link)->up_here) {
        sim_link_of(e->link)->up_here = false;
        sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_GONE, .link = e->link});
    }
    if (e->kind >= EV_MSG_TO_COORD) message(e);
    sim_event_free(e);
}

/* What an earlier run has learned. */
static mxd_core_canary known_answer(void) {
    int32_t ids[MXD_CORE_CANARY_ROWS];
    uint64_t kv[SIM_LAYERS] = {0}, act = 0;
    int n = mxd_core_canary_ids(&W.cfg, ids);
    for (int i = 0; i < n; i++) {
        act = sim_embed(ids[i]);
        for (int l = 0; l < SIM_LAYERS; l++) sim_layer(&kv[l], l, &act);
    }
    return mxd_core_canary_of(
        &(mxd_sampled){.token = sim_sample(act, 0, (uint32_t)n), .logprob = sim_logprob(act)});
}

void sim_coord_boot(void) {
    W.cfg = (mxd_coord_cfg){.plan = plan,
                            .n_layers = SIM_LAYERS,
                            .n_vocab = SIM_VOCAB,
                            .ctx = sim_pick(SIM_CTX / 2, SIM_CTX),
                            .n_slots = sim_chance(.3) ? 1 : sim_pick(1, SIM_SLOTS),
                            .max_rows = sim_pick(4, SIM_ROWS),
                            .local_ids = local_ids,
                            .n_local = W.n_local,
                            .step_ms = 1000,
                            .first_ms = 1000,
                            .row_ms = 50,
                            .load_ms = 8000,
                            .form_ms = 5000,
                            .leave_ms = 5000,
                            .drop_ms = 4000,
                            .recovery_ms = 20000,
                            .listed_ms = sim_chance(.5) ? 1000 : 300000};
    W.cfg.chunk = sim_pick(1, W.swarm.crowd ? 4 : sim_chance(.3) ? 2 : W.cfg.max_rows);
    W.cfg.page = sim_pick(1, SIM_PAGE);
    W.cfg.no_prefix_cache = sim_chance(W.swarm.crowd ? .4 : .1);
    W.cfg.recurrent = sim_chance(.2);
    W.cfg.canary = true;
    W.cfg.known = known_answer();
    sim_disk_reset();
    sim_coord_begin(0);
}

/* A life of the coordinator. */
void sim_coord_begin(uint64_t epoch0) {
    W.cfg.epoch0 = epoch0;
    W.cfg.local_ids = local_ids;
    W.coord = mxd_coord_init(W.coord_memory, &W.cfg);
    sim_event *e = sim_event_new(EV_COORD_TICK, W.now);
    e->incarnation = W.coord_life;
    sim_event_push(e);
}
