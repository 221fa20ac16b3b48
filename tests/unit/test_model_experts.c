/* Families with experts and latent attention: the goldens of tests/conformance/models with one key
 * of config.json, or one tensor, changed. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>
#include "model/model.h"

typedef struct row {
    const char *model, *key, *value; /* value NULL: the key is taken out */
    mxd_rc rc;
    const char *says;
} row;

#define YARN "{\"type\":\"yarn\",\"factor\":4,\"mscale_all_dim\":"

static const row rows[] = {
    {"gpt-oss-odd", "layer_types", NULL, MXD_OK, NULL}, /* all five layers by turns */
    {"gpt-oss-odd", "sliding_window", NULL, MXD_OK, NULL},
    {"gpt-oss-odd", "sliding_window", "0", MXD_E_FORMAT, "'sliding_window' is 0"},
    {"gpt-oss-odd", "layer_types", "[\"full_attention\"]", MXD_E_FORMAT, "a list of 5 names"},
    {"gpt-oss-odd", "num_local_experts", "5", MXD_E_FORMAT, "gate_proj.bias' must be"},
    {"gpt-oss-odd", "num_local_experts", NULL, MXD_E_FORMAT, "is missing"},
    {"gpt-oss-odd", "num_experts_per_tok", "5", MXD_E_FORMAT, "must be 1 to 4"},
    {"gpt-oss-odd", "num_attention_heads", "4", MXD_E_FORMAT, "self_attn."},
    {"gpt-oss-odd", "tie_word_embeddings", "true", MXD_OK, NULL}, /* the head that is there wins */
    {"glm4-moe-groups", "n_group", "3", MXD_E_FORMAT, "8 experts in 3 groups"},
    {"glm4-moe-groups", "n_group", "8", MXD_E_FORMAT, "8 experts in 8 groups"},
    {"glm4-moe-groups", "topk_group", "5", MXD_E_FORMAT, "must be 1 to 4"},
    {"glm4-moe-groups", "n_shared_experts", "1", MXD_E_FORMAT, "mlp.shared_experts."},
    {"glm4-moe-groups", "first_k_dense_replace", "0", MXD_E_FORMAT, "layers.0.mlp.switch_mlp."},
    {"glm4-moe-groups", "first_k_dense_replace", "9", MXD_E_FORMAT, "layers.1.mlp.gate_proj"},
    {"glm4-moe-groups", "topk_method", "\"greedy\"", MXD_E_UNSUPPORTED, "supported: noaux_tc"},
    {"glm4-moe-groups", "scoring_func", "\"softmax\"", MXD_E_UNSUPPORTED, "supported: sigmoid"},
    {"glm4-moe-groups", "scoring_func", "1", MXD_E_UNSUPPORTED, "(not a string)"},
    {"glm4-moe-groups", "partial_rotary_factor", "0.01", MXD_E_FORMAT, "rotates 0 of 32"},
    {"glm4-moe-groups", "rope_scaling", "{\"type\":\"no such\"}", MXD_OK, NULL}, /* not used */
    {"glm4-moe-groups", "routed_scaling_factor", "0", MXD_E_FORMAT, "'routed_scaling_factor'"},
    {"glm4-moe-plain", "use_qk_norm", "true", MXD_E_FORMAT, "self_attn.q_norm.weight' is missing"},
    {"glm4-moe-plain", "attention_bias", "true", MXD_E_FORMAT, "self_attn.q_proj.bias"},
    {"minimax-mxfp8", "rotary_dim", "15", MXD_E_FORMAT, "must be even"},
    {"minimax-mxfp8", "rotary_dim", "34", MXD_E_FORMAT, "must be 2 to 32"},
    {"minimax-mxfp8", "num_local_experts", "7", MXD_E_FORMAT, "implies [7, "},
    {"minimax-mxfp8", "model_type", "\"minimax_m2\"", MXD_OK, NULL},
    {"deepseek-yarn", "q_lora_rank", "null", MXD_E_FORMAT, "self_attn.q_proj.weight' is missing"},
    {"deepseek-yarn", "q_lora_rank", "96", MXD_E_FORMAT, "self_attn.q_b_proj"},
    {"deepseek-yarn", "kv_lora_rank", "72", MXD_E_UNSUPPORTED, "multiples of 16"},
    {"deepseek-yarn", "kv_lora_rank", "1024", MXD_E_UNSUPPORTED, "at most 1024"},
    {"deepseek-yarn", "kv_lora_rank", NULL, MXD_E_FORMAT, "is missing"},
    {"deepseek-yarn", "qk_rope_head_dim", "15", MXD_E_FORMAT, "must be even"},
    {"deepseek-yarn", "v_head_dim", "48", MXD_E_FORMAT, "implies"},
    {"deepseek-yarn", "num_attention_heads", "8", MXD_E_FORMAT, "implies"},
    {"deepseek-yarn", "num_key_value_heads", "3", MXD_OK, NULL}, /* one latent, whatever it says */
    {"deepseek-yarn", "moe_layer_freq", "2", MXD_E_FORMAT, "layers.1.mlp.gate_proj"},
    {"deepseek-yarn", "moe_layer_freq", "0", MXD_E_FORMAT, "'moe_layer_freq' is 0"},
    {"deepseek-yarn", "n_routed_experts", NULL, MXD_E_FORMAT, "layers.1.mlp.gate_proj"},
    {"deepseek-yarn", "rope_scaling", YARN "-1}", MXD_E_FORMAT, "'mscale_all_dim'"},
    {"deepseek-yarn", "model_type", "\"kimi_k2\"", MXD_OK, NULL},
    {"deepseek-joined", "v_head_dim", "32", MXD_E_FORMAT, "self_attn."},
    {"deepseek-joined", "num_attention_heads", "5", MXD_E_FORMAT, "self_attn."},
};

