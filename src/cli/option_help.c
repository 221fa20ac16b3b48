#include "cli/option_help.h"

#include <stdio.h>
#include <string.h>
#include "cli/term.h"

enum { COLUMNS = 80, SENTENCE_AT = 26 };

/* "auto|cpu|mlx", "N", or NULL for a flag */
static const char *value_name(const mxd_opt_row *row) {
    return row->type == MXD_OPT_CHOICE ? row->choices : row->meta;
}

/* "-m, --model, -hf, --hf-repo MODEL": short ones first, then the name, then the rest. */
static void put_spellings(char out[200], const mxd_opt_row *row) {
    char first[64] = "", rest[128] = "";
    for (const char *p = row->spellings; *p;) {
        int n = (int)strcspn(p, " ");
        bool letter = n == 2;
        char *to = letter ? first : rest;
        size_t cap = letter ? sizeof first : sizeof rest, used = strlen(to);
        snprintf(to + used, cap - used, letter ? "%.*s, " : ", %.*s", n, p);
        p += n;
        p += strspn(p, " ");
    }
    const char *value = value_name(row);
    snprintf(out, 200, "%s--%s%s%s%s", first, row->name, rest, value ? " " : "",
             value ? value : "");
}

static void put_default(char out[96], const mxd_opt_row *row) {
    out[0] = '\0';
    if (row->preset) snprintf(out, 96, " [%s]", row->preset);
}

static void help_row(mxd_buf *out, const mxd_opt_row *row) {
    char left[200], preset[96], text[600];
    put_spellings(left, row);
    put_default(preset, row);
    snprintf(text, sizeof text, "%s%s", row->sentence, preset);
    bool letter_first = left[1] != '-';
    char line[220];
    snprintf(line, sizeof line, "  %s%s", letter_first ? "" : "    ", left);
    mxd_wrap_text(out, "", 0, 0, COLUMNS);
    int at = 0;
    for (const char *p = line; *p == ' '; p++, at++) mxd_buf_putc(out, ' ');
    mxd_wrap_text(out, line + at, at, 8, COLUMNS);
    at = (int)strlen(line);
    if (at + 2 > SENTENCE_AT) {
        mxd_buf_putc(out, '\n');
        at = 0;
    }
    for (; at < SENTENCE_AT; at++) mxd_buf_putc(out, ' ');
    mxd_wrap_text(out, text, SENTENCE_AT, SENTENCE_AT, COLUMNS);
    mxd_buf_putc(out, '\n');
}

static void each_group(mxd_buf *out, mxd_prog prog, void (*title)(mxd_buf *out, const char *text),
                       void (*row)(mxd_buf *out, const mxd_opt_row *row)) {
    for (int g = 0; g < MXD_GROUP_COUNT; g++) {
        bool any = false;
        for (int i = 0; i < MXD_OPT_COUNT; i++) {
            const mxd_opt_row *r = mxd_opt_row_get((mxd_opt_id)i);
            if (r->group != (mxd_opt_group)g || !mxd_opt_is_for((mxd_opt_id)i, prog)) continue;
            if (!any) title(out, mxd_opt_group_title((mxd_opt_group)g));
            any = true;
            row(out, r);
        }
    }
}

static void help_title(mxd_buf *out, const char *text) { mxd_buf_printf(out, "\n%s:\n", text); }

static void put_usage(mxd_buf *out, const mxd_prog_row *p) {
    mxd_buf_puts(out, p->program);
    if (p->command) mxd_buf_printf(out, " %s", p->command);
    mxd_buf_puts(out, " [options]");
    if (p->argument) mxd_buf_printf(out, " %s", p->argument);
}

void mxd_help_write(mxd_buf *out, mxd_prog prog) {
    const mxd_prog_row *p = mxd_prog_row_get(prog);
    mxd_buf_puts(out, "Usage: ");
    put_usage(out, p);
    mxd_buf_puts(out, "\n\n");
    mxd_wrap_text(out, p->sentence, 0, 0, COLUMNS);
    mxd_buf_putc(out, '\n');
    each_group(out, prog, help_title, help_row);
    mxd_buf_puts(out, "\n");
    mxd_wrap_text(
        out,
        "Every option is also a variable (--ctx-size: MLXD_CTX_SIZE) and a key of the "
        "config file (ctx-size:). The command line wins, then the variable, then the file.",
        0, 0, COLUMNS);
    mxd_buf_putc(out, '\n');
    mxd_buf_printf(out, "\nExample:\n  %s\n", p->example);
}

