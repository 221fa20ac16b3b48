#include "test.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/rand.h"
#include "cluster/wire.h"
#include "cluster/wire_weights.h"

/* What a test holds: the encoded head, the decoder's arena, and the decoded structs. */
typedef union decoded {
    mxd_node_info hello;
    mxd_welcome welcome;
    mxd_wire_failure failure;
    mxd_stage install;
    uint64_t epoch;
    mxd_core_ready ready;
    mxd_core_beat beat;
    mxd_wire_step step;
    mxd_wire_result result;
    mxd_core_neighbour neighbour;
    mxd_wire_sources sources;
    mxd_wire_want want;
    mxd_wire_give give;
} decoded;

static mxd_buf head;
static mxd_arena arena;
static decoded got;

static void begin(void) {
    mxd_err err = {0};
    mxd_buf_init(&head, &mxd_alloc_libc, MXD_MAX_FRAME_BYTES);
    CHECK_OK(mxd_arena_init(&arena, &mxd_alloc_libc, MXD_WIRE_SCRATCH, &err), &err);
}

static void end(void) {
    mxd_buf_deinit(&head);
    mxd_arena_deinit(&arena);
}

/* -------------------------------------------------------------------------- a sample of each */

static void fill(char *dst, size_t cap, char c) {
    memset(dst, c, cap - 1);
    dst[cap - 1] = '\0';
}

static mxd_node_info sample_hello(bool longest) {
    mxd_node_info m = {.incarnation = UINT64_MAX,
                       .epoch = MXD_CORE_MAX_EPOCH,
                       .pid = 4194304,
                       .memory_total = UINT64_MAX,
                       .memory_free = 1,
                       .bandwidth = 1.5e11,
                       .ops = 0,
                       .paces = {1e11, 1e-8, 2e11, 3e10, 4e9, 1.5e-6, 4e-6, 0.5, 0.05},
                       .link_us = 37.5,
                       .link_bandwidth = 1e9,
                       .cpus = 0.5,
                       .host_cpus = 8,
                       .local = true};
    fill(m.id, longest ? sizeof m.id : 2, 'i');
    fill(m.name, longest ? sizeof m.name : 2, 'n');
    fill(m.host, longest ? sizeof m.host : 2, 'h');
    fill(m.backend, longest ? sizeof m.backend : 2, 'b');
    fill(m.address, longest ? sizeof m.address : 2, 'a');
    return m;
}

static mxd_welcome sample_welcome(void) {
    mxd_welcome m = {.version = MXD_PROTOCOL_VERSION,
                     .ctx = MXD_MAX_CONTEXT,
                     .slots = MXD_MAX_SEQS,
                     .max_rows = MXD_MAX_STEP_TOKENS,
                     .activations = 2,
                     .threads = MXD_MAX_THREADS,
                     .kv = MXD_KV_Q8};
    for (int i = 0; i < 32; i++) m.tensors_hash[i] = (uint8_t)(i * 8);
    for (int i = 0; i < 32; i++) m.weights_id[i] = (uint8_t)(255 - i);
    fill(m.model, sizeof m.model, 'm');
    fill(m.folder, sizeof m.folder, 'f');
    fill(m.backend, sizeof m.backend, 'b');
    fill(m.kernels, sizeof m.kernels, 'k');
    return m;
}

static mxd_stage sample_install(void) {
    mxd_stage m = {.epoch = MXD_CORE_MAX_EPOCH,
                   .index = 63,
                   .n_stages = 64,
                   .layer0 = 1023,
                   .layer1 = 1024,
                   .head = true,
                   .prev = 63,
                   .rank = MXD_MAX_RANKS - 1,
                   .n_ranks = MXD_MAX_RANKS,
                   .n_next = MXD_MAX_RANKS};
    for (int r = 0; r < MXD_MAX_RANKS; r++) {
        m.share[r] = r / 16.0;
        m.ranks[r].node = r;
        m.next[r].node = 63 - r;
        fill(m.ranks[r].id, sizeof m.ranks[r].id, 'r');
        fill(m.ranks[r].address, sizeof m.ranks[r].address, 'o');
        fill(m.next[r].id, sizeof m.next[r].id, 'n');
        fill(m.next[r].address, sizeof m.next[r].address, 'a');
    }
    return m;
}

enum { RUNS = MXD_MAX_STEP_RUNS, ROWS = MXD_MAX_STEP_TOKENS, BIASES = MXD_MAX_LOGIT_BIAS };
static mxd_core_run runs[RUNS];
static mxd_sampling how[RUNS];
static int32_t ids[ROWS];
static mxd_logit_bias bias[BIASES];

/* n_runs runs over n_rows rows; every run samples with n_bias biases. */
static void sample_step(int n_runs, int n_rows, int n_bias) {
    for (int i = 0; i < n_bias; i++)
        bias[i] = (mxd_logit_bias){i * 4096, i % 2 ? -100.0f : -INFINITY};
    for (int i = 0; i < n_rows; i++) ids[i] = i % 3 ? INT32_MAX - i : i;
    for (int i = 0, row = 0; i < n_runs; i++) {
        int n = i == n_runs - 1 ? n_rows - row : n_rows / n_runs;
        how[i] = (mxd_sampling){.temperature = 0.7f + (float)i,
                                .top_p = 0.9f,
                                .min_p = FLT_MIN,
                                .top_k = INT32_MAX,
                                .presence = -2,
                                .frequency = 2,
                                .repetition = 1.1f,
                                .seed = UINT64_MAX - (uint64_t)i,
                                .choice = UINT32_MAX,
                                .n_prompt = (uint32_t)i,
                                .logprobs = true,
                                .n_top = MXD_MAX_TOP_LOGPROBS,
                                .n_bias = (uint16_t)n_bias,
                                .bias = n_bias ? bias : NULL};
        runs[i] = (mxd_core_run){.request = UINT64_MAX - (uint64_t)i,
                                 .pos = MXD_MAX_CONTEXT - (uint32_t)i,
                                 .slot = (uint16_t)(MXD_MAX_SEQS - 1 - i),
                                 .begin = i % 3 == 0,
                                 .keep = i % 4 == 1,
                                 .from = (uint16_t)(i % 3 ? 0 : MXD_MAX_SEQS - 1 - i / 3),
                                 .from_request = i % 3 ? 0 : UINT64_MAX - 7,
                                 .n = (uint16_t)n,
                                 .sample = i % 5 != 4,
                                 .ids = ids + row,
                                 .how = &how[i]};
        row += n;
    }
}

