/*
 * test_chat_template.c — templates as models have them, what is refused and how, the bounds on work that a hostile
 * template can ask for, other locales, and allocations that fail. test_jinja.py compares every construct with Jinja
 * itself.
 */
#include "xlstm.h"

#include <jansson.h>
#include <locale.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* How many allocations from here the one that fails is; 0: none. */
static long failing;

static bool fails(void)
{
    return failing > 0 && --failing == 0;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* malloc is theirs: jansson's allocations only */
static void *json_allocate(size_t n)
{
    return fails() ? NULL : malloc(n);
}
static void intercept_allocations(void)
{
    json_set_alloc_funcs(json_allocate, free);
}
#else
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}
void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}
void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}
int posix_memalign(void **out, size_t align, size_t n)
{
    *out = fails() ? NULL : __libc_memalign(align, n);
    return *out == NULL ? 12 : 0;
}
static void intercept_allocations(void) {}
#endif

static const char talk[] =
    "{\"messages\":[{\"role\":\"system\",\"content\":\"Be kind.\"},{\"role\":\"user\",\"content\":\" Hi \"},"
    "{\"role\":\"assistant\",\"content\":\"Hello!\"},{\"role\":\"user\",\"content\":\"Bye\\u0000\"}],"
    "\"add_generation_prompt\":true,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"half\":0.5}";

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
    static const char *const not_numbers[] = {"{{ 99999999999999999999 }}", "{{ 1e999 }}", "{{ 01 }}", "{{ 01.5 }}",
                                              "{{ 1e }}", "{{ 1e+ }}", "{{ 1e5e5 }}", "{{ 1.5.5 }}"};
    for (size_t i = 0; i < sizeof not_numbers / sizeof *not_numbers; i++)
        refuse(not_numbers[i], XLSTM_E_FORMAT, "is not a number");
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
    refuse("{% set x = 'a' * 10000 * 10000 %}{{ strftime_now([x]) }}", XLSTM_E_UNSUPPORTED, "MB");
    /* Deep values are released without recursion. */
    CHECK("{% set ns = namespace(l=[]) %}{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}x", "x");
}

static void check_in_locale(void)
{
    test_styles(NULL);
    CHECK("{{ half }} {{ [half] }} {{ half|tojson }} {{ 1 / 4 }} {{ 1.5 }} {{ 1e300 }} {{ 0.1 + 0.2 }} {{ 2.0 }}",
          "0.5 [0.5] 0.5 0.25 1.5 1e+300 0.30000000000000004 2.0");
    CHECK("{{ '2.25'|float }} {{ '2.75'|int }} {{ '2,25'|int(7) }} {{ 2.567|round(2) }}", "2.25 2 7 2.57");
    CHECK("{{ 'tip iI'|upper }} {{ 'TIP Ii'|lower }} {{ 'iI iI'|title }} {{ 'iI'|capitalize }} {{ 'I' is upper }}",
          "TIP II tip ii Ii Ii Ii True");
    CHECK("{{ '\303\200\303\240\304\260'|upper }} {{ '\303\200\304\261x'|lower }} {{ '\\x4A\\u00e9' }}",
          "\303\200\303\240\304\260 \303\200\304\261x J\303\251");
    CHECK("\303\205 {{- 1 -}} \303\205\303\240 {%- if 1 %}x{% endif %}", "\303\2051\303\205\303\240x");
    CHECK("{{ strftime_now('%p') in ['AM', 'PM'] }}", "True");
    refuse("{{ \303\251 }}", XLSTM_E_FORMAT, "expected an expression");
    refuse("{{ 1.5.5 }}", XLSTM_E_FORMAT, "is not a number");
}

/* What a template makes does not depend on the program's locale. Locales that are not installed are made for the test. */
static void test_locales(void **state)
{
    (void)state;
    static const char *const locales[][2] = {
        {"de_DE", "UTF-8"}, {"de_DE", "ISO-8859-1"}, {"tr_TR", "UTF-8"}, {"tr_TR", "ISO-8859-9"}};
    char folder[] = "/tmp/xlstm_locales_XXXXXX", name[40], command[200];
    assert_non_null(mkdtemp(folder));
    size_t tried = 0;
    for (size_t i = 0; i < sizeof locales / sizeof *locales; i++) {
        snprintf(name, sizeof name, "%s.%s", locales[i][0], locales[i][1]);
        if (!setlocale(LC_ALL, name)) {
            snprintf(command, sizeof command, "localedef -i %s -f %s %s/%s 2>/dev/null", locales[i][0], locales[i][1],
                     folder, name);
            setenv("LOCPATH", folder, 1);
            if (system(command) != 0 || !setlocale(LC_ALL, name))
                print_message("no locale %s\n", name);
            unsetenv("LOCPATH");
        }
        if (strcmp(setlocale(LC_ALL, NULL), "C") != 0) {
            tried++;
            check_in_locale();
        }
        setlocale(LC_ALL, "C");
    }
    snprintf(command, sizeof command, "rm -r %s", folder);
    assert_int_equal(system(command), 0);
    check_in_locale();
    if (tried == 0)
        skip();
}

