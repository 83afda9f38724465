/*
 * cuda_backend.cu — the cuda backend's vtable: devices, memory, weights, and the pass. Operations are recorded;
 * submit (or a read between them) runs them. A pass in which every run is one token is captured as a CUDA graph the
 * second time its shape is seen and replayed from then on: ids, runs, state addresses and what is to be sampled are in a
 * table that is uploaded before each pass. Built as a plugin, so that a machine without CUDA needs nothing of it. Kernels are in the
 * other files.
 */
#include "cuda_internal.cuh"

#include <cstring>
#include <new>

namespace
{

constexpr size_t STAGING = 16u << 20; /* bytes of each of the two upload buffers */
constexpr uint32_t GRAPHS = 32;

void forget_graphs(cuda_backend *be)
{
    for (cuda_graph &g : be->graphs) {
        if (g.exec != nullptr) cudaGraphExecDestroy(g.exec);
    }
    be->graphs.clear();
}

} // namespace

int cuda_enter(const cuda_backend *be, xlstm_error *err)
{
    cudaError_t code = cudaSetDevice(be->device);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "selecting the device");
}

void cuda_note(cuda_backend *be, cudaError_t code, const char *what)
{
    (void)cudaGetLastError();
    if (be->failed != cudaSuccess) return;
    be->failed = code;
    snprintf(be->failed_what, sizeof(be->failed_what), "%s", what);
}

int cuda_fail(xlstm_error *err, cudaError_t code, const char *what)
{
    (void)cudaGetLastError();
    return xl_fail(err, code == cudaErrorMemoryAllocation ? XLSTM_E_MEMORY : XLSTM_E_DEVICE, "cuda: %s: %s", what,
                   cudaGetErrorString(code));
}

int cuda_alloc(cuda_backend *be, void **out, size_t bytes, const char *what, xlstm_error *err)
{
    cudaError_t code = cudaMalloc(out, XL_MAX(bytes, (size_t)256));
    if (code == cudaSuccess) return XLSTM_OK;
    *out = nullptr;
    (void)cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return xl_fail(
        err, XLSTM_E_MEMORY,
        "cuda: %s: %zu bytes needed, %zu of %zu free on %s; use a smaller dtype, fewer sessions or fewer rows, or keep "
        "blocks on the cpu with --offload-blocks",
        what, bytes, free, total, be->device_name);
}

void *cuda_scratch(cuda_backend *be, size_t bytes)
{
    if (bytes <= be->scratch_bytes) return be->scratch;
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(be->stream, &status);
    if (status != cudaStreamCaptureStatusNone) {
        cuda_note(be, cudaErrorMemoryAllocation, "scratch grew while a pass was recorded");
        return nullptr;
    }
    cudaStreamSynchronize(be->stream);
    cudaFree(be->scratch);
    be->scratch = nullptr;
    be->scratch_bytes = 0;
    cudaError_t code = cudaMalloc(&be->scratch, bytes);
    if (code != cudaSuccess) {
        cuda_note(be, code, "scratch memory for a large product");
        return nullptr;
    }
    be->scratch_bytes = bytes;
    forget_graphs(be); /* they hold the old address */
    return be->scratch;
}

