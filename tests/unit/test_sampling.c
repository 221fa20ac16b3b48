#include "test.h"

#include <math.h>
#include "runtime/sampling.h"

enum { VOCAB = 50 };

static mxd_sampler sampler_for(mxd_arena *a, int n_vocab) {
    mxd_sampler s;
    mxd_err err;
    CHECK_OK(mxd_arena_init(a, &mxd_alloc_libc, 64 + (size_t)n_vocab * 16 + 256, &err), &err);
    CHECK_OK(mxd_sampler_init(&s, a, n_vocab, &err), &err);
    return s;
}

/* Logits that fall with the id: 0 is best. */
static void slope(float *l) {
    for (int i = 0; i < VOCAB; i++) l[i] = 3.0f - 0.1f * (float)i;
}

static int32_t once(const mxd_sampling *how, uint32_t position) {
    mxd_arena a;
    mxd_sampler s = sampler_for(&a, VOCAB);
    float l[VOCAB];
    int32_t tokens[64] = {0};
    mxd_sampled out;
    slope(l);
    mxd_sample(&s, l, how, tokens, position, &out);
    mxd_arena_deinit(&a);
    return out.token;
}

TEST(sampling_greedy_takes_the_lowest_of_equals) {
    mxd_arena a;
    mxd_sampler s = sampler_for(&a, 4);
    float l[4] = {1, 5, 5, NAN};
    mxd_sampling how = {0};
    mxd_sampled out;
    mxd_sample(&s, l, &how, NULL, 0, &out);
    CHECK_EQ(out.token, 1);
    mxd_arena_deinit(&a);
}

TEST(sampling_same_seed_same_token_other_position_other_draw) {
    mxd_sampling how = {.temperature = 1.5f, .seed = 42};
    int changes = 0;
    for (uint32_t p = 0; p < 60; p++) {
        CHECK_EQ(once(&how, p), once(&how, p));
        changes += once(&how, p) != once(&how, p + 1);
    }
    CHECK(changes > 30);
    mxd_sampling other = how;
    other.choice = 1;
    int differ = 0;
    for (uint32_t p = 0; p < 60; p++) differ += once(&how, p) != once(&other, p);
    CHECK(differ > 30);
}

/* Draws follow the softmax: compare frequencies over many positions with probabilities. */
TEST(sampling_draws_by_probability) {
    mxd_arena a;
    mxd_sampler s = sampler_for(&a, 4);
    const float base[4] = {0, 1, 2, -1};
    int hits[4] = {0};
    mxd_sampling how = {.temperature = 1, .seed = 7};
    int32_t none = 0;
    for (uint32_t p = 0; p < 20000; p++) {
        float l[4];
        memcpy(l, base, sizeof l);
        mxd_sampled out;
        how.seed = p;
        mxd_sample(&s, l, &how, &none, 1, &out);
        hits[out.token]++;
    }
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += exp(base[i]);
    for (int i = 0; i < 4; i++) CHECK(fabs(hits[i] / 20000.0 - exp(base[i]) / sum) < 0.012);
    mxd_arena_deinit(&a);
}

TEST(sampling_filters_leave_only_the_best) {
    for (uint32_t p = 0; p < 64; p++) {
        CHECK(once(&(mxd_sampling){.temperature = 2, .top_k = 3, .seed = 1}, p) < 3);
        CHECK_EQ(once(&(mxd_sampling){.temperature = 2, .top_k = 1, .seed = 1}, p), 0);
        CHECK_EQ(once(&(mxd_sampling){.temperature = 1, .top_p = 0.0001f, .seed = 1}, p), 0);
        /* exp(-0.1 i) >= 0.7 holds for i <= 3 */
        CHECK(once(&(mxd_sampling){.temperature = 1, .min_p = 0.7f, .seed = 1}, p) <= 3);
        /* p of id 0 is about 0.096: 0.15 needs two of them */
        CHECK(once(&(mxd_sampling){.temperature = 1, .top_p = 0.15f, .seed = 1}, p) <= 1);
    }
}

TEST(sampling_penalties_and_bias) {
    mxd_arena a;
    mxd_sampler s = sampler_for(&a, 4);
    float l[4] = {5, 4.9f, 1, -1};
    int32_t tokens[4] = {3, 0, 0, 0}; /* one of the prompt, three generated */
    mxd_sampled out;
    mxd_sampling how = {.frequency = 0.1f, .n_prompt = 1};
    mxd_sample(&s, l, &how, tokens, 4, &out);
    CHECK_EQ(out.token, 1);
    CHECK(fabsf(l[0] - 4.7f) < 1e-6f && l[3] == -1);
    float m[4] = {5, 4.9f, 1, -1};
    how = (mxd_sampling){.repetition = 2};
    mxd_sample(&s, m, &how, tokens, 4, &out);
    CHECK(m[0] == 2.5f && m[3] == -2 && out.token == 1);
    float k[4] = {5, 4.9f, 1, -1};
    const mxd_logit_bias bias[2] = {{0, -INFINITY}, {1, -INFINITY}};
    how = (mxd_sampling){.n_bias = 2, .bias = bias, .temperature = 5, .seed = 3};
    for (uint32_t p = 0; p < 50; p++) {
        float c[4];
        memcpy(c, k, sizeof c);
        mxd_sample(&s, c, &how, tokens, p % 4, &out);
        CHECK(out.token >= 2);
    }
    for (int i = 0; i < 4; i++) CHECK_EQ(s.count[i], 0);
    mxd_arena_deinit(&a);
}

TEST(sampling_logprobs_are_of_the_untouched_distribution) {
    mxd_arena a;
    mxd_sampler s = sampler_for(&a, 4);
    float l[4] = {0, 1, 2, 1};
    const mxd_logit_bias bias = {0, 100};
    mxd_sampling how = {.logprobs = true, .n_top = 3, .n_bias = 1, .bias = &bias};
    mxd_sampled out;
    mxd_sample(&s, l, &how, NULL, 0, &out);
    double sum = 1 + 2 * exp(1) + exp(2);
    CHECK_EQ(out.token, 0);
    CHECK(fabs(out.logprob - (0 - log(sum))) < 1e-6);
    CHECK_EQ(out.n_top, 3);
    CHECK(out.top_id[0] == 2 && out.top_id[1] == 1 && out.top_id[2] == 3);
    CHECK(fabs(out.top_logprob[0] - (2 - log(sum))) < 1e-6);
    mxd_arena_deinit(&a);
}
