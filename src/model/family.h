/* family.h - private to model/: what one family file provides, and what it may use.
 *
 * Adding a family: one file that defines an mxd_family, one line in the table of model.c. The file
 * says which weights a layer has and how ranks divide them (declare), and the forward pass;
 * loading, shape checks, size tables and tensor parallel cuts follow from the declarations.
 */
#ifndef MXD_MODEL_FAMILY_H
#define MXD_MODEL_FAMILY_H

#include "model/model.h"

enum { MXD_MAX_LAYER_WEIGHTS = 32 };

/* What of a weight belongs to a rank. */
typedef enum mxd_decl_cut {
    MXD_CUT_NONE,     /* all of it */
    MXD_CUT_ROWS,     /* rows (of a vector, numbers) */
    MXD_CUT_COLUMNS,  /* columns: the ranks' products are one sum */
    MXD_CUT_GATHERED, /* rows, and every rank gets the products, or table rows, of all */
    MXD_CUT_MATRICES, /* whole matrices of heads */
    MXD_CUT_EXPERTS   /* whole experts, whose products every rank gets */
} mxd_decl_cut;

/* One weight of a layer, or of the embedding or head. */
typedef struct mxd_decl {
    const char *path; /* behind "model.layers.N.", or the whole module path; NULL: this layer has
                       * no such weight, all else is 0 */
    unsigned use;     /* MXD_W_* */
    int out, in;      /* a vector is [1, in] */
    int unit;         /* columns that must stay together when `in` is cut; 0: any group edge */
    bool param;       /* a parameter without module: the tensor's name is `path` itself */
    bool bias;        /* config.json promises "path.bias"; one that is there is used anyhow */
    int experts;      /* one [out, in] for each expert; 0: plain */
    int row0, whole;  /* of a matrix of `whole` rows, those from row0; whole = 0: all are ours */
    int col0,
        whole_in;    /* lookups: of `whole_in` columns, those from col0, at the same place of the
                      * list in every layer and each layer's behind the last's; 0: all are ours */
    bool global;     /* `path` stands behind "model.", not behind a layer */
    float add;       /* vectors: to each element */
    bool flat;       /* vectors: any shape of `in` numbers, not [in] alone */
    bool heads;      /* `experts` are heads: every row uses all of them */
    int columns;     /* vectors: rows of so many, kept column after column; 0: as they are */
    bool stacked;    /* experts: in the file one under the other, [experts whole, in] */
    bool transposed; /* experts: in the file [whole, out], of which `in` rows from row0 are ours */
    mxd_decl_cut cut;
    mxd_axis by;
    int sections[3]; /* CUT_ROWS: neighbouring runs of so many rows (of a vector, groups of
                      * `columns`), from each of which a rank has its part; 0: one run of all */
} mxd_decl;

/* The weights of one layer, in the order of the family's declarations. */
typedef struct mxd_layer {
    mxd_weight *w[MXD_MAX_LAYER_WEIGHTS];
} mxd_layer;

typedef struct mxd_regs { /* the registers of a forward pass: width in floats per row */
    int n;
    int width[MXD_MAX_REGS];
    int rows[MXD_MAX_REGS]; /* at most; 0: max_rows */
} mxd_regs;

typedef struct mxd_family {
    const char *model_type; /* as in config.json */
    /* Reads and ranges everything the family uses. */
    mxd_rc (*configure)(mxd_hparams *hp, const json_t *config, mxd_err *err);
    /* The weights of layer `layer`; returns how many of `out` [MXD_MAX_LAYER_WEIGHTS] are used. */
    int (*declare)(const mxd_hparams *hp, int layer, mxd_decl *out);
    void (*registers)(const mxd_hparams *hp, mxd_regs *out);
    /* One layer on register 0 (the residual stream); `layer` counts in the shard. It counts heads
     * and inner values by m->local, which may be 0, and goes through mxd_blocks_project where a
     * declaration says COLUMNS or GATHERED. */
    void (*layer)(const struct mxd_model *m, int layer);

    /* What most families leave out. */

    /* A JSON object: keys that config.json may leave out, and what they are then. */
    const char *defaults;

    /* What layer `layer` keeps of the past; NULL: {n_kv, head_dim}. */
    mxd_kv_spec (*kv)(const mxd_hparams *hp, int layer);
    /* True of a tensor of the layer that is there and not used ("self_attn.k_proj.weight"). */
    bool (*ignores)(const mxd_hparams *hp, int layer, const char *name);
    /* What the tensors tell and config.json does not, before they are checked. */
    mxd_rc (*inspect)(mxd_hparams *hp, const mxd_st *st, const char *prefix, mxd_err *err);
    /* After the embedding, or after hidden states came in from another node. */
    void (*start)(const struct mxd_model *m);
    /* Logits use the embedding exactly when there is no lm_head, whatever config.json says. */
    bool head_by_tensor;
} mxd_family;

