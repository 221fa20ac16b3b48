#include "backend_kit.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/rand.h"
#include "kernels/math.h"
#include "test.h"

static uint64_t hash(const char *s) {
    uint64_t h = 7;
    while (*s) h = mxd_mix64(h ^ (uint64_t)*s++);
    return h;
}

float kit_noise(const char *stream, uint64_t n) {
    return mxd_rand_unit(11, hash(stream), n) * 2 - 1;
}

void kit_begin(kit *k) {
    memset(k, 0, sizeof *k);
    snprintf(k->dir, sizeof k->dir, "/tmp/mxd-kit-XXXXXX");
    CHECK(mkdtemp(k->dir) != NULL);
    snprintf(k->file, sizeof k->file, "%s/model.safetensors", k->dir);
}

static kit_tensor *add_tensor(kit *k, const char *name, const char *suffix, mxd_dtype d, int rows,
                              int cols) {
    CHECK(k->n < KIT_MAX_TENSORS);
    kit_tensor *t = &k->t[k->n++];
    snprintf(t->name, sizeof t->name, "%s%s", name, suffix);
    t->dtype = d;
    t->n_dims = rows ? 2 : 1;
    t->shape[0] = (uint64_t)(rows ? rows : cols);
    t->shape[1] = (uint64_t)cols;
    t->bytes = (uint64_t)(rows ? rows : 1) * (uint64_t)cols * mxd_dtype_bytes(d);
    t->data = malloc(t->bytes);
    CHECK(t->data != NULL);
    return t;
}

static void put(kit_tensor *t, uint64_t i, float f) {
    uint16_t h = t->dtype == MXD_DTYPE_F16 ? mxd_f32_to_f16(f)
                                           : (uint16_t)((mxd_float_bits(f) + 0x8000) >> 16);
    if (t->dtype == MXD_DTYPE_F32)
        memcpy(t->data + 4 * i, &f, 4);
    else
        memcpy(t->data + 2 * i, &h, 2);
}

static void fill(kit_tensor *t, float scale, float shift) {
    for (uint64_t i = 0; i < t->bytes / mxd_dtype_bytes(t->dtype); i++)
        put(t, i, kit_noise(t->name, i) * scale + shift);
}

void kit_float(kit *k, const char *name, mxd_dtype d, int rows, int cols, float scale,
               float shift) {
    fill(add_tensor(k, name, ".weight", d, rows, cols), scale, shift);
}

void kit_affine(kit *k, const char *name, mxd_dtype d, int rows, int cols, int bits, int group) {
    kit_tensor *t = add_tensor(k, name, ".weight", MXD_DTYPE_U32, rows, cols * bits / 32);
    for (uint64_t i = 0; i < t->bytes; i++)
        t->data[i] = (unsigned char)(mxd_rand_u64(3, hash(t->name), i) >> 32);
    float step = 2.0f / (float)((1 << bits) - 1) * 0.06f;
    fill(add_tensor(k, name, ".scales", d, rows, cols / group), step, 0); /* either sign */
    fill(add_tensor(k, name, ".biases", d, rows, cols / group), 0.05f, 0);
}

void kit_open(kit *k) {
    char *head = malloc(KIT_MAX_TENSORS * 256);
    int at = sprintf(head, "{");
    uint64_t offset = 0;
    for (int i = 0; i < k->n; i++) {
        const kit_tensor *t = &k->t[i];
        at += sprintf(head + at, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%llu", i ? "," : "",
                      t->name, mxd_dtype_name(t->dtype), (unsigned long long)t->shape[0]);
        if (t->n_dims == 2) at += sprintf(head + at, ",%llu", (unsigned long long)t->shape[1]);
        at += sprintf(head + at, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)offset,
                      (unsigned long long)(offset + t->bytes));
        offset += t->bytes;
    }
    at += sprintf(head + at, "}");
    uint64_t n = (uint64_t)at;
    FILE *f = fopen(k->file, "wb");
    CHECK(f != NULL);
    fwrite(&n, 8, 1, f);
    fwrite(head, 1, n, f);
    for (int i = 0; i < k->n; i++) fwrite(k->t[i].data, 1, k->t[i].bytes, f);
    CHECK(fclose(f) == 0);
    free(head);
    mxd_err err = {0};
    CHECK_OK(mxd_st_open(&k->st, &mxd_alloc_libc, k->dir, &err), &err);
}

void kit_end(kit *k) {
    mxd_st_close(k->st);
    for (int i = 0; i < k->n; i++) free(k->t[i].data);
    unlink(k->file);
    rmdir(k->dir);
}

static const mxd_st_tensor *find(const kit *k, const char *name, const char *suffix) {
    char full[80];
    snprintf(full, sizeof full, "%s%s", name, suffix);
    return mxd_st_find(k->st, full);
}

mxd_weight_src kit_src(const kit *k, const char *name, unsigned use, int out, int in, int bits,
                       int group, int block_k) {
    return (mxd_weight_src){
        .name = name,
        .use = use,
        .st = k->st,
        .weight = find(k, name, ".weight"),
        .scales = find(k, name, ".scales"),
        .biases = find(k, name, ".biases"),
        .quant = {bits ? MXD_Q_AFFINE : MXD_Q_NONE, bits, group},
        .out = out,
        .in = in,
        .block_k = block_k,
    };
}

static const kit_tensor *data_of(const kit *k, const mxd_st_tensor *t) {
    for (int i = 0; i < k->n; i++)
        if (strcmp(k->t[i].name, t->name) == 0) return &k->t[i];
    return NULL;
}

static double get(const kit_tensor *t, uint64_t i) {
    float f;
    uint16_t h;
    memcpy(&f, t->data + (t->dtype == MXD_DTYPE_F32 ? 4 * i : 0), 4);
    if (t->dtype == MXD_DTYPE_F32) return f;
    memcpy(&h, t->data + 2 * i, 2);
    return t->dtype == MXD_DTYPE_F16 ? mxd_f16_to_f32(h) : mxd_bf16_to_f32(h);
}

double kit_value(const kit *k, const mxd_weight_src *s, int row, int col) {
    const kit_tensor *w = data_of(k, s->weight);
    uint64_t at = (uint64_t)row * (uint64_t)s->in + (uint64_t)col;
    if (!s->quant.bits) return get(w, at);
    uint64_t bit = at * (uint64_t)s->quant.bits, group = at / (uint64_t)s->quant.group;
    int code = w->data[bit / 8] >> bit % 8 & ((1 << s->quant.bits) - 1);
    return get(data_of(k, s->scales), group) * code + get(data_of(k, s->biases), group);
}
