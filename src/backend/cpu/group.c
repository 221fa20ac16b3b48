/* group.c - weights cut over a tensor-parallel group.
 *
 * Along `in`: a rank holds a run of the blocks of the whole tensor's tree (docs/numerics.md). The
 * largest subtrees that lie whole in the run are products of their own, of fewer columns, with the
 * tree of so many blocks; a tile of the part is the tiles of these pieces one after the other. What
 * ranks exchange are the products [rows, out] of all pieces, which in the order of ranks are in the
 * order of blocks, so that the rest of the tree is a list of additions, the same everywhere.
 *
 * Along `out`: a rank has its part of the product, or the rows of the table of its token ids.
 * Experts: moe.c. */
#include "backend/cpu/cpu.h"

enum {
    EXCHANGE_FLOATS = 1 << 20, /* more rows than fit go one exchange after the other: what is
                                * copied and added up is then still in the cache */
    FOLD_WIDTH = 256,          /* columns of one task */
    FOLD_DEPTH = 24            /* sums that wait at one time: a level of the tree each */
};

/* ------------------------------------------------------------------------------------ loading */

/* Blocks [lo, lo + n) of the tree, over the runs of all ranks. */
typedef struct walk {
    cpu_cut *c;
    mxd_weight *pieces; /* NULL: only count */
    int block_k, rank;  /* the rank that the next block belongs to */
    bool full;          /* more pieces than there can be */
} walk;

static int edge_of(const walk *w, int rank) { /* in blocks */
    return (w->c->at.edge[rank] + w->block_k - 1) / w->block_k;
}

static void add_piece(walk *w, int lo, int n) {
    cpu_cut *c = w->c;
    if (c->n_sums >= MXD_MAX_RANKS * CPU_MAX_PIECES || c->given[w->rank] >= CPU_MAX_PIECES) {
        w->full = true;
        return;
    }
    c->given[w->rank]++;
    c->n_sums++;
    if (w->rank != c->at.rank) return;
    int col0 = lo * w->block_k, end = (lo + n) * w->block_k;
    mxd_weight *p = w->pieces ? &w->pieces[c->n_pieces] : NULL;
    c->n_pieces++;
    if (!p) return;
    p->lead = col0 - c->at.edge[w->rank];
    p->in = (end < c->in ? end : c->in) - col0;
}

static void walk_tree(walk *w, int lo, int n) {
    while (edge_of(w, w->rank + 1) <= lo) w->rank++;
    if (lo + n <= edge_of(w, w->rank + 1)) {
        add_piece(w, lo, n);
        return;
    }
    int left = 1; /* the largest power of two below n */
    while (left * 2 < n) left *= 2;
    walk_tree(w, lo, left);
    walk_tree(w, lo + left, n - left);
    if (!w->full) w->c->merges[w->c->n_sums - 1]++;
}

/* Whether a source can be cut so, edges aside. */
static bool can_cut(const mxd_weight_src *s) {
    const mxd_cut *at = s->cut;
    if (at->size < 1 || at->size > MXD_MAX_RANKS || at->rank < 0 || at->rank >= at->size ||
        s->row0 || s->rows || s->transposed || s->n_strips || s->matrices)
        return false;
    if (at->along == MXD_ALONG_OUT) return !s->experts && !(s->use & MXD_W_VECTOR);
    if (s->cols || s->col0 || s->use != MXD_W_LINEAR) return false;
    return at->along == MXD_ALONG_EXPERTS ? s->experts > 0 : !s->experts && s->block_k > 0;
}

static int all_of(const mxd_weight_src *s) {
    if (s->cut->along == MXD_ALONG_EXPERTS) return s->experts;
    return s->cut->along == MXD_ALONG_IN ? s->in : s->out;
}

static mxd_rc check_cut(const mxd_weight_src *s, mxd_err *err) {
    const mxd_cut *at = s->cut;
    if (!can_cut(s) || at->edge[0] != 0 || at->edge[at->size] != all_of(s))
        return mxd_fail(err, MXD_E_INVAL, "%s: cut for rank %d of %d", s->name, at->rank, at->size);
    for (int r = 0; r < at->size; r++) {
        bool inside = at->along == MXD_ALONG_IN && at->edge[r] % s->block_k && at->edge[r] != s->in;
        if (inside || at->edge[r] > at->edge[r + 1])
            return mxd_fail(err, MXD_E_INVAL, "%s: cut at %d, in blocks of %d", s->name,
                            at->edge[r], s->block_k);
    }
    return MXD_OK;
}

