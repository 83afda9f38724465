/*
 * cuda_linear.cu — y = x W^T + b. Few rows: one kernel that streams the weights once through shared memory into tensor-core
 * fragments; activations are split into bfloat16 parts (one, two or three columns a row for BF16, F16, F32
 * activations), weights likewise where they are wider, so that every product is exact and sums are float32 whatever the
 * formats. Block formats have a kernel of their own (cuda_block.cu). Many rows: cublasLt (cuda_gemm.cu), with small
 * matrices (gates) through another kernel.
 */
#include "cuda_linear.cuh"

#include <utility>

namespace
{

constexpr int THREADS = LINEAR_THREADS, WARPS = LINEAR_WARPS, STEP = LINEAR_STEP, MAX_COLUMNS = 32;
constexpr uint32_t BLOCKS = 2; /* a multiprocessor */

struct linear_args {
    linear_entry e[8];
    uint32_t n_entries, tiles;
    uint32_t rows, parts, k, k_padded, x_pitch, x_bytes; /* x_pitch: elements a column in shared memory */
    uint32_t stages;                                     /* slots of a warp's ring: 4, or 2 */
    uint32_t *counter; /* hands out tiles after the first of each block; NULL: every gridDim-th, for small k */
    uint32_t row0;     /* first row of x and of the outputs */
    xlstm_dtype act;
    linear_input in;
    bool swiglu; /* a tile is 8 rows of entry 0 and 8 of entry 1; entry 0's output gets silu(first) * second */
};

/* ---- making the input columns in shared memory ---------------------------------------------------------------- */

/* Values k .. k + 7 of row m to x [column][pitch], into the columns of its parts (part p of row m: p * rows + m). */
__device__ __forceinline__ void write_parts(const linear_args &a, bf16 *x, uint32_t m, uint32_t k, float v[8])
{
    for (uint32_t p = 0; p < a.parts; p++) {
        uint4 u =
            make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
        *(uint4 *)(x + (size_t)(p * a.rows + m) * a.x_pitch + k) = u;
        if (p + 1 < a.parts) {
            float r[8];
            unpack_bf16(r, u.x), unpack_bf16(r + 2, u.y), unpack_bf16(r + 4, u.z), unpack_bf16(r + 6, u.w);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] -= r[j];
        }
    }
}

__device__ void make_columns(const linear_args &a, bf16 *x)
{
    constexpr int AT_ONCE = 6;
    uint32_t each = a.k_padded / 8, all = a.rows * each;
    bool wide = a.k % 8 == 0;
    if (a.act == XLSTM_BF16 && wide) { /* one part, as it is stored */
        for (uint32_t i = threadIdx.x; i < all; i += THREADS) {
            uint32_t m = i / each, k = i % each * 8;
            copy_async16(shared_address(x + (size_t)m * a.x_pitch + k),
                         (const bf16 *)a.in.x + (size_t)(a.row0 + m) * a.k + k, k < a.k);
        }
        copy_async_commit();
        copy_async_wait<0>();
        return;
    }
    for (uint32_t i = threadIdx.x; i < all; i += AT_ONCE * THREADS) {
        stored8 r[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            uint32_t at = i + j * THREADS, m = at / each, k = at % each * 8;
            r[j].a = r[j].b = make_uint4(0, 0, 0, 0);
            if (at < all && wide && k < a.k) r[j] = fetch8(a.in.x, (size_t)(a.row0 + m) * a.k + k, a.act);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            uint32_t at = i + j * THREADS, m = at / each, k = at % each * 8;
            if (at >= all) break;
            float v[8];
            values8(v, r[j], a.act);
            if (!wide) {
                size_t row = (size_t)(a.row0 + m) * a.k;
                for (uint32_t e = 0; e < 8; e++) v[e] = k + e < a.k ? load_plain(a.in.x, row + k + e, a.act) : 0.0f;
            }
            write_parts(a, x, m, k, v);
        }
    }
}

/* ---- weights: a batch is what a warp takes at once from its ring of slots in shared memory --------------------- */

constexpr uint32_t SLOT = 2048; /* bytes */

/* Steps of 32 columns a batch has. */
template <xlstm_dtype F> constexpr uint32_t batch_steps = F == XLSTM_F32 ? 1 : 2;

/* Starts copying batch b of a tile to a slot; steps at and beyond `steps` of narrow formats become zero. lo and hi: this
 * lane's 8 columns of step 0 in rows g and g + 8. */
