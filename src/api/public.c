/* public.c - include/mlx_distributed.h over the engine. */
#include "mlx_distributed.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "api/engine.h"
#include "api/public_kit.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rand.h"
#include "base/version.h"
#include "formats/json.h"
#include "hardware/hardware.h"
#include "hub/resolve.h"

enum { LOAD_TIMEOUT_MS = 900000, JSON_MAX = 16 << 20, PATH_CAP = 1024 };

/* The codes are the same numbers, for ever. */
_Static_assert((int)MLXD_INTERNAL == (int)MXD_E_INTERNAL && (int)MLXD_PEER == (int)MXD_E_PEER &&
                   (int)MLXD_TIMEOUT == (int)MXD_E_TIMEOUT &&
                   (int)MLXD_FORMAT == (int)MXD_E_FORMAT &&
                   (int)MLXD_INTERNAL + 1 == (int)MXD_RC_COUNT,
               "mlxd_code follows mxd_rc");

struct mlxd_engine {
    mxd_engine *engine;
    char folder[MXD_HUB_PATH_MAX], worker[PATH_CAP + 32];
};

struct mlxd_stream {
    mxd_stream *stream;
};

int public_report(mxd_rc rc, const mxd_err *from, mlxd_error *err) {
    if (!err) return (int)rc;
    err->code = (int)rc;
    snprintf(err->message, sizeof err->message, "%s",
             rc ? from->msg[0] ? from->msg : mxd_rc_text(rc) : "");
    return (int)rc;
}

int mlxd_abi_version(void) { return MLXD_ABI_VERSION; }
const char *mlxd_version(void) { return MXD_VERSION; }
const char *mlxd_code_name(int code) {
    return code >= 0 && code < MXD_RC_COUNT ? mxd_rc_name((mxd_rc)code) : "E_UNKNOWN";
}
void mlxd_free(void *p) { mxd_free(&mxd_alloc_libc, p); }

/* ------------------------------------------------------------------------------------------ log */

static struct {
    void (*sink)(void *ctx, int level, const char *line);
    void *ctx;
} log_to;

static void pass_on(void *ctx, mxd_log_level level, const char *event, const char *fields) {
    (void)ctx;
    char line[1200];
    snprintf(line, sizeof line, "%s%s%s", event, fields[0] ? " " : "", fields);
    log_to.sink(log_to.ctx, (int)level, line);
}

void mlxd_set_log(void (*sink)(void *ctx, int level, const char *line), void *ctx,
                  int least_level) {
    log_to.sink = sink;
    log_to.ctx = ctx;
    mxd_log_set_sink(sink ? pass_on : NULL, NULL);
    if (least_level >= MXD_LOG_DEBUG && least_level <= MXD_LOG_ERROR)
        mxd_log_set_level((mxd_log_level)least_level);
}

/* -------------------------------------------------------------------------------------- engines */

/* The folder of this library, "" when the system does not tell. */
static void library_dir(char out[PATH_CAP]) {
    Dl_info info;
    out[0] = '\0';
    if (!dladdr((void *)(uintptr_t)mlxd_version, &info) || !info.dli_fname) return;
    snprintf(out, PATH_CAP, "%s", info.dli_fname);
    char *slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
    else
        snprintf(out, PATH_CAP, ".");
}

static mxd_rc find_worker(mlxd_engine *e, const mlxd_engine_options *o, mxd_err *err) {
    char dir[PATH_CAP];
    if (o->worker_program) {
        snprintf(e->worker, sizeof e->worker, "%s", o->worker_program);
        return MXD_OK;
    }
    library_dir(dir);
    snprintf(e->worker, sizeof e->worker, "%s/mlx-dist-worker", dir);
    if (access(e->worker, X_OK) == 0) return MXD_OK;
    snprintf(e->worker, sizeof e->worker, "%s/../bin/mlx-dist-worker", dir);
    if (access(e->worker, X_OK) == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "mlx-dist-worker is neither in %s nor in ../bin of it: name "
                    "it in worker_program",
                    dir);
}

static mxd_rc read_activations(const char *text, mxd_activations *out, mxd_err *err) {
    static const char *const names[] = {
        [MXD_ACT_I8] = "8", [MXD_ACT_I16] = "16", [MXD_ACT_F32] = "f32"};
    *out = MXD_ACT_I8;
    for (size_t i = 0; text && i < MXD_COUNT(names); i++)
        if (strcmp(text, names[i]) == 0) {
            *out = (mxd_activations)i;
            return MXD_OK;
        }
    return text ? mxd_fail(err, MXD_E_INVAL, "activations '%s': must be 8, 16 or f32", text)
                : MXD_OK;
}