static struct mxd_core_result_run tokens[RUNS];

static mxd_core_result sample_result(int n, int n_top) {
    for (int i = 0; i < n; i++) {
        tokens[i] = (struct mxd_core_result_run){.request = (uint64_t)i + 1, .pos = UINT32_MAX};
        tokens[i].sampled.token = INT32_MAX - i;
        tokens[i].sampled.logprob = -0.5f * (float)i;
        tokens[i].sampled.n_top = (uint8_t)n_top;
        for (int k = 0; k < n_top; k++) {
            tokens[i].sampled.top_id[k] = k * 7;
            tokens[i].sampled.top_logprob[k] = k == 3 ? -INFINITY : -(float)k;
        }
    }
    return (mxd_core_result){UINT64_MAX, 7, n, tokens};
}

static const mxd_core_beat sample_beat = {.epoch = 3,
                                          .last_step = UINT64_MAX,
                                          .step_age_ms = INT64_MAX,
                                          .load_done = 5,
                                          .load_total = UINT64_MAX,
                                          .rss = 1,
                                          .step_ms = 1.25f,
                                          .row_ms = 0.75f};

/* ---------------------------------------------------------------- every message, by its number */

#define GET(kind, name, field)                                        \
    static mxd_rc get_##kind(const void *p, size_t n, mxd_err *err) { \
        return mxd_wire_get_##name(&got.field, &arena, p, n, err);    \
    }
GET(hello, hello, hello)
GET(welcome, welcome, welcome)
GET(drop, drop, failure)
GET(install, install, install)
GET(uninstall, uninstall, epoch)
GET(ready, ready, ready)
GET(failed, failed, failure)
GET(heartbeat, heartbeat, beat)
GET(step, step, step)
GET(result, result, result)
GET(nack, nack, failure)
GET(neighbour_down, neighbour_down, neighbour)
GET(sources, sources, sources)
GET(want, want, want)
GET(give, give, give)

static void put_hello(void) {
    mxd_node_info m = sample_hello(true);
    mxd_wire_put_hello(&head, &m);
}
static void put_welcome(void) {
    mxd_welcome m = sample_welcome();
    mxd_wire_put_welcome(&head, &m);
}
static void put_drop(void) { mxd_wire_put_drop(&head, MXD_E_BUSY, "not now"); }
static void put_install(void) {
    mxd_stage m = sample_install();
    mxd_wire_put_install(&head, &m);
}
static void put_uninstall(void) { mxd_wire_put_uninstall(&head, 12345); }
static void put_ready(void) {
    mxd_wire_put_ready(&head, &(mxd_core_ready){UINT64_MAX, 1ull << 40, "bit-exact"});
}
static void put_failed(void) { mxd_wire_put_failed(&head, 9, MXD_E_NOMEM, "no memory"); }
static void put_heartbeat(void) { mxd_wire_put_heartbeat(&head, &sample_beat); }
static void put_step(void) {
    sample_step(3, 20, 5);
    mxd_wire_put_step(&head, 4, 5, runs, 3);
}
static void put_result(void) {
    mxd_core_result m = sample_result(3, MXD_MAX_TOP_LOGPROBS);
    mxd_wire_put_result(&head, &m);
}
static void put_nack(void) { mxd_wire_put_nack(&head, 1, 2, MXD_E_STALE, "old"); }
static void put_neighbour_down(void) {
    mxd_wire_put_neighbour_down(&head, &(mxd_core_neighbour){77, MXD_CORE_COORDINATOR});
}

static void put_sources(void) {
    mxd_wire_sources m = {.n = 2, .list = {{"box-a", "10.0.0.1:5000"}, {"box-b", "[fe80::1]:5"}}};
    mxd_wire_put_sources(&head, &m);
}
static mxd_wire_want sample_want(mxd_want_what what) {
    mxd_wire_want m = {.what = what, .file = 3};
    memset(m.id, 0xfe, sizeof m.id);
    m.offset = 7ull * MXD_WEIGHTS_PIECE;
    m.length = what == MXD_WANT_SUMS ? MXD_MAX_SUMS : MXD_WEIGHTS_PIECE;
    return m;
}
static void put_want(void) {
    mxd_wire_want m = sample_want(MXD_WANT_DATA);
    mxd_wire_put_want(&head, &m);
}
static const mxd_weights_file files[] = {{"config.json", 900, 900},
                                         {"model-1.safetensors", 1ull << 40, 5000},
                                         {"model-2.safetensors", 77, 20}};
static void put_list(void) {
    mxd_wire_put_give(&head, &(mxd_wire_give){.what = MXD_WANT_LIST, .files = files, .n_files = 3});
}
static uint8_t sums[32 * MXD_MAX_SUMS];
static void put_sums(void) {
    for (size_t i = 0; i < sizeof sums; i++) sums[i] = (uint8_t)(i * 3);
    mxd_wire_put_give(&head, &(mxd_wire_give){.what = MXD_WANT_SUMS,
                                              .file = 1,
                                              .offset = MXD_WEIGHTS_PIECE,
                                              .length = 3,
                                              .sums = sums});
}

