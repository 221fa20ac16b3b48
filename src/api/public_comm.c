/* public_comm.c - the communicators of include/mlx_distributed.h over net/comm.h. */
#include <string.h>

#include "api/public_kit.h"
#include "net/comm.h"

enum { SPIN_US = 50 };

struct mlxd_comm {
    mxd_comm *comm;
};

_Static_assert((int)MLXD_SUM == (int)MXD_REDUCE_SUM && (int)MLXD_MAX == (int)MXD_REDUCE_MAX,
               "mlxd_reduce follows mxd_reduce");

static mxd_rc check_identity(const mlxd_comm_options *o, mxd_err *err) {
    int given = (o->ca_pem != NULL) + (o->cert_pem != NULL) + (o->key_pem != NULL);
    if (given != 0 && given != 3)
        return mxd_fail(err, MXD_E_INVAL,
                        "a certificate needs all of ca_pem, cert_pem and key_pem: %d are given",
                        given);
    if (given && o->insecure)
        return mxd_fail(err, MXD_E_INVAL, "both a certificate and insecure: choose one");
    return MXD_OK;
}

static mxd_rc check_transport(const mlxd_comm_options *o, mxd_err *err) {
    if (!o->transport || !strcmp(o->transport, "grpc") || !strcmp(o->transport, "mpi"))
        return MXD_OK;
    return mxd_fail(err, MXD_E_INVAL, "transport '%.40s': must be grpc or mpi", o->transport);
}

static mxd_rc open_comm(mlxd_comm *c, const mlxd_comm_options *o, mxd_err *err) {
    MXD_TRY(check_identity(o, err));
    MXD_TRY(check_transport(o, err));
    const mxd_comm_opts co = {
        .group = o->group ? o->group : "default",
        .rank = o->rank,
        .size = o->size,
        .addresses = o->addresses,
        .nodes = o->nodes,
        .identity = {.ca = o->ca_pem, .cert = o->cert_pem, .key = o->key_pem},
        .insecure = o->insecure != 0,
        .mpi = o->transport && strcmp(o->transport, "mpi") == 0,
        .connect_ms = o->connect_timeout_ms,
        .reconnect_ms = o->reconnect_timeout_ms,
        .spin_us = o->spin_us ? o->spin_us > 0 ? o->spin_us : 0 : SPIN_US,
        .no_shared_memory = o->no_shared_memory != 0,
    };
    return mxd_comm_open(&c->comm, &mxd_alloc_libc, &co, err);
}

int mlxd_comm_open(mlxd_comm **out, const mlxd_comm_options *options, mlxd_error *err) {
    mlxd_comm_options o;
    mxd_err e = {0};
    if (!public_take_struct(&o, sizeof o, options, options->struct_size))
        return public_report(mxd_fail(&e, MXD_E_INVAL, "struct_size is not set"), &e, err);
    mlxd_comm *c = MXD_NEW(&mxd_alloc_libc, 1, mlxd_comm);
    mxd_rc rc = c ? open_comm(c, &o, &e) : mxd_fail(&e, MXD_E_NOMEM, "communicator");
    if (rc)
        mlxd_comm_close(c);
    else
        *out = c;
    return public_report(rc, &e, err);
}

void mlxd_comm_close(mlxd_comm *comm) {
    if (!comm) return;
    mxd_comm_close(comm->comm);
    mxd_free(&mxd_alloc_libc, comm);
}

int mlxd_comm_rank(const mlxd_comm *comm) { return mxd_comm_rank(comm->comm); }
int mlxd_comm_size(const mlxd_comm *comm) { return mxd_comm_size(comm->comm); }

int mlxd_comm_send(mlxd_comm *comm, int peer, uint32_t tag, const void *data, size_t bytes,
                   int64_t timeout_ms, mlxd_error *err) {
    mxd_err e = {0};
    return public_report(mxd_comm_send(comm->comm, peer, tag, data, bytes, timeout_ms, &e), &e,
                         err);
}

int mlxd_comm_recv(mlxd_comm *comm, int peer, uint32_t tag, void *data, size_t capacity,
                   size_t *bytes, int64_t timeout_ms, mlxd_error *err) {
    mxd_err e = {0};
    return public_report(
        mxd_comm_recv(comm->comm, peer, tag, data, capacity, bytes, timeout_ms, &e), &e, err);
}

int mlxd_comm_all_reduce(mlxd_comm *comm, float *x, size_t n, int reduce, int64_t timeout_ms,
                         mlxd_error *err) {
    mxd_err e = {0};
    if (reduce != MLXD_SUM && reduce != MLXD_MAX)
        return public_report(mxd_fail(&e, MXD_E_INVAL, "reduce %d: must be 0 or 1", reduce), &e,
                             err);
    return public_report(mxd_comm_all_reduce(comm->comm, x, n, (mxd_reduce)reduce, timeout_ms, &e),
                         &e, err);
}

int mlxd_comm_exchange(mlxd_comm *comm, float *all, const size_t *n_each, int64_t timeout_ms,
                       mlxd_error *err) {
    mxd_err e = {0};
    return public_report(mxd_comm_exchange(comm->comm, all, n_each, timeout_ms, &e), &e, err);
}

int mlxd_comm_broadcast(mlxd_comm *comm, int root, void *data, size_t bytes, int64_t timeout_ms,
                        mlxd_error *err) {
    mxd_err e = {0};
    return public_report(mxd_comm_broadcast(comm->comm, root, data, bytes, timeout_ms, &e), &e,
                         err);
}

int mlxd_comm_gather(mlxd_comm *comm, int root, const void *data, size_t bytes, void *out,
                     int64_t timeout_ms, mlxd_error *err) {
    mxd_err e = {0};
    return public_report(mxd_comm_gather(comm->comm, root, data, bytes, out, timeout_ms, &e), &e,
                         err);
}

int mlxd_comm_barrier(mlxd_comm *comm, int64_t timeout_ms, mlxd_error *err) {
    mxd_err e = {0};
    return public_report(mxd_comm_barrier(comm->comm, timeout_ms, &e), &e, err);
}

int mlxd_comm_get_stats(mlxd_comm *comm, mlxd_comm_stats *out, mlxd_error *err) {
    mxd_err e = {0};
    size_t size = out->struct_size;
    if (size < sizeof size)
        return public_report(mxd_fail(&e, MXD_E_INVAL, "struct_size is not set"), &e, err);
    mxd_comm_stats s;
    mxd_comm_stats_get(comm->comm, &s);
    const mlxd_comm_stats all = {.struct_size = size,
                                 .latency_us = s.latency_us,
                                 .bandwidth_bytes_per_s = s.bandwidth_bytes_per_s,
                                 .shared_memory_peers = s.shared_memory_peers,
                                 .reconnects = s.reconnects,
                                 .resent_frames = s.resent_frames};
    memcpy(out, &all, size < sizeof all ? size : sizeof all);
    return public_report(MXD_OK, &e, err);
}
