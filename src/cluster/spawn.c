#include "cluster/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

extern char **environ;

/* Both ends close on exec; the child's standard input is made from the read end by the spawn. */
static mxd_rc make_pipe(int ends[2], mxd_err *err) {
    if (pipe(ends) != 0) return mxd_fail_sys(err, MXD_E_IO, "cannot make a pipe for a worker");
    for (int i = 0; i < 2; i++) fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    return MXD_OK;
}

/* The bootstrap fits the pipe's buffer (64 KB on Linux, 16 KB and growing on macOS); a child that
 * does not read must not block us, so the end is non-blocking. */
static mxd_rc send_all(int fd, const char *p, size_t n, mxd_err *err) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
    int64_t until = mxd_now_ms() + 2000;
    while (n) {
        ssize_t w = write(fd, p, n);
        if (w > 0) {
            p += w;
            n -= (size_t)w;
        } else if (errno != EAGAIN && errno != EINTR) {
            return mxd_fail_sys(err, MXD_E_IO, "the worker ended before it had started");
        } else if (mxd_now_ms() > until) {
            return mxd_fail(err, MXD_E_IO, "the worker does not read its standard input");
        } else {
            mxd_sleep_ms(1);
        }
    }
    return MXD_OK;
}

/* Default signals and an empty mask: the parent's choices are not the child's. */
static void plain_signals(posix_spawnattr_t *attr) {
    sigset_t none, all;
    sigemptyset(&none);
    sigemptyset(&all);
    const int back[] = {SIGINT, SIGTERM, SIGPIPE, SIGHUP, SIGCHLD};
    for (size_t i = 0; i < MXD_COUNT(back); i++) sigaddset(&all, back[i]);
    posix_spawnattr_setsigmask(attr, &none);
    posix_spawnattr_setsigdefault(attr, &all);
    posix_spawnattr_setpgroup(attr, 0);
    posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                       POSIX_SPAWN_SETPGROUP);
}

mxd_rc mxd_child_start(mxd_child *c, const char *const *argv, const char *bootstrap, size_t n,
                       mxd_err *err) {
    int ends[2];
    *c = (mxd_child){.lifeline = -1};
    MXD_TRY(make_pipe(ends, err));
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_adddup2(&files, ends[0], STDIN_FILENO);
    posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    plain_signals(&attr);
    int e = posix_spawn(&c->pid, argv[0], &files, &attr, (char *const *)argv, environ);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    close(ends[0]);
    c->lifeline = ends[1];
    mxd_rc rc = MXD_OK;
    if (e) {
        c->pid = 0;
        errno = e;
        rc = mxd_fail_sys(err, e == ENOENT ? MXD_E_NOTFOUND : MXD_E_IO, "cannot start %s", argv[0]);
    } else {
        rc = send_all(c->lifeline, bootstrap, n, err);
    }
    if (rc) mxd_children_end(c, 1, 0);
    return rc;
}

bool mxd_child_ended(mxd_child *c, int *how) {
    if (!c->pid) return true;
    int status;
    pid_t p = waitpid(c->pid, &status, WNOHANG);
    if (p == 0 || (p < 0 && errno == EINTR)) return false;
    *how = p < 0 ? 0 : WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    c->pid = 0;
    mxd_child_release(c);
    return true;
}

void mxd_child_release(mxd_child *c) {
    if (c->lifeline >= 0) close(c->lifeline);
    c->lifeline = -1;
}

void mxd_child_kill(mxd_child *c) {
    if (c->pid) kill(c->pid, SIGKILL);
}

static bool all_ended(mxd_child *c, int n) {
    int how;
    bool all = true;
    for (int i = 0; i < n; i++) all &= mxd_child_ended(&c[i], &how);
    return all;
}

void mxd_children_end(mxd_child *c, int n, int64_t wait_ms) {
    for (int i = 0; i < n; i++) mxd_child_release(&c[i]);
    int64_t until = mxd_now_ms() + wait_ms;
    while (!all_ended(c, n) && mxd_now_ms() < until) mxd_sleep_ms(2);
    for (int i = 0; i < n; i++) mxd_child_kill(&c[i]);
    while (!all_ended(c, n)) mxd_sleep_ms(1);
}
