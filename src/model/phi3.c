/* phi3.c - Phi 3, 3.5 and 4: the common layer with fused projections (q, k, v in one matrix, gate
 * and up in another) and RoPE on a part of each head. Source: mlx-lm's model of the name. */
#include "model/blocks.h"

static mxd_rc configure(mxd_hparams *hp, const json_t *c, mxd_err *err) {
    MXD_TRY(mxd_blocks_configure(hp, c, 131072, err));
    MXD_TRY(mxd_blocks_partial_rope(hp, c, err));
    MXD_TRY(mxd_config_bool(c, "rope_traditional", false, &hp->rope.interleaved, err));
    MXD_TRY(mxd_rope_read(&hp->rope, c, hp->context, 10000, err));
    if (hp->rope.kind == MXD_ROPE_LONGROPE) hp->rope.interleaved = false;
    return MXD_OK;
}

/* out[i] becomes rows [row0, row0 + its own) of the matrix `path`. */
static void part_of(mxd_decl *out, const char *path, int row0, int whole) {
    out->path = path;
    out->row0 = row0;
    out->whole = whole;
}

static int declare(const mxd_hparams *hp, int layer, mxd_decl *out) {
    (void)layer;
    int n = mxd_blocks_declare(hp, out), F = hp->intermediate;
    int q = hp->n_heads * hp->head_dim, kv = hp->n_kv * hp->head_dim;
    part_of(&out[MXD_BLOCK_Q], "self_attn.qkv_proj", 0, q + 2 * kv);
    part_of(&out[MXD_BLOCK_K], "self_attn.qkv_proj", q, q + 2 * kv);
    part_of(&out[MXD_BLOCK_V], "self_attn.qkv_proj", q + kv, q + 2 * kv);
    part_of(&out[MXD_BLOCK_GATE], "mlp.gate_up_proj", 0, 2 * F);
    part_of(&out[MXD_BLOCK_UP], "mlp.gate_up_proj", F, 2 * F);
    return n;
}

static void layer(const mxd_model *m, int i) {
    mxd_blocks_attention(m, i, NULL);
    mxd_blocks_mlp(m, i);
}

const mxd_family mxd_family_phi3 = {
    .model_type = "phi3",
    .configure = configure,
    .declare = declare,
    .registers = mxd_blocks_registers,
    .layer = layer,
};
