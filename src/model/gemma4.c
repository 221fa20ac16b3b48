/* gemma4.c - Gemma 4: the four norms of Gemma 3 without the 1, values normed too, heads of two
 * widths and RoPE kinds for sliding and full layers. By model: V of full layers is their K; the
 * last layers read K and V of earlier ones, and may have a wider MLP; each layer gets an input of
 * its own, from the token and from its embedding; a mixture of experts is added to the MLP. Source:
 * mlx-lm's model of the name.
 *
 * Shapes: T rows, D hidden, H query heads, G KV heads, d head width, F inner, P width of a layer's
 * own input, E experts. */
#include <math.h>
#include <string.h>

#include "model/blocks.h"

enum { /* weights */
       POST_ATTN = MXD_BLOCK_N,
       POST_MLP,
       Q_NORM,
       K_NORM,
       SCALAR,   /* of the whole layer */
       IN_TABLE, /* [V, P]: this layer's columns of the table of all */
       IN_PROJ,  /* [P, D]: its rows of the projection of all */
       IN_NORM,
       IN_GATE,
       IN_OUT,
       IN_POST,
       ROUTER_NORM,
       ROUTER,
       EXPERT_SCALE,
       EXPERT_GATE,
       EXPERT_UP,
       EXPERT_DOWN,
       DENSE_POST,
       EXPERT_NORM,
       EXPERT_POST,
       N_WEIGHTS
};
_Static_assert((int)N_WEIGHTS <= (int)MXD_MAX_LAYER_WEIGHTS, "weights of a layer");

enum { /* registers: those of the common layer are the sliding layers' */
       X = MXD_REG_X,
       H = MXD_REG_H,
       Q = MXD_REG_FAMILY,
       K,
       V,
       ATTN,
       INNER,
       UPPED,
       FULL_Q,
       FULL_K,
       FULL_V,
       FULL_ATTN,
       SHARED_INNER,
       SHARED_UPPED,
       EMBEDDED, /* [T, D]: the scaled embeddings, which every layer's own input starts from */
       INPUT,    /* [T, P] */
       IN_INNER,
       LOGITS, /* [T, E] */
       EXPERTS,
       N_REGS
};

/* -------------------------------------------------------------------------------- the kinds */

typedef struct kind { /* of one layer */
    bool full, shared;
    bool own_v; /* V has a projection */
    int n_heads, n_kv, head_dim, inner;
} kind;

static kind kind_of(const mxd_hparams *hp, int layer) {
    const mxd_hp_kinds *k = &hp->kinds;
    kind out = {.full = !hp->sliding[layer], .shared = layer >= hp->n_layers - k->n_shared};
    out.own_v = !out.shared && !(out.full && k->full_k_is_v);
    out.n_heads = out.full ? k->full_n_heads : hp->n_heads;
    out.n_kv = out.full ? k->full_n_kv : hp->n_kv;
    out.head_dim = out.full ? k->full_head_dim : hp->head_dim;
    out.inner = out.shared ? k->shared_intermediate : hp->intermediate;
    return out;
}

/* The layer whose K and V `layer` reads; -1: there is none of its kind. */
static int source_of(const mxd_hparams *hp, int layer) {
    int first = hp->n_layers - hp->kinds.n_shared;
    if (layer < first) return layer;
    for (int i = first - 1; i >= 0; i--)
        if (hp->sliding[i] == hp->sliding[layer]) return i;
    return -1;
}

static mxd_kv_spec kv(const mxd_hparams *hp, int layer) {
    kind k = kind_of(hp, layer);
    if (k.shared) return (mxd_kv_spec){0};
    return (mxd_kv_spec){.n_kv = k.n_kv, .head_dim = k.head_dim};
}

/* ------------------------------------------------------------------------------- config.json */

static mxd_rc read_heads(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_kinds *k = &hp->kinds;
    MXD_TRY(mxd_config_bool(c, "attention_k_eq_v", false, &k->full_k_is_v, err));
    MXD_TRY(mxd_config_int(c, "global_head_dim", 0, MXD_MAX_HEAD_DIM, 0, &k->full_head_dim, err));
    if (!k->full_head_dim) k->full_head_dim = hp->head_dim;
    MXD_TRY(mxd_config_int(c, "num_global_key_value_heads", 1, MXD_MAX_HEADS, hp->n_kv,
                           &k->full_n_kv, err));
    if (!k->full_k_is_v) k->full_n_kv = hp->n_kv; /* as mlx-lm reads it */
    k->full_n_heads = hp->n_heads;
    if (hp->n_heads % k->full_n_kv || k->full_head_dim % 2)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: %d heads over %d KV heads of %d values cannot be",
                        hp->n_heads, k->full_n_kv, k->full_head_dim);
    return MXD_OK;
}

