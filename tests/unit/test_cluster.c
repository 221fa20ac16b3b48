/* A whole cluster in one process: the coordinator's driver with a worker inside, and with workers
 * that join over mutual TLS. The model is models/demo. */
#include "test.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/coordinator.h"
#include "cluster/places.h"
#include "cluster/worker.h"
#include "net/tls.h"

enum { CAP = 2048, LOAD_MS = 60000, ANSWER_MS = 60000, CLOSE_MS = 2000 };

static const char *demo(char out[1024]) { return test_path(out, "../models/demo"); }

/* ------------------------------------------------------------------------------------- requests */

typedef struct answer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    mxd_sampled t[CAP];
    int n, n_stops, n_ends;
    mxd_request_end end;
    char text[256];
    uint64_t id;
} answer;

static void on_token(void *ctx, const mxd_sampled *s, bool stop) {
    answer *a = ctx;
    pthread_mutex_lock(&a->lock);
    if (a->n < CAP) a->t[a->n] = *s;
    a->n++;
    a->n_stops += stop;
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

static void on_end(void *ctx, const mxd_request_end *end) {
    answer *a = ctx;
    pthread_mutex_lock(&a->lock);
    a->n_ends++;
    a->end = *end;
    snprintf(a->text, sizeof a->text, "%s", end->text ? end->text : "");
    pthread_cond_broadcast(&a->changed);
    pthread_mutex_unlock(&a->lock);
}

static answer *answer_new(void) {
    answer *a = calloc(1, sizeof *a);
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->changed, NULL);
    return a;
}

