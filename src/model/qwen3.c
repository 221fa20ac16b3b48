/* qwen3.c - Qwen3 (dense): the common layer with a norm on every query and key head.
 * Source: the Qwen3 technical report (arXiv 2505.09388), section 2, and mlx-lm's model of the name.
 */
#include "model/blocks.h"

enum { Q_NORM = MXD_BLOCK_N, K_NORM, N_WEIGHTS };

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    return mxd_rope_read(&hp->rope, c, hp->context, 10000, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    mxd_blocks_declare(hp, out);
    out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, hp->head_dim};
    out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, hp->head_dim};
    return N_WEIGHTS;
}

static void layer(const mxd_model *m, int i) {
    mxd_weight *const *w = m->layers[i].w;
    const mxd_blocks_how how = {.q_norm = w[Q_NORM], .k_norm = w[K_NORM]};
    mxd_blocks_attention(m, i, &how);
    mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_qwen3 = {
    .model_type = "qwen3",
    .configure = configure,
    .declare = declare,
    .registers = mxd_blocks_registers,
    .layer = layer,
};
