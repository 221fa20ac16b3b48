#include "test.h"

#include <math.h>
#include "base/rand.h"
#include "plan/plan.h"
#include "plan/search.h"

static mxd_model_sizes model_of(int layers, uint64_t layer_bytes) {
    mxd_model_sizes m = {.n_layers = layers,
                         .embed_bytes = 500000000,
                         .head_bytes = 500000000,
                         .tied = true,
                         .scratch_bytes = 50000000,
                         .hidden_bytes = 8192,
                         .layer_ops = (double)layer_bytes,
                         .head_ops = 5e8};
    for (int i = 0; i < layers; i++) {
        m.layer_bytes[i] = layer_bytes;
        m.layer_kv_bytes[i] = 4096;
    }
    return m;
}

/* KV heads, 64 steps of inner values, token ids. */
static void cuts_of(mxd_model_cuts *c, int n_kv, int n_vocab, double head_per_id) {
    *c = (mxd_model_cuts){.possible = true, .head_per_id = head_per_id, .norm_bytes = 4096};
    for (int a = 0; a < MXD_AXES; a++) c->step[a] = 1;
    c->count[MXD_BY_KV] = n_kv;
    c->count[MXD_BY_INNER] = 4096;
    c->step[MXD_BY_INNER] = 64;
    c->count[MXD_BY_TOKEN] = n_vocab;
    c->step[MXD_BY_TOKEN] = 16;
    c->in[MXD_BY_KV] = 256 * n_kv;
    c->block[MXD_BY_KV] = 256;
    c->in[MXD_BY_INNER] = 4096;
    c->block[MXD_BY_INNER] = 64;
}

static mxd_plan_node node_of(const char *name, double gb, double bandwidth_gb) {
    mxd_plan_node n = {.memory_bytes = (uint64_t)(gb * 1e9),
                       .free_bytes = (uint64_t)(gb * 1e9),
                       .bandwidth_bytes_per_s = bandwidth_gb * 1e9,
                       .ops_per_s = bandwidth_gb * 20e9};
    snprintf(n.name, sizeof n.name, "%s", name);
    return n;
}

static void check_covers(const mxd_plan *p, int layers) {
    int at = 0;
    for (int i = 0; i < p->n_stages; i++) {
        CHECK_EQ(p->stages[i].layer0, at);
        CHECK(p->stages[i].layer1 > at);
        CHECK_EQ(p->stages[i].embed, i == 0);
        CHECK_EQ(p->stages[i].head, i == p->n_stages - 1);
        at = p->stages[i].layer1;
        for (int k = 0; k < i; k++) CHECK(p->stages[k].ranks[0].node != p->stages[i].ranks[0].node);
    }
    CHECK_EQ(at, layers);
    CHECK(p->n_reasons > 0 && p->decode_tokens_per_s > 0 && p->prefill_tokens_per_s > 0);
}

TEST(plan_one_node) {
    mxd_model_sizes m = model_of(28, 50000000);
    mxd_plan_node n = node_of("a", 16, 100);
    mxd_plan_opts o = {.ctx = 4096, .parallel = 4};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, &n, 1, NULL, 0, &o, &err), &err);
    check_covers(&p, 28);
    CHECK_EQ(p.stages[0].ranks[0].weight_bytes, 28ull * 50000000 + 500000000); /* tied: held once */
    CHECK_EQ(p.stages[0].ranks[0].kv_bytes, 28ull * 4096 * 4096 * 4);
    /* 1.9 GB of weights and 512 positions of KV at 100 GB/s, and what nobody measured */
    double want = 1 / ((1.9e9 + 28 * 4096 * 512.0) / 100e9 + 28 * 8 * 4e-7 + (2 + 8) * 5e-6 +
                       28 * 50000 / (2e12 / 300));
    CHECK(fabs(p.decode_tokens_per_s / want - 1) < 1e-6);
}

