/* The worker's state machine: which frames are computed, which plan is loaded. */
#include <string.h>
#include "cluster/core.h"
#include "runtime/mutants.h"

enum { MAX_JOBS = 256, MAX_ACTIONS = 16 }; /* of one event: far less than MAX_ACTIONS happen */

typedef enum worker_state { EMPTY, LOADING, READY } worker_state;

typedef struct worker_slot {
    uint64_t request;
    uint32_t len; /* positions with KV, or with a job queued that makes it */
} worker_slot;

typedef struct worker_job {
    uint64_t epoch, step;
} worker_job;

/* What of the model a stage makes a node hold. */
typedef struct worker_part {
    int layer0, layer1, rank, n_ranks;
    double share[MXD_MAX_RANKS];
} worker_part;

struct mxd_wcore {
    mxd_wcore_cfg cfg;
    int64_t now_ms, beat_ms, job_ms, drain_ms; /* job_ms: when the oldest job became the oldest */
    bool connected, draining, ended;

    worker_state state;
    uint64_t epoch;  /* the highest seen (W2) */
    bool planned;    /* stage is the part of `epoch` */
    mxd_stage stage; /* its strings are the sender's */
    uint64_t last_frame, last_step;
    float step_ms;

    bool loading;        /* a LOAD is with the driver, of this epoch and part */
    uint64_t load_epoch; /* of a LOAD that ended, too */
    worker_part load;
    bool loaded; /* this part is in memory, and of a group, the group of load_epoch came together */
    worker_part have;
    uint64_t bytes;

    worker_slot *slots;        /* [n_slots] */
    worker_job jobs[MAX_JOBS]; /* computing or queued, oldest first from first_job (W3) */
    int first_job, n_jobs;

    mxd_wcore_action actions[MAX_ACTIONS];
    int n_actions;
};

static bool valid(const mxd_wcore_cfg *cfg) {
    return cfg->n_slots >= 1 && cfg->n_slots <= MXD_MAX_SEQS && cfg->ctx >= 1 &&
           cfg->ctx <= MXD_MAX_CONTEXT;
}

static size_t slots_at(void) { return (sizeof(mxd_wcore) + 15) & ~(size_t)15; }

size_t mxd_wcore_bytes(const mxd_wcore_cfg *cfg) {
    return valid(cfg) ? slots_at() + (size_t)cfg->n_slots * sizeof(worker_slot) : 0;
}

mxd_wcore *mxd_wcore_init(void *memory, const mxd_wcore_cfg *cfg) {
    if (!valid(cfg)) return NULL;
    memset(memory, 0, mxd_wcore_bytes(cfg));
    mxd_wcore *w = memory;
    w->cfg = *cfg;
    if (!w->cfg.beat_ms) w->cfg.beat_ms = MXD_HEARTBEAT_MS;
    if (!w->cfg.leave_ms) w->cfg.leave_ms = 35000;
    w->slots = (worker_slot *)((unsigned char *)memory + slots_at());
    return w;
}

uint64_t mxd_wcore_epoch(const mxd_wcore *w) { return w->epoch; }

static mxd_wcore_action *act(mxd_wcore *w, mxd_wcore_action_kind kind) {
    MXD_ASSERT(w->n_actions < MAX_ACTIONS);
    mxd_wcore_action *a = &w->actions[w->n_actions++];
    *a = (mxd_wcore_action){
        .kind = kind, .node = MXD_CORE_COORDINATOR, .epoch = w->epoch, .text = ""};
    return a;
}

static void forget(mxd_wcore *w) {
    if (!MUTANT(KEEP_KV)) memset(w->slots, 0, (size_t)w->cfg.n_slots * sizeof *w->slots);
}

/* --------------------------------------------------------------------------------------- plans */

static void ready(mxd_wcore *w) {
    w->state = READY;
    act(w, MXD_WACT_READY)->bytes = w->bytes;
}

static worker_part part_of(const mxd_stage *s) {
    worker_part p = {s->layer0, s->layer1, s->rank, s->n_ranks, {0}};
    for (int r = 0; r < s->n_ranks; r++) p.share[r] = s->share[r];
    return p;
}

/* Is what `p` was loaded for what the plan wants? Groups are of one epoch. */
static bool wanted(const mxd_wcore *w, const worker_part *p) {
    const mxd_stage *s = &w->stage;
    if (p->layer0 != s->layer0 || p->layer1 != s->layer1) return false;
    if (p->rank != s->rank || p->n_ranks != s->n_ranks) return false;
    for (int r = 0; r < s->n_ranks; r++)
        if (p->share[r] != s->share[r]) return false;
    return s->n_ranks == 1 || w->load_epoch == w->epoch || MUTANT(OLD_GROUP);
}

