/*
 * chat_template.c — renders chat templates: the Jinja subset that models' templates use, with Hugging Face's settings
 * (trim_blocks, lstrip_blocks, one final line break dropped). This file has the entry point, memory and the parser;
 * templates are untrusted, so depth, steps and bytes are bounded.
 */
#include "chat_template.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 150 };
static const size_t MAX_SOURCE = (size_t)1 << 20;
static const size_t MAX_BYTES = (size_t)256 << 20;
static const uint64_t MAX_STEPS = 5000000;

/* ---- memory and errors ------------------------------------------------------------------------------------------ */

typedef struct xl_block {
    struct xl_block *next;
} xl_block;

xl_value xl_chat_fail(xl_render *r, int line, xlstm_code code, const char *format, ...)
{
    if (!r->failed) {
        char text[700];
        va_list list;
        va_start(list, format);
        vsnprintf(text, sizeof text, format, list);
        va_end(list);
        r->failed = true;
        r->code = line > 0 ? xl_fail(r->err, code, "chat template, line %d: %s", line, text)
                           : xl_fail(r->err, code, "chat template: %s", text);
    }
    return xl_chat_undefined(NULL);
}

bool xl_chat_spend(xl_render *r, size_t bytes)
{
    if (bytes > r->budget) {
        xl_chat_fail(r, 0, XLSTM_E_UNSUPPORTED, "it makes more than %zu MB of text", MAX_BYTES >> 20);
        return false;
    }
    r->budget -= bytes;
    return true;
}

void *xl_chat_memory(xl_render *r, size_t bytes)
{
    if (!xl_chat_spend(r, bytes + sizeof(xl_block)))
        return NULL;
    size_t header = xl_round_up(sizeof(xl_block), _Alignof(max_align_t));
    xl_block *block = xl_calloc(1, header + bytes, r->err);
    if (!block) {
        r->failed = true;
        r->code = XLSTM_E_MEMORY;
        return NULL;
    }
    block->next = r->blocks;
    r->blocks = block;
    return (char *)block + header;
}

json_t *xl_chat_keep(xl_render *r, json_t *value)
{
    if (value && r->n_made == r->made_capacity) {
        size_t capacity = r->made_capacity ? 2 * r->made_capacity : 256;
        json_t **made = xl_grow(r->made, capacity * sizeof(json_t *), NULL);
        if (made) {
            r->made = made;
            r->made_capacity = capacity;
        } else {
            json_decref(value);
            value = NULL;
        }
    }
    if (!value) {
        xl_chat_fail(r, 0, XLSTM_E_MEMORY, "out of memory, or text that is not UTF-8");
        return json_null();
    }
    xl_chat_spend(r, 64);
    return r->made[r->n_made++] = value;
}

json_t *xl_chat_string(xl_render *r, const char *text, size_t size)
{
    json_t *made = xl_chat_spend(r, size) ? xl_chat_keep(r, json_stringn(size ? text : "", size)) : NULL;
    return json_is_string(made) ? made : r->empty;
}

json_t *xl_chat_take(xl_render *r, xl_text *text)
{
    xl_chat_done(r, text->failed);
    json_t *made = xl_chat_string(r, text->data, text->size);
    xl_release(text->data);
    return made;
}

void xl_chat_done(xl_render *r, int result)
{
    if (result != 0)
        xl_chat_fail(r, 0, XLSTM_E_MEMORY, "out of memory");
}

/* ---- scanning inside tags --------------------------------------------------------------------------------------- */

/* Counted on from the last place asked for, so that a long template is not counted again for every node. */
static int line_of(xl_render *r, const char *at)
{
    for (; r->counted < at; r->counted++)
        r->line += *r->counted == '\n';
    for (; r->counted > at; r->counted--)
        r->line -= r->counted[-1] == '\n';
    return r->line;
}

static void syntax_error(xl_render *r, const char *expected)
{
    int n = 0;
    while (n < 20 && r->at + n < r->end && r->at[n] != '\n')
        n++;
    xl_chat_fail(r, line_of(r, r->at), XLSTM_E_FORMAT, "expected %s, found \"%.*s\"", expected, n, r->at);
}

static void skip_blanks(xl_render *r)
{
    while (r->at < r->end && xl_chat_is_blank(*r->at))
        r->at++;
}

