#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/rand.h"
#include "formats/jscan.h"
#include "formats/json.h"
#include "tokenizer/tok_internal.h"

/* A vocabulary of 150,000 tokens as a JSON tree would take 100 bytes a token; so the file is
 * scanned, and only its small parts become trees. */

static const size_t max_nodes = 64u << 20;

typedef struct slice {
    const char *at; /* NULL: absent */
    size_t n;
} slice;

typedef struct parts { /* borrowed from the file's text */
    slice added, normalizer, pre, post, decoder, model;
    slice type, vocab, merges, unk, fuse_unk, fallback, ignore_merges, prefix, suffix, dropout;
} parts;

typedef struct entry { /* a token as it stands in the file */
    uint32_t at, n;    /* in `spelled` */
    int32_t id;
    bool added;
} entry;

typedef struct added_row {
    uint32_t entry;
    bool special, normalized, single_word, lstrip, rstrip;
} added_row;

typedef struct loader {
    mxd_tokenizer *t;
    parts p;
    mxd_buf spelled;
    entry *entries; /* [cap] */
    size_t n, cap;
    added_row *rows; /* [n_rows] */
    size_t n_rows;
    tok_bytes texts; /* spelled, by id */
} loader;

static mxd_rc wrong(mxd_err *err, const char *what) {
    return mxd_fail(err, MXD_E_FORMAT, "%s", what);
}

/* ---- the parts of the file ---- */

typedef struct field {
    const char *name;
    slice *to;
} field;

/* Finds the values of the named keys in the object at the scanner's current token. */
static mxd_rc find_fields(mxd_jscan *s, const field *fields, size_t n, mxd_err *err) {
    if (s->tok != MXD_JTOK_OBJECT) return mxd_jscan_fail(s, err, "expected an object");
    for (;;) {
        MXD_TRY(mxd_jscan_next(s, err));
        if (s->tok == MXD_JTOK_OBJECT_END) return MXD_OK;
        slice *to = NULL, value;
        for (size_t i = 0; i < n && !to; i++)
            if (mxd_jscan_is(s, fields[i].name)) to = fields[i].to;
        MXD_TRY(mxd_jscan_next(s, err));
        MXD_TRY(mxd_jscan_skip(s, &value.at, &value.n, err));
        if (to && to->at) return mxd_jscan_fail(s, err, "duplicate key");
        if (to) *to = value;
    }
}

static mxd_rc find_parts(parts *p, const char *text, size_t n, mxd_err *err) {
    const field top[] = {{"added_tokens", &p->added}, {"normalizer", &p->normalizer},
                         {"pre_tokenizer", &p->pre},  {"post_processor", &p->post},
                         {"decoder", &p->decoder},    {"model", &p->model}};
    const field model[] = {{"type", &p->type},
                           {"vocab", &p->vocab},
                           {"merges", &p->merges},
                           {"unk_token", &p->unk},
                           {"fuse_unk", &p->fuse_unk},
                           {"byte_fallback", &p->fallback},
                           {"ignore_merges", &p->ignore_merges},
                           {"continuing_subword_prefix", &p->prefix},
                           {"end_of_word_suffix", &p->suffix},
                           {"dropout", &p->dropout}};
    mxd_jscan s;
    mxd_jscan_init(&s, text, n, max_nodes);
    MXD_TRY(mxd_jscan_next(&s, err));
    MXD_TRY(find_fields(&s, top, MXD_COUNT(top), err));
    MXD_TRY(mxd_jscan_next(&s, err));
    if (!p->model.at) return wrong(err, "no 'model'");
    mxd_jscan_init(&s, p->model.at, p->model.n, max_nodes);
    MXD_TRY(mxd_jscan_next(&s, err));
    return find_fields(&s, model, MXD_COUNT(model), err);
}

static mxd_rc tree_of(slice s, json_t **out, mxd_err *err) {
    *out = NULL;
    return s.at ? mxd_json_parse(out, s.at, s.n, err) : MXD_OK;
}

