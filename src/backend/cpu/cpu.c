/* cpu.c - opening, memory, steps. */
#include "backend/cpu/cpu.h"

enum {
    DEFAULT_SPIN_US = 100,
    INLINE_WORK = 64 << 10, /* below this a second thread costs more than it gives */
    SCORE_BYTES = 2 << 20,  /* of one thread */
};

void cpu_stick(cpu_backend *b, mxd_rc rc) {
    if (!b->failed) b->failed = rc;
}

void cpu_run(cpu_backend *b, mxd_pool_fn fn, void *ctx, int n_tasks, double work) {
    if (work >= INLINE_WORK) {
        mxd_pool_run(b->pool, fn, ctx, n_tasks);
        return;
    }
    for (int i = 0; i < n_tasks; i++) fn(ctx, i, 0);
}

/* ------------------------------------------------------------------------------------- setup
 *
 * The mapping is laid out twice by the same code: once with no base, to learn its size. */

typedef struct layout {
    unsigned char *base; /* NULL: only count */
    size_t used;
    bool overflow;
} layout;

/* n * size bytes on a cache line. */
static void *place(layout *l, size_t n, size_t size) {
    size_t bytes, at = l->used;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX / 2 - at) l->overflow = true;
    if (l->overflow) return NULL;
    l->used = (at + bytes + 63) & ~(size_t)63;
    return l->base ? l->base + at : NULL;
}

static size_t up16(size_t n) { return (n + 15) & ~(size_t)15; }

static void lay_out(cpu_backend *b, layout *l) {
    size_t rows = (size_t)b->max_rows, max_in = (size_t)b->max_in;
    size_t panel_rows = (rows + MXD_PANEL - 1) / MXD_PANEL * MXD_PANEL;
    size_t pairs = rows * (size_t)b->moe.top_k;
    if (panel_rows < pairs) panel_rows = pairs;
    b->panel_rows = panel_rows;
    for (int i = 0; i < b->n_regs; i++)
        b->reg[i].data = place(l, (size_t)b->reg[i].cap_rows, b->reg[i].ld * sizeof(float));
    b->panel_q = place(l, panel_rows * max_in, b->activations == MXD_ACT_I16 ? 2 : 1);
    b->panel_s = place(l, panel_rows * (max_in / 16), sizeof(float));
    b->panel_b = place(l, panel_rows * (max_in / 16), sizeof(float));
    b->moe.wide = place(l, pairs, b->moe.wide_ld * sizeof(float));
    b->moe.gate = place(l, pairs, b->moe.inner_ld * sizeof(float));
    b->moe.up = place(l, pairs, b->moe.inner_ld * sizeof(float));
    b->moe.pairs = place(l, pairs, sizeof *b->moe.pairs);
    b->moe.panels = place(l, pairs, sizeof *b->moe.panels);
    b->moe.groups = place(l, pairs, sizeof *b->moe.groups);
    for (int i = 0; i < CPU_ROPE_TABLES; i++) {
        b->rope[i].cs = place(l, rows, b->max_dp / 2 * sizeof(float));
        b->rope[i].sn = place(l, rows, b->max_dp / 2 * sizeof(float));
    }
    for (int i = 0; i < b->n_threads; i++) {
        cpu_scratch *s = &b->scratch[i];
        s->scores = place(l, (size_t)b->attn_rows, b->score_ld * sizeof(float));
        s->q = place(l, MXD_PANEL, b->max_dp * sizeof(float));
        s->acc = place(l, MXD_PANEL, b->max_dp * sizeof(float));
        s->out = place(l, MXD_PANEL, b->max_dp * sizeof(float));
        s->turned = place(l, MXD_KV_PAGE_TOKENS, b->max_turned);
    }
    b->cut = place(l, b->cut_floats, sizeof(float));
    b->row_pos = place(l, rows, sizeof(int32_t));
    b->row_run = place(l, rows, sizeof(int32_t));
    for (int i = 0; i < b->n_layers; i++)
        b->kv[i].pages = place(l, (size_t)b->n_pages, b->kv[i].page_bytes);
    for (int i = 0; i < b->n_layers; i++)
        b->state[i].data = place(l, (size_t)b->n_states, b->state[i].floats * sizeof(float));
}

