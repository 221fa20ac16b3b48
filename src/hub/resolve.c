#include "hub/resolve.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/limits.h"
#include "base/map.h"
#include "formats/json.h"

enum { N = MXD_HUB_PATH_MAX, SHA_DIGITS = 40, NAME_MAX_BYTES = 96 };

static bool path_is(char out[N], const char *fmt, ...) MXD_PRINTF(2, 3);
static bool path_is(char out[N], const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out, N, fmt, ap);
    va_end(ap);
    return n >= 0 && n < N;
}

static bool is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool holds(const char *folder, const char *name) {
    char path[N];
    return path_is(path, "%s/%s", folder, name) && access(path, R_OK) == 0;
}

static bool is_set(const char *s) { return s && s[0]; }

mxd_rc mxd_hub_cache_dir(char out[N], const mxd_hub_env *env, mxd_err *err) {
    bool fits;
    if (is_set(env->hf_hub_cache))
        fits = path_is(out, "%s", env->hf_hub_cache);
    else if (is_set(env->huggingface_hub_cache))
        fits = path_is(out, "%s", env->huggingface_hub_cache);
    else if (is_set(env->hf_home))
        fits = path_is(out, "%s/hub", env->hf_home);
    else if (is_set(env->xdg_cache_home))
        fits = path_is(out, "%s/huggingface/hub", env->xdg_cache_home);
    else if (is_set(env->home))
        fits = path_is(out, "%s/.cache/huggingface/hub", env->home);
    else
        return mxd_fail(err, MXD_E_CONFIG, "no model cache: neither HF_HOME nor HOME is set");
    if (!fits) return mxd_fail(err, MXD_E_TOOBIG, "the path of the model cache is too long");
    return MXD_OK;
}

/* ------------------------------------------------------------------------------ is it complete */

typedef struct missing {
    mxd_map seen;
    char names[200]; /* the first ones, for the message */
    int n;
} missing;

static mxd_rc look_for(const char *folder, const json_t *file, missing *m, mxd_err *err) {
    const char *name = json_string_value(file);
    bool bad = !name || !name[0] || name[0] == '/' || strstr(name, "..");
    if (bad)
        return mxd_fail(err, MXD_E_FORMAT, "'%s': its index names a file outside of it", folder);
    bool was;
    MXD_TRY(mxd_map_put(&m->seen, name, strlen(name), 1, &was, err));
    if (was || holds(folder, name)) return MXD_OK;
    size_t used = strlen(m->names);
    if (m->n++ < 3)
        snprintf(m->names + used, sizeof m->names - used, "%s%.60s", used ? ", " : "", name);
    return MXD_OK;
}

static mxd_rc look_for_all(const char *folder, const json_t *index, missing *m, mxd_err *err) {
    json_t *weights = json_object_get(index, "weight_map");
    void *it = json_object_iter(weights);
    for (; it; it = json_object_iter_next(weights, it))
        MXD_TRY(look_for(folder, json_object_iter_value(it), m, err));
    if (!m->n) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "'%s' is not complete: %d of its files are missing (%s%s): fetch it again",
                    folder, m->n, m->names, m->n > 3 ? ", ..." : "");
}

/* Every file of the index is there; without an index the model's reader knows better. */
static mxd_rc check_complete(const mxd_alloc *al, const char *folder, mxd_err *err) {
    char path[N];
    if (!path_is(path, "%s/model.safetensors.index.json", folder)) return MXD_OK;
    if (access(path, F_OK) != 0) return MXD_OK;
    json_t *index;
    MXD_TRY(mxd_json_load(&index, path, MXD_ST_MAX_HEADER_BYTES, err));
    missing m = {.n = 0};
    mxd_rc rc = mxd_map_init(&m.seen, al, 16, err);
    if (!rc) {
        rc = look_for_all(folder, index, &m, err);
        mxd_map_deinit(&m.seen);
    }
    json_decref(index);
    return rc;
}

/* --------------------------------------------------------------------------------------- places */

static bool demo_at(char out[N], const char *base, const char *below) {
    return is_set(base) && path_is(out, "%s%s/models/demo", base, below) &&
           holds(out, "config.json");
}

static bool find_demo(char out[N], const mxd_hub_places *p) {
    /* installed; in the Python package; in a build folder of the source tree, which a file of the
     * tree must confirm, because it is several folders up */
    static const char *const above[] = {"/../..", "/../../.."};
    if (demo_at(out, p->data_dir, "")) return true;
    if (demo_at(out, p->program_dir, "/../share/mlx-distributed")) return true;
    if (demo_at(out, p->program_dir, "/..")) return true;
    for (size_t i = 0; is_set(p->program_dir) && i < MXD_COUNT(above); i++) {
        char tree[N];
        if (!path_is(tree, "%s%s", p->program_dir, above[i]) || !holds(tree, "meson.build"))
            continue;
        if (demo_at(out, tree, "")) return true;
    }
    return false;
}

typedef struct repo {
    char org[NAME_MAX_BYTES + 1], name[NAME_MAX_BYTES + 1], revision[NAME_MAX_BYTES + 1];
} repo;

static bool is_part(const char *s, size_t n, bool slashes) {
    if (!n || n > NAME_MAX_BYTES || s[0] == '.' || s[0] == '/' || s[n - 1] == '/') return false;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '/' && slashes && s[i + 1] != '.' && s[i + 1] != '/') continue;
        if (!isalnum((unsigned char)s[i]) && !strchr("._-", s[i])) return false;
        if (s[i] == '.' && s[i + 1] == '.') return false;
    }
    return true;
}

