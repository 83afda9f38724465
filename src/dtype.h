/*
 * dtype.h — number formats: sizes, names and scalar conversion. The scalar functions are the reference that every
 * vector kernel is tested against. Layer 1.
 */
#ifndef XL_DTYPE_H
#define XL_DTYPE_H

#include "base.h"

#include <string.h>

/* Elements share blocks: 1 for plain formats, 32 or 256 for ggml block formats. */
typedef struct xl_dtype_traits {
    const char *name;
    uint32_t block;       /* elements a block */
    uint32_t block_bytes; /* bytes a block; 0 for XLSTM_DTYPE_DEFAULT */
} xl_dtype_traits;
const xl_dtype_traits *xl_dtype_get(xlstm_dtype dtype);

/* Bytes of a row of n elements; false if n is no multiple of the block or the size overflows. */
bool xl_dtype_row_bytes(size_t *out, xlstm_dtype dtype, size_t n);

static inline uint32_t xl_bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
static inline float xl_float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }

/* By bits, so that no compiler flag can remove it. */
static inline bool xl_is_finite(float x) { return (xl_bits_of(x) & 0x7f800000u) != 0x7f800000u; }

static inline float xl_bf16_to_f32(uint16_t h) { return xl_float_of((uint32_t)h << 16); }
/* Round to nearest, ties to even; NaN stays NaN (quiet), never becomes Inf. */
static inline uint16_t xl_f32_to_bf16(float x)
{
    uint32_t u = xl_bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float xl_round_bf16(float x) { return xl_bf16_to_f32(xl_f32_to_bf16(x)); }
float xl_f16_to_f32(uint16_t h);
uint16_t xl_f32_to_f16(float x); /* nearest even; overflow becomes Inf, as IEEE says */
static inline float xl_round_f16(float x) { return xl_f16_to_f32(xl_f32_to_f16(x)); }

/* n elements (a multiple of the block) of any dtype to float32 and back. Decoding is bit-exact with the public formats,
 * so is encoding to Q8_0 and Q4_0; the K encoders fill the public layout by a least-squares fit of their own. */
void xl_decode_row(float *out, const void *in, xlstm_dtype dtype, size_t n);
void xl_encode_row(void *out, const float *in, xlstm_dtype dtype, size_t n);

#endif
