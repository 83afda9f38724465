/*
 * cuda_scan.cu — the chunkwise cell (cuda_chunk.cu) for GPUs whose multiprocessors have less shared memory than that
 * needs: pieces of up to 64 tokens, and two kernels:
 *   intra  all pieces at once: gate sums, and the decay-weighted products P of queries and keys inside a piece,
 *          relative to each row's own maximum;
 *   scan   one block a run, head and tile of value columns walks the pieces with C in registers (float32): outputs from
 *          C and P, then the update of C. Inputs of the next piece load meanwhile.
 */
#include "cuda_device.cuh"

#include "cuda_chunk.cuh"

namespace
{

constexpr int PIECE = 64;

/* What intra leaves for scan, per chunk and head. */
struct intra {
    bf16 p[PIECE][PIECE]; /* s q k exp(log decay - row maximum) */
    float b[PIECE];       /* sum of log forget gates up to and including the row */
    float top[PIECE];     /* the row's maximum of log decay */
    float sum[PIECE];     /* of a row of p */
    float a[PIECE];       /* log weight of the token in the next state; -inf beyond the chunk */
    float total, top_a;   /* b of the last row; maximum of a */
    float unused[14];
};

struct chunk_args : cell_args<bf16> {
    const cuda_chunk *chunks;
    intra *between;
};

__device__ __forceinline__ float max_nan(float a, float b) { return a > b || a != a ? a : b; }

/* Starts copying rows [PIECE][width] of [..][stride] from `from`; rows >= count and columns >= width become zero. A
 * thread keeps its column and goes down the rows. */
template <int W, int PITCH, int THREADS>
__device__ __forceinline__ void fetch_rows(bf16 *to, const bf16 *from, size_t stride, uint32_t count, uint32_t width)
{
    constexpr uint32_t PIECES = W / 8, DOWN = THREADS / PIECES, TRIPS = DOWN < PIECE ? PIECE / DOWN : 1;
    static_assert(PIECE % DOWN == 0 || DOWN % PIECE == 0);
    uint32_t row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
    if (DOWN > PIECE && row >= PIECE) return;
    uint32_t there = column < width ? count : 0, at = shared_address(to + row * PITCH + column);
    const bf16 *p = from + row * stride + column;
    size_t step = DOWN * stride;
#pragma unroll
    for (uint32_t i = 0; i < TRIPS; i++) {
        copy_async16(at, p, row < there);
        row += DOWN;
        at += DOWN * PITCH * sizeof(bf16);
        p += step;
    }
}

/* ---- intra ------------------------------------------------------------------------------------------------------ */

template <int DQ> __global__ void __launch_bounds__(128) intra_kernel(const __grid_constant__ chunk_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr int PITCH = DQ + 8;
    bf16 *q = (bf16 *)memory, *k = q + PIECE * PITCH;
    __shared__ float rise[PIECE], peak[PIECE]; /* i - b, and its running maximum */
    const cuda_chunk chunk = a.chunks[blockIdx.x];
    uint32_t head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    intra *out = a.between + (size_t)blockIdx.x * a.heads + head;
    pdl_go();
    pdl_wait();
    size_t at = ((size_t)chunk.row * a.heads + head) * a.dq, stride = (size_t)a.heads * a.dq;
    fetch_rows<DQ, PITCH, 128>(q, a.q + at, stride, chunk.count, a.dq);
    fetch_rows<DQ, PITCH, 128>(k, a.k + at, stride, chunk.count, a.dq);
    copy_async_commit();
    if (warp == 0) { /* a lane has rows 2 lane and 2 lane + 1 */
        float ig[2], lf[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint32_t row = 2 * lane + j;
            ig[j] = -INFINITY;
            lf[j] = 0;
            if (row < chunk.count) {
                const float *gates = a.gates + (size_t)(chunk.row + row) * 2 * a.heads + head;
                float i = soft_cap(gates[0], a.cap), f = soft_cap(gates[a.heads], a.cap);
                if (a.kernel == XLSTM_BF16) i = rounded<bf16>(i), f = rounded<bf16>(f);
                ig[j] = i;
                lf[j] = log_sigmoid(f);
                if (!is_finite(ig[j]) || !is_finite(lf[j])) report(a.faults, chunk.row + row, a.fault);
            }
        }
        float b1 = lf[0] + lf[1], up = b1;
        for (int o = 1; o < 32; o <<= 1) {
            float other = __shfl_up_sync(0xffffffffu, up, o);
            if ((int)lane >= o) up += other;
        }
        float b[2] = {up - lf[1], up}, total = __shfl_sync(0xffffffffu, up, 31);
        float r[2] = {ig[0] - b[0], ig[1] - b[1]};
        float most = max_nan(r[0], r[1]);
        for (int o = 1; o < 32; o <<= 1) {
            float other = __shfl_up_sync(0xffffffffu, most, o);
            if ((int)lane >= o) most = max_nan(most, other);
        }
        float before = __shfl_up_sync(0xffffffffu, most, 1);
        float p[2] = {lane == 0 ? r[0] : max_nan(before, r[0]), most};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint32_t row = 2 * lane + j;
            rise[row] = r[j];
            peak[row] = p[j];
            out->b[row] = b[j];
            out->top[row] = b[j] + p[j];
            out->a[row] = total + r[j];
        }
        if (lane == 31) out->total = total, out->top_a = total + most;
    }
    copy_async_wait<0>();
    __syncthreads();
    float acc[PIECE / 8][4] = {};
#pragma unroll 4
    for (int k0 = 0; k0 < DQ; k0 += 16) {
        uint32_t fa[4];
        load_matrix4(fa, shared_address(q + (warp * 16 + lane % 16) * PITCH + k0 + lane / 16 * 8));
#pragma unroll
        for (int n = 0; n < PIECE / 16; n++) {
            if (n > (int)warp) continue; /* above the diagonal */
            uint32_t fb[4];
            load_matrix4(fb, shared_address(k + (n * 16 + lane / 16 * 8 + lane % 8) * PITCH + k0 + (lane / 8 & 1) * 8));
            mma_bf16(acc[2 * n], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
            mma_bf16(acc[2 * n + 1], fa[0], fa[1], fa[2], fa[3], fb[2], fb[3]);
        }
    }
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < PIECE / 8; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t row = warp * 16 + g + half * 8;
            float p[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                uint32_t column = n * 8 + 2 * t + j;
                bool in = column <= row && row < chunk.count;
                p[j] = in ? acc[n][half * 2 + j] * a.scale * expf(rise[column] - peak[row]) : 0.0f;
                sum[half] += p[j];
            }
            *(uint32_t *)&out->p[row][n * 8 + 2 * t] = pack_bf16(p[0], p[1]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
        sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
        if (t == 0) out->sum[warp * 16 + g + half * 8] = sum[half];
    }
}

/* ---- scan ------------------------------------------------------------------------------------------------------- */

template <int DQ, int TV> struct stage {
    bf16 q[PIECE][DQ + 8], k[PIECE][DQ + 8], v[PIECE][TV + 8], p[PIECE][PIECE + 8];
    float vectors[4][PIECE], total, top_a, unused[14];
};

/* n rides along as two more columns of C, its bfloat16 head and remainder, and the token weights likewise beside v. */
template <int DQ, int TV, int KS> struct scan_memory {
    bf16 c[DQ][TV + 8];                             /* C and n at the start of the chunk */
    bf16 v[PIECE][TV + 8];                          /* values times their weight in the next state; the weight */
    float carry[PIECE], local[PIECE], floor[PIECE]; /* row factors of q C and p v, exp(-M) */
    float qn[KS][PIECE];                            /* q n, a part for each share of dq */
    float part[KS - 1 + (KS == 1)][KS == 1 ? 1 : PIECE][TV + 8]; /* q C of the second share */
};

/* A float as two bfloat16 side by side. */
__device__ __forceinline__ uint32_t in_two(float x)
{
    float head = rounded<bf16>(x);
    return pack_bf16(head, x - head);
}

template <int DQ, int TV, int THREADS>
__device__ __forceinline__ void fetch_stage(stage<DQ, TV> &s, const chunk_args &a, uint32_t index, uint32_t head,
                                            uint32_t column)
{
    const cuda_chunk chunk = a.chunks[index];
    const intra *in = a.between + (size_t)index * a.heads + head;
    size_t at = ((size_t)chunk.row * a.heads + head) * a.dq, stride = (size_t)a.heads * a.dq;
    fetch_rows<DQ, DQ + 8, THREADS>(&s.q[0][0], a.q + at, stride, chunk.count, a.dq);
    fetch_rows<DQ, DQ + 8, THREADS>(&s.k[0][0], a.k + at, stride, chunk.count, a.dq);
    fetch_rows<TV, TV + 8, THREADS>(&s.v[0][0], a.v + ((size_t)chunk.row * a.heads + head) * a.dv + column,
                                    (size_t)a.heads * a.dv, chunk.count, a.dv - column);
    fetch_rows<PIECE, PIECE + 8, THREADS>(&s.p[0][0], &in->p[0][0], PIECE, PIECE, PIECE);
    if (threadIdx.x < (4 * PIECE + 16) / 4) {
        copy_async16(shared_address(&s.vectors[0][0] + threadIdx.x * 4), &in->b[0] + threadIdx.x * 4, true);
    }
}

/* KS: shares of dq in q C, each of 8 warps. */
template <int DQ, int TV, int STAGES, int KS>
__global__ void __launch_bounds__(256 * KS, 1) scan_kernel(const __grid_constant__ chunk_args a)
{
    constexpr int THREADS = 256 * KS;
    extern __shared__ __align__(128) uint8_t memory[];
    stage<DQ, TV> *stages = (stage<DQ, TV> *)memory;
    scan_memory<DQ, TV, KS> &s = *(scan_memory<DQ, TV, KS> *)(memory + STAGES * sizeof(stage<DQ, TV>));
    constexpr int MT = DQ >= 128 * KS ? DQ / (128 * KS) : 1,
                  UPDATERS = DQ / (16 * MT); /* 16-row tiles of C a warp, warps that have any */
    constexpr int HN = TV / 16;              /* 8-column tiles of h a warp */
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4;
    uint32_t head = blockIdx.y, column = blockIdx.x * TV;
    const cuda_run run = a.runs[blockIdx.z];
    pdl_go();
    pdl_wait();

    float c[MT][TV / 8][4] = {}, n_row[MT][2] = {}; /* n_row: of rows g and g + 8, in lanes t = 0 */
    uint32_t c_row = warp * 16 * MT;
    bool updates = warp < UPDATERS;
    uint8_t *state = run.c + a.c_block;
    size_t head_at = (size_t)head * a.dq * a.dv;
    if (updates) {
#pragma unroll
        for (int i = 0; i < MT; i++) {
#pragma unroll
            for (int n = 0; n < TV / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t row = c_row + i * 16 + g + e / 2 * 8, col = column + n * 8 + 2 * t + e % 2;
                    if (row < a.dq && col < a.dv) {
                        size_t at = head_at + (size_t)row * a.dv + col;
                        c[i][n][e] = a.narrow_state ? value_of(((const bf16 *)state)[at]) : ((const float *)state)[at];
                    }
                }
                *(uint32_t *)&s.c[c_row + i * 16 + g][n * 8 + 2 * t] = pack_bf16(c[i][n][0], c[i][n][1]);
                *(uint32_t *)&s.c[c_row + i * 16 + g + 8][n * 8 + 2 * t] = pack_bf16(c[i][n][2], c[i][n][3]);
            }
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint32_t row = c_row + i * 16 + g + e * 8;
                if (t == 0 && row < a.dq) n_row[i][e] = run.n_in[a.n_block + head * a.dq + row];
                *(uint32_t *)&s.c[row][TV + 2 * t] = in_two(n_row[i][e]); /* zero where t > 0 */
            }
        }
    }
    for (uint32_t i = tid; i < PIECE; i += THREADS) *(uint4 *)&s.v[i][TV] = make_uint4(0, 0, 0, 0);
    float m = run.m_in[a.m_block + head];
    uint64_t position = run.position;

    fetch_stage<DQ, TV, THREADS>(stages[0], a, run.chunk0, head, column);
    copy_async_commit();
    for (uint32_t turn = 0; turn < run.n_chunks; turn++) {
        const cuda_chunk chunk = a.chunks[run.chunk0 + turn];
        stage<DQ, TV> &in = stages[turn % STAGES];
        if (STAGES > 1 && turn + 1 < run.n_chunks)
            fetch_stage<DQ, TV, THREADS>(stages[(turn + 1) % STAGES], a, run.chunk0 + turn + 1, head, column);
        copy_async_commit();
        copy_async_wait<1>();
        if (STAGES == 1) copy_async_wait<0>();
        __syncthreads();

        float m_new = max_nan(in.total + m, in.top_a), forget = expf(in.total + m - m_new);
        if (tid < PIECE) {
            float b = in.vectors[0][tid], top = in.vectors[1][tid], M = max_nan(b + m, top);
            if (blockIdx.x == 0 && tid < chunk.count && !is_finite(M)) report(a.faults, chunk.row + tid, a.fault);
            s.carry[tid] = expf(b + m - M) * a.scale;
            s.local[tid] = expf(top - M);
            s.floor[tid] = expf(-M);
            *(uint32_t *)&s.v[tid][TV] = in_two(expf(in.vectors[3][tid] - m_new));
        }
        for (int i = tid; i < PIECE * TV / 8; i += THREADS) {
            uint32_t row = i / (TV / 8), at = i % (TV / 8) * 8;
            float v[8], w = expf(in.vectors[3][row] - m_new);
            load8(v, &in.v[row][at]);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= w;
            store8(&s.v[row][at], v);
        }

        /* q C and p v: a warp has 16 rows, half of the columns, and a share of dq */
        float from_c[2][HN][4] = {}, from_v[HN][4] = {}, from_n[2][4] = {}; /* two chains of sums, for latency */
        uint32_t rows = warp % 4 * 16, half = warp / 4 % 2 * (TV / 2), share = KS == 1 ? 0 : warp / 8;
#pragma unroll 4
        for (int k0 = share * (DQ / KS); k0 < (int)(share + 1) * (DQ / KS); k0 += 32) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int k = k0 + e * 16;
                uint32_t fa[4];
                load_matrix4(fa, shared_address(&in.q[rows + lane % 16][k + lane / 16 * 8]));
#pragma unroll
                for (int n = 0; n < HN / 2; n++) {
                    uint32_t fb[4];
                    load_matrix4_t(fb, shared_address(&s.c[k + lane % 16][half + n * 16 + lane / 16 * 8]));
                    mma_bf16(from_c[e][2 * n], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
                    mma_bf16(from_c[e][2 * n + 1], fa[0], fa[1], fa[2], fa[3], fb[2], fb[3]);
                }
                if (half == 0) {
                    uint32_t fb[2];
                    load_matrix2_t(fb, shared_address(&s.c[k + lane % 16][TV]));
                    mma_bf16(from_n[e], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
                }
            }
        }
        if (half == 0 && t == 0) {
            s.qn[share][rows + g] = (from_n[0][0] + from_n[0][1]) + (from_n[1][0] + from_n[1][1]);
            s.qn[share][rows + g + 8] = (from_n[0][2] + from_n[0][3]) + (from_n[1][2] + from_n[1][3]);
        }
#pragma unroll
        for (int n = 0; n < HN; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) from_c[0][n][e] += from_c[1][n][e];
            if (KS > 1 && share == 1) {
                *(float2 *)&s.part[0][rows + g][half + n * 8 + 2 * t] = make_float2(from_c[0][n][0], from_c[0][n][1]);
                *(float2 *)&s.part[0][rows + g + 8][half + n * 8 + 2 * t] =
                    make_float2(from_c[0][n][2], from_c[0][n][3]);
            }
        }