static void answer_free(answer *a) {
    pthread_cond_destroy(&a->changed);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* Waits for n tokens, or for the end when n is 0. */
static void wait_for(answer *a, int n) {
    int64_t until = mxd_now_ms() + ANSWER_MS;
    pthread_mutex_lock(&a->lock);
    while (!a->n_ends && (n == 0 || a->n < n)) {
        pthread_mutex_unlock(&a->lock);
        if (mxd_now_ms() > until) fail_msg("no answer in %d s, %d tokens", ANSWER_MS / 1000, a->n);
        mxd_sleep_ms(1);
        pthread_mutex_lock(&a->lock);
    }
    pthread_mutex_unlock(&a->lock);
}

/* Prompt number k: a few tokens that differ. */
static int prompt(int k, int32_t ids[64]) {
    int n = 3 + k % 20;
    for (int i = 0; i < n; i++) ids[i] = (k * 37 + i * 11) % 2000;
    return n;
}

static mxd_request request(answer *a, const int32_t *ids, int n, int max_tokens) {
    return (mxd_request){.prompt = ids,
                         .n_prompt = n,
                         .max_tokens = max_tokens,
                         .timeout_ms = ANSWER_MS,
                         .token = on_token,
                         .end = on_end,
                         .ctx = a};
}

static void submit(mxd_cluster *c, const mxd_request *r) {
    mxd_err err = {0};
    answer *a = r->ctx;
    CHECK_OK(mxd_cluster_submit(c, r, &a->id, &err), &err);
}

/* Runs prompt k to its end; greedy. */
static answer *run(mxd_cluster *c, int k, int max_tokens) {
    int32_t ids[64];
    answer *a = answer_new();
    mxd_request r = request(a, ids, prompt(k, ids), max_tokens);
    submit(c, &r);
    wait_for(a, 0);
    CHECK_EQ(a->n_ends, 1);
    return a;
}

static void check_same(const answer *a, const answer *b) {
    CHECK_EQ(a->n, b->n);
    for (int i = 0; i < a->n; i++) CHECK_EQ(a->t[i].token, b->t[i].token);
}

/* ------------------------------------------------------------------------------------- clusters */

static mxd_cluster_opts options(char folder[1024]) {
    return (mxd_cluster_opts){.folder = demo(folder),
                              .model_id = "demo",
                              .threads = 1,
                              .ctx = 2048,
                              .parallel = 3,
                              .memory_total = 8ull << 30,
                              .memory_free = 4ull << 30};
}

static mxd_cluster *open_with(const mxd_cluster_opts *o) {
    mxd_cluster *c;
    mxd_err err = {0};
    CHECK_OK(mxd_cluster_open(&c, &mxd_alloc_libc, o, &err), &err);
    CHECK_OK(mxd_cluster_wait(c, LOAD_MS, &err), &err);
    return c;
}

static mxd_cluster *open_local(void) {
    char folder[1024];
    mxd_cluster_opts o = options(folder);
    mxd_log_set_level(MXD_LOG_ERROR);
    return open_with(&o);
}

static void close_soon(mxd_cluster *c) {
    int64_t start = mxd_now_ms();
    mxd_cluster_close(c);
    int64_t took = mxd_now_ms() - start;
    if (took > CLOSE_MS) fail_msg("closing took %lld ms", (long long)took);
}

TEST(cluster_answers) {
    mxd_cluster *c = open_local();
    CHECK_EQ(mxd_cluster_ctx(c), 2048);
    CHECK_STR(mxd_cluster_determinism(c), "bit-exact");
    answer *a = run(c, 1, 20), *b = run(c, 1, 20);
    CHECK_EQ(a->n, 20);
    CHECK_EQ(a->end.how, MXD_END_LENGTH);
    CHECK_EQ(a->end.rc, MXD_OK);
    CHECK(a->end.queue_ms >= 0 && a->end.prefill_ms >= 0 && a->end.decode_ms >= 0);
    check_same(a, b);
    mxd_cluster_counters n;
    mxd_cluster_counters_get(c, &n);
    int32_t ids[64];
    CHECK_EQ(n.requests_done, 2);
    CHECK_EQ(n.requests_failed + n.requests_cancelled, 0);
    CHECK_EQ(n.prompt_tokens, 2 * prompt(1, ids));
    CHECK_EQ(n.generated_tokens, 40);
    CHECK(n.epochs >= 1 && n.steps >= 40 && n.replays == 0);
    CHECK(n.slots == 3 && n.running == 0 && n.waiting == 0 && n.nodes_live == 1);
    CHECK(n.kv_tokens_total == 3 * 2048 && n.kv_tokens_used <= n.kv_tokens_total);
    answer_free(a);
    answer_free(b);
    close_soon(c);
}

TEST(cluster_stop_ids_and_min_tokens) {
    mxd_cluster *c = open_local();
    int32_t ids[64];
    answer *plain = run(c, 2, 12), *a = answer_new(), *b = answer_new();
    int32_t stop[2] = {plain->t[5].token, 4000}; /* the second is no token of this model */
    int first = 0;
    while (plain->t[first].token != stop[0]) first++;
    mxd_request r = request(a, ids, prompt(2, ids), 12);
    r.stop_ids = stop;
    r.n_stop_ids = 2;
    submit(c, &r);
    wait_for(a, 0);
    CHECK_EQ(a->end.how, MXD_END_STOP);
    CHECK_EQ(a->n_stops, 1);
    CHECK_EQ(a->n, first + 1);
    CHECK_EQ(a->t[first].token, stop[0]);
    r.ctx = b;
    r.min_tokens = first + 2; /* the stop id counts only from there on */
    submit(c, &r);
    wait_for(b, 0);
    CHECK(b->n >= first + 2);
    answer_free(plain);
    answer_free(a);
    answer_free(b);
    close_soon(c);
}

TEST(cluster_several_at_once) {
    enum { N = 10 };
    mxd_cluster *c = open_local();
    answer *alone[N], *together[N];
    int32_t ids[N][64];
    for (int i = 0; i < N; i++) alone[i] = run(c, i, 16);
    for (int i = 0; i < N; i++) {
        together[i] = answer_new();
        mxd_request r = request(together[i], ids[i], prompt(i, ids[i]), 16);
        submit(c, &r);
        memset(ids[i], 0xff, sizeof ids[i]); /* it has its own copy */
    }
    for (int i = 0; i < N; i++) {
        wait_for(together[i], 0);
        CHECK_EQ(together[i]->end.how, MXD_END_LENGTH);
        check_same(alone[i], together[i]);
        answer_free(alone[i]);
        answer_free(together[i]);
    }
    close_soon(c);
}

TEST(cluster_sampling_parameters_arrive) {
    mxd_cluster *c = open_local();
    int32_t ids[64];
    answer *a = answer_new(), *b = answer_new(), *d = answer_new();
    mxd_logit_bias bias[MXD_MAX_LOGIT_BIAS] = {{0}};
    for (int i = 0; i < MXD_MAX_LOGIT_BIAS; i++) bias[i] = (mxd_logit_bias){i, -100};
    bias[7].bias = 100;
    mxd_request r = request(a, ids, prompt(3, ids), 4);
    r.how.bias = bias;
    r.how.n_bias = MXD_MAX_LOGIT_BIAS;
    r.how.logprobs = true;
    r.how.n_top = MXD_MAX_TOP_LOGPROBS;
    submit(c, &r);
    wait_for(a, 0);
    CHECK_EQ(a->n, 4);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(a->t[i].token, 7);
        CHECK_EQ(a->t[i].n_top, MXD_MAX_TOP_LOGPROBS);
        CHECK(a->t[i].top_logprob[0] >= a->t[i].top_logprob[1]);
    }
    r = request(b, ids, prompt(3, ids), 16);
    r.how.temperature = 1;
    r.how.seed = 5;
    submit(c, &r);
    wait_for(b, 0);
    r.ctx = d;
    submit(c, &r);
    wait_for(d, 0);
    check_same(b, d); /* the same seed, the same text */
    answer_free(a);
    answer_free(b);
    answer_free(d);
    close_soon(c);
}

/* As many biases as may be, in every slot at once: the step must still fit its messages. */
TEST(cluster_many_biases_at_once) {
    enum { N = 4 };
    mxd_cluster *c = open_local();
    int32_t ids[64];
    answer *a[N];
    static mxd_logit_bias bias[MXD_MAX_LOGIT_BIAS];
    for (int i = 0; i < MXD_MAX_LOGIT_BIAS; i++) bias[i] = (mxd_logit_bias){i + 1000, -1};
    for (int i = 0; i < N; i++) {
        a[i] = answer_new();
        mxd_request r = request(a[i], ids, prompt(i, ids), 20);
        r.how.bias = bias;
        r.how.n_bias = MXD_MAX_LOGIT_BIAS;
        submit(c, &r);
    }
    for (int i = 0; i < N; i++) {
        wait_for(a[i], 0);
        CHECK_EQ(a[i]->n, 20);
        answer_free(a[i]);
    }
    mxd_cluster_counters n;
    mxd_cluster_counters_get(c, &n);
    CHECK_EQ(n.replays, 0);
    close_soon(c);
}

