#include <stdlib.h>
#include "core_kit.h"

/* ----------------------------------------------------------------------------------- plans */

TEST(core_configurations_that_make_no_sense) {
    mxd_coord_cfg good = {.plan = kit_plan, .n_layers = 1, .n_vocab = 1, .ctx = 2}, bad = good;
    CHECK(mxd_coord_bytes(&good));
    bad.plan = NULL;
    CHECK(!mxd_coord_bytes(&bad));
    bad = good, bad.n_slots = MXD_MAX_SEQS + 1;
    CHECK(!mxd_coord_bytes(&bad));
    bad = good, bad.max_rows = MXD_MAX_STEP_TOKENS + 1;
    CHECK(!mxd_coord_bytes(&bad));
    bad = good, bad.chunk = 300; /* more than max_rows */
    CHECK(!mxd_coord_bytes(&bad));
    bad = good, bad.epoch0 = MXD_CORE_MAX_EPOCH;
    CHECK(!mxd_coord_bytes(&bad));
}

TEST(core_first_plan_waits_for_the_local_workers) {
    begin_with(2);
    CHECK_EQ(count(MXD_ACT_SPAWN), 2);
    hello(1, "A", 1);
    CHECK(!did(MXD_ACT_INSTALL));
    hello(2, "B", 2);
    CHECK_EQ(count(MXD_ACT_INSTALL), 2);
    const mxd_stage *s = did(MXD_ACT_INSTALL)->stage;
    CHECK_EQ(s->index, 1);
    CHECK_EQ(s->prev, 0);
    CHECK_EQ(s->n_next, 0);
    CHECK(s->head && !s->embed);
    end();
}

TEST(core_first_plan_does_not_wait_for_ever) {
    begin_with(2);
    hello(1, "A", 1);
    pass(14000, 1, 0);
    CHECK(!did(MXD_ACT_INSTALL));
    pass(2000, 1, 0);
    CHECK_EQ(count(MXD_ACT_INSTALL), 1);
    end();
}

TEST(core_serves_only_when_every_stage_is_ready) {
    begin_with(2);
    hello(1, "A", 1);
    hello(2, "B", 2);
    submit(1, 4, 4);
    ready(1);
    ready(1);
    CHECK(!did(MXD_ACT_STEP));
    ready(2);
    CHECK(did(MXD_ACT_STEP));
    CHECK_STR(view().determinism, "bit-exact");
    end();
}

TEST(core_a_joiner_waits_until_nothing_runs) {
    serving_two();
    submit(1, 4, 2);
    hello(3, "Z", 31);
    CHECK(!did(MXD_ACT_INSTALL));
    CHECK_EQ(mxd_coord_node(t.c, 2)->state, MXD_NODE_READY);
    answer(5);
    CHECK(!did(MXD_ACT_INSTALL));
    answer(6);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    CHECK_EQ(count(MXD_ACT_INSTALL), 3);
    end();
}

TEST(core_epochs_go_beyond_what_anybody_has_seen) {
    begin_with(0);
    mxd_node_info info = {.id = "X", .incarnation = 1, .epoch = 70};
    give((mxd_coord_event){.kind = MXD_COORD_HELLO, .link = 1, .hello = &info});
    CHECK_EQ(view().epoch, 71);
    mxd_node_info liar = {.id = "L", .incarnation = 1, .epoch = MXD_CORE_MAX_EPOCH};
    give((mxd_coord_event){.kind = MXD_COORD_HELLO, .link = 2, .hello = &liar});
    CHECK_EQ(did(MXD_ACT_DROP)->rc, MXD_E_FORMAT);
    end();
}

/* ------------------------------------------------------------------------------- membership */

TEST(core_one_id_one_life) {
    serving_two();
    hello(9, "X", 12);
    CHECK_EQ(did(MXD_ACT_DROP)->rc, MXD_E_BUSY);
    CHECK_EQ(did(MXD_ACT_DROP)->link, 9);
    pass(1200, 0, 2); /* X is silent */
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_SUSPECT);
    clear();
    hello(10, "X", 12);
    CHECK_EQ(did(MXD_ACT_DROP)->link, 1); /* the newer wins */
    CHECK_EQ(did(MXD_ACT_WELCOME)->link, 10);
    CHECK_EQ(mxd_coord_node(t.c, 0)->info.incarnation, 12);
    end();
}