static bool slice_is(slice s, const char *word) {
    return s.at && s.n == strlen(word) && memcmp(s.at, word, s.n) == 0;
}

static bool is_nothing(slice s) { return !s.at || slice_is(s, "null") || slice_is(s, "\"\""); }

/* ---- tokens ---- */

static mxd_rc add_entry(loader *l, entry e, mxd_err *err) {
    if (e.id < 0 || e.id >= MXD_MAX_VOCAB)
        return mxd_fail(err, MXD_E_TOOBIG, "token id %d is over %d", e.id, MXD_MAX_VOCAB);
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 1024;
        entry *more = mxd_renew(l->t->al, l->entries, cap, sizeof *more);
        if (!more) return tok_no_memory(err);
        l->entries = more;
        l->cap = cap;
    }
    l->entries[l->n++] = e;
    if (e.id >= l->t->n_vocab) l->t->n_vocab = e.id + 1;
    return MXD_OK;
}

static mxd_rc scan_id(const mxd_jscan *s, int32_t *id, mxd_err *err) {
    int64_t v = 0;
    bool ok = s->tok == MXD_JTOK_NUMBER && s->len <= 9;
    for (size_t i = 0; ok && i < s->len; i++) {
        ok = s->at[i] >= '0' && s->at[i] <= '9';
        v = v * 10 + (s->at[i] - '0');
    }
    if (!ok) return mxd_jscan_fail(s, err, "a token id must be a plain integer");
    *id = (int32_t)v;
    return MXD_OK;
}

static mxd_rc scan_vocab(loader *l, mxd_err *err) {
    mxd_jscan s;
    mxd_jscan_init(&s, l->p.vocab.at, l->p.vocab.n, max_nodes);
    MXD_TRY(mxd_jscan_next(&s, err));
    if (s.tok != MXD_JTOK_OBJECT) return mxd_jscan_fail(&s, err, "vocab must be an object");
    for (;;) {
        MXD_TRY(mxd_jscan_next(&s, err));
        if (s.tok == MXD_JTOK_OBJECT_END) return MXD_OK;
        entry e = {.at = (uint32_t)l->spelled.len};
        if (s.len > MXD_TOKEN_MAX_BYTES) return mxd_jscan_fail(&s, err, "a token is too long");
        char *to = mxd_buf_grow(&l->spelled, s.len);
        if (!to) return tok_no_memory(err);
        e.n = (uint32_t)mxd_jscan_decode(&s, to);
        l->spelled.len = e.at + e.n;
        MXD_TRY(mxd_jscan_next(&s, err));
        MXD_TRY(scan_id(&s, &e.id, err));
        MXD_TRY(add_entry(l, e, err));
    }
}

static mxd_rc read_added(loader *l, const json_t *list, mxd_err *err) {
    size_t i, n = json_array_size(list);
    const json_t *v;
    l->rows = MXD_NEW(l->t->al, n, added_row);
    if (!l->rows) return tok_no_memory(err);
    json_array_foreach(list, i, v) {
        const json_t *text = json_object_get(v, "content"), *id = json_object_get(v, "id");
        if (!json_is_string(text) || !json_string_length(text) || !json_is_integer(id) ||
            json_string_length(text) > MXD_TOKEN_MAX_BYTES)
            return wrong(err, "added_tokens: needs 'id' and a 'content' that is not empty");
        json_int_t k = json_integer_value(id);
        entry e = {.at = (uint32_t)l->spelled.len, .n = (uint32_t)json_string_length(text)};
        e.id = k < 0 || k > MXD_MAX_VOCAB ? MXD_MAX_VOCAB : (int32_t)k;
        e.added = true;
        mxd_buf_put(&l->spelled, json_string_value(text), e.n);
        MXD_TRY(mxd_buf_rc(&l->spelled, "the vocabulary", err));
        l->rows[l->n_rows++] = (added_row){
            .entry = (uint32_t)l->n,
            .special = json_is_true(json_object_get(v, "special")),
            .normalized = json_is_true(json_object_get(v, "normalized")),
            .single_word = json_is_true(json_object_get(v, "single_word")),
            .lstrip = json_is_true(json_object_get(v, "lstrip")),
            .rstrip = json_is_true(json_object_get(v, "rstrip")),
        };
        MXD_TRY(add_entry(l, e, err));
    }
    return MXD_OK;
}