#pragma unroll
        for (int k0 = 0; k0 < PIECE; k0 += 16) {
            if (k0 > (int)rows || share != 0) continue; /* above the diagonal */
            uint32_t fa[4];
            load_matrix4(fa, shared_address(&in.p[rows + lane % 16][k0 + lane / 16 * 8]));
#pragma unroll
            for (int n = 0; n < HN / 2; n++) {
                uint32_t fb[4];
                load_matrix4_t(fb, shared_address(&in.v[k0 + lane % 16][half + n * 16 + lane / 16 * 8]));
                mma_bf16(from_v[2 * n], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
                mma_bf16(from_v[2 * n + 1], fa[0], fa[1], fa[2], fa[3], fb[2], fb[3]);
            }
        }
        __syncthreads(); /* factors, q n and weighted values are there; C was read */

#pragma unroll
        for (int e = 0; e < 2; e++) {
            uint32_t row = rows + g + e * 8;
            if (row < chunk.count && share == 0) {
                float carry = s.carry[row], local = s.local[row];
                float qn = s.qn[0][row] + (KS > 1 ? s.qn[KS - 1][row] : 0.0f);
                float sum = carry * qn + local * in.vectors[2][row];
                float den = max_nan(fabsf(sum), s.floor[row]) + a.eps, inverse = 1.0f / den;
                if (blockIdx.x == 0 && t == 0 && half == 0 && !is_finite(den))
                    report(a.faults, chunk.row + row, a.fault);
                bf16 *h = a.h + ((size_t)(chunk.row + row) * a.heads + head) * a.dv;
#pragma unroll
                for (int n = 0; n < HN; n++) {
                    uint32_t col = column + half + n * 8 + 2 * t;
                    float2 c = make_float2(from_c[0][n][2 * e], from_c[0][n][2 * e + 1]);
                    if (KS > 1) {
                        float2 other = *(const float2 *)&s.part[0][row][half + n * 8 + 2 * t];
                        c.x += other.x, c.y += other.y;
                    }
                    float x = (carry * c.x + local * from_v[n][2 * e]) * inverse;
                    float y = (carry * c.y + local * from_v[n][2 * e + 1]) * inverse;
                    if (col < a.dv) *(uint32_t *)(h + col) = pack_bf16(x, y);
                }
            }
        }
        position += chunk.count;
        bool border = a.narrow_state && (position % a.chunk_size == 0 || turn + 1 == run.n_chunks);
        if (updates) {
#pragma unroll
            for (int i = 0; i < MT; i++) {
#pragma unroll
                for (int n = 0; n < TV / 8; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) c[i][n][e] *= forget;
                }
            }
            float added[MT][4] = {};
#pragma unroll
            for (int k0 = 0; k0 < PIECE; k0 += 16) {
                uint32_t fa[MT][4], fw[2];
                load_matrix2_t(fw, shared_address(&s.v[k0 + lane % 16][TV]));
#pragma unroll
                for (int i = 0; i < MT; i++) {
                    load_matrix4_t(
                        fa[i],
                        shared_address(&in.k[k0 + lane / 16 * 8 + lane % 8][c_row + i * 16 + (lane / 8 & 1) * 8]));
                    mma_bf16(added[i], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fw[0], fw[1]);
                }
#pragma unroll
                for (int n = 0; n < TV / 16; n++) {
                    uint32_t fb[4];
                    load_matrix4_t(fb, shared_address(&s.v[k0 + lane % 16][n * 16 + lane / 16 * 8]));
#pragma unroll
                    for (int i = 0; i < MT; i++) {
                        mma_bf16(c[i][2 * n], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb[0], fb[1]);
                        mma_bf16(c[i][2 * n + 1], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb[2], fb[3]);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < MT; i++) {
#pragma unroll
                for (int n = 0; n < TV / 8; n++) {
                    if (border) {
#pragma unroll
                        for (int e = 0; e < 4; e++) c[i][n][e] = rounded<bf16>(c[i][n][e]);
                    }
                    *(uint32_t *)&s.c[c_row + i * 16 + g][n * 8 + 2 * t] = pack_bf16(c[i][n][0], c[i][n][1]);
                    *(uint32_t *)&s.c[c_row + i * 16 + g + 8][n * 8 + 2 * t] = pack_bf16(c[i][n][2], c[i][n][3]);
                }
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float n = forget * n_row[i][e] + (added[i][2 * e] + added[i][2 * e + 1]);
                    n_row[i][e] = border ? rounded<bf16>(n) : n;
                    if (t == 0) *(uint32_t *)&s.c[c_row + i * 16 + g + e * 8][TV] = in_two(n_row[i][e]);
                }
            }
        }
        m = m_new;
        __syncthreads(); /* the stage and the factors may be overwritten */
        if (STAGES == 1 && turn + 1 < run.n_chunks)
            fetch_stage<DQ, TV, THREADS>(stages[0], a, run.chunk0 + turn + 1, head, column);
    }

    if (updates) {
#pragma unroll
        for (int i = 0; i < MT; i++) {
#pragma unroll
            for (int n = 0; n < TV / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t row = c_row + i * 16 + g + e / 2 * 8, col = column + n * 8 + 2 * t + e % 2;
                    if (row < a.dq && col < a.dv) {
                        size_t at = head_at + (size_t)row * a.dv + col;
                        if (a.narrow_state) put((bf16 *)state + at, c[i][n][e]);
                        else ((float *)state)[at] = c[i][n][e];
                    }
                }
            }
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint32_t row = c_row + i * 16 + g + e * 8;
                if (blockIdx.x == 0 && t == 0 && row < a.dq) run.n_out[a.n_block + head * a.dq + row] = n_row[i][e];
            }
        }
    }
    if (blockIdx.x == 0 && tid == 0) run.m_out[a.m_block + head] = m;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

