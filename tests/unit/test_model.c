/* Repositories are built here, tensor by tensor, in a folder of their own. */
#include "test.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "model/family.h"

enum { MAX_TENSORS = 64, D = 64, F = 128, V = 16, HEADS = 2, KV = 1, HEAD_DIM = 32, LAYERS = 2 };

typedef struct tensor {
    char name[96];
    const char *dtype;
    int n_dims;
    int shape[3];
} tensor;

typedef struct repo {
    char dir[64];
    json_t *config;
    tensor t[MAX_TENSORS];
    int n;
} repo;

/* --------------------------------------------------------------------------------- making one */

static void add(repo *r, const char *name, const char *dtype, int out, int in) {
    tensor *t = &r->t[r->n++];
    *t = (tensor){.dtype = dtype, .n_dims = out ? 2 : 1, .shape = {out ? out : in, in}};
    snprintf(t->name, sizeof t->name, "%s", name);
}

static tensor *find(repo *r, const char *name) {
    for (int i = 0; i < r->n; i++)
        if (strcmp(r->t[i].name, name) == 0) return &r->t[i];
    fail_msg("no tensor %s in the repository", name);
    return NULL;
}

static void drop(repo *r, const char *name) {
    tensor *t = find(r, name);
    *t = r->t[--r->n];
}

static void init(repo *r) {
    *r = (repo){0};
    snprintf(r->dir, sizeof r->dir, "/tmp/mxd-test-model-XXXXXX");
    CHECK(mkdtemp(r->dir) != NULL);
    r->config = json_pack(
        "{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:f}", "model_type", "qwen3",
        "hidden_size", D, "num_hidden_layers", LAYERS, "intermediate_size", F, "vocab_size", V,
        "num_attention_heads", HEADS, "num_key_value_heads", KV, "head_dim", HEAD_DIM,
        "max_position_embeddings", 128, "rms_norm_eps", 1e-6, "rope_theta", 10000.0);
    add(r, "model.embed_tokens.weight", "F16", V, D);
    add(r, "model.norm.weight", "F32", 0, D);
    static const struct {
        const char *path;
        int out, in;
    } w[] = {{"input_layernorm", 0, D},
             {"self_attn.q_proj", HEADS * HEAD_DIM, D},
             {"self_attn.k_proj", KV * HEAD_DIM, D},
             {"self_attn.v_proj", KV * HEAD_DIM, D},
             {"self_attn.o_proj", D, HEADS * HEAD_DIM},
             {"self_attn.q_norm", 0, HEAD_DIM},
             {"self_attn.k_norm", 0, HEAD_DIM},
             {"post_attention_layernorm", 0, D},
             {"mlp.gate_proj", F, D},
             {"mlp.up_proj", F, D},
             {"mlp.down_proj", D, F}};
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < MXD_COUNT(w); i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, w[i].path);
            add(r, name, "BF16", w[i].out, w[i].in);
        }
}

/* Stores a module [out, in] as groups: U32 words, scales, and biases where dtype is a float. */
static void quantise(repo *r, const char *path, int bits, int group, const char *dtype) {
    char name[96];
    snprintf(name, sizeof name, "%s.weight", path);
    tensor *w = find(r, name);
    int out = w->shape[0], in = w->shape[1];
    w->dtype = "U32";
    w->shape[1] = in * bits / 32;
    snprintf(name, sizeof name, "%s.scales", path);
    add(r, name, dtype, out, in / group);
    if (strcmp(dtype, "U8") == 0) return;
    snprintf(name, sizeof name, "%s.biases", path);
    add(r, name, dtype, out, in / group);
}

static int dtype_bytes(const char *dtype) {
    return strstr(dtype, "64") ? 8 : strstr(dtype, "32") ? 4 : strstr(dtype, "16") ? 2 : 1;
}

static void write_file(const repo *r, const char *name, const void *p, size_t n) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", r->dir, name);
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(p, 1, n, f) == n && fclose(f) == 0);
}

static void write_repo(const repo *r) {
    json_t *h = json_object();
    json_int_t at = 0;
    for (int i = 0; i < r->n; i++) {
        const tensor *t = &r->t[i];
        json_t *shape = json_array();
        json_int_t bytes = dtype_bytes(t->dtype);
        for (int d = 0; d < t->n_dims; d++) {
            json_array_append_new(shape, json_integer(t->shape[d]));
            bytes *= t->shape[d];
        }
        json_object_set_new(h, t->name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->dtype, "shape", shape,
                                      "data_offsets", at, at + bytes));
        at += bytes;
    }
    char *text = json_dumps(h, JSON_COMPACT);
    size_t n = strlen(text);
    unsigned char *file = calloc(1, 8 + n + (size_t)at);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)((uint64_t)n >> 8 * i);
    memcpy(file + 8, text, n);
    write_file(r, "model.safetensors", file, 8 + n + (size_t)at);
    free(file);
    free(text);
    json_decref(h);
    text = json_dumps(r->config, 0);
    write_file(r, "config.json", text, strlen(text));
    free(text);
}

