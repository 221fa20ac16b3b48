/* coord_ca.c - who may join: the cluster's CA, the coordinator's own certificate, enrolment. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "cluster/coord_private.h"
#include "formats/json.h"

static const char coordinator_id[] = "coordinator";

/* ------------------------------------------------------------------------------------ the files */

static mxd_rc read_pem(mxd_cluster *c, const char *name, char **out, mxd_err *err) {
    char path[MXD_PATH_MAX];
    MXD_TRY(mxd_path_join(path, c->opts.state_dir, name, err));
    return mxd_file_read(c->al, path, MXD_PEM_MAX, out, NULL, err);
}

static mxd_rc load_ca(mxd_cluster *c, mxd_err *err) {
    mxd_rc rc = read_pem(c, "ca.pem", &c->ca.cert, err);
    if (!rc) return read_pem(c, "ca.key", &c->ca.key, err);
    if (rc != MXD_E_NOTFOUND) return rc;
    const char *dir = c->opts.state_dir;
    MXD_TRY(mxd_folder_make(dir, err));
    MXD_TRY(mxd_ca_new(c->al, "mlx-distributed", &c->ca, err));
    MXD_TRY(mxd_file_replace(dir, "ca.key", c->ca.key, strlen(c->ca.key), err));
    return mxd_file_replace(dir, "ca.pem", c->ca.cert, strlen(c->ca.cert), err);
}

mxd_rc mxd_coord_identity(mxd_cluster *c, mxd_err *err) {
    if (c->opts.state_dir)
        MXD_TRY(load_ca(c, err));
    else
        MXD_TRY(mxd_ca_new(c->al, "mlx-distributed", &c->ca, err));
    return mxd_ca_issue_for(c->al, &c->ca, coordinator_id, c->opts.cert_life_s, &c->own, err);
}

/* -------------------------------------------------------------------------------------- renewing
 */

enum { LOOK_MS = 3600000 }; /* a machine may have slept: its clock of the wall goes on, ours not */

mxd_rc mxd_coord_renew_node(mxd_cluster *c, const char *node, const char *csr_pem, char **cert,
                            mxd_err *err) {
    *cert = NULL;
    if (!c->ca.key) return mxd_fail(err, MXD_E_UNSUPPORTED, "this cluster has no certificates");
    MXD_TRY(mxd_ca_sign_for(c->al, &c->ca, csr_pem, node, c->opts.cert_life_s, cert, err));
    mxd_log(MXD_LOG_INFO, "certificate_renewed", "node=%s", node);
    return MXD_OK;
}

static mxd_rc renew_own(mxd_cluster *c, mxd_err *err) {
    mxd_pem fresh = {0};
    MXD_TRY(mxd_ca_issue_for(c->al, &c->ca, coordinator_id, c->opts.cert_life_s, &fresh, err));
    mxd_rc rc = mxd_grpc_renew(c->net, &(mxd_identity){c->ca.cert, fresh.cert, fresh.key}, err);
    if (rc) {
        mxd_pem_free(c->al, &fresh);
        return rc;
    }
    mxd_pem_free(c->al, &c->own);
    c->own = fresh;
    mxd_log(MXD_LOG_INFO, "certificate_renewed", "node=%s", coordinator_id);
    return MXD_OK;
}

void mxd_coord_renew_own(mxd_cluster *c, int64_t now_ms) {
    int64_t in = LOOK_MS;
    mxd_err err = {0};
    if (!c->own.cert || now_ms < c->renew_at_ms) return;
    mxd_rc rc = mxd_cert_renew_in(c->own.cert, &in, &err);
    if (!rc && !in) rc = renew_own(c, &err);
    if (rc) mxd_log(MXD_LOG_ERROR, "certificate_not_renewed", "error=\"%s\"", err.msg);
    c->renew_at_ms = now_ms + (in > 0 && in < LOOK_MS ? in : rc ? LOOK_MS / 60 : 1000);
}

/* ------------------------------------------------------------------------------------ newcomers */

static bool reserved(const char *node) {
    return strcmp(node, coordinator_id) == 0 || strncmp(node, "local-", 6) == 0;
}

mxd_rc mxd_coord_enroll(void *cluster, const char *node, const char *secret, const char *csr_pem,
                        mxd_blob **cert, mxd_err *err) {
    mxd_cluster *c = cluster;
    if (reserved(node)) return mxd_fail(err, MXD_E_AUTH, "the name '%s' is reserved", node);
    if (!c->opts.spend_secret || !c->opts.spend_secret(c->opts.spend_ctx, secret)) {
        mxd_log(MXD_LOG_WARN, "enrolment_refused", "node=%s", node);
        return mxd_fail(err, MXD_E_AUTH,
                        "the join token is not valid (any more): make a new one with "
                        "mlx-dist-config token on the coordinator");
    }
    char *pem;
    MXD_TRY(mxd_ca_sign_for(c->al, &c->ca, csr_pem, node, c->opts.cert_life_s, &pem, err));
    size_t n = strlen(pem), k = strlen(c->ca.cert);
    *cert = mxd_blob_new(c->al, n + k);
    if (*cert) {
        memcpy((*cert)->bytes, pem, n);
        memcpy((*cert)->bytes + n, c->ca.cert, k);
        mxd_log(MXD_LOG_INFO, "enrolled", "node=%s", node);
    }
    mxd_free(c->al, pem);
    return *cert ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "certificate");
}

/* -------------------------------------------------------------------------------- local workers */

static void text_field(mxd_buf *out, const char *key, const char *value) {
    mxd_buf_printf(out, "\"%s\":", key);
    mxd_json_write_string(out, value, strlen(value), true);
    mxd_buf_putc(out, ',');
}

/* Local workers share this machine's memory, so each is told its part. */
mxd_rc mxd_coord_bootstrap(mxd_cluster *c, const char *node, mxd_buf *out, mxd_err *err) {
    const mxd_cluster_opts *o = &c->opts;
    const mxd_paces *p = &o->paces;
    mxd_pem own = {0};
    MXD_TRY(mxd_ca_issue_for(c->al, &c->ca, node, c->opts.cert_life_s, &own, err));
    mxd_buf_putc(out, '{');
    text_field(out, "node", node);
    text_field(out, "join", c->join);
    text_field(out, "listen", c->worker_listen);
    text_field(out, "ca", c->ca.cert);
    text_field(out, "cert", own.cert);
    text_field(out, "key", own.key);
    uint64_t part = o->memory_free / (uint64_t)(o->local_workers > 0 ? o->local_workers : 1);
    mxd_buf_printf(
        out,
        "\"memory_total\":%llu,\"memory_free\":%llu,\"bandwidth\":%.0f,\"ops\":%.0f,"
        "\"paces\":[%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g],\"cpus\":%.6g,\"host_cpus\":%.6g,"
        "\"log_level\":%d}\n",
        (unsigned long long)o->memory_total, (unsigned long long)part, o->bandwidth, o->ops,
        p->near_bytes_per_s, p->tile_s, p->float_ops_per_s, p->row_ops_per_s, p->values_per_s,
        p->region_s, p->handoff_s, p->duty, p->pause_s, o->cpus, o->host_cpus,
        (int)mxd_log_level_now());
    mxd_pem_free(c->al, &own);
    return mxd_buf_rc(out, "bootstrap", err);
}
