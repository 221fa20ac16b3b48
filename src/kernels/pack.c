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

void mxd_qtile_pack(uint8_t *tile, const mxd_qshape *s, int n_rows, const uint8_t *codes,
                    const void *scales, const void *biases) {
    size_t n_groups = s->k / (size_t)s->group, words = (size_t)(s->group * s->bits) / 32;
    size_t row_bytes = s->k * (size_t)s->bits / 8, f = mxd_ftype_bytes(s->scales);
    memset(tile, 0, mxd_qtile_bytes(s));
    for (size_t g = 0; g < n_groups; g++, tile += mxd_qgroup_bytes(s)) {
        uint8_t *ends = tile + words * 4 * MXD_TILE_ROWS;
        for (size_t r = 0; r < (size_t)n_rows; r++) {
            const uint8_t *row = codes + r * row_bytes + g * words * 4;
            for (size_t i = 0; i < words; i++) {
                uint32_t w = four_bytes(row, s->bits, i);
                memcpy(tile + (i * MXD_TILE_ROWS + r) * 4, &w, sizeof w);
            }
            memcpy(ends + r * f, (const char *)scales + (r * n_groups + g) * f, f);
            memcpy(ends + (MXD_TILE_ROWS + r) * f, (const char *)biases + (r * n_groups + g) * f,
                   f);
        }
    }
}

void mxd_ftile_pack(void *tile, mxd_ftype t, size_t k, int n_rows, const void *rows) {
    size_t f = mxd_ftype_bytes(t);
    memset(tile, 0, mxd_ftile_bytes(k, t));
    for (size_t r = 0; r < (size_t)n_rows; r++)
        for (size_t c = 0; c < k; c++)
            memcpy((char *)tile + (c * MXD_TILE_ROWS + r) * f, (const char *)rows + (r * k + c) * f,
                   f);
}

void mxd_qtile_part(float *y, const uint8_t *tile, const mxd_qshape *s, int r, size_t k0,
                    size_t n) {
    size_t group = (size_t)s->group;
    tile += k0 / group * mxd_qgroup_bytes(s);
    for (size_t k = 0; k < n; k += group, tile += mxd_qgroup_bytes(s)) {
        const uint8_t *ends = tile + s->group * s->bits * (MXD_TILE_ROWS / 8);
        float scale = mxd_load_float(ends, s->scales, (size_t)r);
        float bias = mxd_load_float(ends, s->scales, MXD_TILE_ROWS + (size_t)r);
        for (size_t c = 0; c < group; c++)
            y[k + c] = fmaf(scale, (float)mxd_code(tile, s->bits, c, (size_t)r), bias);
    }
}

void mxd_qtile_row(float *y, const uint8_t *tile, const mxd_qshape *s, int r) {
    mxd_qtile_part(y, tile, s, r, 0, s->k);
}

void mxd_ftile_row(float *y, const void *tile, mxd_ftype t, size_t k, int r) {
    for (size_t c = 0; c < k; c++) y[c] = mxd_load_float(tile, t, c * MXD_TILE_ROWS + (size_t)r);
}
