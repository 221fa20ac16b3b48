/* Requests, and the oracle: every token that a client sees must be what an undisturbed model of
 * the client's own gives on the client's own prefix, in order, without a gap, exactly once. */
#include <string.h>
#include "sim.h"

/* Prompts begin as others do. */
static void begin_alike(sim_client *c) {
    bool crowd = W.swarm.crowd;
    const sim_client *other = &W.clients[crowd ? 0 : sim_pick(0, W.n_clients - 1)];
    int n = sim_chance(.7) ? sim_pick(0, c->n_prompt) : 0;
    if (crowd) n = c->n_prompt - sim_pick(0, 9);
    for (int i = 0; i < n && i < other->n_prompt; i++) c->prompt[i] = other->prompt[i];
}

static void draw(sim_client *c) {
    c->n_prompt = sim_pick(1, sim_chance(W.swarm.crowd ? .8 : .3) ? W.cfg.ctx - 4 : 8);
    c->max_tokens = sim_pick(1, 30);
    c->min_tokens = sim_chance(.3) ? sim_pick(0, 6) : 0;
    c->n_stop = sim_chance(.5) ? sim_pick(1, 2) : 0;
    c->ignore_eos = sim_chance(.1);
    c->resumable = sim_chance(.8);
    c->seed = sim_chance(.5) ? sim_rnd() : 0;
    c->n_turns = sim_pick(0, 3);
    for (int i = 0; i < c->n_prompt; i++) c->prompt[i] = sim_pick(0, SIM_VOCAB - 1);
    begin_alike(c);
    for (int i = 0; i < c->n_stop; i++) c->stop[i] = sim_pick(0, SIM_VOCAB - 1);
}

void sim_clients_draw(void) {
    bool crowd = W.swarm.crowd;
    W.n_clients = sim_pick(1, crowd ? SIM_REQUESTS : SIM_REQUESTS / 2);
    int from = crowd ? sim_pick(W.swarm.faults_ms / 2, W.swarm.faults_ms) : 1;
    int to = crowd ? from + 30 : W.swarm.faults_ms;
    for (int i = 0; i < W.n_clients; i++) {
        draw(&W.clients[i]);
        sim_event *e = sim_event_new(EV_CLIENT, sim_pick(from, to));
        e->node = i;
        sim_event_push(e);
    }
}

/* A chat goes on: the answer, or most of it, and another question. */
static bool next_turn(sim_client *c) {
    int n = c->n_prompt, keep = sim_chance(.7) ? c->n_out : sim_pick(0, c->n_out);
    int more = sim_pick(0, 6);
    if (!c->n_turns || n + keep + more + 1 >= W.cfg.ctx) return false;
    c->n_turns--;
    memcpy(c->prompt + n, c->out, (size_t)keep * sizeof *c->out);
    for (int i = 0; i < more; i++) c->prompt[n + keep + i] = sim_pick(0, SIM_VOCAB - 1);
    c->n_prompt = n + keep + more;
    return true;
}

/* What the oracle's own model makes of one more position. */
static void feed(sim_client *c, int32_t id) {
    uint64_t act = sim_embed(id);
    for (int l = 0; l < SIM_LAYERS; l++) sim_layer(&c->kv[l], l, &act);
    c->act = act;
}

static void submit(sim_client *c) {
    c->id = ++W.next_request;
    c->ended = c->last_stop = c->wants_cancel = c->accepted = c->restoring = false;
    c->n_out = c->n_next = c->n_journal = 0;
    c->submit_ms = c->token_ms = W.now;
    c->cancel_at = W.faults && sim_chance(W.swarm.crowd ? .4 : .1)
                       ? W.now + sim_pick(1, sim_chance(.5) ? 300 : 3000)
                       : 0;
    c->deadline_ms = W.faults && sim_chance(.1) ? W.now + sim_pick(100, 9000) : 0;
    memset(c->kv, 0, sizeof c->kv);
    for (int i = 0; i < c->n_prompt; i++) feed(c, c->prompt[i]);
    c->submit = (mxd_core_submit){.request = c->id,
                                  .prompt = c->prompt,
                                  .n_prompt = c->n_prompt,
                                  .max_tokens = c->max_tokens,
                                  .min_tokens = c->min_tokens,
                                  .stop_ids = c->stop,
                                  .n_stop_ids = c->n_stop,
                                  .ignore_eos = c->ignore_eos,
                                  .how = {.seed = c->seed},
                                  .resumable = c->resumable,
                                  .deadline_ms = c->deadline_ms};
    sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &c->submit});
}

/* A client that failed asks again; one that gave up does so too, until an answer is complete. */
void sim_client_event(sim_event *e) {
    sim_client *c = &W.clients[e->node];
    if (W.coord_down) {
        sim_event_again(e, W.now + 50);
        return;
    }
    if (!c->ever_ok && (!c->id || c->ended)) submit(c);
    if (!c->ended && c->cancel_at && W.now >= c->cancel_at) {
        c->wants_cancel = true;
        c->cancel_at = 0;
        if (c->restoring) c->ended = true, c->restoring = false;
        sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = c->id});
    }
    if (c->ever_ok)
        sim_event_free(e);
    else
        sim_event_again(e, c->cancel_at > W.now && c->cancel_at < W.now + 200 ? c->cancel_at
                                                                              : W.now + 200);
}

bool sim_clients_done(void) {
    for (int i = 0; i < W.n_clients; i++)
        if (!W.clients[i].ever_ok) return false;
    return true;
}

/* -------------------------------------------------------------------------------------- oracle */

