/*
 * cuda_device.cuh — device helpers of the cuda backend: number conversion, block reductions, matrix fragments,
 * asynchronous copies and the two instructions of programmatic dependent launch. Every kernel calls pdl_wait before it
 * touches anything an earlier kernel of the pass wrote, and every kernel calls it, so that completion is transitive.
 */
#ifndef XL_CUDA_DEVICE_CUH
#define XL_CUDA_DEVICE_CUH

#include "cuda_internal.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __nv_bfloat16 bf16;

__device__ __forceinline__ void pdl_wait()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void pdl_go()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float value_of(float x) { return x; }
__device__ __forceinline__ float value_of(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float value_of(__half x) { return __half2float(x); }
__device__ __forceinline__ void put(float *p, float x) { *p = x; }
__device__ __forceinline__ void put(bf16 *p, float x) { *p = __float2bfloat16_rn(x); }
__device__ __forceinline__ void put(__half *p, float x) { *p = __float2half_rn(x); }

/* x rounded to a storage type and back. */
template <typename T> __device__ __forceinline__ float rounded(float x)
{
    T t;
    put(&t, x);
    return value_of(t);
}
__device__ __forceinline__ float rounded_to(float x, xlstm_dtype t)
{
    if (t == XLSTM_BF16) return rounded<bf16>(x);
    if (t == XLSTM_F16) return rounded<__half>(x);
    return x;
}

__device__ __forceinline__ float load_plain(const void *p, size_t i, xlstm_dtype t)
{
    if (t == XLSTM_BF16) return value_of(((const bf16 *)p)[i]);
    if (t == XLSTM_F16) return value_of(((const __half *)p)[i]);
    return ((const float *)p)[i];
}
__device__ __forceinline__ void store_plain(void *p, size_t i, xlstm_dtype t, float x)
{
    if (t == XLSTM_BF16) put((bf16 *)p + i, x);
    else if (t == XLSTM_F16) put((__half *)p + i, x);
    else ((float *)p)[i] = x;
}

/* Eight consecutive values, 16-byte aligned storage. */
__device__ __forceinline__ void load8(float out[8], const float *p)
{
    float4 a = ((const float4 *)p)[0], b = ((const float4 *)p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}
__device__ __forceinline__ void unpack_bf16(float out[2], uint32_t u)
{
    out[0] = __uint_as_float(u << 16);
    out[1] = __uint_as_float(u & 0xffff0000u);
}
__device__ __forceinline__ void unpack_f16(float out[2], uint32_t u)
{
    __half2 h;
    memcpy(&h, &u, 4);
    float2 f = __half22float2(h);
    out[0] = f.x, out[1] = f.y;
}
__device__ __forceinline__ void load8(float out[8], const bf16 *p)
{
    uint4 u = *(const uint4 *)p;
    unpack_bf16(out, u.x), unpack_bf16(out + 2, u.y), unpack_bf16(out + 4, u.z), unpack_bf16(out + 6, u.w);
}
__device__ __forceinline__ void load8(float out[8], const __half *p)
{
    uint4 u = *(const uint4 *)p;
    unpack_f16(out, u.x), unpack_f16(out + 2, u.y), unpack_f16(out + 4, u.z), unpack_f16(out + 6, u.w);
}
__device__ __forceinline__ void load8_plain(float out[8], const void *p, size_t i, xlstm_dtype t)
{
    if (t == XLSTM_BF16) load8(out, (const bf16 *)p + i);
    else if (t == XLSTM_F16) load8(out, (const __half *)p + i);
    else load8(out, (const float *)p + i);
}
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    uint32_t u;
    memcpy(&u, &p, 4);
    return u;
}
__device__ __forceinline__ void store8(float *p, const float v[8])
{
    ((float4 *)p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    ((float4 *)p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void store8(bf16 *p, const float v[8])
{
    *(uint4 *)p =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
__device__ __forceinline__ void store8(__half *p, const float v[8])
{
    for (int i = 0; i < 8; i++) put(p + i, v[i]);
}

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

/* The first fault of a row stays. */
__device__ __forceinline__ void report(uint32_t *faults, uint32_t row, uint32_t code)
{
    atomicCAS(faults + row, 0u, code);
}

__device__ __forceinline__ float warp_sum(float x)
{
    for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

/* Sum over the block in every thread; `room` holds 32 floats. */
__device__ __forceinline__ float block_sum(float x, float *room)
{
    x = warp_sum(x);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
    __syncthreads();
    float sum = 0;
    for (unsigned w = 0; w < blockDim.x >> 5; w++) sum += room[w];
    return sum;
}

/* The hardware reciprocal is good to an ulp; NaN goes through, and 1 / inf is 0. */
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
__device__ __forceinline__ float log_sigmoid(float x) { return x >= 0 ? -log1pf(expf(-x)) : x - log1pf(expf(x)); }
__device__ __forceinline__ float soft_cap(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

/* d += a b for a 16x16 (row), b 16x8 (column), both bf16 */
__device__ __forceinline__ void mma_bf16(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                         uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* d = a b */
__device__ __forceinline__ void mma_bf16_first(float d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                               uint32_t b0, uint32_t b1)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "f"(0.0f));
}

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void load_matrix4(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrix4_t(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_matrix2_t(uint32_t r[2], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
}

/* 16 bytes to shared memory; zeros when not `valid` (the source is then not read) */
__device__ __forceinline__ void copy_async16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
/* The same for weights. */
__device__ __forceinline__ void copy_stream16(uint32_t to, const void *from, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
