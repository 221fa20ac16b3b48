/* main_kit.h - the frame of every program: options in, errors and exit codes out, signals.
 *
 *     int main(int argc, char **argv) {
 *         mxd_options o;
 *         int code;
 *         if (!mxd_main_begin(&o, MXD_PROG_DETECT, argc, argv, &code)) return code;
 *         mxd_err err = {0};
 *         mxd_rc rc = work(&o, &err);
 *         return mxd_main_end(&o, rc, &err);
 *     }
 */
#ifndef MXD_CLI_MAIN_KIT_H
#define MXD_CLI_MAIN_KIT_H

#include "backend/backend.h"
#include "cli/options.h"

/* Parses; answers --help and --version; on a mistake prints it. True: go on. False: everything is
 * freed, end with *code. Sets the log level and, with --json, JSON log lines; ignores SIGPIPE. */
bool mxd_main_begin(mxd_options *o, mxd_prog prog, int argc, char **argv, int *code);

/* Prints the error, if any, frees, and gives the exit code of the error table; 1 when what was
 * printed to standard output could not be written. */
int mxd_main_end(mxd_options *o, mxd_rc rc, const mxd_err *err);

/* "mlx-dist-server: error: ..." on stderr, broken at the terminal's width. */
void mxd_main_print_error(mxd_prog prog, const mxd_err *err);
void mxd_main_print_note(const mxd_options *o, const char *fmt, ...) MXD_PRINTF(2, 3);

/* Counts SIGINT and SIGTERM; from the second on the process ends at once with 130 or 143.
 * wait: blocks until the first one or for timeout_ms (-1: for ever) and returns the signal, or 0.
 * SIGHUP sets the flag that take_hup returns and clears. Call catch once, before threads start. */
void mxd_signals_catch(void);
int mxd_signals_wait(int64_t timeout_ms);
bool mxd_signals_take_hup(void);

/* Log to --log-file; call again after SIGHUP to open it anew. Errors: E_IO. */
mxd_rc mxd_main_open_log(const mxd_options *o, mxd_err *err) MXD_MUST_USE;

/* The folder for keys and tokens: --state-dir, else $XDG_STATE_HOME/mlx-distributed,
 * else ~/.local/state/mlx-distributed. Not made. Errors: E_CONFIG, E_TOOBIG. */
mxd_rc mxd_main_state_dir(const mxd_options *o, char out[1024], mxd_err *err) MXD_MUST_USE;

/* A model's name -> folder, by --models-dir, environment and program. */
mxd_rc mxd_main_find_model(const mxd_options *o, const char *model, char out[1024],
                           mxd_err *err) MXD_MUST_USE;

/* Folder k, counted from 0, that may hold the model: mxd_hub_candidate. */
bool mxd_main_candidate(const mxd_options *o, const char *model, int k, char out[1024]);

/* MODEL -> folder, through mxd_hub_resolve with this process's environment and program. */
mxd_rc mxd_main_model_folder(const mxd_options *o, char out[1024], mxd_err *err) MXD_MUST_USE;

/* --cache-type, which has two names for 8 bits. */
mxd_kv_type mxd_main_kv_type(const mxd_options *o);

/* The folder of the running program, "" when the system does not tell. */
void mxd_main_program_dir(char out[1024]);

#endif
