/* comm_peer.c - the stream of frames between this rank and another, over links that come and go.
 *
 *   - a frame gets its number when it is made and keeps it over all links;
 *   - on a new link both sides say how far they have come (hello); the sender forgets what has
 *     arrived and sends the rest again, in order;
 *   - a frame with another number than the next is a lie: links are ordered and complete.
 *   May be trusted: out holds the frames acked + 1 .. next_seq - 1; unsent is a suffix of it. */
#include "net/comm_private.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "comm.pb-c.h"

#define PB(type) MlxDistributed__V1__##type
#define pb(name) mlx_distributed__v1__##name

enum { HEAD_MAX = 256 };

void comm_peer_init(comm_peer *p, int rank, int64_t now_ms) {
    *p = (comm_peer){.rank = rank, .next_seq = 1, .away_since = now_ms, .delay_ms = COMM_REDIAL_MS};
    p->out_end = &p->out;
    p->in_end = &p->in;
}

comm_out *comm_out_new(mxd_comm *c) {
    comm_out *o = c->spare;
    if (!o) return MXD_NEW(c->al, 1, comm_out);
    c->spare = o->next;
    c->n_spare--;
    *o = (comm_out){0};
    return o;
}

void comm_out_free(mxd_comm *c, comm_out *o) {
    mxd_blob_release(o->piece);
    if (c->n_spare >= COMM_SPARE) {
        mxd_free(c->al, o);
        return;
    }
    o->next = c->spare;
    c->spare = o;
    c->n_spare++;
}

static void free_in(mxd_comm *c, comm_in *m) {
    for (int i = 0; i < m->n_parts; i++) mxd_blob_release(m->parts[i]);
    mxd_free(c->al, m->parts);
    mxd_free(c->al, m);
}

void comm_peer_deinit(mxd_comm *c, comm_peer *p) {
    comm_ring_release(p->ring);
    for (comm_out *o = p->out; o; o = p->out) {
        p->out = o->next;
        comm_out_free(c, o);
    }
    for (comm_in *m = p->in; m; m = p->in) {
        p->in = m->next;
        free_in(c, m);
    }
}

void comm_signal(mxd_comm *c) {
    atomic_fetch_add(&c->news, 1);
    pthread_cond_broadcast(&c->changed);
    for (int r = 0; r < c->size; r++)
        if (c->peers[r].ring) comm_ring_wake(c->peers[r].ring);
}

void comm_lose(mxd_comm *c, comm_peer *p, mxd_rc rc, const char *why) {
    if (p->lost) return;
    p->lost = rc;
    snprintf(p->why, sizeof p->why, "%s", why);
    p->up = false;
    comm_signal(c);
}

/* ------------------------------------------------------------------------------------- sending */

static mxd_rc send_packed(mxd_comm *c, mxd_link link, uint32_t kind, const ProtobufCMessage *m,
                          mxd_blob *payload) {
    uint8_t head[HEAD_MAX];
    size_t n = protobuf_c_message_get_packed_size(m);
    MXD_ASSERT(n <= sizeof head);
    protobuf_c_message_pack(m, head);
    return c->t->ops->send(c->t, link, kind, head, n, payload, NULL);
}

static void say_hello(mxd_comm *c, const comm_peer *p, mxd_link link) {
    PB(CommHello) m;
    pb(comm_hello__init)(&m);
    m.version = COMM_VERSION;
    m.group = c->group;
    m.rank = (uint32_t)c->rank;
    m.size = (uint32_t)c->size;
    m.incarnation = c->incarnation;
    m.received = p ? p->received : 0;
    m.host = c->host;
    (void)!send_packed(c, link, COMM_HELLO, &m.base, NULL); /* a dead link says so by itself */
}

/* Frames go out while less than a window of bytes is unacknowledged. */
void comm_pump(mxd_comm *c, comm_peer *p) {
    while (p->up && p->unsent) {
        comm_out *o = p->unsent;
        if (p->ring_out) {
            if (!comm_shm_put(p, o)) return;
            p->unsent = o->next;
            continue;
        }
        PB(CommData) m;
        pb(comm_data__init)(&m);
        m.seq = o->seq;
        m.tag = o->tag;
        m.total = o->total;
        m.offset = o->offset;
        if (send_packed(c, p->link, COMM_DATA, &m.base, o->piece)) return; /* full, or going down */
        p->unsent = o->next;
    }
}