static mxd_rc read_rope(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    bool there;
    hp->rope = (mxd_rope_spec){.dims = hp->kinds.full_head_dim, .theta = 10000};
    hp->rope_local = (mxd_rope_spec){.dims = hp->head_dim, .theta = 10000};
    MXD_TRY(mxd_config_bool(c, "rope_traditional", false, &hp->rope.interleaved, err));
    hp->rope_local.interleaved = hp->rope.interleaved;
    MXD_TRY(mxd_rope_read_type(&hp->rope, c, "full_attention", hp->context, 10000, &there, err));
    return mxd_rope_read_type(&hp->rope_local, c, "sliding_attention", hp->context, 10000, &there,
                              err);
}

static mxd_rc read_shared(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_kinds *k = &hp->kinds;
    bool wide;
    MXD_TRY(mxd_config_int(c, "num_kv_shared_layers", 0, hp->n_layers - 1, 0, &k->n_shared, err));
    MXD_TRY(mxd_config_bool(c, "use_double_wide_mlp", true, &wide, err));
    k->shared_intermediate = hp->intermediate * (wide ? 2 : 1);
    int last_cut = hp->n_layers;
    for (int i = hp->n_layers - k->n_shared; i < hp->n_layers; i++) {
        int source = source_of(hp, i);
        if (source < 0)
            return mxd_fail(err, MXD_E_FORMAT,
                            "config.json: layer %d reads the keys of an earlier layer, and none "
                            "before layer %d is of its type",
                            i, hp->n_layers - k->n_shared);
        if (source < last_cut) last_cut = source;
    }
    if (k->n_shared) hp->last_cut = last_cut ? last_cut : -1;
    return MXD_OK;
}

static mxd_rc read_inputs(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    mxd_hp_kinds *k = &hp->kinds;
    MXD_TRY(mxd_config_int(c, "hidden_size_per_layer_input", 0, MXD_MAX_HIDDEN, 0, &k->input, err));
    if (!k->input) return MXD_OK;
    hp->reembed = true;
    MXD_TRY(mxd_config_int(c, "vocab_size_per_layer_input", 1, MXD_MAX_VOCAB, hp->n_vocab,
                           &k->input_vocab, err));
    if (k->input_vocab >= hp->n_vocab) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT,
                    "config.json: 'vocab_size_per_layer_input' is %d, below the %d of 'vocab_size'",
                    k->input_vocab, hp->n_vocab);
}

static mxd_rc read_experts(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    bool enabled;
    mxd_hp_moe *e = &hp->moe;
    MXD_TRY(mxd_config_bool(c, "enable_moe_block", false, &enabled, err));
    if (!enabled) return MXD_OK;
    MXD_TRY(mxd_config_int(c, "num_experts", 1, MXD_MAX_EXPERTS, -1, &e->n_experts, err));
    int most = e->n_experts < MXD_MAX_TOP_K ? e->n_experts : MXD_MAX_TOP_K;
    MXD_TRY(mxd_config_int(c, "top_k_experts", 1, most, -1, &e->top_k, err));
    for (int i = 0; i < hp->n_layers; i++) e->sparse[i] = true;
    return mxd_config_int(c, "moe_intermediate_size", 1, 8 * MXD_MAX_HIDDEN, -1, &e->inner, err);
}

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    double cap;
    MXD_TRY(mxd_blocks_configure(hp, c, 131072, err));
    MXD_TRY(mxd_blocks_pattern(hp, c, 5, err));
    MXD_TRY(read_heads(hp, c, err));
    MXD_TRY(read_rope(hp, c, err));
    MXD_TRY(read_shared(hp, c, err));
    MXD_TRY(read_inputs(hp, c, err));
    MXD_TRY(read_experts(hp, c, err));
    MXD_TRY(mxd_config_real(c, "final_logit_softcapping", 0, 1e6, 0, &cap, err)); /* null: none */
    hp->logit_softcap = (float)cap;
    hp->embed_scale = sqrtf((float)hp->hidden);
    hp->attn_scale = 1;
    return MXD_OK;
}

/* --------------------------------------------------------------------------------- weights */

static mxd_decl vector(const char *path, int n) { return (mxd_decl){path, MXD_W_VECTOR, 1, n}; }

static mxd_decl linear(const char *path, int out, int in) {
    return (mxd_decl){path, MXD_W_LINEAR, out, in};
}

static mxd_decl cut(const char *path, int out, int in, mxd_decl_cut how, mxd_axis by) {
    return (mxd_decl){path, MXD_W_LINEAR, out, in, .cut = how, .by = by};
}

