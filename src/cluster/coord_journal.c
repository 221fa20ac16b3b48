/* coord_journal.c - the coordinator's journal: what is written when, and requests of an earlier
 * life.
 *
 * All records of one step of the core leave in one write before any of its actions is carried out,
 * so before a client can see a token of it. An epoch is on disk before its plans are sent. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/crc32c.h"
#include "base/log.h"
#include "cluster/coord_private.h"

enum { GIVE_UP_MS = 60000 }; /* a restored request waits so long for somebody to compute it */

/* --------------------------------------------------------------------------------------- opening
 */

static void fingerprint(mxd_cluster *c) {
    const mxd_welcome *w = &c->welcome;
    unsigned char *p = c->fingerprint;
    uint32_t backend = mxd_crc32c(0, w->backend, strlen(w->backend));
    memcpy(p, w->tensors_hash, 32);
    for (int i = 0; i < 4; i++) p[32 + i] = (unsigned char)(backend >> 8 * i);
    p[36] = (unsigned char)w->activations;
    p[37] = (unsigned char)w->kv;
}

static void gone(mxd_cluster *c, uint64_t id) {
    mxd_journal_put(c->journal, MXD_REC_GONE, id, NULL, 0);
    (void)!mxd_journal_write(c->journal, NULL);
}

/* Those that this model cannot go on with, and those that nobody could read. */
static void drop_foreign(mxd_cluster *c) {
    for (mxd_kept_request *q = c->kept.first, *next; q; q = next) {
        next = q->next;
        if (memcmp(q->model, c->fingerprint, sizeof c->fingerprint) == 0) continue;
        mxd_log(MXD_LOG_WARN, "stream_dropped", "request=%llu reason=\"another model\"",
                (unsigned long long)q->k.id);
        mxd_kept_drop(&c->kept, q);
    }
    for (int i = 0; mxd_journal_live(c->journal, i);) {
        uint64_t id = mxd_journal_live(c->journal, i);
        if (mxd_kept_find(&c->kept, id)) {
            i++;
            continue;
        }
        mxd_journal_put(c->journal, MXD_REC_GONE, id, NULL, 0);
        if (mxd_journal_live(c->journal, i) == id) break; /* it does not write any more */
    }
    (void)!mxd_journal_write(c->journal, NULL);
}

/* A journal that cannot be opened costs the restart, not the service. */
mxd_rc mxd_coord_journal_open(mxd_cluster *c, mxd_err *err) {
    c->kept.al = c->al;
    mxd_buf_init(&c->record, c->al, MXD_JOURNAL_RECORD_BYTES);
    if (!c->opts.journal_dir) return MXD_OK;
    fingerprint(c);
    mxd_journal_opts o = {.dir = c->opts.journal_dir};
    mxd_err own = {0};
    mxd_rc rc = mxd_journal_open(&c->journal, c->al, &o, mxd_kept_take, &c->kept, &own);
    if (rc == MXD_E_NOMEM) {
        if (err) *err = own;
        return rc;
    }
    if (rc) {
        mxd_log(MXD_LOG_WARN, "no_journal", "reason=\"%s\"", own.msg);
        snprintf(c->no_journal, sizeof c->no_journal, "%s", own.msg);
        while (c->kept.first) mxd_kept_drop(&c->kept, c->kept.first);
        return MXD_OK;
    }
    drop_foreign(c);
    c->next_request = mxd_journal_stream(c->journal);
    return MXD_OK;
}

uint64_t mxd_coord_journal_epoch(const mxd_cluster *c) {
    uint64_t epoch = c->journal ? mxd_journal_epoch(c->journal) : 0;
    return epoch < MXD_CORE_MAX_EPOCH / 2 ? epoch : 0;
}

void mxd_coord_journal_close(mxd_cluster *c) {
    while (c->restoring) {
        mxd_live_request *q = c->restoring;
        c->restoring = q->next;
        const mxd_request_end end = {
            .how = MXD_END_ERROR, .rc = MXD_E_SHUTDOWN, .text = "the server is shutting down"};
        q->r.end(q->r.ctx, &end);
        mxd_coord_request_free(c, q);
    }
    while (c->kept.first) mxd_kept_drop(&c->kept, c->kept.first);
    if (c->record.al) mxd_buf_deinit(&c->record);
    mxd_journal_close(c->journal);
}

bool mxd_cluster_journal_problem(mxd_cluster *c, char *text, size_t cap) {
    if (c->journal) return mxd_journal_problem(c->journal, text, cap);
    if (!c->no_journal[0]) return false;
    if (cap) snprintf(text, cap, "%s", c->no_journal);
    return true;
}

/* --------------------------------------------------------------------------------------- writing
 */

