/*
 * chat_template.h — what the parts of the chat template interpreter share: the syntax tree (chat_template.c parses),
 * values and the run (chat_template_run.c), filters, tests and methods (chat_template_filters.c). Layer 4; knows no
 * model and no tokenizer.
 *
 * Memory. A render is short, so nothing is freed one by one: nodes come from the run's arena, and every JSON value made
 * on the way is noted and released at the end. Values are therefore plain borrowed pointers. The total is bounded.
 *
 * Errors stick: the first one fills err and sets `failed`; everything after it returns quickly with harmless values.
 */
#ifndef XL_CHAT_TEMPLATE_H
#define XL_CHAT_TEMPLATE_H

#include "base.h"

#include <jansson.h>
#include <locale.h>

typedef enum xl_node_kind {
    /* statements */
    XL_NODE_TEXT,      /* value: string */
    XL_NODE_OUTPUT,    /* a */
    XL_NODE_FOR,       /* list: NAME targets; a: what is walked; b: condition or NULL; body; other: else */
    XL_NODE_IF,        /* a: condition; body; other: else part (an `elif` is an IF alone in it) */
    XL_NODE_SET,       /* list: targets (NAME or ATTRIBUTE); a: expression, or body */
    XL_NODE_MACRO,     /* name; list: ARGUMENT with name and default a; body */
    XL_NODE_BREAK,
    XL_NODE_CONTINUE,
    /* expressions */
    XL_NODE_CONSTANT,  /* value */
    XL_NODE_NAME,      /* name */
    XL_NODE_LIST,      /* list (tuples too) */
    XL_NODE_DICT,      /* list: PAIR */
    XL_NODE_PAIR,      /* a: b */
    XL_NODE_ATTRIBUTE, /* a.name */
    XL_NODE_ITEM,      /* a[b] */
    XL_NODE_SLICE,     /* a[b:c:d], any NULL */
    XL_NODE_CALL,      /* a(list of ARGUMENT) */
    XL_NODE_ARGUMENT,  /* name (may be NULL) = a */
    XL_NODE_FILTER,    /* a | name(list) */
    XL_NODE_TEST,      /* a is name(list) */
    XL_NODE_NOT,       /* a */
    XL_NODE_NEGATIVE,  /* a */
    XL_NODE_BINARY,    /* a op b */
    XL_NODE_AND,       /* a, b */
    XL_NODE_OR,        /* a, b */
    XL_NODE_CHOICE,    /* a if b else c; c may be NULL */
    XL_NODE_COMPARE,   /* a, then list of LINK: a chain like 1 < x < 3 */
    XL_NODE_LINK,      /* op, a */
} xl_node_kind;

typedef enum xl_op {
    XL_OP_ADD,
    XL_OP_SUBTRACT,
    XL_OP_MULTIPLY,
    XL_OP_DIVIDE,
    XL_OP_FLOOR_DIVIDE,
    XL_OP_MODULO,
    XL_OP_CONCAT,
    XL_OP_EQ,
    XL_OP_NE,
    XL_OP_LT,
    XL_OP_LE,
    XL_OP_GT,
    XL_OP_GE,
    XL_OP_IN,
    XL_OP_NOT_IN,
} xl_op;

typedef struct xl_node {
    xl_node_kind kind;
    xl_op op;
    int line;
    const char *name;
    json_t *value;
    struct xl_node *a, *b, *c, *d;
    struct xl_node *list, *body, *other;
    struct xl_node *next; /* in a list or a body */
} xl_node;

typedef enum xl_value_kind {
    XL_VALUE_UNDEFINED, /* name: what was not found, or NULL */
    XL_VALUE_JSON,
    XL_VALUE_NAMESPACE, /* json: an object whose members may be set */
    XL_VALUE_MACRO,     /* node */
    XL_VALUE_FUNCTION,  /* name: range, namespace, ... */
} xl_value_kind;

typedef struct xl_value {
    xl_value_kind kind;
    json_t *json;
    const xl_node *node;
    const char *name;
} xl_value;

/* Arguments of a call, filter or test, evaluated. */
enum { XL_MAX_ARGUMENTS = 32 };
typedef struct xl_arguments {
    xl_value values[XL_MAX_ARGUMENTS];
    const char *names[XL_MAX_ARGUMENTS]; /* NULL: positional */
    size_t n;
} xl_arguments;

