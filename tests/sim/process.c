/* A worker process: the driver around mxd_wcore, and a mock of what computes. */
#include <string.h>
#include "sim.h"

static sim_job *job_at(int p, int k) {
    return &W.jobs[p * SIM_JOBS + (W.procs[p].first_job + k) % SIM_JOBS];
}

static sim_event *to_self(int p, sim_kind kind, int64_t after) {
    sim_event *e = sim_event_new(kind, W.now + after);
    e->proc = p;
    e->life = W.procs[p].life;
    return e;
}

static void dial_later(int p) {
    sim_proc *q = &W.procs[p];
    q->backoff_ms = q->backoff_ms ? q->backoff_ms * 2 : 100;
    if (q->backoff_ms > 5000) q->backoff_ms = 5000;
    sim_event_push(to_self(p, EV_DIAL, q->backoff_ms / 2 + sim_pick(0, (int)q->backoff_ms / 2)));
}

/* ------------------------------------------------------------------------------- what computes */

/* The second oracle, where the work is done: (W1) to the letter, even where it does not show in a
 * token. */
static void check_run(const sim_proc *q, uint64_t epoch, const sim_run *r) {
    const struct sim_slot *s = &q->slots[r->begin ? r->from : r->slot];
    if (!r->pos) return;
    if (s->request != (r->begin ? r->from_request : r->request))
        sim_fail("SAFETY: another request's KV is continued");
    if (r->begin ? s->len < r->pos : s->len != r->pos)
        sim_fail("SAFETY: computed where the KV does not end");
    if (s->epoch != epoch) sim_fail("SAFETY: another epoch's KV is continued");
    if (r->begin && W.cfg.no_prefix_cache) sim_fail("SAFETY: nobody wanted a prefix cache");
    bool state = r->from == r->slot && (s->len == r->pos || s->kept == r->pos);
    if (r->begin && W.cfg.recurrent && !state) sim_fail("SAFETY: recurrent state is cut back");
}

static void empty_slots(sim_proc *q) {
    int page = W.cfg.page, per_slot = (W.cfg.ctx + page - 1) / page;
    memset(q->kv, 0, sizeof q->kv);
    memset(q->slots, 0, sizeof q->slots);
    q->pages.refs = q->page_refs;
    q->pages.free = q->page_free;
    mxd_pages_init(&q->pages, (uint32_t)page, W.cfg.n_slots * per_slot);
    for (int i = 0; i < SIM_SLOTS; i++) q->slots[i].table.table = q->page_of[i];
}

static uint64_t *kv_at(sim_proc *q, const sim_run *r, uint32_t pos) {
    uint32_t page = q->pages.page;
    return q->kv[(uint32_t)q->slots[r->slot].table.table[pos / page] * page + pos % page];
}

/* As the shard does it. */
static void begin_run(sim_proc *q, uint64_t epoch, const sim_run *r) {
    struct sim_slot *s = &q->slots[r->slot];
    if (r->begin && r->from != r->slot) {
        mxd_pages_share(&q->pages, &s->table, &q->slots[r->from].table, r->pos);
    } else {
        if (!mxd_pages_can_cut(&q->pages, &s->table, r->pos))
            sim_fail("SAFETY: a shared page is cut");
        mxd_pages_cut(&q->pages, &s->table, r->pos);
    }
    mxd_pages_cover(&q->pages, &s->table, r->pos + r->n);
    s->request = r->request;
    s->epoch = epoch;
    if (W.cfg.recurrent && r->begin && r->pos < s->len)
        memcpy(kv_at(q, r, r->pos - 1), s->kept_kv, sizeof s->kept_kv);
    s->len = r->pos + r->n;
    if (s->kept > r->pos) s->kept = 0;
}

static void forward_row(sim_proc *q, const sim_run *r, uint32_t pos, uint64_t *act) {
    int32_t page = q->slots[r->slot].table.table[pos / q->pages.page];
    if (q->pages.refs[page] != 1) sim_fail("SAFETY: a shared page is written");
    for (int l = q->layer0; l < q->layer1; l++) {
        uint64_t kv = pos ? kv_at(q, r, pos - 1)[l] : 0;
        sim_layer(&kv, l, act);
        if (q->wrong) kv ^= 1;
        kv_at(q, r, pos)[l] = kv;
    }
}

