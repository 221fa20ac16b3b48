/* cost.h - what a stage costs: bytes on each node, seconds. For this room; docs/planner.md says
 * why.
 *
 * A stage is a group of nodes (mostly one) and a range of layers. The shares of a group follow the
 * speeds of its nodes as far as memory allows, and are then cut on the units of the model by the
 * same function that the ranks use, so that bytes are exact.
 */
#ifndef MXD_PLAN_COST_H
#define MXD_PLAN_COST_H

#include "plan/plan.h"

typedef struct mxd_plan_group {
    uint64_t nodes; /* a bit each */
    int n, node[MXD_MAX_RANKS];
    double crowd[MXD_MAX_RANKS];  /* so much slower because others of the group are on its host */
    double weight[MXD_MAX_RANKS]; /* proportions by speed, or as the user says (`fixed`) */
    bool fixed;
    mxd_shares shares;         /* of them; size 0: no group */
    double exchange_s, byte_s; /* one exchange; a byte of it */
} mxd_plan_group;

typedef struct mxd_plan_rows { /* what goes through in one step */
    double rows, logits;
    double to_kv[MXD_MAX_LAYERS + 1];     /* prefix sums: KV bytes that one row's past is */
    double to_attend[MXD_MAX_LAYERS + 1]; /* and multiply-adds with it */
    double to_read[MXD_MAX_LAYERS + 1];   /* bytes of weights that the rows read */
} mxd_plan_rows;

/* Everything of the question that does not change while searching. */
typedef struct mxd_plan_task {
    const mxd_model_sizes *model;
    const mxd_plan_node *nodes;
    int n_nodes, ctx, parallel, chunk, prompt;
    int tensor, pipeline;
    double bandwidth[MXD_MAX_NODES], ops[MXD_MAX_NODES]; /* no zeros any more */
    mxd_paces paces[MXD_MAX_NODES];                      /* likewise */
    double usable[MXD_MAX_NODES];                        /* bytes, reserve taken off */
    double latency_s[MXD_MAX_NODES][MXD_MAX_NODES];      /* of a link */
    double quota_s[MXD_MAX_NODES][MXD_MAX_NODES];        /* of it: what quotas of processors add */
    double byte_s[MXD_MAX_NODES][MXD_MAX_NODES];         /* seconds per byte of it */
    double serve_s;                                      /* of the coordinator, for every token */
    double enter_s[MXD_MAX_NODES];                       /* between the coordinator and a node */
    bool broken[MXD_MAX_NODES][MXD_MAX_NODES];
    bool same_host[MXD_MAX_NODES][MXD_MAX_NODES]; /* with itself too */
    double part[MXD_MAX_NODES];                   /* of its host's processors that it keeps busy */
    double weights_to[MXD_MAX_LAYERS + 1];        /* prefix sums over layers, bytes */
    double kv_to[MXD_MAX_LAYERS + 1];             /* of one position */
    double state_to[MXD_MAX_LAYERS + 1];          /* of one sequence */
    double tables_to[MXD_MAX_LAYERS + 1];         /* that `mlx` holds on top */
    double whole_to[MXD_MAX_LAYERS + 1], per_to[MXD_AXES][MXD_MAX_LAYERS + 1];
    int sums_to[MXD_AXES][MXD_MAX_LAYERS + 1], experts_to[MXD_MAX_LAYERS + 1];
    mxd_plan_rows one, batch, prefill; /* a row; `parallel` streams in turns; a chunk */
} mxd_plan_task;

/* Fills what follows from model, ctx, parallel, chunk: prefix sums and rows. */
void mxd_plan_task_sums(mxd_plan_task *t);

/* What goes through in a step of `rows` rows with so much past each; chunk: of one prompt. */
void mxd_plan_rows_fill(const mxd_plan_task *t, mxd_plan_rows *r, double rows, double logits,
                        double past, bool chunk);

/* Processors of i's host that nodes keep busy, in hosts: more than 1 is more than there are. */
double mxd_plan_crowd(const mxd_plan_task *t, const int *nodes, int n, int i);

/* A group of those nodes with shares by speed; or by weight [n], when it is not NULL. False: they
 * cannot be one. */
bool mxd_plan_group_of(const mxd_plan_task *t, const int *nodes, int n, const double *weight,
                       mxd_plan_group *out);

typedef struct mxd_plan_held { /* by one rank */
    double share, weights, kv, scratch;
} mxd_plan_held;

typedef struct mxd_plan_stage_cost {
    double decode_s, exchange_s;   /* of one position; the exchanges in it */
    double reading_s, computing_s; /* of the slowest rank: memory, arithmetic */
    mxd_plan_held held[MXD_MAX_RANKS];
} mxd_plan_stage_cost;

/* Whether layers [a, b) fit the group, and what they take. `out` may be NULL. */
bool mxd_plan_stage_of(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                       mxd_plan_stage_cost *out);

/* Seconds of rows in layers [a, b) of a group, exchanges included; INFINITY: does not fit. */
double mxd_plan_stage_s(const mxd_plan_task *t, const mxd_plan_group *g, int a, int b,
                        const mxd_plan_rows *rows);

/* Seconds of one position's hidden state from the leader of a group to every rank of the next. */
double mxd_plan_hop_s(const mxd_plan_task *t, const mxd_plan_group *from, const mxd_plan_group *to,
                      double rows);

/* What whole layers [a, b) take. */
mxd_plan_held mxd_plan_whole(const mxd_plan_task *t, int a, int b);

#endif
