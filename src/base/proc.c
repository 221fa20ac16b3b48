#include "base/proc.h"

#include <stdio.h>
#include <unistd.h>
#if defined(__APPLE__)
#include <mach/mach.h>
#include <pthread.h>
#else
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#endif

#if defined(__APPLE__)

uint64_t mxd_proc_rss_bytes(void) {
    struct mach_task_basic_info info;
    mach_msg_type_number_t n = MACH_TASK_BASIC_INFO_COUNT;
    if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, (task_info_t)&info, &n) != KERN_SUCCESS)
        return 0;
    return info.resident_size;
}

int mxd_proc_cores(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

void mxd_proc_give_way(void) { pthread_set_qos_class_self_np(QOS_CLASS_UTILITY, 0); }

#else

uint64_t mxd_proc_rss_bytes(void) {
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    unsigned long long size, resident;
    int n = fscanf(f, "%llu %llu", &size, &resident);
    fclose(f);
    return n == 2 ? (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

int mxd_proc_cores(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n > 0 ? n : 1;
}

void mxd_proc_give_way(void) {
    /* on Linux a thread has a number like a process, and its own niceness */
    int unused = setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    (void)unused;
}

#endif
