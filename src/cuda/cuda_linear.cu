/*
 * cuda_linear.cu — y = x W^T + b. Few rows: one kernel that streams the weights once through shared memory into tensor-core
 * fragments; activations are split into bfloat16 parts (one, two or three columns a row for BF16, F16, F32
 * activations), weights likewise where they are wider, so that every product is exact and sums are float32 whatever the
 * formats. Many rows: cublasLt (cuda_gemm.cu), with small matrices (gates) through a kernel of their own.
 */
#include "cuda_quant.cuh"

namespace
{

constexpr int THREADS = 256, WARPS = 8, STEP = 32, MAX_COLUMNS = 32;
constexpr uint32_t BLOCKS = 2; /* a multiprocessor */

enum format { W_BF16, W_F16, W_F32, W_Q8_0, W_Q4_0, W_Q4_K, W_BYTES, W_FORMATS };

struct entry {
    const uint8_t *w, *scales;
    const float *bias;
    void *out;
    size_t pitch;
    uint32_t n, stride, column, tile0, format;
    bool add, wide;
};

struct linear_args {
    entry e[8];
    uint32_t n_entries, tiles;
    uint32_t rows, parts, k, k_padded, x_pitch, x_bytes; /* x_pitch: elements a column in shared memory */
    uint32_t stages;                                     /* slots of a warp's ring: 4, or 2 */
    uint32_t *counter; /* hands out tiles after the first of each block; NULL: every gridDim-th, for small k */
    uint32_t row0;     /* first row of x and of the outputs */
    xlstm_dtype act;
    const void *x;
};

/* ---- making the input columns in shared memory ---------------------------------------------------------------- */

/* Eight values as stored; loads of several are issued before the first is used. */
struct raw {
    uint4 a, b;
};
__device__ __forceinline__ raw fetch8(const void *p, size_t i, xlstm_dtype t)
{
    raw r;
    r.a = *(const uint4 *)((const uint8_t *)p + i * (t == XLSTM_F32 ? 4 : 2));
    r.b = t == XLSTM_F32 ? *(const uint4 *)((const uint8_t *)p + i * 4 + 16) : make_uint4(0, 0, 0, 0);
    return r;
}
__device__ __forceinline__ void values8(float v[8], const raw &r, xlstm_dtype t)
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

/* Where columns go: x [column][pitch], and the sum of each 32 of a column, [step][width]. */
struct columns {
    bf16 *x;
    float *sums;
    uint32_t width;
};

/* Values k .. k + 7 of row m, into the columns of its parts (part p of row m: p * rows + m). The four lanes that share
 * a step call together. */
__device__ __forceinline__ void write_parts(const linear_args &a, const columns &c, uint32_t m, uint32_t k, float v[8])
{
    uint32_t lane = threadIdx.x % 32, quad = 0xfu << (lane & ~3u);
    for (uint32_t p = 0; p < a.parts; p++) {
        uint32_t column = p * a.rows + m;
        uint4 u =
            make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        *(uint4 *)(c.x + (size_t)column * a.x_pitch + k) = u;
        float r[8];
        unpack_bf16(r, u.x), unpack_bf16(r + 2, u.y), unpack_bf16(r + 4, u.z), unpack_bf16(r + 6, u.w);
        if (c.sums != nullptr) {
            float sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
            sum += __shfl_xor_sync(quad, sum, 1);
            sum += __shfl_xor_sync(quad, sum, 2);
            if (lane % 4 == 0) c.sums[k / 32 * c.width + column] = sum;
        }
        if (p + 1 < a.parts) {
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] -= r[j];
        }
    }
}

__device__ void make_columns(const linear_args &a, const columns &c)
{
    constexpr int AT_ONCE = 6;
    uint32_t each = a.k_padded / 8, all = a.rows * each;
    bool wide = a.k % 8 == 0;
    for (uint32_t i = threadIdx.x; i < all; i += AT_ONCE * THREADS) {
        raw r[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            uint32_t at = i + j * THREADS, m = at / each, k = at % each * 8;
            r[j].a = r[j].b = make_uint4(0, 0, 0, 0);
            if (at < all && wide && k < a.k) r[j] = fetch8(a.x, (size_t)(a.row0 + m) * a.k + k, a.act);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            uint32_t at = i + j * THREADS, m = at / each, k = at % each * 8;
            if (at >= all) break;
            float v[8];
            values8(v, r[j], a.act);
            if (!wide) {
                size_t row = (size_t)(a.row0 + m) * a.k;
                for (uint32_t e = 0; e < 8; e++) v[e] = k + e < a.k ? load_plain(a.x, row + k + e, a.act) : 0.0f;
            }
            write_parts(a, c, m, k, v);
        }
    }
}

/* ---- weights: a batch is what a warp takes at once from its ring of slots in shared memory --------------------- */

constexpr uint32_t SLOT = 2048 + 384; /* bytes: values and scales */

template <int F> struct batch;

template <> struct batch<W_BF16> {
    static constexpr uint32_t STEPS = 2;
    uint4 lo[STEPS], hi[STEPS]; /* rows g and g + 8 */
};
template <> struct batch<W_F16> {
    static constexpr uint32_t STEPS = 2;
    uint4 lo[STEPS], hi[STEPS];
};
template <> struct batch<W_F32> {
    static constexpr uint32_t STEPS = 1;
    uint4 lo[2 * STEPS], hi[2 * STEPS];
};
template <> struct batch<W_Q8_0> {
    static constexpr uint32_t STEPS = 4;
    uint4 q[STEPS];
    uint2 lo, hi; /* four scales of row g and of row g + 8 */
};
template <> struct batch<W_Q4_0> {
    static constexpr uint32_t STEPS = 8;
    uint4 q[STEPS / 2], lo, hi;
};
template <> struct batch<W_Q4_K> {
    static constexpr uint32_t STEPS = 8;
    uint4 q[STEPS / 2], lo, hi;
    uint32_t d_lo, d_hi;
};
template <> struct batch<W_BYTES> {
    static constexpr uint32_t STEPS = 2;
    uint4 q[STEPS];
    float s[STEPS][6];
};