static mxd_rc scan_added(loader *l, mxd_err *err) {
    json_t *list;
    MXD_TRY(tree_of(l->p.added, &list, err));
    mxd_rc rc = read_added(l, list, err);
    json_decref(list);
    return rc;
}

/* ---- tables ---- */

static mxd_rc make_tables(mxd_tokenizer *t, tok_bytes *texts, size_t n_spelled, mxd_err *err) {
    size_t n = (size_t)t->n_vocab;
    t->n_slots = 16;
    while (t->n_slots < n + n / 2) t->n_slots *= 2;
    t->slots = MXD_NEW(t->al, t->n_slots, int32_t);
    t->flags = MXD_NEW(t->al, n, uint8_t);
    t->key.at = MXD_NEW(t->al, n + 1, uint32_t);
    texts->at = MXD_NEW(t->al, n + 1, uint32_t);
    t->key.blob = mxd_new(t->al, n_spelled + 1, 1);
    texts->blob = mxd_new(t->al, n_spelled + 1, 1);
    if (!t->slots || !t->flags || !t->key.at || !texts->at || !t->key.blob || !texts->blob)
        return tok_no_memory(err);
    for (size_t i = 0; i < t->n_slots; i++) t->slots[i] = -1;
    return MXD_OK;
}

/* Which entry stands for each id: a vocabulary's own before an added one of the same id.
 *   of   [n_vocab]; -1 for a hole */
static mxd_rc choose_entries(const loader *l, int32_t *of, mxd_err *err) {
    for (int32_t id = 0; id < l->t->n_vocab; id++) of[id] = -1;
    for (size_t i = 0; i < l->n; i++) {
        const entry *e = &l->entries[i];
        if (of[e->id] < 0)
            of[e->id] = (int32_t)i;
        else if (!e->added)
            return mxd_fail(err, MXD_E_FORMAT, "two tokens with the id %d", e->id);
    }
    return MXD_OK;
}

/* Copies the texts in order of their ids, and makes the keys that BPE looks up. */
static mxd_rc place_texts(loader *l, const int32_t *of, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    uint32_t at = 0, at_key = 0;
    for (int32_t id = 0; id < t->n_vocab; id++) {
        t->key.at[id] = at_key;
        l->texts.at[id] = at;
        if (of[id] < 0) continue;
        const entry *e = &l->entries[of[id]];
        const char *s = l->spelled.ptr + e->at;
        size_t n_key = e->n;
        bool key = !e->added;
        if (key && t->byte_level) key = tok_to_bytes(s, e->n, t->key.blob + at_key, &n_key);
        if (!key || !t->byte_level) {
            memcpy(t->key.blob + at_key, s, e->n);
            n_key = e->n;
        }
        memcpy(l->texts.blob + at, s, e->n);
        at += e->n;
        at_key += (uint32_t)n_key;
        t->key.at[id + 1] = at_key;
        t->flags[id] |= TOK_EXISTS;
        if (!key) continue;
        if (tok_find_key(t, t->key.blob + t->key.at[id], n_key) >= 0)
            return mxd_fail(err, MXD_E_FORMAT, "the token '%.*s' stands twice in the vocabulary",
                            (int)(e->n < 60 ? e->n : 60), s);
        tok_add_key(t, id);
    }
    t->key.at[t->n_vocab] = at_key;
    l->texts.at[t->n_vocab] = at;
    return MXD_OK;
}

/* The id of a text as the file spells it, or -1. */
static int32_t find_spelled(const mxd_tokenizer *t, const char *s, size_t n) {
    char raw[MXD_TOKEN_MAX_BYTES];
    size_t n_raw;
    if (!t->byte_level) return tok_find_key(t, s, n);
    return n <= sizeof raw && tok_to_bytes(s, n, raw, &n_raw) ? tok_find_key(t, raw, n_raw) : -1;
}

