#include "cluster/core.h"
#include "test.h"

static struct {
    _Alignas(16) unsigned char memory[64 << 10];
    mxd_wcore *w;
    mxd_wcore_actions out;
    int64_t now;
} t;

static void begin(void) {
    mxd_wcore_cfg cfg = {.n_slots = 2, .ctx = 32};
    CHECK(mxd_wcore_bytes(&cfg) <= sizeof t.memory);
    t.now = 0;
    t.w = mxd_wcore_init(t.memory, &cfg);
}

static void give(mxd_wcore_event e) {
    e.now_ms = t.now;
    mxd_wcore_step(t.w, &e, &t.out);
    mxd_wcore_check(t.w);
}

static const mxd_wcore_action *did(mxd_wcore_action_kind kind) {
    for (int i = 0; i < t.out.n; i++)
        if (t.out.list[i].kind == kind) return &t.out.list[i];
    return NULL;
}

static void plan(uint64_t epoch, int layer0, int layer1) {
    mxd_stage s = {.epoch = epoch, .layer0 = layer0, .layer1 = layer1, .prev = 1};
    s.n_ranks = s.n_next = 1;
    s.next[0].node = 3;
    s.share[0] = 1;
    s.embed = layer0 == 0;
    give((mxd_wcore_event){.kind = MXD_WCORE_PLAN, .stage = &s});
}

static void loaded(mxd_rc rc) {
    mxd_wcore_event e = {.kind = MXD_WCORE_LOADED};
    e.loaded.rc = rc;
    e.loaded.text = "why";
    e.loaded.bytes = 99;
    give(e);
}

static void frame(uint64_t epoch, uint64_t step, uint64_t request, uint32_t pos, int n) {
    mxd_core_run run = {.request = request, .pos = pos, .n = (uint16_t)n};
    mxd_wcore_event e = {.kind = MXD_WCORE_FRAME};
    e.frame.epoch = epoch;
    e.frame.step = step;
    e.frame.n_runs = 1;
    e.frame.runs = &run;
    give(e);
}

static void computed(uint64_t epoch, uint64_t step, mxd_rc rc) {
    mxd_wcore_event e = {.kind = MXD_WCORE_COMPUTED};
    e.computed.epoch = epoch;
    e.computed.step = step;
    e.computed.rc = rc;
    give(e);
}

static void serving(void) {
    begin();
    plan(5, 0, 4);
    loaded(MXD_OK);
    CHECK(did(MXD_WACT_READY));
}

static void check_nack(mxd_rc rc) {
    const mxd_wcore_action *a = did(MXD_WACT_NACK);
    CHECK(a && !did(MXD_WACT_COMPUTE));
    CHECK_EQ(a->rc, rc);
}

TEST(wcore_loads_and_forwards) {
    begin();
    plan(5, 0, 4);
    CHECK(did(MXD_WACT_LOAD) && did(MXD_WACT_LINK_NEXT) && !did(MXD_WACT_READY));
    loaded(MXD_OK);
    CHECK_EQ(did(MXD_WACT_READY)->epoch, 5);
    CHECK_EQ(did(MXD_WACT_READY)->bytes, 99);
    frame(5, 1, 7, 0, 4);
    CHECK_EQ(did(MXD_WACT_COMPUTE)->step, 1);
    frame(5, 2, 7, 4, 1); /* behind it, before it is done */
    CHECK_EQ(did(MXD_WACT_COMPUTE)->step, 2);
    computed(5, 1, MXD_OK);
    CHECK_EQ(did(MXD_WACT_FORWARD)->step, 1);
}

TEST(wcore_refuses_what_does_not_fit) {
    serving();
    frame(4, 1, 7, 0, 4);
    check_nack(MXD_E_STALE);
    frame(6, 1, 7, 0, 4);
    check_nack(MXD_E_STALE);
    frame(5, 1, 7, 1, 4); /* nothing is there yet */
    check_nack(MXD_E_STALE);
    frame(5, 2, 7, 0, 4);
    CHECK(did(MXD_WACT_COMPUTE));
    frame(5, 3, 7, 3, 1);
    check_nack(MXD_E_STALE);
    frame(5, 3, 7, 5, 1);
    check_nack(MXD_E_STALE);
    frame(5, 3, 8, 4, 1); /* the slot is another request's */
    check_nack(MXD_E_STALE);
    frame(5, 3, 7, 4, 28);
    CHECK(did(MXD_WACT_COMPUTE)); /* the context is full to the last position */
    frame(5, 4, 7, 32, 1);
    check_nack(MXD_E_FORMAT);
    frame(5, 4, 7, 0, 0);
    check_nack(MXD_E_FORMAT);
}

