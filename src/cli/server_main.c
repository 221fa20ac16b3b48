/* mlx-dist-server: a model over this machine and its workers, behind an OpenAI-compatible API. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cli/dry_run.h"
#include "cli/engine_kit.h"
#include "cli/main_kit.h"
#include "cli/state_print.h"
#include "cli/term.h"
#include "formats/json.h"
#include "server/server.h"

enum { HOSTFILE_MAX = 1 << 20, MAX_KEYS = 64, KEY_MAX = 512 };

typedef struct keys {
    const char *list[MAX_KEYS];
    int n;
    char text[MAX_KEYS][KEY_MAX]; /* those of the file */
} keys;

/* ------------------------------------------------------------------------------------- options */

/* One key per line; empty lines and those that begin with # do not count. */
static mxd_rc read_key_file(keys *k, const char *path, mxd_err *err) {
    FILE *f = fopen(path, "rb");
    if (!f) return mxd_fail_sys(err, MXD_E_IO, "cannot read the key file '%s'", path);
    char line[KEY_MAX];
    while (fgets(line, sizeof line, f) && k->n < MAX_KEYS) {
        line[strcspn(line, "\r\n")] = '\0';
        if (!line[0] || line[0] == '#') continue;
        memcpy(k->text[k->n], line, sizeof line);
        k->list[k->n] = k->text[k->n];
        k->n++;
    }
    fclose(f);
    return k->n ? MXD_OK : mxd_fail(err, MXD_E_CONFIG, "the key file '%s' holds no key", path);
}

static mxd_rc read_keys(keys *k, const mxd_options *o, mxd_err *err) {
    int n;
    const char *const *given = mxd_opt_list(o, MXD_OPT_API_KEY, &n);
    if (n > MAX_KEYS) return mxd_fail(err, MXD_E_TOOBIG, "%d API keys: at most %d", n, MAX_KEYS);
    for (int i = 0; i < n; i++) k->list[k->n++] = given[i];
    const char *path = mxd_opt_text(o, MXD_OPT_API_KEY_FILE);
    return path ? read_key_file(k, path, err) : MXD_OK;
}

/* Hosts of MLX's host file: only their number matters, workers say themselves who they are. */
static mxd_rc count_hosts(const char *path, int *n, mxd_err *err) {
    json_t *list = NULL;
    MXD_TRY(mxd_json_load(&list, path, HOSTFILE_MAX, err));
    *n = json_is_array(list) ? (int)json_array_size(list) : 0;
    json_decref(list);
    if (*n > 0 && *n <= MXD_MAX_NODES) return MXD_OK;
    return mxd_fail(err, MXD_E_CONFIG, "%s: must be a list of 1 to %d hosts", path, MXD_MAX_NODES);
}

/* Enough workers for the shape that was asked for: those of this machine, or others to wait for. */
static mxd_rc check_shape(mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) {
    const mxd_shape *s = &kit->opts.shape;
    int n, parts = 0, each = s->tensor > 0 ? s->tensor : 1;
    int wanted = each * (s->pipeline > 0 ? s->pipeline : 1), here = kit->opts.local_workers;
    for (int i = 0; i < s->n_tensor_split; i++) parts += s->tensor_split[i] > 0;
    if (s->n_tensor_split > wanted) wanted = s->n_tensor_split;
    const char *hostfile = mxd_opt_text(o, MXD_OPT_HOSTFILE);
    if (hostfile) {
        if (!kit->opts.cluster_listen)
            return mxd_fail(err, MXD_E_INVAL,
                            "--hostfile needs --cluster-listen: where its workers "
                            "join");
        MXD_TRY(count_hosts(hostfile, &n, err));
        kit->opts.min_nodes = n;
    }
    if (here < 1) here = 1;
    if (!kit->opts.cluster_listen && wanted > here)
        return mxd_fail(err, MXD_E_INVAL,
                        "%d pipeline stages of %d node%s each need as many workers: use "
                        "--local-workers %d, or --cluster-listen",
                        s->pipeline > 0 ? s->pipeline : 1, parts ? parts : each,
                        (parts ? parts : each) == 1 ? "" : "s", wanted);
    if (!kit->opts.cluster_listen && s->pipeline > 0 && s->tensor != 0 && here > wanted)
        return mxd_fail(err, MXD_E_INVAL,
                        "%d local workers, but %d stage%s of %d make %d: every local worker gets a "
                        "part, so use --local-workers %d",
                        here, s->pipeline, s->pipeline == 1 ? "" : "s", each, wanted, wanted);
    if (wanted > kit->opts.min_nodes && kit->opts.cluster_listen) kit->opts.min_nodes = wanted;
    return MXD_OK;
}

