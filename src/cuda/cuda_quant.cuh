/*
 * cuda_quant.cuh — how block formats lie on the device. A matrix is cut into tiles of 16 rows and steps of 32 columns;
 * steps are padded to groups of 8 (256 columns) with zeros. In a warp, lane = 4 g + t holds rows g and g + 8 of a tile:
 *   Q8_0   16 bytes a step and lane: columns 8t .. 8t+7 of row g, then of row g + 8. Scales: half [tile][group][16][8]
 *   Q4_0   16 bytes for two steps: words (step 0 row g), (step 0 row g + 8), (step 1 row g), (step 1 row g + 8); nibble
 *          i of a word is column 8t + 2i, nibble 4 + i column 8t + 2i + 1. Scales as Q8_0
 *   Q4_K   values as Q4_0 (0 .. 15). Scales, 320 bytes a group: for each row 8 pairs (scale, min) of bytes, then for
 *          each row the halves (d, dmin)
 *   Q5_K, Q6_K   16 signed bytes a step and lane: row g columns 4t .. 4t+3, 16+4t .. 16+4t+3, then row g + 8 likewise.
 *          Scales: float [tile][step][3][16]: of columns 0-15, of columns 16-31, and what to subtract times the sum
 */
#ifndef XL_CUDA_QUANT_CUH
#define XL_CUDA_QUANT_CUH

#include "cuda_device.cuh"

enum { GROUP_STEPS = 8, K_GROUP_BYTES = 320 };

__host__ __device__ static inline uint32_t quant_groups(uint32_t in) { return (in + 255) / 256; }

#endif
