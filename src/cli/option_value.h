/* option_value.h - one value of one option: from text, its range in words, free. For this room. */
#ifndef MXD_CLI_OPTION_VALUE_H
#define MXD_CLI_OPTION_VALUE_H

#include "cli/options.h"

void mxd_opt_value_free(const mxd_alloc *al, mxd_opt_value *v);

/* "a whole number from 0 to 65535", "one of auto, cpu, mlx"; returns out. */
const char *mxd_opt_range(const mxd_opt_row *row, char out[160]);

/* Whether `text` is a value of the row; messages name `place`. Errors: `bad`; E_NOMEM. */
mxd_rc mxd_opt_check(const mxd_alloc *al, const mxd_opt_row *row, const char *text,
                     const char *place, mxd_rc bad, mxd_err *err) MXD_MUST_USE;

#endif
