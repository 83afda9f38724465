/*
 * tokenizer_read.c — tokenizer.json and tokenizer_config.json into a struct xlstm_tokenizer. Files are untrusted: every
 * member is checked for type and range, ids are bounded, and what this build cannot do exactly is refused by name.
 */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { NESTING = 8 }; /* Sequence inside Sequence */

static int wrong(xlstm_error *err, const char *where, const char *key, const char *expected, const json_t *found)
{
    return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"%s\": expected %s, found %s", where, key, expected,
                   xl_json_type(found));
}

/* An id-valued JSON value below the limit. */
static int read_id(uint32_t *out, const json_t *value, const char *where, const char *what, xlstm_error *err)
{
    *out = 0;
    if (!json_is_integer(value)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: id of \"%.80s\": expected an integer, found %s", where, what,
                       xl_json_type(value));
    }
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= (json_int_t)XL_TOKEN_ID_LIMIT) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: id of \"%.80s\": expected 0 .. %u, found %lld", where, what,
                       XL_TOKEN_ID_LIMIT - 1, (long long)id);
    }
    *out = (uint32_t)id;
    return XLSTM_OK;
}

/* A member that must be a string, NUL included in its length. */
static int read_string(const char **out, size_t *n, const json_t *object, const char *key, const char *where,
                       xlstm_error *err)
{
    const json_t *value = json_object_get(object, key);
    *out = "";
    *n = 0;
    if (!json_is_string(value)) return wrong(err, where, key, "a string", value);
    *out = json_string_value(value);
    *n = json_string_length(value);
    return XLSTM_OK;
}

static int copy_text(char **out, size_t *size, const char *s, size_t n, xlstm_error *err)
{
    *out = xl_alloc(n + 1, err);
    if (*out == NULL) return XLSTM_E_MEMORY;
    memcpy(*out, s, n);
    (*out)[n] = '\0';
    *size = n;
    return XLSTM_OK;
}

/* ---- parts that normalisers, pre-tokenizers and decoders share -------------------------------------------------- */

/* {"String": "..."} or {"Regex": "..."} */
static int read_pattern(xl_pattern *out, const json_t *object, const char *where, xlstm_error *err)
{
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *text = json_object_get(pattern, "String"), *regex = json_object_get(pattern, "Regex");
    if (json_is_string(text)) return xl_pattern_literal(out, json_string_value(text), json_string_length(text), err);
    if (json_is_string(regex)) {
        return xl_pattern_regex(out, json_string_value(regex), json_string_length(regex), where, err);
    }
    return wrong(err, where, "pattern", "{\"String\": ...} or {\"Regex\": ...}", pattern);
}

static int read_replace(xl_step *out, const json_t *object, const char *where, xlstm_error *err)
{
    const char *text;
    size_t n;
    out->kind = XL_STEP_REPLACE;
    int status = read_pattern(&out->pattern, object, where, err);
    if (status == XLSTM_OK) status = read_string(&text, &n, object, "content", where, err);
    return status == XLSTM_OK ? copy_text(&out->text, &out->text_size, text, n, err) : status;
}

static int read_byte_level(xl_step *out, const json_t *object, const char *where, xlstm_error *err)
{
    out->kind = XL_STEP_BYTE_LEVEL;
    out->pattern.kind = XL_PATTERN_GPT2;
    out->prefix = out->use_pattern = true;
    int status = xl_json_bool(&out->prefix, object, "add_prefix_space", where, err);
    return status == XLSTM_OK ? xl_json_bool(&out->use_pattern, object, "use_regex", where, err) : status;
}

static int read_metaspace(xl_step *out, const json_t *object, const char *where, xlstm_error *err)
{
    out->kind = XL_STEP_METASPACE;
    const char *mark, *scheme = "always";
    size_t n;
    int status = read_string(&mark, &n, object, "replacement", where, err);
    if (status != XLSTM_OK) return status;
    const uint8_t *p = (const uint8_t *)mark;
    if (n > 0) xl_utf8_next(&p);
    if (n == 0 || (const char *)p != mark + n) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"replacement\": expected one character", where);
    }
    bool prefix = true;
    out->use_pattern = true;
    status = xl_pattern_literal(&out->pattern, mark, n, err);
    if (status == XLSTM_OK) status = xl_json_text(&scheme, object, "prepend_scheme", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&prefix, object, "add_prefix_space", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&out->use_pattern, object, "split", where, err);
    if (status != XLSTM_OK) return status;
    out->prefix_first = strcmp(scheme, "first") == 0;
    out->prefix = out->prefix_first || strcmp(scheme, "always") == 0;
    if (!out->prefix && strcmp(scheme, "never") != 0) {
        return xl_fail(err, XLSTM_E_FORMAT,
                       "%s: field \"prepend_scheme\": expected always, first or never, found \"%s\"", where, scheme);
    }
    if (!prefix) out->prefix = out->prefix_first = false;
    return XLSTM_OK;
}

