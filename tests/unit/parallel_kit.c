#include "parallel_kit.h"

#include "ranges_kit.h"

#include <dirent.h>
#include <stdlib.h>
#include "group_kit.h"
#include "model/model.h"

enum { CHUNK = 7, N_CHUNKS = 3, N_STEPS = 15, MAX_RUNS = 2, MAX_ROWS = 16 };

typedef struct rank {
    kit_member member;
    mxd_shard *shard;
    const pk_model *m;
    const float *in; /* [N_STEPS, MAX_ROWS, hidden], of the stage before; NULL: there is none */
    float *out;      /* the same, or the logits [N_STEPS, MAX_RUNS, vocab], and the tokens behind */
    mxd_rc rc;
    mxd_err err;
} rank;

/* ----------------------------------------------------------------------------------- the steps */

/* Sevens, then ones, of one sequence; beside it a second, by twos and ones, from the third step on.
 */
static int place_runs(int step, mxd_step_run runs[MAX_RUNS]) {
    bool prompt = step < N_CHUNKS;
    int pos = prompt ? step * CHUNK : N_CHUNKS * CHUNK + step - N_CHUNKS;
    runs[0] =
        (mxd_step_run){.slot = 1, .n = prompt ? CHUNK : 1, .pos = (uint32_t)pos, .sample = true};
    if (step < 2) return 1;
    runs[1] = (mxd_step_run){.slot = 0,
                             .n = step == 2 ? 2 : 1,
                             .pos = step == 2 ? 0 : (uint32_t)step - 1,
                             .sample = true};
    return 2;
}

static int step_runs(int step, mxd_step_run runs[MAX_RUNS]) {
    static const mxd_sampling ways[] = {
        {0},
        {.logprobs = true, .n_top = 5},
        {.temperature = 0.8f, .seed = 3, .logprobs = true},
        {.temperature = 0.9f, .seed = 4, .top_p = 0.95f, .top_k = 20, .repetition = 1.2f},
        {.temperature = 2, .seed = 5, .top_p = 0.99f, .n_top = 20, .presence = 1},
    };
    int n = place_runs(step, runs);
    for (int i = 0; i < n; i++) runs[i].how = ways[(size_t)(step + i) % MXD_COUNT(ways)];
    return n;
}

static int step_ids(const pk_model *m, const mxd_step_run *runs, int n_runs, int32_t *ids) {
    int n = 0;
    for (int i = 0; i < n_runs; i++)
        for (int k = 0; k < runs[i].n; k++)
            ids[n++] = ((int)runs[i].pos + k) * (runs[i].slot ? 37 : 29) % m->vocab;
    return n;
}

static size_t logit_floats(const pk_model *m) {
    return (size_t)N_STEPS * MAX_RUNS * (size_t)m->vocab;
}

/* To a place that is all zeros, so that nothing lies between the fields. */
static void put_token(float *all, int i, const mxd_sampled *from) {
    mxd_sampled *to = (mxd_sampled *)(void *)all + i;
    to->token = from->token;
    to->logprob = from->logprob;
    to->n_top = from->n_top;
    memcpy(to->top_id, from->top_id, sizeof to->top_id);
    memcpy(to->top_logprob, from->top_logprob, sizeof to->top_logprob);
}

static mxd_rc run_steps(rank *r) {
    size_t vocab = (size_t)r->m->vocab, hidden = (size_t)r->m->hidden;
    bool head = mxd_shard_has_head(r->shard);
    for (int s = 0; s < N_STEPS; s++) {
        mxd_step_run runs[MAX_RUNS];
        mxd_sampled tokens[MAX_RUNS] = {0};
        int32_t ids[MAX_ROWS];
        int n_runs = step_runs(s, runs);
        int n = step_ids(r->m, runs, n_runs, ids);
        size_t at = (size_t)s * MAX_ROWS * hidden;
        const mxd_step step = {n_runs, n, runs, ids, r->in ? r->in + at : NULL};
        mxd_step_result out = {.tokens = tokens};
        if (head)
            out.logits = r->out + (size_t)s * MAX_RUNS * vocab;
        else
            out.hidden = r->out + at;
        MXD_TRY(mxd_shard_step(r->shard, &step, &out, &r->err));
        for (int i = 0; head && i < n_runs; i++)
            put_token(r->out + logit_floats(r->m), s * MAX_RUNS + i, &tokens[i]);
    }
    return MXD_OK;
}

static void *run_rank(void *arg) {
    rank *r = arg;
    r->rc = run_steps(r);
    if (r->rc) kit_room_break(r->member.room);
    return NULL;
}

/* ------------------------------------------------------------------------------------- a stage */

mxd_shard_opts pk_options(const pk_model *m, mxd_activations act) {
    return (mxd_shard_opts){.folder = m->folder,
                            .n_slots = 2,
                            .ctx = PK_CTX,
                            .max_rows = MAX_ROWS,
                            .backend = "cpu",
                            .backend_opts = {.threads = 1, .spin_us = -1, .activations = act}};
}