/* The pieces of this rank, counted before there is memory for them. */
static mxd_rc find_pieces(const mxd_alloc *al, const mxd_weight_src *s, cpu_cut *c, mxd_err *err) {
    cpu_cut whole = *c;
    int n_blocks = (s->in - 1) / s->block_k + 1;
    walk t = {.c = c, .block_k = s->block_k};
    walk_tree(&t, 0, n_blocks);
    if (t.full) return mxd_fail(err, MXD_E_TOOBIG, "%s: too many blocks", s->name);
    if (!c->n_pieces) return MXD_OK;
    whole.pieces = MXD_NEW(al, (size_t)c->n_pieces, mxd_weight);
    if (!whole.pieces) return mxd_fail(err, MXD_E_NOMEM, "%s", s->name);
    *c = whole;
    walk again = {.c = c, .block_k = s->block_k, .pieces = whole.pieces};
    walk_tree(&again, 0, n_blocks);
    return MXD_OK;
}

void cpu_cut_free(const mxd_alloc *al, cpu_cut *c) {
    if (c) mxd_free(al, c->pieces);
    mxd_free(al, c);
}

mxd_rc cpu_cut_make(const mxd_alloc *al, const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    MXD_TRY(check_cut(s, err));
    w->cut = MXD_NEW(al, 1, cpu_cut);
    if (!w->cut) return mxd_fail(err, MXD_E_NOMEM, "%s", s->name);
    cpu_cut *c = w->cut;
    c->at = *s->cut;
    c->out = s->out;
    c->in = s->in;
    c->experts = s->experts;
    int mine = c->at.edge[c->at.rank + 1] - c->at.edge[c->at.rank];
    w->rows = c->at.along == MXD_ALONG_OUT ? mine : s->out;
    w->in = c->at.along == MXD_ALONG_IN ? mine : s->in;
    w->experts = c->at.along == MXD_ALONG_EXPERTS ? mine : 0;
    for (int r = 0; r < c->at.size && c->at.along == MXD_ALONG_OUT; r++)
        c->given[r] = c->at.edge[r + 1] - c->at.edge[r];
    if (c->at.along != MXD_ALONG_IN) return MXD_OK;
    return find_pieces(al, s, c, err);
}

mxd_rc cpu_cut_pieces(const mxd_weight_src *s, mxd_weight *w, mxd_err *err) {
    if (w->cut->at.along != MXD_ALONG_IN) return MXD_OK;
    w->tile_bytes = 0;
    for (int i = 0; i < w->cut->n_pieces; i++) {
        mxd_weight *p = &w->cut->pieces[i];
        int lead = p->lead, in = p->in;
        *p = *w;
        p->cut = NULL;
        p->part = true;
        p->lead = lead;
        p->in = in;
        p->q.k = (size_t)in;
        if (w->quantised && in % w->q.group)
            return mxd_fail(err, MXD_E_INVAL, "%s: a part of %d columns", s->name, in);
        w->tile_bytes +=
            w->quantised ? mxd_qtile_bytes(&p->q) : mxd_ftile_bytes((size_t)in, w->type);
    }
    return MXD_OK;
}

void cpu_cut_place(mxd_weight *w) {
    unsigned char *at = w->tiles;
    for (int i = 0; i < w->cut->n_pieces; i++) {
        mxd_weight *p = &w->cut->pieces[i];
        p->tiles = at;
        p->tile_bytes = w->tile_bytes;
        at += w->quantised ? mxd_qtile_bytes(&p->q) : mxd_ftile_bytes((size_t)p->in, w->type);
    }
}

/* ---------------------------------------------------------------------------------- exchanging */

/* Floats that all ranks give together for a row of the product. */
static size_t row_floats(const cpu_cut *c) {
    return (size_t)c->out * (c->at.along == MXD_ALONG_IN ? (size_t)c->n_sums : 1);
}

static size_t rows_at_once(size_t floats, int max_rows) {
    size_t n = EXCHANGE_FLOATS / floats;
    return n < 1 ? 1 : n < (size_t)max_rows ? n : (size_t)max_rows;
}

size_t cpu_cut_floats(const mxd_weight *w, int max_rows) {
    const cpu_cut *c = w->cut;
    size_t row = row_floats(c), in = (size_t)w->in;
    if (c->at.along == MXD_ALONG_EXPERTS) return 0; /* there is room for their products */
    if (w->table && !w->part) return 0;             /* nobody asks for all of it at once */
    bool joined = (w->use & MXD_W_LINEAR) && !(w->use & MXD_W_PART);
    size_t product = joined ? row * rows_at_once(row, max_rows) : 0;
    size_t table = w->use & MXD_W_LOOKUP ? in * rows_at_once(in, max_rows) : 0;
    return product > table ? product : table;
}

bool cpu_exchange(cpu_backend *b, float *all, const size_t *n_each) {
    cpu_stick(b, b->group->exchange(b->group->ctx, all, n_each, &b->err));
    return !b->failed;
}

/* Where this rank's part of an exchange is. */
static float *my_part(const cpu_backend *b, const size_t *n_each) {
    float *at = b->cut;
    for (int r = 0; r < b->group->rank; r++) at += n_each[r];
    return at;
}

typedef struct fold_job {
    const cpu_backend *b;
    const mxd_weight *w;
    cpu_reg *dst;
    int row0, n; /* rows of this exchange */
} fold_job;

