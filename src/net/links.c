#include "net/links.h"

enum { SLOT_BITS = 16 };
_Static_assert(MXD_MAX_LINKS < 1 << SLOT_BITS, "a slot number must fit");

void mxd_links_init(mxd_links *t, const mxd_alloc *al) { *t = (mxd_links){.al = al}; }

void mxd_links_deinit(mxd_links *t) {
    mxd_free(t->al, t->slots);
    *t = (mxd_links){.al = t->al};
}

static struct mxd_links_slot *slot_of(const mxd_links *t, mxd_link id) {
    size_t i = (size_t)(id & ((1u << SLOT_BITS) - 1));
    if (i == 0 || i > t->cap) return NULL;
    return t->slots[i - 1].id == id ? &t->slots[i - 1] : NULL;
}

static mxd_rc grow(mxd_links *t, mxd_err *err) {
    size_t cap = t->cap ? 2 * t->cap : 16;
    if (cap > MXD_MAX_LINKS)
        return mxd_fail(err, MXD_E_BUSY, "%d links are open, the most one node may have",
                        MXD_MAX_LINKS);
    struct mxd_links_slot *slots = mxd_renew(t->al, t->slots, cap, sizeof *slots);
    if (!slots) return mxd_fail(err, MXD_E_NOMEM, "no memory for %zu links", cap);
    t->slots = slots;
    t->cap = cap;
    return MXD_OK;
}

mxd_rc mxd_links_add(mxd_links *t, void *item, mxd_link *id, mxd_err *err) {
    if (t->n == t->cap) MXD_TRY(grow(t, err));
    size_t i = 0;
    while (t->slots[i].id) i++; /* n < cap: there is one */
    *id = ++t->generation << SLOT_BITS | (i + 1);
    t->slots[i] = (struct mxd_links_slot){*id, item};
    t->n++;
    return MXD_OK;
}

void *mxd_links_get(const mxd_links *t, mxd_link id) {
    const struct mxd_links_slot *s = slot_of(t, id);
    return id && s ? s->item : NULL;
}

void mxd_links_remove(mxd_links *t, mxd_link id) {
    struct mxd_links_slot *s = slot_of(t, id);
    if (!id || !s) return;
    *s = (struct mxd_links_slot){0};
    t->n--;
}
