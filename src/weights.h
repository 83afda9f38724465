/*
 * weights.h — named tensors from files: one interface over safetensors (single, sharded), GGUF and synthetic presets.
 * Everything read from disk is hostile until checked here: header sizes, JSON, dtypes, ranks, products, ranges against
 * the file size, overlaps, duplicates across shards. Knows names and shapes, not what they mean. Layer 1.
 */
#ifndef XL_WEIGHTS_H
#define XL_WEIGHTS_H

#include "dtype.h"

typedef struct xl_tensor {
    const char *name; /* owned by the xl_weights */
    const char *type; /* the dtype as the file spells it ("BF16", "I64"); static storage */
    xlstm_dtype dtype; /* DEFAULT: one this engine has no arithmetic for, only listed */
    uint32_t rank;     /* 0 .. 4 */
    uint64_t shape[4]; /* outermost first: a linear weight is [out, in] */
    size_t bytes;
    uint32_t file;   /* index for xl_weights_file */
    uint64_t offset; /* in that file */
} xl_tensor;

/* "[2, 3]" */
enum { XL_SHAPE_TEXT = 96 };
const char *xl_shape_text(char out[XL_SHAPE_TEXT], const xl_tensor *t);

typedef struct xl_weights xl_weights;

/* A folder, a .safetensors file, a .gguf file or "preset:NAME". */
int xl_weights_open(xl_weights **out, const char *path, const xl_log *log, xlstm_error *err);
/* A GGUF file that is no model: one whose general.type is `type`. Only its tensors are read. */
int xl_weights_open_typed(xl_weights **out, const char *path, const char *type, xlstm_error *err);
void xl_weights_close(xl_weights *w);
/* Of a split model's name, "stem-00001-of-00003.gguf": length of the stem, number and count; 0 for other names. */
size_t xl_gguf_split_name(const char *path, unsigned *number, unsigned *count);
const char *xl_weights_format(const xl_weights *w); /* "safetensors", "gguf", "preset" */
size_t xl_weights_count(const xl_weights *w);
const xl_tensor *xl_weights_at(const xl_weights *w, size_t i); /* in file order */
const xl_tensor *xl_weights_find(const xl_weights *w, const char *name);
const char *xl_weights_file(const xl_weights *w, uint32_t file); /* base name */
/* The tensor's bytes, aligned to its elements, valid until xl_weights_drop of it or close. Synthetic tensors are made on
 * the first call. Tensors are known by name: a copy of the xl_tensor does as well. */
int xl_weights_data(const void **out, xl_weights *w, const xl_tensor *t, xlstm_error *err);
/* Done with these bytes: their pages leave this process and the page cache (synthetic: freed). */
void xl_weights_drop(xl_weights *w, const xl_tensor *t);
/* Done with some of these bytes, counted from the tensor's first. */
void xl_weights_drop_part(xl_weights *w, const xl_tensor *t, size_t offset, size_t bytes);
/* Somebody goes on using the tensor's bytes: later drops of it do nothing. */
void xl_weights_keep(xl_weights *w, const xl_tensor *t);
/* Starts reading the tensor ahead. */
void xl_weights_want(xl_weights *w, const xl_tensor *t);
/* Settings that travel with the weights as the text of a config.json (GGUF keys, preset geometry); NULL if none. */
const char *xl_weights_config(const xl_weights *w);
/* The same for an embedded tokenizer.json and tokenizer_config.json. */
const char *xl_weights_tokenizer(const xl_weights *w, const char **tokenizer_config);
/* The same for an embedded generation_config.json. */
const char *xl_weights_generation_config(const xl_weights *w);
/* Over names, dtypes, shapes, and samples of every tensor's bytes; equal files give equal values. */
int xl_weights_fingerprint(uint64_t *out, xl_weights *w, xlstm_error *err);

#endif
