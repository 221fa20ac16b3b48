/* cpu.h - private to backend/cpu: the state of the CPU backend.
 *
 * Everything a step needs lies in one anonymous mapping made by setup: registers, panels, rotary
 * tables, attention scratch, KV pages. The system gives its pages out on first touch, so resident
 * memory grows with use; what was planned is what `bytes` reports.
 *
 * Lifetime: weights from load to close; the mapping from setup to close.
 * Threads:  all of it belongs to the engine thread; pool tasks write disjoint parts of registers
 *           and their own thread's scratch.
 */
#ifndef MXD_BACKEND_CPU_CPU_H
#define MXD_BACKEND_CPU_CPU_H

#include <string.h>
#include "backend/backend.h"
#include "base/pool.h"
#include "kernels/kernels.h"

typedef struct cpu_cut cpu_cut;

struct mxd_weight {
    mxd_weight *next; /* list of the backend, newest first */
    unsigned use;     /* MXD_W_* */
    int rows, in;     /* the part held: [rows, in]; a vector is [in] */
    bool quantised;
    mxd_qshape q;   /* of the tiles, when quantised */
    mxd_ftype type; /* plain */
    size_t block_k;
    int experts, expert_tiles; /* [experts] matrices [rows, in] of so many tiles; 0: one */
    int n_tiles;
    size_t tile_bytes;
    unsigned char *tiles;       /* [n_tiles][tile_bytes], on a cache line, in a slab */
    size_t own;                 /* bytes of tiles that are no slab's (aside.c); 0: they are */
    bool aside;                 /* these lie in a file */
    float *bias;                /* [rows] or NULL */
    float *vector;              /* [in], vectors only */
    const mxd_st_tensor *table; /* of a part along `in`: what it is a part of, and from where */
    int col0;
    int lead;     /* columns of the tiles before this part */
    bool part;    /* its tiles are another weight's */
    cpu_cut *cut; /* of a group; NULL: whole */
    uint64_t bytes;
};

/* More whole subtrees no run of blocks has: two for each level of the tree of 2^20 of them. */
enum { CPU_MAX_PIECES = 40 };

struct cpu_cut { /* see group.c */
    mxd_cut at;
    int out, in, experts;     /* of the whole tensor */
    int given[MXD_MAX_RANKS]; /* what a rank gives for a row: floats, or sums of `out` floats */
    int n_pieces;             /* along `in`: this rank's whole subtrees */
    int n_sums;               /* and those of all ranks */
    /* after sum i come merges[i] additions of the two newest */
    unsigned char merges[MXD_MAX_RANKS * CPU_MAX_PIECES];
    mxd_weight *pieces; /* [n_pieces], `lead` columns into the part; tiles tile_bytes apart */
};

typedef struct cpu_reg {
    float *data; /* [cap_rows, ld]; columns width .. ld - 1 stay zero */
    int width, rows, cap_rows;
    size_t ld; /* width rounded up to 16 */
} cpu_reg;

typedef struct cpu_kv { /* n_kv = 0: the layer keeps nothing */
    int n_kv, head_dim, v_dim;
    bool latent;                   /* V is the first v_dim values of K, and is not there */
    size_t dp, vp;                 /* head_dim, v_dim rounded up to 16; behind them are zeros */
    size_t tile_bytes, v_row;      /* 16 positions of K; V of one position, as it is mixed */
    size_t k_bytes;                /* of one head of one page */
    size_t head_bytes, page_bytes; /* with V; all heads */
    unsigned char *pages;          /* [n_pages][n_kv] heads, each K then V:
                                    * K [2 tiles][dp][16 positions]: plain tiles of 16 keys, or
                                    *   tiles of 8 bits
                                    * V [MXD_KV_PAGE_TOKENS] rows of vp values */
} cpu_kv;

