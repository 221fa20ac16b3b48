/* The HTTP server on the engine that answers from a script (tests/unit/fake_engine.h); for tests of
 * clients. Prints "listening on URL" to stderr; ends on SIGTERM after draining; SIGUSR1 and SIGUSR2
 * set the engine to loading and ready again.
 *   fake_server [FOLDER] [--key K] [--alias A] [--origin O] [--prefix P] [--keepalive MS]
 *               [--stall MS] [--header MS] [--max-body N] [--port N] [--host H] [--threads N] */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "server/server.h"
#include "fake_engine.h"

static volatile sig_atomic_t got, state = MXD_ENGINE_READY;

static void on_end(int sig) { got = sig; }
static void on_state(int sig) { state = sig == SIGUSR1 ? MXD_ENGINE_LOADING : MXD_ENGINE_READY; }

static void take_option(mxd_server_opts *o, const char *name, const char **value) {
    if (!strcmp(name, "--key")) o->api_keys = value, o->n_api_keys = 1;
    if (!strcmp(name, "--alias")) o->aliases = value, o->n_aliases = 1;
    if (!strcmp(name, "--origin")) o->cors_origins = value, o->n_cors_origins = 1;
    if (!strcmp(name, "--prefix")) o->api_prefix = *value;
    if (!strcmp(name, "--host")) o->host = *value;
    if (!strcmp(name, "--keepalive")) o->keepalive_ms = atoi(*value);
    if (!strcmp(name, "--stall")) o->stall_ms = atoi(*value);
    if (!strcmp(name, "--header")) o->header_ms = atoi(*value);
    if (!strcmp(name, "--max-body")) o->max_body = (size_t)atoi(*value);
    if (!strcmp(name, "--port")) o->port = atoi(*value);
    if (!strcmp(name, "--threads")) o->threads = atoi(*value);
}

static int serve(mxd_engine *e, const mxd_server_opts *o) {
    mxd_err err = {0};
    mxd_server *s;
    mxd_rc rc = mxd_server_open(&s, &mxd_alloc_libc, o, e, &err);
    if (rc) {
        fprintf(stderr, "error: %s\n", err.msg);
        return mxd_rc_exit(rc);
    }
    fprintf(stderr, "listening on %s\n", mxd_server_url(s));
    while (!got) {
        mxd_sleep_ms(5);
        fake_engine_set_state(e, (mxd_engine_state)state);
    }
    got = 0;
    int64_t end = mxd_now_ms() + 30000;
    while (mxd_server_drain(s, 20, &err) == MXD_E_TIMEOUT && !got && mxd_now_ms() < end) continue;
    mxd_server_close(s);
    int live = fake_engine_live(e);
    if (live) fprintf(stderr, "%d streams were not freed\n", live);
    return live ? 99 : got ? 143 : 0;
}

int main(int argc, char **argv) {
    mxd_err err = {0};
    mxd_engine *e;
    mxd_engine_opts eo = {.folder = "models/demo"};
    mxd_server_opts o = {0};
    for (int i = 1; i < argc; i++) {
        if (argv[i][0] != '-')
            eo.folder = argv[i];
        else if (i + 1 < argc)
            take_option(&o, argv[i], (const char **)&argv[i + 1]), i++;
    }
    signal(SIGTERM, on_end);
    signal(SIGINT, on_end);
    signal(SIGUSR1, on_state);
    signal(SIGUSR2, on_state);
    signal(SIGPIPE, SIG_IGN);
    mxd_rc rc = mxd_engine_open(&e, &mxd_alloc_libc, &eo, &err);
    if (rc) {
        fprintf(stderr, "error: %s\n", err.msg);
        return mxd_rc_exit(rc);
    }
    int exit_code = serve(e, &o);
    mxd_engine_close(e);
    return exit_code;
}
