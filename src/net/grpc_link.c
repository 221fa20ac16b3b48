/* grpc_link.c - one link: one bidirectional call, at most one send and one receive outstanding.
 *
 *   DIALING --started, server said hello--> UP         accepted links begin UP
 *   DIALING, UP --begin_close--> CLOSING               hang-up, deadline, bad frame, status came
 *   CLOSING --on_down--> CLOSING                       DOWN is delivered, the table forgets it
 *   CLOSING --settle, last tag is back--> DEAD         freed
 *
 * DOWN does not wait for the tags: gRPC gives a send back only when the kernel has taken its bytes,
 * which a frozen peer can delay until the connection times out.
 *
 * (1) pending counts tags not yet back; the status tag is among them from the start, and only its
 *     return, or begin_close (which cancels, so that it returns), leads out of DIALING and UP.
 * (2) sending != NULL means that one thread owns the right to start the next send; it passes from
 *     sender to loop and back under `lock`, so messages leave in the order of their seq.
 * (3) One reference stands for the tags; senders and the dialler hold one while they work.
 */
#include <stdio.h>
#include <string.h>
#include "base/clock.h"
#include "base/log.h"
#include "net/grpc_private.h"
#include "net/tls.h"

enum { TARGET_MAX = MXD_HOST_MAX * 3 + 32 };

typedef enum link_state { DIALING, UP, CLOSING, DEAD } link_state;

typedef struct outgoing {
    struct outgoing *next;
    grpc_byte_buffer *bb;
    size_t cost;
} outgoing;

struct mxd_grpc_link {
    mxd_grpc *t;
    atomic_int refs;
    mxd_link id;
    mxd_lane lane;
    bool accepted;
    char want[MXD_MAX_NODE_NAME]; /* what the peer must prove to be; "" any node of ours */
    int64_t deadline_ns;          /* of dialling */
    grpc_channel *channel;        /* NULL when accepted */
    grpc_call *call;
    mxd_grpc_tag start_tag, recv_tag, send_tag, status_tag, wake_tag, down_tag;

    /* loop thread; gRPC writes to some of them until their tag is back */
    char peer[MXD_MAX_NODE_NAME], address[64];
    grpc_byte_buffer *in;
    grpc_metadata hello;
    grpc_metadata_array initial, trailing;
    grpc_status_code status;
    grpc_slice details;
    int cancelled;
    uint64_t seq_in;
    mxd_grpc_link *next_unarmed;

    pthread_mutex_t lock; /* of everything below */
    link_state state;
    mxd_rc rc; /* why it is closing */
    int pending;
    outgoing *first, **last, *sending;
    size_t queued_bytes;
    uint64_t seq_out;
};

/* ------------------------------------------------------------------------------------- lifetime */

static void on_started(void *owner, bool ok);
static void on_received(void *owner, bool ok);
static void on_sent(void *owner, bool ok);
static void on_status(void *owner, bool ok);
static void on_woken(void *owner, bool ok);
static void on_down(void *owner, bool ok);

static mxd_grpc_link *link_new(mxd_grpc *t, mxd_lane lane, bool accepted) {
    mxd_grpc_link *l = MXD_NEW(t->al, 1, mxd_grpc_link);
    if (!l) return NULL;
    l->t = t;
    l->lane = lane;
    l->accepted = accepted;
    l->state = accepted ? UP : DIALING;
    l->last = &l->first;
    atomic_init(&l->refs, 1);
    pthread_mutex_init(&l->lock, NULL);
    grpc_metadata_array_init(&l->initial);
    grpc_metadata_array_init(&l->trailing);
    l->details = grpc_empty_slice();
    l->hello.key = grpc_slice_from_static_string(MXD_GRPC_HELLO_KEY);
    l->hello.value = grpc_slice_from_static_string(MXD_GRPC_HELLO_VALUE);
    l->start_tag = (mxd_grpc_tag){on_started, l};
    l->recv_tag = (mxd_grpc_tag){on_received, l};
    l->send_tag = (mxd_grpc_tag){on_sent, l};
    l->status_tag = (mxd_grpc_tag){on_status, l};
    l->wake_tag = (mxd_grpc_tag){on_woken, l};
    l->down_tag = (mxd_grpc_tag){on_down, l};
    return l;
}

