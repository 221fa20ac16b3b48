/* experts.c - sigmoid router with a correction, experts, a shared expert.
 *
 * Shapes: T rows of the micro-batch, D hidden, E experts, F inside an expert, S inside the shared
 * one. Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2, and mlx-lm's models of the family. */
#include "model/experts.h"

#include <string.h>

enum { LOGITS, GATE, UP }; /* registers */

/* "topk_method" and "scoring_func" say which router it is, where they are there. */
static mxd_rc check_kind(const json_t *c, const char *key, const char *want, mxd_err *err) {
    const json_t *v = mxd_config_get(c, key);
    const char *is = json_is_string(v) ? json_string_value(v) : "(not a string)";
    if (!v || strcmp(is, want) == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED, "config.json: '%s' is '%s'; supported: %s", key, is,
                    want);
}

static mxd_rc read_groups(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    int E = hp->moe.n_experts;
    MXD_TRY(mxd_config_int(c, "n_group", 1, E, 1, &hp->moe.n_group, err));
    MXD_TRY(mxd_config_int(c, "topk_group", 1, hp->moe.n_group, 1, &hp->moe.topk_group, err));
    if (hp->moe.n_group == 1 || (E % hp->moe.n_group == 0 && E >= 2 * hp->moe.n_group))
        return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT, "config.json: %d experts in %d groups ('n_group') cannot be",
                    E, hp->moe.n_group);
}

/* Which layers are sparse. */
static mxd_rc read_layers(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    int first, step;
    MXD_TRY(mxd_config_int(c, "first_k_dense_replace", 0, MXD_MAX_LAYERS, 0, &first, err));
    MXD_TRY(mxd_config_int(c, "moe_layer_freq", 1, MXD_MAX_LAYERS, 1, &step, err));
    for (int i = 0; i < hp->n_layers; i++) hp->moe.sparse[i] = i >= first && i % step == 0;
    return MXD_OK;
}

mxd_rc mxd_experts_configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_moe *moe = &hp->moe;
    int n_shared;
    double scale;
    if (!mxd_config_get(c, "n_routed_experts")) return MXD_OK;
    MXD_TRY(check_kind(c, "topk_method", "noaux_tc", err));
    MXD_TRY(check_kind(c, "scoring_func", "sigmoid", err));
    MXD_TRY(mxd_config_int(c, "n_routed_experts", 1, MXD_MAX_EXPERTS, -1, &moe->n_experts, err));
    int most = moe->n_experts < MXD_MAX_TOP_K ? moe->n_experts : MXD_MAX_TOP_K;
    MXD_TRY(mxd_config_int(c, "num_experts_per_tok", 1, most, -1, &moe->top_k, err));
    MXD_TRY(
        mxd_config_int(c, "moe_intermediate_size", 1, 8 * MXD_MAX_HIDDEN, -1, &moe->inner, err));
    MXD_TRY(mxd_config_int(c, "n_shared_experts", 0, 64, 0, &n_shared, err));
    MXD_TRY(mxd_config_bool(c, "norm_topk_prob", true, &moe->norm_topk, err));
    MXD_TRY(mxd_config_real(c, "routed_scaling_factor", 1e-6, 1e6, 1, &scale, err));
    moe->shared_inner = n_shared * moe->inner; /* one expert, as wide as all of them */
    moe->weight_scale = (float)scale;
    if (moe->top_k == 1) moe->norm_topk = false;
    MXD_TRY(read_groups(hp, c, err));
    return read_layers(hp, c, err);
}