static mxd_rc check_states(const mxd_step_shape *s, mxd_err *err) {
    if (s->n_states < 0 || (s->n_states && !s->state))
        return mxd_fail(err, MXD_E_INVAL, "recurrent state of %d sequences", s->n_states);
    for (int i = 0; i < s->n_layers && s->n_states; i++) {
        const mxd_state_spec *t = &s->state[i];
        if (!t->channels) continue;
        if (t->channels < 1 || t->channels > (1 << 24) || t->conv < 1 || t->conv > MXD_MAX_CONV ||
            t->n_heads < 1 || t->n_heads > MXD_MAX_HEADS || t->d_v < 16 || t->d_v % 16 ||
            t->d_v > MXD_MAX_HEAD_DIM || t->d_k < 16 || t->d_k % 16 || t->d_k > MXD_MAX_HEAD_DIM)
            return mxd_fail(err, MXD_E_INVAL,
                            "layer %d: state of %d heads [%d, %d], %d inputs of %d channels", i,
                            t->n_heads, t->d_v, t->d_k, t->conv, t->channels);
    }
    return MXD_OK;
}

static bool good_kv(const mxd_kv_spec *s) {
    if (!s->n_kv) return true;
    int v_most = s->latent ? s->head_dim : MXD_MAX_HEAD_DIM;
    return s->n_kv > 0 && s->n_kv <= MXD_MAX_HEADS && s->head_dim >= 1 &&
           s->head_dim <= MXD_MAX_HEAD_DIM && s->v_dim >= 0 && s->v_dim <= v_most;
}

static mxd_rc check_shape(const mxd_step_shape *s, mxd_err *err) {
    if (s->max_rows < 1 || s->max_rows > MXD_MAX_STEP_TOKENS || s->n_regs < 1 ||
        s->n_regs > MXD_MAX_REGS || s->n_layers < 0 || s->n_layers > MXD_MAX_LAYERS)
        return mxd_fail(err, MXD_E_INVAL, "%d rows, %d registers, %d layers", s->max_rows,
                        s->n_regs, s->n_layers);
    if (s->n_pages < 0 || s->max_context < 1 || s->max_context > MXD_MAX_CONTEXT)
        return mxd_fail(err, MXD_E_INVAL, "%d KV pages, context of %d", s->n_pages, s->max_context);
    for (int i = 0; i < s->n_regs; i++)
        if (s->reg_width[i] < 1 || s->reg_width[i] > (1 << 24) ||
            (s->reg_rows && (s->reg_rows[i] < 1 || s->reg_rows[i] > s->max_rows)))
            return mxd_fail(err, MXD_E_INVAL, "register %d: [%d, %d]", i,
                            s->reg_rows ? s->reg_rows[i] : s->max_rows, s->reg_width[i]);
    const mxd_moe_spec *moe = &s->moe;
    if (moe->top_k < 0 || moe->top_k > MXD_MAX_TOP_K || moe->hidden < 0 ||
        moe->hidden > (1 << 24) || moe->inner < 0 || moe->inner > (1 << 24))
        return mxd_fail(err, MXD_E_INVAL, "%d experts of [%d, %d] for a row", moe->top_k,
                        moe->inner, moe->hidden);
    for (int i = 0; i < s->n_layers; i++)
        if (!good_kv(&s->kv[i]))
            return mxd_fail(err, MXD_E_INVAL, "layer %d: %d KV heads of %d, V of %d", i,
                            s->kv[i].n_kv, s->kv[i].head_dim, s->kv[i].v_dim);
    return check_states(s, err);
}

