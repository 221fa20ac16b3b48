/* engine.h - a model that answers: the cluster, its tokenizer and its chat template as one thing.
 *
 * The server, the programs and the public C interface are all written on this header; none of them
 * knows how many nodes there are. An engine owns the coordinator, and with local_workers = 0 a
 * worker inside this process.
 *
 *   OPENING --all layers loaded--> READY --drain--> DRAINING --nothing runs--> STOPPED
 *      ^                             |
 *      +-- no plan, nodes lost ------+   requests wait or fail as the cluster says
 *
 * Threads: everything from any thread, except that one stream is read by one thread at a time.
 * Lifetime: streams end before the engine closes (mxd_engine_close fails what still runs).
 */
#ifndef MXD_API_ENGINE_H
#define MXD_API_ENGINE_H

#include <jansson.h>
#include "backend/backend.h"
#include "hardware/paces.h"
#include "plan/shape.h"
#include "runtime/sampling.h"
#include "tokenizer/template.h"
#include "tokenizer/tokenizer.h"

typedef struct mxd_engine mxd_engine;

typedef struct mxd_engine_opts { /* zero: default */
    const char *folder;          /* the model repository on disk */
    const char *model_id;        /* its public name; NULL: the folder's last part */
    int local_workers;           /* worker processes on this machine; 0: compute in this process */
    const char *cluster_listen;  /* "ip:port" for remote workers; NULL: 127.0.0.1 and a free port */
    bool advertise;              /* cluster_listen, as a hint to the local network */
    const char *state_dir;   /* CA, keys, tokens; NULL: a private CA that lives as long as we do */
    const char *journal_dir; /* of requests that are kept; NULL: none outlives the process */
    const char *worker_program; /* path of mlx-dist-worker */
    const char *backend;        /* "auto" */
    const char *kernels;        /* force a kernel table; NULL: best */
    mxd_activations activations;
    mxd_kv_type kv;
    int threads;          /* compute threads of each worker here; 0: one per core */
    int ctx;              /* tokens per sequence; 0: the model's, at most 4096 */
    int min_nodes;        /* the first plan waits for so many nodes; 0: the local ones */
    int parallel;         /* sequences at once; 0: 4 */
    int prefill_rows;     /* prompt tokens per micro-batch; 0: 256 */
    bool no_prefix_cache; /* compute every prompt from its first token */
    mxd_shape shape;      /* sizes, splits and objective of plans */
    bool no_local;        /* remote workers only: nothing is computed on this machine */
    bool (*spend_secret)(void *ctx, const char *secret); /* takes one use of a join secret */
    void *spend_ctx;
    uint64_t memory_total, memory_free; /* of this machine; for the worker in this process */
    double bandwidth, ops;              /* measured; 0: unknown */
    mxd_paces paces;
    double cpus, host_cpus;    /* that the threads get, of so many of this machine; 0: unknown */
    const char *chat_template; /* text that replaces the repository's; NULL */
} mxd_engine_opts;

/* Starts loading and returns; mxd_engine_wait tells when it can answer.
 * Errors: E_NOTFOUND, E_FORMAT, E_UNSUPPORTED the model; E_NET the port; E_NOMEM. */
mxd_rc mxd_engine_open(mxd_engine **out, const mxd_alloc *al, const mxd_engine_opts *opts,
                       mxd_err *err) MXD_MUST_USE;

