/* backend.h - coarse neural-network operations, over whatever does the arithmetic.
 *
 * A model family writes its forward pass once, in these operations, and runs on every backend:
 * `cpu` computes each operation at once with its own kernels; `mlx` records a lazy graph and
 * evaluates it when output is asked for. So operations name registers, not pointers, return
 * nothing, and the first failure sticks until `output` reports it.
 *
 *   values    A register holds float32 [rows, width]; width is fixed by mxd_step_shape, rows by
 *             the micro-batch (or by `pick`). Registers are numbered 0 .. n_regs - 1.
 *   weights   Loaded once, read-only. A weight may be a part of the tensor (rows or columns), for
 *             tensor parallelism.
 *   KV        Pages of MXD_KV_PAGE_TOKENS positions for all layers of the shard. Who owns which
 *             page is the runtime's business; the backend only follows page tables.
 *   numbers   docs/numerics.md is the definition for `cpu`: equal bits whatever the batch, chunk,
 *             thread count or split. `mlx` promises the same values within 1e-3.
 *
 *   CLOSED --open--> LOADING --setup--> READY --begin--> STEP --output--> STEP --end--> READY
 *   load is allowed in LOADING only; operations in STEP only; close always.
 *
 * Trust:    sizes have been checked by the model; file contents have not.
 * Lifetime: model (weights), session (registers, KV).
 * Threads:  one thread at a time, the engine thread; the backend has its own compute pool.
 */
#ifndef MXD_BACKEND_BACKEND_H
#define MXD_BACKEND_BACKEND_H

#include "formats/safetensors.h"

typedef struct mxd_backend mxd_backend;
typedef struct mxd_weight mxd_weight; /* owned by the backend that loaded it */

/* ------------------------------------------------------------------------------------ opening */

typedef enum mxd_activations {             /* what quantised weights are multiplied with */
                               MXD_ACT_I8, /* int8, a scale per group of at most 32 */
                               MXD_ACT_I16,
                               MXD_ACT_F32, /* the reference path */
} mxd_activations;

typedef enum mxd_kv_type {              /* how K and V are kept */
                           MXD_KV_AUTO, /* F32 where activations are, else F16 */
                           MXD_KV_F16,
                           MXD_KV_F32,
                           MXD_KV_Q8, /* int8, a scale for every MXD_KV_GROUP; cpu only */
} mxd_kv_type;

enum { MXD_KV_GROUP = 32 }; /* values that share a scale of two bytes in MXD_KV_Q8 */

static inline mxd_kv_type mxd_kv_of(mxd_kv_type t, mxd_activations a) {
    return t != MXD_KV_AUTO ? t : a == MXD_ACT_F32 ? MXD_KV_F32 : MXD_KV_F16;
}

typedef struct mxd_backend_opts { /* all zero: sensible */
    int threads;                  /* 0: one per core this process may use */
    int spin_us;                  /* idle compute threads poll so long before they sleep; 0: 100,
                                     negative: not at all */
    mxd_activations activations;
    mxd_kv_type kv;
    const char *kernels; /* cpu: force a table ("scalar", "avx2", ...); NULL: the best.
                          * mlx: "cpu" keeps it off the GPU */
    const char *plugin;  /* mlx: path of the plugin, or its folder; NULL: beside the program */
    const char *mlx_lib; /* mlx: path of libmlx itself; NULL: the one it was built with */
    /* cpu: a folder on a disk where tables that are only looked up may lie, in unlinked files, when
     * they have MXD_ASIDE_BYTES and more; NULL, or one that is of no use: they stay in memory */
    const char *scratch_dir;
    size_t aside_least; /* in place of MXD_ASIDE_BYTES, for tests; 0: that */
} mxd_backend_opts;

enum { MXD_ASIDE_BYTES = 64 << 20 };

/* ------------------------------------------------------------------------------------ weights */

