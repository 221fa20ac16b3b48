#include "cluster/worker_engine.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"

enum { JOBS_CAP = 256, PAUSE_US = 200000 };

mxd_task *mxd_task_new(const mxd_alloc *al, mxd_task_kind kind) {
    mxd_task *job = MXD_NEW(al, 1, mxd_task);
    if (!job) return NULL;
    job->kind = kind;
    if (kind != MXD_TASK_COMPUTE ||
        mxd_arena_init(&job->scratch, al, MXD_WIRE_SCRATCH, NULL) == MXD_OK)
        return job;
    mxd_free(al, job);
    return NULL;
}

void mxd_task_free(const mxd_alloc *al, mxd_task *job) {
    if (!job) return;
    mxd_blob_release(job->head);
    mxd_blob_release(job->hidden_in);
    mxd_blob_release(job->hidden_out);
    mxd_arena_deinit(&job->scratch);
    mxd_free(al, job);
}

bool mxd_worker_engine_push(mxd_worker_engine *e, mxd_task *job) {
    return mxd_queue_push(e->jobs, job);
}

/* ---------------------------------------------------------------------------------------- loading
 */

/* False when the worker ends: nobody waits for the rest. */
static bool progress(void *ctx, uint64_t done, uint64_t total) {
    mxd_worker_engine *e = ctx;
    atomic_store(&e->load_done, done);
    atomic_store(&e->load_total, total);
    return !mxd_queue_closed(e->jobs);
}

/* False also when the plan has changed, and this part is not wanted any more. */
static bool fetched(void *ctx, uint64_t done, uint64_t total) {
    mxd_worker_engine *e = ctx;
    unsigned wanted = atomic_load(&e->wanted);
    return progress(ctx, done, total) && (!wanted || wanted == e->loading);
}

unsigned mxd_worker_engine_part(const mxd_stage *s) {
    const int whole[4] = {s->layer0, s->layer1, s->rank, s->n_ranks};
    uint32_t sum = mxd_crc32c(0, whole, sizeof whole);
    return mxd_crc32c(sum, s->share, (size_t)s->n_ranks * sizeof *s->share) | 1;
}

static bool same_part(const mxd_stage *a, const mxd_stage *b) {
    if (a->layer0 != b->layer0 || a->layer1 != b->layer1) return false;
    if (a->rank != b->rank || a->n_ranks != b->n_ranks) return false;
    return memcmp(a->share, b->share, (size_t)a->n_ranks * sizeof *a->share) == 0;
}

static void unload(mxd_worker_engine *e) {
    mxd_worker_group_leave(&e->group);
    mxd_shard_close(e->shard);
    e->shard = NULL;
}

static mxd_rc open_shard(mxd_worker_engine *e, mxd_task *job) {
    mxd_shard_opts o = e->shard_opts;
    e->part = job->stage;
    e->loading = mxd_worker_engine_part(&job->stage);
    MXD_TRY(mxd_worker_weights_get(&e->weights, &e->part, fetched, e, &o.folder, &job->err));
    o.layer0 = e->part.layer0;
    o.layer1 = e->part.layer1;
    o.progress = progress;
    o.progress_ctx = e;
    if (e->part.n_ranks > 1) {
        o.group = mxd_worker_group_prepare(&e->group, &e->part);
        o.shares = e->part.share;
    }
    return mxd_shard_open(&e->shard, e->al, &o, &job->err);
}

static mxd_rc load(mxd_worker_engine *e, mxd_task *job) {
    mxd_worker_group_leave(&e->group);
    if (e->shard && same_part(&e->part, &job->stage)) {
        mxd_shard_forget(e->shard);
    } else {
        unload(e); /* first: two shards may not fit */
        MXD_TRY(open_shard(e, job));
    }
    job->bytes = mxd_shard_bytes(e->shard);
    snprintf(job->determinism, sizeof job->determinism, "%s", mxd_shard_determinism(e->shard));
    if (job->stage.n_ranks == 1) return MXD_OK;
    return mxd_worker_group_join(&e->group, &job->stage, &job->missed, &job->err);
}

/* ---------------------------------------------------------------------------------------- steps */

static mxd_rc hidden_buffers(mxd_worker_engine *e, mxd_task *job) {
    size_t bytes = (size_t)job->step.n_rows * (size_t)mxd_shard_hidden(e->shard) * sizeof(float);
    if (!mxd_shard_has_embed(e->shard) && (!job->hidden_in || job->hidden_in->len != bytes))
        return mxd_fail(&job->err, MXD_E_FORMAT, "step with %zu bytes of hidden states, not %zu",
                        job->hidden_in ? job->hidden_in->len : 0, bytes);
    if (mxd_shard_has_head(e->shard)) return MXD_OK;
    job->hidden_out = mxd_blob_new(e->al, bytes);
    return job->hidden_out ? MXD_OK : mxd_fail(&job->err, MXD_E_NOMEM, "hidden states");
}

