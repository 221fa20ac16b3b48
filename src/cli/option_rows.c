/* The table of option_table.h as data, and look-ups in it. */
#include "cli/options.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

#define ON(p) (1u << MXD_PROG_##p)

static const mxd_opt_row rows[MXD_OPT_COUNT] = {
#define X(id, name, spellings, programs, group, type, meta, least, most, preset, choices, text) \
    {name,   spellings, programs, MXD_GROUP_##group, MXD_OPT_##type, meta, least, most,         \
     preset, choices,   text},
    MXD_OPTION_MAP(X)
#undef X
};

static const mxd_prog_row progs[MXD_PROG_COUNT] = {
#define X(id, program, command, argument, argument_is, needed, text, example) \
    {program, command, argument, MXD_OPT_##argument_is, needed, text, example},
    MXD_PROGRAM_MAP(X)
#undef X
};

const mxd_opt_row *mxd_opt_row_get(mxd_opt_id id) {
    MXD_ASSERT((unsigned)id < MXD_OPT_COUNT);
    return &rows[id];
}

const mxd_prog_row *mxd_prog_row_get(mxd_prog prog) {
    MXD_ASSERT((unsigned)prog < MXD_PROG_COUNT);
    return &progs[prog];
}

const char *mxd_opt_group_title(mxd_opt_group g) {
    static const char *const titles[MXD_GROUP_COUNT] = {
        "Model",       "Prompt",   "Tests",
        "HTTP server", "Sampling", "Compute",
        "Cluster",     "General",  "Accepted without effect"};
    return titles[g];
}

bool mxd_opt_is_for(mxd_opt_id id, mxd_prog prog) { return rows[id].programs >> prog & 1; }

bool mxd_opt_in_file(mxd_opt_id id) {
    return id != MXD_OPT_CONFIG && id != MXD_OPT_HELP && id != MXD_OPT_VERSION &&
           id != MXD_OPT_PROGRAM && id != MXD_OPT_EFFECTIVE && id != MXD_OPT_NODES;
}

mxd_opt_id mxd_opt_by_name(const char *name) {
    for (int i = 0; i < MXD_OPT_COUNT; i++)
        if (strcmp(rows[i].name, name) == 0) return (mxd_opt_id)i;
    return MXD_OPT_COUNT;
}

bool mxd_prog_by_command(const char *name, mxd_prog *out) {
    for (int p = 0; p < MXD_PROG_COUNT; p++) {
        if (!progs[p].command || strcmp(progs[p].command, name) != 0) continue;
        *out = (mxd_prog)p;
        return true;
    }
    return false;
}

bool mxd_prog_by_name(const char *name, mxd_prog *out) {
    const char *prefix = "mlx-dist-";
    for (int p = 0; p < MXD_PROG_COUNT; p++) {
        if (progs[p].command) continue;
        if (strcmp(progs[p].program, name) && strcmp(progs[p].program + strlen(prefix), name))
            continue;
        *out = (mxd_prog)p;
        return true;
    }
    return false;
}

void mxd_opt_env_name(char out[64], const char *name) {
    static const char prefix[] = "MLXD_";
    size_t n = sizeof prefix - 1;
    memcpy(out, prefix, n);
    for (; *name && n < 63; name++)
        out[n++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    out[n] = '\0';
}

bool mxd_text_is_true(const char *s) {
    static const char *const yes[] = {"1", "on", "yes", "true"};
    for (size_t i = 0; s && i < MXD_COUNT(yes); i++)
        if (strcasecmp(s, yes[i]) == 0) return true;
    return false;
}

/* Optimal string alignment: insert, delete, replace, swap of neighbours; one each. */
int mxd_edit_distance(const char *a, const char *b) {
    enum { MOST = 64 };
    int n = (int)strnlen(a, MOST + 1), m = (int)strnlen(b, MOST + 1);
    if (n > MOST || m > MOST) return 1000;
    int d[3][MOST + 1]; /* rows i - 2, i - 1, i */
    for (int j = 0; j <= m; j++) d[1][j] = j;
    for (int i = 1; i <= n; i++) {
        d[2][0] = i;
        for (int j = 1; j <= m; j++) {
            int best = d[1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[1][j] + 1 < best) best = d[1][j] + 1;
            if (d[2][j - 1] + 1 < best) best = d[2][j - 1] + 1;
            bool swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swap && d[0][j - 2] + 1 < best) best = d[0][j - 2] + 1;
            d[2][j] = best;
        }
        memcpy(d[0], d[1], sizeof d[0]);
        memcpy(d[1], d[2], sizeof d[1]);
    }
    return d[1][m];
}

const char *mxd_nearest(const char *word, const char *const *candidates, int n) {
    int best = 1000;
    const char *who = NULL;
    for (int i = 0; i < n; i++) {
        int d = mxd_edit_distance(word, candidates[i]);
        if (d >= best) continue;
        best = d;
        who = candidates[i];
    }
    int allowed = 1 + (int)strlen(word) / 4;
    return best <= allowed ? who : NULL;
}