TEST(cluster_refuses) {
    mxd_cluster *c = open_local();
    static int32_t ids[4096], stops[65];
    mxd_logit_bias bias = {1, 1};
    answer *a = answer_new();
    const mxd_request good = request(a, ids, 5, 5);
    mxd_request bad[9];
    mxd_rc want[9] = {MXD_E_INVAL, MXD_E_INVAL,  MXD_E_CONTEXT, MXD_E_INVAL, MXD_E_TOOBIG,
                      MXD_E_INVAL, MXD_E_TOOBIG, MXD_E_INVAL,   MXD_E_INVAL};
    for (int i = 0; i < 9; i++) bad[i] = good;
    int32_t beyond[1] = {3072}, negative[1] = {-1};
    bad[0].n_prompt = 0;
    bad[1].max_tokens = 0;
    bad[2].n_prompt = 2048;
    bad[3].stop_ids = stops;
    bad[3].n_stop_ids = 65;
    bad[4].how.bias = &bias;
    bad[4].how.n_bias = MXD_MAX_LOGIT_BIAS + 1;
    bad[5].how.top_k = -1;
    bad[6].how.n_top = MXD_MAX_TOP_LOGPROBS + 1;
    bad[7].prompt = beyond;
    bad[7].n_prompt = 1;
    bad[8].prompt = negative;
    bad[8].n_prompt = 1;
    for (int i = 0; i < 9; i++) {
        mxd_err err = {0};
        uint64_t id;
        mxd_rc rc = mxd_cluster_submit(c, &bad[i], &id, &err);
        if (rc != want[i]) fail_msg("request %d: %s (%s)", i, mxd_rc_name(rc), err.msg);
        CHECK(err.msg[0]);
    }
    mxd_request longest = request(a, ids, 2047, 100); /* the context ends it */
    submit(c, &longest);
    wait_for(a, 0);
    CHECK_EQ(a->n, 1);
    CHECK_EQ(a->end.how, MXD_END_LENGTH);
    CHECK_EQ(a->n_ends, 1); /* no callback ran for those that were refused */
    answer_free(a);
    close_soon(c);
}

TEST(cluster_cancel) {
    mxd_cluster *c = open_local();
    int32_t ids[64];
    answer *a[5];
    for (int i = 0; i < 5; i++) { /* three run, two wait */
        a[i] = answer_new();
        mxd_request r = request(a[i], ids, prompt(i, ids), 2000);
        submit(c, &r);
    }
    wait_for(a[0], 1);
    mxd_cluster_cancel(c, 999999); /* unknown */
    for (int i = 4; i >= 0; i--) mxd_cluster_cancel(c, a[i]->id);
    for (int i = 0; i < 5; i++) {
        wait_for(a[i], 0);
        CHECK_EQ(a[i]->end.how, MXD_END_CANCELLED);
        CHECK(a[i]->n < 2000);
        mxd_cluster_cancel(c, a[i]->id); /* too late: nothing happens */
    }
    answer *after = run(c, 1, 5);
    CHECK_EQ(after->n, 5);
    mxd_cluster_counters n;
    mxd_cluster_counters_get(c, &n);
    CHECK_EQ(n.requests_cancelled, 5);
    answer_free(after);
    for (int i = 0; i < 5; i++) answer_free(a[i]);
    close_soon(c);
}

TEST(cluster_deadline) {
    mxd_cluster *c = open_local();
    int32_t ids[64];
    answer *a = answer_new();
    mxd_request r = request(a, ids, prompt(1, ids), 2000);
    r.timeout_ms = 60;
    submit(c, &r);
    wait_for(a, 0);
    CHECK_EQ(a->end.how, MXD_END_ERROR);
    CHECK_EQ(a->end.rc, MXD_E_TIMEOUT);
    CHECK(a->text[0]);
    answer_free(a);
    close_soon(c);
}

/* The queue takes MXD_MAX_WAITING; closing answers all of them, at once. */
TEST(cluster_queue_full_and_close_while_running) {
    enum { N = MXD_MAX_WAITING + 3 };
    mxd_cluster *c = open_local();
    int32_t ids[64];
    static answer *a[N];
    mxd_err err = {0};
    uint64_t id;
    for (int i = 0; i < 3; i++) {
        a[i] = answer_new();
        mxd_request r = request(a[i], ids, prompt(i, ids), 2000);
        submit(c, &r);
    }
    for (int i = 0; i < 3; i++) wait_for(a[i], 1);
    for (int i = 3; i < N; i++) {
        a[i] = answer_new();
        mxd_request r = request(a[i], ids, prompt(i, ids), 2000);
        submit(c, &r);
    }
    mxd_request more = request(NULL, ids, 3, 5);
    CHECK_EQ(mxd_cluster_submit(c, &more, &id, &err), MXD_E_BUSY);
    CHECK(strstr(err.msg, "queue is full"));
    mxd_cluster_counters n;
    mxd_cluster_counters_get(c, &n);
    CHECK_EQ(n.running, 3);
    CHECK_EQ(n.waiting, MXD_MAX_WAITING);
    close_soon(c);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(a[i]->n_ends, 1);
        CHECK_EQ(a[i]->end.how, MXD_END_ERROR);
        CHECK_EQ(a[i]->end.rc, MXD_E_SHUTDOWN);
        answer_free(a[i]);
    }
}

