/* shares.c - cuts a model over a tensor-parallel group: who holds which heads, inner values,
 * experts and token ids, and what of a weight that is. */
#include <math.h>
#include "model/tensors.h"

enum { VOCAB_STEP = 16 }; /* token ids stay together by so many: a tile of rows */

/* ---------------------------------------------------------------------------------------- axes */

int mxd_axis_count(const mxd_hparams *hp, mxd_axis by) {
    switch (by) {
    case MXD_BY_KV:
        return hp->mla.kv_rank ? hp->n_heads : hp->n_kv;
    case MXD_BY_FULL_KV:
        return hp->kinds.full_n_kv;
    case MXD_BY_INNER:
        return hp->intermediate;
    case MXD_BY_WIDE_INNER:
        return hp->kinds.shared_intermediate;
    case MXD_BY_SHARED_INNER:
        return hp->moe.shared_inner;
    case MXD_BY_KEY:
        return hp->delta.n_k;
    case MXD_BY_EXPERT:
        return hp->moe.n_experts;
    case MXD_BY_TOKEN:
        return hp->n_vocab;
    case MXD_AXES:
        break;
    }
    return 0;
}

const int *mxd_axis_edges(const mxd_shares *s, mxd_axis by) {
    const int *const lists[MXD_AXES] = {
        [MXD_BY_KV] = s->kv,
        [MXD_BY_FULL_KV] = s->full_kv,
        [MXD_BY_INNER] = s->inner,
        [MXD_BY_WIDE_INNER] = s->wide_inner,
        [MXD_BY_SHARED_INNER] = s->shared_inner,
        [MXD_BY_KEY] = s->keys,
        [MXD_BY_EXPERT] = s->experts,
        [MXD_BY_TOKEN] = s->vocab,
    };
    return lists[by];
}

static int share_of(const mxd_shares *s, mxd_axis by, int rank) {
    const int *edge = mxd_axis_edges(s, by);
    return edge[rank + 1] - edge[rank];
}

void mxd_local_hparams(const mxd_model *m, const mxd_shares *s, int rank, mxd_hparams *out) {
    const mxd_hparams *hp = &m->hp;
    *out = *hp;
    int kv = share_of(s, MXD_BY_KV, rank), full = share_of(s, MXD_BY_FULL_KV, rank);
    if (hp->mla.kv_rank) {
        out->n_heads = kv;
        out->n_kv = kv > 0; /* the latent, whole */
    } else {
        out->n_heads = hp->n_heads / hp->n_kv * kv;
        out->n_kv = kv;
    }
    if (hp->kinds.full_n_kv) out->kinds.full_n_heads = hp->n_heads / hp->kinds.full_n_kv * full;
    out->kinds.full_n_kv = full;
    out->n_vocab = share_of(s, MXD_BY_TOKEN, rank);
    out->intermediate = share_of(s, MXD_BY_INNER, rank);
    out->kinds.shared_intermediate = share_of(s, MXD_BY_WIDE_INNER, rank);
    out->moe.shared_inner = share_of(s, MXD_BY_SHARED_INNER, rank);
    out->delta.n_k = share_of(s, MXD_BY_KEY, rank);
    if (hp->delta.n_k) out->delta.n_v = hp->delta.n_v / hp->delta.n_k * out->delta.n_k;
}

/* -------------------------------------------------------------------------------------- shares */

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

