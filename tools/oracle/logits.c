/* mlxd-logits: what a model answers, for tools/oracle/live.py.
 *   mlxd-logits MODEL 8|16|f32 KERNELS|best CHUNK PARTS < ids > logits
 * Reads token ids (text), sends them in chunks through PARTS shards of even layer counts, and
 * writes the float32 logits after every chunk. Exit 1 and one line when something fails. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/sizes.h"
#include "runtime/shard.h"

enum { MAX_IDS = 1 << 16, MAX_PARTS = 16 };

static void die(const char *what, const char *why) {
    fprintf(stderr, "mlxd-logits: %s: %s\n", what, why);
    exit(1);
}

/* Where part i of `parts` starts: even counts of layers, up to the last cut. Fewer parts when there
 * are not so many cuts. */
static int cut_of(const mxd_model_sizes *m, int i, int parts) {
    if (i == 0) return 0;
    if (i == parts) return m->n_layers;
    return m->last_cut ? m->last_cut * i / (parts - 1) : m->n_layers * i / parts;
}

static int parts_of(const mxd_model_sizes *m, int parts) {
    int most = m->last_cut < 0 ? 1 : m->last_cut ? m->last_cut + 1 : m->n_layers;
    return parts < most ? parts : most;
}

static void *need(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) die("memory", "there is none left");
    return p;
}

int main(int argc, char **argv) {
    mxd_log_set_level(MXD_LOG_ERROR);
    if (argc != 6) die("usage", "mlxd-logits MODEL 8|16|f32 KERNELS|best CHUNK PARTS");
    int chunk = atoi(argv[4]), parts = atoi(argv[5]), n = 0;
    if (chunk < 1 || chunk > MXD_MAX_STEP_TOKENS || parts < 1 || parts > MAX_PARTS)
        die("usage", "CHUNK is 1 to 512, PARTS 1 to 16");
    int32_t *ids = need(MAX_IDS, sizeof *ids);
    while (n < MAX_IDS && scanf("%d", &ids[n]) == 1) n++;

    mxd_activations act = argv[2][0] == 'f'   ? MXD_ACT_F32
                          : argv[2][0] == '1' ? MXD_ACT_I16
                                              : MXD_ACT_I8;
    mxd_shard *shard[MAX_PARTS] = {0};
    mxd_err err = {0};
    static mxd_model_sizes sizes;
    if (mxd_model_sizes_read(&sizes, &mxd_alloc_libc, argv[1], chunk, MXD_KV_F16, &err))
        die("open", err.msg);
    parts = parts_of(&sizes, parts);
    for (int i = 0; i < parts; i++) {
        mxd_shard_opts o = {.folder = argv[1],
                            .layer0 = cut_of(&sizes, i, parts),
                            .layer1 = cut_of(&sizes, i + 1, parts),
                            .n_slots = 1,
                            .ctx = n + 1,
                            .max_rows = chunk,
                            .backend = "cpu",
                            .backend_opts = {.activations = act,
                                             .kernels = strcmp(argv[3], "best") ? argv[3] : NULL}};
        if (mxd_shard_open(&shard[i], &mxd_alloc_libc, &o, &err)) die("open", err.msg);
    }
    size_t hidden = (size_t)mxd_shard_hidden(shard[0]), vocab = (size_t)mxd_shard_vocab(shard[0]);
    float *h[2] = {need((size_t)chunk * hidden, sizeof(float)),
                   need((size_t)chunk * hidden, sizeof(float))};
    float *logits = need(vocab, sizeof *logits);
    for (int at = 0; at < n; at += chunk) {
        int len = n - at < chunk ? n - at : chunk;
        mxd_step_run run = {.n = (uint16_t)len, .pos = (uint32_t)at, .sample = true};
        mxd_sampled token;
        for (int i = 0; i < parts; i++) {
            mxd_step step = {1, len, &run, ids + at, i ? h[(i - 1) & 1] : NULL};
            mxd_step_result r = {.hidden = h[i & 1], .logits = logits, .tokens = &token};
            if (mxd_shard_step(shard[i], &step, &r, &err)) die("step", err.msg);
        }
        if (fwrite(logits, sizeof *logits, vocab, stdout) != vocab) die("write", "pipe is closed");
    }
    for (int i = 0; i < parts; i++) mxd_shard_close(shard[i]);
    free(h[0]), free(h[1]), free(logits), free(ids);
    return 0;
}
