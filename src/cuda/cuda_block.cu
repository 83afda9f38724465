/*
 * cuda_block.cu — y = x W^T + b for few rows and weights in block formats, on 8-bit integer tensor cores. The integers of
 * the weights go in as they are stored (nibbles after a mask). Activations become fixed point: 256 columns of a row
 * share a power of two, and a value is 128 hi + lo of it, two 8-bit numbers that are two columns of the product; float32
 * and float16 activations have a second such pair below the first. Sums inside a group are exact integers; they meet the
 * scales in float32. Layout of weights: cuda_quant.cuh.
 */
#include "cuda_linear.cuh"

namespace
{

constexpr uint32_t BLOCKS = 3;        /* a multiprocessor, where they fit */
constexpr uint32_t STAGES = 2;        /* slots of a warp's ring */
constexpr uint32_t IN_PLACE_ROWS = 2; /* more are made into columns by a kernel of its own, once for all blocks */
constexpr int MAGIC = 0x4b400000;     /* as integer sums begin with it, their bits are the float MAGIC_FLOAT + sum */
constexpr float MAGIC_FLOAT = 12582912.0f; /* 1.5 * 2^23 */

struct block_args {
    linear_entry e[8], small[8]; /* in block format; float32 with few rows (gates): a row a block */
    uint32_t n_entries, n_small, tiles, small_rows;
    uint32_t rows, pairs, k, groups, pitch; /* pairs: of 8-bit columns a row; pitch: bytes of a column */
    uint32_t *counter; /* hands out tiles after the first of each block; NULL: every gridDim-th, for small k */
    uint32_t row0;     /* first row of x and of the outputs */
    xlstm_dtype act;
    linear_input in;
    const uint8_t *image; /* the columns as shared memory has them, or NULL: each block makes them */
    uint32_t image_bytes;
    bool swiglu; /* a tile is 16 rows of entry 0 and 16 of entry 1; entry 0's output gets silu(first) * second */
};

template <xlstm_dtype F> struct format {
    static constexpr bool mins = F == XLSTM_Q4_K || F == XLSTM_Q5_K;
    static constexpr uint32_t batches = F == XLSTM_Q8_0 ? 2 : 1; /* pieces a group is taken in */
    static constexpr uint32_t bytes = quant_group_bytes(F) / batches, steps = GROUP_STEPS / batches;
};

/* ---- x in shared memory ------------------------------------------------------------------------------------------- */

/* Column 2 (row * pairs + pair) + (0 hi, 1 lo) of 8-bit numbers, [column][pitch]; in a step, lane t's eight columns (see
 * cuda_quant.cuh) lie side by side. Per group and pair the factor of its integers. Then, by format, per step and pair
 * MAGIC_FLOAT + 8 times the sum of the step's integers (Q4_0); or per column and group the sums of its 8 steps as two
 * bf16 parts, in the order of a 16x8 operand (mins). */
struct columns {
    int8_t *x;
    float *factor, *offset; /* [group][width], [step][width] */
    bf16 *sums;             /* [column][sums_pitch] */
    uint32_t width, sums_pitch;
};
__host__ __device__ constexpr uint32_t sums_pitch_for(uint32_t groups) { return (groups | 1) * 16; }

template <xlstm_dtype F>
__device__ __forceinline__ columns columns_at(void *memory, const block_args &a, uint32_t width)
{
    columns c;
    c.width = width;
    c.sums_pitch = sums_pitch_for(a.groups);
    c.factor = (float *)memory;
    c.offset = c.factor + a.groups * width;
    c.sums = (bf16 *)c.offset;
    c.x = (int8_t *)c.offset;
    if (F == XLSTM_Q4_0) c.x += a.groups * GROUP_STEPS * width * sizeof(float);
    if (format<F>::mins) c.x += 2 * a.rows * a.pairs * c.sums_pitch * sizeof(bf16);
    return c;
}

/* A warp makes the columns of 256 values of a row: lane i has values 8i .. 8i+7. */
template <xlstm_dtype F>
__device__ __forceinline__ void write_group(const block_args &a, const columns &c, uint32_t row, uint32_t group,
                                            float v[8])
{
    uint32_t lane = threadIdx.x % 32, quarter = lane % 4, step = lane / 4, most = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) most = max(most, __float_as_uint(v[j]) & 0x7fffffffu);
    uint32_t exponent = __reduce_max_sync(0xffffffffu, most) >> 23;
    /* integers up to 2^14; the power of two stays in range, and values below 2^-114 vanish beside it */
    uint32_t e = max(exponent, 27u);
    float up = __uint_as_float((267 - e) << 23), factor = __uint_as_float((e - 13) << 23);
    if (exponent == 255)
        factor = __uint_as_float(0x7fffffffu), up = 0; /* Inf and NaN: every result of the row is NaN */
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = exponent == 255 ? 0.0f : v[j] * up;
    for (uint32_t p = 0; p < a.pairs; p++) {
        uint32_t pair = row * a.pairs + p, n[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float whole = fminf(v[j], 16383.0f) + MAGIC_FLOAT;
            n[j] = __float_as_uint(whole); /* the low half is the integer */
            if (p + 1 < a.pairs) v[j] = (v[j] - (whole - MAGIC_FLOAT)) * 16384.0f;
        }
        uint32_t hi[2], lo[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t one = __byte_perm(n[4 * i], n[4 * i + 1], 0x5410),
                     two = __byte_perm(n[4 * i + 2], n[4 * i + 3], 0x5410);
            lo[i] = __byte_perm(one, two, 0x6420) & 0x7f7f7f7fu;
            hi[i] = __byte_perm(one + one, two + two,
                                0x7531); /* a carry into the upper half does not reach its high byte */
        }
        int8_t *to =
            c.x + (size_t)(2 * pair) * a.pitch + group * GROUP + step * 32 + (quarter & 1) * 16 + quarter / 2 * 4;
        *(uint32_t *)to = hi[0], *(uint32_t *)(to + 8) = hi[1];
        *(uint32_t *)(to + a.pitch) = lo[0], *(uint32_t *)(to + a.pitch + 8) = lo[1];
        if (lane == 0) c.factor[group * c.width + pair] = factor;
        factor *= 0x1p-14f;
        if constexpr (F == XLSTM_Q4_0 || format<F>::mins) {
            int sum_hi = __dp4a((int)hi[0], 0x01010101, __dp4a((int)hi[1], 0x01010101, 0)),
                sum_lo = __dp4a((int)lo[0], 0x01010101, __dp4a((int)lo[1], 0x01010101, 0));
            sum_hi += __shfl_xor_sync(0xffffffffu, sum_hi, 1), sum_lo += __shfl_xor_sync(0xffffffffu, sum_lo, 1);
            sum_hi += __shfl_xor_sync(0xffffffffu, sum_hi, 2), sum_lo += __shfl_xor_sync(0xffffffffu, sum_lo, 2);
            if (F == XLSTM_Q4_0) {
                if (quarter == 0)
                    c.offset[(group * GROUP_STEPS + step) * c.width + pair] =
                        MAGIC_FLOAT + (float)(8 * (128 * sum_hi + sum_lo));
            } else if (quarter < 2) { /* lane 1 of the step has lo */
                float sum = (float)(quarter == 0 ? sum_hi : sum_lo), head = rounded<bf16>(sum);
                bf16 *at =
                    c.sums + (size_t)(2 * pair + quarter) * c.sums_pitch + group * 16 + step / 2 * 4 + (step & 1);
                put(at, head);
                put(at + 2, sum - head);
            }
        }
    }
}

