/* x86_avx2.c - AVX2, FMA and F16C; reached only through the table.
 *
 * Sixteen rows, or sixteen neighbouring values, are a pair of registers. Bytes are multiplied as
 * 16-bit words (VPMADDWD): the byte form VPMADDUBSW would saturate. `n` and the like are constants
 * after inlining, so that all sums stay in registers.
 */
#include <immintrin.h>
#define MXD_SCALAR_INCLUDED
#include "kernels/scalar.c"

#define INLINE static inline __attribute__((always_inline))

/* How far products read ahead in a tile, in bytes: the hardware stops at every page. */
enum { AHEAD = 8192 };

enum { GROUP_N = 3 }; /* most tokens whose sums fit the 16 registers */

/* ---------------------------------------------------------------------------------- small steps */

typedef struct v16 {
    __m256 lo, hi;
} v16;

INLINE v16 set16(float f) { return (v16){_mm256_set1_ps(f), _mm256_set1_ps(f)}; }

INLINE v16 add16(v16 a, v16 b) {
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

INLINE v16 sub16(v16 a, v16 b) {
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}

INLINE v16 mul16(v16 a, v16 b) {
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}

INLINE v16 fma16(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

INLINE v16 read16(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }

INLINE void write16(float *p, v16 v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
}

INLINE __m128i half8(const uint16_t *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

INLINE __m256 from_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* 16 floats of type t from element `at`. */
INLINE v16 load16(const void *p, mxd_ftype t, size_t at) {
    if (t == MXD_F32) return read16((const float *)p + at);
    __m128i lo = half8((const uint16_t *)p + at), hi = half8((const uint16_t *)p + at + 8);
    if (t == MXD_F16) return (v16){_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)};
    return (v16){from_bf16(lo), from_bf16(hi)};
}

INLINE float fold16(v16 v) {
    float lane[MXD_LANES];
    write16(lane, v);
    return mxd_fold(lane);
}

/* mxd_fold of 16 rows at once. */
INLINE v16 fold_lanes(v16 *lane) {
    for (int half = MXD_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = add16(lane[l], lane[l + half]);
    return lane[0];
}

/* mxd_expf, lane by lane. */
INLINE __m256 exp8(__m256 x) {
    __m256 hi = _mm256_set1_ps(MXD_EXP_HI), lo = _mm256_set1_ps(MXD_EXP_LO);
    __m256 roll = _mm256_set1_ps(MXD_EXP_ROLL);
    __m256 y = _mm256_max_ps(lo, _mm256_min_ps(hi, x)); /* a NaN in x passes */
    __m256 t = _mm256_fmadd_ps(y, _mm256_set1_ps(MXD_LOG2E), roll), n = _mm256_sub_ps(t, roll);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MXD_LN2_HI), y);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-MXD_LN2_LO), r);
    __m256 p =
        _mm256_fmadd_ps(_mm256_set1_ps(1.9875691500e-4f), r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i e = _mm256_add_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(127 - 0x4b400000));
    p = _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
    p = _mm256_blendv_ps(p, _mm256_set1_ps(INFINITY), _mm256_cmp_ps(x, hi, _CMP_GT_OQ));
    return _mm256_blendv_ps(p, _mm256_setzero_ps(), _mm256_cmp_ps(x, lo, _CMP_LT_OQ));
}

/* The tree of blocks, for 16 rows of n tokens. */
typedef struct vtree {
    v16 sum[MXD_TREE_DEPTH][GROUP_N];
    int depth;
    size_t n_blocks;
} vtree;

INLINE void vtree_push(vtree *v, const v16 *acc, const int n) {
    int merges = mxd_tree_merges(v->n_blocks++);
    v16 sum[GROUP_N];
    for (int t = 0; t < n; t++) sum[t] = acc[t];
    for (; merges; merges--) {
        const v16 *left = v->sum[--v->depth];
        for (int t = 0; t < n; t++) sum[t] = add16(left[t], sum[t]);
    }
    for (int t = 0; t < n; t++) v->sum[v->depth][t] = sum[t];
    v->depth++;
}

INLINE void vtree_store(const vtree *v, float *y, size_t ldy, const int n) {
    for (int t = 0; t < n; t++) {
        v16 sum = v->depth ? v->sum[v->depth - 1][t] : set16(0);
        for (int m = v->depth - 2; m >= 0; m--) sum = add16(v->sum[m][t], sum);
        write16(y + (size_t)t * ldy, sum);
    }
}

