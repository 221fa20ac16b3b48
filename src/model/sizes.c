/* sizes.c - what a model weighs, layer by layer: parameters, KV, state, registers. */
#include "model/tensors.h"

static uint64_t up16(int n) { return ((uint64_t)n + 15) / 16 * 16; }

/* ----------------------------------------------------------------------------- parameters */

/* Weights of a layer. */
static uint64_t layer_params(const mxd_model *m, int layer) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(m, layer, decls);
    uint64_t sum = 0;
    for (int d = 0; d < n; d++)
        sum += (uint64_t)decls[d].out * (uint64_t)decls[d].in *
               (uint64_t)(decls[d].experts ? decls[d].experts : 1);
    return sum;
}

uint64_t mxd_model_params(const mxd_model *m) {
    uint64_t layers = 0, rest = (uint64_t)m->hp.n_vocab * (uint64_t)m->hp.hidden;
    for (int l = 0; l < m->hp.n_layers; l++) layers += layer_params(m, l);
    return layers + (m->hp.tied ? rest : 2 * rest) + (uint64_t)m->hp.hidden;
}

uint64_t mxd_model_weight_bytes(const mxd_model *m) {
    uint64_t sum = 0;
    for (size_t i = 0; i < mxd_st_count(m->st); i++) sum += mxd_st_at(m->st, i)->bytes;
    return sum;
}

/* ------------------------------------------------------------------- what a layer keeps of the
 * past */

mxd_kv_spec mxd_layer_kv(const mxd_model *m, const mxd_hparams *local, int layer) {
    if (local->delta.recurrent[layer] || (local->n_kv == 0 && !m->family->kv))
        return (mxd_kv_spec){0};
    if (m->family->kv) return m->family->kv(local, layer);
    return (mxd_kv_spec){.n_kv = local->n_kv, .head_dim = local->head_dim};
}

mxd_state_spec mxd_layer_state(const mxd_hparams *local, int layer) {
    const mxd_hp_delta *d = &local->delta;
    if (!d->recurrent[layer] || !d->n_k) return (mxd_state_spec){0};
    return (mxd_state_spec){.channels = 2 * d->n_k * d->d_k + d->n_v * d->d_v,
                            .conv = d->conv,
                            .n_heads = d->n_v,
                            .d_v = d->d_v,
                            .d_k = d->d_k};
}

