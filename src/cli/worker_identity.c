#include "cli/worker_identity.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "cli/main_kit.h"

enum { ENROLL_MS = 15000 };

/* ----------------------------------------------------------------------------------------- jobs */

/* Of a job that starts the same command many times (mpirun, srun): which one this is. Its workers
 * have one command line and often one home folder, but each needs a name and keys of its own. -1:
 * there is no job. */
static long job_rank(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};
    for (size_t i = 0; i < MXD_COUNT(names); i++) {
        const char *text = getenv(names[i]);
        char *end;
        long rank = text ? strtol(text, &end, 10) : -1;
        if (text && *text && !*end && rank >= 0 && rank < MXD_MAX_NODES) return rank;
    }
    return -1;
}

/* ---------------------------------------------------------------------------------------- files */

static mxd_rc folder(const mxd_options *o, char out[MXD_PATH_MAX], mxd_err *err) {
    char state[1024], name[32] = "worker";
    long rank = job_rank();
    if (rank >= 0) snprintf(name, sizeof name, "worker-%ld", rank);
    MXD_TRY(mxd_main_state_dir(o, state, err));
    MXD_TRY(mxd_path_join(out, state, name, err));
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
    char suffix[24] = "";
    const char *name = mxd_opt_text(o, MXD_OPT_NAME);
    long rank = job_rank();
    if (rank >= 0) snprintf(suffix, sizeof suffix, "-%ld", rank);
    if (!name && gethostname(host, sizeof host - 1) == 0) name = host;
    size_t n = 0, most = MXD_MAX_NODE_NAME - 1 - strlen(suffix);
    for (const char *p = name ? name : host; *p && n < most; p++) {
        bool plain = isalnum((unsigned char)*p) || *p == '-' || (*p == '.' && n > 0);
        node[n++] = plain ? (char)tolower((unsigned char)*p) : '-';
    }
    snprintf(node + n, MXD_MAX_NODE_NAME - n, "%s%s", n ? "" : "worker", suffix);
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

static mxd_rc enrol(mxd_worker_identity *id, const mxd_options *o, const char *join,
                    const char *token, const char *dir, mxd_err *err) {
    choose_name(o, id->node);
    MXD_TRY(mxd_enroll(&mxd_alloc_libc, join, token, id->node, ENROLL_MS, &id->pem, &id->ca, err));
    MXD_TRY(keep(dir, "node.key", id->pem.key, err));
    MXD_TRY(keep(dir, "node.pem", id->pem.cert, err));
    MXD_TRY(keep(dir, "ca.pem", id->ca, err));
    return keep(dir, "node.id", id->node, err);
}

static mxd_rc no_token(mxd_err *err) {
    return mxd_fail(err, MXD_E_AUTH,
                    "this machine has no certificate of the cluster yet: run `mlx-dist-config "
                    "token` on the server and give it with --token");
}

mxd_rc mxd_worker_identity_cluster(const mxd_options *o, unsigned char fingerprint[32], bool *given,
                                   mxd_err *err) {
    char dir[MXD_PATH_MAX], token[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX];
    MXD_TRY(folder(o, dir, err));
    MXD_TRY(read_token(o, token, err));
    *given = token[0] != '\0';
    if (*given) return mxd_token_parse(token, fingerprint, secret, err);
    char *ca = read_file(dir, "ca.pem");
    mxd_rc rc = ca ? mxd_cert_fingerprint(ca, fingerprint, err) : no_token(err);
    mxd_free(&mxd_alloc_libc, ca);
    return rc;
}

mxd_rc mxd_worker_identity_get(mxd_worker_identity *id, const mxd_options *o, const char *join,
                               mxd_err *err) {
    char dir[MXD_PATH_MAX], token[MXD_TOKEN_MAX];
    *id = (mxd_worker_identity){0};
    MXD_TRY(folder(o, dir, err));
    MXD_TRY(read_token(o, token, err));
    bool kept = load_kept(id, dir);
    if (kept && !token[0]) return MXD_OK;
    if (!token[0]) return no_token(err);
    mxd_worker_identity own = *id;
    *id = (mxd_worker_identity){0};
    mxd_rc rc = enrol(id, o, join, token, dir, err);
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
