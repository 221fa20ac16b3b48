/* mla.h - private to model/: multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section
 * 2.1), in the form that reads the latent itself.
 *
 * Of the past a layer keeps one latent c and one rotated key for all heads. A head's key is W c and
 * its value U c; W goes over to the query and U behind the sum, so every query reads c, in prefill
 * as in decoding, and a chunk changes no bit. Weights stand in the places of the common layer:
 * MXD_BLOCK_Q the last projection of queries, K the one to [c, key], V is U. */
#ifndef MXD_MODEL_MLA_H
#define MXD_MODEL_MLA_H

#include "model/blocks.h"

enum {                                /* the last two only when queries come through a latent too */
       MXD_MLA_EMBED_Q = MXD_BLOCK_N, /* W, transposed */
       MXD_MLA_KV_NORM,
       MXD_MLA_Q_A,
       MXD_MLA_Q_NORM,
       MXD_MLA_MAX
};

enum { MXD_MLA_REGS = MXD_BLOCK_REGS + 6 }; /* a family's own registers follow */

/* Sizes, RoPE and the scale of scores. theta: when config.json names none; norm_eps: of the norms
 * of latents, 0: the model's. Errors: E_FORMAT, E_UNSUPPORTED. */
mxd_rc mxd_mla_configure(mxd_hparams *hp, const json_t *c, int context, double theta,
                         float norm_eps, mxd_err *err) MXD_MUST_USE;

/* Whether keys and values come from one matrix, as in conversions before mlx-lm split it. */
void mxd_mla_look(mxd_hparams *hp, const mxd_st *st, const char *prefix);
/* The weights of a layer with a dense MLP; returns how many. */
int mxd_mla_declare(const mxd_hparams *hp, mxd_decl *out);
void mxd_mla_registers(const mxd_hparams *hp, mxd_regs *r);
mxd_kv_spec mxd_mla_kv(const mxd_hparams *hp, int layer);
/* x += attention(norm(x)); `layer` counts in the shard. */
void mxd_mla_attention(const mxd_model *m, int layer);

#endif