static void load(mxd_wcore *w) {
    w->state = LOADING;
    w->loading = true;
    w->loaded = false;
    w->load_epoch = w->epoch;
    w->load = part_of(&w->stage);
    act(w, MXD_WACT_LOAD)->stage = &w->stage;
}

/* `peer`: for want of that node; NULL: for a reason of its own. */
static void failed(mxd_wcore *w, mxd_rc rc, const char *text, const mxd_stage_peer *peer) {
    w->planned = false;
    w->state = EMPTY;
    if (peer && w->connected) {
        act(w, MXD_WACT_NEIGHBOUR_DOWN)->node = peer->node;
        return;
    }
    mxd_wcore_action *a = act(w, MXD_WACT_FAILED);
    a->rc = rc;
    a->text = text ? text : "";
}

static bool makes_sense(const mxd_stage *s) {
    if (s->layer0 < 0 || s->layer1 <= s->layer0 || s->layer1 > MXD_MAX_LAYERS) return false;
    if (s->n_ranks < 1 || s->n_ranks > MXD_MAX_RANKS || s->n_next < 0 || s->n_next > MXD_MAX_RANKS)
        return false;
    return s->rank >= 0 && s->rank < s->n_ranks;
}

/* What belongs to older epochs is of no use any more, least of all what waits in them. */
static void enter_epoch(mxd_wcore *w, uint64_t epoch) {
    w->epoch = epoch;
    if (!MUTANT(NO_ABORT)) act(w, MXD_WACT_ABORT);
    forget(w);
}

/* A plan says what to load; whole layers that are loaded already stay, only their KV is emptied. A
 * load that runs cannot be stopped, but for its waiting: its end decides. */
static void on_plan(mxd_wcore *w, const mxd_stage *s) {
    if (s->epoch < w->epoch || s->epoch >= MXD_CORE_MAX_EPOCH) return;
    if (s->epoch == w->epoch && !MUTANT(REINSTALL)) {
        if (w->planned && w->state == READY) ready(w);
        return;
    }
    enter_epoch(w, s->epoch);
    w->last_frame = w->last_step = 0;
    if (!makes_sense(s)) {
        failed(w, MXD_E_INVAL, "the plan's layers make no sense", NULL);
        return;
    }
    w->stage = *s;
    w->planned = true;
    if (s->rank == 0 && s->n_next) act(w, MXD_WACT_LINK_NEXT)->stage = &w->stage;
    w->state = LOADING;
    if (w->loading) return;
    if (!w->loaded || !wanted(w, &w->have)) {
        load(w);
        return;
    }
    if (!MUTANT(KEEP_KV)) act(w, MXD_WACT_FORGET);
    ready(w);
}

/* The rank of our stage that something was in want of; NULL: it is not known. */
static const mxd_stage_peer *missed(const mxd_wcore *w, mxd_rc rc, int rank) {
    bool known = rc == MXD_E_PEER && rank >= 0 && rank < w->stage.n_ranks && rank != w->stage.rank;
    return known ? &w->stage.ranks[rank] : NULL;
}

static void on_loaded(mxd_wcore *w, const mxd_wcore_event *e) {
    if (!w->loading) return;
    w->loading = false;
    w->loaded = e->loaded.rc == MXD_OK;
    w->have = w->load;
    w->bytes = e->loaded.bytes;
    if (!w->planned) {
        act(w, MXD_WACT_UNLOAD);
        w->loaded = false;
        return;
    }
    if (!wanted(w, &w->have) && !MUTANT(OLD_LOAD)) {
        load(w);
        return;
    }
    if (w->loaded)
        ready(w);
    else
        failed(w, e->loaded.rc, e->loaded.text, missed(w, e->loaded.rc, e->loaded.peer));
}

static void on_uninstall(mxd_wcore *w, uint64_t epoch) {
    if (epoch < w->epoch || epoch >= MXD_CORE_MAX_EPOCH) return;
    enter_epoch(w, epoch);
    w->planned = false;
    w->state = EMPTY;
    if (w->loaded) act(w, MXD_WACT_UNLOAD);
    w->loaded = false;
}

/* -------------------------------------------------------------------------------------- frames */

static void nack(mxd_wcore *w, uint64_t epoch, uint64_t step, mxd_rc rc, const char *text) {
    mxd_wcore_action *a = act(w, MXD_WACT_NACK);
    a->epoch = epoch;
    a->step = step;
    a->rc = rc;
    a->text = text;
}

