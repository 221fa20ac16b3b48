#include "test.h"

#include "api/stopper.h"

enum { MAX_STOPS = 4, OUT_MAX = 4096 };

typedef struct stop_set {
    const char *stop[MAX_STOPS];
    int n;
} stop_set;

/* The definition: the leftmost stop string of the whole text, of several there the first in the
 * list; the text before it. */
static int defined_by(const stop_set *set, const char *text, size_t *keep) {
    for (size_t at = 0; text[at]; at++)
        for (int i = 0; i < set->n; i++)
            if (strncmp(text + at, set->stop[i], strlen(set->stop[i])) == 0) {
                *keep = at;
                return i;
            }
    *keep = strlen(text);
    return -1;
}

/* Bit i of `cuts`: the text is cut behind byte i. */
static void check_cuts(const stop_set *set, const char *text, uint64_t cuts) {
    size_t n = strlen(text), keep, from = 0;
    int want = defined_by(set, text, &keep);
    mxd_stopper s;
    mxd_buf out;
    mxd_stopper_init(&s, &mxd_alloc_libc, set->stop, set->n);
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX);
    for (size_t i = 0; i < n; i++)
        if (i == n - 1 || cuts >> i & 1) {
            mxd_stopper_push(&s, text + from, i + 1 - from, &out);
            from = i + 1;
            /* what is out stays out: never more than the whole text gives */
            CHECK(out.len <= keep && memcmp(mxd_buf_str(&out), text, out.len) == 0);
        }
    mxd_stopper_flush(&s, &out);
    if (s.matched != want || out.len != keep || memcmp(mxd_buf_str(&out), text, keep) != 0)
        fail_msg("'%s', cuts %llx: stop %d behind '%s', want %d behind %zu bytes", text,
                 (unsigned long long)cuts, s.matched, mxd_buf_str(&out), want, keep);
    mxd_buf_deinit(&out);
    mxd_stopper_deinit(&s);
}

static void check_all_cuts(const stop_set *set, const char *text) {
    size_t n = strlen(text);
    if (n < 2) {
        check_cuts(set, text, 0);
        return;
    }
    if (n <= 12) {
        for (uint64_t cuts = 0; cuts < 1ull << (n - 1); cuts++) check_cuts(set, text, cuts);
        return;
    }
    for (size_t i = 0; i + 1 < n && i < 62; i++)
        for (size_t k = i; k + 1 < n && k < 62; k++) check_cuts(set, text, 1ull << i | 1ull << k);
    check_cuts(set, text, UINT64_MAX);
}

static const stop_set sets[] = {
    {{"a"}, 1},
    {{"ab"}, 1},
    {{"aab"}, 1},
    {{"abab"}, 1},
    {{"aa", "ab"}, 2},
    {{"abba", "bb"}, 2}, /* one inside another */
    {{"bb", "abba"}, 2},
    {{"ab", "aba"}, 2}, /* one begins another, shorter first */
    {{"aba", "ab"}, 2}, /* longer first */
    {{"aabaab", "aab"}, 2},
    {{"aaaa", "b"}, 2},
    {{"bab", "abb", "aaa"}, 3},
    {{"abaa", "ba", "aab", "bbb"}, 4},
    {{NULL}, 0},
};

/* Every text of up to 8 letters a and b. */
TEST(stopper_every_cut_of_every_short_text) {
    for (size_t k = 0; k < MXD_COUNT(sets); k++)
        for (int n = 1; n <= 8; n++)
            for (int bits = 0; bits < 1 << n; bits++) {
                char text[9] = "";
                for (int i = 0; i < n; i++) text[i] = bits >> i & 1 ? 'b' : 'a';
                check_all_cuts(&sets[k], text);
            }
}

