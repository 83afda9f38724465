/*
 * cuda_chunk.cu — the chunkwise form of the mLSTM cell on tensor cores, for bfloat16 activations. Pieces of up to 128
 * tokens, in three kernels:
 *   gates  all pieces at once: sums of log forget gates, what the input gates stand against them, and what n gains;
 *   state  a block a run, head and tile of C (128 rows of keys, 64 value columns) walks the pieces with its tile in
 *          registers (float32) and leaves C as bfloat16, and n and m, as they are at the start of each piece. This is all
 *          that is serial;
 *   out    all pieces at once: h from q, that C, and the piece's own keys and values.
 * Operands of products are bfloat16, all sums, gates, n, m and denominators float32. Formulas: docs/model.md; here
 * everything is relative to b_t, so that M_t = b_t + max(m, max_j (i_j - b_j)).
 */
#include "cuda_device.cuh"

#include "cuda_chunk.cuh"

namespace
{

constexpr int THREADS = 256, HALF = 64; /* tokens state takes at once */
constexpr size_t WINDOW_BYTES =
    32u << 20; /* states between the two kernels: what a large cache holds; a longer pass goes
                                              through both in turns */

/* What is known of a piece and head besides C. */
struct piece {
    float b[CHUNK];    /* sum of log forget gates up to and including the token */
    float rise[CHUNK]; /* input gate - b; -inf beyond the piece */
    float peak[CHUNK]; /* maximum of rise up to and including the token */
    float total, most; /* the last of b and of peak */
    float m, m_after;  /* at the start and at the end; by state */
    float gain[256];   /* sum of keys times exp(rise - most) */
    bf16 n[2][256];    /* at the start, in two parts; by state */
};

struct chunk_args : cell_args<bf16> {
    const cuda_chunk *chunks;
    piece *pieces; /* [chunk][head] */
    uint4 *states; /* [chunk - first][head][dv / 16][dq / 16][lane]: operands of q C, see state_kernel */
    uint32_t dv16, dq16, period;
    uint32_t first, end; /* pieces of this turn */
    uint32_t parts;      /* of 128 value columns a block of `out` does */
};

__device__ __forceinline__ float max_nan(float a, float b) { return a > b || a != a ? a : b; }

/* Starts copying rows [ROWS][W] of [..][stride] from `from`; rows >= count and columns >= width become zero. A thread
 * keeps its column and goes down the rows. */
template <int ROWS, int W, int PITCH, int N = THREADS>
__device__ __forceinline__ void fetch_rows(bf16 *to, const bf16 *from, size_t stride, uint32_t count, uint32_t width)
{
    constexpr uint32_t PIECES = W / 8, DOWN = N / PIECES, TRIPS = ROWS / DOWN;
    static_assert(ROWS % DOWN == 0);
    uint32_t row = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
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

/* ---- gates ------------------------------------------------------------------------------------------------------ */

/* A block a piece and head. The gates are one warp's, a lane with four tokens side by side; of the keys, a warp has 16
 * tokens, a lane 8 columns. */
__global__ void __launch_bounds__(THREADS) gates_kernel(const __grid_constant__ chunk_args a)
{
    constexpr int PER = CHUNK / 32, WARPS = THREADS / 32, TOKENS = CHUNK / WARPS;
    __shared__ __align__(16) float shared_rise[CHUNK], part[WARPS][256], shared_most;
    uint32_t head = blockIdx.y, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    const cuda_chunk chunk = a.chunks[blockIdx.x];
    piece *out = a.pieces + (size_t)blockIdx.x * a.heads + head;
    pdl_go();
    pdl_wait();
    uint4 key[TOKENS];
#pragma unroll
    for (int j = 0; j < TOKENS; j++) {
        uint32_t token = warp * TOKENS + j;
        key[j] = make_uint4(0, 0, 0, 0);
        if (token < chunk.count && lane * 8 < a.dq)
            key[j] = *(const uint4 *)(a.k + ((size_t)(chunk.row + token) * a.heads + head) * a.dq + lane * 8);
    }
    if (tid < CHUNK) {
        float i = -INFINITY, lf = 0;
        if (tid < chunk.count) {
            const float *gates = a.gates + (size_t)(chunk.row + tid) * 2 * a.heads + head;
            i = soft_cap(gates[0], a.cap);
            float f = soft_cap(gates[a.heads], a.cap);
            if (a.kernel == XLSTM_BF16) i = rounded<bf16>(i), f = rounded<bf16>(f);
            lf = log_sigmoid(f);
            if (!is_finite(i) || !is_finite(lf)) report(a.faults, chunk.row + tid, a.fault);
        }
        shared_rise[tid] = i;
        part[0][tid] = lf;
    }
    __syncthreads();
    if (warp == 0) {
        float b[PER], rise[PER], peak[PER], sum = 0;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            sum += part[0][PER * lane + j];
            b[j] = sum;
        }
        float before = sum;
        for (int o = 1; o < 32; o <<= 1) {
            float other = __shfl_up_sync(0xffffffffu, before, o);
            if ((int)lane >= o) before += other;
        }
        before = __shfl_up_sync(0xffffffffu, before, 1);
        if (lane == 0) before = 0;
        float most = 0;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            b[j] += before;
            rise[j] = shared_rise[PER * lane + j] - b[j];
            most = j == 0 ? rise[0] : max_nan(most, rise[j]);
            peak[j] = most;
        }
        for (int o = 1; o < 32; o <<= 1) {
            float other = __shfl_up_sync(0xffffffffu, most, o);
            if ((int)lane >= o) most = max_nan(most, other);
        }
        float above = __shfl_up_sync(0xffffffffu, most, 1);
#pragma unroll
        for (int j = 0; j < PER; j++) {
            if (lane > 0) peak[j] = max_nan(above, peak[j]);
        }
        *(float4 *)(out->b + PER * lane) = make_float4(b[0], b[1], b[2], b[3]);
        *(float4 *)(out->rise + PER * lane) = make_float4(rise[0], rise[1], rise[2], rise[3]);
        *(float4 *)(out->peak + PER * lane) = make_float4(peak[0], peak[1], peak[2], peak[3]);
        *(float4 *)(shared_rise + PER * lane) = make_float4(rise[0], rise[1], rise[2], rise[3]);
        if (lane == 31) out->total = b[PER - 1], out->most = shared_most = most;
    }
    __syncthreads();
    float sum[8] = {};
#pragma unroll
    for (int j = 0; j < TOKENS; j++) {
        float v[8], weight = expf(shared_rise[warp * TOKENS + j] - shared_most);
        unpack_bf16(v, key[j].x), unpack_bf16(v + 2, key[j].y), unpack_bf16(v + 4, key[j].z),
            unpack_bf16(v + 6, key[j].w);
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += weight * v[e];
    }
    store8(&part[warp][lane * 8], sum);
    __syncthreads();
    float all = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) all += part[i][tid];
    out->gain[tid] = all;
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

