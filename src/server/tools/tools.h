/* tools.h - finds tool calls in what a model says, over any cut of the text.
 *
 *   TEXT --family's open marker--> CALL --close marker--> TEXT
 *
 * A family is one row: markers and a function that reads what stands between them. What looks like
 * a call but cannot be read is given out as text, markers included. White space around calls is
 * dropped. The pieces do not depend on how the text was cut.
 *
 * Trust: text of a model. Threads: one owner.
 */
#ifndef MXD_SERVER_TOOLS_TOOLS_H
#define MXD_SERVER_TOOLS_TOOLS_H

#include "base/buf.h"

typedef struct mxd_tool_family {
    const char *name;        /* tool_parser_type of tokenizer_config.json */
    const char *in_template; /* what the template of such a model writes about tools has this */
    const char *open, *close;
    /* Reads the text between the markers. name, args: empty buffers; args gets valid JSON.
     * False: it is no call. */
    bool (*read)(const char *s, size_t n, mxd_buf *name, mxd_buf *args);
} mxd_tool_family;

/* The first family whose mark is in what the template wrote into the prompt; NULL: none. */
const mxd_tool_family *mxd_tool_family_find(const char *template_text);

typedef struct mxd_tool_sink {
    void (*text)(void *ctx, const char *s, size_t n);
    void (*call)(void *ctx, const char *name, const char *args, size_t n_args);
} mxd_tool_sink;

typedef struct mxd_tool_parser {
    const mxd_tool_family *family; /* NULL: everything is text */
    bool in_call;
    int n_calls, max_calls; /* 0: any; behind the last call nothing is given out */
    mxd_buf wait, name, args;
    const mxd_tool_sink *sink;
    void *ctx;
} mxd_tool_parser;

void mxd_tool_parser_init(mxd_tool_parser *p, const mxd_alloc *al, const mxd_tool_family *family,
                          int max_calls, const mxd_tool_sink *sink, void *ctx);
void mxd_tool_parser_deinit(mxd_tool_parser *p);
void mxd_tool_parser_feed(mxd_tool_parser *p, const char *s, size_t n); /* failures: wait.rc */
void mxd_tool_parser_end(mxd_tool_parser *p);

/* families */
bool mxd_hermes_read(const char *s, size_t n, mxd_buf *name, mxd_buf *args);

#endif
