/*
 * chat_template_run.c — walks the tree of a chat template: values, scopes, statements and expressions, with Python's
 * rules for truth, equality, order, printing and indexing.
 */
#include "chat_template.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CALLS = 100 };

/* One scope: variables set in it. */
typedef struct variable {
    const char *name;
    xl_value value;
    struct variable *next;
} variable;

typedef struct xl_frame {
    struct xl_frame *outer;
    variable *first;
} xl_frame;

/* ---- values ----------------------------------------------------------------------------------------------------- */

xl_value xl_chat_json(json_t *value)
{
    return (xl_value){.kind = XL_VALUE_JSON, .json = value};
}

xl_value xl_chat_undefined(const char *name)
{
    return (xl_value){.kind = XL_VALUE_UNDEFINED, .name = name};
}

bool xl_chat_truth(xl_value v)
{
    if (v.kind == XL_VALUE_UNDEFINED)
        return false;
    if (v.kind != XL_VALUE_JSON)
        return true;
    switch (json_typeof(v.json)) {
    case JSON_NULL:
    case JSON_FALSE:
        return false;
    case JSON_TRUE:
        return true;
    case JSON_INTEGER:
        return json_integer_value(v.json) != 0;
    case JSON_REAL:
        return json_real_value(v.json) != 0.0;
    case JSON_STRING:
        return json_string_length(v.json) > 0;
    case JSON_ARRAY:
        return json_array_size(v.json) > 0;
    case JSON_OBJECT:
        return json_object_size(v.json) > 0;
    }
    return true;
}

/* Numbers, true and false included, as Python has it. */
static bool to_number(const json_t *j, double *out)
{
    if (json_is_boolean(j))
        *out = json_is_true(j);
    else if (json_is_number(j))
        *out = json_number_value(j);
    else
        return false;
    return true;
}

static bool equal_json(const json_t *a, const json_t *b, int depth)
{
    double x, y;
    if (to_number(a, &x) && to_number(b, &y))
        return json_is_integer(a) && json_is_integer(b) ? json_integer_value(a) == json_integer_value(b) : x == y;
    if (json_typeof(a) != json_typeof(b) || depth > 200)
        return false;
    if (json_is_array(a)) {
        size_t n = json_array_size(a);
        if (json_array_size(b) != n)
            return false;
        for (size_t i = 0; i < n; i++)
            if (!equal_json(json_array_get(a, i), json_array_get(b, i), depth + 1))
                return false;
        return true;
    }
    if (json_is_object(a)) {
        const char *key;
        json_t *value;
        if (json_object_size(a) != json_object_size(b))
            return false;
        json_object_foreach((json_t *)(uintptr_t)a, key, value)
        {
            const json_t *other = json_object_get(b, key);
            if (!other || !equal_json(value, other, depth + 1))
                return false;
        }
        return true;
    }
    return json_equal(a, b);
}

bool xl_chat_equal(xl_value a, xl_value b)
{
    if (a.kind != b.kind)
        return false;
    if (a.kind == XL_VALUE_JSON)
        return equal_json(a.json, b.json, 0);
    return a.kind == XL_VALUE_UNDEFINED || (a.json == b.json && a.node == b.node);
}

static const char *json_type_name(const json_t *j)
{
    static const char *const names[] = {"an object", "a list", "a string", "a whole number", "a number", "true", "false",
                                        "none"};
    return names[json_typeof(j)];
}

static const char *type_name(xl_value v)
{
    static const char *const names[] = {"an undefined value", "", "a namespace", "a macro", "a function"};
    return v.kind == XL_VALUE_JSON ? json_type_name(v.json) : names[v.kind];
}

bool xl_chat_contains(xl_render *r, int line, xl_value whole, xl_value part)
{
    if (whole.kind == XL_VALUE_JSON && json_is_array(whole.json)) {
        for (size_t i = 0; i < json_array_size(whole.json); i++)
            if (xl_chat_equal(xl_chat_json(json_array_get(whole.json, i)), part))
                return true;
        return false;
    }
    bool text = part.kind == XL_VALUE_JSON && json_is_string(part.json);
    if (whole.kind == XL_VALUE_JSON && json_is_object(whole.json))
        return text && json_object_getn(whole.json, json_string_value(part.json), json_string_length(part.json));
    if (whole.kind == XL_VALUE_JSON && json_is_string(whole.json) && text)
        return memmem(json_string_value(whole.json), json_string_length(whole.json), json_string_value(part.json),
                      json_string_length(part.json)) != NULL;
    if (whole.kind == XL_VALUE_UNDEFINED)
        return false;
    xl_chat_fail(r, line, XLSTM_E_FORMAT, "\"in\" cannot look for %s in %s", type_name(part), type_name(whole));
    return false;
}

