/*
 * cuda_bench.cu — speed of the cuda backend on the 7B geometry with random weights made in place: decode at several
 * batch sizes, prefill, time to first token, and each kind of operation by itself against the device's copy bandwidth.
 * Calls the operations in the order of forward.c. One JSON object a line on stdout.
 *   cuda_bench [--weights bf16|q8_0|q4_k|q4_0|f32] [--act bf16|f32] [--state f32|bf16|int8] [--decode 1,8,64]
 *              [--prefill 512,2048,8192] [--parts] [--tokens 32] [--blocks 32]
 */
#include "cuda_device.cuh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

static xlstm_error err;

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != XLSTM_OK) {                                                                                      \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, err.message);                                \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static const uint32_t D = 4096, NH = 8, QD = 2048, VD = 4096, F = 10944, V = 50304;

struct block {
    xl_matrix *norm1, *q, *k, *v, *o, *i, *f, *ib, *fb, *mh, *out, *norm2, *gate, *up, *down;
};

struct model {
    xl_backend *be;
    uint32_t blocks;
    std::vector<block> b;
    xl_matrix *embedding, *norm, *head;
    xl_buffer *x, *u, *q, *k, *v, *o, *gates, *h, *g, *gate, *up, *product, *last, *logits;
    double weight_bytes, state_bytes;
};

enum part { P_QKVO = 1, P_CELL = 2, P_OUT = 4, P_UP = 8, P_DOWN = 16, P_HEAD = 32, P_ALL = 63 };

static uint64_t seed = 1;
static float normal()
{
    float sum = 0;
    for (int i = 0; i < 3; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        sum += (float)(seed >> 40) * 0x1p-24f;
    }
    return (sum - 1.5f) * 2;
}

/* Random rows, repeated: what matters is that they are not zeros. */
static std::vector<uint8_t> random_bytes(xlstm_dtype t, size_t rows, size_t cols)
{
    size_t row_bytes = 0, distinct = std::min<size_t>(rows, 64);
    if (!xl_dtype_row_bytes(&row_bytes, t, cols)) {
        fprintf(stderr, "rows of %zu do not fill blocks of %s\n", cols, xlstm_dtype_name(t));
        exit(1);
    }
    std::vector<uint8_t> out(rows * row_bytes);
    std::vector<float> row(cols);
    for (size_t i = 0; i < distinct; i++) {
        for (float &x : row) x = normal() * 0.02f;
        xl_encode_row(out.data() + i * row_bytes, row.data(), t, cols);
    }
    for (size_t i = distinct; i < rows; i++)
        memcpy(out.data() + i * row_bytes, out.data() + (i % distinct) * row_bytes, row_bytes);
    return out;
}

static xl_matrix *make(model &m, const std::vector<uint8_t> &bytes, xlstm_dtype t, size_t rows, size_t cols,
                       bool vector = false, unsigned usage = XL_USE_MATMUL)
{
    xl_tensor tensor = {};
    tensor.name = "random";
    tensor.dtype = t;
    tensor.rank = vector ? 1 : 2;
    tensor.shape[0] = vector ? cols : rows;
    tensor.shape[1] = cols;
    xl_matrix *out;
    bool borrows;
    MUST(m.be->ops->matrix_new(m.be, &out, &borrows, &tensor, bytes.data(), 0, vector ? cols : rows,
                               XLSTM_DTYPE_DEFAULT, usage, &err));
    if (usage == XL_USE_MATMUL) m.weight_bytes += (double)m.be->ops->matrix_bytes(out);
    return out;
}

