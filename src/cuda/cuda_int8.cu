/*
 * cuda_int8.cu — the mLSTM cell on int8 states. A row of C is dv signed bytes times one float32 scale, the largest |x| of
 * the row / 127, so whoever writes a row must have seen all of it. Two ways:
 *   one token a run   a fused kernel that reads C once and writes it once, a warp (or part of one) having whole rows in
 *                     registers. With few runs the rows of a head are shared among blocks, and the last one to finish
 *                     adds their shares of h, in order.
 *   longer runs       C of the block is unpacked to float32, the kernels for that run on it, and it is packed again: the
 *                     state is rounded once a pass.
 */
#include "cuda_device.cuh"

#include "cuda_chunk.cuh"

namespace
{

constexpr int THREADS = 256, ROWS = 4;        /* rows a warp has in flight, or multiples if they are short */
constexpr uint32_t WIDEST = 512;              /* columns that fit into a warp's registers, 16 a lane */
constexpr size_t SHARED = 47u << 10;          /* shared memory that needs no asking, less what is static */
constexpr size_t UNPACKED_LIMIT = 128u << 20; /* bytes for unpacked C; more runs take turns */

struct int8_args : cell_args<void> {
    float *partial;
    uint32_t *tickets;
    uint32_t rows;  /* of C a block has */
    uint32_t lanes; /* that share a row, a power of two */
    size_t c_scales;
};

/* The larger of `top` and |x|; NaN if either is. */
__device__ __forceinline__ float max_abs(float top, float x)
{
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(top), "f"(fabsf(x)));
    return larger;
}

/* The scale of a row whose largest magnitude is `top`, and what its values are multiplied with to become levels; 0 where
 * levels would mean nothing: NaN and Inf are in the scale, and make the whole row NaN when it is read. */
__device__ __forceinline__ float scale_of(float top, float *inverse)
{
    float scale = top / 127.0f;
    *inverse = scale > 0 ? 1.0f / scale : 0.0f;
    if (!is_finite(*inverse) || !is_finite(top)) *inverse = 0;
    return scale;
}

/* Nearest even integer in the low byte: beyond 2^23 the bits of a float count units. `inverse` 0 gives 0 whatever x. */
__device__ __forceinline__ uint32_t level_of(float x, float inverse)
{
    return inverse == 0 ? 0 : __float_as_uint(__fadd_rn(__fmul_rn(x, inverse), 12582912.0f));
}
__device__ __forceinline__ uint32_t levels_of(const float x[4], float inverse)
{
    uint32_t low = __byte_perm(level_of(x[0], inverse), level_of(x[1], inverse), 0x0040);
    uint32_t high = __byte_perm(level_of(x[2], inverse), level_of(x[3], inverse), 0x0040);
    return __byte_perm(low, high, 0x5410);
}
__device__ __forceinline__ void values_of(float out[4], uint32_t levels)
{
#pragma unroll
    for (int j = 0; j < 4; j++) out[j] = (float)(int8_t)(levels >> (8 * j));
}

/* ---- one token -------------------------------------------------------------------------------------------------- */

/* What a lane has of ROWS rows: 16 levels each, and the rows' scales. */
struct piece {
    uint4 levels[ROWS];
    float scale[ROWS];

    __device__ __forceinline__ void fetch(const int8_t *values, const float *scales, uint32_t row, uint32_t stride,
                                          uint32_t end, uint32_t dv, bool there)
    {
#pragma unroll
        for (uint32_t i = 0; i < ROWS; i++) {
            uint32_t r = row + i * stride;
            levels[i] = make_uint4(0, 0, 0, 0);
            scale[i] = 0;
            if (r < end) {
                scale[i] = scales[r];
                if (there) levels[i] = *(const uint4 *)(values + (size_t)r * dv);
            }
        }
    }
};