TEST(core_the_same_life_may_connect_again) {
    serving_two();
    submit(1, 4, 4);
    clear();
    hello(9, "X", 11);
    CHECK_EQ(did(MXD_ACT_DROP)->rc, MXD_E_STALE);
    CHECK_EQ(did(MXD_ACT_WELCOME)->link, 9);
    CHECK_EQ(count(MXD_ACT_INSTALL), 2); /* what was under way on the old link is lost */
    gone(1);                             /* stale */
    CHECK_EQ(mxd_coord_node(t.c, 0)->link, 9);
    end();
}

TEST(core_silence_at_the_limit) {
    serving_two();
    pass(1000, 0, 2);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_SERVING);
    pass(50, 0, 2);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_SUSPECT);
    CHECK_EQ(count(MXD_ACT_INSTALL), 1);
    beat(1);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_READY);
    end();
}

/* Ten minutes without a byte more, however long the whole takes. */
TEST(core_loading_may_take_long_while_it_goes_on) {
    begin_with(0);
    hello(1, "X", 11);
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    uint64_t loaded = 0;
    for (int64_t ms = 0; ms < 3000000; ms += 500) {
        t.now += 500;
        if (ms % 500000 == 0) loaded++;
        mxd_core_beat b = {.epoch = view().epoch, .load_done = loaded, .load_total = 100};
        give((mxd_coord_event){.kind = MXD_COORD_BEAT, .link = 1, .beat = b});
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
        t.n = 0;
    }
    CHECK_EQ(view().n_epochs, 1);
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    for (int64_t ms = 0; ms < 600500 && !did(MXD_ACT_DROP); ms += 500) {
        t.now += 500;
        mxd_core_beat b = {.epoch = view().epoch, .load_done = loaded, .load_total = 100};
        give((mxd_coord_event){.kind = MXD_COORD_BEAT, .link = 1, .beat = b});
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
    CHECK(did(MXD_ACT_DROP));
    CHECK_STR(did(MXD_ACT_DROP)->text, "loading takes too long");
    end();
}

TEST(core_our_own_sleep_is_nobodys_silence) {
    serving_two();
    t.now += 5000;
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_SERVING);
    CHECK_EQ(view().n_epochs, 2);
    end();
}

/* On a machine with too much to do every tick is late, and what the nodes have said meanwhile lies
 * behind it: a pause of theirs on top is no death. Who says nothing at all is still found. */
