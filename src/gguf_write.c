/*
 * gguf_write.c — the encoder behind gguf_write.h. The layout is described where it is read, in weights_gguf.c.
 */
#include "gguf_write.h"

#include <stdlib.h>

enum { VERSION = 3, VALUE_U32 = 4, VALUE_F32 = 6, VALUE_BOOL = 7, VALUE_STRING = 8 };

static int64_t ggml_type(xlstm_dtype dtype)
{
    switch (dtype) {
    case XLSTM_F32: return 0;
    case XLSTM_F16: return 1;
    case XLSTM_Q4_0: return 2;
    case XLSTM_Q8_0: return 8;
    case XLSTM_Q4_K: return 12;
    case XLSTM_Q5_K: return 13;
    case XLSTM_Q6_K: return 14;
    case XLSTM_F64: return 28;
    case XLSTM_BF16: return 30;
    default: return -1;
    }
}

static void add_u32(xl_text *t, uint32_t x) { xl_text_add(t, (const char *)&x, sizeof(x)); }
static void add_u64(xl_text *t, uint64_t x) { xl_text_add(t, (const char *)&x, sizeof(x)); }

static void add_string(xl_text *t, const char *text, size_t size)
{
    add_u64(t, size);
    xl_text_add(t, text, size);
}

int xl_gguf_create(xl_gguf_writer *g, const char *path, xlstm_error *err)
{
    *g = (xl_gguf_writer){0};
    return xl_writer_open(&g->file, path, err);
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static void add_key(xl_gguf_writer *g, const char *key, uint32_t type)
{
    add_string(&g->keys, key, strlen(key));
    add_u32(&g->keys, type);
    g->n_keys++;
}

void xl_gguf_put_text(xl_gguf_writer *g, const char *key, const char *text, size_t size)
{
    add_key(g, key, VALUE_STRING);
    add_string(&g->keys, text, size);
}

void xl_gguf_put_u32(xl_gguf_writer *g, const char *key, uint32_t value)
{
    add_key(g, key, VALUE_U32);
    add_u32(&g->keys, value);
}

void xl_gguf_put_f32(xl_gguf_writer *g, const char *key, float value)
{
    add_key(g, key, VALUE_F32);
    add_u32(&g->keys, xl_bits_of(value));
}

void xl_gguf_put_bool(xl_gguf_writer *g, const char *key, bool value)
{
    const char byte = value;
    add_key(g, key, VALUE_BOOL);
    xl_text_add(&g->keys, &byte, 1);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

int xl_gguf_declare(xl_gguf_writer *g, const char *name, xlstm_dtype dtype, uint32_t rank, const uint64_t *shape,
                    xlstm_error *err)
{
    size_t bytes = 0;
    bool fits = rank >= 1 && rank <= 4 && ggml_type(dtype) >= 0 && xl_dtype_row_bytes(&bytes, dtype, shape[rank - 1]);
    for (uint32_t i = 0; fits && i + 1 < rank; i++) fits = xl_mul(&bytes, bytes, shape[i]);
    if (!fits || bytes > UINT64_MAX / 4 || g->offset > UINT64_MAX / 4) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: tensor '%s': a row of %llu values does not fit the format %s",
                       g->file.path, name, (unsigned long long)(rank >= 1 ? shape[rank - 1] : 0), xlstm_dtype_name(dtype));
    }
    uint64_t *ends = xl_grow(g->ends, (g->n_tensors + 1) * sizeof(*ends), err);
    if (ends == NULL) return XLSTM_E_MEMORY;
    g->ends = ends;
    add_string(&g->tensors, name, strlen(name));
    add_u32(&g->tensors, rank);
    for (uint32_t i = rank; i-- > 0;) add_u64(&g->tensors, shape[i]);
    add_u32(&g->tensors, (uint32_t)ggml_type(dtype));
    add_u64(&g->tensors, g->offset);
    ends[g->n_tensors++] = g->offset + bytes;
    g->offset = xl_round_up(g->offset + bytes, XL_GGUF_ALIGNMENT);
    return XLSTM_OK;
}

static int pad_to(xl_gguf_writer *g, uint64_t place, xlstm_error *err)
{
    static const char zeros[XL_GGUF_ALIGNMENT];
    return xl_writer_put(&g->file, zeros, (size_t)(place - g->file.written), err);
}

/* Steps over complete tensors, filling the gaps behind them. */
static int step(xl_gguf_writer *g, xlstm_error *err)
{
    while (g->at < g->n_tensors && g->file.written == g->data + g->ends[g->at]) {
        int result = pad_to(g, g->data + xl_round_up(g->ends[g->at], XL_GGUF_ALIGNMENT), err);
        if (result != XLSTM_OK) return result;
        g->at++;
    }
    return XLSTM_OK;
}

int xl_gguf_begin(xl_gguf_writer *g, xlstm_error *err)
{
    xl_text head = {0};
    xl_text_add(&head, "GGUF", 4);
    add_u32(&head, VERSION);
    add_u64(&head, g->n_tensors);
    add_u64(&head, g->n_keys);
    bool failed = head.failed || g->keys.failed || g->tensors.failed;
    int result = failed ? xl_fail(err, XLSTM_E_MEMORY, "%s: out of memory for the header", g->file.path)
                        : xl_writer_put(&g->file, head.data, head.size, err);
    if (result == XLSTM_OK) result = xl_writer_put(&g->file, g->keys.data, g->keys.size, err);
    if (result == XLSTM_OK) result = xl_writer_put(&g->file, g->tensors.data, g->tensors.size, err);
    xl_release(head.data);
    if (result != XLSTM_OK) return result;
    g->data = xl_round_up(g->file.written, XL_GGUF_ALIGNMENT);
    result = pad_to(g, g->data, err);
    return result == XLSTM_OK ? step(g, err) : result;
}

int xl_gguf_data(xl_gguf_writer *g, const void *bytes, size_t n, xlstm_error *err)
{
    if (n == 0) return XLSTM_OK;
    if (g->at == g->n_tensors || n > g->data + g->ends[g->at] - g->file.written) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "%s: more bytes than the tensor was declared with", g->file.path);
    }
    int result = xl_writer_put(&g->file, bytes, n, err);
    return result == XLSTM_OK ? step(g, err) : result;
}

static void release(xl_gguf_writer *g)
{
    xl_release(g->keys.data);
    xl_release(g->tensors.data);
    xl_release(g->ends);
    *g = (xl_gguf_writer){0};
}

int xl_gguf_commit(xl_gguf_writer *g, xlstm_error *err)
{
    int result = XLSTM_OK;
    if (g->data == 0 || g->at < g->n_tensors) {
        result = xl_fail(err, XLSTM_E_ARGUMENT, "%s: fewer bytes than the tensors were declared with", g->file.path);
        xl_writer_abort(&g->file);
    } else {
        result = xl_writer_commit(&g->file, err);
    }
    release(g);
    return result;
}

void xl_gguf_abort(xl_gguf_writer *g)
{
    xl_writer_abort(&g->file);
    release(g);
}
