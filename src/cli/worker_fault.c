#include "cli/worker_fault.h"

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

enum { HANG = -1, MOST_MS = 60000 };

static atomic_int now; /* lock-free, so that a signal handler may change it */
static int asked;

static void turn(int sig) {
    (void)sig;
    atomic_store(&now, atomic_load(&now) ? 0 : asked);
}

const atomic_int *mxd_worker_fault(void) {
    const char *text = getenv("MLXD_TEST_STALL");
    if (!text) return NULL;
    long ms = strtol(text, NULL, 10);
    bool hang = strcmp(text, "hang") == 0;
    if (!hang && (ms < 1 || ms > MOST_MS)) return NULL;
    asked = hang ? HANG : (int)ms;
    struct sigaction sa = {.sa_handler = turn, .sa_flags = SA_RESTART};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGUSR2, &sa, NULL);
    mxd_log(MXD_LOG_WARN, "test_fault", "MLXD_TEST_STALL=%s on SIGUSR2", text);
    return &now;
}
