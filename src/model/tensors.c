/* tensors.c - what must be in the files of a model, and what it weighs in memory. */
#include "model/tensors.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"

/* ----------------------------------------------------------------------------- declarations */

/* Of the head's product a rank only makes the logits of its own ids. */
mxd_decl mxd_embed_decl(const mxd_model *m) {
    unsigned use = MXD_W_LOOKUP | (m->hp.tied ? MXD_W_LINEAR | MXD_W_PART : 0);
    return (mxd_decl){"model.embed_tokens",    use,
                      m->hp.n_vocab,           m->hp.hidden,
                      .cut = MXD_CUT_GATHERED, .by = MXD_BY_TOKEN};
}
mxd_decl mxd_norm_decl(const mxd_model *m) {
    return (mxd_decl){"model.norm", MXD_W_VECTOR, 1, m->hp.hidden, .add = m->hp.norm_add};
}
mxd_decl mxd_head_decl(const mxd_model *m) {
    return (mxd_decl){"lm_head",    MXD_W_LINEAR | MXD_W_PART, m->hp.n_vocab,
                      m->hp.hidden, .cut = MXD_CUT_GATHERED,   .by = MXD_BY_TOKEN};
}

/* The module path of a declaration. layer < 0: the path stands alone. */
static void path_of(const mxd_model *m, const mxd_decl *d, int layer, char path[256]) {
    if (layer < 0)
        snprintf(path, 256, "%s%s", m->prefix, d->path);
    else if (d->global)
        snprintf(path, 256, "%smodel.%s", m->prefix, d->path);
    else
        snprintf(path, 256, "%smodel.layers.%d.%s", m->prefix, layer, d->path);
}

/* A vector is [in], or any shape of as many numbers. */
static mxd_rc vector_source(const mxd_model *m, const mxd_decl *d, const char *path,
                            mxd_weight_src *src, mxd_err *err) {
    char name[300];
    snprintf(name, sizeof name, "%s%s", path, d->param ? "" : ".weight");
    src->st = m->st;
    src->weight = mxd_st_find(m->st, name);
    if (!src->weight)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' is missing; is the download complete?",
                        name);
    MXD_TRY(mxd_quant_check_float(src->weight, err));
    const mxd_st_tensor *t = src->weight;
    if (t->n_dims < 1 || (t->n_dims > 1 && !d->flat) ||
        t->bytes != (uint64_t)d->in * mxd_dtype_bytes(t->dtype))
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' must be [%d]", name, d->in);
    return MXD_OK;
}

/* The source of a weight: finds its tensors and checks them against the declaration. */
mxd_rc mxd_source(const mxd_model *m, const mxd_decl *d, int layer, char path[256],
                  mxd_weight_src *src, mxd_err *err) {
    path_of(m, d, layer, path);
    *src = (mxd_weight_src){.name = path,
                            .use = d->use,
                            .out = d->out,
                            .in = d->in,
                            .experts = d->experts,
                            .stacked = d->stacked,
                            .transposed = d->transposed,
                            .add = d->add,
                            .columns = d->columns};
    if (d->use & MXD_W_VECTOR) return vector_source(m, d, path, src, err);
    if (d->whole) {
        src->out = d->whole;
        src->row0 = d->row0;
        src->rows = d->out;
    }
    if (d->transposed) {
        src->rows = d->in;
        src->in = d->out;
    }
    if (d->whole_in) {
        src->in = d->whole_in;
        src->col0 = d->col0;
        src->cols = d->in;
    }
    MXD_TRY(mxd_quant_resolve(m->config, m->st, path, src, m->checked, err));
    if (d->bias && !src->bias)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s.bias' is missing, config.json promises it",
                        path);
    src->block_k = mxd_block_k(d->in, d->transposed ? 0 : src->quant.group, d->unit);
    return MXD_OK;
}

uint64_t mxd_source_bytes(const mxd_model *m, const mxd_weight_src *s) {
    return mxd_weight_bytes(m->al, s, 1, NULL);
}