static void outgoing_free(const mxd_grpc *t, outgoing *o) {
    while (o) {
        outgoing *next = o->next;
        grpc_byte_buffer_destroy(o->bb);
        mxd_free(t->al, o);
        o = next;
    }
}

static void link_unref(mxd_grpc_link *l) {
    if (atomic_fetch_sub_explicit(&l->refs, 1, memory_order_acq_rel) != 1) return;
    const mxd_grpc *t = l->t;
    outgoing_free(t, l->first);
    outgoing_free(t, l->sending);
    if (l->in) grpc_byte_buffer_destroy(l->in);
    if (l->call) grpc_call_unref(l->call);
    if (l->channel) grpc_channel_destroy(l->channel);
    grpc_slice_unref(l->details);
    grpc_metadata_array_destroy(&l->initial);
    grpc_metadata_array_destroy(&l->trailing);
    pthread_mutex_destroy(&l->lock);
    mxd_free(t->al, l);
}

static mxd_grpc_link *link_ref(mxd_grpc_link *l) {
    atomic_fetch_add_explicit(&l->refs, 1, memory_order_relaxed);
    return l;
}

static mxd_grpc_link *find_link(mxd_grpc *t, mxd_link id) {
    pthread_mutex_lock(&t->lock);
    mxd_grpc_link *l = mxd_links_get(&t->links, id);
    if (l) link_ref(l);
    pthread_mutex_unlock(&t->lock);
    return l;
}

/* The first link at slot *i or behind, with a reference; *i goes on behind it. */
static mxd_grpc_link *next_link(mxd_grpc *t, size_t *i) {
    mxd_grpc_link *l = NULL;
    pthread_mutex_lock(&t->lock);
    while (!l && *i < t->links.cap) l = mxd_links_get(&t->links, t->links.slots[(*i)++].id);
    if (l) link_ref(l);
    pthread_mutex_unlock(&t->lock);
    return l;
}

/* ------------------------------------------------------------------------------------ going down
 */

/* An empty batch: its tag comes back at once, on the loop. */
static void post_tag(mxd_grpc_link *l, mxd_grpc_tag *tag) {
    MXD_GRPC_GIVEN(tag);
    grpc_call_error e = grpc_call_start_batch(l->call, NULL, 0, tag, NULL);
    MXD_ASSERT(e == GRPC_CALL_OK);
}

static void begin_close(mxd_grpc_link *l, mxd_rc rc) {
    pthread_mutex_lock(&l->lock);
    bool first = l->state == DIALING || l->state == UP;
    outgoing *unsent = NULL;
    if (first) {
        l->state = CLOSING;
        l->rc = rc;
        l->pending++; /* the down tag */
        unsent = l->first;
        l->first = NULL;
        l->last = &l->first;
    }
    pthread_mutex_unlock(&l->lock);
    if (!first) return;
    outgoing_free(l->t, unsent);
    grpc_call_cancel(l->call, NULL);
    post_tag(l, &l->down_tag);
}

static void emit(const mxd_grpc_link *l, mxd_net_event_kind kind, mxd_rc rc, const mxd_frame *f) {
    mxd_net_event ev = {.kind = kind,
                        .link = l->id,
                        .lane = l->lane,
                        .accepted = l->accepted,
                        .rc = rc,
                        .message = f ? f->kind : 0,
                        .head = f ? f->head : NULL,
                        .payload = f ? f->payload : NULL};
    memcpy(ev.peer, l->peer, sizeof ev.peer);
    memcpy(ev.address, l->address, sizeof ev.address);
    mxd_grpc_emit(l->t, &ev);
}

