/* The plan canary: no plan serves that computes other numbers than the first one did. */
#include <stdlib.h>
#include "cluster/core.h"
#include "test.h"

enum { LAYERS = 8, NODES = 4, MAX = 512 };

static struct {
    void *memory;
    mxd_coord *c;
    int64_t now;
    int capacity;                         /* layers of a node */
    bool up[NODES], wrong[NODES], silent; /* silent: no step is answered */
    uint64_t incarnation;
    const char *determinism;
    int n_canaries, n_steps, n_wrong_steps; /* n_steps: of requests */
    mxd_core_canary learned;
    uint64_t installs[MAX]; /* links that have to say READY */
    int n_installs;
    struct {
        uint64_t epoch, step, request;
        uint32_t pos;
    } todo[MAX]; /* steps to answer */
    int n_todo;
} t;

static const char *const ids[NODES] = {"A", "B", "C", "D"};

static mxd_rc plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                   int n_avoid, mxd_plan *out, mxd_err *err) {
    (void)ctx, (void)nodes, (void)avoid, (void)n_avoid;
    if (n * t.capacity < LAYERS) return mxd_fail(err, MXD_E_NOFIT, "too small");
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n; i++)
        out->stages[out->n_stages++] = (mxd_plan_stage){.layer0 = LAYERS * i / n,
                                                        .layer1 = LAYERS * (i + 1) / n,
                                                        .embed = i == 0,
                                                        .head = i == n - 1,
                                                        .n_ranks = 1,
                                                        .ranks[0] = {.node = i, .share = 1}};
    return MXD_OK;
}

static mxd_coord_view view(void) {
    mxd_coord_view v;
    mxd_coord_view_get(t.c, &v);
    return v;
}

static int node_of(const char *id) { return id[0] - 'A'; }

static bool plan_is_wrong(void) {
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const mxd_node_view *n = mxd_coord_node(t.c, i);
        if (n->stage >= 0 && t.wrong[node_of(n->info.id)]) return true;
    }
    return false;
}

static void take(const mxd_coord_action *a) {
    if (a->kind == MXD_ACT_INSTALL) t.installs[t.n_installs++ % MAX] = a->link;
    if (a->kind == MXD_ACT_CANARY && a->node < 0) t.learned = a->canary;
    if (a->kind != MXD_ACT_STEP) return;
    bool canary = a->runs[0].request == MXD_CORE_CANARY;
    t.n_canaries += canary;
    t.n_steps += !canary;
    t.n_wrong_steps += !canary && plan_is_wrong();
    CHECK(t.n_todo < MAX);
    t.todo[t.n_todo].epoch = a->epoch;
    t.todo[t.n_todo].step = a->step;
    t.todo[t.n_todo].request = a->runs[0].request;
    t.todo[t.n_todo++].pos = a->runs[0].pos + a->runs[0].n;
}

static void give(mxd_coord_event e) {
    mxd_coord_actions out;
    e.now_ms = t.now;
    mxd_coord_step(t.c, &e, &out);
    mxd_coord_check(t.c);
    for (int i = 0; i < out.n; i++) take(&out.list[i]);
}

static void begin(int capacity, const mxd_core_canary *known) {
    free(t.memory);
    memset(&t, 0, sizeof t);
    mxd_coord_cfg cfg = {
        .plan = plan, .n_layers = LAYERS, .n_vocab = 100, .ctx = 64, .n_slots = 1, .canary = true};
    if (known) cfg.known = *known;
    t.capacity = capacity;
    t.determinism = "bit-exact";
    t.memory = malloc(mxd_coord_bytes(&cfg));
    t.c = mxd_coord_init(t.memory, &cfg);
    t.now = 1000;
}

