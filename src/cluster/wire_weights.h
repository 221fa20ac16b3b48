/* wire_weights.h - the messages of proto/weights.proto as C structs; rules as in wire.h. */
#ifndef MXD_CLUSTER_WIRE_WEIGHTS_H
#define MXD_CLUSTER_WIRE_WEIGHTS_H

#include "cluster/weights.h"
#include "cluster/wire.h"

enum { MXD_MAX_SUMS = 256 }; /* of one answer */

typedef struct mxd_source { /* who may be asked */
    char node[MXD_MAX_NODE_NAME], address[MXD_CORE_ADDRESS];
} mxd_source;

typedef struct mxd_wire_sources {
    int n;
    mxd_source list[MXD_MAX_NODES];
} mxd_wire_sources;

typedef enum mxd_want_what {
    MXD_WANT_LIST = 1,
    MXD_WANT_SUMS = 2,
    MXD_WANT_DATA = 3
} mxd_want_what;

typedef struct mxd_wire_want {
    uint8_t id[32];
    mxd_want_what what;
    uint32_t file;
    uint64_t offset; /* a multiple of MXD_WEIGHTS_PIECE */
    uint32_t length; /* DATA: 1 to MXD_WEIGHTS_PIECE bytes; SUMS: 1 to MXD_MAX_SUMS pieces */
} mxd_wire_want;

typedef struct mxd_wire_give {
    mxd_want_what what;
    uint32_t file;
    uint64_t offset;
    uint32_t length;
    mxd_rc rc; /* not OK: nothing is given, text says why */
    char text[MXD_CORE_TEXT];
    const mxd_weights_file *files; /* LIST: [n_files], checked; in the decoder's arena */
    int n_files;
    const uint8_t *sums; /* SUMS: [32 * length], likewise */
} mxd_wire_give;

void mxd_wire_put_sources(mxd_buf *out, const mxd_wire_sources *m);
void mxd_wire_put_want(mxd_buf *out, const mxd_wire_want *m);
void mxd_wire_put_give(mxd_buf *out, const mxd_wire_give *m);

mxd_rc mxd_wire_get_sources(mxd_wire_sources *m, mxd_arena *a, const void *p, size_t n,
                            mxd_err *err);
mxd_rc mxd_wire_get_want(mxd_wire_want *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_give(mxd_wire_give *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);

#endif
