/* Every model of tests/conformance, cut in every way, against one node that has all of it: logits
 * of prompts in chunks and of decode steps must be equal bit by bit. By default each model is cut
 * for 1 to 6 ranks in ways that a seed draws; MXD_TEST_FULL=1 draws more of them, on every path. */
#include <stdlib.h>
#include "parallel_kit.h"

enum { MAX_FAMILIES = 32 };

typedef enum way { EVEN, UNEVEN, PIPELINE, BOTH, WAYS } way;

static const char *const way_names[WAYS] = {"tensor", "tensor uneven", "pipeline",
                                            "tensor x pipeline"};

/* ------------------------------------------------------------------------------------ coverage */

static struct {
    char family[48];
    int models, cuts[WAYS];
    unsigned ranks[WAYS]; /* a bit for each number of ranks */
} seen[MAX_FAMILIES];
static int n_seen;

static int family_of(const pk_model *m) {
    for (int i = 0; i < n_seen; i++)
        if (strcmp(seen[i].family, m->family) == 0) return i;
    CHECK(n_seen < MAX_FAMILIES);
    memset(&seen[n_seen], 0, sizeof seen[n_seen]);
    memcpy(seen[n_seen].family, m->family, sizeof m->family);
    return n_seen++;
}

static void print_coverage(const char *path) {
    for (int i = 0; i < n_seen; i++) {
        print_message("# %s %-17s %d models:", path, seen[i].family, seen[i].models);
        for (int w = 0; w < WAYS; w++) {
            print_message("%s %d x %s (ranks", w ? "," : "", seen[i].cuts[w], way_names[w]);
            for (int n = 1; n < 32; n++)
                if (seen[i].ranks[w] & 1u << n) print_message(" %d", n);
            print_message(")");
        }
        print_message("\n");
    }
}

/* --------------------------------------------------------------------------------- drawing cuts */

static unsigned draw(unsigned *state, unsigned n) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % n;
}

/* Some get nothing, some much; at least one gets something. */
static void draw_shares(unsigned *state, pk_stage *s) {
    for (int i = 0; i < s->size; i++) s->shares[i] = draw(state, 4) ? 1 + draw(state, 9) : 0;
    s->shares[draw(state, (unsigned)s->size)] = 3;
}

/* n stages with cuts anywhere they may be, or as many as there can be. */
static pk_plan draw_stages(unsigned *state, const pk_model *m, int n) {
    bool cut[1024] = {false};
    int most = m->last_cut ? (m->last_cut < 0 ? 0 : m->last_cut) : m->n_layers - 1;
    if (n > most + 1) n = most + 1;
    for (int left = n - 1; left > 0;) {
        unsigned at = 1 + draw(state, (unsigned)most);
        left -= !cut[at];
        cut[at] = true;
    }
    pk_plan p = {0};
    for (int l = 0; l < m->n_layers; l++)
        if (l == 0 || cut[l]) p.stage[p.n_stages++] = (pk_stage){.layer0 = l, .size = 1};
    for (int i = 0; i < p.n_stages; i++)
        p.stage[i].layer1 = i + 1 < p.n_stages ? p.stage[i + 1].layer0 : m->n_layers;
    return p;
}

static pk_plan draw_plan(unsigned *state, const pk_model *m, way w, int ranks) {
    static const int sizes[][PK_MAX_STAGES] = {{2, 2}, {3, 3},    {2, 2, 2}, {1, 2},       {3, 1},
                                               {2, 4}, {1, 3, 2}, {6, 2},    {2, 1, 1, 2}, {5, 1}};
    if (w == PIPELINE) return draw_stages(state, m, ranks);
    if (w != BOTH) {
        pk_plan p = pk_whole(m);
        p.stage[0].size = ranks;
        p.stage[0].group = true;
        if (w == UNEVEN) draw_shares(state, &p.stage[0]);
        return p;
    }
    const int *size = sizes[((unsigned)ranks + draw(state, 2) * 5) % MXD_COUNT(sizes)];
    int n = 0;
    while (n < PK_MAX_STAGES && size[n]) n++;
    pk_plan p = draw_stages(state, m, n);
    for (int i = 0; i < p.n_stages; i++) {
        p.stage[i].size = size[i];
        if (draw(state, 2)) draw_shares(state, &p.stage[i]);
    }
    return p;
}

static void describe(const pk_plan *p, char out[512]) {
    size_t n = 0;
    for (int i = 0; i < p->n_stages; i++) {
        const pk_stage *s = &p->stage[i];
        n += (size_t)snprintf(out + n, 512 - n, "%s%d to %d on %d (", i ? ", " : "", s->layer0,
                              s->layer1, s->size);
        for (int r = 0; r < s->size; r++)
            n += (size_t)snprintf(out + n, 512 - n, "%s%g", r ? " " : "", s->shares[r]);
        n += (size_t)snprintf(out + n, 512 - n, ")");
    }
}

/* -------------------------------------------------------------------------------- the matrix */

static void check_plan(const pk_model *m, mxd_activations act, way w, const pk_plan *p,
                       const float *want) {
    float *got = calloc(pk_floats(m), sizeof *got);
    CHECK(got);
    pk_run(m, act, p, got);
    char text[512];
    if (memcmp(got, want, pk_floats(m) * sizeof *want) != 0) {
        describe(p, text);
        fail_msg("%s, activations %d: layers %s: logits differ from those of one node", m->folder,
                 (int)act, text);
    }
    free(got);
    int f = family_of(m), ranks = 0;
    for (int i = 0; i < p->n_stages; i++) ranks += p->stage[i].size;
    seen[f].cuts[w]++;
    seen[f].ranks[w] |= 1u << ranks;
}

/* Of each model and number of ranks one in `thin` ways. */
static void check_all(mxd_activations act, const char *path, int thin) {
    static char names[PK_MAX_MODELS][64];
    int n = pk_list(names), rounds = getenv("MXD_TEST_FULL") ? 8 : 1;
    unsigned state = 7 + (unsigned)act;
    n_seen = 0;
    CHECK(n >= 52);
    if (rounds > 1) thin = 1;
    for (int i = 0; i < n; i++) {
        pk_model m;
        pk_open(&m, names[i]);
        seen[family_of(&m)].models++;
        float *want = calloc(pk_floats(&m), sizeof *want);
        CHECK(want);
        const pk_plan whole = pk_whole(&m);
        pk_run(&m, act, &whole, want);
        for (int k = 0; k < rounds * PK_MAX_RANKS * WAYS; k++) {
            if (thin > 1 && draw(&state, (unsigned)thin)) continue;
            int ranks = 1 + k / WAYS % PK_MAX_RANKS;
            way w = (way)(k % WAYS);
            const pk_plan p = draw_plan(&state, &m, w, ranks);
            check_plan(&m, act, w, &p, want);
        }
        free(want);
    }
    print_coverage(path);
}

TEST(matrix_every_model_cut_in_every_way_int8) { check_all(MXD_ACT_I8, "int8", 1); }
TEST(matrix_every_model_cut_in_every_way_float32) { check_all(MXD_ACT_F32, "float32", 2); }
TEST(matrix_every_model_cut_in_every_way_int16) { check_all(MXD_ACT_I16, "int16", 4); }