int xl_chat_order(xl_render *r, int line, xl_value a, xl_value b)
{
    double x, y;
    if (a.kind == XL_VALUE_JSON && b.kind == XL_VALUE_JSON) {
        if (to_number(a.json, &x) && to_number(b.json, &y))
            return x < y ? -1 : x > y;
        if (json_is_string(a.json) && json_is_string(b.json)) {
            int order = strcmp(json_string_value(a.json), json_string_value(b.json));
            return order < 0 ? -1 : order > 0;
        }
    }
    xl_chat_fail(r, line, XLSTM_E_FORMAT, "cannot order %s and %s", type_name(a), type_name(b));
    return 0;
}

/* The shortest decimal that reads back as x, with a point or an exponent in it. */
static void print_real(const xl_render *r, xl_text *out, double x)
{
    char text[40];
    locale_t before = uselocale(r->plain);
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    uselocale(before);
    xl_text_addf(out, "%s%s", text, strpbrk(text, ".en") ? "" : ".0");
}

/* As Python's repr() of a string. */
static void print_quoted(xl_text *out, const char *s, size_t n)
{
    char quote = memchr(s, '\'', n) && !memchr(s, '"', n) ? '"' : '\'';
    xl_text_add(out, &quote, 1);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == '\\' || c == (unsigned char)quote)
            xl_text_addf(out, "\\%c", c);
        else if (c == '\n' || c == '\t' || c == '\r')
            xl_text_addf(out, "\\%c", c == '\n' ? 'n' : c == '\t' ? 't' : 'r');
        else if (c < 32 || c == 127)
            xl_text_addf(out, "\\x%02x", c);
        else
            xl_text_add(out, s + i, 1);
    }
    xl_text_add(out, &quote, 1);
}

static void print_json(xl_render *r, xl_text *out, const json_t *j, bool quoted, int depth)
{
    if (depth > 100) {
        xl_chat_fail(r, 0, XLSTM_E_UNSUPPORTED, "a value is nested too deep to print");
        return;
    }
    switch (json_typeof(j)) {
    case JSON_NULL:
        xl_text_add(out, "None", 4);
        break;
    case JSON_TRUE:
        xl_text_add(out, "True", 4);
        break;
    case JSON_FALSE:
        xl_text_add(out, "False", 5);
        break;
    case JSON_INTEGER:
        xl_text_addf(out, "%lld", (long long)json_integer_value(j));
        break;
    case JSON_REAL:
        print_real(r, out, json_real_value(j));
        break;
    case JSON_STRING:
        if (quoted)
            print_quoted(out, json_string_value(j), json_string_length(j));
        else
            xl_text_add(out, json_string_value(j), json_string_length(j));
        break;
    case JSON_ARRAY:
        xl_text_add(out, "[", 1);
        for (size_t i = 0; i < json_array_size(j); i++) {
            xl_text_add(out, ", ", i ? 2 : 0);
            print_json(r, out, json_array_get(j, i), true, depth + 1);
        }
        xl_text_add(out, "]", 1);
        break;
    case JSON_OBJECT: {
        const char *key;
        json_t *value;
        bool comma = false;
        xl_text_add(out, "{", 1);
        json_object_foreach((json_t *)(uintptr_t)j, key, value)
        {
            xl_text_add(out, ", ", comma ? 2 : 0);
            comma = true;
            print_quoted(out, key, strlen(key));
            xl_text_add(out, ": ", 2);
            print_json(r, out, value, true, depth + 1);
        }
        xl_text_add(out, "}", 1);
        break;
    }
    }
}