/* A tag has come back and its handler is done with the link. */
static void settle(mxd_grpc_link *l) {
    mxd_grpc *t = l->t;
    pthread_mutex_lock(&l->lock);
    bool dead = --l->pending == 0 && l->state == CLOSING;
    if (dead) l->state = DEAD;
    pthread_mutex_unlock(&l->lock);
    if (!dead) return;
    link_unref(l);
    mxd_grpc_drop(t);
}

static void on_down(void *owner, bool ok) {
    (void)ok;
    mxd_grpc_link *l = owner;
    mxd_grpc *t = l->t;
    emit(l, MXD_NET_DOWN, l->rc, NULL);
    pthread_mutex_lock(&t->lock);
    mxd_links_remove(&t->links, l->id);
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    settle(l);
}

static bool text_has(grpc_slice text, const char *word) {
    return memmem(GRPC_SLICE_START_PTR(text), GRPC_SLICE_LENGTH(text), word, strlen(word)) != NULL;
}

/* gRPC reports a failed handshake as UNAVAILABLE; only the text tells it from a dead address. */
static bool handshake_failed(const mxd_grpc_link *l) {
    return text_has(l->details, "eer name") || text_has(l->details, "andshake") ||
           text_has(l->details, "SSL") || text_has(l->details, "ertificate");
}

static mxd_rc rc_of_status(const mxd_grpc_link *l, bool was_up) {
    switch (l->status) {
    case GRPC_STATUS_UNAUTHENTICATED:
    case GRPC_STATUS_PERMISSION_DENIED:
        return MXD_E_AUTH;
    case GRPC_STATUS_UNIMPLEMENTED:
        return MXD_E_UNSUPPORTED;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return was_up ? MXD_E_FORMAT : MXD_E_BUSY;
    case GRPC_STATUS_UNAVAILABLE:
        return !was_up && l->t->secure && handshake_failed(l) ? MXD_E_AUTH : MXD_E_PEER;
    default:
        return MXD_E_PEER;
    }
}

static void on_status(void *owner, bool ok) {
    (void)ok; /* always succeeds */
    mxd_grpc_link *l = owner;
    pthread_mutex_lock(&l->lock);
    bool was_up = l->state != DIALING, expected = l->state == CLOSING;
    pthread_mutex_unlock(&l->lock);
    mxd_rc rc = l->accepted ? MXD_E_PEER : rc_of_status(l, was_up);
    if (!expected)
        mxd_log(MXD_LOG_DEBUG, "link_ended", "peer=%s address=%s lane=%d rc=%s why=\"%.*s\"",
                l->peer, l->address, (int)l->lane, mxd_rc_name(rc),
                (int)GRPC_SLICE_LENGTH(l->details), (const char *)GRPC_SLICE_START_PTR(l->details));
    begin_close(l, rc);
    settle(l);
}

/* ----------------------------------------------------------------------------------- receiving */

/* Starts a batch whose pending count is already taken. A refused one takes the link down, and its
 * tag comes back through an empty batch, so that every count is given back on the loop. */
static void start_counted(mxd_grpc_link *l, const grpc_op *ops, size_t n, mxd_grpc_tag *tag) {
    MXD_GRPC_GIVEN(tag);
    grpc_call_error e = grpc_call_start_batch(l->call, ops, n, tag, NULL);
    if (e == GRPC_CALL_OK) return;
    mxd_log(MXD_LOG_ERROR, "grpc_batch_refused", "address=%s error=%d", l->address, (int)e);
    begin_close(l, MXD_E_INTERNAL);
    post_tag(l, tag);
}

/* Only while another tag is out, so that the link cannot die meanwhile. */
static void start(mxd_grpc_link *l, const grpc_op *ops, size_t n, mxd_grpc_tag *tag) {
    pthread_mutex_lock(&l->lock);
    l->pending++;
    pthread_mutex_unlock(&l->lock);
    start_counted(l, ops, n, tag);
}