void comm_queue(comm_peer *p, comm_out *o) {
    o->seq = p->next_seq++;
    *p->out_end = o;
    p->out_end = &o->next;
    p->out_bytes += o->bytes;
}

void comm_ack(mxd_comm *c, comm_peer *p, bool now) {
    if (!p->up || p->ack_told == p->received) return;
    if (!p->ring_out && !now && p->received - p->ack_told < COMM_ACK_EVERY &&
        p->since_ack < COMM_ACK_BYTES)
        return;
    if (p->unread_bytes > MXD_COMM_WINDOW) return; /* the sender waits until something is read */
    if (p->ring_out) {
        comm_ring_tell(p->ring, p->received);
        p->ack_told = p->received;
        p->since_ack = 0;
        return;
    }
    PB(CommAck) m;
    pb(comm_ack__init)(&m);
    m.received = p->received;
    if (send_packed(c, p->link, COMM_ACK, &m.base, NULL)) return;
    p->ack_told = p->received;
    p->since_ack = 0;
}

bool comm_forget(mxd_comm *c, comm_peer *p, uint64_t received) {
    if (received < p->acked || received >= p->next_seq) return false;
    while (p->out && p->out->seq <= received) {
        comm_out *o = p->out;
        p->out = o->next;
        if (!p->out) p->out_end = &p->out;
        if (p->unsent == o) p->unsent = o->next;
        p->out_bytes -= o->bytes;
        comm_out_free(c, o);
    }
    p->acked = received;
    return true;
}

/* ----------------------------------------------------------------------------------- receiving */

comm_in *comm_find(comm_peer *p, uint32_t tag) {
    for (comm_in *m = p->in; m; m = m->next)
        if (m->tag == tag) return m->got == m->total ? m : NULL;
    return NULL;
}

comm_in *comm_any(comm_peer *p, uint32_t tag) {
    comm_in *m = p->in;
    while (m && m->tag != tag) m = m->next;
    return m;
}

void comm_take(mxd_comm *c, comm_peer *p, comm_in *m) {
    comm_in **at = &p->in;
    while (*at != m) at = &(*at)->next;
    *at = m->next;
    if (!*at) p->in_end = at;
    if (m->got == m->total) p->unread_bytes -= (size_t)m->total;
    free_in(c, m);
    comm_ack(c, p, false);
}

static comm_in *in_new(mxd_comm *c, comm_peer *p, uint32_t tag, uint64_t total) {
    comm_in *m = MXD_NEW(c->al, 1, comm_in);
    if (!m) return NULL;
    m->tag = tag;
    m->total = total;
    *p->in_end = m;
    p->in_end = &m->next;
    return m;
}

/* A piece that goes on where the newest message of its tag ends, or begins a message. */
static bool add_piece(mxd_comm *c, comm_peer *p, const ring_frame *d, mxd_blob *piece) {
    size_t n = piece ? piece->len : 0;
    comm_in *m = NULL;
    for (comm_in *i = p->in; i; i = i->next)
        if (i->tag == d->tag && i->got < i->total) m = i;
    if (d->total > MXD_COMM_MAX_MESSAGE || d->offset != (m ? m->got : 0) ||
        (m && m->total != d->total) || n > d->total - d->offset || (!n && d->total))
        return false;
    if (!m) {
        m = in_new(c, p, d->tag, d->total);
        if (!m) return false;
    }
    if (m->n_parts == m->cap_parts) {
        int cap = m->cap_parts ? 2 * m->cap_parts : 1;
        mxd_blob **more = MXD_NEW(c->al, (size_t)cap, mxd_blob *);
        if (!more) return false;
        if (m->n_parts) memcpy(more, m->parts, (size_t)m->n_parts * sizeof *more);
        mxd_free(c->al, m->parts);
        m->parts = more;
        m->cap_parts = cap;
    }
    m->parts[m->n_parts++] = mxd_blob_retain(piece);
    m->got += n;
    if (m->got == m->total) p->unread_bytes += (size_t)m->total;
    return true;
}

void comm_into_begin(mxd_comm *c, comm_peer *p, uint32_t tag, void *at, size_t total) {
    p->into = (comm_into){.at = at, .tag = tag, .total = total};
    comm_in *m = comm_any(p, tag);
    if (!m || m->total != total) return;
    for (int k = 0; k < m->n_parts; k++) {
        memcpy(p->into.at + p->into.got, m->parts[k]->bytes, m->parts[k]->len);
        p->into.got += m->parts[k]->len;
    }
    comm_take(c, p, m);
}

