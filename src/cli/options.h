/* options.h - the options of all programs: one table, and parsing by it.
 *
 * A value comes from, strongest first: the command line, the environment (MLXD_NAME), the config
 * file, the default in the table. What was not given anywhere and has no default is unset; then
 * mains take the model's own default (mxd_opt_given tells).
 *
 * A whole main:
 *     mxd_options o;
 *     int code;
 *     if (!mxd_main_begin(&o, MXD_PROG_SERVER, argc, argv, &code)) return code;   // main_kit.h
 *     int port = (int)mxd_opt_int(&o, MXD_OPT_PORT);
 *     ...
 *     return mxd_main_end(&o, rc, &err);
 *
 * Trust: arguments, environment and file are a person's: every mistake is named, with the range or
 * the nearest known name. Threads: one; after parsing, readers may share. Lifetime: process.
 */
#ifndef MXD_CLI_OPTIONS_H
#define MXD_CLI_OPTIONS_H

#include <stdint.h>
#include "base/buf.h"
#include "cli/option_table.h"

typedef enum mxd_prog {
#define X(id, ...) MXD_PROG_##id,
    MXD_PROGRAM_MAP(X)
#undef X
        MXD_PROG_COUNT
} mxd_prog;

typedef enum mxd_opt_id {
#define X(id, ...) MXD_OPT_##id,
    MXD_OPTION_MAP(X)
#undef X
        MXD_OPT_COUNT
} mxd_opt_id;

typedef enum mxd_opt_type {
    MXD_OPT_FLAG,
    MXD_OPT_INT,
    MXD_OPT_REAL,
    MXD_OPT_SIZE, /* "16GB", "512MiB", "1048576" */
    MXD_OPT_TIME, /* "600", "600s", "15m", "2h", "250ms"; seconds without a unit */
    MXD_OPT_TEXT,
    MXD_OPT_PATH, /* as text; completions offer files */
    MXD_OPT_SECRET,
    MXD_OPT_CHOICE,
    MXD_OPT_LIST, /* texts, by commas or by giving the option again */
    MXD_OPT_SECRETS,
    MXD_OPT_INTS
} mxd_opt_type;

typedef enum mxd_opt_group {
    MXD_GROUP_MODEL,
    MXD_GROUP_PROMPT,
    MXD_GROUP_BENCH,
    MXD_GROUP_HTTP,
    MXD_GROUP_SAMPLING,
    MXD_GROUP_COMPUTE,
    MXD_GROUP_CLUSTER,
    MXD_GROUP_GENERAL,
    MXD_GROUP_NO_EFFECT, /* accepted because users of other servers type it; one note */
    MXD_GROUP_COUNT
} mxd_opt_group;

typedef struct mxd_opt_row {
    const char *name, *spellings;
    uint32_t programs; /* bit per mxd_prog */
    mxd_opt_group group;
    mxd_opt_type type;
    const char *meta; /* the value's name in texts; NULL: FLAG, or CHOICE's own list */
    double least, most;
    const char *preset, *choices, *sentence;
} mxd_opt_row;

typedef struct mxd_prog_row {
    const char *program, *command; /* command: NULL, or of mlx-dist-config */
    const char *argument;          /* "MODEL"; "[FILE]" may be left out; NULL: takes none */
    mxd_opt_id argument_is;        /* the option that the argument sets; MXD_OPT_COUNT: none */
    bool argument_needed;
    const char *sentence, *example;
} mxd_prog_row;

const mxd_opt_row *mxd_opt_row_get(mxd_opt_id id);
const mxd_prog_row *mxd_prog_row_get(mxd_prog prog);
const char *mxd_opt_group_title(mxd_opt_group g);
bool mxd_opt_is_for(mxd_opt_id id, mxd_prog prog);
bool mxd_opt_in_file(mxd_opt_id id); /* may stand in a config file and the environment */

typedef enum mxd_origin {
    MXD_FROM_NOWHERE,
    MXD_FROM_DEFAULT,
    MXD_FROM_FILE,
    MXD_FROM_ENV,
    MXD_FROM_FLAG
} mxd_origin;