static bool is_up(mxd_grpc_link *l) {
    pthread_mutex_lock(&l->lock);
    bool up = l->state == UP;
    pthread_mutex_unlock(&l->lock);
    return up;
}

static void post_receive(mxd_grpc_link *l) {
    if (!is_up(l)) return;
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &l->in;
    start(l, &op, 1, &l->recv_tag);
}

/* gRPC tells the peer of new room at once, in a write of its own, when bytes come for a receive
 * that waits for them. Room that comes free before one waits goes out with the next message
 * instead, which for an exchange of small messages is one write of two. So the receive starts late.
 */
static void receive_later(mxd_grpc_link *l) {
    l->next_unarmed = l->t->unarmed;
    l->t->unarmed = link_ref(l);
}

void mxd_grpc_links_receive(mxd_grpc *t) {
    t->looks = 0;
    for (mxd_grpc_link *l; (l = t->unarmed);) {
        t->unarmed = l->next_unarmed;
        post_receive(l);
        link_unref(l);
    }
}

static void refuse_frame(mxd_grpc_link *l, mxd_rc rc, const mxd_err *err) {
    mxd_log(MXD_LOG_WARN, "frame_refused", "peer=%s address=%s lane=%d rc=%s why=\"%s\"", l->peer,
            l->address, (int)l->lane, mxd_rc_name(rc), err->msg);
    begin_close(l, rc == MXD_E_NOMEM ? rc : MXD_E_FORMAT);
}

static mxd_rc read_frame(mxd_grpc_link *l, mxd_frame *f, mxd_err *err) {
    mxd_grpc_source src;
    if (!mxd_grpc_source_init(&src, l->in))
        return mxd_fail(err, MXD_E_FORMAT, "message from a peer: compressed");
    mxd_rc rc = mxd_frame_read(l->t->al, &src.base, f, err);
    mxd_grpc_source_deinit(&src);
    if (rc || f->seq == ++l->seq_in) return rc;
    rc = mxd_fail(err, MXD_E_FORMAT, "message from a peer: number %llu, expected %llu",
                  (unsigned long long)f->seq, (unsigned long long)l->seq_in);
    mxd_frame_deinit(f);
    return rc;
}

static void deliver(mxd_grpc_link *l) {
    mxd_frame f;
    mxd_err err;
    mxd_rc rc = read_frame(l, &f, &err);
    grpc_byte_buffer_destroy(l->in);
    l->in = NULL;
    if (rc) {
        refuse_frame(l, rc, &err);
        return;
    }
    if (is_up(l)) emit(l, MXD_NET_MESSAGE, MXD_OK, &f);
    receive_later(l);
    mxd_frame_deinit(&f);
}

static void on_received(void *owner, bool ok) {
    mxd_grpc_link *l = owner;
    if (ok && l->in) {
        deliver(l);
    } else if (l->accepted) {
        begin_close(l, MXD_E_PEER); /* a dialler that closes its half; ours gets its status */
    }
    settle(l);
}

/* -------------------------------------------------------------------------------------- sending */

static void start_send(mxd_grpc_link *l, outgoing *o) {
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = o->bb;
    start_counted(l, &op, 1, &l->send_tag);
}

/* Under the lock: the next message to start, with its pending count; NULL when none may start. */
static outgoing *take_next(mxd_grpc_link *l) {
    if (l->sending || !l->first || l->state != UP) return NULL;
    outgoing *o = l->sending = l->first;
    l->first = o->next;
    if (!l->first) l->last = &l->first;
    o->next = NULL;
    l->pending++;
    return o;
}

static void on_sent(void *owner, bool ok) {
    (void)ok; /* a failed send ends the call: its status follows */
    mxd_grpc_link *l = owner;
    pthread_mutex_lock(&l->lock);
    outgoing *sent = l->sending;
    l->sending = NULL;
    l->queued_bytes -= sent->cost;
    outgoing *next = take_next(l);
    pthread_mutex_unlock(&l->lock);
    outgoing_free(l->t, sent);
    if (next) start_send(l, next);
    settle(l);
}

