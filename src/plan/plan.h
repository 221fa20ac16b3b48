/* plan.h - which node runs which layers, or which share of them, why, and how fast it will be.
 * Pure: no input, no output.
 *
 * Input: the exact bytes of every layer, KV bytes for the context and the number of sequences,
 * free memory, measured speeds of each node, latency and bandwidth of links.
 * Output: stages in pipeline order, each of one node with whole layers or of several that hold the
 * layers together (ranks with shares), with bytes and predicted times, and reasons in words.
 *
 * Method: up to 8 nodes a dynamic program over ordered groups of nodes and cuts between layers;
 * beyond that nodes are taken by falling speed. docs/planner.md has the cost model.
 *
 * Threads: reentrant. Errors: E_NOFIT names the missing bytes per node and the largest context
 * that would fit; E_INVAL contradictory options; E_UNSUPPORTED a group for a model that cannot be
 * cut.
 */
#ifndef MXD_PLAN_PLAN_H
#define MXD_PLAN_PLAN_H

#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"
#include "hardware/paces.h"
#include "model/sizes.h"
#include "plan/shape.h"

typedef struct mxd_plan_node {
    char name[MXD_MAX_NODE_NAME];
    char host[MXD_MAX_NODE_NAME]; /* nodes of one host share its speeds, and may have no more memory
                                   * together than it has; "": a machine of its own */
    uint64_t memory_bytes, free_bytes;
    double bandwidth_bytes_per_s, ops_per_s; /* 0: unknown, taken as equal to the others' mean */
    mxd_paces paces;                         /* 0: derived from the two speeds */
    /* Of its way to the others, where no link says more: one frame with a few bytes, one way, from
     * thread to thread; 0: unknown. */
    double link_us, link_bytes_per_s;
    double cpus, host_cpus; /* that its threads get, of so many; 0: they may take all */
    bool home;       /* runs beside the coordinator: to a node elsewhere that one's way counts */
    bool must;       /* gets layers even if it slows the rest (local workers) */
    bool whole_only; /* cannot be a rank of a group (its backend) */
} mxd_plan_node;

typedef struct mxd_plan_link {
    int a, b; /* node indices; symmetric */
    double latency_us, bandwidth_bytes_per_s;
} mxd_plan_link;

typedef struct mxd_plan_opts {
    int ctx, parallel; /* KV is counted for ctx x parallel */
    int chunk;         /* prompt rows of a micro-batch; 0: 256 */
    mxd_shape shape;
    double reserve; /* part of free memory to leave alone; 0: 0.1 */
    /* Pairs whose link is broken: neither neighbours nor ranks of one group, if it can be helped.
     * Only a and b count. */
    const mxd_plan_link *avoid;
    int n_avoid;
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
    mxd_plan_rank ranks[MXD_MAX_RANKS]; /* [n_ranks] the first one leads: it sends what they have
                                         * computed */
    double decode_ms;                   /* predicted, one position, exchanges included */
    double exchange_ms;                 /* of it */
} mxd_plan_stage;

typedef enum mxd_limit { MXD_LIMIT_BANDWIDTH, MXD_LIMIT_ARITHMETIC, MXD_LIMIT_LINK } mxd_limit;

typedef struct mxd_plan {
    int n_stages;
    mxd_plan_stage stages[MXD_MAX_NODES];
    int prompt; /* tokens that the predictions are for: a prompt of so many, decoding behind it */
    double decode_tokens_per_s; /* one stream */
    double prefill_tokens_per_s;
    double all_tokens_per_s; /* all `parallel` streams together, decoding */
    int bottleneck;          /* stage index */
    mxd_limit limit;         /* of one stream: what most of its time goes for */
    char reasons[8][200];    /* why this, in order of weight; n_reasons of them */
    int n_reasons;
} mxd_plan;

mxd_rc mxd_plan_make(mxd_plan *out, const mxd_model_sizes *model, const mxd_plan_node *nodes,
                     int n_nodes, const mxd_plan_link *links, int n_links,
                     const mxd_plan_opts *opts, mxd_err *err) MXD_MUST_USE;

#endif