constexpr int TQ = 128, TV = 64, STAGES = 5, STATE_THREADS = 512;

struct stage {
    bf16 k[HALF][TQ + 8], v[HALF][TV + 8];
    float rise[HALF], total, most, unused[2];
    bf16 weight[HALF]; /* of the tokens in the next state */
};

/* Goes through the halves of a run's pieces of this turn, cut as fill_table cuts them. */
struct walk {
    uint32_t index, end, done, count, period, inside, size, half;

    __device__ __forceinline__ void cut()
    {
        size = min(min(period - inside, CHUNK - inside % CHUNK), count - done);
        half = 0;
    }
    __device__ __forceinline__ bool there() const { return index < end; }
    __device__ __forceinline__ bool last_half() const { return (half + 1) * HALF >= size; }
    /* C is rounded to the state's format after this piece; where `inside` counts in chunks */
    __device__ __forceinline__ bool border() const { return inside + size == period || done + size == count; }
    __device__ __forceinline__ uint32_t rows() const { return min((uint32_t)HALF, size - half * HALF); }
    __device__ __forceinline__ void next()
    {
        if (!last_half()) {
            half++;
            return;
        }
        done += size;
        inside = inside + size < period ? inside + size : 0;
        index++;
        cut();
    }
};
__device__ __forceinline__ walk walk_of(const chunk_args &a, const cuda_run &run)
{
    walk w;
    w.index = max(a.first, run.chunk0);
    w.end = min(a.end, run.chunk0 + run.n_chunks);
    w.count = run.count;
    w.period = a.period;
    w.done = w.there() && w.index > run.chunk0 ? a.chunks[w.index].row - run.row : 0;
    w.inside = (uint32_t)((run.position + w.done) % a.period);
    w.cut();
    return w;
}