/* What exchanges with the group need; each weight that is cut must be of this group. */
static mxd_rc take_group(cpu_backend *b, const mxd_step_shape *s, mxd_err *err) {
    b->group = s->group;
    for (const mxd_weight *w = b->weights; w; w = w->next) {
        if (!w->cut) continue;
        const mxd_cut *at = &w->cut->at;
        if (!s->group || s->group->size != at->size || s->group->rank != at->rank)
            return mxd_fail(err, MXD_E_INVAL, "weights of rank %d of %d, without that group",
                            at->rank, at->size);
        size_t n = cpu_cut_floats(w, s->max_rows);
        if (n > b->cut_floats) b->cut_floats = n;
    }
    return MXD_OK;
}

static void take_kv(cpu_backend *b, const mxd_step_shape *s) {
    b->max_dp = 16;
    b->max_turned = 0;
    for (int i = 0; i < s->n_layers; i++) {
        cpu_kv *kv = &b->kv[i];
        cpu_kv_place(kv, &s->kv[i], b->kv_type);
        if (kv->dp > b->max_dp) b->max_dp = kv->dp;
        if (kv->vp > b->max_dp) b->max_dp = kv->vp;
        if (kv->latent && kv->v_row > b->max_turned) b->max_turned = kv->v_row;
    }
}

static void take_shape(cpu_backend *b, const mxd_step_shape *s) {
    b->max_rows = s->max_rows;
    b->n_regs = s->n_regs;
    b->n_layers = s->n_layers;
    b->n_pages = s->n_pages;
    b->max_context = s->max_context;
    for (int i = 0; i < s->n_regs; i++)
        b->reg[i] = (cpu_reg){.width = s->reg_width[i],
                              .cap_rows = s->reg_rows ? s->reg_rows[i] : s->max_rows,
                              .ld = up16((size_t)s->reg_width[i])};
    take_kv(b, s);
    for (int i = 0; i < s->n_layers; i++)
        cpu_state_place(&b->state[i], s->n_states ? &s->state[i] : &(mxd_state_spec){0});
    b->n_states = s->n_states;
    b->moe = (cpu_moe){.top_k = s->moe.top_k, .hidden = s->moe.hidden, .inner = s->moe.inner};
    b->moe.wide_ld = up16((size_t)s->moe.hidden);
    b->moe.inner_ld = up16((size_t)s->moe.inner);
    b->score_ld = up16((size_t)s->max_context) + 16;
    size_t rows = SCORE_BYTES / (b->score_ld * sizeof(float));
    b->attn_rows = rows < 1 ? 1 : rows > MXD_PANEL ? MXD_PANEL : (int)rows;
}

/* Maps and lays out; on failure only the small tables are left to free. */
static mxd_rc map_all(cpu_backend *b, mxd_err *err) {
    layout count = {0};
    lay_out(b, &count);
    if (count.overflow)
        return mxd_fail(err, MXD_E_NOFIT,
                        "the KV cache is too large for this machine's addresses: lower --ctx-size "
                        "or --parallel");
    layout l = {.base = cpu_map_lazy(count.used)};
    if (!l.base)
        return mxd_fail(err, MXD_E_NOMEM,
                        "no memory for %zu bytes of KV cache and scratch: lower --ctx-size or "
                        "--parallel",
                        count.used);
    lay_out(b, &l);
    for (int i = 0; i < b->n_layers; i++)
        cpu_want_large_pages(b->kv[i].pages, (size_t)b->n_pages * b->kv[i].page_bytes);
    b->map = l.base;
    b->map_bytes = count.used;
    return MXD_OK;
}

static mxd_rc cpu_setup(mxd_backend *base, const mxd_step_shape *shape, mxd_err *err) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(!b->map);
    MXD_TRY(check_shape(shape, err));
    MXD_TRY(take_group(b, shape, err));
    b->kv = MXD_NEW(b->al, (size_t)shape->n_layers, cpu_kv);
    b->state = MXD_NEW(b->al, (size_t)shape->n_layers, cpu_state);
    b->scratch = MXD_NEW(b->al, (size_t)b->n_threads, cpu_scratch);
    mxd_rc rc = MXD_OK;
    if (!b->kv || !b->state || !b->scratch) {
        rc = mxd_fail(err, MXD_E_NOMEM, "tables of the step");
    } else {
        take_shape(b, shape);
        rc = map_all(b, err);
    }
    if (!rc) return MXD_OK;
    mxd_free(b->al, b->kv);
    mxd_free(b->al, b->state);
    mxd_free(b->al, b->scratch);
    b->kv = NULL;
    b->state = NULL;
    b->scratch = NULL;
    return rc;
}

