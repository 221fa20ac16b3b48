#include "test.h"

#include "base/rand.h"
#include "hardware/parse.h"

/* ------------------------------------------------------------------------- recorded: macOS */

typedef struct mac {
    const char *sysctl, *displays, *ioreg, *batt;
    const char *chip, *os;
    int performance, efficiency, gpu_cores;
    uint64_t memory;
    mxd_device device;
    bool battery, on_ac, i8mm;
    int percent;
} mac;

#define SYSCTL(model, os, chip, mem, p, e, all, i8)                                        \
    "machdep.cpu.brand_string: " chip "\nhw.model: " model "\nkern.osproductversion: " os  \
    "\nhw.memsize: " mem "\nhw.physicalcpu: " all "\nhw.logicalcpu: " all                  \
    "\nhw.nperflevels: 2\nhw.perflevel0.physicalcpu: " p "\nhw.perflevel1.physicalcpu: " e \
    "\nhw.optional.arm64: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: " i8 "\n"

#define DISPLAYS(chip, cores)                                                                     \
    "{\n  \"SPDisplaysDataType\" : [\n    {\n      \"_name\" : \"" chip "\",\n"                   \
    "      \"spdisplays_mtlgpufamilysupport\" : \"spdisplays_metal3\",\n"                         \
    "      \"spdisplays_ndrvs\" : [\n        {\n          \"_name\" : \"Color LCD\",\n"           \
    "          \"_spdisplays_pixels\" : \"3456 x 2234\",\n          \"spdisplays_main\" : "       \
    "\"spdisplays_yes\"\n        }\n      ],\n      \"spdisplays_vendor\" : "                     \
    "\"sppci_vendor_Apple\",\n      \"sppci_bus\" : \"spdisplays_builtin\",\n"                    \
    "      \"sppci_cores\" : \"" cores "\",\n      \"sppci_device_type\" : \"spdisplays_gpu\",\n" \
    "      \"sppci_model\" : \"" chip "\"\n    }\n  ]\n}\n"

#define IOREG(kind, chip, cores)                                                                  \
    "+-o " kind "  <class " kind ", id 0x1000004ad, registered, matched, active, busy 0 (2 ms), " \
    "retain 88>\n    {\n      \"IOClass\" = \"" kind "\"\n      \"CommandSubmissionEnabled\" = "  \
    "Yes\n      \"MetalPluginName\" = \"AGXMetal13_3\"\n      \"model\" = \"" chip "\"\n"         \
    "      \"gpu-core-count\" = " cores "\n      \"PerformanceStatistics\" = {\"Device "          \
    "Utilization %\"=3,\"In use system memory\"=561676288}\n    }\n"

#define ON_BATTERY(percent)                                                         \
    "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=23527523)\t" percent \
    "%; discharging; 4:11 remaining present: true\n"
#define ON_AC(percent)                                                        \
    "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t" percent \
    "%; charged; 0:00 remaining present: true\n"
#define DESKTOP "Now drawing from 'AC Power'\n"

#define GB(n) (n##ull << 30)

