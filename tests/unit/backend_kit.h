/* backend_kit.h - small safetensors files with random tensors, for the tests of the backends.
 * Everything is a function of the tensor's name, so two runs write the same file. */
#ifndef MXD_BACKEND_KIT_H
#define MXD_BACKEND_KIT_H

#include <stdint.h>
#include "backend/backend.h"

enum { KIT_MAX_TENSORS = 64 };

typedef struct kit_tensor {
    char name[64];
    mxd_dtype dtype;
    int n_dims;
    uint64_t shape[2];
    uint64_t bytes;
    unsigned char *data;
} kit_tensor;

typedef struct kit {
    char dir[64], file[96];
    int n;
    kit_tensor t[KIT_MAX_TENSORS];
    mxd_st *st;
} kit;

/* The nth number of a stream, in [-1, 1): differs in every lane. */
float kit_noise(const char *stream, uint64_t n);

void kit_begin(kit *k);
/* A plain tensor [rows, cols], or [cols] when rows is 0, of noise * scale + shift. */
void kit_float(kit *k, const char *name, mxd_dtype d, int rows, int cols, float scale, float shift);
/* name.weight (U32), name.scales, name.biases for an affine linear. */
void kit_affine(kit *k, const char *name, mxd_dtype d, int rows, int cols, int bits, int group);
void kit_open(kit *k); /* writes the file and opens it as a set */
void kit_end(kit *k);  /* closes and deletes */

/* The source of a weight written by kit_float (mode NONE) or kit_affine. */
mxd_weight_src kit_src(const kit *k, const char *name, unsigned use, int out, int in, int bits,
                       int group, int block_k);
/* The value of an element, in double. */
double kit_value(const kit *k, const mxd_weight_src *s, int row, int col);

#endif
