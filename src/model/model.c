#include "model/model.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/log.h"
#include "formats/json.h"
#include "model/family.h"

/* Adding a family is one file and one line here. */
static const mxd_family *const families[] = {
    &mxd_family_llama, &mxd_family_phi3,      &mxd_family_qwen2,
    &mxd_family_qwen3, &mxd_family_qwen3_moe,
};

/* Names that mean another family. */
static const struct {
    const char *from, *to;
} renames[] = {
    {"mistral", "llama"},
    {"iquestcoder", "llama"},
    {"llava", "mistral3"},
    {"kimi_k2", "deepseek_v3"},
    {"minimax_m2", "minimax"},
    {"gemma4_unified", "gemma4"},
    {"joyai_llm_flash", "deepseek_v3"},
};

/* -------------------------------------------------------------------------------- which family */

/* Letters in common at the front: enough to put qwen3 before llama for "qwen3_next". */
static size_t common_prefix(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    return n;
}

static mxd_rc unsupported(const char *type, mxd_err *err) {
    char list[256] = "";
    size_t used = 0;
    for (size_t want = strlen(type) + 1; want-- > 0;)
        for (size_t i = 0; i < MXD_COUNT(families) && used < sizeof list - 64; i++)
            if (common_prefix(type, families[i]->model_type) == want)
                used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "",
                                         families[i]->model_type);
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "model_type '%s' is not supported; supported (nearest first): %s", type, list);
}

static mxd_rc find_family(const char *type, const mxd_family **out, mxd_err *err) {
    const char *name = type;
    for (size_t i = 0; i < MXD_COUNT(renames); i++)
        if (strcmp(type, renames[i].from) == 0) name = renames[i].to;
    for (size_t i = 0; i < MXD_COUNT(families); i++)
        if (strcmp(families[i]->model_type, name) == 0) {
            *out = families[i];
            return MXD_OK;
        }
    return unsupported(type, err);
}

/* --------------------------------------------------------------------------------- config.json */

static mxd_rc read_config(mxd_model *m, mxd_err *err) {
    char path[1200];
    snprintf(path, sizeof path, "%s/config.json", m->folder);
    MXD_TRY(mxd_json_load(&m->config, path, MXD_CONFIG_MAX_BYTES, err));
    if (!json_is_object(m->config))
        return mxd_fail(err, MXD_E_FORMAT, "%s: must be a JSON object", path);
    if (json_is_string(json_object_get(m->config, "model_file")))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "%s: 'model_file' asks to run code of the repository, which is never done; "
                        "use a repository without it",
                        path);
    const json_t *type = json_object_get(m->config, "model_type");
    if (!json_is_string(type))
        return mxd_fail(err, MXD_E_FORMAT, "%s: 'model_type' is missing", path);
    MXD_TRY(find_family(json_string_value(type), &m->family, err));
    snprintf(m->hp.model_type, sizeof m->hp.model_type, "%s", m->family->model_type);
    return m->family->configure(&m->hp, m->config, err);
}

static mxd_rc make_rope(mxd_model *m, mxd_err *err) {
    const mxd_rope_spec *spec = &m->hp.rope;
    m->inv_freq = MXD_NEW(m->al, (size_t)spec->dims / 2, float);
    if (!m->inv_freq) return mxd_fail(err, MXD_E_NOMEM, "RoPE table");
    float scale = mxd_rope_make(spec, m->inv_freq);
    m->rope = (mxd_rope){spec->dims, m->inv_freq, scale, spec->interleaved};
    m->attn_scale = 1.0f / sqrtf((float)m->hp.head_dim);
    return MXD_OK;
}

/* ----------------------------------------------------------------------- what must be in the file
 */

static mxd_decl embed_decl(const mxd_model *m) {
    unsigned use = MXD_W_LOOKUP | (m->hp.tied ? MXD_W_LINEAR : 0);
    return (mxd_decl){"model.embed_tokens", use, m->hp.n_vocab, m->hp.hidden};
}
static mxd_decl norm_decl(const mxd_model *m) {
    return (mxd_decl){"model.norm", MXD_W_VECTOR, 1, m->hp.hidden};
}
static mxd_decl head_decl(const mxd_model *m) {
    return (mxd_decl){"lm_head", MXD_W_LINEAR, m->hp.n_vocab, m->hp.hidden};
}