static void forward_rows(sim_proc *q, sim_event *f) {
    int row = 0;
    for (int i = 0; i < f->n_runs; i++) {
        sim_run *r = &f->runs[i];
        check_run(q, f->epoch, r);
        if (W.failure) return;
        begin_run(q, f->epoch, r);
        for (int k = 0; k < r->n; k++, row++) {
            uint64_t act = q->layer0 ? f->act[row] : sim_embed(f->ids[row]);
            forward_row(q, r, r->pos + (uint32_t)k, &act);
            f->act[row] = act;
        }
        if (r->keep) {
            struct sim_slot *s = &q->slots[r->slot];
            s->kept = s->len;
            memcpy(s->kept_kv, kv_at(q, r, s->len - 1), sizeof s->kept_kv);
        }
        if (r->sample && q->layer1 == SIM_LAYERS) {
            r->token = sim_sample(f->act[row - 1], r->seed, r->pos + r->n);
            r->proof = f->act[row - 1];
        }
    }
}

static int64_t job_ms(const sim_proc *q, const sim_job *j) {
    bool same = j->layer0 == q->layer0 && j->layer1 == q->layer1 && j->group.n == q->group.n;
    if (j->kind == MXD_WACT_LOAD)
        return (same ? 0 : (j->layer1 - j->layer0) * q->load_ms) + sim_pick(0, 20);
    if (j->kind != MXD_WACT_COMPUTE) return 0;
    return q->speed_ms + sim_pick(0, q->speed_ms);
}

static void next_job(int p) {
    sim_proc *q = &W.procs[p];
    if (q->busy || !q->n_jobs) return;
    q->busy = true;
    sim_event_push(to_self(p, EV_JOB, job_ms(q, job_at(p, 0))));
}

static void queue_job(int p, const mxd_wcore_action *a, const sim_event *frame) {
    sim_proc *q = &W.procs[p];
    if (q->n_jobs == SIM_JOBS) {
        sim_fail("jobs without end");
        return;
    }
    sim_job *j = job_at(p, q->n_jobs++);
    q->dirty = a->kind == MXD_WACT_COMPUTE;
    if (q->dirty && a->epoch != mxd_wcore_epoch(q->core))
        sim_fail("SAFETY: a step of another epoch is computed");
    j->kind = a->kind;
    j->epoch = a->epoch;
    j->step = a->step;
    if (a->kind == MXD_WACT_LOAD) {
        j->layer0 = a->stage->layer0;
        j->layer1 = a->stage->layer1;
        sim_group_of(&j->group, a->stage->ranks, a->stage->n_ranks, a->stage->rank);
    }
    if (a->kind == MXD_WACT_COMPUTE) j->frame = *frame;
    next_job(p);
}

/* ------------------------------------------------------------------------------------ messages */

static void say(int p, sim_event *e) {
    e->link = W.procs[p].link;
    sim_send(e, LANE_UP, false);
}

static void pass_on(int p, const mxd_wcore_action *a, const sim_event *frame) {
    const sim_proc *q = &W.procs[p];
    bool result = a->kind == MXD_WACT_RESULT;
    if (q->group.rank) sim_fail("SAFETY: a rank that does not lead speaks");
    for (int r = 0; r < (result ? 1 : q->next.n); r++) {
        sim_event *e = sim_event_new(result ? M_RESULT : M_FRAME, 0);
        uint64_t seq = e->seq;
        sim_kind kind = e->kind;
        *e = *frame;
        e->seq = seq;
        e->kind = kind;
        e->epoch = a->epoch;
        e->has_hidden = true;
        e->link = q->link;
        if (result)
            sim_send(e, LANE_RESULT, false);
        else
            sim_send_data(e, p, q->next.proc[r], q->next.node[r]);
    }
}

static void proc_exit(int p) {
    W.procs[p].left = true;
    sim_proc_kill(p, false);
}

static void simple(int p, sim_kind kind, const mxd_wcore_action *a) {
    sim_event *e = sim_event_new(kind, 0);
    e->epoch = a->epoch;
    e->rc = (int)a->rc;
    e->node = a->node;
    if (kind == M_BEAT) e->beat = a->beat;
    if (kind == M_BEAT) e->beat.waits = W.procs[p].waits;
    say(p, e);
}

