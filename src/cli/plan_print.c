#include "cli/plan_print.h"

#include "base/alloc.h"

void mxd_plan_print(mxd_buf *out, const mxd_plan_view *v, int columns) {
    static const char *const heads[] = {"node", "layers", "weights", "cache", "of", "a token", ""};
    const mxd_plan *p = v->plan;
    char a[32], b[32], c[32];
    mxd_table t;
    mxd_table_init(&t, out->al, 7);
    for (int i = 1; i < 6; i++) t.right[i] = true;
    for (int i = 0; i < 7; i++) mxd_table_cell(&t, "%s", heads[i]);
    for (int i = 0; i < p->n_stages; i++) {
        const mxd_plan_stage *s = &p->stages[i];
        mxd_table_cell(&t, "%s", v->nodes[s->ranks[0].node].name);
        mxd_table_cell(&t, "%d-%d", s->layer0, s->layer1 - 1);
        mxd_table_cell(&t, "%s", mxd_size_text(a, s->ranks[0].weight_bytes));
        mxd_table_cell(&t, "%s", mxd_size_text(b, s->ranks[0].kv_bytes));
        mxd_table_cell(&t, "%s", mxd_size_text(c, v->nodes[s->ranks[0].node].free_bytes));
        mxd_table_cell(&t, "%.3g ms", s->decode_ms);
        mxd_table_cell(&t, "%s", i == p->bottleneck && p->n_stages > 1 ? "longest" : "");
    }
    mxd_buf_printf(out, "%s, context %d, %d sequence%s\n\n", v->model, v->ctx, v->parallel,
                   v->parallel == 1 ? "" : "s");
    mxd_table_write(&t, out, columns);
    mxd_table_deinit(&t);
    mxd_buf_printf(
        out, "\npredicted: decode %.3g tokens/s for one stream, prefill %.3g tokens/s\n\nwhy:\n",
        p->decode_tokens_per_s, p->prefill_tokens_per_s);
    for (int i = 0; i < p->n_reasons; i++) {
        mxd_buf_puts(out, "  - ");
        mxd_wrap_text(out, p->reasons[i], 4, 4, columns);
        mxd_buf_putc(out, '\n');
    }
}

static json_t *stage_json(const mxd_plan_view *v, const mxd_plan_stage *s) {
    const mxd_plan_node *n = &v->nodes[s->ranks[0].node];
    uint64_t planned = s->ranks[0].weight_bytes + s->ranks[0].kv_bytes + s->ranks[0].scratch_bytes;
    return json_pack("{s:s, s:[i,i], s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:f}", "node", n->name,
                     "layers", s->layer0, s->layer1, "embed", s->embed, "head", s->head,
                     "weight_bytes", (json_int_t)s->ranks[0].weight_bytes, "kv_bytes",
                     (json_int_t)s->ranks[0].kv_bytes, "scratch_bytes",
                     (json_int_t)s->ranks[0].scratch_bytes, "planned_bytes", (json_int_t)planned,
                     "free_bytes", (json_int_t)n->free_bytes, "decode_ms", s->decode_ms);
}

json_t *mxd_plan_json(const mxd_plan_view *v) {
    const mxd_plan *p = v->plan;
    json_t *stages = json_array(), *reasons = json_array();
    bool ok = stages && reasons;
    for (int i = 0; ok && i < p->n_stages; i++)
        ok = json_array_append_new(stages, stage_json(v, &p->stages[i])) == 0;
    for (int i = 0; ok && i < p->n_reasons; i++)
        ok = json_array_append_new(reasons, json_string(p->reasons[i])) == 0;
    if (!ok) {
        json_decref(stages);
        json_decref(reasons);
        return NULL;
    }
    return json_pack("{s:i, s:s, s:i, s:i, s:i, s:o, s:f, s:f, s:i, s:o}", "schema", 1, "model",
                     v->model, "context", v->ctx, "parallel", v->parallel, "n_layers",
                     v->sizes->n_layers, "stages", stages, "decode_tokens_per_s",
                     p->decode_tokens_per_s, "prefill_tokens_per_s", p->prefill_tokens_per_s,
                     "bottleneck", p->bottleneck, "reasons", reasons);
}
