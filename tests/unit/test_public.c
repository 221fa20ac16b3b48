/* The public interface as a stranger uses it: only its header, only the shared library. */
#include "test.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "mlx_distributed.h"

static mlxd_engine *open_demo(void) {
    char root[1024];
    mlxd_error err = {0};
    mlxd_engine *e = NULL;
    mlxd_engine_options o = {sizeof o, .model = "demo", .data_dir = test_path(root, "..")};
    mlxd_set_log(NULL, NULL, 3);
    if (mlxd_engine_open(&e, &o, &err)) fail_msg("%s", err.message);
    return e;
}

/* The whole answer; *done is its last event. */
static void ask(mlxd_engine *e, const mlxd_request *r, char out[4096], mlxd_event *done) {
    mlxd_error err = {0};
    mlxd_stream *s = NULL;
    size_t n = 0;
    CHECK_EQ(mlxd_engine_start(e, r, &s, &err), MLXD_OK);
    while (mlxd_stream_next(s, -1, done, &err) == MLXD_OK && done->kind == MLXD_EVENT_TEXT) {
        CHECK(n + done->text_bytes < 4096);
        memcpy(out + n, done->text, done->text_bytes);
        n += done->text_bytes;
    }
    out[n] = '\0';
    CHECK_EQ(done->kind, MLXD_EVENT_DONE);
    CHECK_EQ(mlxd_stream_ended(s), 1);
    mlxd_stream_free(s);
}

TEST(public_answers_a_question) {
    mlxd_engine *e = open_demo();
    mlxd_request r = {sizeof r, .text = "What is 2 + 2?", .temperature = 0, .top_p = -1};
    mlxd_event done;
    char text[4096], again[4096];
    ask(e, &r, text, &done);
    CHECK(strstr(text, "4") != NULL);
    CHECK_EQ(done.finish, MLXD_STOP);
    CHECK(done.prompt_tokens > 3 && done.completion_tokens > 3);
    mlxd_request same = {sizeof same, .temperature = 0, .top_p = -1,
                         .messages_json = "[{\"role\":\"user\",\"content\":\"What is 2 + 2?\"}]"};
    ask(e, &same, again, &done);
    CHECK_STR(again, text);
    mlxd_request shorter = {sizeof shorter, .text = "Hello", .max_tokens = 1, .temperature = -1,
                            .top_p = -1};
    ask(e, &shorter, text, &done);
    CHECK_EQ(done.finish, MLXD_LENGTH);
    mlxd_engine_close(e);
}

TEST(public_describes_itself) {
    mlxd_engine *e = open_demo();
    char *info = mlxd_engine_info_json(e), *state = mlxd_engine_state_json(e), *machine = NULL;
    mlxd_error err = {0};
    CHECK(info && strstr(info, "\"model_type\": \"qwen3\""));
    CHECK(state && strstr(state, "\"nodes\""));
    CHECK_EQ(mlxd_detect_json(&machine, &err), MLXD_OK);
    CHECK(strstr(machine, "\"logical_cpus\""));
    mlxd_free(info);
    mlxd_free(state);
    mlxd_free(machine);
    mlxd_engine_close(e);
    CHECK_EQ(mlxd_abi_version(), MLXD_ABI_VERSION);
    CHECK_STR(mlxd_code_name(MLXD_NOT_FOUND), "E_NOTFOUND");
    CHECK_STR(mlxd_code_name(-1), "E_UNKNOWN");
}

