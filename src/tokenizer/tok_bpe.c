#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

/* Byte pair encoding with a heap: of all neighbours that may merge, the pair of the lowest rank
 * (then the leftmost) merges first. An entry of the heap that is out of date no longer has the
 * rank of the pair that now stands at its position: symbols only grow, so a new pair there spells
 * another text and has another rank. */

static mxd_rc push(tok_bpe *b, int32_t pos, mxd_err *err) {
    const struct tok_symbol *l = &b->symbols[pos];
    if (l->next < 0) return MXD_OK;
    const tok_merge *m = tok_find_merge(b->t, l->id, b->symbols[l->next].id);
    if (!m) return MXD_OK;
    if (b->n_heap == b->cap_heap) {
        size_t cap = b->cap_heap ? b->cap_heap * 2 : 256;
        uint64_t *more = mxd_renew(b->t->al, b->heap, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        b->heap = more;
        b->cap_heap = cap;
    }
    uint64_t key = (uint64_t)(uint32_t)m->rank << 32 | (uint32_t)pos;
    size_t i = b->n_heap++;
    while (i && b->heap[(i - 1) / 2] > key) {
        b->heap[i] = b->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    b->heap[i] = key;
    return MXD_OK;
}

static uint64_t pop(tok_bpe *b) {
    uint64_t top = b->heap[0], key = b->heap[--b->n_heap];
    size_t i = 0, n = b->n_heap;
    for (size_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && b->heap[child + 1] < b->heap[child]) child++;
        if (b->heap[child] >= key) break;
        b->heap[i] = b->heap[child];
        i = child;
    }
    b->heap[i] = key;
    return top;
}

static mxd_rc merge_all(tok_bpe *b, mxd_err *err) {
    b->n_heap = 0;
    for (size_t i = 0; i + 1 < b->n; i++) MXD_TRY(push(b, (int32_t)i, err));
    while (b->n_heap) {
        uint64_t top = pop(b);
        int32_t pos = (int32_t)(uint32_t)top;
        struct tok_symbol *l = &b->symbols[pos];
        if (l->id < 0 || l->next < 0) continue;
        struct tok_symbol *r = &b->symbols[l->next];
        const tok_merge *m = tok_find_merge(b->t, l->id, r->id);
        if (!m || (uint64_t)(uint32_t)m->rank != top >> 32) continue;
        l->id = m->id;
        l->next = r->next;
        r->id = -1;
        if (l->next >= 0) b->symbols[l->next].prev = pos;
        if (l->prev >= 0) MXD_TRY(push(b, l->prev, err));
        MXD_TRY(push(b, pos, err));
    }
    return MXD_OK;
}

static void add(tok_bpe *b, int32_t id) {
    int32_t i = (int32_t)b->n++;
    b->symbols[i] = (struct tok_symbol){id, i - 1, i + 1};
}

/* The tokens <0xNN> of all bytes; false when one is missing. */
static bool add_bytes(tok_bpe *b, const char *s, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (b->t->byte_ids[(unsigned char)s[i]] < 0) return false;
    for (size_t i = 0; i < n; i++) add(b, b->t->byte_ids[(unsigned char)s[i]]);
    return true;
}

/* One symbol for each character (each byte when byte-level). A run of unknown characters waits in
 * `unk` until a known one follows, as in the reference. */
static void first_symbols(tok_bpe *b, const char *s, size_t n) {
    const mxd_tokenizer *t = b->t;
    bool unk = false;
    b->n = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp;
        int k = t->byte_level ? 1 : mxd_utf8_next(s + i, n - i, &cp);
        size_t len = k > 0 ? (size_t)k : 1;
        int32_t id = t->byte_level ? t->byte_ids[(unsigned char)s[i]] : tok_find_key(t, s + i, len);
        if (id >= 0) {
            if (unk) add(b, t->model_unk);
            unk = false;
            add(b, id);
        } else if (!(t->byte_fallback && !t->byte_level && add_bytes(b, s + i, len)) &&
                   t->model_unk >= 0) {
            if (unk && !t->fuse_unk) add(b, t->model_unk);
            unk = true;
        }
        i += len;
    }
    if (unk) add(b, t->model_unk);
    if (b->n) b->symbols[b->n - 1].next = -1;
}

mxd_rc tok_bpe_run(tok_bpe *b, const char *s, size_t n, mxd_ids *out, mxd_err *err) {
    if (b->t->ignore_merges) {
        int32_t id = tok_find_key(b->t, s, n);
        if (id >= 0) return mxd_ids_push(out, id, err);
    }
    if (n + 1 > b->cap) {
        size_t cap = n + 1 > 2 * b->cap ? n + 1 : 2 * b->cap;
        struct tok_symbol *more = mxd_renew(b->t->al, b->symbols, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        b->symbols = more;
        b->cap = cap;
    }
    first_symbols(b, s, n);
    MXD_TRY(merge_all(b, err));
    for (int32_t i = b->n ? 0 : -1; i >= 0; i = b->symbols[i].next)
        MXD_TRY(mxd_ids_push(out, b->symbols[i].id, err));
    return MXD_OK;
}

void tok_bpe_deinit(tok_bpe *b) {
    mxd_free(b->t->al, b->symbols);
    mxd_free(b->t->al, b->heap);
}