/* A repository that wraps a language model (vision, audio) and keeps its configuration in
 * "text_config". */
typedef struct mxd_wrapper {
    const char *model_type, *text_type; /* the wrapped one's name, when it does not say */
    const char *defaults;               /* as of a family, before its own; NULL: none */
    int vocab; /* the "vocab_size" outside is what holds, and this when there is none; 0: the
                * wrapped one's holds */
} mxd_wrapper;

extern const mxd_family mxd_family_deepseek_v3;
extern const mxd_family mxd_family_gemma2;
extern const mxd_family mxd_family_gemma3_text;
extern const mxd_family mxd_family_gemma4_text;
extern const mxd_family mxd_family_glm4_moe;
extern const mxd_family mxd_family_glm4_moe_lite;
extern const mxd_family mxd_family_gpt_oss;
extern const mxd_family mxd_family_llama;
extern const mxd_family mxd_family_minimax;
extern const mxd_family mxd_family_ministral3;
extern const mxd_family mxd_family_phi3;
extern const mxd_family mxd_family_qwen2;
extern const mxd_family mxd_family_qwen3;
extern const mxd_family mxd_family_qwen3_5;
extern const mxd_family mxd_family_qwen3_5_moe;
extern const mxd_family mxd_family_qwen3_moe;
extern const mxd_family mxd_family_qwen3_next;

enum { MXD_REG_X = 0, MXD_REG_H = 1, MXD_REG_LOGITS = 2, MXD_REG_FAMILY = 3 }; /* shared meaning */

struct mxd_model {
    const mxd_alloc *al;
    const mxd_family *family;
    mxd_hparams hp;
    mxd_hparams local; /* hp with what this rank has of every axis, which may be 0 */
    mxd_st *st;
    json_t *config;     /* as in the file */
    json_t *text;       /* the language model's part of it, or all; defaults filled in */
    const char *prefix; /* of every tensor's name: "", or "language_model." */
    char *folder;
    bool checked; /* all tensors: what is odd about them has been said */

    float *inv_freq, *inv_freq_local; /* [rope.dims / 2], [rope_local.dims / 2] or NULL */
    mxd_rope_dynamic rope_dynamic;
    mxd_rope rope, rope_local; /* the latter is `rope` when the model has one only */
    float attn_scale;

    /* after mxd_model_load */
    mxd_backend *backend;
    const mxd_group *group; /* NULL: whole layers */
    mxd_shares shares;      /* of the group */
    int layer0, layer1;
    mxd_layer *layers;               /* [layer1 - layer0] */
    mxd_weight *embed, *norm, *head; /* NULL when not of this shard; head may be embed */
};

/* ---- model.c ---- */

/* reg [rows, hidden] = the scaled embeddings of the batch. */
void mxd_model_embed(const mxd_model *m, int reg);

/* ---- config.json, config.c ---- */

/* NULL when the key is missing or null. */
const json_t *mxd_config_get(const json_t *o, const char *key);
/* An integer in [least, most]; absent: `otherwise`, or an error when that is below `least`. */
mxd_rc mxd_config_int(const json_t *o, const char *key, int least, int most, int otherwise,
                      int *out, mxd_err *err) MXD_MUST_USE;
/* A finite number in [least, most]; absent: `otherwise`. */
mxd_rc mxd_config_real(const json_t *o, const char *key, double least, double most,
                       double otherwise, double *out, mxd_err *err) MXD_MUST_USE;
mxd_rc mxd_config_bool(const json_t *o, const char *key, bool otherwise, bool *out,
                       mxd_err *err) MXD_MUST_USE;

/* ---- quant.c ---- */

/* How the module `path` [out, in] is stored, by the rules of mlx repositories: an override in
 * "quantization", else the top level, else inferred from shapes. Fills weight, scales, biases, bias
 * and quant of `src`, whose path, out, in and experts are set. quiet: no warning when inferred.
 * Errors: E_FORMAT, E_UNSUPPORTED. */
mxd_rc mxd_quant_resolve(const json_t *config, const mxd_st *st, const char *path,
                         mxd_weight_src *src, bool quiet, mxd_err *err) MXD_MUST_USE;

/* Errors: E_UNSUPPORTED the repository is quantized in another format, by its own word. */
mxd_rc mxd_quant_check_method(const json_t *config, mxd_err *err) MXD_MUST_USE;

/* Errors: E_FORMAT the tensor does not hold floats. */
mxd_rc mxd_quant_check_float(const mxd_st_tensor *t, mxd_err *err) MXD_MUST_USE;

/* Length of a canonical block along `in` (docs/numerics.md): a 16th of `in`, on group edges, and a
 * divisor of `unit` when there is one. */
int mxd_block_k(int in, int group, int unit);

#endif