typedef enum mxd_qmode {
    MXD_Q_NONE,
    MXD_Q_AFFINE,
    MXD_Q_MXFP4,
    MXD_Q_MXFP8,
    MXD_Q_NVFP4
} mxd_qmode;

typedef struct mxd_quant {
    mxd_qmode mode;
    int bits, group; /* 0 when mode is NONE */
} mxd_quant;

enum {                   /* what a weight will be used for; may be combined */
       MXD_W_LINEAR = 1, /* y = x W^T */
       MXD_W_LOOKUP = 2, /* rows by token id */
       MXD_W_VECTOR = 4, /* n floats in their order, whatever the tensor's dimensions: norms */
       MXD_W_EXACT = 8,  /* with LINEAR: activations stay float32 (routers: a rounded input can
                          * choose another expert) */
       MXD_W_PART = 16, /* with LINEAR, cut along `out`: only `linear` will ask for the product, and
                         * gets this rank's part */
};

typedef enum mxd_cut_along { MXD_ALONG_OUT, MXD_ALONG_IN, MXD_ALONG_EXPERTS } mxd_cut_along;

/* A tensor cut over a tensor-parallel group: rank r holds the rows, columns or experts [edge[r],
 * edge[r + 1]), which may be none. */
typedef struct mxd_cut {
    int rank, size;              /* of the group; 1 <= size <= MXD_MAX_RANKS */
    mxd_cut_along along;         /* `in`: on edges of blocks */
    int edge[MXD_MAX_RANKS + 1]; /* [size + 1], ascending, from 0 to all of them */
} mxd_cut;

/* How the ranks of a group reach each other. All of them make the same calls in the same order.
 *   exchange  all: n_each [size] floats of every rank, one rank after the other. This rank's are
 *             there and stay; the others' are filled in. Returns on every rank, or fails: a rank
 *             whose step has failed makes no more calls in it, and the others must not wait for it
 *             forever.
 * Lifetime: of the backend. Threads: called by the engine thread. */
typedef struct mxd_group {
    int rank, size;
    void *ctx;
    mxd_rc (*exchange)(void *ctx, float *all, const size_t *n_each, mxd_err *err);
} mxd_group;

typedef struct mxd_strip { /* neighbouring rows */
    int row0, rows;
} mxd_strip;

enum { MXD_MAX_STRIPS = 3 };

typedef struct mxd_weight_src {
    const char *name; /* module path, for messages */
    unsigned use;     /* MXD_W_* */
    const mxd_st *st;
    const mxd_st_tensor *weight;          /* never NULL */
    const mxd_st_tensor *scales, *biases; /* quantised: scales; affine: biases too. Else NULL */
    const mxd_st_tensor *bias;            /* [out] or NULL: added to the product */
    mxd_quant quant;
    int out, in;    /* the whole tensor is [out, in]; a vector is [1, in] */
    int row0, rows; /* the part to load along out; rows = 0: all */
    int col0, cols; /* LOOKUP or VECTOR: the part along in; cols = 0: all */
    int n_strips;   /* LINEAR, or a VECTOR with `columns`: instead of the one part these, one after
                     * the other, all but the last of a multiple of 16 rows; 0: no */
    mxd_strip strip[MXD_MAX_STRIPS];
    int span0, span; /* with cols: columns of this table that will be asked for part by part, so
                      * that a backend may read them at once; span = 0: no others will be */
    int block_k;     /* canonical block along in: a multiple of quant.group (and of 16) */
    float add;       /* vectors: added to each element (gemma: 1 + w) */
    int columns;     /* vectors: [in / columns, columns] in the file, column after column in memory;
                      * 0: in the file's order */
    int experts;     /* matrices: [experts, out, in], one for each expert (or head); 0: plain. Their
                      * bias is [experts, out] */
    int matrix0, matrices; /* experts: of these matrices the ones to load; matrices = 0: all */
    bool stacked;          /* experts: in the file one under the other, [experts out, in] */
    bool transposed;       /* experts: rows of the part become columns, [in, rows] */
    const mxd_cut *cut;    /* NULL: whole. Borrowed while loading. LINEAR along `out` or `in`, for
                            * linear_cut (along `in` every rank holds all of the bias); along `out`
                            * LOOKUP too, perhaps a part of its columns, whose `embed` asks the
                            * group; experts for `moe` */
} mxd_weight_src;

