#include "runtime/shard.h"

#include <string.h>

#include "model/model.h"
#include "runtime/pages.h"

typedef struct slot {
    mxd_page_table kv; /* kv.len: positions with KV, and ids known */
    uint32_t kept;     /* recurrent: state n_slots + slot is that of this position; 0: of none */
    int32_t *ids;      /* [ctx] */
} slot;

struct mxd_shard {
    const mxd_alloc *al;
    mxd_shard_opts opts;
    mxd_model *model;
    mxd_backend *backend;
    bool has_embed, has_head;
    int max_rows, max_logits, pages_per_slot;

    mxd_arena arena; /* everything below; frozen before the first step */
    slot *slots;     /* [n_slots] */
    mxd_pages pages;
    mxd_run *runs; /* [MXD_MAX_STEP_RUNS] */
    int *rows;     /* [MXD_MAX_STEP_RUNS] rows that sample */
    float *logits; /* [max_logits, ids of this rank], only with the head */
    mxd_sampler sampler;
    mxd_shares shares; /* of a group: */
    mxd_split split;
    mxd_sample_row *wanted; /* [max_logits] */
};

/* ---------------------------------------------------------------------------------------- opening
 */

static mxd_rc check_opts(mxd_shard *s, mxd_err *err) {
    const mxd_hparams *hp = mxd_model_hparams(s->model);
    mxd_shard_opts *o = &s->opts;
    if (o->layer1 == 0) o->layer1 = hp->n_layers;
    if (o->layer0 < 0 || o->layer0 >= o->layer1 || o->layer1 > hp->n_layers)
        return mxd_fail(err, MXD_E_INVAL, "layers %d to %d of a model with %d", o->layer0,
                        o->layer1, hp->n_layers);
    if (o->n_slots < 1 || o->n_slots > MXD_MAX_SEQS || o->ctx < 1 || o->ctx > MXD_MAX_CONTEXT)
        return mxd_fail(err, MXD_E_INVAL,
                        "%d sequences of %d tokens: must be 1 to %d of at most %d", o->n_slots,
                        o->ctx, MXD_MAX_SEQS, MXD_MAX_CONTEXT);
    s->max_rows =
        o->max_rows > 0 && o->max_rows < MXD_MAX_STEP_TOKENS ? o->max_rows : MXD_MAX_STEP_TOKENS;
    s->max_logits = o->n_slots < MXD_MAX_STEP_RUNS ? o->n_slots : MXD_MAX_STEP_RUNS;
    s->has_embed = o->layer0 == 0;
    s->has_head = o->layer1 == hp->n_layers;
    s->pages_per_slot = (o->ctx + MXD_KV_PAGE_TOKENS - 1) / MXD_KV_PAGE_TOKENS;
    return MXD_OK;
}

/* Token ids whose logits are here. */
static int local_vocab(const mxd_shard *s) {
    const mxd_group *g = s->opts.group;
    if (!s->has_head) return 0;
    return g ? s->shares.vocab[g->rank + 1] - s->shares.vocab[g->rank] : mxd_shard_vocab(s);
}

static size_t arena_bytes(const mxd_shard *s) {
    size_t n_slots = (size_t)s->opts.n_slots, pages = n_slots * (size_t)s->pages_per_slot;
    size_t vocab = (size_t)local_vocab(s);
    size_t logits = (size_t)s->max_logits * vocab * sizeof(float);
    if (s->has_head && s->opts.group)
        logits += (size_t)s->max_logits * sizeof(mxd_sample_row) +
                  mxd_split_bytes(s->opts.group->size, s->shares.vocab, s->max_logits);
    return n_slots * (sizeof(slot) + (size_t)s->opts.ctx * sizeof(int32_t)) +
           pages * (2 * sizeof(int32_t) + sizeof(uint16_t)) +
           MXD_MAX_STEP_RUNS * (sizeof(mxd_run) + sizeof(int)) + logits +
           vocab * (sizeof(float) + sizeof(int32_t) + sizeof(uint16_t)) + (2 * n_slots + 16) * 64;
}