static bool starts(const xl_render *r, const char *text)
{
    size_t n = strlen(text);
    return (size_t)(r->end - r->at) >= n && !memcmp(r->at, text, n);
}

/* At the end of the current tag, a dash or plus in front included. */
static bool at_tag_end(xl_render *r)
{
    skip_blanks(r);
    if (r->at >= r->end)
        return true;
    if (r->braces > 0)
        return false;
    const char *p = r->at + (*r->at == '-' || *r->at == '+');
    return r->end - p >= 2 && (!memcmp(p, "%}", 2) || !memcmp(p, "}}", 2));
}

static bool is_word(char c)
{
    return xl_chat_is_letter(c) || xl_chat_is_digit(c) || c == '_';
}

/* Takes a symbol or a keyword if it comes next. */
static bool take(xl_render *r, const char *text)
{
    if (r->failed || at_tag_end(r) || !starts(r, text))
        return false;
    size_t n = strlen(text);
    if (is_word(text[0]) && r->at + n < r->end && is_word(r->at[n]))
        return false;
    r->at += n;
    if (strchr("([{", text[0]))
        r->braces++;
    if (strchr(")]}", text[0]))
        r->braces--;
    return true;
}

static void need(xl_render *r, const char *text)
{
    char expected[32];
    if (!take(r, text) && !r->failed) {
        snprintf(expected, sizeof expected, "\"%s\"", text);
        syntax_error(r, expected);
    }
}

static const char *take_name(xl_render *r)
{
    if (r->failed || at_tag_end(r) || !is_word(*r->at) || xl_chat_is_digit(*r->at))
        return NULL;
    const char *start = r->at;
    while (r->at < r->end && is_word(*r->at))
        r->at++;
    size_t n = (size_t)(r->at - start);
    char *name = xl_chat_memory(r, n + 1);
    if (name)
        memcpy(name, start, n);
    return name;
}

static const char *need_name(xl_render *r)
{
    const char *name = take_name(r);
    if (!name && !r->failed)
        syntax_error(r, "a name");
    return name ? name : "";
}

/* ---- nodes ------------------------------------------------------------------------------------------------------ */

static xl_node *node_new(xl_render *r, xl_node_kind kind)
{
    xl_node *n = xl_chat_memory(r, sizeof *n);
    if (!n)
        return &r->spare; /* nothing reads it once the render has failed */
    n->kind = kind;
    n->line = line_of(r, r->at);
    return n;
}

static xl_node *constant(xl_render *r, json_t *value)
{
    xl_node *n = node_new(r, XL_NODE_CONSTANT);
    n->value = value;
    return n;
}

static bool deeper(xl_render *r)
{
    if (++r->depth > MAX_DEPTH)
        xl_chat_fail(r, line_of(r, r->at), XLSTM_E_UNSUPPORTED, "nested more than %d deep", MAX_DEPTH);
    return !r->failed;
}

static xl_node *parse_expression(xl_render *r);

/* ---- expressions, loosest binding last -------------------------------------------------------------------------- */

static void add_utf8(xl_text *t, unsigned code)
{
    char bytes[4];
    size_t n = code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6)
        bytes[i] = (char)(0x80 | (code & 0x3f));
    bytes[0] = (char)(n == 1 ? code : 0xf00u >> n | code);
    xl_text_add(t, bytes, n);
}

static xl_node *parse_string(xl_render *r)
{
    static const char plain[][2] = {{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'b', '\b'}, {'f', '\f'}, {'v', '\v'}, {'0', 0}};
    const char quote = *r->at++;
    xl_text text = {0};
    while (r->at < r->end && *r->at != quote) {
        char c = *r->at++;
        if (c != '\\' || r->at == r->end) {
            xl_text_add(&text, &c, 1);
            continue;
        }
        c = *r->at++;
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0, n = 0;
        unsigned code = 0;
        while (n < digits && r->at + n < r->end) {
            char h = xl_chat_lower(r->at[n]);
            if (!xl_chat_is_digit(h) && (h < 'a' || h > 'f'))
                break;
            code = code << 4 | (unsigned)(h <= '9' ? h - '0' : h - 'a' + 10);
            n++;
        }
        if (digits && n == digits && code <= 0x10ffff) {
            r->at += n;
            add_utf8(&text, code);
            continue;
        }
        size_t i = 0;
        while (i < XL_COUNT(plain) && plain[i][0] != c)
            i++;
        if (i < XL_COUNT(plain)) {
            xl_text_add(&text, &plain[i][1], 1);
        } else if (c != '\n') { /* a backslash at the end of a line joins it with the next */
            if (!strchr("\\'\"", c))
                xl_text_add(&text, "\\", 1);
            xl_text_add(&text, &c, 1);
        }
    }
    if (r->at == r->end)
        syntax_error(r, "the end of a string");
    else
        r->at++;
    return constant(r, xl_chat_take(r, &text));
}