namespace
{

/* ---- open and close --------------------------------------------------------------------------------------------- */

void close_backend(xl_backend *base)
{
    if (base == nullptr) return;
    cuda_backend *be = cuda_of(base);
    if (cudaSetDevice(be->device) == cudaSuccess) {
        if (be->stream != nullptr) cudaStreamSynchronize(be->stream);
        forget_graphs(be);
        cuda_gemm_close(be);
        cuda_states_close(be);
        cuda_int8_close(be);
        for (int i = 0; i < 2; i++) {
            cudaFreeHost(be->pinned[i]);
            cudaFree(be->raw[i]);
            if (be->pinned_free[i] != nullptr) cudaEventDestroy(be->pinned_free[i]);
        }
        cudaFree(be->scratch);
        cudaFree(be->intra);
        cudaFree(be->counters);
        cudaFree(be->chosen);
        cudaFree(be->sample_weights);
        cudaFree(be->device_table);
        cudaFreeHost(be->host_table);
        cudaFreeHost(be->host_faults);
        cudaFreeHost(be->host_chosen);
        if (be->stream != nullptr) cudaStreamDestroy(be->stream);
    }
    delete be;
}

/* Where the parts of the table lie; the same offsets on host and device. */
struct table_layout {
    size_t ids, out_rows, runs, chunks, samples, bytes;
};

table_layout table_of(const cuda_backend *be)
{
    table_layout t;
    t.ids = 0;
    t.out_rows = xl_round_up(be->opt.max_rows * sizeof(int32_t), 64);
    t.runs = t.out_rows + xl_round_up(be->opt.max_rows * sizeof(uint32_t), 64);
    t.chunks = t.runs + xl_round_up(be->opt.max_runs * sizeof(cuda_run), 64);
    t.samples = t.chunks + xl_round_up(be->max_chunks * sizeof(cuda_chunk), 64);
    t.bytes = t.samples + be->opt.max_rows * sizeof(cuda_sample);
    return t;
}

int choose_device(cuda_backend *be, xlstm_error *err)
{
    int n = 0;
    cudaError_t code = cudaGetDeviceCount(&n);
    if (code == cudaErrorInsufficientDriver) {
        (void)cudaGetLastError();
        int driver = 0, runtime = 0;
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        if (driver == 0)
            return xl_fail(err, XLSTM_E_DEVICE, "cuda: no NVIDIA driver on this machine; use the cpu backend");
        return xl_fail(err, XLSTM_E_DEVICE,
                       "cuda: the NVIDIA driver serves CUDA %d.%d, this build needs %d.%d; update the driver",
                       driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (code == cudaErrorNoDevice || (code == cudaSuccess && n == 0)) {
        (void)cudaGetLastError();
        return xl_fail(err, XLSTM_E_DEVICE, "cuda: no NVIDIA GPU is visible; use the cpu backend");
    }
    if (code != cudaSuccess) return cuda_fail(err, code, "looking for devices");
    if (be->opt.device >= (uint32_t)n) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "cuda: device %u: this machine has %d", be->opt.device, n);
    }
    be->device = (int)be->opt.device;
    code = cudaSetDevice(be->device);
    if (code != cudaSuccess) return cuda_fail(err, code, "selecting the device");
    cudaDeviceProp p;
    code = cudaGetDeviceProperties(&p, be->device);
    if (code != cudaSuccess) return cuda_fail(err, code, "reading the device's properties");
    be->sms = p.multiProcessorCount;
    be->arch = p.major * 10 + p.minor;
    be->smem_max = p.sharedMemPerBlockOptin;
    be->overlap = p.major >= 9;
    snprintf(be->device_name, sizeof(be->device_name), "%.120s", p.name);
    if (be->arch < 80) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: %s has compute capability %d.%d, 8.0 or later is needed",
                       p.name, p.major, p.minor);
    }
    return XLSTM_OK;
}

int check_options(const xl_backend_options *o, xlstm_error *err)
{
    if (o->state != XLSTM_F32 && o->state != XLSTM_BF16 && o->state != XLSTM_I8) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: state dtype %s: expected float32, bfloat16 or int8",
                       xlstm_dtype_name(o->state));
    }
    if (o->activations != XLSTM_F32 && o->activations != XLSTM_BF16 && o->activations != XLSTM_F16) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: activations in %s: expected float32, bfloat16 or float16",
                       xlstm_dtype_name(o->activations));
    }
    if (o->head_qk > 512) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: query-key heads of %u channels: at most 512 are supported",
                       o->head_qk);
    }
    return XLSTM_OK;
}

