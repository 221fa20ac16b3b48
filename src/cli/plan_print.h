/* plan_print.h - a plan for people and for programs; shared by `mlx-dist-config plan` and
 * --dry-run. */
#ifndef MXD_CLI_PLAN_PRINT_H
#define MXD_CLI_PLAN_PRINT_H

#include <jansson.h>
#include "cli/term.h"
#include "plan/plan.h"

typedef struct mxd_plan_view {
    const char *model; /* as the user named it */
    const mxd_plan *plan;
    const mxd_model_sizes *sizes;
    const mxd_plan_node *nodes;
    int n_nodes, ctx, parallel;
} mxd_plan_view;

/* A table of stages, the predicted speeds, and the reasons. */
void mxd_plan_print(mxd_buf *out, const mxd_plan_view *v, int columns);

/* {"schema":1, "model", "context", "parallel", "stages":[...], "decode_tokens_per_s", ...}; a new
 * reference; NULL: no memory. */
json_t *mxd_plan_json(const mxd_plan_view *v);

#endif
