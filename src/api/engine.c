#include "api/engine.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "api/stream.h"
#include "base/clock.h"
#include "base/log.h"
#include "formats/json.h"

enum { MAX_EOS = 32, DEFAULT_TIMEOUT_MS = 600000 };

struct mxd_engine {
    const mxd_alloc *al;
    mxd_cluster *cluster;
    mxd_tokenizer *tokenizer;
    mxd_template *chat, *tool_use; /* tool_use may be the same as chat */
    mxd_err template_err;
    mxd_engine_info info;
    char *folder, *model_id;
    char model_type[48];
    int32_t eos[MAX_EOS];
    int64_t timeout_ms; /* of requests that name none */
    atomic_bool draining;
};

/* ---------------------------------------------------------------------------
 * generation_config.json */

static void add_eos(mxd_engine *e, const json_t *v) {
    if (!json_is_integer(v)) return;
    json_int_t id = json_integer_value(v);
    if (id < 0 || id >= MXD_MAX_VOCAB || e->info.n_eos == MAX_EOS) return;
    for (int i = 0; i < e->info.n_eos; i++)
        if (e->eos[i] == id) return;
    e->eos[e->info.n_eos++] = (int32_t)id;
}

/* An id or a list of ids. */
static void take_eos(mxd_engine *e, const json_t *o) {
    const json_t *v = json_object_get(o, "eos_token_id");
    add_eos(e, v);
    size_t i;
    json_t *item;
    json_array_foreach(v, i, item) add_eos(e, item);
}

/* A number of the file, when it is one a request could also ask for. */
static float number(const json_t *o, const char *key, double least, double most, float otherwise) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) return otherwise;
    double x = json_number_value(v);
    return x >= least && x <= most ? (float)x : otherwise;
}

static void take_sampling(mxd_engine *e, const json_t *o) {
    mxd_sampling *d = &e->info.defaults;
    d->temperature = number(o, "temperature", 0, 2, 1);
    d->top_p = number(o, "top_p", 0, 1, 1);
    d->min_p = number(o, "min_p", 0, 1, 0);
    d->top_k = (int32_t)number(o, "top_k", 0, MXD_MAX_VOCAB, 0);
    d->repetition = number(o, "repetition_penalty", 0.01, 100, 1);
    if (json_is_false(json_object_get(o, "do_sample"))) d->temperature = 0;
}

static json_t *load(mxd_engine *e, const char *name) {
    char path[1200];
    json_t *o = NULL;
    mxd_err err = {0};
    snprintf(path, sizeof path, "%s/%s", e->folder, name);
    mxd_rc rc = mxd_json_load(&o, path, MXD_CONFIG_MAX_BYTES, &err);
    if (rc && rc != MXD_E_NOTFOUND)
        mxd_log(MXD_LOG_WARN, "config_ignored", "file=%s error=\"%s\"", name, err.msg);
    return rc ? NULL : o;
}

static void read_generation(mxd_engine *e) {
    json_t *generation = load(e, "generation_config.json"), *config = load(e, "config.json");
    take_sampling(e, generation);
    take_eos(e, generation);
    if (!e->info.n_eos) take_eos(e, config);
    int32_t own = mxd_tokenizer_eos(e->tokenizer);
    if (!e->info.n_eos && own >= 0) e->eos[e->info.n_eos++] = own;
    e->info.eos = e->eos;
    json_decref(generation);
    json_decref(config);
}

/* ------------------------------------------------------------------------------------- opening */

static mxd_rc read_info(mxd_engine *e, mxd_err *err) {
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, e->al, e->folder, err));
    const mxd_hparams *hp = mxd_model_hparams(m);
    snprintf(e->model_type, sizeof e->model_type, "%s", hp->model_type);
    e->info = (mxd_engine_info){.model_id = e->model_id,
                                .folder = e->folder,
                                .model_type = e->model_type,
                                .ctx_model = hp->context,
                                .n_vocab = hp->n_vocab,
                                .n_layers = hp->n_layers,
                                .hidden = hp->hidden,
                                .n_params = mxd_model_params(m),
                                .weight_bytes = mxd_model_weight_bytes(m)};
    mxd_model_close(m);
    char path[1200];
    struct stat st;
    snprintf(path, sizeof path, "%s/config.json", e->folder);
    e->info.created = stat(path, &st) == 0 ? (int64_t)st.st_mtime : mxd_wall_ms() / 1000;
    return MXD_OK;
}