/* Recurrent state is paid once a sequence, whatever the context. */
TEST(plan_counts_recurrent_state) {
    mxd_model_sizes m = model_of(28, 50000000);
    mxd_plan_node n = node_of("a", 16, 100);
    mxd_plan_opts o = {.ctx = 4096, .parallel = 4};
    mxd_plan p;
    mxd_err err = {0};
    for (int i = 0; i < 28; i++) {
        if (i % 4 == 3) continue;
        m.layer_kv_bytes[i] = 0;
        m.layer_state_bytes[i] = 4000000;
    }
    CHECK_OK(mxd_plan_make(&p, &m, &n, 1, NULL, 0, &o, &err), &err);
    CHECK_EQ(p.stages[0].ranks[0].kv_bytes, (7ull * 4096 * 4096 + 2 * 21ull * 4000000) * 4);
    o.parallel = 200; /* 16.8 GB of state */
    o.ctx = 16;
    CHECK_EQ(mxd_plan_make(&p, &m, &n, 1, NULL, 0, &o, &err), MXD_E_NOFIT);
}

/* The example of docs/planner.md: memory alone is a bad guide. */
TEST(plan_leaves_out_what_slows_one_stream) {
    mxd_model_sizes m = model_of(48, 340000000);
    mxd_plan_node n[] = {node_of("small1", 16, 120), node_of("small2", 16, 120),
                         node_of("big", 48, 273)};
    mxd_plan_opts o = {.ctx = 4096, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    CHECK_EQ(p.n_stages, 1);
    CHECK_EQ(p.stages[0].ranks[0].node, 2);
    CHECK(strstr(p.reasons[1], "small1 is left out: with it one stream would take"));
    o.shape.objective =
        MXD_OBJECTIVE_THROUGHPUT; /* few streams: one node reads its weights once for all */
    o.parallel = 8;
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    CHECK_EQ(p.n_stages, 1);
    o.parallel = 128; /* many: arithmetic decides, and all nodes have some to give */
    o.ctx = 256;
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    check_covers(&p, 48);
    CHECK_EQ(p.n_stages, 3);
    CHECK(p.all_tokens_per_s > 10 * p.decode_tokens_per_s);
    for (int i = 0; i < 3; i++) {
        const mxd_plan_stage *s = &p.stages[i];
        int layers = s->layer1 - s->layer0;
        if (s->ranks[0].node == 2)
            CHECK(layers >= 24 && layers <= 28);
        else
            CHECK(layers >= 8 && layers <= 13);
    }
    o = (mxd_plan_opts){.ctx = 4096, .parallel = 1};
    n[0].must = n[1].must = true; /* one stream: the slow ones get as little as may be */
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    check_covers(&p, 48);
    CHECK_EQ(p.n_stages, 3);
}

TEST(plan_equal_local_workers_get_equal_shares) {
    mxd_model_sizes m = model_of(12, 500000);
    mxd_plan_node n[] = {node_of("w1", 4, 10), node_of("w2", 4, 10), node_of("w3", 4, 10.3)};
    for (int i = 0; i < 3; i++) n[i].must = true;
    m.embed_bytes = m.head_bytes = 100000;
    m.head_ops = 1e5;
    mxd_plan_opts o = {.ctx = 512, .parallel = 4};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    check_covers(&p, 12);
    CHECK_EQ(p.n_stages, 3);
    for (int i = 0; i < 3; i++) {
        int layers = p.stages[i].layer1 - p.stages[i].layer0;
        if (layers < 3 || layers > 5) fail_msg("stage %d got %d layers", i, layers);
    }
}

TEST(plan_unknown_speeds_and_links) {
    mxd_model_sizes m = model_of(10, 1000000);
    mxd_plan_node n[] = {node_of("a", 4, 0), node_of("b", 4, 0)};
    n[0].must = n[1].must = true;
    mxd_plan_link slow = {0, 1, 5000, 1e6};
    mxd_plan_opts o = {.ctx = 100, .parallel = 1};
    mxd_plan p, q;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
    CHECK_OK(mxd_plan_make(&q, &m, n, 2, &slow, 1, &o, &err), &err);
    CHECK(q.decode_tokens_per_s < p.decode_tokens_per_s);
    CHECK(strstr(p.reasons[p.n_reasons - 1], "is not known"));
}

TEST(plan_split_of_the_user) {
    mxd_model_sizes m = model_of(10, 1000000);
    mxd_plan_node n[] = {node_of("a", 4, 50), node_of("b", 4, 50), node_of("c", 4, 50)};
    mxd_plan_opts o = {.ctx = 100, .parallel = 1, .shape = {.n_split = 3, .split = {7, 0, 3}}};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), &err);
    check_covers(&p, 10);
    CHECK_EQ(p.n_stages, 2);
    CHECK_EQ(p.stages[0].layer1, 7);
    CHECK_EQ(p.stages[1].ranks[0].node, 2);
    static const struct {
        int split[3];
        const char *says;
    } bad[] = {{{7, 0, 2}, "gives out 9 layers, the model has 10"},
               {{7, 0, 4}, "more than the model's 10 layers"},
               {{-1, 8, 3}, "more than"},
               {{2147483647, 2147483647, 1}, "more than"}};
    for (size_t i = 0; i < MXD_COUNT(bad); i++) {
        memcpy(o.shape.split, bad[i].split, sizeof bad[i].split);
        CHECK_EQ(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), MXD_E_INVAL);
        if (!strstr(err.msg, bad[i].says)) fail_msg("row %zu: %s", i, err.msg);
    }
    o.shape.n_split = 4;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), MXD_E_INVAL);
}