static void declare_attention(const mxd_hparams *hp, const kind *k, mxd_decl *out) {
    int D = hp->hidden, d = k->head_dim, q = k->n_heads * d, n = k->n_kv * d;
    mxd_axis by = k->full ? MXD_BY_FULL_KV : MXD_BY_KV;
    out[MXD_BLOCK_ATTN_NORM] = vector("input_layernorm", D);
    out[MXD_BLOCK_Q] = cut("self_attn.q_proj", q, D, MXD_CUT_ROWS, by);
    out[MXD_BLOCK_O] = cut("self_attn.o_proj", D, q, MXD_CUT_COLUMNS, by);
    out[MXD_BLOCK_O].unit = q / k->n_kv;
    out[POST_ATTN] = vector("post_attention_layernorm", D);
    out[Q_NORM] = vector("self_attn.q_norm", d);
    if (!k->shared) out[MXD_BLOCK_K] = cut("self_attn.k_proj", n, D, MXD_CUT_ROWS, by);
    if (!k->shared) out[K_NORM] = vector("self_attn.k_norm", d);
    if (k->own_v) out[MXD_BLOCK_V] = cut("self_attn.v_proj", n, D, MXD_CUT_ROWS, by);
}

static void declare_mlp(const mxd_hparams *hp, const kind *k, mxd_decl *out) {
    int D = hp->hidden, F = k->inner;
    mxd_axis by = k->shared ? MXD_BY_WIDE_INNER : MXD_BY_INNER;
    out[MXD_BLOCK_MLP_NORM] = vector("pre_feedforward_layernorm", D);
    out[MXD_BLOCK_GATE] = cut("mlp.gate_proj", F, D, MXD_CUT_ROWS, by);
    out[MXD_BLOCK_UP] = cut("mlp.up_proj", F, D, MXD_CUT_ROWS, by);
    out[MXD_BLOCK_DOWN] = cut("mlp.down_proj", D, F, MXD_CUT_COLUMNS, by);
    out[POST_MLP] = vector("post_feedforward_layernorm", D);
    out[SCALAR] = vector("layer_scalar", 1);
    out[SCALAR].param = true;
}

static void declare_input(const mxd_hparams *hp, int layer, mxd_decl *out) {
    int D = hp->hidden, P = hp->kinds.input, all = hp->n_layers * P, at = layer * P;
    out[IN_TABLE] = (mxd_decl){"embed_tokens_per_layer",
                               MXD_W_LOOKUP,
                               hp->kinds.input_vocab,
                               P,
                               .col0 = at,
                               .whole_in = all,
                               .global = true,
                               .cut = MXD_CUT_GATHERED,
                               .by = MXD_BY_TOKEN};
    out[IN_PROJ] = (mxd_decl){
        "per_layer_model_projection", MXD_W_LINEAR, P, D, .row0 = at, .whole = all, .global = true};
    out[IN_NORM] = vector("per_layer_projection_norm", P);
    out[IN_NORM].global = true;
    out[IN_GATE] = linear("per_layer_input_gate", P, D);
    out[IN_OUT] = linear("per_layer_projection", D, P);
    out[IN_POST] = vector("post_per_layer_input_norm", D);
}

static void declare_experts(const mxd_hparams *hp, mxd_decl *out) {
    int D = hp->hidden, F = hp->moe.inner, E = hp->moe.n_experts;
    out[ROUTER_NORM] = vector("router.scale", D);
    out[ROUTER_NORM].param = true;
    out[ROUTER] = (mxd_decl){"router.proj", MXD_W_LINEAR | MXD_W_EXACT, E, D};
    out[EXPERT_SCALE] = vector("router.per_expert_scale", E);
    out[EXPERT_SCALE].param = true;
    const mxd_decl_cut whole = MXD_CUT_EXPERTS;
    out[EXPERT_GATE] = cut("experts.switch_glu.gate_proj", F, D, whole, MXD_BY_EXPERT);
    out[EXPERT_UP] = cut("experts.switch_glu.up_proj", F, D, whole, MXD_BY_EXPERT);
    out[EXPERT_DOWN] = cut("experts.switch_glu.down_proj", D, F, whole, MXD_BY_EXPERT);
    out[EXPERT_GATE].experts = out[EXPERT_UP].experts = out[EXPERT_DOWN].experts = E;
    out[DENSE_POST] = vector("post_feedforward_layernorm_1", D);
    out[EXPERT_NORM] = vector("pre_feedforward_layernorm_2", D);
    out[EXPERT_POST] = vector("post_feedforward_layernorm_2", D);
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    kind k = kind_of(hp, layer);
    memset(out, 0, N_WEIGHTS * sizeof *out);
    declare_attention(hp, &k, out);
    declare_mlp(hp, &k, out);
    if (hp->kinds.input) declare_input(hp, layer, out);
    if (hp->moe.n_experts) declare_experts(hp, out);
    return N_WEIGHTS;
}