static void deinit(repo *r) {
    char path[128];
    json_decref(r->config);
    snprintf(path, sizeof path, "%s/model.safetensors", r->dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/config.json", r->dir);
    unlink(path);
    CHECK_EQ(rmdir(r->dir), 0);
}

static void set(repo *r, const char *key, const char *json_text) {
    if (!json_text) {
        json_object_del(r->config, key);
        return;
    }
    json_t *v = json_loads(json_text, JSON_DECODE_ANY, NULL);
    CHECK(v != NULL);
    json_object_set_new(r->config, key, v);
}

/* Opens what the repository is now; wants rc, and `says` in the message. */
static void check_open(const repo *r, mxd_rc want, const char *says, const char *row) {
    mxd_model *m = NULL;
    mxd_err err = {0};
    write_repo(r);
    mxd_rc rc = mxd_model_open(&m, &mxd_alloc_libc, r->dir, &err);
    if (rc != want)
        fail_msg("%s: %s (%s), want %s", row, mxd_rc_name(rc), err.msg, mxd_rc_name(want));
    if (says && !strstr(err.msg, says)) fail_msg("%s: '%s' does not say '%s'", row, err.msg, says);
    CHECK(rc == MXD_OK || strstr(err.msg, r->dir)); /* which model */
    mxd_model_close(m);
}

/* ------------------------------------------------------------------------------- config.json */

static const struct {
    const char *key, *value; /* NULL: the key is missing */
    mxd_rc rc;
    const char *says;
} config_rows[] = {
    {"hidden_size", "64", MXD_OK, NULL},
    {"hidden_size", NULL, MXD_E_FORMAT, "'hidden_size' is missing"},
    {"hidden_size", "null", MXD_E_FORMAT, "'hidden_size' is missing"},
    {"hidden_size", "\"64\"", MXD_E_FORMAT, "must be an integer"},
    {"hidden_size", "64.0", MXD_E_FORMAT, "must be an integer"},
    {"hidden_size", "true", MXD_E_FORMAT, "must be an integer"},
    {"hidden_size", "[64]", MXD_E_FORMAT, "must be an integer"},
    {"hidden_size", "0", MXD_E_FORMAT, "must be 1 to 131072"},
    {"hidden_size", "-64", MXD_E_FORMAT, "must be 1 to"},
    {"hidden_size", "131073", MXD_E_FORMAT, "must be 1 to 131072"},
    {"hidden_size", "4294967360", MXD_E_FORMAT, "must be 1 to"}, /* 64 in 32 bits */
    {"hidden_size", "9223372036854775807", MXD_E_FORMAT, "must be 1 to"},
    {"num_hidden_layers", NULL, MXD_E_FORMAT, "'num_hidden_layers' is missing"},
    {"num_hidden_layers", "0", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_hidden_layers", "1025", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_hidden_layers", "{}", MXD_E_FORMAT, "must be an integer"},
    {"num_hidden_layers", "3", MXD_E_FORMAT, "model.layers.2."}, /* one more than there is */
    {"num_hidden_layers", "1", MXD_OK, NULL},                    /* one less: ignored */
    {"intermediate_size", NULL, MXD_E_FORMAT, "'intermediate_size' is missing"},
    {"intermediate_size", "0", MXD_E_FORMAT, "must be 1 to"},
    {"intermediate_size", "1048577", MXD_E_FORMAT, "must be 1 to"},
    {"intermediate_size", "\"\"", MXD_E_FORMAT, "must be an integer"},
    {"vocab_size", NULL, MXD_E_FORMAT, "'vocab_size' is missing"},
    {"vocab_size", "1", MXD_E_FORMAT, "must be 2 to"},
    {"vocab_size", "4194305", MXD_E_FORMAT, "must be 2 to 4194304"},
    {"vocab_size", "[]", MXD_E_FORMAT, "must be an integer"},
    {"vocab_size", "9", MXD_E_FORMAT, "model.embed_tokens"},
    {"num_attention_heads", NULL, MXD_E_FORMAT, "'num_attention_heads' is missing"},
    {"num_attention_heads", "0", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_attention_heads", "1025", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_attention_heads", "\"2\"", MXD_E_FORMAT, "must be an integer"},
    {"num_key_value_heads", "0", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_key_value_heads", "1025", MXD_E_FORMAT, "must be 1 to 1024"},
    {"num_key_value_heads", "1.5", MXD_E_FORMAT, "must be an integer"},
    {"num_key_value_heads", "3", MXD_E_FORMAT, "cannot be"}, /* 2 heads over 3 */
    {"num_key_value_heads", NULL, MXD_E_FORMAT, "k_proj"},   /* as many as heads: shapes differ */
    {"head_dim", NULL, MXD_OK, NULL},                        /* hidden / heads */
    {"head_dim", "1", MXD_E_FORMAT, "must be 2 to 1024"},
    {"head_dim", "1025", MXD_E_FORMAT, "must be 2 to 1024"},
    {"head_dim", "33", MXD_E_FORMAT, "cannot be"}, /* odd */
    {"head_dim", "\"32\"", MXD_E_FORMAT, "must be an integer"},
    {"max_position_embeddings", NULL, MXD_OK, NULL},
    {"max_position_embeddings", "0", MXD_E_FORMAT, "must be 1 to"},
    {"max_position_embeddings", "16777217", MXD_E_FORMAT, "must be 1 to 16777216"},
    {"max_position_embeddings", "16777216", MXD_OK, NULL},
    {"max_position_embeddings", "\"x\"", MXD_E_FORMAT, "must be an integer"},
    {"rms_norm_eps", NULL, MXD_OK, NULL},
    {"rms_norm_eps", "\"1e-6\"", MXD_E_FORMAT, "must be a number"},
    {"rms_norm_eps", "-0.1", MXD_E_FORMAT, "must be 0 to 1"},
    {"rms_norm_eps", "1.5", MXD_E_FORMAT, "must be 0 to 1"},
    {"rms_norm_eps", "{\"__float__\":\"Infinity\"}", MXD_E_FORMAT, "must be"},
    {"rope_theta", NULL, MXD_OK, NULL},
    {"rope_theta", "0", MXD_E_FORMAT, "must be 1 to 1e+12"},
    {"rope_theta", "1e13", MXD_E_FORMAT, "must be 1 to 1e+12"},
    {"rope_theta", "[1]", MXD_E_FORMAT, "must be a number"},
    {"rope_scaling", "null", MXD_OK, NULL},
    {"rope_scaling", "\"linear\"", MXD_E_FORMAT, "must be an object"},
    {"rope_scaling", "{\"type\":\"linear\",\"factor\":2}", MXD_OK, NULL},
    {"rope_scaling", "{\"rope_type\":\"linear\",\"factor\":0}", MXD_E_FORMAT, "'factor'"},
    {"rope_scaling", "{\"rope_type\":\"linear\",\"factor\":\"2\"}", MXD_E_FORMAT, "'factor'"},
    {"rope_scaling", "{\"rope_type\":\"spiral\"}", MXD_E_UNSUPPORTED, "'spiral'"},
    {"rope_scaling", "{\"rope_type\":\"yarn\"}", MXD_E_FORMAT, "'factor'"},
    {"rope_scaling", "{\"rope_type\":7}", MXD_OK, NULL},
    {"rope_parameters", "{\"rope_theta\":0.5}", MXD_E_FORMAT, "'rope_theta'"},
    {"rope_parameters", "{\"rope_theta\":5e5,\"rope_type\":\"default\"}", MXD_OK, NULL},
    {"rope_parameters", "[]", MXD_E_FORMAT, "must be an object"},
    {"tie_word_embeddings", "1", MXD_E_FORMAT, "must be true or false"},
    {"tie_word_embeddings", "true", MXD_OK, NULL},
    {"tie_word_embeddings", "false", MXD_E_FORMAT, "lm_head.weight' is missing"},
    {"model_type", NULL, MXD_E_FORMAT, "'model_type' is missing"},
    {"model_type", "3", MXD_E_FORMAT, "'model_type' is missing"},
    {"model_type", "\"\"", MXD_E_UNSUPPORTED, "supported"},
    {"model_type", "\"qwen3_zzz\"", MXD_E_UNSUPPORTED, "nearest first): qwen3"},
    {"model_type", "\"rwkv7\"", MXD_E_UNSUPPORTED, "'rwkv7' is not supported"},
    {"model_file", "\"model.py\"", MXD_E_UNSUPPORTED, "never done"},
    {"model_file", "null", MXD_OK, NULL},
    {"some_new_key", "{\"x\":[1,2]}", MXD_OK, NULL},
};

TEST(model_config_rows) {
    for (size_t i = 0; i < MXD_COUNT(config_rows); i++) {
        repo r;
        char row[128];
        init(&r);
        set(&r, config_rows[i].key, config_rows[i].value);
        snprintf(row, sizeof row, "%s = %s", config_rows[i].key,
                 config_rows[i].value ? config_rows[i].value : "(none)");
        check_open(&r, config_rows[i].rc, config_rows[i].says, row);
        deinit(&r);
    }
}

TEST(model_long_model_type_is_named_and_cut) {
    repo r;
    char type[2002];
    memset(type, 'q', sizeof type);
    type[0] = type[2000] = '"';
    type[2001] = '\0';
    init(&r);
    set(&r, "model_type", type);
    check_open(&r, MXD_E_UNSUPPORTED, NULL, "long type");
    deinit(&r);
}

TEST(model_config_that_is_no_object) {
    static const char *const texts[] = {"", "[]", "3", "{", "\"x\"", "{}{}", "\xff"};
    repo r;
    init(&r);
    write_repo(&r);
    for (size_t i = 0; i < MXD_COUNT(texts); i++) {
        mxd_model *m;
        mxd_err err = {0};
        write_file(&r, "config.json", texts[i], strlen(texts[i]));
        CHECK_EQ(mxd_model_open(&m, &mxd_alloc_libc, r.dir, &err), MXD_E_FORMAT);
        CHECK(strstr(err.msg, "config.json"));
    }
    deinit(&r);
}

TEST(model_files_that_are_missing) {
    repo r;
    mxd_model *m;
    mxd_err err = {0};
    char path[128];
    init(&r);
    write_repo(&r);
    snprintf(path, sizeof path, "%s/config.json", r.dir);
    unlink(path);
    CHECK_EQ(mxd_model_open(&m, &mxd_alloc_libc, r.dir, &err), MXD_E_NOTFOUND);
    CHECK(strstr(err.msg, "config.json"));
    write_repo(&r);
    snprintf(path, sizeof path, "%s/model.safetensors", r.dir);
    unlink(path);
    CHECK_EQ(mxd_model_open(&m, &mxd_alloc_libc, r.dir, &err), MXD_E_NOTFOUND);
    CHECK_EQ(mxd_model_open(&m, &mxd_alloc_libc, "/no/such/folder", &err), MXD_E_NOTFOUND);
    char far[1200];
    memset(far, 'x', sizeof far);
    far[sizeof far - 1] = '\0';
    CHECK_EQ(mxd_model_open(&m, &mxd_alloc_libc, far, &err), MXD_E_TOOBIG);
    deinit(&r);
}

/* ------------------------------------------------------------------------------------ tensors */

TEST(model_every_tensor_is_needed) {
    repo all;
    init(&all);
    for (int i = 0; i < all.n; i++) {
        repo r = all;
        char name[96];
        snprintf(name, sizeof name, "%s", all.t[i].name);
        drop(&r, name);
        check_open(&r, MXD_E_FORMAT, name, "dropped");
    }
    deinit(&all);
}

TEST(model_every_shape_is_checked) {
    repo all;
    init(&all);
    for (int i = 0; i < all.n; i++)
        for (int d = 0; d < all.t[i].n_dims; d++)
            for (int by = -1; by <= 1; by += 2) {
                repo r = all;
                char name[96];
                snprintf(name, sizeof name, "%.*s", (int)strlen(all.t[i].name) - 7, all.t[i].name);
                r.t[i].shape[d] += by;
                check_open(&r, MXD_E_FORMAT, name, "shape");
            }
    for (int i = 0; i < all.n; i++) { /* and the rank */
        repo r = all;
        r.t[i].n_dims++;
        r.t[i].shape[r.t[i].n_dims - 1] = 1;
        check_open(&r, MXD_E_FORMAT, NULL, "rank");
    }
    deinit(&all);
}

/* Numbers that are no floats where floats are needed. */
TEST(model_every_dtype_is_checked) {
    static const char *const wrong[] = {"U32", "I32", "I8", "U64", "BOOL"};
    repo all;
    init(&all);
    for (int i = 0; i < all.n; i++) {
        repo r = all;
        r.t[i].dtype = wrong[i % 5];
        check_open(&r, MXD_E_FORMAT, all.t[i].name, "dtype");
    }
    deinit(&all);
}

TEST(model_bias_of_a_layer) {
    repo r;
    init(&r);
    add(&r, "model.layers.0.self_attn.q_proj.bias", "BF16", 0, HEADS * HEAD_DIM);
    check_open(&r, MXD_OK, NULL, "bias");
    find(&r, "model.layers.0.self_attn.q_proj.bias")->shape[0]++;
    check_open(&r, MXD_E_FORMAT, "q_proj.bias", "bias too long");
    deinit(&r);
}

static char warned[1024];
static void note(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    if (level < MXD_LOG_WARN) return;
    size_t n = strlen(warned);
    snprintf(warned + n, sizeof warned - n, "%s %s\n", event, fields);
}

/* What nobody asked for is named; leftovers that many repositories have are not. */
TEST(model_unexpected_tensors_are_named) {
    repo r;
    init(&r);
    add(&r, "model.layers.0.mlp.router.weight", "F32", 2, D);
    add(&r, "model.layers.7.mlp.up_proj.weight", "F32", 2, D); /* behind the last layer */
    add(&r, "model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 0, 16);
    add(&r, "mtp.x.weight", "F32", 0, 16);
    add(&r, "vision.weight", "F32", 0, 16);
    warned[0] = '\0';
    mxd_log_set_sink(note, NULL);
    check_open(&r, MXD_OK, NULL, "unexpected");
    mxd_log_set_sink(NULL, NULL);
    CHECK_STR(warned, "tensor_unexpected name=model.layers.0.mlp.router.weight\n"
                      "tensor_unexpected name=vision.weight\n");
    deinit(&r);
}

/* ----------------------------------------------------------------------------------- families */

#define LLAMA3 "{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":"
#define LONG   "{\"type\":\"longrope\",\"long_factor\":"

/* Each row sets one key of a repository of the type. */
static const struct {
    const char *type, *key, *value;
    mxd_rc rc;
    const char *says;
} family_rows[] = {
    {"llama", "attention_bias", "false", MXD_OK, NULL},
    {"llama", "attention_bias", "true", MXD_E_FORMAT, "self_attn.q_proj.bias' is missing"},
    {"llama", "attention_bias", "1", MXD_E_FORMAT, "must be true or false"},
    {"llama", "mlp_bias", "true", MXD_E_FORMAT, "mlp.gate_proj.bias' is missing"},
    {"llama", "mlp_bias", "\"\"", MXD_E_FORMAT, "must be true or false"},
    {"llama", "rope_traditional", "0", MXD_E_FORMAT, "must be true or false"},
    {"llama", "sliding_window", "0", MXD_OK, NULL}, /* unused without layer_types */
    {"llama", "layer_types", "null", MXD_OK, NULL},
    {"llama", "layer_types", "[\"full_attention\",\"full_attention\"]", MXD_OK, NULL},
    {"llama", "layer_types", "[\"full_attention\",\"sliding_attention\"]", MXD_E_FORMAT,
     "'sliding_window' is missing"},
    {"llama", "layer_types", "[\"full_attention\"]", MXD_E_FORMAT, "a list of 2 names"},
    {"llama", "layer_types", "\"full_attention\"", MXD_E_FORMAT, "a list of 2 names"},
    {"llama", "layer_types", "[1,2]", MXD_E_UNSUPPORTED, "of layer 0 is '(not a string)'"},
    {"llama", "layer_types", "[\"full_attention\",\"linear_attention\"]", MXD_E_UNSUPPORTED,
     "of layer 1 is 'linear_attention'"},
    {"llama", "rope_scaling", LLAMA3 "1}", MXD_OK, NULL},
    {"llama", "rope_scaling", LLAMA3 "0}", MXD_E_FORMAT, "'low_freq_factor'"},
    {"llama", "rope_scaling", LLAMA3 "1,\"high_freq_factor\":\"4\"}", MXD_E_FORMAT,
     "'high_freq_factor'"},
    {"llama", "rope_scaling", "{\"type\":\"llama3\"}", MXD_E_FORMAT, "'factor'"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":4}", MXD_OK, NULL},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":4,\"beta_fast\":0}", MXD_E_FORMAT,
     "'beta_fast'"},
    {"llama", "rope_scaling", "{\"type\":\"yarn\",\"factor\":4,\"mscale\":-1}", MXD_E_FORMAT,
     "'mscale'"},
    {"llama", "rope_parameters", "{\"rope_theta\":1,\"type\":\"yarn\",\"factor\":4}", MXD_E_FORMAT,
     "above 1"},
    {"llama", "rope_scaling", LONG "2}", MXD_OK, NULL},
    {"llama", "rope_scaling", LONG "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", MXD_OK, NULL},
    {"llama", "rope_scaling", LONG "[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,0]}", MXD_E_FORMAT,
     "16 numbers"},
    {"llama", "rope_scaling", LONG "[1,2]}", MXD_E_FORMAT, "16 numbers"},
    {"llama", "rope_scaling", LONG "[]}", MXD_E_FORMAT, "16 numbers"},
    {"llama", "rope_scaling", LONG "\"2\"}", MXD_E_FORMAT, "16 numbers"},
    {"llama", "rope_scaling", "{\"type\":\"su\"}", MXD_E_FORMAT, "16 numbers"},
    {"llama", "rope_scaling", LONG "2,\"original_max_position_embeddings\":1}", MXD_E_FORMAT,
     "'original_max_position_embeddings'"},
    {"llama", "rope_scaling", "{\"type\":\"dynamic\",\"factor\":2}", MXD_OK, NULL},
    {"llama", "rope_scaling", "{\"type\":\"dynamic\"}", MXD_E_FORMAT, "'factor'"},
    {"llama", "rope_scaling", "{\"type\":\"proportional\"}", MXD_OK, NULL},
    {"llama", "rope_scaling", "{\"type\":\"proportional\",\"partial_rotary_factor\":2}",
     MXD_E_FORMAT, "must be 0 to 1"},
    {"llama", "rope_scaling", "{\"type\":\"spiral\",\"factor\":2}", MXD_E_UNSUPPORTED,
     "supported: default, linear, llama3, yarn, longrope, su, dynamic, proportional"},
    {"llama", "quantization_config", "{\"quant_method\":\"awq\",\"version\":\"gemm\"}",
     MXD_E_UNSUPPORTED, "quantized by 'awq', which is not MLX's format"},
    {"llama", "quantization_config", "{\"quant_method\":\"mlx\",\"bits\":4,\"group_size\":64}",
     MXD_OK, NULL},
    {"llama", "rms_norm_eps", "{\"__float__\":\"Infinity\"}", MXD_E_FORMAT, "must be 0 to 1"},
    {"llama", "rms_norm_eps", "{\"__float__\":\"NaN\"}", MXD_E_FORMAT, "must be 0 to 1"},
    {"llama", "rms_norm_eps", "{\"__int__\":1}", MXD_E_FORMAT, "must be a number"},
    {"qwen2", "model_type", "\"qwen2\"", MXD_E_FORMAT, "self_attn.q_proj.bias' is missing"},
    {"llama", "model_type", "\"mistral\"", MXD_OK, NULL}, /* other names */
    {"llama", "model_type", "\"iquestcoder\"", MXD_OK, NULL},
    {"llama", "model_type", "\"kimi_k2\"", MXD_E_FORMAT, "'kv_lora_rank' is missing"},
    {"llama", "model_type", "\"kimi_k9\"", MXD_E_UNSUPPORTED, "'kimi_k9' is not supported"},
    {"llama", "model_type", "\"llama9\"", MXD_E_UNSUPPORTED, "nearest first): llama, "},
    {"phi3", "partial_rotary_factor", "0.75", MXD_OK, NULL},
    {"phi3", "partial_rotary_factor", "0.7", MXD_OK, NULL},          /* 22 */
    {"phi3", "partial_rotary_factor", "0.8", MXD_E_FORMAT, "25 of"}, /* of 32: odd */
    {"phi3", "partial_rotary_factor", "0", MXD_E_FORMAT, "0 of 32"},
    {"phi3", "partial_rotary_factor", "1.01", MXD_E_FORMAT, "must be 0 to 1"},
    {"phi3", "rope_parameters", "{\"partial_rotary_factor\":0.8}", MXD_E_FORMAT, "25 of 32"},
    {"qwen3_moe", "norm_topk_prob", "true", MXD_OK, NULL},
    {"qwen3_moe", "norm_topk_prob", "1", MXD_E_FORMAT, "must be true or false"},
    {"qwen3_moe", "num_experts", "5", MXD_E_FORMAT, "implies [5, 32, 64]"},
    {"qwen3_moe", "num_experts", "1025", MXD_E_FORMAT, "'num_experts' is 1025"},
    {"qwen3_moe", "num_experts", "null", MXD_E_FORMAT, "'num_experts' is missing"},
    {"qwen3_moe", "num_experts_per_tok", "4", MXD_OK, NULL},
    {"qwen3_moe", "num_experts_per_tok", "5", MXD_E_FORMAT, "must be 1 to 4"},
    {"qwen3_moe", "moe_intermediate_size", "48", MXD_E_FORMAT, "implies [4, 48, 64]"},
    {"qwen3_moe", "decoder_sparse_step", "1", MXD_E_FORMAT, "layers.0.mlp.switch_mlp.gate_proj"},
    {"qwen3_moe", "decoder_sparse_step", "0", MXD_E_FORMAT, "must be 1 to"},
    {"qwen3_moe", "mlp_only_layers", "[0, 7, -1]", MXD_OK, NULL}, /* no such layers */
    {"qwen3_moe", "mlp_only_layers", "[1]", MXD_E_FORMAT, "layers.1.mlp.gate_proj"},
    {"qwen3_moe", "mlp_only_layers", "[\"1\"]", MXD_E_FORMAT, "numbers of layers"},
    {"qwen3_moe", "mlp_only_layers", "1", MXD_E_FORMAT, "must be a list"},
};

/* Replaces the modules `parts`, which follow each other, by one of all their rows. */
static void fuse(repo *r, int layer, const char *const *parts, int n, const char *into) {
    char name[96];
    int rows = 0;
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i]);
        rows += find(r, name)->shape[0];
        drop(r, name);
    }
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, into);
    add(r, name, "BF16", rows, D);
}

