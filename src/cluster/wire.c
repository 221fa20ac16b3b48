/* wire.c - between the structs of wire.h and protobuf-c's. */
#include "cluster/wire.h"
#include "cluster/weights.h"

#include "cluster.pb-c.h"
#include "cluster/wire_private.h"

/* ---------------------------------------------------------------------------------- membership */

void mxd_wire_put_hello(mxd_buf *out, const mxd_node_info *m) {
    PB(Hello) h;
    pb(hello__init)(&h);
    h.version = MXD_PROTOCOL_VERSION;
    h.oldest = MXD_PROTOCOL_OLDEST;
    h.node = (char *)m->id;
    h.incarnation = m->incarnation;
    h.name = (char *)m->name;
    h.host = (char *)m->host;
    h.pid = (uint32_t)m->pid;
    h.backend = (char *)m->backend;
    h.memory_total = m->memory_total;
    h.memory_free = m->memory_free;
    h.bandwidth = m->bandwidth;
    h.ops = m->ops;
    h.data_address = (char *)m->address;
    h.local = m->local;
    h.epoch = m->epoch;
    PB(Paces) paces;
    pb(paces__init)(&paces);
    paces.near_bytes_per_s = m->paces.near_bytes_per_s;
    paces.tile_s = m->paces.tile_s;
    paces.float_ops_per_s = m->paces.float_ops_per_s;
    paces.row_ops_per_s = m->paces.row_ops_per_s;
    paces.values_per_s = m->paces.values_per_s;
    paces.region_s = m->paces.region_s;
    paces.handoff_s = m->paces.handoff_s;
    paces.duty = m->paces.duty;
    paces.pause_s = m->paces.pause_s;
    h.paces = &paces;
    h.link_us = m->link_us;
    h.link_bandwidth = m->link_bandwidth;
    h.cpus = m->cpus;
    h.host_cpus = m->host_cpus;
    pack(out, &h.base);
}

uint32_t mxd_wire_version(mxd_wire_versions a, mxd_wire_versions b) {
    uint32_t v = a.newest < b.newest ? a.newest : b.newest;
    return v >= a.oldest && v >= b.oldest ? v : 0;
}

static uint32_t common_version(uint32_t oldest, uint32_t newest) {
    return mxd_wire_version((mxd_wire_versions){MXD_PROTOCOL_OLDEST, MXD_PROTOCOL_VERSION},
                            (mxd_wire_versions){oldest, newest});
}

/* A measured rate: anything absurd counts as unknown. */
static double rate(double v) { return v >= 0 && v < 1e21 ? v : 0; }

/* Seconds or microseconds: likewise. */
static double span(double v) { return v >= 0 && v < 1e9 ? v : 0; }

static mxd_paces get_paces(const PB(Paces) * p) {
    if (!p) return (mxd_paces){0};
    return (mxd_paces){.near_bytes_per_s = rate(p->near_bytes_per_s),
                       .tile_s = span(p->tile_s),
                       .float_ops_per_s = rate(p->float_ops_per_s),
                       .row_ops_per_s = rate(p->row_ops_per_s),
                       .values_per_s = rate(p->values_per_s),
                       .region_s = span(p->region_s),
                       .handoff_s = span(p->handoff_s),
                       .duty = p->duty > 0 && p->duty <= 1 ? p->duty : 0,
                       .pause_s = span(p->pause_s)};
}