/* For a row or two. Values wait where their columns will be: those of a group, 16 bytes a lane, in the group's place in
 * its columns, so that loads are under way all at once without registers. */
template <xlstm_dtype F> __device__ void make_columns(const block_args &a, const columns &c)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, all = a.rows * a.groups;
    bool wide = a.act == XLSTM_F32;
    auto place = [&](uint32_t row, uint32_t group) {
        return c.x + (size_t)(2 * row * a.pairs + lane / 16) * a.pitch + group * GROUP + lane % 16 * 16;
    };
    for (uint32_t i = warp; i < all; i += LINEAR_WARPS) {
        uint32_t row = i / a.groups, group = i % a.groups, k = group * GROUP + lane * 8;
        const uint8_t *from = (const uint8_t *)a.in.x + ((size_t)(a.row0 + row) * a.k + k) * (wide ? 4 : 2);
        uint32_t to = shared_address(place(row, group));
        copy_async16(to, from, k < a.k);
        if (wide) copy_async16(to + 2 * a.pitch, from + 16, k < a.k);
    }
    copy_async_commit();
    copy_async_wait<0>();
    for (uint32_t i = warp; i < all; i += LINEAR_WARPS) {
        uint32_t row = i / a.groups, group = i % a.groups;
        const int8_t *from = place(row, group);
        stored8 r;
        r.a = *(const uint4 *)from;
        r.b = wide ? *(const uint4 *)(from + 2 * a.pitch) : make_uint4(0, 0, 0, 0);
        float v[8];
        values8(v, r, a.act);
        __syncwarp();
        write_group<F>(a, c, row, group, v);
    }
}

