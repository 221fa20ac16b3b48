/* file.h - small private files: read whole, or replaced whole.
 *
 * Trust: contents are the caller's to check. Threads: reentrant; two writers of one file leave one
 * of the two contents, never a mixture. Errors name the path.
 */
#ifndef MXD_BASE_FILE_H
#define MXD_BASE_FILE_H

#include "base/alloc.h"

enum { MXD_PATH_MAX = 1200 };

/* "dir/name" in out. Errors: E_TOOBIG. */
mxd_rc mxd_path_join(char out[MXD_PATH_MAX], const char *dir, const char *name,
                     mxd_err *err) MXD_MUST_USE;

/* The folder (0700) and those above it that are missing (0755). Errors: E_IO, E_TOOBIG. */
mxd_rc mxd_folder_make(const char *dir, mxd_err *err) MXD_MUST_USE;

/* All of a file of at most max_bytes, with a NUL behind.
 *   *text   owned by the caller: mxd_free; *n may be NULL
 * Errors: E_NOTFOUND, E_IO, E_TOOBIG, E_NOMEM. */
mxd_rc mxd_file_read(const mxd_alloc *al, const char *path, size_t max_bytes, char **text,
                     size_t *n, mxd_err *err) MXD_MUST_USE;

/* Writes dir/name (0600) beside, makes it durable, and renames: a half-written file never has the
 * right name. Errors: E_IO, E_TOOBIG. */
mxd_rc mxd_file_replace(const char *dir, const char *name, const char *text, size_t n,
                        mxd_err *err) MXD_MUST_USE;

#endif
