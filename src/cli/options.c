#include "cli/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "cli/config_file.h"
#include "cli/option_value.h"

enum { MAX_SPELLINGS = 512 };

static const char *process_env(void *ctx, const char *name) {
    (void)ctx;
    return getenv(name);
}

const char *mxd_env_get(const mxd_env *env, const char *name) {
    const char *s = env ? env->get(env->ctx, name) : process_env(NULL, name);
    return s && s[0] ? s : NULL;
}

/* Calls fn for "--name" and every other spelling; stops and returns true when fn does. */
static bool each_spelling(const mxd_opt_row *row, bool (*fn)(void *ctx, const char *s), void *ctx) {
    char text[64];
    snprintf(text, sizeof text, "--%s", row->name);
    if (fn(ctx, text)) return true;
    for (const char *p = row->spellings; *p;) {
        size_t n = strcspn(p, " ");
        snprintf(text, sizeof text, "%.*s", (int)n, p);
        if (fn(ctx, text)) return true;
        p += n;
        p += strspn(p, " ");
    }
    return false;
}

static bool is_word(void *ctx, const char *s) { return strcmp(ctx, s) == 0; }

static mxd_opt_id find(mxd_prog prog, char *word) {
    for (int i = 0; i < MXD_OPT_COUNT; i++)
        if (mxd_opt_is_for((mxd_opt_id)i, prog) &&
            each_spelling(mxd_opt_row_get((mxd_opt_id)i), is_word, word))
            return (mxd_opt_id)i;
    return MXD_OPT_COUNT;
}

typedef struct nearest {
    const char *word;
    int best;
    char text[64];
} nearest;

static bool keep_nearest(void *ctx, const char *s) {
    nearest *near = ctx;
    int d = mxd_edit_distance(near->word, s);
    /* of the short ones almost every pair is near; they are no help */
    if (d >= near->best || (strlen(s) < 4 && d > 0)) return false;
    near->best = d;
    snprintf(near->text, sizeof near->text, "%s", s);
    return false;
}

static const char *program_text(mxd_prog prog, char out[64]) {
    const mxd_prog_row *p = mxd_prog_row_get(prog);
    snprintf(out, 64, "%s%s%s", p->program, p->command ? " " : "", p->command ? p->command : "");
    return out;
}

/* Says of an unknown word what the user may have meant: another program's option, or a near one. */
static mxd_rc unknown(mxd_prog prog, char *word, mxd_err *err) {
    char here[64], there[64];
    program_text(prog, here);
    for (int p = 0; p < MXD_PROG_COUNT; p++)
        if (find((mxd_prog)p, word) != MXD_OPT_COUNT)
            return mxd_fail(err, MXD_E_INVAL,
                            "unknown option %.60s: it belongs to %s; see %s --help", word,
                            program_text((mxd_prog)p, there), here);
    nearest near = {.word = word, .best = 1 + (int)strnlen(word, 64) / 4 + 1};
    for (int i = 0; i < MXD_OPT_COUNT; i++)
        if (mxd_opt_is_for((mxd_opt_id)i, prog))
            each_spelling(mxd_opt_row_get((mxd_opt_id)i), keep_nearest, &near);
    if (near.text[0])
        return mxd_fail(err, MXD_E_INVAL, "unknown option %.60s: did you mean %s?", word,
                        near.text);
    return mxd_fail(err, MXD_E_INVAL, "unknown option %.60s: see %s --help", word, here);
}

static void note_no_effect(mxd_options *o, mxd_opt_id id) {
    const mxd_opt_row *row = mxd_opt_row_get(id);
    if (row->group != MXD_GROUP_NO_EFFECT) return;
    size_t n = strlen(o->note);
    if (!n)
        snprintf(o->note, sizeof o->note, "accepted without effect: --%s", row->name);
    else if (!strstr(o->note, row->name))
        snprintf(o->note + n, sizeof o->note - n, ", --%s", row->name);
}

static mxd_rc take_argument(mxd_options *o, const char *word, int *n_arguments, mxd_err *err) {
    const mxd_prog_row *p = mxd_prog_row_get(o->prog);
    if (p->argument_is == MXD_OPT_COUNT || *n_arguments > 0) {
        char here[64];
        return mxd_fail(err, MXD_E_INVAL, "unexpected argument '%.60s': %s takes %s; see --help",
                        word, program_text(o->prog, here), p->argument ? "only one" : "none");
    }
    (*n_arguments)++;
    return mxd_opt_set(o, p->argument_is, word, MXD_FROM_FLAG, p->argument, MXD_E_INVAL, err);
}

/* One option; *used is how many arguments behind it belong to it (0 or 1). */
static mxd_rc take_option(mxd_options *o, const char *word, const char *next, int *used,
                          mxd_err *err) {
    char name[64];
    const char *eq = strchr(word, '=');
    size_t n = eq ? (size_t)(eq - word) : strlen(word);
    if (n >= sizeof name)
        return mxd_fail(err, MXD_E_INVAL, "unknown option %.60s...: no option is that long", word);
    memcpy(name, word, n);
    name[n] = '\0';
    *used = 0;
    mxd_opt_id id = find(o->prog, name);
    if (id == MXD_OPT_COUNT) return unknown(o->prog, name, err);
    const mxd_opt_row *row = mxd_opt_row_get(id);
    const char *value = eq ? eq + 1 : NULL;
    if (!value && row->type == MXD_OPT_FLAG) value = "true";
    if (!value) {
        if (!next) {
            char range[160];
            return mxd_fail(err, MXD_E_INVAL, "%s needs a value: %s", name,
                            mxd_opt_range(row, range));
        }
        value = next;
        *used = 1;
    }
    if (id == MXD_OPT_HELP && o->action == MXD_ACT_RUN) o->action = MXD_ACT_HELP;
    if (id == MXD_OPT_VERSION && o->action == MXD_ACT_RUN) o->action = MXD_ACT_VERSION;
    note_no_effect(o, id);
    return mxd_opt_set(o, id, value, MXD_FROM_FLAG, name, MXD_E_INVAL, err);
}