TEST(cluster_drain) {
    mxd_cluster *c = open_local();
    int32_t ids[64];
    mxd_err err = {0};
    uint64_t id;
    answer *a = answer_new(), *waits = answer_new();
    mxd_request r = request(a, ids, prompt(1, ids), 30);
    submit(c, &r);
    wait_for(a, 1);
    CHECK_OK(mxd_cluster_drain(c, ANSWER_MS, &err), &err);
    CHECK_EQ(a->n, 30); /* what ran has ended as it would have */
    CHECK_EQ(a->end.how, MXD_END_LENGTH);
    CHECK_EQ(mxd_cluster_submit(c, &r, &id, &err), MXD_E_SHUTDOWN);
    CHECK_OK(mxd_cluster_drain(c, 100, &err), &err); /* twice is fine */
    close_soon(c);
    c = open_local();
    r = request(waits, ids, prompt(1, ids), 2000);
    submit(c, &r);
    wait_for(waits, 1);
    CHECK_EQ(mxd_cluster_drain(c, 20, &err), MXD_E_TIMEOUT);
    close_soon(c);
    CHECK_EQ(waits->end.rc, MXD_E_SHUTDOWN);
    answer_free(a);
    answer_free(waits);
}

TEST(cluster_close_while_loading) {
    for (int i = 0; i < 10; i++) {
        char folder[1024];
        mxd_cluster *c;
        mxd_err err = {0};
        mxd_cluster_opts o = options(folder);
        mxd_log_set_level(MXD_LOG_ERROR);
        CHECK_OK(mxd_cluster_open(&c, &mxd_alloc_libc, &o, &err), &err);
        mxd_sleep_ms(i * 3);
        close_soon(c);
    }
}

TEST(cluster_open_errors) {
    static const struct {
        int local_workers, ctx, parallel;
        const char *folder, *listen;
        mxd_rc rc;
    } rows[] = {{0, 0, 0, "/no/such/model", NULL, MXD_E_NOTFOUND},
                {7, 0, 0, NULL, NULL, MXD_E_INVAL}, /* of 6 layers */
                {-1, 0, 0, NULL, NULL, MXD_E_INVAL},
                {0, MXD_MAX_CONTEXT + 1, 0, NULL, NULL, MXD_E_INVAL},
                {0, 0, MXD_MAX_SEQS + 1, NULL, NULL, MXD_E_INVAL},
                {0, 0, 0, NULL, "nowhere", MXD_E_INVAL},
                {0, 0, 0, NULL, "203.0.113.7:0", MXD_E_NET}};
    mxd_log_set_level(MXD_LOG_ERROR);
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        char folder[1024];
        mxd_cluster *c;
        mxd_err err = {0};
        mxd_cluster_opts o = options(folder);
        o.local_workers = rows[i].local_workers;
        o.ctx = rows[i].ctx;
        o.parallel = rows[i].parallel;
        o.listen = rows[i].listen;
        if (rows[i].folder) o.folder = rows[i].folder;
        mxd_rc rc = mxd_cluster_open(&c, &mxd_alloc_libc, &o, &err);
        if (rc != rows[i].rc) fail_msg("row %zu: %s (%s)", i, mxd_rc_name(rc), err.msg);
    }
}

/* A machine that is too small is said, with numbers, and waiting ends. */
TEST(cluster_that_does_not_fit) {
    char folder[1024];
    mxd_cluster *c;
    mxd_err err = {0};
    mxd_cluster_opts o = options(folder);
    o.memory_free = 1 << 20;
    mxd_log_set_level(MXD_LOG_ERROR);
    CHECK_OK(mxd_cluster_open(&c, &mxd_alloc_libc, &o, &err), &err);
    CHECK_EQ(mxd_cluster_wait(c, LOAD_MS, &err), MXD_E_NOFIT);
    CHECK(err.msg[0]);
    answer *a = answer_new();
    int32_t ids[64];
    mxd_request r = request(a, ids, prompt(1, ids), 5);
    r.timeout_ms = 300;
    mxd_rc rc = mxd_cluster_submit(c, &r, &a->id, &err);
    if (!rc) wait_for(a, 0);
    CHECK(rc || a->end.how == MXD_END_ERROR);
    close_soon(c);
    answer_free(a);
}

/* ----------------------------------------------------------------------------------------- state
 */

static const json_t *at(const json_t *o, const char *key, json_type type) {
    const json_t *v = json_object_get(o, key);
    if (!v) fail_msg("the state has no '%s'", key);
    bool fits = json_typeof(v) == type || (type == JSON_TRUE && json_is_boolean(v)) ||
                (type == JSON_REAL && json_is_number(v));
    if (!fits) fail_msg("'%s' has type %d", key, (int)json_typeof(v));
    return v;
}