void mxd_help_write_commands(mxd_buf *out) {
    mxd_buf_puts(out, "Usage: mlx-dist-config COMMAND [options]\n\n"
                      "Makes, checks and explains configurations and plans.\n\nCommands:\n");
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        if (!p->command) continue;
        char left[64];
        snprintf(left, sizeof left, "  %s %s", p->command, p->argument ? p->argument : "");
        mxd_buf_printf(out, "%-20s", left);
        mxd_wrap_text(out, p->sentence, 20, 20, COLUMNS);
        mxd_buf_putc(out, '\n');
    }
    mxd_buf_puts(out, "\nmlx-dist-config COMMAND --help lists a command's options.\n\n"
                      "Example:\n  mlx-dist-config plan demo --nodes nodes.json\n");
}

/* ------------------------------------------------------------------------------- docs/cli.md */

static void md_text(mxd_buf *out, const char *s) {
    for (; *s; s++) {
        if (strchr("|<>*_", *s)) mxd_buf_putc(out, '\\');
        mxd_buf_putc(out, *s);
    }
}

static void md_title(mxd_buf *out, const char *text) {
    mxd_buf_printf(out, "\n**%s**\n\n| option | value | default | meaning |\n|---|---|---|---|\n",
                   text);
}

static void md_row(mxd_buf *out, const mxd_opt_row *row) {
    mxd_buf_printf(out, "| `--%s`", row->name);
    for (const char *p = row->spellings; *p;) {
        int n = (int)strcspn(p, " ");
        mxd_buf_printf(out, ", `%.*s`", n, p);
        p += n;
        p += strspn(p, " ");
    }
    mxd_buf_puts(out, " | ");
    if (value_name(row)) md_text(out, value_name(row));
    mxd_buf_puts(out, " | ");
    if (row->preset) mxd_buf_printf(out, "`%s`", row->preset);
    mxd_buf_puts(out, " | ");
    md_text(out, row->sentence);
    mxd_buf_puts(out, " |\n");
}

void mxd_help_write_markdown(mxd_buf *out) {
    mxd_buf_puts(
        out, "# Command line\n\n"
             "Made from `src/cli/option_table.h` by `mlxd-optdoc markdown`; a test fails when "
             "they differ.\n\n"
             "Every option `--name` is also the environment variable `MLXD_NAME` (dashes become "
             "underscores) and the\nkey `name` of the config file. The command line wins, then "
             "the variable, then the file, then the model's own\ndefault, then the default here. "
             "`--name=value` and `--name value` mean the same; `--` ends the options.\n\n"
             "Config file: `--config FILE`, else `$XDG_CONFIG_HOME/mlx-distributed/config.yaml`, "
             "else\n`/etc/mlx-distributed/config.yaml`; YAML or JSON. A group named like a program "
             "(`server:`, `worker:`) holds keys\nfor that program alone.\n\n"
             "Exit codes: 0 success, 1 other failure, 2 usage, 3 configuration, 4 model not found "
             "or not supported,\n5 network or hub, 6 out of memory or does not fit, 7 peer or "
             "cluster, 130 SIGINT, 143 SIGTERM.\n");
    for (int i = 0; i < MXD_PROG_COUNT; i++) {
        const mxd_prog_row *p = mxd_prog_row_get((mxd_prog)i);
        mxd_buf_printf(out, "\n## %s%s%s\n\n%s\n\n```\n", p->program, p->command ? " " : "",
                       p->command ? p->command : "", p->sentence);
        put_usage(out, p);
        mxd_buf_printf(out, "\n\n%s\n```\n", p->example);
        each_group(out, (mxd_prog)i, md_title, md_row);
    }
}
