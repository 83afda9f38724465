/*
 * weights_safetensors.c — reads safetensors: one file, a folder in the Hugging Face form (model.safetensors, or shards
 * with model.safetensors.index.json), or NX-AI's own form (config.yaml beside model.safetensors or model_0.safetensors,
 * model_1.safetensors, ...).
 *
 * A file is an 8-byte little-endian header length, the header as JSON, and the tensors' bytes without gaps:
 *   {"__metadata__": {"key": "text", ...},
 *    "name": {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, ...}
 * Offsets count from the end of the header. Everything is checked against the file's size before it is used.
 */
#include "json.h"
#include "weights_internal.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

enum {
    MAX_HEADER = 100 << 20, /* bytes, the format's own bound */
    MAX_INDEX = 100 << 20,
    MAX_YAML = 1 << 20,
};

static const struct {
    const char *name;
    xlstm_dtype dtype; /* DEFAULT: known, but nothing computes with it */
    uint32_t bytes;
} types[] = {
    {"F32", XLSTM_F32, 4},           {"F16", XLSTM_F16, 2},           {"BF16", XLSTM_BF16, 2},
    {"F64", XLSTM_F64, 8},           {"I8", XLSTM_I8, 1},             {"U8", XLSTM_DTYPE_DEFAULT, 1},
    {"BOOL", XLSTM_DTYPE_DEFAULT, 1}, {"I16", XLSTM_DTYPE_DEFAULT, 2}, {"U16", XLSTM_DTYPE_DEFAULT, 2},
    {"I32", XLSTM_DTYPE_DEFAULT, 4}, {"U32", XLSTM_DTYPE_DEFAULT, 4}, {"I64", XLSTM_DTYPE_DEFAULT, 8},
    {"U64", XLSTM_DTYPE_DEFAULT, 8}, {"C64", XLSTM_DTYPE_DEFAULT, 8}, {"F8_E4M3", XLSTM_DTYPE_DEFAULT, 1},
    {"F8_E5M2", XLSTM_DTYPE_DEFAULT, 1}, {"F8_E8M0", XLSTM_DTYPE_DEFAULT, 1},
};

/* ---- one file --------------------------------------------------------------------------------------------------- */

/* A non-negative integer, or false. */
static bool take_u64(uint64_t *out, const json_t *value)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0) return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

/* One entry of the header. `data` is where the tensors' bytes begin in the file. */
static int read_tensor(xl_weights *w, uint32_t file, const char *name, const json_t *entry, uint64_t data,
                       xlstm_error *err)
{
    const char *where = xl_weights_file(w, file);
    uint64_t data_size = w->files[file].map.size - data;
    size_t name_size = strlen(name);
    if (name_size == 0 || name_size > XL_MAX_NAME) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: a tensor name of %zu bytes, expected 1 .. %d", where, name_size,
                       XL_MAX_NAME);
    }
    if (!json_is_object(entry)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': expected an object, found %s", where, name,
                       xl_json_type(entry));
    }
    const json_t *type = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_string(type) || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2) {
        return xl_fail(err, XLSTM_E_FORMAT,
                       "%s: tensor '%s': expected a dtype string, a shape array and two data_offsets", where, name);
    }
    size_t k = 0;
    while (k < XL_COUNT(types) && strcmp(types[k].name, json_string_value(type)) != 0) k++;
    if (k == XL_COUNT(types)) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED,
                       "%s: tensor '%s' has the unknown dtype \"%.40s\"; expected F32, F16 or BF16", where, name,
                       json_string_value(type));
    }
    xl_tensor t = {.type = types[k].name, .dtype = types[k].dtype, .file = file};
    if (json_array_size(shape) > XL_COUNT(t.shape)) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: tensor '%s' has %zu dimensions, expected at most 4", where, name,
                       json_array_size(shape));
    }
    t.rank = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t.rank; i++) {
        if (!take_u64(&t.shape[i], json_array_get(shape, i))) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': dimension %u of its shape is not a size", where,
                           name, i);
        }
    }
    uint64_t elements, begin, end;
    char shape_text[XL_SHAPE_TEXT];
    xl_shape_text(shape_text, &t);
    if (!xl_weights_elements(&elements, t.rank, t.shape) || !xl_mul(&t.bytes, elements, types[k].bytes)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s' of shape %s is larger than any memory", where, name,
                       shape_text);
    }
    if (!take_u64(&begin, json_array_get(offsets, 0)) || !take_u64(&end, json_array_get(offsets, 1)) || begin > end) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': data_offsets are not an ascending pair of sizes", where,
                       name);
    }
    if (end > data_size) {
        return xl_fail(err, XLSTM_E_FORMAT,
                       "%s: tensor '%s' ends at byte %llu of the data, but the file holds %llu: it is truncated or "
                       "its header lies",
                       where, name, (unsigned long long)end, (unsigned long long)data_size);
    }
    if (end - begin != t.bytes) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': %s %s takes %zu bytes, but data_offsets give %llu", where,
                       name, t.type, shape_text, t.bytes, (unsigned long long)(end - begin));
    }
    t.offset = data + begin;
    return xl_weights_add(w, name, name_size, &t, err);
}