/* Of one position of K or V of a head. */
static uint64_t kv_head_bytes(mxd_kv_type t, int dim) {
    uint64_t d = up16(dim);
    if (t == MXD_KV_Q8) return d + (d + MXD_KV_GROUP - 1) / MXD_KV_GROUP * sizeof(uint16_t);
    return d * (t == MXD_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* Of one position. */
static uint64_t kv_bytes(mxd_kv_type t, mxd_kv_spec s) {
    if (!s.n_kv) return 0;
    uint64_t v = s.latent ? 0 : kv_head_bytes(t, s.v_dim ? s.v_dim : s.head_dim);
    return (uint64_t)s.n_kv * (kv_head_bytes(t, s.head_dim) + v);
}

/* Bytes of one sequence. */
static uint64_t state_bytes(mxd_state_spec s) {
    if (!s.channels) return 0;
    uint64_t floats = (uint64_t)s.channels * (uint64_t)(s.conv - 1) +
                      (uint64_t)s.n_heads * (uint64_t)s.d_v * (uint64_t)s.d_k;
    return (floats + 15) / 16 * 16 * sizeof(float);
}

/* ------------------------------------------------------------------------------------ registers */

/* Rows of logits the planner counts: sequences that end a chunk in the same micro-batch. */
enum { MXD_LOGITS_PLANNED = 8 };

void mxd_model_registers(const mxd_model *m, const mxd_hparams *local, mxd_regs *r) {
    *r = (mxd_regs){.n = MXD_REG_FAMILY};
    r->width[MXD_REG_X] = r->width[MXD_REG_H] = m->hp.hidden;
    r->width[MXD_REG_LOGITS] = local->n_vocab;
    r->rows[MXD_REG_LOGITS] = MXD_LOGITS_PLANNED;
    m->family->registers(local, r);
    for (int i = 0; i < r->n; i++) /* of a rank without heads, or without inner values */
        if (r->width[i] < 1) r->width[i] = 1;
}

static uint64_t registers_bytes(const mxd_model *m, const mxd_hparams *local, int max_rows) {
    mxd_regs r;
    mxd_model_registers(m, local, &r);
    uint64_t sum = 0;
    for (int i = 0; i < r.n; i++) {
        int rows = r.rows[i] && r.rows[i] < max_rows ? r.rows[i] : max_rows;
        sum += (uint64_t)rows * up16(r.width[i]) * sizeof(float);
    }
    return sum;
}

/* Buffers beside the registers: rows in int8, with two floats for every 16; rows at experts; angles
 * of RoPE. */
static uint64_t buffer_bytes(const mxd_model *m, int max_rows, int max_in) {
    const mxd_hp_moe *moe = &m->hp.moe;
    uint64_t rows = (uint64_t)max_rows, pairs = rows * (uint64_t)moe->top_k;
    uint64_t panels = (rows > pairs ? rows : pairs) * ((uint64_t)max_in * 3 / 2);
    uint64_t experts = pairs * (up16(m->hp.hidden) + 2 * up16(moe->inner)) * sizeof(float);
    int head =
        m->hp.head_dim > m->hp.kinds.full_head_dim ? m->hp.head_dim : m->hp.kinds.full_head_dim;
    return panels + experts + 4 * rows * up16(head) * sizeof(float);
}

/* ---------------------------------------------------------------------------------------- sizes */

typedef struct measure { /* of a rank, or of all */
    const mxd_model *m;
    const mxd_shares *shares; /* NULL: all */
    int rank, max_rows, max_in;
    uint64_t exchange;
} measure;

/* Bytes of a weight here. */
static uint64_t take(measure *t, const mxd_decl *d, int layer) {
    char path[256];
    mxd_weight_src src;
    mxd_cut cut;
    bool none;
    /* every source was checked when the model was opened */
    MXD_ASSERT(mxd_share_source(t->m, d, layer, t->shares, t->rank, path, &src, &cut, &none,
                                NULL) == MXD_OK);
    if (none) return 0;
    uint64_t exchange, bytes = mxd_weight_bytes(t->m->al, &src, t->max_rows, &exchange);
    if (t->exchange < exchange) t->exchange = exchange;
    bool codes = (d->use & MXD_W_LINEAR) && src.scales;
    if (codes && t->max_in < src.in) t->max_in = src.in;
    return bytes;
}

/* What of a weight one row multiplies here: its own experts, of tables nothing. */
static double ops_of(const measure *t, const mxd_decl *d) {
    if (d->use & MXD_W_LOOKUP) return 0;
    double all = (double)d->out * d->in;
    if (d->experts) all *= d->heads ? d->experts : t->m->hp.moe.top_k;
    if (!t->shares || d->cut == MXD_CUT_NONE) return all;
    const int *edge = mxd_axis_edges(t->shares, d->by);
    return all * (edge[t->rank + 1] - edge[t->rank]) / mxd_axis_count(&t->m->hp, d->by);
}

/* Numbers that go through norms, activations, rotation and quantising: about six times the hidden
 * state, twice the queries, three times the inner values. */
static void add_values(const mxd_model *m, int layer, mxd_model_sizes *out) {
    const mxd_hparams *hp = &m->hp;
    bool sparse = hp->moe.n_experts && hp->moe.sparse[layer];
    mxd_state_spec state = mxd_layer_state(hp, layer);
    double inner = sparse ? (double)hp->moe.top_k * (3.0 * hp->moe.inner + 2.0 * hp->hidden)
                          : 3.0 * hp->intermediate;
    double queries = state.channels ? 3.0 * state.channels : 2.0 * hp->n_heads * hp->head_dim;
    out->layer_values += 6.0 * hp->hidden / hp->n_layers;
    out->layer_values_cut += (queries + inner) / hp->n_layers;
}

/* What a weight is for the ranks of a group. */
static void cut_weight(const mxd_model *m, const mxd_decl *d, int l, double bytes,
                       mxd_model_cuts *c) {
    char path[256];
    mxd_weight_src src;
    int all = d->cut == MXD_CUT_NONE ? 0 : mxd_axis_count(&m->hp, d->by);
    if (!all || d->use == MXD_W_LOOKUP) {
        c->whole[l] += bytes;
        return;
    }
    c->per[d->by][l] += bytes / all;
    if (d->cut == MXD_CUT_EXPERTS) c->experts[l] = true;
    if (d->cut != MXD_CUT_COLUMNS) return;
    MXD_ASSERT(mxd_source(m, d, l, path, &src, NULL) == MXD_OK);
    c->sum[d->by][l] = true;
    c->in[d->by] = d->in;
    c->block[d->by] = src.block_k;
}

/* What one row reads of a weight: of experts its own. */
static double read_of(const mxd_model *m, const mxd_decl *d, uint64_t bytes) {
    bool some = d->experts && !d->heads && m->hp.moe.top_k < d->experts;
    return some ? (double)bytes * m->hp.moe.top_k / d->experts : (double)bytes;
}

static double tiles_of(const mxd_model *m, const mxd_decl *d) {
    if (d->use & (MXD_W_VECTOR | MXD_W_LOOKUP)) return 0;
    int copies = !d->experts ? 1 : d->heads ? d->experts : m->hp.moe.top_k;
    return (double)d->out / 16 * copies;
}

/* What decoding and prompts cost beside bytes and products. */
static void add_costs(const mxd_model *m, int l, mxd_kv_spec keeps, mxd_model_sizes *out) {
    const mxd_hparams *hp = &m->hp;
    int wide = keeps.head_dim + (keeps.v_dim ? keeps.v_dim : keeps.head_dim);
    out->layer_attend_ops[l] = hp->delta.recurrent[l] ? 0 : (double)hp->n_heads * wide;
    out->layer_window[l] = hp->sliding[l] ? hp->window : 0;
    add_values(m, l, out);
}

static void measure_layer(measure *t, int layer, mxd_model_sizes *out) {
    double read = 0;
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(t->m, layer, decls);
    for (int i = 0; i < n; i++) {
        if (!decls[i].path) continue;
        uint64_t bytes = take(t, &decls[i], layer);
        out->layer_bytes[layer] += bytes;
        read += read_of(t->m, &decls[i], bytes);
        out->layer_tiles += tiles_of(t->m, &decls[i]) / out->n_layers;
        if (!t->shares) cut_weight(t->m, &decls[i], layer, (double)bytes, &out->cuts);
        out->layer_ops += ops_of(t, &decls[i]) / out->n_layers;
    }
    out->layer_read_bytes[layer] = (uint64_t)read;
}

static void start_cuts(const mxd_model *m, mxd_model_cuts *c) {
    c->possible = mxd_axis_steps(m, c->step, NULL) == MXD_OK;
    for (int a = 0; a < MXD_AXES; a++) c->count[a] = mxd_axis_count(&m->hp, (mxd_axis)a);
    c->latent = m->hp.mla.kv_rank > 0;
}

static void measure_all(measure *t, mxd_kv_type kv, mxd_model_sizes *out) {
    const mxd_model *m = t->m;
    const mxd_hparams *hp = &m->hp;
    mxd_hparams local = *hp;
    if (t->shares) mxd_local_hparams(m, t->shares, t->rank, &local);
    *out = (mxd_model_sizes){.n_layers = hp->n_layers,
                             .tied = hp->tied,
                             .reembed = hp->reembed,
                             .last_cut = hp->last_cut};
    const mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m), head = mxd_head_decl(m);
    out->embed_bytes = take(t, &embed, -1);
    if (!t->shares && out->embed_bytes >= MXD_ASIDE_BYTES) { /* it will lie aside */
        out->embed_table_bytes = out->embed_bytes;
        out->embed_bytes = 0;
    }
    if (!t->shares) start_cuts(m, &out->cuts);
    out->cuts.norm_bytes = (double)take(t, &norm, -1);
    out->head_bytes = take(t, hp->tied ? &embed : &head, -1);
    out->cuts.head_per_id = (double)out->head_bytes / hp->n_vocab;
    out->head_bytes += (uint64_t)out->cuts.norm_bytes;
    for (int l = 0; l < hp->n_layers; l++) {
        measure_layer(t, l, out);
        out->layer_kv_bytes[l] = kv_bytes(kv, mxd_layer_kv(m, &local, l));
        add_costs(m, l, mxd_layer_kv(m, &local, l), out);
        out->layer_state_bytes[l] = state_bytes(mxd_layer_state(&local, l));
    }
    out->head_ops = ops_of(t, &head);
    out->head_values = hp->n_vocab;
    out->top_k = hp->moe.n_experts ? hp->moe.top_k : 0;
    out->scratch_bytes = registers_bytes(m, &local, t->max_rows) +
                         buffer_bytes(m, t->max_rows, t->max_in) + t->exchange;
    out->hidden_bytes = (uint64_t)hp->hidden * sizeof(float);
}

void mxd_model_sizes_get(const mxd_model *m, int max_rows, mxd_kv_type kv, mxd_model_sizes *out) {
    measure t = {.m = m, .max_rows = max_rows};
    measure_all(&t, kv, out);
}

void mxd_model_share_sizes(const mxd_model *m, const mxd_shares *shares, int rank, int max_rows,
                           mxd_kv_type kv, mxd_model_sizes *out) {
    MXD_ASSERT(rank >= 0 && rank < shares->size);
    measure t = {.m = m, .shares = shares, .rank = rank, .max_rows = max_rows};
    measure_all(&t, kv, out);
}

mxd_rc mxd_model_sizes_read(mxd_model_sizes *out, const mxd_alloc *al, const char *folder,
                            int max_rows, mxd_kv_type kv, mxd_err *err) {
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, al, folder, err));
    mxd_model_sizes_get(m, max_rows, kv, out);
    mxd_model_close(m);
    return MXD_OK;
}