/* ---------------------------------------------------------------------------------- conversions */

static void v_f32_from_f16(float *y, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, _mm256_cvtph_ps(half8(x + i)));
    f32_from_f16(y + i, x + i, n - i);
}

static void v_f16_from_f32(uint16_t *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(y + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    f16_from_f32(y + i, x + i, n - i);
}

/* --------------------------------------------------------------------- quantising of activations
 */

/* The largest magnitude of x [g], as bits: magnitudes order as integers do. */
INLINE uint32_t largest(const float *x, size_t g) {
    __m256i max = _mm256_setzero_si256(), sign = _mm256_set1_epi32(0x7fffffff);
    for (size_t i = 0; i < g; i += 8) {
        __m256i v = _mm256_castps_si256(_mm256_loadu_ps(x + i));
        max = _mm256_max_epu32(max, _mm256_and_si256(v, sign));
    }
    uint32_t lane[8], m = 0;
    _mm256_storeu_si256((__m256i *)(void *)lane, max);
    for (int i = 0; i < 8; i++) m = lane[i] > m ? lane[i] : m;
    return m;
}

/* 8 codes of token t of n, four columns side by side; returns their sum. */
INLINE int put_codes(void *q, size_t n, __m256i codes, const int limit) {
    int32_t c[8];
    int sum = 0;
    _mm256_storeu_si256((__m256i *)(void *)c, codes);
    for (int i = 0; i < 8; i++) sum += c[i];
    for (size_t f = 0; f < 2; f++) {
        const int32_t *v = c + 4 * f;
        if (limit == 127)
            memcpy((int8_t *)q + f * n * 4,
                   (int8_t[]){(int8_t)v[0], (int8_t)v[1], (int8_t)v[2], (int8_t)v[3]}, 4);
        else
            memcpy((int16_t *)q + f * n * 4,
                   (int16_t[]){(int16_t)v[0], (int16_t)v[2], (int16_t)v[1], (int16_t)v[3]}, 8);
    }
    return sum;
}

INLINE void v_quantise(const mxd_panel *p, const float *x, size_t ldx, const int limit) {
    size_t n = (size_t)p->n, g = (size_t)p->g, size = limit == 127 ? 1 : 2;
    __m256i most = _mm256_set1_epi32(limit), least = _mm256_set1_epi32(-limit);
    for (size_t t = 0; t < n; t++)
        for (size_t j = 0; j < p->k / g; j++) {
            const float *v = x + t * ldx + j * g;
            uint32_t bits = largest(v, g);
            float a = mxd_bits_float(bits);
            int finite = bits < 0x7f800000, zero = !finite || a < TINY, sum = 0;
            float s = finite ? zero ? 0 : a / (float)limit : NAN;
            __m256 inv = _mm256_set1_ps(zero ? 0 : (float)limit / a);
            for (size_t i = 0; i < g; i += 8) {
                __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(v + i), inv));
                q = _mm256_max_epi32(least, _mm256_min_epi32(most, q));
                if (zero) q = _mm256_setzero_si256();
                sum += put_codes((char *)p->q + ((j * g + i) * n + 4 * t) * size, n, q, limit);
            }
            p->s[j * n + t] = s;
            p->b[j * n + t] = s * (float)sum;
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

/* Four columns of one token as words: columns 0 and 2 in even, 1 and 3 in odd. */
INLINE void words_of(const char *q, const int wide, __m256i *even, __m256i *odd) {
    int32_t two[2];
    if (wide) {
        memcpy(two, q, 8);
        *even = _mm256_set1_epi32(two[0]);
        *odd = _mm256_set1_epi32(two[1]);
    } else {
        memcpy(two, q, 4);
        __m256i x = _mm256_set1_epi32(two[0]);
        *even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
        *odd = _mm256_srai_epi16(x, 8);
    }
}

INLINE __m256i madd2(__m256i acc, __m256i w, __m256i even, __m256i odd) {
    acc =
        _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), even));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_srli_epi16(w, 8), odd));
}

/* One activation group: `fours` times four columns of 16 rows against n tokens. q: the first of
 * them; `step` bytes to the next four columns. */
