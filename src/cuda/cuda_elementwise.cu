/*
 * cuda_elementwise.cu — the operations that touch each value once: embed, norms, output gate, swiglu, sums, gathering,
 * logit cap, and conversion between plain formats. One block a row (or a slice of one). The statistics of norms are
 * float32; the rounding points are those of the reference backend.
 */
#include "cuda_device.cuh"

namespace
{

constexpr int THREADS = 256;

/* ---- embed ------------------------------------------------------------------------------------------------------ */

template <typename T>
__global__ void embed_kernel(T *x, const void *table, xlstm_dtype type, size_t pitch, uint32_t width,
                             const int32_t *ids)
{
    pdl_go();
    pdl_wait();
    size_t row = (size_t)ids[blockIdx.x] * pitch;
    T *out = x + (size_t)blockIdx.x * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) put(out + i, load_plain(table, row + i, type));
}

/* ---- norms ------------------------------------------------------------------------------------------------------ */

struct norm_args {
    const float *weight, *bias;
    uint32_t width, fault;
    float eps;
    bool rounds; /* statistics rounded to T at every step */
    uint32_t *faults;
    const uint32_t *origin; /* batch row of a gathered row, or NULL */
};

template <typename T> __global__ void __launch_bounds__(THREADS) rmsnorm_kernel(T *y, const T *x, norm_args a)
{
    __shared__ float room[32];
    pdl_go();
    pdl_wait();
    const T *in = x + (size_t)blockIdx.x * a.width;
    T *out = y + (size_t)blockIdx.x * a.width;
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float v = value_of(in[i]);
        sum += a.rounds ? rounded<T>(v * v) : v * v;
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0 && !is_finite(sum)) {
        report(a.faults, a.origin != nullptr ? a.origin[blockIdx.x] : blockIdx.x, a.fault);
    }
    float mean = sum / (float)a.width, scale;
    if (a.rounds) {
        mean = rounded<T>(mean);
        scale = rounded<T>(1.0f / sqrtf(rounded<T>(mean + a.eps)));
    } else {
        scale = 1.0f / sqrtf(mean + a.eps);
    }
    for (uint32_t i = threadIdx.x; i < a.width; i += THREADS) {
        float v = value_of(in[i]) * scale;
        v = (a.rounds ? rounded<T>(v) : v) * a.weight[i];
        put(out + i, a.bias != nullptr ? v + a.bias[i] : v);
    }
}

/* The same for a width that is a multiple of 8 and at most 2048 V: the row stays in registers, and weights are fetched
 * while the kernel before this one finishes. Statistics in float32. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS) rmsnorm_wide_kernel(T *y, const T *x, norm_args a)
{
    __shared__ float room[THREADS / 32];
    pdl_go();
    float w[V][8], v[V][8], sum = 0;
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t c = (i * THREADS + threadIdx.x) * 8;
        if (c < a.width) load8(w[i], a.weight + c);
    }
    pdl_wait();
    size_t row = (size_t)blockIdx.x * a.width;
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t c = (i * THREADS + threadIdx.x) * 8;
        if (c < a.width) load8(v[i], x + row + c);
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
        if ((i * THREADS + threadIdx.x) * 8 >= a.width) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[i][j] * v[i][j];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) sum += room[i];
    if (threadIdx.x == 0 && !is_finite(sum))
        report(a.faults, a.origin != nullptr ? a.origin[blockIdx.x] : blockIdx.x, a.fault);
    float scale = 1.0f / sqrtf(sum / (float)a.width + a.eps);
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t c = (i * THREADS + threadIdx.x) * 8;
        if (c >= a.width) continue;
        float b[8] = {};
        if (a.bias != nullptr) load8(b, a.bias + c);
#pragma unroll
        for (int j = 0; j < 8; j++) v[i][j] = v[i][j] * scale * w[i][j] + b[j];
        store8(y + row + c, v[i]);
    }
}

/* One block a row and head. */
template <typename T> __global__ void __launch_bounds__(128) mhnorm_kernel(T *g, const T *h, const T *o, norm_args a)
{
    __shared__ float room[32];
    pdl_go();
    pdl_wait();
    size_t at = ((size_t)blockIdx.x * gridDim.y + blockIdx.y) * a.width;
    const T *in = h + at, *gate = o + at;
    const float *weight = a.weight + blockIdx.y * a.width;
    const float *bias = a.bias != nullptr ? a.bias + blockIdx.y * a.width : nullptr;
    float sum = 0, squares = 0;
    for (uint32_t i = threadIdx.x; i < a.width; i += 128) sum += value_of(in[i]);
    float mean = block_sum(sum, room) / (float)a.width;
    if (a.rounds) mean = rounded<T>(mean);
    for (uint32_t i = threadIdx.x; i < a.width; i += 128) {
        float d = value_of(in[i]) - mean;
        if (a.rounds) d = rounded<T>(d);
        squares += a.rounds ? rounded<T>(d * d) : d * d;
    }
    squares = block_sum(squares, room);
    if (threadIdx.x == 0 && !is_finite(squares)) report(a.faults, blockIdx.x, a.fault);
    float variance = squares / (float)a.width, scale;
    if (a.rounds) scale = rounded<T>(1.0f / sqrtf(rounded<T>(rounded<T>(variance) + a.eps)));
    else scale = 1.0f / sqrtf(variance + a.eps);
    for (uint32_t i = threadIdx.x; i < a.width; i += 128) {
        float d = value_of(in[i]) - mean;
        if (a.rounds) d = rounded<T>(d);
        float y = (a.rounds ? rounded<T>(d * scale) : d * scale) * weight[i];
        if (bias != nullptr) y += bias[i];
        put(g + at + i, sigmoid(value_of(gate[i])) * y);
    }
}

