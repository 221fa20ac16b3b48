/* Which KV is there already: prompts that begin as an earlier one did are not computed again.
 *
 * For every slot the coordinator knows the tokens whose KV the pipeline of this epoch holds: they
 * are the first `held` of the slot's list, also after the request has ended, and it is the KV of
 * the request `owner`. A request begins with the longest of
 *   - what its own slot holds, cut back (a second turn of a chat);
 *   - whole pages of another slot, whose request runs or has ended (a common system prompt). If
 * that one has not come so far yet, the request waits for it: computing both would take longer. At
 * least its last token is computed: what it samples from is not kept.
 *
 * Recurrent layers have the state of one position only. Beside the last one, the state shortly
 * before the end of the last prompt is kept for every slot: the next turn of a chat begins like
 * this prompt, but not always with this answer (templates leave its reasoning out).
 *
 * Why it is exact: held grows only by frames that were sent, steps are first-in first-out, and a
 * new epoch holds nothing; so what a frame begins with is there when the frame comes, or the frame
 * before it was lost and a worker refuses this one (W1) or the result is passed over.
 */
#include <string.h>
#include "cluster/core_private.h"

/* Equal tokens at the beginning of both, at most n. */
static uint32_t common(const int32_t *a, const int32_t *b, uint32_t n) {
    enum { STRIDE = 64 };
    uint32_t k = 0;
    while (n - k >= STRIDE && !memcmp(a + k, b + k, STRIDE * sizeof *a)) k += STRIDE;
    while (k < n && a[k] == b[k]) k++;
    return MUTANT(ONE_TOO_MANY) && k < n ? k + 1 : k;
}

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

static uint32_t page_edge(const mxd_coord *c, uint32_t n) { return n - n % (uint32_t)c->cfg.page; }

static const core_request *request_of(const mxd_coord *c, int slot) {
    int k = c->slots[slot].request;
    return k < 0 ? NULL : &c->requests[k];
}

static uint32_t n_tokens(const core_request *r) { return (uint32_t)(r->in.n_prompt + r->n_out); }

/* A request that the pipeline knows nothing of in this epoch. */
static bool unsent(const mxd_coord *c, int slot) {
    const core_request *r = request_of(c, slot);
    return r && c->slots[slot].owner != r->in.request;
}

void core_prefix_reset(mxd_coord *c) {
    for (int s = 0; s < c->cfg.n_slots; s++) {
        core_slot *p = &c->slots[s];
        p->pick = true;
        if (MUTANT(KEEP_WARM) && p->request < 0) continue;
        p->owner = p->used = 0;
        p->held = p->shared = p->kept = 0;
    }
}

/* ------------------------------------------------------------------------------ which free slot */

/* Of the first k tokens, which are common, those that slot s can go on from. */
static uint32_t cut_back(const mxd_coord *c, int s, uint32_t k) {
    const core_slot *p = &c->slots[s];
    if (c->cfg.recurrent && k < p->held && !MUTANT(CUT_STATE)) return k < p->kept ? 0 : p->kept;
    if (k < p->shared && !MUTANT(CUT_SHARED)) return page_edge(c, k); /* others see that page */
    return k;
}

static bool older(const mxd_coord *c, int s, int than) {
    return than < 0 || c->slots[s].used < c->slots[than].used;
}

/* The slot that has most of the prompt, unless more than half of what it holds would be lost: then
 * it is better shared (recurrent state cannot be), and the one that nobody used for the longest
 * time is taken. */
int core_prefix_slot(const mxd_coord *c, const core_request *r) {
    int best = -1, source = -1, oldest = -1;
    uint32_t most = 0, common_most = 0, n = (uint32_t)r->in.n_prompt;
    for (int s = 0; s < c->cfg.n_slots; s++) {
        const core_slot *p = &c->slots[s];
        if (p->request >= 0) continue;
        uint32_t all = common(core_list(c, s), r->in.prompt, least(p->held, n - 1));
        uint32_t k = cut_back(c, s, all);
        if (k > most && (2 * (uint64_t)k >= p->held || c->cfg.recurrent)) {
            most = k;
            best = s;
        }
        uint32_t shareable = c->cfg.recurrent ? 0 : page_edge(c, all);
        if (shareable > common_most) {
            common_most = shareable;
            source = s;
        }
    }
    for (int s = 0; s < c->cfg.n_slots; s++)
        if (c->slots[s].request < 0 && s != source && older(c, s, oldest)) oldest = s;
    if (best >= 0) return best;
    return oldest >= 0 ? oldest : source;
}

/* Whoever was to begin with this slot looks for another. */
static void forsake(mxd_coord *c, int slot) {
    for (int s = 0; s < c->cfg.n_slots; s++) {
        core_slot *p = &c->slots[s];
        if (s == slot || p->from != slot || !unsent(c, s)) continue;
        if (c->sched.seqs[s].used) mxd_sched_remove(&c->sched, s);
        p->pick = true;
    }
}

