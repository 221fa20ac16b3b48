#include <string.h>
#include "formats/utf8.h"
#include "tokenizer/tok_internal.h"

/* GPT-2's pattern: what ByteLevel cuts with when use_regex is set. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static const char *text_of(const json_t *v, const char *key) {
    return json_string_value(json_object_get(v, key));
}

static bool flag_of(const json_t *v, const char *key, bool absent) {
    const json_t *f = json_object_get(v, key);
    return json_is_boolean(f) ? json_is_true(f) : absent;
}

static bool type_is(const json_t *v, const char *name) {
    const char *type = text_of(v, "type");
    return type && strcmp(type, name) == 0;
}

static mxd_rc unsupported(const json_t *v, const char *stage, mxd_err *err) {
    const char *type = text_of(v, "type");
    return mxd_fail(err, MXD_E_UNSUPPORTED, "%s '%.60s' is not supported", stage,
                    type ? type : "without a type");
}

static mxd_rc malformed(const char *stage, const char *what, mxd_err *err) {
    return mxd_fail(err, MXD_E_FORMAT, "%s: %s", stage, what);
}

/* {"String": ...} or {"Regex": ...}, or a bare string. */
static mxd_rc load_pattern(const mxd_alloc *al, tok_pattern *p, const json_t *v, mxd_err *err) {
    const json_t *literal = json_is_string(v) ? v : json_object_get(v, "String");
    const json_t *regex = json_object_get(v, "Regex");
    if (json_is_string(literal))
        return tok_pattern_literal(p, al, json_string_value(literal), json_string_length(literal),
                                   err);
    if (json_is_string(regex))
        return tok_pattern_regex(p, al, json_string_value(regex), json_string_length(regex), err);
    return malformed("pattern", "neither String nor Regex", err);
}

/* Calls `load` for the stage, or for each of the stages in a (nested) Sequence. */
typedef mxd_rc (*load_fn)(mxd_tokenizer *t, const json_t *v, mxd_err *err);

static mxd_rc each_stage(mxd_tokenizer *t, const json_t *v, const char *list, load_fn load,
                         mxd_err *err) {
    if (!v || json_is_null(v)) return MXD_OK;
    if (!json_is_object(v)) return malformed(list, "not an object", err);
    if (!type_is(v, "Sequence")) return load(t, v, err);
    const json_t *items = json_object_get(v, list), *item;
    size_t i;
    if (!json_is_array(items)) return malformed(list, "a Sequence without a list", err);
    json_array_foreach(items, i, item) MXD_TRY(each_stage(t, item, list, load, err));
    return MXD_OK;
}

static mxd_rc too_many(const char *stage, mxd_err *err) {
    return mxd_fail(err, MXD_E_TOOBIG, "more than %d %s stages", TOK_MAX_STAGES, stage);
}

/* ---- normalizer ---- */

static mxd_rc load_text(mxd_tokenizer *t, tok_norm *f, const json_t *v, const char *key,
                        mxd_err *err) {
    const json_t *s = json_object_get(v, key);
    if (!json_is_string(s)) return malformed(key, "not a string", err);
    f->n_text = json_string_length(s);
    f->text = mxd_strndup(t->al, json_string_value(s), f->n_text);
    return f->text ? MXD_OK : tok_no_memory(err);
}

static mxd_rc load_replace(mxd_tokenizer *t, tok_norm *f, const json_t *v, mxd_err *err) {
    f->kind = TOK_REPLACE;
    MXD_TRY(load_text(t, f, v, "content", err));
    return load_pattern(t->al, &f->pattern, json_object_get(v, "pattern"), err);
}

static mxd_rc load_norm(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    static const struct {
        const char *name;
        tok_norm_kind kind;
    } kinds[] = {{"NFC", TOK_NFC},
                 {"NFD", TOK_NFD},
                 {"NFKC", TOK_NFKC},
                 {"NFKD", TOK_NFKD},
                 {"Replace", TOK_REPLACE},
                 {"Prepend", TOK_PREPEND},
                 {"Strip", TOK_STRIP},
                 {"Lowercase", TOK_LOWERCASE},
                 {"StripAccents", TOK_STRIP_ACCENTS}};
    size_t i = 0;
    while (i < MXD_COUNT(kinds) && !type_is(v, kinds[i].name)) i++;
    if (i == MXD_COUNT(kinds)) return unsupported(v, "normalizer", err);
    if (t->n_norm == TOK_MAX_STAGES) return too_many("normalizer", err);
    tok_norm *f = &t->norm[t->n_norm++];
    f->kind = kinds[i].kind;
    f->left = flag_of(v, "strip_left", true);
    f->right = flag_of(v, "strip_right", true);
    if (f->kind == TOK_REPLACE) return load_replace(t, f, v, err);
    if (f->kind == TOK_PREPEND) return load_text(t, f, v, "prepend", err);
    return MXD_OK;
}