void xl_chat_print(xl_render *r, xl_text *out, xl_value v)
{
    size_t before = out->size;
    if (v.kind == XL_VALUE_JSON)
        print_json(r, out, v.json, false, 0);
    else if (v.kind != XL_VALUE_UNDEFINED)
        xl_chat_fail(r, 0, XLSTM_E_FORMAT, "%s cannot be printed", type_name(v));
    xl_chat_done(r, out->failed);
    xl_chat_spend(r, out->size - before);
}

json_t *xl_chat_to_string(xl_render *r, xl_value v)
{
    if (v.kind == XL_VALUE_JSON && json_is_string(v.json))
        return v.json;
    xl_text text = {0};
    xl_chat_print(r, &text, v);
    return xl_chat_take(r, &text);
}

/* ---- strings by character --------------------------------------------------------------------------------------- */

static size_t count_characters(const char *s, size_t n)
{
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += ((unsigned char)s[i] & 0xc0) != 0x80;
    return count;
}

/* Byte offset of character `index`. */
static size_t character_offset(const char *s, size_t n, size_t index)
{
    size_t i = 0;
    while (i < n && index > 0) {
        i++;
        while (i < n && ((unsigned char)s[i] & 0xc0) == 0x80)
            i++;
        index--;
    }
    return i;
}

static json_t *one_character(xl_render *r, const json_t *string, size_t index)
{
    const char *s = json_string_value(string);
    size_t n = json_string_length(string), from = character_offset(s, n, index);
    return xl_chat_string(r, s + from, character_offset(s + from, n - from, 1));
}

json_t *xl_chat_items(xl_render *r, int line, xl_value v)
{
    if (v.kind == XL_VALUE_JSON && json_is_array(v.json))
        return v.json;
    json_t *items = xl_chat_keep(r, json_array());
    if (v.kind == XL_VALUE_UNDEFINED || r->failed)
        return items;
    if (v.kind == XL_VALUE_JSON && json_is_object(v.json)) {
        const char *key;
        json_t *value;
        json_object_foreach(v.json, key, value)
        {
            xl_chat_done(r, json_array_append(items, xl_chat_string(r, key, strlen(key))));
        }
        return items;
    }
    if (v.kind == XL_VALUE_JSON && json_is_string(v.json)) {
        const char *s = json_string_value(v.json);
        size_t left = json_string_length(v.json);
        while (left > 0 && !r->failed) {
            size_t n = character_offset(s, left, 1);
            xl_chat_done(r, json_array_append(items, xl_chat_string(r, s, n)));
            s += n;
            left -= n;
        }
        return items;
    }
    xl_chat_fail(r, line, XLSTM_E_FORMAT, "cannot walk through %s", type_name(v));
    return items;
}

/* ---- scopes ----------------------------------------------------------------------------------------------------- */

static void define(xl_render *r, const char *name, xl_value value)
{
    for (variable *v = r->frame->first; v; v = v->next) {
        if (!strcmp(v->name, name)) {
            v->value = value;
            return;
        }
    }
    variable *v = xl_chat_memory(r, sizeof *v);
    if (!v)
        return;
    *v = (variable){name, value, r->frame->first};
    r->frame->first = v;
}

static xl_value look_up(const xl_render *r, const char *name)
{
    for (const xl_frame *frame = r->frame; frame; frame = frame->outer)
        for (const variable *v = frame->first; v; v = v->next)
            if (!strcmp(v->name, name))
                return v->value;
    json_t *given = json_object_get(r->variables, name);
    if (given)
        return xl_chat_json(given);
    if (xl_chat_is_function(name))
        return (xl_value){.kind = XL_VALUE_FUNCTION, .name = name};
    return xl_chat_undefined(name);
}

/* ---- expressions ------------------------------------------------------------------------------------------------ */

static xl_value evaluate(xl_render *r, const xl_node *n);

static json_t *to_json(xl_render *r, const xl_node *n, xl_value v)
{
    if (v.kind == XL_VALUE_JSON)
        return v.json;
    if (v.kind != XL_VALUE_UNDEFINED)
        xl_chat_fail(r, n->line, XLSTM_E_UNSUPPORTED, "%s as a part of a list", type_name(v));
    return json_null();
}

