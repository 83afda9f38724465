/*
 * split_backend.h — one backend made of two: the first blocks of a model run on one, the others, the final norm and the
 * head on another. For a device that cannot hold the whole model. Layer 2; sees backend.h alone, and nothing above it
 * knows whether a backend is split.
 */
#ifndef XL_SPLIT_BACKEND_H
#define XL_SPLIT_BACKEND_H

#include "backend.h"

/* Blocks 0 .. blocks-1 on the backend named `first`, the rest on `second`; 0 < blocks < options->num_blocks. Both must
 * keep states in the same format; a state's host layout is that of the whole model. */
int xl_split_open(xl_backend **out, const char *first, const char *second, uint32_t blocks,
                  const xl_backend_options *options, xlstm_error *err);

/* One of the two, 0 or 1. Still owned by the split backend; for tests. */
xl_backend *xl_split_side(xl_backend *split, int side);

#endif