INLINE const uint8_t *dots(__m256i (*dot)[2], const uint8_t *codes, const char *q, size_t step,
                           size_t fours, const int n, const int bits, const int wide) {
    const __m256i low = _mm256_set1_epi8(15);
    for (int t = 0; t < n; t++) dot[t][0] = dot[t][1] = _mm256_setzero_si256();
    for (size_t i = 0; i < fours; i++, q += step) {
        __m256i w0 = _mm256_loadu_si256((const __m256i *)(const void *)codes);
        __m256i w1 = _mm256_loadu_si256((const __m256i *)(const void *)(codes + 32));
        _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
        if (bits == 4) {
            w0 = _mm256_and_si256(i % 2 ? _mm256_srli_epi16(w0, 4) : w0, low);
            w1 = _mm256_and_si256(i % 2 ? _mm256_srli_epi16(w1, 4) : w1, low);
        }
        if (bits == 8 || i % 2) codes += 64;
        for (int t = 0; t < n; t++) {
            __m256i even, odd;
            words_of(q + t * (wide ? 8 : 4), wide, &even, &odd);
            dot[t][0] = madd2(dot[t][0], w0, even, odd);
            dot[t][1] = madd2(dot[t][1], w1, even, odd);
        }
    }
    return codes;
}

/* Tokens [t0, t0 + n) of the panel. */
INLINE void qmul_n(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                   const mxd_panel *p, size_t t0, const int n, const int bits, const int wide) {
    const size_t step = (size_t)p->n * (wide ? 8 : 4), fours = (size_t)p->g / 4;
    const char *q = (const char *)p->q + t0 * (wide ? 8 : 4);
    const float *xs = p->s + t0, *xb = p->b + t0;
    const size_t in_block = s->block_k / (size_t)s->group, f = mxd_ftype_bytes(s->scales);
    vtree sums;
    v16 acc[GROUP_N];
    __m256i dot[GROUP_N][2];
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / (size_t)s->group; left;) {
        size_t groups = left < in_block ? left : in_block;
        left -= groups;
        for (int t = 0; t < n; t++) acc[t] = set16(0);
        for (; groups; groups--) {
            const uint8_t *ends = tile + (size_t)s->group * (size_t)bits * 2;
            v16 scale = load16(ends, s->scales, 0), bias = load16(ends, s->scales, MXD_TILE_ROWS);
            for (int j = 0; j < s->group / p->g; j++) {
                tile = dots(dot, tile, q, step, fours, n, bits, wide);
                for (int t = 0; t < n; t++) {
                    v16 by = mul16(set16(xs[t]), scale);
                    v16 d = {_mm256_cvtepi32_ps(dot[t][0]), _mm256_cvtepi32_ps(dot[t][1])};
                    acc[t] = fma16(bias, set16(xb[t]), fma16(by, d, acc[t]));
                }
                q += step * fours;
                xs += p->n;
                xb += p->n;
            }
            tile = ends + 2 * MXD_TILE_ROWS * f;
        }
        vtree_push(&sums, acc, n);
    }
    vtree_store(&sums, y, ldy, n);
}

#define QMUL(name, bits, wide)                                                             \
    static void name(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,       \
                     const mxd_panel *p) {                                                 \
        size_t t = 0, n = (size_t)p->n;                                                    \
        for (; t + 3 <= n; t += 3) qmul_n(y + t * ldy, ldy, tile, s, p, t, 3, bits, wide); \
        if (n - t == 2) qmul_n(y + t * ldy, ldy, tile, s, p, t, 2, bits, wide);            \
        if (n - t == 1) qmul_n(y + t * ldy, ldy, tile, s, p, t, 1, bits, wide);            \
    }
QMUL(qmul8_i8, 8, 0)
QMUL(qmul4_i8, 4, 0)
QMUL(qmul8_i16, 8, 1)
QMUL(qmul4_i16, 4, 1)

static void v_qmul_i8(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                      const mxd_panel *p) {
    (s->bits == 8 ? qmul8_i8 : qmul4_i8)(y, ldy, tile, s, p);
}

static void v_qmul_i16(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const mxd_panel *p) {
    (s->bits == 8 ? qmul8_i16 : qmul4_i16)(y, ldy, tile, s, p);
}

