/* mlx-dist-detect: what this machine offers to a cluster. */
#include <stdio.h>
#include "cli/main_kit.h"
#include "cli/term.h"
#include "formats/json.h"
#include "hardware/hardware.h"
#include "kernels/kernels.h"

static void cores_text(const mxd_hardware *h, char out[160]) {
    int n = snprintf(out, 160, "%d usable", h->logical_cpus);
    if (h->cpu_quota > 0)
        n += snprintf(out + n, 160 - (size_t)n, " (limited to %.3g)", h->cpu_quota);
    if (h->physical_cores) n += snprintf(out + n, 160 - (size_t)n, ", %d cores", h->physical_cores);
    if (h->efficiency_cores)
        snprintf(out + n, 160 - (size_t)n, ": %d performance, %d efficiency", h->performance_cores,
                 h->efficiency_cores);
}

static void row(mxd_table *t, const char *name, const char *value) {
    if (!value[0]) return;
    mxd_table_cell(t, "%s", name);
    mxd_table_cell(t, "%s", value);
}

static void write_text(mxd_buf *out, const mxd_hardware *h, int columns) {
    char a[32], b[32], text[200], isa[128];
    mxd_table t;
    mxd_table_init(&t, out->al, 2);
    row(&t, "host", h->host);
    row(&t, "system", h->os);
    row(&t, "machine", h->model);
    row(&t, "kind", h->device ? mxd_device_name(h->device) : "");
    row(&t, "processor", h->chip);
    cores_text(h, text);
    row(&t, "cpus", text);
    row(&t, "instructions", mxd_isa_text(&h->isa, isa));
    row(&t, "kernels", mxd_kernels_best()->name);
    snprintf(text, sizeof text, "%s, %s available%s", mxd_size_text(a, h->memory_total_bytes),
             mxd_size_text(b, h->memory_available_bytes), h->unified_memory ? ", unified" : "");
    row(&t, "memory", text);
    if (h->read_bytes_per_s > 0) {
        row(&t, "memory speed", mxd_rate_text(a, h->read_bytes_per_s, "B/s"));
        row(&t, "arithmetic", mxd_rate_text(a, h->dot_ops_per_s, "op/s (8 bit)"));
    }
    snprintf(text, sizeof text, h->gpu_cores ? "%s, %d cores" : "%s", h->gpu, h->gpu_cores);
    row(&t, "graphics", text);
    snprintf(text, sizeof text, "%d %%, %s", h->battery_percent,
             h->on_ac ? "on mains" : "discharging");
    row(&t, "battery", h->battery ? text : "");
    mxd_table_write(&t, out, columns);
    mxd_table_deinit(&t);
}

static mxd_rc write_json(mxd_buf *out, const mxd_hardware *h, mxd_err *err) {
    json_t *v = mxd_hardware_json(h);
    if (!v || json_object_set_new(v, "kernels", json_string(mxd_kernels_best()->name))) {
        json_decref(v);
        return mxd_fail(err, MXD_E_NOMEM, "no memory for the answer");
    }
    mxd_json_write(out, v, &(mxd_json_style){.indent = 2});
    mxd_buf_putc(out, '\n');
    json_decref(v);
    return MXD_OK;
}

static mxd_rc run(const mxd_options *o, mxd_err *err) {
    mxd_hardware h;
    mxd_hardware_opts how = {.probe = !mxd_opt_bool(o, MXD_OPT_NO_PROBE)};
    MXD_TRY(mxd_hardware_detect(&h, o->al, &how, err));
    mxd_term t;
    mxd_term_init(&t, stdout, mxd_opt_bool(o, MXD_OPT_NO_COLOR));
    mxd_buf out;
    mxd_buf_init(&out, o->al, 1 << 20);
    mxd_rc rc = MXD_OK;
    if (mxd_opt_bool(o, MXD_OPT_JSON))
        rc = write_json(&out, &h, err);
    else
        write_text(&out, &h, t.columns);
    if (!rc) rc = mxd_buf_rc(&out, "the answer", err);
    if (!rc) fputs(mxd_buf_str(&out), stdout);
    mxd_buf_deinit(&out);
    return rc;
}

int main(int argc, char **argv) {
    mxd_options o;
    int code;
    if (!mxd_main_begin(&o, MXD_PROG_DETECT, argc, argv, &code)) return code;
    mxd_err err = {0};
    mxd_rc rc = run(&o, &err);
    return mxd_main_end(&o, rc, &err);
}