static int check_metadata(const json_t *metadata, const char *where, xlstm_error *err)
{
    const char *key;
    json_t *value;
    bool good = json_is_object(metadata);
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value) good = good && json_is_string(value);
    return good ? XLSTM_OK
                : xl_fail(err, XLSTM_E_FORMAT, "%s: __metadata__: expected an object of strings", where);
}

static int read_file(xl_weights *w, const char *path, xlstm_error *err)
{
    int result = xl_weights_add_file(w, path, err);
    if (result != XLSTM_OK) return result;
    uint32_t file = w->n_files - 1;
    const xl_map *map = &w->files[file].map;
    uint64_t header;
    if (map->size < 8 + 2) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: %zu bytes are too few for a safetensors file", path, map->size);
    }
    memcpy(&header, map->bytes, 8);
    if (header < 2 || header > MAX_HEADER || header > map->size - 8) {
        return xl_fail(err, XLSTM_E_FORMAT,
                       "%s: a header of %llu bytes does not fit this file of %zu bytes: it is truncated or not a "
                       "safetensors file",
                       path, (unsigned long long)header, map->size);
    }
    if (map->bytes[8] != '{') {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: the header does not begin with '{': not a safetensors file", path);
    }
    json_t *root;
    result = xl_json_parse(&root, (const char *)map->bytes + 8, (size_t)header, path, true, err);
    if (result != XLSTM_OK) return result;
    if (json_object_size(root) > XL_MAX_TENSORS - w->count) {
        result = xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: more than %d tensors", path, XL_MAX_TENSORS);
    }
    const char *name;
    json_t *entry;
    uint64_t covered = 0;
    json_object_foreach(root, name, entry)
    {
        if (result != XLSTM_OK) break;
        if (strcmp(name, "__metadata__") == 0) {
            result = check_metadata(entry, w->files[file].name, err);
            continue;
        }
        result = read_tensor(w, file, name, entry, 8 + header, err);
        if (result == XLSTM_OK) covered += w->tensors[w->count - 1].bytes;
    }
    json_decref(root);
    if (result == XLSTM_OK && covered < map->size - 8 - header) {
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: %llu bytes of the file belong to no tensor", path,
                         (unsigned long long)(map->size - 8 - header - covered));
    }
    return result;
}

int xl_safetensors_open_file(xl_weights *w, const char *path, xlstm_error *err)
{
    snprintf(w->format, sizeof(w->format), "safetensors");
    return read_file(w, path, err);
}

/* ---- shards with an index --------------------------------------------------------------------------------------- */

/* The name of a file in the same folder and nothing else. */
static bool is_plain_name(const json_t *value)
{
    const char *s = json_string_value(value);
    return s != NULL && strlen(s) == json_string_length(value) && *s != '\0' && *s != '.' && strlen(s) < 256 &&
           strpbrk(s, "/\\") == NULL;
}