/* A broken template is not the end: chat is refused, completions work. */
static void read_templates(mxd_engine *e, const mxd_engine_opts *o) {
    mxd_rc rc;
    if (o->chat_template)
        rc = mxd_template_open(&e->chat, e->al, o->chat_template, strlen(o->chat_template),
                               &e->template_err);
    else
        rc = mxd_template_load(&e->chat, e->al, e->folder, false, &e->template_err);
    e->info.has_template = rc == MXD_OK;
    if (rc) {
        e->info.template_problem = e->template_err.msg;
        mxd_log(MXD_LOG_WARN, "no_chat", "reason=\"%s\"", e->template_err.msg);
        return;
    }
    e->tool_use = e->chat;
    mxd_template *t;
    if (!o->chat_template && mxd_template_load(&t, e->al, e->folder, true, NULL) == MXD_OK)
        e->tool_use = t;
}

static mxd_rc open_cluster(mxd_engine *e, const mxd_engine_opts *o, mxd_err *err) {
    mxd_cluster_opts c = {.folder = e->folder,
                          .model_id = e->model_id,
                          .local_workers = o->local_workers,
                          .no_local = o->no_local,
                          .listen = o->cluster_listen,
                          .advertise = o->advertise,
                          .state_dir = o->state_dir,
                          .journal_dir = o->journal_dir,
                          .worker_program = o->worker_program,
                          .backend = o->backend,
                          .kernels = o->kernels,
                          .activations = o->activations,
                          .kv = o->kv,
                          .threads = o->threads,
                          .ctx = o->ctx,
                          .parallel = o->parallel,
                          .min_nodes = o->min_nodes,
                          .prefill_rows = o->prefill_rows,
                          .no_prefix_cache = o->no_prefix_cache,
                          .shape = o->shape,
                          .spend_secret = o->spend_secret,
                          .spend_ctx = o->spend_ctx,
                          .memory_total = o->memory_total,
                          .memory_free = o->memory_free,
                          .bandwidth = o->bandwidth,
                          .ops = o->ops,
                          .paces = o->paces,
                          .cpus = o->cpus,
                          .host_cpus = o->host_cpus};
    MXD_TRY(mxd_cluster_open(&e->cluster, e->al, &c, err));
    e->info.ctx = mxd_cluster_ctx(e->cluster);
    return MXD_OK;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

static mxd_rc open_all(mxd_engine *e, const mxd_engine_opts *o, mxd_err *err) {
    e->folder = mxd_strdup(e->al, o->folder);
    e->model_id = mxd_strdup(e->al, o->model_id ? o->model_id : last_part(o->folder));
    if (!e->folder || !e->model_id) return mxd_fail(err, MXD_E_NOMEM, "engine");
    MXD_TRY(read_info(e, err));
    MXD_TRY(mxd_tokenizer_open(&e->tokenizer, e->al, e->folder, err));
    if (mxd_tokenizer_vocab(e->tokenizer) > e->info.n_vocab)
        mxd_log(MXD_LOG_WARN, "vocabulary_too_large", "tokenizer=%d model=%d",
                mxd_tokenizer_vocab(e->tokenizer), e->info.n_vocab);
    read_generation(e);
    read_templates(e, o);
    return open_cluster(e, o, err);
}

mxd_rc mxd_engine_open(mxd_engine **out, const mxd_alloc *al, const mxd_engine_opts *opts,
                       mxd_err *err) {
    if (!opts->folder || strlen(opts->folder) > 1000)
        return mxd_fail(err, MXD_E_INVAL, "an engine needs the folder of a model");
    mxd_engine *e = MXD_NEW(al, 1, mxd_engine);
    if (!e) return mxd_fail(err, MXD_E_NOMEM, "engine");
    e->al = al;
    e->timeout_ms = DEFAULT_TIMEOUT_MS;
    mxd_rc rc = open_all(e, opts, err);
    if (rc) {
        mxd_engine_close(e);
        return rc;
    }
    *out = e;
    return MXD_OK;
}

void mxd_engine_close(mxd_engine *e) {
    if (!e) return;
    mxd_cluster_close(e->cluster);
    if (e->tool_use != e->chat) mxd_template_close(e->tool_use);
    mxd_template_close(e->chat);
    mxd_tokenizer_close(e->tokenizer);
    mxd_free(e->al, e->folder);
    mxd_free(e->al, e->model_id);
    mxd_free(e->al, e);
}

/* ---------------------------------------------------------------------------------------- state */

mxd_rc mxd_engine_wait(mxd_engine *e, int64_t timeout_ms, mxd_err *err) {
    return mxd_cluster_wait(e->cluster, timeout_ms, err);
}

mxd_rc mxd_engine_drain(mxd_engine *e, int64_t timeout_ms, mxd_err *err) {
    e->draining = true;
    return mxd_cluster_drain(e->cluster, timeout_ms, err);
}

mxd_engine_state mxd_engine_state_now(const mxd_engine *e) {
    if (e->draining) return MXD_ENGINE_DRAINING;
    switch (mxd_cluster_state_now(e->cluster, NULL)) {
    case MXD_CLUSTER_READY:
        return MXD_ENGINE_READY;
    case MXD_CLUSTER_FAILED:
        return MXD_ENGINE_NO_WORKERS;
    case MXD_CLUSTER_RECOVERING:
        return MXD_ENGINE_RECOVERING;
    case MXD_CLUSTER_LOADING:
        break;
    }
    return MXD_ENGINE_LOADING;
}

const mxd_engine_info *mxd_engine_info_get(const mxd_engine *e) { return &e->info; }

void mxd_engine_set_defaults(mxd_engine *e, const mxd_engine_defaults *d) {
    e->info.defaults = d->sampling;
    e->info.has_seed = d->has_seed;
    e->info.max_tokens = d->max_tokens;
    if (d->timeout_ms > 0) e->timeout_ms = d->timeout_ms;
}

const char *mxd_engine_determinism(const mxd_engine *e) {
    return mxd_cluster_determinism(e->cluster);
}

const mxd_tokenizer *mxd_engine_tokenizer(const mxd_engine *e) { return e->tokenizer; }

const mxd_template *mxd_engine_template(const mxd_engine *e, bool with_tools) {
    return with_tools ? e->tool_use : e->chat;
}

mxd_rc mxd_engine_chat_ids(const mxd_engine *e, const json_t *vars, mxd_ids *ids, mxd_err *err) {
    if (!e->chat)
        return mxd_fail(err, MXD_E_UNSUPPORTED, "no chat with this model: %s",
                        e->info.template_problem);
    mxd_rendered text;
    MXD_TRY(mxd_template_render(e->chat, vars, mxd_tokenizer_special_vars(e->tokenizer),
                                mxd_wall_ms() / 1000, &text, err));
    mxd_rc rc = mxd_tokenizer_encode(e->tokenizer, text.spans, text.n_spans, false, ids, err);
    mxd_rendered_deinit(&text);
    return rc;
}

json_t *mxd_engine_cluster_state(mxd_engine *e) { return mxd_cluster_state_json(e->cluster); }

void mxd_engine_metrics_get(mxd_engine *e, mxd_engine_metrics *out) {
    mxd_cluster_counters c;
    mxd_cluster_counters_get(e->cluster, &c);
    *out = (mxd_engine_metrics){.prompt_tokens = c.prompt_tokens,
                                .cached_tokens = c.cached_tokens,
                                .generated_tokens = c.generated_tokens,
                                .requests_done = c.requests_done,
                                .requests_failed = c.requests_failed,
                                .requests_cancelled = c.requests_cancelled,
                                .epochs = c.epochs,
                                .replays = c.replays,
                                .steps = c.steps,
                                .running = c.running,
                                .waiting = c.waiting,
                                .slots = c.slots,
                                .nodes_live = c.nodes_live,
                                .kv_tokens_used = c.kv_tokens_used,
                                .kv_tokens_total = c.kv_tokens_total};
}

/* ------------------------------------------------------------------------------------- requests */

static mxd_rc check(const mxd_engine *e, const mxd_gen *g, mxd_err *err) {
    if (g->n_prompt < 1) return mxd_fail(err, MXD_E_INVAL, "the prompt is empty");
    if (g->n_prompt >= (size_t)e->info.ctx)
        return mxd_fail(
            err, MXD_E_CONTEXT,
            "the prompt has %zu tokens, the context %d: shorten it, or start the server "
            "with a larger --ctx-size",
            g->n_prompt, e->info.ctx);
    for (size_t i = 0; i < g->n_prompt; i++)
        if (g->prompt[i] < 0 || g->prompt[i] >= e->info.n_vocab)
            return mxd_fail(err, MXD_E_INVAL, "token id %d: the vocabulary has %d", g->prompt[i],
                            e->info.n_vocab);
    return MXD_OK;
}

mxd_rc mxd_engine_submit(mxd_engine *e, const mxd_gen *g, mxd_stream **out, mxd_err *err) {
    MXD_TRY(check(e, g, err));
    int32_t stop_ids[MXD_CORE_STOP_IDS];
    int n_stop = 0, room = e->info.ctx - (int)g->n_prompt;
    if (!g->ignore_eos)
        for (int i = 0; i < e->info.n_eos; i++) stop_ids[n_stop++] = e->eos[i];
    if (g->n_stop_ids > MXD_CORE_STOP_IDS - n_stop)
        return mxd_fail(err, MXD_E_TOOBIG, "%d stop token ids: at most %d", g->n_stop_ids,
                        MXD_CORE_STOP_IDS - n_stop);
    for (int i = 0; i < g->n_stop_ids; i++) stop_ids[n_stop++] = g->stop_ids[i];
    mxd_request r = {.prompt = g->prompt,
                     .n_prompt = (int)g->n_prompt,
                     .max_tokens = g->max_tokens > 0 && g->max_tokens < room ? g->max_tokens : room,
                     .min_tokens = g->min_tokens,
                     .stop_ids = stop_ids,
                     .n_stop_ids = n_stop,
                     .how = g->sampling,
                     .timeout_ms = g->timeout_ms > 0 ? g->timeout_ms : e->timeout_ms,
                     .keep = g->keep,
                     .n_keep = g->n_keep,
                     .token = mxd_stream_on_token,
                     .end = mxd_stream_on_end};
    r.how.n_prompt = (uint32_t)g->n_prompt;
    mxd_stream *s;
    MXD_TRY(mxd_stream_new(&s, e->al, e, e->cluster, g, err));
    r.ctx = s;
    uint64_t id;
    mxd_rc rc = mxd_cluster_submit(e->cluster, &r, &id, err);
    if (rc) {
        mxd_stream_abandon(s);
        return rc;
    }
    mxd_stream_submitted(s, id);
    *out = s;
    return MXD_OK;
}

/* -------------------------------------------------------------------------- requests that are kept
 */

bool mxd_engine_kept_at(mxd_engine *e, int i, mxd_engine_kept *out) {
    const mxd_kept *k = mxd_cluster_kept(e->cluster, i);
    if (!k) return false;
    int64_t ago = k->ended ? mxd_wall_ms() - k->end_wall_ms : 0;
    *out = (mxd_engine_kept){.id = k->id,
                             .keep = k->keep,
                             .n_keep = k->n_keep,
                             .prompt = k->prompt,
                             .n_prompt = (size_t)k->n_prompt,
                             .n_tokens = k->n_tokens,
                             .ended = k->ended,
                             .ended_ms_ago = ago > 0 ? ago : 0};
    return true;
}

static const mxd_kept *kept_of(mxd_engine *e, uint64_t id) {
    const mxd_kept *k;
    for (int i = 0; (k = mxd_cluster_kept(e->cluster, i)) != NULL; i++)
        if (k->id == id) return k;
    return NULL;
}

mxd_rc mxd_engine_restore(mxd_engine *e, uint64_t id, const mxd_gen *gen, mxd_stream **out,
                          mxd_err *err) {
    const mxd_kept *k = kept_of(e, id);
    if (!k) return mxd_fail(err, MXD_E_NOTFOUND, "no request %llu", (unsigned long long)id);
    bool ended = k->ended;
    mxd_stream *s;
    MXD_TRY(mxd_stream_new(&s, e->al, e, e->cluster, gen, err));
    mxd_stream_submitted(s, id);
    mxd_rc rc = mxd_stream_past(s, k, err);
    if (!rc)
        rc = mxd_cluster_restore(e->cluster, id, mxd_stream_on_token, mxd_stream_on_end, s, err);
    if (rc) {
        mxd_stream_abandon(s);
        return rc;
    }
    if (ended) mxd_stream_settled(s);
    *out = s;
    return MXD_OK;
}

void mxd_engine_forget(mxd_engine *e, uint64_t id) { mxd_cluster_forget(e->cluster, id); }

bool mxd_engine_journal_problem(mxd_engine *e, char *text, size_t cap) {
    return mxd_cluster_journal_problem(e->cluster, text, cap);
}