/* Turns the repository into one of the type, without what the type does not have. */
/* Four experts in place of the MLP of the last layer. */
static void become_sparse(repo *r) {
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    char name[96];
    json_object_update_new(r->config, json_pack("{s:i, s:i, s:i, s:i}", "num_experts", 4,
                                                "num_experts_per_tok", 2, "moe_intermediate_size",
                                                32, "decoder_sparse_step", LAYERS));
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.%s.weight", LAYERS - 1, names[i]);
        drop(r, name);
        snprintf(name, sizeof name, "model.layers.%d.mlp.switch_mlp.%s.weight", LAYERS - 1,
                 names[i]);
        add(r, name, "BF16", 4, 0);
        r->t[r->n - 1].n_dims = 3;
        r->t[r->n - 1].shape[1] = i < 2 ? 32 : D;
        r->t[r->n - 1].shape[2] = i < 2 ? D : 32;
    }
    snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", LAYERS - 1);
    add(r, name, "BF16", 4, D);
}

static void become(repo *r, const char *type) {
    static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                             *const gate_up[] = {"mlp.gate_proj", "mlp.up_proj"};
    json_object_set_new(r->config, "model_type", json_string(type));
    if (strcmp(type, "qwen3_moe") == 0) {
        become_sparse(r);
        return;
    }
    for (int l = 0; l < LAYERS; l++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.self_attn.q_norm.weight", l);
        drop(r, name);
        snprintf(name, sizeof name, "model.layers.%d.self_attn.k_norm.weight", l);
        drop(r, name);
        if (strcmp(type, "phi3") != 0) continue;
        fuse(r, l, qkv, 3, "self_attn.qkv_proj");
        fuse(r, l, gate_up, 2, "mlp.gate_up_proj");
    }
}

