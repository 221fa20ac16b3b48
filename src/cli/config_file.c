#include "cli/config_file.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "cli/option_value.h"
#include "formats/yaml.h"

typedef struct file {
    mxd_options *o;
    const char *path;
    const json_t *marks;
} file;

static bool join(char out[1024], const char *a, const char *b, const char *c) {
    return (size_t)snprintf(out, 1024, "%s%s%s", a, b, c) < 1024;
}

mxd_rc mxd_xdg_path(char out[1024], const mxd_env *env, const char *variable, const char *fallback,
                    const char *name, mxd_err *err) {
    const char *base = mxd_env_get(env, variable), *home = mxd_env_get(env, "HOME");
    char below[512];
    snprintf(below, sizeof below, "/mlx-distributed%s%s", name[0] ? "/" : "", name);
    if (base && base[0] == '/') /* relative ones are ignored, as the XDG specification says */
        return join(out, base, below, "") ? MXD_OK
                                          : mxd_fail(err, MXD_E_TOOBIG, "%s is too long", variable);
    if (!home)
        return mxd_fail(err, MXD_E_CONFIG, "no folder for %s: neither %s nor HOME is set",
                        name[0] ? name : "our files", variable);
    char place[600];
    snprintf(place, sizeof place, "/%s%s", fallback, below);
    return join(out, home, place, "") ? MXD_OK : mxd_fail(err, MXD_E_TOOBIG, "HOME is too long");
}

int mxd_config_places(char out[3][1024], const mxd_env *env) {
    int n = 0;
    if (!mxd_xdg_path(out[n], env, "XDG_CONFIG_HOME", ".config", "config.yaml", NULL)) n++;
#ifdef __APPLE__
    const char *home = mxd_env_get(env, "HOME");
    const char *mac = "/Library/Application Support/mlx-distributed/config.yaml";
    if (home && join(out[n], home, mac, "")) n++;
#endif
    join(out[n++], "/etc/mlx-distributed/config.yaml", "", "");
    return n;
}

static void place_of(const file *f, const char *path, char out[300]) {
    int line, column;
    mxd_yaml_where(f->marks, path, &line, &column);
    size_t n = strlen(f->path);
    snprintf(out, 300, "%s%s:%d:%d", n > 200 ? "..." : "", n > 200 ? f->path + n - 200 : f->path,
             line, column);
}

/* A scalar, or a list of scalars with commas. */
static mxd_rc value_text(const json_t *v, mxd_buf *out, const char *place, mxd_err *err) {
    const json_t *item;
    size_t i;
    if (json_is_string(v)) mxd_buf_put(out, json_string_value(v), json_string_length(v));
    json_array_foreach(v, i, item) {
        if (!json_is_string(item))
            return mxd_fail(err, MXD_E_CONFIG, "%s: the list may only hold texts and numbers",
                            place);
        if (i) mxd_buf_putc(out, ',');
        mxd_buf_puts(out, json_string_value(item));
    }
    if (json_is_object(v))
        return mxd_fail(err, MXD_E_CONFIG, "%s: a value is expected here, not a group of keys",
                        place);
    return mxd_buf_rc(out, place, err);
}

static mxd_rc unknown_key(const char *key, const char *place, bool top, mxd_err *err) {
    const char *names[MXD_OPT_COUNT + MXD_PROG_COUNT];
    int n = 0;
    for (int i = 0; i < MXD_OPT_COUNT; i++)
        if (mxd_opt_in_file((mxd_opt_id)i)) names[n++] = mxd_opt_row_get((mxd_opt_id)i)->name;
    for (int p = 0; top && p < MXD_PROG_COUNT; p++)
        if (!mxd_prog_row_get((mxd_prog)p)->command)
            names[n++] = mxd_prog_row_get((mxd_prog)p)->program + strlen("mlx-dist-");
    const char *near = mxd_nearest(key, names, n);
    if (near)
        return mxd_fail(err, MXD_E_CONFIG, "%s: unknown key '%.60s': did you mean %s?", place, key,
                        near);
    return mxd_fail(
        err, MXD_E_CONFIG,
        "%s: unknown key '%.60s': keys are named like the options, without the dashes in "
        "front",
        place, key);
}

