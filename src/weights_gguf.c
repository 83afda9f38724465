/*
 * weights_gguf.c — reads GGUF version 3, split files included. docs/gguf.md lists the keys and tensor names.
 *
 * A file is little endian: "GGUF", version, tensor count, key count, the keys with typed values, the tensors' names,
 * shapes (innermost dimension first), types and offsets, padding up to general.alignment, and the data. All counts,
 * lengths and offsets are checked against the bytes that are left before anything is allocated or read for them. The
 * xlstm.* keys come out as the text of a config.json, and an embedded tokenizer as its files' texts.
 */
#include "json.h"
#include "weights_internal.h"

#include <stdlib.h>

enum {
    VERSION = 3,
    DEFAULT_ALIGNMENT = 32,
    MAX_ALIGNMENT = 1 << 20,
    MAX_KEYS = 1 << 20,
    MAX_KEY = 65535, /* bytes of a key, the format's own bound */
    MAX_SPLITS = XL_MAX_FILES,
};

typedef enum value_type {
    V_U8, V_I8, V_U16, V_I16, V_U32, V_I32, V_F32, V_BOOL, V_STRING, V_ARRAY, V_U64, V_I64, V_F64, V_TYPES
} value_type;

static const uint8_t value_bytes[V_TYPES] = {
    [V_U8] = 1, [V_I8] = 1, [V_U16] = 2, [V_I16] = 2, [V_U32] = 4, [V_I32] = 4, [V_F32] = 4,
    [V_BOOL] = 1, [V_U64] = 8, [V_I64] = 8, [V_F64] = 8,
};

static const struct {
    uint32_t number;
    const char *name;
    xlstm_dtype dtype;
} ggml_types[] = {
    {0, "F32", XLSTM_F32},    {1, "F16", XLSTM_F16},    {30, "BF16", XLSTM_BF16}, {28, "F64", XLSTM_F64},
    {2, "Q4_0", XLSTM_Q4_0},  {8, "Q8_0", XLSTM_Q8_0},  {12, "Q4_K", XLSTM_Q4_K}, {13, "Q5_K", XLSTM_Q5_K},
    {14, "Q6_K", XLSTM_Q6_K},
};

/* ---- reading bytes ---------------------------------------------------------------------------------------------- */

typedef struct cursor {
    const uint8_t *bytes;
    size_t size, at;
    bool failed; /* a read went past the end; sticks, and reads give zero */
} cursor;

static const uint8_t *take(cursor *c, uint64_t n)
{
    if (c->failed || n > c->size - c->at) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->bytes + c->at;
    c->at += (size_t)n;
    return p;
}

static uint32_t take_u32(cursor *c)
{
    uint32_t x = 0;
    const uint8_t *p = take(c, sizeof(x));
    if (p != NULL) memcpy(&x, p, sizeof(x));
    return x;
}

static uint64_t take_u64(cursor *c)
{
    uint64_t x = 0;
    const uint8_t *p = take(c, sizeof(x));
    if (p != NULL) memcpy(&x, p, sizeof(x));
    return x;
}

typedef struct span {
    const char *text; /* in the file, not terminated */
    size_t size;
} span;