TEST(core_our_own_lateness_is_nobodys_silence) {
    serving_two();
    for (int i = 0; i < 20; i++) {
        for (int k = 0; k < 3; k++) {
            t.now += 400;
            give((mxd_coord_event){.kind = MXD_COORD_TICK});
        }
        beat(1);
        beat(2);
    }
    CHECK_EQ(view().n_epochs, 2);
    CHECK_EQ(mxd_coord_node(t.c, 1)->state, MXD_NODE_SERVING);
    for (int i = 0; i < 30; i++) {
        t.now += 400;
        beat(1);
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
    CHECK(mxd_coord_node(t.c, 0)->stage == 0 && view().plan->n_stages == 1);
    CHECK(mxd_coord_node(t.c, 1)->state >= MXD_NODE_SUSPECT);
    end();
}

TEST(core_a_result_is_a_sign_of_life) {
    serving_two();
    for (int i = 0; i < 60; i++) {
        t.now += 50;
        beat(1);
        give((mxd_coord_event){.kind = MXD_COORD_RESULT, .link = 2, .result = {.epoch = 1}});
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
    CHECK_EQ(mxd_coord_node(t.c, 1)->state, MXD_NODE_SERVING);
    end();
}

TEST(core_dead_local_workers_come_back_slower_each_time) {
    begin_with(1);
    const int64_t gaps[] = {100, 200, 400, 800, 1600, 3200, 5000, 5000};
    for (int i = 0; i < 8; i++) {
        const mxd_coord_action *a = did(MXD_ACT_SPAWN);
        CHECK(a);
        mxd_core_exited ended = {a->node, a->spawn};
        clear();
        give((mxd_coord_event){.kind = MXD_COORD_EXITED, .exited = ended});
        give((mxd_coord_event){.kind = MXD_COORD_EXITED, .exited = ended}); /* told twice */
        t.now += gaps[i] - 1;
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
        CHECK(!did(MXD_ACT_SPAWN));
        t.now += 1;
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
        CHECK(did(MXD_ACT_SPAWN));
    }
    end();
}

TEST(core_a_worker_that_lived_is_started_at_once) {
    begin_with(1);
    hello(1, "A", 1);
    pass(11000, 1, 0);
    clear();
    gone(1);
    CHECK_EQ(did(MXD_ACT_DROP)->rc, MXD_E_TIMEOUT); /* the process, should it still be there */
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    CHECK(did(MXD_ACT_SPAWN));
    end();
}

TEST(core_a_worker_that_was_of_use_is_started_at_once) {
    begin_with(1);
    uint64_t link = 0;
    submit(1, 4, 20);
    for (int kill = 0; kill < 8; kill++) {
        link++;
        hello(link, "A", link);
        ready(link);
        answer_chunks(7);
        clear();
        gone(link);
        pass(50, 0, 0);
        CHECK(did(MXD_ACT_SPAWN));
    }
    end();
}

/* It dies idle again and again; then requests want it. */
TEST(core_a_worker_that_requests_wait_for_is_not_kept_back) {
    for (int wanted = 0; wanted < 2; wanted++) {
        begin_with(1);
        uint64_t link = 0;
        for (int kill = 0; kill < 8; kill++) {
            link++;
            hello(link, "A", link);
            ready(link);
            clear();
            gone(link);
            for (int i = 0; i < 100 && !did(MXD_ACT_SPAWN); i++) pass(50, 0, 0);
            CHECK(did(MXD_ACT_SPAWN));
        }
        link++;
        hello(link, "A", link);
        if (wanted) submit(1, 4, 20);
        gone(link);
        clear();
        pass(450, 0, 0);
        CHECK(!did(MXD_ACT_SPAWN));
        pass(100, 0, 0);
        CHECK_EQ(!!did(MXD_ACT_SPAWN), wanted);
    }
    end();
}

TEST(core_survivors_carry_on_or_wait) {
    begin_with(2);
    hello(1, "A", 1);
    hello(2, "B", 2);
    ready(1);
    ready(2);
    clear();
    gone(2);
    CHECK_EQ(count(MXD_ACT_INSTALL), 1); /* A can hold all */
    CHECK(view().degraded);
    begin_with(2);
    t.capacity = LAYERS / 2;
    hello(1, "A", 1);
    hello(2, "B", 2);
    clear();
    gone(2);
    CHECK(!did(MXD_ACT_INSTALL));
    CHECK_EQ(view().state, MXD_COORD_FORMING);
    CHECK_EQ(view().rc, MXD_E_NOFIT);
    hello(3, "B", 3);
    CHECK_EQ(count(MXD_ACT_INSTALL), 2);
    end();
}

TEST(core_a_leaver_is_replaced_then_released) {
    serving_two();
    give((mxd_coord_event){.kind = MXD_COORD_LEAVE, .link = 1});
    CHECK_EQ(count(MXD_ACT_INSTALL), 1);
    CHECK_EQ(did(MXD_ACT_INSTALL)->link, 2);
    CHECK_EQ(did(MXD_ACT_DROP)->rc, MXD_OK);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_LEFT);
    pass(301000, 0, 2);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_NONE); /* no longer listed */
    end();
}

