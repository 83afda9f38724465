/*
 * weights.c — the part of weights.h that all formats share: telling formats apart, the table of tensors and its look-up
 * by name, bytes and their release, and the fingerprint. The formats themselves are in weights_safetensors.c,
 * weights_gguf.c and weights_preset.c.
 */
#include "weights_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are used where they are mapped: the formats are little endian, and so must be the machine"
#endif

/* ---- building --------------------------------------------------------------------------------------------------- */

int xl_weights_add_file(xl_weights *w, const char *path, xlstm_error *err)
{
    if (w->n_files == XL_MAX_FILES) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: more than %d files in one checkpoint", path, XL_MAX_FILES);
    }
    xl_weights_source *files = xl_grow(w->files, (w->n_files + 1) * sizeof(*files), err);
    if (files == NULL) return XLSTM_E_MEMORY;
    w->files = files;
    xl_weights_source *file = &files[w->n_files];
    *file = (xl_weights_source){.path = xl_strdup(path, err)};
    if (file->path == NULL) return XLSTM_E_MEMORY;
    const char *slash = strrchr(file->path, '/');
    file->name = slash == NULL ? file->path : slash + 1;
    int result = xl_map_open(&file->map, path, err);
    if (result != XLSTM_OK) {
        xl_release(file->path);
        return result;
    }
    w->n_files++;
    return XLSTM_OK;
}

int xl_weights_add(xl_weights *w, const char *name, size_t name_size, const xl_tensor *t, xlstm_error *err)
{
    if (w->count == w->capacity) {
        size_t capacity = XL_MAX(w->capacity * 2, (size_t)64);
        xl_tensor *tensors = xl_grow(w->tensors, capacity * sizeof(*tensors), err);
        if (tensors == NULL) return XLSTM_E_MEMORY;
        w->tensors = tensors;
        w->capacity = capacity;
    }
    char *copy = xl_grow(NULL, name_size + 1, err);
    if (copy == NULL) return XLSTM_E_MEMORY;
    memcpy(copy, name, name_size);
    copy[name_size] = '\0';
    w->tensors[w->count] = *t;
    w->tensors[w->count++].name = copy;
    return XLSTM_OK;
}

bool xl_weights_elements(uint64_t *out, uint32_t rank, const uint64_t *shape)
{
    uint64_t n = 1;
    bool zero = false;
    for (uint32_t i = 0; i < rank; i++) {
        zero = zero || shape[i] == 0;
        if (shape[i] != 0 && __builtin_mul_overflow(n, shape[i], &n)) return false;
    }
    *out = zero ? 0 : n;
    return true;
}

const char *xl_shape_text(char out[XL_SHAPE_TEXT], const xl_tensor *t)
{
    int n = snprintf(out, XL_SHAPE_TEXT, "[");
    for (uint32_t i = 0; i < t->rank; i++) {
        n += snprintf(out + n, XL_SHAPE_TEXT - (size_t)n, i > 0 ? ", %llu" : "%llu", (unsigned long long)t->shape[i]);
    }
    snprintf(out + n, XL_SHAPE_TEXT - (size_t)n, "]");
    return out;
}

static int compare_place(const void *a, const void *b)
{
    const xl_tensor *x = a, *y = b;
    if (x->file != y->file) return x->file < y->file ? -1 : 1;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_name(const void *a, const void *b, void *tensors)
{
    const xl_tensor *t = tensors;
    return strcmp(t[*(const uint32_t *)a].name, t[*(const uint32_t *)b].name);
}

/* Sorts, and refuses names that occur twice and bytes that belong to two tensors. */
static int finish(xl_weights *w, xlstm_error *err)
{
    if (w->make == NULL && w->count > 0) qsort(w->tensors, w->count, sizeof(*w->tensors), compare_place);
    w->cells = xl_calloc(w->count, sizeof(*w->cells), err);
    w->by_name = w->cells != NULL ? xl_calloc(w->count, sizeof(*w->by_name), err) : NULL;
    if (w->by_name == NULL) return XLSTM_E_MEMORY;
    for (size_t i = 0; i < w->count; i++) w->by_name[i] = (uint32_t)i;
    if (w->count > 0) qsort_r(w->by_name, w->count, sizeof(*w->by_name), compare_name, w->tensors);
    for (size_t i = 1; i < w->count; i++) {
        const xl_tensor *a = &w->tensors[w->by_name[i - 1]], *b = &w->tensors[w->by_name[i]];
        if (strcmp(a->name, b->name) == 0) {
            return xl_fail(err, XLSTM_E_FORMAT, "tensor '%s' occurs twice: in %s and in %s", a->name,
                           xl_weights_file(w, a->file), xl_weights_file(w, b->file));
        }
    }
    const xl_tensor *last = NULL; /* the one that reaches furthest in this file */
    for (size_t i = 0; w->make == NULL && i < w->count; i++) {
        const xl_tensor *t = &w->tensors[i];
        if (t->bytes == 0) continue;
        if (last != NULL && last->file == t->file && last->offset + last->bytes > t->offset) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: tensors '%s' and '%s' overlap at byte %llu of the file",
                           xl_weights_file(w, t->file), last->name, t->name, (unsigned long long)t->offset);
        }
        last = t;
    }
    return XLSTM_OK;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && strcmp(s + n - m, end) == 0;
}

