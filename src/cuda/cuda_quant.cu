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
__global__ void repack_kernel(uint8_t *values, uint8_t *scales, const uint8_t *src, size_t src_bytes, xlstm_dtype t,
                              uint32_t tile0, uint32_t rows, uint32_t in)
{
    uint32_t lane = threadIdx.x, g = lane / 4, l = lane % 4, tile = blockIdx.x, step = blockIdx.y,
             groups = quant_groups(in);
    size_t at = (size_t)(tile0 + tile);
    bool bytes = t == XLSTM_Q5_K || t == XLSTM_Q6_K;
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t r = tile * 16 + g + half * 8;
        const uint8_t *row = src + (size_t)r * src_bytes;
        int q[8];
        float scale, low;
        for (uint32_t j = 0; j < 8; j++) {
            uint32_t i = step * 32 + (bytes ? j / 4 * 16 + 4 * l + j % 4 : 8 * l + j);
            q[j] = r < rows && i < in ? element(row, i, t, &scale, &low) : 0;
        }
        if (t == XLSTM_Q8_0 || bytes) {
            uint8_t *to = values + (at * groups * 8 + step) * 512 + lane * 16 + half * 8;
            for (uint32_t j = 0; j < 8; j++) to[j] = (uint8_t)(int8_t)q[j];
        } else {
            uint32_t word = 0, bias = t == XLSTM_Q4_0 ? 8 : 0;
            for (uint32_t j = 0; j < 8; j++) word |= ((uint32_t)(q[j] + (int)bias) & 15) << (4 * (j / 2 + (j & 1) * 4));
            uint32_t *to = (uint32_t *)(values + (at * groups * 4 + step / 2) * 512 + lane * 16);
            to[(step & 1) * 2 + half] = word;
        }
    }
    if (lane >= 16) return;
    uint32_t r = tile * 16 + lane, i = step * 32;
    bool there = r < rows && i < in;
    const uint8_t *row = src + (size_t)r * src_bytes;
    float scale = 0, low = 0;
    if (t == XLSTM_Q8_0 || t == XLSTM_Q4_0) {
        if (there) element(row, i, t, &scale, &low);
        ((__half *)(scales + (at * groups + step / 8) * 256))[lane * 8 + step % 8] = __float2half_rn(scale);
    } else if (t == XLSTM_Q4_K) {
        uint8_t *to = scales + (at * groups + step / 8) * K_GROUP_BYTES;
        const uint8_t *b = row + (size_t)(step / 8) * 144;
        uint32_t sc = 0, mn = 0;
        if (there) k_scale(b + 4, step % 8, &sc, &mn);
        to[lane * 16 + step % 8 * 2] = (uint8_t)sc;
        to[lane * 16 + step % 8 * 2 + 1] = (uint8_t)mn;
        if (step % 8 == 0) {
            for (uint32_t j = 0; j < 4; j++) to[256 + lane * 4 + j] = there ? b[j] : 0;
        }
    } else {
        float *to = (float *)(scales + (at * groups * 8 + step) * 192);
        float second = 0, unused;
        if (there) {
            element(row, i, t, &scale, &low);
            element(row, i + 16, t, &second, &unused);
        }
        to[lane] = scale;
        to[16 + lane] = second;
        to[32 + lane] = low;
    }
}

