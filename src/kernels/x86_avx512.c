/* x86_avx512.c - AVX-512 with the byte dot product (VNNI); reached only through the table.
 *
 * A register holds 16 rows of a weight tile, or 16 neighbouring values of a row. `n` and the like
 * are constants after inlining: one copy per number of tokens, so that all sums stay in registers.
 */
#include <immintrin.h>
#define MXD_SCALAR_INCLUDED
#include "kernels/scalar.c"

#define INLINE static inline __attribute__((always_inline))

/* How far products read ahead in a tile, in bytes: the hardware stops at every page, and with many
 * tokens the processor's own window is too short to hide memory. */
enum { AHEAD = 8192 };

/* ---------------------------------------------------------------------------------- small steps */

INLINE __mmask16 tail(size_t n) { return (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1); }

/* 16 floats of type t from element `at`. */
INLINE __m512 load16(const void *p, mxd_ftype t, size_t at) {
    if (t == MXD_F32) return _mm512_loadu_ps((const float *)p + at);
    __m256i half = _mm256_loadu_si256((const __m256i *)(const void *)((const uint16_t *)p + at));
    if (t == MXD_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE __m512 broadcast(const float *p) { return _mm512_set1_ps(*p); }

INLINE float fold16(__m512 v) {
    float lane[MXD_LANES];
    _mm512_storeu_ps(lane, v);
    return mxd_fold(lane);
}

/* mxd_fold of 16 rows at once: lane [MXD_LANES], the result in lane[0]. */
INLINE void fold_lanes(__m512 *lane) {
    for (int half = MXD_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = _mm512_add_ps(lane[l], lane[l + half]);
}

/* mxd_expf, lane by lane. */
INLINE __m512 exp16(__m512 x) {
    __m512 hi = _mm512_set1_ps(MXD_EXP_HI), lo = _mm512_set1_ps(MXD_EXP_LO);
    __m512 roll = _mm512_set1_ps(MXD_EXP_ROLL);
    __m512 y = _mm512_max_ps(lo, _mm512_min_ps(hi, x)); /* a NaN in x passes */
    __m512 t = _mm512_fmadd_ps(y, _mm512_set1_ps(MXD_LOG2E), roll), n = _mm512_sub_ps(t, roll);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-MXD_LN2_HI), y);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-MXD_LN2_LO), r);
    __m512 p =
        _mm512_fmadd_ps(_mm512_set1_ps(1.9875691500e-4f), r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    __m512i e = _mm512_add_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(127 - 0x4b400000));
    p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(e, 23)));
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, hi, _CMP_GT_OQ), _mm512_set1_ps(INFINITY));
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, lo, _CMP_LT_OQ), _mm512_setzero_ps());
}

/* The tree of blocks, for 16 rows of n tokens. */
typedef struct vtree {
    __m512 sum[MXD_TREE_DEPTH][MXD_PANEL];
    int depth;
    size_t n_blocks;
} vtree;

INLINE void vtree_push(vtree *v, const __m512 *acc, const int n) {
    int merges = mxd_tree_merges(v->n_blocks++);
    __m512 sum[MXD_PANEL];
    for (int t = 0; t < n; t++) sum[t] = acc[t];
    for (; merges; merges--) {
        const __m512 *left = v->sum[--v->depth];
        for (int t = 0; t < n; t++) sum[t] = _mm512_add_ps(left[t], sum[t]);
    }
    for (int t = 0; t < n; t++) v->sum[v->depth][t] = sum[t];
    v->depth++;
}

INLINE void vtree_store(const vtree *v, float *y, size_t ldy, const int n) {
    for (int t = 0; t < n; t++) {
        __m512 sum = v->depth ? v->sum[v->depth - 1][t] : _mm512_setzero_ps();
        for (int m = v->depth - 2; m >= 0; m--) sum = _mm512_add_ps(v->sum[m][t], sum);
        _mm512_storeu_ps(y + (size_t)t * ldy, sum);
    }
}

/* ---------------------------------------------------------------------------------- conversions */

static void v_f32_from_f16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __m256i h = _mm256_maskz_loadu_epi16(tail(n - i), x + i);
        _mm512_mask_storeu_ps(y + i, tail(n - i), _mm512_cvtph_ps(h));
    }
}

static void v_f32_from_bf16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __m512i w = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(tail(n - i), x + i));
        _mm512_mask_storeu_ps(y + i, tail(n - i), _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)));
    }
}