/* Where a lane's weights of a tile are. */
struct place {
    const uint8_t *lo, *hi; /* plain: its 8 columns of step 0 in rows g and g + 8. Blocks: its bytes of step 0 (lo) */
    const uint8_t *scales;  /* of the tile */
};

template <int F> __device__ __forceinline__ place place_of(const entry &e, uint32_t tile, uint32_t k, uint32_t lane)
{
    uint32_t g = lane / 4, t = lane % 4, row = (tile - e.tile0) * 16;
    place p;
    if (F == W_BF16 || F == W_F16 || F == W_F32) {
        constexpr size_t size = F == W_F32 ? 4 : 2;
        p.lo = e.w + ((size_t)min(row + g, e.n - 1) * e.pitch + 8 * t) * size;
        p.hi = e.w + ((size_t)min(row + g + 8, e.n - 1) * e.pitch + 8 * t) * size;
        p.scales = nullptr;
    } else {
        size_t groups = quant_groups(k), at = tile - e.tile0;
        size_t group_bytes = (F == W_Q4_0 || F == W_Q4_K) ? 4 * 512 : 8 * 512;
        size_t scale_bytes = F == W_Q4_K ? K_GROUP_BYTES : F == W_BYTES ? 8 * 192 : 256;
        p.lo = p.hi = e.w + at * groups * group_bytes + lane * 16;
        p.scales = e.scales + at * groups * scale_bytes;
    }
    return p;
}

/* Starts copying batch b of a tile to a slot; steps at and beyond `steps` of plain formats become zero. */
template <int F>
__device__ __forceinline__ void issue(uint32_t slot, const place &p, uint32_t b, uint32_t steps, uint32_t lane)
{
    uint32_t mine = slot + lane * 16;
    if constexpr (F == W_BF16 || F == W_F16) {
#pragma unroll
        for (uint32_t u = 0; u < 2; u++) {
            uint32_t s = b * 2 + u;
            copy_stream16(mine + u * 1024, p.lo + (s < steps ? (size_t)s * 64 : 0), s < steps);
            copy_stream16(mine + u * 1024 + 512, p.hi + (s < steps ? (size_t)s * 64 : 0), s < steps);
        }
    } else if constexpr (F == W_F32) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            copy_stream16(mine + h * 512, p.lo + (size_t)b * 128 + h * 16, true);
            copy_stream16(mine + 1024 + h * 512, p.hi + (size_t)b * 128 + h * 16, true);
        }
    } else {
        constexpr uint32_t PIECES = F == W_BYTES ? 2 : 4;
#pragma unroll
        for (uint32_t u = 0; u < PIECES; u++)
            copy_stream16(mine + u * 512, p.lo + (size_t)(b * PIECES + u) * 512, true);
        if constexpr (F == W_Q8_0) {
            if (lane < 16)
                copy_stream8(slot + 2048 + lane * 8, p.scales + (size_t)(b / 2) * 256 + (b & 1) * 8 + lane * 16);
        } else {
            constexpr uint32_t bytes = F == W_Q4_0 ? 256 : F == W_Q4_K ? K_GROUP_BYTES : 384;
            if (lane < bytes / 16) copy_stream16(mine + 2048, p.scales + (size_t)b * bytes + lane * 16, true);
        }
    }
}

