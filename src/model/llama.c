/* llama.c - Llama 2 and 3, Mistral, and what follows them: the common layer, with optional biases
 * and windows by layer. Source: mlx-lm's model of the name. */
#include "model/blocks.h"

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    MXD_TRY(mxd_config_bool(c, "attention_bias", false, &hp->attention_bias, err));
    MXD_TRY(mxd_config_bool(c, "mlp_bias", false, &hp->mlp_bias, err));
    MXD_TRY(mxd_blocks_windows(hp, c, err));
    MXD_TRY(mxd_config_bool(c, "rope_traditional", false, &hp->rope.interleaved, err));
    return mxd_rope_read(&hp->rope, c, hp->context, 10000, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    int n = mxd_blocks_declare(hp, out);
    for (int i = MXD_BLOCK_Q; i <= MXD_BLOCK_O; i++) out[i].bias = hp->attention_bias;
    for (int i = MXD_BLOCK_GATE; i <= MXD_BLOCK_DOWN; i++) out[i].bias = hp->mlp_bias;
    return n;
}

static void layer(const mxd_model *m, int i) {
    mxd_blocks_attention(m, i, NULL);
    mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_llama = {
    .model_type = "llama",
    .configure = configure,
    .declare = declare,
    .registers = mxd_blocks_registers,
    .layer = layer,
};
