/* glm4_moe.c - GLM 4.5 to 4.7: the common attention with RoPE on a part of each head, perhaps norms
 * of queries and keys, and DeepSeek's experts. Source: GLM-4.5 (arXiv 2508.06471), section 2.1, and
 * mlx-lm's model of the name, which ignores "rope_scaling". */
#include "model/experts.h"

enum { Q_NORM = MXD_BLOCK_N, K_NORM, N_WEIGHTS };

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 131072, err));
    MXD_TRY(mxd_blocks_partial_rope(hp, c, err));
    MXD_TRY(mxd_rope_read_plain(&hp->rope, c, 10000, err));
    MXD_TRY(mxd_config_bool(c, "attention_bias", false, &hp->attention_bias, err));
    MXD_TRY(mxd_config_bool(c, "use_qk_norm", false, &hp->qk_norm, err));
    return mxd_experts_configure(hp, c, err);
}

static int own_weights(const mxd_hparams *hp) { return hp->qk_norm ? N_WEIGHTS : MXD_BLOCK_N; }

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    mxd_blocks_declare(hp, out);
    for (int i = MXD_BLOCK_Q; i <= MXD_BLOCK_V; i++) out[i].bias = hp->attention_bias;
    if (hp->qk_norm) {
        out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, hp->head_dim};
        out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, hp->head_dim};
    }
    int n = own_weights(hp);
    return hp->moe.sparse[layer] ? mxd_experts_declare(hp, out, n) : n;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    mxd_blocks_registers(hp, r);
    mxd_experts_registers(hp, r);
}

static void layer(const mxd_model *m, int i) {
    mxd_weight *const *w = m->layers[i].w;
    const mxd_blocks_how how = {.q_norm = m->hp.qk_norm ? w[Q_NORM] : NULL,
                                .k_norm = m->hp.qk_norm ? w[K_NORM] : NULL};
    mxd_blocks_attention(m, i, &how);
    if (m->hp.moe.sparse[m->layer0 + i])
        mxd_experts_layer(m, i, own_weights(&m->hp), MXD_BLOCK_REGS);
    else
        mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_glm4_moe = {
    .model_type = "glm4_moe",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
    .head_by_tensor = true,
};
