#include "test.h"

#include "formats/json.h"
#include "server/tools/reasoning.h"
#include "server/tools/scan.h"
#include "server/tools/tools.h"

/* Everything that came out, in one readable line: "R{...}" reasoning, "T{...}" text,
 * "C{name|args}". */
typedef struct seen {
    mxd_buf out;
    char last;
    mxd_tool_parser *tools; /* NULL: text is noted */
} seen;

static void add(seen *s, char kind, const char *text, size_t n) {
    if (s->last != kind) {
        if (s->last) mxd_buf_putc(&s->out, '}');
        mxd_buf_printf(&s->out, "%c{", kind);
        s->last = kind;
    }
    mxd_buf_put(&s->out, text, n);
}

static void on_text(void *ctx, const char *text, size_t n) {
    CHECK(n > 0);
    add(ctx, 'T', text, n);
}

static void on_call(void *ctx, const char *name, const char *args, size_t n) {
    seen *s = ctx;
    add(s, 'C', name, strlen(name));
    mxd_buf_putc(&s->out, '|');
    mxd_buf_put(&s->out, args, n);
    mxd_buf_putc(&s->out, '}');
    s->last = 0;
}

static void on_thought(void *ctx, bool reasoning, const char *text, size_t n) {
    seen *s = ctx;
    CHECK(n > 0);
    if (!reasoning && s->tools)
        mxd_tool_parser_feed(s->tools, text, n);
    else
        add(s, reasoning ? 'R' : 'T', text, n);
}

typedef struct setup {
    bool think, inside, tools;
    int max_calls;
} setup;

/* Runs `text` through both parsers in pieces: [0, a), [a, b), [b, end); step > 0: pieces of `step`.
 */
static void run(char out[2048], const mxd_alloc *al, const setup *how, const char *text, size_t a,
                size_t b, size_t step) {
    static const mxd_tool_sink sink = {on_text, on_call};
    seen s = {0};
    mxd_think t;
    mxd_tool_parser p;
    size_t n = strlen(text);
    mxd_buf_init(&s.out, al, 8 << 20);
    mxd_tool_parser_init(&p, al, how->tools ? mxd_tool_family_find("<tool_call>") : NULL,
                         how->max_calls, &sink, &s);
    s.tools = &p;
    mxd_think_init(&t, al, how->think, how->inside, on_thought, &s);
    if (step) {
        for (size_t i = 0; i < n; i += step)
            mxd_think_feed(&t, text + i, n - i < step ? n - i : step);
    } else {
        mxd_think_feed(&t, text, a);
        mxd_think_feed(&t, text + a, b - a);
        mxd_think_feed(&t, text + b, n - b);
    }
    mxd_think_end(&t);
    mxd_tool_parser_end(&p);
    if (s.last) mxd_buf_putc(&s.out, '}');
    snprintf(out, 2048, "%s", mxd_buf_str(&s.out));
    mxd_think_deinit(&t);
    mxd_tool_parser_deinit(&p);
    mxd_buf_deinit(&s.out);
}

