/* core.h - the control core: who computes what, and which token comes next. Pure.
 *
 * Two state machines, one for the coordinator and one for a worker. An event goes in, a bounded
 * list of actions comes out; the driver around them (threads, gRPC, processes) turns what happens
 * into events and does what the actions say, in their order. There is no clock, thread, I/O or
 * heap in here, and the same events give the same actions: tests/sim runs this very archive.
 *
 * The protocol is fenced full replay:
 *   - the token list of a request (prompt, then accepted tokens) is the only truth. KV, samplers
 * and grammars are functions of it and may be lost at any time;
 *   - an epoch names one immutable plan. Frames and results carry it; what does not match the
 *     installed one is refused. Installing a plan empties the KV;
 *   - a worker computes a run only where its KV ends, or behind positions that it holds for a list
 *     that begins alike; the coordinator appends a token only where its list ends;
 *   - the nodes that hold layers together (the ranks of a stage) get the same frames in the same
 *     order and exchange their sums in a group that belongs to one epoch: whoever waits in the
 * group of an older epoch gives up;
 *   - whatever looks wrong (a death, a NACK, silence, a late step) makes a new epoch: plan over the
 *     nodes that live, install, replay every list by prefill. A wrong suspicion costs time, never a
 *     token.
 *
 * Links. The driver names a node by its control link, a number it never uses twice (mxd_link).
 * A link that the core does not know any more is stale, and events from it are ignored: this is
 * the fence between two lives of one node. In actions a node has its index, for addressing stages,
 * and its link, for sending.
 *
 * Coordinator
 *   FORMING ----> INSTALLING ----> SERVING    FORMING -> INSTALLING    form, epoch_begin
 *      ^            |     ^           |       INSTALLING -> SERVING    core_on_ready, canary: match
 *      |            v     |           v       SERVING -> INSTALLING    improve, epoch_begin
 *      +------------+     +-----------+       any -> FORMING           core_epoch_lost
 *      +------------------------------+
 *   a node:
 *     JOINING --hello--> READY --install--> JOINING --ready--> SERVING --uninstall--> READY
 *     lives --leave--> DRAINING --released--> LEFT           core_on_leave, core_node_release
 *     lives --silence--> SUSPECT --heartbeat--> READY        listen_to, core_on_beat
 *     any --link gone, long silence--> DEAD --hello--> READY core_node_dead, welcome
 *     DEAD --a local worker is started again--> JOINING      spawn
 *   a request:
 *     WAITING --slot free--> RUNNING --stop, length, cancel, error--> gone
 *                                                            request_admit, request_end
 *   Invariants, asserted by mxd_coord_check:
 *   (C1) steps of requests are in flight only in SERVING, and all belong to the current epoch;
 *   (C2) a slot belongs to one RUNNING request or is free;
 *   (C3) n_tokens = n_prompt + n_out <= ctx, and n_out < max_tokens while RUNNING;
 *   (C4) no sequence has two sampling runs in flight, and its runs in flight are neighbours;
 *   (C5) every rank of the plan's stages is a node that lives, each once; stages cover [0,
 * n_layers) once; (C6) in flight <= stages + 1; waiting <= MXD_MAX_WAITING; (C7) two living nodes
 * never have the same id; (C8) with no node and none on its way there are no requests; (C9) what a
 * request begins with was sent to the pipeline, in this epoch and before its frame.
 *
 * Worker
 *   EMPTY --PLAN--> LOADING --LOADED--> READY      on_plan, on_loaded
 *   READY --PLAN, other part, or a group--> LOADING  on_plan
 *   READY --PLAN, the same whole layers--> READY   on_plan: FORGET, the weights stay
 *   any --UNINSTALL--> EMPTY                       on_uninstall
 *   LOADING --LOADED, it failed--> EMPTY           failed
 *   (W1) a frame is computed only in READY, in the installed epoch, where every slot ends, or where
 *   it begins with positions that a slot holds for the request it names;
 *   (W2) epochs never go back;  (W3) steps leave in the order in which they came.
 *   A frame that comes before its plan is loaded is refused. It is never held: the coordinator
 *   sends the first frame only when every stage has said READY, so such a frame is from another
 *   life of somebody, and a NACK is the right answer.
 *
 * Trust:    events from peers may hold anything: wrong lengths, ids, positions and epochs are
 *           refused. Pointers and counts are the driver's.
 * Lifetime: the driver gives one block of memory of mxd_coord_bytes / mxd_wcore_bytes; nothing is
 *           allocated later, and there is nothing to close.
 * Threads:  one thread per machine.
 * Errors:   init only; afterwards failures are actions.
 * Source:   fenced full replay: docs/architecture.md. Undefined symbols of the archive are memcpy,
 *           memmove, memset, memcmp and mxd_assert_failed (tools/check_core_symbols.py).
 */
