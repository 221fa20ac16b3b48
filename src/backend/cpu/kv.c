/* kv.c - the KV pages: their layout, what is written to them, V of latent KV.
 *
 * Values are float32, float16, or 8-bit codes with a scale for every 32 (docs/numerics.md, KV).
 * Whichever they are, K lies in tiles of 16 positions and V in rows of one. */
#include "backend/cpu/cpu.h"

_Static_assert((int)MXD_Q8_GROUP == (int)MXD_KV_GROUP, "what is planned is what is taken");

static size_t up16(size_t n) { return (n + 15) & ~(size_t)15; }

/* Of d values; 16 positions have 16 times as many, in tiles too. */
static size_t row_bytes(mxd_kv_type t, size_t d) {
    return t == MXD_KV_Q8 ? mxd_q8_bytes(d) : d * mxd_ftype_bytes(cpu_kv_ftype(t));
}

void cpu_kv_place(cpu_kv *kv, const mxd_kv_spec *spec, mxd_kv_type t) {
    *kv = (cpu_kv){.n_kv = spec->n_kv};
    if (!kv->n_kv) return;
    kv->head_dim = spec->head_dim;
    kv->v_dim = spec->v_dim ? spec->v_dim : spec->head_dim;
    kv->latent = spec->latent;
    kv->dp = up16((size_t)kv->head_dim);
    kv->vp = up16((size_t)kv->v_dim);
    kv->tile_bytes = 16 * row_bytes(t, kv->dp);
    kv->k_bytes = MXD_KV_PAGE_TOKENS / 16 * kv->tile_bytes;
    kv->v_row = kv->latent ? kv->vp * mxd_ftype_bytes(cpu_kv_ftype(t)) : row_bytes(t, kv->vp);
    kv->head_bytes = kv->k_bytes + (kv->latent ? 0 : MXD_KV_PAGE_TOKENS * kv->v_row);
    kv->page_bytes = kv->head_bytes * (size_t)kv->n_kv;
}

unsigned char *cpu_kv_head(const cpu_kv *kv, const mxd_run *run, size_t pos, int h) {
    size_t page = (size_t)run->pages[pos / MXD_KV_PAGE_TOKENS];
    return kv->pages + page * kv->page_bytes + (size_t)h * kv->head_bytes;
}

/* -------------------------------------------------------------------------------------- writing */

typedef struct append_job {
    cpu_backend *b;
    const cpu_kv *kv;
    const cpu_reg *k, *v; /* v: NULL when latent */
} append_job;

/* One position of a head: `tile` its 16 keys, `at` its place there; `row` its V (latent: NULL). */
typedef struct place {
    unsigned char *tile, *row;
    size_t at;
} place;

static void append_f16(const append_job *j, const place *p, const float *k, const float *v) {
    size_t d = (size_t)j->kv->head_dim;
    uint16_t *kt = (uint16_t *)(void *)p->tile + p->at;
    uint16_t half[MXD_MAX_HEAD_DIM];
    j->b->k->f16_from_f32(half, k, d);
    for (size_t i = 0; i < d; i++) kt[i * 16] = half[i];
    if (v) j->b->k->f16_from_f32((uint16_t *)(void *)p->row, v, (size_t)j->kv->v_dim);
}

static void append_f32(const append_job *j, const place *p, const float *k, const float *v) {
    float *kt = (float *)(void *)p->tile + p->at;
    for (int i = 0; i < j->kv->head_dim; i++) kt[i * 16] = k[i];
    if (v) memcpy(p->row, v, (size_t)j->kv->v_dim * sizeof *v);
}

static void append_q8(const append_job *j, const place *p, const float *k, const float *v) {
    size_t d = (size_t)j->kv->head_dim, n_scales = (d + MXD_Q8_GROUP - 1) / MXD_Q8_GROUP;
    int8_t codes[MXD_MAX_HEAD_DIM];
    uint16_t scales[MXD_MAX_HEAD_DIM / MXD_Q8_GROUP + 1];
    j->b->k->q8_from_f32(codes, scales, k, d);
    int8_t *kt = (int8_t *)p->tile + p->at;
    uint16_t *ks = (uint16_t *)(void *)(p->tile + 16 * j->kv->dp) + p->at;
    for (size_t i = 0; i < d; i++) kt[i * 16] = codes[i];
    for (size_t i = 0; i < n_scales; i++) ks[i * 16] = scales[i];
    if (v)
        j->b->k->q8_from_f32((int8_t *)p->row, (uint16_t *)(void *)(p->row + j->kv->vp), v,
                             (size_t)j->kv->v_dim);
}

