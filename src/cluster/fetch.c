#include "cluster/fetch.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/inbox.h"
#include "model/model.h"

enum {
    DIAL_MS = 3000,
    WINDOW = 8,          /* requests that one source works on */
    MAX_ASKED = 64,      /* and all of them together: so many pieces may come at once */
    MAX_HELD = 64 << 20, /* bytes that came and wait for us; who sends more is hung up on */
    MAX_REFUSALS = 8,    /* in a row: then a source is left alone for a while */
    REFUSED_MS = 500,
    SILENCE_MS = 15000, /* then a source counts as gone */
    BACKOFF_MS = 500,   /* before it is dialled again, doubling */
    BACKOFF_MAX_MS = 5000,
    PATIENCE_MS = 60000,
    WAIT_MS = 100,         /* how often progress is told */
    SYNC_BYTES = 64 << 20, /* written before it is made durable and recorded */
    SYNC_MS = 2000,
    AHEAD = 2 * MXD_MAX_SUMS, /* pieces whose sums are known before they are asked for */
};

typedef enum piece_state { WANTED, ASKED, DONE } piece_state;

typedef struct piece { /* or a request for sums, or the list */
    uint8_t what, state;
    int8_t source; /* ASKED: of whom */
    uint32_t file, length;
    uint64_t offset, lacks; /* bit i: source i has it not */
} piece;

typedef enum source_state { AWAY, DIALING, THERE, BAD } source_state;

typedef struct source {
    mxd_source who;
    source_state state;
    mxd_link link;
    int asked;    /* requests without an answer */
    int refusals; /* in a row */
    int64_t rest_until_ms;
    size_t at; /* pieces before it are not for this source */
    int64_t heard_ms, dial_at_ms, backoff_ms;
    uint64_t bytes; /* that it gave */
} source;

typedef struct file_sums {
    uint8_t *sums, *known; /* [32 * pieces], [pieces] */
} file_sums;

typedef struct fetch {
    const mxd_alloc *al;
    const mxd_fetch_opts *o;
    mxd_inbox inbox;
    mxd_transport *net;
    source sources[MXD_MAX_NODES];
    int n_sources, n_asked;
    atomic_size_t held; /* bytes in the inbox */
    mxd_store *store;
    file_sums *sums; /* [files] */
    piece *pieces;   /* [n] of this round */
    size_t n, cap, n_done, first_open;
    size_t n_ahead; /* pieces that may be asked for and were not */
    uint64_t done, total;
    uint64_t unsynced;
    int64_t synced_ms, moved_ms;
    mxd_rc last_rc; /* what the last refusal said */
    char last_text[MXD_CORE_TEXT];
    mxd_arena scratch;
    mxd_buf head;
} fetch;

/* --------------------------------------------------------------------------------------- sources
 */

/* Whoever had passed it looks at it again. */
static void back_to_wanted(fetch *f, piece *p) {
    size_t i = (size_t)(p - f->pieces);
    p->state = WANTED;
    if (p->what == MXD_WANT_DATA) f->n_ahead++;
    for (int k = 0; k < f->n_sources; k++)
        if (f->sources[k].at > i) f->sources[k].at = i;
}

static void take_back(fetch *f, int s) {
    for (size_t i = f->first_open; i < f->n; i++)
        if (f->pieces[i].state == ASKED && f->pieces[i].source == s)
            back_to_wanted(f, &f->pieces[i]);
}

/* It went away, or was sent away: what it owed is for the others. */
static void lose(fetch *f, int i, source_state state, const char *why) {
    source *s = &f->sources[i];
    if (s->link && state == BAD) f->net->ops->hangup(f->net, s->link);
    if (s->state == THERE || state == BAD)
        mxd_log(state == BAD ? MXD_LOG_ERROR : MXD_LOG_WARN, "weights_source_lost",
                "node=%s reason=\"%s\"", s->who.node, why);
    s->state = state;
    s->link = 0;
    f->n_asked -= s->asked;
    s->asked = 0;
    s->backoff_ms = s->backoff_ms ? s->backoff_ms * 2 : BACKOFF_MS;
    if (s->backoff_ms > BACKOFF_MAX_MS) s->backoff_ms = BACKOFF_MAX_MS;
    s->dial_at_ms = mxd_now_ms() + s->backoff_ms;
    take_back(f, i);
}