#ifndef MXD_CLUSTER_CORE_H
#define MXD_CLUSTER_CORE_H

#include <stddef.h>
#include <stdint.h>
#include "plan/plan.h"
#include "runtime/sampling.h"

enum {
    MXD_CORE_ADDRESS = 96,     /* bytes of "ip:port" with its NUL */
    MXD_CORE_TEXT = 240,       /* bytes of a message for people */
    MXD_CORE_STOP_IDS = 64,    /* stop ids of one request */
    MXD_CORE_COORDINATOR = -1, /* where a stage names a node: the coordinator */
    MXD_CORE_CANARY_ROWS = 8,  /* tokens of the canary's prompt, at most */
};

/* The request number of the canary: nobody else's. */
#define MXD_CORE_CANARY UINT64_MAX

/* Larger numbers are no epochs: they would not survive JSON. */
#define MXD_CORE_MAX_EPOCH ((uint64_t)1 << 53)

/* ------------------------------------------------------------------------ what both sides share */

/* What a node says of itself. Strings end with NUL. */
typedef struct mxd_node_info {
    char id[MXD_MAX_NODE_NAME];   /* stays the same over restarts */
    char name[MXD_MAX_NODE_NAME]; /* for people */
    char host[MXD_MAX_NODE_NAME];
    char backend[16];
    char address[MXD_CORE_ADDRESS]; /* where its data lane listens */
    uint32_t version;               /* of the protocol, that both ends speak */
    uint64_t incarnation;           /* random, new at every start */
    uint64_t epoch;                 /* the highest it has seen; 0: none */
    int64_t pid;
    uint64_t memory_total, memory_free; /* free as if no weights were loaded */
    double bandwidth, ops;              /* bytes/s, multiply-adds/s; 0: unknown */
    mxd_paces paces;                    /* 0: unknown */
    double link_us, link_bandwidth;     /* to the coordinator, as plan.h; 0: unknown */
    double cpus, host_cpus;             /* its threads', its machine's; 0: unknown */
    bool local;                         /* on the coordinator's machine */
} mxd_node_info;

/* Another node of a plan, and where it is. */
typedef struct mxd_stage_peer {
    int node; /* its index */
    char id[MXD_MAX_NODE_NAME];
    char address[MXD_CORE_ADDRESS];
} mxd_stage_peer;

/* One node's part of a plan: a stage, or a rank of one. Rank 0 leads: it sends what the stage has
 * computed, to every rank of the next stage or, of the last stage, to the coordinator. */
typedef struct mxd_stage {
    uint64_t epoch;
    int index, n_stages;
    int layer0, layer1; /* [layer0, layer1) */
    bool embed, head;
    int prev;                            /* the leader before; MXD_CORE_COORDINATOR: none */
    int n_next;                          /* ranks of the next stage; 0: none follows */
    mxd_stage_peer next[MXD_MAX_RANKS];  /* [n_next] */
    int rank, n_ranks;                   /* n_ranks 1: whole layers */
    mxd_stage_peer ranks[MXD_MAX_RANKS]; /* [n_ranks] this one included */
    double share[MXD_MAX_RANKS];         /* [n_ranks] of the layers, in proportion */
} mxd_stage;

/* Neighbouring positions of one sequence in a micro-batch. The coordinator fills everything; a
 * worker needs all but ids and how for its decision. */
