/* ministral3.c - Ministral 3: the common layer, with YaRN and with queries that grow with the
 * position (the temperature of Llama 4's long context). Source: mlx-lm's model of the name. */
#include "model/blocks.h"

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 32768, err));
    MXD_TRY(mxd_blocks_windows(hp, c, err));
    MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, 10000, err));
    const json_t *r = mxd_config_get(c, "rope_parameters");
    double beta;
    MXD_TRY(mxd_config_real(r, "llama_4_scaling_beta", 0, 100, 0, &beta, err));
    hp->position_beta = (float)beta;
    if (!hp->position_beta) return MXD_OK;
    return mxd_config_int(r, "original_max_position_embeddings", 1, MXD_MAX_CONTEXT, -1,
                          &hp->position_length, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    return mxd_blocks_declare(hp, out);
}

static void layer(const mxd_model *m, int i) {
    const mxd_blocks_how how = {.position_beta = m->hp.position_beta,
                                .position_length = m->hp.position_length};
    mxd_blocks_attention(m, i, &how);
    mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_ministral3 = {
    .model_type = "ministral3",
    .configure = configure,
    .declare = declare,
    .registers = mxd_blocks_registers,
    .layer = layer,
};