static void stall(const mxd_worker_engine *e) {
    int64_t since = mxd_now_ms();
    while (e->stall_ms && !mxd_queue_closed(e->jobs)) {
        int ms = atomic_load(e->stall_ms);
        if (ms >= 0 && mxd_now_ms() - since >= ms) return;
        mxd_sleep_ms(1);
    }
}

static mxd_rc compute(mxd_worker_engine *e, mxd_task *job) {
    stall(e);
    if (job->epoch != atomic_load(&e->epoch) || !e->shard)
        return mxd_fail(&job->err, MXD_E_STALE, "the plan has changed");
    MXD_TRY(hidden_buffers(e, job));
    mxd_step_run runs[MXD_MAX_STEP_RUNS];
    for (int i = 0; i < job->step.n_runs; i++) {
        const mxd_core_run *r = &job->step.runs[i];
        runs[i] = (mxd_step_run){.slot = r->slot,
                                 .n = r->n,
                                 .pos = r->pos,
                                 .begin = r->begin,
                                 .keep = r->keep,
                                 .from = r->from,
                                 .sample = r->sample};
        if (r->sample) runs[i].how = *r->how;
    }
    mxd_step step = {
        .n_runs = job->step.n_runs, .n_rows = job->step.n_rows, .runs = runs, .ids = job->step.ids};
    if (job->hidden_in) step.hidden = (const float *)(const void *)job->hidden_in->bytes;
    mxd_step_result result = {.tokens = job->tokens};
    if (job->hidden_out) result.hidden = (float *)(void *)job->hidden_out->bytes;
    mxd_rc rc = mxd_shard_step(e->shard, &step, &result, &job->err);
    mxd_worker_group_rest(&e->group);
    if (rc) job->missed = mxd_worker_group_lost(&e->group);
    job->n_tokens = result.n_tokens;
    return rc;
}

/* --------------------------------------------------------------------------------------- thread */

/* A mean of the last 64 or so; of another part of the model nothing is known yet. One row that
 * takes very long is a pause, two in a row are not. */
static void learn(mxd_worker_engine *e, const mxd_task *job) {
    double us = 1000 * (double)job->ms, mean = atomic_load(&e->row_us);
    if (job->kind == MXD_TASK_LOAD) atomic_store(&e->row_us, 0);
    if (job->kind != MXD_TASK_COMPUTE || job->err.rc || job->step.n_rows != 1) return;
    bool pause = !e->paused && mean > 0 && us > PAUSE_US && us > 10 * mean;
    e->paused = pause;
    if (pause) return;
    mean = mean > 0 ? mean + (us - mean) / 64 : us;
    atomic_store(&e->row_us, mean < 1 ? 1 : mean > 1e9 ? 1000000000u : (unsigned)mean);
}

static void run(mxd_worker_engine *e, mxd_task *job) {
    int64_t start = mxd_now_ns();
    job->err = (mxd_err){.rc = MXD_OK};
    job->missed = -1;
    switch (job->kind) {
    case MXD_TASK_LOAD:
        job->err.rc = load(e, job);
        break;
    case MXD_TASK_UNLOAD:
        unload(e);
        break;
    case MXD_TASK_FORGET:
        if (e->shard) mxd_shard_forget(e->shard);
        break;
    case MXD_TASK_COMPUTE:
        job->err.rc = compute(e, job);
        break;
    }
    job->ms = (float)(mxd_now_ns() - start) / 1e6f;
    learn(e, job);
}

static void *engine_main(void *arg) {
    mxd_worker_engine *e = arg;
    for (mxd_task *job; (job = mxd_queue_pop(e->jobs, -1, 0)) != NULL;) {
        if (mxd_queue_closed(e->jobs))
            job->err.rc = mxd_fail(&job->err, MXD_E_CANCELED, "the worker ends");
        else
            run(e, job);
        e->done(e->done_ctx, job);
    }
    unload(e);
    return NULL;
}

mxd_rc mxd_worker_engine_start(mxd_worker_engine *e, const mxd_alloc *al,
                               void (*done)(void *ctx, mxd_task *job), void *ctx, mxd_err *err) {
    e->al = al;
    e->done = done;
    e->done_ctx = ctx;
    MXD_TRY(mxd_queue_open(&e->jobs, al, JOBS_CAP, err));
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) {
        mxd_queue_free(e->jobs);
        e->jobs = NULL;
        return mxd_fail(err, MXD_E_IO, "cannot start the engine thread");
    }
    e->started = true;
    return MXD_OK;
}

void mxd_worker_engine_stop(mxd_worker_engine *e) {
    if (!e->started) return;
    mxd_queue_close(e->jobs);
    pthread_join(e->thread, NULL);
    mxd_queue_free(e->jobs);
    e->started = false;
}
