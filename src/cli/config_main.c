/* mlx-dist-config: makes, checks and explains configurations and plans. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "cli/config_file.h"
#include "cli/main_kit.h"
#include "cli/nodes_file.h"
#include "cli/option_help.h"
#include "cli/plan_print.h"
#include "cli/shape.h"
#include "cli/state.h"
#include "formats/json.h"
#include "hardware/hardware.h"
#include "model/model.h"

enum { OUT_MAX_BYTES = 1 << 22, DEFAULT_CONTEXT = 4096, MAX_ROWS = 256 };

static mxd_rc print_json(json_t *v, mxd_err *err) { /* takes v */
    mxd_buf out;
    if (!v) return mxd_fail(err, MXD_E_NOMEM, "no memory for the answer");
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX_BYTES);
    mxd_json_write(&out, v, &(mxd_json_style){.indent = 2});
    json_decref(v);
    mxd_rc rc = mxd_buf_rc(&out, "the answer", err);
    if (!rc) puts(mxd_buf_str(&out));
    mxd_buf_deinit(&out);
    return rc;
}

/* ---------------------------------------------------------------------------------------- init */

static mxd_rc run_init(const mxd_options *o, mxd_err *err) {
    char dir[1024];
    bool made;
    const char *name = mxd_opt_text(o, MXD_OPT_NAME);
    MXD_TRY(mxd_main_state_dir(o, dir, err));
    MXD_TRY(mxd_state_make_ca(o->al, dir, name ? name : "mlx-distributed", &made, err));
    if (!made) {
        mxd_main_print_note(o, "there is a cluster in %s already; nothing was changed", dir);
        return MXD_OK;
    }
    printf("made the certificate authority in %s\n", dir);
    mxd_main_print_note(o, "next: mlx-dist-server MODEL --cluster-listen 0.0.0.0:5000, and "
                           "mlx-dist-config token for each worker");
    return MXD_OK;
}

/* --------------------------------------------------------------------------------------- token */

