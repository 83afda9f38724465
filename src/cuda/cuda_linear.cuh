/*
 * cuda_linear.cuh — what the two kernels for few rows share (cuda_linear.cu: plain weights, cuda_block.cu: block
 * formats): the outputs of a launch, values of x as they are stored, storing a tile's sums, and weights on their way to
 * the second-level cache.
 */
#ifndef XL_CUDA_LINEAR_CUH
#define XL_CUDA_LINEAR_CUH

#include "cuda_quant.cuh"

constexpr uint32_t LINEAR_THREADS = 256, LINEAR_WARPS = 8, LINEAR_STEP = 32;

/* One product of a launch: tiles of 16 rows of its weights from tile0 on. */
struct linear_entry {
    const uint8_t *w;
    const float *bias;
    void *out;
    size_t pitch;
    uint32_t n, stride, column, tile0;
    xlstm_dtype format;
    bool add, wide;
};

linear_entry linear_entry_for(const xl_linear *l);

/* Where a launch for few rows gets x from: as it is stored, or, for one row, through the norm in front of it, which each
 * block then computes for itself (a kernel less to wait for); the row has a multiple of 256 values, at most 4096. */
enum linear_source { STORED, NORM, HEADS };
constexpr uint32_t FUSED_ROWS = 1, FUSED_WIDTH = 4096;
struct linear_input {
    const void *x, *gate; /* HEADS: gate is the output gate before its sigmoid */
    const float *weight;
    linear_source source;
    uint32_t row0, k, width; /* first row; columns; of a head */
    float eps;
    uint32_t fault, *faults;
    const uint32_t *origin; /* batch row of a gathered row, or NULL */
    xlstm_dtype act;
};

/* What the norm at op[-1] is to the launches of `op`, and whether a product's outputs go straight into op[1], a swiglu.
 * The same answers decide that those operations do nothing themselves. */
linear_input linear_input_for(const cuda_backend *be, const cuda_op *op, uint32_t rows);
bool linear_feeds_swiglu(const cuda_backend *be, const cuda_op *op, uint32_t rows);

/* Eight values as stored; loads of several are issued before the first is used. */
struct stored8 {
    uint4 a, b;
};
__device__ __forceinline__ stored8 fetch8(const void *p, size_t i, xlstm_dtype t)
{
    stored8 r;
    r.a = *(const uint4 *)((const uint8_t *)p + i * (t == XLSTM_F32 ? 4 : 2));
    r.b = t == XLSTM_F32 ? *(const uint4 *)((const uint8_t *)p + i * 4 + 16) : make_uint4(0, 0, 0, 0);
    return r;
}
__device__ __forceinline__ void values8(float v[8], const stored8 &r, xlstm_dtype t)
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

/* What the threads of a block share while they normalise the row: per 256 columns, or per warp. */
struct alignas(16) fused_room {
    float a[FUSED_WIDTH / 256], b[FUSED_WIDTH / 256];
};

/* A thread has 8 columns from 256 group + 8 lane on, of groups warp and warp + 8. */
constexpr int FUSED_EACH = FUSED_WIDTH / 256 / LINEAR_WARPS;
__device__ __forceinline__ uint32_t fused_group(int j) { return threadIdx.x / 32 + j * LINEAR_WARPS; }
__device__ __forceinline__ uint32_t fused_column(int j) { return fused_group(j) * 256 + threadIdx.x % 32 * 8; }

/* The row's values after the norm, rounded to the activations' format. All threads of the block call; the norm's weights
 * are fetched before the wait for the kernel in front. */
__device__ __forceinline__ void fused_row(float v[FUSED_EACH][8], const linear_input &in, fused_room &room)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float w[FUSED_EACH][8];
    stored8 raw[FUSED_EACH], gate[FUSED_EACH];
#pragma unroll
    for (int j = 0; j < FUSED_EACH; j++) {
        if (fused_column(j) < in.k) load8(w[j], in.weight + fused_column(j));
    }
    pdl_wait();