/* The same once for all blocks, to the image that they copy: block x, warp w does group 8x + w of row y. */
template <xlstm_dtype F>
__global__ void __launch_bounds__(LINEAR_THREADS) columns_kernel(const __grid_constant__ block_args a, uint32_t width)
{
    uint32_t group = blockIdx.x * LINEAR_WARPS + threadIdx.x / 32, k = group * GROUP + threadIdx.x % 32 * 8;
    pdl_go();
    pdl_wait();
    if (group >= a.groups) return;
    float v[8] = {};
    if (k < a.k) values8(v, fetch8(a.in.x, (size_t)(a.row0 + blockIdx.y) * a.k + k, a.act), a.act);
    write_group<F>(a, columns_at<F>((void *)a.image, a, width), blockIdx.y, group, v);
}

/* ---- products ------------------------------------------------------------------------------------------------------ */

/* d = a b + c for a 16x32 (row) of signed or unsigned, b 32x8 (column) of signed 8-bit numbers */
template <bool SIGNED>
__device__ __forceinline__ void mma_8bit(int d[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint2 b, int c)
{
    if constexpr (SIGNED) {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%10,%10,%10,%10};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y), "r"(c));
    } else {
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%10,%10,%10,%10};"
                     : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y), "r"(c));
    }
}
/* The same for 16x16 and 16x8, signed. */
__device__ __forceinline__ void mma_8bit_half(int d[4], uint32_t a0, uint32_t a1, uint32_t b)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a0), "r"(a1), "r"(b), "r"(0));
}

/* Byte i of a word, with its sign. */
__device__ __forceinline__ int signed_byte(uint32_t word, uint32_t i)
{
    int d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(word), "r"(0), "r"(i | (i | 8) << 4 | (i | 8) << 8 | (i | 8) << 12));
    return d;
}

/* Two bf16 of 128 .. 255, 128 taken from each; exact. */
__device__ __forceinline__ uint32_t minus_128(uint32_t u)
{
    __nv_bfloat162 x;
    memcpy(&x, &u, 4);
    x = __hsub2(x, __float2bfloat162_rn(128.0f));
    memcpy(&u, &x, 4);
    return u;
}

/* hi and lo sums to one, exact up to float32's last bit */
__device__ __forceinline__ float joined(float hi, float lo) { return fmaf(hi, 128.0f, lo); }

/* What of x a lane reads: its column of each n-tile from its first columns of step 0 on, and beside the columns its pair
 * of the outputs. */
template <int NT> struct reading {
    const int8_t *x[NT];
    const bf16 *sums[NT];
    const float *factor, *offset;
};