TEST(public_errors_say_what_to_do) {
    mlxd_error err = {0};
    mlxd_engine *e = NULL;
    mlxd_engine_options o = {sizeof o, .model = "/nowhere/at/all"};
    CHECK_EQ(mlxd_engine_open(&e, &o, &err), MLXD_NOT_FOUND);
    CHECK(e == NULL && err.code == MLXD_NOT_FOUND && err.message[0]);
    mlxd_engine_options unset = {0};
    CHECK_EQ(mlxd_engine_open(&e, &unset, &err), MLXD_INVALID);
    mlxd_engine_options strange = {sizeof strange, .model = "demo", .activations = "7"};
    char root[1024];
    strange.data_dir = test_path(root, "..");
    CHECK_EQ(mlxd_engine_open(&e, &strange, NULL), MLXD_INVALID);
    e = open_demo();
    mlxd_stream *s = NULL;
    mlxd_request hot = {sizeof hot, .text = "x", .temperature = 3, .top_p = -1};
    CHECK_EQ(mlxd_engine_start(e, &hot, &s, &err), MLXD_INVALID);
    mlxd_request nothing = {sizeof nothing, .temperature = -1, .top_p = -1};
    CHECK_EQ(mlxd_engine_start(e, &nothing, &s, &err), MLXD_INVALID);
    mlxd_request broken = {sizeof broken, .messages_json = "[{", .temperature = -1, .top_p = -1};
    CHECK_EQ(mlxd_engine_start(e, &broken, &s, &err), MLXD_FORMAT);
    mlxd_engine_close(e);
    mlxd_engine_close(NULL);
    mlxd_stream_free(NULL);
}

/* A program of an older header: its struct ends early, and what it did not know is default. */
TEST(public_accepts_shorter_structs) {
    mlxd_engine *e = open_demo();
    mlxd_request r = {offsetof(mlxd_request, min_p),
                      .text = "Hello",
                      .max_tokens = 4,
                      .temperature = 0,
                      .top_p = -1,
                      .top_k = -99,
                      .n_stop = 77};
    mlxd_event done;
    char text[4096];
    ask(e, &r, text, &done);
    CHECK_EQ(done.completion_tokens, 4);
    mlxd_engine_close(e);
}

/* ------------------------------------------------------------------------------- communicators */

enum { RANKS = 3, WAIT_MS = 20000 };

typedef struct rank {
    int rank, network_only;
    size_t struct_size; /* of the options, as this rank's header has them */
    const char *const *addresses;
    pthread_t thread;
    mlxd_error err;
} rank;

static int together(rank *r, mlxd_comm *c) {
    float x[5] = {(float)r->rank, 1, 2, 3, -1}, y[2] = {(float)r->rank, 7};
    char word[8] = "", all[RANKS * 2] = "";
    const char mine[2] = {(char)('a' + r->rank), '.'};
    size_t n = 0;
    mlxd_error *err = &r->err;
    int next = (r->rank + 1) % RANKS, before = (r->rank + RANKS - 1) % RANKS;
    if (mlxd_comm_all_reduce(c, x, 5, MLXD_SUM, WAIT_MS, err)) return 1;
    CHECK(x[0] == 3 && x[1] == 3 && x[2] == 6 && x[3] == 9 && x[4] == -3);
    if (mlxd_comm_all_reduce(c, y, 2, MLXD_MAX, WAIT_MS, err)) return 1;
    CHECK(y[0] == 2 && y[1] == 7);
    if (mlxd_comm_send(c, next, 5, "ring", 4, WAIT_MS, err)) return 1;
    CHECK_EQ(mlxd_comm_recv(c, before, 5, word, 3, &n, WAIT_MS, NULL), MLXD_TOO_BIG);
    CHECK_EQ(n, 4);
    if (mlxd_comm_recv(c, before, 5, word, sizeof word, &n, WAIT_MS, err)) return 1;
    CHECK(n == 4 && memcmp(word, "ring", 4) == 0);
    if (r->rank == 1) memcpy(word, "news", 4);
    if (mlxd_comm_broadcast(c, 1, word, 4, WAIT_MS, err)) return 1;
    CHECK(memcmp(word, "news", 4) == 0);
    if (mlxd_comm_gather(c, -1, mine, 2, all, WAIT_MS, err)) return 1;
    CHECK(memcmp(all, "a.b.c.", 6) == 0);
    CHECK_EQ(mlxd_comm_recv(c, before, 6, word, 1, &n, 20, NULL), MLXD_TIMEOUT);
    CHECK_EQ(mlxd_comm_all_reduce(c, x, 5, 9, WAIT_MS, NULL), MLXD_INVALID);
    return mlxd_comm_barrier(c, WAIT_MS, err);
}