TEST(core_a_leaver_nobody_can_replace_serves_to_the_end) {
    begin_with(0);
    t.capacity = LAYERS / 2;
    hello(1, "X", 11);
    hello(2, "Y", 21);
    ready(1);
    ready(2);
    submit(1, 4, 2);
    give((mxd_coord_event){.kind = MXD_COORD_LEAVE, .link = 1});
    pass(1000, 1, 2);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_DRAINING);
    answer(1);
    answer(2);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    pass(50, 1, 2);
    CHECK_EQ(mxd_coord_node(t.c, 0)->state, MXD_NODE_LEFT);
    end();
}

TEST(core_a_node_that_fails_often_rests) {
    serving_two();
    uint64_t link = 1;
    for (int i = 0; i < 3; i++) {
        gone(link);
        link += 10;
        hello(link, "X", link);
        pass(100, link, 2);
        for (int k = 0; k < 2; k++) ready(2), ready(link);
    }
    CHECK_EQ(view().plan->n_stages, 1); /* Y alone */
    pass(600, link, 2);
    ready(link), ready(2);
    CHECK_EQ(view().plan->n_stages, 2);
    end();
}

/* A link that goes up and down once a second for a minute must not keep the cluster planning. */
TEST(core_a_flapping_link_makes_few_epochs) {
    for (int busy = 0; busy < 2; busy++) {
        serving_two();
        if (busy) submit(1, 4, 20);
        uint64_t link = 1, epochs = view().n_epochs;
        for (int second = 0; second < 60; second++) {
            clear();
            gone(link);
            for (int k = 0; k < 2; k++) pass(250, 0, 2), ready(2);
            link = 100 + (uint64_t)second;
            hello(link, "X", 11);
            for (int k = 0; k < 2; k++) pass(250, link, 2), ready(link), ready(2);
        }
        CHECK(view().n_epochs - epochs <= 10);
        CHECK_EQ(view().state, MXD_COORD_SERVING);
    }
    end();
}

/* --------------------------------------------------------------------------------- requests */

TEST(core_refusals) {
    begin_with(0);
    submit(1, 4, 4);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_PEER);
    serving_two();
    submit(1, CTX, 4);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_CONTEXT);
    submit(1, 4, 0);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_INVAL);
    submit(1, CTX - 1, 4);
    CHECK(did(MXD_ACT_ACCEPTED));
    give((mxd_coord_event){.kind = MXD_COORD_DRAIN});
    submit(2, 4, 4);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_SHUTDOWN);
    end();
}

TEST(core_queue_at_the_limit) {
    serving_two();
    for (uint64_t i = 1; i <= SLOTS + MXD_MAX_WAITING; i++) submit(i, 4, 4);
    CHECK(!did(MXD_ACT_REFUSED));
    CHECK_EQ(view().waiting, MXD_MAX_WAITING);
    submit(400, 4, 4);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_BUSY);
    cancel(100);
    submit(401, 4, 4);
    CHECK_EQ(did(MXD_ACT_ACCEPTED)->request, 401);
    end();
}

static int journalled(mxd_journal_kind kind) {
    int n = 0;
    for (int i = 0; i < t.n; i++)
        n += t.list[i].kind == MXD_ACT_JOURNAL && t.list[i].journal.kind == kind;
    return n;
}

static const int32_t accepted[] = {21, 22, 99};

static void restore(uint64_t request, int n_accepted, int max_tokens, int min_tokens) {
    static mxd_core_submit s;
    s = (mxd_core_submit){.request = request,
                          .prompt = prompt,
                          .n_prompt = 4,
                          .max_tokens = max_tokens,
                          .min_tokens = min_tokens,
                          .stop_ids = stops,
                          .n_stop_ids = 1,
                          .resumable = true,
                          .accepted = accepted,
                          .n_accepted = n_accepted};
    clear();
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &s});
}

