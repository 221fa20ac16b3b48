/* config.c - numbers out of config.json, each with its range. `null` means absent; a number that
 * JSON cannot write may stand as {"__float__": "Infinity"}, as transformers writes it. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "model/family.h"

const json_t *mxd_config_get(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return v && !json_is_null(v) ? v : NULL;
}

mxd_rc mxd_config_int(const json_t *o, const char *key, int least, int most, int otherwise,
                      int *out, mxd_err *err) {
    const json_t *v = mxd_config_get(o, key);
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
    const json_t *v = mxd_config_get(o, key);
    *out = otherwise;
    if (!v) return MXD_OK;
    const char *word = json_string_value(json_object_get(v, "__float__"));
    double x = json_number_value(v);
    if (word)
        x = strcmp(word, "Infinity") == 0    ? INFINITY
            : strcmp(word, "-Infinity") == 0 ? -INFINITY
                                             : NAN;
    else if (!json_is_number(v))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' must be a number", key);
    if (!(x >= least && x <= most)) /* also refuses NaN */
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' is %g, must be %g to %g", key, x,
                        least, most);
    *out = x;
    return MXD_OK;
}

mxd_rc mxd_config_bool(const json_t *o, const char *key, bool otherwise, bool *out, mxd_err *err) {
    const json_t *v = mxd_config_get(o, key);
    *out = otherwise;
    if (!v) return MXD_OK;
    if (!json_is_boolean(v))
        return mxd_fail(err, MXD_E_FORMAT, "config.json: '%s' must be true or false", key);
    *out = json_is_true(v);
    return MXD_OK;
}