static void evaluate_arguments(xl_render *r, const xl_node *list, xl_arguments *out)
{
    out->n = 0;
    for (const xl_node *n = list; n && !r->failed; n = n->next) {
        if (out->n == XL_MAX_ARGUMENTS) {
            xl_chat_fail(r, n->line, XLSTM_E_UNSUPPORTED, "more than %d arguments", XL_MAX_ARGUMENTS);
            return;
        }
        out->names[out->n] = n->name;
        out->values[out->n++] = evaluate(r, n->a);
    }
}

static xl_value integer(xl_render *r, json_int_t i)
{
    return xl_chat_json(xl_chat_keep(r, json_integer(i)));
}

static xl_value boolean(bool on)
{
    return xl_chat_json(json_boolean(on));
}

static bool as_integer(xl_value v, json_int_t *out)
{
    if (v.kind != XL_VALUE_JSON || !(json_is_integer(v.json) || json_is_boolean(v.json)))
        return false;
    *out = json_is_integer(v.json) ? json_integer_value(v.json) : json_is_true(v.json);
    return true;
}

static xl_value integer_arithmetic(xl_render *r, const xl_node *n, json_int_t x, json_int_t y)
{
    json_int_t result = 0;
    bool overflow = false;
    switch (n->op) {
    case XL_OP_ADD:
        overflow = __builtin_add_overflow(x, y, &result);
        break;
    case XL_OP_SUBTRACT:
        overflow = __builtin_sub_overflow(x, y, &result);
        break;
    case XL_OP_MULTIPLY:
        overflow = __builtin_mul_overflow(x, y, &result);
        break;
    default: /* floor division and its remainder round down, as in Python */
        if (y == 0 || (y == -1 && x == INT64_MIN))
            return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "division of %lld by %lld", (long long)x, (long long)y);
        result = x / y - (x % y != 0 && (x < 0) != (y < 0));
        if (n->op == XL_OP_MODULO)
            result = x - result * y;
    }
    if (overflow)
        return xl_chat_fail(r, n->line, XLSTM_E_UNSUPPORTED, "a number leaves 64 bits");
    return integer(r, result);
}

static xl_value arithmetic(xl_render *r, const xl_node *n, xl_value a, xl_value b)
{
    json_int_t i, j;
    double x, y;
    if (n->op != XL_OP_DIVIDE && as_integer(a, &i) && as_integer(b, &j))
        return integer_arithmetic(r, n, i, j);
    bool both = a.kind == XL_VALUE_JSON && b.kind == XL_VALUE_JSON;
    if (both && to_number(a.json, &x) && to_number(b.json, &y)) {
        bool division = n->op == XL_OP_DIVIDE || n->op == XL_OP_FLOOR_DIVIDE || n->op == XL_OP_MODULO;
        if (division && y == 0.0)
            return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "division by zero");
        double result = n->op == XL_OP_ADD            ? x + y
                        : n->op == XL_OP_SUBTRACT     ? x - y
                        : n->op == XL_OP_MULTIPLY     ? x * y
                        : n->op == XL_OP_DIVIDE       ? x / y
                        : n->op == XL_OP_FLOOR_DIVIDE ? floor(x / y)
                                                      : x - floor(x / y) * y;
        return xl_chat_json(xl_chat_keep(r, isfinite(result) ? json_real(result) : NULL));
    }
    if (both && n->op == XL_OP_ADD && json_is_string(a.json) && json_is_string(b.json)) {
        xl_text text = {0};
        xl_chat_print(r, &text, a);
        xl_chat_print(r, &text, b);
        return xl_chat_json(xl_chat_take(r, &text));
    }
    if (both && n->op == XL_OP_ADD && json_is_array(a.json) && json_is_array(b.json)) {
        json_t *sum = xl_chat_keep(r, json_array());
        xl_chat_spend(r, 16 * (json_array_size(a.json) + json_array_size(b.json)));
        xl_chat_done(r, json_array_extend(sum, a.json));
        xl_chat_done(r, json_array_extend(sum, b.json));
        return xl_chat_json(sum);
    }
    if (both && n->op == XL_OP_MULTIPLY && json_is_string(a.json) && as_integer(b, &j)) {
        xl_text text = {0};
        for (; j > 0 && !r->failed; j--)
            xl_chat_print(r, &text, a);
        return xl_chat_json(xl_chat_take(r, &text));
    }
    static const char *const names[] = {"+", "-", "*", "/", "//", "%"};
    if (a.kind == XL_VALUE_UNDEFINED && a.name)
        return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "%s is undefined", a.name);
    if (b.kind == XL_VALUE_UNDEFINED && b.name)
        return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "%s is undefined", b.name);
    return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "%s %s %s makes no sense", type_name(a), names[n->op], type_name(b));
}

