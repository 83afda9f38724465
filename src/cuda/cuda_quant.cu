/*
 * cuda_quant.cu — block formats on the device: decoding the file's blocks, repacking them into the tiles of
 * cuda_quant.cuh at load, and unpacking tiles to plain rows for large products. Decoding is exact to float32.
 */
#include "cuda_quant.cuh"

namespace
{

__device__ __forceinline__ float half_of(const uint8_t *p)
{
    uint16_t u = (uint16_t)(p[0] | p[1] << 8);
    return __half2float(__ushort_as_half(u));
}

/* Scale and minimum j of a K-quant's twelve packed bytes. */
__device__ __forceinline__ void k_scale(const uint8_t *s, uint32_t j, uint32_t *scale, uint32_t *low)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *low = s[j + 4] & 63;
    } else {
        *scale = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
        *low = s[j + 4] >> 4 | (s[j] >> 6) << 4;
    }
}

/* Column i of a row as integer, with its scale and what is subtracted: value = scale q - low. */
__device__ __forceinline__ int element(const uint8_t *row, uint32_t i, xlstm_dtype t, float *scale, float *low)
{
    uint32_t j = i % 256;
    *low = 0;
    if (t == XLSTM_Q8_0) {
        const uint8_t *b = row + (size_t)(i / 32) * 34;
        *scale = half_of(b);
        return (int8_t)b[2 + i % 32];
    }
    if (t == XLSTM_Q4_0) {
        const uint8_t *b = row + (size_t)(i / 32) * 18;
        *scale = half_of(b);
        uint32_t c = i % 32;
        return (int)(c < 16 ? b[2 + c] & 15 : b[2 + c - 16] >> 4) - 8;
    }
    if (t == XLSTM_Q6_K) {
        const uint8_t *b = row + (size_t)(i / 256) * 210;
        uint32_t part = j / 128, quarter = j % 128 / 32, l = j % 32;
        uint32_t nibbles = b[part * 64 + (quarter & 1) * 32 + l];
        uint32_t four = quarter < 2 ? nibbles & 15 : nibbles >> 4;
        uint32_t two = b[128 + part * 32 + l] >> (2 * quarter) & 3;
        *scale = half_of(b + 208) * (float)(int8_t)b[192 + j / 16];
        return (int)(four | two << 4) - 32;
    }
    uint32_t sc, mn, l = j % 32, pair = j / 64, high = j / 32 & 1;
    bool five = t == XLSTM_Q5_K;
    const uint8_t *b = row + (size_t)(i / 256) * (five ? 176 : 144);
    k_scale(b + 4, j / 32, &sc, &mn);
    *scale = half_of(b) * (float)sc;
    *low = half_of(b + 2) * (float)mn;
    uint32_t byte = b[(five ? 48 : 16) + pair * 32 + l];
    uint32_t q = high ? byte >> 4 : byte & 15;
    if (five) q |= (b[16 + l] >> (j / 32) & 1) << 4;
    return (int)q;
}

size_t row_bytes(xlstm_dtype t, uint32_t in)
{
    switch (t) {
    case XLSTM_Q8_0:
        return (size_t)in / 32 * 34;
    case XLSTM_Q4_0:
        return (size_t)in / 32 * 18;
    case XLSTM_Q4_K:
        return (size_t)in / 256 * 144;
    case XLSTM_Q5_K:
        return (size_t)in / 256 * 176;
    default:
        return (size_t)in / 256 * 210;
    }
}

__global__ void decode_kernel(float *dst, size_t pitch, const uint8_t *src, size_t src_bytes, xlstm_dtype t,
                              uint32_t rows, uint32_t in)
{
    size_t n = (size_t)rows * in;
    for (size_t e = (size_t)blockIdx.x * blockDim.x + threadIdx.x; e < n; e += (size_t)gridDim.x * blockDim.x) {
        uint32_t r = (uint32_t)(e / in), i = (uint32_t)(e % in);
        float scale, low;
        int q = element(src + r * src_bytes, i, t, &scale, &low);
        dst[r * pitch + i] = scale * (float)q - low;
    }
}