TEST(wcore_refuses_malformed_runs) {
    serving();
    mxd_core_run runs[2] = {{.request = 1, .n = 1}, {.request = 2, .n = 1}};
    mxd_wcore_event e = {.kind = MXD_WCORE_FRAME};
    e.frame.epoch = 5;
    e.frame.step = 1;
    e.frame.runs = runs;
    e.frame.n_runs = 2; /* one slot twice */
    give(e);
    check_nack(MXD_E_FORMAT);
    runs[1].slot = 2; /* no such slot */
    give(e);
    check_nack(MXD_E_FORMAT);
    runs[1].slot = 1;
    e.frame.has_hidden = true; /* the stage embeds */
    give(e);
    check_nack(MXD_E_FORMAT);
    e.frame.has_hidden = false;
    runs[1].pos = UINT32_MAX;
    give(e);
    check_nack(MXD_E_FORMAT);
    runs[1].pos = 0;
    give(e);
    CHECK(did(MXD_WACT_COMPUTE));
}

static void beginning(uint64_t step, mxd_core_run run, const mxd_core_run *second) {
    mxd_core_run runs[2] = {run};
    mxd_wcore_event e = {.kind = MXD_WCORE_FRAME};
    if (second) runs[1] = *second;
    e.frame.epoch = 5;
    e.frame.step = step;
    e.frame.n_runs = second ? 2 : 1;
    e.frame.runs = runs;
    give(e);
}

TEST(wcore_begins_only_with_what_is_there) {
    serving();
    frame(5, 1, 7, 0, 8); /* slot 0 holds 8 positions of request 7 */
    const mxd_core_run good = {
        .request = 9, .slot = 1, .pos = 8, .n = 1, .begin = true, .from = 0, .from_request = 7};
    mxd_core_run r = good;
    r.pos = 9;
    beginning(2, r, NULL);
    check_nack(MXD_E_STALE);
    r = good, r.from_request = 6;
    beginning(2, r, NULL);
    check_nack(MXD_E_STALE);
    r = good, r.from = 1;
    beginning(2, r, NULL);
    check_nack(MXD_E_STALE);
    r = good, r.from = 2;
    beginning(2, r, NULL);
    check_nack(MXD_E_FORMAT);
    mxd_core_run anew = {.request = 8, .slot = 0, .pos = 0, .n = 1}; /* in the same step */
    beginning(2, good, &anew);
    check_nack(MXD_E_STALE);
    mxd_core_run on = {.request = 7, .slot = 0, .pos = 8, .n = 1};
    beginning(2, good, &on);
    CHECK(did(MXD_WACT_COMPUTE));
    r = (mxd_core_run){
        .request = 4, .slot = 0, .pos = 5, .n = 2, .begin = true, .from = 0, .from_request = 7};
    beginning(3, r, NULL); /* cut back */
    CHECK(did(MXD_WACT_COMPUTE));
    frame(5, 4, 4, 7, 1);
    CHECK(did(MXD_WACT_COMPUTE));
    r = good, r.pos = 9, r.from_request = 7; /* request 4 has it now */
    beginning(5, r, NULL);
    check_nack(MXD_E_STALE);
}

TEST(wcore_a_frame_that_comes_twice_is_computed_once) {
    serving();
    frame(5, 1, 7, 0, 4);
    CHECK(did(MXD_WACT_COMPUTE));
    frame(5, 1, 7, 0, 4);
    CHECK_EQ(t.out.n, 0);
}

TEST(wcore_same_layers_keep_their_weights) {
    serving();
    frame(5, 1, 7, 0, 4);
    plan(6, 0, 4);
    CHECK(did(MXD_WACT_FORGET) && did(MXD_WACT_READY) && !did(MXD_WACT_LOAD));
    CHECK_EQ(did(MXD_WACT_READY)->epoch, 6);
    computed(5, 1, MXD_OK); /* of the old epoch */
    CHECK(did(MXD_WACT_DISCARD) && !did(MXD_WACT_FORWARD));
    frame(6, 2, 7, 4, 1); /* the KV is empty */
    check_nack(MXD_E_STALE);
}

TEST(wcore_a_plan_overtakes_a_load) {
    begin();
    plan(5, 0, 4);
    plan(6, 2, 4);
    CHECK(!did(MXD_WACT_LOAD));
    loaded(MXD_OK);
    CHECK(did(MXD_WACT_LOAD) && !did(MXD_WACT_READY));
    CHECK_EQ(did(MXD_WACT_LOAD)->stage->layer0, 2);
    plan(7, 2, 4); /* the same layers: the load that runs serves it */
    loaded(MXD_OK);
    CHECK_EQ(did(MXD_WACT_READY)->epoch, 7);
}