mxd_rc tok_load_normalizer(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    return each_stage(t, v, "normalizers", load_norm, err);
}

/* ---- pre-tokenizer ---- */

static mxd_rc load_behavior(const json_t *v, tok_behavior *out, mxd_err *err) {
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *s = text_of(v, "behavior");
    for (size_t i = 0; s && i < MXD_COUNT(names); i++) {
        if (strcmp(s, names[i]) != 0) continue;
        *out = (tok_behavior)i;
        return MXD_OK;
    }
    return malformed("pre_tokenizer", "unknown behavior", err);
}

static mxd_rc load_split(mxd_tokenizer *t, tok_pre *p, const json_t *v, mxd_err *err) {
    p->invert = flag_of(v, "invert", false);
    MXD_TRY(load_behavior(v, &p->behavior, err));
    return load_pattern(t->al, &p->pattern, json_object_get(v, "pattern"), err);
}

static mxd_rc load_metaspace(mxd_tokenizer *t, tok_pre *p, const json_t *v, mxd_err *err) {
    const char *mark = text_of(v, "replacement"), *scheme = text_of(v, "prepend_scheme");
    p->kind = TOK_METASPACE;
    p->behavior = TOK_MERGED_WITH_NEXT;
    p->split = flag_of(v, "split", true);
    p->prepend = TOK_ALWAYS;
    if (scheme)
        p->prepend = strcmp(scheme, "first") == 0   ? TOK_FIRST
                     : strcmp(scheme, "never") == 0 ? TOK_NEVER
                                                    : TOK_ALWAYS;
    if (!flag_of(v, "add_prefix_space", true)) p->prepend = TOK_NEVER;
    if (!mark) mark = "\xe2\x96\x81";
    return tok_pattern_literal(&p->pattern, t->al, mark, strlen(mark), err);
}

static mxd_rc next_pre(mxd_tokenizer *t, tok_pre **out, mxd_err *err) {
    if (t->n_pre == TOK_MAX_STAGES) return too_many("pre_tokenizer", err);
    if (t->byte_level)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "pre_tokenizer: a stage behind ByteLevel is not supported");
    *out = &t->pre[t->n_pre++];
    return MXD_OK;
}

static mxd_rc load_byte_level(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    tok_pre *p = NULL;
    if (flag_of(v, "add_prefix_space", true)) {
        MXD_TRY(next_pre(t, &p, err));
        p->kind = TOK_PREFIX_SPACE;
    }
    if (flag_of(v, "use_regex", true)) {
        MXD_TRY(next_pre(t, &p, err));
        MXD_TRY(tok_pattern_regex(&p->pattern, t->al, gpt2_pattern, sizeof gpt2_pattern - 1, err));
    }
    t->byte_level = true;
    return MXD_OK;
}

static mxd_rc load_pre(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    if (type_is(v, "ByteLevel")) return load_byte_level(t, v, err);
    tok_pre *p = NULL;
    MXD_TRY(next_pre(t, &p, err));
    if (type_is(v, "Split")) return load_split(t, p, v, err);
    if (type_is(v, "Metaspace")) return load_metaspace(t, p, v, err);
    if (type_is(v, "Digits")) {
        p->pattern.in = tok_is_number;
        p->behavior = flag_of(v, "individual_digits", false) ? TOK_ISOLATED : TOK_CONTIGUOUS;
        return MXD_OK;
    }
    if (type_is(v, "Punctuation")) {
        p->pattern.in = tok_is_punct;
        return text_of(v, "behavior") ? load_behavior(v, &p->behavior, err) : MXD_OK;
    }
    if (type_is(v, "WhitespaceSplit")) {
        p->pattern.in = tok_is_space;
        p->behavior = TOK_REMOVED;
        return MXD_OK;
    }
    t->n_pre--;
    return unsupported(v, "pre_tokenizer", err);
}

mxd_rc tok_load_pre(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    return each_stage(t, v, "pretokenizers", load_pre, err);
}

/* ---- post-processor ---- */

static mxd_rc add_extra(mxd_tokenizer *t, bool before, json_int_t id, mxd_err *err) {
    int *n = before ? &t->n_before : &t->n_after;
    if (id < 0 || id >= t->n_vocab)
        return malformed("post_processor", "a token id outside the vocabulary", err);
    if (*n == TOK_MAX_EXTRA) return malformed("post_processor", "too many tokens", err);
    (before ? t->before : t->after)[(*n)++] = (int32_t)id;
    return MXD_OK;
}