/* Bytes that `cpu` will hold for a source, without reading it (of a part of a table, its columns),
 * as `bytes` counts; other backends hold much the same. 0: no memory to find out, or the source
 * cannot be loaded. exchange  what steps of max_rows rows need besides to exchange its products;
 * NULL: not asked */
uint64_t mxd_weight_bytes(const mxd_alloc *al, const mxd_weight_src *src, int max_rows,
                          uint64_t *exchange);

/* --------------------------------------------------------------------------------- a micro-batch
 */

typedef struct mxd_kv_spec { /* one layer of the shard */
    int n_kv, head_dim;      /* n_kv = 0: the layer keeps no K and V of its own */
    int v_dim;               /* of a V head; 0: head_dim. Latent KV: V is the first v_dim of K */
    bool latent;
} mxd_kv_spec;

/* Recurrent state of one layer of the shard, for every sequence. channels = 0: none. */
typedef struct mxd_state_spec {
    int channels, conv;    /* the last conv - 1 inputs of a causal convolution over channels */
    int n_heads, d_v, d_k; /* a matrix [d_v, d_k] for each head, float32; multiples of 16 */
} mxd_state_spec;

/* What the `moe` operations of a step need at most; all 0: there are none. */
typedef struct mxd_moe_spec {
    int top_k;         /* experts of a row */
    int hidden, inner; /* width of rows outside; inside an expert */
} mxd_moe_spec;

typedef struct mxd_step_shape {
    int max_rows;          /* 1 .. MXD_MAX_STEP_TOKENS */
    int n_regs;            /* 1 .. MXD_MAX_REGS */
    const int *reg_width;  /* [n_regs] floats per row */
    const int *reg_rows;   /* [n_regs] rows a register must hold, when fewer; NULL: max_rows */
    int n_layers;          /* layers of this shard */
    const mxd_kv_spec *kv; /* [n_layers] */
    int n_pages;           /* KV pages, shared by all sequences */
    int max_context;       /* longest sequence */
    mxd_moe_spec moe;
    int n_states;                /* sequences with recurrent state at one time; 0: no such layers */
    const mxd_state_spec *state; /* [n_layers]; NULL when n_states is 0 */
    const mxd_group *group;      /* NULL: no weight is cut */
} mxd_step_shape;

enum { MXD_MAX_REGS = 32, MXD_MAX_EXPERTS = 1024, MXD_MAX_TOP_K = 64, MXD_MAX_CONV = 16 };

/* Neighbouring rows that belong to one sequence. */
typedef struct mxd_run {
    int row0, n;          /* rows [row0, row0 + n) */
    int pos0;             /* position of row0; K and V of [0, pos0) are in the pages already */
    const int32_t *pages; /* position p lives in page pages[p / MXD_KV_PAGE_TOKENS] */
    int state;            /* whose recurrent state, 0 .. n_states - 1; zeros where pos0 is 0 */
} mxd_run;

typedef struct mxd_batch {
    int n_rows, n_runs;
    const mxd_run *runs; /* [n_runs], in order of rows, covering all of them */
    const int32_t *ids;  /* [n_rows] token ids */
} mxd_batch;

/* Frequencies that depend on the position: base(p) = theta * (factor * n / context - (factor - 1))
 * ^ (dims / (dims - 2)) with n = max(p + 1, context), in double; inv_freq_i = base^(-2i / dims). */
typedef struct mxd_rope_dynamic {
    double theta, factor, context;
} mxd_rope_dynamic;

