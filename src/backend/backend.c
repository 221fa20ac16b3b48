#include "backend/backend.h"

#include <string.h>
#include "backend/cpu/cpu.h"
#include "backend/mlx/loader.h"

/* Adding a backend is its folder and one line here. */
static const struct {
    const char *name;
    mxd_rc (*open)(mxd_backend **out, const mxd_alloc *al, const mxd_backend_opts *opts,
                   mxd_err *err);
} table[] = {
    {"cpu", cpu_open},
    {"mlx", mxd_mlx_open},
};

mxd_rc mxd_backend_open(mxd_backend **out, const mxd_alloc *al, const char *name,
                        const mxd_backend_opts *opts, mxd_err *err) {
    static const mxd_backend_opts none = {0};
    if (!opts) opts = &none;
    if (strcmp(name, "auto") == 0) {
#if defined(__APPLE__) && defined(__aarch64__)
        if (mxd_mlx_open(out, al, opts, NULL) == MXD_OK) return MXD_OK;
#endif
        name = "cpu";
    }
    for (size_t i = 0; i < MXD_COUNT(table); i++)
        if (strcmp(table[i].name, name) == 0) return table[i].open(out, al, opts, err);
    return mxd_fail(err, MXD_E_NOTFOUND, "backend '%s': there are auto, cpu and mlx", name);
}

uint64_t mxd_weight_bytes(const mxd_alloc *al, const mxd_weight_src *src, int max_rows,
                          uint64_t *exchange) {
    return cpu_weight_bytes(al, src, max_rows, exchange);
}

const char *mxd_backend_default(void) {
#if defined(__APPLE__) && defined(__aarch64__)
    return "mlx";
#else
    return "cpu";
#endif
}
