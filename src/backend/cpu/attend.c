/* attend.c - rotary embedding, the KV pages, attention.
 *
 * Attention of one query head: scores of all visible keys (two tiles of 16 keys a page), weights
 * by softmax with the exact maximum, then the weighted sum of values, in blocks of MXD_ATTN_BLOCK
 * absolute positions. A task takes up to MXD_PANEL queries of one sequence and one KV head, so that
 * keys and values are read once for all of them; where their visible ranges differ, at the causal
 * edge and at the window's, values are added query by query.
 *
 * Latent KV (DeepSeek-V2, arXiv 2405.04434, section 2.1.2) keeps K alone: its first v_dim values
 * are V. A task turns a page's tiles of keys into rows once, for all of its queries. */
#include "backend/cpu/cpu.h"
#include "base/dmath.h"
#include "kernels/math.h"

/* ----------------------------------------------------------------------------------- rotation */

typedef struct rope_job {
    cpu_backend *b;
    cpu_reg *reg;
    const mxd_rope *r;
    cpu_rope_table *table;
    int n_heads, head_dim;
} rope_job;

/* ln of the base at a position past the context; 0: the table's frequencies hold. */
static double grown_base(const mxd_rope *r, int pos) {
    const mxd_rope_dynamic *d = r->dynamic;
    if (!d || pos < d->context) return 0;
    double stretch = d->factor * (pos + 1) / d->context - (d->factor - 1);
    return mxd_log64(d->theta) + (double)r->dims / (r->dims - 2) * mxd_log64(stretch);
}

static void table_task(void *ctx, int row, int thread) {
    (void)thread;
    rope_job *j = ctx;
    size_t half = (size_t)j->r->dims / 2;
    float pos = (float)j->b->row_pos[row];
    double ln_base = grown_base(j->r, j->b->row_pos[row]);
    float *cs = j->table->cs + (size_t)row * half, *sn = j->table->sn + (size_t)row * half;
    for (size_t i = 0; i < half; i++) {
        float s, c, f = j->r->inv_freq[i];
        if (ln_base > 0) f = (float)mxd_exp64(-2.0 * (double)i / j->r->dims * ln_base);
        mxd_sincosf(pos * f, &s, &c);
        cs[i] = c * j->r->scale;
        sn[i] = s * j->r->scale;
    }
}

/* The table of this step for r, made on first use. */
static cpu_rope_table *table_of(rope_job *j) {
    cpu_backend *b = j->b;
    for (int i = 0; i < CPU_ROPE_TABLES; i++) {
        cpu_rope_table *t = &b->rope[i];
        if (t->inv_freq == j->r->inv_freq && t->dims == j->r->dims && t->scale == j->r->scale)
            return t;
    }
    j->table = &b->rope[b->next_rope];
    b->next_rope = (b->next_rope + 1) % CPU_ROPE_TABLES;
    j->table->inv_freq = j->r->inv_freq;
    j->table->dims = j->r->dims;
    j->table->scale = j->r->scale;
    cpu_run(b, table_task, j, b->batch->n_rows, 20.0 * j->r->dims * b->batch->n_rows);
    return j->table;
}

static void rope_task(void *ctx, int row, int thread) {
    (void)thread;
    rope_job *j = ctx;
    size_t half = (size_t)j->r->dims / 2;
    const float *cs = j->table->cs + (size_t)row * half, *sn = j->table->sn + (size_t)row * half;
    for (int h = 0; h < j->n_heads; h++)
        j->b->k->rope(cpu_row(j->reg, row) + (size_t)h * (size_t)j->head_dim, cs, sn, half,
                      j->r->interleaved);
}

void cpu_rope(mxd_backend *base, int reg, int n_heads, int head_dim, const mxd_rope *r) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    rope_job j = {b, &b->reg[reg], r, NULL, n_heads, head_dim};
    MXD_ASSERT(r->dims % 2 == 0 && r->dims <= head_dim && (size_t)r->dims <= b->max_dp);
    MXD_ASSERT(j.reg->width == n_heads * head_dim && j.reg->rows == b->batch->n_rows);
    j.table = table_of(&j);
    cpu_run(b, rope_task, &j, j.reg->rows, (double)j.reg->rows * j.reg->width);
}

/* -------------------------------------------------------------------------------------- pages */

/* K of head h in the page that holds position pos of a run; V lies k_bytes behind. */
static unsigned char *page_head(const cpu_kv *kv, const mxd_run *run, size_t pos, int h) {
    size_t page = (size_t)run->pages[pos / MXD_KV_PAGE_TOKENS];
    return kv->pages + page * kv->page_bytes + (size_t)h * kv->head_bytes;
}

