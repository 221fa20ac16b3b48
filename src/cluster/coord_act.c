/* coord_act.c - what the core says, done. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/coord_private.h"

/* --------------------------------------------------------------------------------------- sending
 */

static mxd_buf *fresh(mxd_cluster *c) {
    mxd_buf_clear(&c->head);
    return &c->head;
}

/* What cannot be sent is lost with its link: DOWN follows and becomes an event. */
static void tell(mxd_cluster *c, mxd_link link, mxd_wire_kind kind) {
    mxd_err err = {0};
    mxd_rc rc = mxd_buf_rc(&c->head, "message", &err);
    if (!rc)
        rc = c->net->ops->send(c->net, link, kind, mxd_buf_str(&c->head), c->head.len, NULL, &err);
    if (rc) mxd_log(MXD_LOG_DEBUG, "send_failed", "kind=%d error=\"%s\"", kind, err.msg);
    if (rc && rc != MXD_E_PEER) c->net->ops->hangup(c->net, link);
}

static void hang_up_soon(mxd_cluster *c, mxd_link link) {
    if (c->n_hangups == MXD_COORD_HANGUPS) {
        c->net->ops->hangup(c->net, link);
        return;
    }
    c->hangups[c->n_hangups].link = link;
    c->hangups[c->n_hangups++].at_ms = mxd_now_ms() + MXD_COORD_LINGER_MS;
}

/* ---------------------------------------------------------------------------------- local workers
 */

static int child_of(const mxd_cluster *c, const char *id) {
    for (int i = 0; i < c->opts.local_workers; i++)
        if (strcmp(c->local_ids[i], id) == 0) return i;
    return -1;
}

static void spawn_failed(mxd_cluster *c, int node, uint64_t spawn, const mxd_err *err) {
    mxd_log(MXD_LOG_ERROR, "spawn_failed", "error=\"%s\"", err->msg);
    mxd_coord_start_failed(c, err->msg);
    mxd_coord_event e = {.kind = MXD_COORD_EXITED};
    e.exited = (mxd_core_exited){node, spawn};
    mxd_coord_give(c, &e);
}

static void spawn(mxd_cluster *c, const mxd_coord_action *a) {
    int i = child_of(c, a->text);
    MXD_ASSERT(i >= 0);
    mxd_children_end(&c->children[i], 1, 0); /* an older life of it, if any */
    mxd_err err = {0};
    mxd_buf boot;
    mxd_buf_init(&boot, c->al, 4 * MXD_PEM_MAX);
    mxd_rc rc = mxd_coord_bootstrap(c, a->text, &boot, &err);
    if (!rc && !c->opts.worker_program)
        rc = mxd_fail(&err, MXD_E_NOTFOUND, "where mlx-dist-worker is was not said");
    const char *argv[] = {c->opts.worker_program, "--bootstrap", NULL};
    if (!rc) rc = mxd_child_start(&c->children[i], argv, mxd_buf_str(&boot), boot.len, &err);
    mxd_buf_deinit(&boot);
    c->spawned[i].node = a->node;
    c->spawned[i].spawn = a->spawn;
    c->spawned[i].running = rc == MXD_OK;
    if (rc) spawn_failed(c, a->node, a->spawn, &err);
}

static void drop(mxd_cluster *c, const mxd_coord_action *a) {
    if (a->link) {
        mxd_wire_put_drop(fresh(c), a->rc, a->text);
        tell(c, a->link, MXD_WIRE_DROP);
        hang_up_soon(c, a->link);
    }
    if (a->node < 0) return;
    const mxd_node_view *v = mxd_coord_node(c->core, a->node);
    mxd_log(a->rc ? MXD_LOG_WARN : MXD_LOG_INFO, "node_dropped", "node=%s reason=\"%s\"",
            v->info.id, a->text);
    int i = child_of(c, v->info.id);
    if (i >= 0 && a->rc) mxd_child_kill(&c->children[i]); /* seen ended by the next tick */
}

/* --------------------------------------------------------------------------- plans and their data
 */

static void report_data_down(mxd_cluster *c, int node) {
    mxd_coord_event e = {.kind = MXD_COORD_NEIGHBOUR_DOWN,
                         .link = mxd_coord_node(c->core, node)->link};
    e.neighbour = (mxd_core_neighbour){c->data_epoch, MXD_CORE_COORDINATOR};
    mxd_coord_give(c, &e);
}

static void dial_first_stage(mxd_cluster *c, const mxd_coord_action *a) {
    c->n_held = 0;
    c->data_epoch = a->epoch;
    mxd_fan_dial(&c->data, c->net, a->stage->ranks, a->stage->n_ranks, !c->hub, MXD_COORD_DIAL_MS);
}

static void install(mxd_cluster *c, const mxd_coord_action *a) {
    const mxd_stage *s = a->stage;
    mxd_coord_weights_sources(c, a->node, a->link);
    mxd_wire_put_install(fresh(c), s);
    tell(c, a->link, MXD_WIRE_INSTALL);
    if (s->index == 0 && s->rank == 0) dial_first_stage(c, a);
    mxd_log(MXD_LOG_DEBUG, "install", "epoch=%llu node=%d layers=%d-%d rank=%d/%d",
            (unsigned long long)a->epoch, a->node, s->layer0, s->layer1, s->rank, s->n_ranks);
}