/* Layers from the last cut on are never parted, nor any when it is -1. */
TEST(plan_keeps_layers_together_that_share_keys) {
    mxd_model_sizes m = model_of(10, 1000000);
    mxd_plan_node n[] = {node_of("a", 4, 50), node_of("b", 4, 50)};
    mxd_plan_opts o = {.ctx = 100, .parallel = 1, .shape = {.objective = MXD_OBJECTIVE_THROUGHPUT}};
    mxd_plan p;
    mxd_err err = {0};
    static const struct { int last_cut, stages, at; } rows[] = {{0, 2, 9}, {3, 2, 3}, {-1, 1, 0}};
    n[0].must = true;
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        m.last_cut = rows[i].last_cut;
        n[1].must = rows[i].stages > 1;
        CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
        check_covers(&p, 10);
        CHECK_EQ(p.n_stages, rows[i].stages);
        CHECK(p.stages[p.n_stages - 1].layer0 <= rows[i].at);
    }
    static const struct {
        int last_cut, split[2];
        mxd_rc rc;
    } splits[] = {{3, {3, 7}, MXD_OK},
                  {3, {4, 6}, MXD_E_INVAL},
                  {-1, {1, 9}, MXD_E_INVAL},
                  {-1, {0, 10}, MXD_OK},
                  {0, {9, 1}, MXD_OK}};
    n[0].must = n[1].must = false;
    o.shape.n_split = 2;
    for (size_t i = 0; i < MXD_COUNT(splits); i++) {
        m.last_cut = splits[i].last_cut;
        memcpy(o.shape.split, splits[i].split, sizeof splits[i].split);
        mxd_rc rc = mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err);
        if (rc != splits[i].rc) fail_msg("split %zu: %s", i, err.msg);
        if (rc) CHECK(strstr(err.msg, "stay together"));
    }
}

/* ------------------------------------------------------------------------------------- groups */

/* 16 equal layers of about 100 MB, 8 KV heads, 64 steps of inner values. */
static mxd_model_sizes sharable(void) {
    mxd_model_sizes m = model_of(16, 0);
    m.embed_bytes = m.head_bytes = 32000 * 2000;
    m.head_ops = 32000 * 2000;
    cuts_of(&m.cuts, 8, 32000, 2000);
    for (int l = 0; l < 16; l++) {
        m.cuts.whole[l] = 20000;
        m.cuts.per[MXD_BY_KV][l] = 4000000;
        m.cuts.per[MXD_BY_INNER][l] = 16000;
        m.cuts.sum[MXD_BY_KV][l] = m.cuts.sum[MXD_BY_INNER][l] = true;
        m.layer_bytes[l] = 20000 + 8 * 4000000 + 4096 * 16000;
    }
    m.layer_ops = (double)m.layer_bytes[0];
    return m;
}

static mxd_rc plan_over(mxd_plan *p, const mxd_plan_node *n, int n_nodes, double latency_us,
                        const mxd_plan_opts *o, mxd_err *err) {
    static mxd_model_sizes m;
    mxd_plan_link links[28];
    int k = 0;
    m = sharable();
    for (int a = 0; a < n_nodes; a++)
        for (int b = a + 1; b < n_nodes; b++) links[k++] = (mxd_plan_link){a, b, latency_us, 2e9};
    return mxd_plan_make(p, &m, n, n_nodes, links, k, o, err);
}