void core_prefix_admit(mxd_coord *c, int slot, const core_request *r) {
    core_slot *p = &c->slots[slot];
    uint32_t n = least(p->held, (uint32_t)r->in.n_prompt);
    uint32_t k = common(core_list(c, slot), r->in.prompt, n);
    p->held = c->cfg.recurrent ? cut_back(c, slot, k) : k;
    p->order = ++c->n_admitted;
    p->pick = true;
    if (!MUTANT(STALE_SOURCE)) forsake(c, slot);
}

void core_prefix_leave(mxd_coord *c, int slot) {
    core_slot *p = &c->slots[slot];
    if (c->sched.seqs[slot].used) mxd_sched_remove(&c->sched, slot);
    if (c->cfg.no_prefix_cache) p->held = 0;
    p->used = p->held ? ++c->n_uses : 0;
    if (!MUTANT(LOST_LEADER)) forsake(c, slot);
}

/* ----------------------------------------------------------------------------- what it begins with
 */

/* How many tokens of its list slot t has or will have without waiting for slot s. */
static uint32_t extent(const mxd_coord *c, int t, int s) {
    const core_slot *p = &c->slots[t];
    if (p->request < 0) return p->held;
    if (unsent(c, t) && p->order > c->slots[s].order) return 0;
    return n_tokens(request_of(c, t));
}

/* Has slot t n positions that can be begun with now? */
static bool holds(const mxd_coord *c, int t, uint32_t n) {
    return c->slots[t].held >= n && !unsent(c, t);
}

static void pick(mxd_coord *c, int s) {
    core_slot *p = &c->slots[s];
    uint32_t last = n_tokens(request_of(c, s)) - 1;
    p->pick = false;
    p->from = s;
    p->reuse = cut_back(c, s, least(p->held, last));
    if (c->cfg.recurrent || c->cfg.no_prefix_cache) return;
    for (int t = 0; t < c->cfg.n_slots && p->reuse < page_edge(c, last); t++) {
        if (t == s) continue;
        uint32_t k = common(core_list(c, s), core_list(c, t), least(extent(c, t, s), last));
        if (!MUTANT(SHARE_PARTIAL)) k = page_edge(c, k);
        if (k <= p->reuse) continue;
        p->from = t;
        p->reuse = k;
    }
}

/* The position whose state is kept: before what templates put behind a chat's messages. */
static uint32_t edge(const mxd_coord *c, int s) {
    uint32_t n = (uint32_t)request_of(c, s)->in.n_prompt, margin = (uint32_t)c->cfg.page / 2 + 1;
    return c->cfg.recurrent && !c->cfg.no_prefix_cache && n > margin ? n - margin : 0;
}

/* Gives the scheduler the requests whose beginning is settled. */
void core_prefix_begin(mxd_coord *c) {
    for (int s = 0; s < c->cfg.n_slots; s++) {
        core_slot *p = &c->slots[s];
        if (p->request < 0 || c->sched.seqs[s].used) continue;
        if (p->pick) pick(c, s);
        if (p->from == s || holds(c, p->from, p->reuse))
            mxd_sched_add(&c->sched, s, n_tokens(request_of(c, s)), p->reuse, edge(c, s));
    }
}

/* ------------------------------------------------------------------------------------------ frames
 */

void core_prefix_fill(const mxd_coord *c, mxd_core_run *run) {
    const core_slot *p = &c->slots[run->slot];
    run->keep = run->pos + run->n == edge(c, run->slot);
    if (!unsent(c, run->slot) || !run->pos) return;
    run->begin = true;
    run->from = (uint16_t)p->from;
    run->from_request = c->slots[p->from].owner;
}

void core_prefix_sent(mxd_coord *c, const mxd_core_run *run) {
    core_slot *p = &c->slots[run->slot];
    if (unsent(c, run->slot)) {
        core_request *r = &c->requests[p->request];
        core_slot *from = &c->slots[p->from];
        if (r->n_cached < 0) c->n_cached += (uint64_t)(r->n_cached = (int)run->pos);
        if (from != p) {
            from->shared = run->pos > from->shared ? run->pos : from->shared;
            from->used = ++c->n_uses;
            p->shared = run->pos;
        }
        p->shared = least(p->shared, run->pos);
        if (run->pos < p->kept && !MUTANT(OLD_STATE)) p->kept = 0;
        p->owner = run->request;
    }
    p->held = run->pos + run->n;
    if (run->keep) p->kept = p->held;
}

void core_prefix_check(const mxd_coord *c) {
    if (c->state != MXD_COORD_SERVING) return;
    for (int s = 0; s < c->cfg.n_slots; s++) {
        const core_slot *p = &c->slots[s];
        bool begun = c->sched.seqs[s].used;
        MXD_ASSERT(p->held <= (uint32_t)c->cfg.ctx);
        MXD_ASSERT(!begun || unsent(c, s) || p->held == c->sched.seqs[s].n_sent);
        if (!unsent(c, s)) continue;
        MXD_ASSERT(p->pick || p->from == s || extent(c, p->from, s) >= p->reuse);
        if (!begun) continue;
        MXD_ASSERT(c->sched.seqs[s].n_sent == p->reuse);
        MXD_ASSERT(p->from == s ? p->held >= p->reuse : holds(c, p->from, p->reuse));
    }
}
