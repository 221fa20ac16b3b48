/* What Linux says, from /proc and /sys. A file that is missing or strange changes nothing. */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "base/limits.h"
#include "hardware/parse.h"

enum { TEXT_MAX = 1 << 20, SMALL = 4096 };

/* The file's beginning, "" when it cannot be read. */
static const char *slurp(const char *path, char *out, size_t cap) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    size_t n = 0;
    while (fd >= 0 && n + 1 < cap) {
        ssize_t got = read(fd, out + n, cap - 1 - n);
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (fd >= 0) close(fd);
    out[n] = '\0';
    return out;
}

static int read_small_int(const char *path) {
    char text[64];
    uint64_t x;
    if (!mxd_hw_read_bytes(slurp(path, text, sizeof text), &x) || x > 100000000) return 0;
    return (int)x;
}

static void read_core_kinds(mxd_hardware *h) {
    static const char *const sources[] = {"cpu_capacity", "cpufreq/cpuinfo_max_freq"};
    for (size_t k = 0; k < MXD_COUNT(sources) && !h->efficiency_cores; k++) {
        int capacity[MXD_MAX_THREADS], n = 0;
        for (int i = 0; i < MXD_MAX_THREADS; i++) {
            char path[128];
            snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", i, sources[k]);
            int c = read_small_int(path);
            if (c > 0) capacity[n++] = c;
        }
        mxd_hw_split_cores(h, capacity, n);
    }
    /* Intel's hybrids list their cores as two devices */
    char text[SMALL];
    int big = mxd_hw_count_cpus(slurp("/sys/devices/cpu_core/cpus", text, sizeof text));
    int little = mxd_hw_count_cpus(slurp("/sys/devices/cpu_atom/cpus", text, sizeof text));
    if (big && little) {
        h->performance_cores = big;
        h->efficiency_cores = little;
    }
}

static void limit_memory(mxd_hardware *h, const char *limit_file, const char *used_file) {
    char text[64];
    uint64_t limit, used;
    if (!mxd_hw_read_bytes(slurp(limit_file, text, sizeof text), &limit)) return;
    if (!limit || limit >= h->memory_total_bytes) return;
    h->memory_total_bytes = limit;
    if (!mxd_hw_read_bytes(slurp(used_file, text, sizeof text), &used)) used = 0;
    uint64_t left = limit > used ? limit - used : 0;
    if (left < h->memory_available_bytes) h->memory_available_bytes = left;
}

static void limit_cpus(mxd_hardware *h, double cpus, double period_s) {
    if (cpus <= 0 || (h->cpu_quota > 0 && cpus >= h->cpu_quota)) return;
    h->cpu_quota = cpus;
    h->cpu_period_s = period_s;
}