/* acc[nt][rows g, g + 8 of pair 4 nt + t] += batch b of a tile, from its slot */
template <xlstm_dtype F, int NT>
__device__ __forceinline__ void consume(float acc[NT][2], const uint8_t *slot, const reading<NT> &in, uint32_t b,
                                        uint32_t lane)
{
    uint32_t g = lane / 4, t = lane % 4, k = b * format<F>::steps * 32, group = b / format<F>::batches;
    const uint8_t *mine = slot + lane * 16, *scales = slot + quant_scales_at(F);
    if constexpr (F == XLSTM_Q8_0) {
        uint2 s_lo = *(const uint2 *)(scales + g * 8), s_hi = *(const uint2 *)(scales + (g + 8) * 8);
        float y[NT][2] = {};
#pragma unroll
        for (int u = 0; u < 4; u++) {
            uint4 w = *(const uint4 *)(mine + u * 512);
            float lo = half_at(u < 2 ? s_lo.x : s_lo.y, u & 1), hi = half_at(u < 2 ? s_hi.x : s_hi.y, u & 1);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                int d[4];
                mma_8bit<true>(d, w.x, w.z, w.y, w.w, *(const uint2 *)(in.x[nt] + k + u * 32), MAGIC);
                y[nt][0] += lo * joined(__int_as_float(d[0]) - MAGIC_FLOAT, __int_as_float(d[1]) - MAGIC_FLOAT);
                y[nt][1] += hi * joined(__int_as_float(d[2]) - MAGIC_FLOAT, __int_as_float(d[3]) - MAGIC_FLOAT);
            }
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float f = in.factor[(group * NT + nt) * 4];
            acc[nt][0] += f * y[nt][0], acc[nt][1] += f * y[nt][1];
        }
    } else if constexpr (F == XLSTM_Q4_0) {
        uint4 s_lo = *(const uint4 *)(scales + g * 16), s_hi = *(const uint4 *)(scales + (g + 8) * 16);
        float y[NT][2] = {};
#pragma unroll
        for (int u = 0; u < 8; u++) {
            uint2 w = *(const uint2 *)(mine + u / 2 * 512 + (u & 1) * 8);
            float lo = half_at(word_of(s_lo, u / 2), u & 1), hi = half_at(word_of(s_hi, u / 2), u & 1);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                int d[4];
                mma_8bit<false>(d, w.x & 0x0f0f0f0fu, w.y & 0x0f0f0f0fu, w.x >> 4 & 0x0f0f0f0fu, w.y >> 4 & 0x0f0f0f0fu,
                                *(const uint2 *)(in.x[nt] + k + u * 32), MAGIC);
                float offset = in.offset[((group * 8 + u) * NT + nt) * 4];
                y[nt][0] += lo * joined(__int_as_float(d[0]) - MAGIC_FLOAT, __int_as_float(d[1]) - offset);
                y[nt][1] += hi * joined(__int_as_float(d[2]) - MAGIC_FLOAT, __int_as_float(d[3]) - offset);
            }
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float f = in.factor[(group * NT + nt) * 4];
            acc[nt][0] += f * y[nt][0], acc[nt][1] += f * y[nt][1];
        }
    } else { /* integer scales: one conversion a group */
        uint4 s_lo = *(const uint4 *)(scales + g * 16), s_hi = *(const uint4 *)(scales + (g + 8) * 16);
        int sum[NT][4] = {};
        uint4 high = make_uint4(0, 0, 0, 0);
        if constexpr (F == XLSTM_Q5_K) high = *(const uint4 *)(mine + 2048);
#pragma unroll
        for (int u = 0; u < 8; u++) {
            uint2 w = *(const uint2 *)(mine + u / 2 * 512 + (u & 1) * 8);
            if constexpr (F == XLSTM_Q6_K) {
                if (u % 4 == 0) high = *(const uint4 *)(mine + 2048 + u / 4 * 512);
                uint32_t h = word_of(high, u % 4), a0, a1, a2, a3;
                a0 = (w.x & 0x3c3c3c3cu) | (h << 6 & 0xc0c0c0c0u);
                a2 = (__funnelshift_r(w.x, w.x, 4) & 0x3c3c3c3cu) | (h << 4 & 0xc0c0c0c0u);
                a1 = (w.y & 0x3c3c3c3cu) | (h << 2 & 0xc0c0c0c0u);
                a3 = (__funnelshift_r(w.y, w.y, 4) & 0x3c3c3c3cu) | (h & 0xc0c0c0c0u);
                uint32_t scale_lo = word_of(s_lo, u / 2), scale_hi = word_of(s_hi, u / 2), at = u % 2 * 2;
                int lo0 = signed_byte(scale_lo, at), lo1 = signed_byte(scale_lo, at + 1),
                    hi0 = signed_byte(scale_hi, at), hi1 = signed_byte(scale_hi, at + 1);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    uint2 x = *(const uint2 *)(in.x[nt] + k + u * 32);
                    int d[4];
                    mma_8bit_half(d, a0, a1, x.x);
                    sum[nt][0] += lo0 * d[0], sum[nt][1] += lo0 * d[1];
                    sum[nt][2] += hi0 * d[2], sum[nt][3] += hi0 * d[3];
                    mma_8bit_half(d, a2, a3, x.y);
                    sum[nt][0] += lo1 * d[0], sum[nt][1] += lo1 * d[1];
                    sum[nt][2] += hi1 * d[2], sum[nt][3] += hi1 * d[3];
                }
            } else {
                uint32_t a0 = w.x & 0x0f0f0f0fu, a1 = w.y & 0x0f0f0f0fu, a2 = w.x >> 4 & 0x0f0f0f0fu,
                         a3 = w.y >> 4 & 0x0f0f0f0fu;
                if constexpr (F == XLSTM_Q5_K) {
                    uint32_t h = word_of(high, u / 2);
                    a0 |= (u & 1 ? h : h << 4) & 0x10101010u, a2 |= (u & 1 ? h >> 1 : h << 3) & 0x10101010u;
                    a1 |= (u & 1 ? h >> 2 : h << 2) & 0x10101010u, a3 |= (u & 1 ? h >> 3 : h << 1) & 0x10101010u;
                }
                int lo = (int)(word_of(s_lo, u / 2) >> (16 * (u & 1)) & 255),
                    hi = (int)(word_of(s_hi, u / 2) >> (16 * (u & 1)) & 255);
#pragma unroll
                for (int nt = 0; nt < NT; nt++) {
                    int d[4];
                    mma_8bit<false>(d, a0, a1, a2, a3, *(const uint2 *)(in.x[nt] + k + u * 32), 0);
                    sum[nt][0] += lo * d[0], sum[nt][1] += lo * d[1];
                    sum[nt][2] += hi * d[2], sum[nt][3] += hi * d[3];
                }
            }
        }
        uint32_t low_lo = 0, low_hi = 0; /* mins of steps 2t and 2t + 1 as bf16 */
        float d_lo, d_hi, m_lo = 0, m_hi = 0;
        if constexpr (format<F>::mins) {
            uint32_t lo = *(const uint32_t *)(scales + g * 16 + t * 4),
                     hi = *(const uint32_t *)(scales + (g + 8) * 16 + t * 4);
            low_lo = minus_128(__byte_perm(lo, 0x43434343u, 0x4341)),
            low_hi = minus_128(__byte_perm(hi, 0x43434343u, 0x4341));
            uint32_t both_lo = *(const uint32_t *)(scales + 256 + g * 4),
                     both_hi = *(const uint32_t *)(scales + 256 + (g + 8) * 4);
            d_lo = half_at(both_lo, 0), m_lo = half_at(both_lo, 1), d_hi = half_at(both_hi, 0),
            m_hi = half_at(both_hi, 1);
        } else { /* the integers are four times the values */
            d_lo = 0.25f * value_of(*(const __half *)(scales + 256 + g * 2));
            d_hi = 0.25f * value_of(*(const __half *)(scales + 256 + (g + 8) * 2));
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            float y_lo = d_lo * joined((float)sum[nt][0], (float)sum[nt][1]),
                  y_hi = d_hi * joined((float)sum[nt][2], (float)sum[nt][3]);
            if constexpr (format<F>::mins) {
                uint2 x = *(const uint2 *)(in.sums[nt] + group * 16);
                float m[4];
                mma_bf16_first(m, low_lo, low_hi, low_lo, low_hi, x.x, x.y);
                y_lo -= m_lo * joined(m[0], m[1]), y_hi -= m_hi * joined(m[2], m[3]);
            }
            float f = in.factor[(group * NT + nt) * 4];
            acc[nt][0] += f * y_lo, acc[nt][1] += f * y_hi;
        }
    }
}