__device__ __forceinline__ uint32_t times(uint32_t a, uint32_t b)
{
    __nv_bfloat162 x, y;
    memcpy(&x, &a, 4), memcpy(&y, &b, 4);
    x = __hmul2(x, y);
    memcpy(&a, &x, 4);
    return a;
}

/* C is kept with values as rows and keys as columns, so that two neighbours in a lane's registers are neighbours along
 * keys, as q C wants its second operand. The block of a head's first tile also does n, a thread a key channel, and m.
 * Shared memory is such that a multiprocessor has one block: two on one would finish later than the others. */
__global__ void __launch_bounds__(STATE_THREADS, 1) state_kernel(const __grid_constant__ chunk_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    stage *stages = (stage *)memory;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4, head = blockIdx.y;
    const cuda_run run = a.runs[blockIdx.z];
    uint32_t across = (a.dq + TQ - 1) / TQ, row0 = blockIdx.x % across * TQ, column0 = blockIdx.x / across * TV;
    uint32_t value0 = warp / 8 * 32, key0 = warp % 8 * 16; /* a warp has 32 values of 16 keys */
    walk next = walk_of(a, run), ahead = next;
    bool fresh = next.index == run.chunk0, with_n = blockIdx.x == 0 && tid < 256;
    uint8_t *state = run.c + a.c_block;
    size_t head_at = (size_t)head * a.dq * a.dv, n_at = a.n_block + (size_t)head * a.dq + tid;
    pdl_go();
    if (!fresh || !next.there()) pdl_wait(); /* else C was last touched in an earlier pass */
    if (!next.there()) return;
    float c[2][2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t row = row0 + key0 + n * 8 + 2 * t + e % 2, col = column0 + value0 + i * 16 + g + e / 2 * 8;
                if (row < a.dq && col < a.dv) {
                    size_t at = head_at + (size_t)row * a.dv + col;
                    c[i][n][e] = a.narrow_state ? value_of(((const bf16 *)state)[at]) : ((const float *)state)[at];
                }
            }
        }
    }
    if (fresh) pdl_wait();
    piece *p = a.pieces + (size_t)next.index * a.heads + head;
    float m = fresh ? run.m_in[a.m_block + head] : (p - a.heads)->m_after, m_before = m;
    float n_row = 0, gain = 0; /* of this thread's key channel */
    if (with_n) {
        if (tid < a.dq) n_row = fresh ? run.n_in[n_at] : run.n_out[n_at];
        gain = p->gain[tid];
    }
    float forget = 1, lift = 1; /* factors of what was and of the gain */

    /* the weights of a half's tokens in the next state */
    auto weigh = [&](stage &s) {
        float total = s.total;
        if (next.half == 0) {
            float top = total + s.most, m_new = max_nan(total + m, top);
            forget = expf(total + m - m_new);
            lift = expf(top - m_new);
            m_before = m;
            m = m_new;
        }
        if (tid < HALF) put(&s.weight[tid], __expf(total + s.rise[tid] - m));
    };
    /* this thread's part of the rows to come */
    size_t first = (size_t)(run.row + next.done) * a.heads + head, key_step = (size_t)a.heads * a.dq,
           value_step = (size_t)a.heads * a.dv;
    const bf16 *keys = a.k + first * a.dq + row0, *values = a.v + first * a.dv + column0;
    uint32_t to_fill = 0, to_weigh = 1, to_use = 0; /* slots */
    auto fetch = [&]() {
        if (ahead.there()) {
            stage &s = stages[to_fill];
            uint32_t rows = ahead.rows();
            fetch_rows<HALF, TQ, TQ + 8, STATE_THREADS>(&s.k[0][0], keys, key_step, rows, a.dq - row0);
            fetch_rows<HALF, TV, TV + 8, STATE_THREADS>(&s.v[0][0], values, value_step, rows, a.dv - column0);
            const piece *from = a.pieces + (size_t)ahead.index * a.heads + head;
            if (tid < HALF / 4)
                copy_async16(shared_address(s.rise + tid * 4), from->rise + ahead.half * HALF + tid * 4, true);
            if (tid == HALF / 4) copy_async16(shared_address(&s.total), &from->total, true);
            keys += rows * key_step, values += rows * value_step;
            ahead.next();
        }
        to_fill = to_fill + 1 < STAGES ? to_fill + 1 : 0;
        copy_async_commit();
    };

    for (int i = 0; i < STAGES - 1; i++) fetch();
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    size_t piece_states = (size_t)a.heads * a.dv16 * a.dq16 * 32;
    uint4 *left = a.states + (next.index - a.first) * piece_states + (size_t)head * a.dv16 * a.dq16 * 32 +
                  ((size_t)(column0 + value0) / 16 * a.dq16 + (row0 + key0) / 16) * 32 + lane;
    uint32_t pieces = next.end - next.index;
    weigh(stages[0]);
    bool starts = true, last = next.last_half(), border = next.border(), there = true;
    next.next();
    while (there) {
        copy_async_wait<STAGES - 3>();
        __syncthreads(); /* the half before is read, this one's weights and the next one are there */
        fetch();
        const stage &s = stages[to_use];
        bool round = a.narrow_state && last && border;
        if (starts) { /* a piece: leave what is, then forget */
#pragma unroll
            for (int i = 0; i < 2; i++) {
                left[(size_t)i * a.dq16 * 32] =
                    make_uint4(pack_bf16(c[i][0][0], c[i][0][1]), pack_bf16(c[i][1][0], c[i][1][1]),
                               pack_bf16(c[i][0][2], c[i][0][3]), pack_bf16(c[i][1][2], c[i][1][3]));
#pragma unroll
                for (int n = 0; n < 2; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) c[i][n][e] *= forget;
                }
            }
            left += piece_states;
            if (with_n) {
                float head_n = rounded<bf16>(n_row);
                put(&p->n[0][tid], head_n);
                put(&p->n[1][tid], n_row - head_n);
                if (tid == 0) p->m = m_before, p->m_after = m;
                n_row = forget * n_row + lift * gain;
                if (a.narrow_state && border) n_row = rounded<bf16>(n_row);
                p += a.heads;
                if (--pieces > 0) gain = p->gain[tid];
            }
        }
        there = next.there();
        if (there) {
            weigh(stages[to_weigh]);
            starts = next.half == 0;
            last = next.last_half(), border = next.border();
            next.next();
        }
        to_weigh = to_weigh + 1 < STAGES ? to_weigh + 1 : 0;
        to_use = to_use + 1 < STAGES ? to_use + 1 : 0;
