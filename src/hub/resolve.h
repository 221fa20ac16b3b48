/* resolve.h - from what a user calls a model to the folder that holds it.
 *
 * Looked for in this order: a folder of that name; a folder of that name in --models-dir; "demo",
 * the model that comes with the program; "org/name[@revision]" in the hub cache, which is shared
 * with other tools (refs/ and snapshots/, as huggingface_hub writes them). Nothing is fetched here.
 *
 * Trust: the cache is written by other programs: revisions read from it are checked before they
 * become part of a path. Threads: reentrant. Nothing here reads the environment: callers do.
 */
#ifndef MXD_HUB_RESOLVE_H
#define MXD_HUB_RESOLVE_H

#include "base/alloc.h"

enum { MXD_HUB_PATH_MAX = 1024 };

typedef struct mxd_hub_places { /* NULL or "": not there */
    const char *models_dir;     /* --models-dir */
    const char *data_dir;       /* MLXD_DATA_DIR: holds models/demo */
    const char *program_dir;    /* where the running program lies: demo is found beside it */
    const char *cache_dir;      /* of mxd_hub_cache_dir */
} mxd_hub_places;

/* The environment's words on the cache; NULL: unset. */
typedef struct mxd_hub_env {
    const char *hf_hub_cache, *huggingface_hub_cache, *hf_home, *xdg_cache_home, *home;
} mxd_hub_env;

/* $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, HF_HOME being
 * ${XDG_CACHE_HOME:-~/.cache}/huggingface. Errors: E_CONFIG none is set; E_TOOBIG. */
mxd_rc mxd_hub_cache_dir(char out[MXD_HUB_PATH_MAX], const mxd_hub_env *env,
                         mxd_err *err) MXD_MUST_USE;

/* *out: a folder with a config.json, and with every weights file that its index names.
 * Errors: E_NOTFOUND, and what to run to get the model; E_FORMAT a broken cache entry; E_INVAL not
 * a model's name; E_TOOBIG; E_NOMEM. */
mxd_rc mxd_hub_resolve(char out[MXD_HUB_PATH_MAX], const mxd_alloc *al, const char *model,
                       const mxd_hub_places *places, mxd_err *err) MXD_MUST_USE;

/* Folder k, counted from 0, that may hold the weights of `model` whatever it is called: first the
 * one that mxd_hub_resolve names, then each with a config.json in --models-dir (and one level
 * below), then every snapshot of the hub cache. What is in them is for the caller to check; the
 * same folder may come twice. False: there are no more. */
bool mxd_hub_candidate(char out[MXD_HUB_PATH_MAX], const mxd_alloc *al, const char *model,
                       const mxd_hub_places *places, int k);

#endif
