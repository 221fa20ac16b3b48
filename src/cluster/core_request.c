/* Queue, slots, tokens. (I1) Only append() extends a request's list, and only at its end. */
#include <string.h>
#include "cluster/core_private.h"

static int n_tokens(const core_request *r) { return r->in.n_prompt + r->n_out; }
int32_t *core_list(const mxd_coord *c, int slot) {
    return c->tokens + (size_t)slot * (size_t)c->cfg.ctx;
}

static core_request *find(mxd_coord *c, uint64_t id) {
    for (int i = 0; i < c->n_requests; i++)
        if (c->requests[i].state != REQUEST_NONE && c->requests[i].in.request == id)
            return &c->requests[i];
    return NULL;
}

static core_request *running(mxd_coord *c, uint64_t id) {
    for (int s = 0; s < c->cfg.n_slots; s++)
        if (c->slots[s].request >= 0 && c->requests[c->slots[s].request].in.request == id)
            return &c->requests[c->slots[s].request];
    return NULL;
}

/* ----------------------------------------------------------------------------------------- end */

static void journal(mxd_coord *c, const core_request *r, mxd_journal_kind kind, int index,
                    const mxd_sampled *sampled) {
    if (!r->in.resumable) return; /* nobody could ask for it again */
    core_act(c, MXD_ACT_JOURNAL)->journal = (mxd_core_journal){.kind = kind,
                                                               .epoch = c->epoch,
                                                               .request = r->in.request,
                                                               .index = (uint32_t)index,
                                                               .sampled = sampled};
}

static void leave_queue(mxd_coord *c, const core_request *r) {
    int me = (int)(r - c->requests), k = 0;
    while (c->waiting[k] != me) k++;
    c->n_waiting--;
    memmove(c->waiting + k, c->waiting + k + 1, (size_t)(c->n_waiting - k) * sizeof *c->waiting);
}

static void leave_slot(mxd_coord *c, const core_request *r) {
    c->slots[r->slot].request = -1;
    c->n_running--;
    core_prefix_leave(c, r->slot);
}

static void count_end(mxd_coord *c, mxd_core_end how) {
    if (how == MXD_CORE_ERROR)
        c->n_failed++;
    else if (how == MXD_CORE_CANCELLED)
        c->n_cancelled++;
    else
        c->n_done++;
}

void core_request_end(mxd_coord *c, core_request *r, mxd_core_end how, mxd_rc rc,
                      const char *text) {
    journal(c, r, MXD_JOURNAL_END, r->n_out, NULL);
    mxd_coord_action *a = core_act(c, MXD_ACT_DONE);
    int64_t start = r->start_ms >= 0 ? r->start_ms : c->now_ms;
    int64_t first = r->first_ms >= 0 ? r->first_ms : c->now_ms;
    a->request = r->in.request;
    a->rc = rc;
    a->text = text;
    a->done = (mxd_core_done){.how = how,
                              .rc = rc,
                              .n_prompt = r->in.n_prompt,
                              .n_out = r->n_out,
                              .n_cached = core_cached(r),
                              .n_replays = r->n_replays,
                              .queue_ms = start - r->submit_ms,
                              .prefill_ms = first - start,
                              .decode_ms = c->now_ms - first};
    count_end(c, how);
    if (r->state == REQUEST_WAITING)
        leave_queue(c, r);
    else if (!MUTANT(LEAK_SLOT) || how != MXD_CORE_CANCELLED)
        leave_slot(c, r);
    r->state = REQUEST_NONE;
    c->changed = true;
}

void core_requests_fail_all(mxd_coord *c, mxd_rc rc, const char *text) {
    if (!c->n_running && !c->n_waiting) return;
    for (int i = 0; i < c->n_requests; i++)
        if (c->requests[i].state != REQUEST_NONE)
            core_request_end(c, &c->requests[i], MXD_CORE_ERROR, rc, text);
}

/* -------------------------------------------------------------------------------------- submit */