template <xlstm_dtype F>
__device__ __forceinline__ void issue(uint32_t slot, const uint8_t *lo, const uint8_t *hi, uint32_t b, uint32_t steps,
                                      uint32_t lane)
{
    uint32_t mine = slot + lane * 16;
    if constexpr (F == XLSTM_F32) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            copy_stream16(mine + h * 512, lo + (size_t)b * 128 + h * 16, true);
            copy_stream16(mine + 1024 + h * 512, hi + (size_t)b * 128 + h * 16, true);
        }
    } else {
#pragma unroll
        for (uint32_t u = 0; u < 2; u++) {
            uint32_t s = b * 2 + u;
            copy_stream16(mine + u * 1024, lo + (s < steps ? (size_t)s * 64 : 0), s < steps);
            copy_stream16(mine + u * 1024 + 512, hi + (s < steps ? (size_t)s * 64 : 0), s < steps);
        }
    }
}

/* acc += batch b, from its slot, times the input columns; x[nt] is this lane's column at its first k of step 0. */
template <xlstm_dtype F, int NT>
__device__ __forceinline__ void consume(float acc[NT][4], const uint8_t *slot, const bf16 *const x[NT], uint32_t b,
                                        uint32_t lane)
{
    const uint8_t *mine = slot + lane * 16;
    if constexpr (F == XLSTM_BF16) {
        uint4 lo[2], hi[2];
#pragma unroll
        for (uint32_t u = 0; u < 2; u++) {
            lo[u] = *(const uint4 *)(mine + u * 1024);
            hi[u] = *(const uint4 *)(mine + u * 1024 + 512);
        }
#pragma unroll
        for (uint32_t u = 0; u < 2; u++) {
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 c = *(const uint4 *)(x[nt] + (b * 2 + u) * STEP);
                mma_bf16(acc[nt], lo[u].x, hi[u].x, lo[u].y, hi[u].y, c.x, c.y);
                mma_bf16(acc[nt], lo[u].z, hi[u].z, lo[u].w, hi[u].w, c.z, c.w);
            }
        }
    } else {
        constexpr int P = F == XLSTM_F16 ? 2 : 3;
#pragma unroll
        for (uint32_t u = 0; u < batch_steps<F>; u++) {
            float v[8];
            uint32_t lo[P][4], hi[P][4];
            constexpr uint32_t ROW = F == XLSTM_F16 ? 512 : 1024;
            stored8 r;
            r.a = *(const uint4 *)(mine + u * 1024),
            r.b = *(const uint4 *)(mine + u * 1024 + (F == XLSTM_F16 ? 0 : 512));
            values8(v, r, F);
            split8<P>(lo, v);
            r.a = *(const uint4 *)(mine + u * 1024 + ROW),
            r.b = *(const uint4 *)(mine + u * 1024 + (F == XLSTM_F16 ? 0 : 1536));
            values8(v, r, F);
            split8<P>(hi, v);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 c = *(const uint4 *)(x[nt] + (b * batch_steps<F> + u) * STEP);
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
                    mma_bf16(acc[nt], lo[p][0], hi[p][0], lo[p][1], hi[p][1], c.x, c.y);
                    mma_bf16(acc[nt], lo[p][2], hi[p][2], lo[p][3], hi[p][3], c.z, c.w);
                }
            }
        }
    }
}

/* ---- the kernel ------------------------------------------------------------------------------------------------- */

__device__ __forceinline__ const linear_entry &entry_of(const linear_args &a, uint32_t tile)
{
    uint32_t i = 0;
    while (i + 1 < a.n_entries && tile >= a.e[i + 1].tile0) i++;
    return a.e[i];
}