/* Walks the component `object` and, inside Sequences, its members in order, into at most XL_STEPS steps. */
typedef int (*read_step_fn)(xl_step *out, const json_t *object, const char *type, const char *where, xlstm_error *err);

static int read_steps(xl_step *steps, uint32_t *n, const json_t *object, const char *list_key, read_step_fn read_step,
                      const char *where, int depth, xlstm_error *err)
{
    if (object == NULL || json_is_null(object)) return XLSTM_OK;
    if (!json_is_object(object)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: expected an object or null, found %s", where, xl_json_type(object));
    }
    const char *type;
    size_t type_size;
    int status = read_string(&type, &type_size, object, "type", where, err);
    if (status != XLSTM_OK) return status;
    if (strcmp(type, "Sequence") != 0) {
        if (*n == XL_STEPS) {
            return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: expected at most %u components", where, XL_STEPS);
        }
        return read_step(&steps[(*n)++], object, type, where, err);
    }
    const json_t *list = json_object_get(object, list_key);
    if (!json_is_array(list)) return wrong(err, where, list_key, "an array", list);
    if (depth == NESTING) return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: Sequences are nested too deeply", where);
    for (size_t i = 0; i < json_array_size(list) && status == XLSTM_OK; i++) {
        char inner[300];
        snprintf(inner, sizeof inner, "%.200s.%s[%zu]", where, list_key, i);
        status = read_steps(steps, n, json_array_get(list, i), list_key, read_step, inner, depth + 1, err);
    }
    return status;
}

/* ---- normaliser ------------------------------------------------------------------------------------------------- */

static int read_normalizer(xl_step *out, const json_t *object, const char *type, const char *where, xlstm_error *err)
{
    static const char *const forms[] = {[XL_NFC] = "NFC", [XL_NFD] = "NFD", [XL_NFKC] = "NFKC", [XL_NFKD] = "NFKD"};
    for (size_t i = 0; i < XL_COUNT(forms); i++) {
        if (strcmp(type, forms[i]) == 0) {
            out->kind = XL_STEP_FORM;
            out->form = (xl_form)i;
            return XLSTM_OK;
        }
    }
    if (strcmp(type, "Replace") == 0) return read_replace(out, object, where, err);
    if (strcmp(type, "Lowercase") == 0) {
        out->kind = XL_STEP_LOWER;
        return XLSTM_OK;
    }
    if (strcmp(type, "Prepend") == 0) {
        const char *text;
        size_t n;
        out->kind = XL_STEP_PREPEND;
        int status = read_string(&text, &n, object, "prepend", where, err);
        return status == XLSTM_OK ? copy_text(&out->text, &out->text_size, text, n, err) : status;
    }
    if (strcmp(type, "Strip") == 0) {
        out->kind = XL_STEP_STRIP_SPACE;
        out->left = out->right = true;
        int status = xl_json_bool(&out->left, object, "strip_left", where, err);
        return status == XLSTM_OK ? xl_json_bool(&out->right, object, "strip_right", where, err) : status;
    }
    return xl_fail(
        err, XLSTM_E_UNSUPPORTED,
        "%s: normalizer \"%.60s\" is not supported; known are NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, "
        "Replace and Sequence",
        where, type);
}

/* ---- pre-tokenizer ---------------------------------------------------------------------------------------------- */

static int read_behavior(xl_behavior *out, const json_t *object, const char *where, xlstm_error *err)
{
    static const struct {
        const char *name;
        xl_behavior behavior;
    } names[] = {{"Removed", XL_REMOVED},
                 {"Isolated", XL_ISOLATED},
                 {"MergedWithPrevious", XL_MERGED_WITH_PREVIOUS},
                 {"MergedWithNext", XL_MERGED_WITH_NEXT},
                 {"Contiguous", XL_CONTIGUOUS}};
    const char *name = NULL;
    int status = xl_json_text(&name, object, "behavior", where, err);
    if (status != XLSTM_OK || name == NULL) return status;
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].behavior;
            return XLSTM_OK;
        }
    }
    return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"behavior\": \"%.60s\" is none of the five behaviours", where,
                   name);
}