#pragma unroll
        for (int k0 = 0; k0 < HALF; k0 += 16) {
            uint32_t fa[2][4], fb[4];
            uint32_t w0 = *(const uint32_t *)&s.weight[k0 + 2 * t], w1 = *(const uint32_t *)&s.weight[k0 + 8 + 2 * t];
            load_matrix4_t(fb, shared_address(&s.k[k0 + lane % 16][key0 + lane / 16 * 8]));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                load_matrix4_t(
                    fa[i], shared_address(&s.v[k0 + lane / 16 * 8 + lane % 8][value0 + i * 16 + (lane / 8 & 1) * 8]));
                fa[i][0] = times(fa[i][0], w0), fa[i][1] = times(fa[i][1], w0);
                fa[i][2] = times(fa[i][2], w1), fa[i][3] = times(fa[i][3], w1);
#pragma unroll
                for (int n = 0; n < 2; n++)
                    mma_bf16(c[i][n], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb[2 * n], fb[2 * n + 1]);
            }
        }
        if (round) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int n = 0; n < 2; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) c[i][n][e] = rounded<bf16>(c[i][n][e]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t row = row0 + key0 + n * 8 + 2 * t + e % 2, col = column0 + value0 + i * 16 + g + e / 2 * 8;
                if (row < a.dq && col < a.dv) {
                    size_t at = head_at + (size_t)row * a.dv + col;
                    if (a.narrow_state) put((bf16 *)state + at, c[i][n][e]);
                    else ((float *)state)[at] = c[i][n][e];
                }
            }
        }
    }
    if (with_n && tid < a.dq) run.n_out[n_at] = n_row;
    if (with_n && tid == 0) run.m_out[a.m_block + head] = m;
}

