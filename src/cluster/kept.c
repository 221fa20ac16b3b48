#include "cluster/kept.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "cluster/core.h"

/* ------------------------------------------------------------------------------------- numbers */

static void put32(mxd_buf *b, uint32_t v) {
    unsigned char p[4];
    for (int i = 0; i < 4; i++) p[i] = (unsigned char)(v >> 8 * i);
    mxd_buf_put(b, p, sizeof p);
}

static void put64(mxd_buf *b, uint64_t v) {
    put32(b, (uint32_t)v);
    put32(b, (uint32_t)(v >> 32));
}

static void putf(mxd_buf *b, float f) {
    uint32_t v;
    memcpy(&v, &f, sizeof v);
    put32(b, v);
}

typedef struct reader {
    const unsigned char *p;
    size_t left;
    bool bad;
} reader;

static const unsigned char *take(reader *r, size_t n) {
    static const unsigned char none[MXD_KEPT_MODEL];
    if (n > r->left) {
        r->bad = true;
        r->left = 0;
        return n <= sizeof none ? none : NULL;
    }
    const unsigned char *p = r->p;
    r->p += n;
    r->left -= n;
    return p;
}

static uint32_t get32(reader *r) {
    const unsigned char *p = take(r, 4);
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(reader *r) {
    uint64_t low = get32(r);
    return low | (uint64_t)get32(r) << 32;
}

static float get_any(reader *r) {
    uint32_t v = get32(r);
    float f;
    memcpy(&f, &v, sizeof f);
    return f;
}

static float getf(reader *r) {
    float f = get_any(r);
    if (!isfinite(f)) r->bad = true;
    return f;
}

/* A count of things of so many bytes each that follow. */
static uint32_t count(reader *r, size_t size, uint32_t most) {
    uint32_t n = get32(r);
    if (n <= most && n <= r->left / size) return n;
    r->bad = true;
    return 0;
}

/* ------------------------------------------------------------------------------------- writing */

static void put_sampling(mxd_buf *b, const mxd_sampling *s) {
    putf(b, s->temperature);
    putf(b, s->top_p);
    putf(b, s->min_p);
    put32(b, (uint32_t)s->top_k);
    putf(b, s->presence);
    putf(b, s->frequency);
    putf(b, s->repetition);
    put64(b, s->seed);
    put32(b, s->choice);
    put32(b, s->logprobs);
    put32(b, s->n_top);
    put32(b, s->n_bias);
    for (int i = 0; i < s->n_bias; i++) {
        put32(b, (uint32_t)s->bias[i].token);
        putf(b, s->bias[i].bias);
    }
}

void mxd_kept_put_open(mxd_buf *b, const mxd_request *r,
                       const unsigned char model[MXD_KEPT_MODEL]) {
    mxd_buf_put(b, model, MXD_KEPT_MODEL);
    put32(b, (uint32_t)r->max_tokens);
    put32(b, (uint32_t)r->min_tokens);
    put64(b, (uint64_t)r->timeout_ms);
    put_sampling(b, &r->how);
    put32(b, (uint32_t)r->n_stop_ids);
    for (int i = 0; i < r->n_stop_ids; i++) put32(b, (uint32_t)r->stop_ids[i]);
    put32(b, (uint32_t)r->n_prompt);
    for (int i = 0; i < r->n_prompt; i++) put32(b, (uint32_t)r->prompt[i]);
    put32(b, (uint32_t)r->n_keep);
    mxd_buf_put(b, r->keep, r->n_keep);
}

void mxd_kept_put_token(mxd_buf *b, uint32_t index, const mxd_sampled *s, bool logprobs) {
    put32(b, index);
    put32(b, (uint32_t)s->token);
    if (!logprobs) return;
    putf(b, s->logprob);
    put32(b, s->n_top);
    for (int i = 0; i < s->n_top; i++) {
        put32(b, (uint32_t)s->top_id[i]);
        putf(b, s->top_logprob[i]);
    }
}

void mxd_kept_put_end(mxd_buf *b, const mxd_request_end *end, int n_tokens, int64_t wall_ms) {
    put32(b, (uint32_t)end->how);
    put32(b, (uint32_t)end->rc);
    put32(b, (uint32_t)n_tokens);
    put32(b, (uint32_t)end->n_cached);
    put64(b, (uint64_t)end->queue_ms);
    put64(b, (uint64_t)end->prefill_ms);
    put64(b, (uint64_t)end->decode_ms);
    put64(b, (uint64_t)wall_ms);
    mxd_buf_puts(b, end->text ? end->text : "");
}

/* ------------------------------------------------------------------------------------- reading */

mxd_kept_request *mxd_kept_find(const mxd_kept_list *l, uint64_t request) {
    mxd_kept_request *q = l->first;
    while (q && q->k.id != request) q = q->next;
    return q;
}

static void free_request(const mxd_alloc *al, mxd_kept_request *q) {
    mxd_free(al, q->prompt);
    mxd_free(al, q->stop_ids);
    mxd_free(al, q->bias);
    mxd_free(al, q->app);
    mxd_free(al, q->tokens);
    mxd_free(al, q);
}

void mxd_kept_drop(mxd_kept_list *l, mxd_kept_request *q) {
    mxd_kept_request **at = &l->first;
    while (*at != q) at = &(*at)->next;
    *at = q->next;
    free_request(l->al, q);
}

static int32_t *get_ids(reader *r, const mxd_alloc *al, int *n, uint32_t most) {
    uint32_t k = count(r, 4, most);
    int32_t *ids = MXD_NEW(al, k + 1, int32_t);
    for (uint32_t i = 0; ids && i < k; i++) ids[i] = (int32_t)get32(r);
    *n = (int)k;
    return ids;
}

static void get_sampling(reader *r, const mxd_alloc *al, mxd_kept_request *q) {
    mxd_sampling *s = &q->r.how;
    s->temperature = getf(r);
    s->top_p = getf(r);
    s->min_p = getf(r);
    s->top_k = (int32_t)get32(r);
    s->presence = getf(r);
    s->frequency = getf(r);
    s->repetition = getf(r);
    s->seed = get64(r);
    s->choice = get32(r);
    s->logprobs = get32(r) != 0;
    uint32_t n_top = get32(r);
    if (s->top_k < 0 || n_top > MXD_MAX_TOP_LOGPROBS) r->bad = true;
    s->n_top = (uint8_t)(r->bad ? 0 : n_top);
    s->n_bias = (uint16_t)count(r, 8, MXD_MAX_LOGIT_BIAS);
    q->bias = MXD_NEW(al, s->n_bias + 1u, mxd_logit_bias);
    for (int i = 0; q->bias && i < s->n_bias; i++) {
        q->bias[i].token = (int32_t)get32(r);
        q->bias[i].bias = get_any(r); /* -INFINITY bans */
        if (isnan(q->bias[i].bias)) r->bad = true;
    }
    s->bias = q->bias;
}

static void get_request(reader *r, const mxd_alloc *al, mxd_kept_request *q) {
    memcpy(q->model, take(r, MXD_KEPT_MODEL), MXD_KEPT_MODEL);
    q->r.max_tokens = (int)get32(r);
    q->r.min_tokens = (int)get32(r);
    q->r.timeout_ms = (int64_t)get64(r);
    get_sampling(r, al, q);
    q->stop_ids = get_ids(r, al, &q->r.n_stop_ids, MXD_CORE_STOP_IDS);
    q->prompt = get_ids(r, al, &q->r.n_prompt, MXD_MAX_CONTEXT);
    q->r.stop_ids = q->stop_ids;
    q->r.prompt = q->k.prompt = q->prompt;
    q->k.n_prompt = q->r.n_prompt;
    q->r.n_keep = q->k.n_keep = count(r, 1, MXD_JOURNAL_RECORD_BYTES);
    q->app = MXD_NEW(al, q->k.n_keep + 1, char);
    if (q->app && q->k.n_keep) memcpy(q->app, take(r, q->k.n_keep), q->k.n_keep);
    q->r.keep = q->k.keep = q->app;
    if (q->r.max_tokens < 1 || q->r.n_prompt < 1 || r->left) r->bad = true;
}

static mxd_rc on_open(mxd_kept_list *l, const mxd_record *rec, mxd_err *err) {
    reader r = {rec->bytes, rec->n, false};
    if (!rec->stream || mxd_kept_find(l, rec->stream)) return MXD_OK;
    mxd_kept_request *q = MXD_NEW(l->al, 1, mxd_kept_request);
    if (!q) return mxd_fail(err, MXD_E_NOMEM, "no memory for the journal");
    q->k.id = rec->stream;
    get_request(&r, l->al, q);
    bool whole = q->prompt && q->stop_ids && q->bias && q->app;
    if (!whole || r.bad) {
        free_request(l->al, q);
        if (!whole) return mxd_fail(err, MXD_E_NOMEM, "no memory for the journal");
        mxd_log(MXD_LOG_WARN, "stream_dropped", "request=%llu reason=\"unreadable\"",
                (unsigned long long)rec->stream);
        return MXD_OK;
    }
    mxd_kept_request **at = &l->first;
    while (*at) at = &(*at)->next;
    *at = q;
    return MXD_OK;
}

static bool is_stop(const mxd_kept_request *q, int32_t token) {
    if (q->k.n_tokens <= q->r.min_tokens) return false;
    for (int i = 0; i < q->r.n_stop_ids; i++)
        if (q->r.stop_ids[i] == token) return true;
    return false;
}

static mxd_rc on_token(mxd_kept_list *l, mxd_kept_request *q, const mxd_record *rec, mxd_err *err) {
    reader r = {rec->bytes, rec->n, false};
    mxd_sampled s = {0};
    uint32_t index = get32(&r);
    s.token = (int32_t)get32(&r);
    if (q->r.how.logprobs) {
        s.logprob = get_any(&r);
        s.n_top = (uint8_t)count(&r, 8, MXD_MAX_TOP_LOGPROBS);
        for (int i = 0; i < s.n_top; i++) {
            s.top_id[i] = (int32_t)get32(&r);
            s.top_logprob[i] = get_any(&r);
        }
    }
    bool next = index == (uint32_t)q->k.n_tokens && !q->k.ended && !q->k.stopped;
    if (r.bad || !next || q->k.n_tokens >= q->r.max_tokens || s.token < 0) return MXD_OK;
    if (q->k.n_tokens == q->cap_tokens) {
        int cap = q->cap_tokens ? 2 * q->cap_tokens : 64;
        mxd_sampled *p = mxd_renew(l->al, q->tokens, (size_t)cap, sizeof *p);
        if (!p) return mxd_fail(err, MXD_E_NOMEM, "no memory for the journal");
        q->tokens = p;
        q->k.tokens = p;
        q->cap_tokens = cap;
    }
    q->tokens[q->k.n_tokens++] = s;
    q->k.stopped = is_stop(q, s.token);
    return MXD_OK;
}

static void on_end(mxd_kept_request *q, const mxd_record *rec) {
    reader r = {rec->bytes, rec->n, false};
    uint32_t how = get32(&r), rc = get32(&r), n = get32(&r);
    mxd_request_end end = {.how = (mxd_end)how, .rc = (mxd_rc)rc, .n_cached = (int)get32(&r)};
    end.queue_ms = (int64_t)get64(&r);
    end.prefill_ms = (int64_t)get64(&r);
    end.decode_ms = (int64_t)get64(&r);
    int64_t wall_ms = (int64_t)get64(&r);
    if (r.bad || how > MXD_END_ERROR || rc >= MXD_RC_COUNT || n != (uint32_t)q->k.n_tokens) return;
    if (q->k.ended) return;
    size_t k = r.left < sizeof q->end_text - 1 ? r.left : sizeof q->end_text - 1;
    if (k) memcpy(q->end_text, r.p, k);
    end.text = q->end_text;
    q->k.end = end;
    q->k.end_wall_ms = wall_ms;
    q->k.ended = true;
}

mxd_rc mxd_kept_take(void *list, const mxd_record *rec, mxd_err *err) {
    mxd_kept_list *l = list;
    if (rec->kind == MXD_REC_OPEN) return on_open(l, rec, err);
    mxd_kept_request *q = mxd_kept_find(l, rec->stream);
    if (!q) return MXD_OK;
    if (rec->kind == MXD_REC_TOKEN) return on_token(l, q, rec, err);
    if (rec->kind == MXD_REC_END) on_end(q, rec);
    if (rec->kind == MXD_REC_GONE) mxd_kept_drop(l, q);
    return MXD_OK;
}