static void v_f16_from_f32(uint16_t *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(tail(n - i), x + i);
        _mm256_mask_storeu_epi16(y + i, tail(n - i),
                                 _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

/* --------------------------------------------------------------------- quantising of activations
 */

/* The largest magnitude of x [16 * n_vec], as bits: magnitudes order as integers do. */
INLINE uint32_t largest(const float *x, int n_vec) {
    __m512i max = _mm512_setzero_si512(), sign = _mm512_set1_epi32(0x7fffffff);
    for (int i = 0; i < n_vec; i++)
        max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_loadu_si512(x + 16 * i), sign));
    return _mm512_reduce_max_epu32(max);
}

/* 16 codes of token t of n, four columns side by side, to q. */
INLINE void put_i8(int8_t *q, size_t n, __m512i codes) {
    __m128i b = _mm512_cvtepi32_epi8(codes);
    if (n == 1) {
        _mm_storeu_si128((__m128i *)(void *)q, b);
        return;
    }
    int32_t four[4];
    _mm_storeu_si128((__m128i *)(void *)four, b);
    for (size_t i = 0; i < 4; i++) memcpy(q + i * n * 4, &four[i], 4);
}

INLINE void put_i16(int16_t *q, size_t n, __m512i codes) {
    __m256i h = _mm512_cvtepi32_epi16(codes);
    h = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(h, 0xd8), 0xd8); /* order 0 2 1 3 */
    int64_t four[4];
    _mm256_storeu_si256((__m256i *)(void *)four, h);
    for (size_t i = 0; i < 4; i++) memcpy(q + i * n * 4, &four[i], 8);
}

INLINE void v_quantise(const mxd_panel *p, const float *x, size_t ldx, const int limit) {
    size_t n = (size_t)p->n, g = (size_t)p->g;
    __m512i most = _mm512_set1_epi32(limit), least = _mm512_set1_epi32(-limit);
    for (size_t t = 0; t < n; t++)
        for (size_t j = 0; j < p->k / g; j++) {
            const float *v = x + t * ldx + j * g;
            uint32_t bits = largest(v, p->g / 16);
            float a = mxd_bits_float(bits);
            int finite = bits < 0x7f800000, zero = !finite || a < TINY;
            float s = finite ? zero ? 0 : a / (float)limit : NAN;
            __m512 inv = _mm512_set1_ps(zero ? 0 : (float)limit / a);
            __m512i sum = _mm512_setzero_si512();
            for (size_t i = 0; i < g; i += 16) {
                __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(v + i), inv));
                q = zero ? _mm512_setzero_si512()
                         : _mm512_max_epi32(least, _mm512_min_epi32(most, q));
                sum = _mm512_add_epi32(sum, q);
                size_t at = (j * g + i) * n + 4 * t;
                if (limit == 127)
                    put_i8((int8_t *)p->q + at, n, q);
                else
                    put_i16((int16_t *)p->q + at, n, q);
            }
            p->s[j * n + t] = s;
            p->b[j * n + t] = s * (float)_mm512_reduce_add_epi32(sum);
        }
}

static void v_quantise_i8(const mxd_panel *p, const float *x, size_t ldx) {
    v_quantise(p, x, ldx, 127);
}

static void v_quantise_i16(const mxd_panel *p, const float *x, size_t ldx) {
    v_quantise(p, x, ldx, 32767);
}

/* ----------------------------------------------------------------------------- quantised products
 */

/* One activation group: `fours` times four columns of 16 rows against n tokens. With few tokens
 * several partial sums hide the latency of the dot product. */