/* Rows of float32 weights (gates), a row a block: plain sums of products. `part` has room for a float a warp and row;
 * FUSED: v is the row of x, as fused_row leaves it. All threads of a block agree on whether there is work. */
template <bool FUSED>
__device__ __forceinline__ void small_rows(const block_args &a, const float v[FUSED_EACH][8], float *part)
{
    constexpr int AT_ONCE = FUSED ? 1 : 4;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t small = blockIdx.x; small < a.small_rows; small += gridDim.x) {
        uint32_t i = 0;
        while (i + 1 < a.n_small && small >= a.small[i + 1].tile0) i++;
        const linear_entry &e = a.small[i];
        const float *w = (const float *)e.w + (size_t)(small - e.tile0) * e.pitch;
#pragma unroll 1
        for (uint32_t m = 0; m < a.rows; m += AT_ONCE) {
            float sum[AT_ONCE] = {};
            if constexpr (FUSED) {
#pragma unroll
                for (int j = 0; j < FUSED_EACH; j++) {
                    if (fused_column(j) >= a.k) continue;
                    float y[8];
                    load8(y, w + fused_column(j));
#pragma unroll
                    for (int q = 0; q < 8; q++) sum[0] += y[q] * v[j][q];
                }
            } else {
#pragma unroll 1
                for (uint32_t k = threadIdx.x * 8; k < a.k; k += LINEAR_THREADS * 8) {
                    stored8 r[AT_ONCE];
                    float y[8];
                    load8(y, w + k);
#pragma unroll
                    for (int q = 0; q < AT_ONCE; q++)
                        r[q] = fetch8(a.in.x, (size_t)(a.row0 + min(m + q, a.rows - 1)) * a.k + k, a.act);
#pragma unroll
                    for (int q = 0; q < AT_ONCE; q++) {
                        float x[8];
                        values8(x, r[q], a.act);
#pragma unroll
                        for (int j = 0; j < 8; j++) sum[q] += y[j] * x[j];
                    }
                }
            }
#pragma unroll
            for (int q = 0; q < AT_ONCE; q++) {
                sum[q] = warp_sum(sum[q]);
                if (lane == 0 && m + q < a.rows) part[(m + q) * LINEAR_WARPS + warp] = sum[q];
            }
        }
        __syncthreads();
        if (threadIdx.x < a.rows) {
            float sum = 0;
#pragma unroll
            for (uint32_t i = 0; i < LINEAR_WARPS; i++) sum += part[threadIdx.x * LINEAR_WARPS + i];
            store_sum(e, a.row0 + threadIdx.x, small - e.tile0, sum, a.act);
        }
        __syncthreads();
    }
}