TEST(model_family_rows) {
    for (size_t i = 0; i < MXD_COUNT(family_rows); i++) {
        repo r;
        char row[256];
        init(&r);
        become(&r, family_rows[i].type);
        set(&r, family_rows[i].key, family_rows[i].value);
        snprintf(row, sizeof row, "%s: %s = %s", family_rows[i].type, family_rows[i].key,
                 family_rows[i].value);
        check_open(&r, family_rows[i].rc, family_rows[i].says, row);
        deinit(&r);
    }
}

/* A derived head_dim has the limit of a given one. */
TEST(model_head_dim_from_hidden) {
    repo r;
    init(&r);
    become(&r, "llama");
    set(&r, "head_dim", NULL);
    set(&r, "hidden_size", "4096");
    set(&r, "num_key_value_heads", "2");
    check_open(&r, MXD_E_FORMAT, "of 2048 values cannot be", "2 heads of 4096");
    deinit(&r);
}

/* Biases that config.json promises: all of them, of the right length. */
TEST(model_promised_biases) {
    static const struct {
        const char *path;
        int n;
    } b[] = {{"self_attn.q_proj", HEADS * HEAD_DIM},
             {"self_attn.k_proj", KV * HEAD_DIM},
             {"self_attn.v_proj", KV * HEAD_DIM},
             {"self_attn.o_proj", D},
             {"mlp.gate_proj", F},
             {"mlp.up_proj", F},
             {"mlp.down_proj", D}};
    repo all;
    init(&all);
    become(&all, "llama");
    set(&all, "attention_bias", "true");
    set(&all, "mlp_bias", "true");
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < MXD_COUNT(b); i++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.%d.%s.bias", l, b[i].path);
            add(&all, name, "F16", 0, b[i].n);
        }
    check_open(&all, MXD_OK, NULL, "all biases");
    for (int i = 0; i < all.n; i++) {
        repo r = all;
        char name[96];
        snprintf(name, sizeof name, "%s", all.t[i].name);
        drop(&r, name);
        check_open(&r, MXD_E_FORMAT, name, "dropped");
    }
    deinit(&all);
}