mxd_rc mxd_wire_get_hello(mxd_node_info *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(h, Hello, hello);
    uint32_t version = common_version(h->oldest ? h->oldest : h->version, h->version);
    if (!version)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the node speaks protocol versions %u to %u, this program %d to %d: update "
                        "the older one",
                        h->oldest ? h->oldest : h->version, h->version, MXD_PROTOCOL_OLDEST,
                        MXD_PROTOCOL_VERSION);
    RANGE(h->epoch, MXD_CORE_MAX_EPOCH, "epoch");
    *m = (mxd_node_info){.version = version,
                         .incarnation = h->incarnation,
                         .epoch = h->epoch,
                         .pid = (int64_t)h->pid,
                         .memory_total = h->memory_total,
                         .memory_free = h->memory_free,
                         .bandwidth = rate(h->bandwidth),
                         .ops = rate(h->ops),
                         .paces = get_paces(h->paces),
                         .link_us = span(h->link_us),
                         .link_bandwidth = rate(h->link_bandwidth),
                         .cpus = rate(h->cpus),
                         .host_cpus = rate(h->host_cpus),
                         .local = h->local};
    TEXT(m->id, h->node, "node id");
    TEXT(m->name, h->name, "node name");
    TEXT(m->host, h->host, "host name");
    TEXT(m->backend, h->backend, "backend");
    TEXT(m->address, h->data_address, "address");
    if (!m->id[0]) return mxd_fail(err, MXD_E_FORMAT, "hello without a node id");
    return MXD_OK;
}

void mxd_wire_put_welcome(mxd_buf *out, const mxd_welcome *m) {
    PB(Welcome) w;
    pb(welcome__init)(&w);
    w.model = (char *)m->model;
    w.folder = (char *)m->folder;
    w.tensors_hash = (ProtobufCBinaryData){sizeof m->tensors_hash, (uint8_t *)m->tensors_hash};
    if (mxd_weights_known(m->weights_id))
        w.weights_id = (ProtobufCBinaryData){sizeof m->weights_id, (uint8_t *)m->weights_id};
    w.ctx = (uint32_t)m->ctx;
    w.slots = (uint32_t)m->slots;
    w.max_rows = (uint32_t)m->max_rows;
    w.activations = (uint32_t)m->activations;
    w.threads = (uint32_t)m->threads;
    w.kv = (uint32_t)m->kv;
    w.version = m->version;
    w.backend = (char *)m->backend;
    w.kernels = (char *)m->kernels;
    pack(out, &w.base);
}

mxd_rc mxd_wire_get_welcome(mxd_welcome *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(w, Welcome, welcome);
    RANGE(w->ctx, MXD_MAX_CONTEXT, "ctx");
    RANGE(w->slots, MXD_MAX_SEQS, "slots");
    RANGE(w->max_rows, MXD_MAX_STEP_TOKENS, "max_rows");
    RANGE(w->activations, 2, "activations");
    RANGE(w->threads, MXD_MAX_THREADS, "threads");
    RANGE(w->kv, MXD_KV_Q8, "type of K and V");
    if (!common_version(w->version, w->version))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "the coordinator wants protocol version %u, this program speaks %d to %d: "
                        "update the older one",
                        w->version, MXD_PROTOCOL_OLDEST, MXD_PROTOCOL_VERSION);
    if (!w->ctx || !w->slots || !w->max_rows || w->tensors_hash.len != sizeof m->tensors_hash)
        return mxd_fail(err, MXD_E_FORMAT, "welcome without context, slots, rows or hash");
    *m = (mxd_welcome){.ctx = (int)w->ctx,
                       .slots = (int)w->slots,
                       .max_rows = (int)w->max_rows,
                       .activations = (int)w->activations,
                       .threads = (int)w->threads,
                       .kv = (int)w->kv,
                       .version = w->version};
    memcpy(m->tensors_hash, w->tensors_hash.data, sizeof m->tensors_hash);
    if (w->weights_id.len != 0 && w->weights_id.len != sizeof m->weights_id)
        return mxd_fail(err, MXD_E_FORMAT, "welcome with weights_id of %zu bytes",
                        w->weights_id.len);
    if (w->weights_id.len) memcpy(m->weights_id, w->weights_id.data, sizeof m->weights_id);
    TEXT(m->model, w->model, "model name");
    TEXT(m->folder, w->folder, "model folder");
    TEXT(m->backend, w->backend, "backend");
    TEXT(m->kernels, w->kernels, "kernels");
    return MXD_OK;
}

/* --------------------------------------------------------------------------------------- plans */

