#include "cli/option_value.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include "cli/term.h"

enum { MAX_ITEMS = 1024 };

static void free_items(const mxd_alloc *al, mxd_opt_value *v) {
    for (int i = 0; v->items && i < v->n_items; i++) mxd_free(al, v->items[i]);
    mxd_free(al, v->items);
    mxd_free(al, v->ints);
    v->items = NULL;
    v->ints = NULL;
    v->n_items = 0;
}

void mxd_opt_value_free(const mxd_alloc *al, mxd_opt_value *v) {
    if (!al) return;
    free_items(al, v);
    mxd_free(al, v->text);
    mxd_free(al, v->from);
    *v = (mxd_opt_value){0};
}

/* "a, b, c" of "a|b|c" */
static void put_choices(char *out, size_t n, const char *choices) {
    size_t k = 0;
    for (const char *p = choices; *p && k + 3 < n; p++) {
        out[k++] = *p == '|' ? ',' : *p;
        if (*p == '|') out[k++] = ' ';
    }
    out[k] = '\0';
}

const char *mxd_opt_range(const mxd_opt_row *row, char out[160]) {
    enum { N = 160 };
    char list[128], least[32], most[32];
    switch (row->type) {
    case MXD_OPT_FLAG:
        snprintf(out, N, "true or false");
        break;
    case MXD_OPT_INT:
        snprintf(out, N, "a whole number from %.0f to %.0f", row->least, row->most);
        break;
    case MXD_OPT_INTS:
        snprintf(out, N, "whole numbers from %.0f to %.0f with commas between them", row->least,
                 row->most);
        break;
    case MXD_OPT_REAL:
        snprintf(out, N, "a number from %g to %g", row->least, row->most);
        break;
    case MXD_OPT_SIZE:
        snprintf(out, N,
                 "a size of at least %s, like 16GB (10^9 bytes), 512MiB (2^20 bytes) or bytes",
                 mxd_size_text(least, (uint64_t)row->least));
        break;
    case MXD_OPT_TIME:
        snprintf(out, N, "a time from %s to %s, like 30s, 15m, 2h or 250ms",
                 mxd_time_text(least, (int64_t)row->least),
                 mxd_time_text(most, (int64_t)row->most));
        break;
    case MXD_OPT_CHOICE:
        put_choices(list, sizeof list, row->choices);
        snprintf(out, N, "one of %s", list);
        break;
    case MXD_OPT_LIST:
    case MXD_OPT_SECRETS:
        snprintf(out, N, "texts with commas between them");
        break;
    default:
        snprintf(out, N, "a text");
        break;
    }
    return out;
}

/* A whole number with nothing around it. */
static bool read_int(const char *s, int64_t *out) {
    if (!isdigit((unsigned char)s[0]) && !(s[0] == '-' && isdigit((unsigned char)s[1])))
        return false;
    char *end;
    errno = 0;
    long long x = strtoll(s, &end, 10);
    *out = x;
    return errno == 0 && *end == '\0';
}

/* A decimal number; *end is what stands behind it. No hex, no "inf", no leading space. */
static bool read_real(const char *s, double *out, const char **end) {
    const char *digits = s[0] == '-' ? s + 1 : s;
    if (!isdigit((unsigned char)digits[0]) && digits[0] != '.') return false;
    if (digits[0] == '0' && (digits[1] | 32) == 'x') return false;
    char *stop;
    *out = strtod(s, &stop);
    *end = stop;
    return stop != s && isfinite(*out);
}

typedef struct unit {
    const char *name;
    double factor;
} unit;

static bool read_with_unit(const char *s, const unit *units, size_t n, int64_t *out) {
    double x;
    const char *rest;
    if (!read_real(s, &x, &rest)) return false;
    while (*rest == ' ') rest++;
    for (size_t i = 0; i < n; i++) {
        if (strcasecmp(rest, units[i].name) != 0) continue;
        x *= units[i].factor;
        if (fabs(x) > MXD_BYTES_MAX) return false;
        *out = (int64_t)llround(x);
        return true;
    }
    return false;
}

static bool read_size(const char *s, int64_t *out) {
    static const unit units[] = {{"", 1},          {"B", 1},
                                 {"kB", 1e3},      {"MB", 1e6},
                                 {"GB", 1e9},      {"TB", 1e12},
                                 {"K", 1e3},       {"M", 1e6},
                                 {"G", 1e9},       {"T", 1e12},
                                 {"KiB", 1024},    {"MiB", 1048576},
                                 {"GiB", 1 << 30}, {"TiB", 1099511627776.0}};
    return read_with_unit(s, units, MXD_COUNT(units), out);
}

static bool read_time(const char *s, int64_t *out) {
    static const unit units[] = {{"", 1e3},   {"s", 1e3},    {"ms", 1},
                                 {"m", 60e3}, {"min", 60e3}, {"h", 3600e3}};
    return read_with_unit(s, units, MXD_COUNT(units), out);
}

static bool read_flag(const char *s, int64_t *out) {
    static const char *const no[] = {"0", "off", "no", "false"};
    *out = mxd_text_is_true(s);
    for (size_t i = 0; !*out && i < MXD_COUNT(no); i++)
        if (strcasecmp(s, no[i]) == 0) return true;
    return *out != 0;
}

static bool read_choice(const char *s, const char *choices, int64_t *out) {
    size_t n = strlen(s);
    int64_t k = 0;
    for (const char *p = choices; n; p++, k++) {
        size_t m = strcspn(p, "|");
        *out = k;
        if (m == n && strncmp(p, s, n) == 0) return true;
        p += m;
        if (!*p) return false;
    }
    return false;
}