static mxd_rc run_token(const mxd_options *o, mxd_err *err) {
    char dir[1024], token[MXD_TOKEN_MAX], ttl[32];
    int uses = (int)mxd_opt_int(o, MXD_OPT_USES);
    int64_t ttl_ms = mxd_opt_int(o, MXD_OPT_TTL), now = mxd_wall_ms();
    MXD_TRY(mxd_main_state_dir(o, dir, err));
    MXD_TRY(mxd_state_add_token(o->al, dir, uses, ttl_ms, now, token, err));
    if (mxd_opt_bool(o, MXD_OPT_JSON))
        return print_json(json_pack("{s:i, s:s, s:i, s:I}", "schema", 1, "token", token, "uses",
                                    uses, "expires_ms", (json_int_t)(now + ttl_ms)),
                          err);
    puts(token);
    mxd_main_print_note(
        o, "good for %d worker%s within %s: mlx-dist-worker --join HOST:PORT --token ...", uses,
        uses == 1 ? "" : "s", mxd_time_text(ttl, ttl_ms));
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------------- plan */

static mxd_rc this_machine(mxd_nodes_file *f, const mxd_alloc *al, mxd_err *err) {
    mxd_hardware h;
    MXD_TRY(mxd_hardware_detect(&h, al, &(mxd_hardware_opts){.probe = true}, err));
    f->n_nodes = 1;
    f->n_links = 0;
    f->nodes[0] = (mxd_plan_node){.memory_bytes = h.memory_total_bytes,
                                  .free_bytes = h.memory_available_bytes,
                                  .bandwidth_bytes_per_s = h.read_bytes_per_s,
                                  .ops_per_s = h.dot_ops_per_s,
                                  .paces = h.paces};
    snprintf(f->nodes[0].name, sizeof f->nodes[0].name, "%.60s",
             h.host[0] ? h.host : "this machine");
    return MXD_OK;
}

static mxd_rc read_sizes(const mxd_options *o, mxd_model_sizes *sizes, int *ctx, mxd_err *err) {
    char folder[1024];
    mxd_model *m = NULL;
    MXD_TRY(mxd_main_model_folder(o, folder, err));
    MXD_TRY(mxd_model_open(&m, o->al, folder, err));
    int most = mxd_model_hparams(m)->context;
    *ctx = (int)mxd_opt_int(o, MXD_OPT_CTX_SIZE);
    if (!*ctx) *ctx = most < DEFAULT_CONTEXT ? most : DEFAULT_CONTEXT;
    mxd_model_sizes_get(m, MAX_ROWS, mxd_kv_of(mxd_main_kv_type(o), MXD_ACT_I8), sizes);
    mxd_model_close(m);
    if (*ctx > most)
        return mxd_fail(err, MXD_E_INVAL, "--ctx-size %d: the model allows at most %d tokens", *ctx,
                        most);
    return MXD_OK;
}

static mxd_rc fill_plan_opts(const mxd_options *o, int ctx, mxd_plan_opts *p, mxd_err *err) {
    p->ctx = ctx;
    p->parallel = (int)mxd_opt_int(o, MXD_OPT_PARALLEL);
    return mxd_shape_read(&p->shape, o, err);
}

static mxd_rc print_plan(const mxd_options *o, const mxd_plan_view *v, mxd_err *err) {
    if (mxd_opt_bool(o, MXD_OPT_JSON)) return print_json(mxd_plan_json(v), err);
    mxd_term t;
    mxd_buf out;
    mxd_term_init(&t, stdout, mxd_opt_bool(o, MXD_OPT_NO_COLOR));
    mxd_buf_init(&out, o->al, OUT_MAX_BYTES);
    mxd_plan_print(&out, v, t.columns);
    mxd_rc rc = mxd_buf_rc(&out, "the plan", err);
    if (!rc) fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return rc;
}

static mxd_rc run_plan(const mxd_options *o, mxd_err *err) {
    static mxd_nodes_file f; /* too big for a stack, and there is one main */
    static mxd_model_sizes sizes;
    mxd_plan_opts opts = {0};
    mxd_plan plan;
    int ctx;
    const char *nodes = mxd_opt_text(o, MXD_OPT_NODES);
    MXD_TRY(nodes ? mxd_nodes_file_read(&f, nodes, err) : this_machine(&f, o->al, err));
    MXD_TRY(read_sizes(o, &sizes, &ctx, err));
    MXD_TRY(fill_plan_opts(o, ctx, &opts, err));
    MXD_TRY(mxd_plan_make(&plan, &sizes, f.nodes, f.n_nodes, f.links, f.n_links, &opts, err));
    mxd_plan_view v = {
        mxd_opt_text(o, MXD_OPT_MODEL), &plan, &sizes, f.nodes, f.n_nodes, ctx, opts.parallel};
    return print_plan(o, &v, err);
}

/* ---------------------------------------------------------------------------------- check, show */

static mxd_rc run_check(const mxd_options *o, mxd_err *err) {
    (void)err;
    if (o->file) {
        printf("%s: ok\n", o->file);
        return MXD_OK;
    }
    char places[3][1024];
    int n = mxd_config_places(places, NULL);
    printf("no config file: looked for");
    for (int i = 0; i < n; i++) printf("%s %s", i ? "," : "", places[i]);
    printf("\n");
    return MXD_OK;
}

static const char *origin_text(const mxd_opt_value *v) {
    return v->from ? v->from : v->origin == MXD_FROM_DEFAULT ? "default" : "not set";
}

static const char *shown(mxd_opt_id id, const mxd_opt_value *v) {
    mxd_opt_type type = mxd_opt_row_get(id)->type;
    if (!v->text) return "";
    return type == MXD_OPT_SECRET || type == MXD_OPT_SECRETS ? "(hidden)" : v->text;
}

static bool is_shown(const mxd_options *o, mxd_opt_id id, mxd_prog prog, bool all) {
    return mxd_opt_is_for(id, prog) && mxd_opt_in_file(id) && (all || mxd_opt_given(o, id));
}

static json_t *show_json(const mxd_options *o, mxd_prog prog, bool all) {
    json_t *values = json_object();
    for (int i = 0; values && i < MXD_OPT_COUNT; i++) {
        const mxd_opt_value *v = &o->values[i];
        if (!is_shown(o, (mxd_opt_id)i, prog, all)) continue;
        json_t *text = v->text ? json_string(shown((mxd_opt_id)i, v)) : json_null();
        json_object_set_new(values, mxd_opt_row_get((mxd_opt_id)i)->name,
                            json_pack("{s:o, s:s}", "value", text, "from", origin_text(v)));
    }
    return json_pack("{s:i, s:s, s:s?, s:o}", "schema", 1, "program",
                     mxd_prog_row_get(prog)->program, "file", o->file, "values", values);
}

static mxd_rc show_text(const mxd_options *o, mxd_prog prog, bool all, mxd_err *err) {
    mxd_table t;
    mxd_buf out;
    mxd_term term;
    mxd_term_init(&term, stdout, true);
    mxd_buf_init(&out, o->al, OUT_MAX_BYTES);
    mxd_table_init(&t, o->al, 3);
    mxd_table_cell(&t, "option");
    mxd_table_cell(&t, "value");
    mxd_table_cell(&t, "from");
    for (int i = 0; i < MXD_OPT_COUNT; i++) {
        if (!is_shown(o, (mxd_opt_id)i, prog, all)) continue;
        mxd_table_cell(&t, "%s", mxd_opt_row_get((mxd_opt_id)i)->name);
        mxd_table_cell(&t, "%s", shown((mxd_opt_id)i, &o->values[i]));
        mxd_table_cell(&t, "%s", origin_text(&o->values[i]));
    }
    mxd_table_write(&t, &out, term.tty ? term.columns : 10000);
    mxd_table_deinit(&t);
    mxd_rc rc = mxd_buf_rc(&out, "the table", err);
    if (!rc) fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return rc;
}

/* Reads environment and file as the program itself would, with a model's name that is not shown. */
static mxd_rc run_show(const mxd_options *o, mxd_err *err) {
    mxd_prog prog;
    if (!mxd_prog_by_name(mxd_opt_text(o, MXD_OPT_PROGRAM), &prog))
        return mxd_fail(err, MXD_E_INTERNAL, "a program without a row");
    const char *file = mxd_opt_text(o, MXD_OPT_CONFIG);
    char name[] = "program", config[] = "--config";
    char *argv[] = {name, config, (char *)file};
    mxd_options his;
    bool with_file = file && mxd_opt_is_for(MXD_OPT_CONFIG, prog);
    bool all = mxd_opt_bool(o, MXD_OPT_EFFECTIVE);
    mxd_rc rc = mxd_options_parse_some(&his, o->al, prog, with_file ? 3 : 1, argv, NULL, err);
    if (!rc && mxd_opt_bool(o, MXD_OPT_JSON))
        rc = print_json(show_json(&his, prog, all), err);
    else if (!rc)
        rc = show_text(&his, prog, all, err);
    mxd_options_deinit(&his);
    return rc;
}

/* ---------------------------------------------------------------------------------------- main */

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    switch (o->prog) {
    case MXD_PROG_INIT:
        return run_init(o, err);
    case MXD_PROG_TOKEN:
        return run_token(o, err);
    case MXD_PROG_PLAN:
        return run_plan(o, err);
    case MXD_PROG_CHECK:
        return run_check(o, err);
    default:
        return run_show(o, err);
    }
}

