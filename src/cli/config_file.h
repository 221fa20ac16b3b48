/* config_file.h - values from a YAML file into the options.
 *
 *   port: 8080                    # for every program that has the option
 *   api-key: [one, two]
 *   worker: {threads: 4}          # for one program; wins over the line above
 *
 * Every value of the file is checked, also those of other programs: a mistake is found by the first
 * program that reads it. */
#ifndef MXD_CLI_CONFIG_FILE_H
#define MXD_CLI_CONFIG_FILE_H

#include "cli/options.h"

/* Finds the file (--config, else the user's, else the system's) and takes its values. No file is
 * fine unless one was named. o->file tells which was read.
 * Errors: E_CONFIG with file, line and column; E_NOMEM. */
mxd_rc mxd_config_file_read(mxd_options *o, const mxd_env *env, mxd_err *err) MXD_MUST_USE;

/* "$XDG_CONFIG_HOME/mlx-distributed/config.yaml" and the other places, best first; as many as there
 * are, at most 3. */
int mxd_config_places(char out[3][1024], const mxd_env *env);

/* "<base>/mlx-distributed/<name>" below an XDG folder: `variable`, or `fallback` in the home
 * folder; name may be "". Errors: E_CONFIG no home folder; E_TOOBIG. */
mxd_rc mxd_xdg_path(char out[1024], const mxd_env *env, const char *variable, const char *fallback,
                    const char *name, mxd_err *err) MXD_MUST_USE;

#endif