static void dial(fetch *f, int i) {
    source *s = &f->sources[i];
    mxd_err err = {0};
    const char *peer = f->o->hub ? NULL : s->who.node;
    s->state = DIALING;
    s->heard_ms = mxd_now_ms();
    if (f->net->ops->dial(f->net, s->who.address, peer, MXD_LANE_BULK, DIAL_MS, &s->link, &err))
        lose(f, i, AWAY, err.msg);
}

static void tend_sources(fetch *f) {
    int64_t now = mxd_now_ms(), silence = f->o->silence_ms ? f->o->silence_ms : SILENCE_MS;
    for (int i = 0; i < f->n_sources; i++) {
        source *s = &f->sources[i];
        if (s->state == AWAY && now >= s->dial_at_ms) dial(f, i);
        if (s->state != THERE || !s->asked || now - s->heard_ms < silence) continue;
        f->net->ops->hangup(f->net, s->link);
        lose(f, i, AWAY, "it does not answer");
    }
}

static int source_of(const fetch *f, mxd_link link) {
    for (int i = 0; i < f->n_sources; i++)
        if (f->sources[i].link == link && link) return i;
    return -1;
}

/* ---------------------------------------------------------------------------------------- asking
 */

static bool sum_known(const fetch *f, const piece *p) {
    return f->sums[p->file].known[p->offset / MXD_WEIGHTS_PIECE];
}

/* Lists and sums are the coordinator's word. */
static bool is_for(const fetch *f, int i, const piece *p) {
    if (p->state != WANTED || p->lacks >> i & 1) return false;
    return p->what == MXD_WANT_DATA ? sum_known(f, p) : i == 0;
}

static piece *next_of(fetch *f, int i, bool data) {
    source *s = &f->sources[i];
    if (s->at < f->first_open) s->at = f->first_open;
    bool first = true;
    for (size_t k = s->at; k < f->n; k++) {
        piece *p = &f->pieces[k];
        bool here = is_for(f, i, p);
        if (here && (p->what == MXD_WANT_DATA) == data) return p;
        /* what may become ours later keeps the place */
        bool never = p->state != WANTED || p->lacks >> i & 1 || (p->what != MXD_WANT_DATA && i);
        if (first && never)
            s->at = k + 1;
        else
            first = false;
        if (!never && !here) break; /* its sum is not known, and so are those behind it */
    }
    return NULL;
}

static bool ask(fetch *f, int i, piece *p) {
    mxd_err err = {0};
    mxd_wire_want w = {
        .what = (mxd_want_what)p->what, .file = p->file, .offset = p->offset, .length = p->length};
    memcpy(w.id, f->o->id, sizeof w.id);
    mxd_buf_clear(&f->head);
    mxd_wire_put_want(&f->head, &w);
    mxd_rc rc = mxd_buf_rc(&f->head, "request for weights", &err);
    source *s = &f->sources[i];
    if (!rc)
        rc = f->net->ops->send(f->net, s->link, MXD_WIRE_WANT, mxd_buf_str(&f->head), f->head.len,
                               NULL, &err);
    if (rc) {
        f->net->ops->hangup(f->net, s->link);
        lose(f, i, AWAY, err.msg);
        return false;
    }
    if (!s->asked++) s->heard_ms = mxd_now_ms();
    f->n_asked++;
    p->state = ASKED;
    p->source = (int8_t)i;
    if (p->what == MXD_WANT_DATA) f->n_ahead--;
    return true;
}

static bool may_ask(const fetch *f, int i, int64_t now) {
    const source *s = &f->sources[i];
    return s->state == THERE && s->asked < WINDOW && f->n_asked < MAX_ASKED &&
           now >= s->rest_until_ms;
}

/* Of the coordinator sums come first, while few pieces can be asked for without more of them. */
static void ask_all(fetch *f) {
    int64_t now = mxd_now_ms();
    for (int i = 0; i < f->n_sources; i++)
        while (may_ask(f, i, now)) {
            piece *p = NULL;
            if (i == 0 && f->n_ahead < AHEAD) p = next_of(f, i, false);
            if (!p) p = next_of(f, i, true);
            if (!p && i == 0) p = next_of(f, i, false);
            if (!p || !ask(f, i, p)) break;
        }
}

/* --------------------------------------------------------------------------------------- answers
 */

static piece *asked_piece(fetch *f, int i, const mxd_wire_give *g) {
    for (size_t k = f->first_open; k < f->n; k++) {
        piece *p = &f->pieces[k];
        if (p->state == ASKED && p->source == i && p->what == g->what && p->file == g->file &&
            p->offset == g->offset && p->length == g->length)
            return p;
    }
    return NULL;
}

