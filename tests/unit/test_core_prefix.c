/* Which KV a request begins with: what the coordinator decides, frame by frame. */
#include <stdlib.h>
#include "cluster/core.h"
#include "test.h"

enum { CTX = 64, PAGE = 4, ROWS = 8, MAX_STEPS = 400, MAX_REQUESTS = 40 };

typedef struct sent {
    uint64_t epoch, step;
    int n;
    mxd_core_run runs[8];
} sent;

static struct {
    void *memory;
    mxd_coord *c;
    uint64_t link;
    sent steps[MAX_STEPS]; /* all of them; those from `answered` on are in flight */
    int n, answered;
    mxd_core_done done[MAX_REQUESTS];
    bool ended[MAX_REQUESTS];
} t;

static mxd_rc plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                   int n_avoid, mxd_plan *out, mxd_err *err) {
    (void)ctx, (void)nodes, (void)n, (void)avoid, (void)n_avoid, (void)err;
    memset(out, 0, sizeof *out);
    out->n_stages = 1;
    out->stages[0] = (mxd_plan_stage){
        .n_ranks = 1, .ranks[0].share = 1, .layer1 = 1, .embed = true, .head = true};
    return MXD_OK;
}

static void give(mxd_coord_event e) {
    mxd_coord_actions out;
    e.now_ms = 1000;
    mxd_coord_step(t.c, &e, &out);
    mxd_coord_check(t.c);
    for (int i = 0; i < out.n; i++) {
        const mxd_coord_action *a = &out.list[i];
        if (a->kind == MXD_ACT_DONE) {
            t.done[a->request] = a->done;
            t.ended[a->request] = true;
        }
        if (a->kind != MXD_ACT_STEP) continue;
        CHECK(t.n < MAX_STEPS && a->n_runs <= 8);
        sent *s = &t.steps[t.n++];
        *s = (sent){.epoch = a->epoch, .step = a->step, .n = a->n_runs};
        memcpy(s->runs, a->runs, (size_t)a->n_runs * sizeof *a->runs);
    }
}

static void serve(void) { /* a worker comes and the one before goes: a new epoch */
    mxd_coord_view v;
    mxd_node_info info = {.id = {(char)('A' + t.link)}, .address = "1.2.3.4:5"};
    info.incarnation = ++t.link;
    give((mxd_coord_event){.kind = MXD_COORD_HELLO, .link = t.link, .hello = &info});
    if (t.link > 1) give((mxd_coord_event){.kind = MXD_COORD_GONE, .link = t.link - 1});
    t.answered = t.n;
    mxd_coord_view_get(t.c, &v);
    give((mxd_coord_event){.kind = MXD_COORD_READY,
                           .link = t.link,
                           .ready = {.epoch = v.epoch, .determinism = "bit-exact"}});
    mxd_coord_view_get(t.c, &v);
    CHECK_EQ(v.state, MXD_COORD_SERVING);
}

static void begin_with(mxd_coord_cfg cfg) {
    free(t.memory);
    memset(&t, 0, sizeof t);
    cfg.plan = plan;
    cfg.n_layers = 1;
    cfg.n_vocab = 1000;
    cfg.ctx = CTX;
    cfg.max_rows = ROWS;
    cfg.page = PAGE;
    t.memory = malloc(mxd_coord_bytes(&cfg));
    CHECK(t.memory);
    t.c = mxd_coord_init(t.memory, &cfg);
    CHECK(t.c);
    serve();
}

static void end(void) {
    free(t.memory);
    t.memory = NULL;
}

/* A prompt that is numbers of list `a` up to `n_a`, then of list `b`. */
static void submit(uint64_t request, int a, int n_a, int b, int n_b, int max_tokens) {
    static mxd_core_submit s[MAX_REQUESTS];
    static int32_t prompt[MAX_REQUESTS][CTX];
    for (int i = 0; i < n_a + n_b; i++) prompt[request][i] = (i < n_a ? a : b) * CTX + i;
    s[request] = (mxd_core_submit){.request = request,
                                   .prompt = prompt[request],
                                   .n_prompt = n_a + n_b,
                                   .max_tokens = max_tokens};
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &s[request]});
}

/* The oldest step comes back. Tokens are numbers of list 9: an answer can be part of a prompt. */
static void answer(void) {
    CHECK(t.answered < t.n);
    const sent *s = &t.steps[t.answered++];
    struct mxd_core_result_run runs[8] = {0};
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    e.result = (mxd_core_result){.epoch = s->epoch, .step = s->step, .runs = runs};
    for (int i = 0; i < s->n; i++) {
        if (!s->runs[i].sample) continue;
        struct mxd_core_result_run *r = &runs[e.result.n++];
        r->request = s->runs[i].request;
        r->pos = s->runs[i].pos + s->runs[i].n;
        r->sampled.token = 9 * CTX + (int32_t)r->pos;
    }
    give(e);
}

