/*
 * state_tensors.c — a state as a file of float32 tensors for other programs: safetensors, or NumPy's .npz (a ZIP archive of
 * stored, not deflated, .npy arrays). Reads both back; everything in such a file is checked before it is used.
 *
 *   facts      uint64 [5]             fingerprint, position, token hash, vocabulary size, state dtype (xlstm_dtype)
 *   block.I.C  float32 [NH][qk][v]    block.I.n  [NH][qk]    block.I.m  [NH]
 *   logits     float32 [vocabulary]   if the state has some
 */
#include "json.h"
#include "state.h"

#include <stdlib.h>
#include <strings.h>

enum { MAX_RANK = 3, FACTS = 5, JSON_LIMIT = 64 << 20 };

typedef enum element { E_F32, E_F64, E_U64, E_OTHER } element;

typedef struct tensor {
    char name[40];
    element type;
    uint32_t rank;
    size_t shape[MAX_RANK];
    size_t count;         /* elements */
    const uint8_t *bytes; /* reading: in the mapping, unaligned */
    uint64_t offset;      /* writing .npz: of its local header */
    uint32_t crc;
} tensor;

static size_t element_bytes(element type) { return type == E_F32 ? 4 : 8; }
static size_t tensor_bytes(const tensor *t) { return t->count * element_bytes(t->type); }

/* ---- what there is to write ------------------------------------------------------------------------------------- */

static tensor tensor_of(element type, uint32_t rank, size_t a, size_t b, size_t c)
{
    tensor t = {.type = type, .rank = rank, .shape = {a, b, c}, .count = a * (rank > 1 ? b : 1) * (rank > 2 ? c : 1)};
    return t;
}

/* Tensor i of a state: facts, the blocks' C, n, m, then the logits. */
static size_t tensor_count(const xlstm_state *s) { return 1 + 3 * (size_t)s->layout.num_blocks + (s->logits != NULL); }

static tensor describe(const xlstm_state *s, size_t i)
{
    const xl_state_layout *l = &s->layout;
    tensor t;
    if (i == 0) {
        t = tensor_of(E_U64, 1, FACTS, 0, 0);
        snprintf(t.name, sizeof(t.name), "facts");
    } else if (i > 3 * (size_t)l->num_blocks) {
        t = tensor_of(E_F32, 1, s->vocab_size, 0, 0);
        snprintf(t.name, sizeof(t.name), "logits");
    } else {
        size_t part = (i - 1) % 3;
        t = tensor_of(E_F32, 3 - (uint32_t)part, l->num_heads, l->head_qk, l->head_v);
        snprintf(t.name, sizeof(t.name), "block.%zu.%c", (i - 1) / 3, "Cnm"[part]);
    }
    return t;
}

/* Its values, in memory the caller gives: tensor_bytes(describe(s, i)). */
static int values_of(uint8_t *out, const xlstm_state *s, size_t i, xlstm_error *err)
{
    const xl_state_layout *l = &s->layout;
    if (i == 0) {
        const uint64_t facts[FACTS] = {s->fingerprint, s->position, s->token_hash, s->vocab_size,
                                       (uint64_t)l->dtype};
        memcpy(out, facts, sizeof(facts));
        return XLSTM_OK;
    }
    if (i > 3 * (size_t)l->num_blocks) {
        memcpy(out, s->logits, s->vocab_size * sizeof(float));
        return XLSTM_OK;
    }
    size_t part = (i - 1) % 3;
    size_t per_head = part == 0 ? (size_t)l->head_qk * l->head_v : part == 1 ? l->head_qk : 1;
    for (uint32_t h = 0; h < l->num_heads; h++) {
        float *to = (float *)(void *)out + h * per_head;
        int result = xlstm_state_read_head(s, (uint32_t)((i - 1) / 3), h, part == 0 ? to : NULL, part == 1 ? to : NULL,
                                           part == 2 ? to : NULL, err);
        if (result != XLSTM_OK) return result;
    }
    return XLSTM_OK;
}

/* ---- safetensors ------------------------------------------------------------------------------------------------ */

