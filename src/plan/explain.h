/* explain.h - a plan's words and predictions, and why there is none. For this room. */
#ifndef MXD_PLAN_EXPLAIN_H
#define MXD_PLAN_EXPLAIN_H

#include "plan/search.h"

/* Tokens a second of all t->parallel streams that decode together. */
double mxd_plan_all_streams(mxd_plan_task *t, const mxd_plan_cut *c);

/* Stages, bytes, predictions. c fits. */
void mxd_plan_fill(mxd_plan_task *t, const mxd_plan_cut *c, mxd_plan *p);

/* Reasons. Errors: E_NOMEM. */
mxd_rc mxd_plan_explain(mxd_plan_task *t, const mxd_plan_cut *c, const mxd_plan_opts *o,
                        mxd_plan *p, mxd_err *err) MXD_MUST_USE;

/* E_NOFIT with the missing bytes and the largest context that fits. split: the groups and layers
 * that were asked for; NULL: nothing was. */
mxd_rc mxd_plan_no_fit(mxd_plan_task *t, const mxd_plan_cut *split, mxd_err *err) MXD_MUST_USE;

uint64_t mxd_plan_must(const mxd_plan_task *t); /* a bit for each node that must get layers */

#endif