typedef struct cpu_state { /* recurrent state of one layer, laid out in delta.c */
    mxd_state_spec spec;   /* channels = 0: none */
    size_t matrix, kept;   /* floats of one head's S; where the kept inputs start */
    size_t floats;         /* of one sequence */
    float *data;           /* [n_states, floats] */
} cpu_state;

enum { CPU_ROPE_TABLES = 4 };

typedef struct cpu_rope_table { /* of this step; reused in turn */
    const float *inv_freq;      /* NULL: free */
    int dims;
    float scale;
    float *cs, *sn; /* [max_rows, dims / 2] */
} cpu_rope_table;

typedef struct cpu_scratch { /* of one thread */
    float *scores;           /* [attn_rows, score_ld] */
    float *q, *acc, *out;    /* [MXD_PANEL, max_dp] */
    unsigned char *turned;   /* V of one page of latent KV: rows, of floats where K is of 8 bits */
} cpu_scratch;

typedef struct cpu_moe_pair { /* a row at one of its experts */
    int expert;
    int place; /* its row in the buffers */
    float weight;
} cpu_moe_pair;

typedef struct cpu_moe_panel { /* neighbouring places of one expert */
    int first, n;
} cpu_moe_panel;

typedef struct cpu_moe_group { /* an expert that some row has chosen */
    int expert, panel0, n_panels;
} cpu_moe_group;

typedef struct cpu_moe { /* scratch of moe.c, for max_rows * top_k pairs; empty without experts */
    int top_k, hidden, inner;
    size_t wide_ld, inner_ld; /* hidden and inner rounded up to 16 */
    float *wide;              /* [pairs, wide_ld] rows by place: input, then output */
    float *gate, *up;         /* [pairs, inner_ld] */
    cpu_moe_pair *pairs;      /* [rows][top_k], experts ascending */
    cpu_moe_panel *panels;    /* at most one a pair */
    cpu_moe_group *groups;
} cpu_moe;

typedef struct cpu_slab cpu_slab; /* see slabs.c */

typedef struct cpu_backend {
    mxd_backend base;
    const mxd_alloc *al;
    const mxd_kernels *k;
    mxd_pool *pool;
    int n_threads;
    mxd_activations activations;
    mxd_kv_type kv_type;          /* not AUTO */
    float ones[MXD_MAX_HEAD_DIM]; /* the weights of a norm without weights */

    mxd_weight *weights;
    cpu_slab *slabs;   /* newest first */
    char *scratch_dir; /* NULL: nothing lies aside */
    size_t aside_least;
    size_t slab_bytes;
    uint64_t weight_bytes;
    int max_in; /* of quantised weights */

    const mxd_group *group;
    float *cut; /* of one exchange */
    size_t cut_floats;

    unsigned char *map; /* from setup to close */
    size_t map_bytes;
    int max_rows, n_regs, n_layers, n_pages, max_context;
    cpu_reg reg[MXD_MAX_REGS];
    cpu_kv *kv;        /* [n_layers] */
    size_t max_dp;     /* of K and V heads */
    size_t max_turned; /* bytes of a row of V of latent KV */
    int n_states;
    cpu_state *state;       /* [n_layers] */
    unsigned char *panel_q; /* a panel of n tokens starts n * k codes after the one before */
    float *panel_s, *panel_b;
    size_t panel_rows; /* of max_in columns */
    cpu_rope_table rope[CPU_ROPE_TABLES];
    int next_rope;
    cpu_moe moe;
    size_t score_ld;
    int attn_rows;
    cpu_scratch *scratch; /* [n_threads] */
    int32_t *row_pos;     /* [max_rows] positions of this step */
    int32_t *row_run;     /* [max_rows] */

    const mxd_batch *batch; /* of this step; NULL outside */
    mxd_rc failed;          /* first failure of this step */
    bool reported;
    mxd_err err;
} cpu_backend;

mxd_rc cpu_open(mxd_backend **out, const mxd_alloc *al, const mxd_backend_opts *opts,
                mxd_err *err) MXD_MUST_USE;

