/*
 * chat_template_filters.c — the names that chat templates may use: filters, tests, methods of strings and objects,
 * functions. Each is a row of a table at the end of its section.
 */
#include "chat_template.h"
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct call {
    xl_render *r;
    int line;
    const char *name;
    xl_value input;
    const xl_arguments *arguments;
} call;

static bool is_json(xl_value v, json_type type)
{
    return v.kind == XL_VALUE_JSON && json_typeof(v.json) == type;
}

static bool is_string(xl_value v)
{
    return is_json(v, JSON_STRING);
}

xl_value xl_chat_argument(const xl_arguments *arguments, size_t position, const char *name)
{
    size_t place = 0;
    for (size_t i = 0; i < arguments->n; i++) {
        if (arguments->names[i] ? !strcmp(arguments->names[i], name) : place++ == position)
            return arguments->values[i];
    }
    return xl_chat_undefined(NULL);
}

/* An argument of the call as text; NULL if it was not given or is none. */
static const json_t *text_argument(const call *c, size_t position, const char *name)
{
    xl_value v = xl_chat_argument(c->arguments, position, name);
    if (v.kind == XL_VALUE_UNDEFINED || is_json(v, JSON_NULL))
        return NULL;
    return xl_chat_to_string(c->r, v);
}

static json_int_t integer_argument(const call *c, size_t position, const char *name, json_int_t absent)
{
    xl_value v = xl_chat_argument(c->arguments, position, name);
    if (v.kind == XL_VALUE_JSON && json_is_integer(v.json))
        return json_integer_value(v.json);
    if (v.kind == XL_VALUE_JSON && json_is_boolean(v.json))
        return json_is_true(v.json);
    if (v.kind != XL_VALUE_UNDEFINED && !is_json(v, JSON_NULL))
        xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "%s needs a whole number for %s", c->name, name);
    return absent;
}

static xl_value text_value(const call *c, xl_text *text)
{
    return xl_chat_json(xl_chat_take(c->r, text));
}

static xl_value integer_value(const call *c, json_int_t i)
{
    return xl_chat_json(xl_chat_keep(c->r, json_integer(i)));
}

static json_t *list_new(const call *c)
{
    return xl_chat_keep(c->r, json_array());
}

static void list_add(const call *c, json_t *list, xl_value v)
{
    xl_chat_done(c->r, json_array_append(list, v.kind == XL_VALUE_JSON ? v.json : json_null()));
    xl_chat_spend(c->r, 16);
}

/* ---- text ------------------------------------------------------------------------------------------------------- */

/* Length of the white space character at `s`, 0 if it is none: what Python's str.strip() removes. */
static size_t blank_at(const char *s, size_t left)
{
    const unsigned char *u = (const unsigned char *)s;
    if (left > 0 && ((u[0] >= 9 && u[0] <= 13) || (u[0] >= 28 && u[0] <= 32)))
        return 1;
    if (left > 1 && u[0] == 0xc2 && (u[1] == 0x85 || u[1] == 0xa0))
        return 2;
    if (left < 3)
        return 0;
    unsigned code = (u[0] & 15u) << 12 | (u[1] & 63u) << 6 | (u[2] & 63u);
    bool blank = u[0] >> 4 == 14 && (code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
                                     code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000);
    return blank ? 3 : 0;
}

static size_t character_length(const char *s, size_t left)
{
    size_t n = 1;
    while (n < left && ((unsigned char)s[n] & 0xc0) == 0x80)
        n++;
    return n;
}

/* Whether the character at `s` is to be stripped: one of `set`, or white space without a set. Gives its length. */
static size_t strippable(const char *s, size_t left, const json_t *set)
{
    if (!set)
        return blank_at(s, left);
    size_t n = character_length(s, left);
    return memmem(json_string_value(set), json_string_length(set), s, n) ? n : 0;
}

static xl_value strip(const call *c, bool left, bool right)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    const json_t *set = text_argument(c, 0, "chars");
    const char *s = json_string_value(input), *end = s + json_string_length(input);
    size_t n;
    while (left && s < end && (n = strippable(s, (size_t)(end - s), set)) > 0)
        s += n;
    while (right && s < end) {
        const char *last = end - 1;
        while (last > s && ((unsigned char)*last & 0xc0) == 0x80)
            last--;
        if (!strippable(last, (size_t)(end - last), set))
            break;
        end = last;
    }
    return xl_chat_json(xl_chat_string(c->r, s, (size_t)(end - s)));
}

static xl_value do_strip(const call *c)
{
    return strip(c, true, true);
}

static xl_value do_lstrip(const call *c)
{
    return strip(c, true, false);
}

static xl_value do_rstrip(const call *c)
{
    return strip(c, false, true);
}