typedef struct append_job {
    cpu_backend *b;
    const cpu_kv *kv;
    const cpu_reg *k, *v; /* v: NULL when latent */
} append_job;

static void append_f16(const append_job *j, unsigned char *head, size_t slot, const float *k,
                       const float *v) {
    size_t d = (size_t)j->kv->head_dim, dp = j->kv->dp;
    uint16_t *kt = (uint16_t *)(void *)head + slot / 16 * dp * 16 + slot % 16;
    uint16_t half[MXD_MAX_HEAD_DIM];
    j->b->k->f16_from_f32(half, k, d);
    for (size_t i = 0; i < d; i++) kt[i * 16] = half[i];
    if (!v) return;
    uint16_t *vt = (uint16_t *)(void *)(head + j->kv->k_bytes) + slot * j->kv->vp;
    j->b->k->f16_from_f32(vt, v, (size_t)j->kv->v_dim);
}

static void append_f32(const append_job *j, unsigned char *head, size_t slot, const float *k,
                       const float *v) {
    size_t d = (size_t)j->kv->head_dim, dp = j->kv->dp;
    float *kt = (float *)(void *)head + slot / 16 * dp * 16 + slot % 16;
    for (size_t i = 0; i < d; i++) kt[i * 16] = k[i];
    if (!v) return;
    float *vt = (float *)(void *)(head + j->kv->k_bytes) + slot * j->kv->vp;
    memcpy(vt, v, (size_t)j->kv->v_dim * sizeof *vt);
}

