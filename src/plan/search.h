/* search.h - the search behind plan.h: which nodes, in which groups and order, cut where. For this
 * room.
 *
 * Cut points: between layers; models of more than MXD_PLAN_CUTS layers are cut at every second,
 * third, ... layer. Up to MXD_PLAN_EXACT nodes every ordered list of disjoint groups is covered by
 * a dynamic program over (set of nodes used, last group, layers done, stages done). More nodes:
 * whole layers, or groups of 2, 4, ... neighbours, by falling speed, each of which may be left out.
 *
 * Cost for N nodes and C cut points: 2^N C^2 / 2 times of stages, then 4^N C^2 / 2 additions (with
 * whole layers only, N 2^N of them); C is lowered to keep the latter below MXD_PLAN_STEPS, and the
 * found groups are then cut again at every layer.
 */
#ifndef MXD_PLAN_SEARCH_H
#define MXD_PLAN_SEARCH_H

#include "plan/cost.h"

enum { MXD_PLAN_EXACT = 8, MXD_PLAN_CUTS = 128, MXD_PLAN_STEPS = 30000000 };

typedef struct mxd_plan_cut { /* a way: group[i] runs layers [at[i], at[i + 1]) */
    int n;
    mxd_plan_group group[MXD_MAX_NODES];
    int at[MXD_MAX_NODES + 1];
    double sum_s, max_s; /* time of one position through all stages and links; of the longest stage
                          * for `batch` rows */
} mxd_plan_cut;

/* Fills sum_s and max_s of a given way; INFINITY where it does not fit. */
void mxd_plan_time(const mxd_plan_task *t, mxd_plan_cut *c);

/* The fastest way that fits and gives layers to all of `must` (a bit per node).
 * by_max: least longest stage, else least sum. *found false: nothing fits. Errors: E_NOMEM. */
mxd_rc mxd_plan_search(const mxd_plan_task *t, uint64_t must, bool by_max, mxd_plan_cut *out,
                       bool *found, mxd_err *err) MXD_MUST_USE;

/* Same groups in the same order, cut anew at every cut point: least sum with no stage over most_s;
 * by_max: least longest stage. False: no such. `out` may be `from`. */
mxd_rc mxd_plan_recut(const mxd_plan_task *t, const mxd_plan_cut *from, double most_s, bool by_max,
                      mxd_plan_cut *out, bool *found, mxd_err *err) MXD_MUST_USE;

#endif
