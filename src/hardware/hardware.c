#include "hardware/hardware.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "hardware/parse.h"

const char *mxd_device_name(mxd_device d) {
    static const char *const names[] = {"unknown", "laptop", "desktop",
                                        "mini",    "server", "virtual"};
    return names[d];
}

typedef struct isa_row {
    size_t at;
    const char *name;
} isa_row;

static const isa_row isa_rows[] = {
#define X(field, name) {offsetof(mxd_isa, field), name},
    MXD_ISA_MAP(X)
#undef X
};

static bool isa_has(const mxd_isa *isa, const isa_row *row) {
    return *(const bool *)((const char *)isa + row->at);
}

const char *mxd_isa_text(const mxd_isa *isa, char out[128]) {
    out[0] = '\0';
    for (size_t i = 0; i < MXD_COUNT(isa_rows); i++) {
        size_t n = strlen(out);
        if (isa_has(isa, &isa_rows[i]))
            snprintf(out + n, 128 - n, "%s%s", n ? " " : "", isa_rows[i].name);
    }
    return out;
}

mxd_rc mxd_hardware_detect(mxd_hardware *out, const mxd_alloc *al, const mxd_hardware_opts *opts,
                           mxd_err *err) {
    mxd_hardware h = {.on_ac = true};
    if (gethostname(h.host, sizeof h.host) != 0) h.host[0] = '\0';
    h.host[sizeof h.host - 1] = '\0';
    MXD_TRY(mxd_hw_gather(&h, al, err));
    if (h.logical_cpus < 1) h.logical_cpus = 1;
    if (h.online_cpus < h.logical_cpus) h.online_cpus = h.logical_cpus;
    if (!h.memory_total_bytes)
        return mxd_fail(err, MXD_E_IO, "the system does not tell how much memory it has");
    if (!h.memory_available_bytes || h.memory_available_bytes > h.memory_total_bytes)
        h.memory_available_bytes = h.memory_total_bytes;
    if (opts && opts->probe)
        MXD_TRY(mxd_hw_probe(&h, al, opts->threads > 0 ? opts->threads : h.logical_cpus, err));
    *out = h;
    return MXD_OK;
}

static bool set(json_t *o, const char *key, json_t *value) {
    return json_object_set_new(o, key, value) == 0;
}

double mxd_hardware_cpus(const mxd_hardware *h, int threads) {
    return h->cpu_quota > 0 && h->cpu_quota < threads ? h->cpu_quota : threads;
}

static json_t *isa_json(const mxd_isa *isa) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < MXD_COUNT(isa_rows); i++)
        if (isa_has(isa, &isa_rows[i])) json_array_append_new(list, json_string(isa_rows[i].name));
    return list;
}

json_t *mxd_paces_json(const mxd_paces *p) {
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "near_bytes_per_s",
                     p->near_bytes_per_s, "tile_ns", 1e9 * p->tile_s, "float_ops_per_s",
                     p->float_ops_per_s, "row_ops_per_s", p->row_ops_per_s, "values_per_s",
                     p->values_per_s, "region_us", 1e6 * p->region_s, "handoff_us",
                     1e6 * p->handoff_s, "duty", p->duty, "pause_us", 1e6 * p->pause_s);
}

json_t *mxd_hardware_json(const mxd_hardware *h) {
    json_t *o = json_object();
    if (!o) return NULL;
    bool ok = set(o, "schema", json_integer(1)) && set(o, "host", json_string(h->host)) &&
              set(o, "os", json_string(h->os)) && set(o, "chip", json_string(h->chip)) &&
              set(o, "vendor", json_string(h->vendor)) && set(o, "model", json_string(h->model)) &&
              set(o, "device", json_string(mxd_device_name(h->device)));
    ok = ok && set(o, "memory_total_bytes", json_integer((json_int_t)h->memory_total_bytes)) &&
         set(o, "memory_available_bytes", json_integer((json_int_t)h->memory_available_bytes)) &&
         set(o, "unified_memory", json_boolean(h->unified_memory)) &&
         set(o, "logical_cpus", json_integer(h->logical_cpus)) &&
         set(o, "cpu_quota", h->cpu_quota > 0 ? json_real(h->cpu_quota) : json_null()) &&
         set(o, "physical_cores", json_integer(h->physical_cores)) &&
         set(o, "performance_cores", json_integer(h->performance_cores)) &&
         set(o, "efficiency_cores", json_integer(h->efficiency_cores)) &&
         set(o, "instruction_sets", isa_json(&h->isa));
    ok = ok && set(o, "gpu", h->gpu[0] ? json_string(h->gpu) : json_null()) &&
         set(o, "gpu_cores", json_integer(h->gpu_cores)) &&
         set(o, "battery", json_boolean(h->battery)) &&
         set(o, "battery_percent", h->battery ? json_integer(h->battery_percent) : json_null()) &&
         set(o, "on_ac", json_boolean(h->on_ac)) &&
         set(o, "bandwidth_bytes_per_s",
             h->read_bytes_per_s > 0 ? json_real(h->read_bytes_per_s) : json_null()) &&
         set(o, "ops_per_s", h->dot_ops_per_s > 0 ? json_real(h->dot_ops_per_s) : json_null()) &&
         set(o, "paces", h->paces.values_per_s > 0 ? mxd_paces_json(&h->paces) : json_null());
    if (ok) return o;
    json_decref(o);
    return NULL;
}