static bool split_repo(repo *r, const char *model) {
    const char *slash = strchr(model, '/'), *at = strchr(model, '@');
    if (!slash || (at && at < slash)) return false;
    size_t n_name = at ? (size_t)(at - slash - 1) : strlen(slash + 1);
    if (!is_part(model, (size_t)(slash - model), false) || !is_part(slash + 1, n_name, false))
        return false;
    if (at && !is_part(at + 1, strlen(at + 1), true)) return false;
    snprintf(r->org, sizeof r->org, "%.*s", (int)(slash - model), model);
    snprintf(r->name, sizeof r->name, "%.*s", (int)n_name, slash + 1);
    snprintf(r->revision, sizeof r->revision, "%s", at ? at + 1 : "main");
    return true;
}

static bool is_sha(const char *s) {
    for (int i = 0; i < SHA_DIGITS; i++)
        if (!isdigit((unsigned char)s[i]) && !(s[i] >= 'a' && s[i] <= 'f')) return false;
    return s[SHA_DIGITS] == '\0';
}

/* The commit that refs/<revision> names. */
static mxd_rc read_ref(char sha[SHA_DIGITS + 1], const char *repo_dir, const char *revision,
                       bool *there, mxd_err *err) {
    char path[N], text[SHA_DIGITS + 8] = "";
    *there = false;
    if (!path_is(path, "%s/refs/%s", repo_dir, revision)) return MXD_OK;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return MXD_OK;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    while (n > 0 && isspace((unsigned char)text[n - 1])) text[--n] = '\0';
    if (n != SHA_DIGITS || !is_sha(text))
        return mxd_fail(err, MXD_E_FORMAT, "'%s' does not hold a commit: delete it and fetch again",
                        path);
    memcpy(sha, text, SHA_DIGITS + 1);
    *there = true;
    return MXD_OK;
}

static mxd_rc not_cached(const repo *r, const char *cache_dir, mxd_err *err) {
    bool main = strcmp(r->revision, "main") == 0;
    return mxd_fail(
        err, MXD_E_NOTFOUND,
        "%s/%s%s%s is not in the model cache (%.150s): fetch it with 'hf download %s/%s%s%s', "
        "then run this again",
        r->org, r->name, main ? "" : "@", main ? "" : r->revision, cache_dir, r->org, r->name,
        main ? "" : " --revision ", main ? "" : r->revision);
}

static mxd_rc find_cached(char out[N], const mxd_alloc *al, const repo *r, const char *cache_dir,
                          mxd_err *err) {
    char dir[N], sha[SHA_DIGITS + 1];
    if (!is_set(cache_dir) || !path_is(dir, "%s/models--%s--%s", cache_dir, r->org, r->name))
        return mxd_fail(err, MXD_E_NOTFOUND, "%s/%s: no model cache to look in", r->org, r->name);
    bool there = is_sha(r->revision);
    if (there)
        memcpy(sha, r->revision, sizeof sha);
    else
        MXD_TRY(read_ref(sha, dir, r->revision, &there, err));
    if (!there || !path_is(out, "%s/snapshots/%s", dir, sha) || !holds(out, "config.json"))
        return not_cached(r, cache_dir, err);
    return check_complete(al, out, err);
}

static mxd_rc not_a_name(const char *model, mxd_err *err) {
    bool near_demo = strlen(model) <= 6 && model[0] == 'd' && strchr(model, 'm');
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "no model '%.100s': there is no such folder, and a model of the hub is named "
                    "org/name; %s",
                    model, near_demo ? "did you mean demo?" : "'demo' is always there");
}

mxd_rc mxd_hub_resolve(char out[N], const mxd_alloc *al, const char *model,
                       const mxd_hub_places *places, mxd_err *err) {
    if (!is_set(model))
        return mxd_fail(err, MXD_E_INVAL, "no model was named: 'demo' is always there");
    if (!path_is(out, "%s", model))
        return mxd_fail(err, MXD_E_TOOBIG, "the model's name is longer than %d bytes", N - 1);
    struct stat st;
    if (stat(model, &st) == 0 && !S_ISDIR(st.st_mode))
        return mxd_fail(err, MXD_E_INVAL, "'%s' is a file: name the folder with its config.json",
                        model);
    if (holds(model, "config.json")) return check_complete(al, model, err);
    bool as_path = model[0] == '/' || model[0] == '.' || model[0] == '~';
    if (!as_path && is_set(places->models_dir) &&
        path_is(out, "%s/%s", places->models_dir, model) && !strstr(model, "..") &&
        holds(out, "config.json"))
        return check_complete(al, out, err);
    if (strcmp(model, "demo") == 0) {
        if (find_demo(out, places)) return MXD_OK;
        return mxd_fail(
            err, MXD_E_NOTFOUND,
            "the demo model is not installed: set MLXD_DATA_DIR to the folder that holds "
            "models/demo");
    }
    repo r;
    if (!as_path && split_repo(&r, model) && !is_folder(model))
        return find_cached(out, al, &r, places->cache_dir, err);
    if (is_folder(model))
        return mxd_fail(err, MXD_E_NOTFOUND,
                        "'%s' has no config.json: it is not a model folder in MLX format", model);
    if (as_path) return mxd_fail(err, MXD_E_NOTFOUND, "no folder '%s'", model);
    return not_a_name(model, err);
}
