/* What macOS says: sysctl and mach directly; IOKit through dlopen, so that no framework headers are
 * needed to build. Values go through the same parsers that are tested on recorded texts. */
#include <dlfcn.h>
#include <mach/mach.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysctl.h>
#include <sys/types.h>
#include "hardware/parse.h"

enum { TEXT_MAX = 8192, UTF8 = 0x08000100, SINT32 = 3 };

/* Appends "name: value\n"; numbers come as 4 or 8 bytes, texts with a NUL. */
static void add_text(char text[TEXT_MAX], const char *name) {
    char value[256] = "";
    size_t n = sizeof value - 1, used = strlen(text);
    if (sysctlbyname(name, value, &n, NULL, 0) != 0) return;
    snprintf(text + used, TEXT_MAX - used, "%s: %s\n", name, value);
}

static void add_number(char text[TEXT_MAX], const char *name) {
    union {
        int32_t i32;
        int64_t i64;
    } value = {.i64 = 0};
    size_t n = sizeof value, used = strlen(text);
    if (sysctlbyname(name, &value, &n, NULL, 0) != 0) return;
    long long x = n == sizeof value.i32 ? value.i32 : value.i64;
    snprintf(text + used, TEXT_MAX - used, "%s: %lld\n", name, x);
}

static void read_sysctls(mxd_hardware *h) {
    static const char *const texts[] = {"machdep.cpu.brand_string", "hw.model",
                                        "kern.osproductversion"};
    static const char *const numbers[] = {"hw.memsize",
                                          "hw.physicalcpu",
                                          "hw.logicalcpu",
                                          "hw.nperflevels",
                                          "hw.perflevel0.physicalcpu",
                                          "hw.perflevel1.physicalcpu",
                                          "hw.optional.arm64",
                                          "hw.optional.arm.FEAT_DotProd",
                                          "hw.optional.arm.FEAT_I8MM",
                                          "hw.optional.arm.FEAT_SME",
                                          "hw.optional.avx2_0",
                                          "hw.optional.fma",
                                          "hw.optional.avx512f"};
    char text[TEXT_MAX] = "";
    for (size_t i = 0; i < MXD_COUNT(texts); i++) add_text(text, texts[i]);
    for (size_t i = 0; i < MXD_COUNT(numbers); i++) add_number(text, numbers[i]);
    mxd_hw_read_sysctl(h, text);
}

static void read_memory(mxd_hardware *h) {
    vm_statistics64_data_t vm;
    mach_msg_type_number_t n = HOST_VM_INFO64_COUNT;
    mach_port_t host = mach_host_self();
    kern_return_t rc = host_statistics64(host, HOST_VM_INFO64, (host_info64_t)&vm, &n);
    mach_port_deallocate(mach_task_self(), host);
    if (rc != KERN_SUCCESS) return;
    uint64_t pages = (uint64_t)vm.free_count + vm.inactive_count + vm.purgeable_count;
    h->memory_available_bytes = pages * (uint64_t)vm_kernel_page_size;
}

typedef const void *cf;

/* The few functions of IOKit and CoreFoundation that are needed, by hand. */
typedef struct apple {
    void *iokit, *core;
    cf (*matching)(const char *name);
    unsigned (*get_service)(unsigned port, cf matching);
    cf (*property)(unsigned entry, cf key, cf allocator, unsigned options);
    int (*release_object)(unsigned object);
    cf (*power_info)(void);
    cf (*power_list)(cf info);
    cf (*power_one)(cf info, cf source);
    cf (*new_string)(cf allocator, const char *s, unsigned encoding);
    bool (*get_string)(cf s, char *out, long n, unsigned encoding);
    bool (*get_number)(cf number, long kind, void *out);
    cf (*get_value)(cf dictionary, cf key);
    long (*count)(cf array);
    cf (*item)(cf array, long i);
    void (*release)(cf x);
} apple;

static bool load(void *lib, const char *name, void *to) {
    void *f = dlsym(lib, name);
    memcpy(to, &f, sizeof f); /* the only conversion that C allows */
    return f != NULL;
}

