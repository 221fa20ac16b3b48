/* qwen3.c - Qwen3 (dense): grouped-query attention with a norm on every query and key head, SwiGLU.
 * Source: the Qwen3 technical report (arXiv 2505.09388), section 2, and mlx-lm's model of the name.
 *
 * Shapes: T rows of the micro-batch, D hidden, H query heads, G KV heads, d head_dim, F inner. */
#include "model/family.h"

enum {
    ATTN_NORM,
    Q_PROJ,
    K_PROJ,
    V_PROJ,
    O_PROJ,
    Q_NORM,
    K_NORM,
    MLP_NORM,
    GATE,
    UP,
    DOWN,
    N_WEIGHTS
};
enum { X = MXD_REG_X, NORMED = MXD_REG_H, Q = MXD_REG_FAMILY, K, V, ATTN, INNER, UPPED, N_REGS };

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_config_int(c, "hidden_size", 1, MXD_MAX_HIDDEN, -1, &hp->hidden, err));
    MXD_TRY(mxd_config_int(c, "num_hidden_layers", 1, MXD_MAX_LAYERS, -1, &hp->n_layers, err));
    MXD_TRY(
        mxd_config_int(c, "intermediate_size", 1, 8 * MXD_MAX_HIDDEN, -1, &hp->intermediate, err));
    MXD_TRY(mxd_config_int(c, "vocab_size", 2, MXD_MAX_VOCAB, -1, &hp->n_vocab, err));
    MXD_TRY(mxd_config_int(c, "num_attention_heads", 1, MXD_MAX_HEADS, -1, &hp->n_heads, err));
    MXD_TRY(
        mxd_config_int(c, "num_key_value_heads", 1, MXD_MAX_HEADS, hp->n_heads, &hp->n_kv, err));
    int quotient = hp->hidden / hp->n_heads;
    MXD_TRY(mxd_config_int(c, "head_dim", 2, MXD_MAX_HEAD_DIM, quotient, &hp->head_dim, err));
    MXD_TRY(
        mxd_config_int(c, "max_position_embeddings", 1, MXD_MAX_CONTEXT, 32768, &hp->context, err));
    double eps;
    MXD_TRY(mxd_config_real(c, "rms_norm_eps", 0, 1, 1e-6, &eps, err));
    hp->eps = (float)eps;
    if (hp->n_heads % hp->n_kv || hp->head_dim % 2)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: %d heads over %d KV heads of %d values cannot be",
                        hp->n_heads, hp->n_kv, hp->head_dim);
    return mxd_config_rope(hp, c, err);
}

static int declare(const mxd_hparams *hp, mxd_decl *out) {
    int D = hp->hidden, F = hp->intermediate, d = hp->head_dim;
    int q = hp->n_heads * d, kv = hp->n_kv * d;
    out[ATTN_NORM] = (mxd_decl){"input_layernorm", MXD_W_VECTOR, 1, D};
    out[Q_PROJ] = (mxd_decl){"self_attn.q_proj", MXD_W_LINEAR, q, D};
    out[K_PROJ] = (mxd_decl){"self_attn.k_proj", MXD_W_LINEAR, kv, D};
    out[V_PROJ] = (mxd_decl){"self_attn.v_proj", MXD_W_LINEAR, kv, D};
    out[O_PROJ] = (mxd_decl){"self_attn.o_proj", MXD_W_LINEAR, D, q, .unit = q / hp->n_kv};
    out[Q_NORM] = (mxd_decl){"self_attn.q_norm", MXD_W_VECTOR, 1, d};
    out[K_NORM] = (mxd_decl){"self_attn.k_norm", MXD_W_VECTOR, 1, d};
    out[MLP_NORM] = (mxd_decl){"post_attention_layernorm", MXD_W_VECTOR, 1, D};
    out[GATE] = (mxd_decl){"mlp.gate_proj", MXD_W_LINEAR, F, D};
    out[UP] = (mxd_decl){"mlp.up_proj", MXD_W_LINEAR, F, D};
    out[DOWN] = (mxd_decl){"mlp.down_proj", MXD_W_LINEAR, D, F};
    return N_WEIGHTS;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    r->n = N_REGS;
    r->width[Q] = r->width[ATTN] = hp->n_heads * hp->head_dim;
    r->width[K] = r->width[V] = hp->n_kv * hp->head_dim;
    r->width[INNER] = r->width[UPPED] = hp->intermediate;
}

static void attention(const mxd_model *m, int layer, mxd_weight *const *w) {
    const mxd_hparams *hp = &m->hp;
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    const mxd_attention how = {
        .n_heads = hp->n_heads, .n_kv = hp->n_kv, .head_dim = hp->head_dim, .scale = m->attn_scale};
    op->norm(b, NORMED, X, w[ATTN_NORM], hp->eps);   /* [T, D] */
    op->linear(b, 3, (const int[]){Q, K, V}, NORMED, /* [T, H d], 2 x [T, G d] */
               (const mxd_weight *const[]){w[Q_PROJ], w[K_PROJ], w[V_PROJ]});
    op->norm(b, Q, Q, w[Q_NORM], hp->eps); /* per head of d */
    op->norm(b, K, K, w[K_NORM], hp->eps);
    op->rope(b, Q, hp->n_heads, hp->head_dim, &m->rope);
    op->rope(b, K, hp->n_kv, hp->head_dim, &m->rope);
    op->kv_append(b, layer, K, V);
    op->attend(b, layer, ATTN, Q, &how); /* [T, H d] */
    op->linear(b, 1, (const int[]){NORMED}, ATTN, (const mxd_weight *const[]){w[O_PROJ]});
    op->add(b, X, NORMED); /* x += attention */
}

static void mlp(const mxd_model *m, mxd_weight *const *w) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    op->norm(b, NORMED, X, w[MLP_NORM], m->hp.eps);
    op->linear(b, 2, (const int[]){INNER, UPPED}, NORMED, /* 2 x [T, F] */
               (const mxd_weight *const[]){w[GATE], w[UP]});
    op->gated(b, INNER, INNER, UPPED, MXD_SILU);
    op->linear(b, 1, (const int[]){NORMED}, INNER, (const mxd_weight *const[]){w[DOWN]});
    op->add(b, X, NORMED); /* x += mlp */
}

static void layer(const mxd_model *m, int i) {
    mxd_weight *const *w = m->layers[i].w;
    attention(m, i, w);
    mlp(m, w);
}

const mxd_family mxd_family_qwen3 = {
    .model_type = "qwen3",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
};