int open_backend(xl_backend **out, const xl_backend_options *options, xlstm_error *err)
{
    *out = nullptr;
    cuda_backend *be = new (std::nothrow) cuda_backend();
    if (be == nullptr) return xl_fail(err, XLSTM_E_MEMORY, "cuda: out of memory");
    be->base.ops = xlstm_cuda_backend();
    be->opt = *options;
    const xl_backend_options *o = &be->opt;
    cudaError_t code = cudaSuccess;
    table_layout table;
    size_t period = 0;
    int result = check_options(o, err);
    if (result == XLSTM_OK) {
        result = xl_state_layout_make(&be->layout, o->state, o->num_blocks, o->num_heads, o->head_qk, o->head_v, err);
    }
    if (result == XLSTM_OK) result = choose_device(be, err);
    if (result != XLSTM_OK) goto fail;
    code = cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking);
    if (code == cudaSuccess) code = cuda_linear_setup(be);
    if (code == cudaSuccess) code = cuda_mlstm_setup(be);
    if (code != cudaSuccess) {
        result = cuda_fail(
            err, code, code == cudaErrorNoKernelImageForDevice ? "no code for this GPU in this build" : "setting up");
        goto fail;
    }
    cuda_states_open(be);
    /* a piece is cut by borders, by its largest size between them, and by the run's ends */
    period = cuda_piece_period(be);
    be->max_chunks = o->max_rows / XL_MIN(period, (size_t)cuda_piece_size(be)) + o->max_rows / period + 2 +
                     2 * (size_t)XL_MIN(o->max_runs, o->max_rows / CHUNKED_FROM);
    be->max_chunks = XL_MIN(be->max_chunks, (size_t)o->max_rows);
    table = table_of(be);
    be->table_bytes = table.bytes;
    code = cudaMallocHost(&be->host_table, table.bytes);
    if (code == cudaSuccess) code = cudaMallocHost(&be->host_faults, o->max_rows * sizeof(uint32_t));
    if (code == cudaSuccess) code = cudaMallocHost(&be->host_chosen, o->max_rows * sizeof(int32_t));
    for (int i = 0; i < 2 && code == cudaSuccess; i++) {
        code = cudaMallocHost(&be->pinned[i], STAGING);
        if (code == cudaSuccess) code = cudaEventCreateWithFlags(&be->pinned_free[i], cudaEventDisableTiming);
    }
    if (code != cudaSuccess) {
        result = cuda_fail(err, code, "pinned host memory");
        goto fail;
    }
    result = cuda_alloc(be, (void **)&be->device_table, table.bytes, "tables", err);
    if (result == XLSTM_OK)
        result =
            cuda_alloc(be, (void **)&be->counters, (COUNTERS + o->max_rows) * sizeof(uint32_t), "fault codes", err);
    for (int i = 0; i < 2 && result == XLSTM_OK; i++)
        result = cuda_alloc(be, (void **)&be->raw[i], STAGING, "upload buffers", err);
    if (result == XLSTM_OK && cuda_chunkwise_fits(be)) {
        be->intra_bytes = cuda_chunk_scratch(be);
        result = cuda_alloc(be, (void **)&be->intra, be->intra_bytes, "chunkwise scratch", err);
    }
    if (result == XLSTM_OK && o->state == XLSTM_I8) result = cuda_int8_open(be, err);
    if (result == XLSTM_OK)
        result = cuda_alloc(be, (void **)&be->chosen, o->max_rows * sizeof(int32_t), "chosen ids", err);
    if (result == XLSTM_OK) result = cuda_sample_open(be, err);
    if (result != XLSTM_OK) goto fail;
    be->faults = be->counters + COUNTERS;
    be->ids = (int32_t *)(be->device_table + table.ids);
    be->out_rows = (uint32_t *)(be->device_table + table.out_rows);
    be->runs = (cuda_run *)(be->device_table + table.runs);
    be->chunks = (cuda_chunk *)(be->device_table + table.chunks);
    be->samples = (cuda_sample *)(be->device_table + table.samples);
    be->ops.reserve((size_t)o->num_blocks * 12 + 16);
    be->graphs.reserve(GRAPHS);
    if (cuda_gemm_open(be) != XLSTM_OK) xl_logf(o->log, XLSTM_LOG_WARNING, "cuda: %s", be->gemm_note);
    *out = &be->base;
    return XLSTM_OK;
fail:
    close_backend(&be->base);
    return result;
}

void describe(const xl_backend *base, char *out, size_t size)
{
    const cuda_backend *be = cuda_of(base);
    snprintf(out, size, "cuda (%d: %s)", be->device, be->device_name);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

void matrix_free(xl_backend *base, xl_matrix *m)
{
    cuda_backend *be = cuda_of(base);
    if (m == nullptr) return;
    if (cuda_enter(be, nullptr) == XLSTM_OK) {
        cudaStreamSynchronize(be->stream);
        forget_graphs(be);
        cudaFree(m->data);
        cudaFree(m->rows);
    }
    delete m;
}

/* Bytes to the device through two pinned buffers, so that reading the file and copying overlap; `use` enqueues what is
 * to be done with rows row .. row + n - 1, whose file bytes are then at the device address it is given. */
template <typename F>
int upload(cuda_backend *be, const void *bytes, size_t row_bytes, size_t rows, size_t multiple, F use, xlstm_error *err)
{
    size_t step = XL_MAX(STAGING / row_bytes / multiple * multiple, multiple);
    if (step * row_bytes > STAGING) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: rows of %zu bytes: at most %zu are supported", row_bytes,
                       STAGING / multiple);
    }
    for (size_t row = 0; row < rows; row += step) {
        size_t n = XL_MIN(step, rows - row);
        uint32_t i = be->next_pinned;
        be->next_pinned ^= 1;
        cudaError_t code = cudaEventSynchronize(be->pinned_free[i]);
        if (code == cudaSuccess) {
            memcpy(be->pinned[i], (const uint8_t *)bytes + row * row_bytes, n * row_bytes);
            code = cudaMemcpyAsync(be->raw[i], be->pinned[i], n * row_bytes, cudaMemcpyHostToDevice, be->stream);
        }
        if (code == cudaSuccess) {
            use(be->raw[i], row, n);
            code = cudaGetLastError();
        }
        if (code == cudaSuccess) code = cudaEventRecord(be->pinned_free[i], be->stream);
        if (code != cudaSuccess) return cuda_fail(err, code, "copying weights to the device");
    }
    return XLSTM_OK;
}