static void finish(fetch *f, piece *p) {
    p->state = DONE;
    f->n_done++;
    f->moved_ms = mxd_now_ms();
    while (f->first_open < f->n && f->pieces[f->first_open].state == DONE) f->first_open++;
}

static mxd_rc open_store(fetch *f, const mxd_wire_give *g, mxd_err *err) {
    mxd_weights_list l = {.files = (mxd_weights_file *)(uintptr_t)g->files, .n = g->n_files};
    return mxd_store_open(&f->store, f->al, f->o->root, f->o->id, &l, err);
}

static void take_sums(fetch *f, const piece *p, const mxd_wire_give *g) {
    file_sums *s = &f->sums[p->file];
    uint64_t first = p->offset / MXD_WEIGHTS_PIECE;
    memcpy(s->sums + 32 * first, g->sums, 32 * (size_t)p->length);
    memset(s->known + first, 1, p->length);
    for (size_t k = f->first_open; k < f->n; k++) {
        const piece *d = &f->pieces[k];
        if (d->what == MXD_WANT_DATA && d->file == p->file && d->state == WANTED &&
            d->offset >= p->offset && d->offset / MXD_WEIGHTS_PIECE < first + p->length)
            f->n_ahead++;
    }
}

static mxd_rc sync_now(fetch *f, mxd_err *err) {
    f->unsynced = 0;
    f->synced_ms = mxd_now_ms();
    return f->store ? mxd_store_sync(f->store, err) : MXD_OK;
}

static mxd_rc take_data(fetch *f, int i, piece *p, const mxd_blob *data, bool *right,
                        mxd_err *err) {
    uint8_t sum[32];
    uint64_t k = p->offset / MXD_WEIGHTS_PIECE;
    *right = data && data->len == p->length && mxd_weights_sum(data->bytes, data->len, sum) &&
             memcmp(sum, f->sums[p->file].sums + 32 * k, sizeof sum) == 0;
    if (!*right) return MXD_OK;
    MXD_TRY(mxd_store_put(f->store, p->file, k, data->bytes, data->len, err));
    f->sources[i].bytes += data->len;
    f->sources[i].refusals = 0;
    f->done += data->len;
    f->unsynced += data->len;
    if (f->unsynced < SYNC_BYTES && mxd_now_ms() - f->synced_ms < SYNC_MS) return MXD_OK;
    return sync_now(f, err);
}

static void refused(fetch *f, int i, piece *p, const mxd_wire_give *g) {
    f->last_rc = g->rc;
    snprintf(f->last_text, sizeof f->last_text, "%s", g->text);
    p->lacks |= (uint64_t)1 << i;
    back_to_wanted(f, p);
    source *s = &f->sources[i];
    if (++s->refusals >= MAX_REFUSALS) s->rest_until_ms = mxd_now_ms() + REFUSED_MS;
    mxd_log(MXD_LOG_DEBUG, "weights_refused", "node=%s reason=\"%s\"", f->sources[i].who.node,
            g->text);
}

/* A failure here is ours; what a source does wrong only makes it BAD. */
static mxd_rc on_give(fetch *f, int i, const mxd_net_event *ev, mxd_err *err) {
    source *s = &f->sources[i];
    mxd_wire_give g;
    mxd_err bad = {0};
    mxd_arena_reset(&f->scratch, 0);
    if (ev->message != MXD_WIRE_GIVE ||
        mxd_wire_get_give(&g, &f->scratch, ev->head->bytes, ev->head->len, &bad) != MXD_OK) {
        lose(f, i, BAD, bad.msg[0] ? bad.msg : "it sends something else");
        return MXD_OK;
    }
    piece *p = asked_piece(f, i, &g);
    if (!p) {
        lose(f, i, BAD, "it gives what nobody asked for");
        return MXD_OK;
    }
    s->heard_ms = mxd_now_ms();
    s->asked--;
    f->n_asked--;
    bool right = true;
    mxd_rc rc = MXD_OK;
    if (g.rc) {
        refused(f, i, p, &g);
        return MXD_OK;
    }
    if (p->what == MXD_WANT_LIST) rc = open_store(f, &g, err);
    if (p->what == MXD_WANT_SUMS) take_sums(f, p, &g);
    if (p->what == MXD_WANT_DATA) rc = take_data(f, i, p, ev->payload, &right, err);
    if (!right) lose(f, i, BAD, "what it gave has not the coordinator's sum");
    if (right && !rc) finish(f, p);
    return rc;
}

