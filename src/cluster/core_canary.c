/* The plan canary: before a new plan serves, a short prompt with a known answer goes through it.
 *
 * The first plan that served this model says what the answer is, to the last bit; a later one that
 * says something else has a node in it whose files, memory or program differ, and must not serve.
 * Suspects are the nodes of that plan that have never been in one that gave the right answer.
 *   - One suspect: it is left out until it starts again.
 *   - Several: the next plan does without one of them, another one each time, and then with only
 *     one of them. What a right plan holds is proven; the others come back and are judged then.
 *   - They need each other: nobody can say which one it is. After a while the same once more, for
 *     somebody may have come or started again.
 *   - None: memory can break later. All of this plan are suspects from now on, and who was left
 *     out for it comes back.
 * No request has a step in such a plan, so no wrong token is ever seen.
 *
 * Only "bit-exact" plans have a canary: others may rightly answer otherwise on another node.
 */
#include <string.h>
#include "cluster/core_private.h"

int mxd_core_canary_ids(const mxd_coord_cfg *cfg, int32_t ids[MXD_CORE_CANARY_ROWS]) {
    int n = MXD_CORE_CANARY_ROWS;
    if (n > cfg->ctx - 1) n = cfg->ctx - 1;
    if (cfg->max_rows && n > cfg->max_rows) n = cfg->max_rows;
    for (int i = 0; i < n; i++) ids[i] = (11 + 7919 * i) % cfg->n_vocab;
    return n;
}

static uint64_t add(uint64_t h, const void *p, size_t n) { /* FNV-1a */
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 0x100000001b3u;
    return h;
}

mxd_core_canary mxd_core_canary_of(const mxd_sampled *s) {
    size_t n = s->n_top < MXD_MAX_TOP_LOGPROBS ? s->n_top : MXD_MAX_TOP_LOGPROBS;
    uint64_t h = add(0xcbf29ce484222325u, &s->token, sizeof s->token);
    h = add(h, &s->logprob, sizeof s->logprob);
    h = add(h, s->top_id, n * sizeof *s->top_id);
    h = add(h, s->top_logprob, n * sizeof *s->top_logprob);
    return (mxd_core_canary){.known = true, .token = s->token, .digest = h};
}

static bool bit_exact(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.stage >= 0 && !core_same(c->nodes[i].determinism, "bit-exact"))
            return false;
    return true;
}

bool core_canary_begin(mxd_coord *c) {
    if (!c->cfg.canary || MUTANT(NO_CANARY) || !bit_exact(c)) return false;
    if (c->canary_step) return true;
    int n = mxd_core_canary_ids(&c->cfg, c->canary_ids);
    c->canary_how =
        (mxd_sampling){.n_prompt = (uint32_t)n, .logprobs = true, .n_top = MXD_MAX_TOP_LOGPROBS};
    core_flight *f = core_flight_at(c, 0); /* not counted: it is nobody's */
    f->step = c->canary_step = ++c->step;
    f->n_runs = f->n_sample = 1;
    f->n_rows = n;
    f->decode = false;
    f->runs[0] = (mxd_core_run){.request = MXD_CORE_CANARY,
                                .n = (uint16_t)n,
                                .sample = true,
                                .ids = c->canary_ids,
                                .how = &c->canary_how};
    c->progress_ms = c->now_ms;
    mxd_coord_action *a = core_act_node(c, MXD_ACT_STEP, c->plan.stages[0].ranks[0].node);
    a->step = f->step;
    a->runs = f->runs;
    a->n_runs = 1;
    a->n_rows = n;
    c->n_steps++;
    return true;
}

/* -------------------------------------------------------------------------------- wrong answers */

static void append(char *to, size_t cap, const char *from) {
    size_t n = 0;
    while (to[n]) n++;
    core_text(to + n, cap - n, from);
}