static xl_node *parse_number(xl_render *r)
{
    char digits[64];
    size_t n = 0;
    bool real = false;
    while (r->at < r->end && n + 1 < sizeof digits) {
        bool point = *r->at == '.' && r->at + 1 < r->end && xl_chat_is_digit(r->at[1]);
        bool exponent = n > 0 && (*r->at == 'e' || *r->at == 'E');
        if (!xl_chat_is_digit(*r->at) && *r->at != '_' && !point && !exponent)
            break;
        real = real || point || exponent;
        if (*r->at != '_')
            digits[n++] = *r->at;
        r->at++;
        if (exponent && r->at < r->end && (*r->at == '-' || *r->at == '+') && n + 1 < sizeof digits)
            digits[n++] = *r->at++;
    }
    digits[n] = 0;
    char *end;
    errno = 0;
    json_int_t whole = real ? 0 : strtoll(digits, &end, 10);
    bool fits = real || errno == 0;
    double x = real ? strtod_l(digits, &end, r->plain) : 0.0;
    bool zero_first = digits[0] == '0' && xl_chat_is_digit(digits[1]);
    if (*end || !fits || !isfinite(x) || zero_first || !xl_chat_is_digit(end[-1])) {
        xl_chat_fail(r, line_of(r, r->at), XLSTM_E_FORMAT, "\"%s\" is not a number", digits);
        return &r->spare;
    }
    return constant(r, xl_chat_keep(r, real ? json_real(x) : json_integer(whole)));
}

/* Appends to a list of nodes. */
static void append(xl_node ***tail, xl_node *n)
{
    **tail = n;
    *tail = &n->next;
}

/* What stands between brackets: expressions with commas; a comma may end it. True if there was a comma. */
static bool parse_items(xl_render *r, xl_node **list, const char *close)
{
    xl_node **tail = list;
    bool comma = false;
    while (!r->failed && !take(r, close)) {
        append(&tail, parse_expression(r));
        if (take(r, close))
            return comma;
        need(r, ",");
        comma = true;
    }
    return comma;
}

static xl_node *parse_dict(xl_render *r)
{
    xl_node *dict = node_new(r, XL_NODE_DICT), **tail = &dict->list;
    while (!r->failed && !take(r, "}")) {
        xl_node *pair = node_new(r, XL_NODE_PAIR);
        pair->a = parse_expression(r);
        need(r, ":");
        pair->b = parse_expression(r);
        append(&tail, pair);
        if (take(r, "}"))
            break;
        need(r, ",");
    }
    return dict;
}

static xl_node *parse_primary(xl_render *r)
{
    if (r->failed || at_tag_end(r)) {
        if (!r->failed)
            syntax_error(r, "an expression");
        return &r->spare;
    }
    if (*r->at == '"' || *r->at == '\'') {
        xl_node *whole = parse_string(r);
        while (!r->failed && !at_tag_end(r) && (*r->at == '"' || *r->at == '\'')) { /* "a" "b" is one string */
            xl_node *both = node_new(r, XL_NODE_BINARY);
            both->op = XL_OP_ADD;
            both->a = whole;
            both->b = parse_string(r);
            whole = both;
        }
        return whole;
    }
    if (xl_chat_is_digit(*r->at))
        return parse_number(r);
    if (take(r, "(")) {
        xl_node *tuple = node_new(r, XL_NODE_LIST);
        bool comma = parse_items(r, &tuple->list, ")");
        return tuple->list && !comma ? tuple->list : tuple;
    }
    if (take(r, "[")) {
        xl_node *list = node_new(r, XL_NODE_LIST);
        parse_items(r, &list->list, "]");
        return list;
    }
    if (take(r, "{"))
        return parse_dict(r);
    static const struct {
        const char *name;
        int value;
    } words[] = {{"true", 1}, {"True", 1}, {"false", 0}, {"False", 0}, {"none", -1}, {"None", -1}};
    for (size_t i = 0; i < XL_COUNT(words); i++)
        if (take(r, words[i].name))
            return constant(r, words[i].value < 0 ? json_null() : json_boolean(words[i].value));
    xl_node *name = node_new(r, XL_NODE_NAME);
    name->name = take_name(r);
    if (!name->name && !r->failed)
        syntax_error(r, "an expression");
    return name;
}

