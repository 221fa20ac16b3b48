/* prompt.h - from a checked request to token ids.
 *
 * Text of users and tools is untrusted: what looks like a special token in it is ordinary text.
 * Only what the template itself writes may become special tokens.
 */
#ifndef MXD_SERVER_OPENAI_PROMPT_H
#define MXD_SERVER_OPENAI_PROMPT_H

#include "server/params.h"
#include "server/tools/tools.h"

typedef struct mxd_prompt {
    mxd_ids ids;
    mxd_buf text;                  /* as rendered or given; for echo and /apply-template */
    bool ends_in_reasoning;        /* the answer goes on inside a <think> block */
    bool has_reasoning;            /* the model knows <think> */
    const mxd_tool_family *family; /* how the model writes calls; NULL: no tools, or not known */
} mxd_prompt;

/* Renders and encodes the messages. encode false: only the text.
 * False: *f is set (chat_template_error, chat_template_limit, memory). */
bool mxd_prompt_chat(mxd_prompt *out, const mxd_alloc *al, mxd_engine *e, const mxd_params *p,
                     bool encode, mxd_fault *f);

/* One prompt of /v1/completions: a string or an array of ids. */
bool mxd_prompt_text(mxd_prompt *out, const mxd_alloc *al, mxd_engine *e, const json_t *v,
                     bool want_text, mxd_fault *f);

void mxd_prompt_deinit(mxd_prompt *p); /* a zeroed one is fine */

#endif
