/* attend.c - rotary embedding, attention.
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
    const unsigned char *v; /* [MXD_KV_PAGE_TOKENS] rows of the page at hand */
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
    return cpu_kv_head(kv, bl->run, pos, bl->kv_head) +
           pos % MXD_KV_PAGE_TOKENS / 16 * kv->tile_bytes;
}

/* What few queries need next, asked for early: a step with one query is as long as reading keys and
 * values takes, and the next page lies elsewhere. */
enum { KEYS_AHEAD = 32, VALUES_AHEAD = 24, VALUES_STEP = 8 };

static void fetch(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i);
}

/* scores [n, ld]: q . k for every key of the union of ranges, rounded out to tiles of 16. */
static void block_scores(block *bl) {
    const attend_job *j = bl->j;
    const cpu_backend *b = j->b;
    size_t dp = j->kv->dp;
    bl->start = bl->lo_min / 16 * 16;
    for (size_t pos = bl->start; pos < bl->hi_max; pos += 16) {
        if (pos + KEYS_AHEAD < bl->hi_max) fetch(key_tile(bl, pos + KEYS_AHEAD), j->kv->tile_bytes);
        float *y = bl->s->scores + (pos - bl->start);
        const unsigned char *tile = key_tile(bl, pos);
        if (b->kv_type == MXD_KV_Q8)
            b->k->q8_mul(y, b->score_ld, tile, dp, bl->s->q, dp, bl->n);
        else
            b->k->plain_mul(y, b->score_ld, tile, cpu_kv_ftype(b->kv_type), dp, dp, bl->s->q, dp,
                            bl->n);
    }
}

/* V of position pos, which is kept by itself. */
static const unsigned char *value_row(const block *bl, size_t pos) {
    const cpu_kv *kv = bl->j->kv;
    return cpu_kv_head(kv, bl->run, pos, bl->kv_head) + kv->k_bytes +
           pos % MXD_KV_PAGE_TOKENS * kv->v_row;
}

/* Adds positions [lo, hi) of the page bl->v to the accumulators of n queries from t. */
static void mix(const block *bl, int t, int n, size_t lo, size_t hi) {
    if (n < 1) return;
    const cpu_backend *b = bl->j->b;
    const cpu_kv *kv = bl->j->kv;
    size_t vp = kv->vp, row = kv->v_row, ld = b->score_ld;
    float *acc = bl->s->acc + (size_t)t * vp;
    for (size_t next; lo < hi; lo = next) {
        next = (lo / VALUES_STEP + 1) * VALUES_STEP;
        if (next > hi) next = hi;
        if (!kv->latent && lo + VALUES_AHEAD < bl->hi_max)
            fetch(value_row(bl, lo + VALUES_AHEAD), VALUES_STEP * row);
        const float *p = bl->s->scores + (size_t)t * ld + (lo - bl->start);
        const unsigned char *v = bl->v + lo % MXD_KV_PAGE_TOKENS * row;
        if (b->kv_type == MXD_KV_Q8 && !kv->latent)
            b->k->q8_mix(acc, vp, p, ld, v, next - lo, vp, n);
        else
            b->k->attn_mix(acc, vp, p, ld, v, cpu_kv_ftype(b->kv_type), next - lo, vp, n);
    }
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

/* V of the page that holds positions [pos, end), none other of it read. */
static const unsigned char *page_values(const block *bl, size_t pos, size_t end) {
    const cpu_kv *kv = bl->j->kv;
    if (!kv->latent) return cpu_kv_head(kv, bl->run, pos, bl->kv_head) + kv->k_bytes;
    size_t start = pos / MXD_KV_PAGE_TOKENS * MXD_KV_PAGE_TOKENS;
    for (size_t at = pos / 16 * 16; at < end; at += 16)
        cpu_kv_turn(kv, bl->j->b->kv_type, bl->s->turned + (at - start) * kv->v_row,
                    key_tile(bl, at));
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