TEST(plan_groups_where_links_are_fast) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(plan_over(&p, n, 2, 20, &o, &err), &err);
    CHECK_EQ(p.n_stages, 1);
    CHECK_EQ(p.stages[0].n_ranks, 2);
    CHECK(p.stages[0].ranks[0].share > 0.49 && p.stages[0].ranks[0].share < 0.51);
    double fast = p.decode_tokens_per_s;
    CHECK_OK(plan_over(&p, n, 2, 2000, &o, &err), &err); /* 34 exchanges of 2 ms: not worth it */
    CHECK_EQ(p.n_stages, 1);
    CHECK_EQ(p.stages[0].n_ranks, 1);
    CHECK(fast > 1.6 * p.decode_tokens_per_s);
    o.shape.tensor = 2; /* but if it must be */
    CHECK_OK(plan_over(&p, n, 2, 2000, &o, &err), &err);
    CHECK_EQ(p.stages[0].n_ranks, 2);
    CHECK_EQ(p.limit, MXD_LIMIT_LINK);
    /* Ranks of one machine share what it has: no gain, so none are made unasked. */
    for (int i = 0; i < 2; i++) {
        snprintf(n[i].host, sizeof n[i].host, "one");
        n[i].must = true;
    }
    o.shape.tensor = 0;
    CHECK_OK(plan_over(&p, n, 2, 20, &o, &err), &err);
    CHECK_EQ(p.n_stages, 2);
}

/* What nodes of one machine have of its processors decides whether they slow each other. */
TEST(plan_counts_processors_of_a_host) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50), node_of("c", 16, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .shape = {.tensor = 3}};
    mxd_plan p;
    mxd_err err = {0};
    double speed[3];
    for (int i = 0; i < 3; i++) snprintf(n[i].host, sizeof n[i].host, "one");
    for (int round = 0; round < 3; round++) { /* all of it, a third each, half each */
        for (int i = 0; i < 3; i++) {
            n[i].cpus = round == 0 ? 0 : round == 1 ? 2 : 3;
            n[i].host_cpus = 6;
        }
        CHECK_OK(plan_over(&p, n, 3, 0, &o, &err), &err);
        speed[round] = p.decode_tokens_per_s;
    }
    CHECK(speed[1] > 2.5 * speed[0]);
    CHECK(speed[2] > 0.6 * speed[1] && speed[2] < 0.75 * speed[1]);
    /* processors enough for all, and still a group brings nothing that stages do not */
    o.shape = (mxd_shape){0};
    for (int i = 0; i < 3; i++) n[i].must = true, n[i].cpus = 2;
    CHECK_OK(plan_over(&p, n, 3, 20, &o, &err), &err);
    CHECK_EQ(p.n_stages, 3);
    double prompt = p.prefill_tokens_per_s;
    for (int i = 0; i < 3; i++) n[i].cpus = 6; /* stages that compute at the same time share it */
    CHECK_OK(plan_over(&p, n, 3, 20, &o, &err), &err);
    CHECK(prompt > 1.5 * p.prefill_tokens_per_s);
}

/* Who has half of every period, and rests while others work, is not stopped in between. */
TEST(plan_saves_the_quota_of_stages_that_rest) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .shape = {.pipeline = 2, .tensor = 1}};
    mxd_plan p;
    mxd_err err = {0};
    double decode[4], prefill[4];
    const double period_s[] = {0, 1e-9, 10, 10}; /* 0: no quota */
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 2; i++) {
            n[i] = node_of(i ? "b" : "a", 16, k ? 25 : 50);
            n[i].paces = (mxd_paces){.duty = k ? .5 : 0, .pause_s = period_s[k] / 2};
        }
        if (k == 3) o.shape.pipeline = 1; /* it never rests in decoding */
        CHECK_OK(plan_over(&p, n, k == 3 ? 1 : 2, 0, &o, &err), &err);
        decode[k] = p.decode_tokens_per_s;
        prefill[k] = p.prefill_tokens_per_s;
    }
    CHECK(decode[1] < 0.55 * decode[0]);
    CHECK(decode[2] > 0.9 * decode[0] && decode[2] <= 1.01 * decode[0]);
    CHECK(decode[3] < 0.55 * decode[0]);
    CHECK(prefill[1] < 0.55 * prefill[0]);
    CHECK(prefill[2] > 0.9 * prefill[0] && prefill[2] <= 1.01 * prefill[0]);
}

