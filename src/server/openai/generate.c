#include <string.h>
#include "server/openai/job.h"

/* 503 while there is nobody to answer. False: the reply is set. */
static bool is_ready(mxd_req *r) {
    mxd_engine_state now = mxd_engine_state_now(r->server->engine);
    if (now == MXD_ENGINE_LOADING)
        mxd_req_fail(r, MXD_FAULT_LOADING, NULL, "the model is still loading");
    if (now == MXD_ENGINE_DRAINING)
        mxd_req_fail(r, MXD_FAULT_SHUTDOWN, NULL, "the server is shutting down");
    return !r->status;
}

static bool check_model(mxd_req *r) {
    const char *name = r->params->v[MXD_P_MODEL].s;
    if (mxd_server_knows_model(r->server, name)) return true;
    mxd_req_fail(r, MXD_FAULT_MODEL, "model",
                 "the model '%.200s' is not served here; GET /v1/models", name);
    return false;
}

static mxd_prompt *new_prompts(mxd_req *r, int n) {
    mxd_prompt *p = MXD_NEW(r->al, (size_t)n, mxd_prompt);
    if (!p) mxd_req_fail(r, MXD_FAULT_MEMORY, NULL, "out of memory");
    return p;
}

static void drop_prompts(mxd_req *r, mxd_prompt *p, int n, const mxd_fault *f) {
    for (int i = 0; i < n; i++) mxd_prompt_deinit(&p[i]);
    mxd_free(r->al, p);
    mxd_req_fail_fault(r, f);
}

void mxd_chat_handle(mxd_req *r) {
    mxd_fault f;
    if (!mxd_req_params(r) || !check_model(r) || !is_ready(r)) return;
    mxd_prompt *p = new_prompts(r, 1);
    if (!p) return;
    if (!mxd_prompt_chat(p, r->al, r->server->engine, r->params, true, &f))
        drop_prompts(r, p, 1, &f);
    else
        (void)mxd_job_start(r, p, 1);
}

void mxd_completions_handle(mxd_req *r) {
    mxd_fault f;
    if (!mxd_req_params(r) || !check_model(r) || !is_ready(r)) return;
    json_t *v = r->params->v[MXD_P_PROMPT].j;
    bool many = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    int n = many ? (int)json_array_size(v) : 1;
    bool echo = mxd_param_bool(r->params, MXD_P_ECHO, false);
    mxd_prompt *p = new_prompts(r, n);
    for (int i = 0; p && i < n; i++) {
        json_t *one = many ? json_array_get(v, (size_t)i) : v;
        if (mxd_prompt_text(&p[i], r->al, r->server->engine, one, echo, &f)) continue;
        drop_prompts(r, p, n, &f);
        return;
    }
    if (p) (void)mxd_job_start(r, p, n);
}
