/*
 * quantize.h — encodes rows of float32 into the ggml block formats. Decoding is in dtype.h, which also says how blocks
 * are laid out. Layer 1.
 */
#ifndef XL_QUANTIZE_H
#define XL_QUANTIZE_H

#include "dtype.h"

/* n elements, a multiple of the format's block, into out. importance: how much the error of each of the n columns counts
 * (the mean square of what it will be multiplied with), >= 0 and finite; NULL: all alike. Without importance Q8_0 and
 * Q4_0 are bit-exact with ggml's reference; Q8_0 pays no attention to it. The same input gives the same bytes on every
 * machine. Values that are not finite give blocks that mean nothing, and no undefined behaviour. */
void xl_quantize_row(void *out, const float *in, xlstm_dtype dtype, size_t n, const float *importance);

#endif
