/* The coordinator's decisions under whatever peers say, in whatever order and at whatever times:
 * its invariants hold after every event, and a request gets its tokens in order and one end.
 *
 * A byte chooses what happens, those behind it how: mostly what fits the moment, so that a random
 * input gets as far as answers; a byte of 240 and more makes a value wrong. */
#include <stdlib.h>
#include <string.h>

#include "cluster/core.h"
#include "fuzz.h"

enum {
    LAYERS = 6,
    CTX = 24,
    SLOTS = 2,
    NODES = 5,
    REQUESTS = 24,
    HELD = 16,
    RUNS = SLOTS,
    STOP = 7
};

typedef struct held { /* a step that nobody has answered */
    uint64_t epoch, step;
    int n;
    struct mxd_core_result_run runs[RUNS]; /* of those that sample */
} held;

static struct {
    const uint8_t *at, *end;
    mxd_coord *c;
    int64_t now;
    uint64_t epoch, incarnation, spawn[NODES];
    int capacity; /* layers of a node */
    mxd_core_submit submit[REQUESTS];
    uint32_t n_tokens[REQUESTS];
    bool ended[REQUESTS];
    int n_submitted;
    held steps[HELD];
    int n_steps;
} t;

static int byte(void) { return t.at < t.end ? *t.at++ : 0; }

/* The value, or one that is wrong. */
static uint64_t near(uint64_t value) {
    int b = byte();
    return b < 240   ? value
           : b < 250 ? value + (uint64_t)(b - 245)
                     : UINT64_MAX / (uint64_t)(b - 249);
}

/* Stages of one node, or of two ranks. */
static mxd_rc plan(void *ctx, const mxd_plan_node *nodes, int n, const mxd_plan_link *avoid,
                   int n_avoid, mxd_plan *out, mxd_err *err) {
    (void)ctx, (void)nodes, (void)avoid, (void)n_avoid;
    int each = n > 3 ? 2 : 1, n_stages = n / each;
    if (n * t.capacity < LAYERS) return mxd_fail(err, MXD_E_NOFIT, "too small");
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n_stages; i++) {
        mxd_plan_stage *s = &out->stages[out->n_stages++];
        *s = (mxd_plan_stage){.layer0 = LAYERS * i / n_stages,
                              .layer1 = LAYERS * (i + 1) / n_stages,
                              .embed = i == 0,
                              .head = i == n_stages - 1,
                              .n_ranks = each};
        for (int r = 0; r < each; r++)
            s->ranks[r] = (mxd_plan_rank){.node = i * each + r, .share = 1.0 / each};
    }
    return MXD_OK;
}

static void must(bool ok) {
    if (!ok) abort();
}

static void hold(const mxd_coord_action *a) {
    held *h = &t.steps[t.n_steps++ % HELD];
    *h = (held){.epoch = a->epoch, .step = a->step};
    for (int i = 0; i < a->n_runs && h->n < RUNS; i++)
        if (a->runs[i].sample)
            h->runs[h->n++] = (struct mxd_core_result_run){.request = a->runs[i].request,
                                                           .pos = a->runs[i].pos + a->runs[i].n};
}

static void take(const mxd_coord_action *a) {
    uint64_t k = a->request - 1; /* requests are 1, 2, ... */
    if (a->kind == MXD_ACT_STEP) hold(a);
    if (a->kind == MXD_ACT_INSTALL) t.epoch = a->epoch;
    if (a->kind == MXD_ACT_SPAWN && a->node < NODES) t.spawn[a->node] = a->spawn;
    if (a->kind == MXD_ACT_TOKEN) {
        must(k < REQUESTS && !t.ended[k] && a->index == t.n_tokens[k]);
        const mxd_core_submit *q = &t.submit[k];
        bool may_stop = !q->ignore_eos && (int)a->index + 1 > q->min_tokens;
        t.n_tokens[k]++;
        must(a->stop == (may_stop && a->sampled->token == STOP));
    }
    if (a->kind != MXD_ACT_DONE && a->kind != MXD_ACT_REFUSED) return;
    must(k < REQUESTS && !t.ended[k]);
    if (a->kind == MXD_ACT_DONE) must(a->done.n_out == (int)t.n_tokens[k]);
    t.ended[k] = true;
}

static void give(mxd_coord_event e) {
    mxd_coord_actions out;
    e.now_ms = t.now;
    mxd_coord_step(t.c, &e, &out);
    mxd_coord_check(t.c);
    for (int i = 0; i < out.n; i++) take(&out.list[i]);
}

static void say_hello(void) {
    int b = byte(), node = b % NODES;
    if (b >= 128) t.incarnation++;
    mxd_node_info info = {.incarnation = t.incarnation,
                          .epoch = near(t.epoch) % MXD_CORE_MAX_EPOCH};
    info.id[0] = (char)('A' + node);
    strcpy(info.address, "1.2.3.4:5");
    if (byte() >= 250) memset(&info, 0x41, sizeof info); /* nothing ends */
    give((mxd_coord_event){
        .kind = MXD_COORD_HELLO, .link = (uint64_t)node + 1 + NODES * (b / 64u), .hello = &info});
}