/* Arguments after an opening bracket. */
static void parse_arguments(xl_render *r, xl_node **list)
{
    xl_node **tail = list;
    while (!r->failed && !take(r, ")")) {
        xl_node *argument = node_new(r, XL_NODE_ARGUMENT);
        const char *before = r->at;
        const char *name = take_name(r);
        if (name && !at_tag_end(r) && *r->at == '=' && !starts(r, "==")) {
            r->at++;
            argument->name = name;
        } else {
            r->at = before;
        }
        argument->a = parse_expression(r);
        append(&tail, argument);
        if (take(r, ")"))
            break;
        need(r, ",");
    }
}

static xl_node *parse_subscript(xl_render *r, xl_node *object)
{
    xl_node *item = node_new(r, XL_NODE_ITEM);
    item->a = object;
    if (!starts(r, ":"))
        item->b = parse_expression(r);
    if (take(r, ":")) {
        item->kind = XL_NODE_SLICE;
        if (!at_tag_end(r) && *r->at != ':' && *r->at != ']')
            item->c = parse_expression(r);
        if (take(r, ":") && !at_tag_end(r) && *r->at != ']')
            item->d = parse_expression(r);
    }
    need(r, "]");
    return item;
}

/* Attributes, subscripts, calls. */
static xl_node *parse_postfix(xl_render *r, xl_node *n)
{
    while (!r->failed && !at_tag_end(r)) {
        if (take(r, ".")) {
            xl_node *attribute = node_new(r, XL_NODE_ATTRIBUTE);
            attribute->a = n;
            attribute->name = need_name(r);
            n = attribute;
        } else if (take(r, "[")) {
            skip_blanks(r);
            n = parse_subscript(r, n);
        } else if (take(r, "(")) {
            xl_node *call = node_new(r, XL_NODE_CALL);
            call->a = n;
            parse_arguments(r, &call->list);
            n = call;
        } else {
            break;
        }
    }
    return n;
}

/* A test's argument may stand without brackets, unless it is a word that goes on with the expression. */
static bool at_bare_argument(xl_render *r)
{
    static const char *const words[] = {"and", "or", "else", "if", "in", "is", "not"};
    if (r->failed || at_tag_end(r))
        return false;
    for (size_t i = 0; i < XL_COUNT(words); i++) {
        size_t n = strlen(words[i]);
        if (starts(r, words[i]) && (r->at + n == r->end || !is_word(r->at[n])))
            return false;
    }
    return is_word(*r->at) || strchr("\"'[{", *r->at);
}

/* "is [not] name", with arguments in brackets or one bare argument. `is` has been taken. */
static xl_node *parse_test(xl_render *r, xl_node *n)
{
    bool negated = take(r, "not");
    xl_node *test = node_new(r, XL_NODE_TEST);
    test->a = n;
    test->name = need_name(r);
    if (take(r, "(")) {
        parse_arguments(r, &test->list);
    } else if (at_bare_argument(r)) {
        test->list = node_new(r, XL_NODE_ARGUMENT);
        test->list->a = parse_postfix(r, parse_primary(r));
    }
    if (!negated)
        return test;
    xl_node *not = node_new(r, XL_NODE_NOT);
    not->a = test;
    return not;
}

static xl_node *parse_filter(xl_render *r, xl_node *n)
{
    xl_node *filter = node_new(r, XL_NODE_FILTER);
    filter->a = n;
    filter->name = need_name(r);
    if (take(r, "("))
        parse_arguments(r, &filter->list);
    return filter;
}