int mxd_experts_declare(const mxd_hparams *hp, mxd_decl *out, int at) {
    int D = hp->hidden, E = hp->moe.n_experts, F = hp->moe.inner, S = hp->moe.shared_inner;
    out[MXD_BLOCK_GATE] =
        (mxd_decl){"mlp.switch_mlp.gate_proj", MXD_W_LINEAR,       F, D, .experts = E,
                   .cut = MXD_CUT_EXPERTS,     .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_UP] = (mxd_decl){"mlp.switch_mlp.up_proj", MXD_W_LINEAR,       F, D, .experts = E,
                                   .cut = MXD_CUT_EXPERTS,   .by = MXD_BY_EXPERT};
    out[MXD_BLOCK_DOWN] =
        (mxd_decl){"mlp.switch_mlp.down_proj", MXD_W_LINEAR,       D, F, .experts = E,
                   .cut = MXD_CUT_EXPERTS,     .by = MXD_BY_EXPERT};
    out += at;
    out[MXD_EXPERTS_ROUTER] = (mxd_decl){"mlp.gate", MXD_W_LINEAR | MXD_W_EXACT, E, D};
    out[MXD_EXPERTS_CORRECTION] =
        (mxd_decl){"mlp.gate.e_score_correction_bias", MXD_W_VECTOR, 1, E, .param = true};
    if (!S) return at + MXD_EXPERTS_SHARED_GATE;
    out[MXD_EXPERTS_SHARED_GATE] =
        (mxd_decl){"mlp.shared_experts.gate_proj", MXD_W_LINEAR, S, D, .cut = MXD_CUT_ROWS,
                   .by = MXD_BY_SHARED_INNER};
    out[MXD_EXPERTS_SHARED_UP] =
        (mxd_decl){"mlp.shared_experts.up_proj", MXD_W_LINEAR, S, D, .cut = MXD_CUT_ROWS,
                   .by = MXD_BY_SHARED_INNER};
    out[MXD_EXPERTS_SHARED_DOWN] =
        (mxd_decl){"mlp.shared_experts.down_proj", MXD_W_LINEAR, D, S, .cut = MXD_CUT_COLUMNS,
                   .by = MXD_BY_SHARED_INNER};
    return at + MXD_EXPERTS_SHARED_DOWN + 1;
}

void mxd_experts_registers(const mxd_hparams *hp, mxd_regs *r) {
    int *width = r->width + r->n;
    width[LOGITS] = hp->moe.n_experts ? hp->moe.n_experts : 1;
    width[GATE] = width[UP] = hp->moe.shared_inner ? hp->moe.shared_inner : 1;
    r->n += MXD_EXPERTS_REGS;
}

void mxd_experts_layer(const mxd_model *m, int layer, int at, int reg0) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[layer].w, *const *own = w + at;
    const mxd_hp_moe *hp = &m->hp.moe;
    int logits = reg0 + LOGITS, gate = reg0 + GATE, up = reg0 + UP;
    const mxd_moe how = {.gate = w[MXD_BLOCK_GATE],
                         .up = w[MXD_BLOCK_UP],
                         .down = w[MXD_BLOCK_DOWN],
                         .n_experts = hp->n_experts,
                         .top_k = hp->top_k,
                         .router = MXD_ROUTE_SIGMOID,
                         .correction = own[MXD_EXPERTS_CORRECTION],
                         .n_group = hp->n_group,
                         .topk_group = hp->topk_group,
                         .norm_weights = hp->norm_topk,
                         .norm_eps = hp->norm_eps,
                         .weight_scale = hp->weight_scale,
                         .act = MXD_SILU};
    op->norm(b, MXD_REG_H, MXD_REG_X, w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    int shared = m->local.moe.shared_inner; /* here */
    op->linear(b, shared ? 3 : 1, (const int[]){logits, gate, up}, MXD_REG_H,
               (const mxd_weight *const[]){own[MXD_EXPERTS_ROUTER], /* [T, E], 2 x [T, S] */
                                           own[MXD_EXPERTS_SHARED_GATE],
                                           own[MXD_EXPERTS_SHARED_UP]});
    op->moe(b, MXD_REG_H, MXD_REG_H, logits, &how); /* [T, D] */
    op->add(b, MXD_REG_X, MXD_REG_H);               /* x += experts */
    if (!hp->shared_inner) return;
    if (shared) op->gated(b, gate, gate, up, MXD_SILU);
    mxd_blocks_project(m, MXD_REG_H, gate, own[MXD_EXPERTS_SHARED_DOWN]);
    op->add(b, MXD_REG_X, MXD_REG_H); /* x += the shared expert */
}