INLINE const uint8_t *dots_i8(__m512i *dot, const uint8_t *codes, const int8_t *q, size_t fours,
                              const int n, const int bits) {
    const int ways = n == 1 ? 4 : n <= 3 ? 2 : 1;
    const __m512i low = _mm512_set1_epi8(15);
    __m512i part[MXD_PANEL * 4];
    for (int i = 0; i < n * ways; i++) part[i] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (size_t i = 0; i < fours; i += 4)
#pragma GCC unroll 4
        for (int u = 0; u < 4; u++, q += 4 * n) {
            __m512i w;
            if (bits == 8) {
                w = _mm512_loadu_si512(codes);
                _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
                codes += 64;
            } else {
                w = _mm512_loadu_si512(codes);
                if (u % 2 == 0) _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
                if (u % 2) w = _mm512_srli_epi16(w, 4), codes += 64;
                w = _mm512_and_si512(w, low);
            }
            for (int t = 0; t < n; t++) {
                int32_t four;
                memcpy(&four, q + 4 * t, 4);
                __m512i *to = &part[t * ways + u % ways];
                *to = _mm512_dpbusd_epi32(*to, w, _mm512_set1_epi32(four));
            }
        }
    for (int t = 0; t < n; t++) {
        dot[t] = part[t * ways];
        for (int u = 1; u < ways; u++) dot[t] = _mm512_add_epi32(dot[t], part[t * ways + u]);
    }
    return codes;
}

/* The same with int16 activations: columns 0 and 2, then 1 and 3, as pairs of words. */
INLINE const uint8_t *dots_i16(__m512i *dot, const uint8_t *codes, const int16_t *q, size_t fours,
                               const int n, const int bits) {
    const __m512i low = _mm512_set1_epi8(15), byte = _mm512_set1_epi16(255);
    for (int t = 0; t < n; t++) dot[t] = _mm512_setzero_si512();
    for (size_t i = 0; i < fours; i++, q += 4 * n) {
        __m512i w = _mm512_loadu_si512(codes);
        if (bits == 4) w = _mm512_and_si512(i % 2 ? _mm512_srli_epi16(w, 4) : w, low);
        if (bits == 8 || i % 2) codes += 64;
        __m512i even = _mm512_and_si512(w, byte), odd = _mm512_srli_epi16(w, 8);
        for (int t = 0; t < n; t++) {
            int32_t two[2];
            memcpy(two, q + 4 * t, 8);
            dot[t] = _mm512_dpwssd_epi32(dot[t], even, _mm512_set1_epi32(two[0]));
            dot[t] = _mm512_dpwssd_epi32(dot[t], odd, _mm512_set1_epi32(two[1]));
        }
    }
    return codes;
}

INLINE void qmul_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                   const mxd_panel *p, const int n, const int bits, const int wide, const int g) {
    const char *q = p->q;
    const float *xs = p->s, *xb = p->b;
    const size_t per_group = (size_t)(s->group / g), fours = (size_t)g / 4;
    const size_t in_block = s->block_k / (size_t)s->group, f = mxd_ftype_bytes(s->scales);
    const size_t code_bytes = (size_t)s->group * (size_t)bits * 2;
    vtree sums;
    __m512 acc[MXD_PANEL];
    __m512i dot[MXD_PANEL];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / (size_t)s->group; left;) {
        size_t groups = left < in_block ? left : in_block;
        left -= groups;
        for (int t = 0; t < n; t++) acc[t] = _mm512_setzero_ps();
        for (; groups; groups--) {
            const uint8_t *ends = tile + code_bytes;
            for (size_t j = 0; j < per_group; j++, q += fours * 4 * (size_t)n << wide) {
                tile = wide ? dots_i16(dot, tile, (const int16_t *)(const void *)q, fours, n, bits)
                            : dots_i8(dot, tile, (const int8_t *)q, fours, n, bits);
                __m512 scale = load16(ends, s->scales, 0);
                __m512 bias = load16(ends, s->scales, MXD_TILE_ROWS);
                for (int t = 0; t < n; t++, xs++, xb++) {
                    __m512 by = _mm512_mul_ps(broadcast(xs), scale);
                    acc[t] = _mm512_fmadd_ps(by, _mm512_cvtepi32_ps(dot[t]), acc[t]);
                    acc[t] = _mm512_fmadd_ps(bias, broadcast(xb), acc[t]);
                }
            }
            tile = ends + 2 * MXD_TILE_ROWS * f;
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

/* Groups of 64 are nearly all there is: their loops have known ends. */
INLINE void qmul_bytes(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const mxd_panel *p, const int n, const int bits) {
    if (p->g == 64)
        qmul_n(y, ldy, tile, s, p, n, bits, 0, 64);
    else
        qmul_n(y, ldy, tile, s, p, n, bits, 0, p->g);
}

#define EACH_N(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

#define QMUL(n)                                                                                \
    static __attribute__((noinline)) void qmul8_##n(float *y, size_t ldy, const uint8_t *tile, \
                                                    const mxd_qshape *s, const mxd_panel *p) { \
        qmul_bytes(y, ldy, tile, s, p, n, 8);                                                  \
    }                                                                                          \
    static __attribute__((noinline)) void qmul4_##n(float *y, size_t ldy, const uint8_t *tile, \
                                                    const mxd_qshape *s, const mxd_panel *p) { \
        qmul_bytes(y, ldy, tile, s, p, n, 4);                                                  \
    }
