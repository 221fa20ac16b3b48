/* Repositories of Qwen3-Next and Qwen 3.5: the goldens of tests/conformance with one lie each. */
#include "test.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "model/model.h"

enum { MAX_FILE = 1 << 20 };

static char *read_golden(const char *model, const char *name, size_t *n) {
    char rel[256], path[1024];
    char *p = malloc(MAX_FILE);
    snprintf(rel, sizeof rel, "conformance/models/%s/%s", model, name);
    FILE *f = fopen(test_path(path, rel), "rb");
    CHECK(f && p);
    *n = fread(p, 1, MAX_FILE, f);
    CHECK(*n < MAX_FILE && fclose(f) == 0);
    return p;
}

static void write_file(const char *dir, const char *name, const char *p, size_t n) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(p, 1, n, f) == n && fclose(f) == 0);
}

/* Every `from` becomes `to`, of the same length. */
static void replace(char *p, size_t n, const char *from, const char *to) {
    size_t k = strlen(from), found = 0;
    CHECK_EQ(k, strlen(to));
    for (size_t i = 0; i + k <= n; i++) {
        if (memcmp(p + i, from, k) != 0) continue;
        memcpy(p + i, to, k);
        found++;
    }
    CHECK(found > 0);
}

/* Opens a copy of a golden with one key of config.json set to a JSON value (NULL: left out), and
 * `from` replaced by `to` in the tensors' header. */
static mxd_rc open_with(const char *model, const char *key, const char *value, const char *from,
                        const char *to, mxd_model_sizes *sizes, mxd_err *err) {
    char dir[] = "/tmp/mxd-test-delta-XXXXXX", path[64];
    size_t n, n_config;
    char *tensors = read_golden(model, "model.safetensors", &n);
    char *text = read_golden(model, "config.json", &n_config);
    json_t *config = json_loadb(text, n_config, 0, NULL);
    CHECK(config && mkdtemp(dir));
    if (value) json_object_set_new(config, key, json_loads(value, JSON_DECODE_ANY, NULL));
    if (key && !value) json_object_del(config, key);
    if (from) replace(tensors, n, from, to);
    write_file(dir, "model.safetensors", tensors, n);
    free(text);
    text = json_dumps(config, 0);
    write_file(dir, "config.json", text, strlen(text));
    mxd_model *m = NULL;
    mxd_rc rc = mxd_model_open(&m, &mxd_alloc_libc, dir, err);
    if (sizes && !rc) mxd_model_sizes_get(m, 16, MXD_KV_F16, sizes);
    if (!rc) CHECK(mxd_model_recurrent(m));
    mxd_model_close(m);
    json_decref(config);
    free(text), free(tensors);
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    rmdir(dir);
    return rc;
}

#define DENSE "qwen3_5-6bit"
#define NEXT  "qwen3-next-plain"
#define MOE   "qwen3_5_moe-plain"