static mxd_rc on_net(fetch *f, const mxd_net_event *ev, mxd_err *err) {
    int i = source_of(f, ev->link);
    if (i < 0) return MXD_OK; /* of a link that is given up */
    source *s = &f->sources[i];
    if (ev->kind == MXD_NET_MESSAGE) return on_give(f, i, ev, err);
    if (ev->kind == MXD_NET_DOWN) {
        lose(f, i, AWAY, mxd_rc_name(ev->rc));
    } else {
        s->state = THERE;
        s->backoff_ms = 0;
        s->at = 0;
        s->heard_ms = mxd_now_ms();
    }
    return MXD_OK;
}

/* ----------------------------------------------------------------------------------------- rounds
 */

static mxd_rc add_piece(fetch *f, piece p, mxd_err *err) {
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 256;
        piece *more = mxd_renew(f->al, f->pieces, cap, sizeof *more);
        if (!more) return mxd_fail(err, MXD_E_NOMEM, "list of missing weights");
        f->pieces = more;
        f->cap = cap;
    }
    f->pieces[f->n++] = p;
    return MXD_OK;
}

/* Nobody is left who could give p. */
static bool hopeless(const fetch *f, const piece *p) {
    for (int i = 0; i < f->n_sources; i++)
        if (f->sources[i].state != BAD && !(p->lacks >> i & 1) &&
            (p->what == MXD_WANT_DATA || i == 0))
            return false;
    return true;
}

static mxd_rc check_hope(const fetch *f, mxd_err *err) {
    const piece *p = &f->pieces[f->first_open];
    int64_t patience = f->o->patience_ms ? f->o->patience_ms : PATIENCE_MS;
    bool none = hopeless(f, p);
    if (!none && mxd_now_ms() - f->moved_ms < patience) return MXD_OK;
    mxd_rc rc = none ? MXD_E_PEER : MXD_E_TIMEOUT;
    return mxd_fail(err, rc,
                    "this node has not the weights of its layers, and %s: %s; put the model's "
                    "files here and name their folder with --models-dir",
                    none ? "no node of the cluster gives them" : "they do not come",
                    f->last_text[0]                ? f->last_text
                    : f->sources[0].state == BAD   ? "what came was wrong"
                    : f->sources[0].state == THERE ? "no answer in time"
                                                   : "the coordinator cannot be reached");
}

static size_t size_of(const mxd_net_event *ev) {
    return (ev->head ? ev->head->len : 0) + (ev->payload ? ev->payload->len : 0);
}

/* The transport's thread: whoever floods us fills no memory. */
static void sink(void *ctx, const mxd_net_event *ev) {
    fetch *f = ctx;
    if (ev->kind == MXD_NET_MESSAGE && atomic_load(&f->held) + size_of(ev) > MAX_HELD) {
        f->inbox.transport->ops->hangup(f->inbox.transport, ev->link);
        return;
    }
    atomic_fetch_add(&f->held, size_of(ev));
    mxd_inbox_sink(&f->inbox, ev);
}

/* Until every piece of the round is there. */
static mxd_rc run_round(fetch *f, mxd_err *err) {
    f->n_done = f->first_open = 0;
    f->moved_ms = mxd_now_ms();
    for (int i = 0; i < f->n_sources; i++) f->sources[i].at = 0;
    f->n_ahead = 0;
    for (size_t i = 0; i < f->n; i++)
        f->n_ahead += f->pieces[i].what == MXD_WANT_DATA && sum_known(f, &f->pieces[i]);
    mxd_rc rc = MXD_OK;
    while (f->n_done < f->n && !rc) {
        tend_sources(f);
        ask_all(f);
        mxd_inbox_item *item = mxd_inbox_take(&f->inbox, WAIT_MS);
        if (item) {
            atomic_fetch_sub(&f->held, size_of(&item->net));
            rc = on_net(f, &item->net, err);
            mxd_inbox_free(&f->inbox, item);
        }
        if (!rc && !f->o->progress(f->o->progress_ctx, f->done, f->total))
            rc = mxd_fail(err, MXD_E_CANCELED, "fetching weights was stopped");
        if (!rc && f->n_done < f->n) rc = check_hope(f, err);
    }
    mxd_err late = {0};
    mxd_rc end = sync_now(f, rc ? &late : err); /* what came is kept whatever happened */
    f->n = 0;
    return rc ? rc : end;
}

/* --------------------------------------------------------------------------------- what is missing
 */