/* The source of a weight: finds its tensors and checks them against the declaration.
 * layer < 0: the path stands alone. */
static mxd_rc source(const mxd_model *m, const mxd_decl *d, int layer, char path[256],
                     mxd_weight_src *src, mxd_err *err) {
    if (layer < 0)
        snprintf(path, 256, "%s", d->path);
    else
        snprintf(path, 256, "model.layers.%d.%s", layer, d->path);
    *src = (mxd_weight_src){
        .name = path, .use = d->use, .out = d->out, .in = d->in, .experts = d->experts};
    if (!(d->use & MXD_W_VECTOR)) {
        if (d->whole) {
            src->out = d->whole;
            src->row0 = d->row0;
            src->rows = d->out;
        }
        MXD_TRY(mxd_quant_resolve(m->config, m->st, path, src, err));
        if (d->bias && !src->bias)
            return mxd_fail(err, MXD_E_FORMAT,
                            "tensor '%s.bias' is missing, config.json promises it", path);
        src->block_k = mxd_block_k(d->in, src->quant.group, d->unit);
        return MXD_OK;
    }
    char name[300];
    snprintf(name, sizeof name, "%s.weight", path);
    src->st = m->st;
    src->weight = mxd_st_find(m->st, name);
    if (!src->weight)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' is missing; is the download complete?",
                        name);
    if (src->weight->n_dims != 1 || src->weight->shape[0] != (uint64_t)d->in)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' must be [%d]", name, d->in);
    return mxd_quant_check_float(src->weight, err);
}

/* Of the rows that are ours: every row takes the same. Memory holds a weight as the file does, up
 * to the rows that fill a last tile (backend/cpu/weights.c). */
static uint64_t file_bytes(const mxd_weight_src *s) {
    uint64_t all = s->weight->bytes + (s->scales ? s->scales->bytes : 0) +
                   (s->biases ? s->biases->bytes : 0) + (s->bias ? s->bias->bytes : 0);
    return s->rows ? all / (uint64_t)s->out * (uint64_t)s->rows : all;
}

static int declare(const mxd_model *m, int layer, mxd_decl out[MXD_MAX_LAYER_WEIGHTS]) {
    return m->family->declare(&m->hp, layer, out);
}

static mxd_rc decl_bytes(const mxd_model *m, const mxd_decl *d, int layer, uint64_t *sum,
                         size_t *n_tensors, mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    MXD_TRY(source(m, d, layer, path, &src, err));
    *sum += file_bytes(&src);
    if (src.row0 > 0) return MXD_OK; /* counted with the first part */
    *n_tensors += 1u + (src.scales != NULL) + (src.biases != NULL) + (src.bias != NULL);
    return MXD_OK;
}

static mxd_rc layer_bytes(const mxd_model *m, int layer, uint64_t *sum, size_t *n_tensors,
                          mxd_err *err) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = declare(m, layer, decls);
    for (int d = 0; d < n; d++) MXD_TRY(decl_bytes(m, &decls[d], layer, sum, n_tensors, err));
    return MXD_OK;
}

/* `name` stands behind "model.layers.N.". */
static bool declared(const mxd_model *m, int layer, const char *name) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n_decls = declare(m, layer, decls);
    for (int d = 0; d < n_decls; d++) {
        size_t n = strlen(decls[d].path);
        if (strncmp(name, decls[d].path, n) == 0 && name[n] == '.') return true;
    }
    return false;
}