static size_t cost_of(size_t bytes) {
    return bytes < MXD_GRPC_MESSAGE_COST ? MXD_GRPC_MESSAGE_COST : bytes;
}

/* Under the lock. */
static mxd_rc check_send(const mxd_grpc_link *l, size_t cost, mxd_err *err) {
    if (l->state != UP)
        return mxd_fail(err, MXD_E_PEER, "the link to %s is not up; dial again", l->address);
    if (cost > l->t->max_queued_bytes - l->queued_bytes)
        return mxd_fail(err, MXD_E_BUSY, "%zu bytes wait for %s already; send later",
                        l->queued_bytes, l->address);
    return MXD_OK;
}

/* Two slices: what stands before the payload, and the payload by reference. */
static grpc_byte_buffer *encode(const mxd_frame_head *h, mxd_blob *payload) {
    grpc_slice s[2] = {grpc_slice_malloc(mxd_frame_head_size(h))};
    mxd_frame_put_head(GRPC_SLICE_START_PTR(s[0]), h);
    if (payload) s[1] = mxd_grpc_blob_slice(payload);
    grpc_byte_buffer *bb = grpc_raw_byte_buffer_create(s, payload ? 2 : 1);
    grpc_slice_unref(s[0]); /* the byte buffer has its own references */
    if (payload) grpc_slice_unref(s[1]);
    return bb;
}

static mxd_rc queue_message(mxd_grpc_link *l, mxd_frame_head *h, mxd_blob *payload, outgoing *o,
                            mxd_err *err) {
    o->cost = cost_of(h->head_bytes + h->payload_bytes);
    pthread_mutex_lock(&l->lock);
    mxd_rc rc = check_send(l, o->cost, err);
    outgoing *next = NULL;
    if (!rc) {
        h->seq = ++l->seq_out;
        o->bb = encode(h, payload);
        l->queued_bytes += o->cost;
        *l->last = o;
        l->last = &o->next;
        next = take_next(l);
    }
    pthread_mutex_unlock(&l->lock);
    if (next) start_send(l, next);
    return rc;
}

mxd_rc mxd_grpc_link_send(mxd_grpc *t, mxd_link id, uint32_t message, const void *head,
                          size_t head_bytes, mxd_blob *payload, mxd_err *err) {
    if (payload && payload->len == 0) payload = NULL;
    size_t payload_bytes = payload ? payload->len : 0;
    if (head_bytes > MXD_MAX_FRAME_BYTES || payload_bytes > MXD_MAX_FRAME_BYTES - head_bytes)
        return mxd_fail(err, MXD_E_TOOBIG, "a message of %zu + %zu bytes is over the limit of %d",
                        head_bytes, payload_bytes, MXD_MAX_FRAME_BYTES);
    mxd_grpc_link *l = find_link(t, id);
    if (!l) return mxd_fail(err, MXD_E_PEER, "the link is not up; dial again");
    outgoing *o = MXD_NEW(t->al, 1, outgoing);
    mxd_frame_head h = {.kind = message,
                        .crc = mxd_frame_crc(head, head_bytes, payload),
                        .head = head,
                        .head_bytes = head_bytes,
                        .payload_bytes = payload_bytes};
    mxd_rc rc = o ? queue_message(l, &h, payload, o, err)
                  : mxd_fail(err, MXD_E_NOMEM, "no memory to send to %s", l->address);
    if (rc) mxd_free(t->al, o);
    link_unref(l);
    return rc;
}

/* ------------------------------------------------------------------------------------- coming up
 */

