/* template.h - chat templates: an interpreter for the part of Jinja that model repositories use,
 * with jinja2's results byte for byte (trim_blocks, lstrip_blocks, loop controls, the immutable
 * sandbox, the default Undefined).
 *
 * Every string carries marks of trust: text of the template is trusted, everything from a request
 * (messages, tools, keyword arguments) is not; the marks survive concatenation, slicing, filters
 * and macros. The result is a list of spans for mxd_tokenizer_encode, so a user's `<|im_start|>`
 * never becomes a token.
 *
 * Trust:    both the template and the variables are hostile: steps, depth, output, memory and time
 *           are bounded (MXD_TEMPLATE_MAX_*, 100 ms of processor time).
 * Lifetime: a template lives with the model. Threads: read-only after opening; render anywhere.
 * Errors:   E_FORMAT the template is wrong (names the line), E_INVAL the template itself refused
 *           by raise_exception (the message is its own, for the client), E_TOOBIG a limit,
 *           E_UNSUPPORTED a feature that is not built in, E_NOMEM.
 */
#ifndef MXD_TOKENIZER_TEMPLATE_H
#define MXD_TOKENIZER_TEMPLATE_H

#include <jansson.h>
#include "tokenizer/tokenizer.h"

typedef struct mxd_template mxd_template;

/* Parses a template. The source is copied.
 *   *out   owned by the caller: mxd_template_close; untouched on error */
mxd_rc mxd_template_open(mxd_template **out, const mxd_alloc *al, const char *source, size_t n,
                         mxd_err *err) MXD_MUST_USE;
void mxd_template_close(mxd_template *t); /* NULL is fine */

/* Finds and parses the template of a model folder: chat_template.jinja (with
 * additional_chat_templates/NAME.jinja), else chat_template.json, else tokenizer_config.json's
 * `chat_template`, a string or a list of {name, template}. With names, `tool_use` is taken when
 * has_tools and there is one, else `default`.
 * Errors: as above; E_NOTFOUND there is none; E_IO. */
mxd_rc mxd_template_load(mxd_template **out, const mxd_alloc *al, const char *folder,
                         bool has_tools, mxd_err *err) MXD_MUST_USE;

typedef struct mxd_rendered {
    const mxd_alloc *al;
    char *text; /* [n], a NUL behind; owned */
    size_t n;
    mxd_span *spans; /* [n_spans] cover text in order; neighbours differ in trust; owned */
    size_t n_spans;
} mxd_rendered;

/* Runs the template.
 *   vars           an object: messages, tools, add_generation_prompt, ...; untrusted; borrowed
 *   trusted_vars   the same for variables to trust (bos_token, ...), or NULL; vars win
 *   now            Unix time in seconds, for strftime_now (in local time)
 *   *out           owned by the caller: mxd_rendered_deinit; untouched on error */
mxd_rc mxd_template_render(const mxd_template *t, const json_t *vars, const json_t *trusted_vars,
                           int64_t now, mxd_rendered *out, mxd_err *err) MXD_MUST_USE;
void mxd_rendered_deinit(mxd_rendered *r);

/* Messages of a chat request as templates want them: text parts joined into one string, null
 * content as "", the `arguments` of tool calls parsed from JSON text into objects (text that is
 * not JSON stays). Lists with parts that are not text stay lists.
 *   *out   a new reference; `messages` is not changed, and unchanged parts are shared
 * Errors: E_INVAL not a list of objects; E_NOMEM. */
mxd_rc mxd_template_messages(json_t **out, const json_t *messages, mxd_err *err) MXD_MUST_USE;

#endif
