#include "hardware/parse.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_CPUS = 4096 };

void mxd_hw_copy(char *out, size_t cap, const char *s, size_t n) {
    while (n && isspace((unsigned char)s[0])) s++, n--;
    while (n && (isspace((unsigned char)s[n - 1]) || !s[n - 1])) n--;
    if (n >= cap) n = cap - 1;
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)s[i] < 32 || s[i] == 127 || (signed char)s[i] < 0 ? ' ' : s[i];
    out[n] = '\0';
}

/* Whether the line at s has `key` before its colon; *value and *n are what stands behind it. */
static bool line_has(const char *s, const char *key, const char **value, size_t *n) {
    size_t k = strlen(key), end = strcspn(s, "\n");
    if (end < k || strncmp(s, key, k) != 0) return false;
    size_t i = k;
    while (i < end && (s[i] == ' ' || s[i] == '\t')) i++;
    if (i == end || s[i] != ':') return false;
    *value = s + i + 1;
    *n = end - i - 1;
    return true;
}

static const char *next_line(const char *s) {
    s += strcspn(s, "\n");
    return *s ? s + 1 : s;
}

static bool has_word(const char *s, size_t n, const char *word) {
    size_t k = strlen(word);
    for (size_t i = 0; i + k <= n; i++) {
        bool starts = i == 0 || s[i - 1] == ' ' || s[i - 1] == '\t';
        bool ends = i + k == n || s[i + k] == ' ';
        if (starts && ends && strncmp(s + i, word, k) == 0) return true;
    }
    return false;
}

static void read_flags(mxd_isa *isa, const char *s, size_t n) {
    isa->avx2 |= has_word(s, n, "avx2");
    isa->fma |= has_word(s, n, "fma");
    isa->avx512 |=
        has_word(s, n, "avx512f") && has_word(s, n, "avx512bw") && has_word(s, n, "avx512vl");
    isa->avx512_vnni |= has_word(s, n, "avx512_vnni");
    isa->avx_vnni |= has_word(s, n, "avx_vnni");
    isa->amx_int8 |= has_word(s, n, "amx_int8");
    isa->neon |= has_word(s, n, "asimd") || has_word(s, n, "neon");
    isa->dotprod |= has_word(s, n, "asimddp");
    isa->i8mm |= has_word(s, n, "i8mm");
    isa->sve |= has_word(s, n, "sve");
    isa->sme |= has_word(s, n, "sme");
}

/* ARM names its makers and cores by number: Documentation of the implementers in MIDR_EL1. */
static const char *arm_vendor(long implementer) {
    switch (implementer) {
    case 0x41:
        return "ARM";
    case 0x42:
        return "Broadcom";
    case 0x43:
        return "Cavium";
    case 0x48:
        return "HiSilicon";
    case 0x4e:
        return "NVIDIA";
    case 0x50:
        return "APM";
    case 0x51:
        return "Qualcomm";
    case 0x61:
        return "Apple";
    case 0xc0:
        return "Ampere";
    default:
        return "";
    }
}

static const char *vendor_name(const char *id) {
    if (strcmp(id, "GenuineIntel") == 0) return "Intel";
    if (strcmp(id, "AuthenticAMD") == 0) return "AMD";
    return id;
}

void mxd_hw_read_cpuinfo(mxd_hardware *h, const char *text) {
    char id[64], pairs[64][16];
    int n_pairs = 0;
    char package[8] = "0";
    for (const char *s = text; *s; s = next_line(s)) {
        const char *v;
        size_t n;
        if (line_has(s, "model name", &v, &n) && !h->chip[0])
            mxd_hw_copy(h->chip, sizeof h->chip, v, n);
        if (line_has(s, "Model", &v, &n)) mxd_hw_copy(h->model, sizeof h->model, v, n);
        if (line_has(s, "flags", &v, &n) || line_has(s, "Features", &v, &n))
            read_flags(&h->isa, v, n);
        if (line_has(s, "vendor_id", &v, &n)) {
            mxd_hw_copy(id, sizeof id, v, n);
            mxd_hw_copy(h->vendor, sizeof h->vendor, vendor_name(id), strlen(vendor_name(id)));
        }
        if (line_has(s, "CPU implementer", &v, &n)) {
            const char *name = arm_vendor(strtol(v, NULL, 16));
            mxd_hw_copy(h->vendor, sizeof h->vendor, name, strlen(name));
        }
        if (line_has(s, "physical id", &v, &n)) mxd_hw_copy(package, sizeof package, v, n);
        if (line_has(s, "core id", &v, &n) && n_pairs < 64) { /* physical cores: distinct pairs */
            char core[8], pair[16];
            mxd_hw_copy(core, sizeof core, v, n);
            snprintf(pair, sizeof pair, "%.6s.%.6s", package, core);
            int k = 0;
            while (k < n_pairs && strcmp(pairs[k], pair) != 0) k++;
            if (k == n_pairs) snprintf(pairs[n_pairs++], sizeof pair, "%s", pair);
        }
    }
    if (n_pairs && n_pairs < 64) h->physical_cores = n_pairs;
}