static void leave_out(mxd_coord *c, int i) {
    core_node *n = &c->nodes[i];
    n->v.left_out = true;
    n->suspected = n->probed = false;
    core_text(c->canary_why, sizeof c->canary_why, "node ");
    append(c->canary_why, sizeof c->canary_why, n->v.info.id);
    append(c->canary_why, sizeof c->canary_why,
           " computes other numbers than this model's first plan did: its model files, memory or "
           "program differ; it is left out until it is started again");
    mxd_coord_action *a = core_act_node(c, MXD_ACT_CANARY, i);
    a->rc = MXD_E_FORMAT;
    a->text = c->canary_why;
    c->changed = true;
}

static bool is_suspect(const core_node *n) { return n->v.link && n->suspected && !n->proven; }

static void forget_probes(mxd_coord *c) {
    c->probe = -1;
    c->alone = false;
    for (int i = 0; i < MXD_MAX_NODES; i++) c->nodes[i].probed = false;
}

static int unprobed(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (is_suspect(&c->nodes[i]) && !c->nodes[i].probed) return i;
    return -1;
}

/* The next of the suspects that a plan shall do without, then the next that shall be the only one.
 * False: each has had both turns. */
bool core_canary_next(mxd_coord *c) {
    bool alone = c->alone;
    if (c->probe >= 0) c->nodes[c->probe].probed = true;
    c->probe = unprobed(c);
    if (c->probe < 0 && !alone) {
        forget_probes(c);
        c->alone = true;
        c->probe = unprobed(c);
    }
    if (c->probe >= 0) return true;
    forget_probes(c);
    for (int i = 0; i < MXD_MAX_NODES; i++) c->nodes[i].suspected = false;
    return false;
}

static void mismatch(mxd_coord *c) {
    int n = 0, one = -1;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        if (c->nodes[i].v.stage < 0 || c->nodes[i].proven) continue;
        c->nodes[i].suspected = true;
        one = i;
        n++;
    }
    for (int i = 0; i < MXD_MAX_NODES && !n; i++) { /* others may have been blamed for them */
        if (c->nodes[i].v.stage >= 0) c->nodes[i].proven = false;
        c->nodes[i].v.left_out = false;
    }
    if (n == 1) {
        leave_out(c, one);
        forget_probes(c);
    } else if (n) {
        core_canary_next(c);
    }
    core_epoch_lost(c);
}

static void match(mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        core_node *n = &c->nodes[i];
        if (n->v.stage < 0) continue;
        n->proven = true;
        n->suspected = false;
    }
    if (c->probe >= 0) c->rejoin = true;
    forget_probes(c);
    c->canary_step = 0;
    core_epoch_serve(c);
}

/* --------------------------------------------------------------------------------------- result */

void core_canary_result(mxd_coord *c, const mxd_core_result *r) {
    const core_flight *f = core_flight_at(c, 0);
    bool answers = r->n == 1 && r->runs[0].request == MXD_CORE_CANARY &&
                   r->runs[0].pos == (uint32_t)f->n_rows && r->runs[0].sampled.token >= 0 &&
                   r->runs[0].sampled.token < c->cfg.n_vocab;
    if (!answers) {
        core_node_failed(c, c->plan.stages[c->plan.n_stages - 1].ranks[0].node);
        core_epoch_lost(c);
        return;
    }
    mxd_core_canary *known = &c->cfg.known, got = mxd_core_canary_of(&r->runs[0].sampled);
    if (!known->known) {
        *known = got;
        core_act(c, MXD_ACT_CANARY)->canary = got;
    }
    if (got.token == known->token && got.digest == known->digest)
        match(c);
    else
        mismatch(c);
}

/* ----------------------------------------------------------------------------------------- nodes
 */

/* May the node be planned with, as far as its numbers are concerned? */
bool core_canary_allows(const mxd_coord *c, const core_node *n) {
    if (n->v.left_out) return false;
    bool its_turn = c->probe >= 0 && n == &c->nodes[c->probe];
    return c->probe < 0 || !n->suspected || its_turn == c->alone;
}

void core_canary_new_life(core_node *n) {
    n->v.left_out = n->suspected = n->probed = n->proven = false;
}

const char *core_canary_why(const mxd_coord *c) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (c->nodes[i].v.link && c->nodes[i].v.left_out) return c->canary_why;
    return "";
}
