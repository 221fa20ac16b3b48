/* candidates.c - every folder of this machine that may hold a model. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "hub/resolve.h"

typedef struct walk {
    char *out; /* [MXD_HUB_PATH_MAX] */
    int left;  /* candidates to pass over */
} walk;

static bool join(char out[MXD_HUB_PATH_MAX], const char *dir, const char *name) {
    return snprintf(out, MXD_HUB_PATH_MAX, "%s/%s", dir, name) < MXD_HUB_PATH_MAX;
}

/* True: `folder` is the one. */
static bool is_it(walk *w, const char *folder) {
    char config[MXD_HUB_PATH_MAX];
    if (!join(config, folder, "config.json") || access(config, R_OK) != 0) return false;
    if (w->left-- > 0) return false;
    return snprintf(w->out, MXD_HUB_PATH_MAX, "%s", folder) < MXD_HUB_PATH_MAX;
}

/* The folders in `dir` and, below them, to a depth. */
static bool walk_folder(walk *w, const char *dir, int depth) {
    DIR *d = opendir(dir);
    if (!d) return false;
    bool found = false;
    for (const struct dirent *e; !found && (e = readdir(d));) {
        char folder[MXD_HUB_PATH_MAX];
        if (e->d_name[0] == '.' || !join(folder, dir, e->d_name)) continue;
        found = is_it(w, folder) || (depth > 0 && walk_folder(w, folder, depth - 1));
    }
    closedir(d);
    return found;
}

static bool walk_cache(walk *w, const char *dir) {
    static const char head[] = "models--";
    DIR *d = opendir(dir);
    if (!d) return false;
    bool found = false;
    for (const struct dirent *e; !found && (e = readdir(d));) {
        char repo[MXD_HUB_PATH_MAX], snapshots[MXD_HUB_PATH_MAX];
        if (strncmp(e->d_name, head, sizeof head - 1) != 0) continue;
        if (!join(repo, dir, e->d_name) || !join(snapshots, repo, "snapshots")) continue;
        found = walk_folder(w, snapshots, 0);
    }
    closedir(d);
    return found;
}

bool mxd_hub_candidate(char out[MXD_HUB_PATH_MAX], const mxd_alloc *al, const char *model,
                       const mxd_hub_places *places, int k) {
    walk w = {out, k};
    char named[MXD_HUB_PATH_MAX];
    if (mxd_hub_resolve(named, al, model, places, NULL) == MXD_OK && is_it(&w, named)) return true;
    if (places->models_dir && places->models_dir[0] && walk_folder(&w, places->models_dir, 1))
        return true;
    return places->cache_dir && places->cache_dir[0] && walk_cache(&w, places->cache_dir);
}
