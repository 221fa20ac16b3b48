#include <string.h>
#include "server/handlers.h"

/* Extras beside OpenAI's four fields are what clients of other servers read. */
static json_t *model_object(const mxd_server *s, const char *id) {
    const mxd_engine_info *m = mxd_engine_info_get(s->engine);
    return json_pack("{s:s, s:s, s:I, s:s, s:i, s:i, s:s, s:s, s:{s:i, s:i, s:I, s:I}}", //
                     "id", id, "object", "model", "created", (json_int_t)m->created,     //
                     "owned_by", "mlx-distributed", "max_model_len", m->ctx,             //
                     "context_length", m->ctx, "model_type", m->model_type,              //
                     "determinism", mxd_engine_determinism(s->engine), "meta", "n_ctx_train",
                     m->ctx_model,                                                       //
                     "n_vocab", m->n_vocab, "n_params", (json_int_t)m->n_params, "size", //
                     (json_int_t)m->weight_bytes);
}

void mxd_models_handle(mxd_req *r) {
    const mxd_server *s = r->server;
    const char *own = mxd_engine_info_get(s->engine)->model_id;
    json_t *data = json_array();
    int failed = data == NULL;
    bool listed = false;
    for (int i = 0; i < s->n_aliases; i++) {
        listed = listed || strcmp(s->aliases[i], own) == 0;
        failed |= json_array_append_new(data, model_object(s, s->aliases[i]));
    }
    if (!listed) failed |= json_array_append_new(data, model_object(s, own));
    json_t *list = failed ? NULL : json_pack("{s:s, s:O}", "object", "list", "data", data);
    json_decref(data);
    mxd_req_json(r, list);
}

void mxd_model_handle(mxd_req *r) {
    if (mxd_server_knows_model(r->server, r->tail))
        mxd_req_json(r, model_object(r->server, r->tail));
    else
        mxd_req_fail(r, MXD_FAULT_MODEL, "model", "this model is not served here; GET /v1/models");
}