static span take_string(cursor *c)
{
    uint64_t n = take_u64(c);
    const uint8_t *p = take(c, n);
    return p != NULL ? (span){(const char *)p, (size_t)n} : (span){"", 0};
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

typedef struct entry {
    span key;
    value_type type;
    const uint8_t *value; /* numbers: their bytes */
    span text;            /* V_STRING */
} entry;

typedef struct header {
    const char *path;
    cursor c;
    entry *entries; /* sorted by key */
    size_t n_entries;
    uint64_t n_tensors;
    uint64_t alignment;
    xlstm_error *err;
} header;

static int truncated(const header *h)
{
    return xl_fail(h->err, XLSTM_E_FORMAT,
                   "%s: the header reaches past the file's %zu bytes: it is truncated or a count or length in it lies",
                   h->path, h->c.size);
}

/* Steps over an array: nothing here needs one. */
static int skip_array(header *h, const span *key)
{
    uint32_t type = take_u32(&h->c);
    uint64_t n = take_u64(&h->c), bytes;
    if (type == V_ARRAY || type >= V_TYPES) {
        return xl_fail(h->err, XLSTM_E_UNSUPPORTED, "%s: key '%.*s': an array of %s, expected plain values", h->path,
                       (int)XL_MIN(key->size, (size_t)80), key->text, type == V_ARRAY ? "arrays" : "an unknown type");
    }
    if (type == V_STRING) {
        for (uint64_t i = 0; i < n && !h->c.failed; i++) (void)take_string(&h->c);
    } else if (__builtin_mul_overflow(n, (uint64_t)value_bytes[type], &bytes)) {
        h->c.failed = true;
    } else {
        (void)take(&h->c, bytes);
    }
    return h->c.failed ? truncated(h) : XLSTM_OK;
}

static int read_entry(header *h, entry *e)
{
    e->key = take_string(&h->c);
    uint32_t type = take_u32(&h->c);
    if (h->c.failed) return truncated(h);
    if (e->key.size == 0 || e->key.size > MAX_KEY || memchr(e->key.text, 0, e->key.size) != NULL) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: a key of %zu bytes or with a NUL character", h->path, e->key.size);
    }
    if (type >= V_TYPES) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: key '%.*s' has the unknown value type %u", h->path,
                       (int)XL_MIN(e->key.size, (size_t)80), e->key.text, type);
    }
    e->type = (value_type)type;
    if (type == V_ARRAY) return skip_array(h, &e->key);
    if (type == V_STRING) {
        e->text = take_string(&h->c);
    } else {
        e->value = take(&h->c, value_bytes[type]);
    }
    if (h->c.failed) return truncated(h);
    if (type == V_BOOL && *e->value > 1) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: key '%.*s': %u is neither true nor false", h->path,
                       (int)XL_MIN(e->key.size, (size_t)80), e->key.text, *e->value);
    }
    return XLSTM_OK;
}

static int compare_span(const span *a, const span *b)
{
    int order = memcmp(a->text, b->text, XL_MIN(a->size, b->size));
    return order != 0 ? order : (a->size > b->size) - (a->size < b->size);
}

static int compare_entry(const void *a, const void *b)
{
    return compare_span(&((const entry *)a)->key, &((const entry *)b)->key);
}

static const entry *find(const header *h, const char *key)
{
    const entry want = {.key = {key, strlen(key)}};
    if (h->n_entries == 0) return NULL;
    return bsearch(&want, h->entries, h->n_entries, sizeof(want), compare_entry);
}

static int wrong_type(const header *h, const char *key, const char *expected)
{
    return xl_fail(h->err, XLSTM_E_FORMAT, "%s: key '%s': expected %s", h->path, key, expected);
}

/* An integer of any width; absent leaves *out. */
static int get_int(int64_t *out, const header *h, const char *key)
{
    const entry *e = find(h, key);
    if (e == NULL) return XLSTM_OK;
    uint64_t x = 0;
    if (e->type > V_I64 || value_bytes[e->type] == 0 || e->type == V_F32 || e->type == V_BOOL) {
        return wrong_type(h, key, "an integer");
    }
    memcpy(&x, e->value, value_bytes[e->type]);
    unsigned unused = 64 - 8u * value_bytes[e->type];
    bool is_signed = e->type == V_I8 || e->type == V_I16 || e->type == V_I32 || e->type == V_I64;
    *out = is_signed ? (int64_t)(x << unused) >> unused : (int64_t)x;
    return e->type == V_U64 && x > INT64_MAX ? wrong_type(h, key, "an integer below 2^63") : XLSTM_OK;
}

/* A copy of a string without NUL characters; absent gives NULL. */
static int get_text(char **out, const header *h, const char *key)
{
    const entry *e = find(h, key);
    *out = NULL;
    if (e == NULL) return XLSTM_OK;
    if (e->type != V_STRING || memchr(e->text.text, 0, e->text.size) != NULL) {
        return wrong_type(h, key, "a string without NUL characters");
    }
    *out = xl_grow(NULL, e->text.size + 1, h->err);
    if (*out == NULL) return XLSTM_E_MEMORY;
    memcpy(*out, e->text.text, e->text.size);
    (*out)[e->text.size] = '\0';
    return XLSTM_OK;
}

