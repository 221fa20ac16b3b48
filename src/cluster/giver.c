#include "cluster/giver.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "base/file.h"
#include "base/log.h"
#include "base/proc.h"
#include "cluster/wire_weights.h"

enum {
    FULL_WAIT_MS = 5,   /* how often to look whether the network has taken an answer */
    SENT_WAIT_MS = 500, /* while busy: how long to wait for that */
    REST = 3,           /* while busy: rests so many times as long as sending took */
};

typedef struct taker { /* a link */
    mxd_link link;     /* 0: free */
    char peer[MXD_MAX_NODE_NAME];
    mxd_wire_want wants[MXD_GIVER_WANTS]; /* a ring */
    int first, n;
    mxd_blob *out[MXD_GIVER_WINDOW]; /* sent; the network may still read them */
} taker;

typedef struct file_sums { /* of one file, as far as they were asked for */
    uint8_t *sums;         /* [32 * pieces]; NULL: none yet */
    uint8_t *known;        /* [pieces] */
} file_sums;

typedef struct offer {
    bool there;
    uint8_t id[32];
    char folder[MXD_PATH_MAX];
    mxd_store *store; /* NULL: all is in the folder */
    mxd_weights_list list;
    file_sums *sums; /* [list.n] */
} offer;

struct mxd_giver {
    const mxd_alloc *al;
    mxd_inbox *inbox;
    mxd_transport *net;
    pthread_t thread;
    bool started;
    atomic_bool busy;

    pthread_mutex_t lock; /* for what follows */
    pthread_cond_t changed;
    bool stop;
    taker takers[MXD_GIVER_LINKS];
    int turn;          /* who is looked at first */
    mxd_arena scratch; /* transport's thread */

    pthread_mutex_t offer_lock; /* held while an answer is made */
    offer what;
    mxd_buf head; /* the giver's thread */
};

/* --------------------------------------------------------------------------- transport's thread */

static taker *taker_of(mxd_giver *g, mxd_link link) {
    for (int i = 0; i < MXD_GIVER_LINKS; i++)
        if (g->takers[i].link == link) return &g->takers[i];
    return NULL;
}

static void forget(taker *t) {
    for (int i = 0; i < MXD_GIVER_WINDOW; i++) mxd_blob_release(t->out[i]);
    *t = (taker){0};
}

static bool take_in(mxd_giver *g, const mxd_net_event *ev) {
    taker *t = taker_of(g, 0);
    if (!t || g->stop) return false;
    t->link = ev->link;
    snprintf(t->peer, sizeof t->peer, "%s", ev->peer);
    return true;
}

static bool take_want(mxd_giver *g, const mxd_net_event *ev) {
    taker *t = taker_of(g, ev->link);
    if (!t || t->n == MXD_GIVER_WANTS || ev->message != MXD_WIRE_WANT || ev->payload) return false;
    mxd_err err = {0};
    mxd_wire_want *w = &t->wants[(t->first + t->n) % MXD_GIVER_WANTS];
    mxd_arena_reset(&g->scratch, 0);
    if (mxd_wire_get_want(w, &g->scratch, ev->head->bytes, ev->head->len, &err) != MXD_OK) {
        mxd_log(MXD_LOG_ERROR, "message_bad", "peer=%s error=\"%s\"", ev->peer, err.msg);
        return false;
    }
    t->n++;
    pthread_cond_signal(&g->changed);
    return true;
}

void mxd_giver_sink(void *giver, const mxd_net_event *ev) {
    mxd_giver *g = giver;
    if (ev->lane != MXD_LANE_BULK || !ev->accepted) {
        mxd_inbox_sink(g->inbox, ev);
        return;
    }
    bool fine = true;
    pthread_mutex_lock(&g->lock);
    if (ev->kind == MXD_NET_UP) fine = take_in(g, ev);
    if (ev->kind == MXD_NET_MESSAGE) fine = take_want(g, ev);
    taker *t = ev->kind == MXD_NET_DOWN ? taker_of(g, ev->link) : NULL;
    if (t) forget(t);
    pthread_mutex_unlock(&g->lock);
    if (!fine) g->inbox->transport->ops->hangup(g->inbox->transport, ev->link);
}

/* -------------------------------------------------------------------------------------- reading */

