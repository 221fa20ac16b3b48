/* qwen3_next.c - Qwen3-Next and Qwen 3.5: three layers of a gated delta net, then one of attention
 * whose output has a gate; dense, or a mixture of experts beside one that all rows share.
 * Sources: Gated Delta Networks (arXiv 2412.06464), section 3; Gated Attention (arXiv 2505.06708);
 * mlx-lm's models of the names.
 *
 * Shapes: T rows, D hidden; attention: H query heads, G KV heads of d; delta net: K key heads and
 * V value heads, C channels; r = V / K. */
#include <stdio.h>

#include "model/blocks.h"

enum { ROUTER = MXD_BLOCK_N, S_GATE, S_UP, S_DOWN, S_SHARE, N_SPARSE }; /* S: the shared expert */
enum { Q_NORM, K_NORM, N_ATTENTION }; /* behind those, or behind the block's in a dense layer */
enum { A_LOG, DT_BIAS, Y_NORM, IN_B, IN_A, N_DELTA };
enum { IN_QKV = MXD_BLOCK_Q, IN_Z, CONV, OUT }; /* of a delta net, where attention has its own */
enum { IN_QKVZ = IN_QKV, IN_BA = IN_Z };        /* Qwen3-Next */

enum { X = MXD_REG_X, NORMED = MXD_REG_H, Q = MXD_REG_FAMILY, K, V, ATTN };
enum {
    WIDE = MXD_BLOCK_REGS,
    GATE,
    QKV,
    Z,
    B,
    A,
    QKVZ,
    BA,
    LOGITS,
    ROUTED,
    S_INNER,
    S_UPPED,
    SHARE,
    N_REGS
};

/* ------------------------------------------------------------------------------- configuration */

static mxd_rc read_delta(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_delta *d = &hp->delta;
    int every;
    MXD_TRY(mxd_config_int(c, "full_attention_interval", 1, MXD_MAX_LAYERS, 4, &every, err));
    MXD_TRY(mxd_config_int(c, "linear_num_key_heads", 1, MXD_MAX_HEADS, -1, &d->n_k, err));
    MXD_TRY(mxd_config_int(c, "linear_num_value_heads", 1, MXD_MAX_HEADS, -1, &d->n_v, err));
    MXD_TRY(mxd_config_int(c, "linear_key_head_dim", 1, MXD_MAX_HEAD_DIM, -1, &d->d_k, err));
    MXD_TRY(mxd_config_int(c, "linear_value_head_dim", 1, MXD_MAX_HEAD_DIM, -1, &d->d_v, err));
    MXD_TRY(mxd_config_int(c, "linear_conv_kernel_dim", 1, MXD_MAX_CONV, 4, &d->conv, err));
    for (int i = 0; i < hp->n_layers; i++) d->recurrent[i] = (i + 1) % every != 0;
    if (d->n_v % d->n_k)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: %d value heads over %d key heads of linear attention cannot "
                        "be",
                        d->n_v, d->n_k);
    if (d->d_k % 16 == 0 && d->d_v % 16 == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "config.json: linear attention with key heads of %d and value heads of %d "
                    "values; supported: multiples of 16",
                    d->d_k, d->d_v);
}

/* The part of a head that turns, then the frequencies. */
static mxd_rc read_rope(mxd_hparams *hp, const json_t *c, double theta, mxd_err *err) {
    const char *key = "partial_rotary_factor";
    const json_t *inner = mxd_config_get(c, "rope_parameters"); /* newer files */
    double part;
    MXD_TRY(mxd_config_real(mxd_config_get(c, key) ? c : inner, key, 0, 1, 0.25, &part, err));
    hp->rope.dims = (int)(hp->head_dim * part);
    if (hp->rope.dims < 2 || hp->rope.dims % 2)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: '%s' rotates %d of %d values, must be even", key,
                        hp->rope.dims, hp->head_dim);
    return mxd_rope_read(&hp->rope, c, hp->context, theta, err);
}