static bool open_apple(apple *a) {
    const char *root = "/System/Library/Frameworks/";
    char path[128];
    snprintf(path, sizeof path, "%sIOKit.framework/IOKit", root);
    a->iokit = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    snprintf(path, sizeof path, "%sCoreFoundation.framework/CoreFoundation", root);
    a->core = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!a->iokit || !a->core) return false;
    return load(a->iokit, "IOServiceMatching", &a->matching) &&
           load(a->iokit, "IOServiceGetMatchingService", &a->get_service) &&
           load(a->iokit, "IORegistryEntryCreateCFProperty", &a->property) &&
           load(a->iokit, "IOObjectRelease", &a->release_object) &&
           load(a->iokit, "IOPSCopyPowerSourcesInfo", &a->power_info) &&
           load(a->iokit, "IOPSCopyPowerSourcesList", &a->power_list) &&
           load(a->iokit, "IOPSGetPowerSourceDescription", &a->power_one) &&
           load(a->core, "CFStringCreateWithCString", &a->new_string) &&
           load(a->core, "CFStringGetCString", &a->get_string) &&
           load(a->core, "CFNumberGetValue", &a->get_number) &&
           load(a->core, "CFDictionaryGetValue", &a->get_value) &&
           load(a->core, "CFArrayGetCount", &a->count) &&
           load(a->core, "CFArrayGetValueAtIndex", &a->item) &&
           load(a->core, "CFRelease", &a->release);
}

static void read_gpu(mxd_hardware *h, const apple *a) {
    unsigned gpu = a->get_service(0, a->matching("AGXAccelerator")); /* takes the dictionary */
    if (!gpu) return;
    cf key = a->new_string(NULL, "gpu-core-count", UTF8);
    cf value = key ? a->property(gpu, key, NULL, 0) : NULL;
    int32_t n = 0;
    if (value && a->get_number(value, SINT32, &n) && n > 0 && n < 4096) h->gpu_cores = n;
    if (value) a->release(value);
    if (key) a->release(key);
    a->release_object(gpu);
}

static cf entry(const apple *a, cf dictionary, const char *name) {
    cf key = a->new_string(NULL, name, UTF8);
    cf value = key ? a->get_value(dictionary, key) : NULL;
    if (key) a->release(key);
    return value;
}

static void read_battery(mxd_hardware *h, const apple *a, cf one) {
    char text[64] = "";
    int32_t now = 0, most = 0;
    cf kind = entry(a, one, "Type"), state = entry(a, one, "Power Source State");
    if (!kind || !a->get_string(kind, text, sizeof text, UTF8)) return;
    if (strcmp(text, "InternalBattery") != 0) return;
    h->battery = true;
    if (state && a->get_string(state, text, sizeof text, UTF8))
        h->on_ac = strcmp(text, "AC Power") == 0;
    cf a_now = entry(a, one, "Current Capacity"), a_most = entry(a, one, "Max Capacity");
    bool ok = a_now && a_most && a->get_number(a_now, SINT32, &now) &&
              a->get_number(a_most, SINT32, &most) && now >= 0 && most > 0 && now <= most;
    if (ok) h->battery_percent = (int)((int64_t)now * 100 / most);
}

static void read_power(mxd_hardware *h, const apple *a) {
    cf info = a->power_info();
    cf list = info ? a->power_list(info) : NULL;
    for (long i = 0; list && i < a->count(list); i++) {
        cf one = a->power_one(info, a->item(list, i)); /* borrowed */
        if (one) read_battery(h, a, one);
    }
    if (list) a->release(list);
    if (info) a->release(info);
}

mxd_rc mxd_hw_gather(mxd_hardware *h, const mxd_alloc *al, mxd_err *err) {
    (void)al;
    (void)err;
    apple a = {0};
    read_sysctls(h);
    read_memory(h);
    if (open_apple(&a)) {
        read_gpu(h, &a);
        read_power(h, &a);
    }
    if (a.iokit) dlclose(a.iokit);
    if (a.core) dlclose(a.core);
    h->device = mxd_hw_device_of_mac(h->model, h->battery);
    return MXD_OK;
}