/* True when operations may compute: in a step, with nothing failed. */
static inline bool cpu_live(const cpu_backend *b) { return b->batch && !b->failed; }

/* The first failure of a step sticks. */
void cpu_stick(cpu_backend *b, mxd_rc rc);

/* Runs tasks on the pool; inline when the work (about a unit per multiply-add or byte read) is not
 * worth waking a thread for. */
void cpu_run(cpu_backend *b, mxd_pool_fn fn, void *ctx, int n_tasks, double work);

static inline float *cpu_row(const cpu_reg *r, int row) { return r->data + (size_t)row * r->ld; }

/* The rows an operation is about to write. */
static inline void cpu_set_rows(cpu_reg *r, int rows) {
    MXD_ASSERT(rows >= 0 && rows <= r->cap_rows);
    r->rows = rows;
}

/* weights.c */
mxd_rc cpu_load(mxd_backend *base, const mxd_weight_src *src, mxd_weight **out, mxd_err *err);
void cpu_weight_free(cpu_backend *b, mxd_weight *w);
uint64_t cpu_weight_bytes(const mxd_alloc *al, const mxd_weight_src *src, int max_rows,
                          uint64_t *exchange);
void cpu_embed(mxd_backend *base, int dst, const mxd_weight *w);
void cpu_embed_row(const mxd_weight *w, int id, float *y); /* y [in] = row `id` of the part */

/* turned.c: the transpose of a checked matrix. Shape first, then memory, then reading. */
mxd_rc cpu_turn_shape(const mxd_weight_src *s, mxd_weight *w, mxd_err *err);
mxd_rc cpu_turn(cpu_backend *b, const mxd_weight_src *s, mxd_weight *w, mxd_err *err);

/* aside.c. take: memory of its own for a table that may lie aside, freed by cpu_unmap; NULL: not
 * this one. put: it is filled, and goes into a file, so *p changes; false: it stays in memory. rest
 * gives back what looking up has brought into memory. */
unsigned char *cpu_aside_take(const cpu_backend *b, const mxd_weight_src *s, size_t bytes);
bool cpu_aside_put(const cpu_backend *b, unsigned char **p, size_t bytes);
void cpu_aside_rest(unsigned char *p, size_t bytes);

/* slabs.c
 * Memory for tiles, on a cache line, not zeroed, until cpu_slabs_free; NULL: no memory. */
void *cpu_slab_take(cpu_backend *b, size_t bytes);
void cpu_slabs_free(cpu_backend *b);

/* linear.c */
void cpu_linear(mxd_backend *base, int n, const int *dst, int src, const mxd_weight *const *w);
void cpu_linear_heads(mxd_backend *base, int dst, int src, const mxd_weight *w);
/* This rank's part of rows [row0, row0 + n): [n_pieces][n, out], or [n, rows of w]. */
void cpu_linear_pieces(cpu_backend *b, const mxd_weight *w, const cpu_reg *src, int row0, int n,
                       float *to);

/* group.c
 * The cut of a source, whose `in` and `rows` become the rank's; then, with the shape of its tiles
 * known, its pieces; then where they lie. Errors: E_INVAL, E_NOMEM. */
mxd_rc cpu_cut_make(const mxd_alloc *al, const mxd_weight_src *s, mxd_weight *w, mxd_err *err);
mxd_rc cpu_cut_pieces(const mxd_weight_src *s, mxd_weight *w, mxd_err *err);
void cpu_cut_place(mxd_weight *w);
void cpu_cut_free(const mxd_alloc *al, cpu_cut *c);                  /* NULL is fine */
size_t cpu_cut_floats(const mxd_weight *w, int max_rows);            /* of its largest exchange */
bool cpu_exchange(cpu_backend *b, float *all, const size_t *n_each); /* false: failed */
void cpu_linear_cut(mxd_backend *base, int dst, int src, const mxd_weight *w);
void cpu_embed_cut(cpu_backend *b, int dst, const mxd_weight *w);