static mxd_rc judge(mxd_coord *c, const mxd_core_submit *s, const char **text) {
    *text = "the request makes no sense";
    if (!s->request || s->request == MXD_CORE_CANARY || find(c, s->request) || s->n_prompt < 1 ||
        s->max_tokens < 1)
        return MXD_E_INVAL;
    if (s->n_stop_ids < 0 || s->n_stop_ids > MXD_CORE_STOP_IDS) return MXD_E_INVAL;
    *text = "the prompt fills the context; shorten it, or start with a larger --ctx-size";
    if (s->n_prompt >= c->cfg.ctx) return MXD_E_CONTEXT;
    *text = "the prompt has ids that the vocabulary has not";
    for (int i = 0; i < s->n_prompt; i++)
        if (s->prompt[i] < 0 || s->prompt[i] >= c->cfg.n_vocab) return MXD_E_INVAL;
    *text = "the tokens that it was to go on behind make no sense";
    if (!core_restore_fits(c, s)) return MXD_E_INVAL;
    *text = "the server is shutting down";
    if (c->draining) return MXD_E_SHUTDOWN;
    *text = "no worker is there; start one, or wait for one to join";
    if (!core_anybody(c)) return MXD_E_PEER;
    *text = "the queue is full; try again later";
    return c->n_waiting < MXD_MAX_WAITING ? MXD_OK : MXD_E_BUSY;
}

void core_on_submit(mxd_coord *c, const mxd_core_submit *s) {
    const char *text;
    mxd_rc rc = judge(c, s, &text);
    mxd_coord_action *a = core_act(c, rc ? MXD_ACT_REFUSED : MXD_ACT_ACCEPTED);
    a->request = s->request;
    a->rc = rc;
    if (rc) {
        a->text = text;
        return;
    }
    int k = 0;
    while (c->requests[k].state != REQUEST_NONE) k++;
    core_request *r = &c->requests[k];
    *r = (core_request){.state = REQUEST_WAITING,
                        .in = *s,
                        .submit_ms = c->now_ms,
                        .start_ms = -1,
                        .first_ms = -1,
                        .stalled_ms = -1,
                        .n_cached = -1,
                        .slot = -1};
    r->in.how.n_prompt = (uint32_t)s->n_prompt;
    r->n_out = s->n_accepted;
    c->waiting[c->n_waiting++] = k;
    c->changed = true;
    core_restored(c, r);
}

void core_on_cancel(mxd_coord *c, uint64_t id) {
    core_request *r = find(c, id);
    if (r) core_request_end(c, r, MXD_CORE_CANCELLED, MXD_E_CANCELED, "cancelled");
}

static void request_admit(mxd_coord *c, int slot) {
    core_request *r = &c->requests[c->waiting[0]];
    core_prefix_admit(c, slot, r);
    c->slots[slot].request = c->waiting[0];
    c->n_waiting--;
    memmove(c->waiting, c->waiting + 1, (size_t)c->n_waiting * sizeof *c->waiting);
    c->n_running++;
    r->state = REQUEST_RUNNING;
    r->slot = slot;
    r->start_ms = c->now_ms;
    memcpy(core_list(c, slot), r->in.prompt, (size_t)r->in.n_prompt * sizeof *r->in.prompt);
    core_restore_list(c, r);
    c->n_prompt_tokens += (uint64_t)r->in.n_prompt;
    c->changed = true;
}

/* --------------------------------------------------------------------------------------- steps */

core_flight *core_flight_at(mxd_coord *c, int i) {
    return &c->flights[(c->first_flight + i) % CORE_MAX_FLIGHTS];
}

static void fill_run(mxd_coord *c, const mxd_sched_run *from, mxd_core_run *to) {
    const core_request *r = &c->requests[c->slots[from->slot].request];
    *to = (mxd_core_run){.request = r->in.request,
                         .pos = from->pos,
                         .slot = from->slot,
                         .n = from->n,
                         .sample = from->sample,
                         .ids = core_list(c, from->slot) + from->pos,
                         .how = &r->in.how};
    core_prefix_fill(c, to);
}