static void ready(int p, const mxd_wcore_action *a) {
    sim_proc *q = &W.procs[p];
    if (q->ready_epoch != a->epoch && q->dirty) sim_fail("SAFETY: a new plan over old KV");
    q->ready_epoch = a->epoch;
    simple(p, M_READY, a);
}

static void nack(int p, const mxd_wcore_action *a) {
    sim_event *e = sim_event_new(M_NACK, 0);
    e->epoch = a->epoch;
    e->step = a->step;
    e->rc = (int)a->rc;
    say(p, e);
}

static void act(int p, const mxd_wcore_action *a, const sim_event *frame) {
    switch (a->kind) {
    case MXD_WACT_LOAD:
    case MXD_WACT_UNLOAD:
    case MXD_WACT_FORGET:
    case MXD_WACT_COMPUTE:
        queue_job(p, a, frame);
        break;
    case MXD_WACT_FORWARD:
    case MXD_WACT_RESULT:
        pass_on(p, a, frame);
        break;
    case MXD_WACT_DISCARD:
        break;
    case MXD_WACT_ABORT:
        if (a->epoch > W.procs[p].over) W.procs[p].over = a->epoch;
        break;
    case MXD_WACT_NACK:
        nack(p, a);
        break;
    case MXD_WACT_READY:
        ready(p, a);
        break;
    case MXD_WACT_FAILED:
        simple(p, M_FAILED, a);
        break;
    case MXD_WACT_BEAT:
        simple(p, M_BEAT, a);
        break;
    case MXD_WACT_NEIGHBOUR_DOWN:
        simple(p, M_NEIGHBOUR, a);
        break;
    case MXD_WACT_LEAVE:
        simple(p, M_LEAVE, a);
        break;
    case MXD_WACT_CONNECT:
        dial_later(p);
        break;
    case MXD_WACT_LINK_NEXT:
        sim_group_of(&W.procs[p].next, a->stage->next, a->stage->n_next, 0);
        break;
    case MXD_WACT_EXIT:
        proc_exit(p);
        break;
    }
}

static void give(int p, mxd_wcore_event *e, const sim_event *frame) {
    mxd_wcore_actions out;
    uint64_t life = W.procs[p].life;
    e->now_ms = W.now;
    mxd_wcore_step(W.procs[p].core, e, &out);
    mxd_wcore_check(W.procs[p].core);
    for (int i = 0; i < out.n && W.procs[p].up && W.procs[p].life == life; i++) {
        sim_trace((uint64_t)out.list[i].kind * 31 + out.list[i].step);
        act(p, &out.list[i], frame);
    }
}

static void give_kind(int p, mxd_wcore_event_kind kind) {
    give(p, &(mxd_wcore_event){.kind = kind}, NULL);
}

/* ------------------------------------------------------------------------------ life and death */

/* One at a time, and none that shares its id: whom else could the core blame? The ranks of a stage
 * mix their numbers, which this model does not. */
static bool may_be_wrong(int p) {
    for (int i = 0; i < W.n_procs; i++) {
        if (W.procs[i].up && W.procs[i].wrong) return false;
        if (i != p && W.procs[i].id == W.procs[p].id) return false;
    }
    return true;
}

void sim_proc_boot(int p) {
    sim_proc *q = &W.procs[p];
    q->up = true;
    q->left = q->hangs = q->busy = false;
    q->wrong = false;
    q->wrong = W.faults && W.ranks == 1 && sim_chance(W.swarm.wrong) && may_be_wrong(p);
    q->life++;
    q->incarnation = ++W.next_incarnation;
    q->paused_until = q->backoff_ms = q->data_ms = 0;
    q->link = 0;
    q->first_job = q->n_jobs = 0;
    q->layer0 = q->layer1 = q->waits = 0;
    q->group = q->next = (sim_group){.n = 0};
    q->arrived = false;
    q->joined = q->sums_epoch = q->sums_step = q->over = 0;
    q->missed_ms = 0;
    q->dirty = false;
    q->ready_epoch = 0;
    empty_slots(q);
    q->core = mxd_wcore_init(W.proc_memory[p],
                             &(mxd_wcore_cfg){.n_slots = W.cfg.n_slots, .ctx = W.cfg.ctx});
    sim_event_push(to_self(p, EV_DIAL, sim_pick(0, 100)));
    sim_event_push(to_self(p, EV_TICK, W.swarm.tick_ms));
}

