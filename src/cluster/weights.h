/* weights.h - the files of a model as they travel between nodes.
 *
 * The content of a folder has an id: what its config.json says, which tensors there are, and a
 * sample of each tensor's numbers. Folders of one id hold one model, whatever they are called; it
 * is what a worker compares before it uses files on its own disk. Files are cut into pieces of 256
 * KiB, which are checked one by one, by the coordinator's SHA-256, when they come over the network.
 *
 * Only config.json and model*.safetensors travel: it is all that computing needs.
 *
 * Trust: folders and lists are hostile. Threads: reentrant.
 */
#ifndef MXD_CLUSTER_WEIGHTS_H
#define MXD_CLUSTER_WEIGHTS_H

#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"

enum {
    MXD_WEIGHTS_PIECE = 256 << 10,
    MXD_WEIGHTS_NAME = 128,
    MXD_WEIGHTS_MAX_FILES = MXD_ST_MAX_SHARDS + 1,
};

#define MXD_WEIGHTS_MAX_BYTES ((uint64_t)1 << 44) /* of one model: 16 TiB */

typedef struct mxd_weights_file {
    char name[MXD_WEIGHTS_NAME]; /* "config.json", "model*.safetensors": never a path */
    uint64_t bytes;
    uint64_t head; /* the first bytes, which every node needs: the header; all of config.json */
} mxd_weights_file;

typedef struct mxd_weights_list {
    mxd_weights_file *files; /* [n], config.json first, then by name */
    int n;
} mxd_weights_list;

/* The id of a folder's content. Cost: the headers, and 4 KiB of each tensor. Errors: those of
 * mxd_st_open; E_NOTFOUND no config.json; E_IO. */
mxd_rc mxd_weights_id(const mxd_alloc *al, const char *folder, uint8_t id[32],
                      mxd_err *err) MXD_MUST_USE;

bool mxd_weights_known(const uint8_t id[32]); /* 0 stands for: unknown */

/* The files of a folder. Errors: as mxd_weights_id. Free with mxd_weights_list_free. */
mxd_rc mxd_weights_list_get(const mxd_alloc *al, const char *folder, mxd_weights_list *out,
                            mxd_err *err) MXD_MUST_USE;
void mxd_weights_list_free(const mxd_alloc *al, mxd_weights_list *list);
mxd_rc mxd_weights_list_copy(const mxd_alloc *al, const mxd_weights_file *files, int n,
                             mxd_weights_list *out, mxd_err *err) MXD_MUST_USE;

/* A list from another node: names that may become files here, sizes that can be. E_FORMAT. */
mxd_rc mxd_weights_check_files(const mxd_weights_file *files, int n, mxd_err *err) MXD_MUST_USE;

uint64_t mxd_weights_pieces(uint64_t bytes); /* of a file */

/* SHA-256. False: OpenSSL failed. */
bool mxd_weights_sum(const void *bytes, size_t n, uint8_t sum[32]);

#endif
