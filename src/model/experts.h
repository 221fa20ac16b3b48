/* experts.h - private to model/: the sparse layer of DeepSeek V3, and of those that follow it.
 *
 * A router of sigmoids with a correction, in groups (DeepSeek-V3, arXiv 2412.19437, section 2.1.2),
 * and perhaps a shared expert that every row goes through. The experts stand in the places of the
 * dense MLP (MXD_BLOCK_GATE, UP, DOWN); what is new follows from a place `at` of the family's. */
#ifndef MXD_MODEL_EXPERTS_H
#define MXD_MODEL_EXPERTS_H

#include "model/blocks.h"

enum { /* places from `at`; the last three only with a shared expert */
       MXD_EXPERTS_ROUTER,
       MXD_EXPERTS_CORRECTION,
       MXD_EXPERTS_SHARED_GATE,
       MXD_EXPERTS_SHARED_UP,
       MXD_EXPERTS_SHARED_DOWN
};

enum { MXD_EXPERTS_REGS = 3 }; /* registers, from a number of the family's */

/* Reads the keys of DeepSeek and GLM into hp->moe; without "n_routed_experts" there are none.
 * Errors: E_FORMAT; E_UNSUPPORTED a router of another kind. */
mxd_rc mxd_experts_configure(mxd_hparams *hp, const json_t *c, mxd_err *err) MXD_MUST_USE;

/* Of a sparse layer; returns how many weights there are now. */
int mxd_experts_declare(const mxd_hparams *hp, mxd_decl *out, int at);
/* Adds MXD_EXPERTS_REGS registers. */
void mxd_experts_registers(const mxd_hparams *hp, mxd_regs *r);
/* x += experts(norm(x)), and += the shared expert's. */
void mxd_experts_layer(const mxd_model *m, int layer, int at, int reg0);

#endif
