/* Random numbers, the event heap, the network with its faults. */
#include <string.h>
#include "sim.h"

sim_world W;

/* ----------------------------------------------------------------------- numbers and hashes */

uint64_t sim_rnd(void) { /* splitmix64 */
    uint64_t z = (W.rng += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

bool sim_chance(double p) { return (double)(sim_rnd() >> 11) * 0x1p-53 < p; }
int sim_pick(int lo, int hi) { return lo + (int)(sim_rnd() % (uint64_t)(hi - lo + 1)); }

uint64_t sim_mix(uint64_t a, uint64_t b) {
    uint64_t z = (a * 0x9E3779B97F4A7C15ull) ^ (b + 0x632BE59BD9B4E019ull);
    z ^= z >> 29;
    z *= 0xBF58476D1CE4E5B9ull;
    return z ^ (z >> 32);
}

void sim_trace(uint64_t what) { W.trace = sim_mix(W.trace, what); }

void sim_fail(const char *what) {
    if (!W.failure) W.failure = what;
}

/* The model: one position through one layer; the KV hashes the prefix, the result the KV. */
void sim_layer(uint64_t *kv, int layer, uint64_t *act) {
    *kv = sim_mix(*kv, *act + (uint64_t)layer);
    *act = sim_mix(*kv, (uint64_t)layer);
}

uint64_t sim_embed(int32_t id) { return sim_mix(7, (uint64_t)id); }

/* Seed 0 is greedy; else the draw is a function of (seed, position), as the product's sampler. */
int32_t sim_sample(uint64_t act, uint64_t seed, uint32_t pos) {
    uint64_t h = seed ? sim_mix(act, sim_mix(seed, pos)) : sim_mix(act, 5);
    return (int32_t)(h % SIM_VOCAB);
}

/* -------------------------------------------------------------------------------- event heap */

sim_event *sim_event_new(sim_kind kind, int64_t at) {
    static sim_event none;
    if (!W.n_free) {
        sim_fail("events without end");
        return &none;
    }
    sim_event *e = &W.pool[W.free_list[--W.n_free]];
    memset(e, 0, offsetof(sim_event, stage));
    e->kind = kind;
    e->at = at;
    return e;
}

void sim_event_free(sim_event *e) { W.free_list[W.n_free++] = (int)(e - W.pool); }

static bool earlier(int x, int y) {
    const sim_event *a = &W.pool[x], *b = &W.pool[y];
    return a->at != b->at ? a->at < b->at : a->seq < b->seq;
}

static void swap(int i, int j) {
    int t = W.heap[i];
    W.heap[i] = W.heap[j];
    W.heap[j] = t;
}

void sim_event_push(sim_event *e) {
    if (W.failure) return;
    e->seq = W.seq++;
    int i = W.n_heap++;
    W.heap[i] = (int)(e - W.pool);
    for (; i && earlier(W.heap[i], W.heap[(i - 1) / 2]); i = (i - 1) / 2) swap(i, (i - 1) / 2);
}

void sim_event_again(sim_event *e, int64_t at) {
    e->at = at;
    sim_event_push(e);
}

sim_event *sim_event_pop(void) {
    int top = W.heap[0], i = 0;
    W.heap[0] = W.heap[--W.n_heap];
    for (;;) {
        int left = 2 * i + 1, m = i;
        if (left < W.n_heap && earlier(W.heap[left], W.heap[m])) m = left;
        if (left + 1 < W.n_heap && earlier(W.heap[left + 1], W.heap[m])) m = left + 1;
        if (m == i) return &W.pool[top];
        swap(i, m);
        i = m;
    }
}

/* ------------------------------------------------------------------------------------- links */

sim_link *sim_link_of(uint64_t link) {
    static sim_link none;
    none = (sim_link){.proc = 0};
    return link && link <= W.n_links ? &W.links[link - 1] : &none;
}

uint64_t sim_link_new(int proc) {
    if (W.n_links == SIM_LINKS) {
        sim_fail("links without end");
        return W.n_links;
    }
    W.links[W.n_links] =
        (sim_link){.proc = proc, .life = W.procs[proc].life, .up_there = true, .up_here = true};
    return ++W.n_links;
}

/* Each end hears of it in its own time. */
void sim_link_close(uint64_t link, bool silent) {
    sim_link *l = sim_link_of(link);
    if (l->up_there) {
        sim_event *e = sim_event_new(EV_DOWN, W.now + sim_pick(0, 30));
        e->proc = l->proc;
        e->life = l->life;
        e->link = link;
        sim_event_push(e);
    }
    if (l->up_here && !silent) {
        sim_event *e = sim_event_new(EV_GONE, W.now + sim_pick(0, 30));
        e->link = link;
        sim_event_push(e);
    }
}

/* A link that loses something breaks in the end, once both sides have noticed. */
static void doom(uint64_t link) {
    sim_link *l = sim_link_of(link);
    if (l->doomed) return;
    l->doomed = true;
    sim_event *e = sim_event_new(EV_CLOSE, W.now + sim_pick(0, 4000));
    e->link = link;
    sim_event_push(e);
}

static int64_t delay(void) {
    int64_t d = sim_pick(W.swarm.delay_min_ms, W.swarm.delay_max_ms);
    if (W.faults && sim_chance(W.swarm.late)) d += sim_pick(0, 1500);
    return d;
}

static void push_twice(sim_event *e) {
    if (W.faults && sim_chance(W.swarm.dup)) {
        sim_event *copy = sim_event_new(e->kind, 0);
        if (W.failure) return;
        *copy = *e;
        copy->at = e->at + sim_pick(0, 600);
        sim_event_push(copy);
    }
    sim_event_push(e);
}

/* Frames that begin a sequence are lost more often: what follows them must not be taken for it. */
static bool lost(const sim_event *e, int from, int to) {
    double p = W.swarm.lose;
    for (int i = 0; e->kind == M_FRAME && i < e->n_runs; i++)
        if (e->runs[i].pos == 0 || e->runs[i].begin) p = 10 * W.swarm.lose;
    return W.cut[from][to] || (W.faults && sim_chance(p));
}

void sim_send(sim_event *e, sim_lane lane, bool from_coord) {
    sim_link *l = sim_link_of(e->link);
    int from = from_coord ? SIM_COORD : l->proc, to = from_coord ? l->proc : SIM_COORD;
    if (!(from_coord ? l->up_here : l->up_there)) {
        sim_event_free(e);
        return;
    }
    if (lost(e, from, to)) {
        doom(e->link);
        sim_event_free(e);
        return;
    }
    e->proc = l->proc;
    e->life = l->life;
    e->at = W.now + delay();
    if (e->at < l->last_ms[lane]) e->at = l->last_ms[lane];
    l->last_ms[lane] = e->at;
    push_twice(e);
}

/* Between workers: whoever cannot send may hear of it, or not. */
void sim_send_data(sim_event *e, int from, int to, int node) {
    sim_proc *p = &W.procs[from];
    e->proc = to;
    e->life = W.procs[to].life;
    if (!W.procs[to].up || lost(e, from, to)) {
        if (sim_chance(.5)) {
            sim_event *n = sim_event_new(EV_NEIGHBOUR, W.now + sim_pick(0, 1000));
            n->proc = from;
            n->life = p->life;
            n->node = node;
            sim_event_push(n);
        }
        sim_event_free(e);
        return;
    }
    e->at = W.now + delay();
    if (e->at < p->data_ms) e->at = p->data_ms;
    p->data_ms = e->at;
    push_twice(e);
}

/* ------------------------------------------------------------------------------------ faults */

static void fault_proc(int i) {
    sim_proc *p = &W.procs[i];
    if (!p->up) {
        if (p->local < 0 && !p->left && sim_chance(W.swarm.restart)) sim_proc_boot(i);
        return;
    }
    if (sim_chance(W.swarm.crash)) {
        sim_proc_kill(i, p->local < 0 && sim_chance(W.swarm.silent_death));
    } else if (sim_chance(W.swarm.pause) && p->paused_until < W.now) {
        p->paused_until = W.now + (sim_chance(.5) ? sim_pick(1, 600) : sim_pick(1, 6000));
    } else if (sim_chance(W.swarm.link_break) && p->link) {
        sim_link_close(p->link, false);
    } else if (sim_chance(W.swarm.leave) && !W.n_left) {
        W.n_left++;
        sim_proc_drain(i);
    } else if (sim_chance(W.swarm.hang)) {
        p->hangs = true;
    } else if (p->hangs && sim_chance(.02)) {
        p->hangs = false;
    }
}

void sim_faults(void) {
    for (int i = 0; i < W.n_procs; i++) fault_proc(i);
    if (!W.coord_down && W.coord_paused_until < W.now && sim_chance(W.swarm.pause / 4))
        W.coord_paused_until = W.now + sim_pick(1, 3000);
    if (!W.coord_down && W.crash_after < 0 && sim_chance(W.swarm.coord_crash))
        W.crash_after = sim_chance(.5) ? 0 : sim_pick(0, 40);
    for (int i = 0; i <= SIM_PROCS; i++)
        for (int k = 0; k <= SIM_PROCS; k++) {
            if (i == k) continue;
            W.cut[i][k] = W.cut[i][k] ? !sim_chance(W.swarm.heal) : sim_chance(W.swarm.cut / 6);
        }
}

/* From here on nothing new breaks, and whoever has not left is there: it must all end well. */
void sim_heal(void) {
    mxd_coord_view v;
    mxd_coord_view_get(W.coord, &v);
    W.epochs_at_heal = W.coord_down ? 0 : v.n_epochs;
    W.faults = false;
    W.crash_after = -1;
    memset(W.cut, 0, sizeof W.cut);
    for (uint64_t i = 0; i < W.n_links; i++)
        if (W.links[i].died_ms) W.links[i].died_ms = W.now;
    W.coord_paused_until = 0;
    for (int i = 0; i < W.n_procs; i++) {
        sim_proc *p = &W.procs[i];
        if (p->hangs && p->up) sim_proc_kill(i, false);
        p->hangs = false;
        p->paused_until = 0;
        if (!p->up && p->local < 0 && !p->left) sim_proc_boot(i);
    }
}
