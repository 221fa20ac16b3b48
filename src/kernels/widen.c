/* widen.c - formats of files that have no tile of their own, row by row into one that has.
 * Plain C: runs once, at load. Source of the formats: mlx.core.quantize. */
#include "kernels/kernels_impl.h"

void mxd_widen_codes(uint8_t *to, int to_bits, const uint8_t *from, int bits, size_t k) {
    const uint64_t mask = (1u << bits) - 1;
    for (size_t c = 0; c < k; c += 8, from += bits, to += to_bits) {
        uint64_t eight = 0, out = 0; /* eight codes: `bits` bytes of the little-endian stream */
        for (int i = 0; i < bits; i++) eight |= (uint64_t)from[i] << 8 * i;
        for (int i = 0; i < 8; i++) out |= (eight >> bits * i & mask) << to_bits * i;
        for (int i = 0; i < to_bits; i++) to[i] = (uint8_t)(out >> 8 * i);
    }
}

void mxd_widen_fp4(uint8_t *codes, const uint8_t *from, size_t k) {
    /* 2 * value + 12 of sign and E2M1 magnitude: 0 .5 1 1.5 2 3 4 6 */
    static const uint8_t code[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    for (size_t i = 0; i < k / 2; i++) {
        codes[2 * i] = code[from[i] & 15];
        codes[2 * i + 1] = code[from[i] >> 4];
    }
}

int mxd_widen_fp4_ends(uint16_t *scales, uint16_t *biases, const uint8_t *from, size_t n,
                       int e8m0) {
    int fits = 1;
    for (size_t i = 0; i < n; i++) {
        float s = e8m0 ? mxd_e8m0_to_f32(from[i]) : mxd_e4m3_to_f32(from[i]);
        fits &= 6 * s < INFINITY;
        scales[i] = mxd_f32_to_bf16(s / 2);
        biases[i] = mxd_f32_to_bf16(-6 * s);
    }
    return fits;
}

void mxd_widen_mxfp8(uint16_t *y, const uint8_t *codes, const uint8_t *scales, size_t k) {
    for (size_t c = 0; c < k; scales++) {
        float s = mxd_e8m0_to_f32(*scales);
        for (size_t end = c + 32 < k ? c + 32 : k; c < end; c++)
            y[c] = mxd_f32_to_bf16(mxd_e4m3_to_f32(codes[c]) * s);
    }
}