typedef struct mxd_core_run {
    uint64_t request;
    uint32_t pos; /* of the first row */
    uint16_t slot, n;
    bool sample; /* choose the token behind the last row */
    bool keep;  /* recurrent models: the slot's state behind the run is kept beside, one for each */
    bool begin; /* pos > 0: the slot first takes over the first pos positions of slot `from` */
    uint16_t from;           /* maybe itself; another: pos is a multiple of the page */
    uint64_t from_request;   /* whose KV is in `from` */
    const int32_t *ids;      /* [n] borrowed until the next step of the core */
    const mxd_sampling *how; /* borrowed likewise; its bias until DONE */
} mxd_core_run;

/* The answer to the canary, a prompt that every new plan must answer alike before it serves: the
 * token, and a digest of its and the best ones' log probabilities. */
typedef struct mxd_core_canary {
    bool known;
    int32_t token;
    uint64_t digest;
} mxd_core_canary;

/* ----------------------------------------------------------------------- coordinator: in */

typedef enum mxd_coord_event_kind {
    MXD_COORD_TICK,           /* at least every 50 ms */
    MXD_COORD_HELLO,          /* link, hello */
    MXD_COORD_GONE,           /* link: it is down */
    MXD_COORD_BEAT,           /* link, beat */
    MXD_COORD_READY,          /* link, ready */
    MXD_COORD_FAILED,         /* link, failed: a plan could not be loaded */
    MXD_COORD_RESULT,         /* result; from whatever link */
    MXD_COORD_NACK,           /* link, nack */
    MXD_COORD_NEIGHBOUR_DOWN, /* link, neighbour: its link to another stage or rank broke */
    MXD_COORD_LEAVE,          /* link: it wants to go (SIGTERM) */
    MXD_COORD_SUBMIT,         /* submit */
    MXD_COORD_CANCEL,         /* request */
    MXD_COORD_DRAIN,          /* no new requests */
    MXD_COORD_EXITED,         /* exited: a local worker's process ended, or could not be started */
} mxd_coord_event_kind;

typedef struct mxd_core_beat {
    uint64_t epoch, last_step;      /* installed; the last one computed in it, 0: none */
    int64_t step_age_ms;            /* how long the running step has been running; 0: idle */
    uint64_t load_done, load_total; /* bytes, while loading */
    uint64_t rss;                   /* bytes */
    float step_ms;                  /* compute time of the last step */
    float row_ms;                   /* what a step of a single row takes lately; 0: not known */
    int waits;                      /* 1 + the node whose sums the step waits for; 0: for none */
} mxd_core_beat;

typedef struct mxd_core_ready {
    uint64_t epoch, bytes;
    char determinism[16]; /* "bit-exact", "per-node" */
} mxd_core_ready;

typedef struct mxd_core_failed {
    uint64_t epoch;
    mxd_rc rc;
    const char *text;
} mxd_core_failed;

typedef struct mxd_core_result { /* the runs of the step that sample, in the step's order */
    uint64_t epoch, step;
    int n;
    const struct mxd_core_result_run {
        uint64_t request;
        uint32_t pos; /* the index the token will have */
        mxd_sampled sampled;
    } * runs; /* [n] */
} mxd_core_result;

typedef struct mxd_core_nack {
    uint64_t epoch, step;
    mxd_rc rc; /* E_STALE: epoch, position or slot; else what computing said */
} mxd_core_nack;

typedef struct mxd_core_neighbour {
    uint64_t epoch;
    int node; /* the other end: one of `next` or `ranks`, or `prev` */
} mxd_core_neighbour;

typedef struct mxd_core_exited {
    int node;
    uint64_t spawn; /* the number from the SPAWN action */
} mxd_core_exited;

/* Everything it points to is borrowed until DONE or REFUSED. */
typedef struct mxd_core_submit {
    uint64_t request;      /* chosen by the driver, never used twice, not 0 */
    const int32_t *prompt; /* [n_prompt] */
    int n_prompt;
    int max_tokens;          /* >= 1; the context may end the answer earlier */
    int min_tokens;          /* so many come before a stop id can end the answer */
    const int32_t *stop_ids; /* [n_stop_ids <= MXD_CORE_STOP_IDS] */
    int n_stop_ids;
    bool ignore_eos;     /* no stop id ends the answer */
    mxd_sampling how;    /* n_prompt is filled in here */
    int64_t deadline_ms; /* in the time of now_ms; 0: none */
    bool resumable;      /* its tokens and its end are journalled */
    /* Tokens that an earlier life of the coordinator accepted: the answer goes on behind them, and
     * ends at once if they are all of it. */
    const int32_t *accepted; /* [n_accepted] */
    int n_accepted;
} mxd_core_submit;