static void forward(model &m, const xl_batch &batch, int parts, bool *replayed)
{
    const xl_backend_ops *ops = m.be->ops;
    MUST(ops->begin(m.be, &batch, replayed, &err));
    if (*replayed) return;
    ops->embed(m.be, m.x, m.embedding);
    for (uint32_t i = 0; i < m.blocks; i++) {
        const block &w = m.b[i];
        xl_norm n1 = {w.norm1, nullptr, D, 1e-6f, 1}, n2 = {w.norm2, nullptr, D, 1e-6f, 2},
                mh = {w.mh, nullptr, VD, 1e-6f, 3};
        if (parts & P_QKVO) {
            ops->rmsnorm(m.be, m.u, m.x, &n1, false);
            xl_linear l[6] = {};
            l[0].weight = w.q, l[0].out = m.q, l[0].stride = QD;
            l[1].weight = w.k, l[1].out = m.k, l[1].stride = QD;
            l[2].weight = w.v, l[2].out = m.v, l[2].stride = VD;
            l[3].weight = w.o, l[3].out = m.o, l[3].stride = VD;
            l[4].weight = w.i, l[4].bias = w.ib, l[4].out = m.gates, l[4].stride = 2 * NH, l[4].wide = true;
            l[5] = l[4];
            l[5].weight = w.f, l[5].bias = w.fb, l[5].column = NH;
            ops->linear(m.be, l, 6, m.u, false);
        }
        if (parts & P_CELL) {
            xl_mlstm cell = {m.h, m.q, m.k, m.v, m.gates, i, 15.0f, 1e-6f, 4};
            ops->mlstm(m.be, &cell);
        }
        if (parts & P_OUT) {
            ops->mhnorm_gate(m.be, m.g, m.h, m.o, &mh);
            xl_linear l = {};
            l.weight = w.out, l.out = m.x, l.stride = D, l.add = true;
            ops->linear(m.be, &l, 1, m.g, false);
        }
        if (parts & P_UP) {
            ops->rmsnorm(m.be, m.u, m.x, &n2, false);
            xl_linear l[2] = {};
            l[0].weight = w.gate, l[0].out = m.gate, l[0].stride = F;
            l[1].weight = w.up, l[1].out = m.up, l[1].stride = F;
            ops->linear(m.be, l, 2, m.u, false);
        }
        if (parts & P_DOWN) {
            ops->swiglu(m.be, m.product, m.gate, m.up);
            xl_linear l = {};
            l.weight = w.down, l.out = m.x, l.stride = D, l.add = true;
            ops->linear(m.be, &l, 1, m.product, false);
        }
    }
    if (parts & P_HEAD) {
        xl_norm n = {m.norm, nullptr, D, 1e-6f, 5};
        ops->gather(m.be, m.last, m.x, D);
        ops->rmsnorm(m.be, m.u, m.last, &n, true);
        xl_linear l = {};
        l.weight = m.head, l.out = m.logits, l.stride = V, l.wide = true;
        ops->linear(m.be, &l, 1, m.u, true);
        ops->softcap(m.be, m.logits, V, 30.0f, 6);
        if (batch.n_samples > 0) ops->sample(m.be, m.logits, V);
    }
}

static std::vector<int> list(const char *s)
{
    std::vector<int> out;
    while (*s != 0) {
        char *end;
        out.push_back((int)strtol(s, &end, 10));
        s = *end == ',' ? end + 1 : end;
    }
    return out;
}

static double copy_bandwidth()
{
    size_t n = 4ull << 30;
    void *a, *b;
    if (cudaMalloc(&a, n) != cudaSuccess || cudaMalloc(&b, n) != cudaSuccess) return 0;
    cudaMemset(a, 1, n);
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    float best = 1e30f;
    for (int i = 0; i < 6; i++) {
        cudaEventRecord(from);
        cudaMemcpyAsync(b, a, n, cudaMemcpyDeviceToDevice, 0);
        cudaEventRecord(to);
        cudaEventSynchronize(to);
        float ms;
        cudaEventElapsedTime(&ms, from, to);
        best = std::min(best, ms);
    }
    cudaFree(a);
    cudaFree(b);
    cudaDeviceSynchronize();
    return 2.0 * (double)n / (best * 1e-3);
}

/* Read once: keep out of L1. */
__device__ __forceinline__ uint4 load_stream(const void *p)
{
    uint4 u;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w)
                 : "l"(p));
    return u;
}

__global__ void read_kernel(const uint4 *p, size_t n, uint32_t *out)
{
    uint32_t x = 0;
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x * 8 + threadIdx.x; i < n; i += 8 * step) {
        uint4 u[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            u[j] = i + j * blockDim.x < n ? load_stream(p + i + j * blockDim.x) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int j = 0; j < 8; j++) x ^= u[j].x ^ u[j].y ^ u[j].z ^ u[j].w;
    }
    if (x == 0x12345678) *out = x;
}

static double read_bandwidth(int blocks)
{
    size_t n = 8ull << 30;
    uint4 *a;
    if (cudaMalloc(&a, n) != cudaSuccess) return 0;
    cudaMemset(a, 1, n);
    cudaEvent_t from, to;
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    float best = 1e30f;
    for (int i = 0; i < 6; i++) {
        cudaEventRecord(from);
        read_kernel<<<132 * blocks, 256>>>(a, n / 16, (uint32_t *)a);
        cudaEventRecord(to);
        cudaEventSynchronize(to);
        float ms;
        cudaEventElapsedTime(&ms, from, to);
        best = std::min(best, ms);
    }
    cudaFree(a);
    cudaDeviceSynchronize();
    return (double)n / (best * 1e-3);
}