int mxd_declare(const mxd_model *m, int layer, mxd_decl out[MXD_MAX_LAYER_WEIGHTS]) {
    return m->family->declare(&m->hp, layer, out);
}

/* Adds to *n_tensors how many tensors of the files a declaration, or all of a layer's, uses. */
static mxd_rc check_decl(const mxd_model *m, const mxd_decl *d, int layer, size_t *n_tensors,
                         mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    MXD_TRY(mxd_source(m, d, layer, path, &src, err));
    if (src.row0 > 0 || src.col0 > 0) return MXD_OK; /* counted with the first part */
    if (d->global && layer > 0) return MXD_OK;       /* one tensor for all layers */
    *n_tensors += 1u + (src.scales != NULL) + (src.biases != NULL) + (src.bias != NULL);
    return MXD_OK;
}

static mxd_rc check_layer(const mxd_model *m, int layer, size_t *n_tensors, mxd_err *err) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = mxd_declare(m, layer, decls);
    for (int d = 0; d < n; d++)
        if (decls[d].path) MXD_TRY(check_decl(m, &decls[d], layer, n_tensors, err));
    return MXD_OK;
}

/* `name` stands behind "model.layers.N.", or behind "model." when `global`. */
static bool declared(const mxd_model *m, int layer, const char *name, bool global) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n_decls = mxd_declare(m, layer, decls);
    for (int d = 0; d < n_decls; d++) {
        if (!decls[d].path) continue;
        size_t n = strlen(decls[d].path);
        bool end = decls[d].param ? name[n] == 0 : name[n] == '.';
        if (decls[d].global == global && strncmp(name, decls[d].path, n) == 0 && end) return true;
    }
    return false;
}

static bool has_suffix(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

static bool has_prefix(const char *s, const char *start) {
    return strncmp(s, start, strlen(start)) == 0;
}

/* Of a tensor: it is used, or known to be of no use. */
static bool is_known(const mxd_model *m, const char *name) {
    int layer = 0, at = 0;
    if (*m->prefix && !has_prefix(name, m->prefix)) return true; /* the wrapper's other towers */
    name += strlen(m->prefix);
    if (has_prefix(name, "model.embed_tokens.") || has_prefix(name, "model.norm.") ||
        has_prefix(name, "lm_head.") || has_prefix(name, "mtp.") ||
        has_suffix(name, ".rotary_emb.inv_freq"))
        return true;
    if (!has_prefix(name, "model.")) return false;
    if (sscanf(name, "model.layers.%d.%n", &layer, &at) != 1 || !at)
        return declared(m, 0, name + strlen("model."), true);
    if (layer < 0) return false;
    if (layer >= m->hp.n_layers || declared(m, layer, name + at, false)) return true;
    return m->family->ignores && m->family->ignores(&m->hp, layer, name + at);
}

/* Tensors that nobody asked for: known ones are fine, others get a warning by name. */
static void warn_unexpected(const mxd_model *m, size_t n_used) {
    if (n_used == mxd_st_count(m->st)) return;
    int shown = 0;
    for (size_t i = 0; i < mxd_st_count(m->st) && shown < 5; i++) {
        const char *name = mxd_st_at(m->st, i)->name;
        if (is_known(m, name)) continue;
        mxd_log(MXD_LOG_WARN, "tensor_unexpected", "name=%s", name);
        shown++;
    }
}

mxd_rc mxd_check_tensors(mxd_model *m, mxd_err *err) {
    size_t n_used = 0;
    mxd_decl embed = mxd_embed_decl(m), norm = mxd_norm_decl(m), head = mxd_head_decl(m);
    MXD_TRY(check_decl(m, &embed, -1, &n_used, err));
    MXD_TRY(check_decl(m, &norm, -1, &n_used, err));
    if (!m->hp.tied) MXD_TRY(check_decl(m, &head, -1, &n_used, err));
    for (int l = 0; l < m->hp.n_layers; l++) MXD_TRY(check_layer(m, l, &n_used, err));
    warn_unexpected(m, n_used);
    m->checked = true;
    return MXD_OK;
}
