/*
 * cuda_quant.cuh — how block formats lie on the device. A matrix is cut into tiles of 16 rows and groups of 256 columns,
 * padded with zeros; a tile's groups follow each other, each with its scales, so that a warp copies a group as one
 * piece. A group has 8 steps of 32 columns. In a warp, lane = 4 g + t holds rows g and g + 8 of a tile, and of each step
 * columns 4t .. 4t+3 (the first four) and 16+4t .. 16+4t+3 (the second four): the operand of an 8-bit tensor product.
 *   Q8_0   two halves of 4 steps. A step has 16 bytes a lane: row g first four, second four, then row g + 8 likewise.
 *          Then for each row 4 half-precision scales
 *   Q4_0   16 bytes a lane for two steps: words (step 0 row g), (step 0 row g + 8), (step 1 row g), (step 1 row g + 8);
 *          byte j of a word has the value (0 .. 15) of first column j low and of second column j high. Then for each row
 *          8 half-precision scales
 *   Q4_K   values as Q4_0; for each row 8 pairs (scale, min) of bytes; for each row the halves (d, dmin)
 *   Q5_K   low four bits as Q4_0; 16 bytes a lane of fifth bits: word w is for steps 2w and 2w + 1, and bit 4 (step & 1) +
 *          2 (row g + 8) + (second four) of byte j for column j; then as Q4_K
 *   Q6_K   values as 8-bit numbers 4 q: words of low four bits as Q4_0, but in bits 2 .. 5 of a byte, the second four
 *          rotated left by another 4; 32 bytes a lane of high bits: word w is for step w, and bits 2p, 2p + 1 of byte j for
 *          column j, p = 2 (row g + 8) + (second four). Then for each row 16 signed scales, then for each row half d
 */
#ifndef XL_CUDA_QUANT_CUH
#define XL_CUDA_QUANT_CUH

#include "cuda_device.cuh"

enum { GROUP = 256, GROUP_STEPS = 8 };

__host__ __device__ static inline uint32_t quant_groups(uint32_t in) { return (in + GROUP - 1) / GROUP; }

/* Bytes of a group of 16 rows, and where in it (in a half of it: Q8_0) the scales begin. */
__host__ __device__ constexpr uint32_t quant_group_bytes(xlstm_dtype t)
{
    return t == XLSTM_Q8_0   ? 2 * (2048 + 128)
           : t == XLSTM_Q4_0 ? 2048 + 256
           : t == XLSTM_Q4_K ? 2048 + 256 + 64
           : t == XLSTM_Q5_K ? 2048 + 512 + 256 + 64
                             : 2048 + 1024 + 256 + 32;
}
__host__ __device__ constexpr uint32_t quant_scales_at(xlstm_dtype t)
{
    return t == XLSTM_Q5_K ? 2048 + 512 : t == XLSTM_Q6_K ? 2048 + 1024 : 2048;
}

#endif
