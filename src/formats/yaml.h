/* yaml.h - YAML through libyaml into a JSON tree, with the line and column of every value.
 *
 * One document. Scalars stay texts ("8080", "true"), as written: whoever knows the meaning of a key
 * reads them by it, so that 0123 stays 0123; only a plain empty, ~ or null becomes null. Refused:
 * anchors and aliases (they can make a small file huge), tags, several documents, keys that are not
 * texts, keys given twice, depth over MXD_JSON_MAX_DEPTH, more than MXD_JSON_MAX_NODES values.
 * JSON is a subset, so a JSON file reads as well.
 *
 * Trust: hostile. Threads: reentrant. Memory: jansson's and libyaml's own; failures are E_NOMEM.
 */
#ifndef MXD_FORMATS_YAML_H
#define MXD_FORMATS_YAML_H

#include <jansson.h>
#include "base/err.h"

/* An empty document is an empty object.
 *   *out    the tree; a new reference
 *   *marks  where values stand: an object from path ("server.port", "hosts.0") to
 *           line * 65536 + column, both from 1; a new reference. May be NULL.
 * Errors: E_FORMAT "line L column C: ..."; E_TOOBIG; E_NOMEM. */
mxd_rc mxd_yaml_parse(json_t **out, json_t **marks, const char *text, size_t n,
                      mxd_err *err) MXD_MUST_USE;

/* As above for a file of at most max_bytes; the path stands in front of messages.
 * Errors also E_NOTFOUND, E_IO. */
mxd_rc mxd_yaml_load(json_t **out, json_t **marks, const char *path, size_t max_bytes,
                     mxd_err *err) MXD_MUST_USE;

/* Line and column of `path`; false and 0, 0 when it is not there. */
bool mxd_yaml_where(const json_t *marks, const char *path, int *line, int *column);

#endif