static bool well_formed(const mxd_wcore *w, const mxd_wcore_event *e) {
    if (e->frame.n_runs < 1 || e->frame.n_runs > MXD_MAX_STEP_RUNS) return false;
    if (e->frame.has_hidden == w->stage.embed) return false;
    for (int i = 0; i < e->frame.n_runs; i++) {
        const mxd_core_run *r = &e->frame.runs[i];
        if (r->slot >= w->cfg.n_slots || r->n < 1) return false;
        if (r->begin && r->from >= w->cfg.n_slots) return false;
        if ((uint64_t)r->pos + r->n > (uint64_t)w->cfg.ctx) return false;
        for (int k = 0; k < i; k++)
            if (e->frame.runs[k].slot == r->slot) return false;
    }
    return true;
}

/* Does slot `from` hold what the run begins with, and still will when the run's turn comes? */
static bool begins(const mxd_wcore *w, const mxd_wcore_event *e, const mxd_core_run *r) {
    const worker_slot *s = &w->slots[r->from];
    if (MUTANT(NO_SOURCE_CHECK)) return true;
    if (s->request != r->from_request || s->len < r->pos) return false;
    for (int i = 0; i < e->frame.n_runs; i++) {
        const mxd_core_run *other = &e->frame.runs[i];
        if (other != r && other->slot == r->from && (other->begin || other->pos == 0)) return false;
    }
    return true;
}

/* (W1) Every run goes on exactly where its slot ends, or starts the slot anew. */
static bool continues(const mxd_wcore *w, const mxd_wcore_event *e) {
    for (int i = 0; i < e->frame.n_runs; i++) {
        const mxd_core_run *r = &e->frame.runs[i];
        const worker_slot *s = &w->slots[r->slot];
        if (r->pos == 0) continue;
        if (r->begin) {
            if (!begins(w, e, r)) return false;
            continue;
        }
        if (s->request != r->request && !MUTANT(NO_REQUEST_CHECK)) return false;
        if (s->len != r->pos && !MUTANT(NO_POSITION_CHECK)) return false;
    }
    return true;
}

static void on_frame(mxd_wcore *w, const mxd_wcore_event *e) {
    uint64_t epoch = e->frame.epoch, step = e->frame.step;
    bool current = epoch == w->epoch || MUTANT(NO_EPOCH_CHECK);
    if (w->state != READY || !current) {
        nack(w, epoch, step, MXD_E_STALE, "not the plan that is installed here");
        return;
    }
    if (step <= w->last_frame) return; /* came twice: the first one counts */
    if (w->n_jobs == MAX_JOBS) {
        nack(w, epoch, step, MXD_E_BUSY, "too many steps wait here");
        return;
    }
    if (!well_formed(w, e)) {
        nack(w, epoch, step, MXD_E_FORMAT, "the frame makes no sense for this stage");
        return;
    }
    if (!continues(w, e)) {
        nack(w, epoch, step, MXD_E_STALE, "a sequence does not go on where its KV ends");
        return;
    }
    for (int i = 0; i < e->frame.n_runs; i++) {
        const mxd_core_run *r = &e->frame.runs[i];
        w->slots[r->slot] = (worker_slot){.request = r->request, .len = r->pos + r->n};
    }
    w->last_frame = step;
    if (!w->n_jobs) w->job_ms = w->now_ms;
    w->jobs[(w->first_job + w->n_jobs++) % MAX_JOBS] = (worker_job){epoch, step};
    mxd_wcore_action *a = act(w, MXD_WACT_COMPUTE);
    a->epoch = epoch;
    a->step = step;
}

static void on_computed(mxd_wcore *w, const mxd_wcore_event *e) {
    const worker_job *job = &w->jobs[w->first_job];
    MXD_ASSERT(w->n_jobs && job->epoch == e->computed.epoch && job->step == e->computed.step);
    w->first_job = (w->first_job + 1) % MAX_JOBS;
    w->n_jobs--;
    w->job_ms = w->now_ms;
    bool current = e->computed.epoch == w->epoch && w->state == READY;
    if (!current && !MUTANT(NO_EPOCH_CHECK)) {
        act(w, MXD_WACT_DISCARD)->step = e->computed.step;
        return;
    }
    const mxd_stage_peer *peer = missed(w, e->computed.rc, e->computed.peer);
    if (peer && w->connected) {
        act(w, MXD_WACT_NEIGHBOUR_DOWN)->node = peer->node;
        return;
    }
    if (e->computed.rc) {
        nack(w, e->computed.epoch, e->computed.step, e->computed.rc, "the step failed");
        return;
    }
    w->last_step = e->computed.step;
    w->step_ms = e->computed.ms;
    mxd_wcore_action_kind what = w->stage.rank > 0     ? MXD_WACT_DISCARD
                                 : w->stage.n_next > 0 ? MXD_WACT_FORWARD
                                                       : MXD_WACT_RESULT;
    act(w, what)->step = e->computed.step;
}

