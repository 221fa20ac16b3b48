#include "cluster/worker_weights.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "formats/safetensors.h"

enum { MAX_CANDIDATES = 1024 };

void mxd_worker_weights_init(mxd_worker_weights *w) { pthread_mutex_init(&w->lock, NULL); }

void mxd_worker_weights_deinit(mxd_worker_weights *w) {
    mxd_store_close(w->store);
    w->store = NULL;
    mxd_free(w->al, w->cert);
    pthread_mutex_destroy(&w->lock);
}

void mxd_worker_weights_sources(mxd_worker_weights *w, const mxd_wire_sources *sources) {
    pthread_mutex_lock(&w->lock);
    w->sources = *sources;
    pthread_mutex_unlock(&w->lock);
}

void mxd_worker_weights_renewed(mxd_worker_weights *w, const char *cert) {
    char *copy = mxd_strdup(w->al, cert), *old = copy;
    pthread_mutex_lock(&w->lock);
    if (copy) {
        old = w->cert;
        w->cert = copy;
    }
    pthread_mutex_unlock(&w->lock);
    mxd_free(w->al, old);
}

/* ------------------------------------------------------------------------------------ on this disk
 */

static mxd_rc check_tensors(mxd_worker_weights *w, const char *folder, mxd_err *err) {
    mxd_st *st;
    MXD_TRY(mxd_st_open(&st, w->al, folder, err));
    bool same = memcmp(mxd_st_hash(st), w->welcome->tensors_hash, 32) == 0;
    mxd_st_close(st);
    if (same) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "%s holds another model than the coordinator's (its tensors differ); put the "
                    "same files there, or name a folder that has them with --models-dir",
                    folder);
}

/* A worker on the coordinator's machine reads the very same files. */
static mxd_rc check_folder(mxd_worker_weights *w, const char *folder, mxd_err *err) {
    uint8_t id[32];
    MXD_TRY(check_tensors(w, folder, err));
    if (w->opts->local || !mxd_weights_known(w->welcome->weights_id)) return MXD_OK;
    MXD_TRY(mxd_weights_id(w->al, folder, id, err));
    if (memcmp(id, w->welcome->weights_id, sizeof id) == 0) return MXD_OK;
    return mxd_fail(err, MXD_E_NOTFOUND,
                    "%s holds another model than the coordinator's (its numbers or its config.json "
                    "differ); name a folder that has the same files with --models-dir",
                    folder);
}

static bool take(mxd_worker_weights *w, const char *folder, mxd_err *err) {
    mxd_err one = {0};
    if (check_folder(w, folder, &one) != MXD_OK) {
        mxd_log(MXD_LOG_DEBUG, "folder_not_taken", "folder=%s reason=\"%s\"", folder, one.msg);
        if (!err->rc) *err = one; /* the first one is what people expect to be used */
        err->rc = one.rc;
        return false;
    }
    snprintf(w->folder, sizeof w->folder, "%s", folder);
    if (!mxd_weights_known(w->welcome->weights_id)) return true;
    mxd_err late = {0};
    if (mxd_giver_offer(w->giver, w->welcome->weights_id, w->folder, NULL, &late) != MXD_OK)
        mxd_log(MXD_LOG_WARN, "weights_not_given", "reason=\"%s\"", late.msg);
    return true;
}

static bool find(mxd_worker_weights *w, mxd_err *err) {
    const mxd_worker_opts *o = w->opts;
    char folder[MXD_WIRE_PATH];
    snprintf(folder, sizeof folder, "%s", w->welcome->folder);
    if (access(folder, R_OK) == 0 && take(w, folder, err)) return true;
    for (int k = 0; k < MAX_CANDIDATES && o->find_model; k++) {
        if (!o->find_model(o->find_ctx, w->welcome->model, k, folder, sizeof folder)) break;
        if (take(w, folder, err)) return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------- over the network
 */

static mxd_rc fetch(mxd_worker_weights *w, const mxd_stage *part,
                    bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                    mxd_err *err) {
    const mxd_worker_opts *o = w->opts;
    mxd_source sources[MXD_MAX_NODES];
    snprintf(sources[0].node, sizeof sources[0].node, "coordinator");
    snprintf(sources[0].address, sizeof sources[0].address, "%s", o->join);
    pthread_mutex_lock(&w->lock);
    int n = 1;
    for (int i = 0; i < w->sources.n && n < MXD_MAX_NODES; i++)
        if (strcmp(w->sources.list[i].node, o->node) != 0) sources[n++] = w->sources.list[i];
    char *cert = w->cert ? mxd_strdup(w->al, w->cert) : NULL;
    pthread_mutex_unlock(&w->lock);
    mxd_identity own = o->identity;
    if (cert) own.cert = cert;
    mxd_fetch_opts f = {.identity = &own,
                        .hub = o->hub,
                        .node = o->node,
                        .root = o->weights_dir,
                        .id = w->welcome->weights_id,
                        .tensors_hash = w->welcome->tensors_hash,
                        .sources = sources,
                        .n_sources = n,
                        .layer0 = part->layer0,
                        .layer1 = part->layer1,
                        .rank = part->rank,
                        .n_ranks = part->n_ranks,
                        .share = part->share,
                        .progress = progress,
                        .progress_ctx = ctx};
    uint64_t bytes = 0;
    bool had = w->store != NULL;
    mxd_rc rc = mxd_fetch(&w->store, w->al, &f, &bytes, err);
    mxd_free(w->al, cert);
    mxd_log(rc ? MXD_LOG_WARN : MXD_LOG_INFO, rc ? "weights_missing" : "weights_ready",
            "layers=%d-%d rank=%d/%d fetched_bytes=%llu folder=%s", part->layer0, part->layer1,
            part->rank, part->n_ranks, (unsigned long long)bytes,
            w->store ? mxd_store_folder(w->store) : o->weights_dir);
    if (had || !w->store) return rc;
    mxd_err late = {0};
    if (mxd_giver_offer(w->giver, w->welcome->weights_id, NULL, w->store, &late) != MXD_OK)
        mxd_log(MXD_LOG_WARN, "weights_not_given", "reason=\"%s\"", late.msg);
    return rc;
}

mxd_rc mxd_worker_weights_get(mxd_worker_weights *w, const mxd_stage *part,
                              bool (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,
                              const char **folder, mxd_err *err) {
    mxd_err why = {0};
    *folder = w->folder;
    if (w->folder[0] && check_tensors(w, w->folder, &why) == MXD_OK) return MXD_OK;
    w->folder[0] = '\0';
    if (find(w, &why)) return MXD_OK;
    if (!w->opts->weights_dir || !mxd_weights_known(w->welcome->weights_id)) {
        if (why.rc && err) *err = why;
        return why.rc ? why.rc
                      : mxd_fail(err, MXD_E_NOTFOUND,
                                 "'%s' is not on this machine: put the model's files here and name "
                                 "their folder with --models-dir",
                                 w->welcome->model);
    }
    if (why.rc) mxd_log(MXD_LOG_WARN, "folder_not_taken", "reason=\"%s\"", why.msg);
    MXD_TRY(fetch(w, part, progress, ctx, err));
    *folder = mxd_store_folder(w->store);
    return MXD_OK;
}
