/* mlxd-memory: what each rank holds of a model, as a share of what one node holds: one process a
 * rank, after a prompt and some tokens. Ranks of a group run without the others, on zeros: memory
 * does not depend on values. mlxd-memory [-n RANKS] [-c CTX] [-p PROMPT] MODEL */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/proc.h"
#include "model/sizes.h"
#include "runtime/shard.h"

enum { CHUNK = 256, TOKENS = 8, MAX_N = 8 };

typedef struct part {
    const char *kind;
    int rank, ranks; /* of a group; ranks = 0: none */
    int layer0, layer1;
} part;

typedef struct held {
    uint64_t planned, bytes, rss;
} held;

static const char *folder;
static int ctx = 4096, prompt = 512;
static mxd_model_sizes sizes;

static void die(const char *what, const mxd_err *err) {
    fprintf(stderr, "mlxd-memory: %s: %s\n", what, err ? err->msg : "");
    exit(1);
}

static mxd_rc alone(void *c, float *all, const size_t *n_each, mxd_err *err) {
    (void)err;
    const mxd_group *g = c;
    for (int r = 0; r < g->size; all += n_each[r++])
        if (r != g->rank) memset(all, 0, n_each[r] * sizeof *all);
    return MXD_OK;
}

static void run_step(mxd_shard *s, int pos, int n) {
    static float hidden[CHUNK * MXD_MAX_HIDDEN];
    static int32_t ids[CHUNK];
    mxd_err err = {0};
    mxd_sampled token;
    for (int i = 0; i < n; i++) ids[i] = (pos + i) * 37 % mxd_shard_vocab(s);
    mxd_step_run run = {.n = (uint16_t)n, .pos = (uint32_t)pos, .sample = true};
    const mxd_step step = {1, n, &run, ids, hidden};
    mxd_step_result out = {.hidden = hidden, .tokens = &token};
    if (mxd_shard_step(s, &step, &out, &err)) die("step", &err);
}

/* In a process of its own. */
static held hold(const part *p) {
    mxd_err err = {0};
    mxd_shard *s;
    mxd_group g = {p->rank, p->ranks, &g, alone};
    const mxd_shard_opts o = {.folder = folder,
                              .layer0 = p->layer0,
                              .layer1 = p->layer1,
                              .n_slots = 4,
                              .ctx = ctx,
                              .max_rows = CHUNK,
                              .backend = "cpu",
                              .group = p->ranks ? &g : NULL};
    if (mxd_shard_open(&s, &mxd_alloc_libc, &o, &err)) die(folder, &err);
    for (int pos = 0; pos < prompt; pos += CHUNK)
        run_step(s, pos, prompt - pos < CHUNK ? prompt - pos : CHUNK);
    for (int i = 0; i < TOKENS; i++) run_step(s, prompt + i, 1);
    return (held){.bytes = mxd_shard_bytes(s), .rss = mxd_proc_rss_bytes()};
}

static held measure(const part *p) {
    int ends[2];
    held h = {0};
    if (pipe(ends)) die("pipe", NULL);
    pid_t child = fork();
    if (child < 0) die("fork", NULL);
    if (child == 0) {
        h = hold(p);
        _exit(write(ends[1], &h, sizeof h) == sizeof h ? 0 : 1);
    }
    close(ends[1]);
    if (read(ends[0], &h, sizeof h) != sizeof h) die("a rank failed", NULL);
    close(ends[0]);
    waitpid(child, NULL, 0);
    return h;
}

static void print(const part *p, held h, held one) {
    printf("| %s | %d | %d to %d | %.0f | %.0f | %.1f %% |\n", p->kind, p->rank, p->layer0,
           p->layer1, (double)h.bytes / 1e6, (double)h.rss / 1e6,
           100.0 * (double)h.rss / (double)one.rss);
    fflush(stdout);
}

/* Bytes of layers [a, b) with what their place brings. */
static uint64_t stage_bytes(int a, int b) {
    uint64_t sum = b == sizes.n_layers ? sizes.head_bytes : 0;
    if (a == 0 && !(b == sizes.n_layers && sizes.tied)) sum += sizes.embed_bytes;
    for (int l = a; l < b; l++) sum += sizes.layer_bytes[l];
    return sum;
}

/* Stages of about equal bytes: each takes layers up to the least size that will do for all. */
static int cut(int n, int edge[MAX_N + 1]) {
    uint64_t most = stage_bytes(0, sizes.n_layers);
    int stages = 0;
    for (uint64_t limit = most / (uint64_t)n; limit <= most; limit += most / 1000 + 1) {
        stages = 0;
        for (int at = 0; at < sizes.n_layers && stages < n; stages++) {
            int to = at + 1;
            while (to < sizes.n_layers && stage_bytes(at, to + 1) <= limit) to++;
            edge[stages] = at;
            if (stage_bytes(at, to) > limit) break;
            at = edge[stages + 1] = to;
        }
        if (stages && stages <= n && edge[stages] == sizes.n_layers) return stages;
    }
    return stages;
}

int main(int argc, char **argv) {
    int n = 3, c;
    while ((c = getopt(argc, argv, "n:c:p:")) != -1) {
        if (c == 'n') n = atoi(optarg);
        if (c == 'c') ctx = atoi(optarg);
        if (c == 'p') prompt = atoi(optarg);
    }
    mxd_err err = {0};
    if (optind >= argc || n < 1 || n > MAX_N || prompt + TOKENS > ctx) die("see the source", NULL);
    folder = argv[optind];
    if (mxd_model_sizes_read(&sizes, &mxd_alloc_libc, folder, CHUNK, MXD_KV_F16, &err))
        die(folder, &err);
    printf("| split | rank | layers | held, MB | resident, MB | of one node "
           "|\n|---|---|---|---|---|---|\n");
    const part whole = {"one node", 0, 0, 0, sizes.n_layers};
    const held one = measure(&whole);
    print(&whole, one, one);
    int edge[MAX_N + 1] = {0}, stages = cut(n, edge);
    for (int i = 0; i < stages; i++) {
        const part p = {"pipeline", 0, 0, edge[i], edge[i + 1]};
        print(&p, measure(&p), one);
    }
    for (int i = 0; i < n; i++) {
        const part p = {"tensor", i, n, 0, sizes.n_layers};
        print(&p, measure(&p), one);
    }
    return 0;
}