static const mac macs[] = {
    {SYSCTL("MacBookAir10,1", "11.6", "Apple M1", "8589934592", "4", "4", "8", "0"),
     DISPLAYS("Apple M1", "7"), IOREG("AGXAcceleratorG13G", "Apple M1", "7"), ON_BATTERY("77"),
     "Apple M1", "macOS 11.6", 4, 4, 7, GB(8), MXD_DEVICE_LAPTOP, true, false, false, 77},
    {SYSCTL("Macmini9,1", "14.4.1", "Apple M1", "17179869184", "4", "4", "8", "0"),
     DISPLAYS("Apple M1", "8"), IOREG("AGXAcceleratorG13G", "Apple M1", "8"), DESKTOP, "Apple M1",
     "macOS 14.4.1", 4, 4, 8, GB(16), MXD_DEVICE_MINI, false, true, false, 0},
    {SYSCTL("MacBookPro18,3", "13.2", "Apple M1 Pro", "17179869184", "8", "2", "10", "0"),
     DISPLAYS("Apple M1 Pro", "16"), IOREG("AGXAcceleratorG13X", "Apple M1 Pro", "16"),
     ON_AC("100"), "Apple M1 Pro", "macOS 13.2", 8, 2, 16, GB(16), MXD_DEVICE_LAPTOP, true, true,
     false, 100},
    {SYSCTL("MacBookPro18,2", "12.6", "Apple M1 Max", "68719476736", "8", "2", "10", "0"),
     DISPLAYS("Apple M1 Max", "32"), IOREG("AGXAcceleratorG13X", "Apple M1 Max", "32"), ON_AC("9"),
     "Apple M1 Max", "macOS 12.6", 8, 2, 32, GB(64), MXD_DEVICE_LAPTOP, true, true, false, 9},
    {SYSCTL("Mac13,2", "13.0", "Apple M1 Ultra", "137438953472", "16", "4", "20", "0"),
     DISPLAYS("Apple M1 Ultra", "64"), IOREG("AGXAcceleratorG13X", "Apple M1 Ultra", "64"), DESKTOP,
     "Apple M1 Ultra", "macOS 13.0", 16, 4, 64, GB(128), MXD_DEVICE_DESKTOP, false, true, false, 0},
    {SYSCTL("Mac14,2", "14.5", "Apple M2", "25769803776", "4", "4", "8", "1"),
     DISPLAYS("Apple M2", "10"), IOREG("AGXAcceleratorG14G", "Apple M2", "10"), ON_BATTERY("5"),
     "Apple M2", "macOS 14.5", 4, 4, 10, GB(24), MXD_DEVICE_LAPTOP, true, false, true, 5},
    {SYSCTL("Mac14,12", "14.1", "Apple M2 Pro", "34359738368", "8", "4", "12", "1"),
     DISPLAYS("Apple M2 Pro", "19"), IOREG("AGXAcceleratorG14X", "Apple M2 Pro", "19"), DESKTOP,
     "Apple M2 Pro", "macOS 14.1", 8, 4, 19, GB(32), MXD_DEVICE_MINI, false, true, true, 0},
    {SYSCTL("Mac14,8", "14.0", "Apple M2 Ultra", "206158430208", "16", "8", "24", "1"),
     DISPLAYS("Apple M2 Ultra", "76"), IOREG("AGXAcceleratorG14X", "Apple M2 Ultra", "76"), DESKTOP,
     "Apple M2 Ultra", "macOS 14.0", 16, 8, 76, GB(192), MXD_DEVICE_DESKTOP, false, true, true, 0},
    {SYSCTL("Mac15,3", "14.2", "Apple M3", "8589934592", "4", "4", "8", "1"),
     DISPLAYS("Apple M3", "10"), IOREG("AGXAcceleratorG15G", "Apple M3", "10"), ON_BATTERY("100"),
     "Apple M3", "macOS 14.2", 4, 4, 10, GB(8), MXD_DEVICE_LAPTOP, true, false, true, 100},
    {SYSCTL("Mac15,9", "15.0", "Apple M3 Max", "137438953472", "12", "4", "16", "1"),
     DISPLAYS("Apple M3 Max", "40"), IOREG("AGXAcceleratorG15X", "Apple M3 Max", "40"), ON_AC("80"),
     "Apple M3 Max", "macOS 15.0", 12, 4, 40, GB(128), MXD_DEVICE_LAPTOP, true, true, true, 80},
    {SYSCTL("Mac15,14", "15.3", "Apple M3 Ultra", "549755813888", "24", "8", "32", "1"),
     DISPLAYS("Apple M3 Ultra", "80"), IOREG("AGXAcceleratorG15X", "Apple M3 Ultra", "80"), DESKTOP,
     "Apple M3 Ultra", "macOS 15.3", 24, 8, 80, GB(512), MXD_DEVICE_DESKTOP, false, true, true, 0},
    {SYSCTL("Mac16,10", "15.1", "Apple M4", "17179869184", "4", "6", "10", "1"),
     DISPLAYS("Apple M4", "10"), IOREG("AGXAcceleratorG16G", "Apple M4", "10"), DESKTOP, "Apple M4",
     "macOS 15.1", 4, 6, 10, GB(16), MXD_DEVICE_MINI, false, true, true, 0},
    {SYSCTL("Mac16,7", "15.1.1", "Apple M4 Pro", "51539607552", "10", "4", "14", "1"),
     DISPLAYS("Apple M4 Pro", "20"), IOREG("AGXAcceleratorG16X", "Apple M4 Pro", "20"),
     ON_BATTERY("43"), "Apple M4 Pro", "macOS 15.1.1", 10, 4, 20, GB(48), MXD_DEVICE_LAPTOP, true,
     false, true, 43},
    {SYSCTL("Mac16,9", "15.4", "Apple M4 Max", "137438953472", "12", "4", "16", "1"),
     DISPLAYS("Apple M4 Max", "40"), IOREG("AGXAcceleratorG16X", "Apple M4 Max", "40"), DESKTOP,
     "Apple M4 Max", "macOS 15.4", 12, 4, 40, GB(128), MXD_DEVICE_DESKTOP, false, true, true, 0},
};

