/* Nodes that have become slower than the plan takes them for. */
#include <math.h>
#include "core_kit.h"

static uint64_t steps;

static void two_equal(double duty) {
    begin_with(0);
    t.decode_ms = 10;
    for (int i = 0; i < 2; i++) {
        mxd_node_info info = {.incarnation = 11, .address = "1.2.3.4:5", .bandwidth = 100};
        snprintf(info.id, sizeof info.id, "%c", 'X' + i);
        if (i) info.paces.duty = duty;
        give((mxd_coord_event){.kind = MXD_COORD_HELLO, .link = 1 + (uint64_t)i, .hello = &info});
    }
    for (int k = 0; k < 2; k++) ready(1);
    ready(2);
    CHECK_EQ(view().plan->n_stages, 2);
    clear();
}

/* Both say what a row takes them, for so long; with rows, or idle. */
static void say(double x_ms, double y_ms, int64_t ms, bool works) {
    for (int64_t to = t.now + ms; t.now < to;) {
        t.now += 250;
        steps += works;
        for (uint64_t link = 1; link <= 2; link++) {
            mxd_coord_event e = {.kind = MXD_COORD_BEAT, .link = link};
            e.beat = (mxd_core_beat){.epoch = view().epoch,
                                     .last_step = steps,
                                     .row_ms = (float)(link == 1 ? x_ms : y_ms)};
            give(e);
        }
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
}

static double taken_for(int node) { return mxd_coord_node(t.c, node)->slow; }

TEST(core_drift_makes_a_new_plan_between_requests) {
    two_equal(0);
    submit(1, 4, 9);
    uint64_t epoch = view().epoch;
    for (int i = 0; i < 7; i++) {
        say(11, 55, 1000, true);
        answer(5);
    }
    CHECK_EQ(view().epoch, epoch); /* while it runs nothing changes */
    CHECK(taken_for(0) == 1 && fabs(taken_for(1) - 5) < .1);
    answer(5);
    answer(5);
    CHECK(did(MXD_ACT_DONE));
    CHECK(t.bandwidth[0] == 100 && fabs(t.bandwidth[1] - 20) < .5);
    end();
}

TEST(core_drift_wants_time_and_size) {
    const struct {
        double x, y, duty;
        int64_t ms;
        bool works;
    } nothing[] = {
        {10, 50, 0, 4500, true},   /* not for long enough */
        {10, 50, 0, 60000, false}, /* nobody works: old news */
        {10, 19, 0, 60000, true},  /* not twice */
        {50, 50, 0, 60000, true},  /* the planner is wrong about both */
        {.1, .9, 0, 60000, true},  /* too little to matter */
        {10, 4, .4, 60000, true},  /* part of a processor, and it rests in between */
        {0, 50, 0, 60000, true},   /* one has said nothing yet */
    };
    for (size_t i = 0; i < MXD_COUNT(nothing); i++) {
        two_equal(nothing[i].duty);
        say(nothing[i].x, nothing[i].y, nothing[i].ms, nothing[i].works);
        CHECK(taken_for(0) == 1 && taken_for(1) == 1);
        end();
    }
}

/* Trust comes back by halves, and only after a minute of rows. */
TEST(core_drift_back_is_slow) {
    two_equal(0);
    say(10, 80, 6000, true);
    CHECK(fabs(taken_for(1) - 8) < .1);
    say(10, 10, 50000, true);
    CHECK(fabs(taken_for(1) - 8) < .1);
    say(10, 10, 12000, true);
    CHECK(fabs(taken_for(1) - 4) < .1);
    say(10, 80, 500, true); /* once slow again, and the minute begins anew */
    say(10, 10, 50000, true);
    CHECK(fabs(taken_for(1) - 4) < .1);
    gone(2); /* another life has another speed */
    hello(3, "Y", 22);
    CHECK(taken_for(1) == 1);
    end();
}