/* ---- out -------------------------------------------------------------------------------------------------------- */

constexpr uint32_t OV = 128; /* value columns taken at once */
constexpr int OUT_THREADS = 512;

template <int DQ> struct out_memory {
    static constexpr int KC = DQ < 128 ? DQ : 128; /* keys' channels of C in a slot */
    static constexpr size_t K = HALF * (DQ + 8) * sizeof(bf16), C = (size_t)OV * KC * sizeof(bf16),
                            V = CHUNK * (OV + 8) * sizeof(bf16),
                            SLOT = K > C   ? (K > V ? K : V)
                                   : C > V ? C
                                           : V;
    bf16 q[CHUNK][DQ + 8], p[CHUNK][CHUNK + 8];
    alignas(128) uint8_t slots[3][SLOT];
    float b[CHUNK], rise[CHUNK], peak[CHUNK], sum[2][CHUNK], qn[CHUNK], carry[CHUNK], inverse[CHUNK];
    bf16 n[2][256];
};

/* A block has a piece, a head and `parts` times 128 value columns. Through three slots in turn go: keys, in two halves,
 * which give P; then, for each 128 columns, C in halves of its key channels, and values. */
template <int DQ> __global__ void __launch_bounds__(OUT_THREADS, 1) out_kernel(const __grid_constant__ chunk_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    typedef out_memory<DQ> shared;
    constexpr uint32_t KC = shared::KC, CUTS = DQ / KC, STEPS = KC / 16, EACH = CUTS + 1;
    shared &s = *(shared *)memory;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t = lane % 4, head = blockIdx.y;
    uint32_t index = a.first + blockIdx.z, column0 = blockIdx.x * OV * a.parts;
    const cuda_chunk chunk = a.chunks[index];
    const piece *p = a.pieces + (size_t)index * a.heads + head;
    const uint4 *state = a.states + ((size_t)blockIdx.z * a.heads + head) * a.dv16 * a.dq16 * 32;
    uint32_t parts = min(a.parts, (a.dv - column0 + OV - 1) / OV), items = 2 + parts * EACH;
    size_t token = (size_t)chunk.row * a.heads + head;
    pdl_go();
    pdl_wait();

    auto fetch = [&](uint32_t item) {
        uint8_t *slot = s.slots[item % 3];
        if (item < 2) {
            uint32_t count = chunk.count > item * HALF ? chunk.count - item * HALF : 0;
            fetch_rows<HALF, DQ, DQ + 8, OUT_THREADS>((bf16 *)slot,
                                                      a.k + (token + (size_t)item * HALF * a.heads) * a.dq,
                                                      (size_t)a.heads * a.dq, min(count, (uint32_t)HALF), a.dq);
        } else if (item < items) {
            uint32_t part = (item - 2) / EACH, which = (item - 2) % EACH, column = column0 + part * OV;
            if (which < CUTS) {
#pragma unroll
                for (uint32_t i = 0; i < OV / 16 * STEPS * 32 / OUT_THREADS; i++) {
                    uint32_t at = tid + i * OUT_THREADS, from = column / 16 + at / (STEPS * 32),
                             rest = at % (STEPS * 32);
                    bool there = from < a.dv16;
                    copy_async16(shared_address(slot + at * 16),
                                 state + ((size_t)(there ? from : 0) * a.dq16 + which * STEPS) * 32 + rest, there);
                }
            } else {
                fetch_rows<CHUNK, OV, OV + 8, OUT_THREADS>((bf16 *)slot, a.v + token * a.dv + column,
                                                           (size_t)a.heads * a.dv, chunk.count, a.dv - column);
            }
        }
        copy_async_commit();
    };

    fetch_rows<CHUNK, DQ, DQ + 8, OUT_THREADS>(&s.q[0][0], a.q + token * a.dq, (size_t)a.heads * a.dq, chunk.count,
                                               a.dq);
    if (tid < 3 * CHUNK / 4) copy_async16(shared_address(s.b + tid * 4), p->b + tid * 4, true);
    else if (tid < 3 * CHUNK / 4 + 64)
        copy_async16(shared_address(&s.n[0][0] + (tid - 96) * 8), &p->n[0][0] + (tid - 96) * 8, true);
    fetch(0);
    fetch(1);
    float m = p->m;

    /* scores: a warp has 16 rows and half of the keys in a slot; afterwards 32 rows and 32 columns. Both paired so that
     * the four schedulers share the triangle */
    uint32_t half = warp / 8, strip = warp % 8 < 4 ? warp % 8 : 11 - warp % 8, row = strip * 16 + g;
    uint32_t quarter = warp / 4, band = quarter & 1 ? 3 - warp % 4 : warp % 4;
    float sum[2] = {}, from_n[4] = {}, acc[2][4][4];
    for (uint32_t item = 0; item < items; item++) {
        copy_async_wait<1>();
        __syncthreads();
        fetch(item + 2);
        const uint8_t *slot = s.slots[item % 3];
        if (item < 2) {
            const bf16 *k = (const bf16 *)slot;
            uint32_t tile = item * 4 + half * 2; /* of 16 keys: this warp's first */
            if (strip * 16 < chunk.count && tile <= strip) {
                float score[4][4] = {};
                bool two = tile < strip, with_n = item == 0 && half == 0;
#pragma unroll 4
                for (int k0 = 0; k0 < DQ; k0 += 16) {
                    uint32_t fa[4];
                    load_matrix4(fa, shared_address(&s.q[strip * 16 + lane % 16][k0 + lane / 16 * 8]));
#pragma unroll
                    for (uint32_t n = 0; n < 2; n++) {
                        if (n == 1 && !two) continue;
                        uint32_t fb[4], key = half * 32 + n * 16 + lane / 16 * 8 + lane % 8;
                        load_matrix4(fb, shared_address(k + key * (DQ + 8) + k0 + (lane / 8 & 1) * 8));
                        mma_bf16(score[2 * n], fa[0], fa[1], fa[2], fa[3], fb[0], fb[1]);
                        mma_bf16(score[2 * n + 1], fa[0], fa[1], fa[2], fa[3], fb[2], fb[3]);
                    }
                    if (with_n) {
                        uint32_t n0 = 0, n1 = 0;
                        if (g < 2)
                            n0 = *(const uint32_t *)&s.n[g][k0 + 2 * t],
                            n1 = *(const uint32_t *)&s.n[g][k0 + 8 + 2 * t];
                        mma_bf16(from_n, fa[0], fa[1], fa[2], fa[3], n0, n1);
                    }
                }
                float top[2] = {max_nan(m, s.peak[row]), max_nan(m, s.peak[row + 8])};
#pragma unroll
                for (uint32_t n = 0; n < 4;
                     n++) { /* the second tile also where it is beyond the diagonal: it is read */
                    uint32_t column = tile * 16 + n * 8 + 2 * t;
                    float rise[2] = {s.rise[column], s.rise[column + 1]};
#pragma unroll
                    for (uint32_t e = 0; e < 2; e++) {
                        float x[2];
#pragma unroll
                        for (uint32_t j = 0; j < 2; j++) {
                            bool in = column + j <= row + e * 8;
                            x[j] = in ? score[n][2 * e + j] * a.scale * __expf(rise[j] - top[e]) : 0.0f;
                            sum[e] += x[j];
                        }
                        *(uint32_t *)&s.p[row + e * 8][column] = pack_bf16(x[0], x[1]);
                    }
                }
            }
            if (item == 1) {
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], 1);
                    sum[e] += __shfl_xor_sync(0xffffffffu, sum[e], 2);
                    if (t == 0) {
                        s.sum[half][row + e * 8] = sum[e];
                        if (half == 0) s.qn[row + e * 8] = from_n[2 * e] + from_n[2 * e + 1];
                    }
                }
            }
            continue;
        }
        if (item == 2 && tid < CHUNK) { /* used from the next item on */
            float top = max_nan(m, s.peak[tid]), M = s.b[tid] + top, carry = expf(m - top) * a.scale;
            float qn = carry * s.qn[tid] + (s.sum[0][tid] + s.sum[1][tid]);
            float den = max_nan(fabsf(qn), expf(-M)) + a.eps;
            if (blockIdx.x == 0 && tid < chunk.count && !(is_finite(M) && is_finite(den)))
                report(a.faults, chunk.row + tid, a.fault);
            s.carry[tid] = carry;
            s.inverse[tid] = 1.0f / den;
        }
        uint32_t part = (item - 2) / EACH, which = (item - 2) % EACH;
        if (band * 32 >= chunk.count) continue;
        if (which < CUTS) { /* q C */
            if (which == 0) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
#pragma unroll
                    for (int n = 0; n < 4; n++) acc[i][n][0] = acc[i][n][1] = acc[i][n][2] = acc[i][n][3] = 0;
                }
            }
            const uint4 *c = (const uint4 *)slot + quarter * 2 * STEPS * 32 + lane;
