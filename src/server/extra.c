/* Routes beside OpenAI's: tokens, templates, health, metrics, the cluster. */
#include <string.h>
#include "base/clock.h"
#include "server/handlers.h"
#include "server/openai/prompt.h"

static const char html_type[] = "text/html; charset=utf-8";
enum { MAX_TOKENS = 4 << 20 };

/* ---- tokens and templates ---- */

/* The bytes of a token as text, or as an array of bytes where they are not UTF-8. */
static json_t *piece(const char *s, size_t n) {
    json_t *v = json_stringn(n ? s : "", n);
    if (v) return v;
    v = json_array();
    for (size_t i = 0; v && i < n; i++) json_array_append_new(v, json_integer((unsigned char)s[i]));
    return v;
}

static json_t *token_list(const mxd_tokenizer *t, const mxd_ids *ids, bool pieces) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < ids->n; i++) {
        size_t n = 0;
        const char *s = pieces ? mxd_tokenizer_bytes(t, ids->ptr[i], &n) : NULL;
        json_t *v = pieces ? json_pack("{s:i, s:o}", "id", ids->ptr[i], "piece", piece(s, n))
                           : json_integer(ids->ptr[i]);
        if (json_array_append_new(list, v) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

void mxd_tokenize_handle(mxd_req *r) {
    if (!mxd_req_params(r)) return;
    const mxd_params *p = r->params;
    const mxd_tokenizer *t = mxd_engine_tokenizer(r->server->engine);
    json_t *text = p->v[MXD_P_CONTENT].j;
    mxd_span span = {json_string_value(text), json_string_length(text),
                     mxd_param_bool(p, MXD_P_PARSE_SPECIAL, true)};
    mxd_ids ids;
    mxd_err err = {0};
    mxd_ids_init(&ids, r->al, MAX_TOKENS);
    bool add = mxd_param_bool(p, MXD_P_ADD_SPECIAL, false);
    mxd_rc rc = mxd_tokenizer_encode(t, &span, 1, add, &ids, &err);
    if (rc)
        mxd_req_fail_rc(r, rc, &err);
    else {
        json_t *list = token_list(t, &ids, mxd_param_bool(p, MXD_P_WITH_PIECES, false));
        mxd_req_json(r, list ? json_pack("{s:o}", "tokens", list) : NULL);
    }
    mxd_ids_deinit(&ids);
}

void mxd_detokenize_handle(mxd_req *r) {
    if (!mxd_req_params(r)) return;
    mxd_detok d;
    mxd_buf text;
    size_t i;
    json_t *id;
    mxd_detok_init(&d, mxd_engine_tokenizer(r->server->engine), false);
    mxd_buf_init(&text, r->al, MXD_HTTP_REPLY_BYTES);
    json_array_foreach(r->params->v[MXD_P_TOKENS].j, i, id)
        mxd_detok_push(&d, (int32_t)json_integer_value(id), &text);
    mxd_detok_flush(&d, &text);
    mxd_buf_puts(&r->out, "{\"content\":");
    mxd_json_write_string(&r->out, mxd_buf_str(&text), text.len, false);
    mxd_buf_putc(&r->out, '}');
    if (text.rc && !r->out.rc) r->out.rc = text.rc;
    mxd_buf_deinit(&text);
    mxd_req_done(r, 200, "application/json");
}

void mxd_apply_template_handle(mxd_req *r) {
    if (!mxd_req_params(r)) return;
    mxd_prompt p = {0};
    mxd_fault f;
    if (!mxd_prompt_chat(&p, r->al, r->server->engine, r->params, false, &f)) {
        mxd_req_fail_fault(r, &f);
    } else {
        mxd_buf_puts(&r->out, "{\"prompt\":");
        mxd_json_write_string(&r->out, mxd_buf_str(&p.text), p.text.len, false);
        mxd_buf_putc(&r->out, '}');
        mxd_req_done(r, 200, "application/json");
    }
    mxd_prompt_deinit(&p);
}

/* ---- health ---- */

/* {"status":"..."}; with the error object when it is not well. */
static void health(mxd_req *r, const char *status, mxd_fault_kind kind) {
    mxd_buf_printf(&r->out, "{\"status\":\"%s\"", status);
    if (kind == MXD_FAULT_COUNT) {
        /* streams cannot be resumed then; its log has the cause */
        if (mxd_engine_journal_problem(r->server->engine, NULL, 0))
            mxd_buf_puts(&r->out, ",\"journal\":\"failed\"");
        mxd_buf_puts(&r->out, "}");
        mxd_req_done(r, 200, "application/json");
        return;
    }
    mxd_buf both;
    mxd_req_fail(r, kind, NULL, "not ready: %s", status);
    mxd_buf_init(&both, r->al, 4096);
    mxd_buf_printf(&both, "{\"status\":\"%s\",%s", status, mxd_buf_str(&r->out) + 1);
    mxd_buf_deinit(&r->out);
    r->out = both;
}

void mxd_health_handle(mxd_req *r) {
    mxd_engine_state now = mxd_engine_state_now(r->server->engine);
    if (atomic_load(&r->server->draining) || now == MXD_ENGINE_DRAINING)
        health(r, "draining", MXD_FAULT_SHUTDOWN);
    else if (now == MXD_ENGINE_LOADING)
        health(r, "loading", MXD_FAULT_LOADING);
    else if (now == MXD_ENGINE_NO_WORKERS)
        health(r, "no_workers", MXD_FAULT_WORKER_LOST);
    else
        health(r, "ok", MXD_FAULT_COUNT);
}

void mxd_readyz_handle(mxd_req *r) { mxd_health_handle(r); }
void mxd_livez_handle(mxd_req *r) { health(r, "ok", MXD_FAULT_COUNT); }

void mxd_metrics_handle(mxd_req *r) {
    int n;
    const mxd_route *routes = mxd_routes(&n);
    const char *names[MXD_METRIC_ROUTES];
    if (r->server->opts.no_metrics) {
        mxd_req_fail(r, MXD_FAULT_ROUTE, NULL, "metrics are switched off");
        return;
    }
    for (int i = 0; i < n && i < MXD_METRIC_ROUTES; i++) names[i] = routes[i].path;
    mxd_metrics_write(&r->out, &r->server->metrics, r->server->engine, names, n);
    mxd_req_done(r, 200, "text/plain; version=0.0.4; charset=utf-8");
}

/* ---- the cluster ---- */

void mxd_cluster_state_handle(mxd_req *r) {
    mxd_req_json(r, mxd_engine_cluster_state(r->server->engine));
}

void mxd_cluster_plan_handle(mxd_req *r) {
    json_t *state = mxd_engine_cluster_state(r->server->engine);
    json_t *plan = json_object_get(state, "plan");
    if (state && (!plan || json_is_null(plan)))
        mxd_req_fail(r, MXD_FAULT_LOADING, NULL, "there is no plan yet");
    else
        mxd_req_json(r, json_incref(plan));
    json_decref(state);
}

void mxd_cancel_handle(mxd_req *r) {
    if (!mxd_conn_cancel(r->server, r->tail)) {
        mxd_req_fail(r, MXD_FAULT_ROUTE, NULL, "no running request has this id");
        return;
    }
    mxd_buf_puts(&r->out, "{\"id\":");
    mxd_json_write_string(&r->out, r->tail, strlen(r->tail), false);
    mxd_buf_puts(&r->out, ",\"object\":\"cancellation\",\"cancelled\":true}");
    mxd_req_done(r, 200, "application/json");
}

void mxd_index_handle(mxd_req *r) {
    int n;
    const mxd_route *routes = mxd_routes(&n);
    mxd_buf *out = &r->out;
    mxd_buf_puts(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                      "<title>MLX Distributed</title></head><body>\n"
                      "<h1>MLX Distributed</h1>\n<p>One model on many machines, behind an "
                      "OpenAI-compatible API. Point a client at <code>");
    mxd_buf_printf(out, "%s/v1</code>.</p>\n<table>\n", r->server->prefix);
    for (int i = 0; i < n; i++) {
        const mxd_route *t = &routes[i];
        bool link = strcmp(t->method, "GET") == 0 && !strchr(t->path, '{');
        mxd_buf_printf(out, "<tr><td>%s</td><td>", t->method);
        if (link) mxd_buf_printf(out, "<a href=\"%s%s\">", r->server->prefix, t->path);
        mxd_buf_printf(out, "<code>%s</code>%s</td><td>%s</td></tr>\n", t->path, link ? "</a>" : "",
                       t->help);
    }
    mxd_buf_puts(out, "</table></body></html>\n");
    mxd_req_done(r, 200, html_type);
}
