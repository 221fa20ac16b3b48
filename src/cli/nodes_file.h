/* nodes_file.h - the described cluster of `mlx-dist-config plan --nodes FILE` (docs/planner.md). */
#ifndef MXD_CLI_NODES_FILE_H
#define MXD_CLI_NODES_FILE_H

#include "plan/plan.h"

enum { MXD_MAX_LINKS = MXD_MAX_NODES * (MXD_MAX_NODES - 1) / 2 };

typedef struct mxd_nodes_file {
    mxd_plan_node nodes[MXD_MAX_NODES];
    mxd_plan_link links[MXD_MAX_LINKS];
    int n_nodes, n_links;
} mxd_nodes_file;

/* Errors: E_CONFIG the file, or the node or link and its field; E_NOMEM. */
mxd_rc mxd_nodes_file_read(mxd_nodes_file *out, const char *path, mxd_err *err) MXD_MUST_USE;

#endif
