/* model.c - which family a repository is, its configuration, opening. */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "formats/json.h"
#include "model/tensors.h"

/* Adding a family is one file and one line here. */
/* clang-format off */
static const mxd_family *const families[] = {
    &mxd_family_deepseek_v3,
    &mxd_family_gemma2,
    &mxd_family_gemma3_text,
    &mxd_family_gemma4_text,
    &mxd_family_glm4_moe,
    &mxd_family_glm4_moe_lite,
    &mxd_family_gpt_oss,
    &mxd_family_llama,
    &mxd_family_minimax,
    &mxd_family_ministral3,
    &mxd_family_phi3,
    &mxd_family_qwen2,
    &mxd_family_qwen3,
    &mxd_family_qwen3_5,
    &mxd_family_qwen3_5_moe,
    &mxd_family_qwen3_moe,
    &mxd_family_qwen3_next,
};
/* clang-format on */

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

static const mxd_wrapper wrappers[] = {
    {"gemma3", "gemma3_text", "{\"num_attention_heads\": 8, \"num_key_value_heads\": 4}", 262208},
    {"gemma4", "gemma4_text", "{\"num_attention_heads\": 8, \"num_key_value_heads\": 1}", 262144},
    {"mistral3", "mistral", NULL, 0},
    {"qwen3_5", "qwen3_5_text", NULL, 0},
    {"qwen3_5_moe", "qwen3_5_moe_text", NULL, 0},
};

/* -------------------------------------------------------------------------------- which family */

/* Letters in common at the front: enough to put qwen3 before llama for "qwen3_next". */
static size_t common_prefix(const char *a, const char *b) {
    size_t n = 0;
    while (a[n] && a[n] == b[n]) n++;
    return n;
}

static mxd_rc unsupported(const char *type, mxd_err *err) {
    char list[512] = "";
    size_t used = 0;
    for (size_t want = strlen(type) + 1; want-- > 0;)
        for (size_t i = 0; i < MXD_COUNT(families) && used < sizeof list - 64; i++)
            if (common_prefix(type, families[i]->model_type) == want)
                used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "",
                                         families[i]->model_type);
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "model_type '%s' is not supported; supported (nearest first): %s", type, list);
}

static const char *renamed(const char *type) {
    for (size_t i = 0; i < MXD_COUNT(renames); i++)
        if (strcmp(type, renames[i].from) == 0) return renames[i].to;
    return type;
}

static mxd_rc find_family(const char *type, const mxd_family **out, mxd_err *err) {
    const char *name = renamed(type);
    for (size_t i = 0; i < MXD_COUNT(families); i++)
        if (strcmp(families[i]->model_type, name) == 0) {
            *out = families[i];
            return MXD_OK;
        }
    return unsupported(type, err);
}

/* --------------------------------------------------------------------------------- config.json */

/* Keys that are missing get the values of the JSON object `defaults`, when there is one. */
static mxd_rc fill_in(json_t *text, const char *defaults, mxd_err *err) {
    if (!defaults) return MXD_OK;
    json_t *d = json_loads(defaults, 0, NULL);
    bool ok = d && json_object_update_missing(text, d) == 0;
    json_decref(d);
    return ok ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "config.json");
}

/* The vocabulary that a wrapper names outside of its language model's keys. */
static mxd_rc outer_vocab(const mxd_model *m, json_t *text, int otherwise, mxd_err *err) {
    int n;
    if (!otherwise) return MXD_OK;
    MXD_TRY(mxd_config_int(m->config, "vocab_size", 2, MXD_MAX_VOCAB, otherwise, &n, err));
    bool ok = json_object_set_new(text, "vocab_size", json_integer(n)) == 0;
    return ok ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "config.json");
}

/* A wrapper keeps the language model's keys in "text_config", or is one by name only; a
 * quantization of all stays outside. Sets m->text and m->prefix, and *name to the type of the
 * language model. */
