#include "test.h"

#include <stdlib.h>
#include <unistd.h>
#include "cli/config_file.h"
#include "cli/option_help.h"
#include "cli/option_value.h"
#include "cli/term.h"

typedef struct fake_env {
    const char *pairs[16]; /* name, value, ... */
} fake_env;

static const char *fake_get(void *ctx, const char *name) {
    const fake_env *f = ctx;
    for (int i = 0; i + 1 < 16 && f->pairs[i]; i += 2)
        if (strcmp(f->pairs[i], name) == 0) return f->pairs[i + 1];
    return NULL;
}

static mxd_rc parse(mxd_options *o, mxd_prog prog, fake_env *f, mxd_err *err, const char *words) {
    static char text[1024];
    char *argv[32] = {(char *)"program"};
    int argc = 1;
    snprintf(text, sizeof text, "%s", words);
    char *save = NULL;
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) argv[argc++] = w;
    fake_env none = {{NULL}};
    mxd_env env = {fake_get, f ? f : &none};
    return mxd_options_parse(o, &mxd_alloc_libc, prog, argc, argv, &env, err);
}

TEST(options_every_spelling_is_unique_in_a_program) {
    for (int p = 0; p < MXD_PROG_COUNT; p++) {
        char seen[256][64];
        int n = 0;
        for (int i = 0; i < MXD_OPT_COUNT; i++) {
            if (!mxd_opt_is_for((mxd_opt_id)i, (mxd_prog)p)) continue;
            const mxd_opt_row *row = mxd_opt_row_get((mxd_opt_id)i);
            char all[256];
            snprintf(all, sizeof all, "--%s %s", row->name, row->spellings);
            char *save = NULL;
            for (char *w = strtok_r(all, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
                for (int k = 0; k < n; k++)
                    if (strcmp(seen[k], w) == 0)
                        fail_msg("%s twice in program %d (row %s)", w, p, row->name);
                snprintf(seen[n++], 64, "%s", w);
            }
        }
        CHECK(n > 0);
    }
}

TEST(options_rows_make_sense) {
    for (int i = 0; i < MXD_OPT_COUNT; i++) {
        const mxd_opt_row *row = mxd_opt_row_get((mxd_opt_id)i);
        size_t n = strlen(row->sentence);
        if (n < 10 || row->sentence[n - 1] != '.')
            fail_msg("--%s: '%s' is no sentence", row->name, row->sentence);
        CHECK(row->programs != 0);
        CHECK((row->type == MXD_OPT_CHOICE) == (row->choices != NULL));
        CHECK_EQ(mxd_opt_by_name(row->name), i);
    }
}

TEST(options_defaults_flags_and_arguments) {
    mxd_options o;
    mxd_err err = {0};
    CHECK_OK(parse(&o, MXD_PROG_SERVER, NULL, &err,
                   "demo --port=0 -np 7 --api-key a,b --api-key c --layer-split 3,2,1 --temp 0.5"),
             &err);
    CHECK_STR(mxd_opt_text(&o, MXD_OPT_MODEL), "demo");
    CHECK_STR(mxd_opt_text(&o, MXD_OPT_HOST), "127.0.0.1");
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_PORT), 0);
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_PARALLEL), 7);
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_TIMEOUT), 600000);
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_BACKEND), 0);
    CHECK(mxd_opt_real(&o, MXD_OPT_TEMP) == 0.5);
    CHECK(mxd_opt_given(&o, MXD_OPT_TEMP) && !mxd_opt_given(&o, MXD_OPT_HOST));
    CHECK(!mxd_opt_given(&o, MXD_OPT_TOP_P) && !mxd_opt_text(&o, MXD_OPT_TOP_P));
    int n;
    const char *const *keys = mxd_opt_list(&o, MXD_OPT_API_KEY, &n);
    CHECK_EQ(n, 3);
    CHECK_STR(keys[0], "a");
    CHECK_STR(keys[2], "c");
    const int *split = mxd_opt_ints(&o, MXD_OPT_LAYER_SPLIT, &n);
    CHECK_EQ(n, 3);
    CHECK_EQ(split[0] * 100 + split[1] * 10 + split[2], 321);
    mxd_options_deinit(&o);
}