static void append_task(void *ctx, int row, int thread) {
    (void)thread;
    append_job *j = ctx;
    const cpu_kv *kv = j->kv;
    const mxd_run *run = &j->b->batch->runs[j->b->row_run[row]];
    size_t pos = (size_t)j->b->row_pos[row], slot = pos % MXD_KV_PAGE_TOKENS;
    for (int h = 0; h < kv->n_kv; h++) {
        const float *k = cpu_row(j->k, row) + (size_t)h * (size_t)kv->head_dim;
        const float *v = j->v ? cpu_row(j->v, row) + (size_t)h * (size_t)kv->v_dim : NULL;
        unsigned char *head = cpu_kv_head(kv, run, pos, h);
        const place p = {.tile = head + slot / 16 * kv->tile_bytes,
                         .row = v ? head + kv->k_bytes + slot * kv->v_row : NULL,
                         .at = slot % 16};
        switch (j->b->kv_type) {
        case MXD_KV_Q8:
            append_q8(j, &p, k, v);
            break;
        case MXD_KV_F32:
            append_f32(j, &p, k, v);
            break;
        default:
            append_f16(j, &p, k, v);
        }
    }
}

void cpu_kv_append(mxd_backend *base, int layer, int k, int v) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(layer >= 0 && layer < b->n_layers);
    append_job j = {b, &b->kv[layer], &b->reg[k], NULL};
    if (!j.kv->latent) j.v = &b->reg[v];
    int width = j.kv->n_kv * j.kv->head_dim;
    MXD_ASSERT(width && j.k->width == width && j.k->rows == b->batch->n_rows);
    MXD_ASSERT(!j.v || j.v->width == j.kv->n_kv * j.kv->v_dim);
    MXD_ASSERT(!j.v || j.v->rows == b->batch->n_rows);
    cpu_run(b, append_task, &j, j.k->rows, 4.0 * j.k->rows * width);
}

/* -------------------------------------------------------------------------------- V of latent KV
 */

static void turn_2(uint16_t *rows, const uint16_t *tile, size_t vp) {
    for (size_t c = 0; c < vp; c += 16)
        for (size_t r = 0; r < 16; r++)
            for (size_t i = 0; i < 16; i++) rows[r * vp + c + i] = tile[(c + i) * 16 + r];
}

static void turn_4(float *rows, const float *tile, size_t vp) {
    for (size_t c = 0; c < vp; c += 16)
        for (size_t r = 0; r < 16; r++)
            for (size_t i = 0; i < 16; i++) rows[r * vp + c + i] = tile[(c + i) * 16 + r];
}

/* Scales of the tile lie behind dp columns; 16 columns have one each row. */
static void turn_q8(float *rows, const int8_t *tile, size_t vp, size_t dp) {
    const uint16_t *scales = (const uint16_t *)(const void *)(tile + 16 * dp);
    for (size_t c = 0; c < vp; c += 16)
        for (size_t r = 0; r < 16; r++) {
            uint32_t bits = (uint32_t)scales[c / MXD_Q8_GROUP * 16 + r] << 16;
            float scale;
            memcpy(&scale, &bits, sizeof scale);
            for (size_t i = 0; i < 16; i++)
                rows[r * vp + c + i] = (float)tile[(c + i) * 16 + r] * scale;
        }
}

void cpu_kv_turn(const cpu_kv *kv, mxd_kv_type t, void *rows, const unsigned char *tile) {
    switch (t) {
    case MXD_KV_Q8:
        turn_q8(rows, (const int8_t *)tile, kv->vp, kv->dp);
        break;
    case MXD_KV_F32:
        turn_4(rows, (const float *)(const void *)tile, kv->vp);
        break;
    default:
        turn_2(rows, (const uint16_t *)(const void *)tile, kv->vp);
    }
}
