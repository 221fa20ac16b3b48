#include "cli/state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/file.h"
#include "formats/json.h"

enum { PATH_BYTES = MXD_PATH_MAX, TOKENS_MAX_BYTES = 1 << 20 };

static bool path_of(char out[PATH_BYTES], const char *dir, const char *name) {
    return (size_t)snprintf(out, PATH_BYTES, "%s/%s", dir, name) < PATH_BYTES;
}

/* Holds tokens.lock until unlock; the same lock guards the making of the CA. */
static mxd_rc lock(const char *dir, int *fd, mxd_err *err) {
    char path[PATH_BYTES];
    if (!path_of(path, dir, "tokens.lock"))
        return mxd_fail(err, MXD_E_TOOBIG, "'%.100s...' is too long", dir);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (*fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot open '%s'", path);
    while (flock(*fd, LOCK_EX) != 0) {
        if (errno == EINTR) continue;
        close(*fd);
        return mxd_fail_sys(err, MXD_E_IO, "cannot lock '%s'", path);
    }
    return MXD_OK;
}

static void unlock(int fd) { close(fd); }

static mxd_rc make_ca_locked(const mxd_alloc *al, const char *dir, const char *name, bool *made,
                             mxd_err *err) {
    char path[PATH_BYTES];
    path_of(path, dir, "ca.pem");
    *made = access(path, F_OK) != 0;
    if (!*made) return MXD_OK;
    mxd_pem ca = {0};
    MXD_TRY(mxd_ca_new(al, name, &ca, err));
    /* the certificate last: it is what says that there is a CA */
    mxd_rc rc = mxd_file_replace(dir, "ca.key", ca.key, strlen(ca.key), err);
    if (!rc) rc = mxd_file_replace(dir, "ca.pem", ca.cert, strlen(ca.cert), err);
    mxd_pem_free(al, &ca);
    return rc;
}

mxd_rc mxd_state_make_ca(const mxd_alloc *al, const char *dir, const char *cluster_name, bool *made,
                         mxd_err *err) {
    int fd;
    MXD_TRY(mxd_folder_make(dir, err));
    MXD_TRY(lock(dir, &fd, err));
    mxd_rc rc = make_ca_locked(al, dir, cluster_name, made, err);
    unlock(fd);
    return rc;
}

/* -------------------------------------------------------------------------------------- tokens */

/* The list of tokens.json without those that are over; a new reference. */
static mxd_rc load_tokens(const char *dir, int64_t now_ms, json_t **out, mxd_err *err) {
    char path[PATH_BYTES];
    json_t *root = NULL, *list = json_array(), *t;
    size_t i;
    path_of(path, dir, "tokens.json");
    mxd_rc rc = list ? mxd_json_load(&root, path, TOKENS_MAX_BYTES, err) : MXD_E_NOMEM;
    if (rc == MXD_E_NOTFOUND) rc = MXD_OK;
    if (!rc && root && !json_is_array(json_object_get(root, "tokens")))
        rc = mxd_fail(err, MXD_E_FORMAT, "'%s' is damaged: delete it and make new tokens", path);
    json_array_foreach(json_object_get(root, "tokens"), i, t) {
        bool live = json_integer_value(json_object_get(t, "uses")) > 0 &&
                    json_integer_value(json_object_get(t, "expires_ms")) > now_ms &&
                    json_is_string(json_object_get(t, "secret"));
        if (!rc && live && json_array_append(list, t)) rc = mxd_fail(err, MXD_E_NOMEM, "tokens");
    }
    json_decref(root);
    if (rc)
        json_decref(list);
    else
        *out = list;
    return rc;
}

static mxd_rc save_tokens(const mxd_alloc *al, const char *dir, json_t *list, mxd_err *err) {
    json_t *root = json_pack("{s:i, s:O}", "version", 1, "tokens", list);
    mxd_buf b;
    mxd_buf_init(&b, al, TOKENS_MAX_BYTES);
    if (root)
        mxd_json_write(&b, root, &(mxd_json_style){.indent = 2});
    else
        b.rc = MXD_E_NOMEM;
    mxd_rc rc = mxd_buf_rc(&b, "the tokens", err);
    if (!rc) rc = mxd_file_replace(dir, "tokens.json", mxd_buf_str(&b), b.len, err);
    mxd_buf_deinit(&b);
    json_decref(root);
    return rc;
}

static mxd_rc read_ca(const mxd_alloc *al, const char *dir, char **pem, mxd_err *err) {
    char path[PATH_BYTES];
    path_of(path, dir, "ca.pem");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return mxd_fail(
            err, MXD_E_CONFIG,
            "no cluster in '%.200s': start mlx-dist-server with --cluster-listen, or run "
            "mlx-dist-config init",
            dir);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
    char *text = MXD_NEW(al, MXD_PEM_MAX + 1, char);
    ssize_t n = text ? read(fd, text, MXD_PEM_MAX) : 0;
    close(fd);
    if (!text) return mxd_fail(err, MXD_E_NOMEM, "no memory for '%s'", path);
    if (n > 0) {
        *pem = text;
        return MXD_OK;
    }
    mxd_free(al, text);
    return mxd_fail(err, MXD_E_FORMAT, "'%s' is empty", path);
}

static mxd_rc add_locked(const mxd_alloc *al, const char *dir, const char *secret, int uses,
                         int64_t now_ms, int64_t ttl_ms, mxd_err *err) {
    json_t *list;
    MXD_TRY(load_tokens(dir, now_ms, &list, err));
    mxd_rc rc = MXD_OK;
    if (json_array_size(list) >= MXD_STATE_MAX_TOKENS)
        rc = mxd_fail(err, MXD_E_BUSY, "%d tokens are waiting to be used already",
                      MXD_STATE_MAX_TOKENS);
    else if (json_array_append_new(list,
                                   json_pack("{s:s, s:i, s:I}", "secret", secret, "uses", uses,
                                             "expires_ms", (json_int_t)(now_ms + ttl_ms))))
        rc = mxd_fail(err, MXD_E_NOMEM, "no memory for a token");
    if (!rc) rc = save_tokens(al, dir, list, err);
    json_decref(list);
    return rc;
}

mxd_rc mxd_state_add_token(const mxd_alloc *al, const char *dir, int uses, int64_t ttl_ms,
                           int64_t now_wall_ms, char token[MXD_TOKEN_MAX], mxd_err *err) {
    char *ca = NULL, secret[MXD_SECRET_MAX];
    int fd;
    MXD_TRY(read_ca(al, dir, &ca, err));
    mxd_rc rc = mxd_token_new(ca, token, secret, err);
    mxd_free(al, ca);
    if (rc) return rc;
    MXD_TRY(lock(dir, &fd, err));
    rc = add_locked(al, dir, secret, uses, now_wall_ms, ttl_ms, err);
    unlock(fd);
    return rc;
}

static mxd_rc spend_locked(const mxd_alloc *al, const char *dir, const char *secret, int64_t now_ms,
                           bool *spent, mxd_err *err) {
    json_t *list, *t;
    size_t i;
    MXD_TRY(load_tokens(dir, now_ms, &list, err));
    json_array_foreach(list, i, t) {
        if (*spent || !mxd_secret_equal(json_string_value(json_object_get(t, "secret")), secret))
            continue;
        json_int_t uses = json_integer_value(json_object_get(t, "uses"));
        *spent = json_object_set_new(t, "uses", json_integer(uses - 1)) == 0;
    }
    mxd_rc rc = *spent ? save_tokens(al, dir, list, err) : MXD_OK;
    if (rc) *spent = false; /* a use that could not be noted was not taken */
    json_decref(list);
    return rc;
}

mxd_rc mxd_state_spend(const mxd_alloc *al, const char *dir, const char *secret,
                       int64_t now_wall_ms, bool *spent, mxd_err *err) {
    int fd;
    *spent = false;
    MXD_TRY(lock(dir, &fd, err));
    mxd_rc rc = spend_locked(al, dir, secret, now_wall_ms, spent, err);
    unlock(fd);
    return rc;
}