/* Beside the coordinator a way is none of the network. */
TEST(plan_takes_the_way_of_the_node_elsewhere) {
    mxd_plan_node n[] = {node_of("here", 16, 50), node_of("there", 16, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .shape = {.tensor = 2}};
    mxd_plan p;
    mxd_err err = {0};
    n[0].link_us = 900;
    n[1].link_us = 20;
    n[0].link_bytes_per_s = 1e6;
    n[1].link_bytes_per_s = 1e10;
    mxd_model_sizes m = sharable();
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
    double slow = p.stages[0].exchange_ms;
    n[0].home = true;
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
    CHECK(p.stages[0].exchange_ms < slow / 20);
    double whole = p.stages[0].exchange_ms;
    n[1].cpus = 0.25; /* who has a quarter of a processor takes longer over a message */
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
    CHECK(p.stages[0].exchange_ms > 2 * whole && p.stages[0].exchange_ms < 5 * whole);
}

/* Over a slow link a prompt waits for chunks to come back: stages + 1 are under way. */
TEST(plan_prefill_waits_for_the_way_back) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50)};
    mxd_plan_opts o = {.ctx = 1024, .parallel = 1, .shape = {.n_split = 2, .split = {8, 8}}};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(plan_over(&p, n, 2, 1e6, &o, &err), &err);
    double chunks = 512 / 64.0, trips = 1 + (chunks - 1) / 3; /* of a second there, one back */
    CHECK(p.prefill_tokens_per_s < 512 / (trips * 2));
    CHECK(p.prefill_tokens_per_s > 0.8 * 512 / (trips * 2));
}

TEST(plan_shares_follow_speed_and_memory) {
    mxd_plan_node n[] = {node_of("slow", 16, 30), node_of("fast", 16, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .shape = {.tensor = 2}};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(plan_over(&p, n, 2, 20, &o, &err), &err);
    CHECK(p.stages[0].ranks[0].share >= 0.374 && p.stages[0].ranks[0].share <= 0.376);
    uint64_t sum = 0;
    for (int r = 0; r < 2; r++) sum += p.stages[0].ranks[r].weight_bytes;
    mxd_model_sizes m = sharable();
    CHECK_EQ(sum, 16 * (m.layer_bytes[0] + 20000) + 64000000 + 2 * 4096);
    n[1].free_bytes = 700000000; /* the fast one is small: it gets what fits, not more */
    CHECK_OK(plan_over(&p, n, 2, 20, &o, &err), &err);
    const mxd_plan_rank *k = &p.stages[0].ranks[1];
    CHECK(k->share < 0.34 && k->share > 0.28);
    CHECK(k->weight_bytes + k->kv_bytes + k->scratch_bytes <= 630000000);
    n[0].free_bytes = 700000000;
    CHECK_EQ(plan_over(&p, n, 2, 20, &o, &err), MXD_E_NOFIT);
}

TEST(plan_of_sizes_and_splits) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50), node_of("c", 16, 50),
                         node_of("d", 16, 25)};
    mxd_plan p;
    mxd_err err = {0};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .shape = {.tensor = 2, .pipeline = 2}};
    for (int i = 0; i < 4; i++) n[i].must = true;
    CHECK_OK(plan_over(&p, n, 4, 20, &o, &err), &err);
    CHECK_EQ(p.n_stages, 2);
    CHECK(p.stages[0].n_ranks == 2 && p.stages[1].n_ranks == 2);
    o.shape = (mxd_shape){.n_tensor_split = 4, .tensor_split = {3, 5, 0, 0}};
    CHECK_OK(plan_over(&p, n, 4, 20, &o, &err), &err);
    CHECK_EQ(p.n_stages, 1);
    CHECK(p.stages[0].n_ranks == 2 && p.stages[0].ranks[1].share == 5.0 / 8);
    o.shape = (mxd_shape){.tensor = 2,
                          .n_split = 2,
                          .split = {10, 6},
                          .n_tensor_split = 4,
                          .tensor_split = {1, 1, 1, 3}};
    CHECK_OK(plan_over(&p, n, 4, 20, &o, &err), &err);
    CHECK(p.stages[0].layer1 == 10 && p.stages[1].ranks[1].share == 0.75);
    static const struct {
        mxd_shape shape;
        const char *says;
    } bad[] = {
        {{.tensor = 3}, "4 workers must get layers"},
        {{.tensor = 2, .pipeline = 3}, "need 6 nodes, there are 4"},
        {{.tensor = 2, .pipeline = 1}, "4 workers must get layers"},
        {{.n_tensor_split = 3, .tensor_split = {1, 1, 1}}, "for 3 nodes, there are 4"},
        {{.n_split = 3, .split = {4, 4, 8}}, "for 3 nodes, there are 4"},
        {{.tensor = 2, .n_split = 4, .split = {4, 4, 4, 4}}, "for 4 stages, there are 2"},
        {{.pipeline = 2, .n_split = 4, .split = {4, 4, 4, 4}}, "makes 4 stages, 2 were asked"},
        {{.n_tensor_split = 4, .tensor_split = {1, -1, 1, 1}}, "parts of 0 or more"},
    };
    for (size_t i = 0; i < MXD_COUNT(bad); i++) {
        o.shape = bad[i].shape;
        mxd_rc rc = plan_over(&p, n, 4, 20, &o, &err);
        if (rc != MXD_E_INVAL || !strstr(err.msg, bad[i].says)) fail_msg("row %zu: %s", i, err.msg);
    }
}

