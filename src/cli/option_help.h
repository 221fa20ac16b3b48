/* option_help.h - texts made from the table: --help, docs/cli.md, man pages, shell completions. */
#ifndef MXD_CLI_OPTION_HELP_H
#define MXD_CLI_OPTION_HELP_H

#include "base/version.h"
#include "cli/options.h"

#include "base/version.h"

/* --help: 80 columns, groups, defaults, one example. */
void mxd_help_write(mxd_buf *out, mxd_prog prog);

/* Of mlx-dist-config without a command. */
void mxd_help_write_commands(mxd_buf *out);

/* docs/cli.md: all programs. */
void mxd_help_write_markdown(mxd_buf *out);

/* A man page (section 1) of `program` with all its commands, in man(7) macros.
 * Errors: E_NOTFOUND no such program. */
mxd_rc mxd_help_write_man(mxd_buf *out, const char *program, mxd_err *err) MXD_MUST_USE;

/* One file for all programs. shell: "bash", "zsh" or "fish". Errors: E_NOTFOUND. */
mxd_rc mxd_help_write_completion(mxd_buf *out, const char *shell, mxd_err *err) MXD_MUST_USE;

#endif