static int index_in(const sim_group *g, int p) {
    for (int r = 0; r < g->n; r++)
        if (g->proc[r] == p) return r;
    return -1;
}

/* The neighbours' data links end with the process; they may notice at once. */
static void tell_neighbours(int p) {
    for (int i = 0; i < W.n_procs; i++) {
        sim_proc *q = &W.procs[i];
        int before = index_in(&q->next, p), after = index_in(&W.procs[p].next, i);
        if (i == p || !q->up || (before < 0 && after < 0) || sim_chance(.3)) continue;
        sim_event *e = to_self(i, EV_NEIGHBOUR, sim_pick(0, 40));
        e->node = before >= 0 ? q->next.node[before] : q->prev_node;
        sim_event_push(e);
    }
}

void sim_proc_kill(int p, bool silent) {
    sim_proc *q = &W.procs[p];
    if (!q->up) return;
    q->up = false;
    if (q->link) {
        sim_link_of(q->link)->up_there = false;
        sim_link_of(q->link)->died_ms = W.now;
    }
    if (q->link) sim_link_close(q->link, silent);
    q->link = 0;
    q->life++;
    tell_neighbours(p);
    if (q->local < 0) return;
    sim_event *e = sim_event_new(EV_EXITED, W.now + sim_pick(0, 20));
    e->incarnation = W.coord_life;
    e->node = q->local;
    e->link = q->spawn;
    sim_event_push(e);
}

void sim_proc_drain(int p) { give_kind(p, MXD_WCORE_DRAIN); }

/* -------------------------------------------------------------------------------------- events */

static void dial(int p) {
    sim_proc *q = &W.procs[p];
    if (q->link) return;
    if (W.cut[p][SIM_COORD] || W.cut[SIM_COORD][p] || W.coord_down) {
        dial_later(p);
        return;
    }
    q->link = sim_link_new(p);
    sim_event *e = sim_event_new(M_HELLO, 0);
    e->incarnation = q->incarnation;
    e->epoch = mxd_wcore_epoch(q->core);
    say(p, e);
}

static void down(int p, uint64_t link) {
    sim_proc *q = &W.procs[p];
    sim_link_of(link)->up_there = false;
    if (q->link != link) return;
    q->link = 0;
    give_kind(p, MXD_WCORE_COORDINATOR_DOWN);
}

static void on_drop(int p, sim_event *e) {
    sim_link_of(e->link)->up_there = false;
    if (W.procs[p].link != e->link) return;
    W.procs[p].link = 0;
    give_kind(p, e->rc == MXD_OK ? MXD_WCORE_RELEASED : MXD_WCORE_COORDINATOR_DOWN);
}

static void on_frame(int p, const sim_event *e) {
    mxd_core_run runs[SIM_RUNS];
    const sim_proc *q = &W.procs[p];
    if (e->epoch == mxd_wcore_epoch(q->core) && q->ready_epoch != e->epoch)
        sim_fail("SAFETY: a frame comes before its plan is ready");
    for (int i = 0; i < e->n_runs; i++)
        runs[i] = (mxd_core_run){.request = e->runs[i].request,
                                 .pos = e->runs[i].pos,
                                 .slot = e->runs[i].slot,
                                 .begin = e->runs[i].begin,
                                 .from = e->runs[i].from,
                                 .from_request = e->runs[i].from_request,
                                 .n = e->runs[i].n,
                                 .sample = e->runs[i].sample};
    mxd_wcore_event ev = {.kind = MXD_WCORE_FRAME};
    ev.frame.epoch = e->epoch;
    ev.frame.step = e->step;
    ev.frame.n_runs = e->n_runs;
    ev.frame.runs = runs;
    ev.frame.has_hidden = e->has_hidden;
    give(p, &ev, e);
}

static void load_done(int p, const sim_job *j, mxd_rc rc, int peer) {
    sim_proc *q = &W.procs[p];
    mxd_wcore_event e = {.kind = MXD_WCORE_LOADED};
    bool fails = W.faults && !rc && sim_chance(W.swarm.load_fails);
    e.loaded.epoch = j->epoch;
    e.loaded.rc = fails ? (sim_chance(.5) ? MXD_E_NOMEM : MXD_E_IO) : rc;
    e.loaded.peer = peer;
    e.loaded.text = "the disk says no";
    e.loaded.bytes = (uint64_t)(j->layer1 - j->layer0);
    empty_slots(q);
    q->layer0 = fails ? 0 : j->layer0;
    q->layer1 = fails ? 0 : j->layer1;
    give(p, &e, NULL);
}

