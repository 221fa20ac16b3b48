/* coord_weights.c - what other nodes need for having weights. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cluster/coord_private.h"
#include "cluster/wire_weights.h"

void mxd_coord_weights_open(mxd_cluster *c) {
    mxd_err err = {0};
    mxd_welcome *w = &c->welcome;
    mxd_rc rc = mxd_weights_id(c->al, c->opts.folder, w->weights_id, &err);
    if (!rc) rc = mxd_giver_offer(c->giver, w->weights_id, c->opts.folder, NULL, &err);
    if (!rc) return;
    memset(w->weights_id, 0, sizeof w->weights_id);
    mxd_log(MXD_LOG_WARN, "weights_not_given", "reason=\"%s\"", err.msg);
}

void mxd_coord_weights_sources(mxd_cluster *c, int node, mxd_link link) {
    mxd_wire_sources s = {0};
    mxd_err err = {0};
    if (!c->opts.listen) return;
    for (int i = 0; i < MXD_MAX_NODES; i++) {
        const mxd_node_view *v = mxd_coord_node(c->core, i);
        bool lives = v && v->link && v->info.address[0];
        if (!lives || i == node) continue;
        mxd_source *to = &s.list[s.n++];
        snprintf(to->node, sizeof to->node, "%s", v->info.id);
        snprintf(to->address, sizeof to->address, "%s", v->info.address);
    }
    mxd_buf_clear(&c->head);
    mxd_wire_put_sources(&c->head, &s);
    mxd_rc rc = mxd_buf_rc(&c->head, "message", &err);
    if (!rc)
        rc = c->net->ops->send(c->net, link, MXD_WIRE_SOURCES, mxd_buf_str(&c->head), c->head.len,
                               NULL, &err);
    if (rc) mxd_log(MXD_LOG_DEBUG, "send_failed", "kind=sources error=\"%s\"", err.msg);
}