EACH_N(QMUL)

typedef void (*qmul_fn)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                        const mxd_panel *p);

static void v_qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                      const mxd_panel *p) {
#define ROW8(n) qmul8_##n,
#define ROW4(n) qmul4_##n,
    static const qmul_fn fn[2][MXD_PANEL] = {{EACH_N(ROW8)}, {EACH_N(ROW4)}};
    fn[s->bits == 4][p->n - 1](y, ldy, tile, s, p);
}

static void v_qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const mxd_panel *p) {
    switch (p->n) {
#define CASE(n)                                        \
    case n:                                            \
        if (s->bits == 8)                              \
            qmul_n(y, ldy, tile, s, p, n, 8, 1, p->g); \
        else                                           \
            qmul_n(y, ldy, tile, s, p, n, 4, 1, p->g); \
        break;
        EACH_N(CASE)
    }
}

/* Four columns of 16 rows as floats: columns c .. c + 3 of the group, c a multiple of 4. */
INLINE void columns_of(__m512 *w, const uint8_t *codes, size_t c, const int bits) {
    __m512i v = _mm512_loadu_si512(codes + (bits == 8 ? c * 16 : c / 8 * 64));
    if (bits == 4) v = _mm512_srli_epi32(v, c & 4);
    const __m512i mask = _mm512_set1_epi32(bits == 8 ? 255 : 15);
    for (int l = 0; l < 4; l++)
        w[l] = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(v, 8 * (unsigned)l), mask));
}

/* Lane sums of one weight group against n tokens, folded; four lanes at a time. */
INLINE void group_f32(__m512 *dot, float *sum, const uint8_t *codes, size_t group, const float *x,
                      size_t ldx, const int n, const int bits) {
    __m512 lane[4][MXD_LANES];
    for (size_t l0 = 0; l0 < MXD_LANES; l0 += 4) {
        __m512 part[4][4], w[4];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < 4; l++) part[t][l] = _mm512_setzero_ps();
        for (size_t c = l0; c < group; c += MXD_LANES) {
            columns_of(w, codes, c, bits);
            for (int t = 0; t < n; t++)
                for (size_t l = 0; l < 4; l++)
                    part[t][l] =
                        _mm512_fmadd_ps(w[l], broadcast(x + (size_t)t * ldx + c + l), part[t][l]);
        }
        for (int t = 0; t < n; t++)
            for (size_t l = 0; l < 4; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) {
        fold_lanes(lane[t]);
        dot[t] = lane[t][0];
        __m512 all = _mm512_setzero_ps();
        for (size_t c = 0; c < group; c += 16)
            all = _mm512_add_ps(_mm512_loadu_ps(x + (size_t)t * ldx + c), all);
        sum[t] = fold16(all);
    }
}