static const struct message {
    const char *name;
    void (*put)(void);
    mxd_rc (*get)(const void *p, size_t n, mxd_err *err);
    bool empty_ok; /* no field is needed */
} messages[] = {
    {"hello", put_hello, get_hello, false},
    {"welcome", put_welcome, get_welcome, false},
    {"drop", put_drop, get_drop, true},
    {"install", put_install, get_install, false},
    {"uninstall", put_uninstall, get_uninstall, true},
    {"ready", put_ready, get_ready, true},
    {"failed", put_failed, get_failed, true},
    {"heartbeat", put_heartbeat, get_heartbeat, true},
    {"step", put_step, get_step, false},
    {"result", put_result, get_result, true},
    {"nack", put_nack, get_nack, true},
    {"neighbour_down", put_neighbour_down, get_neighbour_down, true},
    {"sources", put_sources, get_sources, true},
    {"want", put_want, get_want, false},
    {"give a list", put_list, get_give, false},
    {"give sums", put_sums, get_give, false},
};

/* Encodes one, into a block of exactly its size so that a read behind it is seen. */
static char *encoded(const struct message *m, size_t *n) {
    mxd_buf_clear(&head);
    m->put();
    CHECK_EQ(head.rc, MXD_OK);
    *n = head.len;
    char *p = malloc(head.len + 1);
    memcpy(p, mxd_buf_str(&head), head.len);
    return p;
}

/* ---------------------------------------------------------------------------------- round trips */

TEST(wire_hello_round_trip) {
    begin();
    for (int longest = 0; longest < 2; longest++) {
        mxd_node_info m = sample_hello(longest);
        mxd_err err = {0};
        mxd_buf_clear(&head);
        mxd_wire_put_hello(&head, &m);
        CHECK_OK(get_hello(mxd_buf_str(&head), head.len, &err), &err);
        CHECK_STR(got.hello.id, m.id);
        CHECK_STR(got.hello.name, m.name);
        CHECK_STR(got.hello.host, m.host);
        CHECK_STR(got.hello.backend, m.backend);
        CHECK_STR(got.hello.address, m.address);
        CHECK_EQ(got.hello.incarnation, m.incarnation);
        CHECK_EQ(got.hello.epoch, m.epoch);
        CHECK_EQ(got.hello.pid, m.pid);
        CHECK_EQ(got.hello.memory_total, m.memory_total);
        CHECK_EQ(memcmp(&got.hello.paces, &m.paces, sizeof m.paces), 0);
        CHECK(got.hello.link_us == 37.5 && got.hello.link_bandwidth == 1e9);
        CHECK(got.hello.cpus == 0.5 && got.hello.host_cpus == 8);
        CHECK_EQ(got.hello.memory_free, m.memory_free);
        CHECK(got.hello.bandwidth == m.bandwidth && got.hello.ops == 0 && got.hello.local);
    }
    end();
}

/* A rate that is no rate is unknown, an epoch beyond JSON's integers is a lie. */
TEST(wire_hello_absurd_numbers) {
    begin();
    mxd_node_info m = sample_hello(false);
    mxd_err err = {0};
    m.bandwidth = NAN;
    m.ops = -INFINITY;
    mxd_wire_put_hello(&head, &m);
    CHECK_OK(get_hello(mxd_buf_str(&head), head.len, &err), &err);
    CHECK(got.hello.bandwidth == 0 && got.hello.ops == 0);
    mxd_buf_clear(&head);
    m.epoch = MXD_CORE_MAX_EPOCH + 1;
    mxd_wire_put_hello(&head, &m);
    CHECK_EQ(get_hello(mxd_buf_str(&head), head.len, &err), MXD_E_FORMAT);
    mxd_buf_clear(&head);
    m.epoch = 0;
    m.id[0] = '\0';
    mxd_wire_put_hello(&head, &m);
    CHECK_EQ(get_hello(mxd_buf_str(&head), head.len, &err), MXD_E_FORMAT);
    end();
}

TEST(wire_welcome_round_trip) {
    begin();
    mxd_welcome m = sample_welcome();
    mxd_err err = {0};
    mxd_wire_put_welcome(&head, &m);
    CHECK_OK(get_welcome(mxd_buf_str(&head), head.len, &err), &err);
    const mxd_welcome *w = &got.welcome;
    CHECK_STR(w->model, m.model);
    CHECK_STR(w->folder, m.folder);
    CHECK_STR(w->backend, m.backend);
    CHECK_STR(w->kernels, m.kernels);
    CHECK(memcmp(w->tensors_hash, m.tensors_hash, 32) == 0);
    CHECK(memcmp(w->weights_id, m.weights_id, 32) == 0);
    CHECK_EQ(w->ctx, m.ctx);
    CHECK_EQ(w->slots, m.slots);
    CHECK_EQ(w->max_rows, m.max_rows);
    CHECK_EQ(w->activations, 2);
    CHECK_EQ(w->threads, MXD_MAX_THREADS);
    CHECK_EQ(w->kv, MXD_KV_Q8);
    end();
}

/* Of an older coordinator, or one that gives no weights: none. */
TEST(wire_welcome_without_weights) {
    begin();
    mxd_welcome m = sample_welcome();
    static const uint8_t none[32];
    mxd_err err = {0};
    memset(m.weights_id, 0, sizeof m.weights_id);
    mxd_wire_put_welcome(&head, &m);
    CHECK_OK(get_welcome(mxd_buf_str(&head), head.len, &err), &err);
    CHECK(memcmp(got.welcome.weights_id, none, sizeof none) == 0);
    end();
}

