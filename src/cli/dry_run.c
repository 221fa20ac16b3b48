#include "cli/dry_run.h"

#include <stdio.h>
#include <string.h>

#include "cli/plan_print.h"
#include "formats/json.h"
#include "model/model.h"

enum {
    OUT_MAX = 4 << 20,
    DEFAULT_CTX = 4096,
    DEFAULT_ROWS = 256,
    FRAME_HANDOFFS = 10 /* a frame between two processes of one machine costs as many */
};

/* The local workers, each with its part of this machine's memory, as the server would start them.
 */
static int local_nodes(const mxd_engine_opts *e, mxd_plan_node *nodes) {
    int n = e->local_workers > 0 ? e->local_workers : 1;
    for (int i = 0; i < n; i++) {
        nodes[i] = (mxd_plan_node){.memory_bytes = e->memory_total,
                                   .free_bytes = e->memory_free / (uint64_t)n,
                                   .bandwidth_bytes_per_s = e->bandwidth,
                                   .ops_per_s = e->ops,
                                   .paces = e->paces,
                                   .cpus = e->cpus,
                                   .host_cpus = e->host_cpus,
                                   .link_us = n > 1 ? FRAME_HANDOFFS * 1e6 * e->paces.handoff_s : 0,
                                   .home = true,
                                   .must = true};
        snprintf(nodes[i].host, sizeof nodes[i].host, "this machine");
        snprintf(nodes[i].name, sizeof nodes[i].name, "local-%d", i);
    }
    return n;
}

static mxd_rc read_sizes(const mxd_engine_opts *e, mxd_model_sizes *sizes, int *ctx, mxd_err *err) {
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, &mxd_alloc_libc, e->folder, err));
    int most = mxd_model_hparams(m)->context;
    *ctx = e->ctx > 0 ? e->ctx : most < DEFAULT_CTX ? most : DEFAULT_CTX;
    mxd_model_sizes_get(m, e->prefill_rows > 0 ? e->prefill_rows : DEFAULT_ROWS,
                        mxd_kv_of(e->kv, e->activations), sizes);
    mxd_model_close(m);
    return MXD_OK;
}

static mxd_rc print(const mxd_plan_view *v, bool json, bool no_color, mxd_err *err) {
    mxd_buf out;
    mxd_term t;
    mxd_term_init(&t, stdout, no_color);
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX);
    json_t *j = json ? mxd_plan_json(v) : NULL;
    if (j)
        mxd_json_write(&out, j, &(mxd_json_style){.indent = 2}), mxd_buf_putc(&out, '\n');
    else
        mxd_plan_print(&out, v, t.columns);
    json_decref(j);
    mxd_rc rc = mxd_buf_rc(&out, "the plan", err);
    if (!rc) fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return rc;
}

mxd_rc mxd_dry_run(const mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) {
    static mxd_model_sizes sizes; /* too big for a stack, and there is one main */
    static mxd_plan_node nodes[MXD_MAX_NODES];
    const mxd_engine_opts *e = &kit->opts;
    mxd_plan_opts opts = {.parallel = e->parallel, .chunk = e->prefill_rows, .shape = e->shape};
    mxd_plan plan;
    if (e->no_local)
        return mxd_fail(err, MXD_E_INVAL,
                        "--dry-run plans for this machine, and with --no-local it has no part: "
                        "describe the others with mlx-dist-config plan MODEL --nodes FILE");
    MXD_TRY(read_sizes(e, &sizes, &opts.ctx, err));
    int n = local_nodes(e, nodes);
    MXD_TRY(mxd_plan_make(&plan, &sizes, nodes, n, NULL, 0, &opts, err));
    const mxd_plan_view view = {kit->model_id, &plan, &sizes, nodes, n, opts.ctx, opts.parallel};
    return print(&view, mxd_opt_bool(o, MXD_OPT_JSON), mxd_opt_bool(o, MXD_OPT_NO_COLOR), err);
}