typedef struct mxd_coord_event {
    mxd_coord_event_kind kind;
    int64_t now_ms; /* monotonic; an earlier time than before counts as the same */
    uint64_t link;
    union {
        const mxd_node_info *hello;
        mxd_core_beat beat;
        mxd_core_ready ready;
        mxd_core_failed failed;
        mxd_core_result result;
        mxd_core_nack nack;
        mxd_core_neighbour neighbour;
        mxd_core_exited exited;
        const mxd_core_submit *submit;
        uint64_t request; /* CANCEL; unknown ones are ignored */
    };
} mxd_coord_event;

/* ---------------------------------------------------------------------- coordinator: out */

typedef enum mxd_coord_action_kind {
    MXD_ACT_WELCOME, /* node, link: the hello was accepted */
    /* node (-1: never welcomed), link, rc, text: tell it, then hang up (link 0: no connection).
     * E_OK: it may leave. E_TIMEOUT: also kill its process, if it is one of local_ids. Others: only
     * this link is refused or replaced; a process stays. No GONE is needed for it any more. */
    MXD_ACT_DROP,
    MXD_ACT_SPAWN,     /* node, spawn, text (its id): start the process of this local worker now */
    MXD_ACT_INSTALL,   /* node, link, epoch, stage */
    MXD_ACT_UNINSTALL, /* node, link, epoch: it has no part in this epoch */
    /* node, link (the leader of stage 0), epoch, step, runs[n]: build the frame and send it to
     * every rank of stage 0 */
    MXD_ACT_STEP,
    MXD_ACT_JOURNAL,  /* journal: make it durable before doing what follows */
    MXD_ACT_ACCEPTED, /* request: it waits or runs */
    MXD_ACT_REFUSED,  /* request, rc, text: the last one for this request */
    MXD_ACT_TOKEN,    /* request, index, sampled, stop */
    MXD_ACT_DONE,     /* request, done: the last one for this request */
    /* node -1: canary is the right answer from now on: keep it. Else node, rc, text: its numbers
     * are wrong, it is left out of plans until it starts again */
    MXD_ACT_CANARY,
    MXD_ACT_CHANGED, /* nodes, plan or state changed: show it */
    MXD_ACT_DRAINED, /* once, after DRAIN, when nothing runs or waits */
} mxd_coord_action_kind;

typedef enum mxd_core_end {
    MXD_CORE_STOP,
    MXD_CORE_LENGTH,
    MXD_CORE_CANCELLED,
    MXD_CORE_ERROR
} mxd_core_end;

typedef struct mxd_core_done {
    mxd_core_end how;
    mxd_rc rc; /* ERROR: E_TIMEOUT its deadline; E_PEER workers lost; E_NOFIT no plan; ... */
    int n_prompt, n_out; /* tokens; a final stop id counts */
    int n_cached;        /* of the prompt: not computed, their KV was there */
    int n_replays;
    int64_t queue_ms, prefill_ms, decode_ms;
} mxd_core_done;

typedef enum mxd_journal_kind {
    MXD_JOURNAL_EPOCH, /* before the first use of an epoch */
    MXD_JOURNAL_TOKEN, /* before the TOKEN; of resumable requests */
    MXD_JOURNAL_END    /* likewise right before DONE */
} mxd_journal_kind;

typedef struct mxd_core_journal {
    mxd_journal_kind kind;
    uint64_t epoch, request;
    uint32_t index;             /* END: tokens */
    const mxd_sampled *sampled; /* TOKEN */
} mxd_core_journal;

