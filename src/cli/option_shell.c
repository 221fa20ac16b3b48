/* Man pages and completions from the option table. */
#include "cli/option_help.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------------------------- man pages */

/* Text for troff: dashes that stay dashes, no control characters at the start of a line. */
static void man_text(mxd_buf *out, const char *s) {
    if (*s == '.' || *s == '\'') mxd_buf_puts(out, "\\&");
    for (; *s; s++) {
        if (*s == '-')
            mxd_buf_puts(out, "\\-");
        else if (*s == '\\')
            mxd_buf_puts(out, "\\e");
        else
            mxd_buf_putc(out, *s);
    }
}

static void man_row(mxd_buf *out, const mxd_opt_row *row) {
    mxd_buf_puts(out, ".TP\n\\fB");
    char name[64];
    snprintf(name, sizeof name, "--%s", row->name);
    man_text(out, name);
    for (const char *p = row->spellings; *p;) {
        size_t n = strcspn(p, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        mxd_buf_puts(out, "\\fR, \\fB");
        man_text(out, name);
        p += n;
        p += strspn(p, " ");
    }
    mxd_buf_puts(out, "\\fR");
    const char *value = row->type == MXD_OPT_CHOICE ? row->choices : row->meta;
    if (value) {
        mxd_buf_puts(out, " \\fI");
        man_text(out, value);
        mxd_buf_puts(out, "\\fR");
    }
    mxd_buf_putc(out, '\n');
    man_text(out, row->sentence);
    if (row->preset) {
        mxd_buf_puts(out, " Default: ");
        man_text(out, row->preset);
        mxd_buf_putc(out, '.');
    }
    mxd_buf_putc(out, '\n');
}

static void man_options(mxd_buf *out, mxd_prog prog, const char *title) {
    mxd_buf_printf(out, ".SH %s\n", title);
    for (int g = 0; g < MXD_GROUP_COUNT; g++) {
        bool any = false;
        for (int i = 0; i < MXD_OPT_COUNT; i++) {
            const mxd_opt_row *row = mxd_opt_row_get((mxd_opt_id)i);
            if (row->group != (mxd_opt_group)g || !mxd_opt_is_for((mxd_opt_id)i, prog)) continue;
            if (!any) mxd_buf_printf(out, ".SS %s\n", mxd_opt_group_title((mxd_opt_group)g));
            any = true;
            man_row(out, row);
        }
    }
}

static void man_synopsis(mxd_buf *out, const mxd_prog_row *p) {
    mxd_buf_puts(out, ".B ");
    man_text(out, p->program);
    if (p->command) mxd_buf_printf(out, " %s", p->command);
    mxd_buf_puts(out, "\n[options] ");
    if (p->argument) mxd_buf_puts(out, p->argument);
    mxd_buf_puts(out, "\n.br\n");
}

static void man_commands(mxd_buf *out, const char *program, bool synopsis) {
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        if (strcmp(p->program, program) != 0) continue;
        if (synopsis) {
            man_synopsis(out, p);
            continue;
        }
        char title[64] = "OPTIONS";
        if (p->command) snprintf(title, sizeof title, "\"OPTIONS OF %s\"", p->command);
        man_options(out, (mxd_prog)i, title);
        mxd_buf_puts(out, ".PP\nExample:\n.PP\n.nf\n");
        man_text(out, p->example);
        mxd_buf_puts(out, "\n.fi\n");
    }
}

mxd_rc mxd_help_write_man(mxd_buf *out, const char *program, mxd_err *err) {
    const mxd_prog_row *p = NULL;
    for (int i = MXD_PROG_COUNT - 1; i >= 0; i--)
        if (strcmp(mxd_prog_row_get((mxd_prog)i)->program, program) == 0)
            p = mxd_prog_row_get((mxd_prog)i);
    if (!p) return mxd_fail(err, MXD_E_NOTFOUND, "no program '%s'", program);
    mxd_buf_puts(out, ".TH ");
    for (const char *s = program; *s; s++)
        if (*s == '-')
            mxd_buf_puts(out, "\\-");
        else
            mxd_buf_putc(out, (char)(*s - 32));
    mxd_buf_printf(out, " 1 \"\" \"MLX Distributed %s\"\n.SH NAME\n", MXD_VERSION);
    man_text(out, program);
    mxd_buf_puts(out, " \\- ");
    man_text(out,
             p->command ? "Makes, checks and explains configurations and plans." : p->sentence);
    mxd_buf_puts(out, "\n.SH SYNOPSIS\n");
    man_commands(out, program, true);
    man_commands(out, program, false);
    mxd_buf_puts(out,
                 ".SH ENVIRONMENT\nEvery option \\fB\\-\\-name\\fR is also the variable "
                 "\\fBMLXD_NAME\\fR and the key \\fBname\\fR of the config file; the command "
                 "line wins, then the variable, then the file.\n"
                 ".SH \"EXIT STATUS\"\n0 success, 1 other failure, 2 usage, 3 configuration, 4 "
                 "model not found or not supported, 5 network or hub, 6 out of memory or does "
                 "not fit, 7 peer or cluster, 130 SIGINT, 143 SIGTERM.\n");
    return MXD_OK;
}