/* Rotary embedding of the first `dims` values of each head.
 * angle(position, i) = position * inv_freq[i], in float32; the pair (i, i + dims/2), or (2i, 2i+1)
 * when interleaved, is rotated by it and multiplied by `scale`. */
typedef struct mxd_rope {
    int dims;              /* even, <= head_dim */
    const float *inv_freq; /* [dims / 2], lives as long as the model */
    float scale;           /* 1 for most */
    bool interleaved;
    const mxd_rope_dynamic *dynamic; /* NULL for most; inv_freq then holds up to `context` */
} mxd_rope;

typedef struct mxd_attention {
    int n_heads, n_kv, head_dim; /* query head h reads KV head h / (n_heads / n_kv) */
    float scale;
    int window;              /* 0: all of the past; W: key j is visible from i when i - j < W */
    int v_dim;               /* of a V head and so of the output's; 0: head_dim */
    float softcap;           /* c > 0: scores become c * tanh(scale * q k / c); 0: they stay */
    const mxd_weight *sinks; /* [n_heads], one more score of each head, whose share is dropped;
                              * NULL: none */
} mxd_attention;

typedef enum mxd_act_fn {
    MXD_SILU,       /* silu(gate) * up */
    MXD_GELU_TANH,  /* gelu(gate) * up, gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
    MXD_SIGMOID,    /* sigmoid(gate) * up */
    MXD_SWIGLU_OAI, /* g = min(gate, 7), u = clamp(up, -7, 7): g * sigmoid(1.702 g) * (u + 1) */
    MXD_ACT_FN_COUNT
} mxd_act_fn;

typedef enum mxd_router {
    MXD_ROUTE_SOFTMAX,      /* p = softmax over all; the top_k of the largest p */
    MXD_ROUTE_TOPK_SOFTMAX, /* the top_k of the largest logits; p = softmax over those */
    MXD_ROUTE_SIGMOID,      /* p = sigmoid; chosen by p + correction, within the best groups */
} mxd_router;

/* A mixture of experts: a row goes through top_k experts, the lowest index of equal ones. */
typedef struct mxd_moe {
    const mxd_weight *gate, *up; /* [n_experts][inner, hidden] */
    const mxd_weight *down;      /* [n_experts][hidden, inner] */
    int n_experts, top_k;        /* 1 .. MXD_MAX_EXPERTS; 1 .. what setup was told */
    mxd_router router;
    const mxd_weight *correction; /* SIGMOID: [n_experts], or NULL */
    int n_group, topk_group; /* SIGMOID: experts in n_group equal groups, a group's worth being the
                              * sum of its two best p + correction; those outside the topk_group
                              * best count as 0. n_group <= 1: no groups */
    bool norm_weights;       /* the chosen p are divided by (their sum + norm_eps) */
    float norm_eps;
    float weight_scale;             /* then multiplied by this; 0 means 1 */
    const mxd_weight *expert_scale; /* [n_experts], and by this; or NULL */
    mxd_act_fn act;
} mxd_moe;

/* Gated delta rule (Gated Delta Networks, arXiv 2412.06464), one layer. With H_k key heads of d_k,
 * H_v value heads of d_v and C = 2 H_k d_k + H_v d_v channels, for each position in order:
 *   [q k v] = silu(conv(x))        causal, each channel by itself, over the last `conv` inputs
 *   q = q / (sqrt(d_k) sqrt(sum(q^2) + 1e-6)),  k = k / sqrt(sum(k^2) + 1e-6)    of each head
 *   beta = sigmoid(b),  g = exp(-exp(a_log) softplus(a + dt_bias))          of each value head
 *   S = g S;  delta = beta (v - S k);  S = S + delta k^T;  y = S q          [d_v, d_k], float32
 *   y = rms_norm(y, norm) * silu(z)                                         of each value head
 * Value head h reads key head h / (H_v / H_k). Channels: all of q, all of k, all of v. */