/* Whichever allocation fails, a render gives the whole text or an error. */
static void test_allocations(void **state)
{
    (void)state;
    /* jansson itself drops characters of longer texts when it runs out of memory */
    static const char variables[] = "{\"m\":[{\"r\":\"user\",\"c\":\" Hi \"},{\"r\":\"bot\",\"c\":\"B\"}],"
                                    "\"d\":{\"b\":1,\"a\":2},\"x\":0.5,\"s\":\"a b,c\"}";
    static const char *const sources[] = {
        "{% for p in m %}{{ loop.index }}{{ loop.length }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}"
        "{{ loop.revindex0 }}{{ loop.index0 }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}"
        "{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('x', 'y') }}{{ p.c|trim }}{{ p }}{% endfor %}",
        "{% for p in m if p.r == 'user' %}{{ p.r }}{% endfor %}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for k in d %}{{ k }}{% endfor %}{% for c in s %}{{ c }}.{% else %}none{% endfor %}",
        "{{ [1, 2, 'three'] + [4.5, none] }}{{ ['a'] + m }}{{ {'a': 1, 'b' ~ 'c': [2, 3]} }}{{ 12345678901234567 }}"
        "{{ 1.2345678901234567 }}{{ 'a' 'b' ~ x ~ 'cd' * 40 }}{{ s[1:] }}{{ s[::-1] }}{{ m[1:][0].r }}{{ s[0] }}",
        "{% set ns = namespace(a=1, b='x') %}{% for i in range(20) %}{% set ns.a = ns.a + i %}{% set ns.l = [i] %}"
        "{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.l }}{% set a, b = 'pq' %}{{ a }}{{ b }}{% set t %}text {{ x }}{% endset %}"
        "{{ t }}{{ dict(a=1, b=2, c=3, d=4, e=5, f=6, g=7, h=8, i=9, j=10) }}",
        "{% macro f(a, b='two') %}<{{ a }}{{ b }}>{% endmacro %}{{ f('one') }}{{ f(1, b=[2]) }}",
        "{{ m|tojson }}{{ m|tojson(indent=2) }}{{ s|upper }}{{ s|title }}{{ s|replace('a', 'bcd') }}{{ s.split(',') }}"
        "{{ s.split() }}{{ 'a\nb'.splitlines() }}{{ 'a\nb'|indent(2) }}{{ '<&>'|escape }}{{ s.startswith(('a', 'b')) }}"
        "{{ s.endswith('c') }}{{ s.find('b') }}{{ s.count('a') }}{{ '12'.isdigit() }}{{ strftime_now('%%') }}",
        "{{ [3, 1, 2]|sort }}{{ ['b', 'A', 'c']|sort(reverse=true) }}{{ m|sort(attribute='r') }}{{ d|dictsort }}"
        "{{ d.keys()|list }}{{ d.values() }}{{ [1, 2, 1]|unique|list }}{{ [1, 2]|reverse|list }}{{ s|reverse }}"
        "{{ m|map(attribute='r')|join(', ') }}{{ m|selectattr('r', 'equalto', 'bot')|list }}{{ [0, 1]|select|list }}"
        "{{ ['x', 'y']|map('upper')|list }}{{ [1, 2]|join }}{{ d.get('z', 'w') }}{{ missing|default('q') }}{{ m|length }}"
        "{{ '2.5'|float }}{{ 2.567|round(1) }}{{ (-3)|abs }}{{ x|string }}{{ [1]|string }}{{ [12].__x is defined }}",
    };
    intercept_allocations();
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        char *whole, *text;
        size_t whole_size, size;
        xlstm_error err = {0};
        if (xlstm_chat_render(&whole, &whole_size, sources[i], variables, sizeof variables - 1, &err))
            fail_msg("%s: %s", sources[i], err.message);
        bool reached = true;
        for (long n = 1; reached; n++) {
            failing = n;
            int code = xlstm_chat_render(&text, &size, sources[i], variables, sizeof variables - 1, &err);
            reached = failing == 0;
            failing = 0;
            if (code == XLSTM_OK) {
                assert_int_equal(size, whole_size);
                assert_memory_equal(text, whole, size + 1);
            } else {
                assert_true(reached);
                assert_null(text);
                /* jansson calls a text that it has no memory for invalid */
                if (code != XLSTM_E_MEMORY && !strstr(err.message, "chat variables: "))
                    fail_msg("allocation %ld: %s", n, err.message);
            }
            xlstm_free(text);
        }
        xlstm_free(whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_styles),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_locales),
        cmocka_unit_test(test_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
