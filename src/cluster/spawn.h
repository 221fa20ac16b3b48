/* spawn.h - local worker processes: started with a lifeline, never left behind.
 *
 * A child gets its bootstrap text (who it is, whom to join, its key) on standard input, which stays
 * open as long as the parent lives. A child that reads the end of its input ends itself; so no
 * worker outlives its server, whatever killed the server. It has its own process group: Ctrl-C in
 * the terminal reaches the server alone, which then ends its workers in order.
 *
 * Threads: one owner (the cluster's thread).
 */
#ifndef MXD_CLUSTER_SPAWN_H
#define MXD_CLUSTER_SPAWN_H

#include <stdint.h>
#include <sys/types.h>
#include "base/alloc.h"

typedef struct mxd_child {
    pid_t pid;    /* 0: none */
    int lifeline; /* write end of its standard input; -1: none */
} mxd_child;

/* Runs argv[0] (a path) with argv; standard output goes to /dev/null, standard error is shared.
 * Errors: E_NOTFOUND no such program; E_IO. */
mxd_rc mxd_child_start(mxd_child *c, const char *const *argv, const char *bootstrap, size_t n,
                       mxd_err *err) MXD_MUST_USE;

/* True when it has ended (and collects it); *how: exit code, or 128 + signal. Never blocks. */
bool mxd_child_ended(mxd_child *c, int *how);

void mxd_child_release(mxd_child *c); /* cuts the lifeline: it will end by itself */
void mxd_child_kill(mxd_child *c);    /* SIGKILL */

/* Cuts all lifelines, waits at most wait_ms for the children, kills the rest, collects all. */
void mxd_children_end(mxd_child *c, int n, int64_t wait_ms);

#endif
