/*
 * gguf_write.h — writes a GGUF version 3 file: keys, then descriptions of all tensors, then their bytes in that order as
 * they come, so that files of any size need no memory. What keys and names mean is docs/gguf.md's and the caller's
 * business. The file appears under its name only when all of it is on disk. Layer 1.
 */
#ifndef XL_GGUF_WRITE_H
#define XL_GGUF_WRITE_H

#include "dtype.h"

typedef struct xl_gguf_writer {
    xl_writer file;
    xl_text keys, tensors; /* encoded */
    uint64_t n_keys, n_tensors;
    uint64_t *ends; /* [n_tensors] of the tensors' bytes, counted from the start of the data */
    uint64_t offset;   /* where the next declared tensor begins */
    uint64_t data;     /* where the data begins in the file; 0 until xl_gguf_begin */
    uint64_t at;       /* tensor whose bytes come next */
} xl_gguf_writer;

enum { XL_GGUF_ALIGNMENT = 32 };

int xl_gguf_create(xl_gguf_writer *g, const char *path, xlstm_error *err);

/* Failures of these stick and are reported by xl_gguf_begin. `size` bytes of text, any. */
void xl_gguf_put_text(xl_gguf_writer *g, const char *key, const char *text, size_t size);
void xl_gguf_put_u32(xl_gguf_writer *g, const char *key, uint32_t value);
void xl_gguf_put_f32(xl_gguf_writer *g, const char *key, float value);
void xl_gguf_put_bool(xl_gguf_writer *g, const char *key, bool value);

/* shape: outermost first, rank 1 .. 4, rows of whole blocks. */
int xl_gguf_declare(xl_gguf_writer *g, const char *name, xlstm_dtype dtype, uint32_t rank, const uint64_t *shape,
                    xlstm_error *err);
/* After the last declaration; from here on bytes. */
int xl_gguf_begin(xl_gguf_writer *g, xlstm_error *err);
/* Goes on with the tensors' bytes; a call may end within a tensor but not reach into the next. */
int xl_gguf_data(xl_gguf_writer *g, const void *bytes, size_t n, xlstm_error *err);
/* Puts the complete file in place. The writer is released, whatever happens. */
int xl_gguf_commit(xl_gguf_writer *g, xlstm_error *err);
/* Leaves nothing behind. Safe on a zeroed or committed writer. */
void xl_gguf_abort(xl_gguf_writer *g);

#endif