static int read_splitter(xl_step *out, const json_t *object, const char *type, const char *where, xlstm_error *err)
{
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(out, object, where, err);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(out, object, where, err);
    out->kind = XL_STEP_SPLIT;
    out->behavior = XL_ISOLATED;
    int status;
    if (strcmp(type, "Split") == 0) {
        if ((status = read_pattern(&out->pattern, object, where, err)) != XLSTM_OK) return status;
        if ((status = read_behavior(&out->behavior, object, where, err)) != XLSTM_OK) return status;
        return xl_json_bool(&out->invert, object, "invert", where, err);
    }
    out->pattern.kind = XL_PATTERN_CLASS;
    if (strcmp(type, "Digits") == 0) {
        bool individual = false;
        status = xl_json_bool(&individual, object, "individual_digits", where, err);
        out->pattern.class_mask = XL_NUMERIC;
        if (!individual) out->behavior = XL_CONTIGUOUS;
        return status;
    }
    if (strcmp(type, "Punctuation") == 0) {
        out->pattern.class_mask = XL_PUNCT;
        return read_behavior(&out->behavior, object, where, err);
    }
    out->behavior = XL_REMOVED;
    if (strcmp(type, "WhitespaceSplit") == 0) {
        out->pattern.class_mask = XL_SPACE;
        return XLSTM_OK;
    }
    if (strcmp(type, "Whitespace") == 0) {
        out->pattern.kind = XL_PATTERN_WORDS;
        out->invert = true;
        return XLSTM_OK;
    }
    return xl_fail(err, XLSTM_E_UNSUPPORTED,
                   "%s: pre-tokenizer \"%.60s\" is not supported; known are ByteLevel, Split, Digits, Punctuation, "
                   "Metaspace, Whitespace, WhitespaceSplit and Sequence",
                   where, type);
}

/* ---- decoder ---------------------------------------------------------------------------------------------------- */

static int read_decoder(xl_step *out, const json_t *object, const char *type, const char *where, xlstm_error *err)
{
    if (strcmp(type, "ByteLevel") == 0) {
        out->kind = XL_STEP_BYTE_LEVEL;
        return XLSTM_OK;
    }
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(out, object, where, err);
    if (strcmp(type, "Replace") == 0) return read_replace(out, object, where, err);
    if (strcmp(type, "ByteFallback") == 0 || strcmp(type, "Fuse") == 0) {
        out->kind = type[0] == 'F' ? XL_STEP_FUSE : XL_STEP_BYTE_FALLBACK;
        return XLSTM_OK;
    }
    if (strcmp(type, "Strip") == 0) {
        const char *text;
        size_t n;
        int64_t start = 0, stop = 0;
        out->kind = XL_STEP_STRIP;
        int status = read_string(&text, &n, object, "content", where, err);
        if (status == XLSTM_OK) status = xl_json_int(&start, object, "start", 0, INT32_MAX, where, err);
        if (status == XLSTM_OK) status = xl_json_int(&stop, object, "stop", 0, INT32_MAX, where, err);
        if (status == XLSTM_OK && n == 0) status = wrong(err, where, "content", "one character", NULL);
        out->start = (uint32_t)start;
        out->stop = (uint32_t)stop;
        return status == XLSTM_OK ? copy_text(&out->text, &out->text_size, text, n, err) : status;
    }
    return xl_fail(
        err, XLSTM_E_UNSUPPORTED,
        "%s: decoder \"%.60s\" is not supported; known are ByteLevel, Metaspace, Replace, ByteFallback, Fuse, "
        "Strip and Sequence",
        where, type);
}

/* From where on there is only one token, that arrives in parts. */
static void mark_fused(xlstm_tokenizer *t)
{
    bool fused = false;
    for (uint32_t i = 0; i < t->n_decoders; i++) {
        t->decoders[i].fused = fused;
        if (t->decoders[i].kind == XL_STEP_FUSE || t->decoders[i].kind == XL_STEP_BYTE_LEVEL) fused = true;
    }
}

/* ---- post-processor --------------------------------------------------------------------------------------------- */

/* Puts n ids in front of (or behind) what is there. */
static int add_outer(int32_t **list, uint32_t *count, const int32_t *ids, uint32_t n, bool front, xlstm_error *err)
{
    if (n == 0) return XLSTM_OK;
    int32_t *grown = xl_grow(*list, (*count + (size_t)n) * sizeof *grown, err);
    if (grown == NULL) return XLSTM_E_MEMORY;
    if (front) memmove(grown + n, grown, *count * sizeof *grown);
    memcpy(front ? grown : grown + *count, ids, n * sizeof *ids);
    *list = grown;
    *count += n;
    return XLSTM_OK;
}

enum { TEMPLATE_MAX = 64 }; /* ids on one side */

static int known_id(const xlstm_tokenizer *t, uint32_t id, const char *where, xlstm_error *err)
{
    if (xl_names_get(&t->spelling, id) != NULL) return XLSTM_OK;
    return xl_fail(err, XLSTM_E_FORMAT, "%s: id %u is in neither the vocabulary nor the added tokens", where, id);
}