int matrix_new(xl_backend *base, xl_matrix **out, bool *borrows, const xl_tensor *t, const void *bytes, uint64_t row0,
               uint64_t rows, xlstm_dtype hold, unsigned usage, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    *out = nullptr;
    *borrows = false;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    bool vector = t->rank == 1;
    uint64_t cols = vector ? rows : t->shape[1];
    size_t row_bytes = 0;
    if ((!cuda_plain(t->dtype) && !cuda_quant_supported(t->dtype)) || !xl_dtype_row_bytes(&row_bytes, t->dtype, cols) ||
        (vector && !cuda_plain(t->dtype)) || rows > UINT32_MAX / 2 || cols > UINT32_MAX / 2) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: the cuda backend has no %s of this shape", t->name,
                       xlstm_dtype_name(t->dtype));
    }
    xl_matrix *m = new (std::nothrow) xl_matrix();
    if (m == nullptr) return xl_fail(err, XLSTM_E_MEMORY, "cuda: out of memory");
    m->dtype = t->dtype;
    if (cuda_plain(t->dtype) && cuda_plain(hold) && cuda_size(hold) <= cuda_size(t->dtype)) m->dtype = hold;
    m->rank = t->rank;
    m->out = vector ? 1 : (uint32_t)rows;
    m->in = (uint32_t)cols;
    char what[200];
    snprintf(what, sizeof(what), "tensor %.150s", t->name);
    if (vector) {
        m->dtype = XLSTM_F32;
        m->pitch = cols;
        m->bytes = cols * sizeof(float);
        const uint8_t *from = (const uint8_t *)bytes + row0 * cuda_size(t->dtype);
        result = cuda_alloc(be, (void **)&m->data, m->bytes, what, err);
        /* uploaded as rows of one element, so that any length fits */
        if (result == XLSTM_OK) {
            result = upload(
                be, from, cuda_size(t->dtype), cols, 1,
                [&](const void *raw, size_t first, size_t n) {
                    cuda_run_convert(be->stream, (float *)m->data + first, XLSTM_F32, 1, raw, t->dtype, n, 1);
                },
                err);
        }
    } else if (cuda_plain(t->dtype)) {
        m->pitch = xl_round_up(cols, 32);
        m->bytes = rows * m->pitch * cuda_size(m->dtype);
        const uint8_t *from = (const uint8_t *)bytes + row0 * row_bytes;
        result = cuda_alloc(be, (void **)&m->data, m->bytes, what, err);
        if (result == XLSTM_OK) {
            result = upload(
                be, from, row_bytes, rows, 1,
                [&](const void *raw, size_t first, size_t n) {
                    uint8_t *to = m->data + first * m->pitch * cuda_size(m->dtype);
                    if (m->dtype == t->dtype && m->pitch == cols) {
                        cudaMemcpyAsync(to, raw, n * row_bytes, cudaMemcpyDeviceToDevice, be->stream);
                    } else {
                        cuda_run_convert(be->stream, to, m->dtype, m->pitch, raw, t->dtype, n, cols);
                    }
                },
                err);
        }
    } else {
        size_t values = 0, scales = 0, table = usage & XL_USE_ROWS ? rows * cols * sizeof(float) : 0;
        if (usage & XL_USE_MATMUL) cuda_quant_sizes(t->dtype, m->out, m->in, &values, &scales);
        m->bytes = values + scales + table;
        const uint8_t *from = (const uint8_t *)bytes + row0 * row_bytes;
        if (values > 0) result = cuda_alloc(be, (void **)&m->data, values + scales, what, err);
        m->scales = m->data + values;
        if (result == XLSTM_OK && table > 0) result = cuda_alloc(be, (void **)&m->rows, table, what, err);
        if (result == XLSTM_OK) {
            result = upload(
                be, from, row_bytes, rows, 16,
                [&](const void *raw, size_t first, size_t n) {
                    if (values > 0) cuda_quant_repack(be->stream, m, raw, (uint32_t)first, (uint32_t)n);
                    if (table > 0) {
                        cuda_quant_decode(be->stream, (float *)m->rows + first * cols, cols, raw, t->dtype, (uint32_t)n,
                                          m->in);
                    }
                },
                err);
        }
    }
    if (result != XLSTM_OK) {
        matrix_free(base, m);
        return result;
    }
    *out = m;
    return XLSTM_OK;
}

size_t matrix_bytes(const xl_matrix *m) { return m->bytes; }

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

void buffer_free(xl_backend *base, xl_buffer *b)
{
    cuda_backend *be = cuda_of(base);
    if (b == nullptr) return;
    if (cuda_enter(be, nullptr) == XLSTM_OK) {
        cudaStreamSynchronize(be->stream);
        forget_graphs(be);
        cudaFree(b->data);
    }
    delete b;
}