/* The generated structs of a list of nodes, in one place on the stack. */
typedef struct peer_parts {
    PB(Peer) peer[MXD_MAX_RANKS], *at[MXD_MAX_RANKS];
} peer_parts;

static PB(Peer) *
    *fill_peers(peer_parts *parts, const mxd_stage_peer *from, const double *share, int n) {
    for (int k = 0; k < n; k++) {
        PB(Peer) *o = parts->at[k] = &parts->peer[k];
        pb(peer__init)(o);
        o->node = (uint32_t)from[k].node;
        o->id = (char *)from[k].id;
        o->address = (char *)from[k].address;
        if (share) o->share = share[k];
    }
    return parts->at;
}

void mxd_wire_put_install(mxd_buf *out, const mxd_stage *m) {
    peer_parts ranks, next;
    PB(Install) i;
    pb(install__init)(&i);
    i.epoch = m->epoch;
    i.stage = (uint32_t)m->index;
    i.n_stages = (uint32_t)m->n_stages;
    i.layer0 = (uint32_t)m->layer0;
    i.layer1 = (uint32_t)m->layer1;
    i.embed = m->embed;
    i.head = m->head;
    i.prev = m->prev;
    i.rank = (uint32_t)m->rank;
    i.n_ranks = (size_t)m->n_ranks;
    i.ranks = fill_peers(&ranks, m->ranks, m->share, m->n_ranks);
    i.n_next = (size_t)m->n_next;
    i.next = fill_peers(&next, m->next, NULL, m->n_next);
    pack(out, &i.base);
}

static bool is_node(int node) { return node >= MXD_CORE_COORDINATOR && node < MXD_MAX_NODES; }

static mxd_rc get_peers(mxd_stage_peer *out, double *share, PB(Peer) * *from, size_t n,
                        mxd_err *err) {
    for (size_t k = 0; k < n; k++) {
        RANGE(from[k]->node, MXD_MAX_NODES - 1, "node");
        out[k].node = (int)from[k]->node;
        TEXT(out[k].id, from[k]->id, "node id");
        TEXT(out[k].address, from[k]->address, "address");
        if (!share) continue;
        share[k] = from[k]->share;
        if (!(share[k] >= 0 && share[k] <= 1))
            return mxd_fail(err, MXD_E_FORMAT, "rank %zu has no share from 0 to 1", k);
    }
    return MXD_OK;
}

mxd_rc mxd_wire_get_install(mxd_stage *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(i, Install, install);
    RANGE(i->epoch, MXD_CORE_MAX_EPOCH, "epoch");
    RANGE(i->layer1, MXD_MAX_LAYERS, "layer1");
    RANGE(i->n_stages, MXD_MAX_NODES, "n_stages");
    RANGE(i->n_ranks, MXD_MAX_RANKS, "ranks of a stage");
    RANGE(i->n_next, MXD_MAX_RANKS, "ranks of the next stage");
    if (i->layer0 >= i->layer1 || i->stage >= i->n_stages || !is_node(i->prev))
        return mxd_fail(err, MXD_E_FORMAT, "install of layers %u to %u as stage %u of %u, after %d",
                        i->layer0, i->layer1, i->stage, i->n_stages, i->prev);
    if (i->rank >= i->n_ranks)
        return mxd_fail(err, MXD_E_FORMAT, "install as rank %u of %zu", i->rank, i->n_ranks);
    *m = (mxd_stage){.epoch = i->epoch,
                     .index = (int)i->stage,
                     .n_stages = (int)i->n_stages,
                     .layer0 = (int)i->layer0,
                     .layer1 = (int)i->layer1,
                     .embed = i->embed,
                     .head = i->head,
                     .prev = i->prev,
                     .rank = (int)i->rank,
                     .n_ranks = (int)i->n_ranks,
                     .n_next = (int)i->n_next};
    MXD_TRY(get_peers(m->ranks, m->share, i->ranks, i->n_ranks, err));
    return get_peers(m->next, NULL, i->next, i->n_next, err);
}