static xl_value concatenate(xl_render *r, xl_value a, xl_value b)
{
    xl_text text = {0};
    xl_chat_print(r, &text, a);
    xl_chat_print(r, &text, b);
    return xl_chat_json(xl_chat_take(r, &text));
}

static bool compare(xl_render *r, const xl_node *link, xl_value a, xl_value b)
{
    switch (link->op) {
    case XL_OP_EQ:
        return xl_chat_equal(a, b);
    case XL_OP_NE:
        return !xl_chat_equal(a, b);
    case XL_OP_IN:
        return xl_chat_contains(r, link->line, b, a);
    case XL_OP_NOT_IN:
        return !xl_chat_contains(r, link->line, b, a);
    case XL_OP_LT:
        return xl_chat_order(r, link->line, a, b) < 0;
    case XL_OP_LE:
        return xl_chat_order(r, link->line, a, b) <= 0;
    case XL_OP_GT:
        return xl_chat_order(r, link->line, a, b) > 0;
    default:
        return xl_chat_order(r, link->line, a, b) >= 0;
    }
}

xl_value xl_chat_attribute(xl_value v, const char *name)
{
    json_t *found = NULL;
    if ((v.kind == XL_VALUE_JSON && json_is_object(v.json)) || v.kind == XL_VALUE_NAMESPACE)
        found = json_object_get(v.json, name);
    return found ? xl_chat_json(found) : xl_chat_undefined(name);
}

static xl_value evaluate_item(xl_render *r, const xl_node *n)
{
    xl_value object = evaluate(r, n->a), key = evaluate(r, n->b);
    json_int_t index;
    if (object.kind == XL_VALUE_UNDEFINED)
        return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "%s is undefined", object.name ? object.name : "what is indexed");
    if (key.kind == XL_VALUE_JSON && json_is_string(key.json))
        return xl_chat_attribute(object, json_string_value(key.json));
    if (object.kind != XL_VALUE_JSON || !as_integer(key, &index))
        return xl_chat_undefined(NULL);
    bool text = json_is_string(object.json);
    size_t size = text ? count_characters(json_string_value(object.json), json_string_length(object.json))
                       : json_array_size(object.json);
    if (index < 0)
        index += (json_int_t)size;
    if (index < 0 || (size_t)index >= size)
        return xl_chat_undefined(NULL);
    return xl_chat_json(text ? one_character(r, object.json, (size_t)index)
                             : json_array_get(object.json, (size_t)index));
}

/* Python's slice borders: `absent` when there is none, counted from the end when negative, clipped. */
static json_int_t border(xl_render *r, const xl_node *n, json_int_t size, json_int_t absent, json_int_t low,
                         json_int_t high)
{
    json_int_t i;
    if (!n)
        return absent;
    xl_value v = evaluate(r, n);
    if (v.kind == XL_VALUE_JSON && json_is_null(v.json))
        return absent;
    if (!as_integer(v, &i)) {
        xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "a slice needs whole numbers, found %s", type_name(v));
        return absent;
    }
    i = i < 0 ? i + size : i;
    return i < low ? low : i > high ? high : i;
}

static xl_value evaluate_slice(xl_render *r, const xl_node *n)
{
    xl_value object = evaluate(r, n->a);
    json_int_t stride = 1;
    if (n->d && !as_integer(evaluate(r, n->d), &stride))
        stride = 0;
    bool text = object.kind == XL_VALUE_JSON && json_is_string(object.json);
    if (stride == 0 || object.kind != XL_VALUE_JSON || !(text || json_is_array(object.json)))
        return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "cannot take this slice of %s", type_name(object));
    json_t *items = xl_chat_items(r, n->line, object), *part = xl_chat_keep(r, json_array());
    json_int_t size = (json_int_t)json_array_size(items);
    json_int_t from = border(r, n->b, size, stride > 0 ? 0 : size - 1, stride > 0 ? 0 : -1, stride > 0 ? size : size - 1);
    json_int_t to = border(r, n->c, size, stride > 0 ? size : -1, stride > 0 ? 0 : -1, stride > 0 ? size : size - 1);
    xl_text joined = {0};
    for (json_int_t i = from; !r->failed && (stride > 0 ? i < to : i > to);) {
        json_t *item = json_array_get(items, (size_t)i);
        if (text)
            xl_text_add(&joined, json_string_value(item), json_string_length(item));
        else
            xl_chat_done(r, json_array_append(part, item));
        if (__builtin_add_overflow(i, stride, &i))
            break;
    }
    xl_chat_spend(r, 16 * json_array_size(part));
    return xl_chat_json(text ? xl_chat_take(r, &joined) : part);
}