typedef struct mxd_delta_net {
    const mxd_weight *conv_w;          /* vector [conv, C]: the oldest input's weights first */
    const mxd_weight *a_log, *dt_bias; /* [n_v] */
    const mxd_weight *norm;            /* [d_v] */
    int n_k, n_v, d_k, d_v, conv;
    bool by_key_head; /* x holds, for each key head, its q, its k, and v of its H_v / H_k value
                       * heads; else it holds channels in their order */
    float eps;        /* of the norm of y */
} mxd_delta_net;

/* --------------------------------------------------------------------------------- the operations
 */

typedef struct mxd_backend_ops {
    const char *name;        /* "cpu", "mlx" */
    const char *determinism; /* "bit-exact" or "per-node", for /v1/models */

    void (*close)(mxd_backend *b); /* frees weights too */

    /* Reads, checks against the shapes of the source, and repacks one weight.
     * Errors: E_FORMAT shapes or dtypes do not fit each other; E_UNSUPPORTED; E_IO; E_NOMEM. */
    mxd_rc (*load)(mxd_backend *b, const mxd_weight_src *src, mxd_weight **out, mxd_err *err);

    /* Takes all memory that steps need. Once, after the last load. Errors: E_NOMEM, E_NOFIT. */
    mxd_rc (*setup)(mxd_backend *b, const mxd_step_shape *shape, mxd_err *err);

    /* Held now: weights, KV, state, scratch; not the small tables about them. */
    uint64_t (*bytes)(const mxd_backend *b);

    /* The batch is borrowed until `end`. */
    void (*begin)(mxd_backend *b, const mxd_batch *batch);

    /* dst [rows, width] = rows of the embedding `w`, by the batch's ids. */
    void (*embed)(mxd_backend *b, int dst, const mxd_weight *w);
    /* dst [rows, width] = x, copied (hidden states from another node). */
    void (*input)(mxd_backend *b, int dst, const float *x);
    /* RMSNorm over each group of n = len(w) neighbouring values of a row (so over each head, when
     * w is as long as a head): dst = src / sqrt(mean(src^2) + eps) * w. dst may be src. */
    void (*norm)(mxd_backend *b, int dst, int src, const mxd_weight *w, float eps);
    /* dst[i] [rows, out_i] = src [rows, in] * w[i]^T + bias_i, for n weights with one input.
     * Of a w that is cut along `out`, not empty: the outputs of this rank, without the others. */
    void (*linear)(mxd_backend *b, int n, const int *dst, int src, const mxd_weight *const *w);
    /* reg [rows, n_heads * head_dim], in place, by the positions of the batch. */
    void (*rope)(mxd_backend *b, int reg, int n_heads, int head_dim, const mxd_rope *r);
    /* Writes k [rows, n_kv * head_dim], v [rows, n_kv * v_dim] to the pages of `layer` (index in
     * the shard). Latent KV: v is -1. */
    void (*kv_append)(mxd_backend *b, int layer, int k, int v);
    /* dst [rows, n_heads * v_dim] = causal attention of q over the pages, after kv_append. `layer`
     * may be another one, whose K and V are read. */
    void (*attend)(mxd_backend *b, int layer, int dst, int q, const mxd_attention *a);
    /* dst = act(gate, up), elementwise. dst may be gate. */
    void (*gated)(mxd_backend *b, int dst, int gate, int up, mxd_act_fn act);
    /* dst += src. */
    void (*add)(mxd_backend *b, int dst, int src);
    /* dst [n, width] = the named rows of src, ascending; later operations see n rows in dst. */
    void (*pick)(mxd_backend *b, int dst, int src, const int *rows, int n);

    /* Evaluates and copies reg [rows, width] to out, or reports what failed since `begin`. */
    mxd_rc (*output)(mxd_backend *b, int reg, float *out, mxd_err *err);
    /* Ends the step; all work is done and KV is written. Reports what failed if nobody asked. */
    mxd_rc (*end)(mxd_backend *b, mxd_err *err);

    /* dst [rows, hidden] = sum over the chosen experts e of p_e * down_e(act(gate_e(src),
     * up_e(src))), each product with its expert's bias. logits [rows, n_experts] are used up. dst
     * may be src. When experts are cut, gate, up and down alike, every rank gives the products of
     * its own. */
    void (*moe)(mxd_backend *b, int dst, int src, int logits, const mxd_moe *how);

    /* dst = src / sqrt(mean(src^2) + eps) over each n neighbouring values. dst may be src. */
    void (*unit_norm)(mxd_backend *b, int dst, int src, int n, float eps);
    /* reg = reg * by. */
    void (*scale)(mxd_backend *b, int reg, float by);
    /* reg = reg * w over each group of len(w) neighbouring values of a row. */
    void (*scale_by)(mxd_backend *b, int reg, const mxd_weight *w);
    /* reg = c * tanh(reg / c). */
    void (*softcap)(mxd_backend *b, int reg, float c);
    /* reg's row = row * sigmoid(gate [rows, 1]). */
    void (*gate_rows)(mxd_backend *b, int reg, int gate);
    /* reg's row = row * (1 + beta * ln(1 + floor(position / length))) (Llama 4, Ministral 3). */
    void (*scale_positions)(mxd_backend *b, int reg, float beta, int length);
    /* A row of src is n groups of a + c neighbouring values: the first a of each go to `first`
     * [rows, n a], the others to `second` [rows, n c]. A register of -1 is left out. */
    void (*split)(mxd_backend *b, int first, int second, int src, int n, int a, int c);
    /* The reverse, except that a second of one group [rows, c] is repeated for every group. */
    void (*join)(mxd_backend *b, int dst, int first, int second, int n, int a, int c);
    /* w holds one [out, in] for each of n heads, in a multiple of 16: dst [rows, n out], head h =
     * src's [rows, n in] head h * w_h^T + bias_h. Not in place. */
    void (*linear_heads)(mxd_backend *b, int dst, int src, const mxd_weight *w);
    /* dst [rows, n_v d_v] = the gated delta rule over x [rows, C], z [rows, n_v d_v], b and a
     * [rows, n_v]; moves the state of `layer` on. dst may be z. x, b and a are used up. */
    void (*delta_net)(mxd_backend *b, int layer, int dst, int x, int z, int beta, int a,
                      const mxd_delta_net *how);
    /* dst [rows, out] = src * w^T + bias, whole and with the bits of `linear`, of a w that is cut.
     * Along `in`: src [rows, columns of this rank]; every rank gives the sums of its whole subtrees
     * of blocks and finishes the tree. A rank without columns does not read src, and has the rows
     * of the batch. Along `out`: src [rows, in]; every rank gives its part of dst. */
    void (*linear_cut)(mxd_backend *b, int dst, int src, const mxd_weight *w);
    /* dst [rows, width] = columns [from, from + width) of src. Only where linear_cut is. */
    void (*columns)(mxd_backend *b, int dst, int src, int from);
    /* Between steps: the recurrent state `to` becomes that of `from`, all layers. */
    void (*state_copy)(mxd_backend *b, int to, int from);
} mxd_backend_ops;

struct mxd_backend {
    const mxd_backend_ops *ops; /* first member of every backend's own struct */
};

/* What "auto" will most likely be here, for people: "cpu", or "mlx" on Apple Silicon. */
const char *mxd_backend_default(void);

/* name: "cpu", "mlx", or "auto" (mlx on Apple Silicon when its plugin opens, else cpu).
 *   *out   owned by the caller: ops->close
 * Errors: E_NOTFOUND no such backend, or its plugin is missing (the message says what to install);
 * E_UNSUPPORTED plugin of another version; E_NOMEM; E_INVAL options. */
mxd_rc mxd_backend_open(mxd_backend **out, const mxd_alloc *al, const char *name,
                        const mxd_backend_opts *opts, mxd_err *err) MXD_MUST_USE;

#endif
