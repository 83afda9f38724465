/*
 * weights_internal.h — what the readers of the weight formats share: the table of tensors under construction, and the
 * checks and errors that every format needs. Only weights*.c include it.
 */
#ifndef XL_WEIGHTS_INTERNAL_H
#define XL_WEIGHTS_INTERNAL_H

#include "weights.h"

/* Upper bounds on what a file may claim; far above real checkpoints, low enough to bound work and memory. */
enum {
    XL_MAX_FILES = 1024,      /* shards; each keeps one file descriptor */
    XL_MAX_TENSORS = 1000000,
    XL_MAX_NAME = 512,        /* bytes of a tensor name */
};

typedef struct xl_weights_source {
    char *path;
    const char *name; /* base name, inside path */
    xl_map map;
} xl_weights_source;

/* Per tensor, parallel to tensors[]. */
typedef struct xl_weights_cell {
    void *made; /* synthetic bytes or an aligned copy, owned; NULL until asked for */
    bool kept;
} xl_weights_cell;

/* Makes the bytes of a synthetic tensor into out[t->bytes]. */
typedef void (*xl_weights_make_fn)(void *state, const xl_tensor *t, void *out);

struct xl_weights {
    char format[16];
    const xl_log *log; /* during open only */
    xl_weights_source *files;
    uint32_t n_files;
    xl_tensor *tensors; /* by file, then by offset */
    size_t count, capacity;
    xl_weights_cell *cells;
    uint32_t *by_name; /* indices into tensors, sorted by name */
    char *config, *tokenizer, *tokenizer_config, *generation_config;
    xl_weights_make_fn make; /* NULL: every tensor is in a file */
    void *make_state;        /* freed with xl_release */
};

/* Maps a file and appends it to w->files. */
int xl_weights_add_file(xl_weights *w, const char *path, xlstm_error *err);
/* Appends a tensor; the name is copied. Rank, shape, bytes, offset are the caller's to have checked. */
int xl_weights_add(xl_weights *w, const char *name, size_t name_size, const xl_tensor *t, xlstm_error *err);
/* elements = product of the shape; false on overflow. */
bool xl_weights_elements(uint64_t *out, uint32_t rank, const uint64_t *shape);

/* Each fills w from a path, whose kind is already known. */
int xl_safetensors_open_folder(xl_weights *w, const char *folder, xlstm_error *err);
int xl_safetensors_open_file(xl_weights *w, const char *path, xlstm_error *err);
int xl_gguf_open(xl_weights *w, const char *path, xlstm_error *err);
int xl_gguf_open_typed(xl_weights *w, const char *path, const char *type, xlstm_error *err);
int xl_preset_open(xl_weights *w, const char *name, xlstm_error *err);

#endif
