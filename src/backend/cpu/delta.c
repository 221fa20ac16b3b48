/* delta.c - the gated delta rule (Gated Delta Networks, arXiv 2412.06464) and its state.
 *
 * A task is a key head of a sequence with its value heads: nothing of it meets another. It takes
 * some rows through the convolution, in place, from the last row to the first, and then walks them
 * for two tiles of S at a time, so that rows and tiles are read from the near caches. Rows of S do
 * not see each other, so nothing depends on how rows and tiles are cut.
 *
 * The state of a sequence in a layer: S [n_v][d_v / 16 tiles][d_k][16 rows], then the last conv - 1
 * inputs [conv - 1][channels], oldest first. */
#include <math.h>
#include "backend/cpu/cpu.h"

enum {
    PIECE = 64, /* channels convolved at once */
    ROWS = 16,  /* of x, between two passes over S */
    TILES = 2,  /* of S, side by side */
};

typedef struct delta_job {
    cpu_backend *b;
    const mxd_delta_net *how;
    const cpu_state *state;
    cpu_reg *dst, *x, *z, *beta, *a;
    size_t d_k, d_v, group; /* group: value heads of a key head */
    float q_norm[MXD_MAX_HEAD_DIM], k_norm[MXD_MAX_HEAD_DIM];
} delta_job;

size_t cpu_state_place(cpu_state *s, const mxd_state_spec *spec) {
    size_t kept = (size_t)spec->channels * (size_t)(spec->channels ? spec->conv - 1 : 0);
    *s = (cpu_state){.spec = *spec};
    s->matrix = (size_t)spec->d_v * (size_t)spec->d_k;
    s->kept = s->matrix * (size_t)spec->n_heads;
    s->floats = (s->kept + kept + 15) & ~(size_t)15;
    return s->floats;
}

/* ------------------------------------------------------------------------------- the convolution
 */

typedef struct conv_head { /* a head of q, k or v: its first channel, where in x, how wide */
    size_t channel, at, n;
} conv_head;

/* Heads count q, then k, then v. */
static conv_head head_of(const delta_job *j, size_t i) {
    size_t n_k = (size_t)j->how->n_k, d_k = j->d_k, d_v = j->d_v;
    bool is_v = i >= 2 * n_k;
    size_t v = i - 2 * n_k, key = is_v ? v / j->group : i % n_k; /* v: of v heads */
    conv_head h = {.n = is_v ? d_v : d_k};
    h.channel = is_v ? 2 * n_k * d_k + v * d_v : i * d_k;
    h.at = h.channel;
    if (!j->how->by_key_head) return h;
    size_t inside = is_v ? 2 * d_k + v % j->group * d_v : i / n_k * d_k;
    h.at = key * (2 * d_k + j->group * d_v) + inside;
    return h;
}

/* n rows from row0, some channels of a head, in place; kept [conv - 1] rows of all channels, moved
 * on. */
static void convolve(const delta_job *j, int row0, int n, const conv_head *h, float *kept) {
    size_t taps = (size_t)j->how->conv, old = taps - 1, ld = (size_t)j->state->spec.channels;
    size_t rows = (size_t)n, bytes = h->n * sizeof(float);
    float next[MXD_MAX_CONV - 1][PIECE];
    const float *in[MXD_MAX_CONV];
    for (size_t t = 0; t < old; t++) { /* the last of (kept, rows) */
        size_t at = rows + t;
        memcpy(next[t], at < old ? kept + at * ld : cpu_row(j->x, row0 + (int)(at - old)) + h->at,
               bytes);
    }
    for (size_t row = rows; row-- > 0;) {
        for (size_t t = 0; t < taps; t++)
            in[t] = row + t < old ? kept + (row + t) * ld
                                  : cpu_row(j->x, row0 + (int)(row + t - old)) + h->at;
        j->b->k->conv(cpu_row(j->x, row0 + (int)row) + h->at, in,
                      j->how->conv_w->vector + h->channel, ld, taps, h->n);
    }
    for (size_t t = 0; t < old; t++) memcpy(kept + t * ld, next[t], bytes);
}

/* Head i of q, k or v: convolution, silu, and for q and k the norm `unit`. */
static void prepare(const delta_job *j, float *state, int row0, int n, size_t i,
                    const float *unit) {
    const mxd_kernels *k = j->b->k;
    const conv_head h = head_of(j, i);
    float *kept = state + j->state->kept + h.channel;
    for (size_t c = 0; c < h.n; c += PIECE) {
        const conv_head piece = {h.channel + c, h.at + c, h.n - c < PIECE ? h.n - c : PIECE};
        convolve(j, row0, n, &piece, kept + c);
    }
    for (int row = row0; row < row0 + n; row++) {
        float *x = cpu_row(j->x, row) + h.at;
        k->silu_mul(x, x, j->b->ones, h.n);
        /* eps is added to the sum of squares, not to their mean */
        if (unit) k->rms_norm(x, x, unit, h.n, 1e-6f / (float)h.n);
    }
}

/* --------------------------------------------------------------------------------- the recurrence
 */