TEST(options_familiar_spellings) {
    static const struct {
        const char *words;
        mxd_opt_id id;
        const char *want;
    } rows[] = {
        {"-m x", MXD_OPT_MODEL, "x"},
        {"-hf a/b", MXD_OPT_MODEL, "a/b"},
        {"--hf-repo a/b", MXD_OPT_MODEL, "a/b"},
        {"x --max-model-len 99", MXD_OPT_CTX_SIZE, "99"},
        {"x -c 99", MXD_OPT_CTX_SIZE, "99"},
        {"x --decode-concurrency 2", MXD_OPT_PARALLEL, "2"},
        {"x --served-model-name y", MXD_OPT_ALIAS, "y"},
        {"x --root-path /p", MXD_OPT_API_PREFIX, "/p"},
        {"x --hosts f", MXD_OPT_HOSTFILE, "f"},
        {"x --allowed-origins *", MXD_OPT_CORS_ORIGINS, "*"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_options o;
        mxd_err err = {0};
        CHECK_OK(parse(&o, MXD_PROG_SERVER, NULL, &err, rows[i].words), &err);
        CHECK_STR(mxd_opt_text(&o, rows[i].id), rows[i].want);
        mxd_options_deinit(&o);
    }
}

TEST(options_mistakes_are_named) {
    static const struct {
        mxd_prog prog;
        const char *words, *says;
    } rows[] = {
        {MXD_PROG_SERVER, "demo --max-tokns 3", "did you mean --max-tokens?"},
        {MXD_PROG_SERVER, "demo --prot 3", "did you mean --port?"},
        {MXD_PROG_SERVER, "demo --join x:1", "it belongs to mlx-dist-worker"},
        {MXD_PROG_SERVER, "demo --zzzzzzzzzz", "see mlx-dist-server --help"},
        {MXD_PROG_SERVER, "demo --port 65536",
         "--port: '65536' is not a whole number from 0 to 65535"},
        {MXD_PROG_SERVER, "demo --port -1", "from 0 to 65535"},
        {MXD_PROG_SERVER, "demo --port 80x", "'80x' is not"},
        {MXD_PROG_SERVER, "demo --port 99999999999999999999", "is not a whole number"},
        {MXD_PROG_SERVER, "demo --port", "--port needs a value"},
        {MXD_PROG_SERVER, "demo --backend gpu", "one of auto, cpu, mlx"},
        {MXD_PROG_SERVER, "demo --temp nan", "a number from 0 to 2"},
        {MXD_PROG_SERVER, "demo --temp 0x1", "a number from 0 to 2"},
        {MXD_PROG_SERVER, "demo --temp 1e400", "a number from 0 to 2"},
        {MXD_PROG_SERVER, "demo --layer-split 1,,2", "whole numbers"},
        {MXD_PROG_SERVER, "demo --timeout 5y", "like 30s, 15m"},
        {MXD_PROG_SERVER, "demo more", "unexpected argument 'more'"},
        {MXD_PROG_SERVER, "", "MODEL is missing"},
        {MXD_PROG_DETECT, "x", "takes none"},
        {MXD_PROG_WORKER, "--memory 16XB", "16GB (10^9 bytes)"},
        {MXD_PROG_WORKER, "--memory 9e30GB", "a size of at least"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_options o;
        mxd_err err = {0};
        mxd_rc rc = parse(&o, rows[i].prog, NULL, &err, rows[i].words);
        if (rc != MXD_E_INVAL || !strstr(err.msg, rows[i].says))
            fail_msg("'%s' gives %s: %s", rows[i].words, mxd_rc_name(rc), err.msg);
        CHECK_EQ(mxd_rc_exit(rc), 2);
        mxd_options_deinit(&o);
    }
}

TEST(options_units) {
    static const struct {
        const char *text;
        int64_t want;
    } sizes[] = {{"16GB", 16000000000},
                 {"16GiB", 17179869184},
                 {"1.5MiB", 1572864},
                 {"2000000", 2000000},
                 {"16 gb", 16000000000}},
      times[] = {{"90", 90000}, {"90s", 90000}, {"15m", 900000}, {"1500ms", 1500}, {"2h", 7200000}};
    mxd_err err = {0};
    mxd_options o = {.al = &mxd_alloc_libc};
    for (size_t i = 0; i < MXD_COUNT(sizes); i++) {
        CHECK_OK(
            mxd_opt_set(&o, MXD_OPT_MEMORY, sizes[i].text, MXD_FROM_FLAG, "x", MXD_E_INVAL, &err),
            &err);
        CHECK_EQ(mxd_opt_int(&o, MXD_OPT_MEMORY), sizes[i].want);
        CHECK_OK(mxd_opt_set(&o, MXD_OPT_TTL, times[i].text, MXD_FROM_FLAG, "x", MXD_E_INVAL, &err),
                 &err);
        CHECK_EQ(mxd_opt_int(&o, MXD_OPT_TTL), times[i].want);
    }
    mxd_options_deinit(&o);
}

static void write_file(char path[64], const char *text) {
    snprintf(path, 64, "/tmp/mxd-options-XXXXXX");
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

TEST(options_flag_beats_variable_beats_file) {
    char path[64], words[128];
    write_file(path, "# ours\nport: 1\nhost: 10.0.0.1\nctx-size: 100\nthreads: 3\n"
                     "server:\n  threads: 5\n  api-key: [one, two]\nworker: {threads: 9}\n");
    fake_env f = {{"MLXD_PORT", "2", "MLXD_HOST", "10.0.0.2", "MLXD_CONFIG", path}};
    mxd_options o;
    mxd_err err = {0};
    snprintf(words, sizeof words, "demo --port 3");
    CHECK_OK(parse(&o, MXD_PROG_SERVER, &f, &err, words), &err);
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_PORT), 3);
    CHECK_STR(mxd_opt_text(&o, MXD_OPT_HOST), "10.0.0.2");
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_CTX_SIZE), 100);
    CHECK_EQ(mxd_opt_int(&o, MXD_OPT_THREADS), 5);
    CHECK_STR(o.values[MXD_OPT_HOST].from, "MLXD_HOST");
    snprintf(words, sizeof words, "%s:4:11", path);
    CHECK_STR(o.values[MXD_OPT_CTX_SIZE].from, words);
    int n;
    mxd_opt_list(&o, MXD_OPT_API_KEY, &n);
    CHECK_EQ(n, 2);
    mxd_options_deinit(&o);
    unlink(path);
}