/* Case of ASCII letters; others stay as they are. `how`: 'u'pper, 'l'ower, 't'itle, 'c'apitalize. */
static xl_value change_case(const call *c, char how)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    xl_text text = {0};
    bool start = true;
    for (size_t i = 0; i < json_string_length(input); i++) {
        char x = json_string_value(input)[i];
        bool up = how == 'u' || (start && (how == 't' || how == 'c'));
        char y = up ? xl_chat_upper(x) : xl_chat_lower(x);
        start = how == 't' && !xl_chat_is_letter(x) && (unsigned char)x < 0x80;
        xl_text_add(&text, &y, 1);
    }
    return text_value(c, &text);
}

static xl_value do_upper(const call *c)
{
    return change_case(c, 'u');
}

static xl_value do_lower(const call *c)
{
    return change_case(c, 'l');
}

static xl_value do_title(const call *c)
{
    return change_case(c, 't');
}

static xl_value do_capitalize(const call *c)
{
    return change_case(c, 'c');
}

static xl_value do_replace(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    const json_t *old = text_argument(c, 0, "old"), *new = text_argument(c, 1, "new");
    json_int_t most = integer_argument(c, 2, "count", -1);
    if (!old || !new || json_string_length(old) == 0)
        return xl_chat_fail(c->r, c->line, XLSTM_E_UNSUPPORTED, "replace needs what to replace and by what");
    const char *at = json_string_value(input), *end = at + json_string_length(input), *hit;
    xl_text text = {0};
    while (most != 0 && !c->r->failed &&
           (hit = memmem(at, (size_t)(end - at), json_string_value(old), json_string_length(old)))) {
        xl_text_add(&text, at, (size_t)(hit - at));
        xl_text_add(&text, json_string_value(new), json_string_length(new));
        xl_chat_spend(c->r, json_string_length(new));
        at = hit + json_string_length(old);
        most -= most > 0;
    }
    xl_text_add(&text, at, (size_t)(end - at));
    return text_value(c, &text);
}

static xl_value do_split(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input), *list = list_new(c);
    const json_t *separator = text_argument(c, 0, "sep");
    json_int_t most = integer_argument(c, 1, "maxsplit", -1);
    const char *at = json_string_value(input), *end = at + json_string_length(input);
    if (separator && json_string_length(separator) == 0)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "split by an empty text");
    while (separator && !c->r->failed) {
        const char *hit = most == 0 ? NULL
                                    : memmem(at, (size_t)(end - at), json_string_value(separator),
                                             json_string_length(separator));
        const char *stop = hit ? hit : end;
        list_add(c, list, xl_chat_json(xl_chat_string(c->r, at, (size_t)(stop - at))));
        if (!hit)
            return xl_chat_json(list);
        at = hit + json_string_length(separator);
        most -= most > 0;
    }
    while (!c->r->failed) { /* at runs of white space */
        size_t n;
        while (at < end && (n = blank_at(at, (size_t)(end - at))) > 0)
            at += n;
        if (at == end)
            break;
        const char *start = at;
        while (at < end && (most == 0 || !blank_at(at, (size_t)(end - at))))
            at++;
        list_add(c, list, xl_chat_json(xl_chat_string(c->r, start, (size_t)(at - start))));
        most -= most > 0;
    }
    return xl_chat_json(list);
}

static xl_value do_splitlines(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input), *list = list_new(c);
    const char *at = json_string_value(input), *end = at + json_string_length(input);
    while (at < end && !c->r->failed) {
        const char *stop = at;
        while (stop < end && *stop != '\n' && *stop != '\r')
            stop++;
        list_add(c, list, xl_chat_json(xl_chat_string(c->r, at, (size_t)(stop - at))));
        at = stop + (stop < end) + (stop + 1 < end && stop[0] == '\r' && stop[1] == '\n');
    }
    return xl_chat_json(list);
}

/* Whether the text begins or ends with the argument, or with one of several. */
static xl_value has_end(const call *c, bool front)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    xl_value argument = xl_chat_argument(c->arguments, 0, "prefix");
    json_t *choices = list_new(c);
    if (is_json(argument, JSON_ARRAY))
        choices = argument.json;
    else
        list_add(c, choices, argument);
    const char *s = json_string_value(input);
    size_t size = json_string_length(input);
    for (size_t i = 0; i < json_array_size(choices); i++) {
        const json_t *part = json_array_get(choices, i);
        size_t n = json_string_length(part);
        if (json_is_string(part) && n <= size && !memcmp(front ? s : s + size - n, json_string_value(part), n))
            return xl_chat_json(json_true());
    }
    return xl_chat_json(json_false());
}

