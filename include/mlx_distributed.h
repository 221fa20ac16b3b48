/* mlx_distributed.h - the public C interface of MLX Distributed.
 *
 * An engine is a model that answers, over this machine, worker processes on it, or a cluster. A
 * stream is one answer on its way. A communicator is a group of ranks that send to each other and
 * compute sums together, with or without an engine.
 *
 *     mlxd_engine_options o = {sizeof o, .model = "demo", .local_workers = 3};
 *     mlxd_engine *e;
 *     mlxd_error err;
 *     if (mlxd_engine_open(&e, &o, &err)) return report(err.message);
 *     mlxd_request r = {sizeof r, .text = "Who are you?", .temperature = -1, .top_p = -1};
 *     mlxd_stream *s;
 *     if (!mlxd_engine_start(e, &r, &s, &err)) {
 *         mlxd_event ev;
 *         while (!mlxd_stream_next(s, -1, &ev, &err) && ev.kind == MLXD_EVENT_TEXT)
 *             fwrite(ev.text, 1, ev.text_bytes, stdout);
 *         mlxd_stream_free(s);
 *     }
 *     mlxd_engine_close(e);
 *
 * Versions: structs begin with their size, so that a program compiled against an older header runs
 *           with a newer library; fields are only ever added at the end, and zero means default.
 * Errors:   0 is success; other codes are mlxd_code, with one line for people in mlxd_error (may be
 *           NULL): what failed, the likely cause, the next step.
 * Threads:  an engine from any threads at once; a stream from one at a time (cancel from any); a
 *           communicator: see there.
 * Process:  the library never exits, aborts on input, prints, installs signal handlers or reads the
 *           environment. It logs through mlxd_set_log.
 */
#ifndef MLX_DISTRIBUTED_H
#define MLX_DISTRIBUTED_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MLXD_ABI_VERSION 1

#if defined(_WIN32)
#define MLXD_API
#else
#define MLXD_API __attribute__((visibility("default")))
#endif

typedef enum mlxd_code {
    MLXD_OK = 0,
    MLXD_INVALID = 1, /* an argument is wrong */
    MLXD_TOO_BIG = 2, /* over a limit */
    MLXD_CONTEXT = 3, /* the prompt does not fit the context */
    MLXD_CONFIG = 4,
    MLXD_NOT_FOUND = 5,   /* no such model or file */
    MLXD_FORMAT = 6,      /* a file is malformed */
    MLXD_UNSUPPORTED = 7, /* this kind of model, template or option is not built in */
    MLXD_IO = 8,
    MLXD_AUTH = 9,
    MLXD_BUSY = 10, /* try again later */
    MLXD_CANCELED = 11,
    MLXD_NO_MEMORY = 12,
    MLXD_NO_FIT = 13, /* the model does not fit the memory of the nodes */
    MLXD_NETWORK = 14,
    MLXD_PEER = 15, /* workers are lost */
    MLXD_STALE = 16,
    MLXD_TIMEOUT = 17, /* nothing yet: call again */
    MLXD_SHUTDOWN = 18,
    MLXD_INTERNAL = 19
} mlxd_code;

typedef struct mlxd_error {
    int code;
    char message[512];
} mlxd_error;

typedef struct mlxd_engine mlxd_engine;
typedef struct mlxd_stream mlxd_stream;

MLXD_API int mlxd_abi_version(void);           /* MLXD_ABI_VERSION of the library */
MLXD_API const char *mlxd_version(void);       /* "0.1.0" */
MLXD_API const char *mlxd_code_name(int code); /* "E_NOTFOUND" */

/* level: 0 debug, 1 info, 2 warn, 3 error. `line` is "event key=value ...". NULL: standard error.
 * Before anything else. */
MLXD_API void mlxd_set_log(void (*sink)(void *ctx, int level, const char *line), void *ctx,
                           int least_level);

/* ------------------------------------------------------------------------------------- engines */

typedef struct mlxd_engine_options {
    size_t struct_size;
    const char *model;       /* a folder, org/name[@revision] in the hub cache, or "demo". Needed */
    int local_workers;       /* worker processes on this machine; 0: compute in this process */
    int context;             /* tokens of one sequence; 0: the model's, at most 4096 */
    int parallel;            /* sequences at once; 0: 4 */
    int threads;             /* compute threads; 0: one per core */
    const char *backend;     /* "auto", "cpu", "mlx" */
    const char *activations; /* "8", "16", "f32" */
    const char *worker_program; /* path of mlx-dist-worker; NULL: beside the library, or ../bin */
    const char *data_dir;       /* holds models/demo; NULL: beside the library */
    const char *cache_dir;      /* hub cache; NULL: ~/.cache/huggingface/hub */
    const char *cluster_listen; /* "ip:port" where other machines' workers join; NULL: none do */
    const char *state_dir;      /* CA and keys of the cluster; needed with cluster_listen */
    int min_nodes;              /* wait for so many workers before the first plan */
    int64_t load_timeout_ms;    /* 0: 15 minutes */
    int tensor_parallel_size;   /* nodes that share each layer; 0: the planner decides */
    int pipeline_parallel_size; /* stages that the layers are cut into; 0: the planner decides */
    const int *layer_split;     /* [n_layer_split] layers of each node (or stage), in node order */
    int n_layer_split;
    const double *tensor_split; /* [n_tensor_split] parts of each layer, in node order */
    int n_tensor_split;
    const char *objective; /* "latency" (one stream, the default) or "throughput" (all) */
} mlxd_engine_options;