/* Filters and tests apply to a whole signed operand: -3|abs is 3. */
static xl_node *parse_unary(xl_render *r, bool outermost)
{
    xl_node *n;
    if (!deeper(r))
        return &r->spare;
    if (take(r, "-")) {
        n = node_new(r, XL_NODE_NEGATIVE);
        n->a = parse_unary(r, false);
    } else if (take(r, "+")) {
        n = parse_unary(r, false);
    } else {
        n = parse_postfix(r, parse_primary(r));
    }
    while (outermost && !r->failed) {
        if (take(r, "|"))
            n = parse_filter(r, n);
        else if (take(r, "is"))
            n = parse_test(r, n);
        else
            break;
    }
    r->depth--;
    return n;
}

typedef struct operator_row {
    const char *text;
    xl_op op;
} operator_row;

static xl_node *parse_binary(xl_render *r, int level)
{
    static const operator_row levels[][5] = {
        {{"+", XL_OP_ADD}, {"-", XL_OP_SUBTRACT}},
        {{"~", XL_OP_CONCAT}},
        {{"*", XL_OP_MULTIPLY}, {"//", XL_OP_FLOOR_DIVIDE}, {"/", XL_OP_DIVIDE}, {"%", XL_OP_MODULO}},
    };
    if (level == (int)XL_COUNT(levels))
        return parse_unary(r, true);
    xl_node *n = parse_binary(r, level + 1);
    for (;;) {
        const operator_row *row = levels[level];
        while (row->text && !take(r, row->text))
            row++;
        if (!row->text)
            return n;
        xl_node *both = node_new(r, XL_NODE_BINARY);
        both->op = row->op;
        both->a = n;
        both->b = parse_binary(r, level + 1);
        n = both;
    }
}

static bool take_comparison(xl_render *r, xl_op *op)
{
    static const operator_row rows[] = {{"==", XL_OP_EQ}, {"!=", XL_OP_NE}, {"<=", XL_OP_LE}, {">=", XL_OP_GE},
                                        {"<", XL_OP_LT},  {">", XL_OP_GT},  {"in", XL_OP_IN}};
    for (size_t i = 0; i < XL_COUNT(rows); i++) {
        if (take(r, rows[i].text)) {
            *op = rows[i].op;
            return true;
        }
    }
    const char *before = r->at;
    if (take(r, "not")) {
        if (take(r, "in")) {
            *op = XL_OP_NOT_IN;
            return true;
        }
        r->at = before;
    }
    return false;
}

static xl_node *parse_comparison(xl_render *r)
{
    xl_node *first = parse_binary(r, 0), *chain = NULL, **tail = NULL;
    xl_op op;
    while (take_comparison(r, &op)) {
        if (!chain) {
            chain = node_new(r, XL_NODE_COMPARE);
            chain->a = first;
            tail = &chain->list;
        }
        xl_node *link = node_new(r, XL_NODE_LINK);
        link->op = op;
        link->a = parse_binary(r, 0);
        append(&tail, link);
    }
    return chain ? chain : first;
}

static xl_node *parse_not(xl_render *r)
{
    if (!deeper(r))
        return &r->spare;
    xl_node *n;
    if (take(r, "not")) {
        n = node_new(r, XL_NODE_NOT);
        n->a = parse_not(r);
    } else {
        n = parse_comparison(r);
    }
    r->depth--;
    return n;
}

static xl_node *parse_and(xl_render *r)
{
    xl_node *n = parse_not(r);
    while (take(r, "and")) {
        xl_node *both = node_new(r, XL_NODE_AND);
        both->a = n;
        both->b = parse_not(r);
        n = both;
    }
    return n;
}

static xl_node *parse_or(xl_render *r)
{
    xl_node *n = parse_and(r);
    while (take(r, "or")) {
        xl_node *both = node_new(r, XL_NODE_OR);
        both->a = n;
        both->b = parse_and(r);
        n = both;
    }
    return n;
}

static xl_node *parse_expression(xl_render *r)
{
    if (!deeper(r))
        return &r->spare;
    xl_node *n = parse_or(r);
    while (take(r, "if")) {
        xl_node *choice = node_new(r, XL_NODE_CHOICE);
        choice->a = n;
        choice->b = parse_or(r);
        if (take(r, "else"))
            choice->c = parse_expression(r);
        n = choice;
    }
    r->depth--;
    return n;
}

