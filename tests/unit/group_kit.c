#include "group_kit.h"

#include <string.h>

void kit_room_begin(kit_room *m, int size) {
    *m = (kit_room){.size = size};
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->moved, NULL);
}

void kit_room_end(kit_room *m) {
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->moved);
}

void kit_room_break(kit_room *m) {
    pthread_mutex_lock(&m->lock);
    m->broken = true;
    pthread_cond_broadcast(&m->moved);
    pthread_mutex_unlock(&m->lock);
}

static bool meet(kit_room *m) {
    pthread_mutex_lock(&m->lock);
    unsigned round = m->round;
    if (++m->here == m->size) {
        m->here = 0;
        m->round++;
        pthread_cond_broadcast(&m->moved);
    }
    while (round == m->round && !m->broken) pthread_cond_wait(&m->moved, &m->lock);
    bool ok = !m->broken;
    pthread_mutex_unlock(&m->lock);
    return ok;
}

static mxd_rc exchange(void *ctx, float *all, const size_t *n_each, mxd_err *err) {
    kit_member *k = ctx;
    float *mine = all;
    k->exchanges++;
    for (int i = 0; i < k->group.rank; i++) mine += n_each[i];
    k->room->given[k->group.rank] = mine;
    bool ok = meet(k->room);
    for (int i = 0; ok && i < k->group.size; all += n_each[i++])
        if (n_each[i] && i != k->group.rank)
            memcpy(all, k->room->given[i], n_each[i] * sizeof *all);
    if (ok) ok = meet(k->room); /* before `mine` changes */
    return ok ? MXD_OK : mxd_fail(err, MXD_E_CANCELED, "another rank failed");
}

void kit_join_room(kit_member *k, kit_room *m, int rank) {
    *k = (kit_member){.room = m, .group = {rank, m->size, k, exchange}};
}

bool kit_same_sampled(const mxd_sampled *a, const mxd_sampled *b) {
    return a->token == b->token && a->n_top == b->n_top &&
           !memcmp(&a->logprob, &b->logprob, sizeof a->logprob) &&
           !memcmp(a->top_id, b->top_id, sizeof a->top_id) &&
           !memcmp(a->top_logprob, b->top_logprob, sizeof a->top_logprob);
}
