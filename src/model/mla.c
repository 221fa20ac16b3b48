/* mla.c - multi-head latent attention.
 *
 * Shapes: T rows of the micro-batch, D hidden, H heads, R kv_rank, n and r the values of a head
 * without and with rotation, v of a value. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1, and
 * mlx-lm's models of the family. */
#include "model/mla.h"

#include <math.h>
#include <stdio.h>

#include "base/dmath.h"

enum { X = MXD_REG_X, NORMED = MXD_REG_H, Q = MXD_REG_FAMILY, KEY, OUT, LATENTS };
enum { C = MXD_BLOCK_REGS, TURNED, Q_STILL, Q_TURNED, QUERY, Q_LATENT, N_REGS };
_Static_assert((int)N_REGS == (int)MXD_MLA_REGS, "families count on from here");

/* (n + r)^-1/2, times m(mscale_all_dim)^2 of yarn. */
static float scale_of(const mxd_hparams *hp) {
    const mxd_rope_spec *s = &hp->rope;
    double scale = 1 / sqrt((double)(hp->mla.nope + hp->mla.rope)), m = 1;
    if (s->kind == MXD_ROPE_YARN && s->factor > 1)
        m = 0.1 * s->mscale_all_dim * mxd_log64(s->factor) + 1;
    return (float)(scale * m * m);
}

static mxd_rc check_widths(const mxd_hparams *hp, mxd_err *err) {
    const mxd_hp_mla *a = &hp->mla;
    if (a->rope % 2)
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'qk_rope_head_dim' is %d, must be even",
                        a->rope);
    if (a->nope % 16 || a->kv_rank % 16 || a->kv_rank + a->rope > MXD_MAX_HEAD_DIM)
        return mxd_fail(
            err, MXD_E_UNSUPPORTED,
            "config.json: 'qk_nope_head_dim' %d and 'kv_lora_rank' %d must be multiples "
            "of 16, and the latter with 'qk_rope_head_dim' %d at most %d",
            a->nope, a->kv_rank, a->rope, MXD_MAX_HEAD_DIM);
    return MXD_OK;
}

mxd_rc mxd_mla_configure(mxd_hparams *hp, const json_t *c, int context, double theta,
                         float norm_eps, mxd_err *err) {
    mxd_hp_mla *a = &hp->mla;
    const int most = MXD_MAX_HEAD_DIM;
    MXD_TRY(mxd_blocks_sizes(hp, c, context, err));
    MXD_TRY(mxd_config_int(c, "q_lora_rank", 0, MXD_MAX_HIDDEN, 0, &a->q_rank, err));
    MXD_TRY(mxd_config_int(c, "kv_lora_rank", 1, most, -1, &a->kv_rank, err));
    MXD_TRY(mxd_config_int(c, "qk_nope_head_dim", 1, most, -1, &a->nope, err));
    MXD_TRY(mxd_config_int(c, "qk_rope_head_dim", 2, most, -1, &a->rope, err));
    MXD_TRY(mxd_config_int(c, "v_head_dim", 1, most, -1, &a->v_dim, err));
    MXD_TRY(mxd_config_bool(c, "attention_bias", false, &hp->attention_bias, err));
    MXD_TRY(check_widths(hp, err));
    a->eps = norm_eps > 0 ? norm_eps : hp->eps;
    hp->n_kv = 1;
    hp->head_dim = a->kv_rank + a->rope;
    hp->rope.dims = a->rope;
    hp->rope.interleaved = true;
    MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, theta, err));
    hp->attn_scale = scale_of(hp);
    return MXD_OK;
}

mxd_rc mxd_mla_inspect(mxd_hparams *hp, const mxd_st *st, const char *prefix, mxd_err *err) {
    (void)err;
    char name[128];
    snprintf(name, sizeof name, "%smodel.layers.0.self_attn.kv_b_proj.weight", prefix);
    hp->mla.joined = mxd_st_find(st, name) != NULL;
    return MXD_OK;
}

/* kv_b_proj [H (n + v), R]: a head's rows are first W, then U. */
static void declare_joined(const mxd_hparams *hp, mxd_decl *out) {
    const mxd_hp_mla *a = &hp->mla;
    mxd_decl *w = &out[MXD_MLA_EMBED_Q], *u = &out[MXD_BLOCK_V];
    w->path = u->path = "self_attn.kv_b_proj";
    w->stacked = u->stacked = w->transposed = true;
    w->whole = u->whole = a->nope + a->v_dim;
    u->row0 = a->nope;
}

/* Of H heads that all read one latent a rank of a group has some, and all of the latent. Blocks of
 * the last projection are some whole heads, or parts of one. */
