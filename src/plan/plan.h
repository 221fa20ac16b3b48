/* plan.h - which node runs which layers, why, and how fast it will be. Pure: no input, no output.
 *
 * Input: the exact bytes of every layer, KV bytes for the context and the number of sequences,
 * free memory, measured bandwidth and compute of each node, latency and bandwidth of links.
 * Output: stages in pipeline order, with bytes and predicted times, and reasons in words.
 *
 * Method: reference "exact pipeline cuts": for every order of the nodes (N <= 8; beyond that, by
 * falling speed) a dynamic program over (layer, node) finds the cut that is fastest among those
 * that fit; see docs/planner.md for the cost model.
 *
 * Threads: reentrant. Errors: E_NOFIT names the missing bytes per node and the largest context
 * that would fit; E_INVAL contradictory options.
 */
#ifndef MXD_PLAN_PLAN_H
#define MXD_PLAN_PLAN_H

#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"
#include "model/sizes.h"

typedef struct mxd_plan_node {
    char name[MXD_MAX_NODE_NAME];
    uint64_t memory_bytes, free_bytes;
    double bandwidth_bytes_per_s, ops_per_s; /* 0: unknown, taken as equal to the others' mean */
    bool must; /* gets layers even if it slows the rest (local workers) */
} mxd_plan_node;

typedef struct mxd_plan_link {
    int a, b; /* node indices; symmetric */
    double latency_us, bandwidth_bytes_per_s;
} mxd_plan_link;

typedef enum mxd_objective { MXD_OBJECTIVE_LATENCY, MXD_OBJECTIVE_THROUGHPUT } mxd_objective;

typedef struct mxd_plan_opts {
    int ctx, parallel; /* KV is counted for ctx x parallel */
    mxd_objective objective;
    int n_split; /* layers per node in node order, when > 0: the user's own split */
    int split[MXD_MAX_NODES];
    double reserve; /* part of free memory to leave alone; 0: 0.1 */
} mxd_plan_opts;

typedef struct mxd_plan_rank {
    int node;     /* index into the nodes given */
    double share; /* of every layer of the stage; the ranks' sum is 1 */
    uint64_t weight_bytes, kv_bytes, scratch_bytes;
} mxd_plan_rank;

typedef struct mxd_plan_stage {
    int layer0, layer1; /* [layer0, layer1) */
    bool embed, head;
    int n_ranks;                        /* 1: whole layers; more: they hold the layers together */
    mxd_plan_rank ranks[MXD_MAX_RANKS]; /* [n_ranks] the first one leads: frames come to it */
    double decode_ms;                   /* predicted, one position, exchanges included */
} mxd_plan_stage;

typedef struct mxd_plan {
    int n_stages;
    mxd_plan_stage stages[MXD_MAX_NODES];
    double decode_tokens_per_s; /* one stream */
    double prefill_tokens_per_s;
    int bottleneck;       /* stage index */
    char reasons[8][200]; /* why this, in order of weight; n_reasons of them */
    int n_reasons;
} mxd_plan;

mxd_rc mxd_plan_make(mxd_plan *out, const mxd_model_sizes *model, const mxd_plan_node *nodes,
                     int n_nodes, const mxd_plan_link *links, int n_links,
                     const mxd_plan_opts *opts, mxd_err *err) MXD_MUST_USE;

#endif