/* {"single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}], "special_tokens": {"<s>": {"ids": [1]}}} */
static int read_template(xlstm_tokenizer *t, const json_t *object, const char *where, xlstm_error *err)
{
    const json_t *single = json_object_get(object, "single"), *tokens = json_object_get(object, "special_tokens");
    if (!json_is_array(single)) return wrong(err, where, "single", "an array", single);
    int32_t side[2][TEMPLATE_MAX];
    uint32_t n[2] = {0, 0};
    bool behind = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const char *sequence = json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        const char *token = json_string_value(json_object_get(json_object_get(piece, "SpecialToken"), "id"));
        if (sequence != NULL && strcmp(sequence, "A") == 0 && !behind) {
            behind = true;
            continue;
        }
        const json_t *ids = token == NULL ? NULL : json_object_get(json_object_get(tokens, token), "ids");
        if (!json_is_array(ids)) {
            return xl_fail(err, XLSTM_E_FORMAT,
                           "%s: single[%zu]: expected a SpecialToken listed in special_tokens, or Sequence A once",
                           where, i);
        }
        for (size_t k = 0; k < json_array_size(ids); k++) {
            uint32_t id;
            int status = read_id(&id, json_array_get(ids, k), where, token, err);
            if (status == XLSTM_OK) status = known_id(t, id, where, err);
            if (status != XLSTM_OK) return status;
            if (n[behind] == TEMPLATE_MAX)
                return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: too many special tokens", where);
            side[behind][n[behind]++] = (int32_t)id;
        }
    }
    if (!behind) return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"single\": expected Sequence A in it", where);
    int status = add_outer(&t->prefix, &t->n_prefix, side[0], n[0], true, err);
    return status == XLSTM_OK ? add_outer(&t->suffix, &t->n_suffix, side[1], n[1], false, err) : status;
}

/* {"cls": ["<s>", 0], "sep": ["</s>", 2]} */
static int read_cls_sep(xlstm_tokenizer *t, const json_t *object, const char *where, xlstm_error *err)
{
    for (int side = 0; side < 2; side++) {
        const char *key = side == 0 ? "cls" : "sep";
        const json_t *pair = json_object_get(object, key);
        if (!json_is_array(pair) || json_array_size(pair) != 2) return wrong(err, where, key, "[token, id]", pair);
        uint32_t id;
        int status = read_id(&id, json_array_get(pair, 1), where, key, err);
        if (status == XLSTM_OK) status = known_id(t, id, where, err);
        if (status != XLSTM_OK) return status;
        int32_t one = (int32_t)id;
        status = side == 0 ? add_outer(&t->prefix, &t->n_prefix, &one, 1, true, err)
                           : add_outer(&t->suffix, &t->n_suffix, &one, 1, false, err);
        if (status != XLSTM_OK) return status;
    }
    return XLSTM_OK;
}

static int read_post(xlstm_tokenizer *t, const json_t *object, const char *where, int depth, xlstm_error *err)
{
    if (object == NULL || json_is_null(object)) return XLSTM_OK;
    const char *type;
    size_t n;
    if (!json_is_object(object)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: expected an object or null, found %s", where, xl_json_type(object));
    }
    int status = read_string(&type, &n, object, "type", where, err);
    if (status != XLSTM_OK) return status;
    if (strcmp(type, "ByteLevel") == 0) return XLSTM_OK; /* moves offsets only */
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(t, object, where, err);
    if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0) {
        return read_cls_sep(t, object, where, err);
    }
    if (strcmp(type, "Sequence") != 0) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED,
                       "%s: post-processor \"%.60s\" is not supported; known are ByteLevel, TemplateProcessing, "
                       "RobertaProcessing, BertProcessing and Sequence",
                       where, type);
    }
    const json_t *list = json_object_get(object, "processors");
    if (!json_is_array(list)) return wrong(err, where, "processors", "an array", list);
    if (depth == NESTING) return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: Sequences are nested too deeply", where);
    for (size_t i = 0; i < json_array_size(list) && status == XLSTM_OK; i++) {
        status = read_post(t, json_array_get(list, i), where, depth + 1, err);
    }
    return status;
}

/* ---- model ------------------------------------------------------------------------------------------------------ */

static int read_flags(xlstm_tokenizer *t, const json_t *model, const char *where, xlstm_error *err)
{
    static const char *const refused[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < XL_COUNT(refused); i++) {
        const char *text = "";
        int status = xl_json_text(&text, model, refused[i], where, err);
        if (status != XLSTM_OK) return status;
        if (text[0] != '\0') {
            return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: field \"%s\": \"%.40s\" is not supported; expected none",
                           where, refused[i], text);
        }
    }
    double dropout = 0;
    int status = xl_json_real(&dropout, model, "dropout", 0, 1, where, err);
    if (status == XLSTM_OK && dropout != 0) {
        status = xl_fail(err, XLSTM_E_UNSUPPORTED,
                         "%s: field \"dropout\": expected null or 0: ids must be reproducible", where);
    }
    if (status == XLSTM_OK) status = xl_json_bool(&t->fuse_unk, model, "fuse_unk", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&t->byte_fallback, model, "byte_fallback", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&t->ignore_merges, model, "ignore_merges", where, err);
    return status;
}