/* Prompt and accepted tokens are prefilled as one list; what comes next has the next index. */
TEST(core_a_restored_request_goes_on) {
    serving_two();
    restore(7, 2, 4, 0);
    CHECK_EQ(count(MXD_ACT_TOKEN), 0); /* the client has those */
    int step = find(MXD_ACT_STEP);
    CHECK_EQ(t.runs[step].pos, 0);
    CHECK_EQ(t.runs[step].n, 6);
    const int32_t list[] = {1, 2, 3, 4, 21, 22};
    assert_memory_equal(t.runs[step].ids, list, sizeof list);
    answer(30);
    CHECK_EQ(did(MXD_ACT_TOKEN)->index, 2);
    answer(31);
    CHECK_EQ(did(MXD_ACT_TOKEN)->index, 3);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    CHECK_EQ(did(MXD_ACT_DONE)->done.n_out, 4);
    CHECK_EQ(journalled(MXD_JOURNAL_TOKEN), 2);
    CHECK_EQ(journalled(MXD_JOURNAL_END), 1);
    end();
}

TEST(core_a_restored_request_that_was_over_ends) {
    serving_two();
    restore(7, 3, 9, 0); /* its last token is a stop id */
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_STOP);
    CHECK_EQ(did(MXD_ACT_DONE)->done.n_out, 3);
    restore(8, 3, 9, 3); /* which counts only behind min_tokens */
    CHECK(did(MXD_ACT_STEP) && !did(MXD_ACT_DONE));
    restore(9, 2, 2, 0);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    restore(10, 3, 2, 0);
    CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_INVAL);
    end();
}

TEST(core_only_resumable_requests_are_journalled) {
    static mxd_core_submit s = {.request = 7, .prompt = prompt, .n_prompt = 4, .max_tokens = 1};
    serving_two();
    clear();
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &s});
    answer(5);
    CHECK_EQ(did(MXD_ACT_DONE)->done.n_out, 1);
    CHECK_EQ(count(MXD_ACT_JOURNAL), 0);
    end();
}

TEST(core_epochs_go_on_above_the_journals) {
    serving_two();
    t.cfg.epoch0 = 41;
    t.c = mxd_coord_init(t.memory, &t.cfg);
    clear();
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    hello(1, "X", 11);
    CHECK_EQ(did(MXD_ACT_INSTALL)->epoch, 42);
    CHECK(find(MXD_ACT_JOURNAL) < find(MXD_ACT_INSTALL));
    CHECK_EQ(did(MXD_ACT_JOURNAL)->journal.epoch, 42);
    end();
}

TEST(core_every_way_to_finish) {
    serving_two();
    submit(1, 4, 3);
    answer(5);
    CHECK_EQ(did(MXD_ACT_TOKEN)->index, 0);
    CHECK(find(MXD_ACT_JOURNAL) < find(MXD_ACT_TOKEN));
    CHECK_EQ(t.runs[find(MXD_ACT_STEP)].pos, 4);
    CHECK_EQ(t.runs[find(MXD_ACT_STEP)].n, 1);
    answer(99);
    CHECK(did(MXD_ACT_TOKEN)->stop);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_STOP);
    CHECK_EQ(did(MXD_ACT_DONE)->done.n_out, 2);
    clear();
    submit(2, CTX - 1, 10); /* room for one token */
    CHECK_EQ(count(MXD_ACT_STEP), 2);
    answer_chunks(7);
    CHECK_EQ(did(MXD_ACT_DONE)->request, 2);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    submit(3, 4, 4);
    cancel(3);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_CANCELLED);
    CHECK_EQ(view().running, 0);
    end();
}

TEST(core_results_that_do_not_fit) {
    serving_two();
    submit(1, 4, 4);
    uint64_t epoch = view().epoch;
    answer_at(4, 5, epoch - 1); /* an older epoch: ignored */
    CHECK(!did(MXD_ACT_TOKEN));
    CHECK_EQ(view().epoch, epoch);
    answer(5);
    int steps = count(MXD_ACT_STEP);
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    struct mxd_core_result_run run = {.request = 1, .pos = 4};
    e.result = (mxd_core_result){.epoch = epoch, .step = 1, .n = 1, .runs = &run};
    give(e);
    CHECK_EQ(count(MXD_ACT_TOKEN), 1);
    CHECK_EQ(count(MXD_ACT_STEP), steps);
    answer(100); /* not a token */
    CHECK_EQ(count(MXD_ACT_TOKEN), 1);
    CHECK_EQ(view().epoch, epoch + 1);
    end();
}