static int write_safetensors(xl_writer *w, const xlstm_state *s, uint8_t *values, xlstm_error *err)
{
    xl_text header = {0};
    size_t at = 0;
    for (size_t i = 0; i < tensor_count(s); i++) {
        tensor t = describe(s, i);
        xl_text_addf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i == 0 ? "{" : ",", t.name,
                     t.type == E_U64 ? "U64" : "F32");
        for (uint32_t r = 0; r < t.rank; r++) xl_text_addf(&header, "%s%zu", r > 0 ? "," : "", t.shape[r]);
        xl_text_addf(&header, "],\"data_offsets\":[%zu,%zu]}", at, at + tensor_bytes(&t));
        at += tensor_bytes(&t);
    }
    xl_text_add(&header, "}", 1);
    while (!header.failed && header.size % 8 != 0) xl_text_add(&header, " ", 1);
    size_t size = 0;
    char *text = xl_text_end(&header, &size, err);
    if (text == NULL) return XLSTM_E_MEMORY;
    uint64_t size64 = size;
    int result = xl_writer_put(w, &size64, sizeof(size64), err);
    if (result == XLSTM_OK) result = xl_writer_put(w, text, size, err);
    xl_release(text);
    for (size_t i = 0; result == XLSTM_OK && i < tensor_count(s); i++) {
        tensor t = describe(s, i);
        result = values_of(values, s, i, err);
        if (result == XLSTM_OK) result = xl_writer_put(w, values, tensor_bytes(&t), err);
    }
    return result;
}

static element element_of_name(const char *name)
{
    if (strcmp(name, "F32") == 0) return E_F32;
    if (strcmp(name, "F64") == 0) return E_F64;
    return strcmp(name, "U64") == 0 || strcmp(name, "I64") == 0 ? E_U64 : E_OTHER;
}

static int bad_tensor(xlstm_error *err, const char *file, const char *name, const char *what)
{
    return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor \"%.60s\": %s", file, name, what);
}

/* Completes a tensor whose name, type and shape are known from `size` bytes at `bytes`. */
static int set_bytes(tensor *t, const uint8_t *bytes, size_t size, const char *file, xlstm_error *err)
{
    size_t need = 1;
    bool fits = true;
    for (uint32_t r = 0; r < t->rank; r++) fits = fits && xl_mul(&need, need, t->shape[r]);
    t->count = need;
    fits = fits && xl_mul(&need, need, element_bytes(t->type));
    if (!fits || need != size) return bad_tensor(err, file, t->name, "its shape does not match its size in bytes");
    t->bytes = bytes;
    return XLSTM_OK;
}

/* Tensors this file knows nothing of are skipped: *known says which. */
static bool copy_name(tensor *t, const char *name, size_t n)
{
    if (n >= sizeof(t->name)) return false;
    memcpy(t->name, name, n);
    t->name[n] = '\0';
    return true;
}

static int read_safetensors_entry(tensor *t, const json_t *value, const uint8_t *data, size_t size, const char *file,
                                  xlstm_error *err)
{
    const char *type = NULL;
    int result = xl_json_text(&type, value, "dtype", file, err);
    if (result != XLSTM_OK) return result;
    const json_t *shape = json_object_get(value, "shape"), *range = json_object_get(value, "data_offsets");
    t->type = type != NULL ? element_of_name(type) : E_OTHER;
    if (t->type == E_OTHER) return bad_tensor(err, file, t->name, "expected dtype F32, F64 or U64");
    if (!json_is_array(shape) || json_array_size(shape) == 0 || json_array_size(shape) > MAX_RANK) {
        return bad_tensor(err, file, t->name, "expected 1 to 3 dimensions");
    }
    t->rank = (uint32_t)json_array_size(shape);
    for (uint32_t r = 0; r < t->rank; r++) {
        json_int_t n = json_integer_value(json_array_get(shape, r));
        if (n <= 0) return bad_tensor(err, file, t->name, "expected positive dimensions");
        t->shape[r] = (size_t)n;
    }
    json_int_t begin = json_integer_value(json_array_get(range, 0)), end = json_integer_value(json_array_get(range, 1));
    if (json_array_size(range) != 2 || begin < 0 || end < begin || (uint64_t)end > size) {
        return bad_tensor(err, file, t->name, "its data lies outside the file");
    }
    return set_bytes(t, data + begin, (size_t)(end - begin), file, err);
}

