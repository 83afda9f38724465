/*
 * cuda_linear.cuh — what the two kernels for few rows share (cuda_linear.cu: plain weights, cuda_block.cu: block
 * formats): the outputs of a launch, values of x as they are stored, storing a tile's sums, and weights on their way to
 * the second-level cache.
 */
#ifndef XL_CUDA_LINEAR_CUH
#define XL_CUDA_LINEAR_CUH

#include "cuda_quant.cuh"

constexpr uint32_t LINEAR_THREADS = 256, LINEAR_WARPS = 8, LINEAR_STEP = 32;

/* One product of a launch: tiles of 16 rows of its weights from tile0 on. */
struct linear_entry {
    const uint8_t *w;
    const float *bias;
    void *out;
    size_t pitch;
    uint32_t n, stride, column, tile0;
    xlstm_dtype format;
    bool add, wide;
};

linear_entry linear_entry_for(const xl_linear *l);

/* Eight values as stored; loads of several are issued before the first is used. */
struct stored8 {
    uint4 a, b;
};
__device__ __forceinline__ stored8 fetch8(const void *p, size_t i, xlstm_dtype t)
{
    stored8 r;
    r.a = *(const uint4 *)((const uint8_t *)p + i * (t == XLSTM_F32 ? 4 : 2));
    r.b = t == XLSTM_F32 ? *(const uint4 *)((const uint8_t *)p + i * 4 + 16) : make_uint4(0, 0, 0, 0);
    return r;
}
__device__ __forceinline__ void values8(float v[8], const stored8 &r, xlstm_dtype t)
{
    if (t == XLSTM_F32) {
        v[0] = __uint_as_float(r.a.x), v[1] = __uint_as_float(r.a.y), v[2] = __uint_as_float(r.a.z),
        v[3] = __uint_as_float(r.a.w);
        v[4] = __uint_as_float(r.b.x), v[5] = __uint_as_float(r.b.y), v[6] = __uint_as_float(r.b.z),
        v[7] = __uint_as_float(r.b.w);
    } else if (t == XLSTM_BF16) {
        unpack_bf16(v, r.a.x), unpack_bf16(v + 2, r.a.y), unpack_bf16(v + 4, r.a.z), unpack_bf16(v + 6, r.a.w);
    } else {
        unpack_f16(v, r.a.x), unpack_f16(v + 2, r.a.y), unpack_f16(v + 4, r.a.z), unpack_f16(v + 6, r.a.w);
    }
}

/* Eight values as bf16 fragments of `parts` exact parts: f[part][4 words of 2]. */
template <int P> __device__ __forceinline__ void split8(uint32_t f[P][4], float v[8])
{
#pragma unroll
    for (int p = 0; p < P; p++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            f[p][i] = pack_bf16(v[2 * i], v[2 * i + 1]);
            if (p + 1 < P) {
                float r[2];
                unpack_bf16(r, f[p][i]);
                v[2 * i] -= r[0];
                v[2 * i + 1] -= r[1];
            }
        }
    }
}

__device__ __forceinline__ uint32_t word_of(const uint4 &u, int i)
{
    return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
}
__device__ __forceinline__ float half_at(uint32_t word, int i)
{
    float f[2];
    unpack_f16(f, word);
    return f[i];
}

/* Output n of row `row` of the batch gets `sum`. */
__device__ __forceinline__ void store_sum(const linear_entry &e, uint32_t row, uint32_t n, float sum, xlstm_dtype act)
{
    if (e.bias != nullptr) sum += e.bias[n];
    size_t at = (size_t)row * e.stride + e.column + n;
    if (e.wide) {
        ((float *)e.out)[at] = e.add ? ((float *)e.out)[at] + sum : sum;
    } else {
        if (e.add) sum = rounded_to(sum, act) + load_plain(e.out, at, act);
        store_plain(e.out, at, act, sum);
    }
}

/* Fetches `bytes` (a multiple of 16) to the second-level cache. */
__device__ __forceinline__ void prefetch_bytes(const void *from, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
#else
    for (uint32_t i = 0; i < bytes; i += 128)
        asm volatile("prefetch.global.L2 [%0];" ::"l"((const uint8_t *)from + i) : "memory");
#endif
}

/* cuda_block.cu: rows a launch takes, and a launch for rows row0 .. of the products `chosen` of `op`, whose weights are
 * of the block format `main` or, where small, float32. x has a multiple of 32 columns. */
uint32_t cuda_block_rows(const cuda_backend *be, xlstm_dtype main, uint32_t k);
void cuda_block_launch(cuda_backend *be, const cuda_op *op, const uint32_t *chosen, uint32_t n_chosen, xlstm_dtype main,
                       uint32_t row0, uint32_t rows);
cudaError_t cuda_block_setup(cuda_backend *be);

#endif