static mxd_rc take_sums_tables(fetch *f, mxd_err *err) {
    const mxd_weights_list *l = mxd_store_list(f->store);
    f->sums = MXD_NEW(f->al, (size_t)l->n, file_sums);
    if (!f->sums) return mxd_fail(err, MXD_E_NOMEM, "sums of files");
    for (int i = 0; i < l->n; i++) {
        size_t pieces = (size_t)mxd_weights_pieces(l->files[i].bytes);
        f->sums[i].sums = mxd_new(f->al, pieces + 1, 32);
        f->sums[i].known = mxd_new(f->al, pieces + 1, 1);
        if (!f->sums[i].sums || !f->sums[i].known)
            return mxd_fail(err, MXD_E_NOMEM, "sums of files");
    }
    return MXD_OK;
}

/* The pieces `wanted` [pieces] of a file that are not here, each batch behind its sums. */
static mxd_rc add_missing(fetch *f, uint32_t file, const uint8_t *wanted, mxd_err *err) {
    const mxd_weights_file *w = &mxd_store_list(f->store)->files[file];
    uint64_t pieces = mxd_weights_pieces(w->bytes), summed = 0;
    for (uint64_t k = 0; k < pieces; k++) {
        if (!wanted[k] || mxd_store_has(f->store, file, k)) continue;
        piece p = {.what = MXD_WANT_SUMS, .file = file, .offset = k * MXD_WEIGHTS_PIECE};
        if (k >= summed && !f->sums[file].known[k]) {
            summed = pieces - k < MXD_MAX_SUMS ? pieces : k + MXD_MAX_SUMS;
            p.length = (uint32_t)(summed - k);
            MXD_TRY(add_piece(f, p, err));
        }
        p.what = MXD_WANT_DATA;
        p.length = mxd_store_piece_bytes(f->store, file, k);
        f->total += p.length;
        MXD_TRY(add_piece(f, p, err));
    }
    return MXD_OK;
}

static void reserve_all(fetch *f) {
    for (size_t i = 0; i < f->n; i++)
        if (f->pieces[i].what == MXD_WANT_DATA)
            mxd_store_reserve(f->store, f->pieces[i].file, f->pieces[i].offset / MXD_WEIGHTS_PIECE);
}

/* Fetches what is missing of wanted [files][pieces]. */
static mxd_rc fetch_wanted(fetch *f, uint8_t *const *wanted, mxd_err *err) {
    int n = mxd_store_list(f->store)->n;
    uint64_t before = f->total;
    for (int i = 0; i < n; i++) MXD_TRY(add_missing(f, (uint32_t)i, wanted[i], err));
    if (!f->n) return MXD_OK;
    MXD_TRY(mxd_store_make_room(f->store, f->total - before, err));
    reserve_all(f);
    return run_round(f, err);
}

typedef struct wants {
    fetch *f;
    uint8_t **of; /* [files][pieces] */
    const mxd_st *st;
} wants;

static mxd_rc want_range(void *ctx, const mxd_st_tensor *t, uint64_t from, uint64_t n,
                         mxd_err *err) {
    wants *w = ctx;
    (void)err;
    if (!n) return MXD_OK;
    uint64_t first = (t->offset + from) / MXD_WEIGHTS_PIECE,
             last = (t->offset + from + n - 1) / MXD_WEIGHTS_PIECE;
    memset(w->of[t->file + 1] + first, 1, (size_t)(last - first + 1));
    return MXD_OK;
}

static mxd_rc want_heads(wants *w, mxd_err *err) {
    const mxd_weights_list *l = mxd_store_list(w->f->store);
    w->of = MXD_NEW(w->f->al, (size_t)l->n, uint8_t *);
    if (!w->of) return mxd_fail(err, MXD_E_NOMEM, "list of missing weights");
    for (int i = 0; i < l->n; i++) {
        w->of[i] = mxd_new(w->f->al, (size_t)mxd_weights_pieces(l->files[i].bytes) + 1, 1);
        if (!w->of[i]) return mxd_fail(err, MXD_E_NOMEM, "list of missing weights");
        memset(w->of[i], 1, (size_t)mxd_weights_pieces(l->files[i].head));
    }
    return MXD_OK;
}

