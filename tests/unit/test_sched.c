#include "runtime/sched.h"
#include "test.h"

static mxd_sched s;
static mxd_sched_step step;

/* Sends until nothing is left; returns how many micro-batches. */
static int drain_steps(void) {
    int n = 0;
    while (mxd_sched_next(&s, &step)) n++;
    return n;
}

static void prefilled(int slot) { /* as if its prompt had been computed and its token were there */
    mxd_sched_add(&s, slot, 2, 0, 0);
    s.seqs[slot].n_sent = 2;
    mxd_sched_token(&s, slot);
}

TEST(sched_prompt_is_chunked_and_the_last_chunk_samples) {
    mxd_sched_init(&s, 2, 8, 4);
    mxd_sched_restart(&s, 4);
    mxd_sched_add(&s, 1, 10, 0, 0);
    const uint32_t pos[] = {0, 4, 8}, n[] = {4, 4, 2};
    for (int i = 0; i < 3; i++) {
        CHECK(mxd_sched_next(&s, &step));
        CHECK_EQ(step.n_runs, 1);
        CHECK_EQ(step.runs[0].slot, 1);
        CHECK_EQ(step.runs[0].pos, pos[i]);
        CHECK_EQ(step.runs[0].n, n[i]);
        CHECK_EQ(step.runs[0].sample, i == 2);
        CHECK(!step.decode);
    }
    CHECK(!mxd_sched_next(&s, &step)); /* it waits for its token */
    mxd_sched_token(&s, 1);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.runs[0].pos, 10);
    CHECK_EQ(step.runs[0].n, 1);
    CHECK(step.runs[0].sample && step.decode);
}

TEST(sched_at_most_stages_plus_one_in_flight) {
    for (int stages = 1; stages <= 4; stages++) {
        mxd_sched_init(&s, 1, 1, 1);
        mxd_sched_restart(&s, stages);
        mxd_sched_add(&s, 0, 100, 0, 0);
        CHECK_EQ(drain_steps(), stages + 1);
        mxd_sched_done(&s, false);
        CHECK_EQ(drain_steps(), 1);
    }
}

TEST(sched_a_prompt_fills_the_pipeline) {
    static const struct {
        int stages;
        uint32_t prompt, rows;
    } cases[] = {{1, 512, 256}, {3, 512, 64},   {3, 2400, 200}, {3, 9000, 256},
                 {2, 65, 64},   {6, 3000, 125}, {3, 10, 10}};
    for (size_t i = 0; i < MXD_COUNT(cases); i++) {
        mxd_sched_init(&s, 1, 256, 256);
        mxd_sched_restart(&s, cases[i].stages);
        mxd_sched_add(&s, 0, cases[i].prompt, 0, 0);
        CHECK(mxd_sched_next(&s, &step));
        CHECK_EQ(step.n_rows, cases[i].rows);
    }
}

TEST(sched_decode_goes_before_prefill_in_one_batch) {
    mxd_sched_init(&s, 3, 8, 8);
    mxd_sched_add(&s, 0, 100, 0, 0);
    prefilled(1);
    prefilled(2);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.n_runs, 3);
    CHECK_EQ(step.n_rows, 8);
    CHECK_EQ(step.runs[0].slot, 1);
    CHECK_EQ(step.runs[1].slot, 2);
    CHECK_EQ(step.runs[2].slot, 0);
    CHECK_EQ(step.runs[2].n, 6);
    CHECK(!step.runs[2].sample);
}

TEST(sched_one_stage_decodes_everybody_together) {
    mxd_sched_init(&s, 8, 64, 64);
    for (int i = 0; i < 8; i++) prefilled(i);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.n_runs, 8);
    CHECK(!mxd_sched_next(&s, &step));
}

TEST(sched_newcomer_joins_the_batch_that_returns) {
    mxd_sched_init(&s, 3, 64, 64);
    prefilled(0);
    prefilled(1);
    CHECK(mxd_sched_next(&s, &step));
    prefilled(2);
    CHECK(!mxd_sched_next(&s, &step)); /* not a batch of its own */
    mxd_sched_done(&s, true);
    mxd_sched_token(&s, 0);
    mxd_sched_token(&s, 1);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.n_runs, 3);
}