INLINE void qmul_f32_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const float *x, size_t ldx, const int n, const int bits) {
    const size_t group = (size_t)s->group, in_block = s->block_k / group;
    vtree sums;
    __m512 acc[4], dot[4];
    float sum[4];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / group; left;) {
        size_t groups = left < in_block ? left : in_block;
        left -= groups;
        for (int t = 0; t < n; t++) acc[t] = _mm512_setzero_ps();
        for (; groups; groups--, x += group, tile += mxd_qgroup_bytes(s)) {
            const uint8_t *ends = tile + group * (size_t)bits * 2;
            __m512 scale = load16(ends, s->scales, 0);
            __m512 bias = load16(ends, s->scales, MXD_TILE_ROWS);
            group_f32(dot, sum, tile, group, x, ldx, n, bits);
            for (int t = 0; t < n; t++) {
                acc[t] = _mm512_fmadd_ps(scale, dot[t], acc[t]);
                acc[t] = _mm512_fmadd_ps(bias, _mm512_set1_ps(sum[t]), acc[t]);
            }
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

static void v_qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const float *x, size_t ldx, int n) {
    for (; n >= 4; n -= 4, y += 4 * ldy, x += 4 * ldx)
        if (s->bits == 8)
            qmul_f32_n(y, ldy, tile, s, x, ldx, 4, 8);
        else
            qmul_f32_n(y, ldy, tile, s, x, ldx, 4, 4);
    for (; n; n--, y += ldy, x += ldx)
        if (s->bits == 8)
            qmul_f32_n(y, ldy, tile, s, x, ldx, 1, 8);
        else
            qmul_f32_n(y, ldy, tile, s, x, ldx, 1, 4);
}

#include "kernels/x86_avx512_narrow.h"

/* --------------------------------------------------------------------------------- plain products
 */

/* Lane sums of columns [0, cols) for n tokens, `wide` lanes at a time, folded into acc [n]. */
INLINE void plain_block(__m512 *acc, const char *tile, mxd_ftype type, size_t cols, const float *x,
                        size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2;
    __m512 lane[6][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        __m512 part[6][MXD_LANES];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = _mm512_setzero_ps();
        for (size_t c = (size_t)l0; c < cols; c += MXD_LANES)
            for (int l = 0; l < wide; l++) {
                __m512 w = load16(tile + (c + (size_t)l) * MXD_TILE_ROWS * f, type, 0);
                for (int t = 0; t < n; t++)
                    part[t][l] = _mm512_fmadd_ps(w, broadcast(x + (size_t)t * ldx + c + (size_t)l),
                                                 part[t][l]);
            }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) {
        fold_lanes(lane[t]);
        acc[t] = lane[t][0];
    }
}

INLINE void plain_n(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                    size_t block_k, const float *x, size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2, padded = (k + 15) / 16 * 16;
    vtree sums;
    __m512 acc[6];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t i = 0; i < padded; i += block_k) {
        size_t cols = padded - i < block_k ? padded - i : block_k;
        plain_block(acc, (const char *)tile + i * MXD_TILE_ROWS * f, type, cols, x + i, ldx, n,
                    wide);
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define PLAIN(n, wide)                                                                        \
    static __attribute__((noinline)) void plain_##n(float *y, size_t ldy, const void *tile,   \
                                                    mxd_ftype type, size_t k, size_t block_k, \
                                                    const float *x, size_t ldx) {             \
        if (type == MXD_F32)                                                                  \
            plain_n(y, ldy, tile, MXD_F32, k, block_k, x, ldx, n, wide);                      \
        else if (type == MXD_F16)                                                             \
            plain_n(y, ldy, tile, MXD_F16, k, block_k, x, ldx, n, wide);                      \
        else                                                                                  \
            plain_n(y, ldy, tile, MXD_BF16, k, block_k, x, ldx, n, wide);                     \
    }
PLAIN(1, 16)
PLAIN(2, 8)
PLAIN(3, 8)
PLAIN(4, 4)
PLAIN(5, 4)
PLAIN(6, 4)

static void v_plain_mul(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                        size_t block_k, const float *x, size_t ldx, int n) {
    static void (*const fn[])(float *, size_t, const void *, mxd_ftype, size_t, size_t,
                              const float *,
                              size_t) = {plain_1, plain_2, plain_3, plain_4, plain_5, plain_6};
    for (int m; n > 0; n -= m, y += (size_t)m * ldy, x += (size_t)m * ldx) {
        m = n < 6 ? n : 6;
        fn[m - 1](y, ldy, tile, type, k, block_k, x, ldx);
    }
}

/* ----------------------------------------------------------------------------------- row by row */

static void v_rms_norm(float *y, const float *x, const float *w, size_t n, float eps) {
    __m512 lane = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(tail(n - i), x + i);
        lane = _mm512_mask3_fmadd_ps(v, v, lane, tail(n - i));
    }
    __m512 r = _mm512_set1_ps(1.0f / sqrtf(fold16(lane) / (float)n + eps));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = tail(n - i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), r);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, w + i)));
    }
}

static void v_silu_mul(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = tail(n - i);
        __m512 g = _mm512_maskz_loadu_ps(m, gate + i), u = _mm512_maskz_loadu_ps(m, up + i);
        __m512 e = exp16(_mm512_xor_ps(g, _mm512_set1_ps(-0.0f)));
        g = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(g, u));
    }
}

/* ------------------------------------------------------------------------------------- attention
 */