typedef struct mxd_coord_action {
    mxd_coord_action_kind kind;
    int node;
    mxd_rc rc;
    uint64_t link, epoch, request;
    const char *text; /* DROP, REFUSED, DONE with ERROR, SPAWN, CANARY; never NULL there */
    union {
        const mxd_stage *stage; /* INSTALL */
        struct {                /* STEP */
            uint64_t step;
            const mxd_core_run *runs; /* [n_runs] */
            int n_runs, n_rows;
        };
        struct { /* TOKEN */
            uint32_t index;
            bool stop; /* a stop id: not part of the visible text; DONE follows */
            const mxd_sampled *sampled;
        };
        mxd_core_done done;
        mxd_core_journal journal;
        mxd_core_canary canary;
        uint64_t spawn;
    };
} mxd_coord_action;

/* Everything in it is borrowed until the next step. Order matters. */
typedef struct mxd_coord_actions {
    const mxd_coord_action *list; /* [n] */
    int n;
} mxd_coord_actions;

/* Plans over nodes[n]. `avoid` [n_avoid] are pairs of nodes (indices into nodes) whose data link is
 * broken at present: not as neighbours, if it can be helped. Must be pure.
 * Errors: E_NOFIT and others; the text says why. */
typedef mxd_rc (*mxd_core_plan_fn)(void *ctx, const mxd_plan_node *nodes, int n,
                                   const mxd_plan_link *avoid, int n_avoid, mxd_plan *out,
                                   mxd_err *err);

typedef struct mxd_coord_cfg { /* zero: default. Times in ms */
    mxd_core_plan_fn plan;     /* needed */
    void *plan_ctx;
    int n_layers, n_vocab, ctx; /* needed */
    int n_slots;                /* sequences at once; 4 */
    int max_rows;               /* of one micro-batch; 256 */
    int chunk;                  /* prompt rows of one sequence in a micro-batch; max_rows */
    int page;                   /* positions of a KV page; MXD_KV_PAGE_TOKENS */
    bool no_prefix_cache;       /* every prompt is computed from its first token */
    bool recurrent; /* state that cannot be cut back: reused is all of it, or what was kept */
    const char *const *local_ids; /* [n_local] workers that SPAWN starts; copied */
    int n_local;
    bool canary;           /* bit-exact plans must answer the canary before they serve */
    mxd_core_canary known; /* what an earlier run learned */
    int min_nodes;         /* the first plan waits for this many nodes; 1 */
    uint64_t epoch0;       /* the highest epoch ever used before; from the journal */
    int64_t dead_ms;       /* silence that makes a node suspect; MXD_DEAD_AFTER_MS */
    int64_t drop_ms;       /* silence that makes it dead; 10 s */
    int64_t step_ms;       /* least deadline of a step; MXD_STEP_DEADLINE_MS */
    int64_t first_ms;      /* more of it, while nothing is measured; 30 s */
    int64_t row_ms;        /* and per row; 250 ms */
    int64_t load_ms;       /* of an installation in which a node loads nothing more; 10 min */
    int64_t recovery_ms;   /* a request without a new token for so long of recovery fails; 60 s */
    int64_t form_ms;       /* the first plan waits so long for missing local workers; 15 s */
    int64_t leave_ms;      /* a leaving node that cannot be replaced serves so much longer; 30 s */
    int64_t listed_ms;     /* dead and left nodes stay listed; 5 min */
} mxd_coord_cfg;

typedef struct mxd_coord mxd_coord;

/* The canary's prompt under a configuration, how many tokens; and the answer that a result is. */
int mxd_core_canary_ids(const mxd_coord_cfg *cfg, int32_t ids[MXD_CORE_CANARY_ROWS]);
mxd_core_canary mxd_core_canary_of(const mxd_sampled *s);

/* Bytes that init needs; 0: the configuration is invalid. */
size_t mxd_coord_bytes(const mxd_coord_cfg *cfg);

/* Puts a coordinator into memory [mxd_coord_bytes(cfg)], aligned to 16; contents need not be zero.
 * NULL: the configuration is invalid. The first TICK spawns the local workers. */
mxd_coord *mxd_coord_init(void *memory, const mxd_coord_cfg *cfg);

void mxd_coord_step(mxd_coord *c, const mxd_coord_event *event, mxd_coord_actions *out);

/* Asserts (C1) to (C9). O(slots + nodes). Simulator and tests call it after each step. */
void mxd_coord_check(const mxd_coord *c);