static void check_node(const json_t *n, const char *state) {
    at(n, "id", JSON_STRING);
    at(n, "name", JSON_STRING);
    at(n, "host", JSON_STRING);
    at(n, "pid", JSON_INTEGER);
    CHECK_STR(json_string_value(at(n, "state", JSON_STRING)), state);
    at(n, "backend", JSON_STRING);
    CHECK(json_integer_value(at(n, "memory_total", JSON_INTEGER)) > 0);
    CHECK(json_integer_value(at(n, "memory_planned", JSON_INTEGER)) > 0);
    at(n, "memory_used", JSON_INTEGER);
    CHECK_EQ(json_array_size(at(n, "layers", JSON_ARRAY)), 2);
    at(n, "step_ms", JSON_REAL);
    const json_t *load = at(n, "load", JSON_OBJECT);
    at(load, "done", JSON_INTEGER);
    at(load, "total", JSON_INTEGER);
}

/* The fields that design.md names, and stages that cover every layer once. */
static void check_state(mxd_cluster *c, size_t n_nodes) {
    json_t *s = mxd_cluster_state_json(c), *v;
    size_t i;
    int layer = 0;
    CHECK(s != NULL);
    CHECK(json_integer_value(at(s, "epoch", JSON_INTEGER)) > 0);
    CHECK_STR(json_string_value(at(at(s, "model", JSON_OBJECT), "id", JSON_STRING)), "demo");
    CHECK(json_is_false(at(s, "degraded", JSON_TRUE)));
    const json_t *stages = at(at(s, "plan", JSON_OBJECT), "stages", JSON_ARRAY);
    CHECK_EQ(json_array_size(stages), n_nodes);
    json_array_foreach(stages, i, v) {
        const json_t *layers = at(v, "layers", JSON_ARRAY);
        CHECK_EQ(json_integer_value(json_array_get(layers, 0)), layer);
        layer = (int)json_integer_value(json_array_get(layers, 1));
        const json_t *rank = json_array_get(at(v, "ranks", JSON_ARRAY), 0);
        at(rank, "node", JSON_STRING);
        at(rank, "share", JSON_REAL);
        at(rank, "weight_bytes", JSON_INTEGER);
    }
    CHECK_EQ(layer, 6);
    const json_t *nodes = at(s, "nodes", JSON_ARRAY);
    CHECK_EQ(json_array_size(nodes), n_nodes);
    json_array_foreach(nodes, i, v) check_node(v, "serving");
    const json_t *links = at(s, "links", JSON_ARRAY); /* each has measured its way to us */
    CHECK_EQ(json_array_size(links), n_nodes);
    json_array_foreach(links, i, v) {
        CHECK(json_real_value(at(v, "latency_us", JSON_REAL)) > 0);
        CHECK(json_real_value(at(v, "bandwidth_bytes_per_s", JSON_REAL)) > 0);
    }
    const json_t *r = at(s, "requests", JSON_OBJECT);
    CHECK_EQ(json_integer_value(at(r, "running", JSON_INTEGER)), 0);
    CHECK_EQ(json_integer_value(at(r, "queued", JSON_INTEGER)), 0);
    json_decref(s);
}

TEST(cluster_state) {
    mxd_cluster *c = open_local();
    mxd_sleep_ms(400); /* a heartbeat has come */
    check_state(c, 1);
    json_t *s = mxd_cluster_state_json(c);
    const json_t *n = json_array_get(json_object_get(s, "nodes"), 0);
    const json_t *load = json_object_get(n, "load");
    CHECK_STR(json_string_value(json_object_get(n, "id")), "local-0");
    CHECK(json_integer_value(json_object_get(load, "total")) > 1000000);
    CHECK_EQ(json_integer_value(json_object_get(load, "done")),
             json_integer_value(json_object_get(load, "total")));
    CHECK(json_integer_value(json_object_get(n, "memory_used")) > 0);
    json_decref(s);
    close_soon(c);
}

static atomic_bool stop_asking;
static void *ask(void *cluster) {
    while (!atomic_load(&stop_asking)) {
        mxd_cluster_counters n;
        json_decref(mxd_cluster_state_json(cluster));
        mxd_cluster_counters_get(cluster, &n);
        mxd_cluster_state_now(cluster, NULL);
        mxd_cluster_determinism(cluster);
    }
    return NULL;
}

/* Others may look, submit and cancel from their own threads while it works. */
TEST(cluster_many_threads) {
    mxd_cluster *c = open_local();
    pthread_t t[3];
    int32_t ids[64];
    atomic_store(&stop_asking, false);
    answer *want = run(c, 4, 40);
    for (int i = 0; i < 3; i++) CHECK_EQ(pthread_create(&t[i], NULL, ask, c), 0);
    for (int round = 0; round < 3; round++) {
        answer *a = answer_new(), *b = answer_new();
        mxd_request r = request(a, ids, prompt(4, ids), 40), q = r;
        q.ctx = b;
        submit(c, &r);
        submit(c, &q);
        wait_for(a, 3);
        mxd_cluster_cancel(c, a->id);
        wait_for(a, 0);
        wait_for(b, 0);
        check_same(want, b);
        answer_free(a);
        answer_free(b);
    }
    atomic_store(&stop_asking, true);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    answer_free(want);
    close_soon(c);
}

/* ------------------------------------------------------------------------- shortage of memory */

static atomic_long live_bytes, calls_left;

