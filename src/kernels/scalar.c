/* scalar.c - the meaning of every kernel, in plain C. Written to be read, and never tuned.
 *
 * The files of the instruction sets include this one, so that a slot without a faster form of its
 * own is this text compiled with their flags. Every function here is therefore static. */
#include "kernels/kernels_impl.h"

#define SLOT static __attribute__((unused))

/* ---------------------------------------------------------------------------------- conversions */

SLOT void f32_from_f16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = mxd_f16_to_f32(x[i]);
}

SLOT void f32_from_bf16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = mxd_bf16_to_f32(x[i]);
}

SLOT void f16_from_f32(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = mxd_f32_to_f16(x[i]);
}

/* ------------------------------------------------------------------------------ the tree of blocks
 *
 * Partial sums wait on a stack; after block i, as many equal neighbours merge as the counter i + 1
 * carries. At the end what is left is folded from the right. */

typedef struct tree {
    float sum[MXD_TREE_DEPTH];
    int depth;
    size_t n_blocks;
} tree;

SLOT void tree_push(tree *t, float sum) {
    for (int m = mxd_tree_merges(t->n_blocks++); m > 0; m--) sum = t->sum[--t->depth] + sum;
    t->sum[t->depth++] = sum;
}

SLOT float tree_total(tree *t) {
    float sum = t->depth ? t->sum[--t->depth] : 0.0f;
    while (t->depth) sum = t->sum[--t->depth] + sum;
    return sum;
}

/* --------------------------------------------------------------------- quantising of activations
 */

/* Below this an activation group counts as zero: 127 / a must stay finite. */
#define TINY 0x1p-100f

/* Where the code of a column of token t stands in the panel. */
SLOT size_t code_at(const mxd_panel *p, size_t column, size_t t, int wide) {
    static const uint8_t order[4] = {0, 2, 1, 3}; /* of int16 codes: pairs for a dot instruction */
    size_t four = column / 4 * (size_t)p->n + t;
    return four * 4 + (wide ? order[column % 4] : column % 4);
}

/* One group x [g] of token t: codes, scale, and scale times sum of codes. */
SLOT void quantise_group(const mxd_panel *p, const float *x, size_t group, size_t t, int limit) {
    float a = 0;
    int sum = 0, finite = 1;
    for (int i = 0; i < p->g; i++) {
        finite &= fabsf(x[i]) < INFINITY;
        a = fabsf(x[i]) > a ? fabsf(x[i]) : a;
    }
    float s = finite ? a / (float)limit : NAN, inv = (float)limit / a;
    if (finite && a < TINY) s = 0;
    for (int i = 0; i < p->g; i++) {
        int q = 0;
        if (finite && a >= TINY) q = (int)rintf(x[i] * inv);
        q = q > limit ? limit : q < -limit ? -limit : q;
        size_t at = code_at(p, group * (size_t)p->g + (size_t)i, t, limit != 127);
        if (limit == 127)
            ((int8_t *)p->q)[at] = (int8_t)q;
        else
            ((int16_t *)p->q)[at] = (int16_t)q;
        sum += q;
    }
    p->s[group * (size_t)p->n + t] = s;
    p->b[group * (size_t)p->n + t] = s * (float)sum;
}

SLOT void quantise_any(const mxd_panel *p, const float *x, size_t ldx, int limit) {
    for (size_t t = 0; t < (size_t)p->n; t++)
        for (size_t j = 0; j < p->k / (size_t)p->g; j++)
            quantise_group(p, x + t * ldx + j * (size_t)p->g, j, t, limit);
}

SLOT void quantise_i8(const mxd_panel *p, const float *x, size_t ldx) {
    quantise_any(p, x, ldx, 127);
}

SLOT void quantise_i16(const mxd_panel *p, const float *x, size_t ldx) {
    quantise_any(p, x, ldx, 32767);
}

/* ----------------------------------------------------------------------------- quantised products
 */

/* Codes of row r times the codes of token t over one activation group: an exact integer, below
 * 64 * 255 * 32767 < 2^31. c0: the first column, counted from the start of the weight group. */
SLOT int group_dot(const uint8_t *codes, const mxd_qshape *s, size_t c0, size_t r,
                   const mxd_panel *p, size_t group, size_t t, int wide) {
    int dot = 0;
    for (size_t i = 0; i < (size_t)p->g; i++) {
        size_t at = code_at(p, group * (size_t)p->g + i, t, wide);
        int q = wide ? ((const int16_t *)p->q)[at] : ((const int8_t *)p->q)[at];
        dot += mxd_code(codes, s, c0 + i, r) * q;
    }
    return dot;
}

