/* search.h - the search behind plan.h: which nodes, in which order, cut where. For this room.
 *
 * Cut points: between layers; models of more than MXD_PLAN_CUTS layers are cut at every second,
 * third, ... layer. Up to MXD_PLAN_EXACT nodes every set of nodes in every order is covered by a
 * dynamic program over (set, last node, layers done); more nodes are taken in the order given, and
 * each may be left out.
 *
 * Cost: 2^N N^2 C^2 / 2 steps for N nodes and C cut points; N^2 C^2 / 2 beyond MXD_PLAN_EXACT.
 */
#ifndef MXD_PLAN_SEARCH_H
#define MXD_PLAN_SEARCH_H

#include "plan/plan.h"

enum { MXD_PLAN_EXACT = 8, MXD_PLAN_CUTS = 128 };

/* Everything of the question that does not change while searching. */
typedef struct mxd_plan_task {
    const mxd_model_sizes *model;
    const mxd_plan_node *nodes;
    int n_nodes, ctx, parallel;
    double bandwidth[MXD_MAX_NODES], ops[MXD_MAX_NODES]; /* no zeros any more */
    double usable[MXD_MAX_NODES];                        /* bytes, reserve taken off */
    double hop_s[MXD_MAX_NODES][MXD_MAX_NODES];          /* hidden state of one position */
    double byte_s[MXD_MAX_NODES][MXD_MAX_NODES];         /* seconds per byte of a link */
    double weights_to[MXD_MAX_LAYERS + 1];               /* prefix sums over layers, bytes */
    double kv_to[MXD_MAX_LAYERS + 1];                    /* of one position */
    double state_to[MXD_MAX_LAYERS + 1];                 /* of one sequence */
} mxd_plan_task;

typedef struct mxd_plan_cut { /* a way: node[i] runs layers [at[i], at[i + 1]) */
    int n;
    int node[MXD_MAX_NODES], at[MXD_MAX_NODES + 1];
    double sum_s, max_s; /* time of one position through all stages; of the longest stage */
} mxd_plan_cut;

/* Bytes of layers [a, b) on one node. */
typedef struct mxd_plan_bytes {
    double weights, kv, scratch;
} mxd_plan_bytes;
mxd_plan_bytes mxd_plan_bytes_of(const mxd_plan_task *t, int a, int b);
bool mxd_plan_fits(const mxd_plan_task *t, int node, int a, int b);

/* Seconds of one position in layers [a, b) on `node`: decoding, and in a full prefill batch. */
double mxd_plan_decode_s(const mxd_plan_task *t, int node, int a, int b);
double mxd_plan_prefill_s(const mxd_plan_task *t, int node, int a, int b);

/* Fills sum_s and max_s of a given way. */
void mxd_plan_time(const mxd_plan_task *t, mxd_plan_cut *c);

/* The fastest way that fits and gives layers to all of `must` (bit per node; N > 64 cannot be).
 * by_max: least longest stage, else least sum. *found false: nothing fits. Errors: E_NOMEM. */
mxd_rc mxd_plan_search(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                       bool *found, mxd_err *err) MXD_MUST_USE;

/* Same nodes in the same order, cut anew: least sum with no stage over most_s. False: no such. */
mxd_rc mxd_plan_recut(const mxd_plan_task *t, const mxd_plan_cut *from, double most_s,
                      mxd_plan_cut *out, bool *found, mxd_err *err) MXD_MUST_USE;

#endif
