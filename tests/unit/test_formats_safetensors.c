#include "test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/limits.h"
#include "formats/safetensors.h"

#define A    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}"
#define T(s) "{\"a\":{\"dtype\":\"F32\"," s "}}"

/* Each row is one way to lie, or an odd way to be honest. */
static const struct {
    const char *what, *json;
    uint64_t data_bytes;
    mxd_rc rc;
} rows[] = {
    /* honest */
    {"one tensor", A "}", 16, MXD_OK},
    {"no tensor", "{}", 0, MXD_OK},
    {"scalar", T("\"shape\":[],\"data_offsets\":[0,4]"), 4, MXD_OK},
    {"zero dimension", T("\"shape\":[3,0],\"data_offsets\":[0,0]"), 0, MXD_OK},
    {"spaces behind", A "}   ", 16, MXD_OK},
    {"spaces and newlines inside",
     "{\n \"a\" : {\"dtype\":\t\"U8\",\"shape\":[ ],"
     "\"data_offsets\":[0,1]} }",
     1, MXD_OK},
    {"metadata of strings", A ",\"__metadata__\":{\"format\":\"mlx\",\"x\":\"\"}}", 16, MXD_OK},
    {"metadata null", A ",\"__metadata__\":null}", 16, MXD_OK},
    {"metadata empty", "{\"__metadata__\":{}}", 0, MXD_OK},
    {"keys in another order", "{\"a\":{\"data_offsets\":[0,2],\"shape\":[1],\"dtype\":\"BF16\"}}",
     2, MXD_OK},
    {"escaped key",
     "{\"\\u0061\":{\"\\u0064type\":\"U\\u0038\",\"shape\":[1],"
     "\"data_offsets\":[0,1]}}",
     1, MXD_OK},
    {"file order differs from offsets",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":"
     "[1,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     2, MXD_OK},
    {"zero-sized between two",
     "{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},"
     "\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]},"
     "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     2, MXD_OK},
    {"rank 8", T("\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, MXD_OK},
    {"largest dimension, times zero", T("\"shape\":[2147483647,0],\"data_offsets\":[0,0]"), 0,
     MXD_OK},
    {"name in UTF-8", "{\"\xc3\xa4\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     MXD_OK},
    /* rule 1: the text around the object */
    {"empty", "", 0, MXD_E_FORMAT},
    {"one byte", "{", 0, MXD_E_FORMAT},
    {"a space first", " {}", 0, MXD_E_FORMAT},
    {"a list", "[]", 0, MXD_E_FORMAT},
    {"a number", "12", 0, MXD_E_FORMAT},
    {"byte order mark", "\xef\xbb\xbf{}", 0, MXD_E_FORMAT},
    {"newline behind", A "}\n", 16, MXD_E_FORMAT},
    {"tab behind", A "}\t", 16, MXD_E_FORMAT},
    {"second object", A "}{}", 16, MXD_E_FORMAT},
    {"comma behind", A "},", 16, MXD_E_FORMAT},
    {"cut object", A, 16, MXD_E_FORMAT},
    {"bad UTF-8 in a name", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     MXD_E_FORMAT},
    {"overlong UTF-8", "{\"\xc0\x80\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     MXD_E_FORMAT},
    {"surrogate in UTF-8",
     "{\"\xed\xa0\x80\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":"
     "[0,1]}}",
     1, MXD_E_FORMAT},
    {"lone surrogate escape",
     "{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]"
     "}}",
     1, MXD_E_FORMAT},
    {"NUL in a name", "{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     MXD_E_FORMAT},
    {"raw newline in a name", "{\"a\nb\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, MXD_E_FORMAT},
    {"trailing comma", A ",}", 16, MXD_E_FORMAT},
    {"comment", "{/*x*/}", 0, MXD_E_FORMAT},
    {"single quotes", "{'a':1}", 0, MXD_E_FORMAT},
    /* rule 2: duplicates, metadata */
    {"the same name twice", A ",\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[16,16]}}",
     16, MXD_E_FORMAT},
    {"the same name, escaped",
     A ",\"\\u0061\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":"
       "[16,16]}}",
     16, MXD_E_FORMAT},
    {"dtype twice",
     "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":"
     "[0,1]}}",
     1, MXD_E_FORMAT},
    {"shape twice", T("\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"shape twice, escaped", T("\"shape\":[1],\"\\u0073hape\":[1],\"data_offsets\":[0,4]"), 4,
     MXD_E_FORMAT},
    {"offsets twice", T("\"shape\":[1],\"data_offsets\":[0,4],\"data_offsets\":[0,4]"), 4,
     MXD_E_FORMAT},
    {"metadata twice", "{\"__metadata__\":null,\"__metadata__\":null}", 0, MXD_E_FORMAT},
    {"metadata with a duplicate", "{\"__metadata__\":{\"x\":\"1\",\"x\":\"1\"}}", 0, MXD_E_FORMAT},
    {"metadata with a number", "{\"__metadata__\":{\"x\":1}}", 0, MXD_E_FORMAT},
    {"metadata with null inside", "{\"__metadata__\":{\"x\":null}}", 0, MXD_E_FORMAT},
    {"metadata with an object", "{\"__metadata__\":{\"x\":{}}}", 0, MXD_E_FORMAT},
    {"metadata is a string", "{\"__metadata__\":\"mlx\"}", 0, MXD_E_FORMAT},
    {"metadata is a list", "{\"__metadata__\":[]}", 0, MXD_E_FORMAT},
    {"metadata is false", "{\"__metadata__\":false}", 0, MXD_E_FORMAT},
    /* rule 3: exactly three keys, plain integers */
    {"no dtype", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, MXD_E_FORMAT},
    {"no shape", T("\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"no offsets", T("\"shape\":[1]"), 4, MXD_E_FORMAT},
    {"a fourth key", T("\"shape\":[1],\"data_offsets\":[0,4],\"x\":1"), 4, MXD_E_FORMAT},
    {"tensor is a list", "{\"a\":[]}", 0, MXD_E_FORMAT},
    {"tensor is null", "{\"a\":null}", 0, MXD_E_FORMAT},
    {"shape is a number", T("\"shape\":1,\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"shape is null", T("\"shape\":null,\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"shape of strings", T("\"shape\":[\"1\"],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"shape in a shape", T("\"shape\":[[1]],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"-0 in the shape", T("\"shape\":[-0],\"data_offsets\":[0,0]"), 0, MXD_E_FORMAT},
    {"-0 as an offset", T("\"shape\":[0],\"data_offsets\":[-0,0]"), 0, MXD_E_FORMAT},
    {"-1 in the shape", T("\"shape\":[-1],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"1.0 in the shape", T("\"shape\":[1.0],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"1e0 in the shape", T("\"shape\":[1e0],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"1E0 in the shape", T("\"shape\":[1E0],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"+1 in the shape", T("\"shape\":[+1],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"leading zero", T("\"shape\":[01],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"4.0 as an offset", T("\"shape\":[1],\"data_offsets\":[0,4.0]"), 4, MXD_E_FORMAT},
    {"4e0 as an offset", T("\"shape\":[1],\"data_offsets\":[0,4e0]"), 4, MXD_E_FORMAT},
    {"hexadecimal", T("\"shape\":[0x1],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"true as a number", T("\"shape\":[true],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"NaN", T("\"shape\":[NaN],\"data_offsets\":[0,4]"), 4, MXD_E_FORMAT},
    {"2^64 as an offset", T("\"shape\":[0],\"data_offsets\":[0,18446744073709551616]"), 0,
     MXD_E_FORMAT},
    {"10^30 as a dimension",
     T("\"shape\":[1000000000000000000000000000000],\"data_offsets\":"
       "[0,4]"),
     4, MXD_E_FORMAT},
    /* rule 4: dtypes */
    {"dtype of another format", "{\"a\":{\"dtype\":\"Q4_0\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4, MXD_E_FORMAT},
    {"dtype F64", "{\"a\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8,
     MXD_E_FORMAT},
    {"dtype in small letters", "{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
     4, MXD_E_FORMAT},
    {"dtype with a space", "{\"a\":{\"dtype\":\"F32 \",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     MXD_E_FORMAT},
    {"dtype empty", "{\"a\":{\"dtype\":\"\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     MXD_E_FORMAT},
    {"dtype is a number", "{\"a\":{\"dtype\":32,\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     MXD_E_FORMAT},
    /* rule 5: offsets and shape */
    {"end before begin", T("\"shape\":[1],\"data_offsets\":[4,0]"), 4, MXD_E_FORMAT},
    {"end is -1", T("\"shape\":[1],\"data_offsets\":[0,-1]"), 4, MXD_E_FORMAT},
    {"end is -1 read as unsigned", T("\"shape\":[1],\"data_offsets\":[0,18446744073709551615]"), 4,
     MXD_E_FORMAT},
    {"one offset", T("\"shape\":[1],\"data_offsets\":[4]"), 4, MXD_E_FORMAT},
    {"three offsets", T("\"shape\":[1],\"data_offsets\":[0,4,4]"), 4, MXD_E_FORMAT},
    {"no numbers in offsets", T("\"shape\":[1],\"data_offsets\":[]"), 4, MXD_E_FORMAT},
    {"offsets is an object", T("\"shape\":[1],\"data_offsets\":{}"), 4, MXD_E_FORMAT},
    {"shape too small", T("\"shape\":[1],\"data_offsets\":[0,16]"), 16, MXD_E_FORMAT},
    {"shape too large", T("\"shape\":[5],\"data_offsets\":[0,16]"), 16, MXD_E_FORMAT},
    {"empty shape with 0 bytes", T("\"shape\":[],\"data_offsets\":[0,0]"), 0, MXD_E_FORMAT},
    {"4 * 2^31 * 2^31 wraps to 0", T("\"shape\":[2147483648,2147483648],\"data_offsets\":[0,0]"), 0,
     MXD_E_TOOBIG},
    {"product wraps to exactly 16",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[5,25,75,715827883,5726623061],\"data_offsets\":[0,16]}}",
     16, MXD_E_TOOBIG},
    {"product wraps with allowed dimensions", /* 4 * 2^30 * 2^30 * 4 = 2^64 */
     T("\"shape\":[1073741824,1073741824,4],\"data_offsets\":[0,0]"), 0, MXD_E_FORMAT},
    {"rank 9", T("\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, MXD_E_TOOBIG},
    {"dimension 2^31", T("\"shape\":[2147483648,0],\"data_offsets\":[0,0]"), 0, MXD_E_TOOBIG},
    /* rule 6: the cover */
    {"data longer than the tensors", A "}", 17, MXD_E_FORMAT},
    {"data shorter than the tensors", A "}", 15, MXD_E_FORMAT},
    {"data without tensors", "{}", 1, MXD_E_FORMAT},
    {"hole at the front", T("\"shape\":[1],\"data_offsets\":[1,5]"), 5, MXD_E_FORMAT},
    {"hole in the middle",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,3]}}",
     3, MXD_E_FORMAT},
    {"overlap",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, MXD_E_FORMAT},
    {"two names for one place",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     2, MXD_E_FORMAT},
    {"zero-sized inside another",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[1,1]}}",
     2, MXD_E_FORMAT},
    {"zero-sized behind the end", "{\"z\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[9,9]}}",
     0, MXD_E_FORMAT},
};

TEST(st_every_way_to_lie) {
    mxd_err err;
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        mxd_rc rc = mxd_st_check_header(&mxd_alloc_libc, rows[i].json, strlen(rows[i].json),
                                        rows[i].data_bytes, &err);
        if (rc != rows[i].rc)
            fail_msg("%s: %s, want %s", rows[i].what, mxd_rc_name(rc), mxd_rc_name(rows[i].rc));
    }
}

TEST(st_deep_header_is_refused_without_recursion) {
    static char deep[100000];
    mxd_err err;
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    CHECK(mxd_st_check_header(&mxd_alloc_libc, deep, sizeof deep, 0, &err) != MXD_OK);
}

TEST_OOM(st_check_header_unwinds) {
    static const char json[] = A ",\"__metadata__\":{\"x\":\"y\"}}";
    return mxd_st_check_header(al, json, sizeof json - 1, 16, err);
}

/* ---- files ---- */

static void put_file(const char *folder, const char *name, const char *json, const char *data,
                     size_t n_data) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL);
    uint64_t n = strlen(json);
    for (int i = 0; i < 8; i++) fputc((int)(n >> (8 * i) & 0xFF), f);
    fwrite(json, 1, n, f);
    fwrite(data, 1, n_data, f);
    fclose(f);
}

static void wipe(const char *folder) {
    char cmd[600];
    snprintf(cmd, sizeof cmd, "rm -rf '%s'", folder);
    CHECK_EQ(system(cmd), 0);
}

#define SMALL                                                                          \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},\"b\":{\"dtype\":" \
    "\"U16\",\"shape\":[2,1],\"data_offsets\":[3,7]}}"

TEST(st_reads_what_was_written) {
    char dir[] = "/tmp/mxd-st-XXXXXX", got[4];
    mxd_err err = {0};
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    put_file(dir, "model-00001-of-00002.safetensors", SMALL, "abcdefg", 7);
    put_file(dir, "model-00002-of-00002.safetensors",
             "{\"c\":{\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[0,1]}}", "z", 1);
    put_file(dir, "adapter.safetensors", "not a header", "", 0);
    CHECK_OK(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), &err);
    CHECK_EQ(mxd_st_count(st), 3);
    CHECK_STR(mxd_st_at(st, 1)->name, "b");
    CHECK(mxd_st_find(st, "d") == NULL && mxd_st_at(st, 3) == NULL);
    const mxd_st_tensor *b = mxd_st_find(st, "b"), *c = mxd_st_find(st, "c");
    CHECK_EQ(b->dtype, MXD_DTYPE_U16);
    CHECK_EQ(b->n_dims, 2);
    CHECK_EQ(b->shape[0], 2);
    CHECK_OK(mxd_st_read(st, b, 1, got, 3, &err), &err);
    CHECK(memcmp(got, "efg", 3) == 0);
    CHECK_EQ(mxd_st_read(st, b, 1, got, 4, &err), MXD_E_INVAL);
    CHECK_EQ(mxd_st_read(st, b, UINT64_MAX, got, 2, &err), MXD_E_INVAL);
    CHECK_EQ(c->file, 1);
    CHECK_OK(mxd_st_read(st, c, 0, got, 1, &err), &err);
    CHECK_EQ(got[0], 'z');
    uint8_t hash[32];
    memcpy(hash, mxd_st_hash(st), 32);
    mxd_st_close(st);
    put_file(dir, "model-00001-of-00002.safetensors", SMALL " ", "abcdefg", 7);
    CHECK_OK(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), &err);
    CHECK(memcmp(hash, mxd_st_hash(st), 32) != 0);
    mxd_st_close(st);
    wipe(dir);
}

TEST(st_truncated_at_every_byte) {
    char dir[] = "/tmp/mxd-st-XXXXXX", path[600];
    mxd_err err;
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    put_file(dir, "model.safetensors", SMALL, "abcdefg", 7);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    for (long n = (long)(8 + sizeof SMALL - 1 + 7) - 1; n >= 0; n--) {
        CHECK_EQ(truncate(path, n), 0);
        CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), MXD_E_FORMAT);
        CHECK(strstr(err.msg, "model.safetensors") != NULL);
    }
    wipe(dir);
}

TEST(st_truncated_while_open_is_an_error) {
    char dir[] = "/tmp/mxd-st-XXXXXX", path[600], got[4];
    mxd_err err = {0};
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    put_file(dir, "model.safetensors", SMALL, "abcdefg", 7);
    CHECK_OK(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), &err);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_EQ(truncate(path, 10), 0);
    CHECK_EQ(mxd_st_read(st, mxd_st_find(st, "b"), 0, got, 4, &err), MXD_E_IO);
    mxd_st_close(st);
    wipe(dir);
}

TEST(st_odd_folders) {
    char dir[] = "/tmp/mxd-st-XXXXXX", path[600];
    mxd_err err;
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), MXD_E_NOTFOUND);
    CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, "/nonexistent", &err), MXD_E_NOTFOUND);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    CHECK_EQ(mkfifo(path, 0600), 0); /* must not hang */
    CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), MXD_E_IO);
    CHECK_EQ(unlink(path), 0);
    put_file(dir, "model-1.safetensors", SMALL, "abcdefg", 7);
    put_file(dir, "model-2.safetensors", SMALL, "abcdefg", 7);
    CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), MXD_E_FORMAT); /* a name in two files */
    wipe(dir);
}

