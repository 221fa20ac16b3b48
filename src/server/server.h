/* server.h - the HTTP front of an engine: OpenAI's API, health, metrics, cluster state.
 *
 *   OPEN --mxd_server_drain--> DRAINING --mxd_server_close--> gone
 *   DRAINING: listeners stay open, new work gets 503 shutting_down, running requests end.
 *   Opening takes up the resumable streams that the engine has kept of an earlier life; closing
 *   leaves those that still run to the next one.
 *
 * Trust: everything that arrives is hostile. Threads: open, drain, close from one owner; the rest
 * from any. Lifetime: the engine outlives the server. Nothing here prints or exits.
 */
#ifndef MXD_SERVER_SERVER_H
#define MXD_SERVER_SERVER_H

#include "api/engine.h"

typedef struct mxd_server mxd_server;

typedef enum mxd_reasoning_field {
    MXD_REASONING_CONTENT, /* "reasoning_content" */
    MXD_REASONING_PLAIN,   /* "reasoning" */
    MXD_REASONING_BOTH,
    MXD_REASONING_NONE /* the tags stay in the content */
} mxd_reasoning_field;

typedef struct mxd_server_opts { /* zero: default; everything is copied */
    const char *host;            /* name or literal; NULL: 127.0.0.1 */
    int port;                    /* 0: a free one */
    const char *const *api_keys; /* [n_api_keys]; none: open */
    int n_api_keys;
    const char *const *cors_origins; /* [n_cors_origins] exact, "localhost" or "*"; none: no CORS */
    int n_cors_origins;
    const char *const *allowed_hosts; /* [n_allowed_hosts] more names for the Host header, or "*" */
    int n_allowed_hosts;
    const char *const *aliases; /* [n_aliases] more names of the model, listed first */
    int n_aliases;
    const char *api_prefix; /* "/llm": every path begins with it */
    bool insecure_lan;      /* an address beyond loopback needs this or a key */
    bool log_requests;
    bool no_metrics;
    mxd_reasoning_field reasoning;
    int threads;         /* that read and write HTTP; 0: 4 */
    int max_choices;     /* bound of `n`; 0: MXD_MAX_CHOICES */
    int max_connections; /* 0: MXD_HTTP_MAX_CONNECTIONS */
    int max_per_address; /* 0: MXD_HTTP_MAX_PER_ADDRESS */
    size_t max_body;     /* bytes; 0: MXD_HTTP_MAX_BODY */
    int keepalive_ms;    /* silence before a comment in a stream; 0: 5000 */
    int stall_ms;        /* a client that takes or sends nothing is closed; 0: 30000 */
    int header_ms;       /* for all of a request's headers; 0: 10000 */
    int resume_ms;       /* a resumable stream lives so long without a reader; 0: 300000 */
    int max_resumes;     /* of one key; 0: MXD_HTTP_MAX_RESUMES */
} mxd_server_opts;

/* Listens and answers from now on; until the engine is ready with 503 model_loading.
 * Errors: E_INVAL options that contradict each other, or an address beyond loopback without a key;
 * E_NET the address cannot be taken; E_NOMEM. */
mxd_rc mxd_server_open(mxd_server **out, const mxd_alloc *al, const mxd_server_opts *opts,
                       mxd_engine *engine, mxd_err *err) MXD_MUST_USE;

int mxd_server_port(const mxd_server *s);
const char *mxd_server_url(const mxd_server *s); /* "http://127.0.0.1:8080"; with the prefix */
int mxd_server_running(mxd_server *s);           /* generation requests in flight */

/* Refuses new work and waits until running requests have ended. Errors: E_TIMEOUT: some still run.
 */
mxd_rc mxd_server_drain(mxd_server *s, int64_t timeout_ms, mxd_err *err) MXD_MUST_USE;

/* Ends running streams with an error event, closes every connection, frees. NULL is fine. At most
 * 2 s. */
void mxd_server_close(mxd_server *s);

#endif
