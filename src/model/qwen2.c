/* qwen2.c - Qwen2 and 2.5: the common layer with biases on q, k and v.
 * Source: the Qwen2 technical report (arXiv 2407.10671), section 2, and mlx-lm's model of the name.
 */
#include "model/blocks.h"

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    MXD_TRY(mxd_config_bool(c, "rope_traditional", false, &hp->rope.interleaved, err));
    return mxd_rope_read(&hp->rope, c, hp->context, 1e6, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    int n = mxd_blocks_declare(hp, out);
    for (int i = MXD_BLOCK_Q; i <= MXD_BLOCK_V; i++) out[i].bias = true;
    return n;
}

static void layer(const mxd_model *m, int i) {
    mxd_blocks_attention(m, i, NULL);
    mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_qwen2 = {
    .model_type = "qwen2",
    .configure = configure,
    .declare = declare,
    .registers = mxd_blocks_registers,
    .layer = layer,
};