static bool has_suffix(const char *s, const char *end) {
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

/* Tensors that nobody asked for: known ones are fine, others get a warning by name. */
static void warn_unexpected(const mxd_model *m, size_t n_used) {
    if (n_used == mxd_st_count(m->st)) return;
    int shown = 0;
    for (size_t i = 0; i < mxd_st_count(m->st); i++) {
        const char *name = mxd_st_at(m->st, i)->name;
        int layer = 0, at = 0;
        bool of_layer = sscanf(name, "model.layers.%d.%n", &layer, &at) == 1 && at > 0;
        bool known = strncmp(name, "model.embed_tokens.", 19) == 0 ||
                     strncmp(name, "model.norm.", 11) == 0 || strncmp(name, "lm_head.", 8) == 0 ||
                     strncmp(name, "mtp.", 4) == 0 || has_suffix(name, ".rotary_emb.inv_freq") ||
                     (of_layer && layer >= m->hp.n_layers);
        if (!known && of_layer && layer >= 0) known = declared(m, layer, name + at);
        if (known || shown++ >= 5) continue;
        mxd_log(MXD_LOG_WARN, "tensor_unexpected", "name=%s", name);
    }
}

static mxd_rc check_tensors(mxd_model *m, mxd_err *err) {
    uint64_t bytes = 0;
    size_t n_used = 0;
    mxd_decl embed = embed_decl(m), norm = norm_decl(m), head = head_decl(m);
    MXD_TRY(decl_bytes(m, &embed, -1, &bytes, &n_used, err));
    MXD_TRY(decl_bytes(m, &norm, -1, &bytes, &n_used, err));
    if (!m->hp.tied) MXD_TRY(decl_bytes(m, &head, -1, &bytes, &n_used, err));
    for (int l = 0; l < m->hp.n_layers; l++) MXD_TRY(layer_bytes(m, l, &bytes, &n_used, err));
    warn_unexpected(m, n_used);
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------------- opening
 */

static mxd_rc open_all(mxd_model *m, mxd_err *err) {
    MXD_TRY(read_config(m, err));
    MXD_TRY(mxd_st_open(&m->st, m->al, m->folder, err));
    bool no_head = !mxd_st_find(m->st, "lm_head.weight");
    MXD_TRY(mxd_config_bool(m->config, "tie_word_embeddings", no_head, &m->hp.tied, err));
    MXD_TRY(make_rope(m, err));
    return check_tensors(m, err);
}

mxd_rc mxd_model_open(mxd_model **out, const mxd_alloc *al, const char *folder, mxd_err *err) {
    if (strlen(folder) > 1000) return mxd_fail(err, MXD_E_TOOBIG, "path of the model is too long");
    mxd_model *m = MXD_NEW(al, 1, mxd_model);
    if (!m) return mxd_fail(err, MXD_E_NOMEM, "model");
    m->al = al;
    m->folder = mxd_strdup(al, folder);
    mxd_rc rc = m->folder ? open_all(m, err) : mxd_fail(err, MXD_E_NOMEM, "model");
    if (rc) {
        mxd_model_close(m);
        return mxd_wrap(err, rc, "model %s", folder);
    }
    *out = m;
    return MXD_OK;
}

void mxd_model_close(mxd_model *m) {
    if (!m) return;
    mxd_free(m->al, m->layers);
    mxd_free(m->al, m->inv_freq);
    mxd_st_close(m->st);
    json_decref(m->config);
    mxd_free(m->al, m->folder);
    mxd_free(m->al, m);
}

const mxd_hparams *mxd_model_hparams(const mxd_model *m) { return &m->hp; }
const mxd_st *mxd_model_tensors(const mxd_model *m) { return m->st; }
const char *mxd_model_folder(const mxd_model *m) { return m->folder; }

/* Weights of a layer, counting `of_each` of the experts. */
static uint64_t layer_params(const mxd_model *m, int layer, int of_each) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = declare(m, layer, decls);
    uint64_t sum = 0;
    for (int d = 0; d < n; d++)
        sum += (uint64_t)decls[d].out * (uint64_t)decls[d].in *
               (uint64_t)(decls[d].experts ? of_each : 1);
    return sum;
}

uint64_t mxd_model_params(const mxd_model *m) {
    uint64_t layers = 0, rest = (uint64_t)m->hp.n_vocab * (uint64_t)m->hp.hidden;
    for (int l = 0; l < m->hp.n_layers; l++) layers += layer_params(m, l, m->hp.n_experts);
    return layers + (m->hp.tied ? rest : 2 * rest) + (uint64_t)m->hp.hidden;
}

uint64_t mxd_model_weight_bytes(const mxd_model *m) {
    uint64_t sum = 0;
    for (size_t i = 0; i < mxd_st_count(m->st); i++) sum += mxd_st_at(m->st, i)->bytes;
    return sum;
}

/* ------------------------------------------------------------------------------------ registers */

/* Rows of logits the planner counts: sequences that end a chunk in the same micro-batch. */
enum { MXD_LOGITS_PLANNED = 8 };

static void registers(const mxd_model *m, mxd_regs *r) {
    *r = (mxd_regs){.n = MXD_REG_FAMILY};
    r->width[MXD_REG_X] = r->width[MXD_REG_H] = m->hp.hidden;
    r->width[MXD_REG_LOGITS] = m->hp.n_vocab;
    r->rows[MXD_REG_LOGITS] = MXD_LOGITS_PLANNED;
    m->family->registers(&m->hp, r);
}

static uint64_t scratch_bytes(const mxd_model *m, int max_rows, bool head) {
    mxd_regs r;
    registers(m, &r);
    uint64_t sum = 0;
    for (int i = 0; i < r.n; i++) {
        if (i == MXD_REG_LOGITS && !head) continue;
        int rows = r.rows[i] && r.rows[i] < max_rows ? r.rows[i] : max_rows;
        sum += (uint64_t)rows * (uint64_t)r.width[i] * sizeof(float);
    }
    uint64_t pairs = (uint64_t)max_rows * (uint64_t)m->hp.top_k; /* rows at their experts */
    return sum + pairs * (uint64_t)(m->hp.hidden + 2 * m->hp.moe_inner) * sizeof(float);
}

/* ---------------------------------------------------------------------------------------- sizes */

void mxd_model_sizes_get(const mxd_model *m, int max_rows, int kv_bytes_each,
                         mxd_model_sizes *out) {
    const mxd_hparams *hp = &m->hp;
    *out = (mxd_model_sizes){.n_layers = hp->n_layers, .tied = hp->tied};
    mxd_decl embed = embed_decl(m), norm = norm_decl(m), head = hp->tied ? embed : head_decl(m);
    size_t n = 0;
    /* every source was checked when the model was opened */
    MXD_ASSERT(decl_bytes(m, &embed, -1, &out->embed_bytes, &n, NULL) == MXD_OK);
    MXD_ASSERT(decl_bytes(m, &norm, -1, &out->head_bytes, &n, NULL) == MXD_OK);
    MXD_ASSERT(decl_bytes(m, &head, -1, &out->head_bytes, &n, NULL) == MXD_OK);
    for (int l = 0; l < hp->n_layers; l++) {
        MXD_ASSERT(layer_bytes(m, l, &out->layer_bytes[l], &n, NULL) == MXD_OK);
        out->layer_ops += (double)layer_params(m, l, hp->top_k) / hp->n_layers;
        out->layer_kv_bytes[l] =
            2u * (uint64_t)hp->n_kv * (uint64_t)hp->head_dim * (uint64_t)kv_bytes_each;
    }
    out->head_ops = (double)hp->n_vocab * hp->hidden;
    out->scratch_bytes = scratch_bytes(m, max_rows, true);
    out->hidden_bytes = (uint64_t)hp->hidden * sizeof(float);
}

mxd_rc mxd_model_sizes_read(mxd_model_sizes *out, const mxd_alloc *al, const char *folder,
                            int max_rows, int kv_bytes_each, mxd_err *err) {
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, al, folder, err));
    mxd_model_sizes_get(m, max_rows, kv_bytes_each, out);
    mxd_model_close(m);
    return MXD_OK;
}

