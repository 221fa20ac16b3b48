#include "runtime/sched.h"

#include <string.h>
#include "base/err.h"

enum { FILL_CHUNKS = 4, FILL_ROWS = 64 }; /* of a prompt, for each stage; and of a chunk */

typedef struct mxd_sched_seq seq;

static uint32_t rest(const seq *q) { return q->n_tokens - q->n_sent; }
static bool awaits(const seq *q) { return q->used && !rest(q); }
static bool can_decode(const seq *q) { return q->used && q->n_sent && rest(q) == 1; }
static bool can_prefill(const seq *q) { return q->used && rest(q) && !can_decode(q); }

void mxd_sched_init(mxd_sched *s, int n_slots, int max_rows, int chunk) {
    MXD_ASSERT(n_slots >= 1 && n_slots <= MXD_MAX_SEQS);
    MXD_ASSERT(max_rows >= 1 && max_rows <= MXD_MAX_STEP_TOKENS);
    MXD_ASSERT(chunk >= 1 && chunk <= max_rows);
    memset(s, 0, sizeof *s);
    s->n_slots = n_slots;
    s->max_rows = max_rows;
    s->chunk = chunk;
    s->n_stages = 1;
}

void mxd_sched_restart(mxd_sched *s, int n_stages) {
    MXD_ASSERT(n_stages >= 1);
    s->n_stages = n_stages;
    s->in_flight = s->decode_in_flight = 0;
    for (int i = 0; i < s->n_slots; i++) s->seqs[i].used = false;
}

/* Rows of a run for a prompt of which n are left. */
static uint32_t chunk_of(const mxd_sched *s, uint32_t n) {
    uint32_t most = (uint32_t)s->chunk, fill = (n - 1) / (FILL_CHUNKS * (uint32_t)s->n_stages) + 1;
    if (s->n_stages == 1 || fill > most) return most;
    return fill > FILL_ROWS ? fill : most < FILL_ROWS ? most : FILL_ROWS;
}

void mxd_sched_add(mxd_sched *s, int slot, uint32_t n_tokens, uint32_t n_sent, uint32_t edge) {
    MXD_ASSERT(slot >= 0 && slot < s->n_slots && !s->seqs[slot].used && n_sent < n_tokens);
    s->seqs[slot] = (seq){.used = true,
                          .n_tokens = n_tokens,
                          .n_sent = n_sent,
                          .edge = edge,
                          .chunk = chunk_of(s, n_tokens - n_sent)};
}

void mxd_sched_remove(mxd_sched *s, int slot) {
    MXD_ASSERT(slot >= 0 && slot < s->n_slots && s->seqs[slot].used);
    s->seqs[slot].used = false;
}

void mxd_sched_token(mxd_sched *s, int slot) {
    MXD_ASSERT(slot >= 0 && slot < s->n_slots && awaits(&s->seqs[slot]));
    s->seqs[slot].n_tokens++;
}

void mxd_sched_done(mxd_sched *s, bool decode) {
    MXD_ASSERT(s->in_flight > 0 && (!decode || s->decode_in_flight > 0));
    s->in_flight--;
    s->decode_in_flight -= decode;
}

static void put(mxd_sched *s, mxd_sched_step *step, int slot, uint32_t n) {
    seq *q = &s->seqs[slot];
    step->runs[step->n_runs++] = (mxd_sched_run){
        .slot = (uint16_t)slot, .n = (uint16_t)n, .pos = q->n_sent, .sample = n == rest(q)};
    step->n_rows += (int)n;
    q->n_sent += n;
}

/* How many decode runs the next micro-batch takes: an even share of those that are ready over the
 * batches that may still start, and of all over the stages, so that shares level out again. */
static int decode_share(const mxd_sched *s) {
    int ready = 0, all = 0, free = s->n_stages - s->decode_in_flight;
    for (int i = 0; i < s->n_slots; i++) {
        ready += can_decode(&s->seqs[i]);
        all += can_decode(&s->seqs[i]) || awaits(&s->seqs[i]);
    }
    if (free <= 0) return 0;
    int of_ready = (ready + free - 1) / free, of_all = (all + s->n_stages - 1) / s->n_stages;
    int share = of_ready < of_all ? of_ready : of_all;
    if (share > s->max_rows) share = s->max_rows;
    return share < MXD_MAX_STEP_RUNS ? share : MXD_MAX_STEP_RUNS;
}

static void take_decodes(mxd_sched *s, mxd_sched_step *step) {
    int share = decode_share(s), first = s->next_decode;
    for (int k = 0; k < s->n_slots && step->n_runs < share; k++) {
        int slot = (first + k) % s->n_slots;
        if (!can_decode(&s->seqs[slot])) continue;
        put(s, step, slot, 1);
        step->decode = true;
        s->next_decode = (slot + 1) % s->n_slots;
    }
}

static void take_prefills(mxd_sched *s, mxd_sched_step *step) {
    int first = s->next_prefill;
    for (int k = 0; k < s->n_slots; k++) {
        int slot = (first + k) % s->n_slots, room = s->max_rows - step->n_rows;
        if (room <= 0 || step->n_runs == MXD_MAX_STEP_RUNS) return;
        if (!can_prefill(&s->seqs[slot])) continue;
        const seq *q = &s->seqs[slot];
        uint32_t n = rest(q);
        if (q->n_sent < q->edge && n > q->edge - q->n_sent) n = q->edge - q->n_sent;
        if (n > q->chunk) n = q->chunk;
        if (n > (uint32_t)room) n = (uint32_t)room;
        put(s, step, slot, n);
        s->next_prefill = (slot + 1) % s->n_slots;
    }
}

bool mxd_sched_next(mxd_sched *s, mxd_sched_step *step) {
    step->n_runs = step->n_rows = 0;
    step->decode = false;
    if (s->in_flight > s->n_stages) return false;
    take_decodes(s, step);
    take_prefills(s, step);
    if (!step->n_runs) return false;
    s->in_flight++;
    s->decode_in_flight += step->decode;
    return true;
}