/* Vocabulary, and room for the added tokens, whose ids were checked. */
static int read_vocab(xlstm_tokenizer *t, const json_t *vocab, const json_t *added, const char *where, xlstm_error *err)
{
    uint32_t n_ids = 0, id;
    const char *key;
    json_t *value;
    int status;
    json_object_foreach((json_t *)vocab, key, value)
    {
        if ((status = read_id(&id, value, where, key, err)) != XLSTM_OK) return status;
        n_ids = XL_MAX(n_ids, id + 1);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        const char *text = json_string_value(json_object_get(token, "content"));
        status = read_id(&id, json_object_get(token, "id"), where, text == NULL ? "an added token" : text, err);
        if (status != XLSTM_OK) return status;
        n_ids = XL_MAX(n_ids, id + 1);
    }
    size_t n = json_object_size(vocab) + json_array_size(added);
    if ((status = xl_names_new(&t->spelling, n_ids, n, err)) != XLSTM_OK) return status;
    t->flags = xl_calloc((size_t)n_ids + 1, 1, err);
    t->whole = xl_calloc((size_t)n_ids + 1, sizeof *t->whole, err);
    if (t->flags == NULL || t->whole == NULL) return XLSTM_E_MEMORY;
    json_object_foreach((json_t *)vocab, key, value)
    {
        id = (uint32_t)json_integer_value(value);
        const char *other = xl_names_get(&t->spelling, id);
        if (other != NULL) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: vocab: id %u belongs to both \"%.60s\" and \"%.60s\"", where, id,
                           other, key);
        }
        status = xl_names_add(&t->spelling, id, key, strlen(key), err); /* the parser has refused duplicate keys */
        if (status != XLSTM_OK) return status;
        t->flags[id] = XL_TOKEN_MODEL;
    }
    return XLSTM_OK;
}

static int merge_token(uint32_t *id, const xlstm_tokenizer *t, const char *s, size_t n, size_t rank, const char *where,
                       xlstm_error *err)
{
    int32_t found = xl_names_find(&t->spelling, s, n);
    if (found < 0) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: merges[%zu]: token \"%.*s\" is not in vocab", where, rank,
                       (int)XL_MIN(n, (size_t)60), s);
    }
    *id = (uint32_t)found;
    return XLSTM_OK;
}

/* "left right" or ["left", "right"]; the rank is the place in the list. */
static int read_merges(xlstm_tokenizer *t, const json_t *merges, const char *where, xlstm_error *err)
{
    size_t n = json_array_size(merges);
    int status = xl_merges_new(&t->merges, n, err);
    xl_text both = {0};
    for (size_t rank = 0; rank < n && status == XLSTM_OK; rank++) {
        const json_t *merge = json_array_get(merges, rank);
        const char *side[2] = {NULL, NULL};
        size_t size[2] = {0, 0};
        if (json_is_array(merge) && json_array_size(merge) == 2) {
            for (size_t k = 0; k < 2; k++) {
                side[k] = json_string_value(json_array_get(merge, k));
                size[k] = json_string_length(json_array_get(merge, k));
            }
        } else if (json_is_string(merge)) {
            const char *s = json_string_value(merge), *end = s + json_string_length(merge);
            if (strncmp(s, "#version", 8) == 0) continue;
            const char *space = memchr(s, ' ', (size_t)(end - s));
            if (space != NULL && memchr(space + 1, ' ', (size_t)(end - space - 1)) == NULL) {
                side[0] = s;
                size[0] = (size_t)(space - s);
                side[1] = space + 1;
                size[1] = (size_t)(end - space - 1);
            }
        }
        if (side[0] == NULL || side[1] == NULL) {
            status =
                xl_fail(err, XLSTM_E_FORMAT, "%s: merges[%zu]: expected \"left right\" or [left, right]", where, rank);
            break;
        }
        uint32_t left = 0, right = 0, id = 0;
        both.size = 0;
        xl_text_add(&both, side[0], size[0]);
        xl_text_add(&both, side[1], size[1]);
        if (both.failed) status = xl_fail(err, XLSTM_E_MEMORY, "out of memory reading merges");
        if (status == XLSTM_OK) status = merge_token(&left, t, side[0], size[0], rank, where, err);
        if (status == XLSTM_OK) status = merge_token(&right, t, side[1], size[1], rank, where, err);
        if (status == XLSTM_OK) status = merge_token(&id, t, both.data, both.size, rank, where, err);
        if (status == XLSTM_OK) xl_merges_set(&t->merges, left, right, (uint32_t)rank, id);
    }
    xl_release(both.data);
    return status;
}

static int32_t find_model_token(const xlstm_tokenizer *t, const char *s, size_t n)
{
    int32_t id = xl_names_find(&t->spelling, s, n);
    return id >= 0 && (t->flags[id] & XL_TOKEN_MODEL) ? id : -1;
}