TEST(options_config_mistakes_are_named_with_their_place) {
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"port: 8080\nprot: 1\n", ":2:7: unknown key 'prot': did you mean port?"},
        {"port: many\n", ":1:7: 'many' is not a whole number"},
        {"server:\n  prot: 1\n", ":2:9: unknown key 'prot'"},
        {"sever:\n  port: 1\n", "did you mean server?"},
        {"worker:\n  memory: lots\n", ":2:11: 'lots' is not a size"},
        {"port: &a 1\nctx-size: *a\n", "line 1 column 7: anchors"},
        {"port: !!int 1\n", "tags are not allowed"},
        {"port: 1\nport: 2\n", "line 2 column 1: key 'port' is there twice"},
        {"port: [1\n", "line 2 column 1"},
        {"port: {a: 1}\n", "a value is expected here"},
        {"- port\n", "must hold keys and values"},
        {"config: x\n", "may not stand in a config file"},
        {"a: 1\n---\nb: 2\n", "only one document"},
        {"server: 5\n", "must be a group of keys"},
        {"\"port\\0x\": 5\n", "a key must be a text"},
        {"port: \xff\n", "line 1 column"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char path[64], words[128];
        write_file(path, rows[i].text);
        snprintf(words, sizeof words, "demo --config %s", path);
        mxd_options o;
        mxd_err err = {0};
        mxd_rc rc = parse(&o, MXD_PROG_SERVER, NULL, &err, words);
        if (rc != MXD_E_CONFIG || !strstr(err.msg, rows[i].says))
            fail_msg("'%s' gives %s: %s", rows[i].text, mxd_rc_name(rc), err.msg);
        mxd_options_deinit(&o);
        unlink(path);
    }
}

TEST(options_config_accepts_json_and_nothing) {
    static const char *const texts[] = {"{\"port\": 9, \"server\": {\"threads\": 2}}", "",
                                        "# empty\n", "port:\n", "~\n"};
    for (size_t i = 0; i < MXD_COUNT(texts); i++) {
        char path[64], words[128];
        write_file(path, texts[i]);
        snprintf(words, sizeof words, "demo --config %s", path);
        mxd_options o;
        mxd_err err = {0};
        CHECK_OK(parse(&o, MXD_PROG_SERVER, NULL, &err, words), &err);
        CHECK_EQ(mxd_opt_int(&o, MXD_OPT_PORT), i ? 8080 : 9);
        mxd_options_deinit(&o);
        unlink(path);
    }
}