/* Row r of the tile times token t. */
SLOT float qmul_one(const uint8_t *tile, const mxd_qshape *s, size_t r, const mxd_panel *p,
                    size_t t, int wide) {
    tree sums = {.depth = 0};
    float acc = 0;
    size_t per_group = (size_t)s->group / (size_t)p->g;
    for (size_t k = 0; k < s->k; k += (size_t)s->group) {
        const uint8_t *codes = tile + mxd_codes_at(s, k / (size_t)s->group);
        float scale, bias;
        mxd_qends(tile + mxd_scales_at(s, k / (size_t)s->group), s, r, &scale, &bias);
        for (size_t j = 0; j < per_group; j++) {
            size_t group = k / (size_t)p->g + j, at = group * (size_t)p->n + t;
            int dot = group_dot(codes, s, j * (size_t)p->g, r, p, group, t, wide);
            acc = fmaf(p->s[at] * scale, (float)dot, acc);
            acc = fmaf(bias, p->b[at], acc);
        }
        size_t end = k + (size_t)s->group;
        if (end % s->block_k == 0 || end == s->k) {
            tree_push(&sums, acc);
            acc = 0;
        }
    }
    return tree_total(&sums);
}

SLOT void qmul_any(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                   const mxd_panel *p, int wide) {
    for (size_t t = 0; t < (size_t)p->n; t++)
        for (size_t r = 0; r < MXD_TILE_ROWS; r++)
            y[t * ldy + r] = qmul_one(tile, s, r, p, t, wide);
}

SLOT void qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                  const mxd_panel *p) {
    qmul_any(y, ldy, tile, s, p, 0);
}

SLOT void qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                   const mxd_panel *p) {
    qmul_any(y, ldy, tile, s, p, 1);
}

/* The lane sum of one weight group against x [group]; codes = NULL: the sum of x alone. */
SLOT float lane_dot(const uint8_t *codes, const mxd_qshape *s, size_t r, const float *x) {
    float lane[MXD_LANES] = {0};
    for (size_t i = 0; i < (size_t)s->group; i++) {
        float w = codes ? (float)mxd_code(codes, s, i, r) : 1.0f;
        lane[i % MXD_LANES] = fmaf(w, x[i], lane[i % MXD_LANES]);
    }
    return mxd_fold(lane);
}

SLOT float qmul_f32_one(const uint8_t *tile, const mxd_qshape *s, size_t r, const float *x) {
    tree sums = {.depth = 0};
    float acc = 0;
    for (size_t k = 0; k < s->k; k += (size_t)s->group) {
        const uint8_t *codes = tile + mxd_codes_at(s, k / (size_t)s->group);
        float scale, bias;
        mxd_qends(tile + mxd_scales_at(s, k / (size_t)s->group), s, r, &scale, &bias);
        acc = fmaf(scale, lane_dot(codes, s, r, x + k), acc);
        acc = fmaf(bias, lane_dot(NULL, s, r, x + k), acc);
        size_t end = k + (size_t)s->group;
        if (end % s->block_k == 0 || end == s->k) {
            tree_push(&sums, acc);
            acc = 0;
        }
    }
    return tree_total(&sums);
}

/* Lanes run over a whole block here, as in a plain product. */
SLOT float fp8_mul_one(const uint8_t *tile, const mxd_qshape *s, size_t r, const float *x) {
    tree sums = {.depth = 0};
    size_t group = (size_t)s->group;
    for (size_t i = 0; i < s->k; i += s->block_k) {
        float lane[MXD_LANES] = {0};
        size_t end = i + s->block_k < s->k ? i + s->block_k : s->k;
        for (size_t c = i; c < end; c++) {
            const uint8_t *codes = tile + mxd_codes_at(s, c / group);
            float w = mxd_fp8_value(codes, tile + mxd_scales_at(s, c / group), c % group, r);
            lane[c % MXD_LANES] = fmaf(w, x[c], lane[c % MXD_LANES]);
        }
        tree_push(&sums, mxd_fold(lane));
    }
    return tree_total(&sums);
}

SLOT void qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s, const float *x,
                   size_t ldx, int n) {
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t r = 0; r < MXD_TILE_ROWS; r++)
            y[t * ldy + r] =
                (s->kind == MXD_MXFP8 ? fp8_mul_one : qmul_f32_one)(tile, s, r, x + t * ldx);
}

/* --------------------------------------------------------------------------------- plain products
 */

SLOT float plain_mul_one(const void *tile, mxd_ftype type, size_t k, size_t block_k, size_t r,
                         const float *x) {
    tree sums = {.depth = 0};
    size_t padded = (k + 15) / 16 * 16;
    for (size_t i = 0; i < padded; i += block_k) {
        float lane[MXD_LANES] = {0};
        size_t end = i + block_k < padded ? i + block_k : padded;
        for (size_t c = i; c < end; c++)
            lane[c % MXD_LANES] =
                fmaf(mxd_load_float(tile, type, c * MXD_TILE_ROWS + r), x[c], lane[c % MXD_LANES]);
        tree_push(&sums, mxd_fold(lane));
    }
    return tree_total(&sums);
}