/* Characters that some token has in front of U+2581. */
static void find_glue(xlstm_tokenizer *t)
{
    static const char mark[] = "\xe2\x96\x81";
    t->cut_at_mark = find_model_token(t, mark, 3) >= 0;
    t->glue[t->n_glue++] = 0x2581;
    for (uint32_t id = 0; id < t->spelling.n_ids && t->cut_at_mark; id++) {
        const char *s = xl_names_get(&t->spelling, id);
        if (s == NULL) continue;
        const char *end = s + t->spelling.length[id];
        for (const char *at = s; (at = memmem(at, (size_t)(end - at), mark, 3)) != NULL; at += 3) {
            const uint8_t *p = (const uint8_t *)at;
            if (at == s) continue;
            uint32_t code = xl_utf8_previous(&p);
            uint32_t i = 0;
            while (i < t->n_glue && t->glue[i] != code) i++;
            if (i < t->n_glue) continue;
            if (i == XL_COUNT(t->glue)) {
                t->cut_at_mark = false;
                break;
            }
            t->glue[t->n_glue++] = code;
        }
    }
}

static int read_model(xlstm_tokenizer *t, const json_t *model, const json_t *added, const char *where, xlstm_error *err)
{
    if (!json_is_object(model)) return wrong(err, where, "model", "an object", model);
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    const char *type = merges != NULL ? "BPE" : "unnamed", *unk = NULL;
    int status = xl_json_text(&type, model, "type", where, err);
    if (status != XLSTM_OK) return status;
    if (strcmp(type, "BPE") != 0) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: type \"%.60s\" is not supported; expected BPE", where, type);
    }
    if (!json_is_object(vocab)) return wrong(err, where, "vocab", "an object", vocab);
    if (!json_is_array(merges)) return wrong(err, where, "merges", "an array", merges);
    status = read_flags(t, model, where, err);
    if (status == XLSTM_OK) status = read_vocab(t, vocab, added, where, err);
    if (status == XLSTM_OK) status = read_merges(t, merges, where, err);
    if (status == XLSTM_OK) status = xl_json_text(&unk, model, "unk_token", where, err);
    if (status != XLSTM_OK) return status;
    t->unk_id = -1;
    if (unk != NULL && unk[0] != '\0') {
        t->unk_id = find_model_token(t, unk, strlen(unk));
        if (t->unk_id < 0) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: field \"unk_token\": \"%.60s\" is not in vocab", where, unk);
        }
    }
    for (unsigned b = 0; b < 256; b++) {
        char text[8];
        t->byte_id[b] = find_model_token(t, text, xl_utf8_put(text, xl_byte_char((uint8_t)b)));
        t->fallback_id[b] = find_model_token(t, text, (size_t)snprintf(text, sizeof text, "<0x%02X>", b));
    }
    find_glue(t);
    return XLSTM_OK;
}

/* Model tokens by the bytes they stand for, so that a word need not be rewritten to be looked up. */
static int read_raw(xlstm_tokenizer *t, xlstm_error *err)
{
    if (t->n_splitters == 0 || t->splitters[t->n_splitters - 1].kind != XL_STEP_BYTE_LEVEL) return XLSTM_OK;
    size_t n = 0;
    for (uint32_t id = 0; id < t->spelling.n_ids; id++) n += (t->flags[id] & XL_TOKEN_MODEL) != 0;
    int status = xl_names_new(&t->raw, t->spelling.n_ids, n, err);
    xl_text bytes = {0};
    for (uint32_t id = 0; id < t->spelling.n_ids && status >= 0; id++) {
        if ((t->flags[id] & XL_TOKEN_MODEL) == 0) continue;
        bytes.size = 0;
        if (!xl_bytes_of(&bytes, xl_names_get(&t->spelling, id), t->spelling.length[id])) continue;
        if (bytes.failed) status = xl_fail(err, XLSTM_E_MEMORY, "out of memory reading the vocabulary");
        else status = xl_names_add(&t->raw, id, bytes.size ? bytes.data : "", bytes.size, err);
    }
    xl_release(bytes.data);
    return status < 0 ? status : XLSTM_OK;
}

/* ---- added tokens ----------------------------------------------------------------------------------------------- */