/* ------------------------------------------------------------------------------- completions */

static void each_word(const mxd_opt_row *row, void (*fn)(void *ctx, const char *word), void *ctx) {
    char word[64];
    snprintf(word, sizeof word, "--%s", row->name);
    fn(ctx, word);
    for (const char *p = row->spellings; *p;) {
        size_t n = strcspn(p, " ");
        snprintf(word, sizeof word, "%.*s", (int)n, p);
        fn(ctx, word);
        p += n;
        p += strspn(p, " ");
    }
}

static void put_word(void *ctx, const char *word) {
    mxd_buf *out = ctx;
    mxd_buf_puts(out, word);
    mxd_buf_putc(out, ' ');
}

static void put_case_word(void *ctx, const char *word) {
    mxd_buf *out = ctx;
    if (out->len && out->ptr[out->len - 1] != ' ') mxd_buf_putc(out, '|');
    mxd_buf_puts(out, word);
}

static void put_choices(mxd_buf *out, const char *choices) {
    for (const char *p = choices; *p; p++) mxd_buf_putc(out, *p == '|' ? ' ' : *p);
}

static void bash_words(mxd_buf *out, mxd_prog prog) {
    for (int i = 0; i < MXD_OPT_COUNT; i++)
        if (mxd_opt_is_for((mxd_opt_id)i, prog))
            each_word(mxd_opt_row_get((mxd_opt_id)i), put_word, out);
}

/* What may stand behind an option, for the word in $prev. */
static void bash_values(mxd_buf *out, mxd_prog prog) {
    for (int i = 0; i < MXD_OPT_COUNT; i++) {
        const mxd_opt_row *row = mxd_opt_row_get((mxd_opt_id)i);
        if (row->type == MXD_OPT_FLAG || !mxd_opt_is_for((mxd_opt_id)i, prog)) continue;
        mxd_buf_puts(out, "        ");
        each_word(row, put_case_word, out);
        mxd_buf_puts(out, ") ");
        if (row->type == MXD_OPT_CHOICE) {
            mxd_buf_puts(out, "COMPREPLY=($(compgen -W '");
            put_choices(out, row->choices);
            mxd_buf_puts(out, "' -- \"$cur\"));");
        } else if (row->type == MXD_OPT_PATH || i == MXD_OPT_MODEL) {
            mxd_buf_puts(out, "COMPREPLY=($(compgen -f -- \"$cur\"));");
        }
        mxd_buf_puts(out, " return;;\n");
    }
}

static void bash_program(mxd_buf *out, mxd_prog prog) {
    const mxd_prog_row *p = mxd_prog_row_get(prog);
    mxd_buf_puts(out, "    case \"$prev\" in\n");
    bash_values(out, prog);
    mxd_buf_puts(out, "    esac\n    if [[ $cur == -* ]]; then\n        COMPREPLY=($(compgen -W '");
    bash_words(out, prog);
    mxd_buf_puts(out, "' -- \"$cur\"))\n    else\n        COMPREPLY=($(compgen -f");
    if (p->argument_is == MXD_OPT_MODEL) mxd_buf_puts(out, " -W demo");
    if (p->argument_is == MXD_OPT_PROGRAM) {
        mxd_buf_puts(out, " -W '");
        put_choices(out, mxd_opt_row_get(MXD_OPT_PROGRAM)->choices);
        mxd_buf_putc(out, '\'');
    }
    mxd_buf_puts(out, " -- \"$cur\"))\n    fi\n");
}

/* "mlx-dist-config plan" as the name of a shell function. */
static void shell_name(char out[80], const mxd_prog_row *p) {
    snprintf(out, 80, "_%s%s%s", p->program, p->command ? "_" : "", p->command ? p->command : "");
    for (char *s = out; *s; s++)
        if (*s == '-') *s = '_';
}

