/*
 * cuda_mlstm.cu — the recurrent form of the mLSTM cell: one pass over C a token, C in registers, a block for a head and
 * 32 value columns. It serves decode, every float32 prefill, and what the chunkwise form (cuda_chunk.cu) does not take.
 * All blocks of a head read n and m of the state while the first one writes them: the state keeps two copies.
 */
#include "cuda_device.cuh"

#include "cuda_chunk.cuh"

namespace
{

constexpr int THREADS = 256, COLUMNS = 32,
              GROUPS = THREADS / (COLUMNS / 4); /* 32 groups of rows, 8 lanes of 4 columns */

typedef cell_args<void> step_args;

/* Four values of a state row; `n` of them exist. */
template <bool WIDE> __device__ __forceinline__ void load4(float c[4], const float *p, uint32_t n)
{
    if (WIDE) {
        float4 u = *(const float4 *)p;
        c[0] = u.x, c[1] = u.y, c[2] = u.z, c[3] = u.w;
    } else {
        for (uint32_t j = 0; j < 4; j++) c[j] = j < n ? p[j] : 0.0f;
    }
}
template <bool WIDE> __device__ __forceinline__ void load4(float c[4], const bf16 *p, uint32_t n)
{
    if (WIDE) {
        uint2 u = *(const uint2 *)p;
        unpack_bf16(c, u.x), unpack_bf16(c + 2, u.y);
    } else {
        for (uint32_t j = 0; j < 4; j++) c[j] = j < n ? value_of(p[j]) : 0.0f;
    }
}
template <bool WIDE> __device__ __forceinline__ void store4(float *p, const float c[4], uint32_t n)
{
    if (WIDE) {
        *(float4 *)p = make_float4(c[0], c[1], c[2], c[3]);
    } else {
        for (uint32_t j = 0; j < n; j++) p[j] = c[j];
    }
}
template <bool WIDE> __device__ __forceinline__ void store4(bf16 *p, const float c[4], uint32_t n)
{
    if (WIDE) {
        *(uint2 *)p = make_uint2(pack_bf16(c[0], c[1]), pack_bf16(c[2], c[3]));
    } else {
        for (uint32_t j = 0; j < n; j++) put(p + j, c[j]);
    }
}

/* What a thread reads of a token; fetched while the one before is worked on. */
template <int R> struct token_inputs {
    static constexpr int PER = R * GROUPS > THREADS ? R *GROUPS / THREADS : 1;
    float q[PER], k[PER], v[4], ig, fg;

    __device__ __forceinline__ void fetch(const step_args &a, size_t row, uint32_t head, uint32_t column,
                                          uint32_t there)
    {
        size_t qk = (row * a.heads + head) * a.dq, v_at = (row * a.heads + head) * a.dv + column;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            uint32_t i = threadIdx.x + j * THREADS;
            q[j] = i < a.dq ? load_plain(a.q, qk + i, a.act) : 0.0f;
            k[j] = i < a.dq ? load_plain(a.k, qk + i, a.act) : 0.0f;
        }
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) v[j] = j < there ? load_plain(a.v, v_at + j, a.act) : 0.0f;
        ig = a.gates[row * 2 * a.heads + head];
        fg = a.gates[row * 2 * a.heads + a.heads + head];
    }
};