/* What a warp copies next: batch b of a tile. */
template <xlstm_dtype F> struct cursor {
    uint32_t tile, b, batches;
    const uint8_t *lo, *hi;
    bool main;

    /* Moves to the first tile from `tile` on that has a batch for this warp. */
    __device__ __forceinline__ void seek(const linear_args &a, uint32_t steps, uint32_t warp, uint32_t lane)
    {
        b = batches = 0;
        for (; tile < a.tiles; tile += gridDim.x) { /* goes on only where tiles are not handed out */
            const linear_entry &e = entry_of(a, tile);
            main = F == XLSTM_F32 || e.format == F;
            batches = main ? (steps + batch_steps<F> - 1) / batch_steps<F> : steps;
            if (warp >= batches) continue;
            b = warp;
            uint32_t row = (tile - e.tile0) * (a.swiglu ? 8 : 16) + lane / 4, size = main && F != XLSTM_F32 ? 2 : 4;
            lo = e.w + ((size_t)min(row, e.n - 1) * e.pitch + lane % 4 * 8) * size;
            hi = (a.swiglu ? a.e[1].w : e.w) +
                 ((size_t)min(a.swiglu ? row : row + 8, e.n - 1) * e.pitch + lane % 4 * 8) * size;
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
            if (main) issue<F>(slot, lo, hi, b, steps, lane);
            else issue<XLSTM_F32>(slot, lo, hi, b, steps, lane);
            b += WARPS;
        }
        copy_async_commit();
    }
};

/* Blocks are handed tiles of 16 weight rows; the warps of a block share a tile's columns and add up at its end. Each
 * warp keeps its next batches of weights, also across tiles and across the wait for the previous kernel, on their way
 * to its ring of slots. Entries are of format F, or float32 (gates). FUSED: x goes through a norm. The register limit leaves
 * room beside two blocks, for those of the kernels that follow: they wait there, with their first data on the way. */