/* Experts in every layer, when there are any. */
static mxd_rc read_experts(mxd_hparams *hp, const json_t *c, bool norm_topk, mxd_err *err) {
    mxd_hp_moe *m = &hp->moe;
    MXD_TRY(mxd_config_int(c, "num_experts", 0, MXD_MAX_EXPERTS, 0, &m->n_experts, err));
    if (!m->n_experts) return MXD_OK;
    int most = m->n_experts < MXD_MAX_TOP_K ? m->n_experts : MXD_MAX_TOP_K,
        wide = 8 * MXD_MAX_HIDDEN;
    MXD_TRY(mxd_config_int(c, "num_experts_per_tok", 1, most, -1, &m->top_k, err));
    MXD_TRY(mxd_config_int(c, "moe_intermediate_size", 1, wide, -1, &m->inner, err));
    MXD_TRY(
        mxd_config_int(c, "shared_expert_intermediate_size", 1, wide, -1, &m->shared_inner, err));
    MXD_TRY(mxd_config_bool(c, "norm_topk_prob", norm_topk, &m->norm_topk, err));
    for (int i = 0; i < hp->n_layers; i++) m->sparse[i] = true;
    return MXD_OK;
}

static mxd_rc configure_3_5(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 131072, err));
    MXD_TRY(mxd_config_bool(c, "attention_bias", false, &hp->attention_bias, err));
    MXD_TRY(read_rope(hp, c, 100000, err));
    MXD_TRY(read_experts(hp, c, true, err));
    return read_delta(hp, c, err);
}

static mxd_rc configure_next(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    MXD_TRY(mxd_config_bool(c, "attention_bias", false, &hp->attention_bias, err));
    MXD_TRY(read_rope(hp, c, 10000, err));
    MXD_TRY(read_experts(hp, c, false, err));
    if (hp->moe.n_experts) MXD_TRY(mxd_blocks_sparse(hp, c, err));
    hp->delta.fused = true;
    return read_delta(hp, c, err);
}

/* Qwen 3.5 as it was trained, before conversion: the convolution is [C, 1, inputs], and every norm
 * but that of a delta net's output holds what is to be added to 1. */
static bool unconverted(const mxd_hparams *hp, const mxd_st *st, const char *prefix) {
    for (int i = 0; i < hp->n_layers; i++) {
        char name[128];
        if (!hp->delta.recurrent[i]) continue;
        snprintf(name, sizeof name, "%smodel.layers.%d.linear_attn.conv1d.weight", prefix, i);
        const mxd_st_tensor *t = mxd_st_find(st, name);
        return t && t->n_dims == 3 && t->shape[2] != 1;
    }
    return false;
}

static mxd_rc inspect_3_5(mxd_hparams *hp, const mxd_st *st, const char *prefix, mxd_err *err) {
    (void)err;
    if (unconverted(hp, st, prefix)) hp->norm_add = 1;
    return MXD_OK;
}

static mxd_rc inspect_next(mxd_hparams *hp, const mxd_st *st, const char *prefix, mxd_err *err) {
    if (!unconverted(hp, st, prefix)) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "tensor 'linear_attn.conv1d.weight' is [channels, 1, inputs], as before the "
                    "conversion to MLX: use a converted repository");
}

/* --------------------------------------------------------------------------------- declarations */

static int feed_of(const mxd_hparams *hp, int layer) {
    return hp->moe.sparse[layer] ? (int)N_SPARSE : (int)MXD_BLOCK_N;
}