/* WIDE: dv is a multiple of 16 and at most 512. Otherwise rows are read twice, first for their maximum. */
template <bool WIDE> __global__ void __launch_bounds__(THREADS) int8_kernel(const __grid_constant__ int8_args a)
{
    extern __shared__ float memory[]; /* shares of h [warps][dv]; q, k [dq]; v [dv] unless WIDE */
    __shared__ float parts[THREADS / 32];
    __shared__ uint32_t ticket;
    uint32_t tid = threadIdx.x, warp = tid / 32, lane = tid % 32, warps = blockDim.x / 32, head = blockIdx.y;
    float *shares = memory, *q = shares + warps * a.dv, *k = q + a.dq, *v = k + a.dq;
    const cuda_run run = a.runs[blockIdx.z];
    uint32_t first = blockIdx.x * a.rows, end = min(first + a.rows, a.dq);
    int8_t *values = (int8_t *)(run.c + a.c_block) + (size_t)head * a.dq * a.dv;
    float *scales = (float *)(run.c + a.c_block + a.c_scales) + (size_t)head * a.dq;

    /* C, n, m belong to this operation alone: fetch before waiting for q k v */
    uint32_t together = 32 / a.lanes, sub = lane / a.lanes, column = lane % a.lanes * 16;
    uint32_t turn = first + warp * together, stride = warps * together;
    bool there = column < a.dv;
    piece now;
    if (WIDE) now.fetch(values + column, scales, turn + sub, stride, end, a.dv, there);
    float m = run.m_in[a.m_block + head];
    pdl_go();
    pdl_wait();

    size_t row = run.row, qk = (row * a.heads + head) * a.dq, v_at = (row * a.heads + head) * a.dv;
    float ig = rounded_to(soft_cap(a.gates[row * 2 * a.heads + head], a.cap), a.kernel);
    float lf = log_sigmoid(rounded_to(soft_cap(a.gates[row * 2 * a.heads + a.heads + head], a.cap), a.kernel));
    float m_new = fmaxf(lf + m, ig);
    if (tid == 0 && blockIdx.x == 0 && !(is_finite(ig) && is_finite(lf) && is_finite(m_new)))
        report(a.faults, run.row, a.fault);
    if (ig != ig || lf != lf || m != m) m_new = __int_as_float(0x7fffffff); /* fmaxf drops NaN */
    float forget = expf(lf + m - m_new), input = expf(ig - m_new), qn = 0;
    for (uint32_t i = tid; i < a.dq; i += blockDim.x) {
        float qi = rounded_to(load_plain(a.q, qk + i, a.act), a.kernel) * a.scale;
        float ki = input * rounded_to(load_plain(a.k, qk + i, a.act), a.kernel);
        float ni = forget * run.n_in[a.n_block + (size_t)head * a.dq + i] + ki;
        q[i] = qi;
        k[i] = ki;
        qn += qi * ni;
        if (blockIdx.x == 0) run.n_out[a.n_block + (size_t)head * a.dq + i] = ni;
    }
    if (blockIdx.x == 0 && tid == 0) run.m_out[a.m_block + head] = m_new;
    qn = warp_sum(qn);
    if (lane == 0) parts[warp] = qn;

    if (WIDE) {
        float vs[16] = {}, h[16] = {};
        if (there) {
            load8_plain(vs, a.v, v_at + column, a.act);
            load8_plain(vs + 8, a.v, v_at + column + 8, a.act);
        }
#pragma unroll
        for (int j = 0; j < 16; j++) vs[j] = rounded_to(vs[j], a.kernel);
        __syncthreads();
        for (; turn < end; turn += ROWS * stride) {
            piece next;
            next.fetch(values + column, scales, turn + ROWS * stride + sub, stride, end, a.dv, there);
#pragma unroll
            for (uint32_t i = 0; i < ROWS; i++) {
                if (turn + i * stride >= end) continue; /* the same in all lanes */
                uint32_t r = turn + i * stride + sub;
                bool in = r < end;
                float kr = in ? k[r] : 0.0f, qr = in ? q[r] : 0.0f, keep = forget * now.scale[i], c[16], top = 0;
                values_of(c, now.levels[i].x), values_of(c + 4, now.levels[i].y);
                values_of(c + 8, now.levels[i].z), values_of(c + 12, now.levels[i].w);
#pragma unroll
                for (int j = 0; j < 16; j++) {
                    c[j] = keep * c[j] + kr * vs[j];
                    h[j] += qr * c[j];
                    top = max_abs(top, c[j]);
                }
                if (!there) top = 0;
                for (uint32_t o = a.lanes / 2; o > 0; o >>= 1) top = max_abs(top, __shfl_xor_sync(0xffffffffu, top, o));
                float inverse, scale = scale_of(top, &inverse);
                if (in && there) {
                    *(uint4 *)(values + (size_t)r * a.dv + column) =
                        make_uint4(levels_of(c, inverse), levels_of(c + 4, inverse), levels_of(c + 8, inverse),
                                   levels_of(c + 12, inverse));
                }
                if (in && column == 0) scales[r] = scale;
            }
            now = next;
        }
        for (uint32_t o = a.lanes; o < 32; o <<= 1) {
#pragma unroll
            for (int j = 0; j < 16; j++) h[j] += __shfl_xor_sync(0xffffffffu, h[j], o);
        }
        if (there && sub == 0) {
            float *share = shares + warp * a.dv + column;
            store8(share, h);
            store8(share + 8, h + 8);
        }
    } else {
        float *share = shares + warp * a.dv; /* a lane has every 32nd column */
        for (uint32_t i = tid; i < a.dv; i += blockDim.x) v[i] = rounded_to(load_plain(a.v, v_at + i, a.act), a.kernel);
        for (uint32_t c = lane; c < a.dv; c += 32) share[c] = 0;
        __syncthreads();
        for (uint32_t r = first + warp; r < end; r += warps) {
            int8_t *levels = values + (size_t)r * a.dv;
            float kr = k[r], qr = q[r], keep = forget * scales[r], top = 0;
            for (uint32_t c = lane; c < a.dv; c += 32) {
                float x = keep * (float)levels[c] + kr * v[c];
                share[c] += qr * x;
                top = max_abs(top, x);
            }
            for (uint32_t o = 16; o > 0; o >>= 1) top = max_abs(top, __shfl_xor_sync(0xffffffffu, top, o));
            float inverse, scale = scale_of(top, &inverse);
            for (uint32_t c = lane; c < a.dv; c += 32)
                levels[c] = (int8_t)level_of(keep * (float)levels[c] + kr * v[c], inverse);
            if (lane == 0) scales[r] = scale;
        }
    }
    __syncthreads();

    float sum = 0;
    for (uint32_t w = 0; w < warps; w++) sum += parts[w];
    float den = fabsf(sum), floor = expf(-m_new);
    den = (den > floor || den != den ? den : floor) + a.eps;
    if (tid == 0 && blockIdx.x == 0 && !is_finite(den)) report(a.faults, run.row, a.fault);
    uint32_t at = blockIdx.z * a.heads + head;
    float *partial = a.partial + (size_t)at * gridDim.x * a.dv;
    for (uint32_t c = tid; c < a.dv; c += blockDim.x) {
        float num = 0;
        for (uint32_t w = 0; w < warps; w++) num += shares[w * a.dv + c];
        if (gridDim.x == 1) store_plain(a.h, v_at + c, a.act, num / den);
        else partial[blockIdx.x * a.dv + c] = num;
    }
    if (gridDim.x == 1) return;
    __threadfence(); /* this block's share is visible before its ticket */
    __syncthreads();
    if (tid == 0) ticket = atomicInc(a.tickets + at, gridDim.x - 1); /* back to 0 with the last */
    __syncthreads();
    if (ticket + 1 < gridDim.x) return;
    __threadfence();
    for (uint32_t c = tid; c < a.dv; c += blockDim.x) {
        float num = 0;
        for (uint32_t b = 0; b < gridDim.x; b++) num += __ldcg(partial + b * a.dv + c);
        store_plain(a.h, v_at + c, a.act, num / den);
    }
}

