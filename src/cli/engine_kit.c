#include "cli/engine_kit.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/rand.h"
#include "cli/main_kit.h"
#include "cli/shape.h"
#include "cli/state.h"
#include "cli/term.h"
#include "cluster/places.h"
#include "hardware/hardware.h"

enum { LOAD_TIMEOUT_MS = 900000, PROGRESS_MS = 200 };

/* ------------------------------------------------------------------------------------- options */

static mxd_rc read_template(mxd_engine_kit *kit, const char *path, mxd_err *err) {
    MXD_TRY(mxd_file_read(&mxd_alloc_libc, path, MXD_TEMPLATE_MAX_BYTES, &kit->chat_template, NULL,
                          err));
    kit->opts.chat_template = kit->chat_template;
    return MXD_OK;
}

/* mlx-dist-worker lies beside the program that starts it. */
static mxd_rc find_worker(mxd_engine_kit *kit, mxd_err *err) {
    char dir[1024];
    mxd_main_program_dir(dir);
    snprintf(kit->worker, sizeof kit->worker, "%s/mlx-dist-worker", dir);
    if (access(kit->worker, X_OK) != 0)
        return mxd_fail(err, MXD_E_NOTFOUND,
                        "mlx-dist-worker is not beside this program (%s); install it there, or run "
                        "without --local-workers",
                        dir);
    kit->opts.worker_program = kit->worker;
    return MXD_OK;
}

static bool has(const mxd_options *o, mxd_opt_id id) { return mxd_opt_is_for(id, o->prog); }

/* A folder is known by its last part, other models by the name that was given. */
static void public_name(mxd_engine_kit *kit, const mxd_options *o) {
    int n = 0;
    const char *const *alias = has(o, MXD_OPT_ALIAS) ? mxd_opt_list(o, MXD_OPT_ALIAS, &n) : NULL;
    const char *model = n > 0 ? alias[0] : mxd_opt_text(o, MXD_OPT_MODEL), *from = model;
    size_t len = strlen(model);
    while (len > 1 && model[len - 1] == '/') len--;
    if (n == 0 && access(model, F_OK) == 0)
        for (size_t i = 0; i + 1 < len; i++)
            if (model[i] == '/') from = model + i + 1;
    snprintf(kit->model_id, sizeof kit->model_id, "%.*s", (int)(len - (size_t)(from - model)),
             from);
}

/* A backend that was asked for by name must open: said at once, in one line, instead of by every
 * worker later. */
static mxd_rc check_backend(const char *name, mxd_err *err) {
    mxd_backend *b;
    if (!name) return MXD_OK;
    MXD_TRY(mxd_backend_open(&b, &mxd_alloc_libc, name, &(mxd_backend_opts){.threads = 1}, err));
    b->ops->close(b);
    return MXD_OK;
}

/* What the planner needs of this machine. Its speed (a third of a second to measure) only where a
 * plan may weigh it against other machines, or shows predictions: in the server. */
static mxd_rc fill_hardware(mxd_engine_opts *e, bool probe, mxd_err *err) {
    mxd_hardware h;
    MXD_TRY(mxd_hardware_detect(&h, &mxd_alloc_libc,
                                &(mxd_hardware_opts){.probe = probe, .threads = e->threads}, err));
    /* as many as a container's quota lets run */
    if (!e->threads && h.logical_cpus < mxd_proc_cores()) e->threads = h.logical_cpus;
    e->memory_total = h.memory_total_bytes;
    e->memory_free = h.memory_available_bytes;
    e->bandwidth = h.read_bytes_per_s;
    e->ops = h.dot_ops_per_s;
    e->paces = h.paces;
    e->cpus = mxd_hardware_cpus(&h, e->threads ? e->threads : h.logical_cpus);
    e->host_cpus = h.online_cpus;
    return MXD_OK;
}

/* A join secret against the tokens on disk; on the transport's thread. */
static bool spend(void *state_dir, const char *secret) {
    bool spent = false;
    mxd_err err = {0};
    if (mxd_state_spend(&mxd_alloc_libc, state_dir, secret, mxd_wall_ms(), &spent, &err) != MXD_OK)
        mxd_log(MXD_LOG_ERROR, "tokens_unreadable", "error=\"%s\"", err.msg);
    return spent;
}