/* One warp a tile and step. Rows beyond `rows` and columns beyond `in` become zero values with zero scales. */
__global__ void repack_kernel(uint8_t *tiles, const uint8_t *src, size_t src_bytes, xlstm_dtype t, uint32_t tile0,
                              uint32_t rows, uint32_t in)
{
    uint32_t lane = threadIdx.x, g = lane / 4, l = lane % 4, step = blockIdx.y, inside = step % GROUP_STEPS;
    uint8_t *group =
        tiles + ((size_t)(tile0 + blockIdx.x) * quant_groups(in) + step / GROUP_STEPS) * quant_group_bytes(t);
    uint32_t high[2] = {}; /* what Q5_K and Q6_K keep apart of this lane's bits, by row */
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t r = blockIdx.x * 16 + g + half * 8;
        const uint8_t *row = src + (size_t)r * src_bytes;
        uint32_t word[2] = {}; /* first and second four */
        for (uint32_t j = 0; j < 8; j++) {
            uint32_t i = step * 32 + j / 4 * 16 + 4 * l + j % 4, at = 8 * (j % 4);
            float scale, low;
            int q = r < rows && i < in ? element(row, i, t, &scale, &low) : t == XLSTM_Q4_0 ? -8 : 0;
            uint32_t u = (uint32_t)(t == XLSTM_Q4_0 ? q + 8 : q);
            if (t == XLSTM_Q8_0) {
                word[j / 4] |= (u & 255) << at;
            } else if (t == XLSTM_Q6_K) {
                word[j / 4] |= (u & 15) << (at + 2);
                high[half] |= (u >> 4 & 3) << (at + 2 * (2 * half + j / 4));
            } else {
                word[j / 4] |= (u & 15) << at;
                high[half] |= (u >> 4 & 1) << (at + 4 * (inside & 1) + 2 * half + j / 4);
            }
        }
        if (t == XLSTM_Q8_0) {
            uint8_t *to = group + inside / 4 * (2048 + 128) + inside % 4 * 512 + lane * 16 + half * 8;
            *(uint2 *)to = make_uint2(word[0], word[1]);
        } else {
            uint32_t both = t == XLSTM_Q6_K ? word[0] | __funnelshift_l(word[1], word[1], 4) : word[0] | word[1] << 4;
            ((uint32_t *)(group + inside / 2 * 512 + lane * 16))[(inside & 1) * 2 + half] = both;
        }
    }
    if (t == XLSTM_Q6_K)
        *(uint32_t *)(group + 2048 + inside / 4 * 512 + lane * 16 + inside % 4 * 4) = high[0] | high[1];
    if (t == XLSTM_Q5_K) { /* two steps share a word: each writes its half of every byte */
        uint8_t *to = group + 2048 + lane * 16 + inside / 2 * 4;
        uint32_t bits = high[0] | high[1], *word = (uint32_t *)to;
        atomicAnd(word, (inside & 1) != 0 ? 0x0f0f0f0fu : 0xf0f0f0f0u);
        atomicOr(word, bits);
    }
    if (lane >= 16) return;
    uint32_t r = blockIdx.x * 16 + lane, i = step * 32;
    bool there = r < rows && i < in;
    const uint8_t *row = src + (size_t)r * src_bytes;
    uint8_t *scales = group + quant_scales_at(t);
    float scale = 0, low = 0;
    if (t == XLSTM_Q8_0) {
        if (there) element(row, i, t, &scale, &low);
        scales += inside / 4 * (2048 + 128);
        ((__half *)scales)[lane * 4 + inside % 4] = __float2half_rn(scale);
    } else if (t == XLSTM_Q4_0) {
        if (there) element(row, i, t, &scale, &low);
        ((__half *)scales)[lane * 8 + inside] = __float2half_rn(scale);
    } else if (t == XLSTM_Q6_K) {
        const uint8_t *b = row + (size_t)(step / GROUP_STEPS) * 210;
        for (uint32_t j = 0; j < 2; j++) scales[lane * 16 + inside * 2 + j] = there ? b[192 + inside * 2 + j] : 0;
        if (inside == 0) {
            for (uint32_t j = 0; j < 2; j++) scales[256 + lane * 2 + j] = there ? b[208 + j] : 0;
        }
    } else {
        const uint8_t *b = row + (size_t)(step / GROUP_STEPS) * (t == XLSTM_Q4_K ? 144 : 176);
        uint32_t sc = 0, mn = 0;
        if (there) k_scale(b + 4, inside, &sc, &mn);
        scales[lane * 16 + inside * 2] = (uint8_t)sc;
        scales[lane * 16 + inside * 2 + 1] = (uint8_t)mn;
        if (inside == 0) {
            for (uint32_t j = 0; j < 4; j++) scales[256 + lane * 4 + j] = there ? b[j] : 0;
        }
    }
}

