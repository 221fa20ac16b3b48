/* kernels.h - the arithmetic, one table of functions per instruction set.
 *
 * The meaning of every slot is docs/numerics.md, and scalar.c in C: every table gives the bits of
 * scalar.c, for any shape (the bits of a NaN excepted). Rules for every slot:
 *   - no allocation, no threads, no errors: callers split the work and check shapes;
 *   - outputs never alias inputs unless the slot says so; pointers need the alignment of their
 *     element only, but tiles are fastest when they start on a cache line;
 *   - a stride (`ld...`) counts elements from one row to the next.
 *
 * Weights are cut into tiles of MXD_TILE_ROWS output rows; rows that do not exist are zero. A tile
 * is one sequential stream of bytes, so that a product with one token runs at the speed of memory:
 *
 *   quantised tile, per group of `group` columns:     plain tile, per column (in rounded up to 16):
 *     codes   [group/4][16 rows][4 columns] u8          [16 rows] of f32, f16 or bf16
 *     scales  [16] \  in the type of the file:
 *     biases  [16] /  f16, bf16 or f32
 *   bits = 4: codes [group/8][16 rows][4] u8, byte c of a row holds columns c (low half) and c + 4
 *
 * Activations of up to MXD_PANEL tokens are quantised into a panel, four columns of every token
 * side by side:
 *   q [k/4][n][4]      codes, int8; or int16, the four in the order 0 2 1 3
 *   s [k/g][n]         scale of each token's group of g = min(group, 64) columns
 *   b [k/g][n]         scale times the sum of the group's codes
 */
#ifndef MXD_KERNELS_KERNELS_H
#define MXD_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    MXD_LANES = 16,      /* lanes of a canonical sum */
    MXD_TILE_ROWS = 16,  /* rows of a weight tile */
    MXD_PANEL = 12,      /* most tokens of one product */
    MXD_TREE_DEPTH = 32, /* levels of the binary counter */
    MXD_ATTN_BLOCK = 256 /* positions of one block of attention sums */
};

typedef enum mxd_ftype { MXD_F32, MXD_F16, MXD_BF16 } mxd_ftype; /* how floats are stored */

static inline size_t mxd_ftype_bytes(mxd_ftype t) { return t == MXD_F32 ? 4 : 2; }

/* The shape of a quantised tile. k is a multiple of group, block_k too; group is 16, 32,
 * 64 or 128. Files may be narrower: see mxd_widen_codes. */
typedef struct mxd_qshape {
    size_t k, block_k;
    int group, bits; /* bits: 8 or 4 */
    mxd_ftype scales;
} mxd_qshape;

static inline size_t mxd_qgroup_bytes(const mxd_qshape *s) {
    return (size_t)s->group * (size_t)s->bits * (MXD_TILE_ROWS / 8) +
           2 * MXD_TILE_ROWS * mxd_ftype_bytes(s->scales);
}
static inline size_t mxd_qtile_bytes(const mxd_qshape *s) {
    return s->k / (size_t)s->group * mxd_qgroup_bytes(s);
}
static inline size_t mxd_ftile_bytes(size_t k, mxd_ftype t) {
    return (k + 15) / 16 * 16 * MXD_TILE_ROWS * mxd_ftype_bytes(t);
}
/* Columns that share one activation scale. */
static inline int mxd_act_group(int group) { return group < 64 ? group : 64; }

typedef struct mxd_panel {
    int n, g;     /* tokens, 1 .. MXD_PANEL; columns per scale, 16, 32 or 64 */
    size_t k;     /* columns, a multiple of g */
    void *q;      /* [k/4][n][4] of int8_t, or int16_t for the i16 slots */
    float *s, *b; /* [k/g][n] each */
} mxd_panel;

