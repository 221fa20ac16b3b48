/* sizes.h - what a model weighs, layer by layer: all that the planner needs to know of it. */
#ifndef MXD_MODEL_SIZES_H
#define MXD_MODEL_SIZES_H

#include <stdint.h>
#include "backend/backend.h"
#include "base/alloc.h"
#include "base/limits.h"

/* What the ranks of a tensor-parallel group divide among them: lists in mxd_shares. */
typedef enum mxd_axis {
    MXD_BY_KV,           /* KV heads with their query heads; query heads where K is a latent */
    MXD_BY_FULL_KV,      /* the same of full layers, where their heads are others (Gemma 4) */
    MXD_BY_INNER,        /* inner values of the MLP */
    MXD_BY_WIDE_INNER,   /* of the MLP of layers that share keys and values */
    MXD_BY_SHARED_INNER, /* of the shared expert */
    MXD_BY_KEY,          /* key heads of a delta net with their value heads */
    MXD_BY_EXPERT,
    MXD_BY_TOKEN, /* token ids */
    MXD_AXES
} mxd_axis;

/* How the layers are cut over a group: rank r has the KV heads [kv[r], kv[r + 1]) with their query
 * heads, and likewise of every list; none of some is fine, and all 0 is a list of what the model
 * has not. Every edge is an edge of blocks in all layers where products are summed over ranks
 * (docs/numerics.md). What no list divides, every rank has. */
typedef struct mxd_shares {
    int size;                     /* ranks */
    int kv[MXD_MAX_RANKS + 1];    /* latent attention: query heads, which all read one latent */
    int inner[MXD_MAX_RANKS + 1]; /* values of the MLP */
    int experts[MXD_MAX_RANKS + 1], vocab[MXD_MAX_RANKS + 1];
    int full_kv[MXD_MAX_RANKS + 1]; /* kinds: of full layers */
    int wide_inner[MXD_MAX_RANKS + 1];
    int shared_inner[MXD_MAX_RANKS + 1]; /* of the shared expert */
    int keys[MXD_MAX_RANKS + 1];         /* key heads of delta nets, with their value heads */
} mxd_shares;

const int *mxd_axis_edges(const mxd_shares *s, mxd_axis by);

/* What the ranks of a tensor-parallel group hold and exchange. A rank's weights of layer l are
 * whole[l] + for every axis its things of it * per[axis][l]: what mxd_model_share_sizes counts, but
 * for the rounding of parts to tiles. */
typedef struct mxd_model_cuts {
    bool possible;                       /* else all of this is 0, and layers stay whole */
    int count[MXD_AXES], step[MXD_AXES]; /* things of an axis, and how many stay together */
    double whole[MXD_MAX_LAYERS], per[MXD_AXES][MXD_MAX_LAYERS]; /* bytes */
    double head_per_id, norm_bytes; /* of the head, for each token id; of the last norm */
    bool latent;                    /* K and V do not shrink with the share */
    /* The sums of a layer: ranks send the sums of whole subtrees of blocks (docs/numerics.md), each
     * as wide as the hidden state, so how many there are depends on the edges. */
    bool sum[MXD_AXES][MXD_MAX_LAYERS], experts[MXD_MAX_LAYERS];
    int in[MXD_AXES], block[MXD_AXES]; /* columns of the products that are summed; of a block */
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
    /* Large tables that are only looked up lie aside in a file (mxd_backend_opts.scratch_dir) and
     * are not counted; for `mlx` these come on top, the latter where embed_bytes counts. */
    uint64_t layer_table_bytes[MXD_MAX_LAYERS], embed_table_bytes;
    bool tied;                  /* one node with both holds them once */
    bool reembed;               /* every stage holds the embedding */
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
