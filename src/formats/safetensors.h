/* safetensors.h - the tensors of a model folder, checked before anything is believed.
 *
 * A set is all `model*.safetensors` files of one folder. Opening reads and checks every header by
 * the nine rules of docs/formats.md (no holes, no overlap, no duplicate name, products checked);
 * tensor data is read later with pread, so a file that changes under us gives E_IO and never a
 * signal.
 *
 * Trust:    the files are hostile.
 * Lifetime: model. Tensors are borrowed from the set.
 * Threads:  mxd_st_read from any thread at once; open and close from one.
 * Source:   the safetensors format description; MLX writes it without padding the header, so
 *           tensors may start at any byte.
 */
#ifndef MXD_FORMATS_SAFETENSORS_H
#define MXD_FORMATS_SAFETENSORS_H

#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"

/* clang-format off */
#define MXD_DTYPE_MAP(X)                                                                     \
    /* name in files  bytes */                                                               \
    X(BOOL,    1) X(U8,  1) X(I8,  1) X(U16, 2) X(I16, 2) X(F16, 2) X(BF16, 2) X(U32, 4)     \
    X(I32,     4) X(F32, 4) X(U64, 8) X(I64, 8) X(F8_E4M3, 1) X(F8_E8M0, 1)
/* clang-format on */

typedef enum mxd_dtype {
#define X(name, bytes) MXD_DTYPE_##name,
    MXD_DTYPE_MAP(X)
#undef X
        MXD_DTYPE_COUNT
} mxd_dtype;

const char *mxd_dtype_name(mxd_dtype d);
size_t mxd_dtype_bytes(mxd_dtype d);

typedef struct mxd_st_tensor {
    const char *name; /* borrowed from the set */
    mxd_dtype dtype;
    int n_dims;
    uint64_t shape[MXD_ST_MAX_RANK]; /* row-major: the last one runs fastest */
    uint32_t file;                   /* index of the file in the set */
    uint64_t offset, bytes;          /* in that file */
} mxd_st_tensor;

typedef struct mxd_st mxd_st;

/* Opens every `model*.safetensors` of `folder` (names in byte order).
 *   *out   owned by the caller: mxd_st_close; untouched on error
 * Errors: E_NOTFOUND no such file; E_IO; E_FORMAT a header lies (the message names file and
 * tensor); E_TOOBIG over an MXD_ST_MAX_* limit; E_NOMEM. Cost: the headers only. */
mxd_rc mxd_st_open(mxd_st **out, const mxd_alloc *al, const char *folder,
                   mxd_err *err) MXD_MUST_USE;
void mxd_st_close(mxd_st *st); /* NULL is fine */

/* NULL when there is no such tensor. O(1). */
const mxd_st_tensor *mxd_st_find(const mxd_st *st, const char *name);

size_t mxd_st_count(const mxd_st *st);
const mxd_st_tensor *mxd_st_at(const mxd_st *st, size_t i); /* in order of file, then offset */

/* Copies bytes [from, from + n) of the tensor to dst. Errors: E_IO; the file became shorter. */
mxd_rc mxd_st_read(const mxd_st *st, const mxd_st_tensor *t, uint64_t from, void *dst, size_t n,
                   mxd_err *err) MXD_MUST_USE;

/* The files of the set, in order: how many, and of file i its path, its size, and how many bytes
 * stand before the data of its first tensor. Borrowed; NULL beyond the last. */
size_t mxd_st_files(const mxd_st *st);
const char *mxd_st_file(const mxd_st *st, size_t i, uint64_t *bytes, uint64_t *header_bytes);

/* SHA-256 over the headers of all files in order: two nodes with equal hashes have tensors of the
 * same names, shapes and places. 32 bytes, borrowed. */
const uint8_t *mxd_st_hash(const mxd_st *st);

/* The check of one header, for the parser's own tests and the fuzzer: `json` is what stands
 * between the length and the data, `data_bytes` how many bytes follow it. No file needed. */
mxd_rc mxd_st_check_header(const mxd_alloc *al, const char *json, size_t n, uint64_t data_bytes,
                           mxd_err *err) MXD_MUST_USE;

#endif