/* Three parts of one matrix: checked as one, counted once. */
TEST(model_fused_projections) {
    static mxd_model_sizes s;
    mxd_err err = {0};
    repo all;
    init(&all);
    become(&all, "phi3");
    warned[0] = '\0';
    mxd_log_set_sink(note, NULL);
    check_open(&all, MXD_OK, NULL, "phi3");
    CHECK_STR(warned, "");
    for (int i = 0; i < 3 * LAYERS; i++) { /* as many as there are further parts */
        char name[96];
        snprintf(name, sizeof name, "model.layers.1.mlp.router.%d", i);
        add(&all, name, "F32", 2, D);
    }
    check_open(&all, MXD_OK, NULL, "phi3");
    CHECK(strstr(warned, "tensor_unexpected name=model.layers.1.mlp.router.0\n"));
    mxd_log_set_sink(NULL, NULL);
    all.n -= 3 * LAYERS;
    for (int i = 0; i < all.n; i++) {
        repo r = all;
        r.t[i].shape[0]++;
        char name[96];
        snprintf(name, sizeof name, "%.*s", (int)strlen(all.t[i].name) - 7, all.t[i].name);
        check_open(&r, MXD_E_FORMAT, name, "shape");
    }
    quantise(&all, "model.layers.1.self_attn.qkv_proj", 8, 64, "F16");
    set(&all, "quantization", "{\"group_size\":64,\"bits\":8}");
    write_repo(&all);
    CHECK_OK(mxd_model_sizes_read(&s, &mxd_alloc_libc, all.dir, 16, MXD_KV_F16, &err), &err);
    int qkv = (HEADS + 2 * KV) * HEAD_DIM, numbers = 2 * D + qkv * D + HEADS * HEAD_DIM * D;
    numbers += 3 * D * F;
    CHECK_EQ(s.layer_bytes[0], numbers * 2 + 2 * D * 2); /* norms are float32 in memory */
    CHECK_EQ(s.layer_bytes[1], s.layer_bytes[0] - qkv * D + 2 * qkv * 2);
    deinit(&all);
}