/* -------------------------------------------------------------------------------------- loading */

typedef struct loading {
    mxd_model *m;
    const mxd_load_opts *opts;
    uint64_t done, total;
} loading;

static mxd_rc load_one(loading *l, const mxd_decl *d, int layer, mxd_weight **out, mxd_err *err) {
    char path[256];
    mxd_weight_src src;
    MXD_TRY(source(l->m, d, layer, path, &src, err));
    mxd_backend *b = l->m->backend;
    mxd_rc rc = b->ops->load(b, &src, out, err);
    if (rc) return mxd_wrap(err, rc, "%s", path);
    l->done += file_bytes(&src);
    bool go_on = !l->opts->progress || l->opts->progress(l->opts->progress_ctx, l->done, l->total);
    return go_on ? MXD_OK : mxd_fail(err, MXD_E_CANCELED, "loading was stopped");
}

static mxd_rc load_layer(loading *l, int layer, mxd_err *err) {
    mxd_decl decls[MXD_MAX_LAYER_WEIGHTS];
    int n = declare(l->m, layer, decls);
    mxd_weight **w = l->m->layers[layer - l->m->layer0].w;
    for (int d = 0; d < n; d++) MXD_TRY(load_one(l, &decls[d], layer, &w[d], err));
    return MXD_OK;
}