/* ---------------------------------------------------------------------- coordinator: view */

typedef enum mxd_node_state {
    MXD_NODE_NONE, /* not a node: the entry is free */
    MXD_NODE_JOINING,
    MXD_NODE_READY, /* lives, has no layers */
    MXD_NODE_SERVING,
    MXD_NODE_DRAINING,
    MXD_NODE_SUSPECT,
    MXD_NODE_DEAD,
    MXD_NODE_LEFT
} mxd_node_state;
const char *mxd_node_state_name(mxd_node_state s); /* "joining"; "" for NONE */

typedef struct mxd_node_view {
    mxd_node_info info; /* of its last hello; a local worker that never said one has only its id */
    mxd_node_state state;
    uint64_t link;      /* 0: none */
    int stage, rank;    /* in the current plan; -1: none */
    mxd_core_beat beat; /* the last one */
    uint64_t planned;   /* bytes, by the current plan */
    uint64_t used;      /* bytes, as it said when it was ready */
    int n_failures;     /* since the start */
    bool left_out;      /* its numbers are wrong */
    double slow;        /* so many times slower than it measured itself, as far as plans go; 1 */
    int64_t since_ms;   /* when it entered this state */
} mxd_node_view;

/* Entry i < MXD_MAX_NODES; never NULL. */
const mxd_node_view *mxd_coord_node(const mxd_coord *c, int i);

typedef enum mxd_coord_state {
    MXD_COORD_FORMING,
    MXD_COORD_INSTALLING,
    MXD_COORD_SERVING
} mxd_coord_state;

typedef struct mxd_coord_view {
    mxd_coord_state state;
    bool stuck;    /* FORMING, nothing on its way that could change it: see why */
    bool degraded; /* the plan lacks nodes it should have */
    bool draining;
    bool planned; /* plan and stages are valid (they may be in the making) */
    uint64_t epoch;
    const mxd_plan *plan;    /* ranks[i].node is an index into the nodes of the core */
    mxd_rc rc;               /* FORMING: why there is no plan */
    const char *why;         /* likewise; "" */
    const char *left_out;    /* why a node that lives is left out; "" none is */
    const char *determinism; /* of the plan in force: the weakest of its stages; "" unknown */
    uint64_t n_epochs, n_replays, n_steps, n_done, n_failed, n_cancelled;
    uint64_t n_prompt_tokens, n_generated_tokens;
    uint64_t n_cached_tokens; /* of the prompt tokens: not computed */
    uint32_t running, waiting, slots, in_flight, nodes_live;
    uint64_t kv_used, kv_total; /* tokens */
} mxd_coord_view;
void mxd_coord_view_get(const mxd_coord *c, mxd_coord_view *out);

/* ------------------------------------------------------------------------------- worker: in */

/* A FRAME that is answered with a COMPUTE is taken; without one it is refused, and the driver frees
 * it. A worker starts unconnected: the driver dials by itself the first time. */
typedef enum mxd_wcore_event_kind {
    MXD_WCORE_TICK,             /* at least every 50 ms, from a thread that does not compute */
    MXD_WCORE_CONNECTED,        /* the control link is up, and HELLO was sent and welcomed */
    MXD_WCORE_COORDINATOR_DOWN, /* the control link is down */
    MXD_WCORE_NEIGHBOUR_DOWN,   /* neighbour: a data link of the installed epoch broke, or a frame
                                   could not be sent on it */
    MXD_WCORE_PLAN,             /* stage */
    MXD_WCORE_UNINSTALL,        /* epoch */
    MXD_WCORE_LOADED,           /* loaded: a LOAD has ended */
    MXD_WCORE_FRAME,            /* frame */
    MXD_WCORE_COMPUTED,         /* computed: a COMPUTE has ended */
    MXD_WCORE_DRAIN,            /* SIGTERM */
    MXD_WCORE_RELEASED,         /* the coordinator lets us go: its drop with E_OK */
} mxd_wcore_event_kind;