static void fill_byte_ids(mxd_tokenizer *t) {
    for (int b = 0; b < 256; b++) {
        static const char digits[] = "0123456789ABCDEF";
        char one = (char)b;
        char name[6] = {'<', '0', 'x', digits[b >> 4], digits[b & 15], '>'};
        t->byte_ids[b] = t->byte_level      ? tok_find_key(t, &one, 1)
                         : t->byte_fallback ? tok_find_key(t, name, sizeof name)
                                            : -1;
    }
}

static mxd_rc load_tokens(loader *l, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    if (!l->p.vocab.at) return wrong(err, "no 'vocab' in the model");
    MXD_TRY(scan_vocab(l, err));
    MXD_TRY(scan_added(l, err));
    MXD_TRY(make_tables(t, &l->texts, l->spelled.len, err));
    if (!l->n) return MXD_OK;
    int32_t *of = MXD_NEW(t->al, (size_t)t->n_vocab, int32_t);
    if (!of) return tok_no_memory(err);
    mxd_rc rc = choose_entries(l, of, err);
    if (!rc) rc = place_texts(l, of, err);
    mxd_free(t->al, of);
    if (!rc) fill_byte_ids(t);
    return rc;
}

/* ---- merges ---- */

/* One merge of two spelled tokens, of which the second begins at `cut`. */
static mxd_rc put_merge(mxd_tokenizer *t, const char *s, size_t cut, size_t n, int32_t rank,
                        mxd_err *err) {
    int32_t left = find_spelled(t, s, cut), right = find_spelled(t, s + cut, n - cut);
    int32_t both = find_spelled(t, s, n);
    if (left < 0 || right < 0 || both < 0)
        return mxd_fail(err, MXD_E_FORMAT, "merge %d: '%.*s' + '%.*s' is not in the vocabulary",
                        rank, (int)(cut < 60 ? cut : 60), s, (int)(n - cut < 60 ? n - cut : 60),
                        s + cut);
    tok_put_merge(t, left, right, rank, both);
    return MXD_OK;
}

/* The current token of the scanner: "a b", or the beginning of ["a", "b"]. */
static mxd_rc scan_merge(mxd_tokenizer *t, mxd_jscan *s, int32_t rank, mxd_err *err) {
    char text[2 * MXD_TOKEN_MAX_BYTES + 1];
    if (s->tok == MXD_JTOK_STRING) {
        if (s->len > sizeof text) return mxd_jscan_fail(s, err, "a merge is too long");
        size_t n = mxd_jscan_decode(s, text);
        char *space = memchr(text, ' ', n);
        if (!space || memchr(space + 1, ' ', n - (size_t)(space + 1 - text)))
            return mxd_jscan_fail(s, err, "a merge must be two tokens");
        size_t cut = (size_t)(space - text);
        memmove(space, space + 1, n - cut - 1);
        return put_merge(t, text, cut, n - 1, rank, err);
    }
    size_t at[3] = {0};
    if (s->tok != MXD_JTOK_ARRAY) return mxd_jscan_fail(s, err, "a merge must be two tokens");
    for (int i = 0; i < 2; i++) {
        MXD_TRY(mxd_jscan_next(s, err));
        if (s->tok != MXD_JTOK_STRING || s->len > MXD_TOKEN_MAX_BYTES)
            return mxd_jscan_fail(s, err, "a merge must be two tokens");
        at[i + 1] = at[i] + mxd_jscan_decode(s, text + at[i]);
    }
    MXD_TRY(mxd_jscan_next(s, err));
    if (s->tok != MXD_JTOK_ARRAY_END) return mxd_jscan_fail(s, err, "a merge must be two tokens");
    return put_merge(t, text, at[1], at[2], rank, err);
}