/* K and V that nobody reads. */
static bool ignores(const mxd_hparams *hp, int layer, const char *name) {
    static const char *const parts[] = {"self_attn.k_proj.", "self_attn.v_proj.",
                                        "self_attn.k_norm."};
    for (size_t i = 0; kind_of(hp, layer).shared && i < MXD_COUNT(parts); i++)
        if (strncmp(name, parts[i], strlen(parts[i])) == 0) return true;
    return false;
}

static void registers(const mxd_hparams *hp, mxd_regs *r) {
    const mxd_hp_kinds *k = &hp->kinds;
    mxd_blocks_registers(hp, r);
    r->n = N_REGS;
    for (int i = MXD_BLOCK_REGS; i < N_REGS; i++) r->width[i] = 1; /* not used by every model */
    r->width[FULL_Q] = r->width[FULL_ATTN] = k->full_n_heads * k->full_head_dim;
    r->width[FULL_K] = r->width[FULL_V] = k->full_n_kv * k->full_head_dim;
    if (k->n_shared) r->width[SHARED_INNER] = r->width[SHARED_UPPED] = k->shared_intermediate;
    if (k->input) r->width[EMBEDDED] = hp->hidden;
    if (k->input) r->width[INPUT] = r->width[IN_INNER] = k->input;
    if (hp->moe.n_experts) r->width[LOGITS] = hp->moe.n_experts;
    if (hp->moe.n_experts) r->width[EXPERTS] = hp->hidden;
}

/* -------------------------------------------------------------------------- the forward pass */

static void one(const mxd_model *m, int dst, int src, const mxd_weight *w) {
    m->backend->ops->linear(m->backend, 1, &dst, src, &w);
}

static void start(const mxd_model *m) {
    if (m->hp.kinds.input) mxd_model_embed(m, EMBEDDED);
}

/* K and V of the rows go to the pages. */
static void keep(const mxd_model *m, int i, const kind *k, const mxd_rope *rope) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    int rk = k->full ? FULL_K : K, rv = k->full ? FULL_V : V;
    one(m, rk, H, w[MXD_BLOCK_K]); /* [T, G d] */
    if (k->own_v) one(m, rv, H, w[MXD_BLOCK_V]);
    op->unit_norm(b, rv, k->own_v ? rv : rk, k->head_dim, m->hp.eps);
    op->norm(b, rk, rk, w[K_NORM], m->hp.eps);
    op->rope(b, rk, k->n_kv, k->head_dim, rope);
    op->kv_append(b, i, rk, rv);
}

/* The heads of this rank, from H. */
static void attend(const mxd_model *m, int i, const kind *k, int dst) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    const mxd_rope *rope = k->full ? &m->rope : &m->rope_local;
    int rq = k->full ? FULL_Q : Q;
    const mxd_attention a = {.n_heads = k->n_heads,
                             .n_kv = k->n_kv,
                             .head_dim = k->head_dim,
                             .scale = m->attn_scale,
                             .window = k->full ? 0 : m->hp.window};
    if (!k->shared) keep(m, i, k, rope);
    one(m, rq, H, w[MXD_BLOCK_Q]); /* [T, H d] */
    op->norm(b, rq, rq, w[Q_NORM], m->hp.eps);
    op->rope(b, rq, k->n_heads, k->head_dim, rope);
    op->attend(b, source_of(&m->hp, m->layer0 + i) - m->layer0, dst, rq, &a);
}

static void attention(const mxd_model *m, int i, const kind *k) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    int heads = k->full ? FULL_ATTN : ATTN;
    op->norm(b, H, X, w[MXD_BLOCK_ATTN_NORM], m->hp.eps);
    if (k->n_kv) attend(m, i, k, heads); /* else other ranks have them */
    mxd_blocks_project(m, H, heads, w[MXD_BLOCK_O]);
    op->norm(b, H, H, w[POST_ATTN], m->hp.eps);
    op->add(b, X, H);
}

