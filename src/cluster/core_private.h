/* core_private.h - the coordinator's state, shared by the core_*.c files and nobody else.
 *
 *   core_coord.c   memory, events in, what follows from every event (settle)
 *   core_node.c    membership: who lives, who is trusted with a stage, who is started again
 *   core_epoch.c   plan, install, serve
 *   core_canary.c  does a plan compute what the first one did?
 *   core_request.c queue, slots, tokens
 *   core_restore.c requests of an earlier life
 *   core_pace.c    how long steps take
 *   core_drift.c   who has become slower than the plan takes it for
 *   core_prefix.c  which KV is there already
 *   core_view.c    what others may see; the invariants
 */
#ifndef MXD_CLUSTER_CORE_PRIVATE_H
#define MXD_CLUSTER_CORE_PRIVATE_H

#include "cluster/core.h"
#include "runtime/mutants.h"
#include "runtime/sched.h"

enum {
    CORE_MAX_FLIGHTS = MXD_MAX_NODES + 1,
    CORE_MAX_AVOID = 32,
    CORE_PACES = 10,   /* sizes of steps: 1 row, 2, 3 to 4, ..., 257 to 512 */
    CORE_TICK_MS = 50, /* the longest usual time between two ticks */
    CORE_SPAWN_MIN_MS = 100,
    CORE_SPAWN_MAX_MS = 5000,
    CORE_SPAWN_SHORT_MS = 10000, /* a worker that dies younger and idle is started later */
    CORE_SPAWN_NEEDED_MS = 500,  /* but not later than this when requests wait for it */
    CORE_COOL_WINDOW_MS = 10000,
    CORE_COOL_FAILURES = 3,
    CORE_COOL_MIN_MS = 500,
    CORE_COOL_MAX_MS = 60000,
    CORE_AVOID_MS = 2000,
    CORE_CANARY_PAUSE_MS = 5000,
    CORE_RETRY_MS = 1000,    /* planning again while no plan fits */
    CORE_MAX_PATIENCE = 16,  /* step deadlines grow up to so many times while nothing comes */
    CORE_FEWER_PATIENCE = 2, /* until the first token of a plan with fewer nodes */
    CORE_EAGER_EPOCHS = 3,   /* epochs without a token between them that follow at once */
    CORE_EPOCH_GAP_MS = 50,  /* then the next one waits, doubling */
    CORE_EPOCH_GAP_MAX_MS = 2000,
};

typedef struct core_node {
    mxd_node_view v;
    bool spawned;  /* one of local_ids: SPAWN brings it back */
    bool wanted;   /* has been in a plan or is local: a plan without it is degraded */
    bool ready;    /* of the plan being installed */
    bool holds;    /* has been sent a plan, and nothing since that took it away */
    bool releases; /* DRAINING: has asked to leave */
    bool stuck;    /* its step went over the deadline and is still running */
    bool worked;   /* since its process was started, a token came that it had a part in */
    bool cooling;
    bool proven;    /* has been in a plan whose canary was right */
    bool suspected; /* has been in one whose was wrong */
    bool probed;    /* a plan without it was wrong too */
    char determinism[16];
    int64_t last_beat_ms;
    int64_t leave_by_ms;
    uint64_t spawn;                            /* number of the last SPAWN */
    int64_t spawn_at_ms;                       /* when the next is due; -1: not */
    int64_t spawned_ms;                        /* when the last was */
    int64_t spawn_gap_ms;                      /* back-off */
    int64_t failed_ms[CORE_COOL_FAILURES - 1]; /* the last ones before, newest first */
    int64_t cool_until_ms, cool_ms;
    int64_t loaded_ms;   /* when it last said that more was loaded */
    uint64_t memory_cap; /* what proved to be too much; 0: none */

    /* core_drift.c */
    double planned_slow; /* v.slow when the plan in force was made */
    int64_t served_ms;   /* when it last had a part */
    int drifts;          /* 1: slower, -1: faster than it is taken for */
    int64_t drift_ms;    /* for so long */
    uint64_t drift_step; /* its last step then */
} core_node;

typedef struct core_avoid {
    int a, b; /* a < b */
    int64_t until_ms, ms;
    bool active;
} core_avoid;

typedef enum core_request_state {
    REQUEST_NONE,
    REQUEST_WAITING,
    REQUEST_RUNNING
} core_request_state;

typedef struct core_request {
    core_request_state state;
    int slot;
    mxd_core_submit in; /* its pointers are the driver's */
    int n_out, n_replays;
    int n_cached; /* positions that it began with, the first time; -1: not yet */
    int64_t submit_ms, start_ms, first_ms;
    int64_t stalled_ms; /* since when recovery goes without a token; -1: not */
} core_request;

