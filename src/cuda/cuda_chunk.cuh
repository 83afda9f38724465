/*
 * cuda_chunk.cuh — the chunkwise cell: cuda_chunk.cu, or cuda_scan.cu where shared memory is small.
 */
#ifndef XL_CUDA_CHUNK_CUH
#define XL_CUDA_CHUNK_CUH

#include "cuda_internal.cuh"

/* Chunked runs first .. first + n - 1; C of the block, float32 or bfloat16, lies c_block bytes behind a run's c. The call
 * with the first one (n_step) prepares the chunks of all. */
void cuda_run_chunkwise(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);

/* cuda_scan.cu, for models that cuda_chunkwise_fits has looked at otherwise */
bool cuda_scan_fits(const cuda_backend *be);
size_t cuda_scan_scratch(const cuda_backend *be);
cudaError_t cuda_scan_setup(cuda_backend *be);
void cuda_run_scan(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);

#endif