TEST(hardware_macs) {
    for (size_t i = 0; i < MXD_COUNT(macs); i++)
        for (int by_ioreg = 0; by_ioreg < 2; by_ioreg++) {
            const mac *m = &macs[i];
            mxd_hardware h = {.on_ac = true};
            mxd_hw_read_sysctl(&h, m->sysctl);
            if (by_ioreg)
                mxd_hw_read_ioreg(&h, m->ioreg);
            else
                mxd_hw_read_displays(&h, m->displays);
            mxd_hw_read_pmset(&h, m->batt);
            CHECK_STR(h.chip, m->chip);
            CHECK_STR(h.gpu, m->chip);
            CHECK_STR(h.os, m->os);
            CHECK_STR(h.vendor, "Apple");
            CHECK_EQ(h.memory_total_bytes, m->memory);
            CHECK_EQ(h.performance_cores, m->performance);
            CHECK_EQ(h.efficiency_cores, m->efficiency);
            CHECK_EQ(h.logical_cpus, m->performance + m->efficiency);
            CHECK_EQ(h.gpu_cores, m->gpu_cores);
            CHECK_EQ(h.battery, m->battery);
            CHECK_EQ(h.on_ac, m->on_ac);
            CHECK_EQ(h.battery_percent, m->percent);
            CHECK_EQ(h.isa.i8mm, m->i8mm);
            CHECK(h.isa.neon && h.isa.dotprod && h.unified_memory);
            CHECK_EQ(mxd_hw_device_of_mac(h.model, h.battery), m->device);
        }
}

TEST(hardware_intel_mac) {
    mxd_hardware h = {.on_ac = true};
    mxd_hw_read_sysctl(&h, "machdep.cpu.brand_string: Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\n"
                           "hw.model: MacBookPro15,1\nhw.memsize: 17179869184\nhw.physicalcpu: 6\n"
                           "hw.logicalcpu: 12\nhw.optional.avx2_0: 1\nhw.optional.fma: 1\n");
    mxd_hw_read_displays(&h, "{\"SPDisplaysDataType\":[{\"_name\":\"kHW_IntelUHDGraphics630Item\","
                             "\"sppci_model\":\"Intel UHD Graphics 630\"},{\"sppci_model\":"
                             "\"Radeon Pro 555X\",\"spdisplays_vram\":\"4 GB\"}]}");
    CHECK_STR(h.vendor, "Intel");
    CHECK_STR(h.gpu, "Radeon Pro 555X");
    CHECK_EQ(h.gpu_cores, 0);
    CHECK(h.isa.avx2 && !h.isa.neon && !h.unified_memory && h.physical_cores == 6);
    CHECK_EQ(mxd_hw_device_of_mac("VirtualMac2,1", false), MXD_DEVICE_VIRTUAL);
    CHECK_EQ(mxd_hw_device_of_mac("iMac21,1", false), MXD_DEVICE_DESKTOP);
    CHECK_EQ(mxd_hw_device_of_mac("", false), MXD_DEVICE_UNKNOWN);
}

/* ------------------------------------------------------------------------- recorded: Linux */