/* What mlx-lm's rope_utils gives for heads of 10. */
static const struct {
    const char *scaling;
    double theta;
    int context;
    double inv_freq[5], scale;
} rope_rows[] = {
    {LLAMA3 "1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}",
     1000,
     256,
     {1.0, 0.14558586, 0.0078869666, 0.0019811162, 0.00049763393},
     1},
    {"{\"rope_type\":\"llama3\",\"factor\":32.0}",
     500000,
     131072,
     {1.0, 0.072477962, 0.0052530554, 1.1897834e-05, 8.6233092e-07},
     1},
    {"{\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":64,\"beta_fast\":16}",
     10000,
     256,
     {1.0, 0.099055821, 0.0062797158, 0.00099526768, 0.00015773932},
     1.13862944},
    {"{\"type\":\"yarn\",\"factor\":4.0,\"mscale\":0.5,\"mscale_all_dim\":2}",
     1000000,
     32768,
     {1.0, 0.063095733, 0.0024881698, 6.279714e-05, 3.9622322e-06},
     0.837194982},
    {"{\"rope_type\":\"yarn\",\"factor\":0.5,\"original_max_position_embeddings\":64,"
     "\"beta_fast\":1,\"beta_slow\":1}",
     10000,
     256,
     {1.0, 0.15848931, 0.050237727, 0.0079621414, 0.0012619146},
     1},
    {LONG "[1,1.5,2,8,64],\"original_max_position_embeddings\":64}",
     10000,
     256,
     {1.0, 0.10565955, 0.012559432, 0.00049763384, 9.8587078e-06},
     1.15470054},
    {LONG "2,\"original_max_position_embeddings\":256}",
     10000,
     256,
     {0.5, 0.079244657, 0.012559432, 0.0019905354, 0.00031547865},
     1},
    {LONG "2,\"original_max_position_embeddings\":256}", /* shrunk: no factor */
     10000,
     64,
     {0.5, 0.079244657, 0.012559432, 0.0019905354, 0.00031547865},
     1},
    {"{\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":6}", /* a step */
     10000,
     256,
     {1.0, 0.039622329, 0.0062797158, 0.00099526768, 0.00015773932},
     1.13862944},
    {"{\"type\":\"yarn\",\"factor\":2,\"beta_fast\":652}", /* the ramp ends behind the head */
     10,
     8192,
     {1.0, 0.59590417, 0.35387305, 0.20932383, 0.12326947},
     1.06931472},
    {"{\"type\":\"linear\",\"factor\":4}",
     10000,
     256,
     {0.25, 0.039622328, 0.006279716, 0.0009952677, 0.00015773933},
     1},
    {"{\"type\":\"proportional\",\"factor\":2,\"partial_rotary_factor\":0.5}", /* 3 pairs */
     10000,
     256,
     {0.5, 0.079244657, 0.012559432, 0, 0},
     1},
    {"{\"type\":\"dynamic\",\"factor\":4}", /* up to the context */
     10000,
     256,
     {1.0, 0.15848931, 0.025118864, 0.0039810717, 0.00063095734},
     1},
};

static bool near(double got, double want) { return got >= want * 0.99999 && got <= want * 1.00001; }

TEST(model_rope_frequencies) {
    for (size_t i = 0; i < MXD_COUNT(rope_rows); i++) {
        mxd_err err = {0};
        mxd_rope_spec s = {.dims = 10};
        float f[5];
        json_t *c = json_pack("{s:o}", "rope_scaling", json_loads(rope_rows[i].scaling, 0, NULL));
        CHECK(c);
        CHECK_OK(mxd_rope_read(&s, c, rope_rows[i].context, rope_rows[i].theta, &err), &err);
        float scale = mxd_rope_make(&s, f);
        if (!near((double)scale, rope_rows[i].scale))
            fail_msg("row %zu: scale %g", i, (double)scale);
        for (int k = 0; k < 5; k++)
            if (!near((double)f[k], rope_rows[i].inv_freq[k]))
                fail_msg("row %zu: frequency %d is %.9g", i, k, (double)f[k]);
        json_decref(c);
    }
}

TEST(model_rope_of_a_layer_type) {
    mxd_err err = {0};
    mxd_rope_spec s = {.dims = 10};
    bool there;
    json_t *c = json_loads("{\"rope_theta\":7,\"rope_parameters\":{\"full_attention\":"
                           "{\"rope_theta\":100,\"rope_type\":\"linear\",\"factor\":4},"
                           "\"sliding_attention\":[],\"x\":null}}",
                           0, NULL);
    CHECK_OK(mxd_rope_read_type(&s, c, "full_attention", 256, 10000, &there, &err), &err);
    CHECK(there && s.theta == 100 && s.kind == MXD_ROPE_LINEAR && s.factor == 4);
    CHECK_OK(mxd_rope_read_type(&s, c, "x", 256, 10000, &there, &err), &err);
    CHECK(!there && s.theta == 100);
    CHECK_EQ(mxd_rope_read_type(&s, c, "sliding_attention", 256, 1, &there, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "rope_parameters.sliding_attention"));
    json_decref(c);
}

/* ------------------------------------------------------------------------------ quantization */

#define Q "model.layers.0.self_attn.q_proj"