/* place[id]: 1 + index in t->added, 0: none. */
static int read_added_token(xlstm_tokenizer *t, const json_t *object, uint32_t *place, const char *where,
                            xlstm_error *err)
{
    if (!json_is_object(object)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: expected an object, found %s", where, xl_json_type(object));
    }
    const char *text;
    size_t n;
    xl_added a = {.normalized = true};
    int status = read_string(&text, &n, object, "content", where, err);
    if (status == XLSTM_OK) status = read_id(&a.id, json_object_get(object, "id"), where, text, err);
    if (status == XLSTM_OK) status = xl_json_bool(&a.special, object, "special", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&a.normalized, object, "normalized", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&a.lstrip, object, "lstrip", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&a.rstrip, object, "rstrip", where, err);
    if (status == XLSTM_OK) status = xl_json_bool(&a.single_word, object, "single_word", where, err);
    if (status != XLSTM_OK || n == 0) return status;
    if (n > XL_ADDED_TOKEN_LIMIT) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: expected a text of at most %u bytes, found %zu", where,
                       XL_ADDED_TOKEN_LIMIT, n);
    }
    int32_t known = xl_names_find(&t->spelling, text, n);
    const char *owner = xl_names_get(&t->spelling, a.id);
    if (known >= 0 && (uint32_t)known != a.id) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: \"%.60s\" has id %u here, but id %d before", where, text, a.id, known);
    }
    if (known < 0 && owner != NULL) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: id %u of \"%.60s\" already belongs to \"%.60s\"", where, a.id, text,
                       owner);
    }
    if (known < 0 && (status = xl_names_add(&t->spelling, a.id, text, n, err)) != XLSTM_OK) return status;
    t->flags[a.id] |= (uint8_t)(XL_TOKEN_ADDED | (a.special ? XL_TOKEN_SPECIAL : 0));
    if (place[a.id] == 0) place[a.id] = ++t->n_added;
    t->added[place[a.id] - 1] = a; /* a later entry for the same token replaces the earlier one */
    return XLSTM_OK;
}

static int by_id(const void *a, const void *b)
{
    uint32_t x = ((const xl_added *)a)->id, y = ((const xl_added *)b)->id;
    return (x > y) - (x < y);
}

const xl_added *xl_added_find(const xlstm_tokenizer *t, uint32_t id)
{
    const xl_added key = {.id = id};
    return t->n_added == 0 ? NULL : bsearch(&key, t->added, t->n_added, sizeof key, by_id);
}

static int read_added(xlstm_tokenizer *t, const json_t *list, const char *name, xlstm_error *err)
{
    size_t n = json_array_size(list);
    t->added = xl_calloc(n + 1, sizeof *t->added, err);
    uint32_t *place = xl_calloc((size_t)t->spelling.n_ids + 1, sizeof *place, err);
    int status = t->added == NULL || place == NULL ? XLSTM_E_MEMORY : XLSTM_OK;
    for (size_t i = 0; i < n && status == XLSTM_OK; i++) {
        char where[300];
        snprintf(where, sizeof where, "%.200s: added_tokens[%zu]", name, i);
        status = read_added_token(t, json_array_get(list, i), place, where, err);
    }
    if (status == XLSTM_OK && n > 1) qsort(t->added, t->n_added, sizeof *t->added, by_id);
    xl_release(place);
    return status;
}

/* Decoding starts from the normalised text, as encoding ended there. */
static int remember_shown(xlstm_tokenizer *t, xl_added *a, const char *normal, size_t n, xlstm_error *err)
{
    if (n == t->spelling.length[a->id] && memcmp(normal, xl_names_get(&t->spelling, a->id), n) == 0) return XLSTM_OK;
    t->flags[a->id] |= XL_TOKEN_SHOWN;
    return copy_text(&a->shown, &a->shown_size, normal, n, err);
}

/* The texts to look for: as they are, or as the normaliser leaves them. */
static int build_tries(xlstm_tokenizer *t, xlstm_error *err)
{
    xl_encoder e = {.t = t, .err = err};
    size_t total[2] = {0, 0};
    int status = XLSTM_OK;
    for (int pass = 0; pass < 2 && status == XLSTM_OK; pass++) {
        for (uint32_t i = 0; i < t->n_added && status == XLSTM_OK; i++) {
            bool normal = t->added[i].normalized;
            const char *s = xl_names_get(&t->spelling, t->added[i].id);
            size_t n = t->spelling.length[t->added[i].id];
            if (normal) status = xl_encoder_normalize(&e, &s, &n, s, n);
            if (status == XLSTM_OK && pass == 0) status = remember_shown(t, &t->added[i], s, n, err);
            if (status != XLSTM_OK) break;
            if (pass == 0) total[normal] += n;
            else xl_trie_add(normal ? &t->normal_trie : &t->raw_trie, s, n, (int32_t)i);
        }
        if (pass == 0 && status == XLSTM_OK) status = xl_trie_new(&t->raw_trie, total[0], err);
        if (pass == 0 && status == XLSTM_OK) status = xl_trie_new(&t->normal_trie, total[1], err);
    }
    xl_encoder_free(&e);
    return status;
}

/* ---- the files -------------------------------------------------------------------------------------------------- */