TEST(plan_keeps_broken_links_apart) {
    mxd_plan_node n[] = {node_of("a", 16, 50), node_of("b", 16, 50), node_of("c", 16, 50)};
    static const mxd_plan_link broken[] = {{.a = 0, .b = 1}, {.a = 0, .b = 2}, {.a = 1, .b = 2}};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1, .avoid = broken, .n_avoid = 1};
    mxd_plan p;
    mxd_err err = {0};
    for (int i = 0; i < 3; i++) n[i].must = true;
    CHECK_OK(plan_over(&p, n, 3, 5000, &o, &err), &err);
    CHECK_EQ(p.n_stages, 3);
    CHECK_EQ(p.stages[1].ranks[0].node, 2);
    CHECK_OK(plan_over(&p, n, 3, 10, &o, &err), &err);
    for (int i = 0; i < p.n_stages; i++) /* nor in one group */
        for (int r = 0; r < p.stages[i].n_ranks; r++)
            for (int k = 0; k < p.stages[i].n_ranks; k++)
                CHECK(p.stages[i].ranks[r].node + p.stages[i].ranks[k].node != 1 ||
                      p.stages[i].ranks[r].node == p.stages[i].ranks[k].node);
    o.n_avoid = 3; /* better than none */
    CHECK_OK(plan_over(&p, n, 3, 5000, &o, &err), &err);
    CHECK_EQ(p.n_stages, 3);
}

TEST(plan_that_does_not_fit_names_bytes_and_context) {
    mxd_model_sizes m = model_of(20, 100000000); /* 2.0 GB + 0.5 + KV 82 kB a position */
    mxd_plan_node n[] = {node_of("left", 2, 50), node_of("right", 2, 50)};
    mxd_plan_opts o = {.ctx = 65536, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_NOFIT);
    const char *at = strstr(err.msg, "--ctx-size ");
    CHECK(strstr(err.msg, "left misses") && strstr(err.msg, "right misses") && at);
    CHECK_EQ(sscanf(at, "--ctx-size %d", &o.ctx), 1);
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err); /* what it says is true */
    check_covers(&p, 20);
    for (int i = 0; i < p.n_stages; i++) {
        const mxd_plan_stage *s = &p.stages[i];
        CHECK(s->ranks[0].weight_bytes + s->ranks[0].kv_bytes + s->ranks[0].scratch_bytes <=
              1800000000);
    }
    o.ctx += o.ctx / 20;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_NOFIT); /* and not too careful */
    n[0].free_bytes = n[1].free_bytes = 1000000000;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_NOFIT);
    CHECK(strstr(err.msg, "smallest context"));
}

TEST(plan_must_be_possible) {
    mxd_model_sizes m = model_of(6, 100000000);
    mxd_plan_node n[] = {node_of("big", 64, 50), node_of("tiny", 0.05, 50)};
    mxd_plan_opts o = {.ctx = 1000, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), &err);
    CHECK_EQ(p.n_stages, 1);
    n[1].must = true;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_NOFIT);
    CHECK(strstr(err.msg, "tiny misses 0.11 GB"));
}