static void *be_rank(void *arg) {
    rank *r = arg;
    mlxd_comm *c = NULL;
    mlxd_comm_options o = {r->struct_size,
                           .group = "public",
                           .rank = r->rank,
                           .size = RANKS,
                           .addresses = r->addresses,
                           .insecure = 1,
                           .no_shared_memory = r->network_only};
    if (mlxd_comm_open(&c, &o, &r->err)) return NULL;
    CHECK(mlxd_comm_rank(c) == r->rank && mlxd_comm_size(c) == RANKS);
    if (together(r, c)) return NULL;
    mlxd_comm_stats s = {sizeof s};
    CHECK_EQ(mlxd_comm_get_stats(c, &s, NULL), MLXD_OK);
    bool knows = r->struct_size > offsetof(mlxd_comm_options, no_shared_memory);
    CHECK_EQ(s.shared_memory_peers, knows && r->network_only ? 0 : RANKS - 1);
    CHECK(s.latency_us > 0 && s.bandwidth_bytes_per_s > 0);
    mlxd_comm_stats old = {offsetof(mlxd_comm_stats, shared_memory_peers), .resent_frames = 99};
    CHECK_EQ(mlxd_comm_get_stats(c, &old, NULL), MLXD_OK);
    CHECK(old.latency_us == s.latency_us && old.resent_frames == 99); /* not written beyond */
    if (mlxd_comm_barrier(c, WAIT_MS, &r->err)) return NULL; /* who is gone counts no more */
    mlxd_comm_close(c);
    return NULL;
}

static void run_ranks(int network_only, size_t struct_size) {
    static int used;
    char text[RANKS][32];
    const char *addresses[RANKS];
    rank r[RANKS];
    for (int i = 0; i < RANKS; i++) {
        snprintf(text[i], sizeof text[i], "127.0.0.1:%d",
                 12000 + (int)(getpid() % 900) * 9 + used++);
        addresses[i] = text[i];
        r[i] = (rank){.rank = i,
                      .network_only = network_only,
                      .struct_size = struct_size,
                      .addresses = addresses};
    }
    for (int i = 0; i < RANKS; i++) CHECK(pthread_create(&r[i].thread, NULL, be_rank, &r[i]) == 0);
    for (int i = 0; i < RANKS; i++) pthread_join(r[i].thread, NULL);
    for (int i = RANKS - 1; i >= 0; i--)
        if (r[i].err.code) print_error("rank %d: %s\n", i, r[i].err.message);
    for (int i = 0; i < RANKS; i++) CHECK_EQ(r[i].err.code, 0);
}

TEST(public_ranks_compute_together) {
    run_ranks(0, sizeof(mlxd_comm_options));
    run_ranks(1, sizeof(mlxd_comm_options));
}

/* An older header ends before the last options: what it did not know is default. */
TEST(public_comm_accepts_shorter_structs) {
    run_ranks(1, offsetof(mlxd_comm_options, no_shared_memory));
}

TEST(public_comm_errors_say_what_to_do) {
    const char *addresses[] = {"127.0.0.1:1", "127.0.0.1:2"};
    mlxd_comm *c = NULL;
    mlxd_error err = {0};
    mlxd_comm_options unset = {0};
    CHECK_EQ(mlxd_comm_open(&c, &unset, &err), MLXD_INVALID);
    mlxd_comm_options o = {sizeof o, .rank = 0, .size = 2, .addresses = addresses};
    CHECK_EQ(mlxd_comm_open(&c, &o, &err), MLXD_INVALID);
    CHECK(strstr(err.message, "certificate"));
    o.ca_pem = "x";
    CHECK_EQ(mlxd_comm_open(&c, &o, &err), MLXD_INVALID);
    CHECK(strstr(err.message, "all of ca_pem"));
    o.ca_pem = NULL, o.insecure = 1, o.rank = 2;
    CHECK_EQ(mlxd_comm_open(&c, &o, &err), MLXD_INVALID);
    CHECK(c == NULL);
    mlxd_comm_close(NULL);
}
