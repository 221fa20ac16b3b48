#include "cli/plan_print.h"

#include "base/alloc.h"

static void add_rank(mxd_table *t, const mxd_plan_view *v, const mxd_plan_stage *s, int r,
                     bool longest) {
    const mxd_plan_rank *k = &s->ranks[r];
    char a[32], b[32], c[32];
    mxd_table_cell(t, "%s", v->nodes[k->node].name);
    mxd_table_cell(t, "%d-%d", s->layer0, s->layer1 - 1);
    mxd_table_cell(t, "%.3g %%", 100 * k->share);
    mxd_table_cell(t, "%s", mxd_size_text(a, k->weight_bytes));
    mxd_table_cell(t, "%s", mxd_size_text(b, k->kv_bytes));
    mxd_table_cell(t, "%s", mxd_size_text(c, v->nodes[k->node].free_bytes));
    if (r)
        mxd_table_cell(t, "%s", "\"");
    else
        mxd_table_cell(t, "%.3g ms", s->decode_ms);
    mxd_table_cell(t, "%s", longest && !r ? "longest" : "");
}

static const char *limit_name(mxd_limit l) {
    static const char *const names[] = {"bandwidth", "arithmetic", "link"};
    return names[l];
}

static const char *limit_text(mxd_limit l) {
    static const char *const texts[] = {"reading memory", "arithmetic", "links between nodes"};
    return texts[l];
}

void mxd_plan_print(mxd_buf *out, const mxd_plan_view *v, int columns) {
    static const char *const heads[] = {"node",  "layers", "share",   "weights",
                                        "cache", "of",     "a token", ""};
    const mxd_plan *p = v->plan;
    mxd_table t;
    mxd_table_init(&t, out->al, 8);
    for (int i = 1; i < 7; i++) t.right[i] = true;
    for (int i = 0; i < 8; i++) mxd_table_cell(&t, "%s", heads[i]);
    for (int i = 0; i < p->n_stages; i++)
        for (int r = 0; r < p->stages[i].n_ranks; r++)
            add_rank(&t, v, &p->stages[i], r, i == p->bottleneck && p->n_stages > 1);
    mxd_buf_printf(out, "%s, context %d, %d sequence%s\n\n", v->model, v->ctx, v->parallel,
                   v->parallel == 1 ? "" : "s");
    mxd_table_write(&t, out, columns);
    mxd_table_deinit(&t);
    mxd_buf_printf(out, "\npredicted: decode %.3g tokens/s for one stream, prefill %.3g tokens/s",
                   p->decode_tokens_per_s, p->prefill_tokens_per_s);
    if (v->parallel > 1)
        mxd_buf_printf(out, ", %d streams together %.3g tokens/s", v->parallel,
                       p->all_tokens_per_s);
    mxd_buf_printf(out, "\n(behind a prompt of %d tokens); most of the time goes for %s\n\nwhy:\n",
                   p->prompt, limit_text(p->limit));
    for (int i = 0; i < p->n_reasons; i++) {
        mxd_buf_puts(out, "  - ");
        mxd_wrap_text(out, p->reasons[i], 4, 4, columns);
        mxd_buf_putc(out, '\n');
    }
}

static json_t *rank_json(const mxd_plan_view *v, const mxd_plan_rank *k) {
    const mxd_plan_node *n = &v->nodes[k->node];
    uint64_t planned = k->weight_bytes + k->kv_bytes + k->scratch_bytes;
    return json_pack("{s:s, s:f, s:I, s:I, s:I, s:I, s:I}", "node", n->name, "share", k->share,
                     "weight_bytes", (json_int_t)k->weight_bytes, "kv_bytes",
                     (json_int_t)k->kv_bytes, "scratch_bytes", (json_int_t)k->scratch_bytes,
                     "planned_bytes", (json_int_t)planned, "free_bytes", (json_int_t)n->free_bytes);
}

/* Bytes of a stage are those of its leader; those of the others are in `ranks`. */
static json_t *stage_json(const mxd_plan_view *v, const mxd_plan_stage *s) {
    const mxd_plan_rank *k = &s->ranks[0];
    const mxd_plan_node *n = &v->nodes[k->node];
    uint64_t planned = k->weight_bytes + k->kv_bytes + k->scratch_bytes;
    json_t *ranks = json_array();
    for (int r = 0; ranks && r < s->n_ranks; r++)
        json_array_append_new(ranks, rank_json(v, &s->ranks[r]));
    return json_pack("{s:s, s:[i,i], s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:o}", "node",
                     n->name, "layers", s->layer0, s->layer1, "embed", s->embed, "head", s->head,
                     "weight_bytes", (json_int_t)k->weight_bytes, "kv_bytes",
                     (json_int_t)k->kv_bytes, "scratch_bytes", (json_int_t)k->scratch_bytes,
                     "planned_bytes", (json_int_t)planned, "free_bytes", (json_int_t)n->free_bytes,
                     "decode_ms", s->decode_ms, "exchange_ms", s->exchange_ms, "ranks", ranks);
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
    return json_pack("{s:i, s:s, s:i, s:i, s:i, s:o, s:i, s:f, s:f, s:f, s:i, s:s, s:s, s:o}",
                     "schema", 1, "model", v->model, "context", v->ctx, "parallel", v->parallel,
                     "n_layers", v->sizes->n_layers, "stages", stages, "prompt", p->prompt,
                     "decode_tokens_per_s", p->decode_tokens_per_s, "prefill_tokens_per_s",
                     p->prefill_tokens_per_s, "all_tokens_per_s", p->all_tokens_per_s, "bottleneck",
                     p->bottleneck, "bottleneck_node",
                     v->nodes[p->stages[p->bottleneck].ranks[0].node].name, "limit",
                     limit_name(p->limit), "reasons", reasons);
}