/* Operations a second of an 8192-cubed bfloat16 product of random numbers, the best of several; 0 without cublasLt. */
static double product_peak(xl_backend *base)
{
    cuda_backend *be = (cuda_backend *)base;
    const uint32_t n = 8192;
    std::vector<uint8_t> random = random_bytes(XLSTM_BF16, n, n);
    void *x, *w, *y;
    if (cudaMalloc(&x, random.size()) != cudaSuccess || cudaMalloc(&w, random.size()) != cudaSuccess ||
        cudaMalloc(&y, random.size()) != cudaSuccess)
        return 0;
    cudaMemcpy(x, random.data(), random.size(), cudaMemcpyHostToDevice);
    cudaMemcpy(w, random.data(), random.size(), cudaMemcpyHostToDevice);
    double best = 0;
    for (int i = 0; i < 8; i++) {
        double from = xl_now();
        if (!cuda_gemm_run(be, y, XLSTM_BF16, n, x, n, w, n, XLSTM_BF16, n, n, n, false)) break;
        cudaStreamSynchronize(be->stream);
        if (i > 0) best = std::max(best, 2.0 * n * n * n / (xl_now() - from)); /* the first chooses an algorithm */
    }
    cudaFree(x);
    cudaFree(w);
    cudaFree(y);
    return best;
}

