/* Ranks of a stage: what one computes is worth something only when all have computed the same. */
#include <string.h>
#include "sim.h"

enum { LOST_MS = 2000 }; /* a rank out of reach for so long is lost, as in worker_group.c */

/* A node's address is the letter of its process. */
void sim_group_of(sim_group *g, const mxd_stage_peer *peers, int n, int rank) {
    *g = (sim_group){.n = n, .rank = rank};
    for (int r = 0; r < n; r++) {
        g->proc[r] = peers[r].address[0] - 'A';
        g->node[r] = peers[r].node;
    }
}

uint64_t sim_group_hash(const sim_event *f) {
    uint64_t h = sim_mix(f->epoch, f->step);
    for (int i = 0, row = 0; i < f->n_runs; i++) {
        const sim_run *r = &f->runs[i];
        h = sim_mix(h, sim_mix(r->request, ((uint64_t)r->slot << 32) + r->pos));
        for (int k = 0; k < r->n; k++, row++) h = sim_mix(h, f->act[row]);
    }
    return h;
}

static bool out_of_reach(int p, int r) {
    const sim_group *g = &W.procs[p].group;
    int other = g->proc[r];
    return !W.procs[other].up || W.cut[other][p] || W.cut[p][other];
}

static bool is_there(int p, const sim_job *j, int r) {
    const sim_group *g = &W.procs[p].group;
    const sim_proc *o = &W.procs[g->proc[r]];
    if (out_of_reach(p, r)) return false;
    if (j->kind == MXD_WACT_LOAD) return o->joined == j->epoch;
    return o->life == g->life[r] && o->sums_epoch == j->epoch && o->sums_step >= j->step;
}

/* What came together must be of one epoch, and have computed the same. */
static void check_sums(int p, const sim_job *j) {
    const sim_proc *q = &W.procs[p];
    if (q->joined != j->epoch)
        sim_fail("SAFETY: a step is computed without the group of its epoch");
    for (int r = 0; r < q->group.n; r++) {
        const sim_proc *o = &W.procs[q->group.proc[r]];
        if (o->sums_step == j->step && o->sums_hash != q->sums_hash)
            sim_fail("SAFETY: ranks of a stage have computed different things");
    }
}

static void remember_lives(sim_group *g) {
    for (int r = 0; r < g->n; r++) g->life[r] = W.procs[g->proc[r]].life;
}

bool sim_group_met(int p, const sim_job *j, mxd_rc *rc, int *peer) {
    sim_proc *q = &W.procs[p];
    *rc = MXD_OK;
    *peer = -1;
    q->waits = 0;
    if (j->epoch < q->over) {
        *rc = MXD_E_CANCELED;
        return true;
    }
    for (int r = 0; r < q->group.n; r++) {
        if (r == q->group.rank || is_there(p, j, r)) continue;
        q->waits = 1 + q->group.node[r];
        if (!out_of_reach(p, r)) {
            q->missed_ms = 0;
            return false;
        }
        if (!q->missed_ms) q->missed_ms = W.now;
        if (W.now - q->missed_ms < LOST_MS) return false;
        *rc = MXD_E_PEER;
        *peer = r;
        q->waits = 0;
        return true;
    }
    if (j->kind == MXD_WACT_LOAD)
        remember_lives(&q->group);
    else
        check_sums(p, j);
    return true;
}