TEST(st_header_length_lies) {
    static const struct {
        uint64_t n;
        mxd_rc rc;
    } lies[] = {{0, MXD_E_FORMAT},          {1, MXD_E_FORMAT},
                {3, MXD_E_FORMAT},          {1 << 20, MXD_E_FORMAT},
                {UINT64_MAX, MXD_E_FORMAT}, {UINT64_MAX - 7, MXD_E_FORMAT},
                {1ull << 63, MXD_E_FORMAT}, {100000001, MXD_E_TOOBIG}};
    char dir[] = "/tmp/mxd-st-XXXXXX", path[600];
    mxd_err err;
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    put_file(dir, "model.safetensors", "{}", "", 0);
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    for (size_t i = 0; i < MXD_COUNT(lies); i++) {
        int fd = open(path, O_WRONLY);
        uint8_t head[8];
        for (int k = 0; k < 8; k++) head[k] = (uint8_t)(lies[i].n >> (8 * k));
        CHECK_EQ(pwrite(fd, head, 8, 0), 8);
        if (lies[i].rc == MXD_E_TOOBIG) CHECK_EQ(ftruncate(fd, 100000100), 0); /* sparse */
        close(fd);
        CHECK_EQ(mxd_st_open(&st, &mxd_alloc_libc, dir, &err), lies[i].rc);
    }
    wipe(dir);
}

TEST_OOM(st_open_unwinds) {
    char dir[] = "/tmp/mxd-st-XXXXXX";
    mxd_st *st = NULL;
    CHECK(mkdtemp(dir) != NULL);
    put_file(dir, "model-1.safetensors", SMALL, "abcdefg", 7);
    put_file(dir, "model-2.safetensors",
             "{\"c\":{\"dtype\":\"I8\",\"shape\":[],\"data_offsets\":[0,1]}}", "z", 1);
    mxd_rc rc = mxd_st_open(&st, al, dir, err);
    mxd_st_close(st);
    wipe(dir);
    return rc;
}

TEST(st_dtype_table) {
    CHECK_STR(mxd_dtype_name(MXD_DTYPE_BF16), "BF16");
    CHECK_EQ(mxd_dtype_bytes(MXD_DTYPE_F8_E8M0), 1);
    CHECK_EQ(mxd_dtype_bytes(MXD_DTYPE_I64), 8);
    CHECK_EQ(mxd_dtype_bytes((mxd_dtype)99), 0);
}