/* Columns c of 16 rows as floats, from the 64 bytes that hold it. */
INLINE v16 column_of(const uint8_t *codes, size_t c, const int bits) {
    const uint8_t *at = codes + (bits == 8 ? c / 4 * 64 : c / 8 * 64);
    const __m128i by = _mm_cvtsi32_si128((int)(c % 4 * 8 + (bits == 4 ? c & 4 : 0)));
    const __m256i mask = _mm256_set1_epi32(bits == 8 ? 255 : 15);
    __m256i lo = _mm256_loadu_si256((const __m256i *)(const void *)at);
    __m256i hi = _mm256_loadu_si256((const __m256i *)(const void *)(at + 32));
    return (v16){_mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(lo, by), mask)),
                 _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(hi, by), mask))};
}

/* Lane sums of one weight group against one token, folded; four lanes at a time. */
INLINE v16 group_f32(float *sum, const uint8_t *codes, size_t group, const float *x,
                     const int bits) {
    v16 lane[MXD_LANES], all = set16(0);
    for (size_t l0 = 0; l0 < MXD_LANES; l0 += 4) {
        v16 part[4] = {set16(0), set16(0), set16(0), set16(0)};
        for (size_t c = l0; c < group; c += MXD_LANES)
            for (size_t l = 0; l < 4; l++)
                part[l] = fma16(column_of(codes, c + l, bits), set16(x[c + l]), part[l]);
        for (size_t l = 0; l < 4; l++) lane[l0 + l] = part[l];
    }
    for (size_t c = 0; c < group; c += MXD_LANES) all = add16(read16(x + c), all);
    *sum = fold16(all);
    return fold_lanes(lane);
}

INLINE void qmul_f32_one_v(float *y, const uint8_t *tile, const mxd_qshape *s, const float *x,
                           const int bits) {
    const size_t group = (size_t)s->group, in_block = s->block_k / group;
    vtree sums;
    sums.depth = 0;
    sums.n_blocks = 0;
    for (size_t left = s->k / group; left;) {
        size_t groups = left < in_block ? left : in_block;
        v16 acc = set16(0);
        left -= groups;
        for (; groups; groups--, x += group, tile += mxd_qgroup_bytes(s)) {
            const uint8_t *ends = tile + group * (size_t)bits * 2;
            float sum;
            v16 dot = group_f32(&sum, tile, group, x, bits);
            acc = fma16(load16(ends, s->scales, 0), dot, acc);
            acc = fma16(load16(ends, s->scales, MXD_TILE_ROWS), set16(sum), acc);
        }
        vtree_push(&sums, &acc, 1);
    }
    vtree_store(&sums, y, 0, 1);
}

static void v_qmul_f32(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                       const float *x, size_t ldx, int n) {
    for (; n; n--, y += ldy, x += ldx)
        if (s->bits == 8)
            qmul_f32_one_v(y, tile, s, x, 8);
        else
            qmul_f32_one_v(y, tile, s, x, 4);
}

#include "kernels/x86_avx2_narrow.h"

/* --------------------------------------------------------------------------------- plain products
 */

/* Lane sums of columns [0, cols) for n tokens, `wide` lanes at a time, folded into acc [n]. */
INLINE void plain_block(v16 *acc, const char *tile, mxd_ftype type, size_t cols, const float *x,
                        size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2;
    v16 lane[GROUP_N][MXD_LANES];
    for (int l0 = 0; l0 < MXD_LANES; l0 += wide) {
        v16 part[GROUP_N][4];
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) part[t][l] = set16(0);
        for (size_t c = (size_t)l0; c < cols; c += MXD_LANES)
            for (int l = 0; l < wide; l++) {
                v16 w = load16(tile + (c + (size_t)l) * MXD_TILE_ROWS * f, type, 0);
                for (int t = 0; t < n; t++)
                    part[t][l] = fma16(w, set16(x[(size_t)t * ldx + c + (size_t)l]), part[t][l]);
            }
        for (int t = 0; t < n; t++)
            for (int l = 0; l < wide; l++) lane[t][l0 + l] = part[t][l];
    }
    for (int t = 0; t < n; t++) { acc[t] = fold_lanes(lane[t]); }
}

