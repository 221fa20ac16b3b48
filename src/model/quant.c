/* quant.c - how a module is stored. Source: mlx-lm's loader; the rules stand in docs/formats.md. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "model/family.h"

static const struct {
    const char *name;
    mxd_qmode mode;
    int group, bits; /* the mode's own defaults */
} modes[] = {
    {"affine", MXD_Q_AFFINE, 64, 4},
    {"mxfp4", MXD_Q_MXFP4, 32, 4},
    {"mxfp8", MXD_Q_MXFP8, 32, 8},
    {"nvfp4", MXD_Q_NVFP4, 16, 4},
};

static bool affine_allows(int bits, int group) {
    bool bits_ok = bits == 2 || bits == 3 || bits == 4 || bits == 5 || bits == 6 || bits == 8;
    return bits_ok && (group == 32 || group == 64 || group == 128);
}

/* An object {group_size, bits, mode}; what is missing comes from the mode's own defaults. */
static mxd_rc read_quant(const json_t *o, const char *where, mxd_quant *q, mxd_err *err) {
    const json_t *mode = json_object_get(o, "mode");
    const char *name = mode && !json_is_null(mode) ? json_string_value(mode) : "affine";
    for (size_t i = 0; i < MXD_COUNT(modes); i++) {
        if (!name || strcmp(name, modes[i].name) != 0) continue;
        *q = (mxd_quant){.mode = modes[i].mode};
        MXD_TRY(mxd_config_int(o, "group_size", 1, 4096, modes[i].group, &q->group, err));
        MXD_TRY(mxd_config_int(o, "bits", 1, 32, modes[i].bits, &q->bits, err));
        bool fits = q->mode == MXD_Q_AFFINE
                        ? affine_allows(q->bits, q->group)
                        : q->bits == modes[i].bits && q->group == modes[i].group;
        if (!fits)
            return mxd_fail(err, MXD_E_UNSUPPORTED,
                            "%s: %d bits in groups of %d do not exist in "
                            "mode %s",
                            where, q->bits, q->group, name);
        return MXD_OK;
    }
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "%s: quantization mode '%s' is not known; known: "
                    "affine, mxfp4, mxfp8, nvfp4",
                    where, name ? name : "(not a string)");
}

/* "quantization"; older files have the copy alone, or keep it with the language model. */
static const json_t *top_level(const json_t *config) {
    const json_t *text = json_object_get(config, "text_config");
    const json_t *q = json_object_get(config, "quantization");
    if (!json_is_object(q)) q = json_object_get(config, "quantization_config");
    if (!json_is_object(q)) q = json_object_get(text, "quantization");
    if (!json_is_object(q)) q = json_object_get(text, "quantization_config");
    return json_is_object(q) ? q : NULL;
}

mxd_rc mxd_quant_check_method(const json_t *config, mxd_err *err) {
    const json_t *q = top_level(config);
    const json_t *method = json_object_get(q, "quant_method");
    if (!json_is_string(method) || json_object_get(q, "group_size") || json_object_get(q, "bits"))
        return MXD_OK; /* a copy of MLX's own, whatever else it says */
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "config.json: weights quantized by '%s', which is not MLX's format: use a "
                    "conversion of the model (mlx-community), or make one with mlx_lm.convert",
                    json_string_value(method));
}

/* bits = 32 * words / (groups * group), the cross-check that must hold exactly. */
static bool shapes_fit(const mxd_weight_src *s, mxd_quant q) {
    uint64_t words = s->weight->shape[s->weight->n_dims - 1];
    uint64_t groups = s->scales->shape[s->scales->n_dims - 1];
    return groups * (uint64_t)q.group == (uint64_t)s->in &&
           words * 32 == (uint64_t)s->in * (uint64_t)q.bits;
}

/* What the shapes say when config.json says something else: the scales give the group, the words
 * give the bits. */