/* One warp a tile and step: 16 rows of 32 columns. */
__global__ void unpack_kernel(void *dst, xlstm_dtype dst_type, size_t pitch, const uint8_t *tiles, xlstm_dtype t,
                              uint32_t tile0, uint32_t rows, uint32_t in)
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, l = lane % 4;
    uint32_t step = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, inside = step % GROUP_STEPS;
    if (step * 32 >= pitch) return;
    const uint8_t *group =
        tiles + ((size_t)(tile0 + blockIdx.x) * quant_groups(in) + step / GROUP_STEPS) * quant_group_bytes(t);
    const uint8_t *scales = group + quant_scales_at(t);
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t r = g + half * 8, row = blockIdx.x * 16 + r;
        if (row >= rows) return;
        float v[8], s0, s1, low = 0;
        uint32_t first, second; /* four bytes each */
        if (t == XLSTM_Q8_0) {
            const uint8_t *part = group + inside / 4 * (2048 + 128);
            uint2 u = *(const uint2 *)(part + inside % 4 * 512 + lane * 16 + half * 8);
            first = u.x, second = u.y;
            s0 = s1 = half_of(part + 2048 + (r * 4 + inside % 4) * 2);
        } else {
            uint32_t word = ((const uint32_t *)(group + inside / 2 * 512 + lane * 16))[(inside & 1) * 2 + half];
            if (t == XLSTM_Q6_K) {
                uint32_t high = *(const uint32_t *)(group + 2048 + inside / 4 * 512 + lane * 16 + inside % 4 * 4);
                first = (word & 0x3c3c3c3cu) | (high << (6 - 4 * half) & 0xc0c0c0c0u);
                second = (__funnelshift_r(word, word, 4) & 0x3c3c3c3cu) | (high << (4 - 4 * half) & 0xc0c0c0c0u);
                float d = half_of(scales + 256 + r * 2) * 0.25f;
                s0 = d * (float)(int8_t)scales[r * 16 + inside * 2];
                s1 = d * (float)(int8_t)scales[r * 16 + inside * 2 + 1];
            } else {
                first = word & 0x0f0f0f0fu, second = word >> 4 & 0x0f0f0f0fu;
                if (t == XLSTM_Q4_0) {
                    s0 = s1 = half_of(scales + (r * 8 + inside) * 2);
                    low = 8 * s0;
                } else {
                    if (t == XLSTM_Q5_K) {
                        uint32_t bits = *(const uint32_t *)(group + 2048 + lane * 16 + inside / 2 * 4) >>
                                        (4 * (inside & 1) + 2 * half);
                        first |= (bits & 0x01010101u) << 4, second |= (bits >> 1 & 0x01010101u) << 4;
                    }
                    s0 = s1 = half_of(scales + 256 + r * 4) * (float)scales[r * 16 + inside * 2];
                    low = half_of(scales + 256 + r * 4 + 2) * (float)scales[r * 16 + inside * 2 + 1];
                }
            }
        }
        for (int j = 0; j < 8; j++) {
            int q = (int)(int8_t)((j < 4 ? first : second) >> (8 * (j & 3)));
            v[j] = (j < 4 ? s0 : s1) * (float)q - low;
        }
        size_t to = (size_t)row * pitch + step * 32 + 4 * l;
        if (dst_type == XLSTM_BF16) {
            *(uint2 *)((bf16 *)dst + to) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
            *(uint2 *)((bf16 *)dst + to + 16) = make_uint2(pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        } else if (dst_type == XLSTM_F32) {
            *(float4 *)((float *)dst + to) = make_float4(v[0], v[1], v[2], v[3]);
            *(float4 *)((float *)dst + to + 16) = make_float4(v[4], v[5], v[6], v[7]);
        } else {
            for (uint32_t j = 0; j < 8; j++) put((__half *)dst + to + j / 4 * 16 + j % 4, v[j]);
        }
    }
}

} // namespace

bool cuda_quant_supported(xlstm_dtype t)
{
    return t == XLSTM_Q8_0 || t == XLSTM_Q4_0 || t == XLSTM_Q4_K || t == XLSTM_Q5_K || t == XLSTM_Q6_K;
}

void cuda_quant_sizes(xlstm_dtype t, uint32_t out, uint32_t in, size_t *values, size_t *scales)
{
    *values = (size_t)((out + 15) / 16) * quant_groups(in) * quant_group_bytes(t);
    *scales = 0; /* they lie with the values */
}

void cuda_quant_repack(cudaStream_t stream, xl_matrix *m, const void *src, uint32_t row0, uint32_t rows)
{
    dim3 grid((rows + 15) / 16, quant_groups(m->in) * GROUP_STEPS);
    repack_kernel<<<grid, 32, 0, stream>>>(m->data, (const uint8_t *)src, row_bytes(m->dtype, m->in), m->dtype,
                                           row0 / 16, rows, m->in);
}

void cuda_quant_unpack(cuda_backend *be, void *dst, xlstm_dtype dst_type, size_t pitch, const xl_matrix *m,
                       uint32_t row0, uint32_t rows)
{
    dim3 grid((rows + 15) / 16, (quant_groups(m->in) * GROUP_STEPS + 3) / 4);
    unpack_kernel<<<grid, 128, 0, be->stream>>>(dst, dst_type, pitch, m->data, m->dtype, row0 / 16, rows, m->in);
    be->after_kernel = false;
}

void cuda_quant_decode(cudaStream_t stream, float *dst, size_t pitch, const void *src, xlstm_dtype t, uint32_t rows,
                       uint32_t in)
{
    size_t want = ((size_t)rows * in + 1023) / 1024;
    decode_kernel<<<(unsigned)XL_MAX((size_t)1, XL_MIN(want, (size_t)4096)), 256, 0, stream>>>(
        dst, pitch, (const uint8_t *)src, row_bytes(t, in), t, rows, in);
}
