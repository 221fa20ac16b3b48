/* Requests of an earlier life of the coordinator: prompt and accepted tokens are their list, as if
 * the tokens had been accepted in this one. The sampler is a function of (seed, choice, position),
 * so what comes behind them is what would have come. */
#include <string.h>
#include "cluster/core_private.h"

bool core_restore_fits(const mxd_coord *c, const mxd_core_submit *s) {
    if (s->n_accepted < 0 || s->n_accepted > c->cfg.ctx - s->n_prompt) return false;
    if (s->n_accepted > s->max_tokens) return false;
    for (int i = 0; i < s->n_accepted; i++)
        if (s->accepted[i] < 0 || s->accepted[i] >= c->cfg.n_vocab) return false;
    return true;
}

/* The process may have died between the last token and the end. */
void core_restored(mxd_coord *c, core_request *r) {
    int n = r->in.n_accepted;
    if (n && core_is_stop(r, r->in.accepted[n - 1]))
        core_request_end(c, r, MXD_CORE_STOP, MXD_OK, "");
    else if (n >= r->in.max_tokens || r->in.n_prompt + n >= c->cfg.ctx)
        core_request_end(c, r, MXD_CORE_LENGTH, MXD_OK, "");
}

void core_restore_list(mxd_coord *c, const core_request *r) {
    if (!r->in.n_accepted || MUTANT(RESTORE_PROMPT)) return;
    memcpy(core_list(c, r->slot) + r->in.n_prompt, r->in.accepted,
           (size_t)r->in.n_accepted * sizeof *r->in.accepted);
}

/* Of the prompt: what it begins with may be longer when tokens were accepted before. */
int core_cached(const core_request *r) {
    int most = r->in.n_prompt - 1;
    if (r->n_cached < 0) return 0;
    return r->n_cached < most ? r->n_cached : most;
}
