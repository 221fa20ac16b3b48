/* map.h - a hash map from byte strings to 64-bit values; keys are borrowed.
 *
 * Open addressing, linear probing, grows at 70 %. Keys are not copied: they must outlive the map.
 * The hash is seeded per map, so a hostile file cannot aim at it.
 * Threads: readers may share a map that nobody changes.
 */
#ifndef MXD_BASE_MAP_H
#define MXD_BASE_MAP_H

#include <stdint.h>
#include "base/alloc.h"

typedef struct mxd_map_slot {
    const char *key; /* NULL: free */
    uint32_t len, hash;
    uint64_t value;
} mxd_map_slot;

typedef struct mxd_map {
    const mxd_alloc *al;
    mxd_map_slot *slots; /* [cap], cap a power of two */
    size_t cap, n;
    uint64_t seed;
} mxd_map;

/* expect: how many keys are likely; memory is taken at once for them. Errors: E_NOMEM. */
mxd_rc mxd_map_init(mxd_map *m, const mxd_alloc *al, size_t expect, mxd_err *err) MXD_MUST_USE;
void mxd_map_deinit(mxd_map *m);

/* Adds or replaces; *was (may be NULL) tells whether the key was there. Errors: E_NOMEM. */
mxd_rc mxd_map_put(mxd_map *m, const char *key, size_t len, uint64_t value, bool *was,
                   mxd_err *err) MXD_MUST_USE;

/* True and *value (may be NULL) when the key is there. O(1). */
bool mxd_map_get(const mxd_map *m, const char *key, size_t len, uint64_t *value);

#endif
