/* mlx_kit.h - what the tests of the operations of the `mlx` backend share: the backend to test, the
 * one to compare with, and how near is near. */
#ifndef MXD_MLX_KIT_H
#define MXD_MLX_KIT_H

#include "backend_kit.h"

void mlx_kit_need(
    void); /* without a plugin the test is skipped: before anything that must be freed */
/* "mlx" on its CPU code, or "cpu" on its float32 path, one thread. */
mxd_backend *mlx_kit_open(const char *name, bool kv_f32);
mxd_weight *mlx_kit_load(mxd_backend *b, const mxd_weight_src *s);
void mlx_kit_noise(float *x, const char *stream, size_t n);
/* Each of got [n] within 2e-5 of the largest of |want|. */
void mlx_kit_close_to(const char *what, const float *got, const float *want, size_t n);
/* A tensor of one or two dimensions, read as n of them. NULL stays NULL. */
const mxd_st_tensor *mlx_kit_stacked(mxd_st_tensor *to, const mxd_st_tensor *from, int n);
/* name.weight (U32), name.scales (U8) of a linear in one of the fp modes. */
void mlx_kit_fp(kit *k, const char *name, mxd_qmode mode, int rows, int cols);
/* value.weight (F32): the same matrix as plain floats, by the definition of the format. */
void mlx_kit_fp_value(kit *k, const char *name, const char *value, mxd_qmode mode, int rows,
                      int cols);

#endif