static mxd_rc find_model(mlxd_engine *e, const mlxd_engine_options *o, mxd_err *err) {
    char dir[PATH_CAP];
    library_dir(dir);
    const mxd_hub_places places = {
        .data_dir = o->data_dir, .program_dir = dir, .cache_dir = o->cache_dir};
    return mxd_hub_resolve(e->folder, &mxd_alloc_libc, o->model, &places, err);
}

static mxd_rc read_shape(const mlxd_engine_options *o, mxd_shape *s, mxd_err *err) {
    s->tensor = o->tensor_parallel_size;
    s->pipeline = o->pipeline_parallel_size;
    if (o->objective && strcmp(o->objective, "throughput") == 0)
        s->objective = MXD_OBJECTIVE_THROUGHPUT;
    else if (o->objective && strcmp(o->objective, "latency") != 0)
        return mxd_fail(err, MXD_E_INVAL, "objective '%.40s': must be latency or throughput",
                        o->objective);
    if (o->n_layer_split < 0 || o->n_layer_split > MXD_MAX_NODES || o->n_tensor_split < 0 ||
        o->n_tensor_split > MXD_MAX_NODES)
        return mxd_fail(err, MXD_E_INVAL, "a split over %d nodes: at most %d",
                        o->n_layer_split > o->n_tensor_split ? o->n_layer_split : o->n_tensor_split,
                        MXD_MAX_NODES);
    if ((o->n_layer_split && !o->layer_split) || (o->n_tensor_split && !o->tensor_split))
        return mxd_fail(err, MXD_E_INVAL, "a split without its numbers");
    s->n_split = o->n_layer_split;
    s->n_tensor_split = o->n_tensor_split;
    for (int i = 0; i < s->n_split; i++) s->split[i] = o->layer_split[i];
    for (int i = 0; i < s->n_tensor_split; i++) s->tensor_split[i] = o->tensor_split[i];
    return MXD_OK;
}

static mxd_rc open_engine(mlxd_engine *e, const mlxd_engine_options *o, mxd_err *err) {
    if (!o->model || !o->model[0]) return mxd_fail(err, MXD_E_INVAL, "no model was named");
    MXD_TRY(find_model(e, o, err));
    mxd_engine_opts eo = {.folder = e->folder,
                          .model_id = o->model,
                          .local_workers = o->local_workers,
                          .backend = o->backend && strcmp(o->backend, "auto") ? o->backend : NULL,
                          .threads = o->threads,
                          .ctx = o->context,
                          .parallel = o->parallel,
                          .cluster_listen = o->cluster_listen,
                          .state_dir = o->state_dir,
                          .min_nodes = o->min_nodes,
                          .worker_program = e->worker};
    MXD_TRY(read_activations(o->activations, &eo.activations, err));
    MXD_TRY(read_shape(o, &eo.shape, err));
    if (o->local_workers > 0) MXD_TRY(find_worker(e, o, err));
    mxd_hardware h;
    MXD_TRY(mxd_hardware_detect(&h, &mxd_alloc_libc, NULL, err));
    eo.memory_total = h.memory_total_bytes;
    eo.memory_free = h.memory_available_bytes;
    MXD_TRY(mxd_engine_open(&e->engine, &mxd_alloc_libc, &eo, err));
    return mxd_engine_wait(e->engine, o->load_timeout_ms > 0 ? o->load_timeout_ms : LOAD_TIMEOUT_MS,
                           err);
}

bool public_take_struct(void *dst, size_t size, const void *src, size_t src_size) {
    if (src_size < sizeof(size_t)) return false;
    memset(dst, 0, size);
    memcpy(dst, src, src_size < size ? src_size : size);
    return true;
}

int mlxd_engine_open(mlxd_engine **out, const mlxd_engine_options *options, mlxd_error *err) {
    mlxd_engine_options o;
    mxd_err e = {0};
    if (!public_take_struct(&o, sizeof o, options, options->struct_size))
        return public_report(mxd_fail(&e, MXD_E_INVAL, "struct_size is not set"), &e, err);
    mlxd_engine *engine = MXD_NEW(&mxd_alloc_libc, 1, mlxd_engine);
    mxd_rc rc = engine ? open_engine(engine, &o, &e) : mxd_fail(&e, MXD_E_NOMEM, "engine");
    if (rc)
        mlxd_engine_close(engine);
    else
        *out = engine;
    return public_report(rc, &e, err);
}