/* What the pipeline holds for a slot in this epoch, and what the slot's request begins with. */
typedef struct core_slot {
    int request;     /* -1: free */
    uint64_t owner;  /* the request whose KV it is; 0: none */
    uint32_t held;   /* it is the KV of so many tokens at the beginning of the slot's list */
    uint32_t kept;   /* recurrent: its state of this position is kept beside; 0: none is */
    uint32_t shared; /* positions up to here may be in pages of other slots too */
    bool pick;       /* choose `from` anew */
    int from;        /* while nothing is sent: begins with positions of this slot, maybe itself */
    uint32_t reuse;  /* so many */
    uint64_t order;  /* of admission */
    uint64_t used;   /* when it was last of use, in order; 0: it holds nothing */
} core_slot;

typedef struct core_flight {
    uint64_t step;
    int n_runs, n_rows, n_sample;
    bool decode; /* has decode runs */
    mxd_core_run runs[MXD_MAX_STEP_RUNS];
} core_flight;

typedef struct core_pace { /* of steps of one size; 0: none yet */
    float ms, row_ms;      /* the slowest lately: a step, and for each of its rows */
} core_pace;

typedef enum core_why { WHY_NONE, WHY_JOIN, WHY_LEAVE, WHY_LOSS } core_why;

struct mxd_coord {
    mxd_coord_cfg cfg; /* defaults filled in */
    int64_t now_ms, tick_ms, start_ms;

    core_node nodes[MXD_MAX_NODES];
    core_avoid avoid[CORE_MAX_AVOID];

    mxd_coord_state state;
    uint64_t epoch;      /* the last one begun */
    uint64_t epoch_seen; /* the highest anybody told of */
    bool formed;         /* there has been a plan */
    bool planned;        /* plan and parts are of `epoch` and in force or in the making */
    core_why replan;     /* WHY_LOSS cannot wait */
    bool rejoin;         /* somebody came who may be of use */
    int64_t state_ms;    /* since when in `state` */
    int64_t unserved_ms; /* when SERVING last ended */
    int64_t retry_ms, not_before_ms;
    int fruitless; /* epochs since the last token */
    mxd_plan plan, next_plan;
    mxd_stage parts[MXD_MAX_NODES]; /* of each node */
    mxd_plan_node plan_nodes[MXD_MAX_NODES];
    int plan_index[MXD_MAX_NODES]; /* of plan_nodes: the node */
    mxd_rc why_rc;
    char why[MXD_CORE_TEXT];

    mxd_sched sched;
    mxd_sched_step next_step;
    core_flight *flights; /* [CORE_MAX_FLIGHTS] oldest first from first_flight */
    int first_flight, n_flights;
    uint64_t step;        /* the last one sent */
    uint64_t canary_step; /* of the canary in the pipeline, while INSTALLING; 0: none */
    int probe;            /* the suspect that plans do without at present; -1: none */
    bool alone;           /* of the suspects, they have only that one */
    int32_t canary_ids[MXD_CORE_CANARY_ROWS];
    mxd_sampling canary_how;
    char canary_why[MXD_CORE_TEXT];
    int64_t progress_ms; /* when the oldest flight became the oldest, or was sent */
    core_pace paces[CORE_PACES];
    int64_t drift_looked_ms;
    int patience;

    core_request *requests; /* [n_slots + MXD_MAX_WAITING] */
    int n_requests;
    int *waiting; /* [MXD_MAX_WAITING] requests, oldest first */
    int n_waiting;
    core_slot *slots; /* [n_slots] */
    int n_running;
    uint64_t n_admitted, n_uses; /* the last of order and used */
    int32_t *tokens;             /* [n_slots, ctx] the truth */
    bool draining, drained;

    mxd_coord_action *actions; /* [cap_actions] */
    int n_actions, cap_actions;
    bool changed;
    uint64_t n_epochs, n_replays, n_steps, n_done, n_failed, n_cancelled;
    uint64_t n_prompt_tokens, n_cached, n_generated;
};

/* core_coord.c */
mxd_coord_action *core_act(mxd_coord *c, mxd_coord_action_kind kind);
mxd_coord_action *core_act_node(mxd_coord *c, mxd_coord_action_kind kind, int node);
/* Copies text up to what fits, always with a NUL. */
void core_text(char *to, size_t cap, const char *from);
bool core_same(const char *a, const char *b);

