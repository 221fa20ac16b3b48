#include "core_kit.h"
#include <stdlib.h>

struct core_kit t;

/* Stages of `together` ranks each, as far as there are nodes. */
mxd_rc kit_plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                int n_avoid, mxd_plan *out, mxd_err *err) {
    (void)ctx, (void)avoid, (void)n_avoid;
    for (int i = 0; i < n && i < 4; i++) t.bandwidth[i] = nodes[i].bandwidth_bytes_per_s;
    int each = t.together ? t.together : 1, n_stages = (n + each - 1) / each;
    if (n * t.capacity < LAYERS) return mxd_fail(err, MXD_E_NOFIT, "too small");
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n_stages; i++) {
        mxd_plan_stage *s = &out->stages[out->n_stages++];
        *s = (mxd_plan_stage){.layer0 = LAYERS * i / n_stages,
                              .layer1 = LAYERS * (i + 1) / n_stages,
                              .embed = i == 0,
                              .head = i == n_stages - 1,
                              .decode_ms = t.decode_ms,
                              .n_ranks = n - i * each < each ? n - i * each : each};
        for (int r = 0; r < s->n_ranks; r++)
            s->ranks[r] = (mxd_plan_rank){.node = i * each + r, .share = 1.0 / s->n_ranks};
        if (t.first > 0) s->ranks[0].share = t.first;
    }
    return MXD_OK;
}

void give(mxd_coord_event e) {
    mxd_coord_actions out;
    e.now_ms = t.now;
    mxd_coord_step(t.c, &e, &out);
    mxd_coord_check(t.c);
    for (int i = 0; i < out.n && t.n < MAX_ACTIONS; i++, t.n++) {
        t.list[t.n] = out.list[i];
        if (out.list[i].kind == MXD_ACT_TOKEN) t.sampled[t.n] = *out.list[i].sampled;
        if (out.list[i].kind == MXD_ACT_STEP) t.runs[t.n] = out.list[i].runs[0];
    }
}

void clear(void) { t.n = 0; }
int find(mxd_coord_action_kind kind) { /* the last one; -1 */
    for (int i = t.n - 1; i >= 0; i--)
        if (t.list[i].kind == kind) return i;
    return -1;
}

const mxd_coord_action *did(mxd_coord_action_kind kind) {
    int i = find(kind);
    return i < 0 ? NULL : &t.list[i];
}

int count(mxd_coord_action_kind kind) {
    int n = 0;
    for (int i = 0; i < t.n; i++) n += t.list[i].kind == kind;
    return n;
}

mxd_coord_view view(void) {
    mxd_coord_view v;
    mxd_coord_view_get(t.c, &v);
    return v;
}

void end(void) {
    free(t.memory);
    t.memory = NULL;
}

void begin_with(int n_local) {
    static const char *const ids[] = {"A", "B", "C"};
    end();
    t.cfg = (mxd_coord_cfg){.plan = kit_plan,
                            .n_layers = LAYERS,
                            .n_vocab = 100,
                            .ctx = CTX,
                            .n_slots = t.n_slots ? t.n_slots : SLOTS,
                            .max_rows = 16,
                            .local_ids = ids,
                            .n_local = n_local};
    t.memory = malloc(mxd_coord_bytes(&t.cfg));
    CHECK(t.memory);
    memset(t.memory, 0xa5, mxd_coord_bytes(&t.cfg));
    t.c = mxd_coord_init(t.memory, &t.cfg);
    t.now = 1000;
    t.capacity = LAYERS;
    t.together = 0;
    t.first = t.decode_ms = 0;
    clear();
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
}

void hello(uint64_t link, const char *id, uint64_t incarnation) {
    mxd_node_info info = {.incarnation = incarnation, .address = "1.2.3.4:5"};
    snprintf(info.id, sizeof info.id, "%s", id);
    give((mxd_coord_event){.kind = MXD_COORD_HELLO, .link = link, .hello = &info});
}

void beat(uint64_t link) {
    give((mxd_coord_event){.kind = MXD_COORD_BEAT, .link = link, .beat = {.epoch = view().epoch}});
}

void ready(uint64_t link) {
    give((mxd_coord_event){
        .kind = MXD_COORD_READY,
        .link = link,
        .ready = {.epoch = view().epoch, .bytes = 5, .determinism = "bit-exact"}});
}

void gone(uint64_t link) { give((mxd_coord_event){.kind = MXD_COORD_GONE, .link = link}); }

/* Time passes; the nodes with these links go on beating. */
void pass(int64_t ms, uint64_t a, uint64_t b) {
    for (int64_t to = t.now + ms; t.now < to;) {
        t.now += to - t.now < 50 ? to - t.now : 50;
        if (a) beat(a);
        if (b) beat(b);
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
}

const int32_t prompt[CTX] = {1, 2, 3, 4, 5, 6, 7, 8};
const int32_t stops[1] = {99};

void submit(uint64_t request, int n_prompt, int max_tokens) {
    static mxd_core_submit s[512];
    s[request] = (mxd_core_submit){.request = request,
                                   .prompt = prompt,
                                   .n_prompt = n_prompt,
                                   .max_tokens = max_tokens,
                                   .stop_ids = stops,
                                   .n_stop_ids = 1,
                                   .resumable = true};
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &s[request]});
}

void cancel(uint64_t request) {
    give((mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = request});
}

/* Answers the last STEP, which has one run. */
void answer_at(uint32_t pos, int32_t token, uint64_t epoch) {
    int i = find(MXD_ACT_STEP);
    CHECK(i >= 0);
    struct mxd_core_result_run run = {.request = t.runs[i].request, .pos = pos};
    run.sampled.token = token;
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    e.result = (mxd_core_result){.epoch = epoch, .step = t.list[i].step, .n = 1, .runs = &run};
    give(e);
}

void answer(int32_t token) {
    int i = find(MXD_ACT_STEP);
    CHECK(i >= 0);
    answer_at(t.runs[i].pos + t.runs[i].n, token, t.list[i].epoch);
}

/* Answers every step of this epoch since the last `clear`, in order; the last one samples. */
void answer_chunks(int32_t token) {
    int last = find(MXD_ACT_STEP);
    CHECK(last >= 0);
    for (int k = 0; k <= last; k++) {
        if (t.list[k].kind != MXD_ACT_STEP || t.list[k].epoch != t.list[last].epoch) continue;
        struct mxd_core_result_run run = {.request = t.runs[k].request,
                                          .pos = t.runs[k].pos + t.runs[k].n};
        run.sampled.token = token;
        mxd_coord_event e = {.kind = MXD_COORD_RESULT};
        e.result = (mxd_core_result){
            .epoch = t.list[k].epoch, .step = t.list[k].step, .n = t.runs[k].sample, .runs = &run};
        give(e);
    }
}

void serving_two(void) { /* remote nodes X on link 1, Y on link 2 */
    begin_with(0);
    hello(1, "X", 11);
    hello(2, "Y", 21);
    ready(1); /* the plan with X alone */
    ready(1); /* and with both, made because nothing runs */
    ready(2);
    CHECK_EQ(view().state, MXD_COORD_SERVING);
    CHECK_EQ(view().plan->n_stages, 2);
    clear();
}