TEST(hardware_linux_x86) {
    mxd_hardware h = {.on_ac = true};
    mxd_hw_read_cpuinfo(
        &h, "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
            "model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz\n"
            "physical id\t: 0\ncore id\t\t: 0\nflags\t\t: fpu avx2 fma f16c avx512f "
            "avx512dq avx512bw avx512vl avx512_vnni amx_int8\n\n"
            "processor\t: 1\nphysical id\t: 0\ncore id\t\t: 0\n\n"
            "processor\t: 2\nphysical id\t: 1\ncore id\t\t: 0\n");
    mxd_hw_read_meminfo(&h, "MemTotal:       16384000 kB\nMemFree:          100 kB\n"
                            "MemAvailable:    8192000 kB\n");
    char isa[128];
    CHECK_STR(h.chip, "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz");
    CHECK_STR(h.vendor, "Intel");
    CHECK_EQ(h.physical_cores, 2);
    CHECK_STR(mxd_isa_text(&h.isa, isa), "avx2 fma avx512 avx512_vnni amx_int8");
    CHECK_EQ(h.memory_total_bytes, 16384000ull * 1024);
    CHECK_EQ(h.memory_available_bytes, 8192000ull * 1024);
}

TEST(hardware_linux_arm) {
    mxd_hardware h = {.on_ac = true};
    mxd_hw_read_cpuinfo(&h,
                        "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes crc32 "
                        "atomics fphp asimdhp asimddp sve i8mm bf16\nCPU implementer\t: 0x41\n"
                        "CPU part\t: 0xd40\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n");
    int capacity[] = {1024, 1024, 446, 446, 446, 446}, alike[] = {1024, 1024};
    char isa[128];
    CHECK_STR(h.vendor, "ARM");
    CHECK_STR(mxd_isa_text(&h.isa, isa), "neon dotprod i8mm sve");
    CHECK_STR(h.model, "Raspberry Pi 5 Model B Rev 1.0");
    mxd_hw_split_cores(&h, alike, 2);
    CHECK_EQ(h.performance_cores, 0);
    mxd_hw_split_cores(&h, capacity, 6);
    CHECK_EQ(h.performance_cores, 2);
    CHECK_EQ(h.efficiency_cores, 4);
}

TEST(hardware_containers) {
    char group[256];
    uint64_t x;
    const char *v2 = "0::/system.slice/docker-1.scope\n";
    const char *v1 = "9:name=systemd:/\n4:memory:/box/a\n1:cpu,cpuacct:/box\n0::/\n";
    CHECK(mxd_hw_find_cgroup(v2, "", group));
    CHECK_STR(group, "/system.slice/docker-1.scope");
    CHECK(!mxd_hw_find_cgroup(v2, "memory", group));
    CHECK(mxd_hw_find_cgroup(v1, "memory", group));
    CHECK_STR(group, "/box/a");
    CHECK(mxd_hw_find_cgroup(v1, "cpu", group));
    CHECK_STR(group, "/box");
    CHECK(!mxd_hw_find_cgroup("0::/../../x\n", "", group));
    double period = 0;
    CHECK(mxd_hw_read_cpu_max("150000 100000\n", &period) == 1.5 && period == 0.1);
    CHECK(mxd_hw_read_cpu_max("max 100000\n", &period) == 0);
    CHECK(mxd_hw_read_cpu_max("1 0\n", &period) == 0);
    CHECK(mxd_hw_read_bytes("8589934592\n", &x) && x == 8589934592);
    CHECK(!mxd_hw_read_bytes("max\n", &x));
    CHECK(!mxd_hw_read_bytes("-1\n", &x));
    CHECK_EQ(mxd_hw_count_cpus("0-3,8,10-11\n"), 7);
    CHECK_EQ(mxd_hw_count_cpus("0-99999999999\n"), 0);
    CHECK_EQ(mxd_hw_count_cpus("3-1"), 0);
}