/* ---- to float32 and back ---------------------------------------------------------------------------------------- */

/* A warp has a row. WIDE: dv is a multiple of 4. */
template <bool WIDE> __global__ void __launch_bounds__(THREADS) unpack_kernel(const __grid_constant__ int8_args a)
{
    uint32_t row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    pdl_go();
    pdl_wait();
    if (row >= a.dq) return;
    const cuda_run run = a.runs[blockIdx.z];
    size_t at = (size_t)blockIdx.y * a.dq + row;
    const int8_t *from = (const int8_t *)(run.packed + a.c_block) + at * a.dv;
    float scale = ((const float *)(run.packed + a.c_block + a.c_scales))[at], *to = (float *)run.c + at * a.dv;
    if (WIDE) {
        for (uint32_t c = lane * 4; c < a.dv; c += 128) {
            float x[4];
            values_of(x, *(const uint32_t *)(from + c));
            *(float4 *)(to + c) = make_float4(x[0] * scale, x[1] * scale, x[2] * scale, x[3] * scale);
        }
    } else {
        for (uint32_t c = lane; c < a.dv; c += 32) to[c] = (float)from[c] * scale;
    }
}

template <bool WIDE> __global__ void __launch_bounds__(THREADS) pack_kernel(const __grid_constant__ int8_args a)
{
    uint32_t row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    pdl_go();
    pdl_wait();
    if (row >= a.dq) return;
    const cuda_run run = a.runs[blockIdx.z];
    size_t at = (size_t)blockIdx.y * a.dq + row;
    int8_t *to = (int8_t *)(run.packed + a.c_block) + at * a.dv;
    const float *from = (const float *)run.c + at * a.dv;
    float top = 0, inverse;
    if (WIDE) {
        for (uint32_t c = lane * 4; c < a.dv; c += 128) {
            float4 x = *(const float4 *)(from + c);
            top = max_abs(max_abs(max_abs(max_abs(top, x.x), x.y), x.z), x.w);
        }
    } else {
        for (uint32_t c = lane; c < a.dv; c += 32) top = max_abs(top, from[c]);
    }
    for (uint32_t o = 16; o > 0; o >>= 1) top = max_abs(top, __shfl_xor_sync(0xffffffffu, top, o));
    float scale = scale_of(top, &inverse);
    if (WIDE) {
        for (uint32_t c = lane * 4; c < a.dv; c += 128) {
            float4 u = *(const float4 *)(from + c);
            const float x[4] = {u.x, u.y, u.z, u.w};
            *(uint32_t *)(to + c) = levels_of(x, inverse);
        }
    } else {
        for (uint32_t c = lane; c < a.dv; c += 32) to[c] = (int8_t)level_of(from[c], inverse);
    }
    if (lane == 0) ((float *)(run.packed + a.c_block + a.c_scales))[at] = scale;
}