static xl_value do_startswith(const call *c)
{
    return has_end(c, true);
}

static xl_value do_endswith(const call *c)
{
    return has_end(c, false);
}

static xl_value find(const call *c, bool last)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    const json_t *part = text_argument(c, 0, "sub");
    const char *s = json_string_value(input), *end = s + json_string_length(input), *hit = NULL;
    for (const char *at = s; part; at++) {
        const char *next = memmem(at, (size_t)(end - at), json_string_value(part), json_string_length(part));
        hit = next ? next : hit;
        if (!next || !last || next == end)
            break;
        at = next;
    }
    json_int_t place = hit ? 0 : -1;
    for (const char *at = s; hit && at < hit; at++)
        place += ((unsigned char)*at & 0xc0) != 0x80;
    return integer_value(c, place);
}

static xl_value do_find(const call *c)
{
    return find(c, false);
}

static xl_value do_rfind(const call *c)
{
    return find(c, true);
}

static xl_value do_count_text(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    const json_t *part = text_argument(c, 0, "sub");
    const char *at = json_string_value(input), *end = at + json_string_length(input);
    json_int_t count = 0;
    while (part && json_string_length(part) &&
           (at = memmem(at, (size_t)(end - at), json_string_value(part), json_string_length(part)))) {
        count++;
        at += json_string_length(part);
    }
    return integer_value(c, count);
}

static xl_value do_is_digit(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    const char *s = json_string_value(input);
    return xl_chat_json(json_boolean(*s && strspn(s, "0123456789") == json_string_length(input)));
}

static xl_value do_indent(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    xl_value width = xl_chat_argument(c->arguments, 0, "width");
    bool first = xl_chat_truth(xl_chat_argument(c->arguments, 1, "first"));
    bool blank = xl_chat_truth(xl_chat_argument(c->arguments, 2, "blank"));
    xl_text text = {0};
    const char *s = json_string_value(input);
    size_t n = json_string_length(input);
    json_int_t columns = is_string(width) ? 0 : integer_argument(c, 0, "width", 4);
    if (columns < 0 || columns > 1000)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "indent by %lld", (long long)columns);
    bool start = first;
    for (size_t i = 0; i < n && !c->r->failed; i++) {
        if (start && (blank || s[i] != '\n')) {
            if (is_string(width))
                xl_chat_print(c->r, &text, width);
            else
                xl_text_addf(&text, "%*s", (int)columns, "");
            xl_chat_spend(c->r, (size_t)columns);
        }
        xl_text_add(&text, s + i, 1);
        start = s[i] == '\n';
    }
    return text_value(c, &text);
}

static xl_value do_escape(const call *c)
{
    json_t *input = xl_chat_to_string(c->r, c->input);
    xl_text text = {0};
    for (size_t i = 0; i < json_string_length(input); i++) {
        const char *s = json_string_value(input) + i;
        switch (*s) {
        case '&':
            xl_text_addf(&text, "&amp;");
            break;
        case '<':
            xl_text_addf(&text, "&lt;");
            break;
        case '>':
            xl_text_addf(&text, "&gt;");
            break;
        case '"':
            xl_text_addf(&text, "&#34;");
            break;
        case '\'':
            xl_text_addf(&text, "&#39;");
            break;
        default:
            xl_text_add(&text, s, 1);
        }
    }
    return text_value(c, &text);
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static void dump_break(xl_text *out, json_int_t indent, int depth)
{
    if (indent >= 0)
        xl_text_addf(out, "\n%*s", (int)indent * depth, "");
}

/* As Python's json.dumps(ensure_ascii=False). indent < 0: on one line. */
static void dump(const call *c, xl_text *out, json_t *j, json_int_t indent, int depth)
{
    const char *comma = indent >= 0 ? "," : ", ";
    if (depth > 100 || !xl_chat_spend(c->r, 8)) {
        xl_chat_fail(c->r, c->line, XLSTM_E_UNSUPPORTED, "a value is nested too deep for tojson");
        return;
    }
    if (json_is_array(j) && json_array_size(j)) {
        xl_text_add(out, "[", 1);
        for (size_t i = 0; i < json_array_size(j); i++) {
            xl_text_addf(out, "%s", i ? comma : "");
            dump_break(out, indent, depth + 1);
            dump(c, out, json_array_get(j, i), indent, depth + 1);
        }
        dump_break(out, indent, depth);
        xl_text_add(out, "]", 1);
    } else if (json_is_object(j) && json_object_size(j)) {
        const char *key;
        json_t *value;
        bool more = false;
        xl_text_add(out, "{", 1);
        json_object_foreach(j, key, value)
        {
            xl_text_addf(out, "%s", more ? comma : "");
            more = true;
            dump_break(out, indent, depth + 1);
            dump(c, out, xl_chat_string(c->r, key, strlen(key)), -1, depth + 1);
            xl_text_addf(out, ": ");
            dump(c, out, value, indent, depth + 1);
        }
        dump_break(out, indent, depth);
        xl_text_add(out, "}", 1);
    } else if (json_is_real(j)) {
        xl_chat_print(c->r, out, xl_chat_json(j));
    } else {
        char *text = xl_json_dump(j, JSON_ENCODE_ANY, NULL);
        xl_chat_done(c->r, !text);
        if (text)
            xl_text_add(out, text, strlen(text));
        xl_release(text);
    }
}

static xl_value do_tojson(const call *c)
{
    if (c->input.kind != XL_VALUE_JSON)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "tojson of an undefined value");
    json_int_t indent = integer_argument(c, 0, "indent", -1);
    if (indent > 100)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "tojson with an indent of %lld", (long long)indent);
    xl_text text = {0};
    dump(c, &text, c->input.json, indent < 0 ? -1 : indent, 0);
    return text_value(c, &text);
}

