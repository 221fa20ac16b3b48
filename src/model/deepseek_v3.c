/* deepseek_v3.c - DeepSeek V3, R1 and V3.1, Kimi K2: latent attention and experts in groups.
 * Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1, and mlx-lm's model of the name. */
#include "model/experts.h"
#include "model/mla.h"

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_mla_configure(hp, c, 2048, 10000, 1e-6f, err));
    return mxd_experts_configure(hp, c, err);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    int n = mxd_mla_declare(hp, out);
    return hp->moe.sparse[layer] ? mxd_experts_declare(hp, out, n) : n;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    mxd_mla_registers(hp, r);
    mxd_experts_registers(hp, r);
}

static void layer(const mxd_model *m, int i) {
    mxd_mla_attention(m, i);
    if (m->hp.moe.sparse[m->layer0 + i])
        mxd_experts_layer(m, i, m->hp.mla.q_rank ? MXD_MLA_MAX : MXD_MLA_Q_A, MXD_MLA_REGS);
    else
        mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_deepseek_v3 = {
    .model_type = "deepseek_v3",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
    .kv = mxd_mla_kv,
    .look = mxd_mla_look,
    .head_by_tensor = true,
};

/* GLM-4.7-Flash: the same, with other numbers where config.json has none. */
static mxd_rc configure_glm(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_mla_configure(hp, c, 202752, 1e6, 0, err));
    MXD_TRY(mxd_experts_configure(hp, c, err));
    hp->moe.norm_eps = 1e-20f;
    return MXD_OK;
}

const mxd_family mxd_family_glm4_moe_lite = {
    .model_type = "glm4_moe_lite",
    .configure = configure_glm,
    .declare = declare,
    .registers = registers,
    .layer = layer,
    .kv = mxd_mla_kv,
    .look = mxd_mla_look,
    .head_by_tensor = true,
};
