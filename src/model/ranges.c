/* ranges.c - which bytes of the files a part of a model is made of. Mirrors the loading in run.c.
 */
#include "model/tensors.h"

typedef struct wanted {
    const mxd_model *m;
    const mxd_shares *shares;
    int rank;
    mxd_range_fn range;
    void *ctx;
} wanted;

/* The parts [at, at + n) of `of` equal ones. */
static mxd_rc want_part(const wanted *w, const mxd_st_tensor *t, int of, int at, int n,
                        mxd_err *err) {
    uint64_t each = t->bytes / (uint64_t)of;
    if (each * (uint64_t)of != t->bytes) return w->range(w->ctx, t, 0, t->bytes, err);
    return n > 0 ? w->range(w->ctx, t, each * (uint64_t)at, each * (uint64_t)n, err) : MXD_OK;
}

/* Of matrices one behind the other: those that are asked for, each whole. */
static mxd_rc want_matrices(const wanted *w, const mxd_weight_src *s, const mxd_st_tensor *t,
                            mxd_err *err) {
    if (s->matrices) return want_part(w, t, s->experts, s->matrix0, s->matrices, err);
    if (!s->cut || s->cut->along != MXD_ALONG_EXPERTS) return w->range(w->ctx, t, 0, t->bytes, err);
    const int *edge = &s->cut->edge[s->cut->rank];
    return want_part(w, t, s->experts, edge[0], edge[1] - edge[0], err);
}

/* Of a plain matrix: its rows. A part along columns is a part of every row. */
static mxd_rc want_tensor(const wanted *w, const mxd_weight_src *s, const mxd_st_tensor *t,
                          mxd_err *err) {
    if (s->experts) return want_matrices(w, s, t, err);
    if (s->use & MXD_W_VECTOR || s->transposed) return w->range(w->ctx, t, 0, t->bytes, err);
    for (int i = 0; i < s->n_strips; i++)
        MXD_TRY(want_part(w, t, s->out, s->strip[i].row0, s->strip[i].rows, err));
    if (s->n_strips) return MXD_OK;
    if (s->rows) return want_part(w, t, s->out, s->row0, s->rows, err);
    if (!s->cut || s->cut->along != MXD_ALONG_OUT) return w->range(w->ctx, t, 0, t->bytes, err);
    const int *edge = &s->cut->edge[s->cut->rank];
    return want_part(w, t, s->out, edge[0], edge[1] - edge[0], err);
}

static mxd_rc want_one(const wanted *w, const mxd_decl *d, int layer, mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    mxd_cut cut;
    bool none = false;
    MXD_TRY(mxd_share_source(w->m, d, layer, w->shares, w->rank, path, &src, &cut, &none, err));
    if (none) return MXD_OK;
    const mxd_st_tensor *all[] = {src.weight, src.scales, src.biases};
    for (size_t i = 0; i < MXD_COUNT(all); i++)
        if (all[i]) MXD_TRY(want_tensor(w, &src, all[i], err));
    /* small, and every rank may hold all of it */
    return src.bias ? w->range(w->ctx, src.bias, 0, src.bias->bytes, err) : MXD_OK;
}

static mxd_rc want_ends(const wanted *w, int layer0, int layer1, mxd_err *err) {
    const mxd_model *m = w->m;
    bool last = layer1 == m->hp.n_layers;
    mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m), head = mxd_head_decl(m);
    if (layer0 == 0 || m->hp.reembed || (last && m->hp.tied)) MXD_TRY(want_one(w, &embed, -1, err));
    if (!last) return MXD_OK;
    MXD_TRY(want_one(w, &norm, -1, err));
    return m->hp.tied ? MXD_OK : want_one(w, &head, -1, err);
}

mxd_rc mxd_model_ranges(const mxd_model *m, int layer0, int layer1, const mxd_shares *shares,
                        int rank, mxd_range_fn range, void *ctx, mxd_err *err) {
    MXD_ASSERT(layer0 >= 0 && layer0 < layer1 && layer1 <= m->hp.n_layers);
    wanted w = {m, shares, rank, range, ctx};
    for (int i = layer0; i < layer1; i++) {
        mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
        int n = mxd_declare(m, i, decls);
        for (int d = 0; d < n; d++)
            if (decls[d].path) MXD_TRY(want_one(&w, &decls[d], i, err));
    }
    return want_ends(&w, layer0, layer1, err);
}
