/*
 * cuda_chunk.cuh — launcher of the chunkwise cell.
 */
#ifndef XL_CUDA_CHUNK_CUH
#define XL_CUDA_CHUNK_CUH

#include "cuda_internal.cuh"

/* The batch's chunked runs: be->runs[n_step ..] and be->chunks. */
void cuda_run_chunkwise(cuda_backend *be, const cuda_op *op);

#endif
