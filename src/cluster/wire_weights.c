#include "cluster/wire_weights.h"

#include "cluster/wire_private.h"
#include "weights.pb-c.h"

void mxd_wire_put_sources(mxd_buf *out, const mxd_wire_sources *m) {
    PB(Source) one[MXD_MAX_NODES], *at[MXD_MAX_NODES];
    PB(Sources) s;
    pb(sources__init)(&s);
    s.n_nodes = (size_t)m->n;
    s.nodes = at;
    for (int i = 0; i < m->n; i++) {
        pb(source__init)(at[i] = &one[i]);
        one[i].node = (char *)m->list[i].node;
        one[i].address = (char *)m->list[i].address;
    }
    pack(out, &s.base);
}

mxd_rc mxd_wire_get_sources(mxd_wire_sources *m, mxd_arena *a, const void *p, size_t n,
                            mxd_err *err) {
    UNPACK(s, Sources, sources);
    RANGE(s->n_nodes, MXD_MAX_NODES, "sources");
    m->n = (int)s->n_nodes;
    for (int i = 0; i < m->n; i++) {
        TEXT(m->list[i].node, s->nodes[i]->node, "node id");
        TEXT(m->list[i].address, s->nodes[i]->address, "address");
    }
    return MXD_OK;
}

/* ------------------------------------------------------------------------------------- requests */

/* What both a request and its answer name; the values are those of the message. */
static mxd_rc get_place(uint32_t what, uint64_t offset, uint32_t length, mxd_err *err) {
    if (what < MXD_WANT_LIST || what > MXD_WANT_DATA)
        return mxd_fail(err, MXD_E_FORMAT, "weights of kind %u", what);
    if (what == MXD_WANT_LIST) return MXD_OK;
    RANGE(length, what == MXD_WANT_SUMS ? MXD_MAX_SUMS : MXD_WEIGHTS_PIECE, "length");
    if (!length || offset % MXD_WEIGHTS_PIECE)
        return mxd_fail(err, MXD_E_FORMAT, "weights of length %u at %llu", length,
                        (unsigned long long)offset);
    return MXD_OK;
}

void mxd_wire_put_want(mxd_buf *out, const mxd_wire_want *m) {
    PB(Want) w;
    pb(want__init)(&w);
    w.id = (ProtobufCBinaryData){sizeof m->id, (uint8_t *)m->id};
    w.what = m->what;
    w.file = m->file;
    w.offset = m->offset;
    w.length = m->length;
    pack(out, &w.base);
}

mxd_rc mxd_wire_get_want(mxd_wire_want *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(w, Want, want);
    if (w->id.len != sizeof m->id)
        return mxd_fail(err, MXD_E_FORMAT, "a want with an id of %zu bytes", w->id.len);
    MXD_TRY(get_place(w->what, w->offset, w->length, err));
    *m = (mxd_wire_want){
        .what = (mxd_want_what)w->what, .file = w->file, .offset = w->offset, .length = w->length};
    memcpy(m->id, w->id.data, sizeof m->id);
    return MXD_OK;
}

/* -------------------------------------------------------------------------------------- answers */

typedef struct file_parts { /* of one list, on the heap */
    PB(File) one[MXD_WEIGHTS_MAX_FILES];
    PB(File) * at[MXD_WEIGHTS_MAX_FILES];
} file_parts;

void mxd_wire_put_give(mxd_buf *out, const mxd_wire_give *m) {
    PB(Give) g;
    pb(give__init)(&g);
    g.what = m->what;
    g.file = m->file;
    g.offset = m->offset;
    g.length = m->length;
    g.rc = (uint32_t)m->rc;
    g.text = (char *)m->text;
    if (m->sums) g.sums = (ProtobufCBinaryData){32 * m->length, (uint8_t *)m->sums};
    file_parts *f = m->n_files ? MXD_NEW(out->al, 1, file_parts) : NULL;
    if (m->n_files && !f) {
        out->rc = MXD_E_NOMEM;
        return;
    }
    for (int i = 0; i < m->n_files; i++) {
        pb(file__init)(f->at[i] = &f->one[i]);
        f->one[i].name = (char *)m->files[i].name;
        f->one[i].bytes = m->files[i].bytes;
        f->one[i].head = m->files[i].head;
    }
    g.n_files = (size_t)m->n_files;
    g.files = f ? f->at : NULL;
    pack(out, &g.base);
    mxd_free(out->al, f);
}

static mxd_rc get_files(mxd_wire_give *m, mxd_arena *a, const PB(Give) * g, mxd_err *err) {
    RANGE(g->n_files, MXD_WEIGHTS_MAX_FILES, "files");
    mxd_weights_file *files = MXD_TAKE(a, g->n_files ? g->n_files : 1, mxd_weights_file);
    if (!files) return mxd_fail(err, MXD_E_FORMAT, "a list of files that is too long");
    for (size_t i = 0; i < g->n_files; i++) {
        TEXT(files[i].name, g->files[i]->name, "file name");
        files[i].bytes = g->files[i]->bytes;
        files[i].head = g->files[i]->head;
    }
    m->files = files;
    m->n_files = (int)g->n_files;
    return mxd_weights_check_files(files, m->n_files, err);
}

mxd_rc mxd_wire_get_give(mxd_wire_give *m, mxd_arena *a, const void *p, size_t n, mxd_err *err) {
    UNPACK(g, Give, give);
    MXD_TRY(get_place(g->what, g->offset, g->length, err));
    *m = (mxd_wire_give){.what = (mxd_want_what)g->what,
                         .file = g->file,
                         .offset = g->offset,
                         .length = g->length,
                         .rc = g->rc < MXD_RC_COUNT ? (mxd_rc)g->rc : MXD_E_INTERNAL};
    TEXT(m->text, g->text, "error text");
    if (m->rc) return MXD_OK;
    if (m->what == MXD_WANT_LIST) return get_files(m, a, g, err);
    if (m->what == MXD_WANT_SUMS && g->sums.len != 32 * (size_t)m->length)
        return mxd_fail(err, MXD_E_FORMAT, "%zu bytes of sums where %u were asked for", g->sums.len,
                        m->length);
    m->sums = g->sums.data;
    return MXD_OK;
}