static mxd_server_opts server_opts(const mxd_options *o, const keys *k) {
    mxd_server_opts s = {.host = mxd_opt_text(o, MXD_OPT_HOST),
                         .port = (int)mxd_opt_int(o, MXD_OPT_PORT),
                         .api_keys = k->list,
                         .n_api_keys = k->n,
                         .api_prefix = mxd_opt_text(o, MXD_OPT_API_PREFIX),
                         .insecure_lan = mxd_opt_bool(o, MXD_OPT_INSECURE_LAN),
                         .log_requests = true,
                         .reasoning = (mxd_reasoning_field)mxd_opt_int(o, MXD_OPT_REASONING_FIELD)};
    s.cors_origins = mxd_opt_list(o, MXD_OPT_CORS_ORIGINS, &s.n_cors_origins);
    s.allowed_hosts = mxd_opt_list(o, MXD_OPT_ALLOWED_HOSTS, &s.n_allowed_hosts);
    s.aliases = mxd_opt_list(o, MXD_OPT_ALIAS, &s.n_aliases);
    return s;
}

/* --------------------------------------------------------------------------------------- serving
 */

static void print_ready(mxd_engine *e, const mxd_server *s, const mxd_options *o) {
    const mxd_engine_info *m = mxd_engine_info_get(e);
    if (!mxd_opt_bool(o, MXD_OPT_QUIET)) {
        char size[32];
        fprintf(stderr, "model %s: %s, %s of weights, %d layers, context %d\n", m->model_id,
                m->model_type, mxd_size_text(size, m->weight_bytes), m->n_layers, m->ctx);
        json_t *state = mxd_engine_cluster_state(e);
        mxd_state_print_plan(stderr, state);
        json_decref(state);
    }
    fprintf(stderr, "listening on %s\n", mxd_server_url(s));
    if (!mxd_opt_bool(o, MXD_OPT_QUIET))
        fprintf(stderr,
                "try: curl %s/v1/chat/completions -H 'Content-Type: application/json' -d "
                "'{\"model\":\"%s\",\"messages\":[{\"role\":\"user\",\"content\":\"Hello!\"}]}'\n",
                mxd_server_url(s), m->model_id);
}

/* Until the first SIGINT or SIGTERM; then running requests may end. The second one ends the process
 * at once (main_kit). */
static mxd_rc serve(mxd_server *s, const mxd_options *o, mxd_err *err) {
    while (!mxd_signals_wait(-1))
        if (mxd_signals_take_hup()) MXD_TRY(mxd_main_open_log(o, err));
    int64_t drain_ms = mxd_opt_int(o, MXD_OPT_DRAIN_TIMEOUT);
    mxd_log(MXD_LOG_INFO, "draining", "running=%d timeout_ms=%lld", mxd_server_running(s),
            (long long)drain_ms);
    mxd_err late = {0};
    if (mxd_server_drain(s, drain_ms, &late) != MXD_OK)
        mxd_log(MXD_LOG_WARN, "drain_cut_short", "reason=\"%s\"", late.msg);
    return MXD_OK;
}

static mxd_rc run_engine(mxd_engine_kit *kit, const mxd_options *o, const keys *k, mxd_err *err) {
    mxd_engine *e = NULL;
    mxd_server *s = NULL;
    mxd_server_opts so = server_opts(o, k);
    MXD_TRY(mxd_engine_open(&e, &mxd_alloc_libc, &kit->opts, err));
    mxd_engine_defaults defaults = mxd_engine_kit_defaults(o, e);
    mxd_engine_set_defaults(e, &defaults);
    mxd_rc rc = mxd_server_open(&s, &mxd_alloc_libc, &so, e, err);
    if (!rc) rc = mxd_engine_kit_wait(e, kit, o, err);
    if (!rc) {
        print_ready(e, s, o);
        rc = serve(s, o, err);
    }
    mxd_server_close(s);
    mxd_engine_close(e);
    return rc;
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    static keys k;
    mxd_engine_kit kit;
    mxd_signals_catch();
    mxd_rc rc = mxd_engine_kit_fill(&kit, o, err);
    if (!rc) rc = check_shape(&kit, o, err);
    if (!rc) rc = read_keys(&k, o, err);
    if (!rc)
        rc = mxd_opt_bool(o, MXD_OPT_DRY_RUN) ? mxd_dry_run(&kit, o, err)
                                              : run_engine(&kit, o, &k, err);
    mxd_engine_kit_deinit(&kit);
    return rc;
}

int main(int argc, char **argv) {
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, MXD_PROG_SERVER, argc, argv, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
