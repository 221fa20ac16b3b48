#include "test.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "cli/nodes_file.h"
#include "cli/plan_print.h"
#include "cli/state.h"
#include "formats/json.h"

static void make_dir(char base[64], char dir[96]) {
    snprintf(base, 64, "/tmp/mxd-state-XXXXXX");
    CHECK(mkdtemp(base) != NULL);
    snprintf(dir, 96, "%s/a/b", base);
}

static void remove_dir(const char *base, const char *dir) {
    static const char *const names[] = {"ca.pem", "ca.key", "tokens.json", "tokens.lock"};
    char path[256];
    for (size_t i = 0; i < MXD_COUNT(names); i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
    snprintf(path, sizeof path, "%s/a", base);
    rmdir(path);
    rmdir(base);
}

static void check_mode(const char *dir, const char *name, mode_t want) {
    char path[256];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    CHECK_EQ(stat(path, &st), 0);
    CHECK_EQ(st.st_mode & 0777, want);
}

TEST(state_ca_is_made_once) {
    char base[64], dir[96];
    bool made;
    mxd_err err = {0};
    make_dir(base, dir);
    CHECK_OK(mxd_state_make_ca(&mxd_alloc_libc, dir, "home", &made, &err), &err);
    CHECK(made);
    check_mode(dir, ".", 0700);
    check_mode(dir, "ca.key", 0600);
    CHECK_OK(mxd_state_make_ca(&mxd_alloc_libc, dir, "home", &made, &err), &err);
    CHECK(!made);
    remove_dir(base, dir);
}

TEST(state_tokens_have_uses_and_an_end) {
    char base[64], dir[96], token[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX];
    unsigned char print[32];
    bool made, spent;
    mxd_err err = {0};
    const mxd_alloc *al = &mxd_alloc_libc;
    make_dir(base, dir);
    CHECK_EQ(mxd_state_add_token(al, dir, 1, 1000, 5000, token, &err), MXD_E_CONFIG);
    CHECK_OK(mxd_state_make_ca(al, dir, "home", &made, &err), &err);
    CHECK_OK(mxd_state_spend(al, dir, "nothing", 5000, &spent, &err), &err);
    CHECK(!spent);
    CHECK_OK(mxd_state_add_token(al, dir, 2, 1000, 5000, token, &err), &err);
    check_mode(dir, "tokens.json", 0600);
    CHECK_OK(mxd_token_parse(token, print, secret, &err), &err);
    static const struct {
        int64_t now;
        bool want;
    } rows[] = {{5999, true}, {6000, false}, {5999, true}, {5999, false}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        CHECK_OK(mxd_state_spend(al, dir, secret, rows[i].now, &spent, &err), &err);
        if (spent != rows[i].want) fail_msg("row %zu", i);
    }
    remove_dir(base, dir);
}

TEST(state_refuses_a_damaged_file) {
    char base[64], dir[96], path[160], token[MXD_TOKEN_MAX];
    bool made, spent;
    mxd_err err = {0};
    make_dir(base, dir);
    CHECK_OK(mxd_state_make_ca(&mxd_alloc_libc, dir, "home", &made, &err), &err);
    snprintf(path, sizeof path, "%s/tokens.json", dir);
    FILE *f = fopen(path, "w");
    fputs("{\"tokens\": 5}", f);
    fclose(f);
    CHECK_EQ(mxd_state_spend(&mxd_alloc_libc, dir, "x", 0, &spent, &err), MXD_E_FORMAT);
    CHECK_EQ(mxd_state_add_token(&mxd_alloc_libc, dir, 1, 1, 0, token, &err), MXD_E_FORMAT);
    remove_dir(base, dir);
}

static mxd_rc read_nodes(mxd_nodes_file *f, const char *text, mxd_err *err) {
    char path[] = "/tmp/mxd-nodes-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
    mxd_rc rc = mxd_nodes_file_read(f, path, err);
    unlink(path);
    return rc;
}

static mxd_nodes_file nodes;

TEST(nodes_file_reads) {
    mxd_err err = {0};
    CHECK_OK(read_nodes(&nodes,
                        "{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":10,\"free_bytes\":7,"
                        "\"bandwidth_bytes_per_s\":1e9,\"ops_per_s\":2e9,\"must\":true},"
                        "{\"name\":\"b\",\"memory_bytes\":20,\"host\":\"h\",\"link_us\":90,"
                        "\"link_bytes_per_s\":1e7,\"paces\":{\"region_us\":2,\"tile_ns\":12}}],"
                        "\"links\":[{\"a\":\"b\",\"b\":\"a\","
                        "\"latency_us\":150,\"bandwidth_bytes_per_s\":1e8}]}",
                        &err),
             &err);
    CHECK_EQ(nodes.n_nodes, 2);
    CHECK_EQ(nodes.nodes[0].free_bytes, 7);
    CHECK_EQ(nodes.nodes[1].free_bytes, 20);
    CHECK(nodes.nodes[0].must && !nodes.nodes[1].must);
    CHECK(strcmp(nodes.nodes[1].host, "h") == 0 && nodes.nodes[1].link_us == 90);
    CHECK(nodes.nodes[1].link_bytes_per_s == 1e7 && nodes.nodes[1].paces.region_s == 2e-6);
    CHECK_EQ(nodes.links[0].a, 1);
    CHECK(nodes.links[0].latency_us == 150);
}

TEST(nodes_file_mistakes) {
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"[]", "the file must be an object"},
        {"{}", "1 to 64 nodes"},
        {"{\"nodes\":[{}]}", "node 0: a name"},
        {"{\"nodes\":[{\"name\":\"a\"}]}", "node 'a': memory_bytes is needed"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":-1}]}", "must be a number from 0"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":1e300}]}", "must be a number from 0"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory\":1}]}", "unknown key 'memory'"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":1,\"paces\":{\"x\":1}}]}",
         "unknown key 'x'"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":1},{\"name\":\"a\",\"memory_bytes\":1}]}",
         "twice"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":1}],\"links\":[{\"a\":\"a\",\"b\":\"c\"}]}",
         "names of two nodes"},
        {"{\"nodes\":[{\"name\":\"a\",\"memory_bytes\":1}],\"links\":5}", "\"links\" must be"},
    };
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_err err = {0};
        mxd_rc rc = read_nodes(&nodes, rows[i].text, &err);
        if (rc != MXD_E_CONFIG || !strstr(err.msg, rows[i].says))
            fail_msg("row %zu: %s: %s", i, mxd_rc_name(rc), err.msg);
    }
}

