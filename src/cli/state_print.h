/* state_print.h - the cluster's state, for people. */
#ifndef MXD_CLI_STATE_PRINT_H
#define MXD_CLI_STATE_PRINT_H

#include <jansson.h>
#include <stdio.h>

/* The plan in force as a table (who holds which layers and bytes), and why; `state` is the object
 * of GET /v1/cluster/state. Nothing when there is no plan. */
void mxd_state_print_plan(FILE *to, const json_t *state);

#endif
