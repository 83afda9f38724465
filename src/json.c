/*
 * json.c — strict JSON through jansson. See json.h.
 */
#include "json.h"

#include <math.h>
#include <string.h>

/* Whether memory ran out while parsing. jansson has no text then or, if it ran out for a string, one about the whole token,
 * up to its closing quote. */
static bool out_of_memory(const json_error_t *e, const char *text)
{
    if (e->text[0] == '\0' || json_error_code(e) == json_error_out_of_memory) return true;
    bool token = strncmp(e->text, "invalid token", 13) == 0 || strncmp(e->text, "string or '}' expected", 22) == 0;
    return token && e->position > 0 && text[e->position - 1] == '"';
}

int xl_json_parse(json_t **out, const char *text, size_t size, const char *name, bool unique, xlstm_error *err)
{
    json_error_t where;
    const size_t flags = JSON_ALLOW_NUL | (unique ? JSON_REJECT_DUPLICATES : 0u);
    *out = NULL;
    json_t *root = json_loadb(text, size, flags, &where);
    /* integers of any length are valid: transformers writes 10^30 for "no limit" */
    if (root == NULL && !out_of_memory(&where, text) && json_error_code(&where) == json_error_numeric_overflow)
        root = json_loadb(text, size, flags | JSON_DECODE_INT_AS_REAL, &where);
    if (root == NULL && out_of_memory(&where, text)) {
        return xl_fail(err, XLSTM_E_MEMORY, "%s: out of memory while reading JSON", name);
    }
    if (root == NULL) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: line %d, column %d: %s; expected valid JSON", name, where.line,
                       where.column, where.text);
    }
    if (!json_is_object(root)) {
        int result = xl_fail(err, XLSTM_E_FORMAT, "%s: expected a JSON object, found %s", name, xl_json_type(root));
        json_decref(root);
        return result;
    }
    *out = root;
    return XLSTM_OK;
}

int xl_json_read(json_t **out, const char *path, size_t limit, bool unique, xlstm_error *err)
{
    char *text;
    size_t size = 0;
    *out = NULL;
    int result = xl_read_file(&text, &size, path, limit, err);
    if (result != XLSTM_OK) return result;
    result = xl_json_parse(out, text, size, path, unique, err);
    xl_release(text);
    return result;
}

int xl_json_value(json_t **out, const char *text, size_t size, xlstm_error *err)
{
    json_error_t where;
    *out = json_loadb(text, size, JSON_DECODE_ANY, &where);
    if (*out != NULL || !out_of_memory(&where, text)) return XLSTM_OK;
    return xl_fail(err, XLSTM_E_MEMORY, "out of memory while reading JSON");
}

bool xl_json_utf8(const char *text, size_t size)
{
    json_error_t why;
    json_t *string = json_pack_ex(&why, 0, "s%", text, size);
    bool wrong = string == NULL && why.text[0] != '\0' && json_error_code(&why) == json_error_invalid_utf8;
    json_decref(string);
    return !wrong;
}

int xl_json_set(json_t *object, const char *key, json_t *value, xlstm_error *err)
{
    if (json_object_set_new(object, key, value) == 0) return XLSTM_OK;
    return xl_fail(err, XLSTM_E_MEMORY, "out of memory while keeping \"%s\"", key);
}

static int add_text(const char *bytes, size_t n, void *text)
{
    xl_text_add(text, bytes, n);
    return 0;
}

char *xl_json_dump(const json_t *value, size_t flags, xlstm_error *err)
{
    xl_text text = {0};
    if (json_dump_callback(value, add_text, &text, flags) != 0) text.failed = true;
    return xl_text_end(&text, NULL, err);
}

const char *xl_json_type(const json_t *value)
{
    if (value == NULL) return "absent";
    switch (json_typeof(value)) {
    case JSON_OBJECT: return "object";
    case JSON_ARRAY: return "array";
    case JSON_STRING: return "string";
    case JSON_INTEGER:
    case JSON_REAL: return "number";
    case JSON_TRUE:
    case JSON_FALSE: return "boolean";
    default: return "null";
    }
}

/* The member, or NULL when it is absent or null. */
static const json_t *member(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_null(value) ? NULL : value;
}

static int wrong_type(xlstm_error *err, const char *name, const char *key, const char *expected, const json_t *value)
{
    return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"%s\": expected %s, found %s", name, key, expected,
                   xl_json_type(value));
}

int xl_json_bool(bool *out, const json_t *object, const char *key, const char *name, xlstm_error *err)
{
    const json_t *value = member(object, key);
    if (value == NULL) return XLSTM_OK;
    if (!json_is_boolean(value)) return wrong_type(err, name, key, "true or false", value);
    *out = json_is_true(value);
    return XLSTM_OK;
}

int xl_json_int(int64_t *out, const json_t *object, const char *key, int64_t low, int64_t high, const char *name,
                xlstm_error *err)
{
    const json_t *value = member(object, key);
    if (value == NULL) return XLSTM_OK;
    int64_t x;
    if (json_is_integer(value)) {
        x = (int64_t)json_integer_value(value);
    } else if (json_is_real(value) && fabs(json_real_value(value)) < 9e15 &&
               floor(json_real_value(value)) == json_real_value(value)) {
        x = (int64_t)json_real_value(value);
    } else {
        return wrong_type(err, name, key, "an integer", value);
    }
    if (x < low || x > high) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"%s\": expected %lld .. %lld, found %lld", name, key,
                       (long long)low, (long long)high, (long long)x);
    }
    *out = x;
    return XLSTM_OK;
}

int xl_json_real(double *out, const json_t *object, const char *key, double low, double high, const char *name,
                 xlstm_error *err)
{
    const json_t *value = member(object, key);
    if (value == NULL) return XLSTM_OK;
    if (!json_is_number(value)) return wrong_type(err, name, key, "a number", value);
    double x = json_number_value(value);
    if (!(x >= low && x <= high)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"%s\": expected %g .. %g, found %g", name, key, low, high, x);
    }
    *out = x;
    return XLSTM_OK;
}

int xl_json_text(const char **out, const json_t *object, const char *key, const char *name, xlstm_error *err)
{
    const json_t *value = member(object, key);
    if (value == NULL) return XLSTM_OK;
    if (!json_is_string(value)) return wrong_type(err, name, key, "a string", value);
    if (strlen(json_string_value(value)) != json_string_length(value)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"%s\": holds a NUL character", name, key);
    }
    *out = json_string_value(value);
    return XLSTM_OK;
}