/* Magic, counts and keys. The cursor is left at the first tensor. */
static int read_header(header *h)
{
    cursor *c = &h->c;
    const uint8_t *magic = take(c, 4);
    uint32_t version = take_u32(c);
    h->n_tensors = take_u64(c);
    uint64_t n = take_u64(c);
    if (magic == NULL || memcmp(magic, "GGUF", 4) != 0) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: does not begin with \"GGUF\"", h->path);
    }
    if (c->failed) return truncated(h);
    if (version != VERSION) {
        bool swapped = __builtin_bswap32(version) == VERSION;
        return xl_fail(h->err, XLSTM_E_UNSUPPORTED, "%s: GGUF version %u%s, expected little-endian version %d", h->path,
                       swapped ? VERSION : version, swapped ? " in big-endian order" : "", VERSION);
    }
    /* A key takes at least 14 bytes and a tensor at least 33: what the file cannot hold is not allocated. */
    if (n > (c->size - c->at) / 14 || h->n_tensors > (c->size - c->at) / 33) return truncated(h);
    if (n > MAX_KEYS || h->n_tensors > XL_MAX_TENSORS) {
        return xl_fail(h->err, XLSTM_E_UNSUPPORTED, "%s: %llu keys and %llu tensors are more than any model has", h->path,
                       (unsigned long long)n, (unsigned long long)h->n_tensors);
    }
    h->entries = xl_calloc((size_t)n, sizeof(*h->entries), h->err);
    if (h->entries == NULL) return XLSTM_E_MEMORY;
    for (; h->n_entries < n; h->n_entries++) {
        int result = read_entry(h, &h->entries[h->n_entries]);
        if (result != XLSTM_OK) return result;
    }
    if (n > 0) qsort(h->entries, (size_t)n, sizeof(*h->entries), compare_entry);
    for (size_t i = 1; i < n; i++) {
        if (compare_entry(&h->entries[i - 1], &h->entries[i]) == 0) {
            return xl_fail(h->err, XLSTM_E_FORMAT, "%s: key '%.*s' occurs twice", h->path,
                           (int)XL_MIN(h->entries[i].key.size, (size_t)80), h->entries[i].key.text);
        }
    }
    int64_t alignment = DEFAULT_ALIGNMENT;
    int result = get_int(&alignment, h, "general.alignment");
    if (result != XLSTM_OK) return result;
    if (alignment < 8 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)) != 0) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: general.alignment: expected a power of two from 8 to %d, found %lld",
                       h->path, MAX_ALIGNMENT, (long long)alignment);
    }
    h->alignment = (uint64_t)alignment;
    return XLSTM_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Reads one tensor's description; its offset still counts from the start of the data. */
static int read_tensor(xl_weights *w, header *h, uint32_t file)
{
    cursor *c = &h->c;
    span name = take_string(c);
    xl_tensor t = {.rank = take_u32(c), .file = file};
    if (c->failed) return truncated(h);
    int shown = (int)XL_MIN(name.size, (size_t)200);
    if (name.size == 0 || name.size > XL_MAX_NAME || memchr(name.text, 0, name.size) != NULL) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: a tensor name of %zu bytes or with a NUL character", h->path,
                       name.size);
    }
    if (t.rank > XL_COUNT(t.shape)) {
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: tensor '%.*s' has %u dimensions, expected at most 4", h->path, shown,
                       name.text, t.rank);
    }
    for (uint32_t i = t.rank; i-- > 0;) t.shape[i] = take_u64(c);
    uint32_t type = take_u32(c);
    t.offset = take_u64(c);
    if (c->failed) return truncated(h);
    size_t k = 0;
    while (k < XL_COUNT(ggml_types) && ggml_types[k].number != type) k++;
    if (k == XL_COUNT(ggml_types)) {
        return xl_fail(h->err, XLSTM_E_UNSUPPORTED,
                       "%s: tensor '%.*s' has ggml type %u, expected F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q4_K or Q4_0",
                       h->path, shown, name.text, type);
    }
    t.type = ggml_types[k].name;
    t.dtype = ggml_types[k].dtype;
    /* Above: an element count that overflows. Below: rows that are no whole blocks. */
    uint64_t elements;
    size_t row_bytes;
    uint64_t row = t.rank > 0 ? t.shape[t.rank - 1] : 1;
    bool fits = xl_weights_elements(&elements, t.rank, t.shape) && xl_dtype_row_bytes(&row_bytes, t.dtype, row) &&
                xl_mul(&t.bytes, row_bytes, row > 0 ? elements / row : 0);
    if (!fits) {
        char shape[XL_SHAPE_TEXT];
        return xl_fail(h->err, XLSTM_E_FORMAT, "%s: tensor '%.*s': shape %s is impossible for type %s", h->path, shown,
                       name.text, xl_shape_text(shape, &t), t.type);
    }
    return xl_weights_add(w, name.text, name.size, &t, h->err);
}

