/* Stages of several ranks: who is told what, and who is blamed. */
#include "core_kit.h"

static void rank_beat(uint64_t link, uint64_t last_step, int64_t age_ms, int waits) {
    mxd_core_beat b = {view().epoch, last_step, age_ms, .waits = waits};
    give((mxd_coord_event){.kind = MXD_COORD_BEAT, .link = link, .beat = b});
}

/* Local workers A and B on links 1 and 2 hold all layers together. */
static void serving_together(void) {
    begin_with(2);
    t.together = 2;
    hello(1, "A", 11);
    hello(2, "B", 21);
    CHECK_EQ(count(MXD_ACT_INSTALL), 2);
    ready(1);
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    ready(2);
    CHECK_EQ(view().state, MXD_COORD_SERVING);
}

TEST(core_ranks_are_told_of_each_other) {
    begin_with(3);
    t.together = 2;
    hello(1, "A", 11);
    hello(2, "B", 21);
    hello(3, "C", 31);
    CHECK_EQ(count(MXD_ACT_INSTALL), 3);
    for (int i = 0; i < t.n; i++) {
        if (t.list[i].kind != MXD_ACT_INSTALL) continue;
        const mxd_stage *s = t.list[i].stage;
        bool last = t.list[i].node == 2;
        CHECK_EQ(s->index, last);
        CHECK_EQ(s->rank, last ? 0 : t.list[i].node);
        CHECK_EQ(s->n_ranks, last ? 1 : 2);
        CHECK_EQ(s->ranks[s->rank].node, t.list[i].node);
        CHECK_STR(s->ranks[0].id, last ? "C" : "A");
        CHECK(s->share[s->rank] == (last ? 1 : .5));
        CHECK_EQ(s->n_next, last ? 0 : 1);
        if (!last) CHECK_STR(s->next[0].id, "C");
        if (!last) CHECK_STR(s->ranks[1].id, "B");
        CHECK_EQ(s->prev, last ? 0 : MXD_CORE_COORDINATOR);
    }
    end();
}

TEST(core_ranks_get_a_step_once_and_answer_once) {
    serving_together();
    submit(1, 4, 9);
    CHECK_EQ(count(MXD_ACT_STEP), 1);
    CHECK_EQ(did(MXD_ACT_STEP)->node, 0);
    answer(5);
    CHECK_EQ(count(MXD_ACT_TOKEN), 1);
    gone(2); /* any rank's death ends the epoch */
    CHECK(view().state != MXD_COORD_SERVING);
    end();
}

TEST(core_other_shares_are_another_plan) {
    begin_with(0);
    t.together = 2;
    hello(1, "X", 11);
    hello(2, "Y", 21);
    ready(1);
    ready(1);
    ready(2);
    uint64_t epoch = view().epoch;
    hello(3, "Z", 31); /* the same two stay rank 0 and 1, but the shares are others */
    t.first = .25;
    CHECK(view().epoch > epoch);
    end();
}

/* Both ranks are in a step for 3 s, and say whom they wait for. */
static void both_wait(int a, int b) {
    rank_beat(1, 0, 3000, a);
    rank_beat(2, 0, 3000, b);
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    t.now += 50;
}

TEST(core_the_rank_that_hangs_is_blamed_not_those_that_wait_for_it) {
    const int says[] = {0, 1 + 1,
                        1 + 9}; /* nothing; it waits for itself, for nobody of its stage */
    for (size_t k = 0; k < MXD_COUNT(says); k++) {
        serving_together();
        submit(1, 4, 9);
        clear();
        for (int64_t to = t.now + 40000; t.now < to && !did(MXD_ACT_DROP);)
            both_wait(1 + 1, says[k]); /* A for B */
        CHECK(did(MXD_ACT_DROP));
        CHECK_EQ(did(MXD_ACT_DROP)->node, 1);
        CHECK_EQ(mxd_coord_node(t.c, 0)->n_failures, 0);
        end();
    }
}

TEST(core_ranks_that_wait_for_each_other_have_a_broken_link) {
    serving_together();
    submit(1, 4, 9);
    uint64_t epoch = view().epoch;
    for (int64_t to = t.now + 40000; t.now < to && view().epoch == epoch;) both_wait(1 + 1, 1 + 0);
    CHECK(view().epoch > epoch);
    CHECK_EQ(view().plan->stages[0].n_ranks, 1);
    CHECK(!did(MXD_ACT_DROP));
    end();
}

TEST(core_a_broken_link_between_ranks_parts_them) {
    serving_together();
    mxd_coord_event e = {.kind = MXD_COORD_NEIGHBOUR_DOWN, .link = 1};
    e.neighbour = (mxd_core_neighbour){view().epoch, 1};
    give(e);
    CHECK_EQ(view().plan->n_stages, 1);
    CHECK_EQ(view().plan->stages[0].n_ranks, 1); /* each can hold it alone */
    end();
}