/* One warp a row and head, whose channels (a multiple of 8, at most 256 V) stay in registers. */
template <typename T, int V>
__global__ void __launch_bounds__(THREADS)
    mhnorm_wide_kernel(T *g, const T *h, const T *o, uint32_t rows, uint32_t heads, norm_args a)
{
    pdl_go();
    uint32_t lane = threadIdx.x % 32, at = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    size_t first = (size_t)at * a.width;
    uint32_t channel = at % heads * a.width;
    float w[V][8], v[V][8], gate[V][8], sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < V; i++) { /* fetched while the kernel before this one finishes */
        uint32_t c = (i * 32 + lane) * 8;
        if (c < a.width) load8(w[i], a.weight + channel + c);
    }
    pdl_wait();
    if (at >= rows * heads) return;
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t c = (i * 32 + lane) * 8;
        if (c < a.width) load8(v[i], h + first + c), load8(gate[i], o + first + c);
        else
            for (int j = 0; j < 8; j++) v[i][j] = 0;
    }
#pragma unroll
    for (int i = 0; i < V; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[i][j];
    }
    float mean = warp_sum(sum) / (float)a.width;
#pragma unroll
    for (int i = 0; i < V; i++) {
        if ((i * 32 + lane) * 8 < a.width) {
#pragma unroll
            for (int j = 0; j < 8; j++) squares += (v[i][j] - mean) * (v[i][j] - mean);
        }
    }
    squares = warp_sum(squares);
    if (lane == 0 && !is_finite(squares)) report(a.faults, at / heads, a.fault);
    float scale = 1.0f / sqrtf(squares / (float)a.width + a.eps);
#pragma unroll
    for (int i = 0; i < V; i++) {
        uint32_t c = (i * 32 + lane) * 8;
        if (c >= a.width) continue;
        float b[8] = {};
        if (a.bias != nullptr) load8(b, a.bias + channel + c);
#pragma unroll
        for (int j = 0; j < 8; j++) v[i][j] = sigmoid(gate[i][j]) * ((v[i][j] - mean) * scale * w[i][j] + b[j]);
        store8(g + first + c, v[i]);
    }
}

/* ---- pointwise -------------------------------------------------------------------------------------------------- */

template <typename T>
__global__ void __launch_bounds__(THREADS) swiglu_kernel(T *a, const T *gate, const T *up, size_t n)
{
    pdl_go();
    pdl_wait();
    size_t step = (size_t)gridDim.x * THREADS * 8;
    for (size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * 8; i < n; i += step) {
        if (i + 8 <= n) {
            float x[8], y[8];
            load8(x, gate + i);
            load8(y, up + i);
            for (int j = 0; j < 8; j++) x[j] = x[j] * sigmoid(x[j]) * y[j];
            store8(a + i, x);
        } else {
            for (size_t j = i; j < n; j++) {
                float x = value_of(gate[j]);
                put(a + j, x * sigmoid(x) * value_of(up[j]));
            }
        }
    }
}

template <typename T> __global__ void add_kernel(T *x, const T *y, size_t n)
{
    pdl_go();
    pdl_wait();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        put(x + i, value_of(x[i]) + value_of(y[i]));
    }
}