typedef struct mxd_opt_value {
    mxd_origin origin;
    char *from;     /* "--port", "MLXD_PORT", "config.yaml:3:7"; NULL for defaults */
    char *text;     /* as given; lists with commas */
    int64_t number; /* FLAG 0/1, INT, SIZE in bytes, TIME in ms, CHOICE as index */
    double real;    /* REAL, INT */
    char **items;   /* [n_items] of LIST and SECRETS */
    int *ints;      /* [n_items] of INTS */
    int n_items;
} mxd_opt_value;

typedef enum mxd_opt_action { MXD_ACT_RUN, MXD_ACT_HELP, MXD_ACT_VERSION } mxd_opt_action;

typedef struct mxd_options {
    const mxd_alloc *al;
    mxd_prog prog;
    mxd_opt_action action;
    mxd_opt_value values[MXD_OPT_COUNT];
    char *file;     /* the config file that was read; NULL: none */
    char note[200]; /* about options without effect; "" if none */
} mxd_options;

/* The environment; tests pass their own. NULL: the process's. */
typedef const char *(*mxd_env_fn)(void *ctx, const char *name);
typedef struct mxd_env {
    mxd_env_fn get;
    void *ctx;
} mxd_env;
const char *mxd_env_get(const mxd_env *env, const char *name); /* NULL when unset or empty */
bool mxd_text_is_true(const char *s);                          /* 1, on, yes, true in any case */

/* Reads arguments (argv[0] is skipped), environment and config file.
 * Errors: E_INVAL an argument or a variable, exit code 2; E_CONFIG the file; E_NOMEM. In every case
 * mxd_options_deinit frees what is there. */
mxd_rc mxd_options_parse(mxd_options *o, const mxd_alloc *al, mxd_prog prog, int argc,
                         char *const *argv, const mxd_env *env, mxd_err *err) MXD_MUST_USE;
void mxd_options_deinit(mxd_options *o);

/* The same, but the program's argument may be missing: for showing what it would take. */
mxd_rc mxd_options_parse_some(mxd_options *o, const mxd_alloc *al, mxd_prog prog, int argc,
                              char *const *argv, const mxd_env *env, mxd_err *err) MXD_MUST_USE;

/* The command of mlx-dist-config named `name`; false: there is none. */
bool mxd_prog_by_command(const char *name, mxd_prog *out);
bool mxd_prog_by_name(const char *name, mxd_prog *out); /* "server" or "mlx-dist-server" */

/* One value into the table, if nothing stronger is there; lists grow when the origin is the same.
 * `place` is how messages name it. Errors: `bad` when the text is no such value; E_NOMEM. */
mxd_rc mxd_opt_set(mxd_options *o, mxd_opt_id id, const char *text, mxd_origin origin,
                   const char *place, mxd_rc bad, mxd_err *err) MXD_MUST_USE;

/* Option by name of the table ("port"); MXD_OPT_COUNT: none. */
mxd_opt_id mxd_opt_by_name(const char *name);

bool mxd_opt_given(const mxd_options *o, mxd_opt_id id); /* by flag, environment or file */
bool mxd_opt_bool(const mxd_options *o, mxd_opt_id id);
int64_t mxd_opt_int(const mxd_options *o, mxd_opt_id id); /* INT, SIZE, TIME, CHOICE */
double mxd_opt_real(const mxd_options *o, mxd_opt_id id);
const char *mxd_opt_text(const mxd_options *o, mxd_opt_id id); /* NULL when unset */
/* The same, and NULL for "auto": nothing was asked for by name. */
const char *mxd_opt_unless_auto(const mxd_options *o, mxd_opt_id id);
const char *const *mxd_opt_list(const mxd_options *o, mxd_opt_id id, int *n);
const int *mxd_opt_ints(const mxd_options *o, mxd_opt_id id, int *n);

/* E_INVAL "MODEL is missing ..." unless the option has a value. */
mxd_rc mxd_opt_need(const mxd_options *o, mxd_opt_id id, mxd_err *err) MXD_MUST_USE;

/* "MLXD_TENSOR_SPLIT" for "tensor-split". */
void mxd_opt_env_name(char out[64], const char *name);

/* The candidate nearest to `word` by edits, if near enough to be meant; else NULL. */
const char *mxd_nearest(const char *word, const char *const *candidates, int n);
int mxd_edit_distance(const char *a, const char *b); /* over 64 bytes: 1000 */

#endif