static mxd_rc take_tables(mxd_shard *s, mxd_err *err) {
    MXD_TRY(mxd_arena_init(&s->arena, s->al, arena_bytes(s), err));
    mxd_arena *a = &s->arena;
    int n_pages = s->opts.n_slots * s->pages_per_slot;
    s->slots = MXD_TAKE(a, (size_t)s->opts.n_slots, slot);
    s->pages.free = MXD_TAKE(a, (size_t)n_pages, int32_t);
    s->pages.refs = MXD_TAKE(a, (size_t)n_pages, uint16_t);
    s->runs = MXD_TAKE(a, MXD_MAX_STEP_RUNS, mxd_run);
    s->rows = MXD_TAKE(a, MXD_MAX_STEP_RUNS, int);
    for (int i = 0; i < s->opts.n_slots; i++) {
        s->slots[i].kv.table = MXD_TAKE(a, (size_t)s->pages_per_slot, int32_t);
        s->slots[i].ids = MXD_TAKE(a, (size_t)s->opts.ctx, int32_t);
    }
    mxd_pages_init(&s->pages, MXD_KV_PAGE_TOKENS, n_pages);
    int vocab = local_vocab(s);
    if (s->has_head) s->logits = MXD_TAKE(a, (size_t)s->max_logits * (size_t)vocab, float);
    if (s->has_head && s->opts.group) {
        s->wanted = MXD_TAKE(a, (size_t)s->max_logits, mxd_sample_row);
        MXD_TRY(mxd_split_init(&s->split, a, s->opts.group, s->shares.vocab, s->max_logits, err));
    } else if (s->has_head) {
        MXD_TRY(mxd_sampler_init(&s->sampler, a, vocab, err));
    }
    mxd_arena_freeze(a, "steps allocate nothing");
    return MXD_OK;
}

static mxd_rc open_all(mxd_shard *s, mxd_err *err) {
    MXD_TRY(mxd_model_open(&s->model, s->al, s->opts.folder, err));
    MXD_TRY(check_opts(s, err));
    MXD_TRY(mxd_backend_open(&s->backend, s->al, s->opts.backend ? s->opts.backend : "auto",
                             &s->opts.backend_opts, err));
    mxd_load_opts load = {.layer0 = s->opts.layer0,
                          .layer1 = s->opts.layer1,
                          .max_rows = s->max_rows,
                          .max_logits = s->max_logits,
                          .n_pages = s->opts.n_slots * s->pages_per_slot,
                          .max_context = s->opts.ctx,
                          .n_states = 2 * s->opts.n_slots, /* each with one beside it */
                          .progress = s->opts.progress,
                          .progress_ctx = s->opts.progress_ctx,
                          .group = s->opts.group,
                          .shares = &s->shares};
    if (load.group)
        MXD_TRY(mxd_model_share(s->model, load.group->size, s->opts.shares, &s->shares, err));
    MXD_TRY(mxd_model_load(s->model, s->backend, &load, err));
    return take_tables(s, err);
}

mxd_rc mxd_shard_open(mxd_shard **out, const mxd_alloc *al, const mxd_shard_opts *opts,
                      mxd_err *err) {
    mxd_shard *s = MXD_NEW(al, 1, mxd_shard);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "shard");
    s->al = al;
    s->opts = *opts;
    mxd_rc rc = open_all(s, err);
    if (rc) {
        mxd_shard_close(s);
        return rc;
    }
    *out = s;
    return MXD_OK;
}

void mxd_shard_close(mxd_shard *s) {
    if (!s) return;
    if (s->backend) s->backend->ops->close(s->backend);
    mxd_model_close(s->model);
    mxd_arena_deinit(&s->arena);
    mxd_free(s->al, s);
}

int mxd_shard_hidden(const mxd_shard *s) { return mxd_model_hparams(s->model)->hidden; }
int mxd_shard_vocab(const mxd_shard *s) { return mxd_model_hparams(s->model)->n_vocab; }
bool mxd_shard_has_head(const mxd_shard *s) { return s->has_head; }
bool mxd_shard_has_embed(const mxd_shard *s) { return s->has_embed; }
uint64_t mxd_shard_bytes(const mxd_shard *s) { return s->backend->ops->bytes(s->backend); }
const char *mxd_shard_backend(const mxd_shard *s) { return s->backend->ops->name; }
const char *mxd_shard_determinism(const mxd_shard *s) { return s->backend->ops->determinism; }

/* ------------------------------------------------------------------------------------------ slots
 */

static void empty_slot(mxd_shard *s, int i) {
    mxd_pages_cut(&s->pages, &s->slots[i].kv, 0);
    s->slots[i].kept = 0;
}

void mxd_shard_forget(mxd_shard *s) {
    for (int i = 0; i < s->opts.n_slots; i++) empty_slot(s, i);
}

int mxd_shard_free_pages(const mxd_shard *s) { return s->pages.n_free; }

/* ------------------------------------------------------------------------------------------- steps
 */

/* Does slot `from` hold the positions that the run begins with, and may they be gone on from? */
static bool can_begin(const mxd_shard *s, const mxd_step_run *r) {
    const mxd_page_table *kv = &s->slots[r->from].kv;
    if (r->pos > kv->len) return false;
    if (mxd_model_recurrent(s->model))
        return r->from == r->slot && (r->pos == kv->len || r->pos == s->slots[r->from].kept);
    if (r->from != r->slot && r->pos % MXD_KV_PAGE_TOKENS) return false;
    return mxd_pages_can_cut(&s->pages, kv, r->pos);
}