/* A slot's batch to registers. */
template <int F> __device__ __forceinline__ void take(batch<F> &w, const uint8_t *slot, uint32_t lane)
{
    uint32_t g = lane / 4;
    const uint8_t *mine = slot + lane * 16, *s = slot + 2048;
    if constexpr (F == W_BF16 || F == W_F16) {
#pragma unroll
        for (uint32_t u = 0; u < 2; u++) {
            w.lo[u] = *(const uint4 *)(mine + u * 1024);
            w.hi[u] = *(const uint4 *)(mine + u * 1024 + 512);
        }
    } else if constexpr (F == W_F32) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            w.lo[h] = *(const uint4 *)(mine + h * 512);
            w.hi[h] = *(const uint4 *)(mine + 1024 + h * 512);
        }
    } else {
        constexpr uint32_t PIECES = F == W_BYTES ? 2 : 4;
#pragma unroll
        for (uint32_t u = 0; u < PIECES; u++) w.q[u] = *(const uint4 *)(mine + u * 512);
        if constexpr (F == W_Q8_0) {
            w.lo = *(const uint2 *)(s + g * 8);
            w.hi = *(const uint2 *)(s + (g + 8) * 8);
        } else if constexpr (F == W_Q4_0 || F == W_Q4_K) {
            w.lo = *(const uint4 *)(s + g * 16);
            w.hi = *(const uint4 *)(s + (g + 8) * 16);
            if constexpr (F == W_Q4_K) {
                w.d_lo = *(const uint32_t *)(s + 256 + g * 4);
                w.d_hi = *(const uint32_t *)(s + 256 + (g + 8) * 4);
            }
        } else {
#pragma unroll
            for (uint32_t u = 0; u < 2; u++) {
                const float *f = (const float *)(s + u * 192);
#pragma unroll
                for (uint32_t i = 0; i < 3; i++) w.s[u][2 * i] = f[i * 16 + g], w.s[u][2 * i + 1] = f[i * 16 + g + 8];
            }
        }
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

/* Four signed bytes (stored + 128 by the xor) to two words of bf16 pairs; exact. */
__device__ __forceinline__ void bytes_to_bf16(uint32_t out[2], uint32_t u)
{
    u ^= 0x80808080u;
    float f[4];
#pragma unroll
    for (int i = 0; i < 4; i++) f[i] = __uint_as_float(__byte_perm(u, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
    out[0] = __byte_perm(__float_as_uint(f[0]), __float_as_uint(f[1]), 0x7632);
    out[1] = __byte_perm(__float_as_uint(f[2]), __float_as_uint(f[3]), 0x7632);
}

/* (a & b) | c in one instruction, which the compiler does not find when b and c are constants */
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

/* Eight nibbles to four words of bf16 pairs, each value 128 too large. */
__device__ __forceinline__ void nibbles_to_bf16(uint32_t out[4], uint32_t w)
{
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = and_or(w >> (4 * i), 0x000f000fu, 0x43004300u);
}

__device__ __forceinline__ float half_at(uint32_t word, int i)
{
    float f[2];
    unpack_f16(f, word);
    return f[i];
}

/* Byte i of a word; the mantissa trick is faster than a conversion. */
__device__ __forceinline__ float byte_at(uint32_t word, int i)
{
    return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) - 8388608.0f;
}

__device__ __forceinline__ uint32_t word_of(const uint4 &u, int i)
{
    return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
}

/* acc += batch times the input columns; x[nt] is this lane's column at its first k of step 0 (8t, or 4t for W_BYTES),
 * sums the column sums of its two accumulator columns of step 0. */
template <int F, int NT>
__device__ __forceinline__ void consume(float acc[NT][4], const batch<F> &w, const bf16 *const x[NT], const float *sums,
                                        uint32_t b)
{
    constexpr uint32_t STEPS = batch<F>::STEPS;
#pragma unroll
    for (uint32_t u = 0; u < STEPS; u++) {
        uint32_t step = b * STEPS + u, k = step * STEP;
        if constexpr (F == W_BF16) {
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 c = *(const uint4 *)(x[nt] + k);
                mma_bf16(acc[nt], w.lo[u].x, w.hi[u].x, w.lo[u].y, w.hi[u].y, c.x, c.y);
                mma_bf16(acc[nt], w.lo[u].z, w.hi[u].z, w.lo[u].w, w.hi[u].w, c.z, c.w);
            }
        } else if constexpr (F == W_F16 || F == W_F32) {
            constexpr int P = F == W_F16 ? 2 : 3;
            float v[8];
            uint32_t lo[P][4], hi[P][4];
            if constexpr (F == W_F16) {
#pragma unroll
                for (int i = 0; i < 4; i++) unpack_f16(v + 2 * i, word_of(w.lo[u], i));
                split8<P>(lo, v);
#pragma unroll
                for (int i = 0; i < 4; i++) unpack_f16(v + 2 * i, word_of(w.hi[u], i));
                split8<P>(hi, v);
            } else {
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] = __uint_as_float(word_of(w.lo[2 * u + i / 4], i % 4));
                split8<P>(lo, v);
#pragma unroll
                for (int i = 0; i < 8; i++) v[i] = __uint_as_float(word_of(w.hi[2 * u + i / 4], i % 4));
                split8<P>(hi, v);
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 c = *(const uint4 *)(x[nt] + k);
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
                    mma_bf16(acc[nt], lo[p][0], hi[p][0], lo[p][1], hi[p][1], c.x, c.y);
                    mma_bf16(acc[nt], lo[p][2], hi[p][2], lo[p][3], hi[p][3], c.z, c.w);
                }
            }
        } else {
            uint32_t lo[4], hi[4];
            float s_lo, s_hi, m_lo = 0, m_hi = 0; /* scale, and what is subtracted times the sum of the columns */
            if constexpr (F == W_Q8_0) {
                bytes_to_bf16(lo, w.q[u].x), bytes_to_bf16(lo + 2, w.q[u].y);
                bytes_to_bf16(hi, w.q[u].z), bytes_to_bf16(hi + 2, w.q[u].w);
                s_lo = half_at(u < 2 ? w.lo.x : w.lo.y, u & 1), s_hi = half_at(u < 2 ? w.hi.x : w.hi.y, u & 1);
            } else if constexpr (F == W_BYTES) {
                bytes_to_bf16(lo, w.q[u].x), bytes_to_bf16(lo + 2, w.q[u].y);
                bytes_to_bf16(hi, w.q[u].z), bytes_to_bf16(hi + 2, w.q[u].w);
                s_lo = w.s[u][0], s_hi = w.s[u][1], m_lo = w.s[u][4], m_hi = w.s[u][5];
            } else {
                nibbles_to_bf16(lo, u & 1 ? w.q[u / 2].z : w.q[u / 2].x);
                nibbles_to_bf16(hi, u & 1 ? w.q[u / 2].w : w.q[u / 2].y);
                if constexpr (F == W_Q4_0) {
                    s_lo = half_at(word_of(w.lo, u / 2), u & 1), m_lo = 136 * s_lo;
                    s_hi = half_at(word_of(w.hi, u / 2), u & 1), m_hi = 136 * s_hi;
                } else {
                    uint32_t pair_lo = word_of(w.lo, u / 2), pair_hi = word_of(w.hi, u / 2), at = 2 * (u & 1);
                    s_lo = half_at(w.d_lo, 0) * byte_at(pair_lo, at);
                    s_hi = half_at(w.d_hi, 0) * byte_at(pair_hi, at);
                    m_lo = 128 * s_lo + half_at(w.d_lo, 1) * byte_at(pair_lo, at + 1);
                    m_hi = 128 * s_hi + half_at(w.d_hi, 1) * byte_at(pair_hi, at + 1);
                }
            }
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                float d[4];
                if constexpr (F == W_BYTES) {
                    uint2 c0 = *(const uint2 *)(x[nt] + k), c1 = *(const uint2 *)(x[nt] + k + 16);
                    float e[4];
                    mma_bf16_first(d, lo[0], hi[0], lo[1], hi[1], c0.x, c0.y);
                    mma_bf16_first(e, lo[2], hi[2], lo[3], hi[3], c1.x, c1.y);
                    acc[nt][0] += w.s[u][2] * e[0], acc[nt][1] += w.s[u][2] * e[1];
                    acc[nt][2] += w.s[u][3] * e[2], acc[nt][3] += w.s[u][3] * e[3];
                } else {
                    uint4 c = *(const uint4 *)(x[nt] + k);
                    mma_bf16_first(d, lo[0], hi[0], lo[1], hi[1], c.x, c.y);
                    mma_bf16(d, lo[2], hi[2], lo[3], hi[3], c.z, c.w);
                }
                acc[nt][0] += s_lo * d[0], acc[nt][1] += s_lo * d[1];
                acc[nt][2] += s_hi * d[2], acc[nt][3] += s_hi * d[3];
                if constexpr (F != W_Q8_0) {
                    float2 sum = *(const float2 *)(sums + (step * NT + nt) * 8);
                    acc[nt][0] -= m_lo * sum.x, acc[nt][1] -= m_lo * sum.y;
                    acc[nt][2] -= m_hi * sum.x, acc[nt][3] -= m_hi * sum.y;
                }
            }
        }
    }
}