static void append_task(void *ctx, int row, int thread) {
    (void)thread;
    append_job *j = ctx;
    const mxd_run *run = &j->b->batch->runs[j->b->row_run[row]];
    size_t pos = (size_t)j->b->row_pos[row], slot = pos % MXD_KV_PAGE_TOKENS;
    for (int h = 0; h < j->kv->n_kv; h++) {
        const float *k = cpu_row(j->k, row) + (size_t)h * (size_t)j->kv->head_dim;
        const float *v = j->v ? cpu_row(j->v, row) + (size_t)h * (size_t)j->kv->v_dim : NULL;
        (j->b->kv_type == MXD_F16 ? append_f16 : append_f32)(j, page_head(j->kv, run, pos, h), slot,
                                                             k, v);
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

/* ------------------------------------------------------------------------------------ attention */

typedef struct attend_job {
    cpu_backend *b;
    const cpu_kv *kv;
    const cpu_reg *q;
    cpu_reg *dst;
    const mxd_attention *a;
    int heads_per_task, rows_per_task;    /* query heads of one KV head; neighbouring rows */
    int head_cuts;                        /* tasks along the query heads of one KV head */
    int row_tasks[MXD_MAX_STEP_RUNS + 1]; /* row blocks before each run */
} attend_job;

typedef struct query { /* one query head of one row */
    int row, head;
    size_t lo, hi; /* visible positions [lo, hi) */
    float sum;
} query;

typedef struct block { /* the queries of one task */
    const attend_job *j;
    const mxd_run *run;
    cpu_scratch *s;
    int kv_head, n;
    size_t start; /* position of scores[.][0]: the first visible one, down to 16 */
    size_t lo_min, lo_max, hi_min, hi_max;
    const unsigned char *v; /* [MXD_KV_PAGE_TOKENS, vp] of the page at hand */
    query q[MXD_PANEL];
} block;

static void add_query(block *bl, int row, int head) {
    const attend_job *j = bl->j;
    query *q = &bl->q[bl->n];
    size_t pos = (size_t)j->b->row_pos[row], window = (size_t)j->a->window;
    *q = (query){.row = row, .head = head, .hi = pos + 1};
    q->lo = window && q->hi > window ? q->hi - window : 0;
    if (!bl->n || q->lo < bl->lo_min) bl->lo_min = q->lo;
    if (!bl->n || q->lo > bl->lo_max) bl->lo_max = q->lo;
    if (!bl->n || q->hi < bl->hi_min) bl->hi_min = q->hi;
    if (!bl->n || q->hi > bl->hi_max) bl->hi_max = q->hi;
    size_t d = (size_t)j->kv->head_dim, dp = j->kv->dp;
    float *to = bl->s->q + (size_t)bl->n * dp;
    memcpy(to, cpu_row(j->q, row) + (size_t)head * d, d * sizeof *to);
    memset(to + d, 0, (dp - d) * sizeof *to); /* where a wider layer has left something */
    bl->n++;
}

/* The 16 keys from position pos. */
static const unsigned char *key_tile(const block *bl, size_t pos) {
    const cpu_kv *kv = bl->j->kv;
    return page_head(kv, bl->run, pos, bl->kv_head) +
           pos % MXD_KV_PAGE_TOKENS / 16 * (kv->k_bytes / (MXD_KV_PAGE_TOKENS / 16));
}

/* scores [n, ld]: q . k for every key of the union of ranges, rounded out to tiles of 16. */
static void block_scores(block *bl) {
    const attend_job *j = bl->j;
    const cpu_backend *b = j->b;
    bl->start = bl->lo_min / 16 * 16;
    for (size_t pos = bl->start; pos < bl->hi_max; pos += 16) {
        b->k->plain_mul(bl->s->scores + (pos - bl->start), b->score_ld, key_tile(bl, pos),
                        b->kv_type, j->kv->dp, j->kv->dp, bl->s->q, j->kv->dp, bl->n);
    }
}

/* Adds positions [lo, hi) of the page bl->v to the accumulators of n queries from t. */
static void mix(const block *bl, int t, int n, size_t lo, size_t hi) {
    if (lo >= hi || n < 1) return;
    const attend_job *j = bl->j;
    const cpu_backend *b = j->b;
    size_t vp = j->kv->vp;
    b->k->attn_mix(bl->s->acc + (size_t)t * vp, vp,
                   bl->s->scores + (size_t)t * b->score_ld + (lo - bl->start), b->score_ld,
                   bl->v + lo % MXD_KV_PAGE_TOKENS * vp * mxd_ftype_bytes(b->kv_type), b->kv_type,
                   hi - lo, vp, n);
}

static size_t least(size_t a, size_t b) { return a < b ? a : b; }
static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Positions [lo, hi) of one page: what all queries see in common at once, edges one by one. */
static void mix_page(const block *bl, size_t lo, size_t hi) {
    size_t from = most(lo, bl->lo_max), to = least(hi, bl->hi_min);
    if (from >= to) from = to = lo; /* nothing in common */
    for (int t = 0; t < bl->n; t++) mix(bl, t, 1, most(lo, bl->q[t].lo), least(from, bl->q[t].hi));
    mix(bl, 0, bl->n, from, to);
    for (int t = 0; t < bl->n; t++) mix(bl, t, 1, most(to, bl->q[t].lo), least(hi, bl->q[t].hi));
}

/* rows [16][vp] = the first vp values of a tile of keys [..][16], of 2 or 4 bytes each. */
static void turn_tile_2(uint16_t *rows, const uint16_t *tile, size_t vp) {
    for (size_t c = 0; c < vp; c += 16)
        for (size_t r = 0; r < 16; r++)
            for (size_t i = 0; i < 16; i++) rows[r * vp + c + i] = tile[(c + i) * 16 + r];
}
static void turn_tile_4(float *rows, const float *tile, size_t vp) {
    for (size_t c = 0; c < vp; c += 16)
        for (size_t r = 0; r < 16; r++)
            for (size_t i = 0; i < 16; i++) rows[r * vp + c + i] = tile[(c + i) * 16 + r];
}

/* V [MXD_KV_PAGE_TOKENS, vp] of the page that holds positions [pos, end), none other of it read. */
static const unsigned char *page_values(const block *bl, size_t pos, size_t end) {
    const cpu_kv *kv = bl->j->kv;
    if (!kv->latent) return page_head(kv, bl->run, pos, bl->kv_head) + kv->k_bytes;
    size_t start = pos / MXD_KV_PAGE_TOKENS * MXD_KV_PAGE_TOKENS;
    size_t tile_bytes = 16 * kv->vp * mxd_ftype_bytes(bl->j->b->kv_type);
    for (size_t at = pos / 16 * 16; at < end; at += 16) {
        unsigned char *to = bl->s->turned + (at - start) / 16 * tile_bytes;
        const unsigned char *from = key_tile(bl, at);
        if (bl->j->b->kv_type == MXD_F16)
            turn_tile_2((uint16_t *)(void *)to, (const uint16_t *)(const void *)from, kv->vp);
        else
            turn_tile_4((float *)(void *)to, (const float *)(const void *)from, kv->vp);
    }
    return bl->s->turned;
}

static void block_values(block *bl) {
    const cpu_kv *kv = bl->j->kv;
    size_t n = (size_t)bl->n * kv->vp;
    memset(bl->s->out, 0, n * sizeof(float));
    for (size_t first = bl->lo_min / MXD_ATTN_BLOCK * MXD_ATTN_BLOCK; first < bl->hi_max;
         first += MXD_ATTN_BLOCK) {
        size_t end = least(first + MXD_ATTN_BLOCK, bl->hi_max);
        memset(bl->s->acc, 0, n * sizeof(float));
        for (size_t pos = most(first, bl->lo_min); pos < end;) {
            size_t page_end = (pos / MXD_KV_PAGE_TOKENS + 1) * MXD_KV_PAGE_TOKENS;
            bl->v = page_values(bl, pos, least(page_end, end));
            mix_page(bl, pos, least(page_end, end));
            pos = page_end;
        }
        bl->j->b->k->add(bl->s->out, bl->s->acc, n);
    }
}

/* Scores x [n] of one query from position lo become weights; returns their sum. A sink is one more
 * score, in the place behind the last key, whose weight nobody multiplies with a value. */
static float weigh(const block *bl, float *x, size_t n, const query *q) {
    const mxd_attention *a = bl->j->a;
    const mxd_kernels *k = bl->j->b->k;
    if (!a->softcap && !a->sinks) return k->softmax(x, n, a->scale, q->lo);
    for (size_t i = 0; i < n; i++) x[i] *= a->scale;
    if (a->softcap) k->softcap(x, n, a->softcap);
    if (a->sinks) x[n++] = a->sinks->vector[q->head];
    return k->softmax(x, n, 1, q->lo);
}

static void attend_block(block *bl) {
    const attend_job *j = bl->j;
    const cpu_backend *b = j->b;
    block_scores(bl);
    for (int t = 0; t < bl->n; t++) {
        query *q = &bl->q[t];
        q->sum = weigh(bl, bl->s->scores + (size_t)t * b->score_ld + (q->lo - bl->start),
                       q->hi - q->lo, q);
    }
    block_values(bl);
    for (int t = 0; t < bl->n; t++) {
        const query *q = &bl->q[t];
        float *y = cpu_row(j->dst, q->row) + (size_t)q->head * (size_t)j->kv->v_dim;
        const float *o = bl->s->out + (size_t)t * j->kv->vp;
        for (int i = 0; i < j->kv->v_dim; i++) y[i] = o[i] / q->sum;
    }
}

static void attend_task(void *ctx, int task, int thread) {
    const attend_job *j = ctx;
    const mxd_batch *batch = j->b->batch;
    int per_head = j->a->n_heads / j->a->n_kv;
    int cut = task % j->head_cuts, kv_head = task / j->head_cuts % j->a->n_kv;
    int rows = task / j->head_cuts / j->a->n_kv, run = 0;
    while (j->row_tasks[run + 1] <= rows) run++;
    block bl = {.j = j, .run = &batch->runs[run], .s = &j->b->scratch[thread], .kv_head = kv_head};
    int head_end = cut * j->heads_per_task + j->heads_per_task;
    if (head_end > per_head) head_end = per_head;
    int row0 = (rows - j->row_tasks[run]) * j->rows_per_task, row_end = row0 + j->rows_per_task;
    if (row_end > bl.run->n) row_end = bl.run->n;
    for (int r = row0; r < row_end; r++)
        for (int h = cut * j->heads_per_task; h < head_end; h++)
            add_query(&bl, bl.run->row0 + r, kv_head * per_head + h);
    attend_block(&bl);
}

void cpu_attend(mxd_backend *base, int layer, int dst, int q, const mxd_attention *a) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(layer >= 0 && layer < b->n_layers);
    attend_job j = {b, &b->kv[layer], &b->reg[q], &b->reg[dst], a, 0, 0, 0, {0}};
    MXD_ASSERT(a->n_kv == j.kv->n_kv && a->head_dim == j.kv->head_dim && dst != q);
    MXD_ASSERT((a->v_dim ? a->v_dim : a->head_dim) == j.kv->v_dim);
    MXD_ASSERT(a->n_kv && a->n_heads % a->n_kv == 0 && j.q->width == a->n_heads * a->head_dim);
    MXD_ASSERT(j.dst->width == a->n_heads * j.kv->v_dim && j.q->rows == b->batch->n_rows);
    MXD_ASSERT(!a->sinks || (a->sinks->vector && a->sinks->in == a->n_heads));
    int per_head = a->n_heads / a->n_kv;
    j.heads_per_task = per_head < b->attn_rows ? per_head : b->attn_rows;
    j.rows_per_task = b->attn_rows / j.heads_per_task;
    j.head_cuts = (per_head - 1) / j.heads_per_task + 1;
    double work = 0;
    for (int r = 0; r < b->batch->n_runs; r++) {
        const mxd_run *run = &b->batch->runs[r];
        j.row_tasks[r + 1] = j.row_tasks[r] + (run->n - 1) / j.rows_per_task + 1;
        work += (double)run->n * (run->pos0 + run->n) * j.q->width;
    }
    cpu_set_rows(j.dst, j.q->rows);
    int n_tasks = j.row_tasks[b->batch->n_runs] * a->n_kv * j.head_cuts;
    cpu_run(b, attend_task, &j, n_tasks, work);
}
