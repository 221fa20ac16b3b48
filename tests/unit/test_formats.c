#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/limits.h"
#include "base/rand.h"
#include "formats/jscan.h"
#include "formats/json.h"
#include "formats/utf8.h"

/* ---- utf8 ---- */

TEST(utf8_rows) {
    static const struct {
        const char *s;
        size_t n;
        int len;
        uint32_t cp;
    } t[] = {
        {"a", 1, 1, 'a'},
        {"\0", 1, 1, 0},
        {"\xc2\x80", 2, 2, 0x80},
        {"\xdf\xbf", 2, 2, 0x7FF},
        {"\xe0\xa0\x80", 3, 3, 0x800},
        {"\xed\x9f\xbf", 3, 3, 0xD7FF},
        {"\xee\x80\x80", 3, 3, 0xE000},
        {"\xf0\x90\x80\x80", 4, 4, 0x10000},
        {"\xf4\x8f\xbf\xbf", 4, 4, 0x10FFFF},
        {"\x80", 1, 0, 0},
        {"\xc0\x80", 2, 0, 0},
        {"\xc1\xbf", 2, 0, 0},
        {"\xe0\x9f\xbf", 3, 0, 0},
        {"\xed\xa0\x80", 3, 0, 0},
        {"\xf0\x8f\xbf\xbf", 4, 0, 0},
        {"\xf4\x90\x80\x80", 4, 0, 0},
        {"\xf5\x80\x80\x80", 4, 0, 0},
        {"\xff", 1, 0, 0},
        {"\xc2", 1, -1, 0},
        {"\xe2\x82", 2, -1, 0},
        {"\xf0\x9f\x98", 3, -1, 0},
        {"\xe0\x80", 2, 0, 0}, /* cannot become valid any more */
        {"\xe2\x28\xa1", 3, 0, 0},
    };
    for (size_t i = 0; i < MXD_COUNT(t); i++) {
        uint32_t cp = 0;
        CHECK_EQ(mxd_utf8_next(t[i].s, t[i].n, &cp), t[i].len);
        if (t[i].len > 0) CHECK_EQ(cp, t[i].cp);
    }
}

TEST(utf8_round_trip_of_every_code_point) {
    for (uint32_t cp = 0; cp <= 0x110000; cp++) {
        char s[4];
        uint32_t back = 0;
        int n = mxd_utf8_put(s, cp);
        bool scalar = cp < 0xD800 || (cp > 0xDFFF && cp <= 0x10FFFF);
        if ((n > 0) != scalar) fail_msg("U+%X gives %d bytes", cp, n);
        if (n && (mxd_utf8_next(s, (size_t)n, &back) != n || back != cp)) fail_msg("U+%X", cp);
    }
}

TEST(utf8_whole_tells_cut_from_bad) {
    bool bad;
    CHECK_EQ(mxd_utf8_whole("ab\xe2\x82", 4, &bad), 2);
    CHECK(!bad);
    CHECK_EQ(mxd_utf8_whole("ab\xff", 3, &bad), 2);
    CHECK(bad);
    CHECK_EQ(mxd_utf8_whole("", 0, &bad), 0);
    CHECK(mxd_utf8_valid("", 0) && !mxd_utf8_valid("\xe2\x82", 2));
}

/* ---- json ---- */

static mxd_rc parse(const char *s, size_t n) {
    json_t *v = NULL;
    mxd_err err;
    mxd_rc rc = mxd_json_parse(&v, s, n, &err);
    json_decref(v);
    return rc;
}

