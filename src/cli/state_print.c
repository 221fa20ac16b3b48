#include "cli/state_print.h"

#include "cli/term.h"

enum { TEXT_MAX = 1 << 20 };

static uint64_t bytes_of(const json_t *o, const char *key) {
    return (uint64_t)json_integer_value(json_object_get(o, key));
}

static void row(mxd_table *t, const json_t *stage) {
    const json_t *rank = json_array_get(json_object_get(stage, "ranks"), 0);
    const json_t *layers = json_object_get(stage, "layers");
    char weights[32], kv[32];
    bool embed = json_is_true(json_object_get(stage, "embed"));
    bool head = json_is_true(json_object_get(stage, "head"));
    mxd_table_cell(t, "%s", json_string_value(json_object_get(rank, "node")));
    mxd_table_cell(t, "%d-%d", (int)json_integer_value(json_array_get(layers, 0)),
                   (int)json_integer_value(json_array_get(layers, 1)) - 1);
    mxd_table_cell(t, "%s", mxd_size_text(weights, bytes_of(rank, "weight_bytes")));
    mxd_table_cell(t, "%s", mxd_size_text(kv, bytes_of(rank, "kv_bytes")));
    mxd_table_cell(t, "%s%s%s", embed ? "embedding" : "", embed && head ? ", " : "",
                   head ? "head" : "");
}

void mxd_state_print_plan(FILE *to, const json_t *state) {
    const json_t *plan = json_object_get(state, "plan"), *stages = json_object_get(plan, "stages");
    if (!json_array_size(stages)) return;
    mxd_table t;
    mxd_buf out;
    mxd_term term;
    mxd_term_init(&term, to, false);
    mxd_buf_init(&out, &mxd_alloc_libc, TEXT_MAX);
    mxd_table_init(&t, &mxd_alloc_libc, 5);
    t.right[2] = t.right[3] = true;
    static const char *const titles[] = {"node", "layers", "weights", "KV cache", "also"};
    for (size_t i = 0; i < MXD_COUNT(titles); i++) mxd_table_cell(&t, "%s", titles[i]);
    size_t i;
    json_t *item;
    json_array_foreach(stages, i, item) row(&t, item);
    mxd_table_write(&t, &out, term.columns);
    fprintf(to, "plan, epoch %d:\n%s", (int)json_integer_value(json_object_get(state, "epoch")),
            mxd_buf_str(&out));
    json_array_foreach(json_object_get(plan, "reasons"), i, item)
        fprintf(to, "  because %s\n", json_string_value(item));
    mxd_table_deinit(&t);
    mxd_buf_deinit(&out);
}