/* ---- lists and numbers ------------------------------------------------------------------------------------------ */

static json_t *items_of(const call *c)
{
    return xl_chat_items(c->r, c->line, c->input);
}

static xl_value do_length(const call *c)
{
    if (is_json(c->input, JSON_OBJECT))
        return integer_value(c, (json_int_t)json_object_size(c->input.json));
    return integer_value(c, (json_int_t)json_array_size(items_of(c)));
}

static xl_value do_first(const call *c)
{
    json_t *item = json_array_get(items_of(c), 0);
    return item ? xl_chat_json(item) : xl_chat_undefined("first");
}

static xl_value do_last(const call *c)
{
    json_t *items = items_of(c);
    size_t n = json_array_size(items);
    return n ? xl_chat_json(json_array_get(items, n - 1)) : xl_chat_undefined("last");
}

static xl_value do_list(const call *c)
{
    return xl_chat_json(items_of(c));
}

static xl_value do_reverse(const call *c)
{
    json_t *items = items_of(c), *list = list_new(c);
    for (size_t i = json_array_size(items); i-- > 0 && !c->r->failed;)
        list_add(c, list, xl_chat_json(json_array_get(items, i)));
    if (!is_string(c->input))
        return xl_chat_json(list);
    xl_text text = {0};
    for (size_t i = 0; i < json_array_size(list); i++)
        xl_chat_print(c->r, &text, xl_chat_json(json_array_get(list, i)));
    return text_value(c, &text);
}

/* item.a.b, by a dotted path as Jinja's attribute arguments have it. */
static xl_value dig(xl_value v, const char *path)
{
    char name[100];
    while (*path) {
        size_t n = strcspn(path, ".");
        snprintf(name, sizeof name, "%.*s", (int)n, path);
        char *end;
        long index = strtol(name, &end, 10);
        if (is_json(v, JSON_ARRAY) && *name && !*end) {
            json_t *item = index >= 0 ? json_array_get(v.json, (size_t)index) : NULL;
            v = item ? xl_chat_json(item) : xl_chat_undefined(NULL);
        } else {
            v = xl_chat_attribute(v, name);
        }
        path += n + (path[n] == '.');
    }
    return v;
}

static xl_value do_join(const call *c)
{
    json_t *items = items_of(c);
    const json_t *separator = text_argument(c, 0, "d"), *attribute = text_argument(c, 1, "attribute");
    xl_text text = {0};
    for (size_t i = 0; i < json_array_size(items) && !c->r->failed; i++) {
        xl_value item = xl_chat_json(json_array_get(items, i));
        if (i && separator)
            xl_text_add(&text, json_string_value(separator), json_string_length(separator));
        xl_chat_print(c->r, &text, attribute ? dig(item, json_string_value(attribute)) : item);
    }
    return text_value(c, &text);
}

/* Calls the filter or test named by argument `at` with the arguments behind it. */
static xl_arguments rest_of(const xl_arguments *arguments, size_t from)
{
    xl_arguments rest = {.n = 0};
    for (size_t i = from; i < arguments->n; i++) {
        rest.names[rest.n] = arguments->names[i];
        rest.values[rest.n++] = arguments->values[i];
    }
    return rest;
}