/* ---- the kernel ------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ const entry &entry_of(const linear_args &a, uint32_t tile)
{
    uint32_t i = 0;
    while (i + 1 < a.n_entries && tile >= a.e[i + 1].tile0) i++;
    return a.e[i];
}

/* What a warp copies next: batch b of a tile. */
template <int F> struct cursor {
    uint32_t tile, b, batches;
    place p;
    bool main;

    /* Moves to the first tile from `tile` on that has a batch for this warp. */
    __device__ __forceinline__ void seek(const linear_args &a, uint32_t steps, uint32_t warp, uint32_t lane)
    {
        b = batches = 0;
        for (; tile < a.tiles; tile += gridDim.x) { /* goes on only where tiles are not handed out */
            const entry &e = entry_of(a, tile);
            main = F == W_F32 || e.format == F;
            batches = main ? (steps + batch<F>::STEPS - 1) / batch<F>::STEPS : steps;
            if (warp >= batches) continue;
            b = warp;
            p = main ? place_of<F>(e, tile, a.k, lane) : place_of<W_F32>(e, tile, a.k, lane);
            return;
        }
    }
    /* `following`: the tile after the one being worked on */
    __device__ __forceinline__ void go(const linear_args &a, uint32_t slot, uint32_t following, uint32_t steps,
                                       uint32_t warp, uint32_t lane)
    {
        if (b >= batches && tile < a.tiles) {
            tile = a.counter != nullptr ? following : tile + gridDim.x;
            seek(a, steps, warp, lane);
        }
        if (tile < a.tiles) {
            if (main) issue<F>(slot, p, b, steps, lane);
            else issue<W_F32>(slot, p, b, steps, lane);
            b += WARPS;
        }
        copy_async_commit();
    }
};

/* Blocks are handed tiles of 16 weight rows; the warps of a block share a tile's columns and add up at its end. Each
 * warp keeps its next batches of weights, also across tiles and across the wait for the previous kernel, on their way
 * to its ring of slots. Entries are of format F, or F32 (gates). */
