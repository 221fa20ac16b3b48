#include "cli/nodes_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include "formats/json.h"

static const double most_bytes = 9007199254740992.0; /* 2^53 */

/* A number of `o` from 0 to most; *out stays as it is when the key is missing. */
static mxd_rc number(const json_t *o, const char *what, const char *key, double most, double *out,
                     mxd_err *err) {
    const json_t *v = json_object_get(o, key);
    if (!v) return MXD_OK;
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= 0 && x <= most))
        return mxd_fail(err, MXD_E_CONFIG, "%s: %s must be a number from 0 to %.4g", what, key,
                        most);
    *out = x;
    return MXD_OK;
}

static mxd_rc known_keys(const json_t *o, const char *what, const char *const *keys, mxd_err *err) {
    if (!json_is_object(o)) return mxd_fail(err, MXD_E_CONFIG, "%s must be an object", what);
    void *it = json_object_iter((json_t *)o);
    for (; it; it = json_object_iter_next((json_t *)o, it)) {
        const char *const *k = keys;
        while (*k && strcmp(*k, json_object_iter_key(it))) k++;
        if (!*k)
            return mxd_fail(err, MXD_E_CONFIG, "%s: unknown key '%.60s'", what,
                            json_object_iter_key(it));
    }
    return MXD_OK;
}

/* As `mlx-dist-detect --json` prints them. */
static mxd_rc read_paces(mxd_plan_node *n, const json_t *v, const char *what, mxd_err *err) {
    static const char *const keys[] = {
        "near_bytes_per_s", "tile_ns",   "float_ops_per_s", "row_ops_per_s",
        "values_per_s",     "region_us", "handoff_us",      "duty",
        "pause_us",         NULL};
    mxd_paces *p = &n->paces;
    double tile_ns = 0, region_us = 0, handoff_us = 0, pause_us = 0;
    if (!v || json_is_null(v)) return MXD_OK;
    MXD_TRY(known_keys(v, what, keys, err));
    MXD_TRY(number(v, what, "near_bytes_per_s", 1e18, &p->near_bytes_per_s, err));
    MXD_TRY(number(v, what, "float_ops_per_s", 1e21, &p->float_ops_per_s, err));
    MXD_TRY(number(v, what, "row_ops_per_s", 1e21, &p->row_ops_per_s, err));
    MXD_TRY(number(v, what, "values_per_s", 1e21, &p->values_per_s, err));
    MXD_TRY(number(v, what, "tile_ns", 1e9, &tile_ns, err));
    MXD_TRY(number(v, what, "region_us", 1e9, &region_us, err));
    MXD_TRY(number(v, what, "handoff_us", 1e9, &handoff_us, err));
    MXD_TRY(number(v, what, "duty", 1, &p->duty, err));
    MXD_TRY(number(v, what, "pause_us", 1e9, &pause_us, err));
    p->tile_s = tile_ns * 1e-9;
    p->region_s = region_us * 1e-6;
    p->handoff_s = handoff_us * 1e-6;
    p->pause_s = pause_us * 1e-6;
    return MXD_OK;
}

