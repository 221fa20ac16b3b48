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
    r->width[MXD_REG_LOGITS] = m->hp.n_vocab;
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

/* Bytes of a table that is only looked up, as in the file. */
static uint64_t table_bytes(const mxd_model *m, const mxd_decl *d, int layer) {
    char path[256];
    mxd_weight_src s;
    if (d->use != MXD_W_LOOKUP) return 0;
    MXD_ASSERT(mxd_source(m, d, layer, path, &s, NULL) == MXD_OK);
    uint64_t all =
        s.weight->bytes + (s.scales ? s.scales->bytes : 0) + (s.biases ? s.biases->bytes : 0);
    return s.cols ? all / (uint64_t)s.in * (uint64_t)s.cols : all;
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

static void measure_layer(measure *t, int layer, mxd_model_sizes *out) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(t->m, layer, decls);
    for (int i = 0; i < n; i++) {
        if (!decls[i].path) continue;
        out->layer_bytes[layer] += take(t, &decls[i], layer);
        out->layer_table_bytes[layer] += table_bytes(t->m, &decls[i], layer);
        out->layer_ops += ops_of(t, &decls[i]) / out->n_layers;
    }
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
    mxd_decl first = embed; /* of a stage without the head */
    first.use = MXD_W_LOOKUP;
    out->embed_bytes = take(t, &first, -1);
    out->embed_table_bytes = table_bytes(m, &first, -1);
    out->head_bytes = take(t, &norm, -1) + take(t, hp->tied ? &embed : &head, -1);
    for (int l = 0; l < hp->n_layers; l++) {
        measure_layer(t, l, out);
        out->layer_kv_bytes[l] = kv_bytes(kv, mxd_layer_kv(m, &local, l));
        out->layer_state_bytes[l] = state_bytes(mxd_layer_state(&local, l));
    }
    out->head_ops = ops_of(t, &head);
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