static void answer_all(void) {
    while (t.answered < t.n) answer();
}

static void cancel(uint64_t request) {
    give((mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = request});
}

/* The first run of a request in the last epoch; NULL: none yet. */
static const mxd_core_run *first_run(uint64_t request) {
    for (int i = 0; i < t.n; i++)
        for (int k = 0; k < t.steps[i].n && t.steps[i].epoch == t.steps[t.n - 1].epoch; k++)
            if (t.steps[i].runs[k].request == request) return &t.steps[i].runs[k];
    return NULL;
}

static void check_first(uint64_t request, int slot, int pos, int from, uint64_t from_request) {
    const mxd_core_run *r = first_run(request);
    if (!r) fail_msg("request %d has not begun", (int)request);
    CHECK_EQ(r->slot, slot);
    CHECK_EQ(r->pos, pos);
    CHECK_EQ(r->begin, pos > 0);
    if (pos) CHECK_EQ(r->from, from);
    if (pos) CHECK_EQ(r->from_request, from_request);
}

TEST(prefix_the_next_turn_of_a_chat_goes_on_in_its_slot) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    submit(1, 1, 10, 0, 0, 3);
    answer_all();
    check_first(1, 0, 0, 0, 0);
    CHECK_EQ(t.done[1].n_cached, 0);
    submit(2, 1, 10, 9, 8, 1); /* its answer, of which the last token was never sent, and more */
    check_first(2, 0, 12, 0, 1);
    answer_all();
    CHECK_EQ(t.done[2].n_cached, 12);
    submit(3, 1, 10, 9, 8, 1); /* the same again: the last token is computed */
    check_first(3, 0, 17, 0, 2);
    answer_all();
    CHECK_EQ(t.done[3].n_cached, 17);
    submit(4, 1, 7, 5, 2, 1); /* cut back in the middle of a page of its own */
    answer_all();
    submit(5, 1, 7, 5, 1, 1);
    check_first(5, 1, 7, 1, 4);
    answer_all();
    mxd_coord_view v;
    mxd_coord_view_get(t.c, &v);
    CHECK_EQ(v.n_cached_tokens, 12 + 17 + 4 + 7);
    CHECK_EQ(v.n_prompt_tokens, 10 + 18 + 18 + 9 + 8);
    end();
}

TEST(prefix_common_beginnings_share_whole_pages) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    submit(1, 1, 10, 2, 20, 1);
    answer_all();
    submit(2, 1, 10, 3, 5, 40); /* most of slot 0 would be lost: another slot shares its pages */
    check_first(2, 1, 8, 0, 1);
    submit(3, 1, 10, 4, 5, 40);
    check_first(3, 2, 8, 0, 1);
    cancel(2);
    submit(4, 1, 10, 3, 5, 1);
    answer(), answer();
    check_first(4, 1, 14, 1, 2); /* back in its own slot */
    answer_all();
    submit(5, 1, 10, 2, 6, 1);
    check_first(5, 0, 15, 0, 1); /* behind what is shared */
    answer_all();
    submit(6, 6, 5, 0, 0, 40);
    submit(7, 7, 5, 0, 0, 40);
    answer();
    submit(8, 1, 6, 8, 1, 1); /* among what is shared: at a page's edge */
    answer_all();
    check_first(8, 0, 4, 0, 5);
    end();
}

TEST(prefix_the_slot_nobody_used_for_longest_is_taken) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    for (uint64_t i = 1; i <= 3; i++) {
        submit(i, (int)i, 20, 0, 0, 1);
        answer_all();
        check_first(i, (int)i - 1, 0, 0, 0);
    }
    submit(4, 1, 8, 4, 8, 1); /* slot 0 was of use just now */
    check_first(4, 1, 8, 0, 1);
    answer_all();
    submit(5, 5, 8, 0, 0, 1);
    check_first(5, 2, 0, 0, 0);
    answer_all();
    submit(6, 6, 8, 0, 0, 1);
    check_first(6, 0, 0, 0, 0);
    end();
}