static int print_commands(void) {
    mxd_buf out;
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX_BYTES);
    mxd_help_write_commands(&out);
    fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return fflush(stdout) != 0;
}

static int no_command(const char *word) {
    const char *names[MXD_PROG_COUNT];
    int n = 0;
    for (int i = 0; i < MXD_PROG_COUNT; i++)
        if (mxd_prog_row_get((mxd_prog)i)->command)
            names[n++] = mxd_prog_row_get((mxd_prog)i)->command;
    const char *near = word ? mxd_nearest(word, names, n) : NULL;
    mxd_err err = {.rc = MXD_E_INVAL};
    if (!word)
        mxd_fail(&err, MXD_E_INVAL, "a command is missing: init, plan, check, show or token");
    else if (near)
        mxd_fail(&err, MXD_E_INVAL, "unknown command '%.60s': did you mean %s?", word, near);
    else
        mxd_fail(&err, MXD_E_INVAL, "unknown command '%.60s': see mlx-dist-config --help", word);
    mxd_main_print_error(MXD_PROG_PLAN, &err);
    return mxd_rc_exit(MXD_E_INVAL);
}

int main(int argc, char **argv) {
    mxd_prog prog;
    const char *word = argc > 1 ? argv[1] : NULL;
    if (word && (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)) return print_commands();
    if (word && strcmp(word, "--version") == 0) {
        printf("mlx-dist-config %s\n", MXD_VERSION);
        return fflush(stdout) != 0;
    }
    if (!word || !mxd_prog_by_command(word, &prog)) return no_command(word);
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, prog, argc - 1, argv + 1, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