int buffer_new(xl_backend *base, xl_buffer **out, size_t rows, size_t width, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    *out = nullptr;
    int result = cuda_enter(be, err);
    size_t n = 0;
    if (result == XLSTM_OK && (!xl_mul(&n, rows, width) || n > SIZE_MAX / 8)) {
        result = xl_fail(err, XLSTM_E_UNSUPPORTED, "cuda: a buffer of %zu rows of %zu values", rows, width);
    }
    if (result != XLSTM_OK) return result;
    xl_buffer *b = new (std::nothrow) xl_buffer();
    if (b == nullptr) return xl_fail(err, XLSTM_E_MEMORY, "cuda: out of memory");
    b->rows = rows;
    b->width = width;
    b->dtype = be->opt.activations;
    result = cuda_alloc(be, (void **)&b->data, n * sizeof(float), "activations", err);
    if (result == XLSTM_OK) {
        cudaError_t code = cudaMemsetAsync(b->data, 0, n * sizeof(float), be->stream);
        if (code != cudaSuccess) result = cuda_fail(err, code, "clearing a buffer");
    }
    if (result != XLSTM_OK) {
        buffer_free(base, b);
        return result;
    }
    *out = b;
    return XLSTM_OK;
}

const xl_state_layout *layout_of(const xl_backend *base) { return &cuda_of(base)->layout; }

/* ---- the pass --------------------------------------------------------------------------------------------------- */

cuda_graph *find_graph(cuda_backend *be)
{
    for (cuda_graph &g : be->graphs) {
        if (g.rows == be->batch.rows && g.n_out == be->batch.n_out && g.sampled == (be->batch.n_samples > 0)) return &g;
    }
    return nullptr;
}

/* Fills the table's host copy: runs of one token first, then the other stepped ones, then those that take the chunkwise
 * form. */
void fill_table(cuda_backend *be)
{
    const xl_batch *batch = &be->batch;
    table_layout at = table_of(be);
    memcpy(be->host_table + at.ids, batch->ids, batch->rows * sizeof(int32_t));
    if (batch->n_out > 0) memcpy(be->host_table + at.out_rows, batch->out_rows, batch->n_out * sizeof(uint32_t));
    cuda_run *runs = (cuda_run *)(be->host_table + at.runs);
    be->host_runs = runs;
    cuda_chunk *chunks = (cuda_chunk *)(be->host_table + at.chunks);
    enum kind_t { SINGLE, STEPPED, CHUNKED };
    bool chunkwise = cuda_chunkwise_fits(be);
    uint32_t period = cuda_piece_period(be), most = cuda_piece_size(be);
    uint32_t n = 0, n_long = 0;
    be->n_single = be->n_step = be->n_chunks = 0;
    for (kind_t kind : {SINGLE, STEPPED, CHUNKED}) {
        for (uint32_t i = 0; i < batch->n_runs; i++) {
            const xl_run *r = &batch->runs[i];
            if (kind != (r->count == 1 ? SINGLE : chunkwise && r->count >= CHUNKED_FROM ? CHUNKED : STEPPED)) continue;
            cuda_run *d = &runs[n++];
            d->c = r->store->data;
            d->packed = nullptr;
            if (be->opt.state == XLSTM_I8 && kind != SINGLE) {
                d->packed = d->c;
                d->c = be->unpacked + n_long++ % be->unpacked_runs * be->unpacked_bytes;
            }
            uint32_t now = r->store->parity;
            d->n_in = (const float *)(r->store->data + cuda_n_at(be, now));
            d->n_out = (float *)(r->store->data + cuda_n_at(be, 1 - now));
            d->m_in = (const float *)(r->store->data + cuda_m_at(be, now));
            d->m_out = (float *)(r->store->data + cuda_m_at(be, 1 - now));
            d->position = r->position;
            d->row = r->row;
            d->count = r->count;
            d->chunk0 = be->n_chunks;
            for (uint32_t done = 0, piece; kind == CHUNKED && done < r->count; done += piece) {
                uint64_t inside = (r->position + done) % period,
                         to_border = XL_MIN(period - inside, most - inside % most);
                piece = (uint32_t)XL_MIN(to_border, (uint64_t)(r->count - done));
                chunks[be->n_chunks].row = r->row + done;
                chunks[be->n_chunks++].count = piece;
            }
            d->n_chunks = be->n_chunks - d->chunk0;
        }
        if (kind == SINGLE) be->n_single = n;
        if (kind != CHUNKED) be->n_step = n;
    }
    cuda_sample *samples = (cuda_sample *)(be->host_table + at.samples);
    if (batch->n_samples > 0) memset(samples, 0, batch->n_out * sizeof(*samples));
    for (uint32_t i = 0; i < batch->n_samples; i++) {
        const xl_sample *from = &batch->samples[i];
        samples[from->out] = {from->uniform, from->n_tokens, from->top_k, from->temperature, from->top_p, from->min_p};
    }
    be->n_chunked = n - be->n_step;
    be->decode = be->n_single == n;
}