TEST(json_accepts_and_refuses) {
    static const struct {
        const char *text;
        mxd_rc rc;
    } t[] = {
        {" {\"a\": [1, 2.5, \"x\", true, false, null]} \n", MXD_OK},
        {"12", MXD_OK},
        {"\"\xf0\x9f\x98\x80\"", MXD_OK},
        {"\"\\ud83d\\ude00\"", MXD_OK},
        {"9223372036854775807", MXD_OK},
        {"-9223372036854775808", MXD_OK},
        {"-0", MXD_OK},
        {"1e308", MXD_OK},
        {"", MXD_E_FORMAT},
        {"  ", MXD_E_FORMAT},
        {"{\"a\":1,\"a\":2}", MXD_E_FORMAT},
        {"{\"a\":1,\"\\u0061\":2}", MXD_E_FORMAT},
        {"[1,]", MXD_E_FORMAT},
        {"{\"a\":1,}", MXD_E_FORMAT},
        {"[1 2]", MXD_E_FORMAT},
        {"{\"a\" 1}", MXD_E_FORMAT},
        {"{a:1}", MXD_E_FORMAT},
        {"[1}", MXD_E_FORMAT},
        {"{]", MXD_E_FORMAT},
        {"1 2", MXD_E_FORMAT},
        {"NaN", MXD_E_FORMAT},
        {"Infinity", MXD_E_FORMAT},
        {"01", MXD_E_FORMAT},
        {"1.", MXD_E_FORMAT},
        {".5", MXD_E_FORMAT},
        {"1e", MXD_E_FORMAT},
        {"+1", MXD_E_FORMAT},
        {"-", MXD_E_FORMAT},
        {"0x10", MXD_E_FORMAT},
        {"9223372036854775808", MXD_E_FORMAT},
        {"1e309", MXD_E_FORMAT},
        {"\"\\u12\"", MXD_E_FORMAT},
        {"\"\\ud800\"", MXD_E_FORMAT},
        {"\"\\udc00\"", MXD_E_FORMAT},
        {"\"\\ud800\\u0041\"", MXD_E_FORMAT},
        {"\"\\x41\"", MXD_E_FORMAT},
        {"\"\xff\"", MXD_E_FORMAT},
        {"\"\xc0\xaf\"", MXD_E_FORMAT},
        {"\"\xed\xa0\x80\"", MXD_E_FORMAT},
        {"\"a\nb\"", MXD_E_FORMAT},
        {"\"abc", MXD_E_FORMAT},
        {"\"abc\\", MXD_E_FORMAT},
        {"tru", MXD_E_FORMAT},
        {"nulll", MXD_E_FORMAT},
        {"\xef\xbb\xbf{}", MXD_E_FORMAT},
        {"'a'", MXD_E_FORMAT},
        {"// x\n1", MXD_E_FORMAT},
        {"\"\\u0000\"", MXD_E_FORMAT}, /* strings are C strings for most of the program */
    };
    for (size_t i = 0; i < MXD_COUNT(t); i++)
        if (parse(t[i].text, strlen(t[i].text)) != t[i].rc) fail_msg("%s", t[i].text);
    CHECK_EQ(parse("1\0", 2), MXD_E_FORMAT);
}

TEST(json_message_names_line_and_column) {
    json_t *v = NULL;
    mxd_err err;
    CHECK_EQ(mxd_json_parse(&v, "{\n  x", 5, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, "line 2 column 3") != NULL);
}

TEST(json_depth_limit) {
    char s[4 * MXD_JSON_MAX_DEPTH];
    for (int d = MXD_JSON_MAX_DEPTH - 1; d <= MXD_JSON_MAX_DEPTH + 1; d++) {
        memset(s, '[', (size_t)d);
        memset(s + d, ']', (size_t)d);
        CHECK_EQ(parse(s, 2 * (size_t)d), d <= MXD_JSON_MAX_DEPTH ? MXD_OK : MXD_E_TOOBIG);
    }
    static char deep[1000000];
    memset(deep, '[', sizeof deep);
    CHECK_EQ(parse(deep, sizeof deep), MXD_E_TOOBIG);
}

TEST(json_node_limit) {
    static char s[2 * MXD_JSON_MAX_NODES + 8];
    for (size_t n = MXD_JSON_MAX_NODES - 2; n <= MXD_JSON_MAX_NODES; n++) { /* + the list itself */
        s[0] = '[';
        for (size_t i = 0; i < n; i++) memcpy(s + 1 + 2 * i, "0,", 2);
        s[2 * n] = ']';
        CHECK_EQ(parse(s, 2 * n + 1), n + 1 <= MXD_JSON_MAX_NODES ? MXD_OK : MXD_E_TOOBIG);
    }
}

TEST(json_load_files) {
    char path[] = "/tmp/mxd-json-XXXXXX";
    json_t *v = NULL;
    mxd_err err;
    int fd = mkstemp(path);
    CHECK_EQ(write(fd, "[1,2]", 5), 5);
    close(fd);
    CHECK_OK(mxd_json_load(&v, path, 5, &err), &err);
    CHECK_EQ(json_array_size(v), 2);
    json_decref(v);
    CHECK_EQ(mxd_json_load(&v, path, 4, &err), MXD_E_TOOBIG);
    CHECK_EQ(truncate(path, 3), 0);
    CHECK_EQ(mxd_json_load(&v, path, 5, &err), MXD_E_FORMAT);
    CHECK(strstr(err.msg, path) != NULL);
    unlink(path);
    CHECK_EQ(mxd_json_load(&v, path, 5, &err), MXD_E_NOTFOUND);
    CHECK_EQ(mxd_json_load(&v, "/tmp", 5, &err), MXD_E_IO);
}