void mlxd_engine_close(mlxd_engine *engine) {
    if (!engine) return;
    mxd_engine_close(engine->engine);
    mlxd_free(engine);
}

/* Takes the reference. Text for mlxd_free. */
static char *to_text(json_t *v) {
    mxd_buf out;
    if (!v) return NULL;
    mxd_buf_init(&out, &mxd_alloc_libc, JSON_MAX);
    mxd_json_write(&out, v, &(mxd_json_style){0});
    json_decref(v);
    if (!out.rc) return out.ptr; /* a mxd_buf's memory is mxd_free's to free */
    mxd_buf_deinit(&out);
    return NULL;
}

char *mlxd_engine_state_json(mlxd_engine *engine) {
    return to_text(mxd_engine_cluster_state(engine->engine));
}

char *mlxd_engine_info_json(mlxd_engine *engine) {
    const mxd_engine_info *i = mxd_engine_info_get(engine->engine);
    return to_text(json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:s, s:b}", "model",
                             i->model_id, "folder", i->folder, "model_type", i->model_type,
                             "context", i->ctx, "vocabulary", i->n_vocab, "layers", i->n_layers,
                             "hidden", i->hidden, "parameters", (json_int_t)i->n_params,
                             "weight_bytes", (json_int_t)i->weight_bytes, "determinism",
                             mxd_engine_determinism(engine->engine), "chat", i->has_template));
}

int mlxd_detect_json(char **out, mlxd_error *err) {
    mxd_err e = {0};
    mxd_hardware h;
    mxd_rc rc = mxd_hardware_detect(&h, &mxd_alloc_libc, NULL, &e);
    json_t *v = rc ? NULL : mxd_hardware_json(&h);
    char *text = to_text(v);
    if (!rc && !text) rc = mxd_fail(&e, MXD_E_NOMEM, "hardware");
    if (!rc) *out = text;
    return public_report(rc, &e, err);
}

/* -------------------------------------------------------------------------------------- answers */

static mxd_rc chat_vars(const mlxd_request *r, json_t **out, mxd_err *err) {
    json_t *vars = r->template_kwargs_json ? NULL : json_object(), *messages = NULL, *ready = NULL;
    mxd_rc rc = MXD_OK;
    if (r->template_kwargs_json)
        rc = mxd_json_parse(&vars, r->template_kwargs_json, strlen(r->template_kwargs_json), err);
    if (!rc && r->messages_json)
        rc = mxd_json_parse(&messages, r->messages_json, strlen(r->messages_json), err);
    else if (!rc)
        messages = json_pack("[{s:s, s:s}]", "role", "user", "content", r->text);
    if (!rc && (!messages || !json_is_object(vars)))
        rc = mxd_fail(err, MXD_E_INVAL,
                      "the message is not valid UTF-8, or the template's variables "
                      "are not an object");
    if (!rc) rc = mxd_template_messages(&ready, messages, err);
    if (!rc && (json_object_set_new(vars, "messages", ready) != 0 ||
                json_object_set_new(vars, "add_generation_prompt", json_true()) != 0))
        rc = mxd_fail(err, MXD_E_NOMEM, "messages");
    json_decref(messages);
    if (rc)
        json_decref(vars);
    else
        *out = vars;
    return rc;
}

static mxd_rc chat_prompt(mxd_engine *e, const mlxd_request *r, mxd_ids *ids, mxd_err *err) {
    json_t *vars;
    if (!mxd_engine_template(e, false))
        return mxd_fail(err, MXD_E_UNSUPPORTED, "no chat with this model: %s; ask with raw set",
                        mxd_engine_info_get(e)->template_problem);
    MXD_TRY(chat_vars(r, &vars, err));
    mxd_rc rc = mxd_engine_chat_ids(e, vars, ids, err);
    json_decref(vars);
    return rc;
}