static int read_shard(xl_weights *w, const char *folder, const char *shard, const json_t *map, xlstm_error *err)
{
    char *path = xl_join(folder, shard, err);
    if (path == NULL) return XLSTM_E_MEMORY;
    size_t first = w->count;
    int result = xl_is_file(path) ? read_file(w, path, err)
                                  : xl_fail(err, XLSTM_E_IO, "%s: missing: the index names this shard", path);
    xl_release(path);
    for (size_t i = first; i < w->count && result == XLSTM_OK; i++) {
        const char *name = w->tensors[i].name, *owner = json_string_value(json_object_get(map, name));
        if (owner == NULL) {
            result = xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s' is not in the index", shard, name);
        } else if (strcmp(owner, shard) != 0) {
            result = xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s' belongs in %s by the index", shard, name, owner);
        }
    }
    return result;
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The error for the first name of the index that no shard holds. */
static int name_missing(const xl_weights *w, const char *index_path, json_t *map, xlstm_error *err)
{
    const char **names = xl_calloc(w->count, sizeof(*names), err), *name;
    if (names == NULL) return XLSTM_E_MEMORY;
    for (size_t i = 0; i < w->count; i++) names[i] = w->tensors[i].name;
    if (w->count > 0) qsort(names, w->count, sizeof(*names), compare_text);
    int result = XLSTM_E_FORMAT;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        if (w->count > 0 && bsearch(&name, names, w->count, sizeof(*names), compare_text) != NULL) continue;
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%.200s' is not in %s, where the index puts it", index_path,
                         name, json_string_value(value));
        break;
    }
    xl_release(names);
    return result;
}

static int read_indexed(xl_weights *w, const char *folder, const char *index_path, xlstm_error *err)
{
    json_t *root;
    int result = xl_json_read(&root, index_path, MAX_INDEX, true, err);
    if (result != XLSTM_OK) return result;
    json_t *map = json_object_get(root, "weight_map"), *value;
    const char *name, **shards = NULL;
    size_t n = 0;
    if (!json_is_object(map) || json_object_size(map) == 0) {
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: weight_map: expected an object of tensor names, found %s", index_path,
                         json_is_object(map) ? "an empty one" : xl_json_type(map));
        goto done;
    }
    shards = xl_calloc(json_object_size(map), sizeof(*shards), err);
    if (shards == NULL) {
        result = XLSTM_E_MEMORY;
        goto done;
    }
    json_object_foreach(map, name, value)
    {
        if (!is_plain_name(value)) {
            const char *text = json_string_value(value);
            result = xl_fail(err, XLSTM_E_FORMAT,
                             "%s: tensor '%.200s': expected the name of a file in the same folder, found \"%.200s\"",
                             index_path, name, text != NULL ? text : xl_json_type(value));
            goto done;
        }
        shards[n++] = json_string_value(value);
    }
    qsort(shards, n, sizeof(*shards), compare_text);
    for (size_t i = 0; i < n && result == XLSTM_OK; i++) {
        if (i == 0 || strcmp(shards[i], shards[i - 1]) != 0) result = read_shard(w, folder, shards[i], map, err);
    }
    /* Every tensor found is in the index at its shard, so equal counts mean that none is missing. */
    if (result == XLSTM_OK && w->count < n) result = name_missing(w, index_path, map, err);
done:
    xl_release(shards);
    json_decref(root);
    return result;
}

/* ---- NX-AI's config.yaml ---------------------------------------------------------------------------------------- */

