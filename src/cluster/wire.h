/* wire.h - the messages of proto/cluster.proto as C structs.
 *
 * Encoding appends to a buffer; decoding fills the caller's struct and checks everything that later
 * code would otherwise have to: lengths, ranges, counts. Strings that are too long are an error,
 * never cut. Memory of the decoder comes from an arena that the caller resets.
 *
 * Trust:   heads come from peers of our own cluster, which may be broken or of another version.
 * Threads: reentrant. Errors: E_FORMAT, and says which message; E_NOMEM.
 */
#ifndef MXD_CLUSTER_WIRE_H
#define MXD_CLUSTER_WIRE_H

#include "base/buf.h"
#include "cluster/core.h"

/* Versions of proto/cluster.proto that this program speaks: all from OLDEST on. A link uses the
 * newest that both ends speak. Programs of neighbouring versions work together while OLDEST is at
 * most VERSION - 1; it is raised only when a change makes older ones impossible. */
enum { MXD_PROTOCOL_VERSION = 4, MXD_PROTOCOL_OLDEST = 4, MXD_WIRE_PATH = 1024 };

typedef struct mxd_wire_versions {
    uint32_t oldest, newest;
} mxd_wire_versions;
uint32_t mxd_wire_version(mxd_wire_versions a, mxd_wire_versions b); /* both speak it; 0: none */

typedef enum mxd_wire_kind { /* Frame.kind; never renumbered */
                             MXD_WIRE_HELLO = 1,
                             MXD_WIRE_WELCOME = 2,
                             MXD_WIRE_DROP = 3,
                             MXD_WIRE_INSTALL = 4,
                             MXD_WIRE_UNINSTALL = 5,
                             MXD_WIRE_READY = 6,
                             MXD_WIRE_FAILED = 7,
                             MXD_WIRE_HEARTBEAT = 8,
                             MXD_WIRE_STEP = 9,
                             MXD_WIRE_RESULT = 10,
                             MXD_WIRE_NACK = 11,
                             MXD_WIRE_NEIGHBOUR_DOWN = 12,
                             MXD_WIRE_LEAVE = 13,
                             MXD_WIRE_SOURCES = 14, /* this and the next two: wire_weights.h */
                             MXD_WIRE_WANT = 15,
                             MXD_WIRE_GIVE = 16,
                             MXD_WIRE_RENEW = 17,
                             MXD_WIRE_CERTIFICATE = 18,
                             MXD_WIRE_ECHO = 20, /* sent back as it is: a worker measures its way */
} mxd_wire_kind;

typedef struct mxd_welcome {
    char model[256], folder[MXD_WIRE_PATH];
    uint8_t tensors_hash[32];
    uint8_t weights_id[32]; /* weights.h; all 0: unknown, and weights do not travel */
    int ctx, slots, max_rows, activations, threads, kv;
    uint32_t version; /* that this link uses */
    char backend[16], kernels[16];
} mxd_welcome;

typedef struct mxd_wire_failure { /* DROP, FAILED, NACK: what of it applies */
    uint64_t epoch, step;
    mxd_rc rc; /* MXD_OK only in DROP */
    char text[MXD_CORE_TEXT];
} mxd_wire_failure;

typedef struct mxd_wire_step {
    uint64_t epoch, step;
    int n_runs, n_rows;
    mxd_core_run runs[MXD_MAX_STEP_RUNS]; /* ids and how point below */
    mxd_sampling how[MXD_MAX_STEP_RUNS];  /* bias points into the decoder's arena */
    int32_t ids[MXD_MAX_STEP_TOKENS];
} mxd_wire_step;

typedef struct mxd_wire_result {
    mxd_core_result result; /* runs points below */
    struct mxd_core_result_run runs[MXD_MAX_STEP_RUNS];
} mxd_wire_result;

/* Append the head; failures stick in out->rc. */
void mxd_wire_put_hello(mxd_buf *out, const mxd_node_info *m);
void mxd_wire_put_welcome(mxd_buf *out, const mxd_welcome *m);
void mxd_wire_put_drop(mxd_buf *out, mxd_rc rc, const char *text);
void mxd_wire_put_install(mxd_buf *out, const mxd_stage *m);
void mxd_wire_put_uninstall(mxd_buf *out, uint64_t epoch);
void mxd_wire_put_ready(mxd_buf *out, const mxd_core_ready *m);
void mxd_wire_put_failed(mxd_buf *out, uint64_t epoch, mxd_rc rc, const char *text);
void mxd_wire_put_nack(mxd_buf *out, uint64_t epoch, uint64_t step, mxd_rc rc, const char *text);
void mxd_wire_put_heartbeat(mxd_buf *out, const mxd_core_beat *m);
void mxd_wire_put_step(mxd_buf *out, uint64_t epoch, uint64_t step, const mxd_core_run *runs,
                       int n_runs);
void mxd_wire_put_result(mxd_buf *out, const mxd_core_result *m);
void mxd_wire_put_neighbour_down(mxd_buf *out, const mxd_core_neighbour *m);
void mxd_wire_put_leave(mxd_buf *out);
void mxd_wire_put_renew(mxd_buf *out, const char *csr_pem);
void mxd_wire_put_certificate(mxd_buf *out, const char *cert_pem);

/* Read a head of n bytes. `a`: scratch of MXD_WIRE_SCRATCH bytes, reset by the caller; a head that
 * unfolds to more is E_FORMAT. */
enum { MXD_WIRE_SCRATCH = 1 << 20 };
mxd_rc mxd_wire_get_hello(mxd_node_info *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_welcome(mxd_welcome *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_drop(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_install(mxd_stage *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_uninstall(uint64_t *epoch, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_ready(mxd_core_ready *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_failed(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n,
                           mxd_err *err);
mxd_rc mxd_wire_get_nack(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_heartbeat(mxd_core_beat *m, mxd_arena *a, const void *p, size_t n,
                              mxd_err *err);
mxd_rc mxd_wire_get_step(mxd_wire_step *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_result(mxd_wire_result *m, mxd_arena *a, const void *p, size_t n, mxd_err *err);
mxd_rc mxd_wire_get_neighbour_down(mxd_core_neighbour *m, mxd_arena *a, const void *p, size_t n,
                                   mxd_err *err);
/* PEM texts live in the arena. */
mxd_rc mxd_wire_get_renew(const char **csr_pem, mxd_arena *a, const void *p, size_t n,
                          mxd_err *err);
mxd_rc mxd_wire_get_certificate(const char **cert_pem, mxd_arena *a, const void *p, size_t n,
                                mxd_err *err);

#endif