static void *short_resize(void *ctx, void *p, size_t old_bytes, size_t new_bytes) {
    (void)ctx;
    if (new_bytes && atomic_fetch_sub(&calls_left, 1) <= 0) return NULL;
    void *q = mxd_alloc_libc.resize(NULL, p, old_bytes, new_bytes);
    if (!new_bytes || q) atomic_fetch_add(&live_bytes, (long)new_bytes - (long)old_bytes);
    return q;
}

/* The nth allocation and all later ones fail, whichever thread asks: an error or a failed request,
 * never a crash, a hang or a leak. */
TEST(cluster_out_of_memory) {
    static const mxd_alloc al = {short_resize, NULL};
    char folder[1024];
    mxd_cluster_opts o = options(folder);
    int opened = 0, refused = 0;
    mxd_log_set_level((mxd_log_level)(MXD_LOG_ERROR + 1));
    for (long n = 0; n < 2000; n += n < 300 ? 3 : 61) {
        mxd_cluster *c = NULL;
        mxd_err err = {0};
        atomic_store(&live_bytes, 0);
        atomic_store(&calls_left, n);
        mxd_rc rc = mxd_cluster_open(&c, &al, &o, &err);
        if (rc && rc != MXD_E_NOMEM)
            fail_msg("allocation %ld: %s: %s", n, mxd_rc_name(rc), err.msg);
        refused += rc != MXD_OK;
        if (!rc) {
            answer *a = answer_new();
            int32_t ids[64];
            mxd_request r = request(a, ids, prompt(1, ids), 3);
            opened++;
            rc = mxd_cluster_wait(c, 30, &err);
            if (!rc) rc = mxd_cluster_submit(c, &r, &a->id, &err);
            if (!rc) mxd_sleep_ms(20);
            atomic_store(&calls_left, 1000); /* closing itself may need a little */
            mxd_cluster_close(c);
            answer_free(a);
        }
        if (live_bytes) fail_msg("allocation %ld: %ld bytes left", n, (long)live_bytes);
    }
    CHECK(opened > 0 && refused > 10);
}

/* ------------------------------------------------------------------------------ remote workers */

static void make_dir(char out[64]) {
    snprintf(out, 64, "/tmp/mxd-test-cluster-XXXXXX");
    CHECK(mkdtemp(out) != NULL);
}

static void remove_dir(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[512];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (unlink(path) != 0) remove_dir(path);
    }
    closedir(d);
    rmdir(dir);
}

static void copy_file(const char *from, const char *to) {
    static char part[1 << 16];
    FILE *a = fopen(from, "rb"), *b = fopen(to, "wb");
    CHECK(a && b);
    for (size_t n; (n = fread(part, 1, sizeof part, a)) > 0;) CHECK_EQ(fwrite(part, 1, n, b), n);
    fclose(a);
    CHECK_EQ(fclose(b), 0);
}

static char *read_text(const char *dir, const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("no %s", path);
    char *text = calloc(1, MXD_PEM_MAX + 1);
    CHECK(fread(text, 1, MXD_PEM_MAX, f) > 0);
    fclose(f);
    return text;
}

/* A coordinator that computes nothing itself, and the secret that lets workers in. */
typedef struct open_cluster {
    mxd_cluster *c;
    char base[64], state[128], folder[1024], address[64];
    char token[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX];
    atomic_int uses;
} open_cluster;

static bool spend(void *ctx, const char *secret) {
    open_cluster *o = ctx;
    return mxd_secret_equal(secret, o->secret) && atomic_fetch_sub(&o->uses, 1) > 0;
}

static void open_remote(open_cluster *o, int min_nodes, int uses, const char *folder) {
    mxd_err err = {0};
    mxd_log_set_level((mxd_log_level)(MXD_LOG_ERROR + 1));
    make_dir(o->base);
    snprintf(o->state, sizeof o->state, "%s/fresh/account/state", o->base);
    mxd_cluster_opts c = options(o->folder);
    if (folder) c.folder = folder;
    c.no_local = true;
    c.listen = "127.0.0.1:0";
    c.state_dir = o->state;
    c.min_nodes = min_nodes;
    if (min_nodes == 2) { /* one machine would be faster alone */
        c.shape.n_split = 2;
        c.shape.split[0] = 4;
        c.shape.split[1] = 2;
    }
    c.spend_secret = spend;
    c.spend_ctx = o;
    atomic_store(&o->uses, uses);
    CHECK_OK(mxd_cluster_open(&o->c, &mxd_alloc_libc, &c, &err), &err);
    snprintf(o->address, sizeof o->address, "127.0.0.1:%d", mxd_cluster_port(o->c));
    char *ca = read_text(o->state, "ca.pem");
    CHECK_OK(mxd_token_new(ca, o->token, o->secret, &err), &err);
    free(ca);
}

static void close_remote(open_cluster *o) {
    close_soon(o->c);
    remove_dir(o->base);
}

typedef struct identity {
    mxd_pem pem;
    char *ca;
} identity;

static void identity_free(identity *id) {
    mxd_pem_free(&mxd_alloc_libc, &id->pem);
    mxd_free(&mxd_alloc_libc, id->ca);
}