static xl_value do_map(const call *c)
{
    json_t *items = items_of(c), *list = list_new(c);
    const json_t *attribute = text_argument(c, XL_MAX_ARGUMENTS, "attribute"), *filter = text_argument(c, 0, "filter");
    xl_value absent = xl_chat_argument(c->arguments, XL_MAX_ARGUMENTS, "default");
    xl_arguments rest = rest_of(c->arguments, 1);
    if (!attribute && !filter)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "map needs a filter or an attribute");
    for (size_t i = 0; i < json_array_size(items) && !c->r->failed; i++) {
        xl_value item = xl_chat_json(json_array_get(items, i));
        if (attribute) {
            item = dig(item, json_string_value(attribute));
            item = item.kind == XL_VALUE_UNDEFINED ? absent : item;
        } else {
            item = xl_chat_filter(c->r, c->line, json_string_value(filter), item, &rest);
        }
        list_add(c, list, item);
    }
    return xl_chat_json(list);
}

static xl_value choose(const call *c, bool by_attribute, bool wanted)
{
    json_t *items = items_of(c), *list = list_new(c);
    size_t at = by_attribute ? 1 : 0;
    const json_t *attribute = by_attribute ? text_argument(c, 0, "attr") : NULL, *test = text_argument(c, at, "test");
    xl_arguments rest = rest_of(c->arguments, at + 1);
    if (by_attribute && !attribute)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "%s needs an attribute", c->name);
    for (size_t i = 0; i < json_array_size(items) && !c->r->failed; i++) {
        xl_value item = xl_chat_json(json_array_get(items, i));
        xl_value tested = attribute ? dig(item, json_string_value(attribute)) : item;
        bool yes = test ? xl_chat_test(c->r, c->line, json_string_value(test), tested, &rest) : xl_chat_truth(tested);
        if (yes == wanted)
            list_add(c, list, item);
    }
    return xl_chat_json(list);
}

static xl_value do_select(const call *c)
{
    return choose(c, false, true);
}

static xl_value do_reject(const call *c)
{
    return choose(c, false, false);
}

static xl_value do_selectattr(const call *c)
{
    return choose(c, true, true);
}

static xl_value do_rejectattr(const call *c)
{
    return choose(c, true, false);
}

static xl_value do_unique(const call *c)
{
    json_t *items = items_of(c), *list = list_new(c);
    for (size_t i = 0; i < json_array_size(items) && !c->r->failed; i++) {
        xl_value item = xl_chat_json(json_array_get(items, i));
        c->r->steps -= XL_MIN(c->r->steps, json_array_size(list));
        if (!xl_chat_contains(c->r, c->line, xl_chat_json(list), item))
            list_add(c, list, item);
    }
    return xl_chat_json(list);
}

/* Insertion keeps equal items in their order; lists here are short, and the steps it takes are counted. */
static json_t *sorted(const call *c, json_t *items, const char *attribute, bool reverse, bool fold)
{
    json_t *list = list_new(c);
    call lower = *c;
    xl_arguments none = {.n = 0};
    lower.arguments = &none;
    for (size_t i = 0; i < json_array_size(items) && !c->r->failed; i++) {
        json_t *item = json_array_get(items, i);
        size_t at = json_array_size(list);
        for (; at > 0 && !c->r->failed; at--) {
            xl_value a = dig(xl_chat_json(json_array_get(list, at - 1)), attribute);
            xl_value b = dig(xl_chat_json(item), attribute);
            if (fold && is_string(a) && is_string(b)) {
                lower.input = a;
                a = do_lower(&lower);
                lower.input = b;
                b = do_lower(&lower);
            }
            int order = xl_chat_order(c->r, c->line, a, b);
            if (reverse ? order >= 0 : order <= 0)
                break;
            if (c->r->steps < 2)
                xl_chat_fail(c->r, c->line, XLSTM_E_UNSUPPORTED, "it takes too long");
            else
                c->r->steps--;
        }
        xl_chat_done(c->r, json_array_insert(list, at, item));
    }
    return list;
}

static xl_value do_sort(const call *c)
{
    const json_t *attribute = text_argument(c, 2, "attribute");
    bool reverse = xl_chat_truth(xl_chat_argument(c->arguments, 0, "reverse"));
    bool exact = xl_chat_truth(xl_chat_argument(c->arguments, 1, "case_sensitive"));
    return xl_chat_json(sorted(c, items_of(c), attribute ? json_string_value(attribute) : "", reverse, !exact));
}

static json_t *pairs(const call *c)
{
    json_t *list = list_new(c);
    if (c->input.kind == XL_VALUE_UNDEFINED)
        return list;
    if (!is_json(c->input, JSON_OBJECT)) {
        xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "%s needs an object", c->name);
        return list;
    }
    const char *key;
    json_t *value;
    json_object_foreach(c->input.json, key, value)
    {
        json_t *pair = list_new(c);
        list_add(c, pair, xl_chat_json(xl_chat_string(c->r, key, strlen(key))));
        list_add(c, pair, xl_chat_json(value));
        list_add(c, list, xl_chat_json(pair));
    }
    return list;
}