struct variant {
    void (*kernel)(const chunk_args);
    size_t bytes;
    uint32_t tile, threads;
};

template <int DQ, int TV, int KS> variant scan_variant(size_t limit)
{
    size_t two = 2 * sizeof(stage<DQ, TV>) + sizeof(scan_memory<DQ, TV, KS>), one = two - sizeof(stage<DQ, TV>);
    if (two <= limit) return {scan_kernel<DQ, TV, 2, KS>, two, TV, 256 * KS};
    if (one <= limit) return {scan_kernel<DQ, TV, 1, KS>, one, TV, 256 * KS};
    return {nullptr, 0, TV, 256 * KS};
}

variant scan_for(const cuda_backend *be, bool many)
{
    uint32_t dq = be->opt.head_qk;
    size_t limit = be->smem_max;
    if (dq <= 64) return many ? scan_variant<64, 64, 1>(limit) : scan_variant<64, 32, 2>(limit);
    if (dq <= 128) return many ? scan_variant<128, 64, 1>(limit) : scan_variant<128, 32, 2>(limit);
    return many ? scan_variant<256, 64, 1>(limit) : scan_variant<256, 32, 2>(limit);
}

variant intra_for(const cuda_backend *be)
{
    uint32_t dq = be->opt.head_qk;
    if (dq <= 64) return {intra_kernel<64>, 2 * PIECE * (64 + 8) * sizeof(bf16), 0, 128};
    if (dq <= 128) return {intra_kernel<128>, 2 * PIECE * (128 + 8) * sizeof(bf16), 0, 128};
    return {intra_kernel<256>, 2 * PIECE * (256 + 8) * sizeof(bf16), 0, 128};
}

} // namespace