/* The model's folder, with its config.json replaced. */
static void with_config(char dir[64], const char *model, const json_t *config) {
    char from[1024], to[1200], rel[256];
    snprintf(dir, 64, "/tmp/mxd-test-experts-XXXXXX");
    CHECK(mkdtemp(dir) != NULL);
    snprintf(rel, sizeof rel, "conformance/models/%s/model.safetensors", model);
    char *full = realpath(test_path(from, rel), NULL);
    CHECK(full != NULL);
    snprintf(to, sizeof to, "%s/model.safetensors", dir);
    CHECK_EQ(symlink(full, to), 0);
    free(full);
    snprintf(to, sizeof to, "%s/config.json", dir);
    CHECK_EQ(json_dump_file(config, to, 0), 0);
}

static void forget(const char *dir) {
    char path[1200];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
}

static json_t *config_of(const char *model) {
    char rel[256], path[1024];
    snprintf(rel, sizeof rel, "conformance/models/%s/config.json", model);
    json_t *c = json_load_file(test_path(path, rel), 0, NULL);
    CHECK(c != NULL);
    return c;
}

TEST(model_experts_rows) {
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        const row *r = &rows[i];
        char dir[64];
        json_t *config = config_of(r->model);
        if (r->value)
            json_object_set_new(config, r->key, json_loads(r->value, JSON_DECODE_ANY, NULL));
        else
            json_object_del(config, r->key);
        with_config(dir, r->model, config);
        mxd_model *m = NULL;
        mxd_err err = {0};
        mxd_rc rc = mxd_model_open(&m, &mxd_alloc_libc, dir, &err);
        if (rc != r->rc)
            fail_msg("%s: %s = %s: %s (%s), want %s", r->model, r->key, r->value ? r->value : "-",
                     mxd_rc_name(rc), err.msg, mxd_rc_name(r->rc));
        if (r->says && !strstr(err.msg, r->says))
            fail_msg("%s: %s: '%s' does not say '%s'", r->model, r->key, err.msg, r->says);
        mxd_model_close(m);
        json_decref(config);
        forget(dir);
    }
}

static mxd_model *open_golden(const char *model) {
    char rel[256], path[1024];
    mxd_model *m = NULL;
    mxd_err err = {0};
    snprintf(rel, sizeof rel, "conformance/models/%s", model);
    CHECK_OK(mxd_model_open(&m, &mxd_alloc_libc, test_path(path, rel), &err), &err);
    return m;
}

/* Bytes of n weights of 4 bits with two bf16 numbers a group. */
static uint64_t bytes4(int n, int group) { return (uint64_t)(n / 2 + n / group * 4); }

/* Counted by hand from the configuration. */
TEST(model_experts_sizes) {
    enum { D = 64, V = 128, H = 4, R = 64, N = 32, ROPE = 16, VD = 16, Q = 32 };
    enum { F = 64, E = 4, TOP = 2, IN = 32, LAYERS = 3 };
    mxd_model *m = open_golden("deepseek-joined");
    mxd_model_sizes *s = calloc(1, sizeof *s);
    int dense = 3 * D * F, expert = 3 * D * IN, router = E * D + E, norms = 2 * D + Q + R;
    int own = D * Q + Q * H * (N + ROPE) + D * (R + ROPE) + H * VD * D; /* of attention */
    int keys = H * R * N, values = H * VD * R, all = LAYERS * (own + norms + keys + values);
    mxd_model_sizes_get(m, 16, MXD_KV_F16, s);
    CHECK_EQ(mxd_model_params(m),
             all + dense + 2 * ((E + 1) * expert + router) + 2 * V * D + D); /* one is shared */
    double ops = all + dense + 2 * ((TOP + 1) * expert + router);
    CHECK(fabs(LAYERS * s->layer_ops - ops) < 1);
    for (int l = 0; l < LAYERS; l++) CHECK_EQ(s->layer_kv_bytes[l], (R + ROPE) * 2); /* a latent */
    /* both halves of kv_b_proj: keys become floats, values stay */
    CHECK_EQ(s->layer_bytes[0], bytes4(own + dense, 32) + 4 * (uint64_t)norms + 4 * (uint64_t)keys +
                                    bytes4(values, 64));
    mxd_hp_moe moe = mxd_model_hparams(m)->moe;
    CHECK(moe.shared_inner == IN && !moe.sparse[0] && moe.sparse[1] && moe.sparse[2]);
    uint64_t before = s->scratch_bytes;
    mxd_model_sizes_get(m, 17, MXD_KV_F16,
                        s); /* a row more: registers, and its places at TOP experts */
    int width = 2 * D + H * (N + ROPE) + (R + ROPE) + H * VD + H * R + 2 * F; /* of the layer */
    width += R + ROPE + H * N + H * ROPE + H * (R + ROPE) + Q + 16 + 2 * IN;  /* E, up to 16 */
    int angles = 4 * 4 * (R + ROPE);
    CHECK_EQ(s->scratch_bytes - before, 4 * width + TOP * (4 * (D + 2 * IN) + D * 3 / 2) + angles);
    free(s);
    mxd_model_close(m);
}