INLINE void plain_n(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                    size_t block_k, const float *x, size_t ldx, const int n, const int wide) {
    const size_t f = type == MXD_F32 ? 4 : 2, padded = (k + 15) / 16 * 16;
    vtree sums;
    v16 acc[GROUP_N];
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

#define PLAIN(name, type)                                                              \
    static void name(float *y, size_t ldy, const void *tile, size_t k, size_t block_k, \
                     const float *x, size_t ldx, int n) {                              \
        for (; n >= 3; n -= 3, y += 3 * ldy, x += 3 * ldx)                             \
            plain_n(y, ldy, tile, type, k, block_k, x, ldx, 3, 2);                     \
        if (n == 2) plain_n(y, ldy, tile, type, k, block_k, x, ldx, 2, 2);             \
        if (n == 1) plain_n(y, ldy, tile, type, k, block_k, x, ldx, 1, 4);             \
    }
PLAIN(plain_f32, MXD_F32)
PLAIN(plain_f16, MXD_F16)
PLAIN(plain_bf16, MXD_BF16)

static void v_plain_mul(float *y, size_t ldy, const void *tile, mxd_ftype type, size_t k,
                        size_t block_k, const float *x, size_t ldx, int n) {
    (type == MXD_F32   ? plain_f32
     : type == MXD_F16 ? plain_f16
                       : plain_bf16)(y, ldy, tile, k, block_k, x, ldx, n);
}

/* ----------------------------------------------------------------------------------- row by row */

static void v_rms_norm(float *y, const float *x, const float *w, size_t n, float eps) {
    float lane[MXD_LANES];
    v16 acc = set16(0);
    size_t i = 0;
    for (; i + 16 <= n; i += 16) acc = fma16(read16(x + i), read16(x + i), acc);
    write16(lane, acc);
    for (size_t j = 0; i < n; i++, j++) lane[j] = fmaf(x[i], x[i], lane[j]);
    float r = 1.0f / sqrtf(mxd_fold(lane) / (float)n + eps);
    for (i = 0; i + 16 <= n; i += 16)
        write16(y + i, mul16(mul16(read16(x + i), set16(r)), read16(w + i)));
    for (; i < n; i++) y[i] = x[i] * r * w[i];
}

static void v_silu_mul(float *y, const float *gate, const float *up, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 e = exp8(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
        g = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(g, _mm256_loadu_ps(up + i)));
    }
    silu_mul(y + i, gate + i, up + i, n - i);
}

/* ------------------------------------------------------------------------------------- attention
 */

/* Times scale, in place; returns the maximum. A NaN never becomes it. */
static float scale_and_max(float *x, size_t n, float scale) {
    __m256 top = _mm256_set1_ps(-INFINITY);
    float max = -INFINITY, lane[8];
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(scale));
        _mm256_storeu_ps(x + i, v);
        top = _mm256_max_ps(v, top);
    }
    _mm256_storeu_ps(lane, top);
    for (int j = 0; j < 8; j++) max = lane[j] > max ? lane[j] : max;
    for (; i < n; i++) {
        x[i] *= scale;
        max = x[i] > max ? x[i] : max;
    }
    return max;
}

static float v_softmax(float *x, size_t n, float scale, size_t first) {
    float max = scale_and_max(x, n, scale), total = 0, lane[MXD_LANES] = {0};
    for (size_t i = 0; i < n;) {
        size_t at = (first + i) % 16;
        if (at || n - i < 16) { /* up to a multiple of 16, and the last few */
            x[i] = mxd_expf(x[i] - max);
            lane[at] += x[i++];
        } else {
            v16 v = read16(x + i), m = set16(max);
            v = (v16){exp8(_mm256_sub_ps(v.lo, m.lo)), exp8(_mm256_sub_ps(v.hi, m.hi))};
            write16(x + i, v);
            write16(lane, add16(read16(lane), v));
            i += 16;
        }
        if ((first + i) % MXD_ATTN_BLOCK && i < n) continue;
        total += mxd_fold(lane);
        memset(lane, 0, sizeof lane);
    }
    return total;
}

/* `wide` times 16 elements of d for n tokens, over all positions. */
INLINE void mix_n(float *acc, size_t ldacc, const float *p, size_t ldp, const char *v,
                  mxd_ftype type, size_t n_pos, size_t d, const int n, const int wide) {
    v16 sum[GROUP_N][4];
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++) sum[t][i] = read16(acc + (size_t)t * ldacc + 16 * i);
    for (size_t pos = 0; pos < n_pos; pos++, v += d * (type == MXD_F32 ? 4 : 2))
        for (int i = 0; i < wide; i++) {
            v16 w = load16(v, type, 16 * (size_t)i);
            for (int t = 0; t < n; t++)
                sum[t][i] = fma16(set16(p[(size_t)t * ldp + pos]), w, sum[t][i]);
        }
    for (int t = 0; t < n; t++)
        for (int i = 0; i < wide; i++) write16(acc + (size_t)t * ldacc + 16 * i, sum[t][i]);
}