static void declare_experts(const mxd_hparams *hp, mxd_decl *out) {
    int D = hp->hidden, F = hp->moe.inner, S = hp->moe.shared_inner, E = hp->moe.n_experts;
    const mxd_decl_cut rows = MXD_CUT_ROWS, whole = MXD_CUT_EXPERTS;
    const mxd_axis inner = MXD_BY_SHARED_INNER, expert = MXD_BY_EXPERT;
    out[MXD_BLOCK_GATE] = (mxd_decl){
        "mlp.switch_mlp.gate_proj", MXD_W_LINEAR, F, D, .experts = E, .cut = whole, .by = expert};
    out[MXD_BLOCK_UP] = (mxd_decl){
        "mlp.switch_mlp.up_proj", MXD_W_LINEAR, F, D, .experts = E, .cut = whole, .by = expert};
    out[MXD_BLOCK_DOWN] = (mxd_decl){
        "mlp.switch_mlp.down_proj", MXD_W_LINEAR, D, F, .experts = E, .cut = whole, .by = expert};
    out[ROUTER] = (mxd_decl){"mlp.gate", MXD_W_LINEAR | MXD_W_EXACT, E, D};
    out[S_GATE] =
        (mxd_decl){"mlp.shared_expert.gate_proj", MXD_W_LINEAR, S, D, .cut = rows, .by = inner};
    out[S_UP] =
        (mxd_decl){"mlp.shared_expert.up_proj", MXD_W_LINEAR, S, D, .cut = rows, .by = inner};
    out[S_DOWN] = (mxd_decl){"mlp.shared_expert.down_proj", MXD_W_LINEAR, D, S,
                             .cut = MXD_CUT_COLUMNS,        .by = inner};
    out[S_SHARE] = (mxd_decl){"mlp.shared_expert_gate", MXD_W_LINEAR | MXD_W_EXACT, 1, D};
}

/* Rows that a rank has for its key heads and their value heads. */
static mxd_decl by_key(const char *path, unsigned use, int out, int in) {
    return (mxd_decl){path, use, out, in, .cut = MXD_CUT_ROWS, .by = MXD_BY_KEY};
}

/* Channels are all of q, all of k, all of v. */
static void declare_channels(const mxd_hp_delta *d, mxd_decl *out) {
    out->sections[0] = out->sections[1] = d->n_k * d->d_k;
    out->sections[2] = d->n_v * d->d_v;
}

/* Inputs of the gates stay float32: an error of a decay grows with every position. */
static int declare_delta(const mxd_hparams *hp, mxd_decl *out, mxd_decl *own) {
    const mxd_hp_delta *d = &hp->delta;
    int D = hp->hidden, z = d->n_v * d->d_v, C = 2 * d->n_k * d->d_k + z;
    unsigned exact = MXD_W_LINEAR | MXD_W_EXACT;
    if (d->fused) {
        out[IN_QKVZ] = by_key("linear_attn.in_proj_qkvz", MXD_W_LINEAR, C + z, D);
        out[IN_BA] = by_key("linear_attn.in_proj_ba", exact, 2 * d->n_v, D);
    } else {
        out[IN_QKV] = by_key("linear_attn.in_proj_qkv", MXD_W_LINEAR, C, D);
        declare_channels(d, &out[IN_QKV]);
        out[IN_Z] = by_key("linear_attn.in_proj_z", MXD_W_LINEAR, z, D);
        own[IN_B] = by_key("linear_attn.in_proj_b", exact, d->n_v, D);
        own[IN_A] = by_key("linear_attn.in_proj_a", exact, d->n_v, D);
    }
    out[CONV] = by_key("linear_attn.conv1d", MXD_W_VECTOR, 1, C * d->conv);
    out[CONV].flat = true;
    out[CONV].columns = d->conv;
    declare_channels(d, &out[CONV]);
    out[OUT] = (mxd_decl){"linear_attn.out_proj", MXD_W_LINEAR,    D, z, .unit = z / d->n_k,
                          .cut = MXD_CUT_COLUMNS, .by = MXD_BY_KEY};
    own[A_LOG] = by_key("linear_attn.A_log", MXD_W_VECTOR, 1, d->n_v);
    own[DT_BIAS] = by_key("linear_attn.dt_bias", MXD_W_VECTOR, 1, d->n_v);
    own[A_LOG].param = own[DT_BIAS].param = true;
    own[Y_NORM] = (mxd_decl){"linear_attn.norm", MXD_W_VECTOR, 1, d->d_v};
    return d->fused ? (int)IN_B : (int)N_DELTA;
}

