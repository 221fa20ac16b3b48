/* job.h - one generation request: its streams in the engine and what becomes of their text.
 *
 *   engine event -> reasoning split -> tool calls -> reply.c: chunks (streamed) or collected text
 *   choice: RUNNING --DONE event--> DONE;  --error--> the whole job FAILED, other choices cancelled
 *
 * Threads: the HTTP thread of the request, or of a resumable one whoever holds its lock (resume.h);
 * mxd_job_cancel and mxd_job_id also from others while it is registered. Lifetime: request. Memory:
 * the request's allocator; sticky in `rc`.
 */
#ifndef MXD_SERVER_OPENAI_JOB_H
#define MXD_SERVER_OPENAI_JOB_H

#include "server/http.h"
#include "server/openai/prompt.h"
#include "server/tools/reasoning.h"
#include "server/tools/tools.h"

typedef struct mxd_choice {
    mxd_job *job;
    int index;
    mxd_stream *stream; /* NULL: nothing to generate */
    const mxd_prompt *prompt;
    bool done, opened, cut;   /* cut: ended by us, not by the model */
    const char *finish;       /* "stop", "length", "tool_calls" */
    mxd_think think, counter; /* counter: the same over single tokens, for usage */
    mxd_tool_parser tools;
    mxd_buf content, reasoning, calls;               /* collected; calls: items of the array */
    mxd_buf logprobs;                                /* items not yet given out */
    mxd_buf lp_tokens, lp_values, lp_top, lp_offset; /* text completions: four lists */
    uint64_t text_offset;                            /* code points so far, for text_offset */
    int n_calls, n_generated, n_reasoning, n_cached, n_seen;
    double prefill_ms, decode_ms, queue_ms;
} mxd_choice;

struct mxd_job {
    mxd_server *server;
    const mxd_alloc *al;
    const mxd_params *params;
    char request[MXD_HTTP_REQUEST_ID]; /* X-Request-Id of the request */
    bool counted;                      /* in server->running */
    bool log;         /* resumable: `out` keeps every event with its number; one choice only */
    mxd_buf starts;   /* size_t of each event in `out` */
    json_t *own_json; /* resumable: what params point into, and params */
    mxd_params *own_params;
    char id[MXD_HTTP_ID_BYTES];
    int64_t created;
    const char *model; /* as asked for */
    bool chat, streamed, include_usage, logprobs, timings;
    bool finished, failed, ended; /* ended: the last byte is in `out` */
    mxd_fault fault;              /* when failed */
    mxd_prompt *prompts;
    int n_prompts, n_choices, n_done;
    mxd_choice *choices; /* [n_choices] */
    mxd_buf head;        /* what every chunk begins with */
    mxd_buf out;         /* streamed: events; else the body */
    size_t sent;         /* bytes of out already given to the client */
    int64_t begin_ms, first_ms, last_ms;
};

/* POST /v1/chat/completions and /v1/completions. */
void mxd_chat_handle(mxd_req *r);
void mxd_completions_handle(mxd_req *r);

/* Prepares ids, prompts [n_prompts] (taken, also on failure) and choices, and submits them.
 * False: the reply is set. */
bool mxd_job_start(mxd_req *r, mxd_prompt *prompts, int n_prompts);
void mxd_job_free(mxd_job *j); /* NULL is fine */

/* Takes waiting events until there are none, or the client is too far behind. True: something new
 * is in `out`, or the job finished or failed. */
bool mxd_job_pump(mxd_job *j);

/* No longer among server->running. */
void mxd_job_uncount(mxd_job *j);

/* Of a resumable job: its number of events, and where event i begins (i == n: the end). */
size_t mxd_job_events(const mxd_job *j);
size_t mxd_job_event_at(const mxd_job *j, size_t i);

/* ---- kept.c: resumable requests in the engine's journal ---- */

/* The bytes that come back after a restart. */
void mxd_job_keep(const mxd_job *j, const mxd_req *r, const struct mxd_resume *e, mxd_buf *out);

/* The job of such bytes, and the id and key of its stream, with all that was said before and the
 * engine's stream going on. NULL: it cannot be made any more; *f says why. */
mxd_job *mxd_job_restore(mxd_server *s, const mxd_engine_kept *k, struct mxd_resume *e,
                         mxd_fault *f);

/* ---- for kept.c ---- */
typedef struct gen_kit { /* what an mxd_gen points to */
    mxd_gen gen;
    const char *stop[MXD_MAX_STOP_STRINGS];
    int32_t stop_ids[MXD_MAX_STOP_STRINGS];
    mxd_logit_bias bias[MXD_MAX_LOGIT_BIAS];
} gen_kit;

typedef struct mxd_job_begin {
    mxd_server *server;
    const mxd_params *params;
    mxd_prompt *prompts;
    int n_prompts;
    const char *request; /* its X-Request-Id */
    int64_t start_ms;
    bool log;
} mxd_job_begin;
mxd_job *mxd_job_new(const mxd_job_begin *b); /* NULL: no memory; prompts are the caller's still */
void mxd_job_fill_gen(gen_kit *k, const mxd_job *j);
void mxd_job_open(mxd_job *j); /* what is said before the first token */

/* Ends the job from outside: the rest of a stream is an error event. */
void mxd_job_fail(mxd_job *j, const mxd_fault *f);

void mxd_job_cancel(mxd_job *j); /* any thread */
const char *mxd_job_id(const mxd_job *j);

/* ---- reply.c: the objects, exactly as the reference shapes them ---- */
void mxd_reply_head(mxd_job *j);
void mxd_reply_open(mxd_choice *c); /* streamed: the chunk with the role */
void mxd_reply_text(mxd_choice *c, bool reasoning, const char *s, size_t n);
void mxd_reply_call(mxd_choice *c, const char *name, const char *args, size_t n_args);
void mxd_reply_close(mxd_choice *c); /* streamed: the chunk with the finish_reason */
void mxd_reply_end(mxd_job *j);      /* usage chunk and [DONE], or the whole body */
void mxd_reply_error(mxd_job *j);    /* streamed: the error event */

/* ---- logprobs.c ---- */
void mxd_logprobs_add(mxd_choice *c, const mxd_sampled *tokens, int n);

/* The value of "logprobs": an object with what was collected since the last call, or null. */
void mxd_logprobs_write(mxd_choice *c, mxd_buf *out);

#endif
