/* Configurations of whole families: the models of tests/conformance with one key changed. */
#include "test.h"

#include <jansson.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "model/family.h"

typedef struct variant { /* a folder with another config.json and the model's own tensors */
    char dir[64];
    json_t *config, *text; /* the language model's part */
} variant;

static variant variant_of(const char *model) {
    variant v = {.dir = "/tmp/mxd-families-XXXXXX"};
    char rel[256], from[1024], path[1200], to[128], real[4096];
    CHECK(mkdtemp(v.dir) != NULL);
    snprintf(rel, sizeof rel, "conformance/models/%s", model);
    test_path(from, rel);
    snprintf(path, sizeof path, "%s/model.safetensors", from);
    snprintf(to, sizeof to, "%s/model.safetensors", v.dir);
    if (!realpath(path, real) || symlink(real, to)) fail_msg("%s cannot be linked", path);
    snprintf(path, sizeof path, "%s/config.json", from);
    v.config = json_load_file(path, 0, NULL);
    if (!v.config) fail_msg("%s cannot be read", path);
    v.text = json_object_get(v.config, "text_config");
    if (!v.text) v.text = v.config;
    return v;
}

static void set(json_t *o, const char *key, const char *value) {
    if (!value) {
        json_object_del(o, key);
        return;
    }
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    if (!v) fail_msg("%s is not JSON", value);
    json_object_set_new(o, key, v);
}

static mxd_rc open_variant(const variant *v, mxd_model **m, mxd_err *err) {
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", v->dir);
    CHECK(json_dump_file(v->config, path, 0) == 0);
    *m = NULL;
    return mxd_model_open(m, &mxd_alloc_libc, v->dir, err);
}

static void variant_end(variant *v) {
    char path[128];
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (size_t i = 0; i < MXD_COUNT(files); i++) {
        snprintf(path, sizeof path, "%s/%s", v->dir, files[i]);
        unlink(path);
    }
    rmdir(v->dir);
    json_decref(v->config);
}