static size_t stage_floats(const pk_model *m, const pk_stage *s) {
    if (s->layer1 == m->n_layers) return pk_floats(m);
    return (size_t)N_STEPS * MAX_ROWS * (size_t)m->hidden;
}

static void start(rank *r, const pk_stage *s, mxd_activations act) {
    mxd_shard_opts o = pk_options(r->m, act);
    bool even = true;
    for (int i = 0; i < s->size; i++) even = even && s->shares[i] == 0;
    o.layer0 = s->layer0;
    o.layer1 = s->layer1;
    if (s->group || s->size > 1) o.group = &r->member.group;
    if (!even) o.shares = s->shares;
    char own[64];
    if (s->alone)
        ranges_kit_make(own, o.folder, o.layer0, o.layer1, s->size, o.shares, r->member.group.rank);
    if (s->alone) o.folder = own;
    CHECK_OK(mxd_shard_open(&r->shard, &mxd_alloc_libc, &o, &r->err), &r->err);
    if (s->alone) ranges_kit_remove(own); /* what is open stays */
    r->out = calloc(stage_floats(r->m, s), sizeof(float));
    CHECK(r->out);
}

static void finish(const rank *ranks, const pk_stage *s, int i) {
    const rank *r = &ranks[i];
    CHECK_OK(r->rc, &r->err);
    if (memcmp(r->out, ranks[0].out, stage_floats(r->m, s) * sizeof(float)) != 0)
        fail_msg("%s: layers %d to %d: rank %d of %d and rank 0 differ", r->m->folder, s->layer0,
                 s->layer1, i, s->size);
    mxd_shard_close(r->shard);
    if (i) free(r->out);
}

/* What rank 0 gives; the caller frees it. */
static float *run_stage(const pk_model *m, mxd_activations act, const pk_stage *s,
                        const float *in) {
    kit_room meeting;
    rank ranks[PK_MAX_RANKS] = {0};
    kit_room_begin(&meeting, s->size);
    for (int i = 0; i < s->size; i++) {
        rank *r = &ranks[i];
        *r = (rank){.m = m, .in = in};
        kit_join_room(&r->member, &meeting, i);
        start(r, s, act);
    }
    if (s->size == 1) {
        run_rank(&ranks[0]);
    } else {
        for (int i = 0; i < s->size; i++)
            CHECK(!pthread_create(&ranks[i].member.thread, NULL, run_rank, &ranks[i]));
        for (int i = 0; i < s->size; i++) pthread_join(ranks[i].member.thread, NULL);
    }
    for (int i = s->size - 1; i >= 0; i--) finish(ranks, s, i);
    kit_room_end(&meeting);
    return ranks[0].out;
}

/* ------------------------------------------------------------------------------------ a model */

static int by_name(const void *a, const void *b) { return strcmp(a, b); }

int pk_list(char names[PK_MAX_MODELS][64]) {
    char root[1024];
    DIR *d = opendir(test_path(root, "conformance/models"));
    CHECK(d);
    int n = 0;
    for (struct dirent *e = readdir(d); e; e = readdir(d)) {
        if (e->d_name[0] == '.' || strlen(e->d_name) >= 64) continue;
        CHECK(n < PK_MAX_MODELS);
        snprintf(names[n++], 64, "%s", e->d_name);
    }
    closedir(d);
    qsort(names, (size_t)n, 64, by_name);
    return n;
}

void pk_open(pk_model *m, const char *name) {
    char rel[256];
    mxd_err err = {0};
    mxd_model *model;
    *m = (pk_model){0};
    snprintf(rel, sizeof rel, "conformance/models/%s", name);
    test_path(m->folder, rel);
    CHECK_OK(mxd_model_open(&model, &mxd_alloc_libc, m->folder, &err), &err);
    const mxd_hparams *hp = mxd_model_hparams(model);
    memcpy(m->family, hp->model_type, sizeof m->family);
    m->vocab = hp->n_vocab;
    m->n_layers = hp->n_layers;
    m->hidden = hp->hidden;
    m->last_cut = hp->last_cut;
    mxd_model_close(model);
}

size_t pk_floats(const pk_model *m) {
    return logit_floats(m) + (size_t)N_STEPS * MAX_RUNS * sizeof(mxd_sampled) / sizeof(float);
}

pk_plan pk_whole(const pk_model *m) { return (pk_plan){1, {{.layer1 = m->n_layers, .size = 1}}}; }

void pk_run(const pk_model *m, mxd_activations act, const pk_plan *plan, float *logits) {
    float *in = NULL;
    for (int i = 0; i < plan->n_stages; i++) {
        float *out = run_stage(m, act, &plan->stage[i], in);
        free(in);
        in = out;
    }
    memcpy(logits, in, pk_floats(m) * sizeof *logits);
    free(in);
}