static bool is_stop(const sim_client *c, int32_t token) {
    if (c->ignore_eos || c->n_out <= c->min_tokens) return false;
    for (int i = 0; i < c->n_stop; i++)
        if (c->stop[i] == token) return true;
    return false;
}

/* One more token, whose place was checked. */
void sim_client_sees(sim_client *c, int32_t token) {
    if (token != sim_sample(c->act, c->seed, (uint32_t)(c->n_prompt + c->n_out)))
        sim_fail("SAFETY: a wrong token");
    c->out[c->n_out++] = token;
    c->n_next = c->n_out;
    c->token_ms = W.now;
    c->last_stop = is_stop(c, token);
    feed(c, token);
}

static void on_token(sim_client *c, const mxd_coord_action *a) {
    int32_t token = a->sampled->token;
    bool again = c->n_next < c->n_out;
    if (c->ended) sim_fail("SAFETY: a token after the end");
    if (c->last_stop && !again) sim_fail("SAFETY: a token after a stop id");
    if (a->index != (uint32_t)c->n_next) sim_fail("SAFETY: a gap or a double");
    if (c->resumable && c->n_journal <= c->n_next)
        sim_fail("SAFETY: a token that is not in the journal");
    if (c->n_next >= c->max_tokens || c->n_prompt + c->n_next >= W.cfg.ctx)
        sim_fail("SAFETY: too many tokens");
    if (W.failure) return;
    if (again) { /* its record was torn off: the client has it already */
        if (token != c->out[c->n_next]) sim_fail("SAFETY: another token the second time");
        c->n_next++;
        c->token_ms = W.now;
        return;
    }
    sim_client_sees(c, token);
    if (a->stop != c->last_stop) sim_fail("SAFETY: a stop id is not seen as one");
}

static bool all_nodes_gone(void) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const mxd_node_view *n = mxd_coord_node(W.coord, i);
        if (n->link || (n->state == MXD_NODE_JOINING)) return false;
    }
    return true;
}

static void on_error(const sim_client *c, const mxd_coord_action *a) {
    if (a->rc == MXD_E_TIMEOUT) {
        if (!c->deadline_ms || W.now < c->deadline_ms) sim_fail("SAFETY: failed before its time");
        return;
    }
    if (a->rc != MXD_E_PEER && a->rc != MXD_E_NOFIT) sim_fail("SAFETY: an error that cannot be");
    if (W.now - c->token_ms < W.cfg.recovery_ms && !all_nodes_gone())
        sim_fail("SAFETY: failed although it could have gone on");
}

void sim_client_ended(sim_client *c, mxd_core_end how) {
    if (how == MXD_CORE_STOP || how == MXD_CORE_LENGTH) c->ever_ok = !next_turn(c);
}

static void on_done(sim_client *c, const mxd_coord_action *a) {
    bool full = c->n_out == c->max_tokens || c->n_prompt + c->n_out == W.cfg.ctx;
    if (c->ended) sim_fail("SAFETY: two ends");
    bool whole = a->done.how == MXD_CORE_STOP || a->done.how == MXD_CORE_LENGTH;
    if (a->done.n_out != (whole ? c->n_out : c->n_next))
        sim_fail("SAFETY: tokens are missing at the end");
    c->ended = true;
    switch (a->done.how) {
    case MXD_CORE_STOP:
        if (!c->last_stop) sim_fail("SAFETY: a stop without a stop id");
        break;
    case MXD_CORE_LENGTH:
        if (!full || c->last_stop) sim_fail("SAFETY: an end that is none");
        break;
    case MXD_CORE_CANCELLED:
        if (!c->wants_cancel) sim_fail("SAFETY: nobody cancelled");
        break;
    case MXD_CORE_ERROR:
        on_error(c, a);
        break;
    }
    if (a->done.n_cached < 0 || a->done.n_cached >= c->n_prompt)
        sim_fail("SAFETY: nothing is left to sample from");
    W.n_prompt_tokens += (uint64_t)c->n_prompt;
    W.n_cached_tokens += (uint64_t)a->done.n_cached;
    sim_client_ended(c, a->done.how);
}

static sim_client *client_of(uint64_t request) {
    for (int i = 0; i < W.n_clients; i++)
        if (W.clients[i].id == request) return &W.clients[i];
    return NULL;
}

static void on_journal(const mxd_core_journal *j, const mxd_coord_action *next) {
    sim_client *c = client_of(j->request);
    sim_disk_write(j, next);
    if (j->kind != MXD_JOURNAL_TOKEN || !c) return;
    if (!c->resumable) sim_fail("SAFETY: what nobody can resume is journalled");
    if (j->index != (uint32_t)c->n_journal) sim_fail("SAFETY: the journal has a gap");
    c->n_journal++;
}

static void on_accepted(sim_client *c) {
    if (!c->restoring && c->resumable) sim_disk_open(c->id);
    c->accepted = true;
    c->restoring = false;
}

void sim_client_action(const mxd_coord_action *a, const mxd_coord_action *next) {
    if (a->kind == MXD_ACT_JOURNAL) {
        on_journal(&a->journal, next);
        return;
    }
    sim_client *c = client_of(a->request);
    if (!c) {
        sim_fail("SAFETY: news for nobody");
        return;
    }
    if (a->kind == MXD_ACT_ACCEPTED) on_accepted(c);
    if (a->kind == MXD_ACT_TOKEN) on_token(c, a);
    if (a->kind == MXD_ACT_DONE) on_done(c, a);
    if (a->kind != MXD_ACT_REFUSED) return;
    if (a->rc != MXD_E_PEER) sim_fail("SAFETY: refused for no reason");
    c->ended = !c->restoring; /* it waits for somebody who can compute */
}