static bool said_hello(const mxd_grpc_link *l) {
    for (size_t i = 0; i < l->initial.count; i++) {
        const grpc_metadata *m = &l->initial.metadata[i];
        if (grpc_slice_str_cmp(m->key, MXD_GRPC_HELLO_KEY) == 0 &&
            grpc_slice_str_cmp(m->value, MXD_GRPC_HELLO_VALUE) == 0)
            return true;
    }
    return false; /* a refusal, whose status follows; or a stranger, and then the deadline does */
}

static void come_up(mxd_grpc_link *l) {
    if (l->t->secure) mxd_grpc_call_peer(l->call, l->peer);
    if (l->t->secure && (!l->peer[0] || (l->want[0] && strcmp(l->want, l->peer) != 0))) {
        begin_close(l, MXD_E_AUTH);
        return;
    }
    pthread_mutex_lock(&l->lock);
    bool up = l->state == DIALING;
    if (up) l->state = UP;
    pthread_mutex_unlock(&l->lock);
    if (!up) return;
    emit(l, MXD_NET_UP, MXD_OK, NULL);
    post_receive(l);
}

static void on_started(void *owner, bool ok) {
    mxd_grpc_link *l = owner;
    if (ok && !l->accepted && said_hello(l)) come_up(l);
    settle(l);
}

static void on_woken(void *owner, bool ok) {
    (void)ok;
    settle(owner);
}

/* Gives the link its number; from here on it ends with a DOWN. */
static mxd_rc add_link(mxd_grpc_link *l, mxd_err *err) {
    mxd_grpc *t = l->t;
    pthread_mutex_lock(&t->lock);
    mxd_rc rc = t->closing ? mxd_fail(err, MXD_E_SHUTDOWN, "the transport is closing")
                           : mxd_links_add(&t->links, l, &l->id, err);
    if (!rc) t->n_objects++;
    pthread_mutex_unlock(&t->lock);
    return rc;
}

static const char *const methods[MXD_LANE_COUNT] = {
    [MXD_LANE_CONTROL] = "/mlx_distributed.v1.Node/Control",
    [MXD_LANE_DATA] = "/mlx_distributed.v1.Node/Data",
    [MXD_LANE_BULK] = "/mlx_distributed.v1.Node/Bulk",
    [MXD_LANE_GROUP] = "/mlx_distributed.v1.Node/Group",
};

