/* sizes.c - what a model weighs, layer by layer: parameters, KV, state, registers. */
#include "model/tensors.h"

/* ----------------------------------------------------------------------------- parameters */

static uint64_t copies(const mxd_model *m, const mxd_decl *d, bool all) {
    if (!d->experts) return 1;
    return (uint64_t)(all || d->heads ? d->experts : m->hp.moe.top_k);
}

/* Weights of a layer: all of them, or those that one row multiplies (its own experts, no tables
 * that are only looked up). */
static uint64_t layer_params(const mxd_model *m, int layer, bool all) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(m, layer, decls);
    uint64_t sum = 0;
    for (int d = 0; d < n; d++) {
        if (decls[d].use == MXD_W_LOOKUP && !all) continue;
        sum += (uint64_t)decls[d].out * (uint64_t)decls[d].in * copies(m, &decls[d], all);
    }
    return sum;
}

static double layer_tiles(const mxd_model *m, int layer) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(m, layer, decls);
    double sum = 0;
    for (int d = 0; d < n; d++)
        if (decls[d].path && !(decls[d].use & (MXD_W_VECTOR | MXD_W_LOOKUP)))
            sum += (double)decls[d].out / 16 * (double)copies(m, &decls[d], false);
    return sum;
}

uint64_t mxd_model_params(const mxd_model *m) {
    uint64_t layers = 0, rest = (uint64_t)m->hp.n_vocab * (uint64_t)m->hp.hidden;
    for (int l = 0; l < m->hp.n_layers; l++) layers += layer_params(m, l, true);
    return layers + (m->hp.tied ? rest : 2 * rest) + (uint64_t)m->hp.hidden;
}

uint64_t mxd_model_weight_bytes(const mxd_model *m) {
    uint64_t sum = 0;
    for (size_t i = 0; i < mxd_st_count(m->st); i++) sum += mxd_st_at(m->st, i)->bytes;
    return sum;
}

/* ------------------------------------------------------------------- what a layer keeps of the
 * past */

mxd_kv_spec mxd_layer_kv(const mxd_model *m, int layer) {
    const mxd_hparams *hp = &m->local;
    if (hp->delta.recurrent[layer]) return (mxd_kv_spec){0};
    if (m->family->kv) return m->family->kv(hp, layer);
    return (mxd_kv_spec){.n_kv = hp->n_kv, .head_dim = hp->head_dim};
}

mxd_state_spec mxd_layer_state(const mxd_hparams *hp, int layer) {
    const mxd_hp_delta *d = &hp->delta;
    if (!d->recurrent[layer]) return (mxd_state_spec){0};
    return (mxd_state_spec){.channels = 2 * d->n_k * d->d_k + d->n_v * d->d_v,
                            .conv = d->conv,
                            .n_heads = d->n_v,
                            .d_v = d->d_v,
                            .d_k = d->d_k};
}

/* Of one position of K or V of a head. */
static uint64_t kv_head_bytes(mxd_kv_type t, int dim) {
    uint64_t d = (uint64_t)dim;
    if (t == MXD_KV_Q8) return d + (d + MXD_KV_GROUP - 1) / MXD_KV_GROUP * sizeof(uint16_t);
    return d * (t == MXD_KV_F32 ? sizeof(float) : sizeof(uint16_t));
}

/* Of one position. */
static uint64_t kv_bytes(mxd_kv_type t, mxd_kv_spec s) {
    uint64_t v = s.latent ? 0 : kv_head_bytes(t, s.v_dim ? s.v_dim : s.head_dim);
    return (uint64_t)s.n_kv * (kv_head_bytes(t, s.head_dim) + v);
}

/* Bytes of one sequence. */
static uint64_t state_bytes(mxd_state_spec s) {
    if (!s.channels) return 0;
    return ((uint64_t)s.channels * (uint64_t)(s.conv - 1) +
            (uint64_t)s.n_heads * (uint64_t)s.d_v * (uint64_t)s.d_k) *
           sizeof(float);
}

/* ------------------------------------------------------------------------------------ registers */

/* Rows of logits the planner counts: sequences that end a chunk in the same micro-batch. */
enum { MXD_LOGITS_PLANNED = 8 };

