#include "server/metrics.h"

#include <inttypes.h>

static const int statuses[MXD_METRIC_STATUSES] = {200, 204, 400, 401, 403, 404, 405, 413, 415,
                                                  429, 431, 499, 500, 501, 502, 503, 504, 0};
static const double bounds[MXD_METRIC_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                  0.25,  0.5,    1,     2.5,  5,     10,   30};

void mxd_metrics_request(mxd_metrics *m, int route, int status) {
    int at = 0;
    while (at < MXD_METRIC_STATUSES - 1 && statuses[at] != status) at++;
    if (route < 0 || route >= MXD_METRIC_ROUTES) route = 0;
    atomic_fetch_add(&m->requests[route][at], 1);
}

void mxd_histogram_add(mxd_histogram *h, double seconds) {
    int at = 0;
    while (at < MXD_METRIC_BUCKETS && seconds > bounds[at]) at++;
    atomic_fetch_add(&h->bucket[at], 1);
    atomic_fetch_add(&h->sum_us, (unsigned long long)(seconds > 0 ? seconds * 1e6 : 0));
}

static void head(mxd_buf *out, const char *name, const char *type, const char *help) {
    mxd_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void one(mxd_buf *out, const char *name, const char *type, const char *help, uint64_t v) {
    head(out, name, type, help);
    mxd_buf_printf(out, "%s %" PRIu64 "\n", name, v);
}

static void histogram(mxd_buf *out, const char *name, const char *help, const mxd_histogram *h) {
    head(out, name, "histogram", help);
    unsigned long long n = 0;
    for (int i = 0; i < MXD_METRIC_BUCKETS; i++) {
        n += atomic_load(&h->bucket[i]);
        mxd_buf_printf(out, "%s_bucket{le=\"%g\"} %llu\n", name, bounds[i], n);
    }
    n += atomic_load(&h->bucket[MXD_METRIC_BUCKETS]);
    mxd_buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n", name, n);
    mxd_buf_printf(out, "%s_sum %.6f\n%s_count %llu\n", name, (double)atomic_load(&h->sum_us) / 1e6,
                   name, n);
}

static void engine(mxd_buf *out, mxd_engine *e) {
    mxd_engine_metrics m = {0};
    mxd_engine_metrics_get(e, &m);
    one(out, "mlxd_prompt_tokens_total", "counter", "Prompt tokens taken in.", m.prompt_tokens);
    one(out, "mlxd_prompt_tokens_cached_total", "counter",
        "Prompt tokens whose KV was there: of an earlier prompt that began alike.",
        m.cached_tokens);
    one(out, "mlxd_prompt_tokens_computed_total", "counter",
        "Prompt tokens that had to be computed.", m.prompt_tokens - m.cached_tokens);
    one(out, "mlxd_generated_tokens_total", "counter", "Tokens generated.", m.generated_tokens);
    head(out, "mlxd_generations_total", "counter", "Generations that ended, by how.");
    mxd_buf_printf(out,
                   "mlxd_generations_total{end=\"done\"} %" PRIu64
                   "\nmlxd_generations_total{end=\"failed\"} %" PRIu64
                   "\nmlxd_generations_total{end=\"cancelled\"} %" PRIu64 "\n",
                   m.requests_done, m.requests_failed, m.requests_cancelled);
    one(out, "mlxd_epochs_total", "counter", "Plans installed.", m.epochs);
    one(out, "mlxd_replays_total", "counter", "Sequences replayed after a loss.", m.replays);
    one(out, "mlxd_steps_total", "counter", "Micro-batches computed.", m.steps);
    one(out, "mlxd_sequences_running", "gauge", "Sequences that hold a slot.", m.running);
    one(out, "mlxd_sequences_waiting", "gauge", "Sequences in the queue.", m.waiting);
    one(out, "mlxd_slots", "gauge", "Sequences that can run at once.", m.slots);
    one(out, "mlxd_nodes_live", "gauge", "Nodes that answer.", m.nodes_live);
    one(out, "mlxd_kv_tokens_used", "gauge", "Tokens in the KV cache.", m.kv_tokens_used);
    one(out, "mlxd_kv_tokens", "gauge", "Tokens that the KV cache can hold.", m.kv_tokens_total);
}

void mxd_metrics_write(mxd_buf *out, const mxd_metrics *m, mxd_engine *e,
                       const char *const *route_names, int n_routes) {
    head(out, "mlxd_http_requests_total", "counter", "Requests answered, by route and status.");
    for (int r = 0; r <= n_routes && r < MXD_METRIC_ROUTES; r++)
        for (int i = 0; i < MXD_METRIC_STATUSES; i++) {
            unsigned long long n = atomic_load(&m->requests[r][i]);
            if (n)
                mxd_buf_printf(out, "mlxd_http_requests_total{route=\"%s\",status=\"%d\"} %llu\n",
                               r ? route_names[r - 1] : "none", statuses[i], n);
        }
    int n = atomic_load(&m->connections);
    one(out, "mlxd_http_connections", "gauge", "Open connections.", n > 0 ? (uint64_t)n : 0);
    one(out, "mlxd_http_disconnects_total", "counter", "Clients gone before their answer ended.",
        atomic_load(&m->disconnects));
    one(out, "mlxd_http_stalls_total", "counter", "Connections closed for being too slow.",
        atomic_load(&m->stalls));
    histogram(out, "mlxd_time_to_first_token_seconds", "From request to first token.",
              &m->first_token);
    histogram(out, "mlxd_inter_token_seconds", "Between tokens of one answer.", &m->inter_token);
    histogram(out, "mlxd_request_seconds", "Duration of generation requests.", &m->duration);
    engine(out, e);
}
