/* plugin.h - the border between this program (C) and the MLX plugin (C++), read by both.
 *
 * The plugin is a shared library that exports one function, `mxd_mlx_plugin_entry`. It links libmlx
 * and nothing of ours: what it needs from us comes as a table of functions, what it offers is an
 * mxd_backend like any other.
 *
 * The ABI number holds a version and the sizes of every struct that crosses the border, so a new
 * field in backend.h cannot be forgotten here: a plugin of another build is refused, not called.
 *
 * Trust:   the plugin is code of ours, loaded by a path the user controls.
 * Threads: as backend.h.
 * Errors:  no exception crosses; everything libmlx throws becomes mxd_rc and a message.
 */
#ifndef MXD_BACKEND_MLX_PLUGIN_H
#define MXD_BACKEND_MLX_PLUGIN_H

#include "backend/backend.h"

typedef struct mxd_mlx_host { /* what the program lends to the plugin, for the process's life */
    mxd_rc (*st_read)(const mxd_st *st, const mxd_st_tensor *t, uint64_t from, void *dst, size_t n,
                      mxd_err *err);
    const char *(*dtype_name)(mxd_dtype d);
    mxd_rc (*fail)(mxd_err *err, mxd_rc rc, const char *fmt, ...) MXD_PRINTF(3, 4);
} mxd_mlx_host;

typedef struct mxd_mlx_plugin { /* static in the plugin */
    const char *built_for;      /* version of MLX whose headers it was compiled with */
    /* Errors: E_UNSUPPORTED another version of MLX was found; E_NOMEM; E_INTERNAL libmlx's words.
     */
    mxd_rc (*open)(mxd_backend **out, const mxd_mlx_host *host, const mxd_backend_opts *opts,
                   mxd_err *err);
} mxd_mlx_plugin;

enum { /* every size has a weight of its own, so that two changes hardly cancel out */
       MXD_MLX_ABI_VERSION = 2, /* 2: how K and V are kept, in the place of a flag */
       MXD_MLX_ABI_STRUCTS =
           sizeof(mxd_mlx_host) + 63 * sizeof(mxd_mlx_plugin) + 65 * sizeof(mxd_backend_ops) +
           67 * sizeof(mxd_backend_opts) + 69 * sizeof(mxd_weight_src) +
           71 * sizeof(mxd_step_shape) + 73 * sizeof(mxd_kv_spec) + 75 * sizeof(mxd_batch) +
           77 * sizeof(mxd_run) + 79 * sizeof(mxd_rope) + 81 * sizeof(mxd_attention) +
           83 * sizeof(mxd_st_tensor) + 85 * sizeof(mxd_err) + 87 * MXD_RC_COUNT +
           89 * MXD_DTYPE_COUNT + 91 * sizeof(mxd_moe) + 93 * sizeof(mxd_state_spec) +
           95 * sizeof(mxd_delta_net) + 97 * MXD_ACT_FN_COUNT + 99 * sizeof(mxd_rope_dynamic),
       MXD_MLX_ABI = MXD_MLX_ABI_VERSION * 1000000 + MXD_MLX_ABI_STRUCTS % 1000000
};

/* The one export. Returns the plugin's own ABI number; *out is set only when it equals `abi`. */
typedef uint32_t mxd_mlx_plugin_entry_fn(uint32_t abi, const mxd_mlx_plugin **out);
#define MXD_MLX_PLUGIN_ENTRY "mxd_mlx_plugin_entry"

#endif
