/* blocks.h - private to model/: the decoder layer that most families share.
 *
 * x += attention(norm(x)); x += down(silu(gate(norm(x))) * up(norm(x))), with RMSNorm,
 * grouped-query attention and RoPE. A family starts from these and changes what is its own. */
#ifndef MXD_MODEL_BLOCKS_H
#define MXD_MODEL_BLOCKS_H

#include "model/family.h"

enum { /* the weights of a layer; a family's own follow from MXD_BLOCK_N */
       MXD_BLOCK_ATTN_NORM,
       MXD_BLOCK_Q,
       MXD_BLOCK_K,
       MXD_BLOCK_V,
       MXD_BLOCK_O,
       MXD_BLOCK_MLP_NORM,
       MXD_BLOCK_GATE,
       MXD_BLOCK_UP,
       MXD_BLOCK_DOWN,
       MXD_BLOCK_N
};

enum { MXD_BLOCK_REGS = MXD_REG_FAMILY + 6 }; /* a family's own registers follow */

/* Sizes, context (absent: `context`) and eps; rope.dims becomes head_dim. RoPE itself is not read.
 * Errors: E_FORMAT. */
mxd_rc mxd_blocks_configure(mxd_hparams *hp, const json_t *c, int context,
                            mxd_err *err) MXD_MUST_USE;

/* The first half of that: all but what is derived from heads of one width. Errors: E_FORMAT. */
mxd_rc mxd_blocks_sizes(mxd_hparams *hp, const json_t *c, int context, mxd_err *err) MXD_MUST_USE;

/* "partial_rotary_factor" of a head turns: rope.dims. Errors: E_FORMAT. */
mxd_rc mxd_blocks_partial_rope(mxd_hparams *hp, const json_t *c, mxd_err *err) MXD_MUST_USE;

/* "layer_types" and "sliding_window": which layers see only a window of the past.
 * Errors: E_FORMAT; E_UNSUPPORTED a type of another name. */
mxd_rc mxd_blocks_windows(mxd_hparams *hp, const json_t *c, mxd_err *err) MXD_MUST_USE;

/* The same where files may have no "layer_types": all layers but each "sliding_window_pattern"th,
 * by default `pattern`, are sliding then. Errors: E_FORMAT, E_UNSUPPORTED. */
mxd_rc mxd_blocks_pattern(mxd_hparams *hp, const json_t *c, int pattern, mxd_err *err) MXD_MUST_USE;

/* "decoder_sparse_step" and "mlp_only_layers" (Qwen): which layers hold experts. Errors: E_FORMAT.
 */
mxd_rc mxd_blocks_sparse(mxd_hparams *hp, const json_t *c, mxd_err *err) MXD_MUST_USE;

/* The weights above by their usual names; returns MXD_BLOCK_N. */
int mxd_blocks_declare(const mxd_hparams *hp, mxd_decl *out);
void mxd_blocks_registers(const mxd_hparams *hp, mxd_regs *r);

/* What a family's attention has beyond the common one; all zero: nothing. */
typedef struct mxd_blocks_how {
    const mxd_weight *q_norm, *k_norm; /* over each query and key head */
    int whole_q, whole_k;              /* registers for those of all ranks, over which the norms are
                                        * then, and which are GATHERED; 0: over each head */
    const mxd_weight *sinks;           /* [n_heads] */
    float position_beta;               /* queries grow with the position: scale_positions */
    int position_length;
} mxd_blocks_how;

/* The two halves of a layer (counted in the shard) on the residual stream. how may be NULL. */
void mxd_blocks_attention(const mxd_model *m, int layer, const mxd_blocks_how *how);
void mxd_blocks_mlp(const mxd_model *m, int layer);

/* dst = src * w^T + bias, where src is what this rank has of w's columns, if layers are cut. */
void mxd_blocks_project(const mxd_model *m, int dst, int src, const mxd_weight *w);

/* Their middles, for families with norms of their own: MXD_REG_H, already normed, becomes what is
 * added to the residual stream. */
void mxd_blocks_attend(const mxd_model *m, int layer, const mxd_blocks_how *how);
void mxd_blocks_feed(const mxd_model *m, int layer, mxd_act_fn act);

#endif