/* What a weight's activations are grouped by; 0: used as floats. */
static inline int cpu_act_group(const cpu_backend *b, const mxd_weight *w) {
    bool codes = w->quantised && w->q.kind != MXD_MXFP8;
    bool floats = b->activations == MXD_ACT_F32 || (w->use & MXD_W_EXACT);
    return codes && !floats ? mxd_act_group(w->q.group) : 0;
}

/* rows.c */
typedef void (*mxd_act_kernel)(float *y, const float *gate, const float *up, size_t n);
mxd_act_kernel cpu_act_fn(const mxd_kernels *k, mxd_act_fn act);
void cpu_input(mxd_backend *base, int dst, const float *x);
void cpu_pick(mxd_backend *base, int dst, int src, const int *rows, int n);
void cpu_norm(mxd_backend *base, int dst, int src, const mxd_weight *w, float eps);
void cpu_unit_norm(mxd_backend *base, int dst, int src, int n, float eps);
void cpu_gated(mxd_backend *base, int dst, int gate, int up, mxd_act_fn act);
void cpu_add(mxd_backend *base, int dst, int src);
void cpu_scale(mxd_backend *base, int reg, float by);
void cpu_scale_by(mxd_backend *base, int reg, const mxd_weight *w);
void cpu_softcap(mxd_backend *base, int reg, float c);
void cpu_gate_rows(mxd_backend *base, int reg, int gate);
void cpu_scale_positions(mxd_backend *base, int reg, float beta, int length);
void cpu_split(mxd_backend *base, int first, int second, int src, int n, int a, int c);
void cpu_join(mxd_backend *base, int dst, int first, int second, int n, int a, int c);
void cpu_columns(mxd_backend *base, int dst, int src, int from);

/* moe.c */
void cpu_moe_run(mxd_backend *base, int dst, int src, int logits, const mxd_moe *how);

/* delta.c */
/* Takes the shape of a layer's state, without its memory; returns floats of one sequence. */
size_t cpu_state_place(cpu_state *s, const mxd_state_spec *spec);
void cpu_delta_net(mxd_backend *base, int layer, int dst, int x, int z, int beta, int a,
                   const mxd_delta_net *how);
void cpu_state_copy(mxd_backend *base, int to, int from);

/* kv.c */
/* Takes the shape of a layer's pages, without their memory. */
void cpu_kv_place(cpu_kv *kv, const mxd_kv_spec *spec, mxd_kv_type t);
void cpu_kv_append(mxd_backend *base, int layer, int k, int v);
/* K of head h in the page that holds position pos of a run; V lies k_bytes behind. */
unsigned char *cpu_kv_head(const cpu_kv *kv, const mxd_run *run, size_t pos, int h);
/* rows [16][vp] = the first vp values of a tile of keys: floats when it is of 8 bits. */
void cpu_kv_turn(const cpu_kv *kv, mxd_kv_type t, void *rows, const unsigned char *tile);

/* Of plain tiles, and of turned rows. */
static inline mxd_ftype cpu_kv_ftype(mxd_kv_type t) { return t == MXD_KV_F16 ? MXD_F16 : MXD_F32; }

/* attend.c */
void cpu_rope(mxd_backend *base, int reg, int n_heads, int head_dim, const mxd_rope *r);
void cpu_attend(mxd_backend *base, int layer, int dst, int q, const mxd_attention *a);

/* pages.c
 * `bytes` of zeroed memory on a page edge that the system backs on first touch. NULL when
 * the address space or the system's promise of memory is short. */
void *cpu_map_lazy(size_t bytes);
void cpu_unmap(void *p, size_t bytes);
/* Asks for large pages inside fresh memory: a product with one token then waits less for address
 * translation (15 % faster on a machine with 4 KB pages). */
void cpu_want_large_pages(void *p, size_t bytes);
int cpu_default_threads(void); /* cores this process may use, 1 .. MXD_MAX_THREADS */

#endif
