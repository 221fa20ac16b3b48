/* config.c - numbers out of config.json, each with its range. `null` means absent. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "model/family.h"

static const json_t *get(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

mxd_rc mxd_config_int(const json_t *o, const char *key, int least, int most, int otherwise,
                      int *out, mxd_err *err) {
    const json_t *v = get(o, key);
    if (!v && otherwise >= least) {
        *out = otherwise;
        return MXD_OK;
    }
    if (!v) return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' is missing", key);
    if (!json_is_integer(v))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' must be an integer", key);
    json_int_t i = json_integer_value(v);
    if (i < least || i > most)
        return mxd_fail(err, MXD_E_FORMAT,
                        "config.json: '%s' is %" JSON_INTEGER_FORMAT ", must be %d to %d", key, i,
                        least, most);
    *out = (int)i;
    return MXD_OK;
}

mxd_rc mxd_config_real(const json_t *o, const char *key, double least, double most,
                       double otherwise, double *out, mxd_err *err) {
    const json_t *v = get(o, key);
    *out = otherwise;
    if (!v) return MXD_OK;
    if (!json_is_number(v))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' must be a number", key);
    double x = json_number_value(v);
    if (!(x >= least && x <= most)) /* also refuses NaN */
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' is %g, must be %g to %g", key, x,
                        least, most);
    *out = x;
    return MXD_OK;
}

mxd_rc mxd_config_bool(const json_t *o, const char *key, bool otherwise, bool *out, mxd_err *err) {
    const json_t *v = get(o, key);
    *out = otherwise;
    if (!v) return MXD_OK;
    if (!json_is_boolean(v))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' must be true or false", key);
    *out = json_is_true(v);
    return MXD_OK;
}

/* The kind is "type", else "rope_type", else "default". */
static const char *rope_kind(const json_t *scaling) {
    const json_t *kind = get(scaling, "type");
    if (!kind) kind = get(scaling, "rope_type");
    return json_is_string(kind) ? json_string_value(kind) : "default";
}

mxd_rc mxd_config_rope(mxd_hparams *hp, const json_t *config, mxd_err *err) {
    const json_t *scaling = get(config, "rope_parameters"); /* newer files keep both in here */
    const json_t *base = scaling && get(scaling, "rope_theta") ? scaling : config;
    if (!scaling) scaling = get(config, "rope_scaling");
    MXD_TRY(mxd_config_real(base, "rope_theta", 1, 1e12, 10000, &hp->rope_theta, err));
    hp->rope_factor = 1;
    if (!scaling) return MXD_OK;
    if (!json_is_object(scaling))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: 'rope_scaling' must be an object");
    const char *kind = rope_kind(scaling);
    if (strcmp(kind, "default") == 0) return MXD_OK;
    if (strcmp(kind, "linear") == 0)
        return mxd_config_real(scaling, "factor", 1e-3, 1e6, 1, &hp->rope_factor, err);
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "config.json: RoPE kind '%s' is not supported; supported: default, linear",
                    kind);
}
