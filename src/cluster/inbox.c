#include "cluster/inbox.h"

#include "base/log.h"

enum { INBOX_CAP = 8192 };

mxd_rc mxd_inbox_init(mxd_inbox *in, const mxd_alloc *al, mxd_err *err) {
    *in = (mxd_inbox){.al = al};
    return mxd_queue_open(&in->queue, al, INBOX_CAP, err);
}

void mxd_inbox_deinit(mxd_inbox *in) {
    if (!in->queue) return;
    for (mxd_inbox_item *i; (i = mxd_queue_pop(in->queue, 0, 0)) != NULL;) mxd_inbox_free(in, i);
    mxd_queue_free(in->queue);
    in->queue = NULL;
}

static bool push(mxd_inbox *in, const mxd_inbox_item *item) {
    mxd_inbox_item *copy = MXD_NEW(in->al, 1, mxd_inbox_item);
    if (!copy) return false;
    *copy = *item;
    if (mxd_queue_push(in->queue, copy)) return true;
    mxd_free(in->al, copy);
    return false;
}

void mxd_inbox_sink(void *inbox, const mxd_net_event *event) {
    mxd_inbox *in = inbox;
    mxd_inbox_item item = {.kind = MXD_INBOX_NET, .net = *event};
    mxd_blob_retain(event->head);
    mxd_blob_retain(event->payload);
    if (push(in, &item)) return;
    mxd_blob_release(event->head);
    mxd_blob_release(event->payload);
    if (mxd_queue_closed(in->queue)) return; /* closing: nobody listens any more */
    mxd_log(MXD_LOG_ERROR, "inbox_full", "peer=%s event=%d", event->peer, event->kind);
    if (in->transport) in->transport->ops->hangup(in->transport, event->link);
}

bool mxd_inbox_post(mxd_inbox *in, int what, void *ptr) {
    return push(in, &(mxd_inbox_item){.kind = MXD_INBOX_OWN, .what = what, .ptr = ptr});
}

void mxd_inbox_close(mxd_inbox *in) { mxd_queue_close(in->queue); }

bool mxd_inbox_closed(const mxd_inbox *in) { return mxd_queue_closed(in->queue); }

mxd_inbox_item *mxd_inbox_take(mxd_inbox *in, int64_t timeout_ms) {
    return mxd_queue_pop(in->queue, timeout_ms, 0);
}

void mxd_inbox_free(mxd_inbox *in, mxd_inbox_item *item) {
    if (item->kind == MXD_INBOX_NET) {
        mxd_blob_release(item->net.head);
        mxd_blob_release(item->net.payload);
    }
    mxd_free(in->al, item);
}