TEST(wire_weights_round_trip) {
    begin();
    mxd_err err = {0};
    put_sources();
    CHECK_OK(get_sources(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_EQ(got.sources.n, 2);
    CHECK_STR(got.sources.list[0].node, "box-a");
    CHECK_STR(got.sources.list[1].address, "[fe80::1]:5");
    mxd_buf_clear(&head);
    put_want();
    CHECK_OK(get_want(mxd_buf_str(&head), head.len, &err), &err);
    mxd_wire_want w = sample_want(MXD_WANT_DATA);
    CHECK(memcmp(got.want.id, w.id, 32) == 0 && got.want.what == w.what);
    CHECK(got.want.file == 3 && got.want.offset == w.offset && got.want.length == w.length);
    mxd_buf_clear(&head);
    put_list();
    CHECK_OK(get_give(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_EQ(got.give.n_files, 3);
    CHECK_STR(got.give.files[1].name, "model-1.safetensors");
    CHECK(got.give.files[1].bytes == 1ull << 40 && got.give.files[1].head == 5000);
    mxd_buf_clear(&head);
    mxd_arena_reset(&arena, 0);
    put_sums();
    CHECK_OK(get_give(mxd_buf_str(&head), head.len, &err), &err);
    CHECK(got.give.length == 3 && memcmp(got.give.sums, sums, 3 * 32) == 0);
    mxd_buf_clear(&head);
    mxd_wire_put_give(
        &head, &(mxd_wire_give){
                   .what = MXD_WANT_DATA, .length = 1, .rc = MXD_E_NOTFOUND, .text = "not here"});
    CHECK_OK(get_give(mxd_buf_str(&head), head.len, &err), &err);
    CHECK(got.give.rc == MXD_E_NOTFOUND);
    CHECK_STR(got.give.text, "not here");
    end();
}

TEST(wire_weights_limits) {
    static const struct {
        int what;
        uint64_t offset;
        uint32_t length;
        mxd_rc rc;
    } rows[] = {{MXD_WANT_DATA, 0, 1, MXD_OK},
                {MXD_WANT_DATA, 0, MXD_WEIGHTS_PIECE, MXD_OK},
                {MXD_WANT_DATA, 0, MXD_WEIGHTS_PIECE + 1, MXD_E_FORMAT},
                {MXD_WANT_DATA, 0, 0, MXD_E_FORMAT},
                {MXD_WANT_DATA, 1, 1, MXD_E_FORMAT},
                {MXD_WANT_DATA, UINT64_MAX, 1, MXD_E_FORMAT},
                {MXD_WANT_SUMS, 0, MXD_MAX_SUMS, MXD_OK},
                {MXD_WANT_SUMS, 0, MXD_MAX_SUMS + 1, MXD_E_FORMAT},
                {MXD_WANT_SUMS, 0, 0, MXD_E_FORMAT},
                {0, 0, 1, MXD_E_FORMAT},
                {4, 0, 1, MXD_E_FORMAT}};
    begin();
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_err err = {0};
        mxd_wire_want m = sample_want((mxd_want_what)rows[i].what);
        m.offset = rows[i].offset;
        m.length = rows[i].length;
        mxd_buf_clear(&head);
        mxd_wire_put_want(&head, &m);
        mxd_rc rc = get_want(mxd_buf_str(&head), head.len, &err);
        if (rc != rows[i].rc) fail_msg("row %zu: %s", i, mxd_rc_name(rc));
        mxd_buf_clear(&head);
        mxd_wire_give g = {.what = m.what, .offset = m.offset, .length = m.length, .sums = sums};
        if (m.length <= MXD_MAX_SUMS || rows[i].rc) { /* so many sums are there to be read */
            if (m.length > MXD_MAX_SUMS) g.sums = NULL;
            mxd_wire_put_give(&head, &g);
            CHECK_EQ(get_give(mxd_buf_str(&head), head.len, &err), rows[i].rc);
        }
    }
    end();
}

TEST(wire_welcome_limits) {
    static const struct {
        int ctx, slots, rows, activations, threads;
        mxd_rc rc;
        int kv;
    } rows[] = {{1, 1, 1, 0, 0, MXD_OK},
                {1, 1, 1, 0, 0, MXD_OK, MXD_KV_Q8},
                {1, 1, 1, 0, 0, MXD_E_FORMAT, MXD_KV_Q8 + 1},
                {MXD_MAX_CONTEXT + 1, 1, 1, 0, 0, MXD_E_FORMAT},
                {1, MXD_MAX_SEQS + 1, 1, 0, 0, MXD_E_FORMAT},
                {1, 1, MXD_MAX_STEP_TOKENS + 1, 0, 0, MXD_E_FORMAT},
                {1, 1, 1, 3, 0, MXD_E_FORMAT},
                {1, 1, 1, 0, MXD_MAX_THREADS + 1, MXD_E_FORMAT},
                {0, 1, 1, 0, 0, MXD_E_FORMAT},
                {1, 0, 1, 0, 0, MXD_E_FORMAT},
                {1, 1, 0, 0, 0, MXD_E_FORMAT},
                {-1, 1, 1, 0, 0, MXD_E_FORMAT}};
    begin();
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_welcome m = {.version = MXD_PROTOCOL_VERSION,
                         .ctx = rows[i].ctx,
                         .slots = rows[i].slots,
                         .max_rows = rows[i].rows,
                         .activations = rows[i].activations,
                         .threads = rows[i].threads,
                         .kv = rows[i].kv};
        mxd_buf_clear(&head);
        mxd_wire_put_welcome(&head, &m);
        CHECK_EQ(get_welcome(mxd_buf_str(&head), head.len, NULL), rows[i].rc);
    }
    end();
}

TEST(wire_install_round_trip_and_limits) {
    begin();
    mxd_stage m = sample_install();
    mxd_err err = {0};
    mxd_wire_put_install(&head, &m);
    CHECK_OK(get_install(mxd_buf_str(&head), head.len, &err), &err);
    const mxd_stage *s = &got.install;
    CHECK_EQ(s->epoch, m.epoch);
    CHECK_EQ(s->index, 63);
    CHECK_EQ(s->n_stages, 64);
    CHECK_EQ(s->layer0, 1023);
    CHECK_EQ(s->layer1, 1024);
    CHECK_EQ(s->prev, 63);
    CHECK(s->head && !s->embed);
    CHECK_EQ(s->rank, MXD_MAX_RANKS - 1);
    CHECK_EQ(s->n_ranks, MXD_MAX_RANKS);
    CHECK_EQ(s->n_next, MXD_MAX_RANKS);
    CHECK(memcmp(s->ranks, m.ranks, sizeof m.ranks) == 0);
    CHECK(memcmp(s->next, m.next, sizeof m.next) == 0);
    CHECK(memcmp(s->share, m.share, sizeof m.share) == 0);
    static const struct {
        int index, n_stages, layer0, layer1, prev, rank, n_ranks, n_next, node;
        double share;
    } bad[] = {
        {1, 1, 0, 1, -1, 0, 1, 0, 0, 1},    {0, 65, 0, 1, -1, 0, 1, 0, 0, 1},
        {0, 1, 1, 1, -1, 0, 1, 0, 0, 1},    {0, 1, 2, 1, -1, 0, 1, 0, 0, 1},
        {0, 1, 0, 1025, -1, 0, 1, 0, 0, 1}, {0, 1, 0, 1, -2, 0, 1, 0, 0, 1},
        {0, 1, 0, 1, 64, 0, 1, 0, 0, 1},    {-1, 1, 0, 1, -1, 0, 1, 0, 0, 1},
        {0, 1, -1, 1, -1, 0, 1, 0, 0, 1},   {0, 1, 0, 1, -1, 1, 1, 0, 0, 1},
        {0, 1, 0, 1, -1, 0, 0, 0, 0, 1},    {0, 1, 0, 1, -1, -1, 1, 0, 0, 1},
        {0, 1, 0, 1, -1, 0, 1, 0, 64, 1},   {0, 1, 0, 1, -1, 0, 1, 0, -1, 1},
        {0, 1, 0, 1, -1, 0, 1, 0, 0, -0.5}, {0, 1, 0, 1, -1, 0, 1, 0, 0, 1.5},
        {0, 1, 0, 1, -1, 0, 1, 0, 0, NAN},
    };
    for (size_t i = 0; i < MXD_COUNT(bad); i++) {
        mxd_stage b = {.epoch = 1,
                       .index = bad[i].index,
                       .n_stages = bad[i].n_stages,
                       .layer0 = bad[i].layer0,
                       .layer1 = bad[i].layer1,
                       .prev = bad[i].prev,
                       .rank = bad[i].rank,
                       .n_ranks = bad[i].n_ranks,
                       .n_next = bad[i].n_next,
                       .ranks[0].node = bad[i].node,
                       .share[0] = bad[i].share};
        mxd_buf_clear(&head);
        mxd_wire_put_install(&head, &b);
        CHECK_EQ(get_install(mxd_buf_str(&head), head.len, NULL), MXD_E_FORMAT);
    }
    end();
}

TEST(wire_small_messages_round_trip) {
    begin();
    mxd_err err = {0};
    size_t n;
    char *p = encoded(&messages[4], &n);
    CHECK_OK(get_uninstall(p, n, &err), &err);
    CHECK_EQ(got.epoch, 12345);
    free(p);
    p = encoded(&messages[5], &n);
    CHECK_OK(get_ready(p, n, &err), &err);
    CHECK(got.ready.epoch == UINT64_MAX && got.ready.bytes == 1ull << 40);
    CHECK_STR(got.ready.determinism, "bit-exact");
    free(p);
    p = encoded(&messages[7], &n);
    CHECK_OK(get_heartbeat(p, n, &err), &err);
    CHECK_EQ(got.beat.epoch, 3);
    CHECK_EQ(got.beat.last_step, UINT64_MAX);
    CHECK(got.beat.step_age_ms > 0); /* never negative, whatever was sent */
    CHECK_EQ(got.beat.load_done, 5);
    CHECK_EQ(got.beat.load_total, UINT64_MAX);
    CHECK_EQ(got.beat.rss, 1);
    CHECK(got.beat.step_ms == 1.25f && got.beat.row_ms == 0.75f);
    free(p);
    p = encoded(&messages[11], &n);
    CHECK_OK(get_neighbour_down(p, n, &err), &err);
    CHECK_EQ(got.neighbour.epoch, 77);
    CHECK_EQ(got.neighbour.node, -1);
    free(p);
    mxd_buf_clear(&head);
    mxd_wire_put_leave(&head);
    CHECK(head.rc == MXD_OK && head.len == 0);
    end();
}

TEST(wire_failures_round_trip) {
    begin();
    mxd_err err = {0};
    for (int rc = 0; rc < MXD_RC_COUNT; rc++) {
        mxd_buf_clear(&head);
        mxd_wire_put_drop(&head, (mxd_rc)rc, "why");
        CHECK_OK(get_drop(mxd_buf_str(&head), head.len, &err), &err);
        CHECK_EQ(got.failure.rc, rc);
        CHECK_STR(got.failure.text, "why");
        mxd_buf_clear(&head);
        mxd_wire_put_failed(&head, 8, (mxd_rc)rc, "");
        CHECK_OK(get_failed(mxd_buf_str(&head), head.len, &err), &err);
        CHECK_EQ(got.failure.rc, rc ? rc : MXD_E_INTERNAL); /* a failure is never OK */
        CHECK_EQ(got.failure.epoch, 8);
        mxd_buf_clear(&head);
        mxd_wire_put_nack(&head, 8, 9, (mxd_rc)rc, "why");
        CHECK_OK(get_nack(mxd_buf_str(&head), head.len, &err), &err);
        CHECK_EQ(got.failure.step, 9);
        CHECK(got.failure.rc != MXD_OK);
    }
    mxd_buf_clear(&head);
    mxd_wire_put_drop(&head, (mxd_rc)999, "of a newer version");
    CHECK_OK(get_drop(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_EQ(got.failure.rc, MXD_E_INTERNAL);
    end();
}

static void check_sampling(const mxd_sampling *a, const mxd_sampling *b) {
    CHECK(a->temperature == b->temperature && a->top_p == b->top_p && a->min_p == b->min_p);
    CHECK_EQ(a->top_k, b->top_k);
    CHECK(a->presence == b->presence && a->frequency == b->frequency);
    CHECK(a->repetition == b->repetition && a->logprobs == b->logprobs);
    CHECK(a->seed == b->seed);
    CHECK_EQ(a->choice, b->choice);
    CHECK_EQ(a->n_prompt, b->n_prompt);
    CHECK_EQ(a->n_top, b->n_top);
    CHECK_EQ(a->n_bias, b->n_bias);
    for (int i = 0; i < a->n_bias; i++) {
        CHECK_EQ(a->bias[i].token, b->bias[i].token);
        CHECK(a->bias[i].bias == b->bias[i].bias);
    }
}

static void check_step(int n_runs, int n_rows, int n_bias) {
    mxd_err err = {0};
    sample_step(n_runs, n_rows, n_bias);
    mxd_buf_clear(&head);
    mxd_arena_reset(&arena, 0);
    mxd_wire_put_step(&head, 4, UINT64_MAX, runs, n_runs);
    CHECK_EQ(head.rc, MXD_OK);
    CHECK_OK(get_step(mxd_buf_str(&head), head.len, &err), &err);
    const mxd_wire_step *s = &got.step;
    CHECK_EQ(s->epoch, 4);
    CHECK_EQ(s->step, UINT64_MAX);
    CHECK_EQ(s->n_runs, n_runs);
    CHECK_EQ(s->n_rows, n_rows);
    for (int i = 0; i < n_runs; i++) {
        const mxd_core_run *a = &s->runs[i], *b = &runs[i];
        CHECK_EQ(a->request, b->request);
        CHECK_EQ(a->pos, b->pos);
        CHECK_EQ(a->slot, b->slot);
        CHECK_EQ(a->n, b->n);
        CHECK_EQ(a->sample, b->sample);
        CHECK_EQ(a->begin, b->begin);
        CHECK_EQ(a->keep, b->keep);
        CHECK_EQ(a->from, b->from);
        CHECK_EQ(a->from_request, b->from_request);
        CHECK(memcmp(a->ids, b->ids, b->n * sizeof *a->ids) == 0);
        if (a->sample) check_sampling(a->how, b->how);
    }
}

TEST(wire_step_round_trip) {
    begin();
    check_step(1, 1, 0);
    check_step(3, 20, 5);
    check_step(RUNS, RUNS, 1);
    check_step(RUNS, ROWS, 0);
    end();
}

/* Every sequence of a full micro-batch may carry as many biases as a request may have: a step that
 * could not be told would be tried again for ever. */
TEST(wire_step_with_all_biases) {
    begin();
    check_step(RUNS, ROWS, BIASES);
    CHECK(head.len < MXD_MAX_FRAME_BYTES / 2);
    end();
}

TEST(wire_step_lies) {
    static const struct {
        int n, pos, slot, n_top, n_bias, top_k, id;
        mxd_rc rc;
        int from;
    } rows[] = {{1, 0, 0, 0, 0, 0, 0, MXD_OK},
                {0, 0, 0, 0, 0, 0, 0, MXD_E_FORMAT},
                {1, MXD_MAX_CONTEXT + 1, 0, 0, 0, 0, 0, MXD_E_FORMAT},
                {1, 0, MXD_MAX_SEQS, 0, 0, 0, 0, MXD_E_FORMAT},
                {1, 0, 0, MXD_MAX_TOP_LOGPROBS + 1, 0, 0, 0, MXD_E_FORMAT},
                {1, 0, 0, 0, 0, -1, 0, MXD_E_FORMAT},
                {1, 0, 0, 0, 0, 0, -1, MXD_E_FORMAT},
                {1, 1, 0, 0, 0, 0, 0, MXD_OK, MXD_MAX_SEQS - 1},
                {1, 1, 0, 0, 0, 0, 0, MXD_E_FORMAT, MXD_MAX_SEQS}};
    begin();
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        int32_t id = rows[i].id;
        mxd_sampling s = {.n_top = (uint8_t)rows[i].n_top, .top_k = rows[i].top_k};
        mxd_core_run r = {.request = 1,
                          .pos = (uint32_t)rows[i].pos,
                          .slot = (uint16_t)rows[i].slot,
                          .n = (uint16_t)rows[i].n,
                          .begin = rows[i].from > 0,
                          .from = (uint16_t)rows[i].from,
                          .sample = true,
                          .ids = &id,
                          .how = &s};
        mxd_buf_clear(&head);
        mxd_wire_put_step(&head, 1, 1, &r, 1);
        CHECK_EQ(get_step(mxd_buf_str(&head), head.len, NULL), rows[i].rc);
    }
    mxd_buf_clear(&head);
    mxd_wire_put_step(&head, 1, 1, NULL, 0);
    CHECK_EQ(get_step(mxd_buf_str(&head), head.len, NULL), MXD_E_FORMAT);
    end();
}

/* A bias is 8 bytes; what is no whole number of them is no list of biases. */
TEST(wire_step_with_half_a_bias) {
    begin();
    char p[] = "\x08\x01\x10\x01\x1a\x10" /* epoch, step, a run of 16 bytes */
               "\x08\x01\x20\x01\x2a\x0a" /* its request, n = 1, sampling of 10 bytes */
               "\x6a\x08\x07\x00\x00\x00\x00\x00\x80\x3f" /* one bias: token 7, 1.0 */
               "\x22\x01\x05";                            /* ids */
    mxd_err err = {0};
    CHECK_OK(get_step(p, sizeof p - 1, &err), &err);
    CHECK_EQ(got.step.how[0].n_bias, 1);
    CHECK(got.step.how[0].bias[0].token == 7 && got.step.how[0].bias[0].bias == 1);
    char q[] = "\x08\x01\x10\x01\x1a\x0f\x08\x01\x20\x01\x2a\x09"
               "\x6a\x07\x07\x00\x00\x00\x00\x00\x80\x22\x01\x05";
    mxd_arena_reset(&arena, 0);
    CHECK_EQ(get_step(q, sizeof q - 1, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "7 bytes"));
    end();
}

TEST(wire_result_round_trip) {
    static const struct {
        int n, n_top;
    } rows[] = {{0, 0}, {1, 0}, {3, 1}, {RUNS, MXD_MAX_TOP_LOGPROBS}};
    begin();
    for (size_t k = 0; k < MXD_COUNT(rows); k++) {
        mxd_err err = {0};
        mxd_core_result m = sample_result(rows[k].n, rows[k].n_top);
        mxd_buf_clear(&head);
        mxd_arena_reset(&arena, 0);
        mxd_wire_put_result(&head, &m);
        CHECK_OK(get_result(mxd_buf_str(&head), head.len, &err), &err);
        const mxd_core_result *r = &got.result.result;
        CHECK_EQ(r->epoch, m.epoch);
        CHECK_EQ(r->step, 7);
        CHECK_EQ(r->n, rows[k].n);
        for (int i = 0; i < r->n; i++) {
            const mxd_sampled *a = &r->runs[i].sampled, *b = &tokens[i].sampled;
            CHECK_EQ(r->runs[i].request, tokens[i].request);
            CHECK_EQ(r->runs[i].pos, tokens[i].pos);
            CHECK_EQ(a->token, b->token);
            CHECK(a->logprob == b->logprob);
            CHECK_EQ(a->n_top, b->n_top);
            CHECK(memcmp(a->top_id, b->top_id, b->n_top * sizeof *a->top_id) == 0);
            CHECK(memcmp(a->top_logprob, b->top_logprob, b->n_top * sizeof(float)) == 0);
        }
    }
    end();
}

/* ----------------------------------------------------------------------------------- lying bytes
 */

static void check_refusal(mxd_rc rc, const mxd_err *err, const char *name) {
    if (rc == MXD_OK) return;
    if (rc != MXD_E_FORMAT && rc != MXD_E_UNSUPPORTED)
        fail_msg("%s: %s: %s", name, mxd_rc_name(rc), err->msg);
    CHECK(err->msg[0]);
}

TEST(wire_cut_at_every_byte) {
    begin();
    for (size_t k = 0; k < MXD_COUNT(messages); k++) {
        size_t n;
        char *p = encoded(&messages[k], &n);
        for (size_t cut = 0; cut < n; cut++) {
            char *part = malloc(cut + 1); /* its end is the end of the block, but for one byte */
            memcpy(part + 1, p, cut);
            mxd_err err = {0};
            mxd_arena_reset(&arena, 0);
            mxd_rc rc = messages[k].get(part + 1, cut, &err);
            check_refusal(rc, &err, messages[k].name);
            if (cut == 0) CHECK_EQ(rc == MXD_OK, messages[k].empty_ok);
            free(part);
        }
        free(p);
    }
    end();
}

TEST(wire_random_flips) {
    begin();
    for (size_t k = 0; k < MXD_COUNT(messages); k++) {
        size_t n;
        char *p = encoded(&messages[k], &n), *q = malloc(n);
        int refused = 0;
        for (uint64_t i = 0; i < 10000; i++) {
            memcpy(q, p, n);
            uint64_t flips = 1 + mxd_rand_u64(k, i, 0) % 8;
            for (uint64_t f = 1; f <= flips; f++) {
                uint64_t r = mxd_rand_u64(k, i, f);
                q[r % n] = (char)(q[r % n] ^ (1 << (r >> 32) % 8));
            }
            mxd_err err = {0};
            mxd_arena_reset(&arena, 0);
            mxd_rc rc = messages[k].get(q, n, &err);
            check_refusal(rc, &err, messages[k].name);
            refused += rc != MXD_OK;
        }
        CHECK(refused > 100); /* the flips do reach what is checked */
        free(p);
        free(q);
    }
    end();
}

/* Field 1000 of every wire type, before and behind what is known. */
TEST(wire_unknown_fields_are_skipped) {
    static const char unknown[] = "\xc0\x3e\x05"                             /* varint */
                                  "\xc1\x3e\x01\x02\x03\x04\x05\x06\x07\x08" /* 64 bits */
                                  "\xc2\x3e\x03"
                                  "abc"                       /* bytes */
                                  "\xc5\x3e\x01\x02\x03\x04"; /* 32 bits */
    const size_t k = sizeof unknown - 1;
    begin();
    for (size_t i = 0; i < MXD_COUNT(messages); i++) {
        size_t n;
        char *p = encoded(&messages[i], &n), *q = malloc(n + 2 * k);
        memcpy(q, unknown, k);
        memcpy(q + k, p, n);
        memcpy(q + k + n, unknown, k);
        mxd_err err = {0};
        mxd_arena_reset(&arena, 0);
        CHECK_OK(messages[i].get(p, n, &err), &err);
        decoded *plain = malloc(sizeof *plain);
        *plain = got;
        mxd_arena_reset(&arena, 0);
        CHECK_OK(messages[i].get(q, n + 2 * k, &err), &err);
        if (messages[i].get == get_hello) CHECK_STR(got.hello.address, plain->hello.address);
        if (messages[i].get == get_step) CHECK_EQ(got.step.n_rows, plain->step.n_rows);
        if (messages[i].get == get_result) CHECK_EQ(got.result.result.n, 3);
        free(plain);
        free(p);
        free(q);
    }
    end();
}

/* A head that unfolds to more than the scratch is refused, not an out-of-memory error. */
TEST(wire_head_that_unfolds_too_far) {
    begin();
    enum { N = 100000 };
    char *p = malloc(2 * N);
    for (int i = 0; i < N; i++) memcpy(p + 2 * i, "\x1a\x00", 2); /* Step.runs, empty */
    mxd_err err = {0};
    CHECK_EQ(get_step(p, 2 * N, &err), MXD_E_FORMAT);
    free(p);
    end();
}

/* ----------------------------------------------------------------------------------------- texts
 */

TEST(wire_long_texts_are_clipped_by_the_sender) {
    char text[2 * MXD_CORE_TEXT];
    mxd_err err = {0};
    begin();
    for (size_t n = MXD_CORE_TEXT - 2; n <= MXD_CORE_TEXT + 1; n++) {
        memset(text, 'x', n);
        text[n] = '\0';
        mxd_buf_clear(&head);
        mxd_wire_put_nack(&head, 1, 1, MXD_E_IO, text);
        CHECK_OK(get_nack(mxd_buf_str(&head), head.len, &err), &err);
        CHECK_EQ(strlen(got.failure.text), n < MXD_CORE_TEXT ? n : MXD_CORE_TEXT - 1);
    }
    /* never inside a character: 3 bytes each, and 239 is not a multiple of 3 */
    text[0] = '\0';
    for (int i = 0; i < 100; i++) memcpy(text + 3 * (size_t)i, "\xe2\x82\xac", 4);
    mxd_buf_clear(&head);
    mxd_wire_put_drop(&head, MXD_E_IO, text);
    CHECK_OK(get_drop(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_EQ(strlen(got.failure.text), 237);
    CHECK(memcmp(got.failure.text, text, 237) == 0);
    end();
}

/* Bytes that are no UTF-8 would make JSON of the state impossible. */
TEST(wire_texts_are_repaired) {
    begin();
    mxd_err err = {0};
    mxd_wire_put_failed(&head, 1, MXD_E_IO, "cannot open /m\xff\xc3(\xe2\x82");
    CHECK_OK(get_failed(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_STR(got.failure.text, "cannot open /m?"
                                "?(?"
                                "?");
    mxd_buf_clear(&head);
    mxd_wire_put_failed(&head, 1, MXD_E_IO, "one\ntwo\x1b[31m \x7f");
    CHECK_OK(get_failed(mxd_buf_str(&head), head.len, &err), &err);
    CHECK_STR(got.failure.text, "one?two?[31m ?");
    end();
}

TEST(wire_texts_over_the_limit_are_refused) {
    begin();
    mxd_err err = {0};
    char p[200] = "\x08\x04\x12\x40"; /* Hello: version 4, node of 64 bytes */
    memset(p + 4, 'n', 64);
    CHECK_EQ(get_hello(p, 68, &err), MXD_E_FORMAT);
    p[3] = 63;
    CHECK_OK(get_hello(p, 67, &err), &err);
    p[1] = 1;
    CHECK_EQ(get_hello(p, 67, &err), MXD_E_UNSUPPORTED);
    CHECK(strstr(err.msg, "versions 1 to 1"));
    end();
}

/* The newest that both speak; programs one version apart have one, those two apart need not. */
TEST(wire_versions_of_two_programs) {
    static const struct {
        mxd_wire_versions a, b;
        uint32_t common;
    } rows[] = {{{5, 6}, {5, 6}, 6}, {{5, 6}, {6, 7}, 6}, {{5, 6}, {4, 5}, 5}, {{5, 6}, {7, 8}, 0},
                {{5, 6}, {3, 4}, 0}, {{5, 6}, {1, 9}, 6}, {{6, 6}, {6, 6}, 6}, {{6, 6}, {7, 6}, 0}};
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        CHECK_EQ(mxd_wire_version(rows[i].a, rows[i].b), rows[i].common);
        CHECK_EQ(mxd_wire_version(rows[i].b, rows[i].a), rows[i].common);
    }
}

/* A node of the next version that speaks ours too, and one of the version after that. */
TEST(wire_hello_of_newer_programs) {
    begin();
    mxd_err err = {0};
    char p[] = "\x08\x00\x12\x01n\x78\x00"; /* Hello: version, node, oldest */
    p[1] = MXD_PROTOCOL_VERSION + 1;
    p[6] = MXD_PROTOCOL_VERSION;
    CHECK_OK(get_hello(p, 7, &err), &err);
    CHECK_EQ(got.hello.version, MXD_PROTOCOL_VERSION);
    p[1] = MXD_PROTOCOL_VERSION + 2;
    p[6] = MXD_PROTOCOL_VERSION + 1;
    CHECK_EQ(get_hello(p, 7, &err), MXD_E_UNSUPPORTED);
    CHECK(strstr(err.msg, "update the older one"));
    mxd_welcome m = sample_welcome();
    m.version = MXD_PROTOCOL_VERSION + 1;
    mxd_wire_put_welcome(&head, &m);
    CHECK_EQ(get_welcome(mxd_buf_str(&head), head.len, &err), MXD_E_UNSUPPORTED);
    end();
}

TEST(wire_certificates_round_trip) {
    begin();
    mxd_err err = {0};
    const char *text = NULL;
    mxd_wire_put_renew(&head, "a request");
    CHECK_OK(mxd_wire_get_renew(&text, &arena, mxd_buf_str(&head), head.len, &err), &err);
    CHECK_STR(text, "a request");
    mxd_buf_clear(&head);
    mxd_wire_put_certificate(&head, "a certificate");
    CHECK_OK(mxd_wire_get_certificate(&text, &arena, mxd_buf_str(&head), head.len, &err), &err);
    CHECK_STR(text, "a certificate");
    CHECK_EQ(mxd_wire_get_renew(&text, &arena, "\x0a\x7f", 2, &err), MXD_E_FORMAT);
    end();
}
