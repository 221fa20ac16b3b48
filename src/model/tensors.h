/* tensors.h - private to model/: from a family's declarations to tensors of the files, and to
 * sizes.
 *
 * Lifetime: sources borrow the model's tensors and the caller's path. */
#ifndef MXD_MODEL_TENSORS_H
#define MXD_MODEL_TENSORS_H

#include "model/family.h"

/* ---- tensors.c ---- */

mxd_decl mxd_embed_decl(const mxd_model *m);
mxd_decl mxd_norm_decl(const mxd_model *m);
mxd_decl mxd_head_decl(const mxd_model *m);

/* The weights of a layer; returns how many. */
int mxd_declare(const mxd_model *m, int layer, mxd_decl out[MXD_MAX_LAYER_WEIGHTS]);

/* The source of a weight: finds its tensors and checks them against the declaration.
 *   layer  < 0: the declaration's path stands alone
 *   path   filled in: src->name points to it
 * Errors: E_FORMAT, E_UNSUPPORTED. */
mxd_rc mxd_source(const mxd_model *m, const mxd_decl *d, int layer, char path[256],
                  mxd_weight_src *src, mxd_err *err) MXD_MUST_USE;

/* The same of what rank `rank` holds of it; src->cut points to *cut, where it is cut for a group's
 * operations. *none: it holds nothing, and the weight is not loaded. */
/* shares NULL: of all. */
mxd_rc mxd_share_source(const mxd_model *m, const mxd_decl *d, int layer, const mxd_shares *shares,
                        int rank, char path[256], mxd_weight_src *src, mxd_cut *cut, bool *none,
                        mxd_err *err) MXD_MUST_USE;

/* What a source takes in memory. */
uint64_t mxd_source_bytes(const mxd_model *m, const mxd_weight_src *s);

/* All layers' tensors are there; unexpected ones get a warning by name. */
mxd_rc mxd_check_tensors(mxd_model *m, mxd_err *err) MXD_MUST_USE;

/* ---- shares.c ---- */

/* All things of an axis; 0: the model has none. */
int mxd_axis_count(const mxd_hparams *hp, mxd_axis by);
/* The numbers of the model with what a rank has of each axis. */
/* Things of each axis, and how many of them stay together. */
mxd_rc mxd_axis_steps(const mxd_model *m, int step[MXD_AXES], mxd_err *err) MXD_MUST_USE;
void mxd_local_hparams(const mxd_model *m, const mxd_shares *s, int rank, mxd_hparams *out);

/* ---- sizes.c ---- */

/* local: of a rank, or of all. */
mxd_kv_spec mxd_layer_kv(const mxd_model *m, const mxd_hparams *local, int layer);
mxd_state_spec mxd_layer_state(const mxd_hparams *local, int layer);
void mxd_model_registers(const mxd_model *m, const mxd_hparams *local, mxd_regs *r);

#endif
