#include "cli/shape.h"

static int size_of(const mxd_options *o, mxd_opt_id id) {
    return mxd_opt_is_for(id, o->prog) ? (int)mxd_opt_int(o, id) : 0;
}

static const int *list_of(const mxd_options *o, mxd_opt_id id, int *n, const char *name,
                          mxd_err *err) {
    *n = 0;
    const int *list = mxd_opt_is_for(id, o->prog) ? mxd_opt_ints(o, id, n) : NULL;
    if (*n > MXD_MAX_NODES)
        mxd_fail(err, MXD_E_INVAL, "--%s: at most %d nodes", name, MXD_MAX_NODES);
    return list;
}

static mxd_rc check(const mxd_shape *s, mxd_err *err) {
    int parts = 0;
    for (int i = 0; i < s->n_tensor_split; i++) parts += s->tensor_split[i] > 0;
    if (s->n_tensor_split && !parts)
        return mxd_fail(err, MXD_E_INVAL, "--tensor-split: every part is 0");
    if (s->n_tensor_split && s->tensor > 0 && parts % s->tensor)
        return mxd_fail(err, MXD_E_INVAL,
                        "--tensor-split gives parts to %d nodes, which are no groups of "
                        "--tensor-parallel-size %d",
                        parts, s->tensor);
    int each = s->tensor > 0 ? s->tensor : parts;
    if (s->n_tensor_split && s->pipeline > 0 && parts / each != s->pipeline)
        return mxd_fail(err, MXD_E_INVAL,
                        "--tensor-split makes %d stage%s of %d nodes, --pipeline-parallel-size "
                        "asks for %d",
                        parts / each, parts == each ? "" : "s", each, s->pipeline);
    int with_layers = 0;
    for (int i = 0; i < s->n_split; i++) with_layers += s->split[i] > 0;
    if (s->n_split && s->pipeline > 0 && with_layers != s->pipeline)
        return mxd_fail(err, MXD_E_INVAL,
                        "--layer-split makes %d stages, --pipeline-parallel-size asks for %d",
                        with_layers, s->pipeline);
    return MXD_OK;
}

mxd_rc mxd_shape_read(mxd_shape *s, const mxd_options *o, mxd_err *err) {
    *s = (mxd_shape){.tensor = size_of(o, MXD_OPT_TENSOR_PARALLEL_SIZE),
                     .pipeline = size_of(o, MXD_OPT_PIPELINE_PARALLEL_SIZE),
                     .objective = (mxd_objective)size_of(o, MXD_OPT_OBJECTIVE)};
    const int *layers = list_of(o, MXD_OPT_LAYER_SPLIT, &s->n_split, "layer-split", err);
    const int *parts = list_of(o, MXD_OPT_TENSOR_SPLIT, &s->n_tensor_split, "tensor-split", err);
    if (s->n_split > MXD_MAX_NODES || s->n_tensor_split > MXD_MAX_NODES) return MXD_E_INVAL;
    for (int i = 0; i < s->n_split; i++) s->split[i] = layers[i];
    for (int i = 0; i < s->n_tensor_split; i++) s->tensor_split[i] = parts[i];
    return check(s, err);
}