/* Elements [0, n) shifted so that registers start at positions that are multiples of 16. */
static float v_softmax(float *x, size_t n, float scale, size_t first) {
    __m512 by = _mm512_set1_ps(scale), max = _mm512_set1_ps(-INFINITY), lane = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(tail(n - i), x + i), by);
        _mm512_mask_storeu_ps(x + i, tail(n - i), v);
        max = _mm512_mask_max_ps(max, tail(n - i), v, max); /* a NaN leaves max as it is */
    }
    max = _mm512_set1_ps(_mm512_reduce_max_ps(max));
    float total = 0;
    for (size_t i = 0; i < n;) {
        size_t at = (first + i) % 16, m = n - i < 16 - at ? n - i : 16 - at;
        __mmask16 mask = (__mmask16)(tail(m) << at);
        __m512 p = exp16(_mm512_sub_ps(_mm512_maskz_expandloadu_ps(mask, x + i), max));
        _mm512_mask_compressstoreu_ps(x + i, mask, p);
        lane = _mm512_mask_add_ps(lane, mask, lane, p);
        i += m;
        if ((first + i) % MXD_ATTN_BLOCK && i < n) continue;
        total += fold16(lane);
        lane = _mm512_setzero_ps();
    }
    return total;
}

/* `wide` registers of d for n tokens, over all positions. */
INLINE void mix_n(float *acc, size_t ldacc, const float *p, size_t ldp, const char *v,
                  mxd_ftype type, size_t n_pos, size_t d, const int n, const int wide) {
    __m512 sum[6][8];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            sum[t][i] = _mm512_loadu_ps(acc + (size_t)t * ldacc + 16 * i);
    for (size_t pos = 0; pos < n_pos; pos++, v += d * (type == MXD_F32 ? 4 : 2))
        for (int i = 0; i < wide; i++) {
            __m512 w = load16(v, type, 16 * (size_t)i);
            for (int t = 0; t < n; t++)
                sum[t][i] = _mm512_fmadd_ps(broadcast(p + (size_t)t * ldp + pos), w, sum[t][i]);
        }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++)
            _mm512_storeu_ps(acc + (size_t)t * ldacc + 16 * i, sum[t][i]);
}

#define MIX(n, wide)                                                                         \
    static __attribute__((noinline)) void mix_##n##_##wide(                                  \
        float *acc, size_t ldacc, const float *p, size_t ldp, const char *v, mxd_ftype type, \
        size_t n_pos, size_t d) {                                                            \
        if (type == MXD_F16)                                                                 \
            mix_n(acc, ldacc, p, ldp, v, MXD_F16, n_pos, d, n, wide);                        \
        else if (type == MXD_F32)                                                            \
            mix_n(acc, ldacc, p, ldp, v, MXD_F32, n_pos, d, n, wide);                        \
        else                                                                                 \
            mix_n(acc, ldacc, p, ldp, v, MXD_BF16, n_pos, d, n, wide);                       \
    }
MIX(1, 8)
MIX(1, 1)
MIX(2, 8)
MIX(2, 1)
MIX(3, 4)
MIX(3, 1)
MIX(4, 4)
MIX(4, 1)
MIX(5, 4)
MIX(5, 1)
MIX(6, 4)
MIX(6, 1)

static void v_attn_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                       mxd_ftype type, size_t n_pos, size_t d, int n) {
    typedef void (*mix_fn)(float *, size_t, const float *, size_t, const char *, mxd_ftype, size_t,
                           size_t);
    static const mix_fn wide[] = {mix_1_8, mix_2_8, mix_3_4, mix_4_4, mix_5_4, mix_6_4};
    static const mix_fn one[] = {mix_1_1, mix_2_1, mix_3_1, mix_4_1, mix_5_1, mix_6_1};
    for (int m; n > 0; n -= m, acc += (size_t)m * ldacc, p += (size_t)m * ldp) {
        m = n < 6 ? n : 6;
        size_t i = 0, step = m <= 2 ? 128 : 64;
        for (; i + step <= d; i += step)
            wide[m - 1](acc + i, ldacc, p, ldp, (const char *)v + i * mxd_ftype_bytes(type), type,
                        n_pos, d);
        for (; i < d; i += 16)
            one[m - 1](acc + i, ldacc, p, ldp, (const char *)v + i * mxd_ftype_bytes(type), type,
                       n_pos, d);
    }
}

#include "kernels/x86_avx512_q8.h"

