#include <string.h>
#include "base/rand.h"
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

/* The byte-level alphabet: printable Latin-1 stands for itself, the other 68 bytes, in order, are
 * U+0100 .. U+0143. Source: GPT-2's bytes_to_unicode. */
static bool is_own(int b) {
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

int tok_byte_of(uint32_t cp) {
    if (cp < 0x100) return is_own((int)cp) ? (int)cp : -1;
    if (cp > 0x143) return -1;
    int k = (int)cp - 0x100; /* the k-th byte that is not its own */
    return k < 0x21 ? k : k < 0x21 + 34 ? 0x7F + k - 0x21 : 0xAD;
}

bool tok_to_bytes(const char *s, size_t n, char *out, size_t *n_out) {
    *n_out = 0;
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int len = mxd_utf8_next(s + i, n - i, &cp);
        int b = len > 0 ? tok_byte_of(cp) : -1;
        if (b < 0) return false;
        out[k++] = (char)b;
        i += (size_t)len;
    }
    *n_out = k;
    return true;
}

static uint64_t hash(const mxd_tokenizer *t, const char *s, size_t n) {
    uint64_t h = t->seed ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = mxd_mix64(h ^ w);
    }
    uint64_t tail = 0;
    memcpy(&tail, s, n);
    return mxd_mix64(h ^ tail);
}

static bool key_is(const mxd_tokenizer *t, int32_t id, const char *s, size_t n) {
    uint32_t at = t->key.at[id];
    return t->key.at[id + 1] - at == n && memcmp(t->key.blob + at, s, n) == 0;
}

int32_t tok_find_key(const mxd_tokenizer *t, const char *s, size_t n) {
    size_t mask = t->n_slots - 1;
    for (size_t i = hash(t, s, n) & mask; t->slots[i] >= 0; i = (i + 1) & mask)
        if (key_is(t, t->slots[i], s, n)) return t->slots[i];
    return -1;
}

void tok_add_key(mxd_tokenizer *t, int32_t id) {
    size_t mask = t->n_slots - 1;
    uint32_t at = t->key.at[id];
    size_t i = hash(t, t->key.blob + at, t->key.at[id + 1] - at) & mask;
    while (t->slots[i] >= 0) i = (i + 1) & mask;
    t->slots[i] = id;
    t->flags[id] |= TOK_KEY;
}

static size_t merge_slot(const mxd_tokenizer *t, int32_t left, int32_t right) {
    size_t mask = t->n_merge_slots - 1;
    size_t i = mxd_mix64(t->seed ^ ((uint64_t)(uint32_t)left << 32 | (uint32_t)right)) & mask;
    while (t->merges[i].rank >= 0 && (t->merges[i].left != left || t->merges[i].right != right))
        i = (i + 1) & mask;
    return i;
}

const tok_merge *tok_find_merge(const mxd_tokenizer *t, int32_t left, int32_t right) {
    const tok_merge *m = &t->merges[merge_slot(t, left, right)];
    return m->rank >= 0 ? m : NULL;
}

void tok_put_merge(mxd_tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t id) {
    t->merges[merge_slot(t, left, right)] = (tok_merge){left, right, rank, id};
}
