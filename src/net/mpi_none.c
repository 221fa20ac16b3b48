/* mpi_none.c - in the place of mpi.c in a build without MPI. */
#include "net/transport.h"

static mxd_rc none(mxd_err *err) {
    return mxd_fail(err, MXD_E_UNSUPPORTED,
                    "this build has no MPI; install Open MPI (libopenmpi-dev, brew install "
                    "open-mpi) and configure with -Dmpi=enabled");
}

mxd_rc mxd_mpi_open(mxd_transport **out, const mxd_transport_opts *opts, mxd_err *err) {
    (void)out, (void)opts;
    return none(err);
}

mxd_rc mxd_mpi_place(int *rank, int *size, mxd_err *err) {
    *rank = *size = 0;
    return none(err);
}
