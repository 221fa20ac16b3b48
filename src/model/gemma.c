/* gemma.c - Gemma 2 and 3: norms of 1 + w before and behind each half of a layer, scaled
 * embeddings, GELU. Gemma 2 caps scores and logits; Gemma 3 norms query and key heads instead, and
 * most of its layers see a window only, with a RoPE base of their own. Sources: the Gemma 2 (arXiv
 * 2408.00118) and Gemma 3 (arXiv 2503.19786) reports, and mlx-lm's models of these names: like it,
 * Gemma 2 is run without windows. */
#include <math.h>

#include "kernels/math.h"
#include "model/blocks.h"

enum { POST_ATTN = MXD_BLOCK_N, POST_MLP, N_GEMMA2, Q_NORM = N_GEMMA2, K_NORM, N_GEMMA3 };

/* ------------------------------------------------------------------------------- config.json */

static mxd_rc configure(mxd_hparams *hp, const json_t *c, double scalar, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 8192, err));
    MXD_TRY(mxd_config_real(c, "query_pre_attn_scalar", 1e-3, 1e6, scalar, &scalar, err));
    hp->attn_scale = (float)(1 / sqrt(scalar));
    hp->norm_add = 1;
    return MXD_OK;
}

static mxd_rc configure_2(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    double scores, logits;
    MXD_TRY(configure(hp, c, 144, err));
    MXD_TRY(mxd_config_real(c, "attn_logit_softcapping", 1e-3, 1e6, 50, &scores, err));
    MXD_TRY(mxd_config_real(c, "final_logit_softcapping", 1e-3, 1e6, 30, &logits, err));
    hp->attn_softcap = (float)scores;
    hp->logit_softcap = (float)logits;
    hp->embed_scale = sqrtf((float)hp->hidden);
    MXD_TRY(mxd_config_bool(c, "rope_traditional", false, &hp->rope.interleaved, err));
    return mxd_rope_read(&hp->rope, c, hp->context, 10000, err);
}

/* To nearest even; x is finite. */
static float bfloat16(float x) {
    uint32_t u = mxd_float_bits(x);
    return mxd_bits_float((u + 0x7fff + (u >> 16 & 1)) & 0xffff0000);
}

/* Full layers: "rope_theta" with its scaling; sliding ones: "rope_local_base_freq". Newer files
 * keep both in "rope_parameters". */
static mxd_rc read_rope(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    bool there;
    hp->rope_local.dims = hp->head_dim;
    MXD_TRY(mxd_rope_read_type(&hp->rope, c, "full_attention", hp->context, 1000000, &there, err));
    if (!there) MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, 1000000, err));
    MXD_TRY(mxd_rope_read_type(&hp->rope_local, c, "sliding_attention", hp->context, 10000, &there,
                               err));
    if (there) return MXD_OK;
    return mxd_config_real(c, "rope_local_base_freq", 1, 1e12, 10000, &hp->rope_local.theta, err);
}

static mxd_rc configure_3(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(configure(hp, c, 256, err));
    MXD_TRY(mxd_blocks_pattern(hp, c, 6, err));
    hp->embed_scale = bfloat16(sqrtf((float)hp->hidden)); /* as it was trained */
    return read_rope(hp, c, err);
}

/* -------------------------------------------------------------------------------- the layer */

static int declare_2(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    int D = hp->hidden;
    mxd_blocks_declare(hp, out);
    out[MXD_BLOCK_MLP_NORM].path = "pre_feedforward_layernorm";
    out[POST_ATTN] = (mxd_decl){"post_attention_layernorm", MXD_W_VECTOR, 1, D, .add = 1};
    out[POST_MLP] = (mxd_decl){"post_feedforward_layernorm", MXD_W_VECTOR, 1, D, .add = 1};
    out[MXD_BLOCK_ATTN_NORM].add = out[MXD_BLOCK_MLP_NORM].add = 1;
    return N_GEMMA2;
}

static int declare_3(const mxd_hparams *hp, int layer, mxd_decl *out) {
    declare_2(hp, layer, out);
    out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, hp->head_dim, .add = 1};
    out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, hp->head_dim, .add = 1};
    return N_GEMMA3;
}

static void layer(const mxd_model *m, int i) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    float eps = m->hp.eps;
    const mxd_blocks_how how = {.q_norm = w[Q_NORM], .k_norm = w[K_NORM]}; /* Gemma 2: none */
    op->norm(b, MXD_REG_H, MXD_REG_X, w[MXD_BLOCK_ATTN_NORM], eps);
    mxd_blocks_attend(m, i, &how);
    op->norm(b, MXD_REG_H, MXD_REG_H, w[POST_ATTN], eps);
    op->add(b, MXD_REG_X, MXD_REG_H); /* x += norm(attention(norm(x))) */
    op->norm(b, MXD_REG_H, MXD_REG_X, w[MXD_BLOCK_MLP_NORM], eps);
    mxd_blocks_feed(m, i, MXD_GELU_TANH);
    op->norm(b, MXD_REG_H, MXD_REG_H, w[POST_MLP], eps);
    op->add(b, MXD_REG_X, MXD_REG_H); /* x += norm(mlp(norm(x))) */
}

const mxd_family mxd_family_gemma2 = {
    .model_type = "gemma2",
    .configure = configure_2,
    .declare = declare_2,
    .registers = mxd_blocks_registers,
    .layer = layer,
    .head_by_tensor = true,
};

const mxd_family mxd_family_gemma3_text = {
    .model_type = "gemma3_text",
    .configure = configure_3,
    .declare = declare_3,
    .registers = mxd_blocks_registers,
    .layer = layer,
    .head_by_tensor = true,
    .defaults = "{\"hidden_size\": 1152, \"num_hidden_layers\": 26, \"intermediate_size\": 6912, "
                "\"num_attention_heads\": 4, \"num_key_value_heads\": 1, \"head_dim\": 256, "
                "\"vocab_size\": 262144, \"sliding_window\": 512, "
                "\"max_position_embeddings\": 32768}",
};
