/* minimax.c - MiniMax M2: the common attention with norms over all query and all key heads at once
 * and RoPE on a part of each; experts of a sigmoid router in every layer.
 * Source: mlx-lm's model of the name, which ignores "rope_scaling". */
#include "model/experts.h"

enum { Q_NORM = MXD_BLOCK_N, K_NORM, N_WEIGHTS };
enum { WHOLE_Q = MXD_BLOCK_REGS + MXD_EXPERTS_REGS, WHOLE_K, N_REGS }; /* of all ranks */

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_moe *moe = &hp->moe;
    MXD_TRY(mxd_blocks_configure(hp, c, 196608, err));
    MXD_TRY(mxd_config_int(c, "rotary_dim", 2, hp->head_dim, hp->head_dim, &hp->rope.dims, err));
    if (hp->rope.dims % 2)
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'rotary_dim' is %d, must be even",
                        hp->rope.dims);
    MXD_TRY(mxd_rope_read_plain(&hp->rope, c, 10000, err));
    MXD_TRY(mxd_config_bool(c, "use_qk_norm", true, &hp->qk_norm, err));
    if (hp->qk_norm) hp->norm_heads = hp->n_heads;
    if (hp->qk_norm) hp->norm_kv = hp->n_kv;
    MXD_TRY(mxd_config_int(c, "num_local_experts", 1, MXD_MAX_EXPERTS, -1, &moe->n_experts, err));
    int most = moe->n_experts < MXD_MAX_TOP_K ? moe->n_experts : MXD_MAX_TOP_K;
    MXD_TRY(mxd_config_int(c, "num_experts_per_tok", 1, most, -1, &moe->top_k, err));
    moe->inner = hp->intermediate;
    moe->norm_topk = true;
    moe->norm_eps = 1e-20f;
    for (int i = 0; i < hp->n_layers; i++) moe->sparse[i] = true;
    return MXD_OK;
}

static int own_weights(const mxd_hparams *hp) { return hp->qk_norm ? N_WEIGHTS : MXD_BLOCK_N; }

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    mxd_blocks_declare(hp, out);
    if (hp->qk_norm) { /* over all heads: every rank needs all of Q and K for a moment */
        out[MXD_BLOCK_Q].cut = out[MXD_BLOCK_K].cut = MXD_CUT_GATHERED;
        out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, hp->n_heads * hp->head_dim};
        out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, hp->n_kv * hp->head_dim};
    }
    int at = own_weights(hp), n = mxd_experts_declare(hp, out, at);
    out[MXD_BLOCK_GATE].path = "block_sparse_moe.switch_mlp.gate_proj";
    out[MXD_BLOCK_UP].path = "block_sparse_moe.switch_mlp.up_proj";
    out[MXD_BLOCK_DOWN].path = "block_sparse_moe.switch_mlp.down_proj";
    out[at + MXD_EXPERTS_ROUTER].path = "block_sparse_moe.gate";
    out[at + MXD_EXPERTS_CORRECTION].path = "block_sparse_moe.e_score_correction_bias";
    return n;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    mxd_blocks_registers(hp, r);
    mxd_experts_registers(hp, r);
    bool part = hp->norm_kv && hp->norm_kv != hp->n_kv;
    r->n = N_REGS;
    r->width[WHOLE_Q] = part ? hp->norm_heads * hp->head_dim : 1;
    r->width[WHOLE_K] = part ? hp->norm_kv * hp->head_dim : 1;
}

static void layer(const mxd_model *m, int i) {
    mxd_weight *const *w = m->layers[i].w;
    const mxd_blocks_how how = {
        .q_norm = w[Q_NORM], .k_norm = w[K_NORM], .whole_q = WHOLE_Q, .whole_k = WHOLE_K};
    mxd_blocks_attention(m, i, m->hp.qk_norm ? &how : NULL);
    mxd_experts_layer(m, i, own_weights(&m->hp), MXD_BLOCK_REGS);
}

const mxd_family mxd_family_minimax = {
    .model_type = "minimax",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};
