/* What systems say about themselves, damaged: no reader may leave its fields or their ranges. */
#include "hardware/parse.h"

#include <stdlib.h>
#include <string.h>
#include "base/alloc.h"
#include "fuzz.h"

static void read_all(mxd_hardware *h, const char *text) {
    char group[256];
    uint64_t bytes;
    double period;
    mxd_hw_read_cpuinfo(h, text);
    mxd_hw_read_meminfo(h, text);
    mxd_hw_read_nvidia(h, text);
    mxd_hw_read_sysctl(h, text);
    mxd_hw_read_displays(h, text);
    mxd_hw_read_ioreg(h, text);
    mxd_hw_read_pmset(h, text);
    mxd_hw_count_cpus(text);
    mxd_hw_read_cpu_max(text, &period);
    mxd_hw_read_bytes(text, &bytes);
    mxd_hw_find_cgroup(text, "cpu", group);
    mxd_hw_find_cgroup(text, "", group);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mxd_hardware h = {0};
    char *text = mxd_strndup(&mxd_alloc_libc, (const char *)data, size);
    if (!text) return 0;
    read_all(&h, text);
    mxd_free(&mxd_alloc_libc, text);
    bool ok = h.battery_percent >= 0 && h.battery_percent <= 100 && h.gpu_cores >= 0 &&
              h.gpu_cores <= 4096 && memchr(h.chip, 0, sizeof h.chip) &&
              memchr(h.gpu, 0, sizeof h.gpu);
    if (!ok) abort();
    return 0;
}
