/* shares.c - cuts a model over a tensor-parallel group: who holds which heads, inner values and
 * token ids, and what of a weight that is. */
#include <math.h>
#include "model/tensors.h"

enum { VOCAB_STEP = 16 }; /* token ids stay together by so many: a tile of rows */

static int gcd(int a, int b) {
    while (b) {
        int r = a % b;
        a = b;
        b = r;
    }
    return a;
}

/* The least common multiple, or `most` where it is not below. */
static int common(int a, int b, int most) {
    int64_t n = (int64_t)a / gcd(a, b) * b;
    return n < most ? (int)n : most;
}

/* KV heads, and inner values, that stay together: those of a block, in every layer. */
static mxd_rc find_steps(const mxd_model *m, int *kv, int *inner, mxd_err *err) {
    const mxd_hparams *hp = &m->hp;
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    *kv = *inner = 1;
    for (int l = 0; l < hp->n_layers; l++) {
        int n = mxd_declare(m, l, decls);
        for (int i = 0; i < n; i++) {
            char path[256];
            mxd_weight_src src;
            const mxd_decl *d = &decls[i];
            if (d->cut != MXD_CUT_KV_IN && d->cut != MXD_CUT_INNER_IN) continue;
            MXD_TRY(mxd_source(m, d, l, path, &src, err));
            if (d->cut == MXD_CUT_INNER_IN) *inner = common(*inner, src.block_k, d->in);
            int head = d->in / hp->n_kv, whole = src.block_k / gcd(src.block_k, head);
            if (d->cut == MXD_CUT_KV_IN) *kv = common(*kv, whole, hp->n_kv);
        }
    }
    return MXD_OK;
}

/* `all` things in steps, by weights: each edge is the step nearest to where it should be. */
static void cut_by(int edge[MXD_MAX_RANKS + 1], int all, int step, int size, const double *weight,
                   double total) {
    double sum = 0;
    int n_steps = (all + step - 1) / step;
    edge[0] = 0;
    for (int r = 0; r < size; r++) {
        sum += weight ? weight[r] : 1;
        int at = (int)floor(n_steps * (sum / total) + 0.5) * step;
        edge[r + 1] = r + 1 < size && at < all ? at : all;
    }
}

mxd_rc mxd_cuts_share(const mxd_model_cuts *c, int size, const double *weight, mxd_shares *out,
                      mxd_err *err) {
    if (!c->possible)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the layers of this model cannot be cut over several nodes: give each node "
                        "whole layers instead");
    if (size < 1 || size > MXD_MAX_RANKS)
        return mxd_fail(err, MXD_E_INVAL, "layers cut over %d nodes: must be 1 to %d", size,
                        MXD_MAX_RANKS);
    double total = 0;
    for (int r = 0; r < size; r++) {
        double w = weight ? weight[r] : 1;
        if (!(w >= 0 && w < 1e18)) total = -INFINITY;
        total += w;
    }
    if (!(total > 0))
        return mxd_fail(err, MXD_E_INVAL,
                        "shares of %d nodes: must be numbers of 0 or more, not "
                        "all 0",
                        size);
    *out = (mxd_shares){.size = size};
    cut_by(out->kv, c->n_kv, c->kv_step, size, weight, total);
    cut_by(out->inner, c->inner, c->inner_step, size, weight, total);
    cut_by(out->experts, c->n_experts, 1, size, weight, total);
    cut_by(out->vocab, c->n_vocab, VOCAB_STEP, size, weight, total);
    return MXD_OK;
}

static mxd_rc fill_units(const mxd_model *m, mxd_model_cuts *c, mxd_err *err) {
    c->possible = true;
    c->n_kv = m->hp.n_kv;
    c->inner = m->hp.intermediate;
    c->n_experts = m->hp.moe.n_experts;
    c->n_vocab = m->hp.n_vocab;
    return find_steps(m, &c->kv_step, &c->inner_step, err);
}

mxd_rc mxd_model_share(const mxd_model *m, int size, const double *weight, mxd_shares *out,
                       mxd_err *err) {
    if (!m->family->cuts)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the layers of '%s' cannot be cut over several nodes: give each node whole "
                        "layers instead",
                        m->hp.model_type);
    mxd_model_cuts *c = MXD_NEW(m->al, 1, mxd_model_cuts);
    if (!c) return mxd_fail(err, MXD_E_NOMEM, "shares");
    mxd_rc rc = fill_units(m, c, err);
    if (!rc) rc = mxd_cuts_share(c, size, weight, out, err);
    mxd_free(m->al, c);
    return rc;
}

/* ------------------------------------------------------------------------- sizes of shares */

/* Of one unit, as mxd_source_bytes counts a part. */
static void add_decl(const mxd_model *m, const mxd_decl *d, int l, mxd_model_cuts *c) {
    char path[256];
    mxd_weight_src src;
    MXD_ASSERT(mxd_source(m, d, l, path, &src, NULL) == MXD_OK);
    if (d->cut == MXD_CUT_NONE) {
        c->whole[l] += mxd_source_bytes(&src);
        return;
    }
    uint64_t all = src.weight->bytes + (src.scales ? src.scales->bytes : 0) +
                   (src.biases ? src.biases->bytes : 0) + (src.bias ? src.bias->bytes : 0);
    uint64_t row = all / (uint64_t)src.out, column = all / (uint64_t)src.in;
    bool vector = d->use & MXD_W_VECTOR;
    switch (d->cut) {
    case MXD_CUT_KV:
        c->per_kv[l] += vector ? column * (uint64_t)(d->in / m->hp.n_kv)
                               : row * (uint64_t)(d->out / m->hp.n_kv);
        break;
    case MXD_CUT_INNER:
        c->per_inner[l] += row;
        break;
    case MXD_CUT_KV_IN:
        c->per_kv[l] += column * (uint64_t)(d->in / m->hp.n_kv);
        c->sum_kv[l] = true;
        c->kv_in = d->in;
        c->kv_block = src.block_k;
        break;
    case MXD_CUT_INNER_IN:
        c->per_inner[l] += column;
        c->sum_inner[l] = true;
        c->inner_block = src.block_k;
        break;
    case MXD_CUT_EXPERTS:
        c->per_expert[l] += all / (uint64_t)src.experts;
        c->experts[l] = true;
        break;
    default:
        break;
    }
}