/* All of d, `wide` times 16 at a time as long as they fit. */
INLINE void mix_row(float *acc, size_t ldacc, const float *p, size_t ldp, const char *v,
                    mxd_ftype type, size_t n_pos, size_t d, const int n, const int wide) {
    size_t i = 0, f = type == MXD_F32 ? 4 : 2;
    for (; i + 16 * (size_t)wide <= d; i += 16 * (size_t)wide)
        mix_n(acc + i, ldacc, p, ldp, v + i * f, type, n_pos, d, n, wide);
    for (; i < d; i += 16) mix_n(acc + i, ldacc, p, ldp, v + i * f, type, n_pos, d, n, 1);
}

#define MIX(name, type)                                                                   \
    static void name(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v, \
                     size_t n_pos, size_t d, int n) {                                     \
        for (; n >= 3; n -= 3, acc += 3 * ldacc, p += 3 * ldp)                            \
            mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 3, 2);                         \
        if (n == 2) mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 2, 2);                 \
        if (n == 1) mix_row(acc, ldacc, p, ldp, v, type, n_pos, d, 1, 4);                 \
    }
MIX(mix_f32, MXD_F32)
MIX(mix_f16, MXD_F16)
MIX(mix_bf16, MXD_BF16)

static void v_attn_mix(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                       mxd_ftype type, size_t n_pos, size_t d, int n) {
    (type == MXD_F32   ? mix_f32
     : type == MXD_F16 ? mix_f16
                       : mix_bf16)(acc, ldacc, p, ldp, v, n_pos, d, n);
}

#include "kernels/x86_avx2_q8.h"

/* ---------------------------------------------------------------------------------- delta rule */

static void v_conv(float *y, const float *const *x, const float *w, size_t ldw, size_t taps,
                   size_t n) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 sum = set16(0);
        for (size_t j = 0; j < taps; j++)
            sum = fma16(read16(w + j * ldw + i), read16(x[j] + i), sum);
        write16(y + i, sum);
    }
    for (; i < n; i++) {
        float sum = 0;
        for (size_t j = 0; j < taps; j++) sum = fmaf(w[j * ldw + i], x[j][i], sum);
        y[i] = sum;
    }
}

INLINE v16 fold4(const v16 *c) { return add16(add16(c[0], c[2]), add16(c[1], c[3])); }

static void delta_tile(float *y, float *s, const float *v, const float *k, const float *q,
                       size_t d_k, float decay, float beta) {
    v16 chain[4] = {set16(0), set16(0), set16(0), set16(0)}, g = set16(decay);
    for (size_t i = 0; i < d_k; i += 4)
        for (size_t c = 0; c < 4; c++)
            chain[c] = fma16(read16(s + (i + c) * 16), set16(k[i + c]), chain[c]);
    v16 e = mul16(g, fold4(chain));
    e = mul16(set16(beta), sub16(read16(v), e));
    for (int c = 0; c < 4; c++) chain[c] = set16(0);
    for (size_t i = 0; i < d_k; i += 4)
        for (size_t c = 0; c < 4; c++) {
            float *p = s + (i + c) * 16;
            v16 at = fma16(e, set16(k[i + c]), mul16(g, read16(p)));
            write16(p, at);
            chain[c] = fma16(at, set16(q[i + c]), chain[c]);
        }
    write16(y, fold4(chain));
}

static void v_delta_step(float *y, float *s, const float *v, const float *k, const float *q,
                         size_t d_k, size_t n, float decay, float beta) {
    for (size_t t = 0; t < n; t++)
        delta_tile(y + 16 * t, s + t * d_k * 16, v + 16 * t, k, q, d_k, decay, beta);
}

const mxd_kernels mxd_kernels_avx2 = {
    .name = "avx2",
    .f32_from_f16 = v_f32_from_f16,
    .f32_from_bf16 = f32_from_bf16,
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