/* One layer stored as (bits, group, dtype of the scales), and what "quantization" says. */
static const struct {
    int bits, group;
    const char *dtype, *says; /* says: the object in config.json; NULL: none */
    mxd_rc rc;
    const char *message;
    bool warns; /* inferred from the shapes */
} quant_rows[] = {
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, false},
    {4, 64, "BF16", "{\"group_size\":64,\"bits\":4,\"mode\":\"affine\"}", MXD_OK, NULL, false},
    {3, 32, "F32", "{\"group_size\":32,\"bits\":3}", MXD_OK, NULL, false},
    {5, 32, "F32", "{\"group_size\":32,\"bits\":5}", MXD_OK, NULL, false},
    {6, 64, "F32", "{\"group_size\":64,\"bits\":6}", MXD_OK, NULL, false},
    {2, 64, "F32", "{\"group_size\":64,\"bits\":2}", MXD_OK, NULL, false},
    {8, 32, "F16", "{\"group_size\":32,\"bits\":8}", MXD_OK, NULL, false},
    {4, 32, "U8", "{\"group_size\":32,\"bits\":4,\"mode\":\"mxfp4\"}", MXD_OK, NULL, false},
    {8, 32, "U8", "{\"group_size\":32,\"bits\":8,\"mode\":\"mxfp8\"}", MXD_OK, NULL, false},
    {4, 16, "U8", "{\"group_size\":16,\"bits\":4,\"mode\":\"nvfp4\"}", MXD_OK, NULL, false},
    /* the top level is wrong or not there: the shapes say it */
    {8, 64, "F16", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, true},
    {4, 32, "F16", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, true},
    {4, 64, "F16", NULL, MXD_OK, NULL, true},
    {4, 32, "U8", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, true},
    {8, 32, "U8", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, true},
    {4, 16, "U8", "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, true},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"mode\":\"mxfp4\"}", MXD_OK, NULL, true},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"mode\":\"new\"}", MXD_OK, NULL, true},
    /* nothing fits */
    {4, 16, "F16", NULL, MXD_E_FORMAT, "fit no quantization", false},
    {7, 32, "F16", NULL, MXD_E_FORMAT, "fit no quantization", false},
    {1, 32, "F16", NULL, MXD_E_FORMAT, "fit no quantization", false},
    {4, 64, "U8", NULL, MXD_E_FORMAT, "fit no quantization", false},
    /* an override that is an object: its own word, nothing inherited */
    {4, 64, "F16", "{\"group_size\":32,\"bits\":8,\"" Q "\":{\"group_size\":64,\"bits\":4}}",
     MXD_OK, NULL, false},
    {4, 64, "F16", "{\"group_size\":32,\"bits\":8,\"" Q "\":{}}", MXD_OK, NULL, false},
    {8, 64, "F16", "{\"group_size\":32,\"bits\":4,\"" Q "\":{\"bits\":8}}", MXD_OK, NULL, false},
    {4, 32, "F16", "{\"group_size\":64,\"bits\":8,\"" Q "\":{\"group_size\":32}}", MXD_OK, NULL,
     false},
    {4, 32, "U8", "{\"group_size\":64,\"bits\":8,\"" Q "\":{\"mode\":\"mxfp4\"}}", MXD_OK, NULL,
     false},
    {8, 64, "F16", "{\"group_size\":64,\"bits\":8,\"" Q "\":{\"group_size\":64}}", MXD_E_FORMAT,
     "fit no quantization", false}, /* bits come from the mode: 4 */
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"bits\":7}}", MXD_E_UNSUPPORTED,
     "7 bits", false},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"bits\":\"4\"}}", MXD_E_FORMAT,
     "'bits' must be an integer", false},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"mode\":\"awq\"}}", MXD_E_UNSUPPORTED,
     "'awq' is not known", false},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"mode\":4}}", MXD_E_UNSUPPORTED,
     "(not a string)", false},
    {4, 32, "U8", "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"mode\":\"mxfp4\",\"group_size\":64}}",
     MXD_E_UNSUPPORTED, "groups of 64", false},
    /* true: the top level; false: plain floats */
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":true}", MXD_OK, NULL, false},
    {4, 64, "F16", "{\"group_size\":64,\"bits\":4,\"" Q "\":false}", MXD_E_FORMAT,
     "is not quantized, but it has scales", false},
    {0, 0, NULL, "{\"group_size\":64,\"bits\":4,\"" Q "\":false}", MXD_OK, NULL, false},
    {0, 0, NULL, "{\"group_size\":64,\"bits\":4}", MXD_OK, NULL, false},
    {0, 0, NULL, "{\"group_size\":64,\"bits\":4,\"" Q "\":true}", MXD_E_FORMAT,
     "scales' is missing", false},
    {0, 0, NULL, "{\"group_size\":64,\"bits\":4,\"" Q "\":{\"bits\":8}}", MXD_E_FORMAT,
     "scales' is missing", false},
    {4, 64, "F16", "7", MXD_OK, NULL, true}, /* no object: as if it were not there */
};

TEST(model_quantization_rules) {
    mxd_log_set_sink(note, NULL);
    for (size_t i = 0; i < MXD_COUNT(quant_rows); i++) {
        repo r;
        char row[32];
        init(&r);
        if (quant_rows[i].bits)
            quantise(&r, Q, quant_rows[i].bits, quant_rows[i].group, quant_rows[i].dtype);
        if (quant_rows[i].says) set(&r, "quantization", quant_rows[i].says);
        snprintf(row, sizeof row, "row %zu", i);
        warned[0] = '\0';
        check_open(&r, quant_rows[i].rc, quant_rows[i].message, row);
        if ((strstr(warned, "quantization_inferred") != NULL) != quant_rows[i].warns)
            fail_msg("%s: %s", row, warned[0] ? warned : "no warning");
        deinit(&r);
    }
    mxd_log_set_sink(NULL, NULL);
}

/* quantization_config counts only where quantization is not there. */
TEST(model_quantization_of_older_files) {
    repo r;
    init(&r);
    quantise(&r, Q, 8, 32, "F16");
    warned[0] = '\0';
    mxd_log_set_sink(note, NULL);
    set(&r, "quantization_config", "{\"group_size\":32,\"bits\":8}");
    check_open(&r, MXD_OK, NULL, "legacy");
    CHECK_STR(warned, "");
    set(&r, "quantization", "{\"group_size\":64,\"bits\":4}");
    check_open(&r, MXD_OK, NULL, "both");
    mxd_log_set_sink(NULL, NULL);
    CHECK(strstr(warned, "quantization_inferred"));
    deinit(&r);
}