/* Each row changes one key of the language model; value NULL removes it. */
static const struct {
    const char *model, *key, *value;
    mxd_rc rc;
    const char *says;
} rows[] = {
    {"gemma2-capped", "vocab_size", "112", MXD_OK, NULL},
    {"gemma2-capped", "query_pre_attn_scalar", "0", MXD_E_FORMAT, "must be 0.001"},
    {"gemma2-capped", "attn_logit_softcapping", "-1", MXD_E_FORMAT, "'attn_logit_softcapping'"},
    {"gemma2-capped", "final_logit_softcapping", "\"30\"", MXD_E_FORMAT, "must be a number"},
    {"gemma2-capped", "tie_word_embeddings", "false", MXD_OK, NULL}, /* there is no head */
    {"gemma2-capped", "rope_traditional", "1", MXD_E_FORMAT, "must be true or false"},
    {"gemma3-window", "sliding_window_pattern", "0", MXD_E_FORMAT, "must be 1 to"},
    {"gemma3-window", "sliding_window", "0", MXD_E_FORMAT, "must be 1 to"},
    {"gemma3-window", "rope_local_base_freq", "0", MXD_E_FORMAT, "'rope_local_base_freq'"},
    {"gemma3-window", "head_dim", NULL, MXD_E_FORMAT, "implies [1024, "}, /* 256 by default */
    {"gemma3-window", "num_key_value_heads", NULL, MXD_E_FORMAT, "implies [16, "}, /* one */
    {"gemma3-window", "layer_types", "[]", MXD_E_FORMAT, "a list of 6 names"},
    {"gemma3-window", "rope_parameters", "{\"sliding_attention\":{\"rope_type\":\"spiral\"}}",
     MXD_E_UNSUPPORTED, "'spiral'"},
    {"gemma3-wrapped", "num_attention_heads", "4", MXD_E_FORMAT, "implies [64, "},
    {"gemma4-shared", "num_kv_shared_layers", "6", MXD_E_FORMAT, "must be 0 to 5"},
    {"gemma4-shared", "num_kv_shared_layers", "5", MXD_E_FORMAT, "none before layer 1"},
    {"gemma4-shared", "num_kv_shared_layers", "1", MXD_E_FORMAT, "layers.4.self_attn.k_proj"},
    {"gemma4-shared", "use_double_wide_mlp", "false", MXD_E_FORMAT, "layers.4.mlp.gate_proj"},
    {"gemma4-shared", "global_head_dim", "33", MXD_E_FORMAT, "of 33 values cannot be"},
    {"gemma4-shared", "global_head_dim", "0", MXD_E_FORMAT, "layers.1.self_attn.q_proj"},
    {"gemma4-shared", "vocab_size_per_layer_input", "111", MXD_E_FORMAT, "below the 112"},
    {"gemma4-shared", "hidden_size_per_layer_input", "64", MXD_E_FORMAT, "embed_tokens_per_layer"},
    {"gemma4-shared", "hidden_size_per_layer_input", "0", MXD_OK, NULL}, /* then a warning */
    {"gemma4-shared", "enable_moe_block", "true", MXD_E_FORMAT, "'num_experts' is missing"},
    {"gemma4-shared", "attention_k_eq_v", "true", MXD_OK, NULL}, /* V is there, and unused */
    {"gemma4-shared", "final_logit_softcapping", "null", MXD_OK, NULL},
    {"gemma4-shared", "rope_parameters", "null", MXD_OK, NULL},
    {"gemma4-shared", "rope_parameters", "{\"full_attention\":[]}", MXD_E_FORMAT, "an object"},
    {"gemma4-experts", "num_global_key_value_heads", "2", MXD_E_FORMAT,
     "layers.1.self_attn.k_proj"},
    {"gemma4-experts", "num_global_key_value_heads", "3", MXD_E_FORMAT, "cannot be"},
    {"gemma4-experts", "top_k_experts", "6", MXD_E_FORMAT, "must be 1 to 5"},
    {"gemma4-experts", "num_experts", "4", MXD_E_FORMAT, "layers.0.router.proj"},
    {"ministral3-yarn", "rope_parameters",
     "{\"rope_theta\":1e6,\"llama_4_scaling_beta\":0.1,\"rope_type\":\"default\"}", MXD_E_FORMAT,
     "'original_max_position_embeddings' is missing"},
    {"ministral3-yarn", "rope_parameters", "{\"llama_4_scaling_beta\":-1}", MXD_E_FORMAT,
     "'llama_4_scaling_beta'"},
    {"ministral3-yarn", "rope_parameters", "null", MXD_OK, NULL},
    {"mistral3-wrapped", "model_type", "\"mistral4\"", MXD_E_UNSUPPORTED, "'mistral4'"},
    {"mistral3-wrapped", "model_type", "\"mistral\"", MXD_OK, NULL}, /* llama takes yarn too */
    {"mistral3-llama", "model_type", NULL, MXD_OK, NULL},            /* mistral, then */
};

TEST(families_rows) {
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        variant v = variant_of(rows[i].model);
        mxd_model *m;
        mxd_err err = {0};
        set(v.text, rows[i].key, rows[i].value);
        mxd_rc rc = open_variant(&v, &m, &err);
        if (rc != rows[i].rc)
            fail_msg("%s, %s: %s (%s), want %s", rows[i].model, rows[i].key, mxd_rc_name(rc),
                     err.msg, mxd_rc_name(rows[i].rc));
        if (rows[i].says && !strstr(err.msg, rows[i].says))
            fail_msg("%s, %s: '%s' does not say '%s'", rows[i].model, rows[i].key, err.msg,
                     rows[i].says);
        mxd_model_close(m);
        variant_end(&v);
    }
}

/* The vocabulary outside of the language model's keys wins, and has a default. */
TEST(families_wrappers_name_the_vocabulary) {
    mxd_model *m;
    mxd_err err = {0};
    variant v = variant_of("gemma3-wrapped");
    CHECK_OK(open_variant(&v, &m, &err), &err);
    CHECK_EQ(mxd_model_hparams(m)->n_vocab, 112);
    CHECK_EQ(mxd_model_hparams(m)->n_heads, 8);
    CHECK_EQ(mxd_model_hparams(m)->n_kv, 4);
    mxd_model_close(m);
    set(v.config, "vocab_size", NULL);
    CHECK_EQ(open_variant(&v, &m, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "implies [262208, "));
    set(v.config, "vocab_size", "1");
    CHECK_EQ(open_variant(&v, &m, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "'vocab_size' is 1"));
    set(v.config, "text_config", NULL);
    CHECK_EQ(open_variant(&v, &m, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "'text_config' is missing"));
    variant_end(&v);
}

