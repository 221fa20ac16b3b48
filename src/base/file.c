#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

mxd_rc mxd_path_join(char out[MXD_PATH_MAX], const char *dir, const char *name, mxd_err *err) {
    if ((size_t)snprintf(out, MXD_PATH_MAX, "%s/%s", dir, name) < MXD_PATH_MAX) return MXD_OK;
    return mxd_fail(err, MXD_E_TOOBIG, "the path '%.100s...' is too long", dir);
}

static mxd_rc make_one(const char *path, mode_t mode, mxd_err *err) {
    if (mkdir(path, mode) == 0 || errno == EEXIST) return MXD_OK;
    return mxd_fail_sys(err, MXD_E_IO, "cannot make the folder '%s'", path);
}

mxd_rc mxd_folder_make(const char *dir, mxd_err *err) {
    char path[MXD_PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s", dir) >= sizeof path)
        return mxd_fail(err, MXD_E_TOOBIG, "the path '%.100s...' is too long", dir);
    for (char *p = path + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        MXD_TRY(make_one(path, 0755, err));
        *p = '/';
    }
    return make_one(path, 0700, err);
}

static mxd_rc read_open(FILE *f, const mxd_alloc *al, const char *path, size_t max_bytes,
                        char **text, size_t *n, mxd_err *err) {
    struct stat st;
    if (fstat(fileno(f), &st) != 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
    if (st.st_size < 0 || (uint64_t)st.st_size > max_bytes)
        return mxd_fail(err, MXD_E_TOOBIG, "'%s' is longer than %zu bytes", path, max_bytes);
    size_t cap = S_ISREG(st.st_mode) ? (size_t)st.st_size : max_bytes;
    char *bytes = MXD_NEW(al, cap + 1, char);
    if (!bytes) return mxd_fail(err, MXD_E_NOMEM, "no memory to read '%s'", path);
    size_t got = fread(bytes, 1, cap, f);
    if (ferror(f)) {
        mxd_free(al, bytes);
        return mxd_fail(err, MXD_E_IO, "cannot read '%s'", path);
    }
    *text = bytes;
    if (n) *n = got;
    return MXD_OK;
}

mxd_rc mxd_file_read(const mxd_alloc *al, const char *path, size_t max_bytes, char **text,
                     size_t *n, mxd_err *err) {
    FILE *f = fopen(path, "rb");
    if (!f)
        return mxd_fail_sys(err, errno == ENOENT || errno == ENOTDIR ? MXD_E_NOTFOUND : MXD_E_IO,
                            "cannot open '%s'", path);
    mxd_rc rc = read_open(f, al, path, max_bytes, text, n, err);
    fclose(f);
    return rc;
}

mxd_rc mxd_file_replace(const char *dir, const char *name, const char *text, size_t n,
                        mxd_err *err) {
    char path[MXD_PATH_MAX], part[MXD_PATH_MAX + 8];
    MXD_TRY(mxd_path_join(path, dir, name, err));
    snprintf(part, sizeof part, "%s.part", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot write '%s'", part);
    bool ok = fchmod(fd, 0600) == 0 && write(fd, text, n) == (ssize_t)n && fsync(fd) == 0;
    ok = close(fd) == 0 && ok && rename(part, path) == 0;
    if (ok) return MXD_OK;
    mxd_rc rc = mxd_fail_sys(err, MXD_E_IO, "cannot write '%s'", path);
    unlink(part);
    return rc;
}
