/* The public interface as a stranger uses it: only its header, only the shared library. */
#include "test.h"

#include <stdlib.h>
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
