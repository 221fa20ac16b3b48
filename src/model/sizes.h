/* sizes.h - what a model weighs, layer by layer: all that the planner needs to know of it. */
#ifndef MXD_MODEL_SIZES_H
#define MXD_MODEL_SIZES_H

#include <stdint.h>
#include "backend/backend.h"
#include "base/alloc.h"
#include "base/limits.h"

typedef struct mxd_model_sizes {
    int n_layers;
    uint64_t layer_bytes[MXD_MAX_LAYERS];       /* weights as they will lie in memory */
    uint64_t layer_kv_bytes[MXD_MAX_LAYERS];    /* per position of one sequence */
    uint64_t layer_state_bytes[MXD_MAX_LAYERS]; /* per sequence, however long */
    uint64_t embed_bytes, head_bytes;           /* first stage; last stage (norm and head) */
    /* What is only looked up `cpu` leaves in the files; for `mlx` these come on top, the latter
     * where embed_bytes counts. */
    uint64_t layer_table_bytes[MXD_MAX_LAYERS], embed_table_bytes;
    bool tied;                  /* one node with both holds them once */
    bool reembed;               /* every stage holds the embedding */
    int last_cut;               /* layers from here on stay on one stage; 0: cut anywhere;
                                 * -1: all layers stay together */
    uint64_t scratch_bytes;     /* per node: registers, buffers */
    uint64_t hidden_bytes;      /* of one position on the wire */
    double layer_ops, head_ops; /* multiply-adds of one position; mean of layers */
} mxd_model_sizes;

/* From the headers of a repository, without its tensors. max_rows: of a micro-batch, for scratch.
 * kv: not AUTO. Errors: as mxd_model_open. */
mxd_rc mxd_model_sizes_read(mxd_model_sizes *out, const mxd_alloc *al, const char *folder,
                            int max_rows, mxd_kv_type kv, mxd_err *err) MXD_MUST_USE;

#endif
