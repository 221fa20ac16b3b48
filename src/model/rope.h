/* rope.h - private to model/: the frequencies of the rotary embedding.
 *
 * Trust:    config.json is hostile: every number is ranged, every list is counted.
 * Lifetime: a spec borrows lists from the config it was read from.
 * Numbers:  double precision with base/dmath.h, rounded once: equal bits on every machine.
 */
#ifndef MXD_MODEL_ROPE_H
#define MXD_MODEL_ROPE_H

#include <jansson.h>
#include "backend/backend.h"

typedef enum mxd_rope_kind {
    MXD_ROPE_DEFAULT,
    MXD_ROPE_LINEAR,
    MXD_ROPE_LLAMA3,
    MXD_ROPE_YARN,
    MXD_ROPE_LONGROPE,     /* also named "su" */
    MXD_ROPE_DYNAMIC,      /* the base grows with the position, past the context */
    MXD_ROPE_PROPORTIONAL, /* some pairs turn, with the frequencies of all */
} mxd_rope_kind;

typedef struct mxd_rope_spec {
    mxd_rope_kind kind;
    int dims; /* the first values of each head that turn; even */
    bool interleaved;
    double theta;
    double factor;   /* linear, llama3, yarn, dynamic, proportional; longrope: context / original */
    double original; /* tokens of context before it was stretched */
    int rotated;     /* proportional: of dims, the values that turn: pairs (i, i + dims/2) with
                      * 2 i < rotated */
    double low, high;              /* llama3: low_freq_factor, high_freq_factor */
    double beta_fast, beta_slow;   /* yarn: turns over `original` where the ramp starts and ends */
    double mscale, mscale_all_dim; /* yarn */
    const json_t *long_factor;     /* longrope: [dims / 2] numbers, or one number */
} mxd_rope_spec;

/* Reads theta and the scaling, wherever the file keeps them.
 *   out      dims and interleaved are set by the caller
 *   context  max_position_embeddings
 *   theta    when config.json names none
 * Errors: E_FORMAT, E_UNSUPPORTED the kind. */
mxd_rc mxd_rope_read(mxd_rope_spec *out, const json_t *config, int context, double theta,
                     mxd_err *err) MXD_MUST_USE;

/* The same from rope_parameters[layer_type], where newer files keep one for each type of layer;
 * *there is false, and nothing done, when this file has none. */
mxd_rc mxd_rope_read_type(mxd_rope_spec *out, const json_t *config, const char *layer_type,
                          int context, double theta, bool *there, mxd_err *err) MXD_MUST_USE;

/* Theta alone, for models that know no scaling. Errors: E_FORMAT. */
mxd_rc mxd_rope_read_plain(mxd_rope_spec *out, const json_t *config, double theta,
                           mxd_err *err) MXD_MUST_USE;

/* Fills inv_freq [dims / 2]. Returns the factor of the rotated values (mxd_rope.scale). */
float mxd_rope_make(const mxd_rope_spec *s, float *inv_freq);

#endif