TEST(plan_is_printed) {
    mxd_plan p = {
        .n_stages = 1, .decode_tokens_per_s = 10, .prefill_tokens_per_s = 100, .n_reasons = 1};
    mxd_plan_node n = {.name = "a", .memory_bytes = 8, .free_bytes = 5000000000};
    static mxd_model_sizes sizes;
    sizes.n_layers = 4;
    p.stages[0] = (mxd_plan_stage){.layer1 = 4,
                                   .embed = true,
                                   .head = true,
                                   .n_ranks = 1,
                                   .ranks[0] = {.share = 1, .weight_bytes = 1000000}};
    snprintf(p.reasons[0], sizeof p.reasons[0], "a runs everything");
    mxd_plan_view v = {"demo", &p, &sizes, &n, 1, 512, 1};
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1 << 16);
    mxd_plan_print(&b, &v, 80);
    CHECK(strstr(mxd_buf_str(&b), "a        0-3  100 %  1.00 MB    0 B  5.00 GB"));
    CHECK(strstr(mxd_buf_str(&b), "- a runs everything"));
    mxd_buf_deinit(&b);
    json_t *j = mxd_plan_json(&v);
    CHECK(j != NULL);
    const json_t *stage = json_array_get(json_object_get(j, "stages"), 0);
    CHECK_STR(json_string_value(json_object_get(stage, "node")), "a");
    CHECK_EQ(json_integer_value(json_array_get(json_object_get(stage, "layers"), 1)), 4);
    json_decref(j);
}