static mxd_rc read_piece(const offer *o, uint32_t file, uint64_t offset, void *to, size_t n,
                         mxd_err *err) {
    const mxd_weights_file *f = &o->list.files[file];
    char path[MXD_PATH_MAX], *at = to;
    MXD_TRY(mxd_path_join(path, o->store ? mxd_store_folder(o->store) : o->folder, f->name, err));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", f->name);
    while (n) {
        ssize_t got = pread(fd, at, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        at += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    close(fd);
    return n ? mxd_fail(err, MXD_E_IO, "'%s' has become shorter", f->name) : MXD_OK;
}

static uint32_t piece_bytes(const offer *o, uint32_t file, uint64_t piece) {
    uint64_t left = o->list.files[file].bytes - piece * MXD_WEIGHTS_PIECE;
    return left < MXD_WEIGHTS_PIECE ? (uint32_t)left : MXD_WEIGHTS_PIECE;
}

/* The pieces [first, first + n) of the file exist, and are here. */
static mxd_rc check_here(const offer *o, uint32_t file, uint64_t first, uint32_t n, mxd_err *err) {
    if (file >= (uint32_t)o->list.n)
        return mxd_fail(err, MXD_E_INVAL, "no file %u: there are %d", file, o->list.n);
    uint64_t pieces = mxd_weights_pieces(o->list.files[file].bytes);
    if (first >= pieces || n > pieces - first)
        return mxd_fail(err, MXD_E_INVAL, "'%s' ends before that", o->list.files[file].name);
    for (uint64_t i = first; o->store && i < first + n; i++)
        if (!mxd_store_has(o->store, file, i))
            return mxd_fail(err, MXD_E_NOTFOUND, "that part is not on this node");
    return MXD_OK;
}

/* ----------------------------------------------------------------------------------------- sums */

static mxd_rc make_room_for_sums(const mxd_giver *g, file_sums *s, uint64_t pieces, mxd_err *err) {
    if (s->sums) return MXD_OK;
    s->known = mxd_new(g->al, pieces, 1);
    s->sums = s->known ? mxd_new(g->al, pieces, 32) : NULL;
    if (s->sums) return MXD_OK;
    mxd_free(g->al, s->known);
    s->known = NULL;
    return mxd_fail(err, MXD_E_NOMEM, "sums of a file");
}

static mxd_rc sum_piece(const mxd_giver *g, uint32_t file, uint64_t piece, void *room,
                        mxd_err *err) {
    file_sums *s = &g->what.sums[file];
    if (s->known[piece]) return MXD_OK;
    uint32_t n = piece_bytes(&g->what, file, piece);
    MXD_TRY(read_piece(&g->what, file, piece * MXD_WEIGHTS_PIECE, room, n, err));
    if (!mxd_weights_sum(room, n, s->sums + 32 * piece))
        return mxd_fail(err, MXD_E_INTERNAL, "SHA-256 failed");
    s->known[piece] = 1;
    return MXD_OK;
}

static mxd_rc give_sums(mxd_giver *g, mxd_wire_give *a, mxd_err *err) {
    offer *o = &g->what;
    uint64_t first = a->offset / MXD_WEIGHTS_PIECE;
    MXD_TRY(check_here(o, a->file, first, a->length, err));
    file_sums *s = &o->sums[a->file];
    MXD_TRY(make_room_for_sums(g, s, mxd_weights_pieces(o->list.files[a->file].bytes), err));
    void *room = mxd_new(g->al, MXD_WEIGHTS_PIECE, 1);
    if (!room) return mxd_fail(err, MXD_E_NOMEM, "a piece of weights");
    mxd_rc rc = MXD_OK;
    for (uint32_t i = 0; i < a->length && !rc; i++)
        rc = sum_piece(g, a->file, first + i, room, err);
    mxd_free(g->al, room);
    a->sums = s->sums + 32 * first;
    return rc;
}

static mxd_rc give_data(mxd_giver *g, mxd_wire_give *a, mxd_blob **data, mxd_err *err) {
    offer *o = &g->what;
    uint64_t piece = a->offset / MXD_WEIGHTS_PIECE;
    MXD_TRY(check_here(o, a->file, piece, 1, err));
    if (a->length > piece_bytes(o, a->file, piece))
        return mxd_fail(err, MXD_E_INVAL, "'%s' ends before that", o->list.files[a->file].name);
    *data = mxd_blob_raw(g->al, a->length);
    if (!*data) return mxd_fail(err, MXD_E_NOMEM, "a piece of weights");
    return read_piece(o, a->file, a->offset, (*data)->bytes, a->length, err);
}

/* -------------------------------------------------------------------------------------- answers */

static mxd_rc give(mxd_giver *g, const mxd_wire_want *w, mxd_wire_give *a, mxd_blob **data,
                   mxd_err *err) {
    if (!g->what.there) return mxd_fail(err, MXD_E_NOTFOUND, "this node has no weights to give");
    if (memcmp(w->id, g->what.id, sizeof w->id) != 0)
        return mxd_fail(err, MXD_E_STALE, "this node has another model");
    switch (w->what) {
    case MXD_WANT_LIST:
        a->files = g->what.list.files;
        a->n_files = g->what.list.n;
        return MXD_OK;
    case MXD_WANT_SUMS:
        return give_sums(g, a, err);
    case MXD_WANT_DATA:
        return give_data(g, a, data, err);
    }
    return mxd_fail(err, MXD_E_INVAL, "weights of kind %d", (int)w->what);
}

/* The answer's head in g->head, and its payload with a reference for us. */
static mxd_blob *answer(mxd_giver *g, const mxd_wire_want *w) {
    mxd_err err = {0};
    mxd_blob *data = NULL;
    mxd_wire_give a = {.what = w->what, .file = w->file, .offset = w->offset, .length = w->length};
    pthread_mutex_lock(&g->offer_lock);
    mxd_rc rc = give(g, w, &a, &data, &err);
    if (rc) {
        a = (mxd_wire_give){
            .what = w->what, .file = w->file, .offset = w->offset, .length = w->length, .rc = rc};
        snprintf(a.text, sizeof a.text, "%.200s", err.msg);
        mxd_blob_release(data);
        data = NULL;
    }
    mxd_buf_clear(&g->head);
    mxd_wire_put_give(&g->head, &a);
    pthread_mutex_unlock(&g->offer_lock);
    return data;
}

/* With the lock: until the time, or until we end. */
static void sleep_until(mxd_giver *g, int64_t until_ns) {
    for (int64_t left; !g->stop && (left = until_ns - mxd_now_ns()) > 0;)
        mxd_cond_wait(&g->changed, &g->lock, left);
}

/* While steps are computed most of the network is theirs. */
static void rest(mxd_giver *g, mxd_blob *data, int64_t since_ns) {
    if (!data || !atomic_load(&g->busy)) return;
    int64_t until = since_ns + (int64_t)SENT_WAIT_MS * 1000000;
    pthread_mutex_lock(&g->lock);
    while (atomic_load(&data->refs) > 1 && mxd_now_ns() < until && !g->stop)
        mxd_cond_wait(&g->changed, &g->lock, 1000000);
    int64_t now = mxd_now_ns();
    sleep_until(g, now + (now - since_ns) * REST);
    pthread_mutex_unlock(&g->lock);
}

/* Without the lock. Returns what is to be kept until it is sent. */
static mxd_blob *serve(mxd_giver *g, mxd_link link, const mxd_wire_want *w) {
    mxd_err err = {0};
    int64_t since = mxd_now_ns();
    mxd_blob *data = answer(g, w);
    mxd_rc rc = mxd_buf_rc(&g->head, "weights", &err);
    if (!rc)
        rc = g->net->ops->send(g->net, link, MXD_WIRE_GIVE, mxd_buf_str(&g->head), g->head.len,
                               data, &err);
    if (rc) g->net->ops->hangup(g->net, link);
    rest(g, data, since);
    return data;
}

/* ---------------------------------------------------------------------------------------- thread
 */

/* A place for one more answer to this link; -1: the network has not taken the last ones yet. */
static int free_place(taker *t) {
    int place = -1;
    for (int i = 0; i < MXD_GIVER_WINDOW; i++) {
        if (t->out[i] && atomic_load(&t->out[i]->refs) == 1) {
            mxd_blob_release(t->out[i]);
            t->out[i] = NULL;
        }
        if (!t->out[i]) place = i;
    }
    return place;
}

/* Whose turn it is; NULL: nobody's. *waits: somebody's, once the network has taken something. */
static taker *next_taker(mxd_giver *g, int *place, bool *waits) {
    *waits = false;
    for (int k = 0; k < MXD_GIVER_LINKS; k++) {
        int i = (g->turn + k) % MXD_GIVER_LINKS;
        taker *t = &g->takers[i];
        if (!t->link || !t->n) continue;
        *place = free_place(t);
        *waits = *place < 0 || *waits;
        if (*place < 0) continue;
        g->turn = i + 1;
        return t;
    }
    return NULL;
}

static void serve_one(mxd_giver *g, taker *t, int place) {
    mxd_wire_want w = t->wants[t->first];
    mxd_link link = t->link;
    t->first = (t->first + 1) % MXD_GIVER_WANTS;
    t->n--;
    pthread_mutex_unlock(&g->lock);
    mxd_blob *data = serve(g, link, &w);
    pthread_mutex_lock(&g->lock);
    if (t->link == link)
        t->out[place] = data;
    else /* it went down meanwhile */
        mxd_blob_release(data);
}

static void *giver_main(void *arg) {
    mxd_giver *g = arg;
    mxd_proc_give_way();
    pthread_mutex_lock(&g->lock);
    while (!g->stop) {
        int place;
        bool waits;
        taker *t = next_taker(g, &place, &waits);
        if (t)
            serve_one(g, t, place);
        else if (waits)
            mxd_cond_wait(&g->changed, &g->lock, (int64_t)FULL_WAIT_MS * 1000000);
        else
            pthread_cond_wait(&g->changed, &g->lock);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

/* ------------------------------------------------------------------------------------------ life
 */

mxd_rc mxd_giver_open(mxd_giver **out, const mxd_alloc *al, mxd_inbox *inbox, mxd_err *err) {
    mxd_giver *g = MXD_NEW(al, 1, mxd_giver);
    if (!g) return mxd_fail(err, MXD_E_NOMEM, "weights for others");
    g->al = al;
    g->inbox = inbox;
    pthread_mutex_init(&g->lock, NULL);
    pthread_mutex_init(&g->offer_lock, NULL);
    mxd_cond_init(&g->changed);
    mxd_buf_init(&g->head, al, MXD_MAX_FRAME_BYTES - MXD_WEIGHTS_PIECE);
    mxd_rc rc = mxd_arena_init(&g->scratch, al, MXD_WIRE_SCRATCH, err);
    if (rc)
        mxd_giver_free(g);
    else
        *out = g;
    return rc;
}

mxd_rc mxd_giver_start(mxd_giver *g, mxd_transport *net, mxd_err *err) {
    g->net = net;
    if (pthread_create(&g->thread, NULL, giver_main, g) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start the thread that gives weights");
    g->started = true;
    return MXD_OK;
}

void mxd_giver_stop(mxd_giver *g) {
    if (!g || !g->started) return;
    pthread_mutex_lock(&g->lock);
    g->stop = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->lock);
    pthread_join(g->thread, NULL);
    g->started = false;
}

static void drop_offer(mxd_giver *g) {
    offer *o = &g->what;
    for (int i = 0; o->sums && i < o->list.n; i++) {
        mxd_free(g->al, o->sums[i].sums);
        mxd_free(g->al, o->sums[i].known);
    }
    mxd_free(g->al, o->sums);
    mxd_weights_list_free(g->al, &o->list);
    *o = (offer){0};
}

void mxd_giver_free(mxd_giver *g) {
    if (!g) return;
    for (int i = 0; i < MXD_GIVER_LINKS; i++) forget(&g->takers[i]);
    drop_offer(g);
    mxd_buf_deinit(&g->head);
    mxd_arena_deinit(&g->scratch);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->offer_lock);
    pthread_mutex_destroy(&g->lock);
    mxd_free(g->al, g);
}

/* What the folder is called now may be called something else later, or seen from elsewhere. */
static mxd_rc whole_path(char out[MXD_PATH_MAX], const char *folder, mxd_err *err) {
    char path[PATH_MAX];
    if (!realpath(folder, path)) return mxd_fail_sys(err, MXD_E_IO, "cannot find '%s'", folder);
    if ((size_t)snprintf(out, MXD_PATH_MAX, "%s", path) < MXD_PATH_MAX) return MXD_OK;
    return mxd_fail(err, MXD_E_TOOBIG, "the path '%.100s...' is too long", path);
}

static mxd_rc fill_offer(mxd_giver *g, const char *folder, mxd_store *store, mxd_err *err) {
    offer *o = &g->what;
    o->store = store;
    if (store) {
        const mxd_weights_list *l = mxd_store_list(store);
        MXD_TRY(mxd_weights_list_copy(g->al, l->files, l->n, &o->list, err));
    } else {
        MXD_TRY(mxd_weights_list_get(g->al, folder, &o->list, err));
        MXD_TRY(whole_path(o->folder, folder, err));
    }
    o->sums = MXD_NEW(g->al, (size_t)o->list.n, file_sums);
    return o->sums ? MXD_OK : mxd_fail(err, MXD_E_NOMEM, "sums of files");
}

mxd_rc mxd_giver_offer(mxd_giver *g, const uint8_t id[32], const char *folder, mxd_store *store,
                       mxd_err *err) {
    pthread_mutex_lock(&g->offer_lock);
    drop_offer(g);
    mxd_rc rc = fill_offer(g, folder, store, err);
    if (rc) drop_offer(g);
    if (!rc) {
        memcpy(g->what.id, id, sizeof g->what.id);
        g->what.there = true;
    }
    pthread_mutex_unlock(&g->offer_lock);
    return rc;
}

void mxd_giver_busy(mxd_giver *g, bool busy) { atomic_store(&g->busy, busy); }