TEST(prefix_who_begins_alike_waits_for_the_first) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    submit(1, 1, 30, 0, 0, 9);
    submit(2, 1, 30, 0, 0, 9);
    submit(3, 1, 17, 3, 3, 9);
    CHECK_EQ(t.n, 2); /* in flight: 16 tokens of request 1 */
    answer();
    CHECK(!first_run(2));
    check_first(3, 2, 16, 0, 1);
    answer();
    answer();
    check_first(2, 1, 28, 0, 1);
    answer_all();
    CHECK(t.ended[1] && t.ended[2] && t.ended[3]);
    CHECK_EQ(t.done[1].n_cached, 0);
    CHECK_EQ(t.done[2].n_cached, 28);
    CHECK_EQ(t.done[3].n_cached, 16);
    end();
}

TEST(prefix_who_waited_takes_what_there_is_when_the_first_ends) {
    begin_with((mxd_coord_cfg){.n_slots = 2});
    submit(1, 1, 40, 0, 0, 9);
    submit(2, 1, 40, 0, 0, 9);
    CHECK(!first_run(2));
    cancel(1);
    answer();
    check_first(2, 1, 16, 0, 1);
    answer_all();
    CHECK_EQ(t.done[2].n_cached, 16);
    end();
}

TEST(prefix_whose_source_is_taken_begins_without) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    submit(1, 1, 20, 0, 0, 1);
    answer_all();
    submit(2, 2, 40, 0, 0, 9); /* keeps the pipeline full */
    submit(3, 1, 8, 3, 30, 1); /* is to begin with slot 0, when there is room */
    CHECK(!first_run(3));
    submit(4, 1, 19, 4, 1, 1); /* takes slot 0 itself */
    submit(5, 5, 20, 0, 0, 1);
    answer();
    answer();
    answer_all();
    check_first(4, 0, 19, 0, 1);
    check_first(3, 2, 0, 0, 0);
    CHECK(t.ended[2] && t.ended[3] && t.ended[4] && t.ended[5]);
    end();
}

TEST(prefix_a_new_epoch_holds_nothing) {
    begin_with((mxd_coord_cfg){.n_slots = 3});
    submit(1, 1, 20, 0, 0, 1);
    answer_all();
    submit(2, 1, 20, 2, 9, 9);
    check_first(2, 0, 20, 0, 1);
    submit(3, 1, 20, 3, 9, 9);
    answer(), answer();
    check_first(3, 1, 20, 0, 2);
    serve();
    check_first(2, 0, 0, 0, 0); /* the replay begins at the beginning */
    CHECK(!first_run(3));       /* and shares again */
    answer(), answer();
    check_first(3, 1, 20, 0, 2);
    answer_all();
    CHECK_EQ(t.done[2].n_cached, 20); /* as it was the first time */
    CHECK_EQ(t.done[2].n_replays, 1);
    serve();
    submit(4, 1, 20, 2, 9, 1); /* idle slots are cold, too */
    check_first(4, 0, 0, 0, 0);
    end();
}

TEST(prefix_recurrent_state_is_reused_whole_or_where_it_was_kept) {
    begin_with((mxd_coord_cfg){.n_slots = 2, .recurrent = true});
    submit(1, 1, 10, 0, 0, 3);
    CHECK(first_run(1)->keep); /* 7 of 10: half a page and one before the end */
    CHECK_EQ(first_run(1)->n, 7);
    answer_all();
    submit(2, 1, 10, 9, 8, 1);
    check_first(2, 0, 12, 0, 1); /* prompt and answer */
    CHECK(first_run(2)->keep);
    CHECK_EQ(first_run(2)->n, 3);
    answer_all();
    submit(3, 1, 10, 9, 8, 1); /* all of it is there, but one token must be computed */
    check_first(3, 0, 15, 0, 2);
    CHECK(!first_run(3)->keep); /* it still is */
    answer_all();
    submit(4, 1, 10, 4, 4, 1); /* less than what was kept */
    check_first(4, 1, 0, 0, 0);
    submit(5, 1, 10, 4, 9, 1); /* nobody waits for another's state */
    answer();
    check_first(5, 0, 0, 0, 0);
    answer_all();
    submit(6, 1, 10, 9, 8, 1); /* what was kept went with its sequence */
    check_first(6, 1, 0, 0, 0);
    end();
}

TEST(prefix_cache_can_be_off) {
    begin_with((mxd_coord_cfg){.n_slots = 2, .no_prefix_cache = true});
    for (uint64_t i = 1; i <= 3; i++) {
        submit(i, 1, 12, 0, 0, 1);
        check_first(i, 0, 0, 0, 0);
        answer_all();
        CHECK_EQ(t.done[i].n_cached, 0);
    }
    submit(4, 1, 12, 0, 0, 5);
    submit(5, 1, 12, 0, 0, 5);
    answer_all();
    check_first(5, 1, 0, 0, 0);
    end();
}