/* Things of an axis that stay together: those of a block, in every layer. */
mxd_rc mxd_axis_steps(const mxd_model *m, int step[MXD_AXES], mxd_err *err) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    for (int a = 0; a < MXD_AXES; a++) step[a] = 1;
    step[MXD_BY_TOKEN] = VOCAB_STEP;
    for (int l = 0; l < m->hp.n_layers; l++) {
        int n = mxd_declare(m, l, decls);
        for (int i = 0; i < n; i++) {
            char path[256];
            mxd_weight_src src;
            const mxd_decl *d = &decls[i];
            if (!d->path || d->cut != MXD_CUT_COLUMNS) continue;
            MXD_TRY(mxd_source(m, d, l, path, &src, err));
            int all = mxd_axis_count(&m->hp, d->by), each = d->in / all;
            step[d->by] = common(step[d->by], src.block_k / gcd(src.block_k, each), all);
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

static mxd_rc cut_all(const int count[MXD_AXES], const int step[MXD_AXES], int size,
                      const double *weight, mxd_shares *out, mxd_err *err) {
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
    for (int a = 0; a < MXD_AXES; a++)
        cut_by((int *)mxd_axis_edges(out, (mxd_axis)a), count[a], step[a], size, weight, total);
    return MXD_OK;
}

mxd_rc mxd_cuts_share(const mxd_model_cuts *c, int size, const double *weight, mxd_shares *out,
                      mxd_err *err) {
    if (!c->possible)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the layers of this model cannot be cut over several nodes: give each node "
                        "whole layers instead");
    return cut_all(c->count, c->step, size, weight, out, err);
}

mxd_rc mxd_model_share(const mxd_model *m, int size, const double *weight, mxd_shares *out,
                       mxd_err *err) {
    int step[MXD_AXES], count[MXD_AXES];
    MXD_TRY(mxd_axis_steps(m, step, err));
    for (int a = 0; a < MXD_AXES; a++) count[a] = mxd_axis_count(&m->hp, (mxd_axis)a);
    return cut_all(count, step, size, weight, out, err);
}

/* ---------------------------------------------------------------------------- a rank's weights */

typedef struct share { /* of one weight */
    const mxd_decl *d;
    const int *edge;
    int all, rank, size;
} share;

static void take_sections(const share *s, mxd_weight_src *src) {
    int at = s->d->row0;
    src->n_strips = 0;
    for (int i = 0; i < MXD_MAX_STRIPS && s->d->sections[i]; at += s->d->sections[i++]) {
        int each = s->d->sections[i] / s->all;
        src->strip[src->n_strips++] = (mxd_strip){at + s->edge[s->rank] * each,
                                                  (s->edge[s->rank + 1] - s->edge[s->rank]) * each};
    }
}

static void take_rows(const share *s, mxd_weight_src *src) {
    const mxd_decl *d = s->d;
    bool vector = d->use & MXD_W_VECTOR;
    int each = (vector ? d->in : d->out) / s->all;
    int first = s->edge[s->rank] * each, n = s->edge[s->rank + 1] * each - first;
    if (d->sections[0]) {
        take_sections(s, src);
    } else if (vector) {
        src->col0 = first;
        src->cols = n;
    } else {
        src->row0 = d->row0 + first;
        src->rows = n;
    }
}

static void take_cut(const share *s, int of, mxd_cut_along along, mxd_weight_src *src,
                     mxd_cut *cut) {
    *cut = (mxd_cut){.rank = s->rank, .size = s->size, .along = along};
    for (int r = 0; r < s->size; r++) cut->edge[r] = s->edge[r] * (of / s->all);
    cut->edge[s->size] = of; /* a table may have more rows than there are tokens */
    src->cut = cut;
}

mxd_rc mxd_share_source(const mxd_model *m, const mxd_decl *d, int layer, const mxd_shares *shares,
                        int rank, char path[256], mxd_weight_src *src, mxd_cut *cut, bool *none,
                        mxd_err *err) {
    *none = false;
    MXD_TRY(mxd_source(m, d, layer, path, src, err));
    if (!shares) return MXD_OK;
    const share s = {d, mxd_axis_edges(shares, d->by), mxd_axis_count(&m->hp, d->by), rank,
                     shares->size};
    int mine = s.edge[rank + 1] - s.edge[rank];
    switch (d->cut) {
    case MXD_CUT_NONE:
        break;
    case MXD_CUT_ROWS:
        take_rows(&s, src);
        *none = !mine;
        break;
    case MXD_CUT_COLUMNS:
        take_cut(&s, d->in, MXD_ALONG_IN, src, cut);
        break;
    case MXD_CUT_GATHERED:
        take_cut(&s, d->out, MXD_ALONG_OUT, src, cut);
        break;
    case MXD_CUT_MATRICES:
        src->matrix0 = s.edge[rank];
        src->matrices = mine;
        *none = !mine;
        break;
    case MXD_CUT_EXPERTS:
        take_cut(&s, d->experts, MXD_ALONG_EXPERTS, src, cut);
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
    return none ? 0 : mxd_source_bytes(m, &src);
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