static int read_safetensors(tensor **out, size_t *n, const xl_map *map, const char *file, xlstm_error *err)
{
    uint64_t header = 0;
    if (map->size >= sizeof(header)) memcpy(&header, map->bytes, sizeof(header));
    if (map->size < sizeof(header) || header > map->size - sizeof(header) || header > JSON_LIMIT) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: truncated, or not a safetensors file", file);
    }
    const char *text = (const char *)map->bytes + sizeof(header);
    json_t *root;
    int result = xl_json_parse(&root, text, header, file, true, err);
    if (result != XLSTM_OK) return result;
    *out = xl_calloc(json_object_size(root) + 1, sizeof(tensor), err);
    if (*out == NULL) {
        result = XLSTM_E_MEMORY;
    } else {
        const char *key;
        json_t *value;
        json_object_foreach(root, key, value) {
            tensor *t = &(*out)[*n];
            if (result != XLSTM_OK || strcmp(key, "__metadata__") == 0 || !copy_name(t, key, strlen(key))) continue;
            result = read_safetensors_entry(t, value, map->bytes + sizeof(header) + header,
                                            map->size - sizeof(header) - header, file, err);
            ++*n;
        }
    }
    json_decref(root);
    return result;
}

/* ---- NumPy ------------------------------------------------------------------------------------------------------ */

static uint32_t crc32_of(const uint8_t *bytes, size_t n)
{
    uint32_t table[256], crc = 0xffffffffu;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = (c & 1) != 0 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[i] = c;
    }
    for (size_t i = 0; i < n; i++) crc = table[(crc ^ bytes[i]) & 0xff] ^ crc >> 8;
    return ~crc;
}

/* ZIP's little-endian numbers, put together byte by byte since nothing in an archive is aligned. */
static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8; }
static uint32_t get32(const uint8_t *p) { return get16(p) | get16(p + 2) << 16; }
static size_t put16(uint8_t *p, uint32_t x)
{
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
    return 2;
}
static size_t put32(uint8_t *p, uint32_t x) { return put16(p, x) + put16(p + 2, x >> 16); }

enum { NPY_HEADER = 128, LOCAL_HEADER = 30, CENTRAL_HEADER = 46, END_RECORD = 22 };

static void make_npy_header(uint8_t out[NPY_HEADER], const tensor *t)
{
    static const uint8_t magic[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, NPY_HEADER - 10, 0};
    char shape[96] = "", text[160];
    for (uint32_t r = 0; r < t->rank; r++) {
        snprintf(shape + strlen(shape), sizeof(shape) - strlen(shape), "%zu,", t->shape[r]);
    }
    snprintf(text, sizeof(text), "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
             t->type == E_U64 ? "<u8" : "<f4", shape);
    memset(out, ' ', NPY_HEADER);
    memcpy(out, magic, sizeof(magic));
    memcpy(out + sizeof(magic), text, XL_MIN(strlen(text), NPY_HEADER - sizeof(magic) - 1));
    out[NPY_HEADER - 1] = '\n';
}

/* The fields that local and central headers share, from "version needed" to the name's length. */
static size_t put_common(uint8_t *p, const tensor *t)
{
    uint32_t size = (uint32_t)(tensor_bytes(t) + NPY_HEADER);
    size_t n = put16(p, 20);       /* version needed */
    n += put16(p + n, 0);          /* flags */
    n += put16(p + n, 0);          /* stored */
    n += put16(p + n, 0);          /* time */
    n += put16(p + n, 0x21);       /* date: 1980-01-01 */
    n += put32(p + n, t->crc);
    n += put32(p + n, size);
    n += put32(p + n, size);
    n += put16(p + n, (uint32_t)strlen(t->name) + 4);
    return n;
}