/* ---- the kernel ------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ const linear_entry &entry_of(const block_args &a, uint32_t tile)
{
    uint32_t i = 0;
    while (i + 1 < a.n_entries && tile >= a.e[i + 1].tile0) i++;
    return a.e[i];
}

/* What a warp copies next: batch b of a tile. */
template <xlstm_dtype F> struct cursor {
    uint32_t tile, b;
    const uint8_t *lo,
        *hi; /* this lane's 16 bytes of batch 0, and of entry 1's where batches go on behind the first's */

    __device__ __forceinline__ void seek(const block_args &a, uint32_t warp, uint32_t lane)
    {
        b = warp;
        if (tile >= a.tiles) return;
        const linear_entry &e = entry_of(a, tile);
        size_t all = (size_t)a.groups * quant_group_bytes(F), at = (tile - e.tile0) * all + lane * 16;
        lo = e.w + at;
        hi = a.swiglu ? a.e[1].w + at - all : lo;
    }
    /* `following`: the tile after the one being worked on */
    __device__ __forceinline__ void go(const block_args &a, uint32_t slot, uint32_t following, uint32_t warp,
                                       uint32_t lane)
    {
        uint32_t batches = a.groups * format<F>::batches;
        if (b >= (a.swiglu ? 2 : 1) * batches && tile < a.tiles) {
            tile = a.counter != nullptr ? following : tile + gridDim.x;
            seek(a, warp, lane);
        }
        if (tile < a.tiles) {
            const uint8_t *from = (b < batches ? lo : hi) + (size_t)b * format<F>::bytes;
            uint32_t to = slot + lane * 16;
#pragma unroll
            for (uint32_t i = 0; i < format<F>::bytes / 512; i++) copy_stream16(to + i * 512, from + i * 512, true);
            constexpr uint32_t rest = format<F>::bytes % 512, done = format<F>::bytes - rest;
            if (lane < rest / 16) copy_stream16(to + done, from + done, true);
            b += LINEAR_WARPS;
        }
        copy_async_commit();
    }
};

/* Blocks are handed tiles of 16 weight rows; the warps of a block share a tile's columns and add up at its end. Each
 * warp keeps its next batches of weights, also across tiles and across the wait for the previous kernel, on their way
 * to its ring of slots. NT: tiles of 8 columns. FUSED: x goes through a norm. The register limit leaves room beside two
 * blocks, for those of the kernels that follow: they wait there, with their first data on the way. */