void comm_into_end(mxd_comm *c, comm_peer *p) {
    comm_into i = p->into;
    p->into = (comm_into){0};
    if (!i.at || !i.got || i.got == i.total) return;
    comm_in *m = in_new(c, p, i.tag, i.total); /* for the pieces to come; nobody reads it */
    if (m)
        m->got = i.got;
    else
        comm_lose(c, p, MXD_E_NOMEM, "memory is short for what it sends");
}

unsigned char *comm_into_room(const comm_peer *p, const ring_frame *f) {
    const comm_into *i = &p->into;
    bool fits = i->at && f->tag == i->tag && f->seq == p->received + 1 && f->total == i->total &&
                f->offset == i->got && f->bytes && f->bytes <= i->total - i->got;
    return fits ? i->at + i->got : NULL;
}

void comm_into_took(mxd_comm *c, comm_peer *p, const ring_frame *f) {
    p->into.got += f->bytes;
    p->received = f->seq;
    p->since_ack += f->bytes;
    comm_ack(c, p, false);
}

void comm_add(mxd_comm *c, comm_peer *p, const ring_frame *f, mxd_blob *piece) {
    if (f->seq <= p->received) return; /* sent again, and had arrived all the same */
    unsigned char *to = comm_into_room(p, f);
    if (to) {
        memcpy(to, piece->bytes, f->bytes);
        comm_into_took(c, p, f);
        return;
    }
    if (f->seq != p->received + 1 || !add_piece(c, p, f, piece)) {
        comm_lose(c, p, MXD_E_FORMAT, "it sent a frame that does not follow, or memory is short");
        return;
    }
    p->received = f->seq;
    p->since_ack += piece ? piece->len : 0;
    comm_ack(c, p, false);
}

static void on_data(mxd_comm *c, comm_peer *p, const PB(CommData) * d, mxd_blob *piece) {
    const ring_frame f = {.seq = d->seq,
                          .total = d->total,
                          .offset = d->offset,
                          .tag = d->tag,
                          .bytes = piece ? (uint32_t)piece->len : 0};
    comm_add(c, p, &f, piece);
    comm_signal(c);
}

/* --------------------------------------------------------------------------------------- links */

static comm_peer *peer_of(mxd_comm *c, mxd_link link) {
    for (int r = 0; r < c->size; r++)
        if (r != c->rank && c->peers[r].link == link) return &c->peers[r];
    return NULL;
}

/* The peer is who it should be, and goes on where it was. */
static mxd_rc check_hello(const mxd_comm *c, const PB(CommHello) * h, char *why, size_t n) {
    if (h->version != COMM_VERSION)
        snprintf(why, n, "it speaks version %u of this protocol, we speak %d", h->version,
                 COMM_VERSION);
    else if (strcmp(h->group, c->group) != 0 || h->size != (uint32_t)c->size)
        snprintf(why, n, "it belongs to group '%.40s' of %u ranks, not to '%s' of %d", h->group,
                 h->size, c->group, c->size);
    else if (h->rank >= h->size || h->rank == (uint32_t)c->rank)
        snprintf(why, n, "it says it is rank %u of %d, and so are we or nobody", h->rank, c->size);
    else
        return MXD_OK;
    return MXD_E_PEER;
}

