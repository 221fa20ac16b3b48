#include "cluster/weights.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "formats/safetensors.h"

enum { SAMPLE = 4096 };

uint64_t mxd_weights_pieces(uint64_t bytes) {
    return bytes / MXD_WEIGHTS_PIECE + (bytes % MXD_WEIGHTS_PIECE != 0);
}

bool mxd_weights_sum(const void *bytes, size_t n, uint8_t sum[32]) {
    return EVP_Digest(bytes, n, sum, NULL, EVP_sha256(), NULL) == 1;
}

/* ------------------------------------------------------------------------------------------ id */

static mxd_rc add(EVP_MD_CTX *sha, const void *bytes, size_t n, mxd_err *err) {
    if (EVP_DigestUpdate(sha, bytes, n) == 1) return MXD_OK;
    return mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
}

static mxd_rc add_config(EVP_MD_CTX *sha, const mxd_alloc *al, const char *folder, mxd_err *err) {
    char path[MXD_PATH_MAX], *text;
    size_t n;
    MXD_TRY(mxd_path_join(path, folder, "config.json", err));
    MXD_TRY(mxd_file_read(al, path, MXD_CONFIG_MAX_BYTES, &text, &n, err));
    mxd_rc rc = add(sha, text, n, err);
    mxd_free(al, text);
    return rc;
}

/* Other numbers in tensors of the same names and shapes, as after fine-tuning, show in a sample
 * from the middle of each. */
static mxd_rc add_samples(EVP_MD_CTX *sha, const mxd_st *st, mxd_err *err) {
    uint8_t sample[SAMPLE];
    for (size_t i = 0; i < mxd_st_count(st); i++) {
        const mxd_st_tensor *t = mxd_st_at(st, i);
        size_t n = t->bytes < SAMPLE ? (size_t)t->bytes : SAMPLE;
        MXD_TRY(mxd_st_read(st, t, (t->bytes - n) / 2, sample, n, err));
        MXD_TRY(add(sha, sample, n, err));
    }
    return MXD_OK;
}

static mxd_rc id_of(const mxd_alloc *al, const char *folder, const mxd_st *st, EVP_MD_CTX *sha,
                    uint8_t id[32], mxd_err *err) {
    static const char version[] = "mxd weights 1";
    if (!sha || EVP_DigestInit_ex(sha, EVP_sha256(), NULL) != 1)
        return mxd_fail(err, MXD_E_NOMEM, "SHA-256 cannot start");
    MXD_TRY(add(sha, version, sizeof version, err));
    MXD_TRY(add(sha, mxd_st_hash(st), 32, err));
    MXD_TRY(add_samples(sha, st, err));
    MXD_TRY(add_config(sha, al, folder, err));
    if (EVP_DigestFinal_ex(sha, id, NULL) == 1) return MXD_OK;
    return mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
}

mxd_rc mxd_weights_id(const mxd_alloc *al, const char *folder, uint8_t id[32], mxd_err *err) {
    mxd_st *st;
    MXD_TRY(mxd_st_open(&st, al, folder, err));
    EVP_MD_CTX *sha = EVP_MD_CTX_new();
    mxd_rc rc = id_of(al, folder, st, sha, id, err);
    EVP_MD_CTX_free(sha);
    mxd_st_close(st);
    return rc;
}

bool mxd_weights_known(const uint8_t id[32]) {
    static const uint8_t unknown[32];
    return memcmp(id, unknown, sizeof unknown) != 0;
}

/* ---------------------------------------------------------------------------------------- lists */

static mxd_rc take_list(const mxd_alloc *al, int n, mxd_weights_list *out, mxd_err *err) {
    out->files = MXD_NEW(al, (size_t)n, mxd_weights_file);
    out->n = n;
    return out->files ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "list of files");
}