int begin(xl_backend *base, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    *replay = false;
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    if (batch->rows > be->opt.max_rows || batch->n_runs > be->opt.max_runs || batch->n_out > be->opt.max_rows) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "cuda: a batch of %u rows and %u runs: room is for %u and %u",
                       batch->rows, batch->n_runs, be->opt.max_rows, be->opt.max_runs);
    }
    be->batch = *batch;
    be->ops.clear();
    be->flushed = be->replay = be->after_kernel = false;
    be->failed = cudaSuccess;
    be->passes++;
    result = cuda_states_hold(be, batch, err);
    if (result != XLSTM_OK) return result;
    fill_table(be);
    table_layout at = table_of(be);
    const size_t parts[][2] = {{at.ids, batch->rows * sizeof(int32_t)},
                               {at.out_rows, batch->n_out * sizeof(uint32_t)},
                               {at.runs, batch->n_runs * sizeof(cuda_run)},
                               {at.chunks, be->n_chunks * sizeof(cuda_chunk)},
                               {at.samples, batch->n_samples > 0 ? batch->n_out * sizeof(cuda_sample) : 0}};
    cudaError_t code = cudaSuccess;
    for (size_t i = 0; i < XL_COUNT(parts) && code == cudaSuccess; i++) {
        if (parts[i][1] == 0) continue;
        code = cudaMemcpyAsync(be->device_table + parts[i][0], be->host_table + parts[i][0], parts[i][1],
                               cudaMemcpyHostToDevice, be->stream);
    }
    if (code != cudaSuccess) {
        cuda_states_release(be);
        return cuda_fail(err, code, "uploading the batch");
    }
    be->open_pass = true;
    cuda_graph *g = be->decode && !batch->traced ? find_graph(be) : nullptr;
    *replay = be->replay = g != nullptr && g->exec != nullptr;
    return XLSTM_OK;
}

void run_ops(cuda_backend *be)
{
    for (const cuda_op &each : be->ops) {
        const cuda_op *op = &each;
        uint32_t rows = op->out_rows ? be->batch.n_out : be->batch.rows;
        switch (op->kind) {
        case cuda_op::EMBED:
            cuda_run_embed(be, op);
            break;
        case cuda_op::RMSNORM:
            cuda_run_rmsnorm(be, op, rows);
            break;
        case cuda_op::LINEAR:
            cuda_run_linear(be, op, rows);
            break;
        case cuda_op::MLSTM:
            cuda_run_mlstm(be, op);
            break;
        case cuda_op::MHNORM:
            cuda_run_mhnorm(be, op, rows);
            break;
        case cuda_op::SWIGLU:
            cuda_run_swiglu(be, op, rows);
            break;
        case cuda_op::ADD:
            cuda_run_add(be, op, rows);
            break;
        case cuda_op::GATHER:
            cuda_run_gather(be, op);
            break;
        case cuda_op::SOFTCAP:
            cuda_run_softcap(be, op);
            break;
        case cuda_op::SAMPLE:
            cuda_run_sample(be, op);
            break;
        }
    }
    be->ops.clear();
}

void clear_faults(cuda_backend *be)
{
    cudaError_t code = cudaMemsetAsync(be->counters, 0, (COUNTERS + be->batch.rows) * sizeof(uint32_t), be->stream);
    if (code != cudaSuccess) cuda_note(be, code, "clearing fault codes");
    be->n_counters = 0;
    be->after_kernel = false;
}

/* Fault codes and chosen ids. */
void fetch_results(cuda_backend *be)
{
    cudaError_t code = cudaMemcpyAsync(be->host_faults, be->faults, be->batch.rows * sizeof(uint32_t),
                                       cudaMemcpyDeviceToHost, be->stream);
    if (code == cudaSuccess && be->batch.n_samples > 0) {
        code = cudaMemcpyAsync(be->host_chosen, be->chosen, be->batch.n_out * sizeof(int32_t), cudaMemcpyDeviceToHost,
                               be->stream);
    }
    if (code != cudaSuccess) cuda_note(be, code, "fetching results");
    be->after_kernel = false;
}

/* Runs what was recorded so far, one by one. */
void flush(cuda_backend *be)
{
    if (be->ops.empty()) return;
    if (!be->flushed) clear_faults(be);
    be->flushed = true;
    run_ops(be);
}

/* Captures the recorded operations; true when the pass was launched that way. */
bool capture(cuda_backend *be, cuda_graph *g)
{
    cudaGraph_t graph = nullptr;
    cudaError_t code = cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeThreadLocal);
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    clear_faults(be);
    run_ops(be);
    fetch_results(be);
    code = cudaStreamEndCapture(be->stream, &graph);
    if (code == cudaSuccess && be->failed == cudaSuccess) code = cudaGraphInstantiate(&g->exec, graph, 0);
    if (graph != nullptr) cudaGraphDestroy(graph);
    if (code != cudaSuccess) cuda_note(be, code, "recording a pass");
    if (be->failed == cudaSuccess) {
        code = cudaGraphLaunch(g->exec, be->stream);
        if (code != cudaSuccess) cuda_note(be, code, "launching a recorded pass");
    }
    return true;
}

