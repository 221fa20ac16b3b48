#include <stdio.h>
#include <string.h>
#include "server/handlers.h"
#include "server/openai/job.h"

/* clang-format off */
static const mxd_route table[] = {
    /* method path                     handler                    key    works  body */
    {"POST", "/v1/chat/completions",   mxd_chat_handle,           true,  true,  MXD_AT_CHAT,
     "answer a conversation"},
    {"POST", "/v1/completions",        mxd_completions_handle,    true,  true,  MXD_AT_COMPLETION,
     "continue a text"},
    {"GET",  "/v1/models",             mxd_models_handle,         true,  false, 0,
     "list the models"},
    {"GET",  "/v1/models/{id}",        mxd_model_handle,          true,  false, 0,
     "describe a model"},
    {"GET",  "/v1/streams/{id}",       mxd_stream_handle,         true,  false, 0,
     "go on with a resumable stream, behind Last-Event-ID or ?after=N"},
    {"POST", "/v1/cancel/{id}",        mxd_cancel_handle,         true,  false, 0,
     "end a running request by the id of its reply"},
    {"GET",  "/v1/cluster/state",      mxd_cluster_state_handle,  true,  false, 0,
     "nodes, links, plan, requests"},
    {"GET",  "/v1/cluster/plan",       mxd_cluster_plan_handle,   true,  false, 0,
     "who holds which layers"},
    {"POST", "/tokenize",              mxd_tokenize_handle,       true,  false, MXD_AT_TOKENIZE,
     "text to token ids"},
    {"POST", "/detokenize",            mxd_detokenize_handle,     true,  false, MXD_AT_DETOKENIZE,
     "token ids to text"},
    {"POST", "/apply-template",        mxd_apply_template_handle, true,  false, MXD_AT_TEMPLATE,
     "the prompt that a conversation becomes"},
    {"GET",  "/health",                mxd_health_handle,         false, false, 0,
     "200 when requests can be answered"},
    {"GET",  "/livez",                 mxd_livez_handle,          false, false, 0,
     "200 while the process answers"},
    {"GET",  "/readyz",                mxd_readyz_handle,         false, false, 0,
     "200 when new work is welcome"},
    {"GET",  "/metrics",               mxd_metrics_handle,        true,  false, 0,
     "Prometheus text"},
    {"GET",  "/openapi.json",          mxd_openapi_handle,        true,  false, 0,
     "this API, described"},
    {"GET",  "/",                      mxd_index_handle,          false, false, 0,
     "what this server is"},
};
/* clang-format on */

const mxd_route *mxd_routes(int *n) {
    *n = (int)MXD_COUNT(table);
    return table;
}

static bool matches(const mxd_route *row, const char *path, const char **tail) {
    const char *open = strstr(row->path, "{id}");
    size_t n = open ? (size_t)(open - row->path) : 0;
    if (!open) return strcmp(row->path, path) == 0;
    if (strncmp(row->path, path, n) != 0 || !path[n]) return false;
    *tail = path + n;
    return true;
}

static bool method_fits(const mxd_route *row, const char *method) {
    if (strcmp(row->method, method) == 0) return true;
    return strcmp(method, "HEAD") == 0 && strcmp(row->method, "GET") == 0;
}

const mxd_route *mxd_route_find(const char *method, const char *path, const char **tail,
                                char allow[64]) {
    allow[0] = '\0';
    for (size_t i = 0; i < MXD_COUNT(table); i++) {
        if (!matches(&table[i], path, tail)) continue;
        if (method_fits(&table[i], method)) return &table[i];
        bool get = strcmp(table[i].method, "GET") == 0;
        snprintf(allow, 64, "%s, OPTIONS", get ? "GET, HEAD" : table[i].method);
    }
    return NULL;
}