static mxd_rc fill_list(mxd_weights_list *l, const char *folder, const mxd_st *st, mxd_err *err) {
    char path[MXD_PATH_MAX];
    struct stat config;
    MXD_TRY(mxd_path_join(path, folder, "config.json", err));
    if (stat(path, &config) != 0) return mxd_fail_sys(err, MXD_E_NOTFOUND, "'%s'", path);
    mxd_weights_file *f = &l->files[0];
    snprintf(f->name, sizeof f->name, "config.json");
    f->bytes = f->head = (uint64_t)config.st_size;
    for (int i = 1; i < l->n; i++) {
        f = &l->files[i];
        const char *p = mxd_st_file(st, (size_t)i - 1, &f->bytes, &f->head);
        const char *name = strrchr(p, '/') + 1;
        if ((size_t)snprintf(f->name, sizeof f->name, "%s", name) >= sizeof f->name)
            return mxd_fail(err, MXD_E_TOOBIG, "the file name '%.100s...' is too long", name);
    }
    return mxd_weights_check_files(l->files, l->n, err);
}

mxd_rc mxd_weights_list_get(const mxd_alloc *al, const char *folder, mxd_weights_list *out,
                            mxd_err *err) {
    mxd_st *st;
    mxd_weights_list l = {0};
    MXD_TRY(mxd_st_open(&st, al, folder, err));
    mxd_rc rc = take_list(al, (int)mxd_st_files(st) + 1, &l, err);
    if (!rc) rc = fill_list(&l, folder, st, err);
    mxd_st_close(st);
    if (rc)
        mxd_weights_list_free(al, &l);
    else
        *out = l;
    return rc;
}

mxd_rc mxd_weights_list_copy(const mxd_alloc *al, const mxd_weights_file *files, int n,
                             mxd_weights_list *out, mxd_err *err) {
    MXD_TRY(take_list(al, n, out, err));
    memcpy(out->files, files, (size_t)n * sizeof *files);
    return MXD_OK;
}

void mxd_weights_list_free(const mxd_alloc *al, mxd_weights_list *list) {
    mxd_free(al, list->files);
    *list = (mxd_weights_list){0};
}

static bool is_name(const char *s) {
    static const char head[] = "model", tail[] = ".safetensors";
    size_t n = strnlen(s, MXD_WEIGHTS_NAME);
    if (n >= MXD_WEIGHTS_NAME || n < sizeof head + sizeof tail - 2) return false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && c != '.' && c != '_' && c != '-') return false;
    }
    return memcmp(s, head, sizeof head - 1) == 0 && strcmp(s + n - (sizeof tail - 1), tail) == 0;
}

mxd_rc mxd_weights_check_files(const mxd_weights_file *f, int n, mxd_err *err) {
    if (n < 2 || n > MXD_WEIGHTS_MAX_FILES)
        return mxd_fail(err, MXD_E_FORMAT, "a list of %d files", n);
    if (strcmp(f[0].name, "config.json") != 0 || f[0].bytes > MXD_CONFIG_MAX_BYTES ||
        f[0].head != f[0].bytes)
        return mxd_fail(err, MXD_E_FORMAT, "a list of files that begins with '%.100s'", f[0].name);
    uint64_t sum = 0;
    for (int i = 1; i < n; i++) {
        if (!is_name(f[i].name) || (i > 1 && strcmp(f[i - 1].name, f[i].name) >= 0))
            return mxd_fail(err, MXD_E_FORMAT, "'%.100s' is not the name of a weights file here",
                            f[i].name);
        if (f[i].head < 10 || f[i].head > f[i].bytes ||
            f[i].head > MXD_ST_MAX_HEADER_BYTES + (uint64_t)8 ||
            f[i].bytes > MXD_WEIGHTS_MAX_BYTES || (sum += f[i].bytes) > MXD_WEIGHTS_MAX_BYTES)
            return mxd_fail(err, MXD_E_FORMAT, "'%.100s' of %llu bytes, %llu at its head",
                            f[i].name, (unsigned long long)f[i].bytes,
                            (unsigned long long)f[i].head);
    }
    return MXD_OK;
}