static bool infer(const mxd_weight_src *s, mxd_quant *q) {
    uint64_t words = s->weight->shape[s->weight->n_dims - 1];
    uint64_t groups = s->scales->shape[s->scales->n_dims - 1];
    if (!groups || (uint64_t)s->in % groups || words * 32 % (uint64_t)s->in) return false;
    int group = (int)((uint64_t)s->in / groups), bits = (int)(words * 32 / (uint64_t)s->in);
    if (s->scales->dtype != MXD_DTYPE_U8) {
        *q = (mxd_quant){MXD_Q_AFFINE, bits, group};
        return affine_allows(bits, group);
    }
    for (size_t i = 1; i < MXD_COUNT(modes); i++) {
        *q = (mxd_quant){modes[i].mode, bits, group};
        if (modes[i].bits == bits && modes[i].group == group) return true;
    }
    return false;
}

/* What "quantization" says of the module itself; NULL: nothing. */
static const json_t *override_of(const json_t *config, const char *path) {
    const json_t *top = top_level(config);
    return top ? json_object_get(top, path) : NULL;
}

static mxd_rc pick_quant(const json_t *config, const char *path, mxd_weight_src *s, bool quiet,
                         mxd_err *err) {
    const json_t *top = top_level(config), *own = override_of(config, path);
    if (json_is_object(own)) {
        MXD_TRY(read_quant(own, path, &s->quant, err));
    } else if (top && read_quant(top, "config.json", &s->quant, err) != MXD_OK) {
        s->quant = (mxd_quant){0};
    }
    if (s->quant.mode != MXD_Q_NONE && shapes_fit(s, s->quant)) return MXD_OK;
    if (json_is_object(own) || !infer(s, &s->quant))
        return mxd_fail(err, MXD_E_FORMAT,
                        "'%s': %" PRIu64 " words and %" PRIu64 " scales per row fit no "
                        "quantization of %d columns",
                        path, s->weight->shape[s->weight->n_dims - 1],
                        s->scales->shape[s->scales->n_dims - 1], s->in);
    if (!quiet)
        mxd_log(MXD_LOG_WARN, "quantization_inferred", "tensor=%s bits=%d group=%d", path,
                s->quant.bits, s->quant.group);
    return MXD_OK;
}

static const mxd_st_tensor *part(const mxd_st *st, const char *path, const char *suffix) {
    char name[512];
    snprintf(name, sizeof name, "%s.%s", path, suffix);
    return mxd_st_find(st, name);
}

/* [out, in], or [experts, out, in], or [experts out, in]. */
static mxd_rc check_shape(const mxd_weight_src *s, const mxd_st_tensor *t, uint64_t in,
                          mxd_err *err) {
    int experts = s->stacked ? 0 : s->experts;
    uint64_t out = (uint64_t)s->out * (uint64_t)(s->stacked ? s->experts : 1);
    if (experts) {
        if (t->n_dims == 3 && t->shape[0] == (uint64_t)experts && t->shape[1] == out &&
            t->shape[2] == in)
            return MXD_OK;
        return mxd_fail(err, MXD_E_FORMAT,
                        "tensor '%s' has %d dimensions, config.json implies [%d, %" PRIu64
                        ", %" PRIu64 "]",
                        t->name, t->n_dims, experts, out, in);
    }
    if (t->n_dims == 2 && t->shape[0] == out && t->shape[1] == in) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT,
                    "tensor '%s' has %d dimensions [%" PRIu64 ", %" PRIu64 "], config.json implies "
                    "[%" PRIu64 ", %" PRIu64 "]",
                    t->name, t->n_dims, t->n_dims ? t->shape[0] : 0,
                    t->n_dims > 1 ? t->shape[1] : 0, out, in);
}

static bool is_float(mxd_dtype d) {
    return d == MXD_DTYPE_F16 || d == MXD_DTYPE_BF16 || d == MXD_DTYPE_F32;
}

mxd_rc mxd_quant_check_float(const mxd_st_tensor *t, mxd_err *err) {
    if (is_float(t->dtype)) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' is %s, must be F16, BF16 or F32", t->name,
                    mxd_dtype_name(t->dtype));
}