typedef struct xl_render {
    xlstm_error *err;
    int code; /* 0 until something failed */
    bool failed;
    locale_t plain; /* the C locale: numbers and dates read the same whatever the program's locale is */

    /* parser */
    const char *source, *at, *end;
    const char *counted; /* `line` is the number of its line */
    int line;
    xl_node spare;      /* stands for nodes that cannot be had any more */
    bool line_starting; /* the text at `at` begins a line */
    int braces;         /* open { ( [ inside the current tag */
    int depth;          /* of recursion, in parser and run */

    /* memory */
    struct xl_block *blocks;
    json_t *empty; /* a string that can always be had */
    json_t **made;
    size_t n_made, made_capacity;
    size_t budget; /* bytes that may still be made */
    uint64_t steps; /* that may still be taken */

    /* run */
    struct xl_frame *frame, *top; /* innermost scope, and the template's own */
    json_t *variables;
    xl_text *out;
    enum { XL_FLOW_ON, XL_FLOW_BREAK, XL_FLOW_CONTINUE } flow;
} xl_render;

/* Notes an error (the first one counts); returns an undefined value for convenience. */
xl_value xl_chat_fail(xl_render *r, int line, xlstm_code code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void *xl_chat_memory(xl_render *r, size_t bytes); /* zeroed; NULL only after a failure */
/* Takes over the reference; NULL (out of memory) fails the render and gives null. */
json_t *xl_chat_keep(xl_render *r, json_t *value);
/* A string in any case: empty once the render has failed. */
json_t *xl_chat_string(xl_render *r, const char *text, size_t size);
json_t *xl_chat_take(xl_render *r, xl_text *text); /* the same of what a text holds, which is released */
/* Takes what a call of jansson returned that can only fail for want of memory: not 0 fails the render. */
void xl_chat_done(xl_render *r, int result);
bool xl_chat_spend(xl_render *r, size_t bytes); /* false once the budget is gone */

/* ASCII characters, in every locale. */
static inline bool xl_chat_is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static inline bool xl_chat_is_digit(char c) { return c >= '0' && c <= '9'; }
static inline char xl_chat_upper(char c) { return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c; }
static inline char xl_chat_lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }
static inline bool xl_chat_is_letter(char c) { return xl_chat_lower(c) >= 'a' && xl_chat_lower(c) <= 'z'; }

/* chat_template.c */
xl_node *xl_chat_parse(xl_render *r);
/* chat_template_run.c */
void xl_chat_run(xl_render *r, const xl_node *body);
xl_value xl_chat_json(json_t *value);
xl_value xl_chat_undefined(const char *name);
bool xl_chat_truth(xl_value v);
bool xl_chat_equal(xl_value a, xl_value b);
bool xl_chat_contains(xl_render *r, int line, xl_value whole, xl_value part);
int xl_chat_order(xl_render *r, int line, xl_value a, xl_value b); /* -1, 0, 1 */
/* As Python's str(): appended to out. */
void xl_chat_print(xl_render *r, xl_text *out, xl_value v);
json_t *xl_chat_to_string(xl_render *r, xl_value v);
xl_value xl_chat_attribute(xl_value v, const char *name);
xl_value xl_chat_call_macro(xl_render *r, const xl_node *macro, const xl_arguments *arguments);
/* The items of a list, the keys of an object, the characters of a string; fails for anything else. */
json_t *xl_chat_items(xl_render *r, int line, xl_value v);
/* chat_template_filters.c */
xl_value xl_chat_filter(xl_render *r, int line, const char *name, xl_value input, const xl_arguments *arguments);
bool xl_chat_test(xl_render *r, int line, const char *name, xl_value input, const xl_arguments *arguments);
xl_value xl_chat_method(xl_render *r, int line, xl_value object, const char *name, const xl_arguments *arguments);
xl_value xl_chat_function(xl_render *r, int line, const char *name, const xl_arguments *arguments);
bool xl_chat_is_function(const char *name);
/* Argument by position or name; undefined if it was not given. */
xl_value xl_chat_argument(const xl_arguments *arguments, size_t position, const char *name);

#endif
