/* checks.h - the checks of fields that a type and two bounds do not describe. Each returns true, or
 * false with the fault filled in. Trust: hostile. */
#ifndef MXD_SERVER_CHECKS_H
#define MXD_SERVER_CHECKS_H

#include "server/params.h"

bool mxd_check_messages(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_prompt(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_stop(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_n(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_logit_bias(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_stream_options(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_response_format(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_tools(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_tool_choice(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_stop_ids(const mxd_params *p, json_t *v, mxd_fault *f);
bool mxd_check_tokens(const mxd_params *p, json_t *v, mxd_fault *f);

/* Rules between fields; after every field passed on its own. */
bool mxd_check_together(const mxd_params *p, mxd_fault *f);

#endif
