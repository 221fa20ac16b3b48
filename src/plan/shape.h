/* shape.h - what a user asks of a plan: sizes, splits, what it should be best at. */
#ifndef MXD_PLAN_SHAPE_H
#define MXD_PLAN_SHAPE_H

#include "base/limits.h"

typedef enum mxd_objective { MXD_OBJECTIVE_LATENCY, MXD_OBJECTIVE_THROUGHPUT } mxd_objective;

typedef struct mxd_shape { /* zero: the planner decides */
    mxd_objective objective;
    int tensor;   /* ranks of every stage; 1: whole layers */
    int pipeline; /* stages */
    int n_split;  /* layers per node in node order, when > 0: the user's own split. With groups:
                   * per stage */
    int split[MXD_MAX_NODES];
    int n_tensor_split; /* parts of each layer per node in node order, when > 0; 0 leaves it out */
    double tensor_split[MXD_MAX_NODES];
} mxd_shape;

#endif