/* Loads the model; returns when it can answer. *out: owned by the caller. */
MLXD_API int mlxd_engine_open(mlxd_engine **out, const mlxd_engine_options *options,
                              mlxd_error *err);

/* Ends local workers and running streams, within 2 s. Streams are freed before. NULL is fine. */
MLXD_API void mlxd_engine_close(mlxd_engine *engine);

/* The object of GET /v1/cluster/state as JSON text: epoch, plan, nodes, requests. Freed by
 * mlxd_free; NULL: no memory. */
MLXD_API char *mlxd_engine_state_json(mlxd_engine *engine);

/* Model, context, layers, vocabulary, determinism, ... as JSON text. Freed by mlxd_free. */
MLXD_API char *mlxd_engine_info_json(mlxd_engine *engine);

/* What this machine offers to a cluster, as JSON text. Freed by mlxd_free. */
MLXD_API int mlxd_detect_json(char **out, mlxd_error *err);

MLXD_API void mlxd_free(void *p);

/* ------------------------------------------------------------------------------------- answers */

typedef struct mlxd_request {
    size_t struct_size;
    const char *text;          /* a user's message, or with `raw` the text to go on from */
    const char *messages_json; /* instead of text: a whole chat as a JSON list of messages */
    int raw;                   /* no chat template */
    int max_tokens;            /* 0: the rest of the context */
    double temperature;        /* < 0: the model's default; 0: greedy */
    double top_p;              /* < 0 likewise */
    double min_p;              /* 0: off */
    int top_k;                 /* 0: the model's default; -1: off */
    int has_seed;
    uint64_t seed;           /* same seed, model and parameters: same text */
    const char *const *stop; /* [n_stop] strings that end the answer */
    int n_stop;
    int ignore_eos;
    int64_t timeout_ms;               /* 0: 600 s */
    const char *template_kwargs_json; /* extra variables for the chat template, or NULL */
} mlxd_request;

/* Queues the request. *out: owned by the caller. */
MLXD_API int mlxd_engine_start(mlxd_engine *engine, const mlxd_request *request, mlxd_stream **out,
                               mlxd_error *err);

typedef enum mlxd_event_kind { MLXD_EVENT_TEXT = 0, MLXD_EVENT_DONE = 1 } mlxd_event_kind;
typedef enum mlxd_finish { MLXD_STOP = 0, MLXD_LENGTH = 1, MLXD_CANCELLED = 2 } mlxd_finish;

typedef struct mlxd_event {
    int kind;
    const char *text; /* TEXT: valid UTF-8, may be empty; borrowed until the next call */
    size_t text_bytes;
    int n_tokens; /* TEXT: accepted since the last event */
    int finish;   /* DONE: mlxd_finish, and the counts below */
    int prompt_tokens, completion_tokens;
    double queue_ms, prefill_ms, decode_ms;
} mlxd_event;

/* The next event; waits at most timeout_ms (-1: for ever). After DONE there is nothing more.
 * MLXD_TIMEOUT: nothing yet; other errors: the answer has failed and ended. */
MLXD_API int mlxd_stream_next(mlxd_stream *stream, int64_t timeout_ms, mlxd_event *event,
                              mlxd_error *err);
/* 1 after DONE or a failure: MLXD_TIMEOUT may mean either "nothing yet" or a request that failed by
 * its own deadline. */
MLXD_API int mlxd_stream_ended(const mlxd_stream *stream);
MLXD_API void mlxd_stream_cancel(mlxd_stream *stream); /* DONE with MLXD_CANCELLED follows */
MLXD_API void mlxd_stream_free(mlxd_stream *stream);   /* cancels if still running; NULL is fine */