static int read_tensors(xl_weights *w, header *h, uint32_t file)
{
    size_t first = w->count;
    for (uint64_t i = 0; i < h->n_tensors; i++) {
        int result = read_tensor(w, h, file);
        if (result != XLSTM_OK) return result;
    }
    uint64_t data = xl_round_up(h->c.at, h->alignment);
    for (size_t i = first; i < w->count; i++) {
        xl_tensor *t = &w->tensors[i];
        if (t->offset % h->alignment != 0) {
            return xl_fail(h->err, XLSTM_E_FORMAT, "%s: tensor '%s': offset %llu is no multiple of the alignment %llu",
                           h->path, t->name, (unsigned long long)t->offset, (unsigned long long)h->alignment);
        }
        if (data > h->c.size || t->offset > h->c.size - data || t->bytes > h->c.size - data - t->offset) {
            return xl_fail(h->err, XLSTM_E_FORMAT,
                           "%s: tensor '%s': %zu bytes at offset %llu reach past the file's end: it is truncated or its "
                           "header lies",
                           h->path, t->name, t->bytes, (unsigned long long)t->offset);
        }
        t->offset += data;
    }
    return XLSTM_OK;
}

/* ---- settings --------------------------------------------------------------------------------------------------- */

typedef enum setting_kind { INTEGER, NUMBER, CAP, SWITCH, TEXT } setting_kind;

static const struct {
    const char *key, *name; /* in the file and in config.json */
    setting_kind kind;
    bool required;
} settings[] = {
    {"xlstm.block_count", "num_blocks", INTEGER, true},
    {"xlstm.embedding_length", "embedding_dim", INTEGER, true},
    {"xlstm.head_count", "num_heads", INTEGER, true},
    {"xlstm.key_length", "head_qk", INTEGER, false},
    {"xlstm.value_length", "head_v", INTEGER, false},
    {"xlstm.feed_forward_length", "ffn_dim", INTEGER, false},
    {"xlstm.vocab_size", "vocab_size", INTEGER, false},
    {"xlstm.chunk_size", "chunk_size", INTEGER, false},
    {"xlstm.norm_epsilon", "norm_eps", NUMBER, true},
    {"xlstm.cell_epsilon", "eps", NUMBER, true},
    {"xlstm.gate_soft_cap", "gate_soft_cap", CAP, true},
    {"xlstm.logit_soft_cap", "output_logit_soft_cap", CAP, true},
    {"xlstm.add_out_norm", "add_out_norm", SWITCH, false},
    {"xlstm.torch_dtype", "dtype", TEXT, false},
    {"xlstm.autocast_kernel_dtype", "autocast_kernel_dtype", TEXT, false},
    {"xlstm.inference_state_dtype", "inference_state_dtype", TEXT, false},
    {"xlstm.norm_reduction_force_float32", "norm_reduction_force_float32", SWITCH, false},
    {"xlstm.force_bos_token_insert", "force_bos_token_insert", SWITCH, false},
    {"tokenizer.ggml.bos_token_id", "bos_token_id", INTEGER, false},
    {"tokenizer.ggml.eos_token_id", "eos_token_id", INTEGER, false},
    {"tokenizer.ggml.padding_token_id", "pad_token_id", INTEGER, false},
};