static void put_record(mxd_cluster *c, mxd_record_kind kind, uint64_t id) {
    mxd_buf *b = &c->record;
    if (!b->rc) mxd_journal_put(c->journal, kind, id, mxd_buf_str(b), b->len);
    mxd_buf_clear(b);
}

static void put_end(mxd_cluster *c, uint64_t id, const mxd_request_end *end, int n_tokens) {
    mxd_kept_put_end(&c->record, end, n_tokens, mxd_wall_ms());
    put_record(c, MXD_REC_END, id);
}

/* True: it has to be on disk before anything else is done. */
static bool put_action(mxd_cluster *c, const mxd_coord_actions *out, int i) {
    const mxd_core_journal *j = &out->list[i].journal;
    const mxd_coord_action *next = i + 1 < out->n ? &out->list[i + 1] : NULL;
    if (j->kind == MXD_JOURNAL_EPOCH) {
        mxd_journal_put_epoch(c->journal, j->epoch);
        return true;
    }
    if (!mxd_journal_holds(c->journal, j->request)) return false;
    if (j->kind == MXD_JOURNAL_TOKEN) {
        const mxd_live_request *q = mxd_coord_request(c, j->request);
        mxd_kept_put_token(&c->record, j->index, j->sampled, q && q->r.how.logprobs);
        put_record(c, MXD_REC_TOKEN, j->request);
    } else if (next && next->kind == MXD_ACT_DONE && next->request == j->request) {
        mxd_request_end end = mxd_coord_end(next);
        put_end(c, j->request, &end, (int)j->index);
    }
    return false;
}

void mxd_coord_journal_step(mxd_cluster *c, const mxd_coord_actions *out) {
    bool wait = false;
    if (!c->journal) return;
    for (int i = 0; i < out->n; i++)
        if (out->list[i].kind == MXD_ACT_JOURNAL) wait |= put_action(c, out, i);
    /* what cannot be written was logged, and /health tells: streams that run go on without */
    if (mxd_journal_write(c->journal, NULL) == MXD_OK && wait)
        (void)!mxd_journal_sync(c->journal, NULL);
}

static void nobody(void *ctx, const mxd_request_end *end) { (void)ctx, (void)end; }

void mxd_coord_journal_submitted(mxd_cluster *c, mxd_submit_answer *answer, uint64_t id) {
    mxd_live_request *q = mxd_coord_request(c, id);
    if (!c->journal || answer->err.rc || !q || !q->r.keep) return;
    mxd_err err = {0};
    mxd_kept_put_open(&c->record, &q->r, c->fingerprint);
    mxd_rc rc = mxd_buf_rc(&c->record, "the journal's record of a request", &err);
    put_record(c, MXD_REC_OPEN, id);
    if (!rc) rc = mxd_journal_write(c->journal, &err);
    q->r.keep = NULL; /* the caller's */
    if (!rc) return;
    answer->err = err;
    q->r.end = nobody;
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_CANCEL, .request = id});
}

mxd_rc mxd_coord_journal_check(mxd_cluster *c, const mxd_request *r, mxd_err *err) {
    if (!r->keep || !c->no_journal[0]) return MXD_OK;
    return mxd_fail(err, MXD_E_IO, "%s", c->no_journal);
}

bool mxd_coord_journal_wants(const mxd_cluster *c, const mxd_request *r) {
    return c->journal && r->keep;
}

/* ----------------------------------------------------------------------------------- the past */

const mxd_kept *mxd_cluster_kept(mxd_cluster *c, int i) {
    pthread_mutex_lock(&c->lock);
    const mxd_kept_request *q = c->kept.first;
    while (q && i-- > 0) q = q->next;
    pthread_mutex_unlock(&c->lock);
    return q ? &q->k : NULL;
}

static int32_t *accepted_of(mxd_cluster *c, const mxd_kept_request *k) {
    int32_t *ids = MXD_NEW(c->al, (size_t)k->k.n_tokens + 1, int32_t);
    for (int i = 0; ids && i < k->k.n_tokens; i++) ids[i] = k->tokens[i].token;
    return ids;
}

static void restore_call(mxd_cluster *c, void *arg) {
    mxd_live_request *q = arg, **at = &c->restoring;
    while (*at) at = &(*at)->next;
    q->restore_by_ms = mxd_now_ms() + GIVE_UP_MS;
    *at = q;
}

static mxd_live_request *live_of(mxd_cluster *c, const mxd_kept_request *k) {
    mxd_live_request *q = mxd_coord_request_new(c->al, &k->r);
    if (!q) return NULL;
    q->accepted = accepted_of(c, k);
    q->submit.accepted = q->accepted;
    q->submit.n_accepted = k->k.n_tokens;
    q->submit.resumable = true;
    q->id = q->submit.request = k->k.id;
    q->restoring = true;
    if (q->accepted) return q;
    mxd_coord_request_free(c, q);
    return NULL;
}