static bool read_scalar(const mxd_opt_row *row, const char *s, mxd_opt_value *v) {
    const char *rest = "";
    bool in_words = false;
    switch (row->type) {
    case MXD_OPT_FLAG:
        return read_flag(s, &v->number);
    case MXD_OPT_CHOICE:
        return read_choice(s, row->choices, &v->number);
    case MXD_OPT_REAL:
        if (!read_real(s, &v->real, &rest) || *rest) return false;
        return v->real >= row->least && v->real <= row->most;
    case MXD_OPT_INT:
        in_words = read_int(s, &v->number);
        break;
    case MXD_OPT_SIZE:
        in_words = read_size(s, &v->number);
        break;
    case MXD_OPT_TIME:
        in_words = read_time(s, &v->number);
        break;
    default:
        return true;
    }
    v->real = (double)v->number;
    return in_words && v->real >= row->least && v->real <= row->most;
}

/* Adds the parts between commas to `v`. False in *ok: a part is no value. */
static mxd_rc add_items(const mxd_alloc *al, const mxd_opt_row *row, const char *text,
                        mxd_opt_value *v, bool *ok, mxd_err *err) {
    bool ints = row->type == MXD_OPT_INTS;
    *ok = true;
    for (const char *p = text; *ok; p++) {
        size_t n = strcspn(p, ",");
        char *item = mxd_strndup(al, p, n);
        size_t want = (size_t)v->n_items + 1;
        void *grown = !item  ? NULL
                      : ints ? (void *)mxd_renew(al, v->ints, want, sizeof *v->ints)
                             : (void *)mxd_renew(al, v->items, want, sizeof *v->items);
        if (!grown) {
            mxd_free(al, item);
            return mxd_fail(err, MXD_E_NOMEM, "no memory for --%s", row->name);
        }
        if (ints) {
            int64_t x = 0;
            v->ints = grown;
            *ok = read_int(item, &x) && (double)x >= row->least && (double)x <= row->most;
            v->ints[v->n_items++] = (int)(*ok ? x : 0);
            mxd_free(al, item);
        } else {
            v->items = grown;
            v->items[v->n_items++] = item;
            *ok = n > 0;
        }
        if (v->n_items > MAX_ITEMS) *ok = false;
        p += n;
        if (!*p) break;
    }
    return MXD_OK;
}

static bool is_list(mxd_opt_type t) {
    return t == MXD_OPT_LIST || t == MXD_OPT_SECRETS || t == MXD_OPT_INTS;
}

static bool is_secret(mxd_opt_type t) { return t == MXD_OPT_SECRET || t == MXD_OPT_SECRETS; }

static mxd_rc read_value(const mxd_alloc *al, const mxd_opt_row *row, const char *text,
                         const char *place, mxd_rc bad, mxd_opt_value *v, mxd_err *err) {
    bool ok = true;
    if (is_list(row->type))
        MXD_TRY(add_items(al, row, text, v, &ok, err));
    else
        ok = read_scalar(row, text, v);
    if (ok) return MXD_OK;
    char range[160];
    return mxd_fail(err, bad, "%s: '%.60s' is not %s", place ? place : row->name,
                    is_secret(row->type) ? "(hidden)" : text, mxd_opt_range(row, range));
}

mxd_rc mxd_opt_check(const mxd_alloc *al, const mxd_opt_row *row, const char *text,
                     const char *place, mxd_rc bad, mxd_err *err) {
    mxd_opt_value v = {0};
    mxd_rc rc = read_value(al, row, text, place, bad, &v, err);
    mxd_opt_value_free(al, &v);
    return rc;
}

/* What is shown of a list that was given in several parts. */
static mxd_rc join_text(const mxd_alloc *al, mxd_opt_value *v, const char *more, mxd_err *err) {
    mxd_buf b;
    mxd_buf_init(&b, al, 1 << 20);
    if (v->text) {
        mxd_buf_puts(&b, v->text);
        mxd_buf_putc(&b, ',');
    }
    mxd_buf_puts(&b, more);
    mxd_rc rc = mxd_buf_rc(&b, "an option's value", err);
    char *text = rc ? NULL : mxd_strdup(al, mxd_buf_str(&b));
    mxd_buf_deinit(&b);
    if (rc) return rc;
    if (!text) return mxd_fail(err, MXD_E_NOMEM, "no memory for an option's value");
    mxd_free(al, v->text);
    v->text = text;
    return MXD_OK;
}

mxd_rc mxd_opt_set(mxd_options *o, mxd_opt_id id, const char *text, mxd_origin origin,
                   const char *place, mxd_rc bad, mxd_err *err) {
    const mxd_opt_row *row = mxd_opt_row_get(id);
    mxd_opt_value *v = &o->values[id];
    if (v->origin > origin) return mxd_opt_check(o->al, row, text, place, bad, err);
    bool more = is_list(row->type) && v->origin == origin && origin == MXD_FROM_FLAG;
    if (!more) mxd_opt_value_free(o->al, v);
    MXD_TRY(read_value(o->al, row, text, place, bad, v, err));
    MXD_TRY(join_text(o->al, v, text, err));
    char *from = place ? mxd_strdup(o->al, place) : NULL;
    if (place && !from) return mxd_fail(err, MXD_E_NOMEM, "no memory for --%s", row->name);
    mxd_free(o->al, v->from);
    v->from = from;
    v->origin = origin;
    return MXD_OK;
}