template <typename T> __global__ void gather_kernel(T *y, const T *x, uint32_t width, const uint32_t *rows)
{
    pdl_go();
    pdl_wait();
    const T *in = x + (size_t)rows[blockIdx.x] * width;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) y[(size_t)blockIdx.x * width + i] = in[i];
}

__global__ void softcap_kernel(float *logits, uint32_t width, float cap, uint32_t *faults, const uint32_t *rows,
                               uint32_t code)
{
    pdl_go();
    pdl_wait();
    float *row = logits + (size_t)blockIdx.y * width;
    bool bad = false;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x) {
        float v = soft_cap(row[i], cap);
        bad |= !is_finite(v);
        row[i] = v;
    }
    if (bad) report(faults, rows[blockIdx.y], code);
}

template <typename T> __global__ void bias_kernel(T *y, uint32_t stride, uint32_t column, const float *bias, uint32_t n)
{
    pdl_go();
    pdl_wait();
    T *row = y + (size_t)blockIdx.x * stride + column;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) put(row + i, value_of(row[i]) + bias[i]);
}

/* ---- conversion ------------------------------------------------------------------------------------------------- */

__global__ void convert_kernel(void *dst, xlstm_dtype dst_type, size_t dst_pitch, const void *src, xlstm_dtype src_type,
                               size_t rows, size_t cols)
{
    pdl_wait();
    size_t n = rows * dst_pitch;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        size_t r = i / dst_pitch, c = i % dst_pitch;
        store_plain(dst, i, dst_type, c < cols ? load_plain(src, r * cols + c, src_type) : 0.0f);
    }
}

template <typename T> __global__ void split_kernel(bf16 *parts, size_t stride, uint32_t n_parts, const T *x, size_t n)
{
    pdl_go();
    pdl_wait();
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        float v = value_of(x[i]);
        for (uint32_t p = 0; p < n_parts; p++) {
            bf16 b = __float2bfloat16_rn(v);
            parts[p * stride + i] = b;
            v -= value_of(b);
        }
    }
}

unsigned blocks_for(const cuda_backend *be, size_t n, size_t per_block)
{
    size_t want = (n + per_block - 1) / per_block;
    return (unsigned)XL_MAX((size_t)1, XL_MIN(want, (size_t)be->sms * 16));
}

norm_args norm_of(const cuda_backend *be, const cuda_op *op)
{
    norm_args a;
    a.weight = (const float *)op->norm.weight->data;
    a.bias = op->norm.bias != nullptr ? (const float *)op->norm.bias->data : nullptr;
    a.width = op->norm.width;
    a.fault = op->norm.fault;
    a.eps = op->norm.eps;
    a.rounds = !be->opt.norm_float32 && be->opt.activations != XLSTM_F32;
    a.faults = be->faults;
    a.origin = op->out_rows ? be->out_rows : nullptr;
    return a;
}

} // namespace

/* Calls F<T>(...) for the activation type. */
#define BY_TYPE(type, call)                                                                                            \
    do {                                                                                                               \
        if ((type) == XLSTM_BF16) {                                                                                    \
            typedef bf16 T;                                                                                            \
            call;                                                                                                      \
        } else if ((type) == XLSTM_F16) {                                                                              \
            typedef __half T;                                                                                          \
            call;                                                                                                      \
        } else {                                                                                                       \
            typedef float T;                                                                                           \
            call;                                                                                                      \
        }                                                                                                              \
    } while (0)

void cuda_run_embed(cuda_backend *be, const cuda_op *op)
{
    const xl_matrix *m = op->matrix;
    const void *table = m->rows != nullptr ? m->rows : m->data;
    xlstm_dtype type = m->rows != nullptr ? XLSTM_F32 : m->dtype;
    size_t pitch = m->rows != nullptr ? m->in : m->pitch;
    op->y->dtype = be->opt.activations;
    BY_TYPE(op->y->dtype, cuda_launch(be, "embed", embed_kernel<T>, dim3(be->batch.rows), dim3(THREADS), 0,
                                      (T *)op->y->data, table, type, pitch, m->in, (const int32_t *)be->ids));
}

void cuda_run_rmsnorm(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    norm_args a = norm_of(be, op);
    op->y->dtype = be->opt.activations;
    if (cuda_norm_goes_through(be, op, rows)) return;
    BY_TYPE(op->y->dtype, cuda_launch(be, "rmsnorm",
                                      a.rounds || a.width % 8 != 0 || a.width > 8192 ? rmsnorm_kernel<T>
                                      : a.width <= 2048                              ? rmsnorm_wide_kernel<T, 1>
                                      : a.width <= 4096                              ? rmsnorm_wide_kernel<T, 2>
                                                                                     : rmsnorm_wide_kernel<T, 4>,
                                      dim3(rows), dim3(THREADS), 0, (T *)op->y->data, (const T *)op->x->data, a));
}