static void cpu_close(mxd_backend *base) {
    cpu_backend *b = (cpu_backend *)base;
    while (b->weights) {
        mxd_weight *w = b->weights;
        b->weights = w->next;
        cpu_weight_free(b, w);
    }
    cpu_slabs_free(b);
    mxd_free(b->al, b->scratch_dir);
    cpu_unmap(b->map, b->map_bytes);
    mxd_free(b->al, b->kv);
    mxd_free(b->al, b->state);
    mxd_free(b->al, b->scratch);
    mxd_pool_close(b->pool);
    mxd_free(b->al, b);
}

static uint64_t cpu_bytes(const mxd_backend *base) {
    const cpu_backend *b = (const cpu_backend *)base;
    return sizeof *b + b->weight_bytes + b->map_bytes;
}

/* -------------------------------------------------------------------------------------- a step */

static mxd_rc check_run(const cpu_backend *b, const mxd_run *r, int row0, mxd_err *err) {
    if (r->row0 != row0 || r->n < 1 || r->n > b->max_rows)
        return mxd_fail(err, MXD_E_INTERNAL, "run of %d rows at row %d, expected row %d", r->n,
                        r->row0, row0);
    if (r->pos0 < 0 || r->pos0 > b->max_context - r->n)
        return mxd_fail(err, MXD_E_CONTEXT, "positions %d to %d: the context is %d", r->pos0,
                        r->pos0 + r->n, b->max_context);
    if (b->n_states && (r->state < 0 || r->state >= b->n_states))
        return mxd_fail(err, MXD_E_INTERNAL, "recurrent state %d of %d", r->state, b->n_states);
    for (int p = 0; b->n_layers && p * MXD_KV_PAGE_TOKENS < r->pos0 + r->n; p++)
        if (r->pages[p] < 0 || r->pages[p] >= b->n_pages)
            return mxd_fail(err, MXD_E_INTERNAL, "KV page %d of %d", r->pages[p], b->n_pages);
    return MXD_OK;
}

static mxd_rc check_batch(cpu_backend *b, const mxd_batch *batch, mxd_err *err) {
    if (batch->n_rows < 0 || batch->n_rows > b->max_rows || batch->n_runs < 0 ||
        batch->n_runs > MXD_MAX_STEP_RUNS)
        return mxd_fail(err, MXD_E_INTERNAL, "a step of %d rows in %d runs; at most %d",
                        batch->n_rows, batch->n_runs, b->max_rows);
    int row = 0;
    for (int i = 0; i < batch->n_runs; i++) {
        const mxd_run *r = &batch->runs[i];
        MXD_TRY(check_run(b, r, row, err));
        if (r->n > batch->n_rows - row) break;
        for (int t = 0; t < r->n; t++, row++) {
            b->row_pos[row] = r->pos0 + t;
            b->row_run[row] = i;
        }
    }
    if (row != batch->n_rows)
        return mxd_fail(err, MXD_E_INTERNAL, "runs do not cover the %d rows of the step",
                        batch->n_rows);
    return MXD_OK;
}

static void cpu_begin(mxd_backend *base, const mxd_batch *batch) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(b->map && !b->batch);
    b->batch = batch;
    b->reported = false;
    b->failed = check_batch(b, batch, &b->err);
    for (int i = 0; i < CPU_ROPE_TABLES; i++) b->rope[i].inv_freq = NULL;
    for (int i = 0; i < b->n_regs; i++) b->reg[i].rows = 0;
}

static mxd_rc report(cpu_backend *b, mxd_err *err) {
    if (err) *err = b->err;
    b->reported = true;
    return b->failed;
}

static mxd_rc cpu_end(mxd_backend *base, mxd_err *err) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(b->batch);
    b->batch = NULL;
    return b->failed && !b->reported ? report(b, err) : MXD_OK;
}