/* True: the link is now the peer's. */
static bool on_hello(mxd_comm *c, mxd_link link, bool accepted, const char *node,
                     const PB(CommHello) * h) {
    char why[160];
    comm_peer *p = accepted ? NULL : peer_of(c, link);
    mxd_rc rc = check_hello(c, h, why, sizeof why);
    if (!rc && accepted) p = &c->peers[h->rank];
    if (rc || (p && p->rank != (int)h->rank)) {
        if (p) comm_lose(c, p, rc ? rc : MXD_E_PEER, rc ? why : "another rank answers there");
        return false;
    }
    if (!p || p->lost) return false;
    if (c->nodes[p->rank][0] && strcmp(node, c->nodes[p->rank]) != 0) return false;
    if (p->incarnation && p->incarnation != h->incarnation) {
        comm_lose(c, p, MXD_E_PEER, "it was started again and has forgotten this group");
        return false;
    }
    if (!comm_forget(c, p, h->received)) {
        comm_lose(c, p, MXD_E_FORMAT, "it claims frames that were never sent");
        return false;
    }
    if (accepted) {
        if (p->link) c->t->ops->hangup(c->t, p->link); /* the peer has given it up already */
        comm_shm_drop(c, p);
        p->link = link;
    }
    for (comm_out *o = p->out; o; o = o->next) {
        if (!o->lent) continue; /* the ring is dropped: it was taken out of it */
        comm_lose(c, p, MXD_E_FORMAT, "it lacks frames that it has taken");
        return false;
    }
    if (accepted) say_hello(c, p, link);
    if (p->incarnation) c->reconnects++;
    for (comm_out *o = p->out; o && o != p->unsent; o = o->next) c->resent++;
    p->incarnation = h->incarnation;
    p->unsent = p->out;
    p->ack_told = p->received; /* our hello said so */
    p->up = true;
    p->delay_ms = COMM_REDIAL_MS;
    p->away_since = 0;
    comm_shm_offer(c, p, h->host);
    comm_pump(c, p);
    comm_signal(c);
    return true;
}

static void on_down(mxd_comm *c, comm_peer *p, mxd_rc rc) {
    int64_t now = mxd_now_ms();
    comm_shm_drop(c, p);
    p->redial_ms = now + p->delay_ms;
    if (!p->up && p->delay_ms < COMM_REDIAL_MOST_MS) p->delay_ms *= 2;
    if (p->delay_ms > COMM_REDIAL_MOST_MS) p->delay_ms = COMM_REDIAL_MOST_MS;
    p->link = 0;
    p->up = false;
    if (!p->away_since) p->away_since = now;
    pthread_cond_signal(&c->tick);
    if (rc == MXD_E_AUTH) comm_lose(c, p, rc, "it refused our certificate, or we refused its");
    comm_signal(c);
}

/* What a message means; false: the link is worth nothing. */
static bool on_message(mxd_comm *c, const mxd_net_event *ev) {
    const uint8_t *p = ev->head->bytes;
    size_t n = ev->head->len;
    comm_peer *peer = peer_of(c, ev->link);
    bool good = false;
    if (ev->message == COMM_HELLO) {
        PB(CommHello) *h = pb(comm_hello__unpack)(NULL, n, p);
        if (h) good = (peer && peer->up) || on_hello(c, ev->link, ev->accepted, ev->peer, h);
        pb(comm_hello__free_unpacked)(h, NULL);
    } else if (peer && peer->up && ev->message == COMM_DATA) {
        PB(CommData) *d = pb(comm_data__unpack)(NULL, n, p);
        if (d) on_data(c, peer, d, ev->payload);
        good = d && !peer->lost;
        pb(comm_data__free_unpacked)(d, NULL);
    } else if (peer && peer->up && ev->message == COMM_ACK) {
        PB(CommAck) *a = pb(comm_ack__unpack)(NULL, n, p);
        /* one that the ring's word has overtaken says nothing new */
        good = a &&
               ((peer->ring_out && a->received < peer->acked) || comm_forget(c, peer, a->received));
        if (good) comm_pump(c, peer);
        pb(comm_ack__free_unpacked)(a, NULL);
        comm_signal(c);
    } else if (peer && peer->up && ev->message == COMM_RING) {
        PB(CommRing) *a = pb(comm_ring__unpack)(NULL, n, p);
        good = a && comm_shm_answer(c, peer, a->name);
        pb(comm_ring__free_unpacked)(a, NULL);
        comm_signal(c);
    }
    return good;
}

void mxd_comm_event(mxd_comm *c, const mxd_net_event *ev) {
    mxd_link hangup = 0;
    pthread_mutex_lock(&c->lock);
    comm_peer *p = peer_of(c, ev->link);
    switch (ev->kind) {
    case MXD_NET_UP:
        if (!ev->accepted && p) say_hello(c, p, ev->link);
        break;
    case MXD_NET_DOWN:
        if (p) on_down(c, p, ev->rc);
        break;
    case MXD_NET_MESSAGE:
        if (!on_message(c, ev)) hangup = ev->link;
        break;
    }
    pthread_mutex_unlock(&c->lock);
    if (hangup) c->t->ops->hangup(c->t, hangup);
}