SLOT void plain_mul(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                    size_t block_k, const float *x, size_t ldx, int n) {
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t r = 0; r < MXD_TILE_ROWS; r++)
            y[t * ldy + r] = plain_mul_one(tile, type, k, block_k, r, x + t * ldx);
}

/* ----------------------------------------------------------------------------------- row by row */

SLOT void rms_norm(float *y, const float *x, const float *w, size_t n, float eps) {
    float lane[MXD_LANES] = {0};
    for (size_t i = 0; i < n; i++) lane[i % MXD_LANES] = fmaf(x[i], x[i], lane[i % MXD_LANES]);
    float r = 1.0f / sqrtf(mxd_fold(lane) / (float)n + eps);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * r * w[i];
}

SLOT void silu_mul(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1.0f + mxd_expf(-gate[i])) * up[i];
}

SLOT void gelu_mul(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float x = gate[i], u = fmaf(0.044715f * x * x, x, x) * -1.59576912160573f;
        y[i] = x / (1.0f + mxd_expf(u)) * up[i];
    }
}

SLOT void sigmoid_mul(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = 1.0f / (1.0f + mxd_expf(-gate[i])) * up[i];
}

SLOT void swiglu_oai(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float g = gate[i] > 7.0f ? 7.0f : gate[i], u = up[i] > 7.0f ? 7.0f : up[i];
        u = u < -7.0f ? -7.0f : u;
        y[i] = g / (1.0f + mxd_expf(-1.702f * g)) * (u + 1.0f);
    }
}

SLOT void softcap(float *x, size_t n, float c) {
    for (size_t i = 0; i < n; i++) x[i] = c * mxd_tanhf(x[i] / c);
}

SLOT void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

SLOT void rope(float *x, const float *cs, const float *sn, size_t half, int interleaved) {
    for (size_t i = 0; i < half; i++) {
        float *a = interleaved ? x + 2 * i : x + i, *b = interleaved ? a + 1 : a + half;
        float x1 = *a, x2 = *b;
        *a = fmaf(-x2, sn[i], x1 * cs[i]);
        *b = fmaf(x2, cs[i], x1 * sn[i]);
    }
}

/* ------------------------------------------------------------------------------------- attention
 */

SLOT float softmax(float *x, size_t n, float scale, size_t first) {
    float max = -INFINITY, total = 0, lane[MXD_LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    for (size_t i = 0; i < n; i++) {
        size_t pos = first + i;
        x[i] = mxd_expf(x[i] - max);
        lane[pos % MXD_LANES] += x[i];
        if ((pos + 1) % MXD_ATTN_BLOCK && i + 1 < n) continue;
        total += mxd_fold(lane);
        memset(lane, 0, sizeof lane);
    }
    return total;
}

SLOT void attn_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                   mxd_ftype type, size_t n_pos, size_t d, int n) {
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t pos = 0; pos < n_pos; pos++)
            for (size_t i = 0; i < d; i++)
                acc[t * ldacc + i] = fmaf(p[t * ldp + pos], mxd_load_float(v, type, pos * d + i),
                                          acc[t * ldacc + i]);
}

/* ------------------------------------------------------------------------- K and V of 8 bits */