void cuda_run_mhnorm(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    norm_args a = norm_of(be, op);
    a.width = be->opt.head_v;
    op->y->dtype = be->opt.activations;
    if (cuda_norm_goes_through(be, op, rows)) return;
    if (a.width % 8 == 0 && a.width <= 1024 && !a.rounds) {
        uint32_t warps = rows * be->opt.num_heads;
        dim3 grid((warps + THREADS / 32 - 1) / (THREADS / 32));
        BY_TYPE(op->y->dtype, cuda_launch(be, "mhnorm_gate",
                                          a.width <= 256   ? mhnorm_wide_kernel<T, 1>
                                          : a.width <= 512 ? mhnorm_wide_kernel<T, 2>
                                                           : mhnorm_wide_kernel<T, 4>,
                                          grid, dim3(THREADS), 0, (T *)op->y->data, (const T *)op->x->data,
                                          (const T *)op->x2->data, rows, be->opt.num_heads, a));
        return;
    }
    BY_TYPE(op->y->dtype, cuda_launch(be, "mhnorm_gate", mhnorm_kernel<T>, dim3(rows, be->opt.num_heads), dim3(128), 0,
                                      (T *)op->y->data, (const T *)op->x->data, (const T *)op->x2->data, a));
}

void cuda_run_swiglu(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    size_t n = (size_t)rows * be->opt.ffn_dim;
    op->y->dtype = be->opt.activations;
    if (cuda_swiglu_is_done(be, op, rows)) return;
    BY_TYPE(op->y->dtype,
            cuda_launch(be, "swiglu", swiglu_kernel<T>, dim3(blocks_for(be, n, THREADS * 8)), dim3(THREADS), 0,
                        (T *)op->y->data, (const T *)op->x->data, (const T *)op->x2->data, n));
}

void cuda_run_add(cuda_backend *be, const cuda_op *op, uint32_t rows)
{
    size_t n = (size_t)rows * op->width;
    BY_TYPE(op->y->dtype, cuda_launch(be, "add", add_kernel<T>, dim3(blocks_for(be, n, THREADS)), dim3(THREADS), 0,
                                      (T *)op->y->data, (const T *)op->x->data, n));
}

void cuda_run_gather(cuda_backend *be, const cuda_op *op)
{
    op->y->dtype = op->x->dtype;
    BY_TYPE(op->y->dtype,
            cuda_launch(be, "gather", gather_kernel<T>, dim3(be->batch.n_out), dim3(THREADS), 0, (T *)op->y->data,
                        (const T *)op->x->data, op->width, (const uint32_t *)be->out_rows));
}

void cuda_run_softcap(cuda_backend *be, const cuda_op *op)
{
    dim3 grid(XL_MIN((op->width + THREADS - 1) / THREADS, 64u), be->batch.n_out);
    cuda_launch(be, "softcap", softcap_kernel, grid, dim3(THREADS), 0, (float *)op->y->data, op->width, op->cap,
                be->faults, (const uint32_t *)be->out_rows, op->fault);
}

void cuda_run_bias(cuda_backend *be, const xl_linear *l, uint32_t rows)
{
    BY_TYPE(l->out->dtype, cuda_launch(be, "bias", bias_kernel<T>, dim3(rows), dim3(THREADS), 0, (T *)l->out->data,
                                       l->stride, l->column, (const float *)l->bias->data, l->weight->out));
}

void cuda_run_convert(cudaStream_t stream, void *dst, xlstm_dtype dst_type, size_t dst_pitch, const void *src,
                      xlstm_dtype src_type, size_t rows, size_t cols)
{
    size_t n = rows * dst_pitch, want = (n + 1023) / 1024;
    convert_kernel<<<(unsigned)XL_MAX((size_t)1, XL_MIN(want, (size_t)4096)), 256, 0, stream>>>(
        dst, dst_type, dst_pitch, src, src_type, rows, cols);
}

void cuda_run_split(cuda_backend *be, void *parts, size_t stride, uint32_t n_parts, const xl_buffer *x, size_t n)
{
    BY_TYPE(x->dtype, cuda_launch(be, "split", split_kernel<T>, dim3(blocks_for(be, n, THREADS)), dim3(THREADS), 0,
                                  (bf16 *)parts, stride, n_parts, (const T *)x->data, n));
}