static int write_npz(xl_writer *w, const xlstm_state *s, uint8_t *values, xlstm_error *err)
{
    size_t n = tensor_count(s);
    tensor *all = xl_calloc(n, sizeof(*all), err);
    if (all == NULL) return XLSTM_E_MEMORY;
    int result = XLSTM_OK;
    uint8_t head[CENTRAL_HEADER];
    char name[48];
    for (size_t i = 0; result == XLSTM_OK && i < n; i++) {
        tensor *t = &all[i];
        *t = describe(s, i);
        if (w->written + tensor_bytes(t) > UINT32_MAX - (1u << 20)) {
            result = xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: over 4 GiB; export to .safetensors instead", w->path);
            break;
        }
        /* `values` leaves room in front for the array's own header */
        make_npy_header(values, t);
        if ((result = values_of(values + NPY_HEADER, s, i, err)) != XLSTM_OK) break;
        t->crc = crc32_of(values, NPY_HEADER + tensor_bytes(t));
        t->offset = w->written;
        size_t k = put32(head, 0x04034b50);
        k += put_common(head + k, t);
        k += put16(head + k, 0);
        snprintf(name, sizeof(name), "%s.npy", t->name);
        result = xl_writer_put(w, head, k, err);
        if (result == XLSTM_OK) result = xl_writer_put(w, name, strlen(name), err);
        if (result == XLSTM_OK) result = xl_writer_put(w, values, NPY_HEADER + tensor_bytes(t), err);
    }
    uint64_t directory = w->written;
    for (size_t i = 0; result == XLSTM_OK && i < n; i++) {
        memset(head, 0, sizeof(head));
        size_t k = put32(head, 0x02014b50);
        k += put16(head + k, 20);
        put_common(head + k, &all[i]);
        put32(head + 42, (uint32_t)all[i].offset);
        snprintf(name, sizeof(name), "%s.npy", all[i].name);
        result = xl_writer_put(w, head, sizeof(head), err);
        if (result == XLSTM_OK) result = xl_writer_put(w, name, strlen(name), err);
    }
    uint8_t end[END_RECORD] = {0};
    put32(end, 0x06054b50);
    put16(end + 8, (uint32_t)n);
    put16(end + 10, (uint32_t)n);
    put32(end + 12, (uint32_t)(w->written - directory));
    put32(end + 16, (uint32_t)directory);
    if (result == XLSTM_OK && n > UINT16_MAX) {
        result = xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: %zu arrays; export to .safetensors instead", w->path, n);
    }
    if (result == XLSTM_OK) result = xl_writer_put(w, end, sizeof(end), err);
    xl_release(all);
    return result;
}

/* The value of a key of the header's Python dict, or NULL. The header is NUL-terminated. */
static const char *dict_value(const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (at == NULL) return NULL;
    at += strlen(key);
    return at + strspn(at, " :");
}

/* An .npy file of `size` bytes. */
static int read_npy(tensor *t, const uint8_t *bytes, size_t size, const char *file, xlstm_error *err)
{
    char text[512];
    if (size < 12 || memcmp(bytes, "\x93NUMPY", 6) != 0) return bad_tensor(err, file, t->name, "not an array of NumPy");
    size_t skip = bytes[6] == 1 ? 10 : 12, length = bytes[6] == 1 ? get16(bytes + 8) : get32(bytes + 8);
    if (length >= sizeof(text) || length > size - skip) {
        return bad_tensor(err, file, t->name, "its header is truncated or too long");
    }
    memcpy(text, bytes + skip, length);
    text[length] = '\0';
    const char *type = dict_value(text, "'descr'"), *order = dict_value(text, "'fortran_order'"),
               *shape = dict_value(text, "'shape'");
    t->type = type == NULL                     ? E_OTHER
              : strncmp(type, "'<f4'", 5) == 0 ? E_F32
              : strncmp(type, "'<f8'", 5) == 0 ? E_F64
              : strncmp(type, "'<u8'", 5) == 0 || strncmp(type, "'<i8'", 5) == 0 ? E_U64
                                                                                   : E_OTHER;
    if (t->type == E_OTHER) return bad_tensor(err, file, t->name, "expected dtype <f4, <f8 or <u8");
    if (order == NULL || strncmp(order, "False", 5) != 0) {
        return bad_tensor(err, file, t->name, "expected C order (numpy.ascontiguousarray)");
    }
    if (shape == NULL || *shape++ != '(') return bad_tensor(err, file, t->name, "its header names no shape");
    for (t->rank = 0; *shape >= '0' && *shape <= '9'; t->rank++) {
        char *end;
        unsigned long long dim = strtoull(shape, &end, 10);
        if (t->rank == MAX_RANK || dim == 0) return bad_tensor(err, file, t->name, "expected 1 to 3 dimensions above 0");
        t->shape[t->rank] = (size_t)dim;
        shape = end + strspn(end, ", ");
    }
    if (*shape != ')' || t->rank == 0) return bad_tensor(err, file, t->name, "expected 1 to 3 dimensions above 0");
    return set_bytes(t, bytes + skip + length, size - skip - length, file, err);
}