TEST(sched_stages_share_the_sequences) {
    mxd_sched_init(&s, 8, 64, 64);
    mxd_sched_restart(&s, 3);
    for (int i = 0; i < 4; i++) prefilled(i);
    const int runs[] = {2, 1, 1};
    for (int i = 0; i < 3; i++) {
        CHECK(mxd_sched_next(&s, &step));
        CHECK_EQ(step.n_runs, runs[i]);
    }
    CHECK(!mxd_sched_next(&s, &step));
}

TEST(sched_prompts_take_turns) {
    mxd_sched_init(&s, 2, 4, 4);
    mxd_sched_restart(&s, 4);
    mxd_sched_add(&s, 0, 100, 0, 0);
    mxd_sched_add(&s, 1, 8, 0, 0);
    const int slots[] = {0, 1, 0, 1, 0};
    for (int i = 0; i < 5; i++) {
        CHECK(mxd_sched_next(&s, &step));
        CHECK_EQ(step.runs[0].slot, slots[i]);
    }
}

TEST(sched_restart_begins_with_nothing) {
    mxd_sched_init(&s, 2, 64, 64);
    prefilled(0);
    CHECK(mxd_sched_next(&s, &step));
    mxd_sched_restart(&s, 2);
    CHECK(!mxd_sched_next(&s, &step));
    mxd_sched_add(&s, 0, 3, 0, 0);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.runs[0].pos, 0);
    CHECK_EQ(step.runs[0].n, 3);
    CHECK(step.runs[0].sample && !step.decode);
}

TEST(sched_begins_behind_what_the_pipeline_holds) {
    mxd_sched_init(&s, 2, 8, 8);
    mxd_sched_restart(&s, 2);
    mxd_sched_add(&s, 1, 20, 14, 0);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.runs[0].pos, 14);
    CHECK_EQ(step.runs[0].n, 6);
    CHECK(step.runs[0].sample && !step.decode);
    mxd_sched_add(&s, 0, 10, 9, 0); /* all but the last: as one that decodes */
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.runs[0].pos, 9);
    CHECK_EQ(step.runs[0].n, 1);
    CHECK(step.runs[0].sample && step.decode);
}

TEST(sched_a_run_ends_at_the_edge) {
    mxd_sched_init(&s, 1, 8, 8);
    mxd_sched_restart(&s, 4);
    mxd_sched_add(&s, 0, 20, 2, 13);
    const uint32_t pos[] = {2, 10, 13}, n[] = {8, 3, 7};
    for (int i = 0; i < 3; i++) {
        CHECK(mxd_sched_next(&s, &step));
        CHECK_EQ(step.runs[0].pos, pos[i]);
        CHECK_EQ(step.runs[0].n, n[i]);
        CHECK_EQ(step.runs[0].sample, i == 2);
    }
}

TEST(sched_limits_of_one_micro_batch) {
    mxd_sched_init(&s, MXD_MAX_SEQS, MXD_MAX_STEP_TOKENS, MXD_MAX_STEP_TOKENS);
    for (int i = 0; i < MXD_MAX_SEQS; i++) mxd_sched_add(&s, i, 3, 0, 0);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.n_runs, MXD_MAX_STEP_RUNS);
    CHECK_EQ(step.n_rows, 3 * MXD_MAX_STEP_RUNS);
}

TEST(sched_removed_while_in_flight_leaves_nothing) {
    mxd_sched_init(&s, 1, 8, 8);
    mxd_sched_add(&s, 0, 4, 0, 0);
    CHECK(mxd_sched_next(&s, &step));
    mxd_sched_remove(&s, 0);
    mxd_sched_add(&s, 0, 5, 0, 0);
    CHECK(mxd_sched_next(&s, &step));
    CHECK_EQ(step.runs[0].pos, 0);
    CHECK_EQ(step.runs[0].n, 5);
    mxd_sched_done(&s, false);
    mxd_sched_done(&s, false);
    CHECK_EQ(s.in_flight, 0);
}
