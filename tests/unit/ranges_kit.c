#include "ranges_kit.h"

#include "test.h"

#include <dirent.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_FILES = 8 };

typedef struct copy {
    FILE *file[MAX_FILES];
    const mxd_st *st;
    uint64_t kept;
} copy;

static char *read_all(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    CHECK(f && fseek(f, 0, SEEK_END) == 0);
    *n = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*n + 1);
    CHECK(text && fread(text, 1, *n, f) == *n);
    fclose(f);
    return text;
}

/* `garbage_from`: everything from there on is garbage. */
static void copy_to(const char *dir, const char *path, size_t garbage_from) {
    char to[1200];
    size_t n;
    char *text = read_all(path, &n);
    if (n > garbage_from) memset(text + garbage_from, 0xff, n - garbage_from);
    snprintf(to, sizeof to, "%s/%s", dir, strrchr(path, '/') + 1);
    FILE *f = fopen(to, "wb");
    CHECK(f && fwrite(text, 1, n, f) == n && fclose(f) == 0);
    free(text);
}

static mxd_rc keep(void *ctx, const mxd_st_tensor *t, uint64_t from, uint64_t n, mxd_err *err) {
    copy *c = ctx;
    char *bytes = malloc(n + 1);
    CHECK(bytes);
    mxd_rc rc = mxd_st_read(c->st, t, from, bytes, (size_t)n, err);
    CHECK(!rc && fseek(c->file[t->file], (long)(t->offset + from), SEEK_SET) == 0);
    CHECK(fwrite(bytes, 1, (size_t)n, c->file[t->file]) == n);
    free(bytes);
    c->kept += n;
    return MXD_OK;
}

uint64_t ranges_kit_make(char out[64], const char *folder, int layer0, int layer1, int size,
                         const double *weights, int rank) {
    mxd_err err = {0};
    mxd_model *m;
    mxd_shares shares;
    char config[1200], path[1200];
    snprintf(out, 64, "/tmp/mxd-ranges-XXXXXX");
    CHECK(mkdtemp(out));
    snprintf(config, sizeof config, "%s/config.json", folder);
    copy_to(out, config, SIZE_MAX);
    CHECK_OK(mxd_model_open(&m, &mxd_alloc_libc, folder, &err), &err);
    copy c = {.st = mxd_model_tensors(m)};
    for (size_t i = 0; i < mxd_st_files(c.st); i++) {
        uint64_t head;
        const char *from = mxd_st_file(c.st, i, NULL, &head);
        CHECK(i < MAX_FILES);
        copy_to(out, from, (size_t)head);
        snprintf(path, sizeof path, "%s/%s", out, strrchr(from, '/') + 1);
        c.file[i] = fopen(path, "r+b");
        CHECK(c.file[i]);
    }
    if (!layer1) layer1 = mxd_model_hparams(m)->n_layers;
    if (size) CHECK_OK(mxd_model_share(m, size, weights, &shares, &err), &err);
    CHECK_OK(mxd_model_ranges(m, layer0, layer1, size ? &shares : NULL, rank, keep, &c, &err),
             &err);
    for (size_t i = 0; i < mxd_st_files(c.st); i++) CHECK(fclose(c.file[i]) == 0);
    mxd_model_close(m);
    return c.kept;
}

void ranges_kit_remove(const char *dir) {
    DIR *d = opendir(dir);
    CHECK(d);
    for (const struct dirent *e; (e = readdir(d));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    rmdir(dir);
}