/* ------------------------------------------------------------------------------- links and time */

static void leave(mxd_wcore *w) {
    if (w->ended) return;
    w->ended = true;
    act(w, MXD_WACT_EXIT);
}

static void beat(mxd_wcore *w) {
    w->beat_ms = w->now_ms;
    mxd_wcore_action *a = act(w, MXD_WACT_BEAT);
    a->beat = (mxd_core_beat){.epoch = w->planned ? w->epoch : 0,
                              .last_step = w->last_step,
                              .step_age_ms = w->n_jobs ? w->now_ms - w->job_ms : 0,
                              .step_ms = w->step_ms};
}

static void on_tick(mxd_wcore *w) {
    if (w->connected && w->now_ms - w->beat_ms >= w->cfg.beat_ms) beat(w);
    if (w->draining && w->now_ms - w->drain_ms >= w->cfg.leave_ms) leave(w);
}

static void on_connected(mxd_wcore *w) {
    w->connected = true;
    beat(w);
    if (w->draining) act(w, MXD_WACT_LEAVE);
}

static void on_coordinator_down(mxd_wcore *w) {
    w->connected = false;
    if (w->draining)
        leave(w);
    else
        act(w, MXD_WACT_CONNECT);
}

static bool is_neighbour(const mxd_stage *s, int node) {
    if (node == MXD_CORE_COORDINATOR) return false;
    for (int r = 0; r < s->n_ranks; r++)
        if (r != s->rank && s->ranks[r].node == node) return true;
    for (int r = 0; r < s->n_next && s->rank == 0; r++)
        if (s->next[r].node == node) return true;
    return node == s->prev;
}

static void on_neighbour_down(mxd_wcore *w, int node) {
    if (!w->planned || !w->connected || !is_neighbour(&w->stage, node)) return;
    act(w, MXD_WACT_NEIGHBOUR_DOWN)->node = node;
}

static void on_drain(mxd_wcore *w) {
    if (w->draining) return;
    w->draining = true;
    w->drain_ms = w->now_ms;
    if (w->connected)
        act(w, MXD_WACT_LEAVE);
    else
        leave(w);
}

static void dispatch(mxd_wcore *w, const mxd_wcore_event *e) {
    switch (e->kind) {
    case MXD_WCORE_TICK:
        on_tick(w);
        break;
    case MXD_WCORE_CONNECTED:
        on_connected(w);
        break;
    case MXD_WCORE_COORDINATOR_DOWN:
        on_coordinator_down(w);
        break;
    case MXD_WCORE_NEIGHBOUR_DOWN:
        on_neighbour_down(w, e->neighbour);
        break;
    case MXD_WCORE_PLAN:
        on_plan(w, e->stage);
        break;
    case MXD_WCORE_UNINSTALL:
        on_uninstall(w, e->epoch);
        break;
    case MXD_WCORE_LOADED:
        on_loaded(w, e);
        break;
    case MXD_WCORE_FRAME:
        on_frame(w, e);
        break;
    case MXD_WCORE_COMPUTED:
        on_computed(w, e);
        break;
    case MXD_WCORE_DRAIN:
        on_drain(w);
        break;
    case MXD_WCORE_RELEASED:
        leave(w);
        break;
    }
}

void mxd_wcore_step(mxd_wcore *w, const mxd_wcore_event *event, mxd_wcore_actions *out) {
    w->n_actions = 0;
    if (event->now_ms > w->now_ms) w->now_ms = event->now_ms;
    dispatch(w, event);
    *out = (mxd_wcore_actions){.list = w->actions, .n = w->n_actions};
}

void mxd_wcore_check(const mxd_wcore *w) {
    bool right = w->loaded && wanted(w, &w->have);
    MXD_ASSERT(w->state != READY || (w->planned && right && !w->loading));
    MXD_ASSERT(w->state != LOADING || (w->planned && w->loading));
    MXD_ASSERT(w->n_jobs >= 0 && w->n_jobs <= MAX_JOBS);
    MXD_ASSERT(w->last_step <= w->last_frame || MUTANT(NO_EPOCH_CHECK));
    for (int i = 0; i < w->cfg.n_slots; i++) MXD_ASSERT(w->slots[i].len <= (uint32_t)w->cfg.ctx);
    for (int k = 1; k < w->n_jobs; k++) { /* W2, W3 */
        const worker_job *a = &w->jobs[(w->first_job + k - 1) % MAX_JOBS];
        const worker_job *b = &w->jobs[(w->first_job + k) % MAX_JOBS];
        MXD_ASSERT(MUTANT(NO_EPOCH_CHECK) || a->epoch < b->epoch ||
                   (a->epoch == b->epoch && a->step < b->step));
    }
}