static mxd_rc count_merges(const loader *l, size_t *n, mxd_err *err) {
    mxd_jscan s;
    *n = 0;
    if (is_nothing(l->p.merges)) return MXD_OK;
    mxd_jscan_init(&s, l->p.merges.at, l->p.merges.n, max_nodes);
    MXD_TRY(mxd_jscan_next(&s, err));
    if (s.tok != MXD_JTOK_ARRAY) return wrong(err, "merges must be a list");
    for (;; ++*n) {
        MXD_TRY(mxd_jscan_next(&s, err));
        if (s.tok == MXD_JTOK_ARRAY_END) return MXD_OK;
        MXD_TRY(mxd_jscan_skip(&s, NULL, NULL, err));
    }
}

static mxd_rc load_merges(loader *l, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    size_t n;
    MXD_TRY(count_merges(l, &n, err));
    t->n_merge_slots = 16;
    while (t->n_merge_slots < n + n / 2) t->n_merge_slots *= 2;
    t->merges = MXD_NEW(t->al, t->n_merge_slots, tok_merge);
    if (!t->merges) return tok_no_memory(err);
    for (size_t i = 0; i < t->n_merge_slots; i++) t->merges[i].rank = -1;
    if (!n) return MXD_OK;
    mxd_jscan s;
    mxd_jscan_init(&s, l->p.merges.at, l->p.merges.n, max_nodes);
    MXD_TRY(mxd_jscan_next(&s, err));
    for (size_t i = 0; i < n; i++) {
        MXD_TRY(mxd_jscan_next(&s, err));
        MXD_TRY(scan_merge(t, &s, (int32_t)i, err));
    }
    return MXD_OK;
}

/* ---- added tokens ---- */

static int by_text(const void *a, const void *b) {
    const tok_added *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->n < y->n ? x->n : y->n);
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

/* Sorts; of two with one text the later in the file goes. */
static void sort_set(const mxd_alloc *al, tok_added_set *set) {
    size_t n = 0;
    if (!set->n) return;
    qsort(set->list, set->n, sizeof *set->list, by_text);
    for (size_t i = 0; i < set->n; i++) {
        if (n && by_text(&set->list[n - 1], &set->list[i]) == 0)
            mxd_free(al, set->list[i].text);
        else
            set->list[n++] = set->list[i];
    }
    set->n = n;
}

static mxd_rc add_token(loader *l, const added_row *row, tok_matcher *m, mxd_buf *norm,
                        mxd_buf *tmp, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    const entry *e = &l->entries[row->entry];
    const char *s = l->spelled.ptr + e->at;
    size_t n = e->n;
    int32_t id = find_spelled(t, s, n); /* a text of the vocabulary keeps its id there */
    if (id < 0) id = e->id;
    if (row->special) t->flags[id] |= TOK_SPECIAL;
    if (row->normalized) {
        MXD_TRY(tok_normalize(t->norm, t->n_norm, m, s, n, true, true, norm, tmp, err));
        s = mxd_buf_str(norm);
        n = norm->len;
    }
    if (!n) return MXD_OK;
    tok_added_set *set = row->normalized ? &t->normalized : &t->raw;
    char *text = mxd_strndup(t->al, s, n);
    if (!text) return tok_no_memory(err);
    set->list[set->n++] = (tok_added){text, n, id, row->single_word, row->lstrip, row->rstrip};
    return MXD_OK;
}

static mxd_rc load_added(loader *l, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    tok_matcher m;
    mxd_buf norm, tmp;
    t->raw.list = MXD_NEW(t->al, l->n_rows, tok_added);
    t->normalized.list = MXD_NEW(t->al, l->n_rows, tok_added);
    if (!t->raw.list || !t->normalized.list) return tok_no_memory(err);
    mxd_buf_init(&norm, t->al, 1 << 20);
    mxd_buf_init(&tmp, t->al, 1 << 20);
    mxd_rc rc = tok_matcher_init(&m, t->al, err);
    for (size_t i = 0; i < l->n_rows && !rc; i++)
        rc = add_token(l, &l->rows[i], &m, &norm, &tmp, err);
    tok_matcher_deinit(&m);
    mxd_buf_deinit(&norm);
    mxd_buf_deinit(&tmp);
    sort_set(t->al, &t->raw);
    sort_set(t->al, &t->normalized);
    return rc;
}

