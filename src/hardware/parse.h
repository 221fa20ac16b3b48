/* parse.h - readers of what systems say about themselves. Text in, fields of mxd_hardware out.
 *
 * Trust: the texts come from the system, but also from old, new and strange ones: whatever does not
 * look as expected changes nothing. Numbers out of any reason are left out. No memory is taken but
 * for JSON. Threads: reentrant.
 */
#ifndef MXD_HARDWARE_PARSE_H
#define MXD_HARDWARE_PARSE_H

#include "hardware/hardware.h"

/* ---- Linux */
void mxd_hw_read_cpuinfo(mxd_hardware *h, const char *text); /* /proc/cpuinfo, x86 and ARM */
void mxd_hw_read_meminfo(mxd_hardware *h, const char *text); /* /proc/meminfo */
void mxd_hw_read_nvidia(mxd_hardware *h,
                        const char *text); /* /proc/driver/nvidia/gpus/N/information */
int mxd_hw_count_cpus(const char *text);   /* "0-3,8,10-11" -> 7; 0: rubbish */
bool mxd_hw_read_bytes(const char *text, uint64_t *out); /* "123\n"; false for "max" and rubbish */
/* cpu.max of cgroup v2: "200000 100000" -> 2.0 and 0.1 s; 0 for "max ...". */
double mxd_hw_read_cpu_max(const char *text, double *period_s);
/* The folder of a controller in /proc/self/cgroup: v2 ("0::/x") with controller "", else its name.
 */
bool mxd_hw_find_cgroup(const char *text, const char *controller, char out[256]);
/* Performance and efficiency cores from one capacity (or top frequency) per CPU: those with at
 * least 4/5 of the largest are performance cores; nothing when all are alike. */
void mxd_hw_split_cores(mxd_hardware *h, const int *capacity, int n);
/* Kind of machine from DMI: chassis type number, vendor, product. */
mxd_device mxd_hw_device_of_dmi(int chassis, const char *vendor, const char *product);

/* ---- macOS */
void mxd_hw_read_sysctl(mxd_hardware *h, const char *text); /* lines "key: value" of sysctl(8) */
void mxd_hw_read_displays(mxd_hardware *h,
                          const char *text); /* system_profiler -json SPDisplaysDataType */
void mxd_hw_read_ioreg(mxd_hardware *h, const char *text); /* ioreg -rlc AGXAccelerator */
void mxd_hw_read_pmset(mxd_hardware *h, const char *text); /* pmset -g batt */
/* Kind of machine from "Mac14,9" and the battery. */
mxd_device mxd_hw_device_of_mac(const char *model, bool battery);

/* ---- shared with the live readers */
/* Copies one value without surrounding space; control characters become spaces. */
void mxd_hw_copy(char *out, size_t cap, const char *s, size_t n);

/* One file per system: everything but the probe. */
mxd_rc mxd_hw_gather(mxd_hardware *h, const mxd_alloc *al, mxd_err *err) MXD_MUST_USE;

/* Reads memory and multiplies bytes on n_threads; fills the two speeds. Errors: E_NOMEM, E_IO. */
mxd_rc mxd_hw_probe(mxd_hardware *h, const mxd_alloc *al, int n_threads, mxd_err *err) MXD_MUST_USE;

#endif