/* R: rows of C a thread keeps; dq <= 32 R. WIDE: dv is a multiple of 4. */
template <typename S, int R, bool WIDE>
__global__ void __launch_bounds__(THREADS) step_kernel(const __grid_constant__ step_args a)
{
    extern __shared__ float memory[]; /* q, k, n: [dq] each */
    __shared__ float sums[2][THREADS / 32][COLUMNS], parts[2][THREADS / 32];
    float *q = memory, *k = q + a.dq, *n = k + a.dq;
    uint32_t head = blockIdx.y, tid = threadIdx.x, warp = tid / 32, column = blockIdx.x * COLUMNS + (tid % 8) * 4,
             group = tid / 8;
    const cuda_run run = a.runs[blockIdx.z];
    uint32_t there = column < a.dv ? min(4u, a.dv - column) : 0;
    S *state = (S *)(run.c + a.c_block) + (size_t)head * a.dq * a.dv + column;

    /* C, n, m belong to this operation alone: fetch before waiting for q k v */
    float c[R][4];
#pragma unroll
    for (int i = 0; i < R; i++) {
        uint32_t row = group + i * GROUPS;
        c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
        if (row < a.dq && there > 0) load4<WIDE>(c[i], state + (size_t)row * a.dv, there);
    }
    constexpr int PER = token_inputs<R>::PER;
    float n_first[PER], m = run.m_in[a.m_block + head];
#pragma unroll
    for (int j = 0; j < PER; j++)
        n_first[j] = tid + j * THREADS < a.dq ? run.n_in[a.n_block + head * a.dq + tid + j * THREADS] : 0.0f;
    pdl_go();
    pdl_wait();

    token_inputs<R> in;
    in.fetch(a, run.row, head, column, there);
#pragma unroll
    for (int j = 0; j < PER; j++) {
        if (tid + j * THREADS < a.dq) n[tid + j * THREADS] = n_first[j]; /* only this thread uses it */
    }
    for (uint32_t token = 0; token < run.count; token++) {
        size_t row = run.row + token;
        float ig = rounded_to(soft_cap(in.ig, a.cap), a.kernel);
        float lf = log_sigmoid(rounded_to(soft_cap(in.fg, a.cap), a.kernel));
        float m_new = fmaxf(lf + m, ig);
        if (tid == 0 && blockIdx.x == 0 && !(is_finite(ig) && is_finite(lf) && is_finite(m_new)))
            report(a.faults, run.row + token, a.fault);
        if (ig != ig || lf != lf || m != m) m_new = __int_as_float(0x7fffffff); /* fmaxf drops NaN */
        float forget = expf(lf + m - m_new), input = expf(ig - m_new);
        m = m_new;
        float qn = 0;
#pragma unroll
        for (int j = 0; j < token_inputs<R>::PER; j++) {
            uint32_t i = tid + j * THREADS;
            if (i < a.dq) {
                float qi = rounded_to(in.q[j], a.kernel) * a.scale;
                float ki = input * rounded_to(in.k[j], a.kernel);
                float ni = forget * n[i] + ki;
                q[i] = qi;
                k[i] = ki;
                n[i] = ni;
                qn += qi * ni;
            }
        }
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = rounded_to(in.v[j], a.kernel);
        __syncthreads();
        if (token + 1 < run.count) in.fetch(a, row + 1, head, column, there);
        float h[4] = {};
#pragma unroll
        for (int i = 0; i < R; i++) {
            uint32_t r = group + i * GROUPS;
            if (r < a.dq) {
                float kr = k[r], qr = q[r];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    c[i][j] = forget * c[i][j] + kr * v[j];
                    h[j] += qr * c[i][j];
                }
            }
        }
        /* columns: over the 4 row groups of a warp, then over warps */
        uint32_t turn = token & 1;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            h[j] += __shfl_xor_sync(0xffffffffu, h[j], 8);
            h[j] += __shfl_xor_sync(0xffffffffu, h[j], 16);
        }
        qn = warp_sum(qn);
        if (tid % 32 < 8) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[turn][warp][(tid % 8) * 4 + j] = h[j];
        }
        if (tid % 32 == 0) parts[turn][warp] = qn;
        __syncthreads();
        if (tid < COLUMNS && blockIdx.x * COLUMNS + tid < a.dv) {
            float num = 0, sum = 0;
#pragma unroll
            for (int w = 0; w < THREADS / 32; w++) num += sums[turn][w][tid], sum += parts[turn][w];
            float den = fabsf(sum), floor = expf(-m);
            den = (den > floor || den != den ? den : floor) + a.eps;
            if (tid == 0 && blockIdx.x == 0 && !is_finite(den)) report(a.faults, run.row + token, a.fault);
            store_plain(a.h, (row * a.heads + head) * a.dv + blockIdx.x * COLUMNS + tid, a.act, num / den);
        }
        /* a state narrower than float32 is rounded where the reference stores it: at chunk borders */
        if (sizeof(S) < 4 && ((run.position + token + 1) % a.chunk_size == 0 || token + 1 == run.count)) {
#pragma unroll
            for (int i = 0; i < R; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) c[i][j] = rounded<S>(c[i][j]);
            }
            for (uint32_t i = tid; i < a.dq; i += THREADS) n[i] = rounded<S>(n[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < R; i++) {
        uint32_t row = group + i * GROUPS;
        if (row < a.dq && there > 0) store4<WIDE>(state + (size_t)row * a.dv, c[i], there);
    }
    if (blockIdx.x == 0) {
        for (uint32_t i = tid; i < a.dq; i += THREADS) run.n_out[a.n_block + head * a.dq + i] = n[i];
        if (tid == 0) run.m_out[a.m_block + head] = m;
    }
}