TEST(json_reals_as_python_prints_them) {
    static const struct {
        double x;
        const char *want;
    } t[] = {
        {0.1, "0.1"},
        {1, "1.0"},
        {-2.5, "-2.5"},
        {0, "0.0"},
        {-0.0, "-0.0"},
        {100, "100.0"},
        {1e15, "1000000000000000.0"},
        {1e16, "1e+16"},
        {1e22, "1e+22"},
        {1.5e300, "1.5e+300"},
        {0.0001, "0.0001"},
        {0.00001, "1e-05"},
        {1.25e-7, "1.25e-07"},
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {123456.789, "123456.789"},
        {0.30000000000000004, "0.30000000000000004"},
        {1.0 / 3, "0.3333333333333333"},
        {9007199254740992, "9007199254740992.0"},
        {HUGE_VAL, "inf"},
        {-HUGE_VAL, "-inf"},
        {NAN, "nan"},
    };
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 64);
    for (size_t i = 0; i < MXD_COUNT(t); i++) {
        mxd_buf_clear(&b);
        mxd_json_write_real(&b, t[i].x);
        CHECK_STR(mxd_buf_str(&b), t[i].want);
    }
    for (uint64_t i = 0; i < 20000; i++) { /* any bit pattern reads back */
        double x;
        uint64_t bits = mxd_rand_u64(1, 2, i);
        memcpy(&x, &bits, 8);
        if (isnan(x) || isinf(x)) continue;
        mxd_buf_clear(&b);
        mxd_json_write_real(&b, x);
        if (strtod(mxd_buf_str(&b), NULL) != x) fail_msg("%s", mxd_buf_str(&b));
    }
    mxd_buf_deinit(&b);
}

TEST(json_write_styles) {
    static const char text[] =
        "{\"b\": [1, 2.50, \"\xc3\xa4\xf0\x9f\x98\x80\\n\\u007f/\\\"\"], \"a\": {}, \"c\": []}";
    static const struct {
        mxd_json_style style;
        const char *want;
    } t[] = {
        {{0}, "{\"b\": [1, 2.5, \"\xc3\xa4\xf0\x9f\x98\x80\\n\x7f/\\\"\"], \"a\": {}, \"c\": []}"},
        {{.compact = true, .sort_keys = true},
         "{\"a\":{},\"b\":[1,2.5,\"\xc3\xa4\xf0\x9f\x98\x80\\n\x7f/\\\"\"],\"c\":[]}"},
        {{.ascii_only = true},
         "{\"b\": [1, 2.5, \"\\u00e4\\ud83d\\ude00\\n\\u007f/\\\"\"], \"a\": {}, \"c\": []}"},
        {{.indent = 2},
         "{\n  \"b\": [\n    1,\n    2.5,\n    \"\xc3\xa4\xf0\x9f\x98\x80\\n\x7f/\\\"\"\n  ],\n"
         "  \"a\": {},\n  \"c\": []\n}"},
        {{.item_sep = ";", .key_sep = "="},
         "{\"b\"=[1;2.5;\"\xc3\xa4\xf0\x9f\x98\x80\\n\x7f/\\\"\"];\"a\"={};\"c\"=[]}"},
    };
    mxd_err err;
    json_t *v = NULL;
    CHECK_OK(mxd_json_parse(&v, text, sizeof text - 1, &err), &err);
    mxd_buf b;
    mxd_buf_init(&b, &mxd_alloc_libc, 1000);
    for (size_t i = 0; i < MXD_COUNT(t); i++) {
        mxd_buf_clear(&b);
        mxd_json_write(&b, v, &t[i].style);
        CHECK_STR(mxd_buf_str(&b), t[i].want);
    }
    mxd_buf_clear(&b);
    mxd_json_write(&b, NULL, NULL);
    CHECK_STR(mxd_buf_str(&b), "null");
    mxd_buf_deinit(&b);
    json_decref(v);
}

TEST_OOM(json_write_sorted_unwinds) {
    json_t *v = json_pack("{s:i,s:[i,i]}", "b", 1, "a", 2, 3);
    mxd_buf b;
    mxd_buf_init(&b, al, 1000);
    mxd_json_write(&b, v, &(mxd_json_style){.sort_keys = true});
    mxd_rc rc = mxd_buf_rc(&b, "json", err);
    if (!rc) CHECK_STR(mxd_buf_str(&b), "{\"a\": [2, 3], \"b\": 1}");
    mxd_buf_deinit(&b);
    json_decref(v);
    return rc;
}

/* ---- jscan ---- */

TEST(jscan_tokens_and_skip) {
    static const char text[] = "{\"a\\u0062\": [1, {\"x\": \"\\ud83d\\ude00\"}], \"c\": true}";
    mxd_jscan s;
    mxd_err err = {0};
    char out[16];
    const char *from;
    size_t n;
    mxd_jscan_init(&s, text, sizeof text - 1, 100);
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_EQ(s.tok, MXD_JTOK_OBJECT);
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK(s.tok == MXD_JTOK_KEY && mxd_jscan_is(&s, "ab") && !mxd_jscan_is(&s, "a"));
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_OK(mxd_jscan_skip(&s, &from, &n, &err), &err);
    CHECK(n == 26 && memcmp(from, "[1, {", 5) == 0 && from[n - 1] == ']');
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_EQ(mxd_jscan_decode(&s, out), 1);
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_EQ(s.tok, MXD_JTOK_TRUE);
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_EQ(s.tok, MXD_JTOK_OBJECT_END);
    CHECK_OK(mxd_jscan_next(&s, &err), &err);
    CHECK_EQ(s.tok, MXD_JTOK_END);
}