/* "-5" is a value where an argument is expected, "-" stands for standard input. */
static bool looks_like_option(const char *s) { return s[0] == '-' && s[1] != '\0'; }

static mxd_rc parse_arguments(mxd_options *o, int argc, char *const *argv, mxd_err *err) {
    int n_arguments = 0;
    bool only_arguments = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_arguments && strcmp(word, "--") == 0) {
            only_arguments = true;
        } else if (only_arguments || !looks_like_option(word)) {
            MXD_TRY(take_argument(o, word, &n_arguments, err));
        } else {
            int used;
            MXD_TRY(take_option(o, word, i + 1 < argc ? argv[i + 1] : NULL, &used, err));
            i += used;
        }
        if (o->action != MXD_ACT_RUN) return MXD_OK; /* --help never fails for what follows */
    }
    return MXD_OK;
}

static mxd_rc read_environment(mxd_options *o, const mxd_env *env, mxd_err *err) {
    for (int i = 0; i < MXD_OPT_COUNT; i++) {
        mxd_opt_id id = (mxd_opt_id)i;
        bool counts = mxd_opt_in_file(id) || id == MXD_OPT_CONFIG || id == MXD_OPT_NODES;
        if (!mxd_opt_is_for(id, o->prog) || !counts) continue;
        char name[64];
        mxd_opt_env_name(name, mxd_opt_row_get(id)->name);
        const char *value = mxd_env_get(env, name);
        if (!value) continue;
        note_no_effect(o, id);
        MXD_TRY(mxd_opt_set(o, id, value, MXD_FROM_ENV, name, MXD_E_INVAL, err));
    }
    return MXD_OK;
}

static mxd_rc set_defaults(mxd_options *o, mxd_err *err) {
    for (int i = 0; i < MXD_OPT_COUNT; i++) {
        const mxd_opt_row *row = mxd_opt_row_get((mxd_opt_id)i);
        if (!row->preset) continue;
        MXD_TRY(mxd_opt_set(o, (mxd_opt_id)i, row->preset, MXD_FROM_DEFAULT, NULL, MXD_E_INTERNAL,
                            err));
    }
    return MXD_OK;
}

mxd_rc mxd_options_parse_some(mxd_options *o, const mxd_alloc *al, mxd_prog prog, int argc,
                              char *const *argv, const mxd_env *env, mxd_err *err) {
    memset(o, 0, sizeof *o);
    o->al = al;
    o->prog = prog;
    MXD_TRY(set_defaults(o, err));
    MXD_TRY(parse_arguments(o, argc, argv, err));
    if (o->action != MXD_ACT_RUN) return MXD_OK;
    MXD_TRY(read_environment(o, env, err));
    return mxd_opt_is_for(MXD_OPT_CONFIG, prog) ? mxd_config_file_read(o, env, err) : MXD_OK;
}

mxd_rc mxd_options_parse(mxd_options *o, const mxd_alloc *al, mxd_prog prog, int argc,
                         char *const *argv, const mxd_env *env, mxd_err *err) {
    MXD_TRY(mxd_options_parse_some(o, al, prog, argc, argv, env, err));
    const mxd_prog_row *p = mxd_prog_row_get(prog);
    if (o->action != MXD_ACT_RUN || !p->argument_needed) return MXD_OK;
    return mxd_opt_need(o, p->argument_is, err);
}

void mxd_options_deinit(mxd_options *o) {
    for (int i = 0; i < MXD_OPT_COUNT; i++) mxd_opt_value_free(o->al, &o->values[i]);
    mxd_free(o->al, o->file);
    o->file = NULL;
}

bool mxd_opt_given(const mxd_options *o, mxd_opt_id id) {
    return o->values[id].origin > MXD_FROM_DEFAULT;
}

bool mxd_opt_bool(const mxd_options *o, mxd_opt_id id) { return o->values[id].number != 0; }
int64_t mxd_opt_int(const mxd_options *o, mxd_opt_id id) { return o->values[id].number; }
double mxd_opt_real(const mxd_options *o, mxd_opt_id id) { return o->values[id].real; }
const char *mxd_opt_text(const mxd_options *o, mxd_opt_id id) { return o->values[id].text; }

const char *const *mxd_opt_list(const mxd_options *o, mxd_opt_id id, int *n) {
    *n = o->values[id].n_items;
    return (const char *const *)o->values[id].items;
}

const char *mxd_opt_unless_auto(const mxd_options *o, mxd_opt_id id) {
    const char *s = mxd_opt_text(o, id);
    return s && strcmp(s, "auto") != 0 ? s : NULL;
}

const int *mxd_opt_ints(const mxd_options *o, mxd_opt_id id, int *n) {
    *n = o->values[id].n_items;
    return o->values[id].ints;
}

mxd_rc mxd_opt_need(const mxd_options *o, mxd_opt_id id, mxd_err *err) {
    const char *s = o->values[id].text;
    if (s && s[0]) return MXD_OK;
    const mxd_opt_row *row = mxd_opt_row_get(id);
    const mxd_prog_row *p = mxd_prog_row_get(o->prog);
    char here[64];
    program_text(o->prog, here);
    if (p->argument_is == id)
        return mxd_fail(err, MXD_E_INVAL, "%s is missing: give it as argument, for example '%s'",
                        row->meta, p->example);
    return mxd_fail(err, MXD_E_INVAL, "--%s is missing: for example '%s'; see %s --help", row->name,
                    p->example, here);
}
