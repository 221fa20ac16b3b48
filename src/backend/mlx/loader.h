/* loader.h - opens the `mlx` backend: finds the plugin, checks it, asks it for a backend.
 *
 * Lifetime: a plugin stays loaded until the process ends, because libmlx has threads of its own.
 * Threads:  any; opening twice shares the library, not the backend.
 */
#ifndef MXD_BACKEND_MLX_LOADER_H
#define MXD_BACKEND_MLX_LOADER_H

#include "backend/backend.h"

/* Looks for the plugin in opts->plugin (a file or a folder) and, when that is NULL, where programs
 * and their parts are installed (docs/mlx-backend.md). opts->mlx_lib is loaded before it.
 * opts->kernels "cpu" keeps MLX off the GPU. NULL opts: all defaults.
 *   *out   owned by the caller: ops->close
 * Errors: E_NOTFOUND no plugin, or no libmlx for it (one line: where was looked, what to install);
 * E_UNSUPPORTED a plugin of another build, or libmlx of another version; E_NOMEM; E_INVAL. */
mxd_rc mxd_mlx_open(mxd_backend **out, const mxd_alloc *al, const mxd_backend_opts *opts,
                    mxd_err *err) MXD_MUST_USE;

#endif