/* Some columns of one row: the rest of the tree. */
static void fold_task(void *ctx, int task, int thread) {
    (void)thread;
    const fold_job *j = ctx;
    const cpu_cut *c = j->w->cut;
    float wait[FOLD_DEPTH][FOLD_WIDTH];
    int per_row = (c->out - 1) / FOLD_WIDTH + 1, row = task / per_row, depth = 0;
    int col0 = task % per_row * FOLD_WIDTH, n = c->out - col0;
    if (n > FOLD_WIDTH) n = FOLD_WIDTH;
    for (int i = 0; i < c->n_sums; i++) {
        const float *sum = j->b->cut + ((size_t)i * (size_t)j->n + (size_t)row) * (size_t)c->out;
        if (c->merges[i]) {
            j->b->k->add(wait[depth - 1], sum + col0, (size_t)n);
        } else {
            MXD_ASSERT(depth < FOLD_DEPTH);
            memcpy(wait[depth++], sum + col0, (size_t)n * sizeof(float));
        }
        for (int k = 1; k < c->merges[i]; k++, depth--)
            j->b->k->add(wait[depth - 2], wait[depth - 1], (size_t)n);
    }
    if (j->w->bias) j->b->k->add(wait[0], j->w->bias + col0, (size_t)n);
    memcpy(cpu_row(j->dst, j->row0 + row) + col0, wait[0], (size_t)n * sizeof(float));
}

/* Every rank's columns of n rows come to their places. */
static void gather_rows(const cpu_backend *b, const cpu_cut *c, cpu_reg *dst, int row0, int n) {
    const float *from = b->cut;
    for (int r = 0; r < c->at.size; r++)
        for (int t = 0; t < n; t++, from += c->given[r])
            memcpy(cpu_row(dst, row0 + t) + c->at.edge[r], from,
                   (size_t)c->given[r] * sizeof(float));
}

void cpu_linear_cut(mxd_backend *base, int dst, int src, const mxd_weight *w) {
    cpu_backend *b = (cpu_backend *)base;
    if (!cpu_live(b)) return;
    MXD_ASSERT(dst >= 0 && dst < b->n_regs && src >= 0 && src < b->n_regs && dst != src && w->cut);
    const cpu_cut *c = w->cut;
    bool sums = c->at.along == MXD_ALONG_IN;
    cpu_reg *d = &b->reg[dst];
    int rows = w->in ? b->reg[src].rows : b->batch->n_rows;
    int step = (int)rows_at_once(row_floats(c), b->max_rows);
    MXD_ASSERT(d->width == c->out && c->at.along != MXD_ALONG_EXPERTS);
    cpu_set_rows(d, rows);
    for (int row0 = 0; row0 < rows; row0 += step) {
        int n = rows - row0 < step ? rows - row0 : step;
        size_t n_each[MXD_MAX_RANKS];
        for (int r = 0; r < c->at.size; r++)
            n_each[r] = (size_t)c->given[r] * (size_t)n * (size_t)(sums ? c->out : 1);
        cpu_linear_pieces(b, w, &b->reg[src], row0, n, my_part(b, n_each));
        if (!cpu_exchange(b, b->cut, n_each)) return;
        fold_job j = {b, w, d, row0, n};
        if (sums)
            cpu_run(b, fold_task, &j, n * ((c->out - 1) / FOLD_WIDTH + 1),
                    (double)c->n_sums * n * c->out);
        else
            gather_rows(b, c, d, row0, n);
    }
}

/* One exchange of the rows [row0, row0 + n) of the batch. */
static bool embed_some(cpu_backend *b, cpu_reg *dst, const mxd_weight *w, int row0, int n) {
    const mxd_cut *at = &w->cut->at;
    const int32_t *ids = b->batch->ids + row0;
    int owner[MXD_MAX_STEP_TOKENS];
    size_t in = (size_t)w->in, n_each[MXD_MAX_RANKS] = {0};
    for (int t = 0; t < n; t++) {
        for (owner[t] = 0; at->edge[owner[t] + 1] <= ids[t];) owner[t]++;
        n_each[owner[t]] += in;
    }
    float *mine = my_part(b, n_each);
    for (int t = 0; t < n; t++) {
        if (owner[t] != at->rank) continue;
        cpu_embed_row(w, ids[t] - at->edge[at->rank], mine);
        mine += in;
    }
    if (!cpu_exchange(b, b->cut, n_each)) return false;
    const float *all = b->cut;
    for (int r = 0; r < at->size; r++)
        for (int t = 0; t < n; t++) {
            if (owner[t] != r) continue;
            memcpy(cpu_row(dst, row0 + t), all, in * sizeof *all);
            all += in;
        }
    return true;
}

void cpu_embed_cut(cpu_backend *b, int dst, const mxd_weight *w) {
    int step = (int)rows_at_once((size_t)w->in, b->max_rows), rows = b->batch->n_rows;
    for (int row0 = 0; row0 < rows; row0 += step)
        if (!embed_some(b, &b->reg[dst], w, row0, rows - row0 < step ? rows - row0 : step)) return;
}
