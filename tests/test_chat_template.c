/*
 * test_chat_template.c — templates as models have them, what is refused and how, and the bounds on work that a hostile
 * template can ask for. test_jinja.py compares every construct with Jinja itself.
 */
#include "xlstm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char talk[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},{\"role\":\"user\",\"content\":\" Hi \"},"
    "{\"role\":\"assistant\",\"content\":\"Hello!\"},{\"role\":\"user\",\"content\":\"Bye\\u0000\"}],"
    "\"add_generation_prompt\":true,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";

static void check(const char *source, const char *expected, size_t size)
{
    char *text;
    size_t n;
    xlstm_error err = {0};
    if (xlstm_chat_render(&text, &n, source, talk, sizeof talk - 1, &err))
        fail_msg("%s: %s", source, err.message);
    assert_int_equal(n, size);
    assert_memory_equal(text, expected, size + 1);
    xlstm_free(text);
}

#define CHECK(source, expected) check(source, expected, sizeof(expected) - 1)

static void test_styles(void **state)
{
    (void)state;
    CHECK("{% for message in messages %}\n"
          "    {% if loop.first and message.role != 'system' %}\n"
          "        {{- '<|im_start|>system\\nDefault<|im_end|>\\n' }}\n"
          "    {% endif %}\n"
          "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
          "{%- endfor %}\n"
          "{% if add_generation_prompt %}\n"
          "    {{- '<|im_start|>assistant\\n' }}\n"
          "{%- endif %}\n",
          "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
          "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye\0<|im_end|>\n<|im_start|>assistant\n");
    CHECK("{{ bos_token }}{%- if messages[0].role == 'system' -%}{%- set system = messages[0].content -%}"
          "{%- set rest = messages[1:] -%}{%- else -%}{%- set rest = messages -%}{%- endif -%}"
          "{%- for m in rest -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
          "{{ raise_exception('roles must alternate') }}{%- endif -%}"
          "{%- if m.role == 'user' -%}[INST] {{ system ~ '\\n' if loop.first and system is defined }}"
          "{{ m.content | trim }} [/INST]{%- else -%} {{ m.content }}{{ eos_token }}{%- endif -%}{%- endfor -%}",
          "<s>[INST] Be kind.\nHi [/INST]Hello!</s>[INST] Bye\0 [/INST]");
    CHECK("", "");
    CHECK("plain\n", "plain");
    CHECK("{{ missing }}{{ tools if tools is defined else 'none' }}", "none");
}

static void refuse(const char *source, int code, const char *part)
{
    char *text = (char *)1;
    size_t n;
    xlstm_error err = {0};
    int result = xlstm_chat_render(&text, &n, source, talk, sizeof talk - 1, &err);
    if (result != code || !strstr(err.message, part))
        fail_msg("%.60s: %d %s", source, result, err.message);
    assert_null(text);
    assert_int_equal(xlstm_chat_render(&text, &n, source, talk, sizeof talk - 1, NULL), code);
}

static void test_refusals(void **state)
{
    (void)state;
    refuse("\n\n{{ 1 + }}", XLSTM_E_FORMAT, "line 3");
    refuse("{% if yes %}", XLSTM_E_FORMAT, "endif");
    refuse("{% include 'x' %}", XLSTM_E_UNSUPPORTED, "\"include\"");
    refuse("{{ 1|no_such }}", XLSTM_E_UNSUPPORTED, "no_such");
    refuse("{{ 1 is no_such }}", XLSTM_E_UNSUPPORTED, "no_such");
    refuse("{{ ''.no_such() }}", XLSTM_E_UNSUPPORTED, "no_such");
    refuse("{{ no_such() }}", XLSTM_E_UNSUPPORTED, "no_such");
    refuse("{{ no.such }}", XLSTM_E_FORMAT, "no is undefined");
    refuse("{{ raise_exception('only user and assistant') }}", XLSTM_E_ARGUMENT, "only user and assistant");
    refuse("{# no end", XLSTM_E_FORMAT, "#}");
    refuse("{% raw %}", XLSTM_E_FORMAT, "endraw");
    refuse("{{ 9223372036854775807 + 1 }}", XLSTM_E_UNSUPPORTED, "64 bits");
    refuse("{{ (0 - 9223372036854775807 - 1) // -1 }}", XLSTM_E_FORMAT, "division");
    refuse("{{ 99999999999999999999 }}", XLSTM_E_FORMAT, "number");
    char *text;
    size_t n;
    xlstm_error err;
    assert_int_equal(xlstm_chat_render(&text, &n, "", "[]", 2, &err), XLSTM_E_FORMAT);
    assert_int_equal(xlstm_chat_render(&text, &n, "", "{", 1, &err), XLSTM_E_FORMAT);
}

/* What is nested, repeated or grown without end is refused in bounded time and memory, without a deep stack. */
static void test_bounds(void **state)
{
    (void)state;
    static const char *const openings[] = {"(", "[", "-", "not ", "{'a':", "1 if 1 else ", "x[", "f(", "1|d("};
    size_t n = 200000;
    char *source = malloc(2 * n + 100);
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        char *end = stpcpy(source, "{{ ");
        while ((size_t)(end - source) < n)
            end = stpcpy(end, openings[i]);
        refuse(source, XLSTM_E_UNSUPPORTED, "nested");
    }
    char *end = source;
    while ((size_t)(end - source) < n)
        end = stpcpy(end, "{% if 1 %}");
    refuse(source, XLSTM_E_UNSUPPORTED, "nested");
    free(source);

    refuse("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", XLSTM_E_UNSUPPORTED, "call each other");
    refuse("{{ range(1000000) }}", XLSTM_E_UNSUPPORTED, "range");
    refuse("{{ 'aaaaaaaaaa' * 1000000000 }}", XLSTM_E_UNSUPPORTED, "MB");
    refuse("{% set ns = namespace(s='ab') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
           XLSTM_E_UNSUPPORTED, "MB");
    refuse("{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}"
           "{% endfor %}",
           XLSTM_E_UNSUPPORTED, "");
    refuse("{% set ns = namespace(l=[]) %}{% for i in range(300) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
           XLSTM_E_UNSUPPORTED, "deep");
    /* Deep values are released without recursion. */
    CHECK("{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}x", "x");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_styles),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