static char *trim(char *s)
{
    while (*s == ' ' || *s == '\t') s++;
    size_t n = strlen(s);
    while (n > 0 && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r')) s[--n] = '\0';
    return s;
}

/* Puts a plain or quoted YAML scalar into an object; *more if it is anything more. */
static int put_scalar(bool *more, json_t *root, const char *key, const char *s, xlstm_error *err)
{
    size_t n = strlen(s);
    *more = false;
    if (n >= 2 && (*s == '"' || *s == '\'')) {
        *more = s[n - 1] != *s || memchr(s + 1, *s, n - 2) != NULL || strchr(s, '\\') != NULL;
        return *more ? XLSTM_OK : xl_json_set(root, key, json_stringn(s + 1, n - 2), err);
    }
    if (n == 0 || strcmp(s, "~") == 0 || strcasecmp(s, "null") == 0) return xl_json_set(root, key, json_null(), err);
    if (strcasecmp(s, "true") == 0) return xl_json_set(root, key, json_true(), err);
    if (strcasecmp(s, "false") == 0) return xl_json_set(root, key, json_false(), err);
    if (strcmp(s, "[]") == 0) return xl_json_set(root, key, json_array(), err);
    *more = strchr("[]{}&*!|>%@`\"',#?", *s) != NULL || (*s == '-' && (n == 1 || s[1] == ' '));
    if (*more) return XLSTM_OK;
    json_t *value;
    int result = xl_json_value(&value, s, n, err);
    if (result != XLSTM_OK) return result;
    if (!json_is_number(value)) {
        json_decref(value);
        value = json_stringn(s, n);
    }
    return xl_json_set(root, key, value, err);
}

/* The subset that a dumped dataclass needs: "key: scalar" lines, optionally all under one "model:" line, comments and a
 * document mark. Anything else is refused by line. */
static int read_yaml(char **json, const char *path, xlstm_error *err)
{
    char *text;
    size_t size = 0;
    int result = xl_read_file(&text, &size, path, MAX_YAML, err);
    if (result != XLSTM_OK) return result;
    json_t *root = json_object();
    const char *problem = strlen(text) != size ? "a NUL character" : NULL;
    bool nested = false; /* below "model:" */
    int number = 0;
    for (char *line = text, *next; result == XLSTM_OK && problem == NULL && line != NULL; line = next) {
        number++;
        next = strchr(line, '\n');
        if (next != NULL) *next++ = '\0';
        char *comment = *line == '#' ? line : strstr(line, " #");
        if (comment != NULL) *comment = '\0';
        bool indented = *line == ' ' || *line == '\t';
        char *key = trim(line);
        if (*key == '\0' || strcmp(key, "---") == 0) continue;
        char *colon = strchr(key, ':');
        if (colon == NULL || colon == key || (colon[1] != '\0' && colon[1] != ' ')) {
            problem = "expected 'key: value'";
            break;
        }
        *colon = '\0';
        char *value = trim(colon + 1);
        key = trim(key);
        if (!indented && *value == '\0' && strcmp(key, "model") == 0) {
            nested = true;
            continue;
        }
        if (!indented) nested = false;
        if (indented && !nested) {
            problem = "a nested block, expected plain 'key: value' lines or one 'model:' block";
            break;
        }
        bool more = strpbrk(key, "\"'{}[]&*!-") == key;
        if (json_object_get(root, key) != NULL) {
            problem = "the key occurs twice";
        } else if (!xl_json_utf8(key, strlen(key)) || !xl_json_utf8(value, strlen(value))) {
            problem = "expected UTF-8 text";
        } else if (!more) {
            result = put_scalar(&more, root, key, value, err);
        }
        if (more) problem = "expected 'key: value' with a number, true, false, null or a plain string";
    }
    if (problem != NULL) result = xl_fail(err, XLSTM_E_FORMAT, "%s: line %d: %s", path, number, problem);
    if (result == XLSTM_OK) {
        *json = xl_json_dump(root, JSON_INDENT(2), err);
        if (*json == NULL) result = XLSTM_E_MEMORY;
    }
    json_decref(root);
    xl_release(text);
    return result;
}

/* ---- folders ---------------------------------------------------------------------------------------------------- */

typedef struct folder_files {
    bool single, index, yaml, json, pickle;
    uint32_t numbered, highest; /* model_N.safetensors: how many, and the largest N */
    uint32_t n_other;           /* other .safetensors and .gguf files */
    char other[256];            /* one of them */
} folder_files;

/* N of "model_N.safetensors", -1 for other names. */
static int shard_number(const char *name)
{
    int number = -1, length = 0;
    if (sscanf(name, "model_%4d.safetensors%n", &number, &length) != 1 || length == 0 || name[length] != '\0') return -1;
    char again[64];
    snprintf(again, sizeof(again), "model_%d.safetensors", number);
    return strcmp(again, name) == 0 ? number : -1;
}

static int list_folder(folder_files *found, const char *folder, xlstm_error *err)
{
    *found = (folder_files){0};
    DIR *dir = opendir(folder);
    int code = errno;
    if (dir == NULL) {
        return xl_fail(err, code == ENOMEM ? XLSTM_E_MEMORY : XLSTM_E_IO, "%s: cannot list: %s", folder, strerror(code));
    }
    for (const struct dirent *e; (e = readdir(dir)) != NULL;) {
        const char *name = e->d_name, *dot = strrchr(name, '.');
        int number = shard_number(name);
        if (strcmp(name, "model.safetensors") == 0) {
            found->single = true;
        } else if (strcmp(name, "model.safetensors.index.json") == 0) {
            found->index = true;
        } else if (strcmp(name, "config.yaml") == 0) {
            found->yaml = true;
        } else if (strcmp(name, "config.json") == 0) {
            found->json = true;
        } else if (number >= 0) {
            found->numbered++;
            found->highest = XL_MAX(found->highest, (uint32_t)number);
        } else if (dot != NULL && (strcmp(dot, ".safetensors") == 0 || strcmp(dot, ".gguf") == 0)) {
            found->n_other++;
            snprintf(found->other, sizeof(found->other), "%s", name);
        } else if (dot != NULL && (strcmp(dot, ".bin") == 0 || strcmp(dot, ".pt") == 0 || strcmp(dot, ".pth") == 0)) {
            found->pickle = true;
        }
    }
    closedir(dir);
    return XLSTM_OK;
}

static int read_named(xl_weights *w, const char *folder, const char *name, xlstm_error *err)
{
    char *path = xl_join(folder, name, err);
    if (path == NULL) return XLSTM_E_MEMORY;
    const char *dot = strrchr(name, '.');
    int result;
    if (strcmp(name, "model.safetensors.index.json") == 0) {
        result = read_indexed(w, folder, path, err);
    } else if (strcmp(name, "config.yaml") == 0) {
        result = read_yaml(&w->config, path, err);
    } else if (strcmp(dot, ".gguf") == 0) {
        result = xl_gguf_open(w, path, err);
    } else {
        result = read_file(w, path, err);
    }
    xl_release(path);
    return result;
}

static int read_numbered(xl_weights *w, const char *folder, const folder_files *found, xlstm_error *err)
{
    int result = XLSTM_OK;
    for (uint32_t i = 0; i <= found->highest && result == XLSTM_OK; i++) {
        char name[64];
        snprintf(name, sizeof(name), "model_%u.safetensors", i);
        result = read_named(w, folder, name, err);
    }
    return result;
}

int xl_safetensors_open_folder(xl_weights *w, const char *folder, xlstm_error *err)
{
    folder_files found;
    int result = list_folder(&found, folder, err);
    if (result != XLSTM_OK) return result;
    snprintf(w->format, sizeof(w->format), "safetensors");
    if (found.single && (found.index || found.numbered > 0)) {
        xl_logf(w->log, XLSTM_LOG_WARNING, "%s: model.safetensors is used, the shards beside it are not", folder);
    }
    if (found.single) {
        result = read_named(w, folder, "model.safetensors", err);
    } else if (found.index) {
        result = read_named(w, folder, "model.safetensors.index.json", err);
    } else if (found.numbered > 0) {
        result = read_numbered(w, folder, &found, err);
    } else if (found.n_other == 1) {
        result = read_named(w, folder, found.other, err);
    } else if (found.n_other > 1) {
        result = xl_fail(err, XLSTM_E_UNSUPPORTED,
                         "%s: several weight files and no model.safetensors.index.json: expected one that lists the shards; if the "
                         "files are models of their own, name one of them", folder);
    } else {
        result = xl_fail(err, XLSTM_E_IO, "%s: no weights: expected model.safetensors, shards with an index, or a .gguf "
                         "file%s", folder, found.pickle ? "; PyTorch pickles are not read, save as safetensors" : "");
    }
    if (result == XLSTM_OK && found.yaml && !found.json && w->config == NULL) {
        result = read_named(w, folder, "config.yaml", err);
    }
    return result;
}