static bool read_u64(const char *s, uint64_t *out) {
    while (*s == ' ' || *s == '\t') s++;
    if (!isdigit((unsigned char)*s)) return false;
    char *end;
    errno = 0;
    *out = strtoull(s, &end, 10);
    return errno == 0;
}

void mxd_hw_read_meminfo(mxd_hardware *h, const char *text) {
    for (const char *s = text; *s; s = next_line(s)) {
        const char *v;
        size_t n;
        uint64_t kb, *to = NULL;
        if (line_has(s, "MemTotal", &v, &n))
            to = &h->memory_total_bytes;
        else if (line_has(s, "MemAvailable", &v, &n))
            to = &h->memory_available_bytes;
        if (to && read_u64(v, &kb) && kb < UINT64_MAX / 1024) *to = kb * 1024;
    }
}

void mxd_hw_read_nvidia(mxd_hardware *h, const char *text) {
    for (const char *s = text; *s; s = next_line(s)) {
        const char *v;
        size_t n;
        if (line_has(s, "Model", &v, &n)) mxd_hw_copy(h->gpu, sizeof h->gpu, v, n);
    }
}

int mxd_hw_count_cpus(const char *text) {
    int count = 0;
    for (const char *s = text; isdigit((unsigned char)*s);) {
        char *end;
        long a = strtol(s, &end, 10), b = a;
        if (*end == '-' && isdigit((unsigned char)end[1])) b = strtol(end + 1, &end, 10);
        if (a < 0 || b < a || b >= MAX_CPUS) return 0;
        count += (int)(b - a + 1);
        if (*end != ',') return !*end || *end == '\n' ? count : 0;
        s = end + 1;
    }
    return 0;
}

bool mxd_hw_read_bytes(const char *text, uint64_t *out) { return read_u64(text, out); }

double mxd_hw_read_cpu_max(const char *text, double *period_s) {
    uint64_t quota, period;
    const char *space = strchr(text, ' ');
    if (!space || !read_u64(text, &quota) || !read_u64(space, &period) || !period || !quota)
        return 0;
    *period_s = (double)period / 1e6;
    return (double)quota / (double)period;
}

/* Is `name` one of "cpu,cpuacct" (n bytes)? */
static bool is_in_list(const char *s, size_t n, const char *name) {
    size_t k = strlen(name);
    for (size_t i = 0; i <= n; i++) {
        size_t m = strcspn(s + i, ",:");
        if (m == k && strncmp(s + i, name, k) == 0) return true;
        i += m;
    }
    return false;
}

bool mxd_hw_find_cgroup(const char *text, const char *controller, char out[256]) {
    for (const char *s = text; *s; s = next_line(s)) {
        size_t end = strcspn(s, "\n");
        const char *names = memchr(s, ':', end);
        const char *path = names ? memchr(names + 1, ':', end - (size_t)(names + 1 - s)) : NULL;
        if (!path) continue;
        size_t n = (size_t)(path - names - 1), m = end - (size_t)(path + 1 - s);
        bool match = controller[0] ? n && is_in_list(names + 1, n, controller) : n == 0;
        if (!match || m >= 256 || !m || path[1] != '/') continue;
        memcpy(out, path + 1, m);
        out[m] = '\0';
        return !strstr(out, "..");
    }
    return false;
}

void mxd_hw_split_cores(mxd_hardware *h, const int *capacity, int n) {
    int most = 0, fast = 0;
    for (int i = 0; i < n; i++)
        if (capacity[i] > most) most = capacity[i];
    if (most <= 0) return;
    for (int i = 0; i < n; i++) fast += (long)capacity[i] * 5 >= (long)most * 4;
    if (fast == n) return;
    h->performance_cores = fast;
    h->efficiency_cores = n - fast;
}

static bool contains(const char *s, const char *part) {
    size_t k = strlen(part);
    for (; *s; s++)
        if (strncasecmp(s, part, k) == 0) return true;
    return false;
}

/* Chassis types: SMBIOS 3.7, table 17. */
mxd_device mxd_hw_device_of_dmi(int chassis, const char *vendor, const char *product) {
    static const char *const virtual_machines[] = {
        "QEMU",    "VMware",       "VirtualBox", "innotek",   "Xen",
        "KVM",     "Bochs",        "Amazon EC2", "Google",    "HVM domU",
        "Virtual", "DigitalOcean", "Hetzner",    "OpenStack", "Parallels"};
    for (size_t i = 0; i < MXD_COUNT(virtual_machines); i++)
        if (contains(vendor, virtual_machines[i]) || contains(product, virtual_machines[i]))
            return MXD_DEVICE_VIRTUAL;
    switch (chassis) {
    case 8:
    case 9:
    case 10:
    case 14:
    case 30:
    case 31:
    case 32:
        return MXD_DEVICE_LAPTOP;
    case 3:
    case 4:
    case 5:
    case 6:
    case 7:
    case 13:
    case 15:
    case 16:
    case 24:
        return MXD_DEVICE_DESKTOP;
    case 34:
    case 35:
    case 36:
        return MXD_DEVICE_MINI;
    case 17:
    case 23:
    case 25:
    case 28:
    case 29:
        return MXD_DEVICE_SERVER;
    default:
        return MXD_DEVICE_UNKNOWN;
    }
}
