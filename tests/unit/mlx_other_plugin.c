/* A plugin of another build: it answers with another number, and offers nothing. */
#include "backend/mlx/plugin.h"

__attribute__((visibility("default"))) mxd_mlx_plugin_entry_fn mxd_mlx_plugin_entry;

uint32_t mxd_mlx_plugin_entry(uint32_t abi, const mxd_mlx_plugin **out) {
    (void)out;
    return abi + 1;
}