/* An expression, or several with commas as a tuple. */
static xl_node *parse_tuple(xl_render *r)
{
    xl_node *first = parse_expression(r);
    if (r->failed || at_tag_end(r) || *r->at != ',')
        return first;
    xl_node *tuple = node_new(r, XL_NODE_LIST), **tail = &tuple->list;
    append(&tail, first);
    while (take(r, ",") && !at_tag_end(r))
        append(&tail, parse_expression(r));
    return tuple;
}

/* ---- tags and text ---------------------------------------------------------------------------------------------- */

/* Ends a tag: "%}" with its marks, and what they strip from the text behind. */
static void end_tag(xl_render *r, const char *close)
{
    if (r->failed)
        return;
    r->braces = 0;
    skip_blanks(r);
    char mark = r->at < r->end && (*r->at == '-' || *r->at == '+') ? *r->at++ : 0;
    if (!starts(r, close)) {
        syntax_error(r, close);
        return;
    }
    r->at += 2;
    const char *after = r->at;
    if (mark == '-')
        skip_blanks(r);
    else if (close[0] != '}' && mark != '+' && r->at < r->end && *r->at == '\n')
        r->at++;
    r->line_starting = r->at > after && r->at[-1] == '\n';
}

/* The text up to the next tag; leaves r->at behind the tag's opening. `*tag` is '{', '%', '#' or 0 at the end. */
static xl_node *parse_text(xl_render *r, char *tag)
{
    const char *start = r->at, *p = start;
    while (p < r->end && !(*p == '{' && p + 1 < r->end && strchr("{%#", p[1])))
        p++;
    const char *stop = p;
    *tag = 0;
    if (p < r->end) {
        *tag = p[1];
        char mark = p + 2 < r->end ? p[2] : 0;
        if (mark == '-') {
            while (stop > start && xl_chat_is_blank(stop[-1]))
                stop--;
        } else if (*tag != '{' && mark != '+') {
            const char *line = stop;
            while (line > start && (line[-1] == ' ' || line[-1] == '\t'))
                line--;
            if (line > start ? line[-1] == '\n' : r->line_starting)
                stop = line;
        }
        r->at = p + 2 + (mark == '-' || mark == '+');
    } else {
        r->at = p;
    }
    r->line_starting = false;
    xl_node *text = node_new(r, XL_NODE_TEXT);
    text->value = xl_chat_string(r, start, (size_t)(stop - start));
    return text;
}

static void skip_comment(xl_render *r)
{
    const char *close = memmem(r->at, (size_t)(r->end - r->at), "#}", 2);
    if (!close) {
        syntax_error(r, "#} somewhere behind");
        return;
    }
    r->at = close > r->at && (close[-1] == '-' || close[-1] == '+') ? close - 1 : close;
    end_tag(r, "#}");
}

/* {% raw %}: text up to {% endraw %}, as it is. */
static xl_node *parse_raw(xl_render *r)
{
    end_tag(r, "%}");
    xl_node *text = node_new(r, XL_NODE_TEXT);
    const char *start = r->at;
    for (const char *p = start; !r->failed && (p = memmem(p, (size_t)(r->end - p), "{%", 2)); p += 2) {
        r->at = p + 2;
        bool strip = r->at < r->end && *r->at == '-';
        r->at += strip;
        skip_blanks(r);
        if (!starts(r, "endraw"))
            continue;
        r->at += 6;
        const char *stop = p;
        while (strip && stop > start && xl_chat_is_blank(stop[-1]))
            stop--;
        text->value = xl_chat_string(r, start, (size_t)(stop - start));
        end_tag(r, "%}");
        return text;
    }
    syntax_error(r, "{% endraw %}");
    return text;
}

static xl_node *parse_body(xl_render *r, const char *const *ends, const char **ended);

static xl_node *parse_for(xl_render *r)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    xl_node *loop = node_new(r, XL_NODE_FOR), **tail = &loop->list;
    bool bracket = take(r, "(");
    do {
        xl_node *target = node_new(r, XL_NODE_NAME);
        target->name = need_name(r);
        append(&tail, target);
    } while (take(r, ","));
    if (bracket)
        need(r, ")");
    need(r, "in");
    loop->a = parse_or(r); /* an `if` behind it is the loop's condition */
    if (take(r, "if"))
        loop->b = parse_or(r);
    end_tag(r, "%}");
    const char *ended = NULL;
    loop->body = parse_body(r, ends, &ended);
    if (ended && !strcmp(ended, "else")) {
        end_tag(r, "%}");
        loop->other = parse_body(r, ends + 1, &ended);
    }
    end_tag(r, "%}");
    return loop;
}