void mxd_wire_put_uninstall(mxd_buf *out, uint64_t epoch) {
    PB(Uninstall) u;
    pb(uninstall__init)(&u);
    u.epoch = epoch;
    pack(out, &u.base);
}

mxd_rc mxd_wire_get_uninstall(uint64_t *epoch, mxd_arena *a, const void *p, size_t n,
                              mxd_err *err) {
    UNPACK(u, Uninstall, uninstall);
    *epoch = u->epoch;
    return MXD_OK;
}

void mxd_wire_put_ready(mxd_buf *out, const mxd_core_ready *m) {
    PB(Ready) r;
    pb(ready__init)(&r);
    r.epoch = m->epoch;
    r.bytes = m->bytes;
    r.determinism = (char *)m->determinism;
    pack(out, &r.base);
}

mxd_rc mxd_wire_get_ready(mxd_core_ready *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(r, Ready, ready);
    *m = (mxd_core_ready){.epoch = r->epoch, .bytes = r->bytes};
    TEXT(m->determinism, r->determinism, "determinism");
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------ failures */

static mxd_rc known_rc(uint32_t rc) {
    return rc < MXD_RC_COUNT ? (mxd_rc)rc : MXD_E_INTERNAL; /* of a newer version */
}

/* Texts are for people: a longer one is cut where a character begins. */
static char *clip(char dst[MXD_CORE_TEXT], const char *text) {
    size_t n = strnlen(text, MXD_CORE_TEXT);
    if (n == MXD_CORE_TEXT) n--;
    if (text[n])
        while (n && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
    memcpy(dst, text, n);
    dst[n] = '\0';
    return dst;
}

void mxd_wire_put_drop(mxd_buf *out, mxd_rc rc, const char *text) {
    char cut[MXD_CORE_TEXT];
    PB(Drop) d;
    pb(drop__init)(&d);
    d.rc = (uint32_t)rc;
    d.text = clip(cut, text);
    pack(out, &d.base);
}

mxd_rc mxd_wire_get_drop(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(d, Drop, drop);
    *m = (mxd_wire_failure){.rc = known_rc(d->rc)};
    TEXT(m->text, d->text, "error text");
    return MXD_OK;
}

void mxd_wire_put_failed(mxd_buf *out, uint64_t epoch, mxd_rc rc, const char *text) {
    char cut[MXD_CORE_TEXT];
    PB(Failed) f;
    pb(failed__init)(&f);
    f.epoch = epoch;
    f.rc = (uint32_t)rc;
    f.text = clip(cut, text);
    pack(out, &f.base);
}

mxd_rc mxd_wire_get_failed(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n,
                           mxd_err *err) {
    UNPACK(f, Failed, failed);
    *m = (mxd_wire_failure){.epoch = f->epoch, .rc = known_rc(f->rc)};
    if (!m->rc) m->rc = MXD_E_INTERNAL;
    TEXT(m->text, f->text, "error text");
    return MXD_OK;
}

void mxd_wire_put_nack(mxd_buf *out, uint64_t epoch, uint64_t step, mxd_rc rc, const char *text) {
    char cut[MXD_CORE_TEXT];
    PB(Nack) f;
    pb(nack__init)(&f);
    f.epoch = epoch;
    f.step = step;
    f.rc = (uint32_t)rc;
    f.text = clip(cut, text);
    pack(out, &f.base);
}

mxd_rc mxd_wire_get_nack(mxd_wire_failure *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(f, Nack, nack);
    *m = (mxd_wire_failure){.epoch = f->epoch, .step = f->step, .rc = known_rc(f->rc)};
    if (!m->rc) m->rc = MXD_E_INTERNAL;
    TEXT(m->text, f->text, "error text");
    return MXD_OK;
}

/* ---------------------------------------------------------------------------------------- life */

void mxd_wire_put_heartbeat(mxd_buf *out, const mxd_core_beat *m) {
    PB(Heartbeat) h;
    pb(heartbeat__init)(&h);
    h.epoch = m->epoch;
    h.last_step = m->last_step;
    h.step_age_ms = (uint64_t)m->step_age_ms;
    h.memory_used = m->rss;
    h.step_ms = m->step_ms;
    h.row_ms = m->row_ms;
    h.load_done = m->load_done;
    h.load_total = m->load_total;
    h.waits = (uint32_t)m->waits;
    pack(out, &h.base);
}

mxd_rc mxd_wire_get_heartbeat(mxd_core_beat *m, mxd_arena *a, const void *p, size_t n,
                              mxd_err *err) {
    UNPACK(h, Heartbeat, heartbeat);
    RANGE(h->step_age_ms, INT64_MAX, "step age");
    RANGE(h->waits, MXD_MAX_NODES, "node that is waited for");
    *m = (mxd_core_beat){.epoch = h->epoch,
                         .last_step = h->last_step,
                         .step_age_ms = (int64_t)h->step_age_ms,
                         .rss = h->memory_used,
                         .load_done = h->load_done,
                         .load_total = h->load_total,
                         .step_ms = (float)rate((double)h->step_ms),
                         .row_ms = (float)span((double)h->row_ms),
                         .waits = (int)h->waits};
    return MXD_OK;
}

void mxd_wire_put_neighbour_down(mxd_buf *out, const mxd_core_neighbour *m) {
    PB(NeighbourDown) d;
    pb(neighbour_down__init)(&d);
    d.epoch = m->epoch;
    d.node = m->node;
    pack(out, &d.base);
}

mxd_rc mxd_wire_get_neighbour_down(mxd_core_neighbour *m, mxd_arena *a, const void *p, size_t n,
                                   mxd_err *err) {
    UNPACK(d, NeighbourDown, neighbour_down);
    if (!is_node(d->node)) return mxd_fail(err, MXD_E_FORMAT, "neighbour %d", d->node);
    *m = (mxd_core_neighbour){.epoch = d->epoch, .node = d->node};
    return MXD_OK;
}

void mxd_wire_put_leave(mxd_buf *out) {
    PB(Leave) l;
    pb(leave__init)(&l);
    pack(out, &l.base);
}

/* --------------------------------------------------------------------------------------- steps */

/* Biases travel as they lie in memory: thousands of them in one step cost no structs. */
_Static_assert(sizeof(mxd_logit_bias) == 8, "a bias is two words on the wire");

/* The generated structs of one step, in one place on the stack of put_step. */
typedef struct step_parts {
    PB(Run) run[MXD_MAX_STEP_RUNS];
    PB(Run) * run_at[MXD_MAX_STEP_RUNS];
    PB(Sampling) how[MXD_MAX_STEP_RUNS];
    uint32_t ids[MXD_MAX_STEP_TOKENS];
} step_parts;

static void fill_sampling(PB(Sampling) * o, const mxd_sampling *h) {
    pb(sampling__init)(o);
    o->temperature = h->temperature;
    o->top_p = h->top_p;
    o->min_p = h->min_p;
    o->top_k = (uint32_t)h->top_k;
    o->presence = h->presence;
    o->frequency = h->frequency;
    o->repetition = h->repetition;
    o->seed = h->seed;
    o->choice = h->choice;
    o->n_prompt = h->n_prompt;
    o->logprobs = h->logprobs;
    o->n_top = h->n_top;
    o->bias = (ProtobufCBinaryData){h->n_bias * sizeof *h->bias, (uint8_t *)h->bias};
}

void mxd_wire_put_step(mxd_buf *out, uint64_t epoch, uint64_t step, const mxd_core_run *runs,
                       int n_runs) {
    step_parts s; /* about 20 KB */
    PB(Step) o;
    pb(step__init)(&o);
    o.epoch = epoch;
    o.step = step;
    for (int i = 0; i < n_runs; i++) {
        const mxd_core_run *r = &runs[i];
        PB(Run) *w = s.run_at[i] = &s.run[i];
        pb(run__init)(w);
        w->request = r->request;
        w->slot = r->slot;
        w->pos = r->pos;
        w->n = r->n;
        w->keep = r->keep;
        if (r->begin) {
            w->begin_with = r->from + 1u;
            w->from_request = r->from_request;
        }
        MXD_ASSERT(o.n_ids + r->n <= MXD_MAX_STEP_TOKENS);
        for (int k = 0; k < r->n; k++) s.ids[o.n_ids++] = (uint32_t)r->ids[k];
        if (!r->sample) continue;
        w->sampling = &s.how[i];
        fill_sampling(w->sampling, r->how);
    }
    o.n_runs = (size_t)n_runs;
    o.runs = s.run_at;
    o.ids = s.ids;
    pack(out, &o.base);
}

/* The biases stay where protobuf-c unpacked them: in the arena, whose pieces are aligned. */
static mxd_rc get_sampling(mxd_sampling *o, const PB(Sampling) * h, mxd_err *err) {
    size_t n_bias = h->bias.len / sizeof(mxd_logit_bias);
    RANGE(n_bias, MXD_MAX_LOGIT_BIAS, "logit biases");
    if (h->bias.len % sizeof(mxd_logit_bias))
        return mxd_fail(err, MXD_E_FORMAT, "logit biases of %zu bytes", h->bias.len);
    RANGE(h->n_top, MXD_MAX_TOP_LOGPROBS, "n_top");
    RANGE(h->top_k, INT32_MAX, "top_k");
    *o = (mxd_sampling){.temperature = h->temperature,
                        .top_p = h->top_p,
                        .min_p = h->min_p,
                        .top_k = (int32_t)h->top_k,
                        .presence = h->presence,
                        .frequency = h->frequency,
                        .repetition = h->repetition,
                        .seed = h->seed,
                        .choice = h->choice,
                        .n_prompt = h->n_prompt,
                        .logprobs = h->logprobs,
                        .n_top = (uint8_t)h->n_top,
                        .n_bias = (uint16_t)n_bias};
    if (n_bias) o->bias = (const mxd_logit_bias *)(const void *)h->bias.data;
    return MXD_OK;
}

/* Run i of the message; its ids begin at row. */
static mxd_rc get_run(mxd_wire_step *m, int i, int row, const PB(Run) * w, mxd_err *err) {
    RANGE(w->slot, MXD_MAX_SEQS - 1, "slot");
    RANGE(w->pos, MXD_MAX_CONTEXT, "position");
    RANGE(w->begin_with, MXD_MAX_SEQS, "slot to begin with");
    if (!w->n || w->n > (uint32_t)(m->n_rows - row))
        return mxd_fail(err, MXD_E_FORMAT, "run of %u rows where %d are left", w->n,
                        m->n_rows - row);
    m->runs[i] = (mxd_core_run){.request = w->request,
                                .pos = w->pos,
                                .slot = (uint16_t)w->slot,
                                .n = (uint16_t)w->n,
                                .sample = w->sampling != NULL,
                                .begin = w->begin_with > 0,
                                .keep = w->keep,
                                .from = (uint16_t)(w->begin_with ? w->begin_with - 1 : 0),
                                .from_request = w->begin_with ? w->from_request : 0,
                                .ids = m->ids + row,
                                .how = &m->how[i]};
    m->how[i] = (mxd_sampling){0};
    return w->sampling ? get_sampling(&m->how[i], w->sampling, err) : MXD_OK;
}

mxd_rc mxd_wire_get_step(mxd_wire_step *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(o, Step, step);
    RANGE(o->n_runs, MXD_MAX_STEP_RUNS, "runs of a step");
    RANGE(o->n_ids, MXD_MAX_STEP_TOKENS, "rows of a step");
    m->epoch = o->epoch;
    m->step = o->step;
    m->n_runs = (int)o->n_runs;
    m->n_rows = (int)o->n_ids;
    for (size_t i = 0; i < o->n_ids; i++) {
        RANGE(o->ids[i], INT32_MAX, "token id");
        m->ids[i] = (int32_t)o->ids[i];
    }
    int row = 0;
    for (int i = 0; i < m->n_runs; i++) {
        MXD_TRY(get_run(m, i, row, o->runs[i], err));
        row += m->runs[i].n;
    }
    if (!m->n_runs || row != m->n_rows)
        return mxd_fail(err, MXD_E_FORMAT, "step of %d runs with %d rows and %d ids", m->n_runs,
                        row, m->n_rows);
    return MXD_OK;
}

void mxd_wire_put_result(mxd_buf *out, const mxd_core_result *m) {
    PB(Token) token[MXD_MAX_STEP_RUNS], *at[MXD_MAX_STEP_RUNS];
    PB(Result) o;
    pb(result__init)(&o);
    o.epoch = m->epoch;
    o.step = m->step;
    o.n_tokens = (size_t)m->n;
    o.tokens = at;
    for (int i = 0; i < m->n; i++) {
        const struct mxd_core_result_run *t = &m->runs[i];
        PB(Token) *w = at[i] = &token[i];
        pb(token__init)(w);
        w->request = t->request;
        w->pos = t->pos;
        w->token = (uint32_t)t->sampled.token;
        w->logprob = t->sampled.logprob;
        w->n_top_id = w->n_top_logprob = t->sampled.n_top;
        w->top_id = (uint32_t *)t->sampled.top_id; /* ids are not negative */
        w->top_logprob = (float *)t->sampled.top_logprob;
    }
    pack(out, &o.base);
}

mxd_rc mxd_wire_get_result(mxd_wire_result *m, mxd_arena *a, const void *p, size_t n,
                           mxd_err *err) {
    UNPACK(o, Result, result);
    RANGE(o->n_tokens, MXD_MAX_STEP_RUNS, "tokens of a result");
    m->result = (mxd_core_result){o->epoch, o->step, (int)o->n_tokens, m->runs};
    for (size_t i = 0; i < o->n_tokens; i++) {
        const PB(Token) *w = o->tokens[i];
        RANGE(w->n_top_id, MXD_MAX_TOP_LOGPROBS, "top tokens");
        RANGE(w->token, INT32_MAX, "token id");
        if (w->n_top_id != w->n_top_logprob)
            return mxd_fail(err, MXD_E_FORMAT, "result with %zu ids and %zu log probabilities",
                            w->n_top_id, w->n_top_logprob);
        struct mxd_core_result_run *t = &m->runs[i];
        *t = (struct mxd_core_result_run){.request = w->request, .pos = w->pos};
        t->sampled.token = (int32_t)w->token;
        t->sampled.logprob = w->logprob;
        t->sampled.n_top = (uint8_t)w->n_top_id;
        for (size_t k = 0; k < w->n_top_id; k++) {
            RANGE(w->top_id[k], INT32_MAX, "token id");
            t->sampled.top_id[k] = (int32_t)w->top_id[k];
            t->sampled.top_logprob[k] = w->top_logprob[k];
        }
    }
    return MXD_OK;
}

/* -------------------------------------------------------------------------------- certificates */

void mxd_wire_put_renew(mxd_buf *out, const char *csr_pem) {
    PB(Renew) r;
    pb(renew__init)(&r);
    r.request = (char *)(uintptr_t)csr_pem;
    pack(out, &r.base);
}

mxd_rc mxd_wire_get_renew(const char **csr_pem, mxd_arena *a, const void *p, size_t n,
                          mxd_err *err) {
    UNPACK(r, Renew, renew);
    *csr_pem = r->request;
    return MXD_OK;
}

void mxd_wire_put_certificate(mxd_buf *out, const char *cert_pem) {
    PB(Certificate) c;
    pb(certificate__init)(&c);
    c.cert = (char *)(uintptr_t)cert_pem;
    pack(out, &c.base);
}

mxd_rc mxd_wire_get_certificate(const char **cert_pem, mxd_arena *a, const void *p, size_t n,
                                mxd_err *err) {
    UNPACK(c, Certificate, certificate);
    *cert_pem = c->cert;
    return MXD_OK;
}