/* ---- launching -------------------------------------------------------------------------------------------------- */

bool is_wide(const cuda_backend *be) { return be->opt.head_v % 16 == 0 && be->opt.head_v <= WIDEST; }

/* Shared memory of the fused kernel with so many warps. */
size_t shared_bytes(const cuda_backend *be, uint32_t warps)
{
    size_t dv = be->opt.head_v;
    return (warps * dv + 2 * (size_t)be->opt.head_qk + (is_wide(be) ? 0 : dv)) * sizeof(float);
}

/* The most warps whose shares of h fit, 0 if not even one. */
uint32_t warps_for(const cuda_backend *be)
{
    uint32_t warps = THREADS / 32;
    while (warps > 0 && shared_bytes(be, warps) > SHARED) warps /= 2;
    return warps;
}

void run_single(cuda_backend *be, int8_args a)
{
    uint32_t warps = warps_for(be), n = be->n_single;
    a.lanes = 1;
    while (is_wide(be) && a.lanes * 16 < a.dv) a.lanes *= 2;
    uint32_t stride = is_wide(be) ? warps * (32 / a.lanes) : warps; /* rows at a time */
    /* with few runs the rows of a head are shared among blocks, down to two turns each */
    uint32_t blocks = XL_MAX(1u, XL_MIN((uint32_t)be->sms / (n * a.heads), a.dq / (2 * stride)));
    a.rows = (uint32_t)xl_round_up((a.dq + blocks - 1) / blocks, stride);
    blocks = (a.dq + a.rows - 1) / a.rows;
    cuda_launch(be, "mlstm int8 step", is_wide(be) ? int8_kernel<true> : int8_kernel<false>, dim3(blocks, a.heads, n),
                dim3(warps * 32), shared_bytes(be, warps), a);
}

} // namespace