TEST(options_help_fits_eighty_columns) {
    for (int p = 0; p < MXD_PROG_COUNT; p++) {
        mxd_buf b;
        mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
        mxd_help_write(&b, (mxd_prog)p);
        mxd_help_write_commands(&b);
        CHECK_EQ(b.rc, MXD_OK);
        for (const char *s = mxd_buf_str(&b); *s;) {
            size_t n = strcspn(s, "\n");
            if (n > 80) fail_msg("%zu columns: %.*s", n, (int)n, s);
            s += n + (s[n] == '\n');
        }
        CHECK(strstr(mxd_buf_str(&b), "Example:") && strstr(mxd_buf_str(&b), "--help"));
        mxd_buf_deinit(&b);
    }
}

TEST(options_help_and_version_need_nothing_else) {
    mxd_options o;
    mxd_err err = {0};
    CHECK_OK(parse(&o, MXD_PROG_SERVER, NULL, &err, "--help --nonsense"), &err);
    CHECK_EQ(o.action, MXD_ACT_HELP);
    mxd_options_deinit(&o);
    CHECK_OK(parse(&o, MXD_PROG_BENCH, NULL, &err, "--version"), &err);
    CHECK_EQ(o.action, MXD_ACT_VERSION);
    mxd_options_deinit(&o);
    CHECK_OK(parse(&o, MXD_PROG_SERVER, NULL, &err, "demo --jinja --metrics --jinja"), &err);
    CHECK_STR(o.note, "accepted without effect: --jinja, --metrics");
    mxd_options_deinit(&o);
}

TEST(options_document_is_in_step) {
    char path[1024];
    FILE *f = fopen(test_path(path, "../docs/cli.md"), "r");
    if (!f) fail_msg("no docs/cli.md: run mlxd-optdoc markdown > docs/cli.md");
    static char have[1 << 18];
    size_t n = fread(have, 1, sizeof have - 1, f);
    have[n] = '\0';
    fclose(f);
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    mxd_help_write_markdown(&b);
    bool same = strcmp(have, mxd_buf_str(&b)) == 0;
    mxd_buf_deinit(&b);
    if (!same) fail_msg("docs/cli.md differs: run mlxd-optdoc markdown > docs/cli.md");
}

TEST(options_completions_and_man_pages_are_made) {
    static const char *const shells[] = {"bash", "zsh", "fish"};
    mxd_err err = {0};
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 20);
    for (int i = 0; i < 3; i++) CHECK_OK(mxd_help_write_completion(&b, shells[i], &err), &err);
    for (int p = 0; p < MXD_PROG_COUNT; p++)
        CHECK_OK(mxd_help_write_man(&b, mxd_prog_row_get((mxd_prog)p)->program, &err), &err);
    CHECK_EQ(b.rc, MXD_OK);
    CHECK_EQ(mxd_help_write_man(&b, "nothing", &err), MXD_E_NOTFOUND);
    CHECK_EQ(mxd_help_write_completion(&b, "tcsh", &err), MXD_E_NOTFOUND);
    mxd_buf_deinit(&b);
}

TEST_OOM(options_parse_unwinds) {
    static char text[] = "--config";
    char path[64];
    write_file(path, "port: 1\nserver: {api-key: [a, b]}\n");
    char *argv[] = {text, text, path, (char *)"demo", (char *)"--layer-split", (char *)"1,2"};
    fake_env f = {{"MLXD_HOST", "h"}};
    mxd_env env = {fake_get, &f};
    mxd_options o;
    mxd_rc rc = mxd_options_parse(&o, al, MXD_PROG_SERVER, 6, argv, &env, err);
    mxd_options_deinit(&o);
    unlink(path);
    return rc;
}

TEST(term_texts) {
    char s[32];
    CHECK_STR(mxd_size_text(s, 0), "0 B");
    CHECK_STR(mxd_size_text(s, 999), "999 B");
    CHECK_STR(mxd_size_text(s, 17200000000), "17.2 GB");
    CHECK_STR(mxd_size_text(s, 999999), "1.00 MB");
    CHECK_STR(mxd_rate_text(s, 120e9, "B/s"), "120 GB/s");
    CHECK_STR(mxd_time_text(s, 900000), "15 min");
}

TEST(term_table_cuts_the_last_column_only) {
    mxd_table t;
    mxd_table_init(&t, &mxd_alloc_libc, 3);
    t.right[1] = true;
    static const char *const cells[] = {
        "node", "layers", "why", "box-one", "10", "because it is the fastest of them all"};
    for (int i = 0; i < 6; i++) mxd_table_cell(&t, "%s", cells[i]);
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 4096);
    mxd_table_write(&t, &b, 30);
    CHECK_STR(mxd_buf_str(&b), "node     layers  why\nbox-one      10  because it is\n");
    mxd_buf_deinit(&b);
    mxd_table_deinit(&t);
}