static void submit(void) {
    static const int32_t prompt[CTX + 2] = {3, 1, 4, 1, 5, 9, 2, 6}, stop = STOP;
    if (t.n_submitted == REQUESTS) return;
    int k = t.n_submitted++, b = byte();
    t.submit[k] = (mxd_core_submit){.request = (uint64_t)k + 1,
                                    .prompt = prompt,
                                    .n_prompt = 1 + byte() % (CTX + 1),
                                    .max_tokens = 1 + b % 16,
                                    .min_tokens = b & 16 ? 3 : 0,
                                    .stop_ids = &stop,
                                    .n_stop_ids = 1,
                                    .ignore_eos = b & 32,
                                    .deadline_ms = b >= 224 ? t.now + b : 0,
                                    .resumable = b & 64};
    give((mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &t.submit[k]});
}

static void answer(void) {
    int b = byte();
    if (!t.n_steps) return;
    held h = t.steps[(t.n_steps - 1 - (b >= 192 ? b % HELD : 0) + HELD) % HELD];
    for (int i = 0; i < h.n; i++) {
        h.runs[i].request = near(h.runs[i].request);
        h.runs[i].pos = (uint32_t)near(h.runs[i].pos);
        h.runs[i].sampled.token = byte() % 32;
    }
    mxd_coord_event e = {.kind = MXD_COORD_RESULT};
    e.result = (mxd_core_result){.epoch = near(h.epoch),
                                 .step = near(h.step),
                                 .n = (int)(near((uint64_t)h.n) % (RUNS + 1)),
                                 .runs = h.runs};
    give(e);
}

/* What comes over the link of a node. */
static void say(mxd_coord_event_kind kind) {
    mxd_coord_event e = {.kind = kind, .link = (uint64_t)(byte() % (2 * NODES + 2))};
    uint64_t epoch = near(t.epoch);
    if (kind == MXD_COORD_BEAT)
        e.beat = (mxd_core_beat){.epoch = epoch,
                                 .last_step = near((uint64_t)t.n_steps),
                                 .step_age_ms = (int64_t)near(0),
                                 .waits = (int)near(0)};
    if (kind == MXD_COORD_READY)
        e.ready = (mxd_core_ready){.epoch = epoch, .bytes = near(5), .determinism = "bit-exact"};
    if (kind == MXD_COORD_FAILED)
        e.failed = (mxd_core_failed){epoch, (mxd_rc)(byte() % MXD_RC_COUNT), NULL};
    if (kind == MXD_COORD_NACK)
        e.nack = (mxd_core_nack){epoch, near(1), (mxd_rc)(byte() % MXD_RC_COUNT)};
    if (kind == MXD_COORD_NEIGHBOUR_DOWN)
        e.neighbour = (mxd_core_neighbour){epoch, (int)near((uint64_t)(byte() % NODES))};
    give(e);
}

static void happen(void) {
    static const mxd_coord_event_kind said[] = {
        MXD_COORD_BEAT, MXD_COORD_READY, MXD_COORD_READY, MXD_COORD_FAILED,
        MXD_COORD_NACK, MXD_COORD_GONE,  MXD_COORD_LEAVE, MXD_COORD_NEIGHBOUR_DOWN};
    int what = byte() % 20;
    if (what < 8)
        say(said[what]);
    else if (what < 10)
        say_hello();
    else if (what < 12)
        submit();
    else if (what < 16)
        answer();
    else if (what == 16)
        give((mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = (uint64_t)(byte() % REQUESTS)});
    else if (what == 17 && byte() >= 250)
        give((mxd_coord_event){.kind = MXD_COORD_DRAIN});
    else if (what == 18) {
        int node = byte() % NODES;
        give((mxd_coord_event){.kind = MXD_COORD_EXITED, .exited = {node, near(t.spawn[node])}});
    } else {
        int b = byte();
        t.now += b < 200 ? b : 40 * b;
        give((mxd_coord_event){.kind = MXD_COORD_TICK});
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const ids[] = {"A", "B"};
    memset(&t, 0, sizeof t);
    t.at = data;
    t.end = data + size;
    int b = byte();
    t.capacity = 1 + b % LAYERS;
    const mxd_coord_cfg cfg = {.plan = plan,
                               .n_layers = LAYERS,
                               .n_vocab = 32,
                               .ctx = CTX,
                               .n_slots = SLOTS,
                               .max_rows = 8,
                               .page = 4,
                               .local_ids = ids,
                               .n_local = b / 16 % 3,
                               .recurrent = b & 64,
                               .canary = b & 128};
    void *memory = malloc(mxd_coord_bytes(&cfg));
    if (!memory) return 0;
    t.c = mxd_coord_init(memory, &cfg);
    t.now = 1000;
    give((mxd_coord_event){.kind = MXD_COORD_TICK});
    while (t.at < t.end) happen();
    free(memory);
    return 0;
}