static int read_root(xlstm_tokenizer *t, const json_t *root, const char *name, xlstm_error *err)
{
    char where[5][240];
    static const char *const parts[] = {"model", "normalizer", "pre_tokenizer", "decoder", "post_processor"};
    for (size_t i = 0; i < XL_COUNT(parts); i++) snprintf(where[i], sizeof where[i], "%.200s: %s", name, parts[i]);
    const json_t *model = json_object_get(root, parts[0]), *added = json_object_get(root, "added_tokens");
    if (added != NULL && !json_is_null(added) && !json_is_array(added)) {
        return wrong(err, name, "added_tokens", "an array", added);
    }
    int status = read_model(t, model, added, where[0], err);
    if (status != XLSTM_OK) return status;
    status = read_steps(t->normalizers, &t->n_normalizers, json_object_get(root, parts[1]), "normalizers",
                        read_normalizer, where[1], 0, err);
    if (status != XLSTM_OK) return status;
    status = read_steps(t->splitters, &t->n_splitters, json_object_get(root, parts[2]), "pretokenizers", read_splitter,
                        where[2], 0, err);
    if (status != XLSTM_OK) return status;
    const json_t *decoder = json_object_get(root, parts[3]);
    status = read_steps(t->decoders, &t->n_decoders, decoder, "decoders", read_decoder, where[3], 0, err);
    if (status != XLSTM_OK) return status;
    if (decoder == NULL || json_is_null(decoder)) t->decoders[t->n_decoders++].kind = XL_STEP_JOIN;
    mark_fused(t);
    status = read_added(t, added, name, err);
    if (status == XLSTM_OK) status = build_tries(t, err);
    if (status == XLSTM_OK) status = read_raw(t, err);
    if (status == XLSTM_OK) status = read_post(t, json_object_get(root, parts[4]), where[4], 0, err);
    return status;
}

/* The token that ends a text, by the names it usually has. */
static int32_t usual_end(const xlstm_tokenizer *t)
{
    static const char *const names[] = {"<|endoftext|>", "</s>",       "<|end_of_text|>", "<eos>",
                                        "<|im_end|>",    "<|eot_id|>", "<|end|>",         "[EOS]"};
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        int32_t id = xl_names_find(&t->spelling, names[i], strlen(names[i]));
        if (id >= 0) return id;
    }
    return -1;
}

int xl_tokenizer_read(xlstm_tokenizer *t, const char *json, size_t size, const char *name, xlstm_error *err)
{
    json_t *root;
    int status = xl_json_parse(&root, json, size, name, true, err);
    if (status != XLSTM_OK) return status;
    status = read_root(t, root, name, err);
    json_decref(root);
    if (status != XLSTM_OK) return status;
    t->end_of_text = usual_end(t);
    t->bos = t->n_prefix > 0 ? t->prefix[0] : -1;
    t->adds_bos = t->n_prefix > 0 ? XLSTM_ON : XLSTM_AUTO;
    return XLSTM_OK;
}

/* A special token of tokenizer_config.json: "text", {"content": "text"}, or null. */
static int read_named_token(int32_t *id, const xlstm_tokenizer *t, const json_t *root, const char *key,
                            const char *name, xlstm_error *err)
{
    const json_t *value = json_object_get(root, key);
    if (value == NULL || json_is_null(value)) return XLSTM_OK;
    if (json_is_object(value)) value = json_object_get(value, "content");
    if (!json_is_string(value)) return wrong(err, name, key, "a token's text", value);
    int32_t found = xl_names_find(&t->spelling, json_string_value(value), json_string_length(value));
    if (found >= 0) *id = found;
    return XLSTM_OK;
}

/* A string, or a list of {"name", "template"} of which "default" counts. */
static int read_chat_template(xlstm_tokenizer *t, const json_t *value, const char *name, xlstm_error *err)
{
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        const char *called = json_string_value(json_object_get(entry, "name"));
        if (called != NULL && strcmp(called, "default") == 0) {
            return read_chat_template(t, json_object_get(entry, "template"), name, err);
        }
    }
    if (value == NULL || json_is_null(value) || json_is_array(value)) return XLSTM_OK;
    if (!json_is_string(value)) return wrong(err, name, "chat_template", "a string", value);
    xl_release(t->chat_template);
    t->chat_template = xl_strdup(json_string_value(value), err);
    return t->chat_template == NULL ? XLSTM_E_MEMORY : XLSTM_OK;
}

int xl_tokenizer_read_config(xlstm_tokenizer *t, const char *json, size_t size, const char *name, xlstm_error *err)
{
    json_t *root;
    int status = xl_json_parse(&root, json, size, name, false, err);
    if (status != XLSTM_OK) return status;
    int32_t end = -1;
    status = read_named_token(&t->bos, t, root, "bos_token", name, err);
    if (status == XLSTM_OK) status = read_named_token(&end, t, root, "eos_token", name, err);
    if (status == XLSTM_OK) status = read_chat_template(t, json_object_get(root, "chat_template"), name, err);
    const json_t *adds = json_object_get(root, "add_bos_token");
    if (status == XLSTM_OK && json_is_boolean(adds)) t->adds_bos = json_is_true(adds) ? XLSTM_ON : XLSTM_OFF;
    /* An eos_token that is plain vocabulary ("!") would end texts that have not ended. */
    if (status == XLSTM_OK && end >= 0 && (t->flags[end] & XL_TOKEN_ADDED)) t->end_of_text = end;
    json_decref(root);
    return status;
}