static mxd_rc take_key(const file *f, const char *path, const char *key, const json_t *v, bool ours,
                       bool top, mxd_err *err) {
    char place[300];
    place_of(f, path, place);
    mxd_opt_id id = mxd_opt_by_name(key);
    if (id == MXD_OPT_COUNT) return unknown_key(key, place, top, err);
    if (!mxd_opt_in_file(id))
        return mxd_fail(err, MXD_E_CONFIG, "%s: '%s' may not stand in a config file: use --%s",
                        place, key, key);
    if (json_is_null(v)) return MXD_OK; /* "key:" with nothing behind it leaves the default */
    mxd_buf text;
    mxd_buf_init(&text, f->o->al, MXD_CONFIG_MAX_BYTES);
    mxd_rc rc = value_text(v, &text, place, err);
    const char *s = mxd_buf_str(&text);
    if (!rc && ours && mxd_opt_is_for(id, f->o->prog))
        rc = mxd_opt_set(f->o, id, s, MXD_FROM_FILE, place, MXD_E_CONFIG, err);
    else if (!rc)
        rc = mxd_opt_check(f->o->al, mxd_opt_row_get(id), s, place, MXD_E_CONFIG, err);
    mxd_buf_deinit(&text);
    return rc;
}

static bool is_section(const char *key, mxd_prog *prog) {
    return mxd_opt_by_name(key) == MXD_OPT_COUNT && strncmp(key, "mlx-dist-", 9) != 0 &&
           mxd_prog_by_name(key, prog);
}

static mxd_rc take_section(const file *f, const char *name, mxd_prog prog, const json_t *v,
                           mxd_err *err) {
    char path[256], place[300];
    place_of(f, name, place);
    if (json_is_null(v)) return MXD_OK;
    if (!json_is_object(v))
        return mxd_fail(err, MXD_E_CONFIG, "%s: '%s' must be a group of keys", place, name);
    void *it = json_object_iter((json_t *)v);
    for (; it; it = json_object_iter_next((json_t *)v, it)) {
        const char *key = json_object_iter_key(it);
        snprintf(path, sizeof path, "%s.%.200s", name, key);
        MXD_TRY(take_key(f, path, key, json_object_iter_value(it), prog == f->o->prog, false, err));
    }
    return MXD_OK;
}

/* First the keys for all, then the sections, so that the order in the file does not matter. */
static mxd_rc take_all(const file *f, const json_t *tree, mxd_err *err) {
    if (!json_is_object(tree))
        return mxd_fail(err, MXD_E_CONFIG, "%s: must hold keys and values, like 'port: 8080'",
                        f->path);
    for (int pass = 0; pass < 2; pass++) {
        void *it = json_object_iter((json_t *)tree);
        for (; it; it = json_object_iter_next((json_t *)tree, it)) {
            const char *key = json_object_iter_key(it);
            const json_t *v = json_object_iter_value(it);
            mxd_prog prog = MXD_PROG_SERVER;
            bool section = is_section(key, &prog);
            if (section != (pass == 1)) continue;
            if (section)
                MXD_TRY(take_section(f, key, prog, v, err));
            else
                MXD_TRY(take_key(f, key, key, v, true, true, err));
        }
    }
    return MXD_OK;
}

static mxd_rc read_file(mxd_options *o, const char *path, mxd_err *err) {
    json_t *tree = NULL, *marks = NULL;
    mxd_rc rc = mxd_yaml_load(&tree, &marks, path, MXD_CONFIG_MAX_BYTES, err);
    if (rc) return rc == MXD_E_NOMEM ? rc : mxd_wrap(err, MXD_E_CONFIG, "config file");
    file f = {o, path, marks};
    o->file = mxd_strdup(o->al, path);
    rc = o->file ? take_all(&f, tree, err) : mxd_fail(err, MXD_E_NOMEM, "no memory for '%s'", path);
    json_decref(tree);
    json_decref(marks);
    return rc;
}

mxd_rc mxd_config_file_read(mxd_options *o, const mxd_env *env, mxd_err *err) {
    const char *named = mxd_opt_text(o, MXD_OPT_CONFIG);
    if (named) return read_file(o, named, err);
    char places[3][1024];
    int n = mxd_config_places(places, env);
    for (int i = 0; i < n; i++)
        if (access(places[i], F_OK) == 0) return read_file(o, places[i], err);
    return MXD_OK;
}
