/* model.h - a model repository: its numbers, its tensors, its forward pass.
 *
 * Opening reads config.json and the safetensors headers and checks that they fit each other: every
 * tensor the family needs is there with the right shape, for all layers, before any memory is
 * taken. Loading gives a range of layers to a backend. A family (qwen3.c, ...) is one file: it
 * turns config.json into checked hyperparameters, names the weights of a layer, and writes the
 * forward pass in backend operations.
 *
 *   OPEN --mxd_model_load--> LOADED --mxd_model_forward--> LOADED
 *
 * Trust:    the repository is hostile; numbers are ranged before they size anything.
 * Lifetime: model. Weights belong to the backend, names and tables to the model.
 * Threads:  one at a time; an open model may be read by several (sizes, hyperparameters).
 */
#ifndef MXD_MODEL_MODEL_H
#define MXD_MODEL_MODEL_H

#include <jansson.h>
#include "backend/backend.h"
#include "model/rope.h"
#include "model/sizes.h"

/* Layers with a mixture of experts in place of the MLP. n_experts = 0: there are none. */
typedef struct mxd_hp_moe {
    int n_experts, top_k;    /* experts; those of a row */
    int inner, shared_inner; /* width inside an expert; inside the shared one, 0: none */
    bool norm_topk;          /* weights of the chosen experts are divided by their sum */
    int n_group, topk_group; /* experts are chosen in the best groups only; 0: no groups */
    float norm_eps;          /* added to that sum */
    float weight_scale;      /* of the routed experts' sum; 0 means 1 */
    bool sparse[MXD_MAX_LAYERS];
} mxd_hp_moe;

/* Multi-head latent attention. kv_rank = 0: there is none. */
typedef struct mxd_hp_mla {
    int q_rank;            /* 0: queries come straight from the hidden state */
    int kv_rank;           /* width of the latent c that is cached */
    int nope, rope, v_dim; /* of a head: values without and with rotation; of V */
    float eps;             /* of the norms of latents */
    bool joined;           /* keys and values come from one matrix, as before mlx-lm split it */
} mxd_hp_mla;

/* Layers with a gated delta net in place of attention. n_v = 0: there are none. */
typedef struct mxd_hp_delta {
    int n_k, n_v, d_k, d_v; /* key and value heads, and their widths */
    int conv;               /* inputs of the causal convolution */
    bool fused;             /* q, k, v and z of a key head come from one projection, b and a too */
    bool recurrent[MXD_MAX_LAYERS];
} mxd_hp_delta;

/* Layers of two kinds, sliding and full, and layers with an input of their own (Gemma 4). All 0:
 * all layers are alike. */
typedef struct mxd_hp_kinds {
    int full_head_dim, full_n_kv; /* of full layers */
    int full_n_heads;             /* n_heads, but for a rank of a group */
    bool full_k_is_v;             /* V of full layers is their K as it was projected */
    int n_shared;                 /* the last layers keep no K and V: they read those of the last
                                   * layer before all of them that is of their kind */
    int shared_intermediate;      /* width of their MLP */
    int input, input_vocab;       /* width of each layer's own input, 0: none; rows of its table */
} mxd_hp_kinds;

typedef struct mxd_hparams {
    char model_type[48];
    int n_layers, hidden, n_vocab, n_heads, n_kv, head_dim, intermediate;
    int context; /* max_position_embeddings */
    float eps;   /* of every RMSNorm */
    mxd_rope_spec rope;
    mxd_rope_spec rope_local; /* of the sliding layers, when dims > 0; else they use `rope` */
    bool tied;                /* logits use the embedding matrix */
    bool attention_bias, mlp_bias;
    bool qk_norm;            /* queries and keys have norms, where a family has models without */
    int norm_heads, norm_kv; /* these are over all heads of queries, of keys, at once: so many; 0:
                              * over each head */
    int window; /* of the layers that are sliding: keys a query sees, itself included */
    bool sliding[MXD_MAX_LAYERS];
    float attn_scale;    /* of scores; 0: head_dim^-1/2 */
    float attn_softcap;  /* of scores; 0: none */
    float embed_scale;   /* of embeddings; 0 means 1 */
    float logit_softcap; /* 0: none */
    float norm_add;      /* to the final norm's weight (gemma: 1 + w) */
    float position_beta; /* queries grow with the position: mxd_backend_ops.scale_positions */
    int position_length; /* 0: they do not */
    mxd_hp_moe moe;
    mxd_hp_mla mla;
    mxd_hp_delta delta;
    mxd_hp_kinds kinds;
    int last_cut; /* layers from here on read K and V of the layers before them, so a stage that
                   * holds one holds all of them from here; 0: any cut will do; -1: none will */
    bool reembed; /* every stage needs the embedding, not the first alone */
} mxd_hparams;