#pragma unroll 4
            for (uint32_t k = 0; k < STEPS; k++) {
                uint32_t fa[2][4];
#pragma unroll
                for (int i = 0; i < 2; i++)
                    load_matrix4(fa[i], shared_address(
                                            &s.q[band * 32 + i * 16 + lane % 16][which * KC + k * 16 + lane / 16 * 8]));
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    uint4 fb = c[(n * STEPS + k) * 32];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        mma_bf16(acc[i][2 * n], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb.x, fb.y);
                        mma_bf16(acc[i][2 * n + 1], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb.z, fb.w);
                    }
                }
            }
            continue;
        }
        const bf16 *v = (const bf16 *)slot;
        uint32_t first = band * 32 + g, column = column0 + part * OV + quarter * 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float carry[2] = {s.carry[first + i * 16], s.carry[first + i * 16 + 8]};
#pragma unroll
            for (int n = 0; n < 4; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) acc[i][n][e] *= carry[e / 2];
            }
        }
#pragma unroll 2
        for (uint32_t k = 0; k < 2 * band + 2; k++) { /* P v, up to the diagonal */
            uint32_t fa[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++)
                load_matrix4(fa[i], shared_address(&s.p[band * 32 + i * 16 + lane % 16][k * 16 + lane / 16 * 8]));
#pragma unroll
            for (int n = 0; n < 2; n++) {
                uint32_t fb[4];
                load_matrix4_t(
                    fb, shared_address(v + (k * 16 + lane % 16) * (OV + 8) + quarter * 32 + n * 16 + lane / 16 * 8));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    mma_bf16(acc[i][2 * n], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb[0], fb[1]);
                    mma_bf16(acc[i][2 * n + 1], fa[i][0], fa[i][1], fa[i][2], fa[i][3], fb[2], fb[3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                uint32_t r = first + i * 16 + e * 8;
                float inverse = s.inverse[r];
                bf16 *h = a.h + ((size_t)(chunk.row + r) * a.heads + head) * a.dv;
#pragma unroll
                for (int n = 0; n < 4; n += 2) { /* neighbours swap, so that each has four columns of one tile */
                    uint32_t one = pack_bf16(acc[i][n][2 * e] * inverse, acc[i][n][2 * e + 1] * inverse),
                             two = pack_bf16(acc[i][n + 1][2 * e] * inverse, acc[i][n + 1][2 * e + 1] * inverse),
                             got = __shfl_xor_sync(0xffffffffu, t & 1 ? one : two, 1);
                    uint32_t col = column + (n + (t & 1)) * 8 + t / 2 * 4;
                    if (r < chunk.count && col < a.dv)
                        *(uint2 *)(h + col) = t & 1 ? make_uint2(got, two) : make_uint2(one, got);
                }
            }
        }
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

struct variant {
    void (*kernel)(const chunk_args);
    size_t bytes;
};

variant out_for(const cuda_backend *be)
{
    uint32_t dq = be->opt.head_qk;
    if (dq <= 64) return {out_kernel<64>, sizeof(out_memory<64>)};
    if (dq <= 128) return {out_kernel<128>, sizeof(out_memory<128>)};
    return {out_kernel<256>, sizeof(out_memory<256>)};
}
variant state_for() { return {state_kernel, STAGES * sizeof(stage)}; }

/* Tiles of 16 of C, whole tiles of the state kernel. */
uint32_t values16(const cuda_backend *be) { return (be->opt.head_v + TV - 1) / TV * (TV / 16); }
uint32_t keys16(const cuda_backend *be) { return (be->opt.head_qk + TQ - 1) / TQ * (TQ / 16); }

/* Pieces whose states are kept at a time. */
uint32_t window_of(const cuda_backend *be)
{
    size_t each = (size_t)be->opt.num_heads * values16(be) * keys16(be) * 512;
    return (uint32_t)XL_MAX((size_t)4, XL_MIN(WINDOW_BYTES / each, be->max_chunks));
}

/* How wide a block of `out` is: scores cost it as much as 64 columns and are done again by each, but the chip should be
 * busy to the end. */
uint32_t parts_for(const cuda_backend *be, uint32_t pieces)
{
    uint32_t best = 1, cost = UINT32_MAX;
    for (uint32_t parts = 1; parts <= 4; parts *= 2) {
        uint32_t blocks = (be->opt.head_v + OV * parts - 1) / (OV * parts) * be->opt.num_heads * pieces;
        uint32_t each = (blocks + (uint32_t)be->sms - 1) / (uint32_t)be->sms * (1 + 2 * parts);
        if (each < cost) best = parts, cost = each;
    }
    return best;
}

} // namespace

static bool fits(const cuda_backend *be)
{
    return out_for(be).bytes <= be->smem_max && state_for().bytes <= be->smem_max;
}

uint32_t cuda_piece_size(const cuda_backend *be) { return fits(be) ? CHUNK : CHUNK / 2; }

size_t cuda_chunk_scratch(const cuda_backend *be)
{
    size_t heads = be->opt.num_heads;
    if (!fits(be)) return cuda_scan_scratch(be);
    return be->max_chunks * heads * sizeof(piece) + (size_t)window_of(be) * heads * values16(be) * keys16(be) * 512;
}

bool cuda_chunkwise_fits(const cuda_backend *be)
{
    const xl_backend_options *o = &be->opt;
    return o->activations == XLSTM_BF16 && o->kernel != XLSTM_F16 && o->head_qk <= 256 && o->head_qk % 8 == 0 &&
           o->head_v % 8 == 0 && o->chunk_size >= 16 && (fits(be) || cuda_scan_fits(be));
}

cudaError_t cuda_mlstm_setup(cuda_backend *be)
{
    if (!cuda_chunkwise_fits(be)) return cudaSuccess;
    if (!fits(be)) return cuda_scan_setup(be);
    for (variant v : {out_for(be), state_for()}) {
        cudaError_t code =
            cudaFuncSetAttribute((const void *)v.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)v.bytes);
        if (code != cudaSuccess) return code;
    }
    return cudaSuccess;
}