/* core_node.c */
int core_node_of(const mxd_coord *c, uint64_t link); /* -1: stale */
bool core_node_lives(const core_node *n);            /* has a link and is not suspect */
bool core_node_usable(const mxd_coord *c, const core_node *n, bool cooled);
bool core_anybody(const mxd_coord *c); /* there, on its way, or lost lately */
int core_lives(const mxd_coord *c);
void core_node_state(mxd_coord *c, int i, mxd_node_state state);
void core_node_failed(mxd_coord *c, int i);
void core_node_rest(mxd_coord *c, int i); /* the node cools down now */
void core_node_dead(mxd_coord *c, int i, mxd_rc rc, const char *text);
void core_node_release(mxd_coord *c, int i);
void core_on_hello(mxd_coord *c, uint64_t link, const mxd_node_info *info);
void core_on_gone(mxd_coord *c, uint64_t link);
void core_on_beat(mxd_coord *c, int i, const mxd_core_beat *beat);
void core_on_leave(mxd_coord *c, int i);
void core_on_exited(mxd_coord *c, const mxd_core_exited *e);
void core_nodes_tick(mxd_coord *c);
void core_avoid_pair(mxd_coord *c, int a, int b);
void core_avoid_forget(mxd_coord *c, int node);
void core_node_clear(mxd_coord *c, int i); /* nobody's entry */

/* core_canary.c */
bool core_canary_begin(mxd_coord *c); /* false: the plan needs none */
void core_canary_result(mxd_coord *c, const mxd_core_result *r);
bool core_canary_next(mxd_coord *c); /* no plan is possible for the present suspect */
bool core_canary_allows(const mxd_coord *c, const core_node *n);
void core_canary_new_life(core_node *n);
const char *core_canary_why(const mxd_coord *c);

/* core_epoch.c */
void core_epoch_serve(mxd_coord *c);
void core_epoch_lost(mxd_coord *c);  /* the present epoch cannot go on */
void core_epoch_fruit(mxd_coord *c); /* its first token is there */
void core_epoch_settle(mxd_coord *c);
void core_epoch_tick(mxd_coord *c);
void core_on_ready(mxd_coord *c, int i, const mxd_core_ready *r);
void core_on_failed(mxd_coord *c, int i, const mxd_core_failed *f);
void core_on_nack(mxd_coord *c, int i, const mxd_core_nack *n);
void core_on_neighbour(mxd_coord *c, int i, const mxd_core_neighbour *n);

/* core_pace.c */
void core_pace_learn(mxd_coord *c, int n_rows, int64_t took_ms);
int64_t core_pace_expect(const mxd_coord *c, int n_rows); /* ms; -1: nothing is known */

/* core_drift.c */
void core_drift_tick(mxd_coord *c);

/* core_prefix.c */
void core_prefix_reset(mxd_coord *c);                            /* a new epoch holds nothing */
int core_prefix_slot(const mxd_coord *c, const core_request *r); /* -1: none is free */
void core_prefix_admit(mxd_coord *c, int slot,
                       const core_request *r); /* before its list is there */
void core_prefix_leave(mxd_coord *c, int slot);
void core_prefix_begin(mxd_coord *c);
void core_prefix_fill(const mxd_coord *c, mxd_core_run *run); /* begin, from, keep */
void core_prefix_sent(mxd_coord *c, const mxd_core_run *run);
void core_prefix_check(const mxd_coord *c); /* (C9) */

/* core_restore.c */
bool core_restore_fits(const mxd_coord *c, const mxd_core_submit *s);
void core_restored(mxd_coord *c, core_request *r);           /* just queued: is it over already? */
void core_restore_list(mxd_coord *c, const core_request *r); /* behind the prompt, which is there */
int core_cached(const core_request *r);

/* core_request.c */
void core_request_end(mxd_coord *c, core_request *r, mxd_core_end how, mxd_rc rc, const char *text);
bool core_is_stop(const core_request *r, int32_t token); /* the last of its n_out tokens */
int32_t *core_list(const mxd_coord *c,
                   int slot); /* [ctx] its request's tokens, or the last one's */
void core_on_submit(mxd_coord *c, const mxd_core_submit *s);
void core_on_cancel(mxd_coord *c, uint64_t id);
void core_on_result(mxd_coord *c, const mxd_core_result *r);
void core_requests_tick(mxd_coord *c);
void core_requests_settle(mxd_coord *c);
void core_requests_restart(mxd_coord *c); /* replay: nothing of any list has been sent */
void core_requests_stall(mxd_coord *c);   /* recovery begins */
void core_requests_fail_all(mxd_coord *c, mxd_rc rc, const char *text);
core_flight *core_flight_at(mxd_coord *c, int i);

#endif