static int open_file(xl_weights *w, const char *path, xlstm_error *err)
{
    FILE *f = fopen(path, "rb");
    int code = errno;
    char magic[4] = {0};
    if (f == NULL) {
        return xl_fail(err, code == ENOMEM ? XLSTM_E_MEMORY : XLSTM_E_IO, "%s: cannot open: %s", path, strerror(code));
    }
    (void)!fread(magic, 1, sizeof(magic), f);
    fclose(f);
    if (memcmp(magic, "GGUF", 4) == 0 || ends_with(path, ".gguf")) return xl_gguf_open(w, path, err);
    if (ends_with(path, ".safetensors")) return xl_safetensors_open_file(w, path, err);
    return xl_fail(err, XLSTM_E_UNSUPPORTED,
                   "%s: not a weight file: expected a folder, a .safetensors file, a .gguf file or preset:NAME", path);
}

int xl_weights_open(xl_weights **out, const char *path, const xl_log *log, xlstm_error *err)
{
    *out = NULL;
    xl_weights *w = xl_calloc(1, sizeof(*w), err);
    if (w == NULL) return XLSTM_E_MEMORY;
    w->log = log;
    int result;
    if (strncmp(path, "preset:", 7) == 0) {
        result = xl_preset_open(w, path + 7, err);
    } else if (xl_is_folder(path)) {
        result = xl_safetensors_open_folder(w, path, err);
    } else if (xl_is_file(path)) {
        result = open_file(w, path, err);
    } else {
        result = xl_fail(err, XLSTM_E_IO, "%s: %s", path,
                         access(path, F_OK) == 0   ? "expected a regular file or a folder"
                         : errno == ENOENT         ? "no such file or folder"
                                                   : strerror(errno));
    }
    if (result == XLSTM_OK) result = finish(w, err);
    if (result != XLSTM_OK) {
        xl_weights_close(w);
        return result;
    }
    w->log = NULL;
    *out = w;
    return XLSTM_OK;
}

int xl_weights_open_typed(xl_weights **out, const char *path, const char *type, xlstm_error *err)
{
    *out = NULL;
    xl_weights *w = xl_calloc(1, sizeof(*w), err);
    if (w == NULL) return XLSTM_E_MEMORY;
    int result = xl_gguf_open_typed(w, path, type, err);
    if (result == XLSTM_OK) result = finish(w, err);
    if (result != XLSTM_OK) {
        xl_weights_close(w);
        return result;
    }
    *out = w;
    return XLSTM_OK;
}