template <xlstm_dtype F, int NT, bool FUSED>
__global__ void __launch_bounds__(THREADS, NT == 1 ? 3 : 2) linear_kernel(const __grid_constant__ linear_args a)
{
    extern __shared__ __align__(128) uint8_t memory[];
    constexpr uint32_t RED = 8 * NT + 2; /* row stride of partial sums: even, and spread over the banks */
    uint8_t *ring = memory;
    bf16 *columns = (bf16 *)(ring + WARPS * a.stages * SLOT);
    float *partial = (float *)((uint8_t *)columns + a.x_bytes);
    fused_room &room = *(fused_room *)(partial + 2 * WARPS * 16 * RED);
    uint32_t *handed = (uint32_t *)(&room + 1); /* [2] tile numbers */
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
    if constexpr (FUSED) {
        float v[FUSED_EACH][8];
        fused_row(v, a.in, room);
#pragma unroll
        for (int j = 0; j < FUSED_EACH; j++) {
            if (fused_column(j) < a.k) write_parts(a, columns, 0, fused_column(j), v[j]);
        }
    } else {
        pdl_wait();
        make_columns(a, columns);
    }
    __syncthreads();

    const bf16 *x[NT];
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
        x[nt] = columns + (size_t)min((uint32_t)nt * 8 + g, a.rows * a.parts - 1) * a.x_pitch + t * 8;

    uint32_t turn = 0, reducer = 0, following = a.counter != nullptr ? handed[1] : blockIdx.x + gridDim.x, fetched = 0;
    for (uint32_t tile = blockIdx.x; tile < a.tiles; turn ^= 1) {
        const linear_entry &e = entry_of(a, tile);
        if (threadIdx.x == 0 && a.counter != nullptr) fetched = gridDim.x + atomicAdd(a.counter, 1u);
        bool main = F == XLSTM_F32 || e.format == F;
        uint32_t batches = main ? (steps + batch_steps<F> - 1) / batch_steps<F> : steps;
        float acc[NT][4];
#pragma unroll
        for (int nt = 0; nt < NT; nt++) acc[nt][0] = acc[nt][1] = acc[nt][2] = acc[nt][3] = 0;
        for (uint32_t b = warp; b < batches; b += WARPS) {
            if (a.stages == 4) copy_async_wait<3>();
            else copy_async_wait<1>();
            __syncwarp();
            if (main) consume<F, NT>(acc, ring + slot * SLOT, x, b, lane);
            else consume<XLSTM_F32, NT>(acc, ring + slot * SLOT, x, b, lane);
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
        auto added = [&](uint32_t r, uint32_t m) {
            float sum = 0;
            for (uint32_t q = a.parts; q-- > 0;) {
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum += all[(w * 16 + r) * RED + q * a.rows + m];
            }
            return sum;
        };
        /* the few threads with something to add are in another warp each time */
        if (a.swiglu) {
            for (uint32_t o = (threadIdx.x + 32 * reducer) % THREADS; o < 8 * a.rows; o += THREADS) {
                uint32_t r = o % 8, m = o / 8, n = tile * 8 + r;
                if (n < e.n)
                    store_plain(e.out, (size_t)(a.row0 + m) * e.stride + n, a.act,
                                gated(added(r, m), added(r + 8, m), a.act));
            }
        } else {
            for (uint32_t o = (threadIdx.x + 32 * reducer) % THREADS; o < 16 * a.rows; o += THREADS) {
                uint32_t r = o % 16, m = o / 16, n = (tile - e.tile0) * 16 + r;
                if (n < e.n) store_sum(e, a.row0 + m, n, added(r, m), a.act);
            }
        }
        reducer++;
        tile = following;
        following = a.counter != nullptr ? handed[turn] : tile + gridDim.x;
    }
}

/* ---- many rows times a few outputs ------------------------------------------------------------------------------ */

struct narrow_args {
    linear_entry e[8]; /* tile0: first of its groups of 8 outputs */
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
        const linear_entry &e = a.e[at];
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
        const linear_entry &e = a.e[at];
        uint32_t n = c - e.tile0 * 8;
        if (m >= a.rows || n >= e.n) continue;
        float sum = 0;
        for (int w = 0; w < NARROW_WARPS; w++) sum += partial[w][o / (8 * a.groups)][c];
        store_sum(e, m, n, sum, a.act);
    }
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

typedef void (*linear_fn)(const linear_args);

template <int NT, bool FUSED = false> linear_fn kernel_for(xlstm_dtype t)
{
    return t == XLSTM_BF16  ? linear_kernel<XLSTM_BF16, NT, FUSED>
           : t == XLSTM_F16 ? linear_kernel<XLSTM_F16, NT, FUSED>
                            : linear_kernel<XLSTM_F32, NT, FUSED>;
}

uint32_t parts_of(xlstm_dtype act) { return act == XLSTM_BF16 ? 1 : act == XLSTM_F16 ? 2 : 3; }

/* Elements a column takes in shared memory: padded to groups and shifted by half a bank row. */
uint32_t x_pitch_for(uint32_t k) { return quant_groups(k) * 256 + 32; }

uint32_t tiles_for(uint32_t columns) { return columns <= 8 ? 1 : columns <= 16 ? 2 : 4; }

/* Shared memory besides the columns: ring and partial sums. */
size_t other_bytes(uint32_t stages, uint32_t nt)
{
    return WARPS * stages * SLOT + (2 * WARPS * 16 * (8 * nt + 2) + 4) * sizeof(float) + sizeof(fused_room);
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
uint32_t rows_a_launch(const cuda_backend *be, xlstm_dtype main, uint32_t k)
{
    if (!cuda_plain(main)) return cuda_block_rows(be, main, k);
    uint32_t parts = parts_of(be->opt.activations), rows = MAX_COLUMNS / parts;
    while (rows > 1 &&
           (size_t)rows * parts * x_pitch_for(k) * 2 + other_bytes(2, tiles_for(rows * parts)) > be->smem_max)
        rows--;
    return rows;
}

void launch_few(cuda_backend *be, const cuda_op *op, const uint32_t *chosen, uint32_t n_chosen, xlstm_dtype main,
                uint32_t row0, uint32_t rows, const linear_input &input, bool swiglu)
{
    linear_args a = {};
    a.k = op->group[chosen[0]].weight->in;
    for (uint32_t i = 0; i < n_chosen; i++) {
        a.e[i] = linear_entry_for(&op->group[chosen[i]]);
        a.e[i].tile0 = a.tiles;
        a.tiles += (a.e[i].n + 15) / 16;
    }
    a.n_entries = n_chosen;
    a.swiglu = swiglu;
    if (swiglu) {
        a.e[0].out = op[1].y->data;
        a.n_entries = 1;
        a.tiles = (a.e[0].n + 7) / 8;
    }
    a.rows = rows;
    a.row0 = row0;
    a.parts = parts_of(be->opt.activations);
    a.k_padded = quant_groups(a.k) * 256;
    a.x_pitch = x_pitch_for(a.k);
    a.x_bytes = rows * a.parts * a.x_pitch * 2;
    a.act = be->opt.activations;
    a.in = input;
    uint32_t nt = tiles_for(rows * a.parts);
    linear_fn kernel = input.source != STORED ? kernel_for<1, true>(main)
                       : nt == 1              ? kernel_for<1>(main)
                       : nt == 2              ? kernel_for<2>(main)
                                              : kernel_for<4>(main);
    /* handing out tiles needs a ring no longer than what a warp has of a tile */
    uint32_t a_warp = (a.k + STEP - 1) / STEP / (main == XLSTM_F32 ? 1 : 2) / WARPS;
    a.stages = a_warp >= 4 && a.x_bytes + other_bytes(4, nt) <= be->smem_max ? 4 : 2;
    if (a_warp >= a.stages && be->n_counters < COUNTERS) a.counter = be->counters + be->n_counters++;
    size_t smem = a.x_bytes + other_bytes(a.stages, nt);
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
    if (r->weight->data < l->weight->data) std::swap(l, r); /* memory is often given out downwards */
    const xl_matrix *w = l->weight, *v = r->weight;
    xlstm_dtype act = be->opt.activations, type = l->out->dtype;
    if (be->gemm == nullptr || w->dtype != act || v->dtype != act || w->out != v->out || l->stride != r->stride ||
        l->add || r->add || l->bias != nullptr || r->bias != nullptr || type != r->out->dtype || l->column != 0 ||
        r->column != 0 || w->in % 8 != 0 || l->stride % 8 != 0 || l->out->rows != r->out->rows ||
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

linear_entry linear_entry_for(const xl_linear *l)
{
    linear_entry e = {};
    e.w = l->weight->data;
    e.bias = l->bias != nullptr ? (const float *)l->bias->data : nullptr;
    e.out = l->out->data;
    e.pitch = l->weight->pitch;
    e.n = l->weight->out;
    e.stride = l->stride;
    e.column = l->column;
    e.format = l->weight->dtype;
    e.add = l->add;
    e.wide = l->wide;
    return e;
}

/* Whether the norm in front of `op` is computed by the products' own blocks. */
static bool goes_through(const cuda_backend *be, const cuda_op *norm, const cuda_op *op, uint32_t rows)
{
    uint32_t k = op->group[0].weight->in, width = be->opt.head_v;
    if (be->batch.traced || rows > FUSED_ROWS || op->kind != cuda_op::LINEAR || op->x != norm->y || k > FUSED_WIDTH ||
        op->out_rows != norm->out_rows || k % 256 != 0 || norm->norm.bias != nullptr ||
        (!be->opt.norm_float32 && be->opt.activations != XLSTM_F32)) {
        return false;
    }
    if (norm->kind == cuda_op::RMSNORM) return norm->norm.width == k;
    return norm->kind == cuda_op::MHNORM && width % 256 == 0 && be->opt.num_heads * width == k;
}

bool cuda_norm_goes_through(const cuda_backend *be, const cuda_op *norm, uint32_t rows)
{
    const cuda_op *end = be->ops.data() + be->ops.size();
    return norm + 1 < end && goes_through(be, norm, norm + 1, rows);
}

linear_input linear_input_for(const cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    linear_input in = {};
    in.x = op->x->data;
    in.k = op->group[0].weight->in;
    in.act = be->opt.activations;
    if (op == be->ops.data() || !goes_through(be, op - 1, op, rows)) return in;
    const cuda_op *norm = op - 1;
    in.source = norm->kind == cuda_op::RMSNORM ? NORM : HEADS;
    in.x = norm->x->data;
    in.gate = in.source == HEADS ? norm->x2->data : nullptr;
    in.weight = (const float *)norm->norm.weight->data;
    in.width = be->opt.head_v;
    in.eps = norm->norm.eps;
    in.fault = norm->norm.fault;
    in.faults = be->faults;
    in.origin = norm->out_rows ? be->out_rows : nullptr;
    return in;
}

bool linear_feeds_swiglu(const cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    const cuda_op *next = op + 1, *end = be->ops.data() + be->ops.size();
    if (be->batch.traced || rows > FUSED_ROWS || op->n != 2 || next >= end || next->kind != cuda_op::SWIGLU)
        return false;
    const xl_linear *l = op->group, *r = op->group + 1;
    return next->x == l->out && next->x2 == r->out && l->weight->dtype == r->weight->dtype &&
           l->weight->out == r->weight->out && l->weight->out == be->opt.ffn_dim && l->stride == be->opt.ffn_dim &&
           r->stride == l->stride && l->bias == nullptr && r->bias == nullptr && !l->add && !r->add && !l->wide &&
           !r->wide && l->column == 0 && r->column == 0;
}

bool cuda_swiglu_is_done(const cuda_backend *be, const cuda_op *swiglu, uint32_t rows)
{
    return swiglu > be->ops.data() && swiglu[-1].kind == cuda_op::LINEAR && linear_feeds_swiglu(be, swiglu - 1, rows);
}

cudaError_t cuda_linear_setup(cuda_backend *be)
{
    for (xlstm_dtype f : {XLSTM_BF16, XLSTM_F16, XLSTM_F32}) {
        linear_fn kernels[] = {kernel_for<1>(f), kernel_for<1, true>(f), kernel_for<2>(f), kernel_for<4>(f)};
        for (linear_fn k : kernels) {
            cudaError_t code =
                cudaFuncSetAttribute((const void *)k, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)be->smem_max);
            if (code != cudaSuccess) return code;
        }
    }
    return cuda_block_setup(be);
}

void cuda_run_linear(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    const xl_buffer *x = op->x;
    uint32_t k = op->group[0].weight->in, capacity = rows_a_launch(be, op->group[0].weight->dtype, k);
    bool left[8] = {}, swiglu = linear_feeds_swiglu(be, op, rows);
    linear_input input = linear_input_for(be, op, rows);
    if (swiglu) op[1].y->dtype = be->opt.activations;
    for (uint32_t i = 0; i < op->n; i++) {
        op->group[i].out->dtype = op->group[i].wide ? XLSTM_F32 : be->opt.activations;
        left[i] = true;
    }
    /* beyond some trips over the weights a matrix product wins; with weights it can read as they are, sooner */
    bool native = op->group[0].weight->dtype == be->opt.activations && be->gemm != nullptr;
    if (rows > FUSED_ROWS && rows > (native ? capacity * 3 / 4 : 4 * capacity)) {
        narrow_args narrow = {};
        xlstm_dtype weights = XLSTM_F32;
        for (uint32_t i = 0; i < op->n; i++) {
            const xl_matrix *w = op->group[i].weight;
            uint32_t groups = (w->out + 7) / 8;
            if (k % 8 == 0 && cuda_plain(w->dtype) && narrow.groups + groups <= 4 &&
                (narrow.n_entries == 0 || w->dtype == weights)) {
                weights = w->dtype;
                narrow.e[narrow.n_entries] = linear_entry_for(&op->group[i]);
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
            cudaStream_t stream = be->stream;
            if (be->gemm != nullptr) {
                be->stream = cuda_gemm_fork(be);
                be->after_kernel = false;
            }
            cuda_launch(be, "narrow linear", narrow_for(narrow.act, weights, narrow.groups), dim3((rows + 15) / 16),
                        dim3(NARROW_WARPS * 32), 0, narrow);
            if (be->gemm != nullptr) be->after_kernel = false;
            be->stream = stream;
        }
        for (uint32_t i = 0; i < op->n; i++) {
            for (uint32_t j = i + 1; j < op->n && left[i]; j++) {
                if (left[j] && run_pair(be, &op->group[i], &op->group[j], x, rows)) left[i] = left[j] = false;
            }
            if (left[i] && run_large(be, &op->group[i], x, rows)) left[i] = false;
        }
        if (narrow.n_entries > 0 && be->gemm != nullptr) cuda_gemm_join(be);
    }
    /* the rest by format; float32 entries ride along with the first other format */
    while (true) {
        uint32_t chosen[8], n_chosen = 0;
        xlstm_dtype main = XLSTM_DTYPE_DEFAULT;
        for (uint32_t i = 0; i < op->n; i++) {
            if (left[i] && (main == XLSTM_DTYPE_DEFAULT || main == XLSTM_F32)) main = op->group[i].weight->dtype;
        }
        for (int small = 1; small >= 0; small--) { /* gates first: their tiles take longest */
            for (uint32_t i = 0; i < op->n; i++) {
                xlstm_dtype f = op->group[i].weight->dtype;
                bool is_small = op->group[i].weight->out < SMALL_OUT;
                if (!left[i] || is_small != (small == 1) ||
                    (f != main && (f != XLSTM_F32 || (!is_small && !cuda_plain(main)))))
                    continue;
                chosen[n_chosen++] = i;
                left[i] = false;
            }
        }
        if (n_chosen == 0) break;
        uint32_t each = rows_a_launch(be, main, k);
        for (uint32_t row = 0; row < rows; row += each) {
            uint32_t n = XL_MIN(each, rows - row);
            input.row0 = row;
            if (cuda_plain(main)) launch_few(be, op, chosen, n_chosen, main, row, n, input, swiglu);
            else cuda_block_launch(be, op, chosen, n_chosen, main, row, n, input, swiglu);
        }
    }
}
