/* group_kit.h - ranks on threads of this process, which exchange through memory. */
#ifndef MXD_TESTS_GROUP_KIT_H
#define MXD_TESTS_GROUP_KIT_H

#include <pthread.h>
#include "runtime/sampling.h"

typedef struct kit_room { /* where ranks meet */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    int size, here;
    unsigned round;
    bool broken; /* some rank has failed: nobody waits any more */
    const float *given[MXD_MAX_RANKS];
} kit_room;

typedef struct kit_member {
    kit_room *room;
    mxd_group group;
    int exchanges; /* so far */
    pthread_t thread;
} kit_member;

void kit_room_begin(kit_room *m, int size);
void kit_room_end(kit_room *m);
void kit_room_break(kit_room *m); /* the others' exchanges fail from now on */
void kit_join_room(kit_member *k, kit_room *m, int rank);

bool kit_same_sampled(const mxd_sampled *a, const mxd_sampled *b); /* bit by bit */

#endif