/* Walks the central directory; local headers only tell where the data begins. */
static int read_npz(tensor **out, size_t *n, const xl_map *map, const char *file, xlstm_error *err)
{
    const uint8_t *b = map->bytes;
    size_t end = map->size, at;
    size_t lowest = map->size > END_RECORD + 65536 ? map->size - END_RECORD - 65536 : 0;
    for (at = map->size >= END_RECORD ? map->size - END_RECORD : 0; at > lowest && get32(b + at) != 0x06054b50;) at--;
    if (map->size < END_RECORD || get32(b + at) != 0x06054b50) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: truncated, or not a ZIP archive", file);
    }
    size_t count = get16(b + at + 10);
    at = get32(b + at + 16);
    *out = xl_calloc(count + 1, sizeof(tensor), err);
    if (*out == NULL) return XLSTM_E_MEMORY;
    for (size_t i = 0; i < count; i++) {
        if (at > end || end - at < CENTRAL_HEADER || get32(b + at) != 0x02014b50) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: its directory is damaged", file);
        }
        uint32_t method = get16(b + at + 10), crc = get32(b + at + 16), packed = get32(b + at + 20);
        uint32_t size = get32(b + at + 24), name = get16(b + at + 28);
        size_t local = get32(b + at + 42), next = at + CENTRAL_HEADER + name + get16(b + at + 30) + get16(b + at + 32);
        const char *text = (const char *)b + at + CENTRAL_HEADER;
        if (next > end || local > end || end - local < LOCAL_HEADER) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: its directory is damaged", file);
        }
        at = next;
        tensor *t = &(*out)[*n];
        if (name < 5 || memcmp(text + name - 4, ".npy", 4) != 0 || !copy_name(t, text, name - 4)) continue;
        size_t data = local + LOCAL_HEADER + get16(b + local + 26) + get16(b + local + 28);
        if (method != 0) return bad_tensor(err, file, t->name, "it is compressed; use numpy.savez, not savez_compressed");
        if (packed != size || data > end || size > end - data) return bad_tensor(err, file, t->name, "truncated");
        if (crc32_of(b + data, size) != crc) return bad_tensor(err, file, t->name, "damaged (checksum differs)");
        int result = read_npy(t, b + data, size, file, err);
        if (result != XLSTM_OK) return result;
        ++*n;
    }
    return XLSTM_OK;
}

/* ---- from tensors to a state ------------------------------------------------------------------------------------ */

static const tensor *find(const tensor *all, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(all[i].name, name) == 0) return &all[i];
    }
    return NULL;
}

/* Element i as float32. */
static float float_at(const tensor *t, size_t i)
{
    float single;
    double wide;
    if (t->type == E_F32) {
        memcpy(&single, t->bytes + i * sizeof(single), sizeof(single));
        return single;
    }
    memcpy(&wide, t->bytes + i * sizeof(wide), sizeof(wide));
    return (float)wide;
}

/* The tensor, of the wanted shape, as float32 in `out`. */
static int take(float *out, const tensor *all, size_t n, const tensor *want, const char *file, xlstm_error *err)
{
    const tensor *t = find(all, n, want->name);
    if (t == NULL) return bad_tensor(err, file, want->name, "missing");
    bool same = t->type != E_U64 && t->rank == want->rank;
    for (uint32_t r = 0; same && r < t->rank; r++) same = t->shape[r] == want->shape[r];
    if (!same) return bad_tensor(err, file, want->name, "its shape or dtype differs from what the other tensors ask for");
    for (size_t i = 0; i < t->count; i++) out[i] = float_at(t, i);
    return XLSTM_OK;
}

/* Fills block after block; `values` has room for the largest tensor. */
static int fill(xlstm_state *s, const tensor *all, size_t n, float *values, const char *file, xlstm_error *err)
{
    const xl_state_layout *l = &s->layout;
    const float *logits = s->logits; /* writing heads drops them */
    memset(s->memory, 0, l->total_bytes);
    for (size_t i = 1; i <= 3 * (size_t)l->num_blocks; i++) {
        tensor want = describe(s, i);
        int result = take(values, all, n, &want, file, err);
        size_t part = (i - 1) % 3, per_head = want.count / l->num_heads;
        for (uint32_t h = 0; result == XLSTM_OK && h < l->num_heads; h++) {
            const float *from = values + h * per_head;
            result = xlstm_state_write_head(s, (uint32_t)((i - 1) / 3), h, part == 0 ? from : NULL,
                                            part == 1 ? from : NULL, part == 2 ? from : NULL, err);
        }
        if (result != XLSTM_OK) return result;
    }
    s->logits = logits;
    if (logits == NULL) return XLSTM_OK;
    tensor want = describe(s, 3 * (size_t)l->num_blocks + 1);
    int result = take(values, all, n, &want, file, err);
    if (result == XLSTM_OK) memcpy(s->memory + l->total_bytes, values, s->vocab_size * sizeof(float));
    return result;
}