static mxd_rc cpu_output(mxd_backend *base, int reg, float *out, mxd_err *err) {
    cpu_backend *b = (cpu_backend *)base;
    MXD_ASSERT(b->batch && reg >= 0 && reg < b->n_regs);
    if (b->failed) return report(b, err);
    const cpu_reg *r = &b->reg[reg];
    size_t width = (size_t)r->width;
    for (int i = 0; i < r->rows; i++)
        memcpy(out + (size_t)i * width, cpu_row(r, i), width * sizeof *out);
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- opening */

static const mxd_backend_ops ops = {
    .name = "cpu",
    .determinism = "bit-exact",
    .close = cpu_close,
    .load = cpu_load,
    .setup = cpu_setup,
    .bytes = cpu_bytes,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .input = cpu_input,
    .norm = cpu_norm,
    .linear = cpu_linear,
    .rope = cpu_rope,
    .kv_append = cpu_kv_append,
    .attend = cpu_attend,
    .gated = cpu_gated,
    .add = cpu_add,
    .pick = cpu_pick,
    .output = cpu_output,
    .end = cpu_end,
    .moe = cpu_moe_run,
    .unit_norm = cpu_unit_norm,
    .scale = cpu_scale,
    .scale_by = cpu_scale_by,
    .softcap = cpu_softcap,
    .gate_rows = cpu_gate_rows,
    .scale_positions = cpu_scale_positions,
    .split = cpu_split,
    .join = cpu_join,
    .linear_heads = cpu_linear_heads,
    .linear_cut = cpu_linear_cut,
    .columns = cpu_columns,
    .delta_net = cpu_delta_net,
    .state_copy = cpu_state_copy,
};

mxd_rc cpu_open(mxd_backend **out, const mxd_alloc *al, const mxd_backend_opts *opts,
                mxd_err *err) {
    const mxd_kernels *k = opts->kernels ? mxd_kernels_find(opts->kernels) : mxd_kernels_best();
    if (!k)
        return mxd_fail(err, MXD_E_INVAL,
                        "kernels '%s': not known, or this processor cannot run them; the best it "
                        "can is '%s'",
                        opts->kernels, mxd_kernels_best()->name);
    if (opts->threads < 0 || opts->threads > MXD_MAX_THREADS)
        return mxd_fail(err, MXD_E_INVAL, "%d threads: must be 0 to %d", opts->threads,
                        MXD_MAX_THREADS);
    if (opts->activations < MXD_ACT_I8 || opts->activations > MXD_ACT_F32)
        return mxd_fail(err, MXD_E_INVAL, "activations %d", (int)opts->activations);
    if (opts->kv < MXD_KV_AUTO || opts->kv > MXD_KV_Q8)
        return mxd_fail(err, MXD_E_INVAL, "K and V of type %d", (int)opts->kv);
    cpu_backend *b = MXD_NEW(al, 1, cpu_backend);
    if (!b) return mxd_fail(err, MXD_E_NOMEM, "backend");
    b->base.ops = &ops;
    b->al = al;
    b->k = k;
    b->n_threads = opts->threads ? opts->threads : cpu_default_threads();
    b->activations = opts->activations;
    b->kv_type = mxd_kv_of(opts->kv, opts->activations);
    for (int i = 0; i < MXD_MAX_HEAD_DIM; i++) b->ones[i] = 1;
    if (opts->scratch_dir) b->scratch_dir = mxd_strdup(al, opts->scratch_dir);
    b->aside_least = opts->aside_least ? opts->aside_least : MXD_ASIDE_BYTES;
    int spin_us = opts->spin_us > 0 ? opts->spin_us : opts->spin_us < 0 ? 0 : DEFAULT_SPIN_US;
    mxd_rc rc = mxd_pool_open(&b->pool, al, b->n_threads, spin_us, err);
    if (rc) {
        mxd_free(al, b->scratch_dir);
        mxd_free(al, b);
        return rc;
    }
    *out = &b->base;
    return MXD_OK;
}