static xl_node *parse_if(xl_render *r)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    xl_node *first = node_new(r, XL_NODE_IF), *last = first;
    last->a = parse_tuple(r);
    end_tag(r, "%}");
    const char *ended = NULL;
    last->body = parse_body(r, ends, &ended);
    while (!r->failed && !strcmp(ended, "elif")) {
        last->other = node_new(r, XL_NODE_IF);
        last = last->other;
        last->a = parse_tuple(r);
        end_tag(r, "%}");
        last->body = parse_body(r, ends, &ended);
    }
    if (!r->failed && !strcmp(ended, "else")) {
        end_tag(r, "%}");
        last->other = parse_body(r, ends + 2, &ended);
    }
    end_tag(r, "%}");
    return first;
}

static xl_node *parse_set(xl_render *r)
{
    static const char *const ends[] = {"endset", NULL};
    xl_node *set = node_new(r, XL_NODE_SET), **tail = &set->list;
    do {
        xl_node *target = node_new(r, XL_NODE_NAME);
        target->name = need_name(r);
        if (take(r, ".")) {
            xl_node *attribute = node_new(r, XL_NODE_ATTRIBUTE);
            attribute->a = target;
            attribute->name = need_name(r);
            target = attribute;
        }
        append(&tail, target);
    } while (take(r, ","));
    if (take(r, "=")) {
        set->a = parse_tuple(r);
        end_tag(r, "%}");
        return set;
    }
    end_tag(r, "%}");
    const char *ended;
    set->body = parse_body(r, ends, &ended);
    if (!set->body && !r->failed)
        set->body = node_new(r, XL_NODE_TEXT);
    end_tag(r, "%}");
    return set;
}

static xl_node *parse_macro(xl_render *r)
{
    static const char *const ends[] = {"endmacro", NULL};
    xl_node *macro = node_new(r, XL_NODE_MACRO), **tail = &macro->list;
    macro->name = need_name(r);
    need(r, "(");
    while (!r->failed && !take(r, ")")) {
        xl_node *parameter = node_new(r, XL_NODE_ARGUMENT);
        parameter->name = need_name(r);
        if (take(r, "="))
            parameter->a = parse_expression(r);
        append(&tail, parameter);
        if (take(r, ")"))
            break;
        need(r, ",");
    }
    end_tag(r, "%}");
    const char *ended;
    macro->body = parse_body(r, ends, &ended);
    end_tag(r, "%}");
    return macro;
}

/* Hugging Face marks the assistant's words with {% generation %}: nothing to do but to go on. */
static xl_node *parse_generation(xl_render *r)
{
    static const char *const ends[] = {"endgeneration", NULL};
    xl_node *always = node_new(r, XL_NODE_IF);
    always->a = constant(r, json_true());
    end_tag(r, "%}");
    const char *ended;
    always->body = parse_body(r, ends, &ended);
    end_tag(r, "%}");
    return always;
}

/* Statements up to one of `ends`, whose name is taken and put in *ended; without ends up to the end of the source. */
static xl_node *parse_body(xl_render *r, const char *const *ends, const char **ended)
{
    xl_node *body = NULL, **tail = &body;
    if (ends)
        *ended = "";
    if (!deeper(r))
        return NULL;
    while (!r->failed) {
        char tag;
        append(&tail, parse_text(r, &tag));
        if (tag == 0) {
            while (ends && ends[1])
                ends++;
            if (ends)
                xl_chat_fail(r, line_of(r, r->at), XLSTM_E_FORMAT, "it ends where %s is missing", ends[0]);
            break;
        }
        if (tag == '#') {
            skip_comment(r);
            continue;
        }
        r->braces = 0;
        if (tag == '{') {
            xl_node *output = node_new(r, XL_NODE_OUTPUT);
            output->a = parse_tuple(r);
            end_tag(r, "}}");
            append(&tail, output);
            continue;
        }
        for (size_t i = 0; ends && ends[i]; i++) {
            if (take(r, ends[i])) {
                *ended = ends[i];
                r->depth--;
                return body;
            }
        }
        static const struct {
            const char *name;
            xl_node *(*parse)(xl_render *r);
        } statements[] = {{"for", parse_for}, {"if", parse_if},   {"set", parse_set}, {"macro", parse_macro},
                          {"raw", parse_raw}, {"generation", parse_generation}};
        size_t i = 0;
        while (i < XL_COUNT(statements) && !take(r, statements[i].name))
            i++;
        if (i < XL_COUNT(statements)) {
            append(&tail, statements[i].parse(r));
        } else if (take(r, "break") || take(r, "continue")) {
            append(&tail, node_new(r, r->at[-1] == 'k' ? XL_NODE_BREAK : XL_NODE_CONTINUE));
            end_tag(r, "%}");
        } else if (!r->failed) {
            int line = line_of(r, r->at);
            const char *name = take_name(r);
            xl_chat_fail(r, line, name ? XLSTM_E_UNSUPPORTED : XLSTM_E_FORMAT, "unknown statement \"%s\"", name ? name : "");
        }
    }
    r->depth--;
    return body;
}