static xl_value evaluate_call(xl_render *r, const xl_node *n)
{
    xl_arguments arguments;
    const xl_node *callee = n->a;
    xl_value object = xl_chat_undefined(NULL), function;
    if (callee->kind == XL_NODE_ATTRIBUTE) {
        object = evaluate(r, callee->a);
        function = xl_chat_attribute(object, callee->name);
    } else {
        function = evaluate(r, callee);
    }
    evaluate_arguments(r, n->list, &arguments);
    if (r->failed)
        return xl_chat_undefined(NULL);
    if (function.kind == XL_VALUE_MACRO)
        return xl_chat_call_macro(r, function.node, &arguments);
    if (function.kind == XL_VALUE_FUNCTION)
        return xl_chat_function(r, n->line, function.name, &arguments);
    if (callee->kind == XL_NODE_ATTRIBUTE)
        return xl_chat_method(r, n->line, object, callee->name, &arguments);
    return xl_chat_fail(r, n->line, XLSTM_E_UNSUPPORTED, "there is no function %s", callee->name ? callee->name : "here");
}

static xl_value evaluate_parts(xl_render *r, const xl_node *n)
{
    switch (n->kind) {
    case XL_NODE_CONSTANT:
        return xl_chat_json(n->value);
    case XL_NODE_NAME:
        return look_up(r, n->name);
    case XL_NODE_LIST: {
        json_t *list = xl_chat_keep(r, json_array());
        for (const xl_node *item = n->list; item && !r->failed; item = item->next)
            xl_chat_done(r, json_array_append(list, to_json(r, item, evaluate(r, item))));
        return xl_chat_json(list);
    }
    case XL_NODE_DICT: {
        json_t *dict = xl_chat_keep(r, json_object());
        for (const xl_node *pair = n->list; pair && !r->failed; pair = pair->next) {
            json_t *key = xl_chat_to_string(r, evaluate(r, pair->a));
            json_t *value = to_json(r, pair, evaluate(r, pair->b));
            xl_chat_done(r, json_object_set(dict, json_string_value(key), value));
        }
        return xl_chat_json(dict);
    }
    case XL_NODE_ATTRIBUTE: {
        xl_value object = evaluate(r, n->a);
        if (object.kind == XL_VALUE_UNDEFINED)
            return xl_chat_fail(r, n->line, XLSTM_E_FORMAT, "%s is undefined, so it has no %s",
                                object.name ? object.name : "it", n->name);
        return xl_chat_attribute(object, n->name);
    }
    case XL_NODE_ITEM:
        return evaluate_item(r, n);
    case XL_NODE_SLICE:
        return evaluate_slice(r, n);
    case XL_NODE_CALL:
        return evaluate_call(r, n);
    case XL_NODE_FILTER: {
        xl_arguments arguments;
        xl_value input = evaluate(r, n->a);
        evaluate_arguments(r, n->list, &arguments);
        return r->failed ? input : xl_chat_filter(r, n->line, n->name, input, &arguments);
    }
    case XL_NODE_TEST: {
        xl_arguments arguments;
        xl_value input = evaluate(r, n->a);
        evaluate_arguments(r, n->list, &arguments);
        return r->failed ? input : boolean(xl_chat_test(r, n->line, n->name, input, &arguments));
    }
    case XL_NODE_NOT:
        return boolean(!xl_chat_truth(evaluate(r, n->a)));
    case XL_NODE_NEGATIVE: {
        static const xl_node zero = {.op = XL_OP_SUBTRACT};
        xl_node minus = zero;
        minus.line = n->line;
        return arithmetic(r, &minus, integer(r, 0), evaluate(r, n->a));
    }
    case XL_NODE_BINARY: {
        xl_value a = evaluate(r, n->a), b = evaluate(r, n->b);
        return r->failed ? a : n->op == XL_OP_CONCAT ? concatenate(r, a, b) : arithmetic(r, n, a, b);
    }
    case XL_NODE_AND: {
        xl_value a = evaluate(r, n->a);
        return xl_chat_truth(a) ? evaluate(r, n->b) : a;
    }
    case XL_NODE_OR: {
        xl_value a = evaluate(r, n->a);
        return xl_chat_truth(a) ? a : evaluate(r, n->b);
    }
    case XL_NODE_CHOICE:
        return xl_chat_truth(evaluate(r, n->b)) ? evaluate(r, n->a)
               : n->c                           ? evaluate(r, n->c)
                                                : xl_chat_undefined(NULL);
    case XL_NODE_COMPARE: {
        xl_value left = evaluate(r, n->a);
        for (const xl_node *link = n->list; link; link = link->next) {
            xl_value right = evaluate(r, link->a);
            if (r->failed || !compare(r, link, left, right))
                return boolean(false);
            left = right;
        }
        return boolean(true);
    }
    default:
        return xl_chat_undefined(NULL);
    }
}

