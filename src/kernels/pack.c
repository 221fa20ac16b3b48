/* pack.c - between the rows of a file and tiles of 16 rows. Plain C: packing runs once, at load. */
#include "kernels/kernels_impl.h"

/* Column c of a row is bits [c * bits, (c + 1) * bits) of a little-endian stream. For 4 bits the
 * tile wants columns c and c + 4 in one byte. */
static uint32_t four_bytes(const uint8_t *row, int bits, size_t k4) {
    uint32_t w;
    memcpy(&w, row + 4 * k4, sizeof w);
    if (bits == 8) return w;
    uint32_t out = 0; /* nibbles 0 1 2 3 | 4 5 6 7 become bytes 4,0  5,1  6,2  7,3 */
    for (int i = 0; i < 4; i++) out |= ((w >> 4 * i & 15) | (w >> (4 * i + 16) & 15) << 4) << 8 * i;
    return out;
}

/* Eight codes of a stream, a byte each: halves, quarters and eighths part in turn. */
static inline uint64_t eight_bytes(const uint8_t *from, const int bits) {
    uint64_t e = 0;
    for (int i = 0; i < bits; i++) e |= (uint64_t)from[i] << 8 * i;
    const uint64_t four = (1u << 4 * bits) - 1, two = (1u << 2 * bits) - 1, one = (1u << bits) - 1;
    e = (e & four) | (e >> 4 * bits) << 32;
    e = (e & two * 0x100000001) | (e >> 2 * bits & two * 0x100000001) << 16;
    return (e & one * 0x1000100010001) | (e >> bits & one * 0x1000100010001) << 8;
}

/* A row's words of 32 columns in a tile of two planes, or of 2 bits: [bits]. from: 4 * bits bytes
 * of the file. A word of a plane of p bits holds 32 / p columns. */
static inline void two_planes(uint32_t *to, const uint8_t *from, const int bits) {
    const int low = mxd_low_bits(bits), high = bits - low;
    const uint32_t every = 0x01010101, low_mask = every * ((1u << low) - 1);
    const uint32_t high_mask = every * ((1u << high) - 1);
    for (int i = 0; i < bits; i++) to[i] = 0;
    for (int i = 0; i < 8; i++) { /* four columns */
        uint32_t w = (uint32_t)(eight_bytes(from + i / 2 * bits, bits) >> i % 2 * 32);
        to[i * low / 8] |= (w & low_mask) << i * low % 8;
        if (high) to[low + i * high / 8] |= (w >> low & high_mask) << i * high % 8;
    }
}

static void narrow_words(uint32_t *to, const uint8_t *from, int bits) {
    switch (bits) { /* constants to shift by */
    case 2:
        two_planes(to, from, 2);
        break;
    case 3:
        two_planes(to, from, 3);
        break;
    case 5:
        two_planes(to, from, 5);
        break;
    default:
        two_planes(to, from, 6);
    }
}

/* One group of a row: words in the file become words of the tile. */
static void put_codes(uint8_t *tile, const mxd_qshape *s, size_t r, const uint8_t *row) {
    size_t words = (size_t)(s->group * s->bits) / 32, slab = (size_t)s->bits;
    if (s->kind == MXD_MXFP8) {
        for (size_t c = 0; c < (size_t)s->group; c++) tile[c * MXD_TILE_ROWS + r] = row[c];
        return;
    }
    for (size_t i = 0; i < words;) {
        uint32_t w[8];
        size_t n = 1;
        if (s->bits == 4 || s->bits == 8)
            w[0] = four_bytes(row, s->bits, i);
        else
            narrow_words(w, row + 4 * i, s->bits), n = slab;
        for (size_t j = 0; j < n; j++, i++) memcpy(tile + (i * MXD_TILE_ROWS + r) * 4, &w[j], 4);
    }
}

void mxd_qtile_pack(uint8_t *tile, const mxd_qshape *s, int n_rows, const uint8_t *codes,
                    const void *scales, const void *biases) {
    size_t n_groups = s->k / (size_t)s->group, row_bytes = s->k * (size_t)s->bits / 8;
    size_t group_bytes = (size_t)(s->group * s->bits) / 8;
    size_t f = s->kind == MXD_AFFINE ? mxd_ftype_bytes(s->scales) : 1;
    memset(tile, 0, mxd_qtile_bytes(s));
    for (size_t g = 0; g < n_groups; g++) {
        uint8_t *to = tile + mxd_codes_at(s, g);
        uint8_t *ends = tile + mxd_scales_at(s, g);
        for (size_t r = 0; r < (size_t)n_rows; r++) {
            put_codes(to, s, r, codes + r * row_bytes + g * group_bytes);
            memcpy(ends + r * f, (const char *)scales + (r * n_groups + g) * f, f);
            if (s->kind == MXD_AFFINE)
                memcpy(ends + (MXD_TILE_ROWS + r) * f,
                       (const char *)biases + (r * n_groups + g) * f, f);
        }
    }
}

int mxd_scales_are_finite(mxd_qkind kind, const uint8_t *scales, size_t n) {
    int most = kind == MXD_MXFP4 ? 252 : kind == MXD_MXFP8 ? 246 : 255; /* 6, 480 times it */
    for (size_t i = 0; i < n; i++)
        if (scales[i] > most) return 0;
    return 1;
}

void mxd_ftile_pack(void *tile, mxd_ftype t, size_t k, int n_rows, const void *rows) {
    size_t f = mxd_ftype_bytes(t);
    memset(tile, 0, mxd_ftile_bytes(k, t));
    for (size_t r = 0; r < (size_t)n_rows; r++)
        for (size_t c = 0; c < k; c++)
            memcpy((char *)tile + (c * MXD_TILE_ROWS + r) * f, (const char *)rows + (r * k + c) * f,
                   f);
}

void mxd_qtile_part(float *y, const uint8_t *tile, const mxd_qshape *s, int r, size_t from,
                    size_t n) {
    size_t group = (size_t)s->group, row = (size_t)r, end = from + n;
    for (size_t k = from / group * group; k < end; k += group) {
        const uint8_t *codes = tile + mxd_codes_at(s, k / group);
        const uint8_t *scales = tile + mxd_scales_at(s, k / group);
        size_t c = k < from ? from - k : 0, to = end - k < group ? end - k : group;
        float scale = 0, bias = 0;
        if (s->kind != MXD_MXFP8) mxd_qends(scales, s, row, &scale, &bias);
        for (; c < to; c++)
            *y++ = s->kind == MXD_MXFP8 ? mxd_fp8_value(codes, scales, c, row)
                                        : fmaf(scale, (float)mxd_code(codes, s, c, row), bias);
    }
}

void mxd_qtile_row(float *y, const uint8_t *tile, const mxd_qshape *s, int r) {
    mxd_qtile_part(y, tile, s, r, 0, s->k);
}

void mxd_ftile_row(float *y, const void *tile, mxd_ftype t, size_t k, int r) {
    for (size_t c = 0; c < k; c++) y[c] = mxd_load_float(tile, t, c * MXD_TILE_ROWS + (size_t)r);
}
