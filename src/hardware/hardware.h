/* hardware.h - what this machine offers: processor, memory, graphics, power, and how fast it reads.
 *
 * One file per system (linux.c, darwin.c) gathers texts, portable parsers (parse.h) read them, so
 * that every parser is tested everywhere on recorded inputs. What a system does not tell stays 0 or
 * ""; detection itself never fails for that. Limits of a container (cgroup quota, affinity, memory
 * limit) count as the machine.
 *
 * Threads: reentrant; the probe uses one thread per core for a third of a second.
 */
#ifndef MXD_HARDWARE_HARDWARE_H
#define MXD_HARDWARE_HARDWARE_H

#include <jansson.h>
#include <stdint.h>
#include "base/alloc.h"
#include "hardware/paces.h"

typedef enum mxd_device {
    MXD_DEVICE_UNKNOWN,
    MXD_DEVICE_LAPTOP,
    MXD_DEVICE_DESKTOP,
    MXD_DEVICE_MINI,
    MXD_DEVICE_SERVER,
    MXD_DEVICE_VIRTUAL
} mxd_device;

/* X(field, name): of one processor's instructions that kernels care about */
#define MXD_ISA_MAP(X)            \
    X(avx2, "avx2")               \
    X(fma, "fma")                 \
    X(avx512, "avx512")           \
    X(avx512_vnni, "avx512_vnni") \
    X(avx_vnni, "avx_vnni")       \
    X(amx_int8, "amx_int8")       \
    X(neon, "neon")               \
    X(dotprod, "dotprod")         \
    X(i8mm, "i8mm")               \
    X(sve, "sve")                 \
    X(sme, "sme")

typedef struct mxd_isa {
#define X(field, name) bool field;
    MXD_ISA_MAP(X)
#undef X
} mxd_isa;

typedef struct mxd_hardware {
    char host[64], os[96];                /* "Linux 6.1.0", "macOS 15.1" */
    char chip[96], vendor[64], model[96]; /* "Apple M2 Pro", "Apple", "Mac14,9" */
    mxd_device device;
    uint64_t memory_total_bytes, memory_available_bytes;
    int logical_cpus;                        /* that this process may use, whole ones; at least 1 */
    int online_cpus;                         /* of the machine, whether we may use them or not */
    double cpu_quota;                        /* CPUs that a container limit leaves; 0: no limit */
    double cpu_period_s;                     /* in which it counts */
    int physical_cores;                      /* of the machine; 0: unknown */
    int performance_cores, efficiency_cores; /* 0 and 0: all alike, or unknown */
    mxd_isa isa;
    char gpu[96];
    int gpu_cores; /* 0: unknown */
    bool unified_memory;
    bool battery, on_ac; /* on_ac: true without a battery */
    int battery_percent;
    double read_bytes_per_s; /* measured over all cores; 0: not probed */
    double dot_ops_per_s;    /* products of 8-bit weights, as prefill runs them; multiply and add
                              * count as two; measured; 0: not probed */
    mxd_paces paces;         /* likewise */
} mxd_hardware;

typedef struct mxd_hardware_opts {
    bool probe;  /* measure speeds: about 0.35 s */
    int threads; /* of the probe; 0: logical_cpus */
} mxd_hardware_opts;

/* opts may be NULL: no probe. Errors: E_NOMEM; E_IO the system does not even tell its memory. */
mxd_rc mxd_hardware_detect(mxd_hardware *out, const mxd_alloc *al, const mxd_hardware_opts *opts,
                           mxd_err *err) MXD_MUST_USE;

/* CPUs that so many threads get. */
double mxd_hardware_cpus(const mxd_hardware *h, int threads);

/* "schema": 1 and every field by its name; a new reference; NULL: no memory. */
json_t *mxd_hardware_json(const mxd_hardware *h);
json_t *mxd_paces_json(const mxd_paces *p); /* its "paces" */

const char *mxd_device_name(mxd_device d); /* "laptop" */

/* The names of what is there, with spaces between; returns out. */
const char *mxd_isa_text(const mxd_isa *isa, char out[128]);

#endif