static xl_value do_items(const call *c)
{
    return xl_chat_json(pairs(c));
}

static xl_value do_dictsort(const call *c)
{
    return xl_chat_json(sorted(c, pairs(c), "0", false, true));
}

static xl_value do_keys(const call *c)
{
    return xl_chat_json(items_of(c));
}

static xl_value do_values(const call *c)
{
    json_t *list = list_new(c), *all = pairs(c);
    for (size_t i = 0; i < json_array_size(all); i++)
        list_add(c, list, xl_chat_json(json_array_get(json_array_get(all, i), 1)));
    return xl_chat_json(list);
}

static xl_value do_get(const call *c)
{
    const json_t *key = text_argument(c, 0, "key");
    xl_value found = key ? xl_chat_attribute(c->input, json_string_value(key)) : xl_chat_undefined(NULL);
    if (found.kind != XL_VALUE_UNDEFINED)
        return found;
    found = xl_chat_argument(c->arguments, 1, "default");
    return found.kind == XL_VALUE_UNDEFINED ? xl_chat_json(json_null()) : found;
}

static xl_value do_default(const call *c)
{
    bool also_false = xl_chat_truth(xl_chat_argument(c->arguments, 1, "boolean"));
    if (c->input.kind != XL_VALUE_UNDEFINED && !(also_false && !xl_chat_truth(c->input)))
        return c->input;
    xl_value absent = xl_chat_argument(c->arguments, 0, "default_value");
    return absent.kind == XL_VALUE_UNDEFINED ? xl_chat_json(xl_chat_string(c->r, "", 0)) : absent;
}

static xl_value do_string(const call *c)
{
    return xl_chat_json(xl_chat_to_string(c->r, c->input));
}

static xl_value do_same(const call *c)
{
    return c->input;
}

/* The number in the input: a number, true or false, or a text that is one. */
static bool number_of(const call *c, double *out)
{
    if (c->input.kind != XL_VALUE_JSON)
        return false;
    if (json_is_string(c->input.json)) {
        char *end;
        *out = strtod_l(json_string_value(c->input.json), &end, c->r->plain);
        return end != json_string_value(c->input.json) && !*end && isfinite(*out);
    }
    *out = json_is_true(c->input.json) ? 1.0 : json_number_value(c->input.json);
    return json_is_number(c->input.json) || json_is_boolean(c->input.json);
}

static xl_value do_int(const call *c)
{
    double x;
    if (is_json(c->input, JSON_INTEGER))
        return c->input;
    if (!number_of(c, &x) || fabs(x) > 9e15)
        return integer_value(c, integer_argument(c, 0, "default", 0));
    return integer_value(c, (json_int_t)x);
}

static xl_value do_float(const call *c)
{
    double x = 0.0;
    number_of(c, &x);
    return xl_chat_json(xl_chat_keep(c->r, json_real(x)));
}

static xl_value do_abs(const call *c)
{
    double x = 0.0;
    if (is_json(c->input, JSON_INTEGER) && json_integer_value(c->input.json) != INT64_MIN)
        return integer_value(c, llabs(json_integer_value(c->input.json)));
    number_of(c, &x);
    return xl_chat_json(xl_chat_keep(c->r, json_real(fabs(x))));
}

static xl_value do_round(const call *c)
{
    double x = 0.0, scale = pow(10.0, (double)integer_argument(c, 0, "precision", 0));
    number_of(c, &x);
    double rounded = nearbyint(x * scale) / scale;
    return xl_chat_json(xl_chat_keep(c->r, isfinite(rounded) ? json_real(rounded) : json_real(x)));
}

typedef struct function_row {
    const char *name;
    xl_value (*run)(const call *c);
} function_row;

static const function_row filters[] = {
    {"trim", do_strip},           {"upper", do_upper},           {"lower", do_lower},
    {"title", do_title},          {"capitalize", do_capitalize}, {"replace", do_replace},
    {"indent", do_indent},        {"escape", do_escape},         {"e", do_escape},
    {"tojson", do_tojson},        {"length", do_length},         {"count", do_length},
    {"first", do_first},          {"last", do_last},             {"list", do_list},
    {"reverse", do_reverse},      {"join", do_join},             {"map", do_map},
    {"select", do_select},        {"reject", do_reject},         {"selectattr", do_selectattr},
    {"rejectattr", do_rejectattr}, {"unique", do_unique},        {"sort", do_sort},
    {"items", do_items},          {"dictsort", do_dictsort},     {"default", do_default},
    {"d", do_default},            {"string", do_string},         {"safe", do_string},
    {"int", do_int},              {"float", do_float},           {"abs", do_abs},
    {"round", do_round},
};

