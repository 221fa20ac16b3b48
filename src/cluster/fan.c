#include "cluster/fan.h"

#include <stdio.h>

#include "base/log.h"

void mxd_fan_drop(mxd_fan *f) {
    for (int i = 0; i < f->n; i++)
        if (f->to[i].link) f->net->ops->hangup(f->net, f->to[i].link);
    f->n = 0;
}

int mxd_fan_dial(mxd_fan *f, mxd_transport *net, const mxd_stage_peer *peers, int n, bool by_id,
                 int64_t timeout_ms) {
    mxd_fan_drop(f);
    f->net = net;
    for (int i = 0; i < n; i++) {
        mxd_err err = {0};
        const mxd_stage_peer *p = &peers[i];
        mxd_rc rc = net->ops->dial(net, p->address, by_id ? p->id : NULL, MXD_LANE_DATA, timeout_ms,
                                   &f->to[i].link, &err);
        if (rc) {
            mxd_log(MXD_LOG_WARN, "dial_failed", "node=%s error=\"%s\"", p->id, err.msg);
            mxd_fan_drop(f);
            return p->node;
        }
        f->to[i].up = false;
        f->to[i].node = p->node;
        snprintf(f->to[i].id, sizeof f->to[i].id, "%s", p->id);
        f->n = i + 1;
    }
    return -1;
}

bool mxd_fan_is_up(const mxd_fan *f) {
    for (int i = 0; i < f->n; i++)
        if (!f->to[i].up) return false;
    return f->n > 0;
}

bool mxd_fan_event(mxd_fan *f, const mxd_net_event *ev, int *lost) {
    *lost = -1;
    for (int i = 0; i < f->n; i++) {
        if (!f->to[i].link || f->to[i].link != ev->link) continue;
        f->to[i].up = ev->kind == MXD_NET_UP;
        if (ev->kind != MXD_NET_DOWN) return true;
        f->to[i].link = 0;
        *lost = f->to[i].node;
        return true;
    }
    return false;
}

int mxd_fan_send(mxd_fan *f, uint32_t message, const void *head, size_t head_bytes,
                 mxd_blob *payload) {
    for (int i = 0; i < f->n; i++) {
        mxd_err err = {0};
        mxd_rc rc = f->to[i].up ? f->net->ops->send(f->net, f->to[i].link, message, head,
                                                    head_bytes, payload, &err)
                                : mxd_fail(&err, MXD_E_PEER, "no link");
        if (!rc) continue;
        mxd_log(MXD_LOG_WARN, "frame_not_sent", "node=%s error=\"%s\"", f->to[i].id, err.msg);
        return f->to[i].node;
    }
    return -1;
}
