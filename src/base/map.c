#include "base/map.h"

#include <string.h>
#include "base/rand.h"

static uint32_t hash_of(const mxd_map *m, const char *key, size_t len) {
    uint64_t h = m->seed ^ len;
    while (len >= 8) {
        uint64_t w;
        memcpy(&w, key, 8);
        h = mxd_mix64(h ^ w);
        key += 8;
        len -= 8;
    }
    uint64_t tail = 0;
    memcpy(&tail, key, len);
    return (uint32_t)mxd_mix64(h ^ tail);
}

/* The slot of the key, or the free slot where it belongs. */
static mxd_map_slot *find(const mxd_map *m, const char *key, size_t len, uint32_t hash) {
    for (size_t i = hash & (m->cap - 1);; i = (i + 1) & (m->cap - 1)) {
        mxd_map_slot *s = &m->slots[i];
        if (!s->key) return s;
        if (s->hash == hash && s->len == len && memcmp(s->key, key, len) == 0) return s;
    }
}

mxd_rc mxd_map_init(mxd_map *m, const mxd_alloc *al, size_t expect, mxd_err *err) {
    *m = (mxd_map){.al = al, .cap = 16};
    MXD_TRY(mxd_rand_secret(&m->seed, sizeof m->seed, err));
    while (m->cap < expect + expect / 2 && m->cap < (size_t)1 << 40) m->cap *= 2;
    m->slots = MXD_NEW(al, m->cap, mxd_map_slot);
    if (!m->slots) return mxd_fail(err, MXD_E_NOMEM, "no memory for a map of %zu entries", m->cap);
    return MXD_OK;
}

void mxd_map_deinit(mxd_map *m) {
    mxd_free(m->al, m->slots);
    *m = (mxd_map){0};
}

static bool grow(mxd_map *m) {
    mxd_map bigger = *m;
    bigger.cap *= 2;
    bigger.slots = MXD_NEW(m->al, bigger.cap, mxd_map_slot);
    if (!bigger.slots) return false;
    for (size_t i = 0; i < m->cap; i++) {
        const mxd_map_slot *s = &m->slots[i];
        if (s->key) *find(&bigger, s->key, s->len, s->hash) = *s;
    }
    mxd_free(m->al, m->slots);
    *m = bigger;
    return true;
}

mxd_rc mxd_map_put(mxd_map *m, const char *key, size_t len, uint64_t value, bool *was,
                   mxd_err *err) {
    if (len > UINT32_MAX) return mxd_fail(err, MXD_E_TOOBIG, "map key of %zu bytes", len);
    if ((m->n + 1) * 10 > m->cap * 7 && !grow(m))
        return mxd_fail(err, MXD_E_NOMEM, "no memory for a map of %zu entries", m->cap * 2);
    uint32_t hash = hash_of(m, key, len);
    mxd_map_slot *s = find(m, key, len, hash);
    if (was) *was = s->key != NULL;
    if (!s->key) m->n++;
    *s = (mxd_map_slot){key, (uint32_t)len, hash, value};
    return MXD_OK;
}

bool mxd_map_get(const mxd_map *m, const char *key, size_t len, uint64_t *value) {
    if (!m->n || len > UINT32_MAX) return false;
    const mxd_map_slot *s = find(m, key, len, hash_of(m, key, len));
    if (!s->key) return false;
    if (value) *value = s->value;
    return true;
}
