/* engine_kit.h - from options to an engine that answers: shared by server, generate and bench. */
#ifndef MXD_CLI_ENGINE_KIT_H
#define MXD_CLI_ENGINE_KIT_H

#include "api/engine.h"
#include "cli/options.h"

typedef struct mxd_engine_kit {
    mxd_engine_opts opts; /* strings point below or into the options */
    char folder[1024], model_id[256], state_dir[1024], worker[1200], journal[1200];
    char *chat_template;
} mxd_engine_kit;

/* Fills kit->opts. Errors: E_NOTFOUND the model; E_INVAL; E_IO; E_NOMEM. */
mxd_rc mxd_engine_kit_fill(mxd_engine_kit *kit, const mxd_options *o, mxd_err *err) MXD_MUST_USE;
void mxd_engine_kit_deinit(mxd_engine_kit *kit);

/* Opens the engine and waits until it can answer. */
mxd_rc mxd_engine_kit_open(mxd_engine_kit *kit, const mxd_options *o, mxd_engine **out,
                           mxd_err *err) MXD_MUST_USE;

/* Waits until the engine can answer, with a progress line; Ctrl-C ends the wait (E_CANCELED). */
mxd_rc mxd_engine_kit_wait(mxd_engine *e, const mxd_engine_kit *kit, const mxd_options *o,
                           mxd_err *err) MXD_MUST_USE;

/* What requests get that do not say: the model's own defaults, then the options. */
mxd_engine_defaults mxd_engine_kit_defaults(const mxd_options *o, const mxd_engine *e);

/* The same for one program's own requests: with a seed in any case. */
mxd_sampling mxd_engine_kit_sampling(const mxd_options *o, const mxd_engine *e);

#endif
