/*
 * cuda_chunk.cuh — what the forms of the cell share, and the chunkwise form: cuda_chunk.cu, or cuda_scan.cu where shared
 * memory is small.
 */
#ifndef XL_CUDA_CHUNK_CUH
#define XL_CUDA_CHUNK_CUH

#include "cuda_internal.cuh"

/* What every form of the cell is told; T: what q, k, v and h are, void if that is only known as `act`. */
template <typename T> struct cell_args {
    T *h;
    const T *q, *k, *v;
    const float *gates;
    const cuda_run *runs;
    uint32_t heads, dq, dv, chunk_size, fault;
    size_t c_block, n_block, m_block; /* offset of this block in C (bytes), n and m (floats) */
    float cap, eps, scale;
    xlstm_dtype act, kernel;
    bool narrow_state;
    uint32_t *faults;
};
template <typename T>
void fill_cell_args(cell_args<T> &a, const cuda_backend *be, const cuda_op *op, uint32_t first, size_t c_block)
{
    const xl_backend_options *o = &be->opt;
    a.h = (T *)op->mlstm.h->data;
    a.q = (const T *)op->mlstm.q->data;
    a.k = (const T *)op->mlstm.k->data;
    a.v = (const T *)op->mlstm.v->data;
    a.gates = (const float *)op->mlstm.gates->data;
    a.runs = be->runs + first;
    a.heads = o->num_heads;
    a.dq = o->head_qk;
    a.dv = o->head_v;
    a.chunk_size = o->chunk_size;
    a.fault = op->mlstm.fault;
    a.c_block = c_block;
    a.n_block = (size_t)op->mlstm.block * o->num_heads * o->head_qk;
    a.m_block = (size_t)op->mlstm.block * o->num_heads;
    a.cap = op->mlstm.gate_soft_cap;
    a.eps = op->mlstm.eps;
    a.scale = 1.0f / sqrtf((float)o->head_qk);
    a.act = o->activations;
    a.kernel = o->kernel;
    a.narrow_state = o->state == XLSTM_BF16;
    a.faults = be->faults;
}

/* Chunked runs first .. first + n - 1; C of the block, float32 or bfloat16, lies c_block bytes behind a run's c. The call
 * with the first one (n_step) prepares the chunks of all. */
void cuda_run_chunkwise(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);

/* cuda_scan.cu, for models that cuda_chunkwise_fits has looked at otherwise */
bool cuda_scan_fits(const cuda_backend *be);
size_t cuda_scan_scratch(const cuda_backend *be);
cudaError_t cuda_scan_setup(cuda_backend *be);
void cuda_run_scan(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);

#endif
