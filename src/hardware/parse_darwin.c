#include "hardware/parse.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "formats/json.h"

enum { MAX_CORES = 4096 };

static bool value_of(const char *text, const char *key, char out[128]) {
    size_t k = strlen(key);
    for (const char *s = text; *s;) {
        size_t end = strcspn(s, "\n");
        if (end > k && strncmp(s, key, k) == 0 &&
            (s[k] == ':' || (s[k] == ' ' && s[k + 1] == '='))) {
            size_t skip = s[k] == ':' ? k + 1 : k + 2;
            mxd_hw_copy(out, 128, s + skip, end - skip);
            return out[0] != '\0';
        }
        s += end + (s[end] == '\n');
    }
    return false;
}

static bool number(const char *s, uint64_t most, uint64_t *out) {
    if (!isdigit((unsigned char)s[0])) return false;
    char *end;
    errno = 0;
    *out = strtoull(s, &end, 10);
    return errno == 0 && !*end && *out <= most;
}

static void take_int(const char *text, const char *key, int *to) {
    char v[128];
    uint64_t x;
    if (value_of(text, key, v) && number(v, MAX_CORES, &x)) *to = (int)x;
}

static void take_flag(const char *text, const char *key, bool *to) {
    char v[128];
    if (value_of(text, key, v) && strcmp(v, "1") == 0) *to = true;
}

static void take_text(const char *text, const char *key, char *out, size_t cap) {
    char v[128];
    if (value_of(text, key, v)) mxd_hw_copy(out, cap, v, strlen(v));
}

void mxd_hw_read_sysctl(mxd_hardware *h, const char *text) {
    char v[128];
    uint64_t x;
    take_text(text, "machdep.cpu.brand_string", h->chip, sizeof h->chip);
    take_text(text, "hw.model", h->model, sizeof h->model);
    if (value_of(text, "kern.osproductversion", v)) snprintf(h->os, sizeof h->os, "macOS %.40s", v);
    if (value_of(text, "hw.memsize", v) && number(v, UINT64_MAX, &x)) h->memory_total_bytes = x;
    take_int(text, "hw.physicalcpu", &h->physical_cores);
    take_int(text, "hw.logicalcpu", &h->logical_cpus);
    /* level 0 is the faster one; machines with one kind of core have only that */
    int levels = 0;
    take_int(text, "hw.nperflevels", &levels);
    if (levels > 1) {
        take_int(text, "hw.perflevel0.physicalcpu", &h->performance_cores);
        take_int(text, "hw.perflevel1.physicalcpu", &h->efficiency_cores);
    }
    take_flag(text, "hw.optional.arm64", &h->isa.neon);
    take_flag(text, "hw.optional.arm.FEAT_DotProd", &h->isa.dotprod);
    take_flag(text, "hw.optional.arm.FEAT_I8MM", &h->isa.i8mm);
    take_flag(text, "hw.optional.arm.FEAT_SME", &h->isa.sme);
    take_flag(text, "hw.optional.avx2_0", &h->isa.avx2);
    take_flag(text, "hw.optional.fma", &h->isa.fma);
    take_flag(text, "hw.optional.avx512f", &h->isa.avx512);
    if (strncmp(h->chip, "Apple", 5) == 0) {
        snprintf(h->vendor, sizeof h->vendor, "Apple");
        h->unified_memory = true;
        if (!h->gpu[0]) mxd_hw_copy(h->gpu, sizeof h->gpu, h->chip, strlen(h->chip));
    } else if (strstr(h->chip, "Intel")) {
        snprintf(h->vendor, sizeof h->vendor, "Intel");
    }
}

void mxd_hw_read_displays(mxd_hardware *h, const char *text) {
    json_t *root = NULL;
    if (mxd_json_parse(&root, text, strlen(text), NULL)) return;
    const json_t *list = json_object_get(root, "SPDisplaysDataType"), *card;
    size_t i;
    json_array_foreach(list, i, card) {
        const char *model = json_string_value(json_object_get(card, "sppci_model"));
        const char *cores = json_string_value(json_object_get(card, "sppci_cores"));
        uint64_t n;
        if (!model) model = json_string_value(json_object_get(card, "_name"));
        if (model) mxd_hw_copy(h->gpu, sizeof h->gpu, model, strlen(model));
        if (cores && number(cores, MAX_CORES, &n)) {
            h->gpu_cores = (int)n; /* the one that MLX would use */
            break;
        }
    }
    json_decref(root);
}

/* A line of a property list: | "gpu-core-count" = 32 */
static bool ioreg_value(const char *text, const char *key, char out[128]) {
    char quoted[64];
    int k = snprintf(quoted, sizeof quoted, "\"%s\" = ", key);
    const char *at = strstr(text, quoted);
    if (!at) return false;
    at += k;
    size_t n = strcspn(at, "\n");
    if (at[0] == '"' && n >= 2) {
        at++;
        n = strcspn(at, "\"\n");
    }
    mxd_hw_copy(out, 128, at, n);
    return out[0] != '\0';
}

void mxd_hw_read_ioreg(mxd_hardware *h, const char *text) {
    char v[128];
    uint64_t n;
    if (ioreg_value(text, "gpu-core-count", v) && number(v, MAX_CORES, &n)) h->gpu_cores = (int)n;
    if (ioreg_value(text, "model", v) && v[0] != '<')
        mxd_hw_copy(h->gpu, sizeof h->gpu, v, strlen(v));
}

/* Now drawing from 'Battery Power'
 *  -InternalBattery-0 (id=4653155)	77%; discharging; 4:11 remaining present: true */
void mxd_hw_read_pmset(mxd_hardware *h, const char *text) {
    const char *from = strstr(text, "Now drawing from '");
    if (!from) return;
    const char *name = from + strlen("Now drawing from '");
    h->on_ac = strncmp(name, "AC Power'", 9) == 0;
    const char *battery = strstr(text, "-InternalBattery-");
    if (!battery) return;
    h->battery = true;
    const char *line_end = battery + strcspn(battery, "\n");
    const char *percent = memchr(battery, '%', (size_t)(line_end - battery));
    if (!percent) return;
    const char *digits = percent;
    while (digits > battery && isdigit((unsigned char)digits[-1])) digits--;
    long x = strtol(digits, NULL, 10);
    if (digits < percent && x <= 100) h->battery_percent = (int)x;
}

mxd_device mxd_hw_device_of_mac(const char *model, bool battery) {
    static const char *const minis[] = {"Mac14,3", "Mac14,12", "Mac16,10", "Mac16,11"};
    if (strncmp(model, "VirtualMac", 10) == 0 || strncmp(model, "VMware", 6) == 0)
        return MXD_DEVICE_VIRTUAL;
    if (battery || strncmp(model, "MacBook", 7) == 0) return MXD_DEVICE_LAPTOP;
    if (strncmp(model, "Macmini", 7) == 0) return MXD_DEVICE_MINI;
    if (strncmp(model, "Xserve", 6) == 0) return MXD_DEVICE_SERVER;
    for (size_t i = 0; i < MXD_COUNT(minis); i++)
        if (strcmp(model, minis[i]) == 0) return MXD_DEVICE_MINI;
    if (strncmp(model, "Mac", 3) == 0 || strncmp(model, "iMac", 4) == 0) return MXD_DEVICE_DESKTOP;
    return MXD_DEVICE_UNKNOWN;
}