template <xlstm_dtype F, int NT, bool FUSED>
__global__ void __launch_bounds__(LINEAR_THREADS, NT == 1 ? 3 : 2) block_kernel(const __grid_constant__ block_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr uint32_t RED = NT * 4 + 2; /* row stride of partial sums */
    constexpr uint32_t SLOT = format<F>::bytes;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t halves = a.swiglu ? 2 : 1, n_columns = 2 * a.rows * a.pairs, batches = a.groups * format<F>::batches;
    float *partial = (float *)(memory + LINEAR_WARPS * STAGES * SLOT);
    fused_room &room = *(fused_room *)(partial + 2 * halves * LINEAR_WARPS * 16 * RED);
    uint32_t *handed = (uint32_t *)(&room + 1); /* [2] tile numbers */
    columns c = columns_at<F>(handed + 4, a, NT * 4);
    const uint8_t *ring = memory + warp * STAGES * SLOT;
    uint32_t slots = shared_address(ring), slot = 0;

    cursor<F> ahead;
    ahead.tile = blockIdx.x;
    ahead.seek(a, warp, lane);
    for (uint32_t i = 0; i < STAGES; i++) ahead.go(a, slots + i * SLOT, a.tiles, warp, lane);
    if (threadIdx.x == 0 && a.counter != nullptr) handed[1] = gridDim.x + atomicAdd(a.counter, 1u);
    pdl_go();
    if constexpr (FUSED) {
        float v[FUSED_EACH][8];
        fused_row(v, a.in, room);
        if (a.small_rows > 0) small_rows<true>(a, v, partial);
#pragma unroll
        for (int j = 0; j < FUSED_EACH; j++) {
            if (fused_group(j) < a.groups) write_group<F>(a, c, 0, fused_group(j), v[j]);
        }
    } else {
        pdl_wait();
        if (a.image == nullptr) {
            make_columns<F>(a, c);
        } else {
            uint32_t to = shared_address(c.factor);
            for (uint32_t i = threadIdx.x * 16; i < a.image_bytes; i += LINEAR_THREADS * 16)
                copy_async16(to + i, a.image + i, true);
            copy_async_commit();
            copy_async_wait<0>();
        }
        if (a.small_rows > 0) small_rows<false>(a, nullptr, partial);
    }
    __syncthreads();

    reading<NT> in;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint32_t column = min((uint32_t)nt * 8 + g, n_columns - 2 + (g & 1));
        in.x[nt] = c.x + (size_t)column * a.pitch + t * 8;
        in.sums[nt] = c.sums + (size_t)column * c.sums_pitch + t * 4;
    }
    in.factor = c.factor + t;
    in.offset = c.offset + t;

    uint32_t turn = 0, reducer = 0, following = a.counter != nullptr ? handed[1] : blockIdx.x + gridDim.x, fetched = 0;
    for (uint32_t tile = blockIdx.x; tile < a.tiles; turn ^= 1) {
        const linear_entry &e = entry_of(a, tile);
        if (threadIdx.x == 0 && a.counter != nullptr) fetched = gridDim.x + atomicAdd(a.counter, 1u);
        float *mine = partial + (turn * halves * LINEAR_WARPS + warp) * 16 * RED;
        uint32_t b = warp;
#pragma unroll 1
        for (uint32_t first = 0; first < halves * batches; first += batches) {
            float acc[NT][2] = {};
#pragma unroll 1
            for (; b < first + batches; b += LINEAR_WARPS) {
                copy_async_wait<STAGES - 1>();
                __syncwarp();
                consume<F, NT>(acc, ring + slot * SLOT, in, b - first, lane);
                __syncwarp();
                ahead.go(a, slots + slot * SLOT, following, warp, lane);
                slot = (slot + 1) % STAGES;
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                mine[g * RED + nt * 4 + t] = acc[nt][0];
                mine[(g + 8) * RED + nt * 4 + t] = acc[nt][1];
            }
            mine += LINEAR_WARPS * 16 * RED;
        }
        if (threadIdx.x == 0) handed[turn] = fetched;
        __syncthreads();
        const float *all = partial + turn * halves * LINEAR_WARPS * 16 * RED;
        auto added = [&](const float *from, uint32_t r, uint32_t m) {
            float sum = 0;
            for (uint32_t p = a.pairs; p-- > 0;) {
#pragma unroll
                for (uint32_t w = 0; w < LINEAR_WARPS; w++) sum += from[(w * 16 + r) * RED + m * a.pairs + p];
            }
            return sum;
        };
        /* the few threads with something to add are in another warp each time */
        for (uint32_t o = (threadIdx.x + 32 * reducer) % LINEAR_THREADS; o < 16 * a.rows; o += LINEAR_THREADS) {
            uint32_t r = o % 16, m = o / 16, n = (tile - e.tile0) * 16 + r;
            if (n >= e.n) continue;
            float sum = added(all, r, m);
            if (a.swiglu) {
                float y = gated(sum, added(all + LINEAR_WARPS * 16 * RED, r, m), a.act);
                store_plain(e.out, (size_t)(a.row0 + m) * e.stride + n, a.act, y);
            } else {
                store_sum(e, a.row0 + m, n, sum, a.act);
            }
        }
        reducer++;
        tile = following;
        following = a.counter != nullptr ? handed[turn] : tile + gridDim.x;
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

struct choice {
    void (*kernel)(const block_args);
    void (*columns)(const block_args, uint32_t);
    uint32_t bytes, batches; /* of a slot; a group */
};
template <xlstm_dtype F> choice choice_of(uint32_t nt, bool fused)
{
    return {fused     ? block_kernel<F, 1, true>
            : nt == 1 ? block_kernel<F, 1, false>
            : nt == 2 ? block_kernel<F, 2, false>
                      : block_kernel<F, 4, false>,
            columns_kernel<F>, format<F>::bytes, format<F>::batches};
}
choice choice_for(xlstm_dtype t, uint32_t nt, bool fused = false)
{
    switch (t) {
    case XLSTM_Q8_0:
        return choice_of<XLSTM_Q8_0>(nt, fused);
    case XLSTM_Q4_0:
        return choice_of<XLSTM_Q4_0>(nt, fused);
    case XLSTM_Q4_K:
        return choice_of<XLSTM_Q4_K>(nt, fused);
    case XLSTM_Q5_K:
        return choice_of<XLSTM_Q5_K>(nt, fused);
    default:
        return choice_of<XLSTM_Q6_K>(nt, fused);
    }
}

uint32_t pairs_of(xlstm_dtype act) { return act == XLSTM_BF16 ? 1 : 2; }
uint32_t tiles_for(uint32_t pairs) { return pairs <= 4 ? 1 : pairs <= 8 ? 2 : 4; }

/* Bytes of a column: padded to groups and shifted by a quarter of a bank row. */
uint32_t pitch_for(uint32_t k) { return quant_groups(k) * GROUP + 32; }

/* Of the columns, and of all shared memory. */
size_t image_bytes(xlstm_dtype t, uint32_t rows, uint32_t pairs, uint32_t k)
{
    uint32_t nt = tiles_for(rows * pairs), groups = quant_groups(k);
    size_t bytes = groups * nt * 4 * sizeof(float) + (size_t)2 * rows * pairs * pitch_for(k);
    if (t == XLSTM_Q4_0) bytes += (size_t)groups * GROUP_STEPS * nt * 4 * sizeof(float);
    if (t == XLSTM_Q4_K || t == XLSTM_Q5_K) bytes += (size_t)2 * rows * pairs * sums_pitch_for(groups) * sizeof(bf16);
    return bytes;
}
size_t shared_bytes(xlstm_dtype t, uint32_t rows, uint32_t pairs, uint32_t k, uint32_t halves)
{
    uint32_t nt = tiles_for(rows * pairs);
    return LINEAR_WARPS * STAGES * choice_for(t, nt).bytes +
           (2 * halves * LINEAR_WARPS * 16 * (nt * 4 + 2) + 4) * sizeof(float) + sizeof(fused_room) +
           image_bytes(t, rows, pairs, k);
}

} // namespace

