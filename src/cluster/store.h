/* store.h - weights that came over the network, in a folder of their own.
 *
 * root/<id in hex>/ looks like the model's folder: the same names and sizes, but only the pieces
 * that this node has needed so far are there; the rest of each file is a hole. Beside each file
 * NAME stands NAME.have, which says which pieces are there. A piece counts as there on disk only
 * after its bytes are durable: the record is written, whole and at once, behind them. So a node
 * that stops at any time finds what it had, and never takes a hole for weights.
 *
 *   MISSING --put--> THERE --sync--> THERE on disk
 *
 * Trust: what is put was checked by the caller. Records are checked (size, CRC32C); one that is not
 * right counts as empty. Two processes with one root may both write: the same bytes at the same
 * places; a record of one may lose pieces of the other, which are fetched again.
 * Threads: put, sync and reserve from one thread; has, read, and reading counts from any.
 */
#ifndef MXD_CLUSTER_STORE_H
#define MXD_CLUSTER_STORE_H

#include "cluster/weights.h"

typedef struct mxd_store mxd_store;

/* Makes the folder and its files where they are missing; `list` is copied.
 * Errors: E_IO, E_TOOBIG a path; E_NOMEM. */
mxd_rc mxd_store_open(mxd_store **out, const mxd_alloc *al, const char *root, const uint8_t id[32],
                      const mxd_weights_list *list, mxd_err *err) MXD_MUST_USE;
void mxd_store_close(mxd_store *s); /* without a sync; NULL is fine */

const char *mxd_store_folder(const mxd_store *s);
const mxd_weights_list *mxd_store_list(const mxd_store *s);

/* Whether a piece is there; false for pieces that the file does not have. */
bool mxd_store_has(mxd_store *s, uint32_t file, uint64_t piece);

/* How long a piece is: MXD_WEIGHTS_PIECE, or less at the end of a file; 0: there is none. */
uint32_t mxd_store_piece_bytes(const mxd_store *s, uint32_t file, uint64_t piece);

/* Looks whether so many more bytes fit on the disk, beside what is reserved already, and keeps the
 * room for one piece at a time from then on. E_NOFIT: they do not; names the bytes. */
mxd_rc mxd_store_make_room(mxd_store *s, uint64_t bytes, mxd_err *err) MXD_MUST_USE;
void mxd_store_reserve(mxd_store *s, uint32_t file, uint64_t piece);

/* Writes a piece; n as mxd_store_piece_bytes says. Errors: E_NOFIT the disk is full; E_IO. */
mxd_rc mxd_store_put(mxd_store *s, uint32_t file, uint64_t piece, const void *bytes, size_t n,
                     mxd_err *err) MXD_MUST_USE;

/* Makes what was put durable, then records it. Errors: E_IO, E_NOMEM. */
mxd_rc mxd_store_sync(mxd_store *s, mxd_err *err) MXD_MUST_USE;

#endif
