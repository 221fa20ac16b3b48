/* sim.h - deterministic simulation of the control core: one process, one seed, no clock.
 *
 *   world.c    random numbers, the event heap, the network with its faults
 *   process.c  a worker process: the driver around mxd_wcore, and a mock of what computes
 *   group.c    ranks of a stage: each computes when all of them have computed
 *   control.c  the coordinator: the driver around mxd_coord, and the planner
 *   restart.c  the coordinator's crash and its disk
 *   client.c   requests, and the oracle: what they see is compared with a model of their own
 *   main.c     seeds, verdicts
 *
 * The mock model is a hash chain: the KV of a layer is a hash over the whole prefix, so a wrong,
 * missing, doubled or foreign position changes the next token. Times are simulated milliseconds.
 *
 * The network is worse than the transport promises: single messages vanish from a living link,
 * come twice, or come late. A link that lost something goes down some time later.
 */
#ifndef MXD_SIM_H
#define MXD_SIM_H

#include "cluster/core.h"
#include "runtime/pages.h"

enum {
    SIM_LAYERS = 8,
    SIM_PROCS = 6,         /* worker processes at most, one of them maybe under another one's id */
    SIM_COORD = SIM_PROCS, /* as an end of a link */
    SIM_REQUESTS = 10,
    SIM_SLOTS = 4,
    SIM_CTX = 64,
    SIM_PAGE = 8, /* positions of a KV page, at most */
    SIM_POSITIONS = SIM_SLOTS * (SIM_CTX + SIM_PAGE),
    SIM_ROWS = 16,
    SIM_RUNS = SIM_SLOTS,
    SIM_VOCAB = 97,
    SIM_LINKS = 4096,
    SIM_EVENTS = 4096,
    SIM_JOBS = 300,
    SIM_GIVE_UP_MS = 600000, /* everything must be over by then */
    SIM_EPOCHS_AFTER_HEAL = 24,
};

typedef enum sim_kind {
    EV_COORD_TICK,
    EV_COORD_START,
    EV_FAULT,
    EV_CLIENT,
    EV_BOOT,
    EV_EXITED,
    EV_CLOSE, /* a link breaks, at both ends */
    EV_GONE,  /* the coordinator notices */
    EV_PROC_FIRST,
    EV_DIAL = EV_PROC_FIRST, /* from here on: to a process, in one life of it */
    EV_TICK,
    EV_JOB,
    EV_NEIGHBOUR,
    EV_DOWN,
    EV_MSG_TO_PROC,
    M_WELCOME = EV_MSG_TO_PROC,
    M_DROP,
    M_PLAN,
    M_UNINSTALL,
    M_FRAME,
    EV_MSG_TO_COORD,
    M_HELLO = EV_MSG_TO_COORD,
    M_BEAT,
    M_READY,
    M_FAILED,
    M_NACK,
    M_NEIGHBOUR,
    M_LEAVE,
    M_RESULT,
} sim_kind;

typedef struct sim_run {
    uint64_t request, seed, from_request;
    uint32_t pos;
    uint16_t slot, n, from;
    bool sample, begin, keep;
    int32_t token;  /* of a result */
    uint64_t proof; /* of the numbers behind it */
} sim_run;

typedef struct sim_event {
    int64_t at;
    uint64_t seq;
    sim_kind kind;
    int proc, node, rc;
    uint64_t life, link, epoch, step, incarnation;
    union {
        mxd_stage stage;
        mxd_core_beat beat;
        struct {
            int n_runs, n_rows;
            bool has_hidden;
            sim_run runs[SIM_RUNS];
            int32_t ids[SIM_ROWS];
            uint64_t act[SIM_ROWS];
        };
    };
} sim_event;

typedef enum sim_lane { LANE_UP, LANE_DOWN, LANE_STEP, LANE_RESULT, LANE_COUNT } sim_lane;

typedef struct sim_link { /* of a process to the coordinator */
    int proc;
    uint64_t life;
    bool up_there, up_here; /* the process, the coordinator think so */
    bool doomed;
    int64_t died_ms;             /* when the process ended, or the faults did; 0: it lives */
    int64_t last_ms[LANE_COUNT]; /* each lane is first-in first-out */
} sim_link;

typedef struct sim_group { /* the ranks of a stage, by process; n 1: alone */
    int n, rank;
    int proc[SIM_PROCS], node[SIM_PROCS];
    uint64_t life[SIM_PROCS]; /* those that came together */
} sim_group;

typedef struct sim_job {
    mxd_wcore_action_kind kind;
    uint64_t epoch, step;
    int layer0, layer1;
    sim_group group; /* LOAD */
    sim_event frame;
} sim_job;

typedef struct sim_proc {
    int id;    /* its node id is a letter; two processes may share one */
    int local; /* index in local_ids; -1: remote */
    bool up, left, hangs;
    bool wrong;   /* it computes other numbers, until it starts again */
    int capacity; /* layers */
    int speed_ms; /* per step */
    int load_ms;  /* per layer */
    uint64_t life, incarnation, spawn;
    int64_t paused_until, backoff_ms;
    uint64_t link; /* 0: none */
    mxd_wcore *core;
    sim_group next; /* the ranks of the next stage; n 0: none */
    int prev_node;
    int64_t data_ms; /* first-in first-out to the next stage */
    /* what computes */
    int layer0, layer1;
    sim_group group;
    bool arrived;                              /* the job in hand waits for the other ranks */
    uint64_t joined;                           /* the epoch whose group it waits for, or is in */
    uint64_t sums_epoch, sums_step, sums_hash; /* what the others may take */
    uint64_t over;                             /* groups of older epochs are over */
    int64_t missed_ms;                         /* since when a rank is out of reach; 0: none is */
    int waits;                                 /* as mxd_core_beat.waits */
    uint64_t kv[SIM_POSITIONS][SIM_LAYERS];
    mxd_pages pages; /* the product's own */
    uint16_t page_refs[SIM_POSITIONS];
    int32_t page_free[SIM_POSITIONS], page_of[SIM_SLOTS][SIM_CTX + 1];
    struct sim_slot {
        uint64_t request, epoch;
        uint32_t len, kept;
        uint64_t kept_kv[SIM_LAYERS]; /* recurrent state is no history: what counts is this copy */
        mxd_page_table table;
    } slots[SIM_SLOTS];
    bool dirty;           /* there is KV, or will be when the queued jobs are done */
    uint64_t ready_epoch; /* of the last READY */
    int first_job, n_jobs;
    bool busy;
} sim_proc;

