/* blocks.c - the layer of Llama-like decoders.
 *
 * Shapes: T rows of the micro-batch, D hidden, H query heads, G KV heads, d head_dim, F inner. */
#include "model/blocks.h"

#include <string.h>

enum { X = MXD_REG_X, NORMED = MXD_REG_H, Q = MXD_REG_FAMILY, K, V, ATTN, INNER, UPPED, N_REGS };
_Static_assert((int)N_REGS == (int)MXD_BLOCK_REGS, "families count on from here");

mxd_rc mxd_blocks_sizes(mxd_hparams *hp, const json_t *c, int context, mxd_err *err) {
    MXD_TRY(mxd_config_int(c, "hidden_size", 1, MXD_MAX_HIDDEN, -1, &hp->hidden, err));
    MXD_TRY(mxd_config_int(c, "num_hidden_layers", 1, MXD_MAX_LAYERS, -1, &hp->n_layers, err));
    const char *wide = "intermediate_size"; /* which a model of experts alone need not have */
    if (!mxd_config_get(c, wide) && mxd_config_get(c, "moe_intermediate_size"))
        wide = "moe_intermediate_size";
    MXD_TRY(mxd_config_int(c, wide, 1, 8 * MXD_MAX_HIDDEN, -1, &hp->intermediate, err));
    MXD_TRY(mxd_config_int(c, "vocab_size", 2, MXD_MAX_VOCAB, -1, &hp->n_vocab, err));
    MXD_TRY(mxd_config_int(c, "num_attention_heads", 1, MXD_MAX_HEADS, -1, &hp->n_heads, err));
    MXD_TRY(mxd_config_int(c, "max_position_embeddings", 1, MXD_MAX_CONTEXT, context, &hp->context,
                           err));
    double eps;
    MXD_TRY(mxd_config_real(c, "rms_norm_eps", 0, 1, 1e-6, &eps, err));
    hp->eps = (float)eps;
    return MXD_OK;
}

mxd_rc mxd_blocks_configure(mxd_hparams *hp, const json_t *c, int context, mxd_err *err) {
    MXD_TRY(mxd_blocks_sizes(hp, c, context, err));
    MXD_TRY(
        mxd_config_int(c, "num_key_value_heads", 1, MXD_MAX_HEADS, hp->n_heads, &hp->n_kv, err));
    int quotient = hp->hidden / hp->n_heads;
    MXD_TRY(mxd_config_int(c, "head_dim", 2, MXD_MAX_HEAD_DIM, quotient, &hp->head_dim, err));
    if (hp->n_heads % hp->n_kv || hp->head_dim % 2 || hp->head_dim > MXD_MAX_HEAD_DIM)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: %d heads over %d KV heads of %d values cannot be",
                        hp->n_heads, hp->n_kv, hp->head_dim);
    hp->rope.dims = hp->head_dim;
    return MXD_OK;
}

mxd_rc mxd_blocks_partial_rope(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    const char *key = "partial_rotary_factor";
    const json_t *inner = mxd_config_get(c, "rope_parameters"); /* newer files */
    double part;
    MXD_TRY(mxd_config_real(mxd_config_get(c, key) ? c : inner, key, 0, 1, 1, &part, err));
    hp->rope.dims = (int)(hp->head_dim * part);
    if (hp->rope.dims >= 2 && hp->rope.dims % 2 == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT,
                    "config.json: 'partial_rotary_factor' rotates %d of %d values, must be even",
                    hp->rope.dims, hp->head_dim);
}

static mxd_rc read_type(const json_t *v, int layer, bool *sliding, mxd_err *err) {
    const char *type = json_is_string(v) ? json_string_value(v) : "(not a string)";
    *sliding = strcmp(type, "sliding_attention") == 0;
    if (*sliding || strcmp(type, "full_attention") == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "config.json: 'layer_types' of layer %d is '%s'; supported: full_attention, "
                    "sliding_attention",
                    layer, type);
}

mxd_rc mxd_blocks_windows(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    const json_t *types = mxd_config_get(c, "layer_types");
    if (!types) return MXD_OK; /* a window alone is not used */
    if (!json_is_array(types) || json_array_size(types) != (size_t)hp->n_layers)
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'layer_types' must be a list of %d names",
                        hp->n_layers);
    bool any = false;
    for (int i = 0; i < hp->n_layers; i++) {
        MXD_TRY(read_type(json_array_get(types, (size_t)i), i, &hp->sliding[i], err));
        any = any || hp->sliding[i];
    }
    if (!any) return MXD_OK;
    return mxd_config_int(c, "sliding_window", 1, MXD_MAX_CONTEXT, -1, &hp->window, err);
}