typedef struct mxd_kernels {
    const char *name; /* "scalar", "avx2", ...; shown by mlx-dist-detect and in benchmarks */

    /* y[i] = x[i] converted; n >= 0. */
    void (*f32_from_f16)(float *y, const uint16_t *x, size_t n);
    void (*f32_from_bf16)(float *y, const uint16_t *x, size_t n);
    void (*f16_from_f32)(uint16_t *y, const float *x, size_t n); /* to nearest even */

    /* Fills the panel from x [n, k], rows ldx apart. */
    void (*quantise_i8)(const mxd_panel *p, const float *x, size_t ldx);
    void (*quantise_i16)(const mxd_panel *p, const float *x, size_t ldx);

    /* y[t * ldy + r] = row r of the tile times token t, for 16 rows and the panel's tokens. */
    void (*qmul_i8)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                    const mxd_panel *p);
    void (*qmul_i16)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                     const mxd_panel *p);
    /* The same with float32 activations x [n, k], rows ldx apart; 1 <= n <= MXD_PANEL. */
    void (*qmul_f32)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s, const float *x,
                     size_t ldx, int n);
    /* The same with a plain tile of type t. x has k rounded up to 16 readable floats per row,
     * zero behind k. block_k is a multiple of 16. Also the scores of attention: 16 keys a tile. */
    void (*plain_mul)(float *y, size_t ldy, const void *tile, mxd_ftype t, size_t k, size_t block_k,
                      const float *x, size_t ldx, int n);

    /* y [n] = x / sqrt(mean(x^2) + eps) * w. y may be x. */
    void (*rms_norm)(float *y, const float *x, const float *w, size_t n, float eps);
    /* y [n] = silu(gate) * up. y may be gate or up. */
    void (*silu_mul)(float *y, const float *gate, const float *up, size_t n);
    /* y [n] = gelu(gate) * up, with gelu(x) = x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))). */
    void (*gelu_mul)(float *y, const float *gate, const float *up, size_t n);
    /* y [n] = sigmoid(gate) * up. */
    void (*sigmoid_mul)(float *y, const float *gate, const float *up, size_t n);
    /* y [n], g = min(gate, 7), u = clamp(up, -7, 7): g * sigmoid(1.702 g) * (u + 1). */
    void (*swiglu_oai)(float *y, const float *gate, const float *up, size_t n);
    /* x [n] = c * tanh(x / c). */
    void (*softcap)(float *x, size_t n, float c);
    /* y [n] += x. */
    void (*add)(float *y, const float *x, size_t n);

    /* One head, in place: x1' = fma(-x2, sn, x1 * cs), x2' = fma(x2, cs, x1 * sn) for the pairs
     * (i, i + half), or (2i, 2i + 1) when interleaved. cs, sn [half]. */
    void (*rope)(float *x, const float *cs, const float *sn, size_t half, int interleaved);

    /* Scores to weights: x [n] = exp(x * scale - max), the maximum being taken over x * scale;
     * n >= 1. x[0] belongs to position `first`. Returns the sum of the weights: by lanes of
     * position mod 16 inside blocks of MXD_ATTN_BLOCK positions, blocks added in order. */
    float (*softmax)(float *x, size_t n, float scale, size_t first);
    /* acc [n, d] rows ldacc apart, d a multiple of 16: for each position in order,
     * acc[t][i] = fma(p[t * ldp + pos], v[pos * d + i], acc[t][i]). */
    void (*attn_mix)(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                     mxd_ftype t, size_t n_pos, size_t d, int n);
} mxd_kernels;

/* The fastest table this machine runs: the same pointer for the life of the process. Any thread. */
const mxd_kernels *mxd_kernels_best(void);

/* The usable table of this name; NULL when there is none or the machine cannot run it. */
const mxd_kernels *mxd_kernels_find(const char *name);

/* Tables this machine can run, best first, scalar last; returns how many (at most cap). */
size_t mxd_kernels_usable(const mxd_kernels **out, size_t cap);

/* ---------------------------------------------------------------------------- packing of tiles */

/* Writes one quantised tile from up to 16 rows of the file.
 *   codes           n_rows rows of k * bits / 8 bytes, packed as in a file of this many bits
 *   scales, biases  n_rows rows of k / group values of type s->scales */
void mxd_qtile_pack(uint8_t *tile, const mxd_qshape *s, int n_rows, const uint8_t *codes,
                    const void *scales, const void *biases);
/* Writes one plain tile from n_rows rows [k] of type t. */
void mxd_ftile_pack(void *tile, mxd_ftype t, size_t k, int n_rows, const void *rows);

/* Formats without a tile of their own, one row of k columns into the rows that packing takes. Every
 * value stays what it was; memory grows (docs/numerics.md).
 *
 * to = the same codes with to_bits (4 or 8) each instead of bits (1 .. to_bits). k: a multiple
 * of 8. */
void mxd_widen_codes(uint8_t *to, int to_bits, const uint8_t *from, int bits, size_t k);
/* E2M1 elements (mxfp4, nvfp4) as codes 2 * value + 12 of 8 bits. k: even. */
void mxd_widen_fp4(uint8_t *codes, const uint8_t *from, size_t k);
/* The ends of those groups from n scales s (E8M0 or E4M3): scale = s / 2, bias = -6 s, in bf16.
 * Returns 0 when some 6 s is not finite: then its group means nothing. */
int mxd_widen_fp4_ends(uint16_t *scales, uint16_t *biases, const uint8_t *from, size_t n, int e8m0);
/* y [k], bf16 = E4M3 elements times the E8M0 scale of their 32 columns: exact from 2^-126; below,
 * rounded to what bf16 holds; infinite from 2^128 on, as in MLX. */
void mxd_widen_mxfp8(uint16_t *y, const uint8_t *codes, const uint8_t *scales, size_t k);

/* y [k] = row r (0 .. 15) of a tile, as float: fma(scale, code, bias). */
void mxd_qtile_row(float *y, const uint8_t *tile, const mxd_qshape *s, int r);
void mxd_ftile_row(float *y, const void *tile, mxd_ftype t, size_t k, int r);
/* y [n] = columns [k0, k0 + n) of a row, whole groups. */
void mxd_qtile_part(float *y, const uint8_t *tile, const mxd_qshape *s, int r, size_t k0, size_t n);

#endif
