/*
 * imatrix.h — names of the large matrices in files, and which activations each is multiplied with: what the converter and
 * the importance matrix agree on. Layer 4.
 */
#ifndef XL_IMATRIX_H
#define XL_IMATRIX_H

#include "model.h"

enum { XL_GGUF_NAME = 64 };

/* "blk.3.ffn_down.weight" */
void xl_gguf_name(char out[XL_GGUF_NAME], uint32_t block, xl_role role, bool bias);

/* The file's importances for a matrix of `columns` columns, borrowed from w: finite, none negative. */
int xl_imatrix_find(const float **out, xl_weights *w, const char *tensor, uint64_t columns, const char *path,
                    xlstm_error *err);

#endif