/* (I2) Every frame is cut from the coordinator's own lists. */
static void send_step(mxd_coord *c, const mxd_sched_step *next) {
    if (!c->n_flights) c->progress_ms = c->now_ms;
    core_flight *f = core_flight_at(c, c->n_flights++);
    f->step = ++c->step;
    f->n_runs = next->n_runs;
    f->n_rows = next->n_rows;
    f->decode = next->decode;
    f->n_sample = 0;
    for (int i = 0; i < next->n_runs; i++) {
        fill_run(c, &next->runs[i], &f->runs[i]);
        core_prefix_sent(c, &f->runs[i]);
        f->n_sample += next->runs[i].sample;
    }
    mxd_coord_action *a = core_act_node(c, MXD_ACT_STEP, c->plan.stages[0].ranks[0].node);
    a->step = f->step;
    a->runs = f->runs;
    a->n_runs = f->n_runs;
    a->n_rows = f->n_rows;
    c->n_steps++;
}

void core_requests_settle(mxd_coord *c) {
    if (c->state != MXD_COORD_SERVING) return;
    while (c->n_waiting && c->n_running < c->cfg.n_slots)
        request_admit(c, core_prefix_slot(c, &c->requests[c->waiting[0]]));
    core_prefix_begin(c);
    while (mxd_sched_next(&c->sched, &c->next_step)) {
        send_step(c, &c->next_step);
        core_prefix_begin(c);
    }
}

void core_requests_stall(mxd_coord *c) {
    for (int s = 0; s < c->cfg.n_slots; s++) {
        if (c->slots[s].request < 0) continue;
        core_request *r = &c->requests[c->slots[s].request];
        if (r->stalled_ms < 0) r->stalled_ms = c->now_ms;
    }
}

void core_requests_restart(mxd_coord *c) {
    if (MUTANT(NO_REPLAY)) {
        c->sched.n_stages = c->plan.n_stages;
        c->sched.in_flight = c->sched.decode_in_flight = 0;
        for (int s = 0; s < c->cfg.n_slots; s++)
            if (c->sched.seqs[s].used) c->sched.seqs[s].n_sent = c->sched.seqs[s].n_tokens - 1;
        return;
    }
    mxd_sched_restart(&c->sched, c->plan.n_stages);
    core_prefix_reset(c);
    for (int s = 0; s < c->cfg.n_slots; s++)
        if (c->slots[s].request >= 0) c->requests[c->slots[s].request].n_replays++;
    c->n_replays += (uint64_t)c->n_running;
}

/* -------------------------------------------------------------------------------------- results */

bool core_is_stop(const core_request *r, int32_t token) {
    if (r->in.ignore_eos || r->n_out <= r->in.min_tokens || MUTANT(STOP_IGNORED)) return false;
    for (int i = 0; i < r->in.n_stop_ids; i++)
        if (r->in.stop_ids[i] == token) return true;
    return false;
}

static void show(mxd_coord *c, const core_request *r, const mxd_sampled *sampled, bool stop) {
    mxd_coord_action *a = core_act(c, MXD_ACT_TOKEN);
    a->request = r->in.request;
    a->index = (uint32_t)r->n_out - 1;
    a->stop = stop;
    a->sampled = sampled;
}

static void append(mxd_coord *c, core_request *r, const mxd_sampled *sampled) {
    MXD_ASSERT(n_tokens(r) < c->cfg.ctx);
    core_list(c, r->slot)[n_tokens(r)] = sampled->token;
    r->n_out++;
    r->stalled_ms = -1;
    if (r->first_ms < 0) r->first_ms = c->now_ms;
    c->n_generated++;
    if (c->fruitless) core_epoch_fruit(c);
    c->patience = 1;
    bool stop = core_is_stop(r, sampled->token);
    if (MUTANT(TOKEN_FIRST)) show(c, r, sampled, stop);
    journal(c, r, MXD_JOURNAL_TOKEN, r->n_out - 1, sampled);
    if (!MUTANT(TOKEN_FIRST)) show(c, r, sampled, stop);
    if (stop)
        core_request_end(c, r, MXD_CORE_STOP, MXD_OK, "");
    else if (r->n_out >= r->in.max_tokens || n_tokens(r) >= c->cfg.ctx)
        core_request_end(c, r, MXD_CORE_LENGTH, MXD_OK, "");
    else
        mxd_sched_token(&c->sched, r->slot);
}

