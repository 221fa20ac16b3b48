/* dry_run.h - mlx-dist-server --dry-run: the plan for the workers it would start. */
#ifndef MXD_CLI_DRY_RUN_H
#define MXD_CLI_DRY_RUN_H

#include "cli/engine_kit.h"

/* Prints the plan (with --json as JSON) to standard output; nothing is loaded or started.
 * Errors: as planning: E_NOFIT says what is missing; the model's. */
mxd_rc mxd_dry_run(const mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) MXD_MUST_USE;

#endif