static mxd_worker *join(open_cluster *o, const char *node, const identity *id,
                        bool (*find)(void *, const char *, int, char *, size_t), void *ctx) {
    mxd_worker *w;
    mxd_err err = {0};
    mxd_worker_opts wo = {.node = node,
                          .join = o->address,
                          .identity = {id->ca, id->pem.cert, id->pem.key},
                          .memory_total = 8ull << 30,
                          .memory_free = 4ull << 30,
                          .threads = 1,
                          .find_model = find,
                          .find_ctx = ctx};
    CHECK_OK(mxd_worker_open(&w, &mxd_alloc_libc, &wo, &err), &err);
    return w;
}

static void enrol(open_cluster *o, const char *node, identity *id) {
    mxd_err err = {0};
    CHECK_OK(
        mxd_enroll(&mxd_alloc_libc, o->address, o->token, node, 10000, &id->pem, &id->ca, &err),
        &err);
}

TEST(cluster_two_workers_over_tls) {
    open_cluster o;
    identity a = {0}, b = {0};
    mxd_err err = {0};
    open_remote(&o, 2, 2, NULL);
    enrol(&o, "box-a", &a);
    enrol(&o, "box-b", &b);
    mxd_worker *wa = join(&o, "box-a", &a, NULL, NULL), *wb = join(&o, "box-b", &b, NULL, NULL);
    CHECK_OK(mxd_cluster_wait(o.c, LOAD_MS, &err), &err);
    check_state(o.c, 2);
    mxd_cluster *local = open_local();
    mxd_log_set_level((mxd_log_level)(MXD_LOG_ERROR + 1));
    for (int k = 0; k < 4; k++) { /* the same bits as in one process */
        answer *x = run(o.c, k, 24), *y = run(local, k, 24);
        check_same(x, y);
        answer_free(x);
        answer_free(y);
    }
    /* one dies while an answer is on its way: the other carries on, nothing changes */
    mxd_cluster_counters n;
    answer *want = run(local, 11, 300), *got = answer_new();
    int32_t ids[64];
    mxd_request r = request(got, ids, prompt(11, ids), 300);
    submit(o.c, &r);
    wait_for(got, 5);
    mxd_worker_close(wa);
    wa = join(&o, "box-a", &a, NULL, NULL); /* and comes back with the certificate it has */
    wait_for(got, 0);
    if (got->end.how != MXD_END_LENGTH) fail_msg("%s: %s", mxd_rc_name(got->end.rc), got->text);
    check_same(want, got);
    mxd_cluster_counters_get(o.c, &n);
    CHECK(n.replays >= 1 && n.epochs >= 2);
    answer_free(got);
    /* one leaves in order */
    for (int i = 0; i < 1000 && n.nodes_live < 2; i++) {
        mxd_sleep_ms(10);
        mxd_cluster_counters_get(o.c, &n);
    }
    CHECK_EQ(n.nodes_live, 2);
    got = answer_new();
    r = request(got, ids, prompt(11, ids), 300);
    submit(o.c, &r);
    wait_for(got, 5);
    mxd_worker_drain(wb);
    CHECK_OK(mxd_worker_wait(wb, 20000, &err), &err);
    wait_for(got, 0);
    CHECK_EQ(got->end.how, MXD_END_LENGTH);
    check_same(want, got);
    answer_free(want);
    answer_free(got);
    mxd_worker_close(wb);
    mxd_worker_close(wa);
    close_soon(local);
    close_remote(&o);
    identity_free(&a);
    identity_free(&b);
}

TEST(cluster_enrolment) {
    open_cluster o;
    identity id = {0};
    mxd_err err = {0};
    char other[MXD_TOKEN_MAX], secret[MXD_SECRET_MAX];
    open_remote(&o, 1, 1, NULL);
    const mxd_alloc *al = &mxd_alloc_libc;
    char *ca = read_text(o.state, "ca.pem"), *key = read_text(o.state, "ca.key");
    struct stat st;
    char path[256];
    snprintf(path, sizeof path, "%s/ca.key", o.state);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 077) == 0);
    /* a secret that was never given out */
    CHECK_OK(mxd_token_new(ca, other, secret, &err), &err);
    CHECK_EQ(mxd_enroll(al, o.address, other, "box", 10000, &id.pem, &id.ca, &err), MXD_E_AUTH);
    /* names of our own; they cost no use of the token */
    CHECK_EQ(mxd_enroll(al, o.address, o.token, "coordinator", 10000, &id.pem, &id.ca, &err),
             MXD_E_AUTH);
    CHECK_EQ(mxd_enroll(al, o.address, o.token, "local-0", 10000, &id.pem, &id.ca, &err),
             MXD_E_AUTH);
    CHECK(atomic_load(&o.uses) == 1);
    enrol(&o, "box", &id);
    CHECK_OK(mxd_identity_check(id.ca, id.pem.cert, id.pem.key, NULL, &err), &err);
    CHECK_STR(id.ca, ca);
    /* spent */
    identity again = {0};
    CHECK_EQ(mxd_enroll(al, o.address, o.token, "box2", 10000, &again.pem, &again.ca, &err),
             MXD_E_AUTH);
    /* the CA is kept over a restart */
    close_soon(o.c);
    mxd_cluster_opts c = options(o.folder);
    c.no_local = true;
    c.listen = "127.0.0.1:0";
    c.state_dir = o.state;
    CHECK_OK(mxd_cluster_open(&o.c, al, &c, &err), &err);
    char *later = read_text(o.state, "ca.pem");
    CHECK_STR(later, ca);
    snprintf(o.address, sizeof o.address, "127.0.0.1:%d", mxd_cluster_port(o.c));
    mxd_worker *w = join(&o, "box", &id, NULL, NULL);
    CHECK_OK(mxd_cluster_wait(o.c, LOAD_MS, &err), &err);
    mxd_worker_close(w);
    close_remote(&o);
    identity_free(&id);
    free(ca);
    free(key);
    free(later);
}

