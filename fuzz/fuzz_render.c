/* Variables (JSON) for a fixed template that uses most features. */
#include "formats/json.h"
#include "fuzz.h"
#include "tokenizer/template.h"

static const char source[] =
    "{%- set ns = namespace(n=0) -%}{% macro show(x) %}({{ x }}){% endmacro %}"
    "{% for m in messages if m is mapping %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content | trim }}{% elif m.content is iterable %}"
    "{% for p in m.content %}{{ show(p) }}{% endfor %}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson(indent=2) }}{% endfor %}"
    "{% set ns.n = ns.n + 1 %}{{ loop.index }}{% endfor %}{{ ns.n }}"
    "{{ tools | default([]) | tojson }}{{ x[1:] }}{{ x ~ y }}{{ d | dictsort if d is mapping }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    mxd_template *t = NULL;
    mxd_rendered r = {0};
    mxd_err err;
    json_t *v = NULL, *messages = NULL;
    if (mxd_json_parse(&v, (const char *)data, size, &err)) return 0;
    if (json_is_object(v) &&
        !mxd_template_open(&t, &mxd_alloc_libc, source, sizeof source - 1, &err)) {
        if (!mxd_template_messages(&messages, json_object_get(v, "messages"), &err))
            json_object_set_new(v, "messages", messages);
        (void)!mxd_template_render(t, v, NULL, 0, &r, &err);
    }
    mxd_rendered_deinit(&r);
    mxd_template_close(t);
    json_decref(v);
    return 0;
}
