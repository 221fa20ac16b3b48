#include "cli/term.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include "base/clock.h"

static bool is_set(const char *name) {
    const char *s = getenv(name);
    return s && s[0];
}

void mxd_term_init(mxd_term *t, FILE *to, bool no_color) {
    const char *kind = getenv("TERM"), *force = getenv("CLICOLOR_FORCE");
    *t = (mxd_term){.to = to, .tty = isatty(fileno(to)), .columns = 80};
    bool dumb = !kind || strcmp(kind, "dumb") == 0;
    bool forced = force && force[0] && strcmp(force, "0") != 0;
    t->colour = !no_color && !is_set("NO_COLOR") && (forced || (t->tty && !dumb));
    struct winsize size;
    if (t->tty && ioctl(fileno(to), TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
        t->columns = size.ws_col;
}

const char *mxd_term_bold(const mxd_term *t) { return t->colour ? "\033[1m" : ""; }
const char *mxd_term_dim(const mxd_term *t) { return t->colour ? "\033[2m" : ""; }
const char *mxd_term_red(const mxd_term *t) { return t->colour ? "\033[31m" : ""; }
const char *mxd_term_plain(const mxd_term *t) { return t->colour ? "\033[0m" : ""; }

/* Three digits: 1.23, 12.3, 123. */
static void put_scaled(char out[32], double x, const char *unit) {
    static const char *const power[] = {"", "k", "M", "G", "T", "P"};
    size_t i = 0;
    while (x >= 999.5 && i + 1 < MXD_COUNT(power)) {
        x /= 1000;
        i++;
    }
    int decimals = x == 0 || i == 0 || x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2;
    snprintf(out, 32, "%.*f %s%s", decimals, x, power[i], unit);
}

const char *mxd_size_text(char out[32], uint64_t bytes) {
    put_scaled(out, (double)bytes, "B");
    return out;
}

const char *mxd_rate_text(char out[32], double per_s, const char *unit) {
    put_scaled(out, isfinite(per_s) && per_s > 0 ? per_s : 0, unit);
    return out;
}

const char *mxd_time_text(char out[32], int64_t ms) {
    if (ms < 1000)
        snprintf(out, 32, "%d ms", (int)ms);
    else if (ms < 120000)
        snprintf(out, 32, "%g s", (double)ms / 1e3);
    else if (ms < 7200000)
        snprintf(out, 32, "%g min", (double)ms / 60e3);
    else
        snprintf(out, 32, "%g h", (double)ms / 3600e3);
    return out;
}

void mxd_table_init(mxd_table *t, const mxd_alloc *al, int n_columns) {
    MXD_ASSERT(n_columns > 0 && n_columns <= MXD_TABLE_COLUMNS);
    *t = (mxd_table){.n_columns = n_columns};
    mxd_buf_init(&t->cells, al, 1 << 20);
}

void mxd_table_cell(mxd_table *t, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    mxd_buf_vprintf(&t->cells, fmt, ap);
    va_end(ap);
    mxd_buf_putc(&t->cells, '\0');
    t->n_cells++;
}

static int text_width(const char *s) { /* code points; our tables hold nothing wider */
    int n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

static void pad(mxd_buf *out, int n) {
    for (int i = 0; i < n; i++) mxd_buf_putc(out, ' ');
}

static void put_cut(mxd_buf *out, const char *s, int most) {
    int n = 0;
    const char *p = s;
    for (; *p; p++) {
        n += ((unsigned char)*p & 0xC0) != 0x80;
        if (n > most) break;
    }
    mxd_buf_put(out, s, (size_t)(p - s));
}

void mxd_table_write(mxd_table *t, mxd_buf *out, int columns) {
    int width[MXD_TABLE_COLUMNS] = {0}, before = 0;
    if (t->cells.rc) {
        out->rc = out->rc ? out->rc : t->cells.rc;
        return;
    }
    const char *s = mxd_buf_str(&t->cells);
    for (int i = 0; i < t->n_cells; i++, s += strlen(s) + 1) {
        int w = text_width(s), c = i % t->n_columns;
        if (w > width[c]) width[c] = w;
    }
    for (int c = 0; c + 1 < t->n_columns; c++) before += width[c] + 2;
    int last = t->n_columns - 1;
    if (last > 0 && before + width[last] > columns)
        width[last] = columns - before > 8 ? columns - before : 8;
    s = mxd_buf_str(&t->cells);
    for (int i = 0; i < t->n_cells; i++, s += strlen(s) + 1) {
        int c = i % t->n_columns, w = text_width(s);
        if (t->right[c]) pad(out, width[c] - w);
        put_cut(out, s, c ? width[c] : w);
        if (c < last) pad(out, (t->right[c] ? 0 : width[c] - w) + 2);
        if (c == last) mxd_buf_putc(out, '\n');
    }
}

void mxd_table_deinit(mxd_table *t) { mxd_buf_deinit(&t->cells); }

enum { REDRAW_MS = 100, LINE_MS = 10000 };

void mxd_progress_show(mxd_progress *p, const char *what, uint64_t done, uint64_t total) {
    int64_t now = mxd_now_ms();
    int64_t every = p->term->tty ? REDRAW_MS : LINE_MS;
    if (p->quiet || (p->last_ms && now - p->last_ms < every)) return;
    if (!p->term->tty && !p->last_ms) { /* short work prints nothing */
        p->last_ms = now;
        return;
    }
    p->last_ms = now;
    char a[32], b[32];
    double part = total ? (double)done / (double)total * 100 : 0;
    fprintf(p->term->to, "%s%s  %.0f %%  %s of %s%s", p->term->tty ? "\r\033[K" : "", what, part,
            mxd_size_text(a, done), mxd_size_text(b, total), p->term->tty ? "" : "\n");
    fflush(p->term->to);
    p->shown = p->term->tty;
}

void mxd_progress_end(mxd_progress *p) {
    if (p->shown) fputs("\r\033[K", p->term->to);
    p->shown = false;
    p->last_ms = 0;
}

void mxd_wrap_text(mxd_buf *out, const char *text, int at, int indent, int columns) {
    bool fresh = true;
    while (*text) {
        text += strspn(text, " ");
        size_t n = strcspn(text, " ");
        if (!n) break;
        int w = 0;
        for (size_t i = 0; i < n; i++) w += ((unsigned char)text[i] & 0xC0) != 0x80;
        if (!fresh && at + 1 + w > columns) {
            mxd_buf_putc(out, '\n');
            pad(out, indent);
            at = indent;
            fresh = true;
        }
        if (!fresh) {
            mxd_buf_putc(out, ' ');
            at++;
        }
        mxd_buf_put(out, text, n);
        at += w;
        text += n;
        fresh = false;
    }
}
