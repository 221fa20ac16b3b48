/* reasoning.h - separates what a model thinks from what it says, over any cut of the text.
 *
 *   START --"<think>"--> INSIDE --"</think>"--> AFTER --first character--> SAID
 *     '---anything else------------------------------------------------->  SAID
 *
 * A prompt that already ends inside a block starts in INSIDE. White space at the edges of the block
 * is dropped; an unfinished block stays reasoning. The concatenated pieces do not depend on how the
 * text was cut.
 *
 * Trust: text of a model. Threads: one owner. Memory: what may still become a tag waits in `wait`.
 */
#ifndef MXD_SERVER_TOOLS_REASONING_H
#define MXD_SERVER_TOOLS_REASONING_H

#include "base/buf.h"

typedef enum mxd_think_state {
    MXD_THINK_START,
    MXD_THINK_INSIDE,
    MXD_THINK_AFTER,
    MXD_THINK_SAID
} mxd_think_state;

typedef void mxd_think_put(void *ctx, bool reasoning, const char *s, size_t n);

typedef struct mxd_think {
    mxd_think_state state;
    bool any; /* something of the block was given out */
    mxd_buf wait;
    mxd_think_put *put;
    void *ctx;
} mxd_think;

/* enabled false: everything is said. inside: the prompt ends within a block. */
void mxd_think_init(mxd_think *t, const mxd_alloc *al, bool enabled, bool inside,
                    mxd_think_put *put, void *ctx);
void mxd_think_deinit(mxd_think *t);
void mxd_think_feed(mxd_think *t, const char *s, size_t n); /* failures stick in wait.rc */
void mxd_think_end(mxd_think *t);

/* Whether a prompt ends inside a block: its last start tag stands after its last end tag. */
bool mxd_think_prompt_inside(const char *prompt, size_t n);

#endif