/* ---------------------------------------------------------------------------------- delta rule */

static void v_conv(float *y, const float *const *x, const float *w, size_t ldw, size_t taps,
                   size_t n) {
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = tail(n - i);
        __m512 sum = _mm512_setzero_ps();
        for (size_t j = 0; j < taps; j++)
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, w + j * ldw + i),
                                  _mm512_maskz_loadu_ps(m, x[j] + i), sum);
        _mm512_mask_storeu_ps(y + i, m, sum);
    }
}

INLINE __m512 fold4(const __m512 *c) {
    return _mm512_add_ps(_mm512_add_ps(c[0], c[2]), _mm512_add_ps(c[1], c[3]));
}

/* n tiles side by side, so that they share what is read of k and q. */
INLINE void delta_n(float *y, float *s, const float *v, const float *k, const float *q, size_t d_k,
                    float decay, float beta, const int n) {
    __m512 chain[2][4], e[2], g = _mm512_set1_ps(decay);
    size_t tile = d_k * MXD_TILE_ROWS;
    for (int t = 0; t < n; t++)
        for (int c = 0; c < 4; c++) chain[t][c] = _mm512_setzero_ps();
    for (size_t i = 0; i < d_k; i += 4)
        for (int c = 0; c < 4; c++) {
            __m512 ki = broadcast(k + i + c);
            for (int t = 0; t < n; t++) {
                __m512 at = _mm512_loadu_ps(s + (size_t)t * tile + (i + (size_t)c) * 16);
                chain[t][c] = _mm512_fmadd_ps(at, ki, chain[t][c]);
            }
        }
    for (int t = 0; t < n; t++) {
        __m512 sk = _mm512_mul_ps(g, fold4(chain[t]));
        e[t] = _mm512_mul_ps(_mm512_set1_ps(beta), _mm512_sub_ps(_mm512_loadu_ps(v + 16 * t), sk));
        for (int c = 0; c < 4; c++) chain[t][c] = _mm512_setzero_ps();
    }
    for (size_t i = 0; i < d_k; i += 4)
        for (int c = 0; c < 4; c++) {
            __m512 ki = broadcast(k + i + c), qi = broadcast(q + i + c);
            for (int t = 0; t < n; t++) {
                float *p = s + (size_t)t * tile + (i + (size_t)c) * 16;
                __m512 at = _mm512_fmadd_ps(e[t], ki, _mm512_mul_ps(g, _mm512_loadu_ps(p)));
                _mm512_storeu_ps(p, at);
                chain[t][c] = _mm512_fmadd_ps(at, qi, chain[t][c]);
            }
        }
    for (int t = 0; t < n; t++) _mm512_storeu_ps(y + 16 * t, fold4(chain[t]));
}

static void v_delta_step(float *y, float *s, const float *v, const float *k, const float *q,
                         size_t d_k, size_t n, float decay, float beta) {
    for (; n >= 2; n -= 2, s += 2 * d_k * MXD_TILE_ROWS, v += 32, y += 32)
        delta_n(y, s, v, k, q, d_k, decay, beta, 2);
    if (n) delta_n(y, s, v, k, q, d_k, decay, beta, 1);
}

const mxd_kernels mxd_kernels_avx512 = {
    .name = "avx512",
    .f32_from_f16 = v_f32_from_f16,
    .f32_from_bf16 = v_f32_from_bf16,
    .f16_from_f32 = v_f16_from_f32,
    .quantise_i8 = v_quantise_i8,
    .quantise_i16 = v_quantise_i16,
    .qmul_i8 = any_qmul_i8,
    .qmul_i16 = any_qmul_i16,
    .qmul_f32 = any_qmul_f32,
    .plain_mul = v_plain_mul,
    .rms_norm = v_rms_norm,
    .silu_mul = v_silu_mul,
    .gelu_mul = gelu_mul,
    .sigmoid_mul = sigmoid_mul,
    .swiglu_oai = swiglu_oai,
    .softcap = softcap,
    .add = add,
    .rope = rope,
    .softmax = v_softmax,
    .attn_mix = v_attn_mix,
    .q8_from_f32 = q8_from_f32,
    .q8_mul = v_q8_mul,
    .q8_mix = v_q8_mix,
    .conv = v_conv,
    .delta_gates = delta_gates,
    .delta_step = v_delta_step,
};