/* Until READY. Errors: why it cannot become ready (E_NOFIT, E_FORMAT, ...); E_TIMEOUT. */
mxd_rc mxd_engine_wait(mxd_engine *e, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Refuses new work and waits until running requests end. E_TIMEOUT: some still run. */
mxd_rc mxd_engine_drain(mxd_engine *e, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Ends everything, local workers included, within 2 s. NULL is fine. */
void mxd_engine_close(mxd_engine *e);

typedef enum mxd_engine_state {
    MXD_ENGINE_LOADING,
    MXD_ENGINE_READY,
    MXD_ENGINE_RECOVERING, /* between two plans: requests wait a moment, nothing is refused */
    MXD_ENGINE_NO_WORKERS,
    MXD_ENGINE_DRAINING
} mxd_engine_state;
mxd_engine_state mxd_engine_state_now(const mxd_engine *e);

/* What /v1/models and the programs show. Strings are borrowed from the engine. */
typedef struct mxd_engine_info {
    const char *model_id, *folder, *model_type;
    int ctx, ctx_model, n_vocab, n_layers, hidden;
    uint64_t n_params, weight_bytes;
    int64_t created; /* unix seconds: of the weights file */
    bool has_template;
    const char *template_problem; /* NULL, or why chat is refused */
    const int32_t *eos;           /* [n_eos] */
    int n_eos;
    mxd_sampling defaults; /* generation_config.json over OpenAI's: temperature, top_p, ... */
    bool has_seed;         /* defaults.seed is the operator's */
    int max_tokens;        /* of answers where a request names none; 0: the rest of the context */
} mxd_engine_info;
const mxd_engine_info *mxd_engine_info_get(const mxd_engine *e);

/* The operator's word over the model's own: what requests get that do not say. Before requests. */
typedef struct mxd_engine_defaults {
    mxd_sampling sampling; /* seed only when has_seed */
    bool has_seed;
    int max_tokens;     /* 0: the rest of the context */
    int64_t timeout_ms; /* 0: 600 s */
} mxd_engine_defaults;
void mxd_engine_set_defaults(mxd_engine *e, const mxd_engine_defaults *d);

/* What the plan in force guarantees: "bit-exact" or "per-node". A constant. */
const char *mxd_engine_determinism(const mxd_engine *e);

const mxd_tokenizer *mxd_engine_tokenizer(const mxd_engine *e);
const mxd_template *mxd_engine_template(const mxd_engine *e, bool with_tools); /* NULL: none */

/* Appends the ids of a chat prompt: the template rendered with `vars` (messages,
 * add_generation_prompt, ...; untrusted, borrowed). Errors: E_UNSUPPORTED there is no template;
 * those of mxd_template_render and mxd_tokenizer_encode. */
mxd_rc mxd_engine_chat_ids(const mxd_engine *e, const json_t *vars, mxd_ids *ids,
                           mxd_err *err) MXD_MUST_USE;

/* The object of GET /v1/cluster/state; a new reference. NULL: no memory. */
json_t *mxd_engine_cluster_state(mxd_engine *e);

/* Counters since the start, for /metrics. */
typedef struct mxd_engine_metrics {
    uint64_t prompt_tokens, generated_tokens, requests_done, requests_failed, requests_cancelled;
    uint64_t cached_tokens; /* of the prompt tokens: not computed */
    uint64_t epochs, replays, steps;
    uint32_t running, waiting, slots, nodes_live;
    uint64_t kv_tokens_used, kv_tokens_total;
} mxd_engine_metrics;
void mxd_engine_metrics_get(mxd_engine *e, mxd_engine_metrics *out);

/* ------------------------------------------------------------------------------------ requests */

typedef struct mxd_gen { /* copied by submit, with everything it points to */
    const int32_t *prompt;
    size_t n_prompt;
    int max_tokens; /* 0: the rest of the context */
    int min_tokens; /* no end before */
    bool ignore_eos;
    bool keep_special;       /* special tokens stay visible in the text */
    mxd_sampling sampling;   /* n_prompt is filled in by the engine */
    const int32_t *stop_ids; /* beside the model's own */
    int n_stop_ids;
    const char *const *stop; /* stop strings; not part of the text */
    int n_stop;
    int64_t timeout_ms; /* 0: 600 s */
    /* Not NULL: a request that is kept (below), with these bytes. Its stream gives an event for
     * every token, whenever it is read, so that what is made of them can be made again. */
    const void *keep;
    size_t n_keep;
} mxd_gen;

typedef enum mxd_finish { MXD_FINISH_STOP, MXD_FINISH_LENGTH, MXD_FINISH_CANCELLED } mxd_finish;

typedef enum mxd_stream_kind { MXD_STREAM_TEXT, MXD_STREAM_DONE } mxd_stream_kind;

typedef struct mxd_stream_event {
    mxd_stream_kind kind;
    const char *text; /* TEXT: valid UTF-8, n_text bytes, NUL behind; may be empty */
    size_t n_text;
    const mxd_sampled *tokens; /* TEXT: the tokens accepted since the last event */
    int n_tokens;
    mxd_finish finish;         /* DONE */
    const char *stop_matched;  /* DONE with STOP: the stop string, or NULL */
    int n_prompt, n_generated; /* DONE; the end-of-text token counts as generated */
    int n_cached;              /* DONE; prompt tokens that needed no computing */
    double prefill_ms, decode_ms, queue_ms;
} mxd_stream_event; /* borrowed until the next call on the stream */

typedef struct mxd_stream mxd_stream;

/* Errors: E_CONTEXT prompt does not fit; E_BUSY queue full; E_SHUTDOWN draining; E_PEER no workers;
 * E_INVAL; E_NOMEM; E_IO it is to be kept and the journal cannot be written. */
mxd_rc mxd_engine_submit(mxd_engine *e, const mxd_gen *gen, mxd_stream **out,
                         mxd_err *err) MXD_MUST_USE;

/* Waits for the next event. Text is held back while it may still become a stop string or while a
 * character is incomplete. After DONE there is nothing more.
 * Errors: E_TIMEOUT nothing yet (call again); else the request has failed and ended. */
mxd_rc mxd_stream_next(mxd_stream *s, int64_t timeout_ms, mxd_stream_event *ev,
                       mxd_err *err) MXD_MUST_USE;

/* `fn` is called (on the engine's thread; must not block) whenever an event may be waiting, and
 * once at once if one is waiting already. For servers that do not keep a thread per stream. */
void mxd_stream_notify(mxd_stream *s, void (*fn)(void *ctx), void *ctx);

/* True after DONE or a failure: tells a request that failed by its deadline (E_TIMEOUT) from a wait
 * that ended (E_TIMEOUT). The reader's thread. */
bool mxd_stream_ended(const mxd_stream *s);

void mxd_stream_cancel(mxd_stream *s); /* any thread; DONE with CANCELLED follows */
void mxd_stream_free(mxd_stream *s);   /* cancels if still running; no notify after this returns */
void mxd_stream_leave(mxd_stream *s);  /* as free, and the request runs on: it is kept */

/* ----------------------------------------------------------------------- requests that are kept
 *
 * With a journal_dir, a request with `keep` is in the journal until mxd_engine_forget: parameters,
 * seed, prompt, every accepted token before a reader sees it, and its bytes. An engine that is
 * opened over the same journal and model has it again. Without a journal, or when it was submitted
 * while there was none, it lives as long as the engine. */

typedef struct mxd_engine_kept { /* borrowed until it is restored or forgotten */
    uint64_t id;
    const void *keep; /* [n_keep] */
    size_t n_keep;
    const int32_t *prompt; /* [n_prompt] */
    size_t n_prompt;
    int n_tokens;
    bool ended;
    int64_t ended_ms_ago; /* by the wall clock */
} mxd_engine_kept;

/* The i-th of an earlier life. False: there are no more. Before requests are submitted; one thread.
 */
bool mxd_engine_kept_at(mxd_engine *e, int i, mxd_engine_kept *out);

/* Its stream, from the first token on; takes it off the list. If it has not ended, it goes on by
 * itself as soon as the engine can, under its own parameters. Of `gen` only what makes text of
 * tokens is looked at: n_prompt, stop strings, keep_special. Errors: E_NOTFOUND, E_NOMEM,
 * E_SHUTDOWN. */
mxd_rc mxd_engine_restore(mxd_engine *e, uint64_t id, const mxd_gen *gen, mxd_stream **out,
                          mxd_err *err) MXD_MUST_USE;

uint64_t mxd_stream_request(const mxd_stream *s);   /* its id */
void mxd_engine_forget(mxd_engine *e, uint64_t id); /* nobody will want it again; any thread */

/* Why requests cannot be kept at present, though there should be a journal. False: all is well. */
bool mxd_engine_journal_problem(mxd_engine *e, char *text, size_t cap);

#endif