#pragma unroll
    for (int j = 0; j < FUSED_EACH; j++) {
        raw[j].a = raw[j].b = gate[j].a = gate[j].b = make_uint4(0, 0, 0, 0);
        if (fused_column(j) >= in.k) continue;
        size_t at = (size_t)in.row0 * in.k + fused_column(j);
        raw[j] = fetch8(in.x, at, in.act);
        if (in.source == HEADS) gate[j] = fetch8(in.gate, at, in.act);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < FUSED_EACH; j++) {
        values8(v[j], raw[j], in.act);
        if (in.source == NORM) {
#pragma unroll
            for (int e = 0; e < 8; e++) sum += v[j][e] * v[j][e];
        } else if (fused_column(j) < in.k) { /* 256 values by themselves: mean, and squares around it */
            float mean = 0, squares = 0;
#pragma unroll
            for (int e = 0; e < 8; e++) mean += v[j][e];
            mean = warp_sum(mean) / 256;
#pragma unroll
            for (int e = 0; e < 8; e++) squares += (v[j][e] - mean) * (v[j][e] - mean);
            squares = warp_sum(squares);
            if (lane == 0) room.a[fused_group(j)] = mean, room.b[fused_group(j)] = squares;
        }
    }
    if (in.source == NORM) {
        sum = warp_sum(sum);
        if (lane == 0) room.a[warp] = sum;
    }
    __syncthreads();
    if (in.source == NORM) {
        sum = 0;
#pragma unroll
        for (uint32_t i = 0; i < LINEAR_WARPS; i++) sum += room.a[i];
        float scale = 1.0f / sqrtf(sum / (float)in.k + in.eps);
        if (blockIdx.x == 0 && threadIdx.x == 0 && !is_finite(sum))
            report(in.faults, in.origin != nullptr ? in.origin[in.row0] : in.row0, in.fault);
#pragma unroll
        for (int j = 0; j < FUSED_EACH; j++) {
#pragma unroll
            for (int e = 0; e < 8; e++) v[j][e] = rounded_to(v[j][e] * scale * w[j][e], in.act);
        }
        return;
    }
    uint32_t each = in.width / 256;
#pragma unroll
    for (int j = 0; j < FUSED_EACH; j++) {
        if (fused_column(j) >= in.k) continue;
        uint32_t first = fused_group(j) / each * each;
        float mean = 0, squares = 0, g[8];
        for (uint32_t i = 0; i < each; i++) mean += room.a[first + i];
        mean /= (float)each;
        for (uint32_t i = 0; i < each; i++) {
            float d = room.a[first + i] - mean;
            squares += room.b[first + i] + 256 * d * d;
        }
        if (blockIdx.x == 0 && lane == 0 && !is_finite(squares)) report(in.faults, in.row0, in.fault);
        float scale = 1.0f / sqrtf(squares / (float)in.width + in.eps);
        values8(g, gate[j], in.act);
#pragma unroll
        for (int e = 0; e < 8; e++) v[j][e] = rounded_to(sigmoid(g[e]) * ((v[j][e] - mean) * scale * w[j][e]), in.act);
    }
}

/* silu(gate) * up of two sums, each rounded as it would have been stored */
__device__ __forceinline__ float gated(float gate, float up, xlstm_dtype act)
{
    gate = rounded_to(gate, act), up = rounded_to(up, act);
    return gate * sigmoid(gate) * up;
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

__device__ __forceinline__ uint32_t word_of(const uint4 &u, int i)
{
    return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
}
__device__ __forceinline__ float half_at(uint32_t word, int i)
{
    float f[2];
    unpack_f16(f, word);
    return f[i];
}

/* Output n of row `row` of the batch gets `sum`. */
__device__ __forceinline__ void store_sum(const linear_entry &e, uint32_t row, uint32_t n, float sum, xlstm_dtype act)
{
    if (e.bias != nullptr) sum += e.bias[n];
    size_t at = (size_t)row * e.stride + e.column + n;
    if (e.wide) {
        ((float *)e.out)[at] = e.add ? ((float *)e.out)[at] + sum : sum;
    } else {
        if (e.add) sum = rounded_to(sum, act) + load_plain(e.out, at, act);
        store_plain(e.out, at, act, sum);
    }
}

/* cuda_block.cu: rows a launch takes, and a launch for rows row0 .. of the products `chosen` of `op`, whose weights are
 * of the block format `main` or, where they have less than SMALL_OUT rows, float32. x has a multiple of 32 columns. */
constexpr uint32_t SMALL_OUT = 64;
uint32_t cuda_block_rows(const cuda_backend *be, xlstm_dtype main, uint32_t k);
void cuda_block_launch(cuda_backend *be, const cuda_op *op, const uint32_t *chosen, uint32_t n_chosen, xlstm_dtype main,
                       uint32_t row0, uint32_t rows, linear_input input, bool swiglu);
cudaError_t cuda_block_setup(cuda_backend *be);

#endif