size_t cuda_scan_scratch(const cuda_backend *be) { return be->max_chunks * be->opt.num_heads * sizeof(intra); }

bool cuda_scan_fits(const cuda_backend *be)
{
    return scan_for(be, false).kernel != nullptr && scan_for(be, true).kernel != nullptr &&
           intra_for(be).bytes <= be->smem_max;
}

cudaError_t cuda_scan_setup(cuda_backend *be)
{
    for (variant v : {scan_for(be, false), scan_for(be, true), intra_for(be)}) {
        cudaError_t code =
            cudaFuncSetAttribute((const void *)v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)v.bytes);
        if (code != cudaSuccess) return code;
    }
    return cudaSuccess;
}

void cuda_run_scan(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block)
{
    chunk_args a = {};
    fill_cell_args(a, be, op, first, c_block);
    a.chunks = be->chunks;
    a.between = (intra *)be->intra;
    variant i = intra_for(be);
    if (first == be->n_step)
        cuda_launch(be, "mlstm intra", i.kernel, dim3(be->n_chunks, a.heads), dim3(i.threads), i.bytes, a);
    /* narrow tiles fill the chip with one sequence, wide ones do less work twice */
    uint32_t narrow_tiles = (a.dv + 31) / 32;
    variant s = scan_for(be, (uint64_t)narrow_tiles * a.heads * n > (uint64_t)be->sms);
    cuda_launch(be, "mlstm scan", s.kernel, dim3((a.dv + s.tile - 1) / s.tile, a.heads, n), dim3(s.threads), s.bytes,
                a);
}