/* ---- entry ------------------------------------------------------------------------------------------------------ */

xl_node *xl_chat_parse(xl_render *r)
{
    r->line_starting = true;
    xl_node *body = parse_body(r, NULL, NULL);
    r->depth = 0;
    return body;
}

static void render_free(xl_render *r)
{
    while (r->n_made > 0) /* newest first: a list goes before what it holds, so nothing is freed in depth */
        json_decref(r->made[--r->n_made]);
    xl_release(r->made);
    json_decref(r->empty);
    if (r->plain)
        freelocale(r->plain);
    while (r->blocks) {
        xl_block *next = r->blocks->next;
        xl_release(r->blocks);
        r->blocks = next;
    }
}

/* Line breaks as \n only, and without one at the very end. */
static char *normal_lines(const char *source, size_t *size, xlstm_error *err)
{
    char *copy = xl_strdup(source, err);
    size_t n = 0;
    for (const char *p = copy; copy && *p; p++) {
        if (*p == '\r') {
            copy[n++] = '\n';
            p += p[1] == '\n';
        } else {
            copy[n++] = *p;
        }
    }
    if (n > 0 && copy[n - 1] == '\n')
        n--;
    if (copy)
        copy[n] = 0;
    *size = n;
    return copy;
}

int xlstm_chat_render(char **text, size_t *size, const char *source, const char *variables, size_t variables_size,
                      xlstm_error *err)
{
    *text = NULL;
    *size = 0;
    json_error_t problem;
    json_t *root = json_loadb(variables, variables_size, JSON_ALLOW_NUL, &problem);
    if (!json_is_object(root)) {
        json_decref(root);
        if (!root && json_error_code(&problem) == json_error_unknown) /* errors in the text have codes */
            return xl_fail(err, XLSTM_E_MEMORY, "chat variables: out of memory");
        return xl_fail(err, XLSTM_E_FORMAT, "chat variables: expected a JSON object%s%s", root ? "" : ": ",
                       root ? "" : problem.text);
    }
    if (strlen(source) > MAX_SOURCE) {
        json_decref(root);
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "chat template: longer than %zu bytes", MAX_SOURCE);
    }
    size_t length;
    char *copy = normal_lines(source, &length, err);
    if (!copy) {
        json_decref(root);
        return XLSTM_E_MEMORY;
    }
    xl_text out = {0};
    xl_render r = {.err = err,
                   .plain = newlocale(LC_ALL_MASK, "C", NULL),
                   .empty = json_string(""),
                   .source = copy,
                   .at = copy,
                   .counted = copy,
                   .line = 1,
                   .end = copy + length,
                   .budget = MAX_BYTES,
                   .steps = MAX_STEPS,
                   .variables = root,
                   .out = &out};
    xl_chat_done(&r, !r.plain || !r.empty);
    xl_node *body = xl_chat_parse(&r);
    if (!r.failed)
        xl_chat_run(&r, body);
    render_free(&r);
    json_decref(root);
    xl_release(copy);
    if (r.failed) {
        xl_release(out.data);
        return r.code;
    }
    *text = xl_text_end(&out, size, err);
    return *text ? XLSTM_OK : XLSTM_E_MEMORY;
}