/* ---- the whole ---- */

static mxd_rc stage(mxd_tokenizer *t, slice s, const char *name,
                    mxd_rc (*load)(mxd_tokenizer *, const json_t *, mxd_err *), mxd_err *err) {
    json_t *v;
    mxd_rc rc = tree_of(s, &v, err);
    if (!rc) rc = load(t, v, err);
    json_decref(v);
    return rc ? mxd_wrap(err, rc, "%s", name) : MXD_OK;
}

static mxd_rc load_model(loader *l, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    const parts *p = &l->p;
    if (p->type.at && !slice_is(p->type, "\"BPE\""))
        return mxd_fail(err, MXD_E_UNSUPPORTED, "model type %.*s is not supported, only BPE",
                        (int)(p->type.n < 40 ? p->type.n : 40), p->type.at);
    if (!is_nothing(p->prefix) || !is_nothing(p->suffix))
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "continuing_subword_prefix and end_of_word_suffix are not supported");
    if (!is_nothing(p->dropout) && !slice_is(p->dropout, "0.0"))
        return mxd_fail(err, MXD_E_UNSUPPORTED, "BPE dropout is not supported");
    t->byte_fallback = slice_is(p->fallback, "true");
    t->ignore_merges = slice_is(p->ignore_merges, "true");
    t->fuse_unk = slice_is(p->fuse_unk, "true");
    MXD_TRY(load_tokens(l, err));
    t->model_unk = -1;
    if (is_nothing(p->unk)) return load_merges(l, err);
    json_t *unk;
    MXD_TRY(tree_of(p->unk, &unk, err));
    if (json_is_string(unk))
        t->model_unk = find_spelled(t, json_string_value(unk), json_string_length(unk));
    json_decref(unk);
    return load_merges(l, err);
}

static mxd_rc load_all(loader *l, const char *text, size_t n, mxd_err *err) {
    mxd_tokenizer *t = l->t;
    MXD_TRY(find_parts(&l->p, text, n, err));
    MXD_TRY(stage(t, l->p.normalizer, "normalizer", tok_load_normalizer, err));
    MXD_TRY(stage(t, l->p.pre, "pre_tokenizer", tok_load_pre, err));
    MXD_TRY(stage(t, l->p.decoder, "decoder", tok_load_decoder, err));
    MXD_TRY(load_model(l, err));
    MXD_TRY(load_added(l, err));
    MXD_TRY(stage(t, l->p.post, "post_processor", tok_load_post, err));
    return tok_build_out(t, &l->texts, err);
}

/* A special token in a configuration file: its text, or an object with `content`. */
static const json_t *special_text(const json_t *config, const json_t *map, const char *name) {
    const json_t *files[] = {config, map};
    for (size_t i = 0; i < MXD_COUNT(files); i++) {
        const json_t *v = json_object_get(files[i], name);
        if (json_is_object(v)) v = json_object_get(v, "content");
        if (json_is_string(v)) return v;
    }
    return NULL;
}

static mxd_rc read_specials(mxd_tokenizer *t, const json_t *config, const json_t *map,
                            mxd_err *err) {
    const struct {
        const char *name;
        int32_t *id;
    } names[] = {{"bos_token", &t->bos}, {"eos_token", &t->eos}, {"pad_token", &t->pad},
                 {"unk_token", &t->unk}, {"sep_token", NULL},    {"cls_token", NULL},
                 {"mask_token", NULL}};
    t->special_vars = json_object();
    if (!t->special_vars) return tok_no_memory(err);
    t->bos = t->eos = t->pad = t->unk = -1;
    for (size_t i = 0; i < MXD_COUNT(names); i++) {
        const json_t *v = special_text(config, map, names[i].name);
        if (!v) continue;
        if (names[i].id)
            *names[i].id = mxd_tokenizer_find(t, json_string_value(v), json_string_length(v));
        if (json_object_set_new(t->special_vars, names[i].name, json_copy((json_t *)v)) != 0)
            return tok_no_memory(err);
    }
    if (t->unk < 0) t->unk = t->model_unk;
    return MXD_OK;
}

