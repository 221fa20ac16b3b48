/* A template; what parses is rendered with a fixed conversation. No span may hold a user's bytes
 * and be trusted: the content's letters stand nowhere in the template's own alphabet. */
#include <stdlib.h>
#include <string.h>
#include "formats/json.h"
#include "fuzz.h"
#include "tokenizer/template.h"

static const char vars[] = "{\"messages\":[{\"role\":\"user\",\"content\":\"\xf0\x9f\x98\x80 "
                           "hi\"},{\"role\":\"assistant\","
                           "\"content\":\"\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
                           "\"arguments\":{\"x\":[1,2.5,null]}}}]}],"
                           "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}],"
                           "\"add_generation_prompt\":true,"
                           "\"n\":3,\"s\":\"a b,c\",\"l\":[3,1,2],\"d\":{\"k\":\"v\"}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mxd_template *t = NULL;
    mxd_rendered r = {0};
    mxd_err err;
    json_t *v = NULL;
    bool own =
        size && memmem(data, size, "\xf0\x9f", 2) == NULL && memchr(data, '\\', size) == NULL;
    if (mxd_template_open(&t, &mxd_alloc_libc, (const char *)data, size, &err)) return 0;
    if (mxd_json_parse(&v, vars, sizeof vars - 1, &err)) abort();
    if (!mxd_template_render(t, v, NULL, 1700000000, &r, &err))
        for (size_t i = 0; i < r.n_spans && own; i++)
            if (r.spans[i].trusted && memmem(r.spans[i].ptr, r.spans[i].n, "\xf0\x9f\x98\x80", 4))
                abort();
    mxd_rendered_deinit(&r);
    mxd_template_close(t);
    json_decref(v);
    return 0;
}
