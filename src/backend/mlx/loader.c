#include "backend/mlx/loader.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/mlx/plugin.h"

#if defined(__APPLE__)
#define PLUGIN_NAME "libmlxd_mlx.dylib"
#define INSTALL     "pip install mlx"
#else
#define PLUGIN_NAME "libmlxd_mlx.so"
#define INSTALL     "pip install \"mlx[cpu]\""
#endif
#ifndef MXD_LIBDIR /* of the installation, relative to its prefix */
#define MXD_LIBDIR "lib"
#endif

/* Behind the folder of the program, or of the library this code is in. */
static const char *const places[] = {
    "",
    "../" MXD_LIBDIR "/mlx-distributed/", /* a program in bin */
    "../lib/mlx-distributed/",
    "mlx-distributed/",      /* a library in lib */
    "../backend/mlx/",       /* programs and the library in the build tree */
    "../../src/backend/mlx/" /* tests in the build tree */
};

typedef struct mlx_path {
    char s[PATH_MAX];
} mlx_path;

/* Cuts the name off; false when there is no folder. */
static bool keep_folder(mlx_path *p) {
    char *slash = strrchr(p->s, '/');
    if (slash) slash[1] = 0;
    return slash != NULL;
}

/* The folder of the library or program this code is in, with a slash behind. */
static bool own_folder(mlx_path *out) {
    Dl_info info;
    void *here;
    mxd_rc (*self)(mxd_backend **, const mxd_alloc *, const mxd_backend_opts *, mxd_err *) =
        mxd_mlx_open;
    memcpy(&here, &self, sizeof here);
    if (!dladdr(here, &info) || !info.dli_fname || !strchr(info.dli_fname, '/')) return false;
    return realpath(info.dli_fname, out->s) && keep_folder(out);
}

/* The folder of the program; a program found through PATH is known by its bare name only. */
static bool program_folder(mlx_path *out) {
    ssize_t n = readlink("/proc/self/exe", out->s, sizeof out->s - 1);
    if (n <= 0) return false;
    out->s[n] = 0;
    return keep_folder(out);
}

static bool search(const mlx_path *folder, mlx_path *out) {
    for (size_t i = 0; i < MXD_COUNT(places); i++) {
        int n = snprintf(out->s, sizeof out->s, "%s%s" PLUGIN_NAME, folder->s, places[i]);
        if (n > 0 && (size_t)n < sizeof out->s && access(out->s, R_OK) == 0) return true;
    }
    return false;
}

static mxd_rc find_named(const char *plugin, mlx_path *out, mxd_err *err) {
    struct stat st;
    bool folder = stat(plugin, &st) == 0 && S_ISDIR(st.st_mode);
    int n = snprintf(out->s, sizeof out->s, "%s%s", plugin, folder ? "/" PLUGIN_NAME : "");
    if (n > 0 && (size_t)n < sizeof out->s && access(out->s, R_OK) == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "backend 'mlx': there is no plugin %.200s%s; run `" INSTALL
                    "` and rebuild with that Python, or use --backend cpu",
                    plugin, folder ? "/" PLUGIN_NAME : "");
}

static mxd_rc find_plugin(const mxd_backend_opts *opts, mlx_path *out, mxd_err *err) {
    if (opts->plugin) return find_named(opts->plugin, out, err);
    mlx_path own, program;
    bool has_own = own_folder(&own), has_program = program_folder(&program);
    if ((has_own && search(&own, out)) || (has_program && search(&program, out))) return MXD_OK;
    const char *where = has_own ? own.s : has_program ? program.s : "the program's folder";
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "backend 'mlx': no " PLUGIN_NAME " in %.180s or in ../" MXD_LIBDIR
                    "/mlx-distributed of it; run `" INSTALL
                    "` and rebuild with that Python, or use --backend cpu",
                    where);
}

/* libmlx first, when the user names it: the plugin then finds it by its name, already loaded. */
static mxd_rc load_libmlx(const char *path, mxd_err *err) {
    if (!path || dlopen(path, RTLD_NOW | RTLD_LOCAL)) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "backend 'mlx': libmlx cannot be loaded: %.240s; name the libmlx of `" INSTALL
                    "` (site-packages/mlx/lib), or use --backend cpu",
                    dlerror());
}

static mxd_rc load_plugin(const char *path, const mxd_mlx_plugin **out, mxd_err *err) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return mxd_fail(err, MXD_E_NOTFOUND,
                        "backend 'mlx': the plugin cannot be loaded: %.240s; run `" INSTALL
                        "` where it was built for, or name its libmlx (docs/mlx-backend.md)",
                        dlerror());
    void *symbol = dlsym(lib, MXD_MLX_PLUGIN_ENTRY);
    mxd_mlx_plugin_entry_fn *entry;
    memcpy(&entry, &symbol, sizeof entry);
    *out = NULL;
    uint32_t has = entry ? entry(MXD_MLX_ABI, out) : 0;
    if (*out) return MXD_OK;
    dlclose(lib);
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "backend 'mlx': %.240s is of another build (interface %u, wanted %u); build "
                    "and install it together with this program",
                    path, (unsigned)has, (unsigned)MXD_MLX_ABI);
}

mxd_rc mxd_mlx_open(mxd_backend **out, const mxd_alloc *al, const mxd_backend_opts *opts,
                    mxd_err *err) {
    static const mxd_backend_opts none = {0};
    static const mxd_mlx_host host = {mxd_st_read, mxd_dtype_name, mxd_fail};
    (void)al; /* libmlx has its own memory */
    if (!opts) opts = &none;
    mlx_path path;
    const mxd_mlx_plugin *plugin;
    MXD_TRY(find_plugin(opts, &path, err));
    MXD_TRY(load_libmlx(opts->mlx_lib, err));
    MXD_TRY(load_plugin(path.s, &plugin, err));
    return plugin->open(out, &host, opts, err);
}