void xl_weights_close(xl_weights *w)
{
    if (w == NULL) return;
    for (size_t i = 0; i < w->count; i++) {
        if (w->cells != NULL) xl_release(w->cells[i].made);
        xl_release((char *)(uintptr_t)w->tensors[i].name);
    }
    for (uint32_t i = 0; i < w->n_files; i++) {
        xl_map_close(&w->files[i].map);
        xl_release(w->files[i].path);
    }
    xl_release(w->tensors);
    xl_release(w->cells);
    xl_release(w->by_name);
    xl_release(w->files);
    xl_release(w->config);
    xl_release(w->tokenizer);
    xl_release(w->tokenizer_config);
    xl_release(w->generation_config);
    xl_release(w->make_state);
    xl_release(w);
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */

const char *xl_weights_format(const xl_weights *w) { return w->format; }
size_t xl_weights_count(const xl_weights *w) { return w->count; }
const xl_tensor *xl_weights_at(const xl_weights *w, size_t i) { return &w->tensors[i]; }
const char *xl_weights_config(const xl_weights *w) { return w->config; }
const char *xl_weights_generation_config(const xl_weights *w) { return w->generation_config; }

const char *xl_weights_tokenizer(const xl_weights *w, const char **tokenizer_config)
{
    if (tokenizer_config != NULL) *tokenizer_config = w->tokenizer_config;
    return w->tokenizer;
}

const char *xl_weights_file(const xl_weights *w, uint32_t file)
{
    return file < w->n_files ? w->files[file].name : w->format;
}

const xl_tensor *xl_weights_find(const xl_weights *w, const char *name)
{
    size_t low = 0, high = w->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const xl_tensor *t = &w->tensors[w->by_name[middle]];
        int order = strcmp(name, t->name);
        if (order == 0) return t;
        if (order < 0) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return NULL;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* Size in which a tensor's numbers are read: its elements', or 2 for the block formats, which begin with a half. */
static size_t element_align(const xl_tensor *t)
{
    const xl_dtype_traits *traits = xl_dtype_get(t->dtype);
    return traits->block == 1 && traits->block_bytes > 0 ? traits->block_bytes : 2;
}

int xl_weights_data(const void **out, xl_weights *w, const xl_tensor *t, xlstm_error *err)
{
    static const uint64_t nothing = 0;
    *out = NULL;
    const xl_tensor *own = xl_weights_find(w, t->name);
    if (own == NULL) return xl_fail(err, XLSTM_E_ARGUMENT, "tensor '%.200s' is not in this checkpoint", t->name);
    xl_weights_cell *cell = &w->cells[own - w->tensors];
    if (own->bytes == 0) {
        *out = &nothing;
        return XLSTM_OK;
    }
    const uint8_t *mapped = w->make == NULL ? w->files[own->file].map.bytes + own->offset : NULL;
    if (mapped != NULL && (uintptr_t)mapped % element_align(own) == 0) {
        *out = mapped;
        return XLSTM_OK;
    }
    if (cell->made == NULL) {
        cell->made = xl_alloc(own->bytes, err);
        if (cell->made == NULL) return XLSTM_E_MEMORY;
        if (mapped != NULL) {
            memcpy(cell->made, mapped, own->bytes);
        } else if (w->make != NULL) {
            w->make(w->make_state, own, cell->made);
        }
    }
    *out = cell->made;
    return XLSTM_OK;
}

void xl_weights_drop(xl_weights *w, const xl_tensor *t)
{
    const xl_tensor *own = xl_weights_find(w, t->name);
    if (own == NULL) return;
    xl_weights_cell *cell = &w->cells[own - w->tensors];
    if (cell->kept) return;
    xl_release(cell->made);
    cell->made = NULL;
    if (w->make == NULL) xl_map_drop(&w->files[own->file].map, own->offset, own->bytes);
}

void xl_weights_drop_part(xl_weights *w, const xl_tensor *t, size_t offset, size_t bytes)
{
    const xl_tensor *own = xl_weights_find(w, t->name);
    if (own == NULL || w->make != NULL || offset > own->bytes) return;
    const xl_weights_cell *cell = &w->cells[own - w->tensors];
    if (cell->kept || cell->made != NULL) return;
    xl_map_drop(&w->files[own->file].map, own->offset + offset, XL_MIN(bytes, own->bytes - offset));
}

void xl_weights_keep(xl_weights *w, const xl_tensor *t)
{
    const xl_tensor *own = xl_weights_find(w, t->name);
    if (own != NULL) w->cells[own - w->tensors].kept = true;
}

void xl_weights_want(xl_weights *w, const xl_tensor *t)
{
    if (w->make == NULL) xl_map_want(&w->files[t->file].map, t->offset, t->bytes);
}

/* ---- fingerprint ------------------------------------------------------------------------------------------------ */

enum { SAMPLE_BYTES = 4096, SAMPLES = 8 };

/* First and last bytes and evenly spread ones between, so that opening 13.7 GB reads some 15 MB. Small tensors are read
 * whole. */
static uint64_t hash_samples(const uint8_t *bytes, size_t n, uint64_t seed)
{
    if (n <= (size_t)SAMPLE_BYTES * SAMPLES) return xl_hash(bytes, n, seed);
    size_t last = n - SAMPLE_BYTES;
    for (size_t i = 0; i < SAMPLES; i++) {
        size_t at = i == SAMPLES - 1 ? last : last / (SAMPLES - 1) * i;
        seed = xl_hash(bytes + at, SAMPLE_BYTES, seed);
    }
    return seed;
}

int xl_weights_fingerprint(uint64_t *out, xl_weights *w, xlstm_error *err)
{
    (void)err;
    uint64_t h = xl_hash("xlstm weights 1", 15, 0);
    for (size_t i = 0; i < w->count; i++) {
        const xl_tensor *t = &w->tensors[w->by_name[i]];
        h = xl_hash(t->name, strlen(t->name) + 1, h);
        h = xl_hash(t->type, strlen(t->type) + 1, h);
        h = xl_hash(t->shape, t->rank * sizeof(t->shape[0]), h ^ t->rank);
        if (w->make == NULL && t->bytes > 0) h = hash_samples(w->files[t->file].map.bytes + t->offset, t->bytes, h);
    }
    *out = h;
    return XLSTM_OK;
}