static int declare_attention(const mxd_hparams *hp, mxd_decl *out, mxd_decl *own) {
    int d = hp->head_dim;
    out[MXD_BLOCK_Q].out = 2 * hp->n_heads * d; /* of each head: query, then gate */
    for (int i = MXD_BLOCK_Q; i <= MXD_BLOCK_O; i++) out[i].bias = hp->attention_bias;
    own[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, d, .add = hp->norm_add};
    own[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, d, .add = hp->norm_add};
    return N_ATTENTION;
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    int first = feed_of(hp, layer);
    mxd_blocks_declare(hp, out);
    out[MXD_BLOCK_ATTN_NORM].add = out[MXD_BLOCK_MLP_NORM].add = hp->norm_add;
    if (hp->moe.sparse[layer]) declare_experts(hp, out);
    bool recurrent = hp->delta.recurrent[layer];
    return first + (recurrent ? declare_delta : declare_attention)(hp, out, out + first);
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    const mxd_hp_delta *d = &hp->delta;
    int z = d->n_v * d->d_v, C = 2 * d->n_k * d->d_k + z, none = 1;
    mxd_blocks_registers(hp, r);
    r->n = N_REGS;
    r->width[GATE] = r->width[Q];
    r->width[WIDE] = 2 * r->width[Q];
    r->width[QKV] = C;
    r->width[Z] = z;
    r->width[B] = r->width[A] = d->n_v;
    r->width[QKVZ] = d->fused ? C + z : none;
    r->width[BA] = d->fused ? 2 * d->n_v : none;
    bool moe = hp->moe.n_experts > 0;
    r->width[LOGITS] = moe ? hp->moe.n_experts : none;
    r->width[ROUTED] = moe ? hp->hidden : none;
    r->width[S_INNER] = r->width[S_UPPED] = moe ? hp->moe.shared_inner : none;
    r->width[SHARE] = 1;
}

/* -------------------------------------------------------------------------------------- forward */

/* GATE [T, H d] from NORMED: the heads of this rank. */
static void attend_heads(const mxd_model *m, int i, mxd_weight *const *own) {
    const mxd_hparams *hp = &m->local;
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    const mxd_attention a = {
        .n_heads = hp->n_heads, .n_kv = hp->n_kv, .head_dim = hp->head_dim, .scale = m->attn_scale};
    op->linear(b, 3, (const int[]){WIDE, K, V}, NORMED, /* [T, 2 H d], 2 x [T, G d] */
               (const mxd_weight *const[]){w[MXD_BLOCK_Q], w[MXD_BLOCK_K], w[MXD_BLOCK_V]});
    op->split(b, Q, GATE, WIDE, hp->n_heads, hp->head_dim, hp->head_dim); /* 2 x [T, H d] */
    op->norm(b, Q, Q, own[Q_NORM], hp->eps);
    op->norm(b, K, K, own[K_NORM], hp->eps);
    op->rope(b, Q, hp->n_heads, hp->head_dim, &m->rope);
    op->rope(b, K, hp->n_kv, hp->head_dim, &m->rope);
    op->kv_append(b, i, K, V);
    op->attend(b, i, ATTN, Q, &a);
    op->gated(b, GATE, GATE, ATTN, MXD_SIGMOID);
}

static void attention(const mxd_model *m, int i, mxd_weight *const *own) {
    if (m->local.n_kv) attend_heads(m, i, own); /* else other ranks have them */
    mxd_blocks_project(m, NORMED, GATE, m->layers[i].w[MXD_BLOCK_O]);
}