/* Nearest even; |x| is below float's range by far. */
SLOT uint16_t bf16_near(float x) {
    uint32_t bits = mxd_float_bits(x);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* A rounded scale is at most 2^-8 below a / 127, so that no code passes 127.5. */
SLOT void q8_from_f32(int8_t *codes, uint16_t *scales, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += MXD_Q8_GROUP, scales++, codes += MXD_Q8_GROUP) {
        size_t g = n - i < MXD_Q8_GROUP ? n - i : MXD_Q8_GROUP;
        uint32_t most = 0; /* magnitudes order as integers do */
        for (size_t c = 0; c < g; c++) {
            uint32_t bits = mxd_float_bits(x[i + c]) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        float a = mxd_bits_float(most);
        int finite = most < 0x7f800000, zero = !finite || a < TINY;
        *scales = !finite ? 0x7fc0 : zero ? 0 : bf16_near(a / 127.0f);
        float inv = zero ? 0 : 1.0f / mxd_bf16_to_f32(*scales);
        for (size_t c = 0; c < g; c++) /* a NaN's code is 0 as well */
            codes[c] = zero ? 0 : (int8_t)(int)rintf(x[i + c] * inv);
    }
}

/* Value `at` of codes, whose scale is number s. */
SLOT float q8_value(const int8_t *codes, size_t at, const char *scales, size_t s) {
    return (float)codes[at] * mxd_load_float(scales, MXD_BF16, s);
}

SLOT float q8_mul_one(const int8_t *tile, size_t k, size_t r, const float *x) {
    float lane[MXD_LANES] = {0};
    const char *scales = (const char *)tile + k * MXD_TILE_ROWS;
    for (size_t c = 0; c < k; c++) {
        size_t s = c / MXD_Q8_GROUP * MXD_TILE_ROWS + r;
        lane[c % MXD_LANES] =
            fmaf(q8_value(tile, c * MXD_TILE_ROWS + r, scales, s), x[c], lane[c % MXD_LANES]);
    }
    return mxd_fold(lane);
}

SLOT void q8_mul(float *y, size_t ldy, const void *tile, size_t k, const float *x, size_t ldx,
                 int n) {
    for (size_t t = 0; t < (size_t)n; t++)
        for (size_t r = 0; r < MXD_TILE_ROWS; r++)
            y[t * ldy + r] = q8_mul_one(tile, k, r, x + t * ldx);
}

SLOT void q8_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v, size_t n_pos,
                 size_t d, int n) {
    for (size_t pos = 0; pos < n_pos; pos++) {
        const int8_t *row = (const int8_t *)v + pos * mxd_q8_bytes(d);
        for (size_t t = 0; t < (size_t)n; t++)
            for (size_t i = 0; i < d; i++) {
                float value = q8_value(row, i, (const char *)row + d, i / MXD_Q8_GROUP);
                acc[t * ldacc + i] = fmaf(p[t * ldp + pos], value, acc[t * ldacc + i]);
            }
    }
}

/* ---------------------------------------------------------------------------------- delta rule */

SLOT void conv(float *y, const float *const *x, const float *w, size_t ldw, size_t taps, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < taps; j++) sum = fmaf(w[j * ldw + i], x[j][i], sum);
        y[i] = sum;
    }
}

SLOT void delta_gates(float *a, float *b, const float *a_log, const float *dt_bias, size_t n) {
    for (size_t i = 0; i < n; i++) {
        a[i] = mxd_expf(-mxd_expf(a_log[i]) * mxd_softplusf(a[i] + dt_bias[i]));
        b[i] = 1.0f / (1.0f + mxd_expf(-b[i]));
    }
}

/* Row r of a tile. */
SLOT float delta_row(float *s, float v, const float *k, const float *q, size_t d_k, float decay,
                     float beta, size_t r) {
    float sk[4] = {0}, sq[4] = {0};
    for (size_t i = 0; i < d_k; i++) sk[i % 4] = fmaf(s[i * MXD_TILE_ROWS + r], k[i], sk[i % 4]);
    float e = beta * (v - decay * ((sk[0] + sk[2]) + (sk[1] + sk[3])));
    for (size_t i = 0; i < d_k; i++) {
        float *at = s + i * MXD_TILE_ROWS + r;
        *at = fmaf(e, k[i], decay * *at);
        sq[i % 4] = fmaf(*at, q[i], sq[i % 4]);
    }
    return (sq[0] + sq[2]) + (sq[1] + sq[3]);
}

SLOT void delta_step(float *y, float *s, const float *v, const float *k, const float *q, size_t d_k,
                     size_t n, float decay, float beta) {
    for (size_t i = 0; i < n * MXD_TILE_ROWS; i++)
        y[i] = delta_row(s + i / MXD_TILE_ROWS * d_k * MXD_TILE_ROWS, v[i], k, q, d_k, decay, beta,
                         i % MXD_TILE_ROWS);
}

#ifndef MXD_SCALAR_INCLUDED
const mxd_kernels mxd_kernels_scalar = {
    .name = "scalar",
    .f32_from_f16 = f32_from_f16,
    .f32_from_bf16 = f32_from_bf16,
    .f16_from_f32 = f16_from_f32,
    .quantise_i8 = quantise_i8,
    .quantise_i16 = quantise_i16,
    .qmul_i8 = qmul_i8,
    .qmul_i16 = qmul_i16,
    .qmul_f32 = qmul_f32,
    .plain_mul = plain_mul,
    .rms_norm = rms_norm,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .sigmoid_mul = sigmoid_mul,
    .swiglu_oai = swiglu_oai,
    .softcap = softcap,
    .add = add,
    .rope = rope,
    .softmax = softmax,
    .attn_mix = attn_mix,
    .q8_from_f32 = q8_from_f32,
    .q8_mul = q8_mul,
    .q8_mix = q8_mix,
    .conv = conv,
    .delta_gates = delta_gates,
    .delta_step = delta_step,
};
#endif