static mxd_rc read_node(mxd_nodes_file *f, const json_t *v, mxd_err *err) {
    static const char *const keys[] = {"name",
                                       "host",
                                       "memory_bytes",
                                       "free_bytes",
                                       "bandwidth_bytes_per_s",
                                       "ops_per_s",
                                       "link_us",
                                       "link_bytes_per_s",
                                       "paces",
                                       "must",
                                       "cpus",
                                       "host_cpus",
                                       NULL};
    char what[120];
    snprintf(what, sizeof what, "node %d", f->n_nodes);
    MXD_TRY(known_keys(v, what, keys, err));
    const char *name = json_string_value(json_object_get(v, "name"));
    if (!name || !name[0] || strlen(name) >= MXD_MAX_NODE_NAME)
        return mxd_fail(err, MXD_E_CONFIG, "%s: a name of 1 to %d bytes is needed", what,
                        MXD_MAX_NODE_NAME - 1);
    for (int i = 0; i < f->n_nodes; i++)
        if (strcmp(f->nodes[i].name, name) == 0)
            return mxd_fail(err, MXD_E_CONFIG, "%s: the name '%s' is there twice", what, name);
    snprintf(what, sizeof what, "node '%s'", name);
    double memory = -1, left = -1;
    mxd_plan_node *n = &f->nodes[f->n_nodes++];
    *n = (mxd_plan_node){.must = json_is_true(json_object_get(v, "must"))};
    snprintf(n->name, sizeof n->name, "%s", name);
    const char *host = json_string_value(json_object_get(v, "host"));
    snprintf(n->host, sizeof n->host, "%s", host ? host : "");
    MXD_TRY(number(v, what, "memory_bytes", most_bytes, &memory, err));
    MXD_TRY(number(v, what, "free_bytes", most_bytes, &left, err));
    MXD_TRY(number(v, what, "bandwidth_bytes_per_s", 1e18, &n->bandwidth_bytes_per_s, err));
    MXD_TRY(number(v, what, "ops_per_s", 1e21, &n->ops_per_s, err));
    MXD_TRY(number(v, what, "link_us", 1e9, &n->link_us, err));
    MXD_TRY(number(v, what, "link_bytes_per_s", 1e18, &n->link_bytes_per_s, err));
    MXD_TRY(number(v, what, "cpus", 1e6, &n->cpus, err));
    MXD_TRY(number(v, what, "host_cpus", 1e6, &n->host_cpus, err));
    MXD_TRY(read_paces(n, json_object_get(v, "paces"), what, err));
    if (memory < 0 && left < 0)
        return mxd_fail(err, MXD_E_CONFIG, "%s: memory_bytes is needed", what);
    n->free_bytes = (uint64_t)(left < 0 ? memory : left);
    n->memory_bytes = (uint64_t)(memory < 0 ? left : memory);
    return MXD_OK;
}

static int find_node(const mxd_nodes_file *f, const json_t *name) {
    for (int i = 0; json_is_string(name) && i < f->n_nodes; i++)
        if (strcmp(f->nodes[i].name, json_string_value(name)) == 0) return i;
    return -1;
}

static mxd_rc read_link(mxd_nodes_file *f, const json_t *v, mxd_err *err) {
    static const char *const keys[] = {"a", "b", "latency_us", "bandwidth_bytes_per_s", NULL};
    char what[40];
    snprintf(what, sizeof what, "link %d", f->n_links);
    MXD_TRY(known_keys(v, what, keys, err));
    mxd_plan_link l = {.a = find_node(f, json_object_get(v, "a")),
                       .b = find_node(f, json_object_get(v, "b")),
                       .latency_us = 100};
    if (l.a < 0 || l.b < 0 || l.a == l.b)
        return mxd_fail(err, MXD_E_CONFIG, "%s: a and b must be names of two nodes", what);
    MXD_TRY(number(v, what, "latency_us", 1e9, &l.latency_us, err));
    MXD_TRY(number(v, what, "bandwidth_bytes_per_s", 1e18, &l.bandwidth_bytes_per_s, err));
    f->links[f->n_links++] = l;
    return MXD_OK;
}

static mxd_rc read_all(mxd_nodes_file *f, const json_t *root, mxd_err *err) {
    static const char *const keys[] = {"nodes", "links", NULL};
    const json_t *nodes = json_object_get(root, "nodes"), *links = json_object_get(root, "links"),
                 *v;
    size_t i, n = json_array_size(nodes), m = json_array_size(links);
    MXD_TRY(known_keys(root, "the file", keys, err));
    if (n < 1 || n > MXD_MAX_NODES)
        return mxd_fail(err, MXD_E_CONFIG, "\"nodes\" must be a list of 1 to %d nodes",
                        MXD_MAX_NODES);
    if ((links && !json_is_array(links)) || m > MXD_MAX_LINKS)
        return mxd_fail(err, MXD_E_CONFIG, "\"links\" must be a list of at most %d links",
                        MXD_MAX_LINKS);
    json_array_foreach(nodes, i, v) MXD_TRY(read_node(f, v, err));
    json_array_foreach(links, i, v) MXD_TRY(read_link(f, v, err));
    return MXD_OK;
}

mxd_rc mxd_nodes_file_read(mxd_nodes_file *out, const char *path, mxd_err *err) {
    json_t *root = NULL;
    mxd_rc rc = mxd_json_load(&root, path, MXD_CONFIG_MAX_BYTES, err);
    if (rc) return rc == MXD_E_NOMEM ? rc : mxd_wrap(err, MXD_E_CONFIG, "nodes file");
    out->n_nodes = out->n_links = 0;
    rc = read_all(out, root, err);
    if (rc) rc = mxd_wrap(err, rc, "'%s'", path);
    json_decref(root);
    return rc;
}