uint32_t cuda_block_rows(const cuda_backend *be, xlstm_dtype main, uint32_t k)
{
    uint32_t pairs = pairs_of(be->opt.activations), rows = 16 / pairs;
    while (rows > 1 && shared_bytes(main, rows, pairs, k, rows <= FUSED_ROWS ? 2 : 1) > be->smem_max) rows--;
    return rows;
}

void cuda_block_launch(cuda_backend *be, const cuda_op *op, const uint32_t *chosen, uint32_t n_chosen, xlstm_dtype main,
                       uint32_t row0, uint32_t rows, linear_input input, bool swiglu)
{
    block_args a = {};
    a.k = op->group[chosen[0]].weight->in;
    for (uint32_t i = 0; i < n_chosen; i++) {
        linear_entry e = linear_entry_for(&op->group[chosen[i]]);
        if (e.format == main) {
            e.tile0 = a.tiles;
            a.tiles += (e.n + 15) / 16;
            a.e[a.n_entries++] = e;
        } else {
            e.tile0 = a.small_rows;
            a.small_rows += e.n;
            a.small[a.n_small++] = e;
        }
    }
    a.swiglu = swiglu;
    if (swiglu) {
        a.e[0].out = op[1].y->data;
        a.n_entries = 1;
        a.tiles = (a.e[0].n + 15) / 16;
    }
    a.rows = rows;
    a.row0 = row0;
    a.pairs = pairs_of(be->opt.activations);
    a.groups = quant_groups(a.k);
    a.pitch = pitch_for(a.k);
    a.act = be->opt.activations;
    a.in = input;
    uint32_t nt = tiles_for(rows * a.pairs);
    choice c = choice_for(main, nt, input.source != STORED);
    if (rows > IN_PLACE_ROWS) { /* many columns: once for all */
        a.image_bytes = (uint32_t)image_bytes(main, rows, a.pairs, a.k);
        a.image = (const uint8_t *)cuda_scratch(be, a.image_bytes);
        if (a.image == nullptr) return;
        cuda_launch(be, "columns", c.columns, dim3((a.groups + LINEAR_WARPS - 1) / LINEAR_WARPS, rows),
                    dim3(LINEAR_THREADS), 0, a, nt * 4);
    }
    /* handing out tiles needs a ring no longer than what a warp has of a tile */
    uint32_t a_warp = a.groups * c.batches / LINEAR_WARPS;
    if (a_warp >= STAGES && be->n_counters < COUNTERS) a.counter = be->counters + be->n_counters++;
    size_t smem = shared_bytes(main, rows, a.pairs, a.k, swiglu ? 2 : 1);
    uint32_t blocks = nt == 1 ? BLOCKS : 2;
    while (blocks > 1 && (smem + 1024) * blocks > be->smem_max + 1024) blocks--;
    blocks *= (uint32_t)be->sms;
    cuda_launch(be, "linear", c.kernel, dim3(XL_MIN(a.tiles, blocks)), dim3(LINEAR_THREADS), smem, a);
}

cudaError_t cuda_block_setup(cuda_backend *be)
{
    for (xlstm_dtype t : {XLSTM_Q8_0, XLSTM_Q4_0, XLSTM_Q4_K, XLSTM_Q5_K, XLSTM_Q6_K}) {
        for (choice c : {choice_for(t, 1), choice_for(t, 1, true), choice_for(t, 2), choice_for(t, 4)}) {
            cudaError_t code = cudaFuncSetAttribute((const void *)c.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    (int)be->smem_max);
            if (code != cudaSuccess) return code;
        }
    }
    return cudaSuccess;
}