/* Parts of a quantised layer that do not belong together. */
TEST(model_quantised_parts) {
    static const struct {
        const char *part, *dtype;
        int rows, columns; /* added */
        const char *says;
    } rows[] = {
        {Q ".weight", "I32", 0, 0, "must be U32"},
        {Q ".weight", "F32", 0, 0, "must be U32"},
        {Q ".weight", NULL, 1, 0, "implies"},
        {Q ".weight", NULL, 0, 1, "fit no quantization"},
        {Q ".scales", NULL, 1, 0, "implies"},
        {Q ".scales", NULL, 0, 2, "fit no quantization"},
        {Q ".scales", "U8", 0, 0, "does not have"},
        {Q ".scales", "U32", 0, 0, "does not have"},
        {Q ".biases", NULL, 1, 0, "implies"},
        {Q ".biases", NULL, 0, 1, "implies"},
        {Q ".biases", "F32", 0, 0, "its scales are F16"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        repo r;
        init(&r);
        quantise(&r, Q, 4, 64, "F16");
        set(&r, "quantization", "{\"group_size\":64,\"bits\":4}");
        tensor *t = find(&r, rows[i].part);
        if (rows[i].dtype) t->dtype = rows[i].dtype;
        t->shape[0] += rows[i].rows;
        t->shape[1] += rows[i].columns;
        check_open(&r, MXD_E_FORMAT, rows[i].says, rows[i].part);
        deinit(&r);
    }
    repo r;
    init(&r);
    quantise(&r, Q, 4, 64, "F16");
    set(&r, "quantization", "{\"group_size\":64,\"bits\":4}");
    drop(&r, Q ".biases");
    check_open(&r, MXD_E_FORMAT, "biases are missing", "no biases");
    deinit(&r);
    init(&r);
    quantise(&r, Q, 4, 32, "U8");
    set(&r, "quantization", "{\"mode\":\"mxfp4\"}");
    add(&r, Q ".biases", "U8", HEADS * HEAD_DIM, D / 32);
    check_open(&r, MXD_E_FORMAT, "biases are present", "biases of mxfp4");
    deinit(&r);
}

/* -------------------------------------------------------------------------------------- sizes */

TEST(model_sizes) {
    repo r;
    mxd_err err = {0};
    static mxd_model_sizes s;
    init(&r);
    quantise(&r, "model.embed_tokens", 8, 32, "F16");
    set(&r, "quantization", "{\"group_size\":32,\"bits\":8}");
    write_repo(&r);
    CHECK_OK(mxd_model_sizes_read(&s, &mxd_alloc_libc, r.dir, 16, MXD_KV_F16, &err), &err);
    CHECK_EQ(s.n_layers, LAYERS);
    CHECK(s.tied);
    CHECK_EQ(s.embed_bytes, V * D + 2 * V * (D / 32) * 2);
    CHECK_EQ(s.head_bytes, s.embed_bytes + D * 4); /* tied: the same matrix, and the norm */
    int q = HEADS * HEAD_DIM, kv = KV * HEAD_DIM;
    int numbers = 2 * D + 2 * HEAD_DIM + 2 * q * D + 2 * kv * D + 3 * D * F;
    for (int l = 0; l < LAYERS; l++) {
        CHECK_EQ(s.layer_bytes[l], numbers * 2 + 2 * (2 * D + 2 * HEAD_DIM));
        CHECK_EQ(s.layer_kv_bytes[l], 2 * kv * 2);
    }
    CHECK_EQ(s.layer_bytes[LAYERS], 0);
    CHECK_EQ(s.hidden_bytes, D * 4);
    CHECK(s.layer_ops == numbers && s.head_ops == V * D);
    int registers = 4 * (16 * (2 * D + 2 * q + 2 * kv + 2 * F) + 8 * V),
        angles = 16 * 16 * HEAD_DIM;
    int rows = 16 * D * 3 / 2; /* in int8, with scales */
    CHECK_EQ(s.scratch_bytes, registers + angles + rows);
    CHECK_OK(mxd_model_sizes_read(&s, &mxd_alloc_libc, r.dir, 16, MXD_KV_Q8, &err), &err);
    CHECK_EQ(s.layer_kv_bytes[0], 2 * KV * (HEAD_DIM + (HEAD_DIM + 31) / 32 * 2));
    mxd_model *m;
    CHECK_OK(mxd_model_open(&m, &mxd_alloc_libc, r.dir, &err), &err);
    CHECK_EQ(mxd_model_params(m), LAYERS * numbers + V * D + D);
    CHECK_EQ(mxd_model_weight_bytes(m), LAYERS * numbers * 2 + s.head_bytes);
    CHECK_STR(mxd_model_folder(m), r.dir);
    mxd_model_close(m);
    deinit(&r);
}

/* With a head of its own nothing is shared. */
TEST(model_sizes_untied) {
    repo r;
    mxd_err err = {0};
    static mxd_model_sizes s;
    init(&r);
    add(&r, "lm_head.weight", "F32", V, D);
    write_repo(&r);
    CHECK_OK(mxd_model_sizes_read(&s, &mxd_alloc_libc, r.dir, 16, MXD_KV_F32, &err), &err);
    CHECK(!s.tied);
    CHECK_EQ(s.embed_bytes, V * D * 2);
    CHECK_EQ(s.head_bytes, V * D * 4 + D * 4);
    CHECK_EQ(s.layer_kv_bytes[0], 2 * KV * HEAD_DIM * 4);
    deinit(&r);
}

/* Blocks are whole groups, at most a 16th, and never cut a unit unevenly. */
TEST(model_block_lengths) {
    for (int group = 32; group <= 128; group *= 2)
        for (int groups = 1; groups <= 70; groups++)
            for (int units = 0; units <= 4; units++) {
                int in = group * groups, unit = units ? in / units : 0;
                int b = mxd_block_k(in, group, unit);
                CHECK(b > 0 && b % group == 0 && b <= (groups + 15) / 16 * group);
                if (unit && unit % group == 0) CHECK_EQ(unit % b, 0);
            }
    CHECK_EQ(mxd_block_k(1024, 0, 0), 64); /* plain floats: as groups of 64 */
}

/* ---------------------------------------------------------------------------------- shortages */

static repo oom_repo;

TEST_OOM(model_open_out_of_memory) {
    if (!oom_repo.config) {
        init(&oom_repo);
        quantise(&oom_repo, Q, 4, 64, "F16");
        set(&oom_repo, "quantization", "{\"group_size\":64,\"bits\":4}");
        write_repo(&oom_repo);
    }
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, al, oom_repo.dir, err));
    mxd_model_close(m);
    deinit(&oom_repo);
    oom_repo.config = NULL;
    return MXD_OK;
}