static mxd_rc check_begin(const mxd_shard *s, const mxd_step_run *r, mxd_err *err) {
    if (r->from >= s->opts.n_slots)
        return mxd_fail(err, MXD_E_INVAL, "step: slot %d begins with slot %d", r->slot, r->from);
    if (can_begin(s, r)) return MXD_OK;
    return mxd_fail(err, MXD_E_STALE,
                    "step: slot %d begins with %u positions of slot %d, which has %u and cannot be "
                    "divided there",
                    r->slot, r->pos, r->from, s->slots[r->from].kv.len);
}

static mxd_rc check_run(const mxd_shard *s, const mxd_step_run *r, mxd_err *err) {
    if (r->slot >= s->opts.n_slots || r->n < 1)
        return mxd_fail(err, MXD_E_INVAL, "step: slot %d, %d rows", r->slot, r->n);
    if (r->pos > (uint32_t)s->opts.ctx || r->n > (uint32_t)s->opts.ctx - r->pos)
        return mxd_fail(err, MXD_E_INVAL, "step: positions %u to %u, the context is %d", r->pos,
                        r->pos + r->n, s->opts.ctx);
    if (r->pos == 0) return MXD_OK;
    if (r->begin) return check_begin(s, r, err);
    if (r->pos != s->slots[r->slot].kv.len)
        return mxd_fail(err, MXD_E_STALE, "step: slot %d has %u positions, the frame starts at %u",
                        r->slot, s->slots[r->slot].kv.len, r->pos);
    return MXD_OK;
}

/* Runs are prepared one after the other: what one begins with must not be gone by then. */
static mxd_rc check_sources(const mxd_step *step, mxd_err *err) {
    for (int i = 0; i < step->n_runs; i++) {
        const mxd_step_run *r = &step->runs[i];
        if (!r->begin || r->pos == 0) continue;
        for (int k = 0; k < step->n_runs; k++) {
            const mxd_step_run *other = &step->runs[k];
            if (k != i && other->slot == r->from && (other->begin || other->pos == 0))
                return mxd_fail(err, MXD_E_STALE,
                                "step: slot %d begins with slot %d, which begins anew", r->slot,
                                r->from);
        }
    }
    return MXD_OK;
}

static mxd_rc check_step(const mxd_shard *s, const mxd_step *step, const mxd_step_result *result,
                         mxd_err *err) {
    if (step->n_runs < 1 || step->n_runs > MXD_MAX_STEP_RUNS || step->n_rows > s->max_rows)
        return mxd_fail(err, MXD_E_INVAL, "step: %d runs, %d rows; at most %d and %d", step->n_runs,
                        step->n_rows, MXD_MAX_STEP_RUNS, s->max_rows);
    int rows = 0, vocab = mxd_shard_vocab(s);
    bool seen[MXD_MAX_SEQS] = {false};
    for (int i = 0; i < step->n_runs; i++) {
        MXD_TRY(check_run(s, &step->runs[i], err));
        if (seen[step->runs[i].slot])
            return mxd_fail(err, MXD_E_INVAL, "step: slot %d twice", step->runs[i].slot);
        seen[step->runs[i].slot] = true;
        rows += step->runs[i].n;
    }
    if (rows != step->n_rows)
        return mxd_fail(err, MXD_E_INVAL, "step: runs have %d rows, not %d", rows, step->n_rows);
    for (int i = 0; i < rows; i++)
        if (step->ids[i] < 0 || step->ids[i] >= vocab)
            return mxd_fail(err, MXD_E_INVAL, "step: token %d, the vocabulary has %d", step->ids[i],
                            vocab);
    MXD_TRY(check_sources(step, err));
    if ((!s->has_embed && !step->hidden) || (!s->has_head && !result->hidden))
        return mxd_fail(err, MXD_E_INVAL, "step: hidden states are missing");
    return MXD_OK;
}

static void begin(mxd_shard *s, const mxd_step_run *r) {
    slot *t = &s->slots[r->slot];
    if (t->kept > r->pos) t->kept = 0;
    if (!r->begin || r->pos == 0 || r->from == r->slot) {
        if (r->pos > 0 && r->pos < t->kv.len && mxd_model_recurrent(s->model))
            s->backend->ops->state_copy(s->backend, r->slot, s->opts.n_slots + r->slot);
        mxd_pages_cut(&s->pages, &t->kv, r->pos);
        return;
    }
    const slot *from = &s->slots[r->from];
    mxd_pages_share(&s->pages, &t->kv, &from->kv, r->pos);
    memcpy(t->ids, from->ids, r->pos * sizeof *t->ids);
}