/* Launches the pass, as a whole if it was recorded, and waits for it. */
void run_pass(cuda_backend *be)
{
    cuda_graph *g = be->decode && !be->batch.traced && !be->flushed ? find_graph(be) : nullptr;
    if (be->replay && be->ops.empty() && g != nullptr) {
        g->used = be->passes;
        cudaError_t code = cudaGraphLaunch(g->exec, be->stream);
        if (code != cudaSuccess) cuda_note(be, code, "launching a recorded pass");
    } else if (g != nullptr && g->exec == nullptr && capture(be, g)) {
        g->used = be->passes;
    } else {
        bool first = be->decode && !be->batch.traced && !be->flushed && g == nullptr;
        flush(be);
        fetch_results(be);
        if (first) {
            cuda_graph seen = {be->batch.rows, be->batch.n_out, be->batch.n_samples > 0, be->passes, nullptr};
            if (be->graphs.size() == GRAPHS) {
                size_t oldest = 0;
                for (size_t i = 1; i < GRAPHS; i++) {
                    if (be->graphs[i].used < be->graphs[oldest].used) oldest = i;
                }
                if (be->graphs[oldest].exec != nullptr) cudaGraphExecDestroy(be->graphs[oldest].exec);
                be->graphs[oldest] = seen;
            } else {
                be->graphs.push_back(seen);
            }
        }
    }
    cudaError_t code = cudaStreamSynchronize(be->stream);
    if (be->failed == cudaSuccess && code != cudaSuccess) cuda_note(be, code, "running a pass");
}

int submit(xl_backend *base, uint32_t *faults, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    int result = cuda_enter(be, err);
    if (result == XLSTM_OK) run_pass(be);
    for (uint32_t i = 0; i < be->batch.n_runs; i++) be->batch.runs[i].store->parity ^= 1;
    be->open_pass = false;
    be->ops.clear();
    cuda_states_release(be);
    if (result != XLSTM_OK) return result;
    if (be->failed != cudaSuccess) return cuda_fail(err, be->failed, be->failed_what);
    memcpy(faults, be->host_faults, be->batch.rows * sizeof(uint32_t));
    for (uint32_t i = 0; i < be->batch.n_samples; i++) be->batch.chosen[i] = be->host_chosen[be->batch.samples[i].out];
    return XLSTM_OK;
}

int buffer_read(xl_backend *base, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    if (be->open_pass) flush(be);
    size_t size = cuda_size(b->dtype), step = (1u << 20) / size;
    /* two pinned buffers in turn: one is copied out while the other arrives */
    cudaError_t code = cudaSuccess;
    size_t sent = 0, done = 0;
    uint32_t filling = 0, draining = 0;
    while (done < n && code == cudaSuccess) {
        while (sent < n && filling - draining < 2 && code == cudaSuccess) {
            size_t part = XL_MIN(step, n - sent);
            code = cudaMemcpyAsync(be->pinned[filling & 1], b->data + (first + sent) * size, part * size,
                                   cudaMemcpyDeviceToHost, be->stream);
            if (code == cudaSuccess) code = cudaEventRecord(be->pinned_free[filling & 1], be->stream);
            sent += part;
            filling++;
        }
        if (code == cudaSuccess) code = cudaEventSynchronize(be->pinned_free[draining & 1]);
        if (code != cudaSuccess) break;
        size_t part = XL_MIN(step, n - done);
        const uint8_t *from = be->pinned[draining & 1];
        if (b->dtype == XLSTM_F32) {
            memcpy(out + done, from, part * sizeof(float));
        } else {
            const uint16_t *half = (const uint16_t *)from;
            for (size_t i = 0; i < part; i++)
                out[done + i] = b->dtype == XLSTM_BF16 ? xl_bf16_to_f32(half[i]) : xl_f16_to_f32(half[i]);
        }
        done += part;
        draining++;
    }
    be->after_kernel = false;
    if (be->failed != cudaSuccess) return cuda_fail(err, be->failed, be->failed_what);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "reading a buffer");
}

int buffer_write(xl_backend *base, xl_buffer *b, size_t first, const float *in, size_t n, xlstm_error *err)
{
    cuda_backend *be = cuda_of(base);
    int result = cuda_enter(be, err);
    if (result != XLSTM_OK) return result;
    if (be->open_pass) flush(be);
    b->dtype = be->opt.activations;
    size_t size = cuda_size(b->dtype), step = STAGING / size;
    cudaError_t code = cudaSuccess;
    for (size_t done = 0, part = 0; done < n && code == cudaSuccess; done += part) {
        part = XL_MIN(step, n - done);
        uint32_t i = be->next_pinned;
        be->next_pinned ^= 1;
        code = cudaEventSynchronize(be->pinned_free[i]);
        if (code != cudaSuccess) break;
        uint16_t *half = (uint16_t *)be->pinned[i];
        if (b->dtype == XLSTM_F32) memcpy(half, in + done, part * sizeof(float));
        for (size_t k = 0; k < part && b->dtype != XLSTM_F32; k++)
            half[k] = b->dtype == XLSTM_BF16 ? xl_f32_to_bf16(in[done + k]) : xl_f32_to_f16(in[done + k]);
        code = cudaMemcpyAsync(b->data + (first + done) * size, half, part * size, cudaMemcpyHostToDevice, be->stream);
        if (code == cudaSuccess) code = cudaEventRecord(be->pinned_free[i], be->stream);
    }
    be->after_kernel = false;
    if (be->failed != cudaSuccess) return cuda_fail(err, be->failed, be->failed_what);
    return code == cudaSuccess ? XLSTM_OK : cuda_fail(err, code, "writing a buffer");
}