static const function_row string_methods[] = {
    {"strip", do_strip},           {"lstrip", do_lstrip},       {"rstrip", do_rstrip},   {"upper", do_upper},
    {"lower", do_lower},           {"title", do_title},         {"replace", do_replace}, {"capitalize", do_capitalize},
    {"split", do_split},           {"splitlines", do_splitlines}, {"find", do_find},     {"rfind", do_rfind},
    {"startswith", do_startswith}, {"endswith", do_endswith},   {"count", do_count_text}, {"isdigit", do_is_digit},
};

static const function_row object_methods[] = {
    {"items", do_items}, {"keys", do_keys}, {"values", do_values}, {"get", do_get}, {"copy", do_same},
};

static xl_value call_row(const call *c, const function_row *rows, size_t n, const char *what)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(rows[i].name, c->name))
            return rows[i].run(c);
    return xl_chat_fail(c->r, c->line, XLSTM_E_UNSUPPORTED, "there is no %s %s", what, c->name);
}

xl_value xl_chat_filter(xl_render *r, int line, const char *name, xl_value input, const xl_arguments *arguments)
{
    const call c = {r, line, name, input, arguments};
    return call_row(&c, filters, XL_COUNT(filters), "filter");
}

/* "text".join(list): the roles are the other way round than in the filter. */
static xl_value join_method(const call *c)
{
    xl_arguments separator = {.n = 1, .values = {c->input}};
    call filter = *c;
    filter.input = xl_chat_argument(c->arguments, 0, "iterable");
    filter.arguments = &separator;
    return do_join(&filter);
}

static xl_value cycle_method(const call *c)
{
    json_t *index = json_object_get(c->input.json, "index0");
    if (!json_is_integer(index) || c->arguments->n == 0)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "cycle works on loop, with values");
    return c->arguments->values[(size_t)json_integer_value(index) % c->arguments->n];
}