int mxd_mla_declare(const mxd_hparams *hp, mxd_decl *out) {
    const mxd_hp_mla *a = &hp->mla;
    int D = hp->hidden, H = hp->n_heads, R = a->kv_rank, q = H * (a->nope + a->rope);
    int unit = (H + 15) / 16 * a->v_dim;
    bool bias = hp->attention_bias;
    mxd_blocks_declare(hp, out);
    out[MXD_BLOCK_Q] = (mxd_decl){"self_attn.q_proj", MXD_W_LINEAR, q, D, .cut = MXD_CUT_ROWS};
    out[MXD_BLOCK_K] =
        (mxd_decl){"self_attn.kv_a_proj_with_mqa", MXD_W_LINEAR, R + a->rope, D, .bias = bias};
    out[MXD_BLOCK_V] =
        (mxd_decl){"self_attn.unembed_out", MXD_W_LINEAR,           a->v_dim, R, .experts = H,
                   .heads = true,           .cut = MXD_CUT_MATRICES};
    out[MXD_BLOCK_O] =
        (mxd_decl){"self_attn.o_proj", MXD_W_LINEAR,          D, H * a->v_dim, .unit = unit,
                   .bias = bias,       .cut = MXD_CUT_COLUMNS};
    out[MXD_MLA_EMBED_Q] =
        (mxd_decl){"self_attn.embed_q", MXD_W_LINEAR,           R, a->nope, .experts = H,
                   .heads = true,       .cut = MXD_CUT_MATRICES};
    out[MXD_MLA_KV_NORM] = (mxd_decl){"self_attn.kv_a_layernorm", MXD_W_VECTOR, 1, R};
    if (a->joined) declare_joined(hp, out);
    if (!a->q_rank) return MXD_MLA_Q_A;
    out[MXD_BLOCK_Q] =
        (mxd_decl){"self_attn.q_b_proj", MXD_W_LINEAR, q, a->q_rank, .cut = MXD_CUT_ROWS};
    out[MXD_MLA_Q_A] = (mxd_decl){"self_attn.q_a_proj", MXD_W_LINEAR, a->q_rank, D, .bias = bias};
    out[MXD_MLA_Q_NORM] = (mxd_decl){"self_attn.q_a_layernorm", MXD_W_VECTOR, 1, a->q_rank};
    return MXD_MLA_MAX;
}

void mxd_mla_registers(const mxd_hparams *hp, mxd_regs *r) {
    const mxd_hp_mla *a = &hp->mla;
    int H = hp->n_heads;
    mxd_blocks_registers(hp, r);
    r->n = N_REGS;
    r->width[Q] = H * (a->nope + a->rope);
    r->width[KEY] = a->kv_rank + a->rope;
    r->width[OUT] = H * a->v_dim;
    r->width[LATENTS] = H * a->kv_rank;
    r->width[C] = a->kv_rank;
    r->width[TURNED] = a->rope;
    r->width[Q_STILL] = H * a->nope;
    r->width[Q_TURNED] = H * a->rope;
    r->width[QUERY] = H * (a->kv_rank + a->rope);
    r->width[Q_LATENT] = a->q_rank ? a->q_rank : 1;
}

mxd_kv_spec mxd_mla_kv(const mxd_hparams *hp, int layer) {
    (void)layer;
    return (mxd_kv_spec){.n_kv = hp->n_kv, /* one; 0 where a rank has no heads */
                         .head_dim = hp->mla.kv_rank + hp->mla.rope,
                         .v_dim = hp->mla.kv_rank,
                         .latent = true};
}

/* Q [T, H (n + r)], and KEY [T, R + r] as it comes. */
static void project(const mxd_model *m, mxd_weight *const *w) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    if (!m->hp.mla.q_rank) {
        op->linear(b, 2, (const int[]){Q, KEY}, NORMED,
                   (const mxd_weight *const[]){w[MXD_BLOCK_Q], w[MXD_BLOCK_K]});
        return;
    }
    op->linear(b, 2, (const int[]){Q_LATENT, KEY}, NORMED,
               (const mxd_weight *const[]){w[MXD_MLA_Q_A], w[MXD_BLOCK_K]});
    op->norm(b, Q_LATENT, Q_LATENT, w[MXD_MLA_Q_NORM], m->hp.mla.eps);
    op->linear(b, 1, (const int[]){Q}, Q_LATENT, (const mxd_weight *const[]){w[MXD_BLOCK_Q]});
}

/* OUT [T, H v] from NORMED: the heads of this rank. */
static void attend_heads(const mxd_model *m, int layer) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[layer].w;
    const mxd_hp_mla *a = &m->hp.mla;
    int H = m->local.n_heads, R = a->kv_rank, r = a->rope;
    const mxd_attention how = {
        .n_heads = H, .n_kv = 1, .head_dim = R + r, .v_dim = R, .scale = m->attn_scale};
    project(m, w);
    op->split(b, C, TURNED, KEY, 1, R, r); /* [T, R], [T, r] */
    op->norm(b, C, C, w[MXD_MLA_KV_NORM], a->eps);
    op->rope(b, TURNED, 1, r, &m->rope);
    op->join(b, KEY, C, TURNED, 1, R, r); /* [T, R + r] */
    op->kv_append(b, layer, KEY, -1);
    op->split(b, Q_STILL, Q_TURNED, Q, H, a->nope, r); /* [T, H n], [T, H r] */
    op->rope(b, Q_TURNED, H, r, &m->rope);
    op->linear_heads(b, LATENTS, Q_STILL, w[MXD_MLA_EMBED_Q]); /* [T, H R] */
    op->join(b, QUERY, LATENTS, Q_TURNED, H, R, r);            /* [T, H (R + r)] */
    op->attend(b, layer, LATENTS, QUERY, &how);                /* [T, H R] */
    op->linear_heads(b, OUT, LATENTS, w[MXD_BLOCK_V]);         /* [T, H v] */
}

void mxd_mla_attention(const mxd_model *m, int layer) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_weight *const *w = m->layers[layer].w;
    op->norm(m->backend, NORMED, X, w[MXD_BLOCK_ATTN_NORM], m->hp.eps);
    if (m->local.n_heads) attend_heads(m, layer); /* else other ranks have them */
    mxd_blocks_project(m, NORMED, OUT, w[MXD_BLOCK_O]);
    op->add(m->backend, X, NORMED); /* x += attention */
}