static void compute_done(int p, sim_job *j, mxd_rc rc, int peer) {
    static sim_event frame; /* the ring may be written while the actions are done */
    frame = j->frame;
    mxd_wcore_event e = {.kind = MXD_WCORE_COMPUTED};
    e.computed.epoch = j->epoch;
    e.computed.step = j->step;
    e.computed.rc = rc;
    e.computed.peer = peer;
    if (W.faults && !rc && sim_chance(W.swarm.load_fails / 50)) e.computed.rc = MXD_E_NOMEM;
    e.computed.ms = (float)W.procs[p].speed_ms;
    give(p, &e, &frame);
}

/* The job's own work is done; of a group, the others may take it. */
static void arrive(sim_proc *q, sim_job *j) {
    q->arrived = true;
    q->missed_ms = 0;
    if (j->kind == MXD_WACT_LOAD) {
        q->group = j->group;
        q->joined = j->epoch < q->over ? 0 : j->epoch;
    }
    if (j->kind != MXD_WACT_COMPUTE) return;
    forward_rows(q, &j->frame);
    q->sums_epoch = j->epoch;
    q->sums_step = j->step;
    q->sums_hash = sim_group_hash(&j->frame);
}

static void job_done(int p, sim_event *e) {
    sim_proc *q = &W.procs[p];
    if (q->hangs) {
        sim_event_again(e, W.now + 50);
        return;
    }
    uint64_t life = q->life;
    sim_job *j = job_at(p, 0);
    mxd_rc rc = MXD_OK;
    int peer = -1;
    if (!q->arrived) arrive(q, j);
    bool together = j->kind == MXD_WACT_LOAD || j->kind == MXD_WACT_COMPUTE;
    if (together && q->group.n > 1 && !sim_group_met(p, j, &rc, &peer)) {
        sim_event_again(e, W.now + sim_pick(1, 4));
        return;
    }
    q->arrived = false;
    q->first_job = (q->first_job + 1) % SIM_JOBS;
    q->n_jobs--;
    q->busy = false;
    switch (j->kind) {
    case MXD_WACT_LOAD:
        load_done(p, j, rc, peer);
        break;
    case MXD_WACT_COMPUTE:
        compute_done(p, j, rc, peer);
        break;
    case MXD_WACT_UNLOAD:
        q->layer0 = q->layer1 = 0;
        break;
    default:
        empty_slots(q);
        break;
    }
    if (q->up && q->life == life) next_job(p);
    sim_event_free(e);
}

static void message(int p, sim_event *e) {
    sim_proc *q = &W.procs[p];
    bool control = e->kind != M_FRAME;
    if (control && e->link != q->link) return;
    switch (e->kind) {
    case M_WELCOME:
        q->backoff_ms = 0;
        give_kind(p, MXD_WCORE_CONNECTED);
        break;
    case M_DROP:
        on_drop(p, e);
        break;
    case M_PLAN:
        q->prev_node = e->stage.prev;
        give(p, &(mxd_wcore_event){.kind = MXD_WCORE_PLAN, .stage = &e->stage}, NULL);
        break;
    case M_UNINSTALL:
        give(p, &(mxd_wcore_event){.kind = MXD_WCORE_UNINSTALL, .epoch = e->epoch}, NULL);
        break;
    default:
        on_frame(p, e);
        break;
    }
}

void sim_proc_event(sim_event *e) {
    int p = e->proc;
    sim_proc *q = &W.procs[p];
    if (!q->up || q->life != e->life) {
        sim_event_free(e);
    } else if (q->paused_until > W.now) {
        sim_event_again(e, q->paused_until);
    } else if (e->kind == EV_JOB) {
        job_done(p, e);
    } else if (e->kind == EV_TICK) {
        give_kind(p, MXD_WCORE_TICK);
        sim_event_again(e, W.now + W.swarm.tick_ms);
    } else {
        if (e->kind == EV_DIAL) dial(p);
        if (e->kind == EV_DOWN) down(p, e->link);
        if (e->kind == EV_NEIGHBOUR)
            give(p, &(mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = e->node},
                 NULL);
        if (e->kind >= EV_MSG_TO_PROC) message(p, e);
        sim_event_free(e);
    }
}