/* With the headers here, the model itself says where its layers are. */
static mxd_rc want_layers(wants *w, mxd_err *err) {
    const mxd_fetch_opts *o = w->f->o;
    mxd_model *m;
    MXD_TRY(mxd_model_open(&m, w->f->al, mxd_store_folder(w->f->store), err));
    const mxd_st *st = mxd_model_tensors(m);
    int n = mxd_store_list(w->f->store)->n, n_layers = mxd_model_hparams(m)->n_layers;
    mxd_rc rc = MXD_OK;
    if (memcmp(mxd_st_hash(st), o->tensors_hash, 32) != 0 || mxd_st_files(st) + 1 != (size_t)n)
        rc = mxd_fail(err, MXD_E_FORMAT, "the coordinator's files are not those that it named");
    else if (o->layer0 < 0 || o->layer0 >= o->layer1 || o->layer1 > n_layers)
        rc = mxd_fail(err, MXD_E_INVAL, "layers %d to %d of %d", o->layer0, o->layer1, n_layers);
    mxd_shares shares;
    bool cut = o->n_ranks > 1;
    if (!rc && cut) rc = mxd_model_share(m, o->n_ranks, o->share, &shares, err);
    if (!rc)
        rc = mxd_model_ranges(m, o->layer0, o->layer1, cut ? &shares : NULL, o->rank, want_range, w,
                              err);
    mxd_model_close(m);
    return rc;
}

static mxd_rc fetch_all(fetch *f, wants *w, mxd_err *err) {
    if (!f->store) {
        MXD_TRY(add_piece(f, (piece){.what = MXD_WANT_LIST}, err));
        MXD_TRY(run_round(f, err));
    }
    MXD_TRY(take_sums_tables(f, err));
    MXD_TRY(want_heads(w, err));
    MXD_TRY(fetch_wanted(f, w->of, err));
    MXD_TRY(want_layers(w, err));
    return fetch_wanted(f, w->of, err);
}

/* ------------------------------------------------------------------------------------------- life
 */

static mxd_rc open_net(fetch *f, mxd_err *err) {
    const mxd_fetch_opts *o = f->o;
    mxd_transport_opts t = {.al = f->al, .sink = sink, .sink_ctx = f};
    mxd_buf_init(&f->head, f->al, MXD_MAX_HELLO_BYTES);
    MXD_TRY(mxd_inbox_init(&f->inbox, f->al, err));
    MXD_TRY(mxd_arena_init(&f->scratch, f->al, MXD_WIRE_SCRATCH, err));
    if (o->hub) {
        MXD_TRY(mxd_loopback_open(&f->net, o->hub, &t, o->node, err));
    } else {
        t.identity = *o->identity;
        MXD_TRY(mxd_grpc_open(&f->net, &t, err));
    }
    f->inbox.transport = f->net;
    f->n_sources = o->n_sources < MXD_MAX_NODES ? o->n_sources : MXD_MAX_NODES;
    for (int i = 0; i < f->n_sources; i++) f->sources[i].who = o->sources[i];
    return MXD_OK;
}

static void close_all(fetch *f, wants *w) {
    int n = f->store ? mxd_store_list(f->store)->n : 0;
    if (f->net) f->net->ops->close(f->net);
    mxd_inbox_deinit(&f->inbox);
    for (int i = 0; i < n && w->of; i++) mxd_free(f->al, w->of[i]);
    mxd_free(f->al, w->of);
    for (int i = 0; i < n && f->sums; i++) {
        mxd_free(f->al, f->sums[i].sums);
        mxd_free(f->al, f->sums[i].known);
    }
    mxd_free(f->al, f->sums);
    mxd_free(f->al, f->pieces);
    mxd_buf_deinit(&f->head);
    mxd_arena_deinit(&f->scratch);
}

mxd_rc mxd_fetch(mxd_store **store, const mxd_alloc *al, const mxd_fetch_opts *opts,
                 uint64_t *bytes, mxd_err *err) {
    fetch *f = MXD_NEW(al, 1, fetch);
    if (!f) return mxd_fail(err, MXD_E_NOMEM, "fetching weights");
    *f = (fetch){.al = al, .o = opts, .store = *store};
    wants w = {.f = f};
    mxd_rc rc = open_net(f, err);
    if (!rc) rc = fetch_all(f, &w, err);
    close_all(f, &w);
    for (int i = 0; i < f->n_sources; i++)
        if (f->sources[i].bytes)
            mxd_log(MXD_LOG_INFO, "weights_fetched", "from=%s bytes=%llu", f->sources[i].who.node,
                    (unsigned long long)f->sources[i].bytes);
    *store = f->store;
    *bytes = f->done;
    mxd_free(al, f);
    return rc;
}