template <int F, int NT>
__global__ void __launch_bounds__(THREADS, 2) linear_kernel(const __grid_constant__ linear_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr uint32_t RED = 8 * NT + 2; /* row stride of partial sums: even, and spread over the banks */
    constexpr bool SUMS = F == W_Q4_0 || F == W_Q4_K || F == W_BYTES;
    uint8_t *ring = memory;
    columns c;
    c.x = (bf16 *)(ring + WARPS * a.stages * SLOT);
    float *partial = (float *)((uint8_t *)c.x + a.x_bytes), *after = partial + 2 * WARPS * 16 * RED;
    uint32_t *handed = (uint32_t *)after; /* [2] tile numbers */
    c.sums = SUMS ? after + 4 : nullptr;
    c.width = 8 * NT;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t steps = (a.k + STEP - 1) / STEP;
    ring += warp * a.stages * SLOT;
    uint32_t slots = shared_address(ring), slot = 0;

    cursor<F> ahead;
    ahead.tile = blockIdx.x;
    ahead.seek(a, steps, warp, lane);
    for (uint32_t i = 0; i < a.stages; i++) ahead.go(a, slots + i * SLOT, a.tiles, steps, warp, lane);
    if (threadIdx.x == 0 && a.counter != nullptr) handed[1] = gridDim.x + atomicAdd(a.counter, 1u);
    pdl_go();
    pdl_wait();
    make_columns(a, c);
    __syncthreads();

    const bf16 *x[NT], *y[NT];
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint32_t column = min((uint32_t)nt * 8 + g, a.rows * a.parts - 1);
        y[nt] = c.x + (size_t)column * a.x_pitch + t * 8;
        x[nt] = F == W_BYTES ? y[nt] - t * 4 : y[nt];
    }
    const float *sums = SUMS ? c.sums + 2 * t : nullptr;

    uint32_t turn = 0, following = a.counter != nullptr ? handed[1] : blockIdx.x + gridDim.x, fetched = 0;
    for (uint32_t tile = blockIdx.x; tile < a.tiles; turn ^= 1) {
        const entry &e = entry_of(a, tile);
        if (threadIdx.x == 0 && a.counter != nullptr) fetched = gridDim.x + atomicAdd(a.counter, 1u);
        bool main = F == W_F32 || e.format == F;
        uint32_t batches = main ? (steps + batch<F>::STEPS - 1) / batch<F>::STEPS : steps;
        float acc[NT][4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) acc[nt][0] = acc[nt][1] = acc[nt][2] = acc[nt][3] = 0;
        for (uint32_t b = warp; b < batches; b += WARPS) {
            if (a.stages == 4) copy_async_wait<3>();
            else copy_async_wait<1>();
            __syncwarp();
            if (main) {
                batch<F> w;
                take<F>(w, ring + slot * SLOT, lane);
                consume<F, NT>(acc, w, x, sums, b);
            } else if constexpr (F != W_F32) {
                batch<W_F32> w;
                take<W_F32>(w, ring + slot * SLOT, lane);
                consume<W_F32, NT>(acc, w, y, nullptr, b);
            }
            __syncwarp();
            ahead.go(a, slots + slot * SLOT, following, steps, warp, lane);
            slot = (slot + 1) & (a.stages - 1);
        }
        float *mine = partial + (turn * WARPS + warp) * 16 * RED;
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            *(float2 *)(mine + g * RED + nt * 8 + 2 * t) = make_float2(acc[nt][0], acc[nt][1]);
            *(float2 *)(mine + (g + 8) * RED + nt * 8 + 2 * t) = make_float2(acc[nt][2], acc[nt][3]);
        }
        if (threadIdx.x == 0) handed[turn] = fetched;
        __syncthreads();
        const float *all = partial + turn * WARPS * 16 * RED;
        for (uint32_t o = threadIdx.x; o < 16 * a.rows; o += THREADS) {
            uint32_t r = o % 16, m = o / 16, n = (tile - e.tile0) * 16 + r;
            if (n >= e.n) continue;
            float sum = 0;
            for (uint32_t q = a.parts; q-- > 0;) {
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum += all[(w * 16 + r) * RED + q * a.rows + m];
            }
            if (e.bias != nullptr) sum += e.bias[n];
            size_t at = (size_t)(a.row0 + m) * e.stride + e.column + n;
            if (e.wide) {
                ((float *)e.out)[at] = e.add ? ((float *)e.out)[at] + sum : sum;
            } else {
                if (e.add) sum = rounded_to(sum, a.act) + load_plain(e.out, at, a.act);
                store_plain(e.out, at, a.act, sum);
            }
        }
        tile = following;
        following = a.counter != nullptr ? handed[turn] : tile + gridDim.x;
    }
}

/* ---- many rows times a few outputs ------------------------------------------------------------------------------ */

struct narrow_args {
    entry e[8]; /* tile0: first of its groups of 8 outputs */
    uint32_t n_entries, groups, rows, k;
    xlstm_dtype act;
    const void *x;
};

constexpr int NARROW_WARPS = 8, AHEAD = 4;

/* Eight values as stored. */
template <typename T> struct raw8 {
    uint4 u[sizeof(T) / 2];
};
template <typename T> __device__ __forceinline__ raw8<T> load_raw(const T *p, bool there)
{
    raw8<T> r;
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 2; i++) r.u[i] = there ? ((const uint4 *)p)[i] : make_uint4(0, 0, 0, 0);
    return r;
}
template <typename T> constexpr int parts_in = sizeof(T) == 4 ? 3 : 1;
template <> constexpr int parts_in<__half> = 2;

template <typename T> __device__ __forceinline__ void split_raw(uint32_t f[parts_in<T>][4], const raw8<T> &r)
{
    float v[8];
    load8(v, (const T *)&r);
    split8<parts_in<T>>(f, v);
}

/* A block does 16 rows of x against all outputs (at most 8 G), x in the role of the weights above. k is a multiple of
 * 8. */