static const struct {
    setup how;
    const char *text, *want;
} rows[] = {
    {{true}, "plain", "T{plain}"},
    {{true}, "", ""},
    {{true}, "<think>a</think>b", "R{a}T{b}"},
    {{true}, "\n <think>\n\na  b\n</think>\n\n b \n", "R{a  b}T{b \n}"},
    {{true}, "<think></think>x", "T{x}"},
    {{true}, "<think>never ends  ", "R{never ends}"},
    {{true}, "<think>half </thin", "R{half </thin}"},
    {{true}, "<thin", "T{<thin}"},
    {{true}, "x<think>y</think>", "T{x<think>y</think>}"},
    {{true, true}, "in\n</think>\n\nout", "R{in}T{out}"},
    {{true, true}, "</think>out", "T{out}"},
    {{true, true}, "in </think", "R{in </think}"},
    {{false}, "<think>a</think>b", "T{<think>a</think>b}"},
    {{true, false, true},
     "<tool_call>\n{\"name\":\"f\",\"arguments\":{\"a\":  1}}\n</tool_call>",
     "C{f|{\"a\":  1}}"},
    {{true, false, true},
     "say\n<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call>{\"arguments\":{},\"name\":\"g\"}"
     "</tool_call>\n",
     "T{say}C{f|{}}C{g|{}}"},
    {{true, false, true}, "<tool_call>{\"name\":\"f\",\"arguments\":{}}", "C{f|{}}"},
    {{true, false, true},
     "<tool_call>{\"name\":\"f\",\"argum",
     "T{<tool_call>{\"name\":\"f\",\"argum}"},
    {{true, false, true},
     "<tool_call>no json</tool_call> x",
     "T{<tool_call>no json</tool_call> x}"},
    {{true, false, true}, "a <tool_cal b", "T{a <tool_cal b}"},
    {{true, false, true}, "tail \n ", "T{tail \n }"},
    {{true, false, true},
     "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"x\\\": \\\"\\u00e9\\\"}\"}</tool_call>after",
     "C{f|{\"x\": \"\xC3\xA9\"}}T{after}"},
    {{true, false, true},
     "<tool_call>{\"name\":\"f\",\"parameters\":{\"q\":[1]}}</tool_call>",
     "C{f|{\"q\":[1]}}"},
    {{true, false, true},
     "<tool_call>{\"name\":7}</tool_call>",
     "T{<tool_call>{\"name\":7}</tool_call>}"},
    {{true, false, true},
     "<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>",
     "T{<tool_call>{\"name\":\"f\",\"arguments\":[1]}</tool_call>}"},
    {{true, false, true, 1},
     "<tool_call>{\"name\":\"f\"}</tool_call><tool_call>{\"name\":\"g\"}</tool_call>tail",
     "C{f|{}}"},
    {{true, false, true},
     "<think>t</think>\n\n<tool_call>{\"name\":\"f\"}</tool_call>",
     "R{t}C{f|{}}"},
    {{true, false, false},
     "<tool_call>{\"name\":\"f\"}</tool_call>",
     "T{<tool_call>{\"name\":\"f\"}</tool_call>}"},
};

TEST(pieces_do_not_depend_on_the_cut) {
    char out[2048];
    for (size_t i = 0; i < MXD_COUNT(rows); i++) {
        size_t n = strlen(rows[i].text);
        for (size_t a = 0; a <= n; a++)
            for (size_t b = a; b <= n; b++) {
                run(out, &mxd_alloc_libc, &rows[i].how, rows[i].text, a, b, 0);
                CHECK_STR(out, rows[i].want);
            }
        for (size_t step = 1; step < 8; step++) {
            run(out, &mxd_alloc_libc, &rows[i].how, rows[i].text, 0, 0, step);
            CHECK_STR(out, rows[i].want);
        }
    }
}

TEST(tool_call_without_end_is_bounded) {
    static char flood[3 << 20];
    char out[2048];
    setup how = {.think = true, .tools = true};
    memset(flood, 'x', sizeof flood - 1);
    memcpy(flood, "<tool_call>", 11);
    run(out, &mxd_alloc_libc, &how, flood, 0, 0, 4096);
    CHECK(strncmp(out, "T{<tool_call>xxx", 16) == 0);
}

TEST(prompt_tail_decides_where_the_answer_begins) {
    static const struct {
        const char *prompt;
        bool inside;
    } tails[] = {{"<|im_start|>assistant\n<think>\n", true},
                 {"<think>\n\n</think>\n\n", false},
                 {"<think>a</think> b <think>", true},
                 {"", false},
                 {"nothing", false}};
    for (size_t i = 0; i < MXD_COUNT(tails); i++)
        CHECK_EQ(mxd_think_prompt_inside(tails[i].prompt, strlen(tails[i].prompt)),
                 tails[i].inside);
}

TEST(scan_holds_what_may_become_a_marker) {
    CHECK_EQ(mxd_scan_hold("abc", 3, "<tool_call>"), 0);
    CHECK_EQ(mxd_scan_hold("abc \n<tool", 10, "<tool_call>"), 7);
    CHECK_EQ(mxd_scan_hold("<", 1, "<tool_call>"), 1);
    CHECK_EQ(mxd_scan_hold("<<", 2, "<tool_call>"), 1);
    CHECK_EQ(mxd_scan_find("xx<a", 4, "<a"), 2);
    CHECK_EQ(mxd_scan_find("xx<", 3, "<a"), 3);
}

TEST_OOM(text_parsers_keep_the_first_failure) {
    (void)err;
    mxd_think t;
    seen s = {0};
    mxd_buf_init(&s.out, &mxd_alloc_libc, 2000);
    mxd_think_init(&t, al, true, false, on_thought, &s);
    mxd_think_feed(&t, "<thi", 4);
    mxd_think_feed(&t, "nk>abc", 6);
    mxd_rc rc = t.wait.rc;
    mxd_think_deinit(&t);
    mxd_buf_deinit(&s.out);
    return rc;
}