static int find_flight(mxd_coord *c, uint64_t step) {
    for (int i = 0; i < c->n_flights; i++)
        if (core_flight_at(c, i)->step == step) return i;
    return -1;
}

/* Does the result answer the step? Whoever sent it may be broken. */
static bool answers(const mxd_coord *c, const core_flight *f, const mxd_core_result *r) {
    if (r->n != f->n_sample) return false;
    for (int i = 0, k = 0; i < f->n_runs; i++) {
        if (!f->runs[i].sample) continue;
        const struct mxd_core_result_run *run = &r->runs[k++];
        if (run->request != f->runs[i].request || run->pos != f->runs[i].pos + f->runs[i].n)
            return false;
        if (run->sampled.token < 0 || run->sampled.token >= c->cfg.n_vocab) return false;
    }
    return true;
}

/* Results come in the order of their steps. One that is passed over was lost on its way. */
static void flight_end(mxd_coord *c, int at) {
    core_flight *f = core_flight_at(c, at);
    mxd_sched_done(&c->sched, f->decode);
    core_pace_learn(c, f->n_rows, c->now_ms - c->progress_ms);
    c->progress_ms = c->now_ms;
    c->first_flight = (c->first_flight + 1) % CORE_MAX_FLIGHTS;
    c->n_flights--;
}

void core_on_result(mxd_coord *c, const mxd_core_result *r) {
    if (c->canary_step && r->epoch == c->epoch && r->step == c->canary_step) {
        core_canary_result(c, r);
        return;
    }
    bool current = c->state == MXD_COORD_SERVING && r->epoch == c->epoch;
    if (!current && !MUTANT(ANY_RESULT)) return;
    int at = find_flight(c, r->step);
    if (at < 0 && !MUTANT(ANY_RESULT) && !MUTANT(DOUBLE_RESULT)) return;
    if (at > 0 || (at == 0 && !answers(c, core_flight_at(c, at), r))) {
        if (at == 0) core_node_failed(c, c->plan.stages[c->plan.n_stages - 1].ranks[0].node);
        core_epoch_lost(c);
        return;
    }
    if (at == 0) flight_end(c, at);
    for (int i = 0; i < r->n; i++) {
        core_request *q = running(c, r->runs[i].request);
        bool next = q && r->runs[i].pos == (uint32_t)n_tokens(q);
        if (next || (q && (MUTANT(ANY_RESULT) || MUTANT(DOUBLE_RESULT))))
            append(c, q, &r->runs[i].sampled);
    }
}

/* --------------------------------------------------------------------------------------- time */

static void watch(mxd_coord *c, core_request *r) {
    if (r->in.deadline_ms && c->now_ms >= r->in.deadline_ms) {
        core_request_end(c, r, MXD_CORE_ERROR, MXD_E_TIMEOUT, "the request's deadline passed");
        return;
    }
    bool waits = r->state == REQUEST_WAITING;
    bool hopeless = c->state == MXD_COORD_FORMING || c->why_rc; /* not just still loading */
    int64_t since = r->stalled_ms;
    if (waits) since = r->submit_ms > c->unserved_ms ? r->submit_ms : c->unserved_ms;
    bool stalls = c->state != MXD_COORD_SERVING && (waits ? hopeless : since >= 0);
    if (!stalls || c->now_ms - since <= c->cfg.recovery_ms) return;
    bool nofit = c->why_rc == MXD_E_NOFIT, said = c->why_rc && c->why[0];
    core_request_end(c, r, MXD_CORE_ERROR, nofit ? MXD_E_NOFIT : MXD_E_PEER,
                     said ? c->why : "workers were lost and did not come back in time");
}

void core_requests_tick(mxd_coord *c) {
    if (!c->n_running && !c->n_waiting) return;
    for (int i = 0; i < c->n_requests; i++)
        if (c->requests[i].state != REQUEST_NONE) watch(c, &c->requests[i]);
}