/* H = norm(H) + norm(experts(norm(X))), the router having a norm of its own. */
static void add_experts(const mxd_model *m, mxd_weight *const *w) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    const mxd_moe how = {.gate = w[EXPERT_GATE],
                         .up = w[EXPERT_UP],
                         .down = w[EXPERT_DOWN],
                         .n_experts = m->hp.moe.n_experts,
                         .top_k = m->hp.moe.top_k,
                         .router = MXD_ROUTE_TOPK_SOFTMAX,
                         .expert_scale = w[EXPERT_SCALE],
                         .act = MXD_GELU_TANH};
    op->norm(b, H, H, w[DENSE_POST], m->hp.eps);
    op->norm(b, EXPERTS, X, w[ROUTER_NORM], m->hp.eps);
    op->scale(b, EXPERTS, 1 / sqrtf((float)m->hp.hidden));
    one(m, LOGITS, EXPERTS, w[ROUTER]); /* [T, E] */
    op->norm(b, EXPERTS, X, w[EXPERT_NORM], m->hp.eps);
    op->moe(b, EXPERTS, EXPERTS, LOGITS, &how); /* [T, D] */
    op->norm(b, EXPERTS, EXPERTS, w[EXPERT_POST], m->hp.eps);
    op->add(b, H, EXPERTS);
}

static void mlp(const mxd_model *m, int i, const kind *k) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    mxd_weight *const *w = m->layers[i].w;
    int inner = k->shared ? SHARED_INNER : INNER, upped = k->shared ? SHARED_UPPED : UPPED;
    op->norm(b, H, X, w[MXD_BLOCK_MLP_NORM], m->hp.eps);
    if (k->inner) {
        op->linear(b, 2, (const int[]){inner, upped}, H, /* 2 x [T, F] */
                   (const mxd_weight *const[]){w[MXD_BLOCK_GATE], w[MXD_BLOCK_UP]});
        op->gated(b, inner, inner, upped, MXD_GELU_TANH);
    }
    mxd_blocks_project(m, H, inner, w[MXD_BLOCK_DOWN]);
    if (m->hp.moe.n_experts) add_experts(m, w);
    op->norm(b, H, H, w[POST_MLP], m->hp.eps);
    op->add(b, X, H);
}

/* X += norm(out(gelu(gate(X)) * input)), input = (norm(proj(e) / sqrt(D)) + table * sqrt(P)) /
 * sqrt(2) with e the scaled embedding. */
static void own_input(const mxd_model *m, mxd_weight *const *w) {
    const mxd_backend_ops *op = m->backend->ops;
    mxd_backend *b = m->backend;
    op->embed(b, INPUT, w[IN_TABLE]); /* [T, P] */
    op->scale(b, INPUT, sqrtf((float)m->hp.kinds.input));
    one(m, IN_INNER, EMBEDDED, w[IN_PROJ]);
    op->scale(b, IN_INNER, 1 / sqrtf((float)m->hp.hidden));
    op->norm(b, IN_INNER, IN_INNER, w[IN_NORM], m->hp.eps);
    op->add(b, INPUT, IN_INNER);
    op->scale(b, INPUT, 0.70710678118654752440f);
    one(m, IN_INNER, X, w[IN_GATE]);
    op->gated(b, IN_INNER, IN_INNER, INPUT, MXD_GELU_TANH);
    one(m, H, IN_INNER, w[IN_OUT]); /* [T, D] */
    op->norm(b, H, H, w[IN_POST], m->hp.eps);
    op->add(b, X, H);
}

static void layer(const mxd_model *m, int i) {
    kind k = kind_of(&m->local, m->layer0 + i);
    attention(m, i, &k);
    mlp(m, i, &k);
    if (m->hp.kinds.input) own_input(m, m->layers[i].w);
    m->backend->ops->scale_by(m->backend, X, m->layers[i].w[SCALAR]);
}

const mxd_family mxd_family_gemma4_text = {
    .model_type = "gemma4_text",
    .configure = configure,
    .declare = declare,
    .registers = registers,
    .layer = layer,
    .kv = kv,
    .ignores = ignores,
    .start = start,
    .defaults = "{\"hidden_size\": 1536, \"num_hidden_layers\": 35, \"intermediate_size\": 6144, "
                "\"num_attention_heads\": 8, \"num_key_value_heads\": 1, \"head_dim\": 256, "
                "\"global_head_dim\": 512, \"vocab_size\": 262144, "
                "\"vocab_size_per_layer_input\": 262144, \"hidden_size_per_layer_input\": 256, "
                "\"num_kv_shared_layers\": 20, \"sliding_window\": 512, "
                "\"final_logit_softcapping\": 30.0, \"rope_parameters\": {"
                "\"full_attention\": {\"rope_type\": \"proportional\", \"rope_theta\": 1000000.0, "
                "\"partial_rotary_factor\": 0.25}, "
                "\"sliding_attention\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0}}}",
};
