/* mlxd-optdoc: texts from the option table, while building.
 *   mlxd-optdoc markdown | man PROGRAM | completion bash|zsh|fish */
#include <stdio.h>
#include <string.h>
#include "cli/option_help.h"

int main(int argc, char **argv) {
    mxd_buf out;
    mxd_err err = {0};
    mxd_buf_init(&out, &mxd_alloc_libc, 1 << 22);
    mxd_rc rc = MXD_OK;
    const char *what = argc > 1 ? argv[1] : "", *which = argc > 2 ? argv[2] : "";
    if (strcmp(what, "markdown") == 0)
        mxd_help_write_markdown(&out);
    else if (strcmp(what, "man") == 0)
        rc = mxd_help_write_man(&out, which, &err);
    else if (strcmp(what, "completion") == 0)
        rc = mxd_help_write_completion(&out, which, &err);
    else
        rc = mxd_fail(&err, MXD_E_INVAL, "markdown, man PROGRAM or completion SHELL is expected");
    if (!rc) rc = mxd_buf_rc(&out, "the text", &err);
    if (rc)
        fprintf(stderr, "mlxd-optdoc: %s\n", err.msg);
    else
        fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return rc ? mxd_rc_exit(rc) : fflush(stdout) != 0;
}
