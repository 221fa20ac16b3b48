/* qwen3_moe.c - Qwen3 with a mixture of experts in place of the MLP of some or all layers.
 * Source: the Qwen3 technical report (arXiv 2505.09388), section 2, and mlx-lm's model of the name.
 */
#include "model/blocks.h"

enum { Q_NORM = MXD_BLOCK_N, K_NORM, N_DENSE, ROUTER = N_DENSE, N_SPARSE };
enum { LOGITS = MXD_BLOCK_REGS, N_REGS };

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, 10000, err));
    MXD_TRY(mxd_config_int(c, "num_experts", 1, MXD_MAX_EXPERTS, -1, &hp->moe.n_experts, err));
    int most = hp->moe.n_experts < MXD_MAX_TOP_K ? hp->moe.n_experts : MXD_MAX_TOP_K;
    MXD_TRY(mxd_config_int(c, "num_experts_per_tok", 1, most, -1, &hp->moe.top_k, err));
    MXD_TRY(
        mxd_config_int(c, "moe_intermediate_size", 1, 8 * MXD_MAX_HIDDEN, -1, &hp->moe.inner, err));
    MXD_TRY(mxd_config_bool(c, "norm_topk_prob", false, &hp->moe.norm_topk, err));
    return mxd_blocks_sparse(hp, c, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    int D = hp->hidden, F = hp->moe.inner, E = hp->moe.n_experts;
    mxd_blocks_declare(hp, out);
    out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, hp->head_dim};
    out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, hp->head_dim};
    if (!hp->moe.sparse[layer]) return N_DENSE;
    out[MXD_BLOCK_GATE] =
        (mxd_decl){"mlp.switch_mlp.gate_proj", MXD_W_LINEAR,       F, D, .experts = E,
                   .cut = MXD_CUT_EXPERTS,     .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_UP] = (mxd_decl){"mlp.switch_mlp.up_proj", MXD_W_LINEAR,       F, D, .experts = E,
                                   .cut = MXD_CUT_EXPERTS,   .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_DOWN] =
        (mxd_decl){"mlp.switch_mlp.down_proj", MXD_W_LINEAR,       D, F, .experts = E,
                   .cut = MXD_CUT_EXPERTS,     .by = MXD_BY_EXPERT};
    out[ROUTER] = (mxd_decl){"mlp.gate", MXD_W_LINEAR | MXD_W_EXACT, E, D};
    return N_SPARSE;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    mxd_blocks_registers(hp, r);
    r->n = N_REGS;
    r->width[LOGITS] = hp->moe.n_experts;
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
                         .norm_weights = m->hp.moe.norm_topk,
                         .act = MXD_SILU};
    op->norm(b, MXD_REG_H, MXD_REG_X, w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    op->linear(b, 1, (const int[]){LOGITS}, MXD_REG_H, (const mxd_weight *const[]){w[ROUTER]});
    op->moe(b, MXD_REG_H, MXD_REG_H, LOGITS, &how); /* [T, D] */
    op->add(b, MXD_REG_X, MXD_REG_H);               /* x += experts */
}

static void layer(const mxd_model *m, int i) {
    mxd_weight *const *w = m->layers[i].w;
    const mxd_blocks_how how = {.q_norm = w[Q_NORM], .k_norm = w[K_NORM]};
    mxd_blocks_attention(m, i, &how);
    if (m->hp.moe.sparse[m->layer0 + i])
        experts(m, i);
    else
        mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_qwen3_moe = {
    .model_type = "qwen3_moe",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};