TEST(plan_refuses_contradictions) {
    mxd_model_sizes m = model_of(2, 1000000);
    mxd_plan_node n[] = {node_of("a", 4, 50), node_of("b", 4, 50), node_of("c", 4, 50)};
    mxd_plan_opts o = {.ctx = 100, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    mxd_plan_link to_nowhere = {0, 3, 1, 1}, no_number = {0, 1, NAN, 1};
    for (int i = 0; i < 3; i++) n[i].must = true;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 3, NULL, 0, &o, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_plan_make(&p, &m, n, 0, NULL, 0, &o, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, &to_nowhere, 1, &o, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, &no_number, 1, &o, &err), MXD_E_INVAL);
    n[0].bandwidth_bytes_per_s = -1;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_INVAL);
    n[0].bandwidth_bytes_per_s = 1;
    o.ctx = 0;
    CHECK_EQ(mxd_plan_make(&p, &m, n, 2, NULL, 0, &o, &err), MXD_E_INVAL);
}

/* Every ordered list of disjoint groups with every cut, for small questions. */
typedef struct brute {
    const mxd_plan_task *t;
    uint64_t must;
    bool by_max;
    double best;
} brute;

static void brute_step(brute *b, uint64_t used, const mxd_plan_group *before, int stages, int at,
                       double so_far) {
    const mxd_plan_task *t = b->t;
    int layers = t->model->n_layers;
    if (at == layers) {
        if ((used & b->must) == b->must && (!t->pipeline || stages == t->pipeline))
            b->best = fmin(b->best, so_far);
        return;
    }
    for (uint64_t set = 1; set < (uint64_t)1 << t->n_nodes; set++) {
        int nodes[4], n = 0;
        mxd_plan_group g;
        for (int i = 0; i < t->n_nodes; i++)
            if (set >> i & 1) nodes[n++] = i;
        if ((set & used) || (t->tensor && n != t->tensor)) continue;
        if (!mxd_plan_group_of(t, nodes, n, NULL, &g)) continue;
        double hop = before ? mxd_plan_hop_s(t, before, &g, 1) : t->enter_s[nodes[0]];
        if (before)
            for (int r = 0; r < n; r++)
                if (t->broken[before->node[0]][nodes[r]]) hop = INFINITY;
        for (int to = at + 1; to <= layers; to++) {
            double s = mxd_plan_stage_s(t, &g, at, to, b->by_max ? &t->batch : &t->one) + hop;
            if (to == layers && !b->by_max) s += t->enter_s[nodes[0]];
            if (s < INFINITY)
                brute_step(b, used | set, &g, stages + 1, to,
                           b->by_max ? fmax(so_far, s) : so_far + s);
        }
    }
}

enum { SMALL_LAYERS = 5, SMALL_NODES = 4 };

static mxd_model_sizes cut_model(uint64_t round, uint64_t *draw) {
    mxd_model_sizes m = model_of(SMALL_LAYERS, 0);
    m.embed_bytes = m.head_bytes = 512 * 20000;
    int n_kv = 1 + (int)(mxd_rand_u64(7, round, (*draw)++) % 8);
    cuts_of(&m.cuts, n_kv, 512, 20000);
    for (int l = 0; l < SMALL_LAYERS; l++) {
        m.cuts.whole[l] = 100000;
        m.cuts.per[MXD_BY_KV][l] =
            (10000000 + (double)(mxd_rand_u64(7, round, (*draw)++) % 50000000)) / n_kv;
        m.cuts.per[MXD_BY_INNER][l] = 10000 + (double)(mxd_rand_u64(7, round, (*draw)++) % 40000);
        m.cuts.sum[MXD_BY_KV][l] = m.cuts.sum[MXD_BY_INNER][l] = true;
        m.layer_bytes[l] = (uint64_t)(m.cuts.whole[l] + m.cuts.per[MXD_BY_KV][l] * n_kv +
                                      m.cuts.per[MXD_BY_INNER][l] * 4096);
        m.layer_kv_bytes[l] = 4096;
    }
    m.layer_ops = (double)m.layer_bytes[2];
    return m;
}