size_t room(const xl_backend *base)
{
    size_t free = 0, total = 0;
    if (cuda_enter(cuda_of(base), nullptr) != XLSTM_OK || cudaMemGetInfo(&free, &total) != cudaSuccess) return SIZE_MAX;
    return free;
}

/* ---- recording -------------------------------------------------------------------------------------------------- */

cuda_op *record(xl_backend *base, cuda_op::kind_t kind)
{
    cuda_backend *be = cuda_of(base);
    be->ops.emplace_back();
    cuda_op *op = &be->ops.back();
    op->kind = kind;
    return op;
}

void embed(xl_backend *be, xl_buffer *x, const xl_matrix *embedding)
{
    cuda_op *op = record(be, cuda_op::EMBED);
    op->y = x;
    op->matrix = embedding;
}

void rmsnorm(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows)
{
    cuda_op *op = record(be, cuda_op::RMSNORM);
    op->y = y;
    op->x = x;
    op->norm = *norm;
    op->out_rows = out_rows;
}

void linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows)
{
    cuda_op *op = record(be, cuda_op::LINEAR);
    op->x = x;
    op->n = n;
    memcpy(op->group, group, n * sizeof(*group));
    op->out_rows = out_rows;
}

void mlstm(xl_backend *be, const xl_mlstm *cell) { record(be, cuda_op::MLSTM)->mlstm = *cell; }

void mhnorm_gate(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm)
{
    cuda_op *op = record(be, cuda_op::MHNORM);
    op->y = g;
    op->x = h;
    op->x2 = o;
    op->norm = *norm;
}

void swiglu(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up)
{
    cuda_op *op = record(be, cuda_op::SWIGLU);
    op->y = a;
    op->x = gate;
    op->x2 = up;
}

void add(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width)
{
    cuda_op *op = record(be, cuda_op::ADD);
    op->y = x;
    op->x = y;
    op->width = width;
}

void gather(xl_backend *be, xl_buffer *y, const xl_buffer *x, uint32_t width)
{
    cuda_op *op = record(be, cuda_op::GATHER);
    op->y = y;
    op->x = x;
    op->width = width;
    op->out_rows = true;
}

void softcap(xl_backend *be, xl_buffer *logits, uint32_t width, float cap, uint32_t fault)
{
    cuda_op *op = record(be, cuda_op::SOFTCAP);
    op->y = logits;
    op->width = width;
    op->cap = cap;
    op->fault = fault;
    op->out_rows = true;
}

void sample(xl_backend *be, const xl_buffer *logits, uint32_t width)
{
    cuda_op *op = record(be, cuda_op::SAMPLE);
    op->x = logits;
    op->width = width;
    op->out_rows = true;
}

} // namespace

extern "C" const xl_backend_ops *xlstm_cuda_backend(void)
{
    static const xl_backend_ops ops = {
        .name = "cuda",
        .open = open_backend,
        .close = close_backend,
        .describe = describe,
        .matrix_new = matrix_new,
        .matrix_free = matrix_free,
        .matrix_bytes = matrix_bytes,
        .buffer_new = buffer_new,
        .buffer_free = buffer_free,
        .buffer_read = buffer_read,
        .buffer_write = buffer_write,
        .store_new = cuda_store_new,
        .store_free = cuda_store_free,
        .store_zero = cuda_store_zero,
        .store_copy = cuda_store_copy,
        .store_read = cuda_store_read,
        .store_write = cuda_store_write,
        .layout = layout_of,
        .begin = begin,
        .embed = embed,
        .rmsnorm = rmsnorm,
        .linear = linear,
        .mlstm = mlstm,
        .mhnorm_gate = mhnorm_gate,
        .swiglu = swiglu,
        .add = add,
        .gather = gather,
        .softcap = softcap,
        .submit = submit,
        .place = nullptr,
        .room = room,
        .norm_linear = nullptr,
        .most_runs = cuda_most_runs,
        .sample = sample,
    };
    return &ops;
}

const xl_plugin xlstm_cuda_plugin = {XL_PLUGIN_VERSION, sizeof(xl_backend_ops), sizeof(xl_backend_options), xlstm_cuda_backend};