/* What a node says of an older plan is no fault of this one. */
TEST(core_complaints_about_an_older_plan_change_nothing) {
    serving_two();
    submit(1, 4, 9);
    uint64_t epoch = view().epoch, old = epoch - 1;
    mxd_coord_event says[] = {
        {.kind = MXD_COORD_FAILED, .link = 1, .failed = {.epoch = old, .rc = MXD_E_IO}},
        {.kind = MXD_COORD_NACK, .link = 1, .nack = {.epoch = old, .rc = MXD_E_IO}},
        {.kind = MXD_COORD_NEIGHBOUR_DOWN, .link = 1, .neighbour = {old, 1}},
    };
    for (size_t i = 0; i < MXD_COUNT(says); i++) give(says[i]);
    CHECK_EQ(view().epoch, epoch);
    CHECK_EQ(view().state, MXD_COORD_SERVING);
    CHECK_EQ(mxd_coord_node(t.c, 0)->n_failures, 0);
    gone(2); /* X alone installs: one that is loading may complain too */
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    epoch = view().epoch;
    for (size_t i = 0; i < MXD_COUNT(says); i++) give(says[i]);
    CHECK_EQ(view().epoch, epoch);
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    CHECK_EQ(mxd_coord_node(t.c, 0)->n_failures, 0);
    end();
}

TEST(core_a_death_replays_prompt_and_answer) {
    serving_two();
    submit(1, 4, 9);
    answer(50);
    answer(51);
    clear();
    gone(1);
    CHECK_EQ(count(MXD_ACT_INSTALL), 1);
    ready(2);
    const mxd_core_run *run = &t.runs[find(MXD_ACT_STEP)];
    CHECK_EQ(run->pos, 0);
    CHECK_EQ(run->n, 6);
    CHECK_EQ(run->ids[3], 4);
    CHECK_EQ(run->ids[5], 51);
    answer(52);
    CHECK_EQ(did(MXD_ACT_TOKEN)->index, 2);
    CHECK_EQ(view().n_replays, 1);
    end();
}

/* Eight rows of a device that computes slowly take eight times as long as one. */
TEST(core_a_step_of_more_rows_may_take_longer) {
    serving_two();
    submit(1, 1, 9);
    for (int i = 0; i < 4; i++) {
        pass(500, 1, 2);
        answer(5);
    }
    uint64_t epoch = view().epoch;
    cancel(1);
    pass(500, 1, 2); /* the step under way */
    answer(5);
    clear();
    submit(2, 8, 9);
    CHECK_EQ(t.runs[find(MXD_ACT_STEP)].n, 8);
    pass(3 * 8 * 500, 1, 2);
    CHECK_EQ(view().epoch, epoch);
    answer(5);
    pass(1900, 1, 2); /* one row again: what one took is known */
    CHECK_EQ(view().epoch, epoch);
    pass(200, 1, 2);
    CHECK(view().epoch > epoch || view().state != MXD_COORD_SERVING);
    end();
}

TEST(core_a_late_step_makes_a_new_epoch) {
    serving_two();
    submit(1, 4, 9);
    uint64_t epoch = view().epoch;
    pass(2000 + 30000 + 4 * 250, 1, 2); /* nothing is measured yet */
    CHECK_EQ(view().epoch, epoch);
    pass(50, 1, 2);
    CHECK(view().epoch > epoch || view().state != MXD_COORD_SERVING);
    end();
}

TEST(core_recovery_ends_after_a_minute) {
    begin_with(1);
    hello(1, "A", 1);
    ready(1);
    submit(1, 4, 9);
    answer(7);
    submit(2, 4, 9);
    gone(1);
    t.now += 59000;
    for (int i = 0; i < 100; i++, t.now += 10) give((mxd_coord_event){.kind = MXD_COORD_TICK});
    CHECK(!did(MXD_ACT_DONE));
    t.now += 20;
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    CHECK_EQ(count(MXD_ACT_DONE), 2);
    CHECK_EQ(did(MXD_ACT_DONE)->rc, MXD_E_PEER);
    end();
}

