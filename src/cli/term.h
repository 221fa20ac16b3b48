/* term.h - what goes to a person's terminal: colours, widths, sizes with labels, tables, progress.
 *
 * Colour and bars only on a terminal, never when NO_COLOR is set or TERM is dumb; CLICOLOR_FORCE
 * turns colours on in any case. Without a terminal a progress line is printed every 10 s.
 * Threads: one owner.
 */
#ifndef MXD_CLI_TERM_H
#define MXD_CLI_TERM_H

#include <stdint.h>
#include <stdio.h>
#include "base/buf.h"

typedef struct mxd_term {
    FILE *to;
    bool tty, colour;
    int columns; /* 80 when not a terminal */
} mxd_term;

void mxd_term_init(mxd_term *t, FILE *to, bool no_color);

/* The escape that begins a style, "" without colours. */
const char *mxd_term_bold(const mxd_term *t);
const char *mxd_term_dim(const mxd_term *t);
const char *mxd_term_red(const mxd_term *t);
const char *mxd_term_plain(const mxd_term *t); /* ends every style */

/* "17.2 GB", "512 MB", "0 B": powers of ten, always labelled; returns out. */
const char *mxd_size_text(char out[32], uint64_t bytes);
/* "250 ms", "30 s", "15 min", "10 h"; returns out. */
const char *mxd_time_text(char out[32], int64_t ms);
/* "85 GB/s", "3.2 Top/s": three digits and a unit behind the power of ten; returns out. */
const char *mxd_rate_text(char out[32], double per_s, const char *unit);

/* Cells of a table; the first row is the heading. Columns are as wide as their widest cell; when
 * all do not fit `columns`, cells of the last column are cut, never the first column. */
enum { MXD_TABLE_COLUMNS = 12 };
typedef struct mxd_table {
    int n_columns, n_rows;
    bool right[MXD_TABLE_COLUMNS]; /* numbers */
    mxd_buf cells;                 /* texts with NUL behind each, row by row */
    int n_cells;
} mxd_table;
void mxd_table_init(mxd_table *t, const mxd_alloc *al, int n_columns);
void mxd_table_cell(mxd_table *t, const char *fmt, ...) MXD_PRINTF(2, 3);
void mxd_table_write(mxd_table *t, mxd_buf *out, int columns);
void mxd_table_deinit(mxd_table *t);

/* One line that is drawn over itself: "loading  45 %  1.2 GB of 2.7 GB". */
typedef struct mxd_progress {
    mxd_term *term;
    bool quiet, shown;
    int64_t last_ms;
} mxd_progress;
void mxd_progress_show(mxd_progress *p, const char *what, uint64_t done, uint64_t total);
void mxd_progress_end(mxd_progress *p); /* clears the line */

/* Appends `text` broken at spaces into lines of at most `columns`, each line but the first behind
 * `indent` spaces; the first is taken to start at column `at`. */
void mxd_wrap_text(mxd_buf *out, const char *text, int at, int indent, int columns);

#endif