xl_value xl_chat_method(xl_render *r, int line, xl_value object, const char *name, const xl_arguments *arguments)
{
    const call c = {r, line, name, object, arguments};
    if (is_string(object))
        return strcmp(name, "join") ? call_row(&c, string_methods, XL_COUNT(string_methods), "string method")
                                    : join_method(&c);
    if (is_json(object, JSON_OBJECT) && !strcmp(name, "cycle"))
        return cycle_method(&c);
    if (is_json(object, JSON_OBJECT))
        return call_row(&c, object_methods, XL_COUNT(object_methods), "object method");
    if (object.kind == XL_VALUE_UNDEFINED)
        return xl_chat_fail(r, line, XLSTM_E_FORMAT, "%s is undefined, so it has no %s",
                            object.name ? object.name : "it", name);
    return xl_chat_fail(r, line, XLSTM_E_UNSUPPORTED, "there is no method %s here", name);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

static bool test_type(const char *name, xl_value v, bool *known)
{
    bool integer = is_json(v, JSON_INTEGER), real = is_json(v, JSON_REAL);
    bool on = is_json(v, JSON_TRUE), off = is_json(v, JSON_FALSE);
    bool list = is_json(v, JSON_ARRAY), object = is_json(v, JSON_OBJECT), text = is_string(v);
    const struct {
        const char *name;
        bool result;
    } rows[] = {
        {"defined", v.kind != XL_VALUE_UNDEFINED},
        {"undefined", v.kind == XL_VALUE_UNDEFINED},
        {"none", is_json(v, JSON_NULL)},
        {"true", on},
        {"false", off},
        {"boolean", on || off},
        {"integer", integer},
        {"float", real},
        {"number", integer || real || on || off},
        {"string", text},
        {"mapping", object},
        {"sequence", list || object || text},
        {"iterable", list || object || text || v.kind == XL_VALUE_UNDEFINED},
        {"callable", v.kind == XL_VALUE_MACRO || v.kind == XL_VALUE_FUNCTION},
    };
    for (size_t i = 0; i < XL_COUNT(rows); i++)
        if (!strcmp(rows[i].name, name))
            return rows[i].result;
    *known = false;
    return false;
}

bool xl_chat_test(xl_render *r, int line, const char *name, xl_value input, const xl_arguments *arguments)
{
    bool known = true;
    bool result = test_type(name, input, &known);
    if (known)
        return result;
    const call c = {r, line, name, input, arguments};
    xl_value other = xl_chat_argument(arguments, 0, "other");
    static const struct {
        const char *names[4];
        int low, high; /* accepted orders */
    } orders[] = {{{"lt", "lessthan", "<"}, -1, -1},
                  {{"le", "<="}, -1, 0},
                  {{"gt", "greaterthan", ">"}, 1, 1},
                  {{"ge", ">="}, 0, 1}};
    if (!strcmp(name, "eq") || !strcmp(name, "equalto") || !strcmp(name, "==") || !strcmp(name, "sameas"))
        return xl_chat_equal(input, other);
    if (!strcmp(name, "ne") || !strcmp(name, "!="))
        return !xl_chat_equal(input, other);
    if (!strcmp(name, "in"))
        return xl_chat_contains(r, line, other, input);
    for (size_t i = 0; i < XL_COUNT(orders); i++) {
        for (size_t k = 0; k < 4 && orders[i].names[k]; k++) {
            if (strcmp(orders[i].names[k], name) != 0)
                continue;
            int order = xl_chat_order(r, line, input, other);
            return order >= orders[i].low && order <= orders[i].high;
        }
    }
    bool even = !strcmp(name, "even"), odd = !strcmp(name, "odd");
    if (even || odd || !strcmp(name, "divisibleby")) {
        json_int_t divisor = even || odd ? 2 : integer_argument(&c, 0, "num", 0);
        if (divisor == 0 || !is_json(input, JSON_INTEGER)) {
            xl_chat_fail(r, line, XLSTM_E_FORMAT, "%s needs whole numbers", name);
            return false;
        }
        bool divides = divisor == -1 || json_integer_value(input.json) % divisor == 0;
        return odd ? !divides : divides;
    }
    if (!strcmp(name, "upper") || !strcmp(name, "lower")) {
        static const xl_arguments none = {.n = 0};
        const call same = {r, line, name, input, &none};
        return is_string(input) && xl_chat_equal(input, change_case(&same, name[0]));
    }
    xl_chat_fail(r, line, XLSTM_E_UNSUPPORTED, "there is no test %s", name);
    return false;
}

/* ---- functions -------------------------------------------------------------------------------------------------- */

static xl_value do_range(const call *c)
{
    enum { MOST = 100000 };
    json_int_t first = integer_argument(c, 0, "start", 0), stop = first, stride = integer_argument(c, 2, "step", 1);
    if (c->arguments->n > 1)
        stop = integer_argument(c, 1, "stop", 0);
    else
        first = 0;
    json_t *list = list_new(c);
    if (stride == 0)
        return xl_chat_fail(c->r, c->line, XLSTM_E_FORMAT, "range with a step of 0");
    for (json_int_t i = first; !c->r->failed && (stride > 0 ? i < stop : i > stop);) {
        if (json_array_size(list) == MOST)
            return xl_chat_fail(c->r, c->line, XLSTM_E_UNSUPPORTED, "a range of more than %d numbers", MOST);
        list_add(c, list, integer_value(c, i));
        if (__builtin_add_overflow(i, stride, &i))
            break;
    }
    return xl_chat_json(list);
}

static xl_value do_dict(const call *c)
{
    json_t *object = xl_chat_keep(c->r, json_object());
    for (size_t i = 0; i < c->arguments->n && !c->r->failed; i++)
        if (c->arguments->names[i] && c->arguments->values[i].kind == XL_VALUE_JSON)
            xl_chat_done(c->r, json_object_set(object, c->arguments->names[i], c->arguments->values[i].json));
    return xl_chat_json(object);
}

static xl_value do_namespace(const call *c)
{
    xl_value object = do_dict(c);
    object.kind = XL_VALUE_NAMESPACE;
    return object;
}

static xl_value do_raise_exception(const call *c)
{
    const json_t *message = text_argument(c, 0, "message");
    return xl_chat_fail(c->r, c->line, XLSTM_E_ARGUMENT, "%s", message ? json_string_value(message) : "it refuses");
}

static xl_value do_strftime_now(const call *c)
{
    const json_t *format = text_argument(c, 0, "format");
    char text[300] = "";
    time_t now = time(NULL);
    struct tm parts;
    if (format && json_string_length(format) < 100 && gmtime_r(&now, &parts))
        strftime_l(text, sizeof text, json_string_value(format), &parts, c->r->plain);
    return xl_chat_json(xl_chat_string(c->r, text, strlen(text)));
}

static const function_row functions[] = {
    {"range", do_range},
    {"dict", do_dict},
    {"namespace", do_namespace},
    {"raise_exception", do_raise_exception},
    {"strftime_now", do_strftime_now},
};

bool xl_chat_is_function(const char *name)
{
    for (size_t i = 0; i < XL_COUNT(functions); i++)
        if (!strcmp(functions[i].name, name))
            return true;
    return false;
}

xl_value xl_chat_function(xl_render *r, int line, const char *name, const xl_arguments *arguments)
{
    const call c = {r, line, name, xl_chat_undefined(NULL), arguments};
    return call_row(&c, functions, XL_COUNT(functions), "function");
}