TEST(hardware_kinds_of_pc) {
    CHECK_EQ(mxd_hw_device_of_dmi(10, "LENOVO", "20XW"), MXD_DEVICE_LAPTOP);
    CHECK_EQ(mxd_hw_device_of_dmi(3, "Dell Inc.", "OptiPlex"), MXD_DEVICE_DESKTOP);
    CHECK_EQ(mxd_hw_device_of_dmi(35, "Intel", "NUC"), MXD_DEVICE_MINI);
    CHECK_EQ(mxd_hw_device_of_dmi(23, "HPE", "ProLiant"), MXD_DEVICE_SERVER);
    CHECK_EQ(mxd_hw_device_of_dmi(1, "QEMU", "Standard PC"), MXD_DEVICE_VIRTUAL);
    CHECK_EQ(mxd_hw_device_of_dmi(1, "Amazon EC2", "c7g"), MXD_DEVICE_VIRTUAL);
    CHECK_EQ(mxd_hw_device_of_dmi(0, "", ""), MXD_DEVICE_UNKNOWN);
}

TEST(hardware_nvidia) {
    mxd_hardware h = {0};
    mxd_hw_read_nvidia(&h,
                       "Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 183\nGPU UUID: GPU-1\n");
    CHECK_STR(h.gpu, "NVIDIA GeForce RTX 4090");
}

/* Every parser on pieces of every text with damage: nothing may be read outside, and no field may
 * leave its range. The sanitizers watch. */
static void read_all(mxd_hardware *h, const char *text) {
    char group[256];
    uint64_t x;
    double period;
    mxd_hw_read_sysctl(h, text);
    mxd_hw_read_displays(h, text);
    mxd_hw_read_ioreg(h, text);
    mxd_hw_read_pmset(h, text);
    mxd_hw_read_cpuinfo(h, text);
    mxd_hw_read_meminfo(h, text);
    mxd_hw_read_nvidia(h, text);
    mxd_hw_count_cpus(text);
    mxd_hw_read_cpu_max(text, &period);
    mxd_hw_read_bytes(text, &x);
    mxd_hw_find_cgroup(text, "cpu", group);
    mxd_hw_find_cgroup(text, "", group);
}

TEST(hardware_rubbish) {
    uint64_t draw = 0;
    for (int round = 0; round < 4000; round++) {
        const mac *m = &macs[(size_t)round % MXD_COUNT(macs)];
        const char *texts[] = {m->sysctl, m->displays, m->ioreg, m->batt};
        const char *from = texts[(round / 16) % 4];
        size_t n = strlen(from), cut = mxd_rand_u64(3, round, draw++) % (n + 1);
        char *text = mxd_strndup(&mxd_alloc_libc, from, cut);
        CHECK(text != NULL);
        for (int k = 0; k < round % 8 && cut; k++) {
            size_t at = mxd_rand_u64(3, round, draw++) % cut;
            text[at] = (char)(1 + mxd_rand_u64(3, round, draw++) % 255);
        }
        mxd_hardware h = {0};
        read_all(&h, text);
        mxd_free(&mxd_alloc_libc, text);
        CHECK(h.gpu_cores >= 0 && h.gpu_cores <= 4096 && h.battery_percent >= 0 &&
              h.battery_percent <= 100 && h.performance_cores >= 0 && h.efficiency_cores >= 0);
    }
    mxd_hardware h = {0}, zero = {0};
    read_all(&h, "");
    read_all(&h, "\n\n:::\n: 5\n= 3");
    CHECK(memcmp(&h, &zero, sizeof h) == 0);
}

TEST(hardware_live) {
    mxd_hardware h;
    mxd_err err = {0};
    CHECK_OK(mxd_hardware_detect(&h, &mxd_alloc_libc, &(mxd_hardware_opts){.probe = true}, &err),
             &err);
    CHECK(h.logical_cpus >= 1 && h.memory_total_bytes > 64 << 20);
    CHECK(h.memory_available_bytes <= h.memory_total_bytes);
    CHECK(h.read_bytes_per_s > 1e8 && h.dot_ops_per_s > 1e8);
    json_t *v = mxd_hardware_json(&h);
    CHECK(v && json_integer_value(json_object_get(v, "schema")) == 1);
    CHECK(json_is_array(json_object_get(v, "instruction_sets")));
    json_decref(v);
}

TEST_OOM(hardware_out_of_memory) {
    mxd_hardware h;
    return mxd_hardware_detect(&h, al, NULL, err);
}