typedef struct mxd_wcore_event {
    mxd_wcore_event_kind kind;
    int64_t now_ms;
    union {
        const mxd_stage *stage;
        uint64_t epoch;
        int neighbour;             /* node index */
        struct {                   /* LOADED */
            uint64_t epoch, bytes; /* the epoch of the LOAD */
            mxd_rc rc;             /* E_PEER: its group did not come together, for want of `peer` */
            int peer;              /* a rank */
            const char *text;
            const char *determinism;
        } loaded;
        struct { /* FRAME */
            uint64_t epoch, step;
            int n_runs;
            const mxd_core_run *runs;
            bool has_hidden; /* the payload is hidden states, not only ids */
        } frame;
        struct { /* COMPUTED */
            uint64_t epoch, step;
            mxd_rc rc; /* E_PEER: it could not exchange with the rank `peer` */
            int peer;
            float ms;
        } computed;
    };
} mxd_wcore_event;

/* ------------------------------------------------------------------------------ worker: out */

typedef enum mxd_wcore_action_kind {
    /* Jobs: one first-in-first-out queue to the thread that computes, in the order given. */
    /* epoch, stage: hold this part of the model, empty, instead of the present one (which stays if
     * it is the same part), and come together with the other ranks of the stage; answer LOADED */
    MXD_WACT_LOAD,
    MXD_WACT_UNLOAD,  /* close the shard, if there is one */
    MXD_WACT_FORGET,  /* empty every slot */
    MXD_WACT_COMPUTE, /* epoch, step: the frame just given; answer COMPUTED, whatever happens. A
                         queued frame of an epoch that is no longer installed may be skipped and
                         answered with E_STALE */
    /* Messages: */
    MXD_WACT_FORWARD, /* epoch, step: the computed step to every rank of the next stage */
    MXD_WACT_RESULT,  /* epoch, step: its sampled tokens to the coordinator */
    MXD_WACT_DISCARD, /* epoch, step: free what was computed; nobody wants it */
    MXD_WACT_NACK,    /* epoch, step, rc, text; the frame just given is refused if rc is E_STALE */
    MXD_WACT_READY,   /* epoch, bytes */
    MXD_WACT_FAILED,  /* epoch, rc, text */
    MXD_WACT_BEAT,    /* beat; the driver fills rss, load_done, load_total, waits */
    MXD_WACT_NEIGHBOUR_DOWN, /* epoch, node */
    MXD_WACT_LEAVE,          /* tell the coordinator that we want to go */
    /* The driver's own: */
    MXD_WACT_CONNECT,   /* dial the coordinator, back-off 100 ms to 5 s, HELLO with the same
                           incarnation */
    MXD_WACT_LINK_NEXT, /* epoch, stage: dial every rank of the next stage (drop older data links);
                           before READY. Not given to who sends to nobody but the coordinator */
    MXD_WACT_ABORT,     /* epoch: exchanges and comings together of older epochs fail now */
    MXD_WACT_EXIT,      /* leave the process with exit code 0 */
} mxd_wcore_action_kind;

typedef struct mxd_wcore_action {
    mxd_wcore_action_kind kind;
    int node;
    mxd_rc rc;
    uint64_t epoch, step, bytes;
    const mxd_stage *stage;
    const char *text;
    mxd_core_beat beat;
} mxd_wcore_action;

typedef struct mxd_wcore_actions { /* borrowed until the next step */
    const mxd_wcore_action *list;
    int n;
} mxd_wcore_actions;

typedef struct mxd_wcore_cfg { /* zero: default */
    int n_slots, ctx;          /* as the coordinator's; needed */
    int64_t beat_ms;           /* MXD_HEARTBEAT_MS */
    int64_t leave_ms;          /* exit so long after DRAIN even if nobody releases us; 35 s */
} mxd_wcore_cfg;

typedef struct mxd_wcore mxd_wcore;
size_t mxd_wcore_bytes(const mxd_wcore_cfg *cfg); /* 0: invalid */
mxd_wcore *mxd_wcore_init(void *memory, const mxd_wcore_cfg *cfg);
void mxd_wcore_step(mxd_wcore *w, const mxd_wcore_event *event, mxd_wcore_actions *out);
uint64_t mxd_wcore_epoch(const mxd_wcore *w); /* the highest seen, for HELLO */
void mxd_wcore_check(const mxd_wcore *w);     /* (W1) to (W3) as far as they are state */

#endif