static bool send_step(mxd_cluster *c, const mxd_buf *head) {
    int missed = mxd_fan_send(&c->data, MXD_WIRE_STEP, mxd_buf_str(head), head->len, NULL);
    if (missed >= 0) report_data_down(c, missed);
    return missed < 0;
}

static void step(mxd_cluster *c, const mxd_coord_action *a) {
    bool now = mxd_fan_is_up(&c->data);
    bool later = c->data.n && !now && c->n_held < MXD_COORD_HELD_STEPS;
    mxd_buf *head = later ? &c->held[c->n_held] : &c->head;
    mxd_buf_clear(head);
    mxd_wire_put_step(head, a->epoch, a->step, a->runs, a->n_runs);
    if (later && !head->rc)
        c->n_held++;
    else if (!now || head->rc)
        report_data_down(c, a->node);
    else
        send_step(c, head);
}

void mxd_coord_data_up(mxd_cluster *c) {
    int n = c->n_held;
    c->n_held = 0;
    for (int i = 0; i < n; i++)
        if (!send_step(c, &c->held[i])) return;
}

void mxd_coord_data_down(mxd_cluster *c, int node) {
    c->n_held = 0;
    report_data_down(c, node);
}

/* --------------------------------------------------------------------------------------- requests
 */

static void refuse(mxd_cluster *c, const mxd_coord_action *a) {
    mxd_live_request *q = mxd_coord_request(c, a->request);
    MXD_ASSERT(q && c->answering && c->answering->request == q);
    mxd_fail(&c->answering->err, a->rc, "%s", a->text);
    if (!q->restoring) mxd_coord_request_free(c, q);
}

static void token(mxd_cluster *c, const mxd_coord_action *a) {
    mxd_live_request *q = mxd_coord_request(c, a->request);
    if (q && q->r.token) q->r.token(q->r.ctx, a->sampled, a->stop);
}

mxd_request_end mxd_coord_end(const mxd_coord_action *a) {
    static const mxd_end how[] = {[MXD_CORE_STOP] = MXD_END_STOP,
                                  [MXD_CORE_LENGTH] = MXD_END_LENGTH,
                                  [MXD_CORE_CANCELLED] = MXD_END_CANCELLED,
                                  [MXD_CORE_ERROR] = MXD_END_ERROR};
    return (mxd_request_end){.how = how[a->done.how],
                             .rc = a->done.rc,
                             .text = a->text ? a->text : "",
                             .n_cached = a->done.n_cached,
                             .queue_ms = a->done.queue_ms,
                             .prefill_ms = a->done.prefill_ms,
                             .decode_ms = a->done.decode_ms};
}

static void done(mxd_cluster *c, const mxd_coord_action *a) {
    mxd_live_request *q = mxd_coord_request(c, a->request);
    if (!q) return;
    const mxd_request_end end = mxd_coord_end(a);
    q->r.end(q->r.ctx, &end);
    mxd_coord_request_free(c, q);
}

/* ---------------------------------------------------------------------------------------- the list
 */

void mxd_coord_act(mxd_cluster *c, const mxd_coord_action *a) {
    switch (a->kind) {
    case MXD_ACT_WELCOME:
        c->n_failed_starts = 0;
        mxd_log(MXD_LOG_INFO, "node_joined", "node=%s", mxd_coord_node(c->core, a->node)->info.id);
        c->welcome.version = mxd_coord_node(c->core, a->node)->info.version;
        mxd_wire_put_welcome(fresh(c), &c->welcome);
        tell(c, a->link, MXD_WIRE_WELCOME);
        break;
    case MXD_ACT_DROP:
        drop(c, a);
        break;
    case MXD_ACT_SPAWN:
        spawn(c, a);
        break;
    case MXD_ACT_INSTALL:
        install(c, a);
        break;
    case MXD_ACT_UNINSTALL:
        mxd_wire_put_uninstall(fresh(c), a->epoch);
        tell(c, a->link, MXD_WIRE_UNINSTALL);
        break;
    case MXD_ACT_STEP:
        step(c, a);
        break;
    case MXD_ACT_JOURNAL: /* written before: mxd_coord_journal_step */
        break;
    case MXD_ACT_ACCEPTED:
        break;
    case MXD_ACT_REFUSED:
        refuse(c, a);
        break;
    case MXD_ACT_TOKEN:
        token(c, a);
        break;
    case MXD_ACT_DONE:
        done(c, a);
        break;
    case MXD_ACT_CANARY:
        if (a->node < 0)
            mxd_coord_canary_keep(c, &a->canary);
        else
            mxd_log(MXD_LOG_ERROR, "node_left_out", "node=%s reason=\"%s\"",
                    mxd_coord_node(c->core, a->node)->info.id, a->text);
        break;
    case MXD_ACT_CHANGED:
        mxd_coord_publish(c);
        break;
    case MXD_ACT_DRAINED:
        pthread_mutex_lock(&c->lock);
        c->drained = true;
        pthread_cond_broadcast(&c->changed);
        pthread_mutex_unlock(&c->lock);
        break;
    }
}
