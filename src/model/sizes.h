/* sizes.h - what a model weighs, layer by layer: all that the planner needs to know of it. */
#ifndef MXD_MODEL_SIZES_H
#define MXD_MODEL_SIZES_H

#include <stdint.h>
#include "backend/backend.h"
#include "base/alloc.h"
#include "base/limits.h"

/* How the layers are cut over a group: rank r has the KV heads [kv[r], kv[r + 1]) with their query
 * heads, the inner values of the MLP, the experts and the token ids, likewise; none of some is
 * fine. Every edge of kv and inner is an edge of blocks in all layers (docs/numerics.md). */
typedef struct mxd_shares {
    int size; /* ranks */
    int kv[MXD_MAX_RANKS + 1], inner[MXD_MAX_RANKS + 1];
    int experts[MXD_MAX_RANKS + 1], vocab[MXD_MAX_RANKS + 1];
} mxd_shares;

/* What the ranks of a tensor-parallel group hold and exchange. A rank's weights of layer l are
 * whole[l] + kv heads * per_kv[l] + inner values * per_inner[l] + experts * per_expert[l]: the
 * bytes of mxd_model_share_bytes. */
typedef struct mxd_model_cuts {
    bool possible;         /* else all of this is 0, and layers stay whole */
    int n_kv, kv_step;     /* KV heads; so many stay together */
    int inner, inner_step; /* inner values of the MLP; likewise */
    int n_experts, n_vocab;
    uint64_t whole[MXD_MAX_LAYERS], per_kv[MXD_MAX_LAYERS], per_inner[MXD_MAX_LAYERS],
        per_expert[MXD_MAX_LAYERS];
    uint64_t embed_per_id, head_per_id, norm_bytes; /* of a token id; tied: embed_per_id alone */
    /* The sums of a layer: ranks send the sums of whole subtrees of blocks (docs/numerics.md), each
     * as wide as the hidden state, so how many there are depends on the edges. */
    bool sum_kv[MXD_MAX_LAYERS], sum_inner[MXD_MAX_LAYERS], experts[MXD_MAX_LAYERS];
    int kv_in, kv_block, inner_block; /* columns of the attention's product; of a block */
} mxd_model_cuts;

/* The shares nearest to the proportions weight [size]; NULL: all equal. Pure, and what
 * mxd_model_share gives for the same model. Errors: E_INVAL; E_UNSUPPORTED cannot be cut. */
mxd_rc mxd_cuts_share(const mxd_model_cuts *c, int size, const double *weight, mxd_shares *out,
                      mxd_err *err) MXD_MUST_USE;

typedef struct mxd_model_sizes {
    int n_layers;
    uint64_t layer_bytes[MXD_MAX_LAYERS];       /* weights as they will lie in memory */
    uint64_t layer_kv_bytes[MXD_MAX_LAYERS];    /* per position of one sequence */
    uint64_t layer_state_bytes[MXD_MAX_LAYERS]; /* per sequence, however long */
    uint64_t embed_bytes, head_bytes;           /* first stage; last stage (norm and head) */
    bool tied;                                  /* one node with both holds them once */
    bool reembed;                               /* every stage holds the embedding */
    int last_cut;               /* layers from here on stay on one stage; 0: cut anywhere;
                                 * -1: all layers stay together */
    uint64_t scratch_bytes;     /* per node: registers, buffers */
    uint64_t hidden_bytes;      /* of one position on the wire */
    double layer_ops, head_ops; /* multiply-adds of one position; mean of layers */
    uint64_t layer_read_bytes[MXD_MAX_LAYERS]; /* of layer_bytes, for one row; 0: all of them */
    double layer_attend_ops[MXD_MAX_LAYERS]; /* multiply-adds of one row and position of its past */
    int layer_window[MXD_MAX_LAYERS];        /* positions of the past that a row sees; 0: all */
    /* Numbers that go through norms, activations and sums for one row, mean of layers: in every
     * rank, and those that shrink with its share; and of logits. */
    double layer_values, layer_values_cut, head_values;
    double layer_tiles; /* products with 16 rows of weights, of one row; mean of layers */
    int top_k;          /* experts of a row */
    mxd_model_cuts cuts;
} mxd_model_sizes;

/* From the headers of a repository, without its tensors. max_rows: of a micro-batch, for scratch.
 * kv: not AUTO. Errors: as mxd_model_open. */
mxd_rc mxd_model_sizes_read(mxd_model_sizes *out, const mxd_alloc *al, const char *folder,
                            int max_rows, mxd_kv_type kv, mxd_err *err) MXD_MUST_USE;

#endif
