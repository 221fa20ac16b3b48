/* run.c - gives layers to a backend, and runs a micro-batch through them. */
#include "model/tensors.h"

/* -------------------------------------------------------------------------------------- loading */

typedef struct loading {
    mxd_model *m;
    const mxd_load_opts *opts;
    uint64_t done, total;
} loading;

static const int no_span[2] = {0, 0};

/* span: first and number of the columns that all layers here look up in one table, each its own */
static mxd_rc load_one(loading *l, const mxd_decl *d, int layer, const int span[2],
                       mxd_weight **out, mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    mxd_cut cut;
    bool none = false;
    const mxd_group *g = l->m->group;
    MXD_TRY(mxd_share_source(l->m, d, layer, g ? &l->m->shares : NULL, g ? g->rank : 0, path, &src,
                             &cut, &none, err));
    if (none) return MXD_OK;
    src.span0 = span[0];
    src.span = span[1];
    mxd_backend *b = l->m->backend;
    mxd_rc rc = b->ops->load(b, &src, out, err);
    if (rc) return mxd_wrap(err, rc, "%s", path);
    l->done += mxd_source_bytes(l->m, &src);
    bool go_on = !l->opts->progress || l->opts->progress(l->opts->progress_ctx, l->done, l->total);
    return go_on ? MXD_OK : mxd_fail(err, MXD_E_CANCELED, "loading was stopped");
}

static mxd_rc load_layer(loading *l, int layer, mxd_err *err) {
    mxd_model *m = l->m;
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS], first[MXD_MAX_LAYER_WEIGHTS],
        last[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(m, layer, decls);
    mxd_declare(m, m->layer0, first);
    mxd_declare(m, m->layer1 - 1, last);
    mxd_weight **w = m->layers[layer - m->layer0].w;
    for (int d = 0; d < n; d++) {
        int span[2] = {0, 0};
        if (decls[d].whole_in) {
            span[0] = first[d].col0;
            span[1] = last[d].col0 + last[d].in - first[d].col0;
        }
        if (decls[d].path) MXD_TRY(load_one(l, &decls[d], layer, span, &w[d], err));
    }
    return MXD_OK;
}

static mxd_rc load_ends(loading *l, mxd_err *err) {
    mxd_model *m = l->m;
    bool first = m->layer0 == 0, last = m->layer1 == m->hp.n_layers;
    bool lookup = first || m->hp.reembed;
    mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m), head = mxd_head_decl(m);
    if (m->hp.tied && last) embed.use = MXD_W_LINEAR | MXD_W_PART | (lookup ? MXD_W_LOOKUP : 0);
    if (m->hp.tied && !last) embed.use = MXD_W_LOOKUP;
    if (lookup || (last && m->hp.tied)) MXD_TRY(load_one(l, &embed, -1, no_span, &m->embed, err));
    if (!last) return MXD_OK;
    MXD_TRY(load_one(l, &norm, -1, no_span, &m->norm, err));
    m->head = m->embed;
    return m->hp.tied ? MXD_OK : load_one(l, &head, -1, no_span, &m->head, err);
}

static void total_bytes(loading *l) {
    const mxd_model *m = l->m;
    mxd_model_sizes *s = MXD_NEW(l->m->al, 1, mxd_model_sizes);
    if (!s) return; /* only the progress display misses it */
    if (m->group)
        mxd_model_share_sizes(m, &m->shares, m->group->rank, 1, MXD_KV_F16, s);
    else
        mxd_model_sizes_get(m, 1, MXD_KV_F16, s);
    for (int i = l->m->layer0; i < l->m->layer1; i++) l->total += s->layer_bytes[i];
    bool first = l->m->layer0 == 0, last = l->m->layer1 == s->n_layers;
    if (last) l->total += s->head_bytes;
    if ((first || s->reembed) && !(last && s->tied)) l->total += s->embed_bytes;
    mxd_free(l->m->al, s);
}

static mxd_rc setup_with(mxd_model *m, const mxd_load_opts *opts, mxd_kv_spec *kv,
                         mxd_state_spec *state, mxd_err *err) {
    mxd_regs r;
    mxd_model_registers(m, &m->local, &r);
    r.rows[MXD_REG_LOGITS] = opts->max_logits;
    if (!m->head) r.rows[MXD_REG_LOGITS] = r.width[MXD_REG_LOGITS] = 1;
    int n = m->layer1 - m->layer0;
    for (int i = 0; i < n; i++) {
        kv[i] = mxd_layer_kv(m, &m->local, m->layer0 + i);
        state[i] = mxd_layer_state(&m->local, m->layer0 + i);
    }
    for (int i = 0; i < r.n; i++)
        if (!r.rows[i] || r.rows[i] > opts->max_rows) r.rows[i] = opts->max_rows;
    mxd_step_shape shape = {.max_rows = opts->max_rows,
                            .n_regs = r.n,
                            .reg_width = r.width,
                            .reg_rows = r.rows,
                            .n_layers = n,
                            .kv = kv,
                            .n_pages = opts->n_pages,
                            .max_context = opts->max_context,
                            .moe = {m->hp.moe.top_k, m->hp.hidden, m->hp.moe.inner},
                            .n_states = mxd_model_recurrent(m) ? opts->n_states : 0,
                            .state = state,
                            .group = m->group};
    return m->backend->ops->setup(m->backend, &shape, err);
}

