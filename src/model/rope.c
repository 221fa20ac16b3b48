/* rope.c - what each RoPE kind does to the frequencies. Sources: the YaRN paper (arXiv 2309.00071),
 * the LongRoPE paper (arXiv 2402.13753), and mlx-lm where engines differ: yarn floors and ceils the
 * ends of its ramp, longrope uses the long factors at every length. */
#include "model/rope.h"

#include <math.h>
#include <string.h>

#include "base/dmath.h"
#include "model/family.h"

static const double PI = 3.14159265358979323846;

/* -------------------------------------------------------------------------------------- reading */

static const struct {
    const char *name;
    mxd_rope_kind kind;
} kinds[] = {
    {"default", MXD_ROPE_DEFAULT},   {"linear", MXD_ROPE_LINEAR},
    {"llama3", MXD_ROPE_LLAMA3},     {"yarn", MXD_ROPE_YARN},
    {"longrope", MXD_ROPE_LONGROPE}, {"su", MXD_ROPE_LONGROPE},
    {"dynamic", MXD_ROPE_DYNAMIC},   {"proportional", MXD_ROPE_PROPORTIONAL},
};

/* The kind is "type", else "rope_type", else "default". */
static mxd_rc read_kind(mxd_rope_spec *s, const json_t *o, mxd_err *err) {
    const json_t *v = mxd_config_get(o, "type");
    if (!v) v = mxd_config_get(o, "rope_type");
    const char *name = json_is_string(v) ? json_string_value(v) : "default";
    for (size_t i = 0; i < MXD_COUNT(kinds); i++)
        if (strcmp(name, kinds[i].name) == 0) {
            s->kind = kinds[i].kind;
            return MXD_OK;
        }
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "config.json: RoPE kind '%s' is not supported; supported: default, linear, "
                    "llama3, yarn, longrope, su, dynamic, proportional",
                    name);
}

static mxd_rc read_factor(mxd_rope_spec *s, const json_t *o, mxd_err *err) {
    if (!mxd_config_get(o, "factor"))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'factor' of the RoPE scaling is missing");
    return mxd_config_real(o, "factor", 1e-3, 1e6, 1, &s->factor, err);
}

static mxd_rc read_original(mxd_rope_spec *s, const json_t *o, double otherwise, mxd_err *err) {
    return mxd_config_real(o, "original_max_position_embeddings", 2, MXD_MAX_CONTEXT, otherwise,
                           &s->original, err);
}

static mxd_rc read_llama3(mxd_rope_spec *s, const json_t *o, mxd_err *err) {
    MXD_TRY(read_original(s, o, 8192, err));
    MXD_TRY(mxd_config_real(o, "low_freq_factor", 1e-3, 1e6, 1, &s->low, err));
    return mxd_config_real(o, "high_freq_factor", 1e-3, 1e6, 4, &s->high, err);
}

static mxd_rc read_yarn(mxd_rope_spec *s, const json_t *o, mxd_err *err) {
    if (s->theta <= 1)
        return mxd_fail(err, MXD_E_FORMAT, "config.json: yarn needs a 'rope_theta' above 1");
    MXD_TRY(read_original(s, o, 4096, err));
    MXD_TRY(mxd_config_real(o, "beta_fast", 1e-3, 1e6, 32, &s->beta_fast, err));
    MXD_TRY(mxd_config_real(o, "beta_slow", 1e-3, 1e6, 1, &s->beta_slow, err));
    MXD_TRY(mxd_config_real(o, "mscale", 0, 100, 1, &s->mscale, err));
    return mxd_config_real(o, "mscale_all_dim", 0, 100, 0, &s->mscale_all_dim, err);
}

static bool good_factor(const json_t *v) {
    double x = json_number_value(v); /* 0 when it is no number */
    return x >= 1e-3 && x <= 1e6;
}

static mxd_rc read_longrope(mxd_rope_spec *s, const json_t *o, const json_t *config, int context,
                            mxd_err *err) {
    double outside;
    MXD_TRY(read_original(s, o, 4096, err));
    outside = s->original;
    MXD_TRY(read_original(s, config, outside, err)); /* the top level wins */
    s->factor = context / s->original;
    s->long_factor = mxd_config_get(o, "long_factor");
    size_t n = json_array_size(s->long_factor); /* 0 when it is no list */
    bool ok =
        json_is_array(s->long_factor) ? n == (size_t)s->dims / 2 : good_factor(s->long_factor);
    for (size_t i = 0; ok && i < n; i++) ok = good_factor(json_array_get(s->long_factor, i));
    if (ok) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT,
                    "config.json: 'long_factor' must hold %d numbers from 0.001 to 1e6",
                    s->dims / 2);
}

/* Where theta stands: newer files keep it with the scaling. */
static const json_t *holder_of_theta(const json_t *config) {
    const json_t *o = mxd_config_get(config, "rope_parameters");
    return o && mxd_config_get(o, "rope_theta") ? o : config;
}

mxd_rc mxd_rope_read_plain(mxd_rope_spec *s, const json_t *config, double theta, mxd_err *err) {
    return mxd_config_real(holder_of_theta(config), "rope_theta", 1, 1e12, theta, &s->theta, err);
}

static mxd_rc read_dynamic(mxd_rope_spec *s, const json_t *o, int context, mxd_err *err) {
    MXD_TRY(read_factor(s, o, err));
    s->original = context;
    if (s->dims > 2) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT, "config.json: dynamic RoPE needs heads of more than 2");
}