static mxd_rc make_prompt(mxd_engine *e, const mlxd_request *r, mxd_ids *ids, mxd_err *err) {
    if (!r->text && !r->messages_json)
        return mxd_fail(err, MXD_E_INVAL, "neither text nor messages were given");
    if (!r->raw) return chat_prompt(e, r, ids, err);
    const mxd_span span = {r->text, strlen(r->text), false};
    return mxd_tokenizer_encode(mxd_engine_tokenizer(e), &span, 1, true, ids, err);
}

static mxd_rc check_sampling(const mlxd_request *r, mxd_err *err) {
    if (r->temperature > 2 || r->temperature != r->temperature)
        return mxd_fail(err, MXD_E_INVAL, "temperature %g: must be 0 to 2", r->temperature);
    if (r->top_p > 1 || !(r->min_p >= 0 && r->min_p <= 1) || r->max_tokens < 0)
        return mxd_fail(err, MXD_E_INVAL,
                        "top_p and min_p must be 0 to 1, max_tokens not negative");
    return MXD_OK;
}

static mxd_sampling sampling(const mxd_engine *e, const mlxd_request *r) {
    mxd_sampling s = mxd_engine_info_get(e)->defaults;
    if (r->temperature >= 0) s.temperature = (float)r->temperature;
    if (r->top_p >= 0) s.top_p = (float)r->top_p;
    if (r->min_p > 0) s.min_p = (float)r->min_p;
    if (r->top_k) s.top_k = r->top_k > 0 ? r->top_k : 0;
    s.seed = r->seed;
    if (!r->has_seed && mxd_rand_secret(&s.seed, sizeof s.seed, NULL) != MXD_OK)
        s.seed = (uint64_t)mxd_now_ns();
    return s;
}

static mxd_rc start(mlxd_engine *engine, const mlxd_request *r, mlxd_stream *s, mxd_err *err) {
    mxd_ids ids;
    MXD_TRY(check_sampling(r, err));
    mxd_ids_init(&ids, &mxd_alloc_libc, MXD_MAX_CONTEXT);
    mxd_rc rc = make_prompt(engine->engine, r, &ids, err);
    mxd_gen g = {.prompt = ids.ptr,
                 .n_prompt = ids.n,
                 .max_tokens = r->max_tokens,
                 .ignore_eos = r->ignore_eos != 0,
                 .sampling = sampling(engine->engine, r),
                 .stop = r->stop,
                 .n_stop = r->n_stop,
                 .timeout_ms = r->timeout_ms};
    if (!rc) rc = mxd_engine_submit(engine->engine, &g, &s->stream, err);
    mxd_ids_deinit(&ids);
    return rc;
}

int mlxd_engine_start(mlxd_engine *engine, const mlxd_request *request, mlxd_stream **out,
                      mlxd_error *err) {
    mlxd_request r;
    mxd_err e = {0};
    if (!public_take_struct(&r, sizeof r, request, request->struct_size))
        return public_report(mxd_fail(&e, MXD_E_INVAL, "struct_size is not set"), &e, err);
    mlxd_stream *s = MXD_NEW(&mxd_alloc_libc, 1, mlxd_stream);
    mxd_rc rc = s ? start(engine, &r, s, &e) : mxd_fail(&e, MXD_E_NOMEM, "stream");
    if (rc)
        mlxd_free(s);
    else
        *out = s;
    return public_report(rc, &e, err);
}

int mlxd_stream_next(mlxd_stream *stream, int64_t timeout_ms, mlxd_event *event, mlxd_error *err) {
    mxd_err e = {0};
    mxd_stream_event ev;
    mxd_rc rc = mxd_stream_next(stream->stream, timeout_ms, &ev, &e);
    if (!rc)
        *event = (mlxd_event){.kind = (int)ev.kind,
                              .text = ev.text,
                              .text_bytes = ev.n_text,
                              .n_tokens = ev.n_tokens,
                              .finish = (int)ev.finish,
                              .prompt_tokens = ev.n_prompt,
                              .completion_tokens = ev.n_generated,
                              .queue_ms = ev.queue_ms,
                              .prefill_ms = ev.prefill_ms,
                              .decode_ms = ev.decode_ms};
    return public_report(rc, &e, err);
}

int mlxd_stream_ended(const mlxd_stream *stream) { return mxd_stream_ended(stream->stream); }

void mlxd_stream_cancel(mlxd_stream *stream) { mxd_stream_cancel(stream->stream); }

void mlxd_stream_free(mlxd_stream *stream) {
    if (!stream) return;
    mxd_stream_free(stream->stream);
    mlxd_free(stream);
}