static int assemble(xlstm_state **out, const tensor *all, size_t n, const char *file, xlstm_error *err)
{
    const tensor *f = find(all, n, "facts"), *C = find(all, n, "block.0.C"), *logits = find(all, n, "logits");
    if (f == NULL || f->type != E_U64 || f->count != FACTS) {
        return bad_tensor(err, file, "facts", "expected five uint64, as an export writes them");
    }
    if (C == NULL || C->rank != 3) return bad_tensor(err, file, "block.0.C", "expected [heads][qk][v]");
    uint64_t facts[FACTS];
    memcpy(facts, f->bytes, sizeof(facts));
    uint32_t blocks = 0;
    for (char name[40]; snprintf(name, sizeof(name), "block.%u.C", blocks) > 0 && find(all, n, name) != NULL;) blocks++;
    bool small = C->shape[0] <= UINT32_MAX && C->shape[1] <= UINT32_MAX && C->shape[2] <= UINT32_MAX;
    if (!small || facts[3] > UINT32_MAX || facts[4] >= XLSTM_DTYPE_COUNT) {
        return bad_tensor(err, file, "facts", "out of range");
    }
    if (logits != NULL && logits->count != facts[3]) {
        return bad_tensor(err, file, "logits", "expected as many values as the vocabulary has tokens");
    }
    xl_state_layout layout;
    int result = xl_state_layout_make(&layout, (xlstm_dtype)facts[4], blocks, (uint32_t)C->shape[0],
                                      (uint32_t)C->shape[1], (uint32_t)C->shape[2], err);
    xlstm_state *s = NULL;
    if (result == XLSTM_OK) result = xl_state_new(&s, &layout, (uint32_t)facts[3], logits != NULL, err);
    if (result != XLSTM_OK) return result;
    s->fingerprint = facts[0];
    s->position = facts[1];
    s->token_hash = facts[2];
    size_t most = 1;
    for (size_t i = 0; i < n; i++) most = XL_MAX(most, all[i].count);
    float *values = xl_calloc(most, sizeof(float), err);
    result = values != NULL ? fill(s, all, n, values, file, err) : XLSTM_E_MEMORY;
    xl_release(values);
    if (result != XLSTM_OK) {
        xlstm_state_free(s);
        return result;
    }
    *out = s;
    return XLSTM_OK;
}

/* ---- the two calls ---------------------------------------------------------------------------------------------- */

typedef enum kind { NEITHER, SAFETENSORS, NPZ } kind;

static kind kind_of(const char *path)
{
    const char *dot = strrchr(path, '.');
    if (dot != NULL && strcasecmp(dot, ".safetensors") == 0) return SAFETENSORS;
    return dot != NULL && strcasecmp(dot, ".npz") == 0 ? NPZ : NEITHER;
}

static int unknown_kind(xlstm_error *err, const char *path)
{
    return xl_fail(err, XLSTM_E_ARGUMENT, "%s: expected a name that ends in .safetensors or .npz", path);
}

int xlstm_state_export(const xlstm_state *state, const char *path, xlstm_error *err)
{
    kind k = kind_of(path);
    if (k == NEITHER) return unknown_kind(err, path);
    size_t most = 0;
    for (size_t i = 0; i < tensor_count(state); i++) {
        tensor t = describe(state, i);
        most = XL_MAX(most, tensor_bytes(&t));
    }
    uint8_t *values = xl_alloc(NPY_HEADER + most, err);
    if (values == NULL) return XLSTM_E_MEMORY;
    xl_writer w;
    int result = xl_writer_open(&w, path, err);
    if (result == XLSTM_OK) {
        result = k == NPZ ? write_npz(&w, state, values, err) : write_safetensors(&w, state, values, err);
        if (result == XLSTM_OK) {
            result = xl_writer_commit(&w, err);
        } else {
            xl_writer_abort(&w);
        }
    }
    xl_release(values);
    return result;
}

int xlstm_state_import(xlstm_state **out, const char *path, xlstm_error *err)
{
    *out = NULL;
    kind k = kind_of(path);
    if (k == NEITHER) return unknown_kind(err, path);
    xl_map map;
    int result = xl_map_open(&map, path, err);
    if (result != XLSTM_OK) return result;
    tensor *all = NULL;
    size_t n = 0;
    result = k == NPZ ? read_npz(&all, &n, &map, path, err) : read_safetensors(&all, &n, &map, path, err);
    if (result == XLSTM_OK) result = assemble(out, all, n, path, err);
    xl_release(all);
    xl_map_close(&map);
    return result;
}
