"""Chat templates: every construct rendered by the library and by Jinja itself with Hugging Face's settings. Skipped
without the Python package jinja2. Templates of one line each, then whole ones."""

import ctypes
import json
import os
import sys
import unittest

try:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    print("skip: no Python package jinja2")
    sys.exit(77)

LIBRARY = os.path.join(os.environ.get("BUILD", "build"), "libxlstm.so")
VARIABLES = {
    "messages": [
        {"role": "system", "content": " You are kind. "},
        {"role": "user", "content": 'Hi <b> "there" \u00e9\u4f60\u597d'},
        {"role": "assistant", "content": "<think>hm</think>\n\nHello\n",
         "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1, "b": [1.5, None, True]}}}]},
        {"role": "user", "content": "Bye"},
    ],
    "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>",
    "tools": [{"type": "function", "function": {"name": "get", "parameters": {"x": {"type": "int"}}}}],
    "n": 7, "m": -7, "f": 2.5, "s": "Hello World", "e": "", "l": [3, 1, 2, 1], "d": {"b": 1, "a": 2},
    "nothing": None, "yes": True, "no": False,
}

LINES = r'''
{{ s }}|{{ n }}|{{ f }}|{{ yes }}|{{ nothing }}|{{ l }}|{{ d }}|{{ missing }}|{{ messages[0] }}
{{ s|upper }} {{ s|lower }} {{ s|title }} {{ s|capitalize }} {{ s|length }} {{ s|first }} {{ s|last }} {{ s|reverse }}
{{ l|sort }} {{ l|sort(reverse=true) }} {{ l|unique|list }} {{ l|first }} {{ l|last }} {{ l|join(', ') }} {{ l|length }} {{ l|reverse|list }}
{% for k, v in d|items %}{{ k }}{{ v }}{% endfor %}{% for k, v in d|dictsort %}{{ k }}{{ v }}{% endfor %} {{ d.keys()|list }} {{ d.values()|list }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 5) }}
{{ s[0] }} {{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[:-2] }} {{ s[::2] }} {{ messages[1].content[-2:] }} {{ l[1:] }} {{ l[::-1] }} {{ l[-2:] }} {{ l[5:] }} {{ l[:100] }} {{ l[-100:2] }} {{ l[3:0:-1] }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2.5 * 2 }} {{ n / 2 }} {{ 'a' * 3 }} {{ -n }} {{ -(n + 1) }} {{ 1.0 }} {{ 1e3 }} {{ 0.1 + 0.2 }} {{ 10 / 5 }}
{{ 'a' ~ 1 ~ none ~ true }} {{ 'a' + 'b' }} {{ [1] + [2] }} {{ "x" "y" }}
{{ 1 < 2 }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 'a' }} {{ [1,2] == [1,2] }} {{ {'a':1} == {'a':1} }} {{ none == false }} {{ 1 != 2 }} {{ 2 >= 2 }}
{{ 'a' in 'cat' }} {{ 'a' not in 'cat' }} {{ 1 in l }} {{ 'b' in d }} {{ 'role' in messages[0] }} {{ 'z' in [] }} {{ not 1 }} {{ not 'a' in 'b' }}
{{ 1 and 0 }} {{ 0 or 'x' }} {{ '' or none }} {{ 1 and 'y' or 'n' }} {{ not no and yes }} {{ (1, 2)|list }} {{ (1,)|length }} {{ ()|length }} {{ [] }} {{ {} }} {{ {'a': [1, {'b': 2}]} }}
{{ 'a' if yes else 'b' }} {{ 'a' if no }} {{ 'a' if no else 'b' if no else 'c' }}
{{ s is string }} {{ n is number }} {{ n is integer }} {{ f is float }} {{ d is mapping }} {{ l is iterable }} {{ l is sequence }} {{ missing is defined }} {{ missing is undefined }} {{ s is defined }} {{ nothing is none }} {{ nothing is not none }} {{ yes is true }} {{ yes is boolean }} {{ no is false }} {{ 4 is even }} {{ 3 is odd }} {{ 9 is divisibleby 3 }} {{ 1 is eq 1 }} {{ 1 is ne(2) }} {{ 's' is in 'es' }} {{ yes is sameas true }} {{ 'A' is upper }} {{ yes is sameas true and no is not sameas true }} {{ 'a' if n is defined and s is string else 'b' }} {{ 5 is gt 4 }}
{{ missing|default('x') }} {{ ''|default('x') }} {{ ''|default('x', true) }} {{ nothing|default('x') }} {{ nothing|d('x', boolean=true) }} {{ missing|default }}
{{ messages|tojson }} 
{{ tools|tojson(indent=4) }}
{{ tools|tojson(indent=2) }} {{ []|tojson(indent=2) }} {{ {}|tojson }} {{ 'é"\n\\'|tojson }} {{ 1.5|tojson }} {{ none|tojson }}
{{ messages|map(attribute='role')|list }} {{ messages|map(attribute='role')|join(',') }} {{ l|map('string')|join('-') }} {{ messages|selectattr('role', 'equalto', 'user')|list|length }} {{ messages|rejectattr('role', 'in', ['user','system'])|map(attribute='role')|list }} {{ l|select('odd')|list }} {{ l|reject('gt', 1)|list }} {{ messages|selectattr('tool_calls')|list|length }} {{ messages|selectattr('tool_calls', 'defined')|list|length }}
{{ '  x '|trim }}|{{ '  x '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'xxa'.lstrip('x') }}|{{ 'a\n\n'.rstrip('\n') }}|{{ '\u3000x\u00a0'|trim }}|{{ 'xax'|trim('x') }}
{{ 'a,b,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b c '.split() }} {{ ' a  b c '.split(none, 1) }} {{ 'abc'.split('x') }} {{ messages[2].content.split('</think>')[-1].lstrip('\n') }} {{ 'a\nb\r\nc'.splitlines() }}
{{ s.startswith('He') }} {{ s.endswith('x') }} {{ s.endswith(('x','ld')) }} {{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ 'éao'.find('o') }} {{ s.replace('o','0') }} {{ s.replace('o','0',1) }} {{ s|replace('l','L') }} {{ s.count('l') }} {{ '123'.isdigit() }} {{ ', '.join(['a','b']) }} {{ 'hello world'.title() }} {{ s.upper() }} {{ s.lower() }} {{ 'ab cd'.capitalize() }}
{{ 'a\nb\n\nc'|indent(2) }}|{{ 'a\nb'|indent(2, true) }}|{{ 'a\nb'|indent('> ') }}|{{ '<a href="x">'|escape }}|{{ '<'|e }}|{{ '<'|safe }}
{{ '12'|int }} {{ 'x'|int }} {{ 'x'|int(3) }} {{ 3.9|int }} {{ '2.5'|float }} {{ -3|abs }} {{ 2.567|round(2) }} {{ 2.5|round }} {{ 42|string }} {{ n|string|length }} {{ true|int }}
{{ range(3)|list }} {{ range(1, 4)|list }} {{ range(5, 0, -2)|list }} {{ dict(a=1, b='x') }}
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.cycle('a','b') }}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if not loop.last }};{% endfor %}
{% for x in [] %}a{% else %}empty{% endfor %}{% for x in l if x > 1 %}{{ loop.index }}{{ x }}{{ loop.last }} {% endfor %}{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for c in 'héy' %}{{ c }}.{% endfor %}{% for (a, b) in [(1,2),(3,4)] %}{{ a+b }}{% endfor %}
{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}
{% set ns = namespace(found=false, n=0) %}{% for x in l %}{% if x == 2 %}{% set ns.found = true %}{% endif %}{% set ns.n = ns.n + x %}{% set y = x %}{% endfor %}{{ ns.found }} {{ ns.n }} {{ y is defined }}
{% set a, b = 1, 'x' %}{{ a }}{{ b }}{% set z %}block {{ n }} text{% endset %}[{{ z }}]{% set q = [1, 2] %}{{ q }}{% set t = 1, 2 %}{{ t[1] }}
{% if no %}1{% elif n == 7 %}2{% elif yes %}3{% else %}4{% endif %}{% if missing %}x{% else %}y{% endif %}{% if n == 8 %}a{% elif n == 9 %}b{% else %}c{% endif %}
{% macro greet(name, mark='!') %}Hello {{ name }}{{ mark }}{% endmacro %}{{ greet('A') }} {{ greet('B', mark='?') }} {{ greet(name='C') }}
{% macro walk(x) %}{% if x is mapping %}{ {% for k, v in x|dictsort %}{{ k }}:{{ walk(v) }} {% endfor %}}{% else %}{{ x }}{% endif %}{% endmacro %}{{ walk(tools[0]) }}
{% raw %}{{ not }} {% this %}{% endraw %}|
{{ messages[0]['content'] | trim + '!' }} {{ (messages[0]['content'] | trim) ~ '!' }} {{ messages | length - 1 }} {{ messages[-1].role }} {{ messages[(messages|length)-1]['role'] }}
{{ 'a' 'b' ~ 'c' }} {{ "it's" }} {{ 'say "x"' }} {{ ["it's", 'a"b', 'new\nline'] }} {{ '\x41\u00e9\\' }} {{ 'tab\there' }}
{%- for message in messages %}{%- if message.role == 'user' or (message.role == "system" and not loop.first) %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{%- elif message.role == "assistant" %}{%- set content = message.content %}{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}{{- '<|im_start|>' + message.role + '\n' + content }}{%- if message.tool_calls %}{%- for tool_call in message.tool_calls %}{%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}{{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}{{- '}\n</tool_call>' }}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
{{ undefined_thing.x }}
{{ raise_exception('no way') }}
{{ 'a' + 1 }}
{{ 1 < 'a' }}
{{ 5 % 0 }}
{{ n
{% if yes %}
{% endif %}
{{ 'abc }}
{{ ) }}
{{ [1, 2 }}
{% for x in %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% set d.x = 1 %}
{{ n.foo }} {{ n.foo is defined }} {{ d.zz }} {{ l[99] }} {{ d['zz'] is defined }}
{{ s|length > 3 and s|length < 20 }} {{ not s|length > 30 }} {{ l|sum if false else 'k' }}
{{ messages | selectattr("role", "eq", "user") | map(attribute="content") | join("\n") }}
{{ loop is defined }} {{ range is defined }} {{ namespace is callable }}
{{ none is none and 1 is not string }} {{ 1 if 0 else 2 }} {{ (1 if yes else 2) + 1 }} {{ 3 - -2 }} {{ +3 }} {{ '1' ~ 2 + '3' }} {{ 2 * 3 ~ 4 }}
'''

WHOLE = [
    r'''A
  {% if yes %}
  B
  {% endif %}
C
  {%- if yes -%}
  D
  {%- endif +%}
E   {#- c -#}   F
  {# comment #}
G {{- ' x ' -}} H
  {%+ if yes %}I{% endif %}
''',
    r'''A
  {% if yes %}
  B
  {% endif %}
C
  {%- if yes -%}
  D
  {%- endif +%}
E   {#- c -#}   F
  {# comment #}
G {{- ' x ' -}} H
  {%+ if yes %}I{% endif %}

''',
    "x\r\ny\n{% if yes %}\n  z\n{% endif %}\n\n",
]


def jinja():
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols"])

    def tojson(value, indent=None):
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


class Templates(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.library = ctypes.CDLL(os.path.abspath(LIBRARY))
        cls.jinja = jinja()

    def ours(self, template):
        """The text, or None when the library refuses."""
        text, size, error = ctypes.c_char_p(), ctypes.c_size_t(), ctypes.create_string_buffer(1024)
        variables = json.dumps(VARIABLES).encode()
        code = self.library.xlstm_chat_render(ctypes.byref(text), ctypes.byref(size), template.encode(), variables,
                                              ctypes.c_size_t(len(variables)), error)
        if code:
            self.assertGreater(len(error.raw[4:].split(b"\0")[0]), 20)
            return None
        result = ctypes.string_at(text, size.value).decode()
        self.library.xlstm_free(text)
        return result

    def theirs(self, template):
        try:
            return self.jinja.from_string(template).render(**json.loads(json.dumps(VARIABLES)))
        except Exception:  # what they refuse, and how, is of many kinds
            return None

    def test_against_jinja(self):
        templates = [line for line in LINES.split("\n") if line] + WHOLE
        refused = 0
        for template in templates:
            expected = self.theirs(template)
            refused += expected is None
            self.assertEqual(self.ours(template), expected, template)
        print(f"{len(templates)} templates agree, {refused} of them refused by both")
        self.assertGreater(len(templates) - refused, 35)
        self.assertGreater(refused, 10)


if __name__ == "__main__":
    if not os.path.exists(LIBRARY):
        print(f"skip: {LIBRARY} is not built")
        sys.exit(77)
    unittest.main()
