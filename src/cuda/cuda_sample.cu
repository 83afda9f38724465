/*
 * cuda_sample.cu — choosing ids on the device, by the rules of sampler.c: temperature, top-k, top-p, min-p, draw. One
 * block a row of logits. Weights are computed with the sampler's own exponential, bit for bit. Their sums are not its
 * double sums but sums of integers, weights in units of 2^-46 or so, which have no order: equal requests choose equal
 * ids, and one that the host would answer differently needs a random number within some 1e-10 of a border.
 *
 * Thresholds (the k-th largest logit, the weight at which the nucleus ends) are found from histograms of 11, 11 and 10
 * bits of a number whose integer order is the wanted one. Of ids that tie at a threshold the lower ones stay: those up to
 * the one that a walk in the order of ids finds, as the draw does.
 */
#include "cuda_device.cuh"

namespace
{

typedef unsigned long long u64;

constexpr uint32_t THREADS = 1024, WARPS = THREADS / 32, BINS = 2048, ALL = 0xffffffffu;
constexpr size_t WEIGHTS_LIMIT = 64u << 20; /* bytes for weights; more rows take turns */

struct sample_args {
    const float *logits; /* [rows][width] */
    const cuda_sample *requests;
    float *weights; /* [blocks][pitch] */
    int32_t *chosen;
    uint32_t rows, width, pitch;
};

struct shared {
    uint32_t low[BINS], high[BINS]; /* of 64-bit sums */
    u64 sums[WARPS];                /* of the warps' shares of the row */
    float values[WARPS];
    uint32_t ids[WARPS];
    u64 above; /* what one thread found, for all */
    uint32_t found;
};

/* A warp's share of n ids. */
struct share {
    uint32_t each, begin, end;
    __device__ __forceinline__ explicit share(uint32_t n)
    {
        each = (n + THREADS - 1) / THREADS * 32;
        begin = min(threadIdx.x / 32 * each, n);
        end = min(begin + each, n);
    }
};

/* exp of x <= 0, every operation rounded as in sampler.c */
__device__ __forceinline__ float exp_negative(float x)
{
    const uint32_t limit = 0x42ae0000u; /* 87 */
    uint32_t magnitude = __float_as_uint(x) & 0x7fffffffu;
    float y = -__uint_as_float(min(magnitude, limit));
    int k = __float2int_rz(__fsub_rn(__fmul_rn(y, 1.44269504f), 0.5f));
    float f = (float)k;
    float r = __fadd_rn(__fsub_rn(y, __fmul_rn(f, 0.693359375f)), __fmul_rn(f, 2.12194440e-4f));
    float p = 1.0f / 720.0f;
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 120.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 24.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f / 6.0f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    return __fmul_rn(p, __uint_as_float(magnitude > limit ? 0u : (uint32_t)(k + 127) << 23));
}

/* Larger floats have larger keys; 0 and -0 have one. */
__device__ __forceinline__ uint32_t key_of(float x)
{
    uint32_t u = __float_as_uint(__fadd_rn(x, 0.0f));
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

/* ---- by all threads of a block ---------------------------------------------------------------------------------- */

/* The largest value and the lowest id that has it. */
__device__ void find_largest(shared &s, float *value, uint32_t *id)
{
    float v = *value;
    uint32_t at = *id;
    for (uint32_t o = 16; o > 0; o >>= 1) {
        float other = __shfl_xor_sync(ALL, v, o);
        uint32_t other_at = __shfl_xor_sync(ALL, at, o);
        if (other > v || (other == v && other_at < at)) v = other, at = other_at;
    }
    if (threadIdx.x % 32 == 0) s.values[threadIdx.x / 32] = v, s.ids[threadIdx.x / 32] = at;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++) {
        if (s.values[w] > v || (s.values[w] == v && s.ids[w] < at)) v = s.values[w], at = s.ids[w];
    }
    *value = v;
    *id = at;
    __syncthreads();
}

/* Sum of what each thread has; s.sums keeps those of the warps. */
__device__ u64 add_up(shared &s, u64 x)
{
    for (uint32_t o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(ALL, x, o);
    __syncthreads(); /* the last sums have been read */
    if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = x;
    __syncthreads();
    u64 sum = 0;
    for (uint32_t w = 0; w < WARPS; w++) sum += s.sums[w];
    return sum;
}

template <typename V> __device__ u64 add_up_row(shared &s, uint32_t n, V value)
{
    const share mine(n);
    u64 x = 0;
#pragma unroll 4
    for (uint32_t i = mine.begin + threadIdx.x % 32; i < mine.end; i += 32) x += value(i);
    return add_up(s, x);
}

/* The first id with which the sum of values up to it exceeds `target`, which is less than the sum of all; s.sums holds
 * the warps' sums. */
template <typename V> __device__ uint32_t walk(shared &s, uint32_t n, u64 target, V value)
{
    const share mine(n);
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 before = 0;
    for (uint32_t w = 0; w < warp; w++) before += s.sums[w];
    if (before <= target && target < before + s.sums[warp]) { /* in one warp alone */
        for (uint32_t i = mine.begin; i < mine.end; i += 32) {
            u64 sum = i + lane < mine.end ? value(i + lane) : 0;
            for (uint32_t o = 1; o < 32; o <<= 1) {
                u64 other = __shfl_up_sync(ALL, sum, o);
                if (lane >= o) sum += other;
            }
            uint32_t past = __ballot_sync(ALL, before + sum > target);
            if (past != 0) {
                if (lane == 0) s.found = i + (uint32_t)__ffs((int)past) - 1;
                break;
            }
            before += __shfl_sync(ALL, sum, 31);
        }
    }
    __syncthreads();
    uint32_t found = s.found;
    __syncthreads();
    return found;
}

/* The largest key such that the masses of all larger keys, and of this one, reach `need`, at most the sum of all. *rest:
 * what of `need` the larger ones leave to those with this key, *ties: the mass of these. */
template <typename K, typename M>
__device__ uint32_t select(shared &s, uint32_t n, u64 need, K key, M mass, u64 *rest, u64 *ties)
{
    uint32_t prefix = 0, known = 32, tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    for (uint32_t width : {11u, 11u, 10u}) {
        uint32_t shift = known - width, mask = (1u << width) - 1;
        for (uint32_t b = tid; b < BINS; b += THREADS) s.low[b] = s.high[b] = 0;
        __syncthreads();
#pragma unroll 4
        for (uint32_t i = tid; i < n; i += THREADS) {
            u64 m = mass(i);
            if (m == 0) continue;
            uint32_t k = key(i);
            if (known < 32 && k >> known != prefix) continue;
            uint32_t bin = k >> shift & mask, low = (uint32_t)m, high = (uint32_t)(m >> 32);
            high += atomicAdd(&s.low[bin], low) + low < low; /* the carry */
            if (high != 0) atomicAdd(&s.high[bin], high);
        }
        __syncthreads();
        /* from the top: a thread has two bins */
        uint32_t bin = BINS - 1 - 2 * tid;
        u64 first = (u64)s.high[bin] << 32 | s.low[bin], second = (u64)s.high[bin - 1] << 32 | s.low[bin - 1],
            sum = first + second;
        for (uint32_t o = 1; o < 32; o <<= 1) {
            u64 other = __shfl_up_sync(ALL, sum, o);
            if (lane >= o) sum += other;
        }
        if (lane == 31) s.sums[warp] = sum;
        __syncthreads();
        for (uint32_t w = 0; w < warp; w++) sum += s.sums[w];
        u64 above = sum - first - second;
        if (above < need && need <= sum) { /* one thread */
            bool in_first = need <= above + first;
            s.found = in_first ? bin : bin - 1;
            s.above = in_first ? above : above + first;
        }
        __syncthreads();
        prefix = prefix << width | s.found;
        need -= s.above;
        *ties = (u64)s.high[s.found] << 32 | s.low[s.found];
        known = shift;
        __syncthreads();
    }
    *rest = need;
    return prefix;
}

/* ---- one row ---------------------------------------------------------------------------------------------------- */

__device__ int32_t choose(shared &s, const float *logits, float *weights, const cuda_sample &r)
{
    const uint32_t n = r.n_tokens, tid = threadIdx.x, lane = tid % 32;
    const share mine(n);
    float largest = -INFINITY;
    uint32_t first = UINT32_MAX;
    bool bad = false;
#pragma unroll 4
    for (uint32_t i = mine.begin + lane; i < mine.end; i += 32) {
        float x = logits[i];
        bad |= x != x || x == INFINITY;
        if (x > largest || first == UINT32_MAX) largest = x, first = i;
    }
    float own = largest; /* of this thread's ids */
    bool any = first != UINT32_MAX;
    find_largest(s, &largest, &first);
    if (__syncthreads_or(bad) || largest == -INFINITY) return -1;
    if (r.temperature == 0) return (int32_t)first;

    /* top-k: ids with a larger key than `least`, and those with that key up to `last` */
    uint32_t least = 0, last = UINT32_MAX;
    u64 rest, ties;
    if (r.top_k < n) {
        auto key = [&](uint32_t i) { return key_of(logits[i]); };
        uint32_t bound = 0;
        /* the k-th largest of all is no less than the k-th of what the threads have largest, if so many have something */
        if (r.top_k <= n / mine.each * 32) {
            bound = select(
                s, THREADS, r.top_k, [&](uint32_t) { return key_of(own); }, [&](uint32_t) { return (u64)any; }, &rest,
                &ties);
        }
        least = select(
            s, n, r.top_k, key, [&](uint32_t i) { return (u64)(key(i) >= bound); }, &rest, &ties);
        if (rest < ties) {
            auto tied = [&](uint32_t i) { return (u64)(key(i) == least); };
            add_up_row(s, n, tied);
            last = walk(s, n, rest - 1, tied);
        }
    }

    /* masses: weights times a power of two such that their sum stays below 2^63 */
    const float unit = __uint_as_float((127u + 62u - (n > 1 ? 32u - (uint32_t)__clz((int)(n - 1)) : 0u)) << 23);
    u64 total = 0;
#pragma unroll 4
    for (uint32_t i = mine.begin + lane; i < mine.end; i += 32) {
        float x = logits[i], w = 0;
        uint32_t k = key_of(x);
        if (k > least || (k == least && i <= last)) w = exp_negative(__fdiv_rn(__fsub_rn(x, largest), r.temperature));
        weights[i] = w;
        total += __float2ull_rn(__fmul_rn(w, unit));
    }
    total = add_up(s, total); /* also makes the weights visible to all */

    /* top-p and min-p: ids with a larger weight than `edge`, and those with that weight up to `last` */
    uint32_t edge = 0;
    last = UINT32_MAX;
    auto mass = [&](uint32_t i) { return (u64)__float2ull_rn(__fmul_rn(weights[i], unit)); };
    if (r.top_p > 0 && r.top_p < 1) {
        u64 need = XL_MIN(XL_MAX((u64)ceil((double)r.top_p * (double)total), (u64)1), total);
        /* all that have less than the n-th part of what the nucleus leaves out do not reach into it together */
        u64 small = (u64)((double)total * (1.0 - (double)r.top_p) / (double)n * (1.0 - 1e-6));
        edge = select(
            s, n, need, [&](uint32_t i) { return __float_as_uint(weights[i]); },
            [&](uint32_t i) {
                u64 m = mass(i);
                return m >= small ? m : 0;
            },
            &rest, &ties);
        u64 each = __float2ull_rn(__fmul_rn(__uint_as_float(edge), unit)), keep = (rest + each - 1) / each;
        if (keep < ties / each) {
            auto tied = [&](uint32_t i) { return (u64)(__float_as_uint(weights[i]) == edge); };
            add_up_row(s, n, tied);
            last = walk(s, n, keep - 1, tied);
        }
    }
    auto kept = [&](uint32_t i) {
        uint32_t w = __float_as_uint(weights[i]);
        return (w > edge || (w == edge && i <= last)) && weights[i] >= r.min_p ? mass(i) : 0;
    };
    total = add_up_row(s, n, kept);
    return (int32_t)walk(s, n, XL_MIN((u64)(r.uniform * (double)total), total - 1), kept);
}

__global__ void __launch_bounds__(THREADS) sample_kernel(const __grid_constant__ sample_args a)
{
    __shared__ shared s;
    pdl_go();
    pdl_wait();
    for (uint32_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const cuda_sample r = a.requests[row];
        if (r.n_tokens == 0) continue; /* the same in all threads */
        int32_t id = choose(s, a.logits + (size_t)row * a.width, a.weights + (size_t)blockIdx.x * a.pitch, r);
        if (threadIdx.x == 0) a.chosen[row] = id;
        __syncthreads();
    }
}

} // namespace

int cuda_sample_open(cuda_backend *be, xlstm_error *err)
{
    size_t row = (size_t)be->opt.vocab_size * sizeof(float);
    size_t blocks = XL_MIN((size_t)be->sms, XL_MIN((size_t)be->opt.max_rows, XL_MAX(WEIGHTS_LIMIT / row, (size_t)1)));
    be->sample_blocks = (uint32_t)blocks;
    return cuda_alloc(be, (void **)&be->sample_weights, blocks * row, "weights of the sampler", err);
}

void cuda_run_sample(cuda_backend *be, const cuda_op *op)
{
    sample_args a = {};
    a.logits = (const float *)op->x->data;
    a.requests = be->samples;
    a.weights = be->sample_weights;
    a.chosen = be->chosen;
    a.rows = be->batch.n_out;
    a.width = op->width;
    a.pitch = be->opt.vocab_size;
    cuda_launch(be, "sample", sample_kernel, dim3(XL_MIN(a.rows, be->sample_blocks)), dim3(THREADS), 0, a);
}