/* tokenizer_config.json may ask for BOS and EOS against the post-processor's word. */
static void apply_add_flags(mxd_tokenizer *t, const json_t *config) {
    const json_t *bos = json_object_get(config, "add_bos_token");
    const json_t *eos = json_object_get(config, "add_eos_token");
    if (json_is_boolean(bos) && t->bos >= 0) {
        t->n_before = json_is_true(bos);
        t->before[0] = t->bos;
    }
    if (json_is_boolean(eos) && t->eos >= 0) {
        t->n_after = json_is_true(eos);
        t->after[0] = t->eos;
    }
}

static mxd_rc parse(mxd_tokenizer *t, const char *text, size_t n, const json_t *config,
                    const json_t *map, mxd_err *err) {
    loader l = {.t = t};
    if (n > MXD_TOKENIZER_MAX_BYTES)
        return mxd_fail(err, MXD_E_TOOBIG, "longer than %d bytes", MXD_TOKENIZER_MAX_BYTES);
    MXD_TRY(mxd_rand_secret(&t->seed, sizeof t->seed, err));
    mxd_buf_init(&l.spelled, t->al, 2u * MXD_TOKENIZER_MAX_BYTES);
    mxd_rc rc = load_all(&l, text, n, err);
    mxd_buf_deinit(&l.spelled);
    mxd_free(t->al, l.entries);
    mxd_free(t->al, l.rows);
    mxd_free(t->al, l.texts.at);
    mxd_free(t->al, l.texts.blob);
    if (!rc) rc = read_specials(t, config, map, err);
    if (!rc) apply_add_flags(t, config);
    return rc;
}

mxd_rc mxd_tokenizer_parse(mxd_tokenizer **out, const mxd_alloc *al, const char *text, size_t n,
                           const json_t *config, const json_t *special_map, mxd_err *err) {
    mxd_tokenizer *t = MXD_NEW(al, 1, mxd_tokenizer);
    if (!t) return tok_no_memory(err);
    t->al = al;
    mxd_rc rc = parse(t, text, n, config, special_map, err);
    if (rc)
        mxd_tokenizer_close(t);
    else
        *out = t;
    return rc ? mxd_wrap(err, rc, "tokenizer.json") : MXD_OK;
}

static void free_norm(const mxd_alloc *al, tok_norm *list, int n) {
    for (int i = 0; i < n; i++) {
        tok_pattern_deinit(&list[i].pattern, al);
        mxd_free(al, list[i].text);
    }
}

static void free_set(const mxd_alloc *al, tok_added_set *set) {
    for (size_t i = 0; i < set->n; i++) mxd_free(al, set->list[i].text);
    mxd_free(al, set->list);
}

void mxd_tokenizer_close(mxd_tokenizer *t) {
    if (!t) return;
    const mxd_alloc *al = t->al;
    free_norm(al, t->norm, t->n_norm);
    free_norm(al, t->dec_replace, t->n_dec_replace);
    for (int i = 0; i < t->n_pre; i++) tok_pattern_deinit(&t->pre[i].pattern, al);
    free_set(al, &t->raw);
    free_set(al, &t->normalized);
    mxd_free(al, t->key.blob);
    mxd_free(al, t->key.at);
    mxd_free(al, t->out.blob);
    mxd_free(al, t->out.at);
    mxd_free(al, t->out_first.blob);
    mxd_free(al, t->out_first.at);
    mxd_free(al, t->flags);
    mxd_free(al, t->slots);
    mxd_free(al, t->merges);
    json_decref(t->special_vars);
    mxd_free(al, t);
}

/* ---- files ---- */

