/* Heads of the messages with which weights travel: either an error, or values in their ranges. The
 * first byte chooses the message. */
#include <stdlib.h>
#include <string.h>

#include "cluster/wire_weights.h"
#include "fuzz.h"

static void check_give(const mxd_wire_give *g) {
    if (g->rc) return;
    if (g->what == MXD_WANT_LIST && mxd_weights_check_files(g->files, g->n_files, NULL)) abort();
    if (g->what == MXD_WANT_SUMS && (!g->sums || g->length > MXD_MAX_SUMS)) abort();
    static uint8_t copy[32 * MXD_MAX_SUMS];
    if (g->what == MXD_WANT_SUMS) memcpy(copy, g->sums, 32 * (size_t)g->length);
    if (g->what != MXD_WANT_LIST && (!g->length || g->offset % MXD_WEIGHTS_PIECE)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static union {
        mxd_wire_sources sources;
        mxd_wire_want want;
        mxd_wire_give give;
    } m;
    mxd_arena a;
    mxd_err err = {0};
    if (!size || mxd_arena_init(&a, &mxd_alloc_libc, MXD_WIRE_SCRATCH, &err) != MXD_OK) return 0;
    mxd_rc rc;
    if (data[0] % 3 == 0) {
        rc = mxd_wire_get_sources(&m.sources, &a, data + 1, size - 1, &err);
        if (!rc && (m.sources.n < 0 || m.sources.n > MXD_MAX_NODES)) abort();
    } else if (data[0] % 3 == 1) {
        rc = mxd_wire_get_want(&m.want, &a, data + 1, size - 1, &err);
        if (!rc && m.want.what != MXD_WANT_LIST && m.want.length > MXD_WEIGHTS_PIECE) abort();
    } else {
        rc = mxd_wire_get_give(&m.give, &a, data + 1, size - 1, &err);
        if (!rc) check_give(&m.give);
    }
    if (rc && !err.msg[0]) abort();
    mxd_arena_deinit(&a);
    return 0;
}