/* n rows from row0 and all of a value head's S [d_v / 16][d_k][16]; y takes the place of v. */
static void walk(const delta_job *j, float *s, int row0, int n, size_t head) {
    const size_t n_k = (size_t)j->how->n_k, key = head / j->group;
    const size_t q = head_of(j, key).at, k = head_of(j, n_k + key).at;
    const size_t v = head_of(j, 2 * n_k + head).at, tiles = j->d_v / MXD_TILE_ROWS;
    for (size_t t = 0; t < tiles; t += TILES)
        for (int row = row0; row < row0 + n; row++) {
            float *x = cpu_row(j->x, row), *y = x + v + t * MXD_TILE_ROWS;
            j->b->k->delta_step(y, s + t * j->d_k * MXD_TILE_ROWS, y, x + k, x + q, j->d_k,
                                tiles - t < TILES ? tiles - t : TILES, cpu_row(j->a, row)[head],
                                cpu_row(j->beta, row)[head]);
        }
    for (int row = row0; row < row0 + n; row++) {
        float *y = cpu_row(j->x, row) + v;
        j->b->k->rms_norm(y, y, j->how->norm->vector, j->d_v, j->how->eps);
        j->b->k->silu_mul(cpu_row(j->dst, row) + head * j->d_v, cpu_row(j->z, row) + head * j->d_v,
                          y, j->d_v);
    }
}

/* A sequence that starts has zeros behind it. */
static void clear(const delta_job *j, float *state, size_t key) {
    size_t n_k = (size_t)j->how->n_k, first = key * j->group, ld = (size_t)j->state->spec.channels;
    memset(state + first * j->state->matrix, 0, j->group * j->state->matrix * sizeof *state);
    for (size_t t = 0; t + 1 < (size_t)j->how->conv; t++) {
        float *kept = state + j->state->kept + t * ld;
        memset(kept + key * j->d_k, 0, j->d_k * sizeof *kept);
        memset(kept + (n_k + key) * j->d_k, 0, j->d_k * sizeof *kept);
        memset(kept + 2 * n_k * j->d_k + first * j->d_v, 0, j->group * j->d_v * sizeof *kept);
    }
}

static void key_task(void *ctx, int task, int thread) {
    (void)thread;
    const delta_job *j = ctx;
    const mxd_run *run = &j->b->batch->runs[task / j->how->n_k];
    size_t n_k = (size_t)j->how->n_k, key = (size_t)(task % j->how->n_k), first = key * j->group;
    float *state = j->state->data + (size_t)run->state * j->state->floats;
    if (run->pos0 == 0) clear(j, state, key);
    for (int at = 0, n; at < run->n; at += n) {
        int row0 = run->row0 + at;
        n = run->n - at < ROWS ? run->n - at : ROWS;
        for (int row = row0; row < row0 + n; row++)
            j->b->k->delta_gates(cpu_row(j->a, row) + first, cpu_row(j->beta, row) + first,
                                 j->how->a_log->vector + first, j->how->dt_bias->vector + first,
                                 j->group);
        prepare(j, state, row0, n, key, j->q_norm);
        prepare(j, state, row0, n, n_k + key, j->k_norm);
        for (size_t h = first; h < first + j->group; h++) {
            prepare(j, state, row0, n, 2 * n_k + h, NULL);
            walk(j, state + h * j->state->matrix, row0, n, h);
        }
    }
}

/* -------------------------------------------------------------------------------- the operations
 */

static void check_how(const cpu_backend *b, const delta_job *j) {
    const mxd_delta_net *how = j->how;
    const mxd_state_spec *s = &j->state->spec;
    int width = how->n_v * how->d_v;
    MXD_ASSERT(how->n_k >= 1 && how->n_v % how->n_k == 0 && how->conv == s->conv);
    MXD_ASSERT(s->n_heads == how->n_v && s->d_v == how->d_v && s->d_k == how->d_k);
    MXD_ASSERT(s->channels == 2 * how->n_k * how->d_k + width && j->x->width == s->channels);
    MXD_ASSERT(j->z->width == width && j->dst->width == width && j->dst != j->x);
    MXD_ASSERT(j->a->width == how->n_v && j->beta->width == how->n_v);
    MXD_ASSERT(how->conv_w->vector && how->conv_w->in == how->conv * s->channels);
    MXD_ASSERT(how->a_log->vector && how->a_log->in == how->n_v);
    MXD_ASSERT(how->dt_bias->vector && how->dt_bias->in == how->n_v);
    MXD_ASSERT(how->norm->vector && how->norm->in == how->d_v);
    int rows = b->batch->n_rows;
    MXD_ASSERT(j->x->rows == rows && j->z->rows == rows && j->a->rows == rows &&
               j->beta->rows == rows);
}

void cpu_delta_net(mxd_backend *base, int layer, int dst, int x, int z, int beta, int a,
                   const mxd_delta_net *how) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(layer >= 0 && layer < b->n_layers && b->n_states > 0);
    delta_job j = {.b = b, .how = how, .state = &b->state[layer], .dst = &b->reg[dst]};
    j.x = &b->reg[x];
    j.z = &b->reg[z];
    j.beta = &b->reg[beta];
    j.a = &b->reg[a];
    check_how(b, &j);
    j.d_k = (size_t)how->d_k;
    j.d_v = (size_t)how->d_v;
    j.group = (size_t)(how->n_v / how->n_k);
    for (size_t i = 0; i < j.d_k; i++) { /* unit length, and q once more by d_k^-1/2 */
        j.q_norm[i] = 1.0f / (float)how->d_k;
        j.k_norm[i] = 1.0f / sqrtf((float)how->d_k);
    }
    cpu_set_rows(j.dst, j.x->rows);
    double each = 4.0 * (double)j.state->matrix * how->n_v + (8.0 + how->conv) * j.x->width;
    cpu_run(b, key_task, &j, b->batch->n_runs * how->n_k, j.x->rows * each);
}

void cpu_state_copy(mxd_backend *base, int to, int from) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(!b->batch && to >= 0 && to < b->n_states && from >= 0 && from < b->n_states);
    for (int l = 0; l < b->n_layers && to != from; l++) {
        const cpu_state *s = &b->state[l];
        memcpy(s->data + (size_t)to * s->floats, s->data + (size_t)from * s->floats,
               s->floats * sizeof(float));
    }
}