/* The JSON of one value; NULL without failure when memory has run out. */
static int setting_value(json_t **out, const header *h, const char *key, setting_kind kind, const entry *e)
{
    *out = NULL;
    int result;
    int64_t integer = 0;
    double number = 0;
    float single;
    switch (kind) {
    case INTEGER:
        result = get_int(&integer, h, key);
        if (result == XLSTM_OK) *out = json_integer(integer);
        return result;
    case NUMBER:
    case CAP:
        if (e->type == V_F32) {
            memcpy(&single, e->value, sizeof(single));
            number = (double)single;
        } else if (e->type == V_F64) {
            memcpy(&number, e->value, sizeof(number));
        } else {
            break;
        }
        if (!(number >= 0 && number < 1e30)) break;
        *out = kind == CAP && number == 0 ? json_null() : json_real(number);
        return XLSTM_OK;
    case SWITCH:
        if (e->type != V_BOOL) break;
        *out = json_boolean(*e->value == 1);
        return XLSTM_OK;
    case TEXT:
        if (e->type != V_STRING || !xl_json_utf8(e->text.text, e->text.size)) break;
        *out = json_stringn(e->text.text, e->text.size);
        return XLSTM_OK;
    }
    static const char *const expected[] = {"an integer", "a number from 0", "a number from 0", "a boolean",
                                           "a UTF-8 string"};
    return wrong_type(h, key, expected[kind]);
}

static int make_config(xl_weights *w, const header *h)
{
    json_t *root = json_object(), *value;
    int result = xl_json_set(root, "model_type", json_string("xlstm"), h->err);
    for (size_t i = 0; i < XL_COUNT(settings) && result == XLSTM_OK; i++) {
        const entry *e = find(h, settings[i].key);
        if (e == NULL && settings[i].required) {
            result = xl_fail(h->err, XLSTM_E_FORMAT, "%s: key '%s' is missing", h->path, settings[i].key);
        } else if (e != NULL) {
            result = setting_value(&value, h, settings[i].key, settings[i].kind, e);
            if (result == XLSTM_OK) result = xl_json_set(root, settings[i].name, value, h->err);
        }
    }
    if (result == XLSTM_OK) {
        w->config = xl_json_dump(root, JSON_INDENT(2), h->err);
        if (w->config == NULL) result = XLSTM_E_MEMORY;
    }
    json_decref(root);
    return result;
}

/* Puts the chat template of its own key into the text of a tokenizer_config.json. */
static int add_template(char **config, const header *h, const char *template)
{
    const char *text = *config != NULL ? *config : "{}";
    json_t *root;
    int result = xl_json_parse(&root, text, strlen(text), "xlstm.tokenizer_config", false, NULL);
    if (result == XLSTM_E_FORMAT) return XLSTM_OK; /* what is wrong with it, the tokenizer says */
    if (root == NULL) return xl_fail(h->err, XLSTM_E_MEMORY, "%s: out of memory while reading the tokenizer", h->path);
    if (!xl_json_utf8(template, strlen(template))) {
        result = wrong_type(h, "tokenizer.chat_template", "a UTF-8 string");
    } else {
        result = xl_json_set(root, "chat_template", json_string(template), h->err);
    }
    char *whole = result == XLSTM_OK ? xl_json_dump(root, 0, h->err) : NULL;
    if (whole != NULL) {
        xl_release(*config);
        *config = whole;
    } else if (result == XLSTM_OK) {
        result = XLSTM_E_MEMORY;
    }
    json_decref(root);
    return result;
}

static int make_tokenizer(xl_weights *w, const header *h)
{
    char *template = NULL;
    int result = get_text(&w->tokenizer, h, "tokenizer.huggingface.json");
    if (result == XLSTM_OK) result = get_text(&w->tokenizer_config, h, "xlstm.tokenizer_config");
    if (result == XLSTM_OK) result = get_text(&template, h, "tokenizer.chat_template");
    if (result == XLSTM_OK && template != NULL) result = add_template(&w->tokenizer_config, h, template);
    xl_release(template);
    return result;
}

