/* parallel_kit.h - a model cut over ranks and stages in one process: every rank is a thread that
 * exchanges through memory. Prompts and decode steps of two sequences, the same for every cut. */
#ifndef MXD_PARALLEL_KIT_H
#define MXD_PARALLEL_KIT_H

#include "runtime/shard.h"
#include "test.h"

enum { PK_MAX_RANKS = 6, PK_MAX_STAGES = 6, PK_CTX = 64, PK_MAX_MODELS = 96 };

typedef struct pk_stage {
    int layer0, layer1;
    int size;                    /* ranks */
    bool group;                  /* a group even when it is of one */
    bool alone;                  /* each rank has files in which all but its own part is garbage */
    double shares[PK_MAX_RANKS]; /* all 0: equal */
} pk_stage;

typedef struct pk_plan {
    int n_stages;
    pk_stage stage[PK_MAX_STAGES];
} pk_plan;

typedef struct pk_model {
    char folder[1024];
    char family[48]; /* model_type */
    int vocab, n_layers, hidden;
    int last_cut; /* as mxd_hparams */
} pk_model;

/* The shards of a test; act, kv, ...: of the backend. */
mxd_shard_opts pk_options(const pk_model *m, mxd_activations act);

/* The folders of tests/conformance/models in alphabetical order; returns how many. */
int pk_list(char names[PK_MAX_MODELS][64]);

/* tests/conformance/models/NAME. */
void pk_open(pk_model *m, const char *name);

size_t pk_floats(const pk_model *m); /* of all logits and tokens of a run */

/* Runs all steps through the stages; to logits [pk_floats], tokens behind them. Fails unless all
 * ranks of a stage agree.
 */
void pk_run(const pk_model *m, mxd_activations act, const pk_plan *plan, float *logits);

pk_plan pk_whole(const pk_model *m); /* one node */

#endif