typedef struct sim_client {
    uint64_t id; /* of the present request; 0: not submitted */
    bool ended, wants_cancel, ever_ok;
    int n_prompt, max_tokens, min_tokens, n_stop, n_out, n_journal, n_turns;
    int n_next; /* index of the next token that comes: below n_out when a torn tail is made again */
    bool ignore_eos, resumable;
    bool accepted;  /* by the coordinator */
    bool restoring; /* a new life of the coordinator has yet to take it */
    int32_t past[SIM_CTX];
    int32_t prompt[SIM_CTX], out[SIM_CTX], stop[2];
    uint64_t seed;
    bool last_stop;
    int64_t cancel_at, deadline_ms, submit_ms, token_ms;
    uint64_t kv[SIM_LAYERS], act; /* the oracle's own model */
    mxd_core_submit submit;
} sim_client;

typedef struct sim_swarm { /* drawn anew for every seed, so that runs differ in kind */
    double lose, dup, late, cut, heal, crash, restart, pause, hang, link_break, leave, spawn_fails,
        load_fails, silent_death, coord_crash, torn, wrong;
    int delay_min_ms, delay_max_ms, faults_ms, tick_ms;
    bool crowd; /* requests come together, much alike, in small chunks, and are often cancelled */
} sim_swarm;

typedef struct sim_world {
    uint64_t rng, seq, trace, n_events;
    int64_t now;
    const char *failure;
    sim_event *pool; /* [SIM_EVENTS] */
    int *free_list, n_free, *heap, n_heap;
    sim_swarm swarm;
    bool faults, cut[SIM_PROCS + 1][SIM_PROCS + 1];
    sim_link links[SIM_LINKS];
    uint64_t n_links;
    int n_procs, n_local, n_clients;
    sim_proc procs[SIM_PROCS];
    sim_job *jobs; /* [SIM_PROCS, SIM_JOBS] */
    sim_client clients[SIM_REQUESTS];
    uint64_t next_request, next_incarnation;
    mxd_coord *coord;
    mxd_coord_cfg cfg;
    void *coord_memory, *proc_memory[SIM_PROCS];
    int64_t coord_paused_until;
    uint64_t coord_life; /* events of an earlier one are not for this one */
    bool coord_down;
    int crash_after;              /* so many actions; -1: not */
    int n_left, plan_turn, ranks; /* ranks of a stage */
    uint64_t epochs_at_heal, n_prompt_tokens, n_cached_tokens;
} sim_world;

extern sim_world W;

/* world.c */
uint64_t sim_rnd(void);
bool sim_chance(double p);
int sim_pick(int lo, int hi);
uint64_t sim_mix(uint64_t a, uint64_t b);
void sim_trace(uint64_t what);
void sim_fail(const char *what);
sim_event *sim_event_new(sim_kind kind, int64_t at);
void sim_event_push(sim_event *e);
sim_event *sim_event_pop(void);
void sim_event_free(sim_event *e);
void sim_event_again(sim_event *e, int64_t at);
sim_link *sim_link_of(uint64_t link);
uint64_t sim_link_new(int proc);
void sim_link_close(uint64_t link, bool silent); /* silent: the coordinator is not told */
/* Takes e. */
void sim_send(sim_event *e, sim_lane lane, bool from_coord);
void sim_send_data(sim_event *e, int from, int to, int node);
void sim_faults(void);
void sim_heal(void);

/* process.c */
void sim_proc_boot(int p);
void sim_proc_kill(int p, bool silent);
void sim_proc_event(sim_event *e);
void sim_proc_drain(int p);

/* group.c */
void sim_group_of(sim_group *g, const mxd_stage_peer *peers, int n, int rank);
uint64_t sim_group_hash(const sim_event *frame);
/* The job in hand is done but for the other ranks. False: it must wait. *rc, *peer: how it ends. */
bool sim_group_met(int p, const sim_job *j, mxd_rc *rc, int *peer);

/* control.c */
void sim_coord_boot(void);
void sim_coord_begin(uint64_t epoch0);
void sim_coord_event(sim_event *e);
void sim_coord_give(const mxd_coord_event *e);

/* restart.c */
void sim_disk_reset(void);
void sim_disk_open(uint64_t request);
void sim_disk_write(const mxd_core_journal *j, const mxd_coord_action *next);
void sim_coord_crash(void);
void sim_coord_restart(void);
void sim_restore_tick(void);

/* client.c */
void sim_client_sees(sim_client *c, int32_t token);
void sim_client_ended(sim_client *c, mxd_core_end how);
void sim_clients_draw(void);
void sim_client_event(sim_event *e);
void sim_client_action(const mxd_coord_action *a, const mxd_coord_action *next);
bool sim_clients_done(void);

/* The model. */
void sim_layer(uint64_t *kv, int layer, uint64_t *act);
uint64_t sim_embed(int32_t id);
int32_t sim_sample(uint64_t act, uint64_t seed, uint32_t pos);

#endif