static mxd_rc read_proportional(mxd_rope_spec *s, const json_t *o, mxd_err *err) {
    double part;
    MXD_TRY(mxd_config_real(o, "factor", 1e-3, 1e6, 1, &s->factor, err));
    MXD_TRY(mxd_config_real(o, "partial_rotary_factor", 0, 1, 1, &part, err));
    s->rotated = (int)(s->dims * part);
    return MXD_OK;
}

/* What the scaling `o` of the file says; the base has been read. */
static mxd_rc read_scaling(mxd_rope_spec *s, const json_t *o, const json_t *config, int context,
                           mxd_err *err) {
    MXD_TRY(read_kind(s, o, err));
    switch (s->kind) {
    case MXD_ROPE_DEFAULT:
        return MXD_OK;
    case MXD_ROPE_LONGROPE:
        return read_longrope(s, o, config, context, err);
    case MXD_ROPE_LINEAR:
        return read_factor(s, o, err);
    case MXD_ROPE_LLAMA3:
        MXD_TRY(read_factor(s, o, err));
        return read_llama3(s, o, err);
    case MXD_ROPE_YARN:
        MXD_TRY(read_factor(s, o, err));
        return read_yarn(s, o, err);
    case MXD_ROPE_DYNAMIC:
        return read_dynamic(s, o, context, err);
    case MXD_ROPE_PROPORTIONAL:
        return read_proportional(s, o, err);
    }
    return MXD_OK;
}

mxd_rc mxd_rope_read(mxd_rope_spec *s, const json_t *config, int context, double theta,
                     mxd_err *err) {
    const json_t *o = mxd_config_get(config, "rope_parameters"); /* newer files keep both in here */
    if (!o) o = mxd_config_get(config, "rope_scaling");
    MXD_TRY(mxd_rope_read_plain(s, config, theta, err));
    if (!o) return MXD_OK;
    if (!json_is_object(o))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'rope_scaling' must be an object");
    return read_scaling(s, o, config, context, err);
}

mxd_rc mxd_rope_read_type(mxd_rope_spec *s, const json_t *config, const char *layer_type,
                          int context, double theta, bool *there, mxd_err *err) {
    const json_t *o = mxd_config_get(mxd_config_get(config, "rope_parameters"), layer_type);
    *there = o != NULL;
    if (!o) return MXD_OK;
    if (!json_is_object(o))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'rope_parameters.%s' must be an object",
                        layer_type);
    MXD_TRY(mxd_config_real(o, "rope_theta", 1, 1e12, theta, &s->theta, err));
    return read_scaling(s, o, config, context, err);
}

/* --------------------------------------------------------------------------------------- making */

/* Long waves are stretched, short ones kept, those between are mixed. */
static double llama3(const mxd_rope_spec *s, double f) {
    double turns = s->original * f / (2 * PI); /* within the original context */
    if (turns < s->low) return f / s->factor;
    if (turns >= s->high || turns == s->low) return f;
    double t = (turns - s->low) / (s->high - s->low);
    return f * ((1 - t) / s->factor + t);
}

/* The index, not whole, of the frequency that turns r times within the original context. */
static double yarn_index(const mxd_rope_spec *s, double r) {
    return s->dims * mxd_log64(s->original / (2 * PI * r)) / (2 * mxd_log64(s->theta));
}

static double yarn(const mxd_rope_spec *s, double f, int i) {
    double low = floor(yarn_index(s, s->beta_fast)), high = ceil(yarn_index(s, s->beta_slow));
    if (low < 0) low = 0;
    if (high > s->dims - 1) high = s->dims - 1;
    if (low == high) high += 0.001;
    double ramp = (i - low) / (high - low);
    ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
    return f * ((1 - ramp) + ramp / s->factor);
}

static double longrope(const mxd_rope_spec *s, double f, int i) {
    const json_t *v = s->long_factor;
    return f / json_number_value(json_is_array(v) ? json_array_get(v, (size_t)i) : v);
}

static double yarn_scale(const mxd_rope_spec *s, double c) {
    return s->factor <= 1 ? 1 : 0.1 * c * mxd_log64(s->factor) + 1;
}

static double scale_of(const mxd_rope_spec *s) {
    if (s->kind == MXD_ROPE_YARN)
        return yarn_scale(s, s->mscale) / yarn_scale(s, s->mscale_all_dim);
    if (s->kind == MXD_ROPE_LONGROPE && s->factor > 1)
        return sqrt(1 + mxd_log64(s->factor) / mxd_log64(s->original));
    return 1;
}

float mxd_rope_make(const mxd_rope_spec *s, float *inv_freq) {
    double ln_theta = mxd_log64(s->theta);
    for (int i = 0; i < s->dims / 2; i++) {
        double f = mxd_exp64(-2.0 * i / s->dims * ln_theta);
        switch (s->kind) {
        case MXD_ROPE_DEFAULT:
        case MXD_ROPE_DYNAMIC: /* up to the context */
            break;
        case MXD_ROPE_LINEAR:
            f /= s->factor;
            break;
        case MXD_ROPE_PROPORTIONAL:
            f = 2 * i < s->rotated ? f / s->factor : 0;
            break;
        case MXD_ROPE_LLAMA3:
            f = llama3(s, f);
            break;
        case MXD_ROPE_YARN:
            f = yarn(s, f, i);
            break;
        case MXD_ROPE_LONGROPE:
            f = longrope(s, f, i);
            break;
        }
        inv_freq[i] = (float)f;
    }
    return (float)scale_of(s);
}