static int expect_text(const header *h, const char *key, const char *expected)
{
    char *text;
    int result = get_text(&text, h, key);
    if (result == XLSTM_OK && (text == NULL || strcmp(text, expected) != 0)) {
        result = xl_fail(h->err, XLSTM_E_UNSUPPORTED, "%s: %s: expected '%s', found '%.80s'", h->path, key, expected,
                         text != NULL ? text : "nothing");
    }
    xl_release(text);
    return result;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

typedef struct split {
    int64_t number, count, tensors; /* -1, 1, -1 without the keys */
} split;

static int read_settings(xl_weights *w, const header *h)
{
    int result = expect_text(h, "general.architecture", "xlstm");
    if (result == XLSTM_OK) result = make_config(w, h);
    if (result == XLSTM_OK) result = make_tokenizer(w, h);
    return result == XLSTM_OK ? get_text(&w->generation_config, h, "xlstm.generation_config") : result;
}

/* Maps one file and reads its tensors. `type`: what general.type must be, for files that are no models. A model's first
 * file has the settings. */
static int read_file(xl_weights *w, const char *path, bool settings_too, const char *type, split *s, xlstm_error *err)
{
    int result = xl_weights_add_file(w, path, err);
    if (result != XLSTM_OK) return result;
    uint32_t file = w->n_files - 1;
    const xl_map *map = &w->files[file].map;
    header h = {.path = w->files[file].name, .c = {.bytes = map->bytes, .size = map->size}, .err = err};
    *s = (split){-1, 1, -1};
    result = read_header(&h);
    if (result == XLSTM_OK) result = get_int(&s->number, &h, "split.no");
    if (result == XLSTM_OK) result = get_int(&s->count, &h, "split.count");
    if (result == XLSTM_OK) result = get_int(&s->tensors, &h, "split.tensors.count");
    if (result == XLSTM_OK && type != NULL) result = expect_text(&h, "general.type", type);
    if (result == XLSTM_OK && settings_too) result = read_settings(w, &h);
    if (result == XLSTM_OK) result = read_tensors(w, &h, file);
    xl_release(h.entries);
    return result;
}

size_t xl_gguf_split_name(const char *path, unsigned *number, unsigned *count)
{
    size_t n = strlen(path), tail = strlen("-00001-of-00003.gguf");
    int length = 0;
    if (n <= tail || sscanf(path + n - tail, "-%5u-of-%5u.gguf%n", number, count, &length) != 2) return 0;
    return length == (int)tail ? n - tail : 0;
}

static int read_splits(xl_weights *w, const char *path, size_t stem, unsigned count, xlstm_error *err)
{
    int result = XLSTM_OK;
    split first = {0};
    if (count == 0 || count > MAX_SPLITS) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: expected 1 .. %d files", path, MAX_SPLITS);
    }
    for (unsigned i = 0; i < count && result == XLSTM_OK; i++) {
        char *name = xl_printf(err, "%.*s-%05u-of-%05u.gguf", (int)stem, path, i + 1, count);
        split s;
        if (name == NULL) return XLSTM_E_MEMORY;
        result = read_file(w, name, i == 0, NULL, i == 0 ? &first : &s, err);
        if (i == 0) s = first;
        if (result == XLSTM_OK && (s.number != (int64_t)i || s.count != (int64_t)count)) {
            result = xl_fail(err, XLSTM_E_FORMAT, "%s: expected split.no %u of split.count %u, found %lld of %lld", name,
                             i, count, (long long)s.number, (long long)s.count);
        }
        xl_release(name);
    }
    if (result == XLSTM_OK && first.tensors >= 0 && (uint64_t)first.tensors != w->count) {
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: split.tensors.count is %lld, but the files hold %zu tensors", path,
                         (long long)first.tensors, w->count);
    }
    return result;
}

int xl_gguf_open(xl_weights *w, const char *path, xlstm_error *err)
{
    unsigned number, count;
    split s;
    snprintf(w->format, sizeof(w->format), "gguf");
    size_t stem = xl_gguf_split_name(path, &number, &count);
    if (stem > 0) return read_splits(w, path, stem, count, err);
    int result = read_file(w, path, true, NULL, &s, err);
    if (result == XLSTM_OK && s.count > 1) {
        result = xl_fail(err, XLSTM_E_FORMAT,
                         "%s: one of %lld files of a split model; they are found by names like model-00001-of-%05lld.gguf",
                         path, (long long)s.count, (long long)s.count);
    }
    return result;
}

int xl_gguf_open_typed(xl_weights *w, const char *path, const char *type, xlstm_error *err)
{
    split s;
    snprintf(w->format, sizeof(w->format), "gguf");
    return read_file(w, path, false, type, &s, err);
}