mxd_rc mxd_blocks_pattern(mxd_hparams *hp, const json_t *c, int pattern, mxd_err *err) {
    if (mxd_config_get(c, "layer_types")) return mxd_blocks_windows(hp, c, err);
    MXD_TRY(mxd_config_int(c, "sliding_window_pattern", 1, MXD_MAX_LAYERS, pattern, &pattern, err));
    for (int i = 0; i < hp->n_layers; i++) hp->sliding[i] = (i + 1) % pattern != 0;
    return mxd_config_int(c, "sliding_window", 1, MXD_MAX_CONTEXT, -1, &hp->window, err);
}

/* Layers named in "mlp_only_layers" are dense; numbers of layers that do not exist are harmless. */
static mxd_rc read_dense(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    const json_t *list = mxd_config_get(c, "mlp_only_layers");
    if (!list) return MXD_OK;
    if (!json_is_array(list))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'mlp_only_layers' must be a list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_integer(v))
            return mxd_fail(err, MXD_E_FORMAT,
                            "config.json: 'mlp_only_layers' must hold numbers of layers");
        json_int_t n = json_integer_value(v);
        if (n >= 0 && n < hp->n_layers) hp->moe.sparse[n] = false;
    }
    return MXD_OK;
}

mxd_rc mxd_blocks_sparse(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    int step;
    MXD_TRY(mxd_config_int(c, "decoder_sparse_step", 1, MXD_MAX_LAYERS, 1, &step, err));
    for (int i = 0; i < hp->n_layers; i++) hp->moe.sparse[i] = (i + 1) % step == 0;
    return read_dense(hp, c, err);
}

int mxd_blocks_declare(const mxd_hparams *hp, mxd_decl *out) {
    int D = hp->hidden, F = hp->intermediate, d = hp->head_dim;
    int q = hp->n_heads * d, kv = hp->n_kv * d;
    out[MXD_BLOCK_ATTN_NORM] = (mxd_decl){"input_layernorm", MXD_W_VECTOR, 1, D};
    out[MXD_BLOCK_Q] = (mxd_decl){"self_attn.q_proj", MXD_W_LINEAR, q, D, .cut = MXD_CUT_ROWS};
    out[MXD_BLOCK_K] = (mxd_decl){"self_attn.k_proj", MXD_W_LINEAR, kv, D, .cut = MXD_CUT_ROWS};
    out[MXD_BLOCK_V] = (mxd_decl){"self_attn.v_proj", MXD_W_LINEAR, kv, D, .cut = MXD_CUT_ROWS};
    out[MXD_BLOCK_O] = (mxd_decl){"self_attn.o_proj",   MXD_W_LINEAR,          D, q,
                                  .unit = q / hp->n_kv, .cut = MXD_CUT_COLUMNS};
    out[MXD_BLOCK_MLP_NORM] = (mxd_decl){"post_attention_layernorm", MXD_W_VECTOR, 1, D};
    out[MXD_BLOCK_GATE] =
        (mxd_decl){"mlp.gate_proj", MXD_W_LINEAR, F, D, .cut = MXD_CUT_ROWS, .by = MXD_BY_INNER};
    out[MXD_BLOCK_UP] =
        (mxd_decl){"mlp.up_proj", MXD_W_LINEAR, F, D, .cut = MXD_CUT_ROWS, .by = MXD_BY_INNER};
    out[MXD_BLOCK_DOWN] =
        (mxd_decl){"mlp.down_proj", MXD_W_LINEAR, D, F, .cut = MXD_CUT_COLUMNS, .by = MXD_BY_INNER};
    return MXD_BLOCK_N;
}

void mxd_blocks_registers(const mxd_hparams *hp, mxd_regs *r) {
    r->n = N_REGS;
    r->width[Q] = r->width[ATTN] = hp->n_heads * hp->head_dim;
    r->width[K] = r->width[V] = hp->n_kv * hp->head_dim;
    r->width[INNER] = r->width[UPPED] = hp->intermediate;
}

void mxd_blocks_project(const mxd_model *m, int dst, int src, const mxd_weight *w) {
    const mxd_backend_ops *op = m->backend->ops;
    if (m->group)
        op->linear_cut(m->backend, dst, src, w);
    else
        op->linear(m->backend, 1, &dst, src, &w);
}