void cuda_run_chunkwise(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block)
{
    if (!fits(be)) {
        cuda_run_scan(be, op, first, n, c_block);
        return;
    }
    chunk_args a = {};
    fill_cell_args(a, be, op, first, c_block);
    a.chunks = be->chunks;
    a.pieces = (piece *)be->intra;
    a.states = (uint4 *)(be->intra + be->max_chunks * be->opt.num_heads * sizeof(piece));
    a.dv16 = values16(be);
    a.dq16 = keys16(be);
    a.period = cuda_piece_period(be);
    const cuda_run *last = &be->host_runs[first + n - 1];
    uint32_t begin = be->host_runs[first].chunk0, end = last->chunk0 + last->n_chunks;
    if (first == be->n_step)
        cuda_launch(be, "mlstm gates", gates_kernel, dim3(be->n_chunks, a.heads), dim3(THREADS), 0, a);
    variant state = state_for(), out = out_for(be);
    uint32_t window = window_of(be), tiles = a.dv16 / (TV / 16) * (a.dq16 / (TQ / 16));
    for (a.first = begin; a.first < end; a.first = a.end) {
        a.end = XL_MIN(a.first + window, end);
        cuda_launch(be, "mlstm state", state.kernel, dim3(tiles, a.heads, n), dim3(STATE_THREADS), state.bytes, a);
        a.parts = parts_for(be, a.end - a.first);
        cuda_launch(be, "mlstm out", out.kernel,
                    dim3((a.dv + OV * a.parts - 1) / (OV * a.parts), a.heads, a.end - a.first), dim3(OUT_THREADS),
                    out.bytes, a);
    }
}