/* A certificate of another cluster, and one that belongs to another node. */
TEST(cluster_wrong_certificate) {
    open_cluster o;
    identity stranger = {0}, id = {0};
    mxd_err err = {0};
    mxd_pem ca = {0};
    open_remote(&o, 1, 1, NULL);
    CHECK_OK(mxd_ca_new(&mxd_alloc_libc, "other", &ca, &err), &err);
    CHECK_OK(mxd_ca_issue(&mxd_alloc_libc, &ca, "box", &stranger.pem, &err), &err);
    stranger.ca = mxd_strdup(&mxd_alloc_libc, ca.cert);
    mxd_worker *w = join(&o, "box", &stranger, NULL, NULL);
    mxd_rc rc = mxd_worker_wait(w, 1500, &err);
    CHECK(rc == MXD_E_AUTH || rc == MXD_E_TIMEOUT); /* never a member */
    mxd_worker_close(w);
    enrol(&o, "box", &id);
    w = join(&o, "another-box", &id, NULL, NULL);
    CHECK_EQ(mxd_worker_wait(w, 10000, &err), MXD_E_AUTH);
    CHECK(strstr(err.msg, "certificate"));
    mxd_worker_close(w);
    mxd_cluster_counters n;
    mxd_cluster_counters_get(o.c, &n);
    CHECK_EQ(n.nodes_live, 0);
    mxd_pem_free(&mxd_alloc_libc, &ca);
    identity_free(&stranger);
    identity_free(&id);
    close_remote(&o);
}

static bool find_other(void *ctx, const char *model, int k, char *folder, size_t cap) {
    (void)model;
    snprintf(folder, cap, "%s", (const char *)ctx);
    return k == 0;
}

/* The coordinator's folder is not on the worker's machine, and what is there has other tensors. */
TEST(cluster_worker_with_another_model) {
    open_cluster o;
    identity id = {0};
    mxd_err err = {0};
    char dir[64], from[1200], to[1200], folder[1024], other[1024];
    make_dir(dir);
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s", demo(folder), files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        copy_file(from, to);
    }
    open_remote(&o, 1, 1, dir);
    remove_dir(dir);
    enrol(&o, "box", &id);
    test_path(other, "conformance/models/plain-f32");
    mxd_worker *w = join(&o, "box", &id, find_other, other);
    mxd_rc rc = mxd_cluster_wait(o.c, 20000, &err);
    CHECK(rc != MXD_OK);
    json_t *s = mxd_cluster_state_json(o.c);
    const char *problem = json_string_value(json_object_get(s, "problem"));
    if (!strstr(err.msg, "another model") && !(problem && strstr(problem, "another model")))
        fail_msg("%s: %s; problem: %s", mxd_rc_name(rc), err.msg, problem ? problem : "none");
    json_decref(s);
    mxd_worker_close(w);
    identity_free(&id);
    close_remote(&o);
}

/* Bound to one address only: the worker inside must find it there. */
TEST(cluster_listens_elsewhere_than_on_127_0_0_1) {
    static const char *const listen[] = {"127.0.0.2:0", "0.0.0.0:0", "localhost:0"};
    for (size_t i = 0; i < MXD_COUNT(listen); i++) {
        char folder[1024], dir[64];
        mxd_cluster_opts o = options(folder);
        make_dir(dir);
        o.listen = listen[i];
        o.state_dir = dir;
        mxd_log_set_level(MXD_LOG_ERROR);
        mxd_cluster *c = open_with(&o);
        answer *a = run(c, 1, 3);
        CHECK_EQ(a->n, 3);
        answer_free(a);
        close_soon(c);
        remove_dir(dir);
    }
}

TEST(cluster_places) {
    char out[96];
    CHECK(mxd_place_is_any("0.0.0.0:1") && mxd_place_is_any("[::]:1"));
    CHECK(!mxd_place_is_any("10.0.0.1:1") && !mxd_place_is_any("0.0.0.0"));
    CHECK(mxd_place_is_loopback("127.0.0.1:1") && mxd_place_is_loopback("[::1]:1"));
    CHECK(mxd_place_is_loopback("localhost:1") && !mxd_place_is_loopback("box.local:1"));
    mxd_place_with_host(out, sizeof out, "0.0.0.0:7", "10.0.0.3:555");
    CHECK_STR(out, "10.0.0.3:7");
    mxd_place_with_host(out, sizeof out, "[::]:7", "[fe80::1]:555");
    CHECK_STR(out, "[fe80::1]:7");
    mxd_place_with_host(out, sizeof out, "0.0.0.0:7", "no address");
    CHECK_STR(out, "0.0.0.0:7");
    mxd_place_with_port(out, sizeof out, "[::1]:0", 9);
    CHECK_STR(out, "[::1]:9");
    mxd_place_with_port(out, sizeof out, "nonsense", 9);
    CHECK_STR(out, "nonsense");
}