void mxd_model_registers(const mxd_model *m, mxd_regs *r) {
    *r = (mxd_regs){.n = MXD_REG_FAMILY};
    r->width[MXD_REG_X] = r->width[MXD_REG_H] = m->hp.hidden;
    r->width[MXD_REG_LOGITS] = m->hp.n_vocab;
    r->rows[MXD_REG_LOGITS] = MXD_LOGITS_PLANNED;
    m->family->registers(&m->local, r);
    for (int i = 0; i < r->n; i++) /* of a rank without heads, or without inner values */
        if (r->width[i] < 1) r->width[i] = 1;
}

static uint64_t scratch_bytes(const mxd_model *m, int max_rows, bool head) {
    mxd_regs r;
    mxd_model_registers(m, &r);
    uint64_t sum = 0;
    for (int i = 0; i < r.n; i++) {
        if (i == MXD_REG_LOGITS && !head) continue;
        int rows = r.rows[i] && r.rows[i] < max_rows ? r.rows[i] : max_rows;
        sum += (uint64_t)rows * (uint64_t)r.width[i] * sizeof(float);
    }
    const mxd_hp_moe *moe = &m->hp.moe;
    uint64_t pairs = (uint64_t)max_rows * (uint64_t)moe->top_k; /* rows at their experts */
    uint64_t wide = (uint64_t)(m->hp.hidden > moe->inner ? m->hp.hidden : moe->inner);
    sum += pairs * wide * 3 / 2; /* int8, with two floats for every 16 at the most */
    return sum + pairs * (uint64_t)(m->hp.hidden + 2 * moe->inner) * sizeof(float);
}

/* ---------------------------------------------------------------------------------------- sizes */

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

static void add_layer(const mxd_model *m, int l, mxd_kv_type kv, mxd_model_sizes *out) {
    const mxd_hparams *hp = &m->hp;
    mxd_kv_spec keeps = mxd_layer_kv(m, l);
    size_t n = 0;
    MXD_ASSERT(mxd_layer_bytes(m, l, &out->layer_bytes[l], &n, NULL) == MXD_OK);
    double all = (double)layer_params(m, l, true), active = (double)layer_params(m, l, false);
    out->layer_read_bytes[l] = (uint64_t)((double)out->layer_bytes[l] * active / all);
    out->layer_ops += active / hp->n_layers;
    out->layer_tiles += layer_tiles(m, l) / hp->n_layers;
    out->layer_kv_bytes[l] = kv_bytes(kv, keeps);
    out->layer_state_bytes[l] = state_bytes(mxd_layer_state(hp, l));
    int wide = keeps.head_dim + (keeps.v_dim ? keeps.v_dim : keeps.head_dim);
    out->layer_attend_ops[l] = hp->delta.recurrent[l] ? 0 : (double)hp->n_heads * wide;
    out->layer_window[l] = hp->sliding[l] ? hp->window : 0;
    add_values(m, l, out);
}

void mxd_model_sizes_get(const mxd_model *m, int max_rows, mxd_kv_type kv, mxd_model_sizes *out) {
    const mxd_hparams *hp = &m->hp;
    *out = (mxd_model_sizes){.n_layers = hp->n_layers,
                             .tied = hp->tied,
                             .reembed = hp->reembed,
                             .last_cut = hp->last_cut};
    mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m),
             head = hp->tied ? embed : mxd_head_decl(m);
    size_t n = 0;
    /* every source was checked when the model was opened */
    MXD_ASSERT(mxd_decl_bytes(m, &embed, -1, &out->embed_bytes, &n, NULL) == MXD_OK);
    MXD_ASSERT(mxd_decl_bytes(m, &norm, -1, &out->head_bytes, &n, NULL) == MXD_OK);
    MXD_ASSERT(mxd_decl_bytes(m, &head, -1, &out->head_bytes, &n, NULL) == MXD_OK);
    for (int l = 0; l < hp->n_layers; l++) add_layer(m, l, kv, out);
    out->head_ops = (double)hp->n_vocab * hp->hidden;
    out->head_values = hp->n_vocab;
    out->top_k = hp->moe.n_experts ? hp->moe.top_k : 0;
    mxd_cuts_of(m, &out->cuts);
    out->scratch_bytes = scratch_bytes(m, max_rows, true);
    out->hidden_bytes = (uint64_t)hp->hidden * sizeof(float);
}

mxd_rc mxd_model_sizes_read(mxd_model_sizes *out, const mxd_alloc *al, const char *folder,
                            int max_rows, mxd_kv_type kv, mxd_err *err) {
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, al, folder, err));
    mxd_model_sizes_get(m, max_rows, kv, out);
    mxd_model_close(m);
    return MXD_OK;
}