static bool step(xl_render *r, const xl_node *n)
{
    if (r->steps-- == 0) {
        r->steps = 1;
        xl_chat_fail(r, n->line, XLSTM_E_UNSUPPORTED, "it takes too long");
    }
    return !r->failed;
}

static xl_value evaluate(xl_render *r, const xl_node *n)
{
    return step(r, n) ? evaluate_parts(r, n) : xl_chat_undefined(NULL);
}

/* ---- statements ------------------------------------------------------------------------------------------------- */

static void run_body(xl_render *r, const xl_node *body);

static void assign(xl_render *r, const xl_node *target, xl_value value)
{
    if (target->kind == XL_NODE_NAME) {
        define(r, target->name, value);
        return;
    }
    xl_value object = evaluate(r, target->a);
    if (object.kind != XL_VALUE_NAMESPACE)
        xl_chat_fail(r, target->line, XLSTM_E_FORMAT, "only members of a namespace() can be set");
    else if (value.kind == XL_VALUE_UNDEFINED)
        json_object_del(object.json, target->name);
    else
        xl_chat_done(r, json_object_set(object.json, target->name, to_json(r, target, value)));
}

/* One target takes the value, several take its items. */
static void assign_all(xl_render *r, const xl_node *targets, xl_value value)
{
    if (!targets->next) {
        assign(r, targets, value);
        return;
    }
    json_t *items = xl_chat_items(r, targets->line, value);
    size_t i = 0;
    for (const xl_node *t = targets; t && !r->failed; t = t->next, i++) {
        if (i >= json_array_size(items) || (!t->next && i + 1 < json_array_size(items))) {
            xl_chat_fail(r, t->line, XLSTM_E_FORMAT, "%zu values do not fit the names on the left",
                         json_array_size(items));
            return;
        }
        assign(r, t, xl_chat_json(json_array_get(items, i)));
    }
}

/* The text that a body makes. */
static json_t *capture(xl_render *r, const xl_node *body)
{
    xl_text text = {0}, *outer = r->out;
    r->out = &text;
    run_body(r, body);
    r->out = outer;
    return xl_chat_take(r, &text);
}

static void set_member(xl_render *r, json_t *object, const char *name, json_t *value)
{
    xl_chat_done(r, json_object_set(object, name, value));
}

static void set_number(xl_render *r, json_t *object, const char *name, json_int_t number)
{
    set_member(r, object, name, xl_chat_keep(r, json_integer(number)));
}

static json_t *loop_facts(xl_render *r, const json_t *items, size_t i)
{
    json_int_t n = (json_int_t)json_array_size(items), at = (json_int_t)i;
    json_t *loop = xl_chat_keep(r, json_object());
    if (r->failed)
        return loop;
    set_number(r, loop, "index", at + 1);
    set_number(r, loop, "index0", at);
    set_number(r, loop, "revindex", n - at);
    set_number(r, loop, "revindex0", n - at - 1);
    set_number(r, loop, "length", n);
    set_member(r, loop, "first", json_boolean(at == 0));
    set_member(r, loop, "last", json_boolean(at + 1 == n));
    if (at > 0)
        set_member(r, loop, "previtem", json_array_get(items, i - 1));
    if (at + 1 < n)
        set_member(r, loop, "nextitem", json_array_get(items, i + 1));
    return loop;
}

