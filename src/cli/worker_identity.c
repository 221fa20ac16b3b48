#include "cli/worker_identity.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/main_kit.h"

enum { ENROLL_MS = 15000, PATH_CAP = 1200 };

/* ---------------------------------------------------------------------------------------- files */

static mxd_rc folder(const mxd_options *o, char out[PATH_CAP], mxd_err *err) {
    char state[1024];
    MXD_TRY(mxd_main_state_dir(o, state, err));
    for (char *p = state + 1; *p; p++) { /* every part of the path that is not there yet */
        if (*p != '/') continue;
        *p = '\0';
        mkdir(state, 0700);
        *p = '/';
    }
    mkdir(state, 0700);
    snprintf(out, PATH_CAP, "%s/worker", state);
    if (mkdir(out, 0700) != 0 && errno != EEXIST)
        return mxd_fail_sys(err, MXD_E_IO, "cannot make %s for this worker's key", out);
    return MXD_OK;
}

static char *read_file(const char *dir, const char *name) {
    char path[PATH_CAP + 32];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    char *text = MXD_NEW(&mxd_alloc_libc, MXD_PEM_MAX + 1, char);
    size_t n = text ? fread(text, 1, MXD_PEM_MAX, f) : 0;
    fclose(f);
    if (n) return text;
    mxd_free(&mxd_alloc_libc, text);
    return NULL;
}

static mxd_rc write_file(const char *dir, const char *name, const char *text, mxd_err *err) {
    char path[PATH_CAP + 32], part[PATH_CAP + 40];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    snprintf(part, sizeof part, "%s.part", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot write %s", part);
    size_t n = strlen(text);
    bool ok = write(fd, text, n) == (ssize_t)n && fsync(fd) == 0;
    ok = close(fd) == 0 && ok && rename(part, path) == 0;
    return ok ? MXD_OK : mxd_fail_sys(err, MXD_E_IO, "cannot write %s", path);
}

/* ---------------------------------------------------------------------------------------- names */

/* A node id is a DNS label or several: what else stands in the name becomes '-'. */
static void choose_name(const mxd_options *o, char node[MXD_MAX_NODE_NAME]) {
    char host[256] = "worker";
    const char *name = mxd_opt_text(o, MXD_OPT_NAME);
    if (!name && gethostname(host, sizeof host - 1) == 0) name = host;
    size_t n = 0;
    for (const char *p = name ? name : host; *p && n + 1 < MXD_MAX_NODE_NAME; p++) {
        bool plain = isalnum((unsigned char)*p) || *p == '-' || (*p == '.' && n > 0);
        node[n++] = plain ? (char)tolower((unsigned char)*p) : '-';
    }
    node[n] = '\0';
    if (!n) snprintf(node, MXD_MAX_NODE_NAME, "worker");
}

static mxd_rc read_token(const mxd_options *o, char token[MXD_TOKEN_MAX], mxd_err *err) {
    const char *text = mxd_opt_text(o, MXD_OPT_TOKEN), *path = mxd_opt_text(o, MXD_OPT_TOKEN_FILE);
    token[0] = '\0';
    if (!text && path) {
        FILE *f = fopen(path, "rb");
        if (!f) return mxd_fail_sys(err, MXD_E_IO, "cannot read the token file '%s'", path);
        size_t n = fread(token, 1, MXD_TOKEN_MAX - 1, f);
        fclose(f);
        token[n] = '\0';
        token[strcspn(token, " \r\n\t")] = '\0';
    } else if (text) {
        snprintf(token, MXD_TOKEN_MAX, "%s", text);
    }
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- enrolling
 */

static bool load_kept(mxd_worker_identity *id, const char *dir) {
    char *node = read_file(dir, "node.id");
    id->ca = read_file(dir, "ca.pem");
    id->pem.cert = read_file(dir, "node.pem");
    id->pem.key = read_file(dir, "node.key");
    bool all = node && id->ca && id->pem.cert && id->pem.key && strlen(node) < sizeof id->node;
    if (all) snprintf(id->node, sizeof id->node, "%s", node);
    mxd_free(&mxd_alloc_libc, node);
    return all;
}

static mxd_rc enrol(mxd_worker_identity *id, const mxd_options *o, const char *token,
                    const char *dir, mxd_err *err) {
    choose_name(o, id->node);
    MXD_TRY(mxd_enroll(&mxd_alloc_libc, mxd_opt_text(o, MXD_OPT_JOIN), token, id->node, ENROLL_MS,
                       &id->pem, &id->ca, err));
    MXD_TRY(write_file(dir, "node.key", id->pem.key, err));
    MXD_TRY(write_file(dir, "node.pem", id->pem.cert, err));
    MXD_TRY(write_file(dir, "ca.pem", id->ca, err));
    return write_file(dir, "node.id", id->node, err);
}

mxd_rc mxd_worker_identity_get(mxd_worker_identity *id, const mxd_options *o, mxd_err *err) {
    char dir[PATH_CAP], token[MXD_TOKEN_MAX];
    *id = (mxd_worker_identity){0};
    MXD_TRY(folder(o, dir, err));
    MXD_TRY(read_token(o, token, err));
    bool kept = load_kept(id, dir);
    if (kept && !token[0]) return MXD_OK;
    if (!token[0])
        return mxd_fail(err, MXD_E_AUTH,
                        "this machine has no certificate of the cluster yet: run `mlx-dist-config "
                        "token` on the server and give it with --token");
    mxd_worker_identity_deinit(id);
    return enrol(id, o, token, dir, err);
}

void mxd_worker_identity_deinit(mxd_worker_identity *id) {
    mxd_pem_free(&mxd_alloc_libc, &id->pem);
    mxd_free(&mxd_alloc_libc, id->ca);
    id->ca = NULL;
}
