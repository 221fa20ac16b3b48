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

/* The rows of a plain matrix that are asked for; all of them where parts do not lie together. */
static void rows_of(const mxd_weight_src *s, int *row0, int *row1) {
    *row0 = 0;
    *row1 = s->out;
    if (s->use & MXD_W_VECTOR || s->experts || s->transposed) return;
    if (s->rows) {
        *row0 = s->row0;
        *row1 = s->row0 + s->rows;
    }
    if (!s->cut || s->cut->along != MXD_ALONG_OUT) return;
    *row0 = s->cut->edge[s->cut->rank];
    *row1 = s->cut->edge[s->cut->rank + 1];
}

static mxd_rc want_rows(const wanted *w, const mxd_st_tensor *t, int out, int row0, int row1,
                        mxd_err *err) {
    uint64_t row = t->bytes / (uint64_t)out;
    if (row * (uint64_t)out != t->bytes) return w->range(w->ctx, t, 0, t->bytes, err);
    if (row1 <= row0) return MXD_OK;
    return w->range(w->ctx, t, row * (uint64_t)row0, row * (uint64_t)(row1 - row0), err);
}

static mxd_rc want_one(const wanted *w, const mxd_decl *d, int layer, mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    mxd_cut cut;
    bool none = false;
    if (w->shares)
        MXD_TRY(mxd_share_source(w->m, d, layer, w->shares, w->rank, path, &src, &cut, &none, err));
    else
        MXD_TRY(mxd_source(w->m, d, layer, path, &src, err));
    if (none) return MXD_OK;
    int row0, row1;
    rows_of(&src, &row0, &row1);
    const mxd_st_tensor *all[] = {src.weight, src.scales, src.biases};
    for (size_t i = 0; i < MXD_COUNT(all); i++)
        if (all[i]) MXD_TRY(want_rows(w, all[i], src.out, row0, row1, err));
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