/* One warp a tile and step: 16 rows of 32 columns. */
__global__ void unpack_kernel(void *dst, xlstm_dtype dst_type, size_t pitch, const uint8_t *values,
                              const uint8_t *scales, xlstm_dtype t, uint32_t tile0, uint32_t rows, uint32_t in)
{
    uint32_t lane = threadIdx.x % 32, g = lane / 4, l = lane % 4, groups = quant_groups(in);
    uint32_t step = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    size_t at = (size_t)(tile0 + blockIdx.x);
    if (step * 32 >= pitch) return;
    bool bytes = t == XLSTM_Q5_K || t == XLSTM_Q6_K;
    for (uint32_t half = 0; half < 2; half++) {
        uint32_t r = g + half * 8, row = blockIdx.x * 16 + r;
        if (row >= rows) return;
        float v[8], s0, s1, low = 0;
        if (t == XLSTM_Q8_0 || bytes) {
            const int8_t *q = (const int8_t *)(values + (at * groups * 8 + step) * 512 + lane * 16 + half * 8);
            for (int j = 0; j < 8; j++) v[j] = (float)q[j];
        } else {
            const uint32_t *w = (const uint32_t *)(values + (at * groups * 4 + step / 2) * 512 + lane * 16);
            uint32_t word = w[(step & 1) * 2 + half];
            for (int j = 0; j < 8; j++)
                v[j] = (float)((int)(word >> (4 * (j / 2 + (j & 1) * 4)) & 15) - (t == XLSTM_Q4_0 ? 8 : 0));
        }
        if (bytes) {
            const float *s = (const float *)(scales + (at * groups * 8 + step) * 192);
            s0 = s[r], s1 = s[16 + r], low = s[32 + r];
        } else if (t == XLSTM_Q4_K) {
            const uint8_t *s = scales + (at * groups + step / 8) * K_GROUP_BYTES;
            s0 = s1 = half_of(s + 256 + r * 4) * (float)s[r * 16 + step % 8 * 2];
            low = half_of(s + 256 + r * 4 + 2) * (float)s[r * 16 + step % 8 * 2 + 1];
        } else {
            s0 = s1 = half_of(scales + (at * groups + step / 8) * 256 + (r * 8 + step % 8) * 2);
        }
        for (int j = 0; j < 8; j++) v[j] = (j < 4 ? s0 : s1) * v[j] - low;
        size_t to = (size_t)row * pitch + step * 32;
        if (bytes || dst_type == XLSTM_F16) {
            for (uint32_t j = 0; j < 8; j++) {
                store_plain(dst, to + (bytes ? j / 4 * 16 + 4 * l + j % 4 : 8 * l + j), dst_type, v[j]);
            }
        } else if (dst_type == XLSTM_BF16) {
            store8((bf16 *)dst + to + 8 * l, v);
        } else {
            store8((float *)dst + to + 8 * l, v);
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
    size_t groups = (size_t)((out + 15) / 16) * quant_groups(in);
    bool nibbles = t == XLSTM_Q4_0 || t == XLSTM_Q4_K;
    *values = groups * (nibbles ? 4 * 512 : 8 * 512);
    *scales = groups * (t == XLSTM_Q4_K ? (size_t)K_GROUP_BYTES : t == XLSTM_Q8_0 || t == XLSTM_Q4_0 ? 256 : 8 * 192);
}

void cuda_quant_repack(cudaStream_t stream, xl_matrix *m, const void *src, uint32_t row0, uint32_t rows)
{
    dim3 grid((rows + 15) / 16, quant_groups(m->in) * 8);
    repack_kernel<<<grid, 32, 0, stream>>>(m->data, m->scales, (const uint8_t *)src, row_bytes(m->dtype, m->in),
                                           m->dtype, row0 / 16, rows, m->in);
}

void cuda_quant_unpack(cuda_backend *be, void *dst, xlstm_dtype dst_type, size_t pitch, const xl_matrix *m,
                       uint32_t row0, uint32_t rows)
{
    dim3 grid((rows + 15) / 16, (quant_groups(m->in) * 8 + 3) / 4);
    unpack_kernel<<<grid, 128, 0, be->stream>>>(dst, dst_type, pitch, m->data, m->scales, m->dtype, row0 / 16, rows,
                                                m->in);
    be->after_kernel = false;
}

void cuda_quant_decode(cudaStream_t stream, float *dst, size_t pitch, const void *src, xlstm_dtype t, uint32_t rows,
                       uint32_t in)
{
    size_t want = ((size_t)rows * in + 1023) / 1024;
    decode_kernel<<<(unsigned)XL_MAX((size_t)1, XL_MIN(want, (size_t)4096)), 256, 0, stream>>>(
        dst, pitch, (const uint8_t *)src, row_bytes(t, in), t, rows, in);
}