static mxd_rc unwrap(mxd_model *m, const char **name, mxd_err *err) {
    m->text = m->config;
    m->prefix = "";
    const char *outer = renamed(*name);
    for (size_t i = 0; i < MXD_COUNT(wrappers); i++) {
        if (strcmp(outer, wrappers[i].model_type) != 0) continue;
        m->text = json_object_get(m->config, "text_config");
        if ((!m->text || json_is_null(m->text)) && mxd_config_get(m->config, "hidden_size"))
            m->text = m->config;
        if (!json_is_object(m->text))
            return mxd_fail(err, MXD_E_FORMAT,
                            "config.json: 'text_config' is missing, which '%s' keeps its language "
                            "model in",
                            *name);
        const json_t *inner = mxd_config_get(m->text, "model_type");
        const char *text = json_is_string(inner) ? json_string_value(inner) : outer;
        *name = strcmp(text, outer) == 0 ? wrappers[i].text_type : text;
        m->prefix = "language_model.";
        MXD_TRY(fill_in(m->text, wrappers[i].defaults, err));
        return outer_vocab(m, m->text, wrappers[i].vocab, err);
    }
    return MXD_OK;
}

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
    const char *name = json_string_value(type);
    MXD_TRY(unwrap(m, &name, err));
    MXD_TRY(find_family(name, &m->family, err));
    snprintf(m->hp.model_type, sizeof m->hp.model_type, "%s", m->family->model_type);
    MXD_TRY(mxd_quant_check_method(m->config, err));
    MXD_TRY(fill_in(m->text, m->family->defaults, err));
    return m->family->configure(&m->hp, m->text, err);
}

static mxd_rc rope_table(mxd_model *m, const mxd_rope_spec *spec, float **inv_freq, mxd_rope *rope,
                         mxd_err *err) {
    *inv_freq = MXD_NEW(m->al, (size_t)spec->dims / 2, float);
    if (!*inv_freq) return mxd_fail(err, MXD_E_NOMEM, "RoPE table");
    float scale = mxd_rope_make(spec, *inv_freq);
    *rope = (mxd_rope){spec->dims, *inv_freq, scale, spec->interleaved, NULL};
    if (spec->kind != MXD_ROPE_DYNAMIC) return MXD_OK;
    m->rope_dynamic = (mxd_rope_dynamic){spec->theta, spec->factor, spec->original};
    rope->dynamic = &m->rope_dynamic;
    return MXD_OK;
}

static mxd_rc make_rope(mxd_model *m, mxd_err *err) {
    MXD_TRY(rope_table(m, &m->hp.rope, &m->inv_freq, &m->rope, err));
    m->rope_local = m->rope;
    if (m->hp.rope_local.dims)
        MXD_TRY(rope_table(m, &m->hp.rope_local, &m->inv_freq_local, &m->rope_local, err));
    m->attn_scale = m->hp.attn_scale ? m->hp.attn_scale : 1.0f / sqrtf((float)m->hp.head_dim);
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------------- opening
 */

/* Tensors carry the wrapper's prefix where their files say so, whatever config.json implies. */
static void find_prefix(mxd_model *m) {
    static const char *const known[] = {"", "language_model."};
    for (size_t i = 0; i < MXD_COUNT(known); i++) {
        char name[64];
        snprintf(name, sizeof name, "%smodel.embed_tokens.weight", known[i]);
        if (mxd_st_find(m->st, name)) m->prefix = known[i];
    }
}

static mxd_rc open_all(mxd_model *m, mxd_err *err) {
    MXD_TRY(read_config(m, err));
    MXD_TRY(mxd_st_open(&m->st, m->al, m->folder, err));
    find_prefix(m);
    if (m->family->inspect) MXD_TRY(m->family->inspect(&m->hp, m->st, m->prefix, err));
    char head[64];
    snprintf(head, sizeof head, "%slm_head.weight", m->prefix);
    bool no_head = !mxd_st_find(m->st, head);
    MXD_TRY(mxd_config_bool(m->text, "tie_word_embeddings", no_head, &m->hp.tied, err));
    if (m->family->head_by_tensor) m->hp.tied = no_head;
    MXD_TRY(make_rope(m, err));
    m->local = m->hp;
    return mxd_check_tensors(m, err);
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
    mxd_free(m->al, m->inv_freq_local);
    mxd_st_close(m->st);
    json_decref(m->config);
    mxd_free(m->al, m->folder);
    mxd_free(m->al, m);
}

const mxd_hparams *mxd_model_hparams(const mxd_model *m) { return &m->hp; }
const mxd_st *mxd_model_tensors(const mxd_model *m) { return m->st; }
bool mxd_model_recurrent(const mxd_model *m) { return m->hp.delta.n_v > 0; }
const char *mxd_model_folder(const mxd_model *m) { return m->folder; }