/* Each row sets one key. */
static const struct {
    const char *model, *key, *value;
    mxd_rc rc;
    const char *says;
} rows[] = {
    {DENSE, "full_attention_interval", "4", MXD_OK, NULL},
    {DENSE, "full_attention_interval", NULL, MXD_OK, NULL},
    {DENSE, "full_attention_interval", "1", MXD_E_FORMAT, "layers.0.self_attn.q_proj"},
    {DENSE, "full_attention_interval", "3", MXD_E_FORMAT, "layers.2.self_attn.q_proj"},
    {DENSE, "full_attention_interval", "0", MXD_E_FORMAT, "must be 1 to"},
    {DENSE, "linear_num_key_heads", NULL, MXD_E_FORMAT, "'linear_num_key_heads' is missing"},
    {DENSE, "linear_num_key_heads", "3", MXD_E_FORMAT, "4 value heads over 3 key heads"},
    {DENSE, "linear_num_value_heads", "1025", MXD_E_FORMAT, "must be 1 to 1024"},
    {DENSE, "linear_key_head_dim", "24", MXD_E_UNSUPPORTED, "multiples of 16"},
    {DENSE, "linear_value_head_dim", "8", MXD_E_UNSUPPORTED, "multiples of 16"},
    {DENSE, "linear_value_head_dim", "32", MXD_E_FORMAT, "in_proj_qkv"},
    {DENSE, "linear_conv_kernel_dim", "3", MXD_E_FORMAT, "conv1d.weight' must be [384]"},
    {DENSE, "linear_conv_kernel_dim", "17", MXD_E_FORMAT, "must be 1 to 16"},
    {DENSE, "rope_parameters", "{\"type\":\"mrope\"}", MXD_OK, NULL},
    {DENSE, "rope_parameters", "{\"partial_rotary_factor\":0.3}", MXD_E_FORMAT, "9 of 32"},
    {DENSE, "partial_rotary_factor", "0", MXD_E_FORMAT, "0 of 32"},
    {DENSE, "attention_bias", "true", MXD_E_FORMAT, "layers.3.self_attn.q_proj.bias'"},
    {DENSE, "num_experts", "4", MXD_E_FORMAT, "'num_experts_per_tok' is missing"},
    {DENSE, "intermediate_size", NULL, MXD_E_FORMAT, "'intermediate_size' is missing"},
    {DENSE, "model_type", "\"qwen3_5_text\"", MXD_OK, NULL},
    {DENSE, "model_type", "\"qwen3_5_moe\"", MXD_OK, NULL}, /* experts are what config.json says */
    {DENSE, "model_type", "\"qwen3_next\"", MXD_E_FORMAT, "in_proj_qkvz"},
    {DENSE, "hidden_size", NULL, MXD_E_FORMAT, "'text_config' is missing"},
    {NEXT, "model_type", "\"qwen3_next\"", MXD_OK, NULL},
    {NEXT, "model_type", "\"qwen3_5\"", MXD_E_FORMAT, "in_proj_qkv."},
    {NEXT, "num_experts", "1025", MXD_E_FORMAT, "must be 0 to 1024"},
    {NEXT, "attention_bias", "false", MXD_OK, NULL}, /* those that are there are used */
    {MOE, "num_experts_per_tok", "6", MXD_E_FORMAT, "must be 1 to 5"},
    {MOE, "intermediate_size", NULL, MXD_OK, NULL},
    {MOE, "shared_expert_intermediate_size", NULL, MXD_E_FORMAT, "is missing"},
    {MOE, "shared_expert_intermediate_size", "24", MXD_E_FORMAT, "shared_expert.gate_proj"},
};

TEST(model_delta_rows) {
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_err err = {0};
        mxd_rc rc = open_with(rows[i].model, rows[i].key, rows[i].value, NULL, NULL, NULL, &err);
        if (rc != rows[i].rc || (rows[i].says && !strstr(err.msg, rows[i].says)))
            fail_msg("%s: %s = %s: %s: %s", rows[i].model, rows[i].key,
                     rows[i].value ? rows[i].value : "nothing", mxd_rc_name(rc), err.msg);
    }
}

static int warnings;

static void count_warnings(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx, (void)event, (void)fields;
    warnings += level >= MXD_LOG_WARN;
}

/* State is counted for each sequence, KV for each position, and a layer has one of them. */
TEST(model_delta_sizes) {
    static mxd_model_sizes s;
    mxd_err err = {0};
    warnings = 0;
    mxd_log_set_sink(count_warnings, NULL);
    CHECK_OK(open_with(DENSE, NULL, NULL, NULL, NULL, &s, &err), &err);
    mxd_log_set_sink(NULL, NULL);
    CHECK_EQ(warnings, 0); /* every tensor is known */
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(s.layer_kv_bytes[i], i == 3 ? 2 * 32 * 2 : 0);
        CHECK_EQ(s.layer_state_bytes[i], i == 3 ? 0 : 4 * (3 * 128 + 4 * 16 * 16));
    }
}

/* [C, 1, inputs] is the convolution before conversion: Qwen 3.5 is read as it is, Qwen3-Next (whose
 * experts are in pieces then) is not. */
TEST(model_delta_unconverted) {
    mxd_err err = {0};
    CHECK_OK(open_with(DENSE, NULL, NULL, "[128,4,1]", "[128,1,4]", NULL, &err), &err);
    CHECK_EQ(open_with(NEXT, NULL, NULL, "[112,3,1]", "[112,1,3]", NULL, &err), MXD_E_UNSUPPORTED);
    CHECK(strstr(err.msg, "use a converted repository"));
}
