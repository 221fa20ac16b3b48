/* gpt_oss.c - gpt-oss: windows in every second layer, a sink in each head's softmax, experts with
 * biases and a clamped SwiGLU. Source: gpt-oss's model card (arXiv 2508.10925), section 2, and
 * mlx-lm's model of the name, which without "layer_types" drops the last of an odd number of
 * layers; here all of them run. */
#include "model/blocks.h"

enum { SINKS = MXD_BLOCK_N, ROUTER, N_WEIGHTS };
enum { LOGITS = MXD_BLOCK_REGS, N_REGS };

/* Without a list, windows in layers 0, 2, 4, ... */
static mxd_rc read_windows(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    if (mxd_config_get(c, "layer_types")) return mxd_blocks_windows(hp, c, err);
    for (int i = 0; i < hp->n_layers; i += 2) hp->sliding[i] = true;
    return mxd_config_int(c, "sliding_window", 1, MXD_MAX_CONTEXT, 128, &hp->window, err);
}

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_moe *moe = &hp->moe;
    MXD_TRY(mxd_blocks_configure(hp, c, 131072, err));
    if (!mxd_config_get(c, "rms_norm_eps")) hp->eps = 1e-5f;
    MXD_TRY(read_windows(hp, c, err));
    MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, 150000, err));
    MXD_TRY(mxd_config_int(c, "num_local_experts", 1, MXD_MAX_EXPERTS, -1, &moe->n_experts, err));
    int most = moe->n_experts < MXD_MAX_TOP_K ? moe->n_experts : MXD_MAX_TOP_K;
    MXD_TRY(mxd_config_int(c, "num_experts_per_tok", 1, most, -1, &moe->top_k, err));
    moe->inner = hp->intermediate;
    for (int i = 0; i < hp->n_layers; i++) moe->sparse[i] = true;
    return MXD_OK;
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    int D = hp->hidden, F = hp->moe.inner, E = hp->moe.n_experts;
    mxd_blocks_declare(hp, out);
    for (int i = MXD_BLOCK_Q; i <= MXD_BLOCK_O; i++) out[i].bias = true;
    out[MXD_BLOCK_GATE] =
        (mxd_decl){"mlp.experts.gate_proj", MXD_W_LINEAR,       F, D, .bias = true, .experts = E,
                   .cut = MXD_CUT_EXPERTS,  .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_UP] =
        (mxd_decl){"mlp.experts.up_proj",  MXD_W_LINEAR,       F, D, .bias = true, .experts = E,
                   .cut = MXD_CUT_EXPERTS, .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_DOWN] =
        (mxd_decl){"mlp.experts.down_proj", MXD_W_LINEAR,       D, F, .bias = true, .experts = E,
                   .cut = MXD_CUT_EXPERTS,  .by = MXD_BY_EXPERT};
    out[SINKS] = (mxd_decl){"self_attn.sinks", MXD_W_VECTOR,  1,
                            hp->n_heads,       .param = true, .cut = MXD_CUT_ROWS};
    out[ROUTER] = (mxd_decl){"mlp.router", MXD_W_LINEAR | MXD_W_EXACT, E, D, .bias = true};
    return N_WEIGHTS;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    mxd_blocks_registers(hp, r);
    r->n = N_REGS;
    r->width[LOGITS] = hp->moe.n_experts;
}

static void layer(const mxd_model *m, int i) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    const mxd_blocks_how attention = {.sinks = w[SINKS]};
    const mxd_moe how = {.gate = w[MXD_BLOCK_GATE],
                         .up = w[MXD_BLOCK_UP],
                         .down = w[MXD_BLOCK_DOWN],
                         .n_experts = m->hp.moe.n_experts,
                         .top_k = m->hp.moe.top_k,
                         .router = MXD_ROUTE_TOPK_SOFTMAX,
                         .act = MXD_SWIGLU_OAI};
    mxd_blocks_attention(m, i, &attention);
    op->norm(b, MXD_REG_H, MXD_REG_X, w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    op->linear(b, 1, (const int[]){LOGITS}, MXD_REG_H, (const mxd_weight *const[]){w[ROUTER]});
    op->moe(b, MXD_REG_H, MXD_REG_H, LOGITS, &how); /* [T, D] */
    op->add(b, MXD_REG_X, MXD_REG_H);               /* x += experts */
}

const mxd_family mxd_family_gpt_oss = {
    .model_type = "gpt_oss",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
    .head_by_tensor = true,
};
