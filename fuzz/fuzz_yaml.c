/* YAML text into a tree: either an error, or values whose places are known. */
#include "formats/yaml.h"

#include <stdlib.h>
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *tree = NULL, *marks = NULL;
    mxd_err err = {0};
    mxd_rc rc = mxd_yaml_parse(&tree, &marks, (const char *)data, size, &err);
    if (rc ? tree || !err.msg[0] : !tree || !marks) abort();
    int line, column;
    void *it = json_object_iter(marks);
    for (; it; it = json_object_iter_next(marks, it))
        if (!mxd_yaml_where(marks, json_object_iter_key(it), &line, &column) || line < 1 ||
            column < 1)
            abort();
    json_decref(tree);
    json_decref(marks);
    return 0;
}