/* ------------------------------------------------------------------------------- communicators
 *
 * Every rank opens one with the same group, size and addresses. Messages between two ranks of one
 * tag arrive in order; a broken link is dialled again and nothing is lost or doubled; ranks of one
 * machine and user talk through shared memory. Sums have the same bits on every rank, over every
 * carrier. docs/api.md has an example.
 *
 * Collectives (all_reduce, exchange, broadcast, gather, barrier) are called by all ranks in the
 * same order with the same sizes; one that fails leaves the ranks out of step, and later ones
 * return MLXD_STALE.
 *
 * Threads: one collective at a time; send and recv from any threads, one at a time for each peer
 * and direction. Timeouts in ms, -1: for ever; MLXD_TIMEOUT when they pass, MLXD_PEER when a rank
 * is lost for good. */
typedef struct mlxd_comm mlxd_comm;

typedef struct mlxd_comm_options {
    size_t struct_size;
    const char *group;            /* at most 63 bytes; NULL: "default" */
    int rank, size;               /* 0 <= rank < size */
    const char *const *addresses; /* [size] "host:port" where each rank listens */
    const char *const *nodes;     /* [size] names in the ranks' certificates; NULL: any of the CA */
    const char *ca_pem, *cert_pem, *key_pem; /* PEM texts; all three, or insecure */
    int insecure;                            /* 1: no TLS; one machine, or a closed network */
    int64_t connect_timeout_ms;              /* all ranks must be there within; 0: 30 s */
    int64_t reconnect_timeout_ms;            /* a rank that is away longer is lost; 0: 10 s */
    int spin_us;          /* poll this long before sleeping; 0: 50, -1: not at all */
    int no_shared_memory; /* 1: the network only, also between ranks of one machine */
    const char
        *transport; /* NULL, "grpc"; or "mpi": a job of mpirun gives rank, size and
                     * addresses, and needs no certificate (MLXD_UNSUPPORTED: not built in) */
} mlxd_comm_options;

/* Returns when all ranks are there. *out: owned by the caller. */
MLXD_API int mlxd_comm_open(mlxd_comm **out, const mlxd_comm_options *options, mlxd_error *err);

/* Waits up to 1 s for what was sent to arrive. No other call may run. NULL is fine. */
MLXD_API void mlxd_comm_close(mlxd_comm *comm);

MLXD_API int mlxd_comm_rank(const mlxd_comm *comm);
MLXD_API int mlxd_comm_size(const mlxd_comm *comm);

/* Queues a copy of data [bytes]; waits only while 16 MiB are on their way. tag: below 2^24. */
MLXD_API int mlxd_comm_send(mlxd_comm *comm, int peer, uint32_t tag, const void *data, size_t bytes,
                            int64_t timeout_ms, mlxd_error *err);

/* The next message of that tag into data [capacity]; *bytes: its length. MLXD_TOO_BIG: it is
 * longer; it stays, and *bytes says how long it is. */
MLXD_API int mlxd_comm_recv(mlxd_comm *comm, int peer, uint32_t tag, void *data, size_t capacity,
                            size_t *bytes, int64_t timeout_ms, mlxd_error *err);

typedef enum mlxd_reduce { MLXD_SUM = 0, MLXD_MAX = 1 } mlxd_reduce;

/* x [n] becomes the sum, or the largest, of every rank's x. */
MLXD_API int mlxd_comm_all_reduce(mlxd_comm *comm, float *x, size_t n, int reduce,
                                  int64_t timeout_ms, mlxd_error *err);
/* all: n_each [size] floats of every rank, one rank behind the other. This rank's are there, the
 * others' are filled in. n_each is alike on all ranks. */
MLXD_API int mlxd_comm_exchange(mlxd_comm *comm, float *all, const size_t *n_each,
                                int64_t timeout_ms, mlxd_error *err);
MLXD_API int mlxd_comm_broadcast(mlxd_comm *comm, int root, void *data, size_t bytes,
                                 int64_t timeout_ms, mlxd_error *err);
/* Every rank's data [bytes] to out [size * bytes], on root, or with root = -1 on all. out may be
 * NULL elsewhere. */
MLXD_API int mlxd_comm_gather(mlxd_comm *comm, int root, const void *data, size_t bytes, void *out,
                              int64_t timeout_ms, mlxd_error *err);
MLXD_API int mlxd_comm_barrier(mlxd_comm *comm, int64_t timeout_ms, mlxd_error *err);

typedef struct mlxd_comm_stats {
    size_t struct_size;           /* set by the caller */
    double latency_us;            /* half a round trip of 8 bytes, slowest pair with rank 0 */
    double bandwidth_bytes_per_s; /* of 1 MiB messages, likewise; both measured at opening */
    int shared_memory_peers;      /* ranks that are reached through shared memory */
    uint64_t reconnects, resent_frames;
} mlxd_comm_stats;
MLXD_API int mlxd_comm_get_stats(mlxd_comm *comm, mlxd_comm_stats *out, mlxd_error *err);

#ifdef __cplusplus
}
#endif

#endif