void mxd_cuts_of(const mxd_model *m, mxd_model_cuts *c) {
    *c = (mxd_model_cuts){0};
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    /* every source was checked when the model was opened */
    if (!m->family->cuts || fill_units(m, c, NULL) != MXD_OK) return;
    for (int l = 0; l < m->hp.n_layers; l++) {
        int n = mxd_declare(m, l, decls);
        for (int i = 0; i < n; i++)
            if (decls[i].path) add_decl(m, &decls[i], l, c);
    }
    const mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m), head = mxd_head_decl(m);
    uint64_t bytes[3] = {0};
    size_t n = 0;
    MXD_ASSERT(mxd_decl_bytes(m, &embed, -1, &bytes[0], &n, NULL) == MXD_OK);
    MXD_ASSERT(mxd_decl_bytes(m, &norm, -1, &bytes[1], &n, NULL) == MXD_OK);
    if (!m->hp.tied) MXD_ASSERT(mxd_decl_bytes(m, &head, -1, &bytes[2], &n, NULL) == MXD_OK);
    c->embed_per_id = bytes[0] / (uint64_t)m->hp.n_vocab;
    c->norm_bytes = bytes[1];
    c->head_per_id = bytes[2] / (uint64_t)m->hp.n_vocab;
}

/* Rows from edge[rank] in things of `each` rows. */
static void take_rows(const mxd_decl *d, const int *edge, int each, int rank, mxd_weight_src *src,
                      bool *none) {
    src->row0 = d->row0 + edge[rank] * each;
    src->rows = (edge[rank + 1] - edge[rank]) * each;
    *none = src->rows == 0;
}

static void take_heads(const mxd_decl *d, const int *edge, int n_kv, int rank, mxd_weight_src *src,
                       bool *none) {
    if (!(d->use & MXD_W_VECTOR)) {
        take_rows(d, edge, d->out / n_kv, rank, src, none);
        return;
    }
    src->col0 = edge[rank] * (d->in / n_kv);
    src->cols = (edge[rank + 1] - edge[rank]) * (d->in / n_kv);
    *none = src->cols == 0;
}

static void take_cut(mxd_weight_src *src, mxd_cut *cut, mxd_cut_along along, const int *edge,
                     int each, int size, int rank) {
    *cut = (mxd_cut){.rank = rank, .size = size, .along = along};
    for (int r = 0; r <= size; r++) cut->edge[r] = edge[r] * each;
    src->cut = cut;
}

mxd_rc mxd_share_source(const mxd_model *m, const mxd_decl *d, int layer, const mxd_shares *shares,
                        int rank, char path[256], mxd_weight_src *src, mxd_cut *cut, bool *none,
                        mxd_err *err) {
    *none = false;
    MXD_TRY(mxd_source(m, d, layer, path, src, err));
    switch (d->cut) {
    case MXD_CUT_NONE:
        break;
    case MXD_CUT_KV:
        take_heads(d, shares->kv, m->hp.n_kv, rank, src, none);
        break;
    case MXD_CUT_INNER:
        take_rows(d, shares->inner, 1, rank, src, none);
        break;
    case MXD_CUT_KV_IN:
        take_cut(src, cut, MXD_ALONG_IN, shares->kv, d->in / m->hp.n_kv, shares->size, rank);
        break;
    case MXD_CUT_INNER_IN:
        take_cut(src, cut, MXD_ALONG_IN, shares->inner, 1, shares->size, rank);
        break;
    case MXD_CUT_EXPERTS:
        take_cut(src, cut, MXD_ALONG_EXPERTS, shares->experts, 1, shares->size, rank);
        break;
    case MXD_CUT_VOCABULARY:
        take_cut(src, cut, MXD_ALONG_OUT, shares->vocab, 1, shares->size, rank);
        break;
    }
    return MXD_OK;
}

static uint64_t bytes_of(const mxd_model *m, const mxd_decl *d, int layer, const mxd_shares *shares,
                         int rank) {
    char path[256];
    mxd_weight_src src;
    mxd_cut cut;
    bool none;
    /* every source was checked when the model was opened */
    MXD_ASSERT(mxd_share_source(m, d, layer, shares, rank, path, &src, &cut, &none, NULL) ==
               MXD_OK);
    return none ? 0 : mxd_source_bytes(&src);
}

uint64_t mxd_model_share_bytes(const mxd_model *m, const mxd_shares *shares, int rank, int layer) {
    uint64_t sum = 0;
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = 0;
    MXD_ASSERT(rank >= 0 && rank < shares->size && layer >= 0 && layer <= m->hp.n_layers);
    if (layer < m->hp.n_layers) {
        n = mxd_declare(m, layer, decls);
    } else {
        decls[n++] = mxd_embed_decl(m);
        decls[n++] = mxd_norm_decl(m);
        if (!m->hp.tied) decls[n++] = mxd_head_decl(m);
        layer = -1;
    }
    for (int i = 0; i < n; i++)
        if (decls[i].path) sum += bytes_of(m, &decls[i], layer, shares, rank);
    return sum;
}
