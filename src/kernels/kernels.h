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
 *   bits = 2: codes [group/16][16 rows][4] u8, byte c holds columns c, c + 4, c + 8, c + 12
 *   bits = 3, 5, 6: per 32 columns a plane of the low 2, 4, 4 bits of every code, as those above,
 *   then one of the high bits. A plane of 1 bit: bit i of byte c is of column c + 4 i
 *
 * Elements of microscaling formats stay what they are in the file, and their scales a byte:
 *   per four groups (the last four may be fewer):
 *     scales  [4 groups][16 rows] u8, zero where there is no group
 *     E2M1    [4 groups] of 4-bit codes as above
 *     E4M3    [4 groups][32 columns][16 rows] u8
 *
 * Activations of up to MXD_PANEL tokens are quantised into a panel, four columns of every token
 * side by side:
 *   q [k/4][n][4]      codes, int8; or int16, the four in the order 0 2 1 3
 *   s [k/g][n]         scale of each token's group of g = min(group, 32) columns
 *   b [k/g][n]         scale times the sum of the group's codes
 *
 * K and V of attention may be kept in 8 bits: codes, and a scale for every MXD_Q8_GROUP columns
 * (the last may be fewer). code * scale is a value, which float32 holds exactly. row       codes
 * [d] i8, scales [groups] bf16 16 rows   codes [d][16 rows] i8, scales [groups][16 rows] bf16
 */
#ifndef MXD_KERNELS_KERNELS_H
#define MXD_KERNELS_KERNELS_H

/* Raised when the same model gives other bits than before: what was kept of it counts no more. */
enum { MXD_NUMERICS = 1 };

#include <stddef.h>
#include <stdint.h>

enum {
    MXD_LANES = 16,       /* lanes of a canonical sum */
    MXD_TILE_ROWS = 16,   /* rows of a weight tile */
    MXD_PANEL = 12,       /* most tokens of one product */
    MXD_TREE_DEPTH = 32,  /* levels of the binary counter */
    MXD_ATTN_BLOCK = 256, /* positions of one block of attention sums */
    MXD_Q8_GROUP = 32     /* columns of a scale in K and V of 8 bits */
};

typedef enum mxd_ftype { MXD_F32, MXD_F16, MXD_BF16 } mxd_ftype; /* how floats are stored */

static inline size_t mxd_ftype_bytes(mxd_ftype t) { return t == MXD_F32 ? 4 : 2; }

/* What the codes and scales of a quantised tile stand for. */
typedef enum mxd_qkind {
    MXD_AFFINE, /* scale * code + bias */
    MXD_MXFP4,  /* E2M1 elements, a power of two (E8M0) per group of 32 */
    MXD_NVFP4,  /* E2M1 elements, an E4M3 number per group of 16 */
    MXD_MXFP8   /* E4M3 elements, a power of two per group of 32; used as floats */
} mxd_qkind;

/* The shape of a quantised tile. k is a multiple of group, block_k too. */
typedef struct mxd_qshape {
    size_t k, block_k;
    int group, bits;  /* affine: 32, 64 or 128; 2, 3, 4, 5, 6 or 8. Else as the kind says; 4 or 8 */
    mxd_ftype scales; /* affine */
    mxd_qkind kind;
} mxd_qshape;

enum { MXD_SCALE_RUN = 4 }; /* groups whose scales of a byte lie together: a cache line */

static inline size_t mxd_qcode_bytes(const mxd_qshape *s) { /* of a group */
    return (size_t)s->group * (size_t)s->bits * (MXD_TILE_ROWS / 8);
}
static inline size_t mxd_qgroup_bytes(const mxd_qshape *s) { /* affine */
    return mxd_qcode_bytes(s) + 2 * MXD_TILE_ROWS * mxd_ftype_bytes(s->scales);
}
static inline size_t mxd_qtile_bytes(const mxd_qshape *s) {
    size_t n_groups = s->k / (size_t)s->group;
    if (s->kind == MXD_AFFINE) return n_groups * mxd_qgroup_bytes(s);
    size_t n_runs = (n_groups + MXD_SCALE_RUN - 1) / MXD_SCALE_RUN;
    return n_runs * MXD_SCALE_RUN * MXD_TILE_ROWS + n_groups * mxd_qcode_bytes(s);
}
static inline size_t mxd_ftile_bytes(size_t k, mxd_ftype t) {
    return (k + 15) / 16 * 16 * MXD_TILE_ROWS * mxd_ftype_bytes(t);
}
/* Of a row of d columns in 8 bits; a tile of 16 rows has 16 times as many. */
static inline size_t mxd_q8_bytes(size_t d) {
    return d + (d + MXD_Q8_GROUP - 1) / MXD_Q8_GROUP * sizeof(uint16_t);
}
/* Columns that share one activation scale. */
static inline int mxd_act_group(int group) { return group < 32 ? group : 32; }