/* Scales of affine groups are floats, and so are the biases beside them; the others have a byte. */
static mxd_rc check_scales(const mxd_weight_src *s, mxd_err *err) {
    bool affine = s->quant.mode == MXD_Q_AFFINE;
    if (affine ? !is_float(s->scales->dtype) : s->scales->dtype != MXD_DTYPE_U8)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' is %s, which this mode does not have",
                        s->scales->name, mxd_dtype_name(s->scales->dtype));
    if (affine && s->biases->dtype != s->scales->dtype)
        return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' is %s, its scales are %s", s->biases->name,
                        mxd_dtype_name(s->biases->dtype), mxd_dtype_name(s->scales->dtype));
    return MXD_OK;
}

static mxd_rc resolve_quantised(const json_t *config, const char *path, mxd_weight_src *s,
                                bool quiet, mxd_err *err) {
    int dims = s->experts && !s->stacked ? 3 : 2;
    if (s->weight->dtype != MXD_DTYPE_U32 || s->weight->n_dims != dims || s->scales->n_dims != dims)
        return mxd_fail(err, MXD_E_FORMAT,
                        "'%s' has scales, so its weight must be U32 [%srows, words]", path,
                        dims == 3 ? "experts, " : "");
    MXD_TRY(pick_quant(config, path, s, quiet, err));
    uint64_t in = (uint64_t)s->in;
    MXD_TRY(check_shape(s, s->weight, in * (uint64_t)s->quant.bits / 32, err));
    MXD_TRY(check_shape(s, s->scales, in / (uint64_t)s->quant.group, err));
    bool affine = s->quant.mode == MXD_Q_AFFINE;
    if (affine != (s->biases != NULL))
        return mxd_fail(err, MXD_E_FORMAT, "'%s': quantization biases are %s", path,
                        affine ? "missing" : "present, which this mode does not have");
    if (affine) MXD_TRY(check_shape(s, s->biases, in / (uint64_t)s->quant.group, err));
    return check_scales(s, err);
}

/* [out], or [experts, out]. */
static mxd_rc check_bias(const mxd_weight_src *s, mxd_err *err) {
    const mxd_st_tensor *t = s->bias;
    int more = s->experts > 0;
    if (t->n_dims == 1 + more && t->shape[more] == (uint64_t)s->out &&
        (!more || t->shape[0] == (uint64_t)s->experts))
        return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT, "tensor '%s' must be [%s%d]", t->name,
                    more ? "experts, " : "", s->out);
}

mxd_rc mxd_quant_resolve(const json_t *config, const mxd_st *st, const char *path,
                         mxd_weight_src *s, bool quiet, mxd_err *err) {
    s->st = st;
    s->weight = part(st, path, "weight");
    s->scales = part(st, path, "scales");
    s->biases = part(st, path, "biases");
    s->bias = part(st, path, "bias");
    s->quant = (mxd_quant){0};
    if (!s->weight)
        return mxd_fail(err, MXD_E_FORMAT,
                        "tensor '%s.weight' is missing; is the download complete?", path);
    if (s->bias) MXD_TRY(check_bias(s, err));
    if (s->bias) MXD_TRY(mxd_quant_check_float(s->bias, err));
    const json_t *own = override_of(config, path);
    if (s->scales && json_is_false(own))
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json says that '%s' is not quantized, but it has scales", path);
    if (!s->scales && (json_is_object(own) || json_is_true(own)))
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json says that '%s' is quantized, but '%s.scales' is missing", path,
                        path);
    if (part(st, path, "global_scale"))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "'%s' has one more scale for each expert ('global_scale'), which is not "
                        "supported: use a conversion without it",
                        path);
    if (s->scales) return resolve_quantised(config, path, s, quiet, err);
    MXD_TRY(mxd_quant_check_float(s->weight, err));
    return check_shape(s, s->weight, (uint64_t)s->in, err);
}

int mxd_block_k(int in, int group, int unit) {
    int g = group > 0 ? group : 64;
    int n_groups = (in + g - 1) / g;
    int block = (n_groups + 15) / 16 * g;
    if (unit <= 0 || unit % g != 0) return block;
    int best = g;
    for (int b = g; b <= block && b <= unit; b += g)
        if (unit % b == 0) best = b;
    return best;
}