/* Z [T, V d_v] from NORMED: the heads of this rank. */
static void delta_heads(const mxd_model *m, int i, mxd_weight *const *own) {
    const mxd_hp_delta *d = &m->local.delta;
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    int r = d->n_v / d->n_k;
    const mxd_delta_net how = {.conv_w = w[CONV],
                               .a_log = own[A_LOG],
                               .dt_bias = own[DT_BIAS],
                               .norm = own[Y_NORM],
                               .n_k = d->n_k,
                               .n_v = d->n_v,
                               .d_k = d->d_k,
                               .d_v = d->d_v,
                               .conv = d->conv,
                               .by_key_head = d->fused,
                               .eps = m->hp.eps};
    if (d->fused) { /* for each key head: q, k, r heads of v, r of z; and r of b, r of a */
        op->linear(b, 2, (const int[]){QKVZ, BA}, NORMED,
                   (const mxd_weight *const[]){w[IN_QKVZ], w[IN_BA]});
        op->split(b, QKV, Z, QKVZ, d->n_k, 2 * d->d_k + r * d->d_v, r * d->d_v);
        op->split(b, B, A, BA, d->n_k, r, r);
    } else {
        op->linear(b, 4, (const int[]){QKV, Z, B, A}, NORMED, /* [T, C], [T, V d_v], 2 x [T, V] */
                   (const mxd_weight *const[]){w[IN_QKV], w[IN_Z], own[IN_B], own[IN_A]});
    }
    op->delta_net(b, i, Z, QKV, Z, B, A, &how);
}

static void delta_net(const mxd_model *m, int i, mxd_weight *const *own) {
    if (m->local.delta.n_k) delta_heads(m, i, own);
    mxd_blocks_project(m, NORMED, Z, m->layers[i].w[OUT]);
}

static void experts(const mxd_model *m, int i) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    const mxd_moe how = {.gate = w[MXD_BLOCK_GATE],
                         .up = w[MXD_BLOCK_UP],
                         .down = w[MXD_BLOCK_DOWN],
                         .n_experts = m->hp.moe.n_experts,
                         .top_k = m->hp.moe.top_k,
                         .router = MXD_ROUTE_SOFTMAX,
                         .norm_weights = m->hp.moe.norm_topk,
                         .act = MXD_SILU};
    op->norm(b, NORMED, X, w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    bool shared = m->local.moe.shared_inner > 0; /* here */
    op->linear(b, shared ? 4 : 2, (const int[]){LOGITS, SHARE, S_INNER, S_UPPED}, NORMED,
               (const mxd_weight *const[]){w[ROUTER], w[S_SHARE], w[S_GATE], w[S_UP]});
    op->moe(b, ROUTED, NORMED, LOGITS, &how); /* [T, D] */
    if (shared) op->gated(b, S_INNER, S_INNER, S_UPPED, MXD_SILU);
    mxd_blocks_project(m, NORMED, S_INNER, w[S_DOWN]);
    op->gate_rows(b, NORMED, SHARE);
    op->add(b, NORMED, ROUTED);
    op->add(b, X, NORMED); /* x += experts + sigmoid(share) * shared expert */
}

static void layer(const mxd_model *m, int i) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_weight *const *w = m->layers[i].w;
    int l = m->layer0 + i;
    op->norm(m->backend, NORMED, X, w[MXD_BLOCK_ATTN_NORM], m->hp.eps);
    (m->hp.delta.recurrent[l] ? delta_net : attention)(m, i, w + feed_of(&m->hp, l));
    op->add(m->backend, X, NORMED);
    if (m->hp.moe.sparse[l])
        experts(m, i);
    else
        mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_qwen3_next = {
    .model_type = "qwen3_next",
    .configure = configure_next,
    .inspect = inspect_next,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};

const mxd_family mxd_family_qwen3_5 = {
    .model_type = "qwen3_5_text",
    .configure = configure_3_5,
    .inspect = inspect_3_5,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};

const mxd_family mxd_family_qwen3_5_moe = {
    .model_type = "qwen3_5_moe_text",
    .configure = configure_3_5,
    .inspect = inspect_3_5,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};