static void start(int node, bool wrong) {
    mxd_node_info info = {.incarnation = ++t.incarnation, .address = "1.2.3.4:5"};
    snprintf(info.id, sizeof info.id, "%s", ids[node]);
    t.up[node] = true;
    t.wrong[node] = wrong;
    give((mxd_coord_event){
        .kind = MXD_COORD_HELLO, .link = 100 * t.incarnation + (uint64_t)node, .hello = &info});
}

static uint64_t link_of(int node) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (strcmp(mxd_coord_node(t.c, i)->info.id, ids[node]) == 0)
            return mxd_coord_node(t.c, i)->link;
    return 0;
}

static void stop(int node) {
    t.up[node] = false;
    give((mxd_coord_event){.kind = MXD_COORD_GONE, .link = link_of(node)});
}

static const mxd_node_view *seen(int node) {
    for (int i = 0; i < MXD_MAX_NODES; i++)
        if (strcmp(mxd_coord_node(t.c, i)->info.id, ids[node]) == 0) return mxd_coord_node(t.c, i);
    return NULL;
}

static void answer_one(void) {
    struct mxd_core_result_run run = {.request = t.todo[0].request, .pos = t.todo[0].pos};
    run.sampled.token = 7; /* the same for both: the log probabilities tell */
    run.sampled.logprob = plan_is_wrong() ? -1.5f : -1.25f;
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    e.result =
        (mxd_core_result){.epoch = t.todo[0].epoch, .step = t.todo[0].step, .n = 1, .runs = &run};
    memmove(t.todo, t.todo + 1, (size_t)--t.n_todo * sizeof *t.todo);
    give(e);
}

/* Everybody does what it is told, for so long. */
static void pass(int64_t ms) {
    for (int64_t to = t.now + ms; t.now < to; t.now += 25) {
        for (int i = 0; i < NODES; i++)
            if (t.up[i])
                give((mxd_coord_event){
                    .kind = MXD_COORD_BEAT, .link = link_of(i), .beat = {.epoch = view().epoch}});
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
        for (int k = 0; k < t.n_installs; k++) {
            mxd_coord_event e = {.kind = MXD_COORD_READY, .link = t.installs[k]};
            e.ready.epoch = view().epoch;
            snprintf(e.ready.determinism, sizeof e.ready.determinism, "%s", t.determinism);
            give(e);
        }
        t.n_installs = 0;
        while (t.n_todo && !t.silent) answer_one();
    }
}

static void submit(void) {
    static const int32_t prompt[] = {1, 2, 3};
    static mxd_core_submit s;
    s = (mxd_core_submit){.request = ++t.incarnation, .prompt = prompt, .n_prompt = 3};
    s.max_tokens = 4;
    s.ignore_eos = true;
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &s});
}

static void serves_with(const char *who) {
    mxd_coord_view v = view();
    CHECK_EQ(v.state, MXD_COORD_SERVING);
    char got[NODES + 1] = "";
    for (int i = 0, k = 0; i < NODES; i++)
        if (seen(i) && seen(i)->stage >= 0) got[k++] = ids[i][0];
    CHECK_STR(got, who);
}

static mxd_core_canary right_answer(void) {
    return mxd_core_canary_of(&(mxd_sampled){.token = 7, .logprob = -1.25f});
}

TEST(core_canary_the_first_plan_says_what_is_right) {
    begin(LAYERS, NULL);
    submit(); /* refused: nobody is there */
    start(0, false);
    submit();
    t.silent = true;
    pass(100);
    CHECK_EQ(view().state, MXD_COORD_INSTALLING);
    CHECK(t.n_canaries == 1 && t.n_steps == 0); /* the request waits for the canary */
    t.silent = false;
    pass(200);
    serves_with("A");
    mxd_core_canary want = right_answer();
    CHECK(t.learned.known && t.learned.token == want.token && t.learned.digest == want.digest);
    CHECK_EQ(view().n_done, 1);
    CHECK_STR(view().left_out, "");
}