TEST(wcore_plans_never_go_back) {
    serving();
    plan(4, 0, 2);
    CHECK_EQ(t.out.n, 0);
    plan(5, 0, 4); /* again: the answer may have been lost */
    CHECK(did(MXD_WACT_READY) && !did(MXD_WACT_FORGET));
    plan(MXD_CORE_MAX_EPOCH, 0, 4);
    CHECK_EQ(t.out.n, 0);
    plan(6, 3, 3);
    CHECK_EQ(did(MXD_WACT_FAILED)->rc, MXD_E_INVAL);
}

TEST(wcore_uninstall_unloads_even_what_still_loads) {
    serving();
    give((mxd_wcore_event){.kind = MXD_WCORE_UNINSTALL, .epoch = 6});
    CHECK(did(MXD_WACT_UNLOAD));
    frame(5, 1, 7, 0, 4);
    check_nack(MXD_E_STALE);
    plan(7, 0, 4);
    give((mxd_wcore_event){.kind = MXD_WCORE_UNINSTALL, .epoch = 8});
    CHECK(!did(MXD_WACT_UNLOAD));
    loaded(MXD_OK);
    CHECK(did(MXD_WACT_UNLOAD) && !did(MXD_WACT_READY));
}

TEST(wcore_failures_are_reported) {
    begin();
    plan(5, 0, 4);
    loaded(MXD_E_NOTFOUND);
    CHECK_EQ(did(MXD_WACT_FAILED)->rc, MXD_E_NOTFOUND);
    CHECK_STR(did(MXD_WACT_FAILED)->text, "why");
    serving();
    frame(5, 1, 7, 0, 4);
    computed(5, 1, MXD_E_NOMEM);
    check_nack(MXD_E_NOMEM);
}