/* One token a run, many runs: a warp has whole rows of 128 columns and streams through them, so that memory sees long
 * pieces. dq is at most 256 and a multiple of 64, dv a multiple of 128. */
template <typename S> __global__ void __launch_bounds__(THREADS) stream_kernel(const __grid_constant__ step_args a)
{
    constexpr int WARPS = THREADS / 32, ROWS = 8; /* rows a warp has in flight */
    __shared__ float q[256], k[256], sums[WARPS][128], parts[WARPS];
    uint32_t head = blockIdx.y, tid = threadIdx.x, warp = tid / 32, lane = tid % 32,
             column = blockIdx.x * 128 + lane * 4;
    const cuda_run run = a.runs[blockIdx.z];
    S *state = (S *)(run.c + a.c_block) + ((size_t)head * a.dq + warp) * a.dv + column;
    size_t stride = (size_t)WARPS * a.dv;
    float now[ROWS][4], next[ROWS][4];
#pragma unroll
    for (int i = 0; i < ROWS; i++) load4<true>(now[i], state + i * stride, 4);
    float n = tid < a.dq ? run.n_in[a.n_block + head * a.dq + tid] : 0.0f, m = run.m_in[a.m_block + head];
    pdl_go();
    pdl_wait();
    size_t row = run.row, qk = (row * a.heads + head) * a.dq + tid, v_at = (row * a.heads + head) * a.dv + column;
    float qi = tid < a.dq ? load_plain(a.q, qk, a.act) : 0.0f, ki = tid < a.dq ? load_plain(a.k, qk, a.act) : 0.0f,
          v[4];
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = load_plain(a.v, v_at + j, a.act);
    float ig = a.gates[row * 2 * a.heads + head], fg = a.gates[row * 2 * a.heads + a.heads + head];
    ig = rounded_to(soft_cap(ig, a.cap), a.kernel);
    float lf = log_sigmoid(rounded_to(soft_cap(fg, a.cap), a.kernel));
    float m_new = fmaxf(lf + m, ig);
    if (tid == 0 && blockIdx.x == 0 && !(is_finite(ig) && is_finite(lf) && is_finite(m_new)))
        report(a.faults, run.row, a.fault);
    if (ig != ig || lf != lf || m != m) m_new = __int_as_float(0x7fffffff); /* fmaxf drops NaN */
    float forget = expf(lf + m - m_new), input = expf(ig - m_new);
    qi = rounded_to(qi, a.kernel) * a.scale;
    ki = input * rounded_to(ki, a.kernel);
    n = forget * n + ki;
    if (tid < a.dq) q[tid] = qi, k[tid] = ki;
    float qn = warp_sum(qi * n);
    if (lane == 0) parts[warp] = qn;
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = rounded_to(v[j], a.kernel);
    __syncthreads();
    float h[4] = {};
    for (uint32_t first = 0; first < a.dq; first += ROWS * WARPS) {
        S *from = state + (size_t)first * a.dv;
        if (first + ROWS * WARPS < a.dq) {
#pragma unroll
            for (int i = 0; i < ROWS; i++) load4<true>(next[i], from + (ROWS + i) * stride, 4);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            float kr = k[first + i * WARPS + warp], qr = q[first + i * WARPS + warp];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                now[i][j] = forget * now[i][j] + kr * v[j];
                h[j] += qr * now[i][j];
            }
            store4<true>(from + i * stride, now[i], 4);
#pragma unroll
            for (int j = 0; j < 4; j++) now[i][j] = next[i][j];
        }
    }
    *(float4 *)&sums[warp][lane * 4] = make_float4(h[0], h[1], h[2], h[3]);
    __syncthreads();
    if (tid < 128) {
        float num = 0, sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) num += sums[w][tid], sum += parts[w];
        float den = fabsf(sum), floor = expf(-m_new);
        den = (den > floor || den != den ? den : floor) + a.eps;
        if (tid == 0 && blockIdx.x == 0 && !is_finite(den)) report(a.faults, run.row, a.fault);
        store_plain(a.h, (row * a.heads + head) * a.dv + blockIdx.x * 128 + tid, a.act, num / den);
    }
    if (blockIdx.x == 0) {
        if (tid < a.dq) run.n_out[a.n_block + head * a.dq + tid] = sizeof(S) < 4 ? rounded<S>(n) : n;
        if (tid == 0) run.m_out[a.m_block + head] = m_new;
    }
}