mxd_rc mxd_cluster_restore(mxd_cluster *c, uint64_t id,
                           void (*token)(void *ctx, const mxd_sampled *s, bool stop),
                           void (*end)(void *ctx, const mxd_request_end *end), void *ctx,
                           mxd_err *err) {
    pthread_mutex_lock(&c->lock);
    mxd_kept_request *k = mxd_kept_find(&c->kept, id);
    mxd_live_request *q = k && !k->k.ended ? live_of(c, k) : NULL;
    bool known = k != NULL, ended = k && k->k.ended;
    if (k && (q || ended)) mxd_kept_drop(&c->kept, k);
    pthread_mutex_unlock(&c->lock);
    if (!known) return mxd_fail(err, MXD_E_NOTFOUND, "no request %llu", (unsigned long long)id);
    if (ended) return MXD_OK;
    if (!q) return mxd_fail(err, MXD_E_NOMEM, "no memory for the request");
    q->r.token = token;
    q->r.end = end;
    q->r.ctx = ctx;
    q->r.keep = NULL;
    if (mxd_coord_sync(c, restore_call, q)) return MXD_OK;
    mxd_coord_request_free(c, q);
    return mxd_fail(err, MXD_E_SHUTDOWN, "the server is shutting down");
}

static void give_up(mxd_cluster *c, mxd_live_request *q, const mxd_err *why) {
    const mxd_request_end end = {.how = MXD_END_ERROR, .rc = why->rc, .text = why->msg};
    mxd_log(MXD_LOG_WARN, "stream_not_restored", "request=%llu error=\"%s\"",
            (unsigned long long)q->id, why->msg);
    put_end(c, q->id, &end, q->submit.n_accepted);
    (void)!mxd_journal_write(c->journal, NULL);
    q->r.end(q->r.ctx, &end);
    mxd_coord_request_free(c, q);
}

/* Until somebody is there who can compute them. */
static bool try_again(mxd_cluster *c, mxd_live_request *q) {
    mxd_submit_answer answer = {.request = q};
    uint64_t id = q->id;
    q->next = c->requests;
    c->requests = q;
    c->answering = &answer;
    mxd_coord_give(c, &(mxd_coord_event){.kind = MXD_COORD_SUBMIT, .submit = &q->submit});
    c->answering = NULL;
    if (!answer.err.rc) {
        mxd_log(MXD_LOG_INFO, "stream_restored", "request=%llu", (unsigned long long)id);
        return true;
    }
    c->requests = q->next;
    bool wait = answer.err.rc == MXD_E_PEER || answer.err.rc == MXD_E_BUSY;
    if (wait && mxd_now_ms() < q->restore_by_ms) return false;
    q->next = NULL;
    give_up(c, q, &answer.err);
    return true;
}

static void restore_waiting(mxd_cluster *c) {
    mxd_live_request *list = c->restoring, **at = &c->restoring;
    c->restoring = NULL;
    while (list) {
        mxd_live_request *q = list;
        list = q->next;
        if (try_again(c, q)) continue;
        q->next = NULL;
        *at = q;
        at = &q->next;
    }
}

void mxd_coord_journal_tick(mxd_cluster *c, int64_t now_ms) {
    if (!c->journal) return;
    mxd_journal_tick(c->journal, now_ms);
    if (c->restoring) restore_waiting(c);
}

/* A cancelled one that waits to be restored ends here. */
bool mxd_coord_journal_cancel(mxd_cluster *c, uint64_t id) {
    mxd_live_request **at = &c->restoring;
    while (*at && (*at)->id != id) at = &(*at)->next;
    mxd_live_request *q = *at;
    if (!q) return false;
    *at = q->next;
    q->next = NULL;
    const mxd_request_end end = {
        .how = MXD_END_CANCELLED, .rc = MXD_E_CANCELED, .text = "cancelled"};
    put_end(c, id, &end, q->submit.n_accepted);
    (void)!mxd_journal_write(c->journal, NULL);
    q->r.end(q->r.ctx, &end);
    mxd_coord_request_free(c, q);
    return true;
}

void mxd_coord_journal_forget(mxd_cluster *c, uint64_t id) {
    if (c->journal) gone(c, id);
}

void mxd_cluster_forget(mxd_cluster *c, uint64_t id) {
    pthread_mutex_lock(&c->lock);
    mxd_kept_request *k = mxd_kept_find(&c->kept, id);
    if (k) mxd_kept_drop(&c->kept, k);
    pthread_mutex_unlock(&c->lock);
    mxd_coord_post_id(c, MXD_POSTED_FORGET, id);
}