static mxd_rc load_ends(loading *l, mxd_err *err) {
    mxd_model *m = l->m;
    bool first = m->layer0 == 0, last = m->layer1 == m->hp.n_layers;
    mxd_decl embed = embed_decl(m), norm = norm_decl(m), head = head_decl(m);
    if (m->hp.tied && last) embed.use = MXD_W_LINEAR | (first ? MXD_W_LOOKUP : 0);
    if (m->hp.tied && !last) embed.use = MXD_W_LOOKUP;
    if (first || (last && m->hp.tied)) MXD_TRY(load_one(l, &embed, -1, &m->embed, err));
    if (!last) return MXD_OK;
    MXD_TRY(load_one(l, &norm, -1, &m->norm, err));
    m->head = m->embed;
    return m->hp.tied ? MXD_OK : load_one(l, &head, -1, &m->head, err);
}

static void total_bytes(loading *l) {
    mxd_model_sizes *s = MXD_NEW(l->m->al, 1, mxd_model_sizes);
    if (!s) return; /* only the progress display misses it */
    mxd_model_sizes_get(l->m, 1, 2, s);
    for (int i = l->m->layer0; i < l->m->layer1; i++) l->total += s->layer_bytes[i];
    bool first = l->m->layer0 == 0, last = l->m->layer1 == s->n_layers;
    if (last) l->total += s->head_bytes;
    if (first && !(last && s->tied)) l->total += s->embed_bytes;
    mxd_free(l->m->al, s);
}

static mxd_rc setup(mxd_model *m, const mxd_load_opts *opts, mxd_err *err) {
    mxd_regs r;
    registers(m, &r);
    r.rows[MXD_REG_LOGITS] = opts->max_logits;
    if (!m->head) r.rows[MXD_REG_LOGITS] = r.width[MXD_REG_LOGITS] = 1;
    int n = m->layer1 - m->layer0;
    mxd_kv_spec *kv = MXD_NEW(m->al, (size_t)n, mxd_kv_spec);
    if (!kv) return mxd_fail(err, MXD_E_NOMEM, "KV table");
    for (int i = 0; i < n; i++) kv[i] = (mxd_kv_spec){m->hp.n_kv, m->hp.head_dim};
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
                            .moe = {m->hp.top_k, m->hp.hidden, m->hp.moe_inner}};
    mxd_rc rc = m->backend->ops->setup(m->backend, &shape, err);
    mxd_free(m->al, kv);
    return rc;
}

mxd_rc mxd_model_load(mxd_model *m, mxd_backend *b, const mxd_load_opts *opts, mxd_err *err) {
    MXD_ASSERT(!m->backend);
    MXD_ASSERT(opts->layer0 >= 0 && opts->layer0 < opts->layer1 && opts->layer1 <= m->hp.n_layers);
    if (m->hp.n_experts && !b->ops->moe)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "backend '%s' has no mixture of experts, which '%s' needs: use --backend "
                        "cpu",
                        b->ops->name, m->hp.model_type);
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

/* logits [n, n_vocab] of the picked rows: final norm, then the head. */
static mxd_rc head(mxd_model *m, const mxd_forward *f, mxd_err *err) {
    const mxd_backend_ops *op = m->backend->ops;
    if (!f->n_logits) return MXD_OK;
    op->pick(m->backend, MXD_REG_H, MXD_REG_X, f->rows, f->n_logits);
    op->norm(m->backend, MXD_REG_H, MXD_REG_H, m->norm, m->hp.eps);
    op->linear(m->backend, 1, (const int[]){MXD_REG_LOGITS}, MXD_REG_H,
               (const mxd_weight *const[]){m->head});
    return op->output(m->backend, MXD_REG_LOGITS, f->logits, err);
}

mxd_rc mxd_model_forward(mxd_model *m, const mxd_forward *f, mxd_err *err) {
    const mxd_backend_ops *op = m->backend->ops;
    op->begin(m->backend, f->batch);
    if (m->layer0 == 0)
        op->embed(m->backend, MXD_REG_X, m->embed);
    else
        op->input(m->backend, MXD_REG_X, f->hidden_in);
    for (int i = 0; i < m->layer1 - m->layer0; i++) m->family->layer(m, i);
    mxd_rc rc = MXD_OK;
    if (m->head)
        rc = head(m, f, err);
    else
        rc = op->output(m->backend, MXD_REG_X, f->hidden_out, err);
    mxd_rc end = op->end(m->backend, rc ? NULL : err);
    return rc ? rc : end;
}