typedef void (*step_fn)(const step_args);

template <typename S, bool WIDE> step_fn step_for(uint32_t dq)
{
    if (dq <= 64) return step_kernel<S, 2, WIDE>;
    if (dq <= 128) return step_kernel<S, 4, WIDE>;
    if (dq <= 256) return step_kernel<S, 8, WIDE>;
    return step_kernel<S, 16, WIDE>;
}

} // namespace

void cuda_run_steps(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block)
{
    const xl_backend_options *o = &be->opt;
    step_args a = {};
    fill_cell_args(a, be, op, first, c_block);
    bool single = first + n <= be->n_single;
    if (single && a.dq % 64 == 0 && a.dq <= 256 && a.dv % 128 == 0 &&
        (uint64_t)n * a.heads * (a.dv / 128) >= (uint64_t)be->sms) {
        cuda_launch(be, "mlstm step", o->state == XLSTM_BF16 ? stream_kernel<bf16> : stream_kernel<float>,
                    dim3(a.dv / 128, a.heads, n), dim3(THREADS), 0, a);
        return;
    }
    bool wide = o->head_v % 4 == 0;
    step_fn kernel = o->state == XLSTM_BF16 ? (wide ? step_for<bf16, true>(a.dq) : step_for<bf16, false>(a.dq))
                                            : (wide ? step_for<float, true>(a.dq) : step_for<float, false>(a.dq));
    cuda_launch(be, "mlstm step", kernel, dim3((a.dv + COLUMNS - 1) / COLUMNS, a.heads, n), dim3(THREADS),
                3 * a.dq * sizeof(float), a);
}

void cuda_run_mlstm(cuda_backend *be, const cuda_op *op)
{
    size_t c_block = op->mlstm.block * be->c_block;
    op->mlstm.h->dtype = be->opt.activations;
    if (be->opt.state == XLSTM_I8) {
        cuda_run_int8(be, op);
        return;
    }
    if (be->n_step > 0) cuda_run_steps(be, op, 0, be->n_step, c_block);
    if (be->n_chunked > 0) cuda_run_chunkwise(be, op, be->n_step, be->n_chunked, c_block);
}
