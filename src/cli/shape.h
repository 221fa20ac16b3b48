/* shape.h - the options about the shape of plans, as one struct. */
#ifndef MXD_CLI_SHAPE_H
#define MXD_CLI_SHAPE_H

#include "cli/options.h"
#include "plan/shape.h"

/* Options that the program does not have stay 0. Errors: E_INVAL contradictions. */
mxd_rc mxd_shape_read(mxd_shape *out, const mxd_options *o, mxd_err *err) MXD_MUST_USE;

#endif