/* A switch that restarts takes all nodes away for some seconds. */
TEST(core_with_nobody_left_requests_wait_for_those_that_were_lost) {
    for (int back = 0; back < 2; back++) {
        serving_two();
        submit(1, 4, 9);
        gone(1);
        gone(2);
        pass(59900, 0, 0);
        if (!back) submit(2, 4, 9);
        CHECK(!view().stuck);
        CHECK(!did(MXD_ACT_DONE) && !did(MXD_ACT_REFUSED));
        if (back) {
            hello(3, "Y", 21);
            ready(3);
            answer_chunks(7);
            CHECK_EQ(did(MXD_ACT_TOKEN)->request, 1);
        } else {
            pass(200, 0, 0);
            CHECK_EQ(count(MXD_ACT_DONE), 2);
            CHECK_EQ(did(MXD_ACT_DONE)->rc, MXD_E_PEER);
            CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_ERROR);
            submit(3, 4, 9);
            CHECK_EQ(did(MXD_ACT_REFUSED)->rc, MXD_E_PEER);
        }
        CHECK_EQ(view().stuck, !back);
        end();
    }
}

TEST(core_with_nobody_left_because_they_left_requests_fail_at_once) {
    begin_with(0);
    hello(1, "X", 11);
    ready(1);
    submit(1, 4, 9);
    give((mxd_coord_event){.kind = MXD_COORD_LEAVE, .link = 1});
    pass(29000, 1, 0);
    CHECK(!did(MXD_ACT_DONE));
    pass(2000, 1, 0);
    CHECK_EQ(did(MXD_ACT_DONE)->rc, MXD_E_PEER);
    end();
}

TEST(core_drains) {
    serving_two();
    submit(1, 4, 1);
    give((mxd_coord_event){.kind = MXD_COORD_DRAIN});
    CHECK(!did(MXD_ACT_DRAINED));
    answer(3);
    CHECK(did(MXD_ACT_DRAINED));
    clear();
    pass(100, 1, 2);
    CHECK(!did(MXD_ACT_DRAINED)); /* once */
    end();
}

TEST(core_a_hundred_kills_in_one_answer) {
    begin_with(2);
    hello(1, "A", 1);
    hello(2, "B", 2);
    ready(1);
    ready(2);
    submit(1, 4, 26);
    uint64_t link = 2, alive[2] = {1, 2};
    for (int kill = 0; kill < 100; kill++) {
        if (kill % 4 == 3) {
            CHECK(did(MXD_ACT_STEP));
            answer_chunks(10 + kill % 50);
        }
        clear();
        gone(alive[kill % 2]);
        for (int i = 0; i < 120 && !did(MXD_ACT_SPAWN); i++) pass(50, alive[1 - kill % 2], 0);
        CHECK(did(MXD_ACT_SPAWN));
        alive[kill % 2] = ++link;
        hello(link, kill % 2 ? "B" : "A", link);
        pass(2100, alive[0], alive[1]);
        ready(alive[0]);
        ready(alive[1]);
        CHECK_EQ(view().state, MXD_COORD_SERVING);
        CHECK(!did(MXD_ACT_DONE));
    }
    answer_chunks(1);
    CHECK_EQ(did(MXD_ACT_DONE)->done.how, MXD_CORE_LENGTH);
    CHECK_EQ(did(MXD_ACT_DONE)->done.n_out, 26);
    end();
}

/* ---------------------------------------------------------------------------------- hostility */

static uint64_t seed;
static int hostile; /* once in so many times */
static int pick(int n) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (int)((seed >> 33) % (uint64_t)n);
}

/* Mostly what fits, sometimes anything. */
static uint64_t near(uint64_t value) {
    if (pick(hostile)) return value;
    return value + (uint64_t)(pick(9) - 4) * (pick(9) ? 1 : UINT64_MAX / 5);
}

static uint64_t answered;

