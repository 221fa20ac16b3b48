/* A resumable request as it lies in the engine's journal: one line of JSON, then the body as it
 * came. The engine adds prompt ids, parameters, seed and tokens of its own. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "server/openai/job.h"
#include "server/resume.h"

enum { VERSION = 1 };

static void put_hex(mxd_buf *out, const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) mxd_buf_printf(out, "%02x", p[i]);
}

void mxd_job_keep(const mxd_job *j, const mxd_req *r, const mxd_resume *e, mxd_buf *out) {
    mxd_buf_printf(out, "{\"version\":%d,\"stream\":\"%s\",\"key\":\"", VERSION, e->id);
    put_hex(out, e->key, sizeof e->key);
    mxd_buf_printf(out, "\",\"path\":\"%s\",\"id\":\"%s\",\"created\":%lld,\"request\":\"%s\"}\n",
                   r->route->path, j->id, (long long)j->created, j->request);
    mxd_buf_put(out, mxd_buf_str(&r->body), r->body.len);
}

/* ------------------------------------------------------------------------------------ and back */

static bool unreadable(mxd_fault *f) {
    return mxd_fault_set(f, MXD_FAULT_INVALID_VALUE, NULL, "its record cannot be read");
}

static bool get_hex(const char *s, unsigned char *p, size_t n) {
    if (!s || strlen(s) != 2 * n || strspn(s, "0123456789abcdef") != 2 * n) return false;
    for (size_t i = 0; i < n; i++) {
        unsigned v;
        if (sscanf(s + 2 * i, "%2x", &v) != 1) return false;
        p[i] = (unsigned char)v;
    }
    return true;
}

typedef struct past { /* of one request, while it is read */
    json_t *head, *body;
    mxd_params *params;
    mxd_prompt *prompt;
    const mxd_route *route;
    char stream[MXD_STREAM_ID];
    unsigned char key[32];
} past;

static const mxd_route *route_of(const char *path) {
    int n;
    const mxd_route *all = mxd_routes(&n);
    for (int i = 0; path && i < n; i++)
        if (strcmp(all[i].path, path) == 0 && all[i].params) return &all[i];
    return NULL;
}

static bool read_head(past *p, const mxd_engine_kept *k, size_t *body, mxd_fault *f) {
    const char *line = memchr(k->keep, '\n', k->n_keep);
    unsigned char raw[MXD_STREAM_ID_BYTES];
    if (!line) return unreadable(f);
    *body = (size_t)(line - (const char *)k->keep) + 1;
    if (mxd_json_parse(&p->head, k->keep, *body - 1, NULL)) return unreadable(f);
    const json_t *o = p->head;
    const char *stream = json_string_value(json_object_get(o, "stream"));
    p->route = route_of(json_string_value(json_object_get(o, "path")));
    if (json_integer_value(json_object_get(o, "version")) != VERSION || !p->route ||
        !get_hex(stream, raw, sizeof raw) ||
        !get_hex(json_string_value(json_object_get(o, "key")), p->key, sizeof p->key))
        return unreadable(f);
    memcpy(p->stream, stream, MXD_STREAM_ID);
    return true;
}

static bool read_body(past *p, mxd_server *s, const char *text, size_t n, mxd_fault *f) {
    if (mxd_json_parse(&p->body, text, n, NULL)) return unreadable(f);
    p->params = MXD_NEW(s->al, 1, mxd_params);
    if (!p->params) return mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
    p->params->where = p->route->params;
    p->params->max_choices = s->opts.max_choices;
    p->params->n_vocab = mxd_engine_info_get(s->engine)->n_vocab;
    return mxd_params_parse(p->params, p->body, f);
}

/* What the template says about reasoning and calls is read again; the ids are those of then, when
 * it may have been another day. */
static bool make_prompt(past *p, mxd_server *s, const mxd_engine_kept *k, mxd_fault *f) {
    bool chat = (p->params->where & MXD_AT_CHAT) != 0;
    bool echo = mxd_param_bool(p->params, MXD_P_ECHO, false);
    json_t *v = p->params->v[MXD_P_PROMPT].j;
    if (!chat && json_is_array(v) && !json_is_integer(json_array_get(v, 0)))
        v = json_array_get(v, 0);
    p->prompt = MXD_NEW(s->al, 1, mxd_prompt);
    if (!p->prompt) return mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
    bool ok = chat ? mxd_prompt_chat(p->prompt, s->al, s->engine, p->params, false, f)
                   : mxd_prompt_text(p->prompt, s->al, s->engine, v, echo, f);
    if (!ok) return false;
    p->prompt->ids.n = 0;
    for (size_t i = 0; i < k->n_prompt; i++)
        if (mxd_ids_push(&p->prompt->ids, k->prompt[i], NULL))
            return mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
    return true;
}

static bool restore_stream(mxd_job *j, uint64_t id, mxd_fault *f) {
    mxd_err err = {0};
    gen_kit *kit = MXD_NEW(j->al, 1, gen_kit);
    if (!kit) return mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
    mxd_job_fill_gen(kit, j);
    kit->gen.n_prompt = j->choices[0].prompt->ids.n;
    kit->gen.keep = "";
    mxd_rc rc = mxd_engine_restore(j->server->engine, id, &kit->gen, &j->choices[0].stream, &err);
    mxd_free(j->al, kit);
    return rc == MXD_OK || mxd_fault_set(f, MXD_FAULT_INTERNAL, NULL, "%s", err.msg);
}

static mxd_job *make_job(past *p, mxd_server *s, mxd_fault *f) {
    const char *request = json_string_value(json_object_get(p->head, "request"));
    const char *id = json_string_value(json_object_get(p->head, "id"));
    mxd_job *j = mxd_job_new(&(mxd_job_begin){.server = s,
                                              .params = p->params,
                                              .prompts = p->prompt,
                                              .n_prompts = 1,
                                              .request = request ? request : "",
                                              .start_ms = mxd_now_ms(),
                                              .log = true});
    if (!j) {
        mxd_fault_set(f, MXD_FAULT_MEMORY, NULL, "out of memory");
        return NULL;
    }
    p->prompt = NULL;
    j->own_json = p->body;
    j->own_params = p->params;
    p->body = NULL;
    p->params = NULL;
    snprintf(j->id, sizeof j->id, "%s", id ? id : "");
    j->created = json_integer_value(json_object_get(p->head, "created"));
    return j;
}

static void free_past(past *p, const mxd_alloc *al) {
    json_decref(p->head);
    json_decref(p->body);
    mxd_free(al, p->params);
    if (p->prompt) mxd_prompt_deinit(p->prompt);
    mxd_free(al, p->prompt);
}

mxd_job *mxd_job_restore(mxd_server *s, const mxd_engine_kept *k, mxd_resume *e, mxd_fault *f) {
    past p = {0};
    size_t at = 0;
    uint64_t id = k->id;
    bool ok = read_head(&p, k, &at, f) &&
              read_body(&p, s, (const char *)k->keep + at, k->n_keep - at, f) &&
              make_prompt(&p, s, k, f);
    mxd_job *j = ok ? make_job(&p, s, f) : NULL;
    if (j && (j->n_choices != 1 || !j->streamed)) ok = unreadable(f);
    if (j && ok) ok = restore_stream(j, id, f);
    if (j && !ok) {
        mxd_job_free(j);
        j = NULL;
    }
    if (j) {
        memcpy(e->id, p.stream, sizeof e->id);
        memcpy(e->key, p.key, sizeof e->key);
        mxd_job_open(j);
    }
    free_past(&p, s->al);
    return j;
}
