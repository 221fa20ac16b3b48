#include "mlx_kit.h"

#include <math.h>
#include <stdlib.h>
#include "test.h"

mxd_backend *mlx_kit_open(const char *name, bool kv_f32) {
    mxd_backend *b = NULL;
    mxd_err err = {0};
    mxd_backend_opts o = {
        .threads = 1, .activations = MXD_ACT_F32, .kv = kv_f32 ? MXD_KV_F32 : MXD_KV_F16};
    if (strcmp(name, "mlx") == 0) o.kernels = "cpu";
    mxd_rc rc = mxd_backend_open(&b, &mxd_alloc_libc, name, &o, &err);
    if (rc && strcmp(name, "mlx") == 0 && !MXD_MLX_BUILT) SKIP(err.msg);
    CHECK_OK(rc, &err);
    return b;
}

void mlx_kit_need(void) {
    mxd_backend *b = mlx_kit_open("mlx", true);
    b->ops->close(b);
}

mxd_weight *mlx_kit_load(mxd_backend *b, const mxd_weight_src *s) {
    mxd_weight *w = NULL;
    mxd_err err = {0};
    CHECK_OK(b->ops->load(b, s, &w, &err), &err);
    return w;
}

void mlx_kit_noise(float *x, const char *stream, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = kit_noise(stream, i);
}

void mlx_kit_close_to(const char *what, const float *got, const float *want, size_t n) {
    float largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmaxf(largest, fabsf(want[i]));
    CHECK(largest > 0.01f && isfinite(largest));
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 2e-5f * largest))
            fail_msg("%s: value %zu is %g, want %g", what, i, (double)got[i], (double)want[i]);
}

const mxd_st_tensor *mlx_kit_stacked(mxd_st_tensor *to, const mxd_st_tensor *from, int n) {
    if (!from) return NULL;
    *to = *from;
    for (int d = from->n_dims; d > 1; d--) to->shape[d] = from->shape[d - 1];
    to->n_dims = from->n_dims + 1;
    to->shape[1] = from->shape[0] / (uint64_t)n;
    to->shape[0] = (uint64_t)n;
    return to;
}

/* --------------------------------------------------------------------------------- fp modes */

static int group_of(mxd_qmode mode) { return mode == MXD_Q_NVFP4 ? 16 : 32; }
static int bits_of(mxd_qmode mode) { return mode == MXD_Q_MXFP8 ? 8 : 4; }

static kit_tensor *bytes_of(kit *k, const char *name, const char *suffix, mxd_dtype d, int rows,
                            int cols) {
    CHECK(k->n < KIT_MAX_TENSORS);
    kit_tensor *t = &k->t[k->n++];
    snprintf(t->name, sizeof t->name, "%s%s", name, suffix);
    t->dtype = d;
    t->n_dims = 2;
    t->shape[0] = (uint64_t)rows;
    t->shape[1] = (uint64_t)cols;
    t->bytes = (uint64_t)rows * (uint64_t)cols * mxd_dtype_bytes(d);
    t->data = malloc(t->bytes);
    CHECK(t->data);
    return t;
}

void mlx_kit_fp(kit *k, const char *name, mxd_qmode mode, int rows, int cols) {
    kit_tensor *w = bytes_of(k, name, ".weight", MXD_DTYPE_U32, rows, cols * bits_of(mode) / 32);
    for (uint64_t i = 0; i < w->bytes; i++) {
        int byte = (int)(128 + 127 * kit_noise(w->name, i));
        bool nan =
            mode == MXD_Q_MXFP8 && (byte & 127) == 127; /* no number in MLX, and in no file */
        w->data[i] = (unsigned char)(nan ? byte - 1 : byte);
    }
    kit_tensor *s = bytes_of(k, name, ".scales", MXD_DTYPE_U8, rows, cols / group_of(mode));
    for (uint64_t i = 0; i < s->bytes; i++) { /* powers of 2 from 2^-10, or E4M3 from 2^-3 */
        float at = (kit_noise(s->name, i) + 1) / 2;
        s->data[i] = (unsigned char)(mode == MXD_Q_NVFP4   ? 32 + (int)(24 * at)
                                     : mode == MXD_Q_MXFP4 ? 122 + (int)(4 * at)
                                                           : 117 + (int)(4 * at));
    }
}

static double e4m3(int byte) {
    int e = byte >> 3 & 15, m = byte & 7;
    double v = e ? (1 + m / 8.0) * exp2(e - 7) : m / 8.0 * exp2(-6);
    return byte & 128 ? -v : v;
}

static double e2m1(int nibble) {
    static const double table[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return nibble & 8 ? -table[nibble & 7] : table[nibble & 7];
}

static const kit_tensor *tensor(const kit *k, const char *name, const char *suffix) {
    char full[80];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    for (int i = 0; i < k->n; i++)
        if (strcmp(k->t[i].name, full) == 0) return &k->t[i];
    fail_msg("no tensor %s", full);
    return NULL;
}

void mlx_kit_fp_value(kit *k, const char *name, const char *value, mxd_qmode mode, int rows,
                      int cols) {
    kit_tensor *out = bytes_of(k, value, ".weight", MXD_DTYPE_F32, rows, cols);
    const kit_tensor *w = tensor(k, name, ".weight"), *s = tensor(k, name, ".scales");
    for (int i = 0; i < rows * cols; i++) {
        int byte = s->data[i / group_of(mode)];
        double scale = mode == MXD_Q_NVFP4 ? e4m3(byte) : exp2(byte - 127);
        double code =
            mode == MXD_Q_MXFP8 ? e4m3(w->data[i]) : e2m1(w->data[i / 2] >> i % 2 * 4 & 15);
        float f = (float)(code * scale);
        memcpy(out->data + 4 * i, &f, 4);
    }
}