/* One connection per link: bulk cannot hold up a heartbeat, and links fail one by one. */
static mxd_rc open_call(mxd_grpc_link *l, const char *target, int64_t timeout_ms, mxd_err *err) {
    mxd_grpc *t = l->t;
    mxd_grpc_args args;
    const char *name = l->want[0] ? l->want : MXD_CLUSTER_DNS_NAME;
    mxd_grpc_client_args(&args, t->secure ? name : NULL, timeout_ms);
    grpc_channel_credentials *c = mxd_grpc_own_creds(t);
    if (!c) return mxd_fail(err, MXD_E_AUTH, "gRPC refuses our certificate or key");
    l->channel = grpc_channel_create(target, c, &args.list);
    grpc_channel_credentials_release(c);
    if (!l->channel) return mxd_fail(err, MXD_E_INVAL, "gRPC cannot use address %s", l->address);
    l->call = grpc_channel_create_call(l->channel, NULL, GRPC_PROPAGATE_DEFAULTS, t->cq,
                                       grpc_slice_from_static_string(methods[l->lane]), NULL,
                                       gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    return l->call ? MXD_OK : mxd_fail(err, MXD_E_INTERNAL, "gRPC gives no call");
}

static void start_dial(mxd_grpc_link *l) {
    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &l->trailing;
    status.data.recv_status_on_client.status = &l->status;
    status.data.recv_status_on_client.status_details = &l->details;
    /* Without WAIT_FOR_READY: nobody there is known at once, not at the deadline. */
    grpc_op begin[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                        {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    begin[1].data.recv_initial_metadata.recv_initial_metadata = &l->initial;
    start_counted(l, &status, 1, &l->status_tag);
    start_counted(l, begin, 2, &l->start_tag);
    mxd_grpc_deadline(l->t, l->deadline_ns);
    post_tag(l, &l->wake_tag); /* the loop may be asleep with a later deadline */
}

mxd_rc mxd_grpc_link_dial(mxd_grpc *t, const char *address, const char *peer, mxd_lane lane,
                          int64_t timeout_ms, mxd_link *out, mxd_err *err) {
    char target[TARGET_MAX];
    MXD_ASSERT(lane < MXD_LANE_COUNT);
    MXD_TRY(mxd_grpc_target(address, target, sizeof target, err));
    if (peer && t->secure && !mxd_node_name_ok(peer))
        return mxd_fail(err, MXD_E_INVAL, "'%.64s' is not a node id", peer);
    mxd_grpc_link *l = link_new(t, lane, false);
    if (!l) return mxd_fail(err, MXD_E_NOMEM, "no memory for a link to %s", address);
    snprintf(l->want, sizeof l->want, "%s", peer && t->secure ? peer : "");
    snprintf(l->address, sizeof l->address, "%s", address);
    timeout_ms = timeout_ms < 0 ? 0 : timeout_ms > INT32_MAX / 2 ? INT32_MAX / 2 : timeout_ms;
    l->deadline_ns = mxd_now_ns() + timeout_ms * 1000000;
    mxd_rc rc = open_call(l, target, timeout_ms, err);
    if (!rc) {
        l->pending = 3; /* start_dial's, before anyone can see the link: all at once, for the loop
                         * may see the first come back before the last is out */
        link_ref(l);    /* for us: the loop may be done with it before we are */
        rc = add_link(l, err);
        if (!rc) {
            *out = l->id;
            start_dial(l);
        } else {
            link_unref(l);
        }
    }
    link_unref(l);
    return rc;
}

bool mxd_grpc_link_accept(mxd_grpc *t, grpc_call *call, mxd_lane lane, const char *peer) {
    mxd_err err;
    mxd_grpc_link *l = link_new(t, lane, true);
    if (!l) return false;
    snprintf(l->peer, sizeof l->peer, "%s", peer);
    mxd_grpc_call_address(call, l->address, sizeof l->address);
    l->call = call;
    l->pending = 2;
    if (add_link(l, &err)) {
        l->call = NULL;
        link_unref(l);
        return false;
    }
    grpc_op closed = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    closed.data.recv_close_on_server.cancelled = &l->cancelled;
    grpc_op begin = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    begin.data.send_initial_metadata.count = 1;
    begin.data.send_initial_metadata.metadata = &l->hello;
    start_counted(l, &closed, 1, &l->status_tag);
    start_counted(l, &begin, 1, &l->start_tag);
    emit(l, MXD_NET_UP, MXD_OK, NULL);
    post_receive(l);
    return true;
}

/* -------------------------------------------------------------------------- hang-ups, deadlines */

void mxd_grpc_link_hangup(mxd_grpc *t, mxd_link id, mxd_rc why) {
    mxd_grpc_link *l = find_link(t, id);
    if (!l) return;
    begin_close(l, why);
    link_unref(l);
}

void mxd_grpc_links_hangup_all(mxd_grpc *t) {
    size_t i = 0;
    for (mxd_grpc_link *l; (l = next_link(t, &i));) {
        begin_close(l, MXD_E_CANCELED);
        link_unref(l);
    }
}

int64_t mxd_grpc_links_expire(mxd_grpc *t, int64_t now_ns) {
    int64_t next = INT64_MAX;
    size_t i = 0;
    for (mxd_grpc_link *l; (l = next_link(t, &i));) {
        pthread_mutex_lock(&l->lock);
        bool dialing = l->state == DIALING;
        pthread_mutex_unlock(&l->lock);
        if (dialing && l->deadline_ns <= now_ns) begin_close(l, MXD_E_TIMEOUT);
        if (dialing && l->deadline_ns > now_ns && l->deadline_ns < next) next = l->deadline_ns;
        link_unref(l);
    }
    return next;
}