template <typename T, typename W, int G>
__global__ void __launch_bounds__(NARROW_WARPS * 32) narrow_kernel(const __grid_constant__ narrow_args a)
{
    __shared__ float partial[NARROW_WARPS][16][8 * G + 2];
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    uint32_t row = blockIdx.x * 16;
    pdl_go();
    pdl_wait();
    float acc[G][4] = {};
    const W *w[G];
#pragma unroll
    for (int i = 0; i < G; i++) {
        uint32_t at = 0, group = min((uint32_t)i, a.groups - 1);
        while (at + 1 < a.n_entries && group >= a.e[at + 1].tile0) at++;
        const entry &e = a.e[at];
        w[i] = (const W *)e.w + (size_t)min((group - e.tile0) * 8 + g, e.n - 1) * e.pitch;
    }
    const T *lo = (const T *)a.x + (size_t)min(row + g, a.rows - 1) * a.k,
            *hi = (const T *)a.x + (size_t)min(row + g + 8, a.rows - 1) * a.k;
    for (uint32_t first = warp * 32 + 8 * t; first < (a.k + 31) / 32 * 32; first += AHEAD * NARROW_WARPS * 32) {
        raw8<T> x_lo[AHEAD], x_hi[AHEAD];
        raw8<W> y[AHEAD][G];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            uint32_t k = first + j * NARROW_WARPS * 32;
            x_lo[j] = load_raw(lo + k, k < a.k);
            x_hi[j] = load_raw(hi + k, k < a.k);
#pragma unroll
            for (int i = 0; i < G; i++) y[j][i] = load_raw(w[i] + k, k < a.k);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            constexpr int P = parts_in<T>, Q = parts_in<W>;
            uint32_t f_lo[P][4], f_hi[P][4];
            split_raw<T>(f_lo, x_lo[j]);
            split_raw<T>(f_hi, x_hi[j]);
#pragma unroll
            for (int i = 0; i < G; i++) {
                uint32_t f[Q][4];
                split_raw<W>(f, y[j][i]);
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
#pragma unroll
                    for (int q = Q - 1; q >= 0; q--) {
                        mma_bf16(acc[i], f_lo[p][0], f_hi[p][0], f_lo[p][1], f_hi[p][1], f[q][0], f[q][1]);
                        mma_bf16(acc[i], f_lo[p][2], f_hi[p][2], f_lo[p][3], f_hi[p][3], f[q][2], f[q][3]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < G; i++) {
        *(float2 *)&partial[warp][g][i * 8 + 2 * t] = make_float2(acc[i][0], acc[i][1]);
        *(float2 *)&partial[warp][g + 8][i * 8 + 2 * t] = make_float2(acc[i][2], acc[i][3]);
    }
    __syncthreads();
    for (uint32_t o = threadIdx.x; o < 16 * 8 * a.groups; o += NARROW_WARPS * 32) {
        uint32_t m = row + o / (8 * a.groups), c = o % (8 * a.groups), at = 0;
        while (at + 1 < a.n_entries && c / 8 >= a.e[at + 1].tile0) at++;
        const entry &e = a.e[at];
        uint32_t n = c - e.tile0 * 8;
        if (m >= a.rows || n >= e.n) continue;
        float sum = 0;
        for (int w = 0; w < NARROW_WARPS; w++) sum += partial[w][o / (8 * a.groups)][c];
        if (e.bias != nullptr) sum += e.bias[n];
        size_t to = (size_t)m * e.stride + e.column + n;
        if (e.wide) {
            ((float *)e.out)[to] = e.add ? ((float *)e.out)[to] + sum : sum;
        } else {
            if (e.add) sum = rounded_to(sum, a.act) + load_plain(e.out, to, a.act);
            store_plain(e.out, to, a.act, sum);
        }
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

format format_of(xlstm_dtype t)
{
    switch (t) {
    case XLSTM_BF16:
        return W_BF16;
    case XLSTM_F16:
        return W_F16;
    case XLSTM_F32:
        return W_F32;
    case XLSTM_Q8_0:
        return W_Q8_0;
    case XLSTM_Q4_0:
        return W_Q4_0;
    case XLSTM_Q4_K:
        return W_Q4_K;
    default:
        return W_BYTES;
    }
}

entry entry_for(const xl_linear *l)
{
    entry e = {};
    e.w = l->weight->data;
    e.scales = l->weight->scales;
    e.bias = l->bias != nullptr ? (const float *)l->bias->data : nullptr;
    e.out = l->out->data;
    e.pitch = l->weight->pitch;
    e.n = l->weight->out;
    e.stride = l->stride;
    e.column = l->column;
    e.format = format_of(l->weight->dtype);
    e.add = l->add;
    e.wide = l->wide;
    return e;
}

typedef void (*linear_fn)(const linear_args);

template <int NT> linear_fn kernel_for(uint32_t f)
{
    switch (f) {
    case W_BF16:
        return linear_kernel<W_BF16, NT>;
    case W_F16:
        return linear_kernel<W_F16, NT>;
    case W_F32:
        return linear_kernel<W_F32, NT>;
    case W_Q8_0:
        return linear_kernel<W_Q8_0, NT>;
    case W_Q4_0:
        return linear_kernel<W_Q4_0, NT>;
    case W_Q4_K:
        return linear_kernel<W_Q4_K, NT>;
    default:
        return linear_kernel<W_BYTES, NT>;
    }
}

uint32_t parts_of(xlstm_dtype act) { return act == XLSTM_BF16 ? 1 : act == XLSTM_F16 ? 2 : 3; }

/* Elements a column takes in shared memory: padded to groups and shifted by half a bank row. */
uint32_t x_pitch_for(uint32_t k) { return quant_groups(k) * 256 + 32; }

uint32_t tiles_for(uint32_t columns) { return columns <= 8 ? 1 : columns <= 16 ? 2 : 4; }

/* Shared memory besides the columns: ring, partial sums, and sums of columns. */
size_t other_bytes(uint32_t stages, uint32_t nt, uint32_t k)
{
    return WARPS * stages * SLOT + (2 * WARPS * 16 * (8 * nt + 2) + 4) * sizeof(float) +
           (size_t)quant_groups(k) * 8 * 8 * nt * sizeof(float);
}

template <typename T, typename W> void (*narrow_by(uint32_t groups))(const narrow_args)
{
    return groups <= 2 ? narrow_kernel<T, W, 2> : narrow_kernel<T, W, 4>;
}
template <typename T> void (*narrow_with(xlstm_dtype w, uint32_t groups))(const narrow_args)
{
    return w == XLSTM_BF16  ? narrow_by<T, bf16>(groups)
           : w == XLSTM_F16 ? narrow_by<T, __half>(groups)
                            : narrow_by<T, float>(groups);
}
void (*narrow_for(xlstm_dtype x, xlstm_dtype w, uint32_t groups))(const narrow_args)
{
    return x == XLSTM_BF16  ? narrow_with<bf16>(w, groups)
           : x == XLSTM_F16 ? narrow_with<__half>(w, groups)
                            : narrow_with<float>(w, groups);
}

/* Rows one launch can take. */
uint32_t rows_a_launch(const cuda_backend *be, uint32_t k)
{
    uint32_t parts = parts_of(be->opt.activations), rows = MAX_COLUMNS / parts;
    while (rows > 1 &&
           (size_t)rows * parts * x_pitch_for(k) * 2 + other_bytes(2, tiles_for(rows * parts), k) > be->smem_max)
        rows--;
    return rows;
}

void launch_few(cuda_backend *be, const cuda_op *op, const uint32_t *chosen, uint32_t n_chosen, uint32_t main,
                uint32_t row0, uint32_t rows)
{
    linear_args a = {};
    a.k = op->group[chosen[0]].weight->in;
    for (uint32_t i = 0; i < n_chosen; i++) {
        a.e[i] = entry_for(&op->group[chosen[i]]);
        a.e[i].tile0 = a.tiles;
        a.tiles += (a.e[i].n + 15) / 16;
    }
    a.n_entries = n_chosen;
    a.rows = rows;
    a.row0 = row0;
    a.parts = parts_of(be->opt.activations);
    a.k_padded = quant_groups(a.k) * 256;
    a.x_pitch = x_pitch_for(a.k);
    a.x_bytes = rows * a.parts * a.x_pitch * 2;
    a.act = be->opt.activations;
    a.x = op->x->data;
    uint32_t nt = tiles_for(rows * a.parts);
    linear_fn kernel = nt == 1 ? kernel_for<1>(main) : nt == 2 ? kernel_for<2>(main) : kernel_for<4>(main);
    bool sums = main == W_Q4_0 || main == W_Q4_K || main == W_BYTES;
    /* handing out tiles needs a ring no longer than what a warp has of a tile */
    uint32_t steps_each = main == W_F32 ? 1 : main == W_Q8_0 ? 4 : main == W_Q4_0 || main == W_Q4_K ? 8 : 2;
    uint32_t a_warp = (a.k + STEP - 1) / STEP / steps_each / WARPS;
    a.stages = a_warp >= 4 && main < W_Q8_0 && a.x_bytes + other_bytes(4, nt, sums ? a.k : 0) <= be->smem_max ? 4 : 2;
    if (a_warp >= a.stages && be->n_counters < COUNTERS) a.counter = be->counters + be->n_counters++;
    size_t smem = a.x_bytes + other_bytes(a.stages, nt, sums ? a.k : 0);
    uint32_t blocks = (uint32_t)be->sms * (smem * 2 + 4096 <= be->smem_max ? BLOCKS : 1);
    cuda_launch(be, "linear", kernel, dim3(XL_MIN(a.tiles, blocks)), dim3(THREADS), smem, a);
}

/* Row counts are rounded up, within the buffers, so that few shapes have to be planned: the extra rows are nobody's. */
uint32_t planned_rows(uint32_t rows, const xl_buffer *x, const xl_buffer *y)
{
    uint32_t step = rows < 128 ? 16 : rows < 1024 ? 64 : 128;
    return (uint32_t)XL_MIN(xl_round_up(rows, step), XL_MIN(x->rows, y->rows));
}

/* Two products of one shape (q and k, v and o, gate and up) as one batched call, which fills the chip better. */
bool run_pair(cuda_backend *be, const xl_linear *l, const xl_linear *r, const xl_buffer *x, uint32_t real_rows)
{
    const xl_matrix *w = l->weight, *v = r->weight;
    xlstm_dtype act = be->opt.activations, type = l->out->dtype;
    if (be->gemm == nullptr || w->dtype != act || v->dtype != act || w->out != v->out || l->stride != r->stride ||
        l->add || r->add || l->bias != nullptr || r->bias != nullptr || type != r->out->dtype || l->column != 0 ||
        r->column != 0 || w->in % 8 != 0 || l->stride % 8 != 0 || l->out->rows != r->out->rows || v->data < w->data ||
        r->out->data < l->out->data) {
        return false;
    }
    uint32_t rows = planned_rows(real_rows, x, l->out);
    cuda_pair pair = {(int64_t)((v->data - w->data) / (ptrdiff_t)cuda_size(act)),
                      (int64_t)((r->out->data - l->out->data) / (ptrdiff_t)cuda_size(type))};
    return cuda_gemm_run(be, l->out->data, type, l->stride, x->data, w->in, w->data, w->pitch, act, rows, w->out, w->in,
                         false, &pair);
}

/* Through cublasLt. False: no way for these formats. */
bool run_large(cuda_backend *be, const xl_linear *l, const xl_buffer *x, uint32_t real_rows)
{
    uint32_t rows = planned_rows(real_rows, x, l->out);
    const xl_matrix *w = l->weight;
    xlstm_dtype act = be->opt.activations, y_type = l->out->dtype;
    uint8_t *y = l->out->data + (size_t)l->column * cuda_size(y_type);
    if (be->gemm == nullptr || w->in % 8 != 0 || l->stride % 8 != 0 || l->column % 8 != 0 || w->out % 8 != 0)
        return false;
    bool done = false;
    if (w->dtype == act) {
        done = cuda_gemm_run(be, y, y_type, l->stride, x->data, w->in, w->data, w->pitch, act, rows, w->out, w->in,
                             l->add);
    } else if (act == XLSTM_F32 && w->dtype == XLSTM_BF16) {
        size_t n = (size_t)rows * w->in;
        uint8_t *parts = (uint8_t *)cuda_scratch(be, n * 6);
        if (parts == nullptr) return true;
        cuda_run_split(be, parts, n, 3, x, (size_t)real_rows * w->in);
        for (uint32_t p = 3; p-- > 0;) {
            done = cuda_gemm_run(be, y, y_type, l->stride, parts + p * n * 2, w->in, w->data, w->pitch, XLSTM_BF16,
                                 rows, w->out, w->in, l->add || p < 2);
            if (!done) return false;
        }
    } else if (act != XLSTM_F16) { /* weights to the activations' format, a slice of rows at a time */
        uint32_t slice = XL_MIN(w->out, 16384u);
        size_t pitch = xl_round_up(w->in, 32), bytes = slice * pitch * cuda_size(act);
        uint8_t *plain = (uint8_t *)cuda_scratch(be, bytes);
        if (plain == nullptr) return true;
        for (uint32_t row = 0; row < w->out; row += slice) {
            uint32_t n = XL_MIN(slice, w->out - row);
            if (cuda_plain(w->dtype)) {
                cuda_run_convert(be->stream, plain, act, pitch, w->data + row * w->pitch * cuda_size(w->dtype),
                                 w->dtype, n, w->pitch);
            } else {
                cuda_quant_unpack(be, plain, act, pitch, w, row, n);
            }
            be->after_kernel = false;
            done = cuda_gemm_run(be, y + row * cuda_size(y_type), y_type, l->stride, x->data, w->in, plain, pitch, act,
                                 rows, n, w->in, l->add);
            if (!done) return false;
        }
    }
    if (done && l->bias != nullptr) cuda_run_bias(be, l, real_rows);
    return done;
}

} // namespace

cudaError_t cuda_linear_setup(cuda_backend *be)
{
    for (uint32_t f = 0; f < W_FORMATS; f++) {
        linear_fn kernels[] = {kernel_for<1>(f), kernel_for<2>(f), kernel_for<4>(f)};
        for (linear_fn k : kernels) {
            cudaError_t code =
                cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)be->smem_max);
            if (code != cudaSuccess) return code;
        }
    }
    return cudaSuccess;
}

void cuda_run_linear(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    const xl_buffer *x = op->x;
    uint32_t k = op->group[0].weight->in, capacity = rows_a_launch(be, k);
    bool left[8] = {};
    for (uint32_t i = 0; i < op->n; i++) {
        op->group[i].out->dtype = op->group[i].wide ? XLSTM_F32 : be->opt.activations;
        left[i] = true;
    }
    /* beyond two trips over the weights a matrix product wins; with weights it can read as they are, sooner */
    bool native = op->group[0].weight->dtype == be->opt.activations && be->gemm != nullptr;
    if (rows > (native ? capacity * 3 / 4 : 2 * capacity)) {
        narrow_args narrow = {};
        xlstm_dtype weights = XLSTM_F32;
        for (uint32_t i = 0; i < op->n; i++) {
            const xl_matrix *w = op->group[i].weight;
            uint32_t groups = (w->out + 7) / 8;
            if (k % 8 == 0 && cuda_plain(w->dtype) && narrow.groups + groups <= 4 &&
                (narrow.n_entries == 0 || w->dtype == weights)) {
                weights = w->dtype;
                narrow.e[narrow.n_entries] = entry_for(&op->group[i]);
                narrow.e[narrow.n_entries++].tile0 = narrow.groups;
                narrow.groups += groups;
                left[i] = false;
            }
        }
        if (narrow.n_entries > 0) {
            narrow.rows = rows;
            narrow.k = k;
            narrow.act = be->opt.activations;
            narrow.x = x->data;
            cuda_launch(be, "narrow linear", narrow_for(narrow.act, weights, narrow.groups), dim3((rows + 15) / 16),
                        dim3(NARROW_WARPS * 32), 0, narrow);
        }
        for (uint32_t i = 0; i < op->n; i++) {
            for (uint32_t j = i + 1; j < op->n && left[i]; j++) {
                if (left[j] && run_pair(be, &op->group[i], &op->group[j], x, rows)) left[i] = left[j] = false;
            }
            if (left[i] && run_large(be, &op->group[i], x, rows)) left[i] = false;
        }
    }
    /* the rest by format; float32 entries ride along with the first other format */
    while (true) {
        uint32_t chosen[8], n_chosen = 0, main = W_FORMATS;
        for (uint32_t i = 0; i < op->n; i++) {
            uint32_t f = format_of(op->group[i].weight->dtype);
            if (left[i] && (main == W_FORMATS || main == W_F32)) main = f;
        }
        for (int small = 1; small >= 0; small--) { /* gates first: their tiles take longest */
            for (uint32_t i = 0; i < op->n; i++) {
                uint32_t f = format_of(op->group[i].weight->dtype);
                if (!left[i] || (f != main && f != W_F32) || (op->group[i].weight->out < 64) != (small == 1)) continue;
                chosen[n_chosen++] = i;
                left[i] = false;
            }
        }
        if (n_chosen == 0) break;
        for (uint32_t row = 0; row < rows; row += capacity) {
            launch_few(be, op, chosen, n_chosen, main, row, XL_MIN(capacity, rows - row));
        }
    }
}