/* dst [T, n d] = the norm over the heads of all ranks, of which it has its own. */
static void project_normed(const mxd_model *m, int dst, int whole, const mxd_weight *w,
                           const mxd_weight *norm, int first) {
    const mxd_backend_ops *op = m->backend->ops;
    bool part = m->local.n_kv != m->hp.n_kv;
    int to = part ? whole : dst;
    mxd_blocks_project(m, to, NORMED, w);
    op->norm(m->backend, to, to, norm, m->hp.eps);
    if (part && m->local.n_kv) op->columns(m->backend, dst, whole, first * m->hp.head_dim);
}

/* Q and K from NORMED where norms are over all heads at once. */
static void project_whole(const mxd_model *m, mxd_weight *const *w, const mxd_blocks_how *how) {
    int kv = m->group ? m->shares.kv[m->group->rank] : 0, per_kv = m->hp.n_heads / m->hp.n_kv;
    project_normed(m, Q, how->whole_q, w[MXD_BLOCK_Q], how->q_norm, kv * per_kv);
    project_normed(m, K, how->whole_k, w[MXD_BLOCK_K], how->k_norm, kv);
}

/* Q, K and V from NORMED. */
static void project_heads(const mxd_model *m, mxd_weight *const *w, const mxd_blocks_how *how) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    if (how && how->whole_q) { /* those two are there */
        op->linear(b, 1, (const int[]){V}, NORMED, (const mxd_weight *const[]){w[MXD_BLOCK_V]});
        return;
    }
    op->linear(b, 3, (const int[]){Q, K, V}, NORMED, /* [T, H d], 2 x [T, G d] */
               (const mxd_weight *const[]){w[MXD_BLOCK_Q], w[MXD_BLOCK_K], w[MXD_BLOCK_V]});
    if (how && how->q_norm) op->norm(b, Q, Q, how->q_norm, m->hp.eps);
    if (how && how->k_norm) op->norm(b, K, K, how->k_norm, m->hp.eps);
}

/* ATTN [T, H d] from NORMED: the heads of this rank. */
static void attend_heads(const mxd_model *m, int layer, const mxd_blocks_how *how) {
    const mxd_hparams *hp = &m->local;
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[layer].w;
    bool sliding = hp->sliding[m->layer0 + layer];
    const mxd_rope *rope = sliding ? &m->rope_local : &m->rope;
    const mxd_attention a = {.n_heads = hp->n_heads,
                             .n_kv = hp->n_kv,
                             .head_dim = hp->head_dim,
                             .scale = m->attn_scale,
                             .window = sliding ? hp->window : 0,
                             .softcap = hp->attn_softcap,
                             .sinks = how ? how->sinks : NULL};
    project_heads(m, w, how);
    op->rope(b, Q, hp->n_heads, hp->head_dim, rope);
    op->rope(b, K, hp->n_kv, hp->head_dim, rope);
    if (how && how->position_length)
        op->scale_positions(b, Q, how->position_beta, how->position_length);
    op->kv_append(b, layer, K, V);
    op->attend(b, layer, ATTN, Q, &a); /* [T, H d] */
}

void mxd_blocks_attend(const mxd_model *m, int layer, const mxd_blocks_how *how) {
    if (how && how->whole_q) project_whole(m, m->layers[layer].w, how);
    if (m->local.n_kv) attend_heads(m, layer, how); /* else other ranks have them */
    mxd_blocks_project(m, NORMED, ATTN, m->layers[layer].w[MXD_BLOCK_O]);
}

void mxd_blocks_attention(const mxd_model *m, int layer, const mxd_blocks_how *how) {
    const mxd_backend_ops *op = m->backend->ops;
    op->norm(m->backend, NORMED, X, m->layers[layer].w[MXD_BLOCK_ATTN_NORM], m->hp.eps);
    mxd_blocks_attend(m, layer, how);
    op->add(m->backend, X, NORMED); /* x += attention */
}

void mxd_blocks_feed(const mxd_model *m, int layer, mxd_act_fn act) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[layer].w;
    if (m->local.intermediate) {                              /* else other ranks have all */
        op->linear(b, 2, (const int[]){INNER, UPPED}, NORMED, /* 2 x [T, F] */
                   (const mxd_weight *const[]){w[MXD_BLOCK_GATE], w[MXD_BLOCK_UP]});
        op->gated(b, INNER, INNER, UPPED, act);
    }
    mxd_blocks_project(m, NORMED, INNER, w[MXD_BLOCK_DOWN]);
}

void mxd_blocks_mlp(const mxd_model *m, int layer) {
    const mxd_backend_ops *op = m->backend->ops;
    op->norm(m->backend, NORMED, X, m->layers[layer].w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    mxd_blocks_feed(m, layer, MXD_SILU);
    op->add(m->backend, X, NORMED); /* x += mlp */
}