static void garbage_result(void) {
    struct mxd_core_result_run runs[4];
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    uint64_t epoch = view().epoch;
    memset(runs, 0, sizeof runs);
    int i = 0;
    while (i < t.n && (t.list[i].kind != MXD_ACT_STEP || t.list[i].step <= answered ||
                       t.list[i].epoch != epoch))
        i++;
    if (i == t.n && pick(hostile)) return;
    const mxd_core_run *run = &t.runs[i < t.n ? i : 0];
    for (int k = 0; k < 4; k++) {
        runs[k].request = near(run->request);
        runs[k].pos = (uint32_t)near(run->pos + run->n);
        runs[k].sampled.token = (int32_t)near((uint64_t)pick(100));
    }
    answered = i < t.n ? t.list[i].step : answered;
    e.result = (mxd_core_result){.epoch = near(epoch),
                                 .step = near(answered),
                                 .n = pick(hostile) ? run->sample : pick(4),
                                 .runs = runs};
    give(e);
}

static void garbage_from_node(void) {
    static const mxd_coord_event_kind kinds[] = {
        MXD_COORD_BEAT, MXD_COORD_BEAT,  MXD_COORD_FAILED, MXD_COORD_NACK, MXD_COORD_NEIGHBOUR_DOWN,
        MXD_COORD_GONE, MXD_COORD_LEAVE, MXD_COORD_READY,  MXD_COORD_READY};
    int kind = pick(hostile) ? (pick(2) ? 0 : 8) : pick(9);
    mxd_coord_event e = {.kind = kinds[kind], .link = (uint64_t)pick(12)};
    uint64_t epoch = near(view().epoch);
    if (e.kind == MXD_COORD_BEAT) e.beat = (mxd_core_beat){epoch, near(5), pick(9999) - 99};
    if (e.kind == MXD_COORD_READY) e.ready = (mxd_core_ready){.epoch = epoch};
    if (e.kind == MXD_COORD_FAILED)
        e.failed = (mxd_core_failed){epoch, (mxd_rc)pick(MXD_RC_COUNT), NULL};
    if (e.kind == MXD_COORD_NACK)
        e.nack = (mxd_core_nack){epoch, near(5), (mxd_rc)pick(MXD_RC_COUNT)};
    if (e.kind == MXD_COORD_NEIGHBOUR_DOWN) e.neighbour = (mxd_core_neighbour){epoch, pick(70) - 3};
    give(e);
}

static void garbage_hello(void) {
    mxd_node_info info = {.incarnation = (uint64_t)pick(3), .epoch = near(view().epoch)};
    info.id[0] = (char)("ABCXYZ"[pick(6)]);
    if (!pick(20)) memset(&info, 0x41, sizeof info); /* nothing ends */
    give(
        (mxd_coord_event){.kind = MXD_COORD_HELLO, .link = (uint64_t)pick(12) + 1, .hello = &info});
}

/* Whatever peers say in whatever order: no assert, and the invariants hold after each event. */
TEST(core_garbage_in) {
    uint64_t tokens = 0;
    for (seed = 1; seed < 100;) {
        uint64_t round = seed, request = 0;
        t.n_slots = 1; /* a step has one run, the one that was noted */
        begin_with(pick(4));
        answered = 0;
        hostile = 2 + pick(60);
        for (int i = 0; i < 3000; i++) {
            if (t.n > MAX_ACTIONS / 2) clear();
            t.now += pick(hostile) ? pick(9) : pick(2000);
            int what = pick(16);
            if (what < 3) give((mxd_coord_event){.kind = MXD_COORD_TICK});
            if (what == 3 && (i < 100 || !pick(hostile))) garbage_hello();
            if (what == 4 && request < 500) submit(++request, 1 + pick(CTX + 1), pick(20));
            if (what == 5 && !pick(hostile)) cancel((uint64_t)pick((int)request + 2));
            if (what >= 6 && what < 11) garbage_result();
            if (what >= 11 && what < 15) garbage_from_node();
            if (what == 15 && !pick(hostile))
                give((mxd_coord_event){.kind = MXD_COORD_EXITED,
                                       .exited = {pick(70) - 3, (uint64_t)pick(9)}});
        }
        tokens += view().n_generated_tokens;
        seed = round + 1;
    }
    t.n_slots = 0;
    CHECK(tokens > 1000); /* it got far enough to test something */
    end();
}