typedef struct mxd_panel {
    int n, g;     /* tokens, 1 .. MXD_PANEL; columns per scale, 16 or 32 */
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

    /* y[t * ldy + r] = row r of the tile times token t, for 16 rows and the panel's tokens. Not for
     * MXD_MXFP8. */
    void (*qmul_i8)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                    const mxd_panel *p);
    void (*qmul_i16)(float *y, size_t ldy, const uint8_t *tile, const mxd_qshape *s,
                     const mxd_panel *p);
    /* The same with float32 activations x [n, k], rows ldx apart; 1 <= n <= MXD_PANEL. MXD_MXFP8 is
     * added up as plain_mul adds. */
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

    /* Codes and scales of x [n], n >= 1. */
    void (*q8_from_f32)(int8_t *codes, uint16_t *scales, const float *x, size_t n);
    /* plain_mul with a tile of 16 rows in 8 bits, as one block. k is a multiple of 16. */
    void (*q8_mul)(float *y, size_t ldy, const void *tile, size_t k, const float *x, size_t ldx,
                   int n);
    /* attn_mix with rows of 8 bits, one behind the other. */
    void (*q8_mix)(float *acc, size_t ldacc, const float *p, size_t ldp, const void *v,
                   size_t n_pos, size_t d, int n);

    /* y [n] = sum over the inputs in order, by fma from zero, of w[j * ldw + i] * x[j][i]; n and
     * taps >= 1. y may be any x[j]. */
    void (*conv)(float *y, const float *const *x, const float *w, size_t ldw, size_t taps,
                 size_t n);
    /* In place, [n]: a = exp(-exp(a_log) * softplus(a + dt_bias)), b = sigmoid(b). */
    void (*delta_gates)(float *a, float *b, const float *a_log, const float *dt_bias, size_t n);
    /* One position of the delta rule in n tiles of 16 rows of S, each [d_k][16 rows]:
     * e = beta * (v - decay * (S k)), S = fma(e, k, decay * S), y = S q. v, y [16 n]; y may be v.
     * d_k is a multiple of 4: sums run by fma from zero in 4 chains, i mod 4, and fold 2, 1. */
    void (*delta_step)(float *y, float *s, const float *v, const float *k, const float *q,
                       size_t d_k, size_t n, float decay, float beta);
} mxd_kernels;

/* The fastest table this machine runs: the same pointer for the life of the process. Any thread. */
const mxd_kernels *mxd_kernels_best(void);

/* The usable table of this name; NULL when there is none or the machine cannot run it. */
const mxd_kernels *mxd_kernels_find(const char *name);

/* Tables this machine can run, best first, scalar last; returns how many (at most cap). */
size_t mxd_kernels_usable(const mxd_kernels **out, size_t cap);

/* ---------------------------------------------------------------------------- packing of tiles */

/* Writes one quantised tile from up to 16 rows of the file.
 *   codes           n_rows rows of k * bits / 8 bytes, packed as in the file
 *   scales, biases  affine: n_rows rows of k / group values of type s->scales
 *                   else: scales are n_rows rows of k / group bytes, biases NULL */
void mxd_qtile_pack(uint8_t *tile, const mxd_qshape *s, int n_rows, const uint8_t *codes,
                    const void *scales, const void *biases);
/* Whether every element of every group with one of these n scales of a byte is finite. A tile must
 * not be made of others. */
int mxd_scales_are_finite(mxd_qkind kind, const uint8_t *scales, size_t n);
/* Writes one plain tile from n_rows rows [k] of type t. */
void mxd_ftile_pack(void *tile, mxd_ftype t, size_t k, int n_rows, const void *rows);

/* y [k] = row r (0 .. 15) of a tile, as float: fma(scale, code, bias), or element * scale. */
void mxd_qtile_row(float *y, const uint8_t *tile, const mxd_qshape *s, int r);
/* Its columns [from, from + n) only. */
void mxd_qtile_part(float *y, const uint8_t *tile, const mxd_qshape *s, int r, size_t from,
                    size_t n);
void mxd_ftile_row(float *y, const void *tile, mxd_ftype t, size_t k, int r);
/* y [n] = columns [k0, k0 + n) of a row, whole groups. */
void mxd_qtile_part(float *y, const uint8_t *tile, const mxd_qshape *s, int r, size_t k0, size_t n);

#endif