static void run_for(xl_render *r, const xl_node *n)
{
    json_t *items = xl_chat_items(r, n->line, evaluate(r, n->a));
    xl_frame frame = {.outer = r->frame};
    /* cppcheck-suppress autoVariables; taken off again below */
    r->frame = &frame;
    if (n->b) { /* the condition chooses before the loop counts */
        json_t *chosen = xl_chat_keep(r, json_array());
        for (size_t i = 0; i < json_array_size(items) && !r->failed; i++) {
            assign_all(r, n->list, xl_chat_json(json_array_get(items, i)));
            if (xl_chat_truth(evaluate(r, n->b)))
                xl_chat_done(r, json_array_append(chosen, json_array_get(items, i)));
        }
        items = chosen;
    }
    size_t count = json_array_size(items);
    for (size_t i = 0; i < count && step(r, n); i++) {
        frame.first = NULL;
        define(r, "loop", xl_chat_json(loop_facts(r, items, i)));
        assign_all(r, n->list, xl_chat_json(json_array_get(items, i)));
        run_body(r, n->body);
        bool leave = r->flow == XL_FLOW_BREAK;
        r->flow = XL_FLOW_ON;
        if (leave)
            break;
    }
    r->frame = frame.outer;
    if (count == 0)
        run_body(r, n->other);
}

static void run_statement(xl_render *r, const xl_node *n)
{
    switch (n->kind) {
    case XL_NODE_TEXT:
        xl_chat_print(r, r->out, xl_chat_json(n->value));
        break;
    case XL_NODE_OUTPUT:
        xl_chat_print(r, r->out, evaluate(r, n->a));
        break;
    case XL_NODE_FOR:
        run_for(r, n);
        break;
    case XL_NODE_IF:
        run_body(r, xl_chat_truth(evaluate(r, n->a)) ? n->body : n->other);
        break;
    case XL_NODE_SET:
        assign_all(r, n->list, n->body ? xl_chat_json(capture(r, n->body)) : evaluate(r, n->a));
        break;
    case XL_NODE_MACRO:
        define(r, n->name, (xl_value){.kind = XL_VALUE_MACRO, .node = n});
        break;
    case XL_NODE_BREAK:
        r->flow = XL_FLOW_BREAK;
        break;
    case XL_NODE_CONTINUE:
        r->flow = XL_FLOW_CONTINUE;
        break;
    default:
        break;
    }
}

static void run_body(xl_render *r, const xl_node *body)
{
    for (const xl_node *n = body; n && r->flow == XL_FLOW_ON && step(r, n); n = n->next)
        run_statement(r, n);
}

/* Arguments by position, by name, or the default; the body sees the template's own variables, not the caller's. */
xl_value xl_chat_call_macro(xl_render *r, const xl_node *macro, const xl_arguments *arguments)
{
    if (++r->depth > MAX_CALLS)
        return xl_chat_fail(r, macro->line, XLSTM_E_UNSUPPORTED, "macros call each other more than %d deep", MAX_CALLS);
    xl_frame frame = {.outer = r->top}, *caller = r->frame;
    r->frame = &frame;
    size_t position = 0;
    for (const xl_node *p = macro->list; p && !r->failed; p = p->next, position++) {
        xl_value value = xl_chat_argument(arguments, position, p->name);
        if (value.kind == XL_VALUE_UNDEFINED)
            value = p->a ? evaluate(r, p->a) : xl_chat_undefined(p->name);
        define(r, p->name, value);
    }
    json_t *text = capture(r, macro->body);
    r->flow = XL_FLOW_ON;
    r->frame = caller;
    r->depth--;
    return xl_chat_json(text);
}

void xl_chat_run(xl_render *r, const xl_node *body)
{
    xl_frame top = {0};
    r->frame = r->top = &top;
    run_body(r, body);
    r->frame = r->top = NULL;
}