static void write_bash(mxd_buf *out) {
    char name[80];
    mxd_buf_puts(out, "# bash completion of MLX Distributed; made from the option table\n");
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        shell_name(name, p);
        mxd_buf_printf(out,
                       "%s() {\n    local cur=${COMP_WORDS[COMP_CWORD]} "
                       "prev=${COMP_WORDS[COMP_CWORD-1]}\n    COMPREPLY=()\n",
                       name);
        bash_program(out, (mxd_prog)i);
        mxd_buf_puts(out, "}\n");
        if (!p->command) mxd_buf_printf(out, "complete -F %s %s\n", name, p->program);
    }
    mxd_buf_puts(out, "_mlx_dist_config() {\n    if ((COMP_CWORD == 1)); then\n"
                      "        COMPREPLY=($(compgen -W '");
    for (int i = 0; i < MXD_PROG_COUNT; i++)
        if (mxd_prog_row_get((mxd_prog)i)->command)
            mxd_buf_printf(out, "%s ", mxd_prog_row_get((mxd_prog)i)->command);
    mxd_buf_puts(out, "--help --version' -- \"${COMP_WORDS[1]}\"))\n        return\n    fi\n"
                      "    declare -F \"_mlx_dist_config_${COMP_WORDS[1]}\" > /dev/null &&\n"
                      "        \"_mlx_dist_config_${COMP_WORDS[1]}\"\n}\n"
                      "complete -F _mlx_dist_config mlx-dist-config\n");
}

/* zsh runs the bash functions through its own compatibility layer: one description, two shells. */
static void write_zsh(mxd_buf *out) {
    mxd_buf_puts(out, "#compdef");
    const char *last = "";
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        if (strcmp(p->program, last) != 0) mxd_buf_printf(out, " %s", p->program);
        last = p->program;
    }
    mxd_buf_puts(out, "\nautoload -U +X bashcompinit && bashcompinit\n");
    write_bash(out);
}

static void fish_text(mxd_buf *out, const char *s) {
    for (; *s; s++) {
        if (*s == '\'' || *s == '\\') mxd_buf_putc(out, '\\');
        mxd_buf_putc(out, *s);
    }
}

static void fish_row(mxd_buf *out, const mxd_prog_row *p, const mxd_opt_row *row) {
    mxd_buf_printf(out, "complete -c %s", p->program);
    if (p->command) mxd_buf_printf(out, " -n '__fish_seen_subcommand_from %s'", p->command);
    mxd_buf_printf(out, " -l %s", row->name);
    for (const char *q = row->spellings; *q;) {
        size_t n = strcspn(q, " ");
        const char *kind = q[1] == '-' ? "-l" : n == 2 ? "-s" : "-o";
        size_t dashes = q[1] == '-' ? 2 : 1;
        mxd_buf_printf(out, " %s %.*s", kind, (int)(n - dashes), q + dashes);
        q += n;
        q += strspn(q, " ");
    }
    if (row->type == MXD_OPT_CHOICE) {
        mxd_buf_puts(out, " -x -a '");
        put_choices(out, row->choices);
        mxd_buf_putc(out, '\'');
    } else if (row->type != MXD_OPT_FLAG) {
        mxd_buf_puts(out, row->type == MXD_OPT_PATH ? " -r" : " -x");
    }
    mxd_buf_puts(out, " -d '");
    fish_text(out, row->sentence);
    mxd_buf_puts(out, "'\n");
}

static void write_fish(mxd_buf *out) {
    mxd_buf_puts(out, "# fish completion of MLX Distributed; made from the option table\n");
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        if (p->command) {
            mxd_buf_printf(out, "complete -c %s -n __fish_use_subcommand -f -a %s -d '", p->program,
                           p->command);
            fish_text(out, p->sentence);
            mxd_buf_puts(out, "'\n");
        }
        for (int k = 0; k < MXD_OPT_COUNT; k++)
            if (mxd_opt_is_for((mxd_opt_id)k, (mxd_prog)i))
                fish_row(out, p, mxd_opt_row_get((mxd_opt_id)k));
    }
}

mxd_rc mxd_help_write_completion(mxd_buf *out, const char *shell, mxd_err *err) {
    if (strcmp(shell, "bash") == 0)
        write_bash(out);
    else if (strcmp(shell, "zsh") == 0)
        write_zsh(out);
    else if (strcmp(shell, "fish") == 0)
        write_fish(out);
    else
        return mxd_fail(err, MXD_E_NOTFOUND, "no completion for '%s': bash, zsh, fish", shell);
    return MXD_OK;
}