TEST(wcore_heartbeats_tell_of_the_running_step) {
    serving();
    give((mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    CHECK(did(MXD_WACT_BEAT));
    t.now = 100;
    frame(5, 3, 7, 0, 4);
    t.now = MXD_HEARTBEAT_MS - 1;
    give((mxd_wcore_event){.kind = MXD_WCORE_TICK});
    CHECK(!did(MXD_WACT_BEAT));
    t.now = MXD_HEARTBEAT_MS;
    give((mxd_wcore_event){.kind = MXD_WCORE_TICK});
    CHECK_EQ(did(MXD_WACT_BEAT)->beat.step_age_ms, 150);
    CHECK_EQ(did(MXD_WACT_BEAT)->beat.last_step, 0);
    computed(5, 3, MXD_OK);
    t.now = 2 * MXD_HEARTBEAT_MS;
    give((mxd_wcore_event){.kind = MXD_WCORE_TICK});
    CHECK_EQ(did(MXD_WACT_BEAT)->beat.last_step, 3);
    CHECK_EQ(did(MXD_WACT_BEAT)->beat.step_age_ms, 0);
    CHECK_EQ(did(MXD_WACT_BEAT)->beat.epoch, 5);
}

TEST(wcore_neighbours_and_the_coordinator_may_go) {
    serving();
    give((mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    give((mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = 3});
    CHECK_EQ(did(MXD_WACT_NEIGHBOUR_DOWN)->node, 3);
    give((mxd_wcore_event){.kind = MXD_WCORE_NEIGHBOUR_DOWN, .neighbour = 2});
    CHECK(!did(MXD_WACT_NEIGHBOUR_DOWN));
    give((mxd_wcore_event){.kind = MXD_WCORE_COORDINATOR_DOWN});
    CHECK(did(MXD_WACT_CONNECT));
}

TEST(wcore_drains) {
    serving();
    give((mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    give((mxd_wcore_event){.kind = MXD_WCORE_DRAIN});
    CHECK(did(MXD_WACT_LEAVE) && !did(MXD_WACT_EXIT));
    frame(5, 1, 7, 0, 4); /* still at work */
    CHECK(did(MXD_WACT_COMPUTE));
    give((mxd_wcore_event){.kind = MXD_WCORE_RELEASED});
    CHECK(did(MXD_WACT_EXIT));
    serving();
    give((mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    give((mxd_wcore_event){.kind = MXD_WCORE_DRAIN});
    t.now = 35000;
    give((mxd_wcore_event){.kind = MXD_WCORE_TICK});
    CHECK(did(MXD_WACT_EXIT));
    begin();
    give((mxd_wcore_event){.kind = MXD_WCORE_DRAIN}); /* nobody to ask */
    CHECK(did(MXD_WACT_EXIT));
}

/* ------------------------------------------------------------------------------- ranks of a stage
 */

static void rank_plan(uint64_t epoch, int rank, double first) {
    mxd_stage s = {.epoch = epoch, .layer1 = 4, .embed = true, .head = true, .prev = -1};
    s.rank = rank;
    s.n_ranks = 2;
    s.share[0] = first;
    s.share[1] = 1 - first;
    s.ranks[0].node = 7;
    s.ranks[1].node = 8;
    give((mxd_wcore_event){.kind = MXD_WCORE_PLAN, .stage = &s});
}

static void loaded_without(int peer) {
    mxd_wcore_event e = {.kind = MXD_WCORE_LOADED};
    e.loaded.rc = MXD_E_PEER;
    e.loaded.peer = peer;
    e.loaded.text = "why";
    give(e);
}

TEST(wcore_a_group_comes_together_for_every_plan) {
    begin();
    rank_plan(5, 0, .5);
    CHECK(did(MXD_WACT_LOAD) && !did(MXD_WACT_LINK_NEXT));
    loaded(MXD_OK);
    CHECK(did(MXD_WACT_READY));
    rank_plan(6, 0, .5); /* the weights are there, the group is not */
    CHECK_EQ(did(MXD_WACT_ABORT)->epoch, 6);
    CHECK(did(MXD_WACT_LOAD) && !did(MXD_WACT_READY) && !did(MXD_WACT_FORGET));
    rank_plan(7, 0, .5); /* while it waits */
    CHECK_EQ(did(MXD_WACT_ABORT)->epoch, 7);
    CHECK(!did(MXD_WACT_LOAD));
    loaded(MXD_OK); /* of 6, and it does not count */
    CHECK(did(MXD_WACT_LOAD) && !did(MXD_WACT_READY));
    loaded(MXD_OK);
    CHECK_EQ(did(MXD_WACT_READY)->epoch, 7);
}

TEST(wcore_only_the_leader_speaks) {
    for (int rank = 0; rank < 2; rank++) {
        begin();
        rank_plan(5, rank, .5);
        loaded(MXD_OK);
        frame(5, 1, 7, 0, 4);
        CHECK(did(MXD_WACT_COMPUTE));
        computed(5, 1, MXD_OK);
        CHECK_EQ(did(MXD_WACT_RESULT) != NULL, rank == 0);
        CHECK_EQ(did(MXD_WACT_DISCARD) != NULL, rank == 1);
    }
}

TEST(wcore_says_which_rank_it_misses) {
    begin();
    give((mxd_wcore_event){.kind = MXD_WCORE_CONNECTED});
    rank_plan(5, 0, .5);
    loaded_without(1);
    CHECK_EQ(did(MXD_WACT_NEIGHBOUR_DOWN)->node, 8);
    CHECK(!did(MXD_WACT_FAILED));
    rank_plan(6, 0, .5);
    loaded_without(-1); /* it does not know which */
    CHECK(did(MXD_WACT_FAILED));
    rank_plan(7, 0, .5);
    loaded(MXD_OK);
    frame(7, 1, 7, 0, 4);
    mxd_wcore_event e = {.kind = MXD_WCORE_COMPUTED};
    e.computed.epoch = 7;
    e.computed.step = 1;
    e.computed.rc = MXD_E_PEER;
    e.computed.peer = 1;
    give(e);
    CHECK_EQ(did(MXD_WACT_NEIGHBOUR_DOWN)->node, 8);
    CHECK(!did(MXD_WACT_NACK));
}

TEST(wcore_an_uninstall_ends_a_load_that_waits) {
    begin();
    rank_plan(5, 0, .5);
    give((mxd_wcore_event){.kind = MXD_WCORE_UNINSTALL, .epoch = 6});
    CHECK_EQ(did(MXD_WACT_ABORT)->epoch, 6);
    loaded(MXD_E_CANCELED); /* the weights may be there all the same */
    CHECK(did(MXD_WACT_UNLOAD) && !did(MXD_WACT_FAILED));
}

TEST(wcore_refuses_a_part_that_makes_no_sense) {
    begin();
    for (int k = 0; k < 4; k++) {
        mxd_stage s = {.epoch = 5 + (uint64_t)k, .layer1 = 4, .n_ranks = 1};
        if (k == 0) s.n_ranks = 0;
        if (k == 1) s.n_ranks = MXD_MAX_RANKS + 1;
        if (k == 2) s.rank = 1;
        if (k == 3) s.n_next = MXD_MAX_RANKS + 1;
        give((mxd_wcore_event){.kind = MXD_WCORE_PLAN, .stage = &s});
        CHECK(did(MXD_WACT_FAILED) && !did(MXD_WACT_LOAD));
    }
}