/* Limits hold for a group and everything below it: every folder up to the root counts. */
static void read_cgroup_v2(mxd_hardware *h, char *group) {
    for (;;) {
        char a[512], b[512], text[128];
        double period_s = 0;
        snprintf(a, sizeof a, "/sys/fs/cgroup%s/memory.max", group);
        snprintf(b, sizeof b, "/sys/fs/cgroup%s/memory.current", group);
        limit_memory(h, a, b);
        snprintf(a, sizeof a, "/sys/fs/cgroup%s/cpu.max", group);
        double cpus = mxd_hw_read_cpu_max(slurp(a, text, sizeof text), &period_s);
        limit_cpus(h, cpus, period_s);
        char *slash = strrchr(group, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

static void read_cgroup_v1(mxd_hardware *h, const char *controller, char *group) {
    bool memory = strcmp(controller, "memory") == 0;
    for (;;) {
        char a[512], b[512], text[64];
        const char *dir = "/sys/fs/cgroup";
        snprintf(a, sizeof a, "%s/%s%s/%s", dir, controller, group,
                 memory ? "memory.limit_in_bytes" : "cpu.cfs_quota_us");
        snprintf(b, sizeof b, "%s/%s%s/%s", dir, controller, group,
                 memory ? "memory.usage_in_bytes" : "cpu.cfs_period_us");
        if (memory) {
            limit_memory(h, a, b);
        } else {
            uint64_t quota, period;
            bool ok = mxd_hw_read_bytes(slurp(a, text, sizeof text), &quota) &&
                      mxd_hw_read_bytes(slurp(b, text, sizeof text), &period) && period;
            if (ok) limit_cpus(h, (double)quota / (double)period, (double)period / 1e6);
        }
        char *slash = strrchr(group, '/');
        if (!slash) return;
        *slash = '\0';
    }
}

static void read_cgroups(mxd_hardware *h, char *text) {
    static const char *const controllers[] = {"memory", "cpu"};
    char group[256];
    slurp("/proc/self/cgroup", text, SMALL);
    if (mxd_hw_find_cgroup(text, "", group)) read_cgroup_v2(h, group);
    for (size_t i = 0; i < MXD_COUNT(controllers); i++)
        if (mxd_hw_find_cgroup(text, controllers[i], group))
            read_cgroup_v1(h, controllers[i], group);
}

static void read_cpus_allowed(mxd_hardware *h) {
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    h->logical_cpus = h->online_cpus = online > 0 && online < 4096 ? (int)online : 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) h->logical_cpus = CPU_COUNT(&set);
    if (h->cpu_quota > 0 && h->cpu_quota < h->logical_cpus) /* two thirds of a CPU still are one */
        h->logical_cpus = h->cpu_quota < 1 ? 1 : (int)(h->cpu_quota + 0.5);
}

static void read_power(mxd_hardware *h) {
    DIR *d = opendir("/sys/class/power_supply");
    bool mains = false, mains_on = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        char path[512], kind[32], scope[32];
        snprintf(path, sizeof path, "/sys/class/power_supply/%.200s/type", e->d_name);
        slurp(path, kind, sizeof kind);
        if (strncmp(kind, "Mains", 5) == 0) {
            snprintf(path, sizeof path, "/sys/class/power_supply/%.200s/online", e->d_name);
            mains = true;
            mains_on |= read_small_int(path) == 1;
        }
        /* mice and keyboards have batteries too: their scope is "Device" */
        snprintf(path, sizeof path, "/sys/class/power_supply/%.200s/scope", e->d_name);
        if (strncmp(kind, "Battery", 7) != 0 ||
            !strncmp(slurp(path, scope, sizeof scope), "Device", 6))
            continue;
        h->battery = true;
        snprintf(path, sizeof path, "/sys/class/power_supply/%.200s/capacity", e->d_name);
        int percent = read_small_int(path);
        h->battery_percent = percent > 100 ? 100 : percent;
        snprintf(path, sizeof path, "/sys/class/power_supply/%.200s/status", e->d_name);
        if (!mains) h->on_ac = strncmp(slurp(path, kind, sizeof kind), "Discharging", 11) != 0;
    }
    if (d) closedir(d);
    if (mains) h->on_ac = mains_on;
}

static void read_dmi(mxd_hardware *h) {
    char vendor[96], product[96];
    slurp("/sys/class/dmi/id/sys_vendor", vendor, sizeof vendor);
    slurp("/sys/class/dmi/id/product_name", product, sizeof product);
    if (product[0]) mxd_hw_copy(h->model, sizeof h->model, product, strlen(product));
    h->device =
        mxd_hw_device_of_dmi(read_small_int("/sys/class/dmi/id/chassis_type"), vendor, product);
    if (h->device == MXD_DEVICE_UNKNOWN && h->battery) h->device = MXD_DEVICE_LAPTOP;
    if (!h->model[0]) /* boards without DMI: the device tree */
        slurp("/proc/device-tree/model", h->model, sizeof h->model);
}

static void read_gpu(mxd_hardware *h, char *text) {
    DIR *d = opendir("/proc/driver/nvidia/gpus");
    for (struct dirent *e; d && !h->gpu[0] && (e = readdir(d));) {
        char path[512];
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/driver/nvidia/gpus/%.200s/information", e->d_name);
        mxd_hw_read_nvidia(h, slurp(path, text, SMALL));
    }
    if (d) closedir(d);
    for (int i = 0; i < 8 && !h->gpu[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "/sys/class/drm/card%d/device/vendor", i);
        long id = strtol(slurp(path, text, SMALL), NULL, 16);
        const char *name = id == 0x10de   ? "NVIDIA"
                           : id == 0x1002 ? "AMD"
                           : id == 0x8086 ? "Intel"
                                          : "";
        if (name[0]) snprintf(h->gpu, sizeof h->gpu, "%s graphics", name);
    }
}

mxd_rc mxd_hw_gather(mxd_hardware *h, const mxd_alloc *al, mxd_err *err) {
    char *text = MXD_NEW(al, TEXT_MAX, char);
    if (!text) return mxd_fail(err, MXD_E_NOMEM, "no memory to look at the hardware");
    struct utsname name;
    if (uname(&name) == 0) snprintf(h->os, sizeof h->os, "%.30s %.60s", name.sysname, name.release);
    mxd_hw_read_cpuinfo(h, slurp("/proc/cpuinfo", text, TEXT_MAX));
    mxd_hw_read_meminfo(h, slurp("/proc/meminfo", text, TEXT_MAX));
    read_cgroups(h, text);
    read_cpus_allowed(h);
    read_core_kinds(h);
    read_power(h);
    read_dmi(h);
    read_gpu(h, text);
    mxd_free(al, text);
    return MXD_OK;
}
