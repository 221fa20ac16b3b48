/* public_kit.h - what the files behind include/mlx_distributed.h share. */
#ifndef MXD_API_PUBLIC_KIT_H
#define MXD_API_PUBLIC_KIT_H

#include <stdbool.h>
#include "base/err.h"
#include "mlx_distributed.h"

/* The code and its line for people to the caller; returns the code. err may be NULL. */
int public_report(mxd_rc rc, const mxd_err *from, mlxd_error *err);

/* What the caller's header knew of the struct; the rest is zero. False: its size is not set. */
bool public_take_struct(void *dst, size_t size, const void *src, size_t src_size);

#endif