static void draw_task(mxd_plan_task *t, uint64_t round, uint64_t *draw) {
    double link = pow(10, -5 + 2.5 * mxd_rand_unit(7, round, (*draw)++));
    for (int i = 0; i < t->n_nodes; i++) {
        t->usable[i] = (double)(mxd_rand_u64(7, round, (*draw)++) % 1500000000);
        t->bandwidth[i] = 1e10 * (1 + mxd_rand_unit(7, round, (*draw)++) * 9);
        t->ops[i] = 1e12;
        t->paces[i] = (mxd_paces){t->bandwidth[i], 1e-8, 1e11, 5e10, 1e9, 1e-6, 5e-6};
        t->enter_s[i] = link * mxd_rand_unit(7, round, (*draw)++);
        for (int j = 0; j < i; j++) {
            t->latency_s[i][j] = t->latency_s[j][i] = link * mxd_rand_unit(7, round, (*draw)++);
            t->byte_s[i][j] = t->byte_s[j][i] = 1e-8 * mxd_rand_unit(7, round, (*draw)++);
            t->broken[i][j] = t->broken[j][i] = mxd_rand_u64(7, round, (*draw)++) % 8 == 0;
        }
    }
    mxd_plan_task_sums(t);
}

TEST(plan_search_is_exact) {
    static mxd_plan_task t; /* too big for a stack */
    static mxd_plan_cut c;
    int n_grouped = 0;
    for (uint64_t round = 0; round < 48; round++) {
        uint64_t draw = 0;
        mxd_model_sizes m = cut_model(round, &draw);
        mxd_plan_node n[SMALL_NODES] = {0};
        static const int sizes[][2] = {{0, 0}, {1, 0}, {2, 0}, {0, 2}, {1, 3}, {0, 0}};
        t = (mxd_plan_task){.model = &m,
                            .nodes = n,
                            .n_nodes = SMALL_NODES,
                            .ctx = 1000,
                            .parallel = 2,
                            .tensor = sizes[round % 6][0],
                            .pipeline = sizes[round % 6][1]};
        draw_task(&t, round, &draw);
        uint64_t must = round % 4 ? 0 : 1 + mxd_rand_u64(7, round, draw++) % 15;
        for (int by_max = 0; by_max < 2; by_max++) {
            brute b = {&t, must, by_max, INFINITY};
            brute_step(&b, 0, NULL, 0, 0, 0);
            bool found;
            mxd_err err = {0};
            CHECK_OK(mxd_plan_search(&t, must, by_max, &c, &found, &err), &err);
            CHECK_EQ(found, b.best < INFINITY);
            if (!found) continue;
            double got =
                c.sum_s + t.enter_s[c.group[0].node[0]] + t.enter_s[c.group[c.n - 1].node[0]];
            if (!by_max && fabs(got / b.best - 1) > 1e-5)
                fail_msg("round %d: %.9g, the best is %.9g", (int)round, got, b.best);
            if (by_max && c.max_s > b.best * (1 + 1e-5))
                fail_msg("round %d: longest %.9g, the best is %.9g", (int)round, c.max_s, b.best);
            for (int i = 0; i < c.n; i++) n_grouped += c.group[i].n > 1;
        }
    }
    CHECK(n_grouped > 8); /* else the test says little about groups */
}

TEST(plan_many_nodes_and_layers) {
    static mxd_plan_node n[MXD_MAX_NODES];
    mxd_model_sizes m = model_of(MXD_MAX_LAYERS, 10000000);
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        char name[8];
        snprintf(name, sizeof name, "n%d", i);
        n[i] = node_of(name, 1.0, 50 + i);
    }
    mxd_plan_opts o = {.ctx = 128, .parallel = 1};
    mxd_plan p;
    mxd_err err = {0};
    CHECK_OK(mxd_plan_make(&p, &m, n, MXD_MAX_NODES, NULL, 0, &o, &err), &err);
    check_covers(&p, MXD_MAX_LAYERS);
    for (int i = 0; i < 8; i++) n[i].free_bytes = 2000000000;
    CHECK_OK(mxd_plan_make(&p, &m, n, 8, NULL, 0, &o, &err), &err);
    check_covers(&p, MXD_MAX_LAYERS);
}