typedef struct mxd_model mxd_model;

/* Errors: E_NOTFOUND no folder or file; E_FORMAT the repository contradicts itself (file, key or
 * tensor named); E_UNSUPPORTED model_type, with the nearest supported ones, or code in the
 * repository; E_NOMEM. Cost: the headers. */
mxd_rc mxd_model_open(mxd_model **out, const mxd_alloc *al, const char *folder,
                      mxd_err *err) MXD_MUST_USE;
void mxd_model_close(mxd_model *m); /* after the backend that holds its weights; NULL is fine */

const mxd_hparams *mxd_model_hparams(const mxd_model *m);
bool mxd_model_recurrent(const mxd_model *m); /* some layers keep state that cannot be cut back */
const mxd_st *mxd_model_tensors(const mxd_model *m);
const char *mxd_model_folder(const mxd_model *m);
uint64_t mxd_model_params(const mxd_model *m);       /* weights of the network, as people count */
uint64_t mxd_model_weight_bytes(const mxd_model *m); /* in the files */

/* Bytes of every layer and of KV, for the planner. max_rows: of a micro-batch. kv: not AUTO. */
void mxd_model_sizes_get(const mxd_model *m, int max_rows, mxd_kv_type kv, mxd_model_sizes *out);

/* ---- tensor parallelism ---- */

/* The shares nearest to the proportions weight [size]; NULL: all equal. Pure: every rank gets the
 * same. Errors: E_INVAL. */
mxd_rc mxd_model_share(const mxd_model *m, int size, const double *weight, mxd_shares *out,
                       mxd_err *err) MXD_MUST_USE;

/* Bytes of a rank's weights of a layer in memory; layer = n_layers: of embedding, norm and head. */
uint64_t mxd_model_share_bytes(const mxd_model *m, const mxd_shares *shares, int rank, int layer);

/* mxd_model_sizes_get of what rank `rank` holds and computes. */
void mxd_model_share_sizes(const mxd_model *m, const mxd_shares *shares, int rank, int max_rows,
                           mxd_kv_type kv, mxd_model_sizes *out);

/* The bytes of the files that loading layers [layer0, layer1) reads, as rank `rank` of a group when
 * shares are given (NULL: whole layers): calls `range` for every piece of a tensor, maybe the same
 * one twice. Nothing but these and the headers is read. Errors: those of `range`; E_FORMAT. */
typedef mxd_rc (*mxd_range_fn)(void *ctx, const mxd_st_tensor *t, uint64_t from, uint64_t n,
                               mxd_err *err);
mxd_rc mxd_model_ranges(const mxd_model *m, int layer0, int layer1, const mxd_shares *shares,
                        int rank, mxd_range_fn range, void *ctx, mxd_err *err) MXD_MUST_USE;

/* Gives layers [layer0, layer1) to the backend (with the embedding for 0, norm and head for the
 * last), and sets it up for steps.
 *   progress  called with bytes loaded so far; may be NULL
 * Errors: the backend's, with the tensor's name in front. Once per model. */
typedef struct mxd_load_opts {
    int layer0, layer1;
    int max_rows;   /* of a micro-batch */
    int max_logits; /* rows whose logits are wanted at once */
    int n_pages, max_context;
    int n_states; /* sequences at one time: of the state of recurrent layers */
    bool (*progress)(void *ctx, uint64_t bytes_done, uint64_t bytes_total); /* false: stop */
    void *progress_ctx;
    const mxd_group *group; /* NULL: whole layers. Lives as long as the backend */
    const mxd_shares *shares;
} mxd_load_opts;
mxd_rc mxd_model_load(mxd_model *m, mxd_backend *b, const mxd_load_opts *opts,
                      mxd_err *err) MXD_MUST_USE;

/* One micro-batch through the loaded layers, inside begin/end.
 *   hidden_in   [rows, hidden]: wanted unless the shard embeds
 *   hidden_out  [rows, hidden]: written unless the shard has the head
 *   rows        [n_logits] rows whose logits are wanted, ascending
 *   logits      [n_logits, n_vocab]: written when the shard has the head; of a rank of a group
 *               [n_logits, its own ids]
 * Errors: the backend's. */
typedef struct mxd_forward {
    const mxd_batch *batch;
    const float *hidden_in;
    float *hidden_out;
    const int *rows;
    int n_logits;
    float *logits;
} mxd_forward;
mxd_rc mxd_model_forward(mxd_model *m, const mxd_forward *f, mxd_err *err) MXD_MUST_USE;

#endif
