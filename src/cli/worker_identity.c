#include "cli/worker_identity.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "cli/main_kit.h"

enum { ENROLL_MS = 15000 };

/* ---------------------------------------------------------------------------------------- files */

static mxd_rc folder(const mxd_options *o, char out[MXD_PATH_MAX], mxd_err *err) {
    char state[1024];
    MXD_TRY(mxd_main_state_dir(o, state, err));
    MXD_TRY(mxd_path_join(out, state, "worker", err));
    return mxd_folder_make(out, err);
}

/* NULL when there is no such file, or it cannot be read: then the worker enrols anew. */
static char *read_file(const char *dir, const char *name) {
    char path[MXD_PATH_MAX], *text;
    if (mxd_path_join(path, dir, name, NULL) != MXD_OK) return NULL;
    return mxd_file_read(&mxd_alloc_libc, path, MXD_PEM_MAX, &text, NULL, NULL) == MXD_OK ? text
                                                                                          : NULL;
}

static mxd_rc keep(const char *dir, const char *name, const char *text, mxd_err *err) {
    return mxd_file_replace(dir, name, text, strlen(text), err);
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
        char *file;
        MXD_TRY(mxd_file_read(&mxd_alloc_libc, path, MXD_PEM_MAX, &file, NULL, err));
        snprintf(token, MXD_TOKEN_MAX, "%.*s", (int)strcspn(file, " \r\n\t"), file);
        mxd_free(&mxd_alloc_libc, file);
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
    MXD_TRY(keep(dir, "node.key", id->pem.key, err));
    MXD_TRY(keep(dir, "node.pem", id->pem.cert, err));
    MXD_TRY(keep(dir, "ca.pem", id->ca, err));
    return keep(dir, "node.id", id->node, err);
}

mxd_rc mxd_worker_identity_get(mxd_worker_identity *id, const mxd_options *o, mxd_err *err) {
    char dir[MXD_PATH_MAX], token[MXD_TOKEN_MAX];
    *id = (mxd_worker_identity){0};
    MXD_TRY(folder(o, dir, err));
    MXD_TRY(read_token(o, token, err));
    bool kept = load_kept(id, dir);
    if (kept && !token[0]) return MXD_OK;
    if (!token[0])
        return mxd_fail(err, MXD_E_AUTH,
                        "this machine has no certificate of the cluster yet: run `mlx-dist-config "
                        "token` on the server and give it with --token");
    mxd_worker_identity own = *id;
    *id = (mxd_worker_identity){0};
    mxd_rc rc = enrol(id, o, token, dir, err);
    if (rc == MXD_E_AUTH &&
        kept) { /* a service that starts again with the token of its first start */
        mxd_log(MXD_LOG_INFO, "token_refused", "node=%s using=certificate error=\"%s\"", own.node,
                err->msg);
        mxd_worker_identity_deinit(id);
        *id = own;
        *err = (mxd_err){0};
        return MXD_OK;
    }
    mxd_worker_identity_deinit(&own);
    return rc;
}

void mxd_worker_identity_renewed(void *options, const char *cert_pem) {
    char dir[MXD_PATH_MAX];
    mxd_err err = {0};
    mxd_rc rc = folder(options, dir, &err);
    if (!rc) rc = keep(dir, "node.pem", cert_pem, &err);
    if (rc) mxd_log(MXD_LOG_ERROR, "certificate_not_kept", "error=\"%s\"", err.msg);
}

void mxd_worker_identity_deinit(mxd_worker_identity *id) {
    mxd_pem_free(&mxd_alloc_libc, &id->pem);
    mxd_free(&mxd_alloc_libc, id->ca);
    id->ca = NULL;
}