static char warned[512];
static void note(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    size_t n = strlen(warned);
    if (level >= MXD_LOG_WARN) snprintf(warned + n, sizeof warned - n, "%s %s\n", event, fields);
}

/* Tensors of other towers, and K and V that nobody reads, are no surprise. */
TEST(families_know_what_they_leave_out) {
    static const struct {
        const char *model, *key, *value, *warning;
    } models[] = {
        {"gemma3-wrapped", "rope_theta", "1e4", ""},
        {"gemma4-wrapped", "rope_traditional", "false", ""},
        {"gemma4-shared", "rope_traditional", "false", ""},
        {"mistral3-wrapped", "rope_traditional", "false", ""},
        {"gemma4-experts", "num_kv_shared_layers", "1", ""}, /* unused k_proj, v_proj, k_norm */
        {"gemma4-shared", "hidden_size_per_layer_input", "0", "name=model.embed_tokens_per_layer"},
    };
    for (size_t i = 0; i < MXD_COUNT(models); i++) {
        variant v = variant_of(models[i].model);
        mxd_model *m;
        mxd_err err = {0};
        set(v.text, models[i].key, models[i].value);
        if (strcmp(models[i].key, "num_kv_shared_layers") == 0)
            set(v.text, "use_double_wide_mlp", "false");
        warned[0] = '\0';
        mxd_log_set_sink(note, NULL);
        CHECK_OK(open_variant(&v, &m, &err), &err);
        mxd_log_set_sink(NULL, NULL);
        bool as_told = *models[i].warning ? strstr(warned, models[i].warning) != NULL : !*warned;
        if (!as_told) fail_msg("%s: %s", models[i].model, warned);
        mxd_model_close(m);
        variant_end(&v);
    }
}

/* Layers that read the K and V of others: what a stage may start with, and what it keeps. */
TEST(families_shared_layers) {
    static mxd_model_sizes s;
    static const struct {
        const char *model;
        int last_cut;
    } models[] = {{"gemma4-shared", 2}, {"gemma4-wrapped", -1}, {"gemma4-experts", 0}};
    for (size_t i = 0; i < MXD_COUNT(models); i++) {
        variant v = variant_of(models[i].model);
        mxd_model *m;
        mxd_err err = {0};
        CHECK_OK(open_variant(&v, &m, &err), &err);
        mxd_model_sizes_get(m, 16, MXD_KV_F16, &s);
        CHECK_EQ(s.last_cut, models[i].last_cut);
        CHECK_EQ(s.reembed, models[i].last_cut != 0);
        int shared = m->hp.kinds.n_shared;
        for (int l = 0; l < s.n_layers; l++) {
            bool full = !m->hp.sliding[l], none = l >= s.n_layers - shared;
            int width = full ? m->hp.kinds.full_n_kv * m->hp.kinds.full_head_dim
                             : m->hp.n_kv * m->hp.head_dim;
            CHECK_EQ(s.layer_kv_bytes[l], none ? 0 : 2 * width * 2);
        }
        mxd_backend *b = NULL;
        CHECK_OK(mxd_backend_open(&b, &mxd_alloc_libc, "cpu", NULL, &err), &err);
        mxd_load_opts o = {.layer0 = s.n_layers - 1,
                           .layer1 = s.n_layers,
                           .max_rows = 4,
                           .max_logits = 1,
                           .n_pages = 1,
                           .max_context = 32};
        mxd_rc rc = mxd_model_load(m, b, &o, &err);
        CHECK_EQ(rc, shared ? MXD_E_INVAL : MXD_OK);
        CHECK(!shared || strstr(err.msg, models[i].last_cut < 0 ? "at layer 0" : "at layer 2"));
        b->ops->close(b);
        mxd_model_close(m);
        variant_end(&v);
    }
}
