#include "test.h"

#include <ftw.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "hub/resolve.h"

static char root[64];

static void put(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, name);
    for (char *p = path + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        mkdir(path, 0755);
        *p = '/';
    }
    FILE *f = fopen(path, "w");
    if (!f) fail_msg("cannot write %s", path);
    fputs(text, f);
    fclose(f);
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *where) {
    (void)st, (void)kind, (void)where;
    return remove(path);
}

__attribute__((destructor)) static void remove_tree(void) {
    if (root[0]) nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#define SHA  "0123456789abcdef0123456789abcdef01234567"
#define REPO "cache/models--org--tiny"

static void make_tree(void) {
    if (root[0]) return;
    snprintf(root, sizeof root, "/tmp/mxd-hub-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    put("plain/config.json", "{}");
    put("empty/readme", "");
    put("models/mine/config.json", "{}");
    put("share/models/demo/config.json", "{}");
    put("inst/share/mlx-distributed/models/demo/config.json", "{}");
    put("inst/bin/x", "");
    put("tree/models/demo/config.json", "{}");
    put("tree/meson.build", "");
    put("tree/build/src/cli/x", "");
    put("other/models/demo/config.json", "{}"); /* three up, but no source tree */
    put("other/build/src/cli/x", "");
    put(REPO "/refs/main", SHA "\n");
    put(REPO "/refs/broken", "not a commit at all, whatever it may be");
    put(REPO "/refs/evil", "../../../../../../etc/0123456789abcdef01");
    put(REPO "/refs/gone", "ffffffffffffffffffffffffffffffffffffffff");
    put(REPO "/snapshots/" SHA "/config.json", "{}");
    put("cache/models--org--part/refs/main", SHA);
    put("cache/models--org--part/snapshots/" SHA "/config.json", "{}");
    put("cache/models--org--part/snapshots/" SHA "/model.safetensors.index.json",
        "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\",\"c\":\"m-1."
        "safetensors\"}}");
    put("cache/models--org--part/snapshots/" SHA "/m-1.safetensors", "");
    put("hostile/config.json", "{}");
    put("hostile/model.safetensors.index.json",
        "{\"weight_map\":{\"a\":\"../plain/config.json\"}}");
}

static mxd_rc resolve(char out[MXD_HUB_PATH_MAX], const char *model, const char *program_dir,
                      mxd_err *err) {
    char name[256], models[128], cache[128], program[128];
    make_tree();
    snprintf(name, sizeof name, model[0] == '/' ? "%s%s" : "%.0s%s", root, model);
    snprintf(models, sizeof models, "%s/models", root);
    snprintf(cache, sizeof cache, "%s/cache", root);
    snprintf(program, sizeof program, "%s/%s", root, program_dir);
    mxd_hub_places p = {models, NULL, program_dir[0] ? program : NULL, cache};
    return mxd_hub_resolve(out, &mxd_alloc_libc, name, &p, err);
}

TEST(hub_finds_models) {
    static const struct {
        const char *model, *program_dir, *ends;
    } rows[] = {
        {"/plain", "", "/plain"},
        {"mine", "", "/models/mine"},
        {"demo", "inst/bin", "mlx-distributed/models/demo"},
        {"demo", "tree/build/src/cli", "models/demo"},
        {"org/tiny", "", "/snapshots/" SHA},
        {"org/tiny@main", "", "/snapshots/" SHA},
        {"org/tiny@" SHA, "", "/snapshots/" SHA},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char out[MXD_HUB_PATH_MAX];
        mxd_err err = {0};
        CHECK_OK(resolve(out, rows[i].model, rows[i].program_dir, &err), &err);
        size_t n = strlen(out), m = strlen(rows[i].ends);
        if (n < m || strcmp(out + n - m, rows[i].ends) != 0) fail_msg("%s: %s", rows[i].model, out);
    }
}

TEST(hub_finds_demo_in_a_package) {
    char out[MXD_HUB_PATH_MAX];
    mxd_err err = {0};
    make_tree();
    put("share/bin/x", "");
    CHECK_OK(resolve(out, "demo", "share/bin", &err), &err);
    CHECK(strstr(out, "share/bin/../models/demo"));
}

TEST(hub_says_what_is_missing) {
    static const struct {
        const char *model, *program_dir;
        mxd_rc rc;
        const char *says;
    } rows[] = {
        {"/nothing", "", MXD_E_NOTFOUND, "no folder '"},
        {"/empty", "", MXD_E_NOTFOUND, "has no config.json"},
        {"/plain/config.json", "", MXD_E_INVAL, "is a file"},
        {"demo", "other/build/src/cli", MXD_E_NOTFOUND, "the demo model is not installed"},
        {"dmeo", "", MXD_E_NOTFOUND, "did you mean demo?"},
        {"llama", "", MXD_E_NOTFOUND, "named org/name"},
        {"", "", MXD_E_INVAL, "no model was named"},
        {"org/none", "", MXD_E_NOTFOUND, "fetch it with 'hf download org/none'"},
        {"org/tiny@v2", "", MXD_E_NOTFOUND, "'hf download org/tiny --revision v2'"},
        {"org/tiny@gone", "", MXD_E_NOTFOUND, "is not in the model cache"},
        {"org/tiny@broken", "", MXD_E_FORMAT, "does not hold a commit"},
        {"org/tiny@evil", "", MXD_E_FORMAT, "does not hold a commit"},
        {"org/tiny@../x", "", MXD_E_NOTFOUND, "named org/name"},
        {"org/..", "", MXD_E_NOTFOUND, "named org/name"},
        {"a/b/c", "", MXD_E_NOTFOUND, "named org/name"},
        {"org/part", "", MXD_E_NOTFOUND, "1 of its files are missing (m-2.safetensors)"},
        {"/hostile", "", MXD_E_FORMAT, "names a file outside"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char out[MXD_HUB_PATH_MAX];
        mxd_err err = {0};
        mxd_rc rc = resolve(out, rows[i].model, rows[i].program_dir, &err);
        if (rc != rows[i].rc || !strstr(err.msg, rows[i].says))
            fail_msg("'%s': %s: %s", rows[i].model, mxd_rc_name(rc), err.msg);
    }
}

TEST(hub_cache_places) {
    static const struct {
        mxd_hub_env env;
        const char *want;
    } rows[] = {
        {{.hf_hub_cache = "/a", .huggingface_hub_cache = "/b", .hf_home = "/c"}, "/a"},
        {{.hf_hub_cache = "", .huggingface_hub_cache = "/b", .hf_home = "/c"}, "/b"},
        {{.hf_home = "/c", .xdg_cache_home = "/d", .home = "/e"}, "/c/hub"},
        {{.xdg_cache_home = "/d", .home = "/e"}, "/d/huggingface/hub"},
        {{.home = "/e"}, "/e/.cache/huggingface/hub"},
    };
    char out[MXD_HUB_PATH_MAX];
    mxd_err err = {0};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        CHECK_OK(mxd_hub_cache_dir(out, &rows[i].env, &err), &err);
        CHECK_STR(out, rows[i].want);
    }
    CHECK_EQ(mxd_hub_cache_dir(out, &(mxd_hub_env){0}, &err), MXD_E_CONFIG);
}