static mxd_rc setup(mxd_model *m, const mxd_load_opts *opts, mxd_err *err) {
    size_t n = (size_t)(m->layer1 - m->layer0);
    mxd_kv_spec *kv = MXD_NEW(m->al, n, mxd_kv_spec);
    mxd_state_spec *state = MXD_NEW(m->al, n, mxd_state_spec);
    mxd_rc rc = kv && state ? setup_with(m, opts, kv, state, err)
                            : mxd_fail(err, MXD_E_NOMEM, "tables of the layers");
    mxd_free(m->al, kv);
    mxd_free(m->al, state);
    return rc;
}

/* What this model asks of a backend and not every backend has. */
static mxd_rc check_backend(const mxd_model *m, const mxd_backend *b, const mxd_group *group,
                            mxd_err *err) {
    const mxd_hparams *hp = &m->hp;
    const char *what = NULL;
    if (hp->moe.n_experts && !b->ops->moe) what = "mixture of experts";
    if (hp->mla.kv_rank && !b->ops->linear_heads) what = "latent attention";
    if (hp->delta.n_v && !b->ops->delta_net) what = "gated delta net";
    if (group && !b->ops->linear_cut) what = "tensor parallelism";
    if (!what) return MXD_OK;
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "backend '%s' has no %s, which '%s' needs here: use --backend cpu",
                    b->ops->name, what, hp->model_type);
}

static mxd_rc check_range(const mxd_model *m, const mxd_load_opts *opts, mxd_err *err) {
    int cut = m->hp.last_cut;
    if (!cut || opts->layer0 <= cut || !opts->layer0) return MXD_OK;
    if (cut < 0) cut = 0;
    return mxd_fail(
        err, MXD_E_INVAL,
        "layers %d to %d: the layers from %d on share keys and values with those before "
        "them and must stay together: cut at layer %d at the latest",
        opts->layer0, opts->layer1, cut, cut);
}

/* From here on m->local counts what this rank has. */
static mxd_rc take_share(mxd_model *m, const mxd_load_opts *opts, mxd_err *err) {
    const mxd_group *g = opts->group;
    const mxd_shares *s = opts->shares;
    if (!s || s->size != g->size || g->rank < 0 || g->rank >= g->size)
        return mxd_fail(err, MXD_E_INVAL, "rank %d of %d: the layers are not cut for that group",
                        g->rank, g->size);
    m->group = g;
    m->shares = *s;
    mxd_local_hparams(m, s, g->rank, &m->local);
    return MXD_OK;
}

mxd_rc mxd_model_load(mxd_model *m, mxd_backend *b, const mxd_load_opts *opts, mxd_err *err) {
    MXD_ASSERT(!m->backend);
    MXD_ASSERT(opts->layer0 >= 0 && opts->layer0 < opts->layer1 && opts->layer1 <= m->hp.n_layers);
    MXD_TRY(check_backend(m, b, opts->group, err));
    MXD_TRY(check_range(m, opts, err));
    if (opts->group) MXD_TRY(take_share(m, opts, err));
    m->backend = b;
    m->layer0 = opts->layer0;
    m->layer1 = opts->layer1;
    m->layers = MXD_NEW(m->al, (size_t)(m->layer1 - m->layer0), mxd_layer);
    if (!m->layers) return mxd_fail(err, MXD_E_NOMEM, "layer table");
    loading l = {.m = m, .opts = opts};
    total_bytes(&l);
    for (int i = m->layer0; i < m->layer1; i++) MXD_TRY(load_layer(&l, i, err));
    MXD_TRY(load_ends(&l, err));
    return setup(m, opts, err);
}

/* -------------------------------------------------------------------------------------- forward */

/* logits [n, ids of this rank] of the picked rows: final norm, then the head. */
static mxd_rc head(mxd_model *m, const mxd_forward *f, mxd_err *err) {
    const mxd_backend_ops *op = m->backend->ops;
    if (!f->n_logits || !m->local.n_vocab) return MXD_OK;
    op->pick(m->backend, MXD_REG_H, MXD_REG_X, f->rows, f->n_logits);
    op->norm(m->backend, MXD_REG_H, MXD_REG_H, m->norm, m->hp.eps);
    op->linear(m->backend, 1, (const int[]){MXD_REG_LOGITS}, MXD_REG_H,
               (const mxd_weight *const[]){m->head});
    if (m->hp.logit_softcap) op->softcap(m->backend, MXD_REG_LOGITS, m->hp.logit_softcap);
    return op->output(m->backend, MXD_REG_LOGITS, f->logits, err);
}

void mxd_model_embed(const mxd_model *m, int reg) {
    const mxd_backend_ops *op = m->backend->ops;
    op->embed(m->backend, reg, m->embed);
    if (m->hp.embed_scale) op->scale(m->backend, reg, m->hp.embed_scale);
}

mxd_rc mxd_model_forward(mxd_model *m, const mxd_forward *f, mxd_err *err) {
    const mxd_backend_ops *op = m->backend->ops;
    op->begin(m->backend, f->batch);
    if (m->layer0 == 0)
        mxd_model_embed(m, MXD_REG_X);
    else
        op->input(m->backend, MXD_REG_X, f->hidden_in);
    if (m->family->start) m->family->start(m);
    for (int i = 0; i < m->layer1 - m->layer0; i++) m->family->layer(m, i);
    mxd_rc rc = MXD_OK;
    if (m->head)
        rc = head(m, f, err);
    else
        rc = op->output(m->backend, MXD_REG_X, f->hidden_out, err);
    mxd_rc end = op->end(m->backend, rc ? NULL : err);
    return rc ? rc : end;
}