static double median(std::vector<double> v)
{
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

int main(int argc, char **argv)
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    xlstm_dtype weights = XLSTM_BF16, act = XLSTM_BF16, state = XLSTM_F32;
    std::vector<int> decode, prefill;
    bool parts = false;
    int tokens = 32;
    uint32_t blocks = 32;
    for (int i = 1; i < argc; i++) {
        std::string a = argv[i];
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (a == "--weights") {
            MUST(xlstm_dtype_parse(&weights, next, &err));
            i++;
        } else if (a == "--act") {
            MUST(xlstm_dtype_parse(&act, next, &err));
            i++;
        } else if (a == "--state") {
            MUST(xlstm_dtype_parse(&state, next, &err));
            i++;
        } else if (a == "--decode") decode = list(next), i++;
        else if (a == "--prefill") prefill = list(next), i++;
        else if (a == "--tokens") tokens = atoi(next), i++;
        else if (a == "--blocks") blocks = (uint32_t)atoi(next), i++;
        else if (a == "--parts") parts = true;
        else {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    uint32_t rows = 64, runs = 1;
    for (int n : decode) rows = std::max(rows, (uint32_t)n), runs = std::max(runs, (uint32_t)n);
    for (int n : prefill) rows = std::max(rows, (uint32_t)n);
    xl_backend_options o = {};
    o.max_rows = rows;
    o.max_runs = runs;
    o.chunk_size = 64;
    o.activations = act;
    o.norm_float32 = true;
    o.num_blocks = blocks;
    o.num_heads = NH;
    o.head_qk = QD / NH;
    o.head_v = VD / NH;
    o.embedding_dim = D;
    o.ffn_dim = F;
    o.vocab_size = V;
    o.state = state;
    model m = {};
    double copied = copy_bandwidth(), read = 0;
    for (int n : {1, 2, 4, 8}) read = std::max(read, read_bandwidth(n));
    MUST(xlstm_cuda_backend()->open(&m.be, &o, &err));
    double peak = product_peak(m.be);
    m.blocks = blocks;
    m.b.resize(blocks);
    /* block formats of 256 do not divide F: that matrix falls back as quantisers do */
    bool k_quant = weights == XLSTM_Q4_K || weights == XLSTM_Q5_K || weights == XLSTM_Q6_K;
    xlstm_dtype down = k_quant ? (weights == XLSTM_Q4_K ? XLSTM_Q4_0 : XLSTM_Q8_0) : weights,
                plain = cuda_plain(weights) ? weights : XLSTM_F32;
    std::vector<uint8_t> of_d = random_bytes(weights, F, D), of_f = random_bytes(down, D, F),
                         gate = random_bytes(plain, NH, D), one(V * 4), head = random_bytes(weights, V, D),
                         table = random_bytes(XLSTM_BF16, V, D);
    for (size_t i = 0; i < V; i++) {
        float x = 1;
        memcpy(one.data() + 4 * i, &x, 4);
    }
    double start = xl_now();
    for (block &b : m.b) {
        b.norm1 = make(m, one, XLSTM_F32, 1, D, true);
        b.q = make(m, of_d, weights, QD, D);
        b.k = make(m, of_d, weights, QD, D);
        b.v = make(m, of_d, weights, VD, D);
        b.o = make(m, of_d, weights, VD, D);
        b.i = make(m, gate, plain, NH, D);
        b.f = make(m, gate, plain, NH, D);
        b.ib = make(m, one, XLSTM_F32, 1, NH, true);
        b.fb = make(m, one, XLSTM_F32, 1, NH, true);
        b.mh = make(m, one, XLSTM_F32, 1, VD, true);
        b.out = make(m, of_d, weights, D, VD);
        b.norm2 = make(m, one, XLSTM_F32, 1, D, true);
        b.gate = make(m, of_d, weights, F, D);
        b.up = make(m, of_d, weights, F, D);
        b.down = make(m, of_f, down, D, F);
    }
    m.norm = make(m, one, XLSTM_F32, 1, D, true);
    m.head = make(m, head, weights, V, D);
    m.embedding = make(m, table, XLSTM_BF16, V, D, false, XL_USE_ROWS);
    double loaded = xl_now() - start;
    size_t outs = std::max<size_t>(64, runs);
    struct {
        xl_buffer **b;
        size_t rows, width;
    } buffers[] = {{&m.x, rows, D},    {&m.u, rows, D},     {&m.q, rows, QD},         {&m.k, rows, QD},
                   {&m.v, rows, VD},   {&m.o, rows, VD},    {&m.gates, rows, 2 * NH}, {&m.h, rows, VD},
                   {&m.g, rows, VD},   {&m.gate, rows, F},  {&m.up, rows, F},         {&m.product, rows, F},
                   {&m.last, outs, D}, {&m.logits, outs, V}};
    for (auto &b : buffers) MUST(m.be->ops->buffer_new(m.be, b.b, b.rows, b.width, &err));
    std::vector<xl_store *> stores(std::max<size_t>(1, runs));
    for (xl_store *&s : stores) MUST(m.be->ops->store_new(m.be, &s, &err));
    m.state_bytes = (double)m.be->ops->layout(m.be)->total_bytes;
    char device[64];
    m.be->ops->describe(m.be, device, sizeof(device));
    printf("{\"device\":\"%s\",\"weights\":\"%s\",\"activations\":\"%s\",\"state\":\"%s\",\"blocks\":%u,"
           "\"weight_bytes\":%.0f,"
           "\"state_bytes\":%.0f,\"copy_bytes_per_s\":%.4g,\"read_bytes_per_s\":%.4g,"
           "\"peak\":\"bfloat16 8192-cubed product\",\"peak_flop_per_s\":%.4g,\"load_s\":%.2f}\n",
           device, xlstm_dtype_name(weights), xlstm_dtype_name(act), xlstm_dtype_name(state), blocks, m.weight_bytes,
           m.state_bytes, copied, read, peak, loaded);

    std::vector<int32_t> ids(rows);
    std::vector<uint32_t> faults(rows), out(outs);
    std::vector<float> logits(outs * V);
    std::vector<xl_run> table_runs(std::max<size_t>(1, runs));
    std::vector<xl_sample> samples;
    std::vector<int32_t> chosen(outs);
    for (uint32_t i = 0; i < outs; i++) samples.push_back({i, V, 40, 0.8f, 0.95f, 0, 0.37});
    for (uint32_t i = 0; i < rows; i++) ids[i] = (int32_t)((i * 7919u + 13) % V);
    uint64_t position = 0;
    auto batch_of = [&](uint32_t n_runs, uint32_t count, bool traced) {
        for (uint32_t i = 0; i < n_runs; i++) {
            table_runs[i] = {i * count, count, position, stores[i]};
            out[i] = (i + 1) * count - 1;
        }
        xl_batch b = {};
        b.ids = ids.data();
        b.rows = n_runs * count;
        b.runs = table_runs.data();
        b.n_runs = n_runs;
        b.out_rows = out.data();
        b.n_out = n_runs;
        b.traced = traced;
        return b;
    };
    auto reset = [&] {
        for (xl_store *s : stores) MUST(m.be->ops->store_zero(m.be, s, &err));
        position = 0;
    };
    auto once = [&](const xl_batch &b, int which, bool read_logits) {
        bool replayed;
        double from = xl_now();
        forward(m, b, which, &replayed);
        MUST(m.be->ops->submit(m.be, faults.data(), &err));
        if (read_logits) MUST(m.be->ops->buffer_read(m.be, m.logits, 0, logits.data(), (size_t)b.n_out * V, &err));
        double s = xl_now() - from;
        for (uint32_t i = 0; i < b.rows; i++) {
            if (faults[i] != 0) {
                fprintf(stderr, "row %u: fault %u\n", i, faults[i]);
                exit(1);
            }
        }
        return s;
    };
    for (int n : decode) {
        reset();
        /* in turn: nothing fetched; logits; ids chosen on the device with temperature, top-k and top-p */
        std::vector<double> times[3];
        for (int i = 0; i < 3 * tokens / 2 + 9; i++) {
            xl_batch b = batch_of((uint32_t)n, 1, false);
            if (i % 3 == 2) b.samples = samples.data(), b.n_samples = (uint32_t)n, b.chosen = chosen.data();
            double s = once(b, P_ALL, i % 3 == 1);
            position++;
            if (i >= 9) times[i % 3].push_back(s);
        }
        double pure = median(times[0]), all = median(times[1]), sampled = median(times[2]);
        double bytes = m.weight_bytes + 2.0 * n * m.state_bytes;
        printf("{\"decode\":%d,\"ms\":%.4f,\"tokens_per_s\":%.1f,\"ms_with_logits\":%.4f,"
               "\"tokens_per_s_with_logits\":%.1f,\"ms_sampled\":%.4f,\"tokens_per_s_sampled\":%.1f,"
               "\"bytes_per_s\":%.4g,\"of_read_bandwidth\":%.3f}\n",
               n, pure * 1e3, n / pure, all * 1e3, n / all, sampled * 1e3, n / sampled, bytes / pure,
               bytes / pure / read);
    }
    if (parts) {
        struct {
            const char *name;
            int part;
            double bytes;
        } kinds[] = {{"qkvo", P_QKVO, 0}, {"cell", P_CELL, 0}, {"out", P_OUT, 0}, {"up", P_UP, 0},
                     {"down", P_DOWN, 0}, {"head", P_HEAD, 0}, {"nothing", 0, 0}};
        for (int n : decode) {
            reset();
            for (auto &k : kinds) {
                std::vector<double> times;
                for (int i = 0; i < 9; i++) times.push_back(once(batch_of((uint32_t)n, 1, true), k.part, false));
                double each = k.part == P_HEAD ? 1 : blocks, bytes = 0;
                const block &b = m.b[0];
                auto add = [&](const xl_matrix *w) { bytes += (double)m.be->ops->matrix_bytes(w); };
                if (k.part == P_QKVO) add(b.q), add(b.k), add(b.v), add(b.o), add(b.i), add(b.f);
                if (k.part == P_OUT) add(b.out);
                if (k.part == P_UP) add(b.gate), add(b.up);
                if (k.part == P_DOWN) add(b.down);
                if (k.part == P_HEAD) add(m.head);
                if (k.part == P_CELL) bytes = 2.0 * n * m.state_bytes / blocks;
                double s = *std::min_element(times.begin(), times.end());
                printf(
                    "{\"part\":\"%s\",\"rows\":%d,\"us_each\":%.2f,\"bytes_per_s\":%.4g,\"of_read_bandwidth\":%.3f}\n",
                    k.name, n, s * 1e6 / each, bytes * each / s, bytes * each / s / read);
            }
        }
    }
    for (int n : prefill) {
        std::vector<double> times;
        for (int i = 0; i < (n > 4096 ? 4 : 6); i++) {
            reset();
            cudaDeviceSynchronize(); /* clearing many states takes longer than a short prompt */
            times.push_back(once(batch_of(1, (uint32_t)n, false), P_ALL, true));
        }
        double s = *std::min_element(times.begin() + 1, times.end());
        double flops = 2.0 * n * ((2.0 * QD + 3.0 * VD) * D + 3.0 * D * F) * blocks;
        printf("{\"prefill\":%d,\"ms\":%.3f,\"first_ms\":%.1f,\"tokens_per_s\":%.1f,\"flop_per_s\":%.4g}\n", n, s * 1e3,
               times[0] * 1e3, n / s, flops / s);
        if (!parts) continue;
        struct {
            const char *name;
            int part;
        } kinds[] = {{"qkvo", P_QKVO}, {"cell", P_CELL}, {"out", P_OUT}, {"up", P_UP},
                     {"down", P_DOWN}, {"head", P_HEAD}, {"nothing", 0}};
        for (auto &k : kinds) {
            std::vector<double> t;
            for (int i = 0; i < 4; i++) {
                reset();
                cudaDeviceSynchronize();
                t.push_back(once(batch_of(1, (uint32_t)n, false), k.part, false));
            }
            printf("{\"part\":\"%s\",\"rows\":%d,\"us_each\":%.2f}\n", k.name, n,
                   *std::min_element(t.begin() + 1, t.end()) * 1e6 / blocks);
        }
    }
    return 0;
}