static mxd_rc read_text(const char *path, mxd_buf *out, mxd_err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return mxd_fail_sys(err, errno == ENOENT || errno == ENOTDIR ? MXD_E_NOTFOUND : MXD_E_IO,
                            "cannot open '%s'", path);
    struct stat st;
    mxd_rc rc = MXD_OK;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        rc = mxd_fail(err, MXD_E_IO, "'%s' is not a regular file", path);
    else if (st.st_size > MXD_TOKENIZER_MAX_BYTES)
        rc = mxd_fail(err, MXD_E_TOOBIG, "'%s' is longer than %d bytes", path,
                      MXD_TOKENIZER_MAX_BYTES);
    size_t n = rc ? 0 : (size_t)st.st_size, got = 0;
    char *to = mxd_buf_grow(out, n);
    if (!rc) rc = mxd_buf_rc(out, path, err);
    while (!rc && got < n) {
        ssize_t k = read(fd, to + got, n - got);
        if (k < 0 && errno == EINTR) continue;
        if (k <= 0) rc = mxd_fail_sys(err, MXD_E_IO, "cannot read '%s'", path);
        got += k > 0 ? (size_t)k : 0;
    }
    close(fd);
    return rc;
}

/* A file that may be missing: then *out is NULL. */
static mxd_rc optional(mxd_buf *path, const char *folder, const char *name, json_t **out,
                       mxd_err *err) {
    mxd_buf_clear(path);
    mxd_buf_printf(path, "%s/%s", folder, name);
    MXD_TRY(mxd_buf_rc(path, "path", err));
    mxd_rc rc = mxd_json_load(out, path->ptr, MXD_CONFIG_MAX_BYTES, err);
    return rc == MXD_E_NOTFOUND ? MXD_OK : rc;
}

mxd_rc mxd_tokenizer_open(mxd_tokenizer **out, const mxd_alloc *al, const char *folder,
                          mxd_err *err) {
    mxd_buf path, text;
    json_t *config = NULL, *map = NULL;
    mxd_buf_init(&path, al, 1 << 16);
    mxd_buf_init(&text, al, MXD_TOKENIZER_MAX_BYTES);
    mxd_rc rc = optional(&path, folder, "tokenizer_config.json", &config, err);
    if (!rc) rc = optional(&path, folder, "special_tokens_map.json", &map, err);
    mxd_buf_clear(&path);
    mxd_buf_printf(&path, "%s/tokenizer.json", folder);
    if (!rc) rc = mxd_buf_rc(&path, "path", err);
    if (!rc) rc = read_text(path.ptr, &text, err);
    if (!rc) rc = mxd_tokenizer_parse(out, al, mxd_buf_str(&text), text.len, config, map, err);
    json_decref(config);
    json_decref(map);
    mxd_buf_deinit(&path);
    mxd_buf_deinit(&text);
    return rc;
}

/* ---- questions ---- */

int mxd_tokenizer_vocab(const mxd_tokenizer *t) { return t->n_vocab; }
int32_t mxd_tokenizer_bos(const mxd_tokenizer *t) { return t->bos; }
int32_t mxd_tokenizer_eos(const mxd_tokenizer *t) { return t->eos; }
int32_t mxd_tokenizer_pad(const mxd_tokenizer *t) { return t->pad; }
int32_t mxd_tokenizer_unk(const mxd_tokenizer *t) { return t->unk; }
const json_t *mxd_tokenizer_special_vars(const mxd_tokenizer *t) { return t->special_vars; }

int32_t mxd_tokenizer_find(const mxd_tokenizer *t, const char *text, size_t n) {
    int32_t id = t->n_vocab ? find_spelled(t, text, n) : -1;
    if (id >= 0) return id;
    const tok_added probe = {.text = (char *)text, .n = n};
    const tok_added *at = NULL;
    if (t->raw.n) at = bsearch(&probe, t->raw.list, t->raw.n, sizeof probe, by_text);
    if (at) return at->id;
    for (size_t i = 0; i < t->normalized.n; i++) { /* these are few, and sorted by another text */
        id = t->normalized.list[i].id;
        uint32_t from = t->key.at[id];
        if (t->key.at[id + 1] - from == n && memcmp(t->key.blob + from, text, n) == 0) return id;
    }
    return -1;
}

bool mxd_tokenizer_is_special(const mxd_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n_vocab && t->flags[id] & TOK_SPECIAL;
}