/* Where nobody can have a state folder there is no journal. */
static void fill_journal(mxd_engine_kit *kit, const mxd_options *o) {
    char dir[1024];
    mxd_err err = {0};
    if (!has(o, MXD_OPT_NO_JOURNAL) || mxd_opt_bool(o, MXD_OPT_NO_JOURNAL)) return;
    if (mxd_main_state_dir(o, dir, &err) != MXD_OK) {
        mxd_log(MXD_LOG_WARN, "no_journal", "reason=\"%s\"", err.msg);
        return;
    }
    snprintf(kit->journal, sizeof kit->journal, "%s/journal", dir);
    kit->opts.journal_dir = kit->journal;
}

static mxd_rc fill_cluster(mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) {
    mxd_engine_opts *e = &kit->opts;
    e->local_workers = (int)mxd_opt_int(o, MXD_OPT_LOCAL_WORKERS);
    if (e->local_workers > 0) MXD_TRY(find_worker(kit, err));
    if (has(o, MXD_OPT_CLUSTER_LISTEN)) e->cluster_listen = mxd_opt_text(o, MXD_OPT_CLUSTER_LISTEN);
    e->no_local = has(o, MXD_OPT_NO_LOCAL) && mxd_opt_bool(o, MXD_OPT_NO_LOCAL);
    if (e->no_local && e->local_workers > 0)
        return mxd_fail(err, MXD_E_INVAL, "--no-local and --local-workers %d contradict each other",
                        e->local_workers);
    if (e->no_local && !e->cluster_listen)
        return mxd_fail(err, MXD_E_INVAL,
                        "--no-local needs --cluster-listen: where the workers join that compute");
    fill_journal(kit, o);
    MXD_TRY(mxd_shape_read(&e->shape, o, err));
    if (!e->cluster_listen) return MXD_OK;
    e->advertise = !mxd_opt_bool(o, MXD_OPT_NO_DISCOVERY);
    MXD_TRY(mxd_main_state_dir(o, kit->state_dir, err));
    e->state_dir = kit->state_dir;
    e->spend_secret = spend;
    e->spend_ctx = kit->state_dir;
    return MXD_OK;
}

mxd_rc mxd_engine_kit_fill(mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) {
    *kit = (mxd_engine_kit){0};
    mxd_engine_opts *e = &kit->opts;
    MXD_TRY(mxd_opt_need(o, MXD_OPT_MODEL, err));
    MXD_TRY(mxd_main_model_folder(o, kit->folder, err));
    public_name(kit, o);
    e->folder = kit->folder;
    e->model_id = kit->model_id;
    e->backend = mxd_opt_unless_auto(o, MXD_OPT_BACKEND);
    e->kernels = mxd_opt_unless_auto(o, MXD_OPT_KERNELS);
    e->activations = (mxd_activations)mxd_opt_int(o, MXD_OPT_ACTIVATIONS);
    e->kv = mxd_main_kv_type(o);
    e->threads = has(o, MXD_OPT_THREADS) ? (int)mxd_opt_int(o, MXD_OPT_THREADS) : 0;
    e->ctx = (int)mxd_opt_int(o, MXD_OPT_CTX_SIZE);
    e->parallel = has(o, MXD_OPT_PARALLEL) ? (int)mxd_opt_int(o, MXD_OPT_PARALLEL) : 1;
    e->prefill_rows = (int)mxd_opt_int(o, MXD_OPT_PREFILL_STEP_SIZE);
    e->no_prefix_cache = !has(o, MXD_OPT_NO_PREFIX_CACHE) || /* who measures wants work done */
                         mxd_opt_int(o, MXD_OPT_NO_PREFIX_CACHE);
    if (has(o, MXD_OPT_CHAT_TEMPLATE)) {
        const char *file = mxd_opt_text(o, MXD_OPT_CHAT_TEMPLATE_FILE);
        e->chat_template = mxd_opt_text(o, MXD_OPT_CHAT_TEMPLATE);
        if (file) MXD_TRY(read_template(kit, file, err));
    }
    MXD_TRY(check_backend(e->backend, err));
    MXD_TRY(fill_hardware(e, o->prog == MXD_PROG_SERVER, err));
    return fill_cluster(kit, o, err);
}

void mxd_engine_kit_deinit(mxd_engine_kit *kit) { mxd_free(&mxd_alloc_libc, kit->chat_template); }