int cuda_int8_open(cuda_backend *be, xlstm_error *err)
{
    const xl_backend_options *o = &be->opt;
    if (warps_for(be) == 0) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED,
                       "cuda: value heads of %u channels are too wide for int8 states; use --state-dtype bfloat16",
                       o->head_v);
    }
    be->unpacked_bytes = xl_round_up((size_t)o->num_heads * o->head_qk * o->head_v * sizeof(float), 256);
    size_t most = XL_MIN(o->max_runs, XL_MAX(o->max_rows / 2, 1u));
    be->unpacked_runs = (uint32_t)XL_MIN(most, XL_MAX(UNPACKED_LIMIT / be->unpacked_bytes, (size_t)1));
    int result = cuda_alloc(be, (void **)&be->unpacked, be->unpacked_runs * be->unpacked_bytes, "unpacked states", err);
    if (result == XLSTM_OK) {
        result = cuda_alloc(be, (void **)&be->partial, be->sms * o->head_v * sizeof(float), "shares of the cell", err);
    }
    if (result == XLSTM_OK)
        result = cuda_alloc(be, (void **)&be->tickets, be->sms * sizeof(uint32_t), "shares of the cell", err);
    if (result != XLSTM_OK) return result;
    cudaError_t code = cudaMemsetAsync(be->tickets, 0, be->sms * sizeof(uint32_t), be->stream);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "clearing counters");
}

void cuda_int8_close(cuda_backend *be)
{
    cudaFree(be->unpacked);
    cudaFree(be->partial);
    cudaFree(be->tickets);
}

void cuda_run_int8(cuda_backend *be, const cuda_op *op)
{
    int8_args a = {};
    fill_cell_args(a, be, op, 0, op->mlstm.block * be->c_block);
    a.partial = be->partial;
    a.tickets = be->tickets;
    a.c_scales = be->c_scales;
    if (be->n_single > 0) run_single(be, a);

    dim3 grid((a.dq + THREADS / 32 - 1) / (THREADS / 32), a.heads);
    bool wide = a.dv % 4 == 0;
    uint32_t end = be->n_step + be->n_chunked;
    for (uint32_t first = be->n_single, last; first < end; first = last) {
        last = XL_MIN(end, first + be->unpacked_runs);
        grid.z = last - first;
        a.runs = be->runs + first;
        cuda_launch(be, "unpacking a state", wide ? unpack_kernel<true> : unpack_kernel<false>, grid, dim3(THREADS), 0,
                    a);
        be->after_kernel = false; /* the next kernel may fetch C before it waits for others: not before this one ends */
        uint32_t stepped = XL_MIN(XL_MAX(first, be->n_step), last);
        if (stepped > first) cuda_run_steps(be, op, first, stepped - first, 0);
        if (last > stepped) cuda_run_chunkwise(be, op, stepped, last - stepped, 0);
        cuda_launch(be, "packing a state", wide ? pack_kernel<true> : pack_kernel<false>, grid, dim3(THREADS), 0, a);
    }
}
