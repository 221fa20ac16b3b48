/* worker_fault.h - a fault that tests ask a worker for: its steps hang, or come late.
 *
 * Nothing happens unless the environment names it, MLXD_TEST_STALL=hang or =MILLISECONDS, and then
 * only between one SIGUSR2 and the next. Heartbeats go on meanwhile, as they do when a real
 * computation hangs. Not an option: no user needs it; docs/faults.md describes it.
 *
 * Threads: call once, before the worker is opened.
 */
#ifndef MXD_CLI_WORKER_FAULT_H
#define MXD_CLI_WORKER_FAULT_H

#include <stdatomic.h>

/* For mxd_worker_opts.stall_ms; NULL: not asked for, or the value is neither. */
const atomic_int *mxd_worker_fault(void);

#endif