mxd_engine_defaults mxd_engine_kit_defaults(const mxd_options *o, const mxd_engine *e) {
    mxd_engine_defaults d = {.sampling = mxd_engine_info_get(e)->defaults};
    mxd_sampling *s = &d.sampling;
    if (!has(o, MXD_OPT_TEMP)) return d;
    if (mxd_opt_given(o, MXD_OPT_TEMP)) s->temperature = (float)mxd_opt_real(o, MXD_OPT_TEMP);
    if (mxd_opt_given(o, MXD_OPT_TOP_P)) s->top_p = (float)mxd_opt_real(o, MXD_OPT_TOP_P);
    if (mxd_opt_given(o, MXD_OPT_MIN_P)) s->min_p = (float)mxd_opt_real(o, MXD_OPT_MIN_P);
    if (mxd_opt_given(o, MXD_OPT_TOP_K)) s->top_k = (int32_t)mxd_opt_int(o, MXD_OPT_TOP_K);
    d.has_seed = mxd_opt_given(o, MXD_OPT_SEED);
    if (d.has_seed) s->seed = (uint64_t)mxd_opt_int(o, MXD_OPT_SEED);
    d.max_tokens = (int)mxd_opt_int(o, MXD_OPT_MAX_TOKENS);
    if (has(o, MXD_OPT_TIMEOUT)) d.timeout_ms = mxd_opt_int(o, MXD_OPT_TIMEOUT);
    return d;
}

mxd_sampling mxd_engine_kit_sampling(const mxd_options *o, const mxd_engine *e) {
    mxd_engine_defaults d = mxd_engine_kit_defaults(o, e);
    if (!d.has_seed && mxd_rand_secret(&d.sampling.seed, sizeof d.sampling.seed, NULL) != MXD_OK)
        d.sampling.seed = (uint64_t)mxd_now_ns();
    return d.sampling;
}

/* ------------------------------------------------------------------------------------- waiting */

/* Bytes loaded and to load, over all nodes. */
static void loaded(mxd_engine *e, uint64_t *done, uint64_t *total) {
    json_t *state = mxd_engine_cluster_state(e), *node;
    size_t i;
    *done = *total = 0;
    json_array_foreach(json_object_get(state, "nodes"), i, node) {
        const json_t *load = json_object_get(node, "load");
        *done += (uint64_t)json_integer_value(json_object_get(load, "done"));
        *total += (uint64_t)json_integer_value(json_object_get(load, "total"));
    }
    json_decref(state);
}

/* Are workers of other machines still missing? Says so, and how they come, whenever that changes.
 */
static bool awaits_workers(mxd_engine *e, const mxd_engine_opts *opts, bool quiet, int *seen) {
    int wanted = opts->min_nodes > 1 ? opts->min_nodes : 1;
    mxd_engine_metrics m;
    if (!opts->cluster_listen || (wanted == 1 && !opts->no_local)) return false;
    mxd_engine_metrics_get(e, &m);
    int here = (int)m.nodes_live;
    const char *where = opts->cluster_listen;
    if (here >= wanted) return false;
    if (here != *seen && !quiet)
        fprintf(stderr,
                "waiting for workers: %d of %d are here. Each joins with mlx-dist-worker --join %s "
                "and, the first time, a token of mlx-dist-config token\n",
                here, wanted, mxd_place_is_any(where) ? "auto" : where);
    *seen = here;
    return true;
}

mxd_rc mxd_engine_kit_wait(mxd_engine *e, const mxd_engine_kit *kit, const mxd_options *o,
                           mxd_err *err) {
    mxd_term term;
    mxd_term_init(&term, stderr, mxd_opt_bool(o, MXD_OPT_NO_COLOR));
    mxd_progress progress = {.term = &term, .quiet = mxd_opt_bool(o, MXD_OPT_QUIET)};
    int64_t until = mxd_now_ms() + LOAD_TIMEOUT_MS;
    uint64_t before = 0;
    int seen = -1;
    mxd_rc rc;
    while ((rc = mxd_engine_wait(e, PROGRESS_MS, err)) == MXD_E_TIMEOUT && mxd_now_ms() < until) {
        uint64_t done, total;
        loaded(e, &done, &total);
        mxd_progress_show(&progress, "loading", done, total);
        /* weights may come slowly, and workers any time */
        if (done > before || awaits_workers(e, &kit->opts, progress.quiet, &seen))
            until = mxd_now_ms() + LOAD_TIMEOUT_MS;
        before = done;
        if (!mxd_signals_wait(0)) continue;
        rc = mxd_fail(err, MXD_E_CANCELED, "interrupted while loading");
        break;
    }
    mxd_progress_end(&progress);
    return rc;
}

mxd_rc mxd_engine_kit_open(mxd_engine_kit *kit, const mxd_options *o, mxd_engine **out,
                           mxd_err *err) {
    MXD_TRY(mxd_engine_open(out, &mxd_alloc_libc, &kit->opts, err));
    mxd_rc rc = mxd_engine_kit_wait(*out, kit, o, err);
    if (!rc) return MXD_OK;
    mxd_engine_close(*out);
    *out = NULL;
    return rc;
}