/* TemplateProcessing's "single": special tokens before and behind the one sequence. */
static mxd_rc load_template(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    const json_t *single = json_object_get(v, "single"), *item, *id;
    bool before = true;
    size_t i, k;
    if (!json_is_array(single)) return malformed("post_processor", "no list 'single'", err);
    json_array_foreach(single, i, item) {
        if (json_object_get(item, "Sequence")) before = false;
        const char *name = text_of(json_object_get(item, "SpecialToken"), "id");
        if (!name) continue;
        const json_t *entry = json_object_get(json_object_get(v, "special_tokens"), name);
        const json_t *ids = json_object_get(entry, "ids");
        if (!json_is_array(ids)) return malformed("post_processor", "unknown special token", err);
        json_array_foreach(ids, k, id) {
            if (!json_is_integer(id)) return malformed("post_processor", "an id is no number", err);
            MXD_TRY(add_extra(t, before, json_integer_value(id), err));
        }
    }
    return MXD_OK;
}

static mxd_rc load_post(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    if (type_is(v, "ByteLevel")) return MXD_OK; /* only moves offsets */
    if (type_is(v, "TemplateProcessing")) return load_template(t, v, err);
    if (type_is(v, "BertProcessing") || type_is(v, "RobertaProcessing")) {
        const json_t *cls = json_array_get(json_object_get(v, "cls"), 1);
        const json_t *sep = json_array_get(json_object_get(v, "sep"), 1);
        if (!json_is_integer(cls) || !json_is_integer(sep))
            return malformed("post_processor", "cls and sep must be [text, id]", err);
        MXD_TRY(add_extra(t, true, json_integer_value(cls), err));
        return add_extra(t, false, json_integer_value(sep), err);
    }
    return unsupported(v, "post_processor", err);
}

mxd_rc tok_load_post(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    return each_stage(t, v, "processors", load_post, err);
}

/* ---- decoder ---- */

static mxd_rc copy_char(char out[5], const char *s, mxd_err *err) {
    uint32_t cp;
    size_t n = s ? strlen(s) : 0;
    if (!n || mxd_utf8_next(s, n, &cp) != (int)n)
        return malformed("decoder", "expected one character", err);
    memcpy(out, s, n + 1);
    return MXD_OK;
}

static mxd_rc load_dec_strip(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    json_int_t start = json_integer_value(json_object_get(v, "start"));
    json_int_t stop = json_integer_value(json_object_get(v, "stop"));
    if (!start && !stop) return MXD_OK;
    if (stop || !t->dec_fuse || t->dec_strip_left || start < 0 || start > 1 << 20)
        return mxd_fail(err, MXD_E_UNSUPPORTED,
                        "decoder Strip is supported behind Fuse and at the start only");
    t->dec_strip_left = (int)start;
    return copy_char(t->dec_strip, text_of(v, "content"), err);
}

static mxd_rc load_dec_metaspace(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    const char *mark = text_of(v, "replacement"), *scheme = text_of(v, "prepend_scheme");
    t->dec_metaspace = true;
    t->dec_drop_first =
        !(scheme && strcmp(scheme, "never") == 0) && flag_of(v, "add_prefix_space", true);
    return copy_char(t->dec_mark, mark ? mark : "\xe2\x96\x81", err);
}

/* Stages whose order we know how to run: Replace*, then one of ByteLevel, Metaspace, ByteFallback,
 * then Fuse, then Strip. */
static mxd_rc load_dec(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    bool main_done = t->dec_byte_level || t->dec_metaspace || t->dec_byte_fallback;
    bool early = !main_done && !t->dec_fuse;
    if (type_is(v, "Fuse")) {
        t->dec_fuse = true;
        return MXD_OK;
    }
    if (type_is(v, "Strip")) return load_dec_strip(t, v, err);
    if (early && type_is(v, "Replace")) {
        if (t->n_dec_replace == TOK_MAX_STAGES) return too_many("decoder", err);
        return load_replace(t, &t->dec_replace[t->n_dec_replace++], v, err);
    }
    if (early && type_is(v, "ByteLevel")) {
        t->dec_byte_level = true;
        return MXD_OK;
    }
    if (early && type_is(v, "ByteFallback")) {
        t->dec_byte_fallback = true;
        return MXD_OK;
    }
    if (early && type_is(v, "Metaspace") && !t->n_dec_replace) return load_dec_metaspace(t, v, err);
    return unsupported(v, early ? "decoder" : "decoder, at this place,", err);
}

mxd_rc tok_load_decoder(mxd_tokenizer *t, const json_t *v, mxd_err *err) {
    t->dec_join = !v || json_is_null(v); /* without a decoder tokens are joined by spaces */
    return each_stage(t, v, "decoders", load_dec, err);
}
