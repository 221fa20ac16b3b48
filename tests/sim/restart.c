/* The coordinator dies, also in the middle of what a step asked for, and starts again with its
 * disk: the journal, whole or without its last records. Local workers die with it.
 *
 * The oracle: what a client has seen is in the journal, unless its tail was torn off; what stands
 * there is the client's own list; tokens that come a second time are the same; no epoch is used by
 * two lives. From there on everything is checked as before (client.c). */
#include <string.h>
#include "sim.h"

typedef struct record {
    mxd_journal_kind kind;
    bool open; /* instead of a kind: a request was accepted */
    uint64_t request, epoch;
    uint32_t index;
    int32_t token;
    mxd_core_end how;
} record;

enum { RECORDS = 1 << 14 };

static struct {
    record log[RECORDS];
    int n, durable; /* records; those on disk for certain */
    uint64_t epoch; /* the highest that was ever used */
} disk;

void sim_disk_reset(void) { disk.n = disk.durable = 0, disk.epoch = 0; }

static void append(record r) {
    if (disk.n == RECORDS)
        sim_fail("a journal without end");
    else
        disk.log[disk.n++] = r;
}

void sim_disk_open(uint64_t request) { append((record){.open = true, .request = request}); }

/* `next` is the action behind it: the DONE of an END. */
void sim_disk_write(const mxd_core_journal *j, const mxd_coord_action *next) {
    record r = {.kind = j->kind, .request = j->request, .epoch = j->epoch, .index = j->index};
    if (j->kind == MXD_JOURNAL_TOKEN) r.token = j->sampled->token;
    if (j->kind == MXD_JOURNAL_END) r.how = next->done.how;
    append(r);
    if (j->kind != MXD_JOURNAL_EPOCH) return;
    if (j->epoch <= disk.epoch) sim_fail("SAFETY: an epoch is used twice");
    disk.epoch = j->epoch;
    disk.durable = disk.n;
}

/* ---------------------------------------------------------------------------------------- crash */

/* Every link ends; processes hear of it, and those on the same machine end too. */
void sim_coord_crash(void) {
    sim_event *e = sim_event_new(EV_COORD_START, W.now + sim_pick(20, sim_chance(.3) ? 3000 : 300));
    W.coord_life++;
    W.coord_down = true;
    W.coord_paused_until = 0;
    for (uint64_t i = 1; i <= W.n_links; i++) {
        sim_link *l = sim_link_of(i);
        if (!l->up_here) continue;
        l->up_here = false;
        sim_link_close(i, false);
    }
    for (int p = 0; p < W.n_procs; p++)
        if (W.procs[p].local >= 0) sim_proc_kill(p, false);
    sim_event_push(e);
}

/* ---------------------------------------------------------------------------------------- restart
 */

typedef struct past { /* of one request, as the journal has it */
    bool open, ended;
    mxd_core_end how;
    int n;
    int32_t tokens[SIM_CTX];
} past;

static past recover(uint64_t request) {
    past p = {0};
    for (int i = 0; i < disk.n; i++) {
        const record *r = &disk.log[i];
        if (r->request != request || (!r->open && r->kind == MXD_JOURNAL_EPOCH)) continue;
        if (r->open) {
            p.open = true;
        } else if (r->kind == MXD_JOURNAL_TOKEN) {
            if (r->index != (uint32_t)p.n || p.n == SIM_CTX) sim_fail("SAFETY: a gap on disk");
            if (p.n < SIM_CTX) p.tokens[p.n++] = r->token;
        } else {
            p.ended = true;
            p.how = r->how;
        }
    }
    return p;
}

/* The server has the whole journal: the client gets what it has not seen, from there. */
static void show_rest(sim_client *c, const past *p, bool torn) {
    if (p->n < c->n_next && !torn) sim_fail("SAFETY: a token that was shown is lost");
    for (int i = 0; i < p->n && i < c->n_out; i++)
        if (p->tokens[i] != c->out[i]) sim_fail("SAFETY: the journal has another token");
    while (c->n_out < p->n && !W.failure) sim_client_sees(c, p->tokens[c->n_out]);
}

static void restore(sim_client *c, bool torn) {
    past p = recover(c->id);
    c->restoring = false;
    if (!p.open || !c->resumable) { /* its connection broke: it asks again */
        if (!torn && c->resumable && c->accepted) sim_fail("SAFETY: a request is lost");
        c->ended = true;
        return;
    }
    show_rest(c, &p, torn);
    if (p.ended) {
        bool whole = p.how == MXD_CORE_STOP || p.how == MXD_CORE_LENGTH;
        if (whole && p.n != c->n_out) sim_fail("SAFETY: tokens behind the end");
        c->ended = true;
        sim_client_ended(c, p.how);
        return;
    }
    memcpy(c->past, p.tokens, sizeof c->past);
    c->submit.accepted = c->past;
    c->submit.n_accepted = p.n;
    c->n_journal = c->n_next = p.n;
    c->token_ms = W.now;
    c->restoring = true;
}

void sim_coord_restart(void) {
    bool torn = sim_chance(W.swarm.torn);
    if (torn) disk.n -= sim_pick(0, disk.n - disk.durable);
    W.coord_down = false;
    sim_coord_begin(disk.epoch);
    for (int i = 0; i < W.n_clients && !W.failure; i++)
        if (W.clients[i].id && !W.clients[i].ended) restore(&W.clients[i], torn);
}

/* Those that nobody could take yet. */
void sim_restore_tick(void) {
    for (int i = 0; i < W.n_clients && !W.coord_down; i++) {
        sim_client *c = &W.clients[i];
        if (!c->restoring) continue;
        sim_coord_give(&(mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &c->submit});
    }
}
