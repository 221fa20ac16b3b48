/* A repository of config.json and one safetensors header, both hostile, through everything that is
 * done before a weight is read: families, ranges, RoPE, quantisation rules, shapes, size tables.
 * Input: the number of data bytes (8 bytes little-endian), config.json, a NUL, the header. The data
 * is a hole in the file. Seeds: config_seeds.py, from the small models of tests/conformance. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/log.h"
#include "fuzz.h"
#include "model/model.h"

static char folder[64], config_path[96], weights_path[96];

static void remove_folder(void) {
    unlink(config_path);
    unlink(weights_path);
    rmdir(folder);
}

/* In memory where the system has such a place. */
static void make_folder(void) {
    const char *parent = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(folder, sizeof folder, "%s/mxd-fuzz-XXXXXX", parent);
    if (!mkdtemp(folder)) abort();
    snprintf(config_path, sizeof config_path, "%s/config.json", folder);
    snprintf(weights_path, sizeof weights_path, "%s/model.safetensors", folder);
    atexit(remove_folder);
    mxd_log_set_level(MXD_LOG_ERROR);
}

/* The file holds a and b and then a hole up to `size`. */
static bool put_file(const char *path, const void *a, size_t n_a, const void *b, size_t n_b,
                     uint64_t size) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) abort();
    bool ok = write(fd, a, n_a) == (ssize_t)n_a && write(fd, b, n_b) == (ssize_t)n_b;
    if (!ok) abort(); /* the disk is full, say */
    ok = size <= (uint64_t)1 << 40 && ftruncate(fd, (off_t)size) == 0;
    close(fd);
    return ok;
}

static void open_and_size(void) {
    static mxd_model_sizes sizes;
    mxd_model *m = NULL;
    mxd_err err;
    if (mxd_model_open(&m, &mxd_alloc_libc, folder, &err)) {
        if (!memchr(err.msg, 0, sizeof err.msg) || !err.msg[0]) abort();
        return;
    }
    const mxd_hparams *hp = mxd_model_hparams(m);
    if (hp->n_layers < 1 || hp->n_layers > MXD_MAX_LAYERS || hp->rope.dims > MXD_MAX_HEAD_DIM)
        abort();
    mxd_model_sizes_get(m, MXD_MAX_STEP_TOKENS, MXD_KV_F16, &sizes);
    if (sizes.n_layers != hp->n_layers || !mxd_model_params(m)) abort();
    (void)mxd_model_weight_bytes(m);
    mxd_model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t n_data = 0;
    if (size < 8) return 0;
    for (int i = 7; i >= 0; i--) n_data = n_data << 8 | data[i];
    data += 8;
    size -= 8;
    const uint8_t *end = memchr(data, 0, size);
    if (!end || n_data > (uint64_t)1 << 40) return 0;
    if (!folder[0]) make_folder();
    size_t n_config = (size_t)(end - data), n_header = size - n_config - 1;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)(n_header >> 8 * i);
    if (put_file(config_path, data, n_config, "", 0, n_config) &&
        put_file(weights_path, length, 8, end + 1, n_header, 8 + n_header + n_data))
        open_and_size();
    return 0;
}
