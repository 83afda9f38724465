/*
 * cuda_chunk.cuh — launcher of the chunkwise cell.
 */
#ifndef XL_CUDA_CHUNK_CUH
#define XL_CUDA_CHUNK_CUH

#include "cuda_internal.cuh"

/* Chunked runs first .. first + n - 1; C of the block, float32 or bfloat16, lies c_block bytes behind a run's c. The call
 * with the first one (n_step) prepares the chunks of all. */
void cuda_run_chunkwise(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);

#endif