TEST(core_canary_a_newcomer_with_other_numbers_is_left_out) {
    begin(LAYERS, NULL);
    start(0, false);
    pass(200);
    start(1, true);
    submit();
    pass(2000);
    serves_with("A");
    CHECK(seen(1)->left_out && !seen(0)->left_out);
    CHECK(strstr(view().left_out, "node B "));
    CHECK_EQ(t.n_wrong_steps, 0);
    CHECK_EQ(view().n_done, 1);
    int64_t epochs = (int64_t)view().n_epochs;
    pass(70000); /* it is not tried again and again */
    CHECK_EQ(view().n_epochs, epochs);
    stop(1);
    CHECK_STR(view().left_out, "");
    start(1, false); /* with the right files */
    pass(2000);
    serves_with("AB");
    CHECK_STR(view().left_out, "");
}

TEST(core_canary_after_a_restart_the_wrong_one_is_found) {
    mxd_core_canary known = right_answer();
    for (int bad = 0; bad < 3; bad++) {
        begin(LAYERS / 2, &known);
        for (int i = 0; i < 3; i++) start(i, i == bad);
        submit();
        pass(10000);
        serves_with(bad == 0 ? "BC" : bad == 1 ? "AC" : "AB");
        CHECK(seen(bad)->left_out);
        CHECK_EQ(view().n_done, 1);
        CHECK_EQ(t.n_wrong_steps, 0);
    }
}

TEST(core_canary_two_wrong_ones_are_found_where_one_can_serve_alone) {
    mxd_core_canary known = right_answer();
    begin(LAYERS, &known);
    for (int i = 0; i < 4; i++) start(i, i % 2);
    submit();
    pass(60000);
    serves_with("AC");
    CHECK(seen(1)->left_out && seen(3)->left_out);
    CHECK_EQ(t.n_wrong_steps, 0);
    CHECK_EQ(view().n_done, 1);
}

/* Nobody can say which of the two it is. */
TEST(core_canary_nodes_that_need_each_other) {
    mxd_core_canary known = right_answer();
    begin(LAYERS / 2, &known);
    start(0, false);
    start(1, true);
    pass(30000);
    CHECK(view().state != MXD_COORD_SERVING && view().n_epochs < 12);
    CHECK_EQ(t.n_steps, 0);
    CHECK(strstr(view().why, "other numbers"));
    CHECK(!seen(0)->left_out && !seen(1)->left_out);
    stop(1);
    start(1, false);
    pass(20000);
    serves_with("AB");
}

/* Numbers may change later: bad memory. All of that plan are suspects then. */
TEST(core_canary_a_proven_node_may_fail_later) {
    begin(LAYERS, NULL);
    start(0, false);
    start(1, false);
    pass(1000);
    serves_with("AB");
    t.wrong[1] = true;
    start(2, false);
    pass(20000);
    serves_with("AC");
    CHECK(seen(1)->left_out);
}

TEST(core_canary_is_for_bit_exact_plans) {
    mxd_core_canary known = right_answer();
    begin(LAYERS, &known);
    t.determinism = "per-node";
    start(0, true);
    pass(500);
    serves_with("A");
    CHECK_EQ(t.n_canaries, 0);
}

TEST(core_canary_that_does_not_come_back_makes_a_new_epoch) {
    begin(LAYERS, NULL);
    start(0, false);
    t.silent = true;
    pass(60000);
    CHECK(view().n_epochs >= 2 && view().state != MXD_COORD_SERVING);
    t.silent = false;
    t.n_todo = 0;
    pass(60000);
    serves_with("A");
    begin(LAYERS, NULL);
    start(0, false);
    t.silent = true;
    pass(100);
    mxd_coord_event e = {.kind = MXD_COORD_NACK, .link = link_of(0)};
    e.nack = (mxd_core_nack){t.todo[0].epoch, t.todo[0].step, MXD_E_STALE};
    give(e);
    CHECK_EQ(view().n_epochs, 2);
    free(t.memory);
    t.memory = NULL;
}