/* Puts the ids in place and fills s->runs and s->rows; returns how many rows sample. */
static int prepare(mxd_shard *s, const mxd_step *step) {
    int row = 0, n_sample = 0;
    for (int i = 0; i < step->n_runs; i++) {
        const mxd_step_run *r = &step->runs[i];
        slot *t = &s->slots[r->slot];
        begin(s, r);
        mxd_pages_cover(&s->pages, &t->kv, r->pos + r->n);
        memcpy(t->ids + r->pos, step->ids + row, r->n * sizeof *t->ids);
        s->runs[i] = (mxd_run){row, r->n, (int)r->pos, t->kv.table, r->slot};
        row += r->n;
        if (r->sample) s->rows[n_sample++] = row - 1;
    }
    return n_sample;
}

static void keep_states(mxd_shard *s, const mxd_step *step) {
    for (int i = 0; i < step->n_runs; i++) {
        const mxd_step_run *r = &step->runs[i];
        if (!r->keep || !mxd_model_recurrent(s->model)) continue;
        s->backend->ops->state_copy(s->backend, s->opts.n_slots + r->slot, r->slot);
        s->slots[r->slot].kept = r->pos + r->n;
    }
}

static mxd_rc sample_all(mxd_shard *s, const mxd_step *step, mxd_step_result *result) {
    size_t vocab = (size_t)mxd_shard_vocab(s);
    int k = 0;
    for (int i = 0; i < step->n_runs; i++) {
        const mxd_step_run *r = &step->runs[i];
        if (!r->sample) continue;
        float *logits = s->logits + (size_t)k * vocab;
        if (result->logits)
            memcpy(result->logits + (size_t)k * vocab, logits, vocab * sizeof *logits);
        const slot *t = &s->slots[r->slot];
        if (result->tokens)
            mxd_sample(&s->sampler, logits, &r->how, t->ids, t->kv.len, &result->tokens[k]);
        k++;
    }
    result->n_tokens = k;
    return MXD_OK;
}

/* A row's logits in the order of ranks are in the order of ids. */
static mxd_rc gather_logits(const mxd_shard *s, int n_rows, float *all, mxd_err *err) {
    const mxd_group *g = s->opts.group;
    const int *edge = s->shares.vocab;
    size_t mine = (size_t)local_vocab(s), n_each[MXD_MAX_RANKS];
    for (int r = 0; r < g->size; r++) n_each[r] = (size_t)(edge[r + 1] - edge[r]);
    for (int i = 0; i < n_rows; i++, all += mxd_shard_vocab(s)) {
        if (mine) memcpy(all + edge[g->rank], s->logits + (size_t)i * mine, mine * sizeof *all);
        MXD_TRY(g->exchange(g->ctx, all, n_each, err));
    }
    return MXD_OK;
}

/* The same of a rank, whose logits are those of its own ids. */
static mxd_rc sample_split(mxd_shard *s, const mxd_step *step, mxd_step_result *result,
                           mxd_err *err) {
    size_t vocab = (size_t)local_vocab(s);
    int n = 0;
    for (int i = 0; i < step->n_runs; i++) {
        const mxd_step_run *r = &step->runs[i];
        if (!r->sample) continue;
        const slot *t = &s->slots[r->slot];
        s->wanted[n] = (mxd_sample_row){s->logits + (size_t)n * vocab, &r->how, t->ids, t->kv.len};
        n++;
    }
    if (result->logits) MXD_TRY(gather_logits(s, n, result->logits, err));
    if (result->tokens) MXD_TRY(mxd_sample_split(&s->split, s->wanted, n, result->tokens, err));
    result->n_tokens = n;
    return MXD_OK;
}

static void empty_slots(mxd_shard *s, const mxd_step *step) {
    for (int i = 0; i < step->n_runs; i++) empty_slot(s, step->runs[i].slot);
}

mxd_rc mxd_shard_step(mxd_shard *s, const mxd_step *step, mxd_step_result *result, mxd_err *err) {
    result->n_tokens = 0;
    MXD_TRY(check_step(s, step, result, err));
    int n_sample = prepare(s, step);
    const mxd_batch batch = {step->n_rows, step->n_runs, s->runs, step->ids};
    const mxd_forward f = {.batch = &batch,
                           .hidden_in = step->hidden,
                           .hidden_out = result->hidden,
                           .rows = s->rows,
                           .n_logits = s->has_head ? n_sample : 0,
                           .logits = s->logits};
    mxd_rc rc = mxd_model_forward(s->model, &f, err);
    if (rc) {
        empty_slots(s, step);
        return rc;
    }
    keep_states(s, step);
    if (!s->has_head) return MXD_OK;
    rc = s->opts.group ? sample_split(s, step, result, err) : sample_all(s, step, result);
    if (rc) empty_slots(s, step);
    return rc;
}