TEST(stopper_every_cut_of_longer_texts) {
    static const stop_set real[] = {
        {{"\n\nHuman:", "\n\n", "###"}, 3},
        {{"</s>", "<|im_end|>", "<"}, 3},
        {{"\xc3\xa9t\xc3\xa9", "\xe2\x82\xac"}, 2},
        {{"END", "END OF", "D O"}, 3},
    };
    static const char *const texts[] = {
        "Hello there.\n\nHuman: hi",
        "one # two ## three ### four",
        "a < b </s> c <|im_end|>",
        "l'\xc3\xa9t\xc3\xa9 co\xc3\xbbte 3 \xe2\x82\xac",
        "THE END OF ALL EN",
        "\n\nHuma",
        "no stop at all here, not one",
    };
    for (size_t k = 0; k < MXD_COUNT(real); k++)
        for (size_t i = 0; i < MXD_COUNT(texts); i++) check_all_cuts(&real[k], texts[i]);
}

/* Text that cannot become a stop string is not held back. */
TEST(stopper_gives_out_at_once) {
    const char *stop[] = {"STOP"};
    mxd_stopper s;
    mxd_buf out;
    mxd_stopper_init(&s, &mxd_alloc_libc, stop, 1);
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX);
    mxd_stopper_push(&s, "hello", 5, &out);
    CHECK_STR(mxd_buf_str(&out), "hello");
    mxd_stopper_push(&s, " ST", 3, &out);
    CHECK_STR(mxd_buf_str(&out), "hello ");
    mxd_stopper_push(&s, "AY", 2, &out);
    CHECK_STR(mxd_buf_str(&out), "hello STAY");
    mxd_stopper_push(&s, "STOP and more", 13, &out);
    CHECK_STR(mxd_buf_str(&out), "hello STAY");
    CHECK_EQ(s.matched, 0);
    mxd_stopper_push(&s, "later", 5, &out); /* dropped */
    mxd_stopper_flush(&s, &out);
    CHECK_STR(mxd_buf_str(&out), "hello STAY");
    mxd_buf_deinit(&out);
    mxd_stopper_deinit(&s);
}

/* A match waits only for what would win over it: not for a longer one that is later in the list. */
TEST(stopper_does_not_wait_without_need) {
    const char *stop[] = {"ab", "abc", "xab"};
    mxd_stopper s;
    mxd_buf out;
    mxd_stopper_init(&s, &mxd_alloc_libc, stop, 3);
    mxd_buf_init(&out, &mxd_alloc_libc, OUT_MAX);
    mxd_stopper_push(&s, "..ab", 4, &out);
    CHECK_EQ(s.matched, 0);
    CHECK_STR(mxd_buf_str(&out), "..");
    mxd_buf_deinit(&out);
    mxd_stopper_deinit(&s);
}

TEST(stopper_too_much_text_at_once) {
    const char *stop[] = {"STOP"};
    static char text[(1 << 20) + 1];
    mxd_stopper s;
    mxd_buf out;
    memset(text, 'x', sizeof text);
    mxd_stopper_init(&s, &mxd_alloc_libc, stop, 1);
    mxd_buf_init(&out, &mxd_alloc_libc, 4 << 20);
    mxd_stopper_push(&s, text, sizeof text, &out);
    CHECK_EQ(out.rc, MXD_E_TOOBIG);
    mxd_buf_deinit(&out);
    mxd_stopper_deinit(&s);
}

TEST_OOM(stopper_out_of_memory) {
    const char *stop[] = {"STOP"};
    mxd_stopper s;
    mxd_buf out;
    mxd_stopper_init(&s, al, stop, 1);
    mxd_buf_init(&out, al, OUT_MAX);
    mxd_stopper_push(&s, "some text S", 11, &out);
    mxd_stopper_push(&s, "T", 1, &out);
    mxd_stopper_flush(&s, &out);
    mxd_rc rc = mxd_buf_rc(&out, "text", err);
    if (!rc) CHECK_STR(mxd_buf_str(&out), "some text ST");
    mxd_buf_deinit(&out);
    mxd_stopper_deinit(&s);
    return rc;
}
