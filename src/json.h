/*
 * json.h — thin adapter over jansson: strict parsing with our errors, and typed access that names the field, what was
 * expected and what was found. Everything that reads JSON goes through here. Layer 0.
 */
#ifndef XL_JSON_H
#define XL_JSON_H

#include "base.h"

#include <jansson.h>

/* Parses `size` bytes; `name` (a file name) goes into messages. The root must be an object; *out is NULL on failure. Free
 * with json_decref. Strings may hold U+0000: use json_string_length. Duplicate keys are refused when `unique` is set. */
int xl_json_parse(json_t **out, const char *text, size_t size, const char *name, bool unique, xlstm_error *err);
int xl_json_read(json_t **out, const char *path, size_t limit, bool unique, xlstm_error *err);
/* A value of any type; *out is NULL where the text is no JSON. The only failure is XLSTM_E_MEMORY. */
int xl_json_value(json_t **out, const char *text, size_t size, xlstm_error *err);

/* Whether a text is UTF-8, as strings and keys must be. */
bool xl_json_utf8(const char *text, size_t size);
/* Gives an object a new value, NULL where that could not be made. The only failure is XLSTM_E_MEMORY. */
int xl_json_set(json_t *object, const char *key, json_t *value, xlstm_error *err);
/* The text of an object or array (of any value with JSON_ENCODE_ANY), NULL with err set. Free with xl_release, whoever allocates for jansson. */
char *xl_json_dump(const json_t *value, size_t flags, xlstm_error *err);

/* Typed access to optional members: an absent or null member leaves *out as it was and returns XLSTM_OK; a member of
 * another type is XLSTM_E_FORMAT. `name` as above. Numbers: int or real is accepted where a double is asked for, and an
 * integral real where an integer is; ranges are checked inclusive. */
int xl_json_bool(bool *out, const json_t *object, const char *key, const char *name, xlstm_error *err);
int xl_json_int(int64_t *out, const json_t *object, const char *key, int64_t low, int64_t high, const char *name,
                xlstm_error *err);
int xl_json_real(double *out, const json_t *object, const char *key, double low, double high, const char *name,
                 xlstm_error *err);
int xl_json_text(const char **out, const json_t *object, const char *key, const char *name, xlstm_error *err);
const char *xl_json_type(const json_t *value); /* "object", "number", "absent", ... */

#endif
